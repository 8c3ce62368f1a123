/*
** What happens when: a heap of events in virtual time. Equal times keep the order in which they
** were scheduled, so that a seed always gives the same run.
*/
#ifndef BALSA_SIM_EVENTS_H
#define BALSA_SIM_EVENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum sim_event_kind {
  SIM_EVENT_DELIVER,  /* data: a packet for `node` */
  SIM_EVENT_TICK,     /* number: the node's tick generation */
  SIM_EVENT_DISK,     /* the node's write is on disk; number: boot */
  SIM_EVENT_RETRY,    /* the disk was full: try again; number: boot */
  SIM_EVENT_RESTART,  /* number: boot */
  SIM_EVENT_RESUME,   /* number: boot */
  SIM_EVENT_CLIENT,   /* the workload's next step */
  SIM_EVENT_FAULT,    /* the next fault at large */
  SIM_EVENT_PLAY,     /* the next step of a directed play */
  SIM_EVENT_SNAPSHOT, /* the node's snapshot is durable; number: boot */
};

struct sim_event {
  uint64_t at, order;
  enum sim_event_kind kind;
  uint32_t node;
  uint64_t number;
  void *data;
};

struct sim_events {
  struct sim_event *heap;
  size_t n, capacity;
  uint64_t order;
};

void sim_events_push(struct sim_events *events, const struct sim_event *event);
/* false: none left. */
bool sim_events_pop(struct sim_events *events, struct sim_event *event);
/* Frees the heap; the data of what is left is the caller's: pop first. */
void sim_events_close(struct sim_events *events);

#endif
