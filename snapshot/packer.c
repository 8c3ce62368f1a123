/*
** See packer.h. A block's number modulo SLOTS is its slot. Numbers are claimed in order, and less than SLOTS beyond the one
** that is taken next; what is in a claimed slot belongs to who claimed it until it is done. A helper may be stopped at any
** point: who takes the blocks then makes the one that it needs itself, in a slot of its own, and what the helper makes of
** that number later is of no use to anybody.
*/
#include "packer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <lz4.h>

#define HELPERS 2
#define SLOTS 8
#define PACE_EVERY (50 * OS_MS) /* who waits for a helper asks for the pace this often */

struct slot {
  bool is_busy; /* somebody works on it */
  uint32_t number;
  int error;
  uint64_t checksum;
  uint32_t content_size, stored_size;
  uint8_t *content, *stored; /* SNAPSHOT_BLOCK_SIZE each */
  char text[SNAPSHOT_TEXT_MAX];
};

struct snapshot_packer {
  struct os *os;
  const struct snapshot_input *input;
  uint32_t pages, page_size, pages_per_block, n_blocks;
  struct os_thread *helpers[HELPERS];
  size_t n_helpers;
  pthread_mutex_t mutex; /* guards what follows, and who has which slot */
  pthread_cond_t room;   /* a slot is free, or all is over */
  pthread_cond_t done;   /* a block is */
  uint32_t claimed;      /* by somebody: all before this number */
  uint32_t taken;        /* by the writer of the file: all before this number; the last one may still be looked at */
  bool is_over;
  struct slot slots[SLOTS];
  struct slot own; /* of who takes the blocks */
};

static struct slot *slot_of(struct snapshot_packer *packer, uint32_t number) {
  return &packer->slots[number % SLOTS];
}

/* ---- A block ---- */

static void add_checksum(const struct snapshot_packer *packer, struct slot *slot, uint32_t first, uint32_t n) {
  uint32_t lock_page = vfs_lock_page(packer->page_size);
  slot->checksum = 0;
  for (uint32_t i = 0; i < n; i++) {
    uint8_t *page = slot->content + (size_t)i * packer->page_size;
    if (first + i == lock_page)
      memset(page, 0, packer->page_size);
    else
      slot->checksum ^= vfs_page_hash(first + i, page, packer->page_size);
  }
}

/* No lock held: the slot is the caller's. A block that LZ4 does not make smaller is stored as it is. */
static void pack(const struct snapshot_packer *packer, struct slot *slot, uint32_t number) {
  uint32_t first = number * packer->pages_per_block + 1, left = packer->pages - first + 1;
  uint32_t n = left < packer->pages_per_block ? left : packer->pages_per_block;
  slot->text[0] = 0;
  slot->content_size = n * packer->page_size;
  slot->error = packer->input->read(packer->input->ctx, first, n, slot->content, slot->text);
  if (slot->error) return;
  add_checksum(packer, slot, first, n);
  int size = LZ4_compress_default((const char *)slot->content, (char *)slot->stored, (int)slot->content_size,
                                  (int)slot->content_size - 1);
  slot->stored_size = size > 0 ? (uint32_t)size : slot->content_size;
}

/* mutex held, given up meanwhile. */
static void work(struct snapshot_packer *packer, struct slot *slot, uint32_t number) {
  slot->is_busy = true;
  slot->number = number;
  pthread_mutex_unlock(&packer->mutex);
  pack(packer, slot, number);
  pthread_mutex_lock(&packer->mutex);
  slot->is_busy = false;
}

/* mutex held. The slot of the block that was taken last is looked at until the next one is asked for. */
static bool has_room(struct snapshot_packer *packer) {
  return packer->claimed < packer->n_blocks && packer->claimed - packer->taken < SLOTS - 1 &&
         !slot_of(packer, packer->claimed)->is_busy;
}

static void help(void *arg) {
  struct snapshot_packer *packer = arg;
  os_thread_yield_to_all(packer->os);
  pthread_mutex_lock(&packer->mutex);
  while (!packer->is_over && packer->claimed < packer->n_blocks) {
    if (has_room(packer)) {
      uint32_t number = packer->claimed++;
      work(packer, slot_of(packer, number), number);
      pthread_cond_signal(&packer->done);
    } else {
      os_condition_wait(packer->os, &packer->room, &packer->mutex, OS_FOREVER);
    }
  }
  pthread_mutex_unlock(&packer->mutex);
}

/* ---- Taking them ---- */

/* mutex held, given up meanwhile. */
static enum snapshot_pace pace_now(struct snapshot_packer *packer) {
  uint64_t pages = (uint64_t)packer->taken * packer->pages_per_block;
  pthread_mutex_unlock(&packer->mutex);
  enum snapshot_pace pace = packer->input->pace(packer->input->ctx,
                                                pages < packer->pages ? (uint32_t)pages : packer->pages);
  pthread_mutex_lock(&packer->mutex);
  return packer->n_helpers == 0 && pace == SNAPSHOT_QUIET ? SNAPSHOT_HURRY : pace;
}

/* mutex held. A helper has made the block. */
static bool is_made(struct snapshot_packer *packer, uint32_t number) {
  const struct slot *slot = slot_of(packer, number);
  return packer->claimed > number && slot->number == number && !slot->is_busy;
}

/* mutex held, given up meanwhile. The slot with the block, which a helper has made or this makes; NULL: the pace says stop. */
static struct slot *wait_for_block(struct snapshot_packer *packer, uint32_t number) {
  enum snapshot_pace pace = pace_now(packer);
  while (pace == SNAPSHOT_QUIET && !is_made(packer, number)) {
    uint64_t deadline = os_now(packer->os) + PACE_EVERY;
    if (os_condition_wait(packer->os, &packer->done, &packer->mutex, deadline) != 0) pace = pace_now(packer);
  }
  if (pace == SNAPSHOT_STOP) return NULL;
  if (is_made(packer, number)) return slot_of(packer, number);
  if (packer->claimed == number) packer->claimed++;
  work(packer, &packer->own, number);
  return &packer->own;
}

int snapshot_packer_next(struct snapshot_packer *packer, struct snapshot_packed *packed, char *text) {
  uint32_t number = packer->taken; /* nobody else changes it */
  if (number == packer->n_blocks) return 0;
  pthread_mutex_lock(&packer->mutex);
  const struct slot *slot = wait_for_block(packer, number);
  packer->taken++;
  pthread_cond_broadcast(&packer->room);
  pthread_mutex_unlock(&packer->mutex);
  if (slot == NULL) return -ECANCELED;
  if (slot->error) return snapshot_say(text, slot->error, "%s", slot->text);
  bool is_raw = slot->stored_size == slot->content_size;
  *packed = (struct snapshot_packed){
      .content = slot->content,
      .content_size = slot->content_size,
      .stored = is_raw ? slot->content : slot->stored,
      .stored_size = slot->stored_size,
      .checksum = slot->checksum,
  };
  return 1;
}

/* ---- Open and close ---- */

static void start_helpers(struct snapshot_packer *packer) {
  while (packer->n_helpers < HELPERS && packer->n_helpers < packer->n_blocks &&
         os_thread_start(packer->os, "balsa-lz4", help, packer, &packer->helpers[packer->n_helpers]) == 0)
    packer->n_helpers++;
}

static bool make_slot(struct slot *slot) {
  slot->number = UINT32_MAX;
  slot->content = malloc(SNAPSHOT_BLOCK_SIZE);
  slot->stored = malloc(SNAPSHOT_BLOCK_SIZE);
  return slot->content && slot->stored;
}

static void free_slot(struct slot *slot) {
  free(slot->content);
  free(slot->stored);
}

int snapshot_packer_open(struct os *os, const struct snapshot_input *input, uint32_t pages, uint32_t page_size,
                         struct snapshot_packer **packer) {
  bool has_memory = true;
  *packer = NULL;
  struct snapshot_packer *made = calloc(1, sizeof *made);
  if (made == NULL) return -ENOMEM;
  made->os = os;
  made->input = input;
  made->pages = pages;
  made->page_size = page_size;
  made->pages_per_block = SNAPSHOT_BLOCK_SIZE / page_size;
  made->n_blocks = (uint32_t)(((uint64_t)pages + made->pages_per_block - 1) / made->pages_per_block);
  pthread_mutex_init(&made->mutex, NULL);
  os_condition_init(&made->room);
  os_condition_init(&made->done);
  for (size_t i = 0; i < SLOTS; i++) has_memory = make_slot(&made->slots[i]) && has_memory;
  has_memory = make_slot(&made->own) && has_memory;
  if (!has_memory) {
    snapshot_packer_close(made);
    return -ENOMEM;
  }
  pthread_mutex_lock(&made->mutex);
  start_helpers(made);
  pthread_mutex_unlock(&made->mutex);
  *packer = made;
  return 0;
}

void snapshot_packer_close(struct snapshot_packer *packer) {
  if (packer == NULL) return;
  pthread_mutex_lock(&packer->mutex);
  packer->is_over = true;
  pthread_cond_broadcast(&packer->room);
  pthread_mutex_unlock(&packer->mutex);
  for (size_t i = 0; i < packer->n_helpers; i++) os_thread_join(packer->helpers[i]);
  pthread_cond_destroy(&packer->room);
  pthread_cond_destroy(&packer->done);
  pthread_mutex_destroy(&packer->mutex);
  for (size_t i = 0; i < SLOTS; i++) free_slot(&packer->slots[i]);
  free_slot(&packer->own);
  free(packer);
}
