/*
** The options of a node: as URI parameters, as environment variables, and as its folder keeps them.
**
** One name each. The URI wins over the environment, that over what the folder keeps from last time.
** Every function returns true, or false with a sentence in `text` (OPTIONS_TEXT_MAX bytes) that names
** the option and the way out. libc and SQLite's URI functions only; no I/O.
*/
#ifndef BALSA_OPTIONS_H
#define BALSA_OPTIONS_H

#include "../raft/forming.h"

#define OPTIONS_TEXT_MAX 768
#define OPTIONS_KEPT_MAX 4000       /* bytes of the kept text, with its NUL */
#define OPTIONS_PEERS_TEXT_MAX 3000 /* bytes of the list of peers */
#define OPTIONS_JOIN_MAX 7          /* addresses of option join */

#define OPTIONS_HEARTBEAT_MS_DEFAULT 50
#define OPTIONS_HEARTBEAT_MS_MAX 10000
#define OPTIONS_ELECTION_MS_DEFAULT 500
#define OPTIONS_ELECTION_MS_MAX 60000
#define OPTIONS_COMMIT_TIMEOUT_MS_DEFAULT 5000
#define OPTIONS_COMMIT_TIMEOUT_MS_MAX 3600000
#define OPTIONS_PAGE_SIZE_DEFAULT 4096
#define OPTIONS_SNAPSHOT_THRESHOLD_DEFAULT (UINT64_C(64) << 20)
#define OPTIONS_LOG_TAIL_DEFAULT (UINT64_C(16) << 20)
#define OPTIONS_WAL_LIMIT_DEFAULT 4000
#define OPTIONS_WAL_LIMIT_MIN 100
#define OPTIONS_WAL_LIMIT_MAX 100000000

enum option {
  OPTION_NODE,
  OPTION_LISTEN,
  OPTION_ADVERTISE,
  OPTION_PEERS,
  OPTION_JOIN,
  OPTION_HEARTBEAT,
  OPTION_ELECTION,
  OPTION_COMMIT_TIMEOUT,
  OPTION_PAGE_SIZE,
  OPTION_AUTO_VACUUM,
  OPTION_INSECURE,
  OPTION_SNAPSHOT_THRESHOLD,
  OPTION_LOG_TAIL,
  OPTION_WAL_LIMIT,
  OPTION_REBUILD,
  OPTIONS_COUNT,
};

struct options {
  unsigned given; /* bit 1 << enum option: somebody set it; the others have their defaults */
  uint64_t node;  /* 0: not given */
  char listen[RAFT_ADDRESS_MAX], advertise[RAFT_ADDRESS_MAX]; /* "": none */
  struct raft_peer peers[RAFT_MEMBERS_MAX];
  size_t n_peers;
  char join[OPTIONS_JOIN_MAX][RAFT_ADDRESS_MAX];
  size_t n_join;
  bool waits; /* join=wait: until balsa_add on a member names this node */
  uint32_t heartbeat_ms, election_ms, commit_timeout_ms, page_size, auto_vacuum;
  bool insecure;
  bool rebuild;                /* begin anew from the other members; never kept */
  uint64_t snapshot_threshold; /* bytes of log, at least, between two snapshots */
  uint32_t wal_limit;          /* frames in the WAL, while nobody holds it back */
  uint64_t log_tail;           /* bytes of log kept behind a snapshot, for followers that are a little late */
};

static inline bool options_has(const struct options *options, enum option option) {
  return (options->given & 1u << option) != 0;
}

void options_init(struct options *options);

/* One option by its name; `source` says in the sentence where it came from ("URI parameter"). */
bool options_set(struct options *options, const char *name, const char *value, const char *source, char *text);

/* BALSA_NODE, BALSA_LISTEN, … An empty variable is none. */
bool options_from_environment(struct options *options, char *text);

/*
** The parameters of the file name that SQLite gave to xOpen. Refuses those of SQLite that would break
** replication (immutable, nolock, shared cache) and names that nobody knows.
*/
bool options_from_uri(struct options *options, const char *filename, char *text);

/* Is it to become a member of a cluster that is there? */
static inline bool options_joins(const struct options *options) {
  return options->n_join > 0 || options->waits;
}

/* What `over` has given replaces what `options` has; of join and peers one replaces the other. */
void options_merge(struct options *options, const struct options *over);

/* Which cluster it enters, and how, as `from` says, instead of what `options` says: peers, join. */
void options_take_contacts(struct options *options, const struct options *from);

/* Takes back the addresses that followed from kept `peers`: with another list they are others. */
void options_forget_derived(struct options *options);

/*
** Checks the whole and fills in what follows from other options: with peers (is_fresh only; otherwise
** they and join are forgotten) the own address as listen and advertise; listen as advertise.
*/
bool options_check(struct options *options, bool is_fresh, char *text);

/* name=value lines of all options given, with a NUL. false: it does not fit. */
bool options_keep(const struct options *options, char *kept, size_t size, char *text);
/* Reads it back; `kept` has a NUL. Lines whose name is not an option's are left to the caller. */
bool options_from_kept(struct options *options, const char *kept, char *text);

/*
** host:port or [v6]:port into its parts; `host` has RAFT_ADDRESS_MAX bytes and gets no brackets.
** false if it is neither.
*/
bool options_split_address(const char *address, char *host, uint32_t *port);

#endif
