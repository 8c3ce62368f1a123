#include "power.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "../../ext/balsa.h"
#include "../../ext/node.h"

#define WRITERS_MAX 3
#define CALLS_OF_A_START                                                                                               \
  160 /* about as many calls that change the disk are in one, and more if there is much to redo */
#define STOP_MAX (5 * OS_SECOND)
#define SETTLE_TRIES_MAX 400
#define OPEN_TRIES_MAX 3
#define COMMIT_MS 10000 /* longer than anything takes that goes well */
#define COMMIT_MS_FAULTY 250
#define FAULTS_MAX 3
#define FULL_MAX (10 * OS_SECOND) /* until a node goes on after its disk has room again */

/* ---- Telling ---- */

void power_fail(struct power *power, const char *format, ...) {
  va_list arguments;
  pthread_mutex_lock(&power->mutex);
  if (!power->has_failed) {
    size_t length = (size_t)snprintf(power->failure, sizeof power->failure, "life %u, %s, call %" PRIu64 ": ",
                                     power->life, power->phase, sim_machine_calls(power->machine));
    va_start(arguments, format);
    vsnprintf(power->failure + length, sizeof power->failure - length, format, arguments);
    va_end(arguments);
    power->has_failed = true;
    if (power->is_verbose) {
      printf("seed %" PRIu64 ": %s\n", power->seed, power->failure);
      sim_machine_print_trace(power->machine, stdout, 60);
    }
  }
  pthread_mutex_unlock(&power->mutex);
}

void power_count(struct power *power, uint64_t *counter) {
  pthread_mutex_lock(&power->mutex);
  ++*counter;
  pthread_mutex_unlock(&power->mutex);
}

bool power_is_over(struct power *power) {
  pthread_mutex_lock(&power->mutex);
  bool has_failed = power->has_failed;
  pthread_mutex_unlock(&power->mutex);
  return has_failed || sim_machine_is_down(power->machine); /* is_down comes a moment later */
}

static void tell(struct power *power, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void tell(struct power *power, const char *format, ...) {
  va_list arguments;
  if (!power->is_verbose) return;
  printf("life %u, call %" PRIu64 ": ", power->life, sim_machine_calls(power->machine));
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  printf("\n");
}

static void set_phase(struct power *power, const char *phase) {
  power->phase = phase;
  sim_machine_set_phase(power->machine, phase);
}

static bool chance(struct power *power, uint32_t permille) {
  return sim_random_chance(&power->random, permille);
}

static uint64_t below(struct power *power, uint64_t n) {
  return sim_random_below(&power->random, n);
}

/* ---- When the machine goes down ---- */

/* A process whose machine is down is gone. Here its threads are still there: the node is stopped, so that they end. */
static void stopper_main(void *arg) {
  struct power *power = arg;
  pthread_mutex_lock(&power->mutex);
  while (!power->ends) {
    if (!power->is_down || power->is_stopped) {
      os_condition_wait(os_real(), &power->condition, &power->mutex, OS_FOREVER);
      continue;
    }
    pthread_mutex_unlock(&power->mutex);
    node_stop_at(POWER_PATH, 0);
    pthread_mutex_lock(&power->mutex);
    power->is_stopped = true;
    pthread_cond_broadcast(&power->condition);
  }
  pthread_mutex_unlock(&power->mutex);
}

static void on_crash(void *ctx) {
  struct power *power = ctx;
  pthread_mutex_lock(&power->mutex);
  power->is_down = true;
  pthread_cond_broadcast(&power->condition);
  pthread_mutex_unlock(&power->mutex);
}

/* The machine is down: until the node is stopped. */
static void await_stopped(struct power *power) {
  pthread_mutex_lock(&power->mutex);
  while (!power->is_down || !power->is_stopped)
    os_condition_wait(os_real(), &power->condition, &power->mutex, OS_FOREVER);
  pthread_mutex_unlock(&power->mutex);
  node_stop_at(POWER_PATH, 0); /* it was just starting */
}

/* ---- What a seed chooses ---- */

static uint32_t pick(struct power *power, const uint32_t *values, size_t n) {
  return values[below(power, n)];
}
#define PICK(power, ...)                                                                                               \
  pick(power, (const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

static void draw_plan(struct power *power) {
  struct plan *plan = &power->plan;
  plan->page_size = PICK(power, 512, 1024, 1024, 2048, 4096, 4096, 4096, 16384, 65536);
  plan->auto_vacuum = PICK(power, 0, 0, 1, 2);
  plan->wal_limit_frames = PICK(power, 16, 64, 256, 1000);
  plan->part_bytes = PICK(power, 0, 0, 1500, 6000, 30000);
  plan->segment_bytes = PICK(power, 16384, 32768, 65536);
  plan->cache_pages = PICK(power, 4, 10, 40, 2000);
  plan->snapshot_threshold = PICK(power, 10000, 50000, 200000, 64000000);
  plan->log_tail = PICK(power, 0, 0, 5000, 40000);
  plan->writers = PICK(power, 1, 1, 1, 2, 3);
  plan->lives = 2 + (unsigned)below(power, 3);
  plan->transactions = 8 + (unsigned)below(power, 25);
  plan->size_max = plan->page_size > 4096 ? 16 * plan->page_size : 100000;
}

/* The nth call from here, more often an early one than a late one. */
static uint64_t draw_call(struct power *power, unsigned bits) {
  return 1 + below(power, UINT64_C(1) << (2 + below(power, bits)));
}

static enum sim_disk_crash draw_kind(struct power *power) {
  return chance(power, 750) ? SIM_DISK_POWER_LOSS : SIM_DISK_KILL;
}

/* ---- Errors ---- */

static void inject_error(struct power *power) {
  static const char *const sites[] = {"balsa/log",  "balsa/log/#",    "balsa/log/next", "balsa/log/base",
                                      "balsa/vote", "balsa/database", "app.db ",        "app.db-wal",
                                      "app.db-shm", "balsa/options",  "snapshots",      "syncdir",
                                      "sync"};
  int error = chance(power, 700) ? -EIO : -ENOSPC;
  if (chance(power, 700)) {
    const char *site = sites[below(power, sizeof sites / sizeof *sites)];
    uint64_t nth = draw_call(power, 5);
    tell(power, "the call %" PRIu64 " from now at '%s' fails: %s", nth, site, strerror(-error));
    sim_machine_fail_site(power->machine, site, nth, error, chance(power, 500));
    return;
  }
  enum sim_disk_call call = (enum sim_disk_call)below(power, SIM_DISK_CALLS);
  sim_machine_fail_nth(power->machine, call, draw_call(power, 7), call == SIM_DISK_READ ? -EIO : error);
}

static void draw_faults(struct power *power) {
  atomic_store(&power->has_faults, chance(power, 300));
  power->is_full = atomic_load(&power->has_faults) && chance(power, 300);
  if (!atomic_load(&power->has_faults)) return;
  if (power->is_full) {
    uint64_t room = below(power, UINT64_C(1) << (8 + below(power, 11)));
    tell(power, "the disk has room for %" PRIu64 " bytes", room);
    sim_machine_set_room(power->machine, room);
    power_count(power, &power->counters.full);
    return;
  }
  power_count(power, &power->counters.faulty);
  for (uint64_t i = 1 + below(power, FAULTS_MAX); i > 0; i--) inject_error(power);
}

static void end_faults(struct power *power) {
  sim_machine_set_room(power->machine, UINT64_MAX);
  sim_machine_fail_site(power->machine, NULL, 0, 0, false);
  for (int call = 0; call < SIM_DISK_CALLS; call++)
    sim_machine_fail_nth(power->machine, (enum sim_disk_call)call, 0, 0);
}

/* Some calls take longer than others: what runs beside them gets further than usual. */
static void draw_stalls(struct power *power) {
  static const char *const sites[] = {"dsync balsa/log/#", "dsync balsa/log/#", "app.db ", "balsa/database",
                                      "snapshots"};
  const char *site = chance(power, 250) ? sites[below(power, sizeof sites / sizeof *sites)] : NULL;
  sim_machine_stall(power->machine, site, 50 + (uint32_t)below(power, 250), 1 + (uint32_t)below(power, 4));
}

/* ---- Connections ---- */

static sqlite3 *connect(struct power *power, int *code) {
  sqlite3 *db = NULL;
  char uri[512];
  snprintf(uri, sizeof uri,
           "file:%s?vfs=balsa&page_size=%u&auto_vacuum=%u&snapshot_threshold=%" PRIu64 "&log_tail=%" PRIu64
           "&commit_timeout=%d",
           POWER_PATH, power->plan.page_size, power->plan.auto_vacuum, power->plan.snapshot_threshold,
           power->plan.log_tail, atomic_load(&power->has_faults) ? COMMIT_MS_FAULTY : COMMIT_MS);
  *code = sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL);
  if (*code == SQLITE_OK) {
    workload_set_up_connection(power, db);
    return db;
  }
  sqlite3_close(db);
  return NULL;
}

static struct node *node_of(sqlite3 *db) {
  return node_of_connection(vfs_connection_find(db, NULL));
}

static void disconnect(struct power *power, sqlite3 *db) {
  int code = sqlite3_close(db);
  if (code != SQLITE_OK) power_fail(power, "a connection cannot be closed: %d", code);
}

/* ---- What must hold after a start ---- */

/* The file, byte by byte, is what the log says. */
static void check_file(struct power *power, uint64_t expected) {
  uint64_t size = 0, checksum = 0;
  uint32_t page_size = power->plan.page_size;
  uint8_t *bytes = sim_machine_copy(power->machine, POWER_PATH, &size);
  if (power_is_over(power)) {
    free(bytes);
    return;
  }
  if (!bytes || size % page_size != 0) {
    power_fail(power, "%s has %" PRIu64 " bytes, no multiple of a page", POWER_PATH, size);
    free(bytes);
    return;
  }
  for (uint64_t i = 0; i < size / page_size; i++)
    checksum ^= vfs_page_hash((uint32_t)(i + 1), bytes + i * page_size, page_size);
  if (checksum != expected)
    power_fail(power, "%s has rolling checksum %016" PRIx64 ", and the log says %016" PRIx64, POWER_PATH, checksum,
               expected);
  free(bytes);
}

static int take_text(void *out, int n, char **values, char **names) {
  (void)n, (void)names;
  snprintf(out, POWER_TEXT_MAX, "%s", values[0] ? values[0] : "NULL");
  return 0;
}

static void check_integrity(struct power *power, sqlite3 *db) {
  char text[POWER_TEXT_MAX] = "";
  int code = sqlite3_exec(db, "PRAGMA integrity_check(1)", take_text, text, NULL);
  if (power_is_over(power) || atomic_load(&power->has_faults))
    return; /* it tells of a failed read as of a wrong page */
  if (code != SQLITE_OK)
    power_fail(power, "integrity_check fails: %d %s", code, sqlite3_errmsg(db));
  else if (strcmp(text, "ok") != 0)
    power_fail(power, "integrity_check: %s", text);
}

/* What became of those whose COMMIT said "unknown". */
static void check_outcomes(struct power *power, sqlite3 *db, bool is_end) {
  struct history *history = &power->history;
  for (size_t i = 0; i < history->n; i++) {
    const struct state *state = &history->states[i];
    char sql[POWER_TOKEN_MAX + 40], text[POWER_TEXT_MAX] = "";
    if (!state->token[0] || (state->fate == FATE_OPEN && !is_end)) continue;
    snprintf(sql, sizeof sql, "SELECT balsa_outcome('%s')", state->token);
    int code = sqlite3_exec(db, sql, take_text, text, NULL);
    if (power_is_over(power)) return;
    const char *expected = state->fate == FATE_COMMITTED ? "committed" : "lost";
    bool may_pend = !is_end && state->fate == FATE_LOST; /* until the log is that long again */
    if (code != SQLITE_OK || (strcmp(text, expected) != 0 && !(may_pend && strcmp(text, "pending") == 0)))
      power_fail(power, "balsa_outcome says %d '%s' of transaction %" PRIu64 " (%s), which is %s", code, text,
                 state->number, state->token, expected);
  }
}

static void check_state(struct power *power, sqlite3 *db) {
  uint64_t number = 0, digest = 0;
  char text[POWER_TEXT_MAX];
  int code = digest_content(db, &number, &digest);
  if (power_is_over(power) || (code != SQLITE_OK && atomic_load(&power->has_faults))) return;
  if (code != SQLITE_OK) {
    power_fail(power, "the database cannot be read: %d %s", code, sqlite3_errmsg(db));
  } else if (!history_sees(&power->history, number, digest, true, text)) {
    power_fail(power, "%s", text);
  } else {
    tell(power, "the database is at transaction %" PRIu64, number);
  }
}

/*
** Nobody but the node has written to the file: it must never take it for another's. After a kill amid a COMMIT it may: what was
** published in the WAL and is not in the log yet could be somebody else's.
*/
static void check_nothing_aside(struct power *power) {
  uint64_t size;
  uint8_t *copy = sim_machine_copy(power->machine, POWER_PATH ".changed-1", &size);
  if (copy && !power->was_killed && !power_is_over(power))
    power_fail(power, "the node took its own file for one that others changed");
  free(copy);
}

static void check_start(struct power *power, sqlite3 *db) {
  struct node_status status;
  node_get_status(node_of(db), &status);
  check_nothing_aside(power);
  check_state(power, db);
  if (!power_is_over(power) && status.has_checksum) check_file(power, status.checksum);
  check_integrity(power, db);
  check_outcomes(power, db, false);
}

/* ---- One life of the machine ---- */

struct writer {
  struct power *power;
  sqlite3 *db;
  struct sim_random random;
  struct os_thread *thread;
};

static void writer_main(void *arg) {
  struct writer *writer = arg;
  workload_run(writer->power, writer->db, &writer->random, writer->power->plan.transactions);
}

/* `first` is a connection that is open. */
static void work(struct power *power, sqlite3 *first) {
  struct writer writers[WRITERS_MAX] = {0};
  unsigned n = power->plan.writers;
  int code;
  assert(n > 0 && n <= WRITERS_MAX);
  for (unsigned i = 0; i < n; i++) {
    writers[i] = (struct writer){.power = power, .random.state = sim_random_next(&power->random)};
    writers[i].db = i == 0 ? first : connect(power, &code);
  }
  for (unsigned i = 1; i < n; i++)
    if (writers[i].db && os_thread_start(os_real(), "writer", writer_main, &writers[i], &writers[i].thread) != 0)
      abort();
  writer_main(&writers[0]);
  for (unsigned i = 1; i < n; i++) {
    if (writers[i].thread) os_thread_join(writers[i].thread);
    if (writers[i].db) {
      if (sim_machine_is_down(power->machine)) await_stopped(power);
      disconnect(power, writers[i].db);
    }
  }
}

static void count_crash(struct power *power) {
  struct power_counters *counters = &power->counters;
  if (strcmp(power->phase, "run") == 0)
    power_count(power, &counters->crashes_in_run);
  else
    power_count(power, strcmp(power->phase, "stop") == 0 ? &counters->crashes_in_stop : &counters->crashes_in_start);
}

/* Somebody removes the database while the machine is down: the log and the snapshot have it all. */
static void lose_database(struct power *power) {
  struct os *os = sim_machine_os(power->machine);
  uint64_t commits = 0;
  for (size_t i = 0; i < power->history.n; i++) commits += power->history.states[i].fate == FATE_COMMITTED;
  if (commits < 2 || !chance(power, 80)) return; /* one is the empty database */
  if (os_remove(os, POWER_PATH) == 0 && os_sync_directory(os, POWER_FOLDER) == 0)
    power_count(power, &power->counters.removed);
  tell(power, "the database file is removed");
}

/* The machine is down: everything that the process had goes, and it comes up again. */
static void end_crashed(struct power *power, sqlite3 *db) {
  await_stopped(power);
  if (db) disconnect(power, db);
  count_crash(power);
  tell(power, "went down in %s%s", power->phase, power->was_killed ? " (killed now or before)" : "");
  if (power->is_verbose) sim_machine_print_trace(power->machine, stdout, 3);
  sim_machine_restart(power->machine);
  sim_machine_set_phase(power->machine, "down");
  lose_database(power);
  pthread_mutex_lock(&power->mutex);
  power->is_down = power->is_stopped = false;
  pthread_mutex_unlock(&power->mutex);
}

/* After a stop in order the file is all there is, and any program may open it. */
static void check_stopped(struct power *power, uint64_t checksum) {
  uint64_t size = 0;
  uint8_t *wal = sim_machine_copy(power->machine, POWER_PATH "-wal", &size);
  free(wal);
  if (wal && size != 0) power_fail(power, "stopped in order, its -wal has %" PRIu64 " bytes", size);
  check_file(power, checksum);
}

static void stop_in_order(struct power *power, sqlite3 *db, bool is_checked) {
  struct node_status status;
  struct node *node = node_of(db);
  set_phase(power, "stop");
  node_stop(node, node_now(node) + STOP_MAX);
  if (power_is_over(power)) return;
  node_get_status(node, &status);
  power_count(power, &power->counters.stops);
  tell(power, "stopped in order");
  if (is_checked) check_stopped(power, status.checksum);
}

/* Opens the database; NULL: the machine went down, or something failed. */
static sqlite3 *start(struct power *power, bool is_first) {
  set_phase(power, is_first ? "create" : "start");
  for (int tries = 0; tries < OPEN_TRIES_MAX; tries++) {
    int code;
    sqlite3 *db = connect(power, &code);
    if (db) return db;
    if (power_is_over(power)) return NULL;
    const char *text = vfs_open_error();
    bool is_told = text[0] || (code & 0xff) == SQLITE_IOERR; /* SQLite's own reading of the header */
    if (!atomic_load(&power->has_faults) || !is_told) {
      power_fail(power, "the database cannot be opened: %d %s", code, text);
      return NULL;
    }
    tell(power, "open refused: %s", text);
    power_count(power, &power->counters.refused);
    end_faults(power);
  }
  power_fail(power, "the database cannot be opened, though the fault is over: %s", vfs_open_error());
  return NULL;
}

/* A disk that has room again needs nobody's help. */
static void check_room_again(struct power *power, sqlite3 *db) {
  uint64_t deadline = os_now(os_real()) + FULL_MAX;
  end_faults(power);
  while (!power_is_over(power) && (!workload_prepare(power, db) || !workload_small(power, db))) {
    if (os_now(os_real()) < deadline) continue;
    power_fail(power, "the disk has had room for %d s, and still: %s (%s)", (int)(FULL_MAX / OS_SECOND),
               sqlite3_errmsg(db), vfs_connection_error(vfs_connection_find(db, NULL)));
  }
}

static void live(struct power *power, bool is_first) {
  bool crashes_early = chance(power, is_first ? 150 : 350), stops = chance(power, 200);
  enum sim_disk_crash kind = draw_kind(power);
  uint64_t failed_before = sim_machine_failed(power->machine);
  if (kind == SIM_DISK_KILL) power_count(power, &power->counters.kills);
  if (crashes_early) sim_machine_crash_at(power->machine, draw_call(power, 6), kind);
  draw_faults(power);
  draw_stalls(power);
  sqlite3 *db = start(power, is_first);
  if (db) {
    check_start(power, db);
    set_phase(power, "run");
    if (!power_is_over(power)) workload_prepare(power, db);
    if (!crashes_early && !stops) sim_machine_crash_at(power->machine, draw_call(power, 9), kind);
    if (!power_is_over(power)) work(power, db);
    if (!power_is_over(power) && power->is_full) check_room_again(power, db);
    if (!power_is_over(power) && stops) {
      if (chance(power, 600)) sim_machine_crash_at(power->machine, draw_call(power, 5), kind);
      stop_in_order(power, db, !atomic_load(&power->has_faults));
    }
  }
  if (power->has_failed) return;
  power->counters.injected += sim_machine_failed(power->machine) - failed_before;
  end_faults(power);
  if (!power_is_over(power)) sim_machine_crash(power->machine, kind);
  if (kind == SIM_DISK_KILL) power->was_killed = true;
  end_crashed(power, db);
}

/* Until the log is longer than everything whose fate was open. */
static void settle(struct power *power, sqlite3 *db) {
  uint64_t highest = 0;
  struct node_status status;
  for (size_t i = 0; i < power->history.n; i++) {
    const char *dot = strchr(power->history.states[i].token, '.');
    uint64_t index = dot ? strtoull(dot + 1, NULL, 10) : 0;
    if (index > highest) highest = index;
  }
  for (int i = 0; i < SETTLE_TRIES_MAX && !power_is_over(power); i++) {
    node_get_status(node_of(db), &status);
    if (status.commit_index > highest) return;
    workload_small(power, db);
  }
}

/* A plain SQLite, on the file that the node left. */
static void check_plain(struct power *power) {
  sqlite3 *db = NULL;
  set_phase(power, "plain");
  if (sqlite3_open_v2(POWER_PATH, &db, SQLITE_OPEN_READWRITE, SIM_VFS_NAME) != SQLITE_OK)
    power_fail(power, "a plain SQLite cannot open what the node left: %s", sqlite3_errmsg(db));
  check_integrity(power, db);
  check_state(power, db);
  sqlite3_close(db);
}

/* The last life goes without faults, and all must be well. */
static void live_well(struct power *power) {
  sim_machine_stall(power->machine, NULL, 0, 0);
  atomic_store(&power->has_faults, false);
  sqlite3 *db = start(power, false);
  if (db) check_start(power, db);
  if (db && !power_is_over(power)) {
    set_phase(power, "run");
    workload_prepare(power, db);
    work(power, db);
    settle(power, db);
    check_outcomes(power, db, true);
    check_integrity(power, db);
    check_state(power, db);
  }
  if (db && !power_is_over(power)) {
    stop_in_order(power, db, true);
    disconnect(power, db);
    db = NULL;
    check_plain(power);
  }
}

/* ---- A seed ---- */

static void begin(struct power *power) {
  power->random.state = power->seed;
  draw_plan(power);
  pthread_mutex_init(&power->mutex, NULL);
  os_condition_init(&power->condition);
  history_init(&power->history);
  power->machine = sim_machine_new(sim_random_next(&power->random), os_real());
  sim_vfs_seed(sim_random_next(&power->random));
  sim_vfs_mount(POWER_FOLDER, power->machine);
  sim_machine_on_crash(power->machine, on_crash, power);
  sim_machine_skip_syncs(power->machine, power->skipped);
  struct node_machine machine = {
      .os = os_real(),
      .os_of = sim_vfs_os_of,
      .base = sqlite3_vfs_find(SIM_VFS_NAME),
      .part_bytes = power->plan.part_bytes,
      .wal_limit_frames = power->plan.wal_limit_frames,
      .segment_bytes = power->plan.segment_bytes,
  };
  node_use_machine(&machine);
  if (os_thread_start(os_real(), "stopper", stopper_main, power, &power->stopper) != 0) abort();
}

static void end(struct power *power) {
  pthread_mutex_lock(&power->mutex);
  power->ends = true;
  pthread_cond_broadcast(&power->condition);
  pthread_mutex_unlock(&power->mutex);
  os_thread_join(power->stopper);
  power->counters.calls = sim_machine_calls(power->machine);
}

void power_end(struct power *power) {
  /* After a failure the node may hang on the machine: it stays until the program ends. */
  if (!power->has_failed) {
    sim_vfs_unmount(POWER_FOLDER);
    sim_machine_free(power->machine);
    history_free(&power->history);
  }
}

void power_run(struct power *power) {
  begin(power);
  history_begin(&power->history, 0, 0); /* the empty database; its digest follows */
  sqlite3 *empty = NULL;
  uint64_t number;
  if (sqlite3_open_v2(":memory:", &empty, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK) abort();
  if (digest_content(empty, &number, &power->history.states[0].digest) != SQLITE_OK) abort();
  sqlite3_close(empty);
  for (power->life = 1; power->life < power->plan.lives && !power->has_failed; power->life++) {
    live(power, power->life == 1);
    power->counters.lives++;
  }
  if (!power->has_failed) live_well(power);
  power->counters.lives++;
  end(power);
}
