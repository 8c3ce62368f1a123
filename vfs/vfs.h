/*
** The seam between the SQLite VFS and the node.
**
** vfs/ captures what a transaction wrote, gates reads, applies what others committed, checkpoints and
** redoes. It does not know Raft: an epoch is the right to write (the node's term), an index is a
** place in a log that somebody replicates. All that crosses the seam are values, so that it can
** later cross a socket.
**
** Locks, in order: the write ticket (ticket.h) → the node's mutex → the database's mutex (inside vfs/).
** vfs/ never calls a method of the node with the database's mutex held; the node may call what is
** marked [any] below with its own mutex held, and nothing else.
**
** Errors: 0, or a code of enum vfs_error; functions with `text` (VFS_TEXT_MAX bytes) write a sentence.
*/
#ifndef BALSA_VFS_VFS_H
#define BALSA_VFS_VFS_H

#include "../ext/os.h"
#include "change_set.h"
#include "sqlite.h"

#define VFS_TEXT_MAX 768
#define VFS_NAME "balsa"

enum vfs_error {
  VFS_OK = 0,
  VFS_NOT_HERE = -1, /* another node may write: SQLITE_READONLY */
  VFS_NOBODY = -2,   /* nobody may, until the deadline: SQLITE_BUSY */
  VFS_STOPPED = -3,  /* the node has stopped */
  VFS_NO_MEMORY = -4,
  VFS_NO_SPACE = -5, /* a disk is full; try again when there is room */
  VFS_IO = -6,       /* a disk failed */
  VFS_DIFFERS = -7,  /* the checksum after apply is not the log's: this replica is wrong */
  VFS_DAMAGED = -8,  /* a change set or a file makes no sense */
  VFS_BUSY = -9,     /* somebody holds what is needed; try again */
  VFS_TOO_LARGE = -10,
  VFS_REFUSED = -11, /* what was asked for cannot be; a sentence says why */
};

/*
** Extended result codes of our own, of class SQLITE_IOERR, so that the pager drops its cache and no
** driver retries by itself. Public names in ext/balsa.h.
*/
#define VFS_SQLITE_UNKNOWN (SQLITE_IOERR | (0xB1 << 8)) /* outcome unknown; ask balsa_outcome() */
#define VFS_SQLITE_LOST (SQLITE_IOERR | (0xB2 << 8))    /* lost for certain, while other statements run */

enum vfs_fate { VFS_FATE_COMMITTED, VFS_FATE_LOST, VFS_FATE_UNKNOWN };

/* What became of a transaction is asked by this. index 0: none. */
struct vfs_token {
  uint64_t epoch, index;
};

/* An entry of the log as vfs/ sees it. */
struct vfs_log_entry {
  uint64_t epoch, index;
  bool is_change_set; /* else a no-op or configuration: it only moves the applied index */
  struct vfs_change_set set;
  void *hold; /* the node's */
};

/* What the node does for vfs/. Called without the database's mutex, from any thread. */
struct vfs_node_methods {
  /* May this node write? Waits until `deadline` for an answer when nobody leads. *epoch for propose. */
  int (*acquire)(void *node, uint64_t deadline, uint64_t *epoch); /* VFS_NO_SPACE: the log is full */
  void (*release)(void *node, uint64_t epoch);
  /*
  ** Appends a change set to the log and sends it off; returns at once with its index (it may wait for
  ** memory, at most until `deadline`). set->previous is what it is based on. VFS_NOT_HERE: the epoch is over. VFS_NO_SPACE:
  ** the log has no room for it; for VFS_SET_ABORT there is a reserve.
  */
  int (*propose)(void *node, uint64_t epoch, const struct vfs_change_set *set, uint64_t deadline, uint64_t *index);
  /* Until its fate is known or `deadline`. The calling thread may carry out the log's write itself. */
  enum vfs_fate (*wait)(void *node, struct vfs_token token, uint64_t deadline);
  /* Reads begun after it returns see what was committed before it was called (design section 10). */
  int (*barrier)(void *node, int level, uint64_t deadline);
  /* Until the local log is durable through `index`: VFS_OK, VFS_BUSY at the deadline, VFS_IO. */
  int (*wait_durable)(void *node, uint64_t index, uint64_t deadline);
  /* The entry at `index`; within vfs_database_start only, most of the time in order. VFS_DAMAGED with a sentence in text. */
  int (*read_log)(void *node, uint64_t index, struct vfs_log_entry *entry, char *text);
  void (*release_log)(void *node, struct vfs_log_entry *entry);
  /* What stands in the way of who was refused, into text; left alone if there is nothing to say. */
  void (*explain)(void *node, char *text);
  /* The WAL has grown: call vfs_checkpoint on a thread of the node, at once even if it failed a moment ago. */
  void (*want_checkpoint)(void *node);
};

struct vfs_database;

struct vfs_database_options {
  struct os *os;
  sqlite3_vfs *base;     /* the real file system's */
  const char *path;      /* absolute */
  const char *folder;    /* app.db-balsa, exists */
  const char *set_aside; /* a folder, exists: what is there of the database is moved into it first; NULL: nothing is */
  const struct vfs_node_methods *methods;
  void *node;
  uint32_t commit_timeout_ms;
  uint32_t wal_limit_frames; /* how far the WAL may grow while nobody holds it back (checkpoint.c); 0: 4000 */
  uint32_t part_bytes;       /* of a change set, raw, beyond which a transaction is cut into parts; 0: 1 MiB */
};

/* What lay there at open. */
struct vfs_found {
  bool has_content;                       /* the file has at least one page */
  bool has_marks;                         /* it belongs to a log: `checkpointed` and `begun` count */
  uint32_t page_size, pages, auto_vacuum; /* of the file, if has_content */
  uint64_t checkpointed;                  /* the file was exactly this state */
  uint64_t set_index;                     /* the last change set in it */
  uint64_t begun; /* a checkpoint to here may have been under way; these entries are committed */
};

/* Through here the log was durable and committed when the marks were written; 0 without marks. */
static inline uint64_t vfs_found_marked(const struct vfs_found *found) {
  if (!found->has_marks) return 0;
  return found->begun > found->checkpointed ? found->begun : found->checkpointed;
}

/* A whole state of the database, page by page: from a view of it, a snapshot file, or the leader. */
struct vfs_state_info {
  uint64_t index;    /* last change set in it */
  uint64_t checksum; /* rolling checksum */
  uint32_t page_size, pages;
};

/*
** Where the pages of a whole state come from: `next` gives them in order, from 1; after the last one it has verified the whole. An
** error of enum vfs_error, with a sentence in text, is given on as it is: VFS_DAMAGED says that the source is, VFS_IO or
** VFS_NO_MEMORY only that it could not be read now.
*/
struct vfs_source {
  struct vfs_state_info info;
  int (*next)(void *ctx, void *page, char *text);
  void *ctx;
};

/* ---- The life of a database, on the thread that starts the node ---- */

/* Takes ownership of the files (VFS_BUSY: another process has them, named in text) and looks at them. */
int vfs_database_open(const struct vfs_database_options *options, struct vfs_database **database,
                      struct vfs_found *found, char *text);
/*
** An existing plain database: recovers its own -wal or -journal, brings it into WAL mode, checkpoints. Then `each`
** gets its whole content as a transaction in parts (full images, previous = 0 in the first; the caller sets `previous` of the
** others), the first state of a cluster. Before vfs_database_start.
*/
int vfs_database_adopt(struct vfs_database *database, struct vfs_found *found, char *text);
int vfs_database_export(struct vfs_database *database, int (*each)(void *ctx, const struct vfs_change_set *set),
                        void *ctx, char *text);
/*
** A database that a plain program changed after its node's stop in order: *is_edited if it is a whole one with the same page size and
** a state that the log (through log_last) does not have. Its own -wal or -journal is in the file then, and `export` gives its
** content. VFS_BUSY: it is still open in another program. Before vfs_database_start, for a cluster of one: where others
** have the log too, or the node was killed, the log counts.
*/
int vfs_database_find_edit(struct vfs_database *database, uint64_t log_last, bool *is_edited, char *text);
/* The adopted or edited file is the state at `index`: a durable mark. */
int vfs_database_mark(struct vfs_database *database, uint64_t index, char *text);
/*
** An adopted database that was not begun from after all: it is copied into `folder`, which is there, and is as one that never
** was, to the connections that are open too. Before vfs_database_start.
*/
int vfs_database_clear(struct vfs_database *database, const char *folder, char *text);
/*
** Page 1 of a new, empty database, equal on every node; durable. For a file without content. May come after start
** and with connections open (until then they see an empty database and cannot write).
*/
int vfs_database_create(struct vfs_database *database, uint32_t page_size, uint32_t auto_vacuum, char *text);
struct vfs_start_options {
  uint64_t commit_index;        /* >= found.begun */
  uint64_t log_first, log_last; /* what the log has; read_log gives it, also what is not known to be committed */
  const struct vfs_source
      *snapshot;                   /* NULL: none. Durable; for what the log does not reach, or a file lost or changed */
  uint32_t page_size, auto_vacuum; /* to make the file from nothing; 0 if unknown */
};
/*
** Redo: brings the file to the state at `commit_index`, throws WAL and wal-index away or resets them, keeps aside and makes
** again what was changed from outside or damaged. Then connections may use it. *applied = commit_index, or less if a
** transaction in parts ends only behind it. For a file without content and commit_index 0: only opens.
*/
int vfs_database_start(struct vfs_database *database, const struct vfs_start_options *options, uint64_t *applied,
                       char *text);
/* Connections get errors from now on; open write transactions are doomed. Checkpoints if it can within `deadline`. */
void vfs_database_stop(struct vfs_database *database, uint64_t deadline);
/* After stop, when no connection is left (xClose of the last one reports by vfs_host.detach). Releases the files. */
void vfs_database_close(struct vfs_database *database);

/* ---- From the node while it runs ---- */

/*
** [any] Entries through `index` are committed, those this node proposed in the live epoch among them. Never with an index
** learned after the epoch ended: by then another node's entry may stand at an index of ours.
*/
void vfs_committed(struct vfs_database *database, uint64_t index);
/* [any] The right to write is over: wakes who waits for the ticket, dooms open write transactions. */
void vfs_epoch_lost(struct vfs_database *database);
/*
** After vfs_epoch_lost, on the apply thread: waits until no write transaction is open, then takes back what is
** not committed through `commit_index`, which is what was committed at the moment when the epoch ended (own entries beyond
** it that commit after all are applied again). Afterwards the database is exactly the state at `commit_index`, and only apply
** may change it until the node grants an epoch again; apply goes on (again) behind `*applied`, which may be lower than
** commit_index when a transaction in parts was under way. `cancelled` is asked while it waits (VFS_STOPPED).
*/
int vfs_compensate(struct vfs_database *database, uint64_t commit_index, bool (*cancelled)(void *node),
                   uint64_t *applied);
/* The next committed entry (and locally durable), in order, on the apply thread. text as for all. */
int vfs_apply(struct vfs_database *database, const struct vfs_log_entry *entry, char *text);
/*
** Between the two nobody begins a write transaction: waits at most until `deadline` for the open one to end (VFS_BUSY). Who
** comes meanwhile queues, and goes on afterwards. Once at a time; not for long; resume before vfs_compensate is due.
*/
int vfs_pause(struct vfs_database *database, uint64_t deadline);
void vfs_resume(struct vfs_database *database);
/*
** On a thread of its own. After any error the caller tries again by itself, after a while or when want_checkpoint is
** called. VFS_BUSY: a reader or writer was in the way.
*/
int vfs_checkpoint(struct vfs_database *database, char *text);
/*
** Who keeps the WAL from starting again though it has reached its limit, and what to do; "" nobody. Asks the system for
** locks: not with the node's mutex held.
*/
void vfs_describe_checkpoint(struct vfs_database *database, char *text);

/* ---- Snapshots ---- */

/*
** A committed and locally durable state that stays readable while writers go on. Holds the ticket only to be tied to the
** state (at most until `deadline`). Checkpoints do not go beyond it until it is closed, and the WAL does not start again
** (checkpoint.c). One thread at a time.
*/
struct vfs_view;
int vfs_view_open(struct vfs_database *database, uint64_t deadline, struct vfs_view **view, struct vfs_state_info *info,
                  char *text);
/* Pages first … first + n - 1, on any thread; the lock-byte page is not defined. SQLite error code. */
int vfs_view_read(struct vfs_view *view, uint32_t first, uint32_t n, uint8_t *pages);
void vfs_view_close(struct vfs_view *view);

/*
** On the apply thread of a follower: the database becomes the source's state, in one large apply; readers keep their
** snapshots. Only pages that differ go to the WAL. If it fails nothing is changed, and it may be tried again with a fresh source.
*/
int vfs_install(struct vfs_database *database, const struct vfs_source *source, char *text);

struct vfs_status {
  uint32_t page_size, pages;
  uint32_t wal_frames; /* in the WAL, whether they are in the database file too or not */
  uint64_t checksum;   /* of the committed state */
  uint64_t index;      /* last change set in that state */
  uint64_t checkpointed;
  bool serves_reads;
  char notice[VFS_TEXT_MAX];  /* what the start found that somebody should know; "" nothing */
  char blocked[VFS_TEXT_MAX]; /* who keeps compensation from going on; "" nobody */
};
void vfs_get_status(struct vfs_database *database, struct vfs_status *status); /* [any] */
void *vfs_database_node(struct vfs_database *database);

/* ---- SQLite's side ---- */

/* Who opens databases: ext/. */
struct vfs_host {
  /*
  ** A connection opens a main database file through vfs=balsa. `filename` is SQLite's (URI parameters by
  ** sqlite3_uri_parameter). Starts the node if this is the first. SQLite error code; text gets the sentence.
  */
  int (*attach)(const char *filename, int flags, struct vfs_database **database, char *text);
  /* The connection is closed. */
  void (*detach)(struct vfs_database *database);
};
/*
** Registers the VFS "balsa" over `base`. `is_default`: databases that are opened without naming a VFS go
** through it too. SQLite error code. Once per process.
*/
int vfs_register(const struct vfs_host *host, sqlite3_vfs *base, bool is_default);

/* One open main database file of one SQLite connection. Used on the connection's own thread. */
struct vfs_connection;
/* The connection's Balsa database called `schema` ("main"), or NULL: the first one attached. NULL: it has none. */
struct vfs_connection *vfs_connection_find(sqlite3 *db, const char *schema);
struct vfs_database *vfs_connection_database(struct vfs_connection *connection);
/* Of its last COMMIT, known or not. index 0: none yet. */
struct vfs_token vfs_connection_last_commit(struct vfs_connection *connection);
/* The sentence for its last error; "" none. */
const char *vfs_connection_error(struct vfs_connection *connection);
void vfs_connection_set_error(struct vfs_connection *connection, const char *text);
/* Does it hold the write ticket (an open write transaction)? Then what waits for commits must refuse. */
bool vfs_connection_is_writing(struct vfs_connection *connection);
uint32_t vfs_connection_timeout_ms(struct vfs_connection *connection); /* PRAGMA balsa_timeout */
/*
** Into the application's log (SQLITE_CONFIG_LOG), until vfs_log_end: at a normal exit what the log's callback works with may be
** gone (the sqlite3 shell's lies on the stack of its main). Any thread.
*/
void vfs_log(int code, const char *text);
void vfs_log_end(void);
/* Why the last sqlite3_open on this thread failed in attach; "" if it did not. */
const char *vfs_open_error(void);

#endif
