/*
** The snapshot file: the head, then one LZ4 frame. Both are frames of the LZ4 frame format (the head a
** skippable one), so `lz4 -d` gives the database file, byte for byte.
**
** The head (little-endian):
**
**   offset size
**    0     4  0x184D2A50: an LZ4 skippable frame
**    4     4  bytes that follow in the head: its size - 8
**    8     8  "BalsaSnp"
**   16     4  version, 1
**   20     4  page size, bytes: a power of two, 512 … 65536
**   24     4  pages
**   28     4  0
**   32     8  index: the last entry of the log that it contains
**   40     8  term of that entry
**   48     8  index of the last change set in it
**   56     8  rolling checksum of the database (vfs/change_set.h)
**   64     8  configuration index
**   72     4  configuration size C, bytes; at most SNAPSHOT_CONFIGURATION_MAX
**   76     4  number of term starts T; at most SNAPSHOT_TERMS_MAX
**   80     C  configuration
**   80+C 16*T term starts: term (8), first index (8)
**   …      8  checksum: XXH64 (seed 0) of all bytes before it
**
** The frame: magic 0x184D2204; version 01, independent blocks of at most 256 KiB, block checksums, content size
** (unless 0) and content checksum, no dictionary. All blocks but the last hold exactly 256 KiB of the database;
** one that LZ4 does not make smaller is stored raw. The frame ends the file.
**
** The lock-byte page is zeros and not part of the rolling checksum.
**
** Independent blocks cost 1-2 % in size, but need no history to decode, and damage in one is told where it is.
*/
#include "file.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <xxhash.h>

#include "../ext/bytes.h"

#define SKIPPABLE_MAGIC 0x184D2A50u
#define SKIPPABLE_HEADER 8u
#define HEAD_MAGIC "BalsaSnp"
#define HEAD_VERSION 1u
#define HEAD_CHECKSUM 8u

_Static_assert(sizeof HEAD_MAGIC - 1 == 8, "the magic of the head");
_Static_assert(SNAPSHOT_BLOCK_SIZE % 65536 == 0, "a page never crosses a block");

/* ---- The head ---- */

static bool is_page_size(uint32_t size) {
  return size >= 512 && size <= 65536 && (size & (size - 1)) == 0;
}

const char *snapshot_meta_check(const struct snapshot_meta *meta) {
  if (!is_page_size(meta->page_size)) return "the page size is not one of SQLite's";
  if (meta->pages > SNAPSHOT_PAGES_MAX) return "the database has too many pages";
  if (meta->index == 0) return "its index is 0";
  if (meta->configuration_size > SNAPSHOT_CONFIGURATION_MAX) return "the configuration is too large";
  if (meta->n_terms > SNAPSHOT_TERMS_MAX) return "there are too many term starts";
  return NULL;
}

uint32_t snapshot_head_size(const struct snapshot_meta *meta) {
  return SNAPSHOT_HEAD_MIN + meta->configuration_size + meta->n_terms * SNAPSHOT_HEAD_TERM;
}

void snapshot_head_encode(const struct snapshot_meta *meta, uint8_t *head) {
  uint32_t size = snapshot_head_size(meta);
  uint8_t *next = head + SNAPSHOT_HEAD_FIXED;
  le32_put(head, SKIPPABLE_MAGIC);
  le32_put(head + 4, size - SKIPPABLE_HEADER);
  memcpy(head + 8, HEAD_MAGIC, 8);
  le32_put(head + 16, HEAD_VERSION);
  le32_put(head + 20, meta->page_size);
  le32_put(head + 24, meta->pages);
  le32_put(head + 28, 0);
  le64_put(head + 32, meta->index);
  le64_put(head + 40, meta->term);
  le64_put(head + 48, meta->set_index);
  le64_put(head + 56, meta->checksum);
  le64_put(head + 64, meta->configuration_index);
  le32_put(head + 72, meta->configuration_size);
  le32_put(head + 76, meta->n_terms);
  if (meta->configuration_size) memcpy(next, meta->configuration, meta->configuration_size);
  next += meta->configuration_size;
  for (uint32_t i = 0; i < meta->n_terms; i++, next += SNAPSHOT_HEAD_TERM) {
    le64_put(next, meta->terms[i].term);
    le64_put(next + 8, meta->terms[i].index);
  }
  assert(next == head + size - HEAD_CHECKSUM);
  le64_put(next, XXH64(head, size - HEAD_CHECKSUM, 0));
}

uint32_t snapshot_head_peek(const uint8_t *head) {
  uint32_t follows = le32_get(head + 4);
  if (le32_get(head) != SKIPPABLE_MAGIC || memcmp(head + 8, HEAD_MAGIC, 8) != 0) return 0;
  if (follows < SNAPSHOT_HEAD_MIN - SKIPPABLE_HEADER || follows > SNAPSHOT_HEAD_MAX - SKIPPABLE_HEADER) return 0;
  return follows + SKIPPABLE_HEADER;
}

int snapshot_head_decode(const uint8_t *head, uint32_t size, struct snapshot_meta *meta, const uint8_t **terms,
                         const char **what, uint32_t *offset) {
  assert(size >= SNAPSHOT_HEAD_MIN && size <= SNAPSHOT_HEAD_MAX);
  *offset = size - HEAD_CHECKSUM;
  *what = "the checksum of its head is wrong";
  if (le64_get(head + *offset) != XXH64(head, *offset, 0)) return -EILSEQ;
  *offset = 16;
  *what = "its version is not known here";
  if (le32_get(head + 16) != HEAD_VERSION) return -EPROTO;
  *meta = (struct snapshot_meta){
      .index = le64_get(head + 32),
      .term = le64_get(head + 40),
      .set_index = le64_get(head + 48),
      .checksum = le64_get(head + 56),
      .page_size = le32_get(head + 20),
      .pages = le32_get(head + 24),
      .configuration_index = le64_get(head + 64),
      .configuration = head + SNAPSHOT_HEAD_FIXED,
      .configuration_size = le32_get(head + 72),
      .n_terms = le32_get(head + 76),
  };
  *offset = SKIPPABLE_HEADER;
  *what = snapshot_meta_check(meta);
  if (*what) return -EILSEQ;
  *what = "its head is not as long as what it holds";
  if (snapshot_head_size(meta) != size) return -EILSEQ;
  *terms = head + SNAPSHOT_HEAD_FIXED + meta->configuration_size;
  return 0;
}

void snapshot_terms_decode(const uint8_t *bytes, uint32_t n, struct snapshot_term *terms) {
  for (uint32_t i = 0; i < n; i++, bytes += SNAPSHOT_HEAD_TERM)
    terms[i] = (struct snapshot_term){.term = le64_get(bytes), .index = le64_get(bytes + 8)};
}

/* ---- The frame ---- */

LZ4F_preferences_t snapshot_frame(uint64_t content_size) {
  return (LZ4F_preferences_t){
      .frameInfo = {.blockSizeID = SNAPSHOT_BLOCK_ID,
                    .blockMode = LZ4F_blockIndependent,
                    .contentChecksumFlag = LZ4F_contentChecksumEnabled,
                    .blockChecksumFlag = LZ4F_blockChecksumEnabled,
                    .contentSize = content_size},
      .autoFlush = 1, /* whole blocks come in, so nothing needs to be kept for the next call */
  };
}

/* ---- Names and sentences ---- */

int snapshot_join(const char *folder, const char *name, char path[OS_PATH_MAX], char *text) {
  int n = snprintf(path, OS_PATH_MAX, "%s/%s", folder, name);
  if (n > 0 && n < OS_PATH_MAX) return 0;
  path[0] = 0;
  return snapshot_say(text, -ENAMETOOLONG, "%s: the path of this folder is too long for the snapshots in it", folder);
}

void snapshot_path(const char *folder, uint64_t index, char path[OS_PATH_MAX]) {
  char name[SNAPSHOT_NAME_MAX];
  snprintf(name, sizeof name, "snapshot-%020" PRIu64 ".lz4", index);
  snapshot_join(folder, name, path, NULL);
}

int snapshot_say(char *text, int error, const char *format, ...) {
  va_list list;
  if (text) {
    va_start(list, format);
    vsnprintf(text, SNAPSHOT_TEXT_MAX, format, list);
    va_end(list);
  }
  return error == -EDQUOT ? -ENOSPC : error;
}

const char *snapshot_error_text(int error) {
  const char *text = strerrordesc_np(-error);
  return text ? text : "unknown error";
}
