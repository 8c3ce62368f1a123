/*
** A small record: replaced as a whole or not at all, and never an earlier one after damage.
*/
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ext/slot_file.h"
#include "tests/fault/sim_disk.h"

#define PATH "/record"
#define RECORD_MAX SLOT_FILE_PAYLOAD_MAX

/* Record number n: its size and bytes follow from n. */
static size_t record(uint64_t n, uint8_t *bytes) {
  size_t size = n % 7 == 0 ? RECORD_MAX : 8 + (size_t)(n * 37 % 900);
  memset(bytes, (int)(n * 31 + 1), size);
  memcpy(bytes, &n, sizeof n);
  return size;
}

/* Opens and gives the number of the record found; 0: none. */
static int open_record(struct sim_disk *disk, uint64_t *n, struct slot_file **file) {
  uint8_t bytes[RECORD_MAX], expected[RECORD_MAX];
  size_t size;
  *n = 0;
  int error = slot_file_open(sim_disk_os(disk), PATH, "TEST", 1, bytes, sizeof bytes, &size, file);
  if (error || size == 0) return error;
  memcpy(n, bytes, sizeof *n);
  assert_int_equal(record(*n, expected), size);
  assert_memory_equal(bytes, expected, size);
  return 0;
}

static int write_record(struct slot_file *file, uint64_t n) {
  uint8_t bytes[RECORD_MAX];
  size_t size = record(n, bytes);
  return slot_file_write(file, bytes, size);
}

static struct slot_file *open_or_fail(struct sim_disk *disk, uint64_t expected) {
  struct slot_file *file;
  uint64_t n;
  assert_int_equal(open_record(disk, &n, &file), 0);
  assert_int_equal(n, expected);
  return file;
}

static void the_last_record_is_found(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(1);
  struct slot_file *file = open_or_fail(disk, 0);
  for (uint64_t n = 1; n < 20; n++) {
    assert_int_equal(write_record(file, n), 0);
    slot_file_close(file);
    file = open_or_fail(disk, n);
  }
  slot_file_close(file);
  slot_file_close(NULL);
  sim_disk_free(disk);
}

static void a_crash_anywhere_leaves_the_last_record_or_the_one_under_way(void **state) {
  uint64_t random = 0;
  (void)state;
  for (uint64_t seed = 1; seed <= 500; seed++) {
    struct sim_disk *disk = sim_disk_new(seed);
    uint64_t acknowledged = 0, n = 0, found;
    for (int life = 0; life < 5; life++) {
      struct slot_file *file;
      random = random * 6364136223846793005u + seed;
      sim_disk_crash_at(disk, 1 + (random >> 33) % 12, (random >> 60) % 3 ? SIM_DISK_POWER_LOSS : SIM_DISK_KILL);
      int error = open_record(disk, &found, &file);
      if (error == 0) {
        assert_true(found == acknowledged || found == n);
        acknowledged = n = found;
        while (write_record(file, n + 1) == 0) acknowledged = ++n;
        n++;
        assert_int_equal(write_record(file, n + 1), -EIO);
        slot_file_close(file);
      } else {
        assert_int_equal(error, -EIO);
      }
      sim_disk_crash(disk, SIM_DISK_POWER_LOSS);
      sim_disk_restart(disk);
    }
    struct slot_file *file;
    assert_int_equal(open_record(disk, &found, &file), 0);
    assert_true(found == acknowledged || found == n);
    slot_file_close(file);
    sim_disk_free(disk);
  }
}

static void damage_to_one_slot_never_brings_an_earlier_record_back(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(2);
  struct slot_file *file = open_or_fail(disk, 0);
  for (uint64_t n = 1; n <= 3; n++) assert_int_equal(write_record(file, n), 0);
  slot_file_close(file);
  for (uint64_t at = 0; at < 8192; at++) {
    sim_disk_flip(disk, PATH, at, (uint8_t)(1u << (at % 8)));
    slot_file_close(open_or_fail(disk, 3)); /* which heals it */
  }
  slot_file_close(open_or_fail(disk, 3));
  sim_disk_free(disk);
}

static void damage_to_both_slots_is_told_and_not_taken_for_empty(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(3);
  struct slot_file *file = open_or_fail(disk, 0);
  uint64_t n;
  assert_int_equal(write_record(file, 1), 0);
  slot_file_close(file);
  sim_disk_flip(disk, PATH, 40, 1);
  sim_disk_flip(disk, PATH, 4096 + 8, 1);
  assert_int_equal(open_record(disk, &n, &file), -EILSEQ);
  assert_null(file);
  sim_disk_free(disk);
}

static void a_file_of_another_kind_or_a_later_version_is_refused(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(4);
  struct os *os = sim_disk_os(disk);
  struct slot_file *file;
  uint8_t bytes[RECORD_MAX];
  size_t size;
  assert_int_equal(slot_file_open(os, PATH, "TEST", 2, bytes, sizeof bytes, &size, &file), 0);
  assert_int_equal(slot_file_write(file, "0123456789", 10), 0);
  slot_file_close(file);
  assert_int_equal(slot_file_open(os, PATH, "VOTE", 2, bytes, sizeof bytes, &size, &file), -EPROTO);
  assert_int_equal(slot_file_open(os, PATH, "TEST", 1, bytes, sizeof bytes, &size, &file), -EPROTO);
  assert_int_equal(slot_file_open(os, PATH, "TEST", 2, bytes, 9, &size, &file), -EPROTO);
  assert_int_equal(slot_file_open(os, PATH, "TEST", 3, bytes, sizeof bytes, &size, &file), 0);
  assert_int_equal(size, 10);
  slot_file_close(file);
  sim_disk_free(disk);
}

static void after_a_failed_write_no_other_is_taken(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(5);
  struct slot_file *file = open_or_fail(disk, 0);
  assert_int_equal(write_record(file, 1), 0);
  sim_disk_fail_nth(disk, SIM_DISK_SYNC, 2, -EIO);
  assert_int_equal(write_record(file, 2), -EIO);
  assert_int_equal(write_record(file, 3), -EIO);
  slot_file_close(file);
  sim_disk_free(disk);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_last_record_is_found),
      cmocka_unit_test(a_crash_anywhere_leaves_the_last_record_or_the_one_under_way),
      cmocka_unit_test(damage_to_one_slot_never_brings_an_earlier_record_back),
      cmocka_unit_test(damage_to_both_slots_is_told_and_not_taken_for_empty),
      cmocka_unit_test(a_file_of_another_kind_or_a_later_version_is_refused),
      cmocka_unit_test(after_a_failed_write_no_other_is_taken),
  };
  return cmocka_run_group_tests_name("slot_file", tests, NULL, NULL);
}
