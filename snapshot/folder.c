/*
** The folder of snapshots. What counts is snapshot-<index, 20 digits>.lz4; any other name is not ours, but for
** snapshot.new (a writer's; nothing once the process is gone) and snapshot.part with its state (receiver.c).
*/
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "file.h"

#define PREFIX "snapshot-"
#define SUFFIX ".lz4"
#define DIGITS 20

/* The index in a snapshot's name; 0: another name. */
static uint64_t name_index(const char *name) {
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
  uint64_t index = name_index(name);
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
  if (error == 0 && search.leftover) {
    error = os_remove(os, path);
    if (error == 0) error = os_sync_directory(os, folder);
  }
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
  uint64_t index = name_index(name);
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
