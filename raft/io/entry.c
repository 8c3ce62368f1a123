/*
** Payloads and the entry header. The header's format is drawn in entry.h, since disk and wire share it.
*/
#include "entry.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "../../ext/bytes.h"

#define ENTRY_FLAGS_ALL (RAFT_ENTRY_PART | RAFT_ENTRY_LAST | RAFT_ENTRY_ABORT)

struct raft_payload *raft_payload_new(uint32_t size) {
  struct raft_payload *payload = malloc(sizeof *payload + size);
  if (payload == NULL) return NULL;
  atomic_init(&payload->references, 1);
  payload->size = size;
  return payload;
}

struct raft_payload *raft_payload_ref(struct raft_payload *payload) {
  if (payload) atomic_fetch_add_explicit(&payload->references, 1, memory_order_relaxed);
  return payload;
}

void raft_payload_unref(struct raft_payload *payload) {
  if (payload == NULL) return;
  unsigned before = atomic_fetch_sub_explicit(&payload->references, 1, memory_order_acq_rel);
  assert(before > 0);
  if (before == 1) free(payload);
}

void raft_entry_encode_header(const struct raft_entry *entry, uint8_t bytes[RAFT_ENTRY_HEADER_SIZE]) {
  bytes[0] = RAFT_ENTRY_VERSION;
  bytes[1] = entry->type;
  bytes[2] = entry->flags;
  bytes[3] = 0;
  le32_put(bytes + 4, raft_entry_size(entry));
  le64_put(bytes + 8, entry->term);
  le64_put(bytes + 16, entry->index);
  memcpy(bytes + 24, entry->origin.bytes, RAFT_UUID_SIZE);
  le64_put(bytes + 40, entry->origin_sequence);
  le64_put(bytes + 48, entry->previous);
  le64_put(bytes + 56, entry->checksum);
  le32_put(bytes + 64, entry->pages);
  le32_put(bytes + 68, entry->page_size);
}

int raft_entry_decode_header(const uint8_t bytes[RAFT_ENTRY_HEADER_SIZE], struct raft_entry *entry,
                             uint32_t *payload_size) {
  uint32_t size = le32_get(bytes + 4);
  *entry = (struct raft_entry){0};
  *payload_size = 0;
  if (bytes[0] != RAFT_ENTRY_VERSION || (bytes[2] & ~ENTRY_FLAGS_ALL) || bytes[3] || size > RAFT_PAYLOAD_MAX)
    return RAFT_INVALID;
  entry->type = bytes[1];
  entry->flags = bytes[2];
  entry->term = le64_get(bytes + 8);
  entry->index = le64_get(bytes + 16);
  memcpy(entry->origin.bytes, bytes + 24, RAFT_UUID_SIZE);
  entry->origin_sequence = le64_get(bytes + 40);
  entry->previous = le64_get(bytes + 48);
  entry->checksum = le64_get(bytes + 56);
  entry->pages = le32_get(bytes + 64);
  entry->page_size = le32_get(bytes + 68);
  *payload_size = size;
  return RAFT_OK;
}
