/*
** A process on each machine: its node, a connection that keeps it, and its clients.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../ext/balsa.h"
#include "../../ext/node.h"
#include "run.h"

#define START_TRIES_MAX 200

/* Who forms the cluster names all that do; who joins names the others. */
static void name_others(const struct run_process *process, char *text, size_t size) {
  uint32_t formers = run.profile->n_formers ? run.profile->n_formers : run.n_machines;
  snprintf(text, size, process->joins ? "&join=" : "&peers=");
  for (uint32_t i = 1; i <= run.n_machines; i++) {
    size_t length = strlen(text);
    const char *comma = text[length - 1] == '=' ? "" : ",";
    if (process->joins && i != process->number)
      snprintf(text + length, size - length, "%s127.0.0.1:%u", comma, 7400 + i);
    if (!process->joins && i <= formers)
      snprintf(text + length, size - length, "%s%u@127.0.0.1:%u", comma, i, 7400 + i);
  }
}

static int open_once(struct run_process *process, sqlite3 **db, char text[RUN_TEXT_MAX]) {
  char uri[1024], others[512] = "";
  if (process->joins || !process->omits_peers) name_others(process, others, sizeof others);
  snprintf(uri, sizeof uri,
           "file:%s/app.db?vfs=balsa&node=%u&listen=127.0.0.1:%u%s&election=%u&heartbeat=%u&commit_timeout=%u&"
           "page_size=%u&auto_vacuum=%s&snapshot_threshold=%llu&log_tail=%llu",
           process->folder, process->number, 7400 + process->number, others, run.election_ms, run.heartbeat_ms,
           run.commit_timeout_ms, run.page_size, run.auto_vacuum, (unsigned long long)run.snapshot_threshold,
           (unsigned long long)run.log_tail);
  text[0] = 0;
  int code = sqlite3_open_v2(uri, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL);
  if (code == SQLITE_OK) {
    sqlite3_extended_result_codes(*db, 1);
    return SQLITE_OK;
  }
  const char *why = vfs_open_error();
  snprintf(text, RUN_TEXT_MAX, "%s", why[0] ? why : sqlite3_errmsg(*db));
  sqlite3_close_v2(*db);
  *db = NULL;
  return code;
}

int process_open(struct run_process *process, sqlite3 **db, char text[RUN_TEXT_MAX]) {
  bool omitted = process->omits_peers; /* another task of the process may find out meanwhile */
  int code = open_once(process, db, text);
  if (code == SQLITE_OK || omitted || !strstr(text, "cannot be changed by peers")) return code;
  process->omits_peers = true;
  return open_once(process, db, text);
}

/* What has died still has threads here. */
static void end_node(struct run_process *process) {
  char path[32];
  snprintf(path, sizeof path, "%s/app.db", process->folder);
  node_stop_at(path, 0);
}

static void run_clients(struct run_process *process) {
  struct task *clients[RUN_CLIENTS_MAX] = {NULL};
  for (uint32_t i = 0; i < run.n_clients; i++) {
    char name[24];
    struct client_start *start = malloc(sizeof *start);
    if (!start) abort();
    *start = (struct client_start){.process = process, .number = i + 1};
    snprintf(name, sizeof name, "client-%u", i + 1);
    clients[i] = task_start(process->machine, name, client_main, start);
  }
  process->life = RUN_UP;
  while (!process->is_ending) {
    task_wait(process, task_now() + 500 * TASK_MS);
    if (!process->is_crashed) check_state(process);
  }
  if (process->is_crashed)
    end_node(process);
  else if (balsa_stop(process->keeper, NULL) != SQLITE_OK)
    task_fail("balsa_stop does not stop");
  for (uint32_t i = 0; i < run.n_clients; i++) task_join(clients[i]);
}

static void process_main(void *arg) {
  struct run_process *process = arg;
  char text[RUN_TEXT_MAX] = "";
  int code = SQLITE_OK;
  for (int tries = 0; tries < START_TRIES_MAX && !process->is_ending; tries++) {
    code = process_open(process, &process->keeper, text);
    if (code == SQLITE_OK || process->is_crashed) break;
    if (!process->has_failing_disk) task_fail("node %u does not start: %d, %s", process->number, code, text);
    task_sleep(50 * TASK_MS);
  }
  if (code == SQLITE_OK && process->keeper) {
    run_clients(process);
    if (sqlite3_close(process->keeper) != SQLITE_OK) task_fail("a connection cannot be closed");
  }
  end_node(process); /* it may have no connection */
  process->keeper = NULL;
  process->life = RUN_DOWN;
}

void process_start(struct run_process *process) {
  process->life = RUN_STARTING;
  process->lives++;
  process->is_crashed = process->is_ending = false;
  process->seen = 0;
  process->task = task_start(process->machine, "process", process_main, process);
}

void process_stop(struct run_process *process) {
  if (!process->task) return;
  process->life = RUN_STOPPING;
  process->is_ending = true;
  task_wake_all(process);
  task_join(process->task);
  process->task = NULL;
  process->life = RUN_DOWN;
}
