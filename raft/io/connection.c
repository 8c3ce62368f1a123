#include "connection.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "socket.h"

#define PARTS_MAX 64                  /* of one sendmsg */
#define SENDING_BYTES_MAX (64u << 10) /* whose order is settled: what a heartbeat may have to wait for */
#define IN_SIZE (64u << 10)
#define IN_KEPT (1u << 20) /* a larger buffer is given back once it is empty */
#define READS_MAX 16       /* of one connection before the others get their turn */

struct frame {
  struct frame *next;
  uint32_t length, head_size, sent, n_payloads;
  struct raft_payload **payloads; /* behind the head; without those that are empty */
  uint8_t head[];
};

/* ---- Frames ---- */

static void frame_free(struct frame *frame) {
  for (uint32_t i = 0; i < frame->n_payloads; i++) raft_payload_unref(frame->payloads[i]);
  free(frame);
}

static void frames_add(struct frames *frames, struct frame *frame) {
  frame->next = NULL;
  if (frames->last)
    frames->last->next = frame;
  else
    frames->first = frame;
  frames->last = frame;
}

static struct frame *frames_take(struct frames *frames) {
  struct frame *frame = frames->first;
  if (frame == NULL) return NULL;
  frames->first = frame->next;
  if (frames->first == NULL) frames->last = NULL;
  return frame;
}

static void frames_free(struct frames *frames) {
  struct frame *frame;
  while ((frame = frames_take(frames))) frame_free(frame);
}

static struct frame *frame_new(uint32_t head_size, uint32_t length, uint32_t payloads_max) {
  size_t payloads_at = (sizeof(struct frame) + head_size + 7) & ~(size_t)7;
  size_t payloads_size = payloads_max * sizeof(struct raft_payload *);
  struct frame *frame = malloc(payloads_at + payloads_size);
  if (frame == NULL) return NULL;
  *frame = (struct frame){.length = length, .head_size = head_size};
  frame->payloads = (struct raft_payload **)(void *)((uint8_t *)frame + payloads_at);
  return frame;
}

bool connection_queue_bytes(struct connection *connection, const uint8_t *bytes, uint32_t length) {
  if (connection->queued_bytes + length > RAFT_SEND_QUEUE_MAX) return false;
  struct frame *frame = frame_new(length, length, 0);
  if (frame == NULL) return false;
  memcpy(frame->head, bytes, length);
  connection->queued_bytes += length;
  frames_add(&connection->urgent, frame);
  return true;
}

bool connection_queue(struct connection *connection, const struct raft_message *message,
                      const struct raft_entry *entries) {
  uint32_t head_size, length;
  if (!wire_message_size(message, entries, &head_size, &length)) return false;
  if (connection->queued_bytes + length > RAFT_SEND_QUEUE_MAX) return false;
  uint32_t n_payloads = wire_payloads(message);
  struct frame *frame = frame_new(head_size, length, n_payloads);
  if (frame == NULL) return false;
  wire_encode_message(message, entries, length, frame->head);
  for (uint32_t i = 0; i < n_payloads; i++)
    if (raft_entry_size(&entries[i])) frame->payloads[frame->n_payloads++] = raft_payload_ref(entries[i].payload);
  connection->queued_bytes += length;
  /* APPENDs stay in order among each other, also those without entries: one that overtakes is refused. So do chunks. */
  bool is_bulk = message->type == RAFT_APPEND || message->type == RAFT_SNAPSHOT;
  frames_add(is_bulk ? &connection->bulk : &connection->urgent, frame);
  return true;
}

/* ---- Out ---- */

/* Settles the order of as many frames as one write should take. */
static void choose_frames(struct connection *connection) {
  while (connection->sending_bytes < SENDING_BYTES_MAX) {
    struct frame *frame = frames_take(&connection->urgent);
    if (frame == NULL) frame = frames_take(&connection->bulk);
    if (frame == NULL) return;
    frames_add(&connection->sending, frame);
    connection->sending_bytes += frame->length;
  }
}

static void add_part(struct iovec *parts, int *n, const uint8_t *bytes, size_t size, size_t *skip) {
  if (*skip >= size) {
    *skip -= size;
    return;
  }
  parts[(*n)++] = (struct iovec){.iov_base = (void *)(bytes + *skip), .iov_len = size - *skip};
  *skip = 0;
}

static int gather(const struct connection *connection, struct iovec parts[PARTS_MAX]) {
  int n = 0;
  for (const struct frame *frame = connection->sending.first; frame; frame = frame->next) {
    size_t skip = frame->sent;
    if (n == PARTS_MAX) return n;
    add_part(parts, &n, frame->head, frame->head_size, &skip);
    for (uint32_t i = 0; i < frame->n_payloads; i++) {
      if (n == PARTS_MAX) return n;
      add_part(parts, &n, frame->payloads[i]->bytes, frame->payloads[i]->size, &skip);
    }
  }
  return n;
}

static void advance(struct connection *connection, size_t sent) {
  connection->queued_bytes -= sent;
  connection->sending_bytes -= sent;
  while (sent > 0) {
    struct frame *frame = connection->sending.first;
    size_t left = frame->length - frame->sent;
    if (sent < left) {
      frame->sent += (uint32_t)sent;
      return;
    }
    sent -= left;
    frame_free(frames_take(&connection->sending));
  }
}

bool connection_pump(struct connection *connection) {
  if (connection->descriptor < 0 || connection->is_full || connection->error) return false;
  for (;;) {
    struct iovec parts[PARTS_MAX];
    choose_frames(connection);
    int n_parts = gather(connection, parts);
    if (n_parts == 0) return false;
    int64_t n = connection->filter->send(connection->filter, connection->descriptor, parts, n_parts);
    if (n == -EAGAIN) {
      connection->is_full = true;
      return true;
    }
    if (n < 0) {
      connection->error = (int)n;
      return true;
    }
    advance(connection, (size_t)n);
  }
}

/* ---- In ---- */

static int reserve_in(struct connection *connection) {
  enum wire_type type;
  uint32_t length = 0;
  size_t capacity = IN_SIZE;
  if (connection->in_used >= WIRE_HEADER_SIZE) {
    if (wire_decode_header(connection->in, connection->frame_limit, &type, &length) != RAFT_OK) return -EPROTO;
    if (length > capacity) capacity = length;
  }
  bool too_large = connection->in_used == 0 && connection->in_capacity > IN_KEPT;
  if (capacity <= connection->in_capacity && !too_large) return 0;
  uint8_t *grown = realloc(connection->in, capacity);
  if (grown == NULL) return -ENOMEM;
  connection->in = grown;
  connection->in_capacity = capacity;
  return 0;
}

/* Hands over the whole frames that have arrived. */
static int take_frames(struct connection *connection) {
  size_t at = 0;
  while (!connection->closed && connection->in_used - at >= WIRE_HEADER_SIZE) {
    enum wire_type type;
    uint32_t length;
    if (wire_decode_header(connection->in + at, connection->frame_limit, &type, &length) != RAFT_OK) return -EPROTO;
    if (connection->in_used - at < length) break;
    connection->owner->frame(connection, type, connection->in + at, length);
    at += length;
  }
  if (at > 0) memmove(connection->in, connection->in + at, connection->in_used - at);
  connection->in_used -= at;
  return 0;
}

static void read_some(struct connection *connection) {
  for (int i = 0; i < READS_MAX && !connection->closed; i++) {
    int error = reserve_in(connection);
    if (error) {
      connection->owner->broken(connection, error);
      return;
    }
    pthread_mutex_lock(connection->mutex);
    size_t room = connection->in_capacity - connection->in_used;
    int64_t n = connection->filter->receive(connection->filter, connection->descriptor,
                                            connection->in + connection->in_used, room);
    pthread_mutex_unlock(connection->mutex);
    if (n == -EAGAIN) return;
    if (n <= 0) {
      connection->owner->broken(connection, n < 0 ? (int)n : -ECONNRESET);
      return;
    }
    connection->in_used += (size_t)n;
    error = take_frames(connection);
    if (error && !connection->closed) connection->owner->broken(connection, error);
    if (error || (size_t)n < room) return;
  }
}

/* ---- The loop ---- */

static void on_poll(uv_poll_t *poll, int status, int events);

static void look_for(struct connection *connection, int events) {
  if (connection->polled == events) return;
  connection->polled = events;
  uv_poll_start(&connection->poll, events, on_poll);
}

static void on_poll(uv_poll_t *poll, int status, int events) {
  struct connection *connection = poll->data;
  if (connection->closed) return;
  if (connection->connecting) {
    connection->connecting = false;
    look_for(connection, UV_READABLE);
    connection->owner->connected(connection);
    return;
  }
  if (status < 0) {
    connection->owner->broken(connection, status);
    return;
  }
  if (events & UV_READABLE) read_some(connection);
  if (connection->closed || !(events & UV_WRITABLE)) return;
  pthread_mutex_lock(connection->mutex);
  connection->is_full = false;
  pthread_mutex_unlock(connection->mutex);
  connection_tend(connection);
}

void connection_tend(struct connection *connection) {
  if (connection->closed || connection->connecting) return;
  pthread_mutex_lock(connection->mutex);
  connection_pump(connection);
  int error = connection->error;
  bool is_full = connection->is_full;
  pthread_mutex_unlock(connection->mutex);
  if (error)
    connection->owner->broken(connection, error);
  else
    look_for(connection, is_full ? UV_READABLE | UV_WRITABLE : UV_READABLE);
}

static void on_timer(uv_timer_t *timer) {
  struct connection *connection = timer->data;
  if (!connection->closed) connection->owner->late(connection);
}

void connection_set_deadline(struct connection *connection, uint64_t ms) {
  if (ms)
    uv_timer_start(&connection->timer, on_timer, ms, 0);
  else
    uv_timer_stop(&connection->timer);
}

static void on_close(uv_handle_t *handle) {
  struct connection *connection = handle->data;
  if (--connection->n_handles > 0) return;
  free(connection->in);
  free(connection);
}

void connection_close(struct connection *connection) {
  if (connection->closed) return;
  connection->closed = true;
  uv_close((uv_handle_t *)&connection->poll, on_close); /* before the descriptor's number can be another's */
  pthread_mutex_lock(connection->mutex);
  connection->filter->close(connection->filter);
  socket_close(connection->descriptor);
  connection->descriptor = -1;
  frames_free(&connection->sending);
  frames_free(&connection->urgent);
  frames_free(&connection->bulk);
  connection->queued_bytes = connection->sending_bytes = 0;
  pthread_mutex_unlock(connection->mutex);
  uv_close((uv_handle_t *)&connection->timer, on_close);
}

struct connection *connection_new(uv_loop_t *loop, int descriptor, bool connecting, pthread_mutex_t *mutex,
                                  const struct connection_owner *owner, void *context) {
  struct connection *connection = calloc(1, sizeof *connection);
  if (connection == NULL || uv_poll_init(loop, &connection->poll, descriptor) != 0) {
    socket_close(descriptor);
    free(connection);
    return NULL;
  }
  uv_timer_init(loop, &connection->timer);
  connection->poll.data = connection->timer.data = connection;
  connection->n_handles = 2;
  connection->owner = owner;
  connection->context = context;
  connection->filter = raft_filter_plain();
  connection->mutex = mutex;
  connection->descriptor = descriptor;
  connection->connecting = connecting;
  connection->frame_limit = WIRE_GREETING_MAX;
  look_for(connection, connecting ? UV_WRITABLE : UV_READABLE);
  return connection;
}
