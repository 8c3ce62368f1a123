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

#define BUSY_TRIES_MAX 50
#define BUSY_PAUSE_US 100000

static bool run_sql(sqlite3 *db, const char *sql, struct reply *reply) {
  char *message = NULL;
  int code = SQLITE_BUSY;
  /* Lost, or nobody leads: on a busy machine with short time-outs the leader changes now and then. */
  for (int i = 0; i < BUSY_TRIES_MAX && code == SQLITE_BUSY; i++) {
    if (i > 0) usleep(BUSY_PAUSE_US);
    sqlite3_free(message);
    message = NULL;
    code = sqlite3_exec(db, sql, NULL, NULL, &message) & 0xff;
  }
  if (code == SQLITE_OK) return true;
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
  const char *sql =
      "SELECT role, state, commit_index, applied_index, log_bytes, log_first, wal_frames FROM balsa_status";
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
    reply->log_first = (uint64_t)sqlite3_column_int64(statement, 5);
    reply->wal_frames = (uint64_t)sqlite3_column_int64(statement, 6);
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
      "CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
  };
  char sql[BENCH_TEXT_MAX], insert[BENCH_TEXT_MAX / 2];
  if (request->table == TABLE_ROWID || request->table == TABLE_UPDATE)
    snprintf(insert, sizeof insert, "INSERT INTO t(body) SELECT randomblob(%d) FROM n", BENCH_ROW_BYTES);
  else
    snprintf(insert, sizeof insert, "INSERT INTO t SELECT randomblob(%d), randomblob(%d) FROM n", BENCH_KEY_BYTES,
             BENCH_ROW_BYTES - BENCH_KEY_BYTES);
  snprintf(sql, sizeof sql, "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %u) %s", request->rows,
           insert);
  reply->is_ok = run_sql(db, tables[request->table], reply) && (request->rows == 0 || run_sql(db, sql, reply));
}

/* ---- A large database ---- */

#define FILL_ROW_BYTES 400
#define FILL_TRANSACTION_ROWS 2500
#define WORDS 512

/* Words in a random order: text that LZ4 makes about half as long. */
static int make_text(char text[FILL_ROW_BYTES], uint64_t *random) {
  static char words[WORDS][8];
  int used = 0;
  for (size_t i = 0; words[WORDS - 1][0] == 0 && i < WORDS; i++)
    snprintf(words[i], sizeof words[i], "%c%c%.*s", 'a' + (int)(i % 26), 'a' + (int)(i / 26), (int)(i % 6), "eranto");
  while (used < FILL_ROW_BYTES) {
    *random = *random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    used += snprintf(text + used, (size_t)(FILL_ROW_BYTES - used), "%s ", words[(*random >> 40) % WORDS]);
  }
  return FILL_ROW_BYTES - 1;
}

static bool fill_transaction(sqlite3 *db, sqlite3_stmt *insert, uint64_t *random, struct reply *reply) {
  char text[FILL_ROW_BYTES];
  bool is_good = run_sql(db, "BEGIN IMMEDIATE", reply);
  for (int i = 0; is_good && i < FILL_TRANSACTION_ROWS; i++) {
    sqlite3_bind_text(insert, 1, text, make_text(text, random), SQLITE_STATIC);
    sqlite3_step(insert);
    is_good = sqlite3_reset(insert) == SQLITE_OK;
  }
  if (!is_good) snprintf(reply->text, sizeof reply->text, "bulk: %s", sqlite3_errmsg(db));
  return is_good && run_sql(db, "COMMIT", reply);
}

static uint64_t count(sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement = NULL;
  uint64_t value = 0;
  if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) == SQLITE_OK && sqlite3_step(statement) == SQLITE_ROW)
    value = (uint64_t)sqlite3_column_int64(statement, 0);
  sqlite3_finalize(statement);
  return value;
}

static void fill(sqlite3 *db, const struct request *request, struct reply *reply) {
  sqlite3_stmt *insert = NULL;
  uint64_t random = 1, page_size = count(db, "PRAGMA page_size");
  reply->is_ok = run_sql(db, "CREATE TABLE bulk(id INTEGER PRIMARY KEY, body TEXT NOT NULL)", reply) &&
                 sqlite3_prepare_v2(db, "INSERT INTO bulk(body) VALUES (?)", -1, &insert, NULL) == SQLITE_OK;
  while (reply->is_ok && count(db, "PRAGMA page_count") * page_size < request->bytes)
    reply->is_ok = fill_transaction(db, insert, &random, reply);
  sqlite3_finalize(insert);
}

/* ---- Single things, timed ---- */

/* As soon as they work: a node that has just begun may have no leader yet. */
static void first(sqlite3 *db, struct reply *reply) {
  reply->is_ok = run_sql(db, "SELECT * FROM t LIMIT 1", reply);
  reply->read_at = now_ns();
  int code = SQLITE_BUSY;
  while (reply->is_ok && code == SQLITE_BUSY)
    code = sqlite3_exec(db, "INSERT INTO t(body) VALUES (x'00')", NULL, NULL, NULL);
  reply->write_at = now_ns();
  reply->cpu_total_us = process_cpu_us();
  if (!reply->is_ok || code == SQLITE_OK) return;
  reply->is_ok = false;
  snprintf(reply->text, sizeof reply->text, "the first write: %s", sqlite3_errmsg(db));
}

static void snapshot(sqlite3 *db, struct reply *reply) {
  uint64_t begin = now_ns();
  double cpu_before = process_cpu_us();
  reply->snapshot_index = count(db, "SELECT balsa_snapshot()");
  reply->seconds = (double)(now_ns() - begin) / 1e9;
  reply->cpu_us = process_cpu_us() - cpu_before;
  reply->is_ok = reply->snapshot_index != 0;
  if (!reply->is_ok) snprintf(reply->text, sizeof reply->text, "balsa_snapshot(): %s", sqlite3_errmsg(db));
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

static void transfer(sqlite3 *db, struct reply *reply) {
  sqlite3_stmt *statement = NULL;
  int code = sqlite3_prepare_v2(db, "SELECT balsa_transfer()", -1, &statement, NULL);
  if (code == SQLITE_OK) code = sqlite3_step(statement);
  reply->is_ok = code == SQLITE_ROW;
  if (!reply->is_ok) snprintf(reply->text, sizeof reply->text, "%s", sqlite3_errmsg(db));
  sqlite3_finalize(statement);
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
      case OP_FILL: fill(db, &request, &reply); break;
      case OP_SNAPSHOT: snapshot(db, &reply); break;
      case OP_FIRST: first(db, &reply); break;
      case OP_HOLD: reply.is_ok = run_sql(db, "BEGIN; SELECT * FROM t LIMIT 1", &reply); break;
      case OP_PATROL: patrol_begin(uri, &request, &reply); break;
      case OP_GAPS: patrol_gaps(request.since_ns, &reply); break;
      case OP_DISMISS:
        patrol_end(&reply);
        count_rows(db, &reply);
        break;
      case OP_TRANSFER: transfer(db, &reply); break;
      case OP_QUIT: reply.is_ok = is_plain || balsa_stop(db, NULL) == SQLITE_OK; break;
      }
    }
    if (!answer(&reply) || request.operation == OP_QUIT) break;
  }
  sqlite3_close(db);
  return 0;
}
