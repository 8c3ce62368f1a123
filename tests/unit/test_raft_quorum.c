/* Majorities of one set and of two (raft/quorum.h). */
#include "raft_stand.h"

#include "raft/quorum.h"

#define NEW RAFT_VOTER_NEW
#define OLD RAFT_VOTER_OLD
#define BOTH (RAFT_VOTER_NEW | RAFT_VOTER_OLD)
#define LEARNER RAFT_LEARNER

static struct raft_configuration with_roles(const uint8_t *roles, uint32_t n) {
  struct raft_configuration configuration = stand_members(n);
  for (uint32_t i = 0; i < n; i++) {
    configuration.members[i].roles = roles[i];
  }
  return configuration;
}

static void the_value_is_what_a_majority_of_each_set_has(void **state) {
  (void)state;
  const struct {
    uint32_t n;
    uint8_t roles[RAFT_MEMBERS_MAX];
    uint64_t values[RAFT_MEMBERS_MAX];
    uint64_t expected;
  } rows[] = {
      {1, {NEW}, {5}, 5},
      {2, {NEW, NEW}, {5, 3}, 3},
      {3, {NEW, NEW, NEW}, {5, 3, 4}, 4},
      {3, {NEW, NEW, NEW}, {5, 0, 0}, 0},
      {4, {NEW, NEW, NEW, NEW}, {1, 2, 3, 4}, 2},
      {5, {NEW, NEW, NEW, NEW, NEW}, {9, 9, 9, 0, 0}, 9},
      {5, {NEW, NEW, NEW, NEW, NEW}, {9, 9, 8, 0, 0}, 8},
      /* learners never count */
      {3, {NEW, LEARNER, LEARNER}, {2, 9, 9}, 2},
      {4, {NEW, NEW, NEW, LEARNER}, {7, 1, 1, 7}, 1},
      /* two sets: both must have it */
      {3, {NEW, OLD, LEARNER}, {9, 4, 0}, 4},
      {4, {BOTH, BOTH, OLD, NEW}, {9, 9, 0, 0}, 9},
      {4, {BOTH, OLD, OLD, NEW}, {9, 9, 0, 0}, 0},
      {6, {OLD, OLD, OLD, NEW, NEW, NEW}, {9, 9, 9, 3, 4, 5}, 4},
      {6, {OLD, OLD, OLD, NEW, NEW, NEW}, {2, 9, 1, 8, 8, 8}, 2},
      {3, {OLD | LEARNER, OLD, NEW}, {6, 6, 7}, 6},
      {1, {LEARNER}, {9}, 0},
      {0, {0}, {0}, 0},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    const struct raft_configuration configuration = with_roles(rows[i].roles, rows[i].n);
    if (raft_quorum_value(&configuration, rows[i].values) != rows[i].expected) {
      fail_msg("row %zu", i);
    }
  }
}

static void an_election_is_won_or_lost_in_both_sets(void **state) {
  (void)state;
  const enum raft_vote O = RAFT_VOTE_OPEN, G = RAFT_VOTE_GRANTED, R = RAFT_VOTE_REFUSED;
  const struct {
    uint32_t n;
    uint8_t roles[RAFT_MEMBERS_MAX];
    enum raft_vote votes[RAFT_MEMBERS_MAX];
    enum raft_election expected;
  } rows[] = {
      {1, {NEW}, {G}, RAFT_ELECTION_WON},
      {1, {NEW}, {O}, RAFT_ELECTION_OPEN},
      {2, {NEW, NEW}, {G, O}, RAFT_ELECTION_OPEN},
      {2, {NEW, NEW}, {G, R}, RAFT_ELECTION_LOST},
      {3, {NEW, NEW, NEW}, {G, G, O}, RAFT_ELECTION_WON},
      {3, {NEW, NEW, NEW}, {G, R, O}, RAFT_ELECTION_OPEN},
      {3, {NEW, NEW, NEW}, {G, R, R}, RAFT_ELECTION_LOST},
      {4, {NEW, NEW, NEW, NEW}, {G, G, R, R}, RAFT_ELECTION_LOST},
      {4, {NEW, NEW, NEW, NEW}, {G, G, R, O}, RAFT_ELECTION_OPEN},
      {3, {NEW, LEARNER, LEARNER}, {O, G, G}, RAFT_ELECTION_OPEN},
      {4, {BOTH, BOTH, OLD, NEW}, {G, G, R, R}, RAFT_ELECTION_WON},
      {4, {BOTH, OLD, OLD, NEW}, {G, R, R, G}, RAFT_ELECTION_LOST},
      {4, {BOTH, OLD, OLD, NEW}, {G, O, R, G}, RAFT_ELECTION_OPEN},
      {2, {OLD, NEW}, {G, O}, RAFT_ELECTION_OPEN},
      {1, {LEARNER}, {G}, RAFT_ELECTION_LOST},
      {0, {0}, {O}, RAFT_ELECTION_LOST},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    const struct raft_configuration configuration = with_roles(rows[i].roles, rows[i].n);
    if (raft_quorum_count(&configuration, rows[i].votes) != rows[i].expected) {
      fail_msg("row %zu", i);
    }
  }
}

static uint32_t next(uint32_t *random) {
  *random = *random * 1664525u + 1013904223u;
  return *random >> 16;
}

/* How many members with this role have at least `value`; and whether that is a majority of them. */
static bool majority_has(const struct raft_configuration *configuration, const uint64_t *values, uint8_t role,
                         uint64_t value) {
  uint32_t n = 0, has = 0;
  for (uint32_t i = 0; i < configuration->n_members; i++) {
    if (configuration->members[i].roles & role) {
      n++;
      has += values[i] >= value;
    }
  }
  return n == 0 || 2 * has > n;
}

static void the_value_agrees_with_its_definition_for_random_sets(void **state) {
  (void)state;
  const uint8_t kinds[] = {NEW, OLD, BOTH, LEARNER, LEARNER | OLD};
  uint32_t random = 1;
  for (int round = 0; round < 20000; round++) {
    uint8_t roles[RAFT_MEMBERS_MAX] = {0};
    uint64_t values[RAFT_MEMBERS_MAX] = {0};
    const uint32_t n = 1 + next(&random) % RAFT_MEMBERS_MAX;
    for (uint32_t i = 0; i < n; i++) {
      roles[i] = kinds[next(&random) % 5];
      values[i] = next(&random) % 6;
    }
    roles[0] = NEW;
    const struct raft_configuration configuration = with_roles(roles, n);
    const uint64_t value = raft_quorum_value(&configuration, values);
    assert_true(majority_has(&configuration, values, NEW, value) && majority_has(&configuration, values, OLD, value));
    assert_false(majority_has(&configuration, values, NEW, value + 1) &&
                 majority_has(&configuration, values, OLD, value + 1));
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_value_is_what_a_majority_of_each_set_has),
      cmocka_unit_test(an_election_is_won_or_lost_in_both_sets),
      cmocka_unit_test(the_value_agrees_with_its_definition_for_random_sets),
  };
  return cmocka_run_group_tests_name("raft_quorum", tests, NULL, NULL);
}
