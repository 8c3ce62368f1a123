/*
** The change set's encoding, and the checksum of a database.
**
** ENCODED BYTES (struct vfs_change_set.bytes)
**
**      offset  size
**      0       1     version, 1
**      1       1     method: 0 the raw bytes as they are, 1 one LZ4 block
**      2       1–4   varint: number of raw bytes, at most VFS_SET_RAW_MAX
**      .       .     the raw bytes, or the block
**
** RAW BYTES are page records, one after the other, to the end:
**
**      varint        zigzag(page number - page number of the record before, 0 at first) * 2 + full
**   full 1:
**      page_size     the page
**   full 0:
**      varint        number of ranges, at least 1
**      for each range, in rising order:
**        varint      bytes from the end of the range before (the start of the page) to its start
**        varint      its length - 1
**        length      its bytes, as they are after the transaction
**
** A varint is little-endian base 128: seven bits a byte, the high bit says that more follow. zigzag
** makes a signed number small in either direction: 0, -1, 1, -2, … become 0, 1, 2, 3, …. A range may be
** 65536 bytes long. A set without any page is valid (its transaction changed only the size).
**
** There is no checksum here: the log's record has one, and so has the transport; the rolling checksum of
** the set then says whether what came out is right. Still nothing in the bytes is believed: open walks all records
** before the first is used.
**
** Neighbouring ranges are joined over fewer than GAP_MIN equal bytes, which cost less than the two varints of
** another range. The joined bytes are after-images too, so a patch stays idempotent.
*/
#include "change_set.h"

#include <assert.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define SET_VERSION 1
#define VARINT_MAX 5 /* bytes: a page's key has 34 bits, all others fewer */
#define HEADER_MAX (2 + VARINT_MAX)
#define GAP_MIN 4        /* equal bytes that end a range */
#define COMPRESS_MIN 256 /* raw bytes below which LZ4 finds too little */
#define PAGE_NUMBER_MAX 0xfffffffeu
#define LOCK_BYTE_OFFSET 0x40000000u
#define ENCODER_BYTES_MIN 4096u

enum method { METHOD_RAW = 0, METHOD_LZ4 = 1 };

static bool is_page_size(uint32_t size) {
  return size >= 512 && size <= 65536 && (size & (size - 1)) == 0;
}

uint64_t vfs_page_hash(uint32_t page_number, const void *page, uint32_t page_size) {
  /* The seed keeps two equal pages, or two that changed places, from cancelling out in the XOR. */
  return XXH3_64bits_withSeed(page, page_size, page_number);
}

uint32_t vfs_lock_page(uint32_t page_size) {
  return LOCK_BYTE_OFFSET / page_size + 1;
}

/* ---- Varints ---- */

static uint8_t *put_varint(uint8_t *to, uint64_t value) {
  for (; value >= 0x80; value >>= 7) *to++ = (uint8_t)(value | 0x80);
  *to++ = (uint8_t)value;
  return to;
}

static uint32_t varint_size(uint64_t value) {
  uint32_t size = 1;
  for (; value >= 0x80; value >>= 7) size++;
  return size;
}

/* Returns what follows it; NULL if it does not end before `end` or is larger than any of ours. */
static const uint8_t *get_varint(const uint8_t *from, const uint8_t *end, uint64_t *value) {
  *value = 0;
  for (unsigned shift = 0; from < end && shift < 7 * VARINT_MAX; shift += 7) {
    *value |= (uint64_t)(*from & 0x7f) << shift;
    if ((*from++ & 0x80) == 0) return from;
  }
  return NULL;
}

static uint64_t zigzag(int64_t value) {
  return value < 0 ? (uint64_t)(-(value + 1)) * 2 + 1 : (uint64_t)value * 2;
}

static int64_t unzigzag(uint64_t value) {
  return value & 1 ? -(int64_t)(value >> 1) - 1 : (int64_t)(value >> 1);
}

/* ---- Differences ---- */

static uint64_t load_word(const uint8_t *from) {
  uint64_t word;
  memcpy(&word, from, sizeof word);
  return word;
}

/* Index of the first byte in memory that is not zero; `word` is not 0. */
static uint32_t first_byte(uint64_t word) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  return (uint32_t)__builtin_ctzll(word) / 8;
#else
  return (uint32_t)__builtin_clzll(word) / 8;
#endif
}

static bool has_zero_byte(uint64_t word) {
  return ((word - UINT64_C(0x0101010101010101)) & ~word & UINT64_C(0x8080808080808080)) != 0;
}

/* First position >= from where the two differ; `size` if none. Most of a page is equal: 64 bytes a step. */
static uint32_t next_difference(const uint8_t *a, const uint8_t *b, uint32_t from, uint32_t size) {
  uint32_t i = from;
  for (; size - i >= 64; i += 64) {
    uint64_t difference = 0;
    for (uint32_t k = 0; k < 64; k += 8) difference |= load_word(a + i + k) ^ load_word(b + i + k);
    if (difference != 0) break;
  }
  for (; size - i >= 8; i += 8) {
    uint64_t difference = load_word(a + i) ^ load_word(b + i);
    if (difference != 0) return i + first_byte(difference);
  }
  while (i < size && a[i] == b[i]) i++;
  return i;
}

/* First position >= from where the two are equal; `size` if none. */
static uint32_t next_equal(const uint8_t *a, const uint8_t *b, uint32_t from, uint32_t size) {
  uint32_t i = from;
  while (size - i >= 8 && !has_zero_byte(load_word(a + i) ^ load_word(b + i))) i += 8;
  while (i < size && a[i] != b[i]) i++;
  return i;
}

struct range {
  uint32_t start, end;
};

/* ---- Encoder ---- */

struct vfs_encoder {
  uint32_t page_size;
  uint32_t last_page; /* of the record before */
  uint8_t *raw;       /* HEADER_MAX bytes of room for the header, then the raw bytes */
  size_t size;        /* of the raw bytes */
  size_t capacity;    /* of raw, with the room */
  uint8_t *packed;    /* what LZ4 made of it, with a header before */
  size_t packed_capacity;
  struct range *ranges; /* of the page at hand: each but the last is followed by GAP_MIN equal bytes */
};

struct vfs_encoder *vfs_encoder_new(uint32_t page_size) {
  assert(is_page_size(page_size));
  struct vfs_encoder *encoder = calloc(1, sizeof *encoder);
  if (encoder == NULL) return NULL;
  encoder->page_size = page_size;
  encoder->ranges = malloc((page_size / (1 + GAP_MIN) + 1) * sizeof *encoder->ranges);
  if (encoder->ranges == NULL) {
    free(encoder);
    return NULL;
  }
  return encoder;
}

void vfs_encoder_free(struct vfs_encoder *encoder) {
  if (encoder == NULL) return;
  free(encoder->raw);
  free(encoder->packed);
  free(encoder->ranges);
  free(encoder);
}

void vfs_encoder_reset(struct vfs_encoder *encoder) {
  encoder->last_page = 0;
  encoder->size = 0;
}

size_t vfs_encoder_size(const struct vfs_encoder *encoder) {
  return encoder->size;
}

static bool grow(uint8_t **bytes, size_t *capacity, size_t need) {
  if (need <= *capacity) return true;
  size_t size = *capacity < ENCODER_BYTES_MIN ? ENCODER_BYTES_MIN : *capacity;
  while (size < need) size *= 2;
  uint8_t *grown = realloc(*bytes, size);
  if (grown == NULL) return false;
  *bytes = grown;
  *capacity = size;
  return true;
}

/* Fills encoder->ranges; *encoded gets what their headers and bytes will take. */
static uint32_t find_ranges(struct vfs_encoder *encoder, const uint8_t *before, const uint8_t *after,
                            uint32_t *encoded) {
  uint32_t page_size = encoder->page_size, count = 0, previous = 0;
  *encoded = 0;
  uint32_t start = next_difference(before, after, 0, page_size);
  while (start < page_size) {
    uint32_t end = start, next = start;
    while (next < page_size && next - end < GAP_MIN) {
      end = next_equal(before, after, next, page_size);
      next = next_difference(before, after, end, page_size);
    }
    encoder->ranges[count++] = (struct range){start, end};
    *encoded += varint_size(start - previous) + varint_size(end - start - 1) + (end - start);
    previous = end;
    start = next;
  }
  return count;
}

static uint8_t *put_ranges(uint8_t *to, const struct range *ranges, uint32_t count, const uint8_t *after) {
  uint32_t previous = 0;
  to = put_varint(to, count);
  for (uint32_t i = 0; i < count; i++) {
    uint32_t length = ranges[i].end - ranges[i].start;
    to = put_varint(to, ranges[i].start - previous);
    to = put_varint(to, length - 1);
    memcpy(to, after + ranges[i].start, length);
    to += length;
    previous = ranges[i].end;
  }
  return to;
}

bool vfs_encoder_add(struct vfs_encoder *encoder, uint32_t page_number, const void *before, const void *after) {
  assert(page_number > 0 && page_number <= PAGE_NUMBER_MAX);
  uint32_t encoded = encoder->page_size, count = 0;
  if (before != NULL) {
    count = find_ranges(encoder, before, after, &encoded);
    if (count == 0) return true;
  }
  bool full = before == NULL || encoded + varint_size(count) >= encoder->page_size;
  size_t need = VARINT_MAX + (full ? encoder->page_size : VARINT_MAX + encoded);
  assert(encoder->size + need <= VFS_SET_RAW_MAX - HEADER_MAX); /* the caller watches vfs_encoder_size */
  if (!grow(&encoder->raw, &encoder->capacity, HEADER_MAX + encoder->size + need)) return false;

  uint8_t *begin = encoder->raw + HEADER_MAX + encoder->size;
  uint8_t *to = put_varint(begin, zigzag((int64_t)page_number - (int64_t)encoder->last_page) * 2 + full);
  if (full) {
    memcpy(to, after, encoder->page_size);
    to += encoder->page_size;
  } else {
    to = put_ranges(to, encoder->ranges, count, after);
  }
  assert((size_t)(to - begin) <= need);
  encoder->size += (size_t)(to - begin);
  encoder->last_page = page_number;
  return true;
}

/* Writes the header so that it ends at `body`, which has HEADER_MAX bytes of room before it. Returns its start. */
static uint8_t *put_header(uint8_t *body, enum method method, size_t raw_size) {
  uint8_t *header = body - 2 - varint_size(raw_size);
  header[0] = SET_VERSION;
  header[1] = (uint8_t)method;
  put_varint(header + 2, raw_size);
  return header;
}

bool vfs_encoder_finish(struct vfs_encoder *encoder, const uint8_t **bytes, uint32_t *size) {
  size_t raw_size = encoder->size;
  if (!grow(&encoder->raw, &encoder->capacity, HEADER_MAX + raw_size)) return false;
  uint8_t *body = encoder->raw + HEADER_MAX;
  size_t body_size = raw_size;
  enum method method = METHOD_RAW;
  if (raw_size >= COMPRESS_MIN) {
    size_t limit = raw_size - raw_size / 8; /* else it is not worth a decompression on every node */
    if (!grow(&encoder->packed, &encoder->packed_capacity, HEADER_MAX + limit)) return false;
    char *packed = (char *)encoder->packed + HEADER_MAX;
    int packed_size = LZ4_compress_default((const char *)body, packed, (int)raw_size, (int)limit);
    if (packed_size > 0) {
      body = (uint8_t *)packed;
      body_size = (size_t)packed_size;
      method = METHOD_LZ4;
    }
  }
  uint8_t *header = put_header(body, method, raw_size);
  *bytes = header;
  *size = (uint32_t)((size_t)(body - header) + body_size);
  assert(*size <= VFS_SET_BYTES_MAX);
  return true;
}

/* ---- Decoder ---- */

struct vfs_decoder {
  uint32_t page_size;
  uint8_t *unpacked;   /* VFS_SET_RAW_MAX bytes, so that open cannot fail for want of memory */
  const uint8_t *next; /* record that vfs_decoder_next returns next */
  const uint8_t *end;
  const uint8_t *content; /* of the record it returned last: the page, or its first range */
  uint32_t ranges;        /* of that record, 0 if it is a full page */
  uint32_t page_number;
};

struct vfs_decoder *vfs_decoder_new(uint32_t page_size) {
  assert(is_page_size(page_size));
  struct vfs_decoder *decoder = calloc(1, sizeof *decoder);
  if (decoder == NULL) return NULL;
  decoder->page_size = page_size;
  decoder->unpacked = malloc(VFS_SET_RAW_MAX);
  if (decoder->unpacked == NULL) {
    free(decoder);
    return NULL;
  }
  return decoder;
}

void vfs_decoder_free(struct vfs_decoder *decoder) {
  if (decoder == NULL) return;
  free(decoder->unpacked);
  free(decoder);
}

/* One range at `from`: its place in the page. Returns what follows its bytes; NULL if it makes no sense. */
static const uint8_t *parse_range(const uint8_t *from, const uint8_t *end, uint32_t page_size, uint32_t previous,
                                  struct range *range) {
  uint64_t gap, length;
  if ((from = get_varint(from, end, &gap)) == NULL) return NULL;
  if ((from = get_varint(from, end, &length)) == NULL) return NULL;
  if (gap >= page_size - previous || length >= page_size - previous - gap) return NULL;
  length++;
  if (length > (size_t)(end - from)) return NULL;
  range->start = previous + (uint32_t)gap;
  range->end = range->start + (uint32_t)length;
  return from + length;
}

/* The record at decoder->next becomes the current one. false: it makes no sense. */
static bool parse_record(struct vfs_decoder *decoder) {
  const uint8_t *from = decoder->next, *end = decoder->end;
  uint64_t key, count = 0;
  if ((from = get_varint(from, end, &key)) == NULL) return false;
  int64_t page_number = (int64_t)decoder->page_number + unzigzag(key >> 1);
  if (page_number < 1 || page_number > PAGE_NUMBER_MAX) return false;
  decoder->page_number = (uint32_t)page_number;
  if (key & 1) {
    if ((size_t)(end - from) < decoder->page_size) return false;
    decoder->content = from;
    from += decoder->page_size;
  } else {
    if ((from = get_varint(from, end, &count)) == NULL) return false;
    if (count == 0 || count > decoder->page_size) return false;
    decoder->content = from;
    struct range range = {0, 0};
    for (uint64_t i = 0; i < count; i++) {
      from = parse_range(from, end, decoder->page_size, range.end, &range);
      if (from == NULL) return false;
    }
  }
  decoder->ranges = (uint32_t)count;
  decoder->next = from;
  return true;
}

/* Reads the header and finds the raw bytes. false: damaged. */
static bool unpack(struct vfs_decoder *decoder, const uint8_t *bytes, uint32_t size, const uint8_t **raw,
                   size_t *raw_size) {
  const uint8_t *end = bytes + size;
  uint64_t stated;
  if (size < 3 || size > VFS_SET_BYTES_MAX || bytes[0] != SET_VERSION) return false;
  const uint8_t *body = get_varint(bytes + 2, end, &stated);
  if (body == NULL || stated > VFS_SET_RAW_MAX) return false;
  *raw_size = (size_t)stated;
  switch (bytes[1]) {
  case METHOD_RAW: *raw = body; return (size_t)(end - body) == *raw_size;
  case METHOD_LZ4:
    *raw = decoder->unpacked;
    return LZ4_decompress_safe((const char *)body, (char *)decoder->unpacked, (int)(end - body), (int)*raw_size) ==
           (int)*raw_size;
  default: return false;
  }
}

static void rewind_to(struct vfs_decoder *decoder, const uint8_t *raw, size_t raw_size) {
  decoder->next = raw;
  decoder->end = raw + raw_size;
  decoder->content = NULL;
  decoder->ranges = 0;
  decoder->page_number = 0;
}

bool vfs_decoder_open(struct vfs_decoder *decoder, const uint8_t *bytes, uint32_t size) {
  const uint8_t *raw;
  size_t raw_size;
  rewind_to(decoder, decoder->unpacked, 0);
  if (!unpack(decoder, bytes, size, &raw, &raw_size)) return false;
  rewind_to(decoder, raw, raw_size);
  while (decoder->next < decoder->end) {
    if (!parse_record(decoder)) {
      rewind_to(decoder, decoder->unpacked, 0);
      return false;
    }
  }
  rewind_to(decoder, raw, raw_size);
  return true;
}

bool vfs_decoder_next(struct vfs_decoder *decoder, uint32_t *page_number, bool *is_full) {
  if (decoder->next == decoder->end) return false;
  bool ok = parse_record(decoder);
  assert(ok); /* vfs_decoder_open has walked it */
  *page_number = decoder->page_number;
  *is_full = decoder->ranges == 0;
  return true;
}

void vfs_decoder_patch(struct vfs_decoder *decoder, void *page) {
  assert(decoder->content != NULL);
  if (decoder->ranges == 0) {
    memcpy(page, decoder->content, decoder->page_size);
    return;
  }
  const uint8_t *from = decoder->content;
  struct range range = {0, 0};
  for (uint32_t i = 0; i < decoder->ranges; i++) {
    from = parse_range(from, decoder->end, decoder->page_size, range.end, &range);
    assert(from != NULL);
    uint32_t length = range.end - range.start;
    memcpy((uint8_t *)page + range.start, from - length, length);
  }
}
