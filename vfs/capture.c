/*
** Capture: what a transaction wrote, taken at the unlock of WRITE (design section 3, steps 3–5).
**
** What lies between the header of the captured state and the live header is the transaction: of each
** page the highest frame, and the new size. Not earlier: the commit frame's xWrite is no safe sign (after a
** spill, an overwrite and ROLLBACK TO its header stays zero), and SQLite may still fail before it publishes.
**
** Everything here runs with the ticket held.
*/
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "database.h"

struct page_frame {
  uint32_t page_number, frame;
};

bool vfs_same_salt(const struct vfs_wal_header *a, const struct vfs_wal_header *b) {
  return a->salt[0] == b->salt[0] && a->salt[1] == b->salt[1];
}

static int compare_page_frames(const void *left, const void *right) {
  const struct page_frame *a = left;
  const struct page_frame *b = right;
  if (a->page_number != b->page_number) return a->page_number < b->page_number ? -1 : 1;
  return a->frame < b->frame ? -1 : a->frame > b->frame;
}

/*
** The pages with a frame in (after, through], each with its highest one, by rising page number; pages
** beyond `pages` left out. *list is the caller's to free.
*/
static int collect_pages(struct vfs_database *database, uint32_t after, uint32_t through, uint32_t pages,
                         struct page_frame **list, uint32_t *count) {
  uint32_t n_frames = through - after;
  struct page_frame *found = malloc(((size_t)n_frames + 1) * sizeof *found);
  if (!found) return VFS_NO_MEMORY;
  uint32_t n = 0;
  for (uint32_t frame = after + 1; frame <= through; frame++) {
    uint32_t page_number = vfs_wal_frame_page(database->wal, frame);
    if (page_number == 0) {
      free(found);
      return VFS_IO;
    }
    if (page_number <= pages) found[n++] = (struct page_frame){page_number, frame};
  }
  qsort(found, n, sizeof *found, compare_page_frames);
  uint32_t kept = 0;
  for (uint32_t i = 0; i < n; i++) {
    if (i + 1 < n && found[i + 1].page_number == found[i].page_number) continue;
    found[kept++] = found[i];
  }
  *list = found;
  *count = kept;
  return VFS_OK;
}

/* Grows the ring by one free place, so that recording a proposal cannot fail. */
static bool in_flight_reserve(struct vfs_database *database) {
  bool ok = true;
  pthread_mutex_lock(&database->mutex);
  vfs_settle(database);
  if (database->in_flight_count == database->in_flight_capacity) {
    uint32_t capacity = database->in_flight_capacity ? database->in_flight_capacity * 2 : 64;
    struct vfs_state *states = malloc(capacity * sizeof *states);
    if (states) {
      for (uint32_t i = 0; i < database->in_flight_count; i++)
        states[i] = database->in_flight[(database->in_flight_first + i) % database->in_flight_capacity];
      free(database->in_flight);
      database->in_flight = states;
      database->in_flight_first = 0;
      database->in_flight_capacity = capacity;
    }
    ok = states != NULL;
  }
  pthread_mutex_unlock(&database->mutex);
  return ok;
}

/* mutex held; there is room. */
static void in_flight_push(struct vfs_database *database, const struct vfs_state *state) {
  uint32_t last = (database->in_flight_first + database->in_flight_count) % database->in_flight_capacity;
  database->in_flight[last] = *state;
  database->in_flight_count++;
}

/* The state that the set under construction leads to, and the parts sent so far. */
struct capture {
  struct vfs_database *database;
  struct vfs_connection *connection;
  struct vfs_wal_header live;
  uint32_t bound; /* frames up to here are the state before */
  uint32_t old_pages;
  uint64_t checksum;
  uint64_t previous; /* index of the set or part before */
  bool sent_part;
  bool has_new_schema;
};

#define SCHEMA_COOKIE_OFFSET 40 /* of page 1 */

/* Sends what the encoder holds. */
static int propose(struct capture *capture, uint8_t flags) {
  struct vfs_database *database = capture->database;
  struct vfs_change_set set = {
      .flags = flags,
      .page_size = database->page_size,
      .pages = capture->live.pages,
      .previous = capture->previous,
      .checksum = capture->checksum,
  };
  if (flags & VFS_SET_ABORT)
    set.bytes = NULL;
  else if (!vfs_encoder_finish(database->encoder, &set.bytes, &set.size))
    return VFS_NO_MEMORY;
  uint64_t deadline = os_now(database->os) + capture->connection->timeout_ms * OS_MS;
  uint64_t index = 0;
  int error = database->methods->propose(database->node, capture->connection->epoch, &set, deadline, &index);
  if (error) return error;
  assert(index > capture->previous);
  capture->previous = index;
  if (flags & VFS_SET_PART) capture->sent_part = true;
  vfs_encoder_reset(database->encoder);
  return VFS_OK;
}

static bool is_grown(const struct capture *capture, uint32_t page_number) {
  return page_number > capture->old_pages;
}

/* Adds one page to the set. */
static int capture_page(struct capture *capture, const struct page_frame *at) {
  struct vfs_database *database = capture->database;
  uint32_t page_size = database->page_size;
  if (vfs_wal_read_frame(database->wal, at->frame, database->after) != SQLITE_OK) return VFS_IO;
  const uint8_t *before = NULL;
  if (!is_grown(capture, at->page_number)) {
    if (vfs_wal_read_page(database->wal, at->page_number, capture->bound, database->before) != SQLITE_OK) return VFS_IO;
    before = database->before;
    if (memcmp(before, database->after, page_size) == 0) return VFS_OK;
    capture->checksum ^= vfs_page_hash(at->page_number, before, page_size);
    if (at->page_number == 1 && memcmp(before + SCHEMA_COOKIE_OFFSET, database->after + SCHEMA_COOKIE_OFFSET, 4) != 0)
      capture->has_new_schema = true;
  }
#ifdef BALSA_MUTANT_GROWN_PAGE_AS_PATCH
  if (!before && vfs_wal_read_page(database->wal, at->page_number, capture->bound, database->before) == SQLITE_OK)
    before = database->before;
#endif
  capture->checksum ^= vfs_page_hash(at->page_number, database->after, page_size);
  if (!vfs_encoder_add(database->encoder, at->page_number, before, database->after)) return VFS_NO_MEMORY;
  if (vfs_encoder_size(database->encoder) < database->part_bytes) return VFS_OK;
  return propose(capture, VFS_SET_PART);
}

/* Takes the pages that the transaction cut off out of the checksum. */
static int capture_shrink(struct capture *capture) {
  struct vfs_database *database = capture->database;
  uint32_t lock_page = vfs_lock_page(database->page_size);
  for (uint32_t page_number = capture->live.pages + 1; page_number <= capture->old_pages; page_number++) {
    if (page_number == lock_page) continue;
    if (vfs_wal_read_page(database->wal, page_number, capture->bound, database->before) != SQLITE_OK) return VFS_IO;
    capture->checksum ^= vfs_page_hash(page_number, database->before, database->page_size);
  }
  return VFS_OK;
}

/*
** SQLite writes every page by which it grows the database. A page that it left out would show stale
** bytes under its number, different on each node: such a transaction is not sent.
*/
static bool grown_pages_complete(const struct capture *capture, const struct page_frame *list, uint32_t count) {
  if (capture->live.pages <= capture->old_pages) return true;
  uint32_t expected = capture->live.pages - capture->old_pages;
  uint32_t lock_page = vfs_lock_page(capture->database->page_size);
  if (lock_page > capture->old_pages && lock_page <= capture->live.pages) expected--;
  uint32_t grown = 0;
  for (uint32_t i = 0; i < count; i++)
    grown += list[i].page_number > capture->old_pages && list[i].page_number != lock_page;
  return grown == expected;
}

static int capture_set(struct capture *capture) {
  struct page_frame *list = NULL;
  uint32_t count = 0;
  int error = collect_pages(capture->database, capture->bound, capture->live.max_frame, capture->live.pages, &list,
                            &count);
  if (error) return error;
  vfs_encoder_reset(capture->database->encoder);
  if (!grown_pages_complete(capture, list, count)) error = VFS_DAMAGED;
  if (!error) error = capture_shrink(capture);
  for (uint32_t i = 0; !error && i < count; i++) error = capture_page(capture, &list[i]);
  if (!error) error = propose(capture, VFS_SET_LAST);
  free(list);
  return error;
}

/* Ends the parts that were sent. If even that fails, the next writer tries again, or a later term cancels them. */
static void abort_parts(struct capture *capture) {
  vfs_encoder_reset(capture->database->encoder);
  capture->database->dangling_index = capture->previous;
  atomic_store(&capture->database->parts_dangling, true);
  if (propose(capture, VFS_SET_ABORT) != VFS_OK) return;
  atomic_store(&capture->database->parts_dangling, false);
  pthread_mutex_lock(&capture->database->mutex);
  capture->database->captured.index = capture->previous;
  pthread_mutex_unlock(&capture->database->mutex);
}

int vfs_end_dangling_parts(struct vfs_connection *connection) {
  struct vfs_database *database = connection->database;
  struct capture capture = {.database = database, .connection = connection, .previous = database->dangling_index};
  abort_parts(&capture);
  return atomic_load(&database->parts_dangling) ? VFS_BUSY : VFS_OK;
}

static void record(struct capture *capture) {
  struct vfs_database *database = capture->database;
  struct vfs_connection *connection = capture->connection;
  pthread_mutex_lock(&database->mutex);
  struct vfs_state state = {
      .sequence = database->captured.sequence + 1,
      .token = {connection->epoch, capture->previous},
      .index = capture->previous,
      .checksum = capture->checksum,
      .max_frame = capture->live.max_frame,
      .pages = capture->live.pages,
  };
  in_flight_push(database, &state);
  if (capture->has_new_schema) database->schema_sequence = state.sequence;
  database->captured = state;
  database->header = capture->live;
  pthread_cond_broadcast(&database->changed);
  pthread_mutex_unlock(&database->mutex);
  connection->pending = VFS_PENDING_COMMIT;
  connection->pending_sequence = state.sequence;
  connection->pending_token = connection->last_commit = state.token;
}

/*
** Who saw the live header waits for sequence captured+1: it is a lost one. The state below it stays what it was, but
** ends at a later frame now.
*/
static void record_loss(struct vfs_database *database) {
  pthread_mutex_lock(&database->mutex);
  uint64_t sequence = ++database->captured.sequence;
  vfs_lose(database, sequence, sequence);
  database->captured.max_frame = database->header.max_frame;
  if (database->in_flight_count > 0) {
    uint32_t last = (database->in_flight_first + database->in_flight_count - 1) % database->in_flight_capacity;
    database->in_flight[last].max_frame = database->header.max_frame;
  } else {
    database->committed.max_frame = database->header.max_frame;
    vfs_boundary_push(database, &database->committed);
  }
  pthread_cond_broadcast(&database->changed);
  pthread_mutex_unlock(&database->mutex);
}

/* The transaction is not sent: takes it back and tells it so. */
static void refuse(struct capture *capture, int error) {
  struct vfs_database *database = capture->database;
  struct vfs_connection *connection = capture->connection;
  if (capture->sent_part) abort_parts(capture);
  pthread_mutex_lock(&database->mutex);
  vfs_settle(database);
  struct vfs_state target = database->captured;
  pthread_mutex_unlock(&database->mutex);
  bool restored = vfs_restore(database, &target) == VFS_OK;
  if (restored)
    record_loss(database);
  else
    atomic_store(&database->wal_failed, true); /* it shows what will never be */
  connection->pending = !restored ? VFS_PENDING_UNKNOWN : error == VFS_NO_SPACE ? VFS_PENDING_FULL : VFS_PENDING_LOST;
  if (!restored)
    vfs_connection_fail(
        connection,
        "the transaction was not sent (%s), so there is no token of it, and could not be taken back: this "
        "node serves no reads until it starts again, and then it is lost",
        vfs_error_text(error));
  else if (error == VFS_NO_SPACE)
    vfs_connection_explain(connection, error);
  else if (error == VFS_NOT_HERE || error == VFS_STOPPED)
    vfs_connection_fail(connection,
                        "the transaction is lost: this node stopped leading before it was sent; run it again");
  else
    vfs_connection_fail(connection, "the transaction is lost: %s; run it again", vfs_error_text(error));
}

void vfs_note_restart(struct vfs_database *database, const struct vfs_wal_header *live) {
  if (vfs_same_salt(live, &database->header)) return;
  pthread_mutex_lock(&database->mutex);
  vfs_settle(database);
  assert(database->in_flight_count == 0);
  database->committed.max_frame = database->captured.max_frame = 0;
  database->boundaries_count = 0;
  database->header.max_frame = 0;
  memcpy(database->header.salt, live->salt, sizeof live->salt);
  atomic_store(&database->held_frame, 0);
  atomic_store(&database->is_held_back, false);
  pthread_cond_broadcast(&database->changed);
  pthread_mutex_unlock(&database->mutex);
  vfs_refresh_nonce(database);
}

int vfs_capture(struct vfs_connection *connection) {
  struct vfs_database *database = connection->database;
  struct capture capture = {.database = database, .connection = connection};
  int code = vfs_wal_read_header(database->wal, &capture.live);
  if (code != SQLITE_OK) { /* nobody else writes it: memory or a stranger has damaged it */
    atomic_store(&database->wal_failed, true);
    connection->pending = VFS_PENDING_UNKNOWN;
    return code;
  }
  vfs_note_restart(database, &capture.live);
  if (capture.live.max_frame == database->header.max_frame) return SQLITE_OK;
  vfs_refresh_nonce(database);

  capture.bound = database->header.max_frame;
  capture.old_pages = database->captured.pages;
  capture.checksum = database->captured.checksum;
  capture.previous = database->captured.index;
  int error = VFS_OK;
#ifndef BALSA_MUTANT_STALE_EPOCH
  if (atomic_load(&database->generation) != connection->generation) error = VFS_NOT_HERE;
#endif
  if (!error && !in_flight_reserve(database)) error = VFS_NO_MEMORY;
  if (!error) error = capture_set(&capture);
  if (error)
    refuse(&capture, error);
  else
    record(&capture);
  vfs_ask_for_checkpoint(database, capture.live.max_frame);
  return SQLITE_OK;
}

int vfs_reserve_frame(struct vfs_connection *connection, uint32_t frame) {
  struct vfs_database *database = connection->database;
  struct vfs_wal_header live;
  int code = vfs_wal_read_header(database->wal, &live);
  if (code != SQLITE_OK) return code;
  pthread_mutex_lock(&database->mutex);
  uint32_t committed = database->committed.max_frame;
  pthread_mutex_unlock(&database->mutex);
  if (committed >= frame) committed = 0; /* SQLite has just restarted the WAL */
  /* At most a frame for each that is not committed, and one if there is none (vfs_restore). */
  uint32_t taking_back = frame - committed + 1;
  if (frame > UINT32_MAX / 4) return SQLITE_FULL;
  code = vfs_wal_make_room(database->wal, frame + taking_back);
  if (code == SQLITE_FULL) {
    vfs_want_checkpoint(database); /* from its beginning there may be room */
    vfs_connection_fail(connection,
                        "%s-wal has no room for frame %u, and for taking the transaction back: make room on its disk; "
                        "nothing of the transaction is left",
                        database->path, frame);
  }
  /* The wal-index must not fail to grow after the frames are written. Counted from the live header: the captured one is of the
  ** WAL before, if SQLite has just restarted it. */
  uint32_t unpublished = frame > live.max_frame ? frame - live.max_frame : 0;
  if (code == SQLITE_OK && frame % (VFS_RESERVE_FRAMES / 2) == 0) {
    code = vfs_wal_reserve(database->wal, unpublished + taking_back + VFS_RESERVE_FRAMES);
    if (code != SQLITE_OK) code = vfs_fail_shm(connection, frame, code);
  }
  return code;
}

/* Appends the content that `list`'s pages have at frame `bound`, as one transaction of `target`'s size. */
static int append_pages(struct vfs_database *database, const struct page_frame *list, uint32_t count, uint32_t bound,
                        uint32_t pages, struct vfs_wal_append *append) {
  int code = vfs_wal_reserve(database->wal, count + 1);
  if (code == SQLITE_OK) code = vfs_wal_begin(database->wal, append);
  for (uint32_t i = 0; code == SQLITE_OK && i < count; i++) {
    code = vfs_wal_read_page(database->wal, list[i].page_number, bound, database->before);
    if (code == SQLITE_OK)
      code = vfs_wal_add(database->wal, append, list[i].page_number, database->before, i + 1 == count ? pages : 0);
  }
  return code;
}

int vfs_restore(struct vfs_database *database, const struct vfs_state *target) {
  struct vfs_wal_header live;
  struct vfs_wal_append append = {0};
  struct page_frame *list = NULL;
  uint32_t count = 0;
  int error = vfs_wal_read_header(database->wal, &live) == SQLITE_OK ? VFS_OK : VFS_IO;
  if (error) goto failed;
  if (live.max_frame != target->max_frame) {
    error = collect_pages(database, target->max_frame, live.max_frame, target->pages, &list, &count);
    if (error) goto failed;
    if (count == 0) {
      list[0].page_number = 1; /* a commit needs a frame */
      count = 1;
    }
    error = vfs_error_of_sqlite(append_pages(database, list, count, target->max_frame, target->pages, &append));
    if (error) goto failed;
    vfs_wal_publish(database->wal, &append);
    vfs_refresh_nonce(database);
    live = append.header;
  }
  pthread_mutex_lock(&database->mutex);
  database->header = live;
  pthread_mutex_unlock(&database->mutex);
  free(list);
  return VFS_OK;

failed:
  free(list);
  vfs_wal_cancel(database->wal);
  return error;
}
