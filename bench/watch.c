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

/* The MiB of a line "name: … kB"; false: another line. */
static bool is_line(const char *line, const char *name, double *mib) {
  size_t length = strlen(name);
  if (strncmp(line, name, length) != 0 || line[length] != ':') return false;
  *mib = (double)strtol(line + length + 1, NULL, 10) / 1024;
  return true;
}

static void look_at_memory(pid_t pid, struct watched *seen) {
  char path[64], line[256];
  double mib;
  snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
  FILE *file = fopen(path, "re");
  if (!file) return;
  while (fgets(line, sizeof line, file)) {
    if (is_line(line, "VmHWM", &mib)) seen->rss_max_mib = mib;
    if (is_line(line, "VmRSS", &mib)) seen->rss_mib = mib;
    if (is_line(line, "RssAnon", &mib)) raise_to(&seen->anonymous_max_mib, mib);
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
