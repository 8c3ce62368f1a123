#include "sim.h"

#define PPM 1000000

uint64_t sim_clock_read(const struct sim_clock *clock, uint64_t now) {
  return clock->offset + now + now / 1000 * clock->rate_ppm / (PPM / 1000);
}

uint64_t sim_clock_until(const struct sim_clock *clock, uint64_t now, uint64_t local) {
  const uint64_t shown = sim_clock_read(clock, now);
  if (local <= shown) return 0;
  if (local - shown > UINT64_C(1) << 40) return UINT64_C(1) << 40; /* as good as never */
  return (local - shown) * PPM / (PPM + clock->rate_ppm) + 1;
}
