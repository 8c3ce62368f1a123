/*
** The scheduler of the simulation of whole nodes: tasks, of which exactly one runs at a time.
**
** A task is a thread of its own (so that stacks, thread-local variables and debuggers are what they are), but it runs
** only while it holds the baton. It passes the baton on where real threads may lose the processor to each other: at
** mutexes, waits, thread starts and file I/O. Who gets it is drawn from the seed; so is time: it stands still while
** anybody can run, but for a little at each turn, and jumps to the next deadline when nobody can. So the same seed
** gives the same run, and no clock, thread or address of the real machine has a say in it.
**
** The program's own pthread mutexes and conditions come here too (--wrap of the linker: bottom of task.c): of a mutex
** only its owner is kept, in the mutex's own memory, all zeros when nobody has it; of a condition nothing.
**
** Times are nanoseconds of the one true clock; a machine's own clock is machine.c's.
*/
#ifndef BALSA_TESTS_WHOLE_TASK_H
#define BALSA_TESTS_WHOLE_TASK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "../sim/random.h"

#define TASK_FOREVER UINT64_MAX
#define TASK_US UINT64_C(1000)
#define TASK_MS UINT64_C(1000000)
#define TASK_SECOND UINT64_C(1000000000)
#define TASKS_MAX 4096 /* that one run starts */

struct machine;
struct task;

struct task_options {
  uint64_t seed;
  uint32_t switch_permille;   /* how often the baton goes on where it need not */
  uint32_t stall_per_million; /* how often a task loses its processor there, for up to stall_ns */
  uint64_t stall_ns;
  bool show; /* every event, on stderr */
};

/* The calling thread becomes the first task. Once per process. */
void task_begin(const struct task_options *options);
/* Starts a task on a machine (NULL: on none). */
struct task *task_start(struct machine *machine, const char *name, void (*run)(void *arg), void *arg);
/* Waits for its end and frees it. */
void task_join(struct task *task);
struct task *task_self(void);
/* The machine of the task that runs; NULL before task_begin. */
struct machine *task_machine(void);
/* This task goes on on another machine: the one that drives the run starts and stops nodes. */
void task_enter(struct machine *machine);

uint64_t task_now(void);
/* Others may run now. */
void task_yield(void);
void task_sleep(uint64_t ns);
/* Until woken or `until`; false: time is over. `channel` is any address that waker and sleeper agree on. */
bool task_wait(const void *channel, uint64_t until);
void task_wake_all(const void *channel);
/* Sleepers on `channel` wait no longer than `until`. */
void task_wake_by(const void *channel, uint64_t until);

/* A mutex of the scheduler's kind, for SQLite's. */
void task_lock(pthread_mutex_t *mutex);
bool task_try_lock(pthread_mutex_t *mutex);
void task_unlock(pthread_mutex_t *mutex);
bool task_owns(const pthread_mutex_t *mutex);
/* Gives up the mutex while it waits for a signal of the condition; true: it came (or something did). */
bool task_condition_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t until);

/* An event of the run goes into its hash. `what` is a word for --trace. */
void task_note(const char *what, uint64_t a, uint64_t b);
uint64_t task_hash(void);
uint64_t task_turns(void);
/* The run is over: says why and ends the process. */
void task_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
/* Called by task_fail before the process ends, to say more. */
void task_on_fail(void (*call)(void));
void task_dump(void);

#endif
