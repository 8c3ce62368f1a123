/*
** A machine of the simulation: its clock, its processor, and its disk. It is a `struct os` (ext/os.h) that puts the
** scheduler (task.h) before another one's files: whatever a file call does, others may run before it, and a write that
** must be durable takes time.
**
** The process that runs on it is started and stopped by the run's own task; power.h cuts it off.
*/
#ifndef BALSA_TESTS_WHOLE_MACHINE_H
#define BALSA_TESTS_WHOLE_MACHINE_H

#include "../../ext/os.h"
#include "../sim/random.h"
#include "task.h"

#define MACHINES_MAX 7

/* How a machine is made; times are upper bounds, drawn anew for each call. */
struct machine_options {
  uint64_t seed;
  int32_t drift_ppm;
  uint64_t sync_ns, hiccup_ns; /* a durable write; and, rarely, a long one */
  uint32_t hiccup_permille;
};

struct machine *machine_new(uint32_t number, const struct machine_options *options);
struct os *machine_os(struct machine *machine);
const char *machine_name(const struct machine *machine);
uint32_t machine_number(const struct machine *machine);

/* Whose files are its files. Before anything runs on it. */
void machine_set_files(struct machine *machine, struct os *files);

/* Nothing on it runs until then. */
void machine_pause(struct machine *machine, uint64_t until);
bool machine_is_paused(const struct machine *machine);
uint64_t machine_paused_until(const struct machine *machine);
/* The true time at which its clock shows `local`, or a little later. */
uint64_t machine_true_time(const struct machine *machine, uint64_t local);
/* It was switched off and on: its clock starts anew. Nothing may run on it. */
void machine_reset_clock(struct machine *machine);
/* Durable writes take this long from now on, at least; 0: as usual. */
void machine_slow_disk(struct machine *machine, uint64_t ns);

#endif
