/*
** Inside the node. Its files:
**
**   node.c         life cycle: registry, start, stop, fork
**   node_form.c    what the folder keeps, bootstrap, forming a cluster from peers
**   node_raft.c    driving the core: events in, work out, messages, timer
**   node_members.c who belongs to the cluster: dialling, meeting, joining, being removed
**   node_change.c  the leader changes the members
**   node_log.c     making it durable: who flushes, the log thread
**   node_write.c   what vfs/ asks for: acquire, propose, wait, barrier
**   node_apply.c   the apply thread and the checkpoint thread
**   node_snapshot.c  the snapshot thread: when a snapshot is taken, and how
**   node_compact.c   what the log weighs, and how much of it is kept
**   node_edit.c    a database that was changed while its node was stopped
**   node_restore.c   a snapshot becomes the database
**   node_transfer.c  the transfer thread: snapshots to followers, and from the leader
**   node_request.c   commands to the leader, from any node
**   node_rebuild.c   beginning anew under the old number, when log or vote are lost
**   node_recover.c   a new cluster from this node alone, when a majority is lost
**   node_succession.c  handing leadership over, on request and at a stop
**   node_status.c  looking in
**
** Threads: the transport's loop (messages, ticks), the log thread (flushes that no committing thread leads,
** votes, entries that are not in memory), the apply thread (apply, compensation, forming), the
** checkpoint thread, the snapshot thread, the transfer thread; and the application's.
**
** Locks, in order: the registry's → the write ticket (vfs/) → node.mutex → facts_mutex, a waiter's mutex, and those
** inside the store, the transport and vfs/ (functions marked [any]). node.mutex is never held over SQLite, other
** functions of vfs/, or disk I/O.
*/
#ifndef BALSA_NODE_INTERNAL_H
#define BALSA_NODE_INTERNAL_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/types.h>

#include "../raft/forming.h"
#include "../raft/io/hard_state.h"
#include "../raft/io/store.h"
#include "../raft/io/transport.h"
#include "../snapshot/snapshot.h"
#include "node.h"
#include "options.h"
#include "slot_file.h"

#define NODE_WINDOW_BYTES (8u << 20)       /* under way to one follower */
#define NODE_ROUND_TRIP_SHORT OS_MS        /* below it APPENDs wait for each other and gather entries */
#define NODE_BATCH_BYTES (1u << 20)        /* in one APPEND */
#define NODE_DRIFT_PERMILLE 50             /* a clock may run 5 % faster than another (leases) */
#define NODE_APPEND_ENTRIES_MAX 1024       /* as the core sends them */
#define NODE_PENDING_BYTES_MAX (64u << 20) /* appended and not yet durable: writers wait beyond it */
#define NODE_LOG_CACHE_BYTES (16u << 20)   /* durable and still in memory: for followers within the window */
#define NODE_EXPORT_FLUSH_BYTES (8u << 20) /* the first state of a cluster goes to the disk in steps of this */
#define NODE_MESSAGES_MAX 4096             /* that wait for a write; Raft repeats what is dropped beyond it */
#define NODE_DISK_READS_MAX 64             /* APPENDs that wait for entries from the disk; likewise */
#define NODE_APPLY_ENTRIES_MAX 64          /* read from the log at once */
#define NODE_APPLY_BYTES_MAX (4u << 20)
#define NODE_READY_LAG_MAX 1000        /* entries behind the leader that still count as ready */
#define NODE_RETRY_NS_MIN (10 * OS_MS) /* back-off of what was in the way */
#define NODE_RETRY_NS_MAX OS_SECOND
#define NODE_BUSY_RETRY_NS (20 * OS_MS)
#define NODE_CHECKPOINT_RETRY_MAX (250 * OS_MS) /* readers that stay are asked for that often */
#define NODE_START_ALONE_MAX OS_SECOND          /* an open waits this long for a cluster of one to be ready */
#define NODE_NO_SPACE_RETRY_NS (200 * OS_MS)
#define NODE_NO_SPACE_RETRY_MAX (2 * OS_SECOND) /* to make room for the log writes as much as there is */
#define NODE_SEGMENT_BYTES_MIN (64u << 10)      /* of the log: smaller ones if snapshots are frequent */
#define NODE_SEGMENT_BYTES_MAX (16u << 20)
#define NODE_WEIGHTS 64                /* remembered places in the log; half of them lie in its tail */
#define NODE_VIEW_WAIT (2 * OS_SECOND) /* a snapshot waits for its turn among the writers */
#define NODE_VIEW_SLICE (200 * OS_MS)
#define NODE_SNAPSHOT_RETRY_MIN (OS_SECOND) /* back-off after a snapshot that failed */
#define NODE_SNAPSHOT_RETRY_MAX (60 * OS_SECOND)
#define NODE_SNAPSHOT_STALL_MAX (30 * OS_SECOND)   /* balsa_snapshot() waits so long for one that does not get on */
#define NODE_SNAPSHOT_LOOK (500 * OS_MS)           /* and looks this often */
#define NODE_SNAPSHOT_WAL_MAX (UINT64_C(64) << 20) /* so much may a WAL grow while a snapshot gets nothing */
#define NODE_SNAPSHOT_QUIET_MIN OS_SECOND          /* so long it may get nothing, and then it takes what it needs */
#define NODE_SNAPSHOT_SPEED (UINT64_C(64) << 20)   /* for so many bytes a second: a fifth of a processor */
#define NODE_CHUNK_BYTES (256u << 10)   /* of a snapshot, in one message: heartbeats do not wait long behind it */
#define NODE_TRANSFER_WINDOW (2u << 20) /* of a snapshot, under way to one follower */
#define NODE_CHUNKS_MAX 16              /* that came and wait to be written */
#define NODE_TRANSFERS_MAX (RAFT_MEMBERS_MAX + 1)
#define NODE_COMMANDS_MAX 32                   /* that a leader has at hand */
#define NODE_JOINS_MAX (NODE_COMMANDS_MAX / 2) /* of them, from those who are no members: room is left for members */
#define NODE_REQUEST_PAUSE (20 * OS_MS)        /* before a command is sent again */
#define NODE_REQUEST_PATIENCE OS_SECOND        /* without an answer it is sent again */
#define NODE_WHY_MAX 320                       /* bytes of a sentence: what a command waits for */
#define NODE_SUCCESSOR_LAG_MAX 1024            /* entries: who is further behind would make writers wait for it */
#define NODE_SUCCESSOR_SLICE (5 * OS_MS)
#define NODE_PAUSE_SLICE (100 * OS_MS) /* who waits for writers to pause looks that often whether the node stops */
#define NODE_RECOVER_PATIENCE (5 * OS_SECOND) /* for balsa_recover() to be written down */
#define NODE_STARTS_MAX 3                     /* of one open: as found, to begin anew or recover, and after that */
#define NODE_LOST_MAX 3 /* folders lost-<n>: a node does not rebuild itself any more when there are so many */
#define NODE_STOP_HAND_OVER_MAX (800 * OS_MS)  /* of a stop in order, to hand leadership over */
#define NODE_STOP_TICKET_MAX (100 * OS_MS)     /* of that, for an open write transaction to end */
#define NODE_GREETING_PATIENCE (2 * OS_SECOND) /* for a node that is to be added to answer at its address */
#define NODE_PASSING_PATIENCE (2 * OS_SECOND)  /* for a leader that is to leave to hand over; then again */
#define NODE_PASSING_PAUSE (100 * OS_MS)
#define NODE_JOIN_PACE (250 * OS_MS)       /* a joiner asks again */
#define NODE_JOIN_PATIENCE (2 * OS_SECOND) /* until it says that nobody answers */
#define NODE_JOIN_WAIT_MS 5000             /* the leader keeps at it for so long */
#define NODE_PARTING OS_SECOND             /* who is no member any more is dialled for so long */
#define NODE_LEARNED_MAX RAFT_MEMBERS_MAX
#define NODE_DIALLED_MAX (4 * RAFT_MEMBERS_MAX) /* members, those who are parted from, those who came to a joiner */
#define NODE_FEATURE_JOINS 2ull                 /* of a Hello: this node waits to become a member */
#define NODE_AUTO_VACUUM_ANY UINT32_MAX         /* of such a Hello: whatever the cluster has */
#define NODE_TWO_VOTERS_TEXT "tolerates the failure of no node: two of two must answer. Let a third one join"

/* Numbers of contacts (raft_transport_set_contact). */
#define NODE_CONTACT_JOIN 1u     /* … OPTIONS_JOIN_MAX: those that option join names */
#define NODE_CONTACT_LEADER 15u  /* whom one of them named as the leader */
#define NODE_CONTACT_COMMAND 16u /* … the slot of a command: who is to be added */

/* Someone who waits for an index: to be committed, applied, or durable. On the waiting thread's stack. */
enum node_signal { NODE_WAIT, NODE_LEAD, NODE_DECIDED };
struct node_waiter {
  struct node_waiter *next, *previous; /* node.mutex; by rising index */
  uint64_t term, index;
  pthread_mutex_t mutex; /* guards `signal` */
  pthread_cond_t condition;
  enum node_signal signal; /* LEAD: flush the log, please */
  enum vfs_fate fate;      /* once DECIDED; then it is in no list any more */
};
struct node_waiters {
  struct node_waiter *first, *last;
};

/* A linearizable read under way, on the asking thread's stack. */
struct node_read {
  struct node_read *next;
  uint64_t context, index;
  int error;
  bool is_answered;
};

/* A message that waits for persist number `after`. */
struct node_delayed {
  struct raft_message message;
  uint64_t after;
};

/* What the log weighs, from some beginning through the entry at `index`: payloads and headers, bytes. */
struct node_weight {
  uint64_t index, weight;
};

/* A follower is getting the snapshot at `index`, and has been since the log weighed `weight`. */
struct node_pin {
  uint64_t to, index, weight;
};

struct node_snapshot;

/* A hand-over on behalf of somebody else, on a thread of its own. node.mutex; `thread`: who begins it, or stops the node. */
struct node_errand {
  struct os_thread *thread; /* NULL: there was none yet */
  uint64_t number;          /* of the latest one */
  uint64_t to, deadline;
  bool is_under_way;
  int error; /* of the latest one: enum vfs_error */
  uint64_t leader;
  char text[VFS_TEXT_MAX];
};

/* What a node may ask of the leader; numbers of the wire, for ever. */
enum node_request_kind {
  NODE_REQUEST_NONE,
  NODE_REQUEST_JOIN,
  NODE_REQUEST_ADD,
  NODE_REQUEST_REMOVE,
  NODE_REQUEST_PROMOTE,
  NODE_REQUEST_DEMOTE,
  NODE_REQUEST_ADDRESS,
  NODE_REQUEST_TRANSFER, /* leadership to `node`, 0: the most up to date */
  NODE_REQUESTS,
};

/* The reply's status; numbers of the wire, for ever. */
enum node_reply_status {
  NODE_REPLY_OK,
  NODE_REPLY_ALREADY,    /* what is asked for was the case before; the text says so */
  NODE_REPLY_NOT_LEADER, /* ask the one named, or wait until one is known */
  NODE_REPLY_LATER,      /* not done within wait_ms, or not now: try again */
  NODE_REPLY_REFUSED,    /* the text says why, and the way out */
};
#define NODE_REPLY_MAY_HAPPEN 1 /* bit: NOT_LEADER, LATER: it was begun and may still come to pass */

/* A command that the leader has at hand. node.mutex. */
struct node_command {
  struct raft_request request; /* kind NODE_REQUEST_NONE: free */
  uint64_t term;               /* of the leadership that took it */
  uint64_t deadline;           /* as far as the asker waits */
  bool may_happen;             /* something was begun that does not need this leader any more */
  char why[NODE_WHY_MAX];      /* what it waits for */
  unsigned stage;              /* the step function's own, from 0; so are those below */
  uint64_t since;
  uint64_t errand; /* number of the hand-over that it waits for */
  struct raft_hello hello;
};

/* Where a node is by its own word, where that is news. */
struct node_learned {
  uint64_t id;
  struct raft_uuid incarnation;
  char address[RAFT_ADDRESS_MAX];
};

/* Someone who waits for the answer to a command, on the waiting thread's stack. node.mutex. */
struct node_asking {
  struct node_asking *next;
  uint64_t context;
  bool is_sent, is_answered;
  struct raft_request reply;
};

/* A snapshot on its way to a follower. node.mutex; who closes the file is the transfer thread. */
struct node_transfer {
  uint64_t id; /* the core's; 0: none */
  uint64_t to;
  struct os_file *file;
  uint64_t index, term, size_bytes; /* of the file */
  uint64_t acked;                   /* what is before has arrived */
  uint64_t sent;                    /* what is before was sent */
  bool is_asked;                    /* the core wants something of it, or a snapshot has come to be */
  bool is_answered;                 /* the follower has said from where on */
  bool is_suspect;                  /* the follower had all of it and does not want it */
  bool is_busy, is_over;
};

/* A chunk that came from the leader; payload NULL: an offer, or a question. */
struct node_chunk {
  uint64_t index, term, size_bytes, offset;
  struct raft_payload *payload;
};

/* The members as the folder knows them, without this node. */
struct node_known {
  uint64_t node; /* 0: nothing is known */
  struct raft_uuid cluster;
  uint32_t n_members; /* of the cluster, this node among them */
  struct raft_peer peers[RAFT_MEMBERS_MAX];
  size_t n_peers;
};

/* What the folder keeps of a cluster's making. */
enum node_formation {
  NODE_FRESH,         /* no cluster yet, or joined by the leader's entry 1: the log says which */
  NODE_BOOTSTRAPPING, /* it was writing entry 1 and the first state; nobody else has seen any of it */
  NODE_FORMED,        /* it wrote entry 1 and the first state, all durable */
  NODE_JOINED,        /* a committed configuration has named it */
  NODE_REBUILDING,    /* it has lost its log or vote, and sets aside what is left */
  NODE_RECOVERING,    /* it is to begin a cluster of its own from what its log holds */
};

struct node_kept {
  enum node_formation formation;
  uint64_t joined_index, removed_index;
};

enum node_life { NODE_STARTING, NODE_RUNNING, NODE_STOPPING, NODE_STOPPED };

struct node {
  /* The registry's mutex. */
  struct node *next;
  enum node_life life;
  uint32_t connections;
  bool has_identity;
  uint64_t device, inode;

  /* Set at start, then unchanged. */
  struct os *os;
  char path[OS_PATH_MAX], folder[OS_PATH_MAX], snapshots_folder[OS_PATH_MAX];
  struct options options;
  uint64_t id;
  struct raft_uuid incarnation;
  bool is_restart;  /* this incarnation ran before */
  bool has_content; /* the file was a database before it belonged to a cluster, adopted and not changed since */
  struct vfs_database *database;
  struct raft_store *store;
  struct raft_hard_state_file *hard_state_file;
  struct slot_file *kept_file;
  struct slot_file *known_file;
  struct raft_transport *transport;
  struct raft_transport_node *link; /* mutex; NULL once the node stops */
  struct raft_entry *ahead;         /* of the log, for the redo at start; NODE_APPEND_ENTRIES_MAX, NULL afterwards */
  uint64_t ahead_first;
  size_t n_ahead;
  struct os_thread *log_thread, *apply_thread, *checkpoint_thread, *snapshot_thread, *transfer_thread;

  /* What this node says of itself. */
  pthread_mutex_t facts_mutex;
  struct raft_hello facts;

  /* Guards all below, and the core. */
  pthread_mutex_t mutex;
  pthread_cond_t log_condition, apply_condition, checkpoint_condition;
  pthread_cond_t epoch_condition; /* who leads has changed, an epoch has begun; reads were answered */
  pthread_cond_t idle_condition;  /* a flush has ended */
  pthread_cond_t snapshot_condition;
  pthread_cond_t snapshot_done; /* an attempt has ended */
  pthread_cond_t transfer_condition;
  pthread_cond_t asking_condition; /* an answer came, or somebody else leads */
  bool stopping;
  bool frozen; /* starting, or writing the first state: no events go into the core */

  struct raft *raft;
  enum raft_role role;
  uint64_t term, leader;
  uint64_t armed;                          /* the timer stands at this time; 0: not armed */
  struct raft_configuration configuration; /* in force; n_members 0: none */
  enum node_formation formation;
  enum node_formation kept_formation; /* as it was last written while the node ran */
  bool is_former;                     /* it wrote entry 1 */
  bool electable;                     /* as told to the core */
  uint32_t election_ms, heartbeat_ms; /* likewise: the cluster's, once it is known */
  struct raft_forming *forming;       /* NULL: not forming (any more) */
  bool is_lost;                       /* at start: its log or vote is */
  bool has_rebuilt;                   /* at start: this open has begun anew already */
  bool starts_again;                  /* at start: another start has to follow */
  bool ignores_join;                  /* it was opened with join, but is a cluster of its own */
  bool rejoins;                       /* it has begun anew, under its number, and is not a member again yet */
  bool return_wanted;                 /* it forms a cluster, and learns that it was a member of one */
  struct raft_uuid recover_cluster;   /* RECOVERING: the id of the cluster that begins */
  struct node_known known;            /* as found at start */
  bool known_stale;                   /* the members are to be written down */
  char forming_text[VFS_TEXT_MAX];
  char refused_text[VFS_TEXT_MAX]; /* the last refusal by a peer; "" after any message from one */
  char quarantine[VFS_TEXT_MAX];   /* why it applies nothing more; "" if it does */
  char blocked[VFS_TEXT_MAX];      /* what stands in the way and may pass; "" nothing */
  char failed[VFS_TEXT_MAX];       /* why the log is not written any more; "" it is */
  bool failure_told;               /* to the core */

  /* Durability. Persist numbers are the core's. */
  bool flushing;              /* a thread is in raft_store_flush */
  bool unattended;            /* something to flush that no committing thread will come for */
  bool no_space;              /* the last flush found the disk full */
  bool log_full;              /* a proposal was refused for want of room: the log thread tries to make it */
  uint64_t make_room_at;      /* when to try again */
  uint32_t making_room;       /* proposing threads that have room made: the store must stay */
  uint64_t retry_at;          /* when to try again */
  struct node_waiter *handed; /* was asked to lead the next flush */
  uint64_t persist_given;     /* highest number given out by the core */
  uint64_t store_durable;     /* highest number that the store has made durable */
  uint64_t reported;          /* highest number told to the core */
  uint64_t durable_index, last_index;
  uint64_t flushes, flushes_seen;    /* for the tick that looks after what nobody flushed */
  uint64_t hard_state_first;         /* earliest number with a hard state to be written; 0 none */
  uint64_t hard_state_number;        /* latest */
  uint64_t hard_state_writing;       /* earliest number of what is being written; 0 none */
  struct raft_hard_state hard_state; /* the latest */
  struct node_delayed *delayed;
  size_t n_delayed, delayed_capacity;
  struct raft_message *disk_reads; /* APPENDs whose entries are not in memory; a ring of NODE_DISK_READS_MAX */
  size_t disk_reads_first, n_disk_reads;
  struct raft_entry *scratch;    /* NODE_APPEND_ENTRIES_MAX, for sending */
  struct raft_entry_meta *metas; /* for receiving */
  const uint8_t **payloads;
  size_t receive_capacity;

  /* Handing leadership over. */
  bool succession;       /* somebody is at it: one at a time */
  uint64_t hand_over_to; /* the core's: it takes no proposals meanwhile; 0: no hand-over */
  struct node_errand errand;

  /* Writing. */
  uint64_t epoch;         /* the term in which this node may write now; 0: it may not */
  bool compensation_owed; /* an epoch has ended and its speculation is not taken back yet */
  bool apply_blocked;     /* compensation waits for an open write transaction */
  uint64_t lost_commit;   /* what was committed when it ended */
  uint64_t origin_sequence;
  struct node_waiters commit_waiters, applied_waiters, durable_waiters;
  struct node_read *reads;
  uint64_t read_context;

  /* Members. */
  struct node_learned learned[NODE_LEARNED_MAX];
  size_t n_learned;
  uint64_t dialled[NODE_DIALLED_MAX]; /* ids that the transport dials */
  size_t n_dialled;
  uint64_t parting_at;                 /* those who are no members any more are hung up on then; 0: there are none */
  uint64_t members_tick_at;            /* the next look at what has to be asked */
  uint64_t settled_index;              /* of the committed configuration that was looked at */
  uint64_t leads_since;                /* leader */
  uint64_t leader_heard_at;            /* a message of a leader came, or the start */
  uint64_t heard_at[RAFT_MEMBERS_MAX]; /* a message of a member came, in the order of the configuration; 0 never */
  uint64_t left_index; /* of a committed configuration without it, after which a leader may have spoken to it; 0 none */
  uint64_t joined_index;  /* of the first committed configuration that is known to have named it; 0: not known */
  uint64_t removed_index; /* of the committed configuration by which it is no member any more; 0: it is not removed */
  char removed_text[VFS_TEXT_MAX];
  uint64_t keep_at; /* not before */
  bool keep_wanted; /* the folder is to keep `formation` or `removed_index` */
  int news_code;    /* not 0: `news` is to go into the application's log */
  char news[VFS_TEXT_MAX];
  char join_text[VFS_TEXT_MAX];           /* how far joining is; "" nothing to say */
  uint64_t join_context, address_context; /* of what this node asks by itself; 0: nothing yet */
  uint64_t join_heard_at;                 /* somebody answered, or the start */
  uint32_t join_next;                     /* whom to ask next */

  /* Commands. */
  struct node_asking *asking;
  uint64_t request_context; /* the latest; it begins at random: a late answer to an earlier process meets nobody */
  struct node_command commands[NODE_COMMANDS_MAX];
  size_t n_commands;
  bool is_stepping;

  /* Applying. */
  uint64_t commit_index, applied_index;
  bool has_pages; /* the database has its page 1 */
  bool apply_idle;
  bool form_wanted;
  bool checkpoint_wanted;
  char checkpoint_text[VFS_TEXT_MAX]; /* why the last one failed; "" it did not */

  /* The log's weight and its compaction. */
  uint64_t log_weight;
  struct node_weight weights[NODE_WEIGHTS]; /* a ring, rising */
  size_t weights_first, n_weights;
  struct node_pin pins[RAFT_MEMBERS_MAX];
  bool compact_wanted;

  /* Snapshots. */
  uint64_t snapshot_index;                      /* the newest durable one; 0 none */
  uint64_t snapshot_weight;                     /* of the log through it */
  uint64_t snapshot_look_at;                    /* when the log weighs this, look whether another is due */
  uint64_t snapshots_asked, snapshots_answered; /* requests, numbered */
  bool snapshot_needed;                         /* by a follower */
  bool snapshot_damaged;                        /* the newest one is: another is needed */
  bool snapshot_writing;
  int snapshot_error; /* enum vfs_error of the last attempt */
  uint64_t snapshot_retry_at;
  char snapshot_text[VFS_TEXT_MAX]; /* its sentence */
  struct node_transfer transfers[NODE_TRANSFERS_MAX];
  struct os_file *closing[NODE_TRANSFERS_MAX];
  size_t n_closing;
  struct node_chunk chunks[NODE_CHUNKS_MAX]; /* a ring */
  size_t chunks_first, n_chunks;
  const struct raft_message *received; /* while it is in the core */
  struct raft_payload *received_chunk; /* likewise; the transport's */
  uint64_t receiving_index;            /* 0: none */
  uint64_t part_index;                 /* of what lies there of a snapshot that is not whole; 0 nothing */
  unsigned receiving_percent;
  char receiving_text[VFS_TEXT_MAX]; /* what stands in its way; "" nothing */
  uint64_t install_index;            /* a durable one that waits to become the database; 0 none */
  uint64_t install_refused;          /* one that proved to be damaged */
  /* No lock. */
  atomic_bool snapshots_end; /* none is written any more */
  atomic_bool is_damaged;    /* its log proved to be, while it ran: another start finds out, and begins anew */
  atomic_uint snapshot_permille;
  atomic_uint snapshot_steps; /* rises whenever one that is taken gets on */
};

/* A sentence into `text` (VFS_TEXT_MAX bytes). */
void node_say(char *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Says it in the application's log (SQLITE_CONFIG_LOG). No lock held. */
void node_log(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* SQLite's code for an error of enum vfs_error, in an open. */
int node_sqlite_error(int error);
bool node_uuid_is_none(const struct raft_uuid *uuid);
bool node_uuid_equal(const struct raft_uuid *a, const struct raft_uuid *b);
#define NODE_UUID_TEXT (2 * RAFT_UUID_SIZE + 1)
void node_uuid_text(const struct raft_uuid *uuid, char text[NODE_UUID_TEXT]);
/* In a forked child every use is refused: its copies of locks and threads are dead. */
bool node_is_forked(void);

/* ---- node_form.c ---- */

/* The kept options and how far a formation went. SQLite error code, with a sentence. */
int node_kept_open(struct node *node, struct options *kept, char *text);
int node_kept_write(struct node *node, const struct node_kept *kept, char *text);
/* On the apply thread, mutex held, given up meanwhile: what has become of this node. VFS error, with a sentence. */
int node_keep(struct node *node, char *text);
/* A configuration of this node alone. */
void node_single_configuration(struct node *node, struct raft_configuration *configuration);
/*
** Writes entry 1 and the first state (the adopted database if has_content, else a new one). The core is fresh and
** the node frozen. All is durable when it returns SQLITE_OK; *last is the last entry of it.
*/
int node_bootstrap(struct node *node, const struct raft_configuration *configuration, bool has_content, uint64_t *last,
                   char *text);
/* mutex held. Asks the forming module where it is and notes what is to be done. */
void node_forming_look(struct node *node);
/* On the apply thread: this node writes entry 1. No lock held. */
void node_form(struct node *node);

/* ---- node_raft.c ---- */

extern const struct raft_transport_methods node_transport_methods;
/* mutex held. Carries out all that the core has to do; `entries` came with the event. */
void node_drain(struct node *node, const struct raft_entry *entries, size_t n_entries);
/* mutex held. Makes the core, from what was found. */
int node_raft_open(struct node *node, const struct raft_start *start, char *text);
/* One more configuration of the log, or of the snapshot before it, copied. SQLITE_NOMEM. */
int node_start_configuration(struct raft_start *start, uint64_t index, const struct raft_configuration *configuration);
void node_start_forget_configurations(struct raft_start *start);
/* The one in force; NULL: there is none. */
static inline const struct raft_configuration *node_start_latest(const struct raft_start *start) {
  return start->n_configurations > 0 ? start->configurations[start->n_configurations - 1].configuration : NULL;
}
/* mutex held. After raft_open or a bootstrap: copies the configuration in force. */
void node_configuration_changed(struct node *node);
/* mutex held. Sends the APPEND with the entries in `scratch`, or leaves it to the log thread. */
void node_send(struct node *node, const struct raft_message *message);

/* ---- node_members.c ---- */

/* Is this node, in this incarnation, a member? */
bool node_is_in(const struct raft_configuration *configuration, uint64_t id, const struct raft_uuid *incarnation);
/* Is this node alone a voter: does it decide by itself? */
bool node_is_alone(const struct node *node, const struct raft_configuration *configuration);
/* mutex held, as below. Is it to become a member of a cluster that is there? */
bool node_is_joining(const struct node *node);
/* Where a node can be reached, as far as this one knows; "" if it does not. */
const char *node_address_of(const struct node *node, uint64_t id);
/* Dials the members, or the peers it waits for. */
void node_dial_members(struct node *node);
/* The configuration in force is another. */
void node_members_changed(struct node *node);
/* In every drain: is the configuration in force committed by now? */
void node_members_settled(struct node *node, const struct raft_status *status);
/* This node is no member any more, by the committed configuration at `index`. */
void node_removed(struct node *node, uint64_t index);
/* Writes removed_text. */
void node_say_removed(struct node *node);
uint32_t node_count_voters(const struct raft_configuration *configuration);
void node_describe_joining(const struct node *node, char text[VFS_TEXT_MAX]);
/* On the loop thread, now and then: asks the leader for what this node wants, and hangs up on who has left. */
void node_members_tick(struct node *node);
/* A reply that nobody waits for on a thread. */
void node_hear_reply(struct node *node, const struct raft_request *reply);
/* May who says this be added? false: a sentence in `text`. No lock. */
bool node_suits(const struct raft_configuration *configuration, const struct raft_hello *hello, char *text,
                size_t size);
/* Callbacks of the transport. */
bool node_meet(void *node, const struct raft_hello *hello, struct raft_refusal *refusal);
bool node_greet(void *node, uint32_t contact, const struct raft_hello *hello, struct raft_refusal *refusal);
void node_refused(void *node, uint64_t peer, uint32_t contact, const struct raft_refusal *refusal);

/* ---- node_change.c ---- */

/* mutex held. Step functions: see node_step_commands. */
bool node_step_join(struct node *node, struct node_command *command, struct raft_request *reply);
bool node_step_add(struct node *node, struct node_command *command, struct raft_request *reply);
bool node_step_remove(struct node *node, struct node_command *command, struct raft_request *reply);
bool node_step_promote(struct node *node, struct node_command *command, struct raft_request *reply);
bool node_step_demote(struct node *node, struct node_command *command, struct raft_request *reply);
bool node_step_address(struct node *node, struct node_command *command, struct raft_request *reply);
/* The contact that a command has dialled has answered, or refused. */
void node_greet_command(struct node *node, uint32_t slot, const struct raft_hello *hello);
void node_refuse_command(struct node *node, uint32_t slot, const char *text);
/* A command is over: its slot is free. */
void node_end_command(struct node *node, struct node_command *command);

/* ---- node_log.c ---- */

/* mutex held. A write that the core gave out. */
void node_queue_write(struct node *node, const struct raft_work *work, const struct raft_entry *entries,
                      size_t n_entries);
/* mutex held, given up meanwhile; not flushing. Makes durable what is queued. */
void node_flush(struct node *node);
/* mutex held. May a committing thread whose entry is `index` lead a flush now? */
bool node_may_lead(const struct node *node, uint64_t index);
/* mutex held. If something waits for a flush and nobody leads one: finds a leader for it. */
void node_hand_over(struct node *node);
/*
** mutex held, given up meanwhile. What the log cannot take is refused before it is proposed: VFS_NO_SPACE, with a sentence in
** `blocked`. VFS_BUSY: not before something more is durable.
*/
int node_admit(struct node *node, size_t size, bool is_urgent);
/* mutex held. Nothing is written any more. */
void node_fail(struct node *node, const char *format, ...) __attribute__((format(printf, 2, 3)));
void node_log_thread(void *node);
/* Waits in the flushing thread's stead; for the end of the node. mutex held. */
void node_wait_idle(struct node *node);

/* ---- node_write.c ---- */

extern const struct vfs_node_methods node_vfs_methods;
/* mutex held. Wakes all whose fate is known by now. */
void node_decide(struct node *node);
void node_decide_durable(struct node *node);
/* mutex held. The node stops: wakes everybody. */
void node_wake_all(struct node *node);
/* mutex held. The reads that the core answered. */
void node_answer_reads(struct node *node, const struct raft_read_answer *answers, size_t n_answers);
/* An entry of a change set, its payload copied; place and sequence are the caller's. VFS error. */
int node_entry_from_set(struct node *node, const struct vfs_change_set *set, struct raft_entry *entry);
/* The redo is done, or has failed. */
void node_forget_ahead(struct node *node);
/* An entry of the log as vfs/ sees it; takes over the reference of the payload. */
void node_log_entry(const struct raft_entry *entry, struct vfs_log_entry *log_entry);

/* ---- node_rebuild.c ---- */

/* Reads the file `members` at `path`. Negative errno. */
int node_known_read(struct os *os, const char *path, struct node_known *known);
/* The same of this node, at start; it is made if need be. SQLite error code, with a sentence. */
int node_known_open(struct node *node, char *text);
/* mutex held. The members or their addresses have changed: the log thread writes them down. */
void node_known_changed(struct node *node);
/* mutex held, given up meanwhile. On the log thread. */
void node_known_write(struct node *node);
/*
** After a start that failed as `text` says. true: it is written down, durably, that this node begins anew under its number: start
** again. false: nothing is changed; `text` says what to do.
*/
bool node_rebuild(struct node *node, const struct options *kept, const struct options *given, char *text);
/* The folder into which what is lost goes, which is there. SQLite error code, with a sentence. */
int node_lost_folder(struct node *node, char path[OS_PATH_MAX], char *text);
/* At a start that finds NODE_REBUILDING, after the database: vote, log and snapshots go into `folder`; then it is fresh. */
int node_set_aside(struct node *node, const struct options *kept, const char *folder, char *text);
/*
** mutex held. A node that forms a cluster, from an empty folder, is refused by a member of one that knows its number in another
** incarnation: its folder was lost. It joins that cluster instead.
*/
void node_want_return(struct node *node);
/* On the apply thread; mutex held, given up meanwhile. VFS error, with a sentence. */
int node_return(struct node *node, char *text);
/* mutex held. What a joiner says of itself: it takes the cluster's settings. */
void node_join_facts(struct node *node);

/* ---- node_recover.c ---- */

/* At start: has the cluster that balsa_recover() began come to be? */
bool node_is_recovered(const struct node *node, const struct raft_start *start);
/*
** At a start that finds NODE_RECOVERING, when the database shows all of the log through `last_index`: writes the snapshot with which the
** new cluster begins. Start again afterwards. SQLite error code, with a sentence.
*/
int node_write_recovered(struct node *node, uint64_t last_index, char *text);

/* ---- node_succession.c ---- */

/* No lock held. Before a stop in order: hands over if this node leads and somebody can take over. */
void node_retire(struct node *node, uint64_t deadline);
/*
** mutex held. Hands over to `to` (0: anybody) on another thread; when errand.is_under_way is false again, commands are stepped.
** The errand's number, or 0: one is under way, or there is no thread.
*/
uint64_t node_begin_succession(struct node *node, uint64_t to, uint64_t deadline);
/* No lock held, the node stops: waits for its end. */
void node_end_succession(struct node *node);
/* mutex held. Step function: see node_step_commands. */
bool node_step_transfer(struct node *node, struct node_command *command, struct raft_request *reply);

/* ---- node_apply.c ---- */

void node_apply_thread(void *node);
void node_checkpoint_thread(void *node);
/* mutex held, given up meanwhile. This replica is wrong: it applies nothing more, and leads no more; files are kept. */
void node_quarantine(struct node *node, const char *text);
/* mutex held. Is there something for the apply thread? Then wakes it. */
void node_wake_apply(struct node *node);
/* mutex held. */
void node_want_checkpoint(struct node *node);

/* ---- node_snapshot.c ---- */

void node_snapshot_thread(void *node);
/* mutex held. */
void node_wake_snapshot(struct node *node);
/* mutex held. A follower needs one: takes one soon. */
void node_need_snapshot(struct node *node);
/* mutex held. There is a durable one at `index`, where the log weighs `weight`. */
void node_snapshot_published(struct node *node, uint64_t index, uint64_t weight);
/*
** At start, no lock held, nobody else there: what the database shows now becomes the snapshot at `index`, the only entry of
** `term`, at which `configuration` begins. VFS error, with a sentence.
*/
int node_snapshot_begin_anew(struct node *node, uint64_t index, uint64_t term,
                             const struct raft_configuration *configuration, char *text);
/* No lock held. Ends the thread, and what it writes: a view keeps the last checkpoint from being complete. */
void node_end_snapshots(struct node *node);
/* mutex held. */
void node_describe_snapshot(struct node *node, char text[VFS_TEXT_MAX]);

/* ---- node_compact.c ---- */

/* mutex held. An entry was appended; entries from `from` on were cut off. */
void node_weigh(struct node *node, uint64_t index, uint32_t size);
void node_weigh_less(struct node *node, uint64_t from);
/* mutex held, given up meanwhile. Forgets what may be forgotten of the log. On the snapshot thread. */
void node_compact(struct node *node);

/* ---- node_transfer.c ---- */

void node_transfer_thread(void *node);
/* mutex held. */
void node_wake_transfers(struct node *node);
/* mutex held. What the core wants; calls nothing of it. */
void node_transfer_event(struct node *node, const struct raft_transfer *event);
/* mutex held. What is being sent to this node, for balsa_members; "" nothing. */
void node_describe_transfer(struct node *node, uint64_t to, char text[NODE_TRANSFER_TEXT_MAX]);
/* mutex held. There is a new connection to or from this node: what was under way to it may be lost. */
void node_transfers_met(struct node *node, uint64_t to);
/* mutex held. There is a new snapshot: those that wait for one look again. */
void node_ask_transfers(struct node *node);
/* mutex held. A chunk that the core has accepted (payload NULL: an empty one); dropped if there are too many. */
void node_take_chunk(struct node *node, const struct raft_message *message, struct raft_payload *payload);

/* ---- node_request.c ---- */

/*
** Has the leader carry out a command, be it this node or another, and waits for its answer until `deadline`. No lock held.
** `command`: kind, and what it wants of node, incarnation, address and bits. SQLITE_OK: done, *reply says more. SQLITE_ERROR:
** refused; SQLITE_BUSY: not done in time, or that is unknown; both with a sentence in `text`.
*/
int node_ask(struct node *node, const struct raft_request *command, uint64_t deadline, struct raft_request *reply,
             char *text);
/*
** mutex held; in node_drain, before the work is taken out of the core. Takes every command a step further: the step function
** of its kind (the table in node_request.c) looks at the core, calls it if need be, and returns true with an answer in
** `reply` (status, text, index), or false with the reason in command->why.
*/
void node_step_commands(struct node *node);
void node_say_reply(struct raft_request *reply, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* mutex held. To the leader of now, be it this node. false: there is none, or no connection to it. */
bool node_send_command(struct node *node, struct raft_request *request);
/* mutex held. The answer of a node that does not lead: who does. */
void node_reply_not_leader(struct node *node, struct raft_request *reply);
/* Callback of the transport. */
void node_request_received(void *node, const struct raft_request *request);

/* ---- node_edit.c ---- */

/*
** At the start of a cluster of one: a change that a plain program made after a stop in order is appended to the log, as one
** transaction; *start tells of it then. SQLite error code, with a sentence.
*/
int node_adopt_edit(struct node *node, const struct vfs_found *found, struct raft_start *start, char *text);

/* ---- node_restore.c ---- */

/* A snapshot file that is being read. */
struct node_snapshot {
  struct node *node;
  char path[OS_PATH_MAX];
  struct snapshot_meta meta;
  struct snapshot_reader *reader; /* NULL: there is none */
  struct raft_configuration configuration;
  struct raft_term_start *terms; /* meta.n_terms */
  struct vfs_source source;
  uint32_t page;   /* the last one given out */
  bool is_damaged; /* found while it was read */
};

/* Opens the file of a snapshot and understands its head. VFS error, with a sentence that names file and offset. */
int node_snapshot_open(struct node *node, const char *path, struct node_snapshot *snapshot, char *text);
/* Reads all of a file. VFS_DAMAGED with a sentence. */
int node_snapshot_verify(struct node *node, const char *path, char *text);
void node_snapshot_close(struct node_snapshot *snapshot);
/*
** At start, with the log as found: which snapshot counts, and what it says about the log that the log itself does not
** know any more. Ends an installation that a crash interrupted. SQLite error code, with a sentence.
*/
int node_restore(struct node *node, struct raft_start *start, struct raft_configuration *configuration,
                 struct node_snapshot *snapshot, char *text);
/*
** On the apply thread; mutex held, given up meanwhile. The snapshot at install_index becomes the database, and the log
** begins anew behind it, unless the log has got there by itself. VFS error, with a sentence.
*/
int node_install(struct node *node, char *text);
/*
** Brings the file to the state at `commit_index`, if need be from the snapshot (NULL: none); connections may use it
** then. SQLite error code, with a sentence.
*/
int node_start_database(struct node *node, uint64_t commit_index, uint64_t log_first, struct node_snapshot *snapshot,
                        char *text);

#endif
