/*
** What must hold at every step. The checker sees everything: it keeps the log that is committed
** anywhere, every entry that ever was in a log, who led which term, and what was told to whom.
*/
#include <inttypes.h>

#include "sim.h"

#define PAYLOAD_BYTES_MAX 700
#define IDENTITY_NOOP UINT64_C(1) << 62
#define IDENTITY_CONFIGURATION UINT64_C(1) << 61

/* ---- Payloads ---- */

static uint32_t payload_size(uint64_t id) {
  const uint64_t mixed = id * UINT64_C(0x9e3779b97f4a7c15);
  /* Most are small; some span sectors. */
  return (uint32_t)(8 + (mixed >> 60 == 0 ? mixed % PAYLOAD_BYTES_MAX : mixed % 64));
}

static uint8_t payload_byte(uint64_t id, uint32_t i) {
  return (uint8_t)(i < 8 ? id >> 8 * i : id * 31 + i);
}

struct raft_payload *sim_payload_new(uint64_t id) {
  struct raft_payload *payload = raft_payload_new(payload_size(id));
  if (!payload) abort();
  for (uint32_t i = 0; i < payload->size; i++) payload->bytes[i] = payload_byte(id, i);
  return payload;
}

uint64_t sim_identity(const struct raft_entry *entry) {
  const struct raft_payload *payload = entry->payload;
  if (entry->type == RAFT_ENTRY_NOOP) return raft_entry_size(entry) == 0 ? IDENTITY_NOOP : 0;
  if (!payload) return 0;
  if (entry->type == RAFT_ENTRY_CONFIGURATION) {
    uint64_t sum = payload->size;
    for (uint32_t i = 0; i < payload->size; i++) sum = sum * 31 + payload->bytes[i];
    return IDENTITY_CONFIGURATION | sum >> 8;
  }
  if (payload->size < 8) return 0;
  uint64_t id = 0;
  for (uint32_t i = 0; i < 8; i++) id |= (uint64_t)payload->bytes[i] << 8 * i;
  if (payload->size != payload_size(id)) return 0;
  for (uint32_t i = 8; i < payload->size; i++)
    if (payload->bytes[i] != payload_byte(id, i)) return 0;
  return id;
}

bool sim_is_configuration(uint64_t identity) {
  return (identity >> 61) == 1;
}

/* ---- Log matching (paper figure 3) ---- */

static struct sim_seen *find_seen(struct sim_checker *checker, uint64_t index, uint64_t term) {
  size_t at = (size_t)((index * UINT64_C(0x9e3779b97f4a7c15) ^ term * UINT64_C(0xc2b2ae3d27d4eb4f)) >> 20);
  for (;; at++) {
    struct sim_seen *seen = &checker->seen[at & (checker->seen_capacity - 1)];
    if (seen->index == 0 || (seen->index == index && seen->term == term)) return seen;
  }
}

static void grow_seen(struct sim_checker *checker) {
  if (checker->n_seen * 2 < checker->seen_capacity) return;
  struct sim_seen *old = checker->seen;
  const size_t n = checker->seen_capacity;
  checker->seen_capacity = n ? 2 * n : 1024;
  checker->seen = sim_new(checker->seen_capacity * sizeof *checker->seen);
  for (size_t i = 0; i < n; i++)
    if (old[i].index > 0) *find_seen(checker, old[i].index, old[i].term) = old[i];
  free(old);
}

/*
** Two entries of one index and term are the same and follow on entries of the same term. By
** induction from index 1 on, two logs that have such an entry are equal up to it.
*/
void sim_check_append(struct sim *sim, const struct sim_node *node, uint64_t index, uint64_t term, uint64_t identity,
                      uint64_t prev_term) {
  grow_seen(&sim->checker);
  if (identity == 0) sim_fail(sim, "node %" PRIu64 ": the payload of entry %" PRIu64 " is damaged", node->id, index);
  if (term < prev_term || term == 0)
    sim_fail(sim, "node %" PRIu64 ": entry %" PRIu64 " of term %" PRIu64 " follows one of term %" PRIu64, node->id,
             index, term, prev_term);
  struct sim_seen *seen = find_seen(&sim->checker, index, term);
  if (seen->index == 0) {
    *seen = (struct sim_seen){.index = index, .term = term, .identity = identity, .prev_term = prev_term};
    sim->checker.n_seen++;
  } else if (seen->identity != identity || seen->prev_term != prev_term) {
    sim_fail(sim,
             "log matching: node %" PRIu64 " has another entry %" PRIu64 " of term %" PRIu64 " than was seen before",
             node->id, index, term);
  }
}

/* ---- Leaders ---- */

/* All that was committed in earlier terms is in the log of a new leader. */
static void check_completeness(struct sim *sim, const struct sim_node *node) {
  const struct sim_checker *checker = &sim->checker;
  for (size_t i = 0; i < checker->n_committed; i++) {
    const struct sim_committed *committed = &checker->committed[i];
    if (committed->by_term >= node->term) return;
    const uint64_t term = raft_term_at(node->raft, i + 1);
    if (term == committed->term) continue;
    if (term == 0 && raft_fate(node->raft, committed->term, i + 1) == RAFT_FATE_COMMITTED) continue; /* compacted */
    sim_fail(sim,
             "leader completeness: node %" PRIu64 " leads term %" PRIu64 " without entry %zu of term %" PRIu64
             ", which was committed in term %" PRIu64,
             node->id, node->term, i + 1, committed->term, committed->by_term);
    return;
  }
}

/* Does the member, by this incarnation, vote for that node? */
static bool has_promised(const struct sim *sim, const struct raft_member *member, const struct sim_node *node) {
  const struct sim_checker *checker = &sim->checker;
  if (member->id == node->id) return memcmp(&member->incarnation, &node->incarnation, sizeof node->incarnation) == 0;
  for (size_t i = checker->n_votes; i-- > 0;) {
    const struct sim_vote *vote = &checker->votes[i];
    if (vote->term == node->term && vote->candidate == node->id && vote->slot == member->id - 1 &&
        memcmp(&vote->incarnation, &member->incarnation, sizeof vote->incarnation) == 0)
      return true;
  }
  return false;
}

/* Those that voted for it, as who they are in its own configuration, are a majority there. */
static void check_election(struct sim *sim, const struct sim_node *node) {
  const struct raft_configuration *configuration = raft_get_configuration(node->raft, NULL);
  bool has[RAFT_MEMBERS_MAX] = {false};
  for (uint32_t i = 0; i < configuration->n_members; i++) has[i] = has_promised(sim, &configuration->members[i], node);
  if (!sim_is_quorum(configuration, has))
    sim_fail(sim, "node %" PRIu64 " leads term %" PRIu64 " without the votes of a majority", node->id, node->term);
}

void sim_check_role(struct sim *sim, const struct sim_node *node) {
  struct sim_checker *checker = &sim->checker;
  if (node->role != RAFT_LEADER) return;
  for (size_t i = checker->n_leaders; i-- > 0;) {
    const struct sim_leader *leader = &checker->leaders[i];
    if (leader->term != node->term) continue;
    if (leader->slot != node->slot || leader->boot != node->boot)
      sim_fail(sim, "two leaders in term %" PRIu64 ": node %" PRIu64 " and node %" PRIu64 "%s", node->term,
               sim->nodes[leader->slot].id, node->id, leader->slot == node->slot ? " after a restart" : "");
    return;
  }
  checker->leaders = sim_grow(checker->leaders, &checker->leaders_capacity, checker->n_leaders + 1,
                              sizeof *checker->leaders);
  checker->leaders[checker->n_leaders++] = (struct sim_leader){
      .term = node->term, .slot = node->slot, .boot = node->boot};
  sim->counters[SIM_LEADER]++;
  sim->counters[SIM_REJOINED] += node->is_new;
  check_election(sim, node);
  check_completeness(sim, node);
}

/* ---- What leaves a node ---- */

static bool is_zero(const struct raft_uuid *uuid) {
  static const struct raft_uuid none;
  return memcmp(uuid, &none, sizeof none) == 0;
}

static void check_vote(struct sim *sim, const struct sim_node *node, uint64_t term, uint64_t candidate) {
  struct sim_checker *checker = &sim->checker;
  for (size_t i = checker->n_votes; i-- > 0;) {
    const struct sim_vote *vote = &checker->votes[i];
    if (vote->slot != node->slot || vote->term != term ||
        memcmp(&vote->incarnation, &node->incarnation, sizeof vote->incarnation) != 0)
      continue;
    if (vote->candidate != candidate)
      sim_fail(sim, "node %" PRIu64 " votes twice in term %" PRIu64 ": for node %" PRIu64 " and for node %" PRIu64,
               node->id, term, vote->candidate, candidate);
    return;
  }
  checker->votes = sim_grow(checker->votes, &checker->votes_capacity, checker->n_votes + 1, sizeof *checker->votes);
  checker->votes[checker->n_votes++] = (struct sim_vote){
      .term = term, .candidate = candidate, .slot = node->slot, .incarnation = node->incarnation};
}

void sim_check_sent(struct sim *sim, const struct sim_node *node, const struct raft_message *message) {
  if (node->has_failed) sim_fail(sim, "node %" PRIu64 " speaks after its disk failed", node->id);
  sim->counters[SIM_TOLD] += message->type == RAFT_VOTE && message->hand_over;
  if (message->type == RAFT_VOTE) check_vote(sim, node, message->term, node->id);
  if (message->type == RAFT_VOTE_RESULT && !message->reject) check_vote(sim, node, message->term, message->to);
  if (!is_zero(&message->from_incarnation) &&
      memcmp(&message->from_incarnation, &node->incarnation, sizeof node->incarnation) != 0)
    sim_fail(sim, "node %" PRIu64 " speaks as an incarnation that it is not", node->id);
}

/* ---- The committed log ---- */

static bool entry_identity(struct sim *sim, struct sim_node *node, uint64_t index, uint64_t term, uint64_t *identity) {
  struct raft_entry entry;
  if (!sim_node_entry(sim, node, index, &entry)) return false;
  *identity = sim_identity(&entry);
  if (entry.term != term || entry.index != index || *identity == 0)
    sim_fail(sim, "node %" PRIu64 ": the store has another entry %" PRIu64 " than the core", node->id, index);
  raft_payload_unref(entry.payload);
  return !sim->has_failed;
}

static void check_acknowledged(struct sim *sim, uint64_t index, uint64_t term, uint64_t identity) {
  if (identity == 0 || identity > sim->workload.n_operations) return;
  const struct sim_operation *operation = &sim->workload.operations[identity - 1];
  if (operation->index != index || operation->term != term)
    sim_fail(sim,
             "entry of proposal %" PRIu64 " is committed as %" PRIu64 "/%" PRIu64 ", proposed as %" PRIu64 "/%" PRIu64,
             identity, index, term, operation->index, operation->term);
  if (operation->told == RAFT_FATE_LOST)
    sim_fail(sim, "proposal %" PRIu64 " was told lost and is committed as entry %" PRIu64, identity, index);
}

/*
** What is committed is on the disks of a majority, by the configuration that was in force: those who acknowledged it can
** elect nobody who lacks it. A folder that was lost since then is taken for one that had it.
*/
static void check_durable(struct sim *sim, const struct sim_node *node, uint64_t index, uint64_t term) {
  uint64_t at;
  const struct raft_configuration *configuration = raft_get_configuration_at(node->raft, node->decided_by, &at);
  bool has[RAFT_MEMBERS_MAX] = {false};
  for (uint32_t i = 0; configuration && i < configuration->n_members; i++) {
    const struct raft_member *member = &configuration->members[i];
    const struct sim_node *holder = &sim->nodes[member->id - 1];
    has[i] = memcmp(&holder->incarnation, &member->incarnation, sizeof member->incarnation) != 0 ||
             (holder->durable.n >= index && holder->durable.marks[index - 1].term == term);
  }
  if (!configuration || !sim_is_quorum(configuration, has))
    sim_fail(sim, "entry %" PRIu64 " of term %" PRIu64 " is committed, but not on the disks of a majority", index,
             term);
}

static void note_configuration(struct sim *sim, uint64_t index) {
  const struct sim_configuration *committed = sim_committed_configuration(sim, index);
  bool is_joint = false;
  for (uint32_t i = 0; committed && i < committed->value.n_members; i++)
    is_joint = is_joint || (committed->value.members[i].roles & RAFT_VOTER_OLD);
  sim->counters[SIM_JOINT] += is_joint;
}

void sim_check_commit(struct sim *sim, struct sim_node *node, uint64_t commit_index) {
  struct sim_checker *checker = &sim->checker;
  SIM_TRACE(sim, "node %" PRIu64 " has committed up to %" PRIu64, node->id, commit_index);
  if (commit_index < node->commit_index || commit_index > node->log.n) {
    sim_fail(sim, "node %" PRIu64 ": commit index %" PRIu64 " after %" PRIu64 ", its log ends at %zu", node->id,
             commit_index, node->commit_index, node->log.n);
    return;
  }
  for (uint64_t index = node->commit_index + 1; index <= commit_index; index++) {
    const uint64_t term = raft_term_at(node->raft, index);
    uint64_t identity;
    if (!entry_identity(sim, node, index, term, &identity)) return;
    if (index > checker->n_committed) {
      checker->committed = sim_grow(checker->committed, &checker->committed_capacity, checker->n_committed + 1,
                                    sizeof *checker->committed);
      const uint64_t state = index == 1 ? 0 : checker->committed[index - 2].state;
      checker->committed[checker->n_committed++] = (struct sim_committed){
          .term = term,
          .identity = identity,
          .by_term = node->term,
          .state = sim_state_after(state, index, term, identity)};
      check_acknowledged(sim, index, term, identity);
      check_durable(sim, node, index, term);
      if (sim_is_configuration(identity)) note_configuration(sim, index);
    } else if (checker->committed[index - 1].term != term || checker->committed[index - 1].identity != identity) {
      sim_fail(sim,
               "state-machine safety: node %" PRIu64 " has committed entry %" PRIu64 " of term %" PRIu64
               ", elsewhere it is of term %" PRIu64,
               node->id, index, term, checker->committed[index - 1].term);
    }
    if (sim->has_failed) return;
    node->state = sim_state_after(node->state, index, term, identity);
  }
  node->commit_index = commit_index;
  if (commit_index > 0 && node->state != checker->committed[commit_index - 1].state)
    sim_fail(sim, "state-machine safety: node %" PRIu64 " has another state after entry %" PRIu64, node->id,
             commit_index);
}

void sim_check_install(struct sim *sim, struct sim_node *node) {
  const struct sim_checker *checker = &sim->checker;
  const uint64_t index = node->snapshot.index;
  if (index > checker->n_committed || checker->committed[index - 1].state != node->snapshot.state ||
      checker->committed[index - 1].term != node->snapshot.term) {
    sim_fail(sim, "node %" PRIu64 " has a snapshot of what was never committed: %" PRIu64, node->id, index);
    return;
  }
  const struct sim_configuration *configuration = sim_committed_configuration(sim, index);
  if (!configuration || configuration->index != node->snapshot.configuration_index ||
      raft_configuration_size(&configuration->value) != raft_configuration_size(&node->snapshot.configuration))
    sim_fail(sim, "node %" PRIu64 ": snapshot %" PRIu64 " has another configuration than was in force there", node->id,
             index);
  node->commit_index = index;
  node->state = node->snapshot.state;
}

/* ---- What clients were told ---- */

void sim_check_fate(struct sim *sim, const struct sim_node *node, uint64_t id, enum raft_fate fate) {
  struct sim_operation *operation = &sim->workload.operations[id - 1];
  const struct sim_checker *checker = &sim->checker;
  if (fate == RAFT_FATE_PENDING) {
    if (operation->index <= node->commit_index)
      sim_fail(sim,
               "node %" PRIu64 " knows no fate of proposal %" PRIu64 " at %" PRIu64
               ", but has committed up to %" PRIu64,
               node->id, id, operation->index, node->commit_index);
    return;
  }
  const bool is_known = operation->index <= checker->n_committed;
  const bool is_committed = is_known && checker->committed[operation->index - 1].term == operation->term;
  if (fate == RAFT_FATE_COMMITTED && (!is_committed || checker->committed[operation->index - 1].identity != id))
    sim_fail(sim,
             "node %" PRIu64 " tells that proposal %" PRIu64 " is committed as %" PRIu64 "/%" PRIu64
             ", which it is not",
             node->id, id, operation->index, operation->term);
  if (fate == RAFT_FATE_LOST && is_committed)
    sim_fail(sim, "node %" PRIu64 " tells that proposal %" PRIu64 " is lost, which is committed", node->id, id);
  /* Lost for certain before anything is committed there: behind an entry of a later term. */
  const uint64_t latest = checker->n_committed > 0 ? checker->committed[checker->n_committed - 1].term : 0;
  if (fate == RAFT_FATE_LOST && !is_known && latest <= operation->term)
    sim_fail(sim,
             "node %" PRIu64 " tells that proposal %" PRIu64 " is lost while nothing is committed at %" PRIu64
             ", nor anything of a later term",
             node->id, id, operation->index);
  if (operation->told != RAFT_FATE_PENDING && operation->told != fate)
    sim_fail(sim, "node %" PRIu64 " tells another fate of proposal %" PRIu64 " than was told before", node->id, id);
  operation->told = fate;
}

/*
** Linearizable: what was committed anywhere when the read began is behind the index that it gets.
** That is more than clients know of, and a right core gives it: a leader that may answer knows of
** everything that any leader up to its own term has committed.
*/
void sim_check_read(struct sim *sim, const struct sim_node *node, const struct raft_read_answer *answer) {
  struct sim_read *read = answer->context >= 1 && answer->context <= sim->workload.n_reads
                              ? &sim->workload.reads[answer->context - 1]
                              : NULL;
  if (!read || read->is_done || read->slot != node->slot || read->boot != node->boot) {
    sim_fail(sim, "node %" PRIu64 " answers read %" PRIu64 ", which nobody waits for", node->id, answer->context);
    return;
  }
  read->is_done = true;
  if (answer->error != RAFT_OK) {
    sim->counters[SIM_READ_REFUSED]++;
    return;
  }
  SIM_TRACE(sim, "node %" PRIu64 " answers read %" PRIu64 ": index %" PRIu64, node->id, answer->context, answer->index);
  if (answer->index < read->bound)
    sim_fail(sim,
             "stale read: node %" PRIu64 " answers a %s read with index %" PRIu64 ", but %" PRIu64
             " was committed when it began",
             node->id, read->level == RAFT_READ_LEASE ? "lease" : "quorum", answer->index, read->bound);
  if (node->role != RAFT_LEADER)
    sim->counters[SIM_FOLLOWER_READ]++;
  else
    sim->counters[read->level == RAFT_READ_LEASE ? SIM_LEASE_READ : SIM_QUORUM_READ]++;
}

/* ---- After a start ---- */

/* An entry found must be the one that was durable, or one of the flush that was under way. */
static bool is_expected(const struct sim_node *node, uint64_t index, uint64_t term) {
  return (index <= node->durable.n && node->durable.marks[index - 1].term == term) ||
         (index <= node->issued.n && node->issued.marks[index - 1].term == term);
}

void sim_check_recovered(struct sim *sim, struct sim_node *node, const struct raft_store_found *found,
                         const struct raft_hard_state *state) {
  uint64_t safe = 0; /* entries that were durable and that no flush was taking back */
  while (safe < node->durable.n && safe < node->issued.n &&
         memcmp(&node->durable.marks[safe], &node->issued.marks[safe], sizeof *node->durable.marks) == 0)
    safe++;
  if (found->first_index > node->snapshot.index + 1)
    sim_fail(sim, "node %" PRIu64 ": its log begins at %" PRIu64 ", its snapshot ends at %" PRIu64, node->id,
             found->first_index, node->snapshot.index);
  if (found->last_index < safe)
    sim_fail(sim, "node %" PRIu64 ": entries up to %" PRIu64 " were durable, found up to %" PRIu64, node->id, safe,
             found->last_index);
  for (uint64_t index = found->first_index; index <= found->last_index && !sim->has_failed; index++)
    if (!is_expected(node, index, found->entries[index - found->first_index].term))
      sim_fail(sim, "node %" PRIu64 ": entry %" PRIu64 " on disk was never written so", node->id, index);
  const struct raft_hard_state *durable = &node->durable_state, *issued = &node->issued_state;
  const bool is_durable = state->term == durable->term && state->voted_for == durable->voted_for;
  const bool is_issued = state->term == issued->term && state->voted_for == issued->voted_for;
  if (!is_durable && !is_issued)
    sim_fail(sim,
             "node %" PRIu64 ": found term %" PRIu64 " and vote %" PRIu64 ", durable were %" PRIu64 " and %" PRIu64,
             node->id, state->term, state->voted_for, durable->term, durable->voted_for);
  if (state->node != 0 && memcmp(&state->incarnation, &node->incarnation, sizeof state->incarnation) != 0)
    sim_fail(sim, "node %" PRIu64 ": found another incarnation on disk", node->id);
}

/* ---- The end ---- */

static void check_end_of_node(struct sim *sim, struct sim_node *node) {
  const struct sim_checker *checker = &sim->checker;
  if (node->log.n != checker->n_committed) {
    sim_fail(sim, "node %" PRIu64 " has %zu entries at the end, %zu are committed", node->id, node->log.n,
             checker->n_committed);
    return;
  }
  for (size_t i = 0; i < checker->n_committed; i++)
    if (node->log.marks[i].identity != checker->committed[i].identity)
      sim_fail(sim, "node %" PRIu64 ": entry %zu differs at the end", node->id, i + 1);
  for (size_t i = 0; i < sim->workload.n_operations && !sim->has_failed; i++) {
    const struct sim_operation *operation = &sim->workload.operations[i];
    if (operation->index == 0) continue;
    sim_check_fate(sim, node, i + 1, raft_fate(node->raft, operation->term, operation->index));
  }
}

void sim_check_end(struct sim *sim) {
  const struct sim_checker *checker = &sim->checker;
  uint8_t *times = sim_new(sim->workload.n_operations + 1);
  for (size_t i = 0; i < checker->n_committed; i++) {
    const uint64_t id = checker->committed[i].identity;
    if (id > sim->workload.n_operations) continue;
    if (++times[id] > 1) sim_fail(sim, "proposal %" PRIu64 " is committed twice", id);
  }
  for (size_t i = 0; i < sim->workload.n_operations; i++)
    if (sim->workload.operations[i].state == SIM_OP_COMMITTED && times[i + 1] != 1)
      sim_fail(sim, "proposal %zu was acknowledged and is nowhere", i + 1);
  free(times);
  for (uint32_t i = 0; i < sim->n_nodes && !sim->has_failed; i++)
    if (sim_is_member(sim, &sim->nodes[i])) check_end_of_node(sim, &sim->nodes[i]);
}
