/*
** Start of the log: segment after segment is read as a whole and its batches replayed, until one is not
** right; settle_tail then tells torn from damaged by the rules at the top of segment.c.
*/
#include "recovery.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store.h"

#define SECTOR 512u
#define ADVICE_DAMAGED                                                                                                 \
  "Entries in it were acknowledged, so it is not cut. Restore the file from a copy, or remove this node's folder "     \
  "and let it join the cluster again as a new node."

/* A segment in memory. */
struct image {
  uint32_t number;
  uint64_t salt, size;
  uint8_t *bytes;
};

static const char *error_text(int error) {
  const char *text = strerrordesc_np(-error);
  return text ? text : "unknown error";
}

__attribute__((format(printf, 3, 4))) static int fail(struct recovery *r, int error, const char *format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(r->text, RAFT_STORE_TEXT_MAX, format, list);
  va_end(list);
  return error;
}

static int fail_path(struct recovery *r, int error, const char *path, const char *what) {
  return fail(r, error, "%s: cannot %s: %s", path, what, error_text(error));
}

static int fail_damaged(struct recovery *r, uint32_t number, uint64_t offset, const char *what) {
  return fail(r, -EILSEQ, "%s/%08x.log: damaged at offset %llu: %s. " ADVICE_DAMAGED, r->folder, number,
              (unsigned long long)offset, what);
}

/* ---- The folder ---- */

static int open_folder(struct recovery *r) {
  char parent[OS_PATH_MAX];
  const char *slash = strrchr(r->folder, '/');
  int n = slash == NULL        ? snprintf(parent, sizeof parent, ".")
          : slash == r->folder ? snprintf(parent, sizeof parent, "/")
                               : snprintf(parent, sizeof parent, "%.*s", (int)(slash - r->folder), r->folder);
  if (n < 0 || (size_t)n >= sizeof parent || strlen(r->folder) + 32 > OS_PATH_MAX)
    return fail(r, -ENAMETOOLONG, "%.200s…: the path of the log's folder is too long", r->folder);
  int error = os_make_directory(r->os, r->folder);
  if (error) return fail_path(r, error, r->folder, "make the log's folder");
  /* Also what was made before: whoever did it may have died before this. */
  error = os_sync_directory(r->os, parent);
  if (error) return fail_path(r, error, parent, "sync the folder");
  error = os_sync_directory(r->os, r->folder);
  return error ? fail_path(r, error, r->folder, "sync the folder") : 0;
}

struct listing {
  uint32_t n, highest;
  bool temporary;
};

static int list_one(void *ctx, const char *name) {
  struct listing *listing = ctx;
  uint32_t number = segment_number(name);
  if (strcmp(name, SEGMENT_TEMPORARY) == 0) listing->temporary = true;
  if (number == 0) return 0;
  listing->n++;
  if (number > listing->highest) listing->highest = number;
  return 0;
}

static int remove_file(struct recovery *r, const char *path) {
  int error = os_remove(r->os, path);
  if (error == 0) error = os_sync_directory(r->os, r->folder);
  return error ? fail_path(r, error, path, "remove the file") : 0;
}

static int list_segments(struct recovery *r) {
  struct listing listing = {0};
  char path[OS_PATH_MAX];
  int error = os_list(r->os, r->folder, list_one, &listing);
  if (error) return fail_path(r, error, r->folder, "list the folder");
  if (listing.temporary) {
    snprintf(path, sizeof path, "%s/" SEGMENT_TEMPORARY, r->folder);
    error = remove_file(r, path);
    if (error) return error;
  }
  if (listing.n != listing.highest)
    return fail(r, -EILSEQ, "%s: segments are missing: there are %u, the last is %08x.log. " ADVICE_DAMAGED, r->folder,
                listing.n, listing.highest);
  r->n_segments = listing.n;
  r->salts = calloc(listing.n ? listing.n : 1, sizeof *r->salts);
  return r->salts ? 0 : fail(r, -ENOMEM, "%s: no memory to read the log", r->folder);
}

/* ---- Images ---- */

static bool is_blank(const uint8_t *bytes, uint64_t from, uint64_t to) {
  return from >= to || (bytes[from] == 0 && memcmp(bytes + from, bytes + from + 1, to - from - 1) == 0);
}

static uint64_t end_of_not_blank(const uint8_t *bytes, uint64_t from, uint64_t to) {
  while (to > from && bytes[to - 1] == 0) to--;
  return to;
}

static int read_image(struct recovery *r, const char *path, struct image *image) {
  struct os_file *file;
  int error = os_open(r->os, path, OS_OPEN_READ, &file);
  if (error) return fail_path(r, error, path, "open the segment");
  error = os_size(file, &image->size);
  if (error) fail_path(r, error, path, "get the size");
  if (error == 0 && (image->size < SEGMENT_HEADER_SIZE || image->size > SEGMENT_SIZE_MAX))
    error = fail(r, -EILSEQ, "%s: a segment can't have %llu bytes. " ADVICE_DAMAGED, path,
                 (unsigned long long)image->size);
  if (error == 0) {
    uint8_t *grown = realloc(image->bytes, image->size);
    if (grown) image->bytes = grown;
    if (grown == NULL)
      error = fail(r, -ENOMEM, "%s: no memory for its %llu bytes", path, (unsigned long long)image->size);
  }
  if (error == 0) {
    int64_t n = os_read(file, image->bytes, image->size, 0);
    if (n != (int64_t)image->size) error = fail_path(r, n < 0 ? (int)n : -EIO, path, "read the segment");
  }
  os_close(file);
  return error;
}

/*
** Reads segment `number` and checks its header. A last segment with a wrong header and nothing in it held no
** entry: it is removed, and *removed set.
*/
static int load(struct recovery *r, uint32_t number, struct image *image, bool *removed) {
  char path[OS_PATH_MAX];
  struct raft_uuid incarnation;
  *removed = false;
  int error = segment_path(r->folder, number, path);
  if (error) return fail_path(r, error, r->folder, "name a segment");
  error = read_image(r, path, image);
  if (error) return error;
  image->number = number;
  switch (segment_header_decode(image->bytes, number, &incarnation, &image->salt)) {
  case SEGMENT_HEADER_OK: break;
  case SEGMENT_HEADER_VERSION: return fail(r, -EPROTO, "%s: written by a later version of Balsa; use that one", path);
  case SEGMENT_HEADER_DAMAGED:
    if (number < r->n_segments || !is_blank(image->bytes, SEGMENT_HEADER_SIZE, image->size))
      return fail_damaged(r, number, 0, "the segment's header is wrong");
    *removed = true;
    r->n_segments--;
    return remove_file(r, path);
  }
  if (memcmp(&incarnation, &r->incarnation, sizeof incarnation) != 0)
    return fail(r, -EPROTO,
                "%s: this log belongs to another incarnation than the node's term and vote: files of two nodes are "
                "mixed in this folder. Restore all of it, or remove it and let the node join again",
                path);
  r->salts[number - 1] = image->salt;
  return 0;
}

/* ---- Replay ---- */

static bool whole_batch(const struct recovery *r, const struct image *image, uint64_t offset,
                        struct segment_batch *batch, uint64_t *checksum) {
  return image->size - offset >= BATCH_SEAL_SIZE && segment_batch_decode(image->bytes + offset, image->salt, batch) &&
         batch->length <= image->size - offset && batch->sequence == r->next_sequence &&
         batch->previous == r->previous && segment_batch_is_whole(image->bytes + offset, batch, image->salt, checksum);
}

static int add_entry(struct recovery *r, const struct raft_entry *entry, uint32_t size,
                     const struct segment_location *location) {
  if (r->n == r->capacity) {
    size_t capacity = r->capacity ? 2 * r->capacity : 1024;
    struct raft_entry_meta *metas = realloc(r->metas, capacity * sizeof *metas);
    if (metas) r->metas = metas;
    struct segment_location *locations = realloc(r->locations, capacity * sizeof *locations);
    if (locations) r->locations = locations;
    if (metas == NULL || locations == NULL) return fail(r, -ENOMEM, "%s: no memory to read the log", r->folder);
    r->capacity = capacity;
  }
  r->metas[r->n] = (struct raft_entry_meta){.term = entry->term, .size = size, .type = entry->type};
  r->locations[r->n++] = *location;
  return 0;
}

static int replay_records(struct recovery *r, const struct image *image, uint64_t offset,
                          const struct segment_batch *batch) {
  uint64_t at = offset + BATCH_HEADER_SIZE, end = offset + batch->length - BATCH_TRAILER_SIZE;
  for (uint32_t i = 0; i < batch->records; i++) {
    struct raft_entry entry;
    uint32_t size;
    if (!segment_record_decode(image->bytes + at, end - at, image->salt, &entry, &size))
      return fail_damaged(r, image->number, at, "a record is wrong in a batch that is whole");
    if (entry.index != r->first_index + r->n)
      return fail_damaged(r, image->number, at, "an entry has another index than its place");
    struct segment_location location = {.number = image->number, .offset = (uint32_t)at, .size = size};
    int error = add_entry(r, &entry, size, &location);
    if (error) return error;
    at += segment_record_size(size);
  }
  return 0;
}

static int replay_batch(struct recovery *r, const struct image *image, uint64_t offset,
                        const struct segment_batch *batch, uint64_t checksum) {
  uint64_t next = r->first_index + r->n;
  if (batch->truncate_from) {
    if (batch->truncate_from < r->first_index || batch->truncate_from > next)
      return fail_damaged(r, image->number, offset, "a batch truncates what is not in the log");
    r->n = (size_t)(batch->truncate_from - r->first_index);
  }
  if (batch->index != r->first_index + r->n)
    return fail_damaged(r, image->number, offset, "a batch does not follow the one before it");
  int error = replay_records(r, image, offset, batch);
  if (error) return error;
  r->next_sequence++;
  r->previous = checksum;
  r->number = image->number;
  r->offset = offset + batch->length;
  r->bytes += batch->length;
  r->last_bytes = batch->length;
  r->sealed = batch->records == 0 && batch->truncate_from == 0;
  return 0;
}

static int replay_image(struct recovery *r, const struct image *image) {
  struct segment_batch batch;
  uint64_t checksum;
  r->number = image->number;
  r->offset = SEGMENT_HEADER_SIZE;
  while (whole_batch(r, image, r->offset, &batch, &checksum)) {
    int error = replay_batch(r, image, r->offset, &batch, checksum);
    if (error) return error;
  }
  return 0;
}

/* ---- The tail ---- */

/* A batch header of a later sequence: only an acknowledged predecessor allows that. */
static bool has_later(const struct recovery *r, const struct image *image, uint64_t from) {
  struct segment_batch batch;
  for (uint64_t at = from; at + BATCH_HEADER_SIZE <= image->size; at += SEGMENT_ALIGN)
    if (segment_batch_decode(image->bytes + at, image->salt, &batch) && batch.sequence > r->next_sequence) return true;
  return false;
}

/* The last batch, at `offset`, is wrong: can a crash have done that? */
static bool can_be_torn(const struct image *image, uint64_t offset) {
  const uint8_t *bytes = image->bytes;
  struct segment_batch batch;
  uint64_t header_end = offset + BATCH_HEADER_SIZE;
  if (header_end > image->size) return true; /* nothing was ever written so close to the end */
  if (is_blank(bytes, offset, header_end)) return true;
  /* A header lies in one sector; only a copy that was cut short leaves its end blank. */
  if (!segment_batch_decode(bytes + offset, image->salt, &batch)) return is_blank(bytes, header_end - 8, header_end);
  uint64_t end = offset + batch.length;
  if (end > image->size) return false; /* there was room when it was written */
  if (is_blank(bytes, end - BATCH_TRAILER_SIZE, end)) return true;
  for (uint64_t at = (header_end + SECTOR - 1) / SECTOR * SECTOR; at < end; at += SECTOR)
    if (is_blank(bytes, at, at + SECTOR < end ? at + SECTOR : end)) return true;
  return false;
}

/* Zeros over [offset, end of what is not blank), durably. */
static int make_blank(struct recovery *r, const struct image *image, uint64_t offset) {
  char path[OS_PATH_MAX];
  struct os_file *file;
  uint64_t end = end_of_not_blank(image->bytes, offset, image->size);
  int error = segment_path(r->folder, image->number, path);
  if (error == 0) error = os_open(r->os, path, OS_OPEN_READ | OS_OPEN_WRITE, &file);
  if (error) return fail_path(r, error, path, "open the segment");
  memset(image->bytes + offset, 0, end - offset);
  error = os_write(file, image->bytes + offset, end - offset, offset);
  if (error == 0) error = os_sync(file);
  os_close(file);
  return error ? fail_path(r, error, path, "cut a torn batch") : 0;
}

static int cut(struct recovery *r, const struct image *image, uint64_t offset) {
  if (!can_be_torn(image, offset))
    return fail_damaged(r, image->number, offset, "the last batch is wrong, and not as a crash would leave it");
  r->cut = true;
  return make_blank(r, image, offset);
}

/* Looks at the segments after the one that may be blank: *used if one holds anything. Blank ones are removed. */
static int check_beyond(struct recovery *r, bool *used) {
  struct image image = {0};
  char path[OS_PATH_MAX];
  int error = 0;
  *used = false;
  while (error == 0 && !*used && r->n_segments > r->number + 1) {
    bool removed;
    error = load(r, r->n_segments, &image, &removed);
    if (error || removed) continue;
    *used = !is_blank(image.bytes, SEGMENT_HEADER_SIZE, image.size);
    if (*used) continue;
    error = segment_path(r->folder, image.number, path);
    if (error == 0) error = remove_file(r, path);
    if (error == 0) r->n_segments--;
  }
  free(image.bytes);
  return error;
}

/*
** Replay ended at r->offset of `image` (segment r->number). The one after it, if there is one, is in `next`: it
** does not begin with the batch that is due.
*/
static int settle_tail(struct recovery *r, const struct image *image, const struct image *next) {
  bool blank = is_blank(image->bytes, r->offset, image->size);
  bool has_next = r->number < r->n_segments;
  bool next_blank = !has_next || is_blank(next->bytes, SEGMENT_HEADER_SIZE, next->size);
  bool beyond = false;
  int error = check_beyond(r, &beyond);
  if (error) return error;
  if (beyond || (!blank && !next_blank) || has_later(r, image, r->offset) ||
      (has_next && has_later(r, next, SEGMENT_HEADER_SIZE)))
    return fail_damaged(r, blank && has_next ? next->number : image->number,
                        blank && has_next ? SEGMENT_HEADER_SIZE : r->offset,
                        "a batch is wrong, and later ones follow it");
  if (!blank) return cut(r, image, r->offset);
  if (!next_blank) return cut(r, next, SEGMENT_HEADER_SIZE);
  return 0;
}

/*
** The last batch may be in the page cache only: the process died, or was told of an error, in its write. It
** is written again before anyone may rely on it. Those before it were durable when it was begun.
*/
static int rewrite_last(struct recovery *r, const struct image *image) {
  char path[OS_PATH_MAX];
  struct os_file *file;
  uint64_t offset = r->offset - r->last_bytes;
  int error = segment_path(r->folder, image->number, path);
  if (error == 0) error = os_open(r->os, path, OS_OPEN_READ | OS_OPEN_WRITE, &file);
  if (error) return fail_path(r, error, path, "open the segment");
  error = os_write(file, image->bytes + offset, r->last_bytes, offset);
  if (error == 0) error = os_sync(file);
  os_close(file);
  return error ? fail_path(r, error, path, "write the last batch again") : 0;
}

static int replay_all(struct recovery *r, struct image *image, struct image *next) {
  bool removed;
  int error = load(r, 1, image, &removed);
  if (error || removed) return error;
  for (;;) {
    struct segment_batch batch;
    uint64_t checksum;
    error = replay_image(r, image);
    if (error) return error;
    if (r->number == r->n_segments) break;
    error = load(r, r->number + 1, next, &removed);
    if (error) return error;
    if (removed || !whole_batch(r, next, SEGMENT_HEADER_SIZE, &batch, &checksum)) break;
    struct image swap = *image;
    *image = *next;
    *next = swap;
  }
  error = settle_tail(r, image, next);
  if (error == 0 && r->last_bytes) error = rewrite_last(r, image);
  return error;
}

int recovery_run(struct recovery *r) {
  struct image image = {0}, next = {0};
  r->first_index = 1;
  r->next_sequence = 1;
  r->sealed = true;
  r->text[0] = 0;
  int error = open_folder(r);
  if (error == 0) error = list_segments(r);
  if (error == 0 && r->n_segments > 0) error = replay_all(r, &image, &next);
  free(image.bytes);
  free(next.bytes);
  return error;
}
