/*
** Snapshots: what is published is whole, through power loss at every call, full disks and damage; lz4 alone can
** read it; a part that was received goes on where it was durable.
*/
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <lz4frame.h>
#include <sqlite3.h>
#include <xxhash.h>

#include "ext/bytes.h"
#include "snapshot/snapshot.h"
#include "tests/fault/sim_disk.h"

#define FOLDER "/node"
#define BLOCK (256u << 10)
#define PAGE_MAX 65536u
#define CONFIGURATION_SIZE 100u

static uint64_t draw(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

/* ---- Databases that follow from a seed ---- */

enum content { MIXED, RANDOM, NEARLY_ZERO };

struct database {
  struct snapshot_meta meta;
  enum content content;
  uint64_t seed;
  uint8_t configuration[CONFIGURATION_SIZE];
  struct snapshot_term terms[3];
};

static void page_make(const struct database *database, uint32_t number, uint8_t page[PAGE_MAX]) {
  uint32_t size = database->meta.page_size;
  uint64_t state = database->seed ^ (uint64_t)number << 32;
  enum content content = database->content;
  if (content == MIXED) content = draw(&state) % 3 ? NEARLY_ZERO : RANDOM;
  memset(page, 0, size);
  if (content == RANDOM)
    for (uint32_t i = 0; i < size; i++) page[i] = (uint8_t)draw(&state);
  else if (number % 16 == 1)
    memcpy(page, &state, sizeof state);
}

static struct database database_make(uint32_t page_size, uint32_t pages, uint64_t index, enum content content) {
  static uint8_t page[PAGE_MAX];
  struct database database = {.content = content, .seed = index * 1000 + page_size + pages};
  database.meta = (struct snapshot_meta){.index = index,
                                         .term = 3,
                                         .set_index = index - 1,
                                         .page_size = page_size,
                                         .pages = pages,
                                         .configuration_index = 2,
                                         .configuration_size = CONFIGURATION_SIZE,
                                         .n_terms = 3};
  for (uint32_t i = 0; i < CONFIGURATION_SIZE; i++) database.configuration[i] = (uint8_t)(i * 7);
  for (uint32_t i = 0; i < 3; i++) database.terms[i] = (struct snapshot_term){.term = i + 1, .index = i * i + 1};
  for (uint32_t i = 1; i <= pages; i++) {
    page_make(&database, i, page);
    database.meta.checksum ^= vfs_page_hash(i, page, page_size);
  }
  return database;
}

/* Its own pointers: the struct may have moved. */
static struct snapshot_meta meta_of(const struct database *database) {
  struct snapshot_meta meta = database->meta;
  meta.configuration = database->configuration;
  meta.terms = database->terms;
  return meta;
}

static void meta_check(const struct snapshot_meta *meta, const struct snapshot_meta *expected) {
  assert_int_equal(meta->index, expected->index);
  assert_int_equal(meta->term, expected->term);
  assert_int_equal(meta->set_index, expected->set_index);
  assert_int_equal(meta->checksum, expected->checksum);
  assert_int_equal(meta->page_size, expected->page_size);
  assert_int_equal(meta->pages, expected->pages);
  assert_int_equal(meta->configuration_index, expected->configuration_index);
  assert_int_equal(meta->configuration_size, expected->configuration_size);
  assert_memory_equal(meta->configuration, expected->configuration, expected->configuration_size);
  assert_int_equal(meta->n_terms, expected->n_terms);
  for (uint32_t i = 0; i < meta->n_terms; i++) {
    assert_int_equal(meta->terms[i].term, expected->terms[i].term);
    assert_int_equal(meta->terms[i].index, expected->terms[i].index);
  }
}

/* ---- Writing and reading a whole one ---- */

static int read_made_pages(void *ctx, uint32_t first, uint32_t n, uint8_t *pages, char *text) {
  const struct database *database = ctx;
  text[0] = 0;
  for (uint32_t i = 0; i < n; i++) page_make(database, first + i, pages + (size_t)i * database->meta.page_size);
  return 0;
}

static enum snapshot_pace no_hurry(void *ctx, uint32_t pages) {
  (void)ctx, (void)pages;
  return SNAPSHOT_QUIET;
}

static struct snapshot_input input_of(struct database *database) {
  return (struct snapshot_input){.read = read_made_pages, .pace = no_hurry, .ctx = database};
}

static int write_it(struct os *os, const char *folder, const struct database *database, bool publish, char *text) {
  struct database source = *database;
  struct snapshot_input input = input_of(&source);
  struct snapshot_meta meta = meta_of(database);
  struct snapshot_writer *writer;
  int error = snapshot_writer_open(os, folder, &meta, &writer, text);
  if (error) return error;
  error = snapshot_writer_write(writer, &input);
  if (error == 0 && publish) error = snapshot_writer_publish(writer);
  if (error) snprintf(text, SNAPSHOT_TEXT_MAX, "%s", snapshot_writer_error(writer));
  snapshot_writer_close(writer);
  return error;
}

static void write_or_fail(struct os *os, const char *folder, const struct database *database) {
  char text[SNAPSHOT_TEXT_MAX];
  int error = write_it(os, folder, database, true, text);
  if (error) print_error("%s\n", text);
  assert_int_equal(error, 0);
}

/* Reads to the end or the first error, which it returns; no page that comes before it may be wrong. */
static int read_it(struct os *os, const char *path, const struct database *database, char *text) {
  static uint8_t page[PAGE_MAX], expected[PAGE_MAX];
  struct snapshot_meta meta, expected_meta = meta_of(database);
  struct snapshot_reader *reader;
  uint32_t n = 0;
  int error = snapshot_reader_open(os, path, &reader, &meta, text);
  if (error) return error;
  meta_check(&meta, &expected_meta);
  while ((error = snapshot_reader_next(reader, page)) == 1) {
    assert_true(++n <= meta.pages);
    page_make(database, n, expected);
    assert_memory_equal(page, expected, meta.page_size);
  }
  assert_int_equal(snapshot_reader_next(reader, page), error); /* the end stays, and so does an error */
  if (error == 0) assert_int_equal(n, meta.pages);
  if (error) snprintf(text, SNAPSHOT_TEXT_MAX, "%s", snapshot_reader_error(reader));
  snapshot_reader_close(reader);
  return error;
}

static void read_or_fail(struct os *os, const char *path, const struct database *database) {
  char text[SNAPSHOT_TEXT_MAX];
  int error = read_it(os, path, database, text);
  if (error) print_error("%s\n", text);
  assert_int_equal(error, 0);
}

static struct sim_disk *disk_make(uint64_t seed) {
  struct sim_disk *disk = sim_disk_new(seed);
  assert_int_equal(os_make_directory(sim_disk_os(disk), FOLDER), 0);
  assert_int_equal(os_sync_directory(sim_disk_os(disk), "/"), 0);
  return disk;
}

static bool exists(struct sim_disk *disk, const char *path) {
  uint64_t size;
  return sim_disk_bytes(disk, path, &size) != NULL;
}

static void file_put(struct os *os, const char *path, const void *bytes, size_t size) {
  struct os_file *file;
  assert_int_equal(os_open(os, path, OS_OPEN_READ | OS_OPEN_WRITE | OS_OPEN_CREATE, &file), 0);
  assert_int_equal(os_truncate(file, 0), 0);
  assert_int_equal(os_write(file, bytes, size, 0), 0);
  assert_int_equal(os_sync(file), 0);
  os_close(file);
}

/* A copy of a file; the caller frees it. */
static uint8_t *file_get(struct os *os, const char *path, uint64_t *size) {
  struct os_file *file;
  assert_int_equal(os_open(os, path, OS_OPEN_READ, &file), 0);
  assert_int_equal(os_size(file, size), 0);
  uint8_t *bytes = malloc(*size + 1);
  assert_non_null(bytes);
  assert_int_equal(os_read(file, bytes, *size, 0), (int64_t)*size);
  os_close(file);
  return bytes;
}

static void says_where(const char *text, const char *path) {
  if (strstr(text, path) && strstr(text, "offset")) return;
  print_error("the sentence names no file or offset: %s\n", text);
  fail();
}

/* ---- Round trips ---- */

static void pages_and_metadata_come_back_for_every_page_size(void **state) {
  (void)state;
  char path[OS_PATH_MAX];
  snapshot_path(FOLDER, 9, path);
  assert_string_equal(path, FOLDER "/snapshot-00000000000000000009.lz4");
  for (uint32_t page_size = 512; page_size <= PAGE_MAX; page_size *= 2) {
    uint32_t block = BLOCK / page_size;
    uint32_t pages[] = {0, 1, 2, block - 1, block, block + 1, 5 * block, 5 * block + 3};
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
      struct sim_disk *disk = disk_make(page_size + i);
      struct database database = database_make(page_size, pages[i], 9, MIXED);
      write_or_fail(sim_disk_os(disk), FOLDER, &database);
      read_or_fail(sim_disk_os(disk), path, &database);
      assert_false(exists(disk, FOLDER "/snapshot.new"));
      sim_disk_free(disk);
    }
  }
}

static void metadata_may_be_as_large_as_its_limits_and_no_larger(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct os *os = sim_disk_os(disk);
  struct database database = database_make(4096, 3, 9, MIXED);
  struct snapshot_meta meta = meta_of(&database), back;
  struct snapshot_writer *writer;
  struct snapshot_reader *reader;
  char text[SNAPSHOT_TEXT_MAX], path[OS_PATH_MAX];
  uint8_t *configuration = test_malloc(SNAPSHOT_CONFIGURATION_MAX);
  struct snapshot_term *terms = test_malloc(SNAPSHOT_TERMS_MAX * sizeof *terms);
  for (uint32_t i = 0; i < SNAPSHOT_CONFIGURATION_MAX; i++) configuration[i] = (uint8_t)(i % 251);
  for (uint32_t i = 0; i < SNAPSHOT_TERMS_MAX; i++) terms[i] = (struct snapshot_term){.term = i + 1, .index = 2 * i};
  meta.configuration = configuration;
  meta.terms = terms;
  meta.configuration_size = SNAPSHOT_CONFIGURATION_MAX + 1;
  assert_int_equal(snapshot_writer_open(os, FOLDER, &meta, &writer, text), -EINVAL);
  assert_non_null(strstr(text, "configuration"));
  meta.configuration_size = SNAPSHOT_CONFIGURATION_MAX;
  meta.n_terms = SNAPSHOT_TERMS_MAX + 1;
  assert_int_equal(snapshot_writer_open(os, FOLDER, &meta, &writer, text), -EINVAL);
  assert_non_null(strstr(text, "term starts"));
  meta.n_terms = SNAPSHOT_TERMS_MAX;
  assert_int_equal(snapshot_writer_open(os, FOLDER, &meta, &writer, text), 0);
  struct snapshot_input input = input_of(&database);
  assert_int_equal(snapshot_writer_write(writer, &input), 0);
  assert_int_equal(snapshot_writer_publish(writer), 0);
  snapshot_writer_close(writer);
  snapshot_path(FOLDER, 9, path);
  assert_int_equal(snapshot_reader_open(os, path, &reader, &back, text), 0);
  meta_check(&back, &meta);
  snapshot_reader_close(reader);
  test_free(configuration);
  test_free(terms);
  sim_disk_free(disk);
}

/* Zeros before the lock-byte page, and from there on something else. */
static int read_around_lock_page(void *ctx, uint32_t first, uint32_t n, uint8_t *pages, char *text) {
  uint32_t lock = vfs_lock_page(PAGE_MAX);
  (void)ctx;
  text[0] = 0;
  for (uint32_t i = 0; i < n; i++) memset(pages + (size_t)i * PAGE_MAX, first + i >= lock ? 0xee : 0, PAGE_MAX);
  return 0;
}

static void the_lock_byte_page_is_zeros_and_outside_the_checksum(void **state) {
  (void)state;
  static uint8_t page[PAGE_MAX], zeros[PAGE_MAX];
  struct sim_disk *disk = disk_make(1);
  struct os *os = sim_disk_os(disk);
  struct database database = database_make(PAGE_MAX, 0, 9, NEARLY_ZERO);
  struct snapshot_meta meta = meta_of(&database);
  struct snapshot_writer *writer;
  struct snapshot_reader *reader;
  char text[SNAPSHOT_TEXT_MAX], path[OS_PATH_MAX];
  uint32_t lock = vfs_lock_page(PAGE_MAX);
  memset(page, 0xee, sizeof page);
  meta.pages = lock + 1;
  for (uint32_t i = 1; i <= meta.pages; i++)
    if (i != lock) meta.checksum ^= vfs_page_hash(i, i > lock ? page : zeros, PAGE_MAX);
  assert_int_equal(snapshot_writer_open(os, FOLDER, &meta, &writer, text), 0);
  const struct snapshot_input input = {.read = read_around_lock_page, .pace = no_hurry};
  assert_int_equal(snapshot_writer_write(writer, &input), 0);
  assert_int_equal(snapshot_writer_publish(writer), 0);
  snapshot_writer_close(writer);
  snapshot_path(FOLDER, 9, path);
  assert_int_equal(snapshot_reader_open(os, path, &reader, &meta, text), 0);
  for (uint32_t i = 1; i <= meta.pages; i++) {
    assert_int_equal(snapshot_reader_next(reader, page), 1);
    if (i == lock) assert_memory_equal(page, zeros, PAGE_MAX);
  }
  assert_int_equal(page[0], 0xee);
  assert_int_equal(snapshot_reader_next(reader, page), 0);
  snapshot_reader_close(reader);
  sim_disk_free(disk);
}

static void pages_that_do_not_give_the_checksum_make_no_snapshot(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct database database = database_make(4096, 100, 9, MIXED);
  char text[SNAPSHOT_TEXT_MAX], path[OS_PATH_MAX];
  uint64_t index;
  database.meta.checksum ^= 1;
  assert_int_equal(write_it(sim_disk_os(disk), FOLDER, &database, true, text), -EILSEQ);
  says_where(text, FOLDER "/snapshot.new");
  assert_int_equal(snapshot_find(sim_disk_os(disk), FOLDER, path, &index), 0);
  assert_int_equal(index, 0);
  assert_false(exists(disk, FOLDER "/snapshot.new"));
  sim_disk_free(disk);
}

/* ---- Helpers ---- */

/* Pages come as made; a pace changes when so many are written, reading fails from a page on. */
struct paced {
  struct database database;
  uint32_t at, fails_from; /* UINT32_MAX: never */
  enum snapshot_pace then;
};

static int read_paced(void *ctx, uint32_t first, uint32_t n, uint8_t *pages, char *text) {
  struct paced *paced = ctx;
  if (first + n > paced->fails_from) {
    snprintf(text, SNAPSHOT_TEXT_MAX, "page %u cannot be read", paced->fails_from);
    return -EIO;
  }
  return read_made_pages(&paced->database, first, n, pages, text);
}

static enum snapshot_pace pace_of(void *ctx, uint32_t pages) {
  const struct paced *paced = ctx;
  return pages >= paced->at ? paced->then : SNAPSHOT_QUIET;
}

static int write_paced(struct os *os, const char *folder, struct paced *paced, char *text) {
  struct snapshot_meta meta = meta_of(&paced->database);
  const struct snapshot_input input = {.read = read_paced, .pace = pace_of, .ctx = paced};
  struct snapshot_writer *writer;
  int error = snapshot_writer_open(os, folder, &meta, &writer, text);
  if (error) return error;
  error = snapshot_writer_write(writer, &input);
  if (error == 0) error = snapshot_writer_publish(writer);
  if (error) snprintf(text, SNAPSHOT_TEXT_MAX, "%s", snapshot_writer_error(writer));
  snapshot_writer_close(writer);
  return error;
}

static void make_folder(char folder[128]) {
  const char *temporary = getenv("TMPDIR");
  snprintf(folder, 128, "%.90s/balsa-snapshot-XXXXXX", temporary && *temporary ? temporary : "/tmp");
  assert_non_null(mkdtemp(folder));
}

/* With the one snapshot in it, or none. */
static void remove_folder(const char *folder, const char *snapshot) {
  char head[OS_PATH_MAX];
  snprintf(head, sizeof head, "%s/snapshot.head", folder);
  if (snapshot) assert_int_equal(unlink(snapshot), 0);
  if (snapshot) assert_int_equal(unlink(head), 0);
  assert_int_equal(rmdir(folder), 0);
}

static void a_snapshot_is_the_same_whoever_makes_its_blocks(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1); /* it starts no threads */
  struct paced paced = {.database = database_make(4096, 3000, 9, MIXED), .at = UINT32_MAX, .fails_from = UINT32_MAX};
  char folder[128], text[SNAPSHOT_TEXT_MAX], path[OS_PATH_MAX];
  uint64_t size, size_alone;
  assert_int_equal(write_paced(sim_disk_os(disk), FOLDER, &paced, text), 0);
  snapshot_path(FOLDER, 9, path);
  uint8_t *alone = file_get(sim_disk_os(disk), path, &size_alone);
  make_folder(folder);
  snapshot_path(folder, 9, path);
  paced.then = SNAPSHOT_HURRY;
  for (uint32_t at = 0; at <= 4000; at += 500) {
    paced.at = at;
    assert_int_equal(write_paced(os_real(), folder, &paced, text), 0);
    uint8_t *bytes = file_get(os_real(), path, &size);
    assert_int_equal(size, size_alone);
    assert_memory_equal(bytes, alone, size);
    free(bytes);
  }
  free(alone);
  remove_folder(folder, path);
  sim_disk_free(disk);
}

/* Helpers get no further than into their first block, until the last one is asked for. */
struct stuck {
  struct database database;
  pthread_t caller;
  pthread_mutex_t mutex;
  pthread_cond_t condition;
  bool is_over;
};

static int read_stuck(void *ctx, uint32_t first, uint32_t n, uint8_t *pages, char *text) {
  struct stuck *stuck = ctx;
  if (!pthread_equal(pthread_self(), stuck->caller)) {
    pthread_mutex_lock(&stuck->mutex);
    while (!stuck->is_over) pthread_cond_wait(&stuck->condition, &stuck->mutex);
    pthread_mutex_unlock(&stuck->mutex);
  }
  return read_made_pages(&stuck->database, first, n, pages, text);
}

static enum snapshot_pace hurry(void *ctx, uint32_t pages) {
  struct stuck *stuck = ctx;
  pthread_mutex_lock(&stuck->mutex);
  stuck->is_over = pages + 64 >= stuck->database.meta.pages;
  pthread_cond_broadcast(&stuck->condition);
  pthread_mutex_unlock(&stuck->mutex);
  return SNAPSHOT_HURRY;
}

static void a_snapshot_in_a_hurry_does_not_wait_for_helpers_that_are_stuck(void **state) {
  (void)state;
  struct stuck stuck = {.database = database_make(4096, 3000, 9, MIXED), .caller = pthread_self()};
  const struct snapshot_input input = {.read = read_stuck, .pace = hurry, .ctx = &stuck};
  struct snapshot_meta meta = meta_of(&stuck.database);
  struct snapshot_writer *writer;
  char folder[128], text[SNAPSHOT_TEXT_MAX], path[OS_PATH_MAX];
  pthread_mutex_init(&stuck.mutex, NULL);
  pthread_cond_init(&stuck.condition, NULL);
  make_folder(folder);
  assert_int_equal(snapshot_writer_open(os_real(), folder, &meta, &writer, text), 0);
  assert_int_equal(snapshot_writer_write(writer, &input), 0);
  assert_int_equal(snapshot_writer_publish(writer), 0);
  snapshot_writer_close(writer);
  snapshot_path(folder, 9, path);
  assert_int_equal(read_it(os_real(), path, &stuck.database, text), 0);
  remove_folder(folder, path);
  pthread_cond_destroy(&stuck.condition);
  pthread_mutex_destroy(&stuck.mutex);
}

static void writing_stops_when_the_pace_says_so_and_leaves_nothing_behind(void **state) {
  (void)state;
  struct paced paced = {.database = database_make(4096, 3000, 9, MIXED), .fails_from = UINT32_MAX};
  char folder[128], text[SNAPSHOT_TEXT_MAX];
  make_folder(folder);
  paced.then = SNAPSHOT_STOP;
  for (paced.at = 0; paced.at < 3000; paced.at += 700)
    assert_int_equal(write_paced(os_real(), folder, &paced, text), -ECANCELED);
  remove_folder(folder, NULL);
}

static void a_page_that_cannot_be_read_ends_the_snapshot_with_its_sentence(void **state) {
  (void)state;
  struct paced paced = {.database = database_make(4096, 3000, 9, MIXED), .at = UINT32_MAX, .fails_from = 1};
  char folder[128], text[SNAPSHOT_TEXT_MAX], expected[64];
  make_folder(folder);
  for (; paced.fails_from <= 3000; paced.fails_from += 999) {
    snprintf(expected, sizeof expected, "page %u cannot be read", paced.fails_from);
    assert_int_equal(write_paced(os_real(), folder, &paced, text), -EIO);
    assert_string_equal(text, expected);
  }
  remove_folder(folder, NULL);
}

/* ---- lz4 alone ---- */

/* All frames of the file, as any reader of the LZ4 frame format does. */
static uint8_t *decode_all(const uint8_t *bytes, size_t size, size_t *decoded, size_t room) {
  LZ4F_dctx *lz4;
  uint8_t *out = malloc(room + 1);
  size_t at = 0, hint = 1;
  assert_non_null(out);
  assert_false(LZ4F_isError(LZ4F_createDecompressionContext(&lz4, LZ4F_VERSION)));
  *decoded = 0;
  while (at < size) {
    size_t n = size - at, m = room + 1 - *decoded;
    hint = LZ4F_decompress(lz4, out + *decoded, &m, bytes + at, &n, NULL);
    assert_false(LZ4F_isError(hint));
    assert_true(n + m > 0);
    at += n;
    *decoded += m;
  }
  assert_int_equal(hint, 0);
  LZ4F_freeDecompressionContext(lz4);
  return out;
}

static void run_lz4(const char *from, const char *to) {
  int status;
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    execl("/usr/bin/lz4", "lz4", "-d", "-q", "-f", from, to, (char *)NULL);
    _exit(127);
  }
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void make_sqlite_file(const char *path) {
  sqlite3 *db;
  assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
  assert_int_equal(sqlite3_exec(db,
                                "CREATE TABLE t(a, b);"
                                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
                                "INSERT INTO t SELECT i, hex(randomblob(20)) FROM n; CREATE INDEX u ON t(b)",
                                NULL, NULL, NULL),
                   SQLITE_OK);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void check_sqlite_file(const char *path) {
  sqlite3 *db;
  sqlite3_stmt *statement;
  assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
  assert_int_equal(sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &statement, NULL), SQLITE_OK);
  assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
  assert_string_equal(sqlite3_column_text(statement, 0), "ok");
  sqlite3_finalize(statement);
  assert_int_equal(sqlite3_prepare_v2(db, "SELECT count(*), sum(a) FROM t", -1, &statement, NULL), SQLITE_OK);
  assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
  assert_int_equal(sqlite3_column_int64(statement, 0), 20000);
  assert_int_equal(sqlite3_column_int64(statement, 1), INT64_C(200010000));
  sqlite3_finalize(statement);
  sqlite3_close(db);
}

static int read_bytes(void *ctx, uint32_t first, uint32_t n, uint8_t *pages, char *text) {
  text[0] = 0;
  memcpy(pages, (const uint8_t *)ctx + (size_t)(first - 1) * 4096, (size_t)n * 4096);
  return 0;
}

static void snapshot_of_file(const char *folder, uint8_t *bytes, uint64_t size) {
  struct snapshot_meta meta = {.index = 7, .term = 1, .page_size = 4096, .pages = (uint32_t)(size / 4096)};
  struct snapshot_writer *writer;
  char text[SNAPSHOT_TEXT_MAX];
  for (uint32_t i = 0; i < meta.pages; i++) meta.checksum ^= vfs_page_hash(i + 1, bytes + (size_t)i * 4096, 4096);
  assert_int_equal(snapshot_writer_open(os_real(), folder, &meta, &writer, text), 0);
  const struct snapshot_input input = {.read = read_bytes, .pace = no_hurry, .ctx = bytes};
  assert_int_equal(snapshot_writer_write(writer, &input), 0);
  assert_int_equal(snapshot_writer_publish(writer), 0);
  snapshot_writer_close(writer);
}

static void lz4_alone_makes_the_very_database_file_of_a_snapshot(void **state) {
  (void)state;
  char folder[128], database[160], out[160], path[OS_PATH_MAX];
  uint64_t size, stored_size, out_size;
  size_t decoded;
  make_folder(folder);
  snprintf(database, sizeof database, "%s/a.db", folder);
  snprintf(out, sizeof out, "%s/out.db", folder);
  make_sqlite_file(database);
  uint8_t *bytes = file_get(os_real(), database, &size);
  snapshot_of_file(folder, bytes, size);
  snapshot_path(folder, 7, path);
  uint8_t *stored = file_get(os_real(), path, &stored_size);
  assert_true(stored_size < size);
  uint8_t *content = decode_all(stored, stored_size, &decoded, size);
  assert_int_equal(decoded, size);
  assert_memory_equal(content, bytes, size);
  if (access("/usr/bin/lz4", X_OK) == 0) {
    run_lz4(path, out);
    free(content);
    content = file_get(os_real(), out, &out_size);
    assert_int_equal(out_size, size);
    assert_memory_equal(content, bytes, size);
  } else {
    file_put(os_real(), out, content, size);
  }
  check_sqlite_file(out);
  free(content);
  free(stored);
  free(bytes);
  assert_int_equal(unlink(database), 0);
  assert_int_equal(unlink(out), 0);
  remove_folder(folder, path);
}

/* ---- Damage ---- */

#define DAMAGED FOLDER "/damaged.lz4"

static void is_refused(struct os *os, const struct database *database) {
  char text[SNAPSHOT_TEXT_MAX];
  int error = read_it(os, DAMAGED, database, text);
  assert_true(error == -EILSEQ);
  says_where(text, DAMAGED);
}

/* One full compressed block and a last one that is raw (`content` RANDOM) or compressed. */
static struct database small_file(struct sim_disk *disk, bool raw, uint64_t *size) {
  uint32_t full = BLOCK / 512;
  struct database database = database_make(512, raw ? 3 : full + 5, 9, raw ? RANDOM : NEARLY_ZERO);
  char path[OS_PATH_MAX];
  write_or_fail(sim_disk_os(disk), FOLDER, &database);
  snapshot_path(FOLDER, 9, path);
  assert_int_equal(os_rename(sim_disk_os(disk), path, DAMAGED), 0);
  assert_non_null(sim_disk_bytes(disk, DAMAGED, size));
  return database;
}

static void a_flipped_bit_anywhere_is_refused_with_file_and_offset(void **state) {
  (void)state;
  for (int raw = 0; raw < 2; raw++) {
    struct sim_disk *disk = disk_make(1);
    uint64_t size;
    struct database database = small_file(disk, raw, &size);
    for (uint64_t offset = 0; offset < size; offset++) {
      const uint8_t bits[] = {(uint8_t)(1u << offset % 8), 0x80, 0xff};
      for (size_t i = 0; i < sizeof bits; i++) {
        sim_disk_flip(disk, DAMAGED, offset, bits[i]);
        is_refused(sim_disk_os(disk), &database);
        sim_disk_flip(disk, DAMAGED, offset, bits[i]);
      }
    }
    read_or_fail(sim_disk_os(disk), DAMAGED, &database);
    sim_disk_free(disk);
  }
}

static void every_bit_of_the_frames_and_block_headers_is_held_against_what_is_written(void **state) {
  (void)state;
  for (int raw = 0; raw < 2; raw++) {
    struct sim_disk *disk = disk_make(1);
    uint64_t size, head = 80 + CONFIGURATION_SIZE + 3 * 16 + 8;
    struct database database = small_file(disk, raw, &size);
    for (uint64_t offset = head; offset < head + 19; offset++) {
      for (unsigned bits = 1; bits < 256; bits++) {
        sim_disk_flip(disk, DAMAGED, offset, (uint8_t)bits);
        is_refused(sim_disk_os(disk), &database);
        sim_disk_flip(disk, DAMAGED, offset, (uint8_t)bits);
      }
    }
    sim_disk_free(disk);
  }
}

static void a_file_that_is_too_short_or_too_long_is_refused(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct os *os = sim_disk_os(disk);
  uint64_t size;
  struct database database = small_file(disk, true, &size);
  uint8_t *bytes = file_get(os, DAMAGED, &size);
  for (uint64_t cut = 0; cut < size; cut++) {
    file_put(os, DAMAGED, bytes, cut);
    is_refused(os, &database);
  }
  bytes[size] = 0;
  file_put(os, DAMAGED, bytes, size + 1);
  is_refused(os, &database);
  free(bytes);
  sim_disk_free(disk);
}

static void blocks_that_changed_places_or_are_missing_are_refused(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct os *os = sim_disk_os(disk);
  struct database database = database_make(4096, 3 * BLOCK / 4096, 9, RANDOM);
  static uint8_t page[PAGE_MAX];
  char path[OS_PATH_MAX], text[SNAPSHOT_TEXT_MAX];
  uint64_t size;
  struct snapshot_reader *reader;
  struct snapshot_meta meta;
  int result;
  write_or_fail(os, FOLDER, &database);
  snapshot_path(FOLDER, 9, path);
  uint8_t *bytes = file_get(os, path, &size);
  const size_t stored = BLOCK + 8;
  uint8_t *first = bytes + size - 8 - 3 * stored, *kept = malloc(stored);
  assert_non_null(kept);
  memcpy(kept, first, stored);
  memcpy(first, first + stored, stored);
  memcpy(first + stored, kept, stored);
  file_put(os, path, bytes, size);
  assert_int_equal(snapshot_reader_open(os, path, &reader, &meta, text), 0);
  do result = snapshot_reader_next(reader, page);
  while (result == 1);
  assert_int_equal(result, -EILSEQ);
  snapshot_reader_close(reader);
  memmove(first, first + stored, 2 * stored + 8);
  file_put(os, path, bytes, size - stored);
  assert_int_equal(snapshot_reader_open(os, path, &reader, &meta, text), 0);
  do result = snapshot_reader_next(reader, page);
  while (result == 1);
  assert_int_equal(result, -EILSEQ);
  snapshot_reader_close(reader);
  free(kept);
  free(bytes);
  sim_disk_free(disk);
}

static void pages_other_than_the_rolling_checksum_says_are_refused_at_the_end(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  uint64_t size, head = 80 + CONFIGURATION_SIZE + 3 * 16;
  struct database database = small_file(disk, false, &size);
  uint8_t *bytes = file_get(sim_disk_os(disk), DAMAGED, &size);
  database.meta.checksum ^= 4;
  le64_put(bytes + 56, database.meta.checksum);
  le64_put(bytes + head, XXH64(bytes, head, 0));
  file_put(sim_disk_os(disk), DAMAGED, bytes, size);
  is_refused(sim_disk_os(disk), &database);
  free(bytes);
  sim_disk_free(disk);
}

static void flip(struct os *os, const char *path, uint64_t offset) {
  struct os_file *file;
  uint8_t byte;
  assert_int_equal(os_open(os, path, OS_OPEN_READ | OS_OPEN_WRITE, &file), 0);
  assert_int_equal(os_read(file, &byte, 1, offset), 1);
  byte ^= 0x10;
  assert_int_equal(os_write(file, &byte, 1, offset), 0);
  os_close(file);
}

static void a_damaged_head_is_replaced_by_its_copy(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct os *os = sim_disk_os(disk);
  struct database older = database_make(4096, 10, 5, MIXED), database = database_make(4096, 100, 9, MIXED);
  struct snapshot_meta meta = meta_of(&database);
  struct snapshot_reader *reader;
  char text[SNAPSHOT_TEXT_MAX], path[OS_PATH_MAX], older_path[OS_PATH_MAX];
  uint64_t size;
  write_or_fail(os, FOLDER, &older);
  write_or_fail(os, FOLDER, &database);
  snapshot_path(FOLDER, 5, older_path);
  snapshot_path(FOLDER, 9, path);
  uint8_t *bytes = file_get(os, path, &size), *copy = file_get(os, FOLDER "/snapshot.head", &size);
  assert_memory_equal(copy, bytes, size);
  for (uint64_t at = 0; at < size; at++) {
    flip(os, path, at);
    read_or_fail(os, path, &database);
    assert_int_equal(snapshot_reader_open(os, path, &reader, &meta, text), 0);
    assert_true(snapshot_reader_is_mended(reader));
    snapshot_reader_close(reader);
    flip(os, path, at);
  }
  assert_int_equal(snapshot_reader_open(os, path, &reader, &meta, text), 0);
  assert_false(snapshot_reader_is_mended(reader));
  snapshot_reader_close(reader);
  flip(os, older_path, 20); /* the copy is not of this one */
  assert_int_equal(snapshot_reader_open(os, older_path, &reader, &meta, text), -EILSEQ);
  flip(os, path, 30);
  flip(os, FOLDER "/snapshot.head", 30); /* it is damaged, too */
  assert_int_equal(snapshot_reader_open(os, path, &reader, &meta, text), -EILSEQ);
  says_where(text, path);
  free(bytes);
  free(copy);
  sim_disk_free(disk);
}

static void a_later_version_is_told_from_damage(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  uint64_t size, head = 80 + CONFIGURATION_SIZE + 3 * 16;
  struct database database = small_file(disk, false, &size);
  char text[SNAPSHOT_TEXT_MAX];
  uint8_t *bytes = file_get(sim_disk_os(disk), DAMAGED, &size);
  le32_put(bytes + 16, 2);
  le64_put(bytes + head, XXH64(bytes, head, 0));
  file_put(sim_disk_os(disk), DAMAGED, bytes, size);
  assert_int_equal(read_it(sim_disk_os(disk), DAMAGED, &database, text), -EPROTO);
  says_where(text, DAMAGED);
  free(bytes);
  sim_disk_free(disk);
}

static void random_damage_is_refused(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  uint64_t random = 5, size;
  struct database database = small_file(disk, false, &size);
  for (int round = 0; round < 1500; round++) {
    uint64_t at = draw(&random) % size, n = 1 + draw(&random) % 40;
    uint8_t bits[40];
    for (uint64_t i = 0; i < n; i++) bits[i] = (uint8_t)(draw(&random) | (i == 0));
    for (uint64_t i = 0; i < n && at + i < size; i++) sim_disk_flip(disk, DAMAGED, at + i, bits[i]);
    is_refused(sim_disk_os(disk), &database);
    for (uint64_t i = 0; i < n && at + i < size; i++) sim_disk_flip(disk, DAMAGED, at + i, bits[i]);
  }
  sim_disk_free(disk);
}

static void a_read_error_is_told_as_such_and_not_as_damage(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  uint64_t size;
  struct database database = small_file(disk, false, &size);
  char text[SNAPSHOT_TEXT_MAX];
  for (uint64_t nth = 1; nth <= 3; nth++) {
    sim_disk_fail_nth(disk, SIM_DISK_READ, nth, -EIO);
    assert_int_equal(read_it(sim_disk_os(disk), DAMAGED, &database, text), -EIO);
    says_where(text, DAMAGED);
  }
  sim_disk_fail_nth(disk, SIM_DISK_READ, 0, 0);
  assert_int_equal(read_it(sim_disk_os(disk), FOLDER "/absent", &database, text), -ENOENT);
  assert_non_null(strstr(text, "/absent"));
  sim_disk_free(disk);
}

/* ---- Full and failing disks ---- */

static void a_full_disk_is_told_and_leaves_nothing_behind(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct os *os = sim_disk_os(disk);
  struct database first = database_make(4096, 10, 5, MIXED), database = database_make(4096, 700, 9, MIXED);
  char text[SNAPSHOT_TEXT_MAX], path[OS_PATH_MAX];
  uint64_t index, room, size;
  write_or_fail(os, FOLDER, &first);
  uint64_t used = sim_disk_used(disk);
  write_or_fail(os, FOLDER, &database);
  snapshot_path(FOLDER, 9, path);
  assert_non_null(sim_disk_bytes(disk, path, &size));
  assert_int_equal(os_remove(os, path), 0);
  assert_int_equal(os_sync_directory(os, FOLDER), 0);
  for (room = 0; room < size; room += room < 500 ? 50 : size / 20) {
    sim_disk_set_capacity(disk, used + room);
    assert_int_equal(write_it(os, FOLDER, &database, true, text), -ENOSPC);
    says_where(text, FOLDER "/snapshot.new");
    assert_non_null(strstr(text, "Make room"));
    assert_int_equal(os_sync_directory(os, FOLDER), 0); /* the room is free when the removal is durable */
    assert_int_equal(sim_disk_used(disk), used);
  }
  assert_int_equal(snapshot_find(os, FOLDER, path, &index), 0);
  assert_int_equal(index, 5);
  sim_disk_set_capacity(disk, used + size + 4096); /* and the copy of its head */
  write_or_fail(os, FOLDER, &database);
  snapshot_path(FOLDER, 9, path);
  read_or_fail(os, path, &database);
  sim_disk_free(disk);
}

static void every_call_that_fails_is_told_with_a_sentence(void **state) {
  (void)state;
  struct database database = database_make(4096, 700, 9, MIXED);
  char text[SNAPSHOT_TEXT_MAX], path[OS_PATH_MAX];
  snapshot_path(FOLDER, 9, path);
  for (int call = SIM_DISK_WRITE; call < SIM_DISK_CALLS; call++) {
    int failures = 0;
    for (uint64_t nth = 1;; nth++) {
      struct sim_disk *disk = disk_make(nth);
      sim_disk_fail_nth(disk, (enum sim_disk_call)call, nth, -EIO);
      int error = write_it(sim_disk_os(disk), FOLDER, &database, true, text);
      if (error) {
        assert_int_equal(error, -EIO);
        says_where(text, FOLDER "/snapshot.new");
        assert_false(exists(disk, FOLDER "/snapshot.new"));
        if (call != SIM_DISK_SYNC_DIRECTORY) assert_false(exists(disk, path));
        failures++;
      }
      sim_disk_free(disk);
      if (error == 0) break;
    }
    assert_true(failures >= 1);
  }
}

/* ---- Power loss while writing ---- */

static void is_found(struct sim_disk *disk, uint64_t expected, const struct database *database) {
  char path[OS_PATH_MAX];
  uint64_t index;
  assert_int_equal(snapshot_find(sim_disk_os(disk), FOLDER, path, &index), 0);
  assert_int_equal(index, expected);
  assert_false(exists(disk, FOLDER "/snapshot.new"));
  if (index) read_or_fail(sim_disk_os(disk), path, database);
}

/* Crashes in the nth call of writing `after` (and removing the one before it); false: it did not get so far. */
static bool crash_in_writing(uint64_t nth, uint64_t seed, bool publish) {
  struct sim_disk *disk = disk_make(seed * 1000 + nth);
  struct os *os = sim_disk_os(disk);
  struct database before = database_make(1024, 30, 5, MIXED), after = database_make(4096, 700, 9, MIXED);
  char text[SNAPSHOT_TEXT_MAX], path[OS_PATH_MAX];
  uint64_t index;
  write_or_fail(os, FOLDER, &before);
  sim_disk_crash_at(disk, nth, SIM_DISK_POWER_LOSS);
  int error = write_it(os, FOLDER, &after, publish, text);
  bool published = error == 0 && publish;
  if (published) snapshot_remove_older(os, FOLDER, 9);
  bool crashed = sim_disk_is_down(disk);
  if (!crashed) sim_disk_crash(disk, SIM_DISK_POWER_LOSS);
  sim_disk_restart(disk);
  assert_int_equal(snapshot_find(os, FOLDER, path, &index), 0);
  if (published) assert_int_equal(index, 9);
  if (!publish) assert_int_equal(index, 5);
  is_found(disk, index, index == 9 ? &after : &before);
  write_or_fail(os, FOLDER, &after);
  assert_int_equal(snapshot_remove_older(os, FOLDER, 9), 0);
  sim_disk_crash(disk, SIM_DISK_POWER_LOSS);
  sim_disk_restart(disk);
  is_found(disk, 9, &after);
  snapshot_path(FOLDER, 5, path);
  assert_false(exists(disk, path));
  sim_disk_free(disk);
  return crashed;
}

static void power_loss_at_any_call_leaves_the_last_snapshot_or_the_next_one_whole(void **state) {
  (void)state;
  for (uint64_t seed = 1; seed <= 12; seed++) {
    uint64_t nth = 1;
    while (crash_in_writing(nth, seed, true)) nth++;
    assert_true(nth > 7); /* make, head, pieces, sync, rename, sync of the folder, removal */
  }
}

static void before_publish_there_is_no_snapshot(void **state) {
  (void)state;
  for (uint64_t seed = 1; seed <= 12; seed++) {
    uint64_t nth = 1;
    while (crash_in_writing(nth, seed, false)) nth++;
  }
}

/* Between the rename and the sync of the folder: a later process finds it, and has the log compacted on the strength of it. */
static bool find_after_a_kill(uint64_t seed, uint64_t nth) {
  struct sim_disk *disk = disk_make(seed);
  struct database database = database_make(1024, 30, 5, MIXED);
  char text[SNAPSHOT_TEXT_MAX], path[OS_PATH_MAX];
  sim_disk_fail_nth(disk, SIM_DISK_SYNC_DIRECTORY, nth, -EIO);
  write_it(sim_disk_os(disk), FOLDER, &database, true, text);
  sim_disk_crash(disk, SIM_DISK_KILL);
  sim_disk_restart(disk);
  snapshot_path(FOLDER, 5, path);
  bool is_there = exists(disk, path);
  is_found(disk, is_there ? 5 : 0, &database);
  sim_disk_crash(disk, SIM_DISK_POWER_LOSS);
  sim_disk_restart(disk);
  is_found(disk, is_there ? 5 : 0, &database);
  sim_disk_free(disk);
  return is_there;
}

static void what_was_found_after_a_kill_outlives_a_power_loss(void **state) {
  (void)state;
  for (uint64_t seed = 1; seed <= 12; seed++) {
    find_after_a_kill(seed, 1);
    assert_true(find_after_a_kill(seed, 2)); /* of the rename */
  }
}

/* ---- The folder ---- */

static void only_names_of_snapshots_count(void **state) {
  (void)state;
  static const char *const others[] = {
      "snapshot-12.lz4",
      "snapshot-00000000000000000012.lz4.old",
      "snapshot-0000000000000000001x.lz4",
      "snapshot-00000000000000000000.lz4",
      "snapshot-99999999999999999999.lz4", /* beyond 64 bits */
      "snapshot-00000000000000000012.lz5",
      "Snapshot-00000000000000000012.lz4",
      "snapshot.part",
  };
  struct sim_disk *disk = disk_make(1);
  struct os *os = sim_disk_os(disk);
  char path[OS_PATH_MAX], name[OS_PATH_MAX];
  uint64_t index;
  assert_int_equal(snapshot_find(os, FOLDER, path, &index), 0);
  assert_int_equal(index, 0);
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
    snprintf(name, sizeof name, FOLDER "/%s", others[i]);
    file_put(os, name, "x", 1);
  }
  file_put(os, FOLDER "/snapshot.new", "x", 1);
  assert_int_equal(snapshot_find(os, FOLDER, path, &index), 0);
  assert_int_equal(index, 0);
  assert_string_equal(path, "");
  assert_false(exists(disk, FOLDER "/snapshot.new"));
  const uint64_t indexes[] = {3, 18, 7};
  for (size_t i = 0; i < 3; i++) {
    snapshot_path(FOLDER, indexes[i], name);
    file_put(os, name, "x", 1);
  }
  assert_int_equal(snapshot_find(os, FOLDER, path, &index), 0);
  assert_int_equal(index, 18);
  assert_string_equal(path, FOLDER "/snapshot-00000000000000000018.lz4");
  assert_int_equal(snapshot_remove_older(os, FOLDER, 7), 0);
  snapshot_path(FOLDER, 3, name);
  assert_false(exists(disk, name));
  snapshot_path(FOLDER, 7, name);
  assert_true(exists(disk, name));
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
    snprintf(name, sizeof name, FOLDER "/%s", others[i]);
    assert_true(exists(disk, name));
  }
  sim_disk_free(disk);
}

static void a_folder_with_too_long_a_path_is_refused(void **state) {
  (void)state;
  static char folder[OS_PATH_MAX];
  char path[OS_PATH_MAX], text[SNAPSHOT_TEXT_MAX];
  struct sim_disk *disk = disk_make(1);
  struct database database = database_make(4096, 1, 9, MIXED);
  struct snapshot_receiver *receiver;
  uint64_t value;
  memset(folder, 'a', sizeof folder - 8);
  assert_int_equal(write_it(sim_disk_os(disk), folder, &database, true, text), -ENAMETOOLONG);
  assert_int_equal(snapshot_find(sim_disk_os(disk), folder, path, &value), -ENAMETOOLONG);
  assert_int_equal(snapshot_receiver_open(sim_disk_os(disk), folder, 9, 3, 100, &receiver, &value, text),
                   -ENAMETOOLONG);
  snapshot_path(folder, 9, path);
  assert_string_equal(path, "");
  sim_disk_free(disk);
}

/* ---- Receiving ---- */

#define PART FOLDER "/snapshot.part"
#define STATE FOLDER "/snapshot.part.state"

struct sent {
  struct database database;
  uint8_t *bytes;
  uint64_t size;
};

/* What a leader has: the bytes of a snapshot. */
static struct sent sent_make(uint64_t index, uint32_t pages) {
  struct sim_disk *disk = disk_make(1);
  struct sent sent = {.database = database_make(4096, pages, index, MIXED)};
  char path[OS_PATH_MAX];
  write_or_fail(sim_disk_os(disk), FOLDER, &sent.database);
  snapshot_path(FOLDER, index, path);
  sent.bytes = file_get(sim_disk_os(disk), path, &sent.size);
  sim_disk_free(disk);
  return sent;
}

static struct snapshot_receiver *receiver_make(struct os *os, const struct sent *sent, uint64_t *offset) {
  struct snapshot_receiver *receiver;
  char text[SNAPSHOT_TEXT_MAX];
  int error = snapshot_receiver_open(os, FOLDER, sent->database.meta.index, 3, sent->size, &receiver, offset, text);
  if (error) print_error("%s\n", text);
  assert_int_equal(error, 0);
  return receiver;
}

/* Sends from `from` to `to` in chunks. */
static int send_range(struct snapshot_receiver *receiver, const struct sent *sent, uint64_t from, uint64_t to,
                      uint64_t chunk) {
  int error = 0;
  for (uint64_t n; from < to && error == 0; from += n) {
    n = to - from < chunk ? to - from : chunk;
    error = snapshot_receiver_add(receiver, from, sent->bytes + from, n);
  }
  return error;
}

static void finish_or_fail(struct sim_disk *disk, struct snapshot_receiver *receiver, const struct sent *sent) {
  char path[OS_PATH_MAX], expected[OS_PATH_MAX], text[SNAPSHOT_TEXT_MAX];
  int error = snapshot_receiver_finish(receiver, path, text);
  if (error) print_error("%s\n", text);
  assert_int_equal(error, 0);
  snapshot_path(FOLDER, sent->database.meta.index, expected);
  assert_string_equal(path, expected);
  snapshot_receiver_close(receiver);
  read_or_fail(sim_disk_os(disk), path, &sent->database);
  assert_false(exists(disk, PART));
  assert_false(exists(disk, STATE));
}

static void chunks_become_a_snapshot_and_duplicates_and_gaps_are_refused(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct sent sent = sent_make(9, 300);
  uint64_t offset;
  char path[OS_PATH_MAX], text[SNAPSHOT_TEXT_MAX];
  struct snapshot_receiver *receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(offset, 0);
  assert_int_equal(snapshot_receiver_add(receiver, 1, sent.bytes + 1, 100), -EINVAL);
  assert_int_equal(send_range(receiver, &sent, 0, 5000, 1000), 0);
  assert_int_equal(snapshot_receiver_add(receiver, 4000, sent.bytes + 4000, 1000), -EINVAL);
  assert_int_equal(snapshot_receiver_add(receiver, 4500, sent.bytes + 4500, 1000), -EINVAL);
  assert_int_equal(snapshot_receiver_add(receiver, 6000, sent.bytes + 6000, 1000), -EINVAL);
  says_where(snapshot_receiver_error(receiver), PART);
  assert_int_equal(snapshot_receiver_add(receiver, 5000, sent.bytes + 5000, sent.size - 4999), -EINVAL);
  assert_int_equal(snapshot_receiver_add(receiver, 5000, sent.bytes + 5000, SIZE_MAX), -EINVAL);
  assert_int_equal(snapshot_receiver_finish(receiver, path, text), -EINVAL);
  assert_non_null(strstr(text, "not complete"));
  assert_int_equal(send_range(receiver, &sent, 5000, sent.size, 7777), 0);
  assert_int_equal(snapshot_receiver_add(receiver, sent.size, sent.bytes, 1), -EINVAL);
  finish_or_fail(disk, receiver, &sent);
  free(sent.bytes);
  sim_disk_free(disk);
}

static void a_kept_part_is_gone_on_with(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct sent sent = sent_make(9, 300);
  uint64_t offset;
  struct snapshot_receiver *receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(send_range(receiver, &sent, 0, 12345, 1000), 0);
  snapshot_receiver_close(receiver);
  sim_disk_crash(disk, SIM_DISK_POWER_LOSS);
  sim_disk_restart(disk);
  receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(offset, 12345);
  assert_int_equal(send_range(receiver, &sent, offset, sent.size, 65536), 0);
  snapshot_receiver_close(receiver);
  receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(offset, sent.size);
  finish_or_fail(disk, receiver, &sent);
  free(sent.bytes);
  sim_disk_free(disk);
}

static void another_snapshot_replaces_the_part(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct sent sent = sent_make(9, 300), other = sent_make(12, 200);
  uint64_t offset;
  struct snapshot_receiver *receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(send_range(receiver, &sent, 0, sent.size / 2, 1000), 0);
  snapshot_receiver_close(receiver);
  receiver = receiver_make(sim_disk_os(disk), &other, &offset);
  assert_int_equal(offset, 0);
  assert_int_equal(send_range(receiver, &other, 0, 5000, 1000), 0);
  snapshot_receiver_close(receiver);
  receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(offset, 0);
  snapshot_receiver_close(receiver);
  receiver = receiver_make(sim_disk_os(disk), &other, &offset);
  assert_int_equal(offset, 0);
  assert_int_equal(send_range(receiver, &other, 0, other.size, 10000), 0);
  finish_or_fail(disk, receiver, &other);
  free(sent.bytes);
  free(other.bytes);
  sim_disk_free(disk);
}

static void a_part_is_never_mixed_with_another_one_begun_and_killed_since(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct sent sent = sent_make(9, 300), other = sent_make(12, 200);
  uint64_t offset;
  struct snapshot_receiver *receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(send_range(receiver, &sent, 0, 5000, 1000), 0);
  snapshot_receiver_close(receiver);
  receiver = receiver_make(sim_disk_os(disk), &other, &offset);
  assert_int_equal(send_range(receiver, &other, 0, 9000, 1000), 0);
  sim_disk_crash(disk, SIM_DISK_KILL);
  snapshot_receiver_close(receiver);
  sim_disk_restart(disk);
  receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(offset, 0);
  assert_int_equal(send_range(receiver, &sent, 0, sent.size, 10000), 0);
  finish_or_fail(disk, receiver, &sent);
  free(sent.bytes);
  free(other.bytes);
  sim_disk_free(disk);
}

static void a_size_or_term_that_differs_is_another_snapshot(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct os *os = sim_disk_os(disk);
  struct sent sent = sent_make(9, 300);
  struct snapshot_receiver *receiver = NULL;
  char text[SNAPSHOT_TEXT_MAX];
  uint64_t offset;
  for (int i = 0; i < 2; i++) {
    receiver = receiver_make(os, &sent, &offset);
    assert_int_equal(offset, 0);
    assert_int_equal(send_range(receiver, &sent, 0, 5000, 1000), 0);
    snapshot_receiver_close(receiver);
    assert_int_equal(
        snapshot_receiver_open(os, FOLDER, 9, i ? 4 : 3, i ? sent.size : sent.size + 1, &receiver, &offset, text), 0);
    assert_int_equal(offset, 0);
    snapshot_receiver_close(receiver);
  }
  assert_int_equal(snapshot_receiver_open(os, FOLDER, 9, 3, 0, &receiver, &offset, text), -EINVAL);
  assert_null(receiver);
  assert_int_equal(snapshot_receiver_open(os, FOLDER, 9, 3, UINT64_MAX, &receiver, &offset, text), -EINVAL);
  assert_non_null(strstr(text, "index 9"));
  free(sent.bytes);
  sim_disk_free(disk);
}

/* One life: from what is durable on, closing in between, until it is finished (true) or the power fails. */
static bool receive_until_crash(struct sim_disk *disk, const struct sent *sent, uint64_t *random) {
  char path[OS_PATH_MAX], text[SNAPSHOT_TEXT_MAX];
  struct snapshot_receiver *receiver;
  uint64_t offset, size;
  for (;;) {
    if (snapshot_receiver_open(sim_disk_os(disk), FOLDER, 9, 3, sent->size, &receiver, &offset, text) != 0) {
      assert_true(sim_disk_is_down(disk));
      return false;
    }
    const uint8_t *bytes = sim_disk_bytes(disk, PART, &size);
    assert_int_equal(size, offset);
    assert_memory_equal(bytes, sent->bytes, offset);
    uint64_t to = offset + 1 + draw(random) % (sent->size / 3);
    if (to > sent->size) to = sent->size;
    int error = send_range(receiver, sent, offset, to, 1 + draw(random) % 9000);
    if (error == 0 && to == sent->size) {
      error = snapshot_receiver_finish(receiver, path, text);
      snapshot_receiver_close(receiver);
      if (error) assert_true(sim_disk_is_down(disk));
      return error == 0;
    }
    snapshot_receiver_close(receiver);
    if (error || sim_disk_is_down(disk)) return false;
  }
}

static void power_loss_at_any_call_of_receiving_costs_only_what_was_not_durable(void **state) {
  (void)state;
  struct sent sent = sent_make(9, 40);
  char path[OS_PATH_MAX];
  uint64_t index, resumed = 0;
  snapshot_path(FOLDER, 9, path);
  for (uint64_t seed = 1; seed <= 6; seed++) {
    for (uint64_t nth = 1;; nth++) {
      struct sim_disk *disk = disk_make(seed * 10000 + nth);
      uint64_t random = seed, crashes = 0;
      sim_disk_crash_at(disk, nth, SIM_DISK_POWER_LOSS);
      while (!receive_until_crash(disk, &sent, &random)) {
        sim_disk_restart(disk);
        assert_int_equal(snapshot_find(sim_disk_os(disk), FOLDER, path, &index), 0);
        if (index) read_or_fail(sim_disk_os(disk), path, &sent.database);
        if (exists(disk, STATE)) resumed++;
        assert_true(crashes++ < 3);
        if (crashes < 3) sim_disk_crash_at(disk, 1 + draw(&random) % 20, SIM_DISK_POWER_LOSS);
      }
      bool done = crashes == 0;
      if (!sim_disk_is_down(disk)) sim_disk_crash(disk, SIM_DISK_POWER_LOSS);
      sim_disk_restart(disk);
      is_found(disk, 9, &sent.database);
      sim_disk_free(disk);
      if (done) break;
    }
  }
  assert_true(resumed > 0);
  free(sent.bytes);
}

static void a_long_part_is_made_durable_on_the_way(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(3);
  struct os *os = sim_disk_os(disk);
  const uint64_t size = 40u << 20, chunk = 1u << 20;
  uint8_t *bytes = test_calloc(1, chunk);
  struct snapshot_receiver *receiver;
  char text[SNAPSHOT_TEXT_MAX];
  uint64_t offset;
  for (uint64_t i = 0; i < chunk; i++) bytes[i] = (uint8_t)(i * 31 + 1);
  assert_int_equal(snapshot_receiver_open(os, FOLDER, 9, 3, size, &receiver, &offset, text), 0);
  for (; offset < 35u << 20; offset += chunk)
    assert_int_equal(snapshot_receiver_add(receiver, offset, bytes, chunk), 0);
  sim_disk_crash(disk, SIM_DISK_POWER_LOSS);
  snapshot_receiver_close(receiver);
  sim_disk_restart(disk);
  assert_int_equal(snapshot_receiver_open(os, FOLDER, 9, 3, size, &receiver, &offset, text), 0);
  assert_true(offset >= 16u << 20);
  const uint8_t *part = sim_disk_bytes(disk, PART, &(uint64_t){0});
  for (uint64_t i = 0; i < offset; i += chunk) assert_memory_equal(part + i, bytes, chunk);
  snapshot_receiver_close(receiver);
  test_free(bytes);
  sim_disk_free(disk);
}

static void a_damaged_part_is_removed_and_begun_again(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct sent sent = sent_make(9, 300);
  char path[OS_PATH_MAX], text[SNAPSHOT_TEXT_MAX];
  uint64_t offset;
  for (uint64_t at = 0; at < sent.size; at += sent.size / 7) {
    struct snapshot_receiver *receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
    assert_int_equal(offset, 0);
    assert_int_equal(send_range(receiver, &sent, 0, sent.size, 65536), 0);
    sim_disk_flip(disk, PART, at, 0x10);
    assert_int_equal(snapshot_receiver_finish(receiver, path, text), -EILSEQ);
    says_where(text, PART);
    assert_false(exists(disk, PART));
    assert_int_equal(snapshot_receiver_add(receiver, 0, sent.bytes, 100), -EILSEQ);
    snapshot_receiver_close(receiver);
    assert_int_equal(snapshot_find(sim_disk_os(disk), FOLDER, path, &offset), 0);
    assert_int_equal(offset, 0);
  }
  struct snapshot_receiver *receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(send_range(receiver, &sent, 0, sent.size, 65536), 0);
  finish_or_fail(disk, receiver, &sent);
  free(sent.bytes);
  sim_disk_free(disk);
}

static void a_snapshot_other_than_the_one_announced_is_refused(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct sent sent = sent_make(9, 20);
  struct snapshot_receiver *receiver;
  char path[OS_PATH_MAX], text[SNAPSHOT_TEXT_MAX];
  uint64_t offset;
  assert_int_equal(snapshot_receiver_open(sim_disk_os(disk), FOLDER, 10, 3, sent.size, &receiver, &offset, text), 0);
  assert_int_equal(send_range(receiver, &sent, 0, sent.size, 65536), 0);
  assert_int_equal(snapshot_receiver_finish(receiver, path, text), -EILSEQ);
  says_where(text, PART);
  assert_non_null(strstr(text, "index 9"));
  assert_false(exists(disk, PART));
  snapshot_receiver_close(receiver);
  free(sent.bytes);
  sim_disk_free(disk);
}

static void a_part_whose_record_is_damaged_or_that_is_too_short_is_begun_again(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct os *os = sim_disk_os(disk);
  struct sent sent = sent_make(9, 300);
  uint64_t offset;
  for (int round = 0; round < 3; round++) {
    struct snapshot_receiver *receiver = receiver_make(os, &sent, &offset);
    assert_int_equal(offset, 0);
    assert_int_equal(send_range(receiver, &sent, 0, 5000, 1000), 0);
    snapshot_receiver_close(receiver);
    sim_disk_flip(disk, STATE, 40, 1); /* one copy of two: no harm */
    receiver = receiver_make(os, &sent, &offset);
    assert_int_equal(offset, 5000);
    snapshot_receiver_close(receiver);
    if (round == 0) file_put(os, PART, sent.bytes, 4999);
    if (round == 1) assert_int_equal(os_remove(os, PART), 0);
    if (round == 2) sim_disk_flip(disk, STATE, 40, 1);
    if (round == 2) sim_disk_flip(disk, STATE, 4096 + 40, 1);
  }
  struct snapshot_receiver *receiver = receiver_make(os, &sent, &offset);
  assert_int_equal(offset, 0);
  assert_int_equal(send_range(receiver, &sent, 0, sent.size, 65536), 0);
  finish_or_fail(disk, receiver, &sent);
  free(sent.bytes);
  sim_disk_free(disk);
}

static void a_chunk_that_finds_no_room_may_come_again(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct sent sent = sent_make(9, 300);
  uint64_t offset;
  struct snapshot_receiver *receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(send_range(receiver, &sent, 0, 10000, 5000), 0);
  sim_disk_set_capacity(disk, sim_disk_used(disk) + 700);
  assert_int_equal(snapshot_receiver_add(receiver, 10000, sent.bytes + 10000, 5000), -ENOSPC);
  says_where(snapshot_receiver_error(receiver), PART);
  assert_non_null(strstr(snapshot_receiver_error(receiver), "Make room"));
  sim_disk_set_capacity(disk, UINT64_MAX);
  assert_int_equal(send_range(receiver, &sent, 10000, sent.size, 5000), 0);
  finish_or_fail(disk, receiver, &sent);
  free(sent.bytes);
  sim_disk_free(disk);
}

static void after_a_failed_sync_only_what_was_durable_before_counts(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct sent sent = sent_make(9, 300);
  char path[OS_PATH_MAX], text[SNAPSHOT_TEXT_MAX];
  uint64_t offset;
  struct snapshot_receiver *receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(send_range(receiver, &sent, 0, 5000, 1000), 0);
  snapshot_receiver_close(receiver);
  receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(send_range(receiver, &sent, offset, sent.size, 1000), 0);
  sim_disk_fail_nth(disk, SIM_DISK_SYNC, 1, -EIO);
  assert_int_equal(snapshot_receiver_finish(receiver, path, text), -EIO);
  says_where(text, PART);
  assert_int_equal(snapshot_receiver_finish(receiver, path, text), -EIO);
  snapshot_receiver_close(receiver);
  receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(offset, 5000);
  assert_int_equal(send_range(receiver, &sent, offset, sent.size, 1000), 0);
  finish_or_fail(disk, receiver, &sent);
  sim_disk_crash(disk, SIM_DISK_POWER_LOSS);
  sim_disk_restart(disk);
  is_found(disk, 9, &sent.database);
  free(sent.bytes);
  sim_disk_free(disk);
}

static void a_part_that_nobody_needs_can_be_found_and_removed(void **state) {
  (void)state;
  struct sim_disk *disk = disk_make(1);
  struct sent sent = sent_make(9, 30);
  uint64_t offset, index;
  assert_int_equal(snapshot_find_part(sim_disk_os(disk), FOLDER, &index), 0);
  assert_int_equal(index, 0);
  assert_int_equal(snapshot_remove_part(sim_disk_os(disk), FOLDER), 0);
  struct snapshot_receiver *receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(send_range(receiver, &sent, 0, 5000, 1000), 0);
  snapshot_receiver_close(receiver);
  assert_int_equal(snapshot_find_part(sim_disk_os(disk), FOLDER, &index), 0);
  assert_int_equal(index, 9);
  assert_int_equal(snapshot_remove_part(sim_disk_os(disk), FOLDER), 0);
  assert_false(exists(disk, PART));
  assert_false(exists(disk, STATE));
  receiver = receiver_make(sim_disk_os(disk), &sent, &offset);
  assert_int_equal(send_range(receiver, &sent, 0, 5000, 1000), 0);
  snapshot_receiver_close(receiver);
  assert_int_equal(os_remove(sim_disk_os(disk), STATE), 0); /* of what it was a part nobody knows */
  assert_int_equal(snapshot_find_part(sim_disk_os(disk), FOLDER, &index), 0);
  assert_int_equal(index, 0);
  assert_false(exists(disk, PART));
  free(sent.bytes);
  sim_disk_free(disk);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(pages_and_metadata_come_back_for_every_page_size),
      cmocka_unit_test(metadata_may_be_as_large_as_its_limits_and_no_larger),
      cmocka_unit_test(the_lock_byte_page_is_zeros_and_outside_the_checksum),
      cmocka_unit_test(pages_that_do_not_give_the_checksum_make_no_snapshot),
      cmocka_unit_test(a_snapshot_is_the_same_whoever_makes_its_blocks),
      cmocka_unit_test(a_snapshot_in_a_hurry_does_not_wait_for_helpers_that_are_stuck),
      cmocka_unit_test(writing_stops_when_the_pace_says_so_and_leaves_nothing_behind),
      cmocka_unit_test(a_page_that_cannot_be_read_ends_the_snapshot_with_its_sentence),
      cmocka_unit_test(lz4_alone_makes_the_very_database_file_of_a_snapshot),
      cmocka_unit_test(a_flipped_bit_anywhere_is_refused_with_file_and_offset),
      cmocka_unit_test(every_bit_of_the_frames_and_block_headers_is_held_against_what_is_written),
      cmocka_unit_test(a_file_that_is_too_short_or_too_long_is_refused),
      cmocka_unit_test(blocks_that_changed_places_or_are_missing_are_refused),
      cmocka_unit_test(pages_other_than_the_rolling_checksum_says_are_refused_at_the_end),
      cmocka_unit_test(a_damaged_head_is_replaced_by_its_copy),
      cmocka_unit_test(a_later_version_is_told_from_damage),
      cmocka_unit_test(random_damage_is_refused),
      cmocka_unit_test(a_read_error_is_told_as_such_and_not_as_damage),
      cmocka_unit_test(a_full_disk_is_told_and_leaves_nothing_behind),
      cmocka_unit_test(every_call_that_fails_is_told_with_a_sentence),
      cmocka_unit_test(power_loss_at_any_call_leaves_the_last_snapshot_or_the_next_one_whole),
      cmocka_unit_test(before_publish_there_is_no_snapshot),
      cmocka_unit_test(what_was_found_after_a_kill_outlives_a_power_loss),
      cmocka_unit_test(only_names_of_snapshots_count),
      cmocka_unit_test(a_folder_with_too_long_a_path_is_refused),
      cmocka_unit_test(chunks_become_a_snapshot_and_duplicates_and_gaps_are_refused),
      cmocka_unit_test(a_kept_part_is_gone_on_with),
      cmocka_unit_test(another_snapshot_replaces_the_part),
      cmocka_unit_test(a_part_is_never_mixed_with_another_one_begun_and_killed_since),
      cmocka_unit_test(a_size_or_term_that_differs_is_another_snapshot),
      cmocka_unit_test(power_loss_at_any_call_of_receiving_costs_only_what_was_not_durable),
      cmocka_unit_test(a_long_part_is_made_durable_on_the_way),
      cmocka_unit_test(a_damaged_part_is_removed_and_begun_again),
      cmocka_unit_test(a_snapshot_other_than_the_one_announced_is_refused),
      cmocka_unit_test(a_part_whose_record_is_damaged_or_that_is_too_short_is_begun_again),
      cmocka_unit_test(a_chunk_that_finds_no_room_may_come_again),
      cmocka_unit_test(after_a_failed_sync_only_what_was_durable_before_counts),
      cmocka_unit_test(a_part_that_nobody_needs_can_be_found_and_removed),
  };
  return cmocka_run_group_tests_name("snapshot", tests, NULL, NULL);
}
