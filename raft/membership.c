/* Which configuration is in force: the latest in the log, committed or not (paper section 6). */
#include <assert.h>
#include <string.h>

#include "core.h"

static const struct raft_configuration no_configuration;

const struct raft_configuration *raft_members(const struct raft *raft) {
  const struct raft_membership *membership = &raft->membership;
  return membership->n == 0 ? &no_configuration : &membership->stack[membership->n - 1].configuration;
}

uint64_t raft_members_index(const struct raft *raft) {
  const struct raft_membership *membership = &raft->membership;
  return membership->n == 0 ? 0 : membership->stack[membership->n - 1].index;
}

int raft_member_place(const struct raft *raft, uint64_t id) {
  const struct raft_configuration *members = raft_members(raft);
  const struct raft_member *member = raft_configuration_find(members, id);
  return member ? (int)(member - members->members) : -1;
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
  const int place = raft_own_place(raft);
  return place >= 0 && raft_is_voter(&raft_members(raft)->members[place]);
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

bool raft_membership_has_room(struct raft *raft) {
  struct raft_membership *membership = &raft->membership;
  while (membership->n > 1 && membership->stack[1].index <= raft->commit_index) {
    memmove(&membership->stack[0], &membership->stack[1], (membership->n - 1) * sizeof membership->stack[0]);
    membership->n--;
  }
  return membership->n < RAFT_CONFIGURATIONS_MAX;
}

void raft_membership_push(struct raft *raft, uint64_t index, const struct raft_configuration *configuration) {
  struct raft_membership *membership = &raft->membership;
  assert(membership->n < RAFT_CONFIGURATIONS_MAX);
  assert(index > raft_members_index(raft) || membership->n == 0);
  membership->stack[membership->n].index = index;
  membership->stack[membership->n].configuration = *configuration;
  membership->n++;
  raft->configuration_changed = true;
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
