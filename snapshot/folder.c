/*
** The folder of snapshots. What counts is snapshot-<index, 20 digits>.lz4; any other name is not ours, but for
** snapshot.new (a writer's; nothing once the process is gone), snapshot.part with its state (receiver.c), and snapshot.head:
** the head of the newest one once more. What is in a head nobody else knows when the log before it is gone, and without it a
** node does not start: so a damaged one is replaced from there. It is written before the snapshot gets its name; one that is of
** another snapshot counts for nothing.
*/
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"

#define PREFIX "snapshot-"
#define SUFFIX ".lz4"
#define DIGITS 20

uint64_t snapshot_name_index(const char *name) {
  const size_t prefix = sizeof PREFIX - 1;
  uint64_t index = 0;
  if (strlen(name) != prefix + DIGITS + sizeof SUFFIX - 1) return 0;
  if (memcmp(name, PREFIX, prefix) != 0 || strcmp(name + prefix + DIGITS, SUFFIX) != 0) return 0;
  for (const char *digit = name + prefix; digit < name + prefix + DIGITS; digit++) {
    if (*digit < '0' || *digit > '9') return 0;
    if (__builtin_mul_overflow(index, 10, &index)) return 0;
    if (__builtin_add_overflow(index, (uint64_t)(*digit - '0'), &index)) return 0;
  }
  return index;
}

/* ---- Finding ---- */

struct search {
  uint64_t before; /* only these count */
  uint64_t newest;
  bool leftover;
};

static int look_at(void *ctx, const char *name) {
  struct search *search = ctx;
  uint64_t index = snapshot_name_index(name);
  if (index > search->newest && index < search->before) search->newest = index;
  if (strcmp(name, SNAPSHOT_NEW) == 0) search->leftover = true;
  return 0;
}

static int take_newest(const char *folder, const struct search *search, char path[OS_PATH_MAX], uint64_t *index) {
  path[0] = 0;
  if (search->newest == 0) return 0;
  snapshot_path(folder, search->newest, path);
  if (path[0] == 0) return -ENAMETOOLONG;
  *index = search->newest;
  return 0;
}

int snapshot_find(struct os *os, const char *folder, char path[OS_PATH_MAX], uint64_t *index) {
  struct search search = {.before = UINT64_MAX};
  *index = 0;
  path[0] = 0;
  int error = snapshot_join(folder, SNAPSHOT_NEW, path, NULL);
  if (error == 0) error = os_list(os, folder, look_at, &search);
  if (error == 0 && search.leftover) error = os_remove(os, path);
  /* A process that died may have left a name that is not durable yet; the log is compacted on the strength of it. */
  if (error == 0 && (search.leftover || search.newest != 0)) error = os_sync_directory(os, folder);
  return error ? error : take_newest(folder, &search, path, index);
}

int snapshot_find_before(struct os *os, const char *folder, uint64_t before, char path[OS_PATH_MAX], uint64_t *index) {
  struct search search = {.before = before};
  *index = 0;
  path[0] = 0;
  int error = os_list(os, folder, look_at, &search);
  return error ? error : take_newest(folder, &search, path, index);
}

/* ---- Removing ---- */

struct removal {
  struct os *os;
  const char *folder;
  uint64_t index;
  bool any;
};

static int remove_if_older(void *ctx, const char *name) {
  struct removal *removal = ctx;
  char path[OS_PATH_MAX];
  uint64_t index = snapshot_name_index(name);
  if (index == 0 || index >= removal->index) return 0;
  int error = snapshot_join(removal->folder, name, path, NULL);
  if (error == 0) error = os_remove(removal->os, path);
  if (error == 0) removal->any = true;
  return error == -ENOENT ? 0 : error;
}

int snapshot_remove_older(struct os *os, const char *folder, uint64_t index) {
  struct removal removal = {.os = os, .folder = folder, .index = index};
  int error = os_list(os, folder, remove_if_older, &removal);
  int sync_error = removal.any ? os_sync_directory(os, folder) : 0;
  return error ? error : sync_error;
}

/* ---- The head, once more ---- */

/* All of the head; bytes are the caller's to free. -EILSEQ: there is none. */
static int read_head(struct os_file *file, uint8_t **head, uint32_t *size) {
  uint8_t fixed[SNAPSHOT_HEAD_FIXED];
  int64_t n = os_read(file, fixed, sizeof fixed, 0);
  *size = n == (int64_t)sizeof fixed ? snapshot_head_peek(fixed) : 0;
  if (*size == 0) return n < 0 ? (int)n : -EILSEQ;
  *head = malloc(*size);
  if (*head == NULL) return -ENOMEM;
  n = os_read(file, *head, *size, 0);
  if (n == (int64_t)*size) return 0;
  free(*head);
  *head = NULL;
  return n < 0 ? (int)n : -EILSEQ;
}

int snapshot_keep_head(struct os *os, const char *folder, struct os_file *file) {
  char path[OS_PATH_MAX], kept_path[OS_PATH_MAX];
  struct os_file *kept = NULL;
  uint8_t *head = NULL;
  uint32_t size;
  int error = snapshot_join(folder, SNAPSHOT_HEAD_NEW, path, NULL);
  if (error == 0) error = snapshot_join(folder, SNAPSHOT_HEAD, kept_path, NULL);
  if (error == 0) error = read_head(file, &head, &size);
  if (error == 0) error = os_open(os, path, OS_OPEN_READ | OS_OPEN_WRITE | OS_OPEN_CREATE, &kept);
  if (error == 0) error = os_truncate(kept, 0);
  if (error == 0) error = os_write(kept, head, size, 0);
  if (error == 0) error = os_sync(kept);
  os_close(kept);
  free(head);
  if (error == 0) error = os_rename(os, path, kept_path);
  if (error) os_remove(os, path); /* it is of no use, and the disk may be full */
  return error ? error : os_sync_directory(os, folder);
}

uint8_t *snapshot_find_head(struct os *os, const char *path, uint32_t *size) {
  char folder[OS_PATH_MAX], kept_path[OS_PATH_MAX];
  const char *slash = strrchr(path, '/'), *what;
  const uint8_t *terms;
  struct os_file *file = NULL;
  struct snapshot_meta meta;
  uint8_t *head = NULL;
  uint32_t at;
  uint64_t index = slash ? snapshot_name_index(slash + 1) : 0;
  if (index == 0) return NULL;
  snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
  if (snapshot_join(folder, SNAPSHOT_HEAD, kept_path, NULL) != 0) return NULL;
  if (os_open(os, kept_path, OS_OPEN_READ, &file) != 0) return NULL;
  int error = read_head(file, &head, size);
  os_close(file);
  if (error == 0) error = snapshot_head_decode(head, *size, &meta, &terms, &what, &at);
  if (error == 0 && meta.index == index) return head;
  free(head);
  return NULL;
}
