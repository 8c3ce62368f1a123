/*
** A stand-in for the node, for tests of vfs/: a log in memory whose commits the test holds back, lets go or loses.
*/
#ifndef BALSA_TESTS_STAND_IN_H
#define BALSA_TESTS_STAND_IN_H

#include <stdatomic.h>

#include "../../vfs/vfs.h"

#define STAND_IN_ENTRIES_MAX 65536
#define STAND_IN_PATH_MAX 256

struct stand_in {
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  struct vfs_database *database;
  struct vfs_log_entry *entries; /* [1 … last]; bytes owned */
  uint64_t last, commit_index;
  uint64_t epoch;
  bool leads, other_leads;
  bool holds;             /* proposals stay uncommitted */
  bool refuses;           /* proposals are refused, as if the epoch had just ended */
  uint32_t refuses_after; /* sets `refuses` after so many more proposals; 0: never */
  uint64_t unreadable;    /* this entry cannot be read from the log; 0 none */
  uint32_t asked;
  uint64_t waited_ns;
  uint32_t waits_for_commit; /* threads inside wait() */
  atomic_uint checkpoints_wanted;
  bool checkpoints_itself; /* want_checkpoint does it at once: not while a transaction asks for one */
  char folder[STAND_IN_PATH_MAX], path[STAND_IN_PATH_MAX];
};

/* Of nodes that are opened from now on; 0 and NULL: as ever. */
extern uint32_t stand_in_wal_limit;
extern sqlite3_vfs *stand_in_base;

/* Registers the VFS once; sqlite3_open of a stand-in's path by "file:PATH?vfs=balsa" finds it. */
void stand_in_setup(void);

/* A database in a folder of its own, leading, with page 1. timeout: commit_timeout_ms. */
void stand_in_open(struct stand_in *node, uint32_t page_size, uint32_t auto_vacuum, uint32_t timeout_ms);
/* Closes the database without stopping it (as a killed process), keeping files and log. */
void stand_in_kill(struct stand_in *node);
/* Opens again: redo through commit_index. */
void stand_in_restart(struct stand_in *node);
/* The same with a log that begins at log_first, and a snapshot. */
void stand_in_restart_from(struct stand_in *node, uint64_t log_first, const struct vfs_source *snapshot);
/* Opens again, which is to fail, and is killed there. Returns the error. */
int stand_in_fail_restart(struct stand_in *node);
/* Appends the leader's next entry to its log. */
void stand_in_copy_next(struct stand_in *node, const struct stand_in *leader);
/* Removes everything. */
void stand_in_close(struct stand_in *node);

sqlite3 *stand_in_connect(struct stand_in *node);

void stand_in_hold(struct stand_in *node);
void stand_in_commit_all(struct stand_in *node); /* and holds no longer */
/* Commits a part of what is held back, chosen by `random`. */
void stand_in_commit_some(struct stand_in *node, unsigned random);
/* Lets time pass for other threads: a length of load, never something that a test waits for. */
void stand_in_pause(unsigned milliseconds);
/* Another node leads from now on; what is not committed is lost. Compensates. */
void stand_in_step_down(struct stand_in *node);
/* Only ends the epoch, as the loop thread does; stand_in_compensate follows. */
void stand_in_end_epoch(struct stand_in *node);
void stand_in_compensate(struct stand_in *node);
void stand_in_lead(struct stand_in *node);
/* Nobody leads. */
void stand_in_resign(struct stand_in *node);
/* How often acquire was called since, and how long it was asked to wait. */
uint32_t stand_in_asked(struct stand_in *node);
uint64_t stand_in_waited_ns(struct stand_in *node);
/* Follower applies all that `leader` has committed. */
void stand_in_follow(struct stand_in *node, struct stand_in *leader);
/* Blocks until so many threads wait for a commit. */
void stand_in_await_waiters(struct stand_in *node, uint32_t n);

#endif
