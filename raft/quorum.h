/*
** Majorities. While a change of membership is under way a decision needs a majority of the old set
** and one of the new set (paper section 6). Learners never count. Values and votes are arrays in the
** order of the configuration's members, RAFT_MEMBERS_MAX long.
*/
#ifndef BALSA_RAFT_QUORUM_H
#define BALSA_RAFT_QUORUM_H

#include "raft.h"

enum raft_vote { RAFT_VOTE_OPEN, RAFT_VOTE_GRANTED, RAFT_VOTE_REFUSED };
enum raft_election { RAFT_ELECTION_OPEN, RAFT_ELECTION_WON, RAFT_ELECTION_LOST };

/* Does this member vote, in either set? */
bool raft_is_voter(const struct raft_member *member);

/* The highest value that a majority of each set has reached; 0 if there are no voters. */
uint64_t raft_quorum_value(const struct raft_configuration *configuration, const uint64_t values[RAFT_MEMBERS_MAX]);

/* LOST once a majority can no longer be had in some set. */
enum raft_election raft_quorum_count(const struct raft_configuration *configuration,
                                     const enum raft_vote votes[RAFT_MEMBERS_MAX]);

#endif
