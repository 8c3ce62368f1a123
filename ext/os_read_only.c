#include "os_read_only.h"

#include <errno.h>
#include <stdlib.h>

struct read_only_file {
  struct os_file file;   /* first */
  struct os_file *inner; /* NULL: it is not there, and counts as empty */
};

static struct os *inner_of(struct os *os) {
  return ((struct os_read_only *)os)->inner;
}

static struct os_file *inner_file(struct os_file *file) {
  return ((struct read_only_file *)file)->inner;
}

static uint64_t now(struct os *os) {
  return os_now(inner_of(os));
}

static void random_bytes(struct os *os, void *bytes, size_t size) {
  os_random(inner_of(os), bytes, size);
}

static uint64_t boot(struct os *os) {
  return os_boot(inner_of(os));
}

static int open_file(struct os *os, const char *path, int flags, struct os_file **out) {
  struct read_only_file *made = calloc(1, sizeof *made);
  *out = NULL;
  if (!made) return -ENOMEM;
  int error = os_open(inner_of(os), path, OS_OPEN_READ | (flags & OS_OPEN_NOFOLLOW), &made->inner);
  if (error == -ENOENT && (flags & OS_OPEN_CREATE)) error = 0;
  if (!error) {
    made->file.os = os;
    *out = &made->file;
  } else {
    free(made);
  }
  return error;
}

static void close_file(struct os_file *file) {
  os_close(inner_file(file));
  free(file);
}

static int64_t read_file(struct os_file *file, void *bytes, size_t size, uint64_t offset) {
  return inner_file(file) ? os_read(inner_file(file), bytes, size, offset) : 0;
}

static int file_size(struct os_file *file, uint64_t *size) {
  *size = 0;
  return inner_file(file) ? os_size(inner_file(file), size) : 0;
}

static int file_stat(struct os_file *file, struct os_stat *stat) {
  return inner_file(file) ? os_file_stat(inner_file(file), stat) : -ENOENT;
}

static bool find_lock(struct os_file *file, uint64_t start, uint64_t length, int64_t *process) {
  *process = 0;
  return inner_file(file) && os_find_lock(inner_file(file), start, length, process);
}

static int stat_name(struct os *os, const char *path, struct os_stat *stat) {
  return os_stat(inner_of(os), path, stat);
}

static int real_path(struct os *os, const char *path, char real[OS_PATH_MAX]) {
  return os_real_path(inner_of(os), path, real);
}

static int list(struct os *os, const char *path, int (*each)(void *ctx, const char *name), void *ctx) {
  return os_list(inner_of(os), path, each, ctx);
}

static int start_thread(struct os *os, const char *name, void (*run)(void *arg), void *arg, struct os_thread **thread) {
  return os_thread_start(inner_of(os), name, run, arg, thread);
}

static int condition_wait(struct os *os, pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline) {
  return os_condition_wait(inner_of(os), condition, mutex, deadline);
}

/* ---- What only pretends ---- */

static int write_nothing(struct os_file *file, const void *bytes, size_t size, uint64_t offset) {
  (void)file, (void)bytes, (void)size, (void)offset;
  return 0;
}

static int sync_nothing(struct os_file *file) {
  (void)file;
  return 0;
}

static int resize_nothing(struct os_file *file, uint64_t size) {
  (void)file, (void)size;
  return 0;
}

static int lock_nothing(struct os_file *file, enum os_lock lock, uint64_t start, uint64_t length) {
  (void)file, (void)lock, (void)start, (void)length;
  return 0;
}

static int rename_nothing(struct os *os, const char *from, const char *to) {
  (void)os, (void)from, (void)to;
  return 0;
}

static int change_no_name(struct os *os, const char *path) {
  (void)os, (void)path;
  return 0;
}

void os_read_only_init(struct os_read_only *read_only, struct os *inner) {
  static const struct os_methods methods = {
      .now = now,
      .random = random_bytes,
      .boot = boot,
      .open = open_file,
      .close = close_file,
      .read = read_file,
      .write = write_nothing,
      .sync = sync_nothing,
      .truncate = resize_nothing,
      .allocate = resize_nothing,
      .size = file_size,
      .file_stat = file_stat,
      .lock = lock_nothing,
      .find_lock = find_lock,
      .stat = stat_name,
      .real_path = real_path,
      .rename = rename_nothing,
      .remove = change_no_name,
      .make_directory = change_no_name,
      .sync_directory = change_no_name,
      .list = list,
      .thread_start = start_thread,
      .thread_join = os_thread_join,
      .condition_wait = condition_wait,
  };
  *read_only = (struct os_read_only){.os = {&methods}, .inner = inner};
}
