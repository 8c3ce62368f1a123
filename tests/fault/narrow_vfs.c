#include "narrow_vfs.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* What SQLite asks for more, the real file answers by itself: it stands behind this. */
struct narrow_file {
  sqlite3_file file; /* first: this is what SQLite holds */
  enum narrow_kind kind;
  const char *path;
  sqlite3_file *real;
};

static sqlite3_vfs *real_vfs;
static struct {
  const char *_Atomic words;
  atomic_llong bytes;
} limits[NARROW_KINDS] = {{NULL, -1}, {NULL, -1}, {NULL, -1}};

static sqlite3_file *real_of(sqlite3_file *file) {
  return ((struct narrow_file *)file)->real;
}

static int check(sqlite3_file *file, enum narrow_kind kind, sqlite3_int64 end, int full) {
  sqlite3_int64 limit = atomic_load(&limits[kind].bytes);
  const char *words = atomic_load(&limits[kind].words);
  if (limit < 0 || end <= limit) return SQLITE_OK;
  return !words || strstr(((struct narrow_file *)file)->path, words) ? full : SQLITE_OK;
}

static int narrow_close(sqlite3_file *file) {
  int code = real_of(file)->pMethods->xClose(real_of(file));
  file->pMethods = NULL;
  return code;
}
static int narrow_read(sqlite3_file *file, void *bytes, int amount, sqlite3_int64 offset) {
  return real_of(file)->pMethods->xRead(real_of(file), bytes, amount, offset);
}
static int narrow_write(sqlite3_file *file, const void *bytes, int amount, sqlite3_int64 offset) {
  sqlite3_int64 size = 0;
  int code = real_of(file)->pMethods->xFileSize(real_of(file), &size);
  if (code == SQLITE_OK && offset + amount > size)
    code = check(file, ((struct narrow_file *)file)->kind, offset + amount, SQLITE_FULL);
  return code == SQLITE_OK ? real_of(file)->pMethods->xWrite(real_of(file), bytes, amount, offset) : code;
}
static int narrow_truncate(sqlite3_file *file, sqlite3_int64 size) {
  return real_of(file)->pMethods->xTruncate(real_of(file), size);
}
static int narrow_sync(sqlite3_file *file, int flags) {
  return real_of(file)->pMethods->xSync(real_of(file), flags);
}
static int narrow_size(sqlite3_file *file, sqlite3_int64 *size) {
  return real_of(file)->pMethods->xFileSize(real_of(file), size);
}
static int narrow_lock(sqlite3_file *file, int level) {
  return real_of(file)->pMethods->xLock(real_of(file), level);
}
static int narrow_unlock(sqlite3_file *file, int level) {
  return real_of(file)->pMethods->xUnlock(real_of(file), level);
}
static int narrow_check_reserved(sqlite3_file *file, int *result) {
  return real_of(file)->pMethods->xCheckReservedLock(real_of(file), result);
}
static int narrow_control(sqlite3_file *file, int op, void *argument) {
  return real_of(file)->pMethods->xFileControl(real_of(file), op, argument);
}
static int narrow_sector_size(sqlite3_file *file) {
  return real_of(file)->pMethods->xSectorSize(real_of(file));
}
static int narrow_characteristics(sqlite3_file *file) {
  return real_of(file)->pMethods->xDeviceCharacteristics(real_of(file));
}
static int narrow_shm_map(sqlite3_file *file, int region, int size, int extend, void volatile **map) {
  int code = real_of(file)->pMethods->xShmMap(real_of(file), region, size, 0, map);
  if (code != SQLITE_OK || *map || !extend) return code;
  code = check(file, NARROW_SHM, (sqlite3_int64)(region + 1) * size, SQLITE_IOERR_SHMSIZE); /* as src/os_unix.c */
  return code == SQLITE_OK ? real_of(file)->pMethods->xShmMap(real_of(file), region, size, extend, map) : code;
}
static int narrow_shm_lock(sqlite3_file *file, int offset, int n, int flags) {
  return real_of(file)->pMethods->xShmLock(real_of(file), offset, n, flags);
}
static void narrow_shm_barrier(sqlite3_file *file) {
  real_of(file)->pMethods->xShmBarrier(real_of(file));
}
static int narrow_shm_unmap(sqlite3_file *file, int remove) {
  return real_of(file)->pMethods->xShmUnmap(real_of(file), remove);
}

static const sqlite3_io_methods methods = {
    .iVersion = 2,
    .xClose = narrow_close,
    .xRead = narrow_read,
    .xWrite = narrow_write,
    .xTruncate = narrow_truncate,
    .xSync = narrow_sync,
    .xFileSize = narrow_size,
    .xLock = narrow_lock,
    .xUnlock = narrow_unlock,
    .xCheckReservedLock = narrow_check_reserved,
    .xFileControl = narrow_control,
    .xSectorSize = narrow_sector_size,
    .xDeviceCharacteristics = narrow_characteristics,
    .xShmMap = narrow_shm_map,
    .xShmLock = narrow_shm_lock,
    .xShmBarrier = narrow_shm_barrier,
    .xShmUnmap = narrow_shm_unmap,
};

static int narrow_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out_flags) {
  struct narrow_file *narrow = (struct narrow_file *)file;
  (void)vfs;
  bool is_limited = (flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL)) != 0;
  if (!is_limited) return real_vfs->xOpen(real_vfs, name, file, flags, out_flags);
  *narrow = (struct narrow_file){.kind = flags & SQLITE_OPEN_WAL ? NARROW_WAL : NARROW_DATABASE,
                                 .path = name,
                                 .real = (sqlite3_file *)(narrow + 1)};
  memset(narrow->real, 0, (size_t)real_vfs->szOsFile);
  int code = real_vfs->xOpen(real_vfs, name, narrow->real, flags, out_flags);
  if (code == SQLITE_OK) narrow->file.pMethods = &methods;
  return code;
}

sqlite3_vfs *narrow_vfs(void) {
  static sqlite3_vfs vfs;
  if (real_vfs) return &vfs;
  sqlite3_initialize();
  real_vfs = sqlite3_vfs_find(NULL);
  vfs = *real_vfs;
  vfs.zName = "narrow";
  vfs.szOsFile = (int)sizeof(struct narrow_file) + real_vfs->szOsFile;
  vfs.xOpen = narrow_open;
  if (sqlite3_vfs_register(&vfs, 0) != SQLITE_OK) abort();
  return &vfs;
}

void narrow_set_limit(enum narrow_kind kind, const char *words, sqlite3_int64 bytes) {
  atomic_store(&limits[kind].bytes, -1);
  atomic_store(&limits[kind].words, words);
  atomic_store(&limits[kind].bytes, bytes);
}
