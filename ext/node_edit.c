/*
** A cluster of one whose database was changed by a plain program while its node was stopped: the change becomes the next
** transaction (design section 5). So that its owner may stop the node, edit the file with whatever he likes, and go on.
**
** The transaction holds every page of the file, in parts, since what the file was before is nowhere any more. It is appended as
** this node's, the only voter's: whatever is in that log is committed once it is durable. Its term is a new one, with this node's
** vote: in the last one a leader that was removed since may have proposed other entries at these places. Then a mark says that the
** file is the state at its end.
**
** A crash before the last part is durable leaves parts without an end, and the marks of the stop: the next start finds the change
** again, and begins anew in a later term, which gives those parts up. A crash between the last part and the mark leaves a file that is a later
** state of the log, from which the redo goes on (vfs/redo.c).
*/
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "node_internal.h"

#define ENTRIES_GROW 64

struct edit {
  struct node *node;
  struct raft_start *start;
  struct raft_entry_meta *entries; /* start->entries, with room for more */
  size_t capacity;
  uint64_t previous; /* index of the change set before the next one */
  bool has_open_parts;
  uint64_t open_term;
  bool has_later; /* a whole transaction behind what the file was: it would be undone */
  char *text;
};

static int error_of_store(struct edit *edit, int error) {
  char why[RAFT_STORE_TEXT_MAX] = "";
  if (error == 0) return VFS_OK;
  raft_store_error(edit->node->store, why);
  node_say(edit->text, "%.640s", why[0] ? why : strerror(-error));
  return error == -ENOSPC ? VFS_NO_SPACE : error == -ENOMEM ? VFS_NO_MEMORY : VFS_IO;
}

/* ---- What the log has behind the file ---- */

/* As vfs_apply sees it: parts end with their last one, an abort, or a later term. */
static void follow(struct edit *edit, const struct raft_entry *entry, uint64_t *before_parts) {
  if (edit->has_open_parts && entry->term != edit->open_term) {
    edit->has_open_parts = false;
    edit->previous = *before_parts;
  }
  if (entry->type != RAFT_ENTRY_DATA) return;
  if (entry->flags & RAFT_ENTRY_LAST) edit->has_later = true;
  if (!edit->has_open_parts) *before_parts = edit->previous;
  edit->has_open_parts = (entry->flags & RAFT_ENTRY_PART) != 0;
  edit->open_term = entry->term;
  edit->previous = entry->index;
}

static int look_behind(struct edit *edit, const struct vfs_found *found) {
  uint64_t before_parts = found->set_index;
  edit->previous = found->set_index;
  for (uint64_t index = found->checkpointed + 1; index <= edit->start->last_index; index++) {
    struct raft_entry entry;
    int64_t n = raft_store_read(edit->node->store, index, 1, SIZE_MAX, &entry);
    if (n != 1) return error_of_store(edit, n < 0 ? (int)n : -ENOENT);
    follow(edit, &entry, &before_parts);
    raft_payload_unref(entry.payload);
  }
  if (edit->has_open_parts) edit->previous = before_parts; /* the entries to come, of a later term, cancel them */
  return VFS_OK;
}

/* ---- Appending ---- */

static int note_entry(struct edit *edit, const struct raft_entry *entry) {
  struct raft_start *start = edit->start;
  size_t n = (size_t)(start->last_index + 1 - start->first_index);
  if (n >= edit->capacity) {
    size_t capacity = n + n / 2 + ENTRIES_GROW;
    struct raft_entry_meta *grown = realloc(edit->entries, capacity * sizeof *grown);
    if (!grown) return VFS_NO_MEMORY;
    start->entries = edit->entries = grown;
    edit->capacity = capacity;
  }
  edit->entries[n] = (struct raft_entry_meta){.term = entry->term, .size = raft_entry_size(entry), .type = entry->type};
  start->last_index = entry->index;
  return VFS_OK;
}

static int append(struct edit *edit, struct raft_entry *entry) {
  struct node *node = edit->node;
  uint64_t persist = 0;
  entry->index = edit->start->last_index + 1;
  entry->term = node->hard_state.term;
  entry->origin_sequence = ++node->origin_sequence;
  int error = note_entry(edit, entry);
  if (error) return error;
  error = raft_store_append(node->store, entry, 0);
  if (!error && raft_store_pending_bytes(node->store) > NODE_EXPORT_FLUSH_BYTES)
    error = raft_store_flush(node->store, &persist);
  edit->previous = entry->index;
  pthread_mutex_lock(&node->mutex);
  node_weigh(node, entry->index, raft_entry_size(entry));
  node->last_index = node->durable_index = entry->index;
  pthread_mutex_unlock(&node->mutex);
  return error_of_store(edit, error);
}

static int append_set(void *ctx, const struct vfs_change_set *set) {
  struct edit *edit = ctx;
  struct raft_entry entry;
  int error = node_entry_from_set(edit->node, set, &entry);
  if (error) return error;
  entry.previous = edit->previous;
  error = append(edit, &entry);
  raft_payload_unref(entry.payload);
  return error;
}

static int raise_term(struct edit *edit) {
  struct node *node = edit->node;
  struct raft_hard_state next = node->hard_state;
  next.term++;
  next.voted_for = node->id;
  int error = raft_hard_state_write(node->hard_state_file, &next);
  if (error) {
    node_say(edit->text, "%s/vote cannot be written: %s", node->folder, strerror(-error));
    return error == -ENOSPC ? VFS_NO_SPACE : VFS_IO;
  }
  node->hard_state = next;
  return VFS_OK;
}

static int append_edit(struct edit *edit) {
  struct node *node = edit->node;
  uint64_t persist = 0;
  int error = raise_term(edit);
  if (!error) error = vfs_database_export(node->database, append_set, edit, edit->text);
  if (!error) error = error_of_store(edit, raft_store_flush(node->store, &persist));
  return error ? error : vfs_database_mark(node->database, edit->start->last_index, edit->text);
}

int node_adopt_edit(struct node *node, const struct vfs_found *found, struct raft_start *start, char *text) {
  struct edit edit = {
      .node = node,
      .start = start,
      .entries = (struct raft_entry_meta *)(uintptr_t)start->entries,
      .capacity = (size_t)(start->last_index + 1 - start->first_index),
      .text = text,
  };
  bool is_edited = false;
  text[0] = 0;
  /* A log that begins behind what the file was does not go on from it: the file is made again. */
  if (!found->has_marks || start->first_index > found->checkpointed + 1) return SQLITE_OK;
  int error = look_behind(&edit, found);
  if (!error && !edit.has_later) error = vfs_database_find_edit(node->database, start->last_index, &is_edited, text);
  if (!error && is_edited) error = append_edit(&edit);
  if (error && !text[0]) node_say(text, "%s: what was changed in it cannot be written to the log", node->path);
  return node_sqlite_error(error);
}
