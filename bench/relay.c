/*
** A relay on loopback: what is sent to its port goes to another one, and back. It can close all connections when so and so
** many bytes have come through; those who dial again are let through again.
*/
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench.h"

#define LINKS_MAX 16
#define PIECE (256u << 10)
#define POLL_MS 20

/* Blocking sockets: one slow direction stalls all others, which a test on one machine can bear. */
struct link {
  int near, far; /* who dialled; the target. -1: free */
};

struct relay {
  uint16_t target;
  int listener;
  struct link links[LINKS_MAX];
  uint8_t *piece;
  pthread_t thread;
  atomic_bool is_over;
  atomic_uint_least64_t every; /* 0: no cuts */
  uint64_t passed;             /* since the last cut */
  atomic_uint left, cuts;
};

static struct sockaddr_in loopback(uint16_t port) {
  return (struct sockaddr_in){
      .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};
}

static void drop(struct link *link) {
  close(link->near);
  close(link->far);
  link->near = link->far = -1;
}

static void take(struct relay *relay) {
  struct sockaddr_in address = loopback(relay->target);
  int near = accept4(relay->listener, NULL, NULL, SOCK_CLOEXEC), one = 1;
  int far = near < 0 ? -1 : socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct link *link = relay->links;
  while (link < relay->links + LINKS_MAX && link->near >= 0) link++;
  if (far < 0 || link == relay->links + LINKS_MAX || connect(far, (struct sockaddr *)&address, sizeof address)) {
    if (near >= 0) close(near);
    if (far >= 0) close(far);
    return;
  }
  setsockopt(near, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(far, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  *link = (struct link){near, far};
}

/* Bytes that came through; -1: one end is closed. */
static ssize_t pass(struct relay *relay, int from, int to) {
  ssize_t n = recv(from, relay->piece, PIECE, 0);
  if (n <= 0) return -1;
  for (ssize_t put = 0; put < n;) {
    ssize_t m = send(to, relay->piece + put, (size_t)(n - put), MSG_NOSIGNAL);
    if (m <= 0) return -1;
    put += m;
  }
  return n;
}

static void cut_when_due(struct relay *relay) {
  uint64_t every = atomic_load(&relay->every);
  if (every == 0 || relay->passed < every || atomic_load(&relay->left) == 0) return;
  for (size_t i = 0; i < LINKS_MAX; i++)
    if (relay->links[i].near >= 0) drop(&relay->links[i]);
  relay->passed = 0;
  atomic_fetch_sub(&relay->left, 1);
  atomic_fetch_add(&relay->cuts, 1);
}

static void attend(struct relay *relay, struct link *link, const struct pollfd *near, const struct pollfd *far) {
  ssize_t there = near->revents ? pass(relay, link->near, link->far) : 0;
  ssize_t back = far->revents && there >= 0 ? pass(relay, link->far, link->near) : 0;
  if (there > 0) relay->passed += (uint64_t)there;
  if (there < 0 || back < 0) drop(link);
}

static void *run(void *arg) {
  struct relay *relay = arg;
  struct pollfd polls[2 * LINKS_MAX + 1];
  while (!atomic_load(&relay->is_over)) {
    for (size_t i = 0; i < LINKS_MAX; i++) {
      polls[2 * i] = (struct pollfd){.fd = relay->links[i].near, .events = POLLIN};
      polls[2 * i + 1] = (struct pollfd){.fd = relay->links[i].far, .events = POLLIN};
    }
    polls[2 * LINKS_MAX] = (struct pollfd){.fd = relay->listener, .events = POLLIN};
    if (poll(polls, 2 * LINKS_MAX + 1, POLL_MS) <= 0) continue;
    for (size_t i = 0; i < LINKS_MAX; i++)
      if (relay->links[i].near >= 0) attend(relay, &relay->links[i], &polls[2 * i], &polls[2 * i + 1]);
    if (polls[2 * LINKS_MAX].revents) take(relay);
    cut_when_due(relay);
  }
  return NULL;
}

struct relay *relay_start(uint16_t target, uint16_t *port) {
  struct relay *relay = calloc(1, sizeof *relay);
  struct sockaddr_in address = loopback(0);
  socklen_t size = sizeof address;
  if (!relay || !(relay->piece = malloc(PIECE))) die("no memory");
  relay->target = target;
  for (size_t i = 0; i < LINKS_MAX; i++) relay->links[i] = (struct link){-1, -1};
  relay->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (relay->listener < 0 || bind(relay->listener, (struct sockaddr *)&address, size) ||
      listen(relay->listener, LINKS_MAX) || getsockname(relay->listener, (struct sockaddr *)&address, &size))
    die("no relay: %s", strerror(errno));
  *port = ntohs(address.sin_port);
  if (pthread_create(&relay->thread, NULL, run, relay)) die("a thread cannot be started");
  return relay;
}

void relay_cut(struct relay *relay, uint64_t every, uint32_t times) {
  atomic_store(&relay->left, times);
  atomic_store(&relay->every, every);
}

uint32_t relay_cuts(struct relay *relay) {
  return atomic_load(&relay->cuts);
}

void relay_stop(struct relay *relay) {
  atomic_store(&relay->is_over, true);
  pthread_join(relay->thread, NULL);
  for (size_t i = 0; i < LINKS_MAX; i++)
    if (relay->links[i].near >= 0) drop(&relay->links[i]);
  close(relay->listener);
  free(relay->piece);
  free(relay);
}
