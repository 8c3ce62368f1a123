/*
** Clients: they propose entries with ids of their own at whoever says it leads, several at a time,
** read at any node at both levels, and ask anybody for the fate of what they proposed.
*/
#include "sim.h"

#define BURST_MAX 8
#define BIG_BURST_MAX 40
#define ASKED_BACK 300 /* fates are asked of that many latest proposals */

static struct sim_node *random_node(struct sim *sim, bool leader) {
  struct sim_node *choices[SIM_NODES_MAX];
  uint32_t n = 0;
  for (uint32_t i = 0; i < sim->n_nodes; i++) {
    struct sim_node *node = &sim->nodes[i];
    if (sim_node_runs(node) && (!leader || node->role == RAFT_LEADER)) choices[n++] = node;
  }
  return n > 0 ? choices[sim_random_below(&sim->random, n)] : NULL;
}

uint64_t sim_workload_new_operation(struct sim *sim, struct sim_node *node) {
  struct sim_workload *workload = &sim->workload;
  workload->operations = sim_grow(workload->operations, &workload->operations_capacity, workload->n_operations + 1,
                                  sizeof *workload->operations);
  workload->operations[workload->n_operations++] = (struct sim_operation){
      .slot = node->slot, .boot = node->boot, .state = SIM_OP_QUEUED};
  return workload->n_operations;
}

static void propose(struct sim *sim) {
  struct sim_node *node = random_node(sim, true);
  if (!node && sim_random_chance(&sim->random, 100)) node = random_node(sim, false);
  if (!node || sim->workload.n_operations > SIM_LOG_MAX) return;
  if (node->log.n - node->commit_index > sim->uncommitted_max) return;
  const uint64_t most = sim_random_chance(&sim->random, 50) ? BIG_BURST_MAX : BURST_MAX;
  const uint32_t n = (uint32_t)sim_random_between(&sim->random, 1, most);
  const uint64_t id = sim_workload_new_operation(sim, node);
  for (uint32_t i = 1; i < n; i++) sim_workload_new_operation(sim, node);
  sim_node_propose(sim, node, id, n);
}

void sim_workload_read(struct sim *sim, struct sim_node *node, enum raft_read_level level) {
  struct sim_workload *workload = &sim->workload;
  workload->reads = sim_grow(workload->reads, &workload->reads_capacity, workload->n_reads + 1,
                             sizeof *workload->reads);
  workload->reads[workload->n_reads++] = (struct sim_read){
      .slot = node->slot, .boot = node->boot, .bound = sim->checker.n_committed, .level = level, .is_queued = true};
  sim_node_read(sim, node, workload->n_reads);
}

static void read(struct sim *sim) {
  struct sim_node *node = random_node(sim, sim_random_chance(&sim->random, 500));
  if (node) sim_workload_read(sim, node, sim_random_chance(&sim->random, 600) ? RAFT_READ_LEASE : RAFT_READ_QUORUM);
}

static void ask(struct sim *sim) {
  const struct sim_workload *workload = &sim->workload;
  struct sim_node *node = random_node(sim, false);
  if (!node || workload->n_operations == 0) return;
  const uint64_t back = workload->n_operations < ASKED_BACK ? workload->n_operations : ASKED_BACK;
  const uint64_t id = workload->n_operations - sim_random_below(&sim->random, back);
  const struct sim_operation *operation = &workload->operations[id - 1];
  if (operation->index == 0) return;
  sim->counters[SIM_FATE_ASKED]++;
  sim_check_fate(sim, node, id, raft_fate(node->raft, operation->term, operation->index));
}

void sim_workload_ask(struct sim *sim, struct sim_node *node) {
  size_t kept = 0;
  for (size_t i = 0; i < node->n_pending; i++) {
    const uint64_t id = node->pending[i];
    struct sim_operation *operation = &sim->workload.operations[id - 1];
    const enum raft_fate fate = raft_fate(node->raft, operation->term, operation->index);
    sim_check_fate(sim, node, id, fate);
    if (fate == RAFT_FATE_PENDING) {
      node->pending[kept++] = id;
      continue;
    }
    operation->state = fate == RAFT_FATE_COMMITTED ? SIM_OP_COMMITTED : SIM_OP_LOST;
    sim->counters[fate == RAFT_FATE_COMMITTED ? SIM_COMMITTED : SIM_LOST]++;
  }
  node->n_pending = kept;
}

void sim_workload_node_died(struct sim *sim, struct sim_node *node) {
  for (size_t i = 0; i < node->n_pending; i++) sim->workload.operations[node->pending[i] - 1].state = SIM_OP_UNKNOWN;
  sim->counters[SIM_UNKNOWN] += node->n_pending;
  node->n_pending = 0;
}

void sim_workload_step(struct sim *sim) {
  const struct sim_profile *profile = sim->profile;
  if (sim->workload.is_stopped) return;
  const uint64_t total = (uint64_t)profile->propose + profile->read + profile->fate + profile->change;
  uint64_t choice = sim_random_below(&sim->random, total);
  if (choice < profile->propose) {
    if (!sim->workload.is_quiet) propose(sim);
  } else if (choice - profile->propose < profile->read) {
    read(sim);
  } else if (choice - profile->propose - profile->read < profile->change) {
    struct sim_node *leader = random_node(sim, true);
    if (leader) sim_members_change(sim, leader);
  } else {
    ask(sim);
  }
  const uint64_t every = profile->client_every_us * SIM_US;
  sim_schedule(sim, sim_random_between(&sim->random, 0, 2 * every), SIM_EVENT_CLIENT, 0, 0, NULL);
}
