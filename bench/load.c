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

const char *const table_names[N_TABLE_KINDS] = {"rowid", "random", "index"};

enum phase { PHASE_WARM_UP, PHASE_RUN, PHASE_OVER };

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
  struct tally tally;
  struct histogram histogram;
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
  if (worker->load->request->table == TABLE_ROWID) {
    sqlite3_bind_blob(worker->statement, 1, row, sizeof row, SQLITE_STATIC);
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
  if (after == PHASE_RUN || before == PHASE_RUN) histogram_add(&worker->histogram, took);
  if (code != SQLITE_OK) {
    note_error(worker, code);
    return;
  }
  worker->acknowledged++;
  if (after == PHASE_RUN) worker->tally.done++;
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

/* Starts the threads, lets them work, ends them. */
static void run(struct load *load, struct worker *workers, size_t n, struct reply *reply) {
  const struct request *request = load->request;
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
    atomic_store(&load->phase, PHASE_RUN);
    sleep_ns(request->run_ms * BENCH_MS);
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

static void sum_up(const struct worker *workers, size_t n, bool readers, struct histogram *histogram,
                   struct tally *tally) {
  *histogram = (struct histogram){.n = 0};
  for (size_t i = 0; i < n; i++) {
    const struct worker *worker = &workers[i];
    if (worker->is_reader != readers) continue;
    if (tally->errors == 0 && worker->tally.errors > 0) {
      tally->first_error = worker->tally.first_error;
      memcpy(tally->first_text, worker->tally.first_text, sizeof tally->first_text);
    }
    tally->done += worker->tally.done;
    tally->errors += worker->tally.errors;
    histogram_merge(histogram, &worker->histogram);
  }
  tally->median_us = histogram_us(histogram, 0.5);
  tally->high_us = histogram_us(histogram, 0.99);
  tally->max_us = histogram_us(histogram, 1);
}

void load_run(const char *uri, const struct request *request, struct reply *reply) {
  struct load load = {.request = request, .queue = PTHREAD_MUTEX_INITIALIZER};
  size_t n = request->writers + request->readers;
  struct worker *workers = calloc(n, sizeof *workers);
  struct histogram *histogram = calloc(1, sizeof *histogram);
  atomic_init(&load.phase, PHASE_WARM_UP);
  atomic_init(&load.left, (long long)request->commits);
  bool is_open = workers && histogram;
  if (!is_open) snprintf(reply->text, sizeof reply->text, "no memory");
  for (size_t i = 0; is_open && i < n; i++) {
    workers[i].load = &load;
    workers[i].is_reader = i >= request->writers;
    sqlite3_randomness(sizeof workers[i].random, &workers[i].random);
    workers[i].random |= 1; /* never 0 */
    is_open = worker_open(&workers[i], uri, request, reply->text);
  }
  if (is_open) {
    run(&load, workers, n, reply);
    sum_up(workers, n, false, histogram, &reply->writes);
    sum_up(workers, n, true, histogram, &reply->reads);
    for (size_t i = 0; i < request->writers; i++) reply->acknowledged += workers[i].acknowledged;
  }
  reply->is_ok = is_open && !reply->text[0];
  for (size_t i = 0; workers && i < n; i++) worker_close(&workers[i]);
  free(workers);
  free(histogram);
}
