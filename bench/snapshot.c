/*
** Snapshots of a large database: what they cost the writers, how fast they are written, how much memory that takes; and
** how long an empty follower needs to catch up by one, compared with a copy of the database file.
**
** No node takes one by itself here. Every snapshot is unpacked with lz4, opened by plain SQLite and held against the
** database: each commit of the load is one entry of the log and one row of `t`, so its index says which rows it must have.
*/
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

#define PARAMETERS "&snapshot_threshold=1T&log_tail=0"
#define COMPACTED_MS_MAX 30000
#define CATCH_UP_MS_MAX 600000
#define POLL_MS 20

enum {
  VARIANT,
  WHAT,
  MIB,
  SECONDS,
  SPEED,
  CPU,
  BEFORE,
  DURING,
  AFTER,
  RATIO,
  MAX_BEFORE,
  MAX_DURING,
  RSS,
  ANON,
  SHM,
  N_TAKING
};
static const struct column taking_columns[N_TAKING] = {
    [VARIANT] = {"variant", -7, 0},
    [WHAT] = {"while", -9, 0},
    [MIB] = {"MiB", 6, 0},
    [SECONDS] = {"seconds", 7, 2},
    [SPEED] = {"MB/s", 6, 0},
    [CPU] = {"cpu s", 5, 2},
    [BEFORE] = {"commits/s before", 16, 0},
    [DURING] = {"during", 7, 0},
    [AFTER] = {"after", 7, 0},
    [RATIO] = {"during/before", 13, 2},
    [MAX_BEFORE] = {"max us before", 13, 0},
    [MAX_DURING] = {"during us", 9, 0},
    [RSS] = {"rss MiB", 7, 1},
    [ANON] = {"anon", 6, 1},
    [SHM] = {"shm", 5, 1},
};

enum { NODES, CUTS, SIZE, SENT, TIME, COPY, FACTOR, LEADER_RSS, LEADER_ANON, FOLLOWER_RSS, FOLLOWER_ANON, N_CATCHING };
static const struct column catching_columns[N_CATCHING] = {
    [NODES] = {"variant", -7, 0},     [CUTS] = {"cuts", 4, 0},
    [SIZE] = {"MiB", 6, 0},           [SENT] = {"snapshot MiB", 12, 0},
    [TIME] = {"seconds", 7, 2},       [COPY] = {"copy and sync", 13, 2},
    [FACTOR] = {"x copy", 6, 2},      [LEADER_RSS] = {"leader rss MiB", 14, 1},
    [LEADER_ANON] = {"anon", 6, 1},   [FOLLOWER_RSS] = {"follower rss MiB", 16, 1},
    [FOLLOWER_ANON] = {"anon", 6, 1},
};

static const char *path_of_leader(const struct cluster *cluster) {
  return cluster->paths[cluster->leader - cluster->children];
}

static void unpacked_path(const struct options *options, char path[BENCH_PATH_MAX]) {
  snprintf(path, BENCH_PATH_MAX, "%s/unpacked.db", options->folder);
}

static void check(const struct options *options, const struct cluster *cluster, uint64_t rows) {
  char snapshot[BENCH_PATH_MAX], unpacked[BENCH_PATH_MAX];
  unpacked_path(options, unpacked);
  find_snapshot(path_of_leader(cluster), snapshot);
  check_snapshot(snapshot, unpacked, path_of_leader(cluster), rows);
}

static void print_taking(const struct cluster *cluster, const char *what, double seconds, const struct reply *reply,
                         const struct watched *seen) {
  double bytes = (double)file_bytes(path_of_leader(cluster)), rates[N_STAGES] = {0};
  const struct tally *writes = reply->stage_writes;
  for (size_t i = 0; i < N_STAGES; i++)
    if (reply->stage_seconds[i] > 0) rates[i] = (double)writes[i].done / reply->stage_seconds[i];
  bool is_loaded = rates[STAGE_BEFORE] > 0;
  struct cell cells[N_TAKING] = {
      [VARIANT] = TEXT(variant_names[cluster->variant]),
      [WHAT] = TEXT(what),
      [MIB] = NUMBER(bytes / (1 << 20)),
      [SECONDS] = NUMBER(seconds),
      [SPEED] = NUMBER(bytes / 1e6 / seconds),
      [CPU] = is_loaded ? TEXT("-") : NUMBER(reply->cpu_us / 1e6),
      [BEFORE] = is_loaded ? NUMBER(rates[STAGE_BEFORE]) : TEXT("-"),
      [DURING] = is_loaded ? NUMBER(rates[STAGE_DURING]) : TEXT("-"),
      [AFTER] = is_loaded ? NUMBER(rates[STAGE_AFTER]) : TEXT("-"),
      [RATIO] = is_loaded ? NUMBER(rates[STAGE_DURING] / rates[STAGE_BEFORE]) : TEXT("-"),
      [MAX_BEFORE] = is_loaded ? NUMBER(writes[STAGE_BEFORE].max_us) : TEXT("-"),
      [MAX_DURING] = is_loaded ? NUMBER(writes[STAGE_DURING].max_us) : TEXT("-"),
      [RSS] = NUMBER(seen->rss_max_mib),
      [ANON] = NUMBER(seen->anonymous_max_mib),
      [SHM] = NUMBER(seen->shm_max_mib),
  };
  report_row(cells);
  if (reply->writes.errors)
    fprintf(stderr, "bench: %llu writes failed, the first with %d: %s\n", (unsigned long long)reply->writes.errors,
            reply->writes.first_error, reply->writes.first_text);
}

/* So that there is something new to take a snapshot of. One row. */
static uint64_t write_one(const struct cluster *cluster) {
  struct reply reply;
  child_ask(cluster->leader, &(struct request){.operation = OP_LOAD, .table = TABLE_ROWID, .writers = 1, .commits = 1},
            &reply);
  return reply.rows_after;
}

static void take_quietly(const struct options *options, const struct cluster *cluster) {
  struct reply reply;
  uint64_t rows = write_one(cluster);
  struct watch *watch = watch_start(cluster->leader, path_of_leader(cluster));
  child_ask(cluster->leader, &(struct request){.operation = OP_SNAPSHOT}, &reply);
  struct watched seen = watch_stop(watch);
  print_taking(cluster, "nothing", reply.seconds, &reply, &seen);
  check(options, cluster, rows);
}

static void take_under_load(const struct options *options, const struct cluster *cluster, uint32_t writers) {
  struct reply before, reply;
  uint64_t rows = write_one(cluster);
  child_ask(cluster->leader, &(struct request){.operation = OP_STATUS}, &before);
  struct request request = {
      .operation = OP_LOAD,
      .table = TABLE_ROWID,
      .writers = writers,
      .warm_up_ms = options->warm_up_ms,
      .run_ms = options->run_ms,
      .busy_timeout_ms = options->busy_timeout_ms,
      .has_snapshot = true,
  };
  struct watch *watch = watch_start(cluster->leader, path_of_leader(cluster));
  child_ask(cluster->leader, &request, &reply);
  struct watched seen = watch_stop(watch);
  if (reply.rows_after < rows + reply.acknowledged) die("rows are missing after the load");
  print_taking(cluster, "writers", reply.stage_seconds[STAGE_DURING], &reply, &seen);
  check(options, cluster, rows + reply.snapshot_index - before.commit_index);
}

static void fill(const struct options *options, struct cluster *cluster) {
  struct reply reply;
  cluster_prepare(cluster, TABLE_ROWID, options->rows);
  child_ask(cluster->leader, &(struct request){.operation = OP_FILL, .bytes = options->bytes}, &reply);
  for (size_t i = 0; i < cluster->n_children; i++) cluster_wait_applied(cluster, i, CATCH_UP_MS_MAX);
}

static void bench_taking(const struct options *options) {
  char title[BENCH_TEXT_MAX];
  snprintf(title, sizeof title,
           "Snapshots of a database of %llu MiB, while nothing else is done and while writers insert rows of %d bytes",
           (unsigned long long)(options->bytes >> 20), BENCH_ROW_BYTES);
  report_begin("snapshot", taking_columns, N_TAKING, title);
  for (size_t v = 0; v < options->n_variants; v++) {
    struct cluster cluster;
    cluster_start(&cluster, options, options->variants[v]);
    fill(options, &cluster);
    take_quietly(options, &cluster); /* the first, which also compacts the log of the filling */
    for (uint32_t i = 0; i < options->runs; i++) take_quietly(options, &cluster);
    for (size_t w = 0; w < options->n_writers; w++)
      for (uint32_t i = 0; i < options->runs; i++) take_under_load(options, &cluster, options->writers[w]);
    cluster_stop(&cluster, options);
  }
  report_end();
}

/* ---- An empty follower ---- */

/* So that the follower cannot catch up by the log. */
static void wait_compacted(const struct cluster *cluster) {
  uint64_t deadline = now_ns() + COMPACTED_MS_MAX * BENCH_MS;
  struct reply reply;
  child_ask(cluster->leader, &(struct request){.operation = OP_SNAPSHOT}, &reply);
  uint64_t index = reply.snapshot_index;
  for (;;) {
    child_ask(cluster->leader, &(struct request){.operation = OP_STATUS}, &reply);
    if (reply.log_first > index / 2) return;
    if (now_ns() > deadline) die("the log still begins at entry %llu", (unsigned long long)reply.log_first);
    poll(NULL, 0, POLL_MS);
  }
}

static void catch_up(const struct options *given, uint32_t cuts) {
  struct options options = *given;
  struct cluster cluster;
  char snapshot[BENCH_PATH_MAX], copy[BENCH_PATH_MAX];
  options.is_relayed = true;
  cluster_start(&cluster, &options, VARIANT_THREE);
  size_t last = cluster.n_children - 1;
  child_stop(&cluster.children[last]);
  cluster.n_children = last;
  cluster_wait_ready(&cluster);
  fill(&options, &cluster);
  wait_compacted(&cluster);
  unpacked_path(&options, copy);
  find_snapshot(path_of_leader(&cluster), snapshot);
  double copied = copy_seconds(path_of_leader(&cluster), copy);
  if (cuts) relay_cut(cluster.relay, file_bytes(snapshot) / (cuts + 1), cuts);
  struct watch *leader = watch_start(cluster.leader, path_of_leader(&cluster));
  uint64_t begin = now_ns();
  cluster.n_children = last + 1;
  cluster_restart(&cluster, &options, last);
  struct watch *follower = watch_start(&cluster.children[last], cluster.paths[last]);
  cluster_wait_applied(&cluster, last, CATCH_UP_MS_MAX);
  double seconds = (double)(now_ns() - begin) / 1e9;
  struct watched of_follower = watch_stop(follower), of_leader = watch_stop(leader);
  if (relay_cuts(cluster.relay) != cuts) die("only %u connections were cut", relay_cuts(cluster.relay));
  double copied_after = copy_seconds(path_of_leader(&cluster), copy);
  check_same(cluster.paths[last], path_of_leader(&cluster));
  copied = (copied + copied_after) / 2;
  struct cell cells[N_CATCHING] = {
      [NODES] = TEXT(variant_names[cluster.variant]),
      [CUTS] = NUMBER(cuts),
      [SIZE] = NUMBER((double)file_bytes(path_of_leader(&cluster)) / (1 << 20)),
      [SENT] = NUMBER((double)file_bytes(snapshot) / (1 << 20)),
      [TIME] = NUMBER(seconds),
      [COPY] = NUMBER(copied),
      [FACTOR] = NUMBER(seconds / copied),
      [LEADER_RSS] = NUMBER(of_leader.rss_max_mib),
      [LEADER_ANON] = NUMBER(of_leader.anonymous_max_mib),
      [FOLLOWER_RSS] = NUMBER(of_follower.rss_max_mib),
      [FOLLOWER_ANON] = NUMBER(of_follower.anonymous_max_mib),
  };
  report_row(cells);
  cluster_stop(&cluster, &options);
}

void bench_snapshot(const struct options *given) {
  char parameters[BENCH_PATH_MAX];
  struct options options = *given;
  snprintf(parameters, sizeof parameters, PARAMETERS "%s", given->parameters);
  options.parameters = parameters;
  child_patience_ms(CATCH_UP_MS_MAX);
  bool has_three = false;
  for (size_t v = 0; v < options.n_variants; v++) has_three |= options.variants[v] == VARIANT_THREE;
  bench_taking(&options);
  if (!has_three) return;
  report_begin("catch-up", catching_columns, N_CATCHING,
               "An empty follower catches up by a snapshot: from its exec until it shows the leader's state");
  catch_up(&options, 0);
  if (options.cuts) catch_up(&options, options.cuts);
  report_end();
}
