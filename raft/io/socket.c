#include "socket.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LISTEN_BACKLOG 128
#define USER_TIMEOUT_MS 1500 /* what was sent and not acknowledged for so long: the peer is gone */
#define KEEPALIVE_IDLE_S 5
#define KEEPALIVE_INTERVAL_S 2
#define KEEPALIVE_PROBES 3
#define NOT_SENT_MAX (128 << 10) /* bytes in the kernel that wait for the network: what a heartbeat queues behind */

/* ---- Closing in forked children ---- */

/* Guards `descriptors`; held across fork, so that the child finds them whole. */
static pthread_mutex_t descriptors_mutex = PTHREAD_MUTEX_INITIALIZER;
static int *descriptors;
static size_t n_descriptors, descriptors_capacity;

static void before_fork(void) {
  pthread_mutex_lock(&descriptors_mutex);
}

static void after_fork_in_parent(void) {
  pthread_mutex_unlock(&descriptors_mutex);
}

static void after_fork_in_child(void) {
  for (size_t i = 0; i < n_descriptors; i++) close(descriptors[i]);
  n_descriptors = 0;
  pthread_mutex_unlock(&descriptors_mutex);
}

static void watch_forks(void) {
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* Closes the descriptor and gives an error if it can't be remembered. */
static int remember(int descriptor) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  bool done = false;
  pthread_once(&once, watch_forks);
  pthread_mutex_lock(&descriptors_mutex);
  if (n_descriptors == descriptors_capacity) {
    size_t capacity = descriptors_capacity ? 2 * descriptors_capacity : 32;
    int *grown = realloc(descriptors, capacity * sizeof *grown);
    if (grown) descriptors = grown;
    if (grown) descriptors_capacity = capacity;
  }
  if (n_descriptors < descriptors_capacity) {
    descriptors[n_descriptors++] = descriptor;
    done = true;
  }
  pthread_mutex_unlock(&descriptors_mutex);
  if (done) return descriptor;
  close(descriptor);
  return -ENOMEM;
}

void socket_close(int descriptor) {
  if (descriptor < 0) return;
  pthread_mutex_lock(&descriptors_mutex);
  for (size_t i = 0; i < n_descriptors; i++)
    if (descriptors[i] == descriptor) {
      descriptors[i] = descriptors[--n_descriptors];
      break;
    }
  close(descriptor); /* within the lock: a fork between would have the child close a stranger's descriptor */
  pthread_mutex_unlock(&descriptors_mutex);
}

/* ---- Addresses ---- */

bool socket_name_parse(const char *address, struct socket_name *name, char *text, size_t text_size) {
  const char *host = address, *colon = strrchr(address, ':');
  size_t length = colon ? (size_t)(colon - address) : 0;
  bool bracketed = length >= 2 && address[0] == '[' && address[length - 1] == ']';
  if (bracketed) {
    host++;
    length -= 2;
  }
  bool good = length > 0 && length < sizeof name->host && (bracketed || memchr(host, ':', length) == NULL);
  size_t digits = good ? strspn(colon + 1, "0123456789") : 0;
  good = good && digits > 0 && digits < sizeof name->port && colon[1 + digits] == 0;
  unsigned long number = good ? strtoul(colon + 1, NULL, 10) : 0;
  good = good && number <= UINT16_MAX;
  if (!good) {
    snprintf(text, text_size, "'%.300s' is not an address: write host:port, or [host]:port for IPv6", address);
    return false;
  }
  memcpy(name->host, host, length);
  name->host[length] = 0;
  memcpy(name->port, colon + 1, digits + 1);
  name->number = (uint16_t)number;
  return true;
}

/* The numeric address that a socket is bound to. */
static int bound_address(int descriptor, char *real) {
  struct sockaddr_storage address;
  socklen_t size = sizeof address;
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (getsockname(descriptor, (struct sockaddr *)&address, &size) < 0) return -errno;
  if (getnameinfo((struct sockaddr *)&address, size, host, sizeof host, port, sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return -EINVAL;
  int n = snprintf(real, RAFT_ADDRESS_MAX, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
  return n < 0 || n >= RAFT_ADDRESS_MAX ? -ENAMETOOLONG : 0;
}

static int listen_at(const struct addrinfo *info, char *real) {
  int one = 1, zero = 0, error = 0;
  int descriptor = socket(info->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return -errno;
  setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one); /* a restart need not wait for TIME_WAIT */
  if (info->ai_family == AF_INET6) setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
  if (bind(descriptor, info->ai_addr, info->ai_addrlen) < 0 || listen(descriptor, LISTEN_BACKLOG) < 0) error = -errno;
  if (error == 0) error = bound_address(descriptor, real);
  if (error == 0) return remember(descriptor);
  close(descriptor);
  return error;
}

int socket_listen(const char *address, char *real, char *text, size_t text_size) {
  const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
  struct socket_name name;
  struct addrinfo *infos;
  int result = -EADDRNOTAVAIL;
  if (!socket_name_parse(address, &name, text, text_size)) return -EINVAL;
  int failure = getaddrinfo(name.host, name.port, &hints, &infos);
  if (failure) {
    snprintf(text, text_size, "cannot listen on %.300s: %s", address, gai_strerror(failure));
    return -EADDRNOTAVAIL;
  }
  for (const struct addrinfo *info = infos; info && result < 0; info = info->ai_next) result = listen_at(info, real);
  freeaddrinfo(infos);
  if (result < 0)
    snprintf(text, text_size, "cannot listen on %.300s: %s%s", address, strerrordesc_np(-result),
             result == -EADDRINUSE ? "; another program or node of this machine has the port" : "");
  return result;
}

/* ---- Connections ---- */

static void set_options(int descriptor) {
  int one = 1, user_timeout = USER_TIMEOUT_MS, idle = KEEPALIVE_IDLE_S, interval = KEEPALIVE_INTERVAL_S;
  int probes = KEEPALIVE_PROBES, not_sent = NOT_SENT_MAX;
  /* What a kernel does not know is a matter of speed only. */
  setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(descriptor, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout, sizeof user_timeout);
  setsockopt(descriptor, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
  setsockopt(descriptor, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &not_sent, sizeof not_sent);
}

int socket_accept(int listener) {
  int descriptor = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (descriptor < 0) return errno == EWOULDBLOCK || errno == EINTR || errno == ECONNABORTED ? -EAGAIN : -errno;
  set_options(descriptor);
  return remember(descriptor);
}

int socket_connect(const struct sockaddr *address, socklen_t size) {
  int descriptor = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return -errno;
  set_options(descriptor);
  if (connect(descriptor, address, size) < 0 && errno != EINPROGRESS) {
    int error = -errno;
    close(descriptor);
    return error;
  }
  return remember(descriptor);
}

int socket_error(int descriptor) {
  int error = 0;
  socklen_t size = sizeof error;
  if (getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &size) < 0) return -errno;
  return -error;
}
