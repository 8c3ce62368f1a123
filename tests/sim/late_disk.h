/*
** A disk whose writes become durable late: a struct os over files in memory, for the simulation.
**
** A flush of the real store is one call, but a real disk needs time for it, and the machine may
** die meanwhile. So every write, sync and rename is noted as an operation with a number. The flush
** returns at once; the driver lets its operations count as durable when virtual time has come
** (late_disk_settle). If power is lost before that, it is lost between any two of them: what a sync
** before that moment covered is there; each later or unsynced write is there, is missing, or is
** torn at 512-byte sectors, independently of the others. Names become durable by
** os_sync_directory, in order. Folders exist without being made.
*/
#ifndef BALSA_SIM_LATE_DISK_H
#define BALSA_SIM_LATE_DISK_H

#include "../../ext/os.h"
#include "random.h"

struct late_disk;

/* `random` is used until the disk is freed. Aborts without memory. */
struct late_disk *late_disk_new(struct sim_random *random);
void late_disk_free(struct late_disk *disk);
struct os *late_disk_os(struct late_disk *disk);

/* Number that the next operation will have. */
uint64_t late_disk_position(const struct late_disk *disk);
/* Operations below `position` have reached the disk: what a sync among them covers is durable. */
void late_disk_settle(struct late_disk *disk, uint64_t position);

/*
** Operations from `begin` to `end` go their own way, as another thread's do: late_disk_settle does not reach them, and if
** power is lost some of them, from the first one on, were done, whatever was done of the others. Until they are released.
*/
void late_disk_begin_aside(struct late_disk *disk);
void late_disk_end_aside(struct late_disk *disk);
void late_disk_release(struct late_disk *disk);

/*
** The process or the machine is dead from here on: what the clean-up of its parts does to the disk
** gives -EIO and does not happen. Until lose_power, kill or wipe.
*/
void late_disk_stop(struct late_disk *disk);

struct late_disk_loss {
  uint32_t lost, torn; /* writes */
  bool middle;         /* power went between the operations of a flush, not at one of its ends */
};
/* Power is lost somewhere in the operations that are not settled. All files must be closed. */
void late_disk_lose_power(struct late_disk *disk, struct late_disk_loss *loss);
/*
** The process dies there, the machine does not: what was not synced before is still seen by reads,
** and at the mercy of the next power loss until somebody syncs it. All files must be closed.
*/
void late_disk_kill(struct late_disk *disk, struct late_disk_loss *loss);
/* All files are gone for good. All must be closed. */
void late_disk_wipe(struct late_disk *disk);

/* While full: creating, allocating and writing beyond the end give -ENOSPC. */
void late_disk_set_full(struct late_disk *disk, bool is_full);
/* The n-th sync from now (1: the next) gives -EIO; what it should have covered is never safe. 0: none. */
void late_disk_fail_sync(struct late_disk *disk, uint32_t n);
/* How often each of the two has hit an operation. */
uint64_t late_disk_full_hits(const struct late_disk *disk);
uint64_t late_disk_sync_failures(const struct late_disk *disk);

#endif
