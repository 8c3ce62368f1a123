/*
** make sim                      seeds 1..200
** make sim SEED=7               that run again, exactly, with its last events if it fails
** make sim SEEDS=1..10000
**
** build/tests/sim [--seed N | --seeds A..B] [--trace] [--profile NAME] [--keep-going] [--quiet]
**
** Stops at the first seed that fails, unless told to keep going; exits with 1 then. A run of at least
** 200 seeds in which some class of faults never happened fails too, with 2.
*/
#include "sim.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <unistd.h>

#define SEEDS_FOR_ALL_FAULTS 200
#define PROGRESS_ELECTIONS 10    /* a majority in peace commits within that many election time-outs */
#define CONVERGENCE_ELECTIONS 60 /* all healed nodes agree within that many */

void sim_fail(struct sim *sim, const char *format, ...) {
  if (sim->has_failed) return;
  sim->has_failed = true;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(sim->failure, sizeof sim->failure, format, arguments);
  va_end(arguments);
}

void sim_schedule(struct sim *sim, uint64_t after_ns, enum sim_event_kind kind, uint32_t node, uint64_t number,
                  void *data) {
  sim_events_push(
      &sim->events,
      &(struct sim_event){.at = sim->now + after_ns, .kind = kind, .node = node, .number = number, .data = data});
}

/* ---- One run ---- */

static void make_configuration(struct sim *sim, uint32_t n_members) {
  struct raft_configuration *configuration = &sim->configuration;
  for (size_t i = 0; i < RAFT_UUID_SIZE; i++) {
    configuration->cluster.bytes[i] = (uint8_t)sim_random_next(&sim->random);
    configuration->database.bytes[i] = (uint8_t)sim_random_next(&sim->random);
  }
  configuration->settings = (struct raft_settings){.election_ms = (uint32_t)(sim->election_ns / SIM_MS),
                                                   .heartbeat_ms = (uint32_t)(sim->heartbeat_ns / SIM_MS),
                                                   .page_size = 4096};
  configuration->n_members = n_members;
  for (uint32_t i = 0; i < n_members; i++) {
    struct raft_member *member = &configuration->members[i];
    *member = (struct raft_member){
        .id = sim->nodes[i].id, .incarnation = sim->nodes[i].incarnation, .roles = RAFT_VOTER_NEW};
    snprintf(member->address, sizeof member->address, "node%u:7400", i + 1);
  }
}

/* A database that was there before the cluster: entries 2 …, always the same ones, however often it is tried. */
static void make_first_state(struct sim *sim) {
  sim->n_first = sim_random_chance(&sim->random, 300) ? (uint32_t)sim_random_between(&sim->random, 1, 10) : 0;
  for (uint32_t i = 0; i < sim->n_first; i++) {
    const uint64_t id = sim_workload_new_operation(sim, &sim->nodes[0]);
    struct sim_operation *operation = &sim->workload.operations[id - 1];
    operation->state = SIM_OP_UNKNOWN;
    operation->term = 1;
    operation->index = 2 + i;
  }
}

static void begin(struct sim *sim) {
  struct sim_random *random = &sim->random;
  static const uint32_t drifts[] = {1, 10, 50, 100};
  const uint32_t n_members = (uint32_t)sim_random_between(random, sim->profile->nodes_min, sim->profile->nodes_max);
  sim->n_nodes = n_members + (uint32_t)sim_random_between(random, 0, sim->profile->spares);
  if (sim->n_nodes > SIM_NODES_MAX) sim->n_nodes = SIM_NODES_MAX;
  sim->election_ns = sim_random_between(random, 60, 200) * SIM_MS;
  sim->heartbeat_ns = sim->election_ns / SIM_MS / sim_random_between(random, 4, 12) * SIM_MS;
  sim->drift_permille = drifts[sim_random_below(random, 4)];
  sim->window_bytes = (uint32_t)sim_random_between(random, 200, 20000);
  sim->batch_bytes = (uint32_t)sim_random_between(random, 1, 4000);
  sim->uncommitted_max = (uint32_t)sim_random_between(random, 5, sim->profile->small_batches ? 30 : 200);
  if (sim->profile->small_batches) {
    sim->window_bytes = (uint32_t)sim_random_between(random, 100, 1000);
    sim->batch_bytes = 1;
  }
  sim->takes_snapshots = sim_random_chance(random, 700);
  sim->segment_bytes = (uint32_t)sim_random_between(random, 4, 16) * 4096;
  sim->cache_bytes = sim_random_chance(random, 500) ? 1 : 1 << 20;
  /* With a few bytes at a time nobody who was away would catch up in the time that progress may take. */
  const bool one_at_a_time = sim->seed % 2 == 0 && sim->batch_bytes >= 2000 && sim->window_bytes >= 2000;
  sim->round_trip_short_ns = one_at_a_time ? 20 * SIM_MS : 0;
  for (uint32_t i = 0; i < sim->n_nodes; i++) sim_node_init(sim, i);
  make_configuration(sim, n_members);
  make_first_state(sim);
  sim_faults_begin(sim);
  for (uint32_t i = 0; i < sim->n_nodes && !sim->has_failed; i++) sim_node_start(sim, &sim->nodes[i]);
  sim_schedule(sim, sim->election_ns, SIM_EVENT_CLIENT, 0, 0, NULL);
}

static void handle(struct sim *sim, const struct sim_event *event) {
  sim->counters[SIM_EVENT]++;
  switch (event->kind) {
  case SIM_EVENT_CLIENT: sim_workload_step(sim); break;
  case SIM_EVENT_FAULT: sim_faults_at_large(sim); break;
  case SIM_EVENT_PLAY: sim_faults_play(sim); break;
  default: sim_node_handle(sim, event); break;
  }
}

/* Runs until `done` says so, or the time has come (false). */
static bool run_until(struct sim *sim, uint64_t time, bool (*done)(struct sim *sim, void *ctx), void *ctx) {
  struct sim_event event;
  while (!sim->has_failed && sim->events.n > 0 && sim->events.heap[0].at <= time) {
    sim_events_pop(&sim->events, &event);
    sim->now = event.at;
    handle(sim, &event);
    if (sim->counters[SIM_EVENT] > SIM_EVENTS_MAX) sim_fail(sim, "more than %d events", SIM_EVENTS_MAX);
    if (done && !sim->has_failed && done(sim, ctx)) return true;
  }
  if (!sim->has_failed) sim->now = time;
  return false;
}

struct progress {
  uint64_t next_at;
  size_t first; /* operations from here on count */
};

/* Any leader will do: one outside that reaches the majority serves it as well. */
static bool has_progressed(struct sim *sim, void *ctx) {
  struct progress *progress = ctx;
  const struct sim_workload *workload = &sim->workload;
  for (size_t i = progress->first; i < workload->n_operations; i++)
    if (workload->operations[i].state == SIM_OP_COMMITTED) return true;
  if (sim->now < progress->next_at) return false;
  progress->next_at = sim->now + 2 * SIM_MS;
  for (uint32_t i = 0; i < sim->n_nodes && !sim->has_failed; i++) {
    struct sim_node *node = &sim->nodes[i];
    if (!sim_node_runs(node) || node->is_paused || node->role != RAFT_LEADER) continue;
    sim_node_propose(sim, node, sim_workload_new_operation(sim, node), 1);
  }
  return false;
}

static void check_progress(struct sim *sim) {
  bool members[SIM_NODES_MAX];
  sim_choose_majority(sim, members);
  if (sim->has_failed) return;
  char text[2 * SIM_NODES_MAX + 1] = "";
  for (uint32_t i = 0; i < sim->n_nodes; i++)
    if (members[i]) snprintf(text + strlen(text), sizeof text - strlen(text), " %u", i + 1);
  SIM_TRACE(sim, "nodes%s are left in peace", text);
  sim->workload.is_stopped = true;
  sim_faults_end(sim, members, false);
  struct progress progress = {.first = sim->workload.n_operations};
  if (sim->has_failed) return;
  if (!run_until(sim, sim->now + PROGRESS_ELECTIONS * sim->election_ns, has_progressed, &progress))
    sim_fail(sim, "no progress: nodes%s, a majority, are in peace for %d election time-outs and commit nothing", text,
             PROGRESS_ELECTIONS);
}

static bool have_converged(struct sim *sim, void *ctx) {
  (void)ctx;
  for (uint32_t i = 0; i < sim->n_nodes; i++) {
    const struct sim_node *node = &sim->nodes[i];
    if (!sim_is_member(sim, node)) continue;
    if (!sim_node_runs(node) || node->commit_index != sim->checker.n_committed ||
        node->log.n != sim->checker.n_committed || node->persist_done != node->persist_given)
      return false;
  }
  const struct sim_node *leader = sim_faults_leader(sim);
  for (uint32_t i = 0; leader && i < sim->n_nodes; i++)
    if (sim_is_member(sim, &sim->nodes[i]) && sim->nodes[i].leader != leader->id) return false;
  return leader != NULL && sim_is_settled(sim, leader);
}

static bool is_answered(struct sim *sim, void *ctx) {
  const size_t *first = ctx;
  for (size_t i = *first; i < sim->workload.n_reads; i++)
    if (!sim->workload.reads[i].is_done) return false;
  return true;
}

static void check_convergence(struct sim *sim) {
  static const bool nobody[SIM_NODES_MAX];
  SIM_TRACE(sim, "all heal");
  sim_faults_end(sim, nobody, true);
  if (sim->has_failed) return;
  if (!run_until(sim, sim->now + CONVERGENCE_ELECTIONS * sim->election_ns, have_converged, NULL)) {
    sim_fail(sim, "all is healed for %d election time-outs, and the nodes do not agree", CONVERGENCE_ELECTIONS);
    return;
  }
  size_t first = sim->workload.n_reads;
  for (uint32_t i = 0; i < sim->n_nodes && !sim->has_failed; i++)
    if (sim_is_member(sim, &sim->nodes[i])) sim_workload_read(sim, &sim->nodes[i], RAFT_READ_QUORUM);
  if (!run_until(sim, sim->now + 2 * sim->election_ns, is_answered, &first))
    sim_fail(sim, "all is healed, and a read gets no answer");
  if (!sim->has_failed) sim_check_end(sim);
}

static void finish(struct sim *sim) {
  struct sim_event event;
  while (sim_events_pop(&sim->events, &event))
    if (event.kind == SIM_EVENT_DELIVER) sim_packet_free(event.data);
  sim_events_close(&sim->events);
  for (uint32_t i = 0; i < sim->n_nodes; i++) {
    struct sim_node *node = &sim->nodes[i];
    sim_node_close(sim, node);
    sim_snapshot_forget(node);
    free(node->sending);
    late_disk_free(node->disk);
    free(node->waiting);
    free(node->inbox);
    free(node->staged);
    free(node->pending);
    free(node->log.marks);
    free(node->issued.marks);
    free(node->durable.marks);
  }
  free(sim->checker.committed);
  free(sim->checker.seen);
  free(sim->checker.leaders);
  free(sim->checker.votes);
  for (size_t i = 0; i < sim->checker.n_configurations; i++) free(sim->checker.configurations[i]);
  free(sim->checker.configurations);
  free(sim->workload.operations);
  free(sim->workload.reads);
}

struct choices {
  uint64_t first, last;
  bool is_traced, keeps_going, is_quiet;
  const struct sim_profile *profile; /* NULL: the seed's own */
};

/* What is said when an assertion of the core fails: a signal handler may not compose it. */
static char assertion_report[256];

/* The caller's to free. */
static struct sim *run_seed(uint64_t seed, const struct choices *choices, bool traced, bool live) {
  struct sim *sim = sim_new(sizeof *sim);
  sim->seed = seed;
  sim->random.state = seed * UINT64_C(0xd1342543de82ef95);
  sim->trace.is_on = traced;
  sim->trace.is_live = live;
  sim->profile = choices->profile ? choices->profile : sim_profile_of(seed);
  begin(sim);
  run_until(sim, sim->now + sim->election_ns * sim_random_between(&sim->random, 20, 80), NULL, NULL);
  if (!sim->has_failed) check_progress(sim);
  if (!sim->has_failed) check_convergence(sim);
  finish(sim);
  return sim;
}

/* ---- Many runs ---- */

static void report(const struct sim *sim) {
  printf("seed %" PRIu64 " failed after %.1f ms (%s, %u nodes): %s\n", sim->seed, (double)sim->now / 1e6,
         sim->profile->name, sim->n_nodes, sim->failure);
}

static void prepare_assertion_report(uint64_t seed, uint64_t passed) {
  snprintf(assertion_report, sizeof assertion_report,
           "seed %" PRIu64 " failed: an assertion (above); its trace: --seed %" PRIu64 " --trace\n"
           "%" PRIu64 " passed, 1 failed\n",
           seed, seed, passed);
}

static void on_abort(int signal_number) {
  (void)signal_number;
  const ssize_t written = write(STDOUT_FILENO, assertion_report, strlen(assertion_report));
  _exit(written > 0 ? 1 : 4);
}

static void explain(uint64_t seed, const struct choices *choices) {
  struct sim *sim = run_seed(seed, choices, true, false);
  sim_trace_print(sim);
  report(sim);
  printf("again: make sim SEED=%" PRIu64 "\n", seed);
  free(sim);
}

static void print_counters(const uint64_t counters[SIM_COUNTERS]) {
  static const char *const texts[] = {
#define X(name, text) text,
      SIM_FAULTS(X) SIM_FACTS(X)
#undef X
  };
  for (int i = 0; i < SIM_COUNTERS; i++) printf("%12" PRIu64 "  %s\n", counters[i], texts[i]);
}

/* "7" or, for a range, "1..200". */
static bool parse_seeds(const char *text, bool is_range, struct choices *choices) {
  char *end;
  errno = 0;
  choices->first = choices->last = strtoull(text, &end, 10);
  if (is_range) {
    if (end == text || strncmp(end, "..", 2) != 0) return false;
    text = end + 2;
    choices->last = strtoull(text, &end, 10);
  }
  return errno == 0 && end != text && *end == 0 && choices->first <= choices->last && choices->last < UINT64_MAX;
}

static bool parse_valued(const char *name, const char *value, struct choices *choices) {
  if (strcmp(name, "--seed") == 0) return parse_seeds(value, false, choices);
  if (strcmp(name, "--seeds") == 0) return parse_seeds(value, true, choices);
  if (strcmp(name, "--profile") != 0) return false;
  choices->profile = sim_profile_named(value);
  return choices->profile != NULL;
}

static bool *find_switch(const char *name, struct choices *choices) {
  if (strcmp(name, "--trace") == 0) return &choices->is_traced;
  if (strcmp(name, "--keep-going") == 0) return &choices->keeps_going;
  return strcmp(name, "--quiet") == 0 ? &choices->is_quiet : NULL;
}

static bool parse(int argc, char **argv, struct choices *choices) {
  *choices = (struct choices){.first = 1, .last = 200};
  for (int i = 1; i < argc; i++) {
    bool *is_on = find_switch(argv[i], choices);
    if (is_on) {
      *is_on = true;
    } else if (i + 1 < argc && parse_valued(argv[i], argv[i + 1], choices)) {
      i++;
    } else {
      fprintf(stderr,
              "sim: don't understand %s\n"
              "usage: sim [--seed N | --seeds A..B] [--trace] [--profile NAME] [--keep-going] [--quiet]\n",
              argv[i]);
      return false;
    }
  }
  return true;
}

struct totals {
  uint64_t passed, failed, counters[SIM_COUNTERS];
};

static void run_seeds(const struct choices *choices, struct totals *totals) {
  for (uint64_t seed = choices->first; seed <= choices->last; seed++) {
    prepare_assertion_report(seed, totals->passed);
    struct sim *sim = run_seed(seed, choices, choices->is_traced, choices->is_traced);
    for (int i = 0; i < SIM_COUNTERS; i++) totals->counters[i] += sim->counters[i];
    totals->passed += !sim->has_failed;
    totals->failed += sim->has_failed;
    if (sim->has_failed) {
      report(sim);
      if (!choices->is_quiet && !choices->is_traced) explain(seed, choices);
    }
    free(sim);
    if (totals->failed > 0 && !choices->keeps_going) return;
  }
}

/* How many classes of faults should have happened and did not. */
static uint64_t missed_faults(const struct choices *choices, const struct totals *totals) {
  uint64_t missed = 0;
  if (totals->passed < SEEDS_FOR_ALL_FAULTS || choices->profile) return 0;
  for (int i = 0; i < SIM_FAULTS_END; i++) missed += totals->counters[i] == 0;
  return missed;
}

int main(int argc, char **argv) {
  struct choices choices;
  struct totals totals = {0};
  if (!parse(argc, argv, &choices)) return 3;
  setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* what was said before an assertion fails is not lost */
  signal(SIGABRT, on_abort);
  run_seeds(&choices, &totals);
  if (!choices.is_quiet) print_counters(totals.counters);
  const uint64_t missed = totals.failed > 0 ? 0 : missed_faults(&choices, &totals);
  if (missed > 0) printf("%" PRIu64 " classes of faults never happened\n", missed);
  printf("%" PRIu64 " passed, %" PRIu64 " failed\n", totals.passed, totals.failed + (missed > 0));
  return totals.failed > 0 ? 1 : missed > 0 ? 2 : 0;
}
