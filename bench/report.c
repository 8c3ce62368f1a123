/*
** Tables: as aligned text, a row as soon as it is known; or all rows as one JSON array at the end, one object each.
*/
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"

static struct {
  bool is_json;
  const char *bench;
  const struct column *columns;
  size_t n_columns;
  sqlite3 *db; /* JSON: rows(object) */
} report;

static void must(bool is_true) {
  if (!is_true) die("JSON: %s", report.db ? sqlite3_errmsg(report.db) : "no memory");
}

void report_open(bool is_json) {
  report.is_json = is_json;
  if (!is_json) return;
  must(sqlite3_open(":memory:", &report.db) == SQLITE_OK);
  must(sqlite3_exec(report.db, "CREATE TABLE rows(object TEXT)", NULL, NULL, NULL) == SQLITE_OK);
}

void report_begin(const char *bench, const struct column *columns, size_t n_columns, const char *title) {
  report.bench = bench;
  report.columns = columns;
  report.n_columns = n_columns;
  if (report.is_json) return;
  printf("%s\n", title);
  for (size_t i = 0; i < n_columns; i++) printf("%s%*s", i ? "  " : "", columns[i].width, columns[i].name);
  printf("\n");
  fflush(stdout);
}

static void json_row(const struct cell *cells) {
  sqlite3_stmt *insert = NULL, *extend = NULL;
  must(sqlite3_prepare_v2(report.db, "INSERT INTO rows VALUES (json_object('bench', ?))", -1, &insert, NULL) ==
       SQLITE_OK);
  must(sqlite3_prepare_v2(report.db,
                          "UPDATE rows SET object = json_set(object, '$.\"' || ? || '\"', ?) "
                          "WHERE rowid = (SELECT max(rowid) FROM rows)",
                          -1, &extend, NULL) == SQLITE_OK);
  sqlite3_bind_text(insert, 1, report.bench, -1, SQLITE_STATIC);
  must(sqlite3_step(insert) == SQLITE_DONE);
  for (size_t i = 0; i < report.n_columns; i++) {
    sqlite3_bind_text(extend, 1, report.columns[i].name, -1, SQLITE_STATIC);
    if (cells[i].text)
      sqlite3_bind_text(extend, 2, cells[i].text, -1, SQLITE_STATIC);
    else if (report.columns[i].decimals == 0)
      sqlite3_bind_int64(extend, 2, (sqlite3_int64)(cells[i].number + 0.5));
    else
      sqlite3_bind_double(extend, 2, cells[i].number);
    must(sqlite3_step(extend) == SQLITE_DONE);
    sqlite3_reset(extend);
  }
  sqlite3_finalize(insert);
  sqlite3_finalize(extend);
}

void report_row(const struct cell *cells) {
  if (report.is_json) {
    json_row(cells);
    return;
  }
  for (size_t i = 0; i < report.n_columns; i++) {
    const struct column *column = &report.columns[i];
    printf("%s", i ? "  " : "");
    if (cells[i].text)
      printf("%*s", column->width, cells[i].text);
    else
      printf("%*.*f", column->width, column->decimals, cells[i].number);
  }
  printf("\n");
  fflush(stdout);
}

void report_end(void) {
  if (report.is_json) return;
  printf("\n");
  fflush(stdout);
}

void report_close(void) {
  sqlite3_stmt *all = NULL;
  if (!report.is_json) return;
  must(sqlite3_prepare_v2(report.db, "SELECT json_group_array(json(object)) FROM rows", -1, &all, NULL) == SQLITE_OK);
  must(sqlite3_step(all) == SQLITE_ROW);
  printf("%s\n", (const char *)sqlite3_column_text(all, 0));
  sqlite3_finalize(all);
  sqlite3_close(report.db);
}

static int compare(const void *a, const void *b) {
  double left = *(const double *)a, right = *(const double *)b;
  return (left > right) - (left < right);
}

double median(double *values, size_t n) {
  if (n == 0) return 0;
  qsort(values, n, sizeof *values, compare);
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}
