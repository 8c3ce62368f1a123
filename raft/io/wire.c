/*
** Frames on a connection (all numbers little-endian):
**
**   offset size
**    0     4  length of the frame; at most RAFT_FRAME_MAX, until Hellos are exchanged WIRE_GREETING_MAX
**    4     1  type: enum wire_type
**    5     1  version of this header, 1
**    6     2  0
**    8     8  checksum: XXH64 of the head (bytes 16 … end of the head), seeded with the XXH64 (seed 0) of bytes
**             0 … 7; then, for each payload that is not empty, XXH64 of it seeded with the value so far
**   16     …  the rest of the head, by type; then payloads (messages only)
**
** Hello. Its layout is for ever, since it is what two versions agree by; more may follow its address.
**
**   16     4  lowest protocol that the node speaks
**   20     4  highest
**   24     8  features
**   32    16  cluster
**   48    16  database
**   64     8  node
**   72    16  incarnation
**   88     4  election time-out, ms
**   92     4  1 if the node holds a non-empty database
**   96     8  peers_hash
**  104     4  page size
**  108     4  auto_vacuum
**  112     2  length of the address, below RAFT_ADDRESS_MAX
**  114     …  the address, without a NUL
**
** Refusal. What follows the sentence may be missing, and more may follow.
**
**   16     2  length of the sentence
**   18     …  the sentence, UTF-8, without a NUL; then
**          1  bits: 1 the refused node is no member (any more) of the cluster that follows, 2 its number is a member's, in
**             another incarnation
**         16  that cluster
**          8  index of the committed configuration that says so
**
** Request, or the reply to one (struct raft_request), of protocol 1:
**
**   16     1  kind, not 0
**   17     1  1 if it is a reply
**   18     1  bits of the request
**   19     1  version of this layout, 1
**   20     4  status, two's complement
**   24     8  to; 0: whoever is there
**   32    16  to_incarnation
**   48     8  context
**   56     8  node
**   64    16  incarnation
**   80     8  index
**   88     4  wait, ms
**   92     2  length of the address, below RAFT_ADDRESS_MAX
**   94     2  length of the sentence, below RAFT_TRANSPORT_TEXT_MAX
**   96     …  the address, the sentence (UTF-8), without NULs: the end of the frame
**
** Message of protocol 1 (struct raft_message):
**
**   16     1  type
**   17     1  flags: 1 reject, 2 hand_over
**   18     2  0
**   20     4  number of entries
**   24     8  to
**   32    16  to_incarnation
**   48     8  term
**   56     8  index
**   64     8  log_term
**   72     8  commit
**   80     8  hint_index
**   88     8  hint_term
**   96     8  round
**  104     8  context
**
** Of a SNAPSHOT and its result these differ:
**
**   20     4  bytes of the chunk, which is the payload
**   72     8  offset
**   80     8  size of the whole file
**
** Then:
**
**  112     …  entry headers (entry.h), 72 bytes each: the end of the head; then their payloads
**
** Who sends it is known from the Hello of the connection and is not repeated.
*/
#include "wire.h"

#include <assert.h>
#include <string.h>

#include <xxhash.h>

#include "../../ext/bytes.h"

#define HEADER_VERSION 1
#define FLAG_REJECT 1
#define FLAG_HAND_OVER 2
#define HELLO_FIXED 114u
#define REFUSAL_FIXED 18u
#define REFUSAL_TAIL 25u
#define REFUSAL_NO_MEMBER 1
#define REFUSAL_KNOWS_NUMBER 2
#define REQUEST_FIXED 96u
#define REQUEST_VERSION 1
#define MESSAGE_FIXED (WIRE_HEADER_SIZE + WIRE_MESSAGE_SIZE)

_Static_assert(MESSAGE_FIXED == 112, "as drawn above");
_Static_assert(HELLO_FIXED + RAFT_ADDRESS_MAX <= WIRE_GREETING_MAX, "a Hello fits");
_Static_assert(REFUSAL_FIXED + RAFT_TRANSPORT_TEXT_MAX + REFUSAL_TAIL <= WIRE_GREETING_MAX, "a refusal fits");
_Static_assert(REQUEST_FIXED + RAFT_ADDRESS_MAX + RAFT_TRANSPORT_TEXT_MAX <= RAFT_REQUEST_MAX, "a request fits");
_Static_assert(MESSAGE_FIXED + RAFT_ENTRY_HEADER_SIZE + RAFT_PAYLOAD_MAX <= RAFT_FRAME_MAX, "the largest entry fits");

/* ---- Header ---- */

static void encode_header(uint8_t *bytes, uint32_t length, enum wire_type type) {
  le32_put(bytes, length);
  bytes[4] = (uint8_t)type;
  bytes[5] = HEADER_VERSION;
  le16_put(bytes + 6, 0);
}

static uint64_t head_checksum(const uint8_t *frame, uint32_t head_size) {
  return XXH64(frame + WIRE_HEADER_SIZE, head_size - WIRE_HEADER_SIZE, XXH64(frame, 8, 0));
}

int wire_decode_header(const uint8_t *bytes, uint32_t limit, enum wire_type *type, uint32_t *length) {
  *length = le32_get(bytes);
  *type = (enum wire_type)bytes[4];
  if (*length < WIRE_HEADER_SIZE || *length > limit) return RAFT_INVALID;
  if (bytes[4] < WIRE_HELLO || bytes[4] > WIRE_REQUEST) return RAFT_INVALID;
  if (bytes[5] != HEADER_VERSION || le16_get(bytes + 6) != 0) return RAFT_INVALID;
  return RAFT_OK;
}

/* ---- Greetings: all of the frame is head ---- */

static bool greeting_is_whole(const uint8_t *frame, uint32_t length, enum wire_type type, uint32_t fixed) {
  return length >= fixed && frame[4] == type && le64_get(frame + 8) == head_checksum(frame, length);
}

uint32_t wire_encode_hello(const struct raft_hello *hello, uint8_t *bytes) {
  size_t address = strnlen(hello->address, RAFT_ADDRESS_MAX - 1);
  uint32_t length = HELLO_FIXED + (uint32_t)address;
  encode_header(bytes, length, WIRE_HELLO);
  le32_put(bytes + 16, hello->protocol_lowest);
  le32_put(bytes + 20, hello->protocol_highest);
  le64_put(bytes + 24, hello->features);
  memcpy(bytes + 32, hello->cluster.bytes, RAFT_UUID_SIZE);
  memcpy(bytes + 48, hello->database.bytes, RAFT_UUID_SIZE);
  le64_put(bytes + 64, hello->node);
  memcpy(bytes + 72, hello->incarnation.bytes, RAFT_UUID_SIZE);
  le32_put(bytes + 88, hello->election_ms);
  le32_put(bytes + 92, hello->has_database);
  le64_put(bytes + 96, hello->peers_hash);
  le32_put(bytes + 104, hello->page_size);
  le32_put(bytes + 108, hello->auto_vacuum);
  le16_put(bytes + 112, (uint16_t)address);
  memcpy(bytes + HELLO_FIXED, hello->address, address);
  le64_put(bytes + 8, head_checksum(bytes, length));
  return length;
}

int wire_decode_hello(const uint8_t *frame, uint32_t length, struct raft_hello *hello) {
  *hello = (struct raft_hello){0};
  if (!greeting_is_whole(frame, length, WIRE_HELLO, HELLO_FIXED)) return RAFT_INVALID;
  uint32_t address = le16_get(frame + 112);
  if (address >= RAFT_ADDRESS_MAX || address > length - HELLO_FIXED) return RAFT_INVALID;
  if (memchr(frame + HELLO_FIXED, 0, address) || le32_get(frame + 92) > 1) return RAFT_INVALID;
  hello->protocol_lowest = le32_get(frame + 16);
  hello->protocol_highest = le32_get(frame + 20);
  hello->features = le64_get(frame + 24);
  memcpy(hello->cluster.bytes, frame + 32, RAFT_UUID_SIZE);
  memcpy(hello->database.bytes, frame + 48, RAFT_UUID_SIZE);
  hello->node = le64_get(frame + 64);
  memcpy(hello->incarnation.bytes, frame + 72, RAFT_UUID_SIZE);
  hello->election_ms = le32_get(frame + 88);
  hello->has_database = le32_get(frame + 92);
  hello->peers_hash = le64_get(frame + 96);
  hello->page_size = le32_get(frame + 104);
  hello->auto_vacuum = le32_get(frame + 108);
  memcpy(hello->address, frame + HELLO_FIXED, address);
  return RAFT_OK;
}

uint32_t wire_encode_refusal(const struct raft_refusal *refusal, uint8_t *bytes) {
  size_t size = strnlen(refusal->text, RAFT_TRANSPORT_TEXT_MAX - 1);
  uint8_t *tail = bytes + REFUSAL_FIXED + size;
  uint32_t length = REFUSAL_FIXED + (uint32_t)size + REFUSAL_TAIL;
  encode_header(bytes, length, WIRE_REFUSAL);
  le16_put(bytes + 16, (uint16_t)size);
  memcpy(bytes + REFUSAL_FIXED, refusal->text, size);
  tail[0] = (uint8_t)((refusal->is_no_member ? REFUSAL_NO_MEMBER : 0) |
                      (refusal->knows_number ? REFUSAL_KNOWS_NUMBER : 0));
  memcpy(tail + 1, refusal->cluster.bytes, RAFT_UUID_SIZE);
  le64_put(tail + 17, refusal->index);
  le64_put(bytes + 8, head_checksum(bytes, length));
  return length;
}

/* A stranger's sentence is shown to people: control characters have no place in it. `text` has size + 1 bytes. */
static void take_sentence(const uint8_t *bytes, uint32_t size, char *text) {
  for (uint32_t i = 0; i < size; i++) text[i] = (char)(bytes[i] < 0x20 || bytes[i] == 0x7f ? ' ' : bytes[i]);
  text[size] = 0;
}

int wire_decode_refusal(const uint8_t *frame, uint32_t length, struct raft_refusal *refusal) {
  *refusal = (struct raft_refusal){0};
  if (!greeting_is_whole(frame, length, WIRE_REFUSAL, REFUSAL_FIXED)) return RAFT_INVALID;
  uint32_t size = le16_get(frame + 16);
  if (size >= RAFT_TRANSPORT_TEXT_MAX || size > length - REFUSAL_FIXED) return RAFT_INVALID;
  take_sentence(frame + REFUSAL_FIXED, size, refusal->text);
  const uint8_t *tail = frame + REFUSAL_FIXED + size;
  if (length - REFUSAL_FIXED - size < REFUSAL_TAIL) return RAFT_OK;
  refusal->is_no_member = (tail[0] & REFUSAL_NO_MEMBER) != 0;
  refusal->knows_number = (tail[0] & REFUSAL_KNOWS_NUMBER) != 0;
  memcpy(refusal->cluster.bytes, tail + 1, RAFT_UUID_SIZE);
  refusal->index = le64_get(tail + 17);
  return RAFT_OK;
}

/* ---- Requests: all of the frame is head ---- */

uint32_t wire_encode_request(const struct raft_request *request, uint8_t *bytes) {
  size_t address = strnlen(request->address, RAFT_ADDRESS_MAX - 1);
  size_t text = strnlen(request->text, RAFT_TRANSPORT_TEXT_MAX - 1);
  uint32_t length = REQUEST_FIXED + (uint32_t)(address + text);
  encode_header(bytes, length, WIRE_REQUEST);
  bytes[16] = request->kind;
  bytes[17] = request->is_reply;
  bytes[18] = request->bits;
  bytes[19] = REQUEST_VERSION;
  le32_put(bytes + 20, (uint32_t)request->status);
  le64_put(bytes + 24, request->to);
  memcpy(bytes + 32, request->to_incarnation.bytes, RAFT_UUID_SIZE);
  le64_put(bytes + 48, request->context);
  le64_put(bytes + 56, request->node);
  memcpy(bytes + 64, request->incarnation.bytes, RAFT_UUID_SIZE);
  le64_put(bytes + 80, request->index);
  le32_put(bytes + 88, request->wait_ms);
  le16_put(bytes + 92, (uint16_t)address);
  le16_put(bytes + 94, (uint16_t)text);
  memcpy(bytes + REQUEST_FIXED, request->address, address);
  memcpy(bytes + REQUEST_FIXED + address, request->text, text);
  le64_put(bytes + 8, head_checksum(bytes, length));
  return length;
}

int wire_decode_request(const uint8_t *frame, uint32_t length, struct raft_request *request) {
  *request = (struct raft_request){0};
  if (length > RAFT_REQUEST_MAX || !greeting_is_whole(frame, length, WIRE_REQUEST, REQUEST_FIXED)) return RAFT_INVALID;
  uint32_t address = le16_get(frame + 92), text = le16_get(frame + 94);
  if (frame[16] == 0 || frame[17] > 1 || frame[19] != REQUEST_VERSION) return RAFT_INVALID;
  if (address >= RAFT_ADDRESS_MAX || text >= RAFT_TRANSPORT_TEXT_MAX || length != REQUEST_FIXED + address + text)
    return RAFT_INVALID;
  if (memchr(frame + REQUEST_FIXED, 0, address)) return RAFT_INVALID;
  request->kind = frame[16];
  request->is_reply = frame[17];
  request->bits = frame[18];
  request->status = (int32_t)le32_get(frame + 20);
  request->to = le64_get(frame + 24);
  memcpy(request->to_incarnation.bytes, frame + 32, RAFT_UUID_SIZE);
  request->context = le64_get(frame + 48);
  request->node = le64_get(frame + 56);
  memcpy(request->incarnation.bytes, frame + 64, RAFT_UUID_SIZE);
  request->index = le64_get(frame + 80);
  request->wait_ms = le32_get(frame + 88);
  memcpy(request->address, frame + REQUEST_FIXED, address);
  take_sentence(frame + REQUEST_FIXED + address, text, request->text);
  return RAFT_OK;
}

/* ---- Messages ---- */

static bool is_snapshot(uint8_t type) {
  return type == RAFT_SNAPSHOT || type == RAFT_SNAPSHOT_RESULT;
}

uint32_t wire_payloads(const struct raft_message *message) {
  return message->type == RAFT_SNAPSHOT ? message->chunk_bytes > 0 : message->n_entries;
}

static bool chunk_size(const struct raft_message *message, const struct raft_entry *entries, uint32_t *length) {
  *length = MESSAGE_FIXED + message->chunk_bytes;
  if (message->chunk_bytes == 0) return true;
  return message->type == RAFT_SNAPSHOT && message->chunk_bytes <= RAFT_SNAPSHOT_CHUNK_MAX &&
         raft_entry_size(&entries[0]) == message->chunk_bytes;
}

bool wire_message_size(const struct raft_message *message, const struct raft_entry *entries, uint32_t *head_size,
                       uint32_t *length) {
  uint64_t size = MESSAGE_FIXED + (uint64_t)message->n_entries * RAFT_ENTRY_HEADER_SIZE;
  *head_size = (uint32_t)size;
  if (is_snapshot(message->type)) return message->n_entries == 0 && chunk_size(message, entries, length);
  for (uint32_t i = 0; i < message->n_entries && size <= RAFT_FRAME_MAX; i++) size += raft_entry_size(&entries[i]);
  *length = (uint32_t)size;
  return size <= RAFT_FRAME_MAX;
}

void wire_encode_message(const struct raft_message *message, const struct raft_entry *entries, uint32_t length,
                         uint8_t *head) {
  encode_header(head, length, WIRE_MESSAGE);
  head[16] = message->type;
  head[17] = (uint8_t)((message->reject ? FLAG_REJECT : 0) | (message->hand_over ? FLAG_HAND_OVER : 0));
  le16_put(head + 18, 0);
  le32_put(head + 20, is_snapshot(message->type) ? message->chunk_bytes : message->n_entries);
  le64_put(head + 24, message->to);
  memcpy(head + 32, message->to_incarnation.bytes, RAFT_UUID_SIZE);
  le64_put(head + 48, message->term);
  le64_put(head + 56, message->index);
  le64_put(head + 64, message->log_term);
  le64_put(head + 72, is_snapshot(message->type) ? message->offset : message->commit);
  le64_put(head + 80, is_snapshot(message->type) ? message->size_bytes : message->hint_index);
  le64_put(head + 88, message->hint_term);
  le64_put(head + 96, message->round);
  le64_put(head + 104, message->context);
  uint32_t at = MESSAGE_FIXED;
  for (uint32_t i = 0; i < message->n_entries; i++, at += RAFT_ENTRY_HEADER_SIZE)
    raft_entry_encode_header(&entries[i], head + at);
  uint64_t checksum = head_checksum(head, at);
  for (uint32_t i = 0; i < wire_payloads(message); i++)
    if (raft_entry_size(&entries[i])) checksum = XXH64(entries[i].payload->bytes, entries[i].payload->size, checksum);
  le64_put(head + 8, checksum);
}

/* Does what follows the fixed part fit its type and number? Only an APPEND has entries, only a SNAPSHOT a chunk. */
static bool tail_fits(uint8_t type, uint32_t n, uint32_t size) {
  switch (type) {
  case RAFT_APPEND: return n <= size / RAFT_ENTRY_HEADER_SIZE;
  case RAFT_SNAPSHOT: return n == size && n <= RAFT_SNAPSHOT_CHUNK_MAX;
  default: return n == 0 && size == 0;
  }
}

int wire_decode_message(const uint8_t *frame, uint32_t length, struct raft_message *message) {
  *message = (struct raft_message){0};
  if (length < MESSAGE_FIXED || frame[4] != WIRE_MESSAGE) return RAFT_INVALID;
  if (frame[16] < RAFT_PRE_VOTE || frame[16] > RAFT_TIMEOUT_NOW || (frame[17] & ~(FLAG_REJECT | FLAG_HAND_OVER)) ||
      le16_get(frame + 18) != 0)
    return RAFT_INVALID;
  if (!tail_fits(frame[16], le32_get(frame + 20), length - MESSAGE_FIXED)) return RAFT_INVALID;
  message->type = frame[16];
  message->reject = frame[17] & FLAG_REJECT;
  message->hand_over = frame[17] & FLAG_HAND_OVER;
  message->to = le64_get(frame + 24);
  memcpy(message->to_incarnation.bytes, frame + 32, RAFT_UUID_SIZE);
  message->term = le64_get(frame + 48);
  message->index = le64_get(frame + 56);
  message->log_term = le64_get(frame + 64);
  if (is_snapshot(message->type)) {
    message->chunk_bytes = le32_get(frame + 20);
    message->offset = le64_get(frame + 72);
    message->size_bytes = le64_get(frame + 80);
  } else {
    message->n_entries = le32_get(frame + 20);
    message->commit = le64_get(frame + 72);
    message->hint_index = le64_get(frame + 80);
  }
  message->hint_term = le64_get(frame + 88);
  message->round = le64_get(frame + 96);
  message->context = le64_get(frame + 104);
  return RAFT_OK;
}

/* Entry headers fit together, the payloads fill the frame exactly, and the checksum is right. */
static bool entries_are_whole(const uint8_t *frame, uint32_t length, const struct raft_message *message,
                              struct raft_entry *entries, struct raft_entry_meta *metas) {
  uint32_t head_size = MESSAGE_FIXED + message->n_entries * RAFT_ENTRY_HEADER_SIZE, at = head_size;
  uint64_t checksum = head_checksum(frame, head_size);
  for (uint32_t i = 0; i < message->n_entries; i++) {
    uint32_t size;
    if (raft_entry_decode_header(frame + MESSAGE_FIXED + (size_t)i * RAFT_ENTRY_HEADER_SIZE, &entries[i], &size) !=
        RAFT_OK)
      return false;
    if (size > length - at || message->index >= UINT64_MAX - i - 1 || entries[i].index != message->index + i + 1)
      return false;
    metas[i] = (struct raft_entry_meta){.term = entries[i].term, .size = size, .type = entries[i].type};
    if (size) checksum = XXH64(frame + at, size, checksum);
    at += size;
  }
  return at == length && checksum == le64_get(frame + 8);
}

static bool chunk_is_whole(const uint8_t *frame, const struct raft_message *message, struct raft_entry *entries,
                           struct raft_entry_meta *metas) {
  uint64_t checksum = head_checksum(frame, MESSAGE_FIXED);
  if (message->chunk_bytes == 0) return checksum == le64_get(frame + 8);
  entries[0] = (struct raft_entry){0};
  metas[0] = (struct raft_entry_meta){.size = message->chunk_bytes};
  return XXH64(frame + MESSAGE_FIXED, message->chunk_bytes, checksum) == le64_get(frame + 8);
}

int wire_decode_entries(const uint8_t *frame, uint32_t length, const struct raft_message *message,
                        struct raft_entry *entries, struct raft_entry_meta *metas) {
  bool is_whole = is_snapshot(message->type) ? chunk_is_whole(frame, message, entries, metas)
                                             : entries_are_whole(frame, length, message, entries, metas);
  if (!is_whole) return RAFT_INVALID;
  const uint8_t *bytes = frame + MESSAGE_FIXED + (size_t)message->n_entries * RAFT_ENTRY_HEADER_SIZE;
  for (uint32_t i = 0; i < wire_payloads(message); i++) {
    if (metas[i].size == 0) continue;
    entries[i].payload = raft_payload_new(metas[i].size);
    if (entries[i].payload == NULL) {
      while (i > 0) raft_payload_unref(entries[--i].payload);
      return RAFT_NO_MEMORY;
    }
    memcpy(entries[i].payload->bytes, bytes, metas[i].size);
    bytes += metas[i].size;
  }
  return RAFT_OK;
}
