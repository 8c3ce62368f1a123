/*
** A small record, replaced as a whole or not at all.
**
** The file is two slots of 4096 bytes, at 0 and 4096. A slot (little-endian):
**
**   offset size
**    0     4  kind: magic of the user
**    4     4  version: of the user's payload
**    8     8  sequence: rises by one with every record; from 1
**   16     4  payload size, bytes; at most SLOT_FILE_PAYLOAD_MAX
**   20     4  0
**   24     8  checksum: XXH64 of the payload, seeded with the XXH64 (seed 0) of bytes 0 … 23
**   32     …  payload, then zeros
**
** A slot is valid if its checksum is right, blank if it is all zeros, else damaged. The valid slot with the
** higher sequence counts.
**
** A record is written to both slots in turn, each write synced: to the one that does not hold the record
** before it first. So an acknowledged record is in both slots, and damage to either of them never brings
** an earlier record back (an earlier vote would be a second vote). A write that power loss tears damages
** one slot, while the other holds the record before it, or is blank if there was none.
**
** What is read at start may be in the page cache only (the process died in its sync): it is written to both
** slots again before anyone may rely on it.
*/
#include "slot_file.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "bytes.h"

#define SLOT_SIZE ((size_t)4096)
#define SLOTS 2
#define HEADER_SIZE 32u
#define CHECKED_HEADER 24u

_Static_assert(HEADER_SIZE + SLOT_FILE_PAYLOAD_MAX <= SLOT_SIZE, "a record fits into its slot");

struct slot_file {
  struct os_file *file;
  uint8_t kind[4];
  uint32_t version;
  uint64_t sequence; /* of the last record; 0: none */
  unsigned first;    /* slot that the next record goes to first */
  bool failed;
};

enum slot_state { SLOT_BLANK, SLOT_VALID, SLOT_DAMAGED };

static uint64_t slot_checksum(const uint8_t slot[SLOT_SIZE], uint32_t size) {
  return XXH64(slot + HEADER_SIZE, size, XXH64(slot, CHECKED_HEADER, 0));
}

static enum slot_state slot_state(const uint8_t slot[SLOT_SIZE]) {
  static const uint8_t zeros[SLOT_SIZE];
  uint32_t size = le32_get(slot + 16);
  if (memcmp(slot, zeros, SLOT_SIZE) == 0) return SLOT_BLANK;
  if (size > SLOT_FILE_PAYLOAD_MAX || le64_get(slot + 24) != slot_checksum(slot, size)) return SLOT_DAMAGED;
  return le64_get(slot + 8) ? SLOT_VALID : SLOT_DAMAGED;
}

static int write_both(struct slot_file *file, const uint8_t slot[SLOT_SIZE]) {
  for (unsigned i = 0; i < SLOTS; i++) {
    int error = os_write(file->file, slot, SLOT_SIZE, (file->first ^ i) * SLOT_SIZE);
    if (error) {
      file->failed = true;
      return error;
    }
  }
  file->sequence = le64_get(slot + 8);
  return 0;
}

/* The slot that counts: its number, -1 if no record was ever written, or a negative errno below that. */
static int choose(const uint8_t slots[SLOTS][SLOT_SIZE]) {
  enum slot_state a = slot_state(slots[0]), b = slot_state(slots[1]);
  if (a == SLOT_VALID && b == SLOT_VALID) return le64_get(slots[1] + 8) > le64_get(slots[0] + 8);
  if (a == SLOT_VALID) return 0;
  if (b == SLOT_VALID) return 1;
  return a == SLOT_DAMAGED && b == SLOT_DAMAGED ? -EILSEQ : -1;
}

/* Reads what is there into `slots`; a file that is too short was never finished, and zeros follow it. */
static int read_slots(struct slot_file *file, uint8_t slots[SLOTS][SLOT_SIZE]) {
  uint64_t size;
  int error = os_size(file->file, &size);
  if (error) return error;
  if (size < SLOTS * SLOT_SIZE) {
    error = os_allocate(file->file, SLOTS * SLOT_SIZE);
    if (error == 0) error = os_sync(file->file);
    if (error) return error;
  }
  int64_t n = os_read(file->file, slots, SLOTS * SLOT_SIZE, 0);
  if (n < 0) return (int)n;
  return n == SLOTS * SLOT_SIZE ? 0 : -EIO;
}

static int sync_name(struct os *os, const char *path) {
  char folder[OS_PATH_MAX];
  const char *slash = strrchr(path, '/');
  if (slash == NULL) return os_sync_directory(os, ".");
  int n = snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);
  if (n < 0 || (size_t)n >= sizeof folder) return -ENAMETOOLONG;
  return os_sync_directory(os, folder);
}

static int load(struct slot_file *file, void *payload, size_t payload_max, size_t *size) {
  uint8_t slots[SLOTS][SLOT_SIZE];
  int error = read_slots(file, slots);
  if (error) return error;
  int chosen = choose((const uint8_t(*)[SLOT_SIZE])slots);
  if (chosen < -1) return chosen;
  if (chosen == -1) return 0;
  const uint8_t *slot = slots[chosen];
  uint32_t found = le32_get(slot + 16);
  if (memcmp(slot, file->kind, 4) != 0 || le32_get(slot + 4) > file->version || found > payload_max) return -EPROTO;
  file->first = (unsigned)chosen ^ 1;
  error = write_both(file, slot);
  if (error) return error;
  memcpy(payload, slot + HEADER_SIZE, found);
  *size = found;
  return 0;
}

int slot_file_open(struct os *os, const char *path, const char kind[4], uint32_t version, void *payload,
                   size_t payload_max, size_t *size, struct slot_file **file) {
  *size = 0;
  *file = NULL;
  struct slot_file *made = calloc(1, sizeof *made);
  if (made == NULL) return -ENOMEM;
  memcpy(made->kind, kind, 4);
  made->version = version;
  int error = os_open(os, path, OS_OPEN_READ | OS_OPEN_WRITE | OS_OPEN_CREATE | OS_OPEN_DSYNC, &made->file);
  /* Also for a file that was there: whoever made it may have died before this. */
  if (error == 0) error = sync_name(os, path);
  if (error == 0) error = load(made, payload, payload_max, size);
  if (error) {
    *size = 0;
    slot_file_close(made);
    return error;
  }
  *file = made;
  return 0;
}

int slot_file_write(struct slot_file *file, const void *payload, size_t size) {
  uint8_t slot[SLOT_SIZE] = {0};
  assert(size <= SLOT_FILE_PAYLOAD_MAX);
  if (file->failed) return -EIO;
  memcpy(slot, file->kind, 4);
  le32_put(slot + 4, file->version);
  le64_put(slot + 8, file->sequence + 1);
  le32_put(slot + 16, (uint32_t)size);
  if (size) memcpy(slot + HEADER_SIZE, payload, size);
  le64_put(slot + 24, slot_checksum(slot, (uint32_t)size));
  return write_both(file, slot);
}

void slot_file_close(struct slot_file *file) {
  if (file == NULL) return;
  os_close(file->file);
  free(file);
}
