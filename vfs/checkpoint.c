/*
** Checkpoints: only the node makes them, in two passes (design section 5).
**
** Pass one runs beside writers: it goes to the newest committed boundary that every reader has reached. Under load that
** alone never completes, since each COMMIT that waits holds an old read mark. Pass two takes the ticket, lets the commits in
** flight finish and the readers drain for a moment, copies the little that is left, and starts the WAL again. If a reader stays,
** it gives up: that reader may be waiting for this very ticket.
**
** Order on disk: the local log is durable through k → mark "begun k" → pages → sync of the file → mark "checkpointed
** k". SQLite's own checkpointer is not used: it would need a connection (with the application's auto-extensions) and knows nothing of
** what is committed.
*/
#include <string.h>

#include "database.h"

/* How long a checkpoint waits for the local log to be durable. */
#define CHECKPOINT_DURABLE_MAX (2 * OS_SECOND)
/* How long pass two waits for its turn among the writers. */
#define CHECKPOINT_TICKET_MAX (2 * OS_SECOND)

/* mutex held. The newest remembered boundary at or before `frame`. */
static bool find_boundary(const struct vfs_database *database, uint32_t frame, struct vfs_state *state) {
  for (uint32_t i = database->boundaries_count; i > 0; i--) {
    const struct vfs_state *at = &database->boundaries[(database->boundaries_first + i - 1) % VFS_BOUNDARIES_MAX];
    if (at->max_frame > frame) continue;
    *state = *at;
    return true;
  }
  return false;
}

static int mark_begun(struct vfs_database *database, uint64_t index) {
  pthread_mutex_lock(&database->mutex);
  struct vfs_marks marks = database->marks;
  pthread_mutex_unlock(&database->mutex);
  if (marks.begun >= index) return VFS_OK;
  marks.begun = index;
  return vfs_write_marks(database, &marks);
}

static int mark_checkpointed(struct vfs_database *database, const struct vfs_state *state) {
  pthread_mutex_lock(&database->mutex);
  struct vfs_marks marks = database->marks;
  pthread_mutex_unlock(&database->mutex);
  marks.checkpointed = marks.set_index = state->index;
  if (marks.begun < state->index) marks.begun = state->index;
  marks.checksum = state->checksum;
  marks.pages = state->pages;
  return vfs_write_marks(database, &marks);
}

/* checkpoint mutex held. The file becomes `state`, a boundary that all readers have reached. */
static int backfill(struct vfs_database *database, const struct vfs_state *state) {
  uint64_t deadline = os_now(database->os) + CHECKPOINT_DURABLE_MAX;
  int error = database->methods->wait_durable(database->node, state->index, deadline);
  if (!error) error = mark_begun(database, state->index);
  if (!error) error = vfs_error_of_sqlite(vfs_wal_backfill(database->wal, state->max_frame, state->pages));
  if (!error) error = vfs_error_of_sqlite(database->file->pMethods->xSync(database->file, SQLITE_SYNC_NORMAL));
  if (!error) error = mark_checkpointed(database, state);
  if (error) return error;
  vfs_wal_set_backfilled(database->wal, state->max_frame);
  vfs_refresh_nonce(database);
  return VFS_OK;
}

static int first_pass(struct vfs_database *database) {
  struct vfs_state state = {0};
  pthread_mutex_lock(&database->mutex);
  vfs_settle(database);
  uint32_t limit = database->committed.max_frame;
  pthread_mutex_unlock(&database->mutex);
  int busy_reader = 0;
  uint32_t safe = vfs_wal_safe_frame(database->wal, limit, &busy_reader);
  pthread_mutex_lock(&database->mutex);
  bool found = find_boundary(database, safe, &state);
  pthread_mutex_unlock(&database->mutex);
  if (!found || state.max_frame <= vfs_wal_backfilled(database->wal)) return VFS_OK;
  return backfill(database, &state);
}

/* ticket held. Nothing speculative is left, for a moment at most. */
static bool drain(struct vfs_database *database, struct vfs_state *state) {
  uint64_t deadline = os_now(database->os) + VFS_DRAIN_MAX;
  pthread_mutex_lock(&database->mutex);
  uint64_t newest = vfs_newest_sequence(database);
  pthread_mutex_unlock(&database->mutex);
  bool is_committed = newest == 0 || vfs_wait_sequence(database, newest, deadline) == VFS_FATE_COMMITTED;
  pthread_mutex_lock(&database->mutex);
  while (is_committed) {
    vfs_settle(database);
    if (database->in_flight_count == 0) break;
    is_committed = os_condition_wait(database->os, &database->changed, &database->mutex, deadline) == 0;
  }
  *state = database->committed;
  pthread_mutex_unlock(&database->mutex);
  return is_committed;
}

/* ticket held. */
static bool readers_reached(struct vfs_database *database, uint32_t frame) {
  uint64_t deadline = os_now(database->os) + VFS_DRAIN_MAX;
  int busy_reader = 0;
  while (vfs_wal_safe_frame(database->wal, frame, &busy_reader) < frame) {
    if (os_now(database->os) >= deadline) return false;
    pthread_mutex_lock(&database->mutex);
    os_condition_wait(database->os, &database->changed, &database->mutex, os_now(database->os) + VFS_DRAIN_MAX / 20);
    pthread_mutex_unlock(&database->mutex);
  }
  return true;
}

/* ticket held; the file is `state`. Its end is cut, and the WAL begins again. */
static int restart_wal(struct vfs_database *database, const struct vfs_state *state) {
  sqlite3_int64 size = 0;
  sqlite3_int64 wanted = (sqlite3_int64)state->pages * database->page_size;
  int code = database->file->pMethods->xFileSize(database->file, &size);
  if (code == SQLITE_OK && size > wanted) {
    code = database->file->pMethods->xTruncate(database->file, wanted);
    if (code == SQLITE_OK) code = database->file->pMethods->xSync(database->file, SQLITE_SYNC_NORMAL);
  }
  uint32_t salt = 0;
  os_random(database->os, &salt, sizeof salt);
  if (code == SQLITE_OK) code = vfs_wal_restart(database->wal, salt);
  if (code != SQLITE_OK) return vfs_error_of_sqlite(code);
  struct vfs_wal_header live;
  if (vfs_wal_read_header(database->wal, &live) == SQLITE_OK) vfs_note_restart(database, &live);
  return VFS_OK;
}

/* ticket held */
static int second_pass(struct vfs_database *database) {
  struct vfs_state state = {0};
  struct vfs_wal_header live;
  if (vfs_wal_read_header(database->wal, &live) != SQLITE_OK) return VFS_IO;
  vfs_note_restart(database, &live);
  if (database->parts_open || live.max_frame == 0) return VFS_OK;
  if (!drain(database, &state)) return VFS_BUSY;
  if (live.max_frame != state.max_frame) return VFS_BUSY; /* a doomed transaction waits for compensation */
  if (!readers_reached(database, state.max_frame)) return VFS_BUSY;
  int error = VFS_OK;
  if (vfs_wal_backfilled(database->wal) < state.max_frame) error = backfill(database, &state);
  return error ? error : restart_wal(database, &state);
}

int vfs_checkpoint(struct vfs_database *database, char *text) {
  if (!atomic_load(&database->ready)) return VFS_OK;
  pthread_mutex_lock(&database->checkpoint);
  const char *holder = "checkpoint";
  int error = first_pass(database);
  if (error == VFS_OK || error == VFS_BUSY) {
    error = VFS_BUSY;
    if (vfs_database_take(database, holder, VFS_TICKET_BACK, os_now(database->os) + CHECKPOINT_TICKET_MAX)) {
      error = second_pass(database);
      vfs_ticket_give(&database->ticket, holder);
    }
  }
  atomic_store(&database->checkpoint_wanted, false);
  pthread_mutex_unlock(&database->checkpoint);
  if (error) snprintf(text, VFS_TEXT_MAX, "checkpoint of %s: %s", database->path, vfs_error_text(error));
  return error;
}
