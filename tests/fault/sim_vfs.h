/*
** A VFS for SQLite's own files on simulated machines (sim_machine.h): what src/os_unix.c is on a real one, with its locks (the
** process's, on the same bytes) and its shared memory (a file that lives on while the machine runs).
**
** One for the process. Paths are absolute; which machine a file is on is told by the folder it is mounted at. Temporary files
** are memory: nothing of them is to survive.
*/
#ifndef BALSA_TESTS_SIM_VFS_H
#define BALSA_TESTS_SIM_VFS_H

#include "../../vfs/sqlite.h"
#include "sim_machine.h"

#define SIM_VFS_NAME "sim"
#define SIM_VFS_MOUNTS_MAX 16

/* Registers it, as the default VFS too: SQLite takes its time and randomness from there. `clock` is where it waits. */
sqlite3_vfs *sim_vfs_register(struct os *clock);
/* From what xRandomness and SQLite's own generator (of rowids and random()) give from now on. */
void sim_vfs_seed(uint64_t seed);

/* Paths below `folder` (a string that lives as long, without a slash at its end) are on this machine. Made there, too. */
void sim_vfs_mount(const char *folder, struct sim_machine *machine);
/* All files of it are closed. */
void sim_vfs_unmount(const char *folder);
/* The machine that a path is on, as a struct os; NULL: none. For node_machine.os_of. */
struct os *sim_vfs_os_of(const char *path);

#endif
