/* Elections, as one core sees them (raft/election.c); histories of several are in tests/trace. */
#include "raft_stand.h"

static struct stand stand;

static int close_stand(void **state) {
  (void)state;
  stand_close(&stand);
  stand.raft = NULL;
  return 0;
}

static void time_outs_are_drawn_between_one_and_two_election_time_outs(void **state) {
  (void)state;
  const uint64_t terms[] = {1};
  uint64_t lowest = UINT64_MAX, highest = 0;
  for (uint64_t seed = 1; seed <= 300; seed++) {
    struct raft_options options = stand_options();
    options.seed = seed;
    stand_open_with(&stand, 3, terms, 1, &options);
    const uint64_t wait = raft_next_tick(stand.raft) - stand.now;
    lowest = wait < lowest ? wait : lowest;
    highest = wait > highest ? wait : highest;
    stand_tick(&stand, wait - 1);
    assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER);
    stand_tick(&stand, 1);
    assert_int_equal(stand_status(&stand).role, RAFT_PRE_CANDIDATE);
    stand_close(&stand);
  }
  assert_in_range(lowest, STAND_ELECTION, STAND_ELECTION + 20 * STAND_MS);
  assert_in_range(highest, 2 * STAND_ELECTION - 20 * STAND_MS, 2 * STAND_ELECTION - 1);
  stand_open(&stand, 3);
}

static void the_same_seed_draws_the_same(void **state) {
  (void)state;
  stand_open(&stand, 3);
  const uint64_t first = raft_next_tick(stand.raft);
  stand_close(&stand);
  stand_open(&stand, 3);
  assert_int_equal(raft_next_tick(stand.raft), first);
}

static void who_has_not_answered_is_asked_again(void **state) {
  (void)state;
  stand_open(&stand, 3);
  stand_tick(&stand, 2 * STAND_ELECTION);
  assert_int_equal(stand_count(&stand, RAFT_PRE_VOTE), 2);
  struct raft_message refused = stand_message(RAFT_PRE_VOTE_RESULT, 2, 1);
  refused.reject = true;
  stand_receive(&stand, &refused);
  stand_clear(&stand);
  stand_tick(&stand, STAND_HEARTBEAT);
  assert_int_equal(stand_count(&stand, RAFT_PRE_VOTE), 1);
  assert_non_null(stand_last(&stand, RAFT_PRE_VOTE, 3));
}

static void a_leader_and_its_followers_ignore_requests_for_votes(void **state) {
  (void)state;
  const enum raft_message_type types[] = {RAFT_PRE_VOTE, RAFT_VOTE};
  for (int i = 0; i < 2; i++) {
    stand_open(&stand, 3);
    struct raft_message request = stand_message(types[i], 3, 50);
    request.index = 100;
    request.log_term = 40;
    struct raft_message heartbeat = stand_message(RAFT_HEARTBEAT, 2, 3);
    heartbeat.round = 1;
    stand_receive(&stand, &heartbeat);
    stand_clear(&stand);
    stand.now += STAND_ELECTION - 1;
    stand_receive(&stand, &request);
    assert_int_equal(stand.n_messages, 0);
    assert_int_equal(stand_status(&stand).term, 3);
    stand.now += 1; /* the promise has ended */
    stand_receive(&stand, &request);
    assert_int_equal(stand.n_messages, 1);
    assert_false(stand.messages[0].message.reject);
    stand_close(&stand);

    stand_open(&stand, 3);
    const uint64_t term = stand_elect(&stand);
    stand_clear(&stand);
    stand_receive(&stand, &request);
    assert_int_equal(stand.n_messages, 0);
    assert_int_equal(stand_status(&stand).term, term);
    if (i == 0) {
      stand_close(&stand);
    }
  }
}

static void the_promise_outlives_a_change_of_term(void **state) {
  (void)state;
  stand_open(&stand, 3);
  const struct raft_message heartbeat = stand_message(RAFT_HEARTBEAT, 2, 3);
  stand_receive(&stand, &heartbeat);
  struct raft_message late = stand_message(RAFT_HEARTBEAT_RESULT, 3, 4); /* tells of a later term */
  late.reject = true;
  stand_receive(&stand, &late);
  assert_int_equal(stand_status(&stand).term, 4);
  assert_int_equal(stand_status(&stand).leader, 0);
  stand_clear(&stand);
  struct raft_message request = stand_message(RAFT_VOTE, 3, 4);
  request.index = request.log_term = 1;
  stand_receive(&stand, &request);
  assert_int_equal(stand.n_messages, 0);
}

/* The configuration brings the cluster's time-outs to a node that joins; the leader's leases count on them. */
static void a_promise_lasts_as_long_as_the_cluster_counts_on_it(void **state) {
  (void)state;
  stand_open(&stand, 3);
  struct raft_message request = stand_message(RAFT_VOTE, 3, 4);
  request.index = 100;
  request.log_term = 3;
  const struct raft_message heartbeat = stand_message(RAFT_HEARTBEAT, 2, 3);
  stand_receive(&stand, &heartbeat);
  raft_set_timing(stand.raft, stand.now, 3 * STAND_ELECTION, STAND_HEARTBEAT);
  stand_clear(&stand);
  stand_tick(&stand, 3 * STAND_ELECTION - 1);
  assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER);
  stand_receive(&stand, &request);
  assert_int_equal(stand.n_messages, 0);
  stand.now += 1;
  stand_receive(&stand, &request);
  assert_int_equal(stand.n_messages, 1);
  /* Shorter ones: who hears nothing campaigns within them. */
  raft_set_timing(stand.raft, stand.now, STAND_ELECTION, STAND_HEARTBEAT);
  raft_set_timing(stand.raft, stand.now, 0, STAND_HEARTBEAT); /* makes no sense */
  stand_receive(&stand, &heartbeat);
  stand_tick(&stand, 2 * STAND_ELECTION);
  assert_int_equal(stand_status(&stand).role, RAFT_PRE_CANDIDATE);
}

static void a_vote_needs_a_log_that_is_up_to_date(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 3, 3};
  const struct {
    uint64_t index, log_term;
    bool granted;
  } rows[] = {{3, 3, true}, {4, 3, true}, {2, 3, false}, {9, 2, false}, {1, 4, true}, {0, 0, false}};
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    const struct raft_options options = stand_options();
    stand_open_with(&stand, 3, terms, 3, &options);
    struct raft_message request = stand_message(RAFT_VOTE, 2, 9);
    request.index = rows[i].index;
    request.log_term = rows[i].log_term;
    stand_receive(&stand, &request);
    assert_int_equal(stand.n_messages, 1);
    assert_int_equal(stand.messages[0].message.reject, !rows[i].granted);
    assert_int_equal(stand_status(&stand).voted_for, rows[i].granted ? 2 : 0);
    assert_int_equal(stand_status(&stand).term, 9);
    stand_close(&stand);
  }
  stand_open(&stand, 3);
}

static void a_message_in_a_term_that_may_be_forgotten_waits_for_its_write(void **state) {
  (void)state;
  stand_open(&stand, 3);
  stand.writes_at_once = false;
  struct raft_message heartbeat = stand_message(RAFT_HEARTBEAT, 2, 7);
  heartbeat.round = 1;
  stand_receive(&stand, &heartbeat);
  assert_true(stand.work.hard_state);
  assert_int_equal(stand.messages[0].after, stand.last_write);
  stand_receive(&stand, &heartbeat);
  assert_int_equal(stand.messages[1].after, stand.last_write);
  raft_persisted(stand.raft, stand.now, stand.last_write);
  stand_work(&stand);
  stand_receive(&stand, &heartbeat);
  assert_int_equal(stand.messages[2].after, 0); /* and never again */
}

static void a_candidate_counts_its_own_vote_when_it_is_durable(void **state) {
  (void)state;
  stand_open(&stand, 3);
  stand.writes_at_once = false;
  stand_tick(&stand, 2 * STAND_ELECTION);
  struct raft_message vote = stand_message(RAFT_PRE_VOTE_RESULT, 2, 2);
  stand_receive(&stand, &vote);
  assert_int_equal(stand_status(&stand).role, RAFT_CANDIDATE);
  assert_int_equal(stand_last(&stand, RAFT_VOTE, 3)->after, stand.last_write);
  vote.type = RAFT_VOTE_RESULT; /* though nobody was asked yet */
  stand_receive(&stand, &vote);
  assert_int_equal(stand_status(&stand).role, RAFT_CANDIDATE);

  /* Its time to win begins when its requests can go out, however slow the disk is. */
  stand_tick(&stand, 5 * STAND_ELECTION);
  assert_int_equal(stand_status(&stand).role, RAFT_CANDIDATE);
  assert_true(raft_next_tick(stand.raft) == UINT64_MAX);
  raft_persisted(stand.raft, stand.now, stand.last_write);
  assert_int_equal(stand_status(&stand).role, RAFT_LEADER);
}

static void messages_of_another_incarnation_or_for_another_one_are_dropped(void **state) {
  (void)state;
  stand_open(&stand, 3);
  struct raft_message request = stand_message(RAFT_VOTE, 2, 9);
  request.index = request.log_term = 1;
  struct raft_message wrong = request;
  wrong.to_incarnation = stand_incarnation(99);
  stand_receive(&stand, &wrong);
  wrong = request;
  wrong.to = 3;
  stand_receive(&stand, &wrong);
  wrong = request;
  wrong.from = 1;
  stand_receive(&stand, &wrong);
  assert_int_equal(stand.n_messages, 0);
  assert_int_equal(stand_status(&stand).term, 1);
  stand_receive(&stand, &request);
  assert_int_equal(stand.n_messages, 1);
}

/* A removed node that does not know yet is behind; one that is not behind may be a voter by what this node lacks. */
static void a_strangers_request_for_votes_counts_only_if_its_log_is_not_behind(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++) {
    const uint64_t terms[] = {1, 3};
    const struct raft_options options = stand_options();
    stand_open_with(&stand, 3, terms, 2, &options);
    struct raft_message request = stand_message(RAFT_VOTE, i ? 2 : 8, 9);
    request.from_incarnation = stand_incarnation(8); /* of another incarnation, or an unknown one */
    request.index = request.log_term = 1;
    stand_receive(&stand, &request);
    assert_int_equal(stand.n_messages, 0);
    assert_int_equal(stand_status(&stand).term, 3);
    request.index = 2;
    request.log_term = 3;
    stand_receive(&stand, &request);
    assert_int_equal(stand.n_messages, 1);
    assert_false(stand.messages[0].message.reject);
    assert_int_equal(stand_status(&stand).term, 9);
    if (i == 0) {
      stand_close(&stand);
    }
  }
}

static void a_strangers_vote_does_not_count(void **state) {
  (void)state;
  stand_open(&stand, 3);
  stand_tick(&stand, 2 * STAND_ELECTION);
  struct raft_message granted = stand_message(RAFT_PRE_VOTE_RESULT, 2, 2);
  granted.from_incarnation = stand_incarnation(99);
  stand_receive(&stand, &granted);
  granted = stand_message(RAFT_PRE_VOTE_RESULT, 8, 2);
  stand_receive(&stand, &granted);
  assert_int_equal(stand_status(&stand).role, RAFT_PRE_CANDIDATE);
}

/* Node 1 as a learner, or as a voter by another incarnation: `change` makes it so. */
static void open_as_no_voter(bool learner) {
  const uint64_t terms[] = {1};
  stand_open(&stand, 3);
  struct raft_configuration members = stand.members;
  stand_close(&stand);
  if (learner) {
    members.members[0].roles = RAFT_LEARNER;
  } else {
    members.members[0].incarnation = stand_incarnation(77);
  }
  const struct raft_entry_meta entries[] = {{.term = terms[0], .size = 10, .type = RAFT_ENTRY_CONFIGURATION}};
  const struct raft_start start = {.now = stand.now,
                                   .term = 1,
                                   .first_index = 1,
                                   .last_index = 1,
                                   .entries = entries,
                                   .configurations = &(struct raft_start_configuration){1, &members},
                                   .n_configurations = 1};
  const struct raft_options options = stand_options();
  assert_int_equal(raft_open(&options, &start, &stand.raft), RAFT_OK);
}

/* It may be a voter by entries that it lacks; then it is needed. Who counts its vote knows. */
static void who_is_no_voter_does_not_campaign_but_answers_who_is_not_behind(void **state) {
  (void)state;
  for (int learner = 0; learner < 2; learner++) {
    open_as_no_voter(learner);
    stand_tick(&stand, 2 * STAND_ELECTION);
    assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER);
    assert_true(raft_next_tick(stand.raft) > stand.now);
    struct raft_message request = stand_message(RAFT_PRE_VOTE, 2, 9);
    request.index = request.log_term = 1;
    stand_receive(&stand, &request);
    request.type = RAFT_VOTE;
    stand_receive(&stand, &request);
    assert_false(stand_last(&stand, RAFT_PRE_VOTE_RESULT, 2)->message.reject);
    assert_false(stand_last(&stand, RAFT_VOTE_RESULT, 2)->message.reject);
    assert_int_equal(stand_status(&stand).voted_for, 2);
    if (learner == 0) {
      stand_close(&stand);
    }
  }
}

static void who_cannot_apply_does_not_campaign_until_it_can(void **state) {
  (void)state;
  stand_open(&stand, 3);
  raft_set_electable(stand.raft, stand.now, false);
  for (int i = 0; i < 5; i++) {
    stand_tick(&stand, 2 * STAND_ELECTION);
    assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER);
    assert_true(raft_next_tick(stand.raft) > stand.now);
  }
  raft_set_electable(stand.raft, stand.now, true);
  stand_tick(&stand, 2 * STAND_ELECTION);
  assert_int_equal(stand_status(&stand).role, RAFT_PRE_CANDIDATE);
  raft_set_electable(stand.raft, stand.now, false);
  assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER);
}

static void one_that_is_alone_leads_again_as_soon_as_it_may(void **state) {
  (void)state;
  stand_open(&stand, 1);
  raft_set_electable(stand.raft, stand.now, false);
  stand_tick(&stand, 0);
  assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER);
  assert_true(raft_next_tick(stand.raft) > stand.now);
  raft_set_electable(stand.raft, stand.now, true);
  assert_true(raft_next_tick(stand.raft) <= stand.now);
  stand_tick(&stand, 0);
  assert_int_equal(stand_status(&stand).role, RAFT_LEADER);
}

static void a_log_that_is_ahead_of_the_hard_state_brings_its_term(void **state) {
  (void)state;
  stand_open(&stand, 3);
  const struct raft_configuration members = stand.members;
  stand_close(&stand);
  const struct raft_entry_meta entries[] = {{.term = 1, .size = 10, .type = RAFT_ENTRY_CONFIGURATION},
                                            {.term = 6, .size = 10, .type = RAFT_ENTRY_DATA}};
  const struct raft_start start = {.now = stand.now,
                                   .term = 5,
                                   .voted_for = 3,
                                   .first_index = 1,
                                   .last_index = 2,
                                   .entries = entries,
                                   .configurations = &(struct raft_start_configuration){1, &members},
                                   .n_configurations = 1,
                                   .restarted = true};
  const struct raft_options options = stand_options();
  assert_int_equal(raft_open(&options, &start, &stand.raft), RAFT_OK);
  assert_int_equal(stand_status(&stand).term, 6);
  assert_int_equal(stand_status(&stand).voted_for, 0);
  stand_work(&stand);
  assert_true(stand.work.hard_state);
  assert_int_equal(stand.work.term, 6);
}

static void what_makes_no_sense_is_not_opened(void **state) {
  (void)state;
  stand_open(&stand, 3);
  const struct raft_options good = stand_options();
  const struct raft_start empty = {.first_index = 1};
  struct raft *raft;
  struct raft_options options = good;
  options.id = 0;
  assert_int_equal(raft_open(&options, &empty, &raft), RAFT_INVALID);
  options = good;
  options.id = (uint64_t)INT64_MAX + 1;
  assert_int_equal(raft_open(&options, &empty, &raft), RAFT_INVALID);
  options = good;
  options.incarnation = (struct raft_uuid){{0}};
  assert_int_equal(raft_open(&options, &empty, &raft), RAFT_INVALID);
  options = good;
  options.election_ns = options.heartbeat_ns;
  assert_int_equal(raft_open(&options, &empty, &raft), RAFT_INVALID);
  options = good;
  options.election_ns = UINT64_MAX;
  assert_int_equal(raft_open(&options, &empty, &raft), RAFT_INVALID);
  options = good;
  options.drift_permille = 1000;
  assert_int_equal(raft_open(&options, &empty, &raft), RAFT_INVALID);
  struct raft_start start = empty;
  start.commit_index = 1;
  assert_int_equal(raft_open(&good, &start, &raft), RAFT_INVALID);
  start = empty;
  start.term = UINT64_MAX;
  assert_int_equal(raft_open(&good, &start, &raft), RAFT_INVALID);
  start = empty;
  start.configurations = &(struct raft_start_configuration){1, &stand.members};
  start.n_configurations = 1;
  assert_int_equal(raft_open(&good, &start, &raft), RAFT_INVALID);
  assert_null(raft);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(time_outs_are_drawn_between_one_and_two_election_time_outs, close_stand),
      cmocka_unit_test_teardown(the_same_seed_draws_the_same, close_stand),
      cmocka_unit_test_teardown(who_has_not_answered_is_asked_again, close_stand),
      cmocka_unit_test_teardown(a_leader_and_its_followers_ignore_requests_for_votes, close_stand),
      cmocka_unit_test_teardown(the_promise_outlives_a_change_of_term, close_stand),
      cmocka_unit_test_teardown(a_promise_lasts_as_long_as_the_cluster_counts_on_it, close_stand),
      cmocka_unit_test_teardown(a_vote_needs_a_log_that_is_up_to_date, close_stand),
      cmocka_unit_test_teardown(a_message_in_a_term_that_may_be_forgotten_waits_for_its_write, close_stand),
      cmocka_unit_test_teardown(a_candidate_counts_its_own_vote_when_it_is_durable, close_stand),
      cmocka_unit_test_teardown(messages_of_another_incarnation_or_for_another_one_are_dropped, close_stand),
      cmocka_unit_test_teardown(a_strangers_request_for_votes_counts_only_if_its_log_is_not_behind, close_stand),
      cmocka_unit_test_teardown(a_strangers_vote_does_not_count, close_stand),
      cmocka_unit_test_teardown(who_is_no_voter_does_not_campaign_but_answers_who_is_not_behind, close_stand),
      cmocka_unit_test_teardown(who_cannot_apply_does_not_campaign_until_it_can, close_stand),
      cmocka_unit_test_teardown(one_that_is_alone_leads_again_as_soon_as_it_may, close_stand),
      cmocka_unit_test_teardown(a_log_that_is_ahead_of_the_hard_state_brings_its_term, close_stand),
      cmocka_unit_test_teardown(what_makes_no_sense_is_not_opened, close_stand),
  };
  return cmocka_run_group_tests_name("raft_election", tests, NULL, NULL);
}
