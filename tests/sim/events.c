#include "events.h"

#include "sim.h"

static bool is_before(const struct sim_event *a, const struct sim_event *b) {
  return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void sim_events_push(struct sim_events *events, const struct sim_event *event) {
  events->heap = sim_grow(events->heap, &events->capacity, events->n + 1, sizeof *events->heap);
  struct sim_event added = *event;
  added.order = ++events->order;
  size_t i = events->n++;
  while (i > 0) {
    size_t parent = (i - 1) / 2;
    if (!is_before(&added, &events->heap[parent])) break;
    events->heap[i] = events->heap[parent];
    i = parent;
  }
  events->heap[i] = added;
}

bool sim_events_pop(struct sim_events *events, struct sim_event *event) {
  if (events->n == 0) return false;
  *event = events->heap[0];
  const struct sim_event moved = events->heap[--events->n];
  size_t i = 0;
  for (;;) {
    size_t child = 2 * i + 1;
    if (child >= events->n) break;
    if (child + 1 < events->n && is_before(&events->heap[child + 1], &events->heap[child])) child++;
    if (!is_before(&events->heap[child], &moved)) break;
    events->heap[i] = events->heap[child];
    i = child;
  }
  events->heap[i] = moved;
  return true;
}

void sim_events_close(struct sim_events *events) {
  free(events->heap);
  *events = (struct sim_events){0};
}
