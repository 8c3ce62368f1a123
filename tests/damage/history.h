/*
** Histories: what a node went through before its files are damaged, and what its database must show afterwards.
**
** Transaction n of a history is a function of the history and n alone. So the state after it can be computed by whoever knows
** n, which the database says itself (table `state`), and every row can be compared.
*/
#ifndef BALSA_TESTS_DAMAGE_HISTORY_H
#define BALSA_TESTS_DAMAGE_HISTORY_H

#include <stdbool.h>
#include <stdint.h>

#include "ext/balsa.h"

#define HISTORIES 12
#define HISTORY_ROWS 240 /* ids 1 … */
#define HISTORY_TEXT_MAX 1024

struct history {
  unsigned number;
  uint32_t page_size;
  unsigned transactions; /* in all */
  unsigned older;        /* after this one a copy of all files is kept */
  unsigned snapshots[2]; /* asked for after these; 0 none */
  const char *options;   /* thresholds, for the URI */
  bool stops;            /* in order; else it is killed */
  bool has_large;        /* transactions in parts among them */
  bool keeps_part;       /* a snapshot that was being received lies there too */
};

void history_describe(unsigned number, struct history *history);

/* The model: which version of each row there is (the transaction that wrote it); 0: no such row. */
struct history_state {
  unsigned n;
  unsigned versions[HISTORY_ROWS + 1];
};
/* The state after transaction n. */
void history_state(const struct history *history, unsigned n, struct history_state *state);

/* Opens the node of `folder`/app.db. The caller closes *db in any case. */
int history_open(const struct history *history, const char *folder, sqlite3 **db);
/* The tables. SQLite's result code. */
int history_begin(sqlite3 *db);
/* Transaction n, from BEGIN to COMMIT. */
int history_run(const struct history *history, sqlite3 *db, unsigned n);

enum history_check { HISTORY_SAME, HISTORY_UNREADABLE, HISTORY_WRONG };
/*
** Reads all rows. *n is what the database says of itself, if that could be read. WRONG: a row differs from the model, as
** text says. UNREADABLE: SQLite said so, and no row before that was wrong.
*/
enum history_check history_check(const struct history *history, sqlite3 *db, unsigned *n, char text[HISTORY_TEXT_MAX]);

#endif
