/* Leadership passes from node to node while others write. All in this process. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "node_test.h"

#define WITH "&heartbeat=20&election=300&commit_timeout=20000&snapshot_threshold=1M"
#define WRITERS 2 /* at each node */
#define PATIENCE_MS 30000

struct writer {
  pthread_t thread;
  sqlite3 *db;
  int error; /* the first that is more than "another node leads" */
  atomic_int done;
};

static atomic_bool is_over;
static struct writer writers[3 * WRITERS];

static void *write_rows(void *arg) {
  struct writer *writer = arg;
  while (!atomic_load(&is_over) && !writer->error) {
    int code = run_code(writer->db, "INSERT INTO t VALUES(1)");
    if (code == SQLITE_OK)
      atomic_fetch_add(&writer->done, 1);
    else if ((code & 0xff) != SQLITE_READONLY && code != SQLITE_ERROR) /* ERROR: the table has not got here yet */
      writer->error = code;
    else
      usleep(2000);
  }
  return NULL;
}

static void begin(struct cluster *cluster) {
  char options[512];
  atomic_store(&is_over, false);
  for (int i = 0; i < 3 * WRITERS; i++) {
    char name[16];
    snprintf(name, sizeof name, "node%d.db", i % 3 + 1);
    snprintf(options, sizeof options, "&node=%d", i % 3 + 1);
    writers[i] = (struct writer){.db = open_node(name, options)};
    assert_int_equal(pthread_create(&writers[i].thread, NULL, write_rows, &writers[i]), 0);
  }
  (void)cluster;
}

static int written(void) {
  int n = 0;
  for (int i = 0; i < 3 * WRITERS; i++) n += atomic_load(&writers[i].done);
  return n;
}

static void await_rows(int n) {
  int least = written() + n;
  for (int i = 0; i < PATIENCE_MS && written() < least; i++) usleep(1000);
  if (written() < least) fail_msg("nobody writes any more");
}

/* Nobody was told anything but the truth. Returns the rows that were acknowledged. */
static int end(void) {
  int rows = 0;
  atomic_store(&is_over, true);
  for (int i = 0; i < 3 * WRITERS; i++) {
    pthread_join(writers[i].thread, NULL);
    if (writers[i].error) fail_msg("a writer was told %d", writers[i].error);
    rows += atomic_load(&writers[i].done);
    sqlite3_close(writers[i].db);
  }
  return rows;
}

static void no_commit_fails_when_leadership_is_handed_over(void **state) {
  struct cluster cluster = {.options = WITH};
  char sql[64], rows[16];
  (void)state;
  open_cluster(&cluster);
  int leader = run_on_leader(&cluster, "CREATE TABLE t(a)");
  begin(&cluster);
  for (int i = 0; i < 6; i++) {
    int to = (leader + 1 + i % 2) % 3;
    await_rows(20);
    snprintf(sql, sizeof sql, "SELECT balsa_transfer(%d)", to + 1);
    assert_int_equal(strtol(ask(cluster.db[i % 3], sql), NULL, 10), to + 1); /* whichever node is asked */
    leader = to;
  }
  await_rows(20);
  snprintf(rows, sizeof rows, "%d", end());
  leader = run_on_leader(&cluster, "DELETE FROM t WHERE a = 2");
  assert_equal_nodes(&cluster, leader);
  assert_string_equal(ask(cluster.db[leader], "SELECT count(*) FROM t"), rows);
  stop_cluster(&cluster);
}

static void a_leader_that_stops_has_handed_over_before(void **state) {
  struct cluster cluster = {.options = WITH};
  (void)state;
  open_cluster(&cluster);
  int leader = run_on_leader(&cluster, "CREATE TABLE t(a)");
  char term[32];
  snprintf(term, sizeof term, "%lld", strtoll(ask(cluster.db[leader], "SELECT term FROM balsa_status"), NULL, 10) + 1);
  stop(cluster.db[leader]);
  int leaders = 0;
  for (int i = 0; i < 3; i++) {
    if (i == leader) continue;
    leaders += strcmp(ask(cluster.db[i], "SELECT role FROM balsa_status"), "leader") == 0;
    assert_string_equal(ask(cluster.db[i], "SELECT term FROM balsa_status"), term); /* no time-out was waited for */
  }
  assert_int_equal(leaders, 1);
  open_member(&cluster, leader);
  assert_equal_nodes(&cluster, run_on_leader(&cluster, "INSERT INTO t VALUES(1)"));
  stop_cluster(&cluster);
}

static void what_cannot_be_handed_over_stays(void **state) {
  struct cluster cluster = {.options = WITH};
  (void)state;
  open_cluster(&cluster);
  int leader = run_on_leader(&cluster, "CREATE TABLE t(a)");
  sqlite3 *db = cluster.db[leader];
  assert_fails(db, "SELECT balsa_transfer(9)", "not a member");
  assert_fails(db, "SELECT balsa_transfer(-1)", "number of a node");
  run(db, "BEGIN IMMEDIATE; INSERT INTO t VALUES(1)");
  assert_fails(db, "SELECT balsa_transfer()", "write transaction open");
  run(db, "COMMIT");
  int other = (leader + 1) % 3, asked = leader;
  stop(cluster.db[other]);
  cluster.db[other] = NULL;
  char sql[64];
  snprintf(sql, sizeof sql, "SELECT balsa_transfer(%d)", other + 1);
  for (int i = 0; i < PATIENCE_MS; i++) { /* that it is gone is noticed when it has been silent for long enough */
    assert_int_not_equal(run_code(cluster.db[asked], sql), SQLITE_OK);
    if (strstr(sqlite3_errmsg(cluster.db[asked]), "not been heard")) break;
    usleep(1000);
  }
  assert_fails(cluster.db[asked], sql, "not been heard");
  open_member(&cluster, other);
  stop_cluster(&cluster);
  sqlite3 *one = open_node("one.db", "");
  assert_fails(one, "SELECT balsa_transfer()", "cluster of one");
  stop(one);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(no_commit_fails_when_leadership_is_handed_over),
      TEST(a_leader_that_stops_has_handed_over_before),
      TEST(what_cannot_be_handed_over_stays),
  };
  if (balsa_init() != SQLITE_OK) return 1;
  return cmocka_run_group_tests_name("succession", tests, NULL, NULL);
}
