/*
** The leader changes the members, by command (node_request.c): what each kind of command wishes for, and the next step
** towards it. Every step looks at what the core says now, so whoever leads later goes on from there.
**
**   JOIN     `node` asks for itself, from its `incarnation` and `address`: a learner that is to become a voter
**   ADD      somebody else names `node` at `address`: it is dialled there, since only it knows its incarnation
**   REMOVE, PROMOTE, DEMOTE   `node`, in `incarnation` if the asker knows it: a command that comes late must not meet
**            the next one of that number
**   ADDRESS  `node` in its `incarnation` is at `address` now
**
** One change at a time, and only on a settled, committed configuration: the core refuses others (RAFT_PENDING), and the next
** drain tries again. A node that comes back in another incarnation is removed first and then added: two steps, the second
** of which a later leader takes as well when the joiner asks again. A leader that is to lose its vote hands over first: the
** new one carries the command out when the asker repeats it. Nobody loses his vote while those who stay are no majority.
*/
#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "node_internal.h"

static const struct raft_uuid anyone;

/* How things stand. */
struct look {
  struct raft_status status;
  const struct raft_configuration *configuration;
  const struct raft_member *member; /* whom the command is about; NULL: no member */
  bool is_settled;                  /* the configuration is, and committed */
  uint64_t now;
};

/* `incarnation`, unless it is none: another one of that number is not meant, such as one that has come since. */
static struct look look_at(struct node *node, uint64_t id, const struct raft_uuid *incarnation) {
  struct look look = {.now = os_now(node->os)};
  uint64_t index = 0;
  raft_get_status(node->raft, &look.status);
  look.configuration = raft_get_configuration(node->raft, &index);
  look.member = raft_configuration_find(look.configuration, id);
  if (look.member && !node_uuid_is_none(incarnation) && !node_uuid_equal(incarnation, &look.member->incarnation))
    look.member = NULL;
  look.is_settled = look.status.configuration_committed && !look.status.is_joint;
  return look;
}

/* ---- What may come of a step ---- */

static bool not_yet(struct node_command *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool not_yet(struct node_command *command, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(command->why, sizeof command->why, format, arguments);
  va_end(arguments);
  return false;
}

static bool refuse(struct raft_request *reply, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool refuse(struct raft_request *reply, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(reply->text, sizeof reply->text, format, arguments);
  va_end(arguments);
  reply->status = NODE_REPLY_REFUSED;
  return true;
}

/* It is as wished, for good once that is committed. */
static bool done(struct node_command *command, const struct look *look, struct raft_request *reply,
                 const char *already) {
  if (!look->is_settled) return not_yet(command, "the change is not committed yet: no majority has answered");
  reply->status = command->may_happen ? NODE_REPLY_OK : NODE_REPLY_ALREADY;
  reply->index = look->status.configuration_index;
  if (!command->may_happen) node_say_reply(reply, "node %" PRIu64 " is %s", command->request.node, already);
  return true;
}

static uint64_t lag_of(struct node *node, uint64_t id) {
  struct raft_member_status members[RAFT_MEMBERS_MAX];
  size_t n = raft_get_members(node->raft, members, RAFT_MEMBERS_MAX);
  for (size_t i = 0; i < n; i++)
    if (members[i].id == id)
      return node->last_index > members[i].match_index ? node->last_index - members[i].match_index : 0;
  return 0;
}

static bool propose(struct node *node, struct node_command *command, const struct look *look,
                    const struct raft_change *change, struct raft_request *reply) {
  uint64_t index = 0;
  if (!look->is_settled) return not_yet(command, "another change of the members is under way");
  int error = raft_change_members(node->raft, look->now, change, 1, &index);
  switch (error) {
  case RAFT_OK:
    command->may_happen = true;
    return not_yet(command, "the change is not committed yet: no majority has answered");
  case RAFT_PENDING: return not_yet(command, "another change of the members, or of the leader, is under way");
  case RAFT_BEHIND:
    return not_yet(command, "node %" PRIu64 " has not caught up yet, it lacks %" PRIu64 " entries", change->id,
                   lag_of(node, change->id));
  case RAFT_NOT_LEADER: node_reply_not_leader(node, reply); return true;
  case RAFT_INVALID: return refuse(reply, "the members cannot be changed so: %s", raft_error_text(error));
  default: return not_yet(command, "the members cannot be changed now: %s", raft_error_text(error));
  }
}

/* ---- Adding ---- */

/* Two election time-outs: who is there is heard of in that time. */
static uint64_t window_of(const struct look *look) {
  return 2 * (uint64_t)look->configuration->settings.election_ms * OS_MS;
}

/* Has this member been heard of late? `unsure`: this node has not led for long enough to know. */
static bool is_in_contact(struct node *node, const struct look *look, bool *unsure) {
  uint64_t window = window_of(look);
  struct raft_member_status members[RAFT_MEMBERS_MAX];
  size_t n = raft_get_members(node->raft, members, RAFT_MEMBERS_MAX);
  *unsure = look->now < node->leads_since + window;
  for (size_t i = 0; i < n; i++)
    if (members[i].id == look->member->id)
      return members[i].last_contact != 0 && look->now < members[i].last_contact + window;
  return false;
}

/* A node of this number is a member, from another folder. */
static bool replace(struct node *node, struct node_command *command, const struct look *look,
                    struct raft_request *reply) {
  struct raft_change change = {.type = RAFT_CHANGE_REMOVE, .id = look->member->id};
  bool unsure = false;
  if (look->member->id == node->id)
    return refuse(reply, "node %" PRIu64 " is the leader, at %.200s: give the other node another number", node->id,
                  node->options.advertise);
  if (is_in_contact(node, look, &unsure))
    return refuse(reply,
                  "node %" PRIu64 " is a member already, at %.200s, and it answers: give the new node another number",
                  look->member->id, look->member->address);
  if (unsure)
    return not_yet(command, "whether the node %" PRIu64 " that was before still answers is not known yet",
                   look->member->id);
  return propose(node, command, look, &change, reply);
}

static bool add_member(struct node *node, struct node_command *command, const struct look *look,
                       struct raft_request *reply) {
  const struct raft_request *request = &command->request;
  struct raft_change change = {
      .type = RAFT_CHANGE_ADD, .id = request->node, .incarnation = request->incarnation, .joining = true};
  memcpy(change.address, request->address, sizeof change.address);
  if (look->member && !node_uuid_equal(&look->member->incarnation, &request->incarnation))
    return replace(node, command, look, reply);
  if (look->member && strcmp(look->member->address, request->address) == 0)
    return done(command, look, reply, "a member already");
  if (!node->options.listen[0])
    return refuse(reply, "node %" PRIu64 " leads and listens nowhere: open it with listen=host:port first", node->id);
  for (uint32_t i = 0; i < look->configuration->n_members; i++) {
    const struct raft_member *other = &look->configuration->members[i];
    if (other->id != request->node && strcmp(other->address, request->address) == 0)
      return refuse(reply, "%.200s is the address of node %" PRIu64 ": give node %" PRIu64 " another one",
                    request->address, other->id, request->node);
  }
  if (look->member) change.type = RAFT_CHANGE_ADDRESS;
  if (!look->member && look->configuration->n_members == RAFT_MEMBERS_MAX)
    return refuse(reply, "the cluster is full: it has %d members; remove one first", RAFT_MEMBERS_MAX);
  return propose(node, command, look, &change, reply);
}

bool node_step_join(struct node *node, struct node_command *command, struct raft_request *reply) {
  struct look look = look_at(node, command->request.node, &anyone);
  if (command->request.node != command->request.from ||
      !node_uuid_equal(&command->request.incarnation, &command->request.from_incarnation))
    return refuse(reply, "a node can ask for itself alone");
  return add_member(node, command, &look, reply);
}

/* ---- Adding somebody who is named ---- */

enum { ADD_DIAL, ADD_GREETING, ADD_GREETED, ADD_REFUSED };

static size_t slot_of(const struct node *node, const struct node_command *command) {
  return (size_t)(command - node->commands);
}

void node_greet_command(struct node *node, uint32_t slot, const struct raft_hello *hello) {
  struct node_command *command = &node->commands[slot];
  if (slot >= NODE_COMMANDS_MAX || command->request.kind != NODE_REQUEST_ADD || command->stage != ADD_GREETING) return;
  command->hello = *hello;
  command->stage = ADD_GREETED;
}

void node_refuse_command(struct node *node, uint32_t slot, const char *text) {
  struct node_command *command = &node->commands[slot];
  if (slot >= NODE_COMMANDS_MAX || command->request.kind != NODE_REQUEST_ADD || command->stage != ADD_GREETING) return;
  snprintf(command->why, sizeof command->why, "%s", text);
  command->stage = ADD_REFUSED;
}

void node_end_command(struct node *node, struct node_command *command) {
  uint32_t slot = (uint32_t)slot_of(node, command);
  if (command->request.kind == NODE_REQUEST_ADD && node->link)
    raft_transport_set_contact(node->link, NODE_CONTACT_COMMAND + slot, NULL);
  command->request.kind = NODE_REQUEST_NONE;
}

static bool dial(struct node *node, struct node_command *command, struct raft_request *reply) {
  uint32_t contact = NODE_CONTACT_COMMAND + (uint32_t)slot_of(node, command);
  if (!node->link || raft_transport_set_contact(node->link, contact, command->request.address) != 0)
    return refuse(reply, "%.200s is no address: it must be host:port", command->request.address);
  command->stage = ADD_GREETING;
  command->since = os_now(node->os);
  return not_yet(command, "nobody has answered at %.200s yet", command->request.address);
}

/* Who is there? It is added as it says it is. */
static bool judge(struct node *node, struct node_command *command, const struct look *look,
                  struct raft_request *reply) {
  struct raft_request *request = &command->request;
  const struct raft_hello *hello = &command->hello;
  char why[NODE_WHY_MAX];
  if (hello->node != request->node)
    return refuse(reply, "node %" PRIu64 " is at %.200s, not node %" PRIu64, hello->node, request->address,
                  request->node);
  if (!node_suits(look->configuration, hello, why, sizeof why)) return refuse(reply, "%s", why);
  bool is_same = look->member && node_uuid_equal(&look->member->incarnation, &hello->incarnation);
  if (!is_same && !(hello->features & NODE_FEATURE_JOINS))
    return refuse(reply,
                  "node %" PRIu64 " at %.200s does not wait to join a cluster: open it, with a fresh folder, with "
                  "join=wait",
                  hello->node, request->address);
  request->incarnation = hello->incarnation;
  memcpy(request->address, hello->address, sizeof request->address); /* it knows best; it would have it changed */
  return add_member(node, command, look, reply);
}

bool node_step_add(struct node *node, struct node_command *command, struct raft_request *reply) {
  struct look look = look_at(node, command->request.node, &anyone);
  bool is_there = look.member && strcmp(look.member->address, command->request.address) == 0;
  switch (command->stage) {
  case ADD_DIAL:
    if (command->request.node == node->id) return done(command, &look, reply, "a member already");
    return is_there ? done(command, &look, reply, "a member already") : dial(node, command, reply);
  case ADD_GREETING:
    if (look.now < command->since + NODE_GREETING_PATIENCE) return false;
    return refuse(reply, "nobody answers at %.200s: open node %" PRIu64 " there first, with join=wait",
                  command->request.address, command->request.node);
  case ADD_REFUSED: return refuse(reply, "%s", command->why);
  default: return judge(node, command, &look, reply);
  }
}

/* ---- Losing a vote ---- */

/* The leader itself is to lose its vote: another one leads first, so that no COMMIT fails. It carries this out then. */
static bool hand_over_first(struct node *node, struct node_command *command, const struct look *look) {
  const struct node_errand *errand = &node->errand;
  bool is_known = command->errand != 0 && errand->number == command->errand;
  if (is_known && errand->is_under_way) return false;
  if (command->errand != 0) { /* in vain, or this node has led again since */
    command->errand = 0;
    command->since = look->now;
    not_yet(command, "another node has to lead first%s%.280s", is_known && errand->text[0] ? ": " : "",
            is_known ? errand->text : "");
  }
  if (look->now < command->since + NODE_PASSING_PAUSE) return false;
  command->errand = node_begin_succession(node, 0, look->now + NODE_PASSING_PATIENCE);
  return command->why[0] ? false : not_yet(command, "another node has to lead first");
}

/* Is a majority of the voters in touch that are left without `id`? */
static bool leaves_majority(struct node *node, const struct look *look, uint64_t id) {
  struct raft_member_status members[RAFT_MEMBERS_MAX];
  size_t n = raft_get_members(node->raft, members, RAFT_MEMBERS_MAX);
  size_t left = 0, present = 0;
  for (size_t i = 0; i < n; i++) {
    bool is_heard = members[i].last_contact != 0 && look->now < members[i].last_contact + window_of(look);
    if (!(members[i].roles & RAFT_VOTER_NEW) || members[i].id == id) continue;
    left++;
    present += members[i].id == node->id || is_heard;
  }
  return present > left / 2;
}

/*
** A change counts from its append on: where those who stay are no majority it could not be committed, nor anything behind it,
** and the leader that began it would have to step down. So it is not begun; a leader that is new, or whose machine was busy,
** may hear of them yet.
*/
static bool lacks_majority(struct node_command *command, const struct look *look, struct raft_request *reply) {
  if (command->since == 0) command->since = look->now;
  if (look->now < command->since + window_of(look))
    return not_yet(command, "of the voters that are left then no majority is in touch");
  return refuse(
      reply,
      "of the voters that are left without node %" PRIu64
      " no majority is in touch: nothing could be decided any more. Bring those back that are down, or remove "
      "them first",
      command->request.node);
}

static bool lose_vote(struct node *node, struct node_command *command, const struct look *look,
                      enum raft_change_type type, struct raft_request *reply) {
  struct raft_change change = {.type = type, .id = command->request.node};
  bool is_voter = (look->member->roles & RAFT_VOTER_NEW) != 0;
  if (is_voter && look->is_settled && node_count_voters(look->configuration) == 1)
    return refuse(reply, "node %" PRIu64 " is the only voter: a cluster needs one", change.id);
  if (is_voter && !leaves_majority(node, look, change.id)) return lacks_majority(command, look, reply);
  if (is_voter && change.id == node->id) return hand_over_first(node, command, look);
  return propose(node, command, look, &change, reply);
}

bool node_step_remove(struct node *node, struct node_command *command, struct raft_request *reply) {
  struct look look = look_at(node, command->request.node, &command->request.incarnation);
  if (!look.member) return done(command, &look, reply, "no member");
  if (!look.is_settled && !(look.member->roles & (RAFT_VOTER_NEW | RAFT_LEARNER)))
    return not_yet(command, "the change is not committed yet: no majority has answered");
  return lose_vote(node, command, &look, RAFT_CHANGE_REMOVE, reply);
}

bool node_step_demote(struct node *node, struct node_command *command, struct raft_request *reply) {
  struct look look = look_at(node, command->request.node, &command->request.incarnation);
  if (!look.member) return refuse(reply, "node %" PRIu64 " is no member", command->request.node);
  if (look.member->roles & RAFT_JOINING)
    return refuse(reply, "node %" PRIu64 " is no voter yet: wait until it is one, or remove it", look.member->id);
  if (look.member->roles & RAFT_LEARNER) return done(command, &look, reply, "a learner already");
  return lose_vote(node, command, &look, RAFT_CHANGE_DEMOTE, reply);
}

/* ---- The rest ---- */

bool node_step_promote(struct node *node, struct node_command *command, struct raft_request *reply) {
  struct look look = look_at(node, command->request.node, &command->request.incarnation);
  struct raft_change change = {.type = RAFT_CHANGE_PROMOTE, .id = command->request.node};
  if (!look.member) return refuse(reply, "node %" PRIu64 " is no member", command->request.node);
  if (look.member->roles & RAFT_VOTER_NEW) return done(command, &look, reply, "a voter already");
  return propose(node, command, &look, &change, reply);
}

bool node_step_address(struct node *node, struct node_command *command, struct raft_request *reply) {
  const struct raft_request *request = &command->request;
  struct look look = look_at(node, request->node, &anyone);
  struct raft_change change = {.type = RAFT_CHANGE_ADDRESS, .id = request->node, .incarnation = request->incarnation};
  memcpy(change.address, request->address, sizeof change.address);
  if (request->node != request->from) return refuse(reply, "a node can move itself alone");
  if (!look.member || !node_uuid_equal(&look.member->incarnation, &request->incarnation))
    return refuse(reply, "node %" PRIu64 " is no member", request->node);
  if (strcmp(look.member->address, request->address) == 0) return done(command, &look, reply, "there already");
  for (uint32_t i = 0; i < look.configuration->n_members; i++)
    if (look.configuration->members[i].id != request->node &&
        strcmp(look.configuration->members[i].address, request->address) == 0)
      return refuse(reply, "%.200s is the address of node %" PRIu64, request->address,
                    look.configuration->members[i].id);
  return propose(node, command, &look, &change, reply);
}

/* ---- The asker's side ---- */

int node_change(struct node *node, enum node_wish wish, uint64_t id, const char *address, uint64_t deadline,
                char *text) {
  static const enum node_request_kind kinds[] = {[NODE_ADD] = NODE_REQUEST_ADD,
                                                 [NODE_REMOVE] = NODE_REQUEST_REMOVE,
                                                 [NODE_PROMOTE] = NODE_REQUEST_PROMOTE,
                                                 [NODE_DEMOTE] = NODE_REQUEST_DEMOTE};
  struct raft_request command = {.kind = (uint8_t)kinds[wish], .node = id ? id : node->id}, reply;
  bool leaves = wish == NODE_REMOVE && command.node == node->id;
  pthread_mutex_lock(&node->mutex);
  bool was_removed = node->removed_index != 0;
  const struct raft_member *member = raft_configuration_find(&node->configuration, command.node);
  if (member && wish != NODE_ADD) command.incarnation = member->incarnation;
  pthread_mutex_unlock(&node->mutex);
  snprintf(command.address, sizeof command.address, "%s", address);
  int code = node_ask(node, &command, deadline, &reply, text);
  pthread_mutex_lock(&node->mutex);
  if (code == SQLITE_OK && leaves) {
    node_removed(node, reply.index);
    node_drain(node, NULL, 0);
  } else if (leaves && !was_removed && node->removed_index != 0) {
    code = SQLITE_OK; /* who answers no stranger has carried it out: the answer was lost */
  }
  pthread_mutex_unlock(&node->mutex);
  return code;
}
