/* The first entry of a cluster, and a database that exists already (raft_bootstrap). */
#include "raft_stand.h"

static struct stand stand;

static void open_fresh(uint64_t term) {
  const struct raft_options options = stand_options();
  const struct raft_start fresh = {.now = 1, .first_index = 1, .term = term};
  memset(&stand, 0, sizeof stand);
  stand.now = 1;
  assert_int_equal(raft_open(&options, &fresh, &stand.raft), RAFT_OK);
}

static int close_stand(void **state) {
  (void)state;
  stand_close(&stand);
  return 0;
}

static void a_database_that_exists_goes_in_with_the_first_entry(void **state) {
  (void)state;
  const struct raft_configuration members = stand_members(1);
  uint64_t index = 0;
  open_fresh(0);
  assert_int_equal(raft_bootstrap_entry(stand.raft, RAFT_ENTRY_DATA, 1, &index), RAFT_INVALID);
  assert_int_equal(raft_bootstrap(stand.raft, stand.now, &members), RAFT_OK);
  for (uint64_t i = 2; i <= 5; i++) {
    assert_int_equal(raft_bootstrap_entry(stand.raft, RAFT_ENTRY_DATA, 1000, &index), RAFT_OK);
    assert_int_equal(index, i);
  }
  assert_int_equal(stand_status(&stand).term, 1);
  struct raft_work work;
  assert_true(raft_take_work(stand.raft, &work));
  assert_int_equal(work.append_first, 1);
  assert_int_equal(work.append_last, 5);
  assert_true(work.hard_state && work.configuration_changed && !work.noop);
  assert_int_equal(work.term, 1);
  assert_int_equal(raft_bootstrap_entry(stand.raft, RAFT_ENTRY_DATA, 1, &index), RAFT_INVALID);

  /* It leads as soon as that is durable. */
  raft_persisted(stand.raft, stand.now, work.persist);
  stand.writes_at_once = true;
  stand_tick(&stand, 0);
  assert_int_equal(stand_status(&stand).role, RAFT_LEADER);
  assert_int_equal(stand_status(&stand).commit_index, 6);
  assert_int_equal(raft_fate(stand.raft, 1, 5), RAFT_FATE_COMMITTED);
}

static void only_a_fresh_node_forms_a_cluster(void **state) {
  (void)state;
  struct raft_configuration members = stand_members(3);
  open_fresh(1); /* it has taken part in something */
  assert_int_equal(raft_bootstrap(stand.raft, stand.now, &members), RAFT_INVALID);
  stand_close(&stand);

  open_fresh(0);
  members.members[0].incarnation = stand_incarnation(9); /* not this one */
  assert_int_equal(raft_bootstrap(stand.raft, stand.now, &members), RAFT_INVALID);
  members = stand_members(3);
  members.settings.page_size = 0;
  assert_int_equal(raft_bootstrap(stand.raft, stand.now, &members), RAFT_INVALID);
  assert_int_equal(stand_status(&stand).term, 0);
  assert_int_equal(raft_get_configuration(stand.raft, NULL)->n_members, 0);
  struct raft_work work;
  assert_false(raft_take_work(stand.raft, &work));

  members = stand_members(3);
  assert_int_equal(raft_bootstrap(stand.raft, stand.now, &members), RAFT_OK);
  assert_int_equal(raft_bootstrap(stand.raft, stand.now, &members), RAFT_INVALID);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(a_database_that_exists_goes_in_with_the_first_entry, close_stand),
      cmocka_unit_test_teardown(only_a_fresh_node_forms_a_cluster, close_stand),
  };
  return cmocka_run_group_tests_name("raft_bootstrap", tests, NULL, NULL);
}
