/*
** Receives a snapshot in chunks into snapshot.part, and goes on with it after a crash.
**
** After a crash the length of a file says nothing: what was not synced may be missing or zeros. So how much is
** durable is kept beside it, in the slot file snapshot.part.state, of kind "PART", version 1 (little-endian):
**
**   offset size
**    0     8  index of the snapshot
**    8     8  its term
**   16     8  its size, bytes
**   24     8  synced: so many bytes of snapshot.part are durable
**
** Order: bytes, their sync, then the record. A record for another snapshot, with synced = 0, is durable before
** the first byte of that is written. What lies behind `synced` at a start is cut off. The part is only a help: if
** its record is damaged, or it is too short for it, all is fetched again.
**
** Two nodes' snapshots of one index may differ in bytes. If a part was begun from one and ended from the other, the
** verification at the end refuses it.
*/
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/bytes.h"
#include "../ext/slot_file.h"
#include "file.h"

#define STATE_KIND "PART"
#define STATE_VERSION 1
#define STATE_SIZE 32u
#define SYNC_BYTES (16u << 20)             /* at most so much is fetched twice after a crash */
#define SIZE_MAX_BYTES (UINT64_C(1) << 49) /* SQLite's largest database is half of that */
#define WAY_OUT "It is removed and has to be fetched again"

struct snapshot_receiver {
  struct os *os;
  struct os_file *file;
  struct slot_file *state;
  uint64_t index, term, size_bytes;
  uint64_t offset, synced; /* bytes that are there, and those that are durable and recorded as such */
  int failed;              /* a sync did, or this is finished: nothing more works */
  char folder[OS_PATH_MAX], path[OS_PATH_MAX], state_path[OS_PATH_MAX];
  char text[SNAPSHOT_TEXT_MAX];
};

static int fail_io(struct snapshot_receiver *receiver, const char *path, int error, const char *what) {
  const char *way_out = error == -ENOSPC || error == -EDQUOT ? "Make room on this disk; it goes on then"
                                                             : "Check the disk and the folder";
  return snapshot_say(receiver->text, error,
                      "%s: cannot %s at offset %" PRIu64 " of the snapshot at index %" PRIu64 ": %s. %s", path, what,
                      receiver->offset, receiver->index, snapshot_error_text(error), way_out);
}

/* ---- How much is durable ---- */

static int write_record(struct snapshot_receiver *receiver, uint64_t synced) {
  uint8_t record[STATE_SIZE];
  le64_put(record, receiver->index);
  le64_put(record + 8, receiver->term);
  le64_put(record + 16, receiver->size_bytes);
  le64_put(record + 24, synced);
  int error = slot_file_write(receiver->state, record, sizeof record);
  if (error) return receiver->failed = fail_io(receiver, receiver->state_path, error, "record what has come");
  receiver->synced = synced;
  return 0;
}

static int make_durable(struct snapshot_receiver *receiver) {
  if (receiver->failed) return receiver->failed;
  if (receiver->offset == receiver->synced) return 0;
  int error = os_sync(receiver->file);
  if (error) return receiver->failed = fail_io(receiver, receiver->path, error, "sync what has come");
  return write_record(receiver, receiver->offset);
}

/* Opens the record; one that is damaged, or of another version, is begun again: it is only a help. */
static int open_state(struct snapshot_receiver *receiver, uint8_t record[STATE_SIZE], size_t *size) {
  for (int round = 0;; round++) {
    int error = slot_file_open(receiver->os, receiver->state_path, STATE_KIND, STATE_VERSION, record, STATE_SIZE, size,
                               &receiver->state);
    if (error == 0) return 0;
    if (round == 0 && (error == -EILSEQ || error == -EPROTO)) error = os_remove(receiver->os, receiver->state_path);
    if (error) return fail_io(receiver, receiver->state_path, error, "open the record of what has come");
  }
}

/* How much of the part can be gone on with. */
static int find_synced(struct snapshot_receiver *receiver, const uint8_t *record, size_t record_size,
                       uint64_t *synced) {
  uint64_t size;
  *synced = 0;
  int error = os_size(receiver->file, &size);
  if (error) return fail_io(receiver, receiver->path, error, "ask for the size of what has come");
  if (record_size != STATE_SIZE || le64_get(record) != receiver->index || le64_get(record + 8) != receiver->term ||
      le64_get(record + 16) != receiver->size_bytes)
    return 0;
  uint64_t recorded = le64_get(record + 24);
  if (recorded <= receiver->size_bytes && recorded <= size) *synced = recorded;
  return 0;
}

/* ---- Open and close ---- */

static int begin(struct snapshot_receiver *receiver) {
  uint8_t record[STATE_SIZE];
  size_t record_size;
  uint64_t synced;
  int error = open_state(receiver, record, &record_size);
  if (error) return error;
  error = os_open(receiver->os, receiver->path, OS_OPEN_READ | OS_OPEN_WRITE | OS_OPEN_CREATE, &receiver->file);
  if (error) return fail_io(receiver, receiver->path, error, "open what has come");
  error = find_synced(receiver, record, record_size, &synced);
  if (error) return error;
  receiver->synced = receiver->offset = synced;
  if (synced == 0) error = write_record(receiver, 0);
  if (error) return error;
  error = os_truncate(receiver->file, synced);
  if (error) return fail_io(receiver, receiver->path, error, "cut off what is not durable");
  error = os_sync_directory(receiver->os, receiver->folder);
  return error ? fail_io(receiver, receiver->folder, error, "sync the folder") : 0;
}

int snapshot_receiver_open(struct os *os, const char *folder, uint64_t index, uint64_t term, uint64_t size_bytes,
                           struct snapshot_receiver **receiver, uint64_t *offset, char *text) {
  *receiver = NULL;
  *offset = 0;
  struct snapshot_receiver *made = calloc(1, sizeof *made);
  if (made == NULL) return snapshot_say(text, -ENOMEM, "%s: no memory to receive a snapshot", folder);
  *made = (struct snapshot_receiver){.os = os, .index = index, .term = term, .size_bytes = size_bytes};
  int error = snapshot_join(folder, SNAPSHOT_PART, made->path, made->text);
  if (error == 0) error = snapshot_join(folder, SNAPSHOT_PART_STATE, made->state_path, made->text);
  if (error == 0 && (index == 0 || size_bytes == 0 || size_bytes > SIZE_MAX_BYTES))
    error = snapshot_say(made->text, -EINVAL,
                         "%s: another node offers a snapshot at index %" PRIu64 " with %" PRIu64
                         " bytes, which cannot be. It is not accepted",
                         folder, index, size_bytes);
  if (error == 0) {
    snprintf(made->folder, sizeof made->folder, "%s", folder);
    error = begin(made);
  }
  if (error) {
    made->failed = error;
    snapshot_say(text, error, "%s", made->text);
    snapshot_receiver_close(made);
    return error;
  }
  *receiver = made;
  *offset = made->offset;
  return 0;
}

void snapshot_receiver_close(struct snapshot_receiver *receiver) {
  if (receiver == NULL) return;
  make_durable(receiver); /* if that fails, a later resume begins further back */
  os_close(receiver->file);
  slot_file_close(receiver->state);
  free(receiver);
}

const char *snapshot_receiver_error(const struct snapshot_receiver *receiver) {
  return receiver->text;
}

/* ---- Chunks ---- */

int snapshot_receiver_add(struct snapshot_receiver *receiver, uint64_t offset, const void *bytes, size_t size) {
  if (receiver->failed) return receiver->failed;
  if (offset != receiver->offset || size > receiver->size_bytes - offset)
    return snapshot_say(receiver->text, -EINVAL,
                        "%s: a chunk of %zu bytes at offset %" PRIu64 " does not follow what is there: %" PRIu64
                        " of %" PRIu64 " bytes",
                        receiver->path, size, offset, receiver->offset, receiver->size_bytes);
  if (size == 0) return 0;
  /* A write that fails leaves nothing behind that counts: the same chunk may be tried again. */
  int error = os_write(receiver->file, bytes, size, offset);
  if (error) return fail_io(receiver, receiver->path, error, "write what has come");
  receiver->offset += size;
  return receiver->offset - receiver->synced >= SYNC_BYTES ? make_durable(receiver) : 0;
}

/* ---- The end ---- */

static int drop_file(struct os *os, const char *path) {
  int error = os_remove(os, path);
  return error == -ENOENT ? 0 : error;
}

int snapshot_remove_part(struct os *os, const char *folder) {
  char path[OS_PATH_MAX], state_path[OS_PATH_MAX];
  int error = snapshot_join(folder, SNAPSHOT_PART, path, NULL);
  if (error == 0) error = snapshot_join(folder, SNAPSHOT_PART_STATE, state_path, NULL);
  if (error == 0) error = drop_file(os, path);
  if (error == 0) error = drop_file(os, state_path);
  return error ? error : os_sync_directory(os, folder);
}

static int look_for_part(void *ctx, const char *name) {
  bool *found = ctx;
  *found = *found || strcmp(name, SNAPSHOT_PART) == 0 || strcmp(name, SNAPSHOT_PART_STATE) == 0;
  return 0;
}

int snapshot_find_part(struct os *os, const char *folder, uint64_t *index) {
  char path[OS_PATH_MAX];
  uint8_t record[STATE_SIZE];
  struct slot_file *state = NULL;
  size_t size = 0;
  bool found = false;
  *index = 0;
  int error = snapshot_join(folder, SNAPSHOT_PART_STATE, path, NULL);
  if (error == 0) error = os_list(os, folder, look_for_part, &found);
  if (error || !found) return error;
  error = slot_file_open(os, path, STATE_KIND, STATE_VERSION, record, STATE_SIZE, &size, &state);
  if (error == 0) slot_file_close(state);
  if (error == 0 && size == STATE_SIZE) *index = le64_get(record);
  return *index == 0 && (error == 0 || error == -EILSEQ || error == -EPROTO) ? snapshot_remove_part(os, folder) : error;
}

/* Reads all of the part and takes no page of it for good before the last one is. */
static int verify(struct snapshot_receiver *receiver) {
  struct snapshot_reader *reader;
  struct snapshot_meta meta;
  int error = snapshot_reader_begin(receiver->os, receiver->path, WAY_OUT, &reader, &meta, receiver->text);
  if (error) return error;
  uint8_t *page = malloc(meta.page_size);
  if (page == NULL) error = fail_io(receiver, receiver->path, -ENOMEM, "verify what has come");
  if (error == 0 && (meta.index != receiver->index || meta.term != receiver->term))
    error = snapshot_say(receiver->text, -EILSEQ,
                         "%s: at offset 32 it says that it is the snapshot at index %" PRIu64 " of term %" PRIu64
                         ", but it was announced as that at index %" PRIu64 " of term %" PRIu64 ". " WAY_OUT,
                         receiver->path, meta.index, meta.term, receiver->index, receiver->term);
  if (error == 0) {
    do error = snapshot_reader_next(reader, page);
    while (error == 1);
    if (error) snapshot_say(receiver->text, error, "%s", snapshot_reader_error(reader));
  }
  free(page);
  snapshot_reader_close(reader);
  return error;
}

static int publish(struct snapshot_receiver *receiver, char path[OS_PATH_MAX]) {
  snapshot_path(receiver->folder, receiver->index, path);
  if (path[0] == 0) return fail_io(receiver, receiver->folder, -ENAMETOOLONG, "name the snapshot");
  int error = snapshot_keep_head(receiver->os, receiver->folder, receiver->file);
  if (error) return fail_io(receiver, receiver->folder, error, "copy the head of what has come");
  error = os_rename(receiver->os, receiver->path, path);
  if (error) return fail_io(receiver, receiver->path, error, "rename what has come");
  /* From here on there is no part: whatever follows, the next one begins again, or finds the snapshot. */
  receiver->failed = -EALREADY;
  error = os_sync_directory(receiver->os, receiver->folder);
  if (error) return receiver->failed = fail_io(receiver, receiver->folder, error, "sync the folder");
  /* A record that stays does no harm: it says more than an absent part has. */
  drop_file(receiver->os, receiver->state_path);
  return 0;
}

static int finish(struct snapshot_receiver *receiver, char path[OS_PATH_MAX]) {
  if (receiver->failed) return receiver->failed;
  if (receiver->offset != receiver->size_bytes)
    return snapshot_say(receiver->text, -EINVAL,
                        "%s: is not complete: %" PRIu64 " of %" PRIu64 " bytes of the snapshot at index %" PRIu64
                        " are there",
                        receiver->path, receiver->offset, receiver->size_bytes, receiver->index);
  int error = make_durable(receiver);
  if (error) return error;
  error = verify(receiver);
  if (error == -EILSEQ || error == -EPROTO) {
    receiver->failed = error;
    snapshot_remove_part(receiver->os, receiver->folder); /* if that fails: all of it comes to this point again */
  }
  return error ? error : publish(receiver, path);
}

int snapshot_receiver_finish(struct snapshot_receiver *receiver, char path[OS_PATH_MAX], char *text) {
  path[0] = 0;
  int error = finish(receiver, path);
  if (error) {
    path[0] = 0;
    snapshot_say(text, error, "%s", receiver->text);
  }
  return error;
}
