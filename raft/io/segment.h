/*
** The files of the log: their names, their header page, and the batches and records in them. Format at
** the top of segment.c. No state: store.c appends, recovery.c reads what is there at start.
*/
#ifndef BALSA_RAFT_IO_SEGMENT_H
#define BALSA_RAFT_IO_SEGMENT_H

#include <stdatomic.h>

#include "../../ext/os.h"
#include "../../ext/slot_file.h"
#include "entry.h"

#define SEGMENT_HEADER_SIZE 4096u
#define SEGMENT_ALIGN 64u /* batches begin at multiples of it: a batch header is never torn */
#define SEGMENT_SIZE_MAX (1u << 30)
#define SEGMENT_NUMBER_MAX UINT32_MAX
#define SEGMENT_TEMPORARY "next.tmp"
#define SEGMENT_BASE "base"

#define BATCH_HEADER_SIZE 64u
#define BATCH_TRAILER_SIZE 8u
#define BATCH_SEAL_SIZE 128u /* of a batch without records; room for one is kept free in each segment */
#define RECORD_HEADER_SIZE (8u + RAFT_ENTRY_HEADER_SIZE)

struct segment_batch {
  uint32_t length, records;
  uint64_t sequence, previous, truncate_from, index, commit;
};

/* Where the record of an entry lies. */
struct segment_location {
  uint32_t number; /* of the segment; 0: not on disk */
  uint32_t offset; /* of the record */
  uint32_t size;   /* of the payload */
};

/* "folder/0000002a.log" into path[OS_PATH_MAX]. -ENAMETOOLONG. */
int segment_path(const char *folder, uint32_t number, char *path);
/* The number in a file name; 0 if it is not the name of a segment. */
uint32_t segment_number(const char *name);

/*
** Makes a segment of `size` bytes: zeros and a header with a fresh salt, durable before it gets its name. `recycled` is
** the number of one that is not needed any more, whose file is used; 0: a file of its own. -ECANCELED once *stop is true.
** path[OS_PATH_MAX] is what an error is about.
*/
int segment_make(struct os *os, const char *folder, uint32_t number, uint32_t recycled,
                 const struct raft_uuid *incarnation, uint64_t size, const atomic_bool *stop, uint64_t *salt,
                 char *path);
/* Makes an existing one longer, durably. */
int segment_extend(struct os *os, const char *path, uint64_t size);

/* Where the log begins. */
struct segment_base {
  uint32_t number;             /* of its first segment */
  uint64_t index, term;        /* of the entry before the first */
  uint64_t sequence, previous; /* of the first batch in that segment */
  /* Bytes of a segment that are being made blank, or were not; number 0: there are none. */
  uint32_t cut_number, cut_from, cut_to;
};
/* folder/base. *is_recorded is false, and the base that of a log that was never compacted, if nothing was written yet. */
int segment_base_open(struct os *os, const char *folder, struct segment_base *base, bool *is_recorded,
                      struct slot_file **file);
/* Durable when it returns 0. */
int segment_base_write(struct slot_file *file, const struct segment_base *base);

enum segment_header_state { SEGMENT_HEADER_OK, SEGMENT_HEADER_DAMAGED, SEGMENT_HEADER_VERSION };
enum segment_header_state segment_header_decode(const uint8_t bytes[SEGMENT_HEADER_SIZE], uint32_t number,
                                                struct raft_uuid *incarnation, uint64_t *salt);

/* Bytes of the record of a payload, and of a batch whose records have so many bytes. */
uint32_t segment_record_size(uint32_t payload_size);
uint64_t segment_batch_size(uint64_t records_size);

/* Writes the record; returns its size. */
uint32_t segment_record_encode(const struct raft_entry *entry, uint64_t salt, uint8_t *bytes);
/* false: damaged, or longer than `room`. The payload is at bytes + RECORD_HEADER_SIZE. */
bool segment_record_decode(const uint8_t *bytes, uint64_t room, uint64_t salt, struct raft_entry *entry,
                           uint32_t *payload_size);

/* Completes a batch around its records, which begin at bytes + BATCH_HEADER_SIZE. Returns its checksum. */
uint64_t segment_batch_encode(const struct segment_batch *batch, uint64_t records_size, uint64_t salt, uint8_t *bytes);
/* false: no batch header with this salt is here. Its length has been checked, but not against the file. */
bool segment_batch_decode(const uint8_t bytes[BATCH_HEADER_SIZE], uint64_t salt, struct segment_batch *batch);
/* The checksum that its trailer holds; false: the batch is not whole. */
bool segment_batch_is_whole(const uint8_t *bytes, const struct segment_batch *batch, uint64_t salt, uint64_t *checksum);

#endif
