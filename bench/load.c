/*
** Writers and readers: a thread and a connection each, prepared statements, every call timed.
**
** What is done while the clock runs counts; a call under way when the time is over does not count as done, but its
** latency does, or a stall at the end would be hidden.
*/
#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "bench.h"

#define PAUSE_AFTER_ERROR_NS (1 * BENCH_MS) /* a node that refuses everything is not asked a million times */

#define STATUS_EVERY_MS 100

const char *const table_names[N_TABLE_KINDS] = {"rowid", "random", "index", "update"};

/* PHASE_RUN + a stage: the time that counts. */
enum phase { PHASE_WARM_UP, PHASE_RUN, PHASE_OVER = PHASE_RUN + N_STAGES };

struct load {
  const struct request *request;
  _Atomic enum phase phase;
  atomic_llong left; /* commits still to be begun */
  pthread_mutex_t queue;
};

struct worker {
  struct load *load;
  pthread_t thread;
  bool is_reader, has_thread;
  uint64_t random;
  sqlite3 *db;
  sqlite3_stmt *statement;
  uint64_t acknowledged;
  uint64_t done[N_STAGES];
  struct tally tally; /* its errors */
  struct histogram histograms[N_STAGES];
};

uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000 * BENCH_MS + (uint64_t)time.tv_nsec;
}

static void sleep_ns(uint64_t ns) {
  struct timespec time = {.tv_sec = (time_t)(ns / (1000 * BENCH_MS)), .tv_nsec = (long)(ns % (1000 * BENCH_MS))};
  while (nanosleep(&time, &time)) continue;
}

/* xorshift64*: rows must not compress, and must cost next to nothing. */
static uint64_t next_random(struct worker *worker) {
  uint64_t x = worker->random;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  worker->random = x;
  return x * UINT64_C(0x2545F4914F6CDD1D);
}

static void random_bytes(struct worker *worker, uint8_t *bytes, size_t n) {
  for (size_t i = 0; i < n; i += 8) {
    uint64_t value = next_random(worker);
    memcpy(bytes + i, &value, n - i < 8 ? n - i : 8);
  }
}

static int write_row(struct worker *worker) {
  uint8_t row[BENCH_ROW_BYTES];
  random_bytes(worker, row, sizeof row);
  const struct request *request = worker->load->request;
  if (request->table == TABLE_ROWID || request->table == TABLE_UPDATE) {
    sqlite3_bind_blob(worker->statement, 1, row, sizeof row, SQLITE_STATIC);
    uint64_t id = 1 + next_random(worker) % (request->rows ? request->rows : 1);
    if (request->table == TABLE_UPDATE) sqlite3_bind_int64(worker->statement, 2, (sqlite3_int64)id);
  } else {
    sqlite3_bind_blob(worker->statement, 1, row, BENCH_KEY_BYTES, SQLITE_STATIC);
    sqlite3_bind_blob(worker->statement, 2, row + BENCH_KEY_BYTES, BENCH_ROW_BYTES - BENCH_KEY_BYTES, SQLITE_STATIC);
  }
  sqlite3_step(worker->statement);
  return sqlite3_reset(worker->statement);
}

static int read_row(struct worker *worker) {
  uint64_t id = 1 + next_random(worker) % worker->load->request->rows;
  sqlite3_bind_int64(worker->statement, 1, (sqlite3_int64)id);
  int step = sqlite3_step(worker->statement);
  bool is_right = step == SQLITE_ROW && sqlite3_column_bytes(worker->statement, 0) == BENCH_ROW_BYTES;
  int code = sqlite3_reset(worker->statement);
  return code == SQLITE_OK && !is_right ? SQLITE_NOTFOUND : code;
}

static void note_error(struct worker *worker, int code) {
  if (worker->tally.errors++ == 0) {
    worker->tally.first_error = sqlite3_extended_errcode(worker->db);
    if (worker->tally.first_error == SQLITE_OK) worker->tally.first_error = code;
    snprintf(worker->tally.first_text, sizeof worker->tally.first_text, "%s",
             code == SQLITE_NOTFOUND ? "a row is missing" : sqlite3_errmsg(worker->db));
  }
  sleep_ns(PAUSE_AFTER_ERROR_NS);
}

static bool is_counted(enum phase phase) {
  return phase != PHASE_WARM_UP && phase != PHASE_OVER;
}

/* One statement that commits by itself, or one read. */
static void work_once(struct worker *worker) {
  struct load *load = worker->load;
  bool has_turn = load->request->queued && !worker->is_reader;
  enum phase before = atomic_load(&load->phase);
  uint64_t begin = now_ns();
  if (has_turn) pthread_mutex_lock(&load->queue);
  int code = worker->is_reader ? read_row(worker) : write_row(worker);
  if (has_turn) pthread_mutex_unlock(&load->queue);
  uint64_t took = now_ns() - begin;
  enum phase after = atomic_load(&load->phase);
  if (is_counted(after)) histogram_add(&worker->histograms[after - PHASE_RUN], took);
  if (is_counted(before) && before != after) histogram_add(&worker->histograms[before - PHASE_RUN], took);
  if (code != SQLITE_OK) {
    note_error(worker, code);
    return;
  }
  worker->acknowledged++;
  if (is_counted(after)) worker->done[after - PHASE_RUN]++;
}

static void *work(void *arg) {
  struct worker *worker = arg;
  const struct request *request = worker->load->request;
  uint64_t pause = worker->is_reader && request->reads_per_s ? 1000 * BENCH_MS / request->reads_per_s : 0;
  while (atomic_load(&worker->load->phase) != PHASE_OVER) {
    if (request->commits && !worker->is_reader && atomic_fetch_sub(&worker->load->left, 1) <= 0) break;
    work_once(worker);
    if (pause) sleep_ns(pause);
  }
  return NULL;
}

static bool worker_open(struct worker *worker, const char *uri, const struct request *request, char *text) {
  static const char *const inserts[N_TABLE_KINDS] = {
      "INSERT INTO t(body) VALUES (?)",
      "INSERT INTO t(key, body) VALUES (?, ?)",
      "INSERT INTO t(key, body) VALUES (?, ?)",
      "UPDATE t SET body = ? WHERE id = ?",
  };
  const char *sql = worker->is_reader ? "SELECT body FROM t WHERE id = ?" : inserts[request->table];
  int code = sqlite3_open_v2(uri, &worker->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI, NULL);
  if (code == SQLITE_OK) code = sqlite3_busy_timeout(worker->db, (int)request->busy_timeout_ms);
  if (code == SQLITE_OK && !worker->is_reader)
    code = sqlite3_exec(worker->db, "PRAGMA synchronous=FULL", NULL, NULL, NULL);
  if (code == SQLITE_OK)
    code = sqlite3_prepare_v3(worker->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &worker->statement, NULL);
  if (code != SQLITE_OK) snprintf(text, BENCH_TEXT_MAX, "%s: %s", uri, sqlite3_errmsg(worker->db));
  return code == SQLITE_OK;
}

static void worker_close(struct worker *worker) {
  sqlite3_finalize(worker->statement);
  sqlite3_close(worker->db);
}

struct usage {
  uint64_t at;
  double cpu_us;
  uint64_t switches, preemptions;
};

double process_cpu_us(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 +
         (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static struct usage usage_now(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (struct usage){
      .at = now_ns(),
      .cpu_us = process_cpu_us(),
      .switches = (uint64_t)usage.ru_nvcsw,
      .preemptions = (uint64_t)usage.ru_nivcsw,
  };
}

static void join(struct worker *workers, size_t n, bool readers) {
  for (size_t i = 0; i < n; i++) {
    if (!workers[i].has_thread || workers[i].is_reader != readers) continue;
    pthread_join(workers[i].thread, NULL);
    workers[i].has_thread = false;
  }
}

/* What the main thread does meanwhile, on a connection of its own. */
struct observer {
  sqlite3 *db;
  sqlite3_stmt *status; /* NULL: no Balsa */
  const struct request *request;
  struct reply *reply;
  uint64_t log_bytes;
};

static bool observer_open(struct observer *observer, const char *uri) {
  int code = sqlite3_open_v2(uri, &observer->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI, NULL);
  if (code == SQLITE_OK && strstr(uri, "vfs=balsa"))
    code = sqlite3_prepare_v2(observer->db, "SELECT wal_frames, log_bytes FROM balsa_status", -1, &observer->status,
                              NULL);
  if (code != SQLITE_OK)
    snprintf(observer->reply->text, sizeof observer->reply->text, "%s: %s", uri, sqlite3_errmsg(observer->db));
  return code == SQLITE_OK;
}

static void observer_close(struct observer *observer) {
  sqlite3_finalize(observer->status);
  sqlite3_close(observer->db);
}

static void look(struct observer *observer) {
  if (!observer->status || sqlite3_step(observer->status) != SQLITE_ROW) return;
  uint64_t frames = (uint64_t)sqlite3_column_int64(observer->status, 0);
  observer->log_bytes = (uint64_t)sqlite3_column_int64(observer->status, 1);
  if (frames > observer->reply->wal_frames_max) observer->reply->wal_frames_max = frames;
  sqlite3_reset(observer->status);
}

/* Sleeps, and looks at the node now and then. */
static void observe(struct observer *observer, uint64_t ms) {
  uint64_t until = now_ns() + ms * BENCH_MS, wanted = observer->request->log_bytes;
  for (uint64_t now = now_ns(); now < until && (!wanted || observer->log_bytes < wanted); now = now_ns()) {
    sleep_ns(until - now < STATUS_EVERY_MS * BENCH_MS ? until - now : STATUS_EVERY_MS * BENCH_MS);
    look(observer);
  }
}

static void take_snapshot(struct observer *observer) {
  sqlite3_stmt *statement = NULL;
  struct reply *reply = observer->reply;
  if (sqlite3_prepare_v2(observer->db, "SELECT balsa_snapshot()", -1, &statement, NULL) == SQLITE_OK &&
      sqlite3_step(statement) == SQLITE_ROW)
    reply->snapshot_index = (uint64_t)sqlite3_column_int64(statement, 0);
  else
    snprintf(reply->text, sizeof reply->text, "balsa_snapshot(): %s", sqlite3_errmsg(observer->db));
  sqlite3_finalize(statement);
}

static void run_stages(struct load *load, struct observer *observer) {
  const struct request *request = load->request;
  enum stage last = request->has_snapshot ? STAGE_AFTER : STAGE_BEFORE;
  for (enum stage stage = STAGE_BEFORE; stage <= last; stage++) {
    uint64_t begin = now_ns();
    atomic_store(&load->phase, (enum phase)(PHASE_RUN + stage));
    if (stage == STAGE_DURING)
      take_snapshot(observer);
    else
      observe(observer, request->run_ms);
    observer->reply->stage_seconds[stage] = (double)(now_ns() - begin) / 1e9;
  }
}

/* Starts the threads, lets them work, ends them. */
static void run(struct load *load, struct worker *workers, size_t n, struct observer *observer) {
  const struct request *request = load->request;
  struct reply *reply = observer->reply;
  if (request->commits) atomic_store(&load->phase, PHASE_RUN);
  struct usage from = usage_now();
  for (size_t i = 0; i < n; i++) {
    workers[i].has_thread = pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0;
    if (!workers[i].has_thread) snprintf(reply->text, sizeof reply->text, "thread %zu cannot be started", i);
  }
  if (request->commits) {
    join(workers, n, false);
  } else {
    sleep_ns(request->warm_up_ms * BENCH_MS);
    from = usage_now();
    run_stages(load, observer);
  }
  atomic_store(&load->phase, PHASE_OVER);
  struct usage to = usage_now();
  join(workers, n, false);
  join(workers, n, true);
  reply->seconds = (double)(to.at - from.at) / 1e9;
  reply->cpu_us = to.cpu_us - from.cpu_us;
  reply->switches = to.switches - from.switches;
  reply->preemptions = to.preemptions - from.preemptions;
}

static void note_latencies(const struct histogram *histogram, struct tally *tally) {
  tally->median_us = histogram_us(histogram, 0.5);
  tally->high_us = histogram_us(histogram, 0.99);
  tally->highest_us = histogram_us(histogram, 0.999);
  tally->max_us = histogram_us(histogram, 1);
}

/* `stages` may be NULL. */
static void sum_up(const struct worker *workers, size_t n, bool readers, struct tally *tally, struct tally *stages) {
  static struct histogram all, of_stage;
  all = (struct histogram){.n = 0};
  for (size_t stage = 0; stage < N_STAGES; stage++) {
    of_stage = (struct histogram){.n = 0};
    for (size_t i = 0; i < n; i++) {
      if (workers[i].is_reader != readers) continue;
      tally->done += workers[i].done[stage];
      if (stages) stages[stage].done += workers[i].done[stage];
      histogram_merge(&of_stage, &workers[i].histograms[stage]);
    }
    histogram_merge(&all, &of_stage);
    if (stages) note_latencies(&of_stage, &stages[stage]);
  }
  note_latencies(&all, tally);
  for (size_t i = 0; i < n; i++) {
    const struct worker *worker = &workers[i];
    if (worker->is_reader != readers) continue;
    if (tally->errors == 0 && worker->tally.errors > 0) {
      tally->first_error = worker->tally.first_error;
      memcpy(tally->first_text, worker->tally.first_text, sizeof tally->first_text);
    }
    tally->errors += worker->tally.errors;
  }
}

void load_run(const char *uri, const struct request *request, struct reply *reply) {
  struct load load = {.request = request, .queue = PTHREAD_MUTEX_INITIALIZER};
  size_t n = request->writers + request->readers;
  struct worker *workers = calloc(n, sizeof *workers);
  struct observer observer = {.request = request, .reply = reply};
  atomic_init(&load.phase, PHASE_WARM_UP);
  atomic_init(&load.left, (long long)request->commits);
  bool is_open = workers != NULL;
  if (!is_open) snprintf(reply->text, sizeof reply->text, "no memory");
  is_open = is_open && observer_open(&observer, uri);
  for (size_t i = 0; is_open && i < n; i++) {
    workers[i].load = &load;
    workers[i].is_reader = i >= request->writers;
    sqlite3_randomness(sizeof workers[i].random, &workers[i].random);
    workers[i].random |= 1; /* never 0 */
    is_open = worker_open(&workers[i], uri, request, reply->text);
  }
  if (is_open) {
    run(&load, workers, n, &observer);
    sum_up(workers, n, false, &reply->writes, reply->stage_writes);
    sum_up(workers, n, true, &reply->reads, NULL);
    for (size_t i = 0; i < request->writers; i++) reply->acknowledged += workers[i].acknowledged;
  }
  reply->is_ok = is_open && !reply->text[0];
  for (size_t i = 0; workers && i < n; i++) worker_close(&workers[i]);
  observer_close(&observer);
  free(workers);
}
