/*
** Commits per second: each setting several times, the variants in turn, so that what else the machine does falls on all
** alike. Every run has a database (or cluster) of its own.
*/
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"

enum { TABLE, WRITERS, VARIANT, RATE, RATIO, MEDIAN, HIGH, MAX, ERRORS, CPU, CPU_ALL, SWITCHES, LOAD, N_COLUMNS };
static const struct column columns[N_COLUMNS] = {
    [TABLE] = {"table", -6, 0},   [WRITERS] = {"writers", 7, 0}, [VARIANT] = {"variant", -7, 0},
    [RATE] = {"commits/s", 9, 0}, [RATIO] = {"x plain", 7, 2},   [MEDIAN] = {"median us", 9, 0},
    [HIGH] = {"99% us", 8, 0},    [MAX] = {"max us", 9, 0},      [ERRORS] = {"errors", 6, 0},
    [CPU] = {"cpu us", 7, 0},     [CPU_ALL] = {"cpu all", 7, 0}, [SWITCHES] = {"switches", 8, 1},
    [LOAD] = {"load", 5, 1},
};

/* What the runs of one setting and variant gave. */
struct series {
  double rate[BENCH_RUNS_MAX], median[BENCH_RUNS_MAX], high[BENCH_RUNS_MAX], cpu[BENCH_RUNS_MAX],
      cpu_all[BENCH_RUNS_MAX], switches[BENCH_RUNS_MAX], load[BENCH_RUNS_MAX];
  double max;
  uint64_t errors;
  struct tally first_failed;
  size_t n;
};

static void run_once(const struct options *options, enum table_kind table, uint32_t writers, enum variant variant,
                     struct series *series) {
  struct cluster cluster;
  struct reply reply;
  size_t i = series->n++;
  struct request request = {
      .operation = OP_LOAD,
      .table = table,
      .writers = writers,
      .warm_up_ms = options->warm_up_ms,
      .run_ms = options->run_ms,
      .busy_timeout_ms = options->busy_timeout_ms,
      .queued = variant == VARIANT_QUEUED,
  };
  cluster_start(&cluster, options, variant);
  cluster_prepare(&cluster, table, options->rows);
  if (getloadavg(&series->load[i], 1) != 1) series->load[i] = 0;
  double cpu_before = cluster_cpu_us(&cluster);
  child_ask(cluster.leader, &request, &reply);
  double cpu_all = cluster_cpu_us(&cluster) - cpu_before;
  cluster_check(&reply, options->rows);
  cluster_stop(&cluster, options);
  double done = reply.writes.done ? (double)reply.writes.done : 1;
  series->rate[i] = (double)reply.writes.done / reply.seconds;
  series->median[i] = reply.writes.median_us;
  series->high[i] = reply.writes.high_us;
  series->cpu[i] = reply.cpu_us / done;
  series->cpu_all[i] = cpu_all / (double)(reply.acknowledged ? reply.acknowledged : 1);
  series->switches[i] = (double)reply.switches / done;
  if (reply.writes.max_us > series->max) series->max = reply.writes.max_us;
  if (series->errors == 0) series->first_failed = reply.writes;
  series->errors += reply.writes.errors;
}

static double print(enum table_kind table, uint32_t writers, enum variant variant, struct series *series,
                    double plain) {
  double rate = median(series->rate, series->n);
  if (variant == VARIANT_PLAIN) plain = rate;
  struct cell cells[N_COLUMNS] = {
      [TABLE] = TEXT(table_names[table]),
      [WRITERS] = NUMBER(writers),
      [VARIANT] = TEXT(variant_names[variant]),
      [RATE] = NUMBER(rate),
      [RATIO] = plain > 0 ? NUMBER(rate / plain) : TEXT("-"),
      [MEDIAN] = NUMBER(median(series->median, series->n)),
      [HIGH] = NUMBER(median(series->high, series->n)),
      [MAX] = NUMBER(series->max),
      [ERRORS] = NUMBER(series->errors),
      [CPU] = NUMBER(median(series->cpu, series->n)),
      [CPU_ALL] = NUMBER(median(series->cpu_all, series->n)),
      [SWITCHES] = NUMBER(median(series->switches, series->n)),
      [LOAD] = NUMBER(median(series->load, series->n)),
  };
  report_row(cells);
  if (series->errors)
    fprintf(stderr, "bench: the first error was %d: %s\n", series->first_failed.first_error,
            series->first_failed.first_text);
  return plain;
}

void bench_commits(const struct options *options) {
  char title[BENCH_TEXT_MAX];
  struct series *series = calloc(options->n_variants, sizeof *series);
  if (!series) die("no memory");
  snprintf(title, sizeof title,
           "Commits of one %d-byte row each, into %u rows: the median of %u runs of %.1f s, in turn", BENCH_ROW_BYTES,
           options->rows, options->runs, (double)options->run_ms / 1000);
  report_begin("commits", columns, N_COLUMNS, title);
  for (size_t t = 0; t < options->n_tables; t++) {
    for (size_t w = 0; w < options->n_writers; w++) {
      double plain = 0;
      for (size_t v = 0; v < options->n_variants; v++) series[v] = (struct series){.n = 0};
      for (uint32_t i = 0; i < options->runs; i++)
        for (size_t v = 0; v < options->n_variants; v++)
          run_once(options, options->tables[t], options->writers[w], options->variants[v], &series[v]);
      for (size_t v = 0; v < options->n_variants; v++)
        plain = print(options->tables[t], options->writers[w], options->variants[v], &series[v], plain);
    }
  }
  report_end();
  free(series);
}
