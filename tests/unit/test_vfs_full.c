/* A full disk under vfs/ alone: what must be possible without a byte more. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "stand_in.h"
#include "tests/fault/narrow_vfs.h"

static void must(sqlite3 *db, const char *sql) {
  if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
    fail_msg("%s: %d %s", sql, sqlite3_extended_errcode(db), sqlite3_errmsg(db));
}

static int64_t ask(sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement = NULL;
  assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &statement, NULL), SQLITE_OK);
  assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
  int64_t answer = sqlite3_column_int64(statement, 0);
  sqlite3_finalize(statement);
  return answer;
}

static int64_t size_of(const struct stand_in *node, const char *suffix) {
  char path[STAND_IN_PATH_MAX + 8];
  struct stat status;
  snprintf(path, sizeof path, "%s%s", node->path, suffix);
  return stat(path, &status) == 0 ? (int64_t)status.st_size : 0;
}

/* Nothing grows any more. */
static void fill_disk(const struct stand_in *node) {
  narrow_set_limit(NARROW_DATABASE, NULL, size_of(node, ""));
  narrow_set_limit(NARROW_WAL, NULL, size_of(node, "-wal"));
  narrow_set_limit(NARROW_SHM, NULL, size_of(node, "-shm"));
}

static void make_room(void) {
  for (int kind = 0; kind < NARROW_KINDS; kind++) narrow_set_limit((enum narrow_kind)kind, NULL, -1);
}

static void what_is_not_committed_is_taken_back_on_a_full_disk(void **state) {
  (void)state;
  struct stand_in node;
  for (unsigned pages = 1; pages <= 300; pages *= 4) {
    char sql[160];
    stand_in_open(&node, 512, 0, 20000);
    sqlite3 *db = stand_in_connect(&node), *writer = stand_in_connect(&node);
    must(db, "CREATE TABLE t(a INTEGER PRIMARY KEY, b); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
             "WHERE i < 400) INSERT INTO t SELECT i, randomblob(400) FROM n");
    stand_in_hold(&node);
    must(writer, "PRAGMA balsa_timeout = 1; PRAGMA cache_size = 5");
    for (int i = 0; i < 5; i++) { /* speculative ones, on top of each other; the large ones spill */
      snprintf(sql, sizeof sql, "UPDATE t SET b = randomblob(400) WHERE a <= %u", pages);
      sqlite3_exec(writer, sql, NULL, NULL, NULL);
      assert_int_equal(sqlite3_extended_errcode(writer), VFS_SQLITE_UNKNOWN);
    }
    fill_disk(&node);
    int64_t before = ask(db, "SELECT 1");
    stand_in_step_down(&node);
    assert_int_equal(before, 1);
    assert_int_equal(ask(db, "SELECT count(*) FROM t"), 400);
    struct vfs_status status;
    vfs_get_status(node.database, &status);
    assert_true(status.serves_reads);
    make_room();
    stand_in_lead(&node);
    must(db, "INSERT INTO t VALUES (1000, 1)");
    assert_int_equal(ask(db, "SELECT count(*) FROM t"), 401);
    sqlite3_close(writer);
    sqlite3_close(db);
    stand_in_close(&node);
  }
}

static void a_redo_needs_no_more_room_than_the_wal_had(void **state) {
  (void)state;
  struct stand_in node;
  struct vfs_status before, after;
  stand_in_open(&node, 4096, 0, 20000);
  sqlite3 *db = stand_in_connect(&node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (randomblob(500000)), (randomblob(300000))");
  vfs_get_status(node.database, &before);
  sqlite3_close(db);
  stand_in_kill(&node);
  stand_in_restart(&node);
  vfs_get_status(node.database, &after);
  assert_true(before.checksum == after.checksum && before.index == after.index);
  stand_in_close(&node);
}

/* A follower that was stopped in order, behind what its log has. */
static void a_redo_that_found_no_room_after_a_stop_is_no_change_from_outside(void **state) {
  (void)state;
  struct stand_in leader, node;
  struct vfs_status status;
  stand_in_open(&leader, 4096, 0, 20000);
  stand_in_open(&node, 4096, 0, 20000);
  sqlite3 *db = stand_in_connect(&leader);
  must(db, "CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (1, randomblob(300000))");
  stand_in_follow(&node, &leader);
  vfs_database_stop(node.database, os_now(os_real()) + 20 * OS_SECOND);
  stand_in_kill(&node);
  must(db, "UPDATE t SET b = randomblob(290000); INSERT INTO t VALUES (2, randomblob(250000))");
  while (node.last < leader.last) stand_in_copy_next(&node, &leader);
  node.commit_index = node.last;
  fill_disk(&node);
  assert_int_equal(stand_in_fail_restart(&node), VFS_NO_SPACE);
  make_room();
  stand_in_restart(&node);
  vfs_get_status(node.database, &status);
  assert_string_equal(status.notice, "");
  assert_int_equal(size_of(&node, ".changed-1"), 0);
  sqlite3 *reader = stand_in_connect(&node);
  assert_int_equal(ask(reader, "SELECT sum(length(b)) FROM t"), 540000);
  sqlite3_close(reader);
  sqlite3_close(db);
  stand_in_close(&node);
  stand_in_close(&leader);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_is_not_committed_is_taken_back_on_a_full_disk),
      cmocka_unit_test(a_redo_needs_no_more_room_than_the_wal_had),
      cmocka_unit_test(a_redo_that_found_no_room_after_a_stop_is_no_change_from_outside),
  };
  stand_in_base = narrow_vfs();
  stand_in_setup();
  return cmocka_run_group_tests_name("full disk under vfs", tests, NULL, NULL);
}
