/*
** Driving the core: events go in under the node's mutex, the work that comes out is carried out before the
** mutex is given back, so that nothing overtakes anything.
*/
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "node_internal.h"

/* ---- Messages ---- */

/* Entries that left the memory are read by the log thread; so are entries that are only partly there. */
static void read_later(struct node *node, const struct raft_message *message) {
  if (node->n_disk_reads == NODE_DISK_READS_MAX) return;
  node->disk_reads[(node->disk_reads_first + node->n_disk_reads++) % NODE_DISK_READS_MAX] = *message;
  pthread_cond_signal(&node->log_condition);
}

static void send_entries(struct node *node, const struct raft_message *message) {
  assert(message->n_entries <= NODE_APPEND_ENTRIES_MAX);
  int64_t n = raft_store_get(node->store, message->index + 1, message->n_entries, SIZE_MAX, node->scratch);
  if (n == (int64_t)message->n_entries) raft_transport_send(node->link, message, node->scratch);
  for (int64_t i = 0; i < n; i++) raft_payload_unref(node->scratch[i].payload);
  if (n >= 0 && n < (int64_t)message->n_entries) read_later(node, message);
}

void node_send(struct node *node, const struct raft_message *message) {
  if (!node->link) return; /* the node stops: it only writes what is left */
  if (message->type == RAFT_APPEND && message->n_entries > 0)
    send_entries(node, message);
  else
    raft_transport_send(node->link, message, NULL);
}

/* Waits for its write. A message that finds no room is lost as on a network. */
static void delay(struct node *node, const struct raft_outgoing *outgoing) {
  if (node->n_delayed == node->delayed_capacity) {
    size_t capacity = node->delayed_capacity ? node->delayed_capacity * 2 : 64;
    if (capacity > NODE_MESSAGES_MAX) return;
    struct node_delayed *grown = realloc(node->delayed, capacity * sizeof *grown);
    if (!grown) return;
    node->delayed = grown;
    node->delayed_capacity = capacity;
  }
  node->delayed[node->n_delayed++] = (struct node_delayed){outgoing->message, outgoing->after};
}

static void send_durable(struct node *node) {
  size_t kept = 0;
  for (size_t i = 0; i < node->n_delayed; i++) {
    if (node->delayed[i].after <= node->reported)
      node_send(node, &node->delayed[i].message);
    else
      node->delayed[kept++] = node->delayed[i];
  }
  node->n_delayed = kept;
}

static void send_messages(struct node *node, const struct raft_work *work) {
  for (size_t i = 0; i < work->n_messages; i++) {
    if (work->messages[i].after <= node->reported)
      node_send(node, &work->messages[i].message);
    else
      delay(node, &work->messages[i]);
  }
}

/* ---- Roles ---- */

/*
** The right to write is over. What this node wrote and the majority may not have is taken back by the apply
** thread. What was committed by now counts; an index learned later may be another node's entry.
*/
static void end_epoch(struct node *node) {
  node->epoch = 0;
  node->compensation_owed = true;
  node->lost_commit = node->commit_index;
  vfs_committed(node->database, node->commit_index);
  vfs_epoch_lost(node->database);
}

static void change_role(struct node *node, const struct raft_work *work) {
  if (node->epoch != 0 && (work->role != RAFT_LEADER || work->term != node->epoch)) end_epoch(node);
  if (work->role == RAFT_LEADER && (node->role != RAFT_LEADER || node->term != work->term))
    node->leads_since = os_now(node->os);
  /* Without a leader it has met some who are none of its members (node_members.c). */
  if (work->leader != 0 && work->leader != node->leader && node->link) raft_transport_review(node->link);
  node->role = work->role;
  node->term = work->term;
  node->leader = work->leader;
  pthread_cond_broadcast(&node->epoch_condition);
  pthread_cond_broadcast(&node->asking_condition);
}

static void change_commit(struct node *node, uint64_t commit_index) {
  node->commit_index = commit_index;
  raft_store_commit(node->store, commit_index);
  if (node->epoch == 0) return;
  vfs_committed(node->database, commit_index);
  node->applied_index = commit_index;
}

/* When members were heard, in the order of another configuration. */
static void keep_heard(struct node *node, const struct raft_configuration *configuration) {
  uint64_t heard_at[RAFT_MEMBERS_MAX] = {0};
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    const struct raft_member *member = raft_configuration_find(&node->configuration, configuration->members[i].id);
    if (member && node_uuid_equal(&member->incarnation, &configuration->members[i].incarnation))
      heard_at[i] = node->heard_at[member - node->configuration.members];
  }
  memcpy(node->heard_at, heard_at, sizeof heard_at);
}

void node_configuration_changed(struct node *node) {
  uint64_t index = 0;
  const struct raft_configuration *configuration = raft_get_configuration(node->raft, &index);
  keep_heard(node, configuration);
  node->configuration = *configuration;
  pthread_mutex_lock(&node->facts_mutex);
  node->facts.cluster = configuration->cluster;
  node->facts.database = configuration->database;
  if (configuration->n_members > 0) {
    node->facts.election_ms = configuration->settings.election_ms;
    node->facts.page_size = configuration->settings.page_size;
    node->facts.auto_vacuum = configuration->settings.auto_vacuum;
  }
  pthread_mutex_unlock(&node->facts_mutex);
  if (configuration->n_members == 0) return;
  raft_forming_close(node->forming);
  node->forming = NULL;
  node->forming_text[0] = 0;
  node_members_changed(node);
}

/* ---- The loop ---- */

static void arm(struct node *node) {
  uint64_t next = raft_next_tick(node->raft);
  if (!node->link) return;
  if (node->armed != 0 && node->armed <= next) return;
  node->armed = next;
  raft_transport_wake_at(node->link, next);
}

/* Tells the core what has become durable. true: something has. */
static bool report(struct node *node) {
  uint64_t durable = node->store_durable;
  if (node->hard_state_writing != 0 && node->hard_state_writing <= durable) durable = node->hard_state_writing - 1;
  if (node->hard_state_first != 0 && node->hard_state_first <= durable) durable = node->hard_state_first - 1;
  if (durable <= node->reported || node->failed[0]) return false;
  node->reported = durable;
  send_durable(node);
  raft_persisted(node->raft, os_now(node->os), durable);
  return true;
}

/* A failed write stops the core for good. true: it has just been told. */
static bool report_failure(struct node *node) {
  if (!node->failed[0] || node->failure_told) return false;
  node->failure_told = true;
  raft_persist_failed(node->raft, os_now(node->os));
  return true;
}

/* A node that joins has other times than the cluster, until it hears of them. */
static void keep_time(struct node *node) {
  const struct raft_settings *settings = &node->configuration.settings;
  if (node->configuration.n_members == 0 ||
      (settings->election_ms == node->election_ms && settings->heartbeat_ms == node->heartbeat_ms))
    return;
  node->election_ms = settings->election_ms;
  node->heartbeat_ms = settings->heartbeat_ms;
  raft_set_timing(node->raft, os_now(node->os), node->election_ms * OS_MS, node->heartbeat_ms * OS_MS);
}

static bool update_electable(struct node *node) {
  /*
  ** Entries of term 1 are the first state of the cluster, written by the node that formed it. Until a leader's
  ** no-op is behind them, only that node is known to hold all of them: it alone may win the first election.
  */
  bool has_first_state = node->is_former || raft_term_at(node->raft, node->last_index) != 1;
  bool electable = has_first_state && node->removed_index == 0 && !node->apply_blocked && !node->quarantine[0] &&
                   !node->no_space;
  if (electable == node->electable) return false;
  node->electable = electable;
  raft_set_electable(node->raft, os_now(node->os), electable);
  return true;
}

static void carry_out(struct node *node, const struct raft_work *work, const struct raft_entry *entries,
                      size_t n_entries) {
  if (work->persist != 0) node_queue_write(node, work, entries, n_entries);
  send_messages(node, work);
  if (work->role_changed) change_role(node, work);
  if (work->hand_over_to != node->hand_over_to) {
    node->hand_over_to = work->hand_over_to;
    pthread_cond_broadcast(&node->epoch_condition);
  }
  if (work->commit_index > node->commit_index) change_commit(node, work->commit_index);
  if (work->n_reads > 0) node_answer_reads(node, work->reads, work->n_reads);
  if (work->configuration_changed) node_configuration_changed(node);
  for (size_t i = 0; i < work->n_transfers; i++) node_transfer_event(node, &work->transfers[i]);
  if (work->chunk) node_take_chunk(node, node->received, node->received_chunk);
}

static void look_in(struct node *node) {
  struct raft_status status;
  raft_get_status(node->raft, &status);
  node->durable_index = status.durable_index;
  node->last_index = status.last_index;
  if (status.configuration_committed) node_members_settled(node, &status);
}

void node_drain(struct node *node, const struct raft_entry *entries, size_t n_entries) {
  bool again = true;
  if (node->frozen) return;
  while (again) {
    struct raft_work work;
    node_step_commands(node);
    while (raft_take_work(node->raft, &work)) carry_out(node, &work, entries, n_entries);
    keep_time(node);
    look_in(node);
    again = report(node);
    again = report_failure(node) || again;
    again = update_electable(node) || again;
  }
  node_decide(node);
  node_decide_durable(node);
  node_hand_over(node);
  node_wake_apply(node);
  arm(node);
}

int node_raft_open(struct node *node, const struct raft_start *start, char *text) {
  const struct raft_configuration *latest = node_start_latest(start);
  const struct raft_settings *settings = latest ? &latest->settings : NULL;
  node->election_ms = settings ? settings->election_ms : node->options.election_ms;
  node->heartbeat_ms = settings ? settings->heartbeat_ms : node->options.heartbeat_ms;
  struct raft_options options = {
      .id = node->id,
      .incarnation = node->incarnation,
      .election_ns = node->election_ms * OS_MS,
      .heartbeat_ns = node->heartbeat_ms * OS_MS,
      .drift_permille = NODE_DRIFT_PERMILLE,
      .window_bytes = NODE_WINDOW_BYTES,
      .round_trip_short_ns = NODE_ROUND_TRIP_SHORT,
      .batch_bytes = NODE_BATCH_BYTES,
  };
  os_random(node->os, &options.seed, sizeof options.seed);
  int error = raft_open(&options, start, &node->raft);
  if (error) {
    node_say(text, "%s: the Raft core cannot start: %s", node->path, raft_error_text(error));
    return error == RAFT_NO_MEMORY ? SQLITE_NOMEM : SQLITE_CORRUPT;
  }
  node->electable = true;
  node->term = start->term;
  node->commit_index = start->commit_index;
  node->last_index = start->last_index;
  node_configuration_changed(node);
  return SQLITE_OK;
}

/* ---- Callbacks of the transport, on its loop thread ---- */

static void on_hello(void *ctx, struct raft_hello *hello) {
  struct node *node = ctx;
  pthread_mutex_lock(&node->facts_mutex);
  *hello = node->facts;
  pthread_mutex_unlock(&node->facts_mutex);
}

static bool reserve_receive(struct node *node, size_t n) {
  if (n <= node->receive_capacity) return true;
  size_t capacity = n + n / 2;
  struct raft_entry_meta *metas = realloc(node->metas, capacity * sizeof *metas);
  if (metas) node->metas = metas;
  const uint8_t **payloads = realloc(node->payloads, capacity * sizeof *payloads);
  if (payloads) node->payloads = payloads;
  if (!metas || !payloads) return false;
  node->receive_capacity = capacity;
  return true;
}

/* What the core needs of the entries. false: they do not follow each other, or there is no memory. */
static bool describe_entries(struct node *node, struct raft_message *message, const struct raft_entry *entries) {
  message->entries = NULL;
  message->payloads = NULL;
  if (message->n_entries == 0) return true;
  assert(entries); /* the transport's word: raft/io/transport.h */
  if (!reserve_receive(node, message->n_entries)) return false;
  for (uint32_t i = 0; i < message->n_entries; i++) {
    if (entries[i].index != message->index + 1 + i) return false;
    node->metas[i] = (struct raft_entry_meta){
        .term = entries[i].term, .size = raft_entry_size(&entries[i]), .type = entries[i].type};
    node->payloads[i] = entries[i].payload ? entries[i].payload->bytes : NULL;
  }
  message->entries = node->metas;
  message->payloads = node->payloads;
  return true;
}

/* A member has spoken: as a leader? */
static void note_heard(struct node *node, const struct raft_message *message) {
  uint64_t now = os_now(node->os);
  bool is_of_leader = message->type == RAFT_APPEND || message->type == RAFT_HEARTBEAT || message->type == RAFT_SNAPSHOT;
  const struct raft_member *member = raft_configuration_find(&node->configuration, message->from);
  if (is_of_leader) node->leader_heard_at = now;
  if (member && node_uuid_equal(&member->incarnation, &message->from_incarnation))
    node->heard_at[member - node->configuration.members] = now;
}

static void on_receive(void *ctx, const struct raft_message *received, const struct raft_entry *entries) {
  struct node *node = ctx;
  struct raft_message message = *received;
  struct raft_payload *chunk = message.type == RAFT_SNAPSHOT && entries ? entries[0].payload : NULL;
  pthread_mutex_lock(&node->mutex);
  if (!node->stopping && !node->frozen && describe_entries(node, &message, entries)) {
    node->refused_text[0] = 0;
    node->received = &message;
    node->received_chunk = chunk;
    note_heard(node, &message);
    raft_receive(node->raft, os_now(node->os), &message);
    node_drain(node, entries, message.n_entries);
    node->received = NULL;
    node->received_chunk = NULL;
  }
  pthread_mutex_unlock(&node->mutex);
}

/*
** Writes that a committing thread was to lead and did not come for (its statement failed in between) are left to the log
** thread when they are still there a tick later.
*/
static void look_after_log(struct node *node) {
  bool is_left = node->flushes == node->flushes_seen && !node->flushing && raft_store_is_pending(node->store);
  node->flushes_seen = node->flushes;
  if (is_left) node->unattended = true;
}

static void on_wake(void *ctx) {
  struct node *node = ctx;
  pthread_mutex_lock(&node->mutex);
  node->armed = 0;
  if (!node->stopping && !node->frozen) {
    look_after_log(node);
    raft_tick(node->raft, os_now(node->os));
    node_members_tick(node);
    node_drain(node, NULL, 0);
  }
  pthread_mutex_unlock(&node->mutex);
}

const struct raft_transport_methods node_transport_methods = {
    .hello = on_hello,
    .meet = node_meet,
    .greet = node_greet,
    .refused = node_refused,
    .receive = on_receive,
    .request = node_request_received,
    .wake = on_wake,
};
