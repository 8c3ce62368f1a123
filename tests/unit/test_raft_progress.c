/* What a leader knows of a member (raft/progress.h). */
#include "raft_stand.h"

#include "raft/progress.h"

#define WINDOW 100

static struct raft_progress progress;

static void replicating(void) {
  raft_progress_reset(&progress, 0, 6);
  raft_progress_sent(&progress, 0, 6, 10);
  assert_true(raft_progress_accepted(&progress, 0, 6));
  assert_int_equal(progress.state, RAFT_REPLICATE);
}

static void a_member_is_probed_with_one_message_at_a_time(void **state) {
  (void)state;
  raft_progress_reset(&progress, 0, 6);
  assert_true(raft_progress_may_send(&progress, WINDOW));
  raft_progress_sent(&progress, 0, 9, 500);
  assert_false(raft_progress_may_send(&progress, WINDOW));
  assert_int_equal(progress.next_index, 6);
  assert_true(raft_progress_accepted(&progress, 1, 9));
  assert_int_equal(progress.state, RAFT_REPLICATE);
  assert_int_equal(progress.match_index, 9);
  assert_int_equal(progress.next_index, 10);
}

static void a_window_is_full_by_bytes_or_by_number(void **state) {
  (void)state;
  replicating();
  raft_progress_sent(&progress, 0, 7, 60);
  assert_true(raft_progress_may_send(&progress, WINDOW));
  assert_int_equal(raft_progress_room(&progress, WINDOW), 40);
  raft_progress_sent(&progress, 0, 8, 60);
  assert_false(raft_progress_may_send(&progress, WINDOW));
  assert_int_equal(raft_progress_room(&progress, WINDOW), 0);
  assert_true(raft_progress_accepted(&progress, 0, 7));
  assert_true(raft_progress_may_send(&progress, WINDOW));

  replicating();
  for (uint64_t i = 0; i < RAFT_INFLIGHT_MAX; i++) {
    assert_true(raft_progress_may_send(&progress, WINDOW));
    raft_progress_sent(&progress, 0, 7 + i, 0);
  }
  assert_false(raft_progress_may_send(&progress, WINDOW));
  assert_true(raft_progress_accepted(&progress, 0, 7 + RAFT_INFLIGHT_MAX - 1));
  assert_int_equal(progress.n_inflight, 0);
}

static void one_entry_larger_than_the_window_goes_alone(void **state) {
  (void)state;
  replicating();
  raft_progress_sent(&progress, 0, 7, 100000);
  assert_false(raft_progress_may_send(&progress, WINDOW));
  assert_int_equal(raft_progress_room(&progress, WINDOW), 0);
  assert_true(raft_progress_accepted(&progress, 0, 7));
  assert_true(raft_progress_may_send(&progress, WINDOW));
}

static void late_acknowledgements_say_nothing_and_take_nothing_away(void **state) {
  (void)state;
  replicating();
  raft_progress_sent(&progress, 0, 7, 1);
  raft_progress_sent(&progress, 0, 8, 1);
  assert_true(raft_progress_accepted(&progress, 0, 8));
  assert_false(raft_progress_accepted(&progress, 0, 7));
  assert_false(raft_progress_accepted(&progress, 0, 8));
  assert_int_equal(progress.match_index, 8);
  assert_int_equal(progress.next_index, 9);
}

static void refusals_count_only_while_they_answer_something(void **state) {
  (void)state;
  replicating();
  raft_progress_sent(&progress, 0, 7, 1);
  raft_progress_sent(&progress, 0, 8, 1);
  assert_false(raft_progress_is_refusal(&progress, 0));
  assert_false(raft_progress_is_refusal(&progress, 6)); /* acknowledged before */
  assert_false(raft_progress_is_refusal(&progress, 9)); /* never sent */
  assert_true(raft_progress_is_refusal(&progress, 7));
  raft_progress_probe(&progress, 3);
  assert_int_equal(progress.next_index, 7); /* not below what matches */
  assert_int_equal(progress.n_inflight, 0);
  assert_false(raft_progress_is_refusal(&progress, 7)); /* of the window that was lost */
  raft_progress_probe(&progress, 9);
  assert_true(raft_progress_is_refusal(&progress, 8));
}

static void an_old_acknowledgement_ends_a_probe_only_if_it_answers_it(void **state) {
  (void)state;
  raft_progress_reset(&progress, 0, 10);
  raft_progress_sent(&progress, 0, 10, 1);
  assert_false(raft_progress_accepted(&progress, 0, 0));
  assert_int_equal(progress.state, RAFT_PROBE);
  assert_true(raft_progress_accepted(&progress, 0, 9)); /* asked without entries, it matches where we asked */
  assert_int_equal(progress.state, RAFT_REPLICATE);
  assert_int_equal(progress.next_index, 10);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_member_is_probed_with_one_message_at_a_time),
      cmocka_unit_test(a_window_is_full_by_bytes_or_by_number),
      cmocka_unit_test(one_entry_larger_than_the_window_goes_alone),
      cmocka_unit_test(late_acknowledgements_say_nothing_and_take_nothing_away),
      cmocka_unit_test(refusals_count_only_while_they_answer_something),
      cmocka_unit_test(an_old_acknowledgement_ends_a_probe_only_if_it_answers_it),
  };
  return cmocka_run_group_tests_name("raft_progress", tests, NULL, NULL);
}
