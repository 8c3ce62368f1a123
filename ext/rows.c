#include "rows.h"

#include "node_internal.h"

/* Only an equality on the hidden column is of use. */
int rows_best_index(sqlite3_index_info *info, int hidden_column) {
  info->idxNum = 0;
  for (int i = 0; i < info->nConstraint; i++) {
    if (info->aConstraint[i].iColumn != hidden_column || info->aConstraint[i].op != SQLITE_INDEX_CONSTRAINT_EQ)
      continue;
    if (!info->aConstraint[i].usable) return SQLITE_CONSTRAINT;
    info->aConstraintUsage[i].argvIndex = 1;
    info->aConstraintUsage[i].omit = 1;
    info->idxNum = 1;
    break;
  }
  return SQLITE_OK;
}

int rows_next(sqlite3_vtab_cursor *base) {
  ((struct rows *)base)->row++;
  return SQLITE_OK;
}

int rows_eof(sqlite3_vtab_cursor *base) {
  const struct rows *rows = (const struct rows *)base;
  return rows->row >= rows->n_rows;
}

int rows_rowid(sqlite3_vtab_cursor *base, sqlite3_int64 *rowid) {
  *rowid = (sqlite3_int64)((const struct rows *)base)->row + 1;
  return SQLITE_OK;
}

void rows_put_text(sqlite3_context *context, const char *text) {
  if (text[0]) sqlite3_result_text(context, text, -1, SQLITE_TRANSIENT);
}

void rows_put_uuid(sqlite3_context *context, const struct raft_uuid *uuid) {
  char text[NODE_UUID_TEXT];
  if (node_uuid_is_none(uuid)) return;
  node_uuid_text(uuid, text);
  rows_put_text(context, text);
}
