/*
** A view: one committed state of the database, readable while writers go on. Snapshots are written from it.
**
** It pins the state's last frame with a read mark of its own (wal.h), as a reader of SQLite does: checkpoints stay
** behind it and the WAL does not start again. What frames up to it do not hold is in the file, where nothing newer can come.
*/
#include <stdlib.h>
#include <string.h>

#include "database.h"

struct vfs_view {
  struct vfs_database *database;
  sqlite3_file *handle;
  struct vfs_state state;
  int mark; /* 0: not pinned */
};

/* ticket held */
static int pin_newest(struct vfs_view *view) {
  struct vfs_database *database = view->database;
  struct vfs_wal_header live;
  if (vfs_wal_read_header(database->wal, &live) != SQLITE_OK) return VFS_IO;
  vfs_note_restart(database, &live);
  /*
  ** The first pass of a checkpoint does not wait for the ticket: it asks under the mutex how far it may go. Were this state
  ** superseded before its mark stands, pages of the next one could already be on their way into the file.
  */
  int mark = 0;
  pthread_mutex_lock(&database->mutex);
  vfs_settle(database);
  view->state = database->committed;
  int error = vfs_error_of_sqlite(vfs_wal_pin(database->wal, view->handle, view->state.max_frame, &mark));
  pthread_mutex_unlock(&database->mutex);
  if (error) return error;
  view->mark = mark;
  atomic_fetch_add(&database->views, 1);
  return VFS_OK;
}

int vfs_view_open(struct vfs_database *database, uint64_t deadline, struct vfs_view **out, struct vfs_state_info *info,
                  char *text) {
  int code = SQLITE_OK;
  *out = NULL;
  if (!atomic_load(&database->ready) || atomic_load(&database->wal_failed)) return VFS_BUSY;
  struct vfs_view *view = calloc(1, sizeof *view);
  if (!view) return VFS_NO_MEMORY;
  view->database = database;
  view->handle = vfs_open_base(database, database->name, SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READWRITE, &code);
  int error = view->handle ? VFS_OK : VFS_IO;
  if (!error && !vfs_ticket_take(&database->ticket, view, VFS_TICKET_BACK, deadline)) error = VFS_BUSY;
  if (!error) {
    error = pin_newest(view);
    vfs_ticket_give(&database->ticket, view);
  }
  if (!error) error = database->methods->wait_durable(database->node, view->state.index, deadline);
  if (error) {
    snprintf(text, VFS_TEXT_MAX, "%s: no view for a snapshot: %s", database->path, vfs_error_text(error));
    vfs_view_close(view);
    return error;
  }
  *info = (struct vfs_state_info){
      .index = view->state.index,
      .checksum = view->state.checksum,
      .page_size = database->page_size,
      .pages = view->state.pages,
  };
  *out = view;
  return VFS_OK;
}

int vfs_view_read(struct vfs_view *view, uint32_t first, uint32_t n, uint8_t *pages) {
  return vfs_wal_read_pages(view->database->wal, first, n, view->state.max_frame, pages);
}

void vfs_view_close(struct vfs_view *view) {
  if (!view) return;
  if (view->mark) {
    vfs_wal_unpin(view->handle, view->mark);
    vfs_view_closed(view->database);
  }
  if (view->handle) view->handle->pMethods->xShmUnmap(view->handle, 0);
  vfs_close_base(&view->handle);
  free(view);
}
