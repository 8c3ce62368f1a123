/*
** Writers in every node's process. Where the node leads, all of them write; elsewhere the first one tries now and then and
** the others wait for it. So a new leader has its writers at once, and followers spend next to nothing.
**
** What is looked at is when nothing was acknowledged: times of at least BENCH_GAP_NS_MIN between one acknowledged
** commit of the process and the next.
*/
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"

#define SCOUT_NS (1 * BENCH_MS) /* between two attempts on a node that does not lead */

static struct {
  pthread_mutex_t mutex; /* guards all of this */
  pthread_cond_t changed;
  pthread_t threads[BENCH_THREADS_MAX];
  uint32_t n_threads, n_begun;
  const char *uri;
  bool is_over, is_writing; /* is_writing: this node leads, as far as is known */
  uint64_t last_ns;         /* of the last acknowledged commit */
  struct gap gaps[BENCH_GAPS_MAX];
  uint32_t n_gaps; /* ever; the last ones are in `gaps` */
  uint64_t waited_ns;
  struct reply sums; /* acknowledged, writes.errors and its first */
} patrol = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* mutex held */
static void note_commit(uint64_t now) {
  if (now - patrol.last_ns >= BENCH_GAP_NS_MIN)
    patrol.gaps[patrol.n_gaps++ % BENCH_GAPS_MAX] = (struct gap){patrol.last_ns, now};
  if (now > patrol.last_ns) patrol.last_ns = now;
  patrol.sums.acknowledged++;
  patrol.is_writing = true;
}

/* mutex held. Another node leads, or none just now: no failure of a commit. */
static void note_failure(sqlite3 *db, int code) {
  patrol.is_writing = false;
  if ((code & 0xff) == SQLITE_READONLY || code == SQLITE_BUSY) return;
  if (patrol.sums.writes.errors++ > 0) return;
  patrol.sums.writes.first_error = code;
  snprintf(patrol.sums.writes.first_text, sizeof patrol.sums.writes.first_text, "%s", sqlite3_errmsg(db));
}

/* mutex held, given up meanwhile. false: it is over. */
static bool wait_for_turn(bool is_scout) {
  if (patrol.is_writing || patrol.is_over) return !patrol.is_over;
  if (!is_scout) {
    while (!patrol.is_writing && !patrol.is_over) pthread_cond_wait(&patrol.changed, &patrol.mutex);
    return !patrol.is_over;
  }
  pthread_mutex_unlock(&patrol.mutex);
  nanosleep(&(struct timespec){.tv_nsec = (long)SCOUT_NS}, NULL);
  pthread_mutex_lock(&patrol.mutex);
  return !patrol.is_over;
}

static void write_rows(sqlite3 *db, sqlite3_stmt *insert, bool is_scout) {
  pthread_mutex_lock(&patrol.mutex);
  while (wait_for_turn(is_scout)) {
    bool was_writing = patrol.is_writing;
    pthread_mutex_unlock(&patrol.mutex);
    uint64_t begin = now_ns();
    sqlite3_step(insert);
    int code = sqlite3_reset(insert);
    uint64_t end = now_ns();
    pthread_mutex_lock(&patrol.mutex);
    if (end - begin > patrol.waited_ns) patrol.waited_ns = end - begin;
    if (code == SQLITE_OK)
      note_commit(end);
    else
      note_failure(db, sqlite3_extended_errcode(db));
    if (!was_writing && patrol.is_writing) pthread_cond_broadcast(&patrol.changed);
  }
  pthread_mutex_unlock(&patrol.mutex);
}

static void *work(void *arg) {
  sqlite3 *db = NULL;
  sqlite3_stmt *insert = NULL;
  char sql[BENCH_TEXT_MAX];
  pthread_mutex_lock(&patrol.mutex);
  bool is_scout = patrol.n_begun++ == 0;
  pthread_mutex_unlock(&patrol.mutex);
  snprintf(sql, sizeof sql, "INSERT INTO t(body) VALUES (randomblob(%d))", BENCH_ROW_BYTES);
  int code = sqlite3_open_v2(patrol.uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI, NULL);
  if (code == SQLITE_OK) code = sqlite3_prepare_v2(db, sql, -1, &insert, NULL);
  if (code == SQLITE_OK) {
    write_rows(db, insert, is_scout);
  } else {
    pthread_mutex_lock(&patrol.mutex);
    note_failure(db, code);
    pthread_mutex_unlock(&patrol.mutex);
  }
  sqlite3_finalize(insert);
  sqlite3_close(db);
  return arg;
}

void patrol_begin(const char *uri, const struct request *request, struct reply *reply) {
  patrol.uri = uri;
  patrol.last_ns = now_ns();
  reply->is_ok = true;
  while (patrol.n_threads < request->writers && reply->is_ok) {
    reply->is_ok = pthread_create(&patrol.threads[patrol.n_threads], NULL, work, NULL) == 0;
    patrol.n_threads += reply->is_ok;
  }
  if (!reply->is_ok) snprintf(reply->text, sizeof reply->text, "thread %u cannot be started", patrol.n_threads);
}

void patrol_gaps(uint64_t since_ns, struct reply *reply) {
  pthread_mutex_lock(&patrol.mutex);
  uint32_t kept = patrol.n_gaps < BENCH_GAPS_MAX ? patrol.n_gaps : BENCH_GAPS_MAX;
  for (uint32_t i = patrol.n_gaps - kept; i < patrol.n_gaps; i++) {
    struct gap gap = patrol.gaps[i % BENCH_GAPS_MAX];
    if (gap.to_ns > since_ns && reply->n_gaps < BENCH_GAPS_MAX - 1) reply->gaps[reply->n_gaps++] = gap;
  }
  reply->gaps[reply->n_gaps++] = (struct gap){.from_ns = patrol.last_ns};
  reply->waited_ns = patrol.waited_ns;
  reply->acknowledged = patrol.sums.acknowledged;
  patrol.waited_ns = 0;
  pthread_mutex_unlock(&patrol.mutex);
  reply->is_ok = true;
}

void patrol_end(struct reply *reply) {
  pthread_mutex_lock(&patrol.mutex);
  patrol.is_over = true;
  pthread_cond_broadcast(&patrol.changed);
  pthread_mutex_unlock(&patrol.mutex);
  for (uint32_t i = 0; i < patrol.n_threads; i++) pthread_join(patrol.threads[i], NULL);
  patrol.n_threads = 0;
  reply->acknowledged = patrol.sums.acknowledged;
  reply->writes = patrol.sums.writes;
  reply->is_ok = true;
}
