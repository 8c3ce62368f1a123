/* Changes of the membership (raft/change.c, raft/membership.c), as one core sees them; histories are in tests/trace. */
#include "raft_stand.h"

static struct stand stand;

static int close_stand(void **state) {
  (void)state;
  stand_close(&stand);
  stand.raft = NULL;
  return 0;
}

/* Node 1 of n leads; its no-op, entry 2, is on all of them. */
static uint64_t lead(uint32_t n) {
  stand_open(&stand, n);
  uint64_t term = 2;
  if (n == 1) {
    stand_tick(&stand, 1);
  } else {
    term = stand_elect(&stand);
  }
  for (uint64_t id = 2; id <= n; id++) {
    stand_acknowledge(&stand, id, 2);
  }
  assert_int_equal(stand_status(&stand).commit_index, 2);
  stand_clear(&stand);
  return term;
}

static struct raft_change adding(uint64_t id, bool joining) {
  struct raft_change change = {
      .type = RAFT_CHANGE_ADD, .id = id, .incarnation = stand_incarnation(id), .joining = joining};
  (void)snprintf(change.address, sizeof change.address, "host%u:1", (unsigned)id);
  return change;
}

static struct raft_change changing(enum raft_change_type type, uint64_t id) {
  return (struct raft_change){.type = type, .id = id};
}

static int change_all(const struct raft_change *changes, size_t n) {
  uint64_t index = 0;
  const int error = raft_change_members(stand.raft, stand.now, changes, n, &index);
  assert_true(error || index == stand_status(&stand).last_index);
  stand_work(&stand);
  return error;
}

static int change(struct raft_change change) {
  return change_all(&change, 1);
}

static uint8_t roles_of(uint64_t id) {
  const struct raft_member *member = raft_configuration_find(raft_get_configuration(stand.raft, NULL), id);
  return member ? member->roles : 0;
}

static uint64_t commit_index(void) {
  return stand_status(&stand).commit_index;
}

static void acknowledge_all(uint64_t from) {
  stand_acknowledge(&stand, from, stand_status(&stand).last_index);
}

/* ---- Steps ---- */

static void a_learner_is_added_in_one_step_and_does_not_count(void **state) {
  (void)state;
  (void)lead(1);
  assert_int_equal(change(adding(2, false)), RAFT_OK);
  assert_int_equal(roles_of(2), RAFT_LEARNER);
  assert_int_equal(roles_of(1), RAFT_VOTER_NEW);
  assert_int_equal(stand.work.commit_index, 3); /* the only voter commits alone */
  assert_false(stand_status(&stand).is_joint);
  assert_true(stand_status(&stand).configuration_committed);
  assert_non_null(stand_last(&stand, RAFT_APPEND, 2));

  /* It is heard of never: that deposes nobody. */
  stand_tick(&stand, 3 * STAND_ELECTION);
  assert_int_equal(stand_status(&stand).role, RAFT_LEADER);
  assert_int_equal(change(changing(RAFT_CHANGE_PROMOTE, 2)), RAFT_BEHIND);
}

static void who_joins_is_promoted_by_itself_when_it_has_caught_up(void **state) {
  (void)state;
  (void)lead(1);
  assert_int_equal(change(adding(2, true)), RAFT_OK);
  assert_int_equal(roles_of(2), RAFT_LEARNER | RAFT_JOINING);
  stand_acknowledge(&stand, 2, 2);
  assert_int_equal(roles_of(2), RAFT_LEARNER | RAFT_JOINING); /* it lacks what there was when it came */
  stand_acknowledge(&stand, 2, 3);
  assert_int_equal(roles_of(2), RAFT_VOTER_NEW); /* what it lacked it got within an election time-out */
  assert_int_equal(roles_of(1), RAFT_VOTER_NEW | RAFT_VOTER_OLD);
  assert_true(stand_status(&stand).is_joint);
  assert_int_equal(commit_index(), 3);
  stand_acknowledge(&stand, 2, 4);
  assert_false(stand_status(&stand).is_joint); /* and is appended */
  assert_int_equal(roles_of(1), RAFT_VOTER_NEW);
  assert_int_equal(commit_index(), 4);
  stand_acknowledge(&stand, 2, 5);
  assert_int_equal(commit_index(), 5);
  assert_true(stand_status(&stand).configuration_committed);
}

static void who_takes_too_long_to_catch_up_stays_a_learner(void **state) {
  (void)state;
  (void)lead(1);
  assert_int_equal(change(adding(2, true)), RAFT_OK);
  uint64_t index;
  for (int i = 0; i < 5; i++) {
    stand_tick(&stand, STAND_ELECTION + 1);
    assert_int_equal(raft_propose(stand.raft, stand.now, 2, RAFT_ENTRY_DATA, 1, &index), RAFT_OK);
    stand_work(&stand);
    stand_acknowledge(&stand, 2, index - 1);
    assert_int_equal(roles_of(2), RAFT_LEARNER | RAFT_JOINING);
  }
  acknowledge_all(2);
  assert_int_equal(roles_of(2), RAFT_VOTER_NEW);
}

static void a_learner_that_does_not_join_stays_one_until_it_is_promoted(void **state) {
  (void)state;
  (void)lead(3);
  assert_int_equal(change(adding(4, false)), RAFT_OK);
  acknowledge_all(2);
  acknowledge_all(4);
  assert_int_equal(roles_of(4), RAFT_LEARNER);
  assert_int_equal(change(changing(RAFT_CHANGE_PROMOTE, 4)), RAFT_OK);
  assert_int_equal(roles_of(4), RAFT_VOTER_NEW);
  assert_int_equal(roles_of(3), RAFT_VOTER_NEW | RAFT_VOTER_OLD);
}

static void a_joint_configuration_commits_by_both_majorities(void **state) {
  (void)state;
  (void)lead(3);
  const struct raft_change learners[] = {adding(4, false), adding(5, false)};
  assert_int_equal(change_all(learners, 2), RAFT_OK);
  for (uint64_t id = 2; id <= 5; id++) {
    acknowledge_all(id);
  }
  /* From {1, 2, 3} to {1, 4, 5} in one step. */
  const struct raft_change changes[] = {changing(RAFT_CHANGE_REMOVE, 2), changing(RAFT_CHANGE_REMOVE, 3),
                                        changing(RAFT_CHANGE_PROMOTE, 4), changing(RAFT_CHANGE_PROMOTE, 5)};
  assert_int_equal(change_all(changes, 4), RAFT_OK);
  assert_int_equal(roles_of(2), RAFT_VOTER_OLD);
  const uint64_t joint = stand_status(&stand).last_index;
  stand_acknowledge(&stand, 4, joint);
  stand_acknowledge(&stand, 5, joint);
  assert_int_equal(commit_index(), joint - 1); /* the set to come alone */
  stand_acknowledge(&stand, 3, joint);
  assert_int_equal(commit_index(), joint);
  assert_int_equal(roles_of(2), 0); /* settled, and in force at once */
  assert_int_equal(raft_get_configuration(stand.raft, NULL)->n_members, 3);
  assert_int_equal(commit_index(), joint);
  stand_acknowledge(&stand, 5, joint + 1);
  assert_int_equal(commit_index(), joint + 1);
}

static void the_old_majority_alone_does_not_commit_either(void **state) {
  (void)state;
  (void)lead(3);
  const struct raft_change learners[] = {adding(4, false), adding(5, false)};
  assert_int_equal(change_all(learners, 2), RAFT_OK);
  for (uint64_t id = 2; id <= 5; id++) {
    acknowledge_all(id);
  }
  const struct raft_change changes[] = {changing(RAFT_CHANGE_REMOVE, 2), changing(RAFT_CHANGE_REMOVE, 3),
                                        changing(RAFT_CHANGE_PROMOTE, 4), changing(RAFT_CHANGE_PROMOTE, 5)};
  assert_int_equal(change_all(changes, 4), RAFT_OK);
  const uint64_t joint = stand_status(&stand).last_index;
  stand_acknowledge(&stand, 2, joint);
  stand_acknowledge(&stand, 3, joint);
  assert_int_equal(commit_index(), joint - 1);
}

static void what_is_known_of_a_member_stays_with_it_when_places_change(void **state) {
  (void)state;
  (void)lead(5);
  uint64_t index;
  assert_int_equal(raft_propose(stand.raft, stand.now, stand_status(&stand).term, RAFT_ENTRY_DATA, 1, &index), 0);
  stand_work(&stand);
  stand_acknowledge(&stand, 4, 3);
  stand_acknowledge(&stand, 5, 3);
  const struct raft_change changes[] = {changing(RAFT_CHANGE_REMOVE, 2), adding(6, false)};
  assert_int_equal(change_all(changes, 2), RAFT_OK);
  stand_acknowledge(&stand, 3, 4);
  stand_acknowledge(&stand, 4, 4);
  stand_acknowledge(&stand, 5, 4); /* settled now: 2 is gone */
  struct raft_member_status members[RAFT_MEMBERS_MAX];
  assert_int_equal(raft_get_members(stand.raft, members, RAFT_MEMBERS_MAX), 5);
  static const struct { uint64_t id, match; } expected[] = {{1, 5}, {3, 4}, {4, 4}, {5, 4}, {6, 0}};
  for (int i = 0; i < 5; i++) {
    assert_int_equal(members[i].id, expected[i].id);
    assert_int_equal(members[i].match_index, expected[i].match);
  }
}

/* ---- Refusals ---- */

static void nothing_changes_before_this_term_has_committed_something(void **state) {
  (void)state;
  stand_open(&stand, 3);
  assert_int_equal(change(adding(4, false)), RAFT_NOT_LEADER);
  (void)stand_elect(&stand);
  stand_acknowledge(&stand, 2, 1);
  assert_int_equal(change(adding(4, false)), RAFT_PENDING);
  stand_acknowledge(&stand, 2, 2);
  assert_int_equal(change(adding(4, false)), RAFT_OK);
  assert_int_equal(change(adding(5, false)), RAFT_PENDING); /* the one before has not committed */
  stand_acknowledge(&stand, 2, 3);
  assert_int_equal(change(changing(RAFT_CHANGE_DEMOTE, 3)), RAFT_OK);
  stand_acknowledge(&stand, 2, 4); /* joint has, the settled one has not */
  assert_false(stand_status(&stand).is_joint);
  assert_int_equal(change(adding(5, false)), RAFT_PENDING);
  stand_acknowledge(&stand, 2, 5);
  assert_int_equal(change(adding(5, false)), RAFT_OK);
}

static void nothing_changes_while_leadership_is_handed_over(void **state) {
  (void)state;
  (void)lead(3);
  assert_int_equal(raft_hand_over(stand.raft, stand.now, 2), RAFT_OK);
  stand_work(&stand);
  assert_int_equal(change(adding(4, false)), RAFT_PENDING);
}

static void changes_that_make_no_sense_are_refused(void **state) {
  (void)state;
  (void)lead(3);
  struct raft_change wrong = adding(3, false);
  assert_int_equal(change(wrong), RAFT_INVALID); /* a member, by whatever incarnation */
  wrong.incarnation = stand_incarnation(9);
  assert_int_equal(change(wrong), RAFT_INVALID);
  wrong = adding(4, false);
  (void)snprintf(wrong.address, sizeof wrong.address, "host2:1");
  assert_int_equal(change(wrong), RAFT_INVALID);
  wrong = adding(4, false);
  memset(wrong.address, 'x', sizeof wrong.address);
  assert_int_equal(change(wrong), RAFT_INVALID);
  wrong = adding(4, false);
  wrong.incarnation = (struct raft_uuid){{0}};
  assert_int_equal(change(wrong), RAFT_INVALID);
  wrong = adding(0, false);
  assert_int_equal(change(wrong), RAFT_INVALID);
  assert_int_equal(change(changing(RAFT_CHANGE_REMOVE, 9)), RAFT_INVALID);
  assert_int_equal(change(changing(RAFT_CHANGE_DEMOTE, 9)), RAFT_INVALID);
  assert_int_equal(change(changing(RAFT_CHANGE_PROMOTE, 2)), RAFT_INVALID);
  assert_int_equal(change(changing((enum raft_change_type)77, 2)), RAFT_INVALID);
  wrong = changing(RAFT_CHANGE_ADDRESS, 2);
  wrong.incarnation = stand_incarnation(9);
  assert_int_equal(change(wrong), RAFT_INVALID);
  const struct raft_change twice[] = {changing(RAFT_CHANGE_REMOVE, 2), adding(2, false)};
  assert_int_equal(change_all(twice, 2), RAFT_INVALID);
  const struct raft_change all[] = {changing(RAFT_CHANGE_REMOVE, 1), changing(RAFT_CHANGE_REMOVE, 2),
                                    changing(RAFT_CHANGE_DEMOTE, 3)};
  assert_int_equal(change_all(all, 3), RAFT_INVALID);
  assert_int_equal(change_all(NULL, 0), RAFT_INVALID);
  struct raft_change many[RAFT_MEMBERS_MAX];
  for (uint64_t i = 0; i < RAFT_MEMBERS_MAX; i++) {
    many[i] = adding(4 + i, false);
  }
  assert_int_equal(change_all(many, RAFT_MEMBERS_MAX - 2), RAFT_INVALID);
  assert_int_equal(change_all(many, RAFT_MEMBERS_MAX - 3), RAFT_OK);
}

static void an_address_changes_in_one_step(void **state) {
  (void)state;
  (void)lead(3);
  struct raft_change moving = changing(RAFT_CHANGE_ADDRESS, 2);
  moving.incarnation = stand_incarnation(2);
  (void)snprintf(moving.address, sizeof moving.address, "elsewhere:1");
  assert_int_equal(change(moving), RAFT_OK);
  assert_false(stand_status(&stand).is_joint);
  const struct raft_configuration *now = raft_get_configuration(stand.raft, NULL);
  assert_string_equal(raft_configuration_find(now, 2)->address, "elsewhere:1");
  assert_int_equal(roles_of(2), RAFT_VOTER_NEW);
}

/* ---- The leader itself ---- */

static void a_leader_that_is_removed_leads_until_that_is_committed_and_hands_over(void **state) {
  (void)state;
  (void)lead(3);
  assert_int_equal(change(changing(RAFT_CHANGE_REMOVE, 1)), RAFT_OK);
  assert_int_equal(roles_of(1), RAFT_VOTER_OLD);
  stand_acknowledge(&stand, 2, 3);
  assert_int_equal(commit_index(), 2); /* it does not count itself in {2, 3} */
  stand_acknowledge(&stand, 3, 3);
  assert_int_equal(commit_index(), 3);
  assert_int_equal(roles_of(1), 0);
  assert_int_equal(stand_status(&stand).role, RAFT_LEADER);
  uint64_t index;
  assert_int_equal(raft_propose(stand.raft, stand.now, stand_status(&stand).term, RAFT_ENTRY_DATA, 1, &index), 0);
  stand_work(&stand);
  stand_acknowledge(&stand, 2, 4);
  assert_int_equal(commit_index(), 3);
  stand_acknowledge(&stand, 3, 4);
  assert_int_equal(commit_index(), 4);
  assert_int_equal(stand_count(&stand, RAFT_TIMEOUT_NOW), 0); /* entry 5 is still on its way */
  assert_int_equal(stand_status(&stand).hand_over_to, 2);
  assert_int_equal(raft_propose(stand.raft, stand.now, stand_status(&stand).term, RAFT_ENTRY_DATA, 1, &index),
                   RAFT_PENDING);
  stand_acknowledge(&stand, 2, 5);
  stand_acknowledge(&stand, 3, 5);
  assert_non_null(stand_last(&stand, RAFT_TIMEOUT_NOW, 2));
  stand_tick(&stand, STAND_ELECTION);
  assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER);
  stand_tick(&stand, 5 * STAND_ELECTION);
  assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER); /* it campaigns no more */
}

static void a_leader_that_is_demoted_hands_over_and_stays_a_learner(void **state) {
  (void)state;
  (void)lead(3);
  assert_int_equal(change(changing(RAFT_CHANGE_DEMOTE, 1)), RAFT_OK);
  assert_int_equal(roles_of(1), RAFT_VOTER_OLD | RAFT_LEARNER);
  for (uint64_t index = 3; index <= 4; index++) {
    stand_acknowledge(&stand, 2, index);
    stand_acknowledge(&stand, 3, index);
  }
  assert_int_equal(roles_of(1), RAFT_LEARNER);
  assert_non_null(stand_last(&stand, RAFT_TIMEOUT_NOW, 2));
  assert_int_equal(stand_status(&stand).lease_until, 0);
}

static void who_leaves_is_sent_the_entry_that_says_so_and_that_it_is_committed(void **state) {
  (void)state;
  (void)lead(3);
  assert_int_equal(change(changing(RAFT_CHANGE_REMOVE, 3)), RAFT_OK);
  stand_acknowledge(&stand, 3, 3);
  stand_clear(&stand);
  stand_acknowledge(&stand, 2, 3);
  assert_int_equal(roles_of(3), 0);
  const struct raft_outgoing *last = stand_last(&stand, RAFT_APPEND, 3);
  assert_non_null(last);
  assert_int_equal(last->message.index + last->message.n_entries, 4);
  stand_clear(&stand);
  stand_acknowledge(&stand, 2, 4);
  last = stand_last(&stand, RAFT_APPEND, 3);
  assert_non_null(last);
  assert_int_equal(last->message.commit, 4);
  assert_int_equal(last->message.index + last->message.n_entries, 4);
  stand_clear(&stand);
  stand_tick(&stand, STAND_HEARTBEAT);
  assert_null(stand_last(&stand, RAFT_HEARTBEAT, 3));
  /* What it still says does not count. */
  struct raft_message late = stand_message(RAFT_APPEND_RESULT, 3, 9);
  late.reject = true;
  stand_receive(&stand, &late);
  assert_int_equal(stand_status(&stand).role, RAFT_LEADER);
}

/* ---- Followers, and starts ---- */

static uint8_t bytes[3][4096];

/* An APPEND of member 2 behind `index`, of configurations. */
static void receive_configurations(uint64_t term, uint64_t index, uint64_t log_term,
                                   const struct raft_configuration *configurations, uint32_t n, uint64_t commit) {
  struct raft_entry_meta entries[3];
  const uint8_t *payloads[3];
  for (uint32_t i = 0; i < n; i++) {
    raft_configuration_encode(&configurations[i], bytes[i]);
    entries[i] = (struct raft_entry_meta){
        .term = term, .size = (uint32_t)raft_configuration_size(&configurations[i]), .type = RAFT_ENTRY_CONFIGURATION};
    payloads[i] = bytes[i];
  }
  struct raft_message append = stand_message(RAFT_APPEND, 2, term);
  append.index = index;
  append.log_term = log_term;
  append.n_entries = n;
  append.entries = entries;
  append.payloads = payloads;
  append.commit = commit;
  append.round = 1;
  stand_receive(&stand, &append);
}

/* Node 1 leaves: joint, then settled. */
static void make_leaving(struct raft_configuration both[2]) {
  both[0] = both[1] = stand_members(3);
  both[0].members[0].roles = RAFT_VOTER_OLD;
  both[0].members[1].roles = both[0].members[2].roles = RAFT_VOTER_NEW | RAFT_VOTER_OLD;
  both[1].n_members = 2;
  both[1].members[0] = both[1].members[1];
  both[1].members[1] = both[1].members[2];
}

static void both_configurations_may_come_at_once_and_go_again(void **state) {
  (void)state;
  struct raft_configuration both[2];
  uint64_t at = 0;
  make_leaving(both);
  stand_open(&stand, 3);
  receive_configurations(2, 1, 1, both, 2, 1);
  assert_int_equal(raft_get_configuration(stand.raft, &at)->n_members, 2);
  assert_int_equal(at, 3);
  assert_false(stand_status(&stand).configuration_committed);
  assert_int_equal(raft_get_configuration_at(stand.raft, 2, &at)->members[0].roles, RAFT_VOTER_OLD);
  assert_int_equal(at, 2);
  assert_int_equal(raft_get_configuration_at(stand.raft, 1, &at)->n_members, 3);
  assert_null(raft_get_configuration_at(stand.raft, 0, &at));
  /* A later leader has something else there. */
  receive_configurations(3, 1, 1, &both[0], 1, 1);
  assert_int_equal(raft_get_configuration(stand.raft, &at)->n_members, 3);
  assert_int_equal(at, 2);
  assert_true(stand_status(&stand).is_joint);
}

static void one_that_leaves_may_still_be_needed_until_that_is_committed(void **state) {
  (void)state;
  struct raft_configuration both[2];
  make_leaving(both);
  stand_open(&stand, 3);
  receive_configurations(2, 1, 1, both, 2, 2);
  stand_tick(&stand, 2 * STAND_ELECTION);
  assert_int_equal(stand_status(&stand).role, RAFT_PRE_CANDIDATE);
  /* It does not count itself: both others have to say yes. */
  const struct raft_message one = stand_message(RAFT_PRE_VOTE_RESULT, 2, 3);
  stand_receive(&stand, &one);
  assert_int_equal(stand_status(&stand).role, RAFT_PRE_CANDIDATE);
  const struct raft_message two = stand_message(RAFT_PRE_VOTE_RESULT, 3, 3);
  stand_receive(&stand, &two);
  assert_int_equal(stand_status(&stand).role, RAFT_CANDIDATE);
  /* Once it is known to be committed there is no need. */
  receive_configurations(3, 3, 2, NULL, 0, 3);
  assert_true(stand_status(&stand).configuration_committed);
  stand_tick(&stand, 2 * STAND_ELECTION);
  assert_int_equal(stand_status(&stand).role, RAFT_FOLLOWER);
}

static void a_leader_that_is_not_known_here_is_followed(void **state) {
  (void)state;
  stand_open(&stand, 3);
  struct raft_message heartbeat = stand_message(RAFT_HEARTBEAT, 9, 4);
  heartbeat.round = 7;
  stand_receive(&stand, &heartbeat);
  assert_int_equal(stand_status(&stand).leader, 9);
  assert_int_equal(stand_last(&stand, RAFT_HEARTBEAT_RESULT, 9)->message.round, 7);
  /* It is asked for reads as any other. */
  assert_int_equal(raft_read(stand.raft, stand.now, 5, RAFT_READ_QUORUM), RAFT_OK);
  stand_work(&stand);
  assert_memory_equal(&stand_last(&stand, RAFT_READ_INDEX, 9)->message.to_incarnation, &heartbeat.from_incarnation, 16);
}

static void a_leader_elected_in_a_joint_configuration_settles_it(void **state) {
  (void)state;
  struct raft_configuration joint = stand_members(3);
  for (int i = 0; i < 3; i++) {
    joint.members[i].roles = i == 2 ? RAFT_VOTER_OLD : RAFT_VOTER_NEW | RAFT_VOTER_OLD;
  }
  stand_open(&stand, 3);
  receive_configurations(2, 1, 1, &joint, 1, 1);
  const uint64_t term = stand_elect(&stand);
  assert_int_equal(term, 3);
  stand_acknowledge(&stand, 2, 2);
  assert_int_equal(commit_index(), 0 + 1); /* of an earlier term: not by counting */
  assert_true(stand_status(&stand).is_joint);
  stand_acknowledge(&stand, 2, 3);
  assert_int_equal(commit_index(), 3);
  assert_int_equal(roles_of(3), 0);
  assert_int_equal(stand_status(&stand).configuration_index, 4);
}

static void a_start_takes_all_configurations_of_the_log(void **state) {
  (void)state;
  struct raft_configuration members[40];
  struct raft_start_configuration list[40];
  struct raft_entry_meta entries[40];
  for (uint64_t i = 0; i < 40; i++) {
    members[i] = stand_members(3);
    members[i].settings.heartbeat_ms = 10 + (uint32_t)i;
    list[i] = (struct raft_start_configuration){i + 1, &members[i]};
    entries[i] = (struct raft_entry_meta){.term = 1, .size = 9, .type = RAFT_ENTRY_CONFIGURATION};
  }
  struct raft_start start = {.now = 1,
                             .term = 1,
                             .first_index = 1,
                             .last_index = 40,
                             .entries = entries,
                             .configurations = list,
                             .n_configurations = 40};
  const struct raft_options options = stand_options();
  assert_int_equal(raft_open(&options, &start, &stand.raft), RAFT_OK);
  uint64_t at;
  assert_int_equal(raft_get_configuration(stand.raft, &at)->settings.heartbeat_ms, 49);
  assert_int_equal(at, 40);
  /* Each but the last one is committed: another one followed on it. Of so many the first ones are forgotten. */
  assert_in_range(stand_status(&stand).commit_index, 1, 39);
  assert_non_null(raft_get_configuration_at(stand.raft, stand_status(&stand).commit_index, &at));
  struct raft *other;
  list[5].index = 3;
  assert_int_equal(raft_open(&options, &start, &other), RAFT_INVALID);
  list[5].index = 6;
  list[39].index = 41;
  assert_int_equal(raft_open(&options, &start, &other), RAFT_INVALID);
  start.configurations = list + 3; /* nothing is in force at entry 1 */
  start.n_configurations = 2;
  assert_int_equal(raft_open(&options, &start, &other), RAFT_INVALID);
}

static void many_configurations_pass_through(void **state) {
  (void)state;
  (void)lead(1);
  uint64_t at;
  for (uint64_t i = 0; i < 50; i++) {
    assert_int_equal(change(adding(2, false)), RAFT_OK);
    assert_int_equal(change(changing(RAFT_CHANGE_REMOVE, 2)), RAFT_OK);
  }
  const uint64_t last = stand_status(&stand).last_index;
  assert_int_equal(commit_index(), last);
  assert_int_equal(raft_get_configuration_at(stand.raft, last - 1, &at)->n_members, 2);
  assert_int_equal(at, last - 1);
  assert_null(raft_get_configuration_at(stand.raft, 2, &at));
}

static void a_transfer_to_a_member_that_goes_ends(void **state) {
  (void)state;
  const uint64_t terms[] = {1, 1, 1, 1, 1};
  const struct raft_options options = stand_options();
  stand_open_with(&stand, 3, terms, 5, &options);
  (void)stand_elect(&stand);
  stand_acknowledge(&stand, 2, 6);
  assert_int_equal(raft_compact(stand.raft, stand.now, 5), RAFT_OK);
  struct raft_message refusal = stand_message(RAFT_APPEND_RESULT, 3, 2);
  refusal.reject = true;
  refusal.index = 5;
  raft_receive(stand.raft, stand.now, &refusal);
  struct raft_work work;
  assert_true(raft_take_work(stand.raft, &work));
  assert_int_equal(work.n_transfers, 1);
  const uint64_t id = work.transfers[0].id;
  const struct raft_change changes[] = {changing(RAFT_CHANGE_REMOVE, 3), adding(4, false)};
  assert_int_equal(change_all(changes, 2), RAFT_OK);
  struct raft_message acknowledged = stand_message(RAFT_APPEND_RESULT, 2, 2);
  acknowledged.index = stand_status(&stand).last_index;
  raft_receive(stand.raft, stand.now, &acknowledged);
  assert_true(raft_take_work(stand.raft, &work));
  assert_int_equal(work.n_transfers, 1);
  assert_int_equal(work.transfers[0].event, RAFT_TRANSFER_END);
  assert_int_equal(work.transfers[0].id, id);
  assert_int_equal(work.transfers[0].to, 3);
  assert_int_equal(work.configuration_index, acknowledged.index + 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(a_learner_is_added_in_one_step_and_does_not_count, close_stand),
      cmocka_unit_test_teardown(who_joins_is_promoted_by_itself_when_it_has_caught_up, close_stand),
      cmocka_unit_test_teardown(who_takes_too_long_to_catch_up_stays_a_learner, close_stand),
      cmocka_unit_test_teardown(a_learner_that_does_not_join_stays_one_until_it_is_promoted, close_stand),
      cmocka_unit_test_teardown(a_joint_configuration_commits_by_both_majorities, close_stand),
      cmocka_unit_test_teardown(the_old_majority_alone_does_not_commit_either, close_stand),
      cmocka_unit_test_teardown(what_is_known_of_a_member_stays_with_it_when_places_change, close_stand),
      cmocka_unit_test_teardown(nothing_changes_before_this_term_has_committed_something, close_stand),
      cmocka_unit_test_teardown(nothing_changes_while_leadership_is_handed_over, close_stand),
      cmocka_unit_test_teardown(changes_that_make_no_sense_are_refused, close_stand),
      cmocka_unit_test_teardown(an_address_changes_in_one_step, close_stand),
      cmocka_unit_test_teardown(a_leader_that_is_removed_leads_until_that_is_committed_and_hands_over, close_stand),
      cmocka_unit_test_teardown(a_leader_that_is_demoted_hands_over_and_stays_a_learner, close_stand),
      cmocka_unit_test_teardown(who_leaves_is_sent_the_entry_that_says_so_and_that_it_is_committed, close_stand),
      cmocka_unit_test_teardown(both_configurations_may_come_at_once_and_go_again, close_stand),
      cmocka_unit_test_teardown(one_that_leaves_may_still_be_needed_until_that_is_committed, close_stand),
      cmocka_unit_test_teardown(a_leader_that_is_not_known_here_is_followed, close_stand),
      cmocka_unit_test_teardown(a_leader_elected_in_a_joint_configuration_settles_it, close_stand),
      cmocka_unit_test_teardown(a_start_takes_all_configurations_of_the_log, close_stand),
      cmocka_unit_test_teardown(many_configurations_pass_through, close_stand),
      cmocka_unit_test_teardown(a_transfer_to_a_member_that_goes_ends, close_stand),
  };
  return cmocka_run_group_tests_name("raft membership", tests, NULL, NULL);
}
