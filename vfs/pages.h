/*
** Pages of a database file that are changed many times before they are written: redo patches them here, and they go to the
** file in its order, side by side in one write. Bounded memory: when all of it is changed pages, all are written; what is
** written makes room for others, oldest first, unless it is asked for again.
**
** When which page is written is nobody's concern: whoever uses this may be killed at any write and does all of it again.
*/
#ifndef BALSA_VFS_PAGES_H
#define BALSA_VFS_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "sqlite.h"

struct vfs_pages;

/* NULL: no memory. `bytes` for the pages, at least one of them. The file is the caller's. */
struct vfs_pages *vfs_pages_new(sqlite3_file *file, uint32_t page_size, uint32_t bytes);
/* Drops what is not written. Accepts NULL. */
void vfs_pages_free(struct vfs_pages *pages);
/*
** The page, to be changed; good until the next call. `has_content`: the caller sets all of it, so it is not read. Zeros
** beyond the end of the file. SQLite error code.
*/
int vfs_pages_get(struct vfs_pages *pages, uint32_t page_number, bool has_content, uint8_t **page);
/* All is in the file, not synced. SQLite error code; after one what was not written is lost. */
int vfs_pages_write(struct vfs_pages *pages);

/* The file was changed by somebody else: what is known of it counts no more, changes that are not written neither. */
void vfs_pages_clear(struct vfs_pages *pages);

#endif
