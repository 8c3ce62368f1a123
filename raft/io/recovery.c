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
  "Entries in it were acknowledged, so it is not cut. Restore the file from a copy, or start the node with "           \
  "rebuild=1: "                                                                                                        \
  "it then begins anew from the other members"

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
  uint32_t first; /* of the log */
  uint32_t n, highest;
  bool temporary;
  uint32_t *before; /* numbers before the first; malloc'ed */
  size_t n_before, capacity;
};

static int list_before(struct listing *listing, uint32_t number) {
  if (listing->n_before == listing->capacity) {
    size_t capacity = listing->capacity ? 2 * listing->capacity : 16;
    uint32_t *before = realloc(listing->before, capacity * sizeof *before);
    if (before == NULL) return -ENOMEM;
    listing->before = before;
    listing->capacity = capacity;
  }
  listing->before[listing->n_before++] = number;
  return 0;
}

static int list_one(void *ctx, const char *name) {
  struct listing *listing = ctx;
  uint32_t number = segment_number(name);
  if (strcmp(name, SEGMENT_TEMPORARY) == 0) listing->temporary = true;
  if (number == 0) return 0;
  if (number < listing->first) return list_before(listing, number);
  listing->n++;
  if (number > listing->highest) listing->highest = number;
  return 0;
}

static int remove_file(struct recovery *r, const char *path) {
  int error = os_remove(r->os, path);
  if (error == 0) error = os_sync_directory(r->os, r->folder);
  return error ? fail_path(r, error, path, "remove the file") : 0;
}

/* Segments before the first: the base says that nobody needs them. */
static int keep_or_remove(struct recovery *r, const struct listing *listing) {
  char path[OS_PATH_MAX];
  for (size_t i = 0; i < listing->n_before; i++) {
    if (r->n_kept < SEGMENTS_KEPT_MAX) {
      r->kept[r->n_kept++] = listing->before[i];
      continue;
    }
    int error = segment_path(r->folder, listing->before[i], path);
    if (error == 0) error = os_remove(r->os, path);
    if (error) return fail_path(r, error, path, "remove the file");
  }
  return 0; /* names that come back are removed the next time */
}

static int check_listing(struct recovery *r, const struct listing *listing) {
  if (listing->n == 0 && r->is_recorded)
    return fail(r, -EILSEQ, "%s: segments are missing: the log begins with %08x.log. " ADVICE_DAMAGED, r->folder,
                r->base.number);
  if (listing->n > 0 && listing->n != listing->highest - r->base.number + 1)
    return fail(r, -EILSEQ,
                "%s: segments are missing: the first should be %08x.log, the last is %08x.log, and there are "
                "%u. " ADVICE_DAMAGED,
                r->folder, r->base.number, listing->highest, listing->n);
  return 0;
}

static int use_listing(struct recovery *r, const struct listing *listing) {
  char path[OS_PATH_MAX];
  int error = 0;
  if (listing->temporary) {
    snprintf(path, sizeof path, "%s/" SEGMENT_TEMPORARY, r->folder);
    error = remove_file(r, path);
  }
  if (error == 0) error = check_listing(r, listing);
  if (error == 0) error = keep_or_remove(r, listing);
  if (error) return error;
  r->last_number = r->base.number - 1 + listing->n;
  r->facts = calloc(listing->n ? listing->n : 1, sizeof *r->facts);
  return r->facts ? 0 : fail(r, -ENOMEM, "%s: no memory to read the log", r->folder);
}

static int list_segments(struct recovery *r) {
  struct listing listing = {.first = r->base.number};
  int error = os_list(r->os, r->folder, list_one, &listing);
  error = error ? fail_path(r, error, r->folder, "list the folder") : use_listing(r, &listing);
  free(listing.before);
  return error;
}

static int open_base(struct recovery *r) {
  int error = segment_base_open(r->os, r->folder, &r->base, &r->is_recorded, &r->base_file);
  if (error == -EILSEQ)
    return fail(r, error,
                "%s/" SEGMENT_BASE ": damaged at offset 0: where the log begins is not known. " ADVICE_DAMAGED,
                r->folder);
  if (error == -EPROTO)
    return fail(r, error, "%s/" SEGMENT_BASE ": written by a later version of Balsa; use that one", r->folder);
  if (error) return fail(r, error, "%s/" SEGMENT_BASE ": cannot open the file: %s", r->folder, error_text(error));
  r->first_index = r->base.index + 1;
  r->next_sequence = r->base.sequence;
  r->previous = r->base.previous;
  return 0;
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

static struct segment_facts *facts_of(const struct recovery *r, uint32_t number) {
  return &r->facts[number - r->base.number];
}

/*
** Reads segment `number` and checks its header. A last segment with a wrong header and nothing in it held no
** entry: it is removed, and *removed set; but not one that the base names.
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
    if (number < r->last_number || !is_blank(image->bytes, SEGMENT_HEADER_SIZE, image->size) ||
        (number == r->base.number && r->is_recorded))
      return fail_damaged(r, number, 0, "the segment's header is wrong");
    *removed = true;
    r->last_number--;
    return remove_file(r, path);
  }
  if (memcmp(&incarnation, &r->incarnation, sizeof incarnation) != 0)
    return fail(r, -EPROTO,
                "%s: this log belongs to another incarnation than the node's term and vote: files of two nodes are "
                "mixed in this folder. Restore all of it, or remove it and let the node join again",
                path);
  facts_of(r, number)->salt = image->salt;
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
  /* The first one of a compacted log may follow on what is gone, and is then replaced later. */
  if (r->is_recorded && batch->sequence == r->base.sequence && batch->index > next)
    next = r->first_index = batch->index;
  if (batch->truncate_from) {
    if (batch->truncate_from <= r->base.index || batch->truncate_from > next)
      return fail_damaged(r, image->number, offset, "a batch truncates what is not in the log");
    if (batch->truncate_from <= r->commit_index)
      return fail_damaged(r, image->number, offset, "a batch truncates what was committed");
    if (batch->truncate_from < r->first_index) r->first_index = batch->truncate_from;
    r->n = (size_t)(batch->truncate_from - r->first_index);
  }
  if (batch->index != r->first_index + r->n)
    return fail_damaged(r, image->number, offset, "a batch does not follow the one before it");
  int error = replay_records(r, image, offset, batch);
  if (error) return error;
  if (batch->commit >= r->first_index + r->n)
    return fail_damaged(r, image->number, offset, "a batch says that more is committed than there is");
  if (batch->commit > r->commit_index) r->commit_index = batch->commit;
  r->next_sequence++;
  r->previous = checksum;
  r->number = image->number;
  r->offset = offset + batch->length;
  r->bytes += batch->length;
  facts_of(r, image->number)->bytes += batch->length;
  r->last_bytes = batch->length;
  r->sealed = batch->records == 0 && batch->truncate_from == 0;
  return 0;
}

static int replay_image(struct recovery *r, const struct image *image) {
  struct segment_batch batch;
  uint64_t checksum;
  r->number = image->number;
  r->offset = SEGMENT_HEADER_SIZE;
  facts_of(r, image->number)->sequence = r->next_sequence;
  facts_of(r, image->number)->previous = r->previous;
  while (whole_batch(r, image, r->offset, &batch, &checksum)) {
#ifdef BALSA_MUTANT_CUT_ACKNOWLEDGED
    if (is_blank(image->bytes, r->offset + batch.length, image->size) && batch.records > 0) break;
#endif
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
#ifdef BALSA_MUTANT_CUT_ACKNOWLEDGED
  return true;
#endif
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

static int write_base(struct recovery *r) {
  int error = segment_base_write(r->base_file, &r->base);
  return error ? fail(r, error, "%s/" SEGMENT_BASE ": cannot write the file: %s", r->folder, error_text(error)) : 0;
}

/* Zeros where the base says that a batch is cut, durably; then the base says so no more. */
static int make_blank(struct recovery *r) {
  char path[OS_PATH_MAX];
  struct os_file *file;
  size_t size = r->base.cut_to - r->base.cut_from;
  int error = segment_path(r->folder, r->base.cut_number, path);
  if (error == 0) error = os_open(r->os, path, OS_OPEN_READ | OS_OPEN_WRITE, &file);
  if (error) return fail_path(r, error, path, "open the segment");
  uint8_t *zeros = calloc(1, size + 1);
  error = zeros ? os_write(file, zeros, size, r->base.cut_from) : -ENOMEM;
  if (error == 0) error = os_sync(file);
  free(zeros);
  os_close(file);
  if (error) return fail_path(r, error, path, "cut a torn batch");
  r->base.cut_number = r->base.cut_from = r->base.cut_to = 0;
  return write_base(r);
}

static int cut(struct recovery *r, const struct image *image, uint64_t offset) {
  if (!can_be_torn(image, offset))
    return fail_damaged(r, image->number, offset, "the last batch is wrong, and not as a crash would leave it");
  uint64_t end = end_of_not_blank(image->bytes, offset, image->size);
  r->cut = true;
  r->base.cut_number = image->number;
  r->base.cut_from = (uint32_t)offset;
  r->base.cut_to = (uint32_t)end;
  memset(image->bytes + offset, 0, end - offset);
  int error = write_base(r);
  return error ? error : make_blank(r);
}

/* The last start failed in the middle of a cut: whatever is read there now, it may not be on the disk. */
static int finish_cut(struct recovery *r) {
  if (r->base.cut_number == 0) return 0;
  r->cut = true;
  return make_blank(r);
}

/* Looks at the segments after the one that may be blank: *used if one holds anything. Blank ones are removed. */
static int check_beyond(struct recovery *r, bool *used) {
  struct image image = {0};
  char path[OS_PATH_MAX];
  int error = 0;
  *used = false;
  while (error == 0 && !*used && r->last_number > r->number + 1) {
    bool removed;
    error = load(r, r->last_number, &image, &removed);
    if (error || removed) continue;
    *used = !is_blank(image.bytes, SEGMENT_HEADER_SIZE, image.size);
    if (*used) continue;
    error = segment_path(r->folder, image.number, path);
    if (error == 0) error = remove_file(r, path);
    if (error == 0) r->last_number--;
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
  bool has_next = r->number < r->last_number;
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

/* Before anything is written: whoever finds the lost end again must be able to put it back. */
static int check_end(struct recovery *r) {
  uint64_t last = r->first_index + r->n - 1;
  if (last >= r->last_index_least) return 0;
  return fail(r, -EILSEQ,
              "%s: the log ends at entry %llu, in %08x.log at offset %llu, but it once went through entry "
              "%llu: the end of the log is lost. " ADVICE_DAMAGED,
              r->folder, (unsigned long long)last, r->number, (unsigned long long)r->offset,
              (unsigned long long)r->last_index_least);
}

static int replay_all(struct recovery *r, struct image *image, struct image *next) {
  bool removed;
  int error = load(r, r->base.number, image, &removed);
  if (error || removed) return error;
  for (;;) {
    struct segment_batch batch;
    uint64_t checksum;
    error = replay_image(r, image);
    if (error) return error;
    if (r->number == r->last_number) break;
    error = load(r, r->number + 1, next, &removed);
    if (error) return error;
    if (removed || !whole_batch(r, next, SEGMENT_HEADER_SIZE, &batch, &checksum)) break;
    struct image swap = *image;
    *image = *next;
    *next = swap;
  }
  error = check_end(r);
  if (error == 0) error = settle_tail(r, image, next);
  if (error == 0 && r->first_index != r->base.index + 1)
    error = fail_damaged(r, r->base.number, SEGMENT_HEADER_SIZE, "the log does not begin where it should");
  if (error == 0 && r->last_bytes) error = rewrite_last(r, image);
  return error;
}

int recovery_run(struct recovery *r) {
  struct image image = {0}, next = {0};
  r->sealed = true;
  r->text[0] = 0;
  int error = open_folder(r);
  if (error == 0) error = open_base(r);
  if (error == 0) error = list_segments(r);
  if (error == 0) error = finish_cut(r);
  if (error == 0) error = r->last_number >= r->base.number ? replay_all(r, &image, &next) : check_end(r);
  free(image.bytes);
  free(next.bytes);
  return error;
}
