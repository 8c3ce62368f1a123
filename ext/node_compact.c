/*
** What the log weighs, and how much of it is kept.
**
** Weights decide when a snapshot is due and how long the tail is that stays for followers that are a little late.
** They are counted from some beginning, so that only differences mean something; of the places in the log a few
** are remembered, about 1/32 of the tail apart.
**
** The log may go up to the lowest of
**   - the newest durable snapshot: what is before it can be had from there;
**   - the durable mark "checkpointed": redo needs all behind it (vfs/redo.c);
**   - the tail (option log_tail);
**   - a snapshot that a follower is getting: what comes next for it is behind that. But not for ever: when the log has
**     grown by PIN_SNAPSHOTS times what makes another snapshot due, that follower has to begin with a newer one.
*/
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "node_internal.h"

/* ---- Weights ---- */

static struct node_weight *weight_at(struct node *node, size_t i) {
  return &node->weights[(node->weights_first + i) % NODE_WEIGHTS];
}

void node_weigh(struct node *node, uint64_t index, uint32_t size) {
  uint64_t step = node->options.log_tail / (NODE_WEIGHTS / 2);
  node->log_weight += RAFT_ENTRY_HEADER_SIZE + size;
  uint64_t last = node->n_weights > 0 ? weight_at(node, node->n_weights - 1)->weight : 0;
  if (node->n_weights == 0 || node->log_weight - last > step) {
    if (node->n_weights == NODE_WEIGHTS) {
      node->weights_first = (node->weights_first + 1) % NODE_WEIGHTS;
      node->n_weights--;
    }
    *weight_at(node, node->n_weights++) = (struct node_weight){.index = index, .weight = node->log_weight};
  }
  if (node->log_weight >= node->snapshot_look_at) node_wake_snapshot(node);
}

/* The weight of what is cut off stays in the sum: that is a little too much, until as much is appended again. */
void node_weigh_less(struct node *node, uint64_t from) {
  while (node->n_weights > 0 && weight_at(node, node->n_weights - 1)->index >= from) node->n_weights--;
}

/* The highest remembered place with the whole tail behind it; 0: the log is not that long. */
static uint64_t before_tail(struct node *node) {
  for (size_t i = node->n_weights; i > 0; i--)
    if (node->log_weight - weight_at(node, i - 1)->weight >= node->options.log_tail)
      return weight_at(node, i - 1)->index;
  return 0;
}

/* ---- Compaction ---- */

#define PIN_SNAPSHOTS 2

static uint64_t min(uint64_t a, uint64_t b) {
  return a < b ? a : b;
}

/* mutex held. How far the log goes back for member `i`, who is getting a snapshot; UINT64_MAX: no further than for all. */
static uint64_t pinned(struct node *node, size_t i, const struct raft_member_status *member, uint64_t patience) {
  struct node_pin *pin = &node->pins[i];
  if (pin->to != member->id || pin->index != member->transfer_index)
    *pin = (struct node_pin){.to = member->id, .index = member->transfer_index, .weight = node->log_weight};
  bool is_held = pin->index != 0 && node->log_weight - pin->weight <= patience;
  return is_held ? pin->index : UINT64_MAX;
}

/* mutex held. */
static uint64_t compaction_limit(struct node *node, const struct vfs_status *database) {
#ifdef BALSA_MUTANT_COMPACT_BEYOND_CHECKPOINT
  uint64_t limit = node->commit_index;
#else
  uint64_t limit = min(node->snapshot_index, database->checkpointed);
#endif
  uint64_t size = (uint64_t)database->pages * database->page_size;
  uint64_t patience = PIN_SNAPSHOTS *
                      (size > node->options.snapshot_threshold ? size : node->options.snapshot_threshold);
  if (node->options.log_tail > 0) limit = min(limit, before_tail(node));
  struct raft_member_status members[RAFT_MEMBERS_MAX];
  size_t n = raft_get_members(node->raft, members, RAFT_MEMBERS_MAX);
  for (size_t i = 0; i < n; i++) limit = min(limit, pinned(node, i, &members[i], patience));
  return limit;
}

/*
** The core and the store forget in any order: neither asks for what is before the other's beginning, and a start takes
** what it finds on disk.
*/
void node_compact(struct node *node) {
  struct vfs_status database;
  struct raft_status status;
  vfs_get_status(node->database, &database);
  raft_get_status(node->raft, &status);
  uint64_t through = compaction_limit(node, &database);
  if (through < status.first_index || node->failed[0]) return;
  if (raft_compact(node->raft, os_now(node->os), through) != RAFT_OK) return;
  node_drain(node, NULL, 0);
  pthread_mutex_unlock(&node->mutex);
  int error = raft_store_compact(node->store, through);
  if (error)
    node_log(SQLITE_IOERR, "node %" PRIu64 ": the log before entry %" PRIu64 " cannot be removed: %s", node->id,
             through + 1, strerror(-error));
  pthread_mutex_lock(&node->mutex);
}
