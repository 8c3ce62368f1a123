#include "ticket.h"

#include <assert.h>

struct vfs_ticket_waiter {
  pthread_cond_t turn;
  const void *holder;
  struct vfs_ticket_waiter *next;
  bool granted;
};

void vfs_ticket_init(struct vfs_ticket *ticket, struct os *os) {
  *ticket = (struct vfs_ticket){.os = os};
  pthread_mutex_init(&ticket->mutex, NULL);
}

void vfs_ticket_destroy(struct vfs_ticket *ticket) {
  assert(ticket->first == NULL);
  pthread_mutex_destroy(&ticket->mutex);
}

/* mutex held. Hands a free ticket to the first waiter. */
static void ticket_pass(struct vfs_ticket *ticket) {
  struct vfs_ticket_waiter *waiter = ticket->first;
  ticket->kept_until = 0;
  ticket->holder = waiter ? waiter->holder : NULL;
  if (!waiter) return;
  ticket->first = waiter->next;
  if (!ticket->first) ticket->last = NULL;
  waiter->granted = true;
  pthread_cond_signal(&waiter->turn);
}

static void ticket_enqueue(struct vfs_ticket *ticket, struct vfs_ticket_waiter *waiter, enum vfs_ticket_place place) {
  if (place == VFS_TICKET_FRONT) {
    waiter->next = ticket->first;
    ticket->first = waiter;
    if (!ticket->last) ticket->last = waiter;
    return;
  }
  if (ticket->last)
    ticket->last->next = waiter;
  else
    ticket->first = waiter;
  ticket->last = waiter;
}

static void ticket_dequeue(struct vfs_ticket *ticket, struct vfs_ticket_waiter *waiter) {
  struct vfs_ticket_waiter *before = NULL;
  struct vfs_ticket_waiter *at = ticket->first;
  while (at && at != waiter) {
    before = at;
    at = at->next;
  }
  assert(at == waiter);
  if (before)
    before->next = waiter->next;
  else
    ticket->first = waiter->next;
  if (ticket->last == waiter) ticket->last = before;
}

/* mutex held. Takes the ticket from a holder that kept it too long; the first waiter looks after that. */
static void ticket_expire(struct vfs_ticket *ticket, uint64_t now) {
  if (ticket->holder && ticket->kept_until && now >= ticket->kept_until) ticket_pass(ticket);
}

static bool ticket_wait(struct vfs_ticket *ticket, struct vfs_ticket_waiter *waiter, uint64_t deadline) {
  while (!waiter->granted) {
    uint64_t now = os_now(ticket->os);
    if (ticket->first == waiter) ticket_expire(ticket, now);
    if (waiter->granted) break;
    if (now >= deadline) return false;
    uint64_t until = now + VFS_TICKET_KEPT_MAX;
    if (ticket->kept_until > now && ticket->kept_until < until) until = ticket->kept_until;
    if (deadline < until) until = deadline;
    os_condition_wait(ticket->os, &waiter->turn, &ticket->mutex, until);
  }
  return true;
}

bool vfs_ticket_take(struct vfs_ticket *ticket, const void *holder, enum vfs_ticket_place place, uint64_t deadline) {
  pthread_mutex_lock(&ticket->mutex);
  assert(ticket->holder != holder);
  ticket_expire(ticket, os_now(ticket->os));
  bool granted = ticket->holder == NULL && ticket->first == NULL;
  if (granted) {
    ticket->holder = holder;
    ticket->kept_until = 0;
  } else if (deadline > 0) {
    struct vfs_ticket_waiter waiter = {.holder = holder};
    os_condition_init(&waiter.turn);
    ticket_enqueue(ticket, &waiter, place);
    granted = ticket_wait(ticket, &waiter, deadline);
    if (!granted) ticket_dequeue(ticket, &waiter);
    pthread_cond_destroy(&waiter.turn);
  }
  pthread_mutex_unlock(&ticket->mutex);
  return granted;
}

void vfs_ticket_give(struct vfs_ticket *ticket, const void *holder) {
  pthread_mutex_lock(&ticket->mutex);
  if (ticket->holder == holder) ticket_pass(ticket);
  pthread_mutex_unlock(&ticket->mutex);
}

bool vfs_ticket_use(struct vfs_ticket *ticket, const void *holder) {
  pthread_mutex_lock(&ticket->mutex);
  bool has = ticket->holder == holder;
  if (has) ticket->kept_until = 0;
  pthread_mutex_unlock(&ticket->mutex);
  return has;
}

/* Neither wakes anybody: nearly always it is used a moment later, and the first waiter looks now and then. */
void vfs_ticket_keep(struct vfs_ticket *ticket, const void *holder) {
  pthread_mutex_lock(&ticket->mutex);
  if (ticket->holder == holder) ticket->kept_until = os_now(ticket->os) + VFS_TICKET_KEPT_MAX;
  pthread_mutex_unlock(&ticket->mutex);
}

void vfs_ticket_reserve(struct vfs_ticket *ticket, const void *holder) {
  pthread_mutex_lock(&ticket->mutex);
  if (ticket->holder == holder) ticket->kept_until = os_now(ticket->os) + VFS_TICKET_RESERVED_MAX;
  pthread_mutex_unlock(&ticket->mutex);
}

const void *vfs_ticket_holder(struct vfs_ticket *ticket) {
  pthread_mutex_lock(&ticket->mutex);
  const void *holder = ticket->holder;
  pthread_mutex_unlock(&ticket->mutex);
  return holder;
}
