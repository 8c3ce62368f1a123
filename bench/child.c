/*
** A process of its own with one database: requests come through its standard input, replies go to its standard output.
** Without Balsa it is a plain SQLite process: nothing of Balsa is called.
*/
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../ext/balsa.h"
#include "bench.h"

static bool run_sql(sqlite3 *db, const char *sql, struct reply *reply) {
  char *message = NULL;
  if (sqlite3_exec(db, sql, NULL, NULL, &message) == SQLITE_OK) return true;
  snprintf(reply->text, sizeof reply->text, "%s: %s", sql, message ? message : sqlite3_errmsg(db));
  sqlite3_free(message);
  return false;
}

static void copy_text(char *to, size_t size, sqlite3_stmt *statement, int column) {
  const char *text = (const char *)sqlite3_column_text(statement, column);
  snprintf(to, size, "%s", text ? text : "");
}

static void status(sqlite3 *db, bool is_plain, struct reply *reply) {
  sqlite3_stmt *statement = NULL;
  char role[BENCH_TEXT_MAX];
  reply->is_ok = reply->is_leader = reply->is_ready = is_plain;
  reply->cpu_total_us = process_cpu_us();
  if (is_plain) return;
  const char *sql = "SELECT role, state, commit_index, applied_index, log_bytes FROM balsa_status";
  int code = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);
  if (code == SQLITE_OK) code = sqlite3_step(statement);
  if (code == SQLITE_ROW) {
    copy_text(role, sizeof role, statement, 0);
    copy_text(reply->state, sizeof reply->state, statement, 1);
    reply->is_leader = strcmp(role, "leader") == 0;
    reply->is_ready = strcmp(reply->state, "ready") == 0;
    reply->commit_index = (uint64_t)sqlite3_column_int64(statement, 2);
    reply->applied_index = (uint64_t)sqlite3_column_int64(statement, 3);
    reply->log_bytes = (uint64_t)sqlite3_column_int64(statement, 4);
  } else {
    snprintf(reply->text, sizeof reply->text, "balsa_status: %s", sqlite3_errmsg(db));
    snprintf(reply->state, sizeof reply->state, "%s", sqlite3_errmsg(db));
  }
  /* Busy while the database gets its first page: not ready, and no failure. */
  reply->is_ok = code == SQLITE_ROW || code == SQLITE_BUSY;
  sqlite3_finalize(statement);
}

static void prepare(sqlite3 *db, const struct request *request, struct reply *reply) {
  static const char *const tables[N_TABLE_KINDS] = {
      "CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
      "CREATE TABLE t(key BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID",
      "CREATE TABLE t(key BLOB PRIMARY KEY, body BLOB NOT NULL)",
  };
  char sql[BENCH_TEXT_MAX], insert[BENCH_TEXT_MAX / 2];
  if (request->table == TABLE_ROWID)
    snprintf(insert, sizeof insert, "INSERT INTO t(body) SELECT randomblob(%d) FROM n", BENCH_ROW_BYTES);
  else
    snprintf(insert, sizeof insert, "INSERT INTO t SELECT randomblob(%d), randomblob(%d) FROM n", BENCH_KEY_BYTES,
             BENCH_ROW_BYTES - BENCH_KEY_BYTES);
  snprintf(sql, sizeof sql, "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %u) %s", request->rows,
           insert);
  reply->is_ok = run_sql(db, tables[request->table], reply) && (request->rows == 0 || run_sql(db, sql, reply));
}

static void count_rows(sqlite3 *db, struct reply *reply) {
  sqlite3_stmt *statement = NULL;
  if (sqlite3_prepare_v2(db, "SELECT count(*) FROM t", -1, &statement, NULL) == SQLITE_OK &&
      sqlite3_step(statement) == SQLITE_ROW) {
    reply->rows_after = (uint64_t)sqlite3_column_int64(statement, 0);
  } else {
    reply->is_ok = false;
    snprintf(reply->text, sizeof reply->text, "count(*): %s", sqlite3_errmsg(db));
  }
  sqlite3_finalize(statement);
}

static sqlite3 *open_database(bool is_plain, const char *uri, struct reply *reply) {
  sqlite3 *db = NULL;
  int code = is_plain ? SQLITE_OK : balsa_init();
  if (code != SQLITE_OK) {
    snprintf(reply->text, sizeof reply->text, "balsa_init: %s", sqlite3_errstr(code));
    return NULL;
  }
  code = sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL);
  if (code != SQLITE_OK) snprintf(reply->text, sizeof reply->text, "%s: %s", uri, sqlite3_errmsg(db));
  bool is_new = is_plain && !strstr(uri, "mode=ro");
  if (code == SQLITE_OK && (!is_new || run_sql(db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL", reply)))
    return db;
  sqlite3_close(db);
  return NULL;
}

static bool take(struct request *request) {
  size_t got = 0;
  while (got < sizeof *request) {
    ssize_t n = read(STDIN_FILENO, (char *)request + got, sizeof *request - got);
    if (n <= 0) return false;
    got += (size_t)n;
  }
  return true;
}

static bool answer(const struct reply *reply) {
  size_t put = 0;
  while (put < sizeof *reply) {
    ssize_t n = write(STDOUT_FILENO, (const char *)reply + put, sizeof *reply - put);
    if (n <= 0) return false;
    put += (size_t)n;
  }
  return true;
}

int child_main(bool is_plain, const char *uri) {
  static struct request request;
  static struct reply reply;
  sqlite3 *db = open_database(is_plain, uri, &reply);
  while (take(&request)) {
    if (db) {
      reply = (struct reply){.is_ok = false};
      switch (request.operation) {
      case OP_STATUS: status(db, is_plain, &reply); break;
      case OP_PREPARE: prepare(db, &request, &reply); break;
      case OP_LOAD:
        load_run(uri, &request, &reply);
        if (reply.is_ok) count_rows(db, &reply);
        break;
      case OP_QUIT: reply.is_ok = is_plain || balsa_stop(db, NULL) == SQLITE_OK; break;
      }
    }
    if (!answer(&reply) || request.operation == OP_QUIT) break;
  }
  sqlite3_close(db);
  return 0;
}
