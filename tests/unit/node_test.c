#include "node_test.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

char folder[128];

int make_folder(void **state) {
  (void)state;
  snprintf(folder, sizeof folder, "%s/balsa-node-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
  return mkdtemp(folder) ? 0 : -1;
}

int remove_folder(void **state) {
  char command[256];
  (void)state;
  snprintf(command, sizeof command, "rm -rf '%s'", folder);
  return system(command);
}

const char *path_of(const char *name) {
  static char path[4][256];
  static int next;
  char *at = path[next++ % 4];
  snprintf(at, sizeof path[0], "%s/%s", folder, name);
  return at;
}

void copy(const char *from, const char *to) {
  char command[600];
  snprintf(command, sizeof command, "rm -rf '%s/%s' && cp -a '%s/%s' '%s/%s'", folder, to, folder, from, folder, to);
  assert_int_equal(system(command), 0);
}

void flip_byte(const char *path, long offset) {
  int file = open(path, O_RDWR);
  uint8_t byte;
  assert_int_equal(pread(file, &byte, 1, offset), 1);
  byte ^= 0x10;
  assert_int_equal(pwrite(file, &byte, 1, offset), 1);
  close(file);
}

/* ---- SQL ---- */

int open_code(const char *name, const char *options, sqlite3 **db) {
  char uri[2048];
  snprintf(uri, sizeof uri, "file:%s/%s?vfs=balsa%s", folder, name, options);
  return sqlite3_open_v2(uri, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL);
}

sqlite3 *open_node(const char *name, const char *options) {
  sqlite3 *db = NULL;
  int code = open_code(name, options, &db);
  if (code != SQLITE_OK) fail_msg("%s%s: %d %s", name, options, code, vfs_open_error());
  return db;
}

void assert_refused(const char *name, const char *options, const char *words) {
  sqlite3 *db = NULL;
  int code = open_code(name, options, &db);
  sqlite3_close(db);
  if (code == SQLITE_OK) fail_msg("%s%s was opened", name, options);
  if (!strstr(vfs_open_error(), words)) fail_msg("%s%s: \"%s\" lacks \"%s\"", name, options, vfs_open_error(), words);
}

int run_code(sqlite3 *db, const char *sql) {
  sqlite3_exec(db, sql, NULL, NULL, NULL);
  return sqlite3_extended_errcode(db);
}

void run(sqlite3 *db, const char *sql) {
  if (run_code(db, sql) != SQLITE_OK) fail_msg("%s: %d %s", sql, sqlite3_extended_errcode(db), sqlite3_errmsg(db));
}

static int take_text(void *out, int n, char **values, char **names) {
  (void)n, (void)names;
  snprintf(out, 1024, "%s", values[0] ? values[0] : "NULL");
  return 0;
}

/* The first column of the last row, or "". */
const char *ask(sqlite3 *db, const char *sql) {
  static char text[4][1024];
  static int next;
  char *at = text[next++ % 4];
  at[0] = 0;
  if (sqlite3_exec(db, sql, take_text, at, NULL) != SQLITE_OK)
    fail_msg("%s: %d %s", sql, sqlite3_extended_errcode(db), sqlite3_errmsg(db));
  return at;
}

void assert_fails(sqlite3 *db, const char *sql, const char *words) {
  if (run_code(db, sql) == SQLITE_OK) fail_msg("%s: succeeded", sql);
  if (!strstr(sqlite3_errmsg(db), words)) fail_msg("%s: \"%s\" lacks \"%s\"", sql, sqlite3_errmsg(db), words);
}

/* Stops the node and closes its last connection. */
void stop(sqlite3 *db) {
  assert_int_equal(balsa_stop(db, NULL), SQLITE_OK);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

sqlite3 *open_plain(const char *name) {
  sqlite3 *db = NULL;
  assert_int_equal(sqlite3_open(path_of(name), &db), SQLITE_OK);
  return db;
}

/* ---- Three ---- */

void free_ports(int *ports, int n) {
  int sockets[8];
  for (int i = 0; i < n; i++) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    sockets[i] = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(sockets[i], (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(getsockname(sockets[i], (struct sockaddr *)&address, &size), 0);
    ports[i] = ntohs(address.sin_port);
  }
  for (int i = 0; i < n; i++) close(sockets[i]);
}

int open_member_code(const struct cluster *cluster, int i, sqlite3 **db) {
  char name[32], options[512];
  snprintf(name, sizeof name, "node%d.db", i + 1);
  snprintf(options, sizeof options,
           "&node=%d&heartbeat=20&election=300&commit_timeout=%d&peers=1@127.0.0.1:%d,2@127.0.0.1:%d,3@127.0.0.1:%d%s",
           i + 1, TIMEOUT_MS, cluster->ports[0], cluster->ports[1], cluster->ports[2],
           cluster->options ? cluster->options : "");
  return open_code(name, options, db);
}

void open_member(struct cluster *cluster, int i) {
  int code = open_member_code(cluster, i, &cluster->db[i]);
  if (code != SQLITE_OK) fail_msg("node %d: %d %s", i + 1, code, vfs_open_error());
}

void open_cluster(struct cluster *cluster) {
  free_ports(cluster->ports, 3);
  for (int i = 0; i < 3; i++) open_member(cluster, i);
}

/* Runs a statement on whichever of the nodes leads; returns which. */
int run_on_leader(struct cluster *cluster, const char *sql) {
  for (int i = 0;; i = (i + 1) % 3) {
    if (!cluster->db[i]) continue;
    int code = run_code(cluster->db[i], sql);
    if (code == SQLITE_OK) return i;
    bool is_forming = code == SQLITE_ERROR && strstr(sqlite3_errmsg(cluster->db[i]), "no such table");
    if (code != SQLITE_READONLY && code != SQLITE_BUSY_SNAPSHOT && code != SQLITE_BUSY && !is_forming)
      fail_msg("node %d: %s: %d %s (%s)", i + 1, sql, code, sqlite3_errmsg(cluster->db[i]),
               ask(cluster->db[i], "SELECT state || ' ' || coalesce(balsa_error(), '') FROM balsa_status"));
  }
}

/* All nodes have applied what the leader has committed, and are equal. */
void assert_equal_nodes(struct cluster *cluster, int leader) {
  char sql[128], checksum[32];
  snprintf(sql, sizeof sql, "SELECT balsa_wait(%s, %d)",
           ask(cluster->db[leader], "SELECT commit_index FROM balsa_status"), TIMEOUT_MS);
  snprintf(checksum, sizeof checksum, "%s", ask(cluster->db[leader], "SELECT checksum FROM balsa_status"));
  for (int i = 0; i < 3; i++) {
    if (!cluster->db[i]) continue;
    run(cluster->db[i], sql);
    assert_string_equal(ask(cluster->db[i], "SELECT checksum FROM balsa_status"), checksum);
  }
}

void stop_cluster(struct cluster *cluster) {
  for (int i = 0; i < 3; i++)
    if (cluster->db[i]) stop(cluster->db[i]);
}
