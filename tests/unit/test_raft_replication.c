/* AppendEntries at both ends, commit, fate and failing disks (raft/replication.c, raft/raft.c). */
#include "raft_stand.h"

#include <stdlib.h>

static struct stand stand;

static int close_stand(void **state) {
  (void)state;
  stand_close(&stand);
  stand.raft = NULL;
  return 0;
}

static uint64_t propose(uint32_t size) {
  uint64_t index = 0;
  assert_int_equal(raft_propose(stand.raft, stand.now, stand_status(&stand).term, RAFT_ENTRY_DATA, size, &index),
                   RAFT_OK);
  return index;
}

/* An APPEND of member 2 with entries of these terms behind (index, log_term). */
static void receive_append(uint64_t term, uint64_t index, uint64_t log_term, const uint64_t *terms, uint32_t n,
                           uint64_t commit) {
  struct raft_entry_meta entries[64];
  for (uint32_t i = 0; i < n; i++) {
    entries[i] = (struct raft_entry_meta){.term = terms[i], .size = 1, .type = RAFT_ENTRY_DATA};
  }
  struct raft_message append = stand_message(RAFT_APPEND, 2, term);
  append.index = index;
  append.log_term = log_term;
  append.n_entries = n;
  append.entries = entries;
  append.commit = commit;
  append.round = 5;
  stand_receive(&stand, &append);
}

/* ---- The leader ---- */

static void proposals_taken_together_go_in_one_message_up_to_the_batch(void **state) {
  (void)state;
  stand_open(&stand, 3);
  stand_elect(&stand);
  stand_acknowledge(&stand, 2, 2);
  stand_clear(&stand);
  for (int i = 0; i < 25; i++) {
    propose(10); /* batches hold 100 bytes */
  }
  stand_work(&stand);
  size_t n_messages = 0;
  uint64_t next = 3;
  for (size_t i = 0; i < stand.n_messages; i++) {
    const struct raft_message *message = &stand.messages[i].message;
    if (message->type == RAFT_APPEND && message->to == 2) {
      assert_int_equal(message->index, next - 1);
      assert_int_equal(stand.messages[i].after, 0);
      next += message->n_entries;
      n_messages++;
    }
  }
  assert_int_equal(next, 28);
  assert_int_equal(n_messages, 3);
  assert_int_equal(stand.work.role, RAFT_LEADER);
}

static void no_more_than_the_window_is_under_way(void **state) {
  (void)state;
  stand_open(&stand, 3);
  stand_elect(&stand);
  stand_acknowledge(&stand, 2, 2);
  stand_clear(&stand);
  for (int i = 0; i < 300; i++) {
    propose(10); /* the window holds 1000 bytes */
    stand_work(&stand);
  }
  uint64_t sent = 0;
  for (size_t i = 0; i < stand.n_messages; i++) {
    sent += stand.messages[i].message.to == 2 ? stand.messages[i].message.n_entries : 0;
  }
  assert_int_equal(sent, 100);
  stand_clear(&stand);
  stand_acknowledge(&stand, 2, 52);
  sent = 0;
  for (size_t i = 0; i < stand.n_messages; i++) {
    sent += stand.messages[i].message.to == 2 ? stand.messages[i].message.n_entries : 0;
  }
  assert_int_equal(sent, 50);
}

static void an_entry_larger_than_batch_and_window_goes_alone(void **state) {
  (void)state;
  stand_open(&stand, 3);
  stand_elect(&stand);
  stand_acknowledge(&stand, 2, 2);
  stand_clear(&stand);
  propose(10);
  propose(5000);
  propose(10);
  stand_work(&stand);
  uint64_t sent[3] = {0};
  size_t n = 0;
  for (size_t i = 0; i < stand.n_messages; i++) {
    if (stand.messages[i].message.type == RAFT_APPEND && stand.messages[i].message.to == 2) {
      sent[n++] = stand.messages[i].message.n_entries;
    }
  }
  assert_int_equal(n, 2);
  assert_int_equal(sent[0], 1);
  assert_int_equal(sent[1], 1);
}

static void the_leader_counts_itself_only_when_its_entry_is_durable(void **state) {
  (void)state;
  stand_open(&stand, 3);
  stand_elect(&stand);
  stand_acknowledge(&stand, 2, 2);
  stand.writes_at_once = false;
  const uint64_t index = propose(10);
  stand_work(&stand);
  const uint64_t write = stand.last_write;
  stand_acknowledge(&stand, 2, index);
  assert_int_equal(stand_status(&stand).commit_index, index - 1);
  raft_persisted(stand.raft, stand.now, write);
  assert_int_equal(stand_status(&stand).commit_index, index);

  /* Two others are a majority without it. */
  const uint64_t second = propose(10);
  stand_work(&stand);
  stand_acknowledge(&stand, 2, second);
  stand_acknowledge(&stand, 3, second);
  assert_int_equal(stand_status(&stand).commit_index, second);
  assert_int_equal(stand_status(&stand).durable_index, index);
}

/* Time passes while both others answer heartbeats. */
static void pass_time(uint64_t time) {
  for (const uint64_t end = stand.now + time; stand.now < end;) {
    stand_tick(&stand, STAND_HEARTBEAT);
    for (uint64_t id = 2; id <= 3; id++) {
      const struct raft_message result = stand_message(RAFT_HEARTBEAT_RESULT, id, stand_status(&stand).term);
      stand_receive(&stand, &result);
    }
    stand_clear(&stand);
  }
}

static void a_leader_whose_disk_is_stuck_steps_down_when_the_others_do_without_it(void **state) {
  (void)state;
  stand_open(&stand, 3);
  stand_elect(&stand);
  stand_acknowledge(&stand, 2, 2);
  stand.writes_at_once = false;
  const uint64_t index = propose(10);
  stand_work(&stand);
  pass_time(3 * STAND_ELECTION);
  assert_int_equal(stand_status(&stand).role, RAFT_LEADER); /* their disks are no better */
  stand_acknowledge(&stand, 2, index);
  stand_acknowledge(&stand, 3, index);
  assert_int_equal(stand_status(&stand).commit_index, index);
  stand_tick(&stand, 1);
  assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER);

  /* It does not stand again while nothing gets written, and says so to no clock. */
  stand_tick(&stand, 3 * STAND_ELECTION);
  assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER);
  assert_true(raft_next_tick(stand.raft) == UINT64_MAX);
  raft_persisted(stand.raft, stand.now, stand.last_write);
  assert_int_equal(stand_status(&stand).role, RAFT_PRE_CANDIDATE);
}

static void a_disk_that_is_slow_but_gets_on_is_not_stuck(void **state) {
  (void)state;
  stand_open(&stand, 3);
  stand_elect(&stand);
  stand_acknowledge(&stand, 2, 2);
  stand.writes_at_once = false;
  uint64_t index = 0;
  for (int i = 0; i < 8; i++) {
    index = propose(10);
    stand_work(&stand);
  }
  stand_acknowledge(&stand, 2, index);
  stand_acknowledge(&stand, 3, index);
  assert_int_equal(stand_status(&stand).commit_index, index);
  const uint64_t first = stand.last_write - 7;
  for (uint64_t write = first; write <= stand.last_write; write++) {
    pass_time(STAND_ELECTION * 3 / 4);
    raft_persisted(stand.raft, stand.now, write);
  }
  assert_int_equal(stand_status(&stand).role, RAFT_LEADER);
}

static void a_follower_with_nothing_under_way_hears_of_a_commit_at_once(void **state) {
  (void)state;
  stand_open(&stand, 3);
  stand_elect(&stand);
  stand_acknowledge(&stand, 2, 2);
  stand_acknowledge(&stand, 3, 2);
  const uint64_t index = propose(10);
  stand_work(&stand);
  stand_acknowledge(&stand, 3, index);
  const struct raft_outgoing *notice = stand_last(&stand, RAFT_HEARTBEAT, 3);
  assert_non_null(notice);
  assert_int_equal(notice->message.commit, index);
  assert_int_equal(notice->message.round, 0);
  stand_clear(&stand);
  stand_acknowledge(&stand, 2, index); /* it was waited for: now it may know, too */
  assert_int_equal(stand_last(&stand, RAFT_HEARTBEAT, 2)->message.commit, index);
  assert_null(stand_last(&stand, RAFT_HEARTBEAT, 3));
}

static void a_proposal_for_another_term_is_refused(void **state) {
  (void)state;
  uint64_t index = 0;
  stand_open(&stand, 3);
  assert_int_equal(raft_propose(stand.raft, stand.now, 1, RAFT_ENTRY_DATA, 1, &index), RAFT_NOT_LEADER);
  const uint64_t term = stand_elect(&stand);
  assert_int_equal(raft_propose(stand.raft, stand.now, term - 1, RAFT_ENTRY_DATA, 1, &index), RAFT_NOT_LEADER);
  assert_int_equal(raft_propose(stand.raft, stand.now, term + 1, RAFT_ENTRY_DATA, 1, &index), RAFT_NOT_LEADER);
  assert_int_equal(raft_propose(stand.raft, stand.now, term, RAFT_ENTRY_CONFIGURATION, 1, &index), RAFT_INVALID);
  assert_int_equal(raft_propose(stand.raft, stand.now, term, RAFT_ENTRY_DATA, 1, &index), RAFT_OK);
  assert_int_equal(index, 3);
  assert_int_equal(stand_status(&stand).term_index, 2);
}

static void a_failed_write_stops_the_core_for_good(void **state) {
  (void)state;
  uint64_t index = 0;
  stand_open(&stand, 3);
  const uint64_t term = stand_elect(&stand);
  assert_int_equal(raft_read(stand.raft, stand.now, 1, RAFT_READ_QUORUM), RAFT_OK);
  stand_clear(&stand);
  raft_persist_failed(stand.raft, stand.now);
  stand_work(&stand);
  assert_int_equal(stand.work.role, RAFT_FOLLOWER);
  assert_true(stand.work.role_changed);
  assert_int_equal(stand.n_messages, 0);
  assert_int_equal(stand.n_reads, 1);
  assert_int_equal(stand.reads[0].error, RAFT_NOT_LEADER);
  assert_true(raft_next_tick(stand.raft) == UINT64_MAX);
  assert_int_equal(raft_propose(stand.raft, stand.now, term, RAFT_ENTRY_DATA, 1, &index), RAFT_FAILED);
  assert_int_equal(raft_read(stand.raft, stand.now, 2, RAFT_READ_QUORUM), RAFT_FAILED);
  assert_int_equal(raft_bootstrap(stand.raft, stand.now, &stand.members), RAFT_FAILED);
  stand_clear(&stand);
  stand_tick(&stand, 10 * STAND_ELECTION);
  const uint64_t terms[] = {term + 1};
  receive_append(term + 1, 1, 1, terms, 1, 5);
  stand_receive(&stand, &(struct raft_message){.type = RAFT_VOTE, .from = 2, .to = 1, .term = 99});
  assert_int_equal(stand.n_messages, 0);
  assert_true(stand_status(&stand).failed);
}

static void reads_and_proposals_have_limits(void **state) {
  (void)state;
  stand_open(&stand, 3);
  stand_elect(&stand);
  int error = RAFT_OK;
  uint64_t n = 0;
  while (n < 100000 && (error = raft_read(stand.raft, stand.now, n, RAFT_READ_QUORUM)) == RAFT_OK) {
    n++;
    stand_work(&stand);
    stand_clear(&stand);
  }
  assert_int_equal(error, RAFT_FULL);
  assert_in_range(n, 100, 10000);
  const uint64_t term = stand_status(&stand).term;
  uint64_t index;
  n = 0;
  while (n < 5000000 && (error = raft_propose(stand.raft, stand.now, term, RAFT_ENTRY_DATA, 1, &index)) == RAFT_OK) {
    n++;
  }
  assert_int_equal(error, RAFT_FULL);
}

/* ---- The follower ---- */

static void a_follower_merges_what_comes(void **state) {
  (void)state;
  const struct {
    const char *name;
    uint64_t index, log_term;
    uint64_t terms[6], n, commit;
    /* expected */
    uint64_t reject, result, hint_index, hint_term, last, last_term, commit_index;
  } rows[] = {
      /* the log is 1 2 2 3 3, entry 2 is committed */
      {"empty, matches", 5, 3, {0}, 0, 0, false, 5, 0, 0, 5, 3, 2},
      {"appends", 5, 3, {4, 4}, 2, 0, false, 7, 0, 0, 7, 4, 2},
      {"is there already", 2, 2, {2, 3}, 2, 0, false, 4, 0, 0, 5, 3, 2},
      {"replaces from the first that differs", 3, 2, {3, 4}, 2, 0, false, 5, 0, 0, 5, 4, 2},
      {"shortens", 2, 2, {4}, 1, 0, false, 3, 0, 0, 3, 4, 2},
      {"old and short: nothing is cut off", 2, 2, {2}, 1, 0, false, 3, 0, 0, 5, 3, 2},
      {"a gap", 7, 4, {4}, 1, 0, true, 7, 5, 3, 5, 3, 2},
      {"a gap, with an old term", 7, 2, {4}, 1, 0, true, 7, 3, 2, 5, 3, 2},
      {"a gap, with a term older than what is committed", 7, 1, {4}, 1, 0, true, 7, 2, 2, 5, 3, 2},
      {"another term there", 5, 4, {4}, 1, 0, true, 5, 5, 3, 5, 3, 2},
      {"an earlier term there", 5, 2, {4}, 1, 0, true, 5, 3, 2, 5, 3, 2},
      {"below what is committed", 1, 1, {2}, 1, 0, false, 2, 0, 0, 5, 3, 2},
      {"from the very beginning", 0, 0, {1, 2, 2, 3, 3, 4}, 6, 0, false, 6, 0, 0, 6, 4, 2},
      {"commits no more than matches", 2, 2, {2}, 1, 5, false, 3, 0, 0, 5, 3, 3},
      {"commits no more than the leader", 5, 3, {4}, 1, 4, false, 6, 0, 0, 6, 4, 4},
      {"commit never falls", 5, 3, {0}, 0, 1, false, 5, 0, 0, 5, 3, 2},
      {"commit out of the blue", 5, 3, {0}, 0, UINT64_MAX, false, 5, 0, 0, 5, 3, 5},
  };
  for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    const uint64_t terms[] = {1, 2, 2, 3, 3};
    const struct raft_options options = stand_options();
    stand_open_with(&stand, 3, terms, 5, &options);
    receive_append(4, 2, 2, NULL, 0, 2);
    stand_clear(&stand);
    receive_append(4, rows[i].index, rows[i].log_term, rows[i].terms, (uint32_t)rows[i].n, rows[i].commit);
    const struct raft_outgoing *result = stand_last(&stand, RAFT_APPEND_RESULT, 2);
    const struct raft_status status = stand_status(&stand);
    if (!result || result->message.reject != rows[i].reject || result->message.index != rows[i].result ||
        result->message.hint_index != rows[i].hint_index || result->message.hint_term != rows[i].hint_term ||
        result->message.round != 5 || status.last_index != rows[i].last ||
        raft_term_at(stand.raft, status.last_index) != rows[i].last_term ||
        status.commit_index != rows[i].commit_index) {
      fail_msg("%s", rows[i].name);
    }
    stand_close(&stand);
  }
  stand_open(&stand, 3);
}

static void what_is_committed_is_never_replaced(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 2, 2, 3, 3}, other[] = {4, 4, 4};
  const struct raft_options options = stand_options();
  stand_open_with(&stand, 3, terms, 5, &options);
  receive_append(4, 5, 3, NULL, 0, 4);
  assert_int_equal(stand_status(&stand).commit_index, 4);
  stand_clear(&stand);
  receive_append(4, 2, 2, other, 3, 4);
  receive_append(4, 3, 3, other, 1, 4);
  receive_append(4, 4, 4, other, 1, 4);
  assert_int_equal(stand_status(&stand).last_index, 5);
  assert_int_equal(raft_term_at(stand.raft, 4), 3);
  assert_null(stand_last(&stand, RAFT_HEARTBEAT_RESULT, 2));
  for (size_t i = 0; i < stand.n_messages; i++) {
    assert_true(stand.messages[i].message.reject);
  }
}

static void an_acknowledgement_waits_until_its_entries_are_durable(void **state) {
  (void)state;
  const uint64_t terms[] = {1}, two[] = {1, 1};
  stand_open(&stand, 3);
  receive_append(1, 1, 1, NULL, 0, 0);
  stand.writes_at_once = false;
  stand_clear(&stand);
  receive_append(1, 1, 1, terms, 1, 0);
  assert_int_equal(stand.messages[0].after, 1);
  receive_append(1, 2, 1, two, 2, 0);
  assert_int_equal(stand.messages[1].after, 2);
  receive_append(1, 1, 1, terms, 1, 0); /* again: it waits for the same write */
  assert_int_equal(stand.messages[2].after, 1);
  struct raft_message heartbeat = stand_message(RAFT_HEARTBEAT, 2, 1);
  heartbeat.round = 9;
  stand_receive(&stand, &heartbeat); /* waits for no disk */
  assert_int_equal(stand.messages[3].after, 0);
  raft_persisted(stand.raft, stand.now, 1);
  assert_int_equal(stand_status(&stand).durable_index, 2);
  receive_append(1, 1, 1, terms, 1, 0);
  assert_int_equal(stand.messages[4].after, 0);
}

static void two_leaders_in_a_term_are_not_believed(void **state) {
  (void)state;
  stand_open(&stand, 3);
  struct raft_message first = stand_message(RAFT_HEARTBEAT, 2, 3), second = stand_message(RAFT_HEARTBEAT, 3, 3);
  first.round = second.round = 1;
  stand_receive(&stand, &first);
  stand_clear(&stand);
  stand_receive(&stand, &second);
  assert_int_equal(stand.n_messages, 0);
  assert_int_equal(stand_status(&stand).leader, 2);
}

static void a_configuration_comes_with_the_log_and_goes_with_it(void **state) {
  (void)state;
  /* A node that knows nothing yet. */
  const struct raft_options options = stand_options();
  const struct raft_start fresh = {.now = 0, .first_index = 1};
  memset(&stand, 0, sizeof stand);
  stand.writes_at_once = true;
  stand.members = stand_members(3);
  assert_int_equal(raft_open(&options, &fresh, &stand.raft), RAFT_OK);
  uint64_t index = 99;
  assert_int_equal(raft_get_configuration(stand.raft, &index)->n_members, 0);
  assert_int_equal(index, 0);

  const size_t size = raft_configuration_size(&stand.members);
  uint8_t *bytes = malloc(size);
  assert_non_null(bytes);
  raft_configuration_encode(&stand.members, bytes);
  const struct raft_entry_meta entry = {.term = 1, .size = (uint32_t)size, .type = RAFT_ENTRY_CONFIGURATION};
  const uint8_t *payloads[] = {bytes};
  struct raft_message append = stand_message(RAFT_APPEND, 2, 2);
  append.n_entries = 1;
  append.entries = &entry;
  append.round = 1;
  stand_receive(&stand, &append); /* its payload is missing */
  assert_int_equal(stand_status(&stand).last_index, 0);
  append.payloads = payloads;
  bytes[0] = 9;
  stand_receive(&stand, &append); /* it makes no sense */
  assert_int_equal(stand_status(&stand).last_index, 0);
  bytes[0] = 1;
  stand_receive(&stand, &append);
  assert_int_equal(raft_get_configuration(stand.raft, &index)->n_members, 3);
  assert_int_equal(index, 1);

  /* A leader of a later term replaces it by something else. */
  const uint64_t terms[] = {3};
  receive_append(3, 0, 0, terms, 1, 0);
  assert_int_equal(raft_get_configuration(stand.raft, &index)->n_members, 0);
  free(bytes);
}

/* ---- Fate ---- */

static void a_fate_is_told_only_by_what_is_committed(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 2, 2, 3, 3}, four[] = {4};
  const struct raft_options options = stand_options();
  stand_open_with(&stand, 3, terms, 5, &options);
  assert_int_equal(raft_fate(stand.raft, 2, 3), RAFT_FATE_PENDING);
  receive_append(4, 2, 2, four, 1, 2); /* overwrites 3, commits 2 */
  assert_int_equal(raft_fate(stand.raft, 2, 2), RAFT_FATE_COMMITTED);
  assert_int_equal(raft_fate(stand.raft, 1, 2), RAFT_FATE_LOST);
  assert_int_equal(raft_fate(stand.raft, 2, 3), RAFT_FATE_PENDING);
  assert_int_equal(raft_fate(stand.raft, 3, 4), RAFT_FATE_PENDING);
  receive_append(4, 3, 4, NULL, 0, 3);
  assert_int_equal(raft_fate(stand.raft, 2, 3), RAFT_FATE_LOST);
  assert_int_equal(raft_fate(stand.raft, 4, 3), RAFT_FATE_COMMITTED);
  assert_int_equal(raft_fate(stand.raft, 3, 4), RAFT_FATE_LOST); /* behind an entry of term 4 there is none of term 3 */
  assert_int_equal(raft_fate(stand.raft, 4, 0), RAFT_FATE_PENDING);
  assert_int_equal(raft_fate(stand.raft, 4, UINT64_MAX), RAFT_FATE_PENDING);
  const struct raft_term_start *starts;
  assert_int_equal(raft_get_terms(stand.raft, &starts), 3);
  assert_int_equal(starts[2].term, 4);
  assert_int_equal(starts[2].index, 3);
}

static void a_fate_is_told_of_what_was_compacted(void **state) {
  (void)state;
  stand.members = stand_members(3);
  const struct raft_term_start starts[] = {{1, 1}, {3, 5}, {4, 20}};
  const struct raft_start start = {.term = 9,
                                   .first_index = 31,
                                   .prev_term = 4,
                                   .last_index = 30,
                                   .configurations = &(struct raft_start_configuration){1, &stand.members},
                                   .n_configurations = 1,
                                   .terms = starts,
                                   .n_terms = 3};
  const struct raft_options options = stand_options();
  assert_int_equal(raft_open(&options, &start, &stand.raft), RAFT_OK);
  assert_int_equal(raft_fate(stand.raft, 1, 4), RAFT_FATE_COMMITTED);
  assert_int_equal(raft_fate(stand.raft, 2, 5), RAFT_FATE_LOST);
  assert_int_equal(raft_fate(stand.raft, 4, 30), RAFT_FATE_COMMITTED);
  assert_int_equal(raft_fate(stand.raft, 4, 31), RAFT_FATE_PENDING);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(proposals_taken_together_go_in_one_message_up_to_the_batch, close_stand),
      cmocka_unit_test_teardown(no_more_than_the_window_is_under_way, close_stand),
      cmocka_unit_test_teardown(an_entry_larger_than_batch_and_window_goes_alone, close_stand),
      cmocka_unit_test_teardown(the_leader_counts_itself_only_when_its_entry_is_durable, close_stand),
      cmocka_unit_test_teardown(a_leader_whose_disk_is_stuck_steps_down_when_the_others_do_without_it, close_stand),
      cmocka_unit_test_teardown(a_disk_that_is_slow_but_gets_on_is_not_stuck, close_stand),
      cmocka_unit_test_teardown(a_follower_with_nothing_under_way_hears_of_a_commit_at_once, close_stand),
      cmocka_unit_test_teardown(a_proposal_for_another_term_is_refused, close_stand),
      cmocka_unit_test_teardown(a_failed_write_stops_the_core_for_good, close_stand),
      cmocka_unit_test_teardown(reads_and_proposals_have_limits, close_stand),
      cmocka_unit_test_teardown(a_follower_merges_what_comes, close_stand),
      cmocka_unit_test_teardown(what_is_committed_is_never_replaced, close_stand),
      cmocka_unit_test_teardown(an_acknowledgement_waits_until_its_entries_are_durable, close_stand),
      cmocka_unit_test_teardown(two_leaders_in_a_term_are_not_believed, close_stand),
      cmocka_unit_test_teardown(a_configuration_comes_with_the_log_and_goes_with_it, close_stand),
      cmocka_unit_test_teardown(a_fate_is_told_only_by_what_is_committed, close_stand),
      cmocka_unit_test_teardown(a_fate_is_told_of_what_was_compacted, close_stand),
  };
  return cmocka_run_group_tests_name("raft_replication", tests, NULL, NULL);
}
