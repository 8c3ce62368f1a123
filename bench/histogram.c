/*
** Latencies in buckets: below 64 ns one each, above that each power of two is divided in 64.
*/
#include "bench.h"

static size_t bucket_of(uint64_t ns) {
  if (ns < HISTOGRAM_STEPS) return (size_t)ns;
  unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - 6u; /* 6: log2(HISTOGRAM_STEPS) */
  size_t bucket = (size_t)(shift + 1) * HISTOGRAM_STEPS + (size_t)(ns >> shift) - HISTOGRAM_STEPS;
  return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

/* The middle of a bucket. */
static double value_of(size_t bucket) {
  if (bucket < HISTOGRAM_STEPS) return (double)bucket;
  unsigned shift = (unsigned)(bucket / HISTOGRAM_STEPS) - 1;
  uint64_t low = (uint64_t)(bucket % HISTOGRAM_STEPS + HISTOGRAM_STEPS) << shift;
  return (double)low + (double)((UINT64_C(1) << shift) - 1) / 2;
}

void histogram_add(struct histogram *histogram, uint64_t ns) {
  histogram->counts[bucket_of(ns)]++;
  histogram->n++;
  if (ns > histogram->max_ns) histogram->max_ns = ns;
}

void histogram_merge(struct histogram *into, const struct histogram *from) {
  for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) into->counts[i] += from->counts[i];
  into->n += from->n;
  if (from->max_ns > into->max_ns) into->max_ns = from->max_ns;
}

double histogram_us(const struct histogram *histogram, double share) {
  uint64_t below = 0, wanted = (uint64_t)(share * (double)histogram->n);
  if (histogram->n == 0) return 0;
  if (wanted >= histogram->n) return (double)histogram->max_ns / 1000;
  for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
    below += histogram->counts[i];
    if (below > wanted) return value_of(i) / 1000;
  }
  return (double)histogram->max_ns / 1000;
}
