/*
** Reads and verifies a snapshot. A page is given out only when the LZ4 block that holds it is right; that the
** blocks together are the database is known at the end.
**
** LZ4F decodes block by block, each fed to it whole: its checksum is then verified before any of its pages is
** used, and damage has an offset. The four bytes before a block (its stored size, and whether it is raw) have no
** checksum of their own in the format. They are held against what the writer makes: a raw block has exactly the
** content's size, a compressed one less.
*/
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ext/bytes.h"
#include "file.h"

#define IN_SIZE (1u << 20)
#define BLOCK_HEADER 4u
#define BLOCK_CHECKSUM 4u
#define BLOCK_RAW 0x80000000u
#define END_SIZE 8u /* a block header of 0, the content checksum */
#define WAY_OUT "Remove this file: the node then goes on from its log, or from the snapshot of another node"

_Static_assert(BLOCK_HEADER + SNAPSHOT_BLOCK_SIZE + BLOCK_CHECKSUM <= IN_SIZE, "a block fits into the buffer");

struct snapshot_reader {
  struct os_file *file;
  LZ4F_dctx *lz4;
  struct snapshot_meta meta;
  uint8_t *head;
  struct snapshot_term *terms;
  const char *way_out;
  bool is_mended; /* the head comes from snapshot.head */
  bool has_frame; /* its header is read */
  bool ended;
  int failed;      /* the first error; it stays */
  uint64_t offset; /* in the file, of what comes next: in[in_used] */
  uint8_t *in;
  size_t in_used, in_size;
  uint8_t *block;
  uint32_t block_used, block_size;
  uint64_t left; /* bytes of the database in blocks still to come */
  uint32_t page; /* the last one given out */
  uint64_t checksum;
  char path[OS_PATH_MAX];
  char text[SNAPSHOT_TEXT_MAX];
};

/* ---- Errors ---- */

static int damaged(struct snapshot_reader *reader, uint64_t offset, const char *what) {
  return reader->failed = snapshot_say(reader->text, -EILSEQ, "%s: damaged at offset %" PRIu64 ": %s. %s", reader->path,
                                       offset, what, reader->way_out);
}

static int fail_io(struct snapshot_reader *reader, uint64_t offset, int error, const char *what) {
  return reader->failed = snapshot_say(reader->text, error, "%s: cannot %s at offset %" PRIu64 ": %s", reader->path,
                                       what, offset, snapshot_error_text(error));
}

/* ---- Bytes of the file ---- */

/* Reads exactly `size` bytes; fewer are damage. */
static int read_exactly(struct snapshot_reader *reader, void *bytes, size_t size, uint64_t offset) {
  int64_t n = os_read(reader->file, bytes, size, offset);
  if (n < 0) return fail_io(reader, offset, (int)n, "read the snapshot");
  return (size_t)n == size ? 0 : damaged(reader, offset + (uint64_t)n, "the file ends here");
}

/* Has the next `size` bytes at in + in_used, if the file goes on so far: *has tells how many are there. */
static int fill(struct snapshot_reader *reader, size_t size, size_t *has) {
  assert(size <= IN_SIZE);
  *has = reader->in_size - reader->in_used;
  if (*has >= size) return 0;
  memmove(reader->in, reader->in + reader->in_used, *has);
  reader->in_used = 0;
  reader->in_size = *has;
  int64_t n = os_read(reader->file, reader->in + *has, IN_SIZE - *has, reader->offset + *has);
  if (n < 0) return fail_io(reader, reader->offset + *has, (int)n, "read the snapshot");
  *has = reader->in_size += (size_t)n;
  return 0;
}

static int need(struct snapshot_reader *reader, size_t size) {
  size_t has;
  int error = fill(reader, size, &has);
  if (error) return error;
  return has >= size ? 0 : damaged(reader, reader->offset + has, "the file ends here");
}

static void consume(struct snapshot_reader *reader, size_t size) {
  reader->in_used += size;
  reader->offset += size;
}

/* ---- Open ---- */

/* The file's own; damage has a sentence. */
static int read_head_bytes(struct snapshot_reader *reader, uint32_t *size) {
  uint8_t fixed[SNAPSHOT_HEAD_FIXED];
  const uint8_t *terms;
  const char *what;
  uint32_t at;
  int error = read_exactly(reader, fixed, sizeof fixed, 0);
  if (error) return error;
  *size = snapshot_head_peek(fixed);
  if (*size == 0) return damaged(reader, 0, "this is not the beginning of a snapshot");
  reader->head = malloc(*size);
  if (reader->head == NULL) return fail_io(reader, 0, -ENOMEM, "read the snapshot");
  error = read_exactly(reader, reader->head, *size, 0);
  if (error) return error;
  error = snapshot_head_decode(reader->head, *size, &reader->meta, &terms, &what, &at);
  if (error == -EPROTO)
    return reader->failed = snapshot_say(reader->text, error,
                                         "%s: cannot be read, at offset %" PRIu32 ": %s. Use the version of Balsa that "
                                         "wrote it, or a later one",
                                         reader->path, at, what);
  return error ? damaged(reader, at, what) : 0;
}

/* A damaged head is replaced by its copy. true: there is one. */
static bool mend_head(struct os *os, struct snapshot_reader *reader, uint32_t *size) {
  uint8_t *copy = snapshot_find_head(os, reader->path, size);
  if (copy == NULL) return false;
  free(reader->head);
  reader->head = copy;
  reader->failed = 0;
  return reader->is_mended = true;
}

static int read_head(struct os *os, struct snapshot_reader *reader) {
  const uint8_t *terms;
  const char *what;
  uint32_t at, size;
  int error = read_head_bytes(reader, &size);
  if (error == -EILSEQ && mend_head(os, reader, &size)) error = 0;
  if (error) return error;
  error = snapshot_head_decode(reader->head, size, &reader->meta, &terms, &what, &at);
  assert(error == 0); /* it has just been looked at */
  reader->terms = malloc((reader->meta.n_terms + (size_t)1) * sizeof *reader->terms);
  if (reader->terms == NULL) return fail_io(reader, 0, -ENOMEM, "read the snapshot");
  snapshot_terms_decode(terms, reader->meta.n_terms, reader->terms);
  reader->meta.terms = reader->terms;
  reader->offset = size;
  reader->left = (uint64_t)reader->meta.pages * reader->meta.page_size;
  return 0;
}

/* The frame must be as the writer makes it: nothing less is verified, and no block is larger than the buffers. */
static int read_frame_header(struct snapshot_reader *reader) {
  LZ4F_frameInfo_t info = LZ4F_INIT_FRAMEINFO, expected = snapshot_frame(reader->left).frameInfo;
  int error = need(reader, LZ4F_HEADER_SIZE_MIN);
  if (error) return error;
  size_t size = LZ4F_headerSize(reader->in + reader->in_used, LZ4F_HEADER_SIZE_MIN);
  if (LZ4F_isError(size) || size > LZ4F_HEADER_SIZE_MAX)
    return damaged(reader, reader->offset, "the header of the LZ4 frame is not valid");
  error = need(reader, size);
  if (error) return error;
  size_t used = size;
  size_t result = LZ4F_getFrameInfo(reader->lz4, &info, reader->in + reader->in_used, &used);
  if (LZ4F_isError(result) || used != size || info.frameType != LZ4F_frame ||
      info.blockSizeID != expected.blockSizeID || info.blockMode != expected.blockMode ||
      info.contentChecksumFlag != expected.contentChecksumFlag ||
      info.blockChecksumFlag != expected.blockChecksumFlag || info.contentSize != expected.contentSize ||
      info.dictID != 0)
    return damaged(reader, reader->offset, "the header of the LZ4 frame is not that of this snapshot");
  consume(reader, size);
  return 0;
}

static int begin(struct os *os, struct snapshot_reader *reader) {
  int error = os_open(os, reader->path, OS_OPEN_READ, &reader->file);
  if (error) return fail_io(reader, 0, error, "open the snapshot");
  reader->in = malloc(IN_SIZE);
  reader->block = malloc(SNAPSHOT_BLOCK_SIZE);
  if (reader->in == NULL || reader->block == NULL ||
      LZ4F_isError(LZ4F_createDecompressionContext(&reader->lz4, LZ4F_VERSION)))
    return fail_io(reader, 0, -ENOMEM, "read the snapshot");
  return read_head(os, reader);
}

int snapshot_reader_begin(struct os *os, const char *path, const char *way_out, struct snapshot_reader **reader,
                          struct snapshot_meta *meta, char *text) {
  *reader = NULL;
  struct snapshot_reader *made = calloc(1, sizeof *made);
  if (made == NULL) return snapshot_say(text, -ENOMEM, "%s: no memory to read it", path);
  made->way_out = way_out;
  int n = snprintf(made->path, sizeof made->path, "%s", path);
  int error = n < 0 || (size_t)n >= sizeof made->path
                  ? snapshot_say(made->text, -ENAMETOOLONG, "%s: the path of this snapshot is too long", path)
                  : begin(os, made);
  if (error) {
    snapshot_say(text, error, "%s", made->text);
    snapshot_reader_close(made);
    return error;
  }
  *meta = made->meta;
  *reader = made;
  return 0;
}

int snapshot_reader_open(struct os *os, const char *path, struct snapshot_reader **reader, struct snapshot_meta *meta,
                         char *text) {
  return snapshot_reader_begin(os, path, WAY_OUT, reader, meta, text);
}

void snapshot_reader_close(struct snapshot_reader *reader) {
  if (reader == NULL) return;
  os_close(reader->file);
  LZ4F_freeDecompressionContext(reader->lz4);
  free(reader->head);
  free(reader->terms);
  free(reader->in);
  free(reader->block);
  free(reader);
}

bool snapshot_reader_is_mended(const struct snapshot_reader *reader) {
  return reader->is_mended;
}

const char *snapshot_reader_error(const struct snapshot_reader *reader) {
  return reader->text;
}

/* ---- Blocks ---- */

/* Feeds LZ4 the next `size` bytes, which must give `content` bytes into the block. *hint: what it says last. */
static int decode(struct snapshot_reader *reader, size_t size, size_t content, size_t *hint) {
  char what[128];
  size_t in = 0, out = 0;
  while (in < size) {
    size_t n = size - in, m = SNAPSHOT_BLOCK_SIZE - out;
    *hint = LZ4F_decompress(reader->lz4, reader->block + out, &m, reader->in + reader->in_used + in, &n, NULL);
    if (LZ4F_isError(*hint)) {
      snprintf(what, sizeof what, "LZ4 refuses what is stored from here on (%s)", LZ4F_getErrorName(*hint));
      return damaged(reader, reader->offset, what);
    }
    if (n == 0 && m == 0) return damaged(reader, reader->offset, "this LZ4 block has more content than it may have");
    in += n;
    out += m;
  }
  if (out != content) return damaged(reader, reader->offset, "this LZ4 block does not have the content's size");
  consume(reader, size);
  return 0;
}

static int read_block(struct snapshot_reader *reader) {
  uint32_t content = reader->left < SNAPSHOT_BLOCK_SIZE ? (uint32_t)reader->left : SNAPSHOT_BLOCK_SIZE;
  size_t hint;
  int error = need(reader, BLOCK_HEADER);
  if (error) return error;
  uint32_t header = le32_get(reader->in + reader->in_used), stored = header & ~BLOCK_RAW;
  if (header & BLOCK_RAW ? stored != content : stored == 0 || stored >= content)
    return damaged(reader, reader->offset, "the size of this LZ4 block is wrong");
  error = need(reader, BLOCK_HEADER + stored + BLOCK_CHECKSUM);
  if (error == 0) error = decode(reader, BLOCK_HEADER + stored + BLOCK_CHECKSUM, content, &hint);
  if (error) return error;
  reader->left -= content;
  reader->block_used = 0;
  reader->block_size = content;
  return 0;
}

/* After the last page: the frame's end, nothing behind it, and the checksum of the whole. */
static int read_end(struct snapshot_reader *reader) {
  uint64_t offset = reader->offset;
  size_t hint, has;
  int error = need(reader, END_SIZE);
  if (error) return error;
  if (le32_get(reader->in + reader->in_used) != 0) return damaged(reader, offset, "the LZ4 frame does not end here");
  error = decode(reader, END_SIZE, 0, &hint);
  if (error == 0 && hint != 0) error = damaged(reader, offset, "the LZ4 frame does not end here");
  if (error == 0) error = fill(reader, 1, &has);
  if (error) return error;
  if (has) return damaged(reader, reader->offset, "the file goes on after its end");
  if (reader->checksum != reader->meta.checksum)
    return damaged(reader, offset, "the pages do not give the checksum of the database");
  return 0;
}

/* What lies behind the head is looked at by who needs it: a node whose database is whole does not. */
int snapshot_reader_next(struct snapshot_reader *reader, void *page) {
  int error = 0;
  if (reader->failed) return reader->failed;
  if (!reader->has_frame) error = read_frame_header(reader);
  if (error) return error;
  reader->has_frame = true;
  if (reader->page == reader->meta.pages) {
    if (!reader->ended) error = read_end(reader);
    reader->ended = error == 0;
    return error;
  }
  if (reader->block_used == reader->block_size) error = read_block(reader);
  if (error) return error;
  uint32_t page_size = reader->meta.page_size;
  memcpy(page, reader->block + reader->block_used, page_size);
  reader->block_used += page_size;
  if (++reader->page != vfs_lock_page(page_size)) reader->checksum ^= vfs_page_hash(reader->page, page, page_size);
  return 1;
}
