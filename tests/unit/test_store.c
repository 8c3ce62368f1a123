/*
** The log on disk: what is durable stays, through power loss, damage, full disks and many threads.
*/
#include <errno.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "raft/io/segment.h"
#include "raft/io/store.h"
#include "tests/fault/sim_disk.h"

#define FOLDER "/log"
#define SEGMENT_BYTES (16u << 10)

static const struct raft_uuid incarnation = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}};
static const struct raft_store_options options = {.segment_bytes = SEGMENT_BYTES, .cache_bytes = 8192};

static uint64_t draw(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

static uint64_t draw_below(uint64_t *state, uint64_t n) {
  return draw(state) % n;
}

/* ---- Entries that can be told apart: all of an entry follows from (index, id) ---- */

static uint32_t size_of(uint64_t id) {
  uint64_t state = id;
  switch (draw_below(&state, 8)) {
  case 0: return 0;
  case 1: return (uint32_t)draw_below(&state, 6000);
  case 2: return draw_below(&state, 8) ? 100 : (uint32_t)(15000 + draw_below(&state, 9000));
  default: return (uint32_t)draw_below(&state, 300);
  }
}

static struct raft_entry entry_make(uint64_t index, uint64_t id, uint32_t size) {
  struct raft_entry entry = {
      .type = RAFT_ENTRY_DATA, .flags = RAFT_ENTRY_LAST, .term = id, .index = index, .origin_sequence = id};
  if (size == 0) return entry;
  entry.payload = raft_payload_new(size);
  assert_non_null(entry.payload);
  uint64_t state = id ^ index << 32;
  for (uint32_t i = 0; i < size; i++) entry.payload->bytes[i] = (uint8_t)(draw(&state) % 3 ? draw(&state) : 0);
  return entry;
}

static void entry_check(const struct raft_entry *entry, uint64_t index, uint64_t id, uint32_t size) {
  struct raft_entry expected = entry_make(index, id, size);
  assert_int_equal(entry->index, index);
  assert_int_equal(entry->term, id);
  assert_int_equal(entry->origin_sequence, id);
  assert_int_equal(entry->type, expected.type);
  assert_int_equal(entry->flags, expected.flags);
  assert_int_equal(raft_entry_size(entry), size);
  if (size) assert_memory_equal(entry->payload->bytes, expected.payload->bytes, size);
  raft_payload_unref(expected.payload);
}

static void append(struct raft_store *store, uint64_t index, uint64_t id, uint32_t size, uint64_t persist) {
  struct raft_entry entry = entry_make(index, id, size);
  assert_int_equal(raft_store_append(store, &entry, persist), 0);
  raft_payload_unref(entry.payload);
}

static void read_check(struct raft_store *store, uint64_t index, uint64_t id, uint32_t size) {
  struct raft_entry entry;
  assert_int_equal(raft_store_read(store, index, 1, SIZE_MAX, &entry), 1);
  entry_check(&entry, index, id, size);
  raft_payload_unref(entry.payload);
}

static struct raft_store *open_or_fail(struct os *os, const char *folder, struct raft_store_found *found) {
  struct raft_store *store;
  char text[RAFT_STORE_TEXT_MAX];
  int error = raft_store_open(os, folder, &incarnation, &options, found, &store, text);
  if (error) print_error("%s\n", text);
  assert_int_equal(error, 0);
  return store;
}

static struct raft_store *open_simple(struct os *os, const char *folder) {
  struct raft_store_found found;
  struct raft_store *store = open_or_fail(os, folder, &found);
  free(found.entries);
  return store;
}

static uint64_t flush_or_fail(struct raft_store *store) {
  uint64_t persist;
  assert_int_equal(raft_store_flush(store, &persist), 0);
  return persist;
}

/* ---- Plain use ---- */

static void an_empty_folder_gives_an_empty_log(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(1);
  struct raft_store_found found;
  struct raft_store *store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  assert_int_equal(found.first_index, 1);
  assert_int_equal(found.last_index, 0);
  assert_true(found.fresh);
  assert_false(found.cut);
  free(found.entries);
  raft_store_close(store);
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  assert_false(found.fresh);
  free(found.entries);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void entries_come_back_after_a_restart_with_all_their_fields(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(2);
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  struct raft_entry entry = entry_make(1, 7, 100), back;
  entry.type = RAFT_ENTRY_CONFIGURATION;
  entry.flags = RAFT_ENTRY_PART;
  entry.pages = 4;
  entry.page_size = 65536;
  entry.previous = 5;
  entry.checksum = UINT64_C(0x123456789abcdef0);
  entry.origin.bytes[15] = 9;
  entry.origin_sequence = 77;
  assert_int_equal(raft_store_append(store, &entry, 1), 0);
  assert_int_equal(flush_or_fail(store), 1);
  raft_store_close(store);
  struct raft_store_found found;
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  assert_int_equal(found.last_index, 1);
  assert_int_equal(found.entries[0].term, 7);
  assert_int_equal(found.entries[0].size, 100);
  assert_int_equal(found.entries[0].type, RAFT_ENTRY_CONFIGURATION);
  free(found.entries);
  assert_int_equal(raft_store_get(store, 1, 1, SIZE_MAX, &back), 0);
  assert_int_equal(raft_store_read(store, 1, 1, SIZE_MAX, &back), 1);
  assert_memory_equal(back.payload->bytes, entry.payload->bytes, 100);
  raft_payload_unref(entry.payload);
  raft_payload_unref(back.payload);
  back.payload = entry.payload = NULL;
  assert_int_equal(back.type, entry.type);
  assert_int_equal(back.flags, entry.flags);
  assert_int_equal(back.pages, entry.pages);
  assert_int_equal(back.page_size, entry.page_size);
  assert_int_equal(back.previous, entry.previous);
  assert_int_equal(back.checksum, entry.checksum);
  assert_int_equal(back.origin_sequence, entry.origin_sequence);
  assert_memory_equal(&back.origin, &entry.origin, sizeof back.origin);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void a_batch_tells_what_was_committed_before_it_and_no_more_than_it_holds(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(2);
  struct raft_store_found found;
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  for (uint64_t i = 1; i <= 3; i++) append(store, i, 1, 10, i);
  flush_or_fail(store);
  raft_store_commit(store, 2);
  raft_store_close(store);
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  free(found.entries);
  assert_int_equal(found.commit_index, 2); /* the seal of a stop in order told it */
  append(store, 4, 1, 10, 4);
  flush_or_fail(store);
  raft_store_commit(store, 9); /* of entries that are not in the log yet, as a follower may hear */
  append(store, 5, 1, 10, 5);
  flush_or_fail(store);
  raft_store_close(store);
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  free(found.entries);
  assert_int_equal(found.commit_index, 5);
  raft_store_close(store);
  sim_disk_free(disk);
}

/* As a stop does on a full disk, where only the seal still has room. */
static void a_seal_calls_nothing_committed_that_was_to_be_replaced(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(3);
  struct raft_store_found found;
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  for (uint64_t index = 1; index <= 5; index++) append(store, index, 1, 100, 1);
  flush_or_fail(store);
  assert_int_equal(raft_store_truncate(store, 4, 2), 0);
  for (uint64_t index = 4; index <= 6; index++) append(store, index, 2, 100, 2);
  raft_store_commit(store, 6);
  raft_store_close(store);
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  assert_int_equal(found.last_index, 5);
  assert_int_equal(found.commit_index, 3);
  free(found.entries);
  assert_int_equal(raft_store_reset(store, 9, 2, 1), 0);
  raft_store_commit(store, 9);
  append(store, 10, 2, 100, 1);
  raft_store_close(store);
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  assert_int_equal(found.last_index, 5);
  assert_int_equal(found.commit_index, 3);
  free(found.entries);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void one_flush_makes_one_synced_write(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(3);
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  for (uint64_t i = 1; i <= 20; i++) append(store, i, i, 20, i);
  uint64_t calls = sim_disk_calls(disk);
  assert_true(raft_store_is_pending(store));
  assert_int_equal(flush_or_fail(store), 20);
  assert_int_equal(sim_disk_calls(disk), calls + 1);
  assert_false(raft_store_is_pending(store));
  assert_int_equal(raft_store_pending_bytes(store), 0);
  assert_int_equal(flush_or_fail(store), 20);
  assert_int_equal(sim_disk_calls(disk), calls + 1);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void a_truncation_and_what_replaces_it_are_one_write(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(4);
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  for (uint64_t i = 1; i <= 5; i++) append(store, i, i, 20, i);
  flush_or_fail(store);
  assert_int_equal(raft_store_truncate(store, 3, 6), 0);
  append(store, 3, 30, 10, 6);
  append(store, 4, 40, 10, 6);
  assert_int_equal(raft_store_truncate(store, 4, 7), 0);
  append(store, 4, 41, 10, 7);
  uint64_t calls = sim_disk_calls(disk);
  assert_int_equal(flush_or_fail(store), 7);
  assert_int_equal(sim_disk_calls(disk), calls + 1);
  raft_store_close(store);
  struct raft_store_found found;
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  assert_int_equal(found.last_index, 4);
  assert_int_equal(found.entries[1].term, 2);
  assert_int_equal(found.entries[2].term, 30);
  assert_int_equal(found.entries[3].term, 41);
  free(found.entries);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void a_mark_is_reported_without_a_write(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(5);
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  uint64_t calls = sim_disk_calls(disk);
  raft_store_mark(store, 3);
  assert_true(raft_store_is_pending(store));
  assert_int_equal(flush_or_fail(store), 3);
  assert_int_equal(sim_disk_calls(disk), calls);
  append(store, 1, 1, 10, 0); /* its number comes with the mark */
  assert_int_equal(flush_or_fail(store), 3);
  raft_store_mark(store, 4);
  assert_int_equal(flush_or_fail(store), 4);
  assert_int_equal(sim_disk_calls(disk), calls + 1);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void old_entries_leave_memory_and_are_read_from_disk(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(6);
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  struct raft_entry entries[100];
  for (uint64_t i = 1; i <= 300; i++) {
    append(store, i, i, 500, i);
    if (i % 3 == 0) flush_or_fail(store);
  }
  assert_int_equal(raft_store_get(store, 1, 100, SIZE_MAX, entries), 0);
  int64_t n = raft_store_get(store, 299, 100, SIZE_MAX, entries);
  assert_int_equal(n, 2);
  while (n > 0) raft_payload_unref(entries[--n].payload);
  for (uint64_t i = 1; i <= 300;) {
    n = raft_store_read(store, i, 100, 1200, entries);
    assert_in_range(n, 1, 2);
    for (int64_t k = 0; k < n; k++) {
      entry_check(&entries[k], i++, entries[k].index, 500);
      raft_payload_unref(entries[k].payload);
    }
  }
  assert_int_equal(raft_store_read(store, 301, 1, SIZE_MAX, entries), -ENOENT);
  assert_int_equal(raft_store_read(store, 0, 1, SIZE_MAX, entries), -ENOENT);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void an_entry_larger_than_a_segment_gets_one_of_its_own(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(7);
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  append(store, 1, 1, 10 * SEGMENT_BYTES, 1); /* in the very first segment */
  append(store, 2, 2, 10, 2);
  flush_or_fail(store);
  append(store, 3, 3, 20 * SEGMENT_BYTES, 3);
  flush_or_fail(store);
  append(store, 4, 4, RAFT_PAYLOAD_MAX, 4);
  assert_int_equal(flush_or_fail(store), 4);
  raft_store_close(store);
  store = open_simple(sim_disk_os(disk), FOLDER);
  read_check(store, 1, 1, 10 * SEGMENT_BYTES);
  read_check(store, 2, 2, 10);
  read_check(store, 3, 3, 20 * SEGMENT_BYTES);
  read_check(store, 4, 4, RAFT_PAYLOAD_MAX);
  raft_store_close(store);
  sim_disk_free(disk);
}

/* ---- Power loss ---- */

/* A log as ids of its entries, which are their terms too, from where it last began anew; compaction changes nothing here. */
struct model {
  uint64_t base, base_term; /* the entry before the first */
  uint64_t *ids;
  size_t n;
};

#define OPERATIONS_MAX 64

/* One life of a node: what its log was after each operation. */
struct life {
  struct model states[OPERATIONS_MAX + 1]; /* by persist number */
  uint64_t from[OPERATIONS_MAX + 1];       /* what the operation truncated from; UINT64_MAX: nothing */
  bool anew[OPERATIONS_MAX + 1];           /* the operation was a reset */
  uint64_t last, reported;
  uint64_t known[OPERATIONS_MAX + 1]; /* of each state: how much of it was committed then */
  uint64_t committed;                 /* no truncation reaches it */
  uint64_t compacted;                 /* up to here entries may be gone */
};

static struct model model_copy(const struct model *model, size_t n) {
  struct model copy = {
      .base = model->base, .base_term = model->base_term, .ids = malloc((n + 1) * sizeof(uint64_t)), .n = n};
  assert_non_null(copy.ids);
  if (n) memcpy(copy.ids, model->ids, (n < model->n ? n : model->n) * sizeof(uint64_t));
  return copy;
}

static void life_end(struct life *life) {
  for (uint64_t i = 0; i <= life->last; i++) free(life->states[i].ids);
}

static uint64_t model_last(const struct model *model) {
  return model->base + model->n;
}

static uint64_t model_term(const struct model *model, uint64_t index) {
  return index == model->base ? model->base_term : model->ids[index - model->base - 1];
}

/* Of the same beginning, compacted or not, and not longer. */
static bool is_prefix(const struct model *found, const struct model *of) {
  if (found->base < of->base || model_last(found) > model_last(of)) return false;
  for (uint64_t i = found->base; i <= model_last(found); i++)
    if (model_term(found, i) != model_term(of, i)) return false;
  return true;
}

/*
** Everything reported durable is there, but for what was compacted; the rest is a prefix of what was queued, with nothing
** that was dropped. Once a reset is queued the log may be the one from before or the one from behind it.
*/
static bool is_allowed(const struct life *life, const struct model *found) {
  uint64_t kept = model_last(&life->states[life->reported]);
  bool anew = false;
  for (uint64_t i = life->reported + 1; i <= life->last; i++)
    if (life->from[i] <= kept) kept = life->from[i] - 1;
  for (uint64_t i = life->reported; i <= life->last; i++) {
    anew = anew || (i > life->reported && life->anew[i]);
    const struct model *state = &life->states[i];
    if (!is_prefix(found, state)) continue;
    if (found->base > state->base && found->base > life->compacted) continue;
    if (anew || model_last(found) >= kept) return true;
  }
  return false;
}

/* What the log says to be committed is of a state of which so much was. */
static bool is_committed(const struct life *life, const struct model *found, uint64_t commit) {
  for (uint64_t i = 0; i <= life->last; i++) {
    const struct model *state = &life->states[i];
    if (life->known[i] < commit || state->base > commit) continue;
    uint64_t at = found->base > state->base ? found->base : state->base;
    while (at < commit && model_term(found, at + 1) == model_term(state, at + 1)) at++;
    if (at >= commit) return true;
  }
  return commit <= found->base;
}

struct run {
  uint64_t random, next_id;
  struct sim_disk *disk;
  struct life life;
  bool quiet_disk;
  uint64_t compactions, resets;
};

static struct model begin_anew(struct run *run, struct raft_store *store, const struct model *before, uint64_t number) {
  struct model after = model_copy(before, 0);
  after.base = model_last(before) + draw_below(&run->random, 30);
  if (draw_below(&run->random, 3) == 0) after.base = run->life.committed + draw_below(&run->random, 10);
  if (after.base == 0) after.base = 1;
  after.base_term = run->next_id++;
  run->life.anew[number] = true;
  run->life.committed = run->life.compacted = after.base;
  assert_int_equal(raft_store_reset(store, after.base, after.base_term, number), 0);
  run->resets++;
  return after;
}

/* What is durable may be called committed, and then be compacted. */
static void compact(struct run *run, struct raft_store *store) {
  struct raft_store_status before, after;
  struct life *life = &run->life;
  raft_store_get_status(store, &before);
  assert_int_equal(raft_store_compact(store, before.durable_index + 1), -EINVAL);
  if (before.durable_index < before.first_index) return;
  const uint64_t more = draw_below(&run->random, before.durable_index + 1 - before.first_index);
  const uint64_t through = before.first_index +
                           (draw_below(&run->random, 3) ? more : before.durable_index - before.first_index);
  if (through > life->committed) life->committed = through;
  if (through > life->compacted) life->compacted = through;
  int error = raft_store_compact(store, through);
  assert_true(error == 0 || sim_disk_is_down(run->disk) || error == -EIO);
  raft_store_get_status(store, &after);
  assert_in_range(after.first_index, before.first_index, through + 1);
  assert_true(after.bytes <= before.bytes);
  run->compactions += after.first_index > before.first_index;
}

static void random_operation(struct run *run, struct raft_store *store) {
  struct life *life = &run->life;
  struct model *before = &life->states[life->last];
  uint64_t number = life->last + 1,
           free = model_last(before) > life->committed ? model_last(before) - life->committed : 0;
  struct model after;
  life->from[number] = UINT64_MAX;
  if (draw_below(&run->random, 3) == 0) compact(run, store);
  if (draw_below(&run->random, 16) == 0) {
    after = begin_anew(run, store, before, number);
  } else if (free > 0 && before->n > 0 && draw_below(&run->random, 6) == 0) {
    if (free > before->n) free = before->n;
    uint64_t back = draw_below(&run->random, free < 8 || draw_below(&run->random, 8) == 0 ? free : 8);
    life->from[number] = model_last(before) - back;
    if (life->from[number] <= life->committed) life->from[number] = life->committed + 1;
    after = model_copy(before, (size_t)(life->from[number] - before->base - 1));
    assert_int_equal(raft_store_truncate(store, life->from[number], number), 0);
  } else if (draw_below(&run->random, 12) == 0) {
    after = model_copy(before, before->n);
    raft_store_mark(store, number);
  } else {
    size_t more = 1 + (size_t)draw_below(&run->random, 4);
    after = model_copy(before, before->n + more);
    for (size_t i = before->n; i < after.n; i++) {
      after.ids[i] = run->next_id++;
      append(store, after.base + i + 1, after.ids[i], size_of(after.ids[i]), number);
    }
  }
  life->states[number] = after;
  life->last = number;
  /* As a follower hears of it: of entries that are not durable here, too. */
  if (model_last(&after) > life->committed && draw_below(&run->random, 4) == 0)
    life->committed += draw_below(&run->random, model_last(&after) - life->committed + 1);
  raft_store_commit(store, life->committed);
  life->known[number] = life->committed;
}

/* Lives until something fails or nothing more is to be done. */
static void live(struct run *run, struct raft_store *store) {
  struct life *life = &run->life;
  uint64_t n = 1 + draw_below(&run->random, OPERATIONS_MAX - 1), persist, again;
  while (life->last < n) {
    random_operation(run, store);
    if (draw_below(&run->random, 3)) continue;
    int error = raft_store_flush(store, &persist);
    assert_true(persist >= life->reported && persist <= life->last);
    life->reported = persist;
    if (error == -ENOSPC && !sim_disk_is_down(run->disk)) {
      sim_disk_set_capacity(run->disk, UINT64_MAX);
      error = raft_store_flush(store, &persist);
      life->reported = persist;
    }
    if (error) {
      int later = raft_store_flush(store, &again);
      if (error != -ENOSPC) assert_int_equal(later, error); /* the power went in the clean-up of a full disk */
      assert_true(later < 0);
      assert_int_equal(again, persist);
      return;
    }
    assert_int_equal(persist, life->last);
  }
}

static void check_found(struct run *run, struct raft_store *store, const struct raft_store_found *found,
                        struct model *model) {
  *model = (struct model){.base = found->first_index - 1,
                          .base_term = found->prev_term,
                          .n = (size_t)(found->last_index + 1 - found->first_index)};
  model->ids = malloc((model->n + 1) * sizeof(uint64_t));
  assert_non_null(model->ids);
  for (size_t i = 0; i < model->n; i++) model->ids[i] = found->entries[i].term;
  assert_true(is_allowed(&run->life, model));
  assert_true(found->commit_index <= found->last_index && is_committed(&run->life, model, found->commit_index));
  for (size_t i = 0; i < model->n; i++) read_check(store, model->base + i + 1, model->ids[i], size_of(model->ids[i]));
}

static void arrange_faults(struct run *run) {
  struct sim_disk *disk = run->disk;
  enum sim_disk_crash kind = draw_below(&run->random, 4) ? SIM_DISK_POWER_LOSS : SIM_DISK_KILL;
  sim_disk_crash_at(disk, 1 + draw_below(&run->random, 40), kind);
  for (int call = 0; call < SIM_DISK_CALLS; call++)
    sim_disk_set_error_rate(disk, (enum sim_disk_call)call, run->quiet_disk ? 0 : 5000);
  sim_disk_set_capacity(disk, draw_below(&run->random, 4) ? UINT64_MAX : sim_disk_used(disk) + 30000);
}

/* Opens until it works: a crash or an error may strike at every call of it. Damage is never found. */
static struct raft_store *open_again(struct run *run, struct raft_store_found *found) {
  struct raft_store *store;
  char text[RAFT_STORE_TEXT_MAX];
  for (int i = 0;; i++) {
    if (i > 10) {
      sim_disk_crash_at(run->disk, 0, SIM_DISK_KILL);
      for (int call = 0; call < SIM_DISK_CALLS; call++) sim_disk_set_error_rate(run->disk, (enum sim_disk_call)call, 0);
      sim_disk_set_capacity(run->disk, UINT64_MAX);
    }
    int error = raft_store_open(sim_disk_os(run->disk), FOLDER, &incarnation, &options, found, &store, text);
    if (error == 0) return store;
    if (error != -EIO && error != -ENOSPC) print_error("%s\n", text);
    assert_true(error == -EIO || error == -ENOSPC);
    assert_true(strlen(text) > 20);
    if (sim_disk_is_down(run->disk)) sim_disk_restart(run->disk);
    if (i < 8) arrange_faults(run);
  }
}

static void run_seed(uint64_t seed, struct sim_disk_counters *counters, uint64_t counts[3]) {
  struct run run = {.random = seed, .next_id = 1, .disk = sim_disk_new(seed), .quiet_disk = seed % 3 != 0};
  run.life.states[0] = (struct model){.ids = malloc(1)};
  for (int lives = 0; lives < 6; lives++) {
    struct raft_store_found found;
    struct model model;
    struct raft_store *store = open_again(&run, &found);
    for (int call = 0; call < SIM_DISK_CALLS; call++) sim_disk_set_error_rate(run.disk, (enum sim_disk_call)call, 0);
    sim_disk_crash_at(run.disk, 0, SIM_DISK_KILL);
    counts[0] += found.cut;
    check_found(&run, store, &found, &model);
    free(found.entries);
    life_end(&run.life);
    uint64_t committed = found.commit_index > model.base ? found.commit_index : model.base;
    run.life = (struct life){
        .states[0] = model, .known[0] = committed, .committed = committed, .compacted = model.base};
    arrange_faults(&run);
    live(&run, store);
    if (draw_below(&run.random, 3)) sim_disk_crash(run.disk, SIM_DISK_POWER_LOSS);
    raft_store_close(store);
    sim_disk_restart(run.disk);
    if (draw_below(&run.random, 2)) arrange_faults(&run);
  }
  struct sim_disk_counters more;
  sim_disk_get_counters(run.disk, &more);
  for (int i = 0; i < SIM_DISK_CALLS; i++) counters->errors[i] += more.errors[i];
  counters->no_space += more.no_space;
  counters->power_losses += more.power_losses;
  counters->kills += more.kills;
  counters->sectors_kept += more.sectors_kept;
  counters->sectors_lost += more.sectors_lost;
  counters->names_kept += more.names_kept;
  counters->names_lost += more.names_lost;
  counts[1] += run.compactions;
  counts[2] += run.resets;
  life_end(&run.life);
  sim_disk_free(run.disk);
}

static void what_was_reported_durable_survives_any_crash_and_nothing_stale_returns(void **state) {
  (void)state;
  struct sim_disk_counters counters = {0};
  uint64_t counts[3] = {0};
  const char *one = getenv("SEED"), *many = getenv("STORE_SEEDS");
  uint64_t first = one ? strtoull(one, NULL, 10) : 1, last = one ? first : many ? strtoull(many, NULL, 10) : 600;
  for (uint64_t seed = first; seed <= last; seed++) {
    if (many || one) print_message("SEED=%llu\n", (unsigned long long)seed);
    run_seed(seed, &counters, counts);
  }
  if (last - first < 500) return; /* too few to meet every fault */
  assert_true(counts[0] > 0 && counts[1] > 100 && counts[2] > 100);
  assert_true(counters.no_space > 0 && counters.power_losses > 0 && counters.kills > 0);
  assert_true(counters.sectors_kept > 0 && counters.sectors_lost > 0);
  assert_true(counters.names_kept > 0 && counters.names_lost > 0);
  for (int i = 0; i < SIM_DISK_CALLS; i++) assert_true(counters.errors[i] > 0);
}

/* ---- Damage ---- */

/* A log of three segments or so; the caller crashes or closes. Returns the index of the last entry. */
static uint64_t fill_log(struct raft_store *store) {
  uint64_t index = 0;
  for (int i = 0; i < 24; i++) {
    append(store, index + 1, 100 + index, 700, index + 1);
    append(store, index + 2, 100 + index, 900, index + 2);
    index += 2;
    flush_or_fail(store);
  }
  return index;
}

/* Offset after the last byte that is not zero. */
static uint64_t end_of(struct sim_disk *disk, const char *path) {
  uint64_t size;
  const uint8_t *bytes = sim_disk_bytes(disk, path, &size);
  if (bytes == NULL) return 0;
  while (size > 0 && bytes[size - 1] == 0) size--;
  return size;
}

static void expect_refusal(struct sim_disk *disk, const char *path, uint64_t offset) {
  struct raft_store_found found;
  struct raft_store *store;
  char text[RAFT_STORE_TEXT_MAX], where[64];
  int error = raft_store_open(sim_disk_os(disk), FOLDER, &incarnation, &options, &found, &store, text);
  if (error != -EILSEQ) print_error("%s: flipped byte %llu: %d\n", path, (unsigned long long)offset, error);
  assert_int_equal(error, -EILSEQ);
  assert_non_null(strstr(text, path));
  const char *at = strstr(text, "offset ");
  assert_non_null(at);
  unsigned long long told = strtoull(at + 7, NULL, 10);
  snprintf(where, sizeof where, "%llu > %llu", told, (unsigned long long)offset);
  if (told > offset) fail_msg("%s: told offset %s", path, where);
}

static void flip_all(struct sim_disk *disk, const char *path, uint64_t from, uint64_t to, uint64_t step) {
  for (uint64_t i = from; i < to; i += step) {
    uint8_t bits = (uint8_t)(1u << (i % 8));
    sim_disk_flip(disk, path, i, bits);
    expect_refusal(disk, path, i);
    sim_disk_flip(disk, path, i, bits);
  }
}

static void a_flipped_bit_in_an_earlier_batch_is_refused_with_file_and_offset(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(8);
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  uint64_t last = fill_log(store);
  raft_store_close(store);
  assert_true(end_of(disk, FOLDER "/00000003.log") > SEGMENT_HEADER_SIZE);
  for (uint32_t number = 1; number <= 3; number++) {
    char path[OS_PATH_MAX];
    assert_int_equal(segment_path(FOLDER, number, path), 0);
    flip_all(disk, path, 0, 48, 1);
    flip_all(disk, path, SEGMENT_HEADER_SIZE, end_of(disk, path), number == 2 ? 1 : 13);
  }
  struct raft_store_found found;
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  assert_int_equal(found.last_index, last);
  assert_false(found.cut);
  free(found.entries);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void a_flipped_bit_in_the_last_batch_is_not_taken_for_a_torn_one(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(9);
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  append(store, 1, 1, 100, 1);
  flush_or_fail(store);
  uint64_t from = end_of(disk, FOLDER "/00000001.log");
  append(store, 2, 2, 3000, 2);
  flush_or_fail(store);
  sim_disk_crash(disk, SIM_DISK_KILL);
  raft_store_close(store);
  sim_disk_restart(disk);
  flip_all(disk, FOLDER "/00000001.log", from, end_of(disk, FOLDER "/00000001.log"), 1);
  sim_disk_free(disk);
}

static void a_lost_sector_in_an_earlier_batch_is_refused(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(10);
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  fill_log(store);
  raft_store_close(store);
  uint64_t size;
  for (uint64_t sector = SEGMENT_HEADER_SIZE; sector < SEGMENT_HEADER_SIZE + 6000; sector += SIM_DISK_SECTOR) {
    uint8_t saved[SIM_DISK_SECTOR];
    memcpy(saved, sim_disk_bytes(disk, FOLDER "/00000002.log", &size) + sector, sizeof saved);
    for (uint64_t i = 0; i < sizeof saved; i++) sim_disk_flip(disk, FOLDER "/00000002.log", sector + i, saved[i]);
    expect_refusal(disk, FOLDER "/00000002.log", sector + SIM_DISK_SECTOR);
    for (uint64_t i = 0; i < sizeof saved; i++) sim_disk_flip(disk, FOLDER "/00000002.log", sector + i, saved[i]);
  }
  sim_disk_free(disk);
}

static void a_missing_segment_is_refused(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(11);
  struct raft_store_found found;
  char text[RAFT_STORE_TEXT_MAX];
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  fill_log(store);
  raft_store_close(store);
  assert_int_equal(os_remove(sim_disk_os(disk), FOLDER "/00000002.log"), 0);
  assert_int_equal(raft_store_open(sim_disk_os(disk), FOLDER, &incarnation, &options, &found, &store, text), -EILSEQ);
  assert_non_null(strstr(text, FOLDER));
  sim_disk_free(disk);
}

static void an_end_that_is_lost_is_missed_before_anything_is_written(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(12);
  struct raft_store_found found;
  char text[RAFT_STORE_TEXT_MAX];
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  append(store, 1, 1, 100, 1);
  flush_or_fail(store);
  sim_disk_crash(disk, SIM_DISK_KILL);
  raft_store_close(store);
  sim_disk_restart(disk);
  uint64_t end = end_of(disk, FOLDER "/00000001.log");
  struct raft_store_options least = options;
  least.last_index_least = 2;
  assert_int_equal(raft_store_open(sim_disk_os(disk), FOLDER, &incarnation, &least, &found, &store, text), -EILSEQ);
  assert_non_null(strstr(text, "ends at entry 1, in 00000001.log at offset"));
  assert_int_equal(end_of(disk, FOLDER "/00000001.log"), end); /* no seal: what is restored may begin here */
  least.last_index_least = 1;
  assert_int_equal(raft_store_open(sim_disk_os(disk), FOLDER, &incarnation, &least, &found, &store, text), 0);
  free(found.entries);
  raft_store_close(store);
  assert_true(end_of(disk, FOLDER "/00000001.log") > end);
  sim_disk_free(disk);
}

static void the_log_of_another_incarnation_is_refused(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(12);
  struct raft_store_found found;
  char text[RAFT_STORE_TEXT_MAX];
  struct raft_uuid other = {{9}};
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  raft_store_close(store);
  assert_int_equal(raft_store_open(sim_disk_os(disk), FOLDER, &other, &options, &found, &store, text), -EPROTO);
  assert_non_null(strstr(text, "incarnation"));
  sim_disk_free(disk);
}

static void damage_that_comes_later_is_found_by_reading(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(13);
  char text[RAFT_STORE_TEXT_MAX];
  struct raft_entry entry;
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  fill_log(store);
  raft_store_close(store);
  store = open_simple(sim_disk_os(disk), FOLDER);
  sim_disk_flip(disk, FOLDER "/00000001.log", SEGMENT_HEADER_SIZE + 300, 4);
  assert_int_equal(raft_store_read(store, 1, 1, SIZE_MAX, &entry), -EILSEQ);
  raft_store_error(store, text);
  assert_non_null(strstr(text, FOLDER "/00000001.log"));
  read_check(store, 5, 104, 700);
  raft_store_close(store);
  sim_disk_free(disk);
}

/* ---- Failing disks ---- */

static void after_a_failed_write_every_flush_fails(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(14);
  uint64_t persist;
  char text[RAFT_STORE_TEXT_MAX];
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  append(store, 1, 1, 100, 1);
  flush_or_fail(store);
  append(store, 2, 2, 100, 2);
  sim_disk_fail_nth(disk, SIM_DISK_SYNC, 1, -EIO);
  assert_int_equal(raft_store_flush(store, &persist), -EIO);
  assert_int_equal(persist, 1);
  raft_store_error(store, text);
  assert_non_null(strstr(text, FOLDER "/00000001.log"));
  assert_non_null(strstr(text, "offset"));
  assert_int_equal(raft_store_flush(store, &persist), -EIO);
  assert_int_equal(persist, 1);
  read_check(store, 1, 1, 100);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void a_full_disk_stops_writing_only_until_there_is_room(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(15);
  uint64_t persist, index = 0;
  int error = 0;
  char text[RAFT_STORE_TEXT_MAX];
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  sim_disk_set_capacity(disk, sim_disk_used(disk) + 1000);
  while (error == 0) {
    index++;
    append(store, index, index, 1000, index);
    error = raft_store_flush(store, &persist);
  }
  assert_int_equal(error, -ENOSPC);
  assert_int_equal(persist, index - 1);
  raft_store_error(store, text);
  assert_non_null(strstr(text, "00000002.log"));
  assert_int_equal(raft_store_flush(store, &persist), -ENOSPC);
  sim_disk_set_capacity(disk, UINT64_MAX);
  assert_int_equal(flush_or_fail(store), index);
  raft_store_close(store);
  store = open_simple(sim_disk_os(disk), FOLDER);
  for (uint64_t i = 1; i <= index; i++) read_check(store, i, i, 1000);
  raft_store_close(store);
  sim_disk_free(disk);
}

/* ---- What happens while a batch is being written ---- */

static struct raft_store *hooked_store;
static void (*hook)(void); /* called once, in the next write */
static int (*plain_write)(struct os_file *file, const void *bytes, size_t size, uint64_t offset);

static int hooked_write(struct os_file *file, const void *bytes, size_t size, uint64_t offset) {
  void (*call)(void) = hook;
  hook = NULL;
  if (call) call();
  return plain_write(file, bytes, size, offset);
}

static struct raft_store *open_hooked(struct sim_disk *disk) {
  static struct os_methods methods;
  methods = *sim_disk_os(disk)->methods;
  plain_write = methods.write;
  methods.write = hooked_write;
  sim_disk_os(disk)->methods = &methods;
  hooked_store = open_simple(sim_disk_os(disk), FOLDER);
  return hooked_store;
}

static void replace_the_last_two(void) {
  append(hooked_store, 6, 6, 10, 2);
  raft_store_truncate(hooked_store, 4, 3);
  append(hooked_store, 4, 40, 300, 4);
}

static void entries_replaced_while_they_are_written_are_written_again(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(16);
  struct raft_store *store = open_hooked(disk);
  for (uint64_t i = 1; i <= 5; i++) append(store, i, i, 100, 1);
  hook = replace_the_last_two;
  assert_int_equal(flush_or_fail(store), 1);
  assert_true(raft_store_is_pending(store));
  assert_true(raft_store_pending_bytes(store) > 300);
  assert_int_equal(flush_or_fail(store), 4);
  assert_int_equal(raft_store_pending_bytes(store), 0);
  raft_store_close(store);
  struct raft_store_found found;
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  assert_int_equal(found.last_index, 4);
  free(found.entries);
  read_check(store, 3, 3, 100);
  read_check(store, 4, 40, 300);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void begin_anew_while_writing(void) {
  append(hooked_store, 6, 6, 10, 2);
  raft_store_reset(hooked_store, 3, 30, 3);
  append(hooked_store, 4, 40, 300, 4);
}

static void begin_anew_while_making(void) {
  raft_store_reset(hooked_store, 3, 30, 3);
  append(hooked_store, 4, 40, 300, 4);
}

static void entries_that_wait_and_those_being_written_give_way_to_a_new_beginning(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(17);
  struct raft_store *store = open_hooked(disk);
  for (uint64_t i = 1; i <= 5; i++) append(store, i, i, 100, 1);
  hook = begin_anew_while_writing;
  assert_int_equal(flush_or_fail(store), 1);
  assert_true(raft_store_is_pending(store));
  assert_true(raft_store_pending_bytes(store) > 300);
  read_check(store, 4, 40, 300);
  struct raft_entry entry;
  assert_int_equal(raft_store_read(store, 3, 1, SIZE_MAX, &entry), -ENOENT);
  assert_int_equal(flush_or_fail(store), 4);
  assert_int_equal(raft_store_pending_bytes(store), 0);
  read_check(store, 4, 40, 300);
  raft_store_close(store);
  struct raft_store_found found;
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  assert_int_equal(found.first_index, 4);
  assert_int_equal(found.prev_term, 30);
  assert_int_equal(found.last_index, 4);
  free(found.entries);
  read_check(store, 4, 40, 300);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void a_new_beginning_comes_before_what_waits_for_the_next_segment(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(25);
  struct raft_store_found found;
  struct raft_store *store = open_hooked(disk);
  append(store, 1, 1, 3000, 1);
  flush_or_fail(store);
  append(store, 2, 2, 9000, 2);
  hook = begin_anew_while_making;
  assert_int_equal(flush_or_fail(store), 4);
  raft_store_close(store);
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  assert_int_equal(found.first_index, 4);
  assert_int_equal(found.last_index, 4);
  free(found.entries);
  read_check(store, 4, 40, 300);
  raft_store_close(store);
  sim_disk_free(disk);
}

/* ---- The beginning ---- */

static int count_one(void *ctx, const char *name) {
  *(uint32_t *)ctx += segment_number(name) != 0;
  return 0;
}

static uint32_t count_segments(struct sim_disk *disk) {
  uint32_t n = 0;
  assert_int_equal(os_list(sim_disk_os(disk), FOLDER, count_one, &n), 0);
  return n;
}

/* Entries first … last, about 4 in a segment. */
static void fill(struct raft_store *store, uint64_t first, uint64_t last) {
  for (uint64_t i = first; i <= last; i++) {
    append(store, i, i, 3000, i);
    flush_or_fail(store);
  }
}

static void compaction_drops_whole_segments_and_the_log_begins_behind_them_ever_after(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(18);
  struct raft_store_status before, after;
  struct raft_store_found found;
  struct raft_entry entry;
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  fill(store, 1, 30);
  raft_store_get_status(store, &before);
  assert_int_equal(raft_store_compact(store, 31), -EINVAL);
  assert_int_equal(raft_store_compact(store, 1), 0);
  raft_store_get_status(store, &after);
  assert_int_equal(after.first_index, 1);
  assert_int_equal(raft_store_compact(store, 20), 0);
  raft_store_get_status(store, &after);
  assert_in_range(after.first_index, 16, 21);
  assert_true(after.bytes < before.bytes / 2);
  assert_int_equal(raft_store_read(store, after.first_index - 1, 1, SIZE_MAX, &entry), -ENOENT);
  read_check(store, after.first_index, after.first_index, 3000);
  assert_int_equal(raft_store_compact(store, 10), 0);
  fill(store, 31, 33);
  raft_store_close(store);
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  assert_int_equal(found.first_index, after.first_index);
  assert_int_equal(found.prev_term, after.first_index - 1);
  assert_int_equal(found.last_index, 33);
  assert_false(found.fresh);
  free(found.entries);
  for (uint64_t i = after.first_index; i <= 33; i++) read_check(store, i, i, 3000);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void files_of_compacted_segments_are_used_again_and_are_few(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(19);
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  uint32_t most = 0;
  for (uint64_t i = 1; i <= 400; i++) {
    fill(store, i, i);
    if (i % 10 == 0) assert_int_equal(raft_store_compact(store, i), 0);
    uint32_t n = count_segments(disk);
    most = n > most ? n : most;
    if (i % 50 == 0) {
      raft_store_close(store);
      store = open_simple(sim_disk_os(disk), FOLDER);
    }
  }
  assert_in_range(most, 2, 8);
  read_check(store, 400, 400, 3000);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void a_compacted_log_goes_on_where_there_is_no_room_for_another_segment(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(20);
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  fill(store, 1, 10);
  sim_disk_set_capacity(disk, sim_disk_used(disk));
  for (uint64_t i = 10; i < 60; i += 2) {
    assert_int_equal(raft_store_compact(store, i), 0);
    fill(store, i + 1, i + 2);
  }
  raft_store_close(store);
  sim_disk_free(disk);
}

static void a_segment_may_begin_with_entries_that_it_replaces_itself(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(21);
  struct raft_store_found found;
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  fill(store, 1, 4); /* three fit into a segment */
  assert_int_equal(raft_store_truncate(store, 3, 5), 0);
  append(store, 3, 33, 100, 5);
  append(store, 4, 44, 100, 5);
  flush_or_fail(store);
  assert_int_equal(raft_store_compact(store, 3), 0);
  raft_store_close(store);
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  assert_int_equal(found.first_index, 3);
  assert_int_equal(found.prev_term, 2);
  assert_int_equal(found.last_index, 4);
  free(found.entries);
  read_check(store, 3, 33, 100);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void a_new_beginning_survives_a_restart_and_forgets_what_was_before(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(22);
  struct raft_store_found found;
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  fill(store, 1, 20);
  assert_int_equal(raft_store_reset(store, 1000, 7, 0), 0); /* at a start: no number */
  assert_int_equal(flush_or_fail(store), 20);
  assert_false(raft_store_is_pending(store));
  assert_in_range(count_segments(disk), 1, 4);
  for (int i = 0; i < 2; i++) {
    raft_store_close(store);
    store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
    assert_int_equal(found.first_index, 1001);
    assert_int_equal(found.last_index, 1000);
    assert_int_equal(found.prev_term, 7);
    assert_false(found.fresh);
    free(found.entries);
  }
  fill(store, 1001, 1002);
  assert_int_equal(raft_store_reset(store, 2000, 2000, 2000), 0);
  raft_store_mark(store, 2001);
  assert_int_equal(raft_store_reset(store, 3000, 3000, 2002), 0);
  append(store, 3001, 3001, 100, 2003);
  assert_int_equal(flush_or_fail(store), 2003);
  raft_store_close(store);
  store = open_or_fail(sim_disk_os(disk), FOLDER, &found);
  assert_int_equal(found.prev_term, 3000);
  assert_int_equal(found.last_index, 3001);
  free(found.entries);
  raft_store_close(store);
  sim_disk_free(disk);
}

static void expect_damage(struct sim_disk *disk, const char *path) {
  struct raft_store_found found;
  struct raft_store *store;
  char text[RAFT_STORE_TEXT_MAX];
  assert_int_equal(raft_store_open(sim_disk_os(disk), FOLDER, &incarnation, &options, &found, &store, text), -EILSEQ);
  if (strstr(text, path) == NULL) fail_msg("%s is not named: %s", path, text);
}

static void a_compacted_log_without_its_first_segment_or_its_base_is_refused(void **state) {
  (void)state;
  struct sim_disk *disk = sim_disk_new(23);
  struct raft_store *store = open_simple(sim_disk_os(disk), FOLDER);
  fill(store, 1, 30);
  assert_int_equal(raft_store_compact(store, 29), 0);
  raft_store_close(store);
  sim_disk_flip(disk, FOLDER "/base", 40, 1); /* one of two copies is enough */
  raft_store_close(open_simple(sim_disk_os(disk), FOLDER));
  sim_disk_flip(disk, FOLDER "/base", 40, 1);
  sim_disk_flip(disk, FOLDER "/base", 4096 + 40, 1);
  expect_damage(disk, FOLDER "/base");
  assert_int_equal(os_remove(sim_disk_os(disk), FOLDER "/base"), 0); /* as if it had never been compacted */
  expect_damage(disk, FOLDER);
  sim_disk_free(disk);
  disk = sim_disk_new(24);
  store = open_simple(sim_disk_os(disk), FOLDER);
  assert_int_equal(raft_store_reset(store, 1000, 7, 1), 0);
  flush_or_fail(store);
  raft_store_close(store);
  sim_disk_flip(disk, FOLDER "/00000001.log", 20, 1); /* blank, and all there is */
  expect_damage(disk, FOLDER "/00000001.log");
  assert_int_equal(os_remove(sim_disk_os(disk), FOLDER "/00000001.log"), 0);
  expect_damage(disk, FOLDER ": segments are missing");
  sim_disk_free(disk);
}

/* ---- Threads, on the real disk ---- */

struct threads {
  struct raft_store *store;
  pthread_mutex_t mutex; /* as the node's: appends come in order */
  uint64_t persist, last, committed;
  uint64_t reported;
  atomic_bool done;
};

static void flusher(void *arg) {
  struct threads *threads = arg;
  uint64_t before = 0, persist;
  while (!atomic_load(&threads->done) || raft_store_is_pending(threads->store)) {
    assert_int_equal(raft_store_flush(threads->store, &persist), 0);
    assert_true(persist >= before);
    before = persist;
  }
}

static void reader(void *arg) {
  struct threads *threads = arg;
  struct raft_entry entries[8];
  uint64_t random = 5;
  while (!atomic_load(&threads->done)) {
    pthread_mutex_lock(&threads->mutex);
    uint64_t last = threads->last;
    pthread_mutex_unlock(&threads->mutex);
    if (last == 0) continue;
    uint64_t first = 1 + draw_below(&random, last);
    int64_t n = raft_store_read(threads->store, first, 8, 4000, entries);
    assert_true(n > 0 || n == -ENOENT); /* truncated or compacted since */
    for (int64_t i = 0; i < n; i++) {
      entry_check(&entries[i], first + (uint64_t)i, entries[i].term, size_of(entries[i].term) % 2000);
      raft_payload_unref(entries[i].payload);
    }
  }
}

static void compactor(void *arg) {
  struct threads *threads = arg;
  while (!atomic_load(&threads->done)) {
    struct raft_store_status status;
    pthread_mutex_lock(&threads->mutex);
    raft_store_get_status(threads->store, &status);
    uint64_t through = status.durable_index > 30 ? status.durable_index - 30 : 0;
    if (through > threads->committed) threads->committed = through;
    pthread_mutex_unlock(&threads->mutex);
    assert_int_equal(raft_store_compact(threads->store, through), 0);
  }
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *where) {
  (void)status, (void)type, (void)where;
  return remove(path);
}

static void remove_folder(const char *folder) {
  assert_int_equal(nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

static void make_folder(char *folder) {
  const char *base = getenv("TMPDIR");
  snprintf(folder, OS_PATH_MAX, "%s/balsa-store-XXXXXX", base ? base : "/tmp");
  assert_non_null(mkdtemp(folder));
}

static void many_threads_may_append_flush_read_and_compact(void **state) {
  (void)state;
  char folder[OS_PATH_MAX];
  uint64_t ids[2000], random = 9;
  struct os *os = os_real();
  void (*const roles[])(void *) = {flusher, flusher, flusher, reader, compactor};
  struct os_thread *running[5];
  make_folder(folder);
  struct threads threads = {.store = open_simple(os, folder)};
  pthread_mutex_init(&threads.mutex, NULL);
  for (int i = 0; i < 5; i++) assert_int_equal(os_thread_start(os, "test", roles[i], &threads, &running[i]), 0);
  for (uint64_t id = 1; id < 1500; id++) {
    pthread_mutex_lock(&threads.mutex);
    threads.persist++;
    if (threads.last > 10 && draw_below(&random, 20) == 0) {
      uint64_t from = threads.last - draw_below(&random, 10);
      if (from <= threads.committed) from = threads.committed + 1;
      raft_store_truncate(threads.store, from, threads.persist);
      threads.last = from - 1;
    }
    threads.last++;
    ids[threads.last] = id;
    append(threads.store, threads.last, id, size_of(id) % 2000, threads.persist);
    pthread_mutex_unlock(&threads.mutex);
    if (id % 50 == 0) flush_or_fail(threads.store);
  }
  atomic_store(&threads.done, true);
  for (int i = 0; i < 5; i++) os_thread_join(running[i]);
  assert_int_equal(raft_store_pending_bytes(threads.store), 0);
  raft_store_close(threads.store);
  struct raft_store_found found;
  struct raft_store *store = open_or_fail(os, folder, &found);
  assert_int_equal(found.last_index, threads.last);
  assert_true(found.first_index > 1);
  for (uint64_t i = found.first_index; i <= threads.last; i++) {
    assert_int_equal(found.entries[i - found.first_index].term, ids[i]);
    read_check(store, i, ids[i], size_of(ids[i]) % 2000);
  }
  free(found.entries);
  raft_store_close(store);
  pthread_mutex_destroy(&threads.mutex);
  remove_folder(folder);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(an_empty_folder_gives_an_empty_log),
      cmocka_unit_test(entries_come_back_after_a_restart_with_all_their_fields),
      cmocka_unit_test(a_batch_tells_what_was_committed_before_it_and_no_more_than_it_holds),
      cmocka_unit_test(a_seal_calls_nothing_committed_that_was_to_be_replaced),
      cmocka_unit_test(one_flush_makes_one_synced_write),
      cmocka_unit_test(a_truncation_and_what_replaces_it_are_one_write),
      cmocka_unit_test(a_mark_is_reported_without_a_write),
      cmocka_unit_test(old_entries_leave_memory_and_are_read_from_disk),
      cmocka_unit_test(an_entry_larger_than_a_segment_gets_one_of_its_own),
      cmocka_unit_test(what_was_reported_durable_survives_any_crash_and_nothing_stale_returns),
      cmocka_unit_test(a_flipped_bit_in_an_earlier_batch_is_refused_with_file_and_offset),
      cmocka_unit_test(a_flipped_bit_in_the_last_batch_is_not_taken_for_a_torn_one),
      cmocka_unit_test(a_lost_sector_in_an_earlier_batch_is_refused),
      cmocka_unit_test(a_missing_segment_is_refused),
      cmocka_unit_test(an_end_that_is_lost_is_missed_before_anything_is_written),
      cmocka_unit_test(the_log_of_another_incarnation_is_refused),
      cmocka_unit_test(damage_that_comes_later_is_found_by_reading),
      cmocka_unit_test(after_a_failed_write_every_flush_fails),
      cmocka_unit_test(a_full_disk_stops_writing_only_until_there_is_room),
      cmocka_unit_test(entries_replaced_while_they_are_written_are_written_again),
      cmocka_unit_test(entries_that_wait_and_those_being_written_give_way_to_a_new_beginning),
      cmocka_unit_test(a_new_beginning_comes_before_what_waits_for_the_next_segment),
      cmocka_unit_test(compaction_drops_whole_segments_and_the_log_begins_behind_them_ever_after),
      cmocka_unit_test(files_of_compacted_segments_are_used_again_and_are_few),
      cmocka_unit_test(a_compacted_log_goes_on_where_there_is_no_room_for_another_segment),
      cmocka_unit_test(a_segment_may_begin_with_entries_that_it_replaces_itself),
      cmocka_unit_test(a_new_beginning_survives_a_restart_and_forgets_what_was_before),
      cmocka_unit_test(a_compacted_log_without_its_first_segment_or_its_base_is_refused),
      cmocka_unit_test(many_threads_may_append_flush_read_and_compact),
  };
  return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
