/*
** Who is in the cluster, as the simulation sees it; and the administrator, who changes that all the time: adds nodes,
** promotes, demotes and removes them, gives them other addresses, brings back those that have lost their folders as new
** members, and has leadership handed over.
**
** Of a configuration that may still decide something (live: the last committed one, and those behind it in any log) so
** many voters keep their folders that it can go on: what a cluster cannot survive is not asked of it.
*/
#include <inttypes.h>

#include "sim.h"

#define CHANGES_MAX 3

/* ---- Configurations ---- */

static struct sim_node *node_of(struct sim *sim, const struct raft_member *member) {
  struct sim_node *node = member->id <= sim->n_nodes ? &sim->nodes[member->id - 1] : NULL;
  return node && memcmp(&node->incarnation, &member->incarnation, sizeof node->incarnation) == 0 ? node : NULL;
}

bool sim_is_quorum(const struct raft_configuration *configuration, const bool has[RAFT_MEMBERS_MAX]) {
  static const uint8_t sets[] = {RAFT_VOTER_NEW, RAFT_VOTER_OLD};
  for (int s = 0; s < 2; s++) {
    uint32_t n = 0, n_has = 0;
    for (uint32_t i = 0; i < configuration->n_members; i++) {
      const bool is_in = configuration->members[i].roles & sets[s];
      n += is_in;
      n_has += is_in && has[i];
    }
    if (n > 0 && n_has < n / 2 + 1) return false;
  }
  return true;
}

static bool is_in_log(const struct sim_log *log, const struct sim_configuration *configuration) {
  return log->n >= configuration->index && log->marks[configuration->index - 1].term == configuration->term;
}

static bool is_in_any_log(const struct sim *sim, const struct sim_configuration *configuration) {
  for (uint32_t i = 0; i < sim->n_nodes; i++) {
    const struct sim_node *node = &sim->nodes[i];
    if (is_in_log(&node->log, configuration) || is_in_log(&node->issued, configuration) ||
        is_in_log(&node->durable, configuration))
      return true;
  }
  return false;
}

const struct sim_configuration *sim_committed_configuration(const struct sim *sim, uint64_t index) {
  const struct sim_checker *checker = &sim->checker;
  const struct sim_configuration *found = NULL;
  for (size_t i = 0; i < checker->n_configurations; i++) {
    const struct sim_configuration *at = checker->configurations[i];
    if (at->index <= index && at->index <= checker->n_committed && checker->committed[at->index - 1].term == at->term &&
        (!found || at->index > found->index))
      found = at;
  }
  return found;
}

/* Calls `check` for each that may still decide; stops at the first that says no. */
static bool all_live(struct sim *sim, bool (*check)(struct sim *, const struct raft_configuration *, void *),
                     void *ctx) {
  const struct sim_checker *checker = &sim->checker;
  const struct sim_configuration *committed = sim_committed_configuration(sim, UINT64_MAX);
  if (!check(sim, committed ? &committed->value : &sim->configuration, ctx)) return false;
  for (size_t i = 0; i < checker->n_configurations; i++) {
    const struct sim_configuration *at = checker->configurations[i];
    const bool is_later = at->index > checker->n_committed;
    if (is_later && is_in_any_log(sim, at) && !check(sim, &at->value, ctx)) return false;
  }
  return true;
}

bool sim_is_member(const struct sim *sim, const struct sim_node *node) {
  const struct sim_configuration *committed = sim_committed_configuration(sim, UINT64_MAX);
  const struct raft_configuration *configuration = committed ? &committed->value : &sim->configuration;
  const struct raft_member *member = raft_configuration_find(configuration, node->id);
  return member && memcmp(&member->incarnation, &node->incarnation, sizeof node->incarnation) == 0;
}

bool sim_is_settled(struct sim *sim, const struct sim_node *leader) {
  const struct sim_configuration *committed = sim_committed_configuration(sim, UINT64_MAX);
  struct raft_status status;
  raft_get_status(leader->raft, &status);
  if (status.hand_over_to != 0 || !sim_is_member(sim, leader)) return false;
  for (uint32_t i = 0; committed && i < committed->value.n_members; i++) {
    const struct raft_member *member = &committed->value.members[i];
    if (member->roles & RAFT_VOTER_OLD) return false;
    if (member->id == leader->id && !(member->roles & RAFT_VOTER_NEW)) return false;
    if ((member->roles & RAFT_JOINING) && node_of(sim, member)) return false;
  }
  return true;
}

/* ---- What must hold ---- */

/* Can two majorities decide without each other? Tries all ways to take sides. */
static bool overlap(const struct raft_configuration *a, const struct raft_configuration *b) {
  for (uint32_t side = 0; side < 1u << SIM_NODES_MAX; side++) {
    bool has_a[RAFT_MEMBERS_MAX] = {false}, has_b[RAFT_MEMBERS_MAX] = {false};
    for (uint32_t i = 0; i < a->n_members; i++) has_a[i] = side >> (a->members[i].id - 1) & 1;
    for (uint32_t i = 0; i < b->n_members; i++) has_b[i] = !(side >> (b->members[i].id - 1) & 1);
    if (sim_is_quorum(a, has_a) && sim_is_quorum(b, has_b)) return false;
  }
  return true;
}

void sim_check_configuration(struct sim *sim, const struct sim_node *node, const struct raft_entry *entry) {
  struct sim_checker *checker = &sim->checker;
  for (size_t i = checker->n_configurations; i-- > 0;)
    if (checker->configurations[i]->index == entry->index && checker->configurations[i]->term == entry->term) return;
  struct sim_configuration *found = sim_new(sizeof *found);
  found->index = entry->index;
  found->term = entry->term;
  checker->configurations = sim_grow(checker->configurations, &checker->configurations_capacity,
                                     checker->n_configurations + 1, sizeof(void *));
  checker->configurations[checker->n_configurations++] = found;
  sim->counters[SIM_CONFIGURATION]++;
  if (raft_configuration_decode(entry->payload->bytes, entry->payload->size, &found->value) != RAFT_OK) {
    sim_fail(sim, "node %" PRIu64 ": configuration %" PRIu64 " makes no sense", node->id, entry->index);
    return;
  }
  /* The one before it in this log. */
  const struct sim_configuration *before = NULL;
  for (size_t i = 0; i < checker->n_configurations; i++) {
    const struct sim_configuration *at = checker->configurations[i];
    if (at->index < entry->index && is_in_log(&node->log, at) && (!before || at->index > before->index)) before = at;
  }
  if (before && !overlap(&before->value, &found->value))
    sim_fail(sim, "configurations %" PRIu64 " and %" PRIu64 " of node %" PRIu64 " can decide without each other",
             before->index, found->index, node->id);
}

/* ---- What a cluster survives ---- */

/* Voters that keep their folders are a majority, even if all members that have lost theirs become voters just now. */
static bool can_lose(struct sim *sim, const struct raft_configuration *configuration, const struct sim_node *lost) {
  static const uint8_t sets[] = {RAFT_VOTER_NEW, RAFT_VOTER_OLD};
  for (int s = 0; s < 2; s++) {
    uint32_t n = 0, intact = 0;
    bool is_empty = true;
    for (uint32_t i = 0; i < configuration->n_members; i++) {
      const struct raft_member *member = &configuration->members[i];
      const struct sim_node *node = node_of(sim, member);
      const bool is_lost = !node || node == lost, is_in = member->roles & sets[s];
      n += is_in || is_lost;
      intact += is_in && !is_lost;
      is_empty = is_empty && !is_in;
    }
    if (!is_empty && intact < n / 2 + 1) return false;
  }
  return true;
}

static bool can_lose_node(struct sim *sim, const struct raft_configuration *configuration, void *ctx) {
  return can_lose(sim, configuration, ctx);
}

bool sim_may_wipe(struct sim *sim, struct sim_node *node) {
  return sim->checker.n_committed >= 2 && all_live(sim, can_lose_node, node);
}

static bool has_quorum(struct sim *sim, const struct raft_configuration *configuration, void *ctx) {
  const bool *chosen = ctx;
  bool has[RAFT_MEMBERS_MAX] = {false};
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    const struct sim_node *node = node_of(sim, &configuration->members[i]);
    has[i] = node && chosen[node->slot];
    /* Who may become a voter by itself raises what a majority is. */
    if (node && (configuration->members[i].roles & RAFT_JOINING) && !has[i]) return false;
  }
  return sim_is_quorum(configuration, has);
}

void sim_choose_majority(struct sim *sim, bool chosen[SIM_NODES_MAX]) {
  uint32_t slots[SIM_NODES_MAX] = {0};
  const uint32_t n = sim->n_nodes, more = (uint32_t)sim_random_below(&sim->random, n + 1);
  memset(chosen, 0, SIM_NODES_MAX * sizeof chosen[0]);
  for (uint32_t i = 0; i < n; i++) {
    const uint32_t j = (uint32_t)sim_random_below(&sim->random, i + 1);
    slots[i] = slots[j];
    slots[j] = i;
  }
  /* While nothing is committed only the node that forms the cluster knows of it. */
  chosen[0] = sim->checker.n_committed == 0;
  for (uint32_t i = 0; i < n && (i < more || !all_live(sim, has_quorum, chosen)); i++) chosen[slots[i]] = true;
  if (!all_live(sim, has_quorum, chosen)) sim_fail(sim, "the simulation has taken a quorum away for good");
}

/* ---- The administrator ---- */

static struct raft_change change_of(enum raft_change_type type, const struct sim_node *node) {
  return (struct raft_change){.type = type, .id = node->id, .incarnation = node->incarnation};
}

uint32_t sim_members_voters(const struct raft_configuration *configuration) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < configuration->n_members; i++) n += (configuration->members[i].roles & RAFT_VOTER_NEW) != 0;
  return n;
}

static struct raft_change changed_address(struct sim *sim, const struct sim_node *node) {
  struct raft_change change = change_of(RAFT_CHANGE_ADDRESS, node);
  snprintf(change.address, sizeof change.address, "node%" PRIu64 ":%u", node->id,
           (unsigned)sim_random_between(&sim->random, 1000, 9000));
  return change;
}

/* Something that fits this node; the number of voters tends to what the administrator wants now. */
static struct raft_change draw_change(struct sim *sim, const struct raft_configuration *now,
                                      const struct sim_node *node) {
  const struct raft_member *member = raft_configuration_find(now, node->id);
  const bool grows = sim_members_voters(now) < sim->members.wanted;
  const bool against = sim_random_chance(&sim->random, 150);
  if (!member) {
    struct raft_change change = change_of(RAFT_CHANGE_ADD, node);
    snprintf(change.address, sizeof change.address, "node%" PRIu64 ":7400", node->id);
    change.joining = sim_random_chance(&sim->random, 700);
    return change;
  }
  if (memcmp(&member->incarnation, &node->incarnation, sizeof node->incarnation) != 0)
    return change_of(RAFT_CHANGE_REMOVE, node);
  if (sim_random_chance(&sim->random, 100)) return changed_address(sim, node);
  if (member->roles & RAFT_VOTER_NEW) {
    if (grows != against) return changed_address(sim, node);
    return change_of(sim_random_chance(&sim->random, 300) ? RAFT_CHANGE_DEMOTE : RAFT_CHANGE_REMOVE, node);
  }
  return change_of(grows != against ? RAFT_CHANGE_PROMOTE : RAFT_CHANGE_REMOVE, node);
}

/* What it would be, roughly: enough to see whether it could go on. */
static void apply(struct raft_configuration *configuration, const struct raft_change *change) {
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    struct raft_member *member = &configuration->members[i];
    if (member->id != change->id) continue;
    if (change->type == RAFT_CHANGE_PROMOTE) member->roles = RAFT_VOTER_NEW;
    if (change->type == RAFT_CHANGE_DEMOTE) member->roles = RAFT_LEARNER;
    if (change->type != RAFT_CHANGE_REMOVE) return;
    *member = configuration->members[--configuration->n_members];
    return;
  }
}

void sim_members_change(struct sim *sim, struct sim_node *leader) {
  struct raft_change changes[CHANGES_MAX];
  const struct raft_configuration *now = raft_get_configuration(leader->raft, NULL);
  struct raft_configuration next = *now;
  const uint32_t wanted = (uint32_t)sim_random_between(&sim->random, 1, CHANGES_MAX);
  size_t n = 0;
  if (sim_random_chance(&sim->random, 30) || sim->members.wanted == 0)
    sim->members.wanted = (uint32_t)sim_random_between(&sim->random, 1, sim->n_nodes);
  for (uint32_t i = 0; i < wanted; i++) {
    const struct sim_node *node = &sim->nodes[sim_random_below(&sim->random, sim->n_nodes)];
    bool is_new = true;
    for (size_t j = 0; j < n; j++) is_new = is_new && changes[j].id != node->id;
    if (!is_new) continue;
    changes[n] = draw_change(sim, now, node);
    struct raft_configuration then = next;
    apply(&then, &changes[n]);
    if (sim_members_voters(&then) == 0 || !can_lose(sim, &then, NULL)) continue;
    next = then;
    n++;
  }
  if (n > 0) sim_node_change(sim, leader, changes, n);
}

void sim_members_arrange(struct sim *sim, struct sim_node *leader, uint32_t voters) {
  const struct raft_configuration *now = raft_get_configuration(leader->raft, NULL);
  const uint32_t n = sim_members_voters(now);
  for (uint32_t i = 0; i < sim->n_nodes; i++) {
    const struct sim_node *node = &sim->nodes[i];
    const struct raft_member *member = raft_configuration_find(now, node->id);
    const bool is_voter = member && (member->roles & RAFT_VOTER_NEW);
    struct raft_change change = change_of(RAFT_CHANGE_ADD, node);
    if (member && is_voter == (n < voters)) continue;
    if (is_voter && n == voters) continue;
    if (is_voter) change.type = RAFT_CHANGE_DEMOTE;
    if (member && !is_voter) change.type = RAFT_CHANGE_PROMOTE;
    if (member && !is_voter && n >= voters) continue;
    snprintf(change.address, sizeof change.address, "node%" PRIu64 ":7400", node->id);
    sim_node_change(sim, leader, &change, 1);
    return;
  }
}

void sim_members_hand_over(struct sim *sim, struct sim_node *leader) {
  sim_node_hand_over(sim, leader, sim_random_below(&sim->random, sim->n_nodes + 1));
}
