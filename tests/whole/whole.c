/*
** make whole                    seeds 1..300
** make whole SEED=7             that run again, exactly
** make whole SEEDS=1..500
**
** build/tests/whole [--seed N | --seeds A..B] [--jobs N] [--profile NAME] [--twice] [--trace] [--keep-going]
**
** Each seed runs in a process of its own, so that a failed assertion costs no more than its run, and nothing is left
** over from the seed before. --twice: runs each seed two times and compares. Stops at the first seed that fails, unless
** told to keep going; exits with 1 then. Where some class of faults or answers never happened in at least 200 runs, it exits with 2.
*/
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../ext/balsa.h"
#include "../../ext/node.h"
#include "../fault/sim_vfs.h"
#include "run.h"
#include "sqlite.h"

#define JOBS_MAX 64
#define RUNS_FOR_ALL 200 /* in so many runs everything happens that can */
#define SECONDS_MAX 60   /* of real time, for one seed */

struct run run;

/* What a run leaves behind. */
struct result {
  uint64_t hash, turns, simulated_ms;
  uint64_t committed, lost, unknown, refused, silent, reads, crashes, stops, partitions, pauses, errors, frames, dials;
  uint64_t changes, transfers, wipes, chunks, parts;
};

static const struct run_profile profiles[] = {
    {.name = "peace", .weight = 5, .machines = 3, .cuts = 1, .fault_gap_ns = 4 * TASK_SECOND},
    {.name = "alone",
     .weight = 8,
     .machines = 1,
     .crashes = 4,
     .stops = 2,
     .pauses = 1,
     .slow_disks = 1,
     .fault_gap_ns = 2 * TASK_SECOND},
    {.name = "network",
     .weight = 25,
     .machines = 3,
     .partitions = 6,
     .cuts = 4,
     .pauses = 3,
     .slow_disks = 1,
     .fault_gap_ns = TASK_SECOND},
    {.name = "crashes",
     .weight = 25,
     .machines = 3,
     .partitions = 1,
     .cuts = 1,
     .pauses = 1,
     .crashes = 5,
     .stops = 2,
     .slow_disks = 1,
     .fault_gap_ns = 2 * TASK_SECOND},
    {.name = "disks",
     .weight = 10,
     .machines = 3,
     .crashes = 2,
     .cuts = 1,
     .slow_disks = 2,
     .full_disks = 3,
     .disk_errors = 2,
     .fault_gap_ns = 2 * TASK_SECOND},
    {.name = "all",
     .weight = 20,
     .machines = 3,
     .partitions = 3,
     .cuts = 2,
     .pauses = 2,
     .crashes = 3,
     .stops = 1,
     .slow_disks = 1,
     .full_disks = 1,
     .disk_errors = 1,
     .fault_gap_ns = TASK_SECOND},
    {.name = "flapping",
     .weight = 8,
     .machines = 3,
     .partitions = 3,
     .cuts = 1,
     .pauses = 6,
     .fault_gap_ns = 400 * TASK_MS,
     .stall_ns = 1500 * TASK_MS},
    {.name = "five",
     .weight = 7,
     .machines = 5,
     .partitions = 4,
     .cuts = 2,
     .pauses = 2,
     .crashes = 3,
     .stops = 1,
     .slow_disks = 1,
     .fault_gap_ns = TASK_SECOND},
    {.name = "members",
     .weight = 20,
     .machines = 5,
     .n_formers = 3,
     .changes = true,
     .partitions = 2,
     .cuts = 1,
     .pauses = 1,
     .crashes = 2,
     .stops = 1,
     .wipes = 1,
     .fault_gap_ns = 1500 * TASK_MS},
};
#define N_PROFILES (sizeof profiles / sizeof *profiles)

static struct {
  uint64_t first, last;
  unsigned jobs;
  const struct run_profile *profile; /* NULL: drawn */
  bool twice, trace, keep_going;
} options = {.first = 1, .last = 40, .jobs = 1};

/* ---- One run, in a process of its own ---- */

static const struct run_profile *draw_profile(void) {
  uint32_t total = 0;
  size_t i = 0;
  for (size_t k = 0; k < N_PROFILES; k++) total += profiles[k].weight;
  uint64_t at = sim_random_below(&run.random, total);
  while (at >= profiles[i].weight) at -= profiles[i++].weight;
  return options.profile ? options.profile : &profiles[i];
}

static uint64_t draw(uint64_t low, uint64_t high) {
  return sim_random_between(&run.random, low, high);
}

static bool chance(uint32_t permille) {
  return sim_random_chance(&run.random, permille);
}

static void draw_settings(void) {
  static const uint32_t page_sizes[] = {512, 1024, 1024, 4096, 4096, 8192};
  static const char *const vacuums[] = {"none", "none", "full", "incremental"};
  run.profile = draw_profile();
  run.n_machines = run.profile->machines;
  run.n_clients = (uint32_t)draw(1, run.n_machines > 3 ? 2 : 3);
  run.election_ms = (uint32_t)draw(100, 400);
  run.heartbeat_ms = run.election_ms / (uint32_t)draw(6, 12);
  run.commit_timeout_ms = (uint32_t)draw(run.election_ms, 4 * run.election_ms + 3000);
  run.page_size = page_sizes[draw(0, 5)];
  run.auto_vacuum = vacuums[draw(0, 3)];
  run.snapshot_threshold = draw(16, chance(500) ? 64 : 1024) << 10;
  run.log_tail = chance(500) ? 0 : draw(0, 256) << 10;
  run.think_ms = chance(300) ? (uint32_t)draw(200, 1000) : (uint32_t)draw(20, 150);
  run.row_bytes = (uint32_t)draw(20, run.page_size);
  run.duration_ns = draw(3, 10) * TASK_SECOND;
}

static uint64_t next_seed(void) {
  return sim_random_next(&run.random);
}

static void make_machines(void) {
  uint64_t sync_ns = draw(50, 3000) * TASK_US;
  struct machine_options world = {.seed = next_seed(), .sync_ns = 1};
  struct machine *nowhere = machine_new(0, &world);
  sqlite3_vfs *vfs = sim_vfs_register(machine_os(nowhere));
  sim_vfs_seed(next_seed());
  for (uint32_t i = 1; i <= run.n_machines; i++) {
    struct run_process *process = &run.processes[i];
    struct machine_options each = {
        .seed = next_seed(),
        .drift_ppm = chance(300) ? (int32_t)draw(0, 48000) - 24000 : (int32_t)draw(0, 400) - 200,
        .sync_ns = sync_ns,
        .hiccup_ns = 100 * TASK_MS,
        .hiccup_permille = chance(300) ? 5 : 0,
    };
    process->number = i;
    process->machine = machine_new(i, &each);
    process->disk = sim_machine_new(next_seed(), machine_os(process->machine));
    process->joins = run.profile->n_formers && i > run.profile->n_formers;
    snprintf(process->folder, sizeof process->folder, "/n%u", i);
    machine_set_files(process->machine, sim_machine_os(process->disk));
    sim_vfs_mount(process->folder, process->disk);
  }
  struct node_machine where = {
      .os = machine_os(nowhere),
      .os_of = run_os_of,
      .base = vfs,
      .part_bytes = chance(500) ? (uint32_t)draw(8, 64) << 10 : 0,
      .wal_limit_frames = chance(500) ? (uint32_t)draw(100, 1000) : 0,
      .segment_bytes = 64u << 10,
  };
  node_use_machine(&where);
  if (balsa_init() != SQLITE_OK) task_fail("balsa_init fails");
}

struct os *run_os_of(const char *path) {
  for (uint32_t i = 1; i <= run.n_machines; i++)
    if (strncmp(path, run.processes[i].folder, strlen(run.processes[i].folder)) == 0)
      return machine_os(run.processes[i].machine);
  task_fail("%s is on no machine", path);
}

static void begin(uint64_t seed) {
  run.seed = seed;
  run.random.state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
  draw_settings();
  sqlite_begin();
  struct task_options scheduling = {
      .seed = next_seed(),
      .switch_permille = (uint32_t)draw(1, 4) * (uint32_t)draw(1, 4) * 20,
      .stall_per_million = run.profile->stall_ns ? (uint32_t)draw(100, 3000)
                           : chance(500)         ? (uint32_t)draw(1, 200)
                                                 : 0,
      .stall_ns = run.profile->stall_ns ? run.profile->stall_ns : draw(1, 60) * TASK_MS,
      .show = options.trace,
  };
  struct network_options network = {
      .seed = next_seed(),
      .delay_ns = draw(20, 500) * TASK_US,
      .jitter_ns = draw(10, chance(300) ? 20000 : 500) * TASK_US,
      .retransmit_permille = chance(400) ? (uint32_t)draw(1, 30) : 0,
      .retransmit_ns = 250 * TASK_MS,
      .ns_per_kilobyte = (uint32_t)draw(1000, 50000),
  };
  task_begin(&scheduling);
  network_begin(&network);
  make_machines();
}

static void fill(struct result *result) {
  struct network_counters network;
  network_get_counters(&network);
  *result = (struct result){
      .hash = task_hash(),
      .turns = task_turns(),
      .simulated_ms = task_now() / TASK_MS - 1000000,
      .committed = run.committed,
      .lost = run.lost,
      .unknown = run.unknown,
      .refused = run.refused,
      .silent = run.silent,
      .reads = run.n_reads,
      .crashes = run.crashes,
      .stops = run.stops,
      .partitions = run.partitions,
      .pauses = run.pauses,
      .errors = run.errors,
      .changes = run.changes,
      .transfers = run.transfers,
      .wipes = run.wipes,
      .frames = network.frames,
      .dials = network.dials,
      .chunks = network.chunks,
      .parts = network.parts,
  };
}

static void tell_more(void) {
  fprintf(stderr, "  profile %s, %u machines, %u clients each, page size %u, election %u ms\n", run.profile->name,
          run.n_machines, run.n_clients, run.page_size, run.election_ms);
}

static void one_run(uint64_t seed, int to) {
  struct result result;
  alarm(SECONDS_MAX);
  begin(seed);
  task_on_fail(tell_more);
  for (uint32_t i = 1; i <= run.n_machines; i++) process_start(&run.processes[i]);
  faults_run();
  check_end();
  for (uint32_t i = 1; i <= run.n_machines; i++) process_stop(&run.processes[i]);
  fill(&result);
  if (write(to, &result, sizeof result) != sizeof result) _exit(4);
  fflush(stderr);
  _exit(0);
}

/* ---- Many of them ---- */

struct job {
  pid_t pid;
  int from;
  uint64_t seed;
  bool is_second;
  struct result first;
};

static struct {
  uint64_t runs, failed;
  struct result sum;
} totals;

/* One processor for all threads of a run: they take turns anyway. */
static void settle_on_processor(unsigned job) {
  cpu_set_t allowed, one;
  unsigned n = 0;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  unsigned chosen = job % (unsigned)CPU_COUNT(&allowed);
  for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &allowed) || n++ != chosen) continue;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
    return;
  }
}

static void start_job(struct job *job, unsigned number) {
  int ends[2];
  if (pipe(ends) != 0) exit(4);
  fflush(NULL);
  job->pid = fork();
  if (job->pid < 0) exit(4);
  if (job->pid == 0) {
    close(ends[0]);
    settle_on_processor(number);
    one_run(job->seed, ends[1]);
  }
  close(ends[1]);
  job->from = ends[0];
}

static void add(const struct result *result) {
  const uint64_t *from = (const uint64_t *)result;
  uint64_t *to = (uint64_t *)&totals.sum;
  for (size_t i = 0; i < sizeof *result / sizeof *from; i++) to[i] += from[i];
}

/* true: the job is done, false: it runs a second time. */
static bool end_job(struct job *job, unsigned number, int status) {
  struct result result = {0};
  bool is_good = read(job->from, &result, sizeof result) == sizeof result && WIFEXITED(status) && !WEXITSTATUS(status);
  close(job->from);
  job->pid = 0;
  if (is_good && options.twice && !job->is_second) {
    job->first = result;
    job->is_second = true;
    start_job(job, number);
    return false;
  }
  if (is_good && job->is_second && memcmp(&result, &job->first, sizeof result) != 0) {
    fprintf(stderr,
            "  run again it is another run: hash %016" PRIx64 " and %016" PRIx64 ", %" PRIu64 " and %" PRIu64
            " turns\n",
            job->first.hash, result.hash, job->first.turns, result.turns);
    is_good = false;
  }
  job->is_second = false;
  totals.runs++;
  if (is_good) {
    add(&result);
    if (options.first == options.last) printf("hash %016" PRIx64 ", %" PRIu64 " turns\n", result.hash, result.turns);
    return true;
  }
  totals.failed++;
  if (WIFSIGNALED(status))
    fprintf(stderr, "  ended by signal %d (%s)\n", WTERMSIG(status), strsignal(WTERMSIG(status)));
  fprintf(stderr, "seed %" PRIu64 " FAILED: make whole SEED=%" PRIu64 "\n", job->seed, job->seed);
  return true;
}

static void run_all(void) {
  struct job jobs[JOBS_MAX] = {{0}};
  uint64_t next = options.first;
  unsigned n_running = 0;
  for (;;) {
    bool more = next <= options.last && (options.keep_going || totals.failed == 0);
    for (unsigned i = 0; i < options.jobs && more; i++) {
      if (jobs[i].pid) continue;
      jobs[i].seed = next++;
      start_job(&jobs[i], i);
      n_running++;
      more = next <= options.last;
    }
    if (n_running == 0) return;
    int status;
    pid_t pid = wait(&status);
    for (unsigned i = 0; i < options.jobs; i++)
      if (jobs[i].pid == pid && end_job(&jobs[i], i, status)) n_running--;
  }
}

static void usage(void) {
  fprintf(stderr,
          "usage: whole [--seed N | --seeds A..B] [--jobs N] [--profile NAME] [--twice] [--trace] [--keep-going]\n");
  exit(2);
}

static const struct run_profile *find_profile(const char *name) {
  for (size_t i = 0; i < N_PROFILES; i++)
    if (strcmp(profiles[i].name, name) == 0) return &profiles[i];
  usage();
  return NULL;
}

/* A..B */
static void read_range(const char *text) {
  char *end = NULL;
  options.first = strtoull(text, &end, 10);
  if (strncmp(end, "..", 2) != 0) usage();
  options.last = strtoull(end + 2, &end, 10);
  if (*end) usage();
}

static void read_arguments(int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    if (strcmp(argv[i], "--twice") == 0) {
      options.twice = true;
    } else if (strcmp(argv[i], "--trace") == 0) {
      options.trace = true;
    } else if (strcmp(argv[i], "--keep-going") == 0) {
      options.keep_going = true;
    } else if (strcmp(argv[i], "--seed") == 0 && ++i) {
      options.first = options.last = strtoull(value, NULL, 10);
    } else if (strcmp(argv[i], "--seeds") == 0 && ++i) {
      read_range(value);
    } else if (strcmp(argv[i], "--jobs") == 0 && ++i) {
      options.jobs = (unsigned)strtoul(value, NULL, 10);
      if (options.jobs < 1 || options.jobs > JOBS_MAX) usage();
    } else if (strcmp(argv[i], "--profile") == 0 && ++i) {
      options.profile = find_profile(value);
    } else {
      usage();
    }
  }
}

/* What never happened was not tested. */
static bool is_complete(void) {
  const struct result *sum = &totals.sum;
  const struct {
    const char *name;
    uint64_t count;
  } all[] = {
      {"committed transaction", sum->committed},
      {"lost transaction", sum->lost},
      {"unknown outcome", sum->unknown},
      {"unanswered COMMIT", sum->silent},
      {"crash", sum->crashes},
      {"stop", sum->stops},
      {"partition", sum->partitions},
      {"pause", sum->pauses},
      {"disk error", sum->errors},
      {"change of members", sum->changes},
      {"hand-over", sum->transfers},
      {"wiped disk", sum->wipes},
      {"chunk of a snapshot", sum->chunks},
      {"part of a transaction", sum->parts},
  };
  bool is_all = true;
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    if (all[i].count > 0) continue;
    fprintf(stderr, "no %s in %" PRIu64 " runs\n", all[i].name, totals.runs);
    is_all = false;
  }
  return is_all;
}

int main(int argc, char **argv) {
  struct timespec began, ended;
  read_arguments(argc, argv);
  clock_gettime(CLOCK_MONOTONIC, &began);
  run_all();
  clock_gettime(CLOCK_MONOTONIC, &ended);
  const struct result *sum = &totals.sum;
  double seconds = (double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) / 1e9;
  printf("%" PRIu64 " runs in %.1f s (%.0f a minute): %.0f s simulated, %" PRIu64 " turns, %" PRIu64 " frames, %" PRIu64
         " dials, %" PRIu64 " chunks of snapshots, %" PRIu64 " parts of transactions\n",
         totals.runs, seconds, (double)totals.runs * 60 / seconds, (double)sum->simulated_ms / 1e3, sum->turns,
         sum->frames, sum->dials, sum->chunks, sum->parts);
  printf("transactions: %" PRIu64 " committed, %" PRIu64 " lost, %" PRIu64 " unknown, %" PRIu64 " refused, %" PRIu64
         " unanswered; %" PRIu64 " reads\n",
         sum->committed, sum->lost, sum->unknown, sum->refused, sum->silent, sum->reads);
  printf("faults: %" PRIu64 " crashes, %" PRIu64 " stops, %" PRIu64 " partitions, %" PRIu64 " pauses, %" PRIu64
         " disk errors, %" PRIu64 " changes of members, %" PRIu64 " hand-overs, %" PRIu64 " wiped disks\n",
         sum->crashes, sum->stops, sum->partitions, sum->pauses, sum->errors, sum->changes, sum->transfers, sum->wipes);
  printf("%" PRIu64 " passed, %" PRIu64 " failed\n", totals.runs - totals.failed, totals.failed);
  if (totals.failed != 0) return 1;
  return totals.runs < RUNS_FOR_ALL || options.profile || is_complete() ? 0 : 2;
}
