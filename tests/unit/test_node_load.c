/* A whole node under a load that never pauses. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "ext/balsa.h"
#include "vfs/vfs.h"

#define LIMIT 1000       /* frames */
#define TIMEOUT_MS 20000 /* far longer than anything here takes */
#define WRITERS 16
#define READERS 2
#define COMMITS 6000

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

struct load {
  char uri[256], wal[256];
  atomic_int left;
  atomic_long peak; /* bytes of the WAL */
  atomic_int errors;
};

static sqlite3 *connect_node(const struct load *load) {
  sqlite3 *db = NULL;
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI;
  if (sqlite3_open_v2(load->uri, &db, flags, NULL) != SQLITE_OK) fail_msg("%s", vfs_open_error());
  sqlite3_busy_timeout(db, TIMEOUT_MS);
  return db;
}

static void *write_on(void *argument) {
  struct load *load = argument;
  struct stat status;
  sqlite3 *db = connect_node(load);
  while (atomic_fetch_sub(&load->left, 1) > 0) {
    if (sqlite3_exec(db, "INSERT INTO t VALUES (random(), randomblob(200))", NULL, NULL, NULL) != SQLITE_OK) {
      fprintf(stderr, "%s\n", sqlite3_errmsg(db));
      atomic_fetch_add(&load->errors, 1);
    }
    long size = stat(load->wal, &status) == 0 ? (long)status.st_size : 0, peak = atomic_load(&load->peak);
    while (size > peak && !atomic_compare_exchange_weak(&load->peak, &peak, size)) continue;
  }
  sqlite3_close(db);
  return NULL;
}

static void *read_on(void *argument) {
  struct load *load = argument;
  sqlite3 *db = connect_node(load);
  while (atomic_load(&load->left) > 0)
    if (sqlite3_exec(db, "SELECT b FROM t WHERE a > random() LIMIT 1", NULL, NULL, NULL) != SQLITE_OK)
      atomic_fetch_add(&load->errors, 1);
  sqlite3_close(db);
  return NULL;
}

static void sixteen_writers_and_readers_that_never_pause_keep_the_wal_bounded(void **state) {
  struct load load = {.left = COMMITS};
  char folder[128], command[160], text[64];
  pthread_t threads[WRITERS + READERS];
  (void)state;
  snprintf(folder, sizeof folder, "%s/balsa-pacing-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
  assert_non_null(mkdtemp(folder));
  snprintf(load.uri, sizeof load.uri, "file:%s/app.db?vfs=balsa&wal_limit=%d", folder, LIMIT);
  snprintf(load.wal, sizeof load.wal, "%s/app.db-wal", folder);
  sqlite3 *db = connect_node(&load);
  must(db, "CREATE TABLE t(a PRIMARY KEY, b) WITHOUT ROWID");
  for (int i = 0; i < WRITERS + READERS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, i < WRITERS ? write_on : read_on, &load), 0);
  for (int i = 0; i < WRITERS + READERS; i++) pthread_join(threads[i], NULL);
  assert_int_equal(load.errors, 0);
  snprintf(text, sizeof text, "%d", COMMITS);
  assert_string_equal(ask(db, "SELECT count(*) FROM t"), text);
  assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
  /* Not the limit itself: where the machine is busy elsewhere, a reader may stand still for longer than it is waited for. */
  assert_in_range(load.peak, 1, 4 * LIMIT * (24 + 4096));
  assert_int_equal(balsa_stop(db, NULL), SQLITE_OK);
  sqlite3_close(db);
  snprintf(command, sizeof command, "rm -rf '%s'", folder);
  assert_int_equal(system(command), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sixteen_writers_and_readers_that_never_pause_keep_the_wal_bounded),
  };
  if (balsa_init() != SQLITE_OK) return 1;
  return cmocka_run_group_tests_name("node load", tests, NULL, NULL);
}
