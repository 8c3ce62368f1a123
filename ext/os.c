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
  int descriptor;
};

struct os_thread {
  struct os *os;
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

/* ---- Files ---- */

static int real_open(struct os *os, const char *path, int flags, struct os_file **file) {
  int mode = O_CLOEXEC | ((flags & OS_OPEN_WRITE) ? O_RDWR : O_RDONLY);
  if (flags & OS_OPEN_CREATE) mode |= O_CREAT;
  if (flags & OS_OPEN_EXCL) mode |= O_EXCL;
  if (flags & OS_OPEN_DSYNC) mode |= O_DSYNC;
  *file = NULL;
  struct real_file *real = malloc(sizeof *real);
  if (real == NULL) return -ENOMEM;
  int descriptor = open(path, mode, 0644);
  while (descriptor < 0 && errno == EINTR) descriptor = open(path, mode, 0644);
  int error = descriptor < 0 ? -errno : 0;
  if (descriptor >= 0 && descriptor < DESCRIPTOR_MIN) {
    int higher = fcntl(descriptor, F_DUPFD_CLOEXEC, DESCRIPTOR_MIN);
    if (higher < 0) error = -errno;
    close(descriptor);
    descriptor = higher;
  }
  if (error) {
    free(real);
    return error;
  }
  real->base.os = os;
  real->descriptor = descriptor;
  *file = &real->base;
  return 0;
}

static void real_close(struct os_file *file) {
  close(as_real(file)->descriptor); /* EINTR: Linux has closed it all the same */
  free(file);
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

/* ---- Names ---- */

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
  struct os_thread *thread = arg;
  pthread_setname_np(pthread_self(), thread->name);
  thread->run(thread->arg);
  return NULL;
}

static int real_thread_start(struct os *os, const char *name, void (*run)(void *arg), void *arg,
                             struct os_thread **thread) {
  sigset_t all, before;
  *thread = NULL;
  struct os_thread *made = calloc(1, sizeof *made);
  if (made == NULL) return -ENOMEM;
  made->os = os;
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
  *thread = made;
  return 0;
}

static void real_thread_join(struct os_thread *thread) {
  pthread_join(thread->thread, NULL);
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
      .open = real_open,
      .close = real_close,
      .read = real_read,
      .write = real_write,
      .sync = real_sync,
      .truncate = real_truncate,
      .allocate = real_allocate,
      .size = real_size,
      .rename = real_rename,
      .remove = real_remove,
      .make_directory = real_make_directory,
      .sync_directory = real_sync_directory,
      .list = real_list,
      .thread_start = real_thread_start,
      .thread_join = real_thread_join,
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

int os_truncate(struct os_file *file, uint64_t size) {
  return file->os->methods->truncate(file, size);
}

int os_allocate(struct os_file *file, uint64_t size) {
  return file->os->methods->allocate(file, size);
}

int os_size(struct os_file *file, uint64_t *size) {
  return file->os->methods->size(file, size);
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

int os_condition_wait(struct os *os, pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline) {
  return os->methods->condition_wait(os, condition, mutex, deadline);
}
