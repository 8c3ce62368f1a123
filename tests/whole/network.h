/*
** The network of the simulation of whole nodes: raft/io/transport.h over streams that behave as TCP connections do
** when seen by who uses them. A stream delivers what was sent, in order, late, and all of it or a beginning; nothing twice.
** Messages are encoded and decoded by raft/io/wire.c. What connects to what, who is met and who is refused, and when it
** is tried again, is as in raft/io/transport.c.
**
** It replaces raft/io/transport.c in the program. The functions below are for the run's own task.
*/
#ifndef BALSA_TESTS_WHOLE_NETWORK_H
#define BALSA_TESTS_WHOLE_NETWORK_H

#include <stdbool.h>
#include <stdint.h>

struct machine;

struct network_options {
  uint64_t seed;
  uint64_t delay_ns, jitter_ns; /* one way */
  uint32_t retransmit_permille; /* of frames: that come late, by up to retransmit_ns, and all behind them */
  uint64_t retransmit_ns;
  uint32_t ns_per_kilobyte;
};
void network_begin(const struct network_options *options);

/* Nothing gets from one machine to the other. Streams stall, and break when they have stalled for long. */
void network_block(uint32_t from, uint32_t to, bool is_blocked);
void network_heal(void);
/* The streams between two machines break now: of what is under way a beginning arrives. */
void network_cut(uint32_t a, uint32_t b);
/* What runs on the machine has come to a sudden end; until it is really gone it hears and says nothing. */
void network_cut_off(uint32_t machine);

struct network_counters {
  uint64_t frames, bytes, dials, refusals, breaks, lost_frames;
  uint64_t chunks, parts; /* received: of snapshots, of transactions in parts */
};
void network_get_counters(struct network_counters *counters);

#endif
