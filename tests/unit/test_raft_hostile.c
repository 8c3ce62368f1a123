/*
** Anything may come in a message. Whatever a member sends, the core neither crashes nor breaks what it
** promised: the term does not fall or leave its range, the commit index does not fall, committed
** entries stay, a vote in a term stays, and there is an end to what it sends.
*/
#include "raft_stand.h"

#define ROUNDS 120
#define MESSAGES 3000
#define ENTRIES_MAX 8
#define SEEN_MAX 20000

static struct stand stand;
static uint64_t random_state;
static uint64_t installed, sent;      /* snapshots, and chunks of them */
static uint64_t changed;              /* members, by the core itself */
static uint64_t seen_terms[SEEN_MAX]; /* of committed entries */

static uint64_t next(void) {
  random_state += 0x9e3779b97f4a7c15ull;
  uint64_t mixed = random_state;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ull;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebull;
  return mixed ^ (mixed >> 31);
}

static uint64_t below(uint64_t limit) {
  return next() % limit;
}

/* Mostly near what the core has, sometimes at an edge. */
static uint64_t near(uint64_t value) {
  static const uint64_t edges[] = {0, 1, 2, UINT64_MAX, UINT64_MAX - 1, UINT64_MAX - 2, UINT64_MAX / 2, UINT32_MAX};
  if (below(12) == 0) {
    return edges[below(sizeof edges / sizeof edges[0])];
  }
  return value + below(6) - 3;
}

/* The term rises slowly, so that there is something to attack. */
static bool attack_leader;
static bool changes_members; /* otherwise a leader has the same ones for long, and some of them need snapshots */

static uint64_t some_term(uint64_t term) {
  if (below(attack_leader ? 20000 : 400) == 0) {
    return near(UINT64_MAX);
  }
  return below(attack_leader ? 400 : 8) == 0 ? term + below(4) - 1 : term;
}

static uint8_t configuration_bytes[4096];
static uint32_t configuration_size;
static struct raft_entry_meta entries[ENTRIES_MAX];
static const uint8_t *payloads[ENTRIES_MAX];

/* Some members, in some roles; joint ones and such as nobody would make among them. */
static void draw_configuration(void) {
  struct raft_configuration drawn = stand.members;
  drawn.n_members = changes_members ? 0 : drawn.n_members;
  for (uint64_t id = 1; id <= 6 && changes_members; id++) {
    struct raft_member *member = &drawn.members[drawn.n_members];
    *member = (struct raft_member){
        .id = id, .incarnation = stand_incarnation(below(20) ? id : 77), .roles = RAFT_VOTER_NEW};
    if (below(3) == 0) {
      member->roles = (uint8_t)below(16);
    }
    drawn.n_members += id <= 3 ? below(8) != 0 : below(3) == 0;
  }
  configuration_size = (uint32_t)raft_configuration_size(&drawn);
  raft_configuration_encode(&drawn, configuration_bytes);
}

static void fill_entries(struct raft_message *message, const struct raft_status *status) {
  uint64_t term = message->log_term;
  if (changes_members && below(4) == 0) {
    draw_configuration();
  }
  message->n_entries = (uint32_t)below(ENTRIES_MAX + 1);
  for (uint32_t i = 0; i < message->n_entries; i++) {
    const bool configuration = below(30) == 0;
    if (below(6) == 0) {
      term = below(10) == 0 ? near(term) : status->term;
    }
    entries[i].term = term;
    entries[i].type = configuration ? RAFT_ENTRY_CONFIGURATION : (uint8_t)(below(40) == 0 ? next() : RAFT_ENTRY_DATA);
    entries[i].size = (uint32_t)(configuration ? configuration_size : next());
    payloads[i] = below(5) == 0 || !configuration ? NULL : configuration_bytes;
    if (payloads[i] && below(3) == 0) {
      entries[i].size -= (uint32_t)below(entries[i].size + 1);
    }
    if (entries[i].type == RAFT_ENTRY_CONFIGURATION && !configuration) {
      payloads[i] = NULL;
    }
  }
  message->entries = below(50) == 0 ? NULL : entries;
  message->payloads = below(20) == 0 ? NULL : payloads;
}

static struct raft_message some_message(void) {
  const struct raft_status status = stand_status(&stand);
  const uint64_t from = below(40) == 0 ? near(2) : 2 + below(2);
  struct raft_message message = stand_message((enum raft_message_type)(below(60) == 0 ? next() & 0xff : 1 + below(13)),
                                              from, status.term);
  message.term = some_term(status.term);
  message.reject = below(3) == 0;
  message.hand_over = below(10) == 0;
  message.index = near(below(2) ? status.last_index : status.commit_index);
  message.log_term = message.index == 0 ? 0 : raft_term_at(stand.raft, message.index);
  if (message.log_term == 0 || below(5) == 0) {
    message.log_term = near(status.term);
  }
  message.commit = near(status.commit_index);
  message.hint_index = below(4) ? near(message.index) : below(8);
  message.hint_term = near(status.term);
  message.round = near(below(100));
  message.context = near(5);
  if (below(100) == 0) {
    message.from_incarnation.bytes[below(RAFT_UUID_SIZE)] ^= 1;
  }
  message.size_bytes = below(20);
  message.offset = below(20);
  message.chunk_bytes = (uint32_t)below(20);
  if (message.type == RAFT_APPEND) {
    fill_entries(&message, &status);
  }
  return message;
}

/* Of a committed entry, compacted or not. */
static uint64_t term_of(uint64_t index) {
  const struct raft_term_start *terms;
  uint64_t term = 0;
  for (size_t i = 0, n = raft_get_terms(stand.raft, &terms); i < n && terms[i].index <= index; i++) {
    term = terms[i].term;
  }
  return term;
}

static void check_promises(const struct raft_status *before, uint64_t *n_seen) {
  const struct raft_status now = stand_status(&stand);
  assert_true(now.term >= before->term && now.term <= RAFT_TERM_MAX);
  assert_true(now.commit_index >= before->commit_index && now.commit_index <= now.last_index);
  assert_true(now.durable_index <= now.last_index);
  assert_true(raft_term_at(stand.raft, now.last_index) <= now.term);
  if (now.term == before->term && before->voted_for != 0) {
    assert_int_equal(now.voted_for, before->voted_for);
  }
  for (; *n_seen < now.commit_index && *n_seen < SEEN_MAX; (*n_seen)++) {
    seen_terms[*n_seen] = term_of(*n_seen + 1);
    assert_true(seen_terms[*n_seen] > 0);
  }
  const uint64_t checked = *n_seen > 50 ? *n_seen - 50 : 0;
  for (uint64_t i = checked; i < *n_seen; i++) {
    assert_true(raft_fate(stand.raft, seen_terms[i], i + 1) == RAFT_FATE_COMMITTED);
  }
}

/* A snapshot that is somewhere near, and seldom what anybody would send. */
static void install_something(void) {
  const struct raft_status status = stand_status(&stand);
  const uint64_t index = near(below(2) ? status.commit_index : status.last_index);
  const struct raft_term_start *known;
  struct raft_term_start terms[64];
  size_t n = raft_get_terms(stand.raft, &known);
  if (n == 0 || n > 60 || below(20) == 0) {
    return;
  }
  memcpy(terms, known, n * sizeof terms[0]);
  if (below(2) && terms[n - 1].term < status.term) {
    terms[n++] = (struct raft_term_start){.term = status.term, .index = near(index)};
  }
  const struct raft_install install = {.index = index,
                                       .term = below(20) ? terms[n - 1].term : near(status.term),
                                       .configuration = below(30) ? &stand.members : NULL,
                                       .configuration_index = below(30) ? 1 : near(index),
                                       .terms = terms,
                                       .n_terms = n};
  installed += raft_install(stand.raft, stand.now, &install) == RAFT_OK && status.commit_index < index;
}

static void use_snapshots(void) {
  const struct raft_status status = stand_status(&stand);
  struct raft_message message;
  switch (below(5)) {
  case 0: (void)raft_compact(stand.raft, stand.now, near(below(2) ? status.first_index : status.commit_index)); break;
  case 1: raft_snapshot_answer(stand.raft, stand.now, near(status.last_index), below(20), below(2)); break;
  case 2: install_something(); break;
  case 3: raft_transfer_failed(stand.raft, stand.now, below(20)); break;
  default:
    for (uint64_t id = 1; id < 100; id++) {
      const uint64_t index = status.first_index - 1 + below(3);
      const struct raft_chunk chunk = {.index = index,
                                       .term = below(10) ? term_of(index) : status.term,
                                       .offset = below(10),
                                       .size_bytes = 10,
                                       .bytes = (uint32_t)below(3)};
      sent += raft_transfer_chunk(stand.raft, stand.now, id, &chunk, &message) == RAFT_OK;
    }
  }
  stand_work(&stand);
}

/* Changes and hand-overs, most of which make no sense. */
static void use_membership(void) {
  struct raft_change changes[3] = {{.type = 0}};
  uint64_t index;
  const size_t n = below(4);
  for (size_t i = 0; i < n; i++) {
    changes[i].type = (enum raft_change_type)below(7);
    changes[i].id = below(8);
    changes[i].incarnation = stand_incarnation(below(20) ? changes[i].id : 77);
    changes[i].joining = below(2);
    changes[i].address[0] = (char)('a' + below(26));
  }
  if (below(4) == 0) {
    (void)raft_hand_over(stand.raft, stand.now, below(5));
  } else {
    changed += raft_change_members(stand.raft, stand.now, changes, n, &index) == RAFT_OK;
  }
  stand_work(&stand);
}

/* What the driver does meanwhile. */
static void do_something(void) {
  if (below(4) == 0) {
    use_snapshots();
  }
  if (changes_members && below(4) == 0) {
    use_membership();
  }
  const struct raft_status status = stand_status(&stand);
  uint64_t index;
  switch (below(8)) {
  case 0:
    stand.now += below(STAND_ELECTION);
    raft_tick(stand.raft, stand.now);
    break;
  case 1:
    stand.now += 2 * STAND_ELECTION;
    raft_tick(stand.raft, stand.now);
    break;
  case 2: (void)raft_propose(stand.raft, stand.now, status.term, RAFT_ENTRY_DATA, (uint32_t)below(300), &index); break;
  case 3: (void)raft_read(stand.raft, stand.now, below(10), below(2) ? RAFT_READ_LEASE : RAFT_READ_QUORUM); break;
  case 4: raft_set_electable(stand.raft, stand.now, below(4) != 0); break;
  case 5:
    stand.writes_at_once = below(2);
    if (stand.last_write) {
      raft_persisted(stand.raft, stand.now, stand.last_write - below(2));
    }
    break;
  default: break;
  }
  stand_work(&stand);
  raft_tick(stand.raft, stand.now);
  stand_work(&stand);
  assert_true(raft_next_tick(stand.raft) > stand.now);
}

/* Gives the core what it needs to lead, if it lacks that. */
static void try_to_elect(void) {
  stand.writes_at_once = true;
  raft_persisted(stand.raft, stand.now, stand.last_write);
  raft_set_electable(stand.raft, stand.now, true);
  if (stand_status(&stand).role != RAFT_LEADER) {
    stand_tick(&stand, 2 * STAND_ELECTION);
    const uint64_t term = stand_status(&stand).term + 1;
    struct raft_message vote = stand_message(RAFT_PRE_VOTE_RESULT, 2, term);
    stand_receive(&stand, &vote);
    vote.type = RAFT_VOTE_RESULT;
    stand_receive(&stand, &vote);
  }
  stand_clear(&stand);
}

/* Lets everybody have all, so that the members may change; twice, so that a joint configuration is settled. */
static void try_to_change(void) {
  for (int i = 0; i < 3; i++) {
    for (uint64_t from = 2; from <= 6; from++) {
      if (stand_status(&stand).role == RAFT_LEADER) {
        stand_acknowledge(&stand, from, stand_status(&stand).last_index);
      }
    }
    use_membership();
    stand_clear(&stand);
  }
}

/* Has the member that is behind need a snapshot. */
static void try_to_transfer(void) {
  const struct raft_status status = stand_status(&stand);
  (void)raft_compact(stand.raft, stand.now, status.commit_index);
  for (uint64_t index = status.commit_index; index <= status.last_index; index++) {
    for (uint64_t from = 2; from <= 3; from++) {
      struct raft_message refusal = stand_message(RAFT_APPEND_RESULT, from, status.term);
      refusal.reject = true;
      refusal.index = index;
      stand_receive(&stand, &refusal);
    }
  }
  stand_clear(&stand);
}

static void no_message_breaks_what_the_core_promised(void **state) {
  (void)state;
  uint64_t leaders = 0, commits = 0, truncations = 0;
  for (uint64_t round = 0; round < ROUNDS; round++) {
    const uint64_t terms[] = {1, 2, 2, 3, 3};
    struct raft_options options = stand_options();
    uint64_t n_seen = 0;
    random_state = round;
    options.seed = round;
    stand_open_with(&stand, 3, terms, 5, &options);
    attack_leader = round % 2 == 1;
    changes_members = round % 4 != 3;
    draw_configuration();
    for (int i = 0; i < MESSAGES; i++) {
      if (attack_leader && i % 100 == 0) {
        try_to_elect();
        if (changes_members) {
          try_to_change();
        } else {
          try_to_transfer();
        }
      }
      const struct raft_status before = stand_status(&stand);
      const struct raft_message message = some_message();
      stand_receive(&stand, &message);
      truncations += stand.work.truncate_from != 0;
      check_promises(&before, &n_seen);
      if (below(4) == 0) {
        do_something();
      }
      leaders += stand_status(&stand).role == RAFT_LEADER;
      assert_in_range(stand.n_messages, 0, 600);
      stand_clear(&stand);
    }
    commits += stand_status(&stand).commit_index;
    stand_close(&stand);
  }
  /* It was not attacked asleep. */
  assert_true(leaders > 10000);
  assert_true(commits > 1000);
  assert_true(truncations > 100);
  assert_true(installed > 100);
  assert_true(sent > 100);
  assert_true(changed > 100);
}

static void a_fresh_node_survives_strangers(void **state) {
  (void)state;
  for (uint64_t round = 0; round < ROUNDS; round++) {
    const struct raft_options options = stand_options();
    const struct raft_start fresh = {.first_index = 1};
    uint64_t n_seen = 0;
    random_state = round + 1000;
    memset(&stand, 0, sizeof stand);
    stand.members = stand_members(3);
    stand.writes_at_once = true;
    draw_configuration();
    assert_int_equal(raft_open(&options, &fresh, &stand.raft), RAFT_OK);
    for (int i = 0; i < MESSAGES / 4; i++) {
      const struct raft_status before = stand_status(&stand);
      const struct raft_message message = some_message();
      stand_receive(&stand, &message);
      check_promises(&before, &n_seen);
      do_something();
      stand_clear(&stand);
    }
    stand_close(&stand);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(no_message_breaks_what_the_core_promised),
      cmocka_unit_test(a_fresh_node_survives_strangers),
  };
  return cmocka_run_group_tests_name("raft_hostile", tests, NULL, NULL);
}
