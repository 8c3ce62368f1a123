/*
** Faults: at large, drawn by the weights of the profile; and plays, which lead the cluster step by
** step to where a certain rule decides, again and again, with chance in every length of time.
*/
#include <inttypes.h>

#include "sim.h"

#define NOBODY SIM_NODES_MAX
#define PLAY_STEP_NS (SIM_MS / 2)

static uint64_t elections(struct sim *sim, uint32_t percent_low, uint32_t percent_high) {
  return sim->election_ns / 100 * sim_random_between(&sim->random, percent_low, percent_high);
}

/* A message's way from one node to another, a few times at most. */
static uint64_t moment(struct sim *sim, uint32_t ways) {
  return sim_random_below(&sim->random, ways * (sim->network.delay_ns + sim->network.jitter_ns) + SIM_MS);
}

struct sim_node *sim_faults_leader(struct sim *sim) {
  struct sim_node *leader = NULL;
  for (uint32_t i = 0; i < sim->n_nodes; i++) {
    struct sim_node *node = &sim->nodes[i];
    if (sim_node_runs(node) && node->role == RAFT_LEADER && (!leader || node->term > leader->term)) leader = node;
  }
  return leader;
}

static struct sim_node *random_running(struct sim *sim, uint32_t but1, uint32_t but2) {
  struct sim_node *choices[SIM_NODES_MAX];
  uint32_t n = 0;
  for (uint32_t i = 0; i < sim->n_nodes; i++)
    if (sim_node_runs(&sim->nodes[i]) && i != but1 && i != but2) choices[n++] = &sim->nodes[i];
  return n > 0 ? choices[sim_random_below(&sim->random, n)] : NULL;
}

/* ---- At large ---- */

static void partition(struct sim *sim) {
  uint32_t sides = (uint32_t)sim_random_next(&sim->random);
  SIM_TRACE(sim, "partition %x", sides & ((1u << sim->n_nodes) - 1));
  for (uint32_t i = 0; i < sim->n_nodes; i++)
    for (uint32_t j = 0; j < sim->n_nodes; j++) sim->network.cut[i][j] = (sides >> i & 1) != (sides >> j & 1);
}

static void one_way(struct sim *sim, uint32_t from) {
  if (sim_random_chance(&sim->random, 300)) {
    const bool hears = sim_random_chance(&sim->random, 500);
    sim_network_isolate(sim, from, !hears, hears);
  } else {
    sim->network.cut[from][sim_random_below(&sim->random, sim->n_nodes)] = true;
  }
  SIM_TRACE(sim, "one-way cut around node %" PRIu64, sim->nodes[from].id);
}

static void isolate_leader(struct sim *sim) {
  const struct sim_node *leader = sim_faults_leader(sim);
  if (!leader) return;
  const uint64_t kind = sim_random_below(&sim->random, 3);
  SIM_TRACE(sim, "leader %" PRIu64 " is cut off%s", leader->id,
            kind == 0   ? ""
            : kind == 1 ? ": hears nothing"
                        : ": is not heard");
  sim_network_isolate(sim, leader->slot, kind != 2, kind != 1);
}

static void toggle_slow(struct sim *sim, struct sim_node *node) {
  node->is_slow = !node->is_slow;
  SIM_TRACE(sim, "disk of node %" PRIu64 " is %s", node->id, node->is_slow ? "slow" : "fast");
}

static void toggle_full(struct sim *sim, struct sim_node *node) {
  node->is_full = !node->is_full;
  node->gives_up_when_full = sim_random_chance(&sim->random, 500);
  late_disk_set_full(node->disk, node->is_full);
  SIM_TRACE(sim, "disk of node %" PRIu64 " is %s", node->id, node->is_full ? "full" : "not full");
}

static void wipe(struct sim *sim, struct sim_node *node, uint64_t down_ns) {
  if (!sim_may_wipe(sim, node)) return;
  sim_node_wipe(sim, node, down_ns);
}

/* What can happen at large, to the cluster or to a random node. */
struct fault {
  uint8_t weight;
  void (*happen)(struct sim *sim, struct sim_node *node);
};

static void happen_partition(struct sim *sim, struct sim_node *node) {
  (void)node;
  partition(sim);
}

static void happen_one_way(struct sim *sim, struct sim_node *node) {
  one_way(sim, node->slot);
}

static void happen_isolate_leader(struct sim *sim, struct sim_node *node) {
  (void)node;
  isolate_leader(sim);
}

static void happen_heal(struct sim *sim, struct sim_node *node) {
  (void)node;
  sim_network_heal(sim);
}

static void happen_pause(struct sim *sim, struct sim_node *node) {
  sim_node_pause(sim, node, elections(sim, 1, 300));
}

static void happen_crash(struct sim *sim, struct sim_node *node) {
  sim_node_crash(sim, node, elections(sim, 0, 200));
}

static void happen_crash_all(struct sim *sim, struct sim_node *node) {
  (void)node;
  for (uint32_t i = 0; i < sim->n_nodes; i++) sim_node_crash(sim, &sim->nodes[i], elections(sim, 0, 200));
}

static void happen_sync_failure(struct sim *sim, struct sim_node *node) {
  late_disk_fail_sync(node->disk, (uint32_t)sim_random_between(&sim->random, 1, 4));
}

static void happen_wipe(struct sim *sim, struct sim_node *node) {
  wipe(sim, node, elections(sim, 0, 100));
}

static void happen_unelectable(struct sim *sim, struct sim_node *node) {
  sim_node_set_electable(sim, node, node->is_unelectable);
}

static void happen_hand_over(struct sim *sim, struct sim_node *node) {
  (void)node;
  struct sim_node *leader = sim_faults_leader(sim);
  if (leader) sim_members_hand_over(sim, leader);
}

static void strike(struct sim *sim, struct sim_node *node) {
  const struct sim_profile *profile = sim->profile;
  const struct fault faults[] = {
      {profile->partition, happen_partition},
      {profile->one_way, happen_one_way},
      {profile->isolate_leader, happen_isolate_leader},
      {profile->heal, happen_heal},
      {profile->pause, happen_pause},
      {profile->crash, happen_crash},
      {profile->crash_all, happen_crash_all},
      {profile->slow_disk, toggle_slow},
      {profile->full_disk, toggle_full},
      {profile->sync_failure, happen_sync_failure},
      {profile->wipe, happen_wipe},
      {profile->unelectable, happen_unelectable},
      {profile->hand_over, happen_hand_over},
  };
  const size_t n = sizeof faults / sizeof faults[0];
  uint64_t total = 0;
  for (size_t i = 0; i < n; i++) total += faults[i].weight;
  uint64_t choice = sim_random_below(&sim->random, total);
  for (size_t i = 0; i < n; i++) {
    if (choice < faults[i].weight) {
      faults[i].happen(sim, node);
      return;
    }
    choice -= faults[i].weight;
  }
}

void sim_faults_at_large(struct sim *sim) {
  if (sim->faults.is_stopped || sim->profile->fault_every_percent == 0) return;
  strike(sim, &sim->nodes[sim_random_below(&sim->random, sim->n_nodes)]);
  sim_schedule(sim, elections(sim, 1, 2 * sim->profile->fault_every_percent), SIM_EVENT_FAULT, 0, 0, NULL);
}

/* ---- Plays ---- */

static void go_to(struct sim *sim, uint32_t step, uint64_t wait_ns) {
  sim->faults.step = step;
  sim->faults.until = sim->now + wait_ns;
}

static void cut_between(struct sim *sim, uint32_t a, uint32_t b) {
  sim->network.cut[a][b] = sim->network.cut[b][a] = true;
}

static struct sim_node *player(struct sim *sim, uint32_t slot) {
  return slot < sim->n_nodes ? &sim->nodes[slot] : NULL;
}

/*
** Paper figure 8: each new leader dies or is cut off within a few messages; those that were away
** come back. With one entry per message a leader often leaves entries of older terms on a majority
** before its own no-op gets there.
*/
static void play_new_leader(struct sim *sim) {
  struct sim_faults *faults = &sim->faults;
  struct sim_node *leader = sim_faults_leader(sim);
  switch (faults->step) {
  case 0:
    if (sim->counters[SIM_LEADER] == faults->seen_leaders || !leader) return;
    faults->seen_leaders = sim->counters[SIM_LEADER];
    faults->leader = leader->slot;
    go_to(sim, 1, moment(sim, (uint32_t)sim_random_between(&sim->random, 1, 8)));
    return;
  case 1:
    if (sim->now < faults->until) return;
    leader = player(sim, faults->leader);
    sim_network_heal(sim);
    if (sim_random_chance(&sim->random, 500))
      sim_node_crash(sim, leader, elections(sim, 20, 300));
    else
      sim_network_isolate(sim, leader->slot, true, true);
    if (sim_random_chance(&sim->random, 300)) {
      /* Somebody else is away for the next term. */
      const struct sim_node *other = random_running(sim, faults->leader, NOBODY);
      if (other && sim->n_nodes > 3) sim_network_isolate(sim, other->slot, true, true);
    }
    go_to(sim, 2, elections(sim, 50, 500));
    return;
  default:
    if (sim->counters[SIM_LEADER] == faults->seen_leaders && sim->now < faults->until) return;
    if (sim->now >= faults->until) sim_network_heal(sim);
    go_to(sim, 0, 0);
  }
}

/* Answers to the leader are long under way; then it is heard no more, while old answers keep coming. */
static void play_stale_lease(struct sim *sim) {
  struct sim_faults *faults = &sim->faults;
  struct sim_node *leader = sim_faults_leader(sim);
  if (sim->now < faults->until) {
    /* The old leader is asked all the while. */
    leader = player(sim, faults->leader);
    if (faults->step == 2 && leader && sim_node_runs(leader)) sim_workload_read(sim, leader, RAFT_READ_LEASE);
    return;
  }
  switch (faults->step) {
  case 0:
    if (!leader) return;
    faults->leader = leader->slot;
    uint64_t extra = elections(sim, 30, 95);
    for (uint32_t i = 0; i < sim->n_nodes; i++) sim->network.extra_ns[i][leader->slot] = extra;
    SIM_TRACE(sim, "answers to leader %" PRIu64 " take %.1f ms", leader->id, (double)extra / 1e6);
    go_to(sim, 1, elections(sim, 100, 300));
    return;
  case 1:
    SIM_TRACE(sim, "leader %u is heard no more", faults->leader + 1);
    sim_network_isolate(sim, faults->leader, sim_random_chance(&sim->random, 300), true);
    go_to(sim, 2, elections(sim, 100, 400));
    return;
  default: sim_network_heal(sim); go_to(sim, 0, elections(sim, 100, 300));
  }
}

/* The leader is cut off in one of the ways there are, and asked for reads all the while. */
static void play_cut_leader(struct sim *sim) {
  struct sim_faults *faults = &sim->faults;
  struct sim_node *leader = sim_faults_leader(sim);
  if (sim->now < faults->until) {
    leader = player(sim, faults->leader);
    if (faults->step == 1 && leader && sim_node_runs(leader)) sim_workload_read(sim, leader, RAFT_READ_LEASE);
    return;
  }
  if (faults->step == 0) {
    if (!leader) return;
    faults->leader = leader->slot;
    const uint64_t kind = sim_random_below(&sim->random, 5);
    SIM_TRACE(sim, "leader %" PRIu64 " is cut off, kind %d", leader->id, (int)kind);
    switch (kind) {
    case 0: sim_network_isolate(sim, leader->slot, true, true); break;
    case 1: sim_network_isolate(sim, leader->slot, true, false); break;
    case 2: sim_network_isolate(sim, leader->slot, false, true); break;
    case 3: sim_node_pause(sim, leader, elections(sim, 50, 400)); break;
    default: partition(sim); break;
    }
    go_to(sim, 1, elections(sim, 100, 500));
  } else {
    sim_network_heal(sim);
    go_to(sim, 0, elections(sim, 20, 200));
  }
}

static bool is_campaigning(const struct sim_node *node) {
  return sim_node_runs(node) && (node->role == RAFT_PRE_CANDIDATE || node->role == RAFT_CANDIDATE);
}

/*
** The leader is heard by all but one; that one begins to campaign; in this moment the others are
** restarted and the leader is cut off: those that forgot whom they follow might vote.
*/
static void play_restart(struct sim *sim) {
  struct sim_faults *faults = &sim->faults;
  struct sim_node *leader = sim_faults_leader(sim);
  switch (faults->step) {
  case 0: {
    if (sim->now < faults->until || !leader) return;
    const struct sim_node *victim = random_running(sim, leader->slot, NOBODY);
    if (!victim) return;
    faults->leader = leader->slot;
    faults->victim = victim->slot;
    cut_between(sim, leader->slot, victim->slot);
    /* It may hear of new entries no more: then only a cluster at rest could elect it. */
    sim->workload.is_quiet = true;
    SIM_TRACE(sim, "node %" PRIu64 " does not hear leader %" PRIu64, victim->id, leader->id);
    go_to(sim, 1, elections(sim, 500, 500));
    return;
  }
  case 1:
    if (sim->now >= faults->until) {
      go_to(sim, 3, 0);
      return;
    }
    if (!is_campaigning(&sim->nodes[faults->victim])) return;
    for (uint32_t i = 0; i < sim->n_nodes; i++)
      if (i != faults->leader && i != faults->victim)
        sim_node_crash(sim, &sim->nodes[i], sim_random_below(&sim->random, SIM_MS));
    sim_network_isolate(sim, faults->leader, true, true);
    go_to(sim, 2, elections(sim, 50, 200));
    return;
  case 2:
    if (sim_node_runs(&sim->nodes[faults->leader]))
      sim_workload_read(sim, &sim->nodes[faults->leader], RAFT_READ_LEASE);
    if (sim->now >= faults->until) go_to(sim, 3, 0);
    return;
  default:
    sim->workload.is_quiet = false;
    sim_network_heal(sim);
    go_to(sim, 0, elections(sim, 50, 300));
  }
}

/*
** Some nodes do not hear of what the others commit; then the leader is gone, one that knew has lost
** its folder, and those who do not know ask it for its vote.
*/
static void play_wipe(struct sim *sim) {
  struct sim_faults *faults = &sim->faults;
  struct sim_node *leader = sim_faults_leader(sim);
  if (sim->now < faults->until) return;
  switch (faults->step) {
  case 0: {
    if (!leader) return;
    const struct sim_node *helper = random_running(sim, leader->slot, NOBODY);
    if (!helper) return;
    faults->leader = leader->slot;
    faults->helper = helper->slot;
    /* As many stay behind as may without stopping the others. */
    uint32_t behind = (sim->n_nodes - 1) / 2;
    for (uint32_t i = 0; i < sim->n_nodes && behind > 0; i++) {
      if (i == leader->slot || i == helper->slot || !sim_is_member(sim, &sim->nodes[i])) continue;
      sim_network_isolate(sim, i, true, true);
      behind--;
    }
    go_to(sim, 1, elections(sim, 10, 150));
    return;
  }
  case 1: {
    sim_node_crash(sim, &sim->nodes[faults->leader], elections(sim, 200, 500));
    wipe(sim, &sim->nodes[faults->helper], elections(sim, 0, 20));
    sim_network_heal(sim);
    go_to(sim, 2, elections(sim, 300, 600));
    return;
  }
  default:
    if (sim_random_chance(&sim->random, 300)) sim_node_crash(sim, &sim->nodes[faults->helper], elections(sim, 0, 50));
    go_to(sim, 0, elections(sim, 100, 400));
  }
}

/*
** While somebody campaigns, voters die soon after they were asked. The one they may have elected
** is cut off, so that others ask them again in the same term.
*/
static void play_voter_crash(struct sim *sim) {
  struct sim_faults *faults = &sim->faults;
  if (sim->now < faults->until) return;
  switch (faults->step) {
  case 0:
    for (uint32_t i = 0; i < sim->n_nodes; i++) {
      if (!sim_node_runs(&sim->nodes[i]) || sim->nodes[i].role != RAFT_CANDIDATE) continue;
      faults->victim = i;
      go_to(sim, 1, moment(sim, 3));
      return;
    }
    /* Without elections nothing happens here. */
    if (sim_random_chance(&sim->random, 5)) {
      struct sim_node *leader = sim_faults_leader(sim);
      if (leader) sim_node_crash(sim, leader, elections(sim, 10, 300));
    }
    return;
  case 1:
    for (uint32_t i = 0; i < sim->n_nodes; i++)
      if (i != faults->victim && sim_random_chance(&sim->random, 600))
        sim_node_crash(sim, &sim->nodes[i], sim_random_below(&sim->random, 5 * SIM_MS));
    sim_network_isolate(sim, faults->victim, true, true);
    go_to(sim, 2, elections(sim, 100, 400));
    return;
  default: sim_network_heal(sim); go_to(sim, 0, elections(sim, 0, 200));
  }
}

/* A node is starved until it has asked for pre-votes more than once, then it hears again, old answers too. */
static void play_stale_prevote(struct sim *sim) {
  struct sim_faults *faults = &sim->faults;
  if (sim->now < faults->until) return;
  if (faults->step == 0) {
    const struct sim_node *leader = sim_faults_leader(sim);
    const struct sim_node *victim = random_running(sim, leader ? leader->slot : NOBODY, NOBODY);
    if (!victim) return;
    if (leader) sim->network.cut[leader->slot][victim->slot] = true;
    for (uint32_t i = 0; i < sim->n_nodes; i++) sim->network.extra_ns[i][victim->slot] = elections(sim, 0, 200);
    if (leader && sim_random_chance(&sim->random, 500)) sim_network_isolate(sim, leader->slot, true, true);
    go_to(sim, 1, elections(sim, 100, 500));
  } else {
    sim_network_heal(sim);
    go_to(sim, 0, elections(sim, 50, 300));
  }
}

/* What it says to the one that is to lead comes so late that it has given up; then it is heard as ever. */
static void hand_over_late(struct sim *sim, struct sim_node *leader) {
  const struct sim_node *helper = random_running(sim, leader->slot, NOBODY);
  if (!helper) return;
  uint64_t *extra_ns = &sim->network.extra_ns[leader->slot][helper->slot];
  *extra_ns = elections(sim, 90, 250);
  sim_node_hand_over(sim, leader, helper->id);
  *extra_ns = 0;
  sim->network.latest_at[leader->slot][helper->slot] = 0;
  sim->workload.is_quiet = sim_random_chance(&sim->random, 500);
}

/* A leader has begun to hand over; soon it hears of nothing any more, and is asked for reads all the while. */
static void play_hand_over(struct sim *sim) {
  struct sim_faults *faults = &sim->faults;
  struct sim_node *leader = sim_faults_leader(sim);
  if (sim->now < faults->until) {
    leader = player(sim, faults->leader);
    if (faults->step == 2 && leader && sim_node_runs(leader)) sim_workload_read(sim, leader, RAFT_READ_LEASE);
    return;
  }
  switch (faults->step) {
  case 0:
    if (!leader) return;
    faults->leader = leader->slot;
    /* Only at rest does it end soon. */
    sim->workload.is_quiet = sim_random_chance(&sim->random, 700);
    go_to(sim, 1, elections(sim, 5, 30));
    return;
  case 1:
    leader = player(sim, faults->leader);
    if (sim_random_chance(&sim->random, 400)) {
      hand_over_late(sim, leader);
      go_to(sim, 2, elections(sim, 100, 300));
      return;
    }
    sim_members_hand_over(sim, leader);
    if (sim_random_chance(&sim->random, 500)) {
      for (uint32_t i = 0; i < sim->n_nodes; i++) sim->network.extra_ns[i][leader->slot] = elections(sim, 20, 90);
    } else {
      go_to(sim, 3, moment(sim, 4));
      return;
    }
    sim->workload.is_quiet = false;
    go_to(sim, 2, elections(sim, 30, 150));
    return;
  case 3:
    sim_network_isolate(sim, faults->leader, true, sim_random_chance(&sim->random, 700));
    sim->workload.is_quiet = false;
    go_to(sim, 2, elections(sim, 30, 150));
    return;
  default:
    sim->workload.is_quiet = false;
    sim_network_heal(sim);
    go_to(sim, 0, elections(sim, 20, 200));
  }
}

/* The two sides hear nothing of each other. */
static void take_sides(struct sim *sim, uint32_t side) {
  for (uint32_t i = 0; i < sim->n_nodes; i++)
    for (uint32_t j = 0; j < sim->n_nodes; j++) sim->network.cut[i][j] = (side >> i & 1) != (side >> j & 1);
}

/*
** A leader promotes a learner, which alone hears of it. The others elect another leader, which removes the first one
** before it has committed anything, with one of the voters; the third voter goes over to the first side, which may be a
** majority by what it believes.
*/
static void play_rivals(struct sim *sim) {
  struct sim_faults *faults = &sim->faults;
  struct sim_node *leader = sim_faults_leader(sim);
  const struct raft_configuration *now = leader ? raft_get_configuration(leader->raft, NULL) : NULL;
  switch (faults->step) {
  case 0: {
    if (!leader || sim->now < faults->until) return;
    const struct raft_member *learner = NULL;
    for (uint32_t i = 0; i < now->n_members; i++)
      if (now->members[i].roles == RAFT_LEARNER) learner = &now->members[i];
    if (!learner || sim_members_voters(now) != 4) {
      sim_members_arrange(sim, leader, 4);
      return;
    }
    faults->leader = leader->slot;
    faults->victim = (uint32_t)learner->id - 1;
    take_sides(sim, 1u << faults->leader | 1u << faults->victim);
    sim_node_change(sim, leader, &(struct raft_change){.type = RAFT_CHANGE_PROMOTE, .id = learner->id}, 1);
    faults->seen_leaders = sim->counters[SIM_LEADER];
    go_to(sim, 1, elections(sim, 400, 500));
    return;
  }
  case 1: {
    if (sim->now >= faults->until) {
      go_to(sim, 3, 0);
      return;
    }
    if (!leader || leader->slot == faults->leader || sim->counters[SIM_LEADER] == faults->seen_leaders) return;
    sim_node_change(sim, leader, &(struct raft_change){.type = RAFT_CHANGE_REMOVE, .id = faults->leader + 1}, 1);
    uint32_t side = 1u << faults->leader | 1u << faults->victim;
    const struct sim_node *third = random_running(sim, leader->slot, faults->leader);
    if (third) side |= 1u << third->slot;
    take_sides(sim, side);
    go_to(sim, 2, elections(sim, 300, 600));
    return;
  }
  case 2:
    if (sim->now >= faults->until) go_to(sim, 3, 0);
    return;
  default: sim_network_heal(sim); go_to(sim, 0, elections(sim, 100, 400));
  }
}

void sim_faults_play(struct sim *sim) {
  if (sim->faults.is_stopped) return;
  switch (sim->profile->play) {
  case SIM_PLAY_NONE: return;
  case SIM_PLAY_NEW_LEADER: play_new_leader(sim); break;
  case SIM_PLAY_STALE_LEASE: play_stale_lease(sim); break;
  case SIM_PLAY_CUT_LEADER: play_cut_leader(sim); break;
  case SIM_PLAY_RESTART: play_restart(sim); break;
  case SIM_PLAY_WIPE: play_wipe(sim); break;
  case SIM_PLAY_VOTER_CRASH: play_voter_crash(sim); break;
  case SIM_PLAY_STALE_PREVOTE: play_stale_prevote(sim); break;
  case SIM_PLAY_HAND_OVER: play_hand_over(sim); break;
  case SIM_PLAY_RIVALS: play_rivals(sim); break;
  }
  sim_schedule(sim, PLAY_STEP_NS, SIM_EVENT_PLAY, 0, 0, NULL);
}

/* ---- Begin and end ---- */

void sim_faults_begin(struct sim *sim) {
  const struct sim_profile *profile = sim->profile;
  struct sim_network *network = &sim->network;
  sim->faults.leader = sim->faults.helper = sim->faults.victim = NOBODY;
  network->delay_ns = sim_random_between(&sim->random, 100 * SIM_US, 1500 * SIM_US);
  network->jitter_ns = sim_random_between(&sim->random, 0, 3 * SIM_MS);
  network->in_order = sim_random_chance(&sim->random, 500);
  network->loss_permille = (uint32_t)sim_random_between(&sim->random, 0, profile->loss_permille);
  network->duplicate_permille = (uint32_t)sim_random_between(&sim->random, 0, profile->duplicate_permille);
  network->late_permille = (uint32_t)sim_random_between(&sim->random, 0, profile->late_permille);
  network->late_ns = elections(sim, 10, 300);
  sim_schedule(sim, elections(sim, 0, 300), SIM_EVENT_FAULT, 0, 0, NULL);
  sim_schedule(sim, elections(sim, 200, 400), SIM_EVENT_PLAY, 0, 0, NULL);
}

static void end_for_node(struct sim *sim, struct sim_node *node) {
  node->is_slow = node->is_full = false;
  late_disk_set_full(node->disk, false);
  late_disk_fail_sync(node->disk, 0);
  /* What waits for a later restart starts now. */
  if (!node->is_up) sim_node_start(sim, node);
  if (sim->has_failed) return;
  if (node->is_up && node->has_failed) {
    sim_node_crash(sim, node, 0);
    sim_node_start(sim, node);
  }
  if (sim->has_failed) return;
  if (node->is_paused)
    sim_node_handle(sim, &(struct sim_event){.kind = SIM_EVENT_RESUME, .node = node->slot, .number = node->boot});
  if (sim->has_failed) return;
  sim_node_set_electable(sim, node, true);
}

void sim_faults_end(struct sim *sim, const bool members[SIM_NODES_MAX], bool all) {
  struct sim_network *network = &sim->network;
  sim->faults.is_stopped = true;
  sim->workload.is_quiet = false;
  network->loss_permille = network->duplicate_permille = network->late_permille = 0;
  for (uint32_t i = 0; i < sim->n_nodes; i++) {
    for (uint32_t j = 0; j < sim->n_nodes; j++) {
      if (!all && !(members[i] && members[j])) continue;
      network->cut[i][j] = false;
      network->extra_ns[i][j] = network->latest_at[i][j] = 0;
    }
  }
  /* One outside may lead them: it does not hear that the way to the others is free, and commits with whom it reaches. */
  for (uint32_t i = 0; i < sim->n_nodes; i++) sim->nodes[i].is_slow = false;
  for (uint32_t i = 0; i < sim->n_nodes && !sim->has_failed; i++)
    if (members[i] || all) end_for_node(sim, &sim->nodes[i]);
}
