/*
** The write ticket: who may write to the database next. A FIFO queue with one condition variable per
** waiter, so that passing it on wakes exactly one thread and no writer starves (design section 3).
**
** The ticket stands in for SQLite's WAL_WRITE_LOCK within the process (other processes are kept out by
** ownership.h). Connections, the apply thread, compensation and the checkpointer all go through it.
** It has a mutex of its own, a leaf: nothing is called with it held.
*/
#ifndef BALSA_VFS_TICKET_H
#define BALSA_VFS_TICKET_H

#include "../ext/os.h"

/*
** A reservation kept over a read unlock (SQLite is about to try again) is taken from its holder after this
** time: the retry may never come.
*/
#define VFS_TICKET_KEPT_MAX (50 * OS_MS)
/*
** One that was not used is taken after this: a statement that writes elsewhere and finds all of this database's pages
** in its cache shows by no read that it wants no ticket, and may leave a transaction open.
*/
#define VFS_TICKET_RESERVED_MAX (1 * OS_SECOND)

struct vfs_ticket_waiter;

struct vfs_ticket {
  pthread_mutex_t mutex;
  struct os *os;
  const void *holder;  /* NULL: free. Any address that tells holders apart */
  uint64_t kept_until; /* others may take it from then on; 0: in use */
  struct vfs_ticket_waiter *first, *last;
};

void vfs_ticket_init(struct vfs_ticket *ticket, struct os *os);
void vfs_ticket_destroy(struct vfs_ticket *ticket);

enum vfs_ticket_place { VFS_TICKET_BACK, VFS_TICKET_FRONT };
/* Waits its turn until `deadline` (0: only tries). true: `holder` has it now. `holder` must not have it already. */
bool vfs_ticket_take(struct vfs_ticket *ticket, const void *holder, enum vfs_ticket_place place, uint64_t deadline);
/* Passes it to the next in the queue. Does nothing if `holder` has it no longer (it was kept too long). */
void vfs_ticket_give(struct vfs_ticket *ticket, const void *holder);
/* Whether `holder` has it; ends the time it was kept. */
bool vfs_ticket_use(struct vfs_ticket *ticket, const void *holder);
/* From now on others may take it after VFS_TICKET_KEPT_MAX. */
void vfs_ticket_keep(struct vfs_ticket *ticket, const void *holder);
/* The same after VFS_TICKET_RESERVED_MAX (twice that, for who waits already). */
void vfs_ticket_reserve(struct vfs_ticket *ticket, const void *holder);
/* Who has it now; NULL nobody. For messages only: it may have changed by the time the caller looks. */
const void *vfs_ticket_holder(struct vfs_ticket *ticket);

#endif
