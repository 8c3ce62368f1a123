/* Which configuration is in force: the latest in the log, committed or not (paper section 6). */
#include <assert.h>
#include <string.h>

#include "core.h"

static const struct raft_configuration no_configuration;

const struct raft_configuration *raft_latest_configuration(const struct raft *raft, uint64_t *index) {
  const struct raft_membership *membership = &raft->membership;
  if (index) {
    *index = membership->n == 0 ? 0 : membership->stack[membership->n - 1].index;
  }
  return membership->n == 0 ? &no_configuration : &membership->stack[membership->n - 1].configuration;
}

#ifdef RAFT_MUTANT_CONFIGURATION_AT_COMMIT
/* How many there would be if those that are not committed did not count. */
static uint32_t n_in_force(const struct raft *raft) {
  uint32_t n = raft->membership.n;
  while (n > 1 && raft->membership.stack[n - 1].index > raft->commit_index) {
    n--;
  }
  return n;
}
#else
static uint32_t n_in_force(const struct raft *raft) {
  return raft->membership.n;
}
#endif

const struct raft_configuration *raft_members(const struct raft *raft) {
  const uint32_t n = n_in_force(raft);
  return n == 0 ? &no_configuration : &raft->membership.stack[n - 1].configuration;
}

uint64_t raft_members_index(const struct raft *raft) {
  const uint32_t n = n_in_force(raft);
  return n == 0 ? 0 : raft->membership.stack[n - 1].index;
}

const struct raft_configuration *raft_get_configuration_at(const struct raft *raft, uint64_t index, uint64_t *at) {
  const struct raft_membership *membership = &raft->membership;
  for (uint32_t i = membership->n; i-- > 0;) {
    if (membership->stack[i].index <= index) {
      *at = membership->stack[i].index;
      return &membership->stack[i].configuration;
    }
  }
  return NULL;
}

/* ---- Who is in it ---- */

int raft_member_place(const struct raft *raft, uint64_t id) {
  const struct raft_configuration *members = raft_members(raft);
  const struct raft_member *member = raft_configuration_find(members, id);
  return member ? (int)(member - members->members) : -1;
}

/* Is this node a voter, in either set? */
static bool is_own_voter(const struct raft *raft, const struct raft_configuration *configuration) {
  const struct raft_member *member = raft_configuration_find(configuration, raft->options.id);
  return member && raft_is_voter(member) && raft_same_incarnation(&member->incarnation, &raft->options.incarnation);
}

int raft_own_place(const struct raft *raft) {
  const int place = raft_member_place(raft, raft->options.id);
  if (place >= 0 &&
      !raft_same_incarnation(&raft_members(raft)->members[place].incarnation, &raft->options.incarnation)) {
    return -1;
  }
  return place;
}

bool raft_votes_itself(const struct raft *raft) {
  return is_own_voter(raft, raft_members(raft));
}

bool raft_leaves_voters(const struct raft *raft) {
  const struct raft_membership *membership = &raft->membership;
  return membership->n > 1 && membership->stack[membership->n - 1].index > raft->commit_index &&
         !raft_votes_itself(raft) && is_own_voter(raft, &membership->stack[membership->n - 2].configuration);
}

bool raft_is_alone(const struct raft *raft) {
  enum raft_vote votes[RAFT_MEMBERS_MAX] = {RAFT_VOTE_OPEN};
  const int place = raft_own_place(raft);
  if (place < 0) {
    return false;
  }
  votes[place] = RAFT_VOTE_GRANTED;
  return raft_quorum_count(raft_members(raft), votes) == RAFT_ELECTION_WON;
}

bool raft_is_joint(const struct raft_configuration *configuration) {
  bool any = false;
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    any = any || (configuration->members[i].roles & RAFT_VOTER_OLD);
  }
  return any;
}

/* ---- The stack ---- */

bool raft_membership_has_room(struct raft *raft) {
  struct raft_membership *membership = &raft->membership;
  if (membership->n == RAFT_CONFIGURATIONS_MAX && membership->stack[1].index <= raft->commit_index) {
    membership->n--;
    memmove(&membership->stack[0], &membership->stack[1], membership->n * sizeof membership->stack[0]);
  }
  return membership->n < RAFT_CONFIGURATIONS_MAX;
}

/* Does the member go on in this configuration? Another incarnation is another member. */
static bool goes_on(const struct raft_configuration *configuration, const struct raft_member *member) {
  const struct raft_member *there = raft_configuration_find(configuration, member->id);
  return there && raft_same_incarnation(&there->incarnation, &member->incarnation);
}

/* Those that go on, packed to the left; both configurations are in the order of ids, so nothing overtakes. */
static uint32_t pack(struct raft *raft, const struct raft_configuration *before, const struct raft_configuration *after,
                     struct raft_sending *gone, uint32_t *n_gone) {
  uint32_t n = 0;
  *n_gone = 0;
  for (uint32_t i = 0; i < RAFT_MEMBERS_MAX; i++) {
    if (i < before->n_members && goes_on(after, &before->members[i])) {
      if (n != i) {
        raft->progress[n] = raft->progress[i];
        raft->sending[n] = raft->sending[i];
      }
      n++;
      continue;
    }
    raft_end_transfer(raft, i);
    if (raft->sending[i].told_id != 0) {
      gone[(*n_gone)++] = raft->sending[i];
    }
  }
  return n;
}

/* The driver is still to be told of transfers that ended: any place will do of which it was told of none. */
static void keep_ends(struct raft *raft, const struct raft_sending *gone, uint32_t n_gone) {
  uint32_t place = 0;
  for (uint32_t i = 0; i < n_gone; i++) {
    while (raft->sending[place].told_id != 0) {
      place++;
      assert(place < RAFT_MEMBERS_MAX); /* each that is gone has left one */
    }
    raft->sending[place].told_id = gone[i].told_id;
    raft->sending[place].told_to = gone[i].told_to;
    raft->sending[place].told_incarnation = gone[i].told_incarnation;
  }
}

/* What is kept by place goes along with the members; of new ones nothing is known. */
static void move_places(struct raft *raft, const struct raft_configuration *before) {
  const struct raft_configuration *after = raft_members(raft);
  struct raft_sending gone[RAFT_MEMBERS_MAX];
  uint32_t n_gone, kept = pack(raft, before, after, gone, &n_gone);
  for (uint32_t i = kept; i < RAFT_MEMBERS_MAX; i++) {
    raft->sending[i] = (struct raft_sending){0};
  }
  for (uint32_t i = after->n_members; i-- > 0;) {
    if (!goes_on(before, &after->members[i])) {
      raft_progress_reset(&raft->progress[i], raft->now, raft_log_last(&raft->log) + 1);
      raft->sending[i] = (struct raft_sending){0};
    } else if (--kept != i) {
      raft->progress[i] = raft->progress[kept];
      raft->sending[i] = raft->sending[kept];
      raft->sending[kept] = (struct raft_sending){0};
    }
  }
  keep_ends(raft, gone, n_gone);
}

void raft_membership_push(struct raft *raft, uint64_t index, const struct raft_configuration *configuration) {
  struct raft_membership *membership = &raft->membership;
  assert(membership->n < RAFT_CONFIGURATIONS_MAX);
  assert(membership->n == 0 || index > membership->stack[membership->n - 1].index);
  const struct raft_configuration before = *raft_members(raft);
  membership->stack[membership->n].index = index;
  membership->stack[membership->n].configuration = *configuration;
  membership->n++;
  raft->configuration_changed = true;
  if (raft->role == RAFT_LEADER) {
    move_places(raft, &before);
  }
}

void raft_membership_reset(struct raft *raft, uint64_t index, const struct raft_configuration *configuration) {
  raft->membership.n = 0;
  raft_membership_push(raft, index, configuration);
}

void raft_membership_truncate(struct raft *raft, uint64_t from) {
  struct raft_membership *membership = &raft->membership;
  while (membership->n > 0 && membership->stack[membership->n - 1].index >= from) {
    membership->n--;
    raft->configuration_changed = true;
  }
}

#ifdef RAFT_MUTANT_CONFIGURATION_AT_COMMIT
void raft_membership_committed(struct raft *raft, uint64_t commit_index) {
  const struct raft_configuration before = *raft_members(raft);
  raft->commit_index = commit_index;
  raft->configuration_changed = true;
  if (raft->role == RAFT_LEADER) {
    move_places(raft, &before);
  }
}
#endif
