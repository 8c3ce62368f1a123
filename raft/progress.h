/*
** What a leader knows of one member: how far its log matches, what is under way to it, when it was
** heard. A member is probed with one APPEND at a time until one succeeds; from then on APPENDs are
** sent ahead of their answers (replicate), within a window of bytes and RAFT_INFLIGHT_MAX. One that needs
** what is compacted gets a snapshot, and no APPEND until it has that (transfer: transfer.c).
*/
#ifndef BALSA_RAFT_PROGRESS_H
#define BALSA_RAFT_PROGRESS_H

#include "raft.h"

enum raft_progress_state { RAFT_PROBE, RAFT_REPLICATE, RAFT_TRANSFER };

#define RAFT_ROUND_TRIP_SAMPLES 64u /* answers after which an older, shorter round trip is forgotten */

struct raft_inflight {
  uint64_t last_index;
  uint64_t bytes;
  uint64_t sent_at;
};

struct raft_progress {
  enum raft_progress_state state;
  uint64_t match_index;   /* durable there and equal to the leader's log up to here; never falls in a term */
  uint64_t next_index;    /* > match_index */
  bool probe_sent;        /* probe: its answer is awaited */
  uint64_t waiting_since; /* time since which an answer to an APPEND is overdue more and more */
  uint64_t commit_sent;   /* highest commit index that a message sent to it allows it */
  uint64_t acked_round;   /* highest round that it answered */
  uint64_t acked_at;      /* when that round was SENT: leases count from there */
  uint64_t last_contact;  /* when its last message of this term came */

  /* Catching up, in rounds (thesis section 4.2.1): what there was when a round began has to arrive in time. */
  uint64_t catch_up_index, catch_up_since;
  bool caught_up; /* the last round was short enough, or nothing is lacking */

  struct raft_inflight inflight[RAFT_INFLIGHT_MAX]; /* ring, by rising last_index */
  uint32_t inflight_head, n_inflight;
  uint64_t inflight_bytes;
  uint64_t round_trip;       /* shortest of late from an APPEND to its answer; UINT64_MAX: none known */
  uint64_t round_trip_later; /* the same, of the last n_round_trips alone */
  uint32_t n_round_trips;
};

/* The start of a leadership: nothing is known of it but that it may have been there just now. */
void raft_progress_reset(struct raft_progress *progress, uint64_t now, uint64_t next_index);

/* May another APPEND with entries be sent? Otherwise an answer is awaited. */
bool raft_progress_may_send(const struct raft_progress *progress, uint32_t window_bytes);
/* Bytes that the next APPEND may hold; one entry may go alone whatever its size if nothing is under way. */
uint64_t raft_progress_room(const struct raft_progress *progress, uint32_t window_bytes);
/* An APPEND with entries … last_index was sent. */
void raft_progress_sent(struct raft_progress *progress, uint64_t now, uint64_t last_index, uint64_t bytes);

/* A probe without entries was sent. */
void raft_progress_asked(struct raft_progress *progress, uint64_t now);

/* Looks at the round of catching up; one that took less than `limit` will do. `last_index`: of the leader's log. */
void raft_progress_catch_up(struct raft_progress *progress, uint64_t now, uint64_t last_index, uint64_t limit);

/* It holds everything up to `index`. false: that says nothing that was not known. */
bool raft_progress_accepted(struct raft_progress *progress, uint64_t now, uint64_t index);
/* Is a refusal of `index` an answer to something still asked? Late and repeated ones are not. */
bool raft_progress_is_refusal(const struct raft_progress *progress, uint64_t index);
/* Go back and probe from `next_index`, but never below what matches. */
void raft_progress_probe(struct raft_progress *progress, uint64_t next_index);
/* It gets a snapshot first; the log begins at `first_index`. */
void raft_progress_transfer(struct raft_progress *progress, uint64_t first_index);
/* It has that: go on behind what matches. */
void raft_progress_transferred(struct raft_progress *progress);

#endif
