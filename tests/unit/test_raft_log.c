/* Terms, truncation and what is durable (raft/log.h). */
#include "raft_stand.h"

#include "raft/log.h"

static struct raft_log raft_log; /* large: not for the stack */

static void open_log(uint64_t first, uint64_t prev_term, const uint64_t *terms, uint64_t n,
                     const struct raft_term_start *starts, size_t n_starts) {
  struct raft_entry_meta entries[64] = {{0}};
  for (uint64_t i = 0; i < n; i++) {
    entries[i] = (struct raft_entry_meta){.term = terms[i], .size = 1, .type = RAFT_ENTRY_DATA};
  }
  const struct raft_start start = {.first_index = first,
                                   .prev_term = prev_term,
                                   .last_index = first - 1 + n,
                                   .entries = entries,
                                   .terms = starts,
                                   .n_terms = n_starts};
  assert_int_equal(raft_log_open(&raft_log, &start), RAFT_OK);
}

static void append(uint64_t term) {
  const struct raft_entry_meta entry = {.term = term, .size = 1, .type = RAFT_ENTRY_DATA};
  assert_true(raft_log_reserve(&raft_log, &entry, 1));
  raft_log_append(&raft_log, &entry);
}

static void a_log_that_makes_no_sense_is_refused(void **state) {
  (void)state;
  struct raft_entry_meta entries[3] = {{.term = 1}, {.term = 2}, {.term = 2}};
  const struct raft_term_start terms[2] = {{1, 1}, {2, 4}};
  struct raft_start good = {
      .first_index = 10, .prev_term = 2, .last_index = 12, .entries = entries, .terms = terms, .n_terms = 2};
  entries[0].term = 2;
  assert_int_equal(raft_log_open(&raft_log, &good), RAFT_OK);
  raft_log_close(&raft_log);

  struct raft_start bad = good;
  bad.first_index = 0;
  assert_int_equal(raft_log_open(&raft_log, &bad), RAFT_INVALID);
  bad = good;
  bad.last_index = 8;
  assert_int_equal(raft_log_open(&raft_log, &bad), RAFT_INVALID);
  bad = good;
  bad.last_index = UINT64_MAX;
  assert_int_equal(raft_log_open(&raft_log, &bad), RAFT_INVALID);
  bad = good;
  bad.entries = NULL;
  assert_int_equal(raft_log_open(&raft_log, &bad), RAFT_INVALID);
  bad = good;
  bad.prev_term = 0;
  assert_int_equal(raft_log_open(&raft_log, &bad), RAFT_INVALID);
  bad = good;
  bad.prev_term = 3; /* terms fall from there */
  bad.n_terms = 0;
  assert_int_equal(raft_log_open(&raft_log, &bad), RAFT_INVALID);
  bad = good;
  const struct raft_term_start falling[2] = {{2, 4}, {1, 5}};
  bad.terms = falling;
  assert_int_equal(raft_log_open(&raft_log, &bad), RAFT_INVALID);
  const struct raft_term_start beyond[2] = {{1, 1}, {2, 10}};
  bad.terms = beyond;
  assert_int_equal(raft_log_open(&raft_log, &bad), RAFT_INVALID);
  entries[2].term = RAFT_TERM_MAX + 1;
  assert_int_equal(raft_log_open(&raft_log, &good), RAFT_INVALID);
}

static void a_truncated_entry_does_not_become_durable_by_its_old_write(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 1};
  open_log(1, 0, terms, 2, NULL, 0);
  append(2);
  append(2);
  raft_log_write_begun(&raft_log, 1, 4, 100);
  raft_log_truncate(&raft_log, 4);
  append(2); /* an equal one at the same place: another write */
  raft_log_write_begun(&raft_log, 2, 4, 200);

  assert_int_equal(raft_log_write_of(&raft_log, 2, 3), 0);
  assert_int_equal(raft_log_write_of(&raft_log, 3, 3), 1);
  assert_int_equal(raft_log_write_of(&raft_log, 4, 3), 2);
  raft_log_write_done(&raft_log, 1, 250);
  assert_int_equal(raft_log.durable_index, 3);
  assert_int_equal(raft_log_oldest_write(&raft_log), 250); /* the disk could not begin earlier */
  raft_log_write_done(&raft_log, 2, 0);
  assert_int_equal(raft_log.durable_index, 4);
  assert_true(raft_log_oldest_write(&raft_log) == UINT64_MAX);
  raft_log_close(&raft_log);
}

static void a_truncation_takes_durable_entries_along(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 2, 2, 3, 3};
  open_log(1, 0, terms, 5, NULL, 0);
  assert_int_equal(raft_log.durable_index, 5);
  raft_log_truncate(&raft_log, 4);
  assert_int_equal(raft_log.durable_index, 3);
  assert_int_equal(raft_log_last(&raft_log), 3);
  assert_int_equal(raft_log.n_terms, 2);
  raft_log_truncate(&raft_log, 2);
  assert_int_equal(raft_log.n_terms, 1);
  append(4);
  assert_int_equal(raft_log.n_terms, 2);
  assert_int_equal(raft_log.terms[1].index, 2);
  assert_int_equal(raft_log_write_of(&raft_log, 2, 9), 9);
  raft_log_close(&raft_log);
}

static void more_writes_than_are_told_apart_are_taken_together_and_never_early(void **state) {
  (void)state;
  const uint64_t terms[] = {1};
  open_log(1, 0, terms, 1, NULL, 0);
  const uint64_t n = RAFT_WRITES_MAX + 10;
  for (uint64_t i = 1; i <= n; i++) {
    append(1);
    raft_log_write_begun(&raft_log, i, i + 1, i);
  }
  for (uint64_t i = 1; i <= n; i++) {
    assert_true(raft_log_write_of(&raft_log, i + 1, n + 1) >= i);
    raft_log_write_done(&raft_log, i, 0);
    assert_true(raft_log.durable_index <= i + 1);
  }
  assert_int_equal(raft_log.durable_index, n + 1);
  raft_log_close(&raft_log);
}

static void logs_may_agree_where_the_term_is_not_higher(void **state) {
  (void)state;
  /* index                  1  2  3  4  5  6  7  8  9 10 */
  const uint64_t terms[] = {1, 1, 1, 4, 4, 5, 5, 6, 6, 6};
  open_log(1, 0, terms, 10, NULL, 0);
  const struct {
    uint64_t index, term, expected;
  } rows[] = {
      {10, 6, 10}, {10, 9, 10}, {99, 6, 10}, {10, 5, 7}, {9, 4, 5}, {9, 3, 3},
      {4, 4, 4},   {3, 1, 3},   {10, 0, 0},  {0, 6, 0},  {5, 2, 3},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    if (raft_log_agree(&raft_log, rows[i].index, rows[i].term) != rows[i].expected) {
      fail_msg("row %zu", i);
    }
  }
  raft_log_close(&raft_log);
}

static void a_compacted_log_knows_the_terms_before_it(void **state) {
  (void)state;
  const struct raft_term_start starts[] = {{1, 1}, {3, 5}, {4, 20}};
  const uint64_t terms[] = {4, 4, 7};
  open_log(31, 4, terms, 3, starts, 3);
  const struct {
    uint64_t index, term;
  } rows[] = {{0, 0}, {1, 1}, {4, 1}, {5, 3}, {19, 3}, {20, 4}, {30, 4}, {31, 4}, {32, 4}, {33, 7}, {34, 0}};
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    assert_int_equal(raft_log_term_ever(&raft_log, rows[i].index), rows[i].term);
  }
  assert_int_equal(raft_log_agree(&raft_log, 33, 5), 32);
  assert_int_equal(raft_log_agree(&raft_log, 33, 3), 30); /* not below what is there */
  assert_int_equal(raft_log_terms_until(&raft_log, 33), 4);
  assert_int_equal(raft_log_terms_until(&raft_log, 32), 3);
  raft_log_close(&raft_log);
}

static void a_compacted_log_without_terms_tells_nothing_about_what_it_lost(void **state) {
  (void)state;
  const uint64_t terms[] = {4, 4, 7};
  open_log(31, 4, terms, 3, NULL, 0);
  assert_int_equal(raft_log_term_ever(&raft_log, 29), 0);
  assert_int_equal(raft_log_term_ever(&raft_log, 30), 4);
  assert_int_equal(raft_log_agree(&raft_log, 33, 3), 30);
  assert_int_equal(raft_log_agree(&raft_log, 32, 3), 30);
  raft_log_close(&raft_log);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_log_that_makes_no_sense_is_refused),
      cmocka_unit_test(a_truncated_entry_does_not_become_durable_by_its_old_write),
      cmocka_unit_test(a_truncation_takes_durable_entries_along),
      cmocka_unit_test(more_writes_than_are_told_apart_are_taken_together_and_never_early),
      cmocka_unit_test(logs_may_agree_where_the_term_is_not_higher),
      cmocka_unit_test(a_compacted_log_knows_the_terms_before_it),
      cmocka_unit_test(a_compacted_log_without_terms_tells_nothing_about_what_it_lost),
  };
  return cmocka_run_group_tests_name("raft_log", tests, NULL, NULL);
}
