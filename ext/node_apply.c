/*
** The apply thread: it alone decides what the database shows while this node does not write. It takes back the
** speculation of an epoch that ended, applies what is committed and locally durable, and begins an epoch once
** this node's own no-op is applied. It also forms the cluster, since that reads the whole database.
**
** While an epoch lives there is nothing to apply: own entries are in the database already, and vfs/ hears of their
** commit from whoever drives the core.
*/
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "node_internal.h"

/* Waits out a back-off; signals in between do not shorten it. What is only busy is asked again soon. mutex held. */
static void back_off(struct node *node, pthread_cond_t *condition, int error, uint64_t *delay) {
  bool is_brief = error == VFS_BUSY && *delay > NODE_BUSY_RETRY_NS;
  uint64_t until = os_now(node->os) + (is_brief ? NODE_BUSY_RETRY_NS : *delay);
  while (!node->stopping && os_now(node->os) < until) os_condition_wait(node->os, condition, &node->mutex, until);
  *delay = *delay * 2 < NODE_RETRY_NS_MAX ? *delay * 2 : NODE_RETRY_NS_MAX;
}

static bool may_pass(int error) {
  return error == VFS_BUSY || error == VFS_NO_SPACE || error == VFS_NO_MEMORY || error == VFS_NOBODY;
}

static const char *name_of(int error) {
  switch (error) {
  case VFS_NO_SPACE: return "a full disk";
  case VFS_NO_MEMORY: return "lack of memory";
  case VFS_IO: return "a failing disk";
  default: return "an open transaction";
  }
}

/* Somebody in the way for a moment is no news. */
static void set_blocked(struct node *node, int error, uint64_t delay, const char *text) {
  if (error == VFS_BUSY && delay < NODE_RETRY_NS_MAX) return;
  snprintf(node->blocked, sizeof node->blocked, "blocked by %s%s%.600s", name_of(error), text[0] ? ": " : "", text);
}

void node_quarantine(struct node *node, const char *text) {
  snprintf(node->quarantine, sizeof node->quarantine, "quarantined: %.700s", text);
  /* One that leads and cannot apply would keep all others from writing: it steps down, for good. */
  if (node->role == RAFT_LEADER && node->configuration.n_members > 1) node_fail(node, "%s", node->quarantine);
  pthread_cond_broadcast(&node->epoch_condition); /* nobody else will lead a cluster of one */
  node_drain(node, NULL, 0);
  pthread_mutex_unlock(&node->mutex);
  node_log(SQLITE_CORRUPT, "node %" PRIu64 " is quarantined: %s", node->id, text);
  pthread_mutex_lock(&node->mutex);
}

/* ---- Compensation ---- */

static bool is_cancelled(void *ctx) {
  struct node *node = ctx;
  pthread_mutex_lock(&node->mutex);
  bool stopping = node->stopping;
  pthread_mutex_unlock(&node->mutex);
  return stopping;
}

/* mutex held, given up meanwhile. */
static void compensate(struct node *node, uint64_t *delay) {
  uint64_t commit_index = node->lost_commit, applied = 0;
  node->apply_blocked = true; /* until no write transaction is open, this node must not win an election */
  node_drain(node, NULL, 0);
  pthread_mutex_unlock(&node->mutex);
  int error = vfs_compensate(node->database, commit_index, is_cancelled, &applied);
  pthread_mutex_lock(&node->mutex);
  node->apply_blocked = false;
  if (error == VFS_OK) {
    node->compensation_owed = false;
    node->applied_index = applied;
    node->blocked[0] = 0;
    *delay = NODE_RETRY_NS_MIN;
  } else if (may_pass(error)) {
    set_blocked(node, error, *delay, "what this node wrote as leader and was not committed cannot be taken back yet");
    back_off(node, &node->apply_condition, error, delay);
  } else if (error != VFS_STOPPED) {
    node_quarantine(node,
                    "what this node wrote as leader and was not committed could not be taken back: it serves no reads "
                    "until it starts again");
  }
  node_drain(node, NULL, 0);
}

/* ---- Apply ---- */

/* Page 1 of a new database, as the first configuration says. No lock held. */
static int create_pages(struct node *node, const struct raft_entry *entry, char *text) {
  struct raft_configuration configuration;
  if (node->has_pages) return VFS_OK;
  if (!entry->payload ||
      raft_configuration_decode(entry->payload->bytes, entry->payload->size, &configuration) != RAFT_OK) {
    node_say(text, "%s/log: entry %" PRIu64 " is no configuration that this version understands", node->folder,
             entry->index);
    return VFS_DAMAGED;
  }
  int error = vfs_database_create(node->database, configuration.settings.page_size, configuration.settings.auto_vacuum,
                                  text);
  if (error) return error;
  pthread_mutex_lock(&node->mutex);
  node->has_pages = true;
  pthread_mutex_unlock(&node->mutex);
  return VFS_OK;
}

/* No lock held. */
static int apply_entry(struct node *node, const struct raft_entry *entry, char *text) {
  struct vfs_log_entry log_entry;
  bool is_known = entry->type == RAFT_ENTRY_NOOP || entry->type == RAFT_ENTRY_CONFIGURATION ||
                  entry->type == RAFT_ENTRY_DATA;
  if (!is_known && (entry->type & RAFT_ENTRY_MUST_UNDERSTAND)) {
    node_say(text, "entry %" PRIu64 " is of type %u, which this version does not know: it needs a newer one",
             entry->index, entry->type);
    return VFS_DAMAGED;
  }
  int error = entry->type == RAFT_ENTRY_CONFIGURATION ? create_pages(node, entry, text) : VFS_OK;
  if (error) return error;
  node_log_entry(entry, &log_entry);
  return vfs_apply(node->database, &log_entry, text);
}

static uint64_t apply_limit(const struct node *node) {
#ifdef BALSA_MUTANT_APPLY_BEFORE_DURABLE
  return node->commit_index;
#endif
  return node->commit_index < node->durable_index ? node->commit_index : node->durable_index;
}

/* mutex held. */
static bool has_to_apply(const struct node *node) {
  return node->epoch == 0 && !node->compensation_owed && !node->frozen && !node->quarantine[0] &&
         node->applied_index < apply_limit(node);
}

/* Applies what was read, up to the first that fails. mutex held, given up meanwhile. */
static int apply_entries(struct node *node, const struct raft_entry *entries, int64_t n, uint64_t limit, char *text) {
  int error = VFS_OK;
  for (int64_t i = 0; i < n && !error && entries[i].index <= limit && !node->stopping; i++) {
    pthread_mutex_unlock(&node->mutex);
    error = apply_entry(node, &entries[i], text);
    pthread_mutex_lock(&node->mutex);
    if (!error) node->applied_index = entries[i].index;
    if (!error) node_decide(node);
  }
  return error;
}

/* mutex held, given up meanwhile. */
static void apply_batch(struct node *node, struct raft_entry *entries, uint64_t *delay) {
  char text[VFS_TEXT_MAX] = "";
  uint64_t first = node->applied_index + 1, limit = apply_limit(node);
  pthread_mutex_unlock(&node->mutex);
  int64_t n = raft_store_read(node->store, first, NODE_APPLY_ENTRIES_MAX, NODE_APPLY_BYTES_MAX, entries);
  int error = n == -ENOMEM ? VFS_NO_MEMORY : n <= 0 ? VFS_IO : VFS_OK;
  if (n == -EILSEQ) atomic_store(&node->is_damaged, true);
  if (error == VFS_IO) {
    raft_store_error(node->store, text);
    if (!text[0]) node_say(text, "%s/log: entry %" PRIu64 " cannot be read", node->folder, first);
  }
  pthread_mutex_lock(&node->mutex);
  if (!error) error = apply_entries(node, entries, n, limit, text);
  for (int64_t i = 0; i < n; i++) raft_payload_unref(entries[i].payload);
  if (error == VFS_OK) {
    node->blocked[0] = 0;
    *delay = NODE_RETRY_NS_MIN;
  } else if (may_pass(error)) {
    set_blocked(node, error, *delay, text);
    back_off(node, &node->apply_condition, error, delay);
  } else if (error != VFS_STOPPED) {
    node_quarantine(node, text);
  }
}

/* ---- A snapshot from the leader ---- */

static bool has_to_install(const struct node *node) {
  return node->install_index != 0 && node->epoch == 0 && !node->frozen && !node->quarantine[0] &&
         !atomic_load(&node->snapshots_end);
}

/* mutex held, given up meanwhile. */
static void install(struct node *node, uint64_t *delay) {
  char text[VFS_TEXT_MAX] = "";
  int error = node_install(node, text);
  if (error == VFS_OK) {
    node->blocked[0] = 0;
    *delay = NODE_RETRY_NS_MIN;
  } else if (may_pass(error) || error == VFS_IO) {
    set_blocked(node, error, *delay, text);
    back_off(node, &node->apply_condition, error, delay);
  } else if (error != VFS_STOPPED) {
    node_quarantine(node, text);
  }
  node_drain(node, NULL, 0);
}

/* ---- Epochs ---- */

/* mutex held. This node leads, and everything before and with its no-op is applied: it may write. */
static bool may_begin_epoch(const struct node *node) {
  struct raft_status status;
  if (node->epoch != 0 || node->role != RAFT_LEADER || node->compensation_owed || node->quarantine[0] || node->frozen ||
      !node->has_pages)
    return false;
  raft_get_status(node->raft, &status);
#ifdef BALSA_MUTANT_TICKET_BEFORE_NOOP
  return status.role == RAFT_LEADER && status.term == node->term;
#endif
  return status.role == RAFT_LEADER && status.term == node->term && status.term_index != 0 &&
         node->commit_index >= status.term_index && node->applied_index >= status.term_index;
}

static void begin_epoch(struct node *node) {
  node->epoch = node->term;
  node->applied_index = node->commit_index;
  node->blocked[0] = 0;
  vfs_committed(node->database, node->commit_index);
  pthread_cond_broadcast(&node->epoch_condition);
  node_decide(node);
}

/* ---- The threads ---- */

static bool has_to_keep(const struct node *node) {
  return node->keep_wanted && os_now(node->os) >= node->keep_at;
}

/* mutex held. */
static bool has_work(const struct node *node) {
  return (node->compensation_owed && !node->quarantine[0]) || node->form_wanted || node->return_wanted ||
         has_to_keep(node) || node->news_code != 0 || has_to_install(node) || may_begin_epoch(node) ||
         has_to_apply(node);
}

void node_wake_apply(struct node *node) {
  if (node->apply_idle && has_work(node)) pthread_cond_signal(&node->apply_condition);
}

/* mutex held, given up meanwhile. What is in the way (a full disk) is in nobody else's: a start would find it out again. */
static void keep(struct node *node) {
  char text[VFS_TEXT_MAX];
  if (node_keep(node, text) != VFS_OK) node->keep_at = os_now(node->os) + NODE_RETRY_NS_MAX;
}

/* mutex held, given up meanwhile. */
static void come_back(struct node *node, uint64_t *delay) {
  char text[VFS_TEXT_MAX] = "";
  int error = node_return(node, text);
  if (error == VFS_OK) return;
  set_blocked(node, error, NODE_RETRY_NS_MAX, text);
  back_off(node, &node->apply_condition, VFS_OK, delay);
}

/* mutex held, given up meanwhile. */
static void tell(struct node *node) {
  char news[VFS_TEXT_MAX];
  int code = node->news_code;
  memcpy(news, node->news, sizeof news);
  node->news_code = 0;
  pthread_mutex_unlock(&node->mutex);
  node_log(code, "node %" PRIu64 ": %s", node->id, news);
  pthread_mutex_lock(&node->mutex);
}

/* mutex held, given up meanwhile. */
static void apply_step(struct node *node, struct raft_entry *entries, uint64_t *delay) {
#ifdef BALSA_MUTANT_REELECTED_KEEPS_SPECULATION
  if (node->role == RAFT_LEADER) node->compensation_owed = false;
#endif
  if (node->compensation_owed && !node->quarantine[0]) {
    compensate(node, delay);
  } else if (node->form_wanted) {
    node->form_wanted = false;
    pthread_mutex_unlock(&node->mutex);
    node_form(node);
    pthread_mutex_lock(&node->mutex);
  } else if (node->return_wanted) {
    come_back(node, delay);
  } else if (has_to_keep(node)) {
    keep(node);
  } else if (node->news_code != 0) {
    tell(node);
  } else if (has_to_install(node)) {
    install(node, delay);
  } else if (may_begin_epoch(node)) {
    begin_epoch(node);
  } else if (has_to_apply(node)) {
    apply_batch(node, entries, delay);
  } else {
    node->apply_idle = true;
    os_condition_wait(node->os, &node->apply_condition, &node->mutex, OS_FOREVER);
    node->apply_idle = false;
  }
}

void node_apply_thread(void *arg) {
  struct node *node = arg;
  uint64_t delay = NODE_RETRY_NS_MIN;
  struct raft_entry *entries = calloc(NODE_APPLY_ENTRIES_MAX, sizeof *entries);
  pthread_mutex_lock(&node->mutex);
  if (!entries) node_quarantine(node, "no memory for the apply thread");
  while (entries && !node->stopping) apply_step(node, entries, &delay);
  pthread_mutex_unlock(&node->mutex);
  free(entries);
}

void node_want_checkpoint(struct node *node) {
  node->checkpoint_wanted = true;
  pthread_cond_signal(&node->checkpoint_condition);
}

/* mutex held, given up meanwhile. true: it was a failure that is news. */
static bool checkpoint(struct node *node, int *error) {
  char text[VFS_TEXT_MAX] = "";
  node->checkpoint_wanted = false;
  pthread_mutex_unlock(&node->mutex);
  *error = vfs_checkpoint(node->database, text);
  pthread_mutex_lock(&node->mutex);
  bool is_failure = *error && *error != VFS_BUSY && *error != VFS_STOPPED;
  bool is_news = is_failure && !node->checkpoint_text[0];
  snprintf(node->checkpoint_text, sizeof node->checkpoint_text, "%s", is_failure ? text : "");
  node->compact_wanted = true; /* even its first pass may have moved the mark */
  node_wake_snapshot(node);
  return is_news;
}

void node_checkpoint_thread(void *arg) {
  struct node *node = arg;
  uint64_t delay = NODE_RETRY_NS_MIN, retry_at = OS_FOREVER;
  int error;
  pthread_mutex_lock(&node->mutex);
  while (!node->stopping) {
    if (!node->checkpoint_wanted && os_now(node->os) < retry_at) {
      os_condition_wait(node->os, &node->checkpoint_condition, &node->mutex, retry_at);
      continue;
    }
    bool is_news = checkpoint(node, &error);
    if (!error) delay = NODE_RETRY_NS_MIN;
    retry_at = error ? os_now(node->os) + delay : OS_FOREVER; /* it stalls writers: not too often */
    if (error) delay = delay * 2 < NODE_CHECKPOINT_RETRY_MAX ? delay * 2 : NODE_CHECKPOINT_RETRY_MAX;
    if (!is_news) continue;
    pthread_mutex_unlock(&node->mutex);
    node_log(SQLITE_IOERR, "node %" PRIu64 ": %s", node->id, node->checkpoint_text);
    pthread_mutex_lock(&node->mutex);
  }
  pthread_mutex_unlock(&node->mutex);
}
