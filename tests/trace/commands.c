/*
** The commands of the golden scripts.
**
**   cluster N [members=M] [fresh] [window=BYTES] [batch=BYTES]
**                       nodes 1 … N, of which 1 … M (all) are voters, with entry 1; or without
**   node I term=T [vote=V] log=1,1,4                 what node I's disk holds: the terms of its entries
**   bootstrap I                                      raft_bootstrap
**   time MS | tick I | campaign I                    campaign: two election time-outs pass, and a tick
**   run MS                                           all ticks when due, all messages delivered at once
**   propose I LABEL [SIZE]
**   deliver [all] [FILTER …] | drop [FILTER …] | duplicate [FILTER …]
**                       what is under way now, or (all) what comes of it too. FILTER: 1>2 1>* *>2
**                       a message type, first, last
**   disk I manual|instant | persist I [NUMBER] | fail I    writes complete when told; a write fails
**   crash I | restart I | wipe I | isolate I | heal I
**   compact I THROUGH   with a snapshot there | install I   what it has received
**   change I [add:4] [join:4] [promote:4] [demote:2] [remove:3]    all at once
**   handover I TO       TO 0: to anybody | members [I …]   the configuration in force (world.h says how to read it)
**   read I CONTEXT lease|quorum | electable I yes|no
**   inject TYPE 1>2 [field=value …]                  a message that no core sent
**   status [I …] | log [I …] | fate TERM INDEX [I …] | network | hide | show
*/
#include "commands.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORDS_MAX 32
#define DELIVERIES_MAX 2000 /* of one `deliver all` */

/* ---- Words of a command ---- */

struct command {
  struct world *world;
  char *words[WORDS_MAX];
  int n;
  bool failed; /* the command makes no sense: its output says why */
};

static void complain(struct command *command, const char *what) {
  world_say(command->world, "ERROR: %s", what);
  command->failed = true;
}

/* The value of key=value, or NULL. */
static const char *option(const struct command *command, const char *key) {
  const size_t length = strlen(key);
  for (int i = 1; i < command->n; i++) {
    if (strncmp(command->words[i], key, length) == 0 && command->words[i][length] == '=') {
      return command->words[i] + length + 1;
    }
  }
  return NULL;
}

static uint64_t number(const struct command *command, const char *key, uint64_t otherwise) {
  const char *value = option(command, key);
  if (value && strcmp(value, "max") == 0) {
    return RAFT_TERM_MAX;
  }
  return value ? strtoull(value, NULL, 0) : otherwise;
}

static bool has_word(const struct command *command, const char *word) {
  for (int i = 1; i < command->n; i++) {
    if (strcmp(command->words[i], word) == 0) {
      return true;
    }
  }
  return false;
}

static struct world_node *node_at(struct command *command, int i) {
  struct world_node *node = i < command->n ? world_node(command->world, strtoull(command->words[i], NULL, 10)) : NULL;
  if (!node) {
    complain(command, "no such node");
  }
  return node;
}

static struct world_node *running_node(struct command *command, int i) {
  struct world_node *node = node_at(command, i);
  if (node && !node->raft) {
    complain(command, "that node is down");
    return NULL;
  }
  return node;
}

/* ---- Messages ---- */

static bool is_type(const char *word, uint8_t type) {
  return strcmp(word, world_type_name(type)) == 0;
}

/* "1>2", with * for anybody */
static bool is_route(const char *word, const struct raft_message *message) {
  const char *arrow = strchr(word, '>');
  if (!arrow) {
    return false;
  }
  const bool from = word[0] == '*' || strtoull(word, NULL, 10) == message->from;
  const bool to = arrow[1] == '*' || strtoull(arrow + 1, NULL, 10) == message->to;
  return from && to;
}

static bool matches(const struct command *command, const struct world_message *message) {
  if (message->after != 0) {
    return false;
  }
  for (int i = 1; i < command->n; i++) {
    const char *word = command->words[i];
    if (strcmp(word, "all") == 0 || strcmp(word, "first") == 0 || strcmp(word, "last") == 0) {
      continue;
    }
    if (!(strchr(word, '>') ? is_route(word, &message->message) : is_type(word, message->message.type))) {
      return false;
    }
  }
  return true;
}

/* Marks what is under way now and matches; `marks` is WORLD_MESSAGES_MAX long. */
static uint32_t mark(const struct command *command, bool *marks) {
  const struct world *world = command->world;
  uint32_t n = 0, one = 0;
  memset(marks, 0, WORLD_MESSAGES_MAX * sizeof *marks);
  for (uint32_t i = 0; i < world->n_messages; i++) {
    if (matches(command, &world->messages[i])) {
      one = has_word(command, "first") && n > 0 ? one : i;
      marks[i] = true;
      n++;
    }
  }
  if (n > 0 && (has_word(command, "first") || has_word(command, "last"))) {
    memset(marks, 0, WORLD_MESSAGES_MAX * sizeof *marks);
    marks[one] = true;
    n = 1;
  }
  return n;
}

/* Takes the marked ones off the network, in their order. What comes of them is queued behind. */
static void take_marked(struct world *world, const bool *marks, bool deliver) {
  uint32_t taken = 0;
  for (uint32_t i = 0; i < WORLD_MESSAGES_MAX; i++) {
    if (marks[i]) {
      world_take_message(world, i - taken, deliver);
      taken++;
    }
  }
}

static void do_deliver(struct command *command) {
  bool marks[WORLD_MESSAGES_MAX];
  const bool all = has_word(command, "all");
  uint32_t n, total = 0;
  while ((n = mark(command, marks)) > 0) {
    take_marked(command->world, marks, true);
    total += n;
    if (!all) {
      break;
    }
    if (total > DELIVERIES_MAX) {
      complain(command, "messages without end");
      break;
    }
  }
  if (total == 0) {
    complain(command, "no such message is under way");
  }
}

static void do_drop(struct command *command) {
  bool marks[WORLD_MESSAGES_MAX];
  if (mark(command, marks) == 0) {
    complain(command, "no such message is under way");
  }
  take_marked(command->world, marks, false);
}

static void do_duplicate(struct command *command) {
  bool marks[WORLD_MESSAGES_MAX];
  struct world *world = command->world;
  if (mark(command, marks) == 0) {
    complain(command, "no such message is under way");
  }
  const uint32_t n = world->n_messages;
  for (uint32_t i = 0; i < n && world->n_messages < WORLD_MESSAGES_MAX; i++) {
    if (marks[i]) {
      world->messages[world->n_messages++] = world->messages[i];
    }
  }
}

static void do_network(struct command *command) {
  char text[1024];
  for (uint32_t i = 0; i < command->world->n_messages; i++) {
    world_describe(&command->world->messages[i], text, sizeof text);
    world_say(command->world, "  %s", text);
  }
}

static uint8_t type_of(const char *word) {
  for (unsigned type = RAFT_PRE_VOTE; type <= RAFT_TIMEOUT_NOW; type++) {
    if (is_type(word, (uint8_t)type)) {
      return (uint8_t)type;
    }
  }
  return 0;
}

static void do_inject(struct command *command) {
  struct world *world = command->world;
  const char *arrow = command->n > 2 ? strchr(command->words[2], '>') : NULL;
  const uint64_t from_id = arrow ? strtoull(command->words[2], NULL, 10) : 0;
  const struct world_node *from = world_node(world, from_id);
  const struct world_node *to = arrow ? world_node(world, strtoull(arrow + 1, NULL, 10)) : NULL;
  if (!to || world->n_messages == WORLD_MESSAGES_MAX) {
    complain(command, "inject TYPE 1>2 [field=value …]");
    return;
  }
  struct world_message *injected = &world->messages[world->n_messages++];
  memset(injected, 0, sizeof *injected);
  struct raft_message *message = &injected->message;
  message->type = type_of(command->words[1]);
  message->from = from_id;
  message->to = to->id;
  message->from_incarnation = from ? from->incarnation : to->incarnation;
  message->to_incarnation = to->incarnation;
  message->term = number(command, "term", 0);
  message->index = number(command, "index", 0);
  message->log_term = number(command, "log_term", 0);
  message->commit = number(command, "commit", 0);
  message->hint_index = number(command, "hint_index", 0);
  message->hint_term = number(command, "hint_term", 0);
  message->round = number(command, "round", 0);
  message->context = number(command, "context", 0);
  message->offset = number(command, "offset", 0);
  message->size_bytes = number(command, "size", 0);
  message->chunk_bytes = (uint32_t)number(command, "chunk", 0);
  message->reject = has_word(command, "reject");
  message->hand_over = has_word(command, "hand_over");
  if (option(command, "entries")) {
    message->n_entries = 1;
    injected->entries[0].meta = (struct raft_entry_meta){.term = number(command, "entries", 0),
                                                         .type = RAFT_ENTRY_DATA};
  }
  world_take_message(world, world->n_messages - 1, true);
}

/* ---- Nodes ---- */

static void do_cluster(struct command *command) {
  struct world *world = command->world;
  const uint64_t n = command->n > 1 ? strtoull(command->words[1], NULL, 10) : 0;
  if (n == 0 || n > WORLD_NODES_MAX || world->n_nodes) {
    complain(command, "cluster N, once, N up to 7");
    return;
  }
  world_open(world, (uint32_t)n, (uint32_t)number(command, "members", n), has_word(command, "fresh"));
  world->options.window_bytes = (uint32_t)number(command, "window", world->options.window_bytes);
  world->options.batch_bytes = (uint32_t)number(command, "batch", world->options.batch_bytes);
  for (uint32_t i = 0; i < world->n_nodes; i++) {
    world_start(world, &world->nodes[i], false);
  }
}

static void do_node(struct command *command) {
  struct world_node *node = node_at(command, 1);
  const char *list = option(command, "log");
  uint64_t terms[WORLD_ENTRIES_MAX];
  uint32_t n = 0;
  while (node && list && *list && n < WORLD_ENTRIES_MAX) {
    char *end;
    terms[n++] = strtoull(list, &end, 10);
    list = *end == ',' ? end + 1 : "";
  }
  if (!node || n == 0 || terms[0] != 1) {
    complain(command, "node I term=T [vote=V] log=1,…");
    return;
  }
  world_set_log(command->world, node, terms + 1, n - 1, number(command, "term", 1), number(command, "vote", 0));
}

static void do_bootstrap(struct command *command) {
  struct world_node *node = running_node(command, 1);
  if (node) {
    world_bootstrap(command->world, node);
  }
}

static void do_tick(struct command *command) {
  struct world_node *node = running_node(command, 1);
  if (node) {
    raft_tick(node->raft, command->world->now);
    world_work(command->world, node);
  }
}

static void do_campaign(struct command *command) {
  command->world->now += 2 * command->world->options.election_ns;
  do_tick(command);
}

static void do_time(struct command *command) {
  command->world->now += (command->n > 1 ? strtoull(command->words[1], NULL, 10) : 0) * WORLD_MS;
}

static void tick_those_due(struct world *world) {
  for (uint32_t i = 0; i < world->n_nodes; i++) {
    struct world_node *node = &world->nodes[i];
    if (node->raft && raft_next_tick(node->raft) <= world->now) {
      raft_tick(node->raft, world->now);
      world_work(world, node);
    }
  }
}

static void do_run(struct command *command) {
  struct world *world = command->world;
  const uint64_t end = world->now + (command->n > 1 ? strtoull(command->words[1], NULL, 10) : 0) * WORLD_MS;
  for (; world->now < end; world->now += WORLD_MS) {
    tick_those_due(world);
    uint32_t held = 0; /* those that wait for a write stay */
    while (held < world->n_messages) {
      if (world->messages[held].after != 0) {
        held++;
      } else {
        world_take_message(world, held, true);
      }
    }
  }
}

static void do_propose(struct command *command) {
  struct world_node *node = running_node(command, 1);
  if (!node || command->n < 3) {
    complain(command, "propose I LABEL [SIZE]");
    return;
  }
  struct raft_status status;
  raft_get_status(node->raft, &status);
  const uint32_t size = command->n > 3 ? (uint32_t)strtoul(command->words[3], NULL, 10) : 1;
  const int error = world_propose(command->world, node, status.term, command->words[2], size);
  if (error) {
    world_say(command->world, "%" PRIu64 " refuses: %s", node->id,
              error == RAFT_NOT_LEADER ? "not leader" : raft_error_text(error));
  }
}

static void do_disk(struct command *command) {
  struct world_node *node = running_node(command, 1);
  if (node && (has_word(command, "manual") || has_word(command, "instant"))) {
    node->manual_disk = has_word(command, "manual");
    if (!node->manual_disk) {
      world_persist(command->world, node, UINT64_MAX);
    }
  } else if (node) {
    complain(command, "disk I manual|instant");
  }
}

static void do_persist(struct command *command) {
  struct world_node *node = running_node(command, 1);
  if (node && node->n_writes == 0) {
    complain(command, "nothing is being written");
  } else if (node) {
    world_persist(command->world, node, command->n > 2 ? strtoull(command->words[2], NULL, 10) : UINT64_MAX);
  }
}

static void do_fail(struct command *command) {
  struct world_node *node = running_node(command, 1);
  if (node) {
    world_fail_write(command->world, node);
  }
}

static void do_crash(struct command *command) {
  struct world_node *node = running_node(command, 1);
  if (node) {
    world_crash(command->world, node);
  }
}

static void do_restart(struct command *command) {
  struct world_node *node = node_at(command, 1);
  if (node) {
    world_crash(command->world, node);
    world_start(command->world, node, true);
  }
}

static void do_wipe(struct command *command) {
  struct world_node *node = node_at(command, 1);
  if (node) {
    world_wipe(command->world, node);
  }
}

static void do_isolate(struct command *command) {
  struct world_node *node = node_at(command, 1);
  if (node) {
    node->isolated = strcmp(command->words[0], "isolate") == 0;
  }
}

static void do_compact(struct command *command) {
  struct world_node *node = running_node(command, 1);
  if (node && command->n > 2) {
    world_compact(command->world, node, strtoull(command->words[2], NULL, 10));
  } else if (node) {
    complain(command, "compact I THROUGH");
  }
}

static void do_install(struct command *command) {
  struct world_node *node = running_node(command, 1);
  if (node && (node->part.index == 0 || node->part.offset < node->part.size_bytes)) {
    complain(command, "it has received no snapshot");
  } else if (node) {
    world_install(command->world, node);
  }
}

static const struct {
  const char *name;
  enum raft_change_type type;
  bool joining;
} change_names[] = {{"add", RAFT_CHANGE_ADD, false},
                    {"join", RAFT_CHANGE_ADD, true},
                    {"promote", RAFT_CHANGE_PROMOTE, false},
                    {"demote", RAFT_CHANGE_DEMOTE, false},
                    {"remove", RAFT_CHANGE_REMOVE, false}};

/* "promote:4" */
static bool read_change(struct command *command, const char *word, struct raft_change *change) {
  for (size_t i = 0; i < sizeof change_names / sizeof change_names[0]; i++) {
    const size_t length = strlen(change_names[i].name);
    if (strncmp(word, change_names[i].name, length) != 0 || word[length] != ':') {
      continue;
    }
    const struct world_node *node = world_node(command->world, strtoull(word + length + 1, NULL, 10));
    if (!node) {
      break;
    }
    *change = (struct raft_change){.type = change_names[i].type,
                                   .id = node->id,
                                   .incarnation = node->incarnation,
                                   .joining = change_names[i].joining};
    (void)snprintf(change->address, sizeof change->address, "node%" PRIu64 ":1", node->id);
    return true;
  }
  complain(command, "change I [add:4] [join:4] [promote:4] [demote:2] [remove:3]");
  return false;
}

static void do_change(struct command *command) {
  struct world_node *node = running_node(command, 1);
  struct raft_change changes[WORDS_MAX];
  size_t n = 0;
  for (int i = 2; node && i < command->n; i++) {
    if (!read_change(command, command->words[i], &changes[n++])) {
      return;
    }
  }
  const int error = node ? world_change(command->world, node, changes, n) : 0;
  if (error) {
    world_say(command->world, "%" PRIu64 " refuses: %s", node->id, raft_error_text(error));
  }
}

static void do_hand_over(struct command *command) {
  struct world_node *node = running_node(command, 1);
  if (!node || command->n < 3) {
    complain(command, "handover I TO");
    return;
  }
  const int error = raft_hand_over(node->raft, command->world->now, strtoull(command->words[2], NULL, 10));
  world_work(command->world, node);
  if (error) {
    world_say(command->world, "%" PRIu64 " refuses: %s", node->id, raft_error_text(error));
  }
}

static void do_read(struct command *command) {
  struct world_node *node = running_node(command, 1);
  if (!node || command->n < 4) {
    complain(command, "read I CONTEXT lease|quorum");
    return;
  }
  const int error = raft_read(node->raft, command->world->now, strtoull(command->words[2], NULL, 10),
                              has_word(command, "lease") ? RAFT_READ_LEASE : RAFT_READ_QUORUM);
  if (error) {
    world_say(command->world, "%" PRIu64 " refuses: %s", node->id, raft_error_text(error));
  }
  world_work(command->world, node);
}

static void do_electable(struct command *command) {
  struct world_node *node = running_node(command, 1);
  if (node) {
    raft_set_electable(node->raft, command->world->now, has_word(command, "yes"));
    world_work(command->world, node);
  }
}

/* ---- Looking ---- */

/* Calls `show` for the nodes named from word `first` on, or for all. */
static void for_nodes(struct command *command, int first, void (*show)(struct command *, struct world_node *)) {
  for (int i = first; i < command->n; i++) {
    struct world_node *node = node_at(command, i);
    if (node) {
      show(command, node);
    }
  }
  for (uint32_t i = 0; command->n <= first && i < command->world->n_nodes; i++) {
    show(command, &command->world->nodes[i]);
  }
}

static void show_status(struct command *command, struct world_node *node) {
  static const char *const roles[] = {"follower", "pre-candidate", "candidate", "leader"};
  if (!node->raft) {
    world_say(command->world, "%" PRIu64 " is down", node->id);
    return;
  }
  struct raft_status status;
  raft_get_status(node->raft, &status);
  world_say(command->world,
            "%" PRIu64 " %s term %" PRIu64 " vote %" PRIu64 " leader %" PRIu64 " last %" PRIu64 " durable %" PRIu64
            " commit %" PRIu64 "%s",
            node->id, roles[status.role], status.term, status.voted_for, status.leader, status.last_index,
            status.durable_index, status.commit_index, status.failed ? " FAILED" : "");
}

static void show_log(struct command *command, struct world_node *node) {
  char line[512];
  int length = snprintf(line, sizeof line, "%" PRIu64 ":", node->id);
  if (node->log.base > 0) {
    length += snprintf(line + length, sizeof line - (size_t)length, " (%" PRIu64 "/%" PRIu64 ")", node->log.base,
                       node->log.entries[node->log.base - 1].meta.term);
  }
  for (uint64_t i = node->log.base; i < node->log.n && length < (int)sizeof line - 40; i++) {
    const struct world_entry *entry = &node->log.entries[i];
    length += snprintf(line + length, sizeof line - (size_t)length, " %" PRIu64 "%s%s", entry->meta.term,
                       entry->label[0] && i > 0 ? "=" : "", i > 0 ? entry->label : "");
  }
  world_say(command->world, "%s", line);
}

static void show_fate(struct command *command, struct world_node *node) {
  static const char *const fates[] = {"pending", "committed", "lost"};
  if (node->raft) {
    const uint64_t term = strtoull(command->words[1], NULL, 10), index = strtoull(command->words[2], NULL, 10);
    world_say(command->world, "%" PRIu64 ": %s", node->id, fates[raft_fate(node->raft, term, index)]);
  }
}

static void show_members(struct command *command, struct world_node *node) {
  char text[WORLD_LABEL_MAX];
  struct raft_status status;
  if (!node->raft) {
    world_say(command->world, "%" PRIu64 " is down", node->id);
    return;
  }
  raft_get_status(node->raft, &status);
  world_describe_configuration(raft_get_configuration(node->raft, NULL), text, sizeof text);
  world_say(command->world, "%" PRIu64 ": %s at %" PRIu64 "%s", node->id, text, status.configuration_index,
            status.configuration_committed ? ", committed" : "");
}

static void do_members(struct command *command) {
  for_nodes(command, 1, show_members);
}

static void do_status(struct command *command) {
  for_nodes(command, 1, show_status);
}

static void do_log(struct command *command) {
  for_nodes(command, 1, show_log);
}

static void do_fate(struct command *command) {
  if (command->n < 3) {
    complain(command, "fate TERM INDEX [I …]");
    return;
  }
  for_nodes(command, 3, show_fate);
}

static void do_hide(struct command *command) {
  command->world->hide_messages = strcmp(command->words[0], "hide") == 0;
}

static const struct {
  const char *name;
  void (*run)(struct command *);
} commands[] = {
    {"cluster", do_cluster},     {"node", do_node},       {"bootstrap", do_bootstrap}, {"time", do_time},
    {"tick", do_tick},           {"run", do_run},         {"campaign", do_campaign},   {"propose", do_propose},
    {"deliver", do_deliver},     {"drop", do_drop},       {"duplicate", do_duplicate}, {"disk", do_disk},
    {"persist", do_persist},     {"fail", do_fail},       {"crash", do_crash},         {"restart", do_restart},
    {"wipe", do_wipe},           {"isolate", do_isolate}, {"heal", do_isolate},        {"read", do_read},
    {"electable", do_electable}, {"inject", do_inject},   {"status", do_status},       {"log", do_log},
    {"fate", do_fate},           {"network", do_network}, {"hide", do_hide},           {"show", do_hide},
    {"compact", do_compact},     {"install", do_install}, {"change", do_change},       {"handover", do_hand_over},
    {"members", do_members},
};

void trace_run_command(struct world *world, const char *line) {
  char copy[512];
  struct command command = {.world = world};
  (void)snprintf(copy, sizeof copy, "%s", line);
  for (char *word = strtok(copy, " "); word && command.n < WORDS_MAX; word = strtok(NULL, " ")) {
    command.words[command.n++] = word;
  }
  for (size_t i = 0; command.n > 0 && i < sizeof commands / sizeof commands[0]; i++) {
    if (strcmp(commands[i].name, command.words[0]) == 0) {
      if (world->n_nodes == 0 && commands[i].run != do_cluster) {
        complain(&command, "a script begins with: cluster N");
      } else {
        commands[i].run(&command);
      }
      return;
    }
  }
  complain(&command, "unknown command");
}
