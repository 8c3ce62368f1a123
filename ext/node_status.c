/*
** Looking in: what balsa_status, balsa_members and the functions show.
*/
#include <inttypes.h>
#include <string.h>

#include "node_internal.h"

static bool is_voter(const struct raft_member *member) {
  return (member->roles & (RAFT_VOTER_NEW | RAFT_VOTER_OLD)) != 0;
}

static const char *role_of(const struct node *node) {
  const struct raft_member *self = raft_configuration_find(&node->configuration, node->id);
  if (node->removed_index != 0) return "removed";
  if (node_is_joining(node)) return "joining";
  if (self && (self->roles & RAFT_JOINING)) return "joining";
  if (self && !is_voter(self)) return "learner";
  switch (node->role) {
  case RAFT_LEADER: return "leader";
  case RAFT_CANDIDATE:
  case RAFT_PRE_CANDIDATE: return "candidate";
  default: return "follower";
  }
}

/* mutex held. Progress of a member, or NULL. */
static const struct raft_member_status *progress_of(const struct raft_member_status *progress, size_t n, uint64_t id) {
  for (size_t i = 0; i < n; i++)
    if (progress[i].id == id) return &progress[i];
  return NULL;
}

/* mutex held. Is this other member in touch? The leader knows by answers, others by their connections. */
static bool is_in_touch(struct node *node, const struct raft_member_status *progress, size_t n, uint64_t id) {
  const struct raft_member_status *member = progress_of(progress, n, id);
  if (!node->link) return false;
  if (node->role != RAFT_LEADER) return raft_transport_is_connected(node->link, id);
  uint64_t window = 2 * (uint64_t)node->configuration.settings.election_ms * OS_MS;
  return member && member->last_contact != 0 && os_now(node->os) < member->last_contact + window;
}

/* mutex held. Of the voters of one set, how many are in touch beyond a majority. An empty set needs nobody. */
static uint32_t spare_of(struct node *node, const struct raft_member_status *progress, size_t n, uint8_t set) {
  uint32_t voters = 0, present = 0;
  for (uint32_t i = 0; i < node->configuration.n_members; i++) {
    const struct raft_member *member = &node->configuration.members[i];
    if (!(member->roles & set)) continue;
    voters++;
    present += member->id == node->id || is_in_touch(node, progress, n, member->id);
  }
  uint32_t majority = voters / 2 + 1;
  if (voters == 0) return UINT32_MAX;
  return present > majority ? present - majority : 0;
}

/* mutex held. How many more voters may fail before nothing can be committed; without a leader nothing can be already. */
static uint32_t tolerates(struct node *node) {
  if (node->leader == 0 || node->removed_index != 0) return 0;
  struct raft_member_status progress[RAFT_MEMBERS_MAX];
  size_t n = raft_get_members(node->raft, progress, RAFT_MEMBERS_MAX);
  uint32_t before = spare_of(node, progress, n, RAFT_VOTER_OLD), after = spare_of(node, progress, n, RAFT_VOTER_NEW);
  uint32_t spare = before < after ? before : after;
  return spare == UINT32_MAX ? 0 : spare; /* nobody votes yet, as far as is known here */
}

/* mutex held. */
static void describe_state(const struct node *node, char state[VFS_TEXT_MAX]) {
  bool is_ready = node->epoch != 0 ||
                  (node->leader != 0 && node->leader != node->id &&
                   node->applied_index + NODE_READY_LAG_MAX >= node->commit_index && node->has_pages);
  if (node->stopping)
    snprintf(state, VFS_TEXT_MAX, "stopped");
  else if (node->failed[0])
    snprintf(state, VFS_TEXT_MAX, "blocked by a failure: %.700s", node->failed);
  else if (node->removed_index != 0)
    snprintf(state, VFS_TEXT_MAX, "removed: %.740s", node->removed_text);
  else if (node->quarantine[0])
    snprintf(state, VFS_TEXT_MAX, "%s", node->quarantine);
  else if (node_is_joining(node))
    node_describe_joining(node, state);
  else if (node->configuration.n_members == 0)
    snprintf(state, VFS_TEXT_MAX, "forming: %.340s%s%.340s", node->forming_text, node->refused_text[0] ? "; " : "",
             node->refused_text);
  else if (node->blocked[0])
    snprintf(state, VFS_TEXT_MAX, "%s", node->blocked);
  else if (node->hand_over_to != 0)
    snprintf(state, VFS_TEXT_MAX, "handing over to node %" PRIu64, node->hand_over_to);
  else if (is_ready)
    snprintf(state, VFS_TEXT_MAX, "ready");
  else if (node->leader == 0)
    snprintf(state, VFS_TEXT_MAX, "no leader%s%.600s", node->refused_text[0] ? ": " : "", node->refused_text);
  else
    snprintf(state, VFS_TEXT_MAX, "catching up");
}

/* mutex held. `held_back` is what vfs/ says. */
static void describe_checkpoint(const struct node *node, uint64_t index, const char *held_back,
                                char text[VFS_TEXT_MAX]) {
  int length = snprintf(text, VFS_TEXT_MAX, index ? "%" PRIu64 : "none", index);
  size_t room = VFS_TEXT_MAX - (size_t)length;
  if (node->checkpoint_text[0])
    snprintf(text + length, room, "; failed: %.600s", node->checkpoint_text);
  else if (held_back[0])
    snprintf(text + length, room, "; %.600s", held_back);
}

/* mutex held. */
static void describe_notice(const struct node *node, const char *found, char notice[VFS_TEXT_MAX]) {
  bool is_fragile = node->removed_index == 0 && node_count_voters(&node->configuration) == 2;
  const char *own = is_fragile ? "the cluster has two voters: it " NODE_TWO_VOTERS_TEXT : "";
  if (node->ignores_join && node->configuration.n_members == 1)
    own = "option join is ignored: this node is a cluster of one, which it became when it was opened without join. To "
          "let it "
          "join, open it with rebuild=1 as well: its database is then kept aside, in lost-1 or the next free one of "
          "its folder";
  snprintf(notice, VFS_TEXT_MAX, "%s%s%s", own, own[0] && found[0] ? "; " : "", found);
}

void node_get_status(struct node *node, struct node_status *status) {
  struct vfs_status database;
  char held_back[VFS_TEXT_MAX];
  vfs_get_status(node->database, &database);
  vfs_describe_checkpoint(node->database, held_back);
  pthread_mutex_lock(&node->mutex);
  *status = (struct node_status){
      .node = node->id,
      .cluster = node->configuration.cluster,
      .role = role_of(node),
      .term = node->term,
      .leader = node->removed_index == 0 ? node->leader : 0,
      .commit_index = node->commit_index,
      .applied_index = node->applied_index,
      .wal_frames = database.wal_frames,
      .has_checksum = database.pages > 0,
      .checksum = database.checksum,
      .tolerates = tolerates(node),
      .is_stopped = node->stopping,
      .is_removed = node->removed_index != 0,
      .path = node->path,
  };
  snprintf(status->leader_address, sizeof status->leader_address, "%s", node_address_of(node, status->leader));
  describe_state(node, status->state);
  describe_notice(node, database.notice, status->notice);
  node_describe_snapshot(node, status->snapshot);
  describe_checkpoint(node, database.checkpointed, held_back, status->checkpoint);
  if (node->store) {
    struct raft_store_status log;
    struct raft_status core;
    raft_store_get_status(node->store, &log);
    raft_get_status(node->raft, &core);
    status->log_first = core.first_index; /* on disk some more may be left, of its first segment */
    status->log_last = log.last_index;
    status->log_bytes = log.bytes;
  }
  /* What vfs/ waits for (an open write transaction, after leadership ended) is told by vfs/. */
  if (database.blocked[0] && node->apply_blocked) snprintf(status->state, sizeof status->state, "%s", database.blocked);
  pthread_mutex_unlock(&node->mutex);
}

/* mutex held. */
static void fill_progress(struct node *node, struct node_member *member, size_t place,
                          const struct raft_member_status *progress, size_t n) {
  const struct raft_member_status *known = progress_of(progress, n, member->node);
  uint64_t now = os_now(node->os);
  if (member->node == node->id) {
    member->has_progress = true;
    member->match_index = node->durable_index;
    member->has_contact = true;
  } else if (node->role == RAFT_LEADER && known) {
    member->has_progress = true;
    member->match_index = known->match_index;
    member->has_contact = known->last_contact != 0;
    if (member->has_contact && now > known->last_contact) member->last_contact_ms = (now - known->last_contact) / OS_MS;
  } else {
    member->has_contact = node->heard_at[place] != 0;
    if (member->has_contact && now > node->heard_at[place])
      member->last_contact_ms = (now - node->heard_at[place]) / OS_MS;
  }
  if (member->has_progress && node->last_index > member->match_index)
    member->lag = node->last_index - member->match_index;
}

/* A voter of the set before that is not of the one to come leaves, or becomes a learner; one only of that is on its way. */
static const char *role_of_member(const struct raft_member *member) {
  if (member->roles & RAFT_JOINING) return "joining";
  if (member->roles & RAFT_LEARNER) return "learner";
  if (!(member->roles & RAFT_VOTER_NEW)) return "leaving";
  return "voter";
}

size_t node_get_members(struct node *node, struct node_member members[RAFT_MEMBERS_MAX]) {
  struct raft_member_status progress[RAFT_MEMBERS_MAX];
  pthread_mutex_lock(&node->mutex);
  size_t n_progress = raft_get_members(node->raft, progress, RAFT_MEMBERS_MAX);
  size_t n = node->configuration.n_members;
  for (size_t i = 0; i < n; i++) {
    const struct raft_member *member = &node->configuration.members[i];
    members[i] = (struct node_member){.node = member->id, .role = role_of_member(member)};
    members[i].is_leader = member->id == node->leader && node->removed_index == 0;
    snprintf(members[i].address, sizeof members[i].address, "%s", node_address_of(node, member->id));
    fill_progress(node, &members[i], i, progress, n_progress);
    node_describe_transfer(node, member->id, members[i].snapshot);
  }
  for (size_t i = 0; n == 0 && i < node->options.n_peers; i++) {
    members[i] = (struct node_member){.node = node->options.peers[i].id, .role = "voter"};
    memcpy(members[i].address, node->options.peers[i].address, sizeof members[i].address);
  }
  if (n == 0) n = node->options.n_peers;
  pthread_mutex_unlock(&node->mutex);
  return n;
}

enum raft_fate node_outcome(struct node *node, uint64_t term, uint64_t index) {
  pthread_mutex_lock(&node->mutex);
  enum raft_fate fate = raft_fate(node->raft, term, index);
  pthread_mutex_unlock(&node->mutex);
  return fate;
}

struct raft_uuid node_cluster(struct node *node) {
  pthread_mutex_lock(&node->mutex);
  struct raft_uuid cluster = node->configuration.cluster;
  pthread_mutex_unlock(&node->mutex);
  return cluster;
}

void node_trouble(struct node *node, char *text) {
  pthread_mutex_lock(&node->mutex);
  const char *trouble = node->stopping             ? NODE_STOPPED_TEXT
                        : node->removed_index != 0 ? node->removed_text
                        : node->failed[0]          ? node->failed
                        : node->quarantine[0]      ? node->quarantine
                        : node->blocked[0]         ? node->blocked
                                                   : node->refused_text;
  node_say(text, "%s", trouble);
  pthread_mutex_unlock(&node->mutex);
}
