#include "sim.h"

static void *checked(void *memory) {
  if (!memory) {
    fputs("sim: out of memory\n", stderr);
    abort();
  }
  return memory;
}

void *sim_new(size_t size) {
  return checked(calloc(1, size ? size : 1));
}

void *sim_grow(void *items, size_t *capacity, size_t n, size_t item_size) {
  if (n <= *capacity) return items;
  size_t wanted = *capacity ? *capacity * 2 : 16;
  if (wanted < n) wanted = n;
  *capacity = wanted;
  return checked(realloc(items, wanted * item_size));
}
