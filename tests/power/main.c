/*
** power [--seed N | --seeds A..B] [--skip-sync SITE | --skip-every-sync] [--list-syncs] [--verbose]
**
** --skip-sync        the syncs of that site (as --list-syncs names it) do nothing: a seed is to find it
** --skip-every-sync  that, for one site after the other: each must be found by a seed, or be in the list below
*/
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../ext/balsa.h"
#include "power.h"

#define SEED_SECONDS_MAX 60
#define SITES_MAX 256
#define SEEDS_FOR_SITES 60
#define SITE_MARK " seeds: " /* before a site's name */

struct choices {
  uint64_t first, last;
  const char *skipped;
  bool lists, skips_all, is_verbose;
};

/* Sites of all seeds. */
static struct {
  char name[SIM_MACHINE_SITE_MAX];
  uint64_t count, seeds;
} sites[SITES_MAX];
static size_t n_sites;

static char hang_text[128]; /* for the signal handler */

static void on_alarm(int number) {
  (void)number;
  if (write(STDOUT_FILENO, hang_text, strlen(hang_text)) < 0) _exit(1);
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
      else if (strcmp(argv[i], "--skip-every-sync") == 0)
        choices->skips_all = true;
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
         " starts refused; %" PRIu64 " times the database was removed\n",
         c->faulty, c->injected, c->full, c->refused, c->removed);
  printf("%" PRIu64 " transactions: %" PRIu64 " acknowledged, %" PRIu64 " unknown, %" PRIu64 " lost; %" PRIu64
         " rolled back, %" PRIu64 " vacuums, %" PRIu64 " snapshots, %" PRIu64 " whole reads; %" PRIu64
         " calls that change the disk\n",
         c->transactions, c->acknowledged, c->unknown, c->lost, c->rolled_back, c->vacuums, c->snapshots, c->reads,
         c->calls);
}

struct totals {
  uint64_t passed, failed;
  struct power_counters counters;
};

/* Ends with the first seed that fails: its threads and files are left as they are. */
static void run_seeds(const struct choices *choices, struct totals *totals) {
  for (uint64_t seed = choices->first; seed <= choices->last && totals->failed == 0; seed++) {
    static struct power power;
    power = (struct power){.seed = seed, .skipped = choices->skipped, .is_verbose = choices->is_verbose};
    snprintf(hang_text, sizeof hang_text, "seed %" PRIu64 " hangs (replay: make power SEED=%" PRIu64 ")\n", seed, seed);
    alarm(SEED_SECONDS_MAX);
    power_run(&power);
    alarm(0);
    add_counters(&totals->counters, &power.counters);
    if (power.has_failed) {
      printf("seed %" PRIu64 ": %s\n", seed, power.failure);
      if (!choices->skipped) printf("  replay: make power SEED=%" PRIu64 "\n", seed);
      if (!choices->is_verbose && !choices->skipped) sim_machine_print_trace(power.machine, stdout, 25);
      totals->failed++;
    } else {
      sim_machine_each_sync(power.machine, note_site, NULL);
      power_end(&power);
      totals->passed++;
    }
  }
}

/* ---- Every sync skipped in turn ---- */

/* Sites by the beginnings of their names, without whose syncs a cluster of one loses nothing that a start could miss. */
static const struct {
  const char *sites, *why;
} harmless[] = {
    {"syncdir / ", "the test's own"},
    {"syncdir n down", "the test's own"},
    {"dsync balsa/database run", "a cluster of one redoes all of its log, and has a snapshot where that begins later"},
    {"dsync balsa/database stop", "then the stop was none: redo, as after a crash"},
    {"dsync balsa/log/#.log stop", "a seal: all before it was durable"},
    {"dsync balsa/log/base stop", "the same call as in run, and rare"},
    {"dsync balsa/options start", "what was kept last time is what is written"},
    {"sync balsa/log/#.log create", "the same batch is written again at every start"},
    {"sync balsa/log/#.log run", "zeros beneath a batch that is synced itself"},
    {"sync balsa/snapshots/snapshot.new st", "the same call as in run, and rare"},
    {"syncdir balsa/snapshots st", "the same call as in run, and rare"},
    {"syncdir balsa/log stop", "the same call as in run, and rare"},
    {"sync balsa/options", "zeros beneath records that are synced themselves"},
    {"sync balsa/database", "zeros beneath records that are synced themselves"},
    {"sync balsa/vote", "zeros beneath records that are synced themselves"},
    {"sync balsa/log/base", "zeros beneath records that are synced themselves"},
};

static const char *why_harmless(const char *site) {
  for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
    if (strncmp(site, harmless[i].sites, strlen(harmless[i].sites)) == 0) return harmless[i].why;
  return NULL;
}

/* Runs this program again, since a child that is only forked may not use Balsa. true: a seed failed, or it died. */
static bool run_apart(const struct choices *choices, FILE *to) {
  int status = 0;
  char seeds[64];
  snprintf(seeds, sizeof seeds, "%" PRIu64 "..%" PRIu64, choices->first, choices->last);
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    if (dup2(fileno(to), STDOUT_FILENO) < 0) _exit(2);
    if (choices->skipped)
      execl("/proc/self/exe", "power", "--seeds", seeds, "--skip-sync", choices->skipped, (char *)NULL);
    else
      execl("/proc/self/exe", "power", "--seeds", seeds, "--list-syncs", (char *)NULL);
    _exit(2);
  }
  if (child < 0 || waitpid(child, &status, 0) != child) abort();
  rewind(to);
  return status != 0;
}

/* Which syncs there are: what a few seeds do. */
static bool find_sites(const struct choices *given) {
  struct choices choices = {.first = given->first, .last = given->first + SEEDS_FOR_SITES};
  char line[512];
  FILE *output = tmpfile();
  if (!output) abort();
  bool has_failed = run_apart(&choices, output);
  while (fgets(line, sizeof line, output)) {
    char *site = strstr(line, SITE_MARK);
    line[strcspn(line, "\n")] = 0;
    if (has_failed) printf("%s\n", line);
    if (site) note_site(NULL, site + strlen(SITE_MARK), 1);
  }
  fclose(output);
  return !has_failed;
}

static void skip_one(const struct choices *given, const char *site, struct totals *totals) {
  struct choices choices = {.first = given->first, .last = given->last, .skipped = site};
  char line[160] = "it died";
  const char *why = why_harmless(site);
  FILE *output = tmpfile();
  if (!output) abort();
  bool is_caught = !why && run_apart(&choices, output);
  if (is_caught && fgets(line, sizeof line, output)) line[strcspn(line, "\n")] = 0;
  fclose(output);
  totals->passed += is_caught || why;
  totals->failed += !is_caught && !why;
  printf("  %-44s %s%s\n", site, is_caught ? line : why ? "harmless: " : "NOT CAUGHT", why ? why : "");
}

static void skip_every_sync(const struct choices *choices, struct totals *totals) {
  if (!find_sites(choices)) {
    totals->failed++;
    return;
  }
  for (size_t i = 0; i < n_sites; i++) skip_one(choices, sites[i].name, totals);
}

int main(int argc, char **argv) {
  struct choices choices;
  struct totals totals = {0};
  if (!parse(argc, argv, &choices)) return 3;
  setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
  struct node_machine machine = {.os = os_real(), .os_of = sim_vfs_os_of, .base = sim_vfs_register(os_real())};
  node_use_machine(&machine);
  if (balsa_init() != SQLITE_OK) return 2;
  signal(SIGALRM, on_alarm);
  if (choices.skips_all)
    skip_every_sync(&choices, &totals);
  else
    run_seeds(&choices, &totals);
  if (choices.lists)
    for (size_t i = 0; i < n_sites; i++)
      printf("%8" PRIu64 " in %5" PRIu64 SITE_MARK "%s\n", sites[i].count, sites[i].seeds, sites[i].name);
  if (!choices.skips_all) print_counters(&totals.counters);
  printf("%" PRIu64 " passed, %" PRIu64 " failed\n", totals.passed, totals.failed);
  fflush(stdout);
  _exit(totals.failed > 0 ? 1 : 0); /* no node is left that would have to be stopped, unless something failed */
}
