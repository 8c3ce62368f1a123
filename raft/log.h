/*
** The log as the core sees it: of each entry its term, size and type; where each term starts; and
** how much of it is durable. No payloads.
**
** Durability. Each parcel of work that writes gets a number. The log remembers for each number not
** yet reported how far the log reached with it. A truncation clamps these: an entry that was cut off
** does not become durable when its write is reported later, even if an equal one was appended at its
** place meanwhile (the ABA case), for that one is part of a later number.
*/
#ifndef BALSA_RAFT_LOG_H
#define BALSA_RAFT_LOG_H

#include "raft.h"

#define RAFT_WRITES_MAX 256 /* numbers under way told apart; more are taken together, which is only later */

/* A write under way. */
struct raft_write {
  uint64_t number;
  uint64_t last_index; /* durable up to here when reported; 0: nothing of the log */
  uint64_t since;      /* when the disk could begin with it: it was given out, and the one before it was done */
};

struct raft_log {
  struct raft_entry_meta *entries; /* first_index … last */
  size_t n_entries, entries_capacity;
  uint64_t first_index, prev_term;
  uint64_t durable_index;

  /* Where each term starts, by rising term and index: of the compacted prefix too, as far as known. */
  struct raft_term_start *terms;
  size_t n_terms, terms_capacity;

  struct raft_write writes[RAFT_WRITES_MAX]; /* ring, by rising number */
  uint32_t writes_head, n_writes;
};

/* RAFT_INVALID if terms fall, or indexes make no sense. Everything in `start` is durable. */
int raft_log_open(struct raft_log *log, const struct raft_start *start);
void raft_log_close(struct raft_log *log);

uint64_t raft_log_last(const struct raft_log *log);
/* Term of the last entry, of the compacted prefix if the log is empty; 0 if there never was one. */
uint64_t raft_log_last_term(const struct raft_log *log);
/* first_index-1 … last; that is the caller's to check. */
uint64_t raft_log_term(const struct raft_log *log, uint64_t index);
/* first_index … last */
const struct raft_entry_meta *raft_log_entry(const struct raft_log *log, uint64_t index);
/* Term of any entry ever known, compacted or not; 0 if it cannot be told. */
uint64_t raft_log_term_ever(const struct raft_log *log, uint64_t index);
/* How many of the (term, first index) pairs start at or before `index`. */
size_t raft_log_terms_until(const struct raft_log *log, uint64_t index);
/* The highest place ≤ index (≤ last) whose term is ≤ term, at least first_index-1: where two logs may agree. */
uint64_t raft_log_agree(const struct raft_log *log, uint64_t index, uint64_t term);

/* Room for these entries. false: no memory, nothing changed. */
bool raft_log_reserve(struct raft_log *log, const struct raft_entry_meta *entries, size_t n);
/* Room was reserved; the term is not below the last one. */
void raft_log_append(struct raft_log *log, const struct raft_entry_meta *entry);
/* Drops all entries ≥ from; from ≥ first_index. */
void raft_log_truncate(struct raft_log *log, uint64_t from);
/* Forgets the entries ≤ through, which are durable, but not where their terms start. */
void raft_log_compact(struct raft_log *log, uint64_t through);
/*
** The log is empty and begins behind (index, term). What was being written does not count any more; nothing above
** `durable` is durable until a write that ends at `index` is done. false: no memory, nothing changed.
*/
bool raft_log_reset(struct raft_log *log, uint64_t index, uint64_t term, const struct raft_term_start *terms,
                    size_t n_terms, uint64_t durable);

/* Parcel `number` was given out; the log reached last_index with it (0: it has no entries). */
void raft_log_write_begun(struct raft_log *log, uint64_t number, uint64_t last_index, uint64_t now);
/* It is durable, and all before it. */
void raft_log_write_done(struct raft_log *log, uint64_t number, uint64_t now);
/*
** The number that makes the entry at `index` (≤ last) durable; 0 if it is. `pending` is the number that
** the entries not yet given out will get.
*/
uint64_t raft_log_write_of(const struct raft_log *log, uint64_t index, uint64_t pending);
/* Since when the oldest write has been under way; UINT64_MAX: none is. */
uint64_t raft_log_oldest_write(const struct raft_log *log);

#endif
