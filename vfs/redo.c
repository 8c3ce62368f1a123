/*
** Redo: at start the database file is brought to a committed state from the log (design section 5).
**
** The file may be any byte-wise mix of the states from the mark `checkpointed` to the mark `begun`. The committed entries
** behind `checkpointed` go straight into it, through `begun` at least: patches are after-images, so a byte that one of them
** touches gets its last value, and one that none touches is the same in all those states. Doing it twice, or being killed in
** the middle, changes nothing; nor does the order in which pages reach the file, so they gather in a cache (pages.h) until they
** are needed there: by whoever reads the file, and at the sync.
**
** When somebody else wrote to the file meanwhile, the log is the truth: the file is kept aside (outside.c) and made again
** from the first entry. After a stop in order it must be the state of its marks and the WAL empty, so that is looked at before
** anything is written, and the copy is whole. After a crash the state behind the redo is verified; if another program has had the
** files open since, what it left is looked at before, for the same reason.
*/
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "database.h"
#include "pages.h"

#define SCAN_BYTES (1u << 16)

struct redo {
  struct vfs_database *database;
  struct vfs_pages *file_pages; /* of the file, on their way to it */
  char *text;
  uint32_t pages;
  uint64_t checksum, set_index;
  uint64_t through; /* commit index */
  uint64_t log_first;
  const struct vfs_source *snapshot; /* NULL: none; used once */
  uint32_t auto_vacuum;
  bool is_kept;    /* what another program left */
  bool is_written; /* the file is not what was scanned before */
};

void vfs_first_page(uint8_t *page, uint32_t page_size, uint32_t auto_vacuum) {
  memset(page, 0, page_size);
  memcpy(page, "SQLite format 3", 16);
  page[16] = (uint8_t)(page_size >> 8);
  page[17] = (uint8_t)(page_size >> 16); /* 65536 is stored as 1 */
  page[18] = page[19] = 2;               /* WAL */
  page[21] = 64;
  page[22] = page[23] = 32;
  page[31] = 1;                                     /* size in pages */
  page[55] = auto_vacuum != 0;                      /* largest root page: auto_vacuum is on */
  page[67] = auto_vacuum == 2;                      /* incremental */
  page[100] = 0x0d;                                 /* an empty leaf table: sqlite_schema */
  page[105] = (uint8_t)((page_size & 0xffff) >> 8); /* start of cell content; 65536 is stored as 0 */
  page[106] = (uint8_t)page_size;
}

int vfs_scan_checksum(struct vfs_database *database, uint32_t pages, uint64_t *checksum) {
  uint32_t page_size = database->page_size, lock_page = vfs_lock_page(page_size), run = SCAN_BYTES / page_size;
  uint8_t *bytes = malloc(SCAN_BYTES);
  int code = SQLITE_OK;
  *checksum = 0;
  if (!bytes) return VFS_NO_MEMORY;
  for (uint32_t first = 1, n = 0; first <= pages && code == SQLITE_OK; first += n) {
    n = pages - first + 1 < run ? pages - first + 1 : run;
    code = database->file->pMethods->xRead(database->file, bytes, (int)(n * page_size),
                                           (sqlite3_int64)(first - 1) * page_size);
    if (code == SQLITE_IOERR_SHORT_READ) code = SQLITE_OK; /* zeros beyond the end */
    for (uint32_t i = 0; i < n && code == SQLITE_OK; i++) {
      if (first + i == lock_page) continue;
      const uint8_t *page = bytes + (size_t)i * page_size;
      *checksum ^= vfs_page_hash(first + i, page, page_size);
      vfs_hashes_set(database->hashes, first + i, page, page_size);
    }
  }
  free(bytes);
  return code == SQLITE_OK ? VFS_OK : VFS_IO;
}

/*
** What was known of the file's pages counts no more; nor does what a stop in order said of the file, before it is written: after
** a crash in the middle of the redo it would make another program's of what the redo wrote. The next start verifies it instead.
*/
static int note_written(struct redo *redo) {
  struct vfs_marks marks = redo->database->marks;
  if (redo->is_written) return VFS_OK;
  vfs_hashes_clear(redo->database->hashes);
  redo->is_written = true;
  if (!marks.stopped_in_order) return VFS_OK;
  marks.stopped_in_order = false;
  marks.is_suspect = true;
  return vfs_write_marks(redo->database, &marks);
}

static int redo_set(struct redo *redo, const struct vfs_log_entry *entry) {
  int error = note_written(redo);
  if (error) return error;
  struct vfs_database *database = redo->database;
  const struct vfs_change_set *set = &entry->set;
  uint32_t page_number = 0;
  bool is_full = false;
  if (set->page_size != database->page_size || !vfs_decoder_open(database->decoder, set->bytes, set->size)) {
    snprintf(redo->text, VFS_TEXT_MAX, "%s: entry %llu of the log is no change set for this database", database->path,
             (unsigned long long)entry->index);
    return VFS_DAMAGED;
  }
  while (vfs_decoder_next(database->decoder, &page_number, &is_full)) {
    if (page_number == 0 || page_number > set->pages) return VFS_DAMAGED;
    uint8_t *page;
    int code = vfs_pages_get(redo->file_pages, page_number, is_full, &page);
    if (code != SQLITE_OK) return vfs_error_of_sqlite(code);
    vfs_decoder_patch(database->decoder, page);
  }
  if (set->flags & VFS_SET_LAST) {
    redo->pages = set->pages;
    redo->checksum = set->checksum;
    redo->set_index = entry->index;
  }
  return VFS_OK;
}

/*
** Parts go into the file only if their last one is committed: looks ahead from the part at `first`. *last is the index
** of the transaction's last part, or 0 and *next where to go on.
*/
static int find_last_part(struct redo *redo, uint64_t first, uint64_t epoch, uint64_t *last, uint64_t *next) {
  struct vfs_database *database = redo->database;
  *last = 0;
  for (uint64_t index = first; index <= redo->through; index++) {
    struct vfs_log_entry entry = {0};
    int error = database->methods->read_log(database->node, index, &entry, redo->text);
    if (error) return error;
    bool same_epoch = entry.epoch == epoch;
    uint8_t flags = entry.is_change_set ? entry.set.flags : 0;
    database->methods->release_log(database->node, &entry);
    *next = same_epoch ? index + 1 : index;
    if (!same_epoch || (flags & VFS_SET_ABORT)) {
      if (same_epoch) redo->set_index = index;
      return VFS_OK;
    }
    if (flags & VFS_SET_LAST) {
      *last = index;
      return VFS_OK;
    }
  }
  /* It was under way when the node was killed: the state is the one before it. */
  if (first > database->marks.begun) {
    redo->through = first - 1;
    *next = first;
    return VFS_OK;
  }
  snprintf(redo->text, VFS_TEXT_MAX,
           "%s: the transaction that begins at entry %llu of the log has no end at or before %llu", database->path,
           (unsigned long long)first, (unsigned long long)redo->through);
  return VFS_DAMAGED;
}

static int redo_range(struct redo *redo, uint64_t from) {
  struct vfs_database *database = redo->database;
  uint64_t whole_through = 0; /* parts up to here belong to a transaction whose end is committed */
  for (uint64_t index = from; index <= redo->through;) {
    struct vfs_log_entry entry = {0};
    int error = database->methods->read_log(database->node, index, &entry, redo->text);
    if (error) return error;
    uint64_t next = index + 1;
    if (entry.is_change_set && (entry.set.flags & VFS_SET_ABORT)) {
      redo->set_index = index;
    } else if (entry.is_change_set) {
      uint64_t last = whole_through;
      if (index > whole_through && (entry.set.flags & VFS_SET_PART)) {
        error = find_last_part(redo, index, entry.epoch, &last, &next);
        if (!error && last) {
          whole_through = last;
          next = index + 1;
        }
      } else if (index > whole_through) {
        last = index;
      }
      if (!error && last) error = redo_set(redo, &entry);
    }
    database->methods->release_log(database->node, &entry);
    if (error) return error;
    index = next;
  }
  return vfs_error_of_sqlite(vfs_pages_write(redo->file_pages));
}

/* The file gets its size and is durable. */
static int finish_file(struct redo *redo) {
  struct vfs_database *database = redo->database;
  sqlite3_int64 size = 0;
  sqlite3_int64 wanted = (sqlite3_int64)redo->pages * database->page_size;
  int code = database->file->pMethods->xFileSize(database->file, &size);
  /* Shorter is what a full disk left of page 1 at its making: what it lacks are zeros. */
  if (code == SQLITE_OK && size != wanted) code = database->file->pMethods->xTruncate(database->file, wanted);
  if (code == SQLITE_OK) code = database->file->pMethods->xSync(database->file, SQLITE_SYNC_NORMAL);
  return vfs_error_of_sqlite(code);
}

static int mark_redone(struct redo *redo) {
  struct vfs_database *database = redo->database;
  struct vfs_marks marks = database->marks;
  marks.begun = marks.checkpointed = redo->through;
  marks.set_index = redo->set_index;
  marks.checksum = redo->checksum;
  marks.pages = redo->pages;
  marks.page_size = database->page_size;
  marks.stopped_in_order = marks.is_rebuilding = marks.is_suspect = false;
  vfs_draw_nonce(database, &marks);
  return vfs_write_marks(database, &marks);
}

/* ---- The file again from nothing, or from a snapshot ---- */

/*
** The marks say so first, so that a crash in the middle does it over. With a new nonce: a -shm that is left from before must not
** vouch for a file of which power loss may have dropped what no entry writes again, page 1 among it.
*/
static int mark_rebuild(struct redo *redo) {
  struct vfs_database *database = redo->database;
  struct vfs_marks marks = database->marks;
  marks.checkpointed = marks.set_index = marks.checksum = 0;
  marks.begun = redo->through;
  marks.page_size = database->page_size;
  marks.pages = 1;
  marks.stopped_in_order = false;
  marks.is_rebuilding = true;
  vfs_draw_nonce(database, &marks);
  return vfs_write_marks(database, &marks);
}

static int write_first_page(struct redo *redo) {
  struct vfs_database *database = redo->database;
  uint8_t *page;
  int code = vfs_pages_get(redo->file_pages, 1, true, &page);
  if (code != SQLITE_OK) return vfs_error_of_sqlite(code);
  vfs_first_page(page, database->page_size, redo->auto_vacuum);
  redo->pages = 1;
  redo->set_index = 0;
  redo->checksum = vfs_page_hash(1, page, database->page_size);
  return VFS_OK;
}

static int write_snapshot(struct redo *redo) {
  struct vfs_database *database = redo->database;
  const struct vfs_source *source = redo->snapshot;
  uint32_t lock_page = vfs_lock_page(database->page_size);
  redo->snapshot = NULL;
  redo->pages = source->info.pages;
  redo->set_index = source->info.index;
  redo->checksum = source->info.checksum;
  for (uint32_t page_number = 1; page_number <= source->info.pages; page_number++) {
    int error = source->next(source->ctx, database->after, redo->text);
    if (error) return error;
    if (page_number == lock_page) continue;
    uint8_t *page;
    int code = vfs_pages_get(redo->file_pages, page_number, true, &page);
    if (code != SQLITE_OK) return vfs_error_of_sqlite(code);
    memcpy(page, database->after, database->page_size);
  }
  return VFS_OK;
}

/*
** Parts at the end whose transaction has no end belong to no state: it was under way when the node was killed. What is made
** again ends before them, and the mark `begun` with it: what begins at or before that has an end.
*/
static int leave_out_open_parts(struct redo *redo, uint64_t from) {
  struct vfs_database *database = redo->database;
  uint64_t first = redo->through + 1, epoch = 0;
  for (uint64_t index = redo->through; index >= from; index--) {
    struct vfs_log_entry entry = {0};
    int error = database->methods->read_log(database->node, index, &entry, redo->text);
    if (error) return error;
    if (index == redo->through) epoch = entry.epoch;
    bool same_epoch = entry.epoch == epoch;
    uint8_t flags = entry.is_change_set ? entry.set.flags : 0;
    database->methods->release_log(database->node, &entry);
    if (!same_epoch || (flags & (VFS_SET_LAST | VFS_SET_ABORT))) break;
    if (flags & VFS_SET_PART) first = index;
  }
  if (first > database->marks.begun) redo->through = first - 1;
  return VFS_OK;
}

/* Where to begin: the snapshot if there is one, else the empty database that the log begins with. */
static int rebuild(struct redo *redo) {
  struct vfs_database *database = redo->database;
  uint64_t from = redo->snapshot ? redo->snapshot->info.index : 0;
  if (redo->log_first > from + 1) {
    snprintf(redo->text, VFS_TEXT_MAX,
             "%s must be made again, but the log begins at entry %llu and no snapshot reaches it; restore %s from a "
             "copy, or let the node join anew",
             database->path, (unsigned long long)redo->log_first, database->folder);
    return VFS_DAMAGED;
  }
  int error = leave_out_open_parts(redo, from + 1);
  if (!error) error = mark_rebuild(redo);
  if (error) return error;
  vfs_pages_clear(redo->file_pages);
  redo->is_written = false;
  error = note_written(redo);
  if (!error) error = vfs_error_of_sqlite(database->file->pMethods->xTruncate(database->file, 0));
  if (!error) error = redo->snapshot ? write_snapshot(redo) : write_first_page(redo);
  if (!error) error = redo_range(redo, from + 1);
  return error ? error : finish_file(redo);
}

/* `has_size`: the file must have its size by now, too. */
static int differs(struct redo *redo, bool has_size, bool *is_different) {
  struct vfs_database *database = redo->database;
  sqlite3_int64 size = 0;
  uint64_t checksum = 0;
  if (database->file->pMethods->xFileSize(database->file, &size) != SQLITE_OK) return VFS_IO;
  *is_different = has_size && size != (sqlite3_int64)redo->pages * database->page_size;
  if (*is_different) return VFS_OK;
  int error = vfs_scan_checksum(database, redo->pages, &checksum);
  *is_different = checksum != redo->checksum;
  return error;
}

static int rebuild_changed(struct redo *redo) {
  struct vfs_database *database = redo->database;
  bool is_different = false;
  int error = rebuild(redo);
  if (!error) error = differs(redo, true, &is_different);
  if (!error && is_different) {
    snprintf(redo->text, VFS_TEXT_MAX, "%s: made again from the log, it still differs from what the log says",
             database->path);
    return VFS_DIFFERS;
  }
  return error;
}

static const char *reason(enum vfs_trust trust) {
  switch (trust) {
  case VFS_TRUST_CHANGED: return "was changed by another program while its node was down";
  case VFS_TRUST_OPENED:
    return "was opened by another program after its node had ended without a stop, and holds what the log does not";
  default: return "is damaged: no program has changed it, and it is not what its node wrote (look at the disk)";
  }
}

/* Before anything is written: is there something in the files that the redo would destroy? */
static int look_before(struct redo *redo, enum vfs_trust trust, bool verify, uint64_t log_last, bool *is_different) {
  bool is_known = true;
  int error = VFS_OK;
  if (redo->database->marks.stopped_in_order && verify) error = differs(redo, true, is_different);
  if (!error && (trust == VFS_TRUST_CHANGED || trust == VFS_TRUST_OPENED))
    error = vfs_outside_is_known(redo->database, log_last, &is_known, redo->text);
  else if (*is_different)
    is_known = false;
  /* A later state of the log: the redo leads on from it as from any. */
  if (!error && is_known) *is_different = false;
  redo->is_kept = !is_known;
  return error || is_known ? error : vfs_outside_keep(redo->database, reason(trust), redo->text);
}

static int redo_file(struct redo *redo, uint64_t log_last, enum vfs_trust trust, bool verify) {
  bool is_exact = redo->database->marks.stopped_in_order, is_different = false;
  int error = look_before(redo, trust, verify, log_last, &is_different);
  if (!error && !is_different) error = redo_range(redo, redo->database->marks.checkpointed + 1);
  /* What lies behind the end belongs into the copy, so it is cut after this. */
  if (!error && (!is_exact || trust == VFS_TRUST_CHANGED) && verify) error = differs(redo, false, &is_different);
  if (!error && !is_different) return finish_file(redo);
  if (!error && !redo->is_kept) error = vfs_outside_keep(redo->database, reason(VFS_TRUST_OURS), redo->text);
  return error ? error : rebuild_changed(redo);
}

/* The power was lost at the making of page 1, which has all it holds in one sector: nothing is there to be kept. */
static bool is_half_made(struct vfs_database *database, sqlite3_int64 size) {
  uint8_t magic[16] = {0};
  static const uint8_t zeros[sizeof magic];
  if (database->marks.begun != 0 || size > (sqlite3_int64)database->page_size) return false;
  return database->file->pMethods->xRead(database->file, magic, sizeof magic, 0) == SQLITE_OK &&
         memcmp(magic, zeros, sizeof magic) == 0;
}

/*
** On a full disk the WAL gives its place to the file: it is thrown away in any case, and the file needs no more than it
** had, since a page by which the file grows has a frame in it. true: there was something.
*/
static bool drop_wal(struct vfs_database *database) {
  char path[OS_PATH_MAX];
  struct os_file *file = NULL;
  uint64_t size = 0;
  if (!database->is_alone) return false;
  snprintf(path, sizeof path, "%s-wal", database->path);
  if (os_open(database->os, path, OS_OPEN_READ | OS_OPEN_WRITE, &file) != 0) return false;
  bool is_dropped = os_size(file, &size) == 0 && size > 0 && os_truncate(file, 0) == 0;
  os_close(file);
  return is_dropped;
}

/* NOLINTNEXTLINE(readability-non-const-parameter): written through redo.text */
int vfs_redo(struct vfs_database *database, const struct vfs_start_options *options, uint64_t *applied, char *text) {
  struct redo redo = {
      .database = database,
      .text = text,
      .pages = database->marks.pages,
      .checksum = database->marks.checksum,
      .set_index = database->marks.set_index,
      .through = options->commit_index,
      .log_first = options->log_first,
      .snapshot = options->snapshot,
      .auto_vacuum = options->auto_vacuum,
  };
  sqlite3_int64 size = 0;
  if (database->file->pMethods->xFileSize(database->file, &size) != SQLITE_OK) return VFS_IO;
  redo.file_pages = vfs_pages_new(database->file, database->page_size, VFS_REDO_BYTES);
  if (!redo.file_pages) return VFS_NO_MEMORY;
  enum vfs_trust trust = vfs_trust(database);
  bool verify = trust != VFS_TRUST_OURS || size <= VFS_VERIFY_BYTES; /* a disk changes bytes and says nothing */
#ifdef BALSA_MUTANT_REDO_SHORT
  if (database->marks.begun > database->marks.checkpointed) redo.through = database->marks.begun - 1;
#endif
  /* What another attempt to make it again left is nothing to be kept: what was, was before that began. */
  bool is_lost = size == 0 || database->marks.is_rebuilding || is_half_made(database, size) ||
                 redo.log_first > database->marks.checkpointed + 1;
  const struct redo begin = redo;
  int error = is_lost ? rebuild(&redo) : redo_file(&redo, options->log_last, trust, verify);
  bool is_redo = !is_lost && !database->marks.is_rebuilding; /* a snapshot can be read once */
  if (error == VFS_NO_SPACE && is_redo && trust == VFS_TRUST_OURS && drop_wal(database)) {
    vfs_pages_clear(redo.file_pages);
    redo = begin;
    error = redo_file(&redo, options->log_last, trust, verify);
  }
  vfs_pages_free(redo.file_pages);
  if (!error) vfs_remove_beside(database);
  if (!error) error = mark_redone(&redo);
  if (error) return error;
  *applied = redo.through;
  struct vfs_state state = {.sequence = 1, .index = redo.set_index, .checksum = redo.checksum, .pages = redo.pages};
  pthread_mutex_lock(&database->mutex);
  database->committed = database->captured = state;
  pthread_mutex_unlock(&database->mutex);
  return VFS_OK;
}
