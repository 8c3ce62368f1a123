#include "sim_machine.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SITES_MAX 256
#define TRACE_MAX 4096 /* calls that are remembered */
#define TRACE_PATH_MAX 64
#define THREAD_NAME_MAX 16

struct site {
  char name[SIM_MACHINE_SITE_MAX];
  uint64_t count;
};

struct traced {
  uint64_t number, offset, size;
  int result;
  char thread[THREAD_NAME_MAX], path[TRACE_PATH_MAX], site[SIM_MACHINE_SITE_MAX];
};

struct sim_machine {
  struct os base;
  struct os *below;
  pthread_mutex_t mutex; /* guards the disk and all below; taken last of all locks */
  struct sim_disk *disk;
  void (*on_crash)(void *ctx);
  void *on_crash_ctx;
  const char *phase, *skipped;
  const char *fault_site; /* NULL: none */
  uint64_t fault_nth, failed;
  int fault_error;
  bool fault_in_sync;
  const char *stall_site; /* NULL: none */
  uint32_t stall_permille, stall_ms;
  uint64_t stall_random;
  pthread_cond_t went_down;
  struct site sites[SITES_MAX];
  size_t n_sites;
  struct traced trace[TRACE_MAX];
  uint64_t n_traced;
};

struct machine_file {
  struct os_file base;
  struct os_file *inner;
  char path[OS_PATH_MAX];
  bool is_dsync;
};

struct machine_thread {
  struct os_thread base;
  struct os_thread *inner;
  struct os *below;
  char name[THREAD_NAME_MAX];
  void (*run)(void *arg);
  void *arg;
};

static _Thread_local const char *thread_name = "main";

static struct sim_machine *as_machine(struct os *os) {
  return (struct sim_machine *)os;
}

static struct machine_file *as_file(struct os_file *file) {
  return (struct machine_file *)file;
}

static struct os *disk_os(struct sim_machine *machine) {
  return sim_disk_os(machine->disk);
}

/* ---- Sites and the trace ---- */

#define NUMBER_LENGTH_MIN 6 /* hex digits in a row are a number; fewer may be a word */

/*
** What kind of file it is: its name without the numbers in it, and its folder's where that says more. Two databases of a machine
** are the same kind.
*/
static void kind_of(const char *path, char *kind, size_t size) {
  const char *folder = strstr(path, "-balsa");
  const char *slash = strrchr(path, '/');
  const char *from = folder ? folder + 1 : slash ? slash + 1 : path;
  size_t n = 0;
  while (*from && n + 1 < size) {
    size_t digits = strspn(from, "0123456789abcdef");
    bool is_number = digits >= NUMBER_LENGTH_MIN;
    kind[n++] = is_number ? '#' : *from;
    from += is_number ? digits : 1;
  }
  kind[n] = 0;
  if (n == 0) snprintf(kind, size, "/");
}

static void site_of(struct sim_machine *machine, const char *call, const char *path, char site[SIM_MACHINE_SITE_MAX]) {
  char kind[SIM_MACHINE_SITE_MAX - 32];
  kind_of(path, kind, sizeof kind);
  snprintf(site, SIM_MACHINE_SITE_MAX, "%.15s %s %.15s", call, kind, machine->phase);
}

static void count_sync(struct sim_machine *machine, const char *site) {
  size_t i = 0;
  while (i < machine->n_sites && strcmp(machine->sites[i].name, site) != 0) i++;
  if (i == machine->n_sites) {
    if (i == SITES_MAX) abort();
    snprintf(machine->sites[machine->n_sites++].name, SIM_MACHINE_SITE_MAX, "%s", site);
  }
  machine->sites[i].count++;
}

/* A call that may change the disk, from `enter` to `leave`; the mutex is held between them. */
struct call {
  struct sim_machine *machine;
  const char *path;
  uint64_t offset, size, before;
  bool was_down, fails;
  enum sim_disk_call fails_in;
  char site[SIM_MACHINE_SITE_MAX];
};

/* Of a call by its name: what of it is made to fail. */
static enum sim_disk_call call_of(const char *name, bool in_sync) {
  if (strcmp(name, "syncdir") == 0) return SIM_DISK_SYNC_DIRECTORY;
  if (strcmp(name, "sync") == 0 || (strcmp(name, "dsync") == 0 && in_sync)) return SIM_DISK_SYNC;
  if (strcmp(name, "dsync") == 0 || strcmp(name, "write") == 0 || strcmp(name, "truncate") == 0 ||
      strcmp(name, "allocate") == 0)
    return SIM_DISK_WRITE;
  return SIM_DISK_NAME;
}

static void make_it_fail(struct call *call, const char *name) {
  struct sim_machine *machine = call->machine;
  if (machine->fault_site == NULL || strstr(call->site, machine->fault_site) == NULL) return;
  if (machine->fault_nth == 0 || --machine->fault_nth > 0) return;
  call->fails = true;
  call->fails_in = call_of(name, machine->fault_in_sync);
  sim_disk_fail_nth(machine->disk, call->fails_in, 1, machine->fault_error);
}

/* mutex held, given up meanwhile. Others go on. */
static void stall(struct sim_machine *machine, const char *site) {
  if (machine->stall_site == NULL || strstr(site, machine->stall_site) == NULL) return;
  machine->stall_random = machine->stall_random * UINT64_C(6364136223846793005) + 1442695040888963407u;
  if ((machine->stall_random >> 33) % 1000 >= machine->stall_permille) return;
  uint64_t until = os_now(machine->below) + machine->stall_ms * OS_MS;
  while (!sim_disk_is_down(machine->disk) && os_now(machine->below) < until)
    os_condition_wait(machine->below, &machine->went_down, &machine->mutex, until);
}

static void enter(struct call *call, struct os *os, const char *name, const char *path, bool is_sync) {
  struct sim_machine *machine = as_machine(os);
  *call = (struct call){.machine = machine, .path = path};
  pthread_mutex_lock(&machine->mutex);
  site_of(machine, name, path, call->site);
  stall(machine, call->site);
  call->was_down = sim_disk_is_down(machine->disk);
  call->before = sim_disk_calls(machine->disk);
  if (call->was_down) return;
  make_it_fail(call, name);
  if (!is_sync) return;
  count_sync(machine, call->site);
  if (machine->skipped && strcmp(machine->skipped, call->site) == 0) sim_disk_set_lying(machine->disk, true);
}

static int leave(struct call *call, int result) {
  struct sim_machine *machine = call->machine;
  sim_disk_set_lying(machine->disk, false);
  if (call->fails) {
    sim_disk_fail_nth(machine->disk, call->fails_in, 0, 0); /* an open that made nothing could not fail */
    machine->failed += result != 0;
  }
  uint64_t number = sim_disk_calls(machine->disk);
  if (number != call->before) {
    struct traced *traced = &machine->trace[machine->n_traced++ % TRACE_MAX];
    *traced = (struct traced){.number = number, .offset = call->offset, .size = call->size, .result = result};
    snprintf(traced->thread, sizeof traced->thread, "%s", thread_name);
    snprintf(traced->site, sizeof traced->site, "%s", call->site);
    size_t length = strlen(call->path);
    snprintf(traced->path, sizeof traced->path, "%s",
             call->path + (length < TRACE_PATH_MAX ? 0 : length - TRACE_PATH_MAX + 1));
  }
  bool struck = !call->was_down && sim_disk_is_down(machine->disk);
  if (struck) pthread_cond_broadcast(&machine->went_down);
  pthread_mutex_unlock(&machine->mutex);
  if (struck && machine->on_crash) machine->on_crash(machine->on_crash_ctx);
  return result;
}

/* ---- Files ---- */

static int machine_open(struct os *os, const char *path, int flags, struct os_file **file) {
  struct call call;
  struct machine_file *made = calloc(1, sizeof *made);
  *file = NULL;
  if (made == NULL) abort();
  made->base.os = os;
  made->is_dsync = (flags & OS_OPEN_DSYNC) != 0;
  if (strlen(path) >= sizeof made->path) {
    free(made);
    return -ENAMETOOLONG;
  }
  snprintf(made->path, sizeof made->path, "%s", path);
  enter(&call, os, "create", path, false);
  int error = leave(&call, os_open(disk_os(call.machine), path, flags, &made->inner));
  if (error)
    free(made);
  else
    *file = &made->base;
  return error;
}

static void machine_close(struct os_file *file) {
  struct sim_machine *machine = as_machine(file->os);
  pthread_mutex_lock(&machine->mutex);
  os_close(as_file(file)->inner);
  pthread_mutex_unlock(&machine->mutex);
  free(file);
}

static int64_t machine_read(struct os_file *file, void *bytes, size_t size, uint64_t offset) {
  struct sim_machine *machine = as_machine(file->os);
  pthread_mutex_lock(&machine->mutex);
  int64_t n = os_read(as_file(file)->inner, bytes, size, offset);
  pthread_mutex_unlock(&machine->mutex);
  return n;
}

static void enter_file(struct call *call, struct os_file *file, const char *name, bool is_sync, uint64_t offset,
                       uint64_t size) {
  enter(call, file->os, name, as_file(file)->path, is_sync);
  call->offset = offset;
  call->size = size;
}

static int machine_write(struct os_file *file, const void *bytes, size_t size, uint64_t offset) {
  struct call call;
  bool is_dsync = as_file(file)->is_dsync;
  enter_file(&call, file, is_dsync ? "dsync" : "write", is_dsync, offset, size);
  return leave(&call, os_write(as_file(file)->inner, bytes, size, offset));
}

static int machine_sync(struct os_file *file) {
  struct call call;
  enter_file(&call, file, "sync", true, 0, 0);
  return leave(&call, os_sync(as_file(file)->inner));
}

static int machine_truncate(struct os_file *file, uint64_t size) {
  struct call call;
  enter_file(&call, file, "truncate", false, 0, size);
  return leave(&call, os_truncate(as_file(file)->inner, size));
}

static int machine_allocate(struct os_file *file, uint64_t size) {
  struct call call;
  enter_file(&call, file, "allocate", false, 0, size);
  return leave(&call, os_allocate(as_file(file)->inner, size));
}

static int machine_size(struct os_file *file, uint64_t *size) {
  struct sim_machine *machine = as_machine(file->os);
  pthread_mutex_lock(&machine->mutex);
  int error = os_size(as_file(file)->inner, size);
  pthread_mutex_unlock(&machine->mutex);
  return error;
}

static int machine_file_stat(struct os_file *file, struct os_stat *stat) {
  struct sim_machine *machine = as_machine(file->os);
  pthread_mutex_lock(&machine->mutex);
  int error = os_file_stat(as_file(file)->inner, stat);
  pthread_mutex_unlock(&machine->mutex);
  return error;
}

static int machine_lock(struct os_file *file, enum os_lock lock, uint64_t start, uint64_t length) {
  struct sim_machine *machine = as_machine(file->os);
  pthread_mutex_lock(&machine->mutex);
  int error = os_lock(as_file(file)->inner, lock, start, length);
  pthread_mutex_unlock(&machine->mutex);
  return error;
}

static bool machine_find_lock(struct os_file *file, uint64_t start, uint64_t length, int64_t *process) {
  struct sim_machine *machine = as_machine(file->os);
  pthread_mutex_lock(&machine->mutex);
  bool found = os_find_lock(as_file(file)->inner, start, length, process);
  pthread_mutex_unlock(&machine->mutex);
  return found;
}

void *sim_machine_map(struct os_file *file, uint64_t offset, uint64_t size) {
  struct sim_machine *machine = as_machine(file->os);
  pthread_mutex_lock(&machine->mutex);
  void *memory = sim_disk_map(as_file(file)->inner, offset, size);
  pthread_mutex_unlock(&machine->mutex);
  return memory;
}

/* ---- Names ---- */

static int machine_stat(struct os *os, const char *path, struct os_stat *stat) {
  struct sim_machine *machine = as_machine(os);
  pthread_mutex_lock(&machine->mutex);
  int error = os_stat(disk_os(machine), path, stat);
  pthread_mutex_unlock(&machine->mutex);
  return error;
}

static int machine_real_path(struct os *os, const char *path, char real[OS_PATH_MAX]) {
  struct sim_machine *machine = as_machine(os);
  pthread_mutex_lock(&machine->mutex);
  int error = os_real_path(disk_os(machine), path, real);
  pthread_mutex_unlock(&machine->mutex);
  return error;
}

static int machine_rename(struct os *os, const char *from, const char *to) {
  struct call call;
  enter(&call, os, "rename", to, false);
  return leave(&call, os_rename(disk_os(call.machine), from, to));
}

static int machine_remove(struct os *os, const char *path) {
  struct call call;
  enter(&call, os, "remove", path, false);
  return leave(&call, os_remove(disk_os(call.machine), path));
}

static int machine_make_directory(struct os *os, const char *path) {
  struct call call;
  enter(&call, os, "mkdir", path, false);
  return leave(&call, os_make_directory(disk_os(call.machine), path));
}

static int machine_sync_directory(struct os *os, const char *path) {
  struct call call;
  enter(&call, os, "syncdir", path, true);
  return leave(&call, os_sync_directory(disk_os(call.machine), path));
}

/* `each` may use the machine, so the names are gathered first. */
struct names {
  char **list;
  size_t n;
};

static int gather(void *ctx, const char *name) {
  struct names *names = ctx;
  names->list = realloc(names->list, (names->n + 1) * sizeof *names->list);
  if (names->list == NULL) abort();
  names->list[names->n] = strdup(name);
  if (names->list[names->n++] == NULL) abort();
  return 0;
}

static int machine_list(struct os *os, const char *path, int (*each)(void *ctx, const char *name), void *ctx) {
  struct sim_machine *machine = as_machine(os);
  struct names names = {0};
  pthread_mutex_lock(&machine->mutex);
  int result = os_list(disk_os(machine), path, gather, &names);
  pthread_mutex_unlock(&machine->mutex);
  for (size_t i = 0; i < names.n; i++) {
    if (result == 0) result = each(ctx, names.list[i]);
    free(names.list[i]);
  }
  free(names.list);
  return result;
}

/* ---- Clock, randomness, threads, waits ---- */

static uint64_t machine_now(struct os *os) {
  return os_now(as_machine(os)->below);
}

static void machine_random(struct os *os, void *bytes, size_t size) {
  struct sim_machine *machine = as_machine(os);
  pthread_mutex_lock(&machine->mutex);
  os_random(disk_os(machine), bytes, size);
  pthread_mutex_unlock(&machine->mutex);
}

static uint64_t machine_boot(struct os *os) {
  struct sim_machine *machine = as_machine(os);
  pthread_mutex_lock(&machine->mutex);
  uint64_t boot = os_boot(disk_os(machine));
  pthread_mutex_unlock(&machine->mutex);
  return boot;
}

static void thread_main(void *arg) {
  struct machine_thread *thread = arg;
  thread_name = thread->name;
  thread->run(thread->arg);
}

static int machine_thread_start(struct os *os, const char *name, void (*run)(void *arg), void *arg,
                                struct os_thread **thread) {
  struct machine_thread *made = calloc(1, sizeof *made);
  *thread = NULL;
  if (made == NULL) abort();
  made->base.os = os;
  made->below = as_machine(os)->below;
  made->run = run;
  made->arg = arg;
  snprintf(made->name, sizeof made->name, "%s", name);
  int error = os_thread_start(made->below, name, thread_main, made, &made->inner);
  if (error) {
    free(made);
    return error;
  }
  *thread = &made->base;
  return 0;
}

static void machine_thread_join(struct os_thread *thread) {
  os_thread_join(((struct machine_thread *)thread)->inner);
  free(thread);
}

static int machine_condition_wait(struct os *os, pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline) {
  return os_condition_wait(as_machine(os)->below, condition, mutex, deadline);
}

/* ---- The test's side ---- */

struct sim_machine *sim_machine_new(uint64_t seed, struct os *below) {
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
  struct sim_machine *machine = calloc(1, sizeof *machine);
  if (machine == NULL) abort();
  machine->base.methods = &methods;
  machine->below = below;
  machine->phase = "";
  machine->disk = sim_disk_new(seed);
  pthread_mutex_init(&machine->mutex, NULL);
  os_condition_init(&machine->went_down);
  return machine;
}

void sim_machine_free(struct sim_machine *machine) {
  sim_disk_free(machine->disk);
  pthread_mutex_destroy(&machine->mutex);
  pthread_cond_destroy(&machine->went_down);
  free(machine);
}

struct os *sim_machine_os(struct sim_machine *machine) {
  return &machine->base;
}

struct sim_disk *sim_machine_disk(struct sim_machine *machine) {
  return machine->disk;
}

void sim_machine_on_crash(struct sim_machine *machine, void (*call)(void *ctx), void *ctx) {
  machine->on_crash = call;
  machine->on_crash_ctx = ctx;
}

void sim_machine_crash_at(struct sim_machine *machine, uint64_t nth, enum sim_disk_crash kind) {
  pthread_mutex_lock(&machine->mutex);
  sim_disk_crash_at(machine->disk, nth, kind);
  pthread_mutex_unlock(&machine->mutex);
}

void sim_machine_crash(struct sim_machine *machine, enum sim_disk_crash kind) {
  pthread_mutex_lock(&machine->mutex);
  bool was_down = sim_disk_is_down(machine->disk);
  sim_disk_crash(machine->disk, kind);
  pthread_cond_broadcast(&machine->went_down);
  pthread_mutex_unlock(&machine->mutex);
  if (!was_down && machine->on_crash) machine->on_crash(machine->on_crash_ctx);
}

bool sim_machine_is_down(struct sim_machine *machine) {
  pthread_mutex_lock(&machine->mutex);
  bool is_down = sim_disk_is_down(machine->disk);
  pthread_mutex_unlock(&machine->mutex);
  return is_down;
}

void sim_machine_restart(struct sim_machine *machine) {
  pthread_mutex_lock(&machine->mutex);
  sim_disk_restart(machine->disk);
  pthread_mutex_unlock(&machine->mutex);
}

uint64_t sim_machine_calls(struct sim_machine *machine) {
  pthread_mutex_lock(&machine->mutex);
  uint64_t calls = sim_disk_calls(machine->disk);
  pthread_mutex_unlock(&machine->mutex);
  return calls;
}

void sim_machine_fail_nth(struct sim_machine *machine, enum sim_disk_call call, uint64_t nth, int error) {
  pthread_mutex_lock(&machine->mutex);
  sim_disk_fail_nth(machine->disk, call, nth, error);
  pthread_mutex_unlock(&machine->mutex);
}

void sim_machine_fail_site(struct sim_machine *machine, const char *part, uint64_t nth, int error, bool in_sync) {
  pthread_mutex_lock(&machine->mutex);
  machine->fault_site = part;
  machine->fault_nth = nth;
  machine->fault_error = error;
  machine->fault_in_sync = in_sync;
  pthread_mutex_unlock(&machine->mutex);
}

void sim_machine_stall(struct sim_machine *machine, const char *part, uint32_t permille, uint32_t ms) {
  pthread_mutex_lock(&machine->mutex);
  machine->stall_site = part;
  machine->stall_permille = permille;
  machine->stall_ms = ms;
  pthread_mutex_unlock(&machine->mutex);
}

uint64_t sim_machine_failed(struct sim_machine *machine) {
  pthread_mutex_lock(&machine->mutex);
  uint64_t failed = machine->failed;
  pthread_mutex_unlock(&machine->mutex);
  return failed;
}

void sim_machine_set_room(struct sim_machine *machine, uint64_t bytes) {
  pthread_mutex_lock(&machine->mutex);
  uint64_t used = sim_disk_used(machine->disk);
  sim_disk_set_capacity(machine->disk, bytes < UINT64_MAX - used ? used + bytes : UINT64_MAX);
  pthread_mutex_unlock(&machine->mutex);
}

void sim_machine_set_phase(struct sim_machine *machine, const char *phase) {
  pthread_mutex_lock(&machine->mutex);
  machine->phase = phase;
  pthread_mutex_unlock(&machine->mutex);
}

void sim_machine_skip_syncs(struct sim_machine *machine, const char *site) {
  pthread_mutex_lock(&machine->mutex);
  machine->skipped = site;
  pthread_mutex_unlock(&machine->mutex);
}

void sim_machine_each_sync(struct sim_machine *machine, void (*each)(void *ctx, const char *site, uint64_t count),
                           void *ctx) {
  pthread_mutex_lock(&machine->mutex);
  for (size_t i = 0; i < machine->n_sites; i++) each(ctx, machine->sites[i].name, machine->sites[i].count);
  pthread_mutex_unlock(&machine->mutex);
}

uint8_t *sim_machine_copy(struct sim_machine *machine, const char *path, uint64_t *size) {
  uint8_t *copy = NULL;
  pthread_mutex_lock(&machine->mutex);
  const uint8_t *bytes = sim_disk_bytes(machine->disk, path, size);
  if (bytes) {
    copy = malloc(*size + 1);
    if (copy == NULL) abort();
    memcpy(copy, bytes, *size);
  }
  pthread_mutex_unlock(&machine->mutex);
  return copy;
}

void sim_machine_print_trace(struct sim_machine *machine, FILE *to, unsigned calls) {
  pthread_mutex_lock(&machine->mutex);
  uint64_t n = machine->n_traced < TRACE_MAX ? machine->n_traced : TRACE_MAX;
  if (n > calls) n = calls;
  for (uint64_t i = machine->n_traced - n; i < machine->n_traced; i++) {
    const struct traced *at = &machine->trace[i % TRACE_MAX];
    fprintf(to, "  %6" PRIu64 " %-10s %-34s %s @%" PRIu64 " +%" PRIu64 " = %d\n", at->number, at->thread, at->site,
            at->path, at->offset, at->size, at->result);
  }
  pthread_mutex_unlock(&machine->mutex);
}
