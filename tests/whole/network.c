/*
** Streams between machines, and the transport of each.
**
** A node dials each of its peers; what it sends goes over the stream that it dialled, from the sender's queues (urgent
** before bulk) to the wire, when that is free, and from there after a delay to the receiver. A break is seen by either
** side at a time of its own. The loop task of a machine does one thing after the other and looks anew after each: while
** a callback runs, others go on.
*/
#include "network.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../raft/io/transport.h"
#include "../../raft/io/wire.h"
#include "machine.h"

#define BACKOFF_FIRST (10 * OS_MS)
#define BACKOFF_MAX (500 * OS_MS)
#define REFUSED_RETRY (500 * OS_MS)
#define CONNECT_TIMEOUT (1000 * OS_MS)
#define USER_TIMEOUT (1500 * OS_MS) /* what was sent and not acknowledged for so long: the peer is gone */
#define DRAIN_MAX (100 * OS_MS)

struct frame {
  struct frame *next;
  uint64_t arrives;
  uint32_t length;
  uint8_t bytes[];
};

struct frames {
  struct frame *first, *last;
};

struct peer;

struct stream {
  struct stream *next;
  uint64_t number;
  uint32_t from_machine, to_machine; /* to_machine 0: not known yet */
  char address[RAFT_ADDRESS_MAX];
  struct raft_transport_node *from, *to; /* NULL: that side has hung up, or has not accepted */
  struct peer *peer;
  bool is_accepted, is_met;                    /* by the receiver */
  struct raft_hello hello, hello_back;         /* of the sender, of the receiver */
  struct frames urgent, bulk, flight, answers; /* answers go back */
  size_t queued_bytes;
  uint64_t wire_free, last_arrival, last_answer;
  uint64_t receiver_ends, sender_ends; /* when either side sees the break; 0: none */
  uint64_t unacknowledged;             /* since when something is; 0: nothing, as far as is known */
};

enum peer_state { PEER_IDLE, PEER_GREETING, PEER_READY, PEER_WAITING };

struct peer {
  struct peer *next;
  uint64_t id; /* 0: a contact */
  uint32_t contact;
  char address[RAFT_ADDRESS_MAX]; /* "": stop */
  bool is_changed, is_refused, is_heard;
  enum peer_state state;
  struct stream *stream;
  uint64_t until; /* GREETING, WAITING */
  uint64_t backoff;
};

struct raft_transport_node {
  struct raft_transport *transport;
  struct raft_transport_node *next;
  const struct raft_transport_methods *methods;
  void *ctx;
  char address[RAFT_ADDRESS_MAX];
  struct peer *peers;
  uint64_t wake_time; /* of the machine's clock; 0: none */
  bool wake_asked, review_asked, is_detaching, is_gone, is_cut_off;
};

struct raft_transport {
  struct os *os;
  struct machine *machine;
  unsigned references;
  struct os_thread *thread;
  struct raft_transport_node *nodes;
  bool is_stopping;
};

static struct {
  struct network_options options;
  struct sim_random random;
  struct stream *streams;
  uint64_t n_streams;
  bool blocked[MACHINES_MAX + 1][MACHINES_MAX + 1];
  struct raft_transport *transports[MACHINES_MAX + 1];
  struct network_counters counters;
} net;

/* ---- Frames ---- */

static struct frame *frame_new(uint32_t length) {
  struct frame *frame = calloc(1, sizeof *frame + length);
  if (!frame) abort();
  frame->length = length;
  return frame;
}

static void push(struct frames *frames, struct frame *frame) {
  frame->next = NULL;
  *(frames->first ? &frames->last->next : &frames->first) = frame;
  frames->last = frame;
}

static struct frame *pop(struct frames *frames) {
  struct frame *frame = frames->first;
  if (frame) frames->first = frame->next;
  return frame;
}

/* Keeps the first n. */
static void drop_after(struct frames *frames, uint64_t n) {
  struct frames kept = {0};
  struct frame *frame;
  for (; n > 0 && (frame = pop(frames)); n--) push(&kept, frame);
  while ((frame = pop(frames))) {
    free(frame);
    net.counters.lost_frames++;
  }
  *frames = kept;
}

static struct frame *frame_of(const uint8_t *bytes, uint32_t length) {
  struct frame *frame = frame_new(length);
  memcpy(frame->bytes, bytes, length);
  return frame;
}

static uint64_t count(const struct frames *frames) {
  uint64_t n = 0;
  for (const struct frame *frame = frames->first; frame; frame = frame->next) n++;
  return n;
}

/* ---- Streams ---- */

static uint64_t draw_delay(void) {
  const struct network_options *options = &net.options;
  uint64_t delay = options->delay_ns + sim_random_below(&net.random, options->jitter_ns + 1);
  if (sim_random_chance(&net.random, options->retransmit_permille))
    delay += sim_random_below(&net.random, options->retransmit_ns + 1);
  return delay;
}

static void poke(struct raft_transport_node *node, uint64_t at) {
  if (node) task_wake_by(node->transport, at);
}

static struct raft_transport_node *listener_at(const char *address) {
  for (uint32_t i = 1; i <= MACHINES_MAX; i++) {
    for (struct raft_transport_node *node = net.transports[i] ? net.transports[i]->nodes : NULL; node;
         node = node->next)
      if (!node->is_detaching && !node->is_cut_off && strcmp(node->address, address) == 0) return node;
  }
  return NULL;
}

static bool is_stalled(const struct stream *stream) {
  return net.blocked[stream->from_machine][stream->to_machine] || net.blocked[stream->to_machine][stream->from_machine];
}

/* What waits goes on the wire, as far as that is free. */
static void transmit(struct stream *stream) {
  while (stream->wire_free <= task_now()) {
    struct frame *frame = pop(stream->urgent.first ? &stream->urgent : &stream->bulk);
    if (!frame) return;
    stream->queued_bytes -= frame->length;
    stream->wire_free = task_now() + (uint64_t)frame->length * net.options.ns_per_kilobyte / 1024;
    frame->arrives = stream->wire_free + draw_delay();
    if (frame->arrives < stream->last_arrival) frame->arrives = stream->last_arrival;
    stream->last_arrival = frame->arrives;
    if (is_stalled(stream) && stream->unacknowledged == 0) stream->unacknowledged = task_now();
    push(&stream->flight, frame);
    net.counters.frames++;
    net.counters.bytes += frame->length;
    poke(stream->to ? stream->to : listener_at(stream->address), frame->arrives);
  }
}

static void answer(struct stream *stream, struct frame *frame) {
  frame->arrives = task_now() + draw_delay();
  if (frame->arrives < stream->last_answer) frame->arrives = stream->last_answer;
  stream->last_answer = frame->arrives;
  push(&stream->answers, frame);
  poke(stream->from, frame->arrives);
}

static void unlist(struct stream *stream) {
  struct stream **at = &net.streams;
  while (*at && *at != stream) at = &(*at)->next;
  if (*at) *at = stream->next;
}

/* When both sides have hung up nobody sees it any more. Its memory stays: who looks at it now may go on. */
static void bury_if_dead(struct stream *stream) {
  if (stream->from || stream->to) return;
  drop_after(&stream->urgent, 0);
  drop_after(&stream->bulk, 0);
  drop_after(&stream->flight, 0);
  drop_after(&stream->answers, 0);
  unlist(stream);
}

/* The sender is gone. What is on the wire arrives or not; then the receiver sees the end, or hears nothing more. */
static void sender_hangs_up(struct stream *stream, bool is_silent) {
  if (!stream->from) return;
  if (stream->peer) stream->peer->stream = NULL;
  stream->from = NULL;
  stream->peer = NULL;
  drop_after(&stream->urgent, 0);
  drop_after(&stream->bulk, 0);
  if (is_silent || !stream->to) {
    drop_after(&stream->flight, sim_random_below(&net.random, count(&stream->flight) + 1));
    if (!stream->to) drop_after(&stream->flight, 0);
  } else if (stream->receiver_ends == 0) {
    uint64_t at = task_now() + draw_delay();
    stream->receiver_ends = at < stream->last_arrival ? stream->last_arrival : at;
    poke(stream->to, stream->receiver_ends);
  }
  bury_if_dead(stream);
}

static bool is_guest(const struct raft_hello *hello) {
  return (hello->features & RAFT_FEATURE_GUEST) != 0;
}

static struct peer *find_dialled(struct raft_transport_node *node, uint64_t id, uint32_t contact) {
  struct peer *peer = node->peers;
  while (peer && (peer->id != id || peer->contact != contact)) peer = peer->next;
  return peer;
}

static struct peer *find_peer(struct raft_transport_node *node, uint64_t id) {
  return id == 0 ? NULL : find_dialled(node, id, 0);
}

/* After a stream of that node came or went: is it heard? */
static void note_heard(struct raft_transport_node *node, const struct raft_hello *hello) {
  struct peer *peer = find_peer(node, hello->node);
  bool is_heard = false;
  for (const struct stream *s = net.streams; s; s = s->next)
    is_heard |= s->to == node && s->is_met && !is_guest(&s->hello) && s->hello.node == hello->node;
  if (peer) peer->is_heard = is_heard;
}

static void receiver_hangs_up(struct stream *stream, bool is_silent) {
  struct raft_transport_node *node = stream->to;
  if (!node) return;
  stream->to = NULL;
  drop_after(&stream->flight, 0);
  if (stream->from && stream->sender_ends == 0) {
    stream->sender_ends = task_now() + (is_silent ? USER_TIMEOUT : draw_delay());
    poke(stream->from, stream->sender_ends);
  }
  if (stream->is_met) note_heard(node, &stream->hello);
  bury_if_dead(stream);
}

/* ---- What a node does: dialling ---- */

static uint64_t jitter(uint64_t ns) {
  return ns + sim_random_below(&net.random, ns / 2 + 1);
}

static struct raft_hello say_hello(struct raft_transport_node *node) {
  struct raft_hello hello = {0};
  node->methods->hello(node->ctx, &hello);
  hello.protocol_lowest = RAFT_PROTOCOL_LOWEST;
  hello.protocol_highest = RAFT_PROTOCOL_HIGHEST;
  return hello;
}

static struct frame *hello_frame(struct raft_transport_node *node, bool as_guest) {
  uint8_t bytes[WIRE_GREETING_MAX];
  struct raft_hello hello = say_hello(node);
  if (as_guest) hello.features |= RAFT_FEATURE_GUEST;
  uint32_t length = wire_encode_hello(&hello, bytes);
  return frame_of(bytes, length);
}

static struct frame *refusal_frame(const struct raft_refusal *refusal) {
  uint8_t bytes[WIRE_GREETING_MAX];
  uint32_t length = wire_encode_refusal(refusal, bytes);
  net.counters.refusals++;
  return frame_of(bytes, length);
}

static void hang_up(struct peer *peer) {
  if (peer->stream) sender_hangs_up(peer->stream, false);
  peer->stream = NULL;
  peer->state = PEER_IDLE;
}

static void wait_to_dial(struct peer *peer, uint64_t ns) {
  hang_up(peer);
  peer->state = PEER_WAITING;
  peer->until = task_now() + jitter(ns);
}

static void failed(struct peer *peer) {
  uint64_t ns = peer->backoff;
  net.counters.breaks++;
  peer->backoff = 2 * ns < BACKOFF_MAX ? 2 * ns : BACKOFF_MAX;
  wait_to_dial(peer, ns);
}

static uint32_t machine_of_address(const char *address) {
  const struct raft_transport_node *node = listener_at(address);
  return node ? machine_number(node->transport->machine) : 0;
}

/* The Hello is in the first flight: connecting is one more round before it. */
static void dial(struct raft_transport_node *node, struct peer *peer) {
  hang_up(peer);
  struct frame *frame = hello_frame(node, peer->id == 0); /* others may have gone on */
  if (peer->state != PEER_IDLE || node->is_cut_off || node->is_detaching) {
    free(frame);
    return;
  }
  struct stream *stream = calloc(1, sizeof *stream);
  if (!stream) abort();
  stream->number = ++net.n_streams;
  stream->from_machine = machine_number(node->transport->machine);
  stream->to_machine = machine_of_address(peer->address);
  memcpy(stream->address, peer->address, sizeof stream->address);
  stream->from = node;
  stream->peer = peer;
  stream->next = net.streams;
  net.streams = stream;
  peer->stream = stream;
  peer->state = PEER_GREETING;
  peer->until = task_now() + CONNECT_TIMEOUT;
  net.counters.dials++;
  task_note("dial", peer->id, stream->number);
  stream->wire_free = stream->last_arrival = task_now();
  frame->arrives = stream->last_arrival = task_now() + draw_delay() + draw_delay() + draw_delay();
  push(&stream->flight, frame);
  struct raft_transport_node *listener = listener_at(peer->address);
  if (listener)
    poke(listener, frame->arrives);
  else if (sim_random_chance(&net.random, 500))
    stream->sender_ends = frame->arrives; /* somebody says that nobody listens */
}

/* What both sides check before they ask the node itself. `peer`: the contact that was dialled, else NULL. */
static bool is_welcome(struct raft_transport_node *node, const struct peer *peer, const struct raft_hello *hello,
                       struct raft_refusal *refusal) {
  bool is_contact = peer && peer->id == 0;
  *refusal = (struct raft_refusal){0};
  if (is_contact ? node->methods->greet(node->ctx, peer->contact, hello, refusal)
                 : node->methods->meet(node->ctx, hello, refusal))
    return true;
  if (refusal->text[0] == 0)
    snprintf(refusal->text, sizeof refusal->text, "node %" PRIu64 " is not welcome here", hello->node);
  return false;
}

/* The other side gets to see why. */
static void refuse_peer(struct peer *peer, const struct raft_refusal *refusal) {
  struct stream *stream = peer->stream;
  struct frame *frame = refusal_frame(refusal);
  frame->arrives = stream->last_arrival = stream->last_arrival + draw_delay();
  push(&stream->flight, frame);
  peer->is_refused = true;
  wait_to_dial(peer, REFUSED_RETRY);
}

static void met_peer(struct raft_transport_node *node, struct peer *peer, const struct raft_hello *hello) {
  struct stream *stream = peer->stream;
  struct raft_refusal refusal = {0};
  if (peer->id != 0 && hello->node != peer->id) {
    snprintf(refusal.text, sizeof refusal.text, "node %" PRIu64 " is not node %" PRIu64, hello->node, peer->id);
    refuse_peer(peer, &refusal);
    return;
  }
  bool is_good = is_welcome(node, peer, hello, &refusal);
  if (peer->stream != stream || stream->from != node) return; /* broken meanwhile */
  if (!is_good) {
    refuse_peer(peer, &refusal);
    return;
  }
  stream->hello_back = *hello;
  peer->state = PEER_READY;
  peer->backoff = BACKOFF_FIRST;
  peer->is_refused = false;
}

/* A request, or the reply to one of ours. */
static void take_request(struct raft_transport_node *node, const struct raft_hello *from, bool is_reply,
                         const struct frame *frame) {
  struct raft_request request;
  int error = wire_decode_request(frame->bytes, frame->length, &request);
  assert(error == RAFT_OK && request.is_reply == is_reply);
  request.from = from->node;
  request.from_incarnation = from->incarnation;
  task_note("request", request.kind, request.context);
  node->methods->request(node->ctx, &request);
}

/* What came back on a dialled stream. */
static void take_answer(struct raft_transport_node *node, struct peer *peer, struct frame *frame) {
  enum wire_type type;
  uint32_t length;
  struct raft_refusal refusal;
  struct raft_hello hello;
  int error = wire_decode_header(frame->bytes, RAFT_REQUEST_MAX, &type, &length);
  assert(error == RAFT_OK && length == frame->length);
  if (type == WIRE_REFUSAL) {
    error = wire_decode_refusal(frame->bytes, length, &refusal);
    assert(error == RAFT_OK);
    node->methods->refused(node->ctx, peer->id, peer->contact, &refusal);
    peer->is_refused = true;
    wait_to_dial(peer, REFUSED_RETRY);
  } else if (type == WIRE_REQUEST && peer->state == PEER_READY) {
    take_request(node, &peer->stream->hello_back, true, frame);
  } else if (type == WIRE_HELLO && peer->state == PEER_GREETING) {
    error = wire_decode_hello(frame->bytes, length, &hello);
    assert(error == RAFT_OK);
    met_peer(node, peer, &hello);
  }
  free(frame);
}

/* ---- What a node does: listening ---- */

/* It listens no more; the other side hangs up. */
static void refuse_stream(struct raft_transport_node *node, struct stream *stream, const struct raft_refusal *refusal) {
  answer(stream, refusal_frame(refusal));
  stream->receiver_ends = 0;
  stream->to = NULL;
  drop_after(&stream->flight, 0);
  note_heard(node, &stream->hello);
  bury_if_dead(stream);
}

static void met_stranger(struct raft_transport_node *node, struct stream *stream, const struct raft_hello *hello) {
  struct raft_refusal refusal;
  bool is_good = is_welcome(node, NULL, hello, &refusal);
  if (stream->to != node) return;
  if (!is_good) {
    refuse_stream(node, stream, &refusal);
    return;
  }
  stream->hello = *hello;
  stream->is_met = true;
  struct stream *next;
  for (struct stream *s = net.streams; s; s = next) {
    next = s->next;
    if (s != stream && s->to == node && s->is_met && s->hello.node == hello->node &&
        is_guest(&s->hello) == is_guest(hello))
      receiver_hangs_up(s, false);
  }
  struct frame *frame = hello_frame(node, false);
  if (stream->to != node) {
    free(frame);
    return;
  }
  answer(stream, frame);
  note_heard(node, hello);
  struct peer *peer = find_peer(node, hello->node);
  if (peer && peer->state == PEER_WAITING && !peer->is_refused) peer->until = task_now();
}

/* Some who have dialled may not be welcome any more. */
static void review(struct raft_transport_node *node) {
  struct raft_refusal refusal;
  node->review_asked = false;
  for (struct stream *s = net.streams; s; s = s->next)
    if (s->to == node && s->is_met && !is_welcome(node, NULL, &s->hello, &refusal) && s->to == node)
      refuse_stream(node, s, &refusal);
}

static void take_message(struct raft_transport_node *node, struct stream *stream, const struct frame *frame) {
  struct raft_message message;
  int error = wire_decode_message(frame->bytes, frame->length, &message);
  assert(error == RAFT_OK);
  uint32_t n_payloads = wire_payloads(&message);
  struct raft_entry *entries = calloc(n_payloads + 1, sizeof *entries);
  struct raft_entry_meta *metas = calloc(n_payloads + 1, sizeof *metas);
  if (!entries || !metas) abort();
  error = wire_decode_entries(frame->bytes, frame->length, &message, entries, metas);
  assert(error == RAFT_OK);
  message.from = stream->hello.node;
  message.from_incarnation = stream->hello.incarnation;
  message.entries = message.n_entries ? metas : NULL;
  task_note("receive", message.type, message.index);
  net.counters.chunks += message.type == RAFT_SNAPSHOT;
  for (uint32_t i = 0; i < message.n_entries; i++) net.counters.parts += (entries[i].flags & RAFT_ENTRY_PART) != 0;
  node->methods->receive(node->ctx, &message, n_payloads ? entries : NULL);
  for (uint32_t i = 0; i < n_payloads; i++) raft_payload_unref(entries[i].payload);
  free(entries);
  free(metas);
}

static void take_frame(struct raft_transport_node *node, struct stream *stream, struct frame *frame) {
  enum wire_type type;
  uint32_t length;
  struct raft_hello hello;
  struct raft_refusal refusal;
  int error = wire_decode_header(frame->bytes, RAFT_FRAME_MAX, &type, &length);
  assert(error == RAFT_OK && length == frame->length);
  if (type == WIRE_HELLO && !stream->is_met) {
    error = wire_decode_hello(frame->bytes, length, &hello);
    assert(error == RAFT_OK);
    met_stranger(node, stream, &hello);
  } else if (type == WIRE_MESSAGE && stream->is_met) {
    assert(!is_guest(&stream->hello));
    take_message(node, stream, frame);
  } else if (type == WIRE_REQUEST && stream->is_met) {
    take_request(node, &stream->hello, false, frame);
  } else if (type == WIRE_REFUSAL && stream->is_met) {
    error = wire_decode_refusal(frame->bytes, length, &refusal);
    assert(error == RAFT_OK);
    node->methods->refused(node->ctx, stream->hello.node, 0, &refusal);
    receiver_hangs_up(stream, false);
  }
  free(frame);
}

/* ---- The loop: one thing at a time. Each returns true if it did something, else lowers *until. ---- */

static void at_most(uint64_t *until, uint64_t time) {
  if (time < *until) *until = time;
}

static bool attend_peer(struct raft_transport_node *node, struct peer *peer, uint64_t *until) {
  struct stream *stream = peer->stream;
  if (peer->is_changed) {
    peer->is_changed = peer->is_refused = false;
    peer->backoff = BACKOFF_FIRST;
    hang_up(peer);
    if (peer->address[0]) dial(node, peer);
    return true;
  }
  if ((peer->state == PEER_WAITING || peer->state == PEER_GREETING) && peer->until <= task_now()) {
    if (peer->state == PEER_WAITING)
      dial(node, peer);
    else
      failed(peer);
    return true;
  }
  if (peer->state == PEER_WAITING || peer->state == PEER_GREETING) at_most(until, peer->until);
  if (!stream) return false;
  struct frame *frame = stream->answers.first;
  if (frame && !net.blocked[stream->to_machine][stream->from_machine]) {
    if (frame->arrives <= task_now()) {
      take_answer(node, peer, pop(&stream->answers));
      return true;
    }
    at_most(until, frame->arrives);
  }
  if (is_stalled(stream) && stream->unacknowledged) {
    if (task_now() - stream->unacknowledged >= USER_TIMEOUT) {
      failed(peer);
      return true;
    }
    at_most(until, stream->unacknowledged + USER_TIMEOUT);
  }
  if (stream->sender_ends && !frame) {
    if (stream->sender_ends <= task_now()) {
      failed(peer);
      return true;
    }
    at_most(until, stream->sender_ends);
  }
  transmit(stream);
  if (stream->urgent.first || stream->bulk.first) at_most(until, stream->wire_free);
  return false;
}

static bool attend_stream(struct raft_transport_node *node, struct stream *stream, uint64_t *until) {
  struct frame *frame = stream->flight.first;
  if (net.blocked[stream->from_machine][stream->to_machine]) return false;
  if (frame && frame->arrives > task_now()) {
    at_most(until, frame->arrives);
    return false;
  }
  if (frame) {
    take_frame(node, stream, pop(&stream->flight));
    return true;
  }
  if (stream->receiver_ends && stream->receiver_ends <= task_now()) {
    receiver_hangs_up(stream, false);
    return true;
  }
  if (stream->receiver_ends) at_most(until, stream->receiver_ends);
  return false;
}

/* A Hello that has come to this address is this node's. */
static bool accept_stream(struct raft_transport_node *node, struct stream *stream, uint64_t *until) {
  uint32_t number = machine_number(node->transport->machine);
  const struct frame *frame = stream->flight.first;
  if (stream->is_accepted || stream->sender_ends || !frame || strcmp(stream->address, node->address) != 0) return false;
  stream->to_machine = number;
  if (net.blocked[stream->from_machine][number] || net.blocked[number][stream->from_machine]) return false;
  if (frame->arrives > task_now()) {
    at_most(until, frame->arrives);
    return false;
  }
  stream->to = node;
  stream->is_accepted = true;
  return true;
}

static bool attend_wake(struct raft_transport_node *node, uint64_t *until) {
  uint64_t now = os_now(node->transport->os);
  bool is_due = node->wake_asked || (node->wake_time && now >= node->wake_time);
  if (node->wake_time && now >= node->wake_time) node->wake_time = 0;
  if (node->wake_time) at_most(until, machine_true_time(node->transport->machine, node->wake_time));
  node->wake_asked = false;
  if (is_due) node->methods->wake(node->ctx);
  return is_due;
}

static void forget_node(struct raft_transport_node *node) {
  struct raft_transport_node **at = &node->transport->nodes;
  struct stream *next;
  for (struct stream *s = net.streams; s; s = next) {
    next = s->next;
    if (s->from == node) sender_hangs_up(s, node->is_cut_off);
    if (s->to == node) receiver_hangs_up(s, node->is_cut_off);
  }
  while (*at != node) at = &(*at)->next;
  *at = node->next;
  node->is_gone = true;
  task_wake_all(node);
}

static bool attend_node(struct raft_transport_node *node, uint64_t *until) {
  if (node->is_detaching) {
    forget_node(node);
    return true;
  }
  if (attend_wake(node, until)) return true;
  if (node->is_cut_off) return false;
  if (node->review_asked) {
    review(node);
    return true;
  }
  for (struct peer *peer = node->peers; peer; peer = peer->next)
    if (attend_peer(node, peer, until)) return true;
  for (struct stream *s = net.streams; s; s = s->next)
    if (s->to == node ? attend_stream(node, s, until) : !s->to && accept_stream(node, s, until)) return true;
  return false;
}

static void loop_main(void *arg) {
  struct raft_transport *transport = arg;
  while (!transport->is_stopping) {
    uint64_t until = TASK_FOREVER;
    bool is_done = false;
    for (struct raft_transport_node *node = transport->nodes; node && !is_done; node = node->next)
      is_done = attend_node(node, &until);
    if (is_done)
      task_yield();
    else
      task_wait(transport, until);
  }
}

/* ---- raft/io/transport.h ---- */

struct raft_transport *raft_transport_get(struct os *os) {
  struct machine *machine = (struct machine *)os;
  struct raft_transport **place = &net.transports[machine_number(machine)];
  if (!*place) {
    struct raft_transport *made = calloc(1, sizeof *made);
    if (!made) abort();
    made->os = os;
    made->machine = machine;
    *place = made;
    os_thread_start(os, "balsa-net", loop_main, made, &made->thread);
  }
  (*place)->references++;
  return *place;
}

void raft_transport_put(struct raft_transport *transport) {
  if (--transport->references > 0) return;
  transport->is_stopping = true;
  task_wake_all(transport);
  os_thread_join(transport->thread);
  net.transports[machine_number(transport->machine)] = NULL;
  free(transport);
}

int raft_transport_attach(struct raft_transport *transport, const struct raft_transport_methods *methods, void *ctx,
                          const char *listen, struct raft_transport_node **node, char *text) {
  text[0] = 0;
  struct raft_transport_node *made = calloc(1, sizeof *made);
  if (!made) abort();
  made->transport = transport;
  made->methods = methods;
  made->ctx = ctx;
  if (listen) snprintf(made->address, sizeof made->address, "%s", listen);
  assert(!listen || !listener_at(listen));
  made->next = transport->nodes;
  transport->nodes = made;
  *node = made;
  task_wake_all(transport);
  return 0;
}

static bool has_queued(const struct raft_transport_node *node) {
  for (const struct stream *s = net.streams; s; s = s->next)
    if (s->from == node && s->peer->state == PEER_READY && s->queued_bytes > 0) return true;
  return false;
}

void raft_transport_detach(struct raft_transport_node *node) {
  uint64_t until = task_now() + DRAIN_MAX;
  while (!node->is_cut_off && has_queued(node) && task_now() < until) task_sleep(OS_MS);
  node->is_detaching = true;
  while (!node->is_gone) {
    task_wake_all(node->transport);
    task_wait(node, task_now() + OS_MS);
  }
  free(node);
}

const char *raft_transport_address(const struct raft_transport_node *node) {
  return node->address;
}

static int set_dialled(struct raft_transport_node *node, uint64_t id, uint32_t contact, const char *address) {
  struct peer *peer = find_dialled(node, id, contact);
  if (!peer && !address) return 0;
  if (!peer) {
    peer = calloc(1, sizeof *peer);
    if (!peer) abort();
    peer->id = id;
    peer->contact = contact;
    peer->next = node->peers;
    node->peers = peer;
  }
  if (strcmp(peer->address, address ? address : "") == 0) return 0;
  snprintf(peer->address, sizeof peer->address, "%s", address ? address : "");
  peer->is_changed = true;
  task_wake_all(node->transport);
  return 0;
}

int raft_transport_set_peer(struct raft_transport_node *node, uint64_t id, const char *address) {
  assert(id != 0);
  return set_dialled(node, id, 0, address);
}

int raft_transport_set_contact(struct raft_transport_node *node, uint32_t contact, const char *address) {
  return set_dialled(node, 0, contact, address);
}

bool raft_transport_is_contact_ready(struct raft_transport_node *node, uint32_t contact) {
  const struct peer *peer = find_dialled(node, 0, contact);
  return peer && peer->state == PEER_READY;
}

static bool queue_frame(struct raft_transport_node *node, struct peer *peer, bool is_bulk, struct frame *frame) {
  struct stream *stream = peer ? peer->stream : NULL;
  bool is_ready = stream && peer->state == PEER_READY && !node->is_cut_off;
  if (!is_ready || stream->queued_bytes + frame->length > RAFT_SEND_QUEUE_MAX) {
    free(frame);
    return false;
  }
  push(is_bulk ? &stream->bulk : &stream->urgent, frame);
  stream->queued_bytes += frame->length;
  transmit(stream);
  if (stream->urgent.first || stream->bulk.first) poke(node, stream->wire_free);
  return true;
}

static bool send_request(struct raft_transport_node *node, uint64_t id, uint32_t contact,
                         const struct raft_request *request) {
  uint8_t bytes[RAFT_REQUEST_MAX];
  uint32_t length = wire_encode_request(request, bytes);
  return queue_frame(node, find_dialled(node, id, contact), false, frame_of(bytes, length));
}

bool raft_transport_request(struct raft_transport_node *node, const struct raft_request *request) {
  return request->to != 0 && send_request(node, request->to, 0, request);
}

bool raft_transport_request_contact(struct raft_transport_node *node, uint32_t contact,
                                    const struct raft_request *request) {
  return send_request(node, 0, contact, request);
}

void raft_transport_reply(struct raft_transport_node *node, const struct raft_request *reply) {
  uint8_t bytes[RAFT_REQUEST_MAX];
  struct raft_request request = *reply;
  request.is_reply = true;
  struct stream *s = net.streams;
  while (s && (s->to != node || !s->is_met || s->hello.node != reply->to ||
               memcmp(&s->hello.incarnation, &reply->to_incarnation, sizeof reply->to_incarnation) != 0))
    s = s->next;
  if (!s || node->is_cut_off) return;
  uint32_t length = wire_encode_request(&request, bytes);
  answer(s, frame_of(bytes, length));
}

void raft_transport_review(struct raft_transport_node *node) {
  node->review_asked = true;
  task_wake_all(node->transport);
}

bool raft_transport_send(struct raft_transport_node *node, const struct raft_message *message,
                         const struct raft_entry *entries) {
  uint32_t head, length;
  task_yield();
  bool is_good = wire_message_size(message, entries, &head, &length);
  assert(is_good);
  struct frame *frame = frame_new(length);
  wire_encode_message(message, entries, length, frame->bytes);
  uint8_t *at = frame->bytes + head;
  for (uint32_t i = 0; entries && i < wire_payloads(message); i++) {
    const struct raft_payload *payload = entries[i].payload;
    if (payload) memcpy(at, payload->bytes, payload->size);
    if (payload) at += payload->size;
  }
  assert(at == frame->bytes + length);
  bool is_bulk = message->type == RAFT_APPEND || message->type == RAFT_SNAPSHOT;
  return queue_frame(node, find_peer(node, message->to), is_bulk, frame);
}

void raft_transport_wake(struct raft_transport_node *node) {
  node->wake_asked = true;
  task_wake_all(node->transport);
}

void raft_transport_wake_at(struct raft_transport_node *node, uint64_t time) {
  if (time == 0) time = 1;
  if (time == OS_FOREVER || (node->wake_time != 0 && time >= node->wake_time)) return;
  node->wake_time = time;
  poke(node, machine_true_time(node->transport->machine, time));
}

bool raft_transport_is_connected(struct raft_transport_node *node, uint64_t id) {
  const struct peer *peer = find_peer(node, id);
  return peer && peer->state == PEER_READY && peer->is_heard;
}

/* ---- For the run ---- */

void network_begin(const struct network_options *options) {
  net.options = *options;
  net.random.state = options->seed;
}

static void wake_loops(void) {
  for (uint32_t i = 1; i <= MACHINES_MAX; i++)
    if (net.transports[i]) task_wake_all(net.transports[i]);
}

void network_block(uint32_t from, uint32_t to, bool is_blocked) {
  if (net.blocked[from][to] == is_blocked) return;
  net.blocked[from][to] = is_blocked;
  for (struct stream *s = net.streams; s; s = s->next) {
    if ((s->from_machine != from || s->to_machine != to) && (s->from_machine != to || s->to_machine != from)) continue;
    if (is_stalled(s)) {
      if (s->unacknowledged == 0 && s->flight.first) s->unacknowledged = task_now();
      continue;
    }
    /* The sender tries again after a while, which has grown meanwhile. */
    uint64_t late = task_now() + sim_random_below(&net.random, net.options.retransmit_ns + 1);
    for (struct frame *frame = s->flight.first; frame; frame = frame->next)
      if (frame->arrives < late) frame->arrives = late;
    if (s->last_arrival < late) s->last_arrival = late;
    s->unacknowledged = 0;
  }
  wake_loops();
}

void network_heal(void) {
  for (uint32_t a = 1; a <= MACHINES_MAX; a++)
    for (uint32_t b = 1; b <= MACHINES_MAX; b++) network_block(a, b, false);
}

void network_cut(uint32_t a, uint32_t b) {
  for (struct stream *s = net.streams; s; s = s->next) {
    if ((s->from_machine != a || s->to_machine != b) && (s->from_machine != b || s->to_machine != a)) continue;
    if (s->receiver_ends || s->sender_ends) continue;
    drop_after(&s->urgent, 0);
    drop_after(&s->bulk, 0);
    s->queued_bytes = 0;
    drop_after(&s->flight, sim_random_below(&net.random, count(&s->flight) + 1));
    s->sender_ends = task_now() + draw_delay();
    /* It may also hear nothing of it, until the other side dials again. */
    if (sim_random_chance(&net.random, 700)) s->receiver_ends = s->last_arrival + draw_delay();
  }
  wake_loops();
}

void network_cut_off(uint32_t machine) {
  struct raft_transport *transport = net.transports[machine];
  bool is_silent = sim_random_chance(&net.random, 500);
  struct stream *next;
  for (struct raft_transport_node *node = transport ? transport->nodes : NULL; node; node = node->next) {
    node->is_cut_off = true;
    for (struct stream *s = net.streams; s; s = next) {
      next = s->next;
      if (s->from == node) sender_hangs_up(s, is_silent);
      if (s->to == node) receiver_hangs_up(s, is_silent);
    }
    for (struct peer *peer = node->peers; peer; peer = peer->next) {
      peer->state = PEER_IDLE;
      peer->is_heard = false;
    }
  }
}

void network_get_counters(struct network_counters *counters) {
  *counters = net.counters;
}
