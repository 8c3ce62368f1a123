/*
** Writes a snapshot: blocks come compressed from the packer (packer.h), gather in a buffer, and go to the file in pieces of
** 1 MiB. Memory is that and the packer's, whatever the size of the database.
**
** The file is handed to the disk while it grows, a step at a time, and never more than two steps of it wait there: else
** the log's next sync, a commit that somebody waits for, may find itself behind gigabytes of this file.
*/
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "../ext/bytes.h"
#include "packer.h"

#define PIECE_SIZE (1u << 20)
#define STEP_BYTES (4u << 20)
#define BLOCK_RAW 0x80000000u
#define BLOCK_OVERHEAD 8u /* its size before it, its checksum behind it */
#define END_SIZE 8u       /* a size of 0, and the content's checksum */

enum state { WRITING, FINISHED, RENAMED, PUBLISHED };

struct snapshot_writer {
  struct os *os;
  struct os_file *file;
  enum state state;
  int failed; /* the first error; nothing works after it */
  uint64_t index, checksum_expected, checksum;
  uint32_t page_size, pages;
  uint64_t offset;                /* bytes of the file that are written */
  uint64_t handed, handed_before; /* of them, those that the disk has been given, now and a step ago */
  XXH32_state_t *content;         /* checksum of the frame's content so far */
  uint8_t *out;                   /* the end of the frame as far as it is known, not yet written */
  size_t out_used;
  char folder[OS_PATH_MAX], path[OS_PATH_MAX];
  char text[SNAPSHOT_TEXT_MAX];
};

/* ---- The file ---- */

static int fail_io(struct snapshot_writer *writer, int error, const char *what) {
  const char *way_out = error == -ENOSPC || error == -EDQUOT
                            ? "Make room on this disk; the next snapshot begins again"
                            : "Check the disk and the folder; the next snapshot begins again";
  return writer->failed = snapshot_say(writer->text, error, "%s: cannot %s at offset %" PRIu64 ": %s. %s", writer->path,
                                       what, writer->offset, snapshot_error_text(error), way_out);
}

static int sync_file(struct snapshot_writer *writer) {
  int error = os_sync(writer->file);
  return error ? fail_io(writer, error, "sync the snapshot") : 0;
}

/* Gives the disk what was written since the last step, and waits until it has done with the step before. */
static int hand_over(struct snapshot_writer *writer) {
  int error = os_write_back(writer->file, writer->handed, writer->offset - writer->handed, false);
  if (!error) error = os_write_back(writer->file, writer->handed_before, writer->handed - writer->handed_before, true);
  if (error) return fail_io(writer, error, "sync the snapshot");
  writer->handed_before = writer->handed;
  writer->handed = writer->offset;
  return 0;
}

static int write_bytes(struct snapshot_writer *writer, const void *bytes, size_t size) {
  int error = os_write(writer->file, bytes, size, writer->offset);
  if (error) return fail_io(writer, error, "write the snapshot");
  writer->offset += size;
  return writer->offset - writer->handed >= STEP_BYTES ? hand_over(writer) : 0;
}

/* Writes the full pieces; the rest moves to the front. */
static int write_pieces(struct snapshot_writer *writer) {
  size_t whole = writer->out_used / PIECE_SIZE * PIECE_SIZE;
  if (whole == 0) return 0;
  int error = write_bytes(writer, writer->out, whole);
  if (error) return error;
  writer->out_used -= whole;
  memmove(writer->out, writer->out + whole, writer->out_used);
  return 0;
}

static int write_block(struct snapshot_writer *writer, const struct snapshot_packed *packed) {
  uint8_t *at = writer->out + writer->out_used;
  bool is_raw = packed->stored_size == packed->content_size;
  XXH32_update(writer->content, packed->content, packed->content_size);
  le32_put(at, packed->stored_size | (is_raw ? BLOCK_RAW : 0));
  memcpy(at + 4, packed->stored, packed->stored_size);
  le32_put(at + 4 + packed->stored_size, XXH32(packed->stored, packed->stored_size, 0));
  writer->out_used += packed->stored_size + BLOCK_OVERHEAD;
  writer->checksum ^= packed->checksum;
  return write_pieces(writer);
}

/* ---- Open and close ---- */

/* LZ4's own function makes the header of the frame. */
static int begin_frame(struct snapshot_writer *writer) {
  LZ4F_preferences_t frame = snapshot_frame((uint64_t)writer->pages * writer->page_size);
  LZ4F_cctx *lz4 = NULL;
  size_t size = LZ4F_createCompressionContext(&lz4, LZ4F_VERSION);
  if (!LZ4F_isError(size)) size = LZ4F_compressBegin(lz4, writer->out, PIECE_SIZE, &frame);
  LZ4F_freeCompressionContext(lz4);
  if (LZ4F_isError(size))
    return snapshot_say(writer->text, -ENOMEM, "%s: LZ4 cannot begin the snapshot: %s", writer->path,
                        LZ4F_getErrorName(size));
  writer->out_used = size;
  return 0;
}

static int write_head(struct snapshot_writer *writer, const struct snapshot_meta *meta) {
  uint32_t size = snapshot_head_size(meta);
  uint8_t *head = malloc(size);
  if (head == NULL) return snapshot_say(writer->text, -ENOMEM, "%s: no memory for the snapshot", writer->path);
  snapshot_head_encode(meta, head);
  int error = write_bytes(writer, head, size);
  free(head);
  return error ? error : begin_frame(writer);
}

static int allocate(struct snapshot_writer *writer) {
  writer->out = malloc(PIECE_SIZE + SNAPSHOT_BLOCK_SIZE + BLOCK_OVERHEAD + END_SIZE);
  writer->content = XXH32_createState();
  if (writer->out && writer->content && XXH32_reset(writer->content, 0) == XXH_OK) return 0;
  return snapshot_say(writer->text, -ENOMEM, "%s: no memory for the snapshot", writer->path);
}

static int make_file(struct snapshot_writer *writer) {
  int error = os_remove(writer->os, writer->path);
  if (error == 0 || error == -ENOENT)
    error = os_open(writer->os, writer->path, OS_OPEN_READ | OS_OPEN_WRITE | OS_OPEN_CREATE | OS_OPEN_EXCL,
                    &writer->file);
  return error ? fail_io(writer, error, "make the file of the snapshot") : 0;
}

int snapshot_writer_open(struct os *os, const char *folder, const struct snapshot_meta *meta,
                         struct snapshot_writer **writer, char *text) {
  char path[OS_PATH_MAX];
  *writer = NULL;
  int error = snapshot_join(folder, SNAPSHOT_NEW, path, text);
  if (error) return error;
  const char *wrong = snapshot_meta_check(meta);
  if (wrong) return snapshot_say(text, -EINVAL, "%s: cannot be written: %s", path, wrong);
  struct snapshot_writer *made = calloc(1, sizeof *made);
  if (made == NULL) return snapshot_say(text, -ENOMEM, "%s: no memory for the snapshot", path);
  made->os = os;
  memcpy(made->path, path, sizeof path);
  snprintf(made->folder, sizeof made->folder, "%s", folder);
  made->index = meta->index;
  made->checksum_expected = meta->checksum;
  made->page_size = meta->page_size;
  made->pages = meta->pages;
  error = allocate(made);
  if (error == 0) error = make_file(made);
  if (error == 0) error = write_head(made, meta);
  if (error) {
    snapshot_say(text, error, "%s", made->text);
    snapshot_writer_close(made);
    return error;
  }
  *writer = made;
  return 0;
}

void snapshot_writer_close(struct snapshot_writer *writer) {
  if (writer == NULL) return;
  if (writer->file) {
    os_close(writer->file);
    /* Whether it is gone is no matter: the next writer or start removes it. */
    if (writer->state < RENAMED) os_remove(writer->os, writer->path);
  }
  XXH32_freeState(writer->content);
  free(writer->out);
  free(writer);
}

const char *snapshot_writer_error(const struct snapshot_writer *writer) {
  return writer->text;
}

/* ---- Pages, and the end ---- */

static int write_blocks(struct snapshot_writer *writer, const struct snapshot_input *input) {
  struct snapshot_packer *packer;
  struct snapshot_packed packed;
  int error = snapshot_packer_open(writer->os, input, writer->pages, writer->page_size, &packer);
  if (error) return writer->failed = snapshot_say(writer->text, error, "%s: no memory for the snapshot", writer->path);
  int next = snapshot_packer_next(packer, &packed, writer->text);
  while (next == 1 && !error) {
    error = write_block(writer, &packed);
    if (!error) next = snapshot_packer_next(packer, &packed, writer->text);
  }
  snapshot_packer_close(packer);
  if (next < 0) writer->failed = next;
  return error ? error : next;
}

static int end_frame(struct snapshot_writer *writer) {
  le32_put(writer->out + writer->out_used, 0);
  le32_put(writer->out + writer->out_used + 4, XXH32_digest(writer->content));
  writer->out_used += END_SIZE;
  return write_bytes(writer, writer->out, writer->out_used);
}

int snapshot_writer_write(struct snapshot_writer *writer, const struct snapshot_input *input) {
  if (writer->failed) return writer->failed;
  assert(writer->state == WRITING);
  int error = write_blocks(writer, input);
  if (error) return error;
  if (writer->checksum != writer->checksum_expected)
    return writer->failed = snapshot_say(
               writer->text, -EILSEQ,
               "%s: not finished at offset %" PRIu64 ": its %" PRIu32 " pages give the checksum %016" PRIx64
               ", the log says %016" PRIx64 ". This node's database differs from the log and has to be rebuilt",
               writer->path, writer->offset, writer->pages, writer->checksum, writer->checksum_expected);
  error = end_frame(writer);
  if (error == 0) error = sync_file(writer);
  if (error == 0) writer->state = FINISHED;
  return error;
}

int snapshot_writer_publish(struct snapshot_writer *writer) {
  char path[OS_PATH_MAX];
  if (writer->failed) return writer->failed;
  assert(writer->state == FINISHED);
  snapshot_path(writer->folder, writer->index, path);
  if (path[0] == 0) return fail_io(writer, -ENAMETOOLONG, "rename the snapshot");
  int error = snapshot_keep_head(writer->os, writer->folder, writer->file);
  if (error) return fail_io(writer, error, "copy the head of the snapshot");
  error = os_rename(writer->os, writer->path, path);
  if (error) return fail_io(writer, error, "rename the snapshot");
  writer->state = RENAMED;
  error = os_sync_directory(writer->os, writer->folder);
  if (error) return fail_io(writer, error, "sync the folder of the snapshot");
  writer->state = PUBLISHED;
  return 0;
}
