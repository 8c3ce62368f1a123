/*
** vfs/change_set.c: what goes in comes out, small things stay small, patches may be applied over
** any mix of older and newer bytes, and damaged bytes are refused before anything is used.
*/
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vfs/change_set.h"

#define PAGES_MAX 40

static const uint32_t page_sizes[] = {512, 1024, 2048, 4096, 8192, 16384, 32768, 65536};
#define PAGE_SIZES (sizeof page_sizes / sizeof page_sizes[0])

static uint64_t random_state;

static uint32_t random_below(uint32_t limit) {
  random_state += UINT64_C(0x9e3779b97f4a7c15);
  uint64_t z = random_state;
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return (uint32_t)((z ^ (z >> 31)) >> 32) % limit;
}

static void *allocate(size_t size) {
  void *memory = malloc(size);
  assert_non_null(memory);
  return memory;
}

static void fill_random(uint8_t *bytes, uint32_t size) {
  for (uint32_t i = 0; i < size; i++) bytes[i] = (uint8_t)random_below(256);
}

/* Changes a page in one of the ways that transactions do: little, a lot, at the edges, everywhere. */
static void change_page(uint8_t *page, uint32_t size) {
  uint32_t changes = 1 + random_below(random_below(8) == 0 ? size : 12);
  switch (random_below(5)) {
  case 0: fill_random(page, size); break;
  case 1:
    page[0] ^= 1;
    page[size - 1] ^= 0x80;
    break;
  default:
    for (uint32_t i = 0; i < changes; i++) {
      uint32_t at = random_below(size), length = 1 + random_below(random_below(4) == 0 ? 200 : 9);
      for (uint32_t k = at; k < size && k < at + length; k++) page[k] = (uint8_t)random_below(256);
    }
  }
}

struct coder {
  struct vfs_encoder *encoder;
  struct vfs_decoder *decoder;
  uint32_t page_size;
};

static struct coder new_coder(uint32_t page_size) {
  struct coder coder = {vfs_encoder_new(page_size), vfs_decoder_new(page_size), page_size};
  assert_non_null(coder.encoder);
  assert_non_null(coder.decoder);
  return coder;
}

static void free_coder(struct coder *coder) {
  vfs_encoder_free(coder->encoder);
  vfs_decoder_free(coder->decoder);
}

/* A copy that ends where its memory ends, so that AddressSanitizer sees every byte too far. */
static uint8_t *copy_of(const uint8_t *bytes, uint32_t size) {
  uint8_t *copy = allocate(size ? size : 1);
  memcpy(copy, bytes, size);
  return copy;
}

/* Opens bytes of an untrusted source; if they are accepted, walks and applies all of them. */
static bool walk(struct vfs_decoder *decoder, uint32_t page_size, const uint8_t *bytes, uint32_t size) {
  uint8_t *copy = copy_of(bytes, size), *page = allocate(page_size);
  uint32_t page_number;
  bool is_full, ok = vfs_decoder_open(decoder, copy, size);
  memset(page, 0, page_size);
  while (ok && vfs_decoder_next(decoder, &page_number, &is_full)) {
    assert_true(page_number > 0);
    vfs_decoder_patch(decoder, page);
  }
  if (!ok) assert_false(vfs_decoder_next(decoder, &page_number, &is_full));
  free(page);
  free(copy);
  return ok;
}

static void shuffle(uint32_t *numbers, uint32_t count) {
  for (uint32_t i = count; i > 1; i--) {
    uint32_t k = random_below(i), t = numbers[i - 1];
    numbers[i - 1] = numbers[k];
    numbers[k] = t;
  }
}

/* ---- Round trips ---- */

static void round_trip(struct coder *coder, uint32_t count) {
  uint32_t numbers[PAGES_MAX], size, page_number;
  uint8_t *before[PAGES_MAX], *after[PAGES_MAX];
  const uint8_t *bytes;
  bool is_full, full[PAGES_MAX] = {false};
  vfs_encoder_reset(coder->encoder);
  for (uint32_t i = 0; i < count; i++) numbers[i] = i * (1 + random_below(1000)) * PAGES_MAX + i + 1;
  if (random_below(2)) shuffle(numbers, count);
  if (count > 2) numbers[1] = 0xfffffffe;
  for (uint32_t i = 0; i < count; i++) {
    before[i] = allocate(coder->page_size);
    after[i] = allocate(coder->page_size);
    fill_random(before[i], coder->page_size);
    memcpy(after[i], before[i], coder->page_size);
    do {
      change_page(after[i], coder->page_size);
    } while (memcmp(before[i], after[i], coder->page_size) == 0);
    full[i] = random_below(5) == 0;
    assert_true(vfs_encoder_add(coder->encoder, numbers[i], full[i] ? NULL : before[i], after[i]));
  }
  assert_true(vfs_encoder_finish(coder->encoder, &bytes, &size));
  assert_true(vfs_decoder_open(coder->decoder, bytes, size));
  for (uint32_t i = 0; i < count; i++) {
    assert_true(vfs_decoder_next(coder->decoder, &page_number, &is_full));
    assert_int_equal(page_number, numbers[i]);
    if (full[i]) {
      assert_true(is_full);
      memset(before[i], 0xee, coder->page_size); /* whatever was there */
    }
    vfs_decoder_patch(coder->decoder, before[i]);
    assert_memory_equal(before[i], after[i], coder->page_size);
    free(before[i]);
    free(after[i]);
  }
  assert_false(vfs_decoder_next(coder->decoder, &page_number, &is_full));
}

static void pages_come_out_as_they_went_in(void **state) {
  (void)state;
  for (uint32_t s = 0; s < PAGE_SIZES; s++) {
    struct coder coder = new_coder(page_sizes[s]);
    for (random_state = 1; random_state < 30; random_state++) {
      uint64_t seed = random_state;
      round_trip(&coder, random_below(PAGES_MAX + 1));
      random_state = seed;
    }
    free_coder(&coder);
  }
}

static void a_page_without_a_difference_adds_nothing(void **state) {
  (void)state;
  struct coder coder = new_coder(4096);
  uint8_t page[4096];
  const uint8_t *bytes;
  uint32_t size, page_number;
  bool is_full;
  fill_random(page, sizeof page);
  assert_true(vfs_encoder_add(coder.encoder, 7, page, page));
  assert_true(vfs_encoder_finish(coder.encoder, &bytes, &size));
  assert_true(vfs_decoder_open(coder.decoder, bytes, size));
  assert_false(vfs_decoder_next(coder.decoder, &page_number, &is_full));
  free_coder(&coder);
}

static void every_single_byte_of_a_page_is_seen(void **state) {
  (void)state;
  struct coder coder = new_coder(512);
  uint8_t before[512], after[512];
  const uint8_t *bytes;
  uint32_t size, page_number;
  bool is_full;
  fill_random(before, sizeof before);
  for (uint32_t i = 0; i < sizeof before; i++) {
    for (uint32_t distance = 0; distance < 12 && i + distance < sizeof before; distance++) {
      memcpy(after, before, sizeof after);
      after[i] ^= 0x10;
      after[i + distance] ^= 0x01;
      vfs_encoder_reset(coder.encoder);
      assert_true(vfs_encoder_add(coder.encoder, 1, before, after));
      assert_true(vfs_encoder_finish(coder.encoder, &bytes, &size));
      assert_in_range(size, 0, 24);
      assert_true(vfs_decoder_open(coder.decoder, bytes, size));
      assert_true(vfs_decoder_next(coder.decoder, &page_number, &is_full));
      assert_false(is_full);
      uint8_t page[512];
      memcpy(page, before, sizeof page);
      vfs_decoder_patch(coder.decoder, page);
      assert_memory_equal(page, after, sizeof page);
    }
  }
  free_coder(&coder);
}

static void a_set_may_be_as_large_as_its_limit(void **state) {
  (void)state;
  const uint32_t page_size = 65536;
  struct coder coder = new_coder(page_size);
  uint8_t *page = allocate(page_size);
  const uint8_t *bytes;
  uint32_t size, number = 0, page_number = 0;
  bool is_full;
  random_state = 3;
  while (vfs_encoder_size(coder.encoder) <= VFS_SET_RAW_MAX - 2 * page_size) {
    fill_random(page, page_size);
    assert_true(vfs_encoder_add(coder.encoder, ++number, NULL, page));
  }
  assert_true(vfs_encoder_finish(coder.encoder, &bytes, &size));
  assert_in_range(size, VFS_SET_RAW_MAX - 2 * page_size, VFS_SET_BYTES_MAX);
  assert_true(vfs_decoder_open(coder.decoder, bytes, size));
  for (uint32_t i = 1; i <= number; i++) assert_true(vfs_decoder_next(coder.decoder, &page_number, &is_full));
  assert_int_equal(page_number, number);
  vfs_decoder_patch(coder.decoder, page);
  free(page);
  free_coder(&coder);
}

/* ---- Size ---- */

static uint8_t *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  assert_int_equal(fseek(file, 0, SEEK_END), 0);
  long end = ftell(file);
  assert_true(end >= 0);
  *size = (size_t)end;
  uint8_t *bytes = allocate(*size + 1);
  rewind(file);
  assert_int_equal(fread(bytes, 1, *size, file), *size);
  fclose(file);
  return bytes;
}

static void run(sqlite3 *db, const char *sql) {
  char *message = NULL;
  if (sqlite3_exec(db, sql, NULL, NULL, &message) != SQLITE_OK) fail_msg("%s: %s", sql, message);
}

/* One transaction between two states of a database file: the size of its change set. */
static uint32_t encode_files(struct vfs_encoder *encoder, const uint8_t *before, size_t before_size,
                             const uint8_t *after, size_t after_size, uint32_t page_size) {
  const uint8_t *bytes;
  uint32_t size;
  vfs_encoder_reset(encoder);
  for (size_t at = 0; at < after_size; at += page_size) {
    assert_true(
        vfs_encoder_add(encoder, (uint32_t)(at / page_size) + 1, at < before_size ? before + at : NULL, after + at));
  }
  assert_true(vfs_encoder_finish(encoder, &bytes, &size));
  return size;
}

static int compare_sizes(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

#define INSERTS 200

/* Change sets of INSERTS single inserts, sorted by size. `sql` inserts one row of 100 bytes. */
static void measure_inserts(sqlite3 *db, const char *path, const char *sql, uint32_t sizes[INSERTS]) {
  size_t before_size, after_size;
  struct vfs_encoder *encoder = vfs_encoder_new(4096);
  uint8_t *before = read_file(path, &before_size);
  for (uint32_t i = 0; i < INSERTS; i++) {
    run(db, sql);
    uint8_t *after = read_file(path, &after_size);
    sizes[i] = encode_files(encoder, before, before_size, after, after_size, 4096);
    free(before);
    before = after;
    before_size = after_size;
  }
  free(before);
  vfs_encoder_free(encoder);
  qsort(sizes, INSERTS, sizeof *sizes, compare_sizes);
}

static void an_insert_of_100_bytes_takes_about_150(void **state) {
  (void)state;
  char folder[] = "/tmp/balsa-change-set-XXXXXX", path[64];
  uint32_t sizes[INSERTS], total = 0;
  sqlite3 *db;
  assert_non_null(mkdtemp(folder));
  snprintf(path, sizeof path, "%s/app.db", folder);
  assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
  run(db, "PRAGMA synchronous=OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);"
          "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<5000)"
          " INSERT INTO t SELECT random()/2, randomblob(100) FROM n;");
  measure_inserts(db, path, "INSERT INTO t VALUES(random()/2, randomblob(100))", sizes);
  assert_in_range(sizes[INSERTS / 2], 110, 200); /* long keys, and cell pointers shift; page 1 counts each change */
  run(db, "DELETE FROM t; VACUUM; INSERT INTO t VALUES(1, randomblob(100))");
  measure_inserts(db, path, "INSERT INTO t VALUES(NULL, randomblob(100))", sizes);
  for (uint32_t i = 0; i < INSERTS; i++) total += sizes[i];

  assert_in_range(total / INSERTS, 110, 170); /* all of them, growth included */
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  unlink(path);
  rmdir(folder);
}

static void what_compresses_is_compressed_and_the_rest_barely_grows(void **state) {
  (void)state;
  struct coder coder = new_coder(4096);
  uint8_t page[4096];
  const uint8_t *bytes;
  uint32_t size;
  for (uint32_t i = 0; i < sizeof page; i++) page[i] = (uint8_t)(i % 16);
  for (uint32_t i = 1; i <= 10; i++) assert_true(vfs_encoder_add(coder.encoder, i, NULL, page));
  assert_true(vfs_encoder_finish(coder.encoder, &bytes, &size));
  assert_in_range(size, 0, 1000);
  assert_true(walk(coder.decoder, 4096, bytes, size));

  vfs_encoder_reset(coder.encoder);
  random_state = 5;
  fill_random(page, sizeof page);
  assert_true(vfs_encoder_add(coder.encoder, 1, NULL, page));
  assert_true(vfs_encoder_finish(coder.encoder, &bytes, &size));
  assert_in_range(size, 4096, 4096 + 8);
  assert_true(walk(coder.decoder, 4096, bytes, size));
  free_coder(&coder);
}

/* ---- Redo ---- */

/* Transactions 1…n over a few pages; states[i] is the database after the first i. */
struct history {
  uint32_t page_size, pages, length;
  uint8_t **states;
  uint8_t **sets;
  uint32_t *sizes;
};

static void make_history(struct history *history, struct coder *coder) {
  size_t whole = (size_t)history->page_size * history->pages;
  history->states = allocate((history->length + 1) * sizeof(uint8_t *));
  history->sets = allocate((history->length + 1) * sizeof(uint8_t *));
  history->sizes = allocate((history->length + 1) * sizeof(uint32_t));
  history->states[0] = allocate(whole);
  fill_random(history->states[0], (uint32_t)whole);
  for (uint32_t i = 1; i <= history->length; i++) {
    const uint8_t *bytes;
    uint8_t *old = history->states[i - 1], *new = history->states[i] = allocate(whole);
    memcpy(new, old, whole);
    for (uint32_t k = random_below(4) + 1; k > 0; k--) {
      change_page(new + (size_t)random_below(history->pages) * history->page_size, history->page_size);
    }
    vfs_encoder_reset(coder->encoder);
    for (uint32_t p = 0; p < history->pages; p++) {
      size_t at = (size_t)p * history->page_size;
      assert_true(vfs_encoder_add(coder->encoder, p + 1, old + at, new + at));
    }
    assert_true(vfs_encoder_finish(coder->encoder, &bytes, &history->sizes[i]));
    history->sets[i] = copy_of(bytes, history->sizes[i]);
  }
}

static void free_history(struct history *history) {
  for (uint32_t i = 0; i <= history->length; i++) {
    free(history->states[i]);
    if (i > 0) free(history->sets[i]);
  }
  free(history->states);
  free(history->sets);
  free(history->sizes);
}

static void redo_gives_the_last_state_from_any_mix_of_bytes(void **state) {
  (void)state;
  struct coder coder = new_coder(512);
  for (uint64_t seed = 1; seed <= 60; seed++) {
    struct history history = {.page_size = 512, .pages = 4, .length = 12};
    uint8_t file[4 * 512];
    uint32_t page_number;
    bool is_full;
    random_state = seed;
    make_history(&history, &coder);
    uint32_t j = random_below(history.length), k = j + random_below(history.length - j) + 1;
    for (uint32_t i = 0; i < sizeof file; i++) file[i] = history.states[j + random_below(k - j + 1)][i];
    for (uint32_t i = j + 1; i <= history.length; i++) {
      assert_true(vfs_decoder_open(coder.decoder, history.sets[i], history.sizes[i]));
      while (vfs_decoder_next(coder.decoder, &page_number, &is_full)) {
        vfs_decoder_patch(coder.decoder, file + (size_t)(page_number - 1) * 512);
      }
    }
    if (memcmp(file, history.states[history.length], sizeof file) != 0) fail_msg("seed %d", (int)seed);
    free_history(&history);
  }
  free_coder(&coder);
}

/* ---- Damage ---- */

static void refuse(const char *why, uint32_t page_size, const uint8_t *bytes, uint32_t size) {
  struct vfs_decoder *decoder = vfs_decoder_new(page_size);
  assert_non_null(decoder);
  if (walk(decoder, page_size, bytes, size)) fail_msg("accepted: %s", why);
  vfs_decoder_free(decoder);
}
#define REFUSE(why, page_size, ...)                                                                                    \
  refuse(why, page_size, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void nonsense_is_refused(void **state) {
  (void)state;
  refuse("nothing", 512, (const uint8_t *)"", 0);
  REFUSE("no size", 512, 1, 0);
  REFUSE("another version", 512, 2, 0, 0);
  REFUSE("another method", 512, 1, 2, 0);
  REFUSE("fewer bytes than stated", 512, 1, 0, 5, 4, 1, 0, 0);
  REFUSE("more bytes than stated", 512, 1, 0, 5, 4, 1, 0, 0, 9, 9);
  REFUSE("a size without end", 512, 1, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1);
  REFUSE("a larger set than any", 512, 1, 1, 0x81, 0x80, 0x80, 4, 0);
  REFUSE("page 0", 512, 1, 0, 5, 0, 1, 0, 0, 9);
  REFUSE("page -1", 512, 1, 0, 5, 2, 1, 0, 0, 9);
  REFUSE("a page beyond the last number", 512, 1, 0, 9, 0xfc, 0xff, 0xff, 0xff, 0x7f, 1, 0, 0, 9);
  REFUSE("no range", 512, 1, 0, 2, 4, 0);
  REFUSE("more ranges than there are", 512, 1, 0, 5, 4, 2, 0, 0, 9);
  REFUSE("a range that begins at the end", 512, 1, 0, 6, 4, 1, 0x80, 4, 0, 9);
  REFUSE("a range beyond the end", 512, 1, 0, 7, 4, 1, 0xff, 3, 1, 9, 9);
  REFUSE("a range longer than its bytes", 512, 1, 0, 5, 4, 1, 0, 1, 9);
  REFUSE("a second range beyond the end", 512, 1, 0, 10, 4, 2, 0xfe, 3, 0, 9, 1, 0, 9, 9);
  REFUSE("half a page", 512, 1, 0, 3, 5, 1, 2);
  REFUSE("a block that is none", 512, 1, 1, 0x80, 8, 0xff, 0xff, 0xff);
}

static void one_valid_set_by_hand(void **state) {
  (void)state;
  /* Page 1: bytes 3–4; then page 513: its last byte. */
  const uint8_t bytes[] = {1, 0, 13, 4, 1, 3, 1, 0xaa, 0xbb, 0x80, 0x10, 1, 0xff, 3, 0, 0xcc};
  uint8_t page[512] = {0};
  uint32_t page_number;
  bool is_full;
  struct vfs_decoder *decoder = vfs_decoder_new(512);
  assert_true(vfs_decoder_open(decoder, bytes, sizeof bytes));
  assert_true(vfs_decoder_next(decoder, &page_number, &is_full));
  assert_int_equal(page_number, 1);
  vfs_decoder_patch(decoder, page);
  assert_int_equal(page[2] | page[5], 0);
  assert_int_equal(page[3] << 8 | page[4], 0xaabb);
  assert_true(vfs_decoder_next(decoder, &page_number, &is_full));
  assert_int_equal(page_number, 513);
  vfs_decoder_patch(decoder, page);
  assert_int_equal(page[511], 0xcc);
  assert_false(vfs_decoder_next(decoder, &page_number, &is_full));
  vfs_decoder_free(decoder);
}

static void a_range_may_be_as_long_as_the_largest_page(void **state) {
  (void)state;
  uint8_t *bytes = allocate(65536 + 11), *page = allocate(65536);
  /* Raw size 65542: key, one range, gap 0, length - 1 = 65535 in three bytes. */
  memcpy(bytes, (const uint8_t[]){1, 0, 0x86, 0x80, 4, 4, 1, 0, 0xff, 0xff, 3}, 11);
  memset(bytes + 11, 0x5a, 65536);
  uint32_t page_number;
  bool is_full;
  struct vfs_decoder *decoder = vfs_decoder_new(65536);
  memset(page, 0, 65536);
  assert_true(vfs_decoder_open(decoder, bytes, 65536 + 11));
  assert_true(vfs_decoder_next(decoder, &page_number, &is_full));
  vfs_decoder_patch(decoder, page);
  assert_memory_equal(page, bytes + 11, 65536);
  vfs_decoder_free(decoder);
  free(page);
  free(bytes);
}

/* Some set of a few patched and full pages, as its encoder left it. */
static uint32_t some_set(struct coder *coder, const uint8_t **bytes) {
  uint8_t before[512], after[512];
  uint32_t size;
  vfs_encoder_reset(coder->encoder);
  for (uint32_t i = 1 + random_below(6); i > 0; i--) {
    fill_random(before, sizeof before);
    if (random_below(2)) memset(before, 0, sizeof before);
    memcpy(after, before, sizeof after);
    change_page(after, sizeof after);
    assert_true(vfs_encoder_add(coder->encoder, 1 + random_below(100), random_below(3) ? before : NULL, after));
  }
  assert_true(vfs_encoder_finish(coder->encoder, bytes, &size));
  return size;
}

static void damaged_bytes_do_no_harm(void **state) {
  (void)state;
  struct coder coder = new_coder(512);
  uint32_t refused = 0, accepted = 0;
  for (uint64_t seed = 1; seed <= 4000; seed++) {
    const uint8_t *bytes;
    random_state = seed;
    uint32_t size = some_set(&coder, &bytes);
    uint8_t *hurt = copy_of(bytes, size);
    for (uint32_t i = 1 + random_below(4); i > 0; i--) {
      uint32_t at = random_below(random_below(2) ? size : size < 12 ? size : 12);
      hurt[at] = (uint8_t)(random_below(2) ? random_below(256) : hurt[at] ^ 1u << random_below(8));
    }
    if (random_below(3) == 0) size = random_below(size + 1);
    if (walk(coder.decoder, 512, hurt, size)) {
      accepted++;
    } else {
      refused++;
    }
    free(hurt);
  }
  assert_true(refused > 1000 && accepted > 100); /* both ways are taken: content may be anything */
  free_coder(&coder);
}

/* ---- Checksum ---- */

static void equal_pages_of_different_numbers_hash_differently(void **state) {
  (void)state;
  uint8_t page[4096] = {0};
  assert_true(vfs_page_hash(1, page, sizeof page) == vfs_page_hash(1, page, sizeof page));
  assert_true(vfs_page_hash(1, page, sizeof page) != vfs_page_hash(2, page, sizeof page));
  uint64_t zeros = vfs_page_hash(3, page, sizeof page);
  page[4095] = 1;
  assert_true(vfs_page_hash(3, page, sizeof page) != zeros);
}

static void the_lock_page_is_where_sqlite_has_it(void **state) {
  (void)state;
  assert_int_equal(vfs_lock_page(512), 2097153);
  assert_int_equal(vfs_lock_page(4096), 262145);
  assert_int_equal(vfs_lock_page(65536), 16385);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(pages_come_out_as_they_went_in),
      cmocka_unit_test(a_page_without_a_difference_adds_nothing),
      cmocka_unit_test(every_single_byte_of_a_page_is_seen),
      cmocka_unit_test(a_set_may_be_as_large_as_its_limit),
      cmocka_unit_test(an_insert_of_100_bytes_takes_about_150),
      cmocka_unit_test(what_compresses_is_compressed_and_the_rest_barely_grows),
      cmocka_unit_test(redo_gives_the_last_state_from_any_mix_of_bytes),
      cmocka_unit_test(nonsense_is_refused),
      cmocka_unit_test(one_valid_set_by_hand),
      cmocka_unit_test(a_range_may_be_as_long_as_the_largest_page),
      cmocka_unit_test(damaged_bytes_do_no_harm),
      cmocka_unit_test(equal_pages_of_different_numbers_hash_differently),
      cmocka_unit_test(the_lock_page_is_where_sqlite_has_it),
  };
  return cmocka_run_group_tests_name("change_set", tests, NULL, NULL);
}
