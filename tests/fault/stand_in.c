#include "../unit/stand_in.h"

#include <assert.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define STAND_INS_MAX 16

static struct stand_in *nodes[STAND_INS_MAX];
uint32_t stand_in_wal_limit;
sqlite3_vfs *stand_in_base;

static void check(int error, const char *text) {
  if (error == 0) return;
  fprintf(stderr, "stand-in: error %d: %s\n", error, text);
  abort();
}

/* ---- The node's side of the seam ---- */

static int acquire(void *context, uint64_t deadline, uint64_t *epoch) {
  struct stand_in *node = context;
  pthread_mutex_lock(&node->mutex);
  node->asked++;
  uint64_t now = os_now(os_real());
  if (!node->leads && !node->other_leads && deadline > now) node->waited_ns += deadline - now;
  while (!node->leads && !node->other_leads) {
    if (os_condition_wait(os_real(), &node->changed, &node->mutex, deadline) != 0) break;
  }
  int error = node->leads ? VFS_OK : node->other_leads ? VFS_NOT_HERE : VFS_NOBODY;
  *epoch = node->epoch;
  pthread_mutex_unlock(&node->mutex);
  return error;
}

static void release(void *context, uint64_t epoch) {
  (void)context, (void)epoch;
}

static void append(struct stand_in *node, const struct vfs_log_entry *entry) {
  assert(node->last + 1 < STAND_IN_ENTRIES_MAX);
  struct vfs_log_entry *copy = &node->entries[++node->last];
  free(copy->hold);
  *copy = *entry;
  copy->index = node->last;
  copy->hold = NULL;
  if (entry->set.size > 0) {
    copy->hold = malloc(entry->set.size);
    memcpy(copy->hold, entry->set.bytes, entry->set.size);
    copy->set.bytes = copy->hold;
  }
}

static int propose(void *context, uint64_t epoch, const struct vfs_change_set *set, uint64_t deadline,
                   uint64_t *index) {
  (void)deadline;
  struct stand_in *node = context;
  pthread_mutex_lock(&node->mutex);
  bool ok = node->leads && node->epoch == epoch && !node->refuses;
  if (ok) {
    struct vfs_log_entry entry = {.epoch = epoch, .is_change_set = true, .set = *set};
    append(node, &entry);
    *index = node->last;
    if (node->refuses_after > 0 && --node->refuses_after == 0) node->refuses = true;
    if (!node->holds) {
      node->commit_index = node->last;
      vfs_committed(node->database, node->commit_index);
    }
  }
  pthread_mutex_unlock(&node->mutex);
  return ok ? VFS_OK : VFS_NOT_HERE;
}

static enum vfs_fate wait_for(void *context, struct vfs_token token, uint64_t deadline) {
  struct stand_in *node = context;
  enum vfs_fate fate = VFS_FATE_UNKNOWN;
  pthread_mutex_lock(&node->mutex);
  node->waits_for_commit++;
  pthread_cond_broadcast(&node->changed);
  for (;;) {
    if (token.index <= node->commit_index) {
      fate = node->entries[token.index].epoch == token.epoch ? VFS_FATE_COMMITTED : VFS_FATE_LOST;
      break;
    }
    if (token.epoch != node->epoch || !node->leads) { /* what was not committed at the end of an epoch is dropped */
      fate = VFS_FATE_LOST;
      break;
    }
    if (os_condition_wait(os_real(), &node->changed, &node->mutex, deadline) != 0) break;
  }
  node->waits_for_commit--;
  pthread_mutex_unlock(&node->mutex);
  return fate;
}

static int barrier(void *context, int level, uint64_t deadline) {
  (void)context, (void)level, (void)deadline;
  return VFS_OK;
}

static int wait_durable(void *context, uint64_t index, uint64_t deadline) {
  (void)context, (void)index, (void)deadline;
  return VFS_OK;
}

static int read_log(void *context, uint64_t index, struct vfs_log_entry *entry, char *text) {
  struct stand_in *node = context;
  int error = VFS_OK;
  pthread_mutex_lock(&node->mutex);
  if (index == 0 || index > node->last || index == node->unreadable) {
    snprintf(text, VFS_TEXT_MAX, "no entry %llu", (unsigned long long)index);
    error = VFS_DAMAGED;
  } else {
    *entry = node->entries[index];
  }
  pthread_mutex_unlock(&node->mutex);
  return error;
}

static void release_log(void *context, struct vfs_log_entry *entry) {
  (void)context, (void)entry;
}
static void explain(void *context, char *text) {
  (void)context;
  text[0] = 0;
}

static void want_checkpoint(void *context) {
  struct stand_in *node = context;
  char text[VFS_TEXT_MAX];
  node->checkpoints_wanted++;
  if (node->checkpoints_itself) vfs_checkpoint(node->database, text);
}

static const struct vfs_node_methods methods = {
    .acquire = acquire,
    .release = release,
    .propose = propose,
    .wait = wait_for,
    .barrier = barrier,
    .wait_durable = wait_durable,
    .read_log = read_log,
    .release_log = release_log,
    .explain = explain,
    .want_checkpoint = want_checkpoint,
};

/* ---- The host ---- */

static int attach(const char *filename, int flags, struct vfs_database **database, char *text) {
  (void)flags;
  for (int i = 0; i < STAND_INS_MAX; i++) {
    if (!nodes[i] || strcmp(nodes[i]->path, filename) != 0) continue;
    *database = nodes[i]->database;
    return SQLITE_OK;
  }
  snprintf(text, VFS_TEXT_MAX, "no stand-in for %s", filename);
  return SQLITE_CANTOPEN;
}

static void detach(struct vfs_database *database) {
  (void)database;
}

void stand_in_setup(void) {
  static const struct vfs_host host = {attach, detach};
  sqlite3_initialize();
  check(vfs_register(&host, sqlite3_vfs_find(NULL), false), "vfs_register");
}

/* ---- Its life ---- */

static void open_database(struct stand_in *node, uint32_t page_size, uint32_t auto_vacuum, uint32_t timeout_ms,
                          struct vfs_found *found) {
  char folder[STAND_IN_PATH_MAX + 8], text[VFS_TEXT_MAX] = "";
  snprintf(folder, sizeof folder, "%s-balsa", node->path);
  mkdir(folder, 0755);
  struct vfs_database_options options = {
      .os = os_real(),
      .base = stand_in_base ? stand_in_base : sqlite3_vfs_find("unix"),
      .path = node->path,
      .folder = folder,
      .methods = &methods,
      .node = node,
      .commit_timeout_ms = timeout_ms,
      .wal_limit_frames = stand_in_wal_limit,
  };
  check(vfs_database_open(&options, &node->database, found, text), text);
  if (!found->has_marks) check(vfs_database_create(node->database, page_size, auto_vacuum, text), text);
}

static void start(struct stand_in *node, uint64_t commit_index, uint64_t log_first, const struct vfs_source *snapshot) {
  char text[VFS_TEXT_MAX] = "";
  uint64_t applied = 0;
  struct vfs_start_options options = {
      .commit_index = commit_index, .log_first = log_first, .log_last = node->last, .snapshot = snapshot};
  check(vfs_database_start(node->database, &options, &applied, text), text);
}

void stand_in_open(struct stand_in *node, uint32_t page_size, uint32_t auto_vacuum, uint32_t timeout_ms) {
  struct vfs_found found;
  const char *temporary = getenv("TMPDIR");
  memset(node, 0, sizeof *node);
  pthread_mutex_init(&node->mutex, NULL);
  os_condition_init(&node->changed);
  node->entries = calloc(STAND_IN_ENTRIES_MAX, sizeof *node->entries);
  node->epoch = 1;
  node->leads = true;
  snprintf(node->folder, sizeof node->folder - 16, "%s/balsa-vfs-XXXXXX", temporary ? temporary : "/tmp");
  if (!mkdtemp(node->folder)) abort();
  snprintf(node->path, sizeof node->path, "%.*s/app.db", (int)sizeof node->path - 16, node->folder);
  open_database(node, page_size, auto_vacuum, timeout_ms, &found);
  start(node, 0, 1, NULL);
  for (int i = 0; i < STAND_INS_MAX; i++) {
    if (nodes[i]) continue;
    nodes[i] = node;
    return;
  }
  abort();
}

void stand_in_kill(struct stand_in *node) {
  vfs_database_close(node->database);
  node->database = NULL;
}

void stand_in_copy_next(struct stand_in *node, const struct stand_in *leader) {
  append(node, &leader->entries[node->last + 1]);
}

void stand_in_restart(struct stand_in *node) {
  stand_in_restart_from(node, 1, NULL);
}

int stand_in_fail_restart(struct stand_in *node) {
  struct vfs_found found;
  char text[VFS_TEXT_MAX] = "";
  uint64_t applied = 0;
  open_database(node, 0, 0, 20000, &found);
  struct vfs_start_options options = {.commit_index = node->commit_index, .log_first = 1, .log_last = node->last};
  int error = vfs_database_start(node->database, &options, &applied, text);
  stand_in_kill(node);
  return error;
}

void stand_in_restart_from(struct stand_in *node, uint64_t log_first, const struct vfs_source *snapshot) {
  struct vfs_found found;
  open_database(node, 0, 0, 20000, &found);
  start(node, node->commit_index, log_first, snapshot);
  node->epoch++;
  node->holds = false;
}

static void remove_all(const char *folder) {
  DIR *directory = opendir(folder);
  if (!directory) return;
  struct dirent *entry;
  while ((entry = readdir(directory)) != NULL) {
    char path[2 * STAND_IN_PATH_MAX + 256];
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
    if (unlink(path) != 0) remove_all(path);
  }
  closedir(directory);
  rmdir(folder);
}

void stand_in_close(struct stand_in *node) {
  for (int i = 0; i < STAND_INS_MAX; i++)
    if (nodes[i] == node) nodes[i] = NULL;
  if (node->database) vfs_database_close(node->database);
  for (uint64_t i = 0; i < STAND_IN_ENTRIES_MAX; i++) free(node->entries[i].hold);
  free(node->entries);
  remove_all(node->folder);
}

sqlite3 *stand_in_connect(struct stand_in *node) {
  char uri[STAND_IN_PATH_MAX + 32];
  sqlite3 *db = NULL;
  snprintf(uri, sizeof uri, "file:%s?vfs=balsa", node->path);
  int code = sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL);
  check(code, vfs_open_error());
  sqlite3_extended_result_codes(db, 1);
  return db;
}

/* ---- What becomes of its entries ---- */

void stand_in_hold(struct stand_in *node) {
  pthread_mutex_lock(&node->mutex);
  node->holds = true;
  pthread_mutex_unlock(&node->mutex);
}

void stand_in_commit_all(struct stand_in *node) {
  pthread_mutex_lock(&node->mutex);
  node->holds = false;
  node->commit_index = node->last;
  vfs_committed(node->database, node->commit_index);
  pthread_cond_broadcast(&node->changed);
  pthread_mutex_unlock(&node->mutex);
}

void stand_in_commit_some(struct stand_in *node, unsigned random) {
  pthread_mutex_lock(&node->mutex);
  uint64_t held = node->last - node->commit_index;
  uint64_t through = node->commit_index + (held ? random % (held + 1) : 0);
  /* Never into the middle of a transaction in parts, as a node's commit index may: stand_in_compensate does not go back. */
  while (through > node->commit_index && !(node->entries[through].set.flags & VFS_SET_LAST)) through--;
  node->commit_index = through;
  vfs_committed(node->database, through);
  pthread_cond_broadcast(&node->changed);
  pthread_mutex_unlock(&node->mutex);
}

void stand_in_pause(unsigned milliseconds) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t never;
  uint64_t until = os_now(os_real()) + milliseconds * OS_MS;
  os_condition_init(&never);
  pthread_mutex_lock(&mutex);
  while (os_condition_wait(os_real(), &never, &mutex, until) == 0) continue;
  pthread_mutex_unlock(&mutex);
  pthread_cond_destroy(&never);
}

void stand_in_end_epoch(struct stand_in *node) {
  pthread_mutex_lock(&node->mutex);
  node->leads = false;
  node->other_leads = true;
  vfs_epoch_lost(node->database);
  for (uint64_t i = node->commit_index + 1; i <= node->last; i++) {
    free(node->entries[i].hold);
    memset(&node->entries[i], 0, sizeof node->entries[i]);
  }
  node->last = node->commit_index;
  pthread_cond_broadcast(&node->changed);
  pthread_mutex_unlock(&node->mutex);
}

static bool never_cancelled(void *node) {
  (void)node;
  return false;
}

void stand_in_compensate(struct stand_in *node) {
  uint64_t applied = 0;
  check(vfs_compensate(node->database, node->commit_index, never_cancelled, &applied), "compensate");
}

void stand_in_step_down(struct stand_in *node) {
  stand_in_end_epoch(node);
  stand_in_compensate(node);
}

void stand_in_resign(struct stand_in *node) {
  pthread_mutex_lock(&node->mutex);
  node->leads = node->other_leads = false;
  node->asked = 0;
  node->waited_ns = 0;
  pthread_mutex_unlock(&node->mutex);
}

uint32_t stand_in_asked(struct stand_in *node) {
  pthread_mutex_lock(&node->mutex);
  uint32_t asked = node->asked;
  pthread_mutex_unlock(&node->mutex);
  return asked;
}

uint64_t stand_in_waited_ns(struct stand_in *node) {
  pthread_mutex_lock(&node->mutex);
  uint64_t waited_ns = node->waited_ns;
  pthread_mutex_unlock(&node->mutex);
  return waited_ns;
}

void stand_in_lead(struct stand_in *node) {
  pthread_mutex_lock(&node->mutex);
  node->epoch++;
  node->leads = true;
  node->other_leads = node->holds = false;
  pthread_mutex_unlock(&node->mutex);
}

void stand_in_follow(struct stand_in *node, struct stand_in *leader) {
  char text[VFS_TEXT_MAX] = "";
  node->leads = false;
  node->other_leads = true;
  for (uint64_t index = node->commit_index + 1; index <= leader->commit_index; index++) {
    append(node, &leader->entries[index]);
    node->commit_index = index;
    check(vfs_apply(node->database, &node->entries[index], text), text);
  }
}

void stand_in_await_waiters(struct stand_in *node, uint32_t n) {
  pthread_mutex_lock(&node->mutex);
  while (node->waits_for_commit < n) os_condition_wait(os_real(), &node->changed, &node->mutex, OS_FOREVER);
  pthread_mutex_unlock(&node->mutex);
}
