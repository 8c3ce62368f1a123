/* The configuration as bytes: nothing in them is trusted (raft/configuration.c). */
#include "raft_stand.h"

#include <stdlib.h>

static uint8_t bytes[RAFT_MEMBERS_MAX * 400];

static size_t encode(const struct raft_configuration *configuration) {
  const size_t size = raft_configuration_size(configuration);
  assert_true(size <= sizeof bytes);
  memset(bytes, 0xee, sizeof bytes);
  raft_configuration_encode(configuration, bytes);
  assert_int_equal(bytes[size], 0xee);
  return size;
}

/* Decodes a copy that ends where the bytes end, so that a sanitizer sees a read beyond. */
static int decode(size_t size, struct raft_configuration *configuration) {
  uint8_t *copy = malloc(size ? size : 1);
  assert_non_null(copy);
  memcpy(copy, bytes, size);
  const int error = raft_configuration_decode(copy, size, configuration);
  free(copy);
  return error;
}

static void a_configuration_survives_encoding(void **state) {
  (void)state;
  for (uint32_t n = 1; n <= RAFT_MEMBERS_MAX; n++) {
    struct raft_configuration configuration = stand_members(n), decoded;
    configuration.members[n - 1].roles = n > 1 ? RAFT_LEARNER | RAFT_VOTER_OLD : RAFT_VOTER_NEW;
    configuration.members[n - 1].id = INT64_MAX;
    memset(configuration.members[0].address, 'x', RAFT_ADDRESS_MAX - 1);
    configuration.settings.auto_vacuum = 2;
    configuration.settings.page_size = 65536;
    assert_int_equal(decode(encode(&configuration), &decoded), RAFT_OK);
    assert_memory_equal(&decoded, &configuration, sizeof decoded);
  }
}

static void bytes_that_are_cut_or_too_many_are_refused(void **state) {
  (void)state;
  struct raft_configuration decoded;
  const struct raft_configuration configuration = stand_members(3);
  const size_t size = encode(&configuration);
  for (size_t n = 0; n < size; n++) {
    assert_int_equal(decode(n, &decoded), RAFT_INVALID);
    assert_int_equal(decoded.n_members, 0);
  }
  assert_int_equal(decode(size + 1, &decoded), RAFT_INVALID);
}

static void a_changed_byte_never_reads_beyond_the_end(void **state) {
  (void)state;
  struct raft_configuration decoded;
  const struct raft_configuration configuration = stand_members(3);
  const size_t size = encode(&configuration);
  for (size_t at = 0; at < size; at++) {
    const uint8_t kept = bytes[at];
    for (int value = 0; value < 256; value++) {
      bytes[at] = (uint8_t)value;
      if (decode(size, &decoded) == RAFT_OK) {
        assert_in_range(decoded.n_members, 1, RAFT_MEMBERS_MAX);
      }
    }
    bytes[at] = kept;
  }
}

struct change {
  const char *name;
  void (*make)(struct raft_configuration *);
};

static void no_members(struct raft_configuration *configuration) {
  configuration->n_members = 0;
}
static void no_voter(struct raft_configuration *configuration) {
  for (int i = 0; i < 3; i++) {
    configuration->members[i].roles = RAFT_LEARNER;
  }
}
static void only_old_voters(struct raft_configuration *configuration) {
  for (int i = 0; i < 3; i++) {
    configuration->members[i].roles = RAFT_VOTER_OLD;
  }
}
static void learner_and_voter(struct raft_configuration *configuration) {
  configuration->members[1].roles = RAFT_LEARNER | RAFT_VOTER_NEW;
}
static void unknown_role(struct raft_configuration *configuration) {
  configuration->members[1].roles = 9;
}
static void no_role(struct raft_configuration *configuration) {
  configuration->members[1].roles = 0;
}
static void same_id_twice(struct raft_configuration *configuration) {
  configuration->members[1].id = configuration->members[0].id;
}
static void falling_ids(struct raft_configuration *configuration) {
  configuration->members[2].id = 1;
}
static void id_zero(struct raft_configuration *configuration) {
  configuration->members[0].id = 0;
}
static void id_too_large(struct raft_configuration *configuration) {
  configuration->members[2].id = (uint64_t)INT64_MAX + 1;
}
static void no_incarnation(struct raft_configuration *configuration) {
  configuration->members[1].incarnation = (struct raft_uuid){{0}};
}
static void odd_page_size(struct raft_configuration *configuration) {
  configuration->settings.page_size = 1000;
}
static void small_page_size(struct raft_configuration *configuration) {
  configuration->settings.page_size = 256;
}
static void huge_page_size(struct raft_configuration *configuration) {
  configuration->settings.page_size = 131072;
}
static void odd_auto_vacuum(struct raft_configuration *configuration) {
  configuration->settings.auto_vacuum = 3;
}
static void no_heartbeat(struct raft_configuration *configuration) {
  configuration->settings.heartbeat_ms = 0;
}
static void short_election(struct raft_configuration *configuration) {
  configuration->settings.election_ms = configuration->settings.heartbeat_ms;
}

static void a_configuration_that_makes_no_sense_is_refused(void **state) {
  (void)state;
  const struct change changes[] = {
      {"no members", no_members},
      {"no voter", no_voter},
      {"only old voters", only_old_voters},
      {"learner and voter", learner_and_voter},
      {"unknown role", unknown_role},
      {"no role", no_role},
      {"same id twice", same_id_twice},
      {"falling ids", falling_ids},
      {"id 0", id_zero},
      {"id too large", id_too_large},
      {"no incarnation", no_incarnation},
      {"odd page size", odd_page_size},
      {"small page size", small_page_size},
      {"huge page size", huge_page_size},
      {"odd auto_vacuum", odd_auto_vacuum},
      {"no heartbeat", no_heartbeat},
      {"short election", short_election},
  };
  for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
    struct raft_configuration configuration = stand_members(3), decoded;
    changes[i].make(&configuration);
    if (decode(encode(&configuration), &decoded) != RAFT_INVALID) {
      fail_msg("%s", changes[i].name);
    }
  }
}

static void a_member_is_found_by_its_id(void **state) {
  (void)state;
  const struct raft_configuration configuration = stand_members(3);
  assert_ptr_equal(raft_configuration_find(&configuration, 2), &configuration.members[1]);
  assert_null(raft_configuration_find(&configuration, 4));
  assert_null(raft_configuration_find(&configuration, 0));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_configuration_survives_encoding),
      cmocka_unit_test(bytes_that_are_cut_or_too_many_are_refused),
      cmocka_unit_test(a_changed_byte_never_reads_beyond_the_end),
      cmocka_unit_test(a_configuration_that_makes_no_sense_is_refused),
      cmocka_unit_test(a_member_is_found_by_its_id),
  };
  return cmocka_run_group_tests_name("raft_configuration", tests, NULL, NULL);
}
