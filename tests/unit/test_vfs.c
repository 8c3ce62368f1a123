/*
** vfs/ with a stand-in for the node: what a connection sees and is told, whatever becomes of its transactions.
*/
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "stand_in.h"

#define WAIT_MS 50
#define LONG_MS 20000

static int run(sqlite3 *db, const char *sql) {
  int code = sqlite3_exec(db, sql, NULL, NULL, NULL);
  return code == SQLITE_OK ? code : sqlite3_extended_errcode(db);
}

static void must(sqlite3 *db, const char *sql) {
  int code = run(db, sql);
  if (code != SQLITE_OK)
    fail_msg("%s: %d %s (%s)", sql, code, sqlite3_errmsg(db), vfs_connection_error(vfs_connection_find(db, NULL)));
}

/* The first column of the first row, or minus the error code. */
static int64_t ask(sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement = NULL;
  int64_t value = INT64_MIN;
  if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) == SQLITE_OK && sqlite3_step(statement) == SQLITE_ROW)
    value = sqlite3_column_int64(statement, 0);
  int code = sqlite3_finalize(statement);
  return code == SQLITE_OK ? value : -(int64_t)sqlite3_extended_errcode(db);
}

static int64_t ask_text_ok(sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement = NULL;
  int64_t ok = 0;
  if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) == SQLITE_OK && sqlite3_step(statement) == SQLITE_ROW)
    ok = strcmp((const char *)sqlite3_column_text(statement, 0), "ok") == 0;
  sqlite3_finalize(statement);
  return ok;
}

static void *compensate_run(void *node) {
  stand_in_compensate(node);
  return NULL;
}

struct writer {
  pthread_t thread;
  struct stand_in *node;
  sqlite3 *db;
  const char *sql;
  int code;
};

static void *writer_run(void *argument) {
  struct writer *writer = argument;
  writer->code = run(writer->db, writer->sql);
  return NULL;
}

/* A connection that knows the schema, which it could not read while commits are held back. */
static void writer_open(struct writer *writer, struct stand_in *node) {
  writer->node = node;
  writer->db = stand_in_connect(node);
  ask(writer->db, "SELECT count(*) FROM sqlite_schema");
}

static void writer_start(struct writer *writer, struct stand_in *node, const char *sql) {
  if (!writer->db) writer_open(writer, node);
  writer->sql = sql;
  assert_int_equal(pthread_create(&writer->thread, NULL, writer_run, writer), 0);
}

static int writer_join(struct writer *writer) {
  pthread_join(writer->thread, NULL);
  return writer->code;
}

static void assert_replicas_equal(struct stand_in *a, struct stand_in *b) {
  struct vfs_status left, right;
  vfs_get_status(a->database, &left);
  vfs_get_status(b->database, &right);
  assert_int_equal(left.index, right.index);
  assert_int_equal(left.pages, right.pages);
  assert_true(left.checksum == right.checksum);
}

static void a_commit_is_read_by_others_and_by_a_follower(void **state) {
  (void)state;
  struct stand_in leader, follower;
  stand_in_open(&leader, 4096, 0, LONG_MS);
  stand_in_open(&follower, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&leader);
  must(db, "CREATE TABLE t(a, b); INSERT INTO t VALUES (1, 'x'), (2, 'y')");
  must(db, "BEGIN; INSERT INTO t VALUES (3, 'z'); UPDATE t SET b = 'q' WHERE a = 1; COMMIT");
  sqlite3 *other = stand_in_connect(&leader);
  assert_int_equal(ask(other, "SELECT sum(a) FROM t"), 6);
  stand_in_follow(&follower, &leader);
  sqlite3 *there = stand_in_connect(&follower);
  assert_int_equal(ask(there, "SELECT sum(a) FROM t"), 6);
  assert_replicas_equal(&leader, &follower);
  assert_int_equal(run(there, "INSERT INTO t VALUES (4, 'w')"), SQLITE_READONLY);
  sqlite3_close(db);
  sqlite3_close(other);
  sqlite3_close(there);
  stand_in_close(&leader);
  stand_in_close(&follower);
}

static void a_reader_does_not_see_what_no_majority_has(void **state) {
  (void)state;
  struct stand_in node;
  struct writer writer = {0};
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a)");
  stand_in_hold(&node);
  writer_start(&writer, &node, "INSERT INTO t VALUES (1)");
  stand_in_await_waiters(&node, 1);
  must(db, "PRAGMA balsa_timeout = 50");
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), -SQLITE_BUSY);
  stand_in_commit_all(&node);
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 1);
  assert_int_equal(writer_join(&writer), SQLITE_OK);
  sqlite3_close(writer.db);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void a_lost_statement_and_a_lost_commit_are_told_apart_and_leave_nothing(void **state) {
  (void)state;
  struct stand_in node;
  struct writer statement = {0}, transaction = {0};
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (0)");
  writer_open(&transaction, &node);
  stand_in_hold(&node);
  writer_start(&statement, &node, "INSERT INTO t VALUES (1)");
  stand_in_await_waiters(&node, 1);
  writer_start(&transaction, &node, "BEGIN; INSERT INTO t VALUES (2); COMMIT");
  stand_in_await_waiters(&node, 2);
  stand_in_step_down(&node);
  assert_int_equal(writer_join(&statement), SQLITE_BUSY_SNAPSHOT);
  assert_int_equal(writer_join(&transaction), SQLITE_ABORT_ROLLBACK);
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 1);
  assert_int_equal(ask(statement.db, "SELECT count(*) FROM t"), 1);
  assert_int_equal(ask(transaction.db, "SELECT count(*) FROM t"), 1);
  stand_in_lead(&node);
  must(statement.db, "INSERT INTO t VALUES (3)");
  must(transaction.db, "BEGIN; INSERT INTO t VALUES (4); COMMIT");
  assert_int_equal(ask(db, "SELECT sum(a) FROM t"), 7);
  assert_int_equal(ask_text_ok(db, "PRAGMA integrity_check"), 1);
  sqlite3_close(statement.db);
  sqlite3_close(transaction.db);
  sqlite3_close(db);
  stand_in_close(&node);
}

/* Rows that the cursor still shows of the lost transaction. Its end may be an error or not. */
static int64_t doomed_rows(sqlite3_stmt *cursor) {
  int64_t doomed = 0;
  while (sqlite3_step(cursor) == SQLITE_ROW)
    doomed += strcmp((const char *)sqlite3_column_text(cursor, 0), "doomed") == 0;
  sqlite3_finalize(cursor);
  return doomed;
}

static void a_lost_commit_with_cursors_open_shows_nothing_of_it_afterwards(void **state) {
  (void)state;
  for (int is_proposed = 0; is_proposed < 2; is_proposed++) {
    struct stand_in node;
    stand_in_open(&node, 1024, 0, LONG_MS);
    sqlite3 *db = stand_in_connect(&node);
    must(db, "CREATE TABLE t(a, b); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) "
             "INSERT INTO t SELECT i, hex(randomblob(50)) FROM n");
    sqlite3_stmt *cursor = NULL;
    must(db, "BEGIN; UPDATE t SET b = 'doomed'");
    assert_int_equal(sqlite3_prepare_v2(db, "SELECT b FROM t", -1, &cursor, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(cursor), SQLITE_ROW);
    stand_in_hold(&node);
    struct writer committer = {.node = &node, .db = db, .sql = "COMMIT"};
    if (!is_proposed) stand_in_end_epoch(&node);
    assert_int_equal(pthread_create(&committer.thread, NULL, writer_run, &committer), 0);
    if (is_proposed) {
      stand_in_await_waiters(&node, 1);
      stand_in_end_epoch(&node);
    }
    stand_in_compensate(&node);
    assert_int_equal(writer_join(&committer), VFS_SQLITE_LOST);
    assert_int_equal(doomed_rows(cursor), 0);
    assert_int_equal(ask(db, "SELECT count(*) FROM t WHERE b = 'doomed'"), 0);
    stand_in_lead(&node);
    must(db, "INSERT INTO t VALUES (1000, 'after')");
    assert_int_equal(ask_text_ok(db, "PRAGMA integrity_check"), 1);
    sqlite3_close(db);
    stand_in_close(&node);
  }
}

static void a_rollback_waits_for_what_it_read(void **state) {
  (void)state;
  struct stand_in node;
  struct writer writer = {0};
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a)");
  stand_in_hold(&node);
  writer_start(&writer, &node, "INSERT INTO t VALUES (1)");
  stand_in_await_waiters(&node, 1);
  must(db, "PRAGMA balsa_timeout = 50");
  must(db, "BEGIN IMMEDIATE");
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 1); /* inside a write transaction: speculative */
  must(db, "ROLLBACK");
  /* The page is in the cache and the header has not changed: only the rule keeps this from being shown. */
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), -SQLITE_BUSY_TIMEOUT);
  stand_in_step_down(&node);
  assert_int_equal(writer_join(&writer), SQLITE_BUSY_SNAPSHOT);
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 0);
  sqlite3_close(writer.db);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void a_failed_statement_waits_for_what_it_read(void **state) {
  (void)state;
  struct stand_in node;
  struct writer writer = {0};
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a UNIQUE)");
  stand_in_hold(&node);
  writer_start(&writer, &node, "INSERT INTO t VALUES (1)");
  stand_in_await_waiters(&node, 1);
  must(db, "PRAGMA balsa_timeout = 50");
  assert_int_equal(run(db, "INSERT INTO t VALUES (1)"), SQLITE_CONSTRAINT_UNIQUE);
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), -SQLITE_BUSY_TIMEOUT);
  stand_in_commit_all(&node);
  assert_int_equal(writer_join(&writer), SQLITE_OK);
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 1);
  sqlite3_close(writer.db);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void a_write_transaction_that_changed_nothing_answers_for_what_it_saw(void **state) {
  (void)state;
  struct stand_in node;
  struct writer writer = {0};
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a)");
  stand_in_hold(&node);
  writer_start(&writer, &node, "INSERT INTO t VALUES (1)");
  stand_in_await_waiters(&node, 1);
  must(db, "PRAGMA balsa_timeout = 50");
  must(db, "BEGIN IMMEDIATE");
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 1);
  assert_int_equal(run(db, "COMMIT"), VFS_SQLITE_UNKNOWN);
  must(db, "PRAGMA balsa_timeout = 20000");
  must(db, "BEGIN IMMEDIATE");
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 1);
  struct writer committer = {.node = &node, .db = db, .sql = "COMMIT"};
  assert_int_equal(pthread_create(&committer.thread, NULL, writer_run, &committer), 0);
  stand_in_await_waiters(&node, 2);
  stand_in_step_down(&node);
  assert_int_equal(writer_join(&committer), SQLITE_ABORT_ROLLBACK);
  assert_int_equal(writer_join(&writer), SQLITE_BUSY_SNAPSHOT);
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 0);
  sqlite3_close(writer.db);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void a_statement_that_only_reads_this_database_is_gated(void **state) {
  (void)state;
  struct stand_in node;
  struct writer writer = {0};
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a)");
  stand_in_hold(&node);
  writer_start(&writer, &node, "INSERT INTO t VALUES (1)");
  stand_in_await_waiters(&node, 1);
  must(db, "PRAGMA balsa_timeout = 50");
  assert_int_equal(run(db, "CREATE TEMP TABLE c AS SELECT * FROM t"), SQLITE_BUSY);
  stand_in_commit_all(&node);
  assert_int_equal(writer_join(&writer), SQLITE_OK);
  must(db, "CREATE TEMP TABLE c AS SELECT * FROM t");
  assert_int_equal(ask(db, "SELECT count(*) FROM temp.c"), 1);
  sqlite3_close(writer.db);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void an_open_write_transaction_is_doomed_when_leadership_ends(void **state) {
  (void)state;
  struct stand_in node;
  stand_in_open(&node, 1024, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a, b); INSERT INTO t VALUES (0, zeroblob(20000))");
  must(db, "BEGIN; INSERT INTO t VALUES (1, 2)");
  stand_in_end_epoch(&node);
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, compensate_run, &node), 0);
  struct vfs_status status;
  do vfs_get_status(node.database, &status);
  while (!status.blocked[0]);
  assert_non_null(strstr(status.blocked, "write transaction"));
  assert_int_equal(run(db, "COMMIT"), SQLITE_ABORT_ROLLBACK);
  pthread_join(thread, NULL);
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 1);
  stand_in_lead(&node);
  must(db, "INSERT INTO t VALUES (2, 3)");
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 2);
  sqlite3_close(db);
  stand_in_close(&node);
}

/* It has changed page 1, which its roll-back reads again, and has written nothing out: no header changes. */
static void a_doomed_transaction_leaves_nothing_in_its_cache(void **state) {
  static const char *const ends[] = {"COMMIT", "ROLLBACK"};
  (void)state;
  for (int i = 0; i < 2; i++) {
    struct stand_in node;
    stand_in_open(&node, 1024, 0, LONG_MS);
    sqlite3 *db = stand_in_connect(&node);
    must(db, "CREATE TABLE t(a, b); INSERT INTO t VALUES (1, 1)");
    must(db, "BEGIN; UPDATE t SET a = 2; INSERT INTO t VALUES (3, zeroblob(20000))");
    stand_in_end_epoch(&node);
    run(db, ends[i]);
    stand_in_compensate(&node);
    assert_int_equal(ask(db, "SELECT a FROM t"), 1);
    assert_int_equal(ask(db, "SELECT count(*) FROM t"), 1);
    sqlite3_close(db);
    stand_in_close(&node);
  }
}

static void a_doomed_transaction_ends_at_its_next_read(void **state) {
  (void)state;
  struct stand_in node;
  stand_in_open(&node, 1024, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "PRAGMA cache_size=5; CREATE TABLE t(a, b); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
           "WHERE i < 500) "
           "INSERT INTO t SELECT i, hex(randomblob(50)) FROM n");
  must(db, "BEGIN; UPDATE t SET b = 1 WHERE a = 1");
  stand_in_end_epoch(&node);
  assert_int_equal(ask(db, "SELECT count(b) FROM t"), -VFS_SQLITE_LOST);
  assert_true(sqlite3_get_autocommit(db)); /* SQLite has rolled it back: nothing keeps the node from applying */
  stand_in_compensate(&node);
  assert_int_equal(ask(db, "SELECT count(*) FROM t WHERE b = 1"), 0);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void lost_is_not_told_before_it_is_taken_back(void **state) {
  (void)state;
  struct stand_in node;
  struct writer writer = {0};
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a)");
  writer_open(&writer, &node);
  must(writer.db, "PRAGMA balsa_timeout = 50");
  stand_in_hold(&node);
  writer_start(&writer, &node, "INSERT INTO t VALUES (1)");
  stand_in_await_waiters(&node, 1);
  stand_in_end_epoch(&node); /* lost for certain from here on, but the WAL still shows it */
  assert_int_equal(writer_join(&writer), VFS_SQLITE_UNKNOWN);
  stand_in_compensate(&node);
  assert_int_equal(ask(writer.db, "SELECT count(*) FROM t"), 0);
  sqlite3_close(writer.db);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void nobody_writes_on_top_of_a_schema_that_may_be_lost(void **state) {
  (void)state;
  struct stand_in node;
  struct writer first = {0}, second = {0};
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a, b); INSERT INTO t VALUES (1, 2)");
  writer_open(&first, &node);
  writer_open(&second, &node);
  must(second.db, "PRAGMA balsa_timeout = 50");
  stand_in_hold(&node);
  writer_start(&first, &node, "CREATE INDEX i ON t(a)");
  stand_in_await_waiters(&node, 1);
  /* Else it would parse the index, and keep it under the cookie of the next schema. */
  assert_int_equal(run(second.db, "BEGIN IMMEDIATE"), SQLITE_BUSY);
  stand_in_step_down(&node);
  assert_int_equal(writer_join(&first), SQLITE_BUSY_SNAPSHOT);
  stand_in_lead(&node);
  must(db, "CREATE INDEX j ON t(b)");
  must(second.db, "INSERT INTO t VALUES (3, 4)");
  must(first.db, "INSERT INTO t VALUES (5, 6)");
  assert_int_equal(ask_text_ok(db, "PRAGMA integrity_check"), 1);
  sqlite3_close(first.db);
  sqlite3_close(second.db);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void a_refused_proposal_is_taken_back_at_once(void **state) {
  (void)state;
  struct stand_in node;
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  sqlite3 *other = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a)");
  node.refuses = true;
  assert_int_equal(run(db, "INSERT INTO t VALUES (1)"), SQLITE_BUSY_SNAPSHOT);
  node.refuses = false;
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 0);
  assert_int_equal(ask(other, "SELECT count(*) FROM t"), 0);
  must(db, "INSERT INTO t VALUES (2)");
  assert_int_equal(ask(other, "SELECT sum(a) FROM t"), 2);
  sqlite3_close(db);
  sqlite3_close(other);
  stand_in_close(&node);
}

static void the_busy_handler_and_the_time_out_do_not_multiply(void **state) {
  (void)state;
  struct stand_in node;
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); PRAGMA balsa_timeout = 3000");
  sqlite3_busy_timeout(db, 300); /* comes again about ten times */
  stand_in_resign(&node);
  assert_int_equal(run(db, "INSERT INTO t VALUES (1)"), SQLITE_BUSY);
  assert_true(stand_in_asked(&node) >= 4); /* twice a time */
  assert_true(stand_in_waited_ns(&node) >= 3000 * OS_MS);
  assert_true(stand_in_waited_ns(&node) < 15000 * OS_MS); /* what it asked to wait for; the product is 30,000 */
  sqlite3_close(db);
  stand_in_close(&node);
}

static void a_stale_upgrade_fails_at_once(void **state) {
  (void)state;
  struct stand_in node;
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  sqlite3 *other = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a)");
  must(db, "BEGIN");
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 0);
  must(other, "INSERT INTO t VALUES (1)");
  assert_int_equal(run(db, "INSERT INTO t VALUES (2)"), SQLITE_BUSY_SNAPSHOT);
  must(db, "ROLLBACK");
  must(db, "INSERT INTO t VALUES (2)");
  sqlite3_close(db);
  sqlite3_close(other);
  stand_in_close(&node);
}

static void a_transaction_over_two_files_is_refused_before_anything_is_committed(void **state) {
  (void)state;
  struct stand_in node;
  char sql[512], plain[STAND_IN_PATH_MAX + 16];
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a)");
  snprintf(plain, sizeof plain, "%s-plain.db", node.path);
  snprintf(sql, sizeof sql, "ATTACH 'file:%s?vfs=unix' AS p; CREATE TABLE p.t(a)", plain);
  must(db, sql);
  for (int wal = 0; wal < 2; wal++) {
    must(db, wal ? "PRAGMA p.journal_mode=WAL" : "PRAGMA p.journal_mode=DELETE");
    assert_int_equal(run(db, "BEGIN; INSERT INTO p.t VALUES (1); INSERT INTO main.t VALUES (1)"), SQLITE_ERROR);
    must(db, "ROLLBACK");
    assert_int_equal(run(db, "BEGIN; INSERT INTO main.t VALUES (1); INSERT INTO p.t VALUES (1); COMMIT"), SQLITE_ERROR);
    if (!sqlite3_get_autocommit(db)) must(db, "ROLLBACK");
    assert_int_equal(ask(db, "SELECT count(*) FROM p.t"), 0);
    assert_int_equal(ask(db, "SELECT count(*) FROM main.t"), 0);
  }
  must(db, "INSERT INTO main.t SELECT 5");
  must(db, "INSERT INTO p.t SELECT a FROM main.t");
  must(db, "INSERT INTO main.t SELECT a FROM p.t");
  must(db, "BEGIN; CREATE TEMP TABLE x(a); INSERT INTO x VALUES (1); INSERT INTO main.t VALUES (9); COMMIT");
  /* The plain file first. */
  sqlite3 *first = NULL;
  assert_int_equal(sqlite3_open_v2(plain, &first, SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI, "unix"), SQLITE_OK);
  snprintf(sql, sizeof sql, "ATTACH 'file:%s?vfs=balsa' AS b", node.path);
  assert_int_equal(run(first, sql), SQLITE_OK);
  assert_int_equal(run(first, "BEGIN; INSERT INTO b.t VALUES (1)"), SQLITE_ERROR);
  run(first, "ROLLBACK");
  assert_int_equal(run(first, "INSERT INTO b.t SELECT a FROM main.t"), SQLITE_OK);
  sqlite3_close(first);
  sqlite3_close(db);
  unlink(plain);
  stand_in_close(&node);
}

static void what_is_attached_by_a_plain_name_is_an_ordinary_file(void **state) {
  (void)state;
  struct stand_in node;
  char sql[512], plain[STAND_IN_PATH_MAX + 16];
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (1), (2)");
  snprintf(plain, sizeof plain, "%s-plain.db", node.path);
  snprintf(sql, sizeof sql,
           "ATTACH '%s' AS p; CREATE TABLE p.u AS SELECT * FROM main.t; PRAGMA p.journal_mode=WAL; INSERT INTO p.u "
           "VALUES (3)",
           plain);
  must(db, sql);
  assert_int_equal(ask(db, "SELECT sum(a) FROM p.u"), 6);
  must(db, "DETACH p"); /* checkpoints, and deletes its WAL */
  snprintf(sql, sizeof sql, "%s-wal", plain);
  assert_int_not_equal(access(sql, F_OK), 0);
  unlink(plain);
  snprintf(sql, sizeof sql, "VACUUM INTO '%s'", plain);
  must(db, sql);
  sqlite3 *copy = NULL;
  assert_int_equal(sqlite3_open_v2(plain, &copy, SQLITE_OPEN_READONLY, "unix"), SQLITE_OK);
  assert_int_equal(ask(copy, "SELECT sum(a) FROM t"), 3);
  sqlite3_close(copy);
  unlink(plain);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void a_connection_that_names_only_the_vfs_opens_a_replicated_database(void **state) {
  (void)state;
  struct stand_in node;
  sqlite3 *db = NULL;
  stand_in_open(&node, 8192, 0, LONG_MS);
  assert_int_equal(sqlite3_open_v2(node.path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, VFS_NAME), SQLITE_OK);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
  assert_int_equal(node.last, 2);
  assert_int_equal(ask(db, "PRAGMA page_size"), 8192);
  sqlite3_close(db);
  /* Refused by the host: there is no such node. */
  char other[STAND_IN_PATH_MAX + 8];
  snprintf(other, sizeof other, "%s.other", node.path);
  assert_int_equal(sqlite3_open_v2(other, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, VFS_NAME), SQLITE_OK);
  assert_int_equal(run(db, "CREATE TABLE t(a)"), SQLITE_CANTOPEN);
  sqlite3_close(db);
  unlink(other);
  stand_in_close(&node);
}

static void other_journal_and_locking_modes_are_refused_with_a_sentence(void **state) {
  (void)state;
  struct stand_in node;
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a)");
  assert_int_equal(run(db, "PRAGMA journal_mode=DELETE"), SQLITE_ERROR);
  assert_non_null(strstr(sqlite3_errmsg(db), "WAL"));
  assert_int_equal(run(db, "PRAGMA locking_mode=EXCLUSIVE"), SQLITE_ERROR);
  assert_int_equal(run(db, "PRAGMA balsa_timeout=abc"), SQLITE_ERROR);
  assert_int_equal(ask(db, "PRAGMA balsa_timeout"), LONG_MS);
  must(db, "PRAGMA balsa_strict=on");
  must(db, "INSERT INTO t VALUES (1)");
  assert_int_equal(run(db, "PRAGMA wal_checkpoint(TRUNCATE)"), SQLITE_OK); /* busy = 1 in its row */
  sqlite3_close(db);
  stand_in_close(&node);
}

/* One random statement or transaction; the same seed gives the same SQL. */
static void random_write(sqlite3 *db, unsigned *seed) {
  char sql[256];
  unsigned r = (unsigned)rand_r(seed);
  unsigned k = (unsigned)rand_r(seed) % 400;
  switch (r % 12) {
  case 0: snprintf(sql, sizeof sql, "DELETE FROM t WHERE a %% 7 = %u", k % 7); break;
  case 1: snprintf(sql, sizeof sql, "UPDATE t SET b = randomblob(%u) WHERE a < %u", k, k); break;
  case 2: snprintf(sql, sizeof sql, "VACUUM"); break;
  case 3:
    snprintf(sql, sizeof sql,
             "BEGIN; INSERT INTO t(b) VALUES (randomblob(%u)); SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; COMMIT",
             k * 10);
    break;
  case 4: snprintf(sql, sizeof sql, "BEGIN; DELETE FROM t WHERE a < %u; ROLLBACK", k); break;
  case 5: snprintf(sql, sizeof sql, "PRAGMA incremental_vacuum(%u)", k % 9); break;
  case 6: snprintf(sql, sizeof sql, "CREATE TABLE IF NOT EXISTS u%u AS SELECT * FROM t LIMIT 20", k % 5); break;
  case 7: snprintf(sql, sizeof sql, "DROP TABLE IF EXISTS u%u", k % 5); break;
  default: snprintf(sql, sizeof sql, "INSERT INTO t(b) VALUES (randomblob(%u)), (hex(randomblob(%u)))", k * 5, k);
  }
  must(db, sql);
}

static void random_histories_are_equal_on_a_follower_and_after_redo(void **state) {
  (void)state;
  static const uint32_t page_sizes[] = {512, 1024, 4096, 8192, 65536};
  for (unsigned seed = 1; seed <= 15; seed++) {
    struct stand_in leader, follower;
    char text[VFS_TEXT_MAX];
    unsigned random = seed;
    uint32_t page_size = page_sizes[seed % 5];
    stand_in_open(&leader, page_size, seed % 3, LONG_MS);
    stand_in_open(&follower, page_size, seed % 3, LONG_MS);
    sqlite3 *db = stand_in_connect(&leader);
    must(db, "PRAGMA cache_size=10; CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX i ON t(b)");
    for (int i = 0; i < 60; i++) {
      random_write(db, &random);
      if (rand_r(&random) % 8 == 0) vfs_checkpoint(leader.database, text);
      if (rand_r(&random) % 5 == 0) stand_in_follow(&follower, &leader);
      if (rand_r(&random) % 16 == 0) vfs_checkpoint(follower.database, text);
      if (rand_r(&random) % 20 == 0) {
        stand_in_kill(&follower);
        stand_in_restart(&follower);
      }
      if (rand_r(&random) % 20 == 0) {
        sqlite3_close(db);
        stand_in_kill(&leader);
        stand_in_restart(&leader);
        stand_in_lead(&leader);
        db = stand_in_connect(&leader);
        must(db, "PRAGMA cache_size=10");
      }
    }
    stand_in_follow(&follower, &leader);
    assert_replicas_equal(&leader, &follower);
    sqlite3 *there = stand_in_connect(&follower);
    assert_int_equal(ask_text_ok(there, "PRAGMA integrity_check"), 1);
    assert_int_equal(ask(there, "SELECT count(*) FROM t"), ask(db, "SELECT count(*) FROM t"));
    sqlite3_close(there);
    sqlite3_close(db);
    stand_in_close(&leader);
    stand_in_close(&follower);
  }
}

static void the_wal_index_stays_small_when_sqlite_restarts_a_large_wal(void **state) {
  (void)state;
  struct stand_in node;
  struct stat status;
  char text[VFS_TEXT_MAX], path[STAND_IN_PATH_MAX + 8];
  stand_in_open(&node, 512, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  sqlite3 *reader = stand_in_connect(&node);
  const char *fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000) INSERT INTO t "
                     "SELECT randomblob(450) FROM n";
  must(db, "PRAGMA cache_size=10; CREATE TABLE t(a)");
  must(db, fill);
  must(reader, "BEGIN");
  ask(reader, "SELECT count(*) FROM t");
  assert_int_equal(vfs_checkpoint(node.database, text),
                   VFS_BUSY); /* all is in the file, but the reader keeps the WAL */
  must(reader, "COMMIT");
  must(db, fill); /* starts the WAL again by itself */
  snprintf(path, sizeof path, "%s-shm", node.path);
  assert_int_equal(stat(path, &status), 0);
  assert_true(status.st_size < 1 << 20);
  must(db, fill);
  assert_int_equal(ask(reader, "SELECT count(*) FROM t"), 36000);
  sqlite3_close(reader);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void a_token_stays_until_another_transaction_is_sent_or_lost(void **state) {
  (void)state;
  struct stand_in node;
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES (1)");
  struct vfs_connection *connection = vfs_connection_find(db, NULL);
  uint64_t index = vfs_connection_last_commit(connection).index;
  assert_int_equal(index, node.last);
  must(db, "BEGIN; INSERT INTO t VALUES (2); ROLLBACK");
  assert_int_equal(run(db, "INSERT INTO t VALUES (1)"), SQLITE_CONSTRAINT_UNIQUE);
  must(db, "BEGIN IMMEDIATE; COMMIT");
  assert_int_equal(vfs_connection_last_commit(connection).index, index);
  node.refuses = true;
  assert_int_equal(run(db, "INSERT INTO t VALUES (3)"), SQLITE_BUSY_SNAPSHOT);
  assert_int_equal(vfs_connection_last_commit(connection).index, 0);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void a_large_transaction_goes_in_parts(void **state) {
  (void)state;
  struct stand_in leader, follower;
  stand_in_open(&leader, 4096, 0, LONG_MS);
  stand_in_open(&follower, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&leader);
  must(db, "CREATE TABLE t(a, b)");
  uint64_t before = leader.last;
  must(db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000) "
           "INSERT INTO t SELECT i, randomblob(1000) FROM n");
  assert_true(leader.last - before > 4);
  stand_in_follow(&follower, &leader);
  assert_replicas_equal(&leader, &follower);
  stand_in_kill(&follower);
  stand_in_restart(&follower);
  assert_replicas_equal(&leader, &follower);
  sqlite3_close(db);
  stand_in_close(&leader);
  stand_in_close(&follower);
}

static void a_pause_waits_for_the_open_transaction_and_holds_the_next_one(void **state) {
  (void)state;
  struct stand_in node;
  struct writer writer = {0};
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a)");
  must(db, "BEGIN IMMEDIATE; INSERT INTO t VALUES (1)");
  assert_int_equal(vfs_pause(node.database, os_now(os_real()) + 10 * OS_MS), VFS_BUSY);
  must(db, "COMMIT");
  assert_int_equal(vfs_pause(node.database, OS_FOREVER), VFS_OK);
  writer_start(&writer, &node, "INSERT INTO t VALUES (2)");
  stand_in_pause(20); /* it has every chance to get past */
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 1);
  vfs_resume(node.database);
  assert_int_equal(writer_join(&writer), SQLITE_OK);
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 2);
  sqlite3_close(writer.db);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void a_stop_between_two_parts_leaves_an_empty_wal(void **state) {
  (void)state;
  struct stand_in leader, follower;
  struct stat status;
  char path[STAND_IN_PATH_MAX + 8];
  stand_in_open(&leader, 4096, 0, LONG_MS);
  stand_in_open(&follower, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&leader);
  must(db, "CREATE TABLE t(a, b); INSERT INTO t VALUES (0, 0)");
  must(db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000) "
           "INSERT INTO t SELECT i, randomblob(1000) FROM n");
  uint64_t last = leader.commit_index;
  leader.commit_index -= 2;
  stand_in_follow(&follower, &leader);
  vfs_database_stop(follower.database, os_now(os_real()) + 2 * OS_SECOND);
  snprintf(path, sizeof path, "%s-wal", follower.path);
  assert_int_equal(stat(path, &status), 0);
  assert_int_equal(status.st_size, 0);
  stand_in_kill(&follower);
  sqlite3 *plain = NULL;
  assert_int_equal(sqlite3_open_v2(follower.path, &plain, SQLITE_OPEN_READONLY, "unix"), SQLITE_OK);
  assert_int_equal(ask(plain, "SELECT count(*) FROM t"), 1);
  sqlite3_close(plain);
  stand_in_copy_next(&follower, &leader);
  stand_in_copy_next(&follower, &leader);
  leader.commit_index = follower.commit_index = last;
  stand_in_restart(&follower);
  assert_replicas_equal(&leader, &follower);
  sqlite3_close(db);
  stand_in_close(&leader);
  stand_in_close(&follower);
}

static void a_file_that_a_plain_program_changed_is_made_again_from_the_log(void **state) {
  (void)state;
  struct stand_in node;
  struct writer writer = {0};
  struct vfs_status before, after;
  stand_in_open(&node, 4096, 0, WAIT_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
  vfs_get_status(node.database, &before);
  stand_in_hold(&node);
  writer_start(&writer, &node, "INSERT INTO t VALUES (2)");
  assert_int_equal(writer_join(&writer), VFS_SQLITE_UNKNOWN);
  sqlite3_close(writer.db);
  sqlite3_close(db);
  stand_in_kill(&node);
  node.last = node.commit_index; /* the others never got it */
  sqlite3 *plain = NULL;
  assert_int_equal(sqlite3_open_v2(node.path, &plain, SQLITE_OPEN_READWRITE, "unix"), SQLITE_OK);
  assert_int_equal(ask(plain, "SELECT count(*) FROM t"), 2); /* recovers the WAL */
  sqlite3_close(plain);                                      /* and checkpoints what was doomed */
  stand_in_restart(&node);
  vfs_get_status(node.database, &after);
  assert_true(before.checksum == after.checksum);
  db = stand_in_connect(&node);
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 1);
  sqlite3_close(db);
  stand_in_close(&node);
}

/* The pages of a view, as a snapshot has them. */
struct view_pages {
  struct vfs_view *view;
  uint32_t next, fails_at;
  int error; /* then */
};

static int next_page(void *ctx, void *page, char *text) {
  struct view_pages *pages = ctx;
  pages->next++;
  if (pages->next == pages->fails_at) {
    snprintf(text, VFS_TEXT_MAX, "no page %u", pages->next);
    return pages->error;
  }
  return vfs_view_read(pages->view, pages->next, 1, page);
}

static void open_source(struct stand_in *node, struct vfs_source *source, struct view_pages *pages) {
  char text[VFS_TEXT_MAX] = "";
  *pages = (struct view_pages){0};
  *source = (struct vfs_source){.next = next_page, .ctx = pages};
  int error = vfs_view_open(node->database, os_now(os_real()) + OS_SECOND, &pages->view, &source->info, text);
  if (error) fail_msg("%d %s", error, text);
}

static void a_view_keeps_its_state_while_writers_and_checkpoints_go_on(void **state) {
  (void)state;
  struct stand_in leader, follower;
  struct vfs_source source;
  struct view_pages pages;
  char text[VFS_TEXT_MAX] = "";
  for (int has_checkpoint = 0; has_checkpoint < 2; has_checkpoint++) {
    stand_in_open(&leader, 1024, 0, LONG_MS);
    stand_in_open(&follower, 1024, 0, LONG_MS);
    sqlite3 *db = stand_in_connect(&leader);
    must(db, "CREATE TABLE t(a, b); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
             "INSERT INTO t SELECT i, randomblob(100) FROM n; DELETE FROM t WHERE a % 3 = 0");
    if (has_checkpoint) assert_int_equal(vfs_checkpoint(leader.database, text), VFS_OK);
    open_source(&leader, &source, &pages);
    uint64_t index = source.info.index;
    must(db, "DELETE FROM t WHERE a > 100; VACUUM; INSERT INTO t SELECT a, randomblob(2000) FROM t");
    vfs_checkpoint(leader.database, text); /* gets no further than the view, if at all */
    assert_int_equal(vfs_install(follower.database, &source, text), VFS_OK);
    vfs_view_close(pages.view);
    follower.last = follower.commit_index = index;
    sqlite3 *there = stand_in_connect(&follower);
    assert_int_equal(ask(there, "SELECT count(*) FROM t"), 1334);
    assert_int_equal(ask_text_ok(there, "PRAGMA integrity_check"), 1);
    stand_in_follow(&follower, &leader); /* the log goes on from there */
    assert_replicas_equal(&leader, &follower);
    assert_int_equal(vfs_checkpoint(leader.database, text), VFS_OK);
    sqlite3_close(there);
    sqlite3_close(db);
    stand_in_close(&leader);
    stand_in_close(&follower);
  }
}

/* A snapshot of what is lost later would bring it back. */
static void a_view_shows_nothing_that_is_not_committed(void **state) {
  (void)state;
  struct stand_in node;
  struct writer writer = {0};
  struct vfs_status status;
  struct vfs_source source;
  struct view_pages pages;
  stand_in_open(&node, 1024, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
  vfs_get_status(node.database, &status);
  stand_in_hold(&node);
  writer_start(&writer, &node, "INSERT INTO t VALUES (2)");
  stand_in_await_waiters(&node, 1);
  open_source(&node, &source, &pages);
  assert_true(source.info.index == status.index && source.info.index == node.commit_index);
  assert_true(source.info.checksum == status.checksum);
  uint64_t checksum = 0;
  uint8_t page[1024];
  char text[VFS_TEXT_MAX] = "";
  for (uint32_t i = 1; i <= source.info.pages; i++) {
    assert_int_equal(source.next(source.ctx, page, text), SQLITE_OK);
    checksum ^= vfs_page_hash(i, page, sizeof page);
  }
  assert_true(checksum == status.checksum);
  vfs_view_close(pages.view);
  stand_in_commit_all(&node);
  assert_int_equal(writer_join(&writer), SQLITE_OK);
  sqlite3_close(writer.db);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void an_install_that_fails_changes_nothing_and_one_over_other_content_leaves_the_same(void **state) {
  (void)state;
  struct stand_in leader, follower;
  struct vfs_source source;
  struct view_pages pages;
  struct vfs_status before, after;
  char text[VFS_TEXT_MAX] = "";
  stand_in_open(&leader, 4096, 0, LONG_MS);
  stand_in_open(&follower, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&leader);
  must(db, "CREATE TABLE t(a, b); INSERT INTO t SELECT value, randomblob(3000) FROM json_each('[1,2,3,4,5,6,7,8,9]')");
  stand_in_follow(&follower, &leader);
  must(db, "DELETE FROM t WHERE a < 6; VACUUM; CREATE TABLE u(x); INSERT INTO u VALUES (1)");
  sqlite3 *there = stand_in_connect(&follower);
  must(there, "BEGIN");
  assert_int_equal(ask(there, "SELECT count(*) FROM t"), 9);
  vfs_get_status(follower.database, &before);
  const int errors[] = {VFS_IO, VFS_NO_MEMORY, VFS_NO_SPACE, VFS_STOPPED, VFS_DAMAGED}; /* each is given on as it is */
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
    open_source(&leader, &source, &pages);
    pages.fails_at = 4;
    pages.error = errors[i];
    assert_int_equal(vfs_install(follower.database, &source, text), errors[i]);
    assert_string_equal(text, "no page 4");
    vfs_view_close(pages.view);
    vfs_get_status(follower.database, &after);
    assert_true(before.checksum == after.checksum && before.index == after.index);
  }
  open_source(&leader, &source, &pages);
  source.info.checksum++;
  assert_int_equal(vfs_install(follower.database, &source, text), VFS_DIFFERS);
  vfs_view_close(pages.view);
  open_source(&leader, &source, &pages);
  assert_int_equal(vfs_install(follower.database, &source, text), VFS_OK);
  vfs_view_close(pages.view);
  assert_int_equal(ask(there, "SELECT count(*) FROM t"), 9); /* its snapshot is whole */
  must(there, "COMMIT");
  assert_int_equal(ask(there, "SELECT count(*) FROM t"), 4);
  assert_int_equal(ask(there, "SELECT x FROM u"), 1);
  assert_replicas_equal(&leader, &follower);
  sqlite3_close(there);
  sqlite3_close(db);
  stand_in_close(&leader);
  stand_in_close(&follower);
}

static void a_file_is_made_from_a_snapshot_where_the_log_does_not_reach_back(void **state) {
  (void)state;
  struct stand_in leader, follower;
  struct vfs_source source;
  struct view_pages pages;
  stand_in_open(&leader, 4096, 0, LONG_MS);
  stand_in_open(&follower, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&leader);
  must(db, "CREATE TABLE t(a, b); INSERT INTO t SELECT value, randomblob(3000) FROM json_each('[1,2,3,4,5,6,7,8,9]')");
  open_source(&leader, &source, &pages);
  uint64_t index = source.info.index;
  must(db, "INSERT INTO t VALUES (10, 11); DELETE FROM t WHERE a < 3");
  stand_in_kill(&follower);
  for (follower.last = 0; follower.last < leader.last;) stand_in_copy_next(&follower, &leader);
  follower.commit_index = follower.last;
  stand_in_restart_from(&follower, index + 1, &source);
  vfs_view_close(pages.view);
  assert_replicas_equal(&leader, &follower);
  sqlite3 *there = stand_in_connect(&follower);
  assert_int_equal(ask(there, "SELECT count(*) FROM t"), 8);
  assert_int_equal(ask_text_ok(there, "PRAGMA integrity_check"), 1);
  sqlite3_close(there);
  sqlite3_close(db);
  stand_in_close(&leader);
  stand_in_close(&follower);
}

static void a_file_that_power_loss_left_half_rebuilt_is_not_taken_for_ours(void **state) {
  (void)state;
  struct stand_in node;
  const uint8_t zeros[4096] = {0};
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (1); INSERT INTO t VALUES (2); INSERT INTO t VALUES (3)");
  sqlite3_close(db);
  stand_in_kill(&node);
  assert_int_equal(truncate(node.path, 0), 0); /* lost */
  node.unreadable = node.last - 1;
  assert_int_not_equal(stand_in_fail_restart(&node), VFS_OK); /* in the middle of making it again */
  node.unreadable = 0;
  FILE *file = fopen(node.path, "r+b"); /* page 1 was not synced */
  assert_non_null(file);
  assert_int_equal(fwrite(zeros, sizeof zeros, 1, file), 1);
  fclose(file);
  stand_in_restart(&node);
  db = stand_in_connect(&node);
  assert_int_equal(ask(db, "SELECT sum(a) FROM t"), 6);
  assert_int_equal(ask_text_ok(db, "PRAGMA integrity_check"), 1);
  sqlite3_close(db);
  stand_in_close(&node);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_commit_is_read_by_others_and_by_a_follower),
      cmocka_unit_test(a_reader_does_not_see_what_no_majority_has),
      cmocka_unit_test(a_lost_statement_and_a_lost_commit_are_told_apart_and_leave_nothing),
      cmocka_unit_test(a_lost_commit_with_cursors_open_shows_nothing_of_it_afterwards),
      cmocka_unit_test(a_rollback_waits_for_what_it_read),
      cmocka_unit_test(a_failed_statement_waits_for_what_it_read),
      cmocka_unit_test(a_write_transaction_that_changed_nothing_answers_for_what_it_saw),
      cmocka_unit_test(a_statement_that_only_reads_this_database_is_gated),
      cmocka_unit_test(an_open_write_transaction_is_doomed_when_leadership_ends),
      cmocka_unit_test(a_doomed_transaction_leaves_nothing_in_its_cache),
      cmocka_unit_test(a_doomed_transaction_ends_at_its_next_read),
      cmocka_unit_test(lost_is_not_told_before_it_is_taken_back),
      cmocka_unit_test(nobody_writes_on_top_of_a_schema_that_may_be_lost),
      cmocka_unit_test(a_refused_proposal_is_taken_back_at_once),
      cmocka_unit_test(the_busy_handler_and_the_time_out_do_not_multiply),
      cmocka_unit_test(a_stale_upgrade_fails_at_once),
      cmocka_unit_test(a_transaction_over_two_files_is_refused_before_anything_is_committed),
      cmocka_unit_test(what_is_attached_by_a_plain_name_is_an_ordinary_file),
      cmocka_unit_test(a_connection_that_names_only_the_vfs_opens_a_replicated_database),
      cmocka_unit_test(other_journal_and_locking_modes_are_refused_with_a_sentence),
      cmocka_unit_test(random_histories_are_equal_on_a_follower_and_after_redo),
      cmocka_unit_test(the_wal_index_stays_small_when_sqlite_restarts_a_large_wal),
      cmocka_unit_test(a_token_stays_until_another_transaction_is_sent_or_lost),
      cmocka_unit_test(a_large_transaction_goes_in_parts),
      cmocka_unit_test(a_pause_waits_for_the_open_transaction_and_holds_the_next_one),
      cmocka_unit_test(a_stop_between_two_parts_leaves_an_empty_wal),
      cmocka_unit_test(a_file_that_a_plain_program_changed_is_made_again_from_the_log),
      cmocka_unit_test(a_view_keeps_its_state_while_writers_and_checkpoints_go_on),
      cmocka_unit_test(a_view_shows_nothing_that_is_not_committed),
      cmocka_unit_test(an_install_that_fails_changes_nothing_and_one_over_other_content_leaves_the_same),
      cmocka_unit_test(a_file_is_made_from_a_snapshot_where_the_log_does_not_reach_back),
      cmocka_unit_test(a_file_that_power_loss_left_half_rebuilt_is_not_taken_for_ours),
  };
  stand_in_setup();
  return cmocka_run_group_tests_name("vfs", tests, NULL, NULL);
}
