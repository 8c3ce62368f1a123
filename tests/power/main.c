/*
** power [--seed N | --seeds A..B] [--skip-sync SITE] [--list-syncs] [--verbose]
**
** --skip-sync   the syncs of that site (as --list-syncs names it) do nothing: a seed is to find it
*/
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../ext/balsa.h"
#include "power.h"

#define SEED_SECONDS_MAX 60
#define SITES_MAX 256

struct choices {
  uint64_t first, last;
  const char *skipped;
  bool lists, is_verbose;
};

/* Sites of all seeds. */
static struct {
  char name[SIM_MACHINE_SITE_MAX];
  uint64_t count, seeds;
} sites[SITES_MAX];
static size_t n_sites;

static uint64_t seed_now; /* for the signal handler */

static void on_alarm(int number) {
  char text[128];
  (void)number;
  int n = snprintf(text, sizeof text, "seed %" PRIu64 " hangs (replay: make power SEED=%" PRIu64 ")\n", seed_now,
                   seed_now);
  if (write(STDOUT_FILENO, text, (size_t)n) != n) _exit(1);
  abort();
}

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

static bool parse(int argc, char **argv, struct choices *choices) {
  *choices = (struct choices){.first = 1, .last = 100};
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    bool ok = true, is_valued = true;
    if (strcmp(argv[i], "--seed") == 0) {
      ok = parse_seeds(value, false, choices);
      choices->is_verbose = true;
    } else if (strcmp(argv[i], "--seeds") == 0) {
      ok = parse_seeds(value, true, choices);
    } else if (strcmp(argv[i], "--skip-sync") == 0) {
      choices->skipped = value;
    } else {
      is_valued = false;
      if (strcmp(argv[i], "--list-syncs") == 0)
        choices->lists = true;
      else if (strcmp(argv[i], "--verbose") == 0)
        choices->is_verbose = true;
      else
        ok = false;
    }
    if (!ok) {
      fprintf(stderr, "power: don't understand %s\n", argv[i]);
      return false;
    }
    i += is_valued;
  }
  return true;
}

static void note_site(void *ctx, const char *name, uint64_t count) {
  size_t i = 0;
  (void)ctx;
  while (i < n_sites && strcmp(sites[i].name, name) != 0) i++;
  if (i == SITES_MAX) return;
  if (i == n_sites) snprintf(sites[n_sites++].name, SIM_MACHINE_SITE_MAX, "%s", name);
  sites[i].count += count;
  sites[i].seeds++;
}

static void add_counters(struct power_counters *to, const struct power_counters *from) {
  const uint64_t *values = (const uint64_t *)from;
  uint64_t *sums = (uint64_t *)to;
  for (size_t i = 0; i < sizeof *from / sizeof(uint64_t); i++) sums[i] += values[i];
}

static void print_counters(const struct power_counters *c) {
  printf("%" PRIu64 " lives: %" PRIu64 " crashes in start, %" PRIu64 " in run, %" PRIu64 " in stop (%" PRIu64
         " by kill); %" PRIu64 " stops in order\n",
         c->lives, c->crashes_in_start, c->crashes_in_run, c->crashes_in_stop, c->kills, c->stops);
  printf("%" PRIu64 " lives with errors (%" PRIu64 " at chosen sites), %" PRIu64 " with a full disk; %" PRIu64
         " starts refused\n",
         c->faulty, c->injected, c->full, c->refused);
  printf("%" PRIu64 " transactions: %" PRIu64 " acknowledged, %" PRIu64 " unknown, %" PRIu64 " lost; %" PRIu64
         " rolled back, %" PRIu64 " vacuums, %" PRIu64 " snapshots, %" PRIu64 " whole reads; %" PRIu64
         " calls that change the disk\n",
         c->transactions, c->acknowledged, c->unknown, c->lost, c->rolled_back, c->vacuums, c->snapshots, c->reads,
         c->calls);
}

int main(int argc, char **argv) {
  struct choices choices;
  struct power_counters totals = {0};
  uint64_t passed = 0, failed = 0;
  if (!parse(argc, argv, &choices)) return 3;
  setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
  struct node_machine machine = {.os = os_real(), .os_of = sim_vfs_os_of, .base = sim_vfs_register(os_real())};
  node_use_machine(&machine);
  if (balsa_init() != SQLITE_OK) return 2;
  signal(SIGALRM, on_alarm);
  for (uint64_t seed = choices.first; seed <= choices.last; seed++) {
    static struct power power;
    power = (struct power){.seed = seed, .skipped = choices.skipped, .is_verbose = choices.is_verbose};
    seed_now = seed;
    alarm(SEED_SECONDS_MAX);
    power_run(&power);
    alarm(0);
    add_counters(&totals, &power.counters);
    if (power.has_failed) {
      printf("seed %" PRIu64 ": %s\n  replay: make power SEED=%" PRIu64 "\n", seed, power.failure, seed);
      if (!choices.is_verbose) sim_machine_print_trace(power.machine, stdout, 25);
      failed++;
      break; /* its threads and files are left as they are */
    }
    sim_machine_each_sync(power.machine, note_site, NULL);
    power_end(&power);
    passed++;
  }
  if (choices.lists)
    for (size_t i = 0; i < n_sites; i++)
      printf("%8" PRIu64 " in %5" PRIu64 " seeds  %s\n", sites[i].count, sites[i].seeds, sites[i].name);
  print_counters(&totals);
  printf("%" PRIu64 " passed, %" PRIu64 " failed\n", passed, failed);
  fflush(stdout);
  _exit(failed > 0 ? 1 : 0); /* no node is left that would have to be stopped, unless something failed */
}
