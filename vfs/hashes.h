/*
** What the pages of the database file hold, as far as it is known: a hash each, in memory. Only this node writes the file,
** so a page that is read and has another hash than when it was written, or first read, was changed by the disk or by
** somebody who should not have: such a page is never shown, nor built on.
**
** A page is written to the file while nobody reads it there (wal.c, "who may read what"), so a hash is never ahead of its page.
** 8 bytes a page. Any thread.
*/
#ifndef BALSA_VFS_HASHES_H
#define BALSA_VFS_HASHES_H

#include <stdbool.h>
#include <stdint.h>

struct vfs_hashes;
/* `path` is copied, for the sentence. NULL: no memory. */
struct vfs_hashes *vfs_hashes_new(const char *path);
void vfs_hashes_free(struct vfs_hashes *hashes);
/* Nothing is known any more. While nobody else uses it. */
void vfs_hashes_clear(struct vfs_hashes *hashes);
/* It is written to the file, or is known to be right. */
void vfs_hashes_set(struct vfs_hashes *hashes, uint32_t page_number, const void *page, uint32_t page_size);
/* It was read from the file: is it what was there before? What was never seen is, and is remembered. */
bool vfs_hashes_check(struct vfs_hashes *hashes, uint32_t page_number, const void *page, uint32_t page_size);
/* Has any been wrong? Its sentence, with file and offset, into text (VFS_TEXT_MAX bytes, or NULL). */
bool vfs_hashes_damaged(struct vfs_hashes *hashes, char *text);

#endif
