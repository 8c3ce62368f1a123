/*
** What the virtual tables of Balsa share: they are eponymous, their rows are copied when a scan begins, and one hidden column
** is the argument of SELECT … FROM table(argument).
*/
#ifndef BALSA_ROWS_H
#define BALSA_ROWS_H

#include <stddef.h>
#include <stdint.h>

#include "../raft/raft.h"
#include "../vfs/sqlite.h"

/* A cursor embeds this as its first member. */
struct rows {
  sqlite3_vtab_cursor base;
  size_t row, n_rows;
};

/* For xBestIndex: idxNum is 1, and the value the one argument of xFilter, where the hidden column is given. SQLite error code. */
int rows_best_index(sqlite3_index_info *info, int hidden_column);
/* xNext, xEof and xRowid. */
int rows_next(sqlite3_vtab_cursor *base);
int rows_eof(sqlite3_vtab_cursor *base);
int rows_rowid(sqlite3_vtab_cursor *base, sqlite3_int64 *rowid);

/* For xColumn; "" and none are NULL. */
void rows_put_text(sqlite3_context *context, const char *text);
void rows_put_uuid(sqlite3_context *context, const struct raft_uuid *uuid);

#endif
