/*
** vfs/ownership.c with real processes: a helper is this program again, which does what it is told
** line by line, as a plain SQLite process or as another would-be owner.
*/
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vfs/ownership.h"
#include "vfs/wal.h"

#define LONG_MS 20000 /* never reached where a test passes */
#define LINE_MAX_BYTES 1024

/* ---- The helper's side ---- */

static void answer(int rc, const char *text) {
  printf("%d %s\n", rc, text == NULL ? "" : text);
  fflush(stdout);
}

/* Runs one statement; answers its code and its first value. */
static void answer_sql(sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement = NULL;
  char text[LINE_MAX_BYTES] = "";
  int rc = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);
  while (rc == SQLITE_OK || rc == SQLITE_ROW) {
    rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW && text[0] == 0) {
      snprintf(text, sizeof text, "%s", (const char *)sqlite3_column_text(statement, 0));
    }
  }
  sqlite3_finalize(statement);
  answer(rc == SQLITE_DONE ? SQLITE_OK : rc, text);
}

static void help_plain(const char *path) {
  char line[LINE_MAX_BYTES];
  sqlite3 *db;
  if (sqlite3_open(path, &db) != SQLITE_OK) exit(2);
  answer(0, "ready");
  while (fgets(line, sizeof line, stdin) != NULL) answer_sql(db, line);
  sqlite3_close(db);
}

static void help_take(const char *path, const char *folder) {
  struct vfs_ownership *ownership;
  char text[VFS_OWNERSHIP_TEXT_MAX], line[LINE_MAX_BYTES];
  int rc = vfs_ownership_take(os_real(), path, folder, &ownership, text);
  answer(rc, text);
  while (fgets(line, sizeof line, stdin) != NULL) continue;
  vfs_ownership_release(ownership);
}

/* ---- The test's side ---- */

struct helper {
  pid_t pid;
  FILE *to, *from;
  char text[LINE_MAX_BYTES]; /* of the last answer */
};

static int read_answer(struct helper *helper) {
  char line[LINE_MAX_BYTES], *text;
  assert_non_null(fgets(line, sizeof line, helper->from));
  long rc = strtol(line, &text, 10);
  assert_true(*text == ' ');
  line[strcspn(line, "\n")] = 0;
  snprintf(helper->text, sizeof helper->text, "%s", text + 1);
  return (int)rc;
}

/* Returns its first answer. */
static int start_helper(struct helper *helper, const char *role, const char *path, const char *folder) {
  int to[2], from[2];
  assert_int_equal(pipe2(to, O_CLOEXEC), 0);
  assert_int_equal(pipe2(from, O_CLOEXEC), 0);
  helper->pid = fork();
  assert_true(helper->pid >= 0);
  if (helper->pid == 0) {
    dup2(to[0], STDIN_FILENO);
    dup2(from[1], STDOUT_FILENO);
    execl("/proc/self/exe", "test_ownership", role, path, folder, (char *)NULL);
    _exit(3);
  }
  close(to[0]);
  close(from[1]);
  helper->to = fdopen(to[1], "w");
  helper->from = fdopen(from[0], "r");
  return read_answer(helper);
}

static void tell(struct helper *helper, const char *sql) {
  fprintf(helper->to, "%s\n", sql);
  fflush(helper->to);
}

static int ask(struct helper *helper, const char *sql) {
  tell(helper, sql);
  return read_answer(helper);
}

static void end_helper(struct helper *helper) {
  int status;
  fclose(helper->to);
  assert_int_equal(waitpid(helper->pid, &status, 0), helper->pid);
  fclose(helper->from);
}

static char root[64], path[96], folder[96];

static const char *beside(const char *end) {
  static char name[160];
  snprintf(name, sizeof name, "%s%s", path, end);
  return name;
}

static int make_root(void **state) {
  (void)state;
  snprintf(root, sizeof root, "/tmp/balsa-ownership-XXXXXX");
  if (mkdtemp(root) == NULL) return 1;
  snprintf(path, sizeof path, "%s/app.db", root);
  snprintf(folder, sizeof folder, "%s/app.db-balsa", root);
  return mkdir(folder, 0755);
}

static int remove_root(void **state) {
  static const char *const ends[] = {"", "-wal", "-shm", "-journal", "-link", "-balsa/lock"};
  (void)state;
  for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) unlink(beside(ends[i]));
  rmdir(folder);
  return rmdir(root);
}

/* A database of one table and one row. */
static void make_database(const char *journal_mode) {
  char sql[100];
  sqlite3 *db;
  assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
  snprintf(sql, sizeof sql, "PRAGMA journal_mode=%s; CREATE TABLE t(v); INSERT INTO t VALUES(42)", journal_mode);
  assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static struct vfs_ownership *take(void) {
  char text[VFS_OWNERSHIP_TEXT_MAX];
  struct vfs_ownership *ownership;
  int rc = vfs_ownership_take(os_real(), path, folder, &ownership, text);
  if (rc != 0) fail_msg("%d %s", rc, text);
  return ownership;
}

static bool lock_files(struct vfs_ownership *ownership) {
  char text[VFS_OWNERSHIP_TEXT_MAX];
  bool alone;
  int rc = vfs_ownership_lock_files(ownership, LONG_MS, &alone, text);
  if (rc != 0) fail_msg("%d %s", rc, text);
  assert_string_equal(text, "");
  return alone;
}

static void settle(struct vfs_ownership *ownership) {
  char text[VFS_OWNERSHIP_TEXT_MAX];
  int rc = vfs_ownership_settle(ownership, text);
  if (rc != 0) fail_msg("%d %s", rc, text);
}

static void assert_names(const char *text, pid_t pid) {
  char expected[32];
  snprintf(expected, sizeof expected, "process %d", (int)pid);
  if (strstr(text, expected) == NULL) fail_msg("\"%s\" does not name %s", text, expected);
}

/* What a node does between lock_files and settle: maps the -shm through the base VFS, writes a wal-index. */
struct node {
  sqlite3_file *database, *wal_file;
  const char *name;
  struct vfs_wal *wal;
};

static sqlite3_file *open_base(const char *name, int flags) {
  sqlite3_vfs *base = sqlite3_vfs_find(NULL);
  sqlite3_file *file = calloc(1, (size_t)base->szOsFile);
  assert_non_null(file);
  assert_int_equal(base->xOpen(base, name, file, flags | SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &flags),
                   SQLITE_OK);
  return file;
}

static void start_node(struct node *node, bool alone) {
  const uint32_t salt[2] = {1, 2};
  if (alone) {
    unlink(beside("-wal"));
    unlink(beside("-shm"));
  }
  node->name = sqlite3_create_filename(path, "", beside("-wal"), 0, NULL);
  node->database = open_base(node->name, SQLITE_OPEN_MAIN_DB);
  node->wal_file = open_base(sqlite3_filename_wal(node->name), SQLITE_OPEN_WAL);
  assert_int_equal(vfs_wal_open(node->database, node->wal_file, 4096, &node->wal), SQLITE_OK);
  assert_int_equal(vfs_wal_init(node->wal, 2, salt, alone), SQLITE_OK);
}

static void stop_node(struct node *node) {
  vfs_wal_close(node->wal);
  node->database->pMethods->xShmUnmap(node->database, 0);
  node->database->pMethods->xClose(node->database);
  node->wal_file->pMethods->xClose(node->wal_file);
  free(node->database);
  free(node->wal_file);
  sqlite3_free_filename((char *)node->name);
}

/* A plain process reads, but neither writes nor checkpoints, and leaves the files where they are. */
static void assert_plain_may_only_read(void) {
  struct helper helper;
  assert_int_equal(start_helper(&helper, "plain", path, NULL), 0);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_OK);
  assert_string_equal(helper.text, "42");
  assert_int_equal(ask(&helper, "INSERT INTO t VALUES(1)"), SQLITE_BUSY);
  assert_int_equal(ask(&helper, "PRAGMA wal_checkpoint(TRUNCATE)"), SQLITE_OK);
  assert_string_equal(helper.text, "1"); /* busy */
  assert_int_equal(ask(&helper, "PRAGMA journal_mode=DELETE"), SQLITE_BUSY);
  end_helper(&helper);
  assert_int_equal(access(beside("-wal"), F_OK), 0);
  assert_int_equal(access(beside("-shm"), F_OK), 0);
}

/* ---- Tests ---- */

static void a_second_process_is_refused_and_told_who_has_it(void **state) {
  (void)state;
  struct helper helper;
  struct vfs_ownership *ownership = take();
  assert_int_equal(start_helper(&helper, "take", path, folder), -EBUSY);
  assert_names(helper.text, getpid());
  end_helper(&helper);
  vfs_ownership_release(ownership);
  assert_int_equal(start_helper(&helper, "take", path, folder), 0);
  end_helper(&helper);
}

static void a_killed_owner_leaves_nothing_behind(void **state) {
  (void)state;
  struct helper helper;
  struct vfs_ownership *ownership;
  char text[VFS_OWNERSHIP_TEXT_MAX];
  assert_int_equal(start_helper(&helper, "take", path, folder), 0);
  assert_int_equal(vfs_ownership_take(os_real(), path, folder, &ownership, text), -EBUSY);
  assert_null(ownership);
  assert_names(text, helper.pid);
  assert_int_equal(kill(helper.pid, SIGKILL), 0);
  end_helper(&helper);
  vfs_ownership_release(take());
}

static void the_same_process_is_refused_too(void **state) {
  (void)state;
  char text[VFS_OWNERSHIP_TEXT_MAX];
  struct vfs_ownership *first = take(), *second;
  assert_int_equal(vfs_ownership_take(os_real(), path, folder, &second, text), -EBUSY);
  assert_non_null(strstr(text, "this process itself"));
  vfs_ownership_release(first);
  vfs_ownership_release(NULL);
}

static void alone_it_keeps_everybody_out_until_it_has_settled(void **state) {
  (void)state;
  struct helper helper;
  struct node node;
  make_database("WAL");
  struct vfs_ownership *ownership = take();
  assert_true(lock_files(ownership));
  assert_int_equal(start_helper(&helper, "plain", path, NULL), 0);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_BUSY);
  start_node(&node, true);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_BUSY);
  settle(ownership);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_OK);
  end_helper(&helper);
  assert_plain_may_only_read();
  stop_node(&node);
  vfs_ownership_release(ownership);
  assert_int_equal(start_helper(&helper, "plain", path, NULL), 0);
  assert_int_equal(ask(&helper, "INSERT INTO t VALUES(1)"), SQLITE_OK);
  end_helper(&helper);
}

static void a_missing_database_is_made(void **state) {
  (void)state;
  struct stat status;
  struct vfs_ownership *ownership = take();
  assert_true(lock_files(ownership));
  assert_int_equal(stat(path, &status), 0);
  assert_int_equal(status.st_size, 0);
  vfs_ownership_release(ownership);
}

static void the_locks_outlive_an_open_and_close_of_the_files(void **state) {
  (void)state;
  static const char *const ends[] = {"", "-shm", "-wal"};
  struct node node;
  make_database("WAL");
  struct vfs_ownership *ownership = take();
  assert_true(lock_files(ownership));
  start_node(&node, true);
  settle(ownership);
  for (int i = 0; i < 3; i++) {
    int fd = open(beside(ends[i]), O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    close(fd);
  }
  assert_plain_may_only_read();
  stop_node(&node); /* nor does it matter that nobody in the process has them open */
  assert_plain_may_only_read();
  vfs_ownership_release(ownership);
}

static void a_forked_child_keeps_no_lock(void **state) {
  (void)state;
  struct helper helper;
  int gate[2], status;
  make_database("WAL");
  struct vfs_ownership *ownership = take();
  assert_true(lock_files(ownership));
  assert_int_equal(pipe2(gate, O_CLOEXEC), 0);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    char byte;
    close(gate[1]);
    vfs_ownership_release(ownership); /* harms nobody */
    _exit(read(gate[0], &byte, 1) == 0 ? 0 : 1);
  }
  close(gate[0]);
  assert_int_equal(start_helper(&helper, "take", path, folder), -EBUSY);
  end_helper(&helper);
  vfs_ownership_release(ownership);
  assert_int_equal(start_helper(&helper, "take", path, folder), 0);
  end_helper(&helper);
  assert_int_equal(start_helper(&helper, "plain", path, NULL), 0);
  assert_int_equal(ask(&helper, "INSERT INTO t VALUES(1)"), SQLITE_OK);
  end_helper(&helper);
  close(gate[1]);
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
}

static void an_idle_plain_process_does_not_block_it(void **state) {
  (void)state;
  struct helper helper;
  struct node node;
  make_database("WAL");
  assert_int_equal(start_helper(&helper, "plain", path, NULL), 0);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_OK);
  struct vfs_ownership *ownership = take();
  assert_false(lock_files(ownership));
  start_node(&node, false);
  settle(ownership);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_OK);
  assert_string_equal(helper.text, "42");
  assert_int_equal(ask(&helper, "INSERT INTO t VALUES(1)"), SQLITE_BUSY);
  assert_plain_may_only_read();
  end_helper(&helper);
  assert_plain_may_only_read();
  stop_node(&node);
  vfs_ownership_release(ownership);
}

static void a_reader_in_a_transaction_is_named(void **state) {
  (void)state;
  char text[VFS_OWNERSHIP_TEXT_MAX];
  bool alone;
  struct helper helper;
  make_database("WAL");
  assert_int_equal(start_helper(&helper, "plain", path, NULL), 0);
  assert_int_equal(ask(&helper, "BEGIN"), SQLITE_OK);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_OK);
  struct vfs_ownership *ownership = take();
  assert_int_equal(vfs_ownership_lock_files(ownership, 20, &alone, text), -EBUSY);
  assert_names(text, helper.pid);
  assert_non_null(strstr(text, "read transaction"));
  vfs_ownership_release(ownership);
  assert_int_equal(ask(&helper, "COMMIT"), SQLITE_OK);
  assert_int_equal(ask(&helper, "INSERT INTO t VALUES(1)"), SQLITE_OK); /* all was given back */
  end_helper(&helper);
}

struct waiting {
  struct vfs_ownership *ownership;
  bool alone;
};

static void *wait_for_files(void *argument) {
  struct waiting *waiting = argument;
  waiting->alone = lock_files(waiting->ownership);
  return NULL;
}

static void it_waits_for_a_reader_to_finish(void **state) {
  (void)state;
  struct helper helper;
  struct node node;
  pthread_t thread;
  make_database("WAL");
  assert_int_equal(start_helper(&helper, "plain", path, NULL), 0);
  assert_int_equal(ask(&helper, "BEGIN"), SQLITE_OK);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_OK);
  struct waiting waiting = {.ownership = take()};
  assert_int_equal(pthread_create(&thread, NULL, wait_for_files, &waiting), 0);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_OK);
  assert_int_equal(ask(&helper, "COMMIT"), SQLITE_OK);
  pthread_join(thread, NULL);
  assert_false(waiting.alone);
  start_node(&node, false);
  settle(waiting.ownership);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_OK);
  end_helper(&helper);
  stop_node(&node);
  vfs_ownership_release(waiting.ownership);
}

static void a_reader_in_rollback_mode_is_waited_for(void **state) {
  (void)state;
  char text[VFS_OWNERSHIP_TEXT_MAX];
  bool alone;
  struct helper helper;
  pthread_t thread;
  make_database("DELETE");
  assert_int_equal(start_helper(&helper, "plain", path, NULL), 0);
  assert_int_equal(ask(&helper, "BEGIN"), SQLITE_OK);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_OK);
  struct vfs_ownership *ownership = take();
  assert_int_equal(vfs_ownership_lock_files(ownership, 20, &alone, text), -EBUSY);
  assert_names(text, helper.pid);
  vfs_ownership_release(ownership);
  struct waiting waiting = {.ownership = take()};
  assert_int_equal(pthread_create(&thread, NULL, wait_for_files, &waiting), 0);
  assert_int_equal(ask(&helper, "COMMIT"), SQLITE_OK);
  pthread_join(thread, NULL);
  assert_true(waiting.alone);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_BUSY);
  vfs_ownership_release(waiting.ownership);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_OK);
  end_helper(&helper);
}

static void a_plain_connection_of_the_process_keeps_its_locks(void **state) {
  (void)state;
  struct helper helper;
  struct node node;
  sqlite3 *db;
  make_database("WAL");
  assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
  assert_int_equal(sqlite3_exec(db, "SELECT v FROM t", NULL, NULL, NULL), SQLITE_OK);
  struct vfs_ownership *ownership = take();
  assert_false(lock_files(ownership)); /* its SHARED is as good as another process's */
  start_node(&node, false);
  settle(ownership);
  stop_node(&node);
  vfs_ownership_release(ownership);
  /* A plain process that takes itself for the last one would delete the -wal under our connection. */
  assert_int_equal(start_helper(&helper, "plain", path, NULL), 0);
  assert_int_equal(ask(&helper, "INSERT INTO t VALUES(1)"), SQLITE_OK);
  end_helper(&helper);
  assert_int_equal(access(beside("-wal"), F_OK), 0);
  assert_int_equal(sqlite3_exec(db, "INSERT INTO t VALUES(2)", NULL, NULL, NULL), SQLITE_OK);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  vfs_ownership_release(take()); /* closes what had to stay open */
}

static void hard_links_are_refused(void **state) {
  (void)state;
  char text[VFS_OWNERSHIP_TEXT_MAX];
  struct vfs_ownership *ownership;
  make_database("WAL");
  assert_int_equal(link(path, beside("-link")), 0);
  assert_int_equal(vfs_ownership_take(os_real(), path, folder, &ownership, text), -EMLINK);
  assert_non_null(strstr(text, "hard links"));
}

static void a_missing_folder_is_an_error_with_its_name(void **state) {
  (void)state;
  char text[VFS_OWNERSHIP_TEXT_MAX];
  struct vfs_ownership *ownership;
  assert_int_equal(vfs_ownership_take(os_real(), path, "/nonexistent", &ownership, text), -ENOENT);
  assert_non_null(strstr(text, "/nonexistent/lock"));
}

static void settling_without_a_shm_is_an_error(void **state) {
  (void)state;
  char text[VFS_OWNERSHIP_TEXT_MAX];
  struct helper helper;
  make_database("WAL");
  struct vfs_ownership *ownership = take();
  assert_true(lock_files(ownership));
  assert_int_equal(vfs_ownership_settle(ownership, text), -ENOENT);
  assert_non_null(strstr(text, "app.db-shm"));
  assert_int_equal(start_helper(&helper, "plain", path, NULL), 0);
  assert_int_equal(ask(&helper, "SELECT v FROM t"), SQLITE_BUSY); /* still exclusive */
  end_helper(&helper);
  vfs_ownership_release(ownership);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_root, remove_root)

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      TEST(a_second_process_is_refused_and_told_who_has_it),
      TEST(a_killed_owner_leaves_nothing_behind),
      TEST(the_same_process_is_refused_too),
      TEST(alone_it_keeps_everybody_out_until_it_has_settled),
      TEST(a_missing_database_is_made),
      TEST(the_locks_outlive_an_open_and_close_of_the_files),
      TEST(a_forked_child_keeps_no_lock),
      TEST(an_idle_plain_process_does_not_block_it),
      TEST(a_reader_in_a_transaction_is_named),
      TEST(it_waits_for_a_reader_to_finish),
      TEST(a_reader_in_rollback_mode_is_waited_for),
      TEST(a_plain_connection_of_the_process_keeps_its_locks),
      TEST(hard_links_are_refused),
      TEST(a_missing_folder_is_an_error_with_its_name),
      TEST(settling_without_a_shm_is_an_error),
  };
  if (argc > 2 && strcmp(argv[1], "plain") == 0) return help_plain(argv[2]), 0;
  if (argc > 3 && strcmp(argv[1], "take") == 0) return help_take(argv[2], argv[3]), 0;
  signal(SIGPIPE, SIG_IGN); /* a helper that died is an assertion, not our end */
  return cmocka_run_group_tests_name("ownership", tests, NULL, NULL);
}
