/*
** The Raft core: consensus as a state machine. Events go in, work comes out.
**
** It has no clock, no random source, no I/O, no threads and never blocks: whoever drives it (the
** node in ext/, the simulator and the golden scripts in tests/) passes the time and a seed in, and
** carries the work out: writes to disk, sends messages, applies what is committed. One thread at a
** time may be in a core; the driver holds its mutex.
**
** The core holds no payloads. It knows of each entry its term, size and type; the driver keeps the
** bytes (raft/io/store.h) and puts them into the messages that it sends. Configurations are the one
** payload that the core reads.
**
** The driver's loop:
**
**     raft_receive(raft, now, message);        or raft_tick, raft_propose, raft_persisted, …
**     while (raft_take_work(raft, &work)) { carry it out }
**
** Names and rules: "In Search of an Understandable Consensus Algorithm" (the paper) and Ongaro's
** dissertation (the thesis); pre-vote is thesis 9.6, check-quorum and leases 6.4, ReadIndex 6.4.
*/
#ifndef BALSA_RAFT_H
#define BALSA_RAFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RAFT_UUID_SIZE 16
#define RAFT_ADDRESS_MAX 272 /* host:port with its NUL; a DNS name has at most 253 bytes */
#define RAFT_MEMBERS_MAX 15  /* voters and learners together */
#define RAFT_TERM_MAX (UINT64_MAX - 1)
#define RAFT_INFLIGHT_MAX 256 /* AppendEntries under way to one follower */
#define RAFT_TERMS_MAX 65536  /* (term, first index) pairs kept of what is compacted; a snapshot holds no more */

/* A random 128-bit number: a cluster, a database, or an incarnation of a node. All zero: none. */
struct raft_uuid {
  uint8_t bytes[RAFT_UUID_SIZE];
};

/* Errors of the core. All are answers to the caller; none leaves the core changed. */
enum raft_error {
  RAFT_OK = 0,
  RAFT_NOT_LEADER = -1, /* another node leads, nobody does, or it is another term by now */
  RAFT_FULL = -2,       /* a named limit is reached: try again later */
  RAFT_NO_MEMORY = -3,
  RAFT_INVALID = -4, /* what came from outside makes no sense (message, configuration) */
  RAFT_FAILED = -5,  /* the core has stopped after a failed write (raft_persist_failed) */
  RAFT_PENDING = -6, /* another change, or a hand-over, is under way: try again soon */
  RAFT_BEHIND = -7,  /* the member lacks too much of the log: try again when it has caught up */
};

/* A short English sentence for an error, static. */
const char *raft_error_text(int error);

enum raft_entry_type {
  RAFT_ENTRY_NOOP = 1,          /* the start of a term (paper section 8) */
  RAFT_ENTRY_CONFIGURATION = 2, /* raft_configuration_encode */
  RAFT_ENTRY_DATA = 3,          /* a change set: vfs/change_set.h */
};
#define RAFT_ENTRY_MUST_UNDERSTAND 0x80 /* bit of the type: an unknown type with it stops apply */

/* What the core knows of an entry. */
struct raft_entry_meta {
  uint64_t term;
  uint32_t size; /* bytes of its payload */
  uint8_t type;
};

/*
** Membership (paper section 6, thesis chapter 4). In a settled configuration nobody has OLD. While the set of voters
** changes the configuration is joint: each member of the set before has OLD, each one of the set to come has NEW. So one
** that stays has both, one that is promoted NEW alone, one that is demoted OLD and LEARNER, one that leaves OLD alone;
** and what comes next follows from it: OLD is dropped, and who has no role then. Every decision needs a majority of each
** set. A configuration counts from its append on, committed or not.
*/
enum raft_member_role {
  RAFT_VOTER_NEW = 1,
  RAFT_VOTER_OLD = 2,
  RAFT_LEARNER = 4, /* gets all that voters get, and decides nothing */
  RAFT_JOINING = 8, /* with LEARNER: becomes a voter by itself as soon as it has caught up */
};

struct raft_member {
  uint64_t id;                  /* 1 … 2^63-1 */
  struct raft_uuid incarnation; /* votes and acknowledgements of any other do not count */
  uint8_t roles;                /* bits of enum raft_member_role */
  char address[RAFT_ADDRESS_MAX];
};

/* Settings that must be equal on all nodes; they travel with the configuration. */
struct raft_settings {
  uint32_t election_ms; /* leases depend on it */
  uint32_t heartbeat_ms;
  uint32_t page_size;   /* of the database: 512 … 65536 */
  uint32_t auto_vacuum; /* 0 none, 1 full, 2 incremental */
};

struct raft_configuration {
  struct raft_uuid cluster;
  struct raft_uuid database;
  struct raft_settings settings;
  uint32_t n_members;                           /* 0: this node is in no cluster */
  struct raft_member members[RAFT_MEMBERS_MAX]; /* by rising id */
};

/* Bytes that encode will write. */
size_t raft_configuration_size(const struct raft_configuration *configuration);
/* Format at the top of configuration.c. `bytes` has raft_configuration_size() room. */
void raft_configuration_encode(const struct raft_configuration *configuration, uint8_t *bytes);
/* RAFT_INVALID if it is not one: nothing in `bytes` is trusted. */
int raft_configuration_decode(const uint8_t *bytes, size_t size, struct raft_configuration *configuration);
/* The member with this id, or NULL. */
const struct raft_member *raft_configuration_find(const struct raft_configuration *configuration, uint64_t id);

enum raft_role { RAFT_FOLLOWER, RAFT_PRE_CANDIDATE, RAFT_CANDIDATE, RAFT_LEADER };

enum raft_message_type {
  RAFT_PRE_VOTE = 1,
  RAFT_PRE_VOTE_RESULT = 2,
  RAFT_VOTE = 3,
  RAFT_VOTE_RESULT = 4,
  RAFT_APPEND = 5,
  RAFT_APPEND_RESULT = 6,
  RAFT_HEARTBEAT = 7, /* never waits behind entries or for a disk */
  RAFT_HEARTBEAT_RESULT = 8,
  RAFT_READ_INDEX = 9, /* a follower asks the leader for a read index */
  RAFT_READ_INDEX_RESULT = 10,
  RAFT_SNAPSHOT = 11, /* a chunk of a snapshot file (paper section 7: InstallSnapshot) */
  RAFT_SNAPSHOT_RESULT = 12,
  RAFT_TIMEOUT_NOW = 13, /* the leader hands over: campaign at once (thesis section 3.10) */
};

/*
** A message. Fields that a type does not name are zero. `from` and `from_incarnation` of a received
** message are what the transport has authenticated by its Hello, not what the peer wrote.
**
** APPEND: the core says which entries go along (index+1 … index+n_entries); the driver adds the
** payloads when it encodes. In a received one `entries` points to n_entries metas, valid during
** raft_receive; the driver hands the payloads of those that the core accepts to its store.
**
** SNAPSHOT: made by raft_transfer_chunk; the bytes of the chunk are the driver's likewise. A chunk of 0 bytes is an
** offer, or a question: the answer names the offset wanted. Once all is installed, or was not needed, the answer is an
** APPEND_RESULT: what it says is then true of the log behind the snapshot as well.
*/
struct raft_message {
  uint8_t type;
  bool reject; /* results: refused */
  bool
      hand_over; /* VOTE: its leader told it to campaign (TIMEOUT_NOW); promises to that leader do not stand against it */
  uint64_t from, to;
  struct raft_uuid from_incarnation, to_incarnation;
  uint64_t term;        /* of the sender; PRE_VOTE: the term it would campaign in */
  uint64_t index;       /* APPEND: entry before the first; VOTE, PRE_VOTE: last entry of the log.
                          APPEND_RESULT: highest entry known to match and durable; on reject: the
                          refused `index`. READ_INDEX_RESULT: the index to wait for. SNAPSHOT and its
                          result: the last entry that it contains. TIMEOUT_NOW: the last entry of the log,
                          which the receiver has */
  uint64_t log_term;    /* term of the entry at `index` */
  uint64_t commit;      /* APPEND, HEARTBEAT: leader's commit index (HEARTBEAT: not beyond what the
                          receiver is known to hold) */
  uint64_t hint_index;  /* APPEND_RESULT on reject: where the leader should go on from */
  uint64_t hint_term;   /* term of the receiver's entry there, 0 if it has none */
  uint64_t round;       /* HEARTBEAT, APPEND and their results: the leader's round, echoed, from
                          which leases and read indexes count */
  uint64_t context;     /* READ_INDEX and its result: the asker's own number. SNAPSHOT and its result: the transfer */
  uint64_t offset;      /* SNAPSHOT: of its chunk in the file. SNAPSHOT_RESULT: from where the file is wanted; on
                          reject: so far it must go back */
  uint64_t size_bytes;  /* SNAPSHOT: of the whole file */
  uint32_t chunk_bytes; /* SNAPSHOT: of this chunk; may be 0 */
  uint32_t n_entries;
  const struct raft_entry_meta *entries; /* received APPEND only */
  /* Received APPEND only: n_entries pointers to the payloads, of the sizes in `entries`. Only those of
     type RAFT_ENTRY_CONFIGURATION are read, during raft_receive; the others may be NULL. NULL if there is
     none: a message with a configuration whose payload is missing or makes no sense is dropped. */
  const uint8_t *const *payloads;
};

struct raft_options {
  uint64_t id;
  struct raft_uuid incarnation;
  uint64_t seed;        /* all of the core's randomness */
  uint64_t election_ns; /* time-outs are drawn from [election, 2*election) */
  uint64_t heartbeat_ns;
  uint32_t drift_permille;      /* bound on how much faster one clock may run than another (lease) */
  uint32_t window_bytes;        /* unacknowledged payload bytes under way to one follower */
  uint64_t round_trip_short_ns; /* a member that answers within it is sent one APPEND at a time; 0: never */
  uint32_t batch_bytes;         /* most payload bytes in one APPEND; one entry may be larger */
};

struct raft_start_configuration {
  uint64_t index; /* of its entry, in the log or before it */
  const struct raft_configuration *configuration;
};

/* What was durable when this process started. */
struct raft_start {
  uint64_t now;
  uint64_t term;                         /* hard state */
  uint64_t voted_for;                    /* 0: nobody */
  uint64_t first_index;                  /* of the log; 1 unless compacted */
  uint64_t prev_term;                    /* term of the entry at first_index-1 */
  uint64_t last_index;                   /* first_index-1 if empty */
  const struct raft_entry_meta *entries; /* first_index … last_index; copied */
  uint64_t commit_index;                 /* a durable lower bound; 0 if none */
  /* By rising index: the one in force at commit_index (or at entry 1), from the log or the snapshot, and all those in
     the log behind it; earlier ones may come before. NULL and 0 if there is none. */
  const struct raft_start_configuration *configurations;
  size_t n_configurations;
  const struct raft_term_start *terms; /* of the committed prefix before first_index, without the rest; may be NULL */
  size_t n_terms;
  bool restarted; /* this incarnation ran before: it votes for nobody for one election time-out */
};

/* (term, first index of that term): the committed log in short, from which any fate is told. */
struct raft_term_start {
  uint64_t term;
  uint64_t index;
};

struct raft;

/* Makes a core. Nothing in options or start is kept by reference. RAFT_INVALID, RAFT_NO_MEMORY. */
int raft_open(const struct raft_options *options, const struct raft_start *start, struct raft **raft);
void raft_close(struct raft *raft);

/*
** ---- Events in. `now` never runs backwards. ----
**
** Read the clock last, when the message is at hand and the mutex held: a follower promises to elect
** nobody for an election time-out from `now` on, and the leader counts from its sending.
*/

/* Time has passed. Call it at least every heartbeat_ns / 2, or at raft_next_tick(). */
void raft_tick(struct raft *raft, uint64_t now);
/* When raft_tick has something to do next. */
uint64_t raft_next_tick(const struct raft *raft);

/* A message from a peer. Anything may be in it; what makes no sense is dropped. */
void raft_receive(struct raft *raft, uint64_t now, const struct raft_message *message);

/*
** The leader of `term` appends an entry; *index is its place. The driver must put the payload into
** its store under that index before it takes the work. RAFT_NOT_LEADER if this node does not lead
** in exactly this term; RAFT_PENDING while it hands leadership over; RAFT_FULL; RAFT_FAILED.
*/
int raft_propose(struct raft *raft, uint64_t now, uint64_t term, uint8_t type, uint32_t size, uint64_t *index);

/*
** Everything up to the persist work with this number is durable. Numbers are reported in rising
** order; reporting one reports all before it. An entry that was truncated after its work was given
** out does not count, even if an equal one was appended again (the ABA case).
*/
void raft_persisted(struct raft *raft, uint64_t now, uint64_t persist);

/*
** A write or sync failed: the log can't be trusted to grow. The core stops for good: leads no more,
** votes no more, acknowledges nothing; it says so in the work (role follower).
*/
void raft_persist_failed(struct raft *raft, uint64_t now);

enum raft_read_level {
  RAFT_READ_LEASE = 1,  /* the leader's lease if it holds, else as READ_INDEX */
  RAFT_READ_QUORUM = 2, /* always a round to a majority (ReadIndex) */
};

/*
** A linearizable read. The answer comes as work (reads[]) with the same context: the index that
** must be applied before the read. On a follower the leader is asked. Answers RAFT_NOT_LEADER in the
** work when no leader is known or leadership ended: the caller asks again until its own deadline.
** A lost message is not repeated: the caller asks again with a fresh context.
*/
int raft_read(struct raft *raft, uint64_t now, uint64_t context, enum raft_read_level level);

/*
** The election time-out and the heartbeat are others from now on, as the configuration says: a node that joins learns
** only by that what the cluster has. What was promised before stands for at least as long as the cluster's leases count
** on it. Values out of range change nothing.
*/
void raft_set_timing(struct raft *raft, uint64_t now, uint64_t election_ns, uint64_t heartbeat_ns);

/* false: this node cannot apply (a doomed transaction is open), so it does not campaign. */
void raft_set_electable(struct raft *raft, uint64_t now, bool electable);

/*
** Cluster formation (see forming.h for when): a fresh core (no configuration, empty log) gets entry 1. The driver stores its
** payload (the encoded configuration) under index 1 and, for a database that exists already, the
** entries 2 … of its first state, all of term 1, by raft_bootstrap_entry, before it takes the work.
** Leaves current_term = 1. A cluster of one then leads at once. RAFT_INVALID if it is not fresh.
*/
int raft_bootstrap(struct raft *raft, uint64_t now, const struct raft_configuration *configuration);
/* One more entry of term 1 behind it. Only between raft_bootstrap and the first raft_take_work. */
int raft_bootstrap_entry(struct raft *raft, uint8_t type, uint32_t size, uint64_t *index);

/*
** ---- Members and leadership ----
**
** Entries that the core makes of this come in the work (configuration_index); the driver stores what they hold. What the
** core does by itself, as leader, as soon as nothing stands against it: it appends the settled configuration once the
** joint one has committed, whoever began that; it promotes JOINING learners that have caught up; and if it is no voter
** any more it hands over and steps down.
*/

enum raft_change_type {
  RAFT_CHANGE_ADD = 1, /* as a learner; `joining`: with RAFT_JOINING. The id must be no member's */
  RAFT_CHANGE_PROMOTE, /* learner to voter. RAFT_BEHIND until it has caught up */
  RAFT_CHANGE_DEMOTE,  /* voter to learner, which it stays */
  RAFT_CHANGE_REMOVE,  /* any member */
  RAFT_CHANGE_ADDRESS, /* of a member, of this incarnation */
};

struct raft_change {
  enum raft_change_type type;
  uint64_t id;
  struct raft_uuid incarnation; /* ADD, ADDRESS */
  bool joining;                 /* ADD */
  char address[RAFT_ADDRESS_MAX];
};

/*
** The leader changes the members: all of `changes` in one step, each of another id. If that changes the set of voters
** the entry is a joint configuration, and the settled one follows by itself; otherwise it is a settled one. *index: of
** the entry. A member that comes back as another incarnation is removed first, then added in a second change.
**
** Nothing is changed if it answers RAFT_NOT_LEADER; RAFT_PENDING: another change is under way, or a hand-over, or
** nothing of this term has committed yet; RAFT_BEHIND; RAFT_INVALID: no such member, no voter would be left, more than
** RAFT_MEMBERS_MAX, id or address taken; RAFT_NO_MEMORY; RAFT_FAILED.
*/
int raft_change_members(struct raft *raft, uint64_t now, const struct raft_change *changes, size_t n, uint64_t *index);

/*
** The leader hands over to the voter `to`; 0: to the one that has most of the log. From now on proposals are refused with
** RAFT_PENDING. When `to` has all of the log, and all is committed, it is told to campaign at once, and the others vote
** for it whatever they have promised. That ends with another leader (work: role_changed), or is given up after an
** election time-out: raft_work.hand_over_to becomes 0 and proposals go on.
**
** RAFT_NOT_LEADER; RAFT_INVALID: no such voter, or itself, or there is no other; RAFT_PENDING: one is under way, or `to`
** (0: everybody) was not heard of late; RAFT_BEHIND: `to` lacks too much; RAFT_FAILED.
*/
int raft_hand_over(struct raft *raft, uint64_t now, uint64_t to);

/*
** ---- Log compaction and snapshots ----
**
** Compaction. When a snapshot of index s is durable, and the database file checkpointed, the driver forgets what is
** before: raft_compact here, raft_store_compact on disk, in any order.
**
** Leader. A follower that needs what is compacted gets a transfer, told in the work (transfers[]):
**   BEGIN      open the newest snapshot and send an offer: raft_transfer_chunk at offset 0 with 0 bytes
**   CONTINUE   send the chunk at `offset`, or if that is the end of the file, 0 bytes there
**   END        close it: the follower has it, does not need it, is gone, or this node does not lead any more
** Answers that are overdue make CONTINUE come again: the driver needs no clock. One file is sent in one transfer.
**
** Follower. A parcel with `chunk` set says that the RAFT_SNAPSHOT just received is to be taken: write the chunk if it is
** the one at the offset reached (another file is begun anew when (index, term, size_bytes) differ), then
** raft_snapshot_answer with the offset reached. When the last chunk is there: verify, make the snapshot durable,
** install it as the database, then raft_install. Meanwhile chunks and questions go on being answered.
*/

/*
** Forgets the entries <= through. RAFT_INVALID if they are not all committed and durable. Nothing changes if they are
** forgotten already. The term at `through`, the configuration in force and the fates of all remain known.
*/
int raft_compact(struct raft *raft, uint64_t now, uint64_t through);

/* What raft_transfer_chunk sends. */
struct raft_chunk {
  uint64_t index, term; /* of the last entry in the snapshot */
  uint64_t offset, size_bytes;
  uint32_t bytes;
};

/*
** Fills the message for a chunk in transfer `id`; the driver adds the bytes and sends it at once. RAFT_NOT_LEADER: the
** transfer is over. RAFT_INVALID: another file than the transfer began with, or one that the log does not follow on.
*/
int raft_transfer_chunk(struct raft *raft, uint64_t now, uint64_t id, const struct raft_chunk *chunk,
                        struct raft_message *message);
/* The driver can't go on (no snapshot, an unreadable one): the transfer is over; another one is begun later. */
void raft_transfer_failed(struct raft *raft, uint64_t now, uint64_t id);

/*
** The follower's answer to a chunk: it has the snapshot at `index` up to `offset`. reject: the chunk did not follow on
** that, and what was sent behind it is lost. Goes to the leader of now; without one nothing is sent.
*/
void raft_snapshot_answer(struct raft *raft, uint64_t now, uint64_t index, uint64_t offset, bool reject);

/* A snapshot that is durable and installed as the database. */
struct raft_install {
  uint64_t index, term;                           /* the last entry that it contains */
  const struct raft_configuration *configuration; /* in force there */
  uint64_t configuration_index;
  const struct raft_term_start *terms; /* of the committed log through `index`; the last one is of `term` */
  size_t n_terms;
};

/*
** All that is in the snapshot is committed. If the log holds its last entry it stays as it is; otherwise it begins
** anew behind it, empty (work: reset_index). The leader is told when that is durable. RAFT_OK without any change if
** that much was committed already; RAFT_INVALID if it contradicts what is committed, or makes no sense; RAFT_NO_MEMORY;
** RAFT_FAILED.
*/
int raft_install(struct raft *raft, uint64_t now, const struct raft_install *install);

/* ---- Work out ---- */

struct raft_outgoing {
  struct raft_message message; /* APPEND: without payloads, entries = NULL */
  uint64_t after;              /* send only when this persist number is durable; 0: at once. A message that has
                     to wait is dropped, not sent, if the write fails */
};

struct raft_read_answer {
  uint64_t context;
  uint64_t index; /* read when this is applied */
  int error;      /* RAFT_OK or RAFT_NOT_LEADER */
};

enum raft_transfer_event { RAFT_TRANSFER_BEGIN = 1, RAFT_TRANSFER_CONTINUE, RAFT_TRANSFER_END };

/* Of a snapshot to a follower; see "Log compaction and snapshots". */
struct raft_transfer {
  enum raft_transfer_event event;
  uint64_t id; /* of the transfer, never used again */
  uint64_t to;
  struct raft_uuid to_incarnation;
  uint64_t index;  /* CONTINUE: the snapshot */
  uint64_t offset; /* CONTINUE: what is before has arrived */
  bool again;      /* CONTINUE: what was sent behind `offset` has not, as far as is known: go back */
};

/*
** One parcel of work. Carry it out in the order of its fields. Pointers are valid until the next
** call into the core.
**
** Persisting: if `persist` is not 0 the driver makes durable, in this order: the log's new beginning, empty, behind
** (reset_index, reset_term) (if reset_index is not 0); removal of all entries >= truncate_from (if not 0); the entries append_first … append_last (if append_first is not 0)
** whose payloads came with the event just handled; and, if hard_state is set, (term, voted_for).
** Hard state must not become durable before the entries of earlier numbers do; it may reach the
** disk by another file. Then it reports raft_persisted(persist). It may batch.
*/
struct raft_work {
  uint64_t persist; /* number of this write, rising by one; 0: nothing to write */
  uint64_t reset_index, reset_term;
  uint64_t truncate_from;
  uint64_t append_first, append_last;
  /* raft_receive of an APPEND: entries of the message from here on were accepted: append_first */
  bool noop; /* append_last is the leader's no-op of its new term, with no payload */
  /* Not 0: the core made the entry at this index, in append_first … append_last, by itself: its payload is
     raft_configuration_encode of raft_get_configuration(), which this is the index of */
  uint64_t configuration_index;
  bool hard_state;
  uint64_t term, voted_for; /* valid always */

  const struct raft_outgoing *messages;
  size_t n_messages;

  bool role_changed; /* role, leader or term differ from the last parcel. While `role` was LEADER and
                        a parcel says another role or another term, that leadership is over */
  enum raft_role role;
  uint64_t leader;       /* 0: unknown */
  uint64_t hand_over_to; /* valid always; leader: proposals are refused while it is not 0 */

  uint64_t commit_index; /* valid always */
  const struct raft_read_answer *reads;
  size_t n_reads;
  bool configuration_changed; /* raft_get_configuration() has a new value (append, truncation or installation) */

  const struct raft_transfer *transfers; /* leader; END also when it has ceased to lead */
  size_t n_transfers;
  bool chunk; /* raft_receive of a RAFT_SNAPSHOT: its chunk is to be taken, and answered */
};

/* false: nothing to do. Call until false after every event. */
bool raft_take_work(struct raft *raft, struct raft_work *work);

/* ---- Looking in ---- */

enum raft_fate { RAFT_FATE_PENDING, RAFT_FATE_COMMITTED, RAFT_FATE_LOST };

/*
** What became of the entry proposed as (term, index): committed once commit_index >= index and the
** entry there is of its term; lost only once an entry of another term is committed at its index, or one of a later term
** before it: terms never fall along a log.
** An answer other than pending is true for ever, on every node, after any number of crashes.
*/
enum raft_fate raft_fate(const struct raft *raft, uint64_t term, uint64_t index);

struct raft_status {
  enum raft_role role;
  uint64_t term, voted_for, leader;
  uint64_t first_index, last_index, durable_index, commit_index;
  uint64_t term_index;          /* leader: index of its no-op; it may be read and written when committed */
  uint64_t lease_until;         /* leader: 0 if none */
  uint64_t configuration_index; /* of the one in force; 0: there is none */
  bool configuration_committed; /* as far as is known here */
  bool is_joint;
  uint64_t hand_over_to; /* leader; 0: none is under way */
  bool failed;
};
void raft_get_status(const struct raft *raft, struct raft_status *status);

struct raft_member_status {
  uint64_t id;
  uint8_t roles;
  bool caught_up; /* what it lacks it gets within an election time-out, and it was heard of late */
  uint64_t match_index, next_index;
  uint64_t last_contact; /* time of its last message; 0 never */
  uint64_t
      transfer_index; /* of the snapshot that is being sent to it; 0 none. What follows it should stay in the log */
  uint64_t transfer_offset; /* how much of it has arrived, bytes */
};
/* Leader: progress of each member, in the order of the configuration. Returns how many. */
size_t raft_get_members(const struct raft *raft, struct raft_member_status *members, size_t n_max);

/*
** The configuration in force: the latest in the log, committed or not (paper section 6). Never NULL;
** n_members is 0 while there is none.
*/
const struct raft_configuration *raft_get_configuration(const struct raft *raft, uint64_t *index);

/*
** The configuration that was in force at `index`, for a snapshot: the latest whose entry is at or before it; *at is that
** entry's index. Those from the one in force at the commit index on are known, and some before. NULL: not known any more.
*/
const struct raft_configuration *raft_get_configuration_at(const struct raft *raft, uint64_t index, uint64_t *at);

/* Term of the entry at `index`; 0 if the log does not reach there or it is compacted away. */
uint64_t raft_term_at(const struct raft *raft, uint64_t index);

/* The committed log's (term, first index) pairs, for state files and snapshots. */
size_t raft_get_terms(const struct raft *raft, const struct raft_term_start **terms);

#endif
