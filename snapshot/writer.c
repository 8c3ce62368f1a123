/*
** Writes a snapshot: pages gather in a block, blocks are compressed into a buffer, the buffer goes to the file in
** pieces of 1 MiB. Memory is one block, one buffer and what LZ4 needs, whatever the size of the database.
**
** The file is synced every now and then and not only at the end: else the log's next sync, a commit that somebody
** waits for, may find itself behind gigabytes of this file.
*/
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"

#define PIECE_SIZE (1u << 20)
#define SYNC_BYTES (32u << 20)

enum state { WRITING, FINISHED, RENAMED, PUBLISHED };

struct snapshot_writer {
  struct os *os;
  struct os_file *file;
  LZ4F_cctx *lz4;
  LZ4F_preferences_t frame;
  enum state state;
  int failed; /* the first error; nothing works after it */
  uint64_t index, checksum_expected, checksum;
  uint32_t page_size, pages, page; /* `page` was the last one added */
  uint64_t offset, synced;         /* bytes of the file: written, durable */
  uint8_t *block;
  uint32_t block_used;
  uint8_t *out; /* compressed, not yet written */
  size_t out_used, out_size;
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
  if (error) return fail_io(writer, error, "sync the snapshot");
  writer->synced = writer->offset;
  return 0;
}

static int write_bytes(struct snapshot_writer *writer, const void *bytes, size_t size) {
  int error = os_write(writer->file, bytes, size, writer->offset);
  if (error) return fail_io(writer, error, "write the snapshot");
  writer->offset += size;
  return writer->offset - writer->synced >= SYNC_BYTES ? sync_file(writer) : 0;
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

/* What a call of LZ4 has put behind out_used: a size or an error. */
static int take(struct snapshot_writer *writer, size_t result) {
  if (LZ4F_isError(result))
    return writer->failed = snapshot_say(writer->text, -ENOMEM, "%s: LZ4 cannot compress the snapshot: %s",
                                         writer->path, LZ4F_getErrorName(result));
  writer->out_used += result;
  assert(writer->out_used <= writer->out_size);
  return write_pieces(writer);
}

static int compress_block(struct snapshot_writer *writer) {
  size_t result = LZ4F_compressUpdate(writer->lz4, writer->out + writer->out_used, writer->out_size - writer->out_used,
                                      writer->block, writer->block_used, NULL);
  writer->block_used = 0;
  return take(writer, result);
}

/* ---- Open and close ---- */

static int write_head(struct snapshot_writer *writer, const struct snapshot_meta *meta) {
  uint32_t size = snapshot_head_size(meta);
  uint8_t *head = malloc(size);
  if (head == NULL) return snapshot_say(writer->text, -ENOMEM, "%s: no memory for the snapshot", writer->path);
  snapshot_head_encode(meta, head);
  int error = write_bytes(writer, head, size);
  free(head);
  if (error) return error;
  return take(writer, LZ4F_compressBegin(writer->lz4, writer->out, writer->out_size, &writer->frame));
}

static int allocate(struct snapshot_writer *writer) {
  writer->out_size = PIECE_SIZE + LZ4F_HEADER_SIZE_MAX + LZ4F_compressBound(SNAPSHOT_BLOCK_SIZE, &writer->frame);
  writer->block = malloc(SNAPSHOT_BLOCK_SIZE);
  writer->out = malloc(writer->out_size);
  if (writer->block && writer->out && !LZ4F_isError(LZ4F_createCompressionContext(&writer->lz4, LZ4F_VERSION)))
    return 0;
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
  made->frame = snapshot_frame((uint64_t)meta->pages * meta->page_size);
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
  LZ4F_freeCompressionContext(writer->lz4);
  free(writer->block);
  free(writer->out);
  free(writer);
}

const char *snapshot_writer_error(const struct snapshot_writer *writer) {
  return writer->text;
}

/* ---- Pages, and the end ---- */

int snapshot_writer_add(struct snapshot_writer *writer, const void *page) {
  uint8_t *place = writer->block + writer->block_used;
  if (writer->failed) return writer->failed;
  assert(writer->state == WRITING && writer->page < writer->pages);
  writer->page++;
  if (writer->page == vfs_lock_page(writer->page_size)) {
    memset(place, 0, writer->page_size);
  } else {
    memcpy(place, page, writer->page_size);
    writer->checksum ^= vfs_page_hash(writer->page, place, writer->page_size);
  }
  writer->block_used += writer->page_size;
  return writer->block_used == SNAPSHOT_BLOCK_SIZE ? compress_block(writer) : 0;
}

int snapshot_writer_finish(struct snapshot_writer *writer) {
  int error = 0;
  if (writer->failed) return writer->failed;
  assert(writer->state == WRITING && writer->page == writer->pages);
  if (writer->checksum != writer->checksum_expected)
    return writer->failed = snapshot_say(
               writer->text, -EILSEQ,
               "%s: not finished at offset %" PRIu64 ": its %" PRIu32 " pages give the checksum %016" PRIx64
               ", the log says %016" PRIx64 ". This node's database differs from the log and has to be rebuilt",
               writer->path, writer->offset, writer->pages, writer->checksum, writer->checksum_expected);
  if (writer->block_used) error = compress_block(writer);
  if (error == 0)
    error = take(writer, LZ4F_compressEnd(writer->lz4, writer->out + writer->out_used,
                                          writer->out_size - writer->out_used, NULL));
  if (error == 0 && writer->out_used) error = write_bytes(writer, writer->out, writer->out_used);
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
  int error = os_rename(writer->os, writer->path, path);
  if (error) return fail_io(writer, error, "rename the snapshot");
  writer->state = RENAMED;
  error = os_sync_directory(writer->os, writer->folder);
  if (error) return fail_io(writer, error, "sync the folder of the snapshot");
  writer->state = PUBLISHED;
  return 0;
}
