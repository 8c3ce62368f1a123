/* How far the WAL may grow, what keeps it from starting again, and who is told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
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
#include "vfs/database.h"

#define LONG_MS 20000
#define LIMIT 200 /* frames, of the stand-in's WAL */

static void must(sqlite3 *db, const char *sql) {
  if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
    fail_msg("%s: %d %s", sql, sqlite3_extended_errcode(db), sqlite3_errmsg(db));
}

static int take_text(void *out, int n, char **values, char **names) {
  (void)n, (void)names;
  snprintf(out, 1024, "%s", values[0] ? values[0] : "NULL");
  return 0;
}

static const char *ask(sqlite3 *db, const char *sql) {
  static char text[1024];
  text[0] = 0;
  if (sqlite3_exec(db, sql, take_text, text, NULL) != SQLITE_OK)
    fail_msg("%s: %d %s", sql, sqlite3_extended_errcode(db), sqlite3_errmsg(db));
  return text;
}

static uint32_t frames_of(struct stand_in *node) {
  struct vfs_status status;
  vfs_get_status(node->database, &status);
  return status.wal_frames;
}

static const char *held_back(struct stand_in *node) {
  static char text[VFS_TEXT_MAX];
  vfs_describe_checkpoint(node->database, text);
  return text;
}

static int open_stand_in(void **state) {
  struct stand_in *node = calloc(1, sizeof *node);
  stand_in_wal_limit = LIMIT;
  stand_in_open(node, 4096, 0, LONG_MS);
  *state = node;
  return 0;
}

static int close_stand_in(void **state) {
  stand_in_close(*state);
  free(*state);
  stand_in_wal_limit = 0;
  return 0;
}

static void fill_wal(struct stand_in *node, sqlite3 *db) {
  while (frames_of(node) < LIMIT) must(db, "INSERT INTO t VALUES (randomblob(3000))");
}

/* ---- The limit ---- */

static void a_transaction_begins_only_below_the_limit(void **state) {
  struct stand_in *node = *state;
  sqlite3 *db = stand_in_connect(node);
  must(db, "CREATE TABLE t(a)");
  fill_wal(node, db);
  assert_int_equal(node->checkpoints_wanted, 1); /* long before, once */
  node->checkpoints_itself = true;
  for (int i = 0; i < 300; i++) {
    must(db, "INSERT INTO t VALUES (randomblob(3000))");
    assert_in_range(frames_of(node), 1, LIMIT + 10);
  }
  node->checkpoints_itself = false;
  sqlite3_close(db);
}

static void one_transaction_may_be_larger_than_the_limit_and_its_file_is_cut_afterwards(void **state) {
  struct stand_in *node = *state;
  struct stat status;
  char path[STAND_IN_PATH_MAX + 8], text[VFS_TEXT_MAX];
  sqlite3 *db = stand_in_connect(node);
  must(db, "CREATE TABLE t(a); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500) "
           "INSERT INTO t SELECT randomblob(3000) FROM n");
  assert_in_range(frames_of(node), 1500, 2000);
  assert_int_equal(vfs_checkpoint(node->database, text), VFS_OK);
  assert_int_equal(frames_of(node), 0);
  snprintf(path, sizeof path, "%s-wal", node->path);
  assert_int_equal(stat(path, &status), 0);
  assert_int_equal(status.st_size, 32 + LIMIT * (24 + 4096));
  assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
  sqlite3_close(db);
}

/* The leader's own limit is not the matter here: it is kept from it. */
static void insert_below_limit(struct stand_in *node, sqlite3 *db, int rows) {
  char text[VFS_TEXT_MAX];
  for (int i = 0; i < rows; i++) {
    must(db, "INSERT INTO t VALUES (randomblob(3000))");
    if (frames_of(node) >= LIMIT / 2) assert_int_equal(vfs_checkpoint(node->database, text), VFS_OK);
  }
}

static void a_follower_that_applies_without_a_pause_keeps_the_limit_too(void **state) {
  struct stand_in *follower = *state, *leader = calloc(1, sizeof *leader);
  stand_in_wal_limit = 1 << 20; /* its writers wait for nothing */
  stand_in_open(leader, 4096, 0, LONG_MS);
  sqlite3 *db = stand_in_connect(leader);
  must(db, "CREATE TABLE t(a)");
  insert_below_limit(leader, db, 600);
  follower->checkpoints_itself = true;
  for (int round = 0; round < 4; round++) {
    stand_in_follow(follower, leader);
    assert_in_range(frames_of(follower), 0, LIMIT + 10);
    insert_below_limit(leader, db, 100);
  }
  sqlite3_close(db);
  stand_in_close(leader);
  free(leader);
}

/* ---- What holds it back ---- */

static void a_reader_that_stays_is_named_until_it_goes_and_nobody_waits_for_it(void **state) {
  struct stand_in *node = *state;
  char text[VFS_TEXT_MAX];
  sqlite3 *db = stand_in_connect(node), *reader = stand_in_connect(node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
  must(reader, "BEGIN");
  assert_string_equal(ask(reader, "SELECT count(*) FROM t"), "1");
  fill_wal(node, db);
  assert_int_equal(vfs_checkpoint(node->database, text), VFS_BUSY);
  assert_non_null(strstr(held_back(node), "a read transaction in this process"));
  assert_false(vfs_wal_is_full(node->database));
  uint32_t before = frames_of(node);
  must(db, "INSERT INTO t VALUES (2)");
  assert_true(frames_of(node) > before);
  assert_string_equal(ask(reader, "SELECT count(*) FROM t"), "1");
  must(reader, "COMMIT");
  assert_string_equal(held_back(node), "");
  assert_int_equal(vfs_checkpoint(node->database, text), VFS_OK);
  assert_int_equal(frames_of(node), 0);
  sqlite3_close(reader);
  sqlite3_close(db);
}

/* A plain process that reads: this program again. */
static int read_until_told(const char *path) {
  sqlite3 *db = NULL;
  char byte = '!';
  if (sqlite3_open(path, &db) != SQLITE_OK) return 1;
  if (sqlite3_exec(db, "BEGIN; SELECT count(*) FROM t", NULL, NULL, NULL) != SQLITE_OK) return 1;
  if (write(STDOUT_FILENO, &byte, 1) != 1 || read(STDIN_FILENO, &byte, 1) < 0) return 1;
  return sqlite3_close(db) == SQLITE_OK ? 0 : 1;
}

static void a_reader_in_another_process_is_named_with_its_pid(void **state) {
  struct stand_in *node = *state;
  char text[VFS_TEXT_MAX], wanted[64], byte;
  int in[2], out[2], status = 0;
  sqlite3 *db = stand_in_connect(node);
  must(db, "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
  assert_int_equal(pipe(in), 0);
  assert_int_equal(pipe(out), 0);
  pid_t pid = fork();
  if (pid == 0) {
    dup2(in[0], STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    close(in[1]);
    close(out[0]);
    execl("/proc/self/exe", "test_pacing", "--read", node->path, (char *)NULL);
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  assert_int_equal(read(out[0], &byte, 1), 1);
  fill_wal(node, db);
  assert_int_equal(vfs_checkpoint(node->database, text), VFS_BUSY);
  snprintf(wanted, sizeof wanted, "a read transaction of process %d (", (int)pid);
  if (!strstr(held_back(node), wanted)) fail_msg("\"%s\" lacks \"%s\"", held_back(node), wanted);
  close(in[1]);
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_int_equal(status, 0);
  assert_string_equal(held_back(node), "");
  assert_int_equal(vfs_checkpoint(node->database, text), VFS_OK);
  close(out[0]);
  sqlite3_close(db);
}

static void beside_a_snapshot_the_wal_may_grow_to_the_size_of_the_database_before_anybody_waits(void **state) {
  struct stand_in *node = *state;
  struct vfs_view *view;
  struct vfs_state_info info;
  char text[VFS_TEXT_MAX] = "";
  sqlite3 *db = stand_in_connect(node);
  must(db, "CREATE TABLE t(a INTEGER PRIMARY KEY, b); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
           "WHERE i < 400) INSERT INTO t SELECT i, randomblob(3000) FROM n");
  assert_int_equal(vfs_checkpoint(node->database, text), VFS_OK);
  assert_int_equal(vfs_view_open(node->database, os_now(os_real()) + OS_SECOND, &view, &info, text), VFS_OK);
  assert_true(info.pages > 2 * LIMIT);
  while (frames_of(node) < info.pages) {
    assert_false(vfs_wal_is_full(node->database));
    must(db, "UPDATE t SET b = randomblob(3000) WHERE a < 10");
  }
  assert_true(vfs_wal_is_full(node->database));
  must(db, "UPDATE t SET b = 0 WHERE a < 10"); /* slowly */
  assert_int_equal(vfs_checkpoint(node->database, text), VFS_BUSY);
  assert_non_null(strstr(held_back(node), "the snapshot that is being written"));
  vfs_view_close(view);
  assert_string_equal(held_back(node), "");
  assert_int_equal(vfs_checkpoint(node->database, text), VFS_OK);
  assert_int_equal(frames_of(node), 0);
  sqlite3_close(db);
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "--read") == 0) return read_until_told(argv[2]);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_transaction_begins_only_below_the_limit, open_stand_in, close_stand_in),
      cmocka_unit_test_setup_teardown(one_transaction_may_be_larger_than_the_limit_and_its_file_is_cut_afterwards,
                                      open_stand_in, close_stand_in),
      cmocka_unit_test_setup_teardown(a_follower_that_applies_without_a_pause_keeps_the_limit_too, open_stand_in,
                                      close_stand_in),
      cmocka_unit_test_setup_teardown(a_reader_that_stays_is_named_until_it_goes_and_nobody_waits_for_it, open_stand_in,
                                      close_stand_in),
      cmocka_unit_test_setup_teardown(a_reader_in_another_process_is_named_with_its_pid, open_stand_in, close_stand_in),
      cmocka_unit_test_setup_teardown(
          beside_a_snapshot_the_wal_may_grow_to_the_size_of_the_database_before_anybody_waits, open_stand_in,
          close_stand_in),
  };
  stand_in_setup();
  return cmocka_run_group_tests_name("pacing", tests, NULL, NULL);
}
