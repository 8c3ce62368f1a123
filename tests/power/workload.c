#include <stdlib.h>
#include <string.h>

#include "../../ext/balsa.h"
#include "power.h"

#define TABLES 4
#define STEPS_MAX 6 /* of a transaction */
#define SAVEPOINTS_MAX 3
#define BUSY_MS 10000
#define BUSY_MS_FAULTY 100
#define FAILURES_MAX 6 /* in a row: the node has given up */

/* One connection's work. */
struct worker {
  struct power *power;
  sqlite3 *db;
  struct sim_random *random;
};

static uint64_t below(struct worker *worker, uint64_t n) {
  return sim_random_below(worker->random, n);
}

static bool chance(struct worker *worker, uint32_t permille) {
  return sim_random_chance(worker->random, permille);
}

static int run(struct worker *worker, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  char *sql = sqlite3_vmprintf(format, arguments);
  va_end(arguments);
  if (!sql) abort();
  int code = sqlite3_exec(worker->db, sql, NULL, NULL, NULL);
  sqlite3_free(sql);
  return code;
}

static int take_number(void *out, int n, char **values, char **names) {
  (void)n, (void)names;
  if (values[0]) *(uint64_t *)out = strtoull(values[0], NULL, 10);
  return 0;
}

static uint64_t ask(struct worker *worker, const char *sql) {
  uint64_t number = 0;
  return sqlite3_exec(worker->db, sql, take_number, &number, NULL) == SQLITE_OK ? number : 0;
}

static bool has_table(struct worker *worker, uint64_t table) {
  char sql[96];
  snprintf(sql, sizeof sql, "SELECT count(*) FROM sqlite_schema WHERE name='t%" PRIu64 "'", table);
  return ask(worker, sql) > 0;
}

/* ---- Steps ---- */

static int insert_rows(struct worker *worker, uint64_t table) {
  uint64_t rows = 1 + below(worker, chance(worker, 200) ? 150 : 20),
           size = 1 + below(worker, chance(worker, 100) ? 2000 : 300);
  return run(
      worker,
      "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<%llu) INSERT INTO t%llu(k, b) SELECT "
      "abs(random()) %% 1000, randomblob(1 + abs(random()) %% %llu) FROM n",
      rows, table, size);
}

static int insert_blob(struct worker *worker, uint64_t table) {
  uint64_t size = 2000 + below(worker, worker->power->plan.size_max / 6);
  return run(worker, "INSERT INTO t%llu(k, b) VALUES(%llu, %s(%llu))", table, below(worker, 1000),
             chance(worker, 500) ? "randomblob" : "zeroblob", size);
}

static int update_rows(struct worker *worker, uint64_t table) {
  uint64_t modulus = 1 + below(worker, 20);
  return run(worker, "UPDATE t%llu SET b = randomblob(length(b)), k = k + 1 WHERE a %% %llu = %llu", table, modulus,
             below(worker, modulus));
}

static int delete_rows(struct worker *worker, uint64_t table) {
  uint64_t modulus = 1 + below(worker, 8);
  return run(worker, "DELETE FROM t%llu WHERE a %% %llu = %llu", table, modulus, below(worker, modulus));
}

static int change_schema(struct worker *worker, uint64_t table) {
  switch (below(worker, 5)) {
  case 0: return run(worker, "DROP TABLE t%llu", table);
  case 1: return run(worker, "CREATE INDEX IF NOT EXISTS i%llu ON t%llu(k)", table, table);
  case 2: return run(worker, "DROP INDEX IF EXISTS i%llu", table);
  case 3: return run(worker, "CREATE INDEX IF NOT EXISTS j%llu ON t%llu(b)", table, table);
  default: return run(worker, "PRAGMA user_version=%llu", below(worker, 1000000));
  }
}

static int step(struct worker *worker) {
  uint64_t table = below(worker, TABLES);
  if (!has_table(worker, table)) return run(worker, "CREATE TABLE t%llu(a INTEGER PRIMARY KEY, k INTEGER, b)", table);
  uint64_t size = ask(worker, "PRAGMA page_count") * worker->power->plan.page_size;
  if (size > worker->power->plan.size_max) return run(worker, "DELETE FROM t%llu WHERE a %% 3 <> 0", table);
  uint64_t kind = below(worker, 100);
  if (kind < 45) return insert_rows(worker, table);
  if (kind < 55) return insert_blob(worker, table);
  if (kind < 75) return update_rows(worker, table);
  if (kind < 90) return delete_rows(worker, table);
  return change_schema(worker, table);
}

static int savepoint(struct worker *worker, unsigned depth) {
  int code = run(worker, "SAVEPOINT s%u", depth);
  for (uint64_t i = 1 + below(worker, 3); i > 0 && code == SQLITE_OK; i--) {
    if (depth < SAVEPOINTS_MAX && chance(worker, 200))
      code = savepoint(worker, depth + 1);
    else
      code = step(worker);
  }
  if (code == SQLITE_OK && chance(worker, 500)) code = run(worker, "ROLLBACK TO s%u", depth);
  if (code == SQLITE_OK && chance(worker, 300)) code = step(worker);
  if (code == SQLITE_OK) code = run(worker, "RELEASE s%u", depth);
  return code;
}

/* ---- Transactions ---- */

static void take_token(struct worker *worker, char token[POWER_TOKEN_MAX]) {
  sqlite3_stmt *statement = NULL;
  token[0] = 0;
  if (sqlite3_prepare_v2(worker->db, "SELECT balsa_last_commit()", -1, &statement, NULL) == SQLITE_OK &&
      sqlite3_step(statement) == SQLITE_ROW && sqlite3_column_text(statement, 0))
    snprintf(token, POWER_TOKEN_MAX, "%s", (const char *)sqlite3_column_text(statement, 0));
  sqlite3_finalize(statement);
}

/* Whatever COMMIT answers but OK and "unknown" means that it is lost for certain. */
static bool commit(struct worker *worker, size_t place) {
  struct power *power = worker->power;
  char token[POWER_TOKEN_MAX] = "";
  int code = run(worker, "COMMIT");
  int extended = sqlite3_extended_errcode(worker->db);
  if (code == SQLITE_OK) {
    history_end(&power->history, place, FATE_COMMITTED, NULL);
    power_count(power, &power->counters.acknowledged);
    return true;
  }
  if (extended == BALSA_IOERR_UNKNOWN) {
    take_token(worker, token);
    history_end(&power->history, place, FATE_OPEN, token);
    power_count(power, &power->counters.unknown);
  } else {
    history_end(&power->history, place, FATE_LOST, NULL);
    power_count(power, &power->counters.lost);
  }
  bool is_ours = extended == BALSA_IOERR_UNKNOWN || extended == BALSA_IOERR_LOST || extended == SQLITE_ABORT_ROLLBACK ||
                 extended == SQLITE_BUSY_SNAPSHOT;
  if (!power_is_over(power) && is_ours && !vfs_connection_error(vfs_connection_find(worker->db, NULL))[0])
    power_fail(power, "COMMIT fails with %d and no sentence", extended);
  if (!power_is_over(power) && !atomic_load(&power->has_faults))
    power_fail(power, "COMMIT failed though nothing did: %d %s", extended, sqlite3_errmsg(worker->db));
  if (!sqlite3_get_autocommit(worker->db)) run(worker, "ROLLBACK");
  return false;
}

/* What the node says of itself. */
static const char *trouble(struct worker *worker, char text[VFS_TEXT_MAX]) {
  struct vfs_connection *connection = vfs_connection_find(worker->db, NULL);
  snprintf(text, VFS_TEXT_MAX, "%s", vfs_connection_error(connection));
  if (!text[0]) node_trouble(node_of_connection(connection), text);
  return text;
}

/* A statement other than COMMIT failed: the transaction never was. */
static void give_up(struct worker *worker, int code) {
  struct power *power = worker->power;
  char text[VFS_TEXT_MAX];
  int extended = sqlite3_extended_errcode(worker->db);
  if (!power_is_over(power) && !atomic_load(&power->has_faults) && code != SQLITE_BUSY)
    power_fail(power, "a statement failed though nothing did: %d %s (%s)", extended, sqlite3_errmsg(worker->db),
               trouble(worker, text));
  if (!sqlite3_get_autocommit(worker->db)) run(worker, "ROLLBACK");
  power_count(power, &power->counters.rolled_back);
}

static bool transaction(struct worker *worker, unsigned steps) {
  struct power *power = worker->power;
  uint64_t number = 0, digest = 0;
  int code = run(worker, chance(worker, 800) ? "BEGIN IMMEDIATE" : "BEGIN");
  if (code == SQLITE_OK) code = run(worker, "UPDATE journal SET number = number + 1");
  for (unsigned i = 0; i < steps && code == SQLITE_OK; i++)
    code = chance(worker, 200) ? savepoint(worker, 0) : step(worker);
  if (code == SQLITE_OK && chance(worker, 80) && steps > 0) {
    run(worker, "ROLLBACK");
    power_count(power, &power->counters.rolled_back);
    return true;
  }
  if (code == SQLITE_OK) code = digest_content(worker->db, &number, &digest);
  if (code != SQLITE_OK) {
    give_up(worker, code);
    return false;
  }
  power_count(power, &power->counters.transactions);
  return commit(worker, history_begin(&power->history, number, digest));
}

/* What it leaves behind is the same content. */
static void maintain(struct worker *worker, const char *sql, uint64_t *counter) {
  int code = run(worker, sql);
  if (code == SQLITE_OK)
    power_count(worker->power, counter);
  else
    give_up(worker, code & 0xff);
}

/* It may have its reasons: nothing to take one of, somebody in the way. */
static void snapshot(struct worker *worker) {
  if (run(worker, "SELECT balsa_snapshot()") == SQLITE_OK)
    power_count(worker->power, &worker->power->counters.snapshots);
}

static void read_all(struct worker *worker) {
  struct power *power = worker->power;
  uint64_t number = 0, digest = 0;
  char text[POWER_TEXT_MAX];
  int code = run(worker, "BEGIN");
  if (code == SQLITE_OK) code = digest_content(worker->db, &number, &digest);
  if (code == SQLITE_OK && !history_sees(&power->history, number, digest, false, text))
    power_fail(power, "a reader: %s", text);
  if (code == SQLITE_OK)
    power_count(power, &power->counters.reads);
  else
    give_up(worker, code);
  if (!sqlite3_get_autocommit(worker->db)) run(worker, "ROLLBACK");
}

void workload_set_up_connection(struct power *power, sqlite3 *db) {
  char sql[128];
  snprintf(sql, sizeof sql, "PRAGMA cache_size=%u; PRAGMA cache_spill=%u", power->plan.cache_pages,
           power->plan.cache_pages / 2 + 1);
  sqlite3_exec(db, sql, NULL, NULL, NULL);
  sqlite3_busy_timeout(db, atomic_load(&power->has_faults) ? BUSY_MS_FAULTY : BUSY_MS);
}

bool workload_prepare(struct power *power, sqlite3 *db) {
  struct worker worker = {.power = power, .db = db, .random = &power->random};
  uint64_t number = 0, digest = 0;
  if (ask(&worker, "SELECT count(*) FROM sqlite_schema WHERE name='journal'") > 0) return true;
  int code = run(&worker, "BEGIN IMMEDIATE; CREATE TABLE journal(number); INSERT INTO journal VALUES(1)");
  if (code == SQLITE_OK) code = digest_content(db, &number, &digest);
  if (code == SQLITE_OK) return commit(&worker, history_begin(&power->history, number, digest));
  if (!power_is_over(power) && !atomic_load(&power->has_faults))
    power_fail(power, "the first transaction cannot be made: %d %s", code, sqlite3_errmsg(db));
  give_up(&worker, code);
  return false;
}

bool workload_small(struct power *power, sqlite3 *db) {
  struct worker worker = {.power = power, .db = db, .random = &power->random};
  return transaction(&worker, 0);
}

void workload_run(struct power *power, sqlite3 *db, struct sim_random *random, unsigned n) {
  struct worker worker = {.power = power, .db = db, .random = random};
  unsigned failures = 0;
  for (unsigned i = 0; i < n && failures < FAILURES_MAX && !power_is_over(power); i++) {
    uint64_t kind = below(&worker, 100);
    if (kind < 4)
      maintain(&worker, "VACUUM", &power->counters.vacuums);
    else if (kind < 8)
      maintain(&worker, "PRAGMA incremental_vacuum(20)", &power->counters.vacuums);
    else if (kind < 11)
      snapshot(&worker);
    else if (kind < 18)
      read_all(&worker);
    else
      failures = transaction(&worker, 1 + (unsigned)below(&worker, STEPS_MAX)) ? 0 : failures + 1;
  }
}
