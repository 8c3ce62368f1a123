/*
** One SQLite connection's view of a replicated database: the io methods of its main file and of its WAL.
**
** SQLite does its own work on the real files; what is done here is to decide when it may (the ticket, the gate),
** to capture what it wrote, and to tell what became of it.
**
** Locks of the wal-index, as SQLite asks for them:
**   READ, shared      the start of a read transaction; of a writing statement the ticket is reserved first
**   READ, exclusive   setting a read mark, restarting the WAL: passed on
**   WRITE             the ticket; never passed on: the process owns byte 120 by an OFD lock
**   CKPT              SQLITE_BUSY: only the node checkpoints
**   RECOVER           exclusive: SQLITE_BUSY (the node keeps the wal-index valid); shared: passed on
*/
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "database.h"

/* How long a transaction waits for the WAL while a snapshot is written. */
#define WRITER_PACE (10 * OS_MS)

static pthread_mutex_t connections_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct vfs_connection *connections; /* all of the process; connections_mutex */

void vfs_connection_fail(struct vfs_connection *connection, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(connection->error, sizeof connection->error, format, arguments);
  va_end(arguments);
}

void vfs_connection_explain(struct vfs_connection *connection, int error) {
  struct vfs_database *database = connection->database;
  char text[VFS_TEXT_MAX];
  snprintf(text, sizeof text, "%s", vfs_error_text(error));
  database->methods->explain(database->node, text);
  vfs_connection_fail(connection, "%s: nothing is written: %.600s", database->path, text);
}

int vfs_fail_shm(struct vfs_connection *connection, uint32_t frame, int code) {
  vfs_connection_fail(connection, "%s-shm cannot grow for frame %u of the WAL (SQLite error %d): make room on its disk",
                      connection->database->path, frame, code);
  return code == SQLITE_IOERR_SHMSIZE ? SQLITE_FULL : code; /* the unix VFS has no other word for it */
}

static struct vfs_connection *connection_of(sqlite3_file *file) {
  return (struct vfs_connection *)file;
}

/*
** Who has waited for balsa_timeout in vain and comes again at once is SQLite's busy handler, which has a limit of its own and
** counts only its own sleeps: it waits briefly, or the two limits would multiply.
*/
uint64_t vfs_connection_deadline(const struct vfs_connection *connection) {
  uint64_t now = os_now(connection->database->os);
  uint64_t wait = connection->timeout_ms * OS_MS;
  bool is_retry = connection->refused_at != 0 && now - connection->refused_at < VFS_BUSY_RETRY_MAX;
  return now + (is_retry && wait > VFS_BUSY_RETRY_WAIT ? VFS_BUSY_RETRY_WAIT : wait);
}

void vfs_connection_note_wait(struct vfs_connection *connection, int error) {
  bool was_in_vain = error == VFS_NOBODY || error == VFS_BUSY;
  connection->refused_at = was_in_vain ? os_now(connection->database->os) : 0;
}

/* Of the calling thread, as the system's tools show it. */
static int thread_id(void) {
  static _Thread_local int id;
  if (id == 0) id = gettid();
  return id;
}

static uint64_t deadline_of(const struct vfs_connection *connection) {
  return os_now(connection->database->os) + connection->timeout_ms * OS_MS;
}

/*
** A forked child has the parent's WAL and wal-index in its hands, and a copy of what its threads knew when it was
** forked: it does nothing at all, not even the roll-back that closing an open transaction would be.
*/
static int refuse_forked(struct vfs_connection *connection) {
  vfs_connection_fail(connection,
                      "this process was forked from one that uses Balsa; open databases after fork and exec");
  return SQLITE_IOERR;
}

/* ---- What the connection's statements are doing ---- */

struct statements {
  int busy, writing;
};

static struct statements count_statements(const struct vfs_connection *connection) {
  struct statements found = {0};
  if (!connection->handle || atomic_load(&connection->has_shared_cache)) return found;
  for (sqlite3_stmt *at = sqlite3_next_stmt(connection->handle, NULL); at;
       at = sqlite3_next_stmt(connection->handle, at)) {
    if (!sqlite3_stmt_busy(at)) continue;
    found.busy++;
    found.writing += !sqlite3_stmt_readonly(at);
  }
  return found;
}

static bool is_writing_statement(const struct vfs_connection *connection) {
  return !connection->read_only && count_statements(connection).writing > 0;
}

/*
** The code for a lost transaction (design section 1): a statement that commits by itself is run again by
** convention on BUSY; for an explicit COMMIT the primary code must not be BUSY, whose convention is "still
** open"; with other statements in progress only an IOERR makes the pager drop its cache.
*/
static int lost_code(const struct vfs_connection *connection) {
  struct statements found = count_statements(connection);
  if (found.busy > 1) return VFS_SQLITE_LOST;
  return found.writing > 0 ? SQLITE_BUSY_SNAPSHOT : SQLITE_ABORT_ROLLBACK;
}

/*
** For a read or write of a doomed transaction. Who has been told rolls back, and sqlite3PagerRollback reads page 1 again for that:
** if that failed with another code than an IOERR, the pages that the transaction has changed would stay in the cache, as clean
** ones (pagerRollbackWal ends at the first error, pager_end_transaction goes on), and no changed header drops them if none was
** written out.
*/
static int doomed_code(struct vfs_connection *connection) {
  bool is_shared = atomic_load(&connection->has_shared_cache), was_told = connection->told_doomed;
  connection->told_doomed = true;
  if (was_told || is_shared || !sqlite3_get_autocommit(connection->handle)) return VFS_SQLITE_LOST;
  return lost_code(connection);
}

/* Does another Balsa database of the same SQLite connection hold a ticket? Then waiting here could wait for ourselves. */
static bool holds_another_ticket(const struct vfs_connection *connection) {
  bool found = false;
  pthread_mutex_lock(&connections_mutex);
  for (const struct vfs_connection *at = connections; at && !found; at = at->next)
    found = at != connection && at->handle == connection->handle && at->handle && (at->reserved || at->writing);
  pthread_mutex_unlock(&connections_mutex);
  return found;
}

/* ---- A transaction over several files ---- */

/* A plain SQLite file in WAL mode commits before Balsa's database is asked, if it stands before it. */
static bool is_wal_file(sqlite3 *handle, const char *schema) {
  sqlite3_file *file = NULL;
  uint8_t version = 0;
  if (sqlite3_file_control(handle, schema, SQLITE_FCNTL_FILE_POINTER, &file) != SQLITE_OK || !file || !file->pMethods)
    return false;
  return file->pMethods->xRead(file, &version, 1, 18) == SQLITE_OK && version == 2;
}

/*
** A transaction that writes this database and another file is refused before anything is committed: SQLite would
** ignore what becomes of it here, or has committed the other file already. Writes the sentence.
*/
static bool writes_other_file(struct vfs_connection *connection, bool is_begin) {
  sqlite3 *handle = connection->handle;
  bool before_own = true;
  if (!handle || atomic_load(&connection->has_shared_cache) || !sqlite3_db_name(handle, 1)) return false;
  for (int i = 0;; i++) {
    const char *schema = sqlite3_db_name(handle, i);
    if (!schema) return false;
    const char *filename = i == 1 ? NULL : sqlite3_db_filename(handle, schema);
    struct vfs_connection *other = NULL;
    sqlite3_file_control(handle, schema, VFS_FCNTL_CONNECTION, &other);
    if (other == connection) {
      before_own = false;
      continue;
    }
    if (!filename || !*filename) continue; /* TEMP, in memory */
    if (sqlite3_txn_state(handle, schema) == SQLITE_TXN_WRITE) {
      vfs_connection_fail(connection,
                          "a transaction cannot write the replicated database and %s together: it would not be "
                          "atomic; use a transaction for each",
                          filename);
      return true;
    }
    if (is_begin && before_own && !sqlite3_get_autocommit(handle) && !other && is_wal_file(handle, schema)) {
      vfs_connection_fail(connection,
                          "%s is attached before the replicated database and in WAL mode: a transaction over "
                          "both would not be atomic; open the replicated database first and attach the other to it",
                          filename);
      return true;
    }
  }
}

/* ---- The ticket ---- */

/*
** Waits with the ticket held for a state to be committed. Nothing can be taken back meanwhile, so it looks now and then whether
** leadership has ended.
*/
static int wait_with_ticket(struct vfs_connection *connection, uint64_t sequence, uint64_t deadline) {
  struct vfs_database *database = connection->database;
  for (;;) {
    uint64_t now = os_now(database->os);
    uint64_t slice = now + VFS_WAIT_SLICE < deadline ? now + VFS_WAIT_SLICE : deadline;
    if (vfs_wait_sequence(database, sequence, slice) == VFS_FATE_COMMITTED) return SQLITE_OK;
    if (atomic_load(&database->generation) != connection->generation) return SQLITE_BUSY_SNAPSHOT;
    if (slice == deadline) return SQLITE_BUSY;
  }
}

static int refuse_write(struct vfs_connection *connection, int refusal) {
  const char *path = connection->database->path;
  switch (refusal) {
  case VFS_NOT_HERE:
    vfs_connection_fail(connection, "%s: another node leads; write there (SELECT leader_address FROM balsa_status)",
                        path);
    return SQLITE_READONLY;
  case VFS_NOBODY:
    vfs_connection_fail(connection, "%s: no node leads since %u ms (balsa_timeout); see balsa_status", path,
                        connection->timeout_ms);
    return SQLITE_BUSY;
  case VFS_BUSY:
    vfs_connection_fail(connection, "%s: other writers kept this one waiting for %u ms (balsa_timeout)", path,
                        connection->timeout_ms);
    return SQLITE_BUSY;
  case VFS_NO_SPACE: vfs_connection_explain(connection, refusal); return SQLITE_FULL;
  default: vfs_connection_fail(connection, "%s: %s", path, vfs_error_text(refusal)); return SQLITE_IOERR;
  }
}

/*
** Nobody writes on top of a new schema that is not committed. SQLite knows a schema by its cookie, a mere counter: were
** the schema lost and another one made in its place, a connection that had parsed the first would go on with
** it. (Inside a write transaction schemas are parsed speculatively like all else.)
*/
static bool wait_schema(struct vfs_connection *connection, uint64_t deadline) {
  struct vfs_database *database = connection->database;
  pthread_mutex_lock(&database->mutex);
  uint64_t sequence = database->schema_sequence;
  bool is_settled = sequence <= database->committed.sequence;
  pthread_mutex_unlock(&database->mutex);
  return is_settled || wait_with_ticket(connection, sequence, deadline) == SQLITE_OK;
}

/* Waits for its turn and for the right to write. On refusal, `refusal` says why. */
static bool take_ticket_until(struct vfs_connection *connection, uint64_t deadline) {
  struct vfs_database *database = connection->database;
  uint64_t queue_deadline = holds_another_ticket(connection) ? 0 : deadline;
  enum vfs_ticket_place place = VFS_TICKET_BACK;
  /* Who reads already keeps the WAL from starting again, and who must not wait does not wait for that either. */
  bool may_wait = connection->read_lock == 0 && queue_deadline > 0;
  for (;;) {
    connection->refusal = VFS_BUSY;
    if (!vfs_ticket_take(&database->ticket, connection, place, queue_deadline)) return false;
    if (may_wait && vfs_wal_is_full(database)) {
      vfs_ticket_give(&database->ticket, connection);
      vfs_wait_for_wal(database, WRITER_PACE);
      may_wait = false;
      place = VFS_TICKET_FRONT;
      continue;
    }
    connection->generation = atomic_load(&database->generation);
    connection->told_doomed = false;
    connection->refusal = database->methods->acquire(database->node, 0, &connection->epoch);
    if (connection->refusal == VFS_OK && atomic_load(&database->parts_dangling))
      connection->refusal = vfs_end_dangling_parts(connection);
    if (connection->refusal == VFS_OK && !wait_schema(connection, deadline)) connection->refusal = VFS_BUSY;
    if (connection->refusal == VFS_OK) return true;
    vfs_ticket_give(&database->ticket, connection);
    if (connection->refusal != VFS_NOBODY || queue_deadline == 0 || os_now(database->os) >= deadline) return false;
    connection->refusal = database->methods->acquire(database->node, deadline, &connection->epoch);
    if (connection->refusal != VFS_OK) return false;
    database->methods->release(database->node, connection->epoch);
  }
}

static bool take_ticket(struct vfs_connection *connection) {
  bool is_taken = take_ticket_until(connection, vfs_connection_deadline(connection));
  vfs_connection_note_wait(connection, is_taken ? VFS_OK : connection->refusal);
  return is_taken;
}

static void give_ticket(struct vfs_connection *connection) {
  struct vfs_database *database = connection->database;
  connection->reserved = connection->writing = false;
  database->methods->release(database->node, connection->epoch);
  vfs_ticket_give(&database->ticket, connection);
}

/* A reservation that was kept too long went to somebody else. */
static bool still_reserved(struct vfs_connection *connection) {
  if (connection->reserved && !vfs_ticket_use(&connection->database->ticket, connection)) connection->reserved = false;
  return connection->reserved;
}

static bool is_doomed(const struct vfs_connection *connection) {
#ifdef BALSA_MUTANT_STALE_EPOCH
  if (connection) return false;
#endif
  return connection->writing && atomic_load(&connection->database->generation) != connection->generation;
}

/* ---- What was seen and is not decided ---- */

/*
** A write transaction that ended without a commit leaves what it read in SQLite's cache, and one that changed
** nothing commits what it saw: it waits for that here, and if this times out, at its next read lock. true: committed.
*/
static bool settle_seen(struct vfs_connection *connection, uint64_t sequence, uint64_t deadline) {
#ifdef BALSA_MUTANT_ROLLBACK_SKIPS_GATE
  sequence = connection->unsettled = 0;
#endif
  if (sequence == 0) return true;
  switch (vfs_wait_sequence(connection->database, sequence, deadline)) {
  case VFS_FATE_COMMITTED: connection->unsettled = 0; return true;
  case VFS_FATE_LOST:
    connection->unsettled = 0; /* the header has changed: SQLite drops its cache */
    connection->pending = VFS_PENDING_LOST;
    connection->pending_sequence = sequence;
    return false;
  default:
    connection->unsettled = sequence;
    connection->pending = VFS_PENDING_UNKNOWN;
    return false;
  }
}

static uint64_t newest_in_flight(struct vfs_database *database) {
  pthread_mutex_lock(&database->mutex);
  vfs_settle(database);
  uint64_t sequence = database->in_flight_count > 0 ? vfs_newest_sequence(database) : 0;
  pthread_mutex_unlock(&database->mutex);
  return sequence;
}

/* ---- READ locks ---- */

/*
** In a cache that several SQLite connections share, one would read what another's write transaction has read of
** speculation, and by the file alone nobody knows whose statement asks.
*/
static int refuse_shared_cache(struct vfs_connection *connection) {
  vfs_connection_fail(connection,
                      "%s: connections to a replicated database cannot share a cache; open them without cache=shared",
                      connection->database->path);
  return SQLITE_ERROR;
}

static void set_read_lock(struct vfs_connection *connection, int offset) {
  connection->read_lock = offset;
  atomic_store_explicit(&connection->reader_thread, thread_id(), memory_order_relaxed);
  atomic_store_explicit(&connection->read_lock_shown, offset, memory_order_relaxed);
}

bool vfs_find_reader(struct vfs_database *database, int offset, const void **connection, int *thread) {
  bool found = false;
  pthread_mutex_lock(&connections_mutex);
  for (struct vfs_connection *at = connections; at && !found; at = at->next) {
    found = at->database == database && atomic_load(&at->read_lock_shown) == offset;
    if (!found) continue;
    *connection = at;
    *thread = atomic_load(&at->reader_thread);
  }
  pthread_mutex_unlock(&connections_mutex);
  return found;
}

/* A writing statement reserves the ticket before SQLite chooses its snapshot. */
static void reserve(struct vfs_connection *connection) {
  if (still_reserved(connection) || connection->refusal != VFS_OK || !is_writing_statement(connection)) return;
  connection->reserved = take_ticket(connection);
  connection->saw_speculation = false;
}

static int read_lock(struct vfs_connection *connection, int offset, int flags) {
  struct vfs_database *database = connection->database;
  struct vfs_wal_header before = {0};
  if (connection->writing) { /* walRestartLog changes the read mark in the middle of a commit */
    set_read_lock(connection, offset);
    return connection->real->pMethods->xShmLock(connection->real, offset, 1, flags);
  }
  if (atomic_load(&database->stopped) || atomic_load(&database->wal_failed)) return SQLITE_IOERR;
  if (atomic_load(&connection->has_shared_cache)) return refuse_shared_cache(connection);
  if (connection->unsettled) {
    settle_seen(connection, connection->unsettled, deadline_of(connection));
    /* Not SQLITE_BUSY: SQLite would try a hundred times. */
    if (connection->unsettled) return SQLITE_BUSY_TIMEOUT;
  }
  connection->pending = VFS_PENDING_NONE;
  int code = vfs_wal_read_header(database->wal, &before);
  if (code != SQLITE_OK) return code;
  reserve(connection);
  code = connection->real->pMethods->xShmLock(connection->real, offset, 1, flags);
  struct vfs_wal_header after = before;
  if (code == SQLITE_OK) code = vfs_wal_read_header(database->wal, &after);
  connection->retry_expected = memcmp(&before, &after, sizeof before) != 0 || code == SQLITE_BUSY;
  if (code != SQLITE_OK) {
    if (connection->reserved) vfs_ticket_keep(&database->ticket, connection);
    return code;
  }
  set_read_lock(connection, offset);
  connection->snapshot = after;
  if (!connection->reserved) {
    vfs_gate_arm(connection);
    return SQLITE_OK;
  }
  connection->gate = 0;
  connection->base_sequence = newest_in_flight(database);
  vfs_ticket_reserve(&database->ticket, connection);
  return SQLITE_OK;
}

static int read_unlock(struct vfs_connection *connection, int offset, int flags) {
  struct vfs_database *database = connection->database;
  int code = connection->real->pMethods->xShmLock(connection->real, offset, 1, flags);
  set_read_lock(connection, 0);
  if (connection->writing) return code;
  if (connection->retry_expected) {
    if (connection->reserved) vfs_ticket_keep(&database->ticket, connection);
    return code;
  }
  connection->refusal = VFS_OK;
  uint64_t seen = connection->saw_speculation ? connection->base_sequence : 0;
  connection->saw_speculation = false;
  uint64_t deadline = 0;            /* who has no reservation any more has waited at its gate, or was refused */
  if (still_reserved(connection)) { /* it was no writer of this database after all */
    give_ticket(connection);
    deadline = deadline_of(connection);
  }
  settle_seen(connection, seen, deadline);
  return code;
}

/* ---- WRITE ---- */

static int write_grant(struct vfs_connection *connection) {
  struct vfs_database *database = connection->database;
  if (writes_other_file(connection, true)) {
    give_ticket(connection);
    return SQLITE_ERROR;
  }
  connection->base_sequence = newest_in_flight(database);
  connection->reserved = false;
  connection->writing = true;
  /* Of a transaction that is lost before it is sent there is no token; one that is rolled back leaves the one before. */
  connection->commit_before = connection->last_commit;
  connection->last_commit = (struct vfs_token){0};
  connection->gate = 0;
  connection->error[0] = 0;
  int code = vfs_wal_reserve(database->wal, VFS_RESERVE_FRAMES);
  if (code != SQLITE_OK) code = vfs_fail_shm(connection, database->header.max_frame + 1, code);
  if (code == SQLITE_OK && connection->strict && connection->base_sequence)
    code = wait_with_ticket(connection, connection->base_sequence, deadline_of(connection));
  if (code != SQLITE_OK)
    give_ticket(connection);
  else
    connection->saw_speculation = false; /* from here on base_sequence is settled with the transaction */
  return code;
}

static int write_lock(struct vfs_connection *connection) {
  struct vfs_database *database = connection->database;
  struct vfs_wal_header live;
  if (connection->read_lock == 0) return SQLITE_BUSY; /* only wants to check a torn header */
  if (connection->read_only) return SQLITE_READONLY;
  if (connection->refusal != VFS_OK) {
    int refusal = connection->refusal;
    connection->refusal = VFS_OK;
    return refuse_write(connection, refusal);
  }
  if (!still_reserved(connection)) {
    /* A read transaction that goes on to write. What others wrote since cannot be caught up with. */
    uint64_t epoch = 0;
    connection->refusal = database->methods->acquire(database->node, 0, &epoch);
    if (connection->refusal == VFS_NOT_HERE) {
      connection->refusal = VFS_OK;
      return refuse_write(connection, VFS_NOT_HERE);
    }
    if (connection->refusal == VFS_OK) database->methods->release(database->node, epoch);
    int code = vfs_wal_read_header(database->wal, &live);
    if (code == SQLITE_OK && memcmp(&live, &connection->snapshot, sizeof live) != 0) code = SQLITE_BUSY_SNAPSHOT;
    connection->refusal = VFS_OK;
    if (code != SQLITE_OK) return code;
    if (!take_ticket(connection)) {
      int refusal = connection->refusal;
      connection->refusal = VFS_OK;
      return refuse_write(connection, refusal);
    }
    connection->reserved = true;
  }
  return write_grant(connection);
}

static int write_unlock(struct vfs_connection *connection) {
  if (!connection->writing) return SQLITE_OK;
  connection->pending = VFS_PENDING_NONE;
  int code = vfs_capture(connection);
  bool changed_nothing = code == SQLITE_OK && connection->pending == VFS_PENDING_NONE;
  if (changed_nothing && !is_doomed(connection)) connection->last_commit = connection->commit_before;
  /* Cursors keep the read lock, which is at this transaction's end now: it may go on to write from there. */
  if (connection->pending == VFS_PENDING_COMMIT) connection->snapshot = connection->database->header;
  give_ticket(connection);
  /* Nor may such a cursor show more of what is not committed. */
  if (changed_nothing && !settle_seen(connection, connection->base_sequence, deadline_of(connection)))
    connection->gate = connection->base_sequence;
  return code;
}

static int shm_lock(sqlite3_file *file, int offset, int n, int flags) {
  struct vfs_connection *connection = connection_of(file);
  bool is_lock = (flags & SQLITE_SHM_LOCK) != 0;
  bool is_shared = (flags & SQLITE_SHM_SHARED) != 0;
  if (vfs_is_forked_child()) return is_lock ? refuse_forked(connection) : SQLITE_OK;
  if (offset >= VFS_WAL_LOCK_READ(0)) {
    if (is_shared) return is_lock ? read_lock(connection, offset, flags) : read_unlock(connection, offset, flags);
  } else if (!is_shared) {
    if (offset == VFS_WAL_LOCK_WRITE) return is_lock ? write_lock(connection) : write_unlock(connection);
    return is_lock ? SQLITE_BUSY : SQLITE_OK;
  }
  return connection->real->pMethods->xShmLock(connection->real, offset, n, flags);
}

/* ---- The end of a COMMIT ---- */

/* A transaction that was taken back and commits after all is applied again: its connection sees it then. */
static void wait_applied(struct vfs_connection *connection, uint64_t deadline) {
  struct vfs_database *database = connection->database;
  pthread_mutex_lock(&database->mutex);
  vfs_settle(database);
  while (vfs_is_lost(database, connection->pending_sequence) &&
         database->committed.index < connection->pending_token.index) {
    if (os_condition_wait(database->os, &database->changed, &database->mutex, deadline) != 0) break;
  }
  pthread_mutex_unlock(&database->mutex);
}

/* Lost is told once the WAL shows it no longer. */
static bool wait_taken_back(struct vfs_connection *connection, uint64_t deadline) {
  struct vfs_database *database = connection->database;
  pthread_mutex_lock(&database->mutex);
  bool is_back = vfs_is_lost(database, connection->pending_sequence);
  while (!is_back) {
    if (os_condition_wait(database->os, &database->changed, &database->mutex, deadline) != 0) break;
    is_back = vfs_is_lost(database, connection->pending_sequence);
  }
  pthread_mutex_unlock(&database->mutex);
  return is_back;
}

static int tell_lost(struct vfs_connection *connection) {
  if (!connection->error[0])
    vfs_connection_fail(connection,
                        "the transaction is lost: leadership changed before a majority had it; run it again");
  return lost_code(connection);
}

static int tell_unknown(struct vfs_connection *connection) {
  vfs_connection_fail(connection,
                      "the outcome of the transaction is unknown: no majority has answered for %u ms (balsa_timeout); "
                      "SELECT balsa_outcome(balsa_last_commit()) tells it later",
                      connection->timeout_ms);
  return VFS_SQLITE_UNKNOWN;
}

static int commit_phase_two(struct vfs_connection *connection) {
  struct vfs_database *database = connection->database;
  enum vfs_pending pending = connection->pending;
  if (vfs_is_forked_child()) return refuse_forked(connection);
  connection->pending = VFS_PENDING_NONE;
  if (pending == VFS_PENDING_NONE) return SQLITE_OK;
  if (pending == VFS_PENDING_LOST) return tell_lost(connection);
  if (pending == VFS_PENDING_FULL) return SQLITE_FULL; /* the pager drops its cache */
  if (pending == VFS_PENDING_UNKNOWN) {
    connection->unsettled = 0; /* the error drops the cache */
    return connection->error[0] ? VFS_SQLITE_UNKNOWN : tell_unknown(connection);
  }
  uint64_t deadline = deadline_of(connection);
  switch (database->methods->wait(database->node, connection->pending_token, deadline)) {
  case VFS_FATE_COMMITTED: wait_applied(connection, deadline); return SQLITE_OK;
  case VFS_FATE_LOST: return wait_taken_back(connection, deadline) ? tell_lost(connection) : tell_unknown(connection);
  default: return tell_unknown(connection);
  }
}

/* ---- Reads and writes ---- */

/* Before any page is read. A mere reservation reads page 1 only, then it is a reader after all. */
static int before_read(struct vfs_connection *connection, bool is_first_page) {
  struct vfs_database *database = connection->database;
  if (atomic_load(&database->stopped)) return SQLITE_IOERR;
  if (atomic_load(&database->wal_failed) && connection->read_lock) return SQLITE_IOERR;
  if (is_doomed(connection)) {
    vfs_connection_fail(connection, "the transaction is lost: leadership ended while it was open; run it again");
    return doomed_code(connection);
  }
  if (connection->reserved && !connection->writing) {
    if (is_first_page) {
      connection->saw_speculation = true;
    } else {
      connection->gate = connection->base_sequence;
      give_ticket(connection);
    }
  }
  return connection->read_lock ? vfs_gate_pass(connection) : SQLITE_OK;
}

/* Bytes that are not what was written are never shown. What is no whole page is the header, which is read before any lock. */
static int check_read(struct vfs_connection *connection, const void *bytes, int amount, sqlite3_int64 offset) {
  struct vfs_database *database = connection->database;
  uint32_t page_size = database->page_size;
  if ((uint32_t)amount != page_size || offset % page_size != 0) return SQLITE_OK;
  if (vfs_hashes_check(database->hashes, (uint32_t)(offset / page_size) + 1, bytes, page_size)) return SQLITE_OK;
  vfs_hashes_damaged(database->hashes, connection->error);
  database->methods->want_checkpoint(database->node); /* which marks it */
  return SQLITE_IOERR_DATA;
}

static int main_read(sqlite3_file *file, void *bytes, int amount, sqlite3_int64 offset) {
  struct vfs_connection *connection = connection_of(file);
  if (vfs_is_forked_child()) return refuse_forked(connection);
  if (connection->gate || connection->reserved || connection->writing || atomic_load(&connection->database->stopped)) {
    int code = before_read(connection, offset < (sqlite3_int64)connection->database->page_size);
    if (code != SQLITE_OK) return code;
  }
  if (!atomic_load(&connection->database->ready)) {
    memset(bytes, 0, (size_t)amount);
    return SQLITE_IOERR_SHORT_READ;
  }
  int code = connection->real->pMethods->xRead(connection->real, bytes, amount, offset);
  return code == SQLITE_OK ? check_read(connection, bytes, amount, offset) : code;
}

static int main_write(sqlite3_file *file, const void *bytes, int amount, sqlite3_int64 offset) {
  (void)bytes, (void)amount, (void)offset;
  vfs_connection_fail(connection_of(file), "only the node writes the database file; commits go through the WAL");
  return SQLITE_READONLY;
}

static int main_truncate(sqlite3_file *file, sqlite3_int64 size) {
  return main_write(file, NULL, 0, size);
}

static int main_sync(sqlite3_file *file, int flags) {
  (void)file, (void)flags;
  return SQLITE_OK; /* the log is what is durable */
}

/* Until the node has made WAL and wal-index beside page 1, the database is empty to its connections. */
static int main_file_size(sqlite3_file *file, sqlite3_int64 *size) {
  sqlite3_file *real = connection_of(file)->real;
  *size = 0;
  if (!atomic_load(&connection_of(file)->database->ready)) return SQLITE_OK;
  return real->pMethods->xFileSize(real, size);
}

/* A connection that writes before the database has a first page waits for it here. */
static int main_lock(sqlite3_file *file, int level) {
  struct vfs_connection *connection = connection_of(file);
  struct vfs_database *database = connection->database;
  if (vfs_is_forked_child()) return refuse_forked(connection);
  if (atomic_load(&database->stopped)) return SQLITE_IOERR;
  if (level > SQLITE_LOCK_SHARED) {
    if (atomic_load(&database->ready)) return SQLITE_BUSY;
    return refuse_write(connection, VFS_NOBODY);
  }
  if (!atomic_load(&database->ready) && is_writing_statement(connection)) {
    uint64_t epoch = 0;
    int refusal = database->methods->acquire(database->node, vfs_connection_deadline(connection), &epoch);
    if (refusal == VFS_OK) database->methods->release(database->node, epoch);
    vfs_connection_note_wait(connection, refusal);
  }
  /* Until then the node holds the file exclusively, and there is nothing in it to be locked. */
  if (!atomic_load(&database->ready)) return SQLITE_OK;
  return connection->real->pMethods->xLock(connection->real, level);
}

static int main_unlock(sqlite3_file *file, int level) {
  sqlite3_file *real = connection_of(file)->real;
  if (vfs_is_forked_child()) return SQLITE_OK;
  return real->pMethods->xUnlock(real, level);
}

static int main_check_reserved(sqlite3_file *file, int *result) {
  (void)file;
  *result = 0;
  return SQLITE_OK;
}

/* ---- File controls and pragmas ---- */

static int pragma_journal_mode(const char *value, char **result) {
  if (!value || sqlite3_stricmp(value, "wal") == 0) return SQLITE_NOTFOUND;
  *result = sqlite3_mprintf("a replicated database stays in WAL mode: journal_mode=%s is refused", value);
  return SQLITE_ERROR;
}

static int pragma_locking_mode(const char *value, char **result) {
  if (!value || sqlite3_stricmp(value, "exclusive") != 0) return SQLITE_NOTFOUND;
  *result = sqlite3_mprintf("locking_mode=EXCLUSIVE is refused: the node must be able to apply and checkpoint");
  return SQLITE_ERROR;
}

static int pragma_timeout(struct vfs_connection *connection, const char *value, char **result) {
  if (value) {
    char *end = NULL;
    unsigned long long milliseconds = strtoull(value, &end, 10);
    if (!*value || *end || *value == '-' || milliseconds == 0 || milliseconds > VFS_TIMEOUT_MS_MAX) {
      *result = sqlite3_mprintf("balsa_timeout takes milliseconds, 1 to %u, not '%s'", VFS_TIMEOUT_MS_MAX, value);
      return SQLITE_ERROR;
    }
    connection->timeout_ms = (uint32_t)milliseconds;
  }
  *result = sqlite3_mprintf("%u", connection->timeout_ms);
  return SQLITE_OK;
}

static int pragma_strict(struct vfs_connection *connection, const char *value, char **result) {
  static const char *const words[] = {"off", "0", "no", "false", "on", "1", "yes", "true"};
  if (value) {
    size_t i = 0;
    while (i < 8 && sqlite3_stricmp(value, words[i]) != 0) i++;
    if (i == 8) {
      *result = sqlite3_mprintf("balsa_strict is on or off, not '%s'", value);
      return SQLITE_ERROR;
    }
    connection->strict = i >= 4;
  }
  *result = sqlite3_mprintf("%d", connection->strict);
  return SQLITE_OK;
}

static int pragma(struct vfs_connection *connection, char **arguments) {
  const char *name = arguments[1];
  if (sqlite3_stricmp(name, "journal_mode") == 0) return pragma_journal_mode(arguments[2], &arguments[0]);
  if (sqlite3_stricmp(name, "locking_mode") == 0) return pragma_locking_mode(arguments[2], &arguments[0]);
  if (sqlite3_stricmp(name, "balsa_timeout") == 0) return pragma_timeout(connection, arguments[2], &arguments[0]);
  if (sqlite3_stricmp(name, "balsa_strict") == 0) return pragma_strict(connection, arguments[2], &arguments[0]);
  return SQLITE_NOTFOUND;
}

static int main_control(sqlite3_file *file, int op, void *argument) {
  struct vfs_connection *connection = connection_of(file);
  switch (op) {
  case SQLITE_FCNTL_PDB:
    pthread_mutex_lock(&connections_mutex);
    if (connection->handle && connection->handle != *(sqlite3 **)argument)
      atomic_store(&connection->has_shared_cache, true);
    connection->handle = *(sqlite3 **)argument;
    pthread_mutex_unlock(&connections_mutex);
    return SQLITE_OK;
  case SQLITE_FCNTL_COMMIT_PHASETWO: return commit_phase_two(connection);
  case SQLITE_FCNTL_PRAGMA: return pragma(connection, argument);
  case VFS_FCNTL_CONNECTION: *(struct vfs_connection **)argument = connection; return SQLITE_OK;
  case SQLITE_FCNTL_VFSNAME:
    *(char **)argument = sqlite3_mprintf(VFS_NAME "/%s", connection->database->base->zName);
    return SQLITE_OK;
  case SQLITE_FCNTL_CHUNK_SIZE:
  case SQLITE_FCNTL_SIZE_HINT: return SQLITE_OK; /* the node sizes the file */
  default: return connection->real->pMethods->xFileControl(connection->real, op, argument);
  }
}

static int main_sector_size(sqlite3_file *file) {
  sqlite3_file *real = connection_of(file)->real;
  return real->pMethods->xSectorSize(real);
}

/* Without POWERSAFE_OVERWRITE sqlite3WalFrames pads a commit with repeated frames. */
static int main_characteristics(sqlite3_file *file) {
  sqlite3_file *real = connection_of(file)->real;
  return real->pMethods->xDeviceCharacteristics(real) | SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

static int main_shm_map(sqlite3_file *file, int region, int size, int extend, void volatile **map) {
  struct vfs_connection *connection = connection_of(file);
  int code = connection->real->pMethods->xShmMap(connection->real, region, size, extend, map);
  if (code == SQLITE_OK && *map && atomic_load(&connection->database->ready))
    *map = vfs_wal_region_for_connection(connection->database->wal, (uint32_t)region, (void *)*map);
  return code;
}

static void main_shm_barrier(sqlite3_file *file) {
  sqlite3_file *real = connection_of(file)->real;
  real->pMethods->xShmBarrier(real);
}

static int main_shm_unmap(sqlite3_file *file, int delete_it) {
  (void)delete_it; /* the node's own handle keeps it */
  sqlite3_file *real = connection_of(file)->real;
  if (vfs_is_forked_child()) return SQLITE_OK;
  return real->pMethods->xShmUnmap(real, 0);
}

static void unregister(struct vfs_connection *connection) {
  pthread_mutex_lock(&connections_mutex);
  struct vfs_connection **at = &connections;
  while (*at != connection) at = &(*at)->next;
  *at = connection->next;
  pthread_mutex_unlock(&connections_mutex);
}

static int main_close(sqlite3_file *file) {
  struct vfs_connection *connection = connection_of(file);
  if (vfs_is_forked_child()) return SQLITE_OK; /* a thread that is gone may hold any of the locks on the way */
  if (connection->reserved || connection->writing) give_ticket(connection);
  unregister(connection);
  int code = connection->real->pMethods->xClose(connection->real);
  vfs_database_detach(connection->database);
  connection->file.pMethods = NULL;
  return code;
}

/* Version 2: no xFetch, so that every page that SQLite does not have yet comes through xRead. */
static const sqlite3_io_methods main_methods = {
    .iVersion = 2,
    .xClose = main_close,
    .xRead = main_read,
    .xWrite = main_write,
    .xTruncate = main_truncate,
    .xSync = main_sync,
    .xFileSize = main_file_size,
    .xLock = main_lock,
    .xUnlock = main_unlock,
    .xCheckReservedLock = main_check_reserved,
    .xFileControl = main_control,
    .xSectorSize = main_sector_size,
    .xDeviceCharacteristics = main_characteristics,
    .xShmMap = main_shm_map,
    .xShmLock = shm_lock,
    .xShmBarrier = main_shm_barrier,
    .xShmUnmap = main_shm_unmap,
};

int vfs_connection_open(struct vfs_connection *connection, struct vfs_database *database, int flags) {
  connection->database = database;
  connection->read_only = (flags & SQLITE_OPEN_READONLY) != 0;
  connection->timeout_ms = database->commit_timeout_ms;
  pthread_mutex_lock(&connections_mutex);
  connection->next = connections;
  connections = connection;
  pthread_mutex_unlock(&connections_mutex);
  connection->file.pMethods = &main_methods;
  return SQLITE_OK;
}

/* ---- Whose is it ---- */

bool vfs_is_connection(const sqlite3_file *file) {
  return file && file->pMethods == &main_methods;
}

bool vfs_has_connection(const sqlite3 *handle) {
  pthread_mutex_lock(&connections_mutex);
  const struct vfs_connection *at = connections;
  while (at && at->handle != handle) at = at->next;
  pthread_mutex_unlock(&connections_mutex);
  return at != NULL;
}

bool vfs_is_wal_of_connection(const char *name) {
  bool found = false;
  pthread_mutex_lock(&connections_mutex);
  for (const struct vfs_connection *at = connections; at && !found; at = at->next) {
    size_t length = strlen(at->database->path);
    found = strncmp(name, at->database->path, length) == 0 && strcmp(name + length, "-wal") == 0;
  }
  pthread_mutex_unlock(&connections_mutex);
  return found;
}

/* ---- The WAL file ---- */

static struct vfs_wal_file *wal_of(sqlite3_file *file) {
  return (struct vfs_wal_file *)file;
}

static uint32_t frame_at(const struct vfs_database *database, sqlite3_int64 offset) {
  if (offset < VFS_WAL_HEADER_SIZE) return 0;
  return (uint32_t)((offset - VFS_WAL_HEADER_SIZE) / (VFS_WAL_FRAME_HEADER_SIZE + (sqlite3_int64)database->page_size)) +
         1;
}

static int wal_read(sqlite3_file *file, void *bytes, int amount, sqlite3_int64 offset) {
  struct vfs_wal_file *wal = wal_of(file);
  struct vfs_connection *connection = wal->connection;
  struct vfs_database *database = connection->database;
  if (vfs_is_forked_child()) return refuse_forked(connection);
  if (connection->gate || connection->reserved || connection->writing || atomic_load(&database->stopped)) {
    uint32_t frame = frame_at(database, offset);
    bool is_first_page = connection->reserved && frame && vfs_wal_frame_page(database->wal, frame) == 1;
    int code = before_read(connection, is_first_page);
    if (code != SQLITE_OK) return code;
  }
  return wal->real->pMethods->xRead(wal->real, bytes, amount, offset);
}

static int wal_write(sqlite3_file *file, const void *bytes, int amount, sqlite3_int64 offset) {
  struct vfs_wal_file *wal = wal_of(file);
  struct vfs_connection *connection = wal->connection;
  struct vfs_database *database = connection->database;
  if (vfs_is_forked_child()) return refuse_forked(connection);
  if (is_doomed(connection) || atomic_load(&database->stopped)) {
    vfs_connection_fail(connection, "the transaction is lost: leadership ended while it was open; run it again");
    return doomed_code(connection);
  }
  if (amount == VFS_WAL_FRAME_HEADER_SIZE) {
    int code = vfs_reserve_frame(connection, frame_at(database, offset));
    if (code != SQLITE_OK) return code;
    if (writes_other_file(connection, false)) return SQLITE_ERROR;
  }
  return wal->real->pMethods->xWrite(wal->real, bytes, amount, offset);
}

static int wal_close(sqlite3_file *file) {
  sqlite3_file *real = wal_of(file)->real;
  int code = real->pMethods->xClose(real);
  file->pMethods = NULL;
  return code;
}
static int wal_truncate(sqlite3_file *file, sqlite3_int64 size) {
  (void)file, (void)size;
  return SQLITE_OK; /* the node keeps the WAL's size */
}
static int wal_sync(sqlite3_file *file, int flags) {
  (void)file, (void)flags;
  return SQLITE_OK; /* a cache: thrown away at start */
}
static int wal_file_size(sqlite3_file *file, sqlite3_int64 *size) {
  sqlite3_file *real = wal_of(file)->real;
  return real->pMethods->xFileSize(real, size);
}
static int wal_lock(sqlite3_file *file, int level) {
  (void)file, (void)level;
  return SQLITE_OK;
}
static int wal_check_reserved(sqlite3_file *file, int *result) {
  return main_check_reserved(file, result);
}
static int wal_control(sqlite3_file *file, int op, void *argument) {
  (void)file, (void)op, (void)argument;
  return SQLITE_NOTFOUND;
}
static int wal_sector_size(sqlite3_file *file) {
  sqlite3_file *real = wal_of(file)->real;
  return real->pMethods->xSectorSize(real);
}
static int wal_characteristics(sqlite3_file *file) {
  sqlite3_file *real = wal_of(file)->real;
  return real->pMethods->xDeviceCharacteristics(real) | SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

const sqlite3_io_methods vfs_wal_methods = {
    .iVersion = 1,
    .xClose = wal_close,
    .xRead = wal_read,
    .xWrite = wal_write,
    .xTruncate = wal_truncate,
    .xSync = wal_sync,
    .xFileSize = wal_file_size,
    .xLock = wal_lock,
    .xUnlock = wal_lock,
    .xCheckReservedLock = wal_check_reserved,
    .xFileControl = wal_control,
    .xSectorSize = wal_sector_size,
    .xDeviceCharacteristics = wal_characteristics,
};

/* ---- For SQL functions ---- */

struct vfs_connection *vfs_connection_find(sqlite3 *db, const char *schema) {
  struct vfs_connection *found = NULL;
  if (schema) {
    if (sqlite3_file_control(db, schema, VFS_FCNTL_CONNECTION, &found) != SQLITE_OK) return NULL;
    return found;
  }
  for (int i = 0; !found && (schema = sqlite3_db_name(db, i)) != NULL; i++)
    sqlite3_file_control(db, schema, VFS_FCNTL_CONNECTION, &found);
  return found;
}

struct vfs_database *vfs_connection_database(struct vfs_connection *connection) {
  return connection->database;
}
struct vfs_token vfs_connection_last_commit(struct vfs_connection *connection) {
  return connection->last_commit;
}
void vfs_connection_set_error(struct vfs_connection *connection, const char *text) {
  vfs_connection_fail(connection, "%s", text);
}

const char *vfs_connection_error(struct vfs_connection *connection) {
  return connection->error;
}
bool vfs_connection_is_writing(struct vfs_connection *connection) {
  return connection->writing || connection->reserved;
}
uint32_t vfs_connection_timeout_ms(struct vfs_connection *connection) {
  return connection->timeout_ms;
}
