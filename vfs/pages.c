#include "pages.h"

#include <stdlib.h>
#include <string.h>

#define WRITE_MAX 65536u /* the base VFS takes no more at once */

#define NONE UINT32_MAX

struct cached {
  uint32_t page_number;     /* 0: none yet */
  uint32_t next;            /* in its chain */
  bool is_changed, is_used; /* since it was written; since the hand came by */
};

struct vfs_pages {
  sqlite3_file *file;
  uint32_t page_size, capacity;
  uint32_t n_chains; /* a power of two */
  uint32_t *chains;  /* the first place of each, or NONE */
  uint32_t hand;     /* the place that is looked at next for room */
  uint32_t n_changed;
  uint32_t *changed;     /* their places; in the order of the file while they are written */
  struct cached *cached; /* place i has its bytes at bytes + i * page_size */
  uint8_t *bytes, *run;  /* WRITE_MAX bytes for a write */
};

struct vfs_pages *vfs_pages_new(sqlite3_file *file, uint32_t page_size, uint32_t bytes) {
  struct vfs_pages *pages = calloc(1, sizeof *pages);
  if (!pages) return NULL;
  pages->file = file;
  pages->page_size = page_size;
  pages->capacity = bytes > page_size ? bytes / page_size : 1;
  pages->n_chains = 1;
  while (pages->n_chains < pages->capacity) pages->n_chains *= 2;
  pages->chains = malloc(pages->n_chains * sizeof *pages->chains);
  pages->changed = malloc(pages->capacity * sizeof *pages->changed);
  pages->cached = calloc(pages->capacity, sizeof *pages->cached);
  pages->bytes = malloc((size_t)pages->capacity * page_size);
  pages->run = malloc(WRITE_MAX);
  if (!pages->chains || !pages->changed || !pages->cached || !pages->bytes || !pages->run) {
    vfs_pages_free(pages);
    return NULL;
  }
  for (uint32_t i = 0; i < pages->n_chains; i++) pages->chains[i] = NONE;
  return pages;
}

void vfs_pages_free(struct vfs_pages *pages) {
  if (!pages) return;
  free(pages->chains);
  free(pages->changed);
  free(pages->cached);
  free(pages->bytes);
  free(pages->run);
  free(pages);
}

static uint32_t *chain_of(struct vfs_pages *pages, uint32_t page_number) {
  return &pages->chains[page_number * 2654435761u & (pages->n_chains - 1)];
}

static uint32_t find(struct vfs_pages *pages, uint32_t page_number) {
  uint32_t place = *chain_of(pages, page_number);
  while (place != NONE && pages->cached[place].page_number != page_number) place = pages->cached[place].next;
  return place;
}

static void forget(struct vfs_pages *pages, uint32_t place) {
  struct cached *cached = &pages->cached[place];
  if (cached->page_number == 0) return;
  uint32_t *at = chain_of(pages, cached->page_number);
  while (*at != place) at = &pages->cached[*at].next;
  *at = cached->next;
  cached->page_number = 0;
}

/* A place whose page is not changed, and was not asked for since the last round if there is such a one. */
static int find_room(struct vfs_pages *pages, uint32_t *place) {
  if (pages->n_changed == pages->capacity) {
    int code = vfs_pages_write(pages);
    if (code != SQLITE_OK) return code;
  }
  for (;;) {
    struct cached *cached = &pages->cached[pages->hand];
    *place = pages->hand;
    pages->hand = pages->hand + 1 < pages->capacity ? pages->hand + 1 : 0;
    if (!cached->is_changed && !cached->is_used) break;
    cached->is_used = false;
  }
  forget(pages, *place);
  return SQLITE_OK;
}

static uint8_t *bytes_of(const struct vfs_pages *pages, uint32_t place) {
  return pages->bytes + (size_t)place * pages->page_size;
}

static int read_page(struct vfs_pages *pages, uint32_t page_number, uint32_t place) {
  sqlite3_int64 offset = (sqlite3_int64)(page_number - 1) * pages->page_size;
  int code = pages->file->pMethods->xRead(pages->file, bytes_of(pages, place), (int)pages->page_size, offset);
  return code == SQLITE_IOERR_SHORT_READ ? SQLITE_OK : code; /* the base has filled up with zeros */
}

int vfs_pages_get(struct vfs_pages *pages, uint32_t page_number, bool has_content, uint8_t **page) {
  uint32_t place = find(pages, page_number);
  if (place == NONE) {
    int code = find_room(pages, &place);
    if (code == SQLITE_OK && !has_content) code = read_page(pages, page_number, place);
    if (code != SQLITE_OK) return code;
    pages->cached[place] = (struct cached){.page_number = page_number, .next = *chain_of(pages, page_number)};
    *chain_of(pages, page_number) = place;
  }
  struct cached *cached = &pages->cached[place];
  if (!cached->is_changed) pages->changed[pages->n_changed++] = place;
  cached->is_changed = cached->is_used = true;
  *page = bytes_of(pages, place);
  return SQLITE_OK;
}

static int by_page_number(const void *left, const void *right, void *ctx) {
  const struct vfs_pages *pages = ctx;
  uint32_t a = pages->cached[*(const uint32_t *)left].page_number,
           b = pages->cached[*(const uint32_t *)right].page_number;
  return (a > b) - (a < b);
}

/* Writes the changed pages from `first` on that lie side by side; *n are written. */
static int write_run(struct vfs_pages *pages, uint32_t first, uint32_t *n) {
  uint32_t n_max = WRITE_MAX / pages->page_size, left = pages->n_changed - first;
  const uint32_t *places = &pages->changed[first];
  uint32_t page_number = pages->cached[places[0]].page_number;
  sqlite3_int64 offset = (sqlite3_int64)(page_number - 1) * pages->page_size;
  for (*n = 0; *n < n_max && *n < left && pages->cached[places[*n]].page_number == page_number + *n; ++*n) {
    memcpy(pages->run + (size_t)*n * pages->page_size, bytes_of(pages, places[*n]), pages->page_size);
    pages->cached[places[*n]].is_changed = false;
  }
  return pages->file->pMethods->xWrite(pages->file, pages->run, (int)(*n * pages->page_size), offset);
}

int vfs_pages_write(struct vfs_pages *pages) {
  int code = SQLITE_OK;
  qsort_r(pages->changed, pages->n_changed, sizeof *pages->changed, by_page_number, pages);
  for (uint32_t first = 0, n = 0; first < pages->n_changed && code == SQLITE_OK; first += n)
    code = write_run(pages, first, &n);
  pages->n_changed = 0;
  return code;
}

void vfs_pages_clear(struct vfs_pages *pages) {
  for (uint32_t place = 0; place < pages->capacity; place++) {
    forget(pages, place);
    pages->cached[place].is_changed = pages->cached[place].is_used = false;
  }
  pages->n_changed = 0;
}
