/*
** See packer.h. A block's number modulo SLOTS is its slot. Numbers are claimed in order, and less than SLOTS beyond the one
** that is taken next; what is in a claimed slot belongs to who claimed it until it is done.
*/
#include "packer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <lz4.h>

#define HELPERS 2
#define SLOTS 8
#define PACE_EVERY (50 * OS_MS) /* who waits for a helper asks for the pace this often */

struct slot {
  bool is_done;
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
  pthread_mutex_t mutex; /* guards what follows, and is_done of the slots */
  pthread_cond_t room;   /* a slot is free, or the helpers are dismissed */
  pthread_cond_t done;   /* a block is */
  uint32_t claimed;      /* by somebody: all before this number */
  uint32_t taken;        /* by the writer of the file: all before this number; the last one may still be looked at */
  bool is_dismissed;
  struct slot slots[SLOTS];
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

/* mutex held, given up meanwhile. The next number that nobody has claimed. */
static void claim_and_pack(struct snapshot_packer *packer) {
  uint32_t number = packer->claimed++;
  struct slot *slot = slot_of(packer, number);
  slot->is_done = false;
  pthread_mutex_unlock(&packer->mutex);
  pack(packer, slot, number);
  pthread_mutex_lock(&packer->mutex);
  slot->is_done = true;
  pthread_cond_signal(&packer->done);
}

/* mutex held. The slot of the block that was taken last is looked at until the next one is asked for. */
static bool has_room(const struct snapshot_packer *packer) {
  return packer->claimed < packer->n_blocks && packer->claimed - packer->taken < SLOTS - 1;
}

static void help(void *arg) {
  struct snapshot_packer *packer = arg;
  os_thread_yield_to_all(packer->os);
  pthread_mutex_lock(&packer->mutex);
  while (!packer->is_dismissed && packer->claimed < packer->n_blocks) {
    if (has_room(packer))
      claim_and_pack(packer);
    else
      os_condition_wait(packer->os, &packer->room, &packer->mutex, OS_FOREVER);
  }
  pthread_mutex_unlock(&packer->mutex);
}

/* mutex held. */
static void dismiss(struct snapshot_packer *packer) {
  packer->is_dismissed = true;
  pthread_cond_broadcast(&packer->room);
}

/* ---- Taking them ---- */

/* mutex held, given up meanwhile. -ECANCELED, or 0. */
static int keep_pace(struct snapshot_packer *packer) {
  uint64_t pages = (uint64_t)packer->taken * packer->pages_per_block;
  pthread_mutex_unlock(&packer->mutex);
  enum snapshot_pace pace = packer->input->pace(packer->input->ctx,
                                                pages < packer->pages ? (uint32_t)pages : packer->pages);
  pthread_mutex_lock(&packer->mutex);
  if (pace == SNAPSHOT_HURRY) dismiss(packer);
  return pace == SNAPSHOT_STOP ? -ECANCELED : 0;
}

/* mutex held, given up meanwhile. Until the block is done, by a helper or here. */
static int wait_for_block(struct snapshot_packer *packer, uint32_t number) {
  int error = keep_pace(packer);
  while (!error && (packer->claimed <= number || !slot_of(packer, number)->is_done)) {
    if (packer->claimed == number && packer->is_dismissed) {
      claim_and_pack(packer);
    } else {
      uint64_t deadline = os_now(packer->os) + PACE_EVERY;
      if (os_condition_wait(packer->os, &packer->done, &packer->mutex, deadline) != 0) error = keep_pace(packer);
    }
  }
  return error;
}

int snapshot_packer_next(struct snapshot_packer *packer, struct snapshot_packed *packed, char *text) {
  pthread_mutex_lock(&packer->mutex);
  uint32_t number = packer->taken;
  int error = number < packer->n_blocks ? wait_for_block(packer, number) : 0;
  struct slot *slot = slot_of(packer, number);
  if (!error && number < packer->n_blocks) {
    packer->taken++;
    error = slot->error;
    if (error) snapshot_say(text, error, "%s", slot->text);
    pthread_cond_signal(&packer->room);
  }
  pthread_mutex_unlock(&packer->mutex);
  if (error || number == packer->n_blocks) return error;
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
  packer->is_dismissed = packer->n_helpers == 0;
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
  for (size_t i = 0; i < SLOTS; i++) {
    made->slots[i].content = malloc(SNAPSHOT_BLOCK_SIZE);
    made->slots[i].stored = malloc(SNAPSHOT_BLOCK_SIZE);
    has_memory = has_memory && made->slots[i].content && made->slots[i].stored;
  }
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
  dismiss(packer);
  pthread_mutex_unlock(&packer->mutex);
  for (size_t i = 0; i < packer->n_helpers; i++) os_thread_join(packer->helpers[i]);
  pthread_cond_destroy(&packer->room);
  pthread_cond_destroy(&packer->done);
  pthread_mutex_destroy(&packer->mutex);
  for (size_t i = 0; i < SLOTS; i++) {
    free(packer->slots[i].content);
    free(packer->slots[i].stored);
  }
  free(packer);
}
