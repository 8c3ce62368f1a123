/*
** What stopped nodes hold, side by side: which one to begin from when a majority is lost for good. The virtual table
** balsa_compare(paths), on every connection.
*/
#ifndef BALSA_COMPARE_H
#define BALSA_COMPARE_H

#include "../raft/io/store.h"
#include "../raft/raft.h"

#define HOLDING_TEXT_MAX RAFT_STORE_TEXT_MAX
#define HOLDINGS_MAX RAFT_MEMBERS_MAX

/* What the folder beside a database holds; it is only read. */
struct holding {
  char path[OS_PATH_MAX];         /* of the database, as given */
  char problem[HOLDING_TEXT_MAX]; /* why the rest is not known; "" it is */
  uint64_t node;
  struct raft_uuid cluster; /* none: not known */
  uint64_t term, voted_for;
  uint64_t last_term, last_index; /* of the log's last entry, or of the snapshot that it begins behind */
  uint64_t commit_index;          /* at least; 0: not known */
};

/* `path`: of a database, or its folder app.db-balsa. */
void holding_look(struct os *os, const char *path, struct holding *holding);
/* Does `a` hold more than `b` by the rule of votes (paper 5.4.1)? Both without a problem. */
bool holding_is_ahead(const struct holding *a, const struct holding *b);
/* What to do with holdings[i], in words. */
void holding_advise(const struct holding *holdings, size_t n, size_t i, char text[HOLDING_TEXT_MAX]);

#endif
