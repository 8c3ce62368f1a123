/*
** Clients: SQL of every kind, and a note of what each COMMIT said and each read showed.
*/
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../ext/balsa.h"
#include "run.h"

#define SCHEMA_TRIES_MS 20

struct client {
  struct run_process *process;
  uint32_t number;
  struct sim_random random;
  sqlite3 *db;
  size_t pending; /* attempt + 1 whose fate it knows by a token only; 0: none */
};

/* ---- SQL ---- */

int client_run(sqlite3 *db, const char *sql) {
  int code = sqlite3_exec(db, sql, NULL, NULL, NULL);
  task_note("sql", (uint64_t)code, strlen(sql));
  return code;
}

int client_ask_text(sqlite3 *db, const char *sql, char *text, size_t size) {
  sqlite3_stmt *statement = NULL;
  text[0] = 0;
  int code = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);
  if (code == SQLITE_OK) code = sqlite3_step(statement);
  if (code == SQLITE_ROW && sqlite3_column_text(statement, 0))
    snprintf(text, size, "%s", (const char *)sqlite3_column_text(statement, 0));
  int end = sqlite3_finalize(statement);
  if (code == SQLITE_ROW || code == SQLITE_DONE) code = end;
  return code;
}

int client_ask_number(sqlite3 *db, const char *sql, int64_t *number) {
  char text[32];
  int code = client_ask_text(db, sql, text, sizeof text);
  *number = strtoll(text, NULL, 10);
  return code;
}

static int run_format(sqlite3 *db, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int run_format(sqlite3 *db, const char *format, ...) {
  char sql[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(sql, sizeof sql, format, arguments);
  va_end(arguments);
  return client_run(db, sql);
}

static uint64_t below(struct client *client, uint64_t n) {
  return sim_random_below(&client->random, n);
}

static bool chance(struct client *client, uint32_t permille) {
  return sim_random_chance(&client->random, permille);
}

static void think(struct client *client, uint64_t ms) {
  task_sleep(1 + below(client, ms * TASK_MS));
}

int client_make_schema(sqlite3 *db) {
  char text[256];
  snprintf(
      text, sizeof text,
      "CREATE TRIGGER IF NOT EXISTS move AFTER INSERT ON log BEGIN UPDATE counter SET n = new.n, chain = (chain * 31 + "
      "new.hash) %% %d; END",
      RUN_CHAIN_MODULUS);
  int code = client_run(db, "BEGIN IMMEDIATE");
  if (code == SQLITE_OK) code = client_run(db, "CREATE TABLE IF NOT EXISTS counter(id INTEGER PRIMARY KEY, n, chain)");
  if (code == SQLITE_OK) code = client_run(db, "INSERT OR IGNORE INTO counter VALUES(1, 0, 0)");
  if (code == SQLITE_OK)
    code = client_run(db, "CREATE TABLE IF NOT EXISTS log(id INTEGER PRIMARY KEY, client, n, hash, payload)");
  if (code == SQLITE_OK) code = client_run(db, text);
  if (code == SQLITE_OK) code = client_run(db, "CREATE TABLE IF NOT EXISTS junk(id INTEGER PRIMARY KEY, a, b)");
  if (code == SQLITE_OK) code = client_run(db, "CREATE INDEX IF NOT EXISTS junk_a ON junk(a)");
  if (code == SQLITE_OK) code = client_run(db, "COMMIT");
  if (!sqlite3_get_autocommit(db)) client_run(db, "ROLLBACK");
  return code;
}

/* ---- Attempts ---- */

static size_t attempt_new(uint32_t client, uint32_t machine) {
  if (run.n_attempts == run.attempts_capacity) {
    run.attempts_capacity = run.attempts_capacity ? 2 * run.attempts_capacity : 1024;
    run.attempts = realloc(run.attempts, run.attempts_capacity * sizeof *run.attempts);
    if (!run.attempts) abort();
  }
  run.attempts[run.n_attempts] = (struct run_attempt){.client = client, .machine = machine};
  return run.n_attempts++;
}

/* Before COMMIT, or the statement that commits by itself: if the process dies now, nobody knows. */
static uint64_t asks_commit(size_t attempt) {
  run.attempts[attempt].fate = RUN_SILENT;
  return task_now();
}

/* What COMMIT said. */
static void note_answer(struct run_process *process, sqlite3 *db, size_t number, int code, uint64_t began) {
  uint64_t took = task_now() - began;
  char token[RUN_TOKEN_MAX];
  int64_t timeout_ms = 0;
  if (process->is_crashed) { /* nobody heard it */
    run.silent++;
    return;
  }
  if (code == SQLITE_OK || code == BALSA_IOERR_UNKNOWN)
    client_ask_text(db, "SELECT balsa_last_commit()", token, sizeof token);
  client_ask_number(db, "PRAGMA balsa_timeout", &timeout_ms);
  if (process->is_crashed) {
    run.silent++;
    return;
  }
  struct run_attempt *attempt = &run.attempts[number];
  attempt->code = code;
  switch (code) {
  case SQLITE_OK:
    attempt->fate = RUN_COMMITTED;
    /* In time, it is told when this node shows it; later, when it is known. */
    if (took < (uint64_t)timeout_ms * TASK_MS / 2 && attempt->n > process->seen) process->seen = attempt->n;
    snprintf(attempt->token, sizeof attempt->token, "%s", token);
    run.committed++;
    break;
  case BALSA_IOERR_UNKNOWN:
    attempt->fate = token[0] ? RUN_UNKNOWN : RUN_NEVER; /* not sent, and not taken back either */
    snprintf(attempt->token, sizeof attempt->token, "%s", token);
    run.unknown++;
    break;
  case SQLITE_BUSY_SNAPSHOT:
  case SQLITE_ABORT_ROLLBACK:
  case BALSA_IOERR_LOST:
    attempt->fate = RUN_LOST;
    run.lost++;
    break;
  default: attempt->fate = RUN_NEVER; run.refused++;
  }
  task_note("answer", number, (uint64_t)code);
}

static uint64_t hash_of(size_t attempt) {
  return (uint64_t)(attempt + 1) * 2654435761u % 1000003;
}

/* The row of the model. In a transaction, or as one. */
static int insert_row(struct run_process *process, sqlite3 *db, size_t attempt, uint64_t size) {
  sqlite3_stmt *statement = NULL;
  char sql[256];
  snprintf(sql, sizeof sql,
           "INSERT INTO log SELECT %zu, %u, n + 1, %" PRIu64 ", randomblob(%" PRIu64 ") FROM counter RETURNING n",
           attempt + 1, process->number, hash_of(attempt), size);
  int code = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);
  if (code == SQLITE_OK) code = sqlite3_step(statement);
  if (code == SQLITE_ROW) {
    int64_t n = sqlite3_column_int64(statement, 0);
    code = sqlite3_step(statement);
    run.attempts[attempt].n = n;
  }
  int end = sqlite3_finalize(statement);
  task_note("insert", attempt, (uint64_t)end);
  return code == SQLITE_DONE ? SQLITE_OK : end ? end : code;
}

/* COMMIT of a transaction that has inserted its row; ends it one way or the other. */
static int commit(struct run_process *process, sqlite3 *db, size_t attempt, int code) {
  if (code == SQLITE_OK) {
    uint64_t began = asks_commit(attempt);
    code = client_run(db, "COMMIT");
    note_answer(process, db, attempt, code, began);
  } else if (code == SQLITE_BUSY_SNAPSHOT || code == SQLITE_ABORT_ROLLBACK || code == BALSA_IOERR_LOST) {
    run.refused++;
  }
  if (!sqlite3_get_autocommit(db)) client_run(db, "ROLLBACK");
  return code;
}

int client_commit_one(struct run_process *process, sqlite3 *db) {
  size_t attempt = attempt_new(0, process->number);
  uint64_t began = asks_commit(attempt);
  int code = insert_row(process, db, attempt, 10);
  note_answer(process, db, attempt, code, began);
  return code;
}

/* ---- Reads ---- */

static void note_read(struct run_process *process, const struct run_read *read) {
  if (process->is_crashed) return;
  if (run.n_reads == run.reads_capacity) {
    run.reads_capacity = run.reads_capacity ? 2 * run.reads_capacity : 1024;
    run.reads = realloc(run.reads, run.reads_capacity * sizeof *run.reads);
    if (!run.reads) abort();
  }
  run.reads[run.n_reads++] = *read;
  task_note("seen", (uint64_t)read->n, (uint64_t)read->chain);
  if (read->n < read->floor)
    task_fail("a read on node %u shows transaction %" PRId64 " as the last, but %" PRId64 " was there before it began",
              read->machine, read->n, read->floor);
  if (read->n != read->rows)
    task_fail("a snapshot on node %u holds %" PRId64 " rows, and its counter says %" PRId64, read->machine, read->rows,
              read->n);
  if (read->n > process->seen) process->seen = read->n;
}

static int read_counter(struct client *client, struct run_read *read) {
  sqlite3_stmt *statement = NULL;
  struct run_process *process = client->process;
  *read = (struct run_read){
      .machine = process->number,
      .floor = process->seen,
      .at = task_now(),
  };
  int code = sqlite3_prepare_v2(client->db, "SELECT n, chain, (SELECT count(*) FROM log) FROM counter", -1, &statement,
                                NULL);
  if (code == SQLITE_OK) code = sqlite3_step(statement);
  if (code == SQLITE_ROW) {
    read->n = sqlite3_column_int64(statement, 0);
    read->chain = sqlite3_column_int64(statement, 1);
    read->rows = sqlite3_column_int64(statement, 2);
  }
  int end = sqlite3_finalize(statement);
  return code == SQLITE_ROW ? end : code == SQLITE_DONE ? SQLITE_EMPTY : end ? end : code;
}

static void read_once(struct client *client) {
  struct run_read read;
  if (read_counter(client, &read) == SQLITE_OK) note_read(client->process, &read);
}

/* A snapshot stays what it is. */
static void read_twice(struct client *client) {
  struct run_read first, second;
  if (client_run(client->db, "BEGIN") != SQLITE_OK) return;
  int code = read_counter(client, &first);
  if (code == SQLITE_OK) note_read(client->process, &first);
  if (code == SQLITE_OK) {
    think(client, chance(client, 100) ? 2000 : 50);
    code = read_counter(client, &second);
    if (code == SQLITE_OK && !client->process->is_crashed && (second.n != first.n || second.chain != first.chain))
      task_fail("a snapshot on node %u changed from transaction %" PRId64 " to %" PRId64, client->process->number,
                first.n, second.n);
  }
  client_run(client->db, "COMMIT");
  if (!sqlite3_get_autocommit(client->db)) client_run(client->db, "ROLLBACK");
}

/* ---- Writes ---- */

static int write_junk(struct client *client, uint32_t rows, uint32_t size) {
  return run_format(client->db,
                    "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < %u) "
                    "INSERT INTO junk(a, b) SELECT abs(random() %% 1000), randomblob(%u) FROM c",
                    rows, size);
}

static int change_junk(struct client *client) {
  switch (below(client, 4)) {
  case 0: return write_junk(client, 1 + (uint32_t)below(client, 8), run.row_bytes);
  case 1:
    return run_format(client->db, "UPDATE junk SET b = randomblob(%u) WHERE a < %u", run.row_bytes,
                      (uint32_t)below(client, 60));
  case 2: return run_format(client->db, "DELETE FROM junk WHERE a %% 10 = %u", (uint32_t)below(client, 10));
  default: return run_format(client->db, "UPDATE junk SET a = a + 1 WHERE id %% 7 = %u", (uint32_t)below(client, 7));
  }
}

/* A statement that commits by itself. */
static void write_alone(struct client *client) {
  size_t attempt = attempt_new(client->number, client->process->number);
  uint64_t began = asks_commit(attempt);
  int code = insert_row(client->process, client->db, attempt, below(client, 2 * run.row_bytes));
  note_answer(client->process, client->db, attempt, code, began);
  if (run.attempts[attempt].fate == RUN_UNKNOWN) client->pending = attempt + 1;
}

static int savepoint(struct client *client) {
  int code = client_run(client->db, "SAVEPOINT s");
  if (code == SQLITE_OK)
    code = write_junk(client, 1 + (uint32_t)below(client, chance(client, 200) ? 150 : 10), run.row_bytes);
  if (code == SQLITE_OK && chance(client, 500)) code = change_junk(client);
  if (code == SQLITE_OK && chance(client, 600)) code = client_run(client->db, "ROLLBACK TO s");
  if (code == SQLITE_OK) code = client_run(client->db, "RELEASE s");
  return code;
}

static int change_schema(struct client *client) {
  uint32_t table = (uint32_t)below(client, 5);
  if (chance(client, 500)) return run_format(client->db, "DROP TABLE IF EXISTS extra%u", table);
  int code = run_format(client->db, "CREATE TABLE IF NOT EXISTS extra%u(x, y)", table);
  if (code == SQLITE_OK) code = run_format(client->db, "INSERT INTO extra%u SELECT id, b FROM junk LIMIT 20", table);
  if (code == SQLITE_OK)
    code = run_format(client->db, "CREATE INDEX IF NOT EXISTS extra%u_x ON extra%u(x)", table, table);
  return code;
}

/* Some statements of an interactive transaction. */
static int write_statements(struct client *client) {
  int code = SQLITE_OK;
  for (uint64_t i = below(client, 4); i > 0 && code == SQLITE_OK; i--) {
    switch (below(client, 8)) {
    case 0:
    case 1: code = savepoint(client); break;
    case 2: code = change_schema(client); break;
    case 3: think(client, chance(client, 50) ? 1500 : 20); break;
    case 4:
      if (chance(client, 150)) code = write_junk(client, 100 + (uint32_t)below(client, 200), run.row_bytes);
      break;
    default: code = change_junk(client);
    }
  }
  return code;
}

static void write_interactive(struct client *client) {
  struct run_read seen;
  bool reads_first = chance(client, 250);
  int code = client_run(client->db, reads_first ? "BEGIN" : "BEGIN IMMEDIATE");
  if (code != SQLITE_OK) return;
  size_t attempt = attempt_new(client->number, client->process->number);
  if (reads_first) code = read_counter(client, &seen);
  if (code == SQLITE_OK && chance(client, 500)) code = write_statements(client);
  if (code == SQLITE_OK) code = insert_row(client->process, client->db, attempt, below(client, 2 * run.row_bytes));
  if (code == SQLITE_OK && chance(client, 500)) code = write_statements(client);
  if (code == SQLITE_OK && chance(client, 150)) {
    client_run(client->db, "ROLLBACK");
    run.attempts[attempt].n = 0;
    return;
  }
  commit(client->process, client->db, attempt, code);
  if (run.attempts[attempt].fate == RUN_UNKNOWN) client->pending = attempt + 1;
}

/* A write transaction that reads what others wrote, changes nothing that counts, and ends without a commit. */
static void write_nothing(struct client *client) {
  struct run_read seen;
  switch (below(client, 3)) {
  case 0:
    if (client_run(client->db, "BEGIN IMMEDIATE") != SQLITE_OK) return;
    read_counter(client, &seen);
    client_run(client->db, "ROLLBACK");
    break;
  case 1: run_format(client->db, "INSERT INTO counter SELECT 1, n, chain FROM counter"); break; /* id is not unique */
  default:
    if (client_run(client->db, "BEGIN IMMEDIATE") != SQLITE_OK) return;
    if (read_counter(client, &seen) == SQLITE_OK) change_junk(client);
    client_run(client->db, "ROLLBACK");
  }
  if (!sqlite3_get_autocommit(client->db)) client_run(client->db, "ROLLBACK");
  read_once(client);
}

/* ---- The rest ---- */

static void ask_outcome(struct client *client) {
  char sql[160], word[16];
  struct run_attempt *attempt = &run.attempts[client->pending - 1];
  snprintf(sql, sizeof sql, "SELECT balsa_outcome('%s')", attempt->token);
  int code = client_ask_text(client->db, sql, word, sizeof word);
  attempt = &run.attempts[client->pending - 1];
  if (code != SQLITE_OK || client->process->is_crashed || strcmp(word, "pending") == 0) return;
  if (strcmp(word, "committed") == 0)
    attempt->fate = RUN_COMMITTED;
  else if (strcmp(word, "lost") == 0)
    attempt->fate = RUN_LOST;
  else
    task_fail("the outcome of %s is '%s'", attempt->token, word);
  client->pending = 0;
}

/* Is a voter lost, and not replaced yet? Then no other one may go. */
static bool is_wiped_away(void) {
  const char *role = run.processes[run.wiped].role;
  return run.wiped && strcmp(role, "leader") != 0 && strcmp(role, "follower") != 0;
}

void client_change_members(struct run_process *process, sqlite3 *db, struct sim_random *random) {
  char sql[128], text[RUN_TEXT_MAX];
  uint64_t node = 1 + sim_random_below(random, run.n_machines);
  int64_t voters = 0;
  switch (sim_random_below(random, 6)) {
  case 0: snprintf(sql, sizeof sql, "SELECT balsa_transfer()"); break;
  case 1: snprintf(sql, sizeof sql, "SELECT balsa_transfer(%" PRIu64 ")", node); break;
  case 2:
  case 3: snprintf(sql, sizeof sql, "SELECT balsa_promote(%" PRIu64 ")", node); break;
  default:
    /* Three voters stay, as far as this node knows. */
    if (client_ask_number(db, "SELECT count(*) FROM balsa_members WHERE role = 'voter'", &voters) != SQLITE_OK) return;
    if (voters < 4 || is_wiped_away()) return;
    snprintf(sql, sizeof sql, "SELECT balsa_%s(%" PRIu64 ")", sim_random_below(random, 2) ? "remove" : "demote", node);
  }
  int code = client_ask_text(db, sql, text, sizeof text);
  task_note(sql, (uint64_t)code, node);
  if (code != SQLITE_OK || process->is_crashed) return;
  if (strstr(sql, "transfer"))
    run.transfers++;
  else
    run.changes++;
}

static void do_something_else(struct client *client) {
  char text[RUN_TEXT_MAX];
  switch (below(client, 8)) {
  case 0: client_ask_text(client->db, "SELECT balsa_snapshot()", text, sizeof text); break;
  case 1: client_run(client->db, "VACUUM"); break;
  case 2: client_run(client->db, "PRAGMA wal_checkpoint(TRUNCATE)"); break;
  case 3: client_run(client->db, "PRAGMA incremental_vacuum(5)"); break;
  case 4:
    if (client_ask_text(client->db, "PRAGMA quick_check", text, sizeof text) == SQLITE_OK &&
        !client->process->is_crashed && !client->process->has_failing_disk && strcmp(text, "ok") != 0)
      task_fail("node %u: quick_check says %s", client->process->number, text);
    break;
  case 5: client_ask_text(client->db, "SELECT count(*) FROM balsa_members", text, sizeof text); break;
  case 6: run_format(client->db, "PRAGMA balsa_strict = %s", chance(client, 300) ? "on" : "off"); break;
  default:
    run_format(client->db, "PRAGMA cache_size = %u", chance(client, 700) ? 5 + (uint32_t)below(client, 20) : 500);
  }
}

static void reconnect(struct client *client) {
  char text[RUN_TEXT_MAX];
  if (client->db && sqlite3_close(client->db) != SQLITE_OK) task_fail("a client's connection cannot be closed");
  client->db = NULL;
  if (client->process->is_ending) return;
  if (process_open(client->process, &client->db, text) != SQLITE_OK) return;
  sqlite3_busy_timeout(client->db, (int)below(client, 1500));
  run_format(client->db, "PRAGMA balsa_timeout = %u", 50 + (uint32_t)below(client, 2000));
}

static void step(struct client *client) {
  if (!run.has_schema) {
    if (client_make_schema(client->db) == SQLITE_OK && !client->process->is_crashed) run.has_schema = true;
    think(client, SCHEMA_TRIES_MS);
    return;
  }
  if (client->pending && chance(client, 300)) ask_outcome(client);
  if (run.profile->changes && chance(client, 60)) client_change_members(client->process, client->db, &client->random);
  switch (below(client, 20)) {
  case 0:
  case 1:
  case 2:
  case 3: write_alone(client); break;
  case 4:
  case 5:
  case 6:
  case 7:
  case 8: write_interactive(client); break;
  case 9:
  case 10: write_nothing(client); break;
  case 11: read_twice(client); break;
  case 12:
    if (chance(client, 250)) do_something_else(client);
    break;
  case 13:
    if (chance(client, 200)) reconnect(client);
    break;
  default: read_once(client);
  }
}

void client_main(void *arg) {
  struct client_start *start = arg;
  struct client client = {.process = start->process, .number = start->number};
  client.random.state = sim_random_next(&run.random);
  free(start);
  while (!client.process->is_ending) {
    if (!client.db) reconnect(&client);
    run.n_busy++;
    if (client.db && !run.is_quiet) step(&client);
    run.n_busy--;
    think(&client, run.think_ms);
  }
  if (client.db && sqlite3_close(client.db) != SQLITE_OK) task_fail("a client's connection cannot be closed");
}
