/*
** Files: what a copy costs, and whether a snapshot is the database it was taken of.
*/
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

#define PIECE (1u << 20)

uint64_t file_bytes(const char *path) {
  struct stat info;
  if (stat(path, &info)) die("%s: %s", path, strerror(errno));
  return (uint64_t)info.st_size;
}

double copy_seconds(const char *from, const char *to) {
  char *piece = malloc(PIECE);
  uint64_t begin = now_ns();
  int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  ssize_t n = piece && in >= 0 && out >= 0 ? 1 : -1;
  while (n > 0) {
    n = read(in, piece, PIECE);
    if (n > 0 && write(out, piece, (size_t)n) != n) n = -1;
  }
  if (n < 0 || fsync(out)) die("%s cannot be copied to %s: %s", from, to, strerror(errno));
  double seconds = (double)(now_ns() - begin) / 1e9;
  close(in);
  close(out);
  free(piece);
  unlink(to);
  return seconds;
}

void find_snapshot(const char *path, char snapshot[BENCH_PATH_MAX]) {
  char folder[BENCH_PATH_MAX], newest[64] = "";
  snprintf(folder, sizeof folder, "%s-balsa/snapshots", path);
  DIR *directory = opendir(folder);
  if (!directory) die("%s: %s", folder, strerror(errno));
  for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
    bool is_one = strncmp(entry->d_name, "snapshot-", 9) == 0 && strstr(entry->d_name, ".lz4");
    if (is_one && strcmp(entry->d_name, newest) > 0) snprintf(newest, sizeof newest, "%s", entry->d_name);
  }
  closedir(directory);
  if (!newest[0]) die("%s: there is no snapshot", folder);
  int length = snprintf(snapshot, BENCH_PATH_MAX, "%s/%s", folder, newest);
  if (length >= BENCH_PATH_MAX) die("%s: too long a path", folder);
}

/* ---- Is it the database? ---- */

static void unpack(const char *snapshot, const char *unpacked) {
  pid_t pid = fork();
  int status = 0;
  if (pid < 0) die("fork: %s", strerror(errno));
  if (pid == 0) {
    execlp("lz4", "lz4", "-d", "-q", "-f", snapshot, unpacked, (char *)NULL);
    _exit(127);
  }
  if (waitpid(pid, &status, 0) != pid || status != 0)
    die("lz4 -d %s does not work (is the package lz4 installed?)", snapshot);
}

static sqlite3 *open_plain(const char *path) {
  sqlite3 *db = NULL;
  if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL) != SQLITE_OK) die("%s: %s", path, sqlite3_errmsg(db));
  return db;
}

static sqlite3_stmt *ask(sqlite3 *db, const char *sql, uint64_t limit) {
  sqlite3_stmt *statement = NULL;
  if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) != SQLITE_OK) die("%s: %s", sql, sqlite3_errmsg(db));
  sqlite3_bind_int64(statement, 1, (sqlite3_int64)limit);
  return statement;
}

/* Both must give the same rows (id, body); of the live one only those with an id up to `limit` count. */
static void compare_rows(sqlite3 *unpacked, sqlite3 *live, const char *table, uint64_t limit) {
  char all[BENCH_TEXT_MAX], some[BENCH_TEXT_MAX];
  snprintf(all, sizeof all, "SELECT id, body FROM %s ORDER BY id", table);
  snprintf(some, sizeof some, "SELECT id, body FROM %s WHERE id <= ? ORDER BY id", table);
  sqlite3_stmt *a = ask(unpacked, all, 0), *b = ask(live, some, limit);
  for (uint64_t row = 1;; row++) {
    int has_a = sqlite3_step(a), has_b = sqlite3_step(b);
    if (has_a != has_b) die("the snapshot's table %s does not have as many rows as the database's", table);
    if (has_a == SQLITE_DONE) break;
    if (has_a != SQLITE_ROW) die("table %s: %s; %s", table, sqlite3_errmsg(unpacked), sqlite3_errmsg(live));
    int size = sqlite3_column_bytes(a, 1);
    if (sqlite3_column_int64(a, 0) != sqlite3_column_int64(b, 0) || size != sqlite3_column_bytes(b, 1) ||
        memcmp(sqlite3_column_blob(a, 1), sqlite3_column_blob(b, 1), (size_t)size) != 0)
      die("the snapshot's row %llu of table %s is not the database's", (unsigned long long)row, table);
  }
  sqlite3_finalize(a);
  sqlite3_finalize(b);
}

void check_snapshot(const char *snapshot, const char *unpacked, const char *live, uint64_t rows) {
  unpack(snapshot, unpacked);
  sqlite3 *copy = open_plain(unpacked), *database = open_plain(live);
  sqlite3_stmt *statement = ask(copy, "PRAGMA integrity_check", 0);
  if (sqlite3_step(statement) != SQLITE_ROW || strcmp((const char *)sqlite3_column_text(statement, 0), "ok") != 0)
    die("%s, unpacked: integrity_check says %s", snapshot, (const char *)sqlite3_column_text(statement, 0));
  sqlite3_finalize(statement);
  compare_rows(copy, database, "bulk", INT64_MAX);
  compare_rows(copy, database, "t", rows);
  sqlite3_close(copy);
  sqlite3_close(database);
  unlink(unpacked);
}

void check_same(const char *path, const char *other) {
  sqlite3 *a = open_plain(path), *b = open_plain(other);
  compare_rows(a, b, "bulk", INT64_MAX);
  compare_rows(a, b, "t", INT64_MAX);
  sqlite3_close(a);
  sqlite3_close(b);
}
