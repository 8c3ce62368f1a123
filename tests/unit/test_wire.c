/*
** Frames: what goes in comes out, and nothing else is believed.
*/
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>

#include "raft/io/wire.h"

static uint64_t draw(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

static struct raft_entry random_entry(uint64_t *random, uint64_t index) {
  struct raft_entry entry = {.type = (uint8_t)(1 + draw(random) % 3),
                             .flags = (uint8_t)(draw(random) % 8),
                             .term = draw(random),
                             .index = index,
                             .previous = draw(random),
                             .checksum = draw(random),
                             .origin_sequence = draw(random),
                             .pages = (uint32_t)draw(random),
                             .page_size = 4096};
  uint32_t size = draw(random) % 3 ? (uint32_t)(draw(random) % 500) : 0;
  for (int i = 0; i < RAFT_UUID_SIZE; i++) entry.origin.bytes[i] = (uint8_t)draw(random);
  if (size == 0) return entry;
  entry.payload = raft_payload_new(size);
  assert_non_null(entry.payload);
  for (uint32_t i = 0; i < size; i++) entry.payload->bytes[i] = (uint8_t)draw(random);
  return entry;
}

/* The frame of a message, malloc'ed. */
static uint8_t *encode(const struct raft_message *message, const struct raft_entry *entries, uint32_t *length) {
  uint32_t head_size;
  assert_true(wire_message_size(message, entries, &head_size, length));
  uint8_t *frame = malloc(*length);
  assert_non_null(frame);
  wire_encode_message(message, entries, *length, frame);
  uint32_t at = head_size;
  for (uint32_t i = 0; i < wire_payloads(message); i++) {
    if (raft_entry_size(&entries[i]) == 0) continue;
    memcpy(frame + at, entries[i].payload->bytes, entries[i].payload->size);
    at += entries[i].payload->size;
  }
  assert_int_equal(at, *length);
  return frame;
}

/* Decodes as the transport does; RAFT_OK or why not. Entries go to the caller. */
static int decode(const uint8_t *frame, uint32_t length, struct raft_message *message, struct raft_entry **entries,
                  struct raft_entry_meta **metas) {
  enum wire_type type;
  uint32_t told;
  *entries = NULL;
  *metas = NULL;
  if (wire_decode_header(frame, RAFT_FRAME_MAX, &type, &told) != RAFT_OK || told != length) return RAFT_INVALID;
  if (type != WIRE_MESSAGE || wire_decode_message(frame, length, message) != RAFT_OK) return RAFT_INVALID;
  assert_true(message->n_entries <= length / RAFT_ENTRY_HEADER_SIZE && message->chunk_bytes <= length);
  *entries = malloc((wire_payloads(message) + 1) * sizeof **entries);
  *metas = malloc((wire_payloads(message) + 1) * sizeof **metas);
  assert_true(*entries && *metas);
  return wire_decode_entries(frame, length, message, *entries, *metas);
}

static struct raft_message random_message(uint64_t *random, uint32_t n_entries) {
  struct raft_message message = {.type = n_entries ? RAFT_APPEND : (uint8_t)(1 + draw(random) % 13),
                                 .reject = draw(random) % 2,
                                 .hand_over = draw(random) % 2,
                                 .to = draw(random),
                                 .term = draw(random),
                                 .index = draw(random) >> 1,
                                 .log_term = draw(random),
                                 .commit = draw(random),
                                 .hint_index = draw(random),
                                 .hint_term = draw(random),
                                 .round = draw(random),
                                 .context = draw(random),
                                 .n_entries = n_entries};
  for (int i = 0; i < RAFT_UUID_SIZE; i++) message.to_incarnation.bytes[i] = (uint8_t)draw(random);
  if (message.type == RAFT_SNAPSHOT || message.type == RAFT_SNAPSHOT_RESULT) {
    message.commit = message.hint_index = 0; /* they have something else in their place */
    message.offset = draw(random);
    message.size_bytes = draw(random);
  }
  return message;
}

static void unref_all(struct raft_entry *entries, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) raft_payload_unref(entries[i].payload);
}

/* A SNAPSHOT with its chunk, in entries[0]. */
static struct raft_message random_chunk(uint64_t *random, struct raft_entry *entry) {
  struct raft_message message = random_message(random, 0);
  message.type = RAFT_SNAPSHOT;
  message.commit = message.hint_index = 0;
  message.offset = draw(random);
  message.size_bytes = draw(random);
  message.chunk_bytes = draw(random) % 5 ? (uint32_t)(draw(random) % 3000) : 0;
  *entry = (struct raft_entry){.payload = message.chunk_bytes ? raft_payload_new(message.chunk_bytes) : NULL};
  for (uint32_t i = 0; entry->payload && i < message.chunk_bytes; i++) entry->payload->bytes[i] = (uint8_t)draw(random);
  return message;
}

static void check_same(const struct raft_message *a, const struct raft_message *b, const struct raft_entry *x,
                       const struct raft_entry *y, const struct raft_entry_meta *metas) {
  assert_int_equal(a->type, b->type);
  assert_int_equal(a->reject, b->reject);
  assert_int_equal(a->hand_over, b->hand_over);
  assert_int_equal(a->to, b->to);
  assert_memory_equal(&a->to_incarnation, &b->to_incarnation, sizeof a->to_incarnation);
  assert_memory_equal(&a->term, &b->term, 10 * sizeof(uint64_t)); /* … size_bytes */
  assert_int_equal(a->chunk_bytes, b->chunk_bytes);
  assert_int_equal(a->n_entries, b->n_entries);
  for (uint32_t i = 0; x && y && metas && i < a->n_entries; i++) {
    uint8_t one[RAFT_ENTRY_HEADER_SIZE], two[RAFT_ENTRY_HEADER_SIZE];
    raft_entry_encode_header(&x[i], one);
    raft_entry_encode_header(&y[i], two);
    assert_memory_equal(one, two, sizeof one);
    if (raft_entry_size(&x[i])) assert_memory_equal(x[i].payload->bytes, y[i].payload->bytes, x[i].payload->size);
    assert_int_equal(metas[i].term, x[i].term);
    assert_int_equal(metas[i].size, raft_entry_size(&x[i]));
    assert_int_equal(metas[i].type, x[i].type);
  }
}

static void messages_come_back_as_they_were(void **state) {
  uint64_t random = 1;
  (void)state;
  for (int round = 0; round < 500; round++) {
    struct raft_entry entries[20], *decoded;
    struct raft_entry_meta *metas;
    uint32_t n = (uint32_t)(draw(&random) % 20), length;
    struct raft_message message = random_message(&random, n), back;
    for (uint32_t i = 0; i < n; i++) entries[i] = random_entry(&random, message.index + 1 + i);
    uint8_t *frame = encode(&message, entries, &length);
    assert_int_equal(decode(frame, length, &back, &decoded, &metas), RAFT_OK);
    check_same(&message, &back, entries, decoded, metas);
    unref_all(decoded, n);
    unref_all(entries, n);
    free(decoded);
    free(metas);
    free(frame);
  }
}

static void chunks_of_a_snapshot_come_back_as_they_were(void **state) {
  uint64_t random = 5;
  (void)state;
  for (int round = 0; round < 500; round++) {
    struct raft_entry entry = {0}, *decoded = NULL;
    struct raft_entry_meta *metas = NULL;
    uint32_t length;
    struct raft_message message = random_chunk(&random, &entry), back = {0};
    uint8_t *frame = encode(&message, &entry, &length);
    assert_int_equal(decode(frame, length, &back, &decoded, &metas), RAFT_OK);
    check_same(&message, &back, &entry, decoded, metas);
    if (message.chunk_bytes && decoded)
      assert_memory_equal(decoded[0].payload->bytes, entry.payload->bytes, message.chunk_bytes);
    uint32_t at = (uint32_t)(draw(&random) % length);
    unref_all(decoded, wire_payloads(&back));
    free(decoded);
    free(metas);
    frame[at] ^= (uint8_t)(1 << draw(&random) % 8);
    assert_int_equal(decode(frame, length, &back, &decoded, &metas), RAFT_INVALID);
    raft_payload_unref(entry.payload);
    free(decoded);
    free(metas);
    free(frame);
  }
}

static void a_chunk_that_is_too_long_or_not_what_its_message_says_is_refused(void **state) {
  uint64_t random = 6;
  uint32_t head_size, length;
  struct raft_entry entry, *decoded;
  struct raft_entry_meta *metas;
  struct raft_message message = random_chunk(&random, &entry), back = {0};
  (void)state;
  raft_payload_unref(entry.payload);
  entry.payload = raft_payload_new(RAFT_SNAPSHOT_CHUNK_MAX + 1);
  memset(entry.payload->bytes, 1, RAFT_SNAPSHOT_CHUNK_MAX + 1);
  message.chunk_bytes = RAFT_SNAPSHOT_CHUNK_MAX + 1;
  assert_false(wire_message_size(&message, &entry, &head_size, &length));
  message.chunk_bytes = RAFT_SNAPSHOT_CHUNK_MAX;
  assert_false(wire_message_size(&message, &entry, &head_size, &length)); /* there are more bytes */
  entry.payload->size = RAFT_SNAPSHOT_CHUNK_MAX;
  uint8_t *frame = encode(&message, &entry, &length);
  assert_int_equal(decode(frame, length, &back, &decoded, &metas), RAFT_OK);
  unref_all(decoded, 1);
  free(decoded);
  free(metas);
  for (int wrong = 0; wrong < 3; wrong++) {
    uint32_t chunk = RAFT_SNAPSHOT_CHUNK_MAX - 1;
    if (wrong == 0) memcpy(frame + 20, &chunk, 4); /* fewer than there are */
    if (wrong == 1) frame[16] = RAFT_SNAPSHOT_RESULT;
    if (wrong == 2) frame[16] = RAFT_HEARTBEAT;
    assert_int_equal(wire_decode_message(frame, length, &back), RAFT_INVALID);
  }
  raft_payload_unref(entry.payload);
  free(frame);
}

static void a_flipped_bit_anywhere_is_noticed(void **state) {
  uint64_t random = 2;
  struct raft_entry entries[3], *decoded;
  struct raft_entry_meta *metas;
  struct raft_message message = random_message(&random, 3), back;
  uint32_t length;
  (void)state;
  for (uint32_t i = 0; i < 3; i++) entries[i] = random_entry(&random, message.index + 1 + i);
  uint8_t *frame = encode(&message, entries, &length);
  for (uint32_t bit = 0; bit < 8 * length; bit++) {
    frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
    assert_int_equal(decode(frame, length, &back, &decoded, &metas), RAFT_INVALID);
    free(decoded);
    free(metas);
    frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
  }
  unref_all(entries, 3);
  free(frame);
}

/* Counts and sizes are read before the checksum over them is known to be right: none may lead astray. */
static void whatever_a_peer_sends_is_decoded_or_refused(void **state) {
  uint64_t random = 3;
  (void)state;
  for (int round = 0; round < 20000; round++) {
    struct raft_entry entries[4], *decoded;
    struct raft_entry_meta *metas;
    uint32_t n = (uint32_t)(draw(&random) % 4), length;
    bool is_chunk = draw(&random) % 4 == 0;
    struct raft_message message = is_chunk ? random_chunk(&random, entries) : random_message(&random, n), back;
    if (is_chunk) n = 1;
    for (uint32_t i = 0; i < n && !is_chunk; i++) entries[i] = random_entry(&random, message.index + 1 + i);
    uint8_t *frame = encode(&message, entries, &length);
    for (uint64_t i = draw(&random) % 4; i < 4; i++) {
      uint64_t value = draw(&random) % 3 ? draw(&random) : draw(&random) % 300;
      uint32_t at = (uint32_t)(draw(&random) % (length < 200 ? length : 200));
      memcpy(frame + at, &value, at + 8 <= length ? 1 + draw(&random) % 8 : 1);
    }
    uint32_t shorter = draw(&random) % 2 ? length : (uint32_t)(WIRE_HEADER_SIZE + draw(&random) % (length - 15));
    uint8_t *cut = malloc(shorter); /* so that the sanitizer sees every byte too many */
    assert_non_null(cut);
    memcpy(cut, frame, shorter);
    memcpy(cut, &shorter, 4);
    if (decode(cut, shorter, &back, &decoded, &metas) == RAFT_OK) unref_all(decoded, wire_payloads(&back));
    struct raft_hello hello;
    struct raft_refusal refusal;
    struct raft_request request;
    assert_int_equal(wire_decode_hello(cut, shorter, &hello), RAFT_INVALID);
    assert_int_equal(wire_decode_refusal(cut, shorter, &refusal), RAFT_INVALID);
    assert_int_equal(wire_decode_request(cut, shorter, &request), RAFT_INVALID);
    free(decoded);
    free(metas);
    free(cut);
    free(frame);
    unref_all(entries, n);
  }
}

static void greetings_come_back_as_they_were(void **state) {
  uint8_t frame[WIRE_GREETING_MAX];
  enum wire_type type;
  uint32_t told;
  struct raft_hello back;
  struct raft_hello hello = {.protocol_lowest = 1,
                             .protocol_highest = 2,
                             .features = 3,
                             .cluster = {{4}},
                             .database = {{5}},
                             .node = 6,
                             .incarnation = {{7}},
                             .election_ms = 8,
                             .peers_hash = 9,
                             .has_database = true,
                             .page_size = 4096,
                             .auto_vacuum = 2};
  (void)state;
  memset(hello.address, 'x', RAFT_ADDRESS_MAX - 1);
  uint32_t length = wire_encode_hello(&hello, frame);
  assert_int_equal(wire_decode_header(frame, WIRE_GREETING_MAX, &type, &told), RAFT_OK);
  assert_int_equal(type, WIRE_HELLO);
  assert_int_equal(told, length);
  assert_int_equal(wire_decode_hello(frame, length, &back), RAFT_OK);
  assert_memory_equal(&back.cluster, &hello.cluster, 2 * sizeof hello.cluster);
  assert_int_equal(back.protocol_lowest, 1);
  assert_int_equal(back.protocol_highest, 2);
  assert_int_equal(back.features, 3);
  assert_int_equal(back.node, 6);
  assert_int_equal(back.incarnation.bytes[0], 7);
  assert_int_equal(back.election_ms, 8);
  assert_int_equal(back.peers_hash, 9);
  assert_true(back.has_database);
  assert_int_equal(back.page_size, 4096);
  assert_int_equal(back.auto_vacuum, 2);
  assert_string_equal(back.address, hello.address);
  for (uint32_t bit = 0; bit < 8 * length; bit++) {
    frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
    assert_true(bit / 8 < 8 || wire_decode_hello(frame, length, &back) == RAFT_INVALID);
    frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
  }
}

static void a_refusal_says_why_and_by_which_configuration(void **state) {
  uint8_t frame[WIRE_GREETING_MAX];
  struct raft_refusal refusal = {.text = "no \x1b[31mred\n",
                                 .is_no_member = true,
                                 .knows_number = true,
                                 .cluster = {{4, 5}},
                                 .index = 77},
                      back;
  (void)state;
  uint32_t length = wire_encode_refusal(&refusal, frame);
  assert_int_equal(wire_decode_refusal(frame, length, &back), RAFT_OK);
  assert_string_equal(back.text, "no  [31mred ");
  assert_true(back.is_no_member);
  assert_true(back.knows_number);
  assert_memory_equal(&back.cluster, &refusal.cluster, sizeof back.cluster);
  assert_int_equal(back.index, 77);
  assert_int_equal(wire_decode_refusal(frame, length - 1, &back), RAFT_INVALID);
  memset(refusal.text, 'x', sizeof refusal.text); /* without an end: it is cut */
  length = wire_encode_refusal(&refusal, frame);
  assert_true(length <= WIRE_GREETING_MAX);
  assert_int_equal(wire_decode_refusal(frame, length, &back), RAFT_OK);
  assert_int_equal(strlen(back.text), RAFT_TRANSPORT_TEXT_MAX - 1);
  assert_int_equal(back.index, 77);
}

/* ---- Requests ---- */

static struct raft_request random_request(uint64_t *random) {
  struct raft_request request = {.kind = (uint8_t)(1 + draw(random) % 255),
                                 .is_reply = draw(random) % 2,
                                 .bits = (uint8_t)draw(random),
                                 .status = (int32_t)draw(random),
                                 .to = draw(random),
                                 .context = draw(random),
                                 .node = draw(random),
                                 .index = draw(random),
                                 .wait_ms = (uint32_t)draw(random)};
  for (int i = 0; i < RAFT_UUID_SIZE; i++) request.to_incarnation.bytes[i] = (uint8_t)draw(random);
  for (int i = 0; i < RAFT_UUID_SIZE; i++) request.incarnation.bytes[i] = (uint8_t)draw(random);
  memset(request.address, 'a', draw(random) % RAFT_ADDRESS_MAX);
  memset(request.text, 't', draw(random) % RAFT_TRANSPORT_TEXT_MAX);
  return request;
}

static void requests_and_replies_come_back_as_they_were(void **state) {
  uint64_t random = 5;
  uint8_t frame[RAFT_REQUEST_MAX];
  enum wire_type type;
  uint32_t told;
  (void)state;
  for (int round = 0; round < 500; round++) {
    struct raft_request request = random_request(&random), back;
    uint32_t length = wire_encode_request(&request, frame);
    assert_int_equal(wire_decode_header(frame, RAFT_REQUEST_MAX, &type, &told), RAFT_OK);
    assert_int_equal(type, WIRE_REQUEST);
    assert_int_equal(told, length);
    assert_int_equal(wire_decode_request(frame, length, &back), RAFT_OK);
    assert_int_equal(back.kind, request.kind);
    assert_int_equal(back.is_reply, request.is_reply);
    assert_int_equal(back.bits, request.bits);
    assert_int_equal(back.status, request.status);
    assert_int_equal(back.from, 0); /* the connection's Hello says it */
    assert_int_equal(back.to, request.to);
    assert_memory_equal(&back.to_incarnation, &request.to_incarnation, sizeof back.to_incarnation);
    assert_int_equal(back.context, request.context);
    assert_int_equal(back.node, request.node);
    assert_memory_equal(&back.incarnation, &request.incarnation, sizeof back.incarnation);
    assert_int_equal(back.index, request.index);
    assert_int_equal(back.wait_ms, request.wait_ms);
    assert_string_equal(back.address, request.address);
    assert_string_equal(back.text, request.text);
  }
}

/* With a checksum that fits: damage is noticed anyway, malice is not. */
static void whatever_is_asked_is_decoded_or_refused(void **state) {
  uint64_t random = 6;
  (void)state;
  for (int round = 0; round < 20000; round++) {
    uint8_t frame[RAFT_REQUEST_MAX];
    struct raft_request request = random_request(&random), back;
    uint32_t length = wire_encode_request(&request, frame);
    for (uint64_t i = draw(&random) % 4; i < 4; i++) {
      uint64_t value = draw(&random) % 3 ? draw(&random) : draw(&random) % 700;
      memcpy(frame + 16 + draw(&random) % (length - 24), &value, 1 + draw(&random) % 8);
    }
    uint32_t shorter = draw(&random) % 2 ? length : (uint32_t)(WIRE_HEADER_SIZE + draw(&random) % (length - 15));
    uint8_t *cut = malloc(shorter);
    assert_non_null(cut);
    memcpy(cut, frame, shorter);
    memcpy(cut, &shorter, 4);
    uint64_t checksum = XXH64(cut + 16, shorter - 16, XXH64(cut, 8, 0));
    memcpy(cut + 8, &checksum, 8);
    if (wire_decode_request(cut, shorter, &back) == RAFT_OK) {
      assert_true(back.kind != 0 && strlen(back.address) < RAFT_ADDRESS_MAX);
      assert_true(strlen(back.text) < RAFT_TRANSPORT_TEXT_MAX);
    }
    free(cut);
  }
}

static void a_flipped_bit_of_a_request_is_noticed(void **state) {
  uint64_t random = 7;
  uint8_t frame[RAFT_REQUEST_MAX];
  struct raft_request request = random_request(&random), back;
  (void)state;
  uint32_t length = wire_encode_request(&request, frame);
  for (uint32_t bit = 0; bit < 8 * length; bit++) {
    frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
    assert_true(bit / 8 < 4 || wire_decode_request(frame, length, &back) == RAFT_INVALID); /* the length is told */
    frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
  }
}

static void lengths_beyond_their_limit_are_refused_at_once(void **state) {
  uint8_t frame[WIRE_GREETING_MAX];
  enum wire_type type;
  uint32_t told;
  (void)state;
  struct raft_hello hello = {.node = 6};
  wire_encode_hello(&hello, frame);
  static const uint32_t bad[] = {0, 15, WIRE_GREETING_MAX + 1, RAFT_FRAME_MAX, UINT32_MAX};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    memcpy(frame, &bad[i], 4);
    assert_int_equal(wire_decode_header(frame, WIRE_GREETING_MAX, &type, &told), RAFT_INVALID);
  }
}

static void entries_that_do_not_follow_each_other_are_refused(void **state) {
  uint64_t random = 4;
  struct raft_entry entries[2], *decoded;
  struct raft_entry_meta *metas;
  struct raft_message message = random_message(&random, 2), back;
  uint32_t length;
  (void)state;
  entries[0] = random_entry(&random, message.index + 1);
  entries[1] = random_entry(&random, message.index + 3);
  uint8_t *frame = encode(&message, entries, &length);
  assert_int_equal(decode(frame, length, &back, &decoded, &metas), RAFT_INVALID);
  unref_all(entries, 2);
  free(decoded);
  free(metas);
  free(frame);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(messages_come_back_as_they_were),
      cmocka_unit_test(chunks_of_a_snapshot_come_back_as_they_were),
      cmocka_unit_test(a_chunk_that_is_too_long_or_not_what_its_message_says_is_refused),
      cmocka_unit_test(a_flipped_bit_anywhere_is_noticed),
      cmocka_unit_test(whatever_a_peer_sends_is_decoded_or_refused),
      cmocka_unit_test(greetings_come_back_as_they_were),
      cmocka_unit_test(a_refusal_says_why_and_by_which_configuration),
      cmocka_unit_test(requests_and_replies_come_back_as_they_were),
      cmocka_unit_test(whatever_is_asked_is_decoded_or_refused),
      cmocka_unit_test(a_flipped_bit_of_a_request_is_noticed),
      cmocka_unit_test(lengths_beyond_their_limit_are_refused_at_once),
      cmocka_unit_test(entries_that_do_not_follow_each_other_are_refused),
  };
  return cmocka_run_group_tests_name("wire", tests, NULL, NULL);
}
