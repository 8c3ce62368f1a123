/*
** The real machine: ext/os.h over Linux.
**
** Waits: pthread conditions can be timed by CLOCK_MONOTONIC or CLOCK_REALTIME only, deadlines here are
** CLOCK_BOOTTIME. The two advance alike but for the time the machine sleeps, so a deadline is turned
** into a monotonic one at each wait, and no wait is longer than WAIT_SLICE: after a sleep a waiter is at
** most that late.
*/
#include "os.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define WAIT_SLICE OS_SECOND
#define ZEROS_SIZE (64u << 10)
#define DESCRIPTOR_MIN 3 /* 0, 1 and 2 may be closed in the application, which may still write to them */

struct real_file {
  struct os_file base;
  int descriptor; /* -1: of a file with locks, in a forked child */
  bool has_locks;
  struct real_file *next; /* of those with locks */
};

struct real_thread {
  struct os_thread base;
  pthread_t thread;
  char name[16]; /* the kernel's limit */
  void (*run)(void *arg);
  void *arg;
};

static struct real_file *as_real(struct os_file *file) {
  return (struct real_file *)file;
}

/* ---- Clock and randomness ---- */

static uint64_t clock_ns(clockid_t clock) {
  struct timespec time;
  int error = clock_gettime(clock, &time);
  (void)error;
  return (uint64_t)time.tv_sec * OS_SECOND + (uint64_t)time.tv_nsec;
}

static uint64_t real_now(struct os *os) {
  (void)os;
  return clock_ns(CLOCK_BOOTTIME);
}

static void real_random(struct os *os, void *bytes, size_t size) {
  uint8_t *next = bytes;
  (void)os;
  while (size > 0) {
    ssize_t n = getrandom(next, size < 256 ? size : 256, 0);
    if (n < 0) {
      if (errno == EINTR) continue;
      perror("balsa: getrandom"); /* not on any kernel that has OFD locks; weak numbers would be worse */
      abort();
    }
    next += n;
    size -= (size_t)n;
  }
}

/* As Linux has it: a UUID in text. */
static uint64_t real_boot(struct os *os) {
  char text[64] = "";
  uint64_t boot = UINT64_C(0xcbf29ce484222325); /* FNV-1a */
  (void)os;
  FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
  if (file == NULL) return 0;
  if (fgets(text, sizeof text, file) == NULL) text[0] = 0;
  fclose(file);
  for (const char *at = text; *at; at++) boot = (boot ^ (uint8_t)*at) * UINT64_C(0x100000001b3);
  return text[0] ? boot : 0;
}

/* ---- Files ---- */

static int open_descriptor(const char *path, int mode, int *descriptor) {
  *descriptor = open(path, mode, 0644);
  while (*descriptor < 0 && errno == EINTR) *descriptor = open(path, mode, 0644);
  return *descriptor < 0 ? -errno : 0;
}

static int open_above_standard(const char *path, int mode, int *descriptor) {
  int error = open_descriptor(path, mode, descriptor);
  if (error || *descriptor >= DESCRIPTOR_MIN) return error;
  int higher = fcntl(*descriptor, F_DUPFD_CLOEXEC, DESCRIPTOR_MIN);
  if (higher < 0) error = -errno;
  close(*descriptor);
  *descriptor = higher;
  return error;
}

static int open_with_locks(struct real_file *real, const char *path, int mode);
static void close_with_locks(struct real_file *real);

static int real_open(struct os *os, const char *path, int flags, struct os_file **file) {
  int mode = O_CLOEXEC | ((flags & OS_OPEN_WRITE) ? O_RDWR : O_RDONLY);
  if (flags & OS_OPEN_CREATE) mode |= O_CREAT;
  if (flags & OS_OPEN_EXCL) mode |= O_EXCL;
  if (flags & OS_OPEN_DSYNC) mode |= O_DSYNC;
  if (flags & OS_OPEN_NOFOLLOW) mode |= O_NOFOLLOW;
  *file = NULL;
  struct real_file *real = calloc(1, sizeof *real);
  if (real == NULL) return -ENOMEM;
  real->base.os = os;
  real->has_locks = (flags & OS_OPEN_LOCKS) != 0;
  int error = real->has_locks ? open_with_locks(real, path, mode) : open_above_standard(path, mode, &real->descriptor);
  if (error) {
    free(real);
    return error;
  }
  *file = &real->base;
  return 0;
}

static void real_close(struct os_file *file) {
  struct real_file *real = as_real(file);
  if (real->has_locks) {
    close_with_locks(real);
    return;
  }
  close(real->descriptor); /* EINTR: Linux has closed it all the same */
  free(real);
}

static int64_t real_read(struct os_file *file, void *bytes, size_t size, uint64_t offset) {
  uint8_t *next = bytes;
  size_t left = size;
  while (left > 0) {
    ssize_t n = pread(as_real(file)->descriptor, next, left, (off_t)offset);
    if (n < 0) {
      if (errno == EINTR) continue;
      return -errno;
    }
    if (n == 0) break;
    next += n;
    left -= (size_t)n;
    offset += (uint64_t)n;
  }
  return (int64_t)(size - left);
}

static int real_write(struct os_file *file, const void *bytes, size_t size, uint64_t offset) {
  const uint8_t *next = bytes;
  while (size > 0) {
    ssize_t n = pwrite(as_real(file)->descriptor, next, size, (off_t)offset);
    if (n < 0) {
      if (errno == EINTR) continue;
      return -errno;
    }
    if (n == 0) return -EIO;
    next += n;
    size -= (size_t)n;
    offset += (uint64_t)n;
  }
  return 0;
}

static int real_sync(struct os_file *file) {
  int result = fdatasync(as_real(file)->descriptor);
  while (result < 0 && errno == EINTR) result = fdatasync(as_real(file)->descriptor);
  return result < 0 ? -errno : 0;
}

/* Where the kernel or a file system has no such call, the next sync takes longer. */
static int real_write_back(struct os_file *file, uint64_t offset, uint64_t size, bool wait) {
  unsigned flags = SYNC_FILE_RANGE_WRITE;
  if (wait) flags |= SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WAIT_AFTER;
  int result = sync_file_range(as_real(file)->descriptor, (off_t)offset, (off_t)size, flags);
  while (result < 0 && errno == EINTR)
    result = sync_file_range(as_real(file)->descriptor, (off_t)offset, (off_t)size, flags);
  if (result < 0 && (errno == ENOSYS || errno == EINVAL || errno == EPERM || errno == ESPIPE)) return 0;
  return result < 0 ? -errno : 0;
}

static int real_truncate(struct os_file *file, uint64_t size) {
  int result = ftruncate(as_real(file)->descriptor, (off_t)size);
  while (result < 0 && errno == EINTR) result = ftruncate(as_real(file)->descriptor, (off_t)size);
  return result < 0 ? -errno : 0;
}

static int real_size(struct os_file *file, uint64_t *size) {
  struct stat status;
  if (fstat(as_real(file)->descriptor, &status) < 0) return -errno;
  *size = (uint64_t)status.st_size;
  return 0;
}

static void take_stat(const struct stat *status, struct os_stat *stat) {
  *stat = (struct os_stat){
      .device = status->st_dev,
      .inode = status->st_ino,
      .links = status->st_nlink,
      .size = (uint64_t)status->st_size,
      .mtime_ns = (uint64_t)status->st_mtim.tv_sec * OS_SECOND + (uint64_t)status->st_mtim.tv_nsec,
  };
}

static int real_file_stat(struct os_file *file, struct os_stat *stat) {
  struct stat status;
  if (fstat(as_real(file)->descriptor, &status) < 0) return -errno;
  take_stat(&status, stat);
  return 0;
}

/*
** The reservation comes first only to hear of a full disk before anything is written, and for one
** extent; blocks that are merely reserved would cost every later sync a change of metadata.
*/
static int real_allocate(struct os_file *file, uint64_t size) {
  static const uint8_t zeros[ZEROS_SIZE];
  uint64_t offset = 0;
  int error = real_size(file, &offset);
  if (error || offset >= size) return error;
  if (fallocate(as_real(file)->descriptor, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)(size - offset)) < 0 &&
      (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
    return -errno;
  while (offset < size) {
    size_t n = size - offset < ZEROS_SIZE ? (size_t)(size - offset) : ZEROS_SIZE;
    error = real_write(file, zeros, n, offset);
    if (error) return error;
    offset += n;
  }
  return 0;
}

/* ---- Locks ---- */

/*
** Files with locks, and those given up that could not be closed yet. The mutex guards both, is held over a fork and while
** such a file is opened, and is taken last of all locks.
*/
static struct {
  pthread_mutex_t mutex;
  pthread_once_t once;
  struct real_file *held, *retired;
} locking = {.mutex = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void before_fork(void) {
  pthread_mutex_lock(&locking.mutex);
}

static void after_fork_in_parent(void) {
  pthread_mutex_unlock(&locking.mutex);
}

static void close_in_child(struct real_file *list) {
  for (struct real_file *at = list; at != NULL; at = at->next) {
    if (at->descriptor >= 0) close(at->descriptor);
    at->descriptor = -1;
  }
}

/* A lock lives as long as any descriptor of its description: the child's must go. */
static void after_fork_in_child(void) {
  close_in_child(locking.held);
  close_in_child(locking.retired);
  pthread_mutex_unlock(&locking.mutex);
}

static void watch_forks(void) {
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* What is opened next gets a number above them: to close a lower one afterwards would drop POSIX locks on its file. */
static void fill_standard_descriptors(void) {
  int descriptor;
  do {
    descriptor = open("/dev/null", O_RDWR | O_CLOEXEC);
  } while (descriptor >= 0 && descriptor < DESCRIPTOR_MIN);
  if (descriptor >= 0) close(descriptor);
}

static int open_with_locks(struct real_file *real, const char *path, int mode) {
  pthread_once(&locking.once, watch_forks);
  pthread_mutex_lock(&locking.mutex);
  fill_standard_descriptors();
  int error = open_descriptor(path, mode, &real->descriptor);
  if (!error) {
    real->next = locking.held;
    locking.held = real;
  }
  pthread_mutex_unlock(&locking.mutex);
  return error;
}

static int real_lock(struct os_file *file, enum os_lock lock, uint64_t start, uint64_t length) {
  static const short types[] = {[OS_UNLOCK] = F_UNLCK, [OS_LOCK_SHARED] = F_RDLCK, [OS_LOCK_EXCLUSIVE] = F_WRLCK};
  struct flock range = {.l_type = types[lock], .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)length};
  if (fcntl(as_real(file)->descriptor, F_OFD_SETLK, &range) == 0) return 0;
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

static bool real_find_lock(struct os_file *file, uint64_t start, uint64_t length, int64_t *process) {
  struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)length};
  struct flock others = range;
  int descriptor = as_real(file)->descriptor;
  *process = 0;
  if (fcntl(descriptor, F_OFD_GETLK, &range) != 0 || range.l_type == F_UNLCK) return false;
  *process = range.l_pid; /* -1 for an OFD lock */
  /* The first of several is told. F_GETLK does not see the POSIX locks of this process. */
  if (range.l_pid == getpid() && fcntl(descriptor, F_GETLK, &others) == 0 && others.l_type != F_UNLCK)
    *process = others.l_pid;
  return true;
}

/* Somebody may hold POSIX locks on the file that closing a descriptor would drop, if they are this process's. */
static bool may_close(struct real_file *real) {
  int64_t process;
  return real->descriptor < 0 || !real_find_lock(&real->base, 0, 0, &process);
}

static void remove_from(struct real_file **list, struct real_file *real) {
  while (*list != real) list = &(*list)->next;
  *list = real->next;
}

/* Closes it now or, if POSIX locks hang on the file, when a later one is closed. */
static void close_with_locks(struct real_file *real) {
  if (real->descriptor >= 0) (void)real_lock(&real->base, OS_UNLOCK, 0, 0);
  pthread_mutex_lock(&locking.mutex);
  remove_from(&locking.held, real);
  real->next = locking.retired;
  locking.retired = real;
  for (struct real_file **at = &locking.retired; *at != NULL;) {
    struct real_file *retired = *at;
    if (may_close(retired)) {
      *at = retired->next;
      if (retired->descriptor >= 0) close(retired->descriptor);
      free(retired);
    } else {
      at = &retired->next;
    }
  }
  pthread_mutex_unlock(&locking.mutex);
}

/* ---- Names ---- */

static int real_stat(struct os *os, const char *path, struct os_stat *stat_out) {
  struct stat status;
  (void)os;
  if (stat(path, &status) < 0) return -errno;
  take_stat(&status, stat_out);
  return 0;
}

static int real_real_path(struct os *os, const char *path, char real[OS_PATH_MAX]) {
  char resolved[PATH_MAX];
  _Static_assert(PATH_MAX <= OS_PATH_MAX, "realpath writes PATH_MAX bytes");
  (void)os;
  if (!realpath(path, resolved)) return -errno;
  snprintf(real, OS_PATH_MAX, "%s", resolved);
  return 0;
}

static int real_rename(struct os *os, const char *from, const char *to) {
  (void)os;
  return rename(from, to) < 0 ? -errno : 0;
}

static int real_remove(struct os *os, const char *path) {
  (void)os;
  return unlink(path) < 0 ? -errno : 0;
}

static int real_make_directory(struct os *os, const char *path) {
  struct stat status;
  (void)os;
  if (mkdir(path, 0755) == 0) return 0;
  if (errno != EEXIST) return -errno;
  if (stat(path, &status) < 0) return -errno;
  return S_ISDIR(status.st_mode) ? 0 : -ENOTDIR;
}

static int real_sync_directory(struct os *os, const char *path) {
  int error = 0;
  (void)os;
  int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return -errno;
  if (fsync(descriptor) < 0) error = -errno;
  close(descriptor);
  return error;
}

static int real_list(struct os *os, const char *path, int (*each)(void *ctx, const char *name), void *ctx) {
  int result = 0;
  (void)os;
  DIR *directory = opendir(path);
  if (directory == NULL) return -errno;
  while (result == 0) {
    errno = 0;
    struct dirent *entry = readdir(directory);
    if (entry == NULL) {
      result = -errno;
      break;
    }
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    result = each(ctx, entry->d_name);
  }
  closedir(directory);
  return result;
}

/* ---- Threads and waits ---- */

static void *thread_main(void *arg) {
  struct real_thread *thread = arg;
  pthread_setname_np(pthread_self(), thread->name);
  thread->run(thread->arg);
  return NULL;
}

static int real_thread_start(struct os *os, const char *name, void (*run)(void *arg), void *arg,
                             struct os_thread **thread) {
  sigset_t all, before;
  *thread = NULL;
  struct real_thread *made = calloc(1, sizeof *made);
  if (made == NULL) return -ENOMEM;
  made->base.os = os;
  made->run = run;
  made->arg = arg;
  snprintf(made->name, sizeof made->name, "%s", name);
  /* A thread inherits the mask: no signal can reach it even before its first instruction. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(&made->thread, NULL, thread_main, made);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (error) {
    free(made);
    return -error;
  }
  *thread = &made->base;
  return 0;
}

/* Not even for a moment when somebody else wakes up, which no nice value gives. If it is not allowed: as everybody else. */
static void real_thread_yield_to_all(struct os *os) {
  const struct sched_param parameters = {.sched_priority = 0};
  (void)os;
  (void)sched_setscheduler(0, SCHED_IDLE, &parameters);
}

static void real_thread_join(struct os_thread *thread) {
  pthread_join(((struct real_thread *)thread)->thread, NULL);
  free(thread);
}

static int real_condition_wait(struct os *os, pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline) {
  if (deadline == OS_FOREVER) {
    pthread_cond_wait(condition, mutex);
    return 0;
  }
  uint64_t now = real_now(os);
  if (now >= deadline) return -ETIMEDOUT;
  uint64_t left = deadline - now < WAIT_SLICE ? deadline - now : WAIT_SLICE;
  uint64_t until = clock_ns(CLOCK_MONOTONIC) + left;
  struct timespec time = {.tv_sec = (time_t)(until / OS_SECOND), .tv_nsec = (long)(until % OS_SECOND)};
  pthread_cond_timedwait(condition, mutex, &time);
  return real_now(os) >= deadline ? -ETIMEDOUT : 0;
}

void os_condition_init(pthread_cond_t *condition) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(condition, &attributes);
  pthread_condattr_destroy(&attributes);
}

struct os *os_real(void) {
  static const struct os_methods methods = {
      .now = real_now,
      .random = real_random,
      .boot = real_boot,
      .open = real_open,
      .close = real_close,
      .read = real_read,
      .write = real_write,
      .sync = real_sync,
      .write_back = real_write_back,
      .truncate = real_truncate,
      .allocate = real_allocate,
      .size = real_size,
      .file_stat = real_file_stat,
      .lock = real_lock,
      .find_lock = real_find_lock,
      .stat = real_stat,
      .real_path = real_real_path,
      .rename = real_rename,
      .remove = real_remove,
      .make_directory = real_make_directory,
      .sync_directory = real_sync_directory,
      .list = real_list,
      .thread_start = real_thread_start,
      .thread_join = real_thread_join,
      .thread_yield_to_all = real_thread_yield_to_all,
      .condition_wait = real_condition_wait,
  };
  static struct os real = {&methods};
  return &real;
}

/* ---- What users call ---- */

uint64_t os_now(struct os *os) {
  return os->methods->now(os);
}

void os_random(struct os *os, void *bytes, size_t size) {
  os->methods->random(os, bytes, size);
}

uint64_t os_boot(struct os *os) {
  return os->methods->boot(os);
}

int os_open(struct os *os, const char *path, int flags, struct os_file **file) {
  return os->methods->open(os, path, flags, file);
}

void os_close(struct os_file *file) {
  if (file) file->os->methods->close(file);
}

int64_t os_read(struct os_file *file, void *bytes, size_t size, uint64_t offset) {
  return file->os->methods->read(file, bytes, size, offset);
}

int os_write(struct os_file *file, const void *bytes, size_t size, uint64_t offset) {
  return file->os->methods->write(file, bytes, size, offset);
}

int os_sync(struct os_file *file) {
  return file->os->methods->sync(file);
}

int os_write_back(struct os_file *file, uint64_t offset, uint64_t size, bool wait) {
  if (size == 0 || !file->os->methods->write_back) return 0; /* 0 bytes would mean all of it */
  return file->os->methods->write_back(file, offset, size, wait);
}

int os_truncate(struct os_file *file, uint64_t size) {
  return file->os->methods->truncate(file, size);
}

int os_allocate(struct os_file *file, uint64_t size) {
  return file->os->methods->allocate(file, size);
}

int os_size(struct os_file *file, uint64_t *size) {
  return file->os->methods->size(file, size);
}

int os_file_stat(struct os_file *file, struct os_stat *stat) {
  return file->os->methods->file_stat(file, stat);
}

int os_lock(struct os_file *file, enum os_lock lock, uint64_t start, uint64_t length) {
  return file->os->methods->lock(file, lock, start, length);
}

bool os_find_lock(struct os_file *file, uint64_t start, uint64_t length, int64_t *process) {
  return file->os->methods->find_lock(file, start, length, process);
}

int os_stat(struct os *os, const char *path, struct os_stat *stat) {
  return os->methods->stat(os, path, stat);
}

int os_real_path(struct os *os, const char *path, char real[OS_PATH_MAX]) {
  return os->methods->real_path(os, path, real);
}

int os_rename(struct os *os, const char *from, const char *to) {
  return os->methods->rename(os, from, to);
}

int os_remove(struct os *os, const char *path) {
  return os->methods->remove(os, path);
}

int os_make_directory(struct os *os, const char *path) {
  return os->methods->make_directory(os, path);
}

int os_sync_directory(struct os *os, const char *path) {
  return os->methods->sync_directory(os, path);
}

int os_list(struct os *os, const char *path, int (*each)(void *ctx, const char *name), void *ctx) {
  return os->methods->list(os, path, each, ctx);
}

int os_thread_start(struct os *os, const char *name, void (*run)(void *arg), void *arg, struct os_thread **thread) {
  return os->methods->thread_start(os, name, run, arg, thread);
}

void os_thread_join(struct os_thread *thread) {
  thread->os->methods->thread_join(thread);
}

void os_thread_yield_to_all(struct os *os) {
  if (os->methods->thread_yield_to_all) os->methods->thread_yield_to_all(os);
}

int os_condition_wait(struct os *os, pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline) {
  return os->methods->condition_wait(os, condition, mutex, deadline);
}
