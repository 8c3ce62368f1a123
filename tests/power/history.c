#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "power.h"

void history_init(struct history *history) {
  *history = (struct history){.capacity = 64};
  pthread_mutex_init(&history->mutex, NULL);
  history->states = calloc(history->capacity, sizeof *history->states);
  if (!history->states) abort();
}

void history_free(struct history *history) {
  pthread_mutex_destroy(&history->mutex);
  free(history->states);
}

size_t history_begin(struct history *history, uint64_t number, uint64_t digest) {
  pthread_mutex_lock(&history->mutex);
  if (history->n == history->capacity) {
    history->capacity *= 2;
    history->states = realloc(history->states, history->capacity * sizeof *history->states);
    if (!history->states) abort();
  }
  size_t place = history->n++;
  history->states[place] = (struct state){.number = number, .digest = digest};
  pthread_mutex_unlock(&history->mutex);
  return place;
}

void history_end(struct history *history, size_t place, enum fate fate, const char *token) {
  pthread_mutex_lock(&history->mutex);
  struct state *state = &history->states[place];
  state->is_settled = true;
  if (state->fate == FATE_OPEN) state->fate = fate; /* a reader may have been faster */
  if (token) snprintf(state->token, sizeof state->token, "%s", token);
  pthread_mutex_unlock(&history->mutex);
}

/* mutex held. The one of these numbers that can be it. */
static struct state *find(struct history *history, uint64_t number, uint64_t digest) {
  for (size_t i = history->n; i > 0; i--) {
    struct state *state = &history->states[i - 1];
    if (state->number == number && state->digest == digest && state->fate != FATE_LOST) return state;
  }
  return NULL;
}

static const char *word_of(enum fate fate) {
  return fate == FATE_OPEN ? "open" : fate == FATE_COMMITTED ? "acknowledged" : "lost";
}

/* mutex held. What is known of that number, for people. */
static void describe(struct history *history, uint64_t number, uint64_t digest, char *text) {
  size_t length = (size_t)snprintf(
      text, POWER_TEXT_MAX, "the database is at transaction %" PRIu64 " (%016" PRIx64 "), of which is known:", number,
      digest);
  for (size_t i = 0; i < history->n && length < POWER_TEXT_MAX; i++) {
    const struct state *state = &history->states[i];
    if (state->number + 1 < number || state->number > number + 1) continue;
    length += (size_t)snprintf(text + length, POWER_TEXT_MAX - length, " [%" PRIu64 " %016" PRIx64 " %s]",
                               state->number, state->digest, word_of(state->fate));
  }
}

/* mutex held. */
static bool is_only_one(const struct history *history, const struct state *state) {
  for (size_t i = 0; i < history->n; i++) {
    const struct state *other = &history->states[i];
    if (other != state && other->number == state->number && other->fate != FATE_LOST) return false;
  }
  return true;
}

bool history_sees(struct history *history, uint64_t number, uint64_t digest, bool is_start, char *text) {
  bool ok = true;
  pthread_mutex_lock(&history->mutex);
  struct state *seen = find(history, number, digest);
  if (!seen) {
    describe(history, number, digest, text);
    ok = false;
  }
  for (size_t i = 0; i < history->n && ok; i++) {
    struct state *state = &history->states[i];
    if (state->fate != FATE_COMMITTED || state->number <= number || !is_start) continue;
    snprintf(text, POWER_TEXT_MAX,
             "transaction %" PRIu64 " is gone: it was acknowledged (or read), and the database is at %" PRIu64,
             state->number, number);
    ok = false;
  }
  if (ok) seen->fate = FATE_COMMITTED;
  for (size_t i = 0; i < history->n && ok && is_start; i++) {
    struct state *state = &history->states[i];
    if (state == seen || state->fate != FATE_OPEN) continue;
    if (state->number >= number)
      state->fate = FATE_LOST;
    else if (is_only_one(history, state))
      state->fate = FATE_COMMITTED; /* what was seen stands on it */
  }
  pthread_mutex_unlock(&history->mutex);
  return ok;
}

/* ---- Digests ---- */

static void add(XXH64_state_t *hash, const void *bytes, size_t size) {
  uint64_t length = size;
  XXH64_update(hash, &length, sizeof length);
  if (size) XXH64_update(hash, bytes, size);
}

static int add_rows(XXH64_state_t *hash, sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement = NULL;
  int code = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);
  while (code == SQLITE_OK && (code = sqlite3_step(statement)) == SQLITE_ROW) {
    for (int i = 0; i < sqlite3_column_count(statement); i++) {
      int type = sqlite3_column_type(statement, i);
      const void *bytes = sqlite3_column_blob(statement, i);
      add(hash, &type, sizeof type);
      add(hash, bytes, (size_t)sqlite3_column_bytes(statement, i));
    }
    code = SQLITE_OK;
  }
  sqlite3_finalize(statement);
  return code == SQLITE_DONE ? SQLITE_OK : code;
}

static int add_tables(XXH64_state_t *hash, sqlite3 *db) {
  sqlite3_stmt *statement = NULL;
  int code = sqlite3_prepare_v2(
      db, "SELECT name FROM sqlite_schema WHERE type='table' AND name<>'journal' ORDER BY name", -1, &statement, NULL);
  while (code == SQLITE_OK && (code = sqlite3_step(statement)) == SQLITE_ROW) {
    char *sql = sqlite3_mprintf("SELECT * FROM \"%w\" ORDER BY rowid", sqlite3_column_text(statement, 0));
    code = sql ? add_rows(hash, db, sql) : SQLITE_NOMEM;
    sqlite3_free(sql);
  }
  sqlite3_finalize(statement);
  return code == SQLITE_DONE ? SQLITE_OK : code;
}

static int take_number(void *out, int n, char **values, char **names) {
  (void)n, (void)names;
  if (values[0]) *(uint64_t *)out = strtoull(values[0], NULL, 10);
  return 0;
}

static int read_number(sqlite3 *db, uint64_t *number) {
  uint64_t has_journal = 0;
  *number = 0;
  int code = sqlite3_exec(db, "SELECT count(*) FROM sqlite_schema WHERE name='journal'", take_number, &has_journal,
                          NULL);
  if (code != SQLITE_OK || !has_journal) return code;
  return sqlite3_exec(db, "SELECT number FROM journal", take_number, number, NULL);
}

/* The caller has a transaction open, or nobody writes. */
int digest_content(sqlite3 *db, uint64_t *number, uint64_t *digest) {
  XXH64_state_t *hash = XXH64_createState();
  if (!hash) abort();
  XXH64_reset(hash, 0);
  int code = read_number(db, number);
  if (code == SQLITE_OK)
    code = add_rows(hash, db,
                    "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name<>'journal' ORDER BY type, name");
  if (code == SQLITE_OK) code = add_rows(hash, db, "PRAGMA user_version");
  if (code == SQLITE_OK) code = add_tables(hash, db);
  *digest = XXH64_digest(hash);
  XXH64_freeState(hash);
  return code;
}
