/*
** Readers: on the leader beside writers, and on a follower that applies what they write, in its process and in plain
** SQLite processes on its files. Readers have no busy time-out: one SQLITE_BUSY is an error here.
*/
#include <stdio.h>
#include <string.h>

#include "bench.h"

#define OUTSIDE_PROCESSES 2
#define PACED_READS_PER_S 1000 /* of each reader, so that the readers leave the processor to the load */

enum { WHERE, VARIANT, WRITERS, COMMITS, READERS, READS, MEDIAN, HIGH, MAX, ERRORS, N_COLUMNS };
static const struct column columns[N_COLUMNS] = {
    [WHERE] = {"readers are", -24, 0}, [VARIANT] = {"variant", -7, 0}, [WRITERS] = {"writers", 7, 0},
    [COMMITS] = {"commits/s", 9, 0},   [READERS] = {"readers", 7, 0},  [READS] = {"reads/s", 9, 0},
    [MEDIAN] = {"median us", 9, 1},    [HIGH] = {"99% us", 8, 1},      [MAX] = {"longest wait us", 15, 0},
    [ERRORS] = {"errors", 6, 0},
};

static void print(const char *where, enum variant variant, uint32_t writers, double commits, uint32_t readers,
                  const struct reply *reply) {
  struct cell cells[N_COLUMNS] = {
      [WHERE] = TEXT(where),
      [VARIANT] = TEXT(variant_names[variant]),
      [WRITERS] = NUMBER(writers),
      [COMMITS] = NUMBER(commits),
      [READERS] = NUMBER(readers),
      [READS] = NUMBER((double)reply->reads.done / reply->seconds),
      [MEDIAN] = NUMBER(reply->reads.median_us),
      [HIGH] = NUMBER(reply->reads.high_us),
      [MAX] = NUMBER(reply->reads.max_us),
      [ERRORS] = NUMBER(reply->reads.errors),
  };
  report_row(cells);
  if (reply->reads.errors)
    fprintf(stderr, "bench: the first error of a reader was %d: %s\n", reply->reads.first_error,
            reply->reads.first_text);
}

static struct request load_request(const struct options *options, uint32_t writers, uint32_t readers) {
  return (struct request){.operation = OP_LOAD,
                          .table = TABLE_ROWID,
                          .rows = options->rows,
                          .writers = writers,
                          .readers = readers,
                          .warm_up_ms = options->warm_up_ms,
                          .run_ms = options->run_ms};
}

static void on_leader(const struct options *options, enum variant variant, uint32_t writers, uint32_t reads_per_s) {
  struct cluster cluster;
  struct reply reply;
  /* Plain SQLite's writers need a busy time-out; its readers in WAL mode never use it. */
  struct request request = load_request(options, writers, options->readers);
  if (variant == VARIANT_PLAIN || variant == VARIANT_QUEUED) request.busy_timeout_ms = options->busy_timeout_ms;
  request.queued = variant == VARIANT_QUEUED;
  request.reads_per_s = reads_per_s;
  cluster_start(&cluster, options, variant);
  cluster_prepare(&cluster, TABLE_ROWID, options->rows);
  child_ask(cluster.leader, &request, &reply);
  cluster_check(&reply, options->rows);
  cluster_stop(&cluster, options);
  print(reads_per_s ? "on the leader, paced" : "on the leader", variant, writers,
        (double)reply.writes.done / reply.seconds, options->readers, &reply);
  if (reply.writes.errors)
    fprintf(stderr, "bench: %llu writes failed, the first with %d: %s\n", (unsigned long long)reply.writes.errors,
            reply.writes.first_error, reply.writes.first_text);
}

/* Adds up what several processes have read; the latencies: the worst of them. */
static void add_reads(struct reply *sum, const struct reply *one) {
  if (sum->reads.errors == 0 && one->reads.errors > 0) {
    sum->reads.first_error = one->reads.first_error;
    memcpy(sum->reads.first_text, one->reads.first_text, sizeof sum->reads.first_text);
  }
  sum->reads.done += one->reads.done;
  sum->reads.errors += one->reads.errors;
  if (one->reads.median_us > sum->reads.median_us) sum->reads.median_us = one->reads.median_us;
  if (one->reads.high_us > sum->reads.high_us) sum->reads.high_us = one->reads.high_us;
  if (one->reads.max_us > sum->reads.max_us) sum->reads.max_us = one->reads.max_us;
  sum->seconds = one->seconds;
}

static void on_follower(const struct options *options, uint32_t writers, uint32_t reads_per_s) {
  struct cluster cluster;
  struct child outside[OUTSIDE_PROCESSES], *follower;
  struct reply load = {.seconds = 1}, inside, one, plain = {.seconds = 1};
  char uri[2 * BENCH_PATH_MAX];
  cluster_start(&cluster, options, VARIANT_THREE);
  cluster_prepare(&cluster, TABLE_ROWID, options->rows);
  follower = cluster.leader == &cluster.children[0] ? &cluster.children[1] : &cluster.children[0];
  snprintf(uri, sizeof uri, "file:%s?mode=ro", cluster.paths[follower - cluster.children]);
  for (size_t i = 0; i < OUTSIDE_PROCESSES; i++) child_start(&outside[i], options, true, uri, 0);
  struct request read = load_request(options, 0, options->readers);
  struct request read_outside = load_request(options, 0, 1);
  struct request write = load_request(options, writers, 0);
  read.reads_per_s = read_outside.reads_per_s = reads_per_s;
  if (writers) child_send(cluster.leader, &write);
  child_send(follower, &read);
  for (size_t i = 0; i < OUTSIDE_PROCESSES; i++) child_send(&outside[i], &read_outside);
  if (writers) child_receive(cluster.leader, &load);
  child_receive(follower, &inside);
  for (size_t i = 0; i < OUTSIDE_PROCESSES; i++) {
    child_receive(&outside[i], &one);
    add_reads(&plain, &one);
  }
  for (size_t i = 0; i < OUTSIDE_PROCESSES; i++) child_stop(&outside[i]);
  if (writers) cluster_check(&load, options->rows);
  cluster_stop(&cluster, options);
  double commits = (double)load.writes.done / load.seconds;
  print(reads_per_s ? "in a follower, paced" : "in a follower", VARIANT_THREE, writers, commits, options->readers,
        &inside);
  print(reads_per_s ? "plain SQLite there, paced" : "plain SQLite there", VARIANT_THREE, writers, commits,
        OUTSIDE_PROCESSES, &plain);
  if (load.writes.errors)
    fprintf(stderr, "bench: %llu writes failed, the first with %d: %s\n", (unsigned long long)load.writes.errors,
            load.writes.first_error, load.writes.first_text);
}

void bench_readers(const struct options *options) {
  char title[BENCH_TEXT_MAX];
  uint32_t writers = options->writers[options->n_writers - 1];
  snprintf(title, sizeof title, "Reads of a random row by id, of %u rows, each a statement of its own; runs of %.1f s",
           options->rows, (double)options->run_ms / 1000);
  report_begin("readers", columns, N_COLUMNS, title);
  for (size_t v = 0; v < options->n_variants; v++) {
    on_leader(options, options->variants[v], 0, 0);
    on_leader(options, options->variants[v], writers, 0);
    on_leader(options, options->variants[v], writers, PACED_READS_PER_S);
  }
  bool has_three = false;
  for (size_t v = 0; v < options->n_variants; v++) has_three |= options->variants[v] == VARIANT_THREE;
  if (has_three) {
    on_follower(options, 0, PACED_READS_PER_S);
    on_follower(options, writers, PACED_READS_PER_S);
    on_follower(options, writers, 0);
  }
  report_end();
}
