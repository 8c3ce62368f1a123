/*
** Snapshots as a node takes, sends, receives and installs them, in virtual time.
**
** The state machine of the simulation is one number: a hash over all entries applied. A snapshot is a file on the node's
** disk with that number, where the terms start, and bytes to make it longer; it follows from the committed log, so all
** nodes have the same one of an index. It is written aside, synced and renamed; it takes a while until that is durable, and
** only then is the log compacted, or is the snapshot installed.
**
**   offset size
**    0     8  index of the last entry in it
**    8     8  its term
**   16     8  hash of the state
**   24     8  n: number of terms
**   32     …  n times (term, first index)
**    …     …  bytes that follow from the index
**    …   512  configuration in force there: its index, its size, its bytes, zeros
**   -8     8  sum of all bytes before it
*/
#include <errno.h>
#include <inttypes.h>

#include "sim.h"

#define FIXED 32u
#define SUM 8u
#define FILLER_MIN 200u
#define FILLER_MORE 1500u
#define TERMS_MAX 4096u
#define CONFIGURATION 512u

uint64_t sim_state_after(uint64_t state, uint64_t index, uint64_t term, uint64_t identity) {
  uint64_t mixed = state ^ (index * UINT64_C(0x9e3779b97f4a7c15)) ^ (term << 32) ^ identity;
  mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94d049bb133111eb);
  return mixed ^ (mixed >> 31);
}

/* ---- The file ---- */

static uint64_t sum_of(const uint8_t *bytes, size_t size) {
  uint64_t sum = size;
  for (size_t i = 0; i < size; i++) sum = sum * 31 + bytes[i];
  return sum;
}

static void encode(struct sim_snapshot *snapshot, const struct raft_term_start *terms, size_t n_terms) {
  const uint64_t head[] = {snapshot->index, snapshot->term, snapshot->state, n_terms};
  const size_t filler = FILLER_MIN + (size_t)(sim_state_after(0, snapshot->index, 0, 0) % FILLER_MORE);
  size_t at = FIXED + n_terms * sizeof *terms;
  snapshot->size = at + filler + CONFIGURATION + SUM;
  snapshot->bytes = sim_new(snapshot->size);
  memcpy(snapshot->bytes, head, sizeof head);
  memcpy(snapshot->bytes + FIXED, terms, n_terms * sizeof *terms);
  for (size_t i = 0; i < filler; i++) snapshot->bytes[at + i] = (uint8_t)(snapshot->index * 7 + i * 31);
  at += filler;
  const uint64_t about[] = {snapshot->configuration_index, raft_configuration_size(&snapshot->configuration)};
  memcpy(snapshot->bytes + at, about, sizeof about);
  raft_configuration_encode(&snapshot->configuration, snapshot->bytes + at + sizeof about);
  at += CONFIGURATION;
  const uint64_t sum = sum_of(snapshot->bytes, at);
  memcpy(snapshot->bytes + at, &sum, sizeof sum);
}

/* Takes the bytes over. false: damaged. */
static bool decode(struct sim_snapshot *snapshot, uint8_t *bytes, size_t size) {
  uint64_t head[4], sum;
  *snapshot = (struct sim_snapshot){.bytes = bytes, .size = size};
  if (size < FIXED + CONFIGURATION + SUM) return false;
  memcpy(head, bytes, sizeof head);
  memcpy(&sum, bytes + size - SUM, sizeof sum);
  snapshot->index = head[0];
  snapshot->term = head[1];
  snapshot->state = head[2];
  uint64_t about[2];
  const uint8_t *configuration = bytes + size - SUM - CONFIGURATION;
  memcpy(about, configuration, sizeof about);
  snapshot->configuration_index = about[0];
  return sum == sum_of(bytes, size - SUM) && head[3] <= TERMS_MAX && FIXED + head[3] * 16 <= size - SUM &&
         about[1] <= CONFIGURATION - sizeof about &&
         raft_configuration_decode(configuration + sizeof about, about[1], &snapshot->configuration) == RAFT_OK;
}

size_t sim_snapshot_terms(const struct sim_snapshot *snapshot, struct raft_term_start **terms) {
  uint64_t n;
  *terms = NULL;
  if (!snapshot->bytes) return 0;
  memcpy(&n, snapshot->bytes + 24, sizeof n);
  *terms = sim_new((size_t)n * sizeof **terms + 1);
  memcpy(*terms, snapshot->bytes + FIXED, (size_t)n * sizeof **terms);
  return (size_t)n;
}

static void forget(struct sim_snapshot *snapshot) {
  free(snapshot->bytes);
  *snapshot = (struct sim_snapshot){0};
}

static void copy(struct sim_snapshot *to, const struct sim_snapshot *from) {
  *to = *from;
  to->bytes = sim_new(from->size);
  memcpy(to->bytes, from->bytes, from->size);
}

static void paths(const struct sim_node *node, char path[40], char temporary[40]) {
  snprintf(path, 40, "node%u/snapshot", node->slot + 1);
  snprintf(temporary, 40, "node%u/snapshot.new", node->slot + 1);
}

static int write_file(const struct sim_node *node, const struct sim_snapshot *snapshot) {
  struct os *os = late_disk_os(node->disk);
  struct os_file *file;
  char path[40], temporary[40];
  paths(node, path, temporary);
  int rc = os_open(os, temporary, OS_OPEN_READ | OS_OPEN_WRITE | OS_OPEN_CREATE, &file);
  if (rc != 0) return rc;
  rc = os_truncate(file, 0);
  if (rc == 0) rc = os_write(file, snapshot->bytes, snapshot->size, 0);
  if (rc == 0) rc = os_sync(file);
  os_close(file);
  if (rc == 0) rc = os_rename(os, temporary, path);
  return rc ? rc : os_sync_directory(os, node->folder);
}

int sim_snapshot_load(struct sim *sim, struct sim_node *node) {
  struct os_file *file;
  char path[40], temporary[40];
  uint64_t size;
  paths(node, path, temporary);
  forget(&node->snapshot);
  int rc = os_open(late_disk_os(node->disk), path, OS_OPEN_READ, &file);
  if (rc == -ENOENT) return 0;
  if (rc == 0) rc = os_size(file, &size);
  if (rc != 0) return rc;
  uint8_t *bytes = sim_new((size_t)size);
  const int64_t n = os_read(file, bytes, (size_t)size, 0);
  os_close(file);
  if (!decode(&node->snapshot, bytes, (size_t)n))
    sim_fail(sim, "node %" PRIu64 ": its snapshot is damaged, but was renamed only when it was synced", node->id);
  return 0;
}

/* ---- Taking ---- */

/* Writes node->writing. It is durable when its event comes. */
static bool begin_writing(struct sim *sim, struct sim_node *node) {
  const uint64_t failures = late_disk_sync_failures(node->disk), full_hits = late_disk_full_hits(node->disk);
  late_disk_begin_aside(node->disk);
  const int rc = write_file(node, &node->writing);
  late_disk_end_aside(node->disk);
  sim->counters[SIM_SYNC_FAILURE] += late_disk_sync_failures(node->disk) - failures;
  sim->counters[SIM_DISK_FULL] += late_disk_full_hits(node->disk) - full_hits;
  if (rc != 0) {
    SIM_TRACE(sim, "node %" PRIu64 " cannot write a snapshot: %d", node->id, rc);
    forget(&node->writing);
    late_disk_release(node->disk);
    return false;
  }
  node->writing_end = late_disk_position(node->disk);
  uint64_t takes = node->write_ns + sim_random_below(&sim->random, 2 * node->write_jitter_ns + 1);
  /* A large database takes its time: leaders come and go meanwhile. */
  if (!sim->faults.is_stopped && sim_random_chance(&sim->random, 250))
    takes += sim_random_below(&sim->random, 3 * sim->election_ns);
  sim_schedule(sim, takes, SIM_EVENT_SNAPSHOT, node->slot, node->boot, NULL);
  return true;
}

void sim_snapshot_consider(struct sim *sim, struct sim_node *node) {
  struct raft_status status;
  if (node->snapshot_every == 0 || node->writing.bytes || node->is_installing || !sim_node_runs(node)) return;
  raft_get_status(node->raft, &status);
  /* What was applied last, if it is durable here. */
  const uint64_t index = node->commit_index;
  if (index > status.durable_index || index < node->snapshot.index + node->snapshot_every) return;
  const struct raft_term_start *terms;
  size_t n_terms = raft_get_terms(node->raft, &terms);
  while (n_terms > 0 && terms[n_terms - 1].index > index) n_terms--;
  node->writing = (struct sim_snapshot){
      .index = index, .term = sim->checker.committed[index - 1].term, .state = node->state};
  const struct raft_configuration *configuration = raft_get_configuration_at(node->raft, index,
                                                                             &node->writing.configuration_index);
  if (!configuration) {
    sim_fail(sim, "node %" PRIu64 " does not know the configuration in force at %" PRIu64, node->id, index);
    return;
  }
  node->writing.configuration = *configuration;
  encode(&node->writing, terms, n_terms);
  if (begin_writing(sim, node)) SIM_TRACE(sim, "node %" PRIu64 " takes snapshot %" PRIu64, node->id, index);
}

/* Sometimes more is asked for than may be forgotten. */
static void ask_too_much(struct sim *sim, struct sim_node *node) {
  struct raft_status status;
  raft_get_status(node->raft, &status);
  const uint64_t limit = status.commit_index < status.durable_index ? status.commit_index : status.durable_index;
  if (limit >= status.last_index || !sim_random_chance(&sim->random, 300)) return;
  const uint64_t through = sim_random_between(&sim->random, limit + 1, status.last_index);
  if (raft_compact(node->raft, node->last_now, through) == RAFT_OK)
    sim_fail(sim, "node %" PRIu64 " compacts up to %" PRIu64 ", but only %" PRIu64 " is committed and durable",
             node->id, through, limit);
}

static void compact(struct sim *sim, struct sim_node *node) {
  const uint64_t index = node->snapshot.index;
  ask_too_much(sim, node);
  const uint64_t tail = sim_random_chance(&sim->random, 500) ? 0 : sim_random_below(&sim->random, 60);
  if (tail >= index || sim->has_failed) return;
  SIM_TRACE(sim, "node %" PRIu64 " compacts up to %" PRIu64, node->id, index - tail);
  if (raft_compact(node->raft, node->last_now, index - tail) != RAFT_OK)
    sim_fail(sim, "node %" PRIu64 " does not compact up to %" PRIu64, node->id, index - tail);
  const uint64_t failures = late_disk_sync_failures(node->disk);
  const int rc = raft_store_compact(node->store, index - tail);
  if (rc == -EINVAL) sim_fail(sim, "node %" PRIu64 ": the store does not compact what the core has", node->id);
  sim->counters[SIM_SYNC_FAILURE] += late_disk_sync_failures(node->disk) - failures;
  sim->counters[SIM_COMPACTED]++;
}

/* ---- Sending ---- */

static struct sim_sending *find_sending(struct sim_node *node, uint64_t id) {
  for (size_t i = 0; i < node->n_sending; i++)
    if (node->sending[i].id == id) return &node->sending[i];
  return NULL;
}

static void send_chunk(struct sim *sim, struct sim_node *node, struct sim_sending *sending, uint64_t offset,
                       uint64_t bytes) {
  const struct sim_snapshot *file = &sending->file;
  const struct raft_chunk chunk = {
      .index = file->index, .term = file->term, .offset = offset, .size_bytes = file->size, .bytes = (uint32_t)bytes};
  struct raft_message message;
  const int rc = raft_transfer_chunk(node->raft, node->last_now, sending->id, &chunk, &message);
  if (rc == RAFT_NOT_LEADER) return;
  if (rc != RAFT_OK) {
    sim_fail(sim, "node %" PRIu64 ": the core does not send snapshot %" PRIu64 " to %" PRIu64, node->id, file->index,
             sending->to);
    return;
  }
  struct sim_packet *packet = sim_packet_new(&message, bytes > 0);
  packet->from = node->slot;
  packet->to = (uint32_t)sending->to - 1;
  if (bytes > 0) {
    packet->entries[0].payload = raft_payload_new((uint32_t)bytes);
    memcpy(packet->entries[0].payload->bytes, file->bytes + offset, bytes);
  }
  sim_check_sent(sim, node, &packet->message);
  sim_network_send(sim, packet);
}

static void go_on(struct sim *sim, struct sim_node *node, struct sim_sending *sending, uint64_t offset) {
  /* One chunk waits for the answer to the one before it; or two are under way. */
  const int n = sim_random_chance(&sim->random, 300) ? 2 : 1;
  if (offset >= sending->file.size) send_chunk(sim, node, sending, offset, 0);
  for (int i = 0; i < n && offset < sending->file.size; i++) {
    uint64_t bytes = sim_random_between(&sim->random, 100, 900);
    if (bytes > sending->file.size - offset) bytes = sending->file.size - offset;
    send_chunk(sim, node, sending, offset, bytes);
    offset += bytes;
  }
}

static void begin_sending(struct sim *sim, struct sim_node *node, const struct raft_transfer *transfer) {
  if (node->snapshot.index == 0 || sim_random_chance(&sim->random, 30)) {
    raft_transfer_failed(node->raft, node->last_now, transfer->id);
    return;
  }
  node->sending = sim_grow(node->sending, &node->sending_capacity, node->n_sending + 1, sizeof *node->sending);
  struct sim_sending *sending = &node->sending[node->n_sending++];
  *sending = (struct sim_sending){.id = transfer->id, .to = transfer->to};
  copy(&sending->file, &node->snapshot);
  SIM_TRACE(sim, "node %" PRIu64 " offers snapshot %" PRIu64 " to %" PRIu64, node->id, sending->file.index,
            sending->to);
  send_chunk(sim, node, sending, 0, 0);
}

static void end_sending(struct sim_node *node, struct sim_sending *sending) {
  forget(&sending->file);
  *sending = node->sending[--node->n_sending];
}

void sim_snapshot_transfer(struct sim *sim, struct sim_node *node, const struct raft_transfer *transfer) {
  struct sim_sending *sending = find_sending(node, transfer->id);
  switch (transfer->event) {
  case RAFT_TRANSFER_BEGIN: begin_sending(sim, node, transfer); break;
  case RAFT_TRANSFER_CONTINUE:
    if (!sending || transfer->index != sending->file.index || transfer->offset > sending->file.size)
      sim_fail(sim, "node %" PRIu64 " is to go on with a transfer that it does not know", node->id);
    else if (sim_random_chance(&sim->random, 10))
      raft_transfer_failed(node->raft, node->last_now, transfer->id);
    else
      go_on(sim, node, sending, transfer->offset);
    break;
  case RAFT_TRANSFER_END:
    if (sending) end_sending(node, sending); /* otherwise it failed before it began */
    break;
  }
}

/* ---- Receiving ---- */

static void begin_installation(struct sim *sim, struct sim_node *node) {
  struct sim_part *part = &node->part;
  uint8_t *bytes = sim_new(part->size);
  memcpy(bytes, part->bytes, part->size);
  node->is_installing = true;
  forget(&node->writing);
  if (!decode(&node->writing, bytes, part->size) || node->writing.index != part->index ||
      node->writing.term != part->term) {
    sim_fail(sim, "node %" PRIu64 " has received another snapshot than was sent", node->id);
  } else if (!begin_writing(sim, node)) {
    node->is_installing = false;
    part->n = 0; /* as if nothing had come */
  }
}

void sim_snapshot_receive(struct sim *sim, struct sim_node *node, const struct sim_packet *packet) {
  const struct raft_message *message = &packet->message;
  struct sim_part *part = &node->part;
  const bool is_same = part->index == message->index && part->term == message->log_term &&
                       part->size == message->size_bytes;
  if (!is_same && node->is_installing) return; /* it has no hand free */
  if (!is_same) {
    free(part->bytes);
    *part = (struct sim_part){.index = message->index, .term = message->log_term, .size = (size_t)message->size_bytes};
    part->bytes = sim_new(part->size);
  }
  const bool fits = message->offset == part->n && message->chunk_bytes > 0;
  if (fits) {
    memcpy(part->bytes + part->n, packet->entries[0].payload->bytes, message->chunk_bytes);
    part->n += message->chunk_bytes;
  }
  const bool is_gap = message->offset > part->n;
  sim->counters[SIM_CHUNK_MISPLACED] += !fits && message->chunk_bytes > 0;
  raft_snapshot_answer(node->raft, node->last_now, part->index, part->n, is_gap);
  /* While an own snapshot is being written it waits; the leader asks again. */
  if (part->n == part->size && !node->is_installing && !node->writing.bytes) begin_installation(sim, node);
}

/* ---- Durable ---- */

static void install(struct sim *sim, struct sim_node *node) {
  const struct sim_snapshot *snapshot = &node->snapshot;
  struct raft_term_start *terms;
  const size_t n_terms = sim_snapshot_terms(snapshot, &terms);
  const struct raft_install install = {.index = snapshot->index,
                                       .term = snapshot->term,
                                       .configuration = &snapshot->configuration,
                                       .configuration_index = snapshot->configuration_index,
                                       .terms = terms,
                                       .n_terms = n_terms};
  const bool is_needed = snapshot->index > node->commit_index;
  const bool is_held = raft_term_at(node->raft, snapshot->index) == snapshot->term;
  SIM_TRACE(sim, "node %" PRIu64 " installs snapshot %" PRIu64 "%s", node->id, snapshot->index,
            is_needed ? "" : ", which it needs no more");
  const int rc = raft_install(node->raft, node->last_now, &install);
  free(terms);
  if (rc != RAFT_OK) sim_fail(sim, "node %" PRIu64 ": the core does not install: %s", node->id, raft_error_text(rc));
  if (!is_needed) return;
  sim->counters[SIM_INSTALLED]++;
  sim->counters[SIM_LOG_KEPT] += is_held;
  sim_check_install(sim, node);
}

/* Its event has come: the snapshot is durable; the process may be gone, or not have noticed yet. */
void sim_snapshot_written(struct sim *sim, struct sim_node *node) {
  late_disk_release(node->disk);
  late_disk_settle(node->disk, node->writing_end);
  if (!sim_node_runs(node)) return;
  if (node->is_paused) {
    sim_schedule(sim, 5 * SIM_MS, SIM_EVENT_SNAPSHOT, node->slot, node->boot, NULL);
    return;
  }
  forget(&node->snapshot);
  node->snapshot = node->writing;
  node->writing = (struct sim_snapshot){0};
  sim->counters[SIM_SNAPSHOT]++;
  if (node->is_installing) {
    node->is_installing = false;
    install(sim, node);
  } else {
    compact(sim, node);
  }
}

static void forget_sending(struct sim_node *node) {
  for (size_t i = 0; i < node->n_sending; i++) forget(&node->sending[i].file);
  node->n_sending = 0;
}

void sim_snapshot_crash(struct sim *sim, struct sim_node *node) {
  forget_sending(node);
  forget(&node->writing);
  node->is_installing = false;
  /* Of what was received some is durable. */
  if (node->part.n > 0) node->part.n = (size_t)sim_random_below(&sim->random, node->part.n + 1);
}

void sim_snapshot_forget(struct sim_node *node) {
  forget_sending(node);
  forget(&node->snapshot);
  forget(&node->writing);
  free(node->part.bytes);
  node->part = (struct sim_part){0};
  node->is_installing = false;
}
