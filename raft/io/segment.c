/*
** The log is a folder of segments: files 00000001.log, 00000002.log, … of (mostly) one size. A segment is
** made ahead: zeros all over, a header page, synced; only then does it get its name. Batches are appended
** to it, each by one synced write into zeros, so that a sync has no metadata to write.
**
** Segment (all numbers little-endian):
**
**   offset size
**    0     8  magic "BalsaLog"
**    8     4  version, 1
**   12     4  number of the segment, as in its name
**   16    16  incarnation of the node
**   32     8  salt: random, seeds all checksums below
**   40     8  checksum: XXH3-64, seed 0, of bytes 0 … 39
**   48     …  zeros up to 4096
**   4096   …  batches, each at a multiple of 64; then zeros up to the end
**
** Batch:
**
**   offset size
**    0     4  magic "BTCH"
**    4     4  length of the batch, a multiple of 64
**    8     8  sequence: 1 for the first batch of the log, rising by one, through all segments
**   16     8  previous: the checksum at the end of the batch before it; 0 in the first
**   24     8  truncate_from: all entries from here on are dropped, before the records count; 0: none
**   32     8  index of the first record; without records, of the entry that comes next
**   40     4  number of records
**   44    12  0
**   56     8  checksum: XXH3-64, seeded with the salt, of bytes 0 … 55
**   64     …  records, then zeros
**   -8     8  checksum: XXH3-64, seeded with the salt, of all bytes before it
**
** Record, at multiples of 8 within the batch:
**
**    0     8  checksum: XXH3-64, seeded with the salt, of entry header and payload
**    8    72  entry header (entry.h)
**   80     …  payload, then zeros up to a multiple of 8
**
** A batch that does not fit goes to the next segment; what is left of this one stays zero. A batch without
** records and truncation is a *seal*: it says no more than that the batch before it is whole, and is written
** at start and at the end for that.
**
** What is torn, and what is damaged. A batch is written when the one before it is durable. So
** - only the last batch can be torn by a crash, and nobody was told of it: it is cut;
** - a batch is known to have been acknowledged if a batch header of a higher sequence exists anywhere after
**   it: then whatever is wrong with it is damage, and the log must not be cut;
** - the last batch can be torn in one way only: pieces of it are still the zeros that were there before. A disk
**   writes sectors of 512 bytes whole, so that at least one sector of it is blank; a process that dies while
**   the kernel copies leaves zeros at the end, where the checksum is never zero. The batch header lies in one
**   sector. A last batch that is wrong but shows no such blank is damage too.
** The limit: a last batch that was acknowledged and later lost a whole sector to zeros is taken for torn. The
** next batch, or the seal at a stop in order or at the next start, ends that time.
**
** After a cut the bytes of the torn batch are zeros again, durably, before anything is appended: they never
** come back, and the next torn batch shows its blanks.
*/
#include "segment.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "../../ext/bytes.h"

#define SEGMENT_VERSION 1u
#define SEGMENT_CHECKED 40u
#define BATCH_CHECKED 56u
#define BATCH_LENGTH_MAX (SEGMENT_SIZE_MAX - SEGMENT_HEADER_SIZE)
#define MAKE_STEP (1u << 20) /* bytes of zeros between two syncs, so that commits get their turn at the disk */

static const char segment_magic[8] = {'B', 'a', 'l', 's', 'a', 'L', 'o', 'g'};
static const char batch_magic[4] = {'B', 'T', 'C', 'H'};

_Static_assert(RECORD_HEADER_SIZE % 8 == 0, "payloads begin at multiples of 8");
_Static_assert(BATCH_SEAL_SIZE >= BATCH_HEADER_SIZE + BATCH_TRAILER_SIZE && BATCH_SEAL_SIZE % SEGMENT_ALIGN == 0,
               "a seal is a batch");

int segment_path(const char *folder, uint32_t number, char *path) {
  int n = snprintf(path, OS_PATH_MAX, "%s/%08x.log", folder, number);
  return n < 0 || n >= OS_PATH_MAX ? -ENAMETOOLONG : 0;
}

uint32_t segment_number(const char *name) {
  uint32_t number = 0;
  if (strlen(name) != 12 || strcmp(name + 8, ".log") != 0) return 0;
  for (int i = 0; i < 8; i++) {
    const char *digits = "0123456789abcdef", *digit = strchr(digits, name[i]);
    if (digit == NULL) return 0;
    number = number << 4 | (uint32_t)(digit - digits);
  }
  return number;
}

/* ---- Making one ---- */

static void header_encode(uint32_t number, const struct raft_uuid *incarnation, uint64_t salt,
                          uint8_t bytes[SEGMENT_HEADER_SIZE]) {
  memset(bytes, 0, SEGMENT_HEADER_SIZE);
  memcpy(bytes, segment_magic, 8);
  le32_put(bytes + 8, SEGMENT_VERSION);
  le32_put(bytes + 12, number);
  memcpy(bytes + 16, incarnation->bytes, RAFT_UUID_SIZE);
  le64_put(bytes + 32, salt);
  le64_put(bytes + 40, XXH3_64bits_withSeed(bytes, SEGMENT_CHECKED, 0));
}

enum segment_header_state segment_header_decode(const uint8_t bytes[SEGMENT_HEADER_SIZE], uint32_t number,
                                                struct raft_uuid *incarnation, uint64_t *salt) {
  if (memcmp(bytes, segment_magic, 8) != 0 || le64_get(bytes + 40) != XXH3_64bits_withSeed(bytes, SEGMENT_CHECKED, 0))
    return SEGMENT_HEADER_DAMAGED;
  if (le32_get(bytes + 8) != SEGMENT_VERSION) return SEGMENT_HEADER_VERSION;
  if (le32_get(bytes + 12) != number) return SEGMENT_HEADER_DAMAGED;
  memcpy(incarnation->bytes, bytes + 16, RAFT_UUID_SIZE);
  *salt = le64_get(bytes + 32);
  return SEGMENT_HEADER_OK;
}

static int fill(struct os_file *file, uint64_t from, uint64_t to, const atomic_bool *stop) {
  while (from < to) {
    if (stop && atomic_load(stop)) return -ECANCELED;
    from = to - from > MAKE_STEP ? from + MAKE_STEP : to;
    int error = os_allocate(file, from);
    if (error == 0) error = os_sync(file);
    if (error) return error;
  }
  return 0;
}

/* The file under its temporary name, durable. */
static int make_temporary(struct os *os, const char *path, uint32_t number, const struct raft_uuid *incarnation,
                          uint64_t size, const atomic_bool *stop, uint64_t *salt) {
  uint8_t header[SEGMENT_HEADER_SIZE];
  struct os_file *file;
  os_random(os, salt, sizeof *salt);
  header_encode(number, incarnation, *salt, header);
  int error = os_open(os, path, OS_OPEN_READ | OS_OPEN_WRITE | OS_OPEN_CREATE, &file);
  if (error) return error;
  error = os_truncate(file, 0); /* one that was left behind may hold anything */
  if (error == 0) error = os_write(file, header, sizeof header, 0);
  if (error == 0) error = fill(file, sizeof header, size, stop);
  if (error == 0) error = os_sync(file);
  os_close(file);
  return error;
}

int segment_make(struct os *os, const char *folder, uint32_t number, const struct raft_uuid *incarnation, uint64_t size,
                 const atomic_bool *stop, uint64_t *salt, char *path) {
  char temporary[OS_PATH_MAX];
  int error = segment_path(folder, number, path);
  if (error) return error;
  int n = snprintf(temporary, sizeof temporary, "%s/" SEGMENT_TEMPORARY, folder);
  if (n < 0 || n >= OS_PATH_MAX) return -ENAMETOOLONG;
  error = make_temporary(os, temporary, number, incarnation, size, stop, salt);
  if (error == 0) error = os_rename(os, temporary, path);
  if (error) {
    os_remove(os, temporary); /* gives its space back; if it stays, the next start removes it */
    return error;
  }
  return os_sync_directory(os, folder);
}

int segment_extend(struct os *os, const char *path, uint64_t size) {
  struct os_file *file;
  uint64_t before;
  int error = os_open(os, path, OS_OPEN_READ | OS_OPEN_WRITE, &file);
  if (error) return error;
  error = os_size(file, &before);
  if (error == 0) error = fill(file, before, size, NULL);
  os_close(file);
  return error;
}

/* ---- Records ---- */

uint32_t segment_record_size(uint32_t payload_size) {
  return (RECORD_HEADER_SIZE + payload_size + 7) & ~7u;
}

uint64_t segment_batch_size(uint64_t records_size) {
  uint64_t size = BATCH_HEADER_SIZE + records_size + BATCH_TRAILER_SIZE;
  return (size + SEGMENT_ALIGN - 1) / SEGMENT_ALIGN * SEGMENT_ALIGN;
}

uint32_t segment_record_encode(const struct raft_entry *entry, uint64_t salt, uint8_t *bytes) {
  uint32_t size = raft_entry_size(entry), whole = segment_record_size(size);
  raft_entry_encode_header(entry, bytes + 8);
  if (size) memcpy(bytes + RECORD_HEADER_SIZE, entry->payload->bytes, size);
  memset(bytes + RECORD_HEADER_SIZE + size, 0, whole - RECORD_HEADER_SIZE - size);
  le64_put(bytes, XXH3_64bits_withSeed(bytes + 8, RAFT_ENTRY_HEADER_SIZE + size, salt));
  return whole;
}

bool segment_record_decode(const uint8_t *bytes, uint64_t room, uint64_t salt, struct raft_entry *entry,
                           uint32_t *payload_size) {
  if (room < RECORD_HEADER_SIZE) return false;
  if (raft_entry_decode_header(bytes + 8, entry, payload_size) != RAFT_OK) return false;
  if (room < segment_record_size(*payload_size)) return false;
  return le64_get(bytes) == XXH3_64bits_withSeed(bytes + 8, RAFT_ENTRY_HEADER_SIZE + *payload_size, salt);
}

/* ---- Batches ---- */

uint64_t segment_batch_encode(const struct segment_batch *batch, uint64_t records_size, uint64_t salt, uint8_t *bytes) {
  uint8_t *trailer = bytes + batch->length - BATCH_TRAILER_SIZE;
  memset(bytes, 0, BATCH_HEADER_SIZE);
  memcpy(bytes, batch_magic, 4);
  le32_put(bytes + 4, batch->length);
  le64_put(bytes + 8, batch->sequence);
  le64_put(bytes + 16, batch->previous);
  le64_put(bytes + 24, batch->truncate_from);
  le64_put(bytes + 32, batch->index);
  le32_put(bytes + 40, batch->records);
  le64_put(bytes + BATCH_CHECKED, XXH3_64bits_withSeed(bytes, BATCH_CHECKED, salt));
  memset(bytes + BATCH_HEADER_SIZE + records_size, 0, (size_t)(trailer - bytes) - BATCH_HEADER_SIZE - records_size);
  uint64_t checksum = XXH3_64bits_withSeed(bytes, batch->length - BATCH_TRAILER_SIZE, salt);
  le64_put(trailer, checksum);
  return checksum;
}

bool segment_batch_decode(const uint8_t bytes[BATCH_HEADER_SIZE], uint64_t salt, struct segment_batch *batch) {
  if (memcmp(bytes, batch_magic, 4) != 0) return false;
  if (le64_get(bytes + BATCH_CHECKED) != XXH3_64bits_withSeed(bytes, BATCH_CHECKED, salt)) return false;
  *batch = (struct segment_batch){
      .length = le32_get(bytes + 4),
      .records = le32_get(bytes + 40),
      .sequence = le64_get(bytes + 8),
      .previous = le64_get(bytes + 16),
      .truncate_from = le64_get(bytes + 24),
      .index = le64_get(bytes + 32),
  };
  return batch->length >= BATCH_SEAL_SIZE && batch->length % SEGMENT_ALIGN == 0 && batch->length <= BATCH_LENGTH_MAX;
}

bool segment_batch_is_whole(const uint8_t *bytes, const struct segment_batch *batch, uint64_t salt,
                            uint64_t *checksum) {
  uint32_t checked = batch->length - BATCH_TRAILER_SIZE;
  *checksum = le64_get(bytes + checked);
  return *checksum == XXH3_64bits_withSeed(bytes, checked, salt);
}
