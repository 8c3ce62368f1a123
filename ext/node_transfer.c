/*
** Snapshots on their way between nodes: the transfer thread reads and writes the files, so that neither the loop
** nor anybody with the node's mutex waits for a disk.
**
** To a follower (transfers; raft.h tells what the core wants). The file is kept open: a newer snapshot may take its
** name's place meanwhile. Of it, NODE_TRANSFER_WINDOW bytes are under way at most, and one chunk in memory. The follower
** says from where on it wants the file, so a lost connection, a restart there or here costs no more than what was under
** way; that is sent again as soon as there is a connection. A follower that had all of it and wants it from the beginning has
** found it damaged: then it is read here too, and if it is, another one is taken.
**
** From the leader (receiving). A chunk that was accepted by the core is written to snapshot.part by the receiver, which
** makes it durable every now and then. When the last one is there it is answered at once, then verified and given its
** name; the apply thread installs it (node_restore.c).
*/
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "node_internal.h"

void node_wake_transfers(struct node *node) {
  pthread_cond_signal(&node->transfer_condition);
}

/* ---- To followers: what the core says ---- */

static struct node_transfer *find_transfer(struct node *node, uint64_t id) {
  for (size_t i = 0; i < NODE_TRANSFERS_MAX; i++)
    if (node->transfers[i].id == id) return &node->transfers[i];
  return NULL;
}

/* Closing may free a file that has lost its name, which takes time: the thread does it. */
static void release(struct node *node, struct node_transfer *transfer) {
  if (transfer->file && node->n_closing < NODE_TRANSFERS_MAX)
    node->closing[node->n_closing++] = transfer->file;
  else
    os_close(transfer->file);
  *transfer = (struct node_transfer){0};
}

/* The thread may be at it, and finds out. */
static void end_transfer(struct node *node, struct node_transfer *transfer) {
  if (transfer->is_busy)
    transfer->is_over = true;
  else
    release(node, transfer);
}

static void continue_transfer(struct node_transfer *transfer, const struct raft_transfer *event) {
  bool has_had_all = transfer->size_bytes > 0 && transfer->acked == transfer->size_bytes;
  if (has_had_all && event->offset == 0) transfer->is_suspect = true;
  transfer->acked = event->offset;
  if (event->again || transfer->sent < event->offset) transfer->sent = event->offset;
  transfer->is_answered = transfer->is_asked = true;
}

void node_transfer_event(struct node *node, const struct raft_transfer *event) {
  struct node_transfer *transfer = find_transfer(node, event->event == RAFT_TRANSFER_BEGIN ? 0 : event->id);
  assert(transfer || event->event != RAFT_TRANSFER_BEGIN); /* one for each member, and one that is busy */
  if (!transfer) return;                                   /* given up before */
  switch (event->event) {
  case RAFT_TRANSFER_BEGIN:
    *transfer = (struct node_transfer){.id = event->id, .to = event->to, .is_asked = true};
    break;
  case RAFT_TRANSFER_CONTINUE: continue_transfer(transfer, event); break;
  case RAFT_TRANSFER_END: end_transfer(node, transfer); break;
  }
  node_wake_transfers(node);
}

void node_describe_transfer(struct node *node, uint64_t to, char text[NODE_TRANSFER_TEXT_MAX]) {
  text[0] = 0;
  for (size_t i = 0; i < NODE_TRANSFERS_MAX; i++) {
    const struct node_transfer *transfer = &node->transfers[i];
    if (transfer->id == 0 || transfer->to != to || transfer->is_over) continue;
    if (transfer->size_bytes == 0)
      snprintf(text, NODE_TRANSFER_TEXT_MAX, "waits for one");
    else
      snprintf(text, NODE_TRANSFER_TEXT_MAX, "%" PRIu64 ", %u %%", transfer->index,
               (unsigned)(transfer->acked * 100 / transfer->size_bytes));
  }
}

void node_transfers_met(struct node *node, uint64_t to) {
  for (size_t i = 0; i < NODE_TRANSFERS_MAX; i++) {
    struct node_transfer *transfer = &node->transfers[i];
    if (transfer->id != 0 && transfer->to == to) transfer->sent = transfer->acked;
  }
  node_wake_transfers(node);
}

void node_ask_transfers(struct node *node) {
  for (size_t i = 0; i < NODE_TRANSFERS_MAX; i++)
    if (!node->transfers[i].file) node->transfers[i].is_asked = true;
  node_wake_transfers(node);
}

/* ---- To followers: the thread ---- */

/* mutex held. Sends what is described, with the bytes of `payload` (NULL: none). false: the transfer is over. */
static bool send_chunk(struct node *node, struct node_transfer *transfer, uint64_t offset,
                       struct raft_payload *payload) {
  struct raft_message message;
  struct raft_chunk chunk = {
      .index = transfer->index,
      .term = transfer->term,
      .offset = offset,
      .size_bytes = transfer->size_bytes,
      .bytes = payload ? payload->size : 0,
  };
  int error = raft_transfer_chunk(node->raft, os_now(node->os), transfer->id, &chunk, &message);
  if (error == RAFT_INVALID) raft_transfer_failed(node->raft, os_now(node->os), transfer->id);
  if (error) transfer->is_over = true;
  struct raft_entry entry = {.payload = payload};
  if (!error && node->link) raft_transport_send(node->link, &message, &entry);
  node_drain(node, NULL, 0);
  return error == 0;
}

/* mutex held. It cannot go on; the core begins another one later. */
static void give_up(struct node *node, struct node_transfer *transfer) {
  transfer->is_over = true;
  raft_transfer_failed(node->raft, os_now(node->os), transfer->id);
  node_drain(node, NULL, 0);
}

/* No lock held. The newest snapshot's file, and what its head says. */
static int open_file(struct node *node, uint64_t index, struct node_transfer *opened, char *text) {
  char path[OS_PATH_MAX];
  struct snapshot_reader *reader = NULL;
  struct snapshot_meta meta = {0};
  snapshot_path(node->snapshots_folder, index, path);
  int error = os_open(node->os, path, OS_OPEN_READ, &opened->file);
  if (!error) error = os_size(opened->file, &opened->size_bytes);
  if (!error) {
    error = snapshot_reader_open(node->os, path, &reader, &meta, text);
    if (!error && snapshot_reader_is_mended(reader)) {
      node_say(text, "%.500s: its head is damaged", path);
      error = -EILSEQ;
    }
    snapshot_reader_close(reader);
  } else {
    node_say(text, "%.500s: %s", path, strerror(-error));
  }
  opened->index = meta.index;
  opened->term = meta.term;
  if (error) os_close(opened->file);
  return error;
}

/* mutex held, given up meanwhile. Opens the newest snapshot if it reaches the log, and offers it. */
static void open_transfer(struct node *node, struct node_transfer *transfer) {
  struct raft_status status;
  struct node_transfer opened = {0};
  char text[VFS_TEXT_MAX] = "";
  uint64_t index = node->snapshot_index;
  raft_get_status(node->raft, &status);
  if (index == 0 || index + 1 < status.first_index || node->snapshot_damaged) {
    node_need_snapshot(node); /* node_ask_transfers tells when it is there */
    return;
  }
  pthread_mutex_unlock(&node->mutex);
  int error = open_file(node, index, &opened, text);
  pthread_mutex_lock(&node->mutex);
  if (error && index != node->snapshot_index) { /* a newer one has taken its place */
    transfer->is_asked = true;
  } else if (error) {
    node->snapshot_damaged = error == -EILSEQ || error == -ENOENT;
    give_up(node, transfer);
    pthread_mutex_unlock(&node->mutex);
    node_log(SQLITE_IOERR, "node %" PRIu64 ": a follower cannot get its snapshot: %s", node->id, text);
    pthread_mutex_lock(&node->mutex);
  } else {
    transfer->file = opened.file;
    transfer->index = opened.index;
    transfer->term = opened.term;
    transfer->size_bytes = opened.size_bytes;
    if (!transfer->is_over) send_chunk(node, transfer, 0, NULL);
  }
}

/* mutex held, given up meanwhile. The follower has refused all of it: is it damaged? */
static void check_transfer(struct node *node, struct node_transfer *transfer) {
  char path[OS_PATH_MAX], text[VFS_TEXT_MAX];
  uint64_t index = transfer->index;
  transfer->is_suspect = false;
  snapshot_path(node->snapshots_folder, index, path);
  pthread_mutex_unlock(&node->mutex);
  int error = node_snapshot_verify(node, path, text);
  if (error == VFS_DAMAGED)
    node_log(SQLITE_WARNING, "node %" PRIu64 " takes a snapshot anew, its last one is damaged: %s", node->id, text);
  pthread_mutex_lock(&node->mutex);
  if (error != VFS_DAMAGED) return;
  if (index == node->snapshot_index) node->snapshot_damaged = true;
  give_up(node, transfer);
}

/* mutex held, given up meanwhile. */
static void send_next(struct node *node, struct node_transfer *transfer) {
  uint64_t id = transfer->id, offset = transfer->sent, left = transfer->size_bytes - offset;
  uint32_t size = left < NODE_CHUNK_BYTES ? (uint32_t)left : NODE_CHUNK_BYTES;
  pthread_mutex_unlock(&node->mutex);
  struct raft_payload *payload = raft_payload_new(size);
  int64_t n = payload ? os_read(transfer->file, payload->bytes, size, offset) : -ENOMEM;
  if (n >= 0 && n < (int64_t)size) n = -EIO;
  if (n < 0)
    node_log(SQLITE_IOERR, "node %" PRIu64 ": a snapshot cannot be read at offset %" PRIu64 ": %s", node->id, offset,
             strerror((int)-n));
  pthread_mutex_lock(&node->mutex);
  assert(transfer->id == id);
  if (n < 0) {
    give_up(node, transfer);
  } else if (!transfer->is_over && transfer->sent == offset && send_chunk(node, transfer, offset, payload)) {
    transfer->sent = offset + size;
  }
  raft_payload_unref(payload);
}

static bool has_room(const struct node_transfer *transfer) {
  return transfer->is_answered && transfer->sent < transfer->size_bytes &&
         transfer->sent - transfer->acked < NODE_TRANSFER_WINDOW;
}

/* mutex held, given up meanwhile. true: something was done. */
static bool attend_open(struct node *node, struct node_transfer *transfer, bool is_asked) {
  if (transfer->is_suspect)
    check_transfer(node, transfer);
  else if (has_room(transfer))
    send_next(node, transfer);
  else if (is_asked && transfer->acked == transfer->size_bytes)
    send_chunk(node, transfer, transfer->acked, NULL); /* has it been installed? */
  else
    return false;
  return true;
}

static bool attend(struct node *node, struct node_transfer *transfer) {
  bool is_asked = transfer->is_asked;
  if (transfer->id == 0) return false;
  transfer->is_asked = false;
  transfer->is_busy = true;
  bool done = is_asked;
  if (transfer->file)
    done = attend_open(node, transfer, is_asked);
  else if (is_asked)
    open_transfer(node, transfer);
  transfer->is_busy = false;
  if (transfer->is_over) release(node, transfer);
  return done;
}

/* mutex held, given up meanwhile. */
static bool close_next(struct node *node) {
  if (node->n_closing == 0) return false;
  struct os_file *file = node->closing[--node->n_closing];
  pthread_mutex_unlock(&node->mutex);
  os_close(file);
  pthread_mutex_lock(&node->mutex);
  return true;
}

/* ---- From the leader ---- */

void node_take_chunk(struct node *node, const struct raft_message *message, struct raft_payload *payload) {
  if (node->n_chunks == NODE_CHUNKS_MAX) return; /* it comes again */
  struct node_chunk *chunk = &node->chunks[(node->chunks_first + node->n_chunks++) % NODE_CHUNKS_MAX];
  *chunk = (struct node_chunk){
      .index = message->index,
      .term = message->log_term,
      .size_bytes = message->size_bytes,
      .offset = message->offset,
      .payload = payload ? raft_payload_ref(payload) : NULL,
  };
  node_wake_transfers(node);
}

/* What has come so far; the transfer thread's own. */
struct receiving {
  struct node *node;
  struct snapshot_receiver *receiver; /* NULL: not open */
  uint64_t index, term, size_bytes;   /* of the file; index 0: none */
  uint64_t offset;
  bool is_complete; /* it has its name */
  char text[VFS_TEXT_MAX];
};

static void close_receiving(struct receiving *receiving) {
  snapshot_receiver_close(receiving->receiver);
  receiving->receiver = NULL;
}

static bool is_of(const struct receiving *receiving, const struct node_chunk *chunk) {
  return receiving->index == chunk->index && receiving->term == chunk->term &&
         receiving->size_bytes == chunk->size_bytes;
}

/* Opens the file that the chunk is of, unless it is. */
static int open_receiving(struct receiving *receiving, const struct node_chunk *chunk) {
  struct node *node = receiving->node;
  pthread_mutex_lock(&node->mutex);
  if (!receiving->is_complete || !is_of(receiving, chunk)) node->part_index = chunk->index;
  pthread_mutex_unlock(&node->mutex);
  if (is_of(receiving, chunk) && (receiving->receiver || receiving->is_complete)) return 0;
  close_receiving(receiving);
  receiving->index = chunk->index;
  receiving->term = chunk->term;
  receiving->size_bytes = chunk->size_bytes;
  receiving->is_complete = false;
  return snapshot_receiver_open(node->os, node->snapshots_folder, chunk->index, chunk->term, chunk->size_bytes,
                                &receiving->receiver, &receiving->offset, receiving->text);
}

/* Writes what is new in the chunk. *gap: it does not follow on what is there. */
static int write_chunk(struct receiving *receiving, const struct node_chunk *chunk, bool *gap) {
  uint64_t size = chunk->payload ? chunk->payload->size : 0, end = chunk->offset + size;
  *gap = size > 0 && chunk->offset > receiving->offset;
  if (size == 0 || *gap || receiving->is_complete || end <= receiving->offset) return 0;
  uint64_t known = receiving->offset - chunk->offset;
  int error = snapshot_receiver_add(receiving->receiver, receiving->offset, chunk->payload->bytes + known,
                                    (size_t)(size - known));
  if (error)
    node_say(receiving->text, "%s", snapshot_receiver_error(receiving->receiver));
  else
    receiving->offset = end;
  return error;
}

/* mutex held. */
static void answer(struct receiving *receiving, bool reject) {
  struct node *node = receiving->node;
  node->receiving_index = receiving->is_complete ? 0 : receiving->index;
  node->receiving_percent = (unsigned)(receiving->offset * 100 / receiving->size_bytes);
  raft_snapshot_answer(node->raft, os_now(node->os), receiving->index, receiving->offset, reject);
  node_drain(node, NULL, 0);
}

/* All is there. No lock held. Damage: it begins anew, and the leader hears of it. */
static int finish_receiving(struct receiving *receiving) {
  char path[OS_PATH_MAX];
  int error = snapshot_receiver_finish(receiving->receiver, path, receiving->text);
  close_receiving(receiving);
  receiving->is_complete = error == 0;
  if (error == -EILSEQ || error == -EPROTO) receiving->offset = 0;
  if (error != -EILSEQ && error != -EPROTO) return error;
  pthread_mutex_lock(&receiving->node->mutex);
  answer(receiving, true);
  pthread_mutex_unlock(&receiving->node->mutex);
  return error;
}

/* mutex held. What stands in the way of receiving is told; the leader sends again. */
static void tell(struct receiving *receiving, int error) {
  struct node *node = receiving->node;
  snprintf(node->receiving_text, sizeof node->receiving_text, "%s", error ? receiving->text : "");
}

/* No lock held. */
static void receive(struct receiving *receiving, const struct node_chunk *chunk) {
  struct node *node = receiving->node;
  bool gap = false;
  int error = open_receiving(receiving, chunk);
  if (!error) error = write_chunk(receiving, chunk, &gap);
  pthread_mutex_lock(&node->mutex);
  if (!error) answer(receiving, gap);
  tell(receiving, error);
  pthread_mutex_unlock(&node->mutex);
  if (!error && !receiving->is_complete && receiving->offset == receiving->size_bytes)
    error = finish_receiving(receiving);
  if (error) close_receiving(receiving); /* what is durable stays; the next chunk opens it again */
  pthread_mutex_lock(&node->mutex);
  tell(receiving, error);
  if (!error && receiving->is_complete) {
    node->install_index = receiving->index;
    node->receiving_index = node->part_index = 0;
    node_wake_apply(node);
  }
  pthread_mutex_unlock(&node->mutex);
}

/* mutex held, given up meanwhile. true: there was a chunk. */
static bool receive_next(struct node *node, struct receiving *receiving) {
  if (node->n_chunks == 0) return false;
  struct node_chunk chunk = node->chunks[node->chunks_first];
  node->chunks_first = (node->chunks_first + 1) % NODE_CHUNKS_MAX;
  node->n_chunks--;
  if (node->install_refused == chunk.index) receiving->index = 0; /* it proved to be damaged: all of it again */
  node->install_refused = 0;
  pthread_mutex_unlock(&node->mutex);
  receive(receiving, &chunk);
  raft_payload_unref(chunk.payload);
  pthread_mutex_lock(&node->mutex);
  return true;
}

/* mutex held, given up meanwhile. A part that the log has overtaken is of no use, one that an earlier run has left neither. */
static bool drop_part(struct node *node, struct receiving *receiving) {
  if (node->part_index == 0 || node->commit_index < node->part_index) return false;
  node->receiving_index = node->part_index = 0;
  pthread_mutex_unlock(&node->mutex);
  close_receiving(receiving);
  receiving->index = 0;
  snapshot_remove_part(node->os, node->snapshots_folder);
  pthread_mutex_lock(&node->mutex);
  return true;
}

/* ---- The thread ---- */

/* mutex held, given up meanwhile. */
static bool transfer_step(struct node *node, struct receiving *receiving) {
  bool done = receive_next(node, receiving) || drop_part(node, receiving) || close_next(node);
  for (size_t i = 0; i < NODE_TRANSFERS_MAX && !node->stopping; i++) done = attend(node, &node->transfers[i]) || done;
  return done;
}

void node_transfer_thread(void *arg) {
  struct node *node = arg;
  struct receiving receiving = {.node = node};
  uint64_t part_index = 0;
  int error = snapshot_find_part(node->os, node->snapshots_folder, &part_index);
  if (error)
    node_log(SQLITE_IOERR, "node %" PRIu64 ": %s cannot be looked through: %s", node->id, node->snapshots_folder,
             strerror(-error));
  pthread_mutex_lock(&node->mutex);
  node->part_index = part_index;
  while (!node->stopping) {
    if (transfer_step(node, &receiving)) continue;
    os_condition_wait(node->os, &node->transfer_condition, &node->mutex, OS_FOREVER);
  }
  for (size_t i = 0; i < NODE_TRANSFERS_MAX; i++) release(node, &node->transfers[i]);
  while (close_next(node)) continue;
  for (; node->n_chunks > 0; node->n_chunks--) {
    raft_payload_unref(node->chunks[node->chunks_first].payload);
    node->chunks_first = (node->chunks_first + 1) % NODE_CHUNKS_MAX;
  }
  pthread_mutex_unlock(&node->mutex);
  close_receiving(&receiving);
}
