/*
** What the bytes of a connection pass on their way to the socket and back: nothing so far, TLS one day.
**
** Both directions are called with the connection's mutex held, from whichever thread has something to send.
*/
#ifndef BALSA_RAFT_IO_FILTER_H
#define BALSA_RAFT_IO_FILTER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct raft_filter {
  /*
  ** Sends as much as the socket takes: how many of the bytes in `parts` it has taken over (never to be offered
  ** again), or a negative errno; -EAGAIN: none now, call again when the socket is writable.
  */
  int64_t (*send)(struct raft_filter *filter, int descriptor, const struct iovec *parts, int n_parts);
  /* Receives up to `size` bytes; 0 at the end, or a negative errno; -EAGAIN: none now. */
  int64_t (*receive)(struct raft_filter *filter, int descriptor, void *bytes, size_t size);
  void (*close)(struct raft_filter *filter);
};

/* The identity. Has no state; one for all. */
struct raft_filter *raft_filter_plain(void);

#endif
