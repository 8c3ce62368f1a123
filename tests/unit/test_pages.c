/* The pages that redo gathers on their way to the file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "vfs/pages.h"

#define PAGES 300
#define PAGE_SIZE_MAX 65536

/* A file in memory that counts its writes and can refuse them. */
struct memory_file {
  sqlite3_file file; /* first */
  uint8_t *bytes;
  sqlite3_int64 size, room;
  int reads, writes, writes_left; /* < 0: no limit */
};

static int memory_read(sqlite3_file *file, void *to, int n, sqlite3_int64 offset) {
  struct memory_file *memory = (struct memory_file *)file;
  sqlite3_int64 has = memory->size > offset ? memory->size - offset : 0;
  memory->reads++;
  memset(to, 0, (size_t)n);
  memcpy(to, memory->bytes + offset, (size_t)(has < n ? has : n));
  return has < n ? SQLITE_IOERR_SHORT_READ : SQLITE_OK;
}

static int memory_write(sqlite3_file *file, const void *from, int n, sqlite3_int64 offset) {
  struct memory_file *memory = (struct memory_file *)file;
  assert_in_range(n, 512, 65536); /* the base VFS takes no more at once */
  assert_true(offset + n <= memory->room);
  if (memory->writes_left == 0) return SQLITE_FULL;
  memory->writes_left--;
  memory->writes++;
  memcpy(memory->bytes + offset, from, (size_t)n);
  if (offset + n > memory->size) memory->size = offset + n;
  return SQLITE_OK;
}

static void memory_open(struct memory_file *memory, uint32_t page_size, uint32_t pages) {
  static const sqlite3_io_methods methods = {.iVersion = 1, .xRead = memory_read, .xWrite = memory_write};
  *memory = (struct memory_file){.file = {&methods}, .writes_left = -1};
  memory->room = (sqlite3_int64)PAGES * page_size;
  memory->size = (sqlite3_int64)pages * page_size;
  memory->bytes = calloc(PAGES, page_size);
  assert_non_null(memory->bytes);
  for (sqlite3_int64 i = 0; i < memory->size; i++) memory->bytes[i] = (uint8_t)(i * 7 + i / 512);
}

/* Patches pages at random, the same in `expected`, with room for `capacity` of them. */
static void patch_at_random(uint32_t page_size, uint32_t capacity, unsigned seed) {
  struct memory_file memory;
  memory_open(&memory, page_size, PAGES / 2);
  uint8_t *expected = malloc((size_t)PAGES * page_size), *page;
  struct vfs_pages *pages = vfs_pages_new(&memory.file, page_size, capacity * page_size);
  assert_true(expected && pages);
  memcpy(expected, memory.bytes, (size_t)PAGES * page_size);
  for (int i = 0; i < 3000; i++) {
    uint32_t page_number = 1 + (uint32_t)rand_r(&seed) % PAGES, at = (uint32_t)rand_r(&seed) % page_size;
    uint8_t *there = expected + (size_t)(page_number - 1) * page_size, byte = (uint8_t)rand_r(&seed);
    bool is_full = rand_r(&seed) % 4 == 0;
    assert_int_equal(vfs_pages_get(pages, page_number, is_full, &page), SQLITE_OK);
    if (!is_full) assert_memory_equal(page, there, page_size);
    if (is_full) memset(page, byte, page_size);
    if (is_full) memset(there, byte, page_size);
    page[at] = there[at] = (uint8_t)~byte;
    if (rand_r(&seed) % 1000 == 0) assert_int_equal(vfs_pages_write(pages), SQLITE_OK);
  }
  assert_int_equal(vfs_pages_write(pages), SQLITE_OK);
  assert_memory_equal(memory.bytes, expected, (size_t)PAGES * page_size);
  vfs_pages_free(pages);
  free(memory.bytes);
  free(expected);
}

static void pages_come_out_as_they_were_changed_whatever_has_room(void **state) {
  (void)state;
  static const uint32_t capacities[] = {1, 2, 7, 100, PAGES, 2 * PAGES};
  for (unsigned i = 0; i < sizeof capacities / sizeof *capacities; i++) {
    patch_at_random(512, capacities[i], i);
    patch_at_random(4096, capacities[i], i + 100);
  }
  patch_at_random(PAGE_SIZE_MAX, 3, 200);
}

static void pages_side_by_side_go_in_one_write_and_each_is_read_once(void **state) {
  (void)state;
  struct memory_file memory;
  uint8_t *page;
  memory_open(&memory, 4096, PAGES);
  struct vfs_pages *pages = vfs_pages_new(&memory.file, 4096, PAGES * 4096);
  assert_non_null(pages);
  for (int round = 0; round < 5; round++)
    for (uint32_t i = 64; i >= 1; i--) assert_int_equal(vfs_pages_get(pages, i, false, &page), SQLITE_OK);
  assert_int_equal(memory.reads, 64);
  assert_int_equal(memory.writes, 0);
  assert_int_equal(vfs_pages_write(pages), SQLITE_OK);
  assert_int_equal(memory.writes, 64 * 4096 / 65536);
  assert_int_equal(vfs_pages_write(pages), SQLITE_OK); /* nothing is left */
  assert_int_equal(memory.writes, 64 * 4096 / 65536);
  vfs_pages_free(pages);
  free(memory.bytes);
}

static void what_is_used_again_and_again_stays_beside_what_is_used_once(void **state) {
  (void)state;
  struct memory_file memory;
  uint8_t *page;
  memory_open(&memory, 4096, PAGES);
  struct vfs_pages *pages = vfs_pages_new(&memory.file, 4096, 20 * 4096);
  assert_non_null(pages);
  for (uint32_t i = 11; i <= PAGES; i++) {
    for (uint32_t hot = 1; hot <= 10; hot++) assert_int_equal(vfs_pages_get(pages, hot, false, &page), SQLITE_OK);
    assert_int_equal(vfs_pages_get(pages, i, false, &page), SQLITE_OK);
  }
  assert_in_range(memory.reads, PAGES, PAGES + 10); /* when all were used, the oldest have to go once */
  vfs_pages_free(pages);
  free(memory.bytes);
}

static void what_was_known_of_a_file_that_is_made_anew_is_forgotten(void **state) {
  (void)state;
  struct memory_file memory;
  uint8_t *page;
  memory_open(&memory, 4096, 8);
  struct vfs_pages *pages = vfs_pages_new(&memory.file, 4096, 20 * 4096);
  assert_non_null(pages);
  for (uint32_t i = 1; i <= 8; i++) assert_int_equal(vfs_pages_get(pages, i, false, &page), SQLITE_OK);
  assert_int_equal(vfs_pages_write(pages), SQLITE_OK);
  assert_int_equal(vfs_pages_get(pages, 3, true, &page), SQLITE_OK);
  vfs_pages_clear(pages);
  memory.size = 0;
  assert_int_equal(vfs_pages_write(pages), SQLITE_OK);
  assert_int_equal(memory.size, 0);
  for (uint32_t i = 1; i <= 8; i++) {
    static const uint8_t zeros[4096];
    assert_int_equal(vfs_pages_get(pages, i, false, &page), SQLITE_OK);
    assert_memory_equal(page, zeros, sizeof zeros);
  }
  vfs_pages_free(pages);
  free(memory.bytes);
}

static void a_write_that_fails_is_told_to_who_needs_the_room(void **state) {
  (void)state;
  struct memory_file memory;
  uint8_t *page;
  memory_open(&memory, 4096, PAGES);
  memory.writes_left = 0;
  struct vfs_pages *pages = vfs_pages_new(&memory.file, 4096, 4 * 4096);
  assert_non_null(pages);
  for (uint32_t i = 1; i <= 4; i++) assert_int_equal(vfs_pages_get(pages, i, false, &page), SQLITE_OK);
  assert_int_equal(vfs_pages_get(pages, 5, false, &page), SQLITE_FULL);
  vfs_pages_free(pages);
  free(memory.bytes);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(pages_come_out_as_they_were_changed_whatever_has_room),
      cmocka_unit_test(pages_side_by_side_go_in_one_write_and_each_is_read_once),
      cmocka_unit_test(what_is_used_again_and_again_stays_beside_what_is_used_once),
      cmocka_unit_test(what_was_known_of_a_file_that_is_made_anew_is_forgotten),
      cmocka_unit_test(a_write_that_fails_is_told_to_who_needs_the_room),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
