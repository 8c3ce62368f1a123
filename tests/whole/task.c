/*
** The scheduler: one baton, a list of tasks, one clock.
*/
#include "task.h"

#include <assert.h>
#include <inttypes.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "machine.h"

#define TURN_NS_MAX 2000             /* what a turn takes at most */
#define WAKE_STALLS 10               /* who is woken is held up as much more often than who runs */
#define TURNS_MAX UINT64_C(40000000) /* of a run: more is a loop without end */
#define WITHOUT_TIME_MAX 2000000     /* turns in a row without a deadline having passed */

enum task_state { TASK_READY, TASK_LOCKING, TASK_WAITING, TASK_ENDED };

struct task {
  uint32_t number;
  struct machine *machine;
  char name[24];
  void (*run)(void *arg);
  void *arg;
  pthread_t thread;
  sem_t baton;
  enum task_state state;
  const void *channel; /* what it waits for */
  uint64_t until;
  bool woken;
};

/* A pthread_mutex_t as we use it. */
struct mutex {
  uint32_t owner; /* the task's number + 1; 0: nobody */
  uint32_t waiters;
};
_Static_assert(sizeof(struct mutex) <= sizeof(pthread_mutex_t), "it lives in the mutex's own memory");

static struct {
  struct task_options options;
  struct sim_random random;
  struct task *tasks[TASKS_MAX];
  uint32_t n_tasks, n_started;
  uint64_t now, hash, turns, turns_at_last_jump;
  void (*on_fail)(void);
} all;

static _Thread_local struct task *self;

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes);
int __wrap_pthread_mutex_destroy(pthread_mutex_t *mutex);
int __wrap_pthread_cond_signal(pthread_cond_t *condition);
int __wrap_pthread_cond_broadcast(pthread_cond_t *condition);
pid_t __wrap_getpid(void);

/* ---- Saying ---- */

static const char *machine_name_of(const struct task *task) {
  return task->machine ? machine_name(task->machine) : "-";
}

void task_note(const char *what, uint64_t a, uint64_t b) {
  uint64_t h = all.hash;
  h = (h ^ (self ? self->number : 0)) * UINT64_C(0x9e3779b97f4a7c15);
  h = (h ^ (h >> 29) ^ a) * UINT64_C(0xbf58476d1ce4e5b9);
  h = (h ^ (h >> 31) ^ b) * UINT64_C(0x94d049bb133111eb);
  for (const char *c = what; *c; c++) h = (h ^ (uint8_t)*c) * UINT64_C(0x100000001b3);
  all.hash = h ^ all.now;
  if (all.options.show && self)
    fprintf(stderr, "%12" PRIu64 " %-4s %-12s %s %" PRIu64 " %" PRIu64 "\n", all.now / 1000, machine_name_of(self),
            self->name, what, a, b);
}

uint64_t task_hash(void) {
  return all.hash;
}

uint64_t task_turns(void) {
  return all.turns;
}

void task_dump(void) {
  static const char *const words[] = {"ready", "locks", "waits", "ended"};
  for (uint32_t i = 0; i < all.n_tasks; i++) {
    const struct task *task = all.tasks[i];
    fprintf(stderr, "    task %u %s/%s %s", task->number, machine_name_of(task), task->name, words[task->state]);
    if (task->state == TASK_LOCKING)
      fprintf(stderr, " a mutex of task %u", ((const struct mutex *)task->channel)->owner - 1);
    if (task->state == TASK_WAITING && task->until != TASK_FOREVER)
      fprintf(stderr, " until +%" PRId64 " us", ((int64_t)task->until - (int64_t)all.now) / 1000);
    fprintf(stderr, "\n");
  }
}

void task_on_fail(void (*call)(void)) {
  all.on_fail = call;
}

void task_fail(const char *format, ...) {
  static bool is_failing;
  va_list arguments;
  if (is_failing) _exit(3);
  is_failing = true;
  fprintf(stderr, "  at %" PRIu64 " us, %s/%s: ", all.now / 1000, self ? machine_name_of(self) : "",
          self ? self->name : "");
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fprintf(stderr, "\n");
  if (all.on_fail) all.on_fail();
  _exit(1);
}

/* ---- Whose turn ---- */

static bool is_ready(struct task *task) {
  if (task->machine && machine_is_paused(task->machine)) return false;
  switch (task->state) {
  case TASK_READY: return true;
  case TASK_LOCKING: return ((const struct mutex *)task->channel)->owner == 0;
  case TASK_WAITING: return task->until <= all.now;
  default: return false;
  }
}

/* When the first of those that wait is due. */
static uint64_t next_deadline(void) {
  uint64_t next = TASK_FOREVER;
  for (uint32_t i = 0; i < all.n_tasks; i++) {
    struct task *task = all.tasks[i];
    uint64_t at = task->state == TASK_WAITING ? task->until : all.now;
    if (task->state == TASK_ENDED || (task->state == TASK_LOCKING && ((const struct mutex *)task->channel)->owner))
      continue;
    if (task->machine && machine_paused_until(task->machine) > at) at = machine_paused_until(task->machine);
    if (at < next) next = at;
  }
  return next;
}

static void jump(void) {
  uint64_t next = next_deadline();
  if (next == TASK_FOREVER) {
    fprintf(stderr, "  deadlock: nobody can go on, and nobody waits for a time\n");
    task_dump();
    task_fail("deadlock");
  }
  assert(next > all.now);
  all.now = next;
  all.turns_at_last_jump = all.turns;
}

static struct task *choose(void) {
  struct task *ready[TASKS_MAX];
  uint32_t n = 0;
  if (++all.turns > TURNS_MAX || all.turns - all.turns_at_last_jump > WITHOUT_TIME_MAX) {
    task_dump();
    task_fail("no end: %" PRIu64 " turns", all.turns);
  }
  for (;;) {
    for (uint32_t i = 0; i < all.n_tasks; i++)
      if (is_ready(all.tasks[i])) ready[n++] = all.tasks[i];
    if (n > 0) break;
    jump();
  }
  return ready[sim_random_below(&all.random, n)];
}

/* The baton goes to whom the seed says; returns when it is back. */
static void pass(void) {
  struct task *from = self, *to = choose();
  all.now += sim_random_below(&all.random, TURN_NS_MAX);
  task_note("turn", to->number, 0);
  if (to != from) {
    sem_post(&to->baton);
    while (sem_wait(&from->baton) != 0) continue;
  }
  assert(is_ready(from));
  from->state = TASK_READY;
}

static bool stalls(uint32_t times) {
  return sim_random_below(&all.random, 1000000) < (uint64_t)all.options.stall_per_million * times;
}

static void wait_for(enum task_state state, const void *channel, uint64_t until) {
  self->state = state;
  self->channel = channel;
  self->until = until;
  self->woken = false;
  pass();
}

void task_yield(void) {
  if (!self) return;
  if (stalls(1))
    wait_for(TASK_WAITING, NULL, all.now + sim_random_below(&all.random, all.options.stall_ns));
  else if (sim_random_chance(&all.random, all.options.switch_permille) ||
           (self->machine && machine_is_paused(self->machine)))
    pass();
}

void task_sleep(uint64_t ns) {
  wait_for(TASK_WAITING, NULL, all.now + ns);
}

bool task_wait(const void *channel, uint64_t until) {
  wait_for(TASK_WAITING, channel, until);
  return self->woken;
}

/* A processor may be long in coming. */
static void wake(struct task *task) {
  task->until = all.now + (stalls(WAKE_STALLS) ? sim_random_below(&all.random, all.options.stall_ns) : 0);
  task->woken = true;
  task->channel = NULL;
}

void task_wake_all(const void *channel) {
  for (uint32_t i = 0; i < all.n_tasks; i++)
    if (all.tasks[i]->state == TASK_WAITING && all.tasks[i]->channel == channel) wake(all.tasks[i]);
}

static void task_wake_one(const void *channel) {
  struct task *waiting[TASKS_MAX];
  uint32_t n = 0;
  for (uint32_t i = 0; i < all.n_tasks; i++)
    if (all.tasks[i]->state == TASK_WAITING && all.tasks[i]->channel == channel) waiting[n++] = all.tasks[i];
  if (n > 0) wake(waiting[sim_random_below(&all.random, n)]);
}

void task_wake_by(const void *channel, uint64_t until) {
  for (uint32_t i = 0; i < all.n_tasks; i++) {
    struct task *task = all.tasks[i];
    if (task->state == TASK_WAITING && task->channel == channel && task->until > until) task->until = until;
  }
}

/* ---- Tasks ---- */

static struct task *task_new(struct machine *machine, const char *name) {
  struct task *task = calloc(1, sizeof *task);
  if (!task || all.n_tasks == TASKS_MAX) task_fail("too many tasks");
  task->number = all.n_started++;
  task->machine = machine;
  snprintf(task->name, sizeof task->name, "%s", name);
  sem_init(&task->baton, 0, 0);
  all.tasks[all.n_tasks++] = task;
  return task;
}

void task_begin(const struct task_options *options) {
  all.options = *options;
  all.random.state = options->seed * 2 + 1;
  all.now = 1000 * TASK_SECOND;
  self = task_new(NULL, "main");
}

static void *thread_main(void *arg) {
  self = arg;
  while (sem_wait(&self->baton) != 0) continue;
  self->run(self->arg);
  self->state = TASK_ENDED;
  task_wake_all(self);
  struct task *to = choose();
  task_note("end", to->number, 0);
  sem_post(&to->baton);
  return NULL;
}

struct task *task_start(struct machine *machine, const char *name, void (*run)(void *arg), void *arg) {
  pthread_attr_t attributes;
  struct task *task = task_new(machine, name);
  task->run = run;
  task->arg = arg;
  pthread_attr_init(&attributes);
  if (pthread_create(&task->thread, &attributes, thread_main, task) != 0) task_fail("no thread");
  pthread_attr_destroy(&attributes);
  task_yield();
  return task;
}

void task_join(struct task *task) {
  while (task->state != TASK_ENDED) task_wait(task, TASK_FOREVER);
  pthread_join(task->thread, NULL);
  uint32_t i = 0;
  while (all.tasks[i] != task) i++;
  all.n_tasks--;
  for (; i < all.n_tasks; i++) all.tasks[i] = all.tasks[i + 1];
  sem_destroy(&task->baton);
  free(task);
}

struct task *task_self(void) {
  return self;
}

struct machine *task_machine(void) {
  return self ? self->machine : NULL;
}

void task_enter(struct machine *machine) {
  self->machine = machine;
}

uint64_t task_now(void) {
  return all.now;
}

/* ---- Mutexes and conditions ---- */

bool task_try_lock(pthread_mutex_t *mutex) {
  struct mutex *m = (struct mutex *)mutex;
  task_yield();
  if (m->owner != 0) return false;
  m->owner = self->number + 1;
  return true;
}

static void lock(struct mutex *m) {
  if (m->owner == self->number + 1) task_fail("a mutex is locked twice by the same task");
  while (m->owner != 0) wait_for(TASK_LOCKING, m, TASK_FOREVER);
  m->owner = self->number + 1;
}

void task_lock(pthread_mutex_t *mutex) {
  task_yield();
  lock((struct mutex *)mutex);
}

void task_unlock(pthread_mutex_t *mutex) {
  struct mutex *m = (struct mutex *)mutex;
  if (m->owner != self->number + 1) task_fail("a mutex is unlocked by a task that does not have it");
  m->owner = 0;
  task_yield();
}

bool task_owns(const pthread_mutex_t *mutex) {
  return ((const struct mutex *)mutex)->owner == self->number + 1;
}

bool task_condition_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t until) {
  struct mutex *m = (struct mutex *)mutex;
  if (m->owner != self->number + 1) task_fail("a wait without its mutex");
  m->owner = 0;
  bool woken = task_wait(condition, until);
  lock(m);
  return woken;
}

int __wrap_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes) {
  (void)attributes;
  *(struct mutex *)mutex = (struct mutex){0};
  return 0;
}

int __wrap_pthread_mutex_destroy(pthread_mutex_t *mutex) {
  if (((struct mutex *)mutex)->owner != 0) task_fail("a mutex is destroyed that somebody holds");
  return 0;
}

/* Before the first task there is one thread only. */
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex) {
  if (self) task_lock(mutex);
  return 0;
}

int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex) {
  return !self || task_try_lock(mutex) ? 0 : 16; /* EBUSY */
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex) {
  if (self) task_unlock(mutex);
  return 0;
}

int __wrap_pthread_cond_signal(pthread_cond_t *condition) {
  task_wake_one(condition);
  return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *condition) {
  task_wake_all(condition);
  return 0;
}

/* The lock file names the process: the same one in every run. */
pid_t __wrap_getpid(void) {
  return 1;
}
