/*
** Who owns a database. The bytes that are locked, all by os_lock:
**
**      file                 bytes                    lock       from … to
**      app.db-balsa/lock    all                      exclusive  take … release
**      app.db               0x40000000 PENDING       exclusive  lock_files (alone) … settle
**                           0x40000001 RESERVED      exclusive  the same
**                           0x40000002 + 510 SHARED  exclusive  the same
**                                                    shared     settle, or lock_files (beside others) … release
**      app.db-shm           120 WRITE, 121 CKPT      exclusive  settle, or lock_files (beside others) … release
**                           122–127 RECOVER, READ    exclusive  lock_files (beside others) … settle
**                           128 DMS                  shared     settle, or lock_files (beside others) … release
**
** These are SQLite's own bytes (src/os_unix.c: PENDING_BYTE and its neighbours, UNIX_SHM_BASE, UNIX_SHM_DMS),
** so plain processes obey. EXCLUSIVE on the database means that nobody has it open: in WAL mode every
** connection keeps SHARED. SHARED there keeps plain processes from taking themselves for the last one, which
** would delete the WAL. SHARED on DMS keeps them from truncating the -shm as the first one. WRITE and CKPT
** make them get SQLITE_BUSY.
**
** Where a plain process has the database open, SHARED on the database is taken before the -shm is looked at:
** from then on nobody deletes or replaces it. Its bytes are taken one by one and kept, so that readers that
** follow each other cannot hold us off for ever.
**
** The process's own connections lock by POSIX locks, which belong to the process: closing any descriptor of a
** file drops them all, whoever took them. os_close of a file with locks takes care of that, also after the node, for a plain
** connection in this very process may use the database then.
*/
#include "ownership.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define PENDING_BYTE 0x40000000
#define SHARED_FIRST (PENDING_BYTE + 2)
#define SHARED_SIZE 510
#define EXCLUSIVE_SIZE (SHARED_FIRST + SHARED_SIZE - PENDING_BYTE)
#define SHM_LOCK_FIRST 120
#define SHM_LOCK_READ 123 /* READ(0) */
#define SHM_LOCK_DMS 128
#define SHM_LOCKS 8
#define SHM_LOCKS_KEPT 2 /* WRITE and CKPT */

#define RETRY_MS 5
#define TEXT_PATH_MAX 220 /* of a path in a sentence; the end of it tells more than its beginning */
#define PROCESS_TEXT_MAX 64

struct vfs_ownership {
  struct os *os;
  char *database_path, *shm_path, *lock_path;
  struct os_file *lock, *database, *shm;
};

/* ---- Sentences ---- */

__attribute__((format(printf, 2, 3))) static void say(char *text, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, VFS_OWNERSHIP_TEXT_MAX, format, arguments);
  va_end(arguments);
}

static const char *path_end(const char *path) {
  size_t length = strlen(path);
  return length <= TEXT_PATH_MAX ? path : path + length - TEXT_PATH_MAX;
}

/* "process 12 (sqlite3)", as far as it is known. */
static void say_process(char text[PROCESS_TEXT_MAX], int64_t pid) {
  char path[32], name[32] = "";
  if (pid == getpid()) {
    snprintf(text, PROCESS_TEXT_MAX, "this process itself");
    return;
  }
  if (pid <= 0) { /* -1: an OFD lock has no owner; 0: its process is in another namespace */
    snprintf(text, PROCESS_TEXT_MAX, "a process that the system does not name");
    return;
  }
  snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
  FILE *file = fopen(path, "re");
  if (file != NULL) {
    if (fgets(name, sizeof name, file) == NULL) name[0] = 0;
    fclose(file);
  }
  name[strcspn(name, "\n")] = 0;
  snprintf(text, PROCESS_TEXT_MAX, name[0] ? "process %d (%s)" : "process %d", (int)pid, name);
}

static void give_up(struct os_file **file) {
  os_close(*file);
  *file = NULL;
}

/* ---- Taking the folder ---- */

static int no_memory(char *text) {
  say(text, "out of memory");
  return -ENOMEM;
}

static int fail_lock(char *text, const char *path, int rc) {
  if (rc == -ENOTSUP) {
    say(text, "%s is on a file system without OFD locks (F_OFD_SETLK): put the database on a local one",
        path_end(path));
  } else {
    say(text, "cannot lock %s: %s", path_end(path), strerror(-rc));
  }
  return rc;
}

static int fail_open(char *text, const char *path, int rc) {
  say(text, "cannot open %s: %s", path_end(path), strerror(-rc));
  return rc;
}

static int check_links(const char *path, const struct os_stat *stat, char *text) {
  if (stat->links <= 1) return 0;
  say(text, "%s has %llu hard links, and under another name SQLite would use another -wal: remove all names but one",
      path_end(path), (unsigned long long)stat->links);
  return -EMLINK;
}

/* Refuses hard links before anything is touched; a missing file is made by vfs_ownership_lock_files. */
static int look_at_database(struct vfs_ownership *ownership, char *text) {
  struct os_stat stat;
  int rc = os_stat(ownership->os, ownership->database_path, &stat);
  if (rc == -ENOENT) return 0;
  if (rc != 0) return fail_open(text, ownership->database_path, rc);
  return check_links(ownership->database_path, &stat, text);
}

static void write_pid(struct os_file *lock) {
  char pid[16];
  int length = snprintf(pid, sizeof pid, "%d\n", (int)getpid());
  /* For a message in another process only: a full disk is no reason to refuse. */
  if (os_truncate(lock, 0) != 0 || os_write(lock, pid, (size_t)length, 0) != 0) return;
}

static int64_t read_pid(struct os_file *lock) {
  char pid[16] = "";
  int64_t length = os_read(lock, pid, sizeof pid - 1, 0);
  return length > 0 ? strtol(pid, NULL, 10) : -1;
}

static int take_lock_file(struct vfs_ownership *ownership, char *text) {
  int rc = os_open(ownership->os, ownership->lock_path, OS_OPEN_WRITE | OS_OPEN_CREATE | OS_OPEN_LOCKS,
                   &ownership->lock);
  if (rc != 0) return fail_open(text, ownership->lock_path, rc);
  rc = os_lock(ownership->lock, OS_LOCK_EXCLUSIVE, 0, 0);
  if (rc == 0) {
    write_pid(ownership->lock);
    return 0;
  }
  if (rc != -EAGAIN) return fail_lock(text, ownership->lock_path, rc);
  char process[PROCESS_TEXT_MAX];
  say_process(process, read_pid(ownership->lock));
  say(text, "%s is owned by %s: one process at a time can be its node; use that one or stop it (its lock is %s)",
      path_end(ownership->database_path), process, path_end(ownership->lock_path));
  return -EBUSY;
}

static char *concatenate(const char *a, const char *b) {
  size_t size = strlen(a) + strlen(b) + 1;
  char *text = malloc(size);
  if (text != NULL) snprintf(text, size, "%s%s", a, b);
  return text;
}

int vfs_ownership_take(struct os *os, const char *database_path, const char *folder, struct vfs_ownership **out,
                       char *text) {
  *out = NULL;
  text[0] = 0;
  struct vfs_ownership *ownership = calloc(1, sizeof *ownership);
  if (ownership == NULL) return no_memory(text);
  ownership->os = os;
  ownership->database_path = concatenate(database_path, "");
  ownership->shm_path = concatenate(database_path, "-shm");
  ownership->lock_path = concatenate(folder, "/lock");
  int rc = 0;
  if (ownership->database_path == NULL || ownership->shm_path == NULL || ownership->lock_path == NULL) {
    rc = no_memory(text);
  }
  if (rc == 0) rc = look_at_database(ownership, text);
  if (rc == 0) rc = take_lock_file(ownership, text);
  if (rc != 0) {
    vfs_ownership_release(ownership);
    return rc;
  }
  *out = ownership;
  return 0;
}

/* ---- Taking the files ---- */

static int open_database(struct vfs_ownership *ownership, char *text) {
  struct os_stat stat;
  int rc = os_open(ownership->os, ownership->database_path, OS_OPEN_WRITE | OS_OPEN_CREATE | OS_OPEN_LOCKS,
                   &ownership->database);
  if (rc == 0) rc = os_file_stat(ownership->database, &stat);
  return rc != 0 ? fail_open(text, ownership->database_path, rc) : check_links(ownership->database_path, &stat, text);
}

static int open_shm(struct vfs_ownership *ownership) {
  if (ownership->shm != NULL) return 0;
  return os_open(ownership->os, ownership->shm_path, OS_OPEN_WRITE | OS_OPEN_NOFOLLOW | OS_OPEN_LOCKS, &ownership->shm);
}

/* Names who is in the way in the range. */
static void say_holder(char *text, struct os_file *file, uint64_t start, uint64_t length, const char *path,
                       const char *what) {
  char process[PROCESS_TEXT_MAX];
  int64_t pid;
  if (!os_find_lock(file, start, length, &pid)) pid = 0; /* gone since */
  say_process(process, pid);
  say(text, "%s %s %s: wait until it is done, or stop it, and open again", process, what, path_end(path));
}

/* All eight bytes, each kept once it is ours. */
static int lock_shm_bytes(struct vfs_ownership *ownership, char *text) {
  for (unsigned i = SHM_LOCKS; i-- > 0;) { /* READ first: who has WRITE needs a READ lock too */
    int rc = os_lock(ownership->shm, OS_LOCK_EXCLUSIVE, SHM_LOCK_FIRST + i, 1);
    if (rc == -EAGAIN) {
      const char *what = SHM_LOCK_FIRST + i >= SHM_LOCK_READ ? "is in a read transaction of"
                                                             : "is writing, checkpointing or recovering";
      say_holder(text, ownership->shm, SHM_LOCK_FIRST + i, 1, ownership->database_path, what);
      return rc;
    }
    if (rc != 0) return fail_lock(text, ownership->shm_path, rc);
  }
  return 0;
}

/* One attempt to get all that is needed beside a plain process. -EAGAIN, with a sentence: not now. */
static int lock_beside(struct vfs_ownership *ownership, char *text) {
  int64_t pid;
  say_holder(text, ownership->database, PENDING_BYTE, EXCLUSIVE_SIZE, ownership->database_path, "is using");
  int rc = os_lock(ownership->database, OS_LOCK_SHARED, SHARED_FIRST, SHARED_SIZE);
  if (rc != 0) return rc == -EAGAIN ? rc : fail_lock(text, ownership->database_path, rc);
  rc = open_shm(ownership);
  if (rc == -ENOENT) return -EAGAIN; /* in rollback mode, or about to open the WAL */
  if (rc != 0) return fail_open(text, ownership->shm_path, rc);
  /* Nobody on DMS: left by a crash, and whoever has the database open has not come to it yet. */
  if (!os_find_lock(ownership->shm, SHM_LOCK_DMS, 1, &pid)) return -EAGAIN;
  rc = os_lock(ownership->shm, OS_LOCK_SHARED, SHM_LOCK_DMS, 1);
  if (rc != 0) return rc == -EAGAIN ? rc : fail_lock(text, ownership->shm_path, rc);
  return lock_shm_bytes(ownership, text);
}

static void pause_ms(struct os *os, uint32_t ms) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t never;
  uint64_t until = os_now(os) + ms * OS_MS;
  os_condition_init(&never);
  pthread_mutex_lock(&mutex);
  while (os_condition_wait(os, &never, &mutex, until) == 0) continue;
  pthread_mutex_unlock(&mutex);
  pthread_cond_destroy(&never);
}

int vfs_ownership_lock_files(struct vfs_ownership *ownership, uint32_t deadline_ms, bool *alone, char *text) {
  assert(ownership->lock != NULL && ownership->database == NULL);
  uint64_t deadline = os_now(ownership->os) + deadline_ms * OS_MS;
  text[0] = 0;
  *alone = false;
  int rc = open_database(ownership, text);
  if (rc != 0) return rc;
  for (;;) {
    rc = os_lock(ownership->database, OS_LOCK_EXCLUSIVE, PENDING_BYTE, EXCLUSIVE_SIZE);
    if (rc == 0) {
      give_up(&ownership->shm); /* the caller removes it */
      *alone = true;
      text[0] = 0;
      return 0;
    }
    if (rc != -EAGAIN) return fail_lock(text, ownership->database_path, rc);
    rc = lock_beside(ownership, text);
    if (rc == 0) text[0] = 0;
    if (rc != -EAGAIN) return rc;
    if (os_now(ownership->os) >= deadline) return -EBUSY;
    pause_ms(ownership->os, RETRY_MS);
  }
}

/* The -shm that we lock must be the one that others open by its name. */
static int check_shm(struct vfs_ownership *ownership, char *text) {
  struct os_stat ours, named;
  if (os_file_stat(ownership->shm, &ours) == 0 && os_stat(ownership->os, ownership->shm_path, &named) == 0 &&
      ours.device == named.device && ours.inode == named.inode) {
    return 0;
  }
  say(text, "%s was replaced while the database was being opened: open it again", path_end(ownership->shm_path));
  return -ESTALE;
}

static int settle_shm(struct vfs_ownership *ownership, char *text) {
  int rc = open_shm(ownership);
  if (rc != 0) return fail_open(text, ownership->shm_path, rc);
  if ((rc = check_shm(ownership, text)) != 0) return rc;
  rc = os_lock(ownership->shm, OS_LOCK_EXCLUSIVE, SHM_LOCK_FIRST, SHM_LOCKS_KEPT);
  if (rc == 0) rc = os_lock(ownership->shm, OS_LOCK_SHARED, SHM_LOCK_DMS, 1);
  if (rc == 0) {
    uint64_t rest = SHM_LOCK_FIRST + SHM_LOCKS_KEPT;
    rc = os_lock(ownership->shm, OS_UNLOCK, rest, SHM_LOCKS - SHM_LOCKS_KEPT);
  }
  if (rc == -EAGAIN) {
    say_holder(text, ownership->shm, SHM_LOCK_FIRST, SHM_LOCKS_KEPT, ownership->shm_path, "has locks on");
    return -EBUSY;
  }
  return rc == 0 ? 0 : fail_lock(text, ownership->shm_path, rc);
}

int vfs_ownership_settle(struct vfs_ownership *ownership, char *text) {
  assert(ownership->database != NULL);
  text[0] = 0;
  int rc = settle_shm(ownership, text);
  if (rc != 0) return rc;
  /* Exclusive becomes shared in one step; only then may others come in. */
  rc = os_lock(ownership->database, OS_LOCK_SHARED, SHARED_FIRST, SHARED_SIZE);
  if (rc == 0) rc = os_lock(ownership->database, OS_UNLOCK, PENDING_BYTE, SHARED_FIRST - PENDING_BYTE);
  return rc == 0 ? 0 : fail_lock(text, ownership->database_path, rc);
}

void vfs_ownership_forget_files(struct vfs_ownership *ownership) {
  give_up(&ownership->shm);
  give_up(&ownership->database);
}

void vfs_ownership_release(struct vfs_ownership *ownership) {
  if (ownership == NULL) return;
  give_up(&ownership->shm);
  give_up(&ownership->database);
  give_up(&ownership->lock);
  free(ownership->database_path);
  free(ownership->shm_path);
  free(ownership->lock_path);
  free(ownership);
}

bool vfs_ownership_reader(const struct vfs_ownership *ownership, int lock, char text[VFS_OWNERSHIP_PROCESS_MAX]) {
  int64_t process = 0;
  char found[PROCESS_TEXT_MAX];
  uint64_t start = SHM_LOCK_FIRST + (uint64_t)lock;
  if (!ownership->shm || !os_find_lock(ownership->shm, start, 1, &process)) return false;
  if (process == getpid()) return false;
  say_process(found, process);
  snprintf(text, VFS_OWNERSHIP_PROCESS_MAX, "%s", found);
  return true;
}
