/*
** AppendEntries and heartbeats, at both ends (paper section 5.3).
**
** A leader sends to each member ahead of its answers, within a window. What gets lost is noticed by
** the next answer to a heartbeat that finds an APPEND overdue: then an APPEND without entries asks
** whether what was sent so far arrived; if not it is refused with a hint where to go on.
**
** A round is a number that rises with time; its time of sending is kept. An answer that names a round
** proves that its sender accepted this leader after that time: leases and reads count from it.
*/
#include <assert.h>

#include "core.h"

/* ---- The leader: rounds ---- */

static uint64_t begin_round(struct raft *raft) {
  raft->round++;
  raft->round_sent[raft->round % RAFT_ROUNDS_MAX] = raft->now;
  return raft->round;
}

/* When the round was sent; 0 if that is not known any more. */
static uint64_t round_time(const struct raft *raft, uint64_t round) {
  if (round == 0 || round > raft->round || raft->round - round >= RAFT_ROUNDS_MAX) {
    return 0;
  }
  return raft->round_sent[round % RAFT_ROUNDS_MAX];
}

/* The round for an APPEND: an older one will do, the lease is then counted from earlier; but not much older. */
static uint64_t recent_round(struct raft *raft) {
  const uint64_t sent = round_time(raft, raft->round);
  return raft->now - sent > raft->options.heartbeat_ns / 4 ? begin_round(raft) : raft->round;
}

/* ---- The leader: sending ---- */

static struct raft_message *send_heartbeat(struct raft *raft, uint32_t place, uint64_t round) {
  struct raft_progress *progress = &raft->progress[place];
  const struct raft_member *member = &raft_members(raft)->members[place];
  struct raft_message *message = raft_send(raft, RAFT_HEARTBEAT, member->id, &member->incarnation, 0);
  message->round = round;
  message->commit = raft_min(raft->commit_index, progress->match_index);
  progress->commit_sent = raft_max(progress->commit_sent, message->commit);
  return message;
}

void raft_send_heartbeats(struct raft *raft) {
  const struct raft_configuration *members = raft_members(raft);
  const uint64_t round = begin_round(raft);
  for (uint32_t i = 0; i < members->n_members; i++) {
    if (members->members[i].id != raft->options.id) {
      send_heartbeat(raft, i, round);
    }
  }
  raft->heartbeat_at = raft_time_add(raft->now, raft->options.heartbeat_ns);
}

/* An APPEND of n entries behind next_index - 1. */
static void send_append(struct raft *raft, uint32_t place, uint32_t n_entries) {
  struct raft_progress *progress = &raft->progress[place];
  const struct raft_member *member = &raft_members(raft)->members[place];
  struct raft_message *message = raft_send(raft, RAFT_APPEND, member->id, &member->incarnation, 0);
  message->index = progress->next_index - 1;
  message->log_term = raft_log_term(&raft->log, message->index);
  message->n_entries = n_entries;
  message->commit = raft->commit_index;
  message->round = recent_round(raft);
  progress->commit_sent = raft_max(progress->commit_sent, raft_min(raft->commit_index, message->index + n_entries));
}

/* How many entries from next_index on fit into one APPEND, and their bytes. At least one. */
static uint32_t fill_append(const struct raft *raft, const struct raft_progress *progress, uint64_t *bytes) {
  const uint64_t last = raft_log_last(&raft->log);
  const uint64_t room = raft_min(raft_progress_room(progress, raft->options.window_bytes), raft->options.batch_bytes);
  uint32_t n = 0;
  *bytes = 0;
  for (uint64_t index = progress->next_index; index <= last && n < RAFT_APPEND_ENTRIES_MAX; index++) {
    const uint32_t size = raft_log_entry(&raft->log, index)->size;
    if (n > 0 && *bytes + size > room) {
      break;
    }
    *bytes += size;
    n++;
  }
  return n;
}

/*
** A message costs both ends a system call and a wake-up. On a short way it is cheaper to wait for the answer to the last one:
** what gathers until then goes in one. On a long way it would cost latency; and when there is more than one message takes,
** nothing is left to gather.
*/
static bool is_worth_waiting(const struct raft *raft, const struct raft_progress *progress, uint32_t n) {
  const bool is_all = progress->next_index + n > raft_log_last(&raft->log);
  return is_all && progress->n_inflight > 0 && progress->round_trip < raft->options.round_trip_short_ns;
}

static void send_entries(struct raft *raft, uint32_t place) {
  struct raft_progress *progress = &raft->progress[place];
  if (progress->state != RAFT_TRANSFER && progress->next_index < raft->log.first_index) {
    raft_progress_probe(progress, raft->log.first_index); /* compacted meanwhile: does it need that at all? */
  }
  if (progress->state == RAFT_PROBE && !progress->probe_sent && progress->next_index > raft_log_last(&raft->log)) {
    send_append(raft, place, 0); /* nothing goes along, but what it holds has to be known */
    raft_progress_asked(progress, raft->now);
  }
  while (progress->next_index <= raft_log_last(&raft->log) &&
         raft_progress_may_send(progress, raft->options.window_bytes)) {
    uint64_t bytes;
    const uint32_t n = fill_append(raft, progress, &bytes);
    if (is_worth_waiting(raft, progress, n)) {
      break;
    }
    send_append(raft, place, n);
    raft_progress_sent(progress, raft->now, progress->next_index + n - 1, bytes);
  }
}

bool raft_is_in_contact(const struct raft *raft, uint32_t place) {
  const struct raft_progress *progress = &raft->progress[place];
  return progress->match_index > 0 && raft->now - progress->last_contact < raft->options.election_ns;
}

/* Nothing tells whether it arrived, and nothing is sent again: this is a courtesy. */
void raft_send_last(struct raft *raft, uint32_t place) {
  const struct raft_progress *progress = &raft->progress[place];
  const uint64_t last = raft_log_last(&raft->log);
  if (progress->state == RAFT_REPLICATE && progress->next_index >= raft->log.first_index &&
      last >= progress->next_index && last - progress->next_index < RAFT_APPEND_ENTRIES_MAX) {
    send_append(raft, place, (uint32_t)(last + 1 - progress->next_index));
  }
}

void raft_send_farewell(struct raft *raft, const struct raft_member *member) {
  uint64_t index;
  (void)raft_latest_configuration(raft, &index);
  if (index < raft->log.first_index) {
    return;
  }
  struct raft_message *message = raft_send(raft, RAFT_APPEND, member->id, &member->incarnation, 0);
  message->index = index - 1;
  message->log_term = raft_log_term(&raft->log, index - 1);
  message->n_entries = 1;
  message->commit = index;
}

void raft_replicate(struct raft *raft) {
  const struct raft_configuration *members = raft_members(raft);
  raft->replicate = false;
  for (uint32_t i = 0; i < members->n_members; i++) {
    struct raft_progress *progress = &raft->progress[i];
    if (members->members[i].id == raft->options.id) {
      continue;
    }
    send_entries(raft, i);
    /* Nothing goes there that would tell it what is committed: say so at once, and ask for no answer (round 0). */
    if (progress->n_inflight == 0 && raft_min(raft->commit_index, progress->match_index) > progress->commit_sent) {
      send_heartbeat(raft, i, 0);
    }
  }
}

/* Its heartbeats are answered, its APPENDs are not: ask whether they arrived. */
static void ask_again_if_overdue(struct raft *raft, uint32_t place) {
  struct raft_progress *progress = &raft->progress[place];
  if (progress->state == RAFT_TRANSFER) {
    raft_repeat_transfer(raft, place);
    return;
  }
  const bool waits = progress->state == RAFT_PROBE ? progress->probe_sent : progress->n_inflight > 0;
  if (!waits || raft->now - progress->waiting_since < raft->options.heartbeat_ns) {
    return;
  }
  progress->waiting_since = raft->now;
  if (progress->next_index >= raft->log.first_index) {
    send_append(raft, place, 0);
  } else {
    raft->replicate = true;
  }
}

/* ---- The leader: its term ---- */

void raft_become_leader(struct raft *raft) {
  assert(raft->role == RAFT_CANDIDATE && raft_hard_state_is_durable(raft));
  const struct raft_entry_meta noop = {.term = raft->current_term, .type = RAFT_ENTRY_NOOP};
  if (!raft_log_reserve(&raft->log, &noop, 1)) {
    raft_become_follower(raft, raft->current_term, 0);
    return;
  }
  raft->role = RAFT_LEADER;
  raft->leader = raft->options.id;
  for (uint32_t i = 0; i < RAFT_MEMBERS_MAX; i++) {
    raft_progress_reset(&raft->progress[i], raft->now, raft_log_last(&raft->log) + 1);
  }
  raft_reset_transfers(raft);
  raft->hand_over = (struct raft_hand_over){0};
  raft->lease_behind = 0;
  raft->settled_index = raft_min(raft_members_index(raft), raft->commit_index);
  /* Entries of earlier terms commit only along with one of this term (paper section 5.4.2). */
  raft_log_append(&raft->log, &noop);
  raft->term_index = raft_log_last(&raft->log);
  raft->append_first = raft->append_first ? raft->append_first : raft->term_index;
  raft->noop = true;
  raft->read_round = 0;
  raft->heartbeat_at = raft_time_add(raft->now, raft->options.heartbeat_ns);
  raft->replicate = true;
  begin_round(raft);
}

/* The leader counts by its own place, and need not have one: the set that it is in may be the one that goes. */
uint64_t raft_quorum_contact(const struct raft *raft) {
  uint64_t contacts[RAFT_MEMBERS_MAX] = {0};
  const struct raft_configuration *members = raft_members(raft);
  const int own = raft_own_place(raft);
  for (uint32_t i = 0; i < members->n_members; i++) {
    contacts[i] = (int)i == own ? raft->now : raft->progress[i].last_contact;
  }
  return raft_quorum_value(members, contacts);
}

/*
** Check-quorum (thesis 6.4); and a disk that has been stuck for as long, if the others commit without it:
** one of them leads better. If they do not either, nobody would gain by an election.
*/
static bool has_to_step_down(const struct raft *raft) {
#ifndef RAFT_MUTANT_LEASE_WITHOUT_CHECK_QUORUM
  if (raft->now - raft_quorum_contact(raft) >= raft->options.election_ns) {
    return true;
  }
#endif
  return raft_is_stuck(raft) && raft->commit_index > raft->log.durable_index;
}

void raft_leader_tick(struct raft *raft) {
  if (has_to_step_down(raft)) {
    raft_become_follower(raft, raft->current_term, 0);
    return;
  }
  raft_transfers_tick(raft);
  raft_hand_over_tick(raft);
  if (raft->role != RAFT_LEADER) {
    return;
  }
  if (raft->now >= raft->heartbeat_at) {
    raft_send_heartbeats(raft);
    raft_repeat_hand_over(raft);
  }
  raft_advance_membership(raft);
}

uint64_t raft_leader_next_tick(const struct raft *raft) {
  const uint64_t election = raft->options.election_ns;
  uint64_t next = raft_min(raft->heartbeat_at, raft_time_add(raft_quorum_contact(raft), election));
  next = raft_min(next, raft_hand_over_next_tick(raft));
  if (!raft_is_stuck(raft)) {
    next = raft_min(next, raft_time_add(raft_log_oldest_write(&raft->log), election));
  }
  return next; /* once it is stuck each heartbeat looks again */
}

void raft_advance_commit(struct raft *raft) {
  uint64_t matches[RAFT_MEMBERS_MAX] = {0};
  const struct raft_configuration *members = raft_members(raft);
  const int own = raft_own_place(raft);
  for (uint32_t i = 0; i < members->n_members; i++) {
    matches[i] = (int)i == own ? raft->log.durable_index : raft->progress[i].match_index;
  }
  const uint64_t index = raft_quorum_value(members, matches);
  if (index <= raft->commit_index) {
    return;
  }
#ifndef RAFT_MUTANT_COMMIT_OLD_TERM
  /* Paper section 5.4.2 and figure 8: an entry of an earlier term on a majority may still be overwritten. */
  if (raft_log_term(&raft->log, index) != raft->current_term) {
    return;
  }
#endif
#ifdef RAFT_MUTANT_CONFIGURATION_AT_COMMIT
  raft_membership_committed(raft, index);
#endif
  raft->commit_index = index;
  raft->replicate = true;
  raft_advance_reads(raft);
  raft_advance_hand_over(raft);
  raft_advance_membership(raft);
}

/* ---- The leader: answers ---- */

bool raft_hear_member(struct raft *raft, int place, uint64_t round) {
  struct raft_progress *progress = &raft->progress[place];
  if (round > raft->round) {
    return false;
  }
  progress->last_contact = raft->now;
  if (round > progress->acked_round) {
    progress->acked_round = round;
#ifdef RAFT_MUTANT_LEASE_FROM_ANSWER
    progress->acked_at = raft->now;
#else
    progress->acked_at = raft_max(progress->acked_at, round_time(raft, round));
#endif
  }
  return true;
}

/* Its log differs at message->index: go back to where both may agree. */
static void go_back(struct raft *raft, int place, const struct raft_message *message) {
  struct raft_progress *progress = &raft->progress[place];
  if (!raft_progress_is_refusal(progress, message->index)) {
    return;
  }
  uint64_t agree = raft_min(message->hint_index, message->index - 1);
  if (message->hint_term > 0) {
    agree = raft_min(agree, raft_log_agree(&raft->log, agree, message->hint_term));
  }
  if (raft_max(agree, progress->match_index) + 1 < raft->log.first_index) {
    raft_begin_transfer(raft, (uint32_t)place);
  } else {
    raft_progress_probe(progress, agree + 1);
  }
  raft->replicate = true;
}

void raft_receive_append_result(struct raft *raft, const struct raft_message *message) {
  const int place = raft_member_place(raft, message->from);
  if (raft->role != RAFT_LEADER || place < 0 || message->index > raft_log_last(&raft->log) ||
      !raft_hear_member(raft, place, message->round)) {
    return;
  }
  if (message->reject) {
    go_back(raft, place, message);
  } else if (raft_progress_accepted(&raft->progress[place], raft->now, message->index)) {
    raft_settle_transfer(raft, (uint32_t)place);
    raft_progress_catch_up(&raft->progress[place], raft->now, raft_log_last(&raft->log), raft->options.election_ns);
    raft->replicate = true;
    raft_advance_commit(raft);
    raft_advance_hand_over(raft);
    raft_advance_membership(raft);
  }
  raft_advance_reads(raft);
}

void raft_receive_heartbeat_result(struct raft *raft, const struct raft_message *message) {
  const int place = raft_member_place(raft, message->from);
  if (raft->role != RAFT_LEADER || place < 0 || message->reject || !raft_hear_member(raft, place, message->round)) {
    return;
  }
  raft_progress_catch_up(&raft->progress[place], raft->now, raft_log_last(&raft->log), raft->options.election_ns);
  ask_again_if_overdue(raft, (uint32_t)place);
  raft_advance_reads(raft);
}

/* ---- The follower ---- */

bool raft_hear_leader(struct raft *raft, const struct raft_message *message) {
  assert(raft->role != RAFT_LEADER);
  if (raft->leader != 0 && raft->leader != message->from) {
    return false;
  }
  raft_become_follower(raft, raft->current_term, message->from);
  raft->leader_incarnation = message->from_incarnation;
  raft->sticky_until = raft_time_add(raft->now, raft->options.election_ns);
  raft_draw_election_deadline(raft);
  return true;
}

static void refuse_append(struct raft *raft, const struct raft_message *message) {
  const uint64_t hint = raft_max(raft_log_agree(&raft->log, message->index, message->log_term), raft->commit_index);
  struct raft_message *result = raft_send(raft, RAFT_APPEND_RESULT, message->from, &message->from_incarnation, 0);
  result->reject = true;
  result->index = message->index;
  result->hint_index = hint;
  result->hint_term = raft_log_term(&raft->log, hint);
  result->round = message->round;
}

void raft_confirm(struct raft *raft, uint64_t leader, const struct raft_uuid *incarnation, uint64_t index,
                  uint64_t round) {
  uint64_t after = raft_log_write_of(&raft->log, index, raft_next_write(raft));
#ifdef RAFT_MUTANT_ACK_BEFORE_SYNC
  after = 0;
#endif
  struct raft_message *result = raft_send(raft, RAFT_APPEND_RESULT, leader, incarnation, after);
  result->index = index;
  result->round = round;
}

/* Entry i of the message as a configuration; false if it is none. */
static bool read_configuration(const struct raft_message *message, uint32_t i,
                               struct raft_configuration *configuration) {
  return message->payloads && message->payloads[i] &&
         raft_configuration_decode(message->payloads[i], message->entries[i].size, configuration) == RAFT_OK;
}

/* Can entries i … be taken over? Memory is reserved, configurations make sense. */
static bool prepare_append(struct raft *raft, const struct raft_message *message, uint32_t i) {
  struct raft_configuration configuration;
  for (uint32_t j = i; j < message->n_entries; j++) {
    if (message->entries[j].type == RAFT_ENTRY_CONFIGURATION && !read_configuration(message, j, &configuration)) {
      return false;
    }
  }
  return raft_log_reserve(&raft->log, message->entries + i, message->n_entries - i);
}

/* Takes over entries i …, in place of what is there. Returns the last index. */
static uint64_t append_entries(struct raft *raft, const struct raft_message *message, uint32_t i) {
  const uint64_t first = message->index + 1 + i;
  struct raft_configuration configuration;
  assert(first > raft->commit_index && raft->append_first == 0 && raft->truncate_from == 0);
  if (first <= raft_log_last(&raft->log)) {
    raft_log_truncate(&raft->log, first);
    raft_membership_truncate(raft, first);
    raft->truncate_from = first;
  }
  for (; i < message->n_entries; i++) {
    if (message->entries[i].type == RAFT_ENTRY_CONFIGURATION) {
      if (!raft_membership_has_room(raft) || !read_configuration(message, i, &configuration)) {
        break; /* the rest when these have committed */
      }
      raft_membership_push(raft, message->index + 1 + i, &configuration);
    }
    raft_log_append(&raft->log, &message->entries[i]);
    raft->append_first = first;
  }
  return message->index + i;
}

/*
** Entries that follow on one that matches, or on a committed one. Those that are here already stay; the
** first that differs, and what is behind it, is replaced, but never a committed one: a leader that asks
** for that is none. Returns the last index known to match, 0 if the message was dropped.
*/
static uint64_t merge_append(struct raft *raft, const struct raft_message *message) {
  const uint64_t last = raft_log_last(&raft->log);
  uint32_t i = 0;
  for (; i < message->n_entries; i++) {
    const uint64_t index = message->index + 1 + i;
    if (index + 1 < raft->log.first_index) {
      continue; /* compacted, and so committed */
    }
    if (index > last || raft_log_term(&raft->log, index) != message->entries[i].term) {
      break;
    }
  }
  if (i == message->n_entries) {
    return raft_max(message->index + i, raft->commit_index);
  }
  if (message->index + 1 + i <= raft->commit_index || !prepare_append(raft, message, i)) {
    return 0;
  }
  return append_entries(raft, message, i);
}

static void advance_follower_commit(struct raft *raft, uint64_t commit, uint64_t known_to_match) {
  raft->commit_index = raft_max(raft->commit_index, raft_min(commit, known_to_match));
}

void raft_receive_append(struct raft *raft, const struct raft_message *message) {
  if (raft->role == RAFT_LEADER || !raft_hear_leader(raft, message)) {
    return;
  }
  const bool known = message->index <= raft_log_last(&raft->log) && message->index + 1 >= raft->log.first_index;
  const bool matches = known && raft_log_term(&raft->log, message->index) == message->log_term;
  if (message->index >= raft->commit_index && !matches) {
    refuse_append(raft, message);
    return;
  }
  if (known && !matches) {
    return; /* it contradicts what is committed */
  }
  const uint64_t matched = merge_append(raft, message);
  if (matched == 0 && message->index + message->n_entries > 0) {
    return;
  }
  advance_follower_commit(raft, message->commit, matched);
  raft_confirm(raft, message->from, &message->from_incarnation, matched, message->round);
}

void raft_receive_heartbeat(struct raft *raft, const struct raft_message *message) {
  if (raft->role == RAFT_LEADER || !raft_hear_leader(raft, message)) {
    return;
  }
  /* The leader names no more than what this node has acknowledged to it, in this term, as durable. */
  advance_follower_commit(raft, message->commit, raft_log_last(&raft->log));
  if (message->round > 0) {
    struct raft_message *result = raft_send(raft, RAFT_HEARTBEAT_RESULT, message->from, &message->from_incarnation, 0);
    result->round = message->round;
  }
}
