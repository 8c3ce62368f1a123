/*
** What is on disk at start: reads all segments, cuts a torn last batch, refuses damage. The rules are at
** the top of segment.c.
*/
#ifndef BALSA_RAFT_IO_RECOVERY_H
#define BALSA_RAFT_IO_RECOVERY_H

#include "segment.h"

/* A segment of the log. */
struct segment_facts {
  uint64_t salt;
  uint64_t sequence, previous; /* of its first batch */
  uint64_t bytes;              /* of its batches */
};

#define SEGMENTS_KEPT_MAX 2 /* that are not needed any more, and wait to be used again */

struct recovery {
  /* Given */
  struct os *os;
  const char *folder;
  struct raft_uuid incarnation;
  uint64_t last_index_least;
  char *text; /* RAFT_STORE_TEXT_MAX bytes: the sentence when it fails */

  /* Found. The arrays are the caller's to free(), and base_file to close, also after a failure. */
  struct slot_file *base_file;
  struct segment_base base;
  bool is_recorded;              /* the base; otherwise the log was never compacted */
  struct raft_entry_meta *metas; /* of entries first_index … first_index + n - 1 */
  struct segment_location *locations;
  size_t n, capacity;
  uint64_t first_index;
  uint64_t commit_index;       /* as the batches say; 0: they say nothing */
  struct segment_facts *facts; /* [number - base.number] */
  uint32_t last_number;        /* of the last segment; base.number - 1: there is none */
  uint32_t kept[SEGMENTS_KEPT_MAX], n_kept;
  uint32_t number; /* of the segment that is appended to; 0: there is none. At most one blank one follows it */
  uint64_t offset; /* where the next batch goes in it */
  uint64_t next_sequence, previous; /* of the next batch */
  uint64_t bytes;                   /* of all batches */
  uint64_t last_bytes;              /* of the last one; 0: none */
  bool sealed;                      /* the last batch is a seal, or there is none */
  bool cut;                         /* a torn batch was cut */
};

/*
** Makes the folder if need be. When it returns 0 all that was found is durable, and zeros follow it.
** -EILSEQ: damage. -EPROTO: another node's or a later version's log. Other negative errno.
*/
int recovery_run(struct recovery *recovery);

#endif
