/*
** What goes wrong, when, and for how long.
*/
#include <stdio.h>
#include <string.h>

#include "run.h"

#define FULL_BYTES_MAX (200u << 10)

static uint64_t below(uint64_t n) {
  return sim_random_below(&run.random, n);
}

static uint64_t elections(uint64_t permille) {
  return (uint64_t)run.election_ms * permille / 1000 * TASK_MS;
}

static struct run_process *some_process(void) {
  return &run.processes[1 + below(run.n_machines)];
}

static uint32_t leader(void) {
  for (uint32_t i = 1; i <= run.n_machines; i++) {
    char role[32];
    struct run_process *process = &run.processes[i];
    if (process->life != RUN_UP || process->is_crashed || machine_is_paused(process->machine)) continue;
    /* Its own thread asks: this one must not wait there. */
    snprintf(role, sizeof role, "%s", process->role);
    if (role[0] == 'l' && role[1] == 'e' && role[2] == 'a' && role[3] == 'd') return i;
  }
  return 1 + (uint32_t)below(run.n_machines);
}

/* Mostly whoever leads: there things can go wrong. */
static struct run_process *some_victim(void) {
  return below(2) ? &run.processes[leader()] : some_process();
}

/* ---- Network ---- */

static void part(void) {
  uint32_t one = leader(), kind = (uint32_t)below(4);
  run.partitions++;
  for (uint32_t a = 1; a <= run.n_machines; a++) {
    for (uint32_t b = 1; b <= run.n_machines; b++) {
      bool is_apart = kind == 3 ? below(2) : (a == one) != (b == one);
      if (!is_apart || a == b) continue;
      if (kind == 0 || kind == 3 || (kind == 1 && a == one) || (kind == 2 && b == one)) network_block(a, b, true);
    }
  }
  task_note("partition", one, kind);
}

static void cut(void) {
  uint32_t a = leader(), b = 1 + (uint32_t)below(run.n_machines);
  task_note("cut", a, b);
  if (a != b) network_cut(a, b);
}

/* ---- Disks ---- */

static void fill_disk(struct run_process *process) {
  if (process->is_crashed || sim_machine_is_down(process->disk)) return;
  task_note("full", process->number, 0);
  process->has_failing_disk = true;
  sim_machine_set_room(process->disk, below(FULL_BYTES_MAX));
}

static void break_disk(struct run_process *process) {
  static const enum sim_disk_call calls[] = {SIM_DISK_READ, SIM_DISK_WRITE, SIM_DISK_SYNC, SIM_DISK_SYNC_DIRECTORY};
  if (process->is_crashed || sim_machine_is_down(process->disk)) return;
  task_note("error", process->number, 0);
  run.errors++;
  process->has_failing_disk = true;
  sim_machine_fail_nth(process->disk, calls[below(4)], 1 + below(40), -5);
}

/* What has failed has failed: the process may have to start again. */
static void repair_disk(struct run_process *process) {
  machine_slow_disk(process->machine, 0);
  sim_machine_set_room(process->disk, UINT64_MAX);
  for (int call = 0; call < SIM_DISK_CALLS; call++) sim_machine_fail_nth(process->disk, (enum sim_disk_call)call, 0, 0);
}

static void repair_disks(void) {
  for (uint32_t i = 1; i <= run.n_machines; i++) repair_disk(&run.processes[i]);
}

/* ---- Processes ---- */

static void crash(struct run_process *process) {
  bool is_power = below(2) == 0;
  if (process->life == RUN_DOWN || process->life == RUN_STOPPING) return;
  task_note("crash", process->number, is_power);
  run.crashes++;
  process->is_crashed = true;
  network_cut_off(process->number);
  sim_machine_crash(process->disk, is_power ? SIM_DISK_POWER_LOSS : SIM_DISK_KILL);
  process_stop(process);
  sim_machine_restart(process->disk);
  repair_disk(process);
  process->has_failing_disk = false;
  machine_reset_clock(process->machine);
}

static void stop(struct run_process *process) {
  if (process->life != RUN_UP) return;
  task_note("stop", process->number, 0);
  run.stops++;
  process_stop(process);
}

/* All that was on it is gone; it comes back as somebody new. */
static void wipe(struct run_process *process) {
  struct os *os = sim_machine_os(process->disk);
  if (process->life == RUN_STARTING || process->life == RUN_STOPPING) return;
  task_note("wipe", process->number, 0);
  run.wipes++;
  if (process->life == RUN_UP) crash(process);
  sim_disk_wipe(sim_machine_disk(process->disk));
  if (os_make_directory(os, process->folder) != 0 || os_sync_directory(os, "/") != 0) task_fail("no folder");
  process->joins = true;
  process->role[0] = 0;
}

/* One voter's, while all others are there and well: its log may be needed otherwise. */
static void wipe_once(void) {
  struct run_process *victim = some_victim();
  if (run.wiped) return;
  for (uint32_t i = 1; i <= run.n_machines; i++) {
    const struct run_process *process = &run.processes[i];
    bool is_well = process->life == RUN_UP && !process->is_crashed && !process->has_failing_disk;
    bool is_voter = strcmp(process->role, "leader") == 0 || strcmp(process->role, "follower") == 0;
    if (!is_well || !is_voter) return;
  }
  run.wiped = victim->number;
  wipe(victim);
}

static void start_some(void) {
  for (uint32_t i = 1; i <= run.n_machines; i++)
    if (run.processes[i].life == RUN_DOWN && below(2)) process_start(&run.processes[i]);
}

/* ---- All together ---- */

static void heal_some(void) {
  if (below(2)) network_heal();
  if (below(2)) repair_disks();
  for (uint32_t i = 1; i <= run.n_machines; i++)
    if (strcmp(run.processes[i].role, "removed") == 0 && below(2)) wipe(&run.processes[i]);
  start_some();
}

static void go_wrong(void) {
  const struct run_profile *p = run.profile;
  const uint32_t weights[] = {p->partitions, p->cuts,       p->pauses,      p->crashes, p->stops,
                              p->slow_disks, p->full_disks, p->disk_errors, p->wipes};
  uint32_t total = 0, kind = 0;
  struct run_process *victim = some_victim();
  for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) total += weights[i];
  uint64_t at = below(total);
  while (at >= weights[kind]) at -= weights[kind++];
  switch (kind) {
  case 0: part(); break;
  case 1: cut(); break;
  case 2:
    task_note("pause", victim->number, 0);
    run.pauses++;
    machine_pause(victim->machine, task_now() + below(elections(below(4) ? 1500 : 6000)));
    break;
  case 3: crash(victim); break;
  case 4: stop(victim); break;
  case 5: machine_slow_disk(victim->machine, below(elections(2000))); break;
  case 6: fill_disk(victim); break;
  case 7: break_disk(victim); break;
  default: wipe_once();
  }
}

void faults_run(void) {
  uint64_t until = task_now() + run.duration_ns;
  while (task_now() < until) {
    task_sleep(1 + below(run.profile->fault_gap_ns));
    if (below(3) == 0)
      heal_some();
    else
      go_wrong();
  }
  run.is_quiet = true;
  network_heal();
  repair_disks();
  for (uint32_t i = 1; i <= run.n_machines; i++) {
    struct run_process *process = &run.processes[i];
    /* One whose log could not be written goes on only after a start. */
    if (process->has_failing_disk) process_stop(process);
    process->has_failing_disk = false;
    if (process->life == RUN_DOWN) process_start(process);
  }
}
