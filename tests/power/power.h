/*
** Power loss under a whole node: a cluster of one on a simulated disk, random transactions by SQL, a crash in a random call that
** changes the disk, and so on for a few lives of the machine. After each start the database must be exactly a state that the
** history of transactions knows: every acknowledged one is in it, and nothing that was said to be lost.
**
** The threads are real, so a seed decides what is done, but not in which order the node's threads do it: a failure comes again
** with its seed more often than not. What a report needs is printed: seed, life of the machine, call, the last calls.
**
**   history.c   the model: what the database may hold
**   workload.c  random transactions
**   power.c     a seed: lives, crashes, faults, what is checked
**   main.c      the program
*/
#ifndef BALSA_TESTS_POWER_H
#define BALSA_TESTS_POWER_H

#include <inttypes.h>
#include <stdatomic.h>

#include "../../ext/node.h"
#include "../fault/sim_machine.h"
#include "../fault/sim_vfs.h"
#include "../sim/random.h"

#define POWER_FOLDER "/n"
#define POWER_PATH POWER_FOLDER "/app.db"
#define POWER_TEXT_MAX 1024
#define POWER_TOKEN_MAX 96

/* ---- history.c ---- */

enum fate {
  FATE_OPEN,      /* its COMMIT has not returned, or said: unknown */
  FATE_COMMITTED, /* acknowledged, or seen by a reader */
  FATE_LOST,      /* it was told so, or a start has shown it */
};

/* A state that a transaction led to, if it did. */
struct state {
  uint64_t number; /* of the transaction, as table `journal` holds it */
  uint64_t digest; /* of all content */
  enum fate fate;
  bool is_settled;             /* its thread has the answer of its COMMIT */
  char token[POWER_TOKEN_MAX]; /* "" none */
};

struct history {
  pthread_mutex_t mutex;
  struct state *states;
  size_t n, capacity;
};

void history_init(struct history *history);
void history_free(struct history *history);
/* Before COMMIT. Returns its place. */
size_t history_begin(struct history *history, uint64_t number, uint64_t digest);
void history_end(struct history *history, size_t place, enum fate fate, const char *token);
/*
** A reader saw this state, or (is_start) the database is in this state after a start, and then all others that were open are
** decided by it. false, with a sentence: it must not be.
*/
bool history_sees(struct history *history, uint64_t number, uint64_t digest, bool is_start, char *text);

/* All content: number and digest. SQLite error code. */
int digest_content(sqlite3 *db, uint64_t *number, uint64_t *digest);

/* ---- power.c ---- */

/* What a seed chose once. */
struct plan {
  uint32_t page_size, auto_vacuum, wal_limit_frames, part_bytes, segment_bytes, cache_pages;
  uint64_t snapshot_threshold, log_tail;
  unsigned lives, writers, transactions;
  uint32_t size_max; /* bytes that the database is kept below */
};

struct power_counters {
  uint64_t lives, crashes_in_start, crashes_in_run, crashes_in_stop, kills, stops, faulty, injected, full, refused,
      removed;
  uint64_t transactions, acknowledged, unknown, lost, rolled_back, vacuums, snapshots, reads;
  uint64_t calls;
};

struct power {
  uint64_t seed;
  struct sim_random random; /* the main thread's */
  struct plan plan;
  struct sim_machine *machine;
  struct history history;
  unsigned life;
  bool was_killed; /* the machine has gone down with its page cache kept, ever */
  const char *phase;
  const char *skipped; /* syncs of this site do nothing; NULL: all work */
  bool is_verbose;
  atomic_bool has_faults; /* errors are injected: statements may fail */
  bool is_full;           /* what is injected is a full disk, and nothing else */

  /* Who stops the node when the machine goes down. */
  pthread_mutex_t mutex;
  pthread_cond_t condition;
  bool is_down, is_stopped, ends;
  struct os_thread *stopper;

  struct power_counters counters; /* mutex */
  bool has_failed;
  char failure[POWER_TEXT_MAX * 2];
};

/* Runs one seed; what went wrong is in has_failed and failure. `power` is zeroed but for seed, skipped and is_verbose. */
void power_run(struct power *power);
/* After power_run: frees what it left for looking at. */
void power_end(struct power *power);
/* Any thread; the first one counts. */
void power_fail(struct power *power, const char *format, ...) __attribute__((format(printf, 2, 3)));
void power_count(struct power *power, uint64_t *counter);
/* The machine is down, or something has failed: nothing more is to be done in this life. */
bool power_is_over(struct power *power);

/* ---- workload.c ---- */

/* The first transaction of all, if it was not made yet. false: it could not be. */
bool workload_prepare(struct power *power, sqlite3 *db);
/* Random transactions on one connection, until there were `n` or the machine is down. */
void workload_run(struct power *power, sqlite3 *db, struct sim_random *random, unsigned n);
/* One transaction that only counts. true: acknowledged. */
bool workload_small(struct power *power, sqlite3 *db);
void workload_set_up_connection(struct power *power, sqlite3 *db);

#endif
