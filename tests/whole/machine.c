/*
** ext/os.h over the scheduler and another os's files.
*/
#include "machine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MILLION INT64_C(1000000)
#define VAIN_WAITS_MAX 1000
#define BOOT_NS_MAX (100000 * OS_SECOND)

struct machine {
  struct os os;
  struct os *files;
  struct machine_options options;
  uint32_t number;
  char name[8];
  struct sim_random random;
  uint64_t true_start, local_start; /* of its clock */
  uint64_t paused_until, slow_ns;
  uint64_t vain_turn; /* when somebody waited last for a time that had passed, without letting go of the mutex */
  unsigned vain_waits;
};

struct machine_file {
  struct os_file base;
  struct os_file *inner;
  bool is_synced; /* every write is */
};

struct machine_thread {
  struct os_thread base;
  struct task *task;
};

static struct machine *as_machine(struct os *os) {
  return (struct machine *)os;
}

static struct machine_file *as_file(struct os_file *file) {
  return (struct machine_file *)file;
}

/* ---- Clock and randomness ---- */

static uint64_t machine_now(struct os *os) {
  struct machine *machine = as_machine(os);
  uint64_t passed = task_now() - machine->true_start;
  return machine->local_start + (uint64_t)((__int128)passed * (MILLION + machine->options.drift_ppm) / MILLION);
}

uint64_t machine_true_time(const struct machine *machine, uint64_t local) {
  if (local <= machine->local_start) return machine->true_start;
  uint64_t passed = local - machine->local_start;
  if (passed > (uint64_t)INT64_MAX / 2) return TASK_FOREVER;
  /* Never early: what is left after this is waited for again. */
  return machine->true_start + (uint64_t)((__int128)passed * MILLION / (MILLION + machine->options.drift_ppm)) + 1;
}

void machine_reset_clock(struct machine *machine) {
  machine->true_start = task_now();
  machine->local_start = OS_SECOND + sim_random_below(&machine->random, BOOT_NS_MAX);
}

static void machine_random(struct os *os, void *bytes, size_t size) {
  uint8_t *at = bytes;
  for (size_t i = 0; i < size; i++) at[i] = (uint8_t)sim_random_next(&as_machine(os)->random);
}

static uint64_t machine_boot(struct os *os) {
  return os_boot(as_machine(os)->files);
}

/* ---- Files ---- */

static void make_durable(struct machine *machine) {
  uint64_t ns = 1 + sim_random_below(&machine->random, machine->options.sync_ns) + machine->slow_ns;
  if (sim_random_chance(&machine->random, machine->options.hiccup_permille))
    ns += sim_random_below(&machine->random, machine->options.hiccup_ns);
  task_sleep(ns);
}

static int machine_open(struct os *os, const char *path, int flags, struct os_file **file) {
  struct machine *machine = as_machine(os);
  *file = NULL;
  task_yield();
  struct machine_file *made = calloc(1, sizeof *made);
  if (!made) return -ENOMEM;
  int error = os_open(machine->files, path, flags, &made->inner);
  task_note("open", (uint64_t)-error, (uint64_t)flags);
  if (error) {
    free(made);
    return error;
  }
  made->base.os = os;
  made->is_synced = (flags & OS_OPEN_DSYNC) != 0;
  *file = &made->base;
  return 0;
}

static void machine_close(struct os_file *file) {
  task_yield();
  os_close(as_file(file)->inner);
  free(file);
}

static int64_t machine_read(struct os_file *file, void *bytes, size_t size, uint64_t offset) {
  task_yield();
  int64_t n = os_read(as_file(file)->inner, bytes, size, offset);
  task_note("read", offset, (uint64_t)n);
  return n;
}

/* The write happens at once or at the end of the time that it takes: a crash may fall in between. */
static int machine_write(struct os_file *file, const void *bytes, size_t size, uint64_t offset) {
  struct machine *machine = as_machine(file->os);
  bool is_late = sim_random_chance(&machine->random, 500);
  task_yield();
  if (is_late && as_file(file)->is_synced) make_durable(machine);
  int error = os_write(as_file(file)->inner, bytes, size, offset);
  task_note("write", offset + size, (uint64_t)-error);
  if (!is_late && as_file(file)->is_synced) make_durable(machine);
  return error;
}

static int machine_sync(struct os_file *file) {
  struct machine *machine = as_machine(file->os);
  bool is_late = sim_random_chance(&machine->random, 500);
  task_yield();
  if (is_late) make_durable(machine);
  int error = os_sync(as_file(file)->inner);
  task_note("sync", 0, (uint64_t)-error);
  if (!is_late) make_durable(machine);
  return error;
}

static int machine_truncate(struct os_file *file, uint64_t size) {
  task_yield();
  return os_truncate(as_file(file)->inner, size);
}

static int machine_allocate(struct os_file *file, uint64_t size) {
  task_yield();
  return os_allocate(as_file(file)->inner, size);
}

static int machine_size(struct os_file *file, uint64_t *size) {
  task_yield();
  return os_size(as_file(file)->inner, size);
}

static int machine_file_stat(struct os_file *file, struct os_stat *stat) {
  task_yield();
  int error = os_file_stat(as_file(file)->inner, stat);
  stat->device = as_machine(file->os)->number; /* every machine has its own disk */
  return error;
}

static int machine_lock(struct os_file *file, enum os_lock lock, uint64_t start, uint64_t length) {
  task_yield();
  return os_lock(as_file(file)->inner, lock, start, length);
}

static bool machine_find_lock(struct os_file *file, uint64_t start, uint64_t length, int64_t *process) {
  task_yield();
  return os_find_lock(as_file(file)->inner, start, length, process);
}

static int machine_stat(struct os *os, const char *path, struct os_stat *stat) {
  task_yield();
  int error = os_stat(as_machine(os)->files, path, stat);
  stat->device = as_machine(os)->number;
  return error;
}

static int machine_real_path(struct os *os, const char *path, char real[OS_PATH_MAX]) {
  return os_real_path(as_machine(os)->files, path, real);
}

static int machine_rename(struct os *os, const char *from, const char *to) {
  task_yield();
  return os_rename(as_machine(os)->files, from, to);
}

static int machine_remove(struct os *os, const char *path) {
  task_yield();
  return os_remove(as_machine(os)->files, path);
}

static int machine_make_directory(struct os *os, const char *path) {
  task_yield();
  return os_make_directory(as_machine(os)->files, path);
}

static int machine_sync_directory(struct os *os, const char *path) {
  task_yield();
  int error = os_sync_directory(as_machine(os)->files, path);
  make_durable(as_machine(os));
  return error;
}

static int machine_list(struct os *os, const char *path, int (*each)(void *ctx, const char *name), void *ctx) {
  task_yield();
  return os_list(as_machine(os)->files, path, each, ctx);
}

/* ---- Threads and waits ---- */

static int machine_thread_start(struct os *os, const char *name, void (*run)(void *arg), void *arg,
                                struct os_thread **thread) {
  struct machine_thread *made = calloc(1, sizeof *made);
  if (!made) abort();
  made->base.os = os;
  made->task = task_start(as_machine(os), name, run, arg);
  *thread = &made->base;
  return 0;
}

static void machine_thread_join(struct os_thread *thread) {
  task_join(((struct machine_thread *)thread)->task);
  free(thread);
}

static int machine_condition_wait(struct os *os, pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline) {
  struct machine *machine = as_machine(os);
  if (deadline != OS_FOREVER && machine_now(os) >= deadline) {
    if (task_turns() != machine->vain_turn) machine->vain_waits = 0;
    machine->vain_turn = task_turns();
    if (++machine->vain_waits > VAIN_WAITS_MAX) task_fail("waits for a time that has passed, again and again");
    return -ETIMEDOUT;
  }
  task_condition_wait(condition, mutex, deadline == OS_FOREVER ? TASK_FOREVER : machine_true_time(machine, deadline));
  return machine_now(os) >= deadline ? -ETIMEDOUT : 0;
}

/* ---- The machine ---- */

struct machine *machine_new(uint32_t number, const struct machine_options *options) {
  static const struct os_methods methods = {
      .now = machine_now,
      .random = machine_random,
      .boot = machine_boot,
      .open = machine_open,
      .close = machine_close,
      .read = machine_read,
      .write = machine_write,
      .sync = machine_sync,
      .truncate = machine_truncate,
      .allocate = machine_allocate,
      .size = machine_size,
      .file_stat = machine_file_stat,
      .lock = machine_lock,
      .find_lock = machine_find_lock,
      .stat = machine_stat,
      .real_path = machine_real_path,
      .rename = machine_rename,
      .remove = machine_remove,
      .make_directory = machine_make_directory,
      .sync_directory = machine_sync_directory,
      .list = machine_list,
      .thread_start = machine_thread_start,
      .thread_join = machine_thread_join,
      .condition_wait = machine_condition_wait,
  };
  struct machine *machine = calloc(1, sizeof *machine);
  if (!machine) abort();
  machine->os.methods = &methods;
  machine->options = *options;
  machine->number = number;
  machine->random.state = options->seed;
  snprintf(machine->name, sizeof machine->name, "n%u", number);
  machine_reset_clock(machine);
  return machine;
}

void machine_set_files(struct machine *machine, struct os *files) {
  machine->files = files;
}

struct os *machine_os(struct machine *machine) {
  return &machine->os;
}

const char *machine_name(const struct machine *machine) {
  return machine->name;
}

uint32_t machine_number(const struct machine *machine) {
  return machine->number;
}

void machine_pause(struct machine *machine, uint64_t until) {
  machine->paused_until = until;
}

bool machine_is_paused(const struct machine *machine) {
  return machine->paused_until > task_now();
}

uint64_t machine_paused_until(const struct machine *machine) {
  return machine->paused_until;
}

void machine_slow_disk(struct machine *machine, uint64_t ns) {
  machine->slow_ns = ns;
}
