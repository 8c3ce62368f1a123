/*
** The change set: what a transaction did to the pages of the database, as it travels in the log.
** And the rolling checksum of a database. Format at the top of change_set.c.
**
** Each page is a patch (the byte ranges that differ from its content before the transaction) or a
** full image. A page beyond the size of the database before the transaction is always a full image:
** what every page holds is defined by the log alone. Patches are after-images, so applying one twice,
** or over any mix of older and newer bytes of its ranges, gives the same.
*/
#ifndef BALSA_VFS_CHANGE_SET_H
#define BALSA_VFS_CHANGE_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VFS_SET_BYTES_MAX (8u << 20) /* encoded; larger transactions go in parts */
#define VFS_SET_RAW_MAX (8u << 20)   /* before compression: an encoder says it is full before that */

/* Flags of a set; the node maps them to those of the entry header. */
enum vfs_set_flags {
  VFS_SET_PART = 1,  /* more parts follow */
  VFS_SET_LAST = 2,  /* the last or only part */
  VFS_SET_ABORT = 4, /* gives up the parts sent so far */
};

/* One entry's worth. */
struct vfs_change_set {
  uint8_t flags;
  uint32_t page_size;
  uint32_t pages;       /* size of the database after the whole transaction (in each part alike) */
  uint64_t previous;    /* index of the last part of the set before this one's transaction, or of the part before */
  uint64_t checksum;    /* rolling checksum after this part */
  const uint8_t *bytes; /* encoded pages */
  uint32_t size;
};

/* xxh3 of (page number, content). The database's checksum is the XOR over its pages but the lock-byte page. */
uint64_t vfs_page_hash(uint32_t page_number, const void *page, uint32_t page_size);
/* Number of the page that holds the lock bytes (0x40000000); SQLite never uses it. */
uint32_t vfs_lock_page(uint32_t page_size);

struct vfs_encoder;                                      /* reusable; not thread-safe */
struct vfs_encoder *vfs_encoder_new(uint32_t page_size); /* NULL without memory */
void vfs_encoder_free(struct vfs_encoder *encoder);
void vfs_encoder_reset(struct vfs_encoder *encoder);
/*
** Adds a page. `before` NULL: a full image. Pages in rising order encode best but any order works.
** false: no memory. A page without any difference adds nothing.
*/
bool vfs_encoder_add(struct vfs_encoder *encoder, uint32_t page_number, const void *before, const void *after);
/* Raw bytes so far; start another part when this nears VFS_SET_RAW_MAX - 2 pages. */
size_t vfs_encoder_size(const struct vfs_encoder *encoder);
/* Encoded bytes, LZ4-compressed where that helps; valid until reset or free. false: no memory. */
bool vfs_encoder_finish(struct vfs_encoder *encoder, const uint8_t **bytes, uint32_t *size);

struct vfs_decoder; /* reusable; not thread-safe */
struct vfs_decoder *vfs_decoder_new(uint32_t page_size);
void vfs_decoder_free(struct vfs_decoder *decoder);
/*
** Checks all of it (every length, range and page number) before anything is used. false: it is damaged; it
** does not fail for want of memory. The bytes must stay until the last page is applied. No bytes at all are
** damage, a set without pages is not.
*/
bool vfs_decoder_open(struct vfs_decoder *decoder, const uint8_t *bytes, uint32_t size);
/* The next page: false at the end. */
bool vfs_decoder_next(struct vfs_decoder *decoder, uint32_t *page_number, bool *is_full);
/* Applies the page that next found: `page` holds its content before, gets that after (page_size bytes). */
void vfs_decoder_patch(struct vfs_decoder *decoder, void *page);

#endif
