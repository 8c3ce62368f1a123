/*
** Locks: the process's are those of one open file of each database, and of one of each -shm, shared by all handles in the process
** (src/os_unix.c: unixInodeInfo, unixShmNode). So they conflict with what the node holds by its own files, as POSIX locks do with
** locks of open file descriptions. Among the handles they are counted here.
*/
#include "sim_vfs.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PENDING_BYTE 0x40000000u
#define RESERVED_BYTE (PENDING_BYTE + 1)
#define SHARED_FIRST (PENDING_BYTE + 2)
#define SHARED_SIZE 510u
#define SHM_LOCK_FIRST 120u
#define SHM_LOCK_DMS 128u
#define SHM_LOCKS 8
#define SHM_REGIONS_MAX 64
#define PATH_TEXT_MAX 512
#define JULIAN_MS_1970 INT64_C(210866760000000)

/* The shared memory of a database, while a handle in the process has it. */
struct shm {
  struct os_file *file;
  void *regions[SHM_REGIONS_MAX];
  int locks[SHM_LOCKS]; /* -1: exclusive, else how many share it */
  unsigned users;
};

/* A database file, while a handle in the process has it. */
struct shared {
  struct shared *next;
  uint64_t inode;
  struct os *os;
  struct os_file *locks;
  unsigned handles, n_shared;
  int level; /* SQLITE_LOCK_…, the highest of all handles */
  struct shm *shm;
};

struct sim_handle {
  sqlite3_file file;
  struct os *os;
  struct os_file *inner;
  char path[PATH_TEXT_MAX];
  bool delete_on_close, sync_folder;
  struct shared *shared; /* main databases */
  int level;
  bool has_shm;
  unsigned shm_shared, shm_exclusive; /* bits */
};

struct memory_handle {
  sqlite3_file file;
  uint8_t *bytes;
  size_t size, capacity;
};

static struct {
  pthread_mutex_t mutex; /* guards all of this, and what handles share; taken last but for the machines' */
  struct os *clock;
  struct {
    const char *folder;
    struct sim_machine *machine;
  } mounts[SIM_VFS_MOUNTS_MAX];
  size_t n_mounts;
  struct shared *shared;
  uint64_t random;
} sim = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static struct sim_handle *as_handle(sqlite3_file *file) {
  return (struct sim_handle *)file;
}

static int error_code(int error, int code) {
  switch (error) {
  case 0: return SQLITE_OK;
  case -ENOSPC: return SQLITE_FULL;
  case -EAGAIN: return SQLITE_BUSY;
  default: return code;
  }
}

struct os *sim_vfs_os_of(const char *path) {
  struct os *os = NULL;
  pthread_mutex_lock(&sim.mutex);
  for (size_t i = 0; i < sim.n_mounts && !os; i++) {
    size_t length = strlen(sim.mounts[i].folder);
    if (strncmp(path, sim.mounts[i].folder, length) == 0 && (path[length] == '/' || path[length] == 0))
      os = sim_machine_os(sim.mounts[i].machine);
  }
  pthread_mutex_unlock(&sim.mutex);
  return os;
}

/* ---- Files ---- */

static int sim_read(sqlite3_file *file, void *bytes, int amount, sqlite3_int64 offset) {
  int64_t n = os_read(as_handle(file)->inner, bytes, (size_t)amount, (uint64_t)offset);
  if (n < 0) return SQLITE_IOERR_READ;
  if (n == amount) return SQLITE_OK;
  memset((char *)bytes + n, 0, (size_t)(amount - n));
  return SQLITE_IOERR_SHORT_READ;
}

static int sim_write(sqlite3_file *file, const void *bytes, int amount, sqlite3_int64 offset) {
  return error_code(os_write(as_handle(file)->inner, bytes, (size_t)amount, (uint64_t)offset), SQLITE_IOERR_WRITE);
}

static int sim_truncate(sqlite3_file *file, sqlite3_int64 size) {
  return error_code(os_truncate(as_handle(file)->inner, (uint64_t)size), SQLITE_IOERR_TRUNCATE);
}

static void folder_of(const char *path, char folder[PATH_TEXT_MAX]) {
  const char *slash = strrchr(path, '/');
  snprintf(folder, PATH_TEXT_MAX, "%.*s", slash == path ? 1 : (int)(slash - path), path);
}

static int sync_folder(struct os *os, const char *path) {
  char folder[PATH_TEXT_MAX];
  folder_of(path, folder);
  return error_code(os_sync_directory(os, folder), SQLITE_IOERR_DIR_FSYNC);
}

static int sim_sync(sqlite3_file *file, int flags) {
  struct sim_handle *handle = as_handle(file);
  (void)flags;
  int code = error_code(os_sync(handle->inner), SQLITE_IOERR_FSYNC);
  if (code != SQLITE_OK || !handle->sync_folder) return code;
  handle->sync_folder = false;
  return sync_folder(handle->os, handle->path);
}

static int sim_file_size(sqlite3_file *file, sqlite3_int64 *size) {
  uint64_t found = 0;
  int error = os_size(as_handle(file)->inner, &found);
  *size = (sqlite3_int64)found;
  return error_code(error, SQLITE_IOERR_FSTAT);
}

static int sim_control(sqlite3_file *file, int op, void *argument) {
  (void)file;
  if (op != SQLITE_FCNTL_VFSNAME) return SQLITE_NOTFOUND;
  *(char **)argument = sqlite3_mprintf(SIM_VFS_NAME);
  return SQLITE_OK;
}

static int sim_sector_size(sqlite3_file *file) {
  (void)file;
  return 4096; /* as os_unix.c says */
}

static int sim_characteristics(sqlite3_file *file) {
  (void)file;
  return SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

/* ---- Locks of the database ---- */

/* sim.mutex held. As unixLock. */
static int lock_shared(struct shared *shared, struct sim_handle *handle) {
  int error = os_lock(shared->locks, OS_LOCK_SHARED, PENDING_BYTE, 1);
  if (!error) {
    error = os_lock(shared->locks, OS_LOCK_SHARED, SHARED_FIRST, SHARED_SIZE);
    int unlocked = os_lock(shared->locks, OS_UNLOCK, PENDING_BYTE, 1);
    if (!error) error = unlocked;
  }
  if (error) return error_code(error, SQLITE_IOERR_LOCK);
  shared->n_shared = 1;
  shared->level = handle->level = SQLITE_LOCK_SHARED;
  return SQLITE_OK;
}

/* sim.mutex held. From SHARED on. */
static int lock_more(struct shared *shared, struct sim_handle *handle, int level) {
  int error = 0;
  if (level == SQLITE_LOCK_EXCLUSIVE && handle->level < SQLITE_LOCK_PENDING) {
    error = os_lock(shared->locks, OS_LOCK_EXCLUSIVE, PENDING_BYTE, 1);
    if (error) return error_code(error, SQLITE_IOERR_LOCK);
    shared->level = handle->level = SQLITE_LOCK_PENDING;
  }
  if (level == SQLITE_LOCK_EXCLUSIVE && shared->n_shared > 1) return SQLITE_BUSY;
  error = level == SQLITE_LOCK_RESERVED ? os_lock(shared->locks, OS_LOCK_EXCLUSIVE, RESERVED_BYTE, 1)
                                        : os_lock(shared->locks, OS_LOCK_EXCLUSIVE, SHARED_FIRST, SHARED_SIZE);
  if (!error) shared->level = handle->level = level;
  return error_code(error, SQLITE_IOERR_LOCK);
}

static int sim_lock(sqlite3_file *file, int level) {
  struct sim_handle *handle = as_handle(file);
  struct shared *shared = handle->shared;
  int code;
  if (!shared || handle->level >= level) return SQLITE_OK;
  pthread_mutex_lock(&sim.mutex);
  if (handle->level != shared->level && (shared->level >= SQLITE_LOCK_PENDING || level > SQLITE_LOCK_SHARED)) {
    code = SQLITE_BUSY;
  } else if (level == SQLITE_LOCK_SHARED && shared->level != SQLITE_LOCK_NONE) {
    handle->level = SQLITE_LOCK_SHARED;
    shared->n_shared++;
    code = SQLITE_OK;
  } else {
    code = level == SQLITE_LOCK_SHARED ? lock_shared(shared, handle) : lock_more(shared, handle, level);
  }
  pthread_mutex_unlock(&sim.mutex);
  return code;
}

/* A machine that is down has no locks any more: what fails then is as good as done. */
static int sim_unlock(sqlite3_file *file, int level) {
  struct sim_handle *handle = as_handle(file);
  struct shared *shared = handle->shared;
  if (!shared || handle->level <= level) return SQLITE_OK;
  pthread_mutex_lock(&sim.mutex);
  if (handle->level > SQLITE_LOCK_SHARED) {
    if (level == SQLITE_LOCK_SHARED) (void)os_lock(shared->locks, OS_LOCK_SHARED, SHARED_FIRST, SHARED_SIZE);
    (void)os_lock(shared->locks, OS_UNLOCK, PENDING_BYTE, 2);
    shared->level = SQLITE_LOCK_SHARED;
  }
  if (level == SQLITE_LOCK_NONE && --shared->n_shared == 0) {
    (void)os_lock(shared->locks, OS_UNLOCK, 0, 0);
    shared->level = SQLITE_LOCK_NONE;
  }
  handle->level = level;
  pthread_mutex_unlock(&sim.mutex);
  return SQLITE_OK;
}

static int sim_check_reserved(sqlite3_file *file, int *result) {
  struct shared *shared = as_handle(file)->shared;
  int64_t process;
  *result = 0;
  if (!shared) return SQLITE_OK;
  pthread_mutex_lock(&sim.mutex);
  *result = shared->level > SQLITE_LOCK_SHARED || os_find_lock(shared->locks, RESERVED_BYTE, 1, &process);
  pthread_mutex_unlock(&sim.mutex);
  return SQLITE_OK;
}

/* ---- Shared memory ---- */

/* As unixLockSharedMemory: who is the first truncates. */
static int lock_shm_file(struct os_file *file) {
  int64_t process;
  int error = 0;
  if (!os_find_lock(file, SHM_LOCK_DMS, 1, &process)) {
    error = os_lock(file, OS_LOCK_EXCLUSIVE, SHM_LOCK_DMS, 1);
    if (!error) error = os_truncate(file, 3);
  }
  if (!error) error = os_lock(file, OS_LOCK_SHARED, SHM_LOCK_DMS, 1);
  return error;
}

/* sim.mutex held. */
static int open_shm(struct sim_handle *handle) {
  struct shared *shared = handle->shared;
  if (!shared->shm) {
    char path[PATH_TEXT_MAX + 8];
    snprintf(path, sizeof path, "%s-shm", handle->path);
    struct shm *shm = calloc(1, sizeof *shm);
    if (!shm) return SQLITE_NOMEM;
    int error = os_open(handle->os, path, OS_OPEN_WRITE | OS_OPEN_CREATE | OS_OPEN_NOFOLLOW | OS_OPEN_LOCKS,
                        &shm->file);
    if (!error) error = lock_shm_file(shm->file);
    if (error) {
      os_close(shm->file);
      free(shm);
      return error_code(error, SQLITE_IOERR_SHMOPEN);
    }
    shared->shm = shm;
  }
  shared->shm->users++;
  handle->has_shm = true;
  return SQLITE_OK;
}

/* sim.mutex held. */
static int map_region(struct shm *shm, int region, int size, int extend) {
  uint64_t has = 0, needed = (uint64_t)(region + 1) * (uint64_t)size;
  if (region >= SHM_REGIONS_MAX) return SQLITE_FULL;
  if (os_size(shm->file, &has) != 0) return SQLITE_IOERR_SHMSIZE;
  if (has < needed && !extend) return SQLITE_OK;
  if (has < needed && os_write(shm->file, "", 1, needed - 1) != 0) return SQLITE_IOERR_SHMSIZE;
  shm->regions[region] = sim_machine_map(shm->file, needed - (uint64_t)size, (uint64_t)size);
  return shm->regions[region] ? SQLITE_OK : SQLITE_IOERR_SHMMAP;
}

static int sim_shm_map(sqlite3_file *file, int region, int size, int extend, void volatile **map) {
  struct sim_handle *handle = as_handle(file);
  *map = NULL;
  pthread_mutex_lock(&sim.mutex);
  int code = handle->has_shm ? SQLITE_OK : open_shm(handle);
  struct shm *shm = handle->shared->shm;
  if (code == SQLITE_OK && (region >= SHM_REGIONS_MAX || !shm->regions[region]))
    code = map_region(shm, region, size, extend);
  if (code == SQLITE_OK) *map = shm->regions[region];
  pthread_mutex_unlock(&sim.mutex);
  return code;
}

static unsigned lock_mask(int first, int n) {
  return (1u << (first + n)) - (1u << first);
}

/* sim.mutex held. */
static int shm_unlock(struct shm *shm, struct sim_handle *handle, int first, int n) {
  unsigned mask = lock_mask(first, n);
  bool is_last = true;
  if (!((handle->shm_shared | handle->shm_exclusive) & mask)) return SQLITE_OK;
  for (int i = first; i < first + n; i++)
    if (shm->locks[i] > ((handle->shm_shared & 1u << i) ? 1 : 0)) is_last = false;
  if (is_last) {
    (void)os_lock(shm->file, OS_UNLOCK, SHM_LOCK_FIRST + (unsigned)first, (unsigned)n);
    for (int i = first; i < first + n; i++) shm->locks[i] = 0;
  } else if (handle->shm_shared & mask) {
    assert(n == 1);
    shm->locks[first]--;
  }
  handle->shm_shared &= ~mask;
  handle->shm_exclusive &= ~mask;
  return SQLITE_OK;
}

/* sim.mutex held. */
static int shm_lock_shared(struct shm *shm, struct sim_handle *handle, int first) {
  unsigned mask = lock_mask(first, 1);
  if (handle->shm_shared & mask) return SQLITE_OK;
  if (shm->locks[first] < 0) return SQLITE_BUSY;
  if (shm->locks[first] == 0) {
    int error = os_lock(shm->file, OS_LOCK_SHARED, SHM_LOCK_FIRST + (unsigned)first, 1);
    if (error) return error_code(error, SQLITE_IOERR_SHMLOCK);
  }
  handle->shm_shared |= mask;
  shm->locks[first]++;
  return SQLITE_OK;
}

/* sim.mutex held. */
static int shm_lock_exclusive(struct shm *shm, struct sim_handle *handle, int first, int n) {
  for (int i = first; i < first + n; i++)
    if (shm->locks[i] != 0) return SQLITE_BUSY;
  int error = os_lock(shm->file, OS_LOCK_EXCLUSIVE, SHM_LOCK_FIRST + (unsigned)first, (unsigned)n);
  if (error) return error_code(error, SQLITE_IOERR_SHMLOCK);
  for (int i = first; i < first + n; i++) shm->locks[i] = -1;
  handle->shm_exclusive |= lock_mask(first, n);
  return SQLITE_OK;
}

static int sim_shm_lock(sqlite3_file *file, int first, int n, int flags) {
  struct sim_handle *handle = as_handle(file);
  int code;
  if (!handle->has_shm) return SQLITE_IOERR_SHMLOCK;
  pthread_mutex_lock(&sim.mutex);
  struct shm *shm = handle->shared->shm;
  if (flags & SQLITE_SHM_UNLOCK)
    code = shm_unlock(shm, handle, first, n);
  else
    code = flags & SQLITE_SHM_SHARED ? shm_lock_shared(shm, handle, first) : shm_lock_exclusive(shm, handle, first, n);
  pthread_mutex_unlock(&sim.mutex);
  return code;
}

static void sim_shm_barrier(sqlite3_file *file) {
  (void)file;
  pthread_mutex_lock(&sim.mutex); /* as unixShmBarrier does; ThreadSanitizer knows no fences */
  pthread_mutex_unlock(&sim.mutex);
}

static int sim_shm_unmap(sqlite3_file *file, int delete_it) {
  struct sim_handle *handle = as_handle(file);
  if (!handle->has_shm) return SQLITE_OK;
  pthread_mutex_lock(&sim.mutex);
  struct shm *shm = handle->shared->shm;
  handle->has_shm = false;
  if (--shm->users == 0) {
    char path[PATH_TEXT_MAX + 8];
    snprintf(path, sizeof path, "%s-shm", handle->path);
    if (delete_it) (void)os_remove(handle->os, path);
    os_close(shm->file);
    free(shm);
    handle->shared->shm = NULL;
  }
  pthread_mutex_unlock(&sim.mutex);
  return SQLITE_OK;
}

/* ---- Opening and closing ---- */

static int sim_close(sqlite3_file *file) {
  struct sim_handle *handle = as_handle(file);
  struct shared *shared = handle->shared;
  assert(!handle->has_shm); /* as unixClose asserts: whoever maps must unmap */
  sim_unlock(file, SQLITE_LOCK_NONE);
  if (shared) {
    pthread_mutex_lock(&sim.mutex);
    if (--shared->handles == 0) {
      struct shared **at = &sim.shared;
      while (*at != shared) at = &(*at)->next;
      *at = shared->next;
      os_close(shared->locks);
      free(shared);
    }
    pthread_mutex_unlock(&sim.mutex);
  }
  os_close(handle->inner);
  if (handle->delete_on_close) (void)os_remove(handle->os, handle->path);
  file->pMethods = NULL;
  return SQLITE_OK;
}

static const sqlite3_io_methods sim_methods = {
    .iVersion = 2, /* no xFetch */
    .xClose = sim_close,
    .xRead = sim_read,
    .xWrite = sim_write,
    .xTruncate = sim_truncate,
    .xSync = sim_sync,
    .xFileSize = sim_file_size,
    .xLock = sim_lock,
    .xUnlock = sim_unlock,
    .xCheckReservedLock = sim_check_reserved,
    .xFileControl = sim_control,
    .xSectorSize = sim_sector_size,
    .xDeviceCharacteristics = sim_characteristics,
    .xShmMap = sim_shm_map,
    .xShmLock = sim_shm_lock,
    .xShmBarrier = sim_shm_barrier,
    .xShmUnmap = sim_shm_unmap,
};

/* sim.mutex held. What all handles of this file share. */
static int find_shared(struct sim_handle *handle) {
  struct os_stat stat;
  if (os_file_stat(handle->inner, &stat) != 0) return SQLITE_IOERR_FSTAT;
  struct shared *shared = sim.shared;
  while (shared && (shared->os != handle->os || shared->inode != stat.inode)) shared = shared->next;
  if (!shared) {
    struct os_file *locks = NULL;
    if (os_open(handle->os, handle->path, OS_OPEN_WRITE | OS_OPEN_LOCKS, &locks) != 0) return SQLITE_CANTOPEN;
    shared = calloc(1, sizeof *shared);
    if (!shared) abort();
    *shared = (struct shared){.next = sim.shared, .inode = stat.inode, .os = handle->os, .locks = locks};
    sim.shared = shared;
  }
  shared->handles++;
  handle->shared = shared;
  return SQLITE_OK;
}

static int open_memory(sqlite3_file *file, int flags, int *out_flags);

static int sim_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out_flags) {
  const int journals = SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_SUPER_JOURNAL | SQLITE_OPEN_WAL;
  struct sim_handle *handle = as_handle(file);
  int mode = flags & SQLITE_OPEN_READWRITE ? OS_OPEN_WRITE : OS_OPEN_READ;
  (void)vfs;
  file->pMethods = NULL;
  if (!name) return open_memory(file, flags, out_flags);
  *handle = (struct sim_handle){.os = sim_vfs_os_of(name)};
  if (!handle->os || strlen(name) >= sizeof handle->path) return SQLITE_CANTOPEN;
  snprintf(handle->path, sizeof handle->path, "%s", name);
  if (flags & SQLITE_OPEN_CREATE) mode |= OS_OPEN_CREATE;
  if (flags & SQLITE_OPEN_EXCLUSIVE) mode |= OS_OPEN_EXCL;
  handle->delete_on_close = (flags & SQLITE_OPEN_DELETEONCLOSE) != 0;
  handle->sync_folder = (flags & SQLITE_OPEN_CREATE) && (flags & journals);
  int error = os_open(handle->os, name, mode, &handle->inner);
  if (error) return error == -ENOSPC ? SQLITE_FULL : SQLITE_CANTOPEN;
  if (flags & SQLITE_OPEN_MAIN_DB) {
    pthread_mutex_lock(&sim.mutex);
    int code = find_shared(handle);
    pthread_mutex_unlock(&sim.mutex);
    if (code != SQLITE_OK) {
      os_close(handle->inner);
      return code;
    }
  }
  if (out_flags) *out_flags = flags;
  file->pMethods = &sim_methods;
  return SQLITE_OK;
}

static int sim_delete(sqlite3_vfs *vfs, const char *name, int sync) {
  struct os *os = sim_vfs_os_of(name);
  (void)vfs;
  int error = os ? os_remove(os, name) : -ENOENT;
  if (error == -ENOENT) return SQLITE_IOERR_DELETE_NOENT;
  if (error) return SQLITE_IOERR_DELETE;
  return sync ? sync_folder(os, name) : SQLITE_OK;
}

static int sim_access(sqlite3_vfs *vfs, const char *name, int flags, int *result) {
  struct os *os = sim_vfs_os_of(name);
  struct os_stat stat;
  (void)vfs;
  bool is_there = os && os_stat(os, name, &stat) == 0;
  *result = is_there && (flags != SQLITE_ACCESS_EXISTS || stat.size > 0);
  return SQLITE_OK;
}

static int sim_full_pathname(sqlite3_vfs *vfs, const char *name, int size, char *out) {
  (void)vfs;
  if (name[0] != '/' || (int)strlen(name) >= size) return SQLITE_CANTOPEN;
  snprintf(out, (size_t)size, "%s", name);
  return SQLITE_OK;
}

static void *sim_dl_open(sqlite3_vfs *vfs, const char *name) {
  (void)vfs, (void)name;
  return NULL;
}
static void sim_dl_error(sqlite3_vfs *vfs, int size, char *text) {
  (void)vfs;
  snprintf(text, (size_t)size, "a simulated machine has no libraries");
}
static void (*sim_dl_sym(sqlite3_vfs *vfs, void *handle, const char *symbol))(void) {
  (void)vfs, (void)handle, (void)symbol;
  return NULL;
}
static void sim_dl_close(sqlite3_vfs *vfs, void *handle) {
  (void)vfs, (void)handle;
}

/* splitmix64 */
static int sim_randomness(sqlite3_vfs *vfs, int size, char *out) {
  (void)vfs;
  pthread_mutex_lock(&sim.mutex);
  for (int i = 0; i < size; i++) {
    uint64_t z = sim.random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    out[i] = (char)(z ^ (z >> 31));
  }
  pthread_mutex_unlock(&sim.mutex);
  return size;
}

static int sim_sleep(sqlite3_vfs *vfs, int microseconds) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t never;
  (void)vfs;
  os_condition_init(&never);
  pthread_mutex_lock(&mutex);
  uint64_t until = os_now(sim.clock) + (uint64_t)microseconds * (OS_MS / 1000);
  while (os_condition_wait(sim.clock, &never, &mutex, until) == 0) continue;
  pthread_mutex_unlock(&mutex);
  pthread_cond_destroy(&never);
  return microseconds;
}

static int sim_current_time64(sqlite3_vfs *vfs, sqlite3_int64 *now) {
  (void)vfs;
  *now = JULIAN_MS_1970 + (sqlite3_int64)(os_now(sim.clock) / OS_MS);
  return SQLITE_OK;
}

static int sim_current_time(sqlite3_vfs *vfs, double *now) {
  sqlite3_int64 ms;
  sim_current_time64(vfs, &ms);
  *now = (double)ms / 86400000.0;
  return SQLITE_OK;
}

static int sim_last_error(sqlite3_vfs *vfs, int size, char *text) {
  (void)vfs;
  if (size > 0) text[0] = 0;
  return 0;
}

/* ---- Temporary files ---- */

static struct memory_handle *as_memory(sqlite3_file *file) {
  return (struct memory_handle *)file;
}

static int memory_close(sqlite3_file *file) {
  free(as_memory(file)->bytes);
  file->pMethods = NULL;
  return SQLITE_OK;
}

static int memory_read(sqlite3_file *file, void *bytes, int amount, sqlite3_int64 offset) {
  const struct memory_handle *memory = as_memory(file);
  size_t at = (size_t)offset, n = at < memory->size ? memory->size - at : 0;
  if (n > (size_t)amount) n = (size_t)amount;
  if (n > 0) memcpy(bytes, memory->bytes + at, n);
  memset((char *)bytes + n, 0, (size_t)amount - n);
  return n == (size_t)amount ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
}

static int memory_write(sqlite3_file *file, const void *bytes, int amount, sqlite3_int64 offset) {
  struct memory_handle *memory = as_memory(file);
  size_t end = (size_t)offset + (size_t)amount;
  if (end > memory->capacity) {
    size_t capacity = memory->capacity ? memory->capacity : 4096;
    while (capacity < end) capacity *= 2;
    memory->bytes = realloc(memory->bytes, capacity);
    if (!memory->bytes) abort();
    memset(memory->bytes + memory->capacity, 0, capacity - memory->capacity);
    memory->capacity = capacity;
  }
  memcpy(memory->bytes + offset, bytes, (size_t)amount);
  if (end > memory->size) memory->size = end;
  return SQLITE_OK;
}

static int memory_truncate(sqlite3_file *file, sqlite3_int64 size) {
  struct memory_handle *memory = as_memory(file);
  if ((size_t)size >= memory->size) return SQLITE_OK;
  memset(memory->bytes + size, 0, memory->size - (size_t)size);
  memory->size = (size_t)size;
  return SQLITE_OK;
}

static int memory_nothing(sqlite3_file *file, int argument) {
  (void)file, (void)argument;
  return SQLITE_OK;
}

static int memory_size(sqlite3_file *file, sqlite3_int64 *size) {
  *size = (sqlite3_int64)as_memory(file)->size;
  return SQLITE_OK;
}

static int memory_check_reserved(sqlite3_file *file, int *result) {
  (void)file;
  *result = 0;
  return SQLITE_OK;
}

static int open_memory(sqlite3_file *file, int flags, int *out_flags) {
  static const sqlite3_io_methods methods = {
      .iVersion = 1,
      .xClose = memory_close,
      .xRead = memory_read,
      .xWrite = memory_write,
      .xTruncate = memory_truncate,
      .xSync = memory_nothing,
      .xFileSize = memory_size,
      .xLock = memory_nothing,
      .xUnlock = memory_nothing,
      .xCheckReservedLock = memory_check_reserved,
      .xFileControl = sim_control,
      .xSectorSize = sim_sector_size,
      .xDeviceCharacteristics = sim_characteristics,
  };
  *as_memory(file) = (struct memory_handle){.file.pMethods = &methods};
  if (out_flags) *out_flags = flags;
  return SQLITE_OK;
}

/* ---- The test's side ---- */

sqlite3_vfs *sim_vfs_register(struct os *clock) {
  static sqlite3_vfs vfs = {
      .iVersion = 2,
      .szOsFile = sizeof(struct sim_handle),
      .mxPathname = PATH_TEXT_MAX - 16,
      .zName = SIM_VFS_NAME,
      .xOpen = sim_open,
      .xDelete = sim_delete,
      .xAccess = sim_access,
      .xFullPathname = sim_full_pathname,
      .xDlOpen = sim_dl_open,
      .xDlError = sim_dl_error,
      .xDlSym = sim_dl_sym,
      .xDlClose = sim_dl_close,
      .xRandomness = sim_randomness,
      .xSleep = sim_sleep,
      .xCurrentTime = sim_current_time,
      .xGetLastError = sim_last_error,
      .xCurrentTimeInt64 = sim_current_time64,
  };
  sim.clock = clock;
  if (sqlite3_vfs_register(&vfs, 1) != SQLITE_OK) abort();
  return &vfs;
}

void sim_vfs_seed(uint64_t seed) {
  pthread_mutex_lock(&sim.mutex);
  sim.random = seed;
  pthread_mutex_unlock(&sim.mutex);
  sqlite3_randomness(0, NULL); /* its own generator asks xRandomness again */
}

void sim_vfs_mount(const char *folder, struct sim_machine *machine) {
  struct os *os = sim_machine_os(machine);
  if (os_make_directory(os, folder) != 0 || os_sync_directory(os, "/") != 0) abort();
  pthread_mutex_lock(&sim.mutex);
  if (sim.n_mounts == SIM_VFS_MOUNTS_MAX) abort();
  sim.mounts[sim.n_mounts].folder = folder;
  sim.mounts[sim.n_mounts++].machine = machine;
  pthread_mutex_unlock(&sim.mutex);
}

void sim_vfs_unmount(const char *folder) {
  pthread_mutex_lock(&sim.mutex);
  size_t i = 0;
  while (strcmp(sim.mounts[i].folder, folder) != 0) i++;
  sim.mounts[i] = sim.mounts[--sim.n_mounts];
  pthread_mutex_unlock(&sim.mutex);
}
