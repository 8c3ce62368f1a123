/*
** Compaction and snapshots in the core, where the golden scripts (tests/trace) do not reach: writes that are reported late,
** limits, and what makes no sense.
*/
#include "raft_stand.h"

static struct stand stand;

/* A follower of leader 2 in term 3, with entries of these terms; the first two are committed. */
static void open_follower(const uint64_t *terms, uint64_t n_terms) {
  const struct raft_options options = stand_options();
  stand_open_with(&stand, 3, terms, n_terms, &options);
  struct raft_message heartbeat = stand_message(RAFT_HEARTBEAT, 2, 3);
  heartbeat.commit = 2;
  stand_receive(&stand, &heartbeat);
  assert_int_equal(stand_status(&stand).commit_index, 2);
  stand_clear(&stand);
}

static struct raft_message chunk_of(uint64_t index, uint64_t term) {
  struct raft_message message = stand_message(RAFT_SNAPSHOT, 2, 3);
  message.index = index;
  message.log_term = term;
  message.context = 1;
  message.size_bytes = 10;
  return message;
}

static const struct raft_term_start term_starts[] = {{1, 1}, {2, 2}, {3, 9}};

static struct raft_install install_of(uint64_t index, uint64_t term) {
  return (struct raft_install){.index = index,
                               .term = term,
                               .configuration = &stand.members,
                               .configuration_index = 1,
                               .terms = term_starts,
                               .n_terms = (size_t)term};
}

static void append(uint64_t index, uint64_t log_term, uint64_t n, uint64_t term, uint64_t commit) {
  struct raft_entry_meta entries[16] = {{0}};
  struct raft_message message = stand_message(RAFT_APPEND, 2, 3);
  for (uint64_t i = 0; i < n; i++) {
    entries[i] = (struct raft_entry_meta){.term = term, .size = 1, .type = RAFT_ENTRY_DATA};
  }
  message.index = index;
  message.log_term = log_term;
  message.commit = commit;
  message.n_entries = (uint32_t)n;
  message.entries = entries;
  stand_receive(&stand, &message);
}

/* ---- The follower ---- */

static void a_write_from_before_the_installation_makes_nothing_durable_that_came_after_it(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 2, 2};
  open_follower(terms, 3);
  const struct raft_message chunk = chunk_of(8, 2);
  stand_receive(&stand, &chunk);
  assert_true(stand.work.chunk);
  stand.writes_at_once = false;
  append(3, 2, 6, 3, 0); /* 4 … 9, of a leader's log that the snapshot contradicts */
  const uint64_t old = stand.last_write;
  const struct raft_install install = install_of(8, 2);
  assert_int_equal(raft_install(stand.raft, stand.now, &install), RAFT_OK);
  stand_work(&stand);
  assert_int_equal(stand.work.reset_index, 8);
  assert_int_equal(stand.work.reset_term, 2);
  const uint64_t reset = stand.last_write;
  assert_int_equal(stand_last(&stand, RAFT_APPEND_RESULT, 2)->after, reset);
  assert_int_equal(stand_last(&stand, RAFT_APPEND_RESULT, 2)->message.index, 8);
  append(8, 2, 1, 3, 9); /* 9 again */
  assert_int_equal(stand.work.append_first, 9);
  raft_persisted(stand.raft, stand.now, old);
  stand_work(&stand);
  assert_int_equal(stand_status(&stand).durable_index, 2);
  raft_persisted(stand.raft, stand.now, reset);
  stand_work(&stand);
  assert_int_equal(stand_status(&stand).durable_index, 8);
  raft_persisted(stand.raft, stand.now, stand.last_write);
  stand_work(&stand);
  assert_int_equal(stand_status(&stand).durable_index, 9);
  assert_int_equal(stand_status(&stand).first_index, 9);
  assert_int_equal(raft_fate(stand.raft, 2, 5), RAFT_FATE_COMMITTED);
  assert_int_equal(raft_fate(stand.raft, 3, 5), RAFT_FATE_LOST);
  stand_close(&stand);
}

static void nothing_that_is_committed_is_compacted_before_it_is_durable(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 2, 2};
  open_follower(terms, 3);
  stand.writes_at_once = false;
  append(3, 2, 3, 3, 6);
  assert_int_equal(stand_status(&stand).commit_index, 6);
  assert_int_equal(raft_compact(stand.raft, stand.now, 4), RAFT_INVALID);
  assert_int_equal(raft_compact(stand.raft, stand.now, 3), RAFT_OK);
  raft_persisted(stand.raft, stand.now, stand.last_write);
  assert_int_equal(raft_compact(stand.raft, stand.now, 6), RAFT_OK);
  assert_int_equal(stand_status(&stand).first_index, 7);
  assert_int_equal(raft_compact(stand.raft, stand.now, 7), RAFT_INVALID);
  assert_int_equal(raft_get_configuration(stand.raft, NULL)->n_members, 3);
  stand_close(&stand);
}

static void an_installation_that_makes_no_sense_changes_nothing(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 2, 2};
  static const struct raft_term_start falling[] = {{2, 2}, {1, 3}}, beyond[] = {{1, 1}, {2, 9}};
  const struct raft_configuration nobody = {.n_members = 0};
  open_follower(terms, 3);
  struct raft_install bad = install_of(0, 2);
  assert_int_equal(raft_install(stand.raft, stand.now, &bad), RAFT_INVALID);
  bad = install_of(8, 2);
  bad.configuration = NULL;
  assert_int_equal(raft_install(stand.raft, stand.now, &bad), RAFT_INVALID);
  bad.configuration = &nobody;
  assert_int_equal(raft_install(stand.raft, stand.now, &bad), RAFT_INVALID);
  bad = install_of(8, 2);
  bad.configuration_index = 9;
  assert_int_equal(raft_install(stand.raft, stand.now, &bad), RAFT_INVALID);
  bad = install_of(8, 2);
  bad.term = 3; /* the last pair is of term 2 */
  assert_int_equal(raft_install(stand.raft, stand.now, &bad), RAFT_INVALID);
  bad.terms = falling;
  assert_int_equal(raft_install(stand.raft, stand.now, &bad), RAFT_INVALID);
  bad.terms = beyond;
  bad.term = 2;
  assert_int_equal(raft_install(stand.raft, stand.now, &bad), RAFT_INVALID);
  bad.n_terms = 0;
  assert_int_equal(raft_install(stand.raft, stand.now, &bad), RAFT_INVALID);
  bad = install_of(2, 1); /* entry 2 is committed, of term 2 */
  assert_int_equal(raft_install(stand.raft, stand.now, &bad), RAFT_INVALID);
  bad = install_of(2, 2); /* nothing to do */
  assert_int_equal(raft_install(stand.raft, stand.now, &bad), RAFT_OK);
  stand_work(&stand);
  assert_int_equal(stand_status(&stand).last_index, 3);
  assert_int_equal(stand_status(&stand).commit_index, 2);
  assert_int_equal(stand.n_messages, 0);
  stand_close(&stand);
}

static void a_snapshot_of_a_later_term_brings_its_term(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 2, 2};
  const struct raft_options options = stand_options();
  stand_open_with(&stand, 3, terms, 3, &options);
  const struct raft_install install = install_of(12, 3);
  assert_int_equal(raft_install(stand.raft, stand.now, &install), RAFT_OK);
  stand_work(&stand);
  assert_int_equal(stand_status(&stand).term, 3);
  assert_int_equal(stand_status(&stand).first_index, 13);
  assert_int_equal(stand_status(&stand).commit_index, 12);
  stand_close(&stand);
}

static void after_a_failed_write_nothing_is_compacted_or_installed(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 2, 2};
  open_follower(terms, 3);
  const struct raft_message chunk = chunk_of(8, 2);
  stand_receive(&stand, &chunk);
  raft_persist_failed(stand.raft, stand.now);
  stand_work(&stand);
  stand_clear(&stand);
  const struct raft_install install = install_of(8, 2);
  assert_int_equal(raft_compact(stand.raft, stand.now, 1), RAFT_FAILED);
  assert_int_equal(raft_install(stand.raft, stand.now, &install), RAFT_FAILED);
  raft_snapshot_answer(stand.raft, stand.now, 8, 0, false);
  stand_work(&stand);
  assert_int_equal(stand.n_messages, 0);
  stand_close(&stand);
}

static void a_chunk_is_answered_to_the_leader_that_sent_it_only(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 2, 2};
  open_follower(terms, 3);
  const struct raft_message chunk = chunk_of(8, 2);
  stand_receive(&stand, &chunk);
  raft_snapshot_answer(stand.raft, stand.now, 8, 4, true);
  stand_work(&stand);
  const struct raft_outgoing *answer = stand_last(&stand, RAFT_SNAPSHOT_RESULT, 2);
  assert_non_null(answer);
  assert_int_equal(answer->message.offset, 4);
  assert_int_equal(answer->message.context, 1);
  assert_true(answer->message.reject);
  stand_clear(&stand);
  const struct raft_message heartbeat = stand_message(RAFT_HEARTBEAT, 3, 4);
  stand_receive(&stand, &heartbeat);
  stand_clear(&stand);
  raft_snapshot_answer(stand.raft, stand.now, 8, 6, false);
  stand_work(&stand);
  assert_int_equal(stand.n_messages, 0);
  stand_close(&stand);
}

/* ---- The leader ---- */

static struct raft_transfer seen[16];
static size_t n_seen;

static void take_transfers(void) {
  struct raft_work work;
  n_seen = 0;
  while (raft_take_work(stand.raft, &work)) {
    for (size_t i = 0; i < work.n_transfers; i++) {
      seen[n_seen++] = work.transfers[i];
    }
    for (size_t i = 0; i < work.n_messages; i++) {
      stand.messages[stand.n_messages++] = work.messages[i];
    }
    if (work.persist) {
      raft_persisted(stand.raft, stand.now, work.persist);
    }
  }
}

static void receive(const struct raft_message *message) {
  raft_receive(stand.raft, stand.now, message);
  take_transfers();
}

static void refuse_probe(uint64_t from) {
  const struct raft_outgoing *probe = stand_last(&stand, RAFT_APPEND, from);
  assert_non_null(probe);
  struct raft_message refusal = stand_message(RAFT_APPEND_RESULT, from, 2);
  refusal.reject = true;
  refusal.index = probe->message.index;
  stand_clear(&stand);
  receive(&refusal);
}

/* Leads in term 2 with entries 1 … 4 committed and 1 … 3 compacted; member 3 has nothing and begins to be served. */
static uint64_t lead(void) {
  const uint64_t terms[] = {1, 1, 1};
  const struct raft_options options = stand_options();
  stand_open_with(&stand, 3, terms, 3, &options);
  assert_int_equal(stand_elect(&stand), 2);
  stand_acknowledge(&stand, 2, 4);
  assert_int_equal(stand_status(&stand).commit_index, 4);
  assert_int_equal(raft_compact(stand.raft, stand.now, 3), RAFT_OK);
  refuse_probe(3);
  assert_int_equal(n_seen, 1);
  assert_int_equal(seen[0].event, RAFT_TRANSFER_BEGIN);
  assert_int_equal(seen[0].to, 3);
  return seen[0].id;
}

static int offer(uint64_t id, uint64_t index, uint64_t offset, uint32_t bytes, struct raft_message *message) {
  const struct raft_chunk chunk = {
      .index = index, .term = index > 3 ? 2 : 1, .offset = offset, .size_bytes = 10, .bytes = bytes};
  return raft_transfer_chunk(stand.raft, stand.now, id, &chunk, message);
}

static void wants(uint64_t id, uint64_t offset, bool reject) {
  struct raft_message result = stand_message(RAFT_SNAPSHOT_RESULT, 3, 2);
  result.context = id;
  result.index = 3;
  result.offset = offset;
  result.reject = reject;
  receive(&result);
}

static void only_a_snapshot_that_the_log_follows_on_is_sent(void **state) {
  (void)state;
  const uint64_t id = lead();
  struct raft_message message;
  const struct raft_chunk other_term = {.index = 3, .term = 2, .size_bytes = 10};
  assert_int_equal(offer(id, 2, 0, 0, &message), RAFT_INVALID); /* entry 3 is compacted */
  assert_int_equal(offer(id, 5, 0, 0, &message), RAFT_INVALID); /* not committed */
  assert_int_equal(raft_transfer_chunk(stand.raft, stand.now, id, &other_term, &message), RAFT_INVALID);
  assert_int_equal(offer(id + 1, 3, 0, 0, &message), RAFT_NOT_LEADER);
  assert_int_equal(offer(id, 3, 0, 0, &message), RAFT_OK);
  assert_int_equal(message.type, RAFT_SNAPSHOT);
  assert_int_equal(message.term, 2);
  assert_int_equal(message.context, id);
  assert_int_equal(offer(id, 4, 0, 0, &message), RAFT_INVALID);  /* another file */
  assert_int_equal(offer(id, 3, 8, 3, &message), RAFT_INVALID);  /* beyond its end */
  assert_int_equal(offer(id, 3, 11, 0, &message), RAFT_INVALID); /* likewise */
  assert_int_equal(offer(id, 3, 8, 2, &message), RAFT_OK);
  stand_close(&stand);
}

static void the_driver_hears_of_each_wish_once(void **state) {
  (void)state;
  const uint64_t id = lead();
  struct raft_message message;
  wants(id, 0, false); /* nobody has offered anything yet */
  assert_int_equal(n_seen, 0);
  assert_int_equal(offer(id, 3, 0, 0, &message), RAFT_OK);
  wants(id + 1, 0, false);
  wants(id, 11, false);
  assert_int_equal(n_seen, 0);
  wants(id, 0, false);
  assert_int_equal(n_seen, 1);
  assert_int_equal(seen[0].event, RAFT_TRANSFER_CONTINUE);
  assert_int_equal(seen[0].index, 3);
  assert_false(seen[0].again);
  wants(id, 0, false);
  assert_int_equal(n_seen, 0);
  wants(id, 4, false);
  assert_int_equal(seen[0].offset, 4);
  assert_false(seen[0].again);
  wants(id, 4, true);
  assert_int_equal(n_seen, 1);
  assert_true(seen[0].again);
  wants(id, 4, true);
  assert_int_equal(n_seen, 0);
  wants(id, 2, false); /* it has restarted, and lost what was not durable */
  assert_int_equal(seen[0].offset, 2);
  assert_true(seen[0].again);
  stand_close(&stand);
}

static void a_transfer_that_failed_is_begun_again_only_after_a_while(void **state) {
  (void)state;
  const uint64_t id = lead();
  raft_transfer_failed(stand.raft, stand.now, id);
  take_transfers();
  assert_int_equal(n_seen, 1);
  assert_int_equal(seen[0].event, RAFT_TRANSFER_END);
  assert_int_equal(seen[0].id, id);
  refuse_probe(3);
  assert_int_equal(n_seen, 0);
  assert_int_equal(stand_count(&stand, RAFT_APPEND), 0); /* no ping-pong */
  stand.now += STAND_ELECTION;
  struct raft_message answer = stand_message(RAFT_HEARTBEAT_RESULT, 3, 2);
  receive(&answer);
  refuse_probe(3);
  assert_int_equal(n_seen, 1);
  assert_int_equal(seen[0].event, RAFT_TRANSFER_BEGIN);
  assert_true(seen[0].id > id);
  stand_close(&stand);
}

static void a_member_that_is_gone_loses_its_transfer_and_one_that_leads_no_more_ends_all(void **state) {
  (void)state;
  (void)lead();
  for (int i = 0; i < 20; i++) { /* member 2 keeps the leader in office */
    struct raft_message answer = stand_message(RAFT_HEARTBEAT_RESULT, 2, 2);
    stand.now += STAND_ELECTION / 2;
    receive(&answer);
    assert_int_equal(n_seen, 0);
    raft_tick(stand.raft, stand.now);
    take_transfers();
    assert_int_equal(n_seen, i == 19);
    stand_clear(&stand);
  }
  assert_int_equal(seen[0].event, RAFT_TRANSFER_END);
  assert_int_equal(stand_status(&stand).role, RAFT_LEADER);
  stand_close(&stand);
  const uint64_t id = lead();
  const struct raft_message heartbeat = stand_message(RAFT_HEARTBEAT, 2, 3);
  receive(&heartbeat);
  assert_int_equal(n_seen, 1);
  assert_int_equal(seen[0].event, RAFT_TRANSFER_END);
  assert_int_equal(seen[0].id, id);
  struct raft_message message;
  assert_int_equal(offer(id, 3, 0, 0, &message), RAFT_NOT_LEADER);
  stand_close(&stand);
}

static void a_member_whose_log_suffices_after_all_is_replicated_to(void **state) {
  (void)state;
  const uint64_t id = lead();
  struct raft_message result = stand_message(RAFT_APPEND_RESULT, 3, 2);
  result.index = 3;
  receive(&result);
  assert_int_equal(n_seen, 1);
  assert_int_equal(seen[0].event, RAFT_TRANSFER_END);
  assert_int_equal(seen[0].id, id);
  assert_int_equal(stand_last(&stand, RAFT_APPEND, 3)->message.index, 3);
  assert_int_equal(stand_last(&stand, RAFT_APPEND, 3)->message.n_entries, 1);
  stand_close(&stand);
}

static void a_member_behind_a_log_that_was_compacted_to_its_end_is_found_without_new_entries(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 1, 1};
  const struct raft_options options = stand_options();
  stand_open_with(&stand, 3, terms, 3, &options);
  assert_int_equal(stand_elect(&stand), 2);
  stand_acknowledge(&stand, 2, 4);
  assert_int_equal(raft_compact(stand.raft, stand.now, 4), RAFT_OK);
  stand_clear(&stand);
  take_transfers();
  const struct raft_outgoing *probe = stand_last(&stand, RAFT_APPEND, 3);
  assert_non_null(probe);
  assert_int_equal(probe->message.index, 4);
  assert_int_equal(probe->message.n_entries, 0);
  refuse_probe(3);
  assert_int_equal(seen[0].event, RAFT_TRANSFER_BEGIN);
  stand_close(&stand);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_write_from_before_the_installation_makes_nothing_durable_that_came_after_it),
      cmocka_unit_test(nothing_that_is_committed_is_compacted_before_it_is_durable),
      cmocka_unit_test(an_installation_that_makes_no_sense_changes_nothing),
      cmocka_unit_test(a_snapshot_of_a_later_term_brings_its_term),
      cmocka_unit_test(after_a_failed_write_nothing_is_compacted_or_installed),
      cmocka_unit_test(a_chunk_is_answered_to_the_leader_that_sent_it_only),
      cmocka_unit_test(only_a_snapshot_that_the_log_follows_on_is_sent),
      cmocka_unit_test(the_driver_hears_of_each_wish_once),
      cmocka_unit_test(a_transfer_that_failed_is_begun_again_only_after_a_while),
      cmocka_unit_test(a_member_that_is_gone_loses_its_transfer_and_one_that_leads_no_more_ends_all),
      cmocka_unit_test(a_member_whose_log_suffices_after_all_is_replicated_to),
      cmocka_unit_test(a_member_behind_a_log_that_was_compacted_to_its_end_is_found_without_new_entries),
  };
  return cmocka_run_group_tests_name("raft_install", tests, NULL, NULL);
}
