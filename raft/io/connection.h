/*
** One TCP connection of the transport: frames queued by any thread go out, frames that come in are handed
** to its owner on the loop thread.
**
** A thread that sends writes to the socket itself, as far as the socket takes it: a hand-over to the loop
** thread would cost a commit as much as its disk write. On the loop thread sending waits until the events at
** hand are dealt with, so that what answers them shares one write.
*/
#ifndef BALSA_RAFT_IO_CONNECTION_H
#define BALSA_RAFT_IO_CONNECTION_H

#include <pthread.h>
#include <uv.h>

#include "filter.h"
#include "wire.h"

struct connection;
struct frame;

struct connection_owner {
  /* Writable for the first time: a connect has come to its end (socket_error tells how). */
  void (*connected)(struct connection *connection);
  /* A whole frame, valid during the call, which may close the connection. */
  void (*frame)(struct connection *connection, enum wire_type type, const uint8_t *frame, uint32_t length);
  /* The other side has gone, or sends what is no frame. The owner closes the connection. */
  void (*broken)(struct connection *connection, int error);
  /* The time that connection_set_deadline gave is over. */
  void (*late)(struct connection *connection);
};

struct frames {
  struct frame *first, *last;
};

struct connection {
  struct connection *next; /* the owner's, as all down to `met` */
  void *context;
  struct raft_hello hello; /* of the other side, once met */
  bool met;

  const struct connection_owner *owner;
  struct raft_filter *filter;
  uv_poll_t poll;
  uv_timer_t timer;
  int n_handles; /* not yet closed */
  bool closed, connecting;
  int polled;           /* events that the loop looks for */
  uint32_t frame_limit; /* WIRE_GREETING_MAX until both have said Hello */
  uint8_t *in;
  size_t in_used, in_capacity;

  pthread_mutex_t *mutex; /* guards the rest, and the filter; not ours */
  int descriptor;         /* -1 once closed */
  struct frames urgent, bulk;
  struct frames sending; /* their order is settled; the first may have gone in part */
  size_t queued_bytes, sending_bytes;
  bool is_full; /* the socket takes no more: the loop waits for it */
  int error;    /* what sending met: the loop breaks the connection */
};

/*
** Loop thread. Takes over the descriptor (closes it on failure, NULL then). `connecting`: it is not yet
** connected. `mutex` must outlive it.
*/
struct connection *connection_new(uv_loop_t *loop, int descriptor, bool connecting, pthread_mutex_t *mutex,
                                  const struct connection_owner *owner, void *context);
/* Loop thread; mutex not held. Nothing is called back afterwards; memory goes when libuv has let go of it. */
void connection_close(struct connection *connection);

/* Queues a copy of a whole frame: a greeting or a request. Mutex held. false: the queue is full, or no memory. */
bool connection_queue_bytes(struct connection *connection, const uint8_t *bytes, uint32_t length);
/*
** Queues a message. Mutex held. false: the queue is full, the frame too large, or no memory. The sender then
** calls connection_pump, or leaves it to connection_tend on the loop thread.
*/
bool connection_queue(struct connection *connection, const struct raft_message *message,
                      const struct raft_entry *entries);
/* Writes what the socket takes. Mutex held; any thread. true: the loop must tend to it. */
bool connection_pump(struct connection *connection);
/* Loop thread; mutex not held: writes what is queued and sees to it that the rest follows. May call broken. */
void connection_tend(struct connection *connection);
/* Calls late() after so many milliseconds; 0: never. Loop thread. */
void connection_set_deadline(struct connection *connection, uint64_t ms);

#endif
