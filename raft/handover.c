/*
** Handing leadership over (thesis section 3.10). The leader takes no more proposals; when the one that is to lead has
** all of the log, and all is committed, it is told to campaign at once (TIMEOUT_NOW), without a pre-vote, and the others
** vote for it in spite of what they promised to this leader (`hand_over` in VOTE).
**
** So from the moment that TIMEOUT_NOW is sent another leader may be elected any time, and there is no lease. A message
** may be under way for long, and the hand-over be given up meanwhile. What ends the danger is this: TIMEOUT_NOW names the
** last entry, and is heeded only by one whose log still ends there, and so ends the log that it campaigns with. Once an
** entry behind that is committed a majority has more than this campaign can show, and it cannot win (paper section
** 5.4.1). Then the lease may hold again.
*/
#include <assert.h>

#include "core.h"

static bool is_own(const struct raft *raft, const struct raft_member *member) {
  return member->id == raft->options.id;
}

/* A voter of the set to come: one that is about to leave would have to hand over again. */
static bool may_lead(const struct raft *raft, const struct raft_member *member) {
  return (member->roles & RAFT_VOTER_NEW) && !is_own(raft, member);
}

/* The place of the one that has most, of those that were heard; -1: none. */
static int choose(const struct raft *raft, bool *any) {
  const struct raft_configuration *members = raft_members(raft);
  int best = -1;
  *any = false;
  for (uint32_t i = 0; i < members->n_members; i++) {
    if (!may_lead(raft, &members->members[i])) {
      continue;
    }
    *any = true;
    if (raft_is_in_contact(raft, i) && (best < 0 || raft->progress[i].match_index > raft->progress[best].match_index)) {
      best = (int)i;
    }
  }
  return best;
}

static int choose_this(const struct raft *raft, uint64_t to, int *place) {
  *place = raft_member_place(raft, to);
  if (*place < 0 || !may_lead(raft, &raft_members(raft)->members[*place])) {
    return RAFT_INVALID;
  }
  if (!raft_is_in_contact(raft, (uint32_t)*place)) {
    return RAFT_PENDING;
  }
  const struct raft_progress *progress = &raft->progress[*place];
  return progress->state == RAFT_TRANSFER || !progress->caught_up ? RAFT_BEHIND : RAFT_OK;
}

static void begin(struct raft *raft, int place) {
  raft->hand_over = (struct raft_hand_over){.to = raft_members(raft)->members[place].id,
                                            .until = raft_time_add(raft->now, raft->options.election_ns)};
  raft->replicate = true;
  raft_advance_hand_over(raft);
}

int raft_begin_hand_over(struct raft *raft, uint64_t to) {
  if (raft->role != RAFT_LEADER || raft->noop) {
    return RAFT_NOT_LEADER;
  }
  if (raft->hand_over.to != 0) {
    return RAFT_PENDING;
  }
  int place, error = RAFT_OK;
  if (to == 0) {
    bool any;
    place = choose(raft, &any);
    error = place >= 0 ? RAFT_OK : any ? RAFT_PENDING : RAFT_INVALID;
  } else {
    error = choose_this(raft, to, &place);
  }
  if (!error) {
    begin(raft, place);
  }
  return error;
}

void raft_hand_over_and_leave(struct raft *raft) {
  bool any;
  const int place = choose(raft, &any);
  if (place >= 0) {
    begin(raft, place);
  } else {
    raft_become_follower(raft, raft->current_term, 0);
  }
}

static void tell(struct raft *raft, const struct raft_member *member) {
  struct raft_message *message = raft_send(raft, RAFT_TIMEOUT_NOW, member->id, &member->incarnation, 0);
  message->index = raft_log_last(&raft->log);
  message->log_term = raft_log_last_term(&raft->log);
}

void raft_advance_hand_over(struct raft *raft) {
  const int place = raft->hand_over.to == 0 ? -1 : raft_member_place(raft, raft->hand_over.to);
  const uint64_t last = raft_log_last(&raft->log);
  if (raft->role != RAFT_LEADER || place < 0 || raft->hand_over.told || raft->commit_index < last ||
      raft->progress[place].match_index < last) {
    return;
  }
#ifndef RAFT_MUTANT_LEASE_KEPT_IN_HAND_OVER
  raft->lease_behind = last;
#endif
  raft->hand_over.told = true;
  tell(raft, &raft_members(raft)->members[place]);
}

void raft_repeat_hand_over(struct raft *raft) {
  const int place = raft->hand_over.told ? raft_member_place(raft, raft->hand_over.to) : -1;
  if (place >= 0) {
    tell(raft, &raft_members(raft)->members[place]);
  }
}

void raft_hand_over_tick(struct raft *raft) {
  if (raft->hand_over.to == 0 || raft->now < raft->hand_over.until) {
    return;
  }
  raft->hand_over = (struct raft_hand_over){0};
  if (!raft_votes_itself(raft) && raft_members_index(raft) <= raft->commit_index) {
    raft_become_follower(raft, raft->current_term, 0); /* nobody waits for a leader that is none of theirs */
  }
}

uint64_t raft_hand_over_next_tick(const struct raft *raft) {
  return raft->hand_over.to == 0 ? RAFT_NEVER : raft->hand_over.until;
}

bool raft_may_have_lease(const struct raft *raft) {
  return raft->lease_behind == 0 || raft->commit_index > raft->lease_behind;
}

/* ---- The one that is to lead ---- */

void raft_receive_timeout_now(struct raft *raft, const struct raft_message *message) {
  if (raft->role != RAFT_FOLLOWER || raft->leader != message->from) {
    return;
  }
#ifndef RAFT_MUTANT_LATE_HAND_OVER_HEEDED
  /* Nobody relies on promises that this breaks only if the log still ends where it did. */
  if (message->index != raft_log_last(&raft->log) || message->log_term != raft_log_last_term(&raft->log)) {
    return;
  }
#endif
  raft_campaign_as_told(raft);
}
