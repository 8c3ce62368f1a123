#include "history.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../sim/random.h"

#define ROW_BYTES_MAX 700
#define LARGE_ROW_BYTES 20000
#define LARGE_EVERY 13 /* transactions */
#define VACUUM_EVERY 29
#define OPERATIONS_MAX 6
#define FOREIGN_ID 1000000 /* of rows that are rolled back */

void history_describe(unsigned number, struct history *history) {
  static const uint32_t page_sizes[] = {4096, 1024, 512, 4096, 8192, 65536};
  static const char *const options[] = {
      "&snapshot_threshold=64K&log_tail=16K",
      "",
      "&snapshot_threshold=256K&log_tail=64K",
  };
  *history = (struct history){
      .number = number,
      .page_size = page_sizes[number % 6],
      .transactions = 40 + 17 * (number % 5),
      .options = options[number % 3],
      .stops = number % 2 == 0,
      .has_large = number % 4 == 3,
      .keeps_part = number % 3 == 0,
  };
  history->older = history->transactions / 2 + number;
  if (number % 4 != 1) history->snapshots[0] = history->transactions / 4;
  if (number % 4 == 2) history->snapshots[1] = history->transactions - 7;
}

/* ---- Transactions ---- */

enum operation { PUT, DELETE };

struct step {
  enum operation operation;
  unsigned id;
};

static struct sim_random chance_of(const struct history *history, unsigned n) {
  return (struct sim_random){.state = (uint64_t)history->number * 1000003 + n};
}

static unsigned steps_of(const struct history *history, unsigned n, struct step steps[OPERATIONS_MAX]) {
  struct sim_random chance = chance_of(history, n);
  unsigned count = (unsigned)sim_random_between(&chance, 1, OPERATIONS_MAX);
  for (unsigned i = 0; i < count; i++)
    steps[i] = (struct step){
        .operation = sim_random_chance(&chance, 150) ? DELETE : PUT,
        .id = (unsigned)sim_random_between(&chance, 1, HISTORY_ROWS),
    };
  return count;
}

static bool is_large(const struct history *history, unsigned n) {
  return history->has_large && n % LARGE_EVERY == 0;
}

/* A large transaction writes all rows. */
static bool is_written(const struct history *history, unsigned n, unsigned id) {
  return is_large(history, n) && id % 2 == 0;
}

void history_state(const struct history *history, unsigned n, struct history_state *state) {
  memset(state, 0, sizeof *state);
  state->n = n;
  for (unsigned i = 1; i <= n; i++) {
    struct step steps[OPERATIONS_MAX];
    unsigned count = steps_of(history, i, steps);
    for (unsigned id = 1; id <= HISTORY_ROWS; id++)
      if (is_written(history, i, id)) state->versions[id] = i;
    for (unsigned j = 0; j < count; j++) state->versions[steps[j].id] = steps[j].operation == PUT ? i : 0;
  }
}

/* What a row holds, as its id and version say. */
static size_t row_bytes(const struct history *history, unsigned id, unsigned version, uint8_t *bytes) {
  struct sim_random chance = {.state = (uint64_t)history->number << 40 ^ (uint64_t)version << 20 ^ id};
  size_t size = is_written(history, version, id) ? LARGE_ROW_BYTES : sim_random_below(&chance, ROW_BYTES_MAX);
  for (size_t i = 0; i < size; i += 8) {
    uint64_t word = sim_random_next(&chance);
    memcpy(bytes + i, &word, size - i < 8 ? size - i : 8);
  }
  return size;
}

static int put_row(const struct history *history, sqlite3 *db, unsigned id, unsigned version) {
  static _Thread_local uint8_t bytes[LARGE_ROW_BYTES + 8];
  sqlite3_stmt *statement = NULL;
  int code = sqlite3_prepare_v2(db, "INSERT OR REPLACE INTO t(id, v, b) VALUES(?, ?, ?)", -1, &statement, NULL);
  if (code != SQLITE_OK) return code;
  sqlite3_bind_int64(statement, 1, id);
  sqlite3_bind_int64(statement, 2, version);
  sqlite3_bind_blob(statement, 3, bytes, (int)row_bytes(history, id, version, bytes), SQLITE_STATIC);
  sqlite3_step(statement);
  return sqlite3_finalize(statement);
}

static int run(sqlite3 *db, const char *sql) {
  return sqlite3_exec(db, sql, NULL, NULL, NULL);
}

static int run_number(sqlite3 *db, const char *sql, unsigned number) {
  char text[256];
  snprintf(text, sizeof text, "%s %u", sql, number);
  return run(db, text);
}

static int run_step(const struct history *history, sqlite3 *db, const struct step *step, unsigned n) {
  return step->operation == PUT ? put_row(history, db, step->id, n)
                                : run_number(db, "DELETE FROM t WHERE id =", step->id);
}

static int run_steps(const struct history *history, sqlite3 *db, unsigned n) {
  struct step steps[OPERATIONS_MAX];
  unsigned count = steps_of(history, n, steps);
  int code = run_number(db, "UPDATE state SET n =", n);
  for (unsigned id = 1; id <= HISTORY_ROWS && code == SQLITE_OK; id++)
    if (is_written(history, n, id)) code = put_row(history, db, id, n);
  for (unsigned i = 0; i < count && code == SQLITE_OK; i++) {
    code = run(db, "SAVEPOINT a");
    if (code == SQLITE_OK && n % 3 == 0) code = put_row(history, db, FOREIGN_ID + i, n);
    if (code == SQLITE_OK) code = run(db, n % 3 == 0 ? "ROLLBACK TO a; RELEASE a" : "RELEASE a");
    if (code == SQLITE_OK) code = run_step(history, db, &steps[i], n);
  }
  return code;
}

int history_begin(sqlite3 *db) {
  return run(db, "BEGIN; CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, b BLOB); CREATE INDEX tv ON t(v, id);"
                 "CREATE TABLE state(n INTEGER); INSERT INTO state VALUES(0); COMMIT");
}

int history_run(const struct history *history, sqlite3 *db, unsigned n) {
  int code = run(db, "BEGIN IMMEDIATE");
  if (code != SQLITE_OK) return code;
  code = run_steps(history, db, n);
  if (code == SQLITE_OK) code = run(db, "COMMIT");
  if (!sqlite3_get_autocommit(db)) run(db, "ROLLBACK");
  if (code == SQLITE_OK && n % VACUUM_EVERY == 0) code = run(db, "VACUUM");
  return code;
}

int history_open(const struct history *history, const char *folder, sqlite3 **db) {
  char uri[1024];
  snprintf(uri, sizeof uri, "file:%s/app.db?vfs=balsa&page_size=%u%s", folder, history->page_size, history->options);
  return sqlite3_open_v2(uri, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL);
}

/* ---- Checking ---- */

/* false: the row is not what the model says. */
static bool is_row(const struct history *history, const struct history_state *state, sqlite3_stmt *row) {
  static _Thread_local uint8_t bytes[LARGE_ROW_BYTES + 8];
  sqlite3_int64 id = sqlite3_column_int64(row, 0), version = sqlite3_column_int64(row, 1);
  if (id < 1 || id > HISTORY_ROWS || version < 1 || version != state->versions[id]) return false;
  size_t size = row_bytes(history, (unsigned)id, (unsigned)version, bytes);
  const void *blob = sqlite3_column_blob(row, 2);
  return (size_t)sqlite3_column_bytes(row, 2) == size && (size == 0 || (blob && memcmp(blob, bytes, size) == 0));
}

static enum history_check fail(enum history_check check, sqlite3 *db, const char *what, char *text) {
  snprintf(text, HISTORY_TEXT_MAX, "%s: %s", what, sqlite3_errmsg(db));
  return check;
}

static enum history_check check_rows(const struct history *history, const struct history_state *state, sqlite3 *db,
                                     char *text) {
  sqlite3_stmt *row = NULL;
  unsigned found = 0, expected = 0;
  for (unsigned id = 1; id <= HISTORY_ROWS; id++) expected += state->versions[id] != 0;
  if (sqlite3_prepare_v2(db, "SELECT id, v, b FROM t", -1, &row, NULL) != SQLITE_OK)
    return fail(HISTORY_UNREADABLE, db, "rows", text);
  int code;
  while ((code = sqlite3_step(row)) == SQLITE_ROW) {
    found++;
    if (is_row(history, state, row)) continue;
    snprintf(text, HISTORY_TEXT_MAX, "at transaction %u row %lld is of version %lld with %d bytes: wrong", state->n,
             (long long)sqlite3_column_int64(row, 0), (long long)sqlite3_column_int64(row, 1),
             sqlite3_column_bytes(row, 2));
    sqlite3_finalize(row);
    return HISTORY_WRONG;
  }
  sqlite3_finalize(row);
  if (code != SQLITE_DONE) return fail(HISTORY_UNREADABLE, db, "rows", text);
  if (found == expected) return HISTORY_SAME;
  snprintf(text, HISTORY_TEXT_MAX, "at transaction %u there are %u rows instead of %u", state->n, found, expected);
  return HISTORY_WRONG;
}

static enum history_check check_integrity(sqlite3 *db, char *text) {
  sqlite3_stmt *statement = NULL;
  sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &statement, NULL);
  int code = sqlite3_step(statement);
  const char *told = code == SQLITE_ROW ? (const char *)sqlite3_column_text(statement, 0) : NULL;
  bool is_whole = told && strcmp(told, "ok") == 0;
  if (told && !is_whole) snprintf(text, HISTORY_TEXT_MAX, "integrity_check: %s", told);
  sqlite3_finalize(statement);
  if (code != SQLITE_ROW) return fail(HISTORY_UNREADABLE, db, "integrity_check", text);
  return is_whole ? HISTORY_SAME : HISTORY_WRONG;
}

enum history_check history_check(const struct history *history, sqlite3 *db, unsigned *n, char text[HISTORY_TEXT_MAX]) {
  struct history_state state;
  sqlite3_stmt *statement = NULL;
  text[0] = 0;
  int code = sqlite3_prepare_v2(db, "SELECT n FROM state", -1, &statement, NULL);
  if (code == SQLITE_OK) code = sqlite3_step(statement);
  if (code != SQLITE_ROW) {
    fail(HISTORY_UNREADABLE, db, "state", text);
    sqlite3_finalize(statement);
    return HISTORY_UNREADABLE;
  }
  *n = (unsigned)sqlite3_column_int(statement, 0);
  sqlite3_finalize(statement);
  if (*n > 100 * history->transactions) {
    snprintf(text, HISTORY_TEXT_MAX, "transaction %u: there never was one", *n);
    return HISTORY_WRONG;
  }
  history_state(history, *n, &state);
  enum history_check check = check_rows(history, &state, db, text);
  return check == HISTORY_SAME ? check_integrity(db, text) : check;
}
