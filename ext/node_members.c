/*
** Who belongs to the cluster, as this node sees it: whom it dials, whom it meets, how it gets in, and that it is out.
**
** Joining (option join). A node without state dials the addresses as a guest and asks whoever is there to be added; who does
** not lead names the leader, which is dialled too. The leader adds it as a learner that is to become a voter
** (node_change.c), dials it, and sends what it lacks: log or snapshot. It asks until a *committed* configuration names it:
** one that is not committed may go again. A crash on either side, at any point, changes nothing of that: the joiner's
** folder keeps its number, incarnation and option join, and asking twice does no harm.
**
** Belonging. The folder keeps `formation=joined` and `joined=…`, the index of the first committed configuration that names this
** incarnation, once the log has that for good. From then on a committed configuration without it means that it was removed. It learns that by that configuration itself, or
** by the refusal of a member, which names the committed configuration that it goes by; such a word counts only if that is
** later than the one this node goes by, and no leader has been heard of for long. What else its log has at that place is then not
** committed, and cannot be. `removed=…` is kept likewise.
**
** Parting. Who is no member any more is dialled a while longer: the core sends it the configuration without it, as well as
** it can. Then it is hung up on, with a refusal that says the same.
**
** Lagging behind. Members that have come since are unknown to a node whose log ends before, and one of them may lead: see
** may_lead.
**
** Addresses. A member that finds another address of its own in the configuration than it has asks the leader to change it. Until
** then, and where no leader can be found, the others go by what it says in its Hello.
*/
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "node_internal.h"

static bool refuse(struct raft_refusal *refusal, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool refuse(struct raft_refusal *refusal, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(refusal->text, sizeof refusal->text, format, arguments);
  va_end(arguments);
  return false;
}

/* ---- Who is it ---- */

bool node_is_in(const struct raft_configuration *configuration, uint64_t id, const struct raft_uuid *incarnation) {
  const struct raft_member *member = raft_configuration_find(configuration, id);
  return member && node_uuid_equal(&member->incarnation, incarnation);
}

bool node_is_alone(const struct node *node, const struct raft_configuration *configuration) {
  uint32_t others = 0;
  bool is_voter = false;
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    const struct raft_member *member = &configuration->members[i];
    if (!(member->roles & (RAFT_VOTER_NEW | RAFT_VOTER_OLD))) continue;
    if (member->id == node->id && node_uuid_equal(&member->incarnation, &node->incarnation))
      is_voter = true;
    else
      others++;
  }
  return is_voter && others == 0;
}

bool node_is_joining(const struct node *node) {
  return options_joins(&node->options) && node->formation == NODE_FRESH && node->removed_index == 0;
}

/* ---- Addresses ---- */

static struct node_learned *find_learned(struct node *node, uint64_t id) {
  for (size_t i = 0; i < node->n_learned; i++)
    if (node->learned[i].id == id) return &node->learned[i];
  return NULL;
}

const char *node_address_of(const struct node *node, uint64_t id) {
  const struct raft_member *member = raft_configuration_find(&node->configuration, id);
  for (size_t i = 0; i < node->n_learned; i++) {
    const struct node_learned *learned = &node->learned[i];
    if (learned->id == id && (!member || node_uuid_equal(&learned->incarnation, &member->incarnation)))
      return learned->address;
  }
  return member ? member->address : "";
}

/* A node says where it is. true: that was not known. */
static bool learn(struct node *node, const struct raft_hello *hello) {
  struct node_learned *learned = find_learned(node, hello->node);
  if (!hello->address[0] || (!learned && strcmp(node_address_of(node, hello->node), hello->address) == 0)) return false;
  if (!learned) {
    if (node->n_learned == NODE_LEARNED_MAX) return false;
    learned = &node->learned[node->n_learned++];
    *learned = (struct node_learned){.id = hello->node};
  }
  if (strcmp(learned->address, hello->address) == 0 && node_uuid_equal(&learned->incarnation, &hello->incarnation))
    return false;
  learned->incarnation = hello->incarnation;
  memcpy(learned->address, hello->address, sizeof learned->address);
  return true;
}

/*
** May it lead this node, though this node's configuration does not have it? Who lags behind does not know members that have come
** since, and one of them may lead: only from it can this node learn that it is a member. So who hears of no leader listens to
** any node of its own cluster. What is said then is the core's matter: votes and acknowledgements count from members only.
*/
static bool may_lead(const struct node *node, uint64_t id) {
  uint64_t silence = 2 * (uint64_t)node->configuration.settings.election_ms * OS_MS;
  return node->role != RAFT_LEADER && (node->leader == id || os_now(node->os) >= node->leader_heard_at + silence);
}

/* The configuration has changed: what it says by now, and who is in it no more, need not be remembered. */
static void review_learned(struct node *node) {
  size_t kept = 0;
  for (size_t i = 0; i < node->n_learned; i++) {
    const struct node_learned *learned = &node->learned[i];
    const struct raft_member *member = raft_configuration_find(&node->configuration, learned->id);
    bool is_news = member ? node_uuid_equal(&member->incarnation, &learned->incarnation) &&
                                strcmp(member->address, learned->address) != 0
                          : node_is_joining(node) || may_lead(node, learned->id);
    if (is_news) node->learned[kept++] = node->learned[i];
  }
  node->n_learned = kept;
}

/* ---- Dialling ---- */

struct wish {
  uint64_t id;
  const char *address;
};

static void wish_for(struct node *node, struct wish *wishes, size_t *n, uint64_t id, const char *address) {
  if (id == node->id || !address[0]) return;
  for (size_t i = 0; i < *n; i++)
    if (wishes[i].id == id) return;
  wishes[(*n)++] = (struct wish){id, address};
}

/* Whom this node wants to talk to. */
static size_t wishes_of(struct node *node, struct wish wishes[NODE_DIALLED_MAX]) {
  const struct raft_configuration *configuration = &node->configuration;
  size_t n = 0;
  if (node->removed_index != 0) return 0;
  for (uint32_t i = 0; i < configuration->n_members; i++)
    wish_for(node, wishes, &n, configuration->members[i].id, node_address_of(node, configuration->members[i].id));
  for (size_t i = 0; i < node->n_learned; i++)
    if (node_is_joining(node) || may_lead(node, node->learned[i].id))
      wish_for(node, wishes, &n, node->learned[i].id, node->learned[i].address);
  for (size_t i = 0; i < node->options.n_peers && configuration->n_members == 0; i++)
    wish_for(node, wishes, &n, node->options.peers[i].id, node->options.peers[i].address);
  return n;
}

static bool is_wished(const struct wish *wishes, size_t n, uint64_t id) {
  for (size_t i = 0; i < n; i++)
    if (wishes[i].id == id) return true;
  return false;
}

static void note_dialled(struct node *node, uint64_t id) {
  for (size_t i = 0; i < node->n_dialled; i++)
    if (node->dialled[i] == id) return;
  if (node->n_dialled < NODE_DIALLED_MAX) node->dialled[node->n_dialled++] = id;
}

/* Those who are dialled and not wished for go when their time is over. */
static void part(struct node *node, const struct wish *wishes, size_t n, bool is_time) {
  size_t kept = 0;
  for (size_t i = 0; i < node->n_dialled; i++) {
    bool stays = !is_time || is_wished(wishes, n, node->dialled[i]);
    if (stays)
      node->dialled[kept++] = node->dialled[i];
    else
      raft_transport_set_peer(node->link, node->dialled[i], NULL);
  }
  node->n_dialled = kept;
}

static void dial(struct node *node, bool is_parting_over) {
  struct wish wishes[NODE_DIALLED_MAX];
  if (!node->link) return;
  size_t n = wishes_of(node, wishes);
  part(node, wishes, n, is_parting_over || node->n_dialled + n > NODE_DIALLED_MAX);
  for (size_t i = 0; i < n; i++) {
    raft_transport_set_peer(node->link, wishes[i].id, wishes[i].address);
    note_dialled(node, wishes[i].id);
  }
}

void node_dial_members(struct node *node) {
  dial(node, false);
}

/* ---- Changes ---- */

void node_members_changed(struct node *node) {
  node_known_changed(node);
  review_learned(node);
  node_dial_members(node);
  node->parting_at = os_now(node->os) + NODE_PARTING;
  node->members_tick_at = 0;
}

/* What has become of this node is to be kept: the apply thread writes it. */
static void keep(struct node *node) {
  node->keep_wanted = true;
  node->keep_at = 0;
  pthread_cond_signal(&node->apply_condition);
}

static void set_removed(struct node *node, uint64_t index) {
  char cluster[NODE_UUID_TEXT];
  if (node->removed_index != 0 || index == 0) return;
  node_uuid_text(&node->configuration.cluster, cluster);
  node->removed_index = index;
  node_say_removed(node);
  node->news_code = SQLITE_WARNING;
  node_say(node->news, "%s", node->removed_text);
  keep(node);
  node_dial_members(node);
  node->parting_at = os_now(node->os) + NODE_PARTING;
  pthread_cond_broadcast(&node->epoch_condition);
  pthread_cond_broadcast(&node->asking_condition);
}

void node_say_removed(struct node *node) {
  char cluster[NODE_UUID_TEXT];
  node_uuid_text(&node->configuration.cluster, cluster);
  node_say(node->removed_text,
           "node %" PRIu64 " was removed from cluster %s (entry %" PRIu64
           "): its data is as of then. To come back move %.200s and %.200s away and open it with join=host:port of a "
           "member",
           node->id, cluster, node->removed_index, node->path, node->folder);
}

void node_removed(struct node *node, uint64_t index) {
  set_removed(node, index);
}

uint32_t node_count_voters(const struct raft_configuration *configuration) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < configuration->n_members; i++) n += (configuration->members[i].roles & RAFT_VOTER_NEW) != 0;
  return n;
}

void node_members_settled(struct node *node, const struct raft_status *status) {
  bool is_in = node_is_in(&node->configuration, node->id, &node->incarnation);
  if (node->settled_index == status->configuration_index || node->configuration.n_members == 0) return;
  /* What a crash may take from the log must not be kept elsewhere: the configuration before would mean that it was removed. */
  if (status->durable_index < status->configuration_index) return;
  node->settled_index = status->configuration_index;
  if (is_in && node->joined_index == 0) {
    if (node->formation == NODE_FRESH) node->formation = NODE_JOINED;
    node->joined_index = status->configuration_index;
    pthread_mutex_lock(&node->facts_mutex);
    node->facts.features = 0;
    pthread_mutex_unlock(&node->facts_mutex);
    keep(node);
  }
  node->left_index = !is_in && node->formation != NODE_FRESH ? status->configuration_index : 0;
  if (is_in && !status->is_joint && node_count_voters(&node->configuration) == 2 && node->news_code == 0) {
    node->news_code = SQLITE_WARNING;
    node_say(node->news, "the cluster has two voters now: it " NODE_TWO_VOTERS_TEXT);
  }
}

/* ---- Meeting ---- */

/* The cluster's settings are the same everywhere; a joiner that asks for others would not get what it asks for. */
bool node_suits(const struct raft_configuration *configuration, const struct raft_hello *hello, char *text,
                size_t size) {
  static const char *const vacuums[] = {"none", "full", "incremental"};
  const struct raft_settings *settings = &configuration->settings;
  char ours[NODE_UUID_TEXT], theirs[NODE_UUID_TEXT];
  node_uuid_text(&configuration->cluster, ours);
  node_uuid_text(&hello->cluster, theirs);
  text[0] = 0;
  if (!node_uuid_is_none(&hello->cluster) && !node_uuid_equal(&hello->cluster, &configuration->cluster))
    snprintf(text, size, "node %" PRIu64 " belongs to cluster %s already, this one is %s", hello->node, theirs, ours);
  else if (hello->election_ms != 0 && hello->election_ms != settings->election_ms)
    snprintf(text, size, "node %" PRIu64 " asks for election=%u, the cluster has %u: leave it out", hello->node,
             hello->election_ms, settings->election_ms);
  else if (hello->page_size != 0 && hello->page_size != settings->page_size)
    snprintf(text, size, "node %" PRIu64 " asks for page_size=%u, the cluster has %u: leave it out", hello->node,
             hello->page_size, settings->page_size);
  else if (hello->auto_vacuum != NODE_AUTO_VACUUM_ANY && hello->auto_vacuum != settings->auto_vacuum)
    snprintf(text, size, "node %" PRIu64 " asks for another auto_vacuum than the cluster has, %s: leave it out",
             hello->node, settings->auto_vacuum < 3 ? vacuums[settings->auto_vacuum] : "a later one");
  else if (!hello->address[0])
    snprintf(text, size, "node %" PRIu64 " has no address where the members could reach it: give it listen=host:port",
             hello->node);
  return text[0] == 0;
}

static bool meet_guest(struct node *node, const struct raft_hello *hello, struct raft_refusal *refusal) {
  if (!(hello->features & NODE_FEATURE_JOINS) || node->configuration.n_members == 0) return true;
  return node_suits(&node->configuration, hello, refusal->text, sizeof refusal->text);
}

/* A refusal by this node's committed configuration: the other one may learn from it that it was removed. */
static void refuse_by_configuration(struct node *node, struct raft_refusal *refusal) {
  struct raft_status status;
  if (node->frozen) return; /* it starts: there may be no core yet */
  raft_get_status(node->raft, &status);
  refusal->is_no_member = status.configuration_committed && !node_is_joining(node);
  refusal->cluster = node->configuration.cluster;
  refusal->index = status.configuration_index;
}

/* This node is a member of a cluster: the other members are met, with the incarnation that it names, and who may lead it. */
static bool meet_member(struct node *node, const struct raft_hello *hello, struct raft_refusal *refusal) {
  char ours[NODE_UUID_TEXT], theirs[NODE_UUID_TEXT];
  const struct raft_configuration *configuration = &node->configuration;
  node_uuid_text(&configuration->cluster, ours);
  node_uuid_text(&hello->cluster, theirs);
  if (!node_uuid_is_none(&hello->cluster) && !node_uuid_equal(&hello->cluster, &configuration->cluster))
    return refuse(refusal,
                  "node %" PRIu64 " is in cluster %s and node %" PRIu64
                  " in cluster %s: one of them has a wrong address or folder. If one of the clusters was begun by "
                  "balsa_recover(), start the nodes of the other one with rebuild=1",
                  node->id, ours, hello->node, theirs);
  const struct raft_member *member = raft_configuration_find(configuration, hello->node);
  if (member && node_uuid_equal(&member->incarnation, &hello->incarnation)) {
    /* It may have moved: it dials us, and we answer where it says it is. */
    if (learn(node, hello)) {
      node_known_changed(node);
      node_dial_members(node);
    }
    return true;
  }
  if (node_uuid_equal(&hello->cluster, &configuration->cluster) && may_lead(node, hello->node)) {
    if (learn(node, hello)) node_dial_members(node);
    return true;
  }
  refuse_by_configuration(node, refusal);
  if (!member && node_uuid_equal(&hello->cluster, &configuration->cluster))
    return refuse(refusal,
                  "node %" PRIu64
                  " is not a member of cluster %s: it was removed, or is not yet added. A node that was "
                  "removed comes back with a fresh folder and join=host:port",
                  hello->node, ours);
  if (!member)
    return refuse(refusal, "node %" PRIu64 " is not a member of cluster %s, to which node %" PRIu64 " belongs",
                  hello->node, ours, node->id);
  refusal->knows_number = true;
  return refuse(refusal,
                "node %" PRIu64
                " came to cluster %s with another folder than it joined with: bring back its folder; one whose "
                "folder is lost joins anew, with a fresh folder and the same peers, or join=host:port",
                hello->node, ours);
}

/* This node is to become a member, and a member of some cluster comes to it. */
static bool meet_cluster(struct node *node, const struct raft_hello *hello, struct raft_refusal *refusal) {
  const struct raft_uuid *ours = &node->configuration.cluster;
  if (node_uuid_is_none(&hello->cluster))
    return refuse(refusal, "node %" PRIu64 " waits to join a cluster, and node %" PRIu64 " belongs to none", node->id,
                  hello->node);
  if (!node_uuid_is_none(ours) && !node_uuid_equal(ours, &hello->cluster))
    return refuse(refusal, "node %" PRIu64 " is about to join another cluster than that of node %" PRIu64, node->id,
                  hello->node);
  if (learn(node, hello)) node_dial_members(node);
  return true;
}

static bool is_peer(const struct node *node, uint64_t id) {
  for (size_t i = 0; i < node->options.n_peers; i++)
    if (node->options.peers[i].id == id) return true;
  return false;
}

/* This node waits for its cluster. */
static bool meet_peer(struct node *node, const struct raft_hello *hello, struct raft_refusal *refusal) {
  bool has_cluster = !node_uuid_is_none(&hello->cluster);
  if (!has_cluster && !is_peer(node, hello->node))
    return refuse(refusal,
                  "node %" PRIu64 " does not have node %" PRIu64 " in its list of peers: give each node the same list",
                  node->id, hello->node);
  if (has_cluster) {
    /*
    ** The cluster was formed and we are in it, else it refuses us. Who sends the log need not be of the list: a member that has
    ** come since may lead by now.
    */
    if (learn(node, hello)) node_dial_members(node);
    snprintf(node->forming_text, sizeof node->forming_text,
             "node %" PRIu64 " has formed the cluster; waiting for its log", hello->node);
    return true;
  }
  if (hello->election_ms != node->facts.election_ms) {
    snprintf(node->forming_text, sizeof node->forming_text,
             "refused: node %" PRIu64 " has election=%u and node %" PRIu64 " election=%u: give each node the same",
             node->id, node->facts.election_ms, hello->node, hello->election_ms);
    return refuse(refusal, "%.600s", node->forming_text + strlen("refused: "));
  }
  struct raft_peer_facts facts = {
      .id = hello->node,
      .incarnation = hello->incarnation,
      .cluster = hello->cluster,
      .peers_hash = hello->peers_hash,
      .has_database = hello->has_database,
      .page_size = hello->page_size,
      .auto_vacuum = hello->auto_vacuum,
  };
  raft_forming_hear(node->forming, &facts);
  node_forming_look(node);
  return true;
}

/* mutex held. */
static bool meet(struct node *node, const struct raft_hello *hello, struct raft_refusal *refusal) {
  if (node->stopping) return refuse(refusal, "node %" PRIu64 " is stopping", node->id);
  if (hello->node == node->id && !node_uuid_equal(&hello->incarnation, &node->incarnation))
    return refuse(refusal, "node %" PRIu64 " exists twice: this one is at %s; give each node a number of its own",
                  node->id, node->options.advertise);
  if (hello->features & RAFT_FEATURE_GUEST) return meet_guest(node, hello, refusal);
  if (hello->node == node->id) return refuse(refusal, "node %" PRIu64 " has dialled itself", node->id);
  if (node->removed_index != 0) return refuse(refusal, "%.600s", node->removed_text);
  if (node_is_joining(node)) return meet_cluster(node, hello, refusal);
  if (node->configuration.n_members > 0) return meet_member(node, hello, refusal);
  if (node->forming) return meet_peer(node, hello, refusal);
  return refuse(refusal, "node %" PRIu64 " is a cluster of one that is just being made", node->id);
}

bool node_meet(void *ctx, const struct raft_hello *hello, struct raft_refusal *refusal) {
  struct node *node = ctx;
  pthread_mutex_lock(&node->mutex);
  bool good = meet(node, hello, refusal);
  if (good) node_transfers_met(node, hello->node);
  pthread_mutex_unlock(&node->mutex);
  return good;
}

bool node_greet(void *ctx, uint32_t contact, const struct raft_hello *hello, struct raft_refusal *refusal) {
  struct node *node = ctx;
  bool good = true;
  pthread_mutex_lock(&node->mutex);
  if (contact >= NODE_CONTACT_COMMAND)
    node_greet_command(node, contact - NODE_CONTACT_COMMAND, hello);
  else if (hello->node == node->id)
    good = refuse(refusal,
                  node_uuid_equal(&hello->incarnation, &node->incarnation)
                      ? "option join of node %" PRIu64 " names its own address, %.200s%.0s"
                      : "node %" PRIu64 " exists twice: at %.200s, and at %.200s where it is to join",
                  node->id, node->options.advertise, hello->address);
  if (!good) node_say(node->join_text, "%s", refusal->text);
  node->members_tick_at = 0; /* there is somebody to ask */
  if (node->link) raft_transport_wake(node->link);
  pthread_mutex_unlock(&node->mutex);
  return good;
}

/* A member of this node's cluster refuses it by a configuration. See the top for when that counts. */
static void hear_refusal(struct node *node, const struct raft_refusal *refusal) {
  uint64_t silence = 2 * (uint64_t)node->configuration.settings.election_ms * OS_MS;
  if (!refusal->is_no_member || node->formation == NODE_FRESH || node->removed_index != 0 || node->frozen) return;
  if (!node_uuid_equal(&refusal->cluster, &node->configuration.cluster)) return;
  if (node->role == RAFT_LEADER || os_now(node->os) < node->leader_heard_at + silence) return;
  bool is_in = node_is_in(&node->configuration, node->id, &node->incarnation);
  uint64_t in_force = 0;
  raft_get_configuration(node->raft, &in_force);
  if (is_in ? refusal->index <= in_force : refusal->index < in_force) return;
  set_removed(node, refusal->index);
  node_drain(node, NULL, 0);
}

void node_refused(void *ctx, uint64_t peer, uint32_t contact, const struct raft_refusal *refusal) {
  struct node *node = ctx;
  pthread_mutex_lock(&node->mutex);
  if (contact >= NODE_CONTACT_COMMAND)
    node_refuse_command(node, contact - NODE_CONTACT_COMMAND, refusal->text);
  else if (contact != 0)
    node_say(node->join_text, "refused: %.700s", refusal->text);
  else
    snprintf(node->refused_text, sizeof node->refused_text, "refused by node %" PRIu64 ": %.600s", peer, refusal->text);
  if (contact == 0) hear_refusal(node, refusal);
  if (contact == 0 && refusal->knows_number) node_want_return(node);
  pthread_mutex_unlock(&node->mutex);
}

/* ---- Joining ---- */

/* Says what stands in the way while nobody can be asked. */
static void say_nobody(struct node *node, uint64_t now) {
  char list[OPTIONS_JOIN_MAX * 64] = "";
  size_t length = 0;
  for (size_t i = 0; i < node->options.n_join && length + 64 < sizeof list; i++)
    length += (size_t)snprintf(list + length, sizeof list - length, "%s%.58s", i ? ", " : "", node->options.join[i]);
  if (strncmp(node->join_text, "refused", 7) == 0 && now < node->join_heard_at + NODE_JOIN_PATIENCE) return;
  if (now < node->join_heard_at + NODE_JOIN_PATIENCE) return;
  node_say(node->join_text,
           "nobody answers at %s: is a node there? (One that was opened without option listen cannot be joined)", list);
}

static void ask_to_join(struct node *node, uint64_t now) {
  if (node->join_context == 0) node->join_context = ++node->request_context;
  struct raft_request request = {
      .kind = NODE_REQUEST_JOIN,
      .context = node->join_context, /* one and the same: the leader has it once in its table */
      .node = node->id,
      .incarnation = node->incarnation,
      .wait_ms = NODE_JOIN_WAIT_MS,
  };
  memcpy(request.address, node->options.advertise, sizeof request.address);
  for (uint32_t i = 0; i < node->options.n_join; i++)
    raft_transport_set_contact(node->link, NODE_CONTACT_JOIN + i, node->options.join[i]);
  /* Whom the last one named as the leader goes first, then one after the other. */
  bool is_asked = raft_transport_request_contact(node->link, NODE_CONTACT_LEADER, &request);
  for (size_t i = 0; i < node->options.n_join && !is_asked; i++) {
    uint32_t next = node->join_next++ % (uint32_t)node->options.n_join;
    is_asked = raft_transport_request_contact(node->link, NODE_CONTACT_JOIN + next, &request);
  }
  if (!is_asked) say_nobody(node, now);
}

static void end_contacts(struct node *node) {
  raft_transport_set_contact(node->link, NODE_CONTACT_LEADER, NULL);
  for (uint32_t i = 0; i < OPTIONS_JOIN_MAX; i++) raft_transport_set_contact(node->link, NODE_CONTACT_JOIN + i, NULL);
  node->join_context = 0;
  node->join_text[0] = 0;
}

static void hear_about_joining(struct node *node, const struct raft_request *reply) {
  node->join_heard_at = os_now(node->os);
  switch (reply->status) {
  case NODE_REPLY_OK:
  case NODE_REPLY_ALREADY:
    node_say(node->join_text, "node %" PRIu64 " has added this node: waiting for its log", reply->from);
    break;
  case NODE_REPLY_NOT_LEADER:
    raft_transport_set_contact(node->link, NODE_CONTACT_LEADER, reply->address[0] ? reply->address : NULL);
    node_say(node->join_text, "asked node %" PRIu64 ": %.600s", reply->from, reply->text);
    break;
  case NODE_REPLY_LATER: node_say(node->join_text, "asked node %" PRIu64 ": %.600s", reply->from, reply->text); break;
  default:
    raft_transport_set_contact(node->link, NODE_CONTACT_LEADER, NULL);
    node_say(node->join_text, "refused by node %" PRIu64 ": %.600s", reply->from, reply->text);
    break;
  }
}

/* ---- The own address ---- */

static void ask_for_address(struct node *node) {
  const struct raft_member *self = raft_configuration_find(&node->configuration, node->id);
  if (node->address_context == 0) node->address_context = ++node->request_context;
  struct raft_request request = {
      .kind = NODE_REQUEST_ADDRESS,
      .context = node->address_context,
      .node = node->id,
      .incarnation = node->incarnation,
      .wait_ms = NODE_JOIN_WAIT_MS,
  };
  if (!self || !node_uuid_equal(&self->incarnation, &node->incarnation) || !node->options.advertise[0] ||
      strcmp(self->address, node->options.advertise) == 0 || node->removed_index != 0)
    return;
  memcpy(request.address, node->options.advertise, sizeof request.address);
  node_send_command(node, &request);
}

/* ---- What comes by itself ---- */

void node_hear_reply(struct node *node, const struct raft_request *reply) {
  if (reply->context == node->join_context && node->join_context != 0 && node_is_joining(node) && node->link)
    hear_about_joining(node, reply);
  if (reply->context == node->address_context && reply->status == NODE_REPLY_REFUSED) {
    node->news_code = SQLITE_WARNING;
    node_say(node->news, "this node's address does not become %s: %s", node->options.advertise, reply->text);
  }
}

/* A leader speaks to members only: where one does, a later entry has this node in again, as who asks to join twice may see. */
static void look_whether_removed(struct node *node, uint64_t now) {
  uint64_t silence = 2 * (uint64_t)node->configuration.settings.election_ms * OS_MS;
  if (node->left_index == 0 || now < node->leader_heard_at + silence) return;
  set_removed(node, node->left_index);
  node->left_index = 0;
  node_drain(node, NULL, 0);
}

void node_members_tick(struct node *node) {
  uint64_t now = os_now(node->os);
  if (!node->link || node->frozen) return;
  look_whether_removed(node, now);
  if (node->parting_at != 0 && now >= node->parting_at) {
    node->parting_at = 0;
    dial(node, true);
    raft_transport_review(node->link);
  }
  if (now >= node->members_tick_at) {
    node->members_tick_at = now + NODE_JOIN_PACE;
    if (node_is_joining(node) && node->options.n_join > 0)
      ask_to_join(node, now);
    else if (node->join_context != 0)
      end_contacts(node);
    ask_for_address(node);
  }
  raft_transport_wake_at(node->link, node->members_tick_at);
  if (node->parting_at != 0) raft_transport_wake_at(node->link, node->parting_at);
}

void node_describe_joining(const struct node *node, char text[VFS_TEXT_MAX]) {
  if (node->configuration.n_members > 0)
    node_say(text, "joining: has the log through entry %" PRIu64 "%s%.500s", node->last_index,
             node->join_text[0] ? "; " : "", node->join_text);
  else if (node->receiving_index != 0)
    node_say(text, "joining: receiving a snapshot, %u %%", node->receiving_percent);
  else if (node->options.waits)
    node_say(text, "joining: waits until SELECT balsa_add(%" PRIu64 ", '%s') on a member names it", node->id,
             node->options.advertise);
  else
    node_say(text, "joining: %.700s", node->join_text[0] ? node->join_text : "asking to be added");
}
