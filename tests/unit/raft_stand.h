/*
** What the tests of the Raft core share: one core among members that the test plays itself.
*/
#ifndef BALSA_TESTS_UNIT_RAFT_STAND_H
#define BALSA_TESTS_UNIT_RAFT_STAND_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "raft/raft.h"

#define STAND_MS 1000000ull
#define STAND_ELECTION (500 * STAND_MS)
#define STAND_HEARTBEAT (50 * STAND_MS)
#define STAND_MESSAGES_MAX 4096

/* A core, and what came out of it since the last stand_clear. */
struct stand {
  struct raft *raft;
  uint64_t now;
  struct raft_configuration members;
  struct raft_outgoing messages[STAND_MESSAGES_MAX];
  size_t n_messages;
  struct raft_read_answer reads[64];
  size_t n_reads;
  struct raft_work work; /* the last parcel; its pointers are gone */
  uint64_t last_write;
  bool writes_at_once; /* every write is reported as done */
};

static inline struct raft_uuid stand_incarnation(uint64_t id) {
  struct raft_uuid uuid = {{0}};
  uuid.bytes[0] = (uint8_t)id;
  uuid.bytes[15] = 1;
  return uuid;
}

static inline struct raft_configuration stand_members(uint32_t n) {
  struct raft_configuration configuration = {.n_members = n};
  configuration.settings = (struct raft_settings){.election_ms = 500, .heartbeat_ms = 50, .page_size = 4096};
  configuration.cluster.bytes[0] = configuration.database.bytes[0] = 7;
  for (uint32_t i = 0; i < n; i++) {
    configuration.members[i].id = i + 1;
    configuration.members[i].incarnation = stand_incarnation(i + 1);
    configuration.members[i].roles = RAFT_VOTER_NEW;
    (void)snprintf(configuration.members[i].address, RAFT_ADDRESS_MAX, "host%u:1", i + 1);
  }
  return configuration;
}

static inline void stand_work(struct stand *stand) {
  struct raft_work work;
  while (raft_take_work(stand->raft, &work)) {
    for (size_t i = 0; i < work.n_messages && stand->n_messages < STAND_MESSAGES_MAX; i++) {
      stand->messages[stand->n_messages++] = work.messages[i];
    }
    for (size_t i = 0; i < work.n_reads && stand->n_reads < 64; i++) {
      stand->reads[stand->n_reads++] = work.reads[i];
    }
    stand->work = work;
    if (work.persist) {
      stand->last_write = work.persist;
      if (stand->writes_at_once) {
        raft_persisted(stand->raft, stand->now, work.persist);
      }
    }
  }
}

static inline void stand_clear(struct stand *stand) {
  stand->n_messages = 0;
  stand->n_reads = 0;
}

static inline struct raft_options stand_options(void) {
  return (struct raft_options){.id = 1,
                               .incarnation = stand_incarnation(1),
                               .seed = 1,
                               .election_ns = STAND_ELECTION,
                               .heartbeat_ns = STAND_HEARTBEAT,
                               .drift_permille = 10,
                               .window_bytes = 1000,
                               .batch_bytes = 100};
}

/* Node 1 of n members, with entries of these terms, the first one being the configuration. */
static inline void stand_open_with(struct stand *stand, uint32_t n_members, const uint64_t *terms, uint64_t n_terms,
                                   const struct raft_options *options) {
  struct raft_entry_meta entries[64] = {{0}};
  memset(stand, 0, sizeof *stand);
  stand->now = 1000 * STAND_MS;
  stand->members = stand_members(n_members);
  stand->writes_at_once = true;
  for (uint64_t i = 0; i < n_terms; i++) {
    entries[i] = (struct raft_entry_meta){
        .term = terms[i], .size = 10, .type = i == 0 ? RAFT_ENTRY_CONFIGURATION : RAFT_ENTRY_DATA};
  }
  const struct raft_start start = {.now = stand->now,
                                   .term = terms[n_terms - 1],
                                   .first_index = 1,
                                   .last_index = n_terms,
                                   .entries = entries,
                                   .configurations = &(struct raft_start_configuration){1, &stand->members},
                                   .n_configurations = 1};
  assert_int_equal(raft_open(options, &start, &stand->raft), RAFT_OK);
  stand_work(stand);
}

static inline void stand_open(struct stand *stand, uint32_t n_members) {
  const uint64_t terms[] = {1};
  const struct raft_options options = stand_options();
  stand_open_with(stand, n_members, terms, 1, &options);
}

static inline void stand_close(struct stand *stand) {
  raft_close(stand->raft);
}

static inline struct raft_status stand_status(const struct stand *stand) {
  struct raft_status status;
  raft_get_status(stand->raft, &status);
  return status;
}

static inline void stand_tick(struct stand *stand, uint64_t later) {
  stand->now += later;
  raft_tick(stand->raft, stand->now);
  stand_work(stand);
}

/* A message of member `from` to the core; the test fills the rest. */
static inline struct raft_message stand_message(enum raft_message_type type, uint64_t from, uint64_t term) {
  return (struct raft_message){.type = (uint8_t)type,
                               .from = from,
                               .to = 1,
                               .from_incarnation = stand_incarnation(from),
                               .to_incarnation = stand_incarnation(1),
                               .term = term};
}

static inline void stand_receive(struct stand *stand, const struct raft_message *message) {
  raft_receive(stand->raft, stand->now, message);
  stand_work(stand);
}

/* The last message of that type to that member; NULL if there is none. */
static inline const struct raft_outgoing *stand_last(const struct stand *stand, enum raft_message_type type,
                                                     uint64_t to) {
  for (size_t i = stand->n_messages; i > 0; i--) {
    if (stand->messages[i - 1].message.type == type && stand->messages[i - 1].message.to == to) {
      return &stand->messages[i - 1];
    }
  }
  return NULL;
}

static inline size_t stand_count(const struct stand *stand, enum raft_message_type type) {
  size_t n = 0;
  for (size_t i = 0; i < stand->n_messages; i++) {
    n += stand->messages[i].message.type == type;
  }
  return n;
}

/* Lets the core win an election with the votes of members 2 …; its no-op is not acknowledged yet. */
static inline uint64_t stand_elect(struct stand *stand) {
  stand_tick(stand, 2 * STAND_ELECTION);
  assert_int_equal(stand_status(stand).role, RAFT_PRE_CANDIDATE);
  const uint64_t term = stand_status(stand).term + 1;
  for (uint64_t id = 2; id <= stand->members.n_members; id++) {
    const struct raft_message granted = stand_message(RAFT_PRE_VOTE_RESULT, id, term);
    stand_receive(stand, &granted);
  }
  for (uint64_t id = 2; id <= stand->members.n_members; id++) {
    const struct raft_message granted = stand_message(RAFT_VOTE_RESULT, id, term);
    stand_receive(stand, &granted);
  }
  assert_int_equal(stand_status(stand).role, RAFT_LEADER);
  return term;
}

/* Member `from` has everything up to `index`. */
static inline void stand_acknowledge(struct stand *stand, uint64_t from, uint64_t index) {
  struct raft_message result = stand_message(RAFT_APPEND_RESULT, from, stand_status(stand).term);
  result.index = index;
  stand_receive(stand, &result);
}

#endif
