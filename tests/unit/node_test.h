/*
** What tests of whole nodes share: a folder for each test, SQL on connections that fail the test where it fails, and
** clusters of three in this process. For cmocka programs that call balsa_init().
*/
#ifndef BALSA_TESTS_NODE_TEST_H
#define BALSA_TESTS_NODE_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "ext/balsa.h"
#include "vfs/vfs.h"

#define TIMEOUT_MS 20000 /* far longer than anything here takes */

/* Of the test that runs, below $TMPDIR or /tmp: made and removed by the two that follow, its setup and teardown. */
extern char folder[128];
int make_folder(void **state);
int remove_folder(void **state);
#define TEST(function) cmocka_unit_test_setup_teardown(function, make_folder, remove_folder)

/* <folder>/<name>; one of a few static buffers, so that some of them can stand in one call. */
const char *path_of(const char *name);
/* Like cp -a: a file or a folder below the test's folder; what was called `to` goes. */
void copy(const char *from, const char *to);
void flip_byte(const char *path, long offset);

/* ---- SQL ---- */

int open_code(const char *name, const char *options, sqlite3 **db);
sqlite3 *open_node(const char *name, const char *options);
sqlite3 *open_plain(const char *name);
/* Opening fails, and the sentence has these words. */
void assert_refused(const char *name, const char *options, const char *words);
/* The extended result code. */
int run_code(sqlite3 *db, const char *sql);
void run(sqlite3 *db, const char *sql);
/* The first column of the last row, or ""; one of a few static buffers. */
const char *ask(sqlite3 *db, const char *sql);
/* It fails, and the message has these words. */
void assert_fails(sqlite3 *db, const char *sql, const char *words);
/* Stops the node and closes its last connection. */
void stop(sqlite3 *db);

/* ---- Three ---- */

struct cluster {
  int ports[3];
  const char *options; /* besides; NULL: none */
  sqlite3 *db[3];      /* of node1.db, node2.db, node3.db */
};

void free_ports(int *ports, int n);
int open_member_code(const struct cluster *cluster, int i, sqlite3 **db);
void open_member(struct cluster *cluster, int i);
void open_cluster(struct cluster *cluster);
/* Runs a statement on whichever of the nodes leads; returns which. */
int run_on_leader(struct cluster *cluster, const char *sql);
/* All nodes have applied what the leader has committed, and are equal. */
void assert_equal_nodes(struct cluster *cluster, int leader);
void stop_cluster(struct cluster *cluster);

#endif
