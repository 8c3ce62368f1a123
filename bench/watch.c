/*
** What a child uses, looked at from outside: memory in /proc, disk in its folder.
**
** The peak of what is resident is the kernel's own mark (VmHWM, begun anew through clear_refs), so nothing is missed
** between two looks; its parts are sampled. What a file backs (the program, libraries, the mapped -shm) is resident, too.
*/
#include <ftw.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "bench.h"

#define LOOK_EVERY_NS (20 * BENCH_MS)
#define MIB (1024.0 * 1024.0)

struct watch {
  pid_t pid;
  char folder[BENCH_PATH_MAX], wal[BENCH_PATH_MAX + 8], shm[BENCH_PATH_MAX + 8];
  pthread_t thread;
  atomic_bool is_over;
  pthread_mutex_t mutex;
  struct watched seen;
};

static void raise_to(double *value, double seen) {
  if (seen > *value) *value = seen;
}

static void look_at_memory(pid_t pid, struct watched *seen) {
  char path[64], line[256];
  long kib;
  snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
  FILE *file = fopen(path, "re");
  if (!file) return;
  while (fgets(line, sizeof line, file)) {
    if (sscanf(line, "VmHWM: %ld", &kib) == 1) seen->rss_max_mib = (double)kib / 1024;
    if (sscanf(line, "VmRSS: %ld", &kib) == 1) seen->rss_mib = (double)kib / 1024;
    if (sscanf(line, "RssAnon: %ld", &kib) == 1) raise_to(&seen->anonymous_max_mib, (double)kib / 1024);
  }
  fclose(file);
}

static void begin_peak_anew(pid_t pid) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/clear_refs", (int)pid);
  FILE *file = fopen(path, "we");
  if (!file) return;
  fputs("5", file);
  fclose(file);
}

static _Thread_local double folder_bytes;

static int add_blocks(const char *path, const struct stat *info, int type, struct FTW *walk) {
  (void)path, (void)walk;
  if (type == FTW_F) folder_bytes += (double)info->st_blocks * 512;
  return 0;
}

static double size_mib(const char *path) {
  struct stat info;
  return stat(path, &info) == 0 ? (double)info.st_size / MIB : 0;
}

static void look(struct watch *watch) {
  folder_bytes = 0;
  nftw(watch->folder, add_blocks, 16, FTW_PHYS);
  pthread_mutex_lock(&watch->mutex);
  look_at_memory(watch->pid, &watch->seen);
  raise_to(&watch->seen.disk_max_mib, folder_bytes / MIB);
  raise_to(&watch->seen.shm_max_mib, size_mib(watch->shm));
  raise_to(&watch->seen.wal_max_mib, size_mib(watch->wal));
  pthread_mutex_unlock(&watch->mutex);
}

static void *run(void *arg) {
  struct watch *watch = arg;
  while (!atomic_load(&watch->is_over)) {
    look(watch);
    nanosleep(&(struct timespec){.tv_nsec = (long)LOOK_EVERY_NS}, NULL);
  }
  return NULL;
}

struct watch *watch_start(const struct child *child, const char *path) {
  struct watch *watch = calloc(1, sizeof *watch);
  if (!watch) die("no memory");
  watch->pid = child->pid;
  snprintf(watch->folder, sizeof watch->folder, "%.*s", (int)(strrchr(path, '/') - path), path);
  snprintf(watch->wal, sizeof watch->wal, "%s-wal", path);
  snprintf(watch->shm, sizeof watch->shm, "%s-shm", path);
  pthread_mutex_init(&watch->mutex, NULL);
  begin_peak_anew(watch->pid);
  if (pthread_create(&watch->thread, NULL, run, watch)) die("a thread cannot be started");
  return watch;
}

struct watched watch_now(struct watch *watch) {
  look(watch);
  pthread_mutex_lock(&watch->mutex);
  struct watched seen = watch->seen;
  pthread_mutex_unlock(&watch->mutex);
  return seen;
}

struct watched watch_stop(struct watch *watch) {
  struct watched seen = watch_now(watch);
  atomic_store(&watch->is_over, true);
  pthread_join(watch->thread, NULL);
  pthread_mutex_destroy(&watch->mutex);
  free(watch);
  return seen;
}
