/*
** What must be true, while it runs and in the end.
*/
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

#define CONVERGENCE (120 * TASK_SECOND)

void check_state(struct run_process *process) {
  char state[RUN_TEXT_MAX];
  if (client_ask_text(process->keeper, "SELECT state FROM balsa_status", state, sizeof state) != SQLITE_OK) return;
  client_ask_text(process->keeper, "SELECT role FROM balsa_status", process->role, sizeof process->role);
  if (process->is_crashed || process->has_failing_disk) return;
  if (strncmp(state, "quarantined", 11) == 0) task_fail("node %u is %s", process->number, state);
}

/* ---- All agree ---- */

static sqlite3 *connect(uint32_t i) {
  char text[RUN_TEXT_MAX];
  sqlite3 *db = NULL;
  struct run_process *process = &run.processes[i];
  task_enter(process->machine);
  int code = process_open(process, &db, text);
  if (code != SQLITE_OK) task_fail("node %u cannot be opened in the end: %d, %s", i, code, text);
  sqlite3_busy_timeout(db, 1000);
  return db;
}

static void tell_states(sqlite3 *const dbs[]) {
  for (uint32_t i = 1; i <= run.n_machines; i++) {
    char state[RUN_TEXT_MAX], members[RUN_TEXT_MAX];
    task_enter(run.processes[i].machine);
    client_ask_text(
        dbs[i],
        "SELECT role || ' term ' || term || ' commit ' || commit_index || ' applied ' || applied_index || ' log ' || "
        "log_first || '-' || log_last || ': ' || state FROM balsa_status",
        state, sizeof state);
    client_ask_text(dbs[i], "SELECT group_concat(node || ' ' || role, ', ') FROM balsa_members", members,
                    sizeof members);
    fprintf(stderr, "    node %u: %s (members: %s)\n", i, state, members);
  }
}

/* Beyond it every token's fate is sealed. */
static int64_t highest_token(void) {
  int64_t highest = 0;
  for (size_t i = 0; i < run.n_attempts; i++) {
    const char *dot = strchr(run.attempts[i].token, '.');
    int64_t index = dot ? strtoll(dot + 1, NULL, 10) : 0;
    if (index > highest) highest = index;
  }
  return highest;
}

/* Who belongs to the cluster, as the node says that has committed last. */
static void find_members(sqlite3 *db) {
  char sql[80];
  for (uint32_t i = 1; i <= run.n_machines; i++) {
    int64_t n = 0;
    snprintf(sql, sizeof sql, "SELECT count(*) FROM balsa_members WHERE node = %u", i);
    if (client_ask_number(db, sql, &n) != SQLITE_OK) task_fail("no members: %s", sqlite3_errmsg(db));
    run.processes[i].is_member = n > 0;
  }
}

/* Last transactions, wherever they are taken; the index of the last of them. */
static int64_t commit_last(sqlite3 *const dbs[]) {
  uint64_t until = task_now() + CONVERGENCE;
  int64_t index = 0, needed = highest_token();
  int code = SQLITE_BUSY;
  while (task_now() < until) {
    for (uint32_t i = 1; i <= run.n_machines; i++) {
      task_enter(run.processes[i].machine);
      code = run.has_schema ? client_commit_one(&run.processes[i], dbs[i]) : client_make_schema(dbs[i]);
      if (code == SQLITE_OK && !run.has_schema) {
        run.has_schema = true;
      } else if (code == SQLITE_OK) {
        if (client_ask_number(dbs[i], "SELECT commit_index FROM balsa_status", &index) != SQLITE_OK || index == 0)
          task_fail("no index");
        if (index > needed) {
          find_members(dbs[i]);
          return index;
        }
        until = task_now() + CONVERGENCE;
      }
    }
    task_sleep(100 * TASK_MS);
  }
  tell_states(dbs);
  task_fail("all is well, and still no COMMIT gets through: %d", code);
}

static void wait_applied(sqlite3 *const dbs[], int64_t index) {
  char sql[80];
  int64_t applied;
  snprintf(sql, sizeof sql, "SELECT balsa_wait(%" PRId64 ", %u)", index, (unsigned)(CONVERGENCE / TASK_MS));
  for (uint32_t i = 1; i <= run.n_machines; i++) {
    if (!run.processes[i].is_member) continue;
    task_enter(run.processes[i].machine);
    int code = client_ask_number(dbs[i], sql, &applied);
    if (code == SQLITE_OK) continue;
    tell_states(dbs);
    task_fail("all is well, and node %u does not get to entry %" PRId64 ": %d, %s", i, index, code,
              sqlite3_errmsg(dbs[i]));
  }
}

static uint8_t *bytes_of(sqlite3 *db, uint32_t i, sqlite3_int64 *size) {
  task_enter(run.processes[i].machine);
  /* Of a connection that has read nothing yet it would take the default page size. */
  client_run(db, "SELECT count(*) FROM sqlite_schema");
  uint8_t *bytes = sqlite3_serialize(db, "main", size, 0);
  if (!bytes) task_fail("node %u cannot be read: %s", i, sqlite3_errmsg(db));
  return bytes;
}

static uint32_t first_member(void) {
  for (uint32_t i = 1; i <= run.n_machines; i++)
    if (run.processes[i].is_member) return i;
  task_fail("nobody is a member");
}

static void compare_bytes(sqlite3 *const dbs[]) {
  sqlite3_int64 size = 0, other_size = 0;
  uint32_t one = first_member();
  uint8_t *first = bytes_of(dbs[one], one, &size);
  for (uint32_t i = one + 1; i <= run.n_machines; i++) {
    if (!run.processes[i].is_member) continue;
    uint8_t *other = bytes_of(dbs[i], i, &other_size);
    if (size != other_size) task_fail("node %u has %lld bytes, node %u %lld", one, size, i, other_size);
    for (sqlite3_int64 at = 0; at < size; at++)
      if (first[at] != other[at])
        task_fail("nodes %u and %u differ at byte %lld, page %lld", one, i, at, at / (sqlite3_int64)run.page_size + 1);
    sqlite3_free(other);
  }
  sqlite3_free(first);
}

/* ---- All is true ---- */

struct history {
  int64_t *chains; /* after n transactions */
  int64_t n;
  bool *is_there; /* by attempt */
};

static void read_history(sqlite3 *db, struct history *history) {
  sqlite3_stmt *statement = NULL;
  size_t capacity = run.n_attempts + 1;
  history->chains = calloc(capacity, sizeof *history->chains);
  history->is_there = calloc(capacity, sizeof *history->is_there);
  if (!history->chains || !history->is_there) abort();
  int code = sqlite3_prepare_v2(db, "SELECT id, n, hash FROM log ORDER BY n", -1, &statement, NULL);
  while (code == SQLITE_OK && (code = sqlite3_step(statement)) == SQLITE_ROW) {
    int64_t id = sqlite3_column_int64(statement, 0), n = sqlite3_column_int64(statement, 1);
    if (id < 1 || (size_t)id > run.n_attempts || history->is_there[id - 1]) task_fail("row %" PRId64 " is strange", id);
    if (n != history->n + 1) task_fail("transaction %" PRId64 " is followed by %" PRId64, history->n, n);
    history->is_there[id - 1] = true;
    history->chains[n] = (history->chains[n - 1] * 31 + sqlite3_column_int64(statement, 2)) % RUN_CHAIN_MODULUS;
    history->n = n;
    code = SQLITE_OK;
  }
  if (code != SQLITE_DONE) task_fail("the log cannot be read: %d", code);
  sqlite3_finalize(statement);
}

static void check_attempts(const struct history *history) {
  static const char *const words[] = {"never", "committed", "lost", "unknown", "silent"};
  for (size_t i = 0; i < run.n_attempts; i++) {
    const struct run_attempt *attempt = &run.attempts[i];
    bool is_there = history->is_there[i];
    if ((attempt->fate == RUN_COMMITTED && !is_there) ||
        ((attempt->fate == RUN_LOST || attempt->fate == RUN_NEVER) && is_there))
      task_fail("transaction %zu of client %u on node %u (n %" PRId64 ", token %s) was told %s (code %d), and is %s",
                i + 1, attempt->client, attempt->machine, attempt->n, attempt->token, words[attempt->fate],
                attempt->code, is_there ? "there" : "not there");
  }
}

static void check_reads(const struct history *history) {
  for (size_t i = 0; i < run.n_reads; i++) {
    const struct run_read *read = &run.reads[i];
    if (read->n <= history->n && read->chain == history->chains[read->n]) continue;
    task_fail("at %" PRIu64 " us a read on node %u showed transactions up to %" PRId64
              " that are not the first ones of the history",
              read->at / 1000, read->machine, read->n);
  }
}

/* A token tells the truth on every node. */
static void check_tokens(sqlite3 *const dbs[], const struct history *history) {
  char sql[160], word[32];
  for (uint32_t i = 1; i <= run.n_machines; i++) {
    if (!run.processes[i].is_member) continue;
    task_enter(run.processes[i].machine);
    for (size_t k = 0; k < run.n_attempts; k++) {
      const struct run_attempt *attempt = &run.attempts[k];
      if (!attempt->token[0] || (!attempt->code && (k + i) % 8 != 0)) continue;
      snprintf(sql, sizeof sql, "SELECT balsa_outcome('%s')", attempt->token);
      int code = client_ask_text(dbs[i], sql, word, sizeof word);
      const char *truth = history->is_there[k] ? "committed" : "lost";
      if (code != SQLITE_OK || strcmp(word, truth) != 0)
        task_fail("node %u says of %s: %s (%d), and it is %s", i, attempt->token, word, code, truth);
    }
  }
}

static void check_integrity(sqlite3 *const dbs[]) {
  char text[RUN_TEXT_MAX];
  uint32_t one = first_member();
  task_enter(run.processes[one].machine);
  int code = client_ask_text(dbs[one], "PRAGMA integrity_check", text, sizeof text);
  if (code != SQLITE_OK || strcmp(text, "ok") != 0) task_fail("integrity_check: %d, %s", code, text);
}

void check_end(void) {
  sqlite3 *dbs[MACHINES_MAX + 1] = {NULL};
  struct history history = {0};
  while (run.n_busy > 0) task_sleep(10 * TASK_MS);
  for (uint32_t i = 1; i <= run.n_machines; i++) dbs[i] = connect(i);
  wait_applied(dbs, commit_last(dbs));
  compare_bytes(dbs);
  check_integrity(dbs);
  task_enter(run.processes[first_member()].machine);
  read_history(dbs[first_member()], &history);
  check_attempts(&history);
  check_reads(&history);
  check_tokens(dbs, &history);
  for (uint32_t i = 1; i <= run.n_machines; i++) {
    task_enter(run.processes[i].machine);
    check_state(&run.processes[i]);
    sqlite3_close(dbs[i]);
  }
  task_enter(NULL);
  free(history.chains);
  free(history.is_there);
}
