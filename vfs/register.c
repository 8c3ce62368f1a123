/*
** The VFS "balsa": replicated databases go through connection.c, their WALs too, all else to the base VFS.
**
** SQLite hands the VFS of a connection on to every file that the connection attaches, VACUUM INTO's among them. So a
** database is a replicated one if its URI says so, or if it is the connection's first; what is attached by a plain name is an ordinary
** file. Which of the two a plain name is, is known when SQLite tells whose file it is (SQLITE_FCNTL_PDB, still within the
** opening): until then it is a file of the default VFS, of which SQLite reads the header and nothing more.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "database.h"

static sqlite3_vfs balsa_vfs;
static const struct vfs_host *host;
static atomic_bool is_forked_child;
static atomic_bool log_has_ended;
static _Thread_local char open_error[VFS_TEXT_MAX];

static sqlite3_vfs *base_of(sqlite3_vfs *vfs) {
  return vfs->pAppData;
}

const char *vfs_open_error(void) {
  return open_error;
}

void vfs_log(int code, const char *text) {
  if (!atomic_load(&log_has_ended)) sqlite3_log(code, "balsa: %s", text);
}

void vfs_log_end(void) {
  atomic_store(&log_has_ended, true);
}

static void note_fork(void) {
  atomic_store(&is_forked_child, true);
}

bool vfs_is_forked_child(void) {
  return atomic_load_explicit(&is_forked_child, memory_order_relaxed);
}

/* The memory behind our own struct in SQLite's allocation, aligned for the base VFS's file. */
static sqlite3_file *real_file(sqlite3_file *file, size_t own_size) {
  return (sqlite3_file *)(void *)((char *)file + ((own_size + 15) & ~(size_t)15));
}

static int open_main(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out_flags) {
  struct vfs_connection *connection = (struct vfs_connection *)file;
  struct vfs_database *database = NULL;
  memset(connection, 0, sizeof *connection);
  open_error[0] = 0;
  if (vfs_is_forked_child()) {
    snprintf(open_error, sizeof open_error,
             "%s: this process was forked from one that uses Balsa; open databases after fork and exec", name);
    return SQLITE_CANTOPEN;
  }
  int code = host->attach(name, flags, &database, open_error);
  if (code != SQLITE_OK) {
    vfs_log(code, open_error);
    return code;
  }
  connection->real = real_file(file, sizeof *connection);
  code = base_of(vfs)->xOpen(base_of(vfs), name, connection->real, flags, out_flags);
  if (code != SQLITE_OK) {
    snprintf(open_error, sizeof open_error, "%s: cannot be opened (SQLite error %d)", name, code);
    host->detach(database);
    return code;
  }
  return vfs_connection_open(connection, database, flags);
}

/* ---- A plain name ---- */

#define BASE_METHODS_MAX 8 /* the default VFS has one set for each way of locking */

struct base_methods {
  sqlite3_io_methods copy; /* of `original`, with our xFileControl */
  const sqlite3_io_methods *original;
};
static struct base_methods base_methods[BASE_METHODS_MAX];
static pthread_mutex_t base_methods_mutex = PTHREAD_MUTEX_INITIALIZER;

static _Thread_local struct {
  sqlite3_file *file;
  const char *name;
  int flags;
} undecided;

static const sqlite3_io_methods *original_methods(const sqlite3_file *file) {
  return ((const struct base_methods *)(const void *)file->pMethods)->original;
}

/* Without a file: the open has failed after SQLite believed that it had not. */
static int refused_close(sqlite3_file *file) {
  file->pMethods = NULL;
  return SQLITE_OK;
}
static int refused_read(sqlite3_file *file, void *bytes, int amount, sqlite3_int64 offset) {
  (void)file, (void)bytes, (void)amount, (void)offset;
  return SQLITE_CANTOPEN;
}
static int refused_lock(sqlite3_file *file, int level) {
  (void)file;
  return level == SQLITE_LOCK_NONE ? SQLITE_OK : SQLITE_CANTOPEN;
}
static int refused_size(sqlite3_file *file, sqlite3_int64 *size) {
  (void)file;
  *size = 0;
  return SQLITE_CANTOPEN;
}
static int refused_control(sqlite3_file *file, int op, void *argument) {
  (void)file, (void)op, (void)argument;
  return SQLITE_NOTFOUND;
}
static int refused_characteristics(sqlite3_file *file) {
  (void)file;
  return 0;
}
static const sqlite3_io_methods refused_methods = {
    .iVersion = 1,
    .xClose = refused_close,
    .xRead = refused_read,
    .xFileSize = refused_size,
    .xLock = refused_lock,
    .xUnlock = refused_lock,
    .xFileControl = refused_control,
    .xSectorSize = refused_characteristics,
    .xDeviceCharacteristics = refused_characteristics,
};

/* It is a connection's first database, so a replicated one. */
static int become_main(sqlite3_file *file, const char *name, int flags, void *handle) {
  int out_flags = 0;
  original_methods(file)->xClose(file);
  int code = open_main(&balsa_vfs, name, file, flags, &out_flags);
  if (code != SQLITE_OK) {
    file->pMethods = &refused_methods;
    return code;
  }
  return file->pMethods->xFileControl(file, SQLITE_FCNTL_PDB, handle);
}

static int undecided_control(sqlite3_file *file, int op, void *argument) {
  const sqlite3_io_methods *original = original_methods(file);
  if (op != SQLITE_FCNTL_PDB || undecided.file != file) return original->xFileControl(file, op, argument);
  undecided.file = NULL;
  if (!vfs_has_connection(*(sqlite3 **)argument)) return become_main(file, undecided.name, undecided.flags, argument);
  file->pMethods = original;
  return original->xFileControl(file, op, argument);
}

static const sqlite3_io_methods *undecided_methods(const sqlite3_io_methods *original) {
  const sqlite3_io_methods *found = NULL;
  pthread_mutex_lock(&base_methods_mutex);
  for (int i = 0; i < BASE_METHODS_MAX && !found; i++) {
    struct base_methods *at = &base_methods[i];
    if (at->original == NULL) {
      at->copy = *original;
      at->copy.iVersion = original->iVersion < 2 ? original->iVersion : 2; /* as main files have it: no xFetch */
      at->copy.xFileControl = undecided_control;
      at->original = original;
    }
    if (at->original == original) found = &at->copy;
  }
  pthread_mutex_unlock(&base_methods_mutex);
  return found;
}

static int open_plain_name(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out_flags) {
  int code = base_of(vfs)->xOpen(base_of(vfs), name, file, flags, out_flags);
  if (code != SQLITE_OK) return code;
  const sqlite3_io_methods *methods = undecided_methods(file->pMethods);
  if (!methods) return SQLITE_OK;
  file->pMethods = methods;
  undecided.file = file;
  undecided.name = name;
  undecided.flags = flags;
  return SQLITE_OK;
}

/* Does the URI say that it is a replicated database? */
static bool is_named_so(const char *name) {
  static const char *const options[] = {"node", "listen", "advertise", "peers", "join"};
  const char *vfs_name = sqlite3_uri_parameter(name, "vfs");
  bool found = vfs_name && strcmp(vfs_name, VFS_NAME) == 0;
  for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
    found = found || sqlite3_uri_parameter(name, options[i]);
  return found;
}

/* ---- Methods ---- */

static int open_wal(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out_flags) {
  struct vfs_wal_file *wal = (struct vfs_wal_file *)file;
  memset(wal, 0, sizeof *wal);
  wal->connection = (struct vfs_connection *)sqlite3_database_file_object(name);
  wal->real = real_file(file, sizeof *wal);
  int code = base_of(vfs)->xOpen(base_of(vfs), name, wal->real, flags, out_flags);
  if (code == SQLITE_OK) wal->file.pMethods = &vfs_wal_methods;
  return code;
}

static int vfs_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out_flags) {
  file->pMethods = NULL;
  if (name && (flags & SQLITE_OPEN_MAIN_DB)) {
    if (is_named_so(name)) return open_main(vfs, name, file, flags, out_flags);
    return open_plain_name(vfs, name, file, flags, out_flags);
  }
  if (name && (flags & SQLITE_OPEN_WAL) && vfs_is_connection(sqlite3_database_file_object(name)))
    return open_wal(vfs, name, file, flags, out_flags);
  return base_of(vfs)->xOpen(base_of(vfs), name, file, flags, out_flags);
}

/* A replicated database's WAL is the node's: SQLite would delete it beside a database that looks empty to it. */
static int vfs_delete(sqlite3_vfs *vfs, const char *name, int sync) {
  if (vfs_is_wal_of_connection(name)) return SQLITE_OK;
  return base_of(vfs)->xDelete(base_of(vfs), name, sync);
}

static int vfs_access(sqlite3_vfs *vfs, const char *name, int flags, int *result) {
  return base_of(vfs)->xAccess(base_of(vfs), name, flags, result);
}
static int vfs_full_pathname(sqlite3_vfs *vfs, const char *name, int size, char *out) {
  return base_of(vfs)->xFullPathname(base_of(vfs), name, size, out);
}
static void *vfs_dl_open(sqlite3_vfs *vfs, const char *name) {
  return base_of(vfs)->xDlOpen(base_of(vfs), name);
}
static void vfs_dl_error(sqlite3_vfs *vfs, int size, char *text) {
  base_of(vfs)->xDlError(base_of(vfs), size, text);
}
static void (*vfs_dl_sym(sqlite3_vfs *vfs, void *handle, const char *symbol))(void) {
  return base_of(vfs)->xDlSym(base_of(vfs), handle, symbol);
}
static void vfs_dl_close(sqlite3_vfs *vfs, void *handle) {
  base_of(vfs)->xDlClose(base_of(vfs), handle);
}
static int vfs_randomness(sqlite3_vfs *vfs, int size, char *out) {
  return base_of(vfs)->xRandomness(base_of(vfs), size, out);
}
static int vfs_sleep(sqlite3_vfs *vfs, int microseconds) {
  return base_of(vfs)->xSleep(base_of(vfs), microseconds);
}
static int vfs_current_time(sqlite3_vfs *vfs, double *now) {
  return base_of(vfs)->xCurrentTime(base_of(vfs), now);
}
static int vfs_last_error(sqlite3_vfs *vfs, int size, char *text) {
  return base_of(vfs)->xGetLastError ? base_of(vfs)->xGetLastError(base_of(vfs), size, text) : 0;
}
static int vfs_current_time64(sqlite3_vfs *vfs, sqlite3_int64 *now) {
  return base_of(vfs)->xCurrentTimeInt64(base_of(vfs), now);
}

int vfs_register(const struct vfs_host *the_host, sqlite3_vfs *base, bool is_default) {
  if (!base || base->iVersion < 2) return SQLITE_ERROR;
  host = the_host;
  if (pthread_atfork(NULL, NULL, note_fork) != 0 || vfs_wal_watch_forks() != SQLITE_OK) return SQLITE_NOMEM;
  size_t own = sizeof(struct vfs_connection) > sizeof(struct vfs_wal_file) ? sizeof(struct vfs_connection)
                                                                           : sizeof(struct vfs_wal_file);
  balsa_vfs = (sqlite3_vfs){
      .iVersion = 2,
      .szOsFile = base->szOsFile + (int)((own + 15) & ~(size_t)15),
      .mxPathname = base->mxPathname,
      .zName = VFS_NAME,
      .pAppData = base,
      .xOpen = vfs_open,
      .xDelete = vfs_delete,
      .xAccess = vfs_access,
      .xFullPathname = vfs_full_pathname,
      .xDlOpen = vfs_dl_open,
      .xDlError = vfs_dl_error,
      .xDlSym = vfs_dl_sym,
      .xDlClose = vfs_dl_close,
      .xRandomness = vfs_randomness,
      .xSleep = vfs_sleep,
      .xCurrentTime = vfs_current_time,
      .xGetLastError = vfs_last_error,
      .xCurrentTimeInt64 = vfs_current_time64,
  };
  return sqlite3_vfs_register(&balsa_vfs, is_default);
}

void vfs_database_detach(struct vfs_database *database) {
  host->detach(database);
}
