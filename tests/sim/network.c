#include "sim.h"

struct sim_packet *sim_packet_new(const struct raft_message *message, uint32_t n_entries) {
  struct sim_packet *packet = sim_new(sizeof *packet);
  packet->message = *message;
  packet->message.entries = NULL;
  packet->n = n_entries;
  if (n_entries > 0) {
    packet->metas = sim_new(n_entries * sizeof *packet->metas);
    packet->payloads = sim_new(n_entries * sizeof *packet->payloads);
    packet->entries = sim_new(n_entries * sizeof *packet->entries);
  }
  return packet;
}

void sim_packet_free(struct sim_packet *packet) {
  if (!packet) return;
  for (uint32_t i = 0; i < packet->n; i++) raft_payload_unref(packet->entries[i].payload);
  free(packet->metas);
  free(packet->payloads);
  free(packet->entries);
  free(packet);
}

static struct sim_packet *packet_copy(const struct sim_packet *packet) {
  struct sim_packet *copy = sim_packet_new(&packet->message, packet->n);
  copy->from = packet->from;
  copy->to = packet->to;
  copy->order = packet->order;
  for (uint32_t i = 0; i < packet->n; i++) {
    copy->metas[i] = packet->metas[i];
    copy->entries[i] = packet->entries[i];
    if (copy->entries[i].payload) raft_payload_ref(copy->entries[i].payload);
  }
  return copy;
}

static void deliver_later(struct sim *sim, struct sim_packet *packet, bool is_copy) {
  struct sim_network *network = &sim->network;
  uint64_t delay = network->delay_ns + sim_random_below(&sim->random, network->jitter_ns + 1);
  delay += network->extra_ns[packet->from][packet->to];
  if (sim_random_chance(&sim->random, network->late_permille)) {
    delay += sim_random_below(&sim->random, network->late_ns + 1);
  } else if (network->in_order && !is_copy) {
    uint64_t *latest_at = &network->latest_at[packet->from][packet->to];
    if (sim->now + delay < *latest_at) delay = *latest_at - sim->now;
    *latest_at = sim->now + delay;
  }
  sim->counters[SIM_LATE] += delay > sim->election_ns / 2;
  sim_schedule(sim, delay, SIM_EVENT_DELIVER, packet->to, 0, packet);
}

void sim_network_send(struct sim *sim, struct sim_packet *packet) {
  struct sim_network *network = &sim->network;
  const uint32_t from = packet->from, to = packet->to;
  packet->order = ++network->sent[from][to];
  if (network->cut[from][to]) {
    sim->counters[network->cut[to][from] ? SIM_FULL_PARTITION : SIM_ONE_WAY]++;
    sim_packet_free(packet);
    return;
  }
  if (sim_random_chance(&sim->random, network->loss_permille)) {
    sim->counters[SIM_LOSS]++;
    sim_packet_free(packet);
    return;
  }
  if (sim_random_chance(&sim->random, network->duplicate_permille)) {
    sim->counters[SIM_DUPLICATE]++;
    deliver_later(sim, packet_copy(packet), true);
  }
  deliver_later(sim, packet, false);
}

void sim_network_note_arrival(struct sim *sim, const struct sim_packet *packet) {
  uint64_t *arrived = &sim->network.arrived[packet->from][packet->to];
  if (packet->order < *arrived)
    sim->counters[SIM_REORDER]++;
  else
    *arrived = packet->order;
}

void sim_network_isolate(struct sim *sim, uint32_t slot, bool in, bool out) {
  for (uint32_t i = 0; i < sim->n_nodes; i++) {
    if (i == slot) continue;
    if (in) sim->network.cut[i][slot] = true;
    if (out) sim->network.cut[slot][i] = true;
  }
}

void sim_network_heal(struct sim *sim) {
  memset(sim->network.cut, 0, sizeof sim->network.cut);
  memset(sim->network.extra_ns, 0, sizeof sim->network.extra_ns);
  memset(sim->network.latest_at, 0, sizeof sim->network.latest_at);
}
