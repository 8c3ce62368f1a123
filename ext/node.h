/*
** The node: it wires the Raft core, the log, the transport and the database of one file together and
** owns the threads. One per database file in a process, from the first open until balsa_stop() or the
** end of the process.
**
** For balsa.c, functions.c and tables.c; inside the node: node_internal.h.
*/
#ifndef BALSA_NODE_H
#define BALSA_NODE_H

#include "../raft/raft.h"
#include "../vfs/vfs.h"

#define NODE_STOP_MS_MAX 2000 /* a stop in order takes no longer, as far as disks allow */

#define NODE_STOPPED_TEXT "this node was stopped by balsa_stop()"

struct node;

/*
** The machine that nodes live on: the real one, unless a test says otherwise before balsa_init(). `os` is where the process
** waits; `os_of` (or NULL: `os`) where the node of a database lives, by its path, with files, clock and threads; `base` the VFS
** for SQLite's own files there. The numbers stand in for limits that only large databases reach; 0: as they are.
*/
struct node_machine {
  struct os *os;
  struct os *(*os_of)(const char *path);
  sqlite3_vfs *base;
  uint32_t part_bytes, wal_limit_frames, segment_bytes;
};
void node_use_machine(const struct node_machine *machine);

/*
** Registers the VFS with the nodes behind it, what happens at exit and at fork. Once per process.
** SQLite error code.
*/
int node_library_init(void);

/* The node behind a connection's schema, NULL for its first Balsa database. NULL: it has none. */
struct node *node_of_connection(struct vfs_connection *connection);

/*
** Stops in order: leadership goes to another node, connections get errors from now on, the log is flushed, peers are
** told goodbye.
** Does nothing if it has stopped already. Not from a thread of the node.
*/
void node_stop(struct node *node, uint64_t deadline);
/* For tests: the same for the node of this database, by its real path, if one runs; it may have no connection. */
void node_stop_at(const char *path, uint64_t deadline);

struct node_status {
  uint64_t node;
  struct raft_uuid cluster; /* none while forming */
  const char *role;         /* static */
  char state[VFS_TEXT_MAX];
  char notice[VFS_TEXT_MAX];   /* what somebody should know: what its start found, two voters; "" nothing */
  char snapshot[VFS_TEXT_MAX]; /* index of the newest one, and what is being done */
  uint64_t term;
  uint64_t leader; /* 0: unknown */
  char leader_address[RAFT_ADDRESS_MAX];
  uint64_t commit_index, applied_index, log_first, log_last, log_bytes;
  uint32_t wal_frames;
  char checkpoint[VFS_TEXT_MAX]; /* index of the last one, and what is in its way */
  bool has_checksum;
  uint64_t checksum;
  uint32_t tolerates;
  bool is_stopped, is_removed;
  const char *path; /* lives as long as the node */
};
void node_get_status(struct node *node, struct node_status *status);

/* What one may ask of the members, on any of them. */
enum node_wish { NODE_ADD, NODE_REMOVE, NODE_PROMOTE, NODE_DEMOTE };
/*
** Until it is the case by a settled, committed configuration. `id` 0: this node (it leaves). `address`: NODE_ADD. SQLITE_OK;
** SQLITE_ERROR: refused; SQLITE_BUSY: not by the deadline, or unknown; both with a sentence. Waits; no lock held.
*/
int node_change(struct node *node, enum node_wish wish, uint64_t id, const char *address, uint64_t deadline,
                char *text);

#define NODE_TRANSFER_TEXT_MAX 48
struct node_member {
  uint64_t node;
  char address[RAFT_ADDRESS_MAX];
  const char *role; /* static */
  bool is_leader;
  bool has_progress; /* match_index and lag count: the leader knows them, and everybody its own */
  uint64_t match_index, lag;
  bool has_contact;
  uint64_t last_contact_ms;
  char snapshot[NODE_TRANSFER_TEXT_MAX]; /* that the leader is sending to it; "" none */
};
/* The members, or the peers it waits for while forming. Returns how many. */
size_t node_get_members(struct node *node, struct node_member members[RAFT_MEMBERS_MAX]);

/* Until `index` is applied here: VFS_OK, VFS_BUSY at the deadline, VFS_STOPPED. */
int node_wait_applied(struct node *node, uint64_t index, uint64_t deadline);
/*
** Takes a snapshot of what is committed now, unless there is one; waits for one under way. *index of it. VFS_BUSY, with a
** sentence: it does not get on; other errors likewise.
*/
int node_take_snapshot(struct node *node, uint64_t *index, char *text);
/*
** Has leadership handed over to node `to` (0: the most up to date one), by whichever node leads; *leader: who leads then. Writers
** pause. VFS_OK also when `to` leads already; VFS_NOBODY; VFS_BUSY: try again; VFS_REFUSED; VFS_STOPPED. All with a sentence. Waits until `deadline` for an open write transaction and for `to` to catch up; the hand-over
** itself takes an election time-out at most. Not inside a write transaction of the caller.
*/
int node_succession(struct node *node, uint64_t to, uint64_t deadline, uint64_t *leader, char *text);
/*
** Of the old cluster a majority is lost for good: writes down that this node begins a new one from what it holds, and stops
** it; the next open does it. `members`: who is to be in the new cluster, in the form of option peers. VFS_REFUSED while a
** leader or a majority is there, with a sentence; other errors likewise: nothing has happened then.
*/
int node_recover(struct node *node, const char *members, char *text);
/* What became of (term, index). */
enum raft_fate node_outcome(struct node *node, uint64_t term, uint64_t index);
/* All zero while forming. */
struct raft_uuid node_cluster(struct node *node);
uint32_t node_commit_timeout_ms(const struct node *node);
/* Now, by the node's clock: what its deadlines are counted by. */
uint64_t node_now(const struct node *node);
/* Why it does not go on as it should; "" if it does. VFS_TEXT_MAX bytes. */
void node_trouble(struct node *node, char *text);

#endif
