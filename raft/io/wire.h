/*
** Frames between nodes: encoding and decoding, no I/O. Format at the top of wire.c.
**
** Nothing that is decoded is trusted: RAFT_INVALID for whatever does not fit, and nothing is allocated
** before its length was checked against what has really arrived.
*/
#ifndef BALSA_RAFT_IO_WIRE_H
#define BALSA_RAFT_IO_WIRE_H

#include "transport.h"

#define WIRE_HEADER_SIZE 16u
#define WIRE_GREETING_MAX 1024u /* bytes of a Hello or a refusal: all that a stranger may send */
#define WIRE_MESSAGE_SIZE 96u   /* of a message without its entries */
#define WIRE_ENTRIES_MAX ((RAFT_FRAME_MAX - WIRE_HEADER_SIZE - WIRE_MESSAGE_SIZE) / RAFT_ENTRY_HEADER_SIZE)

enum wire_type { WIRE_HELLO = 1, WIRE_REFUSAL = 2, WIRE_MESSAGE = 3, WIRE_REQUEST = 4 };

/* What the first WIRE_HEADER_SIZE bytes say. RAFT_INVALID: unknown type or version, or more than `limit` bytes. */
int wire_decode_header(const uint8_t *bytes, uint32_t limit, enum wire_type *type, uint32_t *length);

/* A whole frame into bytes[WIRE_GREETING_MAX]; returns its length. A sentence that is too long is cut. */
uint32_t wire_encode_hello(const struct raft_hello *hello, uint8_t *bytes);
uint32_t wire_encode_refusal(const struct raft_refusal *refusal, uint8_t *bytes);
/* `frame` is whole: header and `length` as wire_decode_header gave it. */
int wire_decode_hello(const uint8_t *frame, uint32_t length, struct raft_hello *hello);
int wire_decode_refusal(const uint8_t *frame, uint32_t length, struct raft_refusal *refusal);

/* A whole frame into bytes[RAFT_REQUEST_MAX]; returns its length. `from` and from_incarnation are not sent. */
uint32_t wire_encode_request(const struct raft_request *request, uint8_t *bytes);
int wire_decode_request(const uint8_t *frame, uint32_t length, struct raft_request *request);

/*
** A message is sent as its head, of this many bytes, followed by its payloads in order: those of its entries, or the
** chunk of a SNAPSHOT, which is entries[0]'s. *length is the whole frame's; false if that exceeds RAFT_FRAME_MAX, or the
** chunk is too long or not what the message says.
*/
bool wire_message_size(const struct raft_message *message, const struct raft_entry *entries, uint32_t *head_size,
                       uint32_t *length);
void wire_encode_message(const struct raft_message *message, const struct raft_entry *entries, uint32_t length,
                         uint8_t *head);
/* Payloads that may come with a message: n_entries, or 1 for a chunk. */
uint32_t wire_payloads(const struct raft_message *message);
/*
** The message without its entries; from and from_incarnation stay zero. n_entries fits the frame. Then, with
** room for wire_payloads(): the entries with payloads (the caller unrefs them; none on failure), and their metas.
*/
int wire_decode_message(const uint8_t *frame, uint32_t length, struct raft_message *message);
int wire_decode_entries(const uint8_t *frame, uint32_t length, const struct raft_message *message,
                        struct raft_entry *entries, struct raft_entry_meta *metas);

#endif
