/*
** A machine for a node with threads: a simulated disk (sim_disk.h) that many threads may use, over a struct os that gives
** clock, threads and waits: the real one, or a scheduler.
**
** Every call that changes the disk is counted, kept in a short trace, and belongs to a *site*: what is called on what kind of
** file in which phase of the test ("write log/segment run"). A test can crash at the nth call, and have the syncs of one
** site do nothing.
*/
#ifndef BALSA_TESTS_SIM_MACHINE_H
#define BALSA_TESTS_SIM_MACHINE_H

#include <stdio.h>

#include "sim_disk.h"

#define SIM_MACHINE_SITE_MAX 96

struct sim_machine;

/* `below` gives clock, threads and waits, and lives longer. Aborts without memory, as all of this does. */
struct sim_machine *sim_machine_new(uint64_t seed, struct os *below);
/* No thread uses it any more and all its files are closed. */
void sim_machine_free(struct sim_machine *machine);
struct os *sim_machine_os(struct sim_machine *machine);

/* The disk, for the calls of sim_disk.h that no function here covers: while no thread but the caller's uses the machine. */
struct sim_disk *sim_machine_disk(struct sim_machine *machine);

/* Called once for each crash, on the thread in whose call it struck, with no lock held; NULL: nobody. */
void sim_machine_on_crash(struct sim_machine *machine, void (*call)(void *ctx), void *ctx);
/* As sim_disk_crash_at, sim_disk_crash, sim_disk_is_down, sim_disk_restart, sim_disk_calls, sim_disk_fail_nth. */
void sim_machine_crash_at(struct sim_machine *machine, uint64_t nth, enum sim_disk_crash kind);
void sim_machine_crash(struct sim_machine *machine, enum sim_disk_crash kind);
bool sim_machine_is_down(struct sim_machine *machine);
void sim_machine_restart(struct sim_machine *machine);
uint64_t sim_machine_calls(struct sim_machine *machine);
void sim_machine_fail_nth(struct sim_machine *machine, enum sim_disk_call call, uint64_t nth, int error);
/*
** The nth call from now on at a site whose name has `part` in it fails once with `error` (of an O_DSYNC write: its sync, if
** `in_sync`). A string that lives as long; NULL: none.
*/
void sim_machine_fail_site(struct sim_machine *machine, const char *part, uint64_t nth, int error, bool in_sync);
/* How many such calls have failed. */
uint64_t sim_machine_failed(struct sim_machine *machine);
/* Of the calls at such sites, `permille` take `ms` before they begin, or until the machine goes down. */
void sim_machine_stall(struct sim_machine *machine, const char *part, uint32_t permille, uint32_t ms);
/* No more than `bytes` above what the disk holds now; UINT64_MAX: no limit. */
void sim_machine_set_room(struct sim_machine *machine, uint64_t bytes);

/* What the test is doing: part of the sites' names from now on. A string that lives as long as the machine. */
void sim_machine_set_phase(struct sim_machine *machine, const char *phase);
/* The syncs of this site do nothing (and say that they did); NULL: all work. Lives as long as the machine. */
void sim_machine_skip_syncs(struct sim_machine *machine, const char *site);
/* Every site with a sync so far, and how many. Any thread. */
void sim_machine_each_sync(struct sim_machine *machine, void (*each)(void *ctx, const char *site, uint64_t count),
                           void *ctx);

/* A copy of a file as reads see it, for the caller to free(); NULL: it is not there. */
uint8_t *sim_machine_copy(struct sim_machine *machine, const char *path, uint64_t *size);

/* The last calls that changed the disk, oldest first: number, thread, site, file, place, size, result. */
void sim_machine_print_trace(struct sim_machine *machine, FILE *to, unsigned calls);

/* As sim_disk_map, for a file of this machine. */
void *sim_machine_map(struct os_file *file, uint64_t offset, uint64_t size);

#endif
