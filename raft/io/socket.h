/*
** Sockets for the transport: addresses as people write them, and TCP options. All sockets are non-blocking
** and closed on exec; and closed in a forked child, where they would keep the port and the peers' connections
** alive after this process has died.
*/
#ifndef BALSA_RAFT_IO_SOCKET_H
#define BALSA_RAFT_IO_SOCKET_H

#include <netdb.h>
#include <sys/socket.h>

#include "../raft.h"

/* Parts of "host:port" or "[v6]:port". */
struct socket_name {
  char host[RAFT_ADDRESS_MAX];
  char port[6];
  uint16_t number; /* of the port */
};

/* false, with a sentence in text[text_size], if it is not such an address. */
bool socket_name_parse(const char *address, struct socket_name *name, char *text, size_t text_size);

/*
** Listens; the real address goes to real[RAFT_ADDRESS_MAX]. A name is looked up, which may block. Returns
** the descriptor or a negative errno, with a sentence in text.
*/
int socket_listen(const char *address, char *real, char *text, size_t text_size);
/* The next connection, or a negative errno (-EAGAIN: none). */
int socket_accept(int listener);
/* Begins to connect; socket_error tells the result once it is writable. */
int socket_connect(const struct sockaddr *address, socklen_t size);
int socket_error(int descriptor);
/* Accepts -1. */
void socket_close(int descriptor);

#endif
