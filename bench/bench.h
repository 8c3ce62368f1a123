/*
** The benchmarks: what the files of this program share. How to run it and read what it prints: README.md.
**
**   bench.c      options, the help, who does what
**   report.c     tables as text or JSON
**   child.c      a process that opens a database and does what it is told through a pipe
**   cluster.c    starting and stopping such processes; a cluster of them
**   load.c       writers and readers inside such a process
**   patrol.c     writers in every node's process, which go on until they are told to stop
**   histogram.c  latencies
**   watch.c      memory and disk that a child uses, looked at from outside
**   relay.c      a TCP connection that is cut now and then
**   files.c      copies, and whether a snapshot is the database
**   commits.c  log_bytes.c  readers.c  run.c  snapshot.c  endless.c  restart.c
**   succession.c    the benchmarks
*/
#ifndef BALSA_BENCH_H
#define BALSA_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define BENCH_TEXT_MAX 256
#define BENCH_PATH_MAX 512
#define BENCH_THREADS_MAX 128 /* writers and readers of a process */
#define BENCH_NODES_MAX 3
#define BENCH_LIST_MAX 8
#define BENCH_RUNS_MAX 99
#define BENCH_ROUNDS_MAX 1000
#define BENCH_ROW_BYTES 100
#define BENCH_KEY_BYTES 16
#define BENCH_MS UINT64_C(1000000) /* in ns */

/* ---- Latencies: each power of two in 64 steps, so within 1.6 %; the highest one exactly ---- */

#define HISTOGRAM_STEPS 64
#define HISTOGRAM_BUCKETS (HISTOGRAM_STEPS * 36)

struct histogram {
  uint64_t n, max_ns;
  uint32_t counts[HISTOGRAM_BUCKETS];
};
void histogram_add(struct histogram *histogram, uint64_t ns);
void histogram_merge(struct histogram *into, const struct histogram *from);
/* The latency that `share` (0…1) of all do not exceed, in µs. 0 if there are none. */
double histogram_us(const struct histogram *histogram, double share);

/* ---- What a child can be told; requests and replies go through its pipes as they are ---- */

/* Where rows of 100 bytes go. */
enum table_kind {
  TABLE_ROWID,  /* appended: id INTEGER PRIMARY KEY, 100 random bytes */
  TABLE_RANDOM, /* a random key of 16 bytes as PRIMARY KEY of a WITHOUT ROWID table, 84 random bytes */
  TABLE_INDEX,  /* the same row in an ordinary table, so that the key lies in an index beside it */
  TABLE_UPDATE, /* as ROWID, but a random row is given new bytes, and none is added */
  N_TABLE_KINDS,
};
extern const char *const table_names[N_TABLE_KINDS];

enum operation {
  OP_STATUS,
  OP_PREPARE,
  OP_FILL,     /* a table `bulk` of `bytes` bytes of text */
  OP_LOAD,     /* writers and readers */
  OP_SNAPSHOT, /* takes one */
  OP_FIRST,    /* a read, and a write as soon as that works */
  OP_HOLD,     /* begins a read transaction and keeps it */
  OP_PATROL,   /* writers begin, and go on until the end of the process or OP_DISMISS */
  OP_GAPS,     /* times without an acknowledged commit of theirs that reach beyond since_ns */
  OP_DISMISS,  /* they end */
  OP_TRANSFER, /* SELECT balsa_transfer() */
  OP_QUIT
};

#define BENCH_GAPS_MAX 32
#define BENCH_GAP_NS_MIN (1 * BENCH_MS) /* shorter ones do not count */

/* A time in which nothing was acknowledged; CLOCK_MONOTONIC. */
struct gap {
  uint64_t from_ns, to_ns; /* to: 0 while it lasts */
};

struct request {
  enum operation operation;
  enum table_kind table;
  uint32_t rows;  /* PREPARE: to begin with. LOAD: those that readers and updates may ask for, ids 1…rows */
  uint64_t bytes; /* FILL */
  uint32_t writers, readers;
  uint64_t warm_up_ms, run_ms;
  uint64_t commits;         /* not 0: this many and no time limit, no warm-up */
  uint32_t reads_per_s;     /* of each reader; 0: as fast as it can */
  uint32_t busy_timeout_ms; /* of writers and readers */
  bool queued;              /* writers take a mutex of the application around each statement */
  uint64_t log_bytes;       /* LOAD: goes on until the log is this long, run_ms at most */
  /* LOAD: after run_ms a snapshot is taken, and when it is there everybody goes on for run_ms */
  bool has_snapshot;
  uint64_t since_ns; /* GAPS */
};

/* What a load does in its time that counts: before, during and after a snapshot if it has one, else only before. */
enum stage { STAGE_BEFORE, STAGE_DURING, STAGE_AFTER, N_STAGES };

/* One side of a load. */
struct tally {
  uint64_t done;   /* in the time that counts */
  uint64_t errors; /* at any time */
  int first_error; /* extended code of the first one */
  char first_text[BENCH_TEXT_MAX];
  double median_us, high_us, highest_us, max_us; /* high: 99 %, highest: 99.9 % */
};

struct reply {
  bool is_ok;
  char text[BENCH_TEXT_MAX]; /* what failed */
  /* STATUS */
  bool is_leader, is_ready;
  char state[BENCH_TEXT_MAX];
  uint64_t commit_index, applied_index, log_first, log_bytes, wal_frames;
  double cpu_total_us; /* of the process since it began */
  /* LOAD; the snapshot's in the later stages */
  struct tally writes, reads;
  struct tally stage_writes[N_STAGES];
  double stage_seconds[N_STAGES];
  uint64_t wal_frames_max; /* as seen every 100 ms */
  double seconds;
  double cpu_us;                  /* of the process, user and system, in that time */
  uint64_t switches, preemptions; /* context switches that a thread asked for, and others */
  uint64_t acknowledged;          /* with and without warm-up */
  uint64_t rows_after;            /* count(*) after it */
  /* LOAD with a snapshot, SNAPSHOT: its index; SNAPSHOT: and `seconds`, `cpu_us` */
  uint64_t snapshot_index;
  /* FIRST: now_ns() when it was done; and cpu_total_us */
  uint64_t read_at, write_at;
  /* GAPS, DISMISS */
  struct gap gaps[BENCH_GAPS_MAX]; /* in order, the last ones */
  uint32_t n_gaps;
  uint64_t waited_ns; /* GAPS: the longest statement since the last time, whatever became of it */
};

/* The child's side: never returns before its input ends or it is told to quit. Exit code. */
int child_main(bool is_plain, const char *uri);
/* Processor time of this process so far. */
double process_cpu_us(void);
/* Runs the load of `request` in this process. */
void load_run(const char *uri, const struct request *request, struct reply *reply);

/* Writers that go where the leader is: those of a node that does not lead only try now and then. */
void patrol_begin(const char *uri, const struct request *request, struct reply *reply);
void patrol_gaps(uint64_t since_ns, struct reply *reply);
/* Fills acknowledged, and writes.errors and its first: what failed otherwise than because another node leads, or none. */
void patrol_end(struct reply *reply);

/* ---- The parent's side. Everything here ends the program with a sentence if it fails. ---- */

struct options {
  const char *program;    /* to exec as a child */
  const char *folder;     /* of this run, removed at the end */
  const char *wrap;       /* command before each child's own; NULL none */
  const char *parameters; /* of the URI of each node, beginning with &; "" none */
  bool is_relayed;        /* the last node of three is reached through a relay */
  enum table_kind tables[BENCH_LIST_MAX];
  size_t n_tables;
  enum variant {
    VARIANT_PLAIN,  /* SQLite without Balsa */
    VARIANT_QUEUED, /* likewise, and the application lets its writers in one by one */
    VARIANT_ONE,    /* Balsa, a cluster of one, no network */
    VARIANT_THREE,  /* Balsa, three processes on loopback */
    N_VARIANTS,
  } variants[BENCH_LIST_MAX];
  size_t n_variants;
  uint32_t writers[BENCH_LIST_MAX];
  size_t n_writers;
  uint32_t readers, rows, runs, commits, rounds, busy_timeout_ms, cuts;
  uint64_t bytes; /* of the database (snapshot), of the log (restart) */
  uint64_t run_ms, warm_up_ms;
  bool is_json;
};
extern const char *const variant_names[N_VARIANTS];

struct child {
  pid_t pid;
  int to, from; /* pipes */
};

struct cluster {
  enum variant variant;
  size_t n_children;
  struct child children[BENCH_NODES_MAX];
  char paths[BENCH_NODES_MAX][BENCH_PATH_MAX]; /* of the database files */
  char uris[BENCH_NODES_MAX][2 * BENCH_PATH_MAX];
  struct child *leader; /* who writes: also with one node and without Balsa */
  struct relay *relay;  /* before the last node; NULL none */
};

/* `number` is for --wrap: 0 plain, else the node. */
void child_start(struct child *child, const struct options *options, bool is_plain, const char *uri, unsigned number);
void child_stop(struct child *child);
/* SIGKILL. */
void child_kill(struct child *child);
/* From now on an answer may take this long. */
void child_patience_ms(uint64_t ms);
void child_send(const struct child *child, const struct request *request);
void child_receive(const struct child *child, struct reply *reply);
void child_ask(const struct child *child, const struct request *request, struct reply *reply);

/* A new database, or a new cluster in which all nodes are ready. */
void cluster_start(struct cluster *cluster, const struct options *options, enum variant variant);
/* Until its first n_children nodes are ready and one of them leads: finds the leader. */
void cluster_wait_ready(struct cluster *cluster);
/* Stops in order and removes the files. */
void cluster_stop(struct cluster *cluster, const struct options *options);
/* Makes the table, with rows in it, and waits until all nodes have them. */
void cluster_prepare(struct cluster *cluster, enum table_kind table, uint32_t rows);
/* A node that was stopped or killed begins again, with the same URI. */
void cluster_restart(struct cluster *cluster, const struct options *options, size_t node);
/* Until the node has applied what the leader has committed now. */
void cluster_wait_applied(struct cluster *cluster, size_t node, uint64_t limit_ms);
/* Processor time of all its processes so far, in us. */
double cluster_cpu_us(const struct cluster *cluster);
/* Every acknowledged row must be there. */
void cluster_check(const struct reply *reply, uint32_t rows_before);

/* ---- Memory and disk of a child ---- */

struct watched {
  double rss_mib, rss_max_mib;      /* resident: now, and at its peak since the watch began (the kernel's own mark) */
  double anonymous_max_mib;         /* what no file backs: heap and stacks */
  double shm_max_mib;               /* the -shm file, which is mapped and part of what is resident */
  double disk_max_mib, wal_max_mib; /* blocks of the database's folder, the -wal among them */
};
struct watch;
/* Looks every 20 ms. `path` is of the database file. */
struct watch *watch_start(const struct child *child, const char *path);
struct watched watch_now(struct watch *watch);
struct watched watch_stop(struct watch *watch);

/* ---- A relay: connections to `port` go to `target`, both on loopback ---- */

struct relay;
struct relay *relay_start(uint16_t target, uint16_t *port);
/* Closes all connections whenever another `every` bytes have come through towards the target, `times` times. */
void relay_cut(struct relay *relay, uint64_t every, uint32_t times);
/* How often it has. */
uint32_t relay_cuts(struct relay *relay);
void relay_stop(struct relay *relay);

/* ---- Files ---- */

/* Seconds that it takes to copy a file and sync the copy. */
double copy_seconds(const char *from, const char *to);
uint64_t file_bytes(const char *path);
/* The newest file in the snapshots of the database at `path`. */
void find_snapshot(const char *path, char snapshot[BENCH_PATH_MAX]);
/*
** Unpacks the snapshot with `lz4 -d` to `unpacked`, which plain SQLite must find in order, with the rows of `bulk` and the
** first `rows` ones of `t` of the live database, no more and no fewer.
*/
void check_snapshot(const char *snapshot, const char *unpacked, const char *live, uint64_t rows);
/* Two live databases must have the same rows. */
void check_same(const char *path, const char *other);

/* Prints the sentence, ends the children, removes the files, exits. */
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
uint64_t now_ns(void);

/* ---- Output ---- */

struct column {
  const char *name;
  int width;    /* negative: a text, to the left */
  int decimals; /* of a number */
};
struct cell {
  const char *text; /* NULL: a number */
  double number;
};
#define TEXT(value) ((struct cell){.text = (value)})
#define NUMBER(value) ((struct cell){.number = (double)(value)})

/* `bench` names it in JSON; the title is for people. */
void report_begin(const char *bench, const struct column *columns, size_t n_columns, const char *title);
void report_row(const struct cell *cells);
void report_end(void);
void report_open(bool is_json);
/* Prints the JSON. */
void report_close(void);
/* Middle value; sorts. */
double median(double *values, size_t n);

/* ---- The benchmarks ---- */

void bench_commits(const struct options *options);
void bench_log_bytes(const struct options *options);
void bench_readers(const struct options *options);
void bench_run(const struct options *options);
void bench_snapshot(const struct options *options);
void bench_endless(const struct options *options);
void bench_restart(const struct options *options);
void bench_failover(const struct options *options);
void bench_transfer(const struct options *options);

#endif
