/*
** Commands to the leader, given on any node: who gives one asks, whoever leads carries it out.
**
** node_ask() waits on the application's thread. It sends the command to the leader of now, again when another one leads or
** nothing is heard, until the caller's deadline. The leader keeps commands that it has begun in a table and takes each a
** step further in every drain of the core, until its step function has an answer.
**
** A command is a wish for a state (node 3 is no member), not an order to do something once: to repeat it does no harm. So
** a lost answer is no matter. Only whether this very command brought the state about may stay unknown: what was the case
** already counts as done once an earlier attempt may have done it; and an attempt may still come to pass after the
** deadline, which the sentence says then.
**
** Fields of a request (raft_request): kind; node, incarnation, address and bits as the kind wants them; wait_ms: so long
** the asker waits for the answer. Of a reply: status; index of the entry that it is about; text; NOT_LEADER: node and
** address of the leader, as far as known.
*/
#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "node_internal.h"

/* ---- The leader's side ---- */

static const struct {
  bool (*step)(struct node *node, struct node_command *command, struct raft_request *reply);
  bool outlives; /* it goes on when this node does not lead any more */
} kinds[NODE_REQUESTS] = {
    [NODE_REQUEST_JOIN] = {node_step_join, false},        [NODE_REQUEST_ADD] = {node_step_add, false},
    [NODE_REQUEST_REMOVE] = {node_step_remove, false},    [NODE_REQUEST_PROMOTE] = {node_step_promote, false},
    [NODE_REQUEST_DEMOTE] = {node_step_demote, false},    [NODE_REQUEST_ADDRESS] = {node_step_address, false},
    [NODE_REQUEST_TRANSFER] = {node_step_transfer, true},
};

/* An answer to one who waits in this process. */
static void answer_here(struct node *node, const struct raft_request *reply) {
  for (struct node_asking *asking = node->asking; asking; asking = asking->next) {
    if (asking->context != reply->context || asking->is_answered) continue;
    asking->reply = *reply;
    asking->is_answered = true;
  }
  pthread_cond_broadcast(&node->asking_condition);
}

static void answer(struct node *node, const struct raft_request *request, struct raft_request *reply) {
  reply->kind = request->kind;
  reply->is_reply = true;
  reply->from = node->id;
  reply->from_incarnation = node->incarnation;
  reply->to = request->from;
  reply->to_incarnation = request->from_incarnation;
  reply->context = request->context;
  if (reply->to == node->id) {
    answer_here(node, reply);
    node_hear_reply(node, reply);
  } else if (node->link) {
    raft_transport_reply(node->link, reply);
  }
}

void node_reply_not_leader(struct node *node, struct raft_request *reply) {
  reply->status = NODE_REPLY_NOT_LEADER;
  reply->node = node->leader == node->id ? 0 : node->leader;
  snprintf(reply->address, sizeof reply->address, "%s", reply->node ? node_address_of(node, reply->node) : "");
  if (reply->node)
    node_say_reply(reply, "node %" PRIu64 " leads", reply->node);
  else
    node_say_reply(reply, "no leader is known");
}

void node_say_reply(struct raft_request *reply, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(reply->text, sizeof reply->text, format, arguments);
  va_end(arguments);
}

static bool leads(const struct node *node, struct raft_status *status) {
  raft_get_status(node->raft, status);
  return status->role == RAFT_LEADER && !node->stopping && !node->frozen;
}

static bool is_known(const struct raft_request *request) {
  return request->kind < NODE_REQUESTS && kinds[request->kind].step != NULL;
}

/* A command arrives at this node; mutex held, the core is drained afterwards. */
static void take_command(struct node *node, const struct raft_request *request) {
  struct raft_request reply = {0};
  struct raft_status status;
  struct node_command *free_one = NULL;
  size_t n_joins = 0;
  bool is_leader = leads(node, &status), is_join = request->kind == NODE_REQUEST_JOIN;
  for (size_t i = 0; i < NODE_COMMANDS_MAX; i++) {
    struct node_command *command = &node->commands[i];
    n_joins += command->request.kind == NODE_REQUEST_JOIN;
    if (command->request.kind == NODE_REQUEST_NONE)
      free_one = command;
    else if (command->request.from == request->from && command->request.context == request->context &&
             node_uuid_equal(&command->request.from_incarnation, &request->from_incarnation))
      return; /* sent again: it is being dealt with */
  }
  if (!is_known(request)) {
    reply.status = NODE_REPLY_REFUSED;
    node_say_reply(&reply, "node %" PRIu64 " does not know this kind of request: it is of an older version", node->id);
  } else if (node->removed_index != 0) {
    reply.status = NODE_REPLY_LATER;
    node_say_reply(&reply, "it was removed from the cluster itself: ask another one");
  } else if (!is_leader) {
    node_reply_not_leader(node, &reply);
  } else if (!free_one || (is_join && n_joins >= NODE_JOINS_MAX)) {
    reply.status = NODE_REPLY_LATER;
    node_say_reply(&reply, "node %" PRIu64 " has too many requests at hand", node->id);
  } else {
    *free_one = (struct node_command){.request = *request, .term = status.term};
    uint64_t wait_ms = is_join && request->wait_ms > NODE_JOIN_WAIT_MS ? NODE_JOIN_WAIT_MS : request->wait_ms;
    free_one->deadline = os_now(node->os) + wait_ms * OS_MS;
    node->n_commands++;
    return;
  }
  answer(node, request, &reply);
}

static bool step(struct node *node, struct node_command *command, struct raft_request *reply) {
  struct raft_status status;
  bool is_leader = leads(node, &status) && status.term == command->term;
  if (!is_leader && !kinds[command->request.kind].outlives) {
    node_reply_not_leader(node, reply);
    return true;
  }
  if (kinds[command->request.kind].step(node, command, reply)) return true;
  if (os_now(node->os) < command->deadline) return false;
  reply->status = NODE_REPLY_LATER;
  node_say_reply(reply, "%s", command->why);
  return true;
}

void node_step_commands(struct node *node) {
  if (node->n_commands == 0 || node->is_stepping) return;
  node->is_stepping = true;
  for (size_t i = 0; i < NODE_COMMANDS_MAX; i++) {
    struct node_command *command = &node->commands[i];
    struct raft_request reply = {0};
    if (command->request.kind == NODE_REQUEST_NONE || !step(node, command, &reply)) continue;
    if (command->may_happen && (reply.status == NODE_REPLY_NOT_LEADER || reply.status == NODE_REPLY_LATER))
      reply.bits |= NODE_REPLY_MAY_HAPPEN;
    answer(node, &command->request, &reply);
    node_end_command(node, command);
    node->n_commands--;
  }
  node->is_stepping = false;
}

/* ---- Messages ---- */

/* A member may ask anything, anybody to be added. */
static bool may_ask(const struct node *node, const struct raft_request *request) {
  return request->kind == NODE_REQUEST_JOIN ||
         node_is_in(&node->configuration, request->from, &request->from_incarnation);
}

void node_request_received(void *ctx, const struct raft_request *request) {
  struct node *node = ctx;
  pthread_mutex_lock(&node->mutex);
  bool is_for_us = request->to == 0 ||
                   (request->to == node->id && node_uuid_equal(&request->to_incarnation, &node->incarnation));
  if (node->stopping || node->frozen || !is_for_us) {
    /* of an earlier life, or the node comes or goes: the asker asks again */
  } else if (request->is_reply) {
    answer_here(node, request);
    node_hear_reply(node, request);
  } else if (may_ask(node, request)) {
    take_command(node, request);
    node_drain(node, NULL, 0);
  }
  pthread_mutex_unlock(&node->mutex);
}

/* ---- The asker's side ---- */

bool node_send_command(struct node *node, struct raft_request *request) {
  request->from = node->id;
  request->from_incarnation = node->incarnation;
  if (node->leader == 0 || !node->link || node->frozen) return false;
  if (node->leader == node->id) {
    take_command(node, request);
    node_drain(node, NULL, 0);
    return true;
  }
  const struct raft_member *leader = raft_configuration_find(&node->configuration, node->leader);
  if (!leader) return false;
  request->to = leader->id;
  request->to_incarnation = leader->incarnation;
  return raft_transport_request(node->link, request);
}

/* mutex held, given up meanwhile. Until there is an answer, somebody else leads, or the time is over. */
static void await_answer(struct node *node, struct node_asking *asking, uint64_t leader, uint64_t term,
                         uint64_t until) {
  while (!asking->is_answered && !node->stopping && node->leader == leader && node->term == term &&
         os_now(node->os) < until)
    os_condition_wait(node->os, &node->asking_condition, &node->mutex, until);
}

/* mutex held, given up meanwhile. */
static void pause_until(struct node *node, uint64_t until) {
  while (!node->stopping && os_now(node->os) < until)
    os_condition_wait(node->os, &node->asking_condition, &node->mutex, until);
}

static void forget_asking(struct node *node, const struct node_asking *asking) {
  struct node_asking **at = &node->asking;
  while (*at != asking) at = &(*at)->next;
  *at = asking->next;
}

/* mutex held, given up meanwhile. One attempt with a context of its own. true: `asking` has an answer. */
static bool attempt(struct node *node, struct raft_request *request, struct node_asking *asking, uint64_t deadline) {
  uint64_t now = os_now(node->os), until = now + NODE_REQUEST_PATIENCE;
  uint64_t leader = node->leader, term = node->term;
  request->context = asking->context = ++node->request_context;
  request->wait_ms = (uint32_t)((deadline - now) / OS_MS);
  asking->is_answered = false;
  if (!node_send_command(node, request)) return false;
  asking->is_sent = true;
  do { /* the same one again, unless it is dealt with: it may have got lost, or its answer */
    await_answer(node, asking, leader, term, until < deadline ? until : deadline);
    until = os_now(node->os) + NODE_REQUEST_PATIENCE;
  } while (!asking->is_answered && !node->stopping && node->leader == leader && node->term == term &&
           os_now(node->os) < deadline && node_send_command(node, request));
  return asking->is_answered;
}

/* Why it was not done until the deadline. */
static int give_up(struct node *node, const struct node_asking *asking, bool may_happen, char *text) {
  const char *why = asking->reply.text;
  if (node->stopping || node->removed_index != 0) {
    node_say(text, "%s", node->stopping ? NODE_STOPPED_TEXT : node->removed_text);
    return SQLITE_ERROR;
  }
  if (!why[0]) why = node->leader == 0 ? "no leader is known" : "the leader does not answer";
  if (may_happen)
    node_say(text, "unknown whether it comes to pass: look into balsa_members (%.600s)", why);
  else
    node_say(text, "not done in time: %.600s", why);
  return SQLITE_BUSY;
}

int node_ask(struct node *node, const struct raft_request *command, uint64_t deadline, struct raft_request *reply,
             char *text) {
  struct raft_request request = *command;
  struct node_asking asking = {0};
  bool may_happen = false;
  int code = SQLITE_BUSY;
  pthread_mutex_lock(&node->mutex);
  asking.next = node->asking;
  node->asking = &asking; /* cppcheck-suppress autoVariables; taken out below, by forget_asking */
  while (code == SQLITE_BUSY && !node->stopping && node->removed_index == 0 && os_now(node->os) < deadline) {
    asking.is_sent = false;
    bool is_answered = attempt(node, &request, &asking, deadline);
    int32_t status = is_answered ? asking.reply.status : NODE_REPLY_LATER;
    if (status == NODE_REPLY_OK || (status == NODE_REPLY_ALREADY && may_happen)) code = SQLITE_OK;
    if (status == NODE_REPLY_REFUSED || (status == NODE_REPLY_ALREADY && !may_happen)) code = SQLITE_ERROR;
    /* What was sent and not answered may come to pass; of what was answered the leader has told. */
    may_happen = may_happen || (is_answered ? (asking.reply.bits & NODE_REPLY_MAY_HAPPEN) != 0 : asking.is_sent);
    uint64_t again = os_now(node->os) + NODE_REQUEST_PAUSE;
    if (code == SQLITE_BUSY) pause_until(node, again < deadline ? again : deadline);
  }
  forget_asking(node, &asking);
  if (code == SQLITE_BUSY)
    code = give_up(node, &asking, may_happen, text);
  else if (code == SQLITE_ERROR)
    node_say(text, "%s", asking.reply.text);
  pthread_mutex_unlock(&node->mutex);
  *reply = asking.reply;
  return code;
}
