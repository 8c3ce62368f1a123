/*
** Who owns a database. The bytes that are locked, all by open file descriptions (F_OFD_SETLK):
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
** file drops them all, whoever took them. So descriptors of the database and the -shm stay open while the
** node lives, and after it as long as anybody still has a POSIX lock on the file, who may be a plain
** connection in this very process.
*/
#include "ownership.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../ext/os.h"

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
#define OPEN_TRIES_MAX 3

/* A descriptor with locks. All are in one list, for forks. */
struct descriptor {
  int fd; /* -1 in a forked child */
  struct descriptor *next;
};

struct vfs_ownership {
  char *database_path, *shm_path, *lock_path;
  struct descriptor *lock, *database, *shm;
  dev_t device;
  ino_t inode;
};

/*
** The list of descriptors, and those given up that could not be closed yet. The mutex guards both, is held
** over a fork and while a descriptor is opened, and is taken last of all locks.
*/
static struct {
  pthread_mutex_t mutex;
  pthread_once_t once;
  struct descriptor *held, *retired;
} registry = {.mutex = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

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
static void say_process(char text[PROCESS_TEXT_MAX], pid_t pid) {
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

/* ---- Descriptors ---- */

static void before_fork(void) {
  pthread_mutex_lock(&registry.mutex);
}

static void after_fork_in_parent(void) {
  pthread_mutex_unlock(&registry.mutex);
}

/* A lock lives as long as any descriptor of its description: the child's must go. */
static void after_fork_in_child(void) {
  for (struct descriptor *d = registry.held; d != NULL; d = d->next) {
    if (d->fd >= 0) close(d->fd);
    d->fd = -1;
  }
  for (struct descriptor *d = registry.retired; d != NULL; d = d->next) {
    if (d->fd >= 0) close(d->fd);
    d->fd = -1;
  }
  pthread_mutex_unlock(&registry.mutex);
}

static void watch_forks(void) {
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* A process without stdin, stdout or stderr must not get the database as one of them. */
static void fill_standard_descriptors(void) {
  int fd;
  do {
    fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  } while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd >= 0) close(fd);
}

/* NULL: *error is why. */
static struct descriptor *open_descriptor(const char *path, int flags, int *error) {
  pthread_once(&registry.once, watch_forks);
  struct descriptor *descriptor = calloc(1, sizeof *descriptor);
  *error = -ENOMEM;
  if (descriptor == NULL) return NULL;
  pthread_mutex_lock(&registry.mutex);
  fill_standard_descriptors();
  descriptor->fd = open(path, flags | O_CLOEXEC, 0644);
  *error = descriptor->fd < 0 ? -errno : 0;
  if (*error == 0) {
    descriptor->next = registry.held;
    registry.held = descriptor;
  }
  pthread_mutex_unlock(&registry.mutex);
  if (*error == 0) return descriptor;
  free(descriptor);
  return NULL;
}

static void remove_from(struct descriptor **list, struct descriptor *descriptor) {
  while (*list != descriptor) list = &(*list)->next;
  *list = descriptor->next;
}

/* 0, -EAGAIN if somebody else's lock is in the way, -ENOTSUP. */
static int set_lock(const struct descriptor *descriptor, short type, off_t start, off_t length) {
  struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
  if (fcntl(descriptor->fd, F_OFD_SETLK, &lock) == 0) return 0;
  switch (errno) {
  case EACCES:
  case EAGAIN: return -EAGAIN;
  case EINVAL:
  case ENOSYS:
  case EOPNOTSUPP:
  case ENOLCK: return -ENOTSUP;
  default: return -errno;
  }
}

/* Is there a lock that would keep `type` from us? *pid is -1 for an OFD lock. */
static bool get_lock(const struct descriptor *descriptor, short type, off_t start, off_t length, pid_t *pid) {
  struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
  *pid = 0;
  if (fcntl(descriptor->fd, F_OFD_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) return false;
  *pid = lock.l_pid;
  return true;
}

/* Somebody may hold POSIX locks on the file that closing a descriptor would drop, if they are this process's. */
static bool may_close(const struct descriptor *descriptor) {
  pid_t pid;
  return descriptor->fd < 0 || !get_lock(descriptor, F_WRLCK, 0, 0, &pid);
}

/* Gives up the locks of a descriptor, and closes it now or, if POSIX locks hang on the file, at a later call. */
static void give_up(struct descriptor *descriptor) {
  if (descriptor != NULL && descriptor->fd >= 0) (void)set_lock(descriptor, F_UNLCK, 0, 0);
  pthread_mutex_lock(&registry.mutex);
  if (descriptor != NULL) {
    remove_from(&registry.held, descriptor);
    descriptor->next = registry.retired;
    registry.retired = descriptor;
  }
  for (struct descriptor **at = &registry.retired; *at != NULL;) {
    struct descriptor *d = *at;
    if (may_close(d)) {
      *at = d->next;
      if (d->fd >= 0) close(d->fd);
      free(d);
    } else {
      at = &d->next;
    }
  }
  pthread_mutex_unlock(&registry.mutex);
}

static void give_up_shm(struct vfs_ownership *ownership) {
  give_up(ownership->shm);
  ownership->shm = NULL;
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

static int check_links(const char *path, const struct stat *status, char *text) {
  if (status->st_nlink <= 1) return 0;
  say(text, "%s has %lu hard links, and under another name SQLite would use another -wal: remove all names but one",
      path_end(path), (unsigned long)status->st_nlink);
  return -EMLINK;
}

/* Refuses hard links before anything is touched; a missing file is made by vfs_ownership_lock_files. */
static int look_at_database(struct vfs_ownership *ownership, char *text) {
  struct stat status;
  if (stat(ownership->database_path, &status) != 0) {
    if (errno == ENOENT) return 0;
    return fail_open(text, ownership->database_path, -errno);
  }
  ownership->device = status.st_dev;
  ownership->inode = status.st_ino;
  return check_links(ownership->database_path, &status, text);
}

static void write_pid(const struct descriptor *lock) {
  char pid[16];
  int length = snprintf(pid, sizeof pid, "%d\n", (int)getpid());
  /* For a message in another process only: a full disk is no reason to refuse. */
  if (ftruncate(lock->fd, 0) != 0 || pwrite(lock->fd, pid, (size_t)length, 0) != length) return;
}

static pid_t read_pid(const struct descriptor *lock) {
  char pid[16] = "";
  ssize_t length = pread(lock->fd, pid, sizeof pid - 1, 0);
  return length > 0 ? (pid_t)strtol(pid, NULL, 10) : -1;
}

static int take_lock_file(struct vfs_ownership *ownership, char *text) {
  int rc;
  ownership->lock = open_descriptor(ownership->lock_path, O_RDWR | O_CREAT, &rc);
  if (ownership->lock == NULL) return fail_open(text, ownership->lock_path, rc);
  rc = set_lock(ownership->lock, F_WRLCK, 0, 0);
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

int vfs_ownership_take(const char *database_path, const char *folder, struct vfs_ownership **out, char *text) {
  *out = NULL;
  text[0] = 0;
  struct vfs_ownership *ownership = calloc(1, sizeof *ownership);
  if (ownership == NULL) return no_memory(text);
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
  struct stat status;
  int rc;
  ownership->database = open_descriptor(ownership->database_path, O_RDWR | O_CREAT, &rc);
  if (ownership->database == NULL) return fail_open(text, ownership->database_path, rc);
  if (fstat(ownership->database->fd, &status) != 0) return fail_open(text, ownership->database_path, -errno);
  ownership->device = status.st_dev;
  ownership->inode = status.st_ino;
  return check_links(ownership->database_path, &status, text);
}

static int open_shm(struct vfs_ownership *ownership) {
  int rc = 0;
  if (ownership->shm == NULL) ownership->shm = open_descriptor(ownership->shm_path, O_RDWR | O_NOFOLLOW, &rc);
  return rc;
}

/* Names who is in the way in the range. */
static void say_holder(char *text, const struct descriptor *descriptor, off_t start, off_t length, const char *path,
                       const char *what) {
  char process[PROCESS_TEXT_MAX];
  pid_t pid;
  if (!get_lock(descriptor, F_WRLCK, start, length, &pid)) pid = 0; /* gone since */
  say_process(process, pid);
  say(text, "%s %s %s: wait until it is done, or stop it, and open again", process, what, path_end(path));
}

/* All eight bytes, each kept once it is ours. */
static int lock_shm_bytes(struct vfs_ownership *ownership, char *text) {
  for (int i = SHM_LOCKS - 1; i >= 0; i--) { /* READ first: who has WRITE needs a READ lock too */
    int rc = set_lock(ownership->shm, F_WRLCK, SHM_LOCK_FIRST + i, 1);
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
  pid_t pid;
  say_holder(text, ownership->database, PENDING_BYTE, EXCLUSIVE_SIZE, ownership->database_path, "is using");
  int rc = set_lock(ownership->database, F_RDLCK, SHARED_FIRST, SHARED_SIZE);
  if (rc != 0) return rc == -EAGAIN ? rc : fail_lock(text, ownership->database_path, rc);
  rc = open_shm(ownership);
  if (rc == -ENOENT) return -EAGAIN; /* in rollback mode, or about to open the WAL */
  if (rc != 0) return fail_open(text, ownership->shm_path, rc);
  /* Nobody on DMS: left by a crash, and whoever has the database open has not come to it yet. */
  if (!get_lock(ownership->shm, F_WRLCK, SHM_LOCK_DMS, 1, &pid)) return -EAGAIN;
  rc = set_lock(ownership->shm, F_RDLCK, SHM_LOCK_DMS, 1);
  if (rc != 0) return rc == -EAGAIN ? rc : fail_lock(text, ownership->shm_path, rc);
  return lock_shm_bytes(ownership, text);
}

static void pause_ms(uint32_t ms) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t never;
  uint64_t until = os_now(os_real()) + ms * OS_MS;
  os_condition_init(&never);
  pthread_mutex_lock(&mutex);
  while (os_condition_wait(os_real(), &never, &mutex, until) == 0) continue;
  pthread_mutex_unlock(&mutex);
  pthread_cond_destroy(&never);
}

int vfs_ownership_lock_files(struct vfs_ownership *ownership, uint32_t deadline_ms, bool *alone, char *text) {
  assert(ownership->lock != NULL && ownership->database == NULL);
  uint64_t deadline = os_now(os_real()) + deadline_ms * OS_MS;
  text[0] = 0;
  *alone = false;
  int rc = open_database(ownership, text);
  if (rc != 0) return rc;
  for (;;) {
    rc = set_lock(ownership->database, F_WRLCK, PENDING_BYTE, EXCLUSIVE_SIZE);
    if (rc == 0) {
      give_up_shm(ownership); /* the caller removes it */
      *alone = true;
      text[0] = 0;
      return 0;
    }
    if (rc != -EAGAIN) return fail_lock(text, ownership->database_path, rc);
    rc = lock_beside(ownership, text);
    if (rc == 0) text[0] = 0;
    if (rc != -EAGAIN) return rc;
    if (os_now(os_real()) >= deadline) return -EBUSY;
    pause_ms(RETRY_MS);
  }
}

/* The -shm that we lock must be the one that others open by its name. */
static int check_shm(struct vfs_ownership *ownership, char *text) {
  struct stat ours, named;
  if (fstat(ownership->shm->fd, &ours) == 0 && stat(ownership->shm_path, &named) == 0 && ours.st_dev == named.st_dev &&
      ours.st_ino == named.st_ino) {
    return 0;
  }
  say(text, "%s was replaced while the database was being opened: open it again", path_end(ownership->shm_path));
  return -ESTALE;
}

static int settle_shm(struct vfs_ownership *ownership, char *text) {
  int rc = open_shm(ownership);
  if (rc != 0) return fail_open(text, ownership->shm_path, rc);
  if ((rc = check_shm(ownership, text)) != 0) return rc;
  rc = set_lock(ownership->shm, F_WRLCK, SHM_LOCK_FIRST, SHM_LOCKS_KEPT);
  if (rc == 0) rc = set_lock(ownership->shm, F_RDLCK, SHM_LOCK_DMS, 1);
  if (rc == 0) {
    off_t rest = SHM_LOCK_FIRST + SHM_LOCKS_KEPT;
    rc = set_lock(ownership->shm, F_UNLCK, rest, SHM_LOCKS - SHM_LOCKS_KEPT);
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
  rc = set_lock(ownership->database, F_RDLCK, SHARED_FIRST, SHARED_SIZE);
  if (rc == 0) rc = set_lock(ownership->database, F_UNLCK, PENDING_BYTE, SHARED_FIRST - PENDING_BYTE);
  return rc == 0 ? 0 : fail_lock(text, ownership->database_path, rc);
}

void vfs_ownership_release(struct vfs_ownership *ownership) {
  if (ownership == NULL) return;
  give_up(ownership->shm);
  give_up(ownership->database);
  if (ownership->lock != NULL) {
    pthread_mutex_lock(&registry.mutex);
    remove_from(&registry.held, ownership->lock);
    pthread_mutex_unlock(&registry.mutex);
    if (ownership->lock->fd >= 0) close(ownership->lock->fd); /* nobody has POSIX locks on our own file */
    free(ownership->lock);
  }
  free(ownership->database_path);
  free(ownership->shm_path);
  free(ownership->lock_path);
  free(ownership);
}

void vfs_ownership_identity(const struct vfs_ownership *ownership, dev_t *device, ino_t *inode) {
  *device = ownership->device;
  *inode = ownership->inode;
}
