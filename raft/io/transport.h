/*
** Messages between nodes over TCP: one transport per process, one loop thread (libuv), a listener
** per listen address, nodes by id.
**
** Each node dials each of its peers and sends on the connection it dialled; it receives on those it
** accepted. A connection opens with a Hello each way. What does not fit (another cluster, another
** protocol, an unknown node, a removed one) gets a refusal with a sentence, and nothing else. Every
** length that comes over the wire has a limit. Bytes pass a pair of filters (identity; TLS later).
** Formats: top of wire.h / wire.c.
**
** Callbacks run on the loop thread and must not block. Lost connections are dialled again with a
** back-off; what was queued then is dropped: Raft repeats.
*/
#ifndef BALSA_RAFT_IO_TRANSPORT_H
#define BALSA_RAFT_IO_TRANSPORT_H

#include "../../ext/os.h"
#include "../forming.h"
#include "entry.h"

#define RAFT_PROTOCOL_LOWEST 1
#define RAFT_PROTOCOL_HIGHEST 1
#define RAFT_FRAME_MAX (24u << 20)         /* bytes of one frame, header included */
#define RAFT_SEND_QUEUE_MAX (32u << 20)    /* bytes queued for one peer; more is dropped */
#define RAFT_SNAPSHOT_CHUNK_MAX (1u << 20) /* bytes of a chunk of a snapshot */
#define RAFT_TRANSPORT_TEXT_MAX 640
#define RAFT_REQUEST_MAX 2048u  /* bytes of a request, or the reply to one, header included */
#define RAFT_REPLIES_MAX 256    /* that wait for the loop; more are lost */
#define RAFT_FEATURE_GUEST 1ull /* who dials is no peer (yet): requests and their replies are all that it sends */

struct raft_hello {
  uint32_t protocol_lowest, protocol_highest;
  uint64_t features;
  struct raft_uuid cluster, database; /* none while forming */
  uint64_t node;
  struct raft_uuid incarnation;
  uint32_t election_ms;
  uint64_t peers_hash;
  bool has_database;
  uint32_t page_size, auto_vacuum;
  char address[RAFT_ADDRESS_MAX]; /* where this node can be dialled */
};

/* Why a node is not welcome. */
struct raft_refusal {
  char text[RAFT_TRANSPORT_TEXT_MAX]; /* a sentence for people */
  bool knows_number;                  /* as a member's, in another incarnation */
  bool is_no_member; /* the refused node is none of `cluster` by its configuration at `index`, committed */
  struct raft_uuid cluster;
  uint64_t index;
};

/*
** A request from one node to another, or the reply to it. What kinds there are, and what their fields mean, is the
** driver's matter. Either may get lost: who asks repeats, until its own deadline.
*/
struct raft_request {
  uint8_t kind; /* not 0 */
  bool is_reply;
  uint8_t bits;
  int32_t status; /* of a reply */
  uint64_t from;  /* received: as the Hello of its connection says */
  struct raft_uuid from_incarnation;
  uint64_t to; /* 0: whoever is there */
  struct raft_uuid to_incarnation;
  uint64_t context; /* the asker's number, echoed */
  uint64_t node;    /* whom it is about */
  struct raft_uuid incarnation;
  uint64_t index;
  uint32_t wait_ms;
  char address[RAFT_ADDRESS_MAX];
  char text[RAFT_TRANSPORT_TEXT_MAX];
};

struct raft_transport;      /* of the process */
struct raft_transport_node; /* one database in it */

struct raft_transport_methods {
  /* Fills what this node says of itself, now. Any thread. */
  void (*hello)(void *ctx, struct raft_hello *hello);
  /*
  ** A peer said Hello (on either kind of connection), or a guest (RAFT_FEATURE_GUEST). true: talk to it. false:
  ** refuse; the peer gets to see the refusal too. Asked anew after raft_transport_review.
  */
  bool (*meet)(void *ctx, const struct raft_hello *hello, struct raft_refusal *refusal);
  /* The same, of the contact that we dialled as a guest. */
  bool (*greet)(void *ctx, uint32_t contact, const struct raft_hello *hello, struct raft_refusal *refusal);
  /* We were refused by the peer that we dialled, or the contact (`node` 0), or hung up on by one that dialled us. */
  void (*refused)(void *ctx, uint64_t node, uint32_t contact, const struct raft_refusal *refusal);
  /*
  ** A message. from and from_incarnation are those of the Hello. APPEND: entries[0 … message->n_entries)
  ** with payloads; references stay the transport's, take your own. SNAPSHOT: the chunk is the payload of entries[0], of
  ** which nothing else is set; NULL if it has no bytes.
  */
  void (*receive)(void *ctx, const struct raft_message *message, const struct raft_entry *entries);
  /* A request of a peer or a guest, or the reply to one of ours. */
  void (*request)(void *ctx, const struct raft_request *request);
  /* raft_transport_wake was called, or the time of raft_transport_wake_at came. */
  void (*wake)(void *ctx);
};

/*
** The process's transport, its loop thread running; counted. NULL without memory or threads. A forked child
** must not use the one it inherited, nor put or detach anything: it gets one of its own here.
*/
struct raft_transport *raft_transport_get(struct os *os);
void raft_transport_put(struct raft_transport *transport);

/*
** Joins a node to the loop. `listen` is host:port ([v6]:port), NULL for none; port 0 lets the system
** choose (raft_transport_address tells). -EADDRINUSE etc. with a sentence in text. `node` calls
** nothing back before this returns.
*/
int raft_transport_attach(struct raft_transport *transport, const struct raft_transport_methods *methods, void *ctx,
                          const char *listen, struct raft_transport_node **node, char *text);
/* After it returns no callback runs or will run. Not from a callback. Sends what is queued, for at most 100 ms. */
void raft_transport_detach(struct raft_transport_node *node);
/* host:port that the listener really has; "" if none. */
const char *raft_transport_address(const struct raft_transport_node *node);

/* Dial this peer from now on (address = NULL: stop). Any thread. */
int raft_transport_set_peer(struct raft_transport_node *node, uint64_t id, const char *address);

/*
** Dial whoever is at this address, as a guest, from now on (address = NULL: stop). Contacts are known by numbers of the
** caller's. Any thread.
*/
int raft_transport_set_contact(struct raft_transport_node *node, uint32_t contact, const char *address);
/* Connected and greeted? Any thread. */
bool raft_transport_is_contact_ready(struct raft_transport_node *node, uint32_t contact);

/*
** Queues a request for the peer `to`, or a contact; false: there is no connection, or its queue is full. The reply comes on the
** same connection. Any thread, never blocks.
*/
bool raft_transport_request(struct raft_transport_node *node, const struct raft_request *request);
bool raft_transport_request_contact(struct raft_transport_node *node, uint32_t contact,
                                    const struct raft_request *request);
/* Replies to one that came from `to` in its incarnation to_incarnation. Lost if that has hung up. Any thread, never blocks. */
void raft_transport_reply(struct raft_transport_node *node, const struct raft_request *reply);
/* Who is welcome has changed: asks `meet` again of all that have dialled us. Any thread. */
void raft_transport_review(struct raft_transport_node *node);

/*
** Queues a message for a peer; entries are referenced, not copied (SNAPSHOT: entries[0], as above, unless the chunk is
** empty). Any thread, never blocks: without
** a connection, or with RAFT_SEND_QUEUE_MAX queued, it is dropped (returns false). Heartbeats,
** votes and their results go before queued entries.
*/
bool raft_transport_send(struct raft_transport_node *node, const struct raft_message *message,
                         const struct raft_entry *entries);

/* Runs `wake` on the loop thread soon / once at os_now() >= time (the earliest asked for wins). Any thread. */
void raft_transport_wake(struct raft_transport_node *node);
void raft_transport_wake_at(struct raft_transport_node *node, uint64_t time);

/* Connected and met, in both directions? For balsa_status. Any thread. */
bool raft_transport_is_connected(struct raft_transport_node *node, uint64_t id);

#endif
