/*
** SQLite's WAL and wal-index, read and written beside SQLite.
**
** Where the rules come from: src/wal.c of SQLite; the function that relies on a rule stands in [brackets].
**
** THE WAL, app.db-wal. All numbers are 32 bits, big-endian.
**
**      offset  header, 32 bytes
**      0       magic: 0x377f0682, or 0x377f0683 if checksums run over big-endian words
**      4       version, 3007000
**      8       page size in bytes, 512 to 65536
**      12      checkpoint sequence number: for people; rises with every reset
**      16      salt 1: rises by one with every reset
**      20      salt 2: random with every reset
**      24      checksum, two words, of bytes 0–23
**
**      offset  frame n (from 1), at 32 + (n - 1) * (24 + page size)
**      0       page number
**      4       size of the database in pages if this frame commits a transaction, else 0
**      8       salts 1 and 2 of the header
**      16      checksum, two words
**      24      the page
**
** Checksum: s1 = s2 = 0 at the header; for each pair (x, y) of words: s1 += x + s2, s2 += y + s1. It runs on from
** the header's over bytes 0–7 and the page of every frame, so that a frame's checksum covers all before it.
**
** A frame is valid if its salts are the header's, its page number is not 0 and its checksum is right, and if
** all before it are valid; it counts from the moment a valid commit frame at or behind it exists
** [walIndexRecover]. That is what a process finds that opens the files after a crash. While anybody has the
** database open, the wal-index decides and frames are read without a check.
**
** THE WAL-INDEX, app.db-shm: shared memory in regions of 32768 bytes, numbers in native byte order.
**
**      offset  size  region 0           guarded by (lock n is byte 120 + n of the file)
**      0       48    header, copy 0     written by who holds WRITE (lock 0), after copy 1 and a barrier
**      48      48    header, copy 1     written first. Read in the other order: copy 0, barrier, copy 1
**      96      4     nBackfill          raised by who holds CKPT (lock 1) and READ(0) exclusively; set to 0 by
**                                       who holds WRITE and READ(1…4) exclusively
**      100     20    read marks 0…4     mark i (lock 3 + i) changes only under READ(i) exclusively; mark 0 stays 0
**      120     8     lock bytes         nobody reads or writes them; Balsa keeps its nonce there
**      128     4     nBackfillAttempted as nBackfill, set before the first page is written
**      132     4     unused
**      136           4062 page numbers, of frames 1…4062     who holds WRITE
**      16384         8192 slots of 16 bits, a hash table     who holds WRITE
**
** Each further region holds 4096 page numbers at 0 and 8192 slots at 16384.
**
**      offset  header, 48 bytes
**      0       version, 3007000
**      4       unused
**      8       iChange, rises with every transaction
**      12      isInit (8 bits), big-endian checksums (8 bits), page size (16 bits, 1 for 65536)
**      16      mxFrame, the last frame that counts
**      20      nPage, size of the database
**      24      checksum of frame mxFrame, two words
**      32      salts 1 and 2, in the bytes of the WAL's header
**      40      checksum of bytes 0–39, two words, native words
**
** The header is valid if both copies are equal, isInit is not 0 and the checksum is right [walIndexTryHdr]. A
** slot holds 0 or i, for the i-th page number of its region; a page's slots begin at (page number * 383) %
** 8192 and go on until a slot that is 0. Slots are filled in the order of frames, so the last match that is
** not beyond the reader's bound is the newest [sqlite3WalFindFrame]. What lies beyond mxFrame is garbage: a
** region is zeroed when its first frame is added, and where a page number is already set, its table is
** cleaned of all beyond the last good frame [walIndexAppend, walCleanupHash].
**
** WHO MAY READ WHAT. A reader holds READ(i) shared with mark i <= its mxFrame and takes each page from its
** newest frame <= mxFrame, else from the file; with READ(0) from the file alone, which it may only if
** nBackfill == mxFrame [walTryBeginRead]. So a checkpoint must not write a frame into the file that lies
** beyond a mark in use, and must hold READ(0) exclusively while it writes. And it must not go by a header
** from before it had that lock: a reset may have come between, and an nBackfill of the WAL before would hide
** frames of the one after for ever (the WAL-reset race, SQLite before 3.51.3). Here a checkpoint belongs to
** the salts it began with.
**
** Memory that others may write meanwhile is touched by atomic operations only. The copies of the header are read with
** acquire and written with release loads and stores, word by word.
*/
#include "wal.h"

#include "hashes.h"

#include <assert.h>
#include <endian.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define WAL_MAGIC 0x377f0682u
#define WAL_VERSION 3007000u
#define WAL_WRITE_MAX 65536u /* base xWrite masks the length of one call (seekAndWriteFd) */

#define WAL_ROOM_STEP 64u /* frames that are made ahead of what is needed */

#define TABLE_PAGES 4096u
#define TABLE_PAGES_FIRST 4062u
#define TABLE_SLOTS 8192u
#define TABLE_SLOTS_OFFSET 16384u
#define HASH_FACTOR 383u

/* Offsets in region 0. */
#define HEADER_COPY_OFFSET 48u
#define BACKFILL_OFFSET 96u
#define READ_MARKS_OFFSET 100u
#define NONCE_OFFSET 120u
#define BACKFILL_ATTEMPTED_OFFSET 128u
#define INDEX_HEADER_SIZE 136u

#define HEADER_WORDS (sizeof(struct vfs_wal_header) / sizeof(uint32_t))
#define HEADER_CHECKED_SIZE 40u /* bytes of a header that its checksum covers */

/* A writer between two copies takes nanoseconds, unless the scheduler stops it there. */
#define HEADER_TRIES_SPIN 50
#define HEADER_TRIES_YIELD 100
#define HEADER_TRIES_MAX 2000 /* the rest sleeps 1 ms each */

_Static_assert(TABLE_PAGES_FIRST == TABLE_PAGES - INDEX_HEADER_SIZE / sizeof(uint32_t), "first table");
_Static_assert(TABLE_SLOTS_OFFSET + TABLE_SLOTS * sizeof(uint16_t) == VFS_WAL_REGION_SIZE, "region");

struct vfs_wal {
  struct vfs_wal *next; /* all of the process; wals_mutex */
  sqlite3_file *database, *wal;
  struct vfs_hashes *hashes; /* or NULL */
  uint32_t page_size;
  uint32_t room;             /* frames that the file has room for, as far as it is known; the holder of WRITE */
  uint8_t *frame;            /* one frame to be written; the holder of WRITE */
  pthread_mutex_t mapping;   /* guards the filling of regions[], and the next two */
  pthread_mutex_t marks;     /* guards READ(1…4) as `database` holds them: its locks do not exclude each other */
  uint32_t backfilling;      /* frame of a backfill that set_backfilled may publish, 0 none; the owner of CKPT */
  uint32_t backfill_salt[2]; /* of the WAL that vfs_wal_safe_frame looked at; the owner of CKPT */
  void *regions[VFS_WAL_REGIONS_MAX]; /* NULL until mapped, then for ever; most of it stays untouched zero pages */
  void **own; /* the regions as the connections see them, n_own; NULL: not at an address of our own */
  uint32_t n_own;
};

/* Before any `mapping`. */
static pthread_mutex_t wals_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct vfs_wal *wals;

/* The hash table and page numbers of a region. */
struct table {
  uint32_t *pages;
  uint16_t *slots;
  uint32_t before;   /* frames in the regions before it */
  uint32_t capacity; /* frames in this one */
};

/* ---- Words of the shared memory ---- */

static uint32_t load(const void *region, uint32_t offset) {
  return __atomic_load_n((const uint32_t *)((const char *)region + offset), __ATOMIC_ACQUIRE);
}

static void store(void *region, uint32_t offset, uint32_t value) {
  __atomic_store_n((uint32_t *)((char *)region + offset), value, __ATOMIC_RELEASE);
}

static uint32_t mark_offset(int i) {
  return READ_MARKS_OFFSET + (uint32_t)i * (uint32_t)sizeof(uint32_t);
}

/* ---- Regions ---- */

/* Maps a region, extending the file if it must. SQLite error code. */
static int map_region(struct vfs_wal *wal, uint32_t region) {
  void volatile *mapped = NULL;
  int rc = SQLITE_OK;
  pthread_mutex_lock(&wal->mapping);
  if (wal->regions[region] == NULL) {
    rc = wal->database->pMethods->xShmMap(wal->database, (int)region, VFS_WAL_REGION_SIZE, 1, &mapped);
    if (rc == SQLITE_OK && mapped == NULL) rc = SQLITE_IOERR_SHMMAP;
    if (rc == SQLITE_OK) __atomic_store_n(&wal->regions[region], (void *)mapped, __ATOMIC_RELEASE);
  }
  pthread_mutex_unlock(&wal->mapping);
  return rc;
}

static int get_region(struct vfs_wal *wal, uint32_t region, void **memory) {
  /* The unix VFS computes the file's size in an int: the last region is out of its reach. */
  if (region >= VFS_WAL_REGIONS_MAX - 1) return SQLITE_FULL;
  *memory = __atomic_load_n(&wal->regions[region], __ATOMIC_ACQUIRE);
  if (*memory != NULL) return SQLITE_OK;
  int rc = map_region(wal, region);
  if (rc == SQLITE_OK) *memory = __atomic_load_n(&wal->regions[region], __ATOMIC_ACQUIRE);
  return rc;
}

static void *first_region(struct vfs_wal *wal) {
  return __atomic_load_n(&wal->regions[0], __ATOMIC_RELAXED); /* vfs_wal_open has mapped it */
}

static uint32_t region_of_frame(uint32_t frame) {
  return (uint32_t)(((uint64_t)frame + TABLE_PAGES - TABLE_PAGES_FIRST - 1) / TABLE_PAGES);
}

static int get_table(struct vfs_wal *wal, uint32_t region, struct table *table) {
  void *memory;
  int rc = get_region(wal, region, &memory);
  if (rc != SQLITE_OK) return rc;
  table->slots = (uint16_t *)((char *)memory + TABLE_SLOTS_OFFSET);
  if (region == 0) {
    *table = (struct table){(uint32_t *)((char *)memory + INDEX_HEADER_SIZE), table->slots, 0, TABLE_PAGES_FIRST};
  } else {
    *table = (struct table){memory, table->slots, TABLE_PAGES_FIRST + (region - 1) * TABLE_PAGES, TABLE_PAGES};
  }
  return SQLITE_OK;
}

static uint32_t hash_of(uint32_t page_number) {
  return page_number * HASH_FACTOR % TABLE_SLOTS;
}

/* ---- Checksums ---- */

/* Goes on from sum[0], sum[1] over `size` bytes, a multiple of 8, as words of the host's order or swapped. */
static void add_checksum(bool swap, const void *bytes, uint32_t size, uint32_t sum[2]) {
  const unsigned char *from = bytes;
  uint32_t s1 = sum[0], s2 = sum[1];
  for (uint32_t i = 0; i < size; i += 8) {
    uint32_t x, y;
    memcpy(&x, from + i, sizeof x);
    memcpy(&y, from + i + 4, sizeof y);
    /* s1 + x can run ahead of s2: the chain is one addition a word. */
    s1 = (s1 + (swap ? __builtin_bswap32(x) : x)) + s2;
    s2 = (s2 + (swap ? __builtin_bswap32(y) : y)) + s1;
  }
  sum[0] = s1;
  sum[1] = s2;
}

static bool is_host_big_endian(void) {
  return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__;
}

static void put_32(uint8_t *to, uint32_t value) {
  value = htobe32(value);
  memcpy(to, &value, sizeof value);
}

static uint32_t get_32(const uint8_t *from) {
  uint32_t value;
  memcpy(&value, from, sizeof value);
  return be32toh(value);
}

/* ---- The wal-index header ---- */

static void load_header(const void *copy, struct vfs_wal_header *header) {
  uint32_t words[HEADER_WORDS] = {0};
  for (uint32_t i = 0; i < HEADER_WORDS; i++) words[i] = load(copy, i * (uint32_t)sizeof(uint32_t));
  memcpy(header, words, sizeof *header);
}

static void store_header(void *copy, const struct vfs_wal_header *header) {
  uint32_t words[HEADER_WORDS];
  memcpy(words, header, sizeof *header);
  for (uint32_t i = 0; i < HEADER_WORDS; i++) store(copy, i * (uint32_t)sizeof(uint32_t), words[i]);
}

static void seal_header(struct vfs_wal_header *header) {
  header->version = WAL_VERSION;
  header->is_init = 1;
  header->checksum[0] = header->checksum[1] = 0;
  add_checksum(false, header, HEADER_CHECKED_SIZE, header->checksum);
}

bool vfs_wal_header_is_valid(const struct vfs_wal_header *header) {
  uint32_t sum[2] = {0, 0};
  add_checksum(false, header, HEADER_CHECKED_SIZE, sum);
  return header->is_init != 0 && sum[0] == header->checksum[0] && sum[1] == header->checksum[1];
}

/* As walIndexWriteHdr: a reader that finds copy 0 as it was before us finds all of it so. */
static void write_header(struct vfs_wal *wal, struct vfs_wal_header *header) {
  char *memory = first_region(wal);
  seal_header(header);
  store_header(memory + HEADER_COPY_OFFSET, header);
  wal->database->pMethods->xShmBarrier(wal->database);
  store_header(memory, header);
}

int vfs_wal_read_header(struct vfs_wal *wal, struct vfs_wal_header *header) {
  const char *memory = first_region(wal);
  for (int i = 0; i < HEADER_TRIES_MAX; i++) {
    struct vfs_wal_header copy;
    load_header(memory, header);
    load_header(memory + HEADER_COPY_OFFSET, &copy);
    if (memcmp(header, &copy, sizeof copy) == 0) {
      if (vfs_wal_header_is_valid(header)) return header->version == WAL_VERSION ? SQLITE_OK : SQLITE_CANTOPEN;
      if (i >= HEADER_TRIES_SPIN) return SQLITE_PROTOCOL; /* nobody is writing: it was never written */
    }
    if (i >= HEADER_TRIES_YIELD) {
      sqlite3_sleep(1);
    } else if (i >= HEADER_TRIES_SPIN) {
      sched_yield();
    }
  }
  return SQLITE_PROTOCOL;
}

uint32_t vfs_wal_header_page_size(const struct vfs_wal_header *header) {
  return (header->page_size & 0xfe00u) + ((header->page_size & 1u) << 16);
}

static uint16_t encode_page_size(uint32_t page_size) {
  return (uint16_t)((page_size & 0xff00u) | (page_size >> 16));
}

/* ---- A WAL that nobody has open ---- */

bool vfs_wal_check_begin(struct vfs_wal_check *check, const uint8_t header[VFS_WAL_HEADER_SIZE], uint32_t page_size) {
  uint32_t magic = get_32(header);
  *check = (struct vfs_wal_check){.swap = (magic & 1) != is_host_big_endian(), .page_size = page_size};
  memcpy(check->salt, header + 16, sizeof check->salt);
  if ((magic & ~1u) != WAL_MAGIC || get_32(header + 4) != WAL_VERSION || get_32(header + 8) != page_size) return false;
  add_checksum(check->swap, header, 24, check->sum);
  return check->sum[0] == get_32(header + 24) && check->sum[1] == get_32(header + 28);
}

bool vfs_wal_check_frame(struct vfs_wal_check *check, const uint8_t *frame, uint32_t *page_number,
                         uint32_t *commit_pages) {
  *page_number = get_32(frame);
  *commit_pages = get_32(frame + 4);
  if (*page_number == 0 || memcmp(frame + 8, check->salt, sizeof check->salt) != 0) return false;
  add_checksum(check->swap, frame, 8, check->sum);
  add_checksum(check->swap, frame + VFS_WAL_FRAME_HEADER_SIZE, check->page_size, check->sum);
  return check->sum[0] == get_32(frame + 16) && check->sum[1] == get_32(frame + 20);
}

/* ---- Forks ---- */

/* mapping held. false: no memory. */
static bool grow_own(struct vfs_wal *wal, uint32_t region) {
  uint32_t n = region + 1 + region / 2;
  void **own = region < wal->n_own ? wal->own : realloc(wal->own, n * sizeof *own);
  if (own == NULL) return false;
  for (; wal->n_own <= region; wal->n_own++) own[wal->n_own] = NULL;
  wal->own = own;
  return true;
}

void *vfs_wal_region_for_connection(struct vfs_wal *wal, uint32_t region, void *mapped) {
  void *own = NULL;
  pthread_mutex_lock(&wal->mapping);
  if (grow_own(wal, region)) own = wal->own[region];
  if (own == NULL && region < wal->n_own) {
    own = mremap(mapped, 0, VFS_WAL_REGION_SIZE, MREMAP_MAYMOVE); /* size 0: the pages get a second address */
    if (own == MAP_FAILED) own = NULL;
    wal->own[region] = own;
  }
  pthread_mutex_unlock(&wal->mapping);
  return own ? own : mapped;
}

static void unmap_own(struct vfs_wal *wal) {
  for (uint32_t i = 0; i < wal->n_own; i++)
    if (wal->own[i] != NULL) munmap(wal->own[i], VFS_WAL_REGION_SIZE);
  free(wal->own);
}

static void before_fork(void) {
  pthread_mutex_lock(&wals_mutex);
  for (struct vfs_wal *wal = wals; wal != NULL; wal = wal->next) pthread_mutex_lock(&wal->mapping);
}

static void after_fork(void) {
  for (struct vfs_wal *wal = wals; wal != NULL; wal = wal->next) pthread_mutex_unlock(&wal->mapping);
  pthread_mutex_unlock(&wals_mutex);
}

/* A copy takes the place of what is shared. Without memory for one, better none there than that of the parent. */
static void make_private(void *region) {
  void *copy = mmap(NULL, VFS_WAL_REGION_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (copy != MAP_FAILED) {
    memcpy(copy, region, VFS_WAL_REGION_SIZE);
    if (mremap(copy, VFS_WAL_REGION_SIZE, VFS_WAL_REGION_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, region) != MAP_FAILED)
      return;
  }
  munmap(region, VFS_WAL_REGION_SIZE);
}

static void after_fork_in_child(void) {
  for (struct vfs_wal *wal = wals; wal != NULL; wal = wal->next)
    for (uint32_t i = 0; i < wal->n_own; i++)
      if (wal->own[i] != NULL) make_private(wal->own[i]);
  after_fork();
}

int vfs_wal_watch_forks(void) {
  return pthread_atfork(before_fork, after_fork, after_fork_in_child) == 0 ? SQLITE_OK : SQLITE_NOMEM;
}

/* ---- Open, close, begin afresh ---- */

int vfs_wal_open(sqlite3_file *database, sqlite3_file *file, uint32_t page_size, struct vfs_wal **out) {
  assert(page_size >= 512 && page_size <= 65536 && (page_size & (page_size - 1)) == 0);
  void *memory;
  *out = NULL;
  struct vfs_wal *wal = calloc(1, sizeof *wal);
  if (wal == NULL) return SQLITE_NOMEM;
  wal->database = database;
  wal->wal = file;
  wal->page_size = page_size;
  pthread_mutex_init(&wal->mapping, NULL);
  pthread_mutex_init(&wal->marks, NULL);
  wal->frame = malloc(VFS_WAL_FRAME_HEADER_SIZE + (size_t)page_size);
  int rc = wal->frame == NULL ? SQLITE_NOMEM : get_region(wal, 0, &memory);
  pthread_mutex_lock(&wals_mutex);
  wal->next = wals;
  wals = wal;
  pthread_mutex_unlock(&wals_mutex);
  if (rc != SQLITE_OK) {
    vfs_wal_close(wal);
    return rc;
  }
  *out = wal;
  return SQLITE_OK;
}

void vfs_wal_set_hashes(struct vfs_wal *wal, struct vfs_hashes *hashes) {
  wal->hashes = hashes;
}

void vfs_wal_close(struct vfs_wal *wal) {
  if (wal == NULL) return;
  pthread_mutex_lock(&wals_mutex);
  struct vfs_wal **at = &wals;
  while (*at != wal) at = &(*at)->next;
  *at = wal->next;
  pthread_mutex_unlock(&wals_mutex);
  unmap_own(wal);
  pthread_mutex_destroy(&wal->mapping);
  pthread_mutex_destroy(&wal->marks);
  free(wal->frame);
  free(wal);
}

/* The sequence number for the next header of the WAL: one more than its present one. */
static int next_sequence(struct vfs_wal *wal, uint32_t *sequence) {
  uint8_t bytes[VFS_WAL_HEADER_SIZE];
  *sequence = 0;
  int rc = wal->wal->pMethods->xRead(wal->wal, bytes, sizeof bytes, 0);
  if (rc == SQLITE_IOERR_SHORT_READ) return SQLITE_OK;
  if (rc == SQLITE_OK && (get_32(bytes) & ~1u) == WAL_MAGIC) *sequence = get_32(bytes + 12) + 1;
  return rc;
}

/* Writes the WAL's header with the salts of `header`, which gets the checksum that frame 1 goes on from. */
static int write_wal_header(struct vfs_wal *wal, struct vfs_wal_header *header) {
  uint8_t bytes[VFS_WAL_HEADER_SIZE];
  uint32_t sequence, sum[2] = {0, 0};
  int rc = next_sequence(wal, &sequence);
  if (rc != SQLITE_OK) return rc;
  put_32(bytes, WAL_MAGIC | (is_host_big_endian() ? 1 : 0));
  put_32(bytes + 4, WAL_VERSION);
  put_32(bytes + 8, wal->page_size);
  put_32(bytes + 12, sequence);
  memcpy(bytes + 16, header->salt, sizeof header->salt);
  add_checksum(false, bytes, 24, sum);
  put_32(bytes + 24, sum[0]);
  put_32(bytes + 28, sum[1]);
  header->big_endian_checksum = is_host_big_endian();
  header->page_size = encode_page_size(wal->page_size);
  memcpy(header->frame_checksum, sum, sizeof sum);
  return wal->wal->pMethods->xWrite(wal->wal, bytes, sizeof bytes, 0);
}

/* nBackfill and read marks of an empty WAL [walRestartHdr]: mark 1 is ready for the next reader. */
static void clear_checkpoint_info(struct vfs_wal *wal) {
  void *memory = first_region(wal);
  store(memory, BACKFILL_OFFSET, 0);
  store(memory, BACKFILL_ATTEMPTED_OFFSET, 0);
  store(memory, mark_offset(0), 0);
  store(memory, mark_offset(1), 0);
  for (int i = 2; i < VFS_WAL_READERS; i++) store(memory, mark_offset(i), VFS_WAL_READ_MARK_NOT_USED);
}

int vfs_wal_init(struct vfs_wal *wal, uint32_t pages, const uint32_t salt[2], bool truncate_wal) {
  struct vfs_wal_header header;
  sqlite3_int64 size = 0;
  /* Only iChange is taken over, so that a process that has the old header cached sees another. */
  load_header(first_region(wal), &header);
  header = (struct vfs_wal_header){.change = header.change + 1, .pages = pages, .salt = {salt[0], salt[1]}};
  header.big_endian_checksum = is_host_big_endian();
  header.page_size = encode_page_size(wal->page_size);
  if (truncate_wal) {
    int rc = wal->wal->pMethods->xTruncate(wal->wal, 0);
    if (rc != SQLITE_OK) return rc;
  } else {
    /* Frames under the old salts would be recovered by the next process that finds no wal-index. */
    int rc = wal->wal->pMethods->xFileSize(wal->wal, &size);
    if (rc == SQLITE_OK && size > 0) rc = write_wal_header(wal, &header);
    if (rc != SQLITE_OK) return rc;
  }
  write_header(wal, &header);
  clear_checkpoint_info(wal);
  return SQLITE_OK;
}

void vfs_wal_set_nonce(struct vfs_wal *wal, uint64_t nonce) {
  __atomic_store_n((uint64_t *)((char *)first_region(wal) + NONCE_OFFSET), nonce, __ATOMIC_RELEASE);
}

int vfs_wal_reserve(struct vfs_wal *wal, uint32_t n_frames) {
  struct vfs_wal_header header;
  void *memory;
  int rc = vfs_wal_read_header(wal, &header);
  if (rc != SQLITE_OK) return rc;
  if (n_frames > UINT32_MAX - header.max_frame) return SQLITE_FULL;
  uint32_t last = region_of_frame(header.max_frame + n_frames);
  for (uint32_t region = region_of_frame(header.max_frame + 1); region <= last && rc == SQLITE_OK; region++) {
    rc = get_region(wal, region, &memory);
  }
  return rc;
}

static sqlite3_int64 size_of_frames(const struct vfs_wal *wal, uint32_t frames) {
  return vfs_wal_frame_offset(wal, frames + 1) - VFS_WAL_FRAME_HEADER_SIZE;
}

/* Bytes that were zeros before are as good; what does not fit on the disk is cut off again. */
static int lengthen(struct vfs_wal *wal, sqlite3_int64 from, sqlite3_int64 to) {
  void *zeros = calloc(1, WAL_WRITE_MAX);
  int rc = zeros == NULL ? SQLITE_NOMEM : SQLITE_OK;
  for (sqlite3_int64 at = from; rc == SQLITE_OK && at < to; at += WAL_WRITE_MAX) {
    int size = to - at < (sqlite3_int64)WAL_WRITE_MAX ? (int)(to - at) : (int)WAL_WRITE_MAX;
    rc = wal->wal->pMethods->xWrite(wal->wal, zeros, size, at);
  }
  if (rc != SQLITE_OK && rc != SQLITE_NOMEM) wal->wal->pMethods->xTruncate(wal->wal, from);
  free(zeros);
  return rc;
}

int vfs_wal_make_room(struct vfs_wal *wal, uint32_t frames) {
  sqlite3_int64 size = 0;
  if (frames <= wal->room) return SQLITE_OK;
  int rc = wal->wal->pMethods->xFileSize(wal->wal, &size);
  sqlite3_int64 needed = size_of_frames(wal, frames), wanted = size_of_frames(wal, frames + WAL_ROOM_STEP);
  uint32_t room = frames + WAL_ROOM_STEP;
  if (rc == SQLITE_OK && size < needed) {
    rc = lengthen(wal, size, wanted);
    if (rc == SQLITE_FULL) {
      rc = lengthen(wal, size, needed);
      room = frames;
    }
  } else {
    room = frames;
  }
  if (rc == SQLITE_OK) wal->room = room;
  return rc;
}

/* ---- Lookups ---- */

uint32_t vfs_wal_frame_page(struct vfs_wal *wal, uint32_t frame) {
  struct table table;
  assert(frame > 0);
  if (get_table(wal, region_of_frame(frame), &table) != SQLITE_OK) return 0;
  return __atomic_load_n(&table.pages[frame - table.before - 1], __ATOMIC_RELAXED);
}

/*
** The newest frame <= max_frame of the page in one table, 0 if none. Slots beyond the bound may be garbage or change
** meanwhile; those within it do not.
*/
static int find_in_table(const struct table *table, uint32_t page_number, uint32_t max_frame, uint32_t *frame) {
  uint32_t slot = hash_of(page_number);
  *frame = 0;
  for (uint32_t tries = 0; tries <= TABLE_SLOTS; tries++) {
    uint32_t i = __atomic_load_n(&table->slots[slot], __ATOMIC_ACQUIRE);
    if (i == 0) return SQLITE_OK;
    if (i <= table->capacity && table->before + i <= max_frame &&
        __atomic_load_n(&table->pages[i - 1], __ATOMIC_RELAXED) == page_number) {
      *frame = table->before + i;
    }
    slot = (slot + 1) % TABLE_SLOTS;
  }
  return SQLITE_CORRUPT; /* a table is never more than half full */
}

static int find(struct vfs_wal *wal, uint32_t page_number, uint32_t max_frame, uint32_t *frame) {
  *frame = 0;
  if (max_frame == 0) return SQLITE_OK;
  for (uint32_t region = region_of_frame(max_frame) + 1; region-- > 0;) {
    struct table table;
    int rc = get_table(wal, region, &table);
    if (rc == SQLITE_OK) rc = find_in_table(&table, page_number, max_frame, frame);
    if (rc != SQLITE_OK || *frame != 0) return rc;
  }
  return SQLITE_OK;
}

uint32_t vfs_wal_find(struct vfs_wal *wal, uint32_t page_number, uint32_t max_frame) {
  uint32_t frame;
  return find(wal, page_number, max_frame, &frame) == SQLITE_OK ? frame : VFS_WAL_FRAME_UNKNOWN;
}

int64_t vfs_wal_frame_offset(const struct vfs_wal *wal, uint32_t frame) {
  assert(frame > 0);
  int64_t frame_size = (int64_t)VFS_WAL_FRAME_HEADER_SIZE + wal->page_size;
  return VFS_WAL_HEADER_SIZE + (frame - 1) * frame_size + VFS_WAL_FRAME_HEADER_SIZE;
}

int vfs_wal_read_frame(struct vfs_wal *wal, uint32_t frame, void *page) {
  if (frame == VFS_WAL_FRAME_UNKNOWN) return SQLITE_IOERR_SHMMAP;
  return wal->wal->pMethods->xRead(wal->wal, page, (int)wal->page_size, vfs_wal_frame_offset(wal, frame));
}

static bool is_right(struct vfs_wal *wal, uint32_t page_number, const void *page) {
  return wal->hashes == NULL || vfs_hashes_check(wal->hashes, page_number, page, wal->page_size);
}

int vfs_wal_read_page(struct vfs_wal *wal, uint32_t page_number, uint32_t max_frame, void *page) {
  uint32_t frame;
  assert(page_number > 0);
  int rc = find(wal, page_number, max_frame, &frame);
  if (rc != SQLITE_OK) return rc;
  if (frame != 0) return vfs_wal_read_frame(wal, frame, page);
  int64_t offset = (int64_t)(page_number - 1) * wal->page_size;
  rc = wal->database->pMethods->xRead(wal->database, page, (int)wal->page_size, offset);
  if (rc == SQLITE_OK && !is_right(wal, page_number, page)) return SQLITE_IOERR_DATA;
  return rc == SQLITE_IOERR_SHORT_READ ? SQLITE_OK : rc; /* the base has filled up with zeros */
}

int vfs_wal_read_pages(struct vfs_wal *wal, uint32_t page_number, uint32_t n, uint32_t max_frame, uint8_t *pages) {
  uint32_t page_size = wal->page_size, frame = 0, run = 0; /* pages before `at` that are to be read from the file */
  int rc = SQLITE_OK;
  for (uint32_t at = 0; at <= n && rc == SQLITE_OK; at++) {
    if (at < n) rc = find(wal, page_number + at, max_frame, &frame);
    if (rc == SQLITE_OK && at < n && frame == 0) {
      run++;
      continue;
    }
    if (rc == SQLITE_OK && run > 0) {
      int64_t offset = (int64_t)(page_number + at - run - 1) * page_size;
      rc = wal->database->pMethods->xRead(wal->database, pages + (size_t)(at - run) * page_size, (int)(run * page_size),
                                          offset);
      for (uint32_t i = at - run; rc == SQLITE_OK && i < at; i++)
        if (!is_right(wal, page_number + i, pages + (size_t)i * page_size)) rc = SQLITE_IOERR_DATA;
      if (rc == SQLITE_IOERR_SHORT_READ) rc = SQLITE_OK; /* the base has filled up with zeros */
      run = 0;
    }
    if (rc == SQLITE_OK && at < n) rc = vfs_wal_read_frame(wal, frame, pages + (size_t)at * page_size);
  }
  return rc;
}

/* ---- Appending ---- */

int vfs_wal_begin(struct vfs_wal *wal, struct vfs_wal_append *append) {
  int rc = vfs_wal_read_header(wal, &append->header);
  if (rc != SQLITE_OK) return rc;
  append->first_frame = append->header.max_frame + 1;
  if (append->header.max_frame == 0) return write_wal_header(wal, &append->header);
  return vfs_wal_header_page_size(&append->header) == wal->page_size ? SQLITE_OK : SQLITE_CORRUPT;
}

/* Header and page in one write where the base can; the file is never read between the two. */
static int write_frame(struct vfs_wal *wal, uint32_t frame, const void *page) {
  const uint32_t header_size = VFS_WAL_FRAME_HEADER_SIZE;
  int64_t offset = vfs_wal_frame_offset(wal, frame) - header_size;
  if (header_size + wal->page_size <= WAL_WRITE_MAX) {
    memcpy(wal->frame + header_size, page, wal->page_size);
    return wal->wal->pMethods->xWrite(wal->wal, wal->frame, (int)(header_size + wal->page_size), offset);
  }
  int rc = wal->wal->pMethods->xWrite(wal->wal, wal->frame, (int)header_size, offset);
  if (rc != SQLITE_OK) return rc;
  return wal->wal->pMethods->xWrite(wal->wal, page, (int)wal->page_size, offset + header_size);
}

/* Forgets all frames beyond `last` in the table that holds it; later tables are zeroed at their first entry. */
static void clean_table(const struct table *table, uint32_t last) {
  uint32_t limit = last - table->before;
  for (uint32_t i = 0; i < TABLE_SLOTS; i++) {
    if (__atomic_load_n(&table->slots[i], __ATOMIC_RELAXED) > limit) {
      __atomic_store_n(&table->slots[i], 0, __ATOMIC_RELAXED);
    }
  }
  for (uint32_t i = limit; i < table->capacity; i++) __atomic_store_n(&table->pages[i], 0, __ATOMIC_RELAXED);
}

static void zero_table(const struct table *table) {
  for (uint32_t i = 0; i < table->capacity; i++) __atomic_store_n(&table->pages[i], 0, __ATOMIC_RELAXED);
  for (uint32_t i = 0; i < TABLE_SLOTS; i++) __atomic_store_n(&table->slots[i], 0, __ATOMIC_RELAXED);
}

/* As walIndexAppend. The frame before this one is the last good one. */
static int add_to_index(struct vfs_wal *wal, uint32_t frame, uint32_t page_number) {
  struct table table;
  int rc = get_table(wal, region_of_frame(frame), &table);
  if (rc != SQLITE_OK) return rc;
  uint32_t i = frame - table.before;
  if (i == 1) {
    zero_table(&table);
  } else if (__atomic_load_n(&table.pages[i - 1], __ATOMIC_RELAXED) != 0) {
    clean_table(&table, frame - 1); /* left by a transaction that was given up */
  }
  uint32_t slot = hash_of(page_number);
  for (uint32_t tries = 0; __atomic_load_n(&table.slots[slot], __ATOMIC_RELAXED) != 0; tries++) {
    if (tries == i) return SQLITE_CORRUPT; /* more entries than frames */
    slot = (slot + 1) % TABLE_SLOTS;
  }
  __atomic_store_n(&table.pages[i - 1], page_number, __ATOMIC_RELAXED);
  __atomic_store_n(&table.slots[slot], (uint16_t)i, __ATOMIC_RELEASE);
  return SQLITE_OK;
}

int vfs_wal_add(struct vfs_wal *wal, struct vfs_wal_append *append, uint32_t page_number, const void *page,
                uint32_t commit_pages) {
  assert(page_number > 0);
  struct vfs_wal_header *header = &append->header;
  bool swap = (header->big_endian_checksum != 0) != is_host_big_endian();
  uint32_t frame = header->max_frame + 1, sum[2] = {header->frame_checksum[0], header->frame_checksum[1]};
  put_32(wal->frame, page_number);
  put_32(wal->frame + 4, commit_pages);
  memcpy(wal->frame + 8, header->salt, sizeof header->salt);
  add_checksum(swap, wal->frame, 8, sum);
  add_checksum(swap, page, wal->page_size, sum);
  put_32(wal->frame + 16, sum[0]);
  put_32(wal->frame + 20, sum[1]);
  int rc = write_frame(wal, frame, page);
  if (rc == SQLITE_OK) rc = add_to_index(wal, frame, page_number);
  if (rc != SQLITE_OK) return rc;
  header->max_frame = frame;
  memcpy(header->frame_checksum, sum, sizeof sum);
  if (commit_pages != 0) {
    header->pages = commit_pages;
    header->change++;
  }
  return SQLITE_OK;
}

uint32_t vfs_wal_append_find(struct vfs_wal *wal, const struct vfs_wal_append *append, uint32_t page_number) {
  return vfs_wal_find(wal, page_number, append->header.max_frame);
}

void vfs_wal_publish(struct vfs_wal *wal, struct vfs_wal_append *append) {
  write_header(wal, &append->header);
}

void vfs_wal_cancel(struct vfs_wal *wal) {
  struct vfs_wal_header header;
  struct table table;
  if (vfs_wal_read_header(wal, &header) != SQLITE_OK || header.max_frame == 0) return;
  if (get_table(wal, region_of_frame(header.max_frame), &table) == SQLITE_OK) clean_table(&table, header.max_frame);
}

/* ---- Checkpoint ---- */

static int lock_exclusive(struct vfs_wal *wal, int first, int count) {
  return wal->database->pMethods->xShmLock(wal->database, first, count, SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE);
}

static void unlock_exclusive(struct vfs_wal *wal, int first, int count) {
  wal->database->pMethods->xShmLock(wal->database, first, count, SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE);
}

/* Takes mark i out of the way, by raising mark 1 to `safe` or freeing another. false: a reader uses it. */
static bool move_mark(struct vfs_wal *wal, int i, uint32_t safe) {
  pthread_mutex_lock(&wal->marks);
  bool moved = lock_exclusive(wal, VFS_WAL_LOCK_READ(i), 1) == SQLITE_OK;
  if (moved) {
    store(first_region(wal), mark_offset(i), i == 1 ? safe : VFS_WAL_READ_MARK_NOT_USED);
    unlock_exclusive(wal, VFS_WAL_LOCK_READ(i), 1);
  }
  pthread_mutex_unlock(&wal->marks);
  return moved;
}

uint32_t vfs_wal_safe_frame(struct vfs_wal *wal, uint32_t limit_frame, int *busy_reader) {
  struct vfs_wal_header header;
  *busy_reader = 0;
  wal->backfilling = 0;
  if (vfs_wal_read_header(wal, &header) != SQLITE_OK || limit_frame > header.max_frame) return 0;
  memcpy(wal->backfill_salt, header.salt, sizeof header.salt);
  uint32_t safe = limit_frame;
  for (int i = 1; i < VFS_WAL_READERS; i++) {
    uint32_t mark = load(first_region(wal), mark_offset(i));
    if (safe <= mark || move_mark(wal, i, safe)) continue;
    safe = mark;
    *busy_reader = i;
  }
  return safe;
}

uint32_t vfs_wal_backfilled(struct vfs_wal *wal) {
  return load(first_region(wal), BACKFILL_OFFSET);
}

uint32_t vfs_wal_attempted(struct vfs_wal *wal) {
  return load(first_region(wal), BACKFILL_ATTEMPTED_OFFSET);
}

/* Is this still the WAL that vfs_wal_safe_frame looked at, and does it reach `frame`? */
static int check_same_wal(struct vfs_wal *wal, uint32_t frame) {
  struct vfs_wal_header header;
  int rc = vfs_wal_read_header(wal, &header);
  if (rc != SQLITE_OK) return rc;
  bool same = memcmp(header.salt, wal->backfill_salt, sizeof header.salt) == 0 && frame <= header.max_frame;
  return same ? SQLITE_OK : SQLITE_BUSY;
}

static int compare_keys(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

/* (page number, frame) of all frames in (first, last], sorted. The caller's to free. */
static int sort_frames(struct vfs_wal *wal, uint32_t first, uint32_t last, uint64_t **keys) {
  uint32_t count = last - first;
  *keys = malloc(count * sizeof **keys);
  if (*keys == NULL) return SQLITE_NOMEM;
  for (uint32_t i = 0; i < count; i++) {
    uint32_t frame = first + 1 + i, page_number = vfs_wal_frame_page(wal, frame);
    if (page_number == 0) {
      free(*keys);
      *keys = NULL;
      return SQLITE_CORRUPT;
    }
    (*keys)[i] = (uint64_t)page_number << 32 | frame;
  }
  qsort(*keys, count, sizeof **keys, compare_keys);
  return SQLITE_OK;
}

static int copy_frame(struct vfs_wal *wal, uint64_t key, void *page) {
  uint32_t page_number = (uint32_t)(key >> 32), frame = (uint32_t)key;
  int64_t offset = (int64_t)(page_number - 1) * wal->page_size;
  int rc = vfs_wal_read_frame(wal, frame, page);
  if (rc != SQLITE_OK) return rc;
  rc = wal->database->pMethods->xWrite(wal->database, page, (int)wal->page_size, offset);
  if (rc == SQLITE_OK && wal->hashes != NULL) vfs_hashes_set(wal->hashes, page_number, page, wal->page_size);
  return rc;
}

/* Writes the newest frame of each page in (first, last], in the order of the file. */
static int copy_frames(struct vfs_wal *wal, uint32_t first, uint32_t last, uint32_t pages) {
  uint64_t *keys = NULL;
  void *page = malloc(wal->page_size);
  int rc = page == NULL ? SQLITE_NOMEM : sort_frames(wal, first, last, &keys);
  for (uint32_t i = 0; rc == SQLITE_OK && i < last - first; i++) {
    uint32_t page_number = (uint32_t)(keys[i] >> 32);
    if (page_number > pages) break;
    bool newest = i + 1 == last - first || (uint32_t)(keys[i + 1] >> 32) != page_number;
    if (newest) rc = copy_frame(wal, keys[i], page);
  }
  free(keys);
  free(page);
  return rc;
}

int vfs_wal_backfill(struct vfs_wal *wal, uint32_t frame, uint32_t pages) {
  wal->backfilling = 0;
  int rc = lock_exclusive(wal, VFS_WAL_LOCK_READ(0), 1);
  if (rc != SQLITE_OK) return rc;
  rc = check_same_wal(wal, frame);
  uint32_t backfilled = vfs_wal_backfilled(wal);
  /* From here on no reset can come: it wants nBackfill == mxFrame, and ours is below `frame` until it is published. */
  if (rc == SQLITE_OK && backfilled < frame) {
    if (load(first_region(wal), BACKFILL_ATTEMPTED_OFFSET) < frame) {
      store(first_region(wal), BACKFILL_ATTEMPTED_OFFSET, frame);
    }
    rc = copy_frames(wal, backfilled, frame, pages);
    if (rc == SQLITE_OK) wal->backfilling = frame;
  }
  unlock_exclusive(wal, VFS_WAL_LOCK_READ(0), 1);
  return rc;
}

void vfs_wal_set_backfilled(struct vfs_wal *wal, uint32_t frame) {
  if (wal->backfilling == 0) return; /* it was there already, and a reset may have come since */
  assert(wal->backfilling == frame);
  store(first_region(wal), BACKFILL_OFFSET, frame);
  wal->backfilling = 0;
}

/* Nobody reads what is cut off: READ(1…4) are held. If it cannot be cut, it is as good as it was. */
static void shorten(struct vfs_wal *wal, uint32_t frames_kept) {
  sqlite3_int64 size = 0;
  sqlite3_int64 wanted = size_of_frames(wal, frames_kept);
  if (wal->wal->pMethods->xFileSize(wal->wal, &size) != SQLITE_OK || size <= wanted) return;
  wal->wal->pMethods->xTruncate(wal->wal, wanted);
  wal->room = 0;
}

unsigned vfs_wal_marks(struct vfs_wal *wal, uint32_t frame) {
  struct vfs_wal_header header;
  unsigned found = 0;
  if (vfs_wal_read_header(wal, &header) != SQLITE_OK) return 0;
  for (int i = vfs_wal_backfilled(wal) == header.max_frame; i < VFS_WAL_READERS; i++)
    if (load(first_region(wal), mark_offset(i)) <= frame) found |= 1u << i;
  return found;
}

unsigned vfs_wal_readers(struct vfs_wal *wal, uint32_t frame) {
  unsigned marks = vfs_wal_marks(wal, frame), found = 0;
  pthread_mutex_lock(&wal->marks);
  for (int i = 0; i < VFS_WAL_READERS; i++) {
    if ((marks & 1u << i) == 0) continue;
    int rc = lock_exclusive(wal, VFS_WAL_LOCK_READ(i), 1);
    if (rc == SQLITE_OK) unlock_exclusive(wal, VFS_WAL_LOCK_READ(i), 1);
    if (rc == SQLITE_BUSY) found |= 1u << i;
  }
  pthread_mutex_unlock(&wal->marks);
  return found;
}

int vfs_wal_restart(struct vfs_wal *wal, uint32_t random_salt, uint32_t frames_kept) {
  struct vfs_wal_header header;
  int rc = vfs_wal_read_header(wal, &header);
  if (rc != SQLITE_OK || header.max_frame == 0) return rc;
  if (vfs_wal_backfilled(wal) != header.max_frame) return SQLITE_BUSY;
  pthread_mutex_lock(&wal->marks);
  rc = lock_exclusive(wal, VFS_WAL_LOCK_READ(1), VFS_WAL_READERS - 1);
  if (rc == SQLITE_OK) {
    header.max_frame = 0;
    header.salt[0] = htobe32(be32toh(header.salt[0]) + 1);
    header.salt[1] = random_salt;
    write_header(wal, &header);
    clear_checkpoint_info(wal);
    shorten(wal, frames_kept);
    unlock_exclusive(wal, VFS_WAL_LOCK_READ(1), VFS_WAL_READERS - 1);
  }
  pthread_mutex_unlock(&wal->marks);
  return rc;
}

/* ---- A read view ---- */

/* Takes READ(i) shared if the mark still is `frame`. */
static bool pin_mark(const void *region, sqlite3_file *handle, int i, uint32_t frame) {
  const int lock = VFS_WAL_LOCK_READ(i);
  if (load(region, mark_offset(i)) != frame) return false;
  if (handle->pMethods->xShmLock(handle, lock, 1, SQLITE_SHM_LOCK | SQLITE_SHM_SHARED) != SQLITE_OK) return false;
  if (load(region, mark_offset(i)) == frame) return true;
  handle->pMethods->xShmLock(handle, lock, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED);
  return false;
}

/* Sets a mark that nobody uses. */
static bool set_mark(void *region, sqlite3_file *handle, int i, uint32_t frame) {
  const int lock = VFS_WAL_LOCK_READ(i);
  if (handle->pMethods->xShmLock(handle, lock, 1, SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE) != SQLITE_OK) return false;
  store(region, mark_offset(i), frame);
  handle->pMethods->xShmLock(handle, lock, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE);
  return true;
}

int vfs_wal_pin(struct vfs_wal *wal, sqlite3_file *handle, uint32_t frame, int *mark) {
  void volatile *mapped = NULL;
  int rc = handle->pMethods->xShmMap(handle, 0, VFS_WAL_REGION_SIZE, 0, &mapped);
  if (rc != SQLITE_OK) return rc;
  void *region = wal->regions[0];
  /* Not mark 0: it would keep every checkpoint from writing, and not only those that go beyond `frame`. */
  for (*mark = 1; *mark < VFS_WAL_READERS; ++*mark)
    if (pin_mark(region, handle, *mark, frame)) return SQLITE_OK;
  for (*mark = 1; *mark < VFS_WAL_READERS; ++*mark)
    if (set_mark(region, handle, *mark, frame) && pin_mark(region, handle, *mark, frame)) return SQLITE_OK;
  return SQLITE_BUSY;
}

void vfs_wal_unpin(sqlite3_file *handle, int mark) {
  handle->pMethods->xShmLock(handle, VFS_WAL_LOCK_READ(mark), 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED);
}
