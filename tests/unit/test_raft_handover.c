/* Leadership handed over (raft/handover.c), as one core sees it; histories of several are in tests/trace. */
#include "raft_stand.h"

static struct stand stand;

static int close_stand(void **state) {
  (void)state;
  stand_close(&stand);
  stand.raft = NULL;
  return 0;
}

/* Node 1 of three leads; its no-op, entry 2, is on all of them. */
static uint64_t lead(void) {
  stand_open(&stand, 3);
  const uint64_t term = stand_elect(&stand);
  stand_acknowledge(&stand, 2, 2);
  stand_acknowledge(&stand, 3, 2);
  stand_clear(&stand);
  return term;
}

static int hand_over(uint64_t to) {
  const int error = raft_hand_over(stand.raft, stand.now, to);
  stand_work(&stand);
  return error;
}

static int propose(void) {
  uint64_t index;
  const int error = raft_propose(stand.raft, stand.now, stand_status(&stand).term, RAFT_ENTRY_DATA, 5, &index);
  stand_work(&stand);
  return error;
}

/* A member answers the last round that it was asked. */
static void answer_round(uint64_t from) {
  const struct raft_outgoing *asked = stand_last(&stand, RAFT_HEARTBEAT, from);
  assert_non_null(asked);
  struct raft_message answer = stand_message(RAFT_HEARTBEAT_RESULT, from, stand_status(&stand).term);
  answer.round = asked->message.round;
  stand_receive(&stand, &answer);
}

static void it_is_told_when_it_has_all_and_all_is_committed(void **state) {
  (void)state;
  const uint64_t term = lead();
  assert_int_equal(propose(), RAFT_OK);
  stand_clear(&stand);
  assert_int_equal(hand_over(3), RAFT_OK);
  assert_int_equal(stand_status(&stand).hand_over_to, 3);
  assert_int_equal(stand.work.hand_over_to, 3);
  assert_int_equal(propose(), RAFT_PENDING);
  stand_acknowledge(&stand, 2, 3); /* committed, but 3 has not got it */
  assert_int_equal(stand_count(&stand, RAFT_TIMEOUT_NOW), 0);
  stand_acknowledge(&stand, 3, 3);
  assert_int_equal(stand_count(&stand, RAFT_TIMEOUT_NOW), 1);
  const struct raft_message *told = &stand_last(&stand, RAFT_TIMEOUT_NOW, 3)->message;
  assert_int_equal(told->term, term);
  assert_int_equal(told->index, 3);
  assert_int_equal(told->log_term, term);

  /* It may have been lost. */
  stand_tick(&stand, STAND_HEARTBEAT);
  assert_int_equal(stand_count(&stand, RAFT_TIMEOUT_NOW), 2);

  /* The new leader's request gets the old one's vote, against all stickiness. */
  struct raft_message request = stand_message(RAFT_VOTE, 3, term + 1);
  request.index = 3;
  request.log_term = term;
  stand_receive(&stand, &request);
  assert_int_equal(stand_status(&stand).role, RAFT_LEADER);
  request.hand_over = true;
  stand_receive(&stand, &request);
  assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER);
  assert_int_equal(stand.work.hand_over_to, 0);
  assert_false(stand_last(&stand, RAFT_VOTE_RESULT, 3)->message.reject);
}

static void without_a_name_the_one_that_has_most_is_chosen(void **state) {
  (void)state;
  (void)lead();
  assert_int_equal(propose(), RAFT_OK);
  stand_acknowledge(&stand, 3, 3);
  assert_int_equal(hand_over(0), RAFT_OK);
  assert_int_equal(stand_status(&stand).hand_over_to, 3);
}

static void who_cannot_lead_is_refused(void **state) {
  (void)state;
  stand_open(&stand, 3);
  assert_int_equal(hand_over(2), RAFT_NOT_LEADER);
  (void)stand_elect(&stand);
  assert_int_equal(hand_over(0), RAFT_PENDING); /* nobody has said anything in this term */
  assert_int_equal(hand_over(2), RAFT_PENDING);
  assert_int_equal(hand_over(1), RAFT_INVALID);
  assert_int_equal(hand_over(7), RAFT_INVALID);
  stand_acknowledge(&stand, 2, 1);
  assert_int_equal(hand_over(2), RAFT_OK);
  assert_int_equal(hand_over(2), RAFT_PENDING);
  assert_int_equal(hand_over(0), RAFT_PENDING);
  stand_close(&stand);
  stand_open(&stand, 1);
  (void)stand_tick(&stand, 1);
  assert_int_equal(stand_status(&stand).role, RAFT_LEADER);
  assert_int_equal(hand_over(0), RAFT_INVALID);
}

static void it_is_given_up_after_an_election_time_out(void **state) {
  (void)state;
  (void)lead();
  assert_int_equal(hand_over(2), RAFT_OK);
  for (int i = 0; i < 9; i++) {
    stand_tick(&stand, STAND_HEARTBEAT);
    answer_round(3);
  }
  assert_int_equal(stand_status(&stand).hand_over_to, 2);
  assert_true(raft_next_tick(stand.raft) <= stand.now + STAND_HEARTBEAT);
  stand_tick(&stand, STAND_HEARTBEAT);
  assert_int_equal(stand_status(&stand).hand_over_to, 0);
  assert_int_equal(stand.work.hand_over_to, 0);
  assert_int_equal(stand_status(&stand).role, RAFT_LEADER);
  assert_int_equal(propose(), RAFT_OK);
}

/* Somebody may be elected any time from then on, however late TIMEOUT_NOW comes; not once a majority has more. */
static void there_is_no_lease_until_an_entry_behind_it_has_committed(void **state) {
  (void)state;
  (void)lead();
  stand_tick(&stand, STAND_HEARTBEAT);
  answer_round(3);
  assert_true(stand_status(&stand).lease_until > stand.now);
  assert_int_equal(hand_over(2), RAFT_OK);
  assert_int_equal(stand_count(&stand, RAFT_TIMEOUT_NOW), 1);
  assert_int_equal(stand_status(&stand).lease_until, 0);
  for (int i = 0; i < 12; i++) {
    stand_tick(&stand, STAND_HEARTBEAT);
    answer_round(3);
  }
  assert_int_equal(stand_status(&stand).hand_over_to, 0);
  assert_int_equal(stand_status(&stand).lease_until, 0);
  assert_int_equal(propose(), RAFT_OK);
  assert_int_equal(stand_status(&stand).lease_until, 0);
  stand_acknowledge(&stand, 3, 3);
  assert_true(stand_status(&stand).lease_until > stand.now);
}

static void the_lease_holds_until_it_is_told(void **state) {
  (void)state;
  (void)lead();
  stand_tick(&stand, STAND_HEARTBEAT);
  answer_round(3);
  assert_int_equal(propose(), RAFT_OK);
  assert_int_equal(hand_over(2), RAFT_OK);
  assert_true(stand_status(&stand).lease_until > stand.now);
}

/* ---- The one that is to lead ---- */

static struct raft_message told_by_2(uint64_t index) {
  struct raft_message heartbeat = stand_message(RAFT_HEARTBEAT, 2, 3);
  heartbeat.round = 1;
  stand_receive(&stand, &heartbeat);
  stand_clear(&stand);
  struct raft_message told = stand_message(RAFT_TIMEOUT_NOW, 2, 3);
  told.index = index;
  told.log_term = 1;
  return told;
}

static void who_is_told_campaigns_at_once_and_says_so(void **state) {
  (void)state;
  stand_open(&stand, 3);
  const struct raft_message told = told_by_2(1);
  stand_receive(&stand, &told);
  assert_int_equal(stand_status(&stand).role, RAFT_CANDIDATE);
  assert_int_equal(stand_status(&stand).term, 4);
  assert_int_equal(stand_count(&stand, RAFT_PRE_VOTE), 0);
  assert_true(stand_last(&stand, RAFT_VOTE, 2)->message.hand_over);
  assert_true(stand_last(&stand, RAFT_VOTE, 3)->message.hand_over);

  /* If it does not win, it campaigns like everybody. */
  stand_clear(&stand);
  stand_tick(&stand, 2 * STAND_ELECTION);
  assert_int_equal(stand_status(&stand).role, RAFT_PRE_CANDIDATE);
  const struct raft_message granted = stand_message(RAFT_PRE_VOTE_RESULT, 2, 5);
  stand_receive(&stand, &granted);
  assert_false(stand_last(&stand, RAFT_VOTE, 3)->message.hand_over);
}

static void what_comes_too_late_is_not_heeded(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 1};
  const struct raft_options options = stand_options();
  stand_open_with(&stand, 3, terms, 2, &options);
  struct raft_message told = told_by_2(1); /* its log goes on: the leader has given up meanwhile */
  stand_receive(&stand, &told);
  told.index = 2;
  told.log_term = 3; /* not this log */
  stand_receive(&stand, &told);
  told.log_term = 1;
  told.term = 2; /* an earlier term's */
  stand_receive(&stand, &told);
  told.term = 3;
  told.from = 3; /* it does not lead */
  told.from_incarnation = stand_incarnation(3);
  stand_receive(&stand, &told);
  assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER);
  told.from = 2;
  told.from_incarnation = stand_incarnation(2);
  raft_set_electable(stand.raft, stand.now, false);
  stand_receive(&stand, &told);
  assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER);
  raft_set_electable(stand.raft, stand.now, true);
  stand_receive(&stand, &told);
  assert_int_equal(stand_status(&stand).role, RAFT_CANDIDATE);
}

static void a_campaign_that_was_asked_for_stands_against_promises_also_after_a_restart(void **state) {
  (void)state;
  stand_open(&stand, 3);
  const struct raft_configuration members = stand.members;
  stand_close(&stand);
  const struct raft_entry_meta entry = {.term = 1, .size = 10, .type = RAFT_ENTRY_CONFIGURATION};
  const struct raft_start start = {.now = stand.now,
                                   .term = 3,
                                   .first_index = 1,
                                   .last_index = 1,
                                   .entries = &entry,
                                   .configurations = &(struct raft_start_configuration){1, &members},
                                   .n_configurations = 1,
                                   .restarted = true};
  const struct raft_options options = stand_options();
  assert_int_equal(raft_open(&options, &start, &stand.raft), RAFT_OK);
  struct raft_message request = stand_message(RAFT_VOTE, 2, 4);
  request.index = request.log_term = 1;
  stand_receive(&stand, &request);
  assert_int_equal(stand.n_messages, 0);
  request.hand_over = true;
  stand_receive(&stand, &request);
  assert_int_equal(stand.n_messages, 1);
  assert_false(stand.messages[0].message.reject);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(it_is_told_when_it_has_all_and_all_is_committed, close_stand),
      cmocka_unit_test_teardown(without_a_name_the_one_that_has_most_is_chosen, close_stand),
      cmocka_unit_test_teardown(who_cannot_lead_is_refused, close_stand),
      cmocka_unit_test_teardown(it_is_given_up_after_an_election_time_out, close_stand),
      cmocka_unit_test_teardown(there_is_no_lease_until_an_entry_behind_it_has_committed, close_stand),
      cmocka_unit_test_teardown(the_lease_holds_until_it_is_told, close_stand),
      cmocka_unit_test_teardown(who_is_told_campaigns_at_once_and_says_so, close_stand),
      cmocka_unit_test_teardown(what_comes_too_late_is_not_heeded, close_stand),
      cmocka_unit_test_teardown(a_campaign_that_was_asked_for_stands_against_promises_also_after_a_restart,
                                close_stand),
  };
  return cmocka_run_group_tests_name("raft hand-over", tests, NULL, NULL);
}
