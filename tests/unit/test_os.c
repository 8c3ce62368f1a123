/*
** The real machine behind os.h, and the promises of the simulated one.
*/
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fault/sim_disk.h"

static char folder[256];

static int make_folder(void **state) {
  const char *base = getenv("TMPDIR");
  (void)state;
  snprintf(folder, sizeof folder, "%s/balsa-os-XXXXXX", base ? base : "/tmp");
  return mkdtemp(folder) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *where) {
  (void)status, (void)type, (void)where;
  return remove(path);
}

static int remove_folder(void **state) {
  (void)state;
  return nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* Both machines keep what os.h says; each test of this kind runs on either. */
struct machine {
  struct os *os;
  struct sim_disk *disk;
  char root[256];
};

static struct machine machine_open(bool simulated) {
  struct machine machine = {.os = os_real()};
  snprintf(machine.root, sizeof machine.root, "%s", folder);
  if (simulated) {
    machine.disk = sim_disk_new(1);
    machine.os = sim_disk_os(machine.disk);
    strcpy(machine.root, "");
  }
  return machine;
}

static const char *path_in(const struct machine *machine, const char *name) {
  static char paths[4][512];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", machine->root, name);
  return path;
}

static void check_files(struct machine *machine) {
  struct os *os = machine->os;
  struct os_file *file, *other;
  char bytes[100];
  uint64_t size;
  const char *path = path_in(machine, "a");
  assert_int_equal(os_open(os, path, OS_OPEN_READ, &file), -ENOENT);
  assert_null(file);
  assert_int_equal(os_open(os, path, OS_OPEN_WRITE | OS_OPEN_CREATE | OS_OPEN_EXCL, &file), 0);
  assert_int_equal(os_open(os, path, OS_OPEN_WRITE | OS_OPEN_CREATE | OS_OPEN_EXCL, &other), -EEXIST);
  assert_int_equal(os_write(file, "hello", 5, 10), 0);
  assert_int_equal(os_size(file, &size), 0);
  assert_int_equal(size, 15);
  assert_int_equal(os_read(file, bytes, sizeof bytes, 0), 15);
  assert_memory_equal(bytes, "\0\0\0\0\0\0\0\0\0\0hello", 15);
  assert_int_equal(os_read(file, bytes, 3, 12), 3);
  assert_int_equal(os_read(file, bytes, 3, 99), 0);
  assert_int_equal(os_allocate(file, 5000), 0);
  assert_int_equal(os_allocate(file, 100), 0);
  assert_int_equal(os_size(file, &size), 0);
  assert_int_equal(size, 5000);
  assert_int_equal(os_truncate(file, 12), 0);
  assert_int_equal(os_allocate(file, 20), 0);
  assert_int_equal(os_read(file, bytes, sizeof bytes, 8), 12);
  assert_memory_equal(bytes, "\0\0he\0\0\0\0\0\0\0\0", 12);
  assert_int_equal(os_sync(file), 0);
  os_close(file);
  assert_int_equal(os_open(os, path, OS_OPEN_READ, &file), 0);
  assert_int_equal(os_write(file, "x", 1, 0), -EBADF);
  os_close(file);
  os_close(NULL);
}

static int count_names(void *ctx, const char *name) {
  assert_true(strcmp(name, ".") != 0 && strcmp(name, "..") != 0);
  return ++*(int *)ctx == 3 ? 42 : 0;
}

static void check_names(struct machine *machine) {
  struct os *os = machine->os;
  struct os_file *file;
  int n = 0;
  char byte;
  assert_int_equal(os_make_directory(os, path_in(machine, "d")), 0);
  assert_int_equal(os_make_directory(os, path_in(machine, "d")), 0);
  assert_int_equal(os_make_directory(os, path_in(machine, "e/f")), -ENOENT);
  for (int i = 0; i < 4; i++) {
    char name[] = "d/0";
    name[2] = (char)('0' + i);
    assert_int_equal(os_open(os, path_in(machine, name), OS_OPEN_WRITE | OS_OPEN_CREATE, &file), 0);
    assert_int_equal(os_write(file, name + 2, 1, 0), 0);
    os_close(file);
  }
  assert_int_equal(os_make_directory(os, path_in(machine, "d/0")), -ENOTDIR);
  assert_int_equal(os_list(os, path_in(machine, "d"), count_names, &n), 42);
  assert_int_equal(os_remove(os, path_in(machine, "d/2")), 0);
  assert_int_equal(os_remove(os, path_in(machine, "d/2")), -ENOENT);
  assert_int_equal(os_rename(os, path_in(machine, "d/0"), path_in(machine, "d/1")), 0);
  assert_int_equal(os_rename(os, path_in(machine, "d/0"), path_in(machine, "d/1")), -ENOENT);
  n = 0;
  assert_int_equal(os_list(os, path_in(machine, "d"), count_names, &n), 0);
  assert_int_equal(n, 2);
  assert_int_equal(os_list(os, path_in(machine, "x"), count_names, &n), -ENOENT);
  assert_int_equal(os_open(os, path_in(machine, "d/1"), OS_OPEN_READ, &file), 0);
  assert_int_equal(os_read(file, &byte, 1, 0), 1);
  assert_int_equal(byte, '0');
  os_close(file);
  assert_int_equal(os_sync_directory(os, path_in(machine, "d")), 0);
  assert_int_equal(os_sync_directory(os, path_in(machine, "x")), -ENOENT);
}

static void files_and_names_behave_alike_on_both_machines(void **state) {
  (void)state;
  for (int simulated = 0; simulated < 2; simulated++) {
    struct machine machine = machine_open(simulated);
    check_files(&machine);
    check_names(&machine);
    sim_disk_free(machine.disk);
  }
}

static void allocated_space_is_written_and_not_only_reserved(void **state) {
  struct os_file *file;
  struct stat status;
  char path[512];
  (void)state;
  snprintf(path, sizeof path, "%s/z", folder);
  assert_int_equal(os_open(os_real(), path, OS_OPEN_WRITE | OS_OPEN_CREATE, &file), 0);
  assert_int_equal(os_allocate(file, 1000000), 0);
  assert_int_equal(os_sync(file), 0);
  assert_int_equal(stat(path, &status), 0);
  assert_int_equal(status.st_size, 1000000);
  assert_true(status.st_blocks * 512 >= 1000000);
  os_close(file);
}

static void descriptors_are_closed_on_exec(void **state) {
  struct os_file *file;
  char path[512], link[64], target[512];
  bool found = false;
  (void)state;
  snprintf(path, sizeof path, "%s/e", folder);
  assert_int_equal(os_open(os_real(), path, OS_OPEN_WRITE | OS_OPEN_CREATE | OS_OPEN_DSYNC, &file), 0);
  for (int i = 3; i < 100; i++) {
    snprintf(link, sizeof link, "/proc/self/fd/%d", i);
    ssize_t n = readlink(link, target, sizeof target - 1);
    if (n < 0) continue;
    target[n] = 0;
    if (strcmp(target, path) != 0) continue;
    found = true;
    assert_true(fcntl(i, F_GETFD) & FD_CLOEXEC);
    assert_true(fcntl(i, F_GETFL) & O_DSYNC);
  }
  assert_true(found);
  os_close(file);
}

struct thread_facts {
  sigset_t mask;
  char name[16];
};

static void look_around(void *arg) {
  struct thread_facts *facts = arg;
  pthread_sigmask(SIG_SETMASK, NULL, &facts->mask);
  pthread_getname_np(pthread_self(), facts->name, sizeof facts->name);
}

static void threads_have_names_and_no_signals(void **state) {
  struct thread_facts facts = {0};
  struct os_thread *thread;
  sigset_t mine;
  (void)state;
  assert_int_equal(os_thread_start(os_real(), "a-name-that-is-too-long", look_around, &facts, &thread), 0);
  os_thread_join(thread);
  assert_string_equal(facts.name, "a-name-that-is-");
  assert_true(sigismember(&facts.mask, SIGTERM) && sigismember(&facts.mask, SIGCHLD));
  pthread_sigmask(SIG_SETMASK, NULL, &mine);
  assert_false(sigismember(&mine, SIGTERM));
}

static void a_wait_ends_at_its_deadline_and_not_before(void **state) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t condition;
  struct os *os = os_real();
  (void)state;
  os_condition_init(&condition);
  pthread_mutex_lock(&mutex);
  assert_int_equal(os_condition_wait(os, &condition, &mutex, os_now(os)), -ETIMEDOUT);
  assert_int_equal(os_condition_wait(os, &condition, &mutex, 0), -ETIMEDOUT);
  uint64_t deadline = os_now(os) + 20 * OS_MS;
  while (os_condition_wait(os, &condition, &mutex, deadline) == 0) assert_true(os_now(os) < deadline);
  assert_true(os_now(os) >= deadline);
  pthread_mutex_unlock(&mutex);
  pthread_cond_destroy(&condition);
}

struct waiting {
  pthread_mutex_t mutex;
  pthread_cond_t condition;
  bool done;
};

static void finish(void *arg) {
  struct waiting *waiting = arg;
  pthread_mutex_lock(&waiting->mutex);
  waiting->done = true;
  pthread_cond_signal(&waiting->condition);
  pthread_mutex_unlock(&waiting->mutex);
}

static void a_wait_for_ever_ends_with_the_event(void **state) {
  struct waiting waiting = {.mutex = PTHREAD_MUTEX_INITIALIZER};
  struct os_thread *thread;
  (void)state;
  os_condition_init(&waiting.condition);
  pthread_mutex_lock(&waiting.mutex);
  assert_int_equal(os_thread_start(os_real(), "test", finish, &waiting, &thread), 0);
  while (!waiting.done)
    assert_int_equal(os_condition_wait(os_real(), &waiting.condition, &waiting.mutex, OS_FOREVER), 0);
  pthread_mutex_unlock(&waiting.mutex);
  os_thread_join(thread);
  pthread_cond_destroy(&waiting.condition);
}

static void random_bytes_differ(void **state) {
  uint8_t a[1000] = {0}, b[1000] = {0};
  (void)state;
  os_random(os_real(), a, sizeof a);
  os_random(os_real(), b, sizeof b);
  assert_memory_not_equal(a, b, sizeof a);
  assert_memory_not_equal(a + 900, b + 900, 100);
}

/* ---- What only the simulated machine does ---- */

static struct os_file *open_simple(struct sim_disk *disk, const char *path, int flags) {
  struct os_file *file;
  assert_int_equal(os_open(sim_disk_os(disk), path, flags | OS_OPEN_WRITE, &file), 0);
  return file;
}

static void fill(uint8_t *bytes, size_t size, uint8_t value) {
  memset(bytes, value, size);
}

static void power_loss_tears_what_was_not_synced_at_sectors(void **state) {
  uint8_t old_bytes[4096], new_bytes[4096];
  int kept = 0, lost = 0, torn = 0;
  (void)state;
  fill(old_bytes, sizeof old_bytes, 1);
  fill(new_bytes, sizeof new_bytes, 2);
  for (uint64_t seed = 1; seed <= 60; seed++) {
    struct sim_disk *disk = sim_disk_new(seed);
    uint64_t size;
    struct os_file *file = open_simple(disk, "a", OS_OPEN_CREATE);
    assert_int_equal(os_write(file, old_bytes, sizeof old_bytes, 0), 0);
    assert_int_equal(os_sync(file), 0);
    assert_int_equal(os_sync_directory(sim_disk_os(disk), "."), 0);
    assert_int_equal(os_write(file, new_bytes, sizeof new_bytes, 0), 0);
    sim_disk_crash(disk, SIM_DISK_POWER_LOSS);
    assert_true(sim_disk_is_down(disk));
    assert_int_equal(os_write(file, new_bytes, 1, 0), -EIO);
    sim_disk_restart(disk);
    assert_int_equal(os_read(file, new_bytes, 1, 0), -EIO); /* of the life before */
    os_close(file);
    const uint8_t *bytes = sim_disk_bytes(disk, "a", &size);
    assert_int_equal(size, sizeof new_bytes);
    int n = 0;
    for (size_t i = 0; i < sizeof new_bytes; i++) {
      assert_int_equal(bytes[i], bytes[i / SIM_DISK_SECTOR * SIM_DISK_SECTOR]);
      assert_in_range(bytes[i], 1, 2);
      n += bytes[i] == 2;
    }
    kept += n == sizeof new_bytes;
    lost += n == 0;
    torn += n > 0 && n < (int)sizeof new_bytes;
    sim_disk_free(disk);
  }
  assert_true(kept > 0 && lost > 0 && torn > 0);
}

static void what_was_synced_survives_and_so_does_a_synced_write(void **state) {
  uint8_t bytes[1000];
  (void)state;
  fill(bytes, sizeof bytes, 7);
  for (uint64_t seed = 1; seed <= 40; seed++) {
    struct sim_disk *disk = sim_disk_new(seed);
    uint64_t size;
    struct os_file *file = open_simple(disk, "a", OS_OPEN_CREATE | (seed % 2 ? OS_OPEN_DSYNC : 0));
    assert_int_equal(os_write(file, bytes, sizeof bytes, 300), 0);
    if (seed % 2 == 0) assert_int_equal(os_sync(file), 0);
    assert_int_equal(os_sync_directory(sim_disk_os(disk), "."), 0);
    os_close(file);
    sim_disk_crash(disk, SIM_DISK_POWER_LOSS);
    sim_disk_restart(disk);
    const uint8_t *found = sim_disk_bytes(disk, "a", &size);
    assert_non_null(found);
    assert_int_equal(size, 1300);
    assert_memory_equal(found + 300, bytes, sizeof bytes);
    sim_disk_free(disk);
  }
}

static void names_may_be_lost_until_their_folder_is_synced(void **state) {
  int made = 0, renamed = 0;
  (void)state;
  for (uint64_t seed = 1; seed <= 60; seed++) {
    struct sim_disk *disk = sim_disk_new(seed);
    struct os *os = sim_disk_os(disk);
    uint64_t size;
    os_close(open_simple(disk, "kept", OS_OPEN_CREATE));
    assert_int_equal(os_sync_directory(os, "."), 0);
    os_close(open_simple(disk, "made", OS_OPEN_CREATE));
    assert_int_equal(os_rename(os, "kept", "renamed"), 0);
    sim_disk_crash(disk, SIM_DISK_POWER_LOSS);
    sim_disk_restart(disk);
    made += sim_disk_bytes(disk, "made", &size) != NULL;
    bool is_renamed = sim_disk_bytes(disk, "renamed", &size) != NULL;
    assert_true(is_renamed == (sim_disk_bytes(disk, "kept", &size) == NULL)); /* one of the two, always */
    renamed += is_renamed;
    sim_disk_free(disk);
  }
  assert_in_range(made, 1, 59);
  assert_in_range(renamed, 1, 59);
}

static void a_killed_process_leaves_the_page_cache(void **state) {
  uint64_t size;
  (void)state;
  struct sim_disk *disk = sim_disk_new(3);
  struct os_file *file = open_simple(disk, "a", OS_OPEN_CREATE);
  assert_int_equal(os_write(file, "hello", 5, 0), 0);
  sim_disk_crash(disk, SIM_DISK_KILL);
  sim_disk_restart(disk);
  os_close(file);
  assert_memory_equal(sim_disk_bytes(disk, "a", &size), "hello", 5);
  sim_disk_free(disk);
}

static void a_failed_sync_is_not_made_good_by_the_next_one(void **state) {
  uint8_t bytes[8192];
  int lost = 0;
  (void)state;
  fill(bytes, sizeof bytes, 7);
  for (uint64_t seed = 1; seed <= 20; seed++) {
    struct sim_disk *disk = sim_disk_new(seed);
    uint64_t size;
    struct os_file *file = open_simple(disk, "a", OS_OPEN_CREATE);
    assert_int_equal(os_allocate(file, sizeof bytes), 0);
    assert_int_equal(os_sync(file), 0);
    assert_int_equal(os_sync_directory(sim_disk_os(disk), "."), 0);
    assert_int_equal(os_write(file, bytes, sizeof bytes, 0), 0);
    sim_disk_fail_nth(disk, SIM_DISK_SYNC, 1, -EIO);
    assert_int_equal(os_sync(file), -EIO);
    assert_int_equal(os_sync(file), 0);
    assert_memory_equal(sim_disk_bytes(disk, "a", &size), bytes, sizeof bytes);
    sim_disk_crash(disk, SIM_DISK_POWER_LOSS);
    sim_disk_restart(disk);
    lost += memcmp(sim_disk_bytes(disk, "a", &size), bytes, sizeof bytes) != 0;
    os_close(file);
    sim_disk_free(disk);
  }
  assert_true(lost > 5);
}

static void faults_come_as_they_were_ordered(void **state) {
  uint8_t bytes[3000] = {1};
  uint64_t size;
  struct sim_disk_counters counters;
  (void)state;
  struct sim_disk *disk = sim_disk_new(3);
  struct os *os = sim_disk_os(disk);
  struct os_file *file = open_simple(disk, "a", OS_OPEN_CREATE), *other;
  sim_disk_fail_nth(disk, SIM_DISK_WRITE, 2, -EIO);
  assert_int_equal(os_write(file, bytes, 10, 0), 0);
  assert_int_equal(os_write(file, bytes, 10, 0), -EIO);
  assert_int_equal(os_write(file, bytes, 10, 0), 0);
  sim_disk_fail_all(disk, SIM_DISK_NAME, -EIO);
  assert_int_equal(os_open(os, "b", OS_OPEN_WRITE | OS_OPEN_CREATE, &other), -EIO);
  assert_int_equal(os_rename(os, "a", "b"), -EIO);
  sim_disk_fail_all(disk, SIM_DISK_NAME, 0);
  assert_int_equal(os_rename(os, "a", "b"), 0);
  sim_disk_set_capacity(disk, 1000);
  assert_int_equal(os_write(file, bytes, sizeof bytes, 0), -ENOSPC);
  assert_true(sim_disk_used(disk) <= 1000);
  sim_disk_set_capacity(disk, UINT64_MAX);
  assert_int_equal(os_write(file, bytes, sizeof bytes, 0), 0);
  sim_disk_set_error_rate(disk, SIM_DISK_READ, 1000000);
  assert_int_equal(os_read(file, bytes, 1, 0), -EIO);
  sim_disk_set_error_rate(disk, SIM_DISK_READ, 0);
  sim_disk_get_counters(disk, &counters);
  assert_int_equal(counters.errors[SIM_DISK_WRITE], 1);
  assert_int_equal(counters.errors[SIM_DISK_NAME], 2);
  assert_int_equal(counters.no_space, 1);
  uint64_t calls = sim_disk_calls(disk);
  sim_disk_crash_at(disk, 2, SIM_DISK_POWER_LOSS);
  assert_int_equal(os_write(file, bytes, 1, 0), 0);
  assert_int_equal(os_sync(file), -EIO);
  assert_true(sim_disk_is_down(disk));
  assert_int_equal(sim_disk_calls(disk), calls + 2);
  sim_disk_restart(disk);
  sim_disk_wipe(disk);
  assert_null(sim_disk_bytes(disk, "b", &size));
  assert_int_equal(os_open(os, "b", OS_OPEN_READ, &other), -ENOENT);
  os_close(file);
  sim_disk_free(disk);
}

static void the_same_seed_gives_the_same_run(void **state) {
  uint8_t images[2][9000], bytes[9000];
  uint64_t size;
  (void)state;
  fill(bytes, sizeof bytes, 9);
  for (int i = 0; i < 2; i++) {
    struct sim_disk *disk = sim_disk_new(77);
    struct os_file *file = open_simple(disk, "a", OS_OPEN_CREATE | OS_OPEN_DSYNC);
    assert_int_equal(os_write(file, bytes, sizeof bytes, 0), 0);
    assert_int_equal(os_sync_directory(sim_disk_os(disk), "."), 0);
    os_random(sim_disk_os(disk), bytes, sizeof bytes);
    sim_disk_crash_at(disk, 1, SIM_DISK_POWER_LOSS);
    assert_int_equal(os_write(file, bytes, sizeof bytes, 0), -EIO);
    sim_disk_restart(disk);
    memcpy(images[i], sim_disk_bytes(disk, "a", &size), sizeof images[i]);
    fill(bytes, sizeof bytes, 9);
    os_close(file);
    sim_disk_free(disk);
  }
  assert_memory_equal(images[0], images[1], sizeof images[0]);
}

static void virtual_time_stands_still_but_for_waits(void **state) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t condition;
  struct os_thread *thread;
  (void)state;
  struct sim_disk *disk = sim_disk_new(1);
  struct os *os = sim_disk_os(disk);
  os_condition_init(&condition);
  sim_disk_set_time(disk, 5 * OS_SECOND);
  assert_int_equal(os_now(os), 5 * OS_SECOND);
  pthread_mutex_lock(&mutex);
  assert_int_equal(os_condition_wait(os, &condition, &mutex, 9 * OS_SECOND), -ETIMEDOUT);
  pthread_mutex_unlock(&mutex);
  assert_int_equal(os_now(os), 9 * OS_SECOND);
  assert_int_equal(os_thread_start(os, "x", look_around, NULL, &thread), -ENOTSUP);
  pthread_cond_destroy(&condition);
  sim_disk_free(disk);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(files_and_names_behave_alike_on_both_machines),
      cmocka_unit_test(allocated_space_is_written_and_not_only_reserved),
      cmocka_unit_test(descriptors_are_closed_on_exec),
      cmocka_unit_test(threads_have_names_and_no_signals),
      cmocka_unit_test(a_wait_ends_at_its_deadline_and_not_before),
      cmocka_unit_test(a_wait_for_ever_ends_with_the_event),
      cmocka_unit_test(random_bytes_differ),
      cmocka_unit_test(power_loss_tears_what_was_not_synced_at_sectors),
      cmocka_unit_test(what_was_synced_survives_and_so_does_a_synced_write),
      cmocka_unit_test(names_may_be_lost_until_their_folder_is_synced),
      cmocka_unit_test(a_killed_process_leaves_the_page_cache),
      cmocka_unit_test(a_failed_sync_is_not_made_good_by_the_next_one),
      cmocka_unit_test(faults_come_as_they_were_ordered),
      cmocka_unit_test(the_same_seed_gives_the_same_run),
      cmocka_unit_test(virtual_time_stands_still_but_for_waits),
  };
  return cmocka_run_group_tests_name("os", tests, make_folder, remove_folder);
}
