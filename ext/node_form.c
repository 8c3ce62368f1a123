/*
** How a cluster begins: what the folder keeps, entry 1, and the first state of the database.
**
** The node's folder app.db-balsa/:
**
**   options   slot file, kind "OPTS": name=value lines of the options (options.h), formation=…, joined=… and removed=…
**             (node_members.c), rejoin=1 (node_rebuild.c), recover=… (node_recover.c)
**   members   slot file: whom to ask if the log is lost (node_rebuild.c)
**   lost-<n>/ what was there when log or vote were lost, for the n-th time
**   vote      slot file: node, incarnation, term, vote (raft/io/hard_state.h)
**   log/      the log (raft/io/store.h)
**   lock, database   of vfs/
**
** The node that forms a cluster writes, each durable before the next: formation=bootstrapping; the entries 1 … n (the
** configuration, then the content of an existing database); the mark that the database file is the state at n
** (or page 1 of a new one); formation=formed. Nothing leaves the node before the last. A start that finds
** `bootstrapping` without a mark throws the log away and begins again; with one, everything before it is complete.
*/
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "node_internal.h"

#define KEPT_KIND "OPTS"
#define KEPT_VERSION 1

static const char *const formations[] = {
    [NODE_FRESH] = "fresh",   [NODE_BOOTSTRAPPING] = "bootstrapping", [NODE_FORMED] = "formed",
    [NODE_JOINED] = "joined", [NODE_REBUILDING] = "rebuilding",       [NODE_RECOVERING] = "recovering",
};

/* ---- What the folder keeps ---- */

static bool read_formation(const char *kept, enum node_formation *formation) {
  const char *at = strstr(kept, "formation=");
  *formation = NODE_FRESH;
  if (!at) return true;
  at += strlen("formation=");
  for (size_t i = 0; i < sizeof formations / sizeof *formations; i++) {
    size_t length = strlen(formations[i]);
    if (strncmp(at, formations[i], length) != 0 || at[length] != '\n') continue;
    *formation = (enum node_formation)i;
    return true;
  }
  return false;
}

/* A kept index of a configuration; `name` with the line's end before it. 0: there is none. */
static uint64_t read_index(const char *kept, const char *name) {
  const char *at = strstr(kept, name);
  return at ? strtoull(at + strlen(name), NULL, 10) : 0;
}

/* The id of the cluster that is to begin. */
static bool read_recover(const char *kept, struct raft_uuid *cluster) {
  const char *at = strstr(kept, "\nrecover=");
  *cluster = (struct raft_uuid){{0}};
  if (!at) return true;
  at += strlen("\nrecover=");
  for (size_t i = 0; i < RAFT_UUID_SIZE; i++) {
    char byte[3] = {at[2 * i], at[2 * i] ? at[2 * i + 1] : 0, 0};
    if (strspn(byte, "0123456789abcdef") != 2) return false;
    cluster->bytes[i] = (uint8_t)strtoul(byte, NULL, 16);
  }
  return true;
}

int node_kept_open(struct node *node, struct options *kept, char *text) {
  char path[OS_PATH_MAX + 16], payload[OPTIONS_KEPT_MAX], why[OPTIONS_TEXT_MAX] = "";
  size_t size = 0;
  snprintf(path, sizeof path, "%s/options", node->folder);
  int error = slot_file_open(node->os, path, KEPT_KIND, KEPT_VERSION, payload, sizeof payload - 1, &size,
                             &node->kept_file);
  if (error) {
    node_say(text, "%.300s: %s", path,
             error == -EILSEQ
                 ? "damaged; restore it from a copy, or remove this file and give all options again, peers or join too"
             : error == -EPROTO ? "of another version of Balsa; use that one"
                                : strerror(-error));
    return SQLITE_CANTOPEN;
  }
  payload[size] = 0;
  node->joined_index = read_index(payload, "\njoined=");
  node->removed_index = read_index(payload, "\nremoved=");
  node->rejoins = strstr(payload, "\nrejoin=1\n") != NULL;
  bool is_known = read_formation(payload, &node->formation) && read_recover(payload, &node->recover_cluster);
  if (node->formation == NODE_FRESH || node->formation == NODE_BOOTSTRAPPING) node->joined_index = 0; /* not it */
  if (is_known && options_from_kept(kept, payload, why)) return SQLITE_OK;
  node_say(text, "%.300s: %.400s", path, why[0] ? why : "of another version of Balsa; use that one");
  return SQLITE_CANTOPEN;
}

int node_kept_write(struct node *node, const struct node_kept *state, char *text) {
  char kept[SLOT_FILE_PAYLOAD_MAX];
  int length = snprintf(kept, sizeof kept, "formation=%s\n", formations[state->formation]);
  if (state->joined_index != 0)
    length += snprintf(kept + length, sizeof kept - (size_t)length, "joined=%" PRIu64 "\n", state->joined_index);
  if (state->removed_index != 0)
    length += snprintf(kept + length, sizeof kept - (size_t)length, "removed=%" PRIu64 "\n", state->removed_index);
  if (state->formation == NODE_FRESH && node->rejoins)
    length += snprintf(kept + length, sizeof kept - (size_t)length, "rejoin=1\n");
  if (state->formation == NODE_RECOVERING) {
    char cluster[NODE_UUID_TEXT];
    node_uuid_text(&node->recover_cluster, cluster);
    length += snprintf(kept + length, sizeof kept - (size_t)length, "recover=%s\n", cluster);
  }
  if (!options_keep(&node->options, kept + length, sizeof kept - (size_t)length, text)) return SQLITE_CANTOPEN;
  int error = slot_file_write(node->kept_file, kept, strlen(kept));
  if (error) {
    node_say(text, "%.400s/options cannot be written: %s", node->folder, strerror(-error));
    return error == -ENOSPC ? SQLITE_FULL : SQLITE_CANTOPEN;
  }
  return SQLITE_OK;
}

int node_keep(struct node *node, char *text) {
  struct node_kept kept = {node->formation, node->joined_index, node->removed_index};
  node->keep_wanted = false;
  pthread_mutex_unlock(&node->mutex);
  int code = node_kept_write(node, &kept, text);
  pthread_mutex_lock(&node->mutex);
  if (code == SQLITE_OK) {
    node->kept_formation = kept.formation;
    pthread_cond_broadcast(&node->epoch_condition);
    return VFS_OK;
  }
  node->keep_wanted = true;
  return code == SQLITE_FULL ? VFS_NO_SPACE : VFS_IO;
}

/* While it begins: nobody else writes it, or looks. */
static int set_formation(struct node *node, enum node_formation formation, char *text) {
  int code = node_kept_write(node, &(struct node_kept){.formation = formation}, text);
  if (code != SQLITE_OK) return code;
  pthread_mutex_lock(&node->mutex);
  node->formation = formation;
  pthread_mutex_unlock(&node->mutex);
  return SQLITE_OK;
}

/* ---- Bootstrap ---- */

static void random_uuid(struct node *node, struct raft_uuid *uuid) {
  os_random(node->os, uuid->bytes, sizeof uuid->bytes);
}

void node_single_configuration(struct node *node, struct raft_configuration *configuration) {
  *configuration = (struct raft_configuration){.n_members = 1};
  struct raft_member *self = &configuration->members[0];
  self->id = node->id;
  self->incarnation = node->incarnation;
  self->roles = RAFT_VOTER_NEW;
  memcpy(self->address, node->options.advertise, sizeof self->address);
  configuration->settings.page_size = node->facts.page_size;
  configuration->settings.auto_vacuum = node->facts.auto_vacuum;
}

struct bootstrap {
  struct node *node;
  uint64_t last;     /* index of the last entry */
  uint64_t last_set; /* of the last part */
  char *text;
};

static int error_of_store(struct node *node, int error, char *text) {
  char why[RAFT_STORE_TEXT_MAX] = "";
  if (error == 0) return VFS_OK;
  raft_store_error(node->store, why);
  node_say(text, "%.640s", why[0] ? why : strerror(-error));
  return error == -ENOSPC ? VFS_NO_SPACE : error == -ENOMEM ? VFS_NO_MEMORY : VFS_IO;
}

/* Appends an entry of term 1 whose place the core has given. */
static int append(struct bootstrap *bootstrap, struct raft_entry *entry) {
  struct node *node = bootstrap->node;
  uint64_t persist = 0;
  entry->term = 1;
  entry->origin = node->incarnation;
  entry->origin_sequence = ++node->origin_sequence;
  bootstrap->last = entry->index;
  int error = raft_store_append(node->store, entry, 0);
  pthread_mutex_lock(&node->mutex);
  node_weigh(node, entry->index, raft_entry_size(entry));
  pthread_mutex_unlock(&node->mutex);
  if (!error && raft_store_pending_bytes(node->store) > NODE_EXPORT_FLUSH_BYTES)
    error = raft_store_flush(node->store, &persist);
  return error_of_store(node, error, bootstrap->text);
}

static int append_set(void *ctx, const struct vfs_change_set *set) {
  struct bootstrap *bootstrap = ctx;
  struct node *node = bootstrap->node;
  struct raft_entry entry;
  int error = node_entry_from_set(node, set, &entry);
  if (error) return error;
  entry.previous = bootstrap->last_set;
  pthread_mutex_lock(&node->mutex);
  int refused = raft_bootstrap_entry(node->raft, entry.type, raft_entry_size(&entry), &entry.index);
  pthread_mutex_unlock(&node->mutex);
  if (refused) {
    node_say(bootstrap->text, "%s: the first state does not fit: %s", node->path, raft_error_text(refused));
    error = VFS_TOO_LARGE;
  } else {
    error = append(bootstrap, &entry);
    bootstrap->last_set = entry.index;
  }
  raft_payload_unref(entry.payload);
  return error;
}

static int append_configuration(struct bootstrap *bootstrap, const struct raft_configuration *configuration) {
  struct raft_entry entry = {.type = RAFT_ENTRY_CONFIGURATION, .index = 1};
  entry.payload = raft_payload_new((uint32_t)raft_configuration_size(configuration));
  if (!entry.payload) return VFS_NO_MEMORY;
  raft_configuration_encode(configuration, entry.payload->bytes);
  int error = append(bootstrap, &entry);
  raft_payload_unref(entry.payload);
  return error;
}

/* What is waiting in the file becomes entries. */
static int bootstrap_entries(struct bootstrap *bootstrap, const struct raft_configuration *configuration,
                             bool has_content) {
  struct node *node = bootstrap->node;
  uint64_t persist = 0;
  pthread_mutex_lock(&node->mutex);
  int refused = raft_bootstrap(node->raft, os_now(node->os), configuration);
  pthread_mutex_unlock(&node->mutex);
  if (refused) {
    node_say(bootstrap->text, "%s: the cluster cannot begin: %s", node->path, raft_error_text(refused));
    return VFS_DAMAGED;
  }
  int error = append_configuration(bootstrap, configuration);
  if (!error && has_content) error = vfs_database_export(node->database, append_set, bootstrap, bootstrap->text);
  if (!error) error = error_of_store(node, raft_store_flush(node->store, &persist), bootstrap->text);
  return error;
}

int node_bootstrap(struct node *node, const struct raft_configuration *configuration, bool has_content, uint64_t *last,
                   char *text) {
  struct bootstrap bootstrap = {.node = node, .text = text};
  struct raft_configuration complete = *configuration;
  assert(node->frozen);
  random_uuid(node, &complete.cluster);
  random_uuid(node, &complete.database);
  complete.settings.election_ms = node->options.election_ms;
  complete.settings.heartbeat_ms = node->options.heartbeat_ms;
  int code = set_formation(node, NODE_BOOTSTRAPPING, text);
  if (code != SQLITE_OK) return code;
  int error = bootstrap_entries(&bootstrap, &complete, has_content);
  if (!error && has_content) error = vfs_database_mark(node->database, bootstrap.last, text);
  if (!error && !has_content)
    error = vfs_database_create(node->database, complete.settings.page_size, complete.settings.auto_vacuum, text);
  if (error) {
    if (!text[0]) node_say(text, "%s: no memory", node->path);
    return node_sqlite_error(error);
  }
  *last = bootstrap.last;
  code = set_formation(node, NODE_FORMED, text);
  node->is_former = code == SQLITE_OK;
  return code;
}

/* ---- Forming ---- */

void node_forming_look(struct node *node) {
  struct raft_configuration configuration;
  char text[RAFT_FORMING_TEXT_MAX] = "";
  if (!node->forming || node->frozen || node->formation != NODE_FRESH) return;
  enum raft_forming_state state = raft_forming_state(node->forming, &configuration, text);
  snprintf(node->forming_text, sizeof node->forming_text, "%s%s", state == RAFT_FORMING_REFUSED ? "refused: " : "",
           text);
  if (state != RAFT_FORMING_WRITE) return;
  node->form_wanted = true;
  pthread_cond_signal(&node->apply_condition);
}

/* This node writes entry 1; nobody else may touch the core meanwhile. true: `configuration` is what to write. */
static bool begin_forming(struct node *node, struct raft_configuration *configuration) {
  char text[RAFT_FORMING_TEXT_MAX];
  pthread_mutex_lock(&node->mutex);
  bool writes = !node->stopping && !node->frozen && node->forming && node->configuration.n_members == 0 &&
                raft_forming_state(node->forming, configuration, text) == RAFT_FORMING_WRITE;
  if (writes) node->frozen = true;
  pthread_mutex_unlock(&node->mutex);
  return writes;
}

void node_form(struct node *node) {
  struct raft_configuration configuration;
  char text[VFS_TEXT_MAX] = "";
  uint64_t last = 0;
  if (!begin_forming(node, &configuration)) return;
  bool has_content = node->has_content;
  int code = node_bootstrap(node, &configuration, has_content, &last, text);
  if (code == SQLITE_OK && has_content) code = node_start_database(node, last, 1, NULL, text);
  if (code != SQLITE_OK) {
    /* It stays frozen: nobody has seen anything of it, and the next start begins again. */
    pthread_mutex_lock(&node->mutex);
    snprintf(node->failed, sizeof node->failed, "the cluster could not be formed: %.700s", text);
    pthread_mutex_unlock(&node->mutex);
    node_log(code, "node %" PRIu64 ": the cluster could not be formed: %s", node->id, text);
    return;
  }
  pthread_mutex_lock(&node->mutex);
  node->frozen = false;
  node->has_pages = true;
  node_configuration_changed(node);
  node_drain(node, NULL, 0);
  pthread_mutex_unlock(&node->mutex);
  node_log(SQLITE_NOTICE, "node %" PRIu64 " has formed a cluster of %u nodes", node->id, configuration.n_members);
}
