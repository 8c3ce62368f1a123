/*
** The virtual tables balsa_status (one row) and balsa_members (a row each), on every connection without being
** created. The hidden column `schema` chooses among several Balsa databases of a connection:
**
**   SELECT * FROM balsa_status;
**   SELECT * FROM balsa_members('other');
*/
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "balsa.h"
#include "functions.h"
#include "node_internal.h"
#include "rows.h"

enum status_column {
  STATUS_NODE,
  STATUS_CLUSTER,
  STATUS_ROLE,
  STATUS_STATE,
  STATUS_TERM,
  STATUS_LEADER,
  STATUS_LEADER_ADDRESS,
  STATUS_COMMIT_INDEX,
  STATUS_APPLIED_INDEX,
  STATUS_LOG_FIRST,
  STATUS_LOG_LAST,
  STATUS_LOG_BYTES,
  STATUS_SNAPSHOT,
  STATUS_WAL_FRAMES,
  STATUS_CHECKPOINT,
  STATUS_CHECKSUM,
  STATUS_TOLERATES,
  STATUS_NOTICE,
  STATUS_DATABASE,
  STATUS_VERSION,
  STATUS_SCHEMA,
};
#define STATUS_DECLARATION                                                                                             \
  "CREATE TABLE x(node INTEGER, cluster TEXT, role TEXT, state TEXT, term INTEGER, leader INTEGER, "                   \
  "leader_address TEXT, commit_index INTEGER, applied_index INTEGER, log_first INTEGER, log_last INTEGER, "            \
  "log_bytes INTEGER, snapshot TEXT, wal_frames INTEGER, checkpoint TEXT, checksum TEXT, tolerates INTEGER, "          \
  "notice TEXT, database TEXT, version TEXT, schema TEXT HIDDEN)"

enum member_column {
  MEMBER_NODE,
  MEMBER_ADDRESS,
  MEMBER_ROLE,
  MEMBER_IS_LEADER,
  MEMBER_MATCH_INDEX,
  MEMBER_LAG,
  MEMBER_LAST_CONTACT_MS,
  MEMBER_SNAPSHOT,
  MEMBER_SCHEMA,
};
#define MEMBERS_DECLARATION                                                                                            \
  "CREATE TABLE x(node INTEGER, address TEXT, role TEXT, is_leader INTEGER, match_index INTEGER, lag INTEGER, "        \
  "last_contact_ms INTEGER, snapshot TEXT, schema TEXT HIDDEN)"

/* Both tables are alike: rows are copied when a scan begins. */
struct table {
  sqlite3_vtab base;
  sqlite3 *db;
  bool is_members;
};

struct cursor {
  struct rows rows;
  struct node_status status;
  struct node_member members[RAFT_MEMBERS_MAX];
};

static int table_connect(sqlite3 *db, void *aux, int argc, const char *const *argv, sqlite3_vtab **out, char **error) {
  bool is_members = aux != NULL;
  (void)argc, (void)argv, (void)error;
  int code = sqlite3_declare_vtab(db, is_members ? MEMBERS_DECLARATION : STATUS_DECLARATION);
  if (code != SQLITE_OK) return code;
  struct table *table = sqlite3_malloc(sizeof *table);
  if (!table) return SQLITE_NOMEM;
  *table = (struct table){.db = db, .is_members = is_members};
  *out = &table->base;
  return SQLITE_OK;
}

static int table_disconnect(sqlite3_vtab *base) {
  sqlite3_free(base);
  return SQLITE_OK;
}

static int table_best_index(sqlite3_vtab *base, sqlite3_index_info *info) {
  info->estimatedCost = 10;
  info->estimatedRows = 1;
  return rows_best_index(info, ((struct table *)base)->is_members ? MEMBER_SCHEMA : STATUS_SCHEMA);
}

static int table_open(sqlite3_vtab *base, sqlite3_vtab_cursor **out) {
  (void)base;
  struct cursor *cursor = sqlite3_malloc(sizeof *cursor);
  if (!cursor) return SQLITE_NOMEM;
  memset(cursor, 0, sizeof *cursor);
  *out = &cursor->rows.base;
  return SQLITE_OK;
}

static int table_close(sqlite3_vtab_cursor *base) {
  sqlite3_free(base);
  return SQLITE_OK;
}

static int table_fail(sqlite3_vtab *base, char *message) {
  struct vfs_connection *connection = vfs_connection_find(((struct table *)base)->db, NULL);
  if (connection && message) vfs_connection_set_error(connection, message);
  sqlite3_free(base->zErrMsg);
  base->zErrMsg = message;
  return SQLITE_ERROR;
}

static int table_filter(sqlite3_vtab_cursor *base, int index_number, const char *index_text, int argc,
                        sqlite3_value **argv) {
  struct cursor *cursor = (struct cursor *)base;
  struct table *table = (struct table *)base->pVtab;
  const char *schema = argc > 0 && index_number == 1 ? (const char *)sqlite3_value_text(argv[0]) : NULL;
  (void)index_text;
  cursor->rows.row = cursor->rows.n_rows = 0;
  if (node_is_forked())
    return table_fail(
        &table->base,
        sqlite3_mprintf("this process was forked from one that uses Balsa; open databases after fork and exec"));
  struct vfs_connection *connection = vfs_connection_find(table->db, schema);
  if (!connection && schema) return table_fail(&table->base, sqlite3_mprintf("%s is no replicated database", schema));
  if (!connection)
    return table_fail(&table->base,
                      sqlite3_mprintf("no replicated database on this connection: open one with vfs=balsa"));
  struct node *node = node_of_connection(connection);
  if (table->is_members) {
    cursor->rows.n_rows = node_get_members(node, cursor->members);
  } else {
    node_get_status(node, &cursor->status);
    cursor->rows.n_rows = 1;
  }
  return SQLITE_OK;
}

static void put_number(sqlite3_context *context, uint64_t number) {
  sqlite3_result_int64(context, (sqlite3_int64)number);
}

static void put_checksum(sqlite3_context *context, const struct node_status *status) {
  char text[24];
  if (!status->has_checksum) return;
  snprintf(text, sizeof text, "%016" PRIx64, status->checksum);
  rows_put_text(context, text);
}

static void status_column(sqlite3_context *context, const struct node_status *status, int column) {
  switch ((enum status_column)column) {
  case STATUS_NODE: return put_number(context, status->node);
  case STATUS_CLUSTER: return rows_put_uuid(context, &status->cluster);
  case STATUS_ROLE: return rows_put_text(context, status->role);
  case STATUS_STATE: return rows_put_text(context, status->state);
  case STATUS_TERM: return put_number(context, status->term);
  case STATUS_LEADER:
    if (status->leader) put_number(context, status->leader);
    return;
  case STATUS_LEADER_ADDRESS: return rows_put_text(context, status->leader_address);
  case STATUS_COMMIT_INDEX: return put_number(context, status->commit_index);
  case STATUS_APPLIED_INDEX: return put_number(context, status->applied_index);
  case STATUS_LOG_FIRST: return put_number(context, status->log_first);
  case STATUS_LOG_LAST: return put_number(context, status->log_last);
  case STATUS_LOG_BYTES: return put_number(context, status->log_bytes);
  case STATUS_SNAPSHOT: return rows_put_text(context, status->snapshot);
  case STATUS_WAL_FRAMES: return put_number(context, status->wal_frames);
  case STATUS_CHECKPOINT: return rows_put_text(context, status->checkpoint);
  case STATUS_CHECKSUM: return put_checksum(context, status);
  case STATUS_TOLERATES: return put_number(context, status->tolerates);
  case STATUS_NOTICE: return rows_put_text(context, status->notice);
  case STATUS_DATABASE: return rows_put_text(context, status->path);
  case STATUS_VERSION: return rows_put_text(context, BALSA_VERSION);
  case STATUS_SCHEMA: return;
  }
}

static void member_column(sqlite3_context *context, const struct node_member *member, int column) {
  switch ((enum member_column)column) {
  case MEMBER_NODE: return put_number(context, member->node);
  case MEMBER_ADDRESS: return rows_put_text(context, member->address);
  case MEMBER_ROLE: return rows_put_text(context, member->role);
  case MEMBER_IS_LEADER: return sqlite3_result_int(context, member->is_leader);
  case MEMBER_MATCH_INDEX:
    if (member->has_progress) put_number(context, member->match_index);
    return;
  case MEMBER_LAG:
    if (member->has_progress) put_number(context, member->lag);
    return;
  case MEMBER_LAST_CONTACT_MS:
    if (member->has_contact) put_number(context, member->last_contact_ms);
    return;
  case MEMBER_SNAPSHOT: return rows_put_text(context, member->snapshot);
  case MEMBER_SCHEMA: return;
  }
}

/* A column that nothing is put into is NULL. */
static int table_column(sqlite3_vtab_cursor *base, sqlite3_context *context, int column) {
  const struct cursor *cursor = (const struct cursor *)base;
  if (((const struct table *)base->pVtab)->is_members)
    member_column(context, &cursor->members[cursor->rows.row], column);
  else
    status_column(context, &cursor->status, column);
  return SQLITE_OK;
}

/* Without xCreate a table is eponymous only: it is there and cannot be created. */
static const sqlite3_module module = {
    .xConnect = table_connect,
    .xBestIndex = table_best_index,
    .xDisconnect = table_disconnect,
    .xOpen = table_open,
    .xClose = table_close,
    .xFilter = table_filter,
    .xNext = rows_next,
    .xEof = rows_eof,
    .xColumn = table_column,
    .xRowid = rows_rowid,
};

int balsa_tables_register(sqlite3 *db) {
  static char members;
  int code = sqlite3_create_module_v2(db, "balsa_status", &module, NULL, NULL);
  if (code == SQLITE_OK) code = sqlite3_create_module_v2(db, "balsa_members", &module, &members, NULL);
  return code == SQLITE_OK ? balsa_compare_register(db) : code;
}
