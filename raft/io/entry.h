/*
** An entry of the log with its payload, as the store keeps it and the wire carries it.
**
** The entry header is one and the same on disk and on the wire, fixed from the first day (little-endian):
**
**   offset size
**    0   1  version, 1
**    1   1  type: enum raft_entry_type
**    2   1  flags: enum raft_entry_flags
**    3   1  0
**    4   4  payload size, bytes; at most RAFT_PAYLOAD_MAX
**    8   8  term
**   16   8  index
**   24  16  origin: incarnation of the node that proposed it
**   40   8  origin sequence: rises with every proposal of that incarnation
**   48   8  previous: index of the change set before this one (no-ops and configurations do not count)
**   56   8  checksum: rolling checksum of the database after it (design section 4)
**   64   4  pages: size of the database after it, in pages
**   68   4  page size, bytes (0 when not a change set)
*/
#ifndef BALSA_RAFT_IO_ENTRY_H
#define BALSA_RAFT_IO_ENTRY_H

#include <stdatomic.h>

#include "../raft.h"

#define RAFT_ENTRY_HEADER_SIZE 72
#define RAFT_ENTRY_VERSION 1
#define RAFT_PAYLOAD_MAX (16u << 20)

enum raft_entry_flags {
  RAFT_ENTRY_PART = 1,  /* of a transaction in parts; more follow */
  RAFT_ENTRY_LAST = 2,  /* the transaction's last or only part: apply is complete with it */
  RAFT_ENTRY_ABORT = 4, /* gives up the parts sent so far */
};

/* Bytes shared by the store's cache and messages under way; freed with the last reference. */
struct raft_payload {
  atomic_uint references;
  uint32_t size;
  uint8_t bytes[];
};
struct raft_payload *raft_payload_new(uint32_t size); /* one reference; NULL without memory */
struct raft_payload *raft_payload_ref(struct raft_payload *payload);
void raft_payload_unref(struct raft_payload *payload); /* accepts NULL */

struct raft_entry {
  uint8_t type, flags;
  uint32_t pages, page_size;
  uint64_t term, index, previous, checksum, origin_sequence;
  struct raft_uuid origin;
  struct raft_payload *payload; /* NULL: empty */
};

static inline uint32_t raft_entry_size(const struct raft_entry *entry) {
  return entry->payload ? entry->payload->size : 0;
}
void raft_entry_encode_header(const struct raft_entry *entry, uint8_t bytes[RAFT_ENTRY_HEADER_SIZE]);
/* RAFT_INVALID for a wrong version, size or flags. Sets payload to NULL and *payload_size. */
int raft_entry_decode_header(const uint8_t bytes[RAFT_ENTRY_HEADER_SIZE], struct raft_entry *entry,
                             uint32_t *payload_size);

#endif
