/*
** What other programs did to the files while no node had them: finding out, and keeping it.
**
** After a stop in order the file itself tells: its identity, size and time are in the marks, and the WAL was empty.
**
** After a kill the wal-index tells, by a nonce in bytes that SQLite leaves alone (wal.c): it belongs to the marks and to
** the last header that this node published or captured, so that a commit, a checkpoint or a restart of the WAL by somebody else
** shows. Whoever opens the files first after a kill truncates the wal-index and makes it again [unixLockSharedMemory,
** walIndexRecover]; whoever closes them last removes it with the WAL.
**
** A power loss leaves of it what was on the disk by then, which says nothing: its name is durable from the start on, its
** content never. But whoever opened it afterwards has made it anew, without a nonce.
**
** Somebody who has had the files open may have committed to the WAL, or checkpointed into the file what this node had not
** made durable. What such a program would see now is compared with every state in the log. If it is none of them, both
** files are kept before the redo touches anything.
*/
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/bytes.h"
#include "database.h"

#define COPY_BYTES (1u << 16)
#define COPIES_MAX 1000 /* changed files that are kept side by side */
#define SHM_HEAD_SIZE 136u
#define SHM_NONCE_OFFSET 120u

/* ---- Whether the files are as this node left them ---- */

/* `attempted` is beyond `backfilled` behind a checkpoint that failed, on a full disk, and was not repeated yet. */
static uint64_t nonce_value(uint64_t nonce, uint32_t backfilled, uint32_t attempted,
                            const struct vfs_wal_header *header) {
  uint64_t parts[4] = {nonce, (uint64_t)backfilled << 32 | header->change,
                       (uint64_t)header->salt[0] << 32 | header->salt[1], attempted};
  return vfs_page_hash(0, parts, sizeof parts);
}

void vfs_refresh_nonce(struct vfs_database *database) {
  struct vfs_wal_header live;
  pthread_mutex_lock(&database->mutex); /* who comes last has read the newest header */
  if (vfs_wal_read_header(database->wal, &live) == SQLITE_OK)
    vfs_wal_set_nonce(database->wal, nonce_value(database->marks.nonce, vfs_wal_backfilled(database->wal),
                                                 vfs_wal_attempted(database->wal), &live));
  pthread_mutex_unlock(&database->mutex);
}

void vfs_draw_nonce(struct vfs_database *database, struct vfs_marks *marks) {
  do os_random(database->os, &marks->nonce, sizeof marks->nonce);
  while (marks->nonce == 0);
  marks->boot = os_boot(database->os);
}

/* The -shm is not as this node left it. */
static enum vfs_trust who_was_it(const struct vfs_database *database, uint64_t nonce) {
  bool went_down = database->marks.boot != os_boot(database->os);
  return went_down && nonce != 0 ? VFS_TRUST_UNKNOWN : VFS_TRUST_OPENED;
}

/* A crash at the making of page 1 leaves less of it, before there is a -shm. */
static bool is_begun(struct vfs_database *database) {
  sqlite3_int64 size = 0;
  return database->file->pMethods->xFileSize(database->file, &size) == SQLITE_OK &&
         size >= (sqlite3_int64)database->page_size;
}

/* Reads the -shm as the last node left it. Offsets: WalIndexHdr and WalCkptInfo, top of wal.c. */
static enum vfs_trust trust_in_shm(struct vfs_database *database) {
  char path[OS_PATH_MAX];
  uint8_t bytes[SHM_HEAD_SIZE];
  struct vfs_wal_header header;
  struct os_file *file = NULL;
  snprintf(path, sizeof path, "%s-shm", database->path);
  if (os_open(database->os, path, OS_OPEN_READ, &file) != 0)
    return is_begun(database) ? VFS_TRUST_OPENED : VFS_TRUST_UNKNOWN;
  int64_t n = os_read(file, bytes, sizeof bytes, 0);
  os_close(file);
  if (n != (int64_t)sizeof bytes) return n <= 0 ? VFS_TRUST_UNKNOWN : who_was_it(database, UINT64_MAX);
  uint32_t backfilled, attempted;
  uint64_t nonce;
  memcpy(&header, bytes, sizeof header);
  memcpy(&backfilled, bytes + 96, sizeof backfilled);
  memcpy(&nonce, bytes + SHM_NONCE_OFFSET, sizeof nonce);
  memcpy(&attempted, bytes + 128, sizeof attempted);
  if (!vfs_wal_header_is_valid(&header)) return VFS_TRUST_UNKNOWN;
  bool is_ours = nonce == nonce_value(database->marks.nonce, backfilled, attempted, &header);
  return is_ours ? VFS_TRUST_OURS : who_was_it(database, nonce);
}

void vfs_stat_file(struct vfs_database *database, struct vfs_marks *marks) {
  uint8_t header[100] = {0};
  struct os_stat stat;
  if (os_stat(database->os, database->path, &stat) != 0) memset(&stat, 0, sizeof stat);
  database->file->pMethods->xRead(database->file, header, sizeof header, 0); /* zeros if it cannot be read */
  marks->size_bytes = stat.size;
  marks->mtime_ns = stat.mtime_ns;
  marks->inode = stat.inode;
  marks->change_counter = (uint32_t)header[24] << 24 | (uint32_t)header[25] << 16 | (uint32_t)header[26] << 8 |
                          header[27];
}

/* Is there a -wal or -journal with something in it? */
static bool has_beside(struct vfs_database *database, const char *suffix) {
  char path[OS_PATH_MAX];
  struct os_stat stat;
  snprintf(path, sizeof path, "%s%s", database->path, suffix);
  return os_stat(database->os, path, &stat) == 0 && stat.size > 0;
}

enum vfs_trust vfs_trust(struct vfs_database *database) {
  struct vfs_marks now = {0};
  const struct vfs_marks *then = &database->marks;
  if (then->is_rebuilding || then->is_suspect) return VFS_TRUST_UNKNOWN;
  if (!then->stopped_in_order) return trust_in_shm(database);
  vfs_stat_file(database, &now);
  bool is_same = now.size_bytes == then->size_bytes && now.mtime_ns == then->mtime_ns && now.inode == then->inode &&
                 now.change_counter == then->change_counter && !has_beside(database, "-wal") &&
                 !has_beside(database, "-journal");
  return is_same ? VFS_TRUST_OURS : VFS_TRUST_CHANGED;
}

/* ---- What another program would see ---- */

/* The WAL's frames that count, by page: an open hash table of frame numbers. */
struct leftover {
  struct vfs_database *database;
  struct os_file *wal; /* NULL: there is none */
  uint32_t frames;     /* that count */
  uint32_t pages;      /* the size that the last one says */
  uint32_t slots;      /* a power of two, or 0 */
  uint32_t *page_of_slot, *frame_of_slot;
};

static uint64_t frame_offset(const struct leftover *leftover, uint32_t frame) {
  uint64_t size = VFS_WAL_FRAME_HEADER_SIZE + (uint64_t)leftover->database->page_size;
  return VFS_WAL_HEADER_SIZE + (frame - 1) * size;
}

/* The slot of a page, or the free one where it would be. */
static uint32_t slot_of(const struct leftover *leftover, uint32_t page_number) {
  uint32_t slot = page_number * 2654435761u & (leftover->slots - 1);
  while (leftover->page_of_slot[slot] != 0 && leftover->page_of_slot[slot] != page_number)
    slot = (slot + 1) & (leftover->slots - 1);
  return slot;
}

/* As walIndexRecover: frames count through the last valid one that commits. */
static int read_frames(struct leftover *leftover, uint8_t *frame, uint32_t frames_max, uint32_t *page_numbers) {
  uint32_t page_size = leftover->database->page_size;
  struct vfs_wal_check check;
  uint8_t header[VFS_WAL_HEADER_SIZE];
  if (os_read(leftover->wal, header, sizeof header, 0) != (int64_t)sizeof header ||
      !vfs_wal_check_begin(&check, header, page_size))
    return VFS_OK;
  for (uint32_t i = 1; i <= frames_max; i++) {
    uint32_t commit_pages = 0;
    int64_t size = VFS_WAL_FRAME_HEADER_SIZE + (int64_t)page_size;
    int64_t n = os_read(leftover->wal, frame, (size_t)size, frame_offset(leftover, i));
    if (n < 0) return VFS_IO;
    if (n != size || !vfs_wal_check_frame(&check, frame, &page_numbers[i - 1], &commit_pages)) break;
    if (commit_pages == 0) continue;
    leftover->frames = i;
    leftover->pages = commit_pages;
  }
  return VFS_OK;
}

static int index_frames(struct leftover *leftover, const uint32_t *page_numbers) {
  if (leftover->frames == 0) return VFS_OK;
  leftover->slots = 16;
  while (leftover->slots / 2 < leftover->frames) leftover->slots *= 2;
  leftover->page_of_slot = calloc(leftover->slots, sizeof *leftover->page_of_slot);
  leftover->frame_of_slot = calloc(leftover->slots, sizeof *leftover->frame_of_slot);
  if (!leftover->page_of_slot || !leftover->frame_of_slot) return VFS_NO_MEMORY;
  for (uint32_t i = 1; i <= leftover->frames; i++) {
    uint32_t slot = slot_of(leftover, page_numbers[i - 1]);
    leftover->page_of_slot[slot] = page_numbers[i - 1];
    leftover->frame_of_slot[slot] = i;
  }
  return VFS_OK;
}

static int open_leftover(struct vfs_database *database, struct leftover *leftover) {
  char path[OS_PATH_MAX];
  uint64_t size = 0;
  *leftover = (struct leftover){.database = database};
  snprintf(path, sizeof path, "%s-wal", database->path);
  int error = os_open(database->os, path, OS_OPEN_READ, &leftover->wal);
  if (error == -ENOENT) return VFS_OK;
  if (!error) error = os_size(leftover->wal, &size);
  if (error) return VFS_IO;
  uint64_t frame_size = VFS_WAL_FRAME_HEADER_SIZE + (uint64_t)database->page_size;
  uint64_t frames = size > VFS_WAL_HEADER_SIZE ? (size - VFS_WAL_HEADER_SIZE) / frame_size : 0;
  if (frames > UINT32_MAX / 4) frames = UINT32_MAX / 4;
  uint8_t *frame = malloc(frame_size);
  uint32_t *page_numbers = calloc(frames + 1, sizeof *page_numbers);
  error = frame && page_numbers ? read_frames(leftover, frame, (uint32_t)frames, page_numbers) : VFS_NO_MEMORY;
  if (!error) error = index_frames(leftover, page_numbers);
  free(frame);
  free(page_numbers);
  return error;
}

static void close_leftover(struct leftover *leftover) {
  os_close(leftover->wal);
  free(leftover->page_of_slot);
  free(leftover->frame_of_slot);
}

static int read_seen_page(struct leftover *leftover, uint32_t page_number, uint8_t *page) {
  struct vfs_database *database = leftover->database;
  uint32_t frame = leftover->slots ? leftover->frame_of_slot[slot_of(leftover, page_number)] : 0;
  if (frame == 0) {
    sqlite3_int64 offset = (sqlite3_int64)(page_number - 1) * database->page_size;
    int code = database->file->pMethods->xRead(database->file, page, (int)database->page_size, offset);
    return code == SQLITE_OK || code == SQLITE_IOERR_SHORT_READ ? VFS_OK : VFS_IO;
  }
  int64_t n = os_read(leftover->wal, page, database->page_size,
                      frame_offset(leftover, frame) + VFS_WAL_FRAME_HEADER_SIZE);
  return n == (int64_t)database->page_size ? VFS_OK : VFS_IO;
}

/* The checksum and the size of what a plain program would see. */
static int seen_state(struct vfs_database *database, uint32_t *pages, uint64_t *checksum) {
  struct leftover leftover;
  sqlite3_int64 size = 0;
  uint32_t lock_page = vfs_lock_page(database->page_size);
  int error = open_leftover(database, &leftover);
  if (!error && database->file->pMethods->xFileSize(database->file, &size) != SQLITE_OK) error = VFS_IO;
  *pages = leftover.frames ? leftover.pages : (uint32_t)(size / database->page_size);
  *checksum = 0;
  for (uint32_t i = 1; i <= *pages && !error; i++) {
    if (i == lock_page) continue;
    error = read_seen_page(&leftover, i, database->before);
    *checksum ^= vfs_page_hash(i, database->before, database->page_size);
  }
  close_leftover(&leftover);
  return error;
}

int vfs_outside_is_known(struct vfs_database *database, uint64_t log_last, bool *is_known, char *text) {
  uint32_t pages = 0;
  uint64_t checksum = 0;
  const struct vfs_marks *marks = &database->marks;
  int error = seen_state(database, &pages, &checksum);
  bool has_journal = has_beside(database, "-journal"); /* half a transaction of somebody who left WAL mode */
  *is_known = !error && !has_journal && pages == marks->pages && checksum == marks->checksum;
  for (uint64_t index = marks->checkpointed + 1; index <= log_last && !error && !has_journal && !*is_known; index++) {
    struct vfs_log_entry entry = {0};
    error = database->methods->read_log(database->node, index, &entry, text);
    if (error) break;
    *is_known = entry.is_change_set && (entry.set.flags & VFS_SET_LAST) && entry.set.pages == pages &&
                entry.set.checksum == checksum;
    database->methods->release_log(database->node, &entry);
  }
  return error;
}

/* ---- Keeping it ---- */

static int copy_file(struct vfs_database *database, struct os_file *to, uint8_t *buffer) {
  sqlite3_int64 size = 0;
  int error = database->file->pMethods->xFileSize(database->file, &size) == SQLITE_OK ? 0 : -EIO;
  for (sqlite3_int64 at = 0; !error && at < size; at += COPY_BYTES) {
    int n = size - at < COPY_BYTES ? (int)(size - at) : (int)COPY_BYTES;
    if (database->file->pMethods->xRead(database->file, buffer, n, at) != SQLITE_OK) error = -EIO;
    if (!error) error = os_write(to, buffer, (size_t)n, (uint64_t)at);
  }
  return error ? error : os_sync(to);
}

/* Beside the copy of its database, so that a plain program opens both. */
static int copy_beside(struct vfs_database *database, const char *name, const char *suffix, uint8_t *buffer) {
  char from_path[OS_PATH_MAX], to_path[OS_PATH_MAX];
  struct os_file *from = NULL, *to = NULL;
  if (!has_beside(database, suffix)) return 0;
  snprintf(from_path, sizeof from_path, "%s%s", database->path, suffix);
  snprintf(to_path, sizeof to_path, "%.*s%s", OS_PATH_MAX - 16, name, suffix);
  int error = os_open(database->os, from_path, OS_OPEN_READ, &from);
  if (!error) error = os_open(database->os, to_path, OS_OPEN_WRITE | OS_OPEN_CREATE, &to);
  for (uint64_t at = 0; !error;) {
    int64_t n = os_read(from, buffer, COPY_BYTES, at);
    if (n == 0) break;
    error = n < 0 ? (int)n : os_write(to, buffer, (size_t)n, at);
    if (n > 0) at += (uint64_t)n;
  }
  if (!error) error = os_sync(to);
  os_close(from);
  os_close(to);
  return error;
}

static int make_copy(struct vfs_database *database, char name[OS_PATH_MAX], struct os_file **copy) {
  int error = -EEXIST;
  for (int i = 1; error == -EEXIST && i <= COPIES_MAX; i++) {
    snprintf(name, OS_PATH_MAX, "%.*s.changed-%d", OS_PATH_MAX - 32, database->path, i);
    error = os_open(database->os, name, OS_OPEN_WRITE | OS_OPEN_CREATE | OS_OPEN_EXCL, copy);
  }
  return error;
}

int vfs_outside_keep(struct vfs_database *database, const char *why, char *text) {
  char name[OS_PATH_MAX] = "", parent[OS_PATH_MAX];
  struct os_file *copy = NULL;
  uint8_t *buffer = malloc(COPY_BYTES);
  int error = buffer ? make_copy(database, name, &copy) : -ENOMEM;
  if (!error) error = copy_file(database, copy, buffer);
  if (!error) error = copy_beside(database, name, "-wal", buffer);
  if (!error) error = copy_beside(database, name, "-journal", buffer);
  vfs_folder_of(database->path, parent, sizeof parent);
  if (!error) error = os_sync_directory(database->os, parent);
  os_close(copy);
  free(buffer);
  if (!error) {
    vfs_set_notice(database, "%.250s %s; it is kept as %.250s, and the log counts", database->path, why, name);
    return VFS_OK;
  }
  snprintf(text, VFS_TEXT_MAX, "%s: cannot be copied aside to %s: %s; make room there", database->path, name,
           strerror(-error));
  return error == -ENOSPC ? VFS_NO_SPACE : error == -ENOMEM ? VFS_NO_MEMORY : VFS_IO;
}
