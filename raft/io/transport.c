/*
** The transport of a process: its loop thread, the nodes on it, their listeners, and whom they dial.
**
** Threads. All libuv handles belong to the loop thread. Other threads only change what is guarded by a mutex and
** send the loop's uv_async_t; the loop then makes everything so (tend_node). The one thing that other threads do
** themselves is writing to a socket (connection.h).
**
** Locks, in this order: transport_mutex (there is one transport, counted), transport->mutex (the list of nodes,
** detaching), node->mutex (peers, all that goes out). No callback of a node is called with any of them held.
**
** A peer that is dialled goes
**
**   IDLE → RESOLVING → CONNECTING → GREETING → READY
**             `-----------`------------`--------´--→ WAITING (back-off) → …
**
** Back-off begins at BACKOFF_FIRST_MS and doubles up to BACKOFF_MAX_MS, each time by a random part longer. A peer
** that says Hello to us is up: what waits for it is dialled at once.
**
** A contact is dialled likewise, but as a guest: whoever is at the address is greeted, and requests alone are sent.
**
** A forked child has none of this: no thread, and its copies of the sockets are closed (socket.c). It must not
** use what it inherited, not even to free it; raft_transport_get gives it a transport of its own.
*/
#include "transport.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "connection.h"
#include "socket.h"

#define BACKOFF_FIRST_MS 10u
#define BACKOFF_MAX_MS 500u
#define REFUSED_RETRY_MS 500u
#define CONNECT_TIMEOUT_MS 1000u
#define HELLO_TIMEOUT_MS 2000u
#define PARTING_MS 1000u     /* for a refusal to be read */
#define DRAIN_MS 100u        /* for what is queued, when a node is detached */
#define STRANGERS_MAX 64     /* connections that have not said Hello */
#define GUESTS_MAX 64        /* connections of guests */
#define ACCEPT_PAUSE_MS 100u /* when there are no more descriptors */

enum peer_state { PEER_IDLE, PEER_RESOLVING, PEER_CONNECTING, PEER_GREETING, PEER_READY, PEER_WAITING };

/* A name that is being looked up; outlives its peer if need be. */
struct lookup {
  uv_getaddrinfo_t request;
  struct peer *peer; /* NULL: nobody wants to know any more */
};

struct peer {
  struct peer *next;
  struct raft_transport_node *node;
  uint64_t id;                   /* 0: a contact */
  uint32_t contact;              /* its number */
  char wanted[RAFT_ADDRESS_MAX]; /* node->mutex; "": stop and forget */
  bool changed;                  /* node->mutex: wanted is not yet acted on */
  bool ready;                    /* node->mutex: connection may be sent on */
  bool is_heard;                 /* node->mutex: it has dialled us */
  struct connection *connection; /* written by the loop thread with node->mutex held */

  /* Loop thread */
  char address[RAFT_ADDRESS_MAX];
  enum peer_state state;
  uv_timer_t timer;
  bool has_timer, refused;
  uint32_t backoff_ms;
  struct lookup *lookup;
  unsigned attempts; /* chooses among the addresses of a name */
};

/* A reply on its way to the loop thread, which knows the connections that were accepted. */
struct reply {
  struct reply *next;
  struct raft_request request;
};

enum node_state { NODE_ATTACHED, NODE_DRAINING, NODE_CLOSING, NODE_GONE };

struct raft_transport_node {
  struct raft_transport *transport;
  struct raft_transport_node *next; /* transport->mutex; the loop alone removes */
  const struct raft_transport_methods *methods;
  void *ctx;
  char address[RAFT_ADDRESS_MAX];
  bool detaching;        /* transport->mutex */
  enum node_state state; /* transport->mutex to write; the loop alone writes */

  pthread_mutex_t mutex;
  struct peer *peers;
  uint64_t wake_time; /* 0: none */
  struct reply *replies, *last_reply;
  size_t n_replies;
  atomic_bool wake_asked, review_asked;

  /* Loop thread */
  bool has_handles, listening;
  int listener_descriptor; /* -1: none */
  uv_poll_t listener;
  uv_timer_t timer, accept_timer, drain_timer;
  uint64_t armed_time;
  int n_handles;
  struct connection *incoming;
  unsigned n_strangers;
};

struct raft_transport {
  struct os *os;
  unsigned references; /* transport_mutex */
  uv_loop_t loop;
  uv_async_t async;
  uv_prepare_t prepare;
  struct os_thread *thread;
  pthread_t self;
  atomic_bool running, asked;
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  struct raft_transport_node *nodes;
  bool stopping;
  unsigned n_lookups; /* loop thread */
};

static pthread_mutex_t transport_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct raft_transport *the_transport;

static void peer_dial(struct peer *peer);
static const struct connection_owner dialled_owner, accepted_owner;

/* ---- Small things ---- */

static bool on_loop(const struct raft_transport *transport) {
  return atomic_load(&transport->running) && pthread_equal(pthread_self(), transport->self);
}

/* Has the loop look after everything. Any thread; many calls make one wake-up. */
static void ask(struct raft_transport *transport) {
  if (!atomic_exchange(&transport->asked, true)) uv_async_send(&transport->async);
}

static bool is_calling(const struct raft_transport_node *node) {
  return node->state == NODE_ATTACHED;
}

static void node_handle_closed(uv_handle_t *handle) {
  struct raft_transport_node *node = handle->data;
  node->n_handles--;
}

static uint32_t jitter(struct raft_transport *transport, uint32_t ms) {
  uint32_t random;
  os_random(transport->os, &random, sizeof random);
  return ms + random % (ms / 2 + 1);
}

static struct raft_hello say_hello(struct raft_transport_node *node) {
  struct raft_hello hello = {0};
  node->methods->hello(node->ctx, &hello);
  hello.protocol_lowest = RAFT_PROTOCOL_LOWEST;
  hello.protocol_highest = RAFT_PROTOCOL_HIGHEST;
  return hello;
}

static void send_hello(struct raft_transport_node *node, struct connection *connection, bool as_guest) {
  uint8_t bytes[WIRE_GREETING_MAX];
  struct raft_hello hello = say_hello(node);
  if (as_guest) hello.features |= RAFT_FEATURE_GUEST;
  uint32_t length = wire_encode_hello(&hello, bytes);
  pthread_mutex_lock(&node->mutex);
  if (!connection_queue_bytes(connection, bytes, length)) connection->error = -ENOMEM;
  pthread_mutex_unlock(&node->mutex);
}

static void send_refusal(struct raft_transport_node *node, struct connection *connection,
                         const struct raft_refusal *refusal) {
  uint8_t bytes[WIRE_GREETING_MAX];
  uint32_t length = wire_encode_refusal(refusal, bytes);
  pthread_mutex_lock(&node->mutex);
  if (!connection_queue_bytes(connection, bytes, length)) connection->error = -ENOMEM;
  connection_pump(connection);
  pthread_mutex_unlock(&node->mutex);
}

static bool is_guest(const struct raft_hello *hello) {
  return (hello->features & RAFT_FEATURE_GUEST) != 0;
}

/* What both sides check before they ask the node itself. `peer`: the contact that was dialled, else NULL. */
static bool is_welcome(struct raft_transport_node *node, const struct peer *peer, const struct raft_hello *hello,
                       struct raft_refusal *refusal) {
  bool is_contact = peer && peer->id == 0;
  *refusal = (struct raft_refusal){0};
  if (hello->protocol_lowest > RAFT_PROTOCOL_HIGHEST || hello->protocol_highest < RAFT_PROTOCOL_LOWEST) {
    snprintf(refusal->text, sizeof refusal->text,
             "node %" PRIu64 " speaks protocols %u to %u, this node %u to %u: upgrade the older of the two",
             hello->node, hello->protocol_lowest, hello->protocol_highest, RAFT_PROTOCOL_LOWEST, RAFT_PROTOCOL_HIGHEST);
    return false;
  }
  if (is_contact ? node->methods->greet(node->ctx, peer->contact, hello, refusal)
                 : node->methods->meet(node->ctx, hello, refusal))
    return true;
  if (refusal->text[0] == 0)
    snprintf(refusal->text, sizeof refusal->text, "node %" PRIu64 " is not welcome here", hello->node);
  return false;
}

/* A request, or a reply to one, that came on `connection`. false: it is none. */
static bool hear_request(struct raft_transport_node *node, const struct connection *connection, bool is_reply,
                         const uint8_t *frame, uint32_t length) {
  struct raft_request request;
  if (wire_decode_request(frame, length, &request) != RAFT_OK || request.is_reply != is_reply) return false;
  request.from = connection->hello.node;
  request.from_incarnation = connection->hello.incarnation;
  if (is_calling(node)) node->methods->request(node->ctx, &request);
  return true;
}

/* ---- Dialled connections ---- */

static void on_backoff_over(uv_timer_t *timer) {
  peer_dial(timer->data);
}

/* Drops the connection and what is queued on it. */
static void peer_hang_up(struct peer *peer) {
  struct connection *connection = peer->connection;
  pthread_mutex_lock(&peer->node->mutex);
  peer->connection = NULL;
  peer->ready = false;
  pthread_mutex_unlock(&peer->node->mutex);
  if (connection) connection_close(connection);
  if (peer->lookup) peer->lookup->peer = NULL;
  peer->lookup = NULL;
  peer->state = PEER_IDLE;
}

static void peer_wait(struct peer *peer, uint32_t ms) {
  peer_hang_up(peer);
  peer->state = PEER_WAITING;
  uv_update_time(&peer->node->transport->loop);
  uv_timer_start(&peer->timer, on_backoff_over, jitter(peer->node->transport, ms), 0);
}

static void peer_failed(struct peer *peer) {
  uint32_t ms = peer->backoff_ms;
  peer->backoff_ms = 2 * ms < BACKOFF_MAX_MS ? 2 * ms : BACKOFF_MAX_MS;
  peer_wait(peer, ms);
}

static void dialled_connected(struct connection *connection) {
  struct peer *peer = connection->context;
  if (socket_error(connection->descriptor) != 0 || !is_calling(peer->node)) {
    peer_failed(peer);
    return;
  }
  peer->state = PEER_GREETING;
  connection_set_deadline(connection, HELLO_TIMEOUT_MS);
  send_hello(peer->node, connection, peer->id == 0);
  connection_tend(connection);
}

static void peer_ready(struct peer *peer, const struct raft_hello *hello) {
  struct connection *connection = peer->connection;
  connection_set_deadline(connection, 0);
  connection->hello = *hello;
  connection->met = true;
  connection->frame_limit = RAFT_REQUEST_MAX;
  peer->backoff_ms = BACKOFF_FIRST_MS;
  peer->refused = false;
  pthread_mutex_lock(&peer->node->mutex);
  peer->state = PEER_READY;
  peer->ready = true;
  pthread_mutex_unlock(&peer->node->mutex);
}

/* The refusal goes out if the socket takes it, as it does on a connection that has just been made. */
static void peer_refuse(struct peer *peer, const struct raft_refusal *refusal) {
  send_refusal(peer->node, peer->connection, refusal);
  peer->refused = true;
  peer_wait(peer, REFUSED_RETRY_MS);
}

static void dialled_hello(struct peer *peer, const struct raft_hello *hello) {
  struct raft_refusal refusal = {0};
  if (peer->id != 0 && hello->node != peer->id) {
    snprintf(refusal.text, sizeof refusal.text,
             "%.280s was given as the address of node %" PRIu64 ", but node %" PRIu64 " is there", peer->address,
             peer->id, hello->node);
    peer_refuse(peer, &refusal);
  } else if (is_welcome(peer->node, peer, hello, &refusal)) {
    peer_ready(peer, hello);
  } else {
    peer_refuse(peer, &refusal);
  }
}

static void dialled_frame(struct connection *connection, enum wire_type type, const uint8_t *frame, uint32_t length) {
  struct peer *peer = connection->context;
  struct raft_hello hello;
  struct raft_refusal refusal;
  if (type == WIRE_REFUSAL && wire_decode_refusal(frame, length, &refusal) == RAFT_OK) {
    if (is_calling(peer->node)) peer->node->methods->refused(peer->node->ctx, peer->id, peer->contact, &refusal);
    peer->refused = true;
    peer_wait(peer, REFUSED_RETRY_MS);
  } else if (type == WIRE_HELLO && peer->state == PEER_GREETING && is_calling(peer->node) &&
             wire_decode_hello(frame, length, &hello) == RAFT_OK) {
    dialled_hello(peer, &hello);
  } else if (type != WIRE_REQUEST || peer->state != PEER_READY ||
             !hear_request(peer->node, connection, true, frame, length)) {
    peer_failed(peer);
  }
}

static void dialled_broken(struct connection *connection, int error) {
  struct peer *peer = connection->context;
  (void)error;
  peer_failed(peer);
}

static void dialled_late(struct connection *connection) {
  peer_failed(connection->context);
}

static const struct connection_owner dialled_owner = {
    .connected = dialled_connected, .frame = dialled_frame, .broken = dialled_broken, .late = dialled_late};

static void peer_connect(struct peer *peer, const struct sockaddr *address, socklen_t size) {
  int descriptor = socket_connect(address, size);
  struct connection *connection = NULL;
  if (descriptor >= 0)
    connection = connection_new(&peer->node->transport->loop, descriptor, true, &peer->node->mutex, &dialled_owner,
                                peer);
  if (connection == NULL) {
    peer_failed(peer);
    return;
  }
  pthread_mutex_lock(&peer->node->mutex);
  peer->connection = connection;
  pthread_mutex_unlock(&peer->node->mutex);
  peer->state = PEER_CONNECTING;
  connection_set_deadline(connection, CONNECT_TIMEOUT_MS);
}

static void on_lookup(uv_getaddrinfo_t *request, int status, struct addrinfo *infos) {
  struct lookup *lookup = request->data;
  struct peer *peer = lookup->peer;
  struct raft_transport *transport = request->loop->data;
  transport->n_lookups--;
  if (peer) peer->lookup = NULL;
  if (peer && (status != 0 || infos == NULL)) peer_failed(peer);
  if (peer && status == 0 && infos) {
    unsigned n = 0;
    for (const struct addrinfo *info = infos; info; info = info->ai_next) n++;
    const struct addrinfo *chosen = infos;
    for (unsigned i = peer->attempts++ % n; i > 0; i--) chosen = chosen->ai_next;
    peer_connect(peer, chosen->ai_addr, chosen->ai_addrlen);
  }
  if (infos) uv_freeaddrinfo(infos);
  free(lookup);
}

static void peer_look_up(struct peer *peer, const struct socket_name *name) {
  const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
  struct raft_transport *transport = peer->node->transport;
  struct lookup *lookup = calloc(1, sizeof *lookup);
  if (lookup == NULL) {
    peer_failed(peer);
    return;
  }
  lookup->peer = peer;
  lookup->request.data = lookup;
  if (uv_getaddrinfo(&transport->loop, &lookup->request, on_lookup, name->host, name->port, &hints) != 0) {
    free(lookup);
    peer_failed(peer);
    return;
  }
  transport->n_lookups++;
  peer->lookup = lookup;
  peer->state = PEER_RESOLVING;
}

static void peer_dial(struct peer *peer) {
  char text[RAFT_TRANSPORT_TEXT_MAX];
  struct socket_name name;
  struct sockaddr_in v4;
  struct sockaddr_in6 v6;
  peer_hang_up(peer);
  uv_timer_stop(&peer->timer);
  uv_update_time(&peer->node->transport->loop);
  if (!socket_name_parse(peer->address, &name, text, sizeof text)) {
    peer_failed(peer); /* raft_transport_set_peer refused it: cannot be */
    return;
  }
  if (uv_ip4_addr(name.host, name.number, &v4) == 0)
    peer_connect(peer, (struct sockaddr *)&v4, sizeof v4);
  else if (uv_ip6_addr(name.host, name.number, &v6) == 0)
    peer_connect(peer, (struct sockaddr *)&v6, sizeof v6);
  else
    peer_look_up(peer, &name);
}

/* ---- Accepted connections ---- */

/* For the loop thread to walk along: others add in front, and the loop alone removes. */
static struct peer *first_peer(struct raft_transport_node *node) {
  pthread_mutex_lock(&node->mutex);
  struct peer *peer = node->peers;
  pthread_mutex_unlock(&node->mutex);
  return peer;
}

/* node->mutex held. */
static struct peer *find_dialled(struct raft_transport_node *node, uint64_t id, uint32_t contact) {
  struct peer *peer = node->peers;
  while (peer && (peer->id != id || peer->contact != contact)) peer = peer->next;
  return peer;
}

/* node->mutex held. */
static struct peer *find_peer(struct raft_transport_node *node, uint64_t id) {
  return id == 0 ? NULL : find_dialled(node, id, 0);
}

/* After `connection` came or went: is a peer heard? */
static void note_heard(struct raft_transport_node *node, uint64_t id) {
  bool is_heard = false;
  for (struct connection *c = node->incoming; c; c = c->next)
    is_heard |= c->met && !is_guest(&c->hello) && c->hello.node == id;
  pthread_mutex_lock(&node->mutex);
  struct peer *peer = find_peer(node, id);
  if (peer) peer->is_heard = is_heard;
  pthread_mutex_unlock(&node->mutex);
}

static void accepted_close(struct connection *connection) {
  struct raft_transport_node *node = connection->context;
  struct connection **link = &node->incoming;
  while (*link && *link != connection) link = &(*link)->next;
  if (*link) *link = connection->next;
  if (!connection->met) node->n_strangers--;
  connection_close(connection);
  if (connection->met) note_heard(node, connection->hello.node);
}

/* The sentence is sent and read before the connection goes: the other side hangs up, or its time is over. */
static void accepted_refuse(struct connection *connection, const struct raft_refusal *refusal) {
  struct raft_transport_node *node = connection->context;
  connection->frame_limit = 0; /* nothing more is listened to */
  send_refusal(node, connection, refusal);
  connection_set_deadline(connection, PARTING_MS);
  connection_tend(connection);
}

/* A node has one connection to us, and one as a guest: an older one is of an earlier life, or was lost on its way. */
static void close_older(struct raft_transport_node *node, const struct connection *newer) {
  struct connection *next;
  for (struct connection *c = node->incoming; c; c = next) {
    next = c->next;
    if (c != newer && c->met && c->hello.node == newer->hello.node && is_guest(&c->hello) == is_guest(&newer->hello))
      accepted_close(c);
  }
}

static bool has_room_for(const struct raft_transport_node *node, const struct raft_hello *hello,
                         struct raft_refusal *refusal) {
  unsigned n = 0;
  for (const struct connection *c = node->incoming; c; c = c->next) n += c->met && is_guest(&c->hello);
  if (!is_guest(hello) || n < GUESTS_MAX) return true;
  *refusal = (struct raft_refusal){.text = "too many nodes that are no members ask something here: try again later"};
  return false;
}

static void accepted_hello(struct connection *connection, const struct raft_hello *hello) {
  struct raft_transport_node *node = connection->context;
  struct raft_refusal refusal;
  if (!has_room_for(node, hello, &refusal) || !is_welcome(node, NULL, hello, &refusal)) {
    accepted_refuse(connection, &refusal);
    return;
  }
  connection->hello = *hello;
  connection->met = true;
  connection->frame_limit = is_guest(hello) ? RAFT_REQUEST_MAX : RAFT_FRAME_MAX;
  node->n_strangers--;
  connection_set_deadline(connection, 0);
  close_older(node, connection);
  send_hello(node, connection, false);
  note_heard(node, hello->node);
  struct peer *peer = first_peer(node);
  while (peer && (peer->id == 0 || peer->id != hello->node)) peer = peer->next;
  if (peer && peer->state == PEER_WAITING && !peer->refused) peer_dial(peer);
  connection_tend(connection);
}

/* A whole message: decodes it and hands it over. */
static void accepted_message(struct connection *connection, const uint8_t *frame, uint32_t length) {
  struct raft_transport_node *node = connection->context;
  struct raft_message message;
  struct raft_entry *entries = NULL;
  struct raft_entry_meta *metas = NULL;
  int error = wire_decode_message(frame, length, &message);
  uint32_t n_payloads = wire_payloads(&message);
  size_t n = n_payloads ? n_payloads : 1;
  if (error == RAFT_OK) {
    entries = malloc(n * sizeof *entries);
    metas = malloc(n * sizeof *metas);
    error = entries && metas ? wire_decode_entries(frame, length, &message, entries, metas) : RAFT_NO_MEMORY;
  }
  if (error == RAFT_OK) {
    message.from = connection->hello.node;
    message.from_incarnation = connection->hello.incarnation;
    message.entries = message.n_entries ? metas : NULL;
    if (is_calling(node)) node->methods->receive(node->ctx, &message, n_payloads ? entries : NULL);
    for (uint32_t i = 0; i < n_payloads; i++) raft_payload_unref(entries[i].payload);
  }
  free(entries);
  free(metas);
  if (error == RAFT_INVALID) accepted_close(connection); /* damaged on its way: the peer dials again. No memory: lost */
}

static void accepted_frame(struct connection *connection, enum wire_type type, const uint8_t *frame, uint32_t length) {
  struct raft_transport_node *node = connection->context;
  struct raft_hello hello;
  struct raft_refusal refusal;
  if (connection->met && type == WIRE_MESSAGE && !is_guest(&connection->hello)) {
    accepted_message(connection, frame, length);
  } else if (connection->met && type == WIRE_REQUEST) {
    if (!hear_request(node, connection, false, frame, length)) accepted_close(connection);
  } else if (!connection->met && type == WIRE_HELLO && is_calling(node) &&
             wire_decode_hello(frame, length, &hello) == RAFT_OK) {
    accepted_hello(connection, &hello);
  } else if (connection->met && type == WIRE_REFUSAL && wire_decode_refusal(frame, length, &refusal) == RAFT_OK) {
    if (is_calling(node)) node->methods->refused(node->ctx, connection->hello.node, 0, &refusal);
    accepted_close(connection);
  } else {
    accepted_close(connection);
  }
}

static void accepted_broken(struct connection *connection, int error) {
  if (error == -EPROTO && !connection->met && connection->frame_limit) {
    accepted_refuse(connection, &(struct raft_refusal){.text = "this is a Balsa node, and that was no Hello of one"});
    return;
  }
  accepted_close(connection);
}

static void accepted_late(struct connection *connection) {
  accepted_close(connection);
}

static const struct connection_owner accepted_owner = {
    .frame = accepted_frame, .broken = accepted_broken, .late = accepted_late};

/* ---- Listening ---- */

static void on_listener(uv_poll_t *poll, int status, int events);

static void on_accept_pause_over(uv_timer_t *timer) {
  struct raft_transport_node *node = timer->data;
  if (node->listening) uv_poll_start(&node->listener, UV_READABLE, on_listener);
}

static void take_in(struct raft_transport_node *node, int descriptor) {
  if (node->n_strangers >= STRANGERS_MAX) {
    socket_close(descriptor);
    return;
  }
  struct connection *connection = connection_new(&node->transport->loop, descriptor, false, &node->mutex,
                                                 &accepted_owner, node);
  if (connection == NULL) return;
  connection->next = node->incoming;
  node->incoming = connection;
  node->n_strangers++;
  uv_update_time(&node->transport->loop);
  connection_set_deadline(connection, HELLO_TIMEOUT_MS);
}

static void on_listener(uv_poll_t *poll, int status, int events) {
  struct raft_transport_node *node = poll->data;
  (void)status, (void)events;
  for (int i = 0; i < STRANGERS_MAX; i++) {
    int descriptor = socket_accept(node->listener_descriptor);
    if (descriptor == -EAGAIN) return;
    if (descriptor < 0) {
      /* Out of descriptors or memory: the waiting connection would call us again and again. */
      uv_poll_stop(&node->listener);
      uv_timer_start(&node->accept_timer, on_accept_pause_over, ACCEPT_PAUSE_MS, 0);
      return;
    }
    take_in(node, descriptor);
  }
}

static void stop_listening(struct raft_transport_node *node) {
  if (!node->listening) return;
  node->listening = false;
  uv_close((uv_handle_t *)&node->listener, node_handle_closed);
  socket_close(node->listener_descriptor);
  node->listener_descriptor = -1;
}

/* ---- Waking ---- */

static void arm(struct raft_transport_node *node);

static void wake_if_due(struct raft_transport_node *node) {
  bool due = atomic_exchange(&node->wake_asked, false);
  pthread_mutex_lock(&node->mutex);
  if (node->wake_time && os_now(node->transport->os) >= node->wake_time) {
    node->wake_time = 0;
    due = true;
  }
  pthread_mutex_unlock(&node->mutex);
  if (due && is_calling(node)) node->methods->wake(node->ctx);
}

static void on_node_timer(uv_timer_t *timer) {
  struct raft_transport_node *node = timer->data;
  node->armed_time = 0;
  wake_if_due(node);
  arm(node);
}

/* Sets the timer for wake_time. libuv counts milliseconds: round up, so that it is not early. */
static void arm(struct raft_transport_node *node) {
  pthread_mutex_lock(&node->mutex);
  uint64_t time = node->wake_time;
  pthread_mutex_unlock(&node->mutex);
  if (time == node->armed_time) return;
  node->armed_time = time;
  if (time == 0) {
    uv_timer_stop(&node->timer);
    return;
  }
  uint64_t now = os_now(node->transport->os);
  uv_update_time(&node->transport->loop);
  uv_timer_start(&node->timer, on_node_timer, time > now ? (time - now + OS_MS - 1) / OS_MS : 0, 0);
}

/* ---- The loop makes it so ---- */

static void on_peer_closed(uv_handle_t *handle) {
  struct peer *peer = handle->data;
  peer->node->n_handles--;
  free(peer);
}

/* node->mutex held. */
static void peer_unlink(struct peer *peer) {
  struct peer **link = &peer->node->peers;
  while (*link != peer) link = &(*link)->next;
  *link = peer->next;
}

/* Of a peer that is on no list any more. */
static void peer_free(struct peer *peer) {
  peer_hang_up(peer);
  if (peer->has_timer)
    uv_close((uv_handle_t *)&peer->timer, on_peer_closed);
  else
    free(peer);
}

/* Acts on a changed address. */
static void tend_peer(struct peer *peer) {
  struct raft_transport_node *node = peer->node;
  pthread_mutex_lock(&node->mutex);
  bool changed = peer->changed, forget = peer->wanted[0] == 0;
  peer->changed = false;
  if (changed) memcpy(peer->address, peer->wanted, sizeof peer->address);
  if (changed && forget) peer_unlink(peer);
  pthread_mutex_unlock(&node->mutex);
  if (!changed) return;
  if (forget) {
    peer_free(peer);
    return;
  }
  if (!peer->has_timer) {
    uv_timer_init(&node->transport->loop, &peer->timer);
    peer->timer.data = peer;
    peer->has_timer = true;
    node->n_handles++;
  }
  peer->backoff_ms = BACKOFF_FIRST_MS;
  peer->refused = false;
  note_heard(node, peer->id);
  peer_dial(peer);
}

static void open_handles(struct raft_transport_node *node) {
  uv_loop_t *loop = &node->transport->loop;
  uv_timer_init(loop, &node->timer);
  uv_timer_init(loop, &node->accept_timer);
  uv_timer_init(loop, &node->drain_timer);
  node->timer.data = node->accept_timer.data = node->drain_timer.data = node->listener.data = node;
  node->n_handles += 3;
  node->has_handles = true;
  if (node->listener_descriptor < 0 || uv_poll_init(loop, &node->listener, node->listener_descriptor) != 0) return;
  node->n_handles++;
  node->listening = true;
  uv_poll_start(&node->listener, UV_READABLE, on_listener);
}

static void on_drain_over(uv_timer_t *timer) {
  (void)timer; /* the loop goes round, and finds drain_timer not active */
}

static bool is_drained(struct raft_transport_node *node) {
  bool drained = true;
  pthread_mutex_lock(&node->mutex);
  for (struct peer *peer = node->peers; peer; peer = peer->next)
    if (peer->ready && peer->connection->queued_bytes > 0) drained = false;
  pthread_mutex_unlock(&node->mutex);
  return drained || !uv_is_active((uv_handle_t *)&node->drain_timer);
}

static void set_state(struct raft_transport_node *node, enum node_state state) {
  pthread_mutex_lock(&node->transport->mutex);
  node->state = state;
  if (state == NODE_GONE) {
    struct raft_transport_node **link = &node->transport->nodes;
    while (*link != node) link = &(*link)->next;
    *link = node->next;
    pthread_cond_broadcast(&node->transport->changed);
  }
  pthread_mutex_unlock(&node->transport->mutex);
}

static void close_node(struct raft_transport_node *node) {
  struct peer *peer;
  while (node->incoming) accepted_close(node->incoming);
  while ((peer = first_peer(node))) {
    pthread_mutex_lock(&node->mutex);
    peer_unlink(peer);
    pthread_mutex_unlock(&node->mutex);
    peer_free(peer);
  }
  uv_close((uv_handle_t *)&node->timer, node_handle_closed);
  uv_close((uv_handle_t *)&node->accept_timer, node_handle_closed);
  uv_close((uv_handle_t *)&node->drain_timer, node_handle_closed);
  set_state(node, NODE_CLOSING);
}

/* Detaching, step by step: drain, close, gone. */
static void leave(struct raft_transport_node *node) {
  if (node->state == NODE_ATTACHED) {
    stop_listening(node);
    uv_update_time(&node->transport->loop);
    uv_timer_start(&node->drain_timer, on_drain_over, DRAIN_MS, 0);
    set_state(node, NODE_DRAINING);
  }
  if (node->state == NODE_DRAINING && is_drained(node)) close_node(node);
  if (node->state == NODE_CLOSING && node->n_handles == 0) set_state(node, NODE_GONE); /* may be freed now */
}

/* Everything that goes out and was not written yet. */
static void tend_connections(struct raft_transport_node *node) {
  struct peer *next_peer;
  struct connection *next;
  for (struct peer *peer = first_peer(node); peer; peer = next_peer) {
    next_peer = peer->next;
    if (peer->connection) connection_tend(peer->connection);
  }
  for (struct connection *connection = node->incoming; connection; connection = next) {
    next = connection->next;
    connection_tend(connection);
  }
}

/* Gives the replies to the connections that their requests came by. */
static void tend_replies(struct raft_transport_node *node) {
  uint8_t bytes[RAFT_REQUEST_MAX];
  struct reply *next;
  pthread_mutex_lock(&node->mutex);
  struct reply *reply = node->replies;
  node->replies = node->last_reply = NULL;
  node->n_replies = 0;
  for (; reply; reply = next) {
    const struct raft_request *request = &reply->request;
    next = reply->next;
    struct connection *c = node->incoming;
    while (c && (!c->met || c->frame_limit == 0 || c->hello.node != request->to ||
                 memcmp(&c->hello.incarnation, &request->to_incarnation, sizeof request->to_incarnation) != 0))
      c = c->next;
    if (c) connection_queue_bytes(c, bytes, wire_encode_request(request, bytes));
    free(reply);
  }
  pthread_mutex_unlock(&node->mutex);
}

/* Some who have dialled us may not be welcome any more. */
static void review_accepted(struct raft_transport_node *node) {
  struct raft_refusal refusal;
  struct connection *next;
  if (!atomic_exchange(&node->review_asked, false) || !is_calling(node)) return;
  for (struct connection *connection = node->incoming; connection; connection = next) {
    next = connection->next;
    bool is_talking = connection->met && connection->frame_limit > 0;
    if (is_talking && !is_welcome(node, NULL, &connection->hello, &refusal)) accepted_refuse(connection, &refusal);
  }
}

static void tend_node(struct raft_transport_node *node) {
  struct peer *next_peer;
  pthread_mutex_lock(&node->transport->mutex);
  bool detaching = node->detaching;
  pthread_mutex_unlock(&node->transport->mutex);
  if (!node->has_handles) open_handles(node);
  if (!detaching) {
    for (struct peer *peer = first_peer(node); peer; peer = next_peer) {
      next_peer = peer->next;
      tend_peer(peer);
    }
    wake_if_due(node);
    arm(node);
    review_accepted(node);
  }
  tend_replies(node);
  tend_connections(node);
  if (detaching) leave(node);
}

static void tend_all(struct raft_transport *transport) {
  struct raft_transport_node *next;
  pthread_mutex_lock(&transport->mutex);
  struct raft_transport_node *node = transport->nodes; /* as with peers */
  pthread_mutex_unlock(&transport->mutex);
  for (; node; node = next) {
    next = node->next;
    tend_node(node);
  }
}

/*
** Before the loop sleeps: answers to what it has just dealt with go out together, and a node that is
** detached takes its next step.
*/
static void on_prepare(uv_prepare_t *prepare) {
  tend_all(prepare->data);
}

static void on_async(uv_async_t *async) {
  struct raft_transport *transport = async->data;
  atomic_store(&transport->asked, false); /* what is asked from here on asks again; on_prepare comes next */
  pthread_mutex_lock(&transport->mutex);
  bool stopping = transport->stopping;
  pthread_mutex_unlock(&transport->mutex);
  if (stopping) uv_stop(&transport->loop);
}

/* ---- The process's transport ---- */

static void loop_main(void *arg) {
  struct raft_transport *transport = arg;
  transport->self = pthread_self();
  atomic_store(&transport->running, true);
  uv_run(&transport->loop, UV_RUN_DEFAULT);
}

static struct raft_transport *transport_new(struct os *os) {
  struct raft_transport *transport = calloc(1, sizeof *transport);
  if (transport == NULL || uv_loop_init(&transport->loop) != 0) {
    free(transport);
    return NULL;
  }
  transport->os = os;
  transport->loop.data = transport->async.data = transport->prepare.data = transport;
  pthread_mutex_init(&transport->mutex, NULL);
  os_condition_init(&transport->changed);
  bool good = uv_async_init(&transport->loop, &transport->async, on_async) == 0;
  uv_prepare_init(&transport->loop, &transport->prepare);
  uv_prepare_start(&transport->prepare, on_prepare);
  return good ? transport : NULL; /* a loop without its eventfd can't even be closed */
}

/*
** After the thread's end. A name that is still being looked up cannot be called off: libuv's own thread will
** answer into this memory, so it is left behind.
*/
static void transport_free(struct raft_transport *transport) {
  if (transport->n_lookups > 0) return;
  uv_close((uv_handle_t *)&transport->async, NULL);
  uv_close((uv_handle_t *)&transport->prepare, NULL);
  uv_run(&transport->loop, UV_RUN_DEFAULT);
  int busy = uv_loop_close(&transport->loop);
  assert(busy == 0);
  pthread_cond_destroy(&transport->changed);
  pthread_mutex_destroy(&transport->mutex);
  free(transport);
}

static void before_fork(void) {
  pthread_mutex_lock(&transport_mutex);
}

static void after_fork_in_parent(void) {
  pthread_mutex_unlock(&transport_mutex);
}

static void after_fork_in_child(void) {
  the_transport = NULL;
  pthread_mutex_unlock(&transport_mutex);
}

static void watch_forks(void) {
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

struct raft_transport *raft_transport_get(struct os *os) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  pthread_mutex_lock(&transport_mutex);
  if (the_transport == NULL) {
    struct raft_transport *made = transport_new(os);
    if (made && os_thread_start(os, "balsa-net", loop_main, made, &made->thread) != 0) {
      transport_free(made);
      made = NULL;
    }
    the_transport = made;
  }
  struct raft_transport *transport = the_transport;
  if (transport) transport->references++;
  pthread_mutex_unlock(&transport_mutex);
  return transport;
}

void raft_transport_put(struct raft_transport *transport) {
  pthread_mutex_lock(&transport_mutex);
  bool last = --transport->references == 0;
  if (last) the_transport = NULL;
  pthread_mutex_unlock(&transport_mutex);
  if (!last) return;
  pthread_mutex_lock(&transport->mutex);
  assert(transport->nodes == NULL);
  transport->stopping = true;
  pthread_mutex_unlock(&transport->mutex);
  uv_async_send(&transport->async);
  os_thread_join(transport->thread);
  transport_free(transport);
}

/* ---- Nodes ---- */

int raft_transport_attach(struct raft_transport *transport, const struct raft_transport_methods *methods, void *ctx,
                          const char *listen, struct raft_transport_node **node, char *text) {
  text[0] = 0;
  *node = NULL;
  struct raft_transport_node *made = calloc(1, sizeof *made);
  if (made == NULL) return -ENOMEM;
  made->transport = transport;
  made->methods = methods;
  made->ctx = ctx;
  made->listener_descriptor = listen ? socket_listen(listen, made->address, text, RAFT_TRANSPORT_TEXT_MAX) : -1;
  if (listen && made->listener_descriptor < 0) {
    int error = made->listener_descriptor;
    free(made);
    return error;
  }
  pthread_mutex_init(&made->mutex, NULL);
  *node = made;
  pthread_mutex_lock(&transport->mutex);
  made->next = transport->nodes;
  transport->nodes = made;
  pthread_mutex_unlock(&transport->mutex);
  ask(transport);
  return 0;
}

void raft_transport_detach(struct raft_transport_node *node) {
  struct raft_transport *transport = node->transport;
  assert(!on_loop(transport));
  pthread_mutex_lock(&transport->mutex);
  node->detaching = true;
  ask(transport);
  while (node->state != NODE_GONE) os_condition_wait(transport->os, &transport->changed, &transport->mutex, OS_FOREVER);
  pthread_mutex_unlock(&transport->mutex);
  for (struct reply *reply = node->replies, *next; reply; reply = next) {
    next = reply->next;
    free(reply);
  }
  pthread_mutex_destroy(&node->mutex);
  free(node);
}

const char *raft_transport_address(const struct raft_transport_node *node) {
  return node->address;
}

static int set_dialled(struct raft_transport_node *node, uint64_t id, uint32_t contact, const char *address) {
  char text[RAFT_TRANSPORT_TEXT_MAX];
  struct socket_name name;
  int error = 0;
  if (address && (strlen(address) >= RAFT_ADDRESS_MAX || !socket_name_parse(address, &name, text, sizeof text)))
    return -EINVAL;
  pthread_mutex_lock(&node->mutex);
  struct peer *peer = find_dialled(node, id, contact);
  if (peer == NULL && address) {
    peer = calloc(1, sizeof *peer);
    if (peer == NULL) error = -ENOMEM;
    if (peer) {
      peer->node = node;
      peer->id = id;
      peer->contact = contact;
      peer->next = node->peers;
      node->peers = peer;
    }
  }
  bool changed = peer && strcmp(peer->wanted, address ? address : "") != 0;
  if (changed) {
    snprintf(peer->wanted, sizeof peer->wanted, "%s", address ? address : "");
    peer->changed = true;
  }
  pthread_mutex_unlock(&node->mutex);
  if (changed) ask(node->transport);
  return error;
}

int raft_transport_set_peer(struct raft_transport_node *node, uint64_t id, const char *address) {
  assert(id != 0);
  return set_dialled(node, id, 0, address);
}

int raft_transport_set_contact(struct raft_transport_node *node, uint32_t contact, const char *address) {
  return set_dialled(node, 0, contact, address);
}

bool raft_transport_is_contact_ready(struct raft_transport_node *node, uint32_t contact) {
  pthread_mutex_lock(&node->mutex);
  const struct peer *peer = find_dialled(node, 0, contact);
  bool ready = peer && peer->ready;
  pthread_mutex_unlock(&node->mutex);
  return ready;
}

static bool send_request(struct raft_transport_node *node, uint64_t id, uint32_t contact,
                         const struct raft_request *request) {
  uint8_t bytes[RAFT_REQUEST_MAX];
  bool must_ask = false, inside = on_loop(node->transport);
  uint32_t length = wire_encode_request(request, bytes);
  pthread_mutex_lock(&node->mutex);
  struct peer *peer = find_dialled(node, id, contact);
  bool queued = peer && peer->ready && connection_queue_bytes(peer->connection, bytes, length);
  if (queued && !inside) must_ask = connection_pump(peer->connection);
  pthread_mutex_unlock(&node->mutex);
  if (must_ask) ask(node->transport);
  return queued;
}

bool raft_transport_request(struct raft_transport_node *node, const struct raft_request *request) {
  return request->to != 0 && send_request(node, request->to, 0, request);
}

bool raft_transport_request_contact(struct raft_transport_node *node, uint32_t contact,
                                    const struct raft_request *request) {
  return send_request(node, 0, contact, request);
}

void raft_transport_reply(struct raft_transport_node *node, const struct raft_request *reply) {
  struct reply *made = malloc(sizeof *made);
  if (made == NULL) return;
  *made = (struct reply){.request = *reply};
  made->request.is_reply = true;
  pthread_mutex_lock(&node->mutex);
  bool is_taken = node->n_replies < RAFT_REPLIES_MAX;
  if (is_taken) {
    if (node->last_reply)
      node->last_reply->next = made;
    else
      node->replies = made;
    node->last_reply = made;
    node->n_replies++;
  }
  pthread_mutex_unlock(&node->mutex);
  if (!is_taken) free(made);
  ask(node->transport);
}

void raft_transport_review(struct raft_transport_node *node) {
  if (!atomic_exchange(&node->review_asked, true)) ask(node->transport);
}

bool raft_transport_send(struct raft_transport_node *node, const struct raft_message *message,
                         const struct raft_entry *entries) {
  bool must_ask = false, inside = on_loop(node->transport);
  pthread_mutex_lock(&node->mutex);
  struct peer *peer = find_peer(node, message->to);
  bool queued = peer && peer->ready && connection_queue(peer->connection, message, entries);
  if (queued && !inside) must_ask = connection_pump(peer->connection);
  pthread_mutex_unlock(&node->mutex);
  if (must_ask) ask(node->transport);
  return queued;
}

void raft_transport_wake(struct raft_transport_node *node) {
  if (!atomic_exchange(&node->wake_asked, true)) ask(node->transport);
}

void raft_transport_wake_at(struct raft_transport_node *node, uint64_t time) {
  if (time == 0) time = 1;
  pthread_mutex_lock(&node->mutex);
  bool earlier = time != OS_FOREVER && (node->wake_time == 0 || time < node->wake_time);
  if (earlier) node->wake_time = time;
  pthread_mutex_unlock(&node->mutex);
  if (earlier && !on_loop(node->transport)) ask(node->transport);
}

bool raft_transport_is_connected(struct raft_transport_node *node, uint64_t id) {
  pthread_mutex_lock(&node->mutex);
  const struct peer *peer = find_peer(node, id);
  bool connected = peer && peer->ready && peer->is_heard;
  pthread_mutex_unlock(&node->mutex);
  return connected;
}
