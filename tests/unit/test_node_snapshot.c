/* Snapshots of a node of its own: taken under load, what they hold, what the log forgets, and starting from them. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <lz4frame.h>

#include "node_test.h"

#define TRIES_MAX 20000 /* of something that takes a few */
#define WRITERS 3
#define ACCOUNTS 50

/* ---- SQL ---- */

static sqlite3 *open_app(const char *options) {
  sqlite3 *db = open_node("app.db", options);
  sqlite3_busy_timeout(db, TIMEOUT_MS);
  return db;
}

static uint64_t ask_number(sqlite3 *db, const char *sql) {
  return strtoull(ask(db, sql), NULL, 10);
}

static void fill(sqlite3 *db, int rows) {
  char sql[256];
  run(db, "CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)");
  snprintf(sql, sizeof sql,
           "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<%d) INSERT INTO t(b) SELECT "
           "randomblob(300) FROM n",
           rows);
  run(db, sql);
}

/* ---- Files ---- */

static int find_snapshot(const struct dirent *entry) {
  return strncmp(entry->d_name, "snapshot-", 9) == 0;
}

/* The path of the only snapshot; NULL if there is none. */
static const char *the_snapshot(void) {
  static char path[512];
  struct dirent **names = NULL;
  int n = scandir(path_of("app.db-balsa/snapshots"), &names, find_snapshot, alphasort);
  assert_true(n == 0 || n == 1);
  if (n == 1) snprintf(path, sizeof path, "%s/%s", path_of("app.db-balsa/snapshots"), names[0]->d_name);
  if (n == 1) free(names[0]);
  free(names);
  return n == 1 ? path : NULL;
}

static uint8_t *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  assert_int_equal(fseek(file, 0, SEEK_END), 0);
  *size = (size_t)ftell(file);
  rewind(file);
  uint8_t *bytes = malloc(*size + 1);
  assert_non_null(bytes);
  assert_int_equal(fread(bytes, 1, *size, file), *size);
  fclose(file);
  return bytes;
}

/* As `lz4 -d` does it: no word of ours. */
static void decode(const char *from, const char *to) {
  size_t size, used = 0;
  uint8_t *bytes = read_file(from, &size), *out = malloc(1 << 20);
  LZ4F_dctx *lz4 = NULL;
  FILE *file = fopen(to, "wb");
  assert_true(out && file && !LZ4F_isError(LZ4F_createDecompressionContext(&lz4, LZ4F_VERSION)));
  while (used < size) {
    size_t in = size - used, n = 1 << 20;
    size_t result = LZ4F_decompress(lz4, out, &n, bytes + used, &in, NULL);
    assert_false(LZ4F_isError(result));
    assert_true(in > 0 || n > 0);
    used += in;
    assert_int_equal(fwrite(out, 1, n, file), n);
  }
  LZ4F_freeDecompressionContext(lz4);
  fclose(file);
  free(bytes);
  free(out);
}

static sqlite3 *open_decoded(void) {
  sqlite3 *db = NULL;
  decode(the_snapshot(), path_of("decoded.db"));
  assert_int_equal(sqlite3_open(path_of("decoded.db"), &db), SQLITE_OK);
  assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
  return db;
}

static void close_decoded(sqlite3 *db) {
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  assert_int_equal(unlink(path_of("decoded.db")), 0);
}

/* ---- What it holds ---- */

static void a_snapshot_is_the_database_at_its_index(void **state) {
  (void)state;
  sqlite3 *db = open_app("");
  fill(db, 3000);
  run(db, "DELETE FROM t WHERE a % 3 = 0");
  uint64_t index = ask_number(db, "SELECT balsa_snapshot()");
  assert_true(index == ask_number(db, "SELECT commit_index FROM balsa_status"));
  assert_true(index == ask_number(db, "SELECT snapshot FROM balsa_status"));
  stop(db);
  size_t size, expected_size;
  decode(the_snapshot(), path_of("decoded.db"));
  uint8_t *bytes = read_file(path_of("decoded.db"), &size), *expected = read_file(path_of("app.db"), &expected_size);
  assert_int_equal(size, expected_size);
  assert_memory_equal(bytes, expected, size);
  free(bytes);
  free(expected);
  close_decoded(open_decoded());
}

static void what_is_written_later_is_in_the_next_one_only(void **state) {
  (void)state;
  sqlite3 *db = open_app("&page_size=512&auto_vacuum=full");
  fill(db, 100);
  uint64_t first = ask_number(db, "SELECT balsa_snapshot()");
  assert_true(ask_number(db, "SELECT balsa_snapshot()") == first); /* nothing has changed: it is that one */
  fill(db, 1);
  sqlite3 *decoded = open_decoded();
  assert_string_equal(ask(decoded, "SELECT count(*) FROM t"), "100");
  close_decoded(decoded);
  assert_true(ask_number(db, "SELECT balsa_snapshot()") > first);
  decoded = open_decoded(); /* and the one before has gone */
  assert_string_equal(ask(decoded, "SELECT count(*) FROM t"), "101");
  close_decoded(decoded);
  stop(db);
}

static void who_would_wait_for_itself_and_what_is_empty_is_refused(void **state) {
  (void)state;
  sqlite3 *db = open_app("");
  assert_fails(db, "SELECT balsa_snapshot()", "not been written to");
  run(db, "CREATE TABLE t(a); BEGIN IMMEDIATE; INSERT INTO t VALUES(1)");
  assert_fails(db, "SELECT balsa_snapshot()", "write transaction open");
  run(db, "COMMIT; BEGIN; SELECT * FROM t");
  run(db, "SELECT balsa_snapshot()"); /* a reader is in nobody's way */
  run(db, "COMMIT");
  stop(db);
}

/* ---- Under load ---- */

struct writer {
  pthread_t thread;
  unsigned seed;
  atomic_bool *end;
  int commits;
};

/* Moves money: the sum stays. */
static void *move(void *arg) {
  struct writer *writer = arg;
  sqlite3 *db = open_app("");
  char sql[512];
  while (!atomic_load(writer->end)) {
    int from = rand_r(&writer->seed) % ACCOUNTS, to = rand_r(&writer->seed) % ACCOUNTS;
    snprintf(sql, sizeof sql,
             "BEGIN IMMEDIATE; UPDATE account SET money = money - 7, note = randomblob(%d) WHERE id = %d; UPDATE "
             "account SET money = money + 7 WHERE id = %d; INSERT INTO moved(note) VALUES(randomblob(200)); COMMIT",
             rand_r(&writer->seed) % 9000, from, to);
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK)
      writer->commits++;
    else if (!sqlite3_get_autocommit(db))
      sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
  }
  sqlite3_close(db);
  return NULL;
}

static void make_accounts(sqlite3 *db) {
  char sql[128];
  run(db,
      "CREATE TABLE account(id INTEGER PRIMARY KEY, money, note); CREATE TABLE moved(id INTEGER PRIMARY KEY, note)");
  for (int i = 0; i < ACCOUNTS; i++) {
    snprintf(sql, sizeof sql, "INSERT INTO account VALUES(%d, 1000, randomblob(2000))", i);
    run(db, sql);
  }
}

static void start_writers(struct writer *writers, atomic_bool *end) {
  for (unsigned i = 0; i < WRITERS; i++) {
    writers[i] = (struct writer){.seed = i + 1, .end = end};
    assert_int_equal(pthread_create(&writers[i].thread, NULL, move, &writers[i]), 0);
  }
}

static int end_writers(struct writer *writers, atomic_bool *end) {
  int commits = 0;
  atomic_store(end, true);
  for (int i = 0; i < WRITERS; i++) {
    pthread_join(writers[i].thread, NULL);
    commits += writers[i].commits;
  }
  return commits;
}

static void snapshots_under_load_show_one_state_each(void **state) {
  struct writer writers[WRITERS];
  atomic_bool end = false;
  uint64_t last = 0, moved = 0;
  (void)state;
  sqlite3 *db = open_app("");
  make_accounts(db);
  start_writers(writers, &end);
  for (int i = 0; i < 8; i++) {
    uint64_t index = ask_number(db, "SELECT balsa_snapshot()");
    assert_true(index >= last);
    sqlite3 *decoded = open_decoded();
    assert_int_equal(ask_number(decoded, "SELECT sum(money) FROM account"), ACCOUNTS * 1000);
    uint64_t now = ask_number(decoded, "SELECT count(*) FROM moved");
    assert_true(now >= moved);
    close_decoded(decoded);
    last = index;
    moved = now;
  }
  int commits = end_writers(writers, &end);
  assert_true(commits > 0);
  uint64_t index = ask_number(db, "SELECT balsa_snapshot()");
  sqlite3 *decoded = open_decoded();
  assert_int_equal(ask_number(decoded, "SELECT count(*) FROM moved"), commits);
  close_decoded(decoded);
  assert_true(index == ask_number(db, "SELECT commit_index FROM balsa_status"));
  stop(db);
}

/* ---- The log ---- */

#define TINY "&snapshot_threshold=64K&log_tail=16K"

/* Writes until the log no longer begins at 1: by then a snapshot and a checkpoint were made by themselves. */
static void write_until_compacted(sqlite3 *db) {
  uint64_t first = ask_number(db, "SELECT log_first FROM balsa_status");
  for (int i = 0; i < TRIES_MAX; i++) {
    fill(db, 20);
    run(db, "DELETE FROM t WHERE a < (SELECT max(a) FROM t) - 200");
    if (ask_number(db, "SELECT log_first FROM balsa_status") > first) return;
  }
  fail_msg("the log was not compacted: snapshot %s", ask(db, "SELECT snapshot FROM balsa_status"));
}

static void assert_starts_with(const char *options, const char *sum, uint64_t log_first) {
  sqlite3 *db = open_app(options);
  run(db, "DELETE FROM t WHERE false"); /* waits until it leads */
  assert_string_equal(ask(db, "SELECT count(*) || ' ' || sum(a) FROM t"), sum);
  assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
  /* The disk keeps whole segments, so a start may find more than was told; the node compacts it again by itself. */
  for (int i = 0; i < TRIES_MAX && ask_number(db, "SELECT log_first FROM balsa_status") < log_first; i++)
    run(db, "SELECT balsa_snapshot()");
  assert_true(ask_number(db, "SELECT log_first FROM balsa_status") >= log_first);
  stop(db);
}

static void a_heavy_log_is_compacted_behind_a_snapshot(void **state) {
  char sum[64], token[128], sql[256];
  (void)state;
  sqlite3 *db = open_app(TINY);
  fill(db, 1);
  snprintf(token, sizeof token, "%s", ask(db, "SELECT balsa_last_commit()"));
  for (int i = 0; i < 3; i++) write_until_compacted(db);
  uint64_t first = ask_number(db, "SELECT log_first FROM balsa_status");
  assert_true(first > 1);
  assert_true(ask_number(db, "SELECT snapshot FROM balsa_status") + 1 >= first);
  snprintf(sum, sizeof sum, "%s", ask(db, "SELECT count(*) || ' ' || sum(a) FROM t"));
  stop(db);
  /* What is compacted is known all the same: members, and fates. */
  db = open_app(TINY);
  assert_string_equal(ask(db, "SELECT count(*) FROM balsa_members"), "1");
  snprintf(sql, sizeof sql, "SELECT balsa_outcome('%s')", token);
  assert_string_equal(ask(db, sql), "committed");
  snprintf(sql, sizeof sql, "SELECT balsa_outcome('99%s')", strchr(token, '.'));
  assert_string_equal(ask(db, sql), "lost");
  stop(db);
  assert_starts_with(TINY, sum, first);
}

static void a_lost_or_changed_database_is_made_from_the_snapshot_and_the_log(void **state) {
  char sum[64];
  (void)state;
  sqlite3 *db = open_app(TINY);
  write_until_compacted(db);
  uint64_t first = ask_number(db, "SELECT log_first FROM balsa_status");
  snprintf(sum, sizeof sum, "%s", ask(db, "SELECT count(*) || ' ' || sum(a) FROM t"));
  stop(db);
  assert_int_equal(unlink(path_of("app.db")), 0);
  assert_starts_with(TINY, sum, first);
  assert_int_equal(truncate(path_of("app.db"), 4096), 0);
  assert_starts_with(TINY, sum, first);
  flip_byte(path_of("app.db"), 5000);
  assert_starts_with(TINY, sum, first);
}

/* The head of a snapshot, and the copy of it. */
static void damage_heads(void) {
  flip_byte(the_snapshot(), 50);
  flip_byte(path_of("app.db-balsa/snapshots/snapshot.head"), 50);
}

static void a_damaged_snapshot_is_done_without_if_the_log_suffices(void **state) {
  char sum[64];
  struct stat status;
  (void)state;
  for (int where = 0; where < 2; where++) {
    sqlite3 *db = open_app("");
    fill(db, 500);
    snprintf(sum, sizeof sum, "%s", ask(db, "SELECT count(*) || ' ' || sum(a) FROM t"));
    run(db, "SELECT balsa_snapshot()");
    stop(db);
    assert_int_equal(stat(the_snapshot(), &status), 0);
    if (where == 0) damage_heads();
    if (where == 1) flip_byte(the_snapshot(), (long)status.st_size / 2);
    if (where == 1) assert_int_equal(unlink(path_of("app.db")), 0); /* so that it is read */
    assert_starts_with("", sum, 1);
    assert_null(the_snapshot());
  }
}

static void a_damaged_snapshot_that_is_needed_is_named_with_the_offset(void **state) {
  struct stat status;
  char sum[64], damaged[512];
  (void)state;
  sqlite3 *db = open_app(TINY);
  write_until_compacted(db);
  snprintf(sum, sizeof sum, "%s", ask(db, "SELECT count(*) || ' ' || sum(a) FROM t"));
  stop(db);
  assert_int_equal(stat(the_snapshot(), &status), 0);
  damage_heads();
  assert_refused("app.db", "", "damaged at offset");
  assert_non_null(strstr(vfs_open_error(), the_snapshot()));
  damage_heads(); /* they are whole again */
  snprintf(damaged, sizeof damaged, "%s", the_snapshot());
  flip_byte(damaged, status.st_size / 2);
  assert_starts_with(TINY, sum, 2); /* its pages are not needed */
  if (strcmp(the_snapshot(), damaged) != 0) flip_byte(the_snapshot(), 2000);
  assert_int_equal(unlink(path_of("app.db")), 0);
  assert_refused("app.db", "", "damaged at offset");
  assert_non_null(strstr(vfs_open_error(), the_snapshot()));
}

static void after_damage_to_a_head_its_copy_counts_and_another_snapshot_is_taken(void **state) {
  char sum[64];
  (void)state;
  sqlite3 *db = open_app(TINY);
  write_until_compacted(db);
  snprintf(sum, sizeof sum, "%s", ask(db, "SELECT count(*) || ' ' || sum(a) FROM t"));
  stop(db);
  flip_byte(the_snapshot(), 50);
  db = open_app(TINY);
  assert_string_equal(ask(db, "SELECT count(*) || ' ' || sum(a) FROM t"), sum);
  run(db, "SELECT balsa_snapshot()"); /* nobody wrote: it would be the same one */
  stop(db);
  assert_int_equal(unlink(path_of("app.db-balsa/snapshots/snapshot.head")), 0);
  assert_int_equal(unlink(path_of("app.db")), 0);
  assert_starts_with(TINY, sum, 2);
}

static void a_lost_snapshot_that_is_needed_is_missed(void **state) {
  (void)state;
  sqlite3 *db = open_app(TINY);
  write_until_compacted(db);
  stop(db);
  assert_int_equal(unlink(the_snapshot()), 0);
  assert_refused("app.db", "", "no snapshot in");
}

/* ---- What a crash leaves ---- */

/*
** The state between the name of a snapshot that the leader has sent and the log's new beginning: the node's files are
** those of an earlier time, and the snapshot is of a later one. *sum is what it shows.
*/
static void leave_installation_undone(char sum[64]) {
  sqlite3 *db = open_app("");
  fill(db, 100);
  run(db, "SELECT balsa_snapshot()");
  fill(db, 100);
  stop(db);
  copy("app.db", "old.db");
  copy("app.db-balsa", "old.db-balsa");
  db = open_app("");
  fill(db, 700);
  run(db, "SELECT balsa_snapshot()");
  snprintf(sum, 64, "%s", ask(db, "SELECT count(*) || ' ' || sum(a) FROM t"));
  stop(db);
  copy("app.db-balsa/snapshots", "later");
  copy("old.db", "app.db");
  copy("old.db-balsa", "app.db-balsa");
  char command[600];
  snprintf(command, sizeof command,
           "rm '%s'/app.db-balsa/snapshots/* && cp '%s'/later/*.lz4 '%s/app.db-balsa/snapshots'", folder, folder,
           folder);
  assert_int_equal(system(command), 0);
}

static void an_installation_that_was_cut_off_is_ended_at_the_next_start(void **state) {
  char undone[64], sum[64];
  (void)state;
  leave_installation_undone(undone);
  copy("app.db", "undone.db");
  copy("app.db-balsa", "undone.db-balsa");
  for (int with_database = 1; with_database >= 0; with_database--) {
    copy("undone.db", "app.db");
    copy("undone.db-balsa", "app.db-balsa");
    if (!with_database) assert_int_equal(unlink(path_of("app.db")), 0);
    sqlite3 *db = open_app("");
    assert_string_equal(ask(db, "SELECT count(*) || ' ' || sum(a) FROM t"), undone);
    assert_true(ask_number(db, "SELECT log_first FROM balsa_status") > 1);
    fill(db, 10);
    snprintf(sum, sizeof sum, "%s", ask(db, "SELECT count(*) || ' ' || sum(a) FROM t"));
    stop(db);
    assert_starts_with("", sum, 2);
  }
}

static void a_damaged_snapshot_is_not_installed(void **state) {
  char sum[64];
  struct stat status;
  (void)state;
  leave_installation_undone(sum);
  assert_int_equal(stat(the_snapshot(), &status), 0);
  flip_byte(the_snapshot(), status.st_size - 1000);
  assert_starts_with("", "200 20100", 1); /* what the log has */
  assert_null(the_snapshot());
}

static void an_older_snapshot_takes_the_place_of_a_damaged_one(void **state) {
  char sum[64], older[512], kept[256];
  (void)state;
  sqlite3 *db = open_app("&snapshot_threshold=64K&log_tail=4M"); /* the log still reaches the older one */
  fill(db, 300);
  run(db, "SELECT balsa_snapshot()");
  snprintf(older, sizeof older, "%s", the_snapshot());
  snprintf(kept, sizeof kept, "%s", path_of("kept"));
  assert_int_equal(link(older, kept), 0);
  fill(db, 300);
  run(db, "SELECT balsa_snapshot()");
  snprintf(sum, sizeof sum, "%s", ask(db, "SELECT count(*) || ' ' || sum(a) FROM t"));
  stop(db);
  damage_heads();
  assert_int_equal(link(kept, older), 0);
  assert_int_equal(unlink(path_of("app.db")), 0);
  assert_starts_with("", sum, 1);
  assert_string_equal(the_snapshot(), older);
}

/* ---- In the way ---- */

static void a_snapshot_that_fails_is_told_and_nothing_is_forgotten(void **state) {
  (void)state;
  sqlite3 *db = open_app("&snapshot_threshold=64K&log_tail=0");
  fill(db, 1);
  assert_int_equal(mkdir(path_of("app.db-balsa/snapshots/snapshot.new"), 0755), 0);
  assert_fails(db, "SELECT balsa_snapshot()", "snapshot.new");
  assert_non_null(strstr(ask(db, "SELECT snapshot FROM balsa_status"), "none; failed: "));
  for (int i = 0; i < 40; i++) fill(db, 20);
  assert_string_equal(ask(db, "SELECT log_first FROM balsa_status"), "1");
  assert_null(the_snapshot());
  assert_int_equal(rmdir(path_of("app.db-balsa/snapshots/snapshot.new")), 0);
  uint64_t index = ask_number(db, "SELECT balsa_snapshot()");
  assert_true(index == strtoull(ask(db, "SELECT snapshot FROM balsa_status"), NULL, 10));
  assert_null(strstr(ask(db, "SELECT snapshot FROM balsa_status"), "failed"));
  write_until_compacted(db);
  stop(db);
}

/* In a process of its own: closing a descriptor of the file would drop this one's locks on it. */
static void damage_database(off_t offset) {
  int status = 0;
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    int descriptor = open(path_of("app.db"), O_RDWR);
    char byte = 0;
    bool is_done = pread(descriptor, &byte, 1, offset) == 1;
    byte = (char)~byte;
    _exit(is_done && pwrite(descriptor, &byte, 1, offset) == 1 ? 0 : 1);
  }
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_int_equal(status, 0);
}

static void a_database_that_differs_from_its_log_is_found_by_a_snapshot_and_quarantined(void **state) {
  (void)state;
  struct stat status;
  sqlite3 *db = open_app("");
  fill(db, 3000);
  stop(db);
  db = open_app("");
  assert_int_equal(stat(path_of("app.db"), &status), 0);
  damage_database(status.st_size - 100);
  assert_fails(db, "SELECT balsa_snapshot()", "app.db is damaged at offset");
  assert_non_null(strstr(ask(db, "SELECT state FROM balsa_status"), "quarantined"));
  assert_null(the_snapshot());
  stop(db);
}

static void a_stop_does_not_wait_for_a_snapshot(void **state) {
  struct writer writers[WRITERS];
  atomic_bool end = false;
  (void)state;
  for (int i = 0; i < 5; i++) {
    sqlite3 *db = open_app("&snapshot_threshold=4K&log_tail=4K"); /* one is always being written */
    if (i == 0) make_accounts(db);
    atomic_store(&end, false);
    start_writers(writers, &end);
    for (int n = 0; n < 20; n++) run(db, "INSERT INTO moved(note) VALUES(randomblob(5000))");
    end_writers(writers, &end);
    stop(db);
    db = open_app("");
    assert_int_equal(ask_number(db, "SELECT sum(money) FROM account"), ACCOUNTS * 1000);
    stop(db);
  }
}

/* ---- Followers ---- */

static void a_follower_that_cannot_take_a_snapshot_does_not_hold_the_log_back_for_ever(void **state) {
  (void)state;
  struct cluster cluster = {.options = TINY};
  const char *in_the_way = path_of("node3.db-balsa/snapshots/snapshot.part");
  char name[512];
  open_cluster(&cluster);
  snprintf(name, sizeof name, "%s", in_the_way);
  run_on_leader(&cluster, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
  stop(cluster.db[2]);
  cluster.db[2] = NULL;
  for (int i = 0; i < 100; i++) run_on_leader(&cluster, "INSERT INTO t(b) VALUES(randomblob(3000))");
  int leader = run_on_leader(&cluster, "SELECT balsa_snapshot()");
  assert_int_equal(mkdir(name, 0755), 0);
  open_member(&cluster, 2);
  bool is_pinned = false;
  uint64_t first = 0, begun = 0;
  for (int i = 0; i < TRIES_MAX && (!is_pinned || first <= begun + 1000); i++) {
    leader = run_on_leader(&cluster,
                           "INSERT INTO t(a, b) VALUES(1, randomblob(3000)) ON CONFLICT DO UPDATE SET b = excluded.b");
    first = ask_number(cluster.db[leader], "SELECT log_first FROM balsa_status");
    bool is_sending = strstr(ask(cluster.db[leader], "SELECT group_concat(snapshot) FROM balsa_members"), "%") != NULL;
    if (is_sending && !is_pinned) begun = ask_number(cluster.db[leader], "SELECT commit_index FROM balsa_status");
    is_pinned = is_pinned || is_sending;
  }
  assert_true(is_pinned && first > begun + 1000);
  assert_int_equal(rmdir(name), 0);
  assert_equal_nodes(&cluster, leader);
  stop_cluster(&cluster);
}

/* ---- The term ---- */

static void a_log_that_became_durable_before_its_term_is_gone_on_with(void **state) {
  char command[1024];
  (void)state;
  sqlite3 *db = open_app("");
  fill(db, 10);
  stop(db);
  snprintf(command, sizeof command, "cp '%s' '%s'", path_of("app.db-balsa/vote"), path_of("vote"));
  assert_int_equal(system(command), 0);
  db = open_app(""); /* another term */
  fill(db, 10);
  stop(db);
  snprintf(command, sizeof command, "cp '%s' '%s'", path_of("vote"), path_of("app.db-balsa/vote"));
  assert_int_equal(system(command), 0);
  assert_starts_with("", "20 210", 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_snapshot_is_the_database_at_its_index),
      TEST(what_is_written_later_is_in_the_next_one_only),
      TEST(who_would_wait_for_itself_and_what_is_empty_is_refused),
      TEST(snapshots_under_load_show_one_state_each),
      TEST(a_heavy_log_is_compacted_behind_a_snapshot),
      TEST(a_lost_or_changed_database_is_made_from_the_snapshot_and_the_log),
      TEST(a_damaged_snapshot_is_done_without_if_the_log_suffices),
      TEST(a_damaged_snapshot_that_is_needed_is_named_with_the_offset),
      TEST(after_damage_to_a_head_its_copy_counts_and_another_snapshot_is_taken),
      TEST(a_lost_snapshot_that_is_needed_is_missed),
      TEST(an_installation_that_was_cut_off_is_ended_at_the_next_start),
      TEST(a_damaged_snapshot_is_not_installed),
      TEST(an_older_snapshot_takes_the_place_of_a_damaged_one),
      TEST(a_snapshot_that_fails_is_told_and_nothing_is_forgotten),
      TEST(a_database_that_differs_from_its_log_is_found_by_a_snapshot_and_quarantined),
      TEST(a_stop_does_not_wait_for_a_snapshot),
      TEST(a_follower_that_cannot_take_a_snapshot_does_not_hold_the_log_back_for_ever),
      TEST(a_log_that_became_durable_before_its_term_is_gone_on_with),
  };
  if (balsa_init() != SQLITE_OK) return 1;
  return cmocka_run_group_tests_name("node_snapshot", tests, NULL, NULL);
}
