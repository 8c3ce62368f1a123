/* A full disk, for each of SQLite's own files: what is refused, what goes on, and that nothing is left of what was refused. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "ext/node.h"
#include "node_test.h"
#include "tests/fault/narrow_vfs.h"

static int lift_limits(void **state) {
  for (int kind = 0; kind < NARROW_KINDS; kind++) narrow_set_limit((enum narrow_kind)kind, NULL, -1);
  return remove_folder(state);
}
#define FULL_TEST(function) cmocka_unit_test_setup_teardown(function, make_folder, lift_limits)

static long size_of(const char *name) {
  struct stat status;
  return stat(path_of(name), &status) == 0 ? (long)status.st_size : 0;
}

static void run_until(sqlite3 *db, const char *sql, const char *wanted) {
  uint64_t deadline = os_now(os_real()) + TIMEOUT_MS * OS_MS;
  while (strcmp(ask(db, sql), wanted) != 0)
    if (os_now(os_real()) >= deadline) fail_msg("%s is \"%s\"", sql, ask(db, sql));
}

static void write_until_it_works(sqlite3 *db, const char *sql) {
  uint64_t deadline = os_now(os_real()) + TIMEOUT_MS * OS_MS;
  while (run_code(db, sql) != SQLITE_OK)
    if (os_now(os_real()) >= deadline) fail_msg("%s: %s", sql, ask(db, "SELECT balsa_error()"));
}

static void a_wal_without_room_refuses_the_transaction_and_begins_again_by_a_checkpoint(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "");
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(randomblob(100000))");
  narrow_set_limit(NARROW_WAL, NULL, size_of("app.db-wal"));
  const char *large = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) "
                      "INSERT INTO t SELECT randomblob(3000) FROM n";
  assert_int_equal(run_code(db, large), SQLITE_FULL);
  assert_non_null(strstr(ask(db, "SELECT balsa_error()"), "app.db-wal has no room"));
  assert_string_equal(ask(db, "SELECT count(*) FROM t"), "1");
  /* What fits into the WAL that is there is written, one after the other. */
  for (int i = 0; i < 50; i++) write_until_it_works(db, "INSERT INTO t VALUES(randomblob(3000))");
  assert_int_equal(run_code(db, large), SQLITE_FULL);
  narrow_set_limit(NARROW_WAL, NULL, -1);
  run(db, large);
  assert_string_equal(ask(db, "SELECT count(*) FROM t"), "351");
  assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
  stop(db);
}

static void a_wal_index_without_room_refuses_writers_and_lets_readers_go_on(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "");
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
  sqlite3 *reader = open_node("app.db", "");
  run(reader, "BEGIN");
  assert_string_equal(ask(reader, "SELECT count(*) FROM t"), "1");
  narrow_set_limit(NARROW_SHM, NULL, size_of("app.db-shm"));
  int code = SQLITE_OK, n = 1;
  while ((code = run_code(db, "INSERT INTO t VALUES(randomblob(100000))")) == SQLITE_OK) assert_true(n++ < 1000);
  assert_int_equal(code, SQLITE_FULL);
  assert_non_null(strstr(ask(db, "SELECT balsa_error()"), "app.db-shm cannot grow"));
  char rows[16];
  snprintf(rows, sizeof rows, "%d", n);
  assert_string_equal(ask(db, "SELECT count(*) FROM t"), rows);
  narrow_set_limit(NARROW_SHM, NULL, -1);
  run(db, "INSERT INTO t VALUES(2)");
  run(reader, "COMMIT");
  assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
  sqlite3_close(reader);
  stop(db);
}

static void a_database_file_without_room_leaves_it_in_the_wal_and_says_so(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "&wal_limit=100");
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
  narrow_set_limit(NARROW_DATABASE, NULL, size_of("app.db"));
  for (int i = 0; i < 200; i++) run(db, "INSERT INTO t VALUES(randomblob(3000))");
  run_until(db, "SELECT checkpoint LIKE '%; failed: checkpoint of %app.db: a disk is full%' FROM balsa_status", "1");
  assert_string_equal(ask(db, "SELECT count(*) FROM t"), "201");
  assert_string_equal(ask(db, "SELECT state FROM balsa_status"), "ready");
  narrow_set_limit(NARROW_DATABASE, NULL, -1);
  run_until(db, "SELECT checkpoint NOT LIKE '%failed%' AND wal_frames = 0 FROM balsa_status", "1");
  assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
  stop(db);
  db = open_plain("app.db");
  assert_string_equal(ask(db, "SELECT count(*) FROM t"), "201");
  sqlite3_close(db);
}

static void a_follower_that_finds_no_room_for_its_wal_falls_behind_and_catches_up_when_there_is_some(void **state) {
  struct cluster cluster = {0};
  char wal[16], term[32];
  (void)state;
  open_cluster(&cluster);
  int leader = run_on_leader(&cluster, "CREATE TABLE t(a)"), follower = (leader + 1) % 3;
  assert_equal_nodes(&cluster, leader);
  snprintf(term, sizeof term, "%s", ask(cluster.db[leader], "SELECT term FROM balsa_status"));
  snprintf(wal, sizeof wal, "node%d.db", follower + 1);
  narrow_set_limit(NARROW_WAL, wal, 20000);
  narrow_set_limit(NARROW_SHM, wal, 0);
  for (int i = 0; i < 50; i++) run(cluster.db[leader], "INSERT INTO t VALUES(randomblob(3000))");
  run_until(cluster.db[follower], "SELECT state LIKE 'blocked by a full disk: %' FROM balsa_status", "1");
  assert_string_equal(ask(cluster.db[leader], "SELECT count(*) FROM t"), "50");
  assert_string_equal(ask(cluster.db[leader], "SELECT term FROM balsa_status"), term);
  ask(cluster.db[follower], "SELECT count(*) FROM t");
  narrow_set_limit(NARROW_WAL, NULL, -1);
  narrow_set_limit(NARROW_SHM, NULL, -1);
  assert_equal_nodes(&cluster, leader);
  assert_string_equal(ask(cluster.db[follower], "SELECT count(*) FROM t"), "50");
  stop_cluster(&cluster);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      FULL_TEST(a_wal_without_room_refuses_the_transaction_and_begins_again_by_a_checkpoint),
      FULL_TEST(a_wal_index_without_room_refuses_writers_and_lets_readers_go_on),
      FULL_TEST(a_database_file_without_room_leaves_it_in_the_wal_and_says_so),
      FULL_TEST(a_follower_that_finds_no_room_for_its_wal_falls_behind_and_catches_up_when_there_is_some),
  };
  const struct node_machine machine = {.os = os_real(), .base = narrow_vfs()};
  node_use_machine(&machine);
  if (balsa_init() != SQLITE_OK) return 1;
  return cmocka_run_group_tests_name("full disk", tests, NULL, NULL);
}
