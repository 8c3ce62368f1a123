/*
** Who owns a database: one process, by locks that live as long as the node (design section 5, "Ownership").
**
** All are locks of open file descriptions (os_lock), of files of our own which are never closed while the node lives:
** closing any descriptor of a file drops this process's POSIX locks on it, SQLite's among them.
*/
#ifndef BALSA_VFS_OWNERSHIP_H
#define BALSA_VFS_OWNERSHIP_H

#include <stdbool.h>
#include <stdint.h>

#include "../ext/os.h"

#define VFS_OWNERSHIP_TEXT_MAX 640

struct vfs_ownership;

/*
** Takes <folder>/lock (made if missing). *out is the caller's. Errors, with a sentence in `text`:
** -EBUSY another process owns it (its pid is in the file and named); -ENOTSUP the file system has no OFD locks;
** -EMLINK the database has hard links; other negative errno.
*/
int vfs_ownership_take(struct os *os, const char *database_path, const char *folder, struct vfs_ownership **out,
                       char *text);

/*
** The database file is there now (made if it must be). Takes the EXCLUSIVE range (as SQLite's PENDING,
** RESERVED and SHARED bytes), without waiting. true in *alone: no other process has it open, -wal and -shm
** may be removed. Otherwise takes what the design says beside a plain process: shm bytes 120–127 exclusively,
** waiting up to `deadline_ms` from now for its read transactions; -EBUSY with the reader's pid (F_OFD_GETLK)
** in `text` after that. Once only; after a failure release.
*/
int vfs_ownership_lock_files(struct vfs_ownership *ownership, uint32_t deadline_ms, bool *alone, char *text);

/* The -shm exists (mapped by the base VFS): takes what is kept: shm bytes 120, 121 and SHARED on 128, then SHARED on
** the database, without a gap. */
int vfs_ownership_settle(struct vfs_ownership *ownership, char *text);

/* After lock_files was alone, and the files have other names: lock_files may be called again, for what is there now. */
void vfs_ownership_forget_files(struct vfs_ownership *ownership);

/*
** Gives everything up and frees it; accepts NULL. Close the base VFS's handles of the database before: while
** a POSIX lock is on the file, the descriptors stay open (unlocked) until a later release finds none.
*/
void vfs_ownership_release(struct vfs_ownership *ownership);

/* The other process that holds this byte of -shm, as "process 12 (sqlite3)"; false: none does. */
#define VFS_OWNERSHIP_PROCESS_MAX 96
bool vfs_ownership_reader(const struct vfs_ownership *ownership, int lock, char text[VFS_OWNERSHIP_PROCESS_MAX]);

#endif
