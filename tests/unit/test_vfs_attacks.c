/*
** Attacks on vfs/: sequences of events that looked as if they could break a promise.
*/
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "stand_in.h"

#define LONG_MS 20000

static int run(sqlite3 *db, const char *sql) {
  int code = sqlite3_exec(db, sql, NULL, NULL, NULL);
  return code == SQLITE_OK ? code : sqlite3_extended_errcode(db);
}

static void must(sqlite3 *db, const char *sql) {
  int code = run(db, sql);
  if (code == SQLITE_OK) return;
  struct vfs_connection *connection = vfs_connection_find(db, NULL);
  fail_msg("%s: %d %s (%s)", sql, code, sqlite3_errmsg(db), connection ? vfs_connection_error(connection) : "");
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

static sqlite3_stmt *prepare(sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement = NULL;
  if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) != SQLITE_OK) fail_msg("%s: %s", sql, sqlite3_errmsg(db));
  return statement;
}

struct writer {
  pthread_t thread;
  sqlite3 *db;
  const char *sql;
  int code;
};

static void *writer_run(void *argument) {
  struct writer *writer = argument;
  writer->code = run(writer->db, writer->sql);
  return NULL;
}

/* One commit that waits for a majority. */
static void hold_a_commit(struct writer *writer, struct stand_in *node, const char *sql) {
  writer->db = stand_in_connect(node);
  writer->sql = sql;
  ask(writer->db, "SELECT count(*) FROM sqlite_schema");
  stand_in_hold(node);
  assert_int_equal(pthread_create(&writer->thread, NULL, writer_run, writer), 0);
  stand_in_await_waiters(node, 1);
}

static int writer_end(struct writer *writer) {
  pthread_join(writer->thread, NULL);
  sqlite3_close(writer->db);
  return writer->code;
}

/* ---- A base VFS that calls the test when SQLite writes a temporary file ---- */

static sqlite3_vfs shim_vfs;
static int (*base_temp_write)(sqlite3_file *, const void *, int, sqlite3_int64);
static sqlite3_io_methods temp_methods;
static void (*at_temp_write)(void);

static int temp_write(sqlite3_file *file, const void *bytes, int amount, sqlite3_int64 offset) {
  if (at_temp_write) at_temp_write();
  return base_temp_write(file, bytes, amount, offset);
}

static int shim_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out_flags) {
  sqlite3_vfs *base = vfs->pAppData;
  int code = base->xOpen(base, name, file, flags, out_flags);
  if (code == SQLITE_OK && (flags & SQLITE_OPEN_TEMP_DB)) {
    temp_methods = *file->pMethods;
    base_temp_write = temp_methods.xWrite;
    temp_methods.xWrite = temp_write;
    file->pMethods = &temp_methods;
  }
  return code;
}

static void shim_setup(void) {
  sqlite3_initialize();
  sqlite3_vfs *base = sqlite3_vfs_find(NULL);
  shim_vfs = *base;
  shim_vfs.pNext = NULL;
  shim_vfs.zName = "shim";
  shim_vfs.pAppData = base;
  shim_vfs.xOpen = shim_open;
  sqlite3_vfs_register(&shim_vfs, 1);
}

/* ---- Tests ---- */

static void a_cursor_stays_open_while_its_connection_writes_again_and_again(void **state) {
  (void)state;
  struct stand_in node;
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); CREATE TABLE u(a); INSERT INTO t VALUES (1), (2), (3)");
  sqlite3_stmt *rows = prepare(db, "SELECT a FROM t");
  for (int i = 1; i <= 3; i++) {
    assert_int_equal(sqlite3_step(rows), SQLITE_ROW);
    must(db, "INSERT INTO u VALUES (1)");
  }
  assert_int_equal(sqlite3_step(rows), SQLITE_DONE);
  sqlite3_finalize(rows);
  assert_int_equal(ask(db, "SELECT count(*) FROM u"), 3);
  sqlite3_close(db);
  stand_in_close(&node);
}

static struct stand_in *checkpointed;
static unsigned n_checkpoints;
static void checkpoint_now(void) {
  char text[VFS_TEXT_MAX];
  at_temp_write = NULL;
  n_checkpoints++;
  vfs_checkpoint(checkpointed->database, text);
}

static uint64_t file_checksum(struct stand_in *node, uint32_t page_size) {
  uint8_t page[4096];
  uint64_t checksum = 0;
  FILE *file = fopen(node->path, "rb");
  for (uint32_t number = 1; fread(page, 1, page_size, file) == page_size; number++)
    checksum ^= vfs_page_hash(number, page, page_size);
  fclose(file);
  return checksum;
}

static void a_checkpoint_in_the_middle_of_a_commit_that_restarts_the_wal_takes_nothing_of_it(void **state) {
  (void)state;
  struct stand_in node;
  struct vfs_status status;
  char text[VFS_TEXT_MAX];
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node), *reader = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (zeroblob(20000))");
  /* A reader at the end of the WAL: all of it goes into the file, and it does not begin again. */
  sqlite3_stmt *rows = prepare(reader, "SELECT a FROM t");
  assert_int_equal(sqlite3_step(rows), SQLITE_ROW);
  assert_int_equal(vfs_checkpoint(node.database, text), VFS_BUSY);
  sqlite3_finalize(rows);
  vfs_get_status(node.database, &status);
  assert_true(status.checkpointed == status.index);
  assert_true(file_checksum(&node, 4096) == status.checksum);
  /* Behind the publication of a transaction SQLite writes its temporary database. */
  must(db, "PRAGMA temp_store = FILE; PRAGMA temp.cache_size = 10; CREATE TEMP TABLE x(a);"
           "INSERT INTO x SELECT zeroblob(3000) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
           "WHERE i < 50)"
           " SELECT i FROM n)");
  must(db, "BEGIN; INSERT INTO t VALUES (randomblob(60000)); UPDATE x SET a = randomblob(3000) WHERE rowid > 10");
  checkpointed = &node;
  n_checkpoints = 0;
  node.refuses = true; /* it is lost */
  at_temp_write = checkpoint_now;
  int code = run(db, "COMMIT");
  at_temp_write = NULL;
  node.refuses = false;
  assert_int_equal(n_checkpoints, 1);
  assert_int_equal(code, SQLITE_ABORT_ROLLBACK);
  assert_true(file_checksum(&node, 4096) == status.checksum);
  sqlite3_close(db);
  sqlite3_close(reader);
  stand_in_close(&node);
}

static void a_statement_that_wrote_elsewhere_leaves_no_ticket_behind(void **state) {
  (void)state;
  struct stand_in node;
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node), *other = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (1); CREATE TEMP TABLE x(a)");
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 1);
  must(db, "BEGIN; INSERT INTO x SELECT a FROM t"); /* every page of t is in the cache */
  must(other, "PRAGMA balsa_timeout = 10000");
  must(other, "INSERT INTO t VALUES (2)");
  must(db, "COMMIT");
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 2);
  sqlite3_close(db);
  sqlite3_close(other);
  stand_in_close(&node);
}

static void a_cursor_that_outlives_a_rollback_shows_nothing_speculative(void **state) {
  (void)state;
  struct stand_in node;
  struct writer writer = {0};
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a, b); INSERT INTO t VALUES (1, zeroblob(3000)), (2, zeroblob(3000)), (3, zeroblob(3000)), "
           "(4, zeroblob(3000))");
  must(db, "CREATE TABLE u(a)");
  assert_int_equal(ask(db, "SELECT count(*) FROM u"), 0);
  must(db, "PRAGMA balsa_timeout = 50");
  hold_a_commit(&writer, &node, "UPDATE t SET a = a + 100");
  must(db, "BEGIN IMMEDIATE");
  sqlite3_stmt *rows = prepare(db, "SELECT a FROM t");
  assert_int_equal(sqlite3_step(rows), SQLITE_ROW);
  assert_int_equal(sqlite3_column_int(rows, 0), 101);
  must(db, "ROLLBACK");
  int code;
  while ((code = sqlite3_step(rows)) == SQLITE_ROW) assert_true(sqlite3_column_int(rows, 0) < 100);
  assert_int_not_equal(code, SQLITE_DONE);
  sqlite3_finalize(rows);
  stand_in_commit_all(&node);
  assert_int_equal(writer_end(&writer), SQLITE_OK);
  assert_int_equal(ask(db, "SELECT sum(a) FROM t"), 410);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void a_writer_that_was_refused_shows_nothing_speculative_afterwards(void **state) {
  (void)state;
  struct stand_in node;
  struct writer writer = {0};
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); PRAGMA user_version = 7");
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 0);
  must(db, "PRAGMA balsa_timeout = 50; CREATE TEMP TABLE x(a)");
  hold_a_commit(&writer, &node, "PRAGMA user_version = 8");
  /* Reads page 1 as a writer, then turns out to be a reader, which waits in vain. */
  assert_int_equal(run(db, "INSERT INTO x SELECT a FROM t"), SQLITE_BUSY);
  assert_int_equal(ask(db, "PRAGMA user_version"), -SQLITE_BUSY_TIMEOUT);
  stand_in_commit_all(&node);
  assert_int_equal(writer_end(&writer), SQLITE_OK);
  assert_int_equal(ask(db, "PRAGMA user_version"), 8);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void a_strict_writer_that_was_refused_shows_nothing_speculative_afterwards(void **state) {
  (void)state;
  struct stand_in node;
  struct writer writer = {0};
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); PRAGMA user_version = 7");
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 0);
  must(db, "PRAGMA balsa_timeout = 50; PRAGMA balsa_strict = on");
  hold_a_commit(&writer, &node, "PRAGMA user_version = 8");
  assert_int_equal(run(db, "BEGIN IMMEDIATE"), SQLITE_BUSY);
  int64_t version = ask(db, "PRAGMA user_version");
  assert_true(version == -SQLITE_BUSY || version == -SQLITE_BUSY_TIMEOUT);
  stand_in_commit_all(&node);
  assert_int_equal(writer_end(&writer), SQLITE_OK);
  assert_int_equal(ask(db, "PRAGMA user_version"), 8);
  sqlite3_close(db);
  stand_in_close(&node);
}

static sqlite3 *connect_shared(struct stand_in *node) {
  char uri[STAND_IN_PATH_MAX + 64];
  sqlite3 *db = NULL;
  snprintf(uri, sizeof uri, "file:%s?vfs=balsa", node->path);
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI | SQLITE_OPEN_SHAREDCACHE;
  assert_int_equal(sqlite3_open_v2(uri, &db, flags, NULL), SQLITE_OK);
  sqlite3_extended_result_codes(db, 1);
  return db;
}

static void two_connections_that_share_a_cache_are_refused(void **state) {
  (void)state;
  struct stand_in node;
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *first = connect_shared(&node);
  must(first, "CREATE TABLE t(a)");
  sqlite3 *second = connect_shared(&node);
  assert_int_not_equal(run(second, "INSERT INTO t VALUES (1)"), SQLITE_OK);
  sqlite3_close(second);
  assert_int_not_equal(run(first, "INSERT INTO t VALUES (2)"), SQLITE_OK);
  sqlite3_close(first);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "INSERT INTO t VALUES (3)");
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 1);
  sqlite3_close(db);
  stand_in_close(&node);
}

static void assert_equal_on_follower(struct stand_in *follower, struct stand_in *node);

/* Waits until the other side of a pipe has written its byte. */
static void await_byte(int fd) {
  char byte;
  if (read(fd, &byte, 1) != 1) abort();
}

static void fork_in_a_transaction(bool child_commits) {
  struct stand_in node, follower;
  int go[2];
  stand_in_open(&node, 4096, 0, LONG_MS);
  stand_in_open(&follower, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); BEGIN IMMEDIATE; INSERT INTO t VALUES (1)");
  assert_int_equal(pipe(go), 0);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    await_byte(go[0]);
    node.refuses = true; /* as a node does in a forked child */
    bool is_refused = !child_commits || run(db, "COMMIT") != SQLITE_OK;
    sqlite3_close_v2(db);
    _exit(is_refused ? 0 : 1);
  }
  must(db, "COMMIT; INSERT INTO t VALUES (2)");
  assert_int_equal(write(go[1], "x", 1), 1);
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  close(go[0]);
  close(go[1]);
  must(db, "INSERT INTO t VALUES (3)");
  sqlite3 *other = stand_in_connect(&node);
  assert_int_equal(ask(other, "SELECT sum(a) FROM t"), 6);
  stand_in_follow(&follower, &node);
  sqlite3_close(db);
  sqlite3_close(other);
  stand_in_close(&follower);
  stand_in_close(&node);
}

static void a_forked_child_that_closes_an_inherited_transaction_harms_nothing(void **state) {
  (void)state;
  fork_in_a_transaction(false);
}

static void a_forked_child_cannot_commit_an_inherited_transaction(void **state) {
  (void)state;
  fork_in_a_transaction(true);
}

/* What SQLite does in the child to the hash tables of the wal-index must not be done to the parent's. */
static void a_forked_child_that_closes_a_spilled_transaction_takes_nothing_from_the_parent(void **state) {
  struct stand_in node, follower;
  (void)state;
  stand_in_open(&node, 4096, 0, LONG_MS);
  stand_in_open(&follower, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a INTEGER PRIMARY KEY, b); PRAGMA cache_size=2; PRAGMA cache_spill=1; BEGIN IMMEDIATE;"
           "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000)"
           "INSERT INTO t SELECT i, randomblob(3000) FROM n");
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    sqlite3_close_v2(db);
    _exit(0);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  assert_int_equal(ask(db, "SELECT sum(length(b)) FROM t"), 27000000);
  must(db, "UPDATE t SET b = NULL WHERE a % 7 = 0; COMMIT");
  assert_int_equal(ask(db, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"), 1);
  assert_equal_on_follower(&follower, &node);
  sqlite3_close(db);
  stand_in_close(&follower);
  stand_in_close(&node);
}

static void stop_in_order(struct stand_in *node) {
  vfs_database_stop(node->database, os_now(os_real()) + OS_SECOND);
  stand_in_kill(node);
}

/* What a plain program does to the file while its node is down; it may be killed at the end. */
static void change_from_outside(struct stand_in *node, const char *sql, bool is_killed) {
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    sqlite3 *plain = NULL;
    sqlite3_open_v2(node->path, &plain, SQLITE_OPEN_READWRITE, "unix");
    if (run(plain, sql) != SQLITE_OK) _exit(1);
    if (!is_killed) sqlite3_close(plain);
    _exit(0);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void assert_kept_aside(struct stand_in *node, const char *sql, int64_t expected) {
  char path[STAND_IN_PATH_MAX + 16];
  sqlite3 *plain = NULL;
  snprintf(path, sizeof path, "%s.changed-1", node->path);
  assert_int_equal(sqlite3_open_v2(path, &plain, SQLITE_OPEN_READWRITE, "unix"), SQLITE_OK);
  assert_int_equal(ask(plain, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"), 1);
  assert_int_equal(ask(plain, sql), expected);
  sqlite3_close(plain);
}

static void change_after_a_stop(bool is_killed) {
  struct stand_in node;
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
  sqlite3_close(db);
  stop_in_order(&node);
  change_from_outside(&node,
                      "INSERT INTO t SELECT randomblob(3000) FROM (WITH RECURSIVE n(i) AS"
                      "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100) SELECT i FROM n)",
                      is_killed);
  stand_in_restart(&node);
  assert_kept_aside(&node, "SELECT count(*) FROM t", 101);
  db = stand_in_connect(&node);
  assert_int_equal(ask(db, "SELECT count(*) FROM t"), 1);
  must(db, "INSERT INTO t VALUES (2)");
  sqlite3_close(db);
  stand_in_close(&node);
}

static void what_a_plain_program_wrote_after_a_stop_is_kept_whole(void **state) {
  (void)state;
  change_after_a_stop(false);
}

static void what_a_killed_plain_program_left_in_the_wal_is_kept_too(void **state) {
  (void)state;
  change_after_a_stop(true);
}

static bool has_copy(struct stand_in *node) {
  char path[STAND_IN_PATH_MAX + 16];
  snprintf(path, sizeof path, "%s.changed-1", node->path);
  return access(path, F_OK) == 0;
}

/* Rows 1 to 3, of which the first is checkpointed: a start has to redo the others. */
static void leave_something_to_redo(struct stand_in *node) {
  char text[VFS_TEXT_MAX];
  stand_in_open(node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
  assert_int_equal(vfs_checkpoint(node->database, text), VFS_OK);
  must(db, "INSERT INTO t VALUES (2); INSERT INTO t VALUES (3)");
  sqlite3_close(db);
}

static void assert_only_ours(struct stand_in *node) {
  sqlite3 *db = stand_in_connect(node);
  assert_int_equal(ask(db, "SELECT group_concat(a, '') FROM t"), 123);
  must(db, "INSERT INTO t VALUES (4)");
  sqlite3_close(db);
  stand_in_close(node);
}

static void change_after_a_kill(const char *sql, bool is_killed, int64_t seen) {
  struct stand_in node;
  struct vfs_status status;
  leave_something_to_redo(&node);
  stand_in_kill(&node);
  change_from_outside(&node, sql, is_killed);
  stand_in_restart(&node);
  vfs_get_status(node.database, &status);
  if (seen) {
    assert_kept_aside(&node, "SELECT group_concat(a, '') FROM t", seen);
    assert_non_null(strstr(status.notice, "holds what the log does not"));
    assert_non_null(strstr(status.notice, "app.db.changed-1"));
  } else {
    assert_false(has_copy(&node));
    assert_string_equal(status.notice, "");
  }
  assert_only_ours(&node);
}

static void what_a_plain_program_checkpointed_after_a_kill_is_kept_as_it_left_it(void **state) {
  (void)state;
  /* In bytes that the redo writes, too: nothing of it may be in the copy. */
  change_after_a_kill("UPDATE t SET a = a + 4", false, 567);
}

static void what_a_plain_program_committed_to_the_wal_after_a_kill_is_kept(void **state) {
  (void)state;
  change_after_a_kill("UPDATE t SET a = a + 4", true, 567);
}

static void a_plain_program_that_only_read_after_a_kill_leaves_nothing_to_keep(void **state) {
  (void)state;
  change_after_a_kill("SELECT * FROM t", false, 0);
  change_after_a_kill("SELECT * FROM t", true, 0);
}

/* It has the files open since the node lived, so it makes no new wal-index. */
static void a_program_that_stayed_and_wrote_after_a_kill_is_noticed(void **state) {
  struct stand_in node;
  int ready[2] = {-1, -1}, go[2] = {-1, -1};
  char byte;
  (void)state;
  leave_something_to_redo(&node);
  assert_true(pipe(ready) == 0 && pipe(go) == 0);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    sqlite3 *plain = NULL;
    sqlite3_open_v2(node.path, &plain, SQLITE_OPEN_READWRITE, "unix");
    if (run(plain, "SELECT * FROM t") != SQLITE_OK || write(ready[1], "x", 1) != 1) _exit(1);
    await_byte(go[0]);
    _exit(run(plain, "UPDATE t SET a = a + 4") == SQLITE_OK ? 0 : 1); /* and dies with it open */
  }
  assert_int_equal(read(ready[0], &byte, 1), 1);
  stand_in_kill(&node);
  assert_int_equal(write(go[1], "x", 1), 1);
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  for (int i = 0; i < 2; i++) {
    close(ready[i]);
    close(go[i]);
  }
  stand_in_restart(&node);
  assert_kept_aside(&node, "SELECT group_concat(a, '') FROM t", 567);
  assert_only_ours(&node);
}

static void half_a_transaction_in_a_journal_does_not_come_into_the_database(void **state) {
  struct stand_in node;
  char path[STAND_IN_PATH_MAX + 32];
  (void)state;
  leave_something_to_redo(&node);
  stop_in_order(&node);
  change_from_outside(&node,
                      "PRAGMA journal_mode=DELETE; PRAGMA cache_size=1; PRAGMA cache_spill=1; BEGIN; CREATE TABLE u(b);"
                      "INSERT INTO u SELECT randomblob(3000) FROM (WITH RECURSIVE n(i) AS"
                      "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100) SELECT i FROM n)",
                      true);
  snprintf(path, sizeof path, "%s-journal", node.path);
  assert_int_equal(access(path, F_OK), 0);
  stand_in_restart(&node);
  assert_kept_aside(&node, "SELECT group_concat(a, '') FROM t", 123); /* with its journal, which is rolled back there */
  assert_only_ours(&node);
}

static void assert_equal_on_follower(struct stand_in *follower, struct stand_in *node) {
  struct vfs_status left, right;
  stand_in_follow(follower, node);
  vfs_get_status(node->database, &left);
  vfs_get_status(follower->database, &right);
  assert_int_equal(left.pages, right.pages);
  assert_true(left.checksum == right.checksum);
}

static void back_up(sqlite3 *from, sqlite3 *to) {
  sqlite3_backup *backup = sqlite3_backup_init(to, "main", from, "main");
  assert_non_null(backup);
  int code = SQLITE_OK;
  for (int i = 0; i < 1000 && code == SQLITE_OK; i++) code = sqlite3_backup_step(backup, 3);
  assert_int_equal(code, SQLITE_DONE);
  assert_int_equal(sqlite3_backup_finish(backup), SQLITE_OK);
}

static void backups_go_into_and_out_of_a_replicated_database(void **state) {
  (void)state;
  struct stand_in node, follower;
  sqlite3 *memory = NULL, *copy = NULL, *empty = NULL;
  stand_in_open(&node, 4096, 0, LONG_MS);
  stand_in_open(&follower, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node), *other = stand_in_connect(&node);
  must(db, "CREATE TABLE old(a); INSERT INTO old VALUES (randomblob(90000))");
  assert_int_equal(sqlite3_open(":memory:", &memory), SQLITE_OK);
  must(memory, "CREATE TABLE t(a); INSERT INTO t VALUES (1), (randomblob(50000))");
  back_up(memory, db);
  assert_int_equal(ask(other, "SELECT count(*) FROM t"), 2);
  must(other, "INSERT INTO t VALUES (3)");
  assert_equal_on_follower(&follower, &node);
  assert_int_equal(sqlite3_open(":memory:", &copy), SQLITE_OK);
  back_up(other, copy);
  assert_int_equal(ask(copy, "SELECT count(*) FROM t"), 3);
  assert_int_equal(sqlite3_open(":memory:", &empty), SQLITE_OK);
  back_up(empty, db);
  assert_int_equal(ask(other, "SELECT count(*) FROM sqlite_schema"), 0);
  must(other, "CREATE TABLE again(a); INSERT INTO again VALUES (1)");
  assert_equal_on_follower(&follower, &node);
  sqlite3_close(memory);
  sqlite3_close(copy);
  sqlite3_close(empty);
  sqlite3_close(db);
  sqlite3_close(other);
  stand_in_close(&follower);
  stand_in_close(&node);
}

static void all_that_sqlite_does_to_pages_is_equal_on_a_follower_and_after_redo(void **state) {
  (void)state;
  /* NOLINTBEGIN(bugprone-suspicious-missing-comma): long statements */
  static const char *const steps[] = {
      "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b); CREATE INDEX ta ON t(a)",
      ("INSERT INTO t(a, b) SELECT random(), randomblob(abs(random()) % 9000) FROM (WITH RECURSIVE n(i) AS (SELECT 1 "
       "UNION ALL SELECT i + 1 FROM n WHERE i < 200) SELECT i FROM n)"),
      "PRAGMA user_version = 9; PRAGMA application_id = 77; PRAGMA cache_size = 8; PRAGMA cache_spill = 4",
      "BEGIN; UPDATE t SET b = randomblob(3000); SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; UPDATE t SET a = a + 1; "
      "SAVEPOINT s2; UPDATE t SET b = zeroblob(5000); RELEASE s2; ROLLBACK TO s; INSERT INTO t(a) VALUES (1); COMMIT",
      "CREATE TRIGGER g AFTER UPDATE ON t BEGIN INSERT INTO t(a, b) VALUES (new.a, old.b); END",
      "UPDATE t SET a = 5 WHERE id % 7 = 0",
      "DELETE FROM t WHERE id % 2 = 0 RETURNING id, b",
      "VACUUM",
      "CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f SELECT hex(b) FROM t WHERE length(b) < 2000",
      "BEGIN; INSERT INTO f(f) VALUES ('optimize'); DELETE FROM f WHERE rowid < 10; COMMIT",
      "CREATE VIRTUAL TABLE r USING rtree(i, x, y); INSERT INTO r SELECT id, id, id + 1 FROM t",
      "DELETE FROM r WHERE i % 3 = 0",
      "PRAGMA auto_vacuum = 2; VACUUM",
      "DELETE FROM t WHERE id % 3 = 0; PRAGMA incremental_vacuum(5)",
      "PRAGMA auto_vacuum = 1; DROP TABLE f; DELETE FROM t WHERE id % 5 = 0",
      "ALTER TABLE t ADD COLUMN c DEFAULT 4; REINDEX; ANALYZE; PRAGMA optimize",
      "ATTACH ':memory:' AS m; CREATE TABLE m.x AS SELECT * FROM t; BEGIN; DELETE FROM m.x; UPDATE t SET c = 5; COMMIT",
      "PRAGMA journal_size_limit = 0; PRAGMA wal_autocheckpoint = 1; PRAGMA synchronous = OFF; INSERT INTO t(a) VALUES "
      "(1)",
      "PRAGMA temp_store = 2; PRAGMA mmap_size = 100000000; PRAGMA page_size = 1024; VACUUM; UPDATE t SET b = NULL",
      "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = sql WHERE name = 't'; PRAGMA writable_schema = "
      "RESET",
      "PRAGMA foreign_keys = ON; CREATE TABLE p(i PRIMARY KEY) WITHOUT ROWID; INSERT INTO p SELECT hex(b) || id FROM t",
      "DROP TABLE p; DROP TABLE r; DELETE FROM t; VACUUM",
  };
  /* NOLINTEND(bugprone-suspicious-missing-comma) */
  struct stand_in node, follower;
  struct vfs_status before, after;
  char text[VFS_TEXT_MAX];
  stand_in_open(&node, 512, 0, LONG_MS);
  stand_in_open(&follower, 512, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
    must(db, steps[i]);
    assert_equal_on_follower(&follower, &node);
    if (i % 3 == 2) assert_int_equal(vfs_checkpoint(node.database, text), VFS_OK);
    sqlite3 *other = stand_in_connect(i % 2 ? &node : &follower);
    assert_int_equal(ask(other, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"), 1);
    sqlite3_close(other);
  }
  /* A blob written piece by piece, and the database emptied by its handle. */
  sqlite3_blob *blob = NULL;
  must(db, "INSERT INTO t(id, b) VALUES (1, zeroblob(20000))");
  assert_int_equal(sqlite3_blob_open(db, "main", "t", "b", 1, 1, &blob), SQLITE_OK);
  assert_int_equal(sqlite3_blob_write(blob, "piece", 5, 9000), SQLITE_OK);
  assert_int_equal(sqlite3_blob_close(blob), SQLITE_OK);
  assert_equal_on_follower(&follower, &node);
  assert_int_equal(sqlite3_db_config(db, SQLITE_DBCONFIG_RESET_DATABASE, 1, 0), SQLITE_OK);
  int code = run(db, "VACUUM");
  assert_int_equal(sqlite3_db_config(db, SQLITE_DBCONFIG_RESET_DATABASE, 0, 0), SQLITE_OK);
  assert_int_equal(code, SQLITE_OK);
  assert_equal_on_follower(&follower, &node);
  sqlite3_close(db);
  vfs_get_status(node.database, &before);
  stand_in_kill(&node);
  stand_in_restart(&node);
  vfs_get_status(node.database, &after);
  assert_true(before.checksum == after.checksum);
  db = stand_in_connect(&node);
  must(db, "CREATE TABLE last(a); INSERT INTO last VALUES (1)");
  assert_equal_on_follower(&follower, &node);
  sqlite3_close(db);
  stand_in_close(&follower);
  stand_in_close(&node);
}

static void parts_that_could_not_be_ended_do_not_stop_later_writers(void **state) {
  (void)state;
  struct stand_in node, follower;
  stand_in_open(&node, 4096, 0, LONG_MS);
  stand_in_open(&follower, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
  node.refuses_after = 2; /* for a while, as with a full disk: neither a third part nor the abort is taken */
  assert_int_equal(run(db, "INSERT INTO t VALUES (randomblob(8000000))"), SQLITE_BUSY_SNAPSHOT);
  must(db, "PRAGMA balsa_timeout = 100");
  assert_int_equal(run(db, "INSERT INTO t VALUES (2)"), SQLITE_BUSY);
  node.refuses = false;
  must(db, "INSERT INTO t VALUES (2)");
  assert_int_equal(ask(db, "SELECT sum(a) FROM t"), 3);
  assert_equal_on_follower(&follower, &node);
  sqlite3_close(db);
  stand_in_kill(&node);
  stand_in_restart(&node);
  db = stand_in_connect(&node);
  assert_int_equal(ask(db, "SELECT sum(a) FROM t"), 3);
  must(db, "INSERT INTO t VALUES (3)");
  assert_equal_on_follower(&follower, &node);
  sqlite3_close(db);
  stand_in_close(&follower);
  stand_in_close(&node);
}

static void a_lost_file_is_made_again_though_the_log_ends_amid_a_transaction(void **state) {
  (void)state;
  struct stand_in node;
  stand_in_open(&node, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
  uint64_t last = node.last;
  node.refuses_after = 2;
  assert_int_equal(run(db, "INSERT INTO t VALUES (randomblob(8000000))"), SQLITE_BUSY_SNAPSHOT);
  assert_true(node.last > last);
  node.refuses = false;
  sqlite3_close(db);
  for (int i = 0; i < 2; i++) { /* and once more, from the marks that this leaves */
    stand_in_kill(&node);
    assert_int_equal(unlink(node.path), 0);
    stand_in_restart(&node);
    db = stand_in_connect(&node);
    assert_int_equal(ask(db, "SELECT sum(a) FROM t"), 1 + i);
    if (i == 0) must(db, "INSERT INTO t VALUES (1)");
    sqlite3_close(db);
  }
  stand_in_close(&node);
}

static void nothing_is_applied_behind_the_last_checkpoint_of_a_stop(void **state) {
  char text[VFS_TEXT_MAX], name[STAND_IN_PATH_MAX + 16];
  struct stat status;
  (void)state;
  struct stand_in node, follower;
  stand_in_open(&node, 4096, 0, LONG_MS);
  stand_in_open(&follower, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
  assert_equal_on_follower(&follower, &node);
  vfs_database_stop(follower.database, os_now(os_real()) + LONG_MS * OS_MS);
  must(db, "INSERT INTO t VALUES (2)");
  assert_int_equal(vfs_apply(follower.database, &node.entries[node.last], text), VFS_BUSY);
  snprintf(name, sizeof name, "%s-wal", follower.path);
  assert_int_equal(stat(name, &status), 0);
  assert_int_equal(status.st_size, 0);
  stand_in_kill(&follower);
  stand_in_restart(&follower);
  snprintf(name, sizeof name, "%s.changed-1", follower.path);
  assert_int_not_equal(access(name, F_OK), 0);
  assert_equal_on_follower(&follower, &node);
  sqlite3_close(db);
  stand_in_close(&follower);
  stand_in_close(&node);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_cursor_stays_open_while_its_connection_writes_again_and_again),
      cmocka_unit_test(a_checkpoint_in_the_middle_of_a_commit_that_restarts_the_wal_takes_nothing_of_it),
      cmocka_unit_test(a_statement_that_wrote_elsewhere_leaves_no_ticket_behind),
      cmocka_unit_test(a_cursor_that_outlives_a_rollback_shows_nothing_speculative),
      cmocka_unit_test(a_writer_that_was_refused_shows_nothing_speculative_afterwards),
      cmocka_unit_test(a_strict_writer_that_was_refused_shows_nothing_speculative_afterwards),
      cmocka_unit_test(two_connections_that_share_a_cache_are_refused),
      cmocka_unit_test(a_forked_child_that_closes_an_inherited_transaction_harms_nothing),
      cmocka_unit_test(a_forked_child_cannot_commit_an_inherited_transaction),
      cmocka_unit_test(a_forked_child_that_closes_a_spilled_transaction_takes_nothing_from_the_parent),
      cmocka_unit_test(what_a_plain_program_wrote_after_a_stop_is_kept_whole),
      cmocka_unit_test(what_a_killed_plain_program_left_in_the_wal_is_kept_too),
      cmocka_unit_test(what_a_plain_program_checkpointed_after_a_kill_is_kept_as_it_left_it),
      cmocka_unit_test(what_a_plain_program_committed_to_the_wal_after_a_kill_is_kept),
      cmocka_unit_test(a_plain_program_that_only_read_after_a_kill_leaves_nothing_to_keep),
      cmocka_unit_test(a_program_that_stayed_and_wrote_after_a_kill_is_noticed),
      cmocka_unit_test(half_a_transaction_in_a_journal_does_not_come_into_the_database),
      cmocka_unit_test(parts_that_could_not_be_ended_do_not_stop_later_writers),
      cmocka_unit_test(a_lost_file_is_made_again_though_the_log_ends_amid_a_transaction),
      cmocka_unit_test(nothing_is_applied_behind_the_last_checkpoint_of_a_stop),
      cmocka_unit_test(backups_go_into_and_out_of_a_replicated_database),
      cmocka_unit_test(all_that_sqlite_does_to_pages_is_equal_on_a_follower_and_after_redo),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  shim_setup();
  stand_in_setup();
  return cmocka_run_group_tests_name("attacks on vfs", tests, NULL, NULL);
}
