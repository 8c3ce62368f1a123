/*
** Making it durable.
**
** A committing thread leads the log's write itself: no hand-over between threads is paid for. While it is in the
** disk, others append; when it comes back, one of those whose entries still wait is asked to lead the next flush, so that
** all that gathered goes in one write (group commit). The log thread leads where no committing thread comes:
** followers' entries, no-ops, parts of a transaction, and it alone writes term and vote.
**
** The numbers of the core (raft_work.persist) rise. The store reports the highest one whose entries are durable; a number
** with a hard state counts only when that is durable too, and a hard state is written only when everything of
** lower and equal numbers is durable in the store (raft.h).
*/
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "node_internal.h"

void node_fail(struct node *node, const char *format, ...) {
  va_list arguments;
  if (node->failed[0]) return;
  va_start(arguments, format);
  vsnprintf(node->failed, sizeof node->failed, format, arguments);
  va_end(arguments);
}

/* ---- Queueing ---- */

static bool append(struct node *node, const struct raft_entry *entry, uint64_t persist) {
  int error = raft_store_append(node->store, entry, persist);
  if (error) node_fail(node, "%s: the log cannot grow: %s", node->folder, strerror(-error));
  node_weigh(node, entry->index, raft_entry_size(entry));
  return error == 0;
}

/* An entry that the core has made by itself: a no-op, or a configuration. */
static bool append_own(struct node *node, const struct raft_work *work, uint64_t index) {
  struct raft_entry entry = {
      .type = RAFT_ENTRY_NOOP,
      .term = work->term,
      .index = index,
      .origin = node->incarnation,
      .origin_sequence = ++node->origin_sequence,
  };
  if (index == work->configuration_index) {
    const struct raft_configuration *configuration = raft_get_configuration(node->raft, NULL);
    entry.type = RAFT_ENTRY_CONFIGURATION;
    entry.payload = raft_payload_new((uint32_t)raft_configuration_size(configuration));
    if (!entry.payload) {
      node_fail(node, "%s: no memory for a change of the members", node->path);
      return false;
    }
    raft_configuration_encode(configuration, entry.payload->bytes);
  }
  bool is_good = append(node, &entry, work->persist);
  raft_payload_unref(entry.payload);
  return is_good;
}

/* Those that the core made by itself, and those that came with the event. */
static void append_all(struct node *node, const struct raft_work *work, const struct raft_entry *entries,
                       size_t n_entries) {
  bool is_good = true;
  for (uint64_t index = work->append_first; index <= work->append_last && is_good; index++) {
    if ((work->noop && index == work->append_last) || index == work->configuration_index) {
      is_good = append_own(node, work, index);
      continue;
    }
    assert(index >= entries[0].index && index - entries[0].index < n_entries);
    is_good = append(node, &entries[index - entries[0].index], work->persist);
  }
}

void node_queue_write(struct node *node, const struct raft_work *work, const struct raft_entry *entries,
                      size_t n_entries) {
  bool is_attended = work->append_first != 0 && work->append_first == work->append_last && !work->noop &&
                     work->configuration_index == 0 && work->reset_index == 0 && work->truncate_from == 0 &&
                     node->role == RAFT_LEADER && n_entries == 1 && (entries[0].flags & RAFT_ENTRY_LAST);
  bool has_store_work = work->reset_index != 0 || work->truncate_from != 0 || work->append_first != 0;
  node->persist_given = work->persist;
  if (work->reset_index != 0) {
    int error = raft_store_reset(node->store, work->reset_index, work->reset_term, work->persist);
    if (error) node_fail(node, "%s: the log cannot begin anew: %s", node->folder, strerror(-error));
    node_weigh_less(node, 0);
  }
  if (work->truncate_from != 0) {
    int error = raft_store_truncate(node->store, work->truncate_from, work->persist);
    node_weigh_less(node, work->truncate_from);
    if (error) node_fail(node, "%s: the log cannot be shortened: %s", node->folder, strerror(-error));
  }
  if (work->noop || work->configuration_index != 0 || (work->append_first != 0 && n_entries > 0)) {
    append_all(node, work, entries, n_entries);
  } else if (work->append_first != 0) {
    raft_store_mark(node->store, work->persist); /* the first state: node_bootstrap has appended it */
  }
  if (!has_store_work) raft_store_mark(node->store, work->persist);
  if (work->hard_state) {
    if (node->hard_state_first == 0) node->hard_state_first = work->persist;
    node->hard_state_number = work->persist;
    node->hard_state = (struct raft_hard_state){
        .node = node->id, .incarnation = node->incarnation, .term = work->term, .voted_for = work->voted_for};
    pthread_cond_signal(&node->log_condition);
  }
  if (!is_attended) node->unattended = true;
}

/* ---- Flushing ---- */

bool node_may_lead(const struct node *node, uint64_t index) {
  /* What the store has flushed may still wait for a vote to become durable: there is nothing to lead then. */
  return !node->flushing && !node->no_space && !node->failed[0] && !node->stopping && index > node->durable_index &&
         index <= node->last_index && raft_store_is_pending(node->store);
}

static void note_flush(struct node *node, int error, uint64_t persist) {
  if (error == 0) {
    if (persist > node->store_durable) node->store_durable = persist;
    if (node->no_space) node->blocked[0] = 0;
    node->no_space = false;
    return;
  }
  char text[RAFT_STORE_TEXT_MAX];
  raft_store_error(node->store, text);
  if (error == -ENOSPC) {
    node->no_space = true;
    node->unattended = true;
    node->retry_at = os_now(node->os) + NODE_NO_SPACE_RETRY_NS;
    pthread_cond_signal(&node->log_condition); /* it may be asleep without a deadline */
    snprintf(node->blocked, sizeof node->blocked, "blocked by a full disk: %s", text);
  } else {
    node_fail(node, "%s", text);
  }
}

/* mutex held. */
static void note_full(struct node *node) {
  char text[RAFT_STORE_TEXT_MAX];
  raft_store_error(node->store, text);
  snprintf(node->blocked, sizeof node->blocked, "blocked by a full disk: %s", text);
  if (!node->log_full) node->make_room_at = os_now(node->os) + NODE_NO_SPACE_RETRY_NS;
  node->log_full = true;
  pthread_cond_signal(&node->log_condition);
}

int node_admit(struct node *node, size_t size, bool is_urgent) {
  if (node->no_space && !is_urgent) return VFS_NO_SPACE; /* something waits for room already, and says so */
  int error = raft_store_admit(node->store, size, is_urgent);
  if (error == -EAGAIN) {
    node->making_room++;
    pthread_mutex_unlock(&node->mutex);
    int failed = raft_store_make_room(node->store);
    pthread_mutex_lock(&node->mutex);
    node->making_room--;
    if (node->stopping) pthread_cond_broadcast(&node->idle_condition);
    if (node->stopping) return VFS_STOPPED;
    if (failed && failed != -ENOSPC) return VFS_OK; /* a flush will tell */
    error = raft_store_admit(node->store, size, is_urgent);
  }
  if (error != -ENOSPC) return error ? VFS_BUSY : VFS_OK;
  note_full(node);
  return VFS_NO_SPACE;
}

/* mutex held, given up meanwhile. On the log thread. */
static void make_room(struct node *node, uint64_t *delay) {
  pthread_mutex_unlock(&node->mutex);
  int error = raft_store_make_room(node->store);
  pthread_mutex_lock(&node->mutex);
  if (error == -ENOSPC) {
    *delay = *delay * 2 < NODE_NO_SPACE_RETRY_MAX ? *delay * 2 : NODE_NO_SPACE_RETRY_MAX;
    node->make_room_at = os_now(node->os) + *delay;
    return;
  }
  *delay = NODE_NO_SPACE_RETRY_NS;
  node->log_full = false;
  if (!node->no_space) node->blocked[0] = 0;
}

void node_flush(struct node *node) {
  uint64_t persist = 0;
  assert(!node->flushing);
  uint64_t given = node->persist_given;
  node->flushing = true;
  node->unattended = false;
  node->flushes++;
  pthread_mutex_unlock(&node->mutex);
  /* One batch at a time: the core must see that a disk with much to write gets on. */
  int error = raft_store_flush_batch(node->store, &persist);
  pthread_mutex_lock(&node->mutex);
  node->flushing = false;
  note_flush(node, error, persist);
  if (!error && persist < given) node->unattended = true; /* of what was there before some is left */
  node_drain(node, NULL, 0);
  if (node->stopping) pthread_cond_broadcast(&node->idle_condition);
}

void node_wait_idle(struct node *node) {
  while (node->flushing || node->making_room > 0)
    os_condition_wait(node->os, &node->idle_condition, &node->mutex, OS_FOREVER);
}

static bool ask_to_lead(struct node *node, const struct node_waiters *waiters) {
  struct node_waiter *waiter = waiters->first;
  while (waiter && waiter->index <= node->durable_index) waiter = waiter->next;
  if (!waiter || waiter->index > node->last_index) return false;
  node->handed = waiter;
  pthread_mutex_lock(&waiter->mutex);
  waiter->signal = NODE_LEAD;
  pthread_cond_signal(&waiter->condition);
  pthread_mutex_unlock(&waiter->mutex);
  return true;
}

void node_hand_over(struct node *node) {
  bool can_flush = !node->flushing && !node->no_space && !node->failed[0] && !node->stopping;
  bool has_waiters = node->commit_waiters.first || node->durable_waiters.first;
  if (can_flush && !node->handed && has_waiters && node->durable_index < node->last_index &&
      raft_store_is_pending(node->store) &&
      (ask_to_lead(node, &node->commit_waiters) || ask_to_lead(node, &node->durable_waiters)))
    return;
  if (can_flush && !node->handed && node->unattended) pthread_cond_signal(&node->log_condition);
  if (!node->flushing && node->hard_state_first != 0) pthread_cond_signal(&node->log_condition);
}

/* ---- The log thread ---- */

static bool hard_state_is_due(const struct node *node) {
  return node->hard_state_first != 0 && !node->failed[0];
}

/* Term and vote, once all of their number and before is durable in the store. */
static void write_hard_state(struct node *node) {
  struct raft_hard_state state = node->hard_state;
  uint64_t number = node->hard_state_number;
  node->hard_state_writing = node->hard_state_first;
  node->hard_state_first = 0;
  pthread_mutex_unlock(&node->mutex);
  int error = raft_hard_state_write(node->hard_state_file, &state);
  pthread_mutex_lock(&node->mutex);
  if (error) {
    node_fail(node, "%s/vote: term %" PRIu64 " cannot be written: %s; this node takes no part until it starts again",
              node->folder, state.term, strerror(-error));
  } else {
    node->hard_state_writing = 0;
    assert(node->hard_state_first == 0 || node->hard_state_first > number);
  }
  node_drain(node, NULL, 0);
}

/* Entries for a follower that lags behind what is in memory. */
static void read_for_follower(struct node *node, struct raft_entry *entries) {
  struct raft_message message = node->disk_reads[node->disk_reads_first];
  node->disk_reads_first = (node->disk_reads_first + 1) % NODE_DISK_READS_MAX;
  node->n_disk_reads--;
  pthread_mutex_unlock(&node->mutex);
  int64_t n = raft_store_read(node->store, message.index + 1, message.n_entries, SIZE_MAX, entries);
  pthread_mutex_lock(&node->mutex);
  /* A leader never shortens its log in its term: what was read is what the core meant. */
  bool is_current = node->role == RAFT_LEADER && node->term == message.term && node->link;
  if (n > 0 && is_current) {
    message.n_entries = (uint32_t)n;
    raft_transport_send(node->link, &message, entries);
  }
  for (int64_t i = 0; i < n; i++) raft_payload_unref(entries[i].payload);
  if (n == -EILSEQ || n == -EIO) {
    char text[RAFT_STORE_TEXT_MAX];
    if (n == -EILSEQ) atomic_store(&node->is_damaged, true);
    raft_store_error(node->store, text);
    node_fail(node, "%s", text);
    node_drain(node, NULL, 0);
  }
}

static bool log_thread_step(struct node *node, struct raft_entry *entries, uint64_t *delay) {
  bool can_flush = !node->flushing && !node->failed[0] && (!node->no_space || os_now(node->os) >= node->retry_at);
  if (hard_state_is_due(node)) {
    if (node->store_durable >= node->hard_state_number) {
      write_hard_state(node);
      return true;
    }
    if (can_flush) {
      node_flush(node);
      return true;
    }
  }
  if (node->unattended && can_flush && (!node->handed || node->no_space)) { /* on a full disk nobody else leads */
    node_flush(node);
    return true;
  }
  if (node->n_disk_reads > 0) {
    read_for_follower(node, entries);
    return true;
  }
  if (node->known_stale && !node->frozen) {
    node_known_write(node);
    return true;
  }
  if (node->log_full && node->failed[0]) node->log_full = false;
  if (node->log_full && os_now(node->os) >= node->make_room_at) {
    make_room(node, delay);
    return true;
  }
  return false;
}

void node_log_thread(void *arg) {
  struct node *node = arg;
  uint64_t delay = NODE_NO_SPACE_RETRY_NS;
  struct raft_entry *entries = calloc(NODE_APPEND_ENTRIES_MAX, sizeof *entries);
  pthread_mutex_lock(&node->mutex);
  if (!entries) node_fail(node, "%s: no memory for the log thread", node->path);
  while (entries && !node->stopping) {
    if (log_thread_step(node, entries, &delay)) continue;
    /* A deadline that has passed would come back at once, with the mutex held: only where a step follows. */
    uint64_t deadline = node->no_space && !node->failed[0] ? node->retry_at : OS_FOREVER;
    if (node->log_full && node->make_room_at < deadline) deadline = node->make_room_at;
    os_condition_wait(node->os, &node->log_condition, &node->mutex, deadline);
  }
  /* What is left to make durable at a stop in order. */
  node_wait_idle(node);
  while (entries && !node->frozen && !node->failed[0] && !node->no_space &&
         (raft_store_is_pending(node->store) || hard_state_is_due(node))) {
    if (raft_store_is_pending(node->store))
      node_flush(node);
    else
      write_hard_state(node);
  }
  pthread_mutex_unlock(&node->mutex);
  free(entries);
}
