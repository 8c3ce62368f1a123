/*
** What is lost, and how a node or a cluster goes on: setting aside, a new cluster from one node, looking at stopped nodes.
** A machine that dies at its n-th change stands for a kill at that moment.
*/
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ext/compare.h"
#include "ext/node.h"
#include "ext/os_read_only.h"
#include "node_test.h"

#define WITH "&heartbeat=20&election=300&commit_timeout=2000&snapshot_threshold=1M" /* small segments: made fast */
#define PATIENCE_MS 30000
#define DEATHS_MAX 400

/* ---- A machine that dies ---- */

static struct os dying;
static atomic_int changes_left = INT32_MAX; /* until it is dead */

struct dying_file {
  struct os_file file; /* first */
  struct os_file *inner;
};

static struct os_file *inner_of(struct os_file *file) {
  return ((struct dying_file *)file)->inner;
}

/* May this change still be made? */
static bool lives(void) {
  return atomic_load(&changes_left) == INT32_MAX || atomic_fetch_sub(&changes_left, 1) > 0;
}

static uint64_t dying_now(struct os *os) {
  (void)os;
  return os_now(os_real());
}

static void dying_random(struct os *os, void *bytes, size_t size) {
  (void)os;
  os_random(os_real(), bytes, size);
}

static uint64_t dying_boot(struct os *os) {
  (void)os;
  return os_boot(os_real());
}

static int dying_open(struct os *os, const char *path, int flags, struct os_file **out) {
  struct os_stat stat;
  struct dying_file *made = calloc(1, sizeof *made);
  bool creates = (flags & OS_OPEN_CREATE) && os_stat(os_real(), path, &stat) != 0;
  int error = creates && !lives() ? -EIO : os_open(os_real(), path, flags, &made->inner);
  *out = error ? NULL : &made->file;
  made->file.os = os;
  if (error) free(made);
  return error;
}

static void dying_close(struct os_file *file) {
  os_close(inner_of(file));
  free(file);
}

static int64_t dying_read(struct os_file *file, void *bytes, size_t size, uint64_t offset) {
  return os_read(inner_of(file), bytes, size, offset);
}

static int dying_write(struct os_file *file, const void *bytes, size_t size, uint64_t offset) {
  return lives() ? os_write(inner_of(file), bytes, size, offset) : -EIO;
}

static int dying_sync(struct os_file *file) {
  return lives() ? os_sync(inner_of(file)) : -EIO;
}

static int dying_truncate(struct os_file *file, uint64_t size) {
  return lives() ? os_truncate(inner_of(file), size) : -EIO;
}

static int dying_allocate(struct os_file *file, uint64_t size) {
  return lives() ? os_allocate(inner_of(file), size) : -EIO;
}

static int dying_size(struct os_file *file, uint64_t *size) {
  return os_size(inner_of(file), size);
}

static int dying_file_stat(struct os_file *file, struct os_stat *stat) {
  return os_file_stat(inner_of(file), stat);
}

static int dying_lock(struct os_file *file, enum os_lock lock, uint64_t start, uint64_t length) {
  return os_lock(inner_of(file), lock, start, length);
}

static bool dying_find_lock(struct os_file *file, uint64_t start, uint64_t length, int64_t *process) {
  return os_find_lock(inner_of(file), start, length, process);
}

static int dying_stat(struct os *os, const char *path, struct os_stat *stat) {
  (void)os;
  return os_stat(os_real(), path, stat);
}

static int dying_real_path(struct os *os, const char *path, char real[OS_PATH_MAX]) {
  (void)os;
  return os_real_path(os_real(), path, real);
}

static int dying_rename(struct os *os, const char *from, const char *to) {
  (void)os;
  return lives() ? os_rename(os_real(), from, to) : -EIO;
}

static int dying_remove(struct os *os, const char *path) {
  (void)os;
  return lives() ? os_remove(os_real(), path) : -EIO;
}

static int dying_make_directory(struct os *os, const char *path) {
  (void)os;
  return lives() ? os_make_directory(os_real(), path) : -EIO;
}

static int dying_sync_directory(struct os *os, const char *path) {
  (void)os;
  return os_sync_directory(os_real(), path);
}

static int dying_list(struct os *os, const char *path, int (*each)(void *ctx, const char *name), void *ctx) {
  (void)os;
  return os_list(os_real(), path, each, ctx);
}

static int dying_thread_start(struct os *os, const char *name, void (*work)(void *arg), void *arg,
                              struct os_thread **thread) {
  (void)os;
  return os_thread_start(os_real(), name, work, arg, thread);
}

static int dying_condition_wait(struct os *os, pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline) {
  (void)os;
  return os_condition_wait(os_real(), condition, mutex, deadline);
}

static void use_dying_machine(void) {
  static const struct os_methods methods = {
      .now = dying_now,
      .random = dying_random,
      .boot = dying_boot,
      .open = dying_open,
      .close = dying_close,
      .read = dying_read,
      .write = dying_write,
      .sync = dying_sync,
      .truncate = dying_truncate,
      .allocate = dying_allocate,
      .size = dying_size,
      .file_stat = dying_file_stat,
      .lock = dying_lock,
      .find_lock = dying_find_lock,
      .stat = dying_stat,
      .real_path = dying_real_path,
      .rename = dying_rename,
      .remove = dying_remove,
      .make_directory = dying_make_directory,
      .sync_directory = dying_sync_directory,
      .list = dying_list,
      .thread_start = dying_thread_start,
      .thread_join = os_thread_join,
      .condition_wait = dying_condition_wait,
  };
  dying.methods = &methods;
  node_use_machine(&(struct node_machine){.os = &dying});
}

/* ---- What the tests share ---- */

static void await_words(sqlite3 *db, const char *sql, const char *words) {
  char last[1024] = "";
  for (int i = 0; i < PATIENCE_MS; i++) {
    snprintf(last, sizeof last, "%s", ask(db, sql));
    if (strstr(last, words)) return;
    usleep(1000);
  }
  fail_msg("%s: \"%s\" never had \"%s\"", sql, last, words);
}

static bool is_there(const char *name) {
  struct stat status;
  return stat(path_of(name), &status) == 0;
}

/* A cluster of three that was stopped: node1.db holds some rows, and everything that belongs to it is in "old". */
static void make_cluster(struct cluster *cluster) {
  *cluster = (struct cluster){.options = WITH};
  open_cluster(cluster);
  run_on_leader(cluster, "CREATE TABLE t(a)");
  for (int i = 0; i < 20; i++) run_on_leader(cluster, "INSERT INTO t VALUES(randomblob(300))");
  assert_equal_nodes(cluster, run_on_leader(cluster, "INSERT INTO t VALUES(1)"));
  stop_cluster(cluster);
  assert_true(is_there("node1.db-balsa/members"));
  assert_int_equal(mkdir(path_of("old"), 0700), 0);
  copy("node1.db", "old/node1.db");
  copy("node1.db-balsa", "old/node1.db-balsa");
}

static void restore(void) {
  copy("old/node1.db", "node1.db");
  copy("old/node1.db-balsa", "node1.db-balsa");
  unlink(path_of("node1.db-wal"));
  unlink(path_of("node1.db-shm"));
}

#define LOG_AT 8192 /* an offset in the log that holds an acknowledged entry */

/* One that was killed is opened again with this as many changes before it dies; then it is opened in peace. */
static bool open_and_die(const struct cluster *cluster, int changes, sqlite3 **db) {
  sqlite3 *dead = NULL;
  atomic_store(&changes_left, changes);
  int code = open_member_code(cluster, 0, &dead);
  bool has_died = atomic_load(&changes_left) <= 0;
  if (code == SQLITE_OK) balsa_stop(dead, NULL);
  sqlite3_close(dead);
  atomic_store(&changes_left, INT32_MAX);
  assert_int_equal(open_member_code(cluster, 0, db), SQLITE_OK);
  return has_died;
}

/* ---- Beginning anew ---- */

static void a_damaged_log_is_set_aside_whenever_the_node_dies_on_the_way(void **state) {
  struct cluster cluster;
  bool has_died = true;
  (void)state;
  make_cluster(&cluster);
  for (int changes = 8; changes < DEATHS_MAX && has_died; changes += 1 + changes / 8) {
    sqlite3 *db = NULL;
    restore();
    flip_byte(path_of("node1.db-balsa/log/00000001.log"), LOG_AT);
    has_died = open_and_die(&cluster, changes, &db);
    await_words(db, "SELECT role FROM balsa_status", "joining");
    assert_string_equal(ask(db, "SELECT node FROM balsa_status"), "1");
    assert_string_equal(ask(db, "SELECT term || log_last FROM balsa_status"), "00");
    stop(db);
    /* Nothing of it is gone, and nothing is there twice. */
    const char *lost = is_there("node1.db-balsa/lost-2/log") ? "node1.db-balsa/lost-2" : "node1.db-balsa/lost-1";
    static const char *const names[] = {"vote", "log/00000001.log", "snapshots", "database", "node1.db"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
      char name[128];
      snprintf(name, sizeof name, "%s/%s", lost, names[i]);
      if (!is_there(name)) fail_msg("after %d changes %s is not there", changes, name);
    }
  }
  assert_false(has_died);
}

static void what_is_lost_in_a_cluster_of_one_stays_where_it_is(void **state) {
  (void)state;
  sqlite3 *db = open_node("one.db", "");
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(randomblob(9000))");
  stop(db);
  flip_byte(path_of("one.db-balsa/log/00000001.log"), LOG_AT);
  assert_refused("one.db", "", "offset");
  assert_refused("one.db", "", "cluster of one");
  assert_refused("one.db", "&rebuild=1", "cluster of one");
  flip_byte(path_of("one.db-balsa/log/00000001.log"), LOG_AT);
  db = open_node("one.db", "");
  assert_string_equal(ask(db, "SELECT count(*) FROM t"), "1");
  stop(db);
  assert_false(is_there("one.db-balsa/lost-1"));
}

static void who_knows_no_member_asks_a_person(void **state) {
  struct cluster cluster;
  sqlite3 *db = NULL;
  (void)state;
  make_cluster(&cluster);
  flip_byte(path_of("node1.db-balsa/log/00000001.log"), LOG_AT);
  unlink(path_of("node1.db-balsa/members"));
  char own[64], more[160];
  snprintf(own, sizeof own, "&node=1&listen=127.0.0.1:%d", cluster.ports[0]);
  assert_refused("node1.db", own, "rebuild=1 and join=");
  snprintf(more, sizeof more, "%s&rebuild=1&join=127.0.0.1:%d", own, cluster.ports[1]);
  assert_int_equal(open_code("node1.db", more, &db), SQLITE_OK);
  assert_string_equal(ask(db, "SELECT role FROM balsa_status"), "joining");
  stop(db);
  assert_true(is_there("node1.db-balsa/lost-1/node1.db"));
}

static void a_program_that_has_the_database_open_goes_on_with_the_same_file(void **state) {
  struct cluster cluster;
  struct stat before, after, kept;
  sqlite3 *db = NULL;
  (void)state;
  make_cluster(&cluster);
  flip_byte(path_of("node1.db-balsa/log/00000001.log"), LOG_AT);
  sqlite3 *plain = open_plain("node1.db");
  assert_string_equal(ask(plain, "SELECT count(*) FROM t"), "21");
  assert_int_equal(stat(path_of("node1.db"), &before), 0);
  assert_int_equal(open_member_code(&cluster, 0, &db), SQLITE_OK);
  assert_string_equal(ask(db, "SELECT role FROM balsa_status"), "joining");
  assert_int_equal(stat(path_of("node1.db"), &after), 0);
  assert_true(before.st_ino == after.st_ino);
  assert_int_equal(after.st_size, 0);
  assert_int_equal(stat(path_of("node1.db-balsa/lost-1/node1.db"), &kept), 0);
  assert_int_equal(kept.st_size, before.st_size);
  assert_int_not_equal(run_code(plain, "SELECT count(*) FROM t"),
                       SQLITE_OK); /* nobody shows it what may not be committed */
  stop(db);
  sqlite3_close(plain);
}

static void await_on_leader(struct cluster *cluster, const char *sql, const char *words) {
  for (int i = 0; i < PATIENCE_MS; i++) {
    for (int j = 0; j < 3; j++) {
      if (!cluster->db[j] || strcmp(ask(cluster->db[j], "SELECT role FROM balsa_status"), "leader") != 0) continue;
      if (strstr(ask(cluster->db[j], sql), words)) return;
    }
    usleep(1000);
  }
  fail_msg("%s never had \"%s\" on the leader", sql, words);
}

static void a_log_that_proves_damaged_while_it_is_read_is_replaced_when_the_node_is_opened_again(void **state) {
  struct cluster cluster = {.options = WITH};
  char log[64];
  (void)state;
  open_cluster(&cluster);
  int leader = run_on_leader(&cluster, "CREATE TABLE t(a)"), late = (leader + 1) % 3;
  stop(cluster.db[late]);
  cluster.db[late] = NULL;
  for (int i = 0; i < 40; i++) run_on_leader(&cluster, "INSERT INTO t VALUES(randomblob(300))");
  for (int i = 0; i < 3; i++) { /* so that nothing of the log is in memory */
    if (i == late) continue;
    stop(cluster.db[i]);
    cluster.db[i] = NULL;
  }
  for (int i = 0; i < 3; i++)
    if (i != late) open_member(&cluster, i);
  leader = run_on_leader(&cluster, "INSERT INTO t VALUES(1)");
  snprintf(log, sizeof log, "node%d.db-balsa/log/00000001.log", leader + 1);
  flip_byte(path_of(log), LOG_AT);
  open_member(&cluster, late); /* it is sent what is damaged there */
  await_words(cluster.db[leader], "SELECT state FROM balsa_status", "damaged at offset");
  assert_int_equal(sqlite3_close(cluster.db[leader]), SQLITE_OK);
  cluster.db[leader] = NULL;
  await_on_leader(&cluster, "SELECT count(*) FROM t", "41"); /* the third one had all of it */
  open_member(&cluster, leader);
  await_on_leader(&cluster, "SELECT group_concat(role, '') FROM balsa_members", "votervotervoter");
  assert_equal_nodes(&cluster, run_on_leader(&cluster, "INSERT INTO t VALUES(2)"));
  snprintf(log, sizeof log, "node%d.db-balsa/lost-1/log", leader + 1);
  assert_true(is_there(log));
  stop_cluster(&cluster);
}

/* ---- A new cluster ---- */

static void recover(sqlite3 *db, const struct cluster *cluster, const char *words) {
  char sql[256];
  snprintf(sql, sizeof sql, "SELECT balsa_recover('1@127.0.0.1:%d,2@127.0.0.1:%d')", cluster->ports[0],
           cluster->ports[1]);
  if (words)
    assert_fails(db, sql, words);
  else
    run(db, sql);
}

static void a_recovery_ends_whenever_the_node_dies_on_the_way(void **state) {
  struct cluster cluster;
  char old[64], rows[64];
  bool has_died = true;
  sqlite3 *db = NULL;
  (void)state;
  make_cluster(&cluster);
  assert_int_equal(open_member_code(&cluster, 0, &db), SQLITE_OK);
  snprintf(old, sizeof old, "%s", ask(db, "SELECT cluster FROM balsa_status"));
  snprintf(rows, sizeof rows, "%s", "21");
  recover(db, &cluster, NULL);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  copy("node1.db", "old/node1.db");
  copy("node1.db-balsa", "old/node1.db-balsa");
  for (int changes = 8; changes < DEATHS_MAX && has_died; changes += 1 + changes / 8) {
    restore();
    has_died = open_and_die(&cluster, changes, &db);
    await_words(db, "SELECT state FROM balsa_status", "ready");
    assert_string_equal(ask(db, "SELECT role FROM balsa_status"), "leader");
    assert_string_not_equal(ask(db, "SELECT cluster FROM balsa_status"), old);
    assert_string_equal(ask(db, "SELECT count(*) FROM t"), rows);
    run(db, "INSERT INTO t VALUES(2)");
    recover(db, &cluster, "cluster of one already");
    stop(db);
  }
  assert_false(has_died);
}

static void a_cluster_that_can_go_on_is_not_recovered(void **state) {
  struct cluster cluster = {.options = WITH};
  (void)state;
  open_cluster(&cluster);
  assert_equal_nodes(&cluster, run_on_leader(&cluster, "CREATE TABLE t(a)"));
  for (int i = 0; i < 3; i++) recover(cluster.db[i], &cluster, "leads");
  stop_cluster(&cluster);
}

/* ---- Looking at stopped nodes ---- */

static void a_machine_that_is_only_read_changes_nothing(void **state) {
  struct os_read_only read_only;
  struct os_file *file = NULL;
  struct os_stat before, after;
  char bytes[8] = "";
  (void)state;
  os_read_only_init(&read_only, os_real());
  assert_int_equal(os_open(os_real(), path_of("file"), OS_OPEN_WRITE | OS_OPEN_CREATE, &file), 0);
  assert_int_equal(os_write(file, "content", 7, 0), 0);
  os_close(file);
  assert_int_equal(os_stat(os_real(), path_of("file"), &before), 0);
  assert_int_equal(os_open(&read_only.os, path_of("file"), OS_OPEN_WRITE, &file), 0);
  assert_int_equal(os_write(file, "other!!", 7, 0), 0);
  assert_int_equal(os_truncate(file, 0), 0);
  assert_int_equal(os_read(file, bytes, 7, 0), 7);
  os_close(file);
  assert_string_equal(bytes, "content");
  assert_int_equal(os_remove(&read_only.os, path_of("file")), 0);
  assert_int_equal(os_rename(&read_only.os, path_of("file"), path_of("elsewhere")), 0);
  assert_int_equal(os_make_directory(&read_only.os, path_of("folder")), 0);
  assert_int_equal(os_open(&read_only.os, path_of("new"), OS_OPEN_WRITE | OS_OPEN_CREATE, &file), 0);
  uint64_t size = 1;
  assert_int_equal(os_size(file, &size), 0);
  assert_int_equal(size, 0);
  os_close(file);
  assert_int_equal(os_stat(os_real(), path_of("file"), &after), 0);
  assert_memory_equal(&before, &after, sizeof before);
  assert_false(is_there("new"));
  assert_false(is_there("folder"));
}

static void the_most_advanced_of_stopped_nodes_is_named(void **state) {
  struct cluster cluster;
  char sql[1024], advice[HOLDING_TEXT_MAX];
  struct holding holding;
  (void)state;
  make_cluster(&cluster);
  copy("node1.db-balsa", "behind.db-balsa");
  for (int i = 0; i < 3; i++) open_member(&cluster, i);
  assert_equal_nodes(&cluster, run_on_leader(&cluster, "INSERT INTO t VALUES(3)"));
  holding_look(os_real(), path_of("node1.db"), &holding);
  assert_non_null(strstr(holding.problem, "stop that node first"));
  stop_cluster(&cluster);
  sqlite3 *db = open_plain("plain.db");
  snprintf(sql, sizeof sql, "SELECT group_concat(substr(advice, 1, 6)) FROM balsa_compare('%s, %s/node3.db,%s')",
           path_of("behind.db-balsa"), folder, path_of("nowhere.db"));
  assert_string_equal(ask(db, sql), "behind,the mo,cannot");
  snprintf(sql, sizeof sql, "SELECT problem FROM balsa_compare('%s')", path_of("nowhere.db"));
  assert_non_null(strstr(ask(db, sql), "is not there"));
  flip_byte(path_of("node1.db-balsa/log/00000001.log"), LOG_AT);
  snprintf(sql, sizeof sql, "SELECT problem FROM balsa_compare('%s')", path_of("node1.db"));
  assert_non_null(strstr(ask(db, sql), "offset"));
  assert_fails(db, "SELECT * FROM balsa_compare", "wants the paths");
  sqlite3_close(db);
  /* The rule of votes: a later term counts more than a longer log. */
  struct holding two[2] = {{.last_term = 2, .last_index = 90}, {.last_term = 3, .last_index = 40}};
  assert_true(holding_is_ahead(&two[1], &two[0]));
  holding_advise(two, 2, 1, advice);
  assert_non_null(strstr(advice, "recover here"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_damaged_log_is_set_aside_whenever_the_node_dies_on_the_way),
      TEST(a_program_that_has_the_database_open_goes_on_with_the_same_file),
      TEST(a_log_that_proves_damaged_while_it_is_read_is_replaced_when_the_node_is_opened_again),
      TEST(what_is_lost_in_a_cluster_of_one_stays_where_it_is),
      TEST(who_knows_no_member_asks_a_person),
      TEST(a_recovery_ends_whenever_the_node_dies_on_the_way),
      TEST(a_cluster_that_can_go_on_is_not_recovered),
      TEST(a_machine_that_is_only_read_changes_nothing),
      TEST(the_most_advanced_of_stopped_nodes_is_named),
  };
  use_dying_machine();
  if (balsa_init() != SQLITE_OK) return 1;
  return cmocka_run_group_tests_name("rebuild", tests, NULL, NULL);
}
