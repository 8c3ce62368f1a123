/*
** The durable marks of a database: how the file relates to the log. One slot file, <folder>/database.
**
** Rule (design section 5): the database file is, byte by byte, a mix of the states from `checkpointed` to
** `begun`; redoing the log from checkpointed+1 through any n >= begun makes it the state at n.
** `begun` is written before the first page of a checkpoint, when the log is durable through it;
** `checkpointed` after the file was synced.
**
** Payload, little-endian: offset 0 begun (8), 8 checkpointed (8), 16 checksum of the state at
** checkpointed (8), 24 index of the last change set in it (8), 32 nonce (8), 40 size in pages (4),
** 44 page size (4), 48 flags (4; bit 0: stopped in order, bit 1: being made
** again from nothing, bit 2: damage was found in it), 52 change counter of the file (4), 56 size in bytes (8),
** 64 mtime in ns (8), 72 inode (8), 80 the run of the machine in which the nonce was drawn (8; os_boot). Change counter,
** size, mtime and inode count only after a stop in order.
*/
#ifndef BALSA_VFS_MARKS_H
#define BALSA_VFS_MARKS_H

#include "../ext/slot_file.h"

struct vfs_marks {
  uint64_t begun, checkpointed, checksum, set_index, nonce;
  uint32_t pages, page_size;
  bool stopped_in_order, is_rebuilding, is_suspect;
  uint32_t change_counter;
  uint64_t size_bytes, mtime_ns, inode, boot;
};

/* *found: a record was there. Errors as slot_file_open. */
int vfs_marks_open(struct os *os, const char *path, struct vfs_marks *marks, bool *found, struct slot_file **file);
/* Durable when it returns 0. */
int vfs_marks_write(struct slot_file *file, const struct vfs_marks *marks);

#endif
