/*
** A snapshot becomes the database: at start, and when the leader has sent one (installation).
**
** What the folder <database>-balsa/snapshots/ holds is committed, always: snapshots of this node's own, and those that a
** leader sent. So at start the newest one counts, and what must be true then is little: where the log begins above
** entry 1, a snapshot reaches its beginning. It knows what the log has forgotten: the configuration, and where terms start.
**
** Installation. Each is durable before the next:
**
**   1. the file under its name (snapshot/receiver.c); the log and the database are what they were
**   2. the database shows it (vfs_install): only the WAL has changed, which no start trusts
**   3. the log begins anew behind it (raft_install, raft_store_reset)
**   4. a checkpoint brings it into the database file: it waits until the log is durable that far, so never before 3
**
** A crash after 1 or 2 leaves a snapshot that the log does not hold: the start ends the installation (3), after it has read
** the whole file, and then makes the database file from it. A crash after 3 leaves "the log begins behind what is
** checkpointed": the start makes the database file from the snapshot (vfs/redo.c). After 4 nothing is left to do. Between 1
** and 3 the log may also have got there by itself, from another leader: then it holds the snapshot's last entry and stays.
*/
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "node_internal.h"

#define WAY_OUT                                                                                                        \
  "Where the log begins behind it, restore it from a copy, or move the node's folder away and let the node join anew"

static int error_of_errno(int error) {
  switch (error) {
  case 0: return VFS_OK;
  case -ENOSPC: return VFS_NO_SPACE;
  case -ENOMEM: return VFS_NO_MEMORY;
  case -EILSEQ: return VFS_DAMAGED;
  default: return VFS_IO;
  }
}

/* ---- Reading one ---- */

/* Pages for vfs/. After the last one the reader has verified the whole. */
static int next_page(void *ctx, void *page, char *text) {
  struct node_snapshot *snapshot = ctx;
  if (atomic_load(&snapshot->node->snapshots_end)) {
    node_say(text, "the node stops");
    return VFS_STOPPED;
  }
  int result = snapshot_reader_next(snapshot->reader, page);
  if (result == 1 && ++snapshot->page == snapshot->meta.pages) {
    result = snapshot_reader_next(snapshot->reader, page);
    if (result == 0) return VFS_OK;
  }
  if (result == 1) return VFS_OK;
  snapshot->is_damaged = result == -EILSEQ;
  node_say(text, "%s", snapshot_reader_error(snapshot->reader));
  return result < 0 ? error_of_errno(result) : VFS_DAMAGED;
}

/* What ext/ put into the head. */
static int understand(struct node_snapshot *snapshot, char *text) {
  const struct snapshot_meta *meta = &snapshot->meta;
  snapshot->terms = malloc((meta->n_terms + (size_t)1) * sizeof *snapshot->terms);
  if (!snapshot->terms) return VFS_NO_MEMORY;
  for (uint32_t i = 0; i < meta->n_terms; i++)
    snapshot->terms[i] = (struct raft_term_start){.term = meta->terms[i].term, .index = meta->terms[i].index};
  if (raft_configuration_decode(meta->configuration, meta->configuration_size, &snapshot->configuration) == RAFT_OK)
    return VFS_OK;
  node_say(text, "%s: its configuration is none that this version understands: use the one that wrote it",
           snapshot->path);
  return VFS_IO;
}

int node_snapshot_open(struct node *node, const char *path, struct node_snapshot *snapshot, char *text) {
  *snapshot = (struct node_snapshot){.node = node};
  text[0] = 0;
  snprintf(snapshot->path, sizeof snapshot->path, "%s", path);
  int error = error_of_errno(snapshot_reader_begin(node->os, path, WAY_OUT, &snapshot->reader, &snapshot->meta, text));
  if (!error) error = understand(snapshot, text);
  if (error) {
    if (!text[0]) node_say(text, "%s: no memory to read it", path);
    node_snapshot_close(snapshot);
    return error;
  }
  snapshot->source = (struct vfs_source){
      .info =
          {
              .index = snapshot->meta.set_index,
              .checksum = snapshot->meta.checksum,
              .page_size = snapshot->meta.page_size,
              .pages = snapshot->meta.pages,
          },
      .next = next_page,
      .ctx = snapshot,
  };
  return VFS_OK;
}

void node_snapshot_close(struct node_snapshot *snapshot) {
  snapshot_reader_close(snapshot->reader);
  free(snapshot->terms);
  snapshot->reader = NULL;
  snapshot->terms = NULL;
}

int node_snapshot_verify(struct node *node, const char *path, char *text) {
  struct node_snapshot snapshot;
  int error = node_snapshot_open(node, path, &snapshot, text);
  if (error) return error;
  void *page = malloc(snapshot.meta.page_size);
  if (!page) error = VFS_NO_MEMORY;
  if (snapshot_reader_is_mended(snapshot.reader)) {
    node_say(text, "%s: its head is damaged", path);
    error = VFS_DAMAGED;
  }
  for (uint32_t i = 0; i < snapshot.meta.pages && !error; i++) error = next_page(&snapshot, page, text);
  free(page);
  node_snapshot_close(&snapshot);
  return error;
}

/* ---- Damage ---- */

/* A whole one before the damaged `path`, from which the log goes on. true: `older` is its path. */
static bool find_older(struct node *node, uint64_t index, uint64_t log_first, char older[OS_PATH_MAX]) {
  char why[VFS_TEXT_MAX] = "";
  uint64_t found = 0;
  return snapshot_find_before(node->os, node->snapshots_folder, index, older, &found) == 0 && found != 0 &&
         found + 1 >= log_first && node_snapshot_verify(node, older, why) == VFS_OK;
}

/*
** The file at `path` is damaged, as `text` says. It goes if an older one, which is opened then, or the log alone
** suffices; otherwise the sentence stays. SQLite error code.
*/
static int do_without(struct node *node, const char *damaged, uint64_t index, uint64_t log_first,
                      struct node_snapshot *snapshot, char *text) {
  char older[OS_PATH_MAX], why[VFS_TEXT_MAX], path[OS_PATH_MAX];
  snprintf(path, sizeof path, "%s", damaged); /* may be the snapshot's own */
  node_snapshot_close(snapshot);
  bool has_older = find_older(node, index, log_first, older);
  if (!has_older && log_first > 1) return SQLITE_CORRUPT;
  node_say(why, "%s", text);
  int error = os_remove(node->os, path);
  if (!error) error = os_sync_directory(node->os, node->snapshots_folder);
  if (error) {
    node_say(text, "%.500s: it cannot be removed: %s", why, strerror(-error));
    return SQLITE_CANTOPEN;
  }
  node_log(SQLITE_WARNING, "node %" PRIu64 " has removed a damaged snapshot, %s suffices: %s", node->id,
           has_older ? "an older one" : "the log", why);
  return has_older ? node_sqlite_error(node_snapshot_open(node, older, snapshot, text)) : SQLITE_OK;
}

/* ---- Start ---- */

static int make_folder(struct node *node, char *text) {
  snprintf(node->snapshots_folder, sizeof node->snapshots_folder, "%.*s/snapshots", OS_PATH_MAX - 16, node->folder);
  int error = os_make_directory(node->os, node->snapshots_folder);
  if (!error) error = os_sync_directory(node->os, node->folder);
  if (!error) return SQLITE_OK;
  node_say(text, "%s cannot be made: %s", node->snapshots_folder, strerror(-error));
  return error == -ENOSPC ? SQLITE_FULL : SQLITE_CANTOPEN;
}

/* The newest one that can be read; none: no reader. */
static int find_newest(struct node *node, uint64_t log_first, struct node_snapshot *snapshot, char *text) {
  char path[OS_PATH_MAX];
  uint64_t index = 0;
  int error = snapshot_find(node->os, node->snapshots_folder, path, &index);
  if (error) {
    node_say(text, "%s cannot be looked through: %s", node->snapshots_folder, strerror(-error));
    return SQLITE_CANTOPEN;
  }
  if (index == 0) return SQLITE_OK;
  error = node_snapshot_open(node, path, snapshot, text);
  if (error == VFS_DAMAGED) return do_without(node, path, index, log_first, snapshot, text);
  return node_sqlite_error(error);
}

static uint64_t term_in_log(const struct raft_start *start, uint64_t index) {
  if (index + 1 == start->first_index) return start->prev_term;
  if (index < start->first_index || index > start->last_index) return 0;
  return start->entries[index - start->first_index].term;
}

/* The log must go on where the snapshot ends, and both must be of one cluster. */
static int check(struct node *node, const struct raft_start *start, const struct node_snapshot *snapshot, char *text) {
  const struct snapshot_meta *meta = &snapshot->meta;
  if (!snapshot->reader || meta->index + 1 < start->first_index) {
    node_say(text, "%s/log begins at entry %" PRIu64 ", but no snapshot in %s/snapshots reaches so far", node->folder,
             start->first_index, node->folder);
    return SQLITE_CORRUPT;
  }
  if (meta->index + 1 == start->first_index && start->prev_term != meta->term) {
    node_say(text,
             "%s: it ends in term %" PRIu64 ", but %s/log goes on behind term %" PRIu64
             ": they are not of one node. Restore both from the same copy",
             snapshot->path, meta->term, node->folder, start->prev_term);
    return SQLITE_CANTOPEN;
  }
  const struct raft_configuration *latest = node_start_latest(start);
  /* The cluster may be another: that is how one begins that was recovered (node_recover.c). */
  if (latest && !node_uuid_equal(&latest->database, &snapshot->configuration.database)) {
    node_say(text, "%s is of another database than %s/log: restore both from the same copy", snapshot->path,
             node->folder);
    return SQLITE_CANTOPEN;
  }
  return SQLITE_OK;
}

static int raise_term(struct node *node, uint64_t term, uint64_t voted_for, char *text) {
  if (node->hard_state.term >= term) return SQLITE_OK;
  node->hard_state.term = term;
  node->hard_state.voted_for = voted_for;
  int error = raft_hard_state_write(node->hard_state_file, &node->hard_state);
  if (!error) return SQLITE_OK;
  node_say(text, "%s/vote cannot be written: %s", node->folder, strerror(-error));
  return error == -ENOSPC ? SQLITE_FULL : SQLITE_CANTOPEN;
}

/*
** Entries of a new term are durable before the term is (raft.h): a crash in between leaves a log that is ahead of it. Nothing
** was said in that term before it was durable. Still it is entered as if this node had voted, for itself: whatever became of
** the file, nobody gets a second vote in it.
*/
static int complete_term(struct node *node, const struct raft_start *start, char *text) {
  uint64_t last = start->last_index;
  bool is_empty = last < start->first_index;
  return raise_term(node, is_empty ? start->prev_term : start->entries[last - start->first_index].term, node->id, text);
}

/* Step 3 of an installation, which a crash has kept from it. */
static int end_installation(struct node *node, struct raft_start *start, struct node_snapshot *snapshot, char *text) {
  const struct snapshot_meta *meta = &snapshot->meta;
  uint64_t persist = 0;
  int error = node_snapshot_verify(node, snapshot->path, text);
  if (error == VFS_DAMAGED) return do_without(node, snapshot->path, meta->index, start->first_index, snapshot, text);
  if (error) return node_sqlite_error(error);
  int code = raise_term(node, meta->term, 0, text);
  if (code != SQLITE_OK) return code;
  error = raft_store_reset(node->store, meta->index, meta->term, 0);
  if (!error) error = raft_store_flush(node->store, &persist);
  if (error) {
    raft_store_error(node->store, text);
    if (!text[0]) node_say(text, "%s/log: %s", node->folder, strerror(-error));
    return error == -ENOSPC ? SQLITE_FULL : SQLITE_CANTOPEN;
  }
  free((void *)(uintptr_t)start->entries);
  start->entries = NULL;
  start->first_index = meta->index + 1;
  start->last_index = meta->index;
  start->prev_term = meta->term;
  node_start_forget_configurations(start);
  node->last_index = node->durable_index = meta->index;
  return SQLITE_OK;
}

/* What the log does not know any more. */
static int complete(struct raft_start *start, struct raft_configuration *configuration,
                    const struct node_snapshot *snapshot) {
  int code = node_start_configuration(start, snapshot->meta.configuration_index, &snapshot->configuration);
  if (code != SQLITE_OK) return code;
  *configuration = *node_start_latest(start);
  start->terms = snapshot->terms;
  while (start->n_terms < snapshot->meta.n_terms && snapshot->terms[start->n_terms].index < start->first_index)
    start->n_terms++;
  return SQLITE_OK;
}

int node_restore(struct node *node, struct raft_start *start, struct raft_configuration *configuration,
                 struct node_snapshot *snapshot, char *text) {
  int code = make_folder(node, text);
  if (code == SQLITE_OK) code = complete_term(node, start, text);
  if (code == SQLITE_OK) code = find_newest(node, start->first_index, snapshot, text);
  if (code != SQLITE_OK) return code;
  if (snapshot->reader && !node->is_restart) {
    node_say(text, "%s is there, but vote and log are gone from %s", snapshot->path, node->folder);
    return SQLITE_CORRUPT;
  }
  if (!snapshot->reader && start->first_index == 1) return SQLITE_OK;
  code = check(node, start, snapshot, text);
  bool is_held = code == SQLITE_OK && term_in_log(start, snapshot->meta.index) == snapshot->meta.term;
  if (code == SQLITE_OK && !is_held) code = end_installation(node, start, snapshot, text);
  if (code != SQLITE_OK || !snapshot->reader) return code;
  node->snapshot_index = snapshot->meta.index;
  if (snapshot_reader_is_mended(snapshot->reader)) {
    node->snapshot_damaged = node->snapshot_needed = true;
    node_log(SQLITE_WARNING, "node %" PRIu64 ": the head of %s is damaged; its copy counts, and another one is taken",
             node->id, snapshot->path);
  }
  code = complete(start, configuration, snapshot);
  if (code != SQLITE_OK) node_say(text, "%s: no memory for the node", node->path);
  return code;
}

int node_start_database(struct node *node, uint64_t commit_index, uint64_t log_first, struct node_snapshot *snapshot,
                        char *text) {
  struct vfs_status status;
  uint64_t applied = 0;
  const struct vfs_source *source = snapshot && snapshot->reader ? &snapshot->source : NULL;
  /* Before a cluster exists there is nothing to rebuild; page 1 comes with it. */
  uint32_t page_size = commit_index == 0 && node->configuration.n_members == 0 ? 0 : node->facts.page_size;
  text[0] = 0;
  struct vfs_start_options options = {
      .commit_index = commit_index,
      .log_first = log_first,
      .log_last = node->last_index > commit_index ? node->last_index : commit_index,
      .snapshot = source,
      .page_size = page_size,
      .auto_vacuum = node->facts.auto_vacuum,
  };
  int error = vfs_database_start(node->database, &options, &applied, text);
  node_forget_ahead(node);
  if (error && source && snapshot->is_damaged) {
    int code = do_without(node, snapshot->path, snapshot->meta.index, log_first, snapshot, text);
    node->snapshot_index = code == SQLITE_OK && snapshot->reader ? snapshot->meta.index : 0;
    return code == SQLITE_OK ? node_start_database(node, commit_index, log_first, snapshot, text) : code;
  }
  if (error) {
    if (!text[0]) node_say(text, "%s cannot be brought to the state at entry %" PRIu64, node->path, commit_index);
    return node_sqlite_error(error);
  }
  vfs_get_status(node->database, &status);
  pthread_mutex_lock(&node->mutex);
  node->applied_index = applied;
  node->has_pages = status.pages > 0;
  pthread_mutex_unlock(&node->mutex);
  return SQLITE_OK;
}

/* ---- Installation ---- */

/* No lock held. Step 2: the database shows it. */
static int install_pages(struct node *node, struct node_snapshot *snapshot, bool has_pages, char *text) {
  const struct raft_settings *settings = &snapshot->configuration.settings;
  if (!has_pages) {
    int error = vfs_database_create(node->database, settings->page_size, settings->auto_vacuum, text);
    if (error) return error;
    pthread_mutex_lock(&node->mutex);
    node->has_pages = true;
    pthread_mutex_unlock(&node->mutex);
  }
  struct vfs_status status;
  vfs_get_status(node->database, &status);
  if (status.page_size == snapshot->meta.page_size) return vfs_install(node->database, &snapshot->source, text);
  node_say(text, "%s has pages of %u bytes, %s of %u", snapshot->path, snapshot->meta.page_size, node->path,
           status.page_size);
  return VFS_DAMAGED;
}

/* mutex held. Step 3: the log begins anew behind it. */
static int install_log(struct node *node, const struct node_snapshot *snapshot, char *text) {
  const struct snapshot_meta *meta = &snapshot->meta;
  struct raft_install install = {
      .index = meta->index,
      .term = meta->term,
      .configuration = &snapshot->configuration,
      .configuration_index = meta->configuration_index,
      .terms = snapshot->terms,
      .n_terms = meta->n_terms,
  };
  int error = raft_install(node->raft, os_now(node->os), &install);
  if (error == RAFT_NO_MEMORY) return VFS_NO_MEMORY;
  if (error) {
    node_say(text, "%s, sent by the leader, does not go with what this node knows to be committed: %s", snapshot->path,
             raft_error_text(error));
    return VFS_DAMAGED;
  }
  node->install_index = 0;
  node_snapshot_published(node, meta->index, node->log_weight);
  node_drain(node, NULL, 0);
  return VFS_OK;
}

/* mutex held, given up meanwhile. It is damaged after all: it goes, and the leader is asked again. */
static int refuse(struct node *node, uint64_t index, const char *path, const char *text) {
  if (node->install_index == index) node->install_index = 0;
  node->install_refused = index;
  pthread_mutex_unlock(&node->mutex);
  node_log(SQLITE_CORRUPT, "node %" PRIu64 " cannot install a snapshot and asks for it again: %s", node->id, text);
  os_remove(node->os, path);
  pthread_mutex_lock(&node->mutex);
  return VFS_OK;
}

int node_install(struct node *node, char *text) {
  uint64_t index = node->install_index;
  bool has_pages = node->has_pages;
  char path[OS_PATH_MAX];
  if (index <= node->commit_index) {
    node->install_index = 0;
    return VFS_OK;
  }
  pthread_mutex_unlock(&node->mutex);
  struct node_snapshot *snapshot = calloc(1, sizeof *snapshot);
  snapshot_path(node->snapshots_folder, index, path);
  int error = snapshot ? node_snapshot_open(node, path, snapshot, text) : VFS_NO_MEMORY;
  bool is_damaged = error == VFS_DAMAGED;
  if (!error) error = install_pages(node, snapshot, has_pages, text);
  is_damaged = is_damaged || (error && snapshot && snapshot->is_damaged);
  if (error && atomic_load(&node->snapshots_end)) error = VFS_STOPPED;
  pthread_mutex_lock(&node->mutex);
  /*
  ** Whatever becomes of the log (no memory: all of this is done again; or it gets there by itself): what the database shows is
  ** applied, and apply goes on behind it.
  */
  if (!error && node->applied_index < snapshot->meta.index) node->applied_index = snapshot->meta.index;
  if (!error) error = install_log(node, snapshot, text);
  bool is_installed = error == VFS_OK;
  if (is_damaged && error != VFS_STOPPED) error = refuse(node, index, path, text);
  pthread_mutex_unlock(&node->mutex);
  if (snapshot) node_snapshot_close(snapshot);
  free(snapshot);
  if (is_installed) snapshot_remove_older(node->os, node->snapshots_folder, index);
  pthread_mutex_lock(&node->mutex);
  return error;
}
