/*
** The VFS "balsa": main database files go through connection.c, their WALs too, all else to the default VFS.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "database.h"

static sqlite3_vfs balsa_vfs;
static const struct vfs_host *host;
static atomic_bool is_forked_child;
static _Thread_local char open_error[VFS_TEXT_MAX];

static sqlite3_vfs *base_of(sqlite3_vfs *vfs) { return vfs->pAppData; }

const char *vfs_open_error(void) { return open_error; }

static void note_fork(void) { atomic_store(&is_forked_child, true); }

bool vfs_is_forked_child(void) { return atomic_load_explicit(&is_forked_child, memory_order_relaxed); }

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
    snprintf(open_error, sizeof open_error, "%s: this process was forked from one that uses Balsa; open databases after fork and exec", name);
    return SQLITE_CANTOPEN;
  }
  int code = host->attach(name, flags, &database, open_error);
  if (code != SQLITE_OK) {
    sqlite3_log(code, "balsa: %s", open_error);
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
  if (name && (flags & SQLITE_OPEN_MAIN_DB)) return open_main(vfs, name, file, flags, out_flags);
  if (name && (flags & SQLITE_OPEN_WAL)) return open_wal(vfs, name, file, flags, out_flags);
  return base_of(vfs)->xOpen(base_of(vfs), name, file, flags, out_flags);
}

static bool has_suffix(const char *name, const char *suffix) {
  size_t length = strlen(name);
  size_t suffix_length = strlen(suffix);
  return length >= suffix_length && strcmp(name + length - suffix_length, suffix) == 0;
}

/* A WAL is the node's: SQLite would delete it beside a database that looks empty to it. */
static int vfs_delete(sqlite3_vfs *vfs, const char *name, int sync) {
  if (has_suffix(name, "-wal")) return SQLITE_OK;
  return base_of(vfs)->xDelete(base_of(vfs), name, sync);
}

static int vfs_access(sqlite3_vfs *vfs, const char *name, int flags, int *result) {
  return base_of(vfs)->xAccess(base_of(vfs), name, flags, result);
}
static int vfs_full_pathname(sqlite3_vfs *vfs, const char *name, int size, char *out) {
  return base_of(vfs)->xFullPathname(base_of(vfs), name, size, out);
}
static void *vfs_dl_open(sqlite3_vfs *vfs, const char *name) { return base_of(vfs)->xDlOpen(base_of(vfs), name); }
static void vfs_dl_error(sqlite3_vfs *vfs, int size, char *text) { base_of(vfs)->xDlError(base_of(vfs), size, text); }
static void (*vfs_dl_sym(sqlite3_vfs *vfs, void *handle, const char *symbol))(void) {
  return base_of(vfs)->xDlSym(base_of(vfs), handle, symbol);
}
static void vfs_dl_close(sqlite3_vfs *vfs, void *handle) { base_of(vfs)->xDlClose(base_of(vfs), handle); }
static int vfs_randomness(sqlite3_vfs *vfs, int size, char *out) { return base_of(vfs)->xRandomness(base_of(vfs), size, out); }
static int vfs_sleep(sqlite3_vfs *vfs, int microseconds) { return base_of(vfs)->xSleep(base_of(vfs), microseconds); }
static int vfs_current_time(sqlite3_vfs *vfs, double *now) { return base_of(vfs)->xCurrentTime(base_of(vfs), now); }
static int vfs_last_error(sqlite3_vfs *vfs, int size, char *text) {
  return base_of(vfs)->xGetLastError ? base_of(vfs)->xGetLastError(base_of(vfs), size, text) : 0;
}
static int vfs_current_time64(sqlite3_vfs *vfs, sqlite3_int64 *now) {
  return base_of(vfs)->xCurrentTimeInt64(base_of(vfs), now);
}

int vfs_register(const struct vfs_host *the_host, bool is_default) {
  sqlite3_vfs *base = sqlite3_vfs_find(NULL);
  if (!base || base->iVersion < 2) return SQLITE_ERROR;
  host = the_host;
  pthread_atfork(NULL, NULL, note_fork);
  size_t own = sizeof(struct vfs_connection) > sizeof(struct vfs_wal_file) ? sizeof(struct vfs_connection) : sizeof(struct vfs_wal_file);
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

void vfs_database_detach(struct vfs_database *database) { host->detach(database); }
