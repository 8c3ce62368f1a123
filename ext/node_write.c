/*
** What vfs/ asks of the node: may I write, append this, what became of it, is it durable, may I read.
**
** Who waits for an index sleeps on a condition of its own and is woken only when its fate is known, or to lead the next
** flush. Whoever decides writes the answer under the waiter's mutex, so a woken thread need not queue for the node's.
*/
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "node_internal.h"

/* ---- Waiters ---- */

static void insert(struct node_waiters *waiters, struct node_waiter *waiter) {
  struct node_waiter *before = waiters->last;
  while (before && before->index > waiter->index) before = before->previous;
  waiter->previous = before;
  waiter->next = before ? before->next : waiters->first;
  *(before ? &before->next : &waiters->first) = waiter;
  *(waiter->next ? &waiter->next->previous : &waiters->last) = waiter;
}

static void take_out(struct node *node, struct node_waiters *waiters, struct node_waiter *waiter) {
  *(waiter->previous ? &waiter->previous->next : &waiters->first) = waiter->next;
  *(waiter->next ? &waiter->next->previous : &waiters->last) = waiter->previous;
  if (node->handed == waiter) node->handed = NULL; /* the next drain asks another one */
}

static void decide(struct node *node, struct node_waiters *waiters, struct node_waiter *waiter, enum vfs_fate fate) {
  take_out(node, waiters, waiter);
  pthread_mutex_lock(&waiter->mutex);
  waiter->fate = fate;
  waiter->signal = NODE_DECIDED;
  pthread_cond_signal(&waiter->condition);
  pthread_mutex_unlock(&waiter->mutex); /* the waiter may be gone after this */
}

/*
** true: what can be told is known. Lost is told after the compensation is published (only a changed header makes
** SQLite drop its cache), committed when this database shows it (again).
*/
static bool fate_of(const struct node *node, uint64_t term, uint64_t index, enum vfs_fate *fate) {
  switch (raft_fate(node->raft, term, index)) {
  case RAFT_FATE_COMMITTED: *fate = VFS_FATE_COMMITTED; return node->applied_index >= index;
  case RAFT_FATE_LOST: *fate = VFS_FATE_LOST; return !node->compensation_owed;
  default: *fate = VFS_FATE_UNKNOWN; return false;
  }
}

static void decide_through(struct node *node, struct node_waiters *waiters, uint64_t index) {
  while (waiters->first && waiters->first->index <= index) decide(node, waiters, waiters->first, VFS_FATE_COMMITTED);
}

/*
** What waits in the epoch that is on is decided by rising index. Without one, all waiters are of epochs that are over, and
** the commit of a later term's first entry decides about any of them, wherever it lies.
*/
static bool may_be_decided(const struct node *node, const struct node_waiter *waiter) {
  return waiter && (waiter->index <= node->commit_index || node->epoch == 0);
}

void node_decide(struct node *node) {
  enum vfs_fate fate;
  struct node_waiter *next;
  for (struct node_waiter *waiter = node->commit_waiters.first; may_be_decided(node, waiter); waiter = next) {
    next = waiter->next;
    if (fate_of(node, waiter->term, waiter->index, &fate)) decide(node, &node->commit_waiters, waiter, fate);
  }
  decide_through(node, &node->applied_waiters, node->applied_index);
}

void node_decide_durable(struct node *node) {
  decide_through(node, &node->durable_waiters, node->durable_index);
}

static void decide_all(struct node *node, struct node_waiters *waiters) {
  while (waiters->first) decide(node, waiters, waiters->first, VFS_FATE_UNKNOWN);
}

void node_wake_all(struct node *node) {
  decide_all(node, &node->commit_waiters);
  decide_all(node, &node->applied_waiters);
  decide_all(node, &node->durable_waiters);
  pthread_cond_broadcast(&node->epoch_condition);
  pthread_cond_broadcast(&node->log_condition);
  pthread_cond_broadcast(&node->apply_condition);
  pthread_cond_broadcast(&node->checkpoint_condition);
  pthread_cond_broadcast(&node->transfer_condition);
  pthread_cond_broadcast(&node->asking_condition);
}

/* Sleeps until it is signalled or the deadline. No other lock held. */
static enum node_signal sleep_on(struct node *node, struct node_waiter *waiter, uint64_t deadline) {
  int error = 0;
  pthread_mutex_lock(&waiter->mutex);
  while (waiter->signal == NODE_WAIT && error != -ETIMEDOUT)
    error = os_condition_wait(node->os, &waiter->condition, &waiter->mutex, deadline);
  enum node_signal signal = waiter->signal;
  if (signal == NODE_LEAD) waiter->signal = NODE_WAIT;
  pthread_mutex_unlock(&waiter->mutex);
  return signal;
}

/* mutex held. A decided waiter is in no list, so nobody else touches it. */
static bool is_decided(struct node_waiter *waiter) {
  pthread_mutex_lock(&waiter->mutex);
  bool decided = waiter->signal == NODE_DECIDED;
  pthread_mutex_unlock(&waiter->mutex);
  return decided;
}

/*
** Waits in `waiters` for (term, index), leading flushes where nobody does. mutex held, given back before it returns.
** VFS_FATE_UNKNOWN: the deadline has passed or the node stops.
*/
static enum vfs_fate wait_in(struct node *node, struct node_waiters *waiters, uint64_t term, uint64_t index,
                             uint64_t deadline) {
  struct node_waiter waiter = {.term = term, .index = index, .fate = VFS_FATE_UNKNOWN};
  pthread_mutex_init(&waiter.mutex, NULL);
  os_condition_init(&waiter.condition);
  insert(waiters, &waiter);
  bool is_queued = true, expired = false;
  while (is_queued && !expired) {
    if (waiters != &node->applied_waiters && node_may_lead(node, index)) {
      node_flush(node);
      is_queued = !is_decided(&waiter);
      continue;
    }
    pthread_mutex_unlock(&node->mutex);
    enum node_signal signal = sleep_on(node, &waiter, deadline);
    if (signal == NODE_DECIDED) goto out;
    pthread_mutex_lock(&node->mutex);
    is_queued = !is_decided(&waiter);
    if (node->handed == &waiter) node->handed = NULL;
    expired = signal == NODE_WAIT;
  }
  if (is_queued) {
    take_out(node, waiters, &waiter);
    node_hand_over(node);
  }
  pthread_mutex_unlock(&node->mutex);
out:
  pthread_mutex_destroy(&waiter.mutex);
  pthread_cond_destroy(&waiter.condition);
  return waiter.fate;
}

/* ---- Writing ---- */

static int acquire(void *ctx, uint64_t deadline, uint64_t *epoch) {
  struct node *node = ctx;
  if (node_is_forked()) return VFS_STOPPED;
  pthread_mutex_lock(&node->mutex);
  int error = VFS_OK;
  for (;;) {
    if (node->stopping)
      error = VFS_STOPPED;
    else if (node->epoch != 0 && node->hand_over_to == 0)
      break;
    else if (node->removed_index != 0 || (node->leader != 0 && node->leader != node->id))
      error = VFS_NOT_HERE;
    else if (node->failed[0] || (node->quarantine[0] && node->configuration.n_members == 1))
      error = VFS_IO;
    else if (os_now(node->os) >= deadline)
      error = VFS_NOBODY;
    if (error) break;
    os_condition_wait(node->os, &node->epoch_condition, &node->mutex, deadline);
  }
  if (!error && node_admit(node, 0, false) == VFS_NO_SPACE) error = VFS_NO_SPACE;
  *epoch = node->epoch;
  pthread_mutex_unlock(&node->mutex);
  return error;
}

/* The right to write goes with leadership; there is nothing to give back. */
static void release(void *ctx, uint64_t epoch) {
  (void)ctx;
  (void)epoch;
}

static int check_epoch(const struct node *node, uint64_t epoch) {
  if (node->stopping) return VFS_STOPPED;
  if (node->failed[0]) return VFS_IO;
  return node->epoch == epoch && epoch != 0 ? VFS_OK : VFS_NOT_HERE;
}

/* mutex held, given up while it waits until the log has room in memory. */
static int wait_for_room(struct node *node, uint64_t epoch, uint64_t deadline) {
  int error = check_epoch(node, epoch);
  while (!error && raft_store_pending_bytes(node->store) > NODE_PENDING_BYTES_MAX) {
    if (os_now(node->os) >= deadline) return VFS_BUSY;
    wait_in(node, &node->durable_waiters, epoch, node->durable_index + 1, deadline);
    pthread_mutex_lock(&node->mutex);
    error = check_epoch(node, epoch);
  }
  return error;
}

static uint8_t entry_flags(uint8_t set_flags) {
  return (uint8_t)((set_flags & VFS_SET_PART ? RAFT_ENTRY_PART : 0) | (set_flags & VFS_SET_LAST ? RAFT_ENTRY_LAST : 0) |
                   (set_flags & VFS_SET_ABORT ? RAFT_ENTRY_ABORT : 0));
}

int node_entry_from_set(struct node *node, const struct vfs_change_set *set, struct raft_entry *entry) {
  *entry = (struct raft_entry){
      .type = RAFT_ENTRY_DATA,
      .flags = entry_flags(set->flags),
      .pages = set->pages,
      .page_size = set->page_size,
      .previous = set->previous,
      .checksum = set->checksum,
      .origin = node->incarnation,
  };
  if (set->size == 0) return VFS_OK;
  if (set->size > RAFT_PAYLOAD_MAX) return VFS_TOO_LARGE;
  entry->payload = raft_payload_new(set->size);
  if (!entry->payload) return VFS_NO_MEMORY;
  memcpy(entry->payload->bytes, set->bytes, set->size);
  return VFS_OK;
}

static int error_of_raft(int error) {
  switch (error) {
  case RAFT_OK: return VFS_OK;
  case RAFT_NOT_LEADER: return VFS_NOT_HERE;
  case RAFT_FULL:
  case RAFT_PENDING: return VFS_BUSY;
  case RAFT_NO_MEMORY: return VFS_NO_MEMORY;
  default: return VFS_IO;
  }
}

/* mutex held. Rises over terms and restarts: a node leads again only in a higher term. */
static uint64_t next_sequence(struct node *node) {
  uint64_t floor = node->term << 32;
  node->origin_sequence = (node->origin_sequence > floor ? node->origin_sequence : floor) + 1;
  return node->origin_sequence;
}

/* mutex held, given up while it waits. */
static int propose_entry(struct node *node, uint64_t epoch, struct raft_entry *entry, uint64_t deadline) {
  for (;;) {
    int error = wait_for_room(node, epoch, deadline);
    if (error) return error;
    error = node_admit(node, raft_entry_size(entry), (entry->flags & RAFT_ENTRY_ABORT) != 0);
    if (error == VFS_BUSY && os_now(node->os) < deadline) {
      wait_in(node, &node->durable_waiters, epoch, node->durable_index + 1, deadline);
      pthread_mutex_lock(&node->mutex);
      continue;
    }
    if (error) return error;
    error = raft_propose(node->raft, os_now(node->os), epoch, entry->type, raft_entry_size(entry), &entry->index);
    if (error == RAFT_OK) break;
    if (error != RAFT_FULL && error != RAFT_PENDING) return error_of_raft(error);
    if (os_now(node->os) >= deadline) return VFS_BUSY;
    if (error == RAFT_PENDING) { /* leadership is being handed over: it ends, or that is given up */
      os_condition_wait(node->os, &node->epoch_condition, &node->mutex, deadline);
      continue;
    }
    wait_in(node, &node->applied_waiters, epoch, node->applied_index + 1, deadline);
    pthread_mutex_lock(&node->mutex);
  }
  entry->term = epoch;
  entry->origin_sequence = next_sequence(node);
  node_drain(node, entry, 1);
  return VFS_OK;
}

static int propose(void *ctx, uint64_t epoch, const struct vfs_change_set *set, uint64_t deadline, uint64_t *index) {
  struct node *node = ctx;
  struct raft_entry entry;
  if (node_is_forked()) return VFS_STOPPED;
  int error = node_entry_from_set(node, set, &entry);
  if (error) return error;
  pthread_mutex_lock(&node->mutex);
#ifdef BALSA_MUTANT_STALE_EPOCH
  if (node->epoch == 0) node->epoch = node->term;
  epoch = node->epoch;
#endif
  error = propose_entry(node, epoch, &entry, deadline);
  pthread_mutex_unlock(&node->mutex);
  raft_payload_unref(entry.payload);
  *index = entry.index;
  return error;
}

static enum vfs_fate wait_for_fate(void *ctx, struct vfs_token token, uint64_t deadline) {
  struct node *node = ctx;
  enum vfs_fate fate = VFS_FATE_UNKNOWN;
  if (node_is_forked()) return fate;
  pthread_mutex_lock(&node->mutex);
  bool is_known = fate_of(node, token.epoch, token.index, &fate);
  if (is_known || node->stopping) {
    pthread_mutex_unlock(&node->mutex);
    return is_known ? fate : VFS_FATE_UNKNOWN;
  }
  fate = wait_in(node, &node->commit_waiters, token.epoch, token.index, deadline);
  if (fate != VFS_FATE_UNKNOWN) return fate;
  /* Out of time: committed is true even if this database does not show it (again) yet. */
  pthread_mutex_lock(&node->mutex);
  bool is_committed = node->raft && raft_fate(node->raft, token.epoch, token.index) == RAFT_FATE_COMMITTED;
  pthread_mutex_unlock(&node->mutex);
  return is_committed ? VFS_FATE_COMMITTED : VFS_FATE_UNKNOWN;
}

static int wait_durable(void *ctx, uint64_t index, uint64_t deadline) {
  struct node *node = ctx;
  if (node_is_forked()) return VFS_STOPPED;
  pthread_mutex_lock(&node->mutex);
  int error = VFS_OK;
#ifdef BALSA_MUTANT_APPLY_BEFORE_DURABLE
  index = 0;
#endif
  if (node->stopping)
    error = VFS_STOPPED;
  else if (node->durable_index < index && node->failed[0])
    error = VFS_IO;
  if (error || node->durable_index >= index) {
    pthread_mutex_unlock(&node->mutex);
    return error;
  }
  if (wait_in(node, &node->durable_waiters, 0, index, deadline) == VFS_FATE_COMMITTED) return VFS_OK;
  pthread_mutex_lock(&node->mutex);
  error = node->stopping ? VFS_STOPPED : node->failed[0] ? VFS_IO : VFS_BUSY;
  pthread_mutex_unlock(&node->mutex);
  return error;
}

/* ---- Reading ---- */

int node_wait_applied(struct node *node, uint64_t index, uint64_t deadline) {
  if (node_is_forked()) return VFS_STOPPED;
  pthread_mutex_lock(&node->mutex);
  if (node->stopping || node->applied_index >= index) {
    int error = node->applied_index >= index ? VFS_OK : VFS_STOPPED;
    pthread_mutex_unlock(&node->mutex);
    return error;
  }
  if (wait_in(node, &node->applied_waiters, 0, index, deadline) == VFS_FATE_COMMITTED) return VFS_OK;
  pthread_mutex_lock(&node->mutex);
  int error = node->stopping ? VFS_STOPPED : VFS_BUSY;
  pthread_mutex_unlock(&node->mutex);
  return error;
}

void node_answer_reads(struct node *node, const struct raft_read_answer *answers, size_t n_answers) {
  for (size_t i = 0; i < n_answers; i++) {
    for (struct node_read *read = node->reads; read; read = read->next) {
      if (read->context != answers[i].context) continue;
      read->index = answers[i].index;
      read->error = answers[i].error;
      read->is_answered = true;
    }
  }
  pthread_cond_broadcast(&node->epoch_condition);
}

static void forget_read(struct node *node, const struct node_read *read) {
  struct node_read **at = &node->reads;
  while (*at != read) at = &(*at)->next;
  *at = read->next;
}

/* mutex held, given up while it waits. Asks once; *index is what must be applied. */
static int ask_read(struct node *node, enum raft_read_level level, uint64_t deadline, uint64_t *index) {
  struct node_read read = {.next = node->reads, .context = ++node->read_context};
  node->reads = &read; /* cppcheck-suppress autoVariables; taken out below, by forget_read */
  /* A lost message is not repeated by the core: asked again after an election time-out. */
  uint64_t now = os_now(node->os), again = now + node->election_ms * OS_MS;
  int error = raft_read(node->raft, now, read.context, level);
  node_drain(node, NULL, 0);
  if (again > deadline) again = deadline;
  while (!error && !read.is_answered && !node->stopping && os_now(node->os) < again)
    os_condition_wait(node->os, &node->epoch_condition, &node->mutex, again);
  forget_read(node, &read);
  *index = read.index;
  if (node->stopping) return VFS_STOPPED;
  return !error && read.is_answered && read.error == RAFT_OK ? VFS_OK : VFS_BUSY;
}

static int barrier(void *ctx, int level, uint64_t deadline) {
  struct node *node = ctx;
  uint64_t index = 0;
  int error = VFS_BUSY;
  if (node_is_forked()) return VFS_STOPPED;
  if (level <= 0) return VFS_OK;
  pthread_mutex_lock(&node->mutex);
  while (error == VFS_BUSY) {
    if (node->stopping)
      error = VFS_STOPPED;
    else if (node->frozen || node->removed_index != 0)
      error = VFS_NOBODY;
    else
      error = ask_read(node, level == RAFT_READ_LEASE ? RAFT_READ_LEASE : RAFT_READ_QUORUM, deadline, &index);
    if (error == VFS_BUSY && os_now(node->os) >= deadline) error = VFS_NOBODY;
    /* Nobody leads: a new leader, or a heartbeat's time, is worth another try. */
    uint64_t again = os_now(node->os) + node->heartbeat_ms * OS_MS;
    if (error == VFS_BUSY)
      os_condition_wait(node->os, &node->epoch_condition, &node->mutex, again < deadline ? again : deadline);
  }
  pthread_mutex_unlock(&node->mutex);
  return error ? error : node_wait_applied(node, index, deadline);
}

/* ---- The log ---- */

void node_log_entry(const struct raft_entry *entry, struct vfs_log_entry *log_entry) {
  uint8_t flags = (uint8_t)((entry->flags & RAFT_ENTRY_PART ? VFS_SET_PART : 0) |
                            (entry->flags & RAFT_ENTRY_LAST ? VFS_SET_LAST : 0) |
                            (entry->flags & RAFT_ENTRY_ABORT ? VFS_SET_ABORT : 0));
  *log_entry = (struct vfs_log_entry){
      .epoch = entry->term,
      .index = entry->index,
      .is_change_set = entry->type == RAFT_ENTRY_DATA,
      .set =
          {
              .flags = flags,
              .page_size = entry->page_size,
              .pages = entry->pages,
              .previous = entry->previous,
              .checksum = entry->checksum,
              .bytes = entry->payload ? entry->payload->bytes : NULL,
              .size = raft_entry_size(entry),
          },
      .hold = entry->payload,
  };
}

void node_forget_ahead(struct node *node) {
  for (size_t i = 0; i < node->n_ahead; i++) raft_payload_unref(node->ahead[i].payload);
  free(node->ahead);
  node->ahead = NULL;
  node->n_ahead = 0;
}

/* Entries from `index` on. Redo asks for one after the other, and a read of the disk for each would be most of what it does. */
static int64_t read_ahead(struct node *node, uint64_t index) {
  for (size_t i = 0; i < node->n_ahead; i++) raft_payload_unref(node->ahead[i].payload);
  node->n_ahead = 0;
  if (!node->ahead) node->ahead = calloc(NODE_APPEND_ENTRIES_MAX, sizeof *node->ahead);
  if (!node->ahead) return -ENOMEM;
  int64_t n = raft_store_read(node->store, index, NODE_APPEND_ENTRIES_MAX, NODE_APPLY_BYTES_MAX, node->ahead);
  node->ahead_first = index;
  node->n_ahead = n > 0 ? (size_t)n : 0;
  return n;
}

static int read_log(void *ctx, uint64_t index, struct vfs_log_entry *entry, char *text) {
  struct node *node = ctx;
  bool is_there = index >= node->ahead_first && index - node->ahead_first < node->n_ahead;
  int64_t n = is_there ? 1 : read_ahead(node, index);
  if (n > 0) {
    const struct raft_entry *read = &node->ahead[index - node->ahead_first];
    node_log_entry(read, entry);
    if (read->payload) raft_payload_ref(read->payload);
    return VFS_OK;
  }
  if (n == -ENOMEM) return VFS_NO_MEMORY;
  if (n == -ENOENT || n == 0)
    node_say(text, "%s/log: entry %llu is not there", node->folder, (unsigned long long)index);
  else
    raft_store_error(node->store, text);
  return VFS_DAMAGED;
}

static void release_log(void *ctx, struct vfs_log_entry *entry) {
  (void)ctx;
  raft_payload_unref(entry->hold);
  entry->hold = NULL;
}

static void explain(void *ctx, char *text) {
  struct node *node = ctx;
  pthread_mutex_lock(&node->mutex);
  if (node->blocked[0]) node_say(text, "%s", node->blocked);
  pthread_mutex_unlock(&node->mutex);
}

static void want_checkpoint(void *ctx) {
  struct node *node = ctx;
  pthread_mutex_lock(&node->mutex);
  node_want_checkpoint(node);
  pthread_mutex_unlock(&node->mutex);
}

const struct vfs_node_methods node_vfs_methods = {
    .acquire = acquire,
    .release = release,
    .propose = propose,
    .wait = wait_for_fate,
    .barrier = barrier,
    .wait_durable = wait_durable,
    .read_log = read_log,
    .release_log = release_log,
    .explain = explain,
    .want_checkpoint = want_checkpoint,
};
