/*
** What the program is asked to do. The child processes are this program again, with --node or --plain-child.
*/
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

static const char help[] =
    "Usage: bench commits|log|readers|run|snapshot|endless|restart|failover|transfer [options]\n"
    "  commits   commits per second: plain SQLite, Balsa with one node and with three\n"
    "  log       bytes in the log per insert\n"
    "  readers   reads beside writers, and on a follower that applies\n"
    "  run       --commits commits and nothing else, for strace and perf\n"
    "  snapshot  a snapshot of a database of --size beside writers; an empty follower catches up\n"
    "  endless   updates for --seconds: disk, memory, stalls\n"
    "  restart   SIGKILL with --size of log to redo; from exec to the first read and write\n"
    "  failover  time from the leader's SIGKILL to the next acknowledged commit, --rounds times\n"
    "  transfer  longest pause of all writers in a hand-over of leadership, --rounds times\n"
    "Options, with what `commits` takes by itself:\n"
    "  --variants plain,one,three   also queued: plain SQLite, whose application queues its writers\n"
    "  --tables random,rowid        also index, update: see README.md\n"
    "  --writers 1,4,16             threads, each with a connection\n"
    "  --readers 4                  threads that read (readers)\n"
    "  --runs 3  --seconds 3  --warm-up 0.3\n"
    "  --rows 10000                 in the table before\n"
    "  --commits 5000               how many (log, run)\n"
    "  --rounds 100                 how many (failover, transfer)\n"
    "  --busy-timeout 10000         of writers, in ms\n"
    "  --size 1024                  of the database (snapshot) or of the log (restart: 64), in MiB\n"
    "  --cuts 5                     of the connection while a follower catches up (snapshot)\n"
    "  --parameters TEXT            added to the URI of each node, as in '&log_tail=1M'\n"
    "  --dir FOLDER                 where the databases lie for the time: $TMPDIR or /tmp\n"
    "  --wrap COMMAND               put before the command of each child; %n is the node's number, 0 for plain SQLite\n"
    "  --json                       one array of objects\n";

static const struct {
  const char *name;
  void (*run)(const struct options *options);
  const char *variants, *tables, *writers;
  uint32_t runs, rows, run_ms, size_mib;
} benches[] = {
    {"commits", bench_commits, "plain,one,three", "random,rowid", "1,4,16", 3, 10000, 3000, 0},
    {"log", bench_log_bytes, "one", "random,index,rowid", "1,16", 3, 10000, 3000, 0},
    {"readers", bench_readers, "plain,one,three", "rowid", "16", 3, 10000, 3000, 0},
    {"run", bench_run, "three", "random", "16", 3, 10000, 3000, 0},
    {"snapshot", bench_snapshot, "one,three", "rowid", "4", 3, 10000, 5000, 1024},
    {"endless", bench_endless, "three", "update", "16", 1, 100000, 600000, 0},
    {"restart", bench_restart, "one", "update", "16", 3, 500000, 0, 64},
    {"failover", bench_failover, "three", "rowid", "8", 1, 10000, 0, 0},
    {"transfer", bench_transfer, "three", "rowid", "8", 1, 10000, 0, 0},
};

/* The values of a list, each by `find`. */
static size_t parse_list(const char *option, const char *text, long (*find)(const char *word), long values[]) {
  char *copy = strdup(text), *save = NULL;
  size_t n = 0;
  if (!copy) die("no memory");
  for (char *word = strtok_r(copy, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
    long value = find(word);
    if (value < 0 || n == BENCH_LIST_MAX) die("--%s %s: '%s' is not understood; see --help", option, text, word);
    values[n++] = value;
  }
  if (n == 0) die("--%s wants a value; see --help", option);
  free(copy);
  return n;
}

static long find_name(const char *word, const char *const *names, long n) {
  for (long i = 0; i < n; i++)
    if (strcmp(word, names[i]) == 0) return i;
  return -1;
}

static long find_variant(const char *word) {
  return find_name(word, variant_names, N_VARIANTS);
}

static long find_table(const char *word) {
  return find_name(word, table_names, N_TABLE_KINDS);
}

static long find_threads(const char *word) {
  char *end;
  long n = strtol(word, &end, 10);
  return *end == 0 && n >= 1 && n <= BENCH_THREADS_MAX / 2 ? n : -1;
}

static void set_variants(struct options *options, const char *text) {
  long values[BENCH_LIST_MAX];
  options->n_variants = parse_list("variants", text, find_variant, values);
  for (size_t i = 0; i < options->n_variants; i++) options->variants[i] = (enum variant)values[i];
}

static void set_tables(struct options *options, const char *text) {
  long values[BENCH_LIST_MAX];
  options->n_tables = parse_list("tables", text, find_table, values);
  for (size_t i = 0; i < options->n_tables; i++) options->tables[i] = (enum table_kind)values[i];
}

static void set_writers(struct options *options, const char *text) {
  long values[BENCH_LIST_MAX];
  options->n_writers = parse_list("writers", text, find_threads, values);
  for (size_t i = 0; i < options->n_writers; i++) options->writers[i] = (uint32_t)values[i];
}

static uint32_t parse_number(const char *option, const char *text, long low, long high) {
  char *end;
  errno = 0;
  long value = strtol(text, &end, 10);
  if (*end || end == text || errno || value < low || value > high)
    die("--%s %s: a number from %ld to %ld is wanted", option, text, low, high);
  return (uint32_t)value;
}

static uint64_t parse_seconds(const char *option, const char *text) {
  char *end;
  double value = strtod(text, &end);
  if (*end || end == text || !(value >= 0.0 && value <= 86400.0))
    die("--%s %s: seconds from 0 to 86400 are wanted", option, text);
  return (uint64_t)(value * 1000);
}

enum {
  VARIANTS = 1,
  TABLES,
  WRITERS,
  READERS,
  RUNS,
  SECONDS,
  WARM_UP,
  ROWS,
  COMMITS,
  ROUNDS,
  BUSY_TIMEOUT,
  SIZE,
  CUTS,
  PARAMETERS,
  DIR,
  WRAP,
  JSON,
  HELP
};
static const struct option long_options[] = {
    {"variants", required_argument, NULL, VARIANTS},
    {"tables", required_argument, NULL, TABLES},
    {"writers", required_argument, NULL, WRITERS},
    {"readers", required_argument, NULL, READERS},
    {"runs", required_argument, NULL, RUNS},
    {"seconds", required_argument, NULL, SECONDS},
    {"warm-up", required_argument, NULL, WARM_UP},
    {"rows", required_argument, NULL, ROWS},
    {"commits", required_argument, NULL, COMMITS},
    {"rounds", required_argument, NULL, ROUNDS},
    {"busy-timeout", required_argument, NULL, BUSY_TIMEOUT},
    {"size", required_argument, NULL, SIZE},
    {"cuts", required_argument, NULL, CUTS},
    {"parameters", required_argument, NULL, PARAMETERS},
    {"dir", required_argument, NULL, DIR},
    {"wrap", required_argument, NULL, WRAP},
    {"json", no_argument, NULL, JSON},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

static void set_option(struct options *options, const char **dir, int option) {
  switch (option) {
  case VARIANTS: set_variants(options, optarg); break;
  case TABLES: set_tables(options, optarg); break;
  case WRITERS: set_writers(options, optarg); break;
  case READERS: options->readers = parse_number("readers", optarg, 1, BENCH_THREADS_MAX / 2); break;
  case RUNS: options->runs = parse_number("runs", optarg, 1, BENCH_RUNS_MAX); break;
  case SECONDS: options->run_ms = parse_seconds("seconds", optarg); break;
  case WARM_UP: options->warm_up_ms = parse_seconds("warm-up", optarg); break;
  case ROWS: options->rows = parse_number("rows", optarg, 1, 10000000); break;
  case COMMITS: options->commits = parse_number("commits", optarg, 1, 1000000); break;
  case ROUNDS: options->rounds = parse_number("rounds", optarg, 1, BENCH_ROUNDS_MAX); break;
  case BUSY_TIMEOUT: options->busy_timeout_ms = parse_number("busy-timeout", optarg, 0, 60000); break;
  case SIZE: options->bytes = (uint64_t)parse_number("size", optarg, 1, 1 << 20) << 20; break;
  case CUTS: options->cuts = parse_number("cuts", optarg, 0, 100); break;
  case PARAMETERS: options->parameters = optarg; break;
  case DIR: *dir = optarg; break;
  case WRAP: options->wrap = optarg; break;
  case JSON: options->is_json = true; break;
  case HELP: fputs(help, stdout); exit(0);
  default: exit(2);
  }
}

static void on_signal(int signal) {
  (void)signal; /* the wait for a child is interrupted, which ends the program in order */
}

static void set_signals(void) {
  struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, NULL);
}

int main(int argc, char **argv) {
  static char program[PATH_MAX], folder[BENCH_PATH_MAX / 2];
  struct options options = {
      .program = program,
      .folder = folder,
      .parameters = "",
      .readers = 4,
      .commits = 5000,
      .rounds = 100,
      .busy_timeout_ms = 10000,
      .warm_up_ms = 300,
      .cuts = 5,
  };
  const char *dir = getenv("TMPDIR");
  size_t bench = 0, n_benches = sizeof benches / sizeof *benches;
  if (argc == 3 && strcmp(argv[1], "--node") == 0) return child_main(false, argv[2]);
  if (argc == 3 && strcmp(argv[1], "--plain-child") == 0) return child_main(true, argv[2]);
  while (argc > 1 && bench < n_benches && strcmp(argv[1], benches[bench].name) != 0) bench++;
  if (argc < 2 || bench == n_benches) {
    fputs(help, argc == 2 && strcmp(argv[1], "--help") == 0 ? stdout : stderr);
    return argc == 2 && strcmp(argv[1], "--help") == 0 ? 0 : 2;
  }
  set_variants(&options, benches[bench].variants);
  set_tables(&options, benches[bench].tables);
  set_writers(&options, benches[bench].writers);
  options.runs = benches[bench].runs;
  options.rows = benches[bench].rows;
  options.run_ms = benches[bench].run_ms;
  options.bytes = (uint64_t)benches[bench].size_mib << 20;
  optind = 2;
  for (int option; (option = getopt_long(argc, argv, "", long_options, NULL)) != -1;)
    set_option(&options, &dir, option);
  if (optind < argc) die("%s: not understood; see --help", argv[optind]);
  if (!realpath("/proc/self/exe", program)) die("/proc/self/exe: %s", strerror(errno));
  int length = snprintf(folder, sizeof folder, "%s/balsa-bench-XXXXXX", dir && *dir ? dir : "/tmp");
  if (length < 0 || (size_t)length >= sizeof folder) die("--dir %s: too long", dir);
  if (!mkdtemp(folder)) die("%s: %s", folder, strerror(errno));
  set_signals();
  report_open(options.is_json);
  benches[bench].run(&options);
  report_close();
  rmdir(folder);
  return 0;
}
