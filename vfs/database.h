/*
** Inside vfs/: one replicated database in this process, and one SQLite connection to it.
**
** States of the database follow each other in the WAL: the *committed* one, the *in-flight* ones on top
** (captured and proposed, their fate open), the last of which is the *captured* one; then possibly one that a
** writer has published in the wal-index but that is not captured yet (the *live* header is beyond).
** Sequences number the captured states in this process: what a reader saw is told by one.
**
** Locks, in order:
**   1. `ticket`      (ticket.h) who may change the WAL; held over SQLite's whole write transaction
**   2. `checkpoint`  one checkpoint at a time (taken before the ticket by the checkpointer only)
**   3. `mutex`       committed, captured, in_flight, lost, boundaries, marks, texts; never held over I/O on
**                    WAL or file, nor over calls of the node
*/
#ifndef BALSA_VFS_DATABASE_H
#define BALSA_VFS_DATABASE_H

#include <stdatomic.h>
#include <stdio.h>

#include "hashes.h"
#include "marks.h"
#include "ownership.h"
#include "ticket.h"
#include "vfs.h"
#include "wal.h"

#define VFS_LOST_RANGES 64                /* remembered ranges of lost sequences; older ones count as lost */
#define VFS_BOUNDARIES_MAX 8192           /* remembered transaction boundaries in the WAL, for checkpoints */
#define VFS_WAL_LIMIT_FRAMES 4000         /* default limit of the WAL, while nobody holds it back */
#define VFS_CHECKPOINT_SHARE 4            /* a checkpoint is asked for at this part of the limit */
#define VFS_VERIFY_BYTES (64u << 20)      /* a file up to this is read through at every start */
#define VFS_REDO_BYTES (48u << 20)        /* of pages that redo changes in memory before it writes them */
#define VFS_PART_BYTES (1u << 20)         /* a transaction's change set is cut into parts of about this size, raw */
#define VFS_RESERVE_FRAMES 4096           /* wal-index regions are mapped this far ahead */
#define VFS_WAIT_SLICE (20 * OS_MS)       /* who waits with the ticket looks after its leadership this often */
#define VFS_BUSY_RETRY_MAX (200 * OS_MS)  /* SQLite's busy handler comes again within 100 ms */
#define VFS_BUSY_RETRY_WAIT (100 * OS_MS) /* and waits no longer than this */
#define VFS_TIMEOUT_MS_MAX 3600000u
#define VFS_FCNTL_CONNECTION 0x42a15a01 /* sqlite3_file_control: *(struct vfs_connection **)arg */

/* A transaction boundary in the WAL. */
struct vfs_state {
  uint64_t sequence;
  struct vfs_token token; /* of the transaction that led here; index 0: none, or not from this node */
  uint64_t index;         /* last change set in it */
  uint64_t checksum;
  uint32_t max_frame, pages;
};

struct vfs_lost_range {
  uint64_t first, last;
};

struct vfs_database {
  struct os *os;
  sqlite3_vfs *base;
  const struct vfs_node_methods *methods;
  void *node;
  char *path, *folder;
  const char *name; /* sqlite3_create_filename(path): for the base VFS */
  uint32_t commit_timeout_ms, wal_limit_frames, part_bytes;

  struct vfs_ownership *ownership;
  struct slot_file *marks_file;
  sqlite3_file *file, *wal_file; /* the node's own handles of the base VFS */
  bool is_locked, is_alone, is_started;
  uint64_t export_checksum;
  struct vfs_hashes *hashes; /* what the file holds */
  uint32_t page_size;        /* 0: the database has no page yet */
  struct vfs_wal *wal;       /* valid once `ready` */

  struct vfs_ticket ticket;
  pthread_mutex_t checkpoint;
  pthread_mutex_t mutex;
  pthread_cond_t changed; /* captured or committed moved, something was lost, the WAL has started again */

  atomic_bool ready; /* page 1, WAL and wal-index are there */
  atomic_bool stopped;
  atomic_bool wal_failed;     /* compensation failed: no reads until restart */
  atomic_bool parts_dangling; /* parts were proposed and neither ended nor aborted: the next writer must do it first */
  atomic_bool checkpoint_wanted; /* asked for, or tried in vain: the node comes again */
  atomic_bool is_checkpointing;
  atomic_bool is_held_back;         /* the WAL cannot start again now: writers do not wait for it */
  atomic_uint held_frame;           /* readers of frames up to here were in the way; 0: none */
  atomic_uint views;                /* that are open */
  atomic_uint_least64_t generation; /* rises when an epoch is lost: older write transactions are doomed */
  atomic_uint_least64_t commit_index;

  /* mutex */
  struct vfs_state committed, captured;
  struct vfs_state *in_flight; /* a ring */
  uint32_t in_flight_first, in_flight_count, in_flight_capacity;
  struct vfs_lost_range lost[VFS_LOST_RANGES];
  uint64_t schema_sequence;     /* the last captured state with a new schema cookie */
  uint64_t lost_count;          /* ever; lost[lost_count % VFS_LOST_RANGES] is the next */
  struct vfs_state *boundaries; /* a ring of committed states in the WAL, rising frames */
  uint32_t boundaries_first, boundaries_count;
  struct vfs_marks marks;
  char blocked[VFS_TEXT_MAX], notice[VFS_TEXT_MAX];
  uint32_t connections;

  /* who holds the ticket */
  struct vfs_wal_header header; /* the wal-index header of `captured` */
  struct vfs_encoder *encoder;
  struct vfs_decoder *decoder;
  uint64_t dangling_index; /* the last of such parts */
  uint8_t *before, *after; /* a page each */
  /* a transaction in parts that is being applied */
  bool parts_open;
  uint64_t parts_epoch;
  uint32_t parts_pages; /* pages of the state before it */
  uint64_t parts_checksum, parts_index;
  struct vfs_wal_append parts_append;
};

enum vfs_pending {
  VFS_PENDING_NONE,
  VFS_PENDING_COMMIT,
  VFS_PENDING_LOST,
  VFS_PENDING_FULL, /* lost, since a disk is full */
  VFS_PENDING_UNKNOWN,
};

struct vfs_connection {
  sqlite3_file file; /* first: this is what SQLite holds */
  struct vfs_database *database;
  sqlite3_file *real;
  sqlite3 *handle;              /* by SQLITE_FCNTL_PDB */
  atomic_bool has_shared_cache; /* of several SQLite connections: refused, `handle` counts no more */
  struct vfs_connection *next;  /* all of the process */

  int read_lock;              /* SQLite's shm offset, 0 none */
  atomic_int read_lock_shown; /* the same, and the thread that took it: for vfs_describe_checkpoint */
  atomic_int reader_thread;
  struct vfs_wal_header snapshot; /* live header when the read lock was granted */
  bool retry_expected;            /* the header changed while it waited: SQLite will unlock and lock again */
  bool reserved;                  /* has the ticket, WRITE not granted yet */
  bool writing;                   /* WRITE granted */
  bool saw_speculation;           /* read page 1 under a mere reservation, which shows base_sequence */
  int refusal;                    /* enum vfs_error: the answer to the next request for WRITE */
  uint64_t refused_at;            /* when it last waited for the ticket in vain; 0: it got it */
  uint64_t epoch, generation;
  bool told_doomed;       /* it has been told that its write transaction is lost, and rolls back */
  uint64_t base_sequence; /* what it builds on, from its reservation on; 0: what is committed */

  uint64_t gate;      /* sequence that its first read must wait for; 0 none */
  uint64_t unsettled; /* sequence that it read and whose fate was open at the last unlock; 0 none */

  enum vfs_pending pending; /* for SQLITE_FCNTL_COMMIT_PHASETWO */
  uint64_t pending_sequence;
  struct vfs_token pending_token, last_commit;
  struct vfs_token commit_before; /* last_commit when WRITE was granted */

  bool strict, read_only;
  uint32_t timeout_ms;
  char error[VFS_TEXT_MAX];
};

/* gate.c: what a state's fate means to who saw it. */
enum vfs_fate vfs_wait_sequence(struct vfs_database *database, uint64_t sequence, uint64_t deadline);
bool vfs_is_lost(struct vfs_database *database, uint64_t sequence);                   /* mutex held */
void vfs_settle(struct vfs_database *database);                                       /* mutex held */
void vfs_lose(struct vfs_database *database, uint64_t first, uint64_t last);          /* mutex held */
void vfs_boundary_push(struct vfs_database *database, const struct vfs_state *state); /* mutex held */
uint64_t vfs_newest_sequence(const struct vfs_database *database); /* mutex held: of the state that readers see */
bool vfs_header_beyond(const struct vfs_database *database, const struct vfs_wal_header *live); /* mutex held */
void vfs_gate_arm(struct vfs_connection *connection);
int vfs_gate_pass(struct vfs_connection *connection); /* SQLite error code */

/* apply.c. Ticket held: what was applied of a transaction in parts goes; the log gives it again. */
void vfs_parts_cancel(struct vfs_database *database);

/* capture.c: the holder of the ticket. */
int vfs_capture(struct vfs_connection *connection); /* at the unlock of WRITE; sets pending */
/* With the right to write: ends the parts that a writer before it could not end. VFS_BUSY: cannot be done now. */
int vfs_end_dangling_parts(struct vfs_connection *connection);
/*
** Appends what takes the live state back to `target` (a state in the present WAL) and publishes it; the caller records
** which sequences are lost. If it fails nothing is changed; it may be tried again.
*/
int vfs_restore(struct vfs_database *database, const struct vfs_state *target);
/*
** Before frame `frame` is written: the WAL has room for it, and for taking back everything through it that is not committed.
** SQLite error code, with the connection's sentence.
*/
int vfs_reserve_frame(struct vfs_connection *connection, uint32_t frame);
/* If SQLite has restarted the WAL: whatever was in it is committed and in the database file. */
void vfs_note_restart(struct vfs_database *database, const struct vfs_wal_header *live);
bool vfs_same_salt(const struct vfs_wal_header *a, const struct vfs_wal_header *b);

/* checkpoint.c: pacing. */
/*
** Asks for a checkpoint if the WAL, of `max_frame` frames, is due for one. No lock held but the ticket.
*/
void vfs_ask_for_checkpoint(struct vfs_database *database, uint32_t max_frame);
/* Soon, whatever the size of the WAL. */
void vfs_want_checkpoint(struct vfs_database *database);
/* Before a transaction begins: has the WAL reached its limit, so that it should wait? */
bool vfs_wal_is_full(struct vfs_database *database);
/* Waits a little for that; while a snapshot is written, for `pace` ns. Neither the ticket nor a read lock held. */
void vfs_wait_for_wal(struct vfs_database *database, uint64_t pace);

/* A view is closed: the WAL may start again. */
void vfs_view_closed(struct vfs_database *database);

/* With a deadline for everything that it waits for. */
int vfs_checkpoint_until(struct vfs_database *database, uint64_t deadline, char *text);

/* connection.c */
/* The connection of this process that holds a read lock at this shm offset; false: none. *thread is its thread's id. */
bool vfs_find_reader(struct vfs_database *database, int offset, const void **connection, int *thread);
void vfs_connection_fail(struct vfs_connection *connection, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* The sentence for enum vfs_error, as the node has it. */
void vfs_connection_explain(struct vfs_connection *connection, int error);
/* The wal-index could not be mapped as far as it is needed. SQLite error code. */
int vfs_fail_shm(struct vfs_connection *connection, uint32_t frame, int code);
/* Until when it waits for others now, and what became of that: enum vfs_error. */
uint64_t vfs_connection_deadline(const struct vfs_connection *connection);
void vfs_connection_note_wait(struct vfs_connection *connection, int error);
int vfs_connection_open(struct vfs_connection *connection, struct vfs_database *database, int flags);
bool vfs_is_connection(const sqlite3_file *file); /* or an ordinary file, opened through this VFS */
bool vfs_has_connection(const sqlite3 *handle);   /* a replicated database is open on it */
bool vfs_is_wal_of_connection(const char *name);  /* of an open replicated database */
extern const sqlite3_io_methods vfs_wal_methods;
struct vfs_wal_file {
  sqlite3_file file;
  struct vfs_connection *connection;
  sqlite3_file *real;
};

/* aside.c: at open, before the marks are read. What is there of the database goes into `folder`. */
int vfs_set_aside(struct vfs_database *database, const char *folder, char *text);
/* database.c. Takes the files, once. */
int vfs_database_lock_files(struct vfs_database *database, char *text);

/* register.c: a connection is closed. */
void vfs_database_detach(struct vfs_database *database);
/* register.c: this process was forked from the one that uses the databases: its copies of locks and states are dead. */
bool vfs_is_forked_child(void);

/* database.c */
void vfs_set_blocked(struct vfs_database *database, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Tells it in balsa_status and in the application's log. */
void vfs_set_notice(struct vfs_database *database, const char *format, ...) __attribute__((format(printf, 2, 3)));
int vfs_write_marks(struct vfs_database *database, const struct vfs_marks *marks);
int vfs_error_of_sqlite(int code);
const char *vfs_error_text(int error);
/* outside.c: what other programs did to the files while no node had them. */
enum vfs_trust {
  VFS_TRUST_OURS,    /* as the last node left it */
  VFS_TRUST_UNKNOWN, /* nothing tells, as after power loss */
  VFS_TRUST_CHANGED, /* it is not what it was at the stop in order */
  VFS_TRUST_OPENED,  /* another program has had it open since the node was killed */
};
/* With the files locked, before -wal and -shm are touched. */
enum vfs_trust vfs_trust(struct vfs_database *database);
/* For the wal-index that is made next; the marks are to be written. */
void vfs_draw_nonce(struct vfs_database *database, struct vfs_marks *marks);
/* What the trust rests on: after every change of the wal-index's header or nBackfill; the facts of a stop in order. */
void vfs_refresh_nonce(struct vfs_database *database);
void vfs_stat_file(struct vfs_database *database, struct vfs_marks *marks);
/* Would another program see a state that is in the log, from the one that was checkpointed through entry log_last? */
int vfs_outside_is_known(struct vfs_database *database, uint64_t log_last, bool *is_known, char *text);
/* Nothing is ever thrown away: copies the file with its -wal and -journal, and tells. `why` follows the file's name. */
int vfs_outside_keep(struct vfs_database *database, const char *why, char *text);
/* redo.c: the file becomes the state at `commit_index`; sets committed, captured and marks. */
int vfs_redo(struct vfs_database *database, const struct vfs_start_options *options, uint64_t *applied, char *text);
/* Page 1 of an empty database in WAL mode. */
void vfs_first_page(uint8_t *page, uint32_t page_size, uint32_t auto_vacuum);
/* The rolling checksum of the file's first `pages` pages, read from the file. */
int vfs_scan_checksum(struct vfs_database *database, uint32_t pages, uint64_t *checksum);
/* The folder that a path lies in. */
void vfs_folder_of(const char *path, char *folder, size_t size);
/* A handle of the base VFS, and its end. NULL and *code on error. */
sqlite3_file *vfs_open_base(struct vfs_database *database, const char *name, int flags, int *code);
void vfs_close_base(sqlite3_file **file);
/* Buffers, encoder and decoder for this page size. */
int vfs_database_set_page_size(struct vfs_database *database, uint32_t page_size);
/* Files beside the database go, if nobody else can have them open. */
void vfs_remove_beside(struct vfs_database *database);
/* Makes wal_file, wal and the wal-index for a file of `pages` pages that is state `index`. */
int vfs_database_begin_wal(struct vfs_database *database, uint32_t pages, char *text);

#endif
