/*
** Cluster formation from a list. What was heard of each peer is kept as it came; the state is worked
** out from that, so the order in which peers are heard does not matter.
*/
#include "forming.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

struct forming_peer {
  struct raft_peer peer;
  struct raft_peer_facts facts;
  bool heard;
  bool was_fresh; /* this incarnation was heard without a cluster: if it has one now, we saw it form */
};

struct raft_forming {
  uint64_t id;
  size_t self; /* place of this node in peers */
  size_t n_peers;
  struct forming_peer peers[RAFT_MEMBERS_MAX]; /* by rising id; the own facts are among them */
};

/* FNV-1a of one peer, mixed; the sum over all does not depend on their order. */
static uint64_t hash_peer(const struct raft_peer *peer) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (int i = 0; i < 8; i++) {
    hash = (hash ^ (uint8_t)(peer->id >> (8 * i))) * 0x100000001b3ull;
  }
  for (size_t i = 0; i < RAFT_ADDRESS_MAX && peer->address[i]; i++) {
    hash = (hash ^ (uint8_t)peer->address[i]) * 0x100000001b3ull;
  }
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9ull;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebull;
  return hash ^ (hash >> 31);
}

uint64_t raft_forming_hash(const struct raft_peer *peers, size_t n_peers) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n_peers; i++) {
    sum += hash_peer(&peers[i]);
  }
  return sum == 0 ? 1 : sum; /* 0 says that there is no list */
}

/* Adds to the text, as far as there is room. */
__attribute__((format(printf, 2, 3))) static void say(char *text, const char *format, ...) {
  const size_t length = strlen(text);
  va_list arguments;
  va_start(arguments, format);
  (void)vsnprintf(text + length, RAFT_FORMING_TEXT_MAX - length, format, arguments);
  va_end(arguments);
}

/* ---- Opening ---- */

static bool peer_makes_sense(const struct raft_peer *peer) {
  return peer->id > 0 && peer->id <= RAFT_NODE_MAX && peer->address[0] != 0 &&
         memchr(peer->address, 0, RAFT_ADDRESS_MAX) != NULL;
}

static bool list_makes_sense(const struct raft_peer *peers, size_t n_peers, char *text) {
  if (n_peers == 0 || n_peers > RAFT_MEMBERS_MAX) {
    say(text, "peers: the list names %zu nodes; a cluster has 1 to %d", n_peers, RAFT_MEMBERS_MAX);
    return false;
  }
  for (size_t i = 0; i < n_peers; i++) {
    if (!peer_makes_sense(&peers[i])) {
      say(text, "peers: entry %zu lacks a node id (1 to 2^63-1) or an address (host:port)", i + 1);
      return false;
    }
    for (size_t j = 0; j < i; j++) {
      if (peers[i].id == peers[j].id) {
        say(text, "peers: node %" PRIu64 " is listed twice: each node needs an id of its own", peers[i].id);
        return false;
      }
      if (strcmp(peers[i].address, peers[j].address) == 0) {
        say(text, "peers: nodes %" PRIu64 " and %" PRIu64 " have the same address %s", peers[j].id, peers[i].id,
            peers[i].address);
        return false;
      }
    }
  }
  return true;
}

static struct forming_peer *find(struct raft_forming *forming, uint64_t id) {
  for (size_t i = 0; i < forming->n_peers; i++) {
    if (forming->peers[i].peer.id == id) {
      return &forming->peers[i];
    }
  }
  return NULL;
}

static void add_peer(struct raft_forming *forming, const struct raft_peer *peer) {
  size_t at = forming->n_peers++;
  for (; at > 0 && forming->peers[at - 1].peer.id > peer->id; at--) {
    forming->peers[at] = forming->peers[at - 1];
  }
  forming->peers[at] = (struct forming_peer){.peer = *peer};
}

int raft_forming_open(const struct raft_peer_facts *self, const struct raft_peer *peers, size_t n_peers,
                      struct raft_forming **forming, char *text) {
  *forming = NULL;
  text[0] = 0;
  if (!list_makes_sense(peers, n_peers, text)) {
    return RAFT_INVALID;
  }
  struct raft_forming *opened = calloc(1, sizeof *opened);
  if (!opened) {
    say(text, "out of memory");
    return RAFT_NO_MEMORY;
  }
  opened->id = self->id;
  for (size_t i = 0; i < n_peers; i++) {
    add_peer(opened, &peers[i]);
  }
  struct forming_peer *own = find(opened, self->id);
  if (!own) {
    say(text, "peers: this node is node %" PRIu64 ", which the list does not name: add it, with its address", self->id);
    raft_forming_close(opened);
    return RAFT_INVALID;
  }
  opened->self = (size_t)(own - opened->peers);
  own->facts = *self;
  own->facts.peers_hash = raft_forming_hash(peers, n_peers);
  own->heard = true;
  own->was_fresh = true;
  *forming = opened;
  return RAFT_OK;
}

void raft_forming_close(struct raft_forming *forming) {
  free(forming);
}

void raft_forming_hear(struct raft_forming *forming, const struct raft_peer_facts *facts) {
  struct forming_peer *peer = find(forming, facts->id);
  if (!peer || facts->id == forming->id) {
    return; /* not of this cluster, whatever it says */
  }
  const bool same = peer->heard &&
                    memcmp(&peer->facts.incarnation, &facts->incarnation, sizeof facts->incarnation) == 0;
  peer->was_fresh = (same && peer->was_fresh) || raft_uuid_is_none(&facts->cluster);
  peer->facts = *facts;
  peer->heard = true;
}

/* ---- The state ---- */

static void say_node(char *text, const struct forming_peer *peer) {
  say(text, "node %" PRIu64 " (%s)", peer->peer.id, peer->peer.address);
}

static void say_uuid(char *text, const struct raft_uuid *uuid) {
  for (int i = 0; i < RAFT_UUID_SIZE; i++) {
    say(text, "%02x", uuid->bytes[i]);
  }
}

/* Belongs to a cluster, or was given another list. */
static bool is_misfit(const struct forming_peer *own, const struct forming_peer *peer, char *text) {
  if (!raft_uuid_is_none(&peer->facts.cluster)) {
    if (peer->was_fresh) {
      return false; /* it has just been formed, by this list */
    }
    say_node(text, peer);
    say(text, " belongs to cluster ");
    say_uuid(text, &peer->facts.cluster);
    say(text, " already, and ");
    say_node(text, own);
    say(text, " is fresh. If it is to be one more member, or lost its folder, start it with join=%s instead of peers",
        peer->peer.address);
    return true;
  }
  if (peer->facts.peers_hash == own->facts.peers_hash) {
    return false;
  }
  say_node(text, own);
  say(text, " and ");
  say_node(text, peer);
  say(text, peer->facts.peers_hash == 0 ? " must be given the same list of peers, but the latter was given none"
                                        : " were given different lists of peers: give each node the same one");
  return true;
}

/* Two that cannot both be in it. */
static bool is_clash(const struct forming_peer *a, const struct forming_peer *b, char *text) {
  if (memcmp(&a->facts.incarnation, &b->facts.incarnation, sizeof a->facts.incarnation) == 0) {
    say_node(text, a);
    say(text, " and ");
    say_node(text, b);
    say(text, " have the same incarnation: one folder is a copy of the other. Remove the copied folder");
    return true;
  }
  if (a->facts.has_database && b->facts.has_database) {
    say_node(text, a);
    say(text, " and ");
    say_node(text, b);
    say(text,
        " both hold a database that is not empty; only one can become the cluster's first state. Move the other away");
    return true;
  }
  return false;
}

static bool is_refused(const struct raft_forming *forming, const struct forming_peer *own, char *text) {
  for (size_t i = 0; i < forming->n_peers; i++) {
    const struct forming_peer *peer = &forming->peers[i];
    if (!peer->heard) {
      continue;
    }
    if (peer != own && is_misfit(own, peer, text)) {
      return true;
    }
    for (size_t j = 0; j < i; j++) {
      if (forming->peers[j].heard && is_clash(&forming->peers[j], peer, text)) {
        return true;
      }
    }
  }
  return false;
}

static bool is_waiting(const struct raft_forming *forming, char *text) {
  bool waiting = false;
  for (size_t i = 0; i < forming->n_peers; i++) {
    if (!forming->peers[i].heard) {
      say(text, waiting ? ", " : "waiting for ");
      say_node(text, &forming->peers[i]);
      waiting = true;
    }
  }
  return waiting;
}

/* Without a database nobody's page size is given: all must ask for the same. */
static bool sizes_differ(const struct raft_forming *forming, const struct forming_peer *writer, char *text) {
  if (writer->facts.has_database) {
    return false;
  }
  for (size_t i = 0; i < forming->n_peers; i++) {
    const struct forming_peer *peer = &forming->peers[i];
    if (peer->facts.page_size != writer->facts.page_size || peer->facts.auto_vacuum != writer->facts.auto_vacuum) {
      say_node(text, writer);
      say(text, " asks for page_size=%" PRIu32 " auto_vacuum=%" PRIu32 ", ", writer->facts.page_size,
          writer->facts.auto_vacuum);
      say_node(text, peer);
      say(text, " for page_size=%" PRIu32 " auto_vacuum=%" PRIu32 ": give all nodes the same options",
          peer->facts.page_size, peer->facts.auto_vacuum);
      return true;
    }
  }
  return false;
}

static const struct forming_peer *choose_writer(const struct raft_forming *forming) {
  for (size_t i = 0; i < forming->n_peers; i++) {
    if (forming->peers[i].facts.has_database) {
      return &forming->peers[i];
    }
  }
  return &forming->peers[0];
}

static void fill_configuration(const struct raft_forming *forming, const struct forming_peer *own,
                               struct raft_configuration *configuration) {
  memset(configuration, 0, sizeof *configuration);
  configuration->settings.page_size = own->facts.page_size;
  configuration->settings.auto_vacuum = own->facts.auto_vacuum;
  configuration->n_members = (uint32_t)forming->n_peers;
  for (size_t i = 0; i < forming->n_peers; i++) {
    struct raft_member *member = &configuration->members[i];
    member->id = forming->peers[i].peer.id;
    member->incarnation = forming->peers[i].facts.incarnation;
    member->roles = RAFT_VOTER_NEW;
    memcpy(member->address, forming->peers[i].peer.address, strlen(forming->peers[i].peer.address));
  }
}

enum raft_forming_state raft_forming_state(const struct raft_forming *forming, struct raft_configuration *configuration,
                                           char *text) {
  const struct forming_peer *own = &forming->peers[forming->self];
  text[0] = 0;
  if (is_refused(forming, own, text)) {
    return RAFT_FORMING_REFUSED;
  }
  if (is_waiting(forming, text)) {
    return RAFT_FORMING_WAITING;
  }
  const struct forming_peer *writer = choose_writer(forming);
  if (sizes_differ(forming, writer, text)) {
    return RAFT_FORMING_REFUSED;
  }
  if (writer == own) {
    fill_configuration(forming, own, configuration);
    return RAFT_FORMING_WRITE;
  }
  say(text, "waiting for ");
  say_node(text, writer);
  say(text, " to write the first entry");
  return RAFT_FORMING_FOLLOW;
}
