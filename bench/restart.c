/*
** Restart after SIGKILL with a log to redo: a plain reader with an open transaction keeps the node from any checkpoint while
** writers make the log long. Measured from just before the fork of the new process; `idle`: a plain SQLite process has the
** file open all the time, as a shell that somebody forgot.
*/
#include <stdio.h>

#include "bench.h"

#define PARAMETERS "&snapshot_threshold=1T"
#define LOAD_MS_MAX 300000

enum { RUN, BESIDE, DATABASE, LOG, WAL, REDONE, READ, WRITE, CPU, RSS, ANON, N_COLUMNS };
static const struct column columns[N_COLUMNS] = {
    [RUN] = {"run", 3, 0},
    [BESIDE] = {"beside", -13, 0},
    [DATABASE] = {"database MiB", 12, 0},
    [LOG] = {"log MiB", 7, 0},
    [WAL] = {"wal MiB", 7, 0},
    [REDONE] = {"entries", 8, 0},
    [READ] = {"first read ms", 13, 0},
    [WRITE] = {"first write ms", 14, 0},
    [CPU] = {"cpu ms", 6, 0},
    [RSS] = {"rss MiB", 7, 1},
    [ANON] = {"anon", 6, 1},
};

static void fill_log(const struct options *options, const struct cluster *cluster, struct reply *status) {
  struct reply reply;
  struct request request = {
      .operation = OP_LOAD,
      .table = TABLE_UPDATE,
      .rows = options->rows,
      .writers = options->writers[0],
      .run_ms = LOAD_MS_MAX,
      .busy_timeout_ms = options->busy_timeout_ms,
  };
  child_ask(cluster->leader, &(struct request){.operation = OP_STATUS}, status);
  request.log_bytes = status->log_bytes + options->bytes;
  uint64_t before = status->commit_index;
  child_ask(cluster->leader, &request, &reply);
  if (reply.writes.errors) die("a write failed: %s", reply.writes.first_text);
  child_ask(cluster->leader, &(struct request){.operation = OP_STATUS}, status);
  status->applied_index -= before;
}

static void measure(const struct options *options, uint32_t run, bool has_shell) {
  struct cluster cluster;
  struct child reader, shell;
  struct reply status, reply;
  char uri[2 * BENCH_PATH_MAX];
  cluster_start(&cluster, options, VARIANT_ONE);
  cluster_prepare(&cluster, TABLE_UPDATE, options->rows);
  snprintf(uri, sizeof uri, "file:%s?mode=ro", cluster.paths[0]);
  if (has_shell) child_start(&shell, options, true, uri, 0);
  if (has_shell)
    child_ask(&shell, &(struct request){.operation = OP_LOAD, .rows = 1, .readers = 1, .run_ms = 1}, &reply);
  child_start(&reader, options, true, uri, 0);
  child_ask(&reader, &(struct request){.operation = OP_HOLD}, &reply);
  fill_log(options, &cluster, &status);
  child_kill(cluster.leader);
  child_kill(&reader);
  double database = (double)file_bytes(cluster.paths[0]) / (1 << 20);
  snprintf(uri, sizeof uri, "%s-wal", cluster.paths[0]);
  double wal = (double)file_bytes(uri) / (1 << 20);
  uint64_t begin = now_ns();
  cluster_restart(&cluster, options, 0);
  struct watch *watch = watch_start(cluster.leader, cluster.paths[0]);
  child_ask(cluster.leader, &(struct request){.operation = OP_FIRST}, &reply);
  struct watched seen = watch_stop(watch);
  struct cell cells[N_COLUMNS] = {
      [RUN] = NUMBER(run),
      [BESIDE] = TEXT(has_shell ? "an idle shell" : "nobody"),
      [DATABASE] = NUMBER(database),
      [LOG] = NUMBER((double)options->bytes / (1 << 20)),
      [WAL] = NUMBER(wal),
      [REDONE] = NUMBER(status.applied_index),
      [READ] = NUMBER((double)(reply.read_at - begin) / BENCH_MS),
      [WRITE] = NUMBER((double)(reply.write_at - begin) / BENCH_MS),
      [CPU] = NUMBER(reply.cpu_total_us / 1000),
      [RSS] = NUMBER(seen.rss_max_mib),
      [ANON] = NUMBER(seen.anonymous_max_mib),
  };
  report_row(cells);
  if (has_shell) child_stop(&shell);
  cluster_stop(&cluster, options);
}

void bench_restart(const struct options *given) {
  char parameters[BENCH_PATH_MAX];
  struct options options = *given;
  snprintf(parameters, sizeof parameters, PARAMETERS "%s", given->parameters);
  options.parameters = parameters;
  child_patience_ms(LOAD_MS_MAX);
  report_begin("restart", columns, N_COLUMNS,
               "SIGKILL, then from exec until the first read and the first write succeed");
  for (uint32_t run = 1; run <= options.runs; run++) measure(&options, run, false);
  for (uint32_t run = 1; run <= options.runs; run++) measure(&options, run, true);
  report_end();
}
