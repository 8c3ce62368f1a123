/* The world of the golden scripts: disks, network and clock around the cores. */
#include "world.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const type_names[] = {
    [RAFT_PRE_VOTE] = "PRE_VOTE",
    [RAFT_PRE_VOTE_RESULT] = "PRE_VOTE_RESULT",
    [RAFT_VOTE] = "VOTE",
    [RAFT_VOTE_RESULT] = "VOTE_RESULT",
    [RAFT_APPEND] = "APPEND",
    [RAFT_APPEND_RESULT] = "APPEND_RESULT",
    [RAFT_HEARTBEAT] = "HEARTBEAT",
    [RAFT_HEARTBEAT_RESULT] = "HEARTBEAT_RESULT",
    [RAFT_READ_INDEX] = "READ_INDEX",
    [RAFT_READ_INDEX_RESULT] = "READ_INDEX_RESULT",
    [RAFT_SNAPSHOT] = "SNAPSHOT",
    [RAFT_SNAPSHOT_RESULT] = "SNAPSHOT_RESULT",
    [RAFT_TIMEOUT_NOW] = "TIMEOUT_NOW",
};

const char *world_type_name(uint8_t type) {
  return type >= RAFT_PRE_VOTE && type <= RAFT_TIMEOUT_NOW ? type_names[type] : "?";
}

void world_say(struct world *world, const char *format, ...) {
  char line[1024];
  va_list arguments;
  va_start(arguments, format);
  const int length = vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  assert(length >= 0 && (size_t)length < sizeof line);
  const size_t needed = world->n_output + (size_t)length + 2;
  if (needed > world->output_capacity) {
    world->output_capacity = 2 * needed;
    world->output = realloc(world->output, world->output_capacity);
    assert(world->output);
  }
  memcpy(world->output + world->n_output, line, (size_t)length);
  world->n_output += (size_t)length;
  world->output[world->n_output++] = '\n';
  world->output[world->n_output] = 0;
}

/* ---- Describing ---- */

static void add(char *text, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void add(char *text, size_t size, const char *format, ...) {
  const size_t length = strlen(text);
  va_list arguments;
  va_start(arguments, format);
  (void)vsnprintf(text + length, size - length, format, arguments);
  va_end(arguments);
}

static void describe_append(const struct world_message *message, char *text, size_t size) {
  const struct raft_message *raft = &message->message;
  add(text, size, " behind %" PRIu64 "/%" PRIu64, raft->index, raft->log_term);
  for (uint32_t i = 0; i < raft->n_entries; i++) {
    const struct world_entry *entry = &message->entries[i];
    add(text, size, "%s%" PRIu64 "/%" PRIu64 "%s%s", i == 0 ? ": " : ", ", raft->index + 1 + i, entry->meta.term,
        entry->label[0] ? " " : "", entry->label);
  }
  add(text, size, "; commit %" PRIu64, raft->commit);
}

void world_describe(const struct world_message *message, char *text, size_t size) {
  const struct raft_message *raft = &message->message;
  (void)snprintf(text, size, "%" PRIu64 ">%" PRIu64 " %s term %" PRIu64, raft->from, raft->to,
                 world_type_name(raft->type), raft->term);
  switch (raft->type) {
  case RAFT_PRE_VOTE:
  case RAFT_VOTE:
    add(text, size, " last %" PRIu64 "/%" PRIu64 "%s", raft->index, raft->log_term, raft->hand_over ? " as told" : "");
    break;
  case RAFT_TIMEOUT_NOW: add(text, size, " last %" PRIu64 "/%" PRIu64, raft->index, raft->log_term); break;
  case RAFT_PRE_VOTE_RESULT:
  case RAFT_VOTE_RESULT: add(text, size, raft->reject ? " refused" : " granted"); break;
  case RAFT_APPEND: describe_append(message, text, size); break;
  case RAFT_APPEND_RESULT:
    if (raft->reject) {
      add(text, size, " refused %" PRIu64 " hint %" PRIu64 "/%" PRIu64, raft->index, raft->hint_index, raft->hint_term);
    } else {
      add(text, size, " match %" PRIu64, raft->index);
    }
    break;
  case RAFT_HEARTBEAT:
    add(text, size, " commit %" PRIu64 "%s", raft->commit, raft->round == 0 ? " (no answer)" : "");
    break;
  case RAFT_HEARTBEAT_RESULT: add(text, size, raft->reject ? " refused" : " ok"); break;
  case RAFT_READ_INDEX: add(text, size, " read %" PRIu64, raft->context); break;
  case RAFT_READ_INDEX_RESULT:
    add(text, size, " read %" PRIu64, raft->context);
    raft->reject ? add(text, size, " refused") : add(text, size, " at %" PRIu64, raft->index);
    break;
  case RAFT_SNAPSHOT:
    add(text, size, " of %" PRIu64 "/%" PRIu64 " in transfer %" PRIu64 ": ", raft->index, raft->log_term,
        raft->context);
    raft->chunk_bytes ? add(text, size, "chunk %" PRIu64 " of %" PRIu64, raft->offset, raft->size_bytes)
                      : add(text, size, "offer at %" PRIu64 " of %" PRIu64, raft->offset, raft->size_bytes);
    break;
  case RAFT_SNAPSHOT_RESULT:
    add(text, size, " of %" PRIu64 " in transfer %" PRIu64 "%s wants %" PRIu64, raft->index, raft->context,
        raft->reject ? " refused," : "", raft->offset);
    break;
  default: break;
  }
  if (message->after) {
    add(text, size, " (after write %" PRIu64 ")", message->after);
  }
}

void world_describe_configuration(const struct raft_configuration *configuration, char *text, size_t size) {
  bool is_joint = false;
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    is_joint = is_joint || (configuration->members[i].roles & RAFT_VOTER_OLD);
  }
  text[0] = 0;
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    const uint8_t roles = configuration->members[i].roles;
    const bool is_new = roles & RAFT_VOTER_NEW, is_old = roles & RAFT_VOTER_OLD;
    add(text, size, "%s%" PRIu64 "%s%s", i ? "," : "", configuration->members[i].id,
        !is_joint          ? ""
        : is_new && is_old ? "="
        : is_new           ? "+"
        : is_old           ? "-"
                           : "",
        roles & RAFT_JOINING   ? "j"
        : roles & RAFT_LEARNER ? "l"
                               : "");
  }
}

static const char *role_name(enum raft_role role) {
  static const char *const names[] = {"follower", "pre-candidate", "candidate", "leader"};
  return names[role];
}

/* ---- What must hold ---- */

static void check_leader(struct world *world, const struct world_node *node, uint64_t term) {
  for (uint32_t i = 0; i < world->n_leaders; i++) {
    if (world->leaders[i][0] == term && world->leaders[i][1] != node->id) {
      world_say(world, "VIOLATION: nodes %" PRIu64 " and %" PRIu64 " both led in term %" PRIu64, world->leaders[i][1],
                node->id, term);
    }
  }
  if (world->n_leaders < WORLD_TERMS_MAX) {
    world->leaders[world->n_leaders][0] = term;
    world->leaders[world->n_leaders][1] = node->id;
    world->n_leaders++;
  }
}

static bool same_entry(const struct world_entry *a, const struct world_entry *b) {
  return a->meta.term == b->meta.term && a->meta.type == b->meta.type && strcmp(a->label, b->label) == 0;
}

static void check_committed(struct world *world, const struct world_node *node, uint64_t index) {
  assert(index >= 1 && index <= node->log.n);
  const struct world_entry *entry = &node->log.entries[index - 1];
  if (index <= world->committed.n) {
    if (!same_entry(entry, &world->committed.entries[index - 1])) {
      world_say(world, "VIOLATION: node %" PRIu64 " committed another entry at %" PRIu64 " than was committed before",
                node->id, index);
    }
    return;
  }
  world->committed.entries[world->committed.n++] = *entry;
}

static void check_matching(struct world *world, const struct world_log *a, const struct world_log *b) {
  bool agreed = false;
  for (uint64_t i = a->n < b->n ? a->n : b->n; i > 0; i--) {
    const bool same_term = a->entries[i - 1].meta.term == b->entries[i - 1].meta.term;
    if ((agreed || same_term) && !same_entry(&a->entries[i - 1], &b->entries[i - 1])) {
      world_say(world, "VIOLATION: logs do not match at %" PRIu64, i);
      return;
    }
    agreed = agreed || same_term;
  }
}

static void check_world(struct world *world) {
  for (uint32_t i = 0; i < world->n_nodes; i++) {
    for (uint32_t j = 0; j < i; j++) {
      check_matching(world, &world->nodes[i].log, &world->nodes[j].log);
    }
  }
}

/* ---- Disks ---- */

static void truncate_log(struct world_log *log, uint64_t from) {
  log->n = from <= log->n ? from - 1 : log->n;
}

/* The log begins anew behind what is committed up to `index`. */
static void reset_log(const struct world *world, struct world_log *log, uint64_t index) {
  assert(index <= world->committed.n);
  memcpy(log->entries, world->committed.entries, index * sizeof log->entries[0]);
  log->n = log->base = index;
}

static void write_to_disk(const struct world *world, struct world_node *node, const struct world_write *write) {
  if (write->reset_index) {
    reset_log(world, &node->disk, write->reset_index);
  }
  if (write->truncate_from) {
    truncate_log(&node->disk, write->truncate_from);
  }
  for (uint32_t i = 0; i < write->n_entries; i++) {
    assert(node->disk.n + 1 == write->append_first + i);
    node->disk.entries[node->disk.n++] = write->entries[i];
  }
  if (write->hard_state) {
    node->disk_term = write->term;
    node->disk_voted_for = write->voted_for;
  }
}

static void release_messages(struct world *world, const struct world_node *node, uint64_t number) {
  for (uint32_t i = 0; i < world->n_messages; i++) {
    struct world_message *message = &world->messages[i];
    if (message->message.from == node->id && message->after != 0 && message->after <= number) {
      message->after = 0;
    }
  }
}

void world_persist(struct world *world, struct world_node *node, uint64_t number) {
  uint32_t done = 0;
  uint64_t last = 0;
  while (done < node->n_writes && node->writes[done].number <= number) {
    write_to_disk(world, node, &node->writes[done]);
    last = node->writes[done].number;
    done++;
  }
  node->n_writes -= done;
  memmove(node->writes, node->writes + done, node->n_writes * sizeof node->writes[0]);
  if (last) {
    release_messages(world, node, last);
    raft_persisted(node->raft, world->now, last);
    world_work(world, node);
  }
}

/* ---- Work ---- */

/* An entry that holds it; the label is the caller's. */
static struct world_entry configuration_entry(struct world *world, uint64_t term,
                                              const struct raft_configuration *configuration) {
  assert(world->n_configurations < WORLD_CONFIGURATIONS_MAX);
  const uint32_t number = world->n_configurations++;
  world->configurations[number] = malloc(sizeof *configuration);
  assert(world->configurations[number]);
  *world->configurations[number] = *configuration;
  const uint32_t size = (uint32_t)raft_configuration_size(configuration);
  return (struct world_entry){.meta = {.term = term, .size = size, .type = RAFT_ENTRY_CONFIGURATION},
                              .configuration = number};
}

static void remember_entries(struct world *world, struct world_node *node, const struct raft_work *work,
                             const struct world_message *received) {
  if (work->reset_index) {
    reset_log(world, &node->log, work->reset_index);
  }
  if (work->truncate_from) {
    truncate_log(&node->log, work->truncate_from);
  }
  for (uint64_t index = work->append_first; index != 0 && index <= work->append_last; index++) {
    assert(node->log.n + 1 == index && node->log.n < WORLD_LOG_MAX);
    struct world_entry *entry = &node->log.entries[node->log.n++];
    if (work->noop && index == work->append_last) {
      *entry = (struct world_entry){.meta = {.type = RAFT_ENTRY_NOOP, .term = work->term}};
    } else if (index == work->configuration_index) {
      *entry = configuration_entry(world, work->term, raft_get_configuration(node->raft, NULL));
      world_describe_configuration(world->configurations[entry->configuration], entry->label, sizeof entry->label);
      world_say(world, "%" PRIu64 " appends %" PRIu64 "/%" PRIu64 " %s", node->id, index, work->term, entry->label);
    } else if (received) {
      *entry = received->entries[index - received->message.index - 1];
    } else {
      *entry = world->proposed;
    }
  }
}

static void queue_write(struct world *world, struct world_node *node, const struct raft_work *work) {
  assert(node->n_writes < WORLD_WRITES_MAX);
  struct world_write *write = &node->writes[node->n_writes++];
  *write = (struct world_write){.number = work->persist,
                                .reset_index = work->reset_index,
                                .truncate_from = work->truncate_from,
                                .append_first = work->append_first,
                                .hard_state = work->hard_state,
                                .term = work->term,
                                .voted_for = work->voted_for};
  for (uint64_t index = work->append_first; index != 0 && index <= work->append_last; index++) {
    assert(write->n_entries < WORLD_ENTRIES_MAX);
    write->entries[write->n_entries++] = node->log.entries[index - 1];
  }
  if (!node->manual_disk) {
    return;
  }
  char text[256] = "";
  if (work->reset_index) {
    add(text, sizeof text, " reset behind %" PRIu64 "/%" PRIu64 ",", work->reset_index, work->reset_term);
  }
  if (work->truncate_from) {
    add(text, sizeof text, " truncate %" PRIu64 ",", work->truncate_from);
  }
  if (work->append_first) {
    add(text, sizeof text, " append %" PRIu64 "-%" PRIu64 ",", work->append_first, work->append_last);
  }
  if (work->hard_state) {
    add(text, sizeof text, " term %" PRIu64 " vote %" PRIu64 ",", work->term, work->voted_for);
  }
  text[strlen(text) - 1] = 0;
  world_say(world, "%" PRIu64 " begins write %" PRIu64 ":%s", node->id, work->persist, text);
}

static void queue_message(struct world *world, struct world_node *node, const struct raft_outgoing *outgoing) {
  assert(world->n_messages < WORLD_MESSAGES_MAX);
  struct world_message *message = &world->messages[world->n_messages++];
  memset(message, 0, sizeof *message);
  message->message = outgoing->message;
  message->after = outgoing->after;
  for (uint32_t i = 0; i < outgoing->message.n_entries; i++) {
    assert(i < WORLD_ENTRIES_MAX);
    message->entries[i] = node->log.entries[outgoing->message.index + i];
  }
}

static void say_messages(struct world *world, uint32_t from) {
  char text[1024];
  for (uint32_t i = from; i < world->n_messages && !world->hide_messages; i++) {
    world_describe(&world->messages[i], text, sizeof text);
    world_say(world, "  %s", text);
  }
}

static void say_commits(struct world *world, struct world_node *node, uint64_t commit) {
  char text[1024] = "";
  for (uint64_t index = node->told_commit + 1; index <= commit; index++) {
    check_committed(world, node, index);
    const struct world_entry *entry = &node->log.entries[index - 1];
    add(text, sizeof text, "%s%" PRIu64 "/%" PRIu64 "%s%s", text[0] ? ", " : "", index, entry->meta.term,
        entry->label[0] ? " " : "", entry->label);
  }
  if (text[0]) {
    world_say(world, "%" PRIu64 " commits %s", node->id, text);
    node->told_commit = commit;
  }
}

static void say_role(struct world *world, const struct world_node *node, const struct raft_work *work) {
  if (work->role == RAFT_FOLLOWER && work->leader) {
    world_say(world, "%" PRIu64 " follows %" PRIu64 " in term %" PRIu64, node->id, work->leader, work->term);
  } else {
    world_say(world, "%" PRIu64 " is %s in term %" PRIu64, node->id, role_name(work->role), work->term);
  }
}

/* ---- Snapshots ---- */

static void send_chunk(struct world *world, struct world_node *node, const struct raft_transfer *transfer,
                       uint64_t index, uint64_t offset, bool offer) {
  const struct raft_chunk chunk = {.index = index,
                                   .term = node->log.entries[index - 1].meta.term,
                                   .offset = offset,
                                   .size_bytes = WORLD_SNAPSHOT_BYTES,
                                   .bytes = !offer && offset < WORLD_SNAPSHOT_BYTES ? WORLD_CHUNK_BYTES : 0};
  struct raft_outgoing outgoing = {.after = 0};
  const int error = raft_transfer_chunk(node->raft, world->now, transfer->id, &chunk, &outgoing.message);
  if (error) {
    world_say(world, "%" PRIu64 " cannot send: %s", node->id, raft_error_text(error));
  } else {
    queue_message(world, node, &outgoing);
  }
}

static void do_transfer(struct world *world, struct world_node *node, const struct raft_transfer *transfer) {
  switch (transfer->event) {
  case RAFT_TRANSFER_BEGIN:
    world_say(world, "%" PRIu64 " begins transfer %" PRIu64 " to %" PRIu64 "%s", node->id, transfer->id, transfer->to,
              node->snapshot_index ? "" : ", but has no snapshot");
    if (node->snapshot_index) {
      send_chunk(world, node, transfer, node->snapshot_index, 0, true);
    } else {
      raft_transfer_failed(node->raft, world->now, transfer->id);
    }
    break;
  case RAFT_TRANSFER_CONTINUE:
    if (transfer->again) {
      world_say(world, "%" PRIu64 " is to go on at %" PRIu64 " again", node->id, transfer->offset);
    }
    send_chunk(world, node, transfer, transfer->index, transfer->offset, false);
    break;
  case RAFT_TRANSFER_END:
    world_say(world, "%" PRIu64 " ends transfer %" PRIu64 " to %" PRIu64, node->id, transfer->id, transfer->to);
    break;
  }
}

/* A chunk that the core lets pass. */
static void take_chunk(struct world *world, struct world_node *node, const struct raft_message *message) {
  struct world_part *part = &node->part;
  if (part->index != message->index || part->term != message->log_term || part->size_bytes != message->size_bytes) {
    *part = (struct world_part){.index = message->index, .term = message->log_term, .size_bytes = message->size_bytes};
  }
  if (message->offset == part->offset && message->chunk_bytes > 0) {
    part->offset += message->chunk_bytes;
    if (part->offset == part->size_bytes) {
      world_say(world, "%" PRIu64 " has received snapshot %" PRIu64 "/%" PRIu64, node->id, part->index, part->term);
    }
  }
  raft_snapshot_answer(node->raft, world->now, part->index, part->offset, message->offset > part->offset);
}

static void do_parcel(struct world *world, struct world_node *node, const struct raft_work *work,
                      const struct world_message *received) {
  if (work->role_changed) {
    say_role(world, node, work);
    if (work->role == RAFT_LEADER) {
      check_leader(world, node, work->term);
    }
  }
  if (work->hand_over_to != node->told_hand_over) {
    if (work->hand_over_to) {
      world_say(world, "%" PRIu64 " hands over to %" PRIu64, node->id, work->hand_over_to);
    } else {
      world_say(world, "%" PRIu64 " hands over no more", node->id);
    }
    node->told_hand_over = work->hand_over_to;
  }
  remember_entries(world, node, work, received);
  if (work->persist) {
    queue_write(world, node, work);
  }
  for (size_t i = 0; i < work->n_reads; i++) {
    const struct raft_read_answer *read = &work->reads[i];
    if (read->error) {
      world_say(world, "%" PRIu64 " answers read %" PRIu64 ": no leader", node->id, read->context);
    } else {
      world_say(world, "%" PRIu64 " answers read %" PRIu64 ": at %" PRIu64, node->id, read->context, read->index);
    }
  }
  const uint32_t first = world->n_messages;
  for (size_t i = 0; i < work->n_messages; i++) {
    queue_message(world, node, &work->messages[i]);
  }
  const uint64_t persist = node->n_writes > 0 ? node->writes[node->n_writes - 1].number : 0;
  if (!node->manual_disk) {
    /* A disk without delay: what waits for it goes at once. */
    for (uint32_t i = first; i < world->n_messages; i++) {
      assert(world->messages[i].after <= persist || world->messages[i].after == 0);
      world->messages[i].after = 0;
    }
  }
  for (size_t i = 0; i < work->n_transfers; i++) {
    do_transfer(world, node, &work->transfers[i]);
  }
  say_messages(world, first);
  say_commits(world, node, work->commit_index);
  if (work->chunk) {
    assert(received);
    take_chunk(world, node, &received->message);
  }
}

static void work_with(struct world *world, struct world_node *node, const struct world_message *received) {
  struct raft_work work;
  while (raft_take_work(node->raft, &work)) {
    do_parcel(world, node, &work, received);
    if (!node->manual_disk && node->n_writes > 0) {
      world_persist(world, node, UINT64_MAX);
    }
  }
  check_world(world);
}

void world_work(struct world *world, struct world_node *node) {
  work_with(world, node, NULL);
}

static void receive(struct world *world, struct world_node *to, const struct world_message *packet) {
  struct raft_entry_meta metas[WORLD_ENTRIES_MAX];
  const uint8_t *payloads[WORLD_ENTRIES_MAX];
  static uint8_t bytes[WORLD_ENTRIES_MAX][sizeof(struct raft_configuration)];
  struct raft_message message = packet->message;
  assert(message.n_entries <= WORLD_ENTRIES_MAX);
  for (uint32_t i = 0; i < message.n_entries; i++) {
    metas[i] = packet->entries[i].meta;
    payloads[i] = NULL;
    if (metas[i].type == RAFT_ENTRY_CONFIGURATION) {
      raft_configuration_encode(world->configurations[packet->entries[i].configuration], bytes[i]);
      payloads[i] = bytes[i];
    }
  }
  message.entries = metas;
  message.payloads = payloads;
  raft_receive(to->raft, world->now, &message);
  work_with(world, to, packet);
}

void world_take_message(struct world *world, uint32_t i, bool deliver) {
  const struct world_message message = world->messages[i];
  world->n_messages--;
  memmove(&world->messages[i], &world->messages[i + 1], (world->n_messages - i) * sizeof message);
  struct world_node *to = world_node(world, message.message.to);
  const struct world_node *from = world_node(world, message.message.from);
  if (deliver && to && to->raft && !to->isolated && !(from && from->isolated)) {
    receive(world, to, &message);
  }
}

/* ---- Nodes ---- */

struct world_node *world_node(struct world *world, uint64_t id) {
  return id >= 1 && id <= world->n_nodes ? &world->nodes[id - 1] : NULL;
}

/* A snapshot is durable before the log follows it: what a crash left undone is done at start. */
static void follow_snapshot(const struct world *world, struct world_node *node) {
  const uint64_t index = node->snapshot_index;
  if (index == 0) {
    return;
  }
  const struct world_log *committed = &world->committed;
  if (index > node->disk.n || node->disk.entries[index - 1].meta.term != committed->entries[index - 1].meta.term) {
    reset_log(world, &node->disk, index);
  }
}

/* Where the terms of the first n entries start. */
static size_t find_terms(const struct world_log *log, uint64_t n, struct raft_term_start *terms) {
  size_t n_terms = 0;
  for (uint64_t i = 0; i < n; i++) {
    const uint64_t term = log->entries[i].meta.term;
    if (n_terms == 0 || terms[n_terms - 1].term != term) {
      terms[n_terms++] = (struct raft_term_start){.term = term, .index = i + 1};
    }
  }
  return n_terms;
}

/* The configurations of the first n entries. Returns how many. */
static size_t find_configurations(const struct world *world, const struct world_log *log, uint64_t n,
                                  struct raft_start_configuration *list) {
  size_t found = 0;
  for (uint64_t i = 0; i < n; i++) {
    if (log->entries[i].meta.type == RAFT_ENTRY_CONFIGURATION) {
      assert(found < WORLD_CONFIGURATIONS_MAX);
      list[found++] = (struct raft_start_configuration){
          .index = i + 1, .configuration = world->configurations[log->entries[i].configuration]};
    }
  }
  return found;
}

void world_compact(struct world *world, struct world_node *node, uint64_t through) {
  const int error = raft_compact(node->raft, world->now, through);
  if (error) {
    world_say(world, "%" PRIu64 " refuses: %s", node->id, raft_error_text(error));
  } else if (through > node->log.base) {
    assert(node->disk.n >= through);
    node->snapshot_index = through > node->snapshot_index ? through : node->snapshot_index;
    node->log.base = node->disk.base = through;
  }
  world_work(world, node);
}

void world_install(struct world *world, struct world_node *node) {
  struct raft_term_start terms[WORLD_LOG_MAX];
  const uint64_t index = node->part.index;
  struct raft_start_configuration configurations[WORLD_CONFIGURATIONS_MAX];
  const size_t n = find_configurations(world, &world->committed, index, configurations);
  assert(n > 0);
  const struct raft_install install = {.index = index,
                                       .term = node->part.term,
                                       .configuration = configurations[n - 1].configuration,
                                       .configuration_index = configurations[n - 1].index,
                                       .terms = terms,
                                       .n_terms = find_terms(&world->committed, index, terms)};
  node->snapshot_index = index > node->snapshot_index ? index : node->snapshot_index;
  node->part = (struct world_part){0};
  const int error = raft_install(node->raft, world->now, &install);
  if (error) {
    world_say(world, "%" PRIu64 " refuses: %s", node->id, raft_error_text(error));
  } else {
    world_say(world, "%" PRIu64 " installs snapshot %" PRIu64 "/%" PRIu64, node->id, index, install.term);
    node->told_commit = index > node->told_commit ? index : node->told_commit;
  }
  world_work(world, node);
}

void world_start(struct world *world, struct world_node *node, bool restarted) {
  struct raft_options options = world->options;
  options.id = node->id;
  options.incarnation = node->incarnation;
  options.seed = node->id;
  struct raft_entry_meta metas[WORLD_LOG_MAX];
  struct raft_term_start terms[WORLD_LOG_MAX];
  struct raft_start_configuration configurations[WORLD_CONFIGURATIONS_MAX];
  follow_snapshot(world, node);
  const uint64_t base = node->disk.base;
  for (uint64_t i = base; i < node->disk.n; i++) {
    metas[i - base] = node->disk.entries[i].meta;
  }
  const struct raft_start start = {
      .now = world->now,
      .term = node->disk_term,
      .voted_for = node->disk_voted_for,
      .first_index = base + 1,
      .prev_term = base > 0 ? node->disk.entries[base - 1].meta.term : 0,
      .last_index = node->disk.n,
      .entries = metas,
      .configurations = configurations,
      .n_configurations = find_configurations(world, &node->disk, node->disk.n, configurations),
      .commit_index = node->snapshot_index,
      .terms = terms,
      .n_terms = find_terms(&node->disk, base, terms),
      .restarted = restarted};
  raft_close(node->raft);
  const int error = raft_open(&options, &start, &node->raft);
  if (error) {
    world_say(world, "%" PRIu64 " cannot start: %s", node->id, raft_error_text(error));
    return;
  }
  node->log = node->disk;
  node->told_commit = node->snapshot_index;
  node->told_hand_over = 0;
  world_work(world, node);
}

/* What waited for a write that will not be done. */
static void forget_held(struct world *world, const struct world_node *node) {
  uint32_t kept = 0;
  for (uint32_t i = 0; i < world->n_messages; i++) {
    if (world->messages[i].message.from != node->id || world->messages[i].after == 0) {
      world->messages[kept++] = world->messages[i];
    }
  }
  world->n_messages = kept;
}

void world_crash(struct world *world, struct world_node *node) {
  raft_close(node->raft);
  node->raft = NULL;
  node->n_writes = 0;
  node->log = node->disk;
  forget_held(world, node);
}

void world_wipe(struct world *world, struct world_node *node) {
  world_crash(world, node);
  memset(&node->disk, 0, sizeof node->disk);
  memset(&node->part, 0, sizeof node->part);
  node->snapshot_index = 0;
  node->disk_term = 0;
  node->disk_voted_for = 0;
  node->incarnation.bytes[1]++;
  world_start(world, node, false);
}

/* Entry 1 of every log. */
static struct world_entry first_entry(const struct world *world) {
  const uint32_t size = (uint32_t)raft_configuration_size(world->configurations[0]);
  return (struct world_entry){.meta = {.term = 1, .size = size, .type = RAFT_ENTRY_CONFIGURATION}, .label = "members"};
}

void world_set_log(struct world *world, struct world_node *node, const uint64_t *terms, uint32_t n_terms, uint64_t term,
                   uint64_t voted_for) {
  world_crash(world, node);
  node->disk.entries[0] = first_entry(world);
  node->disk.n = 1;
  for (uint32_t i = 0; i < n_terms; i++) {
    struct world_entry *entry = &node->disk.entries[node->disk.n++];
    *entry = (struct world_entry){.meta = {.term = terms[i], .size = 1, .type = RAFT_ENTRY_DATA}};
  }
  node->disk_term = term;
  node->disk_voted_for = voted_for;
  world_start(world, node, false);
}

static void make_configuration(struct world *world, uint32_t n_members) {
  struct raft_configuration *configuration = calloc(1, sizeof *configuration);
  assert(configuration);
  configuration->settings = (struct raft_settings){.election_ms = 500, .heartbeat_ms = 50, .page_size = 4096};
  configuration->cluster.bytes[0] = configuration->database.bytes[0] = 1;
  configuration->n_members = n_members;
  for (uint32_t i = 0; i < n_members; i++) {
    struct raft_member *member = &configuration->members[i];
    member->id = i + 1;
    member->incarnation = world->nodes[i].incarnation;
    member->roles = RAFT_VOTER_NEW;
    (void)snprintf(member->address, sizeof member->address, "node%" PRIu32 ":1", i + 1);
  }
  world->configurations[world->n_configurations++] = configuration;
}

void world_open(struct world *world, uint32_t n_nodes, uint32_t n_members, bool fresh) {
  memset(world, 0, sizeof *world);
  world->n_nodes = n_nodes;
  world->now = 1000 * WORLD_MS;
  world->messages = calloc(WORLD_MESSAGES_MAX, sizeof *world->messages);
  assert(world->messages);
  world->options = (struct raft_options){.election_ns = 500 * WORLD_MS,
                                         .heartbeat_ns = 50 * WORLD_MS,
                                         .drift_permille = 10,
                                         .window_bytes = 1 << 20,
                                         .batch_bytes = 1 << 16};
  for (uint32_t i = 0; i < n_nodes; i++) {
    world->nodes[i].id = i + 1;
    world->nodes[i].incarnation.bytes[0] = (uint8_t)(i + 1);
  }
  make_configuration(world, n_members);
  for (uint32_t i = 0; i < n_members && !fresh; i++) {
    world->nodes[i].disk.entries[0] = first_entry(world);
    world->nodes[i].disk.n = 1;
    world->nodes[i].disk_term = 1;
  }
}

void world_close(struct world *world) {
  for (uint32_t i = 0; i < world->n_nodes; i++) {
    raft_close(world->nodes[i].raft);
  }
  for (uint32_t i = 0; i < world->n_configurations; i++) {
    free(world->configurations[i]);
  }
  free(world->messages);
  free(world->output);
  memset(world, 0, sizeof *world);
}

int world_propose(struct world *world, struct world_node *node, uint64_t term, const char *label, uint32_t size) {
  uint64_t index;
  world->proposed = (struct world_entry){.meta = {.term = term, .size = size, .type = RAFT_ENTRY_DATA}};
  (void)snprintf(world->proposed.label, WORLD_LABEL_MAX, "%s", label);
  const int error = raft_propose(node->raft, world->now, term, RAFT_ENTRY_DATA, size, &index);
  world_work(world, node);
  return error;
}

int world_change(struct world *world, struct world_node *node, const struct raft_change *changes, size_t n) {
  uint64_t index;
  const int error = raft_change_members(node->raft, world->now, changes, n, &index);
  world_work(world, node);
  return error;
}

void world_bootstrap(struct world *world, struct world_node *node) {
  world->proposed = first_entry(world);
  const int error = raft_bootstrap(node->raft, world->now, world->configurations[0]);
  if (error) {
    world_say(world, "%" PRIu64 " refuses: %s", node->id, raft_error_text(error));
  }
  world_work(world, node);
}

void world_fail_write(struct world *world, struct world_node *node) {
  node->n_writes = 0;
  forget_held(world, node);
  raft_persist_failed(node->raft, world->now);
  world_work(world, node);
}
