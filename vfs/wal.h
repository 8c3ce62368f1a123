/*
** SQLite's WAL and wal-index formats, as Balsa reads and writes them beside SQLite itself: to capture
** what a transaction wrote, to append replicated transactions, to checkpoint and to reset.
** The formats and who may touch which field: top of wal.c (source: SQLite's src/wal.c).
**
** A struct vfs_wal is used under the rules of vfs.c: appending, publishing and resetting only by who
** holds WRITE; lookups by anybody who knows that no reset can happen meanwhile. The wal-index is shared
** memory that other processes map too: every access to a field that others may write is atomic or
** volatile as in SQLite, with the barriers where SQLite has them.
*/
#ifndef BALSA_VFS_WAL_H
#define BALSA_VFS_WAL_H

#include <stdbool.h>

#include "sqlite.h"
#include <stdint.h>

#define VFS_WAL_HEADER_SIZE 32
#define VFS_WAL_FRAME_HEADER_SIZE 24
#define VFS_WAL_REGION_SIZE 32768
#define VFS_WAL_REGIONS_MAX 65536
#define VFS_WAL_READERS 5 /* read marks; 0 means "the database file alone" */
#define VFS_WAL_LOCK_WRITE 0
#define VFS_WAL_LOCK_CHECKPOINT 1
#define VFS_WAL_LOCK_RECOVER 2
#define VFS_WAL_LOCK_READ(i) (3 + (i))
#define VFS_WAL_READ_MARK_NOT_USED 0xffffffffu
#define VFS_WAL_FRAME_UNKNOWN 0xffffffffu

/* WalIndexHdr of SQLite, as it lies in the shared memory (native byte order). */
struct vfs_wal_header {
  uint32_t version; /* 3007000 */
  uint32_t unused;
  uint32_t change; /* rises with every transaction */
  uint8_t is_init;
  uint8_t big_endian_checksum;
  uint16_t page_size; /* 1 means 65536 */
  uint32_t max_frame; /* mxFrame */
  uint32_t pages;     /* nPage: size of the database */
  uint32_t frame_checksum[2];
  uint32_t salt[2]; /* as in the WAL's header: big-endian bytes */
  uint32_t checksum[2];
};
_Static_assert(sizeof(struct vfs_wal_header) == 48, "WalIndexHdr");

struct vfs_wal; /* of one database in this process */

/*
** `database` and `wal` are open files of the base VFS (kept, not owned): the database's for xShmMap,
** xShmLock, xShmBarrier and its pages, the WAL's for frames. Maps region 0. SQLite error code.
*/
int vfs_wal_open(sqlite3_file *database, sqlite3_file *wal, uint32_t page_size, struct vfs_wal **out);
void vfs_wal_close(struct vfs_wal *wal);
/* Pages that it reads from the database file are checked (SQLITE_IOERR_DATA), those that it writes are noted. Not owned. */
struct vfs_hashes;
void vfs_wal_set_hashes(struct vfs_wal *wal, struct vfs_hashes *hashes);

/*
** Where a connection of this process finds a region that the base VFS has mapped at `mapped`: the same memory, at an address
** of our own. In a forked child SQLite would still write to it (closing an open transaction cleans the hash tables, without a call of
** the VFS); there it becomes memory of the child's own, which others who map the file in the child do not notice. `mapped`
** itself where the system gives no second address. Watching for forks: once per process; SQLite error code.
*/
void *vfs_wal_region_for_connection(struct vfs_wal *wal, uint32_t region, void *mapped);
int vfs_wal_watch_forks(void);

/*
** Writes a fresh wal-index for an empty WAL over a database of `pages` pages (node start, nobody else may
** write): header, read marks, checkpoint info; the WAL file itself is truncated to 0 if truncate_wal, else its
** frames just lose their validity by a new salt (a plain process may have it open). `salt` is random.
*/
int vfs_wal_init(struct vfs_wal *wal, uint32_t pages, const uint32_t salt[2], bool truncate_wal);

/* A 64-bit mark in bytes nobody else uses (aLock, offset 120): whether this wal-index is still ours. */
void vfs_wal_set_nonce(struct vfs_wal *wal, uint64_t nonce);

/* The published header, a consistent copy (both copies equal and checksum right, tried again a bounded
** number of times: SQLITE_PROTOCOL after that). */
int vfs_wal_read_header(struct vfs_wal *wal, struct vfs_wal_header *header);
uint32_t vfs_wal_header_page_size(const struct vfs_wal_header *header);

/* Maps the regions that `n_frames` more frames will need, so that neither SQLite nor append can fail there. */
int vfs_wal_reserve(struct vfs_wal *wal, uint32_t n_frames);

/* Zeros ahead, so that the file has room for `frames` frames, and some more if it can. SQLITE_FULL. Holder of WRITE. */
int vfs_wal_make_room(struct vfs_wal *wal, uint32_t frames);

/* Page number of a frame, from the wal-index (1 <= frame). 0 if its region cannot be mapped. */
uint32_t vfs_wal_frame_page(struct vfs_wal *wal, uint32_t frame);
/*
** Highest frame <= max_frame that holds this page, 0 if none: as sqlite3WalFindFrame, but bounded.
** VFS_WAL_FRAME_UNKNOWN: the wal-index cannot be read (memory); vfs_wal_read_frame of it fails.
*/
uint32_t vfs_wal_find(struct vfs_wal *wal, uint32_t page_number, uint32_t max_frame);
/* Offset of a frame's page content in the WAL file. */
int64_t vfs_wal_frame_offset(const struct vfs_wal *wal, uint32_t frame);
int vfs_wal_read_frame(struct vfs_wal *wal, uint32_t frame, void *page);
/* Content of a page in the state bounded by max_frame: from its frame or the database file (zeros beyond its end). */
int vfs_wal_read_page(struct vfs_wal *wal, uint32_t page_number, uint32_t max_frame, void *page);
/* Likewise pages page_number … page_number + n - 1, at once where they lie side by side in the file. */
int vfs_wal_read_pages(struct vfs_wal *wal, uint32_t page_number, uint32_t n, uint32_t max_frame, uint8_t *pages);

/* ---- A WAL that nobody has open ---- */

/* Whether a copy of the wal-index's header is one. */
bool vfs_wal_header_is_valid(const struct vfs_wal_header *header);
/* Goes through its frames in order. */
struct vfs_wal_check {
  bool swap;
  uint8_t salt[8];
  uint32_t page_size, sum[2];
};
/* false: this is no header of a WAL with such pages. */
bool vfs_wal_check_begin(struct vfs_wal_check *check, const uint8_t header[VFS_WAL_HEADER_SIZE], uint32_t page_size);
/* The next frame, header and page: false if it is not valid, and then none behind it is. *commit_pages as in the frame. */
bool vfs_wal_check_frame(struct vfs_wal_check *check, const uint8_t *frame, uint32_t *page_number,
                         uint32_t *commit_pages);

/* ---- Appending a transaction (holder of WRITE) ---- */

struct vfs_wal_append {
  struct vfs_wal_header header; /* the next one to publish */
  uint32_t first_frame;
};
/* Starts behind the published header. Writes the WAL's header first if the WAL is empty (as sqlite3WalFrames). */
int vfs_wal_begin(struct vfs_wal *wal, struct vfs_wal_append *append);
/* Writes one frame and its wal-index entry. commit_pages: size of the database if this is the last frame, else 0. */
int vfs_wal_add(struct vfs_wal *wal, struct vfs_wal_append *append, uint32_t page_number, const void *page,
                uint32_t commit_pages);
/* Highest frame of this unfinished transaction or before it that holds the page; for pages patched twice. */
uint32_t vfs_wal_append_find(struct vfs_wal *wal, const struct vfs_wal_append *append, uint32_t page_number);
/* Makes it visible: header copy 1, barrier, header copy 0. `append->header` is the published one after. */
void vfs_wal_publish(struct vfs_wal *wal, struct vfs_wal_append *append);
/* Forgets what was added: cleans the hash tables beyond the published mxFrame (walCleanupHash). */
void vfs_wal_cancel(struct vfs_wal *wal);

/*
** ---- Checkpoint (the owner of CKPT; design section 5) ----
**
** In this order: vfs_wal_safe_frame, vfs_wal_backfill, the caller's sync, vfs_wal_set_backfilled; the last
** two with one and the same frame, not above the safe one. A reset between them is noticed by the salts: then
** nothing is written or marked.
*/

/*
** How far a checkpoint may go: min(limit_frame, every read mark in use), raising or freeing unused marks as
** walCheckpoint does. limit_frame must be a transaction boundary; 0 if the WAL does not reach it.
** *busy_reader: 1…4 the mark that holds it back, 0 none.
*/
uint32_t vfs_wal_safe_frame(struct vfs_wal *wal, uint32_t limit_frame, int *busy_reader);
uint32_t vfs_wal_backfilled(struct vfs_wal *wal); /* nBackfill */
uint32_t vfs_wal_attempted(struct vfs_wal *wal);  /* nBackfillAttempted */
/*
** Copies the newest frame <= frame of every page into the database file; pages > `pages` are left out. Takes
** READ_LOCK(0) exclusively: SQLITE_BUSY if a reader holds it or the WAL was reset since vfs_wal_safe_frame.
** Does not sync, does not move nBackfill.
*/
int vfs_wal_backfill(struct vfs_wal *wal, uint32_t frame, uint32_t pages);
/* After the sync of the database file: nBackfill = frame, unless it was there already. */
void vfs_wal_set_backfilled(struct vfs_wal *wal, uint32_t frame);
/*
** Starts the WAL again at frame 1 (walRestartHdr): only by the holder of WRITE with nBackfill == mxFrame > 0; takes
** READ_LOCK(1…4) exclusively, SQLITE_BUSY if a reader has one. A file of more than `frames_kept` frames is cut to that.
*/
int vfs_wal_restart(struct vfs_wal *wal, uint32_t random_salt, uint32_t frames_kept);
/*
** By the owner of CKPT. Which readers keep the WAL from starting again: bit i is set if READ_LOCK(i) is held and its mark is not beyond
** `frame`; bit 0, the readers of the file alone, only while frames are still to be written to it.
*/
unsigned vfs_wal_readers(struct vfs_wal *wal, uint32_t frame);
/* The same, by anybody, of the marks that could be held: takes no lock. */
unsigned vfs_wal_marks(struct vfs_wal *wal, uint32_t frame);

/* ---- A read view (snapshots) ---- */

/*
** Holds the state at `frame` (a transaction boundary of the present WAL) readable on `handle`, a handle of the base VFS of its own:
** no checkpoint goes beyond it and the WAL does not start again until vfs_wal_unpin. The caller holds WRITE, so that no
** reset comes between. *mark for unpin. SQLITE_BUSY if all read marks are in use.
*/
int vfs_wal_pin(struct vfs_wal *wal, sqlite3_file *handle, uint32_t frame, int *mark);
void vfs_wal_unpin(sqlite3_file *handle, int mark);

#endif
