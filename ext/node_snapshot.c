/*
** Snapshots of this node's database: when one is taken, how, and what it allows to be forgotten.
**
** The snapshot thread writes them, from a view of one committed and locally durable state (vfs/view.c), while
** everybody goes on. One is due when the log since the last one outweighs max(snapshot_threshold, the database), and on most
** nodes of a cluster a little later: the total written stays within twice the log. Others ask for one: balsa_snapshot(), and a follower that needs one.
**
** Order: the file, synced; its name, synced; the older ones go; then the log is compacted (node_compact.c). After a
** failure (a full disk) nothing has changed but the time of the next try; a log that is not compacted only grows.
*/
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "node_internal.h"

/* What an attempt is made of. */
struct taking {
  struct node *node;
  struct vfs_view *view;
  struct snapshot_writer *writer;
  struct vfs_state_info info;
  struct snapshot_meta meta;
  struct snapshot_term *terms;
  uint8_t *configuration;
  uint64_t weight;     /* of the log when the view was opened */
  uint64_t began_at;   /* to write pages */
  uint32_t wal_frames; /* then, of the WAL that was not in the file */
  char *text;
};

void node_wake_snapshot(struct node *node) {
  pthread_cond_signal(&node->snapshot_condition);
}

static int error_of_errno(int error) {
  switch (error) {
  case 0: return VFS_OK;
  case -ENOSPC: return VFS_NO_SPACE;
  case -ENOMEM: return VFS_NO_MEMORY;
  case -EILSEQ: return VFS_DIFFERS;
  case -EINVAL: return VFS_TOO_LARGE;
  case -ECANCELED: return VFS_STOPPED;
  default: return VFS_IO;
  }
}

/* ---- What it says of itself ---- */

/* mutex held. */
static int describe_terms(struct taking *taking) {
  const struct raft_term_start *terms;
  size_t n = raft_get_terms(taking->node->raft, &terms);
  while (n > 0 && terms[n - 1].index > taking->info.index) n--;
  /* The core limits those of what is compacted; with those of the log they may be more. The oldest make room, as there. */
  size_t first = n > SNAPSHOT_TERMS_MAX ? n - SNAPSHOT_TERMS_MAX : 0;
  taking->terms = malloc((n + 1) * sizeof *taking->terms);
  if (!taking->terms) return VFS_NO_MEMORY;
  for (size_t i = first; i < n; i++) {
    taking->terms[taking->meta.n_terms++] = (struct snapshot_term){.term = terms[i].term, .index = terms[i].index};
    taking->meta.term = terms[i].term;
  }
  assert(taking->meta.n_terms > 0); /* what is committed is of some term */
  taking->meta.terms = taking->terms;
  return VFS_OK;
}

/* mutex held. */
static int describe_configuration(struct taking *taking) {
  uint64_t index = 0;
  const struct raft_configuration *configuration = raft_get_configuration_at(taking->node->raft, taking->info.index,
                                                                             &index);
  if (!configuration) {
    node_say(taking->text,
             "the members have changed often since the last write: a snapshot can be taken after the next");
    return VFS_BUSY;
  }
  size_t size = raft_configuration_size(configuration);
  taking->configuration = malloc(size);
  if (!taking->configuration) return VFS_NO_MEMORY;
  raft_configuration_encode(configuration, taking->configuration);
  taking->meta.configuration = taking->configuration;
  taking->meta.configuration_size = (uint32_t)size;
  taking->meta.configuration_index = index;
  return VFS_OK;
}

/* mutex held. */
static int describe(struct taking *taking) {
  struct node *node = taking->node;
  const struct vfs_state_info *info = &taking->info;
  taking->weight = node->log_weight;
  taking->meta = (struct snapshot_meta){
      .index = info->index,
      .set_index = info->index,
      .checksum = info->checksum,
      .page_size = info->page_size,
      .pages = info->pages,
  };
  int error = describe_terms(taking);
  return error ? error : describe_configuration(taking);
}

/* ---- Writing ---- */

static int fail_writer(struct taking *taking, int error) {
  if (error) node_say(taking->text, "%s", snapshot_writer_error(taking->writer));
  return error_of_errno(error);
}

/* On the threads of the writer. */
static int read_pages(void *ctx, uint32_t first, uint32_t n, uint8_t *pages, char *text) {
  const struct taking *taking = ctx;
  int code = vfs_view_read(taking->view, first, n, pages);
  if (code == SQLITE_OK) return 0;
  if (code == SQLITE_IOERR_DATA) {
    struct vfs_status status;
    vfs_get_status(taking->node->database, &status);
    snprintf(text, SNAPSHOT_TEXT_MAX, "%s", status.notice);
    return -EILSEQ;
  }
  snprintf(text, SNAPSHOT_TEXT_MAX, "%s: pages %u to %u cannot be read (SQLite error %d)", taking->node->path, first,
           first + n - 1, code);
  return code == SQLITE_NOMEM ? -ENOMEM : -EIO;
}

/*
** While the view is open the WAL only grows, and when it has the database's size writers are held up (vfs/checkpoint.c). So as
** far as the snapshot is behind what it costs, or behind a speed that nobody feels much, it does not yield to the writers.
*/
static bool is_late(const struct taking *taking, uint32_t pages) {
  struct vfs_status database;
  uint64_t size = (uint64_t)taking->info.pages * taking->info.page_size;
  uint64_t written = (uint64_t)pages * taking->info.page_size;
  uint64_t allowed = (size / 4 < NODE_SNAPSHOT_WAL_MAX ? size / 4 : NODE_SNAPSHOT_WAL_MAX) + written / 2;
  uint64_t took = os_now(taking->node->os) - taking->began_at;
  vfs_get_status(taking->node->database, &database);
  uint64_t grown = database.wal_frames > taking->wal_frames ? database.wal_frames - taking->wal_frames : 0;
  bool is_long = grown * taking->info.page_size > allowed;
  return is_long || took > NODE_SNAPSHOT_QUIET_MIN + written * OS_SECOND / NODE_SNAPSHOT_SPEED;
}

static enum snapshot_pace pace(void *ctx, uint32_t pages) {
  const struct taking *taking = ctx;
  struct node *node = taking->node;
  unsigned permille = (unsigned)((uint64_t)pages * 1000 / taking->info.pages);
  if (atomic_load_explicit(&node->snapshots_end, memory_order_relaxed)) return SNAPSHOT_STOP;
  if (atomic_exchange_explicit(&node->snapshot_permille, permille, memory_order_relaxed) != permille)
    atomic_fetch_add(&node->snapshot_steps, 1);
  return is_late(taking, pages) ? SNAPSHOT_HURRY : SNAPSHOT_QUIET;
}

static int write_file(struct taking *taking) {
  struct node *node = taking->node;
  struct vfs_status database;
  const struct snapshot_input input = {.read = read_pages, .pace = pace, .ctx = taking};
  vfs_get_status(node->database, &database);
  taking->wal_frames = database.wal_frames;
  taking->began_at = os_now(node->os);
  int error = error_of_errno(
      snapshot_writer_open(node->os, node->snapshots_folder, &taking->meta, &taking->writer, taking->text));
  if (!error) error = fail_writer(taking, snapshot_writer_write(taking->writer, &input));
  /* The view shows what is committed and durable here, so it may get its name. */
  if (!error) error = fail_writer(taking, snapshot_writer_publish(taking->writer));
  return error;
}

void node_snapshot_published(struct node *node, uint64_t index, uint64_t weight) {
  if (index < node->snapshot_index) return;
  node->snapshot_index = index;
  node->snapshot_weight = weight;
  node->snapshot_damaged = false;
  node->compact_wanted = true;
  node_wake_snapshot(node);
  node_want_checkpoint(node); /* the log goes no further than the checkpoint */
}

static void remove_older(struct node *node, uint64_t index) {
  int error = snapshot_remove_older(node->os, node->snapshots_folder, index);
  if (error)
    node_log(SQLITE_IOERR, "node %" PRIu64 ": snapshots before %" PRIu64 " in %s cannot be removed: %s", node->id,
             index, node->snapshots_folder, strerror(-error));
}

/* mutex held, given up meanwhile. The view is open. */
static int take_from_view(struct taking *taking) {
  struct node *node = taking->node;
  if (taking->info.index == 0) {
    node_say(taking->text, "%s has not been written to yet: there is nothing to take a snapshot of", node->path);
    return VFS_BUSY;
  }
  /* That is this state, or the leader has sent a later one. */
  if (taking->info.index <= node->snapshot_index && !node->snapshot_damaged) return VFS_OK;
  int error = describe(taking);
  if (error) return error;
  atomic_store(&node->snapshot_permille, 0);
  atomic_fetch_add(&node->snapshot_steps, 1);
  node->snapshot_writing = true;
  pthread_mutex_unlock(&node->mutex);
  error = write_file(taking);
  vfs_view_close(taking->view);
  taking->view = NULL;
  if (!error) remove_older(node, taking->info.index);
  pthread_mutex_lock(&node->mutex);
  node->snapshot_writing = false;
  if (!error) node_snapshot_published(node, taking->info.index, taking->weight);
  return error;
}

static void end_taking(struct taking *taking) {
  snapshot_writer_close(taking->writer);
  vfs_view_close(taking->view);
  free(taking->terms);
  free(taking->configuration);
}

/* No lock held. Whoever is in the way may be gone in a moment; an answer that came at once must not be asked for at once. */
static void pause_view(struct node *node) {
  uint64_t until = os_now(node->os) + NODE_BUSY_RETRY_NS;
  pthread_mutex_lock(&node->mutex);
  while (!atomic_load(&node->snapshots_end) && os_now(node->os) < until)
    os_condition_wait(node->os, &node->snapshot_condition, &node->mutex, until);
  pthread_mutex_unlock(&node->mutex);
}

/* No lock held. Waits for its turn in slices: a stop does not wait for it. */
static int open_view(struct taking *taking) {
  struct node *node = taking->node;
  uint64_t now = os_now(node->os), deadline = now + NODE_VIEW_WAIT;
  int error = VFS_BUSY;
  while (error == VFS_BUSY && now < deadline && !atomic_load(&node->snapshots_end)) {
    taking->text[0] = 0;
    error = vfs_view_open(node->database, now + NODE_VIEW_SLICE, &taking->view, &taking->info, taking->text);
    if (error == VFS_BUSY && !taking->text[0]) break; /* the database is not open yet, or serves nobody any more */
    if (error == VFS_BUSY) pause_view(node);
    now = os_now(node->os);
  }
  return error;
}

/* mutex held, given up meanwhile. Takes one of what is committed now, unless that one exists. */
static int take(struct node *node, char *text) {
  struct taking taking = {.node = node, .text = text};
  pthread_mutex_unlock(&node->mutex);
  int error = open_view(&taking);
  pthread_mutex_lock(&node->mutex);
  if (!error) error = take_from_view(&taking);
  pthread_mutex_unlock(&node->mutex);
  end_taking(&taking);
  if (error && !text[0])
    node_say(text, "%s: %s", node->path,
             error == VFS_NO_MEMORY ? "no memory for a snapshot" : "no snapshot can be taken now, see balsa_status");
  pthread_mutex_lock(&node->mutex);
  return error;
}

/* Behind all that the log holds. */
static int describe_beginning(struct taking *taking, uint64_t index, uint64_t term,
                              const struct raft_configuration *configuration) {
  const struct vfs_state_info *info = &taking->info;
  const struct raft_term_start *terms;
  size_t n = raft_get_terms(taking->node->raft, &terms), size = raft_configuration_size(configuration);
  size_t first = n >= SNAPSHOT_TERMS_MAX ? n + 1 - SNAPSHOT_TERMS_MAX : 0;
  taking->meta = (struct snapshot_meta){
      .index = index,
      .term = term,
      .set_index = index, /* what comes next goes on from here, as in every snapshot */
      .checksum = info->checksum,
      .page_size = info->page_size,
      .pages = info->pages,
      .configuration_index = index,
      .configuration_size = (uint32_t)size,
  };
  taking->terms = malloc((n + 1) * sizeof *taking->terms);
  taking->configuration = malloc(size);
  if (!taking->terms || !taking->configuration) return VFS_NO_MEMORY;
  for (size_t i = first; i < n; i++)
    taking->terms[taking->meta.n_terms++] = (struct snapshot_term){.term = terms[i].term, .index = terms[i].index};
  taking->terms[taking->meta.n_terms++] = (struct snapshot_term){.term = term, .index = index};
  raft_configuration_encode(configuration, taking->configuration);
  taking->meta.terms = taking->terms;
  taking->meta.configuration = taking->configuration;
  return VFS_OK;
}

int node_snapshot_begin_anew(struct node *node, uint64_t index, uint64_t term,
                             const struct raft_configuration *configuration, char *text) {
  struct taking taking = {.node = node, .text = text};
  int error = open_view(&taking);
  if (!error) error = describe_beginning(&taking, index, term, configuration);
  if (!error) error = write_file(&taking);
  end_taking(&taking);
  if (error && !text[0]) node_say(text, "%s: no snapshot of it can be taken", node->path);
  return error;
}

/* ---- When ---- */

/*
** mutex held. The nodes of a cluster have the same log, and would all write a snapshot at the same moment: the further back a
** node stands among the members, the later it does, by a quarter at most.
*/
static uint64_t put_off(const struct node *node, uint64_t threshold) {
  const struct raft_member *self = raft_configuration_find(&node->configuration, node->id);
  uint64_t place = self ? (uint64_t)(self - node->configuration.members) : 0;
  return self ? threshold / 4 * place / node->configuration.n_members : 0;
}

/* mutex held. Is the log since the last one heavy enough? Notes when to look again. */
static bool is_heavy(struct node *node) {
  struct vfs_status database;
  if (node->log_weight < node->snapshot_look_at) return false;
  vfs_get_status(node->database, &database);
  uint64_t size = (uint64_t)database.pages * database.page_size;
  uint64_t threshold = node->options.snapshot_threshold > size ? node->options.snapshot_threshold : size;
  node->snapshot_look_at = node->snapshot_weight + threshold + put_off(node, threshold);
  return node->log_weight >= node->snapshot_look_at;
}

/* mutex held. Not at every entry: the parts of a large transaction are heavy, and no new state. */
static void look_later(struct node *node) {
  uint64_t threshold = node->options.snapshot_threshold;
  uint64_t due = node->snapshot_weight + threshold, soon = node->log_weight + threshold / 4 + 1;
  node->snapshot_look_at = due > soon ? due : soon;
}

/* mutex held. */
static bool is_asked(const struct node *node) {
  return node->snapshots_asked > node->snapshots_answered;
}

static bool is_able(const struct node *node) {
  return node->has_pages && !node->frozen && !node->quarantine[0];
}

/* mutex held, given up meanwhile. */
static void take_and_tell(struct node *node, uint64_t *delay) {
  char text[VFS_TEXT_MAX] = "";
  uint64_t asked = node->snapshots_asked; /* whoever asks from now on gets the next one */
  int error = take(node, text);
  node->snapshots_answered = asked;
  node->snapshot_error = error;
  snprintf(node->snapshot_text, sizeof node->snapshot_text, "%s", text);
  if (error == VFS_OK) {
    *delay = NODE_SNAPSHOT_RETRY_MIN;
    node->snapshot_retry_at = 0;
    node->snapshot_needed = false;
    look_later(node);
    node_ask_transfers(node);
  } else {
    node->snapshot_retry_at = os_now(node->os) + *delay;
    *delay = *delay * 2 < NODE_SNAPSHOT_RETRY_MAX ? *delay * 2 : NODE_SNAPSHOT_RETRY_MAX;
  }
  bool is_news = error && error != VFS_BUSY && error != VFS_STOPPED;
  pthread_cond_broadcast(&node->snapshot_done);
  /* The pages of a committed state are not what the log says: nothing may be built on them. */
  if (error == VFS_DIFFERS) {
    node_quarantine(node, text);
    return;
  }
  if (!is_news) return;
  pthread_mutex_unlock(&node->mutex);
  node_log(SQLITE_IOERR, "node %" PRIu64 ": no snapshot: %s", node->id, text);
  pthread_mutex_lock(&node->mutex);
}

void node_snapshot_thread(void *arg) {
  struct node *node = arg;
  uint64_t delay = NODE_SNAPSHOT_RETRY_MIN;
  pthread_mutex_lock(&node->mutex);
  while (!node->snapshots_end) {
    bool may_retry = os_now(node->os) >= node->snapshot_retry_at;
    bool is_due = is_able(node) && (is_asked(node) || (may_retry && (node->snapshot_needed || is_heavy(node))));
    if (node->compact_wanted &&
        !node->frozen) { /* first: it is short, and somebody may always be asking for a snapshot */
      node->compact_wanted = false;
      node_compact(node);
    } else if (is_due) {
      take_and_tell(node, &delay);
    } else {
      os_condition_wait(node->os, &node->snapshot_condition, &node->mutex,
                        may_retry ? OS_FOREVER : node->snapshot_retry_at);
    }
  }
  pthread_cond_broadcast(&node->snapshot_done);
  pthread_mutex_unlock(&node->mutex);
}

/* ---- For others ---- */

/* mutex held. How long one is waited for that does not get on: a disk may take its time for what it was given. */
static uint64_t patience(const struct node *node) {
  uint64_t limit = node->options.commit_timeout_ms * OS_MS;
  return node->snapshot_writing && limit < NODE_SNAPSHOT_STALL_MAX ? NODE_SNAPSHOT_STALL_MAX : limit;
}

/* mutex held, given up while it waits: as long as it gets on, and no longer than that without. */
static int wait_for_answer(struct node *node, uint64_t number) {
  unsigned seen = atomic_load(&node->snapshot_steps);
  uint64_t since = os_now(node->os);
  while (node->snapshots_answered < number && !node->snapshots_end) {
    uint64_t now = os_now(node->os);
    unsigned steps = atomic_load(&node->snapshot_steps);
    if (steps != seen) since = now;
    seen = steps;
    if (now - since >= patience(node)) return VFS_BUSY;
    os_condition_wait(node->os, &node->snapshot_done, &node->mutex, now + NODE_SNAPSHOT_LOOK);
  }
  return node->snapshots_answered < number ? VFS_STOPPED : VFS_OK;
}

int node_take_snapshot(struct node *node, uint64_t *index, char *text) {
  if (node_is_forked()) return VFS_STOPPED;
  text[0] = 0;
  pthread_mutex_lock(&node->mutex);
  uint64_t number = ++node->snapshots_asked;
  node_wake_snapshot(node);
  int error = wait_for_answer(node, number);
  if (error == VFS_BUSY)
    node_say(text, "no snapshot: for %" PRIu64 " ms nothing has become of it%s%.600s", patience(node) / OS_MS,
             node->snapshot_text[0] ? ": " : "", node->snapshot_text);
  if (error == VFS_STOPPED) node_say(text, "the node has stopped");
  if (!error) {
    error = node->snapshot_error;
    node_say(text, "%s", node->snapshot_text);
  }
  *index = node->snapshot_index;
  pthread_mutex_unlock(&node->mutex);
  return error;
}

void node_need_snapshot(struct node *node) {
  node->snapshot_needed = true;
  node_wake_snapshot(node);
}

void node_end_snapshots(struct node *node) {
  pthread_mutex_lock(&node->mutex);
  atomic_store(&node->snapshots_end, true);
  node_wake_snapshot(node);
  struct os_thread *thread = node->snapshot_thread;
  node->snapshot_thread = NULL;
  pthread_mutex_unlock(&node->mutex);
  if (thread) os_thread_join(thread);
}

void node_describe_snapshot(struct node *node, char text[VFS_TEXT_MAX]) {
  int length = snprintf(text, VFS_TEXT_MAX, node->snapshot_index ? "%" PRIu64 : "none", node->snapshot_index);
  size_t room = VFS_TEXT_MAX - (size_t)length;
  if (node->snapshot_writing) {
    unsigned permille = atomic_load(&node->snapshot_permille);
    snprintf(text + length, room, "; writing %u %%", permille / 10);
  } else if (node->install_index) {
    snprintf(text + length, room, "; installing %" PRIu64, node->install_index);
  } else if (node->receiving_text[0]) {
    snprintf(text + length, room, "; receiving fails: %.600s", node->receiving_text);
  } else if (node->receiving_index) {
    snprintf(text + length, room, "; receiving %" PRIu64 ", %u %%", node->receiving_index, node->receiving_percent);
  } else if (node->snapshot_error && node->snapshot_error != VFS_BUSY && node->snapshot_text[0]) {
    snprintf(text + length, room, "; failed: %.600s", node->snapshot_text);
  }
}
