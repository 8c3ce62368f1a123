#include "marks.h"

#include <errno.h>

#include "../ext/bytes.h"

#define MARKS_SIZE 88
#define MARKS_VERSION 1
#define MARKS_STOPPED_IN_ORDER 1u
#define MARKS_REBUILDING 2u
#define MARKS_SUSPECT 4u

int vfs_marks_open(struct os *os, const char *path, struct vfs_marks *marks, bool *found, struct slot_file **file) {
  uint8_t bytes[MARKS_SIZE] = {0};
  size_t size = 0;
  int error = slot_file_open(os, path, "MARK", MARKS_VERSION, bytes, sizeof bytes, &size, file);
  if (error) return error;
  if (size != 0 && size != MARKS_SIZE) {
    slot_file_close(*file);
    *file = NULL;
    return -EPROTO;
  }
  *found = size == MARKS_SIZE;
  uint32_t flags = le32_get(bytes + 48);
  *marks = (struct vfs_marks){
      .begun = le64_get(bytes),
      .checkpointed = le64_get(bytes + 8),
      .checksum = le64_get(bytes + 16),
      .set_index = le64_get(bytes + 24),
      .nonce = le64_get(bytes + 32),
      .pages = le32_get(bytes + 40),
      .page_size = le32_get(bytes + 44),
      .stopped_in_order = (flags & MARKS_STOPPED_IN_ORDER) != 0,
      .is_rebuilding = (flags & MARKS_REBUILDING) != 0,
      .is_suspect = (flags & MARKS_SUSPECT) != 0,
      .change_counter = le32_get(bytes + 52),
      .size_bytes = le64_get(bytes + 56),
      .mtime_ns = le64_get(bytes + 64),
      .inode = le64_get(bytes + 72),
      .boot = le64_get(bytes + 80),
  };
  return 0;
}

int vfs_marks_write(struct slot_file *file, const struct vfs_marks *marks) {
  uint8_t bytes[MARKS_SIZE] = {0};
  le64_put(bytes, marks->begun);
  le64_put(bytes + 8, marks->checkpointed);
  le64_put(bytes + 16, marks->checksum);
  le64_put(bytes + 24, marks->set_index);
  le64_put(bytes + 32, marks->nonce);
  le32_put(bytes + 40, marks->pages);
  le32_put(bytes + 44, marks->page_size);
  le32_put(bytes + 48, (marks->stopped_in_order ? MARKS_STOPPED_IN_ORDER : 0) |
                           (marks->is_rebuilding ? MARKS_REBUILDING : 0) | (marks->is_suspect ? MARKS_SUSPECT : 0));
  le32_put(bytes + 52, marks->change_counter);
  le64_put(bytes + 56, marks->size_bytes);
  le64_put(bytes + 64, marks->mtime_ns);
  le64_put(bytes + 72, marks->inode);
  le64_put(bytes + 80, marks->boot);
  return slot_file_write(file, bytes, sizeof bytes);
}
