/* Members come and go: nodes join a cluster that is there, are removed, move, and come back. All in this process. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "node_test.h"

#define NODES 6
#define WITH "&heartbeat=20&election=300&commit_timeout=20000"
#define PATIENCE_MS 30000

static int ports[NODES]; /* of node 1 … */

static int set_up(void **state) {
  free_ports(ports, NODES);
  return make_folder(state);
}
#define MEMBERS_TEST(function) cmocka_unit_test_setup_teardown(function, set_up, remove_folder)

static const char *name_of(int node) {
  static char name[4][32];
  static int next;
  char *at = name[next++ % 4];
  snprintf(at, sizeof name[0], "node%d.db", node);
  return at;
}

/* Node `node` with its own address, and more options. */
static sqlite3 *open_at(int node, const char *more) {
  char options[512];
  snprintf(options, sizeof options, "&node=%d&listen=127.0.0.1:%d" WITH "%s", node, ports[node - 1], more);
  return open_node(name_of(node), options);
}

static sqlite3 *open_joiner(int node, int at) {
  char options[512];
  snprintf(options, sizeof options, "&node=%d&listen=127.0.0.1:%d&join=127.0.0.1:%d&commit_timeout=20000", node,
           ports[node - 1], ports[at - 1]);
  return open_node(name_of(node), options);
}

/* Until the statement's answer contains these words. */
static void await_words(sqlite3 *db, const char *sql, const char *words) {
  char last[1024] = "";
  for (int i = 0; i < PATIENCE_MS; i++) {
    snprintf(last, sizeof last, "%s", ask(db, sql));
    if (strstr(last, words)) return;
    usleep(1000);
  }
  fail_msg("%s: \"%s\" never had \"%s\"", sql, last, words);
}

#define STATE "SELECT state FROM balsa_status"

static void await_voter(sqlite3 *db, int node) {
  char sql[128];
  snprintf(sql, sizeof sql, "SELECT role FROM balsa_members WHERE node=%d", node);
  await_words(db, sql, "voter");
}

static void await_ready(sqlite3 *db) {
  await_words(db, STATE, "ready");
}

/* Waits until `db` shows what `leader` has committed by now; both are equal then. */
static void assert_same(sqlite3 *leader, sqlite3 *db) {
  char sql[128], checksum[32];
  snprintf(sql, sizeof sql, "SELECT balsa_wait(%s, %d)", ask(leader, "SELECT commit_index FROM balsa_status"),
           PATIENCE_MS);
  snprintf(checksum, sizeof checksum, "%s", ask(leader, "SELECT checksum FROM balsa_status"));
  run(db, sql);
  assert_string_equal(ask(db, "SELECT checksum FROM balsa_status"), checksum);
}

/* Whoever leads of these. */
static sqlite3 *leader_of(sqlite3 *const *nodes, int n) {
  for (int i = 0; i < PATIENCE_MS; i++) {
    for (int j = 0; j < n; j++)
      if (nodes[j] && strcmp(ask(nodes[j], "SELECT role FROM balsa_status"), "leader") == 0) return nodes[j];
    usleep(1000);
  }
  fail_msg("nobody leads");
  return NULL;
}

/* By whichever of these leads: it may be another one by now. */
static void write_to(sqlite3 *const *nodes, int n, const char *sql) {
  for (int i = 0;; i = (i + 1) % n) {
    int code = nodes[i] ? run_code(nodes[i], sql) : SQLITE_READONLY;
    if (code == SQLITE_OK) return;
    if (code != SQLITE_READONLY && code != SQLITE_BUSY && code != SQLITE_BUSY_SNAPSHOT)
      fail_msg("%s: %d %s", sql, code, sqlite3_errmsg(nodes[i]));
    usleep(1000);
  }
}

static int number(sqlite3 *db, const char *sql) {
  return (int)strtol(ask(db, sql), NULL, 10);
}

/* ---- Joining ---- */

static void a_node_joins_a_cluster_of_one_and_becomes_a_voter(void **state) {
  (void)state;
  sqlite3 *one = open_at(1, "");
  run(one, "CREATE TABLE t(a); INSERT INTO t VALUES(1),(2)");
  sqlite3 *two = open_joiner(2, 1);
  await_voter(one, 2);
  await_ready(two);
  assert_same(one, two);
  assert_string_equal(ask(two, "SELECT group_concat(a) FROM t"), "1,2");
  assert_string_equal(ask(two, "SELECT group_concat(node || role) FROM balsa_members"), "1voter,2voter");
  assert_string_equal(ask(two, STATE), "ready");
  assert_non_null(strstr(ask(two, "SELECT notice FROM balsa_status"), "tolerates the failure of no node"));
  assert_string_equal(ask(two, "SELECT leader FROM balsa_status"), "1");
  write_to((sqlite3 *const[]){one, two}, 2, "INSERT INTO t VALUES(3)");
  sqlite3 *three = open_joiner(3, 2); /* not the leader: that one names it */
  await_voter(one, 3);
  await_ready(three);
  await_words(three, "SELECT tolerates FROM balsa_status", "1");
  assert_string_equal(ask(three, "SELECT notice FROM balsa_status"), "NULL");
  stop(one);
  sqlite3 *const left[] = {two, three};
  write_to(left, 2, "INSERT INTO t VALUES(4)");
  stop(two);
  stop(three);
}

/* Waits for words in the state of a node that cannot get in. */
static void assert_kept_out(int node, const char *options, const char *words) {
  sqlite3 *db = open_at(node, options);
  await_words(db, STATE, words);
  assert_string_equal(ask(db, "SELECT role FROM balsa_status"), "joining");
  stop(db);
}

static const char *join_at(int node, const char *more) {
  static char text[4][128];
  static int next;
  char *at = text[next++ % 4];
  snprintf(at, sizeof text[0], "&join=127.0.0.1:%d%s", ports[node - 1], more);
  return at;
}

static void who_cannot_join_is_told_why(void **state) {
  char options[256];
  (void)state;
  sqlite3 *one = open_at(1, "&page_size=1024");
  run(one, "CREATE TABLE t(a)");
  assert_kept_out(2, "&join=127.0.0.1:1", "nobody answers at 127.0.0.1:1");
  snprintf(options, sizeof options, "&node=2&listen=127.0.0.1:%d&election=900%s", ports[1], join_at(1, ""));
  sqlite3 *two = open_node("slow.db", options);
  await_words(two, STATE, "asks for election=900, the cluster has 300");
  stop(two);
  snprintf(options, sizeof options, "&node=2&listen=127.0.0.1:%d&page_size=8192%s", ports[1], join_at(1, ""));
  two = open_node("pages.db", options);
  await_words(two, STATE, "asks for page_size=8192, the cluster has 1024");
  stop(two);
  snprintf(options, sizeof options, "&node=1&listen=127.0.0.1:%d%s", ports[1], join_at(1, ""));
  two = open_node("taken.db", options);
  await_words(two, STATE, "node 1 exists twice");
  stop(two);
  snprintf(options, sizeof options, "&node=2&listen=127.0.0.1:%d&advertise=127.0.0.1:%d%s", ports[1], ports[0],
           join_at(1, ""));
  two = open_node("address.db", options);
  await_words(two, STATE, "is the address of node 1");
  stop(two);
  assert_string_equal(ask(one, "SELECT count(*) FROM balsa_members"), "1");
  stop(one);
}

static void a_database_that_belongs_to_no_cluster_is_not_replaced(void **state) {
  (void)state;
  sqlite3 *db = open_plain("own.db");
  run(db, "CREATE TABLE mine(a)");
  sqlite3_close(db);
  char options[256];
  snprintf(options, sizeof options, "&node=2&listen=127.0.0.1:%d%s", ports[1], join_at(1, ""));
  assert_refused("own.db", options, "own.db is a database already");
  db = open_plain("own.db");
  run(db, "INSERT INTO mine VALUES(1)");
  sqlite3_close(db);
}

static void options_that_do_not_go_with_join_are_refused(void **state) {
  char options[256];
  (void)state;
  assert_refused("a.db", "&join=127.0.0.1:1&listen=127.0.0.1:2", "needs option node");
  assert_refused("a.db", "&join=127.0.0.1:1&node=2", "needs option listen");
  assert_refused("a.db", "&join=nonsense&node=2", "host:port");
  snprintf(options, sizeof options, "&node=2&join=127.0.0.1:1&peers=1@127.0.0.1:1,2@127.0.0.1:%d", ports[1]);
  assert_refused("a.db", options, "exclude each other");
  assert_int_equal(access(path_of("a.db-balsa"), F_OK), -1);
}

static void a_joiner_that_was_stopped_on_the_way_goes_on(void **state) {
  (void)state;
  sqlite3 *two = open_joiner(2, 1); /* nobody is there yet */
  await_words(two, STATE, "joining");
  stop(two);
  two = open_node(name_of(2), ""); /* its folder knows what it was to do */
  assert_string_equal(ask(two, "SELECT role FROM balsa_status"), "joining");
  sqlite3 *one = open_at(1, "");
  run(one, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
  await_voter(one, 2);
  await_ready(two);
  assert_same(one, two);
  /* It has state of its own now: it just starts, whatever join says. */
  stop(two);
  two = open_at(2, "&join=127.0.0.1:1");
  await_ready(two);
  sqlite3 *const both[] = {one, two};
  write_to(both, 2, "INSERT INTO t VALUES(2)");
  assert_same(leader_of(both, 2), one);
  assert_same(leader_of(both, 2), two);
  stop(two);
  stop(one);
}

static void a_joiner_takes_a_snapshot_where_the_log_begins_later(void **state) {
  (void)state;
  sqlite3 *one = open_at(1, "&snapshot_threshold=1&log_tail=0");
  run(one, "CREATE TABLE t(a, b)");
  for (int i = 0; i < 40; i++) run(one, "INSERT INTO t VALUES(random(), randomblob(30000))");
  run(one, "SELECT balsa_snapshot()");
  for (int i = 0; i < 20 || number(one, "SELECT log_first FROM balsa_status") == 1; i++)
    run(one, "INSERT INTO t VALUES(random(), randomblob(30000))");
  sqlite3 *two = open_joiner(2, 1);
  await_voter(one, 2);
  await_ready(two);
  assert_same(one, two);
  assert_string_equal(ask(two, "PRAGMA integrity_check"), "ok");
  /* Another one, from what the first joiner has. */
  sqlite3 *three = open_joiner(3, 2);
  await_voter(one, 3);
  await_ready(three);
  stop(two);
  two = open_at(2, "");
  await_ready(two);
  assert_same(one, two);
  assert_same(one, three);
  stop(three);
  stop(two);
  stop(one);
}

static void a_cluster_of_one_without_an_address_becomes_joinable_when_it_gets_one(void **state) {
  (void)state;
  sqlite3 *one = open_node(name_of(1), "&node=1" WITH);
  run(one, "CREATE TABLE t(a)");
  char sql[128];
  snprintf(sql, sizeof sql, "SELECT balsa_add(2, '127.0.0.1:%d')", ports[1]);
  sqlite3 *two = open_at(2, "&join=wait");
  await_words(two, STATE, "waits until SELECT balsa_add(2, ");
  assert_fails(one, sql, "listens nowhere");
  stop(one);
  one = open_at(1, "");
  await_words(one, "SELECT address FROM balsa_members", strrchr(join_at(1, ""), ':'));
  run(one, sql);
  await_voter(one, 2);
  await_ready(two);
  assert_same(one, two);
  stop(two);
  stop(one);
}

/* ---- By the operator ---- */

static void an_operator_adds_a_node_that_waits(void **state) {
  char sql[128];
  (void)state;
  sqlite3 *one = open_at(1, "");
  run(one, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
  snprintf(sql, sizeof sql, "SELECT balsa_add(2, '127.0.0.1:%d')", ports[1]);
  assert_fails(one, sql, "nobody answers");
  sqlite3 *two = open_at(2, "");
  assert_fails(one, sql, "belongs to cluster");
  stop(two);
  two = open_node("waiting.db", "&node=5&listen=127.0.0.1:0&join=wait");
  stop(two);
  sqlite3 *three = open_at(3, "&join=wait");
  snprintf(sql, sizeof sql, "SELECT balsa_add(2, '127.0.0.1:%d')", ports[2]);
  assert_fails(one, sql, "node 3 is at 127.0.0.1:");
  snprintf(sql, sizeof sql, "SELECT balsa_add(3, '127.0.0.1:%d')", ports[2]);
  run(one, "BEGIN IMMEDIATE");
  assert_fails(one, sql, "write transaction");
  run(one, "ROLLBACK");
  assert_string_equal(ask(one, sql), "1");
  assert_fails(one, sql, "node 3 is a member already");
  await_voter(three, 3);
  assert_same(one, three);
  assert_fails(one, "SELECT balsa_add(0, 'x:1')", "number");
  assert_fails(one, "SELECT balsa_add(4, 'nonsense')", "is no address");
  assert_fails(one, "SELECT balsa_remove(9)", "node 9 is no member");
  assert_fails(one, "SELECT balsa_promote(3)", "node 3 is a voter already");
  stop(three);
  stop(one);
}

/* Nodes 1, 2, 3, all voters. */
static void open_three(sqlite3 *nodes[3]) {
  nodes[0] = open_at(1, "");
  run(nodes[0], "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
  nodes[1] = open_joiner(2, 1);
  nodes[2] = open_joiner(3, 1);
  await_voter(nodes[0], 2);
  await_voter(nodes[0], 3);
  await_ready(nodes[1]);
  await_ready(nodes[2]);
}

static void a_removed_node_says_so_for_ever_and_keeps_its_data(void **state) {
  (void)state;
  sqlite3 *nodes[3];
  open_three(nodes);
  assert_same(nodes[0], nodes[2]);
  assert_string_equal(ask(nodes[1], "SELECT balsa_remove(3)"), "1"); /* by one that does not lead */
  assert_string_equal(ask(nodes[1], "SELECT group_concat(node) FROM balsa_members"), "1,2");
  write_to(nodes, 2, "INSERT INTO t VALUES(2)");
  for (int round = 0; round < 2; round++) {
    await_words(nodes[2], STATE, "removed: node 3 was removed from cluster");
    assert_string_equal(ask(nodes[2], "SELECT role FROM balsa_status"), "removed");
    run(nodes[2], "PRAGMA balsa_read=stale");
    assert_string_equal(ask(nodes[2], "SELECT group_concat(a) FROM t"), "1");
    assert_int_not_equal(run_code(nodes[2], "INSERT INTO t VALUES(9)"), SQLITE_OK);
    assert_non_null(strstr(ask(nodes[2], "SELECT balsa_error()"), "was removed"));
    assert_fails(nodes[2], "SELECT balsa_promote(3)", "was removed");
    stop(nodes[2]);
    nodes[2] = open_at(3, "");
  }
  stop(nodes[2]);
  /* It comes back with a fresh folder. */
  char command[400];
  snprintf(command, sizeof command, "rm -r '%s' '%s-balsa'", path_of(name_of(3)), path_of(name_of(3)));
  assert_int_equal(system(command), 0);
  nodes[2] = open_joiner(3, 1);
  await_voter(nodes[0], 3);
  await_ready(nodes[2]);
  assert_same(leader_of(nodes, 3), nodes[2]);
  for (int i = 0; i < 3; i++) stop(nodes[i]);
}

static void a_node_that_was_removed_while_it_was_down_learns_it(void **state) {
  (void)state;
  sqlite3 *nodes[3];
  open_three(nodes);
  stop(nodes[2]);
  nodes[2] = NULL;
  assert_string_equal(ask(nodes[0], "SELECT balsa_remove(3)"), "1");
  write_to(nodes, 3, "INSERT INTO t VALUES(2)");
  nodes[2] = open_at(3, "");
  await_words(nodes[2], STATE, "removed: node 3 was removed from cluster");
  for (int i = 0; i < 3; i++) stop(nodes[i]);
}

static void the_leader_can_leave_and_be_demoted(void **state) {
  (void)state;
  sqlite3 *nodes[3];
  open_three(nodes);
  sqlite3 *leader = leader_of(nodes, 3);
  int id = number(leader, "SELECT node FROM balsa_status");
  char sql[64];
  snprintf(sql, sizeof sql, "SELECT balsa_demote(%d)", id);
  assert_string_equal(ask(leader, sql), "1");
  assert_string_equal(ask(leader, "SELECT role FROM balsa_status"), "learner");
  assert_fails(leader, sql, "is a learner already");
  write_to(nodes, 3, "INSERT INTO t VALUES(2)");
  assert_same(leader_of(nodes, 3), leader);
  snprintf(sql, sizeof sql, "SELECT balsa_promote(%d)", id);
  assert_string_equal(ask(leader, sql), "1");
  leader = leader_of(nodes, 3);
  assert_string_equal(ask(leader, "SELECT balsa_leave()"), "1");
  await_words(leader, STATE, "removed");
  sqlite3 *left[2] = {NULL};
  for (int i = 0, n = 0; i < 3; i++)
    if (nodes[i] != leader) left[n++] = nodes[i];
  write_to(left, 2, "INSERT INTO t VALUES(3)");
  assert_same(leader_of(left, 2), left[0]);
  assert_same(leader_of(left, 2), left[1]);
  /* Down to one, which cannot go. */
  assert_string_equal(ask(leader_of(left, 2), "SELECT balsa_leave()"), "1");
  int stays = strstr(ask(left[0], STATE), "removed") ? 1 : 0;
  await_ready(left[stays]);
  write_to(&left[stays], 1, "INSERT INTO t VALUES(4)");
  assert_fails(left[stays], "SELECT balsa_leave()", "the only voter");
  assert_string_equal(ask(left[stays], "SELECT group_concat(a) FROM t"), "1,2,3,4");
  for (int i = 0; i < 3; i++) stop(nodes[i]);
}

/* ---- Moving, and coming back ---- */

static void a_node_that_moves_is_found_and_the_members_know_its_address(void **state) {
  char options[128], words[32];
  (void)state;
  sqlite3 *nodes[3];
  open_three(nodes);
  stop(nodes[1]);
  snprintf(options, sizeof options, "&listen=127.0.0.1:%d", ports[4]);
  snprintf(words, sizeof words, ":%d", ports[4]);
  nodes[1] = open_node(name_of(2), options);
  for (int i = 0; i < 3; i++) await_words(nodes[i], "SELECT address FROM balsa_members WHERE node=2", words);
  await_ready(nodes[1]);
  write_to(nodes, 3, "INSERT INTO t VALUES(2)");
  assert_same(leader_of(nodes, 3), nodes[1]);
  /* For good: it is in the log, not only in what it said. */
  stop(nodes[2]);
  nodes[2] = open_at(3, "");
  await_words(nodes[2], "SELECT address FROM balsa_members WHERE node=2", words);
  for (int i = 0; i < 3; i++) stop(nodes[i]);
}

static void a_node_whose_folder_is_lost_comes_back_as_another_incarnation_once_the_old_one_is_gone(void **state) {
  char command[400], options[256];
  (void)state;
  sqlite3 *nodes[3];
  open_three(nodes);
  /* The old one is still there: two with one number. */
  snprintf(options, sizeof options, "&node=3&listen=127.0.0.1:%d%s", ports[5], join_at(1, ""));
  sqlite3 *twin = open_node("twin.db", options);
  await_words(twin, STATE, "node 3 is a member already");
  stop(twin);
  stop(nodes[2]);
  snprintf(command, sizeof command, "rm -r '%s' '%s-balsa'", path_of(name_of(3)), path_of(name_of(3)));
  assert_int_equal(system(command), 0);
  nodes[2] = open_joiner(3, 2);
  await_words(nodes[2], STATE, "ready");
  await_voter(nodes[2], 3);
  assert_string_equal(ask(nodes[2], "SELECT group_concat(node || role) FROM balsa_members"), "1voter,2voter,3voter");
  write_to(nodes, 3, "INSERT INTO t VALUES(2)");
  assert_same(leader_of(nodes, 3), nodes[2]);
  for (int i = 0; i < 3; i++) stop(nodes[i]);
}

/* Its configuration does not have the leader, which alone could tell it so. */
static void a_member_that_was_away_listens_to_a_leader_that_has_joined_since(void **state) {
  (void)state;
  sqlite3 *nodes[3];
  open_three(nodes);
  assert_same(nodes[0], nodes[2]);
  stop(nodes[2]);
  sqlite3 *four = open_joiner(4, 1);
  await_voter(leader_of(nodes, 2), 4);
  await_ready(four);
  assert_string_equal(ask(leader_of(nodes, 2), "SELECT balsa_transfer(4)"), "4");
  run(four, "INSERT INTO t VALUES(2)");
  nodes[2] = open_at(3, "");
  assert_same(four, nodes[2]);
  await_ready(nodes[2]);
  stop(four);
  for (int i = 0; i < 3; i++) stop(nodes[i]);
}

static void a_change_that_has_no_majority_is_told_as_unknown_and_is_finished_or_undone_later(void **state) {
  char sql[64];
  (void)state;
  sqlite3 *nodes[3];
  open_three(nodes);
  sqlite3 *leader = leader_of(nodes, 3);
  int id = number(leader, "SELECT node FROM balsa_status"), other = id == 2 ? 3 : 2;
  for (int i = 0; i < 3; i++)
    if (nodes[i] != leader) stop(nodes[i]);
  run(leader, "PRAGMA balsa_timeout=200"); /* before it steps down, for want of a majority */
  snprintf(sql, sizeof sql, "SELECT balsa_demote(%d)", other);
  int code = run_code(leader, sql);
  if (code != SQLITE_BUSY) fail_msg("%d %s", code, sqlite3_errmsg(leader));
  const char *text = sqlite3_errmsg(leader);
  if (!strstr(text, "unknown whether it comes to pass: look into balsa_members") && !strstr(text, "not done in time"))
    fail_msg("%s", text);
  /* The joint configuration is in its log alone. Whoever leads next, all agree on one that is settled. */
  stop(leader);
  for (int i = 0; i < 3; i++) nodes[i] = open_at(i + 1, "");
  for (int i = 0; i < 3; i++) await_ready(nodes[i]);
  leader = leader_of(nodes, 3);
  run(leader, "INSERT INTO t VALUES(2)");
  snprintf(sql, sizeof sql, "SELECT role FROM balsa_members WHERE node=%d", other);
  bool is_demoted = strcmp(ask(leader, sql), "learner") == 0;
  for (int i = 0; i < 3; i++) {
    assert_same(leader, nodes[i]);
    assert_string_equal(ask(nodes[i], sql), is_demoted ? "learner" : "voter");
    assert_string_equal(ask(nodes[i], "SELECT count(*) FROM balsa_members WHERE role='leaving'"), "0");
  }
  for (int i = 0; i < 3; i++) stop(nodes[i]);
}

/* Two of three are there, and one of them is to go: only with both can anything be decided. */
static void a_removal_that_would_leave_no_majority_is_not_begun(void **state) {
  char removes[2][64];
  (void)state;
  sqlite3 *nodes[3];
  open_three(nodes);
  sqlite3 *leader = leader_of(nodes, 3), *other = NULL;
  for (int i = 0, n = 0; i < 3; i++) {
    if (nodes[i] == leader) continue;
    snprintf(removes[n], sizeof removes[n], "SELECT balsa_remove(%d)", i + 1);
    if (n++ == 0)
      stop(nodes[i]);
    else
      other = nodes[i];
  }
  await_words(leader, "SELECT last_contact_ms > 700 FROM balsa_members ORDER BY last_contact_ms DESC LIMIT 1", "1");
  assert_fails(leader, removes[1], "no majority is in touch");
  assert_fails(leader, "SELECT balsa_leave()", "no majority is in touch");
  run(leader, "INSERT INTO t VALUES(2)");
  assert_string_equal(ask(leader, removes[0]), "1");
  assert_string_equal(ask(leader, removes[1]), "1");
  run(leader, "INSERT INTO t VALUES(3)");
  await_words(other, STATE, "removed");
  stop(other);
  stop(leader);
}

/* Its data can be had otherwise; as a node of its old cluster it would never serve anybody. */
static void a_removed_node_is_not_recovered_from(void **state) {
  char sql[128];
  (void)state;
  sqlite3 *nodes[3];
  open_three(nodes);
  assert_string_equal(ask(nodes[2], "SELECT balsa_leave()"), "1");
  snprintf(sql, sizeof sql, "SELECT balsa_recover('3@127.0.0.1:%d')", ports[2]);
  assert_fails(nodes[2], sql, "To go on with its data alone");
  for (int i = 0; i < 3; i++) stop(nodes[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      MEMBERS_TEST(a_node_joins_a_cluster_of_one_and_becomes_a_voter),
      MEMBERS_TEST(who_cannot_join_is_told_why),
      MEMBERS_TEST(a_database_that_belongs_to_no_cluster_is_not_replaced),
      MEMBERS_TEST(options_that_do_not_go_with_join_are_refused),
      MEMBERS_TEST(a_joiner_that_was_stopped_on_the_way_goes_on),
      MEMBERS_TEST(a_joiner_takes_a_snapshot_where_the_log_begins_later),
      MEMBERS_TEST(a_cluster_of_one_without_an_address_becomes_joinable_when_it_gets_one),
      MEMBERS_TEST(an_operator_adds_a_node_that_waits),
      MEMBERS_TEST(a_removed_node_says_so_for_ever_and_keeps_its_data),
      MEMBERS_TEST(a_node_that_was_removed_while_it_was_down_learns_it),
      MEMBERS_TEST(the_leader_can_leave_and_be_demoted),
      MEMBERS_TEST(a_node_that_moves_is_found_and_the_members_know_its_address),
      MEMBERS_TEST(a_node_whose_folder_is_lost_comes_back_as_another_incarnation_once_the_old_one_is_gone),
      MEMBERS_TEST(a_member_that_was_away_listens_to_a_leader_that_has_joined_since),
      MEMBERS_TEST(a_change_that_has_no_majority_is_told_as_unknown_and_is_finished_or_undone_later),
      MEMBERS_TEST(a_removal_that_would_leave_no_majority_is_not_begun),
      MEMBERS_TEST(a_removed_node_is_not_recovered_from),
  };
  if (balsa_init() != SQLITE_OK) return 1;
  return cmocka_run_group_tests_name("members", tests, NULL, NULL);
}
