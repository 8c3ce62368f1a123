/*
** A node as ext/ drives it, in virtual time: event in, work out; entries and hard state are written
** by one flush at a time, which takes a while; messages that wait for a write leave when it is
** durable. Entries reach the disk before the hard state of the same flush does.
*/
#include <errno.h>
#include <inttypes.h>

#include "sim.h"

#define CATCH_UP_ENTRIES_MAX 64

static uint64_t local_now(struct sim *sim, struct sim_node *node) {
  const uint64_t now = sim_clock_read(&node->clock, sim->now);
  node->last_now = now;
  return now;
}

static uint32_t slot_of(const struct sim *sim, uint64_t id) {
  for (uint32_t i = 0; i < sim->n_nodes; i++)
    if (sim->nodes[i].id == id) return i;
  return UINT32_MAX;
}

static void take_work(struct sim *sim, struct sim_node *node, const struct sim_packet *received);

/* ---- The flush ---- */

static void log_copy_from(struct sim_log *to, const struct sim_log *from, uint64_t changed) {
  to->marks = sim_grow(to->marks, &to->capacity, from->n, sizeof *to->marks);
  const size_t begin = changed > 0 ? (size_t)changed - 1 : 0;
  if (from->n > begin) memcpy(to->marks + begin, from->marks + begin, (from->n - begin) * sizeof *to->marks);
  to->n = from->n;
}

static void begin_write(struct sim *sim, struct sim_node *node) {
  if (node->is_writing || !sim_node_runs(node)) return;
  if (!raft_store_is_pending(node->store)) return;
  const uint64_t full_hits = late_disk_full_hits(node->disk), failures = late_disk_sync_failures(node->disk);
  node->is_writing = true;
  node->write_persist = 0;
  node->write_rc = raft_store_flush(node->store, &node->write_persist);
  node->issued_state = node->durable_state;
  if (node->write_rc == 0 && node->has_queued_state) {
    node->write_rc = raft_hard_state_write(node->state_file, &node->queued_state);
    node->issued_state = node->queued_state;
    node->has_queued_state = false;
  }
  node->write_end = late_disk_position(node->disk);
  log_copy_from(&node->issued, &node->log, node->log_changed);
  if (node->log_changed < node->issued_changed) node->issued_changed = node->log_changed;
  node->log_changed = node->log.n + 1;
  if (node->write_rc == 0 && node->write_persist != node->persist_given)
    sim_fail(sim, "node %" PRIu64 ": a flush reported write %" PRIu64 ", all up to %" PRIu64 " were queued", node->id,
             node->write_persist, node->persist_given);
  sim->counters[SIM_DISK_FULL] += late_disk_full_hits(node->disk) - full_hits;
  sim->counters[SIM_SYNC_FAILURE] += late_disk_sync_failures(node->disk) - failures;
  sim->counters[SIM_SLOW_DISK] += node->is_slow;
  uint64_t takes = node->write_ns + sim_random_below(&sim->random, node->write_jitter_ns + 1);
  if (node->is_slow) takes = takes * 20 + sim_random_below(&sim->random, sim->election_ns);
  sim_schedule(sim, takes, SIM_EVENT_DISK, node->slot, node->boot, NULL);
}

static void drop_waiting(struct sim_node *node) {
  for (size_t i = 0; i < node->n_waiting; i++) sim_packet_free(node->waiting[i].packet);
  node->n_waiting = 0;
}

static void stop_after_failure(struct sim *sim, struct sim_node *node) {
  SIM_TRACE(sim, "node %" PRIu64 " stops: its write failed with %d", node->id, node->write_rc);
  drop_waiting(node);
  raft_persist_failed(node->raft, local_now(sim, node));
  node->has_failed = true;
  take_work(sim, node, NULL);
  sim_workload_node_died(sim, node);
  sim_schedule(sim, sim_random_below(&sim->random, 4 * sim->election_ns) + 1, SIM_EVENT_RESTART, node->slot, node->boot,
               NULL);
}

static void send_waiting(struct sim *sim, struct sim_node *node) {
  size_t kept = 0;
  for (size_t i = 0; i < node->n_waiting; i++) {
    if (node->waiting[i].after <= node->persist_done) {
      sim_check_sent(sim, node, &node->waiting[i].packet->message);
      sim_network_send(sim, node->waiting[i].packet);
    } else {
      node->waiting[kept++] = node->waiting[i];
    }
  }
  node->n_waiting = kept;
}

/* The disk has it; the process may not have noticed yet (it may be frozen). */
static void settle_write(struct sim_node *node) {
  if (node->write_rc != 0) return;
  late_disk_settle(node->disk, node->write_end);
  node->durable_state = node->issued_state;
  log_copy_from(&node->durable, &node->issued, node->issued_changed);
  node->issued_changed = node->issued.n + 1;
}

/* Now and then "committed up to here" becomes durable too, as at a checkpoint. */
static void note_durable_commit(struct sim *sim, struct sim_node *node) {
  if (!sim_node_runs(node) || !sim_random_chance(&sim->random, 50)) return;
  struct raft_status status;
  raft_get_status(node->raft, &status);
  const uint64_t index = status.commit_index < status.durable_index ? status.commit_index : status.durable_index;
  if (index > node->durable_commit) node->durable_commit = index;
}

static void written(struct sim *sim, struct sim_node *node) {
  node->is_writing = false;
  if (node->has_failed) return;
  if (node->write_rc == -ENOSPC && raft_store_is_pending(node->store) && !node->gives_up_when_full) {
    sim_schedule(sim, 5 * SIM_MS, SIM_EVENT_RETRY, node->slot, node->boot, NULL);
    node->is_writing = true; /* until the retry */
    return;
  }
  if (node->write_rc != 0) {
    stop_after_failure(sim, node);
    return;
  }
  node->persist_done = node->write_persist;
  SIM_TRACE(sim, "node %" PRIu64 " write %" PRIu64 " is durable", node->id, node->persist_done);
  send_waiting(sim, node);
  raft_persisted(node->raft, local_now(sim, node), node->persist_done);
  take_work(sim, node, NULL);
  note_durable_commit(sim, node);
}

/* ---- Carrying out work ---- */

static void set_log(struct sim *sim, struct sim_node *node, const struct raft_entry *entry) {
  const uint64_t prev_term = entry->index > 1 ? node->log.marks[entry->index - 2].term : 0;
  const struct sim_entry_mark mark = {.term = entry->term, .identity = sim_identity(entry)};
  node->log.marks = sim_grow(node->log.marks, &node->log.capacity, node->log.n + 1, sizeof *node->log.marks);
  node->log.marks[node->log.n++] = mark;
  if (entry->index < node->log_changed) node->log_changed = entry->index;
  sim_check_append(sim, node, entry->index, mark.term, mark.identity, prev_term);
  if (entry->type == RAFT_ENTRY_CONFIGURATION && mark.identity != 0) sim_check_configuration(sim, node, entry);
}

static void truncate_log(struct sim *sim, struct sim_node *node, uint64_t from) {
  SIM_TRACE(sim, "node %" PRIu64 " truncates from %" PRIu64, node->id, from);
  sim->counters[SIM_OVERTURNED]++;
  if (from <= node->commit_index) {
    sim_fail(sim, "node %" PRIu64 " truncates from %" PRIu64 ", but has committed up to %" PRIu64, node->id, from,
             node->commit_index);
    return;
  }
  for (uint64_t index = from; index <= node->log.n; index++)
    sim->counters[SIM_ROLLED_BACK] += sim_is_configuration(node->log.marks[index - 1].identity);
  if (from <= node->log.n) node->log.n = (size_t)from - 1;
  if (from < node->log_changed) node->log_changed = from;
}

static const struct raft_entry *find_entry(const struct sim_node *node, const struct raft_work *work,
                                           const struct sim_packet *received, uint64_t index, struct raft_entry *own) {
  if (received && index > received->message.index && index - received->message.index <= received->n)
    return &received->entries[index - received->message.index - 1];
  if (work->noop && index == work->append_last) {
    *own = (struct raft_entry){.type = RAFT_ENTRY_NOOP,
                               .term = work->term,
                               .index = index,
                               .origin = node->incarnation,
                               .origin_sequence = node->sequence};
    return own;
  }
  if (index == work->configuration_index) {
    const struct raft_configuration *configuration = raft_get_configuration(node->raft, NULL);
    *own = (struct raft_entry){.type = RAFT_ENTRY_CONFIGURATION,
                               .term = work->term,
                               .index = index,
                               .origin = node->incarnation,
                               .origin_sequence = node->sequence,
                               .payload = raft_payload_new((uint32_t)raft_configuration_size(configuration))};
    raft_configuration_encode(configuration, own->payload->bytes);
    return own;
  }
  for (size_t i = node->n_staged; i-- > 0;)
    if (node->staged[i].index == index) return &node->staged[i];
  return NULL;
}

static void forget_staged(struct sim_node *node) {
  for (size_t i = 0; i < node->n_staged; i++) raft_payload_unref(node->staged[i].payload);
  node->n_staged = 0;
}

/* The log up to here is what was committed: nobody else could tell what a snapshot replaces. */
static void take_committed(struct sim *sim, struct sim_node *node, uint64_t index) {
  const struct sim_checker *checker = &sim->checker;
  if (index > checker->n_committed) {
    sim_fail(sim, "node %" PRIu64 " begins its log behind %" PRIu64 ", which is not committed", node->id, index);
    return;
  }
  node->log.marks = sim_grow(node->log.marks, &node->log.capacity, index, sizeof *node->log.marks);
  for (uint64_t i = 0; i < index; i++)
    node->log.marks[i] = (struct sim_entry_mark){.term = checker->committed[i].term,
                                                 .identity = checker->committed[i].identity};
  node->log.n = (size_t)index;
  node->log_changed = 1;
}

static void begin_anew(struct sim *sim, struct sim_node *node, const struct raft_work *work) {
  SIM_TRACE(sim, "node %" PRIu64 " begins its log anew behind %" PRIu64 "/%" PRIu64, node->id, work->reset_index,
            work->reset_term);
  sim->counters[SIM_LOG_RESET]++;
  take_committed(sim, node, work->reset_index);
  if (sim->has_failed) return;
  if (work->reset_index != node->snapshot.index || node->log.marks[work->reset_index - 1].term != work->reset_term)
    sim_fail(sim, "node %" PRIu64 " is to begin its log behind %" PRIu64 ", but that is not its snapshot", node->id,
             work->reset_index);
  if (raft_store_reset(node->store, work->reset_index, work->reset_term, work->persist) != 0)
    sim_fail(sim, "node %" PRIu64 ": the store does not begin anew", node->id);
}

static void append(struct sim *sim, struct sim_node *node, const struct raft_work *work,
                   const struct sim_packet *received) {
  for (uint64_t index = work->append_first; index <= work->append_last; index++) {
    struct raft_entry own = {0};
    const struct raft_entry *entry = find_entry(node, work, received, index, &own);
    if (!entry || index != node->log.n + 1) {
      sim_fail(sim, "node %" PRIu64 " is to append entry %" PRIu64 ": %s", node->id, index,
               entry ? "it is not the next one" : "its payload never came");
      return;
    }
    if (raft_store_append(node->store, entry, work->persist) != 0) {
      sim_fail(sim, "node %" PRIu64 ": the store refused entry %" PRIu64, node->id, index);
      return;
    }
    set_log(sim, node, entry);
    if (entry == &own) raft_payload_unref(own.payload);
  }
}

static void persist(struct sim *sim, struct sim_node *node, const struct raft_work *work,
                    const struct sim_packet *received) {
  if (work->persist <= node->persist_given)
    sim_fail(sim, "node %" PRIu64 ": write %" PRIu64 " comes after %" PRIu64, node->id, work->persist,
             node->persist_given);
  node->persist_given = work->persist;
  if (work->reset_index > 0) begin_anew(sim, node, work);
  if (work->truncate_from > 0) {
    truncate_log(sim, node, work->truncate_from);
    if (raft_store_truncate(node->store, work->truncate_from, work->persist) != 0)
      sim_fail(sim, "node %" PRIu64 ": the store refused to truncate from %" PRIu64, node->id, work->truncate_from);
  }
  if (work->append_first > 0) append(sim, node, work, received);
  if (work->reset_index == 0 && work->truncate_from == 0 && work->append_first == 0)
    raft_store_mark(node->store, work->persist);
  if (work->hard_state) {
    node->queued_state = (struct raft_hard_state){
        .node = node->id, .incarnation = node->incarnation, .term = work->term, .voted_for = work->voted_for};
    node->has_queued_state = true;
  }
}

bool sim_node_entry(struct sim *sim, struct sim_node *node, uint64_t index, struct raft_entry *entry) {
  int64_t n = raft_store_get(node->store, index, 1, 1, entry);
  if (n == 0) n = raft_store_read(node->store, index, 1, 1, entry);
  if (n == 1) return true;
  sim_fail(sim, "node %" PRIu64 ": the store has no entry %" PRIu64 " (%" PRId64 ")", node->id, index, n);
  return false;
}

/* The entries that an APPEND takes along. */
static bool load_entries(struct sim *sim, struct sim_node *node, struct sim_packet *packet) {
  for (uint32_t done = 0; done < packet->n;) {
    const uint64_t first = packet->message.index + 1 + done;
    int64_t n = raft_store_get(node->store, first, packet->n - done, SIZE_MAX, packet->entries + done);
    if (n == 0) n = raft_store_read(node->store, first, packet->n - done, SIZE_MAX, packet->entries + done);
    if (n <= 0) {
      sim_fail(sim, "node %" PRIu64 ": the store has no entry %" PRIu64 " to send (%" PRId64 ")", node->id, first, n);
      return false;
    }
    done += (uint32_t)n;
  }
  for (uint32_t i = 0; i < packet->n; i++) {
    const struct raft_entry *entry = &packet->entries[i];
    packet->metas[i] = (struct raft_entry_meta){
        .term = entry->term, .size = raft_entry_size(entry), .type = entry->type};
  }
  return true;
}

static void send(struct sim *sim, struct sim_node *node, const struct raft_outgoing *outgoing) {
  const uint32_t to = slot_of(sim, outgoing->message.to);
  if (to == UINT32_MAX || to == node->slot) {
    sim_fail(sim, "node %" PRIu64 " sends to %" PRIu64, node->id, outgoing->message.to);
    return;
  }
  const uint32_t n = outgoing->message.type == RAFT_APPEND ? outgoing->message.n_entries : 0;
  struct sim_packet *packet = sim_packet_new(&outgoing->message, n);
  packet->from = node->slot;
  packet->to = to;
  packet->message.from = node->id;
  packet->message.from_incarnation = node->incarnation;
  if (!load_entries(sim, node, packet)) {
    sim_packet_free(packet);
    return;
  }
  if (sim->trace.is_on) {
    char text[128];
    SIM_TRACE(sim, "node %" PRIu64 " → %" PRIu64 "%s: %s", node->id, packet->message.to,
              outgoing->after > node->persist_done ? " (waits)" : "",
              sim_message_text(&packet->message, text, sizeof text));
  }
  if (outgoing->after > node->persist_done) {
    node->waiting = sim_grow(node->waiting, &node->waiting_capacity, node->n_waiting + 1, sizeof *node->waiting);
    node->waiting[node->n_waiting++] = (struct sim_waiting){.packet = packet, .after = outgoing->after};
    return;
  }
  sim_check_sent(sim, node, &packet->message);
  sim_network_send(sim, packet);
}

static void note_role(struct sim *sim, struct sim_node *node, const struct raft_work *work) {
  static const char *const names[] = {"follower", "pre-candidate", "candidate", "leader"};
  node->role = work->role;
  node->leader = work->leader;
  SIM_TRACE(sim, "node %" PRIu64 " is %s in term %" PRIu64 ", leader %" PRIu64, node->id, names[work->role], work->term,
            work->leader);
  sim_check_role(sim, node);
}

/* Sends, or takes, what the parcel says of snapshots. That calls the core again, so it comes last. */
static void exchange_snapshots(struct sim *sim, struct sim_node *node, const struct raft_work *work,
                               const struct sim_packet *received) {
  struct raft_transfer transfers[3 * RAFT_MEMBERS_MAX];
  const size_t n = work->n_transfers;
  const bool chunk = work->chunk;
  if (n > 0) memcpy(transfers, work->transfers, n * sizeof *transfers);
  for (size_t i = 0; i < n && !sim->has_failed; i++) sim_snapshot_transfer(sim, node, &transfers[i]);
  if (chunk && !sim->has_failed) sim_snapshot_receive(sim, node, received);
}

static void take_work(struct sim *sim, struct sim_node *node, const struct sim_packet *received) {
  const uint64_t committed_before = node->commit_index;
  struct raft_work work;
  while (!sim->has_failed && raft_take_work(node->raft, &work)) {
    uint64_t latest;
    (void)raft_get_configuration(node->raft, &latest);
    node->term = work.term;
    /* One that was appended in this event did not decide in it: what comes of a commit comes after it. */
    node->decided_by = work.configuration_index > 0 ? work.configuration_index - 1 : latest;
    if (work.persist > 0) persist(sim, node, &work, received);
    for (size_t i = 0; i < work.n_messages && !sim->has_failed; i++) send(sim, node, &work.messages[i]);
    if (work.role_changed) note_role(sim, node, &work);
    if (work.commit_index != node->commit_index) sim_check_commit(sim, node, work.commit_index);
    for (size_t i = 0; i < work.n_reads; i++) sim_check_read(sim, node, &work.reads[i]);
    if (!sim->has_failed) exchange_snapshots(sim, node, &work, received);
  }
  forget_staged(node);
  if (sim->has_failed) return;
  sim_snapshot_consider(sim, node);
  if (node->commit_index != committed_before) sim_workload_ask(sim, node);
  begin_write(sim, node);
  const uint64_t until = sim_clock_until(&node->clock, sim->now, raft_next_tick(node->raft));
  if (sim->now + until < node->tick_at || node->tick_at <= sim->now) {
    /* The loop's timer is as late as timers are. */
    const uint64_t late = sim_random_below(&sim->random, SIM_MS / 2);
    node->tick_at = sim->now + until + late;
    sim_schedule(sim, until + late, SIM_EVENT_TICK, node->slot, ++node->tick_generation, NULL);
  }
}

/* ---- Events in ---- */

static void receive(struct sim *sim, struct sim_node *node, struct sim_packet *packet) {
  sim_network_note_arrival(sim, packet);
  if (sim->trace.is_on) {
    char text[128];
    SIM_TRACE(sim, "node %" PRIu64 " ← %" PRIu64 ": %s", node->id, packet->message.from,
              sim_message_text(&packet->message, text, sizeof text));
  }
  packet->message.entries = packet->metas;
  packet->message.payloads = packet->payloads;
  for (uint32_t i = 0; i < packet->n; i++)
    if (packet->entries[i].type == RAFT_ENTRY_CONFIGURATION) packet->payloads[i] = packet->entries[i].payload->bytes;
  raft_receive(node->raft, local_now(sim, node), &packet->message);
  take_work(sim, node, packet);
  sim_packet_free(packet);
}

void sim_node_change(struct sim *sim, struct sim_node *node, const struct raft_change *changes, size_t n) {
  uint64_t index = 0;
  if (!sim_node_runs(node) || node->is_paused) return;
  const int rc = raft_change_members(node->raft, local_now(sim, node), changes, n, &index);
  for (size_t i = 0; i < n; i++)
    SIM_TRACE(sim, "node %" PRIu64 " is asked for change %d of node %" PRIu64 ": %s", node->id, (int)changes[i].type,
              changes[i].id, raft_error_text(rc));
  sim->counters[rc == 0 ? SIM_CHANGE : SIM_CHANGE_REFUSED]++;
  if (rc == 0 && node->role != RAFT_LEADER)
    sim_fail(sim, "node %" PRIu64 " changes the members, but does not lead", node->id);
  take_work(sim, node, NULL);
}

void sim_node_hand_over(struct sim *sim, struct sim_node *node, uint64_t to) {
  if (!sim_node_runs(node) || node->is_paused) return;
  const int rc = raft_hand_over(node->raft, local_now(sim, node), to);
  SIM_TRACE(sim, "node %" PRIu64 " is asked to hand over to %" PRIu64 ": %s", node->id, to, raft_error_text(rc));
  sim->counters[rc == 0 ? SIM_HAND_OVER : SIM_HAND_OVER_REFUSED]++;
  if (rc == 0 && node->role != RAFT_LEADER) sim_fail(sim, "node %" PRIu64 " hands over, but does not lead", node->id);
  take_work(sim, node, NULL);
}

static void into_inbox(struct sim_node *node, struct sim_inbox_item item) {
  node->inbox = sim_grow(node->inbox, &node->inbox_capacity, node->n_inbox + 1, sizeof *node->inbox);
  node->inbox[node->n_inbox++] = item;
}

static void stage(struct sim_node *node, uint8_t type, uint64_t term, uint64_t index, struct raft_payload *payload) {
  node->staged = sim_grow(node->staged, &node->staged_capacity, node->n_staged + 1, sizeof *node->staged);
  node->staged[node->n_staged++] = (struct raft_entry){.type = type,
                                                       .flags = type == RAFT_ENTRY_DATA ? RAFT_ENTRY_LAST : 0,
                                                       .term = term,
                                                       .index = index,
                                                       .origin = node->incarnation,
                                                       .origin_sequence = ++node->sequence,
                                                       .payload = payload};
}

static void propose_now(struct sim *sim, struct sim_node *node, uint64_t id, uint32_t n) {
  struct raft_status status;
  raft_get_status(node->raft, &status);
  for (uint32_t i = 0; i < n; i++) {
    struct sim_operation *operation = &sim->workload.operations[id - 1 + i];
    struct raft_payload *payload = sim_payload_new(id + i);
    const bool stale = sim_random_chance(&sim->random, 20);
    uint64_t index = 0;
    const int rc = raft_propose(node->raft, local_now(sim, node), stale ? status.term - 1 : status.term,
                                RAFT_ENTRY_DATA, payload->size, &index);
    if (rc == 0 && (stale || status.role != RAFT_LEADER))
      sim_fail(sim, "node %" PRIu64 " took a proposal for a term in which it does not lead", node->id);
    operation->boot = node->boot;
    if (rc != 0) {
      operation->state = SIM_OP_REFUSED;
      raft_payload_unref(payload);
      continue;
    }
    operation->state = SIM_OP_PENDING;
    operation->term = status.term;
    operation->index = index;
    sim->counters[SIM_PROPOSED]++;
    SIM_TRACE(sim, "node %" PRIu64 " takes proposal %" PRIu64 " as %" PRIu64 "/%" PRIu64, node->id, id + i, index,
              status.term);
    stage(node, RAFT_ENTRY_DATA, status.term, index, payload);
    node->pending = sim_grow(node->pending, &node->pending_capacity, node->n_pending + 1, sizeof *node->pending);
    node->pending[node->n_pending++] = id + i;
  }
  take_work(sim, node, NULL);
}

static void read_now(struct sim *sim, struct sim_node *node, uint64_t context) {
  struct sim_read *read = &sim->workload.reads[context - 1];
  read->is_queued = false;
  read->boot = node->boot;
  SIM_TRACE(sim, "node %" PRIu64 " read %" PRIu64 " level %d bound %" PRIu64, node->id, context, (int)read->level,
            read->bound);
  if (raft_read(node->raft, local_now(sim, node), context, read->level) != 0) read->is_done = true;
  take_work(sim, node, NULL);
}

void sim_node_propose(struct sim *sim, struct sim_node *node, uint64_t id, uint32_t n) {
  if (node->is_paused) {
    into_inbox(node, (struct sim_inbox_item){.kind = SIM_INBOX_PROPOSE, .number = id});
    for (uint32_t i = 1; i < n; i++) sim->workload.operations[id - 1 + i].state = SIM_OP_REFUSED;
  } else {
    propose_now(sim, node, id, n);
  }
}

void sim_node_read(struct sim *sim, struct sim_node *node, uint64_t context) {
  if (node->is_paused)
    into_inbox(node, (struct sim_inbox_item){.kind = SIM_INBOX_READ, .number = context});
  else
    read_now(sim, node, context);
}

static void tick(struct sim *sim, struct sim_node *node) {
  node->tick_at = 0;
  raft_tick(node->raft, local_now(sim, node));
  take_work(sim, node, NULL);
}

/* ---- Pause and resume ---- */

void sim_node_pause(struct sim *sim, struct sim_node *node, uint64_t for_ns) {
  if (!sim_node_runs(node) || node->is_paused) return;
  SIM_TRACE(sim, "node %" PRIu64 " is frozen for %.1f ms", node->id, (double)for_ns / 1e6);
  node->is_paused = true;
  node->paused_at = sim->now;
  sim->counters[SIM_PAUSE]++;
  sim->counters[SIM_TIME_JUMP] += for_ns > sim->election_ns;
  sim_schedule(sim, for_ns, SIM_EVENT_RESUME, node->slot, node->boot, NULL);
}

static void resume(struct sim *sim, struct sim_node *node) {
  SIM_TRACE(sim, "node %" PRIu64 " goes on", node->id);
  node->is_paused = false;
  /* The timer may fire before what waits is read, or after it. */
  if (sim_random_chance(&sim->random, 500)) tick(sim, node);
  for (size_t i = 0; i < node->n_inbox; i++) {
    const struct sim_inbox_item item = node->inbox[i];
    if (!sim_node_runs(node) || sim->has_failed) {
      sim_packet_free(item.packet);
      continue;
    }
    switch (item.kind) {
    case SIM_INBOX_PACKET: receive(sim, node, item.packet); break;
    case SIM_INBOX_WRITTEN: written(sim, node); break;
    case SIM_INBOX_PROPOSE: propose_now(sim, node, item.number, 1); break;
    case SIM_INBOX_READ: read_now(sim, node, item.number); break;
    }
  }
  node->n_inbox = 0;
  if (sim_node_runs(node) && !sim->has_failed) tick(sim, node);
}

void sim_node_set_electable(struct sim *sim, struct sim_node *node, bool electable) {
  if (!sim_node_runs(node) || node->is_paused || node->is_unelectable == !electable) return;
  node->is_unelectable = !electable;
  sim->counters[SIM_NOT_ELECTABLE] += !electable;
  SIM_TRACE(sim, "node %" PRIu64 " is %selectable", node->id, electable ? "" : "not ");
  raft_set_electable(node->raft, local_now(sim, node), electable);
  take_work(sim, node, NULL);
}

/* ---- Life and death ---- */

static struct raft_uuid new_uuid(struct sim *sim) {
  struct raft_uuid uuid;
  for (size_t i = 0; i < sizeof uuid.bytes; i++) uuid.bytes[i] = (uint8_t)sim_random_next(&sim->random);
  return uuid;
}

void sim_node_init(struct sim *sim, uint32_t slot) {
  struct sim_node *node = &sim->nodes[slot];
  node->slot = slot;
  node->id = slot + 1;
  node->incarnation = new_uuid(sim);
  node->disk = late_disk_new(&sim->random);
  snprintf(node->folder, sizeof node->folder, "node%u", slot + 1);
  snprintf(node->state_path, sizeof node->state_path, "node%u/vote", slot + 1);
  node->clock.offset = sim_random_below(&sim->random, 1000 * OS_SECOND);
  if (sim_random_chance(&sim->random, 600)) {
    /* All rates lie in [1, 1 + drift]: no clock is faster than another by more than that. */
    node->clock.rate_ppm = sim->drift_permille * (sim_random_chance(&sim->random, 500)
                                                      ? 1000
                                                      : (uint32_t)sim_random_below(&sim->random, 1001));
    sim->counters[SIM_CLOCK_RATE] += node->clock.rate_ppm > 0;
  }
  node->write_ns = sim_random_between(&sim->random, 50 * SIM_US, 500 * SIM_US);
  node->write_jitter_ns = sim_random_between(&sim->random, 0, 2 * SIM_MS);
  node->is_slow = sim->profile->slow_disks && sim_random_chance(&sim->random, 700);
  if (sim->takes_snapshots && sim_random_chance(&sim->random, 700))
    node->snapshot_every = (uint32_t)sim_random_between(&sim->random, 5, 150);
}

/* Closes what is open; the queue of messages that wait for a write dies with the process. */
void sim_node_close(struct sim *sim, struct sim_node *node) {
  late_disk_stop(node->disk);
  drop_waiting(node);
  forget_staged(node);
  for (size_t i = 0; i < node->n_inbox; i++) sim_packet_free(node->inbox[i].packet);
  node->n_inbox = 0;
  sim_snapshot_crash(sim, node);
  if (node->raft) raft_close(node->raft);
  if (node->store) raft_store_close(node->store);
  if (node->state_file) raft_hard_state_close(node->state_file);
  node->raft = NULL;
  node->store = NULL;
  node->state_file = NULL;
  node->is_up = node->is_paused = node->has_failed = node->is_writing = node->has_queued_state = false;
}

static void lose_power(struct sim *sim, struct sim_node *node, enum sim_counter middle) {
  struct late_disk_loss loss;
  if (sim_random_chance(&sim->random, 250))
    late_disk_kill(node->disk, &loss);
  else
    late_disk_lose_power(node->disk, &loss);
  sim->counters[SIM_LOST_WRITE] += loss.lost;
  sim->counters[SIM_TORN_WRITE] += loss.torn;
  sim->counters[middle] += loss.middle;
}

void sim_node_crash(struct sim *sim, struct sim_node *node, uint64_t down_ns) {
  if (!node->is_up) return;
  SIM_TRACE(sim, "node %" PRIu64 " crashes for %.1f ms%s", node->id, (double)down_ns / 1e6,
            node->is_writing ? ", a write was under way" : "");
  sim->counters[SIM_CRASH]++;
  sim_workload_node_died(sim, node);
  sim_node_close(sim, node);
  lose_power(sim, node, SIM_CRASH_IN_FLUSH);
  node->boot++;
  node->role = RAFT_FOLLOWER;
  if (sim_random_chance(&sim->random, 200)) {
    node->clock.offset = sim_random_below(&sim->random, 1000 * OS_SECOND);
    sim->counters[SIM_CLOCK_OFFSET]++;
  }
  sim_schedule(sim, down_ns, SIM_EVENT_RESTART, node->slot, node->boot, NULL);
}

void sim_node_wipe(struct sim *sim, struct sim_node *node, uint64_t down_ns) {
  SIM_TRACE(sim, "node %" PRIu64 " loses its folder", node->id);
  if (node->is_up)
    sim_node_crash(sim, node, down_ns);
  else
    sim_schedule(sim, down_ns, SIM_EVENT_RESTART, node->slot, node->boot, NULL);
  sim->counters[SIM_WIPE]++;
  late_disk_wipe(node->disk);
  node->incarnation = new_uuid(sim);
  node->is_new = true;
  sim_snapshot_forget(node);
  node->log.n = node->issued.n = node->durable.n = 0;
  node->durable_state = node->issued_state = (struct raft_hard_state){0};
  node->durable_commit = 0;
}

/* All configurations of the log, from their payloads on disk, and before them that of the snapshot. Returns how many. */
static size_t find_configurations(struct sim *sim, struct sim_node *node, const struct raft_store_found *found,
                                  struct raft_start_configuration **list, struct raft_configuration **values) {
  size_t n = 0, capacity = (size_t)(found->last_index + 2 - found->first_index);
  *list = sim_new(capacity * sizeof **list);
  *values = sim_new(capacity * sizeof **values);
  if (node->snapshot.index > 0) {
    (*values)[0] = node->snapshot.configuration;
    (*list)[n++] = (struct raft_start_configuration){.index = node->snapshot.configuration_index,
                                                     .configuration = &(*values)[0]};
  }
  for (uint64_t i = found->first_index; i <= found->last_index; i++) {
    if (found->entries[i - found->first_index].type != RAFT_ENTRY_CONFIGURATION) continue;
    if (n > 0 && i <= (*list)[n - 1].index) continue;
    struct raft_entry entry;
    if (raft_store_read(node->store, i, 1, 1, &entry) != 1) {
      sim_fail(sim, "node %" PRIu64 ": configuration %" PRIu64 " can't be read", node->id, i);
      break;
    }
    const int rc = raft_configuration_decode(entry.payload->bytes, entry.payload->size, &(*values)[n]);
    raft_payload_unref(entry.payload);
    if (rc != 0) sim_fail(sim, "node %" PRIu64 ": configuration %" PRIu64 " is damaged", node->id, i);
    (*list)[n] = (struct raft_start_configuration){.index = i, .configuration = &(*values)[n]};
    n++;
  }
  return n;
}

/* Entry 1, and those of a database that exists already, as the node that forms the cluster writes them. */
static void form(struct sim *sim, struct sim_node *node) {
  const size_t size = raft_configuration_size(&sim->configuration);
  struct raft_payload *payload = raft_payload_new((uint32_t)size);
  raft_configuration_encode(&sim->configuration, payload->bytes);
  int rc = raft_bootstrap(node->raft, local_now(sim, node), &sim->configuration);
  stage(node, RAFT_ENTRY_CONFIGURATION, 1, 1, payload);
  for (uint32_t i = 0; i < sim->n_first && rc == 0; i++) {
    uint64_t index = 0;
    payload = sim_payload_new(1 + i);
    rc = raft_bootstrap_entry(node->raft, RAFT_ENTRY_DATA, payload->size, &index);
    stage(node, RAFT_ENTRY_DATA, 1, index, payload);
  }
  if (rc != 0) sim_fail(sim, "node %" PRIu64 " can't form the cluster: %s", node->id, raft_error_text(rc));
  take_work(sim, node, NULL);
}

/* 0, or the negative errno of a disk that is full or failing. */
static int open_files(struct sim *sim, struct sim_node *node, struct raft_hard_state *state,
                      struct raft_store_found *found) {
  struct os *os = late_disk_os(node->disk);
  char text[RAFT_STORE_TEXT_MAX] = "";
  const struct raft_store_options options = {.segment_bytes = sim->segment_bytes, .cache_bytes = sim->cache_bytes};
  *found = (struct raft_store_found){0};
  int rc = raft_hard_state_open(os, node->state_path, state, &node->state_file);
  if (rc == 0 && state->node == 0) {
    *state = (struct raft_hard_state){.node = node->id, .incarnation = node->incarnation};
    rc = raft_hard_state_write(node->state_file, state);
    state->node = 0; /* it is its first start */
  }
  if (rc == 0) rc = sim_snapshot_load(sim, node);
  if (rc == 0) rc = raft_store_open(os, node->folder, &node->incarnation, &options, found, &node->store, text);
  if (rc != 0 && rc != -ENOSPC && rc != -EIO)
    sim_fail(sim, "node %" PRIu64 " can't open its files: %d, %s", node->id, rc, text);
  return rc;
}

/* A snapshot became durable, but the log did not begin anew behind it any more: that is done now. */
static int follow_snapshot(struct sim *sim, struct sim_node *node, struct raft_store_found *found) {
  const struct sim_snapshot *snapshot = &node->snapshot;
  const bool reaches = found->last_index >= snapshot->index;
  uint64_t term = found->prev_term, persist;
  if (reaches && snapshot->index >= found->first_index)
    term = found->entries[snapshot->index - found->first_index].term;
  if (snapshot->index == 0 || (reaches && term == snapshot->term)) return 0;
  SIM_TRACE(sim, "node %" PRIu64 " begins its log anew behind snapshot %" PRIu64, node->id, snapshot->index);
  int rc = raft_store_reset(node->store, snapshot->index, snapshot->term, 0);
  if (rc == 0) rc = raft_store_flush(node->store, &persist);
  if (rc != 0) return rc;
  sim->counters[SIM_RESET_AT_START]++;
  free(found->entries);
  *found = (struct raft_store_found){.first_index = snapshot->index + 1,
                                     .last_index = snapshot->index,
                                     .prev_term = snapshot->term,
                                     .cut = found->cut};
  return 0;
}

static void open_core(struct sim *sim, struct sim_node *node, const struct raft_hard_state *state,
                      const struct raft_store_found *found) {
  struct raft_configuration *values;
  struct raft_start_configuration *configurations;
  struct raft_term_start *terms;
  size_t n_terms = sim_snapshot_terms(&node->snapshot, &terms);
  while (n_terms > 0 && terms[n_terms - 1].index >= found->first_index) n_terms--;
  const size_t n_configurations = find_configurations(sim, node, found, &configurations, &values);
  const uint64_t commit = node->durable_commit > node->commit_index ? node->durable_commit : node->commit_index;
  const struct raft_options options = {.id = node->id,
                                       .incarnation = node->incarnation,
                                       .seed = sim_random_next(&sim->random),
                                       .election_ns = sim->election_ns,
                                       .heartbeat_ns = sim->heartbeat_ns,
                                       .drift_permille = sim->drift_permille,
                                       .window_bytes = sim->window_bytes,
                                       .batch_bytes = sim->batch_bytes,
                                       .round_trip_short_ns = sim->round_trip_short_ns};
  const struct raft_start start = {.now = local_now(sim, node),
                                   .term = state->term,
                                   .voted_for = state->voted_for,
                                   .first_index = found->first_index,
                                   .prev_term = found->prev_term,
                                   .last_index = found->last_index,
                                   .entries = found->entries,
                                   .commit_index = commit,
                                   .terms = terms,
                                   .n_terms = n_terms,
                                   .configurations = configurations,
                                   .n_configurations = n_configurations,
                                   .restarted = state->node != 0};
  const int rc = raft_open(&options, &start, &node->raft);
  free(terms);
  free(configurations);
  free(values);
  if (rc != 0) sim_fail(sim, "node %" PRIu64 ": the core does not open: %s", node->id, raft_error_text(rc));
}

static void reset_for_start(struct sim_node *node) {
  node->is_paused = node->has_failed = node->is_unelectable = node->is_writing = node->has_queued_state = false;
  node->persist_given = node->persist_done = node->write_persist = 0;
  node->commit_index = node->state = 0;
  node->tick_at = 0;
  node->role = RAFT_FOLLOWER;
  node->term = node->leader = 0;
  node->sequence = (uint64_t)node->boot << 32;
}

/* What was found in the log is what the node has now. */
static void adopt_log(struct sim *sim, struct sim_node *node, const struct raft_store_found *found) {
  node->log.n = 0;
  take_committed(sim, node, found->first_index - 1);
  node->log_changed = node->issued_changed = 1;
  for (uint64_t index = found->first_index; index <= found->last_index && !sim->has_failed; index++) {
    struct raft_entry entry;
    if (!sim_node_entry(sim, node, index, &entry)) break;
    if (entry.index != index || entry.term != found->entries[index - found->first_index].term)
      sim_fail(sim, "node %" PRIu64 ": entry %" PRIu64 " on disk is not the one that the log names", node->id, index);
    set_log(sim, node, &entry);
    raft_payload_unref(entry.payload);
  }
  log_copy_from(&node->issued, &node->log, 1);
  log_copy_from(&node->durable, &node->log, 1);
  node->log_changed = node->issued_changed = node->log.n + 1;
}

void sim_node_start(struct sim *sim, struct sim_node *node) {
  reset_for_start(node);
  struct raft_hard_state state;
  struct raft_store_found found;
  int rc = open_files(sim, node, &state, &found);
  if (rc == 0) sim_check_recovered(sim, node, &found, &state);
  if (rc == 0 && !sim->has_failed) rc = follow_snapshot(sim, node, &found);
  /* Sometimes the machine dies again while it starts. */
  const bool dies = rc != 0 || (!sim->faults.is_stopped && sim_random_chance(&sim->random, 100));
  if (dies || sim->has_failed) {
    free(found.entries);
    sim_node_close(sim, node);
    lose_power(sim, node, SIM_CRASH_IN_RECOVERY);
    sim_schedule(sim, 10 * SIM_MS, SIM_EVENT_RESTART, node->slot, node->boot, NULL);
    return;
  }
  late_disk_settle(node->disk, late_disk_position(node->disk));
  sim->counters[SIM_CUT] += found.cut;
  SIM_TRACE(sim, "node %" PRIu64 " starts: term %" PRIu64 ", vote %" PRIu64 ", log up to %" PRIu64 "%s", node->id,
            state.term, state.voted_for, found.last_index, found.cut ? ", a torn end was cut" : "");
  node->durable_state = node->issued_state = state;
  node->is_up = true;
  adopt_log(sim, node, &found);
  if (node->snapshot.index > 0) sim_check_install(sim, node);
  if (!sim->has_failed) open_core(sim, node, &state, &found);
  const bool is_fresh = found.last_index == 0;
  free(found.entries);
  if (sim->has_failed) return;
  node->term = state.term;
  take_work(sim, node, NULL);
  if (node->slot == 0 && is_fresh && !node->is_new) form(sim, node);
}

void sim_node_handle(struct sim *sim, const struct sim_event *event) {
  struct sim_node *node = &sim->nodes[event->node];
  const bool same_boot = event->number == node->boot;
  switch (event->kind) {
  case SIM_EVENT_DELIVER:
    if (!sim_node_runs(node))
      sim_packet_free(event->data);
    else if (node->is_paused)
      into_inbox(node, (struct sim_inbox_item){.kind = SIM_INBOX_PACKET, .packet = event->data});
    else
      receive(sim, node, event->data);
    break;
  case SIM_EVENT_TICK:
    if (event->number == node->tick_generation && sim_node_runs(node) && !node->is_paused) tick(sim, node);
    break;
  case SIM_EVENT_DISK:
    if (!same_boot || !node->is_up) break;
    settle_write(node);
    if (node->is_paused)
      into_inbox(node, (struct sim_inbox_item){.kind = SIM_INBOX_WRITTEN});
    else
      written(sim, node);
    break;
  case SIM_EVENT_SNAPSHOT:
    if (!same_boot || !node->is_up) break;
    sim_snapshot_written(sim, node);
    if (sim_node_runs(node) && !node->is_paused && !sim->has_failed) take_work(sim, node, NULL);
    break;
  case SIM_EVENT_RETRY:
    if (!same_boot || !sim_node_runs(node)) break;
    if (node->is_paused) {
      sim_schedule(sim, 5 * SIM_MS, SIM_EVENT_RETRY, node->slot, node->boot, NULL);
      break;
    }
    node->is_writing = false;
    begin_write(sim, node);
    break;
  case SIM_EVENT_RESTART:
    if (!same_boot) break;
    if (node->has_failed)
      sim_node_crash(sim, node, SIM_MS);
    else if (!node->is_up)
      sim_node_start(sim, node);
    break;
  case SIM_EVENT_RESUME:
    if (same_boot && node->is_paused) resume(sim, node);
    break;
  default: break;
  }
}
