/* The core's events and its work: the seam that raft.h describes. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

#define MESSAGES_CAPACITY_FIRST 32

/* ---- Opening ---- */

static bool options_make_sense(const struct raft_options *options) {
  return options->id > 0 && options->id <= RAFT_NODE_MAX && !raft_uuid_is_none(&options->incarnation) &&
         options->heartbeat_ns > 0 && options->election_ns > options->heartbeat_ns &&
         options->election_ns <= RAFT_ELECTION_NS_MAX && options->drift_permille <= RAFT_DRIFT_PERMILLE_MAX;
}

static bool configurations_make_sense(const struct raft_start *start) {
  uint64_t before = 0;
  if (start->n_configurations > 0 && !start->configurations) {
    return false;
  }
  for (size_t i = 0; i < start->n_configurations; i++) {
    const struct raft_start_configuration *at = &start->configurations[i];
    if (!at->configuration || raft_configuration_check(at->configuration) || at->index <= before ||
        at->index > start->last_index) {
      return false;
    }
    before = at->index;
  }
  /* One is in force at the commit index: what is behind it may be rolled back. */
  const uint64_t committed = raft_max(raft_max(start->commit_index, start->first_index - 1), 1);
  return start->n_configurations == 0 || start->configurations[0].index <= committed;
}

/* Those that are too many are committed: another one follows them. */
static int open_membership(struct raft *raft, const struct raft_start *start) {
  if (!configurations_make_sense(start)) {
    return RAFT_INVALID;
  }
  size_t i = start->n_configurations > RAFT_CONFIGURATIONS_MAX ? start->n_configurations - RAFT_CONFIGURATIONS_MAX : 0;
  if (i > 0) {
    raft->commit_index = raft_max(raft->commit_index, start->configurations[i].index);
  }
  for (; i < start->n_configurations; i++) {
    raft_membership_push(raft, start->configurations[i].index, start->configurations[i].configuration);
  }
  raft->configuration_changed = false;
  return RAFT_OK;
}

static int open_state(struct raft *raft, const struct raft_start *start) {
  int error = raft_log_open(&raft->log, start);
  if (!error && (start->term > RAFT_TERM_MAX || start->commit_index > start->last_index)) {
    error = RAFT_INVALID;
  }
  if (error) {
    return error;
  }
  raft->commit_index = raft->told_commit = raft_max(start->commit_index, start->first_index - 1);
  error = open_membership(raft, start);
  if (error) {
    return error;
  }
  raft->current_term = start->term;
  raft->voted_for = start->voted_for;
  /* A crash between the entries of a write and its hard state: nobody was told of that term. */
  if (raft_log_last_term(&raft->log) > raft->current_term) {
    raft->current_term = raft_log_last_term(&raft->log);
    raft->voted_for = 0;
    raft->hard_state_dirty = true;
  }
  return RAFT_OK;
}

int raft_open(const struct raft_options *options, const struct raft_start *start, struct raft **raft) {
  *raft = NULL;
  if (!options_make_sense(options)) {
    return RAFT_INVALID;
  }
  struct raft *opened = calloc(1, sizeof *opened);
  if (!opened) {
    return RAFT_NO_MEMORY;
  }
  opened->options = *options;
  opened->random = options->seed ^ (options->id * 0xd1342543de82ef95ull);
  opened->now = start->now;
  opened->electable = true;
  opened->role = RAFT_FOLLOWER;
  const int error = open_state(opened, start);
  if (error) {
    raft_close(opened);
    return error;
  }
  opened->told_term = start->term;
#ifndef RAFT_MUTANT_RESTART_VOTES_IN_LEASE
  /* It may have promised just before it stopped to elect nobody for an election time-out. */
  if (start->restarted) {
    opened->sticky_until = raft_time_add(start->now, options->election_ns);
  }
#endif
  raft_draw_election_deadline(opened);
  *raft = opened;
  return RAFT_OK;
}

void raft_close(struct raft *raft) {
  if (raft) {
    raft_log_close(&raft->log);
    free(raft->messages);
    free(raft);
  }
}

/* ---- Queues ---- */

static void forget_handed_out(struct raft *raft) {
  if (raft->handed_out) {
    raft->n_messages = 0;
    raft->n_answers = 0;
    raft->handed_out = false;
  }
}

void raft_begin_event(struct raft *raft, uint64_t now) {
  forget_handed_out(raft);
  raft->chunk = false;
  raft->now = raft_max(raft->now, now);
}

uint64_t raft_next_write(const struct raft *raft) {
  return raft->writes_given + 1;
}

bool raft_hard_state_is_durable(const struct raft *raft) {
  return !raft->hard_state_dirty && raft->hard_state_write <= raft->writes_done;
}

bool raft_is_stuck(const struct raft *raft) {
  const uint64_t oldest = raft_log_oldest_write(&raft->log);
  return oldest <= raft->now && raft->now - oldest >= raft->options.election_ns;
}

static bool messages_have_room(struct raft *raft) {
  if (raft->n_messages < raft->messages_capacity) {
    return true;
  }
  if (raft->n_messages >= RAFT_MESSAGES_MAX) {
    return false;
  }
  const size_t capacity = raft->messages_capacity ? 2 * raft->messages_capacity : MESSAGES_CAPACITY_FIRST;
  struct raft_outgoing *grown = realloc(raft->messages, capacity * sizeof *grown);
  if (!grown) {
    return false;
  }
  raft->messages = grown;
  raft->messages_capacity = capacity;
  return true;
}

struct raft_message *raft_send(struct raft *raft, enum raft_message_type type, uint64_t to,
                               const struct raft_uuid *incarnation, uint64_t after) {
  struct raft_message *message = &raft->lost;
  if (messages_have_room(raft)) {
    struct raft_outgoing *outgoing = &raft->messages[raft->n_messages++];
    /* Who speaks in a term must not forget it: it could vote again, or follow an older leader. */
    if (raft->hard_state_dirty) {
      after = raft_next_write(raft);
    } else if (raft->hard_state_write > raft->writes_done) {
      after = raft_max(after, raft->hard_state_write);
    }
#ifdef RAFT_MUTANT_VOTE_WITHOUT_PERSIST
    after = type == RAFT_VOTE_RESULT ? 0 : after;
#endif
    outgoing->after = after;
    message = &outgoing->message;
  }
  *message = (struct raft_message){
      .type = (uint8_t)type,
      .from = raft->options.id,
      .to = to,
      .from_incarnation = raft->options.incarnation,
      .to_incarnation = *incarnation,
      .term = raft->current_term,
  };
  return message;
}

/* ---- Time ---- */

void raft_tick(struct raft *raft, uint64_t now) {
  raft_begin_event(raft, now);
  if (raft->failed) {
    return;
  }
  raft_expire_reads(raft);
  if (raft->role == RAFT_LEADER) {
    raft_leader_tick(raft);
  } else {
    raft_election_tick(raft);
  }
}

uint64_t raft_next_tick(const struct raft *raft) {
  if (raft->failed) {
    return RAFT_NEVER;
  }
  const uint64_t next = raft->role == RAFT_LEADER ? raft_leader_next_tick(raft) : raft_election_next_tick(raft);
  return raft_min(next, raft_reads_next_tick(raft));
}

/* ---- Messages ---- */

/* Is the place (index, term) one that a log can have? */
static bool place_makes_sense(const struct raft_message *message) {
  return message->index < UINT64_MAX / 2 && (message->index == 0) == (message->log_term == 0) &&
         message->log_term <= message->term;
}

static bool entries_make_sense(const struct raft_message *message) {
  uint64_t term = message->log_term;
  if (message->n_entries > 0 && !message->entries) {
    return false;
  }
  for (uint32_t i = 0; i < message->n_entries; i++) {
    const struct raft_entry_meta *entry = &message->entries[i];
    if (entry->term == 0 || entry->term < term || entry->term > message->term || entry->type == 0) {
      return false;
    }
    term = entry->term;
  }
  return true;
}

static bool chunk_makes_sense(const struct raft_message *message) {
  return message->index > 0 && message->size_bytes > 0 && message->offset <= message->size_bytes &&
         message->chunk_bytes <= message->size_bytes - message->offset;
}

/* By its form alone. */
static bool message_makes_sense(const struct raft_message *message) {
  if (message->term == 0 || message->term > RAFT_TERM_MAX || message->from == 0 || message->from > RAFT_NODE_MAX) {
    return false;
  }
  switch (message->type) {
  case RAFT_PRE_VOTE:
  case RAFT_VOTE:
  case RAFT_TIMEOUT_NOW: return place_makes_sense(message);
  case RAFT_APPEND: return place_makes_sense(message) && entries_make_sense(message);
  case RAFT_SNAPSHOT: return place_makes_sense(message) && chunk_makes_sense(message);
  case RAFT_PRE_VOTE_RESULT:
  case RAFT_VOTE_RESULT:
  case RAFT_APPEND_RESULT:
  case RAFT_HEARTBEAT:
  case RAFT_HEARTBEAT_RESULT:
  case RAFT_READ_INDEX:
  case RAFT_READ_INDEX_RESULT:
  case RAFT_SNAPSHOT_RESULT: return true;
  default: return false;
  }
}

/*
** May it come from one that this node does not know as a member? A leader or a candidate may have become one by entries
** that this node lacks (thesis section 4.1): it names this node, in this incarnation, by the configuration that it has,
** and there decides what counts.
*/
static bool may_be_strange(const struct raft_message *message) {
  switch (message->type) {
  case RAFT_PRE_VOTE:
  case RAFT_VOTE:
  case RAFT_APPEND:
  case RAFT_HEARTBEAT:
  case RAFT_SNAPSHOT:
  case RAFT_TIMEOUT_NOW: return true;
  default: return false;
  }
}

/* To this node in its own incarnation; what it says of its own log or vote counts from members alone, in theirs. */
static bool is_among_members(const struct raft *raft, const struct raft_message *message) {
  const struct raft_configuration *members = raft_members(raft);
  if (message->to != raft->options.id || message->from == raft->options.id ||
      !raft_same_incarnation(&message->to_incarnation, &raft->options.incarnation)) {
    return false;
  }
  if (members->n_members == 0 || may_be_strange(message)) {
    return true;
  }
  const struct raft_member *member = raft_configuration_find(members, message->from);
  return member && raft_same_incarnation(&member->incarnation, &message->from_incarnation);
}

/* A sender of an earlier term that waits for an answer learns the term. */
static void answer_late(struct raft *raft, const struct raft_message *message) {
  struct raft_message *result;
  switch (message->type) {
  case RAFT_PRE_VOTE:
  case RAFT_VOTE: raft_receive_vote_request(raft, message); break;
  case RAFT_READ_INDEX: raft_receive_read_index(raft, message); break;
  case RAFT_APPEND:
  case RAFT_HEARTBEAT:
    result = raft_send(raft, message->type == RAFT_APPEND ? RAFT_APPEND_RESULT : RAFT_HEARTBEAT_RESULT, message->from,
                       &message->from_incarnation, 0);
    result->reject = true;
    result->index = message->index;
    result->round = message->round;
    break;
  case RAFT_SNAPSHOT:
    result = raft_send(raft, RAFT_SNAPSHOT_RESULT, message->from, &message->from_incarnation, 0);
    result->reject = true;
    result->index = message->index;
    result->context = message->context;
    break;
  default: break;
  }
}

static void dispatch(struct raft *raft, const struct raft_message *message) {
  switch (message->type) {
  case RAFT_PRE_VOTE:
  case RAFT_VOTE: raft_receive_vote_request(raft, message); break;
  case RAFT_PRE_VOTE_RESULT:
  case RAFT_VOTE_RESULT: raft_receive_vote_result(raft, message); break;
  case RAFT_APPEND: raft_receive_append(raft, message); break;
  case RAFT_APPEND_RESULT: raft_receive_append_result(raft, message); break;
  case RAFT_HEARTBEAT: raft_receive_heartbeat(raft, message); break;
  case RAFT_HEARTBEAT_RESULT: raft_receive_heartbeat_result(raft, message); break;
  case RAFT_READ_INDEX: raft_receive_read_index(raft, message); break;
  case RAFT_READ_INDEX_RESULT: raft_receive_read_index_result(raft, message); break;
  case RAFT_SNAPSHOT: raft_receive_snapshot(raft, message); break;
  case RAFT_SNAPSHOT_RESULT: raft_receive_snapshot_result(raft, message); break;
  case RAFT_TIMEOUT_NOW: raft_receive_timeout_now(raft, message); break;
  default: break;
  }
}

/* Requests for votes decide for themselves; the term of a granted pre-vote is nobody's yet. */
static bool brings_its_term(const struct raft_message *message) {
  return message->type != RAFT_PRE_VOTE && message->type != RAFT_VOTE &&
         !(message->type == RAFT_PRE_VOTE_RESULT && !message->reject);
}

void raft_receive(struct raft *raft, uint64_t now, const struct raft_message *message) {
  raft_begin_event(raft, now);
  if (raft->failed || !message_makes_sense(message) || !is_among_members(raft, message)) {
    return;
  }
  if (message->term < raft->current_term) {
    answer_late(raft, message);
    return;
  }
  if (message->term > raft->current_term && brings_its_term(message)) {
    raft_become_follower(raft, message->term, 0);
  }
  dispatch(raft, message);
}

/* ---- What the driver does ---- */

int raft_append_own(struct raft *raft, uint8_t type, uint32_t size, uint64_t *index) {
  const struct raft_entry_meta entry = {.term = raft->current_term, .size = size, .type = type};
  if (!raft_log_reserve(&raft->log, &entry, 1)) {
    return RAFT_NO_MEMORY;
  }
  raft_log_append(&raft->log, &entry);
  *index = raft_log_last(&raft->log);
  raft->append_first = raft->append_first ? raft->append_first : *index;
  return RAFT_OK;
}

int raft_propose(struct raft *raft, uint64_t now, uint64_t term, uint8_t type, uint32_t size, uint64_t *index) {
  raft_begin_event(raft, now);
  if (raft->failed) {
    return RAFT_FAILED;
  }
  if (type == 0 || type == RAFT_ENTRY_CONFIGURATION) {
    return RAFT_INVALID; /* raft_change_members does that */
  }
  /* While the no-op waits to be taken the driver has not heard of this leadership. */
  if (raft->role != RAFT_LEADER || term != raft->current_term || raft->noop) {
    return RAFT_NOT_LEADER;
  }
  if (raft->hand_over.to != 0) {
    return RAFT_PENDING;
  }
  if (raft_log_last(&raft->log) - raft->commit_index >= RAFT_UNCOMMITTED_MAX) {
    return RAFT_FULL;
  }
  const int error = raft_append_own(raft, type, size, index);
  raft->replicate = raft->replicate || !error;
  return error;
}

void raft_persisted(struct raft *raft, uint64_t now, uint64_t persist) {
  raft_begin_event(raft, now);
  if (raft->failed || persist <= raft->writes_done) {
    return;
  }
  assert(persist <= raft->writes_given);
  const bool was_durable = raft_hard_state_is_durable(raft);
  raft->writes_done = persist;
  raft_log_write_done(&raft->log, persist, raft->now);
  if (raft->role == RAFT_LEADER) {
    raft_advance_commit(raft);
    return;
  }
  if (raft->role == RAFT_CANDIDATE && !was_durable && raft_hard_state_is_durable(raft)) {
    raft_draw_election_deadline(raft); /* its requests go out only now */
    raft_count_votes(raft);
  }
  if (raft->campaign_waits) {
    raft_election_tick(raft);
  }
}

void raft_persist_failed(struct raft *raft, uint64_t now) {
  raft_begin_event(raft, now);
  if (raft->failed) {
    return;
  }
  raft_become_follower(raft, raft->current_term, 0);
  raft->failed = true;
  raft->n_messages = 0;
  raft->append_first = 0;
  raft->truncate_from = 0;
  raft->reset_index = 0;
  raft->noop = false;
  raft->configuration_appended = 0;
  raft->hard_state_dirty = false;
}

int raft_change_members(struct raft *raft, uint64_t now, const struct raft_change *changes, size_t n, uint64_t *index) {
  raft_begin_event(raft, now);
  return raft->failed ? RAFT_FAILED : raft_change_by(raft, changes, n, index);
}

int raft_hand_over(struct raft *raft, uint64_t now, uint64_t to) {
  raft_begin_event(raft, now);
  return raft->failed ? RAFT_FAILED : raft_begin_hand_over(raft, to);
}

int raft_compact(struct raft *raft, uint64_t now, uint64_t through) {
  raft_begin_event(raft, now);
  return raft->failed ? RAFT_FAILED : raft_compact_log(raft, through);
}

int raft_install(struct raft *raft, uint64_t now, const struct raft_install *install) {
  raft_begin_event(raft, now);
  return raft->failed ? RAFT_FAILED : raft_install_snapshot(raft, install);
}

int raft_read(struct raft *raft, uint64_t now, uint64_t context, enum raft_read_level level) {
  raft_begin_event(raft, now);
  return raft->failed ? RAFT_FAILED : raft_begin_read(raft, context, level);
}

void raft_set_timing(struct raft *raft, uint64_t now, uint64_t election_ns, uint64_t heartbeat_ns) {
  struct raft_options changed = raft->options;
  changed.election_ns = election_ns;
  changed.heartbeat_ns = heartbeat_ns;
  if (!options_make_sense(&changed) ||
      (election_ns == raft->options.election_ns && heartbeat_ns == raft->options.heartbeat_ns)) {
    return;
  }
  raft_begin_event(raft, now);
  if (election_ns > raft->options.election_ns) {
    raft->sticky_until = raft_time_add(raft->sticky_until, election_ns - raft->options.election_ns);
  }
  raft->options = changed;
  if (raft->role != RAFT_LEADER) {
    raft_draw_election_deadline(raft);
  }
}

void raft_set_electable(struct raft *raft, uint64_t now, bool electable) {
  raft_begin_event(raft, now);
  if (raft->failed || raft->electable == electable) {
    return;
  }
  raft->electable = electable;
  if (!electable && raft->role != RAFT_LEADER) {
    raft_become_follower(raft, raft->current_term, raft->leader);
  } else if (electable && raft->role == RAFT_FOLLOWER && raft_is_alone(raft)) {
    raft_draw_election_deadline(raft);
  }
}

int raft_bootstrap(struct raft *raft, uint64_t now, const struct raft_configuration *configuration) {
  raft_begin_event(raft, now);
  if (raft->failed) {
    return RAFT_FAILED;
  }
  const bool fresh = raft_log_last(&raft->log) == 0 && raft->current_term == 0 && raft->membership.n == 0;
  if (!fresh || raft_configuration_check(configuration)) {
    return RAFT_INVALID;
  }
  raft_membership_push(raft, 1, configuration);
  uint64_t index;
  int error = RAFT_INVALID;
  if (raft_votes_itself(raft)) {
    raft->current_term = 1;
    error = raft_append_own(raft, RAFT_ENTRY_CONFIGURATION, (uint32_t)raft_configuration_size(configuration), &index);
  }
  if (error) {
    raft->current_term = 0;
    raft_membership_truncate(raft, 1);
    raft->configuration_changed = false;
    return error;
  }
  raft->hard_state_dirty = true;
  raft->bootstrapping = true;
  raft->election_deadline = raft->now; /* nobody else can win */
  return RAFT_OK;
}

int raft_bootstrap_entry(struct raft *raft, uint8_t type, uint32_t size, uint64_t *index) {
  if (raft->failed) {
    return RAFT_FAILED;
  }
  if (!raft->bootstrapping || type == 0 || type == RAFT_ENTRY_CONFIGURATION) {
    return RAFT_INVALID;
  }
  return raft_append_own(raft, type, size, index);
}

/* ---- Work out ---- */

static void take_writes(struct raft *raft, struct raft_work *work) {
  if (raft->append_first == 0 && raft->truncate_from == 0 && raft->reset_index == 0 && !raft->hard_state_dirty) {
    return;
  }
  work->persist = ++raft->writes_given;
  work->reset_index = raft->reset_index;
  work->reset_term = raft->reset_index ? raft->log.prev_term : 0;
  work->truncate_from = raft->truncate_from;
  work->append_first = raft->append_first;
  work->append_last = raft->append_first ? raft_log_last(&raft->log) : 0;
  work->noop = raft->noop;
  work->configuration_index = raft->configuration_appended;
  work->hard_state = raft->hard_state_dirty;
  if (raft->hard_state_dirty) {
    raft->hard_state_write = work->persist;
  }
  raft_log_write_begun(&raft->log, work->persist, raft_max(work->append_last, work->reset_index), raft->now);
  raft->reset_index = 0;
  raft->append_first = 0;
  raft->truncate_from = 0;
  raft->noop = false;
  raft->configuration_appended = 0;
  raft->hard_state_dirty = false;
}

bool raft_take_work(struct raft *raft, struct raft_work *work) {
  forget_handed_out(raft);
  raft->bootstrapping = false;
  if (raft->role == RAFT_LEADER && raft->replicate) {
    raft_replicate(raft);
  }
  *work = (struct raft_work){
      .term = raft->current_term,
      .voted_for = raft->voted_for,
      .messages = raft->messages,
      .n_messages = raft->n_messages,
      .role = raft->role,
      .leader = raft->leader,
      .hand_over_to = raft->hand_over.to,
      .commit_index = raft->commit_index,
      .reads = raft->answers,
      .n_reads = raft->n_answers,
      .configuration_changed = raft->configuration_changed,
      .role_changed = raft->role != raft->told_role || raft->leader != raft->told_leader ||
                      raft->current_term != raft->told_term,
      .transfers = raft->transfer_events,
      .n_transfers = raft_take_transfers(raft),
      .chunk = raft->chunk,
  };
#ifdef RAFT_MUTANT_VOTE_WITHOUT_PERSIST
  work->voted_for = raft->voted_for == raft->options.id ? raft->voted_for : 0;
#endif
  take_writes(raft, work);
  const bool any = work->persist || work->n_messages || work->n_reads || work->configuration_changed ||
                   work->role_changed || work->n_transfers || work->chunk || raft->commit_index != raft->told_commit ||
                   raft->hand_over.to != raft->told_hand_over;
  raft->handed_out = true;
  raft->chunk = false;
  raft->configuration_changed = false;
  raft->told_role = raft->role;
  raft->told_leader = raft->leader;
  raft->told_term = raft->current_term;
  raft->told_commit = raft->commit_index;
  raft->told_hand_over = raft->hand_over.to;
  return any;
}
