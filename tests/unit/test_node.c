/* A node from open to stop: alone, with an existing database, after crashes at its beginning, and three of them. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ext/slot_file.h"
#include "node_test.h"
#include "raft/io/hard_state.h"

/* ---- Alone ---- */

static void a_new_database_is_writable_at_once_and_keeps_its_rows(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "");
  assert_string_equal(ask(db, "SELECT role FROM balsa_status"), "leader");
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(1),(2)");
  assert_string_equal(ask(db, "SELECT state FROM balsa_status"), "ready");
  assert_string_equal(ask(db, "SELECT tolerates FROM balsa_status"), "0");
  char cluster[64], checksum[32];
  snprintf(cluster, sizeof cluster, "%s", ask(db, "SELECT cluster FROM balsa_status"));
  snprintf(checksum, sizeof checksum, "%s", ask(db, "SELECT checksum FROM balsa_status"));
  assert_int_equal(strlen(cluster), 32);
  stop(db);

  db = open_node("app.db", "");
  assert_string_equal(ask(db, "SELECT state FROM balsa_status"), "ready");
  assert_string_equal(ask(db, "SELECT group_concat(a) FROM t"), "1,2");
  assert_string_equal(ask(db, "SELECT cluster FROM balsa_status"), cluster);
  assert_string_equal(ask(db, "SELECT checksum FROM balsa_status"), checksum);
  run(db, "INSERT INTO t VALUES(3)");
  assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
  stop(db);

  db = open_plain("app.db");
  assert_string_equal(ask(db, "SELECT group_concat(a) FROM t"), "1,2,3");
  sqlite3_close(db);
}

static void the_node_outlives_its_last_connection(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "");
  run(db, "CREATE TABLE t(a)");
  char term[32];
  snprintf(term, sizeof term, "%s", ask(db, "SELECT term FROM balsa_status"));
  sqlite3_close(db);
  db = open_node("app.db", "");
  assert_string_equal(ask(db, "SELECT term FROM balsa_status"), term);
  stop(db);
}

static void an_existing_database_becomes_the_first_state(void **state) {
  static const char *const content =
      "SELECT count(*) || ' ' || sum(a) || ' ' || (SELECT hex(substr(b, 1, 8)) FROM t WHERE a = 4999) FROM t";
  static const char *const modes[] = {"delete", "truncate", "persist", "wal"};
  (void)state;
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
    char name[32], sql[512];
    snprintf(name, sizeof name, "%s.db", modes[i]);
    sqlite3 *db = open_plain(name);
    snprintf(sql, sizeof sql,
             "PRAGMA page_size=1024; PRAGMA journal_mode=%s; CREATE TABLE t(a, b);"
             "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<5000) INSERT INTO t SELECT i, "
             "randomblob(400) FROM n",
             modes[i]);
    run(db, sql);
    char sum[64];
    snprintf(sum, sizeof sum, "%s", ask(db, content));
    sqlite3_close(db);
    for (int round = 0; round < 2; round++) {
      db = open_node(name, "");
      assert_string_equal(ask(db, content), sum);
      assert_string_equal(ask(db, "PRAGMA page_size"), "1024");
      assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
      run(db, "DELETE FROM t WHERE a = -1; UPDATE t SET b = b WHERE a = 1");
      stop(db);
    }
  }
}

static void page_size_and_auto_vacuum_are_those_of_the_options(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "&page_size=65536&auto_vacuum=incremental");
  run(db, "CREATE TABLE t(a)");
  assert_string_equal(ask(db, "PRAGMA page_size"), "65536");
  assert_string_equal(ask(db, "PRAGMA auto_vacuum"), "2");
  stop(db);
}

static void two_names_of_one_file_are_one_node(void **state) {
  (void)state;
  assert_int_equal(symlink("app.db", path_of("other.db")), 0);
  assert_int_equal(mkdir(path_of("sub"), 0755), 0);
  sqlite3 *db = open_node("app.db", "");
  sqlite3 *linked = open_node("other.db", "");
  sqlite3 *dotted = open_node("sub/../app.db", "");
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
  run(linked, "INSERT INTO t VALUES(2)");
  assert_string_equal(ask(dotted, "SELECT count(*) FROM t"), "2");
  char node[32];
  snprintf(node, sizeof node, "%s", ask(db, "SELECT node FROM balsa_status"));
  assert_string_equal(ask(linked, "SELECT node FROM balsa_status"), node);
  assert_int_equal(access(path_of("other.db-balsa"), F_OK), -1);
  sqlite3_close(linked);
  sqlite3_close(dotted);
  stop(db);
}

static void a_stopped_node_answers_no_more_and_opens_again_once_all_are_closed(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "");
  sqlite3 *second = open_node("app.db", "");
  run(db, "CREATE TABLE t(a)");
  assert_string_equal(ask(second, "SELECT count(*) FROM t"), "0");
  assert_string_equal(ask(db, "SELECT balsa_stop()"), "1");
  assert_int_not_equal(run_code(second, "INSERT INTO t VALUES(1)"), SQLITE_OK);
  assert_int_not_equal(run_code(db, "SELECT * FROM t"), SQLITE_OK);
  assert_non_null(strstr(ask(db, "SELECT balsa_error()"), "stopped by balsa_stop()"));
  assert_non_null(strstr(ask(second, "SELECT balsa_error()"), "stopped by balsa_stop()"));
  assert_refused("app.db", "", "close them first");
  sqlite3_close(db);
  assert_refused("app.db", "", "close them first");
  sqlite3_close(second);
  db = open_node("app.db", "");
  assert_string_equal(ask(db, "SELECT count(*) FROM t"), "0");
  stop(db);
}

static void a_refused_option_makes_no_file(void **state) {
  (void)state;
  assert_refused("app.db", "&node=none", "node");
  assert_refused("app.db", "&listen=0.0.0.0:1&insecure=1", "advertise");
  assert_refused("app.db", "&colour=blue", "colour");
  assert_int_equal(access(path_of("app.db"), F_OK), -1);
  assert_int_equal(access(path_of("app.db-balsa"), F_OK), -1);
}

static void a_node_keeps_its_number(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "&node=7");
  assert_string_equal(ask(db, "SELECT node FROM balsa_status"), "7");
  assert_refused("app.db", "&node=8", "node 7");
  stop(db);
  assert_refused("app.db", "&node=8", "node 7");
  db = open_node("app.db", "");
  assert_string_equal(ask(db, "SELECT node FROM balsa_status"), "7");
  stop(db);
}

static void a_file_that_may_not_be_created_is_not(void **state) {
  sqlite3 *db = NULL;
  char uri[300];
  (void)state;
  snprintf(uri, sizeof uri, "file:%s/none.db?vfs=balsa&mode=rw", folder);
  assert_int_equal(sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI, NULL), SQLITE_CANTOPEN);
  sqlite3_close(db);
  assert_int_equal(access(path_of("none.db-balsa"), F_OK), -1);
}

static void a_lost_vote_or_log_is_refused_by_name(void **state) {
  char command[512];
  (void)state;
  sqlite3 *db = open_node("app.db", "");
  run(db, "CREATE TABLE t(a)");
  stop(db);
  assert_int_equal(rename(path_of("app.db-balsa/vote"), path_of("vote")), 0);
  assert_refused("app.db", "", "vote is missing");
  assert_int_equal(rename(path_of("vote"), path_of("app.db-balsa/vote")), 0);
  snprintf(command, sizeof command, "rm -r '%s/app.db-balsa/log'", folder);
  assert_int_equal(system(command), 0);
  assert_refused("app.db", "", "log");
}

/* ---- The beginning, interrupted ---- */

static void write_formation(const char *formation) {
  char payload[SLOT_FILE_PAYLOAD_MAX], changed[SLOT_FILE_PAYLOAD_MAX + 32];
  struct slot_file *file = NULL;
  size_t size = 0;
  assert_int_equal(
      slot_file_open(os_real(), path_of("app.db-balsa/options"), "OPTS", 1, payload, sizeof payload - 1, &size, &file),
      0);
  payload[size] = 0;
  char *rest = strchr(payload, '\n');
  assert_non_null(rest);
  snprintf(changed, sizeof changed, "formation=%s%s", formation, rest);
  assert_int_equal(slot_file_write(file, changed, strlen(changed)), 0);
  slot_file_close(file);
}

/* Term 0 and no vote, as before the first election. */
static void forget_term(void) {
  struct raft_hard_state state;
  struct raft_hard_state_file *file = NULL;
  assert_int_equal(raft_hard_state_open(os_real(), path_of("app.db-balsa/vote"), &state, &file), 0);
  raft_hard_state_close(file);
  assert_int_equal(unlink(path_of("app.db-balsa/vote")), 0);
  struct raft_hard_state fresh;
  assert_int_equal(raft_hard_state_open(os_real(), path_of("app.db-balsa/vote"), &fresh, &file), 0);
  state.term = state.voted_for = 0;
  assert_int_equal(raft_hard_state_write(file, &state), 0);
  raft_hard_state_close(file);
}

static void a_cluster_that_was_not_begun_to_the_end_begins_again(void **state) {
  (void)state;
  sqlite3 *db = open_plain("app.db");
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(1),(2),(3)");
  sqlite3_close(db);
  db = open_node("app.db", "&node=5");
  char cluster[64];
  snprintf(cluster, sizeof cluster, "%s", ask(db, "SELECT cluster FROM balsa_status"));
  stop(db);
  /* As a crash leaves it that came before the database was marked: entries are there, nobody has seen them. */
  write_formation("bootstrapping");
  forget_term();
  assert_int_equal(unlink(path_of("app.db-balsa/database")), 0);
  db = open_node("app.db", "");
  run(db, "INSERT INTO t VALUES(4)");
  assert_string_equal(ask(db, "SELECT group_concat(a) FROM t"), "1,2,3,4");
  assert_string_equal(ask(db, "SELECT node FROM balsa_status"), "5");
  assert_string_not_equal(ask(db, "SELECT cluster FROM balsa_status"), cluster);
  stop(db);
}

static void a_cluster_whose_database_was_marked_is_begun(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "");
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
  char cluster[64];
  snprintf(cluster, sizeof cluster, "%s", ask(db, "SELECT cluster FROM balsa_status"));
  stop(db);
  write_formation("bootstrapping");
  db = open_node("app.db", "");
  run(db, "INSERT INTO t VALUES(2)");
  assert_string_equal(ask(db, "SELECT group_concat(a) FROM t"), "1,2");
  assert_string_equal(ask(db, "SELECT cluster FROM balsa_status"), cluster);
  stop(db);
}

/* The mark is kept only once the log has the entry for good. */
static void a_log_that_ends_before_the_node_became_a_member_has_lost_its_end(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "");
  run(db, "CREATE TABLE t(a)");
  stop(db);
  write_formation("formed\njoined=99999");
  assert_refused("app.db", "", "it once went through entry 99999");
  write_formation("formed\njoined=1");
  db = open_node("app.db", "");
  run(db, "INSERT INTO t VALUES(1)");
  stop(db);
}

/* ---- What SQL sees ---- */

static void a_token_tells_the_fate_of_a_commit(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "");
  assert_string_equal(ask(db, "SELECT balsa_last_commit()"), "NULL");
  run(db, "CREATE TABLE t(a)");
  assert_string_equal(ask(db, "SELECT balsa_outcome(balsa_last_commit())"), "committed");
  assert_string_equal(ask(db, "SELECT balsa_outcome(NULL)"), "NULL");
  char sql[128];
  snprintf(sql, sizeof sql, "SELECT balsa_outcome('9.99999.%s')", ask(db, "SELECT cluster FROM balsa_status"));
  assert_string_equal(ask(db, sql), "pending");
  assert_fails(db, "SELECT balsa_outcome('1.2.00000000000000000000000000000000')", "another cluster");
  assert_fails(db, "SELECT balsa_outcome('nonsense')", "no token");
  assert_fails(db, "SELECT balsa_outcome(balsa_last_commit() || 'x')", "no token");
  stop(db);
}

static void waiting_for_an_index_ends_with_it_or_with_the_limit(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "");
  run(db, "CREATE TABLE t(a)");
  run(db, "SELECT balsa_wait((SELECT commit_index FROM balsa_status))");
  assert_fails(db, "SELECT balsa_wait(1000000, 1)", "entry 1000000 is not applied here");
  assert_int_equal(sqlite3_errcode(db), SQLITE_BUSY);
  assert_non_null(strstr(ask(db, "SELECT balsa_error()"), "entry 1000000 is not applied here"));
  assert_fails(db, "SELECT balsa_wait('x')", "index");
  assert_non_null(strstr(ask(db, "SELECT balsa_error()"), "must be an index of the log"));
  assert_fails(db, "SELECT * FROM balsa_members('none')", "none is no replicated database");
  assert_non_null(strstr(ask(db, "SELECT balsa_error()"), "none is no replicated database"));
  assert_fails(db, "SELECT balsa_wait(1, -1)", "ms");
  run(db, "BEGIN IMMEDIATE");
  assert_fails(db, "SELECT balsa_wait(1)", "write transaction");
  assert_fails(db, "SELECT balsa_stop()", "write transaction");
  assert_int_equal(balsa_stop(db, NULL), SQLITE_MISUSE);
  run(db, "ROLLBACK");
  stop(db);
}

static void a_connection_without_a_replicated_database_is_told_so(void **state) {
  sqlite3 *db = NULL;
  (void)state;
  assert_int_equal(sqlite3_open(":memory:", &db), SQLITE_OK);
  assert_fails(db, "SELECT * FROM balsa_status", "no replicated database on this connection");
  assert_fails(db, "SELECT * FROM balsa_members", "no replicated database on this connection");
  assert_fails(db, "SELECT balsa_wait(1)", "no replicated database on this connection");
  assert_fails(db, "SELECT balsa_last_commit()", "no replicated database on this connection");
  assert_fails(db, "SELECT balsa_stop()", "no replicated database on this connection");
  assert_int_equal(balsa_stop(db, NULL), SQLITE_ERROR);
  sqlite3_close(db);
}

static void an_attached_database_is_asked_for_by_its_schema(void **state) {
  char sql[400];
  (void)state;
  sqlite3 *db = open_node("one.db", "&node=1");
  snprintf(sql, sizeof sql, "ATTACH 'file:%s/two.db?vfs=balsa&node=2' AS two", folder);
  run(db, sql);
  assert_string_equal(ask(db, "SELECT node FROM balsa_status"), "1");
  assert_string_equal(ask(db, "SELECT node FROM balsa_status('two')"), "2");
  assert_string_equal(ask(db, "SELECT node FROM balsa_members('two')"), "2");
  assert_fails(db, "SELECT node FROM balsa_status('three')", "three");
  assert_string_equal(ask(db, "SELECT balsa_stop('two')"), "1");
  run(db, "CREATE TABLE main.t(a)");
  stop(db);
}

static void a_forked_child_is_refused(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "");
  run(db, "CREATE TABLE t(a)");
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    sqlite3 *own = NULL;
    bool refused = open_code("app.db", "", &own) == SQLITE_CANTOPEN && strstr(vfs_open_error(), "fork") &&
                   run_code(db, "INSERT INTO t VALUES(1)") != SQLITE_OK &&
                   run_code(db, "SELECT * FROM balsa_status") != SQLITE_OK &&
                   run_code(db, "SELECT balsa_stop()") != SQLITE_OK;
    _exit(refused ? 0 : 1);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  run(db, "INSERT INTO t VALUES(2)");
  assert_string_equal(ask(db, "SELECT group_concat(a) FROM t"), "2");
  stop(db);
}

/* ---- Three ---- */

static void three_nodes_form_a_cluster_and_show_the_same(void **state) {
  struct cluster cluster = {0};
  (void)state;
  open_cluster(&cluster);
  int leader = run_on_leader(&cluster, "CREATE TABLE t(a)");
  for (int i = 0; i < 20; i++) leader = run_on_leader(&cluster, "INSERT INTO t VALUES(1)");
  assert_equal_nodes(&cluster, leader);
  for (int i = 0; i < 3; i++) {
    assert_string_equal(ask(cluster.db[i], "SELECT count(*) FROM t"), "20");
    assert_string_equal(ask(cluster.db[i], "SELECT count(*) FROM balsa_members"), "3");
    assert_string_equal(ask(cluster.db[i], "SELECT count(*) FROM balsa_members WHERE is_leader"), "1");
  }
  int follower = (leader + 1) % 3;
  assert_int_equal(run_code(cluster.db[follower], "INSERT INTO t VALUES(2)"), SQLITE_READONLY);
  assert_non_null(strstr(ask(cluster.db[follower], "SELECT balsa_error()"), "another node leads"));
  char address[64];
  snprintf(address, sizeof address, "127.0.0.1:%d", cluster.ports[leader]);
  assert_string_equal(ask(cluster.db[follower], "SELECT leader_address FROM balsa_status"), address);
  stop_cluster(&cluster);
}

static void an_existing_database_travels_to_the_others(void **state) {
  struct cluster cluster = {0};
  (void)state;
  sqlite3 *plain = open_plain("node2.db");
  run(plain, "PRAGMA page_size=512; CREATE TABLE t(a, b);"
             "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<8000) INSERT INTO t SELECT i, "
             "randomblob(700) FROM n");
  sqlite3_close(plain);
  open_cluster(&cluster);
  int leader = run_on_leader(&cluster, "INSERT INTO t VALUES(0, 'first')");
  assert_equal_nodes(&cluster, leader);
  for (int i = 0; i < 3; i++) {
    assert_string_equal(ask(cluster.db[i], "SELECT count(*) FROM t"), "8001");
    assert_string_equal(ask(cluster.db[i], "PRAGMA page_size"), "512");
    assert_string_equal(ask(cluster.db[i], "PRAGMA integrity_check"), "ok");
  }
  stop_cluster(&cluster);
}

static void members_stay_whatever_peers_says_and_addresses_may_change(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "&node=1");
  assert_refused("app.db", "&node=1&peers=1@127.0.0.1:1,2@127.0.0.1:2", "app.db belongs to a cluster of 1 (node 1)");
  stop(db);
  assert_refused("app.db", "&node=1&peers=1@127.0.0.1:1,2@127.0.0.1:2,3@127.0.0.1:3", "but peers names 1, 2, 3:");
  assert_non_null(strstr(vfs_open_error(), "move app.db-balsa away"));
  assert_refused("app.db", "&peers=2@127.0.0.1:1", "but peers names 2:");
  db = open_node("app.db", "&node=1&peers=1@127.0.0.1:9");
  run(db, "CREATE TABLE t(a)");
  stop(db);
}

static void a_single_node_becomes_one_of_three_without_its_folder(void **state) {
  struct cluster cluster = {0};
  (void)state;
  sqlite3 *db = open_node("node1.db", "&node=1");
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(1),(2)");
  stop(db);
  assert_int_equal(rename(path_of("node1.db-balsa"), path_of("away")), 0);
  open_cluster(&cluster);
  int leader = run_on_leader(&cluster, "INSERT INTO t VALUES(3)");
  assert_equal_nodes(&cluster, leader);
  for (int i = 0; i < 3; i++) assert_string_equal(ask(cluster.db[i], "SELECT group_concat(a) FROM t"), "1,2,3");
  stop_cluster(&cluster);
}

static void two_existing_databases_are_refused_naming_both_nodes(void **state) {
  struct cluster cluster = {0};
  (void)state;
  for (int i = 1; i < 3; i++) {
    char name[32];
    snprintf(name, sizeof name, "node%d.db", i);
    sqlite3 *plain = open_plain(name);
    run(plain, "CREATE TABLE t(a)");
    sqlite3_close(plain);
  }
  open_cluster(&cluster);
  run(cluster.db[0], "PRAGMA balsa_timeout=10");
  const char *status = "";
  while (!strstr(status, "both hold a database")) {
    assert_int_not_equal(run_code(cluster.db[0], "CREATE TABLE u(a)"), SQLITE_OK);
    status = ask(cluster.db[0], "SELECT state FROM balsa_status");
    assert_non_null(strstr(status, "forming"));
  }
  assert_non_null(strstr(status, "node 1"));
  assert_non_null(strstr(status, "node 2"));
  stop_cluster(&cluster);
}

static void a_node_that_was_away_catches_up(void **state) {
  struct cluster cluster = {0};
  (void)state;
  open_cluster(&cluster);
  int leader = run_on_leader(&cluster, "CREATE TABLE t(a, b)");
  int away = (leader + 1) % 3;
  assert_equal_nodes(&cluster, leader);
  stop(cluster.db[away]);
  cluster.db[away] = NULL;
  for (int i = 0; i < 50; i++) run_on_leader(&cluster, "INSERT INTO t VALUES(1, randomblob(2000))");
  open_member(&cluster, away);
  leader = run_on_leader(&cluster, "INSERT INTO t VALUES(2, 'back')");
  assert_equal_nodes(&cluster, leader);
  assert_string_equal(ask(cluster.db[away], "SELECT count(*) FROM t"), "51");
  stop_cluster(&cluster);
}

static void the_others_go_on_without_the_leader(void **state) {
  struct cluster cluster = {0};
  (void)state;
  open_cluster(&cluster);
  run_on_leader(&cluster, "CREATE TABLE t(a)");
  for (int round = 0; round < 3; round++) {
    int leader = run_on_leader(&cluster, "INSERT INTO t VALUES(1)");
    stop(cluster.db[leader]);
    cluster.db[leader] = NULL;
    run_on_leader(&cluster, "INSERT INTO t VALUES(2)");
    open_member(&cluster, leader);
  }
  int leader = run_on_leader(&cluster, "INSERT INTO t VALUES(3)");
  assert_equal_nodes(&cluster, leader);
  assert_string_equal(ask(cluster.db[leader], "SELECT count(*) FROM t"), "7");
  stop_cluster(&cluster);
}

static void all_nodes_stopped_and_started_have_the_same_state(void **state) {
  struct cluster cluster = {0};
  (void)state;
  open_cluster(&cluster);
  run_on_leader(&cluster, "CREATE TABLE t(a)");
  run_on_leader(&cluster, "INSERT INTO t VALUES(1)");
  stop_cluster(&cluster);
  for (int i = 0; i < 3; i++) open_member(&cluster, i);
  int leader = run_on_leader(&cluster, "INSERT INTO t VALUES(2)");
  assert_equal_nodes(&cluster, leader);
  assert_string_equal(ask(cluster.db[leader], "SELECT group_concat(a) FROM t"), "1,2");
  stop_cluster(&cluster);
}

/* Not yet, too, while a read waits for what is not decided. */
static bool has_no_leader(sqlite3 *db) {
  sqlite3_stmt *statement = NULL;
  sqlite3_prepare_v2(db, "SELECT leader IS NULL OR leader = 0 FROM balsa_status", -1, &statement, NULL);
  bool has_none = statement && sqlite3_step(statement) == SQLITE_ROW && sqlite3_column_int(statement, 0) == 1;
  sqlite3_finalize(statement);
  return has_none;
}

static void a_majority_is_needed_to_commit(void **state) {
  struct cluster cluster = {0};
  (void)state;
  open_cluster(&cluster);
  int leader = run_on_leader(&cluster, "CREATE TABLE t(a)");
  assert_equal_nodes(&cluster, leader);
  for (int i = 0; i < 3; i++) {
    if (i == leader) continue;
    stop(cluster.db[i]);
    cluster.db[i] = NULL;
  }
  run(cluster.db[leader], "PRAGMA balsa_timeout=300");
  assert_int_not_equal(run_code(cluster.db[leader], "INSERT INTO t VALUES(1)"), SQLITE_OK);
  while (!has_no_leader(cluster.db[leader])) run_code(cluster.db[leader], "INSERT INTO t VALUES(1)");
  assert_string_equal(ask(cluster.db[leader], "SELECT state || ' ' || tolerates FROM balsa_status"), "no leader 0");
  for (int i = 0; i < 3; i++)
    if (!cluster.db[i]) open_member(&cluster, i);
  run(cluster.db[leader], "PRAGMA balsa_timeout=20000");
  leader = run_on_leader(&cluster, "INSERT INTO t VALUES(2)");
  assert_equal_nodes(&cluster, leader);
  stop_cluster(&cluster);
}

/* ---- Disks that fail ---- */

/* Beneath all nodes of this process: writes to "/log/" or "/vote", or making "next.tmp", fail with `error`. */
static struct {
  pthread_mutex_t mutex;
  const struct os_methods *real;
  struct os_methods methods;
  const char *words; /* NULL: all goes well */
  int error;
  int passes;                /* so many writes go well before */
  struct os_file *files[64]; /* votes */
} disk = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void set_disk(const char *words, int passes, int error) {
  pthread_mutex_lock(&disk.mutex);
  disk.words = words;
  disk.passes = passes;
  disk.error = error;
  pthread_mutex_unlock(&disk.mutex);
}

static int disk_error(const char *path) {
  pthread_mutex_lock(&disk.mutex);
  bool is_hit = disk.words && strstr(path, disk.words);
  int error = is_hit && disk.passes == 0 ? disk.error : 0;
  if (is_hit && disk.passes > 0) disk.passes--;
  pthread_mutex_unlock(&disk.mutex);
  return error;
}

static int disk_open(struct os *os, const char *path, int flags, struct os_file **file) {
  int error = strstr(path, "next.tmp") ? disk_error("next.tmp") : 0; /* a segment that is being made */
  if (!error) error = disk.real->open(os, path, flags, file);
  pthread_mutex_lock(&disk.mutex);
  for (size_t i = 0; !error && strstr(path, "/vote") && i < 64; i++) {
    if (disk.files[i]) continue;
    disk.files[i] = *file;
    break;
  }
  pthread_mutex_unlock(&disk.mutex);
  return error;
}

static void disk_close(struct os_file *file) {
  pthread_mutex_lock(&disk.mutex);
  for (size_t i = 0; i < 64; i++)
    if (disk.files[i] == file) disk.files[i] = NULL;
  pthread_mutex_unlock(&disk.mutex);
  disk.real->close(file);
}

static int disk_write(struct os_file *file, const void *bytes, size_t size, uint64_t offset) {
  bool is_vote = false;
  pthread_mutex_lock(&disk.mutex);
  for (size_t i = 0; i < 64; i++) is_vote = is_vote || disk.files[i] == file;
  pthread_mutex_unlock(&disk.mutex);
  int error = disk_error(is_vote ? "/vote" : "/log/");
  return error ? error : disk.real->write(file, bytes, size, offset);
}

static int wrap_disk(void **state) {
  struct os *os = os_real();
  if (make_folder(state) != 0) return -1;
  disk.real = os->methods;
  disk.methods = *os->methods;
  disk.methods.open = disk_open;
  disk.methods.close = disk_close;
  disk.methods.write = disk_write;
  os->methods = &disk.methods;
  return 0;
}

static int unwrap_disk(void **state) {
  set_disk(NULL, 0, 0);
  os_real()->methods = disk.real;
  return remove_folder(state);
}

static void a_log_that_cannot_be_written_ends_writing_until_a_restart(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "&commit_timeout=300");
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
  set_disk("/log/", 0, -EIO);
  assert_int_not_equal(run_code(db, "INSERT INTO t VALUES(2)"), SQLITE_OK);
  assert_non_null(strstr(ask(db, "SELECT state FROM balsa_status"), "blocked by a failure"));
  assert_string_equal(ask(db, "SELECT role FROM balsa_status"), "follower");
  assert_int_not_equal(run_code(db, "INSERT INTO t VALUES(3)"), SQLITE_OK);
  stop(db);
  set_disk(NULL, 0, 0);
  db = open_node("app.db", "");
  run(db, "INSERT INTO t VALUES(4)");
  assert_non_null(strstr(ask(db, "SELECT group_concat(a) FROM (SELECT a FROM t ORDER BY a)"), "1,"));
  assert_string_equal(ask(db, "SELECT count(*) FROM t WHERE a = 3"), "0");
  stop(db);
}

static void a_vote_that_cannot_be_written_keeps_the_node_from_leading(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "");
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
  stop(db);
  set_disk("/vote", 2, -EIO);
  db = open_node("app.db", "&commit_timeout=100");
  assert_non_null(strstr(ask(db, "SELECT state FROM balsa_status"), "vote: term"));
  assert_string_equal(ask(db, "SELECT count(*) FROM t"), "1");
  assert_int_not_equal(run_code(db, "INSERT INTO t VALUES(2)"), SQLITE_OK);
  stop(db);
  set_disk(NULL, 0, 0);
  db = open_node("app.db", "");
  run(db, "INSERT INTO t VALUES(3)");
  stop(db);
}

static void a_log_on_a_full_disk_refuses_what_it_cannot_take_and_goes_on_when_there_is_room(void **state) {
  char rows[32], sql[64];
  (void)state;
  sqlite3 *db = open_node("app.db", "&snapshot_threshold=1M"); /* segments of 256 KiB */
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(0)");
  set_disk("next.tmp", 0, -ENOSPC);
  int code = SQLITE_OK, n = 1;
  while ((code = run_code(db, "INSERT INTO t VALUES(randomblob(10000))")) == SQLITE_OK) assert_true(n++ < 1000);
  assert_int_equal(code, SQLITE_FULL);
  assert_true(sqlite3_get_autocommit(db));
  assert_non_null(strstr(ask(db, "SELECT balsa_error()"), ".log: cannot make the next segment of the log: No space"));
  assert_non_null(strstr(ask(db, "SELECT state FROM balsa_status"), "blocked by a full disk: "));
  assert_int_equal(run_code(db, "BEGIN; INSERT INTO t VALUES(randomblob(10000)); COMMIT"), SQLITE_FULL);
  assert_true(sqlite3_get_autocommit(db));
  snprintf(rows, sizeof rows, "%d", n);
  assert_string_equal(ask(db, "SELECT count(*) FROM t"), rows);
  assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
  sqlite3 *second = open_node("app.db", "");
  assert_string_equal(ask(second, "SELECT count(*) FROM t"), rows);
  sqlite3_close(second);
  /* What is left of the log is enough to stop and to start again. */
  stop(db);
  db = open_node("app.db", "");
  assert_string_equal(ask(db, "SELECT count(*) FROM t"), rows);
  while ((code = run_code(db, "INSERT INTO t VALUES(0)")) == SQLITE_OK) assert_true(n++ < 1000);
  assert_int_equal(code, SQLITE_FULL);
  set_disk(NULL, 0, 0);
  uint64_t deadline = os_now(os_real()) + TIMEOUT_MS * OS_MS;
  while (run_code(db, "INSERT INTO t VALUES(2)") != SQLITE_OK) assert_true(os_now(os_real()) < deadline);
  /* The helper may have made the segment; the log thread, whose word the state is, tries again a little later. */
  while (strcmp(ask(db, "SELECT state FROM balsa_status"), "ready") != 0) assert_true(os_now(os_real()) < deadline);
  snprintf(sql, sizeof sql, "SELECT count(*) = %d FROM t", n + 1);
  assert_string_equal(ask(db, sql), "1");
  stop(db);
}

static void a_transaction_that_the_log_has_no_room_for_is_taken_back_and_its_parts_too(void **state) {
  (void)state;
  sqlite3 *db = open_node("app.db", "&snapshot_threshold=16M"); /* segments of 4 MiB */
  run(db, "CREATE TABLE t(a); INSERT INTO t VALUES(0)");
  set_disk("next.tmp", 0, -ENOSPC);
  run(db, "BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900) "
          "INSERT INTO t SELECT randomblob(10000) FROM n");
  assert_int_equal(run_code(db, "COMMIT"), SQLITE_FULL);
  assert_true(sqlite3_get_autocommit(db));
  assert_non_null(strstr(ask(db, "SELECT balsa_error()"), "Make room on this disk"));
  assert_string_equal(ask(db, "SELECT count(*) FROM t"), "1");
  set_disk(NULL, 0, 0);
  uint64_t deadline = os_now(os_real()) + TIMEOUT_MS * OS_MS;
  while (run_code(db, "INSERT INTO t VALUES(2)") != SQLITE_OK) assert_true(os_now(os_real()) < deadline);
  assert_string_equal(ask(db, "SELECT count(*) FROM t"), "2");
  assert_string_equal(ask(db, "PRAGMA integrity_check"), "ok");
  stop(db);
}

/* ---- Writers while leaders come and go ---- */

#define WRITERS 6
#define ROUNDS 4
#define ROWS_MAX 20000
#define ROUND_ROWS 300 /* acknowledged in each round */

enum answer { NOT_TRIED, ACKNOWLEDGED, LOST, UNKNOWN };

struct writer {
  struct cluster *cluster;
  int number;
  enum answer answers[ROWS_MAX];
};

static atomic_bool writers_stop;
static atomic_int acknowledged;

static enum answer answer_of(int code) {
  switch (code) {
  case SQLITE_OK: return ACKNOWLEDGED;
  case SQLITE_BUSY_SNAPSHOT:
  case SQLITE_ABORT_ROLLBACK:
  case BALSA_IOERR_LOST: return LOST;
  case BALSA_IOERR_UNKNOWN: return UNKNOWN;
  default: return (code & 0xff) == SQLITE_READONLY || (code & 0xff) == SQLITE_BUSY ? LOST : UNKNOWN;
  }
}

/* Writes to one node until it answers with an error of the kind that a stopped node gives. */
static void write_rows(struct writer *writer, sqlite3 *db, int *row) {
  while (!atomic_load(&writers_stop) && *row < ROWS_MAX) {
    char sql[128];
    snprintf(sql, sizeof sql, "INSERT INTO t VALUES(%d)", writer->number * ROWS_MAX + *row);
    int code = run_code(db, sql);
    writer->answers[*row] = answer_of(code);
    if (code == SQLITE_OK) atomic_fetch_add(&acknowledged, 1);
    if ((code & 0xff) == SQLITE_READONLY || (code & 0xff) == SQLITE_BUSY) sqlite3_sleep(1);
    (*row)++;
    if (writer->answers[*row - 1] == UNKNOWN) return;
  }
}

static void *writer_main(void *arg) {
  struct writer *writer = arg;
  int row = 0;
  while (!atomic_load(&writers_stop) && row < ROWS_MAX) {
    sqlite3 *db = NULL;
    if (open_member_code(writer->cluster, writer->number % 3, &db) == SQLITE_OK) write_rows(writer, db, &row);
    sqlite3_close(db);
  }
  return NULL;
}

static void assert_answers_hold(sqlite3 *db, const struct writer *writers) {
  static int count[WRITERS * ROWS_MAX];
  sqlite3_stmt *statement = NULL;
  memset(count, 0, sizeof count);
  assert_int_equal(sqlite3_prepare_v2(db, "SELECT a FROM t", -1, &statement, NULL), SQLITE_OK);
  while (sqlite3_step(statement) == SQLITE_ROW) count[sqlite3_column_int(statement, 0)]++;
  assert_int_equal(sqlite3_finalize(statement), SQLITE_OK);
  for (int i = 0; i < WRITERS * ROWS_MAX; i++) {
    enum answer answer = writers[i / ROWS_MAX].answers[i % ROWS_MAX];
    int least = answer == ACKNOWLEDGED, most = answer == ACKNOWLEDGED || answer == UNKNOWN;
    if (count[i] < least || count[i] > most)
      fail_msg("row %d was answered %d and is there %d times", i, (int)answer, count[i]);
  }
}

static void every_answer_holds_while_leaders_stop_and_come_back(void **state) {
  static struct writer writers[WRITERS];
  struct cluster cluster = {0};
  pthread_t threads[WRITERS];
  (void)state;
  open_cluster(&cluster);
  run_on_leader(&cluster, "CREATE TABLE t(a)");
  memset(writers, 0, sizeof writers);
  atomic_store(&writers_stop, false);
  atomic_store(&acknowledged, 0);
  for (int i = 0; i < WRITERS; i++) {
    writers[i].cluster = &cluster;
    writers[i].number = i;
    assert_int_equal(pthread_create(&threads[i], NULL, writer_main, &writers[i]), 0);
  }
  for (int round = 1; round <= ROUNDS; round++) {
    while (atomic_load(&acknowledged) < round * ROUND_ROWS) sqlite3_sleep(1);
    int leader = run_on_leader(&cluster, "INSERT INTO t SELECT 0 WHERE false");
    sqlite3 *db = cluster.db[leader];
    cluster.db[leader] = NULL;
    assert_int_equal(balsa_stop(db, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
    while (open_member_code(&cluster, leader, &cluster.db[leader]) != SQLITE_OK) {
      sqlite3_close(cluster.db[leader]); /* its writers are still closing */
      sqlite3_sleep(1);
    }
  }
  atomic_store(&writers_stop, true);
  for (int i = 0; i < WRITERS; i++) pthread_join(threads[i], NULL);
  int leader = run_on_leader(&cluster, "CREATE TABLE u(a)");
  assert_equal_nodes(&cluster, leader);
  for (int i = 0; i < 3; i++) assert_answers_hold(cluster.db[i], writers);
  stop_cluster(&cluster);
}

static void a_second_node_at_the_same_address_is_refused(void **state) {
  char options[64];
  int port;
  (void)state;
  free_ports(&port, 1);
  snprintf(options, sizeof options, "&listen=127.0.0.1:%d", port);
  sqlite3 *db = open_node("one.db", options);
  char words[32];
  snprintf(words, sizeof words, "127.0.0.1:%d", port);
  assert_refused("two.db", options, words);
  stop(db);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_new_database_is_writable_at_once_and_keeps_its_rows),
      TEST(the_node_outlives_its_last_connection),
      TEST(an_existing_database_becomes_the_first_state),
      TEST(page_size_and_auto_vacuum_are_those_of_the_options),
      TEST(two_names_of_one_file_are_one_node),
      TEST(a_stopped_node_answers_no_more_and_opens_again_once_all_are_closed),
      TEST(a_refused_option_makes_no_file),
      TEST(a_node_keeps_its_number),
      TEST(a_file_that_may_not_be_created_is_not),
      TEST(a_lost_vote_or_log_is_refused_by_name),
      TEST(a_cluster_that_was_not_begun_to_the_end_begins_again),
      TEST(a_cluster_whose_database_was_marked_is_begun),
      TEST(a_log_that_ends_before_the_node_became_a_member_has_lost_its_end),
      TEST(a_token_tells_the_fate_of_a_commit),
      TEST(waiting_for_an_index_ends_with_it_or_with_the_limit),
      TEST(a_connection_without_a_replicated_database_is_told_so),
      TEST(an_attached_database_is_asked_for_by_its_schema),
      TEST(a_forked_child_is_refused),
      TEST(a_second_node_at_the_same_address_is_refused),
      TEST(three_nodes_form_a_cluster_and_show_the_same),
      TEST(an_existing_database_travels_to_the_others),
      TEST(members_stay_whatever_peers_says_and_addresses_may_change),
      TEST(a_single_node_becomes_one_of_three_without_its_folder),
      TEST(two_existing_databases_are_refused_naming_both_nodes),
      TEST(a_node_that_was_away_catches_up),
      TEST(the_others_go_on_without_the_leader),
      TEST(all_nodes_stopped_and_started_have_the_same_state),
      TEST(a_majority_is_needed_to_commit),
      cmocka_unit_test_setup_teardown(a_log_that_cannot_be_written_ends_writing_until_a_restart, wrap_disk,
                                      unwrap_disk),
      cmocka_unit_test_setup_teardown(a_vote_that_cannot_be_written_keeps_the_node_from_leading, wrap_disk,
                                      unwrap_disk),
      cmocka_unit_test_setup_teardown(a_log_on_a_full_disk_refuses_what_it_cannot_take_and_goes_on_when_there_is_room,
                                      wrap_disk, unwrap_disk),
      cmocka_unit_test_setup_teardown(a_transaction_that_the_log_has_no_room_for_is_taken_back_and_its_parts_too,
                                      wrap_disk, unwrap_disk),
      TEST(every_answer_holds_while_leaders_stop_and_come_back),
  };
  if (balsa_init() != SQLITE_OK) return 1;
  return cmocka_run_group_tests_name("node", tests, NULL, NULL);
}
