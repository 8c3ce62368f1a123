/*
** Elections (paper section 5.2) with pre-vote (thesis 9.6), so that a node that cannot win does not
** raise the term, and with stickiness (thesis 6.4): a node that heard a leader less than an election
** time-out ago does not help to replace it. Leases rest on the latter: it is a promise, in the
** receiver's own time, that is given with every answer to a leader, and it outlives a change of term.
*/
#include <assert.h>
#include <string.h>

#include "core.h"

/* splitmix64 */
static uint64_t next_random(struct raft *raft) {
  raft->random += 0x9e3779b97f4a7c15ull;
  uint64_t mixed = raft->random;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ull;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebull;
  return mixed ^ (mixed >> 31);
}

/*
** Would it make sense to be elected? One that is about to be no voter any more may be needed until that is committed: it
** may be the only one that has the entry, and then its log is ahead of those that need its vote (thesis 4.2.2). It does
** not count itself then.
*/
static bool may_campaign(const struct raft *raft) {
  return raft->electable && raft->current_term < RAFT_TERM_MAX && (raft_votes_itself(raft) || raft_leaves_voters(raft));
}

void raft_draw_election_deadline(struct raft *raft) {
  const uint64_t election = raft->options.election_ns;
  raft->campaign_waits = false;
  if (raft->role == RAFT_FOLLOWER && raft->leader == 0 && may_campaign(raft) && raft_is_alone(raft)) {
    raft->election_deadline = raft->now; /* there is nobody to wait for, but for a leader that is about to leave */
  } else {
    raft->election_deadline = raft_time_add(raft->now, election + next_random(raft) % election);
  }
}

void raft_become_follower(struct raft *raft, uint64_t term, uint64_t leader) {
  assert(term >= raft->current_term && term <= RAFT_TERM_MAX);
  const bool was_leader = raft->role == RAFT_LEADER;
  const bool changed = was_leader || term != raft->current_term || leader != raft->leader;
  if (term > raft->current_term) {
    raft->current_term = term;
    raft->voted_for = 0;
    raft->hard_state_dirty = true;
  }
  raft->role = RAFT_FOLLOWER;
  raft->leader = leader;
  if (changed) {
    raft_fail_reads(raft);
  }
  if (was_leader) {
    raft->replicate = false;
    raft->hand_over = (struct raft_hand_over){0};
    raft_end_transfers(raft);
    raft_draw_election_deadline(raft);
  }
}

/* To those that have not answered yet: messages get lost, and stickiness ends at different times. */
static void ask_for_votes(struct raft *raft) {
  const bool pre = raft->role == RAFT_PRE_CANDIDATE;
  const struct raft_configuration *members = raft_members(raft);
  for (uint32_t i = 0; i < members->n_members; i++) {
    const struct raft_member *member = &members->members[i];
    if (member->id == raft->options.id || !raft_is_voter(member) || raft->votes[i] != RAFT_VOTE_OPEN) {
      continue;
    }
    struct raft_message *message = raft_send(raft, pre ? RAFT_PRE_VOTE : RAFT_VOTE, member->id, &member->incarnation,
                                             0);
    message->term = raft->current_term + pre;
    message->index = raft_log_last(&raft->log);
    message->log_term = raft_log_last_term(&raft->log);
    message->hand_over = !pre && raft->was_told_to_campaign;
  }
  raft->resend_at = raft_time_add(raft->now, raft->options.heartbeat_ns);
}

static void start_election(struct raft *raft, bool told) {
  assert(raft->current_term < RAFT_TERM_MAX);
  raft->was_told_to_campaign = told;
  raft->current_term++;
  raft->voted_for = raft->options.id;
  raft->hard_state_dirty = true; /* the own vote counts once it is durable: raft_count_votes */
  raft->role = RAFT_CANDIDATE;
  raft->leader = 0;
  memset(raft->votes, 0, sizeof raft->votes);
  raft_draw_election_deadline(raft);
  ask_for_votes(raft);
}

/* Only voters' votes count, so it does no harm if it is none. */
static void vote_for_itself(struct raft *raft) {
  const int place = raft_own_place(raft);
  if (place >= 0) {
    raft->votes[place] = RAFT_VOTE_GRANTED;
  }
}

static void start_pre_vote(struct raft *raft) {
  raft_become_follower(raft, raft->current_term, 0);
  raft->role = RAFT_PRE_CANDIDATE;
  memset(raft->votes, 0, sizeof raft->votes);
  vote_for_itself(raft);
  raft_draw_election_deadline(raft);
  if (raft_quorum_count(raft_members(raft), raft->votes) == RAFT_ELECTION_WON) {
    start_election(raft, false);
  } else {
    ask_for_votes(raft);
  }
}

void raft_count_votes(struct raft *raft) {
  if (raft->role != RAFT_PRE_CANDIDATE && raft->role != RAFT_CANDIDATE) {
    return;
  }
  if (raft->role == RAFT_CANDIDATE) {
    if (!raft_hard_state_is_durable(raft)) {
      return; /* nobody was asked yet: whoever answers all the same is counted later */
    }
    vote_for_itself(raft);
  }
  switch (raft_quorum_count(raft_members(raft), raft->votes)) {
  case RAFT_ELECTION_OPEN: break;
  case RAFT_ELECTION_LOST: raft_become_follower(raft, raft->current_term, 0); break;
  case RAFT_ELECTION_WON:
    if (raft->role == RAFT_PRE_CANDIDATE) {
      start_election(raft, false);
    } else {
      raft_become_leader(raft);
    }
    break;
  }
}

/* The own disk is behind: an election could not be finished. */
static bool waits_for_disk(const struct raft *raft) {
  return !raft_hard_state_is_durable(raft) || raft_is_stuck(raft);
}

void raft_election_tick(struct raft *raft) {
  if (raft->now < raft->election_deadline) {
    const bool asks = raft->role == RAFT_PRE_CANDIDATE || raft->role == RAFT_CANDIDATE;
    if (asks && raft->now >= raft->resend_at && raft_hard_state_is_durable(raft)) {
      ask_for_votes(raft);
    }
    return;
  }
  if (raft->role == RAFT_CANDIDATE && !raft_hard_state_is_durable(raft)) {
    raft->campaign_waits = true; /* its vote is being written; the time to win starts with that */
    return;
  }
  if (!may_campaign(raft)) {
    raft_become_follower(raft, raft->current_term, 0);
    raft_draw_election_deadline(raft);
  } else if (waits_for_disk(raft)) {
    raft_become_follower(raft, raft->current_term, 0);
    raft->campaign_waits = true; /* raft_persisted comes back here */
  } else {
    start_pre_vote(raft);
  }
}

void raft_campaign_as_told(struct raft *raft) {
  if (!may_campaign(raft) || waits_for_disk(raft)) {
    return; /* the leader asks again, until it gives up */
  }
  raft_become_follower(raft, raft->current_term, 0);
  start_election(raft, true);
}

uint64_t raft_election_next_tick(const struct raft *raft) {
  if (raft->campaign_waits) {
    return RAFT_NEVER;
  }
  const bool asks = raft->role == RAFT_PRE_CANDIDATE || raft->role == RAFT_CANDIDATE;
  if (asks && raft_hard_state_is_durable(raft)) {
    return raft_min(raft->election_deadline, raft->resend_at);
  }
  return raft->election_deadline;
}

/* Paper section 5.4.1: is the log that ends so at least as up to date as ours? */
static bool is_up_to_date(const struct raft *raft, uint64_t last_index, uint64_t last_term) {
  const uint64_t own_term = raft_log_last_term(&raft->log);
  return last_term > own_term || (last_term == own_term && last_index >= raft_log_last(&raft->log));
}

static void grant_vote(struct raft *raft, uint64_t candidate) {
  if (raft->voted_for == candidate) {
    return;
  }
  raft_become_follower(raft, raft->current_term, 0); /* was it a pre-candidate: no longer */
  raft->voted_for = candidate;
  raft->hard_state_dirty = true;
  raft_draw_election_deadline(raft);
}

/* Is the sender a voter as far as is known here? Without a configuration everybody is. */
static bool is_known_voter(const struct raft *raft, const struct raft_message *message) {
  const struct raft_configuration *members = raft_members(raft);
  const struct raft_member *member = raft_configuration_find(members, message->from);
  return members->n_members == 0 ||
         (member && raft_is_voter(member) && raft_same_incarnation(&member->incarnation, &message->from_incarnation));
}

/*
** Whoever is asked answers, voter or not: it may be one by entries that it lacks, and the candidate, which has them,
** counts by its own configuration. For the same reason a candidate need not be known here. But then its log is not
** behind; otherwise it was removed and does not know yet, and its term is nobody's business.
*/
void raft_receive_vote_request(struct raft *raft, const struct raft_message *message) {
  const bool pre = message->type == RAFT_PRE_VOTE;
  const bool is_promised = raft->role == RAFT_LEADER || raft->now < raft->sticky_until;
  if (is_promised && (pre || !message->hand_over)) {
    return; /* not even its term is taken over: it would depose the leader */
  }
  if (!is_known_voter(raft, message) && !is_up_to_date(raft, message->index, message->log_term)) {
    return;
  }
#ifdef RAFT_MUTANT_RESEEDED_VOTES
  /* As if it were who it was before its folder was lost, once it has caught up. */
  if (memcmp(&message->to_incarnation, &raft->options.incarnation, sizeof raft->options.incarnation) != 0 &&
      raft->commit_index == 0) {
    return;
  }
#endif
  if (!pre && message->term > raft->current_term) {
    raft_become_follower(raft, message->term, 0);
  }
  bool grant = pre ? message->term > raft->current_term
                   : message->term == raft->current_term &&
                         (raft->voted_for == message->from || (raft->voted_for == 0 && raft->leader == 0));
  grant = grant && is_up_to_date(raft, message->index, message->log_term);
  if (grant && !pre) {
    grant_vote(raft, message->from);
  }
  struct raft_message *result = raft_send(raft, pre ? RAFT_PRE_VOTE_RESULT : RAFT_VOTE_RESULT, message->from,
                                          &message->from_incarnation, 0);
  result->reject = !grant;
  result->term = pre && grant ? message->term : raft->current_term;
}

void raft_receive_vote_result(struct raft *raft, const struct raft_message *message) {
  const bool pre = message->type == RAFT_PRE_VOTE_RESULT;
  const int place = raft_member_place(raft, message->from);
  bool answers = raft->role == RAFT_CANDIDATE && message->term == raft->current_term;
  if (pre) {
    /* The term tells whether it is this election's: granted for the next one, or refused in this one. */
    answers = raft->role == RAFT_PRE_CANDIDATE && message->term == raft->current_term + !message->reject;
#ifdef RAFT_MUTANT_PRE_VOTE_NO_TERM_CHECK
    answers = raft->role == RAFT_PRE_CANDIDATE || raft->role == RAFT_CANDIDATE;
#endif
  }
  if (!answers || place < 0 || raft->votes[place] == RAFT_VOTE_GRANTED) {
    return;
  }
  raft->votes[place] = message->reject ? RAFT_VOTE_REFUSED : RAFT_VOTE_GRANTED;
  raft_count_votes(raft);
}
