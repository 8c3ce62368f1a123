/*
** Damaged files: each seed takes the files of a node with a history, damages one of them, starts the node, and looks.
**
**   damage [--seed N | --seeds A..B] [--keep]
**
** What must hold, for every seed:
**
**   1. no signal, no failed assertion, no hang
**   2. whatever is read is the state after some transaction, all of it, and no acknowledged one is missing
**   3. what cannot be healed is refused in a sentence that names the file (and the offset, if bytes are wrong); nothing has
**      been changed then that keeps the node from starting once the file is back
**   4. what was healed stays so: the node writes, stops and starts again
**
** What no program can tell from its own files: that they are all as they were earlier. So a log that is an older one, or
** has lost its last segment, may end earlier (docs/guarantees.md); still it is a state after some transaction.
**
** The driver itself never starts a node, since a process with one cannot fork: histories and starts are children.
*/
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "files.h"
#include "history.h"
#include "vfs/vfs.h"

#define CHILD_SECONDS 60 /* far longer than any start takes */
#define TRIES_MAX 100    /* of damages that do not apply */
#define MORE 3           /* transactions after a start */
#define KILL_US_MAX 20000

/* What a child says. */
struct shared {
  volatile unsigned attempted, acknowledged; /* of a history */
  int code;                                  /* of the open */
  enum history_check check;
  unsigned n;
  char text[HISTORY_TEXT_MAX];
};

struct made {
  bool is_made;
  unsigned attempted, acknowledged, older; /* older: acknowledged when the copy was made */
};

static struct shared *shared;
static struct made made[HISTORIES];
static char root[128];
static bool keeps;
static uint64_t counts[FILE_KINDS][DAMAGES], healed, refused;

static void die(const char *what) {
  fprintf(stderr, "damage: %s: %s\n", what, strerror(errno));
  exit(3);
}

/* A shell command; it must work. */
__attribute__((format(printf, 1, 2))) static void shell(const char *format, ...) {
  char command[2048];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(command, sizeof command, format, arguments);
  va_end(arguments);
  if (system(command) != 0) die(command);
}

/* ---- Histories ---- */

static int live(const struct history *history, const char *folder, int pipe_end) {
  sqlite3 *db = NULL;
  if (balsa_init() != SQLITE_OK || history_open(history, folder, &db) != SQLITE_OK || history_begin(db) != SQLITE_OK) {
    fprintf(stderr, "history %u: %s %s\n", history->number, vfs_open_error(), db ? sqlite3_errmsg(db) : "");
    return 1;
  }
  for (unsigned n = 1; n <= history->transactions || !history->stops; n++) {
    shared->attempted = n;
    if (history_run(history, db, n) != SQLITE_OK) {
      fprintf(stderr, "history %u, transaction %u: %s\n", history->number, n, sqlite3_errmsg(db));
      return 1;
    }
    shared->acknowledged = n;
    for (int i = 0; i < 2; i++)
      if (n == history->snapshots[i] && sqlite3_exec(db, "SELECT balsa_snapshot()", NULL, NULL, NULL) != SQLITE_OK)
        return 1;
    if (n == history->older) raise(SIGSTOP);
    if (n == history->transactions && write(pipe_end, "", 1) != 1) return 1;
  }
  return sqlite3_close(db) == SQLITE_OK ? 0 : 1; /* the exit stops the node in order */
}

static void make_part(const char *folder) {
  char path[512];
  snprintf(path, sizeof path, "%s/app.db-balsa/snapshots/snapshot.part", folder);
  FILE *file = fopen(path, "wb");
  for (int i = 0; file && i < 10000; i++) fputc(i * 7, file);
  if (!file || fclose(file) != 0) die(path);
}

static void make_history(unsigned number) {
  struct history history;
  char folder[256], older[256], byte;
  int ends[2], status = 0;
  history_describe(number, &history);
  snprintf(folder, sizeof folder, "%s/history-%u", root, number);
  snprintf(older, sizeof older, "%s/older-%u", root, number);
  if (mkdir(folder, 0755) != 0 || pipe(ends) != 0) die(folder);
  pid_t child = fork();
  if (child < 0) die("fork");
  if (child == 0) exit(live(&history, folder, ends[1]));
  close(ends[1]);
  if (waitpid(child, &status, WUNTRACED) != child || !WIFSTOPPED(status)) die("a history ended early");
  shell("cp -a '%s' '%s'", folder, older);
  made[number].older = shared->acknowledged;
  kill(child, SIGCONT);
  if (read(ends[0], &byte, 1) != 1) die("a history ended early");
  close(ends[0]);
  if (!history.stops) {
    usleep((useconds_t)(number * 7919 % KILL_US_MAX));
    kill(child, SIGKILL);
  }
  waitpid(child, &status, 0);
  if (history.stops && status != 0) die("a history did not end well");
  if (history.keeps_part) make_part(folder);
  made[number].attempted = shared->attempted;
  made[number].acknowledged = shared->acknowledged;
  made[number].is_made = true;
}

/* ---- A start ---- */

/* It goes on: transactions, a stop, a start. */
static void go_on(const struct history *history, const char *folder, sqlite3 *db) {
  for (unsigned i = 0; i < MORE && shared->check == HISTORY_SAME; i++) {
    if (history_run(history, db, shared->n + 1) != SQLITE_OK) {
      shared->check = HISTORY_UNREADABLE;
      snprintf(shared->text, sizeof shared->text, "transaction %u: %s", shared->n + 1, sqlite3_errmsg(db));
    } else {
      shared->check = history_check(history, db, &shared->n, shared->text);
    }
  }
  unsigned n = shared->n;
  if (shared->check != HISTORY_SAME) return;
  balsa_stop(db, NULL);
  sqlite3_close(db);
  shared->code = history_open(history, folder, &db);
  snprintf(shared->text, sizeof shared->text, "%s", vfs_open_error());
  if (shared->code == SQLITE_OK) shared->check = history_check(history, db, &shared->n, shared->text);
  if (shared->code == SQLITE_OK && shared->check == HISTORY_SAME && shared->n != n) {
    shared->check = HISTORY_WRONG;
    snprintf(shared->text, sizeof shared->text, "after a stop in order at %u it is at %u", n, shared->n);
  }
  shared->n = n - MORE;
}

static int start(const struct history *history, const char *folder, bool goes_on) {
  sqlite3 *db = NULL;
  alarm(CHILD_SECONDS);
  if (balsa_init() != SQLITE_OK) return 1;
  shared->code = history_open(history, folder, &db);
  if (shared->code != SQLITE_OK) {
    snprintf(shared->text, sizeof shared->text, "%s", vfs_open_error());
    return 0;
  }
  shared->check = history_check(history, db, &shared->n, shared->text);
  if (shared->check == HISTORY_SAME && goes_on) go_on(history, folder, db);
  return 0;
}

/* The wait status of a child that has started the node; `shared` tells the rest. */
static int run_start(const struct history *history, const char *folder, bool goes_on) {
  int status = 0;
  memset(shared, 0, sizeof *shared);
  fflush(NULL);
  pid_t child = fork();
  if (child < 0) die("fork");
  if (child == 0) {
    const struct rlimit none = {0};
    setrlimit(RLIMIT_CORE, &none);
    exit(start(history, folder, goes_on));
  }
  if (waitpid(child, &status, 0) != child) die("waitpid");
  return status;
}

/* ---- A seed ---- */

struct run {
  uint64_t seed;
  struct sim_random chance;
  struct history history;
  const struct made *made;
  struct file file;
  enum damage damage;
  char folder[256], intact[256], older[256], what[FILE_TEXT_MAX];
};

static bool choose_file(struct run *run) {
  struct file files[FILES_MAX], chosen[FILES_MAX];
  size_t n = files_list(run->folder, files), m = 0;
  enum file_kind kind = (enum file_kind)sim_random_below(&run->chance, FILE_KINDS);
  for (size_t i = 0; i < n; i++)
    if (files[i].kind == kind) chosen[m++] = files[i];
  if (m > 0) run->file = chosen[sim_random_below(&run->chance, m)];
  return m > 0;
}

/* Its files are copies, with inodes that no node knows: after a start and a stop they are as a node left them. */
static void settle(const struct run *run) {
  if (!run->history.stops) return;
  if (run_start(&run->history, run->folder, false) != 0 || shared->code != SQLITE_OK) die("a copy does not start");
}

static void damage_one(struct run *run) {
  for (int i = 0; i < TRIES_MAX; i++) {
    if (!choose_file(run)) continue;
    run->damage = (enum damage)sim_random_below(&run->chance, DAMAGES);
    bool keeps_time = sim_random_chance(&run->chance, 500);
    /* What a program does to a database after a stop in order is its owner's will (test_node_damage.c), unless it is none then. */
    if (run->file.kind == FILE_DATABASE && run->history.stops) keeps_time = true;
    bool is_seen_by_programs = run->file.kind == FILE_DATABASE || run->file.kind == FILE_WAL;
    if (is_seen_by_programs && run->history.stops && run->damage == DAMAGE_OLDER) continue;
    if (run->file.kind == FILE_DATABASE && keeps_time) settle(run);
    if (file_damage(run->folder, run->older, run->file.name, run->damage, keeps_time, &run->chance, run->what)) return;
  }
  die("nothing can be damaged");
}

/* What the log, an older one or its last piece lost, cannot know. */
static unsigned lowest(const struct run *run) {
  if (run->file.kind != FILE_LOG) return run->made->acknowledged;
  switch (run->damage) {
  case DAMAGE_OLDER: return run->made->older;
  case DAMAGE_DELETE: return 0;
  case DAMAGE_SECTOR: /* of the very last batch: as a torn one */
  case DAMAGE_SWAP: return run->made->acknowledged - 1;
  default: return run->made->acknowledged;
  }
}

/* These are made again from the log, or not needed. */
static bool must_heal(const struct run *run) {
  switch (run->file.kind) {
  case FILE_DATABASE:
  case FILE_WAL:
  case FILE_SHM:
  case FILE_PART:
  case FILE_LOCK: return true;
  default: return false;
  }
}

__attribute__((format(printf, 2, 3))) static bool fail(const struct run *run, const char *format, ...) {
  va_list arguments;
  printf("seed %llu: history %u (%s), %s, %s %s: ", (unsigned long long)run->seed, run->history.number,
         run->history.stops ? "stopped" : "killed", run->file.name, damages[run->damage], run->what);
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  printf("\n");
  return false;
}

static bool check_opened(const struct run *run, unsigned low) {
  if (shared->check != HISTORY_SAME) return fail(run, "opened, then %s", shared->text);
  if (shared->n >= low && shared->n <= run->made->attempted) return true;
  return fail(run, "the state after transaction %u, not %u to %u", shared->n, low, run->made->attempted);
}

static bool check_ended(const struct run *run, int status) {
  if (status == 0) return true;
  if (!WIFSIGNALED(status)) return fail(run, "ended with status %d", WEXITSTATUS(status));
  return fail(run, "%s (signal %d)", WTERMSIG(status) == SIGALRM ? "hangs" : "crashed", WTERMSIG(status));
}

/* What was lost is back: nothing else may be missing. */
static bool check_restored(const struct run *run) {
  char from[1024], to[1024];
  snprintf(from, sizeof from, "%s/%s", run->intact, run->file.name);
  snprintf(to, sizeof to, "%s/%s", run->folder, run->file.name);
  shell("cp -a '%s' '%s'", from, to);
  if (!check_ended(run, run_start(&run->history, run->folder, true))) return false;
  if (shared->code != SQLITE_OK) return fail(run, "refused, and with the file restored again: %s", shared->text);
  return check_opened(run, run->made->acknowledged);
}

static bool check_refused(const struct run *run) {
  bool has_bytes = run->damage == DAMAGE_BITS || run->damage == DAMAGE_SECTOR || run->damage == DAMAGE_SWAP;
  bool needs_offset = has_bytes && (run->file.kind == FILE_LOG || run->file.kind == FILE_SNAPSHOT);
  if (must_heal(run)) return fail(run, "not healed: %s", shared->text);
  if (!strstr(shared->text, run->folder)) return fail(run, "refused without naming a file: %s", shared->text);
  if (needs_offset && !strstr(shared->text, "offset")) return fail(run, "refused without an offset: %s", shared->text);
  return check_restored(run);
}

static bool run_seed(uint64_t seed) {
  struct run run = {.seed = seed, .chance = {.state = seed}};
  unsigned number = (unsigned)sim_random_below(&run.chance, HISTORIES);
  history_describe(number, &run.history);
  if (!made[number].is_made) make_history(number);
  run.made = &made[number];
  snprintf(run.intact, sizeof run.intact, "%s/history-%u", root, number);
  snprintf(run.older, sizeof run.older, "%s/older-%u", root, number);
  snprintf(run.folder, sizeof run.folder, "%s/seed-%llu", root, (unsigned long long)seed);
  shell("cp -a '%s' '%s'", run.intact, run.folder);
  damage_one(&run);
  counts[run.file.kind][run.damage]++;
  bool ok = check_ended(&run, run_start(&run.history, run.folder, true));
  bool is_open = ok && shared->code == SQLITE_OK;
  if (ok) ok = is_open ? check_opened(&run, lowest(&run)) : check_refused(&run);
  healed += ok && is_open;
  refused += ok && !is_open;
  if (!keeps || ok) shell("rm -rf '%s'", run.folder);
  return ok;
}

/* ---- The program ---- */

static bool parse_seeds(const char *text, uint64_t *first, uint64_t *last) {
  char *end;
  *first = *last = strtoull(text, &end, 10);
  if (end == text) return false;
  if (strncmp(end, "..", 2) == 0) *last = strtoull(end + 2, &end, 10);
  return *end == 0 && *first <= *last;
}

static void print_counts(void) {
  for (int kind = 0; kind < FILE_KINDS; kind++) {
    printf("%-14s", file_kinds[kind]);
    for (int damage = 0; damage < DAMAGES; damage++)
      printf(" %s %llu%s", damages[damage], (unsigned long long)counts[kind][damage],
             damage + 1 < DAMAGES ? "," : "\n");
  }
  printf("%llu healed, %llu refused\n", (unsigned long long)healed, (unsigned long long)refused);
}

int main(int argc, char **argv) {
  uint64_t first = 1, last = 200, passed = 0, failed = 0;
  for (int i = 1; i < argc; i++) {
    if (strncmp(argv[i], "--seed", 6) == 0 && i + 1 < argc && parse_seeds(argv[i + 1], &first, &last)) {
      i++;
    } else if (strcmp(argv[i], "--keep") == 0) {
      keeps = true;
    } else {
      fprintf(stderr, "usage: damage [--seed N | --seeds A..B] [--keep]\n");
      return 3;
    }
  }
  setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
  snprintf(root, sizeof root, "%s/balsa-damage-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (!mkdtemp(root) || shared == MAP_FAILED) die(root);
  for (uint64_t seed = first; seed <= last; seed++) {
    if (run_seed(seed))
      passed++;
    else
      failed++;
  }
  print_counts();
  if (failed && keeps)
    printf("kept: %s\n", root);
  else
    shell("rm -rf '%s'", root);
  printf("%llu passed, %llu failed\n", (unsigned long long)passed, (unsigned long long)failed);
  return failed ? 1 : 0;
}
