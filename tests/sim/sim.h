/*
** A whole cluster in one thread, from one seed: 1 to 7 real cores, each with the real store and
** the real hard state over a disk, a network and clocks that are simulated, in virtual time.
**
** One run: a random cluster forms; clients write, read and ask for fates while faults of the
** profile that the seed chose go on (faults.c); everything is checked at every step (checker.c);
** then a majority is left in peace and must make progress; then all heal and must agree (sim.c).
*/
#ifndef BALSA_SIM_H
#define BALSA_SIM_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../raft/io/hard_state.h"
#include "../../raft/io/store.h"
#include "events.h"
#include "late_disk.h"
#include "random.h"

#define SIM_NODES_MAX 7
#define SIM_MS UINT64_C(1000000)
#define SIM_US UINT64_C(1000)
/* A run that needs more goes in circles. Reordering makes a leader send its window again: that may take 5 million. */
#define SIM_EVENTS_MAX 16000000
#define SIM_LOG_MAX 20000 /* entries; the workload stops there */

/* ---- Counters: all of the first list must be hit in a long run ---- */

#define SIM_FAULTS(X)                                                                                                  \
  X(LOSS, "messages lost")                                                                                             \
  X(DUPLICATE, "messages duplicated")                                                                                  \
  X(LATE, "messages delayed by more than half an election time-out")                                                   \
  X(REORDER, "messages overtaken by later ones")                                                                       \
  X(ONE_WAY, "messages stopped by a one-way partition")                                                                \
  X(FULL_PARTITION, "messages stopped by a full partition")                                                            \
  X(PAUSE, "pauses")                                                                                                   \
  X(TIME_JUMP, "pauses longer than an election time-out")                                                              \
  X(CRASH, "crashes")                                                                                                  \
  X(LOST_WRITE, "unsynced writes lost")                                                                                \
  X(TORN_WRITE, "unsynced writes torn")                                                                                \
  X(CRASH_IN_FLUSH, "crashes in the middle of a flush")                                                                \
  X(CRASH_IN_RECOVERY, "crashes while the log was being opened")                                                       \
  X(SLOW_DISK, "writes to a slow disk")                                                                                \
  X(DISK_FULL, "writes refused by a full disk")                                                                        \
  X(SYNC_FAILURE, "failed syncs")                                                                                      \
  X(CLOCK_RATE, "nodes with a fast clock")                                                                             \
  X(CLOCK_OFFSET, "clocks set anew by a restart")                                                                      \
  X(WIPE, "folders lost")                                                                                              \
  X(NOT_ELECTABLE, "nodes told not to campaign")                                                                       \
  X(CHANGE, "changes of the members begun")                                                                            \
  X(HAND_OVER, "hand-overs begun")

#define SIM_FACTS(X)                                                                                                   \
  X(EVENT, "events")                                                                                                   \
  X(LEADER, "leaders elected")                                                                                         \
  X(TOLD, "campaigns at the leader's word")                                                                            \
  X(CONFIGURATION, "configurations")                                                                                   \
  X(JOINT, "joint configurations committed")                                                                           \
  X(CHANGE_REFUSED, "changes refused")                                                                                 \
  X(HAND_OVER_REFUSED, "hand-overs refused")                                                                           \
  X(REJOINED, "new incarnations that lead")                                                                            \
  X(ROLLED_BACK, "configurations rolled back")                                                                         \
  X(PROPOSED, "entries proposed")                                                                                      \
  X(COMMITTED, "entries acknowledged")                                                                                 \
  X(LOST, "entries told lost")                                                                                         \
  X(UNKNOWN, "proposers that died first")                                                                              \
  X(OVERTURNED, "truncations")                                                                                         \
  X(CUT, "torn last batches cut at start")                                                                             \
  X(FATE_ASKED, "fates asked")                                                                                         \
  X(LEASE_READ, "reads answered, lease level, leader")                                                                 \
  X(QUORUM_READ, "reads answered, quorum level, leader")                                                               \
  X(FOLLOWER_READ, "reads answered on followers")                                                                      \
  X(READ_REFUSED, "reads refused")                                                                                     \
  X(SNAPSHOT, "snapshots durable")                                                                                     \
  X(COMPACTED, "compactions")                                                                                          \
  X(CHUNK_MISPLACED, "chunks that came twice or too early")                                                            \
  X(INSTALLED, "snapshots installed")                                                                                  \
  X(LOG_KEPT, "installations that kept the log")                                                                       \
  X(LOG_RESET, "logs begun anew behind a snapshot")                                                                    \
  X(RESET_AT_START, "logs begun anew at start, after a crash in an installation")

enum sim_counter {
#define X(name, text) SIM_##name,
  SIM_FAULTS(X) SIM_FAULTS_END,
  SIM_FACTS_BEGIN = SIM_FAULTS_END - 1,
  SIM_FACTS(X) SIM_COUNTERS
#undef X
};

/* ---- The last events, for a report ---- */

#define SIM_TRACE_MAX 80

struct sim_trace {
  struct sim_trace_line {
    uint64_t at;
    char text[152];
  } lines[SIM_TRACE_MAX];
  uint64_t n;
  bool is_on; /* texts are made; a failed seed is run once more with it on */
  bool is_live;
};

/* ---- The network ---- */

/* A message under way, with what goes along; payloads are referenced. */
struct sim_packet {
  struct raft_message message;
  uint32_t from, to; /* slots */
  uint64_t order;    /* of sending, on this link */
  uint32_t n;
  struct raft_entry_meta *metas;
  const uint8_t **payloads; /* what the core may read of them */
  struct raft_entry *entries;
};

struct sim_network {
  uint64_t delay_ns, jitter_ns, late_ns;
  uint32_t loss_permille, duplicate_permille, late_permille;
  bool cut[SIM_NODES_MAX][SIM_NODES_MAX]; /* from, to */
  uint64_t extra_ns[SIM_NODES_MAX][SIM_NODES_MAX];
  bool in_order; /* but for those that come late or twice: as on connections that break now and then */
  uint64_t latest_at[SIM_NODES_MAX][SIM_NODES_MAX]; /* in_order: when the latest one arrives */
  uint64_t sent[SIM_NODES_MAX][SIM_NODES_MAX], arrived[SIM_NODES_MAX][SIM_NODES_MAX];
};

/* ---- Nodes ---- */

/* The clock of a node: local = offset + virtual * (1 + rate). */
struct sim_clock {
  uint64_t offset;
  uint32_t rate_ppm;
};

struct sim_entry_mark {
  uint64_t term, identity;
};

/* A log in short, as the simulation remembers it; entry i is marks[i-1]. */
struct sim_log {
  struct sim_entry_mark *marks;
  size_t n, capacity;
};

struct sim_waiting {
  struct sim_packet *packet;
  uint64_t after;
};

/* What comes in while a node is frozen. */
struct sim_inbox_item {
  enum { SIM_INBOX_PACKET, SIM_INBOX_WRITTEN, SIM_INBOX_PROPOSE, SIM_INBOX_READ } kind;
  struct sim_packet *packet;
  uint64_t number;
};

/* A snapshot: what it says, and its file. */
struct sim_snapshot {
  uint64_t index, term, state; /* index 0: none */
  uint64_t configuration_index;
  struct raft_configuration configuration; /* in force there */
  uint8_t *bytes;
  size_t size;
};

/* One that is being received; index 0: none. */
struct sim_part {
  uint64_t index, term;
  uint8_t *bytes;
  size_t size, n;
};

/* One that is being sent. */
struct sim_sending {
  uint64_t id, to;
  struct sim_snapshot file;
};

struct sim_node {
  uint32_t slot;
  uint64_t id;
  struct raft_uuid incarnation;
  uint32_t boot;
  bool is_new; /* it is not the incarnation that it was at first: that has lost its folder */
  bool is_up, is_paused, is_formed, has_failed, is_unelectable;
  struct sim_clock clock;
  uint64_t tick_at, tick_generation, last_now, paused_at;

  struct late_disk *disk;
  uint64_t write_ns, write_jitter_ns;
  bool is_slow, is_full, gives_up_when_full;
  char folder[16], state_path[32];

  struct raft *raft;
  struct raft_store *store;
  struct raft_hard_state_file *state_file;
  struct raft_hard_state queued_state, durable_state, issued_state;
  bool has_queued_state;

  uint64_t decided_by;                  /* index of the configuration that the core's last commit needed */
  uint64_t persist_given, persist_done; /* core's numbers */
  bool is_writing;
  int write_rc;
  uint64_t write_persist, write_end; /* the flush under way: number, disk position */

  struct sim_waiting *waiting;
  size_t n_waiting, waiting_capacity;
  struct sim_inbox_item *inbox;
  size_t n_inbox, inbox_capacity;
  struct raft_entry *staged; /* proposed, not yet in the store */
  size_t n_staged, staged_capacity;
  uint64_t *pending; /* ids of operations whose clients wait here */
  size_t n_pending, pending_capacity;
  uint64_t sequence;

  struct sim_log log, issued, durable; /* in memory, in the flush under way, surely on disk */
  uint64_t log_changed, issued_changed;
  uint64_t commit_index, durable_commit;
  uint64_t state; /* of the state machine, at commit_index */
  enum raft_role role;
  uint64_t term, leader;

  struct sim_snapshot snapshot, writing; /* the durable one; the one that is being written */
  uint64_t writing_end;                  /* disk position */
  uint32_t snapshot_every;               /* entries; 0: never */
  bool is_installing;                    /* `writing` was received */
  struct sim_part part;
  struct sim_sending *sending;
  size_t n_sending, sending_capacity;
};

/* ---- What is checked ---- */

struct sim_committed {
  uint64_t term, identity;
  uint64_t by_term; /* of the node that was the first to call it committed */
  uint64_t state;   /* after it */
};

struct sim_configuration { /* that was in any log */
  uint64_t index, term;
  struct raft_configuration value;
};

struct sim_checker {
  struct sim_committed *committed; /* entry i is committed[i-1] */
  size_t n_committed, committed_capacity;
  struct sim_seen { /* every entry that was in any log: key (index, term) */
    uint64_t index, term, identity, prev_term;
  } * seen;
  size_t n_seen, seen_capacity;
  struct sim_leader { /* by term */
    uint64_t term;
    uint32_t slot, boot;
  } * leaders;
  size_t n_leaders, leaders_capacity;
  struct sim_vote { /* promises that left a node */
    uint64_t term, candidate;
    uint32_t slot;
    struct raft_uuid incarnation;
  } * votes;
  size_t n_votes, votes_capacity;
  struct sim_configuration **configurations;
  size_t n_configurations, configurations_capacity;
};

/* ---- Clients ---- */

struct sim_operation { /* id: its place + 1 */
  uint32_t slot, boot;
  uint64_t term, index;
  enum { SIM_OP_QUEUED, SIM_OP_REFUSED, SIM_OP_PENDING, SIM_OP_COMMITTED, SIM_OP_LOST, SIM_OP_UNKNOWN } state;
  enum raft_fate told; /* to anyone, anywhere */
};

struct sim_read { /* context: its place + 1 */
  uint32_t slot, boot;
  uint64_t bound; /* highest index committed anywhere when it began */
  enum raft_read_level level;
  bool is_queued, is_done;
};

struct sim_workload {
  struct sim_operation *operations;
  size_t n_operations, operations_capacity;
  struct sim_read *reads;
  size_t n_reads, reads_capacity;
  bool is_stopped;
  bool is_quiet; /* a play wants no proposals */
};

/* ---- Profiles and faults ---- */

enum sim_play {
  SIM_PLAY_NONE,
  SIM_PLAY_NEW_LEADER,    /* each new leader is struck soon: paper figure 8 */
  SIM_PLAY_STALE_LEASE,   /* answers come late, then the leader is cut off */
  SIM_PLAY_CUT_LEADER,    /* the leader is cut off and asked for reads all the while */
  SIM_PLAY_RESTART,       /* voters restart inside a lease while another one campaigns */
  SIM_PLAY_WIPE,          /* one of the majority that knows an entry loses its folder */
  SIM_PLAY_VOTER_CRASH,   /* voters die between their vote and its write */
  SIM_PLAY_STALE_PREVOTE, /* a starved node collects old pre-votes */
  SIM_PLAY_HAND_OVER,     /* a leader hands over, is cut off, and asked for reads all the while */
  SIM_PLAY_RIVALS         /* two leaders change the members before either has committed anything: Ongaro 2015 */
};

struct sim_profile {
  const char *name;
  enum sim_play play;
  uint32_t nodes_min, nodes_max;                             /* members at first */
  uint32_t spares;                                           /* as many more nodes at most, which are none */
  uint32_t loss_permille, duplicate_permille, late_permille; /* highest; drawn below */
  uint32_t fault_every_percent; /* mean time between faults at large, percent of an election time-out; 0: none */
  /* Weights of faults at large. */
  uint8_t partition, one_way, isolate_leader, heal, pause, crash, crash_all, slow_disk, full_disk, sync_failure, wipe,
      unelectable, change, hand_over;
  uint32_t client_every_us;    /* mean time between client steps */
  uint8_t propose, read, fate; /* weights */
  bool small_batches;          /* one entry per APPEND */
  bool slow_disks;             /* from the start */
};

struct sim_faults {
  bool is_stopped;
  uint32_t step;
  uint64_t until;
  uint32_t leader, helper, victim; /* of the play under way */
  uint64_t seen_leaders;
};

struct sim {
  uint64_t seed;
  struct sim_random random;
  uint64_t now;
  struct sim_events events;
  struct sim_trace trace;
  const struct sim_profile *profile;
  uint32_t n_nodes;
  struct sim_node nodes[SIM_NODES_MAX];
  struct sim_network network;
  struct sim_checker checker;
  struct sim_workload workload;
  struct sim_faults faults;
  struct raft_configuration configuration; /* the first one */
  struct {
    uint32_t wanted; /* voters that the administrator would like to have */
  } members;
  uint32_t n_first; /* operations of the first state, which forms the log with the configuration */
  uint64_t election_ns, heartbeat_ns;
  uint32_t drift_permille, window_bytes, batch_bytes, segment_bytes, cache_bytes;
  uint64_t round_trip_short_ns; /* members that answer within it get one APPEND at a time */
  bool takes_snapshots;
  uint32_t uncommitted_max; /* clients wait when a leader has more of that */
  uint64_t counters[SIM_COUNTERS];
  bool has_failed;
  char failure[400];
};

/* ---- sim.c ---- */

/* The first failure counts. The run ends after the event under way. */
void sim_fail(struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));
void sim_schedule(struct sim *sim, uint64_t after_ns, enum sim_event_kind kind, uint32_t node, uint64_t number,
                  void *data);

/* ---- trace.c ---- */

void sim_trace_add(struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));
void sim_trace_print(const struct sim *sim);
/* Costs nothing when off. */
#define SIM_TRACE(sim, ...)                                                                                            \
  do {                                                                                                                 \
    if ((sim)->trace.is_on) sim_trace_add((sim), __VA_ARGS__);                                                         \
  } while (0)
const char *sim_message_text(const struct raft_message *message, char *text, size_t size);

/* ---- memory.c: of a test; without memory it aborts ---- */

void *sim_new(size_t size); /* zeroed */
/* Room for n items; what is beyond the old ones is not initialised. */
void *sim_grow(void *items, size_t *capacity, size_t n, size_t item_size);

/* ---- clock.c ---- */

uint64_t sim_clock_read(const struct sim_clock *clock, uint64_t now);
/* Virtual time from `now` until the clock shows `local`; 0 if it does. */
uint64_t sim_clock_until(const struct sim_clock *clock, uint64_t now, uint64_t local);

/* ---- network.c ---- */

struct sim_packet *sim_packet_new(const struct raft_message *message, uint32_t n_entries);
void sim_packet_free(struct sim_packet *packet);
/* Takes the packet; delivers it never, once or twice, sooner or later. */
void sim_network_send(struct sim *sim, struct sim_packet *packet);
void sim_network_note_arrival(struct sim *sim, const struct sim_packet *packet);
void sim_network_isolate(struct sim *sim, uint32_t slot, bool in, bool out);
void sim_network_heal(struct sim *sim);

/* ---- node.c: a node as ext/ drives it ---- */

void sim_node_init(struct sim *sim, uint32_t slot);
void sim_node_start(struct sim *sim, struct sim_node *node);
/* Power off; what was not durable is at the disk's mercy. It restarts after `down_ns`. */
void sim_node_crash(struct sim *sim, struct sim_node *node, uint64_t down_ns);
/* As crash, and the folder is lost: it comes back as another incarnation. */
void sim_node_wipe(struct sim *sim, struct sim_node *node, uint64_t down_ns);
void sim_node_pause(struct sim *sim, struct sim_node *node, uint64_t for_ns);
void sim_node_set_electable(struct sim *sim, struct sim_node *node, bool electable);
void sim_node_handle(struct sim *sim, const struct sim_event *event);
/* Entries `from` … of the workload, proposed at once. */
void sim_node_propose(struct sim *sim, struct sim_node *node, uint64_t id, uint32_t n);
void sim_node_read(struct sim *sim, struct sim_node *node, uint64_t context);
/* The administrator asks; what is refused is not asked again. A node that is paused is not asked. */
void sim_node_change(struct sim *sim, struct sim_node *node, const struct raft_change *changes, size_t n);
void sim_node_hand_over(struct sim *sim, struct sim_node *node, uint64_t to);
/* Reads the entry of its log; false if the store failed (reported). */
bool sim_node_entry(struct sim *sim, struct sim_node *node, uint64_t index, struct raft_entry *entry);
void sim_node_close(struct sim *sim, struct sim_node *node);
static inline bool sim_node_runs(const struct sim_node *node) {
  return node->is_up && !node->has_failed;
}

/* ---- checker.c ---- */

/* The payload of entry `id`: its bytes follow from the id. */
struct raft_payload *sim_payload_new(uint64_t id);
/* One number that says what an entry is; checks the payload's bytes. 0: damaged. */
uint64_t sim_identity(const struct raft_entry *entry);
bool sim_is_configuration(uint64_t identity);

void sim_check_append(struct sim *sim, const struct sim_node *node, uint64_t index, uint64_t term, uint64_t identity,
                      uint64_t prev_term);
void sim_check_role(struct sim *sim, const struct sim_node *node);
void sim_check_commit(struct sim *sim, struct sim_node *node, uint64_t commit_index);
void sim_check_sent(struct sim *sim, const struct sim_node *node, const struct raft_message *message);
/* A fate was told on `node` for operation `id`. */
void sim_check_fate(struct sim *sim, const struct sim_node *node, uint64_t id, enum raft_fate fate);
void sim_check_read(struct sim *sim, const struct sim_node *node, const struct raft_read_answer *answer);
void sim_check_recovered(struct sim *sim, struct sim_node *node, const struct raft_store_found *found,
                         const struct raft_hard_state *state);
/* The node's snapshot takes the place of its state. */
void sim_check_install(struct sim *sim, struct sim_node *node);
/* All nodes that can agree by now: the same log, every fate told and true. */
void sim_check_end(struct sim *sim);

/* ---- members.c ---- */

/* Are those that have it a majority of each set? In the order of the members. */
bool sim_is_quorum(const struct raft_configuration *configuration, const bool has[RAFT_MEMBERS_MAX]);
/* The last one committed at or before `index`; NULL: none. */
const struct sim_configuration *sim_committed_configuration(const struct sim *sim, uint64_t index);
/* By the last configuration that is committed. */
bool sim_is_member(const struct sim *sim, const struct sim_node *node);
/* No change is left to finish, nor does this leader hand over. */
bool sim_is_settled(struct sim *sim, const struct sim_node *leader);
/* A configuration came into the node's log, which ends just before it. */
void sim_check_configuration(struct sim *sim, const struct sim_node *node, const struct raft_entry *entry);
/* May it lose its folder for good, as far as the others are concerned? */
bool sim_may_wipe(struct sim *sim, struct sim_node *node);
/* Random nodes that can go on by themselves. */
void sim_choose_majority(struct sim *sim, bool chosen[SIM_NODES_MAX]);
/* The administrator asks this leader for something. */
void sim_members_change(struct sim *sim, struct sim_node *leader);
void sim_members_hand_over(struct sim *sim, struct sim_node *leader);
/* One step to so many voters and some learner that stays one, if anything is lacking. */
void sim_members_arrange(struct sim *sim, struct sim_node *leader, uint32_t voters);
uint32_t sim_members_voters(const struct raft_configuration *configuration);

/* ---- snapshots.c ---- */

/* The state machine: one number, from one entry to the next. */
uint64_t sim_state_after(uint64_t state, uint64_t index, uint64_t term, uint64_t identity);
/* At start. 0, or a negative errno. */
int sim_snapshot_load(struct sim *sim, struct sim_node *node);
/* Where the terms in it start; the caller's to free. */
size_t sim_snapshot_terms(const struct sim_snapshot *snapshot, struct raft_term_start **terms);
/* Something was applied: time for a snapshot? */
void sim_snapshot_consider(struct sim *sim, struct sim_node *node);
void sim_snapshot_transfer(struct sim *sim, struct sim_node *node, const struct raft_transfer *transfer);
/* A chunk that the core lets pass. */
void sim_snapshot_receive(struct sim *sim, struct sim_node *node, const struct sim_packet *packet);
void sim_snapshot_written(struct sim *sim, struct sim_node *node);
/* The process is gone; its disk is not. */
void sim_snapshot_crash(struct sim *sim, struct sim_node *node);
/* Everything is gone. */
void sim_snapshot_forget(struct sim_node *node);

/* ---- workload.c ---- */

void sim_workload_step(struct sim *sim);
uint64_t sim_workload_new_operation(struct sim *sim, struct sim_node *node);
/* Asks node's core for the fates of its own pending entries. */
void sim_workload_ask(struct sim *sim, struct sim_node *node);
/* Its clients get no answer any more. */
void sim_workload_node_died(struct sim *sim, struct sim_node *node);
void sim_workload_read(struct sim *sim, struct sim_node *node, enum raft_read_level level);

/* ---- profiles.c, faults.c ---- */

const struct sim_profile *sim_profile_of(uint64_t seed);
const struct sim_profile *sim_profile_named(const char *name);
void sim_faults_begin(struct sim *sim);
void sim_faults_at_large(struct sim *sim);
void sim_faults_play(struct sim *sim);
/* Ends all faults among `members` and whatever they have to do with others when `all` is set. */
void sim_faults_end(struct sim *sim, const bool members[SIM_NODES_MAX], bool all);
/* The node that leads in the highest term by its own word, or NULL. */
struct sim_node *sim_faults_leader(struct sim *sim);

#endif
