/*
** Linearizable reads (thesis 6.4). ReadIndex: the leader notes its commit index and waits until a
** majority has answered a round sent after that; then it was the leader, and nobody had committed
** more. All reads that come while a round is under way share the next one. Lease: a majority has
** promised, by answering a round, to elect nobody for an election time-out; counted from the
** sending of that round, less what clocks may differ, no round is needed.
**
** Neither before the term's first commit: until then the leader does not know what is committed.
*/
#include <assert.h>
#include <string.h>

#include "core.h"

uint64_t raft_lease_until(const struct raft *raft) {
  uint64_t acked[RAFT_MEMBERS_MAX] = {0};
  const struct raft_configuration *members = raft_members(raft);
  const int own = raft_own_place(raft);
  /* One that leaves has no lease: the only voter that is left makes no promise to itself when it starts (election.c). */
  if (raft->role != RAFT_LEADER || !raft_votes_itself(raft) || !raft_may_have_lease(raft)) {
    return 0;
  }
#ifdef RAFT_MUTANT_LEASE_WITHOUT_CHECK_QUORUM
  return raft_time_add(raft->now, raft->options.election_ns);
#endif
  for (uint32_t i = 0; i < members->n_members; i++) {
    acked[i] = (int)i == own ? raft->now : raft->progress[i].acked_at;
  }
  const uint64_t since = raft_quorum_value(members, acked);
  /* Their clocks may run faster than ours by this much. */
  const uint64_t length = raft->options.election_ns * 1000 / (1000 + raft->options.drift_permille);
  const uint64_t until = since == 0 ? 0 : raft_time_add(since, length);
  return until > raft->now ? until : 0;
}

static bool term_has_committed(const struct raft *raft) {
  return raft->commit_index >= raft->term_index;
}

/* ---- Answers ---- */

static void answer_caller(struct raft *raft, uint64_t context, uint64_t index, int error) {
  assert(raft->n_answers < RAFT_READS_MAX);
  raft->answers[raft->n_answers++] = (struct raft_read_answer){.context = context, .index = index, .error = error};
}

static void answer(struct raft *raft, const struct raft_read *read, int error) {
  if (read->asker == 0) {
    answer_caller(raft, read->context, error ? 0 : read->index, error);
    return;
  }
  struct raft_message *result = raft_send(raft, RAFT_READ_INDEX_RESULT, read->asker, &read->incarnation, 0);
  result->context = read->context;
  result->index = error ? 0 : read->index;
  result->reject = error != 0;
}

void raft_fail_reads(struct raft *raft) {
  for (uint32_t i = 0; i < raft->n_reads; i++) {
    answer(raft, &raft->reads[i], RAFT_NOT_LEADER);
  }
  raft->n_reads = 0;
  raft->read_round = 0;
}

/* Reads are in the order of their time. */
static void forget_first_reads(struct raft *raft, uint32_t n) {
  raft->n_reads -= n;
  memmove(raft->reads, raft->reads + n, raft->n_reads * sizeof raft->reads[0]);
}

void raft_expire_reads(struct raft *raft) {
  uint32_t n = 0;
  while (n < raft->n_reads && raft->now - raft->reads[n].since >= raft->options.election_ns) {
    answer(raft, &raft->reads[n], RAFT_NOT_LEADER);
    n++;
  }
  if (n > 0) {
    forget_first_reads(raft, n);
  }
}

uint64_t raft_reads_next_tick(const struct raft *raft) {
  return raft->n_reads == 0 ? RAFT_NEVER : raft_time_add(raft->reads[0].since, raft->options.election_ns);
}

/* ---- The leader ---- */

/* The rounds that a majority has answered. */
static uint64_t quorum_round(const struct raft *raft) {
  uint64_t rounds[RAFT_MEMBERS_MAX] = {0};
  const struct raft_configuration *members = raft_members(raft);
  const int own = raft_own_place(raft);
  for (uint32_t i = 0; i < members->n_members; i++) {
    rounds[i] = (int)i == own ? raft->round : raft->progress[i].acked_round;
  }
  return raft_quorum_value(members, rounds);
}

/* Sends a round for all reads that have none, unless one is under way. */
static void begin_read_round(struct raft *raft) {
  if (raft->n_reads == 0 || raft->read_round != 0 || !term_has_committed(raft)) {
    return;
  }
  raft_send_heartbeats(raft);
  raft->read_round = raft->round;
  for (uint32_t i = 0; i < raft->n_reads; i++) {
    if (raft->reads[i].round == 0) {
      raft->reads[i].round = raft->round;
      raft->reads[i].index = raft->commit_index;
    }
  }
}

void raft_advance_reads(struct raft *raft) {
  if (raft->role != RAFT_LEADER) {
    return;
  }
  begin_read_round(raft);
  /* At most two passes: the second one is for those that waited for this round to end. */
  while (raft->read_round != 0 && quorum_round(raft) >= raft->read_round) {
    uint32_t n = 0;
    while (n < raft->n_reads && raft->reads[n].round != 0) {
      answer(raft, &raft->reads[n], RAFT_OK);
      n++;
    }
    forget_first_reads(raft, n);
    raft->read_round = 0;
    begin_read_round(raft);
  }
}

static bool reads_have_room(const struct raft *raft) {
  return raft->n_reads + raft->n_answers < RAFT_READS_MAX;
}

static struct raft_read *add_read(struct raft *raft, uint64_t context) {
  struct raft_read *read = &raft->reads[raft->n_reads++];
  *read = (struct raft_read){.context = context, .since = raft->now};
  return read;
}

int raft_begin_read(struct raft *raft, uint64_t context, enum raft_read_level level) {
  if (!reads_have_room(raft)) {
    return RAFT_FULL;
  }
  if (raft->role == RAFT_LEADER) {
    if (level == RAFT_READ_LEASE && term_has_committed(raft) && raft_lease_until(raft) > raft->now) {
      answer_caller(raft, context, raft->commit_index, RAFT_OK);
    } else {
      add_read(raft, context);
      raft_advance_reads(raft);
    }
    return RAFT_OK;
  }
  if (raft->leader == 0) {
    answer_caller(raft, context, 0, RAFT_NOT_LEADER);
    return RAFT_OK;
  }
  add_read(raft, context);
  raft_send(raft, RAFT_READ_INDEX, raft->leader, &raft->leader_incarnation, 0)->context = context;
  return RAFT_OK;
}

void raft_receive_read_index(struct raft *raft, const struct raft_message *message) {
  if (raft->role != RAFT_LEADER || message->term != raft->current_term || !reads_have_room(raft)) {
    const struct raft_read refused = {
        .context = message->context, .asker = message->from, .incarnation = message->from_incarnation};
    answer(raft, &refused, RAFT_NOT_LEADER);
    return;
  }
  struct raft_read *read = add_read(raft, message->context);
  read->asker = message->from;
  read->incarnation = message->from_incarnation;
  raft_advance_reads(raft);
}

/* ---- The follower ---- */

void raft_receive_read_index_result(struct raft *raft, const struct raft_message *message) {
  if (raft->role != RAFT_FOLLOWER || message->from != raft->leader) {
    return;
  }
  for (uint32_t i = 0; i < raft->n_reads; i++) {
    struct raft_read read = raft->reads[i];
    if (read.context != message->context) {
      continue;
    }
    raft->n_reads--;
    memmove(&raft->reads[i], &raft->reads[i + 1], (raft->n_reads - i) * sizeof raft->reads[0]);
    read.index = message->index;
    answer(raft, &read, message->reject ? RAFT_NOT_LEADER : RAFT_OK);
    return;
  }
}
