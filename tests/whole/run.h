/*
** One run of the simulation of whole nodes: machines with a process each, what clients did there and what they were
** told, and what was seen.
**
** Every transaction of the model inserts a row into `log`, with the place `n` that it has among all of them; a trigger
** moves `counter` along, whose `chain` is a hash of all rows so far. So one read of `counter` says exactly which
** transactions its snapshot holds, and after the run every such read is compared with what became the one history.
*/
#ifndef BALSA_TESTS_WHOLE_RUN_H
#define BALSA_TESTS_WHOLE_RUN_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

#include "../fault/sim_machine.h"
#include "machine.h"
#include "network.h"

#define RUN_CLIENTS_MAX 4 /* of a process */
#define RUN_TEXT_MAX 1024
#define RUN_TOKEN_MAX 96
#define RUN_CHAIN_MODULUS 1000000007

/* What is known of a transaction of the model. */
enum run_fate {
  RUN_NEVER,     /* COMMIT was not asked for, or refused: it is nowhere */
  RUN_COMMITTED, /* SQLITE_OK, or told so by its token */
  RUN_LOST,      /* told so */
  RUN_UNKNOWN,   /* told so; the token is there to ask */
  RUN_SILENT,    /* the process died in the middle of it */
};

struct run_attempt {
  enum run_fate fate;
  uint32_t client, machine;
  int code;  /* what COMMIT said */
  int64_t n; /* its place, as far as it was seen; 0 */
  char token[RUN_TOKEN_MAX];
};

/* A read of `counter`. Any node shows a prefix of the history, and never less than before. */
struct run_read {
  uint32_t machine;
  uint64_t at;
  int64_t n, chain, rows;
  int64_t floor; /* n must not be lower */
};

enum run_life { RUN_DOWN, RUN_STARTING, RUN_UP, RUN_STOPPING };

/* The process of a machine: a node and its clients. */
struct run_process {
  uint32_t number; /* from 1, as its node and machine */
  struct machine *machine;
  struct sim_machine *disk;
  char folder[8]; /* where its disk is mounted */
  enum run_life life;
  uint64_t lives;
  bool is_crashed; /* what it says does not count any more */
  bool is_ending;  /* its clients go */
  bool has_failing_disk;
  bool joins;       /* a cluster that is there, rather than form one with its peers */
  bool omits_peers; /* its cluster has other members by now */
  bool is_member;   /* in the end */
  struct task *task;
  sqlite3 *keeper; /* a connection that is open as long as the process lives */
  char role[32];   /* as its node said last */
  int64_t seen;    /* the highest n that a read or a COMMIT has shown in this life */
};

struct run_profile {
  const char *name;
  uint32_t weight; /* among seeds */
  uint32_t machines;
  uint32_t partitions, cuts, pauses, crashes, stops, slow_disks, full_disks, disk_errors,
      wipes;             /* weights among faults */
  uint32_t n_formers;    /* of the machines: the others join; 0: all of them */
  bool changes;          /* clients change the members, and hand leadership over */
  uint64_t fault_gap_ns; /* between two of them, at most */
  uint64_t stall_ns;     /* how long a single thread may be held up; 0: not for long */
};

struct run {
  uint64_t seed;
  const struct run_profile *profile;
  struct sim_random random;       /* of the main task */
  uint32_t n_machines, n_clients; /* clients of each process */
  struct run_process processes[MACHINES_MAX + 1];
  uint32_t election_ms, heartbeat_ms, commit_timeout_ms, page_size;
  uint64_t snapshot_threshold, log_tail;
  const char *auto_vacuum;
  uint64_t duration_ns; /* of the faults */
  uint32_t think_ms;    /* between two things a client does, at most */
  uint32_t row_bytes;
  uint32_t wiped;            /* a voter's disk: once, while its cluster is whole; 0: not yet */
  bool has_schema, is_quiet; /* quiet: the faults are over, clients stop */
  uint32_t n_busy;           /* clients in the middle of something */
  struct run_attempt *attempts;
  size_t n_attempts, attempts_capacity;
  struct run_read *reads;
  size_t n_reads, reads_capacity;
  uint64_t committed, lost, unknown, refused, silent, crashes, stops, partitions, pauses, errors;
  uint64_t changes, transfers, wipes;
};

extern struct run run;

/* The machine that a path is on: folders are told apart by it. */
struct os *run_os_of(const char *path);

/* ---- process.c ---- */

/* Starts the process of a machine, and its clients. */
void process_start(struct run_process *process);
/* Ends it in order and waits for that; if it was cut off from its disk, as far as that goes. */
void process_stop(struct run_process *process);
/* Opens a connection to the machine's node, which starts it if need be. SQLite's code; the sentence if it failed. */
int process_open(struct run_process *process, sqlite3 **db, char text[RUN_TEXT_MAX]);

/* ---- client.c ---- */

/* A client of a process, until that ends. `arg` is a struct client_start, which it frees. */
struct client_start {
  struct run_process *process;
  uint32_t number;
};
void client_main(void *arg);
/* On the machine that the task is on: makes the tables, or finds them made. */
int client_make_schema(sqlite3 *db);
/* What an operator does: changes the members, hands leadership over. */
void client_change_members(struct run_process *process, sqlite3 *db, struct sim_random *random);
/* A transaction of the model, by itself; its fate goes into the run. */
int client_commit_one(struct run_process *process, sqlite3 *db);
/* Runs SQL; the extended code. */
int client_run(sqlite3 *db, const char *sql);
/* The first column of the first row as a number or a text; SQLite's code. */
int client_ask_number(sqlite3 *db, const char *sql, int64_t *number);
int client_ask_text(sqlite3 *db, const char *sql, char *text, size_t size);

/* ---- faults.c ---- */

/* Things go wrong for a while; then all is well again and every process runs. */
void faults_run(void);

/* ---- check.c ---- */

/* While it runs: the states that nothing of this may bring about. */
void check_state(struct run_process *process);
/* After the faults: all agree, and everything that was ever said is true. Ends the run if not. */
void check_end(void);

#endif
