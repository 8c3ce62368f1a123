/*
** A small world for the golden scripts: cores with a disk each, one clock, and a network that delivers
** nothing by itself. Every event prints what came of it, so that a script reads as a history.
**
** After each event the world checks what must hold in any history (paper figure 3): one leader a term,
** log matching, committed entries that stay and are the same everywhere. A breach prints VIOLATION.
*/
#ifndef BALSA_TESTS_TRACE_WORLD_H
#define BALSA_TESTS_TRACE_WORLD_H

#include "../../raft/raft.h"

#define WORLD_NODES_MAX 7
#define WORLD_LOG_MAX 512
#define WORLD_LABEL_MAX 64
#define WORLD_CONFIGURATIONS_MAX 64
#define WORLD_WRITES_MAX 64
#define WORLD_MESSAGES_MAX 1024
#define WORLD_ENTRIES_MAX 64 /* in one message */
#define WORLD_TERMS_MAX 64   /* leaders remembered */
#define WORLD_SNAPSHOT_BYTES 3
#define WORLD_CHUNK_BYTES 1

#define WORLD_MS 1000000ull

struct world_entry {
  struct raft_entry_meta meta;
  char label[WORLD_LABEL_MAX]; /* stands for the payload */
  uint32_t configuration;      /* of that type: its number in world.configurations */
};

struct world_log {
  struct world_entry entries[WORLD_LOG_MAX]; /* entry i is at i-1, also if it is compacted */
  uint64_t n;
  uint64_t base; /* the core has what is behind it */
};

/* A write that was given out and is not done. */
struct world_write {
  uint64_t number, reset_index, truncate_from, append_first;
  uint32_t n_entries;
  struct world_entry entries[WORLD_ENTRIES_MAX];
  bool hard_state;
  uint64_t term, voted_for;
};

struct world_message {
  struct raft_message message;
  uint64_t after; /* 0: in flight; else held by its sender until that write is done */
  struct world_entry entries[WORLD_ENTRIES_MAX];
};

/* A snapshot that is being received. What is in it is what was committed: nobody has to copy that. */
struct world_part {
  uint64_t index, term, size_bytes, offset;
};

struct world_node {
  uint64_t id;
  struct raft_uuid incarnation;
  struct raft *raft; /* NULL: down */
  struct world_log log;
  struct world_log disk;
  uint64_t disk_term, disk_voted_for;
  uint64_t snapshot_index; /* the newest one on its disk; 0: none */
  struct world_part part;  /* on its disk too */
  bool manual_disk;        /* writes wait for `persist` */
  bool isolated;
  struct world_write writes[WORLD_WRITES_MAX];
  uint32_t n_writes;
  uint64_t told_commit, told_hand_over;
};

struct world {
  struct world_node nodes[WORLD_NODES_MAX];
  uint32_t n_nodes;
  struct raft_configuration *configurations[WORLD_CONFIGURATIONS_MAX]; /* that were in any log; 0: of entry 1 */
  uint32_t n_configurations;
  struct raft_options options; /* id, incarnation and seed aside */
  uint64_t now;
  struct world_message *messages; /* in the order of sending */
  uint32_t n_messages;
  bool hide_messages;
  struct world_entry proposed;          /* the payload that is being proposed */
  uint64_t leaders[WORLD_TERMS_MAX][2]; /* term, node */
  uint32_t n_leaders;
  struct world_log committed; /* by anybody, at any time */
  char *output;
  size_t n_output, output_capacity;
};

/* Prints a line; a newline is added. */
__attribute__((format(printf, 2, 3))) void world_say(struct world *world, const char *format, ...);

/*
** n nodes, of which the first n_members are voters; their disks hold entry 1, the configuration, of term 1; or nothing. None
** runs yet.
*/
void world_open(struct world *world, uint32_t n_nodes, uint32_t n_members, bool fresh);
void world_close(struct world *world);
/* NULL if there is none with this id. */
struct world_node *world_node(struct world *world, uint64_t id);

/* Puts these terms on its disk as entries 2 … and starts it anew. */
void world_set_log(struct world *world, struct world_node *node, const uint64_t *terms, uint32_t n_terms, uint64_t term,
                   uint64_t voted_for);
/* From what its disk holds. `restarted` as in raft_start. */
void world_start(struct world *world, struct world_node *node, bool restarted);
/* Writes that are not done are lost, and so is what waited for them. */
void world_crash(struct world *world, struct world_node *node);
/* An empty disk and another incarnation. */
void world_wipe(struct world *world, struct world_node *node);

/* Takes what a node has to do and does it. After every event. */
void world_work(struct world *world, struct world_node *node);
/* Completes its writes up to this number. */
void world_persist(struct world *world, struct world_node *node, uint64_t number);
/* A write fails, and those behind it. */
void world_fail_write(struct world *world, struct world_node *node);
/* raft_propose */
int world_propose(struct world *world, struct world_node *node, uint64_t term, const char *label, uint32_t size);
/* Takes a snapshot at `through`, and compacts the log up to there at once. */
void world_compact(struct world *world, struct world_node *node, uint64_t through);
/* Installs what it has received. */
void world_install(struct world *world, struct world_node *node);
/*
** In short: the members' ids; + one that becomes a voter, - one that ceases to be one, = one that stays one meanwhile;
** l a learner, j one that joins.
*/
void world_describe_configuration(const struct raft_configuration *configuration, char *text, size_t size);
/* raft_change_members */
int world_change(struct world *world, struct world_node *node, const struct raft_change *changes, size_t n);
/* raft_bootstrap with the configuration of all nodes */
void world_bootstrap(struct world *world, struct world_node *node);
/* Removes message i from the network; delivers it if `deliver` is set. */
void world_take_message(struct world *world, uint32_t i, bool deliver);
/* One line for a message, at most `size` bytes. */
void world_describe(const struct world_message *message, char *text, size_t size);
const char *world_type_name(uint8_t type);

#endif
