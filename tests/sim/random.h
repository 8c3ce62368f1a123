/*
** The simulation's one source of chance: splitmix64. Every choice of a run comes from its seed.
*/
#ifndef BALSA_SIM_RANDOM_H
#define BALSA_SIM_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

struct sim_random {
  uint64_t state;
};

static inline uint64_t sim_random_next(struct sim_random *random) {
  uint64_t z = random->state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return z ^ z >> 31;
}

/* 0 … n-1. The bias of the remainder does not matter here. */
static inline uint64_t sim_random_below(struct sim_random *random, uint64_t n) {
  return n < 2 ? 0 : sim_random_next(random) % n;
}

/* low … high, both included. */
static inline uint64_t sim_random_between(struct sim_random *random, uint64_t low, uint64_t high) {
  return low + sim_random_below(random, high - low + 1);
}

static inline bool sim_random_chance(struct sim_random *random, uint32_t permille) {
  return permille > 0 && sim_random_below(random, 1000) < permille;
}

#endif
