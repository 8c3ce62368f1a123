/*
** A new cluster from one node, when a majority of the old one is lost for good: balsa_recover().
**
** All of this node's log counts as committed from then on. The new cluster has an id of its own, so nobody of the old one
** gets into it with what he has: the others come as new incarnations (option rebuild, or join with a fresh folder). Only
** the id of the database stays.
**
** What it takes, each durable before the next; a crash in between leads to a start that goes on from there:
**   1. balsa_recover(): formation=recovering and the new cluster's id in `options`; then the node stops
**   2. the next start applies all of the log to the database
**   3. a snapshot of that, at the entry behind the log's last, in the next term, with a configuration of this node alone
**   4. the node starts again: the snapshot becomes the log's beginning, as one that came from a leader would (node_restore.c)
**   5. formation=formed
** So nothing of the old cluster is left in the log: whoever joins gets that snapshot, or what came after it.
*/
#include <inttypes.h>
#include <string.h>

#include "node_internal.h"

/* ---- Asking for it ---- */

/* The list of a person: who is to be in the new cluster. */
static bool parse_members(const char *members, struct options *list, char *text) {
  options_init(list);
  return options_set(list, "peers", members, "the list", text);
}

static const struct raft_peer *find_peer(const struct options *list, uint64_t id) {
  for (size_t i = 0; i < list->n_peers; i++)
    if (list->peers[i].id == id) return &list->peers[i];
  return NULL;
}

/* mutex held. Of those who have this role: who is in touch, this node among them, and how many there are. */
static bool is_majority(struct node *node, uint8_t role, uint32_t *present, uint32_t *voters) {
  *present = *voters = 0;
  for (uint32_t i = 0; i < node->configuration.n_members; i++) {
    const struct raft_member *member = &node->configuration.members[i];
    if (!(member->roles & role)) continue;
    ++*voters;
    *present += member->id == node->id || (node->link && raft_transport_is_connected(node->link, member->id));
  }
  return *present > *voters / 2;
}

/* mutex held. Could a leader be elected? While the voters change that takes a majority of those before and of those to come. */
static bool has_majority(struct node *node, uint32_t *present, uint32_t *voters) {
  bool is_old = is_majority(node, RAFT_VOTER_OLD, present, voters);
  return (is_old || *voters == 0) && is_majority(node, RAFT_VOTER_NEW, present, voters);
}

/* mutex held. The list names this node as the others know it. */
static bool check_list(const struct node *node, const struct options *list, char *text) {
  const struct raft_peer *own = find_peer(list, node->id);
  if (!own) {
    node_say(text, "the list must name this node, %" PRIu64 "@%s, and whoever is to join it later", node->id,
             node->options.advertise);
    return false;
  }
  if (strcmp(own->address, node->options.advertise) == 0) return true;
  node_say(text, "the list gives %s as the address of this node, which is at %s", own->address,
           node->options.advertise);
  return false;
}

/* mutex held. */
static bool check_loss(struct node *node, char *text) {
  uint32_t present = 0, voters = 0;
  bool is_enough = has_majority(node, &present, &voters);
  if (node->configuration.n_members == 0)
    node_say(text, "this node belongs to no cluster yet");
  else if (node->removed_index != 0)
    node_say(text,
             "%.600s. To go on with its data alone stop it, move %.200s away and open it: that is a cluster of its own",
             node->removed_text, node->folder);
  else if (node->configuration.n_members == 1)
    node_say(text, "this node is a cluster of one already: there is nothing to recover");
  else if (node->leader != 0)
    node_say(text, "node %" PRIu64 " leads: a majority is there, and members are changed by balsa_remove and balsa_add",
             node->leader);
  else if (is_enough)
    node_say(text, "%u of %u voters are in touch, which is a majority: it will elect a leader", present, voters);
  else if (node->failed[0] || node->quarantine[0])
    node_say(text, "this node cannot be recovered from: %.600s", node->failed[0] ? node->failed : node->quarantine);
  else
    return true;
  return false;
}

/*
** mutex held, given up while the apply thread writes it. No event goes into the core any more: what is in the log is what
** counts.
*/
static int write_down(struct node *node, char *text) {
  enum node_formation formation = node->formation;
  uint64_t deadline = os_now(node->os) + NODE_RECOVER_PATIENCE;
  node->frozen = true;
  os_random(node->os, node->recover_cluster.bytes, sizeof node->recover_cluster.bytes);
  node->formation = NODE_RECOVERING;
  node->keep_wanted = true;
  node->keep_at = 0;
  pthread_cond_signal(&node->apply_condition);
  while (node->kept_formation != NODE_RECOVERING && !node->stopping && os_now(node->os) < deadline)
    os_condition_wait(node->os, &node->epoch_condition, &node->mutex, deadline);
  if (node->kept_formation == NODE_RECOVERING) return VFS_OK;
  node_say(text, "%.300s/options cannot be written", node->folder);
  node->formation = formation; /* and that is written, if the other gets there yet */
  node->keep_wanted = true;
  node->frozen = false;
  return VFS_IO;
}

int node_recover(struct node *node, const char *members, char *text) {
  struct options list;
  if (node_is_forked()) return VFS_STOPPED;
  if (!parse_members(members, &list, text)) return VFS_REFUSED;
  pthread_mutex_lock(&node->mutex);
  int error = VFS_REFUSED;
  if (node->stopping || node->frozen)
    node_say(text, node->stopping ? NODE_STOPPED_TEXT : "this node is just starting, or being recovered already");
  else if (check_loss(node, text) && check_list(node, &list, text))
    error = write_down(node, text);
  pthread_mutex_unlock(&node->mutex);
  if (error) return error;
  node_log(SQLITE_WARNING, "node %" PRIu64 " begins a cluster of its own from its log, as balsa_recover() told it",
           node->id);
  node_stop(node, os_now(node->os) + NODE_STOP_MS_MAX * OS_MS);
  return VFS_OK;
}

/* ---- Doing it ---- */

/* This node alone, in a cluster with a new id. */
static void new_configuration(struct node *node, struct raft_configuration *configuration) {
  struct raft_configuration old = *configuration;
  node_single_configuration(node, configuration);
  configuration->cluster = node->recover_cluster;
  configuration->database = old.database;
  configuration->settings = old.settings;
}

bool node_is_recovered(const struct node *node, const struct raft_start *start) {
  return start->n_configurations > 0 && node_uuid_equal(&node_start_latest(start)->cluster, &node->recover_cluster);
}

int node_write_recovered(struct node *node, uint64_t last_index, char *text) {
  struct raft_configuration configuration = node->configuration;
  new_configuration(node, &configuration);
  return node_sqlite_error(
      node_snapshot_begin_anew(node, last_index + 1, node->hard_state.term + 1, &configuration, text));
}
