/*
** vfs/wal.c against SQLite itself: what SQLite writes is found by our lookups, what we append, back-fill and restart
** is read by SQLite's connections, through the wal-index and by recovery of a copy of the files.
*/
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vfs/wal.h"

#define READERS_MAX 6

static uint64_t random_state;

static uint32_t random_below(uint32_t limit) {
  random_state += UINT64_C(0x9e3779b97f4a7c15);
  uint64_t z = random_state;
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return (uint32_t)((z ^ (z >> 31)) >> 32) % limit;
}

/* ---- SQLite ---- */

static void run(sqlite3 *db, const char *sql) {
  char *message = NULL;
  if (sqlite3_exec(db, sql, NULL, NULL, &message) != SQLITE_OK) fail_msg("%s: %s", sql, message);
}

static sqlite3 *open_plain(const char *path) {
  sqlite3 *db;
  assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
  run(db, "PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=OFF; PRAGMA cache_size=20");
  return db;
}

/*
** Two different schemas with the same cookie: a transaction was taken back and another one came in its place. A
** connection that has parsed the first would go on with it.
*/
static void forget_schema(sqlite3 *db) {
  run(db, "PRAGMA writable_schema=RESET");
}

static void check_integrity(sqlite3 *db) {
  sqlite3_stmt *statement;
  assert_int_equal(sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &statement, NULL), SQLITE_OK);
  assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
  assert_string_equal((const char *)sqlite3_column_text(statement, 0), "ok");
  sqlite3_finalize(statement);
}

/* All pages of a database, as a connection sees them. */
struct image {
  uint8_t *bytes;
  uint32_t pages;
};

static struct image image_of(sqlite3 *db, uint32_t page_size) {
  sqlite3_int64 size = 0;
  struct image image = {sqlite3_serialize(db, "main", &size, 0), 0};
  assert_non_null(image.bytes);
  image.pages = (uint32_t)(size / page_size);
  return image;
}

static void assert_same_image(const struct image *a, const struct image *b, uint32_t page_size) {
  assert_int_equal(a->pages, b->pages);
  for (uint32_t i = 0; i < a->pages; i++) {
    size_t at = (size_t)i * page_size;
    if (memcmp(a->bytes + at, b->bytes + at, page_size) != 0) fail_msg("page %u differs", i + 1);
  }
}

/* What `db` sees is `image`. */
static void assert_sees(sqlite3 *db, const struct image *image, uint32_t page_size) {
  struct image seen = image_of(db, page_size);
  assert_same_image(&seen, image, page_size);
  sqlite3_free(seen.bytes);
}

/* ---- Files ---- */

static void copy_file(const char *from, const char *to) {
  uint8_t buffer[65536];
  size_t size;
  FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
  assert_non_null(in);
  assert_non_null(out);
  while ((size = fread(buffer, 1, sizeof buffer, in)) > 0) assert_int_equal(fwrite(buffer, 1, size, out), size);
  fclose(in);
  assert_int_equal(fclose(out), 0);
}

static char folder[64];

static const char *in_folder(const char *name) {
  static char paths[4][128];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

static int make_folder(void **state) {
  (void)state;
  snprintf(folder, sizeof folder, "/tmp/balsa-wal-XXXXXX");
  return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state) {
  static const char *const names[] = {"source.db", "app.db", "copy.db"};
  static const char *const ends[] = {"", "-wal", "-shm", "-journal"};
  (void)state;
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    for (size_t k = 0; k < sizeof ends / sizeof ends[0]; k++) {
      char name[32];
      snprintf(name, sizeof name, "%s%s", names[i], ends[k]);
      unlink(in_folder(name));
    }
  }
  return rmdir(folder);
}

/* ---- Our side ---- */

/*
** The source is an ordinary database; the replica `app.db` gets its transactions by struct vfs_wal alone, and is read
** by ordinary connections beside.
*/
struct pair {
  uint32_t page_size;
  sqlite3 *source;
  sqlite3 *replica; /* keeps the -wal and -shm alive */
  sqlite3_vfs *base;
  const char *name; /* SQLite's form of the path of the replica */
  sqlite3_file *database, *wal_file;
  struct vfs_wal *wal;
  struct image image; /* of the replica, as last published */
};

static sqlite3_file *open_base(sqlite3_vfs *base, const char *name, int flags) {
  sqlite3_file *file = calloc(1, (size_t)base->szOsFile);
  assert_non_null(file);
  assert_int_equal(base->xOpen(base, name, file, flags | SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &flags),
                   SQLITE_OK);
  return file;
}

static void close_base(sqlite3_file *file) {
  file->pMethods->xClose(file);
  free(file);
}

static void open_ours(struct pair *pair) {
  const char *path = in_folder("app.db");
  char wal_path[128];
  snprintf(wal_path, sizeof wal_path, "%s-wal", path);
  pair->base = sqlite3_vfs_find(NULL);
  pair->name = sqlite3_create_filename(path, "", wal_path, 0, NULL);
  pair->database = open_base(pair->base, pair->name, SQLITE_OPEN_MAIN_DB);
  pair->wal_file = open_base(pair->base, sqlite3_filename_wal(pair->name), SQLITE_OPEN_WAL);
  assert_int_equal(vfs_wal_open(pair->database, pair->wal_file, pair->page_size, &pair->wal), SQLITE_OK);
}

static void close_ours(struct pair *pair) {
  vfs_wal_close(pair->wal);
  pair->database->pMethods->xShmUnmap(pair->database, 0);
  close_base(pair->database);
  close_base(pair->wal_file);
  sqlite3_free_filename((char *)pair->name);
}

static void open_pair(struct pair *pair, uint32_t page_size) {
  char sql[200];
  *pair = (struct pair){.page_size = page_size};
  remove_folder(NULL);
  make_folder(NULL);
  pair->source = open_plain(in_folder("source.db"));
  snprintf(sql, sizeof sql,
           "PRAGMA page_size=%u; PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB, n INT);"
           "PRAGMA wal_checkpoint(TRUNCATE)",
           page_size);
  run(pair->source, sql);
  copy_file(in_folder("source.db"), in_folder("app.db"));
  pair->replica = open_plain(in_folder("app.db"));
  pair->image = image_of(pair->replica, page_size);
  open_ours(pair);
}

static void close_pair(struct pair *pair) {
  close_ours(pair);
  sqlite3_free(pair->image.bytes);
  assert_int_equal(sqlite3_close(pair->replica), SQLITE_OK);
  assert_int_equal(sqlite3_close(pair->source), SQLITE_OK);
}

static void lock_write(struct pair *pair, int how) {
  int rc = pair->database->pMethods->xShmLock(pair->database, VFS_WAL_LOCK_WRITE, 1, how | SQLITE_SHM_EXCLUSIVE);
  assert_int_equal(rc, SQLITE_OK);
}

static uint32_t max_frame(struct pair *pair) {
  struct vfs_wal_header header;
  assert_int_equal(vfs_wal_read_header(pair->wal, &header), SQLITE_OK);
  return header.max_frame;
}

static const uint8_t *page_of(const struct image *image, uint32_t page_number, uint32_t page_size) {
  return image->bytes + (size_t)(page_number - 1) * page_size;
}

static bool differs(const struct pair *pair, const struct image *next, uint32_t page_number) {
  if (page_number > pair->image.pages) return true;
  return memcmp(page_of(&pair->image, page_number, pair->page_size), page_of(next, page_number, pair->page_size),
                pair->page_size) != 0;
}

/* Appends and publishes a transaction that makes `next`, which the pair takes over, of the present image. */
static void append_image(struct pair *pair, struct image next) {
  struct vfs_wal_append append;
  uint32_t last = 0;
  for (uint32_t i = 1; i <= next.pages; i++) {
    if (differs(pair, &next, i)) last = i;
  }
  if (last == 0) last = 1;
  lock_write(pair, SQLITE_SHM_LOCK);
  assert_int_equal(vfs_wal_begin(pair->wal, &append), SQLITE_OK);
  for (uint32_t i = 1; i <= last; i++) {
    if (i != last && !differs(pair, &next, i)) continue;
    const uint8_t *page = page_of(&next, i, pair->page_size);
    assert_int_equal(vfs_wal_add(pair->wal, &append, i, page, i == last ? next.pages : 0), SQLITE_OK);
  }
  vfs_wal_publish(pair->wal, &append);
  lock_write(pair, SQLITE_SHM_UNLOCK);
  sqlite3_free(pair->image.bytes);
  pair->image = next;
}

static void change(sqlite3 *db, uint32_t page_size) {
  char sql[200];
  uint32_t k = random_below(10) + 2;
  switch (random_below(12)) {
  case 0: snprintf(sql, sizeof sql, "DELETE FROM t WHERE id %% %u = 0", k); break;
  case 1: snprintf(sql, sizeof sql, "UPDATE t SET v = randomblob(%u) WHERE id %% %u = 0", random_below(90), k); break;
  case 2: snprintf(sql, sizeof sql, random_below(3) ? "DELETE FROM t WHERE id > 100" : "VACUUM"); break;
  case 3: snprintf(sql, sizeof sql, "CREATE INDEX IF NOT EXISTS tv ON t(v); UPDATE t SET n = n + 1"); break;
  case 4: snprintf(sql, sizeof sql, "DROP INDEX IF EXISTS tv"); break;
  case 5: snprintf(sql, sizeof sql, "INSERT INTO t(v) VALUES(randomblob(%u))", page_size * random_below(5)); break;
  default:
    snprintf(sql, sizeof sql,
             "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<%u)"
             " INSERT INTO t(v, n) SELECT randomblob(%u), i FROM c",
             k * k, random_below(200));
  }
  run(db, sql);
}

/* One transaction at the source, brought over. */
static void replicate(struct pair *pair) {
  change(pair->source, pair->page_size);
  append_image(pair, image_of(pair->source, pair->page_size));
}

/* Every page of the state bounded by `frame`, as our lookups find it. */
static void assert_lookups(struct pair *pair, uint32_t frame, const struct image *image) {
  uint8_t *page = malloc(pair->page_size);
  assert_non_null(page);
  for (uint32_t i = 1; i <= image->pages; i++) {
    assert_int_equal(vfs_wal_read_page(pair->wal, i, frame, page), SQLITE_OK);
    if (memcmp(page, page_of(image, i, pair->page_size), pair->page_size) != 0) fail_msg("page %u at %u", i, frame);
    uint32_t found = vfs_wal_find(pair->wal, i, frame);
    if (found != 0) assert_int_equal(vfs_wal_frame_page(pair->wal, found), i);
  }
  free(page);
}

/* A plain SQLite that finds the files alone, without the wal-index, recovers the same. */
static void assert_recovers(struct pair *pair) {
  copy_file(in_folder("app.db"), in_folder("copy.db"));
  copy_file(in_folder("app.db-wal"), in_folder("copy.db-wal"));
  sqlite3 *db = open_plain(in_folder("copy.db"));
  assert_sees(db, &pair->image, pair->page_size);
  check_integrity(db);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

/* Takes what a checkpoint may take, all of it synced by nobody: the tests do not lose power. */
static uint32_t checkpoint(struct pair *pair, uint32_t pages, int *busy_reader) {
  uint32_t safe = vfs_wal_safe_frame(pair->wal, max_frame(pair), busy_reader);
  int rc = vfs_wal_backfill(pair->wal, safe, pages);
  assert_int_equal(rc, SQLITE_OK);
  vfs_wal_set_backfilled(pair->wal, safe);
  return safe;
}

/* ---- SQLite writes, we read ---- */

static void our_lookups_find_what_sqlite_wrote(void **state) {
  (void)state;
  static const uint32_t sizes[] = {512, 4096, 65536};
  for (size_t s = 0; s < 3; s++) {
    struct pair pair;
    struct image old = {0};
    uint32_t old_frame = 0;
    random_state = s + 1;
    open_pair(&pair, sizes[s]);
    sqlite3 *reader = open_plain(in_folder("app.db"));
    for (int i = 0; i < 80; i++) {
      change(pair.replica, pair.page_size);
      struct image now = image_of(pair.replica, pair.page_size);
      assert_lookups(&pair, max_frame(&pair), &now);
      sqlite3_free(now.bytes);
      if (i % 20 == 5) { /* a snapshot that stays where it is */
        run(reader, "BEGIN; SELECT count(*) FROM t");
        old = image_of(reader, pair.page_size);
        old_frame = max_frame(&pair);
      }
      if (old.bytes != NULL) assert_lookups(&pair, old_frame, &old);
      if (i % 10 == 8) run(pair.replica, "PRAGMA wal_checkpoint(PASSIVE)");
      if (i % 20 == 19) {
        run(reader, "COMMIT");
        run(pair.replica, "PRAGMA wal_checkpoint(RESTART)");
        sqlite3_free(old.bytes);
        old.bytes = NULL;
      }
    }
    assert_int_equal(sqlite3_close(reader), SQLITE_OK);
    close_pair(&pair);
  }
}

/* ---- We write, SQLite reads ---- */

static void sqlite_reads_what_we_append(void **state) {
  (void)state;
  for (uint32_t page_size = 512; page_size <= 65536; page_size *= 2) {
    struct pair pair;
    random_state = page_size;
    open_pair(&pair, page_size);
    sqlite3 *reader = open_plain(in_folder("app.db"));
    for (int i = 0; i < 25; i++) {
      replicate(&pair);
      assert_sees(reader, &pair.image, page_size);
      assert_lookups(&pair, max_frame(&pair), &pair.image);
      if (i % 8 == 7) check_integrity(reader);
    }
    assert_recovers(&pair);
    assert_int_equal(sqlite3_close(reader), SQLITE_OK);
    close_pair(&pair);
  }
}

static void a_reader_keeps_its_snapshot_while_we_append(void **state) {
  (void)state;
  struct pair pair;
  random_state = 4;
  open_pair(&pair, 1024);
  replicate(&pair);
  sqlite3 *reader = open_plain(in_folder("app.db"));
  run(reader, "BEGIN; SELECT count(*) FROM t");
  struct image snapshot = image_of(reader, pair.page_size);
  for (int i = 0; i < 30; i++) {
    replicate(&pair);
    run(reader, "PRAGMA cache_size=1; PRAGMA shrink_memory");
    assert_sees(reader, &snapshot, pair.page_size);
  }
  run(reader, "COMMIT");
  assert_sees(reader, &pair.image, pair.page_size);
  sqlite3_free(snapshot.bytes);
  assert_int_equal(sqlite3_close(reader), SQLITE_OK);
  close_pair(&pair);
}

static void sqlite_and_we_write_in_turns(void **state) {
  (void)state;
  struct pair pair;
  random_state = 8;
  open_pair(&pair, 4096);
  sqlite3 *reader = open_plain(in_folder("app.db"));
  for (int i = 0; i < 40; i++) {
    struct image before = image_of(reader, pair.page_size);
    change(pair.replica, pair.page_size); /* SQLite's own transaction */
    sqlite3_free(pair.image.bytes);
    pair.image = image_of(pair.replica, pair.page_size);
    assert_lookups(&pair, max_frame(&pair), &pair.image);
    assert_recovers(&pair);
    if (random_below(2)) { /* and one of ours that takes it back */
      append_image(&pair, before);
      assert_sees(reader, &pair.image, pair.page_size);
      assert_recovers(&pair);
    } else {
      sqlite3_free(before.bytes);
    }
  }
  check_integrity(pair.replica);
  assert_int_equal(sqlite3_close(reader), SQLITE_OK);
  close_pair(&pair);
}

/* Pages whose first bytes say what they are: for transactions that need not be databases. */
static void stamp(uint8_t *page, uint32_t page_size, uint32_t page_number, uint32_t version) {
  memset(page, (int)(version & 0xff), page_size);
  memcpy(page, &page_number, 4);
  memcpy(page + 4, &version, 4);
}

static void assert_stamp(struct pair *pair, uint32_t page_number, uint32_t frame, uint32_t version) {
  uint8_t page[65536], expected[65536];
  stamp(expected, pair->page_size, page_number, version);
  assert_int_equal(vfs_wal_read_page(pair->wal, page_number, frame, page), SQLITE_OK);
  assert_memory_equal(page, expected, pair->page_size);
}

static void add_stamped(struct pair *pair, struct vfs_wal_append *append, uint32_t page_number, uint32_t version,
                        uint32_t commit_pages) {
  uint8_t page[65536];
  stamp(page, pair->page_size, page_number, version);
  assert_int_equal(vfs_wal_add(pair->wal, append, page_number, page, commit_pages), SQLITE_OK);
}

static void lookups_hold_over_many_regions(void **state) {
  (void)state;
  const uint32_t pages = 6000, versions = 4; /* 24,000 frames: seven regions */
  struct pair pair;
  struct vfs_wal_append append;
  struct stat status;
  uint32_t bounds[5] = {0};
  open_pair(&pair, 512);
  for (uint32_t version = 1; version <= versions; version++) {
    assert_int_equal(vfs_wal_reserve(pair.wal, pages), SQLITE_OK);
    assert_int_equal(stat(in_folder("app.db-shm"), &status), 0);
    assert_true(status.st_size >= (off_t)(version * pages + 34) / 4096 * VFS_WAL_REGION_SIZE);
    assert_int_equal(vfs_wal_begin(pair.wal, &append), SQLITE_OK);
    assert_int_equal(append.first_frame, bounds[version - 1] + 1);
    for (uint32_t i = 0; i < pages; i++) {
      /* 2,000 of them share their first slot with others, and all are 8192 apart. */
      uint32_t page_number = i < 2000 ? i * 8192 + 5 : i + 10;
      add_stamped(&pair, &append, page_number, version, i + 1 == pages ? 1 + 2000 * 8192 : 0);
    }
    vfs_wal_publish(pair.wal, &append);
    bounds[version] = max_frame(&pair);
    assert_int_equal(bounds[version], version * pages);
  }
  for (uint32_t version = 1; version <= versions; version++) {
    for (uint32_t i = 0; i < pages; i += 7) {
      assert_stamp(&pair, i < 2000 ? i * 8192 + 5 : i + 10, bounds[version], version);
    }
  }
  assert_stamp(&pair, 5, bounds[3] - 1, 3);
  assert_stamp(&pair, 6009, bounds[3] - 1, 2); /* the last frame of version 3 is beyond */
  assert_int_equal(vfs_wal_find(pair.wal, 5, 0), 0);
  assert_int_equal(vfs_wal_find(pair.wal, 4, bounds[4]), 0);
  /* The replica is no database any more: no connection may look at it. */
  close_pair(&pair);
}

static void a_page_may_be_written_twice_in_a_transaction(void **state) {
  (void)state;
  struct pair pair;
  struct vfs_wal_append append;
  open_pair(&pair, 4096);
  assert_int_equal(vfs_wal_begin(pair.wal, &append), SQLITE_OK);
  add_stamped(&pair, &append, 9, 1, 0);
  add_stamped(&pair, &append, 10, 1, 0);
  assert_int_equal(vfs_wal_append_find(pair.wal, &append, 9), append.first_frame);
  add_stamped(&pair, &append, 9, 2, 10);
  uint32_t found = vfs_wal_append_find(pair.wal, &append, 9);
  assert_int_equal(found, append.first_frame + 2);
  assert_int_equal(vfs_wal_append_find(pair.wal, &append, 11), 0);
  assert_int_equal(max_frame(&pair), 0); /* not before it is published */
  vfs_wal_publish(pair.wal, &append);
  assert_int_equal(max_frame(&pair), found);
  assert_stamp(&pair, 9, found, 2);
  assert_stamp(&pair, 9, found - 1, 1);
  close_pair(&pair);
}

static void what_was_cancelled_was_never_there(void **state) {
  (void)state;
  static const uint32_t lengths[] = {1, 50, 4062, 4063, 9000};
  struct pair pair;
  struct vfs_wal_append append;
  random_state = 6;
  open_pair(&pair, 512);
  sqlite3 *reader = open_plain(in_folder("app.db"));
  for (uint32_t i = 0; i < 10; i++) {
    assert_int_equal(vfs_wal_begin(pair.wal, &append), SQLITE_OK);
    for (uint32_t k = 0; k < lengths[i % 5]; k++) add_stamped(&pair, &append, k % 3000 + 1, i, 0);
    if (i < 5) vfs_wal_cancel(pair.wal); /* later ones are left as a writer leaves them that dies */
    assert_sees(reader, &pair.image, pair.page_size);
    replicate(&pair);
    assert_sees(reader, &pair.image, pair.page_size);
    assert_lookups(&pair, max_frame(&pair), &pair.image);
    assert_recovers(&pair);
    forget_schema(pair.replica);
    change(pair.replica, pair.page_size); /* SQLite goes on behind it too */
    sqlite3_free(pair.image.bytes);
    pair.image = image_of(pair.replica, pair.page_size);
    assert_sees(reader, &pair.image, pair.page_size);
    assert_recovers(&pair);
    /* Back to the source's state, so that the next replicate starts from it. */
    append_image(&pair, image_of(pair.source, pair.page_size));
  }
  forget_schema(reader);
  check_integrity(reader);
  assert_int_equal(sqlite3_close(reader), SQLITE_OK);
  close_pair(&pair);
}

/* ---- Checkpoints ---- */

struct reader {
  sqlite3 *db;
  struct image snapshot;
  uint32_t frame;
};

static void begin_reader(struct pair *pair, struct reader *reader) {
  run(reader->db, "BEGIN; SELECT count(*) FROM t");
  reader->snapshot = image_of(reader->db, pair->page_size);
  reader->frame = max_frame(pair);
  assert_same_image(&reader->snapshot, &pair->image, pair->page_size);
}

static void end_reader(struct pair *pair, struct reader *reader) {
  run(reader->db, "PRAGMA cache_size=1; PRAGMA shrink_memory");
  assert_sees(reader->db, &reader->snapshot, pair->page_size);
  run(reader->db, "COMMIT");
  sqlite3_free(reader->snapshot.bytes);
  reader->snapshot.bytes = NULL;
}

static void assert_file_is(struct pair *pair, const struct image *image) {
  uint8_t *page = malloc(pair->page_size);
  FILE *file = fopen(in_folder("app.db"), "rb");
  assert_non_null(page);
  assert_non_null(file);
  for (uint32_t i = 1; i <= image->pages; i++) {
    assert_int_equal(fread(page, 1, pair->page_size, file), pair->page_size);
    assert_memory_equal(page, page_of(image, i, pair->page_size), pair->page_size);
  }
  fclose(file);
  free(page);
}

/* One step of the random run: a transaction, a reader that comes or goes, a checkpoint, a restart. */
static void random_step(struct pair *pair, struct reader *readers) {
  struct reader *reader = &readers[random_below(READERS_MAX)];
  uint32_t frame = max_frame(pair), oldest = frame;
  int busy_reader;
  switch (random_below(7)) {
  case 0:
  case 1: replicate(pair); break;
  case 2:
  case 3:
    if (reader->snapshot.bytes == NULL) {
      begin_reader(pair, reader);
    } else {
      end_reader(pair, reader);
    }
    break;
  case 4:
    for (int i = 0; i < READERS_MAX; i++) {
      if (readers[i].snapshot.bytes != NULL && readers[i].frame < oldest) oldest = readers[i].frame;
    }
    uint32_t safe = vfs_wal_safe_frame(pair->wal, frame, &busy_reader);
    assert_in_range(safe, 0, frame);
    assert_true((safe < frame) == (busy_reader != 0));
    /* Readers share marks, and one with READ(0) has none; whoever reads frames is not overtaken. */
    if (oldest > vfs_wal_backfilled(pair->wal)) assert_in_range(safe, 0, oldest);
    int rc = vfs_wal_backfill(pair->wal, safe, pair->image.pages);
    if (rc == SQLITE_OK) vfs_wal_set_backfilled(pair->wal, safe);
    assert_true(rc == SQLITE_OK || rc == SQLITE_BUSY);
    if (rc == SQLITE_OK && safe == frame) {
      assert_int_equal(vfs_wal_backfilled(pair->wal), frame);
      assert_file_is(pair, &pair->image);
    }
    break;
  default:
    lock_write(pair, SQLITE_SHM_LOCK);
    rc = vfs_wal_restart(pair->wal, random_below(UINT32_MAX), 4000);
    lock_write(pair, SQLITE_SHM_UNLOCK);
    assert_true(rc == SQLITE_OK || rc == SQLITE_BUSY);
    assert_int_equal(max_frame(pair), rc == SQLITE_OK ? 0 : frame);
    if (rc == SQLITE_OK) {
      for (int i = 0; i < READERS_MAX; i++) { /* those that are left read the file alone */
        if (readers[i].snapshot.bytes != NULL) readers[i].frame = 0;
      }
    }
  }
}

static void checkpoints_and_restarts_leave_every_reader_its_snapshot(void **state) {
  (void)state;
  for (uint64_t seed = 1; seed <= 6; seed++) {
    struct pair pair;
    struct reader readers[READERS_MAX] = {{0}};
    random_state = seed;
    open_pair(&pair, seed % 2 ? 512 : 4096);
    for (int i = 0; i < READERS_MAX; i++) readers[i].db = open_plain(in_folder("app.db"));
    for (int i = 0; i < 250; i++) {
      random_step(&pair, readers);
      for (int k = 0; k < READERS_MAX; k++) {
        if (readers[k].snapshot.bytes != NULL) assert_sees(readers[k].db, &readers[k].snapshot, pair.page_size);
      }
      assert_sees(pair.replica, &pair.image, pair.page_size);
    }
    check_integrity(pair.replica);
    for (int i = 0; i < READERS_MAX; i++) {
      if (readers[i].snapshot.bytes != NULL) end_reader(&pair, &readers[i]);
      assert_int_equal(sqlite3_close(readers[i].db), SQLITE_OK);
    }
    close_pair(&pair);
  }
}

static void a_reader_of_frames_holds_a_checkpoint_back(void **state) {
  (void)state;
  struct pair pair;
  int busy_reader;
  random_state = 2;
  open_pair(&pair, 4096);
  struct reader reader = {.db = open_plain(in_folder("app.db"))};
  replicate(&pair);
  begin_reader(&pair, &reader);
  replicate(&pair);
  uint32_t frame = max_frame(&pair);
  assert_true(reader.frame < frame);
  assert_int_equal(vfs_wal_safe_frame(pair.wal, frame, &busy_reader), reader.frame);
  assert_in_range(busy_reader, 1, 4);
  assert_int_equal(checkpoint(&pair, reader.snapshot.pages, &busy_reader), reader.frame);
  assert_int_equal(vfs_wal_restart(pair.wal, 1, 4000), SQLITE_BUSY);
  end_reader(&pair, &reader);
  assert_int_equal(checkpoint(&pair, pair.image.pages, &busy_reader), frame);
  assert_int_equal(busy_reader, 0);
  assert_int_equal(vfs_wal_restart(pair.wal, 1, 4000), SQLITE_OK);
  assert_sees(reader.db, &pair.image, pair.page_size);
  assert_int_equal(sqlite3_close(reader.db), SQLITE_OK);
  close_pair(&pair);
}

static void a_reader_of_the_file_alone_holds_a_backfill_back(void **state) {
  (void)state;
  struct pair pair;
  int busy_reader;
  random_state = 3;
  open_pair(&pair, 4096);
  struct reader reader = {.db = open_plain(in_folder("app.db"))};
  replicate(&pair);
  checkpoint(&pair, pair.image.pages, &busy_reader);
  begin_reader(&pair, &reader); /* READ(0) */
  replicate(&pair);
  uint32_t safe = vfs_wal_safe_frame(pair.wal, max_frame(&pair), &busy_reader);
  assert_int_equal(vfs_wal_backfill(pair.wal, safe, pair.image.pages), SQLITE_BUSY);
  end_reader(&pair, &reader);
  assert_int_equal(checkpoint(&pair, pair.image.pages, &busy_reader), safe);
  assert_int_equal(sqlite3_close(reader.db), SQLITE_OK);
  close_pair(&pair);
}

static void a_backfill_stops_at_its_bound_and_leaves_out_pages_beyond_the_end(void **state) {
  (void)state;
  struct pair pair;
  struct vfs_wal_append append;
  struct stat status;
  uint8_t page[512], expected[512];
  int busy_reader;
  open_pair(&pair, 512);
  assert_int_equal(vfs_wal_begin(pair.wal, &append), SQLITE_OK);
  for (uint32_t i = 1; i <= 20; i++) add_stamped(&pair, &append, i, 1, i == 20 ? 20 : 0);
  vfs_wal_publish(pair.wal, &append);
  for (uint32_t i = 1; i <= 20; i++) add_stamped(&pair, &append, i, 2, i == 20 ? 20 : 0);
  vfs_wal_publish(pair.wal, &append);
  assert_int_equal(vfs_wal_safe_frame(pair.wal, 20, &busy_reader), 20);
  assert_int_equal(vfs_wal_backfill(pair.wal, 20, 15), SQLITE_OK);
  assert_int_equal(vfs_wal_backfilled(pair.wal), 0); /* not before the caller has synced */
  vfs_wal_set_backfilled(pair.wal, 20);
  assert_int_equal(vfs_wal_backfilled(pair.wal), 20);
  assert_int_equal(stat(in_folder("app.db"), &status), 0);
  assert_int_equal(status.st_size, 15 * 512);
  for (uint32_t i = 1; i <= 15; i++) {
    stamp(expected, 512, i, 1);
    assert_int_equal(pair.database->pMethods->xRead(pair.database, page, 512, (int64_t)(i - 1) * 512), SQLITE_OK);
    assert_memory_equal(page, expected, 512);
  }
  assert_int_equal(checkpoint(&pair, 20, &busy_reader), 40);
  for (uint32_t i = 1; i <= 20; i++) assert_stamp(&pair, i, 0, 2);
  close_pair(&pair);
}

/* The WAL-reset race of SQLite before 3.51.3: a checkpoint of the WAL before would mark frames of this one. */
static void a_checkpoint_from_before_a_restart_marks_nothing(void **state) {
  (void)state;
  struct pair pair;
  int busy_reader;
  random_state = 12;
  open_pair(&pair, 4096);
  replicate(&pair);
  uint32_t frame = checkpoint(&pair, pair.image.pages, &busy_reader), pages = pair.image.pages;
  assert_int_equal(vfs_wal_safe_frame(pair.wal, frame, &busy_reader), frame);
  assert_int_equal(vfs_wal_restart(pair.wal, 77, 4000), SQLITE_OK);
  while (max_frame(&pair) <= frame) replicate(&pair);
  assert_int_equal(vfs_wal_backfill(pair.wal, frame, pages), SQLITE_BUSY);
  vfs_wal_set_backfilled(pair.wal, frame);
  assert_int_equal(vfs_wal_backfilled(pair.wal), 0);

  frame = checkpoint(&pair, pair.image.pages, &busy_reader);
  assert_int_equal(vfs_wal_safe_frame(pair.wal, frame, &busy_reader), frame);
  assert_int_equal(vfs_wal_backfill(pair.wal, frame, pair.image.pages), SQLITE_OK); /* nothing to do */
  assert_int_equal(vfs_wal_restart(pair.wal, 78, 4000), SQLITE_OK);
  while (max_frame(&pair) <= frame) replicate(&pair);
  vfs_wal_set_backfilled(pair.wal, frame);
  assert_int_equal(vfs_wal_backfilled(pair.wal), 0);
  assert_int_equal(vfs_wal_safe_frame(pair.wal, max_frame(&pair) + 1, &busy_reader), 0);
  assert_recovers(&pair);
  close_pair(&pair);
}

static void a_restarted_wal_takes_sqlites_transactions_and_ours(void **state) {
  (void)state;
  struct pair pair;
  int busy_reader;
  random_state = 31;
  open_pair(&pair, 2048);
  for (int i = 0; i < 12; i++) {
    replicate(&pair);
    checkpoint(&pair, pair.image.pages, &busy_reader);
    lock_write(&pair, SQLITE_SHM_LOCK);
    assert_int_equal(vfs_wal_restart(pair.wal, random_below(UINT32_MAX), 4000), SQLITE_OK);
    lock_write(&pair, SQLITE_SHM_UNLOCK);
    assert_int_equal(vfs_wal_backfilled(pair.wal), 0);
    assert_sees(pair.replica, &pair.image, pair.page_size);
    if (i % 2) {
      struct image source = image_of(pair.source, pair.page_size);
      forget_schema(pair.replica);
      change(pair.replica, pair.page_size);
      sqlite3_free(pair.image.bytes);
      pair.image = image_of(pair.replica, pair.page_size);
      assert_recovers(&pair);
      append_image(&pair, source);
    } else {
      replicate(&pair);
    }
    assert_sees(pair.replica, &pair.image, pair.page_size);
    assert_lookups(&pair, max_frame(&pair), &pair.image);
    assert_recovers(&pair);
  }
  close_pair(&pair);
}

/* ---- Beginning afresh ---- */

static void init_forgets_every_frame(void **state) {
  (void)state;
  struct pair pair;
  random_state = 15;
  for (int truncate = 0; truncate < 2; truncate++) {
    open_pair(&pair, 4096);
    struct image file = image_of(pair.replica, pair.page_size);
    for (int i = 0; i < 5; i++) replicate(&pair);
    const uint32_t salt[2] = {random_below(UINT32_MAX), random_below(UINT32_MAX)};
    assert_int_equal(vfs_wal_init(pair.wal, file.pages, salt, truncate), SQLITE_OK);
    sqlite3_free(pair.image.bytes);
    pair.image = file;
    assert_int_equal(max_frame(&pair), 0);
    assert_sees(pair.replica, &pair.image, pair.page_size); /* a connection that had another state cached */
    assert_recovers(&pair);
    append_image(&pair, image_of(pair.source, pair.page_size));
    assert_sees(pair.replica, &pair.image, pair.page_size);
    assert_recovers(&pair);
    close_pair(&pair);
  }
}

static void a_wal_index_that_nobody_wrote_has_no_header(void **state) {
  (void)state;
  struct pair pair = {.page_size = 4096};
  struct vfs_wal_header header;
  struct vfs_wal_append append;
  const uint32_t salt[2] = {1, 2};
  open_ours(&pair);
  assert_int_equal(vfs_wal_read_header(pair.wal, &header), SQLITE_PROTOCOL);
  assert_int_equal(vfs_wal_begin(pair.wal, &append), SQLITE_PROTOCOL);
  assert_int_equal(vfs_wal_init(pair.wal, 0, salt, false), SQLITE_OK);
  assert_int_equal(vfs_wal_read_header(pair.wal, &header), SQLITE_OK);
  assert_int_equal(header.max_frame, 0);
  assert_int_equal(vfs_wal_header_page_size(&header), 4096);
  close_ours(&pair);
}

static void another_page_size_is_refused(void **state) {
  (void)state;
  struct pair pair;
  struct vfs_wal_append append;
  struct vfs_wal *wal;
  random_state = 1;
  open_pair(&pair, 4096);
  replicate(&pair);
  assert_int_equal(vfs_wal_open(pair.database, pair.wal_file, 1024, &wal), SQLITE_OK);
  assert_int_equal(vfs_wal_begin(wal, &append), SQLITE_CORRUPT);
  vfs_wal_close(wal);
  close_pair(&pair);
}

static uint64_t nonce_of(const struct pair *pair) {
  void volatile *region = NULL;
  uint64_t nonce;
  assert_int_equal(pair->database->pMethods->xShmMap(pair->database, 0, VFS_WAL_REGION_SIZE, 0, &region), SQLITE_OK);
  memcpy(&nonce, (const char *)region + 120, sizeof nonce);
  return nonce;
}

static void the_nonce_stays_while_sqlite_works(void **state) {
  (void)state;
  struct pair pair;
  random_state = 1;
  open_pair(&pair, 4096);
  assert_true(nonce_of(&pair) == 0);
  vfs_wal_set_nonce(pair.wal, UINT64_C(0xfedcba9876543210));
  for (int i = 0; i < 10; i++) change(pair.replica, pair.page_size);
  run(pair.replica, "PRAGMA wal_checkpoint(TRUNCATE)");
  replicate(&pair);
  assert_true(nonce_of(&pair) == UINT64_C(0xfedcba9876543210));
  close_pair(&pair);
}

/* ---- Failures ---- */

/* A file over another one that fails when it is told to. */
struct failing_file {
  sqlite3_file base;
  sqlite3_file *real;
  int writes_left, maps_left;
};

static int failing_read(sqlite3_file *file, void *bytes, int size, sqlite3_int64 offset) {
  sqlite3_file *real = ((struct failing_file *)file)->real;
  return real->pMethods->xRead(real, bytes, size, offset);
}

static int failing_write(sqlite3_file *file, const void *bytes, int size, sqlite3_int64 offset) {
  struct failing_file *failing = (struct failing_file *)file;
  if (failing->writes_left-- <= 0) return SQLITE_FULL;
  return failing->real->pMethods->xWrite(failing->real, bytes, size, offset);
}

static int failing_shm_map(sqlite3_file *file, int region, int size, int extend, void volatile **memory) {
  struct failing_file *failing = (struct failing_file *)file;
  if (failing->maps_left-- <= 0) return SQLITE_IOERR_SHMMAP;
  return failing->real->pMethods->xShmMap(failing->real, region, size, extend, memory);
}

static void failing_shm_barrier(sqlite3_file *file) {
  sqlite3_file *real = ((struct failing_file *)file)->real;
  real->pMethods->xShmBarrier(real);
}

static const sqlite3_io_methods failing_methods = {
    .iVersion = 2,
    .xRead = failing_read,
    .xWrite = failing_write,
    .xShmMap = failing_shm_map,
    .xShmBarrier = failing_shm_barrier,
};

static void an_append_that_fails_changes_nothing(void **state) {
  (void)state;
  for (uint32_t page_size = 4096; page_size <= 65536; page_size *= 16) {
    struct pair pair;
    struct vfs_wal_append append;
    uint8_t page[65536];
    random_state = 21;
    open_pair(&pair, page_size);
    replicate(&pair);
    struct failing_file file = {.base.pMethods = &failing_methods, .real = pair.wal_file};
    struct vfs_wal *wal;
    assert_int_equal(vfs_wal_open(pair.database, &file.base, page_size, &wal), SQLITE_OK);
    for (int writes = 0; writes < 8; writes++) {
      int rc = SQLITE_OK;
      file.writes_left = writes;
      assert_int_equal(vfs_wal_begin(wal, &append), SQLITE_OK);
      for (uint32_t i = 1; rc == SQLITE_OK; i++) {
        uint32_t last = append.header.max_frame;
        stamp(page, page_size, i, 5);
        rc = vfs_wal_add(wal, &append, i, page, 0);
        assert_int_equal(append.header.max_frame, last + (rc == SQLITE_OK));
      }
      assert_int_equal(rc, SQLITE_FULL);
      vfs_wal_cancel(wal);
      assert_sees(pair.replica, &pair.image, page_size);
      replicate(&pair);
      assert_sees(pair.replica, &pair.image, page_size);
      assert_recovers(&pair);
    }
    vfs_wal_close(wal);
    close_pair(&pair);
  }
}

static void a_wal_index_that_cannot_be_mapped_is_an_error_and_not_an_old_page(void **state) {
  (void)state;
  struct pair pair;
  struct vfs_wal *wal;
  uint8_t page[512];
  random_state = 22;
  open_pair(&pair, 512);
  while (max_frame(&pair) < 4200) replicate(&pair);
  uint32_t frame = max_frame(&pair);
  struct failing_file file = {.base.pMethods = &failing_methods, .real = pair.database};
  assert_int_equal(vfs_wal_open(&file.base, pair.wal_file, 512, &wal), SQLITE_IOERR_SHMMAP);
  assert_null(wal);
  file.maps_left = 1;
  assert_int_equal(vfs_wal_open(&file.base, pair.wal_file, 512, &wal), SQLITE_OK);
  assert_int_equal(vfs_wal_read_page(wal, 1, frame, page), SQLITE_IOERR_SHMMAP);
  assert_int_equal(vfs_wal_find(wal, 1, frame), VFS_WAL_FRAME_UNKNOWN);
  assert_int_equal(vfs_wal_read_frame(wal, VFS_WAL_FRAME_UNKNOWN, page), SQLITE_IOERR_SHMMAP);
  assert_int_equal(vfs_wal_reserve(wal, 1), SQLITE_IOERR_SHMMAP);
  file.maps_left = 10;
  assert_int_equal(vfs_wal_reserve(wal, 1), SQLITE_OK);
  assert_int_equal(vfs_wal_read_page(wal, 1, frame, page), SQLITE_OK);
  assert_memory_equal(page, pair.image.bytes, 512);
  vfs_wal_close(wal);
  close_pair(&pair);
}

/* ---- Checksums in the other byte order ---- */

static uint32_t big_endian(const uint8_t *from) {
  return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

static void put_big_endian(uint8_t *to, uint32_t value) {
  for (int i = 0; i < 4; i++) to[i] = (uint8_t)(value >> (24 - 8 * i));
}

static void sum_big_endian(const uint8_t *bytes, size_t size, uint32_t sum[2]) {
  for (size_t i = 0; i < size; i += 8) {
    sum[0] += big_endian(bytes + i) + sum[1];
    sum[1] += big_endian(bytes + i + 4) + sum[0];
  }
}

/* Rewrites a WAL as a big-endian machine would have written it. */
static void make_wal_big_endian(const char *path, uint32_t page_size) {
  uint8_t header[32], *frame = malloc(24 + page_size);
  uint32_t sum[2] = {0, 0};
  FILE *file = fopen(path, "r+b");
  assert_non_null(file);
  assert_non_null(frame);
  assert_int_equal(fread(header, 1, 32, file), 32);
  put_big_endian(header, 0x377f0683);
  sum_big_endian(header, 24, sum);
  put_big_endian(header + 24, sum[0]);
  put_big_endian(header + 28, sum[1]);
  rewind(file);
  fwrite(header, 1, 32, file);
  for (long at = 32; fseek(file, at, SEEK_SET) == 0 && fread(frame, 1, 24 + page_size, file) == 24 + page_size;
       at += 24 + page_size) {
    sum_big_endian(frame, 8, sum);
    sum_big_endian(frame + 24, page_size, sum);
    put_big_endian(frame + 16, sum[0]);
    put_big_endian(frame + 20, sum[1]);
    assert_int_equal(fseek(file, at, SEEK_SET), 0);
    fwrite(frame, 1, 24, file);
  }
  fclose(file);
  free(frame);
}

static void a_wal_with_big_endian_checksums_goes_on_so(void **state) {
  (void)state;
  struct pair pair;
  struct vfs_wal_header header;
  random_state = 40;
  open_pair(&pair, 1024);
  for (int i = 0; i < 4; i++) replicate(&pair);
  copy_file(in_folder("app.db"), in_folder("copy.db"));
  copy_file(in_folder("app.db-wal"), in_folder("copy.db-wal"));
  close_ours(&pair);
  assert_int_equal(sqlite3_close(pair.replica), SQLITE_OK); /* removes -wal and -shm */
  make_wal_big_endian(in_folder("copy.db-wal"), pair.page_size);
  assert_int_equal(rename(in_folder("copy.db"), in_folder("app.db")), 0);
  assert_int_equal(rename(in_folder("copy.db-wal"), in_folder("app.db-wal")), 0);
  pair.replica = open_plain(in_folder("app.db"));
  assert_sees(pair.replica, &pair.image, pair.page_size);
  open_ours(&pair);
  assert_int_equal(vfs_wal_read_header(pair.wal, &header), SQLITE_OK);
  assert_int_equal(header.big_endian_checksum, 1);
  for (int i = 0; i < 4; i++) replicate(&pair);
  assert_sees(pair.replica, &pair.image, pair.page_size);
  assert_recovers(&pair);
  close_pair(&pair);
}

/* ---- Threads ---- */

#define THREAD_PAGES 64
#define THREAD_TRANSACTIONS 400

struct lookup {
  struct pair *pair;
  bool stop;
  uint32_t reads;
};

/* Every state is whole: all pages have the version that the bound says. */
static void *look_up(void *argument) {
  struct lookup *lookup = argument;
  struct pair *pair = lookup->pair;
  uint8_t page[512];
  while (!__atomic_load_n(&lookup->stop, __ATOMIC_ACQUIRE) || lookup->reads == 0) {
    struct vfs_wal_header header;
    uint32_t version, page_number = lookup->reads % THREAD_PAGES + 1;
    if (vfs_wal_read_header(pair->wal, &header) != SQLITE_OK) abort();
    if (vfs_wal_read_page(pair->wal, page_number, header.max_frame, page) != SQLITE_OK) abort();
    memcpy(&version, page + 4, 4);
    if (version != header.max_frame / THREAD_PAGES || page[511] != (uint8_t)version) abort();
    lookup->reads++;
  }
  return NULL;
}

static void threads_look_up_while_one_appends(void **state) {
  (void)state;
  struct pair pair;
  struct vfs_wal_append append;
  struct lookup lookups[2];
  pthread_t threads[2];
  open_pair(&pair, 512);
  assert_int_equal(vfs_wal_begin(pair.wal, &append), SQLITE_OK);
  for (uint32_t version = 1; version <= THREAD_TRANSACTIONS; version++) {
    for (uint32_t i = 1; i <= THREAD_PAGES; i++) {
      add_stamped(&pair, &append, i, version, i == THREAD_PAGES ? THREAD_PAGES : 0);
    }
    vfs_wal_publish(pair.wal, &append);
    if (version == 1) {
      for (int i = 0; i < 2; i++) {
        lookups[i] = (struct lookup){.pair = &pair};
        assert_int_equal(pthread_create(&threads[i], NULL, look_up, &lookups[i]), 0);
      }
    }
    if (version % 50 == 0) { /* given up, under their eyes */
      for (uint32_t i = 1; i <= 30; i++) add_stamped(&pair, &append, i, 9999, 0);
      vfs_wal_cancel(pair.wal);
      assert_int_equal(vfs_wal_begin(pair.wal, &append), SQLITE_OK);
    }
  }
  for (int i = 0; i < 2; i++) __atomic_store_n(&lookups[i].stop, true, __ATOMIC_RELEASE);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  close_pair(&pair);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(our_lookups_find_what_sqlite_wrote),
      TEST(sqlite_reads_what_we_append),
      TEST(a_reader_keeps_its_snapshot_while_we_append),
      TEST(sqlite_and_we_write_in_turns),
      TEST(lookups_hold_over_many_regions),
      TEST(a_page_may_be_written_twice_in_a_transaction),
      TEST(what_was_cancelled_was_never_there),
      TEST(checkpoints_and_restarts_leave_every_reader_its_snapshot),
      TEST(a_reader_of_frames_holds_a_checkpoint_back),
      TEST(a_reader_of_the_file_alone_holds_a_backfill_back),
      TEST(a_backfill_stops_at_its_bound_and_leaves_out_pages_beyond_the_end),
      TEST(a_checkpoint_from_before_a_restart_marks_nothing),
      TEST(a_restarted_wal_takes_sqlites_transactions_and_ours),
      TEST(init_forgets_every_frame),
      TEST(a_wal_index_that_nobody_wrote_has_no_header),
      TEST(another_page_size_is_refused),
      TEST(the_nonce_stays_while_sqlite_works),
      TEST(an_append_that_fails_changes_nothing),
      TEST(a_wal_index_that_cannot_be_mapped_is_an_error_and_not_an_old_page),
      TEST(a_wal_with_big_endian_checksums_goes_on_so),
      TEST(threads_look_up_while_one_appends),
  };
  return cmocka_run_group_tests_name("wal", tests, NULL, NULL);
}
