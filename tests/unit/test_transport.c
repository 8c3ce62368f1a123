/*
** The transport on loopback: greetings, refusals, entries large and many, order, lost connections.
*/
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "raft/io/wire.h"

#define PATIENCE (60 * OS_SECOND) /* a wait that takes so long has failed */
#define SEEN_MAX 4096

/* A node of the test and what it has seen. */
struct side {
  uint64_t id;
  struct raft_transport *transport;
  struct raft_transport_node *node;
  char address[RAFT_ADDRESS_MAX];

  pthread_mutex_t mutex;
  pthread_cond_t changed;
  bool refuses, blocks; /* blocks: receive waits */
  unsigned n_met, n_greeted, n_refused, n_wakes, n_received, n_asked, n_replies;
  char refusal[RAFT_TRANSPORT_TEXT_MAX];
  struct raft_hello met;
  struct raft_request asked, reply;   /* the last ones */
  struct raft_message seen[SEEN_MAX]; /* the first ones */
  struct raft_entry last[8];          /* entries of the last one that had any, with references */
  uint32_t n_last;
  uint64_t woken_at;
  bool detached;
};

static struct os *os;

static void on_hello(void *ctx, struct raft_hello *hello) {
  struct side *side = ctx;
  *hello = (struct raft_hello){
      .node = side->id, .election_ms = 500, .peers_hash = 7, .incarnation = {{(uint8_t)side->id}}};
}

static bool on_meet(void *ctx, const struct raft_hello *hello, struct raft_refusal *refusal) {
  struct side *side = ctx;
  pthread_mutex_lock(&side->mutex);
  assert_false(side->detached);
  bool refuses = side->refuses;
  side->n_met++;
  side->met = *hello;
  if (refuses)
    snprintf(refusal->text, sizeof refusal->text, "node %d does not want node %d", (int)side->id, (int)hello->node);
  pthread_cond_broadcast(&side->changed);
  pthread_mutex_unlock(&side->mutex);
  return !refuses;
}

static bool on_greet(void *ctx, uint32_t contact, const struct raft_hello *hello, struct raft_refusal *refusal) {
  struct side *side = ctx;
  assert_true(contact > 0);
  pthread_mutex_lock(&side->mutex);
  side->n_greeted++;
  pthread_mutex_unlock(&side->mutex);
  return on_meet(ctx, hello, refusal);
}

/* Answers at once. */
static void on_request(void *ctx, const struct raft_request *request) {
  struct side *side = ctx;
  struct raft_request reply = *request;
  pthread_mutex_lock(&side->mutex);
  *(request->is_reply ? &side->reply : &side->asked) = *request;
  *(request->is_reply ? &side->n_replies : &side->n_asked) += 1;
  pthread_cond_broadcast(&side->changed);
  pthread_mutex_unlock(&side->mutex);
  if (request->is_reply) return;
  reply.to = request->from;
  reply.to_incarnation = request->from_incarnation;
  reply.status = -3;
  snprintf(reply.text, sizeof reply.text, "asked %s", request->text);
  raft_transport_reply(side->node, &reply);
}

static void on_refused(void *ctx, uint64_t node, uint32_t contact, const struct raft_refusal *refusal) {
  struct side *side = ctx;
  assert_true(node == 0 || contact == 0);
  pthread_mutex_lock(&side->mutex);
  side->n_refused++;
  snprintf(side->refusal, sizeof side->refusal, "%s", refusal->text);
  pthread_cond_broadcast(&side->changed);
  pthread_mutex_unlock(&side->mutex);
}

static void forget_last(struct side *side) {
  while (side->n_last > 0) raft_payload_unref(side->last[--side->n_last].payload);
}

static void on_receive(void *ctx, const struct raft_message *message, const struct raft_entry *entries) {
  struct side *side = ctx;
  pthread_mutex_lock(&side->mutex);
  assert_false(side->detached);
  while (side->blocks) pthread_cond_wait(&side->changed, &side->mutex);
  if (message->n_entries || message->chunk_bytes) forget_last(side);
  if (message->chunk_bytes) {
    side->last[0] = entries[0];
    side->last[side->n_last++].payload = raft_payload_ref(entries[0].payload);
  }
  for (uint32_t i = 0; i < message->n_entries && i < 8; i++) {
    side->last[side->n_last] = entries[i];
    raft_payload_ref(side->last[side->n_last++].payload);
    assert_int_equal(message->entries[i].size, raft_entry_size(&entries[i]));
    assert_int_equal(message->entries[i].term, entries[i].term);
    assert_int_equal(message->entries[i].type, entries[i].type);
  }
  if (side->n_received < SEEN_MAX) side->seen[side->n_received] = *message;
  side->n_received++;
  pthread_cond_broadcast(&side->changed);
  pthread_mutex_unlock(&side->mutex);
}

static void on_wake(void *ctx) {
  struct side *side = ctx;
  pthread_mutex_lock(&side->mutex);
  assert_false(side->detached);
  side->n_wakes++;
  side->woken_at = os_now(os);
  pthread_cond_broadcast(&side->changed);
  pthread_mutex_unlock(&side->mutex);
}

static const struct raft_transport_methods methods = {
    .hello = on_hello,
    .meet = on_meet,
    .greet = on_greet,
    .refused = on_refused,
    .receive = on_receive,
    .request = on_request,
    .wake = on_wake,
};

static void side_open(struct side *side, uint64_t id, const char *listen) {
  char text[RAFT_TRANSPORT_TEXT_MAX];
  side->id = id;
  side->detached = false;
  if (side->transport == NULL) {
    pthread_mutex_init(&side->mutex, NULL);
    os_condition_init(&side->changed);
    side->transport = raft_transport_get(os);
    assert_non_null(side->transport);
  }
  int error = raft_transport_attach(side->transport, &methods, side, listen, &side->node, text);
  if (error) print_error("%s\n", text);
  assert_int_equal(error, 0);
  snprintf(side->address, sizeof side->address, "%s", raft_transport_address(side->node));
}

static void side_detach(struct side *side) {
  raft_transport_detach(side->node);
  pthread_mutex_lock(&side->mutex);
  side->detached = true;
  pthread_mutex_unlock(&side->mutex);
}

static void side_free(struct side *side) {
  forget_last(side);
  raft_transport_put(side->transport);
  pthread_cond_destroy(&side->changed);
  pthread_mutex_destroy(&side->mutex);
  free(side);
}

static void side_close(struct side *side) {
  side_detach(side);
  side_free(side);
}

static struct side *side_new(uint64_t id) {
  struct side *side = calloc(1, sizeof *side);
  assert_non_null(side);
  side_open(side, id, "127.0.0.1:0");
  return side;
}

/* Waits until *count, which `side` guards, has reached n. */
static void await(struct side *side, const unsigned *count, unsigned n) {
  uint64_t deadline = os_now(os) + PATIENCE;
  pthread_mutex_lock(&side->mutex);
  while (*count < n) assert_true(os_condition_wait(os, &side->changed, &side->mutex, deadline) == 0 || *count >= n);
  pthread_mutex_unlock(&side->mutex);
}

static struct raft_message message_to(const struct side *to, uint8_t type, uint64_t index) {
  return (struct raft_message){
      .type = type, .to = to->id, .to_incarnation = {{(uint8_t)to->id}}, .term = 3, .index = index};
}

/* Sends as soon as there is a connection: nothing tells a node of it but the first message that gets through. */
static void send_soon(struct side *from, const struct raft_message *message, const struct raft_entry *entries) {
  uint64_t deadline = os_now(os) + PATIENCE;
  pthread_mutex_lock(&from->mutex);
  while (!raft_transport_send(from->node, message, entries)) {
    assert_true(os_now(os) < deadline);
    os_condition_wait(os, &from->changed, &from->mutex, os_now(os) + OS_MS);
  }
  pthread_mutex_unlock(&from->mutex);
}

static void await_connected(struct side *side, uint64_t id) {
  uint64_t deadline = os_now(os) + PATIENCE;
  pthread_mutex_lock(&side->mutex);
  while (!raft_transport_is_connected(side->node, id)) {
    assert_true(os_now(os) < deadline);
    os_condition_wait(os, &side->changed, &side->mutex, os_now(os) + OS_MS);
  }
  pthread_mutex_unlock(&side->mutex);
}

static void introduce(struct side *a, struct side *b) {
  assert_int_equal(raft_transport_set_peer(a->node, b->id, b->address), 0);
  assert_int_equal(raft_transport_set_peer(b->node, a->id, a->address), 0);
}

static struct raft_entry entry_make(uint64_t index, uint32_t size) {
  struct raft_entry entry = {.type = RAFT_ENTRY_DATA, .flags = RAFT_ENTRY_LAST, .term = 3, .index = index, .pages = 9};
  if (size == 0) return entry;
  entry.payload = raft_payload_new(size);
  assert_non_null(entry.payload);
  for (uint32_t i = 0; i < size; i++) entry.payload->bytes[i] = (uint8_t)((uint64_t)i * 31 + index);
  return entry;
}

static void entry_check(const struct raft_entry *entry, uint64_t index, uint32_t size) {
  struct raft_entry expected = entry_make(index, size);
  assert_int_equal(entry->index, index);
  assert_int_equal(entry->pages, 9);
  assert_int_equal(raft_entry_size(entry), size);
  if (size) assert_memory_equal(entry->payload->bytes, expected.payload->bytes, size);
  raft_payload_unref(expected.payload);
}

/* ---- Talking ---- */

static void two_nodes_meet_and_every_field_of_a_message_arrives(void **state) {
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  introduce(a, b);
  struct raft_message message = {.type = RAFT_APPEND_RESULT,
                                 .reject = true,
                                 .to = 2,
                                 .to_incarnation = {{2}},
                                 .term = 11,
                                 .index = 12,
                                 .log_term = 13,
                                 .commit = 14,
                                 .hint_index = 15,
                                 .hint_term = 16,
                                 .round = 17,
                                 .context = 18};
  send_soon(a, &message, NULL);
  await(b, &b->n_received, 1);
  message.from = 1;
  message.from_incarnation.bytes[0] = 1;
  const struct raft_message *got = &b->seen[0];
  assert_int_equal(got->type, message.type);
  assert_true(got->reject);
  assert_int_equal(got->from, 1);
  assert_int_equal(got->to, 2);
  assert_memory_equal(&got->from_incarnation, &message.from_incarnation, sizeof got->from_incarnation);
  assert_memory_equal(&got->to_incarnation, &message.to_incarnation, sizeof got->to_incarnation);
  assert_memory_equal(&got->term, &message.term, 8 * sizeof(uint64_t));
  await_connected(a, 2);
  await_connected(b, 1);
  assert_int_equal(b->met.peers_hash, 7);
  assert_false(raft_transport_is_connected(a->node, 3));
  side_close(a);
  side_close(b);
}

static void names_and_ipv6_addresses_can_be_dialled(void **state) {
  (void)state;
  char name[RAFT_ADDRESS_MAX + 16], text[RAFT_TRANSPORT_TEXT_MAX];
  struct raft_transport_node *node;
  struct side *a = side_new(1), *b = side_new(2);
  struct addrinfo *found = NULL; /* a machine without /etc/hosts knows no name */
  bool has_names = getaddrinfo("localhost", NULL, NULL, &found) == 0;
  if (has_names) freeaddrinfo(found);
  snprintf(name, sizeof name, "%s%s", has_names ? "localhost" : "127.0.0.1", strrchr(b->address, ':'));
  assert_int_equal(raft_transport_set_peer(a->node, 2, name), 0);
  struct raft_message message = message_to(b, RAFT_VOTE, 1);
  send_soon(a, &message, NULL);
  await(b, &b->n_received, 1);
  if (raft_transport_attach(a->transport, &methods, a, "[::1]:0", &node, text) == 0) { /* this machine has IPv6 */
    raft_transport_detach(node);
    struct side *c = calloc(1, sizeof *c);
    side_open(c, 3, "[::1]:0");
    assert_int_equal(c->address[0], '[');
    assert_int_equal(raft_transport_set_peer(a->node, 3, c->address), 0);
    message = message_to(c, RAFT_VOTE, 2);
    send_soon(a, &message, NULL);
    await(c, &c->n_received, 1);
    side_close(c);
  }
  side_close(a);
  side_close(b);
}

static void entries_of_all_sizes_arrive_whole(void **state) {
  (void)state;
  static const uint32_t sizes[] = {0, 1, 200, 65536, 3 << 20, 0, 7, 100000};
  struct raft_entry entries[8];
  struct side *a = side_new(1), *b = side_new(2);
  introduce(a, b);
  for (uint32_t i = 0; i < 8; i++) entries[i] = entry_make(100 + i, sizes[i]);
  struct raft_message message = message_to(b, RAFT_APPEND, 99);
  message.n_entries = 8;
  send_soon(a, &message, entries);
  await(b, &b->n_received, 1);
  assert_int_equal(b->n_last, 8);
  for (uint32_t i = 0; i < 8; i++) entry_check(&b->last[i], 100 + i, sizes[i]);
  for (uint32_t i = 0; i < 8; i++) raft_payload_unref(entries[i].payload);
  entries[0] = entry_make(1, RAFT_PAYLOAD_MAX);
  message = message_to(b, RAFT_APPEND, 0);
  message.n_entries = 1;
  send_soon(a, &message, entries);
  await(b, &b->n_received, 2);
  entry_check(&b->last[0], 1, RAFT_PAYLOAD_MAX);
  raft_payload_unref(entries[0].payload);
  side_close(a);
  side_close(b);
}

static void a_heartbeat_overtakes_queued_entries_and_appends_stay_in_order(void **state) {
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  introduce(a, b);
  struct raft_message message = message_to(b, RAFT_HEARTBEAT, 1);
  send_soon(a, &message, NULL);
  await(b, &b->n_received, 1);
  pthread_mutex_lock(&b->mutex);
  b->blocks = true;
  pthread_mutex_unlock(&b->mutex);
  struct raft_entry entry = entry_make(0, 1 << 20);
  unsigned n = 0;
  for (bool queued = true; queued; n += queued) {
    message = message_to(b, RAFT_APPEND, n);
    message.n_entries = 1;
    entry.index = n + 1;
    queued = raft_transport_send(a->node, &message, &entry);
  }
  assert_in_range(n, 20, 64); /* RAFT_SEND_QUEUE_MAX and what the kernel holds */
  message = message_to(b, RAFT_HEARTBEAT, 77);
  assert_true(raft_transport_send(a->node, &message, NULL));
  pthread_mutex_lock(&b->mutex);
  b->blocks = false;
  pthread_cond_broadcast(&b->changed);
  pthread_mutex_unlock(&b->mutex);
  await(b, &b->n_received, n + 2);
  uint64_t next = 0;
  unsigned heartbeat_at = 0;
  for (unsigned i = 1; i < n + 2; i++) {
    if (b->seen[i].type == RAFT_HEARTBEAT)
      heartbeat_at = i;
    else
      assert_int_equal(b->seen[i].index, next++);
  }
  assert_in_range(heartbeat_at, 1, n - 10);
  raft_payload_unref(entry.payload);
  side_close(a);
  side_close(b);
}

static void chunks_of_a_snapshot_arrive_whole_and_in_order(void **state) {
  (void)state;
  static const uint32_t sizes[] = {0, 1, RAFT_SNAPSHOT_CHUNK_MAX, 777};
  struct side *a = side_new(1), *b = side_new(2);
  introduce(a, b);
  uint64_t offset = 0;
  for (unsigned i = 0; i < 4; i++) {
    struct raft_entry entry = entry_make(i, sizes[i]);
    struct raft_message message = message_to(b, RAFT_SNAPSHOT, 5);
    message.offset = offset;
    message.size_bytes = UINT64_C(1) << 40;
    message.chunk_bytes = sizes[i];
    send_soon(a, &message, sizes[i] ? &entry : NULL);
    await(b, &b->n_received, i + 1);
    assert_int_equal(b->seen[i].offset, offset);
    assert_int_equal(b->seen[i].size_bytes, UINT64_C(1) << 40);
    assert_int_equal(b->seen[i].chunk_bytes, sizes[i]);
    if (sizes[i]) assert_int_equal(raft_entry_size(&b->last[0]), sizes[i]);
    if (sizes[i]) assert_memory_equal(b->last[0].payload->bytes, entry.payload->bytes, sizes[i]);
    offset += sizes[i];
    raft_payload_unref(entry.payload);
  }
  struct raft_message answer = message_to(a, RAFT_SNAPSHOT_RESULT, 5);
  answer.offset = offset;
  answer.context = 9;
  send_soon(b, &answer, NULL);
  await(a, &a->n_received, 1);
  assert_int_equal(a->seen[0].offset, offset);
  assert_int_equal(a->seen[0].context, 9);
  side_close(a);
  side_close(b);
}

static void a_message_that_is_too_large_is_dropped(void **state) {
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  introduce(a, b);
  struct raft_message message = message_to(b, RAFT_HEARTBEAT, 0);
  send_soon(a, &message, NULL);
  struct raft_entry entries[2] = {entry_make(1, RAFT_PAYLOAD_MAX), entry_make(2, RAFT_PAYLOAD_MAX)};
  message = message_to(b, RAFT_APPEND, 0);
  message.n_entries = 2;
  assert_false(raft_transport_send(a->node, &message, entries));
  message = message_to(b, RAFT_VOTE, 0);
  assert_true(raft_transport_send(a->node, &message, NULL));
  await(b, &b->n_received, 2);
  assert_int_equal(b->seen[1].type, RAFT_VOTE);
  message.to = 9;
  assert_false(raft_transport_send(a->node, &message, NULL));
  raft_payload_unref(entries[0].payload);
  raft_payload_unref(entries[1].payload);
  side_close(a);
  side_close(b);
}

/* ---- Refusals ---- */

static void who_is_refused_gets_the_sentence_and_tries_again(void **state) {
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  b->refuses = true;
  assert_int_equal(raft_transport_set_peer(a->node, 2, b->address), 0);
  await(a, &a->n_refused, 1);
  assert_string_equal(a->refusal, "node 2 does not want node 1");
  assert_false(raft_transport_is_connected(a->node, 2));
  pthread_mutex_lock(&b->mutex);
  b->refuses = false;
  pthread_mutex_unlock(&b->mutex);
  struct raft_message message = message_to(b, RAFT_VOTE, 1);
  send_soon(a, &message, NULL);
  await(b, &b->n_received, 1);
  side_close(a);
  side_close(b);
}

static void the_dialler_may_refuse_as_well_and_the_other_side_gets_to_know(void **state) {
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  a->refuses = true;
  assert_int_equal(raft_transport_set_peer(a->node, 2, b->address), 0);
  await(b, &b->n_refused, 1);
  assert_string_equal(b->refusal, "node 1 does not want node 2");
  side_close(a);
  side_close(b);
}

static void another_node_at_the_address_is_refused(void **state) {
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  assert_int_equal(raft_transport_set_peer(a->node, 3, b->address), 0);
  await(b, &b->n_refused, 1);
  assert_non_null(strstr(b->refusal, "node 2 is there"));
  assert_int_equal(a->n_met, 0);
  side_close(a);
  side_close(b);
}

static void addresses_that_cannot_be_are_refused_with_a_sentence(void **state) {
  (void)state;
  char text[RAFT_TRANSPORT_TEXT_MAX];
  struct raft_transport_node *node;
  struct side *a = side_new(1);
  assert_int_equal(raft_transport_attach(a->transport, &methods, a, a->address, &node, text), -EADDRINUSE);
  assert_non_null(strstr(text, a->address));
  assert_int_equal(raft_transport_attach(a->transport, &methods, a, "nonsense", &node, text), -EINVAL);
  assert_non_null(strstr(text, "host:port"));
  static const char *const bad[] = {"", ":1", "host", "host:", "host:x", "host:70000", "::1:5", "[::1]", "h:1:2"};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    assert_int_equal(raft_transport_set_peer(a->node, 2, bad[i]), -EINVAL);
  side_close(a);
}

/* ---- Requests ---- */

static struct raft_request request_to(const struct side *to, const char *text) {
  struct raft_request request = {.kind = 9,
                                 .bits = 1,
                                 .to = to->id,
                                 .to_incarnation = {{(uint8_t)to->id}},
                                 .context = 5,
                                 .node = 6,
                                 .incarnation = {{7}},
                                 .index = 8,
                                 .wait_ms = 1000,
                                 .address = "host:1"};
  snprintf(request.text, sizeof request.text, "%s", text);
  return request;
}

/* `contact` 0: the peer that the request names. */
static void ask_soon(struct side *from, uint32_t contact, const struct raft_request *request) {
  uint64_t deadline = os_now(os) + PATIENCE;
  pthread_mutex_lock(&from->mutex);
  while (!(contact ? raft_transport_request_contact(from->node, contact, request)
                   : raft_transport_request(from->node, request))) {
    assert_true(os_now(os) < deadline);
    os_condition_wait(os, &from->changed, &from->mutex, os_now(os) + OS_MS);
  }
  pthread_mutex_unlock(&from->mutex);
}

static void a_request_is_answered_on_the_connection_that_it_came_by(void **state) {
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  assert_int_equal(raft_transport_set_peer(a->node, 2, b->address), 0); /* b does not dial a */
  struct raft_request request = request_to(b, "why");
  assert_false(raft_transport_request(b->node, &request));
  ask_soon(a, 0, &request);
  await(a, &a->n_replies, 1);
  assert_int_equal(b->asked.from, 1);
  assert_int_equal(b->asked.from_incarnation.bytes[0], 1);
  assert_int_equal(b->asked.wait_ms, 1000);
  assert_string_equal(b->asked.address, "host:1");
  assert_true(a->reply.is_reply);
  assert_int_equal(a->reply.from, 2);
  assert_int_equal(a->reply.context, 5);
  assert_int_equal(a->reply.status, -3);
  assert_string_equal(a->reply.text, "asked why");
  side_close(a);
  side_close(b);
}

static void a_guest_asks_whoever_is_at_an_address_and_is_sent_no_message(void **state) {
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  struct raft_request request = request_to(b, "who");
  assert_int_equal(raft_transport_set_contact(a->node, 3, "nonsense"), -EINVAL);
  assert_int_equal(raft_transport_set_contact(a->node, 3, b->address), 0);
  ask_soon(a, 3, &request);
  await(a, &a->n_replies, 1);
  assert_true(raft_transport_is_contact_ready(a->node, 3));
  assert_false(raft_transport_is_contact_ready(a->node, 4));
  assert_int_equal(a->n_greeted, 1);
  assert_true(b->met.features & RAFT_FEATURE_GUEST);
  struct raft_message message = message_to(b, RAFT_VOTE, 1);
  assert_false(raft_transport_send(a->node, &message, NULL));
  assert_false(raft_transport_is_connected(b->node, 1));
  /* Both kinds of connection between the same two: neither closes the other. */
  introduce(a, b);
  await_connected(a, 2);
  await_connected(b, 1);
  for (unsigned i = 2; i < 10; i++) {
    ask_soon(a, i % 2 ? 3 : 0, &request);
    await(a, &a->n_replies, i);
  }
  assert_int_equal(a->n_greeted, 1);
  assert_int_equal(raft_transport_set_contact(a->node, 3, NULL), 0);
  send_soon(a, &message, NULL);
  await(b, &b->n_received, 1);
  side_close(a);
  side_close(b);
}

static void who_is_not_welcome_any_more_is_told_so(void **state) {
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  introduce(a, b);
  await_connected(b, 1);
  raft_transport_review(b->node);
  struct raft_message message = message_to(b, RAFT_VOTE, 1);
  send_soon(a, &message, NULL);
  await(b, &b->n_received, 1);
  pthread_mutex_lock(&b->mutex);
  b->refuses = true;
  pthread_mutex_unlock(&b->mutex);
  raft_transport_review(b->node);
  await(a, &a->n_refused, 1);
  assert_string_equal(a->refusal, "node 2 does not want node 1");
  side_close(a);
  side_close(b);
}

/* ---- Strangers, by hand ---- */

static int dial_by_hand(const struct side *side) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  address.sin_port = htons((uint16_t)strtoul(strrchr(side->address, ':') + 1, NULL, 10));
  int descriptor = socket(AF_INET, SOCK_STREAM, 0);
  assert_true(descriptor >= 0);
  if (connect(descriptor, (struct sockaddr *)&address, sizeof address) == 0) return descriptor;
  int error = -errno;
  close(descriptor);
  return error;
}

/* All that comes until the other side hangs up. */
static size_t read_to_the_end(int descriptor, uint8_t *bytes, size_t size) {
  size_t used = 0;
  for (;;) {
    ssize_t n = recv(descriptor, bytes + used, size - used, 0);
    if (n <= 0) break;
    used += (size_t)n;
  }
  close(descriptor);
  return used;
}

static void expect_answer(struct side *side, const uint8_t *bytes, size_t size, const char *expected) {
  uint8_t answer[2 * WIRE_GREETING_MAX];
  struct raft_refusal refusal;
  int descriptor = dial_by_hand(side);
  assert_true(descriptor >= 0);
  assert_int_equal(send(descriptor, bytes, size, MSG_NOSIGNAL), size);
  shutdown(descriptor, SHUT_WR);
  size_t n = read_to_the_end(descriptor, answer, sizeof answer);
  if (expected == NULL) {
    assert_int_equal(n, 0);
    return;
  }
  assert_int_equal(wire_decode_refusal(answer, (uint32_t)n, &refusal), RAFT_OK);
  assert_non_null(strstr(refusal.text, expected));
}

static void a_stranger_gets_nothing_but_a_refusal(void **state) {
  (void)state;
  uint8_t frame[WIRE_GREETING_MAX];
  struct side *a = side_new(1);
  static const char http[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
  expect_answer(a, (const uint8_t *)http, sizeof http - 1, "no Hello");
  static const uint8_t large[WIRE_HEADER_SIZE] = {0, 0, 16, 0, WIRE_HELLO, 1}; /* a Hello of 1 MiB */
  expect_answer(a, large, sizeof large, "no Hello");
  struct raft_hello hello = {.node = 5, .protocol_lowest = 8, .protocol_highest = 9};
  expect_answer(a, frame, wire_encode_hello(&hello, frame), "protocols 8 to 9");
  assert_int_equal(a->n_met, 0);
  struct raft_message message = message_to(a, RAFT_VOTE, 1);
  uint32_t head_size, length;
  assert_true(wire_message_size(&message, NULL, &head_size, &length));
  wire_encode_message(&message, NULL, length, frame);
  expect_answer(a, frame, length, NULL);
  uint32_t size = wire_encode_hello(&hello, frame);
  frame[40] ^= 1;
  expect_answer(a, frame, size, NULL);
  assert_int_equal(a->n_received, 0);
  side_close(a);
}

static void a_damaged_message_ends_the_connection_and_is_not_delivered(void **state) {
  (void)state;
  uint8_t frame[WIRE_GREETING_MAX], answer[WIRE_GREETING_MAX];
  struct side *a = side_new(1);
  struct raft_hello hello = {.node = 5, .protocol_lowest = 1, .protocol_highest = 1};
  uint32_t size = wire_encode_hello(&hello, frame), head_size, length;
  int descriptor = dial_by_hand(a);
  assert_int_equal(send(descriptor, frame, size, MSG_NOSIGNAL), size);
  struct raft_message message = message_to(a, RAFT_VOTE, 1);
  assert_true(wire_message_size(&message, NULL, &head_size, &length));
  wire_encode_message(&message, NULL, length, frame);
  assert_int_equal(send(descriptor, frame, length, MSG_NOSIGNAL), length);
  await(a, &a->n_received, 1);
  frame[60] ^= 1;
  assert_int_equal(send(descriptor, frame, length, MSG_NOSIGNAL), length);
  size_t n = read_to_the_end(descriptor, answer, sizeof answer);
  assert_int_equal(wire_decode_hello(answer, (uint32_t)n, &hello), RAFT_OK);
  assert_int_equal(hello.node, 1);
  assert_int_equal(a->n_received, 1);
  side_close(a);
}

/* A guest by hand, who has said Hello. */
static int guest_by_hand(const struct side *side, uint64_t id) {
  uint8_t frame[WIRE_GREETING_MAX];
  struct raft_hello hello = {
      .node = id, .protocol_lowest = 1, .protocol_highest = 1, .features = RAFT_FEATURE_GUEST, .incarnation = {{9}}};
  uint32_t size = wire_encode_hello(&hello, frame);
  int descriptor = dial_by_hand(side);
  assert_int_equal(send(descriptor, frame, size, MSG_NOSIGNAL), size);
  return descriptor;
}

static void what_a_guest_may_not_send_ends_its_connection(void **state) {
  uint8_t frames[3][RAFT_REQUEST_MAX], answer[4 * RAFT_REQUEST_MAX];
  uint32_t lengths[3], head_size;
  (void)state;
  struct side *a = side_new(1);
  struct raft_message message = message_to(a, RAFT_VOTE, 1);
  assert_true(wire_message_size(&message, NULL, &head_size, &lengths[0]));
  wire_encode_message(&message, NULL, lengths[0], frames[0]);
  struct raft_request request = request_to(a, "x");
  request.is_reply = true; /* to nothing that was asked on this connection */
  lengths[1] = wire_encode_request(&request, frames[1]);
  request.is_reply = false;
  lengths[2] = wire_encode_request(&request, frames[2]);
  uint32_t too_long = RAFT_REQUEST_MAX + 1;
  memcpy(frames[2], &too_long, 4);
  for (int i = 0; i < 3; i++) {
    int descriptor = guest_by_hand(a, 5);
    assert_int_equal(send(descriptor, frames[i], lengths[i], MSG_NOSIGNAL), lengths[i]);
    read_to_the_end(descriptor, answer, sizeof answer); /* it comes to an end */
  }
  assert_int_equal(a->n_received, 0);
  assert_int_equal(a->n_asked, 0);
  side_close(a);
}

static void too_many_guests_are_refused_and_peers_are_not(void **state) {
  enum { MANY = 64 };
  int descriptors[MANY];
  uint8_t frame[WIRE_GREETING_MAX], answer[WIRE_GREETING_MAX];
  struct raft_refusal refusal;
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  for (unsigned i = 0; i < MANY; i++) {
    descriptors[i] = guest_by_hand(a, 100 + i);
    await(a, &a->n_met, i + 1);
  }
  struct raft_hello hello = {
      .node = 99, .protocol_lowest = 1, .protocol_highest = 1, .features = RAFT_FEATURE_GUEST, .incarnation = {{9}}};
  int descriptor = dial_by_hand(a);
  uint32_t size = wire_encode_hello(&hello, frame);
  assert_int_equal(send(descriptor, frame, size, MSG_NOSIGNAL), size);
  shutdown(descriptor, SHUT_WR);
  size_t n = read_to_the_end(descriptor, answer, sizeof answer);
  assert_int_equal(wire_decode_refusal(answer, (uint32_t)n, &refusal), RAFT_OK);
  assert_non_null(strstr(refusal.text, "try again later"));
  introduce(a, b);
  await_connected(b, 1);
  for (int i = 0; i < MANY; i++) close(descriptors[i]);
  side_close(a);
  side_close(b);
}

/* ---- Coming and going ---- */

static void a_peer_that_restarts_is_found_again(void **state) {
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  introduce(a, b);
  for (uint64_t i = 0; i < 3; i++) {
    struct raft_message message = message_to(b, RAFT_VOTE, i);
    send_soon(a, &message, NULL);
    await(b, &b->n_received, (unsigned)i + 1);
    message = message_to(a, RAFT_VOTE, i);
    send_soon(b, &message, NULL);
    await(a, &a->n_received, (unsigned)i + 1);
    char address[RAFT_ADDRESS_MAX];
    memcpy(address, b->address, sizeof address);
    side_detach(b);
    side_open(b, 2, address);
    assert_int_equal(raft_transport_set_peer(b->node, 1, a->address), 0);
  }
  await_connected(a, 2);
  side_close(a);
  side_close(b);
}

static void a_peer_that_moves_is_dialled_at_its_address(void **state) {
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  introduce(a, b);
  struct raft_message message = message_to(b, RAFT_VOTE, 1);
  send_soon(a, &message, NULL);
  await(b, &b->n_received, 1);
  side_detach(b);
  side_open(b, 2, "127.0.0.1:0");
  assert_int_equal(raft_transport_set_peer(a->node, 2, b->address), 0);
  send_soon(a, &message, NULL);
  await(b, &b->n_received, 2);
  assert_int_equal(raft_transport_set_peer(a->node, 2, NULL), 0);
  side_close(a);
  side_close(b);
}

static void what_is_queued_is_sent_before_a_node_is_detached(void **state) {
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  introduce(a, b);
  struct raft_entry entry = entry_make(1, 500000);
  struct raft_message message = message_to(b, RAFT_APPEND, 0);
  message.n_entries = 1;
  send_soon(a, &message, &entry);
  side_close(a);
  await(b, &b->n_received, 1);
  raft_payload_unref(entry.payload);
  side_close(b);
}

static void a_node_without_peers_or_listener_comes_and_goes(void **state) {
  (void)state;
  struct side *a = calloc(1, sizeof *a);
  side_open(a, 1, NULL);
  assert_string_equal(a->address, "");
  raft_transport_wake(a->node);
  await(a, &a->n_wakes, 1);
  for (int i = 0; i < 50; i++) {
    side_detach(a);
    side_open(a, 1, "127.0.0.1:0");
  }
  side_close(a);
}

static void wakes_come_and_never_early(void **state) {
  (void)state;
  struct side *a = side_new(1);
  raft_transport_wake(a->node);
  await(a, &a->n_wakes, 1);
  uint64_t time = os_now(os) + 30 * OS_MS;
  raft_transport_wake_at(a->node, os_now(os) + 3600 * OS_SECOND);
  raft_transport_wake_at(a->node, time); /* the earliest wins */
  raft_transport_wake_at(a->node, os_now(os) + 1800 * OS_SECOND);
  await(a, &a->n_wakes, 2);
  assert_true(a->woken_at >= time);
  raft_transport_wake_at(a->node, 0); /* long ago */
  await(a, &a->n_wakes, 3);
  side_close(a);
}

struct sender {
  struct side *from, *to;
  unsigned n, sent;
};

static void send_many(void *arg) {
  struct sender *sender = arg;
  struct raft_entry entry = entry_make(1, 3000);
  for (unsigned i = 0; i < sender->n; i++) {
    struct raft_message message = message_to(sender->to, i % 3 ? RAFT_APPEND : RAFT_HEARTBEAT, 0);
    message.n_entries = i % 3 ? 1 : 0;
    sender->sent += raft_transport_send(sender->from->node, &message, &entry);
  }
  raft_payload_unref(entry.payload);
}

static void many_threads_may_send_at_once(void **state) {
  (void)state;
  struct side *a = side_new(1), *b = side_new(2);
  introduce(a, b);
  struct raft_message message = message_to(b, RAFT_HEARTBEAT, 0);
  send_soon(a, &message, NULL);
  message = message_to(a, RAFT_HEARTBEAT, 0);
  send_soon(b, &message, NULL);
  struct sender senders[4];
  struct os_thread *threads[4];
  for (int i = 0; i < 4; i++) {
    senders[i] = (struct sender){.from = i % 2 ? a : b, .to = i % 2 ? b : a, .n = 1000};
    assert_int_equal(os_thread_start(os, "test", send_many, &senders[i], &threads[i]), 0);
  }
  for (int i = 0; i < 4; i++) os_thread_join(threads[i]);
  await(a, &a->n_received, 1 + senders[0].sent + senders[2].sent);
  await(b, &b->n_received, 1 + senders[1].sent + senders[3].sent);
  assert_int_equal(senders[0].sent, 1000);
  side_close(a);
  side_close(b);
}

#ifndef __SANITIZE_THREAD__
static bool can_talk(void) {
  struct side *a = side_new(1), *b = side_new(2);
  introduce(a, b);
  struct raft_message message = message_to(b, RAFT_VOTE, 1);
  send_soon(a, &message, NULL);
  await(b, &b->n_received, 1);
  side_close(a);
  side_close(b);
  return true;
}

static void a_forked_child_does_not_keep_the_port_and_may_have_its_own(void **state) {
  (void)state;
  int ends[2]; /* of the parent and of the child */
  char byte = 1;
  struct side *a = side_new(1);
  struct side address = *a;
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    close(ends[0]);
    if (write(ends[1], &byte, 1) != 1) _exit(2); /* alive */
    ssize_t n = read(ends[1], &byte, 1);         /* until the parent lets go */
    _exit(n == 0 && can_talk() ? 0 : 1);
  }
  close(ends[1]);
  assert_int_equal(read(ends[0], &byte, 1), 1);
  side_close(a);
  assert_int_equal(dial_by_hand(&address), -ECONNREFUSED);
  close(ends[0]);
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(two_nodes_meet_and_every_field_of_a_message_arrives),
      cmocka_unit_test(names_and_ipv6_addresses_can_be_dialled),
      cmocka_unit_test(entries_of_all_sizes_arrive_whole),
      cmocka_unit_test(a_heartbeat_overtakes_queued_entries_and_appends_stay_in_order),
      cmocka_unit_test(chunks_of_a_snapshot_arrive_whole_and_in_order),
      cmocka_unit_test(a_message_that_is_too_large_is_dropped),
      cmocka_unit_test(who_is_refused_gets_the_sentence_and_tries_again),
      cmocka_unit_test(the_dialler_may_refuse_as_well_and_the_other_side_gets_to_know),
      cmocka_unit_test(another_node_at_the_address_is_refused),
      cmocka_unit_test(addresses_that_cannot_be_are_refused_with_a_sentence),
      cmocka_unit_test(a_request_is_answered_on_the_connection_that_it_came_by),
      cmocka_unit_test(a_guest_asks_whoever_is_at_an_address_and_is_sent_no_message),
      cmocka_unit_test(who_is_not_welcome_any_more_is_told_so),
      cmocka_unit_test(what_a_guest_may_not_send_ends_its_connection),
      cmocka_unit_test(too_many_guests_are_refused_and_peers_are_not),
      cmocka_unit_test(a_stranger_gets_nothing_but_a_refusal),
      cmocka_unit_test(a_damaged_message_ends_the_connection_and_is_not_delivered),
      cmocka_unit_test(a_peer_that_restarts_is_found_again),
      cmocka_unit_test(a_peer_that_moves_is_dialled_at_its_address),
      cmocka_unit_test(what_is_queued_is_sent_before_a_node_is_detached),
      cmocka_unit_test(a_node_without_peers_or_listener_comes_and_goes),
      cmocka_unit_test(wakes_come_and_never_early),
      cmocka_unit_test(many_threads_may_send_at_once),
#ifndef __SANITIZE_THREAD__
      cmocka_unit_test(a_forked_child_does_not_keep_the_port_and_may_have_its_own),
#endif
  };
  os = os_real();
  return cmocka_run_group_tests_name("transport", tests, NULL, NULL);
}
