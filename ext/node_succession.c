/*
** Leadership passes to another node (thesis 3.10): on request, and when the leader stops in order.
**
** No COMMIT fails by it. In this order:
**   1. the successor catches up, while writers go on;
**   2. the write ticket is taken: the open write transaction ends, nobody begins another;
**   3. the core lets all that was proposed commit (those COMMITs return), and then asks the successor to campaign at once;
**   4. this node steps down. Nothing is speculative, so there is nothing to take back. The ticket goes on, and
**      whoever has waited for it learns who leads.
** If the successor does not win within an election time-out the core gives up, and writers go on here.
**
** Who holds the ticket longer than step 2 waits keeps all as it was; at a stop, its transaction is lost with the node.
*/
#include <inttypes.h>
#include <string.h>

#include "node_internal.h"

static bool is_voter(const struct raft_member *member) {
  return (member->roles & RAFT_VOTER_NEW) != 0;
}

/* mutex held. A voter that is in touch, and whether it is nearly up to date. */
static bool can_succeed(struct node *node, const struct raft_member_status *progress, bool *is_close) {
  const struct raft_member *member = raft_configuration_find(&node->configuration, progress->id);
  uint64_t window = (uint64_t)node->configuration.settings.election_ms * OS_MS;
  bool is_there = progress->last_contact != 0 && os_now(node->os) < progress->last_contact + window;
  if (progress->id == node->id || !member || !is_voter(member) || !is_there) return false;
  *is_close = *is_close || node->last_index <= progress->match_index + NODE_SUCCESSOR_LAG_MAX;
  return true;
}

/* mutex held. Can `to` (0: anybody) take over? VFS_BUSY: not yet, it is behind. */
static int look_for_successor(struct node *node, uint64_t to, char *text) {
  struct raft_member_status progress[RAFT_MEMBERS_MAX];
  size_t n = raft_get_members(node->raft, progress, RAFT_MEMBERS_MAX);
  bool is_there = false, is_close = false;
  for (size_t i = 0; i < n; i++)
    if (to == 0 || progress[i].id == to) is_there = can_succeed(node, &progress[i], &is_close) || is_there;
  if (is_close) return VFS_OK;
  if (is_there) {
    node_say(text, "%s is too far behind to lead: wait until it has caught up (balsa_members.lag)",
             to ? "that node" : "every other node");
    return VFS_BUSY;
  }
  if (to)
    node_say(text, "node %" PRIu64 " has not been heard for an election time-out: it cannot lead", to);
  else
    node_say(text, "no other voter has been heard for an election time-out: nobody can take over");
  return VFS_NOBODY;
}

/* mutex held. Does the request make sense on this node? */
static int check_request(struct node *node, uint64_t to, char *text) {
  const struct raft_member *member = raft_configuration_find(&node->configuration, to);
  if (node->stopping) {
    node_say(text, NODE_STOPPED_TEXT);
    return VFS_STOPPED;
  }
  if (node->configuration.n_members == 0) {
    node_say(text, "there is no cluster yet");
    return VFS_NOBODY;
  }
  if (node->configuration.n_members == 1 && to != node->id) {
    node_say(text, "this is a cluster of one: there is nobody to hand over to");
    return VFS_REFUSED;
  }
  if (to != 0 && (!member || !is_voter(member))) {
    node_say(text, "node %" PRIu64 " is not %s", to, member ? "a voter: a learner cannot lead" : "a member");
    return VFS_REFUSED;
  }
  if (node->role == RAFT_LEADER) return VFS_OK;
  if (node->leader == 0) {
    node_say(text, "nobody leads");
    return VFS_NOBODY;
  }
  node_say(text, "node %" PRIu64 " leads", node->leader);
  return VFS_NOT_HERE;
}

/* mutex held, given up while it waits. Writers go on meanwhile. A leader that is new has not heard anybody yet. */
static int wait_for_successor(struct node *node, uint64_t to, uint64_t deadline, bool is_last, char *text) {
  uint64_t patience = os_now(node->os) + (is_last ? 0 : node->configuration.settings.election_ms * OS_MS);
  for (;;) {
    int error = check_request(node, to, text);
    if (!error) error = look_for_successor(node, to, text);
    uint64_t now = os_now(node->os);
    if (error != VFS_BUSY && (error != VFS_NOBODY || node->role != RAFT_LEADER || now >= patience)) return error;
    if (now >= deadline) return error;
    os_condition_wait(node->os, &node->epoch_condition, &node->mutex, os_now(node->os) + NODE_SUCCESSOR_SLICE);
  }
}

static int error_of_hand_over(int error, char *text) {
  if (error == RAFT_OK) return VFS_OK;
  node_say(text, "leadership cannot be handed over now: %s", raft_error_text(error));
  return error == RAFT_NOT_LEADER                        ? VFS_NOT_HERE
         : error == RAFT_PENDING || error == RAFT_BEHIND ? VFS_BUSY
                                                         : VFS_REFUSED;
}

/* mutex held, given up while it waits; writers are paused. VFS_OK: this node leads no longer. */
static int hand_over(struct node *node, uint64_t to, char *text) {
  uint64_t term = node->term;
  int error = check_request(node, to, text);
  if (!error) error = error_of_hand_over(raft_hand_over(node->raft, os_now(node->os), to), text);
  node_drain(node, NULL, 0);
  if (error) return error;
  /* The core gives up after an election time-out. */
  uint64_t chosen = node->hand_over_to;
  while (node->role == RAFT_LEADER && node->term == term && node->hand_over_to != 0 && !node->stopping)
    os_condition_wait(node->os, &node->epoch_condition, &node->mutex, OS_FOREVER);
  if (node->role != RAFT_LEADER || node->term != term) return VFS_OK;
  node_say(text, "node %" PRIu64 " did not take over within an election time-out: this node goes on leading", chosen);
  return node->stopping ? VFS_STOPPED : VFS_BUSY;
}

/* mutex held, given up while it waits. Who leads now? */
static int wait_for_leader(struct node *node, uint64_t to, uint64_t deadline, uint64_t *leader, char *text) {
  while (node->leader == 0 && !node->stopping && os_now(node->os) < deadline)
    os_condition_wait(node->os, &node->epoch_condition, &node->mutex, deadline);
  *leader = node->leader;
  if (node->stopping) return VFS_STOPPED;
  if (*leader == 0) {
    node_say(text, "this node has stepped down, and nobody leads yet");
    return VFS_NOBODY;
  }
  if (to == 0 || to == *leader) return VFS_OK;
  node_say(text, "node %" PRIu64 " leads now, not node %" PRIu64, *leader, to);
  return VFS_BUSY;
}

/* mutex held, given up meanwhile. VFS_OK: nobody writes until vfs_resume(). A node that stops waits for nobody's transaction. */
static int pause_writers(struct node *node, uint64_t patience) {
  int busy = VFS_BUSY;
  uint64_t now = 0;
  while (busy && now < patience && !node->stopping) {
    uint64_t until = os_now(node->os) + NODE_PAUSE_SLICE;
    pthread_mutex_unlock(&node->mutex);
    busy = vfs_pause(node->database, until < patience ? until : patience);
    now = os_now(node->os);
    pthread_mutex_lock(&node->mutex);
  }
  return busy;
}

/* mutex held, given up meanwhile; no other succession is under way. `is_last`: this node stops in any case. */
static int pass_on(struct node *node, uint64_t to, uint64_t deadline, bool is_last, uint64_t *leader, char *text) {
  int error = wait_for_successor(node, to, deadline, is_last, text);
  if (error) return error;
  uint64_t patience = is_last ? os_now(node->os) + NODE_STOP_TICKET_MAX : deadline;
  int busy = pause_writers(node, patience);
  if (busy && !is_last) {
    node_say(text, "a write transaction has been open for too long: end it first");
    return VFS_BUSY;
  }
  error = hand_over(node, to, text);
  pthread_mutex_unlock(&node->mutex);
  if (!busy) vfs_resume(node->database);
  pthread_mutex_lock(&node->mutex);
  return error ? error : wait_for_leader(node, to, deadline, leader, text);
}

static int succession(struct node *node, uint64_t to, uint64_t deadline, bool is_last, uint64_t *leader, char *text) {
  *leader = 0;
  if (node_is_forked()) return VFS_STOPPED;
  pthread_mutex_lock(&node->mutex);
  int error = check_request(node, to, text);
  bool is_there = to != 0 && node->leader == to && !node->stopping;
  if (is_there) {
    *leader = to;
    error = VFS_OK;
  } else if (!error && node->succession) {
    node_say(text, "another hand-over is under way");
    error = VFS_BUSY;
  } else if (!error) {
    node->succession = true;
    error = pass_on(node, to, deadline, is_last, leader, text);
    node->succession = false;
  }
  pthread_mutex_unlock(&node->mutex);
  return error;
}

/* ---- For others ---- */

static void run_errand(void *arg) {
  struct node *node = arg;
  struct node_errand *errand = &node->errand;
  char text[VFS_TEXT_MAX] = "";
  uint64_t leader = 0;
  int error = succession(node, errand->to, errand->deadline, false, &leader, text);
  pthread_mutex_lock(&node->mutex);
  errand->error = error;
  errand->leader = leader;
  memcpy(errand->text, text, sizeof errand->text);
  errand->is_under_way = false;
  if (node->link)
    raft_transport_wake(node->link); /* whoever asked looks again, on another thread: it may join this one */
  pthread_mutex_unlock(&node->mutex);
}

uint64_t node_begin_succession(struct node *node, uint64_t to, uint64_t deadline) {
  struct node_errand *errand = &node->errand;
  if (errand->is_under_way || node->stopping) return 0;
  if (errand->thread) os_thread_join(errand->thread); /* it has nothing left to do */
  errand->thread = NULL;
  errand->to = to;
  errand->deadline = deadline;
  errand->is_under_way = true;
  if (os_thread_start(node->os, "balsa-hand", run_errand, node, &errand->thread) != 0) {
    errand->is_under_way = false;
    return 0;
  }
  return ++errand->number;
}

bool node_step_transfer(struct node *node, struct node_command *command, struct raft_request *reply) {
  const struct node_errand *errand = &node->errand;
  bool is_done = command->request.node ? command->request.node == node->id : command->request.index != node->id;
  if (command->errand == 0 && is_done && command->request.index != 0) {
    reply->status = NODE_REPLY_OK;
    reply->node = node->id;
    return true;
  }
  if (command->errand == 0) {
    command->errand = node_begin_succession(node, command->request.node, command->deadline);
    snprintf(command->why, sizeof command->why, "another hand-over is under way");
    return false;
  }
  if (errand->number == command->errand && errand->is_under_way) return false;
  if (errand->number != command->errand || errand->error == VFS_NOT_HERE) {
    node_reply_not_leader(node, reply);
    return true;
  }
  reply->status = errand->error ? NODE_REPLY_REFUSED : NODE_REPLY_OK;
  reply->node = errand->leader;
  node_say_reply(reply, "%.600s", errand->text);
  return true;
}

/*
** The leader is another node: it is asked. A request whose answer gets lost is sent again, to whoever leads then: so it names
** the leader who is to go (`index`).
*/
static int ask_leader(struct node *node, uint64_t to, uint64_t deadline, uint64_t *leader, char *text) {
  struct raft_request command = {.kind = NODE_REQUEST_TRANSFER, .node = to}, reply;
  pthread_mutex_lock(&node->mutex);
  while (node->leader == 0 && !node->stopping && os_now(node->os) < deadline)
    os_condition_wait(node->os, &node->epoch_condition, &node->mutex, deadline);
  command.index = node->leader;
  pthread_mutex_unlock(&node->mutex);
  int code = node_ask(node, &command, deadline, &reply, text);
  if (code != SQLITE_OK) return code == SQLITE_BUSY ? VFS_BUSY : VFS_REFUSED;
  pthread_mutex_lock(&node->mutex);
  while (node->leader != reply.node && !node->stopping && os_now(node->os) < deadline)
    os_condition_wait(node->os, &node->epoch_condition, &node->mutex, deadline);
  pthread_mutex_unlock(&node->mutex);
  *leader = reply.node;
  return VFS_OK;
}

int node_succession(struct node *node, uint64_t to, uint64_t deadline, uint64_t *leader, char *text) {
  int error = succession(node, to, deadline, false, leader, text);
  bool is_elsewhere = error == VFS_NOT_HERE || (error == VFS_NOBODY && *leader == 0);
  return is_elsewhere ? ask_leader(node, to, deadline, leader, text) : error;
}

void node_end_succession(struct node *node) {
  if (node->errand.thread) os_thread_join(node->errand.thread);
  node->errand.thread = NULL;
}

void node_retire(struct node *node, uint64_t deadline) {
  char text[VFS_TEXT_MAX] = "";
  uint64_t leader = 0, latest = os_now(node->os) + NODE_STOP_HAND_OVER_MAX;
  int error = succession(node, 0, latest < deadline ? latest : deadline, true, &leader, text);
  if (error == VFS_OK)
    node_log(SQLITE_NOTICE, "node %" PRIu64 " stops and has handed leadership over to node %" PRIu64, node->id, leader);
}
