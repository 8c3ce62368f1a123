/*
** Setting aside: what is there of a database goes into a folder, and the database is as one that never was. For a node
** that lost its log: nobody can tell which of its pages are committed, so it takes all of them from the others, and
** what it had is kept.
**
** A file goes by one rename, so after a crash doing it again takes the rest. A plain process that has the database open must
** go on with the same file, which would otherwise stand beside a -wal that is not its own: then the file is copied, the copy made
** durable, and the file cut to nothing.
*/
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "database.h"

#define COPY_BYTES (1u << 16)
#define NAMES_MAX 1000 /* files of one name in the folder */

struct aside {
  struct vfs_database *database;
  const char *folder;
  char *text;
};

static int fail(struct aside *aside, const char *path, int error) {
  snprintf(aside->text, VFS_TEXT_MAX, "%s cannot be set aside in %s: %s", path, aside->folder, strerror(-error));
  return error == -ENOSPC ? VFS_NO_SPACE : VFS_IO;
}

/* A free name in the folder for what `path` is called. */
static int choose_name(struct aside *aside, const char *path, char name[OS_PATH_MAX]) {
  struct os_stat stat;
  const char *last = strrchr(path, '/');
  last = last ? last + 1 : path;
  for (int i = 1; i < NAMES_MAX; i++) {
    int n = i == 1 ? snprintf(name, OS_PATH_MAX, "%s/%s", aside->folder, last)
                   : snprintf(name, OS_PATH_MAX, "%s/%s.%d", aside->folder, last, i);
    if (n < 0 || n >= OS_PATH_MAX) return -ENAMETOOLONG;
    int error = os_stat(aside->database->os, name, &stat);
    if (error) return error == -ENOENT ? 0 : error;
  }
  return -EEXIST;
}

static int move(struct aside *aside, const char *path) {
  char name[OS_PATH_MAX];
  int error = choose_name(aside, path, name);
  if (!error) error = os_rename(aside->database->os, path, name);
  return error == 0 || error == -ENOENT ? VFS_OK : fail(aside, path, error);
}

static int move_beside(struct aside *aside, const char *suffix) {
  char path[OS_PATH_MAX];
  snprintf(path, sizeof path, "%s%s", aside->database->path, suffix);
  return move(aside, path);
}

static int copy_content(sqlite3_file *from, struct os_file *to, sqlite3_int64 size) {
  uint8_t *buffer = malloc(COPY_BYTES);
  int error = buffer ? 0 : -ENOMEM;
  for (sqlite3_int64 at = 0; !error && at < size; at += COPY_BYTES) {
    int n = size - at < COPY_BYTES ? (int)(size - at) : (int)COPY_BYTES;
    if (from->pMethods->xRead(from, buffer, n, at) != SQLITE_OK) error = -EIO;
    if (!error) error = os_write(to, buffer, (size_t)n, (uint64_t)at);
  }
  free(buffer);
  return error ? error : os_sync(to);
}

/* The copy gets its name when it is whole; one without it is begun again. */
static int copy_and_cut(struct aside *aside, sqlite3_int64 size) {
  struct vfs_database *database = aside->database;
  char name[OS_PATH_MAX], part[OS_PATH_MAX];
  struct os_file *copy = NULL;
  int error = choose_name(aside, database->path, name);
  snprintf(part, sizeof part, "%.*s/copy.part", OS_PATH_MAX - 16, aside->folder);
  if (!error) error = os_open(database->os, part, OS_OPEN_WRITE | OS_OPEN_CREATE, &copy);
  if (!error) error = os_truncate(copy, 0);
  if (!error) error = copy_content(database->file, copy, size);
  os_close(copy);
  if (!error) error = os_rename(database->os, part, name);
  if (!error) error = os_sync_directory(database->os, aside->folder);
  if (error) return fail(aside, database->path, error);
  int code = database->file->pMethods->xTruncate(database->file, 0);
  if (code == SQLITE_OK) code = database->file->pMethods->xSync(database->file, SQLITE_SYNC_NORMAL);
  return code == SQLITE_OK ? VFS_OK : fail(aside, database->path, -EIO);
}

/* Nobody else has it open, and nobody can open it until it is gone. */
static int move_files(struct aside *aside, sqlite3_int64 size) {
  struct vfs_database *database = aside->database;
  int error = size > 0 ? move(aside, database->path) : VFS_OK;
  if (!error) error = move_beside(aside, "-wal");
  if (!error) error = move_beside(aside, "-shm");
  if (error) return error;
  int code = SQLITE_OK;
  vfs_close_base(&database->file);
  vfs_ownership_forget_files(database->ownership);
  database->is_locked = false;
  database->file = vfs_open_base(database, database->name,
                                 SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &code);
  return database->file ? VFS_OK : fail(aside, database->path, -EIO);
}

/* NOLINTNEXTLINE(readability-non-const-parameter): written through aside.text */
int vfs_database_clear(struct vfs_database *database, const char *folder, char *text) {
  struct aside aside = {.database = database, .folder = folder, .text = text};
  sqlite3_int64 size = 0;
  if (database->file->pMethods->xFileSize(database->file, &size) != SQLITE_OK)
    return fail(&aside, database->path, -EIO);
  return size > 0 ? copy_and_cut(&aside, size) : VFS_OK;
}

int vfs_set_aside(struct vfs_database *database, const char *folder, char *text) {
  struct aside aside = {.database = database, .folder = folder, .text = text};
  char path[OS_PATH_MAX];
  sqlite3_int64 size = 0;
  int error = vfs_database_lock_files(database, text);
  if (error) return error;
  if (database->file->pMethods->xFileSize(database->file, &size) != SQLITE_OK)
    return fail(&aside, database->path, -EIO);
  if (database->is_alone)
    error = move_files(&aside, size);
  else if (size > 0)
    error = copy_and_cut(&aside, size);
  if (error) return error;
  snprintf(path, sizeof path, "%.*s/database", OS_PATH_MAX - 16, database->folder);
  error = move(&aside, path);
  int failed = error ? 0 : os_sync_directory(database->os, folder);
  if (!error && !failed) failed = os_sync_directory(database->os, database->folder);
  snprintf(path, sizeof path, "%.*s/..", OS_PATH_MAX - 16, database->folder);
  if (!error && !failed) failed = os_sync_directory(database->os, path);
  return failed ? fail(&aside, database->path, failed) : error;
}
