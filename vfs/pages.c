#include "pages.h"

#include <stdlib.h>
#include <string.h>

#define WRITE_MAX 65536u /* the base VFS takes no more at once */

/* A page in the cache. Its bytes are at bytes + place * page_size. */
struct cached {
  uint32_t page_number, place;
};

struct vfs_pages {
  sqlite3_file *file;
  uint32_t page_size, capacity, n;
  uint32_t table_size; /* a power of two, at least twice the capacity */
  uint32_t *table;     /* 1 + an index of `cached`, 0: free; by linear probing */
  struct cached *cached;
  uint8_t *bytes, *run; /* WRITE_MAX bytes for a write */
};

struct vfs_pages *vfs_pages_new(sqlite3_file *file, uint32_t page_size, uint32_t bytes) {
  struct vfs_pages *pages = calloc(1, sizeof *pages);
  if (!pages) return NULL;
  pages->file = file;
  pages->page_size = page_size;
  pages->capacity = bytes > page_size ? bytes / page_size : 1;
  pages->table_size = 1;
  while (pages->table_size < 2 * pages->capacity) pages->table_size *= 2;
  pages->table = calloc(pages->table_size, sizeof *pages->table);
  pages->cached = calloc(pages->capacity, sizeof *pages->cached);
  pages->bytes = malloc((size_t)pages->capacity * page_size);
  pages->run = malloc(WRITE_MAX);
  if (pages->table && pages->cached && pages->bytes && pages->run) return pages;
  vfs_pages_free(pages);
  return NULL;
}

void vfs_pages_free(struct vfs_pages *pages) {
  if (!pages) return;
  free(pages->table);
  free(pages->cached);
  free(pages->bytes);
  free(pages->run);
  free(pages);
}

/* Where it is in the table, or the free slot where it would be. */
static uint32_t *find(struct vfs_pages *pages, uint32_t page_number) {
  uint32_t slot = page_number * 2654435761u & (pages->table_size - 1);
  while (pages->table[slot] != 0 && pages->cached[pages->table[slot] - 1].page_number != page_number)
    slot = (slot + 1) & (pages->table_size - 1);
  return &pages->table[slot];
}

static uint8_t *bytes_of(const struct vfs_pages *pages, const struct cached *cached) {
  return pages->bytes + (size_t)cached->place * pages->page_size;
}

int vfs_pages_get(struct vfs_pages *pages, uint32_t page_number, bool has_content, uint8_t **page) {
  uint32_t *slot = find(pages, page_number);
  if (*slot == 0 && pages->n == pages->capacity) {
    int code = vfs_pages_write(pages);
    if (code != SQLITE_OK) return code;
    slot = find(pages, page_number);
  }
  if (*slot == 0) {
    struct cached *cached = &pages->cached[pages->n];
    *cached = (struct cached){.page_number = page_number, .place = pages->n};
    int code = SQLITE_OK;
    if (!has_content)
      code = pages->file->pMethods->xRead(pages->file, bytes_of(pages, cached), (int)pages->page_size,
                                          (sqlite3_int64)(page_number - 1) * pages->page_size);
    if (code != SQLITE_OK && code != SQLITE_IOERR_SHORT_READ) return code; /* the base has filled up with zeros */
    *slot = ++pages->n;
  }
  *page = bytes_of(pages, &pages->cached[*slot - 1]);
  return SQLITE_OK;
}

static int by_page_number(const void *left, const void *right) {
  const struct cached *a = left, *b = right;
  return (a->page_number > b->page_number) - (a->page_number < b->page_number);
}

/* Writes the pages from `first` on that lie side by side; *n are written. */
static int write_run(struct vfs_pages *pages, uint32_t first, uint32_t *n) {
  uint32_t n_max = WRITE_MAX / pages->page_size, left = pages->n - first;
  const struct cached *cached = &pages->cached[first];
  sqlite3_int64 offset = (sqlite3_int64)(cached->page_number - 1) * pages->page_size;
  for (*n = 0; *n < n_max && *n < left && cached[*n].page_number == cached->page_number + *n; ++*n)
    memcpy(pages->run + (size_t)*n * pages->page_size, bytes_of(pages, &cached[*n]), pages->page_size);
  return pages->file->pMethods->xWrite(pages->file, pages->run, (int)(*n * pages->page_size), offset);
}

int vfs_pages_write(struct vfs_pages *pages) {
  int code = SQLITE_OK;
  qsort(pages->cached, pages->n, sizeof *pages->cached, by_page_number);
  for (uint32_t first = 0, n = 0; first < pages->n && code == SQLITE_OK; first += n) code = write_run(pages, first, &n);
  pages->n = 0;
  memset(pages->table, 0, pages->table_size * sizeof *pages->table);
  return code;
}
