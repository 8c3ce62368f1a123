/*
** Inside the core: what its files share. Nothing outside raft/ includes this.
**
** Each event is handled to its end: it changes the state and queues messages, answers and writes;
** raft_take_work hands these out. Messages that may go at once and messages that wait for a write
** are told apart by `after`.
*/
#ifndef BALSA_RAFT_CORE_H
#define BALSA_RAFT_CORE_H

#include "log.h"
#include "progress.h"
#include "quorum.h"
#include "raft.h"

#define RAFT_NEVER UINT64_MAX               /* a time that does not come */
#define RAFT_NODE_MAX ((uint64_t)INT64_MAX) /* ids are 1 … 2^63-1 */
#define RAFT_ELECTION_NS_MAX (3600ull * 1000000000ull)
#define RAFT_DRIFT_PERMILLE_MAX 500
#define RAFT_APPEND_ENTRIES_MAX 1024    /* entries in one APPEND that this core sends */
#define RAFT_UNCOMMITTED_MAX (1u << 20) /* entries proposed and not committed; more is RAFT_FULL */
#define RAFT_MESSAGES_MAX 8192          /* messages queued between two raft_take_work; more are lost, as on a network */
#define RAFT_READS_MAX 1024             /* reads under way, and answers not yet taken; more is RAFT_FULL */
#define RAFT_CONFIGURATIONS_MAX 16      /* kept: from the committed one on, and some before it */
#define RAFT_ROUNDS_MAX 128             /* rounds whose time of sending is kept */
#define RAFT_TRANSFER_SILENCE 10     /* election time-outs after which a member that says nothing loses its transfer */
#define RAFT_TRANSFER_WAIT_DOUBLED 6 /* the wait for an overdue answer is doubled as often */

/*
** The last configurations of the log, by rising index: the one in force at the commit index, those behind it, and
** before it as many as there is room for, which snapshots may ask for.
**
** In truth all but the last one are committed: a leader appends one only when it knows that the one before it is.
*/
struct raft_membership {
  struct {
    uint64_t index;
    struct raft_configuration configuration;
  } stack[RAFT_CONFIGURATIONS_MAX];
  uint32_t n;
};

/* Leadership being handed over. */
struct raft_hand_over {
  uint64_t to;    /* 0: to nobody */
  uint64_t until; /* then it is given up */
  bool told;      /* TIMEOUT_NOW was sent; again with each heartbeat */
};

/* A linearizable read under way: at the leader, for itself or for a follower; or at a follower. */
struct raft_read {
  uint64_t context;
  uint64_t asker;               /* id of the follower that asked; 0: raft_read here */
  struct raft_uuid incarnation; /* of that follower */
  uint64_t round;               /* leader: confirmed once a majority answered this round; 0: not sent yet */
  uint64_t index;               /* leader: what must be applied, once the round is set */
  uint64_t since;
};

/* A snapshot under way to a member. */
struct raft_sending {
  uint64_t id; /* 0: none */
  uint64_t to;
  struct raft_uuid to_incarnation;
  uint64_t index, term, size_bytes; /* of the file; index 0: the driver has not begun */
  uint64_t offset;                  /* wanted; RAFT_OFFSET_UNKNOWN: no answer so far */
  bool news, again;                 /* the driver is to be told of `offset` */
  uint64_t waiting_since;
  uint32_t repeats;    /* of one question */
  uint64_t not_before; /* no other one is begun */

  uint64_t told_id, told_to; /* of which the driver was told; 0: of none */
  struct raft_uuid told_incarnation;
};
#define RAFT_OFFSET_UNKNOWN UINT64_MAX

/* Whose snapshot comes in. */
struct raft_receiving {
  uint64_t term, from, transfer; /* term 0: nobody's */
  struct raft_uuid from_incarnation;
};

struct raft {
  struct raft_options options;
  uint64_t random;
  uint64_t now;
  bool failed;
  bool electable;
  bool bootstrapping; /* between raft_bootstrap and the next raft_take_work */

  /* Hard state (paper figure 2), and how far its writing is. */
  uint64_t current_term, voted_for;
  bool hard_state_dirty;     /* differs from what was given out to be written */
  uint64_t hard_state_write; /* the number that makes it durable */

  enum raft_role role;
  uint64_t leader;
  struct raft_uuid leader_incarnation; /* it need not be in a configuration that is known here yet */
  struct raft_log log;
  uint64_t commit_index;
  struct raft_membership membership;

  /* Elections. */
  uint64_t election_deadline; /* not leader: campaign then */
  bool campaign_waits;        /* that time has come, but a write has to be done first */
  uint64_t sticky_until;      /* help nobody to replace the leader before: leases rest on it */
  uint64_t resend_at;         /* (pre-)candidate: ask those again that have not answered */
  bool was_told_to_campaign;  /* candidate: by the leader of the term before, which hands over */
  enum raft_vote
      votes[RAFT_MEMBERS_MAX]; /* by place: a new configuration comes from a leader, and ends every candidacy */

  /* Leading. Arrays are in the order of the configuration in force; raft_membership_push moves them along. */
  uint64_t term_index; /* its no-op */
  uint64_t heartbeat_at;
  bool replicate;         /* there may be something to send to the members */
  uint64_t settled_index; /* of the settled configuration that was last seen committed */
  struct raft_progress progress[RAFT_MEMBERS_MAX];
  uint64_t round; /* the latest; rises for ever */
  uint64_t round_sent[RAFT_ROUNDS_MAX];
  struct raft_sending sending[RAFT_MEMBERS_MAX];
  uint64_t transfers; /* begun so far */
  struct raft_hand_over hand_over;
  uint64_t lease_behind; /* no lease until an entry behind this one is committed; 0: nothing stands against it */

  struct raft_receiving receiving;

  /* Reads. */
  struct raft_read reads[RAFT_READS_MAX];
  uint32_t n_reads;
  uint64_t read_round; /* the round that reads wait for; 0: none is under way */

  /* Work gathered since the last raft_take_work. */
  bool handed_out;                    /* messages and answers were given out; gone with the next event */
  uint64_t writes_given, writes_done; /* persist numbers */
  uint64_t reset_index, truncate_from, append_first;
  bool noop;
  uint64_t configuration_appended; /* index; 0: none */
  struct raft_outgoing *messages;
  size_t n_messages, messages_capacity;
  struct raft_message lost; /* where a message goes for which there is no room */
  struct raft_read_answer answers[RAFT_READS_MAX];
  uint32_t n_answers;
  bool configuration_changed;
  bool chunk;
  struct raft_transfer transfer_events[3 * RAFT_MEMBERS_MAX];
  enum raft_role told_role;
  uint64_t told_leader, told_term, told_commit, told_hand_over;
};

static inline bool raft_uuid_is_none(const struct raft_uuid *uuid) {
  uint8_t any = 0;
  for (int i = 0; i < RAFT_UUID_SIZE; i++) {
    any |= uuid->bytes[i];
  }
  return any == 0;
}

/* Votes and acknowledgements count only from the incarnation that the configuration names. */
static inline bool raft_same_incarnation(const struct raft_uuid *a, const struct raft_uuid *b) {
#if defined(RAFT_MUTANT_WIPED_VOTER_VOTES) || defined(RAFT_MUTANT_RESEEDED_VOTES)
  (void)a;
  (void)b;
  return true;
#else
  uint8_t difference = 0;
  for (int i = 0; i < RAFT_UUID_SIZE; i++) {
    difference |= a->bytes[i] ^ b->bytes[i];
  }
  return difference == 0;
#endif
}

/* time + delay, at most RAFT_NEVER */
static inline uint64_t raft_time_add(uint64_t time, uint64_t delay) {
  return time > RAFT_NEVER - delay ? RAFT_NEVER : time + delay;
}

static inline uint64_t raft_min(uint64_t a, uint64_t b) {
  return a < b ? a : b;
}

static inline uint64_t raft_max(uint64_t a, uint64_t b) {
  return a > b ? a : b;
}

/* ---- configuration.c ---- */

/* RAFT_INVALID if members, roles, addresses or settings make no sense. */
int raft_configuration_check(const struct raft_configuration *configuration);

/* ---- membership.c ---- */

/* The one in force; n_members = 0 if there is none. */
const struct raft_configuration *raft_members(const struct raft *raft);
/* Its log index, 0 if there is none. */
uint64_t raft_members_index(const struct raft *raft);
/* Place of a member in it, or -1. */
int raft_member_place(const struct raft *raft, uint64_t id);
/* Place of this node with its own incarnation, or -1. */
int raft_own_place(const struct raft *raft);
/* Is this node, with its own incarnation, a voter? */
bool raft_votes_itself(const struct raft *raft);
/* Is this node a member, but not a voter, by a configuration that may not be committed, and was a voter by the one before? */
bool raft_leaves_voters(const struct raft *raft);
/* Is it a majority by itself? */
bool raft_is_alone(const struct raft *raft);
/* Do decisions need two majorities? */
bool raft_is_joint(const struct raft_configuration *configuration);
/* The one of the last entry, and where; `index` may be NULL. Only a mutant has another one in force. */
const struct raft_configuration *raft_latest_configuration(const struct raft *raft, uint64_t *index);
/* Is there room for one more configuration? Those before the last committed one make room. */
bool raft_membership_has_room(struct raft *raft);
/* The entry at `index` is this configuration. There is room. What a leader keeps by place goes along. */
void raft_membership_push(struct raft *raft, uint64_t index, const struct raft_configuration *configuration);
/* Entries ≥ from are gone. */
void raft_membership_truncate(struct raft *raft, uint64_t from);
#ifdef RAFT_MUTANT_CONFIGURATION_AT_COMMIT
/* Sets the commit index; what comes in force by that, does. */
void raft_membership_committed(struct raft *raft, uint64_t commit_index);
#endif
/* The log begins anew, with this one in force. */
void raft_membership_reset(struct raft *raft, uint64_t index, const struct raft_configuration *configuration);

/* ---- change.c ---- */

/* raft_change_members, once it is known that the core has not failed. */
int raft_change_by(struct raft *raft, const struct raft_change *changes, size_t n, uint64_t *index);
/* The leader, after anything that may make it possible: the next step that it does by itself. */
void raft_advance_membership(struct raft *raft);

/* ---- handover.c ---- */

/* raft_hand_over, once it is known that the core has not failed. */
int raft_begin_hand_over(struct raft *raft, uint64_t to);
/* The leader is no voter any more: hands over to whoever will do, or just steps down. */
void raft_hand_over_and_leave(struct raft *raft);
/* Something was acknowledged or committed: is the one to lead there? */
void raft_advance_hand_over(struct raft *raft);
/* Each heartbeat: TIMEOUT_NOW may have been lost. */
void raft_repeat_hand_over(struct raft *raft);
/* Gives up when it is time. */
void raft_hand_over_tick(struct raft *raft);
uint64_t raft_hand_over_next_tick(const struct raft *raft);
/* false: a campaign that the leader asked for may still win in spite of all promises. */
bool raft_may_have_lease(const struct raft *raft);
void raft_receive_timeout_now(struct raft *raft, const struct raft_message *message);

/* ---- raft.c ---- */

/* First in every event: what was given out is gone, time goes on. */
void raft_begin_event(struct raft *raft, uint64_t now);
/* Queues a message; `after` = 0 or the write that it waits for. The caller fills the rest; it goes with the current term. */
struct raft_message *raft_send(struct raft *raft, enum raft_message_type type, uint64_t to,
                               const struct raft_uuid *incarnation, uint64_t after);
/* The number that what changes now will be written under. */
uint64_t raft_next_write(const struct raft *raft);
bool raft_hard_state_is_durable(const struct raft *raft);
/* Is a write under way for longer than an election time-out? */
bool raft_is_stuck(const struct raft *raft);
/* Appends an entry of the current term to the log. RAFT_NO_MEMORY. */
int raft_append_own(struct raft *raft, uint8_t type, uint32_t size, uint64_t *index);

/* ---- election.c ---- */

/* Follower, in this term (≥ the current one), of this leader (0: unknown). Ends a leadership and what hangs on it. */
void raft_become_follower(struct raft *raft, uint64_t term, uint64_t leader);
/* Draws the next time to campaign. */
void raft_draw_election_deadline(struct raft *raft);
void raft_election_tick(struct raft *raft);
/* Campaigns at once, without a pre-vote, since the leader asks for it; not if it can't. */
void raft_campaign_as_told(struct raft *raft);
uint64_t raft_election_next_tick(const struct raft *raft);
/* Counts what is there: after a vote, or when the own one became durable. */
void raft_count_votes(struct raft *raft);
void raft_receive_vote_request(struct raft *raft, const struct raft_message *message);
void raft_receive_vote_result(struct raft *raft, const struct raft_message *message);

/* ---- replication.c ---- */

void raft_become_leader(struct raft *raft);
void raft_leader_tick(struct raft *raft);
uint64_t raft_leader_next_tick(const struct raft *raft);
/* A round of its own, sent as HEARTBEAT to all members. */
void raft_send_heartbeats(struct raft *raft);
/* Sends each member what it lacks and the window allows. */
void raft_replicate(struct raft *raft);
/* Leader: commits what a majority holds. */
void raft_advance_commit(struct raft *raft);
/* A member that is about to be forgotten gets what it lacks, once. */
void raft_send_last(struct raft *raft, uint32_t place);
/* A member that was forgotten is told that the entry which says so, the latest configuration, is committed. */
void raft_send_farewell(struct raft *raft, const struct raft_member *member);
/* Was it heard within an election time-out? */
bool raft_is_in_contact(const struct raft *raft, uint32_t place);
/* A member answered in this term. false: what it says cannot be. */
bool raft_hear_member(struct raft *raft, int place, uint64_t round);
/* The leader of this term spoke. false: there are two of them, which cannot be. */
bool raft_hear_leader(struct raft *raft, const struct raft_message *message);
/* Tells the leader that the log matches up to `index`, once that is durable. */
void raft_confirm(struct raft *raft, uint64_t leader, const struct raft_uuid *incarnation, uint64_t index,
                  uint64_t round);
/* The time of the latest contact with a majority. */
uint64_t raft_quorum_contact(const struct raft *raft);
void raft_receive_append(struct raft *raft, const struct raft_message *message);
void raft_receive_append_result(struct raft *raft, const struct raft_message *message);
void raft_receive_heartbeat(struct raft *raft, const struct raft_message *message);
void raft_receive_heartbeat_result(struct raft *raft, const struct raft_message *message);

/* ---- transfer.c ---- */

/* The member lacks what is compacted: begins a transfer, or has it probed until another one may begin. */
void raft_begin_transfer(struct raft *raft, uint32_t place);
/* A member under transfer has more than was known: is that enough? */
void raft_settle_transfer(struct raft *raft, uint32_t place);
/* It is there, but has not answered for long: have the driver ask again. */
void raft_repeat_transfer(struct raft *raft, uint32_t place);
/* The log begins later than before. */
void raft_review_transfers(struct raft *raft);
/* Gives up those to members that are gone. */
void raft_transfers_tick(struct raft *raft);
/* The member at this place is none any more. */
void raft_end_transfer(struct raft *raft, uint32_t place);
void raft_end_transfers(struct raft *raft);
/* Forgets what the last leadership knew, but not what the driver has to be told. */
void raft_reset_transfers(struct raft *raft);
/* What the driver has to be told, into transfer_events. */
size_t raft_take_transfers(struct raft *raft);
void raft_receive_snapshot_result(struct raft *raft, const struct raft_message *message);

/* ---- install.c ---- */

void raft_receive_snapshot(struct raft *raft, const struct raft_message *message);
/* raft_compact and raft_install, once it is known that the core has not failed. */
int raft_compact_log(struct raft *raft, uint64_t through);
int raft_install_snapshot(struct raft *raft, const struct raft_install *install);

/* ---- read.c ---- */

/* raft_read, once it is known that the core has not failed. */
int raft_begin_read(struct raft *raft, uint64_t context, enum raft_read_level level);
/* A member answered, or something committed: answer the reads that this confirms. */
void raft_advance_reads(struct raft *raft);
/* Leadership, or the leader, is gone: nothing that was asked can be answered. */
void raft_fail_reads(struct raft *raft);
/* Gives up what has waited for an election time-out. */
void raft_expire_reads(struct raft *raft);
uint64_t raft_reads_next_tick(const struct raft *raft);
/* Leader: until when no other leader can have been elected; 0 if not even now. */
uint64_t raft_lease_until(const struct raft *raft);
void raft_receive_read_index(struct raft *raft, const struct raft_message *message);
void raft_receive_read_index_result(struct raft *raft, const struct raft_message *message);

#endif
