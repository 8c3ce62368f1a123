/*
** Forming a cluster from a list of peers that was given to each of them alike. Part of the pure
** core: facts about peers go in (from their Hello), the state of formation comes out.
**
** Every listed node must have been heard once, be fresh, and give the same list. The node that
** holds a non-empty database (at most one may) then writes entry 1 with the cluster id and all
** incarnations; if none holds one, the lowest id does. It alone can win the first election, since
** nobody else has an entry or a configuration. A node that was in a cluster already, two
** databases or different lists are refused, naming both nodes.
*/
#ifndef BALSA_RAFT_FORMING_H
#define BALSA_RAFT_FORMING_H

#include "raft.h"

#define RAFT_FORMING_TEXT_MAX 640

/* What a node says of itself in its Hello. */
struct raft_peer_facts {
  uint64_t id;
  struct raft_uuid incarnation;
  struct raft_uuid cluster;        /* none: it is fresh */
  uint64_t peers_hash;             /* raft_forming_hash of the list it was given; 0: none given */
  bool has_database;               /* it holds a non-empty database */
  uint32_t page_size, auto_vacuum; /* of that database, or what its options ask for */
};

struct raft_peer {
  uint64_t id;
  char address[RAFT_ADDRESS_MAX];
};

struct raft_forming;

/* One number for a list; equal for equal lists in any order. */
uint64_t raft_forming_hash(const struct raft_peer *peers, size_t n_peers);

/*
** `self` must be in the list; ids must differ and addresses too (RAFT_INVALID, with a sentence in
** `text`, of RAFT_FORMING_TEXT_MAX bytes).
*/
int raft_forming_open(const struct raft_peer_facts *self, const struct raft_peer *peers, size_t n_peers,
                      struct raft_forming **forming, char *text);
void raft_forming_close(struct raft_forming *forming);

/* A Hello came. Repeating one is harmless; a changed incarnation replaces what was heard. */
void raft_forming_hear(struct raft_forming *forming, const struct raft_peer_facts *facts);

enum raft_forming_state {
  RAFT_FORMING_WAITING, /* `text` says who is missing */
  RAFT_FORMING_WRITE, /* this node writes entry 1: `configuration` lacks only its cluster and database id and heartbeat/election */
  RAFT_FORMING_FOLLOW,  /* all were heard, another one (`text` names it) writes entry 1 */
  RAFT_FORMING_REFUSED, /* `text` names both nodes and the way out */
};

/*
** No state is final, and none is a reason to keep Raft messages from the core: another node may have
** formed the cluster from the same list before this one has heard of everybody. The core tells by
** this node's incarnation whether it is meant. Formation is over when the core has a configuration.
*/

enum raft_forming_state raft_forming_state(const struct raft_forming *forming, struct raft_configuration *configuration,
                                           char *text);

#endif
