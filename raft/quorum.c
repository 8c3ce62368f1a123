/* Majorities, of one set or of two. */
#include "quorum.h"

bool raft_is_voter(const struct raft_member *member) {
  return (member->roles & (RAFT_VOTER_NEW | RAFT_VOTER_OLD)) != 0;
}

/* The value that a majority of the members with this role has reached; UINT64_MAX if nobody has the role. */
static uint64_t set_value(const struct raft_configuration *configuration, const uint64_t *values, uint8_t role) {
  uint64_t sorted[RAFT_MEMBERS_MAX];
  uint32_t n = 0;
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    if (!(configuration->members[i].roles & role)) {
      continue;
    }
    uint32_t at = n++;
    for (; at > 0 && sorted[at - 1] < values[i]; at--) { /* falling order */
      sorted[at] = sorted[at - 1];
    }
    sorted[at] = values[i];
  }
  return n == 0 ? UINT64_MAX : sorted[n / 2];
}

uint64_t raft_quorum_value(const struct raft_configuration *configuration, const uint64_t values[RAFT_MEMBERS_MAX]) {
  const uint64_t in_new = set_value(configuration, values, RAFT_VOTER_NEW);
#ifdef RAFT_MUTANT_JOINT_ONE_MAJORITY
  return in_new;
#endif
  const uint64_t in_old = set_value(configuration, values, RAFT_VOTER_OLD);
  const uint64_t lower = in_new < in_old ? in_new : in_old;
  return lower == UINT64_MAX ? 0 : lower;
}

static enum raft_election set_count(const struct raft_configuration *configuration, const enum raft_vote *votes,
                                    uint8_t role) {
  uint32_t n = 0, granted = 0, refused = 0;
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    if (configuration->members[i].roles & role) {
      n++;
      granted += votes[i] == RAFT_VOTE_GRANTED;
      refused += votes[i] == RAFT_VOTE_REFUSED;
    }
  }
  const uint32_t majority = n / 2 + 1;
  if (n == 0 || granted >= majority) {
    return RAFT_ELECTION_WON;
  }
  return n - refused < majority ? RAFT_ELECTION_LOST : RAFT_ELECTION_OPEN;
}

enum raft_election raft_quorum_count(const struct raft_configuration *configuration,
                                     const enum raft_vote votes[RAFT_MEMBERS_MAX]) {
  bool any = false;
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    any = any || raft_is_voter(&configuration->members[i]);
  }
  if (!any) {
    return RAFT_ELECTION_LOST;
  }
  const enum raft_election in_new = set_count(configuration, votes, RAFT_VOTER_NEW);
  const enum raft_election in_old = set_count(configuration, votes, RAFT_VOTER_OLD);
  if (in_new == RAFT_ELECTION_LOST || in_old == RAFT_ELECTION_LOST) {
    return RAFT_ELECTION_LOST;
  }
  return in_new == RAFT_ELECTION_WON && in_old == RAFT_ELECTION_WON ? RAFT_ELECTION_WON : RAFT_ELECTION_OPEN;
}
