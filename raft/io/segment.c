/*
** The log is a folder of segments: files 0000002a.log, 0000002b.log, … of (mostly) one size. A segment is
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
**   44     4  0
**   48     8  commit: so far the log is known to be committed, at most through its own last entry; 0: not known
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
** Where the log begins is said by a slot file (ext/slot_file.c), `base`, of kind "BASE", version 1. Without a record the
** log begins with entry 1 in segment 1.
**
**    0     4  number of the first segment
**    4     4  0
**    8     8  index of the entry before the first one
**   16     8  its term
**   24     8  sequence of the first batch in that segment
**   32     8  what that batch has as `previous`
**   40     4  number of a segment in which a torn batch is being cut; 0: in none
**   44     4  offset of that batch
**   48     4  offset after its last byte that was not blank
**   52     4  0
**
** Compaction and a new beginning are both one write of that record, when the segment that it names is there, durable. Only
** then are the segments before it removed; those found at start are what a crash left, or are kept to be used again. Of
** the first segment of a compacted log, the first batches may hold entries that a later batch of it replaces, from an
** index before theirs on: then what they followed on is gone, and they count no more than it does.
**
** A segment that is not needed any more is used again under another number: it gets its temporary name, zeros, and a
** header with another salt, in that order, before it gets a name that counts.
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
** come back, and the next torn batch shows its blanks. A cut that failed is known from the base and done again: what
** a failed sync leaves may read as zeros and be none.
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
#define BASE_KIND "BASE"
#define BASE_VERSION 1u
#define BASE_SIZE 56u
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

/* Zeros over what a file that is used again holds. */
static int blank(struct os_file *file, uint64_t to, const atomic_bool *stop) {
  uint8_t *zeros = calloc(1, MAKE_STEP);
  int error = zeros ? 0 : -ENOMEM;
  for (uint64_t from = 0; error == 0 && from < to; from += MAKE_STEP) {
    if (stop && atomic_load(stop)) error = -ECANCELED;
    if (error == 0) error = os_write(file, zeros, to - from < MAKE_STEP ? (size_t)(to - from) : MAKE_STEP, from);
    if (error == 0) error = os_sync(file);
  }
  free(zeros);
  return error;
}

/* What is left of the file's earlier life goes, as far as it is not needed. */
static int clean(struct os_file *file, uint64_t size, bool recycled, const atomic_bool *stop) {
  uint64_t before;
  if (!recycled) return os_truncate(file, 0); /* one that was left behind may hold anything */
  int error = os_size(file, &before);
  if (error) return error;
  if (before > size) error = os_truncate(file, size);
  return error ? error : blank(file, before < size ? before : size, stop);
}

/* The file under its temporary name, durable. */
static int make_temporary(struct os *os, const char *path, uint32_t number, bool recycled,
                          const struct raft_uuid *incarnation, uint64_t size, const atomic_bool *stop, uint64_t *salt) {
  uint8_t header[SEGMENT_HEADER_SIZE];
  struct os_file *file;
  os_random(os, salt, sizeof *salt);
  header_encode(number, incarnation, *salt, header);
  int error = os_open(os, path, OS_OPEN_READ | OS_OPEN_WRITE | OS_OPEN_CREATE, &file);
  if (error) return error;
  error = clean(file, size, recycled, stop);
  if (error == 0) error = os_write(file, header, sizeof header, 0);
  if (error == 0) error = fill(file, sizeof header, size, stop);
  if (error == 0) error = os_sync(file);
  os_close(file);
  return error;
}

/* Gives a segment its temporary name, durably: at no time a file has two names that count. */
static int take_apart(struct os *os, const char *folder, uint32_t number, const char *temporary) {
  char path[OS_PATH_MAX];
  int error = segment_path(folder, number, path);
  if (error == 0) error = os_rename(os, path, temporary);
  return error ? error : os_sync_directory(os, folder);
}

int segment_make(struct os *os, const char *folder, uint32_t number, uint32_t recycled,
                 const struct raft_uuid *incarnation, uint64_t size, const atomic_bool *stop, uint64_t *salt,
                 char *path) {
  char temporary[OS_PATH_MAX];
  int error = segment_path(folder, number, path);
  if (error) return error;
  int n = snprintf(temporary, sizeof temporary, "%s/" SEGMENT_TEMPORARY, folder);
  if (n < 0 || n >= OS_PATH_MAX) return -ENAMETOOLONG;
  if (recycled) error = take_apart(os, folder, recycled, temporary);
  if (error == 0) error = make_temporary(os, temporary, number, recycled != 0, incarnation, size, stop, salt);
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

/* ---- The base ---- */

int segment_base_open(struct os *os, const char *folder, struct segment_base *base, bool *is_recorded,
                      struct slot_file **file) {
  char path[OS_PATH_MAX];
  uint8_t bytes[BASE_SIZE];
  size_t size;
  *file = NULL;
  *is_recorded = false;
  *base = (struct segment_base){.number = 1, .sequence = 1};
  int n = snprintf(path, sizeof path, "%s/" SEGMENT_BASE, folder);
  if (n < 0 || n >= OS_PATH_MAX) return -ENAMETOOLONG;
  int error = slot_file_open(os, path, BASE_KIND, BASE_VERSION, bytes, sizeof bytes, &size, file);
  if (error || size == 0) return error;
  *is_recorded = true;
  *base = (struct segment_base){.number = le32_get(bytes),
                                .index = le64_get(bytes + 8),
                                .term = le64_get(bytes + 16),
                                .sequence = le64_get(bytes + 24),
                                .previous = le64_get(bytes + 32),
                                .cut_number = le32_get(bytes + 40),
                                .cut_from = le32_get(bytes + 44),
                                .cut_to = le32_get(bytes + 48)};
  if (size == BASE_SIZE && base->number > 0 && base->sequence > 0 && (base->index == 0) == (base->term == 0) &&
      base->cut_from <= base->cut_to && base->cut_to <= SEGMENT_SIZE_MAX)
    return 0;
  slot_file_close(*file);
  *file = NULL;
  return -EILSEQ;
}

int segment_base_write(struct slot_file *file, const struct segment_base *base) {
  uint8_t bytes[BASE_SIZE] = {0};
  le32_put(bytes, base->number);
  le64_put(bytes + 8, base->index);
  le64_put(bytes + 16, base->term);
  le64_put(bytes + 24, base->sequence);
  le64_put(bytes + 32, base->previous);
  le32_put(bytes + 40, base->cut_number);
  le32_put(bytes + 44, base->cut_from);
  le32_put(bytes + 48, base->cut_to);
  return slot_file_write(file, bytes, sizeof bytes);
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
  le64_put(bytes + 48, batch->commit);
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
      .commit = le64_get(bytes + 48),
  };
  return batch->length >= BATCH_SEAL_SIZE && batch->length % SEGMENT_ALIGN == 0 && batch->length <= BATCH_LENGTH_MAX;
}

bool segment_batch_is_whole(const uint8_t *bytes, const struct segment_batch *batch, uint64_t salt,
                            uint64_t *checksum) {
  uint32_t checked = batch->length - BATCH_TRAILER_SIZE;
  *checksum = le64_get(bytes + checked);
  return *checksum == XXH3_64bits_withSeed(bytes, checked, salt);
}
