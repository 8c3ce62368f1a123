/*
** Updates for a long time: what stays bounded must not grow. Disk, the WAL, memory, and how long a writer may be stalled.
*/
#include <poll.h>
#include <stdio.h>

#include "bench.h"

#define THRESHOLD_MIB 64 /* what snapshot_threshold is by itself */
#define PATIENCE_MS 60000

enum {
  NODE,
  COMMITS,
  RATE,
  MEDIAN,
  HIGHEST,
  MAX,
  READS,
  ERRORS,
  DISK,
  LIMIT,
  WAL,
  FRAMES,
  EARLY,
  END,
  PEAK,
  ANON,
  SHM,
  N_COLUMNS
};
static const struct column columns[N_COLUMNS] = {
    [NODE] = {"node", -8, 0},
    [COMMITS] = {"commits", 9, 0},
    [RATE] = {"commits/s", 9, 0},
    [MEDIAN] = {"median us", 9, 0},
    [HIGHEST] = {"99.9% us", 8, 0},
    [MAX] = {"longest us", 10, 0},
    [READS] = {"reads/s", 8, 0},
    [ERRORS] = {"errors", 6, 0},
    [DISK] = {"disk MiB", 8, 0},
    [LIMIT] = {"limit", 6, 0},
    [WAL] = {"wal MiB", 7, 1},
    [FRAMES] = {"wal frames", 10, 0},
    [EARLY] = {"rss MiB at 10%", 14, 1},
    [END] = {"at the end", 10, 1},
    [PEAK] = {"peak", 6, 1},
    [ANON] = {"anon", 6, 1},
    [SHM] = {"shm", 5, 1},
};

static void print(const struct cluster *cluster, size_t i, const struct reply *load, double early,
                  const struct watched *seen) {
  char name[24];
  bool is_leader = &cluster->children[i] == cluster->leader;
  double database = (double)file_bytes(cluster->paths[i]) / (1 << 20);
  double larger = database > THRESHOLD_MIB ? database : THRESHOLD_MIB;
  snprintf(name, sizeof name, "%s", is_leader ? "leader" : "follower");
  struct cell cells[N_COLUMNS] = {
      [NODE] = TEXT(name),
      [COMMITS] = is_leader ? NUMBER(load->acknowledged) : TEXT("-"),
      [RATE] = is_leader ? NUMBER((double)load->writes.done / load->seconds) : TEXT("-"),
      [MEDIAN] = is_leader ? NUMBER(load->writes.median_us) : TEXT("-"),
      [HIGHEST] = is_leader ? NUMBER(load->writes.highest_us) : TEXT("-"),
      [MAX] = is_leader ? NUMBER(load->writes.max_us) : TEXT("-"),
      [READS] = is_leader ? NUMBER((double)load->reads.done / load->seconds) : TEXT("-"),
      [ERRORS] = is_leader ? NUMBER(load->writes.errors + load->reads.errors) : TEXT("-"),
      [DISK] = NUMBER(seen->disk_max_mib),
      [LIMIT] = NUMBER(3 * (database + larger)),
      [WAL] = NUMBER(seen->wal_max_mib),
      [FRAMES] = is_leader ? NUMBER(load->wal_frames_max) : TEXT("-"),
      [EARLY] = NUMBER(early),
      [END] = NUMBER(seen->rss_mib),
      [PEAK] = NUMBER(seen->rss_max_mib),
      [ANON] = NUMBER(seen->anonymous_max_mib),
      [SHM] = NUMBER(seen->shm_max_mib),
  };
  report_row(cells);
}

static void measure(const struct options *options, enum variant variant, enum table_kind table, uint32_t writers) {
  struct cluster cluster;
  struct reply reply;
  struct watch *watches[BENCH_NODES_MAX];
  double early[BENCH_NODES_MAX];
  struct request request = {
      .operation = OP_LOAD,
      .table = table,
      .rows = options->rows,
      .writers = writers,
      .readers = table == TABLE_UPDATE || table == TABLE_ROWID ? options->readers : 0,
      .reads_per_s = 1000,
      .warm_up_ms = options->warm_up_ms,
      .run_ms = options->run_ms,
      .busy_timeout_ms = options->busy_timeout_ms,
  };
  cluster_start(&cluster, options, variant);
  cluster_prepare(&cluster, table, options->rows);
  size_t n = cluster.n_children;
  for (size_t i = 0; i < n; i++) watches[i] = watch_start(&cluster.children[i], cluster.paths[i]);
  child_send(cluster.leader, &request);
  poll(NULL, 0, (int)(options->run_ms / 10));
  for (size_t i = 0; i < n; i++) early[i] = watch_now(watches[i]).rss_mib;
  child_receive(cluster.leader, &reply);
  for (size_t i = 0; i < n; i++) {
    struct watched seen = watch_stop(watches[i]);
    print(&cluster, i, &reply, early[i], &seen);
  }
  if (reply.writes.errors)
    fprintf(stderr, "bench: the first error of a writer was %d: %s\n", reply.writes.first_error,
            reply.writes.first_text);
  if (reply.reads.errors)
    fprintf(stderr, "bench: the first error of a reader was %d: %s\n", reply.reads.first_error, reply.reads.first_text);
  if (table == TABLE_UPDATE && reply.rows_after != options->rows) die("rows are missing");
  cluster_stop(&cluster, options);
}

void bench_endless(const struct options *options) {
  char title[BENCH_TEXT_MAX];
  uint32_t writers = options->writers[options->n_writers - 1];
  snprintf(title, sizeof title,
           "%u writers and %u readers (paced) for %.0f s, on %u rows; limit: 3 x (database + threshold)", writers,
           options->readers, (double)options->run_ms / 1000, options->rows);
  child_patience_ms(options->run_ms + PATIENCE_MS);
  report_begin("endless", columns, N_COLUMNS, title);
  for (size_t v = 0; v < options->n_variants; v++) measure(options, options->variants[v], options->tables[0], writers);
  report_end();
}
