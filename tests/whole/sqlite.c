#include "sqlite.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "task.h"

#define MUTEX_STATICS 16

struct sqlite3_mutex {
  pthread_mutex_t mutex;
  int kind;
  unsigned depth;
};

static sqlite3_mutex statics[MUTEX_STATICS];

static int mutex_init(void) {
  return SQLITE_OK;
}

static int mutex_end(void) {
  return SQLITE_OK;
}

static sqlite3_mutex *mutex_alloc(int kind) {
  if (kind >= MUTEX_STATICS) abort();
  if (kind != SQLITE_MUTEX_FAST && kind != SQLITE_MUTEX_RECURSIVE) return &statics[kind];
  sqlite3_mutex *mutex = calloc(1, sizeof *mutex);
  if (mutex) mutex->kind = kind;
  return mutex;
}

static void mutex_free(sqlite3_mutex *mutex) {
  free(mutex);
}

static void mutex_enter(sqlite3_mutex *mutex) {
  if (!task_self()) return;
  if (mutex->depth > 0 && task_owns(&mutex->mutex)) {
    mutex->depth++;
    return;
  }
  task_lock(&mutex->mutex);
  mutex->depth = 1;
}

static int mutex_try(sqlite3_mutex *mutex) {
  if (!task_self()) return SQLITE_OK;
  if (mutex->depth > 0 && task_owns(&mutex->mutex)) {
    mutex->depth++;
    return SQLITE_OK;
  }
  if (!task_try_lock(&mutex->mutex)) return SQLITE_BUSY;
  mutex->depth = 1;
  return SQLITE_OK;
}

static void mutex_leave(sqlite3_mutex *mutex) {
  if (!task_self()) return;
  if (--mutex->depth == 0) task_unlock(&mutex->mutex);
}

static int mutex_held(sqlite3_mutex *mutex) {
  return !task_self() || task_owns(&mutex->mutex);
}

static int mutex_notheld(sqlite3_mutex *mutex) {
  return !task_self() || !task_owns(&mutex->mutex);
}

/* ---- Memory: its size before it ---- */

#define MEMORY_HEAD 16

static int memory_size(void *memory) {
  return memory ? *(int *)(void *)((char *)memory - MEMORY_HEAD) : 0;
}

static void *memory_malloc(int size) {
  char *memory = calloc(1, (size_t)size + MEMORY_HEAD);
  if (!memory) return NULL;
  *(int *)(void *)memory = size;
  return memory + MEMORY_HEAD;
}

static void memory_free(void *memory) {
  if (memory) free((char *)memory - MEMORY_HEAD);
}

static void *memory_realloc(void *memory, int size) {
  int before = memory_size(memory);
  void *grown = memory_malloc(size);
  if (!grown) return NULL;
  if (before > 0) memcpy(grown, memory, (size_t)(before < size ? before : size));
  memory_free(memory);
  return grown;
}

static int memory_roundup(int size) {
  return (size + 7) & ~7;
}

static int memory_init(void *data) {
  (void)data;
  return SQLITE_OK;
}

static void memory_shutdown(void *data) {
  (void)data;
}

void sqlite_begin(void) {
  static const sqlite3_mem_methods memory = {
      .xMalloc = memory_malloc,
      .xFree = memory_free,
      .xRealloc = memory_realloc,
      .xSize = memory_size,
      .xRoundup = memory_roundup,
      .xInit = memory_init,
      .xShutdown = memory_shutdown,
  };
  static const sqlite3_mutex_methods methods = {
      .xMutexInit = mutex_init,
      .xMutexEnd = mutex_end,
      .xMutexAlloc = mutex_alloc,
      .xMutexFree = mutex_free,
      .xMutexEnter = mutex_enter,
      .xMutexTry = mutex_try,
      .xMutexLeave = mutex_leave,
      .xMutexHeld = mutex_held,
      .xMutexNotheld = mutex_notheld,
  };
  if (sqlite3_config(SQLITE_CONFIG_MUTEX, &methods) != SQLITE_OK) abort();
  if (sqlite3_config(SQLITE_CONFIG_MALLOC, &memory) != SQLITE_OK) abort();
  if (sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0) != SQLITE_OK) abort();
}
