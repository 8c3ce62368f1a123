/*
** Bytes in the log per insert: what balsa_status says of the log, before and after a number of commits. Every node's log
** holds the same entries, so one node is enough.
*/
#include <stdio.h>

#include "bench.h"

enum { TABLE, WRITERS, INSERTS, BYTES, N_COLUMNS };
static const struct column columns[N_COLUMNS] = {
    [TABLE] = {"table", -6, 0},
    [WRITERS] = {"writers", 7, 0},
    [INSERTS] = {"inserts", 7, 0},
    [BYTES] = {"log bytes/insert", 16, 0},
};

static void measure(const struct options *options, enum table_kind table, uint32_t writers) {
  struct cluster cluster;
  struct request status = {.operation = OP_STATUS};
  struct request load = {.operation = OP_LOAD,
                         .table = table,
                         .writers = writers,
                         .commits = options->commits,
                         .busy_timeout_ms = options->busy_timeout_ms};
  struct reply before, reply, after;
  cluster_start(&cluster, options, VARIANT_ONE);
  cluster_prepare(&cluster, table, options->rows);
  child_ask(cluster.leader, &status, &before);
  child_ask(cluster.leader, &load, &reply);
  child_ask(cluster.leader, &status, &after);
  cluster_check(&reply, options->rows);
  cluster_stop(&cluster, options);
  if (reply.writes.errors) die("%s", reply.writes.first_text);
  if (after.log_bytes < before.log_bytes) die("the log was compacted meanwhile: use fewer --commits");
  struct cell cells[N_COLUMNS] = {
      [TABLE] = TEXT(table_names[table]),
      [WRITERS] = NUMBER(writers),
      [INSERTS] = NUMBER(reply.acknowledged),
      [BYTES] = NUMBER((double)(after.log_bytes - before.log_bytes) / (double)reply.acknowledged),
  };
  report_row(cells);
}

void bench_log_bytes(const struct options *options) {
  char title[BENCH_TEXT_MAX];
  snprintf(title, sizeof title, "Bytes in the log per insert of a %d-byte row that does not compress, into %u rows",
           BENCH_ROW_BYTES, options->rows);
  report_begin("log", columns, N_COLUMNS, title);
  for (size_t t = 0; t < options->n_tables; t++)
    for (size_t w = 0; w < options->n_writers; w++) measure(options, options->tables[t], options->writers[w]);
  report_end();
}
