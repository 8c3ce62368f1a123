/*
** The configuration of a cluster as bytes: the payload of a RAFT_ENTRY_CONFIGURATION. Little-endian.
** The entry around it is checksummed (raft/io/entry.h); here every length is checked.
**
**   offset size
**    0   1  version, 1
**    1   1  number of members, 1 … RAFT_MEMBERS_MAX
**    2   2  0
**    4  16  cluster
**   20  16  database
**   36   4  election time-out, ms
**   40   4  heartbeat, ms
**   44   4  page size, bytes
**   48   4  auto_vacuum
**   52      members by rising id, each
**            0   8  id
**            8  16  incarnation
**           24   1  roles: bits of enum raft_member_role
**           25   1  0
**           26   2  length of the address, < RAFT_ADDRESS_MAX
**           28      address, without NUL
*/
#include <assert.h>
#include <string.h>

#include "core.h"

#define CONFIGURATION_VERSION 1
#define CONFIGURATION_HEADER_SIZE 52
#define MEMBER_HEADER_SIZE 28
#define PAGE_SIZE_MIN 512
#define PAGE_SIZE_MAX 65536
#define AUTO_VACUUM_MAX 2

static int check_settings(const struct raft_settings *settings) {
  const uint32_t page = settings->page_size;
  if (page < PAGE_SIZE_MIN || page > PAGE_SIZE_MAX || (page & (page - 1)) != 0) {
    return RAFT_INVALID;
  }
  if (settings->auto_vacuum > AUTO_VACUUM_MAX || settings->heartbeat_ms == 0 ||
      settings->election_ms <= settings->heartbeat_ms) {
    return RAFT_INVALID;
  }
  return RAFT_OK;
}

static int check_member(const struct raft_member *member) {
  const uint8_t known = RAFT_VOTER_NEW | RAFT_VOTER_OLD | RAFT_LEARNER | RAFT_JOINING;
  if (member->id == 0 || member->id > RAFT_NODE_MAX || raft_uuid_is_none(&member->incarnation)) {
    return RAFT_INVALID;
  }
  /* A voter of the old set may be about to become a learner; one of the new set is not both. */
  if (member->roles == 0 || (member->roles & ~known) != 0 ||
      ((member->roles & RAFT_LEARNER) && (member->roles & RAFT_VOTER_NEW))) {
    return RAFT_INVALID;
  }
  /* Only who is a learner and nothing else joins. */
  if ((member->roles & RAFT_JOINING) && member->roles != (RAFT_JOINING | RAFT_LEARNER)) {
    return RAFT_INVALID;
  }
  return memchr(member->address, 0, RAFT_ADDRESS_MAX) ? RAFT_OK : RAFT_INVALID;
}

int raft_configuration_check(const struct raft_configuration *configuration) {
  bool any_voter = false;
  if (configuration->n_members == 0 || configuration->n_members > RAFT_MEMBERS_MAX) {
    return RAFT_INVALID;
  }
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    const struct raft_member *member = &configuration->members[i];
    if (check_member(member) || (i > 0 && member->id <= configuration->members[i - 1].id)) {
      return RAFT_INVALID;
    }
    any_voter = any_voter || (member->roles & RAFT_VOTER_NEW);
  }
  return any_voter ? check_settings(&configuration->settings) : RAFT_INVALID;
}

size_t raft_configuration_size(const struct raft_configuration *configuration) {
  size_t size = CONFIGURATION_HEADER_SIZE;
  assert(configuration->n_members <= RAFT_MEMBERS_MAX);
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    size += MEMBER_HEADER_SIZE + strnlen(configuration->members[i].address, RAFT_ADDRESS_MAX - 1);
  }
  return size;
}

static uint8_t *put(uint8_t *at, uint64_t value, size_t size) {
  for (size_t i = 0; i < size; i++) {
    at[i] = (uint8_t)(value >> (8 * i));
  }
  return at + size;
}

static uint8_t *put_uuid(uint8_t *at, const struct raft_uuid *uuid) {
  memcpy(at, uuid->bytes, RAFT_UUID_SIZE);
  return at + RAFT_UUID_SIZE;
}

void raft_configuration_encode(const struct raft_configuration *configuration, uint8_t *bytes) {
  uint8_t *at = bytes;
  at = put(at, CONFIGURATION_VERSION, 1);
  at = put(at, configuration->n_members, 1);
  at = put(at, 0, 2);
  at = put_uuid(at, &configuration->cluster);
  at = put_uuid(at, &configuration->database);
  at = put(at, configuration->settings.election_ms, 4);
  at = put(at, configuration->settings.heartbeat_ms, 4);
  at = put(at, configuration->settings.page_size, 4);
  at = put(at, configuration->settings.auto_vacuum, 4);
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    const struct raft_member *member = &configuration->members[i];
    const size_t length = strnlen(member->address, RAFT_ADDRESS_MAX - 1);
    at = put(at, member->id, 8);
    at = put_uuid(at, &member->incarnation);
    at = put(at, member->roles, 1);
    at = put(at, 0, 1);
    at = put(at, length, 2);
    memcpy(at, member->address, length);
    at += length;
  }
  assert((size_t)(at - bytes) == raft_configuration_size(configuration));
}

/* Reads `size` ≤ 8 bytes; the caller has checked that they are there. */
static uint64_t get(const uint8_t **at, size_t size) {
  uint64_t value = 0;
  for (size_t i = 0; i < size; i++) {
    value |= (uint64_t)(*at)[i] << (8 * i);
  }
  *at += size;
  return value;
}

static void get_uuid(const uint8_t **at, struct raft_uuid *uuid) {
  memcpy(uuid->bytes, *at, RAFT_UUID_SIZE);
  *at += RAFT_UUID_SIZE;
}

static int get_member(const uint8_t **at, const uint8_t *end, struct raft_member *member) {
  if (end - *at < MEMBER_HEADER_SIZE) {
    return RAFT_INVALID;
  }
  member->id = get(at, 8);
  get_uuid(at, &member->incarnation);
  member->roles = (uint8_t)get(at, 1);
  const uint64_t reserved = get(at, 1);
  const uint64_t length = get(at, 2);
  if (reserved != 0 || length >= RAFT_ADDRESS_MAX || (uint64_t)(end - *at) < length || memchr(*at, 0, (size_t)length)) {
    return RAFT_INVALID;
  }
  memcpy(member->address, *at, (size_t)length);
  *at += length;
  return RAFT_OK;
}

int raft_configuration_decode(const uint8_t *bytes, size_t size, struct raft_configuration *configuration) {
  const uint8_t *at = bytes, *end = bytes + size;
  memset(configuration, 0, sizeof *configuration);
  if (size < CONFIGURATION_HEADER_SIZE || get(&at, 1) != CONFIGURATION_VERSION) {
    return RAFT_INVALID;
  }
  const uint32_t n_members = (uint32_t)get(&at, 1);
  if (n_members > RAFT_MEMBERS_MAX || get(&at, 2) != 0) {
    return RAFT_INVALID;
  }
  get_uuid(&at, &configuration->cluster);
  get_uuid(&at, &configuration->database);
  configuration->settings.election_ms = (uint32_t)get(&at, 4);
  configuration->settings.heartbeat_ms = (uint32_t)get(&at, 4);
  configuration->settings.page_size = (uint32_t)get(&at, 4);
  configuration->settings.auto_vacuum = (uint32_t)get(&at, 4);
  for (uint32_t i = 0; i < n_members; i++) {
    if (get_member(&at, end, &configuration->members[i])) {
      goto invalid;
    }
  }
  configuration->n_members = n_members;
  if (at == end && raft_configuration_check(configuration) == RAFT_OK) {
    return RAFT_OK;
  }
invalid:
  memset(configuration, 0, sizeof *configuration);
  return RAFT_INVALID;
}

const struct raft_member *raft_configuration_find(const struct raft_configuration *configuration, uint64_t id) {
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    if (configuration->members[i].id == id) {
      return &configuration->members[i];
    }
  }
  return NULL;
}
