/* Forming a cluster from a list: who writes the first entry, and who stands in the way (raft/forming.h). */
#include "raft_stand.h"

#include "raft/forming.h"

static struct raft_peer peers[3];
static struct raft_peer_facts facts[3];
static struct raft_forming *forming;
static struct raft_configuration configuration;
static char text[RAFT_FORMING_TEXT_MAX];

static int set_up(void **state) {
  (void)state;
  for (uint64_t i = 0; i < 3; i++) {
    peers[i].id = 10 * (i + 1);
    (void)snprintf(peers[i].address, sizeof peers[i].address, "host%d:7400", (int)i + 1);
    memset(&facts[i], 0, sizeof facts[i]);
    facts[i].id = peers[i].id;
    facts[i].incarnation = stand_incarnation(i + 1);
    facts[i].peers_hash = raft_forming_hash(peers, 3);
    facts[i].page_size = 4096;
  }
  for (int i = 0; i < 3; i++) {
    facts[i].peers_hash = raft_forming_hash(peers, 3);
  }
  memset(text, 'x', sizeof text);
  forming = NULL;
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  raft_forming_close(forming);
  return 0;
}

static void open_at(int self) {
  raft_forming_close(forming);
  assert_int_equal(raft_forming_open(&facts[self], peers, 3, &forming, text), RAFT_OK);
}

static void hear_others(int self) {
  for (int i = 0; i < 3; i++) {
    if (i != self) {
      raft_forming_hear(forming, &facts[i]);
    }
  }
}

static enum raft_forming_state state_now(void) {
  return raft_forming_state(forming, &configuration, text);
}

static void assert_text_has(const char *part) {
  assert_true(strlen(text) < RAFT_FORMING_TEXT_MAX);
  if (!strstr(text, part)) {
    fail_msg("\"%s\" lacks \"%s\"", text, part);
  }
}

static void the_hash_of_a_list_does_not_depend_on_its_order(void **state) {
  (void)state;
  const struct raft_peer turned[] = {peers[2], peers[0], peers[1]};
  const uint64_t hash = raft_forming_hash(peers, 3);
  assert_true(hash != 0 && raft_forming_hash(turned, 3) == hash);
  assert_true(raft_forming_hash(peers, 2) != hash);
  struct raft_peer other[] = {peers[0], peers[1], peers[2]};
  other[1].address[0] = 'H';
  assert_true(raft_forming_hash(other, 3) != hash);
  /* Two that swap their addresses are another list. */
  memcpy(other[1].address, peers[2].address, sizeof other[1].address);
  memcpy(other[2].address, peers[1].address, sizeof other[2].address);
  assert_true(raft_forming_hash(other, 3) != hash);
}

static void the_lowest_id_writes_when_all_were_heard(void **state) {
  (void)state;
  open_at(0);
  assert_int_equal(state_now(), RAFT_FORMING_WAITING);
  assert_text_has("node 20 (host2:7400), node 30 (host3:7400)");
  raft_forming_hear(forming, &facts[2]);
  raft_forming_hear(forming, &facts[2]);
  assert_int_equal(state_now(), RAFT_FORMING_WAITING);
  assert_text_has("waiting for node 20 (host2:7400)");
  assert_null(strstr(text, "30"));
  raft_forming_hear(forming, &facts[1]);
  assert_int_equal(state_now(), RAFT_FORMING_WRITE);
  assert_int_equal(configuration.n_members, 3);
  for (uint32_t i = 0; i < 3; i++) {
    assert_int_equal(configuration.members[i].id, peers[i].id);
    assert_int_equal(configuration.members[i].roles, RAFT_VOTER_NEW);
    assert_string_equal(configuration.members[i].address, peers[i].address);
    assert_memory_equal(&configuration.members[i].incarnation, &facts[i].incarnation, RAFT_UUID_SIZE);
  }
  /* It is what raft_bootstrap takes, once the node has added its part. */
  configuration.settings.heartbeat_ms = 50;
  configuration.settings.election_ms = 500;
  uint8_t bytes[2000];
  struct raft_configuration decoded;
  raft_configuration_encode(&configuration, bytes);
  assert_int_equal(raft_configuration_decode(bytes, raft_configuration_size(&configuration), &decoded), RAFT_OK);
}

static void the_others_follow(void **state) {
  (void)state;
  for (int self = 1; self < 3; self++) {
    open_at(self);
    hear_others(self);
    assert_int_equal(state_now(), RAFT_FORMING_FOLLOW);
    assert_text_has("node 10 (host1:7400)");
  }
}

static void who_holds_the_database_writes(void **state) {
  (void)state;
  facts[2].has_database = true;
  facts[2].page_size = 1024;
  facts[2].auto_vacuum = 1;
  open_at(0);
  hear_others(0);
  assert_int_equal(state_now(), RAFT_FORMING_FOLLOW);
  assert_text_has("node 30 (host3:7400)");
  open_at(2);
  hear_others(2);
  assert_int_equal(state_now(), RAFT_FORMING_WRITE);
  assert_int_equal(configuration.settings.page_size, 1024);
  assert_int_equal(configuration.settings.auto_vacuum, 1);
}

static void two_databases_are_refused_by_all_naming_both(void **state) {
  (void)state;
  facts[1].has_database = facts[2].has_database = true;
  for (int self = 0; self < 3; self++) {
    open_at(self);
    hear_others(self);
    assert_int_equal(state_now(), RAFT_FORMING_REFUSED);
    assert_text_has("node 20 (host2:7400) and node 30 (host3:7400)");
    assert_text_has("database");
  }
}

static void different_lists_are_refused_naming_both(void **state) {
  (void)state;
  facts[2].peers_hash ^= 1;
  open_at(0);
  raft_forming_hear(forming, &facts[2]); /* before the third one was heard at all */
  assert_int_equal(state_now(), RAFT_FORMING_REFUSED);
  assert_text_has("node 10 (host1:7400) and node 30 (host3:7400)");
  facts[2].peers_hash = 0;
  raft_forming_hear(forming, &facts[2]);
  assert_int_equal(state_now(), RAFT_FORMING_REFUSED);
  assert_text_has("none");
  facts[2].peers_hash = raft_forming_hash(peers, 3); /* it was started anew with the right list */
  hear_others(0);
  assert_int_equal(state_now(), RAFT_FORMING_WRITE);
}

static void a_peer_that_belongs_to_a_cluster_is_refused(void **state) {
  (void)state;
  facts[1].cluster = stand_incarnation(77);
  open_at(0);
  hear_others(0);
  assert_int_equal(state_now(), RAFT_FORMING_REFUSED);
  assert_text_has("node 20 (host2:7400)");
  assert_text_has("node 10 (host1:7400)");
  assert_text_has("join=host2:7400");
}

static void a_peer_that_was_seen_fresh_has_formed_this_cluster(void **state) {
  (void)state;
  open_at(1);
  raft_forming_hear(forming, &facts[0]);
  facts[0].cluster = stand_incarnation(77);
  raft_forming_hear(forming, &facts[0]); /* it heard of node 30 before we did */
  assert_int_equal(state_now(), RAFT_FORMING_WAITING);
  raft_forming_hear(forming, &facts[2]);
  assert_int_equal(state_now(), RAFT_FORMING_FOLLOW);
  facts[0].incarnation = stand_incarnation(99); /* another node there, which we never saw fresh */
  raft_forming_hear(forming, &facts[0]);
  assert_int_equal(state_now(), RAFT_FORMING_REFUSED);
}

static void a_changed_incarnation_replaces_what_was_heard(void **state) {
  (void)state;
  open_at(0);
  hear_others(0);
  facts[1].incarnation = stand_incarnation(99);
  raft_forming_hear(forming, &facts[1]);
  assert_int_equal(state_now(), RAFT_FORMING_WRITE);
  assert_memory_equal(&configuration.members[1].incarnation, &facts[1].incarnation, RAFT_UUID_SIZE);
}

static void a_copied_folder_is_refused(void **state) {
  (void)state;
  facts[2].incarnation = facts[1].incarnation;
  open_at(0);
  hear_others(0);
  assert_int_equal(state_now(), RAFT_FORMING_REFUSED);
  assert_text_has("node 20 (host2:7400) and node 30 (host3:7400)");
}

static void different_page_sizes_without_a_database_are_refused(void **state) {
  (void)state;
  facts[1].page_size = 8192;
  open_at(0);
  hear_others(0);
  assert_int_equal(state_now(), RAFT_FORMING_REFUSED);
  assert_text_has("page_size=4096");
  assert_text_has("page_size=8192");
}

static void strangers_and_ones_own_id_are_ignored(void **state) {
  (void)state;
  open_at(0);
  struct raft_peer_facts stranger = facts[1];
  stranger.id = 99;
  raft_forming_hear(forming, &stranger);
  stranger.id = facts[0].id;
  stranger.has_database = true;
  raft_forming_hear(forming, &stranger);
  hear_others(0);
  assert_int_equal(state_now(), RAFT_FORMING_WRITE);
  assert_memory_equal(&configuration.members[0].incarnation, &facts[0].incarnation, RAFT_UUID_SIZE);
}

static void a_list_of_one_is_formed_at_once(void **state) {
  (void)state;
  assert_int_equal(raft_forming_open(&facts[1], &peers[1], 1, &forming, text), RAFT_OK);
  assert_int_equal(state_now(), RAFT_FORMING_WRITE);
  assert_int_equal(configuration.n_members, 1);
}

static void a_list_that_makes_no_sense_is_refused(void **state) {
  (void)state;
  struct raft_peer many[RAFT_MEMBERS_MAX + 1], bad[3];
  for (uint64_t i = 0; i <= RAFT_MEMBERS_MAX; i++) {
    many[i].id = i + 1;
    (void)snprintf(many[i].address, sizeof many[i].address, "h%d:1", (int)i);
  }
  facts[0].id = 1;
  assert_int_equal(raft_forming_open(&facts[0], many, RAFT_MEMBERS_MAX + 1, &forming, text), RAFT_INVALID);
  assert_text_has("16 nodes");
  assert_int_equal(raft_forming_open(&facts[0], many, 0, &forming, text), RAFT_INVALID);
  assert_int_equal(raft_forming_open(&facts[0], many, RAFT_MEMBERS_MAX, &forming, text), RAFT_OK);
  assert_int_equal(state_now(), RAFT_FORMING_WAITING); /* a long text is cut, not overrun */
  raft_forming_close(forming);

  facts[0].id = 999;
  assert_int_equal(raft_forming_open(&facts[0], peers, 3, &forming, text), RAFT_INVALID);
  assert_text_has("node 999");
  facts[0].id = 10;
  memcpy(bad, peers, sizeof bad);
  bad[2].id = 10;
  assert_int_equal(raft_forming_open(&facts[0], bad, 3, &forming, text), RAFT_INVALID);
  assert_text_has("node 10 is listed twice");
  memcpy(bad, peers, sizeof bad);
  memcpy(bad[2].address, bad[1].address, sizeof bad[2].address);
  assert_int_equal(raft_forming_open(&facts[0], bad, 3, &forming, text), RAFT_INVALID);
  assert_text_has("host2:7400");
  memcpy(bad, peers, sizeof bad);
  bad[1].address[0] = 0;
  assert_int_equal(raft_forming_open(&facts[0], bad, 3, &forming, text), RAFT_INVALID);
  bad[1] = peers[1];
  bad[1].id = 0;
  assert_int_equal(raft_forming_open(&facts[0], bad, 3, &forming, text), RAFT_INVALID);
  assert_null(forming);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(the_hash_of_a_list_does_not_depend_on_its_order),
      TEST(the_lowest_id_writes_when_all_were_heard),
      TEST(the_others_follow),
      TEST(who_holds_the_database_writes),
      TEST(two_databases_are_refused_by_all_naming_both),
      TEST(different_lists_are_refused_naming_both),
      TEST(a_peer_that_belongs_to_a_cluster_is_refused),
      TEST(a_peer_that_was_seen_fresh_has_formed_this_cluster),
      TEST(a_changed_incarnation_replaces_what_was_heard),
      TEST(a_copied_folder_is_refused),
      TEST(different_page_sizes_without_a_database_are_refused),
      TEST(strangers_and_ones_own_id_are_ignored),
      TEST(a_list_of_one_is_formed_at_once),
      TEST(a_list_that_makes_no_sense_is_refused),
  };
  return cmocka_run_group_tests_name("raft_forming", tests, NULL, NULL);
}
