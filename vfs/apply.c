/*
** Applying what others committed (design section 4), and compensation: taking back what this node wrote as
** leader and the majority does not have (section 3, "Losing leadership").
**
** Both append valid frames to the real WAL and publish them as SQLite does. Nothing is rewound: readers, those of
** other processes too, keep their snapshots whole.
*/
#include <assert.h>
#include <string.h>

#include "database.h"

/* How long compensation waits before it asks again whether it is cancelled. */
#define COMPENSATE_SLICE (100 * OS_MS)
/* How long the next entry waits for the WAL while a snapshot is written. */
#define APPLY_PACE OS_MS

/* mutex held: a published state that is committed by definition. */
static void become(struct vfs_database *database, const struct vfs_state *state) {
  assert(database->in_flight_count == 0);
  database->captured = database->committed = *state;
  vfs_boundary_push(database, state);
  pthread_cond_broadcast(&database->changed);
}

/* The content of a page within the unfinished transaction or before it. */
static int read_current(struct vfs_database *database, uint32_t page_number, uint8_t *page) {
  uint32_t frame = vfs_wal_append_find(database->wal, &database->parts_append, page_number);
  if (frame != 0) return vfs_wal_read_frame(database->wal, frame, page);
  return vfs_wal_read_page(database->wal, page_number, 0, page);
}

/* One page of a set after its patch, held back until it is known whether it is the last. */
struct held_page {
  uint32_t page_number;
  uint64_t checksum; /* what the page changes in the rolling checksum */
};

/*
** The checksum moves with each frame that was added, and with nothing else: after an error (a full disk) the same
** set is applied again from its first page, and patches are after-images.
*/
static int add_held(struct vfs_database *database, struct held_page *held, uint32_t commit_pages) {
  int code = vfs_wal_reserve(database->wal, VFS_RESERVE_FRAMES / 64);
  if (code == SQLITE_OK)
    code = vfs_wal_add(database->wal, &database->parts_append, held->page_number, database->after, commit_pages);
  if (code != SQLITE_OK) return vfs_error_of_sqlite(code);
  database->parts_checksum ^= held->checksum;
  return VFS_OK;
}

/* Patches the page that the decoder found, in `after`. */
static int hold_page(struct vfs_database *database, uint32_t page_number, bool is_full, struct held_page *held) {
  uint32_t page_size = database->page_size;
  uint32_t frame = vfs_wal_append_find(database->wal, &database->parts_append, page_number);
  bool existed = page_number <= database->parts_pages || (frame != 0 && frame >= database->parts_append.first_frame);
#ifdef BALSA_MUTANT_GROWN_PAGE_AS_PATCH
  if (!existed && !is_full && read_current(database, page_number, database->after) != SQLITE_OK) return VFS_IO;
#else
  if (!existed && !is_full) return VFS_DAMAGED;
#endif
  *held = (struct held_page){.page_number = page_number};
  if (existed) {
    if (read_current(database, page_number, database->after) != SQLITE_OK) return VFS_IO;
    held->checksum = vfs_page_hash(page_number, database->after, page_size);
  }
  vfs_decoder_patch(database->decoder, database->after);
  held->checksum ^= vfs_page_hash(page_number, database->after, page_size);
  return VFS_OK;
}

/* What the pages that the transaction cuts off take out of the checksum. */
static int shrink_checksum(struct vfs_database *database, uint32_t pages, uint64_t *checksum) {
  uint32_t lock_page = vfs_lock_page(database->page_size);
  *checksum = 0;
  for (uint32_t page_number = pages + 1; page_number <= database->parts_pages; page_number++) {
    if (page_number == lock_page) continue;
    if (read_current(database, page_number, database->before) != SQLITE_OK) return VFS_IO;
    *checksum ^= vfs_page_hash(page_number, database->before, database->page_size);
  }
  return VFS_OK;
}

static bool parts_have_frames(const struct vfs_database *database) {
  return database->parts_append.header.max_frame >= database->parts_append.first_frame;
}

/* The last frame of the transaction, which carries its size. */
static int apply_last(struct vfs_database *database, struct held_page *held, uint32_t pages) {
  uint64_t cut = 0;
  int error = shrink_checksum(database, pages, &cut);
  if (error) return error;
  if (held->page_number == 0) {
    if (!parts_have_frames(database) && pages == database->parts_pages) return VFS_OK; /* nothing changed */
    held->page_number = 1;                                                             /* a new size needs a frame */
    if (read_current(database, 1, database->after) != SQLITE_OK) return VFS_IO;
  }
  error = add_held(database, held, pages);
  if (!error) database->parts_checksum ^= cut;
  return error;
}

static int apply_pages(struct vfs_database *database, const struct vfs_change_set *set) {
  struct held_page held = {0};
  uint32_t page_number = 0;
  bool is_full = false;
  if (!vfs_decoder_open(database->decoder, set->bytes, set->size)) return VFS_DAMAGED;
  while (vfs_decoder_next(database->decoder, &page_number, &is_full)) {
    bool is_valid = page_number > held.page_number && page_number <= set->pages &&
                    page_number != vfs_lock_page(set->page_size);
    if (!is_valid) return VFS_DAMAGED;
    int error = held.page_number ? add_held(database, &held, 0) : VFS_OK;
    if (!error) error = hold_page(database, page_number, is_full, &held);
    if (error) return error;
  }
  if (set->flags & VFS_SET_LAST) return apply_last(database, &held, set->pages);
  return held.page_number ? add_held(database, &held, 0) : VFS_OK;
}

static int parts_begin(struct vfs_database *database, uint64_t epoch) {
  int code = vfs_wal_begin(database->wal, &database->parts_append);
  if (code != SQLITE_OK) return vfs_error_of_sqlite(code);
  database->parts_open = true;
  database->parts_epoch = epoch;
  database->parts_pages = database->committed.pages;
  database->parts_checksum = database->committed.checksum;
  database->parts_index = database->committed.index;
  return VFS_OK;
}

void vfs_parts_cancel(struct vfs_database *database) {
  if (!database->parts_open) return;
  vfs_wal_cancel(database->wal);
  database->parts_open = false;
}

/* The transaction is whole: verifies and publishes it. */
static int parts_finish(struct vfs_database *database, const struct vfs_log_entry *entry) {
  if (database->parts_checksum != entry->set.checksum) return VFS_DIFFERS;
  bool has_frames = parts_have_frames(database);
  if (has_frames) {
    vfs_wal_publish(database->wal, &database->parts_append);
    vfs_refresh_nonce(database);
  }
  pthread_mutex_lock(&database->mutex);
  if (has_frames) database->header = database->parts_append.header;
  struct vfs_state state = {
      .sequence = database->captured.sequence + 1,
      .index = entry->index,
      .checksum = database->parts_checksum,
      .max_frame = database->header.max_frame,
      .pages = entry->set.pages,
  };
  become(database, &state);
  pthread_mutex_unlock(&database->mutex);
  database->parts_open = false;
  return VFS_OK;
}

/* ticket held */
static int apply_set(struct vfs_database *database, const struct vfs_log_entry *entry) {
  const struct vfs_change_set *set = &entry->set;
  if (set->page_size != database->page_size) return VFS_DAMAGED;
  uint64_t previous = database->parts_open ? database->parts_index : database->committed.index;
  if (set->previous != previous) return VFS_DAMAGED;
  if (set->flags & VFS_SET_ABORT) {
    vfs_parts_cancel(database);
    pthread_mutex_lock(&database->mutex);
    database->committed.index = database->captured.index = entry->index;
    pthread_mutex_unlock(&database->mutex);
    return VFS_OK;
  }
  int error = database->parts_open ? VFS_OK : parts_begin(database, entry->epoch);
  if (error) return error;
  error = apply_pages(database, set);
  if (!error && (set->flags & VFS_SET_LAST)) error = parts_finish(database, entry);
  if (!error) database->parts_index = entry->index;
  return error;
}

static int apply_entry(struct vfs_database *database, const struct vfs_log_entry *entry) {
  struct vfs_wal_header live;
  if (vfs_wal_read_header(database->wal, &live) != SQLITE_OK) return VFS_IO;
  vfs_note_restart(database, &live);
  if (database->parts_open && entry->epoch != database->parts_epoch) vfs_parts_cancel(database);
  if (!entry->is_change_set) return VFS_OK;
  return apply_set(database, entry);
}

static const char *apply_sentence(int error) {
  switch (error) {
  case VFS_DIFFERS:
    return "this replica's content differs from what the log says it must be: it applies nothing more; the files are "
           "kept";
  case VFS_DAMAGED:
    return "the change set makes no sense for this replica: it applies nothing more; the files are kept";
  default: return vfs_error_text(error);
  }
}

int vfs_apply(struct vfs_database *database, const struct vfs_log_entry *entry, char *text) {
  if (!atomic_load(&database->ready)) {
    snprintf(text, VFS_TEXT_MAX, "%s has no first page yet", database->path);
    return VFS_BUSY;
  }
  /* Not between the parts of a transaction: until its end the WAL cannot start again. */
  if (!database->parts_open && vfs_wal_is_full(database)) vfs_wait_for_wal(database, APPLY_PACE);
  if (!vfs_ticket_take(&database->ticket, entry, VFS_TICKET_FRONT, os_now(database->os) + COMPENSATE_SLICE)) {
    snprintf(text, VFS_TEXT_MAX, "a write transaction is open on %s", database->path);
    return VFS_BUSY;
  }
  pthread_mutex_lock(&database->mutex);
  vfs_settle(database);
  assert(database->in_flight_count == 0);
  pthread_mutex_unlock(&database->mutex);
  /* The last checkpoint of a stop has to end, and what it leaves is the file as marked: nothing is added behind it. */
  int error = atomic_load(&database->stopped) ? VFS_BUSY : apply_entry(database, entry);
  uint32_t frames = database->header.max_frame;
  vfs_ticket_give(&database->ticket, entry);
  if (error)
    snprintf(text, VFS_TEXT_MAX, "%s: entry %llu: %s", database->path, (unsigned long long)entry->index,
             apply_sentence(error));
  else
    vfs_ask_for_checkpoint(database, frames);
  return error;
}

/* ---- A whole state at once ---- */

/* Adds the page in `after` if it differs from what is there. */
static int install_page(struct vfs_database *database, uint32_t page_number, struct held_page *held) {
  if (page_number <= database->parts_pages) {
    int code = vfs_wal_read_page(database->wal, page_number, database->committed.max_frame, database->before);
    if (code != SQLITE_OK) return vfs_error_of_sqlite(code);
    if (memcmp(database->before, database->after, database->page_size) == 0) return VFS_OK;
  }
  *held = (struct held_page){.page_number = page_number};
  return add_held(database, held, 0);
}

/* All pages of the source; the last frame, which carries the size, is page 1 again. */
static int install_pages(struct vfs_database *database, const struct vfs_source *source, char *text) {
  uint32_t lock_page = vfs_lock_page(database->page_size);
  struct held_page held = {0};
  uint64_t checksum = 0;
  for (uint32_t page_number = 1; page_number <= source->info.pages; page_number++) {
    int error = source->next(source->ctx, database->after, text);
    if (error) return error;
    if (page_number == lock_page) continue;
    checksum ^= vfs_page_hash(page_number, database->after, database->page_size);
    error = install_page(database, page_number, &held);
    if (error) return error;
  }
  if (checksum != source->info.checksum) return VFS_DIFFERS;
  database->parts_checksum = checksum;
  if (held.page_number == 0 && source->info.pages == database->parts_pages) return VFS_OK; /* it is that state */
  if (read_current(database, 1, database->after) != SQLITE_OK) return VFS_IO;
  held = (struct held_page){.page_number = 1};
  return add_held(database, &held, source->info.pages);
}

/* ticket held */
static int install_state(struct vfs_database *database, const struct vfs_source *source, char *text) {
  struct vfs_wal_header live;
  if (vfs_wal_read_header(database->wal, &live) != SQLITE_OK) return VFS_IO;
  vfs_note_restart(database, &live);
  vfs_parts_cancel(database);
  struct vfs_log_entry end = {
      .index = source->info.index,
      .set = {.checksum = source->info.checksum, .pages = source->info.pages},
  };
  int error = parts_begin(database, 0);
  if (!error) error = install_pages(database, source, text);
  if (!error) error = parts_finish(database, &end);
  if (error) vfs_parts_cancel(database);
  return error;
}

int vfs_install(struct vfs_database *database, const struct vfs_source *source, char *text) {
  text[0] = 0;
  if (!atomic_load(&database->ready)) return VFS_BUSY;
  if (source->info.page_size != database->page_size || source->info.pages == 0) return VFS_DAMAGED;
  if (!vfs_ticket_take(&database->ticket, source, VFS_TICKET_FRONT, os_now(database->os) + COMPENSATE_SLICE))
    return VFS_BUSY;
  pthread_mutex_lock(&database->mutex);
  vfs_settle(database);
  assert(database->in_flight_count == 0);
  pthread_mutex_unlock(&database->mutex);
  int error = atomic_load(&database->stopped) ? VFS_BUSY : install_state(database, source, text); /* as vfs_apply */
  vfs_ticket_give(&database->ticket, source);
  if (error && !text[0])
    snprintf(text, VFS_TEXT_MAX, "%s: a snapshot cannot be installed: %s", database->path, apply_sentence(error));
  if (!error && !atomic_exchange(&database->checkpoint_wanted, true))
    database->methods->want_checkpoint(database->node);
  return error;
}

static void name_blocker(struct vfs_database *database) {
  const struct vfs_connection *holder = vfs_ticket_holder(&database->ticket);
  vfs_set_blocked(database,
                  "blocked by a write transaction that was open on %s when leadership ended (connection %p): "
                  "end it with ROLLBACK or COMMIT",
                  database->path, (const void *)holder);
}

int vfs_compensate(struct vfs_database *database, uint64_t commit_index, bool (*cancelled)(void *node),
                   uint64_t *applied) {
  if (!atomic_load(&database->ready)) {
    *applied = 0;
    return VFS_OK;
  }
  const char *holder = "compensation";
  while (!vfs_ticket_take(&database->ticket, holder, VFS_TICKET_FRONT, os_now(database->os) + COMPENSATE_SLICE)) {
    if (cancelled(database->node)) return VFS_STOPPED;
    name_blocker(database);
  }
  vfs_committed(database, commit_index);
  struct vfs_wal_header live;
  int error = vfs_wal_read_header(database->wal, &live) == SQLITE_OK ? VFS_OK : VFS_IO;
  if (!error) vfs_note_restart(database, &live);
  pthread_mutex_lock(&database->mutex);
  vfs_settle(database);
  struct vfs_state target = database->committed;
  pthread_mutex_unlock(&database->mutex);
  if (!error) error = vfs_restore(database, &target);
  /* Want of room or memory passes: until then readers wait for what is neither committed nor taken back. */
  if (error && error != VFS_NO_SPACE && error != VFS_NO_MEMORY) atomic_store(&database->wal_failed, true);
  pthread_mutex_lock(&database->mutex);
  if (!error) {
    if (database->captured.sequence > target.sequence)
      vfs_lose(database, target.sequence + 1, database->captured.sequence);
    database->in_flight_count = 0;
    struct vfs_state state = target;
    state.sequence = database->captured.sequence + 1;
    state.token = (struct vfs_token){0};
    state.max_frame = database->header.max_frame;
    become(database, &state);
    *applied = state.index;
    database->blocked[0] = 0;
  }
  pthread_mutex_unlock(&database->mutex);
  atomic_store(&database->parts_dangling, false);
  vfs_ticket_give(&database->ticket, holder);
  return error;
}

void vfs_committed(struct vfs_database *database, uint64_t index) {
  uint64_t known = atomic_load(&database->commit_index);
  while (known < index && !atomic_compare_exchange_weak(&database->commit_index, &known, index)) continue;
}

void vfs_epoch_lost(struct vfs_database *database) {
  atomic_fetch_add(&database->generation, 1);
}
