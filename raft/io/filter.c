#include "filter.h"

#include <errno.h>
#include <sys/socket.h>

static int64_t plain_send(struct raft_filter *filter, int descriptor, const struct iovec *parts, int n_parts) {
  struct msghdr header = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)n_parts};
  (void)filter;
  ssize_t n = sendmsg(descriptor, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (n >= 0) return n;
  return errno == EINTR || errno == EWOULDBLOCK ? -EAGAIN : -errno;
}

static int64_t plain_receive(struct raft_filter *filter, int descriptor, void *bytes, size_t size) {
  (void)filter;
  ssize_t n = recv(descriptor, bytes, size, MSG_DONTWAIT);
  if (n >= 0) return n;
  return errno == EINTR || errno == EWOULDBLOCK ? -EAGAIN : -errno;
}

static void plain_close(struct raft_filter *filter) {
  (void)filter;
}

struct raft_filter *raft_filter_plain(void) {
  static struct raft_filter plain = {plain_send, plain_receive, plain_close};
  return &plain;
}
