/*
** An application with Balsa linked in, as a user builds it: the installed header, the installed library.
**
**   linked app.db
**
** A cluster of one needs no network and no options.
*/
#include <balsa.h>
#include <stdio.h>
#include <string.h>

static int passed, failed;

static void check(int good, const char *what, sqlite3 *db) {
  if (good) {
    passed++;
  } else {
    failed++;
    printf("FAILED: %s: %s\n", what, sqlite3_errmsg(db));
  }
}

/* The first column of the first row; -1 without one. */
static sqlite3_int64 number(sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement = NULL;
  sqlite3_int64 result = -1;
  if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) == SQLITE_OK && sqlite3_step(statement) == SQLITE_ROW) {
    result = sqlite3_column_int64(statement, 0);
  }
  sqlite3_finalize(statement);
  return result;
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  char *uri = sqlite3_mprintf("file:%s?vfs=balsa", argv[1]);
  sqlite3 *db = NULL;
  check(balsa_init() == SQLITE_OK, "balsa_init", NULL);
  check(balsa_init() == SQLITE_OK, "balsa_init once more does nothing", NULL);
  int rc = sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL);
  check(rc == SQLITE_OK, "open", db);
  check(sqlite3_exec(db, "CREATE TABLE t(x); INSERT INTO t VALUES(1),(2),(3)", NULL, NULL, NULL) == SQLITE_OK, "write",
        db);
  check(number(db, "SELECT count(*) FROM t") == 3, "read", db);
  check(number(db, "SELECT count(*) FROM balsa_status WHERE role = 'leader' AND state = 'ready'") == 1,
        "a cluster of one leads at once", db);
  check(number(db, "SELECT balsa_outcome(balsa_last_commit()) = 'committed'") == 1, "the fate of the last COMMIT", db);
  check(balsa_stop(db, NULL) == SQLITE_OK, "balsa_stop", db);
  check(sqlite3_close(db) == SQLITE_OK, "close", db);
  sqlite3_free(uri);
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
