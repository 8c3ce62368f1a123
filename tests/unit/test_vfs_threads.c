/*
** Writers, readers, checkpoints and changes of leadership side by side, over the stand-in for the node. Afterwards every
** answer is held against the table.
*/
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "stand_in.h"

#define WRITERS 16
#define READERS 4
#define ROUNDS 40
#define IDS_MAX 100000

enum answer { ANSWER_NONE, ANSWER_OK, ANSWER_LOST, ANSWER_UNKNOWN };

struct shared {
  struct stand_in node;
  atomic_bool stop;
  atomic_int next_id;
  atomic_uchar answers[IDS_MAX];
  atomic_int wrong; /* reads that showed what was lost, or lacked what was acknowledged */
  atomic_int reads;
};

static int run(sqlite3 *db, const char *sql) {
  int code = sqlite3_exec(db, sql, NULL, NULL, NULL);
  return code == SQLITE_OK ? code : sqlite3_extended_errcode(db);
}

static enum answer answer_of(int code) {
  switch (code) {
  case SQLITE_OK: return ANSWER_OK;
  case VFS_SQLITE_UNKNOWN: return ANSWER_UNKNOWN;
  default: return ANSWER_LOST; /* lost, or never begun */
  }
}

static void *write_rows(void *argument) {
  struct shared *shared = argument;
  sqlite3 *db = stand_in_connect(&shared->node);
  char sql[128];
  sqlite3_busy_timeout(db, 1000);
  run(db, "PRAGMA balsa_timeout=200");
  unsigned seed = (unsigned)(uintptr_t)db;
  while (!atomic_load(&shared->stop)) {
    int id = atomic_fetch_add(&shared->next_id, 1);
    if (id >= IDS_MAX) break;
    bool is_explicit = rand_r(&seed) % 4 == 0;
    int code = SQLITE_OK;
    if (is_explicit) {
      code = run(db, "BEGIN");
      snprintf(sql, sizeof sql, "INSERT INTO t VALUES (%d)", id);
      if (code == SQLITE_OK) code = run(db, sql);
      if (code == SQLITE_OK) code = run(db, "COMMIT");
      if (!sqlite3_get_autocommit(db)) run(db, "ROLLBACK");
    } else {
      snprintf(sql, sizeof sql, "INSERT INTO t VALUES (%d)", id);
      code = run(db, sql);
    }
    atomic_store(&shared->answers[id], (unsigned char)answer_of(code));
  }
  sqlite3_close(db);
  return NULL;
}

/* What was told before the snapshot began must be true in it. */
static void *read_rows(void *argument) {
  struct shared *shared = argument;
  sqlite3 *db = stand_in_connect(&shared->node);
  unsigned char *told = malloc(IDS_MAX);
  sqlite3_stmt *statement = NULL;
  sqlite3_busy_timeout(db, 1000);
  while (!atomic_load(&shared->stop)) {
    int n = atomic_load(&shared->next_id);
    if (n > IDS_MAX) n = IDS_MAX;
    for (int i = 0; i < n; i++) told[i] = atomic_load(&shared->answers[i]);
    if (!statement && sqlite3_prepare_v2(db, "SELECT a FROM t", -1, &statement, NULL) != SQLITE_OK) continue;
    int code;
    while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
      int id = sqlite3_column_int(statement, 0);
      if (id >= n) continue;
      if (told[id] == ANSWER_LOST) atomic_fetch_add(&shared->wrong, 1);
      if (told[id] == ANSWER_OK) told[id] = ANSWER_NONE;
    }
    if (code == SQLITE_DONE) {
      atomic_fetch_add(&shared->reads, 1);
      for (int i = 0; i < n; i++)
        if (told[i] == ANSWER_OK) atomic_fetch_add(&shared->wrong, 1);
    }
    sqlite3_reset(statement);
  }
  sqlite3_finalize(statement);
  sqlite3_close(db);
  free(told);
  return NULL;
}

static void *checkpoint_often(void *argument) {
  struct shared *shared = argument;
  char text[VFS_TEXT_MAX];
  while (!atomic_load(&shared->stop)) {
    vfs_checkpoint(shared->node.database, text);
    stand_in_pause(1);
  }
  return NULL;
}

/* Holds commits back, lets some of them go and loses the rest, again and again. */
static void change_leaders(struct shared *shared) {
  unsigned seed = 1;
  for (int round = 0; round < ROUNDS; round++) {
    stand_in_pause(5 + (unsigned)rand_r(&seed) % 10);
    stand_in_hold(&shared->node);
    stand_in_pause((unsigned)rand_r(&seed) % 10);
    stand_in_commit_some(&shared->node, (unsigned)rand_r(&seed));
    stand_in_step_down(&shared->node);
    stand_in_pause((unsigned)rand_r(&seed) % 3);
    stand_in_lead(&shared->node);
  }
}

static void check_answers(struct shared *shared) {
  sqlite3 *db = stand_in_connect(&shared->node);
  int *count = calloc(IDS_MAX, sizeof *count);
  int n[4] = {0};
  sqlite3_stmt *statement = NULL;
  assert_int_equal(sqlite3_prepare_v2(db, "SELECT a FROM t", -1, &statement, NULL), SQLITE_OK);
  while (sqlite3_step(statement) == SQLITE_ROW) count[sqlite3_column_int(statement, 0)]++;
  assert_int_equal(sqlite3_finalize(statement), SQLITE_OK);
  for (int id = 0; id < IDS_MAX; id++) {
    int answer = atomic_load(&shared->answers[id]);
    n[answer]++;
    if (answer == ANSWER_OK)
      assert_int_equal(count[id], 1);
    else if (answer == ANSWER_UNKNOWN)
      assert_true(count[id] <= 1);
    else
      assert_int_equal(count[id], 0);
  }
  assert_true(n[ANSWER_OK] > 0);
  assert_true(n[ANSWER_LOST] > 0);
  print_message("%d acknowledged, %d lost, %d unknown; %d whole reads\n", n[ANSWER_OK], n[ANSWER_LOST],
                n[ANSWER_UNKNOWN], atomic_load(&shared->reads));
  free(count);
  sqlite3_close(db);
}

static void every_answer_is_true_while_leadership_comes_and_goes(void **state) {
  (void)state;
  struct shared *shared = calloc(1, sizeof *shared);
  pthread_t threads[WRITERS + READERS + 1];
  stand_in_open(&shared->node, 4096, 0, 20000);
  sqlite3 *db = stand_in_connect(&shared->node);
  assert_int_equal(run(db, "CREATE TABLE t(a)"), SQLITE_OK);
  for (int i = 0; i < WRITERS; i++) pthread_create(&threads[i], NULL, write_rows, shared);
  for (int i = 0; i < READERS; i++) pthread_create(&threads[WRITERS + i], NULL, read_rows, shared);
  pthread_create(&threads[WRITERS + READERS], NULL, checkpoint_often, shared);
  change_leaders(shared);
  stand_in_pause(20);
  atomic_store(&shared->stop, true);
  for (int i = 0; i < WRITERS + READERS + 1; i++) pthread_join(threads[i], NULL);
  check_answers(shared);
  assert_int_equal(atomic_load(&shared->wrong), 0);

  struct stand_in follower;
  struct vfs_status left, right;
  stand_in_open(&follower, 4096, 0, 20000);
  follower.checkpoints_itself = true;
  stand_in_follow(&follower, &shared->node);
  vfs_get_status(shared->node.database, &left);
  vfs_get_status(follower.database, &right);
  assert_true(left.checksum == right.checksum);
  sqlite3_close(db);
  stand_in_close(&follower);
  stand_in_close(&shared->node);
  free(shared);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_answer_is_true_while_leadership_comes_and_goes),
  };
  stand_in_setup();
  return cmocka_run_group_tests_name("vfs under threads", tests, NULL, NULL);
}
