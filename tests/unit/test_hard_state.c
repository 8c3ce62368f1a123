/*
** Term and vote: never forgotten, never lowered.
*/
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "raft/io/hard_state.h"
#include "tests/fault/sim_disk.h"

#define PATH "/vote"

static struct raft_hard_state_file *open_or_fail(struct sim_disk *disk, struct raft_hard_state *state) {
  struct raft_hard_state_file *file;
  assert_int_equal(raft_hard_state_open(sim_disk_os(disk), PATH, state, &file), 0);
  return file;
}

static void a_fresh_file_knows_no_node(void **ctx) {
  (void)ctx;
  struct raft_hard_state state = {.node = 5, .term = 5};
  struct sim_disk *disk = sim_disk_new(1);
  raft_hard_state_close(open_or_fail(disk, &state));
  assert_int_equal(state.node, 0);
  assert_int_equal(state.term, 0);
  assert_int_equal(state.voted_for, 0);
  raft_hard_state_close(NULL);
  sim_disk_free(disk);
}

static void all_fields_come_back(void **ctx) {
  (void)ctx;
  struct raft_hard_state state, written = {.node = 3, .incarnation = {{1, 2, 3}}, .term = RAFT_TERM_MAX};
  written.incarnation.bytes[15] = 9;
  written.voted_for = UINT64_C(0x7fffffffffffffff);
  struct sim_disk *disk = sim_disk_new(2);
  struct raft_hard_state_file *file = open_or_fail(disk, &state);
  assert_int_equal(raft_hard_state_write(file, &written), 0);
  raft_hard_state_close(file);
  raft_hard_state_close(open_or_fail(disk, &state));
  assert_int_equal(state.node, written.node);
  assert_int_equal(state.term, written.term);
  assert_int_equal(state.voted_for, written.voted_for);
  assert_memory_equal(&state.incarnation, &written.incarnation, sizeof state.incarnation);
  sim_disk_free(disk);
}

static void a_lower_term_is_refused_also_after_a_restart(void **ctx) {
  (void)ctx;
  struct raft_hard_state state, written = {.node = 3, .term = 7, .voted_for = 2};
  struct sim_disk *disk = sim_disk_new(3);
  struct raft_hard_state_file *file = open_or_fail(disk, &state);
  assert_int_equal(raft_hard_state_write(file, &written), 0);
  written.term = 6;
  assert_int_equal(raft_hard_state_write(file, &written), -EINVAL);
  raft_hard_state_close(file);
  file = open_or_fail(disk, &state);
  assert_int_equal(state.term, 7);
  assert_int_equal(raft_hard_state_write(file, &written), -EINVAL);
  written.term = 7;
  written.voted_for = 3;
  assert_int_equal(raft_hard_state_write(file, &written), 0);
  raft_hard_state_close(file);
  sim_disk_free(disk);
}

static void a_vote_that_was_given_survives_power_loss(void **ctx) {
  (void)ctx;
  for (uint64_t seed = 1; seed <= 200; seed++) {
    struct raft_hard_state state, written = {.node = 3};
    uint64_t durable = 0;
    struct sim_disk *disk = sim_disk_new(seed);
    struct raft_hard_state_file *file = open_or_fail(disk, &state);
    sim_disk_crash_at(disk, 1 + seed % 17, SIM_DISK_POWER_LOSS);
    for (written.term = 1; raft_hard_state_write(file, &written) == 0; written.term++) durable = written.term;
    raft_hard_state_close(file);
    sim_disk_restart(disk);
    raft_hard_state_close(open_or_fail(disk, &state));
    assert_in_range(state.term, durable, durable + 1);
    sim_disk_free(disk);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_fresh_file_knows_no_node),
      cmocka_unit_test(all_fields_come_back),
      cmocka_unit_test(a_lower_term_is_refused_also_after_a_restart),
      cmocka_unit_test(a_vote_that_was_given_survives_power_loss),
  };
  return cmocka_run_group_tests_name("hard_state", tests, NULL, NULL);
}
