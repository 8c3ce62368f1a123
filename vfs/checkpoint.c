/*
** Checkpoints: only the node makes them, in two passes (design section 5).
**
** Pass one runs beside writers: it goes to the newest committed boundary that every reader has reached, again and again while
** that leaves less and less. Under load it alone never completes, since each COMMIT that waits holds an old read mark. Pass
** two takes the ticket, lets the commits in flight finish and the readers drain for a moment, copies the little that is left,
** and starts the WAL again. If a reader stays, it gives up: that reader may be waiting for this very ticket.
**
** Pacing. A checkpoint is asked for at a part of the WAL's limit. A transaction begins only below the limit; where one finds
** the WAL there, it waits for the checkpoint, a little (WAL_WAIT_MAX), and pass two may take longer. So the WAL exceeds its
** limit by no more than one transaction, however large that is, with these exceptions:
**   - Somebody holds it back: a reader that stays, here or in another process, or a disk that is full or fails. Then nobody
**     waits, the WAL grows, and balsa_status says who it is. Pass two, which stalls writers, is not tried again until the
**     readers that were in its way are gone.
**   - A snapshot is being written: its view is such a reader, for as long as it takes to read the database. Then the WAL may
**     grow to the size of the database; beyond that each transaction waits for `pace`, so that it hardly grows any more.
**   - The disk is so slow that a checkpoint takes longer than WAL_WAIT_MAX.
** A WAL that has been larger is cut to its limit when it starts again.
**
** Order on disk: the local log is durable through k → mark "begun k" → pages → sync of the file → mark "checkpointed
** k". SQLite's own checkpointer is not used: it would need a connection (with the application's auto-extensions) and knows nothing of
** what is committed.
*/
#include <string.h>

#include "database.h"

/* How long a checkpoint waits for its turn among the writers, and for the local log to be durable. A stop waits for one. */
#define CHECKPOINT_MAX (500 * OS_MS)
/* How long pass two waits, with the ticket, for commits and readers; and how long once the WAL has reached its limit. */
#define DRAIN_MAX (5 * OS_MS)
#define DRAIN_FULL_COMMITS_MAX OS_SECOND /* a round trip to far nodes may take that long */
#define DRAIN_FULL_READERS_MAX (100 * OS_MS)
#define READERS_POLL (OS_MS / 4)
/* Pass one is repeated while it leaves more than this and less than half of what it found. */
#define LITTLE_FRAMES 128
#define FIRST_PASSES_MAX 8
/* How long a transaction waits for the WAL to start again. */
#define WAL_WAIT_MAX (100 * OS_MS)
#define WAL_WAIT_SLICE (5 * OS_MS)

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

/* checkpoint mutex held. The next start reads the file through, and makes it again. */
static int mark_suspect(struct vfs_database *database) {
  pthread_mutex_lock(&database->mutex);
  struct vfs_marks marks = database->marks;
  pthread_mutex_unlock(&database->mutex);
  if (marks.is_suspect || !vfs_hashes_damaged(database->hashes, NULL)) return VFS_OK;
  marks.is_suspect = true;
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
static int backfill(struct vfs_database *database, const struct vfs_state *state, uint64_t deadline) {
#ifdef BALSA_MUTANT_CHECKPOINT_BEYOND_LOG
  int error = deadline ? VFS_OK : VFS_BUSY;
#else
  int error = database->methods->wait_durable(database->node, state->index, deadline);
#endif
  if (!error) error = mark_begun(database, state->index);
  if (!error) error = vfs_error_of_sqlite(vfs_wal_backfill(database->wal, state->max_frame, state->pages));
  if (error) vfs_refresh_nonce(database); /* it has been attempted */
  if (!error) error = vfs_error_of_sqlite(database->file->pMethods->xSync(database->file, SQLITE_SYNC_NORMAL));
  if (!error) error = mark_checkpointed(database, state);
  if (error) return error;
  vfs_wal_set_backfilled(database->wal, state->max_frame);
  vfs_refresh_nonce(database);
  return VFS_OK;
}

/* ---- Pass one ---- */

/* *left: frames of the WAL that are not in the file afterwards. */
static int first_pass(struct vfs_database *database, uint64_t deadline, uint32_t *left) {
  struct vfs_state state = {0};
  pthread_mutex_lock(&database->mutex);
  vfs_settle(database);
  uint32_t limit = database->committed.max_frame;
  pthread_mutex_unlock(&database->mutex);
  int busy_reader = 0, error = VFS_OK;
  uint32_t safe = vfs_wal_safe_frame(database->wal, limit, &busy_reader);
  pthread_mutex_lock(&database->mutex);
  bool found = find_boundary(database, safe, &state);
  pthread_mutex_unlock(&database->mutex);
  if (found && state.max_frame > vfs_wal_backfilled(database->wal)) error = backfill(database, &state, deadline);
  pthread_mutex_lock(&database->mutex);
  uint32_t max_frame = database->header.max_frame, backfilled = vfs_wal_backfilled(database->wal);
  pthread_mutex_unlock(&database->mutex);
  *left = max_frame > backfilled ? max_frame - backfilled : 0;
  return error;
}

static int first_passes(struct vfs_database *database, uint64_t deadline) {
  uint32_t left = UINT32_MAX, before = UINT32_MAX;
  int error = VFS_OK;
  for (int i = 0; i < FIRST_PASSES_MAX && !error && left > LITTLE_FRAMES; i++) {
    error = first_pass(database, deadline, &left);
    if (left > before / 2) break;
    before = left;
  }
  return error;
}

/* ---- Pass two ---- */

static bool is_full(const struct vfs_database *database, uint32_t max_frame) {
  return max_frame >= database->wal_limit_frames;
}

/* ticket held. Nothing speculative is left, for a moment at most. Not beyond the end of the epoch: compensation waits. */
static bool drain(struct vfs_database *database, struct vfs_state *state, uint64_t deadline) {
  uint64_t generation = atomic_load(&database->generation);
  pthread_mutex_lock(&database->mutex);
  uint64_t newest = vfs_newest_sequence(database);
  pthread_mutex_unlock(&database->mutex);
  bool is_committed = newest == 0;
  while (!is_committed && os_now(database->os) < deadline && atomic_load(&database->generation) == generation) {
    uint64_t slice = os_now(database->os) + VFS_WAIT_SLICE;
    is_committed = vfs_wait_sequence(database, newest, slice < deadline ? slice : deadline) == VFS_FATE_COMMITTED;
  }
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

/* A little time for readers; false: there is none left. */
static bool pause_until(struct vfs_database *database, uint64_t deadline) {
  uint64_t now = os_now(database->os);
  if (now >= deadline) return false;
  pthread_mutex_lock(&database->mutex);
  os_condition_wait(database->os, &database->changed, &database->mutex, now + READERS_POLL);
  pthread_mutex_unlock(&database->mutex);
  return true;
}

/* ticket held. The whole WAL goes into the file, as soon as readers let it. */
static int finish(struct vfs_database *database, const struct vfs_state *state, uint64_t deadline) {
  int busy_reader = 0;
  for (;;) {
    int error = VFS_BUSY;
    if (vfs_wal_backfilled(database->wal) >= state->max_frame) return VFS_OK;
    if (vfs_wal_safe_frame(database->wal, state->max_frame, &busy_reader) >= state->max_frame)
      error = backfill(database, state, deadline);
    if (error != VFS_BUSY || !pause_until(database, deadline)) return error;
  }
}

/* ticket held; the file is `state`. Its end is cut, and the WAL begins again. */
static int restart_wal(struct vfs_database *database, const struct vfs_state *state, uint64_t deadline) {
  sqlite3_int64 size = 0;
  sqlite3_int64 wanted = (sqlite3_int64)state->pages * database->page_size;
  int code = database->file->pMethods->xFileSize(database->file, &size);
  if (code == SQLITE_OK && size > wanted) {
    code = database->file->pMethods->xTruncate(database->file, wanted);
    if (code == SQLITE_OK) code = database->file->pMethods->xSync(database->file, SQLITE_SYNC_NORMAL);
  }
  if (code != SQLITE_OK) return vfs_error_of_sqlite(code);
  uint32_t salt = 0;
  os_random(database->os, &salt, sizeof salt);
  /* Who begins to read now reads the file alone. */
  do {
    code = vfs_wal_restart(database->wal, salt, database->wal_limit_frames);
  } while (code == SQLITE_BUSY && pause_until(database, deadline));
  if (code != SQLITE_OK) return vfs_error_of_sqlite(code);
  struct vfs_wal_header live;
  if (vfs_wal_read_header(database->wal, &live) == SQLITE_OK) vfs_note_restart(database, &live);
  return VFS_OK;
}

/* ticket held */
static int second_pass(struct vfs_database *database, bool *was_full) {
  struct vfs_state state = {0};
  struct vfs_wal_header live;
  if (vfs_wal_read_header(database->wal, &live) != SQLITE_OK) return VFS_IO;
  vfs_note_restart(database, &live);
  if (database->parts_open || live.max_frame == 0) return VFS_OK;
#ifdef BALSA_MUTANT_CHECKPOINT_BEYOND_LOG
  pthread_mutex_lock(&database->mutex);
  state = database->captured;
  bool is_open = database->in_flight_count > 0;
  pthread_mutex_unlock(&database->mutex);
  if (is_open && state.max_frame == live.max_frame) return backfill(database, &state, OS_FOREVER);
#endif
  *was_full = is_full(database, live.max_frame);
  uint64_t now = os_now(database->os);
  if (!drain(database, &state, now + (*was_full ? DRAIN_FULL_COMMITS_MAX : DRAIN_MAX))) return VFS_BUSY;
  if (live.max_frame != state.max_frame) return VFS_BUSY; /* a doomed transaction waits for compensation */
  uint64_t deadline = *was_full ? os_now(database->os) + DRAIN_FULL_READERS_MAX : now + DRAIN_MAX;
  int error = finish(database, &state, deadline);
  if (!error) error = restart_wal(database, &state, deadline);
  if (error == VFS_BUSY) atomic_store(&database->held_frame, live.max_frame);
  return error;
}

/* ---- Both ---- */

/*
** checkpoint mutex held. Are readers still there that were in the way of the last pass two? While writers wait for the WAL,
** short ones get time to go: somebody who began to read since may share the mark of one of them.
*/
static bool readers_stay(struct vfs_database *database) {
  uint64_t deadline = vfs_wal_is_full(database) ? os_now(database->os) + DRAIN_FULL_READERS_MAX / 2 : 0;
  uint32_t frame = atomic_load(&database->held_frame);
  while (frame != 0 && vfs_wal_readers(database->wal, frame) != 0)
    if (!pause_until(database, deadline)) return true;
  atomic_store(&database->held_frame, 0);
  return false;
}

/* Lets those go on who wait for the WAL, if it cannot be helped. */
static void set_held_back(struct vfs_database *database, bool is_held_back) {
  if (atomic_exchange(&database->is_held_back, is_held_back) || !is_held_back) return;
  pthread_mutex_lock(&database->mutex);
  pthread_cond_broadcast(&database->changed);
  pthread_mutex_unlock(&database->mutex);
}

/* checkpoint mutex held. */
static int both_passes(struct vfs_database *database, uint64_t deadline) {
  const char *holder = "checkpoint";
  bool was_full = false;
  int error = first_passes(database, deadline);
  if (error && error != VFS_BUSY) {
    set_held_back(database, true);
    return error;
  }
  if (readers_stay(database)) {
    if (vfs_wal_is_full(database)) set_held_back(database, true);
    return VFS_BUSY;
  }
  set_held_back(database, false);
  if (!vfs_ticket_take(&database->ticket, holder, VFS_TICKET_BACK, deadline)) return VFS_BUSY;
  error = second_pass(database, &was_full);
  vfs_ticket_give(&database->ticket, holder);
  if (error && was_full) set_held_back(database, true);
  return error;
}

int vfs_checkpoint_until(struct vfs_database *database, uint64_t deadline, char *text) {
  if (!atomic_load(&database->ready)) return VFS_OK;
  pthread_mutex_lock(&database->checkpoint);
  atomic_store(&database->is_checkpointing, true);
  int error = mark_suspect(database);
  if (!error) error = both_passes(database, deadline);
  atomic_store(&database->is_checkpointing, false);
  if (!error) atomic_store(&database->checkpoint_wanted, false);
  pthread_mutex_unlock(&database->checkpoint);
  if (error) snprintf(text, VFS_TEXT_MAX, "checkpoint of %s: %s", database->path, vfs_error_text(error));
  return error;
}

int vfs_checkpoint(struct vfs_database *database, char *text) {
  return vfs_checkpoint_until(database, os_now(database->os) + CHECKPOINT_MAX, text);
}

/* ---- Pacing ---- */

void vfs_want_checkpoint(struct vfs_database *database) {
  atomic_store(&database->checkpoint_wanted, true);
  database->methods->want_checkpoint(database->node);
}

void vfs_ask_for_checkpoint(struct vfs_database *database, uint32_t max_frame) {
  if (max_frame - vfs_wal_backfilled(database->wal) < database->wal_limit_frames / VFS_CHECKPOINT_SHARE) return;
  if (!atomic_exchange(&database->checkpoint_wanted, true)) database->methods->want_checkpoint(database->node);
}

/* mutex held. */
static bool should_wait(const struct vfs_database *database) {
  uint32_t max_frame = database->header.max_frame;
  if (!is_full(database, max_frame)) return false;
  return atomic_load(&database->views) > 0 ? max_frame >= database->committed.pages
                                           : !atomic_load(&database->is_held_back);
}

bool vfs_wal_is_full(struct vfs_database *database) {
  pthread_mutex_lock(&database->mutex);
  bool full = should_wait(database);
  pthread_mutex_unlock(&database->mutex);
  return full;
}

void vfs_wait_for_wal(struct vfs_database *database, uint64_t pace) {
  uint64_t now = os_now(database->os);
  uint64_t deadline = now + (atomic_load(&database->views) > 0 ? pace : WAL_WAIT_MAX);
  pthread_mutex_lock(&database->mutex);
  while (should_wait(database) && !atomic_load(&database->stopped) && now < deadline) {
    if (!atomic_load(&database->is_checkpointing)) { /* not yet, or it began before the WAL was full */
      pthread_mutex_unlock(&database->mutex);
      vfs_want_checkpoint(database);
      pthread_mutex_lock(&database->mutex);
      if (!should_wait(database)) break;
    }
    uint64_t slice = now + WAL_WAIT_SLICE;
    os_condition_wait(database->os, &database->changed, &database->mutex, slice < deadline ? slice : deadline);
    now = os_now(database->os);
  }
  pthread_mutex_unlock(&database->mutex);
}

void vfs_view_closed(struct vfs_database *database) {
  atomic_fetch_sub(&database->views, 1);
  vfs_want_checkpoint(database);
  pthread_mutex_lock(&database->mutex);
  pthread_cond_broadcast(&database->changed);
  pthread_mutex_unlock(&database->mutex);
}

void vfs_describe_checkpoint(struct vfs_database *database, char *text) {
  char reader[VFS_OWNERSHIP_PROCESS_MAX];
  const void *connection = NULL;
  int thread = 0;
  text[0] = 0;
  if (!atomic_load(&database->ready) || !atomic_load(&database->is_held_back)) return;
  pthread_mutex_lock(&database->mutex);
  uint32_t max_frame = database->header.max_frame;
  pthread_mutex_unlock(&database->mutex);
  if (!is_full(database, max_frame)) return;
  unsigned marks = vfs_wal_marks(database->wal, atomic_load(&database->held_frame));
  for (int i = 0; i < VFS_WAL_READERS && !text[0]; i++) {
    if ((marks & 1u << i) == 0) continue;
    if (vfs_find_reader(database, VFS_WAL_LOCK_READ(i), &connection, &thread))
      snprintf(
          text, VFS_TEXT_MAX,
          "held back by a read transaction in this process (thread %d, connection %p): the WAL grows until it ends; "
          "reset or finalize its statements, or COMMIT",
          thread, connection);
    else if (vfs_ownership_reader(database->ownership, VFS_WAL_LOCK_READ(i), reader))
      snprintf(text, VFS_TEXT_MAX, "held back by a read transaction of %s: the WAL grows until it ends; end it there",
               reader);
  }
  if (!text[0] && atomic_load(&database->views) > 0)
    snprintf(text, VFS_TEXT_MAX, "held back by the snapshot that is being written; it goes on after that");
}
