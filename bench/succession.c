/*
** Changes of leader under load: by SIGKILL (failover) and by balsa_transfer (transfer). Writers run in all three
** processes (patrol.c); what counts is when nothing was acknowledged anywhere.
*/
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#define LOAD_MS 200  /* of load before each change */
#define AFTER_MS 200 /* after a transfer, so that a pause at its end is seen whole */
#define LOOK_MS 5    /* between two looks */
#define FAILOVER_MS_MAX 30000
#define SETTLE_MS_MAX 30000

enum { CHANGE, SETTINGS, WRITERS, ROUNDS, MEDIAN, HIGH, MAX, WAITED, ERRORS, COMMITS, N_COLUMNS };
static const struct column columns[N_COLUMNS] = {
    [CHANGE] = {"change", -8, 0},  [SETTINGS] = {"settings", -24, 0},     [WRITERS] = {"writers", 7, 0},
    [ROUNDS] = {"rounds", 6, 0},   [MEDIAN] = {"median ms", 9, 1},        [HIGH] = {"99% ms", 8, 1},
    [MAX] = {"max ms", 8, 1},      [WAITED] = {"longest call ms", 15, 1}, [ERRORS] = {"failed", 6, 0},
    [COMMITS] = {"commits", 8, 0},
};

static const struct {
  const char *name, *parameters;
} settings[] = {
    {"defaults", ""},
    {"election=150,heartbeat=15", "&election=150&heartbeat=15"},
};

struct series {
  double ms[BENCH_ROUNDS_MAX];
  size_t n;
  double waited_ms;
  uint64_t errors, acknowledged;
  int first_error;
  char first_text[BENCH_TEXT_MAX];
};

static void sleep_ms(int ms) {
  poll(NULL, 0, ms);
}

/* All nodes are ready, one leads, and all have applied what it has committed by now. */
static void settle(struct cluster *cluster) {
  cluster_wait_ready(cluster);
  for (size_t i = 0; i < cluster->n_children; i++) cluster_wait_applied(cluster, i, SETTLE_MS_MAX);
}

static void begin_patrol(struct child *child, uint32_t writers) {
  struct reply reply;
  child_ask(child, &(struct request){.operation = OP_PATROL, .writers = writers}, &reply);
}

static void ask_gaps(struct child *child, uint64_t since, struct reply *reply, struct series *series) {
  child_ask(child, &(struct request){.operation = OP_GAPS, .since_ns = since}, reply);
  double waited = (double)reply->waited_ns / BENCH_MS;
  if (waited > series->waited_ms) series->waited_ms = waited;
}

/* The first commit after `since` that this process acknowledged; 0: none yet. */
static uint64_t first_commit(const struct reply *reply, uint64_t since) {
  for (uint32_t i = 0; i < reply->n_gaps; i++) {
    const struct gap *gap = &reply->gaps[i];
    if (gap->from_ns > since) return gap->from_ns; /* within a time of commits without a gap */
    if (gap->to_ns > since) return gap->to_ns;
  }
  return 0;
}

static void end_patrols(struct cluster *cluster, struct series *series, uint64_t rows) {
  struct reply reply;
  settle(cluster);
  for (size_t i = 0; i < cluster->n_children; i++) {
    child_ask(&cluster->children[i], &(struct request){.operation = OP_DISMISS}, &reply);
    series->acknowledged += reply.acknowledged;
    if (series->errors == 0 && reply.writes.errors > 0) {
      series->first_error = reply.writes.first_error;
      memcpy(series->first_text, reply.writes.first_text, sizeof series->first_text);
    }
    series->errors += reply.writes.errors;
  }
  settle(cluster);
  child_ask(cluster->leader, &(struct request){.operation = OP_DISMISS}, &reply);
  if (reply.rows_after < rows + series->acknowledged)
    die("rows are missing: %llu are there, %llu more were acknowledged than the %llu before",
        (unsigned long long)reply.rows_after, (unsigned long long)series->acknowledged, (unsigned long long)rows);
}

/* SIGKILL of the leader; how long until a commit is acknowledged by another node. */
static void fail_over(struct cluster *cluster, const struct options *options, uint32_t writers, struct series *series) {
  struct child *victim = cluster->leader;
  struct reply reply;
  child_ask(victim, &(struct request){.operation = OP_GAPS}, &reply);
  series->acknowledged += reply.acknowledged; /* at least */
  uint64_t killed = now_ns(), first = 0;
  child_kill(victim);
  while (first == 0) {
    sleep_ms(LOOK_MS);
    for (size_t i = 0; i < cluster->n_children; i++) {
      if (&cluster->children[i] == victim) continue;
      ask_gaps(&cluster->children[i], killed, &reply, series);
      uint64_t at = first_commit(&reply, killed);
      if (at && (!first || at < first)) first = at;
    }
    if (now_ns() > killed + FAILOVER_MS_MAX * BENCH_MS) die("no commit within %d s of a kill", FAILOVER_MS_MAX / 1000);
  }
  series->ms[series->n++] = (double)(first - killed) / BENCH_MS;
  cluster_restart(cluster, options, (size_t)(victim - cluster->children));
  settle(cluster);
  begin_patrol(victim, writers);
}

/* The longest time within the gaps of all processes. */
static uint64_t longest_common(const struct reply replies[BENCH_NODES_MAX], uint64_t since, uint64_t until) {
  uint64_t longest = 0;
  for (uint32_t i = 0; i < replies[0].n_gaps; i++) {
    for (uint32_t j = 0; j < replies[1].n_gaps; j++) {
      for (uint32_t k = 0; k < replies[2].n_gaps; k++) {
        const struct gap *gaps[] = {&replies[0].gaps[i], &replies[1].gaps[j], &replies[2].gaps[k]};
        uint64_t from = 0, to = until;
        for (size_t n = 0; n < 3; n++) {
          if (gaps[n]->from_ns > from) from = gaps[n]->from_ns;
          if (gaps[n]->to_ns && gaps[n]->to_ns < to) to = gaps[n]->to_ns;
        }
        if (to > from && to > since && to - from > longest) longest = to - from;
      }
    }
  }
  return longest;
}

static void hand_over(struct cluster *cluster, struct series *series) {
  struct reply reply, replies[BENCH_NODES_MAX] = {{.is_ok = false}};
  uint64_t begin = now_ns();
  child_ask(cluster->leader, &(struct request){.operation = OP_TRANSFER}, &reply);
  sleep_ms(AFTER_MS);
  for (size_t i = 0; i < cluster->n_children; i++) ask_gaps(&cluster->children[i], begin, &replies[i], series);
  series->ms[series->n++] = (double)longest_common(replies, begin, now_ns()) / BENCH_MS;
  settle(cluster);
}

static int compare(const void *a, const void *b) {
  double left = *(const double *)a, right = *(const double *)b;
  return (left > right) - (left < right);
}

static void print(const char *change, const char *name, uint32_t writers, struct series *series) {
  qsort(series->ms, series->n, sizeof *series->ms, compare);
  size_t high = (series->n * 99 + 99) / 100;
  struct cell cells[N_COLUMNS] = {
      [CHANGE] = TEXT(change),
      [SETTINGS] = TEXT(name),
      [WRITERS] = NUMBER(writers),
      [ROUNDS] = NUMBER(series->n),
      [MEDIAN] = NUMBER(median(series->ms, series->n)),
      [HIGH] = NUMBER(series->ms[high - 1]),
      [MAX] = NUMBER(series->ms[series->n - 1]),
      [WAITED] = NUMBER(series->waited_ms),
      [ERRORS] = NUMBER(series->errors),
      [COMMITS] = NUMBER(series->acknowledged),
  };
  report_row(cells);
  if (series->errors)
    fprintf(stderr, "bench: the first that failed was told %d: %s\n", series->first_error, series->first_text);
}

static void measure(const struct options *given, size_t setting, bool is_kill) {
  static struct series series;
  struct options options = *given;
  struct cluster cluster;
  uint32_t writers = options.writers[0];
  char parameters[BENCH_TEXT_MAX];
  snprintf(parameters, sizeof parameters, "%s%s", given->parameters, settings[setting].parameters);
  options.parameters = parameters;
  series = (struct series){.n = 0};
  cluster_start(&cluster, &options, VARIANT_THREE);
  cluster_prepare(&cluster, TABLE_ROWID, options.rows);
  for (size_t i = 0; i < cluster.n_children; i++) begin_patrol(&cluster.children[i], writers);
  while (series.n < options.rounds) {
    sleep_ms(LOAD_MS);
    if (is_kill)
      fail_over(&cluster, &options, writers, &series);
    else
      hand_over(&cluster, &series);
  }
  end_patrols(&cluster, &series, options.rows);
  cluster_stop(&cluster, &options);
  print(is_kill ? "kill" : "transfer", settings[setting].name, writers, &series);
}

void bench_failover(const struct options *options) {
  report_begin("failover", columns, N_COLUMNS,
               "SIGKILL of the leader under load: from the kill to the next acknowledged commit");
  for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) measure(options, i, true);
  report_end();
}

void bench_transfer(const struct options *options) {
  report_begin("transfer", columns, N_COLUMNS,
               "balsa_transfer() under load: the longest time in which no node acknowledged a commit");
  for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) measure(options, i, false);
  report_end();
}
