/*
** The virtual table balsa_compare: what stopped nodes hold, a row for each path of the hidden column `paths`:
**
**   SELECT * FROM balsa_compare('/a/app.db,/b/app.db,/c/app.db');
**
** It needs no replicated database on its connection, and changes nothing.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compare.h"
#include "functions.h"
#include "rows.h"

enum compare_column {
  COMPARE_PATH,
  COMPARE_NODE,
  COMPARE_CLUSTER,
  COMPARE_TERM,
  COMPARE_VOTED_FOR,
  COMPARE_LAST_TERM,
  COMPARE_LAST_INDEX,
  COMPARE_COMMITTED,
  COMPARE_ADVICE,
  COMPARE_PROBLEM,
  COMPARE_PATHS,
};
#define COMPARE_DECLARATION                                                                                            \
  "CREATE TABLE x(path TEXT, node INTEGER, cluster TEXT, term INTEGER, voted_for INTEGER, last_term INTEGER, "         \
  "last_index INTEGER, committed INTEGER, advice TEXT, problem TEXT, paths TEXT HIDDEN)"

struct cursor {
  struct rows rows;
  struct holding *holdings; /* HOLDINGS_MAX */
};

static int compare_connect(sqlite3 *db, void *aux, int argc, const char *const *argv, sqlite3_vtab **out,
                           char **error) {
  (void)aux, (void)argc, (void)argv, (void)error;
  int code = sqlite3_declare_vtab(db, COMPARE_DECLARATION);
  if (code != SQLITE_OK) return code;
  *out = sqlite3_malloc(sizeof **out);
  if (!*out) return SQLITE_NOMEM;
  memset(*out, 0, sizeof **out);
  return SQLITE_OK;
}

static int compare_disconnect(sqlite3_vtab *base) {
  sqlite3_free(base);
  return SQLITE_OK;
}

static int compare_best_index(sqlite3_vtab *base, sqlite3_index_info *info) {
  (void)base;
  info->estimatedCost = 1000;
  info->estimatedRows = 3;
  return rows_best_index(info, COMPARE_PATHS);
}

static int compare_open(sqlite3_vtab *base, sqlite3_vtab_cursor **out) {
  (void)base;
  struct cursor *cursor = calloc(1, sizeof *cursor);
  if (cursor) cursor->holdings = calloc(HOLDINGS_MAX, sizeof *cursor->holdings);
  if (!cursor || !cursor->holdings) {
    free(cursor);
    return SQLITE_NOMEM;
  }
  *out = &cursor->rows.base;
  return SQLITE_OK;
}

static int compare_close(sqlite3_vtab_cursor *base) {
  struct cursor *cursor = (struct cursor *)base;
  free(cursor->holdings);
  free(cursor);
  return SQLITE_OK;
}

static int fail(sqlite3_vtab_cursor *base, const char *text) {
  sqlite3_free(base->pVtab->zErrMsg);
  base->pVtab->zErrMsg = sqlite3_mprintf("%s", text);
  return SQLITE_ERROR;
}

/* The next of a list with commas, without blanks around it; false: there is none. */
static bool take_path(const char **at, char path[OS_PATH_MAX]) {
  *at += strspn(*at, " ,\n");
  size_t length = strcspn(*at, ",\n");
  if (length == 0 || length >= OS_PATH_MAX) return false;
  snprintf(path, OS_PATH_MAX, "%.*s", (int)length, *at);
  *at += length;
  while (length > 0 && path[length - 1] == ' ') path[--length] = 0;
  return true;
}

static int compare_filter(sqlite3_vtab_cursor *base, int index_number, const char *index_text, int argc,
                          sqlite3_value **argv) {
  struct cursor *cursor = (struct cursor *)base;
  const char *paths = argc > 0 && index_number == 1 ? (const char *)sqlite3_value_text(argv[0]) : NULL;
  char path[OS_PATH_MAX];
  (void)index_text;
  cursor->rows.row = cursor->rows.n_rows = 0;
  if (!paths)
    return fail(base, "balsa_compare wants the paths of the nodes' databases: SELECT * FROM "
                      "balsa_compare('/a/app.db,/b/app.db')");
  while (take_path(&paths, path)) {
    if (cursor->rows.n_rows == HOLDINGS_MAX) return fail(base, "balsa_compare takes 15 paths at most");
    holding_look(os_real(), path, &cursor->holdings[cursor->rows.n_rows++]);
  }
  return SQLITE_OK;
}

/* 0 is unknown, or nobody: NULL. */
static void put_number(sqlite3_context *context, uint64_t number) {
  if (number) sqlite3_result_int64(context, (sqlite3_int64)number);
}

static int compare_column(sqlite3_vtab_cursor *base, sqlite3_context *context, int column) {
  const struct cursor *cursor = (const struct cursor *)base;
  const struct holding *holding = &cursor->holdings[cursor->rows.row];
  char text[HOLDING_TEXT_MAX];
  switch ((enum compare_column)column) {
  case COMPARE_PATH: rows_put_text(context, holding->path); break;
  case COMPARE_NODE: put_number(context, holding->node); break;
  case COMPARE_CLUSTER: rows_put_uuid(context, &holding->cluster); break;
  case COMPARE_TERM: put_number(context, holding->term); break;
  case COMPARE_VOTED_FOR: put_number(context, holding->voted_for); break;
  case COMPARE_LAST_TERM: put_number(context, holding->last_term); break;
  case COMPARE_LAST_INDEX: put_number(context, holding->last_index); break;
  case COMPARE_COMMITTED: put_number(context, holding->commit_index); break;
  case COMPARE_ADVICE:
    holding_advise(cursor->holdings, cursor->rows.n_rows, cursor->rows.row, text);
    rows_put_text(context, text);
    break;
  case COMPARE_PROBLEM: rows_put_text(context, holding->problem); break;
  case COMPARE_PATHS: break;
  }
  return SQLITE_OK;
}

/* Without xCreate a table is eponymous only: it is there and cannot be created. */
static const sqlite3_module module = {
    .xConnect = compare_connect,
    .xBestIndex = compare_best_index,
    .xDisconnect = compare_disconnect,
    .xOpen = compare_open,
    .xClose = compare_close,
    .xFilter = compare_filter,
    .xNext = rows_next,
    .xEof = rows_eof,
    .xColumn = compare_column,
    .xRowid = rows_rowid,
};

int balsa_compare_register(sqlite3 *db) {
  return sqlite3_create_module_v2(db, "balsa_compare", &module, NULL, NULL);
}
