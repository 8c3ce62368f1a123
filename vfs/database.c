/*
** One replicated database in this process: its files, from the moment the node takes them until it lets go.
**
** In the folder <database>-balsa/ vfs/ keeps `lock` (ownership.h) and `database` (marks.h).
*/
#include "database.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/bytes.h"

/* How long a start waits for the read transactions of a plain process that has the file open. */
#define START_READERS_MS 5000
/* The last checkpoint of a stop tries again after this. */
#define STOP_PAUSE (2 * OS_MS)

int vfs_error_of_sqlite(int code) {
  if (code == SQLITE_IOERR_SHMSIZE) return VFS_NO_SPACE; /* as src/os_unix.c says that a -shm cannot grow */
  switch (code & 0xff) {
  case SQLITE_OK: return VFS_OK;
  case SQLITE_FULL: return VFS_NO_SPACE;
  case SQLITE_NOMEM: return VFS_NO_MEMORY;
  case SQLITE_BUSY:
  case SQLITE_PROTOCOL: return VFS_BUSY;
  default: return VFS_IO;
  }
}

static int error_of_errno(int error) {
  switch (error) {
  case 0: return VFS_OK;
  case -ENOSPC:
  case -EDQUOT: return VFS_NO_SPACE;
  case -ENOMEM: return VFS_NO_MEMORY;
  case -EBUSY: return VFS_BUSY;
  case -EILSEQ:
  case -EPROTO: return VFS_DAMAGED;
  default: return VFS_IO;
  }
}

const char *vfs_error_text(int error) {
  switch (error) {
  case VFS_OK: return "no error";
  case VFS_NOT_HERE: return "another node leads";
  case VFS_NOBODY: return "no node leads";
  case VFS_STOPPED: return "the node has stopped";
  case VFS_NO_MEMORY: return "out of memory";
  case VFS_NO_SPACE: return "a disk is full; make room";
  case VFS_IO: return "a disk failed (see the system's log)";
  case VFS_DIFFERS: return "this replica differs from the log";
  case VFS_DAMAGED: return "a change set or a file makes no sense";
  case VFS_BUSY: return "a reader or writer is in the way";
  case VFS_TOO_LARGE: return "it is too large";
  case VFS_REFUSED: return "that cannot be done";
  default: return "unknown error";
  }
}

void vfs_set_blocked(struct vfs_database *database, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  pthread_mutex_lock(&database->mutex);
  vsnprintf(database->blocked, sizeof database->blocked, format, arguments);
  pthread_mutex_unlock(&database->mutex);
  va_end(arguments);
}

void vfs_set_notice(struct vfs_database *database, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  pthread_mutex_lock(&database->mutex);
  vsnprintf(database->notice, sizeof database->notice, format, arguments);
  pthread_mutex_unlock(&database->mutex);
  va_end(arguments);
  vfs_log(SQLITE_WARNING, database->notice);
}

static const char pause_holder[] = "pause"; /* its address counts */

int vfs_pause(struct vfs_database *database, uint64_t deadline) {
  return vfs_ticket_take(&database->ticket, pause_holder, VFS_TICKET_FRONT, deadline) ? VFS_OK : VFS_BUSY;
}

void vfs_resume(struct vfs_database *database) {
  vfs_ticket_give(&database->ticket, pause_holder);
}

int vfs_write_marks(struct vfs_database *database, const struct vfs_marks *marks) {
  int error = error_of_errno(vfs_marks_write(database->marks_file, marks));
  if (error) return error;
  pthread_mutex_lock(&database->mutex);
  database->marks = *marks;
  pthread_mutex_unlock(&database->mutex);
  return VFS_OK;
}

/* ---- Open ---- */

sqlite3_file *vfs_open_base(struct vfs_database *database, const char *name, int flags, int *code) {
  sqlite3_file *file = calloc(1, (size_t)database->base->szOsFile);
  int out_flags = 0;
  *code = file ? database->base->xOpen(database->base, name, file, flags, &out_flags) : SQLITE_NOMEM;
  if (*code == SQLITE_OK) return file;
  free(file);
  return NULL;
}

void vfs_close_base(sqlite3_file **file) {
  if (!*file) return;
  (*file)->pMethods->xClose(*file);
  free(*file);
  *file = NULL;
}

int vfs_database_set_page_size(struct vfs_database *database, uint32_t page_size) {
  if (database->page_size == page_size && database->encoder) return VFS_OK;
  vfs_encoder_free(database->encoder);
  vfs_decoder_free(database->decoder);
  free(database->before);
  free(database->after);
  database->encoder = vfs_encoder_new(page_size);
  database->decoder = vfs_decoder_new(page_size);
  database->before = malloc(page_size);
  database->after = malloc(page_size);
  pthread_mutex_lock(&database->mutex); /* vfs_get_status may come at any time */
  database->page_size = page_size;
  pthread_mutex_unlock(&database->mutex);
  bool ok = database->encoder && database->decoder && database->before && database->after;
  return ok ? VFS_OK : VFS_NO_MEMORY;
}

/* What the file's header says. */
static int look(struct vfs_database *database, struct vfs_found *found, char *text) {
  uint8_t header[100] = {0};
  sqlite3_int64 size = 0;
  int code = database->file->pMethods->xFileSize(database->file, &size);
  found->has_content = size > 0;
  if (code == SQLITE_OK && size > 0) code = database->file->pMethods->xRead(database->file, header, sizeof header, 0);
  if (code == SQLITE_IOERR_SHORT_READ || (size > 0 && memcmp(header, "SQLite format 3", 16) != 0)) {
    snprintf(text, VFS_TEXT_MAX, "%s is not a SQLite database", database->path);
    return VFS_DAMAGED;
  }
  if (code != SQLITE_OK) {
    snprintf(text, VFS_TEXT_MAX, "%s cannot be read (SQLite error %d)", database->path, code);
    return VFS_IO;
  }
  uint32_t page_size = (uint32_t)header[16] << 8 | header[17];
  found->page_size = page_size == 1 ? 65536 : page_size;
  if (found->has_content) found->pages = (uint32_t)(size / found->page_size);
  found->auto_vacuum = header[55] || header[54] || header[53] || header[52] ? (header[67] ? 2 : 1) : 0;
  return VFS_OK;
}

static int open_files(struct vfs_database *database, const char *aside, struct vfs_found *found, char *text) {
  char path[OS_PATH_MAX];
  int code = SQLITE_OK;
  database->file = vfs_open_base(database, database->name,
                                 SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &code);
  if (!database->file) {
    snprintf(text, VFS_TEXT_MAX, "%s cannot be opened for writing (SQLite error %d)", database->path, code);
    return VFS_IO;
  }
  int error = error_of_errno(
      vfs_ownership_take(database->os, database->path, database->folder, &database->ownership, text));
  if (!error && aside) error = vfs_set_aside(database, aside, text);
  if (error) return error;
  snprintf(path, sizeof path, "%s/database", database->folder);
  error = vfs_marks_open(database->os, path, &database->marks, &found->has_marks, &database->marks_file);
  if (error) {
    snprintf(text, VFS_TEXT_MAX, "%s: %s; restore it from a copy, or remove the folder to start as a new node", path,
             error == -EILSEQ   ? "both records are damaged"
             : error == -EPROTO ? "written by another program or version"
                                : strerror(-error));
    return error_of_errno(error);
  }
  found->checkpointed = database->marks.checkpointed;
  found->begun = database->marks.begun;
  found->set_index = database->marks.set_index;
  error = look(database, found, text);
  if (error && found->has_marks) { /* the log is the truth: redo makes it again */
    found->has_content = true;
    found->page_size = database->marks.page_size;
    error = VFS_OK;
  }
  return error;
}

int vfs_database_open(const struct vfs_database_options *options, struct vfs_database **out, struct vfs_found *found,
                      char *text) {
  char journal[OS_PATH_MAX], wal[OS_PATH_MAX];
  struct vfs_database *database = calloc(1, sizeof *database);
  *out = NULL;
  memset(found, 0, sizeof *found);
  if (!database) return VFS_NO_MEMORY;
  database->os = options->os;
  database->base = options->base;
  database->methods = options->methods;
  database->node = options->node;
  database->commit_timeout_ms = options->commit_timeout_ms;
  database->part_bytes = options->part_bytes ? options->part_bytes : VFS_PART_BYTES;
  database->wal_limit_frames = options->wal_limit_frames ? options->wal_limit_frames : VFS_WAL_LIMIT_FRAMES;
  vfs_ticket_init(&database->ticket, database->os);
  pthread_mutex_init(&database->checkpoint, NULL);
  pthread_mutex_init(&database->mutex, NULL);
  os_condition_init(&database->changed);
  snprintf(journal, sizeof journal, "%s-journal", options->path);
  snprintf(wal, sizeof wal, "%s-wal", options->path);
  database->path = strdup(options->path);
  database->folder = strdup(options->folder);
  database->name = sqlite3_create_filename(options->path, journal, wal, 0, NULL);
  database->hashes = vfs_hashes_new(options->path);
  database->boundaries = malloc(VFS_BOUNDARIES_MAX * sizeof *database->boundaries);
  int error = VFS_NO_MEMORY;
  if (database->path && database->folder && database->name && database->boundaries && database->hashes)
    error = open_files(database, options->set_aside, found, text);
  if (error)
    vfs_database_close(database);
  else
    *out = database;
  return error;
}

int vfs_database_lock_files(struct vfs_database *database, char *text) {
  if (database->is_locked) return VFS_OK;
  int error = vfs_ownership_lock_files(database->ownership, START_READERS_MS, &database->is_alone, text);
  database->is_locked = error == 0;
  return error_of_errno(error);
}

/* ---- A database that exists already ---- */

static int run(sqlite3 *db, const char *sql, const char *path, char *text) {
  char *message = NULL;
  int code = sqlite3_exec(db, sql, NULL, NULL, &message);
  if (code != SQLITE_OK) snprintf(text, VFS_TEXT_MAX, "%s: %s: %s", path, sql, message ? message : "failed");
  sqlite3_free(message);
  bool is_damaged = (code & 0xff) == SQLITE_CORRUPT || (code & 0xff) == SQLITE_NOTADB;
  return is_damaged ? VFS_DAMAGED : vfs_error_of_sqlite(code);
}

/* Its own -wal or -journal goes into the file. */
static int recover_plain(struct vfs_database *database, int (*check)(sqlite3 *db, const char *path, char *text),
                         char *text) {
  sqlite3 *db = NULL;
  int code = sqlite3_open_v2(database->path, &db, SQLITE_OPEN_READWRITE, database->base->zName);
  int error = code == SQLITE_OK ? VFS_OK : vfs_error_of_sqlite(code);
  if (error) snprintf(text, VFS_TEXT_MAX, "%s cannot be opened: %s", database->path, sqlite3_errmsg(db));
  if (!error) error = run(db, "PRAGMA schema_version", database->path, text); /* recovers a -journal */
  if (!error) error = run(db, "PRAGMA journal_mode=WAL", database->path, text);
  if (!error) error = run(db, "PRAGMA wal_checkpoint(TRUNCATE)", database->path, text);
  if (!error && check) error = check(db, database->path, text);
  sqlite3_close(db);
  return error;
}

static int lock_alone(struct vfs_database *database, const char *why, char *text) {
  int error = vfs_database_lock_files(database, text);
  if (error || database->is_alone) return error;
  snprintf(text, VFS_TEXT_MAX, "%s is open in another program; close it there while %s", database->path, why);
  return VFS_BUSY;
}

int vfs_database_adopt(struct vfs_database *database, struct vfs_found *found, char *text) {
  int error = recover_plain(database, NULL, text);
  if (!error) error = lock_alone(database, "the database becomes a replicated one", text);
  if (!error) error = look(database, found, text);
  if (!error) error = vfs_database_set_page_size(database, found->page_size);
  return error;
}

static int is_whole(sqlite3 *db, const char *path, char *text) {
  sqlite3_stmt *statement = NULL;
  int code = sqlite3_prepare_v2(db, "PRAGMA integrity_check(1)", -1, &statement, NULL);
  if (code == SQLITE_OK) code = sqlite3_step(statement);
  const char *told = code == SQLITE_ROW ? (const char *)sqlite3_column_text(statement, 0) : sqlite3_errmsg(db);
  bool is_ok = code == SQLITE_ROW && told && strcmp(told, "ok") == 0;
  if (!is_ok) snprintf(text, VFS_TEXT_MAX, "%s: integrity_check: %s", path, told ? told : "out of memory");
  sqlite3_finalize(statement);
  if (is_ok) return VFS_OK;
  bool is_damaged = code == SQLITE_ROW || (code & 0xff) == SQLITE_CORRUPT || (code & 0xff) == SQLITE_NOTADB;
  return is_damaged ? VFS_DAMAGED : vfs_error_of_sqlite(code);
}

int vfs_database_find_edit(struct vfs_database *database, uint64_t log_last, bool *is_edited, char *text) {
  struct vfs_found now = {0};
  bool is_known = true;
  *is_edited = false;
  if (!database->marks.stopped_in_order || vfs_trust(database) != VFS_TRUST_CHANGED) return VFS_OK;
  int error = look(database, &now, text);
  if (!error && !now.has_content) return VFS_OK;
  if (!error) error = recover_plain(database, is_whole, text);
  if (!error) error = lock_alone(database, "its change becomes a transaction of the log", text);
  if (!error) error = look(database, &now, text);
  /* No database any more, or one that the log cannot go on with: it is set aside when the file is made again. */
  if (error == VFS_DAMAGED || (!error && now.page_size != database->marks.page_size)) {
    vfs_log(SQLITE_WARNING, error ? text : "another page size than before");
    text[0] = 0;
    return VFS_OK;
  }
  if (!error) error = vfs_database_set_page_size(database, now.page_size);
  if (!error) error = vfs_outside_is_known(database, log_last, &is_known, text);
  *is_edited = !error && !is_known;
  if (*is_edited)
    vfs_set_notice(database,
                   "%.250s was changed by another program after its node had been stopped: the change has become a "
                   "transaction of its own",
                   database->path);
  return error;
}

int vfs_database_export(struct vfs_database *database, int (*each)(void *ctx, const struct vfs_change_set *set),
                        void *ctx, char *text) {
  sqlite3_int64 size = 0;
  struct vfs_change_set set = {.page_size = database->page_size};
  if (database->file->pMethods->xFileSize(database->file, &size) != SQLITE_OK) return VFS_IO;
  set.pages = (uint32_t)(size / database->page_size);
  uint32_t lock_page = vfs_lock_page(database->page_size);
  vfs_encoder_reset(database->encoder);
  for (uint32_t page_number = 1; page_number <= set.pages; page_number++) {
    bool is_last = page_number == set.pages;
    if (page_number != lock_page) {
      sqlite3_int64 offset = (sqlite3_int64)(page_number - 1) * database->page_size;
      if (database->file->pMethods->xRead(database->file, database->after, (int)database->page_size, offset) !=
          SQLITE_OK) {
        snprintf(text, VFS_TEXT_MAX, "%s: page %u cannot be read", database->path, page_number);
        return VFS_IO;
      }
      set.checksum ^= vfs_page_hash(page_number, database->after, database->page_size);
      if (!vfs_encoder_add(database->encoder, page_number, NULL, database->after)) return VFS_NO_MEMORY;
    }
    if (!is_last && vfs_encoder_size(database->encoder) < database->part_bytes) continue;
    if (!vfs_encoder_finish(database->encoder, &set.bytes, &set.size)) return VFS_NO_MEMORY;
    set.flags = is_last ? VFS_SET_LAST : VFS_SET_PART;
    int error = each(ctx, &set);
    if (error) return error;
    vfs_encoder_reset(database->encoder);
  }
  database->export_checksum = set.checksum;
  return VFS_OK;
}

int vfs_database_mark(struct vfs_database *database, uint64_t index, char *text) {
  sqlite3_int64 size = 0;
  int code = database->file->pMethods->xFileSize(database->file, &size);
  if (code == SQLITE_OK) code = database->file->pMethods->xSync(database->file, SQLITE_SYNC_NORMAL);
  struct vfs_marks marks = {
      .begun = index,
      .checkpointed = index,
      .set_index = index,
      .checksum = database->export_checksum,
      .page_size = database->page_size,
      .pages = (uint32_t)(size / database->page_size),
  };
  vfs_draw_nonce(database, &marks);
  int error = code == SQLITE_OK ? vfs_write_marks(database, &marks) : vfs_error_of_sqlite(code);
  if (error) snprintf(text, VFS_TEXT_MAX, "%s: %s", database->folder, vfs_error_text(error));
  return error;
}

/* ---- WAL and wal-index ---- */

void vfs_remove_beside(struct vfs_database *database) {
  static const char *const suffixes[] = {"-wal", "-shm", "-journal"};
  char path[OS_PATH_MAX];
  if (!database->is_alone) return;
  for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
    snprintf(path, sizeof path, "%s%s", database->path, suffixes[i]);
    os_remove(database->os, path);
  }
}

int vfs_database_begin_wal(struct vfs_database *database, uint32_t pages, char *text) {
  int code = SQLITE_OK;
  uint32_t salt[2];
  os_random(database->os, salt, sizeof salt);
  vfs_remove_beside(database);
  database->wal_file = vfs_open_base(database, sqlite3_filename_wal(database->name),
                                     SQLITE_OPEN_WAL | SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &code);
  if (code == SQLITE_OK) code = vfs_wal_open(database->file, database->wal_file, database->page_size, &database->wal);
  if (code == SQLITE_OK) vfs_wal_set_hashes(database->wal, database->hashes);
  if (code == SQLITE_OK) code = vfs_wal_init(database->wal, pages, salt, database->is_alone);
  if (code == SQLITE_OK) code = vfs_wal_read_header(database->wal, &database->header);
  if (code != SQLITE_OK) {
    snprintf(text, VFS_TEXT_MAX, "%s: its -wal and -shm cannot be made (SQLite error %d)", database->path, code);
    return vfs_error_of_sqlite(code);
  }
  vfs_refresh_nonce(database);
  /* Names that are gone at the next start were removed by somebody. */
  char folder[OS_PATH_MAX];
  vfs_folder_of(database->path, folder, sizeof folder);
  int error = error_of_errno(os_sync_directory(database->os, folder));
  if (error) snprintf(text, VFS_TEXT_MAX, "%s cannot be synced: %s", folder, vfs_error_text(error));
  if (!error) error = error_of_errno(vfs_ownership_settle(database->ownership, text));
  if (!error) atomic_store(&database->ready, true);
  return error;
}

void vfs_folder_of(const char *path, char *folder, size_t size) {
  snprintf(folder, size, "%s", path);
  char *slash = strrchr(folder, '/');
  if (slash)
    slash[slash == folder] = 0;
  else
    snprintf(folder, size, ".");
}

int vfs_database_create(struct vfs_database *database, uint32_t page_size, uint32_t auto_vacuum, char *text) {
  char folder[OS_PATH_MAX];
  int error = vfs_database_lock_files(database, text);
  if (!error) error = vfs_database_set_page_size(database, page_size);
  if (error) return error;
  vfs_first_page(database->after, page_size, auto_vacuum);
  struct vfs_marks marks = {
      .pages = 1, .page_size = page_size, .checksum = vfs_page_hash(1, database->after, page_size)};
  vfs_draw_nonce(database, &marks);
  error = vfs_write_marks(database, &marks); /* before the page: a file with content and no marks is somebody else's */
  int code = SQLITE_OK;
  if (!error) code = database->file->pMethods->xWrite(database->file, database->after, (int)page_size, 0);
  if (!error && code == SQLITE_OK) code = database->file->pMethods->xSync(database->file, SQLITE_SYNC_NORMAL);
  vfs_folder_of(database->path, folder, sizeof folder);
  if (!error && code == SQLITE_OK && os_sync_directory(database->os, folder) != 0) code = SQLITE_IOERR;
  if (!error) error = vfs_error_of_sqlite(code);
  if (error) {
    snprintf(text, VFS_TEXT_MAX, "%s: its first page cannot be written: %s", database->path, vfs_error_text(error));
    return error;
  }
  if (!database->is_started) return VFS_OK;
  pthread_mutex_lock(&database->mutex);
  database->committed = database->captured = (struct vfs_state){.sequence = 1, .checksum = marks.checksum, .pages = 1};
  pthread_mutex_unlock(&database->mutex);
  return vfs_database_begin_wal(database, 1, text);
}

int vfs_database_start(struct vfs_database *database, const struct vfs_start_options *options, uint64_t *applied,
                       char *text) {
  sqlite3_int64 size = 0;
  int error = vfs_database_lock_files(database, text);
  if (error) return error;
  *applied = options->commit_index;
  if (database->file->pMethods->xFileSize(database->file, &size) != SQLITE_OK) return VFS_IO;
  if (size == 0 && options->page_size == 0 && database->marks.page_size == 0) {
    database->is_started = true; /* vfs_database_create comes later */
    return VFS_OK;
  }
  uint32_t own_page_size = database->marks.page_size ? database->marks.page_size : options->page_size;
  error = vfs_database_set_page_size(database, own_page_size);
  text[0] = 0;
  if (!error) error = vfs_redo(database, options, applied, text);
  if (error) {
    if (!text[0]) snprintf(text, VFS_TEXT_MAX, "%s: redo from the log: %s", database->path, vfs_error_text(error));
    return error;
  }
  database->is_started = true;
  return vfs_database_begin_wal(database, database->committed.pages, text);
}

/* ---- Stop ---- */

/* checkpoint done, ticket held: the WAL is empty and the file is all there is. */
static void mark_stopped(struct vfs_database *database) {
  struct vfs_marks marks = database->marks;
  struct vfs_wal_header live;
  if (vfs_wal_read_header(database->wal, &live) != SQLITE_OK || live.max_frame != 0) return;
  if (database->committed.index != marks.set_index) return;
  if (database->wal_file->pMethods->xTruncate(database->wal_file, 0) != SQLITE_OK) return;
  vfs_stat_file(database, &marks);
  marks.stopped_in_order = true;
  marks.is_suspect = vfs_hashes_damaged(database->hashes, NULL);
  vfs_write_marks(database, &marks);
}

static void pause_stop(struct vfs_database *database) {
  pthread_mutex_lock(&database->mutex);
  os_condition_wait(database->os, &database->changed, &database->mutex, os_now(database->os) + STOP_PAUSE);
  pthread_mutex_unlock(&database->mutex);
}

void vfs_database_stop(struct vfs_database *database, uint64_t deadline) {
  char text[VFS_TEXT_MAX];
  const char *holder = "stop";
  atomic_store(&database->stopped, true);
  vfs_epoch_lost(database);
  if (!atomic_load(&database->ready)) return;
  if (!vfs_ticket_take(&database->ticket, holder, VFS_TICKET_FRONT, deadline)) return;
  vfs_parts_cancel(database); /* nothing more of it will come, and it would keep the WAL from being emptied */
  vfs_ticket_give(&database->ticket, holder);
  while (vfs_checkpoint_until(database, deadline, text) == VFS_BUSY && os_now(database->os) < deadline)
    pause_stop(database);
  if (!vfs_ticket_take(&database->ticket, holder, VFS_TICKET_FRONT, deadline)) return;
  mark_stopped(database);
  vfs_ticket_give(&database->ticket, holder);
}

void vfs_database_close(struct vfs_database *database) {
  vfs_wal_close(database->wal);
  vfs_close_base(&database->wal_file);
  /* Also after a start that failed: what a handle leaves mapped, the unix VFS keeps for all that come after it. */
  if (database->file) database->file->pMethods->xShmUnmap(database->file, 0);
  vfs_close_base(&database->file);
  if (database->marks_file) slot_file_close(database->marks_file);
  vfs_ownership_release(database->ownership);
  vfs_encoder_free(database->encoder);
  vfs_decoder_free(database->decoder);
  if (database->name) sqlite3_free_filename(database->name);
  vfs_ticket_destroy(&database->ticket);
  pthread_mutex_destroy(&database->checkpoint);
  pthread_mutex_destroy(&database->mutex);
  pthread_cond_destroy(&database->changed);
  free(database->before);
  free(database->after);
  free(database->in_flight);
  free(database->boundaries);
  vfs_hashes_free(database->hashes);
  free(database->path);
  free(database->folder);
  free(database);
}

/* ---- Looking in ---- */

void *vfs_database_node(struct vfs_database *database) {
  return database->node;
}

void vfs_get_status(struct vfs_database *database, struct vfs_status *status) {
  memset(status, 0, sizeof *status);
  bool ready = atomic_load(&database->ready);
  pthread_mutex_lock(&database->mutex);
  if (ready) vfs_settle(database);
  status->page_size = database->page_size;
  status->pages = database->committed.pages;
  status->checksum = database->committed.checksum;
  status->index = database->committed.index;
  status->checkpointed = database->marks.checkpointed;
  memcpy(status->blocked, database->blocked, sizeof status->blocked);
  memcpy(status->notice, database->notice, sizeof status->notice);
  vfs_hashes_damaged(database->hashes, status->notice);
  status->wal_frames = database->header.max_frame;
  pthread_mutex_unlock(&database->mutex);
  status->serves_reads = !atomic_load(&database->wal_failed) && !atomic_load(&database->stopped);
}
