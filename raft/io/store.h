/*
** The log on disk: segments in a folder, one synced write per batch; and the entries that are in memory.
**
** Entries are appended in memory and flushed by whoever calls raft_store_flush: the committing
** thread itself, or the node's log thread. All functions may be called from any thread; a mutex
** inside guards the memory, another one makes flushes one at a time. No function holds the first
** during disk I/O, so that append, truncate and get never wait for a disk.
**
** Format and the rules for torn and damaged batches: top of segment.c.
*/
#ifndef BALSA_RAFT_IO_STORE_H
#define BALSA_RAFT_IO_STORE_H

#include "../../ext/os.h"
#include "entry.h"

#define RAFT_STORE_TEXT_MAX 640

struct raft_store;

struct raft_store_options {
  uint32_t segment_bytes;    /* default 16 MiB when 0; a batch larger than that gets a segment of its own */
  uint64_t last_index_least; /* through here it was durable, as somebody else knows; 0: nothing is known */
  size_t cache_bytes;        /* payload bytes kept in memory beyond those not yet durable; default 32 MiB when 0 */
};

/* What was found at start; `entries` is the caller's to free(). */
struct raft_store_found {
  uint64_t first_index, last_index; /* last = first-1: empty */
  uint64_t prev_term;               /* of the entry before the first; 0 unless the log was compacted or reset */
  uint64_t commit_index; /* so much of it was committed, at least; 0: not known. It may be before the first */
  struct raft_entry_meta *entries;
  bool cut;   /* a torn last batch was cut off: nobody was told of it */
  bool fresh; /* the folder held no log: a node with a term and a vote has lost it */
};

/*
** Opens or makes the log in `folder`. `incarnation` is checked against the segments' own. A torn
** last batch is cut. Damage in an earlier batch (it was acknowledged) or an end that is lost is refused: -EILSEQ, with
** file and offset in `text` (RAFT_STORE_TEXT_MAX bytes), and nothing has been written then. Other errors: negative errno, text too.
*/
int raft_store_open(struct os *os, const char *folder, const struct raft_uuid *incarnation,
                    const struct raft_store_options *options, struct raft_store_found *found, struct raft_store **store,
                    char *text);
/* Does not flush. */
void raft_store_close(struct raft_store *store);

/*
** Appends in memory; the entry's index must be last+1. Takes a reference of the payload. `persist`
** is the core's number of the write it belongs to (raft_work.persist); a later flush reports it. 0: the
** number is not known yet (a proposal goes in before its work comes out); raft_store_mark tells it then.
** Numbers never fall. 0 or -ENOMEM.
*/
int raft_store_append(struct raft_store *store, const struct raft_entry *entry, uint64_t persist);
/* Drops all entries >= from, in memory at once and on disk with the next flush, in order. */
int raft_store_truncate(struct raft_store *store, uint64_t from, uint64_t persist);
/*
** Drops all entries and begins anew behind (index, term), in memory at once and on disk with the next flush, in order.
** After a crash there is either the log as it was or the one that begins anew, never a mixture.
*/
int raft_store_reset(struct raft_store *store, uint64_t index, uint64_t term, uint64_t persist);
/* Nothing more to write, but the number must be reported in its turn (hard state only, or see append). */
void raft_store_mark(struct raft_store *store, uint64_t persist);

/*
** Entries <= index are committed. Costs no write: the next batch tells it along, so that a node that starts alone
** can show its readers more than what was checkpointed.
*/
void raft_store_commit(struct raft_store *store, uint64_t index);

/* Bytes appended and not yet durable: the caller slows writers down when there are many. */
size_t raft_store_pending_bytes(struct raft_store *store);

/*
** Before a proposal whose payload has `size` bytes: would it find room on a full disk? 0: yes, or nothing says that the disk is
** full. -ENOSPC: the next segment could not be made, and what is left of this one is taken, but for a reserve that keeps
** leaders' no-ops and what ends a transaction (`is_urgent`) possible. -EAGAIN: ask again after raft_store_make_room, or if that
** made none, when something more is durable.
*/
int raft_store_admit(struct raft_store *store, size_t size, bool is_urgent);
/* Has the next segment made, if there is none, and waits for it. Blocks for disk I/O. -ENOSPC: raft_store_error says it. */
int raft_store_make_room(struct raft_store *store);

/*
** Writes what is queued now and makes it durable, in one batch or, if that is much, in several; *persist gets the highest
** number that is durable now (0: none). If another thread is flushing, waits for it and then flushes the rest,
** if any is left. Negative errno: nothing of that batch is durable for certain, every later flush
** fails likewise (a file whose sync failed is not trusted again), `raft_store_error` says it.
** -ENOSPC before anything was written leaves the store usable: call again when there is room.
*/
int raft_store_flush(struct raft_store *store, uint64_t *persist);
/* The same, but one batch at most: who has to say how far it is calls it again while something is pending. */
int raft_store_flush_batch(struct raft_store *store, uint64_t *persist);
/* true: entries, truncations or marks wait for a flush. */
bool raft_store_is_pending(struct raft_store *store);
/* The sentence for the last error: file, offset, cause, way out. Copied, at most RAFT_STORE_TEXT_MAX. */
void raft_store_error(struct raft_store *store, char *text);

/*
** Entries first … in memory: fills up to `n_max` entries and `bytes_max` payload bytes (at least one
** entry), each with a reference for the caller. Returns how many, 0 if `first` is not in memory
** (read it from disk then), negative errno.
*/
int64_t raft_store_get(struct raft_store *store, uint64_t first, size_t n_max, size_t bytes_max,
                       struct raft_entry *entries);
/* The same from disk if need be. Blocks. -ENOENT: not in the log. -EILSEQ: damaged, text by raft_store_error. */
int64_t raft_store_read(struct raft_store *store, uint64_t first, size_t n_max, size_t bytes_max,
                        struct raft_entry *entries);

/*
** Forgets entries <= through, which must be durable (-EINVAL). Whole segments only: what shares one with a later entry
** stays, so first_index may be lower afterwards than asked for. Blocks for disk I/O, but flushes go on meanwhile. Files
** are kept for the next segments, a few, or removed. Negative errno: nothing is lost; raft_store_error says it.
*/
int raft_store_compact(struct raft_store *store, uint64_t through);

struct raft_store_status {
  uint64_t first_index, last_index, durable_index;
  uint64_t bytes; /* of records on disk, without the zeros ahead */
  uint64_t batches, synced_writes;
};
void raft_store_get_status(struct raft_store *store, struct raft_store_status *status);

#endif
