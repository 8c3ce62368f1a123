/*
** The life of a node: the registry of the process, start, stop, exit and fork.
*/
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "node_internal.h"

#define NODE_NUMBER_TEXT 24 /* a node's number, in a list */

/* Guards the list of nodes, and of each its life, connections and identity. Held over nothing that waits. */
static pthread_mutex_t registry_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t registry_changed;
static struct node *nodes;
static struct node_machine machine;
static atomic_bool forked;

bool node_is_forked(void) {
  return atomic_load_explicit(&forked, memory_order_relaxed);
}

void node_say(char *text, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, VFS_TEXT_MAX, format, arguments);
  va_end(arguments);
}

void node_log(int code, const char *format, ...) {
  char text[VFS_TEXT_MAX + 128];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  vfs_log(code, text);
}

bool node_uuid_is_none(const struct raft_uuid *uuid) {
  static const struct raft_uuid none;
  return node_uuid_equal(uuid, &none);
}

bool node_uuid_equal(const struct raft_uuid *a, const struct raft_uuid *b) {
  return memcmp(a, b, sizeof *a) == 0;
}

void node_uuid_text(const struct raft_uuid *uuid, char text[NODE_UUID_TEXT]) {
  for (size_t i = 0; i < RAFT_UUID_SIZE; i++) snprintf(text + 2 * i, 3, "%02x", uuid->bytes[i]);
}

int node_sqlite_error(int error) {
  switch (error) {
  case VFS_OK: return SQLITE_OK;
  case VFS_NO_MEMORY: return SQLITE_NOMEM;
  case VFS_NO_SPACE: return SQLITE_FULL;
  case VFS_BUSY: return SQLITE_BUSY;
  default: return SQLITE_CANTOPEN;
  }
}

struct node *node_of_connection(struct vfs_connection *connection) {
  return vfs_database_node(vfs_connection_database(connection));
}

uint32_t node_commit_timeout_ms(const struct node *node) {
  return node->options.commit_timeout_ms;
}

uint64_t node_now(const struct node *node) {
  return os_now(node->os);
}

/* Something of log or vote is lost for certain: SQLITE_CORRUPT says so (node_rebuild.c). */
static int note_loss(struct node *node, int code) {
  node->is_lost = node->is_lost || code == SQLITE_CORRUPT;
  return code;
}

static int fail(int code, char *text, const char *format, ...) __attribute__((format(printf, 3, 4)));
static int fail(int code, char *text, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, VFS_TEXT_MAX, format, arguments);
  va_end(arguments);
  return code;
}

/* ---- Making and freeing ---- */

static struct os *os_of(const char *path) {
  return machine.os_of ? machine.os_of(path) : machine.os;
}

static struct node *node_new(const char *path) {
  struct node *node = calloc(1, sizeof *node);
  if (!node) return NULL;
  node->os = os_of(path);
  node->life = NODE_STARTING;
  node->frozen = true;
  node->disk_reads = calloc(NODE_DISK_READS_MAX, sizeof *node->disk_reads);
  node->scratch = calloc(NODE_APPEND_ENTRIES_MAX, sizeof *node->scratch);
  snprintf(node->path, sizeof node->path, "%s", path);
  pthread_mutex_init(&node->facts_mutex, NULL);
  pthread_mutex_init(&node->mutex, NULL);
  os_condition_init(&node->log_condition);
  os_condition_init(&node->apply_condition);
  os_condition_init(&node->checkpoint_condition);
  os_condition_init(&node->epoch_condition);
  os_condition_init(&node->idle_condition);
  os_condition_init(&node->snapshot_condition);
  os_condition_init(&node->snapshot_done);
  os_condition_init(&node->transfer_condition);
  os_condition_init(&node->asking_condition);
  os_random(node->os, &node->request_context, sizeof node->request_context);
  return node;
}

static void node_free(struct node *node) {
  if (node->raft) raft_close(node->raft);
  raft_forming_close(node->forming);
  pthread_cond_destroy(&node->log_condition);
  pthread_cond_destroy(&node->apply_condition);
  pthread_cond_destroy(&node->checkpoint_condition);
  pthread_cond_destroy(&node->epoch_condition);
  pthread_cond_destroy(&node->idle_condition);
  pthread_cond_destroy(&node->snapshot_condition);
  pthread_cond_destroy(&node->snapshot_done);
  pthread_cond_destroy(&node->transfer_condition);
  pthread_cond_destroy(&node->asking_condition);
  pthread_mutex_destroy(&node->mutex);
  pthread_mutex_destroy(&node->facts_mutex);
  free(node->disk_reads);
  free(node->scratch);
  free(node->delayed);
  free(node->metas);
  free(node->payloads);
  free(node);
}

/* ---- Start: files ---- */

static int make_folder(struct node *node, char *text) {
  char parent[OS_PATH_MAX];
  int length = snprintf(node->folder, sizeof node->folder, "%s-balsa", node->path);
  if (length < 0 || (size_t)length + 32 >= sizeof node->folder)
    return fail(SQLITE_CANTOPEN, text, "%.300s…: the path is too long", node->path);
  int error = os_make_directory(node->os, node->folder);
  snprintf(parent, sizeof parent, "%s", node->path);
  *strrchr(parent, '/') = 0;
  if (!error) error = os_sync_directory(node->os, parent[0] ? parent : "/");
  if (error) return fail(SQLITE_CANTOPEN, text, "%s cannot be made: %s", node->folder, strerror(-error));
  return SQLITE_OK;
}

/* Its options are not settled before it is known whether the node is fresh: `given` over `kept` here. */
static int open_database(struct node *node, const struct options *kept, const struct options *given, const char *aside,
                         struct vfs_found *found, char *text) {
  struct options merged = *kept;
  options_merge(&merged, given);
  struct vfs_database_options options = {
      .os = node->os,
      .base = machine.base,
      .path = node->path,
      .folder = node->folder,
      .set_aside = aside,
      .methods = &node_vfs_methods,
      .node = node,
      .commit_timeout_ms = merged.commit_timeout_ms,
      .wal_limit_frames = machine.wal_limit_frames ? machine.wal_limit_frames : merged.wal_limit,
      .part_bytes = machine.part_bytes,
  };
  int error = vfs_database_open(&options, &node->database, found, text);
  if (error && !text[0]) return fail(node_sqlite_error(error), text, "%s cannot be opened", node->path);
  return node_sqlite_error(error);
}

static int count_name(void *ctx, const char *name) {
  (void)name;
  ++*(size_t *)ctx;
  return 0;
}

static size_t count_log_files(struct node *node) {
  char path[OS_PATH_MAX + 16];
  size_t count = 0;
  snprintf(path, sizeof path, "%s/log", node->folder);
  os_list(node->os, path, count_name, &count);
  return count;
}

struct names {
  char (*list)[NAME_MAX + 1];
  size_t n, capacity;
};

static int collect_name(void *ctx, const char *name) {
  struct names *names = ctx;
  if (names->n == names->capacity) {
    size_t capacity = names->capacity ? names->capacity * 2 : 16;
    char(*grown)[NAME_MAX + 1] = realloc(names->list, capacity * sizeof *grown);
    if (!grown) return -ENOMEM;
    names->list = grown;
    names->capacity = capacity;
  }
  snprintf(names->list[names->n++], NAME_MAX + 1, "%s", name);
  return 0;
}

/* A cluster that was never begun: nobody has seen its entries. */
static int discard_log(struct node *node, char *text) {
  char folder[OS_PATH_MAX + 16], path[OS_PATH_MAX + 16 + NAME_MAX + 1];
  struct names names = {0};
  snprintf(folder, sizeof folder, "%s/log", node->folder);
  int error = os_list(node->os, folder, collect_name, &names);
  if (error == -ENOENT) error = 0;
  for (size_t i = 0; !error && i < names.n; i++) {
    snprintf(path, sizeof path, "%s/%s", folder, names.list[i]);
    error = os_remove(node->os, path);
  }
  if (!error && names.n > 0) error = os_sync_directory(node->os, folder);
  free(names.list);
  if (error)
    return fail(SQLITE_CANTOPEN, text, "%s: an unfinished log cannot be removed: %s", folder, strerror(-error));
  return SQLITE_OK;
}

static int open_vote(struct node *node, char *text) {
  char path[OS_PATH_MAX + 16];
  snprintf(path, sizeof path, "%s/vote", node->folder);
  int error = raft_hard_state_open(node->os, path, &node->hard_state, &node->hard_state_file);
  if (error == -EILSEQ)
    return fail(SQLITE_CORRUPT, text, "%s is damaged at offset 0: this node no longer knows whom it voted for", path);
  if (error) return fail(SQLITE_CANTOPEN, text, "%s cannot be opened: %s", path, strerror(-error));
  return SQLITE_OK;
}

/* A node that never ran gets its id and incarnation; one that did keeps them. */
static int identify(struct node *node, const struct options *kept, const struct options *given,
                    const struct vfs_found *found, char *text) {
  if (node->hard_state.node != 0) {
    node->is_restart = true;
    node->id = node->hard_state.node;
    node->incarnation = node->hard_state.incarnation;
    if (options_has(given, OPTION_NODE) && given->node != node->id)
      return fail(SQLITE_CANTOPEN, text,
                  "option node=%" PRIu64 ": %s belongs to node %" PRIu64 ", and a node's number stays", given->node,
                  node->folder, node->id);
    return SQLITE_OK;
  }
  if (vfs_found_marked(found) > 0 && count_log_files(node) == 0)
    return fail(SQLITE_CORRUPT, text,
                "%s/vote and %s/log are missing though %s was made from a log through entry %" PRIu64
                ": this node no longer knows what it acknowledged",
                node->folder, node->folder, node->path, vfs_found_marked(found));
  if (count_log_files(node) > 0 || node->formation == NODE_FORMED || node->formation == NODE_JOINED)
    return fail(SQLITE_CORRUPT, text,
                "%s/vote is missing though this node was a member of a cluster: it no longer knows whom it voted for",
                node->folder);
  if (node->rejoins && options_has(given, OPTION_NODE) && given->node != kept->node)
    return fail(SQLITE_CANTOPEN, text,
                "option node=%" PRIu64 ": %s belongs to node %" PRIu64 ", which is about to join its cluster anew",
                given->node, node->folder, kept->node);
  node->id = node->rejoins ? kept->node : given->node;
  while (node->id == 0) {
    os_random(node->os, &node->id, sizeof node->id);
    node->id &= INT64_MAX;
  }
  os_random(node->os, node->incarnation.bytes, sizeof node->incarnation.bytes);
  return SQLITE_OK;
}

static int write_identity(struct node *node, char *text) {
  if (node->is_restart) return SQLITE_OK;
  node->hard_state = (struct raft_hard_state){.node = node->id, .incarnation = node->incarnation};
  int error = raft_hard_state_write(node->hard_state_file, &node->hard_state);
  if (!error) error = os_sync_directory(node->os, node->folder);
  if (error)
    return fail(node_sqlite_error(error == -ENOSPC ? VFS_NO_SPACE : VFS_IO), text, "%s/vote cannot be written: %s",
                node->folder, strerror(-error));
  return SQLITE_OK;
}

/* ---- Start: the log ---- */

/* Copies it to where it belongs by its index; one of an index that is there already is the same. */
int node_start_configuration(struct raft_start *start, uint64_t index, const struct raft_configuration *configuration) {
  struct raft_start_configuration *list = (void *)(uintptr_t)start->configurations;
  size_t n = start->n_configurations, at = n;
  while (at > 0 && list[at - 1].index > index) at--;
  if (at > 0 && list[at - 1].index == index) return SQLITE_OK;
  struct raft_start_configuration *grown = realloc(list, (n + 1) * sizeof *list);
  if (grown) start->configurations = grown;
  struct raft_configuration *copy = grown ? malloc(sizeof *copy) : NULL;
  if (!copy) return SQLITE_NOMEM;
  *copy = *configuration;
  memmove(grown + at + 1, grown + at, (n - at) * sizeof *grown);
  grown[at] = (struct raft_start_configuration){.index = index, .configuration = copy};
  start->n_configurations = n + 1;
  return SQLITE_OK;
}

void node_start_forget_configurations(struct raft_start *start) {
  for (size_t i = 0; i < start->n_configurations; i++) free((void *)(uintptr_t)start->configurations[i].configuration);
  free((void *)(uintptr_t)start->configurations);
  start->configurations = NULL;
  start->n_configurations = 0;
}

static int read_configuration(struct node *node, struct raft_start *start, uint64_t index,
                              struct raft_configuration *configuration, char *text) {
  struct raft_entry entry;
  if (raft_store_read(node->store, index, 1, SIZE_MAX, &entry) != 1) {
    raft_store_error(node->store, text);
    return SQLITE_CORRUPT;
  }
  int error = raft_configuration_decode(entry.payload ? entry.payload->bytes : NULL, raft_entry_size(&entry),
                                        configuration);
  raft_payload_unref(entry.payload);
  if (error)
    return fail(SQLITE_CANTOPEN, text, "%s/log: entry %" PRIu64 " is no configuration that this version understands",
                node->folder, index);
  int code = node_start_configuration(start, index, configuration);
  return code == SQLITE_OK ? code : fail(code, text, "%s: no memory for the node", node->path);
}

/* All configurations in the log; the latest one goes to *configuration too. */
static int find_configurations(struct node *node, struct raft_start *start, struct raft_configuration *configuration,
                               char *text) {
  int code = SQLITE_OK;
  for (uint64_t index = start->first_index; index <= start->last_index && code == SQLITE_OK; index++)
    if (start->entries[index - start->first_index].type == RAFT_ENTRY_CONFIGURATION)
      code = read_configuration(node, start, index, configuration, text);
  return code;
}

/*
** The node that formed the cluster may have been killed before it wrote term 1. Nobody can have voted in it, so it
** counts as written.
*/
static int complete_first_term(struct node *node, const struct raft_start *start, char *text) {
  bool forms = node->formation == NODE_FORMED || node->formation == NODE_BOOTSTRAPPING;
  if (start->last_index == 0 || !forms || node->hard_state.term != 0) return SQLITE_OK;
  node->hard_state.term = 1;
  int error = raft_hard_state_write(node->hard_state_file, &node->hard_state);
  if (error) return fail(SQLITE_CANTOPEN, text, "%s/vote cannot be written: %s", node->folder, strerror(-error));
  return SQLITE_OK;
}

static uint64_t last_term(const struct raft_start *start) {
  if (start->last_index < start->first_index) return start->prev_term;
  return start->entries[start->last_index - start->first_index].term;
}

/* What was found must fit together. */
static int check_found(struct node *node, const struct raft_start *start, const struct vfs_found *found, char *text) {
  /* Page 1 comes with entry 1, applied when it was durable. An empty log may not vote in its stead. */
  bool is_former = node->formation == NODE_FORMED || node->formation == NODE_BOOTSTRAPPING;
  if (found->has_marks && start->last_index == 0 && node->hard_state.term > 0 && !is_former)
    return fail(SQLITE_CORRUPT, text, "%s/log is empty, but %s was made from it: the log is lost", node->folder,
                node->path);
  if (start->last_index == 0) return SQLITE_OK;
  if (start->n_configurations == 0)
    return fail(SQLITE_CORRUPT, text, "%s/log has no configuration: it is incomplete", node->folder);
  if (last_term(start) > node->hard_state.term)
    return fail(SQLITE_CORRUPT, text,
                "%s/vote says term %" PRIu64 ", but the log has entries of term %" PRIu64 ": it is older than the log",
                node->folder, node->hard_state.term, last_term(start));
  return SQLITE_OK;
}

static void append_number(char *list, size_t size, uint64_t number) {
  size_t length = strlen(list);
  snprintf(list + length, size - length, "%s%" PRIu64, length ? ", " : "", number);
}

/*
** `peers` forms a cluster; of a node that is in one it may be given again, with other addresses if need be. Another list is a
** mistake as long as the cluster is as it was formed (configuration 1); later the members are others anyway.
*/
static int check_members(const char *path, const struct raft_configuration *configuration, uint64_t index,
                         const struct options *given, char *text) {
  char members[RAFT_MEMBERS_MAX * NODE_NUMBER_TEXT] = "", peers[RAFT_MEMBERS_MAX * NODE_NUMBER_TEXT] = "";
  const char *name = strrchr(path, '/') + 1;
  uint32_t n = configuration->n_members;
  bool is_same = given->n_peers == n;
  if (n == 0 || index > 1 || !options_has(given, OPTION_PEERS)) return SQLITE_OK;
  for (uint32_t i = 0; i < n; i++) append_number(members, sizeof members, configuration->members[i].id);
  for (size_t i = 0; i < given->n_peers; i++) {
    append_number(peers, sizeof peers, given->peers[i].id);
    is_same = is_same && raft_configuration_find(configuration, given->peers[i].id);
  }
  if (is_same) return SQLITE_OK;
  int length = snprintf(text, VFS_TEXT_MAX,
                        "%.80s belongs to a cluster of %u (node%s %.160s), but peers names %.160s: a cluster's members "
                        "cannot be changed by peers. ",
                        name, n, n > 1 ? "s" : "", members, peers);
  const char *stopped = n > 1 ? "all its nodes" : "the node", *these = n > 1 ? "another one" : "one of several";
  snprintf(text + length, VFS_TEXT_MAX - (size_t)length,
           "To make %s from this database, stop %s, move %.80s-balsa away and give all nodes the same peers; only one "
           "of them may bring a database",
           these, stopped, name);
  return SQLITE_CANTOPEN;
}

/* Whole segments go at a compaction: a few of them make up what a snapshot replaces. */
static uint32_t segment_bytes(uint64_t snapshot_threshold) {
  uint32_t bytes = machine.segment_bytes ? machine.segment_bytes : NODE_SEGMENT_BYTES_MAX;
  while (bytes > NODE_SEGMENT_BYTES_MIN && bytes > snapshot_threshold / 4) bytes /= 2;
  return bytes;
}

/* What is kept elsewhere was durable in the log before: the database's mark, and that this node was a member. */
static uint64_t log_reaches(const struct node *node, const struct vfs_found *found) {
  uint64_t marked = vfs_found_marked(found);
  return marked > node->joined_index ? marked : node->joined_index;
}

/* Opens the log, which reaches entry `least`; `entries` of *start is the caller's to free. */
static int open_log(struct node *node, uint64_t snapshot_threshold, uint64_t least, struct raft_start *start,
                    struct raft_configuration *configuration, char *text) {
  char path[OS_PATH_MAX + 16];
  struct raft_store_found found = {0};
  struct raft_store_options options = {.segment_bytes = segment_bytes(snapshot_threshold),
                                       .cache_bytes = NODE_LOG_CACHE_BYTES,
                                       .last_index_least = least};
  snprintf(path, sizeof path, "%s/log", node->folder);
  int error = raft_store_open(node->os, path, &node->incarnation, &options, &found, &node->store, text);
  if (error) {
    if (!text[0]) node_say(text, "%s: %s", path, strerror(-error));
    return error == -ENOSPC ? SQLITE_FULL : error == -EILSEQ ? SQLITE_CORRUPT : SQLITE_CANTOPEN;
  }
  start->first_index = found.first_index;
  start->prev_term = found.prev_term;
  start->last_index = found.last_index;
  start->entries = found.entries;
  start->commit_index = found.commit_index;
  node->last_index = node->durable_index = found.last_index;
  bool has_begun = node->formation == NODE_FORMED || node->formation == NODE_JOINED;
  if (found.fresh && node->hard_state.term > 0 && has_begun)
    return fail(SQLITE_CORRUPT, text, "%s is gone: the log is lost", path);
  return find_configurations(node, start, configuration, text);
}

/* ---- Start: the ways to begin ---- */

static int open_raft(struct node *node, struct raft_start *start, char *text) {
  start->now = os_now(node->os);
  start->term = node->hard_state.term;
  start->voted_for = node->hard_state.voted_for;
  start->restarted = node->is_restart;
  pthread_mutex_lock(&node->mutex);
  int code = node_raft_open(node, start, text);
  pthread_mutex_unlock(&node->mutex);
  return code;
}

/* It has a log: redo, then the core goes on from there. */
static int start_again(struct node *node, struct raft_start *start, const struct vfs_found *found,
                       struct node_snapshot *snapshot, char *text) {
  struct raft_entry last;
  uint64_t marked = vfs_found_marked(found);
  if (marked < node->snapshot_index) marked = node->snapshot_index;
  node->is_former = node->formation == NODE_FORMED;
  if (raft_store_read(node->store, start->last_index, 1, SIZE_MAX, &last) == 1) {
    node->origin_sequence = last.origin_sequence;
    raft_payload_unref(last.payload);
  }
  /* What the only voter has in its log is committed: whoever opens it sees all of it at once. */
  bool is_alone = node_is_alone(node, node_start_latest(start));
  if (is_alone && node_start_latest(start)->n_members == 1) {
    int code = node_adopt_edit(node, found, start, text);
    if (code != SQLITE_OK) return code;
  }
  uint64_t committed = is_alone ? start->last_index : start->commit_index > marked ? start->commit_index : marked;
  int code = node_start_database(node, committed, start->first_index, snapshot, text);
  if (code != SQLITE_OK) return code;
  start->commit_index = node->applied_index > marked ? node->applied_index : marked;
  return open_raft(node, start, text);
}

static int adopt(struct node *node, struct vfs_found *found, char *text) {
  int error = vfs_database_adopt(node->database, found, text);
  if (error && !text[0])
    return fail(node_sqlite_error(error), text, "%s cannot be made a replicated database", node->path);
  node->has_content = true;
  return node_sqlite_error(error);
}

/* A cluster of one is ready at once. */
static int start_alone(struct node *node, struct raft_start *start, char *text) {
  struct raft_configuration configuration;
  uint64_t last = 0;
  node_single_configuration(node, &configuration);
  int code = open_raft(node, start, text);
  if (code == SQLITE_OK && !node->has_content) code = node_start_database(node, 0, 1, NULL, text);
  if (code == SQLITE_OK) code = node_bootstrap(node, &configuration, node->has_content, &last, text);
  if (code == SQLITE_OK && node->has_content) code = node_start_database(node, last, 1, NULL, text);
  node->has_pages = code == SQLITE_OK;
  if (code != SQLITE_OK) return code;
  pthread_mutex_lock(&node->mutex);
  node_configuration_changed(node);
  pthread_mutex_unlock(&node->mutex);
  return SQLITE_OK;
}

/* Before peers say Hello, so that none is refused. */
static int open_forming(struct node *node, char *text) {
  struct raft_peer_facts facts = {
      .id = node->id,
      .incarnation = node->incarnation,
      .peers_hash = node->facts.peers_hash,
      .has_database = node->facts.has_database,
      .page_size = node->facts.page_size,
      .auto_vacuum = node->facts.auto_vacuum,
  };
  if (node->configuration.n_members > 0 || node->options.n_peers < 2) return SQLITE_OK;
  int error = raft_forming_open(&facts, node->options.peers, node->options.n_peers, &node->forming, text);
  return error == RAFT_OK ? SQLITE_OK : error == RAFT_NO_MEMORY ? SQLITE_NOMEM : SQLITE_CANTOPEN;
}

/* It waits for its peers, or to be added; the open returns. An existing database stays out of sight until the cluster has it. */
static int start_waiting(struct node *node, struct raft_start *start, char *text) {
  int code = open_raft(node, start, text);
  if (code == SQLITE_OK && !node->has_content) code = node_start_database(node, 0, 1, NULL, text);
  return code;
}

/* ---- Start: the network and the threads ---- */

/* A joiner takes the cluster's settings; what it is given all the same must be equal. */
static void ask_for_settings(struct node *node, struct raft_hello *facts) {
  const struct options *options = &node->options;
  facts->election_ms = options_has(options, OPTION_ELECTION) ? options->election_ms : 0;
  facts->page_size = options_has(options, OPTION_PAGE_SIZE) ? options->page_size : 0;
  facts->auto_vacuum = options_has(options, OPTION_AUTO_VACUUM) ? options->auto_vacuum : NODE_AUTO_VACUUM_ANY;
}

void node_join_facts(struct node *node) {
  pthread_mutex_lock(&node->facts_mutex);
  node->facts.features = NODE_FEATURE_JOINS;
  node->facts.has_database = false;
  node->facts.peers_hash = 0;
  ask_for_settings(node, &node->facts);
  pthread_mutex_unlock(&node->facts_mutex);
}

static void state_facts(struct node *node, const struct vfs_found *found) {
  struct raft_hello *facts = &node->facts;
  facts->protocol_lowest = RAFT_PROTOCOL_LOWEST;
  facts->protocol_highest = RAFT_PROTOCOL_HIGHEST;
  facts->node = node->id;
  facts->incarnation = node->incarnation;
  facts->cluster = node->configuration.cluster;
  facts->database = node->configuration.database;
  facts->election_ms = node->options.election_ms;
  facts->has_database = found->has_content && !found->has_marks;
  facts->page_size = facts->has_database ? found->page_size : node->options.page_size;
  facts->auto_vacuum = facts->has_database ? found->auto_vacuum : node->options.auto_vacuum;
  if (node->configuration.n_members > 0) {
    facts->election_ms = node->configuration.settings.election_ms;
    facts->page_size = node->configuration.settings.page_size;
    facts->auto_vacuum = node->configuration.settings.auto_vacuum;
  }
  if (node_is_joining(node)) {
    facts->features = NODE_FEATURE_JOINS;
    if (node->configuration.n_members == 0) ask_for_settings(node, facts);
  }
  if (node->options.n_peers > 0) facts->peers_hash = raft_forming_hash(node->options.peers, node->options.n_peers);
  memcpy(facts->address, node->options.advertise, sizeof facts->address);
}

/* Listens. Callbacks may come from now on; a frozen node lets them pass. */
static int attach_link(struct node *node, char *text) {
  node->transport = raft_transport_get(node->os);
  if (!node->transport) return fail(SQLITE_NOMEM, text, "%s: the network thread cannot be started", node->path);
  pthread_mutex_lock(&node->mutex);
  int error = raft_transport_attach(node->transport, &node_transport_methods, node,
                                    node->options.listen[0] ? node->options.listen : NULL, &node->link, text);
  pthread_mutex_unlock(&node->mutex);
  if (error) {
    if (!text[0]) node_say(text, "option listen=%s: %s", node->options.listen, strerror(-error));
    return SQLITE_CANTOPEN;
  }
  if (!node->options.advertise[0] && node->options.listen[0])
    snprintf(node->options.advertise, sizeof node->options.advertise, "%s", raft_transport_address(node->link));
  pthread_mutex_lock(&node->facts_mutex);
  memcpy(node->facts.address, node->options.advertise, sizeof node->facts.address);
  pthread_mutex_unlock(&node->facts_mutex);
  return SQLITE_OK;
}

static int start_threads(struct node *node, char *text) {
  int error = os_thread_start(node->os, "balsa-log", node_log_thread, node, &node->log_thread);
  if (!error) error = os_thread_start(node->os, "balsa-apply", node_apply_thread, node, &node->apply_thread);
  if (!error) error = os_thread_start(node->os, "balsa-ckpt", node_checkpoint_thread, node, &node->checkpoint_thread);
  if (!error) error = os_thread_start(node->os, "balsa-snap", node_snapshot_thread, node, &node->snapshot_thread);
  if (!error) error = os_thread_start(node->os, "balsa-send", node_transfer_thread, node, &node->transfer_thread);
  if (error) return fail(SQLITE_NOMEM, text, "%s: a thread cannot be started: %s", node->path, strerror(-error));
  return SQLITE_OK;
}

/* Events may go into the core. */
static void unfreeze(struct node *node) {
  pthread_mutex_lock(&node->mutex);
  node->frozen = false;
  node->leader_heard_at = node->join_heard_at = os_now(node->os);
  if (node->removed_index != 0) node_say_removed(node);
  node_dial_members(node);
  node_members_tick(node);
  node_forming_look(node);
  raft_tick(node->raft, os_now(node->os));
  node_drain(node, NULL, 0);
  pthread_mutex_unlock(&node->mutex);
}

/* A cluster of one asks nobody: what it takes until it may write is a few writes of its own disk. */
static void wait_alone(struct node *node) {
  uint64_t deadline = os_now(node->os) + NODE_START_ALONE_MAX;
  pthread_mutex_lock(&node->mutex);
  bool is_alone = node_is_alone(node, &node->configuration) && node->removed_index == 0;
  while (is_alone && node->epoch == 0 && !node->failed[0] && !node->quarantine[0] && os_now(node->os) < deadline)
    os_condition_wait(node->os, &node->epoch_condition, &node->mutex, deadline);
  pthread_mutex_unlock(&node->mutex);
}

/* ---- Start ---- */

/* The options of a node without state are checked before anything is made. */
static int check_given(const struct node *node, const struct options *given, char *text) {
  struct os_stat stat;
  char folder[OS_PATH_MAX + 8];
  struct options options;
  snprintf(folder, sizeof folder, "%s-balsa", node->path);
  if (os_stat(node->os, folder, &stat) == 0) return SQLITE_OK;
  options_init(&options);
  options_merge(&options, given);
  return options_check(&options, true, text) ? SQLITE_OK : SQLITE_CANTOPEN;
}

/* What is kept and what is given become the options in force. */
static int settle_options(struct node *node, const struct options *kept, const struct options *given, bool is_fresh,
                          char *text) {
  options_init(&node->options);
  options_merge(&node->options, kept);
  if (is_fresh) options_forget_derived(&node->options);
  options_merge(&node->options, given);
  if (node->rejoins) options_take_contacts(&node->options, kept); /* whatever is given: it knows where it belongs */
  node->options.node = node->id;
  node->ignores_join = options_joins(given) && node->formation == NODE_FORMED;
  /* What has come of a cluster's log so far does not make it a member. */
  bool joins = node->formation == NODE_FRESH && options_joins(&node->options);
  return options_check(&node->options, is_fresh || joins, text) ? SQLITE_OK : SQLITE_CANTOPEN;
}

/* What the leader sends would replace it. */
static int check_joiner(struct node *node, const struct vfs_found *found, char *text) {
  if (!node_is_joining(node) || !found->has_content || found->has_marks) return SQLITE_OK;
  return fail(SQLITE_CANTOPEN, text,
              "option join: %s is a database already, which belongs to no cluster and would be replaced: move it away",
              node->path);
}

/* What lies in the log already counts for the next snapshot and for the tail. */
static void weigh_log(struct node *node, const struct raft_start *start) {
  for (uint64_t index = start->first_index; index <= start->last_index; index++) {
    node_weigh(node, index, start->entries[index - start->first_index].size);
    if (index == node->snapshot_index) node->snapshot_weight = node->log_weight;
  }
  node->compact_wanted = true;
}

/* All of its log becomes the beginning of another cluster; then it starts again. */
static int start_recovering(struct node *node, struct raft_start *start, struct node_snapshot *snapshot, char *text) {
  uint64_t last = start->last_index;
  int code = node_start_database(node, last, start->first_index, snapshot, text);
  start->commit_index = node->applied_index;
  if (code == SQLITE_OK) code = open_raft(node, start, text);
  if (code == SQLITE_OK) code = node_write_recovered(node, last, text);
  node->starts_again = code == SQLITE_OK;
  return code == SQLITE_OK ? SQLITE_ABORT : code;
}

static int begin(struct node *node, struct raft_start *start, struct vfs_found *found, struct node_snapshot *snapshot,
                 char *text) {
  bool is_plain = found->has_content && !found->has_marks;
  if (node->formation == NODE_RECOVERING) return start_recovering(node, start, snapshot, text);
  if (start->n_configurations > 0) return start_again(node, start, found, snapshot, text);
  int code = is_plain ? adopt(node, found, text) : SQLITE_OK;
  if (code != SQLITE_OK) return code;
  return node->forming || node_is_joining(node) ? start_waiting(node, start, text) : start_alone(node, start, text);
}

/* What lies there, up to the vote. What is to be set aside goes first. */
static int open_files(struct node *node, const struct options *given, struct options *kept, struct vfs_found *found,
                      char *text) {
  char aside[OS_PATH_MAX];
  int code = check_given(node, given, text);
  if (code == SQLITE_OK) code = make_folder(node, text);
  if (code == SQLITE_OK) code = node_kept_open(node, kept, text);
  if (code == SQLITE_OK) code = node_known_open(node, text);
  bool rebuilds = node->formation == NODE_REBUILDING;
  if (code == SQLITE_OK && rebuilds) code = node_lost_folder(node, aside, text);
  if (code != SQLITE_OK) return code;
  code = open_database(node, kept, given, rebuilds ? aside : NULL, found, text);
  if (code == SQLITE_OK && rebuilds) code = node_set_aside(node, kept, aside, text);
  if (code == SQLITE_OK) code = note_loss(node, open_vote(node, text));
  return code;
}

/* A person says that this node is to begin anew, whether anything is lost or not. */
static int check_rebuild(struct node *node, int code, const struct options *given, char *text) {
  bool is_readable = code == SQLITE_OK || code == SQLITE_CANTOPEN;
  bool has_state = code != SQLITE_OK || node->hard_state.node != 0 || count_log_files(node) > 0;
  if (!given->rebuild || node->has_rebuilt || !is_readable || !has_state || !node->known_file) return code;
  if (code == SQLITE_OK) node_say(text, "%s: option rebuild=1", node->path);
  node->is_lost = true;
  return SQLITE_CORRUPT;
}

static int find_log(struct node *node, const struct options *kept, const struct options *given, struct vfs_found *found,
                    struct raft_start *start, struct node_snapshot *snapshot, char *text) {
  struct raft_configuration *configuration = &node->configuration;
  uint64_t threshold = options_has(given, OPTION_SNAPSHOT_THRESHOLD) ? given->snapshot_threshold
                                                                     : kept->snapshot_threshold;
  int code = SQLITE_OK;
  if (node->formation == NODE_BOOTSTRAPPING && !found->has_marks) code = discard_log(node, text);
  if (code == SQLITE_OK) code = identify(node, kept, given, found, text);
  if (code == SQLITE_OK && node->is_restart)
    code = open_log(node, threshold, log_reaches(node, found), start, configuration, text);
  if (code == SQLITE_OK) code = node_restore(node, start, configuration, snapshot, text);
  return note_loss(node, code);
}

static int start_node(struct node *node, const struct options *given, struct options *kept, struct raft_start *start,
                      struct node_snapshot *snapshot, char *text) {
  struct vfs_found found = {0};
  int code = open_files(node, given, kept, &found, text);
  code = check_rebuild(node, code, given, text);
  if (code == SQLITE_OK) code = find_log(node, kept, given, &found, start, snapshot, text);
  if (code == SQLITE_OK && start->n_configurations > 0 && !node->rejoins)
    code = check_members(node->path, node_start_latest(start), start->configurations[start->n_configurations - 1].index,
                         given, text);
  if (code == SQLITE_OK) code = settle_options(node, kept, given, start->n_configurations == 0, text);
  if (code == SQLITE_OK) code = check_joiner(node, &found, text);
  if (code == SQLITE_OK) code = complete_first_term(node, start, text);
  if (code == SQLITE_OK) code = note_loss(node, check_found(node, start, &found, text));
  if (code != SQLITE_OK) return code;
  weigh_log(node, start);
  state_facts(node, &found);
  code = open_forming(node, text);
  if (code == SQLITE_OK) code = attach_link(node, text);
  if (code == SQLITE_OK) code = write_identity(node, text);
  if (code == SQLITE_OK && !node->is_restart)
    code = open_log(node, node->options.snapshot_threshold, 0, start, &node->configuration, text);
  if (node->formation == NODE_BOOTSTRAPPING) node->formation = start->n_configurations > 0 ? NODE_FORMED : NODE_FRESH;
  if (node->formation == NODE_RECOVERING && node_is_recovered(node, start)) node->formation = NODE_FORMED;
  struct node_kept kept_state = {node->formation, node->joined_index, node->removed_index};
  if (code == SQLITE_OK) code = node_kept_write(node, &kept_state, text);
  if (code == SQLITE_OK) code = begin(node, start, &found, snapshot, text);
  if (code == SQLITE_OK) code = start_threads(node, text);
  if (code != SQLITE_OK) return code;
  unfreeze(node);
  wait_alone(node);
  return SQLITE_OK;
}

/* ---- Stop ---- */

/* All but the database, which connections may still use, and what status is read from. */
static void shut_down(struct node *node) {
  pthread_mutex_lock(&node->mutex);
  struct raft_transport_node *link = node->link;
  node->stopping = true;
  node->link = NULL;
  node_wake_all(node);
  pthread_mutex_unlock(&node->mutex);
  if (link) raft_transport_detach(link); /* no callback runs any more */
  node_end_succession(node);
  if (node->transfer_thread) os_thread_join(node->transfer_thread);
  if (node->checkpoint_thread) os_thread_join(node->checkpoint_thread);
  if (node->apply_thread) os_thread_join(node->apply_thread);
  if (node->log_thread) os_thread_join(node->log_thread);
  pthread_mutex_lock(&node->mutex);
  node_wait_idle(node);
  struct raft_store *store = node->store;
  struct raft_transport *transport = node->transport;
  node->store = NULL;
  node->transport = NULL;
  node->transfer_thread = node->checkpoint_thread = node->apply_thread = node->log_thread = NULL;
  pthread_mutex_unlock(&node->mutex);
  if (store) raft_store_close(store);
  if (node->hard_state_file) raft_hard_state_close(node->hard_state_file);
  if (node->kept_file) slot_file_close(node->kept_file);
  if (node->known_file) slot_file_close(node->known_file);
  node->hard_state_file = NULL;
  node->kept_file = node->known_file = NULL;
  if (transport) raft_transport_put(transport);
}

static void take_down(struct node *node) {
  node_end_snapshots(node);
  shut_down(node);
  if (!node->database) return;
  vfs_database_stop(node->database, os_now(node->os));
  vfs_database_close(node->database);
}

/* *again: what it has found or done makes it another node, which is to be started in its stead. */
static int start(struct node *node, const struct options *given, bool *again, char *text) {
  struct raft_start from = {.first_index = 1};
  struct options kept;
  struct node_snapshot *snapshot = calloc(1, sizeof *snapshot);
  text[0] = 0;
  *again = false;
  options_init(&kept);
  int code = snapshot && node->scratch && node->disk_reads
                 ? start_node(node, given, &kept, &from, snapshot, text)
                 : fail(SQLITE_NOMEM, text, "%s: no memory for the node", node->path);
  if (snapshot) node_snapshot_close(snapshot);
  free(snapshot);
  free((void *)(uintptr_t)from.entries);
  node_start_forget_configurations(&from);
  if (code == SQLITE_OK) return SQLITE_OK;
  *again = node->starts_again || node_rebuild(node, &kept, given, text);
  take_down(node);
  return code;
}

/* ---- The registry ---- */

static void unlist(struct node *node) {
  struct node **at = &nodes;
  while (*at != node) at = &(*at)->next;
  *at = node->next;
  pthread_cond_broadcast(&registry_changed);
}

/* registry_mutex held, given up meanwhile. A stopped node without connections goes. */
static void finish(struct node *node) {
  if (node->life != NODE_STOPPED || node->connections > 0) return;
  node->life = NODE_STOPPING; /* who wants to open the file waits until it is free */
  pthread_mutex_unlock(&registry_mutex);
  vfs_database_close(node->database);
  pthread_mutex_lock(&registry_mutex);
  unlist(node);
  node_free(node);
}

/* registry_mutex held, given up meanwhile. */
static void stop(struct node *node, uint64_t deadline) {
  node->life = NODE_STOPPING;
  pthread_mutex_unlock(&registry_mutex);
  node_retire(node, deadline);
  node_end_snapshots(node);
  vfs_database_stop(node->database, deadline);
  shut_down(node);
  pthread_mutex_lock(&registry_mutex);
  node->life = NODE_STOPPED;
  pthread_cond_broadcast(&registry_changed);
  finish(node);
}

void node_stop(struct node *node, uint64_t deadline) {
  if (node_is_forked()) return;
  pthread_mutex_lock(&registry_mutex);
  if (node->life == NODE_RUNNING) stop(node, deadline);
  pthread_mutex_unlock(&registry_mutex);
}

void node_stop_at(const char *path, uint64_t deadline) {
  pthread_mutex_lock(&registry_mutex);
  struct node *node = nodes;
  while (node && strcmp(node->path, path) != 0) node = node->next;
  if (node && node->life == NODE_RUNNING) stop(node, deadline);
  pthread_mutex_unlock(&registry_mutex);
}

/* Device and inode, once the file is there. */
static void note_identity(struct node *node) {
  struct os_stat stat;
  if (node->has_identity || os_stat(node->os, node->path, &stat) != 0) return;
  node->device = stat.device;
  node->inode = stat.inode;
  node->has_identity = true;
}

static bool is_same_file(struct node *node, const char *path, const struct os_stat *stat) {
  note_identity(node);
  if (stat && node->has_identity && node->device == stat->device && node->inode == stat->inode) return true;
  return strcmp(node->path, path) == 0;
}

static struct node *find(const char *path) {
  struct os_stat stat;
  bool exists = os_stat(os_of(path), path, &stat) == 0;
  for (struct node *node = nodes; node; node = node->next)
    if (is_same_file(node, path, exists ? &stat : NULL)) return node;
  return NULL;
}

/* The file's one name: symbolic links resolved, of a new file those of its folder. */
static int resolve(const char *filename, char path[OS_PATH_MAX], char *text) {
  char folder[OS_PATH_MAX], real[OS_PATH_MAX];
  int error = os_real_path(os_of(filename), filename, path);
  if (!error) return SQLITE_OK;
  const char *slash = strrchr(filename, '/');
  if (error != -ENOENT || !slash || strlen(filename) >= sizeof folder)
    return fail(SQLITE_CANTOPEN, text, "%.300s cannot be opened: %s", filename, strerror(-error));
  snprintf(folder, sizeof folder, "%.*s", slash == filename ? 1 : (int)(slash - filename), filename);
  if (os_real_path(os_of(filename), folder, real) != 0)
    return fail(SQLITE_CANTOPEN, text, "%.300s: no such folder", folder);
  int length = snprintf(path, OS_PATH_MAX, "%s/%s", strcmp(real, "/") == 0 ? "" : real, slash + 1);
  if (length < 0 || length >= OS_PATH_MAX)
    return fail(SQLITE_CANTOPEN, text, "%.300s…: the path is too long", filename);
  return SQLITE_OK;
}

/* A node that runs keeps its options; what is given again must be the same. */
static int check_running(struct node *node, const struct options *given, char *text) {
  pthread_mutex_lock(&node->mutex);
  struct raft_configuration configuration = node->configuration;
  uint64_t index = 0;
  if (node->raft) raft_get_configuration(node->raft, &index);
  pthread_mutex_unlock(&node->mutex);
  int code = check_members(node->path, &configuration, index, given, text);
  if (code != SQLITE_OK) return code;
  if (options_has(given, OPTION_NODE) && given->node != node->id)
    return fail(SQLITE_CANTOPEN, text, "option node=%" PRIu64 ": in this process %s is node %" PRIu64, given->node,
                node->path, node->id);
  if (options_has(given, OPTION_LISTEN) && strcmp(given->listen, node->options.listen) != 0)
    return fail(SQLITE_CANTOPEN, text,
                "option listen=%s: node %" PRIu64
                " runs in this process with listen=%s; another address needs a restart",
                given->listen, node->id, node->options.listen[0] ? node->options.listen : "none");
  if (options_has(given, OPTION_ADVERTISE) && strcmp(given->advertise, node->options.advertise) != 0)
    return fail(SQLITE_CANTOPEN, text,
                "option advertise=%s: node %" PRIu64
                " runs in this process with advertise=%s; another address needs a restart",
                given->advertise, node->id, node->options.advertise);
  return SQLITE_OK;
}

/* registry_mutex held, given up meanwhile. */
static int start_once(const char *path, const struct options *given, bool has_rebuilt, struct node **out, bool *again,
                      char *text) {
  struct node *node = node_new(path);
  *again = false;
  if (!node) return fail(SQLITE_NOMEM, text, "%s: no memory for the node", path);
  node->has_rebuilt = has_rebuilt;
  node->next = nodes;
  nodes = node;
  pthread_mutex_unlock(&registry_mutex);
  int code = start(node, given, again, text);
  pthread_mutex_lock(&registry_mutex);
  if (code == SQLITE_OK) {
    node->life = NODE_RUNNING;
    pthread_cond_broadcast(&registry_changed);
    *out = node;
  } else {
    unlist(node);
    node_free(node);
  }
  return code;
}

/* registry_mutex held, given up meanwhile. A node that begins anew, or recovers, starts again after it; once each. */
static int start_listed(const char *path, const struct options *given, struct node **out, char *text) {
  bool again = true;
  int code = SQLITE_OK;
  for (int i = 0; i < NODE_STARTS_MAX && again; i++) code = start_once(path, given, i > 0, out, &again, text);
  return code;
}

/* registry_mutex held, given up meanwhile. */
static int find_or_start(const char *path, const struct options *given, int flags, struct node **out, char *text) {
  struct node *node;
  struct os_stat stat;
  char folder[OS_PATH_MAX + 8];
  while ((node = find(path)) != NULL && (node->life == NODE_STARTING || node->life == NODE_STOPPING))
    os_condition_wait(machine.os, &registry_changed, &registry_mutex, OS_FOREVER);
  if (node && node->life == NODE_STOPPED)
    return fail(SQLITE_CANTOPEN, text, "%s: its node was stopped, and %u connections are still open: close them first",
                path, node->connections);
  *out = node;
  if (node) return check_running(node, given, text);
  snprintf(folder, sizeof folder, "%s-balsa", path);
  if (!(flags & SQLITE_OPEN_CREATE) && os_stat(os_of(path), path, &stat) != 0 &&
      os_stat(os_of(path), folder, &stat) != 0)
    return fail(SQLITE_CANTOPEN, text, "%s is not there, and this open may not create it", path);
  return start_listed(path, given, out, text);
}

static int attach(const char *filename, int flags, struct vfs_database **database, char *text) {
  struct options given;
  struct node *node = NULL;
  char path[OS_PATH_MAX];
  if (node_is_forked())
    return fail(SQLITE_CANTOPEN, text,
                "%s: this process was forked from one that uses Balsa; open databases after fork and exec", filename);
  options_init(&given);
  if (!options_from_environment(&given, text) || !options_from_uri(&given, filename, text)) return SQLITE_CANTOPEN;
  int code = resolve(filename, path, text);
  if (code != SQLITE_OK) return code;
  pthread_mutex_lock(&registry_mutex);
  code = find_or_start(path, &given, flags, &node, text);
  if (code == SQLITE_OK) {
    assert(node);
    node->connections++;
    *database = node->database;
  }
  pthread_mutex_unlock(&registry_mutex);
  return code;
}

/* registry_mutex held. Its log proved to be damaged, it serves nobody, and others can give it what it lost: it begins anew. */
static bool is_worn_out(struct node *node) {
  if (node->connections > 0 || node->life != NODE_RUNNING || !atomic_load(&node->is_damaged)) return false;
  pthread_mutex_lock(&node->mutex);
  bool has_others = node->configuration.n_members > 1;
  pthread_mutex_unlock(&node->mutex);
  return has_others;
}

static void detach(struct vfs_database *database) {
  struct node *node = vfs_database_node(database);
  if (node_is_forked()) return;
  pthread_mutex_lock(&registry_mutex);
  assert(node->connections > 0);
  node->connections--;
  if (is_worn_out(node))
    stop(node, os_now(node->os) + NODE_STOP_MS_MAX * OS_MS);
  else
    finish(node);
  pthread_mutex_unlock(&registry_mutex);
}

/* ---- The process ---- */

static void note_fork(void) {
  atomic_store(&forked, true);
}

/* Stops all nodes in order, at a normal exit. */
static void stop_all(void) {
  vfs_log_end();
  if (node_is_forked()) return;
  uint64_t deadline = os_now(machine.os) + NODE_STOP_MS_MAX * OS_MS;
  pthread_mutex_lock(&registry_mutex);
  for (struct node *node = nodes; node;) {
    if (node->life == NODE_RUNNING) {
      stop(node, deadline);
      node = nodes; /* the list may have changed */
    } else {
      node = node->next;
    }
  }
  pthread_mutex_unlock(&registry_mutex);
}

void node_use_machine(const struct node_machine *the_machine) {
  machine = *the_machine;
}

int node_library_init(void) {
  static const struct vfs_host host = {.attach = attach, .detach = detach};
  if (!machine.os) machine.os = os_real();
  if (!machine.base) machine.base = sqlite3_vfs_find(NULL);
  os_condition_init(&registry_changed);
  /* For drivers that pass no URI: every database that they open by its path is a replicated one. */
  const char *is_default = getenv("BALSA_DEFAULT");
  int code = vfs_register(&host, machine.base, is_default && strcmp(is_default, "1") == 0);
  if (code != SQLITE_OK) return code;
  if (pthread_atfork(NULL, NULL, note_fork) != 0 || atexit(stop_all) != 0) return SQLITE_NOMEM;
  return SQLITE_OK;
}
