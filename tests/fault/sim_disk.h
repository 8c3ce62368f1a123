/*
** A simulated machine for one node: files in memory, a clock that the test sets, randomness from a
** seed. It is a `struct os` (ext/os.h) that can fail in every way a disk fails, and lose its power.
**
** What is durable and what is not:
** - A write is in the page cache: reads see it, power loss may not keep it. os_sync makes the whole
**   file durable; a write through OS_OPEN_DSYNC makes its own sectors (and the size) durable.
** - Power loss decides for each unsynced sector of 512 bytes, by the seed, whether it has its old or
**   its latest content; sometimes all of them, sometimes none. A size that was not synced is the old
**   or the new one. A sector itself is never torn.
** - A name that was made, replaced or removed is durable once os_sync_directory was called for its
**   folder. Until then power loss may keep it or not: all, none, the first few, or each by itself.
** - A sync (or O_DSYNC write) that fails leaves some of its sectors on disk and the others in the page
**   cache only, where no later sync finds them any more, as Linux does.
** - A failed write has written any prefix of its sectors.
**
** - Memory that sim_disk_map gave is the page cache itself, as with mmap: what is stored there is unsynced.
** - A time of modification is as durable as the disk likes: no sync covers it.
**
** After sim_disk_crash, and in and after the call in which a countdown crash strikes, every call gives
** -EIO and changes nothing, until sim_disk_restart. Files opened before stay dead for ever; close them
** all the same (their users' clean-up may run before or after the restart).
**
** Locks are kept between the open files of the disk, as if each were another process's; a crash ends them all.
**
** One thread at a time may be in a disk (sim_machine.h makes it so for many): os_thread_start gives -ENOTSUP, and a wait ends at once at
** its deadline, to which the clock jumps (a wait without a deadline aborts: nobody could end it).
** Paths are plain names separated by '/'; "/" and "." exist from the start.
*/
#ifndef BALSA_TESTS_SIM_DISK_H
#define BALSA_TESTS_SIM_DISK_H

#include "../../ext/os.h"

#define SIM_DISK_SECTOR 512

struct sim_disk;

struct sim_disk *sim_disk_new(uint64_t seed); /* aborts without memory, as all of this does */
void sim_disk_free(struct sim_disk *disk);    /* files still open are closed with it: don't close them later */
struct os *sim_disk_os(struct sim_disk *disk);

/* ---- Clock: os_now gives what was set last; 1 s at first. It may not run backwards. ---- */
void sim_disk_set_time(struct sim_disk *disk, uint64_t now);

/* ---- Faults ---- */

/* The calls that can fail. Everything but READ changes the disk. */
enum sim_disk_call {
  SIM_DISK_READ,
  SIM_DISK_WRITE, /* also os_truncate and os_allocate */
  SIM_DISK_SYNC,  /* os_sync, and the sync of a write through OS_OPEN_DSYNC */
  SIM_DISK_NAME,  /* os_open that creates, os_rename, os_remove, os_make_directory */
  SIM_DISK_SYNC_DIRECTORY,
  SIM_DISK_CALLS /* how many kinds there are */
};

/*
** By the seed: of 1,000,000 calls of a kind about this many fail with -EIO; 0, as at first: none.
** Failing writes are short ones: a prefix is written.
*/
void sim_disk_set_error_rate(struct sim_disk *disk, enum sim_disk_call call, uint32_t per_million);
/* The nth call of this kind from now on (1: the next) fails once with `error` (-EIO, -ENOSPC, …). 0: never mind. */
void sim_disk_fail_nth(struct sim_disk *disk, enum sim_disk_call call, uint64_t nth, int error);
/* All calls of this kind fail with `error` until it is set to 0. */
void sim_disk_fail_all(struct sim_disk *disk, enum sim_disk_call call, int error);
/* Writes that would make all files together larger than this fail with -ENOSPC; UINT64_MAX at first. */
void sim_disk_set_capacity(struct sim_disk *disk, uint64_t bytes);
uint64_t sim_disk_used(const struct sim_disk *disk);

/* ---- Crashes ---- */

enum sim_disk_crash {
  SIM_DISK_POWER_LOSS, /* what was not synced is kept, lost or torn */
  SIM_DISK_KILL,       /* the process dies: the page cache stays as it is */
};

/* Now. Harmless if it is down already. */
void sim_disk_crash(struct sim_disk *disk, enum sim_disk_crash kind);
/*
** In the nth call from now on that changes the disk (1: the next one): of that call any part may
** happen. 0: call it off. Replaces an earlier countdown.
*/
void sim_disk_crash_at(struct sim_disk *disk, uint64_t nth, enum sim_disk_crash kind);
bool sim_disk_is_down(const struct sim_disk *disk);
/* The machine starts again with what survived. Countdowns and fail_all are off; rates and capacity stay. */
void sim_disk_restart(struct sim_disk *disk);

/* While it is set, syncs of every kind (O_DSYNC too) report success and do nothing. */
void sim_disk_set_lying(struct sim_disk *disk, bool lying);

/* ---- Shared memory ---- */

/*
** `size` bytes of the file from `offset`, which it must have already: the same memory for all that ask, until the file is
** gone or the machine goes down. What is stored there after that harms nobody and reaches nothing. NULL: the file is dead.
*/
void *sim_disk_map(struct os_file *file, uint64_t offset, uint64_t size);

/* ---- Looking in, and damage ---- */

/* Calls so far that change the disk: run once to learn how many, then crash at each of them. */
uint64_t sim_disk_calls(const struct sim_disk *disk);

struct sim_disk_counters {
  uint64_t errors[SIM_DISK_CALLS]; /* calls that were made to fail, without those while it is down */
  uint64_t no_space;               /* -ENOSPC by capacity */
  uint64_t power_losses, kills;
  uint64_t sectors_kept, sectors_lost; /* unsynced ones, by power losses and failed syncs */
  uint64_t names_kept, names_lost;
};
void sim_disk_get_counters(const struct sim_disk *disk, struct sim_disk_counters *counters);

/* The bytes of a file as reads see them and their count, or NULL. Valid until the next call that changes the disk. */
const uint8_t *sim_disk_bytes(const struct sim_disk *disk, const char *path, uint64_t *size);
/* Inverts these bits of one byte, durably: damage that no call reports. The byte must exist. */
void sim_disk_flip(struct sim_disk *disk, const char *path, uint64_t offset, uint8_t bits);
/* Removes everything: a wiped machine. Files opened before are dead. The clock and the seed's state go on. */
void sim_disk_wipe(struct sim_disk *disk);

#endif
