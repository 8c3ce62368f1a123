/*
** A node that lost its log or its vote (design section 5, "Incarnation"). It could vote twice, or forget what it
** acknowledged, so it never goes on as it was: what it has is set aside, and it asks the other members to be taken in again, under
** its number, as a new incarnation: a learner first, a voter by a committed change of the configuration.
**
** Whom to ask is in the folder, beside the log: `members`, a slot file of kind "MEMB", little-endian, version 1:
**
**   offset size
**    0     8  this node
**    8    16  cluster
**   24     4  members of the cluster, this node among them
**   28     4  addresses that follow (as many as fit)
**   32     …  of each other member: node (8), length of the address (2), the address
**
** It is written after each change, best effort: an old one still names somebody who knows more.
**
** The order, each durable before the next; a start that finds `rebuilding` goes on from there:
**   1. the folder lost-<n>, for n = 1, 2, …
**   2. formation=rebuilding and join=<members> in `options`
**   3. database file, -wal, -shm, `database` (vfs/aside.c), vote, log and snapshots move into it
**   4. formation=fresh: from here on it is a node that wants to join
**
** By itself that is done only if it is certain that something is lost (a checksum is wrong, a file is gone that must be
** there), others are known that have it, and NODE_LOST_MAX such folders are not there yet: a disk that loses the log again and
** again is no place for a voter. Everything else takes option rebuild=1 from a person. A cluster of one has nobody to
** take its data from.
*/
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "node_internal.h"

#define MEMBERS_KIND "MEMB"
#define MEMBERS_VERSION 1
#define MEMBERS_HEADER 32u
#define MEMBER_HEADER 10u
#define LOST_PREFIX "lost-"

/* ---- The members, as the folder knows them ---- */

static size_t encode(const struct node *node, uint8_t bytes[SLOT_FILE_PAYLOAD_MAX]) {
  const struct raft_configuration *configuration = &node->configuration;
  uint32_t n = 0;
  size_t size = MEMBERS_HEADER;
  le64_put(bytes, node->id);
  memcpy(bytes + 8, configuration->cluster.bytes, RAFT_UUID_SIZE);
  le32_put(bytes + 24, configuration->n_members);
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    const char *address = node_address_of(node, configuration->members[i].id);
    size_t length = strnlen(address, RAFT_ADDRESS_MAX - 1);
    bool is_other = configuration->members[i].id != node->id && length > 0;
    if (!is_other || size + MEMBER_HEADER + length > SLOT_FILE_PAYLOAD_MAX) continue;
    le64_put(bytes + size, configuration->members[i].id);
    le16_put(bytes + size + 8, (uint16_t)length);
    memcpy(bytes + size + MEMBER_HEADER, address, length);
    size += MEMBER_HEADER + length;
    n++;
  }
  le32_put(bytes + 28, n);
  return size;
}

static bool decode(const uint8_t *bytes, size_t size, struct node_known *known) {
  *known = (struct node_known){0};
  if (size < MEMBERS_HEADER) return size == 0;
  uint32_t n = le32_get(bytes + 28);
  size_t at = MEMBERS_HEADER;
  known->node = le64_get(bytes);
  memcpy(known->cluster.bytes, bytes + 8, RAFT_UUID_SIZE);
  known->n_members = le32_get(bytes + 24);
  for (uint32_t i = 0; i < n; i++) {
    size_t length = at + MEMBER_HEADER <= size ? le16_get(bytes + at + 8) : RAFT_ADDRESS_MAX;
    if (i == RAFT_MEMBERS_MAX || length >= RAFT_ADDRESS_MAX || at + MEMBER_HEADER + length > size) return false;
    known->peers[i].id = le64_get(bytes + at);
    memcpy(known->peers[i].address, bytes + at + MEMBER_HEADER, length);
    at += MEMBER_HEADER + length;
    known->n_peers = i + 1;
  }
  return true;
}

int node_known_read(struct os *os, const char *path, struct node_known *known) {
  uint8_t bytes[SLOT_FILE_PAYLOAD_MAX];
  struct slot_file *file = NULL;
  struct os_stat stat;
  size_t size = 0;
  *known = (struct node_known){0};
  int error = os_stat(os, path, &stat);
  if (!error) error = slot_file_open(os, path, MEMBERS_KIND, MEMBERS_VERSION, bytes, sizeof bytes, &size, &file);
  if (!error && !decode(bytes, size, known)) error = -EILSEQ;
  slot_file_close(file);
  return error;
}

int node_known_open(struct node *node, char *text) {
  char path[OS_PATH_MAX + 16];
  uint8_t bytes[SLOT_FILE_PAYLOAD_MAX];
  size_t size = 0;
  snprintf(path, sizeof path, "%s/members", node->folder);
  int error = slot_file_open(node->os, path, MEMBERS_KIND, MEMBERS_VERSION, bytes, sizeof bytes, &size,
                             &node->known_file);
  if (error == -EILSEQ) { /* only a help: it is made again */
    error = os_remove(node->os, path);
    if (!error)
      error = slot_file_open(node->os, path, MEMBERS_KIND, MEMBERS_VERSION, bytes, sizeof bytes, &size,
                             &node->known_file);
  }
  if (error) {
    node_say(text, "%.300s cannot be opened: %s", path,
             error == -EPROTO ? "it is of another version of Balsa; use that one" : strerror(-error));
    return error == -ENOSPC ? SQLITE_FULL : SQLITE_CANTOPEN;
  }
  if (!decode(bytes, size, &node->known)) node->known = (struct node_known){0};
  return SQLITE_OK;
}

/* A node that is no member (yet, or any more) keeps what it knew. */
void node_known_changed(struct node *node) {
  if (!raft_configuration_find(&node->configuration, node->id)) return;
  node->known_stale = true;
  pthread_cond_signal(&node->log_condition);
}

void node_known_write(struct node *node) {
  uint8_t bytes[SLOT_FILE_PAYLOAD_MAX];
  size_t size = encode(node, bytes);
  node->known_stale = false;
  pthread_mutex_unlock(&node->mutex);
  int error = slot_file_write(node->known_file, bytes, size);
  if (error) node_log(SQLITE_IOERR, "%s/members cannot be written: %s", node->folder, strerror(-error));
  pthread_mutex_lock(&node->mutex);
}

/* ---- What was lost before ---- */

static int highest_lost(void *ctx, const char *name) {
  int *highest = ctx;
  char *end = NULL;
  if (strncmp(name, LOST_PREFIX, strlen(LOST_PREFIX)) != 0) return 0;
  long number = strtol(name + strlen(LOST_PREFIX), &end, 10);
  if (*end == 0 && number > *highest && number < INT32_MAX) *highest = (int)number;
  return 0;
}

/* 0: there is none. Negative errno. */
static int count_lost(struct node *node) {
  int highest = 0;
  int error = os_list(node->os, node->folder, highest_lost, &highest);
  return error ? error : highest;
}

static void lost_path(const struct node *node, int number, char path[OS_PATH_MAX]) {
  snprintf(path, OS_PATH_MAX, "%.*s/" LOST_PREFIX "%d", OS_PATH_MAX - 32, node->folder, number);
}

static int make_lost(struct node *node, int number) {
  char path[OS_PATH_MAX];
  lost_path(node, number, path);
  int error = os_make_directory(node->os, path);
  return error ? error : os_sync_directory(node->os, node->folder);
}

/* ---- To rebuild, or not ---- */

static void append(char *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void append(char *text, const char *format, ...) {
  size_t length = strlen(text);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + length, VFS_TEXT_MAX - length, format, arguments);
  va_end(arguments);
}

/* Whom it will ask: whom a person names, else whom the folder knows. */
static bool has_contacts(const struct node *node, const struct options *kept, const struct options *given) {
  return options_joins(kept) || options_joins(given) || given->n_peers > 0 || node->known.n_peers > 0;
}

/* Nothing was lost, or it must not happen by itself: `text` says what to do. */
static bool may_rebuild(struct node *node, const struct options *kept, const struct options *given, int lost,
                        char *text) {
  if (node->formation == NODE_RECOVERING || (node->known.n_members == 1 && !options_has(given, OPTION_JOIN))) {
    append(text, ". This node is a cluster of one: nobody else has its data. Restore %s from a copy", node->folder);
    return false;
  }
  if (!has_contacts(node, kept, given)) {
    append(text, ". Nobody is known who has the data: open it with rebuild=1 and join=host:port of another member, "
                 "and this node begins anew from there");
    return false;
  }
  if (given->rebuild || lost < NODE_LOST_MAX) return true;
  append(text,
         ". This has happened %d times (%s/" LOST_PREFIX "*): look at the disk. With rebuild=1 the node begins anew "
         "from the other members",
         lost, node->folder);
  return false;
}

static void add_contact(struct options *options, const char *address) {
  if (options->n_join == OPTIONS_JOIN_MAX) return;
  memcpy(options->join[options->n_join++], address, RAFT_ADDRESS_MAX);
}

/* Those that were in the folder, or in the list of a person, are whom it asks. */
static void ask_peers(struct options *options, const struct raft_peer *peers, size_t n_peers) {
  options->n_join = options->n_peers = 0;
  options->waits = false;
  options->given &= ~(1u << OPTION_PEERS);
  options->given |= 1u << OPTION_JOIN;
  for (size_t i = 0; i < n_peers; i++)
    if (peers[i].id != options->node) add_contact(options, peers[i].address);
}

static void name_contacts(struct node *node, const struct options *kept, const struct options *given) {
  struct options *options = &node->options;
  options_init(options);
  options_merge(options, kept);
  options_merge(options, given);
  if (node->id != 0)
    options->node = node->id;
  else if (node->known.node != 0)
    options->node = node->known.node;
  options->given |= 1u << OPTION_NODE;
  if (options_joins(given)) return;
  if (node->known.n_peers > 0)
    ask_peers(options, node->known.peers, node->known.n_peers);
  else if (given->n_peers > 0)
    ask_peers(options, given->peers, given->n_peers);
}

bool node_rebuild(struct node *node, const struct options *kept, const struct options *given, char *text) {
  char why[VFS_TEXT_MAX];
  int lost = count_lost(node);
  if (!node->is_lost || lost < 0 || !may_rebuild(node, kept, given, lost, text)) return false;
  snprintf(why, sizeof why, "%s", text);
  name_contacts(node, kept, given);
  int error = make_lost(node, lost + 1);
  if (error) {
    append(text, "; it cannot be set aside in %s: %s", node->folder, strerror(-error));
    return false;
  }
  if (node_kept_write(node, &(struct node_kept){.formation = NODE_REBUILDING}, text) != SQLITE_OK) return false;
  node_log(SQLITE_WARNING,
           "node %" PRIu64 " has lost its log or vote: what is left goes to %s/" LOST_PREFIX
           "%d, and it joins its cluster anew. %s",
           node->options.node, node->folder, lost + 1, why);
  return true;
}

/* ---- Setting aside ---- */

int node_lost_folder(struct node *node, char path[OS_PATH_MAX], char *text) {
  int number = count_lost(node);
  int error = number < 0 ? number : 0;
  if (number == 0) error = make_lost(node, number = 1);
  if (error) {
    node_say(text, "%s cannot be looked through: %s", node->folder, strerror(-error));
    return error == -ENOSPC ? SQLITE_FULL : SQLITE_CANTOPEN;
  }
  lost_path(node, number, path);
  return SQLITE_OK;
}

int node_set_aside(struct node *node, const struct options *kept, const char *folder, char *text) {
  static const char *const names[] = {"vote", "log", "snapshots"};
  char from[OS_PATH_MAX], to[OS_PATH_MAX];
  int error = 0;
  for (size_t i = 0; i < sizeof names / sizeof *names && !error; i++) {
    snprintf(from, sizeof from, "%.*s/%s", OS_PATH_MAX - 32, node->folder, names[i]);
    snprintf(to, sizeof to, "%.*s/%s", OS_PATH_MAX - 32, folder, names[i]);
    error = os_rename(node->os, from, to);
    if (error == -ENOENT) error = 0;
    if (error) node_say(text, "%s cannot be set aside in %s: %s", from, folder, strerror(-error));
  }
  if (!error) {
    error = os_sync_directory(node->os, folder);
    if (!error) error = os_sync_directory(node->os, node->folder);
    if (error) node_say(text, "%s cannot be synced: %s", node->folder, strerror(-error));
  }
  if (error) return error == -ENOSPC ? SQLITE_FULL : SQLITE_CANTOPEN;
  options_init(&node->options);
  options_merge(&node->options, kept);
  node->rejoins = true;
  node->formation = NODE_FRESH;
  node->joined_index = node->removed_index = 0;
  return node_kept_write(node, &(struct node_kept){.formation = NODE_FRESH}, text);
}

/* ---- A folder that was emptied ---- */

void node_want_return(struct node *node) {
  bool is_fresh = node->forming && !node->frozen && node->formation == NODE_FRESH && node->configuration.n_members == 0;
  if (!is_fresh || node->return_wanted) return;
  node->return_wanted = true;
  pthread_cond_signal(&node->apply_condition);
}

/* A database that was left beside the folder is no beginning of a cluster: it is what this node had. */
static int clear_database(struct node *node, char *text) {
  char folder[OS_PATH_MAX];
  int number = count_lost(node);
  int error = number < 0 ? number : make_lost(node, number + 1);
  if (error) {
    node_say(text, "%s cannot be looked through: %s", node->folder, strerror(-error));
    return error == -ENOSPC ? VFS_NO_SPACE : VFS_IO;
  }
  lost_path(node, number + 1, folder);
  error = vfs_database_clear(node->database, folder, text);
  if (error) return error;
  node->has_content = false;
  return node_start_database(node, 0, 1, NULL, text) == SQLITE_OK ? VFS_OK : VFS_IO;
}

int node_return(struct node *node, char *text) {
  struct options options = node->options;
  bool has_content = node->has_content;
  node->return_wanted = false;
  if (!node->forming || node->configuration.n_members > 0) return VFS_OK;
  pthread_mutex_unlock(&node->mutex);
  int error = has_content ? clear_database(node, text) : VFS_OK;
  ask_peers(&options, options.peers, options.n_peers);
  pthread_mutex_lock(&node->mutex);
  if (!error && node->configuration.n_members == 0) {
    options_take_contacts(&node->options, &options);
    node->rejoins = true;
    raft_forming_close(node->forming);
    node->forming = NULL;
    node->join_heard_at = os_now(node->os);
    node_join_facts(node);
    node_dial_members(node);
    node->news_code = SQLITE_WARNING;
    node_say(node->news, "its folder was lost: it joins its cluster anew");
    /* Written down before it asks: what it asks for begins with its removal. */
    node->members_tick_at = OS_FOREVER;
    node_keep(node, text);
    node->members_tick_at = 0;
    if (node->link) raft_transport_wake(node->link);
  }
  if (error) node->return_wanted = true;
  return error;
}
