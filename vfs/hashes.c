#include "hashes.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "change_set.h"
#include "vfs.h"

#define CHUNK_PAGES 65536u
#define CHUNKS 65536u

struct vfs_hashes {
  char *path;
  atomic_uint_least64_t damaged;                   /* offset + 1 of the first one that was wrong; 0: none */
  _Atomic(atomic_uint_least64_t *) chunks[CHUNKS]; /* NULL until used, then for ever; a hash of 0: not known */
};

struct vfs_hashes *vfs_hashes_new(const char *path) {
  struct vfs_hashes *hashes = calloc(1, sizeof *hashes);
  if (hashes) hashes->path = strdup(path);
  if (hashes && hashes->path) return hashes;
  free(hashes);
  return NULL;
}

/* NULL: no memory, and the page stays unknown. */
static atomic_uint_least64_t *place_of(struct vfs_hashes *hashes, uint32_t page_number) {
  _Atomic(atomic_uint_least64_t *) *chunk = &hashes->chunks[page_number / CHUNK_PAGES];
  atomic_uint_least64_t *places = atomic_load(chunk), *none = NULL;
  if (!places) {
    places = calloc(CHUNK_PAGES, sizeof *places);
    if (!places) return NULL;
    if (!atomic_compare_exchange_strong(chunk, &none, places)) {
      free(places);
      places = none; /* somebody was faster */
    }
  }
  return &places[page_number % CHUNK_PAGES];
}

void vfs_hashes_clear(struct vfs_hashes *hashes) {
  for (uint32_t i = 0; i < CHUNKS; i++) free(atomic_exchange(&hashes->chunks[i], NULL));
}

void vfs_hashes_free(struct vfs_hashes *hashes) {
  if (!hashes) return;
  vfs_hashes_clear(hashes);
  free(hashes->path);
  free(hashes);
}

void vfs_hashes_set(struct vfs_hashes *hashes, uint32_t page_number, const void *page, uint32_t page_size) {
  atomic_uint_least64_t *place = place_of(hashes, page_number);
  if (place) atomic_store(place, vfs_page_hash(page_number, page, page_size));
}

bool vfs_hashes_check(struct vfs_hashes *hashes, uint32_t page_number, const void *page, uint32_t page_size) {
  atomic_uint_least64_t *place = place_of(hashes, page_number);
  uint64_t hash = vfs_page_hash(page_number, page, page_size), known = 0, none = 0;
  /* Only in place of nothing: what is written to the file meanwhile counts. */
  if (!place || atomic_compare_exchange_strong(place, &known, hash) || known == hash) return true;
  uint64_t offset = (uint64_t)(page_number - 1) * page_size;
  char text[VFS_TEXT_MAX];
  if (atomic_compare_exchange_strong(&hashes->damaged, &none, offset + 1) && vfs_hashes_damaged(hashes, text))
    vfs_log(SQLITE_CORRUPT, text);
  return false;
}

bool vfs_hashes_damaged(struct vfs_hashes *hashes, char *text) {
  uint64_t damaged = atomic_load(&hashes->damaged);
  if (damaged && text)
    snprintf(
        text, VFS_TEXT_MAX,
        "%s is damaged at offset %llu: it was changed there under its node, by the disk or another program; start the "
        "node again, and it is made again from the log",
        hashes->path, (unsigned long long)damaged - 1);
  return damaged != 0;
}
