/*
** The read gate and the fate of what was seen (design section 3, "The read gate").
**
** Rule: no snapshot shows a transaction that is not committed, except inside a write transaction. A
** reader notes at its read lock the last state that its snapshot may contain, and waits for that state in its first
** xRead after it. Waiting in the lock itself would starve: the header has changed again when it wakes.
*/
#include "database.h"

#include <assert.h>

static struct vfs_state *in_flight_at(struct vfs_database *database, uint32_t i) {
  return &database->in_flight[(database->in_flight_first + i) % database->in_flight_capacity];
}

void vfs_boundary_push(struct vfs_database *database, const struct vfs_state *state) {
  if (state->max_frame == 0) return;
  if (database->boundaries_count == VFS_BOUNDARIES_MAX) {
    database->boundaries_first = (database->boundaries_first + 1) % VFS_BOUNDARIES_MAX;
    database->boundaries_count--;
  }
  database->boundaries[(database->boundaries_first + database->boundaries_count) % VFS_BOUNDARIES_MAX] = *state;
  database->boundaries_count++;
}

void vfs_settle(struct vfs_database *database) {
  uint64_t commit_index = atomic_load(&database->commit_index);
  while (database->in_flight_count > 0) {
    const struct vfs_state *state = in_flight_at(database, 0);
    if (state->token.index > commit_index) break;
    database->committed = *state;
    vfs_boundary_push(database, state);
    database->in_flight_first = (database->in_flight_first + 1) % database->in_flight_capacity;
    database->in_flight_count--;
  }
}

void vfs_lose(struct vfs_database *database, uint64_t first, uint64_t last) {
  database->lost[database->lost_count++ % VFS_LOST_RANGES] = (struct vfs_lost_range){first, last};
}

uint64_t vfs_newest_sequence(const struct vfs_database *database) {
  if (database->in_flight_count == 0) return database->committed.sequence;
  uint32_t last = (database->in_flight_first + database->in_flight_count - 1) % database->in_flight_capacity;
  return database->in_flight[last].sequence;
}

/* mutex held. The transaction that led to this sequence, which is in flight. */
static struct vfs_token token_of(struct vfs_database *database, uint64_t sequence) {
  for (uint32_t i = 0; i < database->in_flight_count; i++) {
    const struct vfs_state *state = in_flight_at(database, i);
    if (state->sequence >= sequence) return state->token;
  }
  assert(!"a sequence that is neither committed nor lost is in flight");
  return (struct vfs_token){0};
}

bool vfs_is_lost(struct vfs_database *database, uint64_t sequence) {
  uint64_t known = database->lost_count < VFS_LOST_RANGES ? database->lost_count : VFS_LOST_RANGES;
  for (uint64_t i = 0; i < known; i++) {
    const struct vfs_lost_range *range = &database->lost[(database->lost_count - 1 - i) % VFS_LOST_RANGES];
    if (sequence > range->last) return false; /* ranges rise */
    if (sequence >= range->first) return true;
  }
  return known == VFS_LOST_RANGES;
}

bool vfs_header_beyond(const struct vfs_database *database, const struct vfs_wal_header *live) {
  if (vfs_same_salt(live, &database->header)) return live->max_frame > database->header.max_frame;
  return live->max_frame > 0;
}

/* mutex held. Waits until the state is decided in this process too: committed or taken back. */
static bool wait_settled(struct vfs_database *database, uint64_t sequence, uint64_t deadline) {
  while (database->committed.sequence < sequence) {
    vfs_settle(database);
    if (database->committed.sequence >= sequence) break;
    if (os_condition_wait(database->os, &database->changed, &database->mutex, deadline) != 0) return false;
  }
  return true;
}

enum vfs_fate vfs_wait_sequence(struct vfs_database *database, uint64_t sequence, uint64_t deadline) {
  enum vfs_fate fate = VFS_FATE_UNKNOWN;
  pthread_mutex_lock(&database->mutex);
  while (sequence > database->captured.sequence) {
    if (os_condition_wait(database->os, &database->changed, &database->mutex, deadline) != 0) goto done;
  }
  vfs_settle(database);
  if (sequence > database->committed.sequence && !vfs_is_lost(database, sequence)) {
    struct vfs_token token = token_of(database, sequence);
    pthread_mutex_unlock(&database->mutex);
    fate = database->methods->wait(database->node, token, deadline);
    pthread_mutex_lock(&database->mutex);
    if (fate != VFS_FATE_LOST) goto done;
    if (!wait_settled(database, sequence, deadline)) fate = VFS_FATE_UNKNOWN;
    goto done;
  }
  fate = vfs_is_lost(database, sequence) ? VFS_FATE_LOST : VFS_FATE_COMMITTED;
done:
  pthread_mutex_unlock(&database->mutex);
  return fate;
}

void vfs_gate_arm(struct vfs_connection *connection) {
  struct vfs_database *database = connection->database;
  pthread_mutex_lock(&database->mutex);
  vfs_settle(database);
  /* Under the mutex: every header that is published beyond the captured one gets a sequence of its own soon. */
  struct vfs_wal_header live;
  bool beyond = vfs_wal_read_header(database->wal, &live) != SQLITE_OK || vfs_header_beyond(database, &live);
  if (beyond)
    connection->gate = database->captured.sequence + 1;
  else
    connection->gate = database->in_flight_count > 0 ? vfs_newest_sequence(database) : 0;
  pthread_mutex_unlock(&database->mutex);
}

int vfs_gate_pass(struct vfs_connection *connection) {
  if (connection->gate == 0) return SQLITE_OK;
  struct vfs_database *database = connection->database;
  enum vfs_fate fate = vfs_wait_sequence(database, connection->gate, vfs_connection_deadline(connection));
  vfs_connection_note_wait(connection, fate == VFS_FATE_UNKNOWN ? VFS_BUSY : VFS_OK);
  switch (fate) {
  case VFS_FATE_COMMITTED: connection->gate = 0; return SQLITE_OK;
  case VFS_FATE_LOST:
    vfs_connection_fail(connection, "the snapshot showed a transaction that was lost when leadership changed; "
                                    "run the statement again");
    return SQLITE_BUSY_SNAPSHOT;
  default:
    vfs_connection_fail(connection,
                        "the newest transaction is not on a majority of nodes after %u ms "
                        "(balsa_timeout); try again, or see balsa_status",
                        connection->timeout_ms);
    return SQLITE_BUSY;
  }
}
