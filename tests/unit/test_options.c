/* Options: what each accepts, which source wins, what a folder keeps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ext/options.h"
#include "vfs/sqlite.h"

static char text[OPTIONS_TEXT_MAX];

static bool set(struct options *options, const char *name, const char *value) {
  text[0] = 0;
  return options_set(options, name, value, "URI parameter", text);
}

static void assert_refused(const char *name, const char *value, const char *words) {
  struct options options;
  options_init(&options);
  assert_false(set(&options, name, value));
  assert_non_null(strstr(text, name));
  if (!strstr(text, words)) fail_msg("%s=%s: \"%s\" lacks \"%s\"", name, value, text, words);
  assert_int_equal(options.given, 0);
}

static void bad_values_are_refused_with_the_option_and_the_reason(void **state) {
  (void)state;
  assert_refused("node", "0", "1 to 9223372036854775807");
  assert_refused("node", "9223372036854775808", "1 to 9223372036854775807");
  assert_refused("node", "-1", "number");
  assert_refused("node", "", "number");
  assert_refused("listen", "127.0.0.1", "host:port");
  assert_refused("listen", "127.0.0.1:65536", "host:port");
  assert_refused("listen", "::1:7401", "[address]:port");
  assert_refused("listen", "[nonsense]:7401", "[address]:port");
  assert_refused("listen", ":7401", "host:port");
  assert_refused("advertise", "host:0", "port");
  assert_refused("advertise", "0.0.0.0:7401", "wildcard");
  assert_refused("advertise", "[::]:7401", "wildcard");
  assert_refused("peers", "127.0.0.1:7401", "node@host:port");
  assert_refused("peers", "1@a:1,", "node@host:port");
  assert_refused("peers", "1@a:1,1@b:1", "a node twice");
  assert_refused("peers", "1@a:1,2@a:1", "an address twice");
  assert_refused("peers", "1@a:0", "port");
  assert_refused("heartbeat", "0", "1 to 10000");
  assert_refused("election", "60001", "2 to 60000");
  assert_refused("election", "500ms", "2 to 60000");
  assert_refused("commit_timeout", "0", "1 to 3600000");
  assert_refused("page_size", "1000", "power of two");
  assert_refused("page_size", "256", "power of two");
  assert_refused("page_size", "131072", "power of two");
  assert_refused("auto_vacuum", "3", "none, full or incremental");
  assert_refused("auto_vacuum", "", "none, full or incremental");
  assert_refused("auto_vacuum", "incremental|2", "none, full or incremental");
  assert_refused("insecure", "maybe", "0 or 1");
  assert_refused("snapshot_threshold", "", "number of bytes");
  assert_refused("snapshot_threshold", "64MB", "number of bytes");
  assert_refused("snapshot_threshold", "9223372036854775808", "number of bytes");
  assert_refused("log_tail", "8388608T", "number of bytes");
  assert_refused("log_tail", "M", "number of bytes");
  assert_refused("wal_limit", "99", "100 to 100000000");
  assert_refused("wal_limit", "4K", "100 to 100000000");
}

static void good_values_are_taken(void **state) {
  struct options options;
  (void)state;
  options_init(&options);
  assert_true(set(&options, "node", "9223372036854775807"));
  assert_true(options.node == INT64_MAX);
  assert_true(set(&options, "listen", "[::1]:0"));
  assert_string_equal(options.listen, "[::1]:0");
  assert_true(set(&options, "advertise", "db-1.example.org:7401"));
  assert_true(set(&options, "peers", "2@b:7402,1@[fe80::1]:7401"));
  assert_int_equal(options.n_peers, 2);
  assert_true(options.peers[1].id == 1);
  assert_string_equal(options.peers[1].address, "[fe80::1]:7401");
  assert_true(set(&options, "page_size", "65536"));
  assert_true(set(&options, "auto_vacuum", "INCREMENTAL"));
  assert_int_equal(options.auto_vacuum, 2);
  assert_true(set(&options, "auto_vacuum", "1"));
  assert_int_equal(options.auto_vacuum, 1);
  assert_true(set(&options, "insecure", "on"));
  assert_true(options.insecure);
  assert_true(set(&options, "snapshot_threshold", "65536"));
  assert_true(options.snapshot_threshold == 65536);
  assert_true(set(&options, "snapshot_threshold", "64m"));
  assert_true(options.snapshot_threshold == 64 << 20);
  assert_true(set(&options, "log_tail", "8388607T"));
  assert_true(options.log_tail == UINT64_C(8388607) << 40);
  assert_true(set(&options, "log_tail", "0"));
  assert_true(set(&options, "wal_limit", "100"));
  assert_int_equal(options.wal_limit, 100);
  assert_true(options.log_tail == 0);
}

static void a_list_of_more_than_15_peers_is_refused(void **state) {
  char list[400] = "";
  (void)state;
  for (int i = 1; i <= 15; i++)
    snprintf(list + strlen(list), sizeof list - strlen(list), "%s%d@h%d:1", i > 1 ? "," : "", i, i);
  struct options options;
  options_init(&options);
  assert_true(set(&options, "peers", list));
  strcat(list, ",16@h16:1");
  assert_refused("peers", list, "15 nodes");
}

static void a_misspelled_option_is_refused_with_the_nearest_name(void **state) {
  (void)state;
  assert_refused("listne", "x", "did you mean listen?");
  assert_refused("peer", "x", "did you mean peers?");
  assert_refused("commit_time", "x", "commit_timeout");
  assert_refused("colour", "x", "there are node, listen");
}

static struct options checked(const char *const *pairs, bool is_fresh, bool expected) {
  struct options options;
  options_init(&options);
  for (; pairs[0]; pairs += 2) assert_true(set(&options, pairs[0], pairs[1]));
  bool good = options_check(&options, is_fresh, text);
  if (good != expected) fail_msg("expected %d: \"%s\"", expected, good ? "" : text);
  return options;
}
#define PAIRS(...)                                                                                                     \
  (const char *const[]) {                                                                                              \
    __VA_ARGS__, NULL                                                                                                  \
  }

static void peers_give_listen_and_advertise(void **state) {
  (void)state;
  struct options options = checked(PAIRS("node", "2", "peers", "1@a:1,2@127.0.0.1:2"), true, true);
  assert_string_equal(options.listen, "127.0.0.1:2");
  assert_string_equal(options.advertise, "127.0.0.1:2");
  options = checked(PAIRS("node", "2", "peers", "1@a:1,2@b:2", "listen", "0.0.0.0:2", "insecure", "1"), true, true);
  assert_string_equal(options.listen, "0.0.0.0:2");
  assert_string_equal(options.advertise, "b:2");
}

static void another_listen_than_in_peers_must_be_meant(void **state) {
  (void)state;
  checked(PAIRS("node", "2", "peers", "1@a:1,2@b:2", "listen", "127.0.0.1:9"), true, false);
  assert_non_null(strstr(text, "listen=127.0.0.1:9 differs"));
  assert_non_null(strstr(text, "advertise=b:2"));
  struct options options = checked(
      PAIRS("node", "2", "peers", "1@a:1,2@b:2", "listen", "127.0.0.1:9", "advertise", "b:2"), true, true);
  assert_string_equal(options.listen, "127.0.0.1:9");
}

static void addresses_that_follow_from_peers_do_not_outlive_them(void **state) {
  char kept[OPTIONS_KEPT_MAX];
  struct options back, given;
  (void)state;
  struct options options = checked(PAIRS("node", "2", "peers", "1@a:1,2@127.0.0.1:2"), true, true);
  assert_true(options_keep(&options, kept, sizeof kept, text));
  options_init(&back);
  options_init(&given);
  assert_true(options_from_kept(&back, kept, text) && set(&given, "peers", "1@a:1,2@127.0.0.1:3"));
  options_forget_derived(&back);
  options_merge(&back, &given);
  assert_true(options_check(&back, true, text));
  assert_string_equal(back.listen, "127.0.0.1:3");
  assert_string_equal(back.advertise, "127.0.0.1:3");
}

static void peers_count_only_for_a_node_without_state(void **state) {
  (void)state;
  struct options options = checked(PAIRS("node", "7", "peers", "1@a:1,2@127.0.0.1:2"), false, true);
  assert_int_equal(options.n_peers, 0);
  assert_string_equal(options.listen, "");
}

static void join_names_members_or_waits(void **state) {
  char kept[OPTIONS_KEPT_MAX];
  struct options back, given;
  (void)state;
  assert_refused("join", "nonsense", "host:port");
  assert_refused("join", "a:1,", "host:port");
  assert_refused("join", "a:0", "host:port");
  assert_refused("join", "a:1,a:2,a:3,a:4,a:5,a:6,a:7,a:8", "7 addresses");
  struct options options = checked(PAIRS("node", "4", "listen", "127.0.0.1:4", "join", "a:1,[::1]:2"), true, true);
  assert_true(options_joins(&options) && !options.waits);
  assert_int_equal(options.n_join, 2);
  assert_string_equal(options.join[1], "[::1]:2");
  assert_true(options_keep(&options, kept, sizeof kept, text));
  options_init(&back);
  assert_true(options_from_kept(&back, kept, text));
  assert_int_equal(back.n_join, 2);
  assert_string_equal(back.join[0], "a:1");
  /* What is given takes the place of what was kept, be it peers. */
  options_init(&given);
  assert_true(set(&given, "join", "wait"));
  options_merge(&back, &given);
  assert_true(back.waits && back.n_join == 0);
  assert_true(options_keep(&back, kept, sizeof kept, text) && strstr(kept, "join=wait\n"));
  options_init(&given);
  assert_true(set(&given, "peers", "4@127.0.0.1:4,5@b:5"));
  options_merge(&back, &given);
  assert_false(options_joins(&back));
  assert_int_equal(back.n_peers, 2);
  /* It counts only for a node without state. */
  options = checked(PAIRS("node", "4", "listen", "127.0.0.1:4", "join", "a:1"), false, true);
  assert_false(options_joins(&options));
}

static void what_does_not_fit_together_is_refused(void **state) {
  (void)state;
  checked(PAIRS("join", "a:1", "listen", "127.0.0.1:4"), true, false);
  assert_non_null(strstr(text, "needs option node"));
  checked(PAIRS("join", "a:1", "node", "4"), true, false);
  assert_non_null(strstr(text, "needs option listen"));
  checked(PAIRS("join", "a:1", "node", "1", "peers", "1@127.0.0.1:1,2@b:2"), true, false);
  assert_non_null(strstr(text, "exclude each other"));
  checked(PAIRS("peers", "1@a:1"), true, false);
  assert_non_null(strstr(text, "needs option node"));
  checked(PAIRS("node", "3", "peers", "1@a:1,2@b:2"), true, false);
  assert_non_null(strstr(text, "not among the peers"));
  checked(PAIRS("node", "1", "peers", "1@127.0.0.1:1,2@b:2", "advertise", "c:3"), true, false);
  assert_non_null(strstr(text, "differs"));
  checked(PAIRS("listen", "0.0.0.0:1", "insecure", "1"), true, false);
  assert_non_null(strstr(text, "advertise"));
  checked(PAIRS("listen", "[::]:1", "insecure", "1"), true, false);
  assert_non_null(strstr(text, "advertise"));
  checked(PAIRS("advertise", "a:1"), true, false);
  assert_non_null(strstr(text, "needs option listen"));
  checked(PAIRS("heartbeat", "500"), true, false);
  assert_non_null(strstr(text, "election"));
}

static void listening_beyond_loopback_needs_insecure(void **state) {
  (void)state;
  static const char *const beyond[] = {"192.0.2.1:1", "[2001:db8::1]:1", "db.example.org:1"};
  static const char *const within[] = {"127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "[::ffff:127.0.0.1]:1"};
  for (size_t i = 0; i < sizeof beyond / sizeof *beyond; i++) {
    checked(PAIRS("listen", beyond[i]), true, false);
    assert_non_null(strstr(text, "insecure=1"));
    checked(PAIRS("listen", beyond[i], "insecure", "1"), true, true);
  }
  for (size_t i = 0; i < sizeof within / sizeof *within; i++) checked(PAIRS("listen", within[i]), true, true);
}

static const char *uri_filename(const char *const *pairs) {
  int n = 0;
  while (pairs[2 * n]) n++;
  return sqlite3_create_filename("/tmp/app.db", "/tmp/app.db-journal", "/tmp/app.db-wal", n,
                                 (const char **)(uintptr_t)pairs);
}

static bool from_uri(struct options *options, const char *const *pairs) {
  const char *filename = uri_filename(pairs);
  options_init(options);
  bool good = options_from_uri(options, filename, text);
  sqlite3_free_filename((char *)(uintptr_t)filename);
  return good;
}

static void parameters_of_sqlite_pass_unless_they_break_replication(void **state) {
  struct options options;
  (void)state;
  assert_true(from_uri(
      &options, PAIRS("vfs", "balsa", "mode", "ro", "psow", "1", "cache", "private", "nolock", "0", "node", "5")));
  assert_true(options.node == 5);
  assert_false(from_uri(&options, PAIRS("nolock", "1")));
  assert_non_null(strstr(text, "nolock"));
  assert_false(from_uri(&options, PAIRS("immutable", "1")));
  assert_non_null(strstr(text, "immutable"));
  assert_false(from_uri(&options, PAIRS("cache", "shared")));
  assert_false(from_uri(&options, PAIRS("mode", "memory")));
  assert_false(from_uri(&options, PAIRS("nods", "5")));
  assert_non_null(strstr(text, "did you mean node?"));
}

static void the_environment_gives_options_and_an_empty_variable_none(void **state) {
  struct options options;
  (void)state;
  setenv("BALSA_COMMIT_TIMEOUT", "1234", 1);
  setenv("BALSA_LISTEN", "", 1);
  options_init(&options);
  assert_true(options_from_environment(&options, text));
  assert_int_equal(options.commit_timeout_ms, 1234);
  assert_false(options_has(&options, OPTION_LISTEN));
  setenv("BALSA_COMMIT_TIMEOUT", "soon", 1);
  assert_false(options_from_environment(&options, text));
  assert_non_null(strstr(text, "BALSA_COMMIT_TIMEOUT"));
  unsetenv("BALSA_COMMIT_TIMEOUT");
  unsetenv("BALSA_LISTEN");
}

static void what_is_given_last_wins(void **state) {
  struct options kept, given;
  (void)state;
  options_init(&kept);
  options_init(&given);
  assert_true(set(&kept, "election", "900") && set(&kept, "listen", "127.0.0.1:1"));
  assert_true(set(&given, "election", "700"));
  options_merge(&kept, &given);
  assert_int_equal(kept.election_ms, 700);
  assert_int_equal(kept.heartbeat_ms, OPTIONS_HEARTBEAT_MS_DEFAULT);
  assert_string_equal(kept.listen, "127.0.0.1:1");
}

static void what_a_folder_keeps_is_read_back(void **state) {
  char kept[OPTIONS_KEPT_MAX];
  struct options back;
  (void)state;
  struct options options = checked(PAIRS("node", "2", "peers", "1@a:1,2@127.0.0.1:2", "election", "900", "auto_vacuum",
                                         "full", "insecure", "1", "commit_timeout", "77", "snapshot_threshold", "9",
                                         "log_tail", "1K"),
                                   true, true);
  assert_true(options_keep(&options, kept, sizeof kept, text));
  options_init(&back);
  assert_true(options_from_kept(&back, kept, text));
  assert_true(back.node == 2);
  assert_int_equal(back.n_peers, 2);
  assert_string_equal(back.listen, "127.0.0.1:2");
  assert_int_equal(back.election_ms, 900);
  assert_int_equal(back.auto_vacuum, 1);
  assert_int_equal(back.commit_timeout_ms, 77);
  assert_true(back.insecure);
  assert_true(back.snapshot_threshold == 9 && back.log_tail == 1024);
  assert_false(options_has(&back, OPTION_HEARTBEAT));
}

static void an_advertised_address_that_follows_from_listen_does_not_outlive_it(void **state) {
  char kept[OPTIONS_KEPT_MAX];
  struct options back, given;
  (void)state;
  struct options options = checked(PAIRS("listen", "127.0.0.1:1"), true, true);
  options.node = 1;
  assert_true(options_keep(&options, kept, sizeof kept, text));
  options_init(&back);
  options_init(&given);
  assert_true(options_from_kept(&back, kept, text) && set(&given, "listen", "127.0.0.1:2"));
  options_merge(&back, &given);
  assert_true(options_check(&back, false, text));
  assert_string_equal(back.advertise, "127.0.0.1:2");
}

static void the_longest_list_of_peers_fits_into_the_folder(void **state) {
  char list[OPTIONS_PEERS_TEXT_MAX] = "", kept[OPTIONS_KEPT_MAX];
  struct options options;
  (void)state;
  for (int i = 1; i <= 15; i++)
    snprintf(list + strlen(list), sizeof list - strlen(list), "%s%lld@%0170d:%d", i > 1 ? "," : "",
             INT64_MAX - (long long)i, i, i);
  options_init(&options);
  assert_true(set(&options, "peers", list));
  options.node = options.peers[0].id;
  memset(options.listen, 'l', RAFT_ADDRESS_MAX - 1);
  memset(options.advertise, 'a', RAFT_ADDRESS_MAX - 1);
  options.given = ~0u;
  assert_true(options_keep(&options, kept, sizeof kept - 32, text));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(bad_values_are_refused_with_the_option_and_the_reason),
      cmocka_unit_test(good_values_are_taken),
      cmocka_unit_test(a_list_of_more_than_15_peers_is_refused),
      cmocka_unit_test(a_misspelled_option_is_refused_with_the_nearest_name),
      cmocka_unit_test(peers_give_listen_and_advertise),
      cmocka_unit_test(another_listen_than_in_peers_must_be_meant),
      cmocka_unit_test(addresses_that_follow_from_peers_do_not_outlive_them),
      cmocka_unit_test(peers_count_only_for_a_node_without_state),
      cmocka_unit_test(join_names_members_or_waits),
      cmocka_unit_test(what_does_not_fit_together_is_refused),
      cmocka_unit_test(listening_beyond_loopback_needs_insecure),
      cmocka_unit_test(parameters_of_sqlite_pass_unless_they_break_replication),
      cmocka_unit_test(the_environment_gives_options_and_an_empty_variable_none),
      cmocka_unit_test(what_is_given_last_wins),
      cmocka_unit_test(what_a_folder_keeps_is_read_back),
      cmocka_unit_test(an_advertised_address_that_follows_from_listen_does_not_outlive_it),
      cmocka_unit_test(the_longest_list_of_peers_fits_into_the_folder),
  };
  return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
