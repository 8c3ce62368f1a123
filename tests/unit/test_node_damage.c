/* Files that somebody changed or damaged: while the node was stopped, and in a cluster of three. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "node_test.h"

static const char rows[] = "SELECT group_concat(a, ' ') FROM t";

static sqlite3 *open_app(void) {
  sqlite3 *db = open_node("app.db", "");
  run(db, "DELETE FROM t WHERE false"); /* waits until it may write */
  return db;
}

/* Stopped in order, with rows 1 and 2. */
static void make_app(void) {
  sqlite3 *db = open_node("app.db", "");
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(1); INSERT INTO t VALUES(2)");
  stop(db);
}

static bool is_there(const char *name) {
  return access(path_of(name), F_OK) == 0;
}

/* In a process of its own, that may die with the file open. */
static void change_plainly(const char *name, const char *sql, bool dies) {
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    sqlite3 *db = NULL;
    int code = sqlite3_open_v2(path_of(name), &db, SQLITE_OPEN_READWRITE, "unix");
    if (code == SQLITE_OK) code = sqlite3_exec(db, sql, NULL, NULL, NULL);
    if (!dies) sqlite3_close(db);
    _exit(code == SQLITE_OK ? 0 : 1);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
}

/* ---- A cluster of one, edited while it was stopped ---- */

static void assert_edited(const char *sql, bool dies, const char *expected) {
  make_app();
  sqlite3 *db = open_app();
  uint64_t term = strtoull(ask(db, "SELECT term FROM balsa_status"), NULL, 10);
  stop(db);
  change_plainly("app.db", sql, dies);
  db = open_app();
  /* One for the edit: in the last one somebody else may have proposed at its place. One for the leader. */
  assert_int_equal(strtoull(ask(db, "SELECT term FROM balsa_status"), NULL, 10), term + 2);
  assert_string_equal(ask(db, rows), expected);
  assert_non_null(strstr(ask(db, "SELECT notice FROM balsa_status"), "a transaction of its own"));
  assert_false(is_there("app.db.changed-1"));
  run(db, "INSERT INTO t VALUES(9)");
  char after[64];
  snprintf(after, sizeof after, "%s", ask(db, rows));
  stop(db);
  db = open_app();
  assert_string_equal(ask(db, rows), after);
  assert_string_equal(ask(db, "SELECT notice FROM balsa_status"), "NULL");
  stop(db);
  assert_int_equal(unlink(path_of("app.db")), 0); /* it is in the log */
  db = open_app();
  assert_string_equal(ask(db, rows), after);
  assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
  stop(db);
}

static void what_was_changed_while_the_node_was_stopped_becomes_a_transaction(void **state) {
  (void)state;
  assert_edited("UPDATE t SET a = a + 3", false, "4 5");
}

static void so_does_what_was_left_in_the_wal(void **state) {
  (void)state;
  assert_edited("INSERT INTO t VALUES(3)", true, "1 2 3");
}

static void so_does_what_was_changed_in_another_journal_mode(void **state) {
  (void)state;
  assert_edited("PRAGMA journal_mode=DELETE; INSERT INTO t VALUES(3)", false, "1 2 3");
}

static void half_a_transaction_in_a_journal_is_rolled_back_first(void **state) {
  (void)state;
  assert_edited("PRAGMA journal_mode=DELETE; INSERT INTO t VALUES(3); PRAGMA cache_size=1; BEGIN; CREATE TABLE u(b);"
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)"
                "INSERT INTO u SELECT randomblob(3000) FROM n",
                true, "1 2 3");
}

static void a_large_change_and_one_that_shrinks_the_file_become_transactions(void **state) {
  (void)state;
  make_app();
  change_plainly("app.db",
                 "CREATE TABLE u(b); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)"
                 "INSERT INTO u SELECT randomblob(3000) FROM n",
                 false);
  sqlite3 *db = open_app();
  assert_string_equal(ask(db, "SELECT count(*) FROM u"), "3000");
  stop(db);
  change_plainly("app.db", "DROP TABLE u; VACUUM; INSERT INTO t VALUES(3)", false);
  db = open_app();
  assert_string_equal(ask(db, rows), "1 2 3");
  assert_string_equal(ask(db, "PRAGMA page_count"), "2");
  stop(db);
  assert_int_equal(unlink(path_of("app.db")), 0);
  db = open_app();
  assert_string_equal(ask(db, rows), "1 2 3");
  assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
  stop(db);
}

static void a_backup_put_in_place_of_the_database_becomes_a_transaction(void **state) {
  (void)state;
  make_app();
  copy("app.db", "backup.db");
  sqlite3 *db = open_app();
  run(db, "INSERT INTO t VALUES(3)");
  stop(db);
  assert_int_equal(rename(path_of("backup.db"), path_of("app.db")), 0);
  db = open_app();
  assert_string_equal(ask(db, rows), "1 2");
  assert_non_null(strstr(ask(db, "SELECT notice FROM balsa_status"), "a transaction of its own"));
  stop(db);
}

static void what_is_no_whole_database_any_more_is_kept_aside(void **state) {
  (void)state;
  make_app();
  flip_byte(path_of("app.db"), 4096 + 3); /* the number of cells of a b-tree page */
  sqlite3 *db = open_app();
  assert_string_equal(ask(db, rows), "1 2");
  assert_non_null(strstr(ask(db, "SELECT notice FROM balsa_status"), "app.db.changed-1"));
  stop(db);
  assert_true(is_there("app.db.changed-1"));
  assert_int_equal(truncate(path_of("app.db"), 5000), 0);
  db = open_app();
  assert_string_equal(ask(db, rows), "1 2");
  stop(db);
  assert_true(is_there("app.db.changed-2"));
}

static void another_page_size_is_kept_aside(void **state) {
  (void)state;
  make_app();
  change_plainly("app.db", "PRAGMA journal_mode=DELETE; PRAGMA page_size=1024; VACUUM; INSERT INTO t VALUES(3)", false);
  sqlite3 *db = open_app();
  assert_string_equal(ask(db, rows), "1 2");
  stop(db);
  db = open_plain("app.db.changed-1");
  assert_string_equal(ask(db, rows), "1 2 3");
  sqlite3_close(db);
}

static void a_file_that_was_only_touched_or_copied_is_no_change(void **state) {
  (void)state;
  make_app();
  copy("app.db", "copy.db");
  assert_int_equal(rename(path_of("copy.db"), path_of("app.db")), 0);
  sqlite3 *db = open_app();
  assert_string_equal(ask(db, rows), "1 2");
  assert_string_equal(ask(db, "SELECT notice FROM balsa_status"), "NULL");
  stop(db);
  assert_false(is_there("app.db.changed-1"));
}

/* As a disk does it: nothing about the file tells. */
static void bytes_that_change_without_a_program_are_made_again(void **state) {
  struct stat before;
  (void)state;
  make_app();
  assert_int_equal(stat(path_of("app.db"), &before), 0);
  flip_byte(path_of("app.db"), 2 * 4096 - 2); /* the value of a row: no integrity check would find it */
  const struct timespec times[2] = {before.st_atim, before.st_mtim};
  assert_int_equal(utimensat(AT_FDCWD, path_of("app.db"), times, 0), 0);
  sqlite3 *db = open_app();
  assert_string_equal(ask(db, rows), "1 2");
  assert_non_null(strstr(ask(db, "SELECT notice FROM balsa_status"), "is damaged"));
  stop(db);
}

/* ---- Crashes while a change becomes a transaction ---- */

/* Beneath the nodes: large writes, as only those of the log are, fail when `passes` of them went well. */
#define LARGE_WRITE (256u << 10)
static const struct os_methods *real_methods;
static int passes;

static int failing_write(struct os_file *file, const void *bytes, size_t size, uint64_t offset) {
  if (size >= LARGE_WRITE && passes-- <= 0) return -EIO;
  return real_methods->write(file, bytes, size, offset);
}

static void a_change_that_came_half_into_the_log_begins_anew(void **state) {
  struct os_methods failing = *os_real()->methods;
  (void)state;
  make_app();
  change_plainly("app.db",
                 "CREATE TABLE u(b); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000)"
                 "INSERT INTO u SELECT randomblob(3000) FROM n",
                 false);
  real_methods = os_real()->methods;
  failing.write = failing_write;
  passes = 1;
  os_real()->methods = &failing;
  assert_refused("app.db", "", "app.db");
  os_real()->methods = real_methods;
  assert_true(passes < 0);
  for (int i = 0; i < 2; i++) {
    sqlite3 *db = open_app();
    assert_string_equal(ask(db, rows), "1 2");
    assert_string_equal(ask(db, "SELECT count(*) FROM u"), "6000");
    assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
    stop(db);
    assert_false(is_there("app.db.changed-1"));
    if (i == 0) assert_int_equal(unlink(path_of("app.db")), 0);
  }
}

static void a_change_that_is_in_the_log_already_is_not_taken_twice(void **state) {
  (void)state;
  make_app();
  change_plainly("app.db", "INSERT INTO t VALUES(3)", false);
  copy("app.db-balsa/database", "marks");
  sqlite3 *db = open_app();
  stop(db);
  copy("marks", "app.db-balsa/database"); /* as if the mark had not come to be */
  db = open_app();
  assert_string_equal(ask(db, rows), "1 2 3");
  assert_string_equal(ask(db, "SELECT notice FROM balsa_status"), "NULL");
  stop(db);
  assert_false(is_there("app.db.changed-1"));
}

static void wait_until_equal(struct cluster *cluster, const char *sql) {
  assert_equal_nodes(cluster, run_on_leader(cluster, sql));
}

/* ---- Under the feet of a node that runs ---- */

/* The page of a row's value; the row stays where it is. */
static long find_bytes(const char *name, const char *bytes) {
  FILE *file = fopen(path_of(name), "rb");
  static char content[1 << 20];
  assert_non_null(file);
  size_t size = fread(content, 1, sizeof content, file);
  fclose(file);
  const char *at = memmem(content, size, bytes, strlen(bytes));
  assert_non_null(at);
  return at - content;
}

static void a_page_that_changes_under_a_node_is_neither_shown_nor_built_on(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "");
  run(db,
      "CREATE TABLE t(a INTEGER PRIMARY KEY, b); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE "
      "i < 200) INSERT INTO t SELECT i, 'row ' || i || '.' || hex(zeroblob(500)) FROM n");
  stop(db); /* all is in the file */
  db = open_node("app.db", "");
  flip_byte(path_of("app.db"), find_bytes("app.db", "row 100."));
  sqlite3 *other = open_node("app.db", "");
  assert_string_equal(ask(other, "SELECT substr(b, 1, 6) FROM t WHERE a = 7"), "row 7.");
  assert_int_not_equal(run_code(other, "SELECT b FROM t WHERE a = 100"), SQLITE_OK);
  assert_non_null(strstr(ask(other, "SELECT balsa_error()"), "app.db is damaged at offset"));
  assert_int_not_equal(run_code(other, "UPDATE t SET b = 'new' WHERE a = 100"), SQLITE_OK);
  run(other, "UPDATE t SET b = 'new' WHERE a = 7");
  assert_fails(other, "SELECT balsa_snapshot()", "app.db");
  assert_non_null(strstr(ask(other, "SELECT notice FROM balsa_status"), "app.db is damaged at offset"));
  sqlite3_close(other);
  stop(db);
  db = open_node("app.db", "");
  assert_string_equal(ask(db, "SELECT substr(b, 1, 7) FROM t WHERE a = 100"), "row 100");
  assert_string_equal(ask(db, "SELECT b FROM t WHERE a = 7"), "new");
  assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
  assert_non_null(strstr(ask(db, "SELECT notice FROM balsa_status"), "app.db.changed-1"));
  stop(db);
}

static void a_follower_whose_page_changed_applies_nothing_on_it_and_is_well_after_a_start(void **state) {
  struct cluster cluster = {0};
  (void)state;
  open_cluster(&cluster);
  wait_until_equal(&cluster, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
  wait_until_equal(&cluster,
                   "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) INSERT INTO t "
                   "SELECT i, 'row ' || i || '.' || hex(zeroblob(500)) FROM n");
  stop_cluster(&cluster); /* all is in the files */
  for (int i = 0; i < 3; i++) open_member(&cluster, i);
  int leader = run_on_leader(&cluster, "UPDATE t SET b = 'new' WHERE a = 7"), follower = (leader + 1) % 3;
  assert_equal_nodes(&cluster, leader);
  char name[32];
  snprintf(name, sizeof name, "node%d.db", follower + 1);
  flip_byte(path_of(name), find_bytes(name, "row 100."));
  run_on_leader(&cluster, "UPDATE t SET b = b || '!' WHERE a = 100");
  while (!strstr(ask(cluster.db[follower], "SELECT state FROM balsa_status"), "quarantined")) sqlite3_sleep(1);
  assert_non_null(strstr(ask(cluster.db[follower], "SELECT notice FROM balsa_status"), "is damaged at offset"));
  stop(cluster.db[follower]);
  open_member(&cluster, follower);
  wait_until_equal(&cluster, "UPDATE t SET b = b || '!' WHERE a = 100");
  assert_string_equal(ask(cluster.db[follower], "SELECT substr(b, 1, 7) || substr(b, -3) FROM t WHERE a = 100"),
                      "row 1000!!");
  stop_cluster(&cluster);
}

/* ---- One of three ---- */

static void what_was_changed_on_one_of_three_is_kept_aside(void **state) {
  struct cluster cluster = {0};
  (void)state;
  open_cluster(&cluster);
  wait_until_equal(&cluster, "CREATE TABLE t(a)");
  wait_until_equal(&cluster, "INSERT INTO t VALUES(1)");
  stop(cluster.db[1]);
  cluster.db[1] = NULL;
  change_plainly("node2.db", "INSERT INTO t VALUES(2)", false);
  open_member(&cluster, 1);
  wait_until_equal(&cluster, "INSERT INTO t VALUES(3)");
  assert_string_equal(ask(cluster.db[1], rows), "1 3");
  assert_non_null(strstr(ask(cluster.db[1], "SELECT notice FROM balsa_status"), "node2.db.changed-1"));
  sqlite3 *db = open_plain("node2.db.changed-1");
  assert_string_equal(ask(db, rows), "1 2");
  sqlite3_close(db);
  stop_cluster(&cluster);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(what_was_changed_while_the_node_was_stopped_becomes_a_transaction),
      TEST(so_does_what_was_left_in_the_wal),
      TEST(so_does_what_was_changed_in_another_journal_mode),
      TEST(half_a_transaction_in_a_journal_is_rolled_back_first),
      TEST(a_large_change_and_one_that_shrinks_the_file_become_transactions),
      TEST(a_backup_put_in_place_of_the_database_becomes_a_transaction),
      TEST(what_is_no_whole_database_any_more_is_kept_aside),
      TEST(another_page_size_is_kept_aside),
      TEST(a_file_that_was_only_touched_or_copied_is_no_change),
      TEST(bytes_that_change_without_a_program_are_made_again),
      TEST(a_change_that_came_half_into_the_log_begins_anew),
      TEST(a_change_that_is_in_the_log_already_is_not_taken_twice),
      TEST(a_page_that_changes_under_a_node_is_neither_shown_nor_built_on),
      TEST(a_follower_whose_page_changed_applies_nothing_on_it_and_is_well_after_a_start),
      TEST(what_was_changed_on_one_of_three_is_kept_aside),
  };
  if (balsa_init() != SQLITE_OK) return 1;
  return cmocka_run_group_tests_name("node_damage", tests, NULL, NULL);
}
