/*
** A number of commits and nothing else, to be looked at from outside: strace, perf (see README.md).
*/
#include <stdio.h>

#include "bench.h"

enum { VARIANT, TABLE, WRITERS, COMMITS, SECONDS, RATE, ERRORS, SWITCHES, CPU, CPU_ALL, N_COLUMNS };
static const struct column columns[N_COLUMNS] = {
    [VARIANT] = {"variant", -7, 0}, [TABLE] = {"table", -6, 0},      [WRITERS] = {"writers", 7, 0},
    [COMMITS] = {"commits", 7, 0},  [SECONDS] = {"seconds", 7, 3},   [RATE] = {"commits/s", 9, 0},
    [ERRORS] = {"errors", 6, 0},    [SWITCHES] = {"switches", 8, 1}, [CPU] = {"cpu us", 7, 0},
    [CPU_ALL] = {"cpu all", 7, 0},
};

static void measure(const struct options *options, enum variant variant, enum table_kind table, uint32_t writers) {
  struct cluster cluster;
  struct reply reply;
  struct request load = {.operation = OP_LOAD,
                         .table = table,
                         .writers = writers,
                         .commits = options->commits,
                         .busy_timeout_ms = options->busy_timeout_ms,
                         .queued = variant == VARIANT_QUEUED};
  cluster_start(&cluster, options, variant);
  cluster_prepare(&cluster, table, options->rows);
  double cpu_before = cluster_cpu_us(&cluster);
  child_ask(cluster.leader, &load, &reply);
  double cpu_all = cluster_cpu_us(&cluster) - cpu_before;
  cluster_check(&reply, options->rows);
  cluster_stop(&cluster, options);
  double done = reply.writes.done ? (double)reply.writes.done : 1;
  struct cell cells[N_COLUMNS] = {
      [VARIANT] = TEXT(variant_names[variant]),
      [TABLE] = TEXT(table_names[table]),
      [WRITERS] = NUMBER(writers),
      [COMMITS] = NUMBER(reply.acknowledged),
      [SECONDS] = NUMBER(reply.seconds),
      [RATE] = NUMBER((double)reply.writes.done / reply.seconds),
      [ERRORS] = NUMBER(reply.writes.errors),
      [SWITCHES] = NUMBER((double)reply.switches / done),
      [CPU] = NUMBER(reply.cpu_us / done),
      [CPU_ALL] = NUMBER(cpu_all / (double)(reply.acknowledged ? reply.acknowledged : 1)),
  };
  report_row(cells);
  if (reply.writes.errors)
    fprintf(stderr, "bench: the first error was %d: %s\n", reply.writes.first_error, reply.writes.first_text);
}

void bench_run(const struct options *options) {
  report_begin("run", columns, N_COLUMNS,
               "A number of commits; cpu and context switches are per commit, of the leader");
  for (size_t v = 0; v < options->n_variants; v++)
    for (size_t t = 0; t < options->n_tables; t++)
      for (size_t w = 0; w < options->n_writers; w++)
        measure(options, options->variants[v], options->tables[t], options->writers[w]);
  report_end();
}
