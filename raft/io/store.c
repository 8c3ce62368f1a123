/*
** The log: what is in memory, and how it gets to disk. The files and their rules: top of segment.c.
**
** In memory. For every entry of the log `locations` says where its record lies on disk. The last entries,
** from cache_first on, are in memory too, in the ring `slots`: all that are not durable, and durable ones up
** to cache_bytes of payload.
**
** What is to be written is no queue of operations but a difference: disk and memory are equal up to
** written_last; the disk has to drop all from truncate_from on (if not 0) and get the entries after
** written_last. So entries that are truncated before they were written cost nothing, and one batch says it all.
**
**   first_index … cache_first … durable_index … written_last … last_index
**                 `------------------ in memory ------------------------´
**
** written_last moves on when a batch is begun, durable_index follows when it is done; a truncation moves both back.
** A flush that is under way meanwhile completes for those entries only that are still its own: <= written_last.
**
** A new beginning (raft_store_reset) is done before anything else that waits, and makes all of that obsolete: on disk it
** is one write of the base, which names a segment without any batch.
**
** Compaction. The segments before the one that holds the first entry to keep are of no use once the base says so. It
** looks at what is durable only, and truncations reach committed entries never, so that no flush can interfere.
**
** Locks, in this order:
**   flush_mutex  one flush at a time; guards what says "flush" below, and is held during its disk I/O
**   base_mutex   one change of the base at a time; held during its disk I/O
**   read_mutex   guards the file that raft_store_read has open, and is held during its disk I/O
**   mutex        guards all the rest; never held during disk I/O
*/
#include "store.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "recovery.h"
#include "segment.h"

#define SEGMENT_BYTES_DEFAULT (16u << 20)
#define SEGMENT_BYTES_MIN (16u << 10)
#define SEGMENT_BYTES_MAX (256u << 20)
#define CACHE_BYTES_DEFAULT ((size_t)32 << 20)
#define BATCH_BYTES_MAX (4u << 20) /* of one write, unless a single entry is larger */
#define BUFFER_BYTES_KEPT BATCH_BYTES_MAX
#define READ_BYTES_MAX (1u << 20) /* of one read, unless a single entry is larger */
#define SLOTS_MIN 64u
#define RESERVE_BYTES (64u << 10) /* of the last segment, or a quarter of it: for what must be written on a full disk */
#define SPARE_RETRIES 8u          /* a spare that could not be made is tried again that often in a segment */

struct slot {
  struct raft_entry entry;
  uint64_t persist; /* its number, or the lowest that it can get */
};

enum spare_state { SPARE_NONE, SPARE_MAKING, SPARE_READY };

/* The segment that comes next: made ahead by the helper thread, or by a flush that needs it. */
struct spare {
  enum spare_state state;
  struct os_file *file;
  uint64_t size, salt;
};

struct raft_store {
  struct os *os;
  char folder[OS_PATH_MAX];
  struct raft_uuid incarnation;
  uint64_t segment_bytes;
  size_t cache_bytes;

  pthread_mutex_t mutex;
  uint64_t first_index, last_index, cache_first, written_last, durable_index;
  uint64_t commit_index;     /* told along with the next batch */
  uint64_t truncate_from;    /* 0: nothing on disk is to be dropped */
  uint64_t truncate_persist; /* lowest number that waits for that */
  bool reset_waits;          /* the disk's log has to begin anew first, behind (reset_index, reset_term) */
  uint64_t reset_index, reset_term, reset_persist;
  uint64_t resets;    /* so far */
  uint64_t base_term; /* of the entry before the first */
  uint64_t persist_queued, persist_durable;
  struct segment_location *locations; /* [index - first_index] */
  size_t locations_capacity;
  struct slot *slots; /* [index & (slots_capacity - 1)] */
  size_t slots_capacity;
  size_t cached_bytes, pending_bytes; /* of all slots; of those beyond durable_index */
  uint32_t first_number;              /* of the segments that hold the log */
  struct segment_facts *facts;        /* [number - first_number] */
  size_t facts_capacity;
  uint32_t kept[SEGMENTS_KEPT_MAX], n_kept; /* numbers of files that can be used again */
  int failed;                               /* the error that ended all writing */
  char text[RAFT_STORE_TEXT_MAX];
  uint64_t bytes, batches, synced_writes;

  /* The helper thread; guarded by mutex. */
  struct os_thread *helper; /* NULL where there are no threads: a flush makes the spare afterwards */
  pthread_cond_t spare_changed;
  struct spare spare;
  bool spare_wanted;
  bool no_space; /* the last try to make one found the disk full */
  uint64_t room; /* for batches in the segment that is appended to, behind the last one that was written */
  bool is_blank; /* it has none */
  atomic_bool stopping;

  /* flush: the segment that is appended to */
  pthread_mutex_t flush_mutex;
  struct os_file *file;
  uint32_t number;
  uint64_t size, offset, salt;
  uint64_t spare_next_try; /* offset at which a failed spare is tried again */
  uint64_t sequence, previous;
  uint64_t disk_last; /* entry, as the batches so far leave it */
  bool sealed;
  uint8_t *buffer;
  size_t buffer_capacity;
  struct raft_entry *batch; /* entries of the batch under way, with references */
  size_t batch_capacity;

  pthread_mutex_t base_mutex;
  struct slot_file *base_file;

  pthread_mutex_t read_mutex;
  struct os_file *read_file;
  uint32_t read_number;
};

/* ---- Small things ---- */

static const char *error_text(int error) {
  const char *text = strerrordesc_np(-error);
  return text ? text : "unknown error";
}

/* Takes mutex. Remembers the sentence and gives the error back. */
__attribute__((format(printf, 3, 4))) static int set_error(struct raft_store *store, int error, const char *format,
                                                           ...) {
  va_list list;
  va_start(list, format);
  pthread_mutex_lock(&store->mutex);
  vsnprintf(store->text, sizeof store->text, format, list);
  pthread_mutex_unlock(&store->mutex);
  va_end(list);
  return error;
}

static struct slot *slot_at(struct raft_store *store, uint64_t index) {
  return &store->slots[index & (store->slots_capacity - 1)];
}

static struct segment_location *location_at(struct raft_store *store, uint64_t index) {
  return &store->locations[index - store->first_index];
}

static struct segment_facts *facts_of(struct raft_store *store, uint32_t number) {
  return &store->facts[number - store->first_number];
}

/* Memory that a payload costs: an entry without one costs too. */
static size_t slot_bytes(const struct slot *slot) {
  return sizeof *slot + raft_entry_size(&slot->entry);
}

static bool has_work(const struct raft_store *store) {
  return store->reset_waits || store->truncate_from || store->written_last < store->last_index;
}

/* The highest number whose work is durable, when no flush is between begin and end. */
static uint64_t durable_number(struct raft_store *store) {
  uint64_t number = store->persist_queued;
  if (store->written_last < store->last_index) {
    uint64_t waiting = slot_at(store, store->written_last + 1)->persist;
    if (waiting - 1 < number) number = waiting - 1;
  }
  if (store->truncate_from && store->truncate_persist - 1 < number) number = store->truncate_persist - 1;
  if (store->reset_waits && store->reset_persist - 1 < number) number = store->reset_persist - 1;
  return number > store->persist_durable ? number : store->persist_durable;
}

/* The highest number that anything waiting has. */
static uint64_t last_number(struct raft_store *store) {
  uint64_t last = store->written_last < store->last_index ? slot_at(store, store->last_index)->persist : 0;
  if (store->reset_waits && store->reset_persist > last) last = store->reset_persist;
  return last > store->persist_queued ? last : store->persist_queued;
}

/* ---- Entries in memory (all under mutex) ---- */

static int reserve_slot(struct raft_store *store) {
  size_t used = (size_t)(store->last_index + 1 - store->cache_first);
  if (used < store->slots_capacity) return 0;
  size_t capacity = store->slots_capacity ? 2 * store->slots_capacity : SLOTS_MIN;
  struct slot *slots = malloc(capacity * sizeof *slots);
  if (slots == NULL) return -ENOMEM;
  for (uint64_t i = store->cache_first; i <= store->last_index; i++) slots[i & (capacity - 1)] = *slot_at(store, i);
  free(store->slots);
  store->slots = slots;
  store->slots_capacity = capacity;
  return 0;
}

static int reserve_location(struct raft_store *store) {
  size_t used = (size_t)(store->last_index + 1 - store->first_index);
  if (used < store->locations_capacity) return 0;
  size_t capacity = store->locations_capacity ? 2 * store->locations_capacity : 1024;
  struct segment_location *locations = realloc(store->locations, capacity * sizeof *locations);
  if (locations == NULL) return -ENOMEM;
  store->locations = locations;
  store->locations_capacity = capacity;
  return 0;
}

static void drop_slot(struct raft_store *store, uint64_t index) {
  struct slot *slot = slot_at(store, index);
  store->cached_bytes -= slot_bytes(slot);
  if (index > store->durable_index) store->pending_bytes -= slot_bytes(slot);
  raft_payload_unref(slot->entry.payload);
}

static void shrink_cache(struct raft_store *store) {
  while (store->cache_first <= store->durable_index && store->cached_bytes - store->pending_bytes > store->cache_bytes)
    drop_slot(store, store->cache_first++);
}

int raft_store_append(struct raft_store *store, const struct raft_entry *entry, uint64_t persist) {
  pthread_mutex_lock(&store->mutex);
  assert(entry->index == store->last_index + 1);
  assert(persist == 0 || persist >= store->persist_queued);
  assert(raft_entry_size(entry) <= RAFT_PAYLOAD_MAX);
  int error = reserve_slot(store);
  if (error == 0) error = reserve_location(store);
  if (error == 0) {
    store->last_index++;
    struct slot *slot = slot_at(store, entry->index);
    *slot = (struct slot){.entry = *entry, .persist = persist ? persist : store->persist_queued + 1};
    raft_payload_ref(entry->payload);
    *location_at(store, entry->index) = (struct segment_location){.size = raft_entry_size(entry)};
    store->cached_bytes += slot_bytes(slot);
    store->pending_bytes += slot_bytes(slot);
    if (persist) store->persist_queued = persist;
  }
  pthread_mutex_unlock(&store->mutex);
  return error;
}

int raft_store_truncate(struct raft_store *store, uint64_t from, uint64_t persist) {
  pthread_mutex_lock(&store->mutex);
  assert(from >= store->first_index);
  assert(persist >= store->persist_queued);
  store->persist_queued = persist;
  if (from <= store->written_last) {
    /* Entries that were to be written take their numbers with them. */
    uint64_t waiting = persist;
    if (store->written_last < store->last_index) waiting = slot_at(store, store->written_last + 1)->persist;
    if (store->truncate_from == 0 || waiting < store->truncate_persist) store->truncate_persist = waiting;
    if (store->truncate_from == 0 || from < store->truncate_from) store->truncate_from = from;
    store->written_last = from - 1;
  }
  while (store->last_index >= from) {
    if (store->last_index >= store->cache_first) drop_slot(store, store->last_index);
    store->last_index--;
  }
  if (store->cache_first > store->last_index + 1) store->cache_first = store->last_index + 1;
  if (store->durable_index > store->last_index) store->durable_index = store->last_index;
  pthread_mutex_unlock(&store->mutex);
  return 0;
}

void raft_store_commit(struct raft_store *store, uint64_t index) {
  pthread_mutex_lock(&store->mutex);
  if (index > store->commit_index) store->commit_index = index;
  pthread_mutex_unlock(&store->mutex);
}

int raft_store_reset(struct raft_store *store, uint64_t index, uint64_t term, uint64_t persist) {
  pthread_mutex_lock(&store->mutex);
  assert(index > 0 && term > 0);
  assert(persist == 0 || persist >= store->persist_queued);
  /* What waited takes its numbers with it. */
  uint64_t waiting = persist ? persist : store->persist_queued + 1;
  if (store->written_last < store->last_index && slot_at(store, store->written_last + 1)->persist < waiting)
    waiting = slot_at(store, store->written_last + 1)->persist;
  if (store->truncate_from && store->truncate_persist < waiting) waiting = store->truncate_persist;
  if (store->reset_waits && store->reset_persist < waiting) waiting = store->reset_persist;
  if (persist) store->persist_queued = persist;
  while (store->cache_first <= store->last_index) drop_slot(store, store->cache_first++);
  store->first_index = store->cache_first = index + 1;
  store->last_index = store->written_last = store->durable_index = index;
  store->truncate_from = store->truncate_persist = 0;
  store->reset_waits = true;
  store->reset_index = index;
  store->reset_term = term;
  store->reset_persist = waiting;
  store->resets++;
  store->base_term = term;
  pthread_mutex_unlock(&store->mutex);
  return 0;
}

void raft_store_mark(struct raft_store *store, uint64_t persist) {
  pthread_mutex_lock(&store->mutex);
  assert(persist >= store->persist_queued);
  store->persist_queued = persist;
  pthread_mutex_unlock(&store->mutex);
}

size_t raft_store_pending_bytes(struct raft_store *store) {
  pthread_mutex_lock(&store->mutex);
  size_t bytes = store->pending_bytes;
  pthread_mutex_unlock(&store->mutex);
  return bytes;
}

bool raft_store_is_pending(struct raft_store *store) {
  pthread_mutex_lock(&store->mutex);
  bool pending = has_work(store) || store->persist_durable < store->persist_queued;
  pthread_mutex_unlock(&store->mutex);
  return pending;
}

void raft_store_error(struct raft_store *store, char *text) {
  pthread_mutex_lock(&store->mutex);
  memcpy(text, store->text, RAFT_STORE_TEXT_MAX);
  pthread_mutex_unlock(&store->mutex);
}

void raft_store_get_status(struct raft_store *store, struct raft_store_status *status) {
  pthread_mutex_lock(&store->mutex);
  *status = (struct raft_store_status){
      .first_index = store->first_index,
      .last_index = store->last_index,
      .durable_index = store->durable_index,
      .bytes = store->bytes,
      .batches = store->batches,
      .synced_writes = store->synced_writes,
  };
  pthread_mutex_unlock(&store->mutex);
}

int64_t raft_store_get(struct raft_store *store, uint64_t first, size_t n_max, size_t bytes_max,
                       struct raft_entry *entries) {
  size_t n = 0, bytes = 0;
  pthread_mutex_lock(&store->mutex);
  if (first >= store->cache_first) {
    for (uint64_t i = first; i <= store->last_index && n < n_max; i++) {
      const struct raft_entry *entry = &slot_at(store, i)->entry;
      bytes += raft_entry_size(entry);
      if (n > 0 && bytes > bytes_max) break;
      entries[n] = *entry;
      raft_payload_ref(entries[n++].payload);
    }
  }
  pthread_mutex_unlock(&store->mutex);
  return (int64_t)n;
}

/* ---- The next segment ---- */

static int remember_salt(struct raft_store *store, uint32_t number, uint64_t salt) {
  int error = 0;
  pthread_mutex_lock(&store->mutex);
  size_t n = (size_t)(number - store->first_number) + 1;
  if (n > store->facts_capacity) {
    size_t capacity = n + 63u;
    struct segment_facts *facts = realloc(store->facts, capacity * sizeof *facts);
    if (facts) store->facts = facts;
    if (facts) store->facts_capacity = capacity;
    if (facts == NULL) error = -ENOMEM;
  }
  if (error == 0) *facts_of(store, number) = (struct segment_facts){.salt = salt};
  pthread_mutex_unlock(&store->mutex);
  return error;
}

/* mutex held, and flush_mutex unless nobody else is there: segment, size or offset have changed. */
static void note_room(struct raft_store *store) {
  uint64_t end = store->offset + BATCH_SEAL_SIZE;
  store->room = store->size > end ? store->size - end : 0;
  store->is_blank = store->offset == SEGMENT_HEADER_SIZE;
}

/* The number of a file that can be used again; 0: there is none. */
static uint32_t take_kept(struct raft_store *store) {
  pthread_mutex_lock(&store->mutex);
  uint32_t number = store->n_kept > 0 ? store->kept[--store->n_kept] : 0;
  pthread_mutex_unlock(&store->mutex);
  return number;
}

/* Makes segment `number` and opens it for appending, all but slow: done ahead, by one thread at a time. */
static int make_spare(struct raft_store *store, uint32_t number, uint64_t size, struct spare *spare) {
  char path[OS_PATH_MAX];
  *spare = (struct spare){.state = SPARE_READY, .size = size};
  int error = segment_make(store->os, store->folder, number, take_kept(store), &store->incarnation, size,
                           &store->stopping, &spare->salt, path);
  if (error == 0) error = remember_salt(store, number, spare->salt);
  if (error == 0) error = os_open(store->os, path, OS_OPEN_READ | OS_OPEN_WRITE | OS_OPEN_DSYNC, &spare->file);
  if (error == -EDQUOT) error = -ENOSPC;
  if (error && error != -ECANCELED)
    set_error(store, error, "%s: cannot make the next segment of the log: %s. %s", path, error_text(error),
              error == -ENOSPC ? "Make room on this disk; writing goes on then"
                               : "Check the disk and the folder, then restart this node");
  return error;
}

/* Takes over the duty to make the spare and does it. Called with mutex held, which it gives up meanwhile. */
static int make_spare_now(struct raft_store *store, uint32_t number, uint64_t size) {
  struct spare made;
  assert(store->spare.state == SPARE_NONE);
  store->spare.state = SPARE_MAKING;
  pthread_mutex_unlock(&store->mutex);
  int error = make_spare(store, number, size, &made);
  pthread_mutex_lock(&store->mutex);
  if (error) made = (struct spare){.state = SPARE_NONE};
  if (error != -ECANCELED) store->no_space = error == -ENOSPC;
  store->spare = made;
  pthread_cond_broadcast(&store->spare_changed);
  return error;
}

static void helper_main(void *arg) {
  struct raft_store *store = arg;
  pthread_mutex_lock(&store->mutex);
  while (!atomic_load(&store->stopping)) {
    if (store->spare_wanted && store->spare.state == SPARE_NONE) {
      store->spare_wanted = false;
      make_spare_now(store, store->number + 1, store->segment_bytes); /* a flush that needs it tells of errors */
    } else {
      os_condition_wait(store->os, &store->spare_changed, &store->mutex, OS_FOREVER);
    }
  }
  pthread_mutex_unlock(&store->mutex);
}

/*
** After a batch: have the spare made if there is none. Only once the segment has a batch, so that at most
** one blank segment follows the last batch.
*/
static void want_spare(struct raft_store *store) {
  if (store->offset == SEGMENT_HEADER_SIZE || store->offset < store->spare_next_try) return;
  pthread_mutex_lock(&store->mutex);
  if (store->spare.state == SPARE_NONE && !store->spare_wanted) {
    store->spare_next_try = store->offset + store->size / SPARE_RETRIES;
    if (store->helper) {
      store->spare_wanted = true;
      pthread_cond_broadcast(&store->spare_changed);
    } else if (store->offset > store->size / 2) {
      make_spare_now(store, store->number + 1, store->segment_bytes);
    }
  }
  pthread_mutex_unlock(&store->mutex);
}

/* Goes on in the spare, of at least `size` bytes. */
static int enter_spare(struct raft_store *store, uint64_t size) {
  char path[OS_PATH_MAX];
  int error = 0;
  if (store->number == SEGMENT_NUMBER_MAX)
    return set_error(store, -EFBIG, "%s: the log has too many segments", store->folder);
  pthread_mutex_lock(&store->mutex);
  while (store->spare.state == SPARE_MAKING)
    os_condition_wait(store->os, &store->spare_changed, &store->mutex, OS_FOREVER);
  if (store->spare.state == SPARE_NONE)
    error = make_spare_now(store, store->number + 1, size > store->segment_bytes ? size : store->segment_bytes);
  struct spare spare = store->spare;
  pthread_mutex_unlock(&store->mutex);
  if (error) return error;
  if (spare.size < size) {
    error = segment_path(store->folder, store->number + 1, path);
    if (error == 0) error = segment_extend(store->os, path, size);
    if (error == -EDQUOT) error = -ENOSPC;
    if (error)
      return set_error(store, error, "%s: cannot make the segment %llu bytes long: %s", path, (unsigned long long)size,
                       error_text(error));
    spare.size = size;
  }
  os_close(store->file);
  store->file = spare.file;
  store->size = spare.size;
  store->salt = spare.salt;
  store->offset = SEGMENT_HEADER_SIZE;
  store->spare_next_try = 0;
  pthread_mutex_lock(&store->mutex);
  store->number++;
  facts_of(store, store->number)->sequence = store->sequence;
  facts_of(store, store->number)->previous = store->previous;
  store->spare = (struct spare){.state = SPARE_NONE};
  note_room(store);
  pthread_mutex_unlock(&store->mutex);
  return 0;
}

/* Room for a batch of `length` bytes and a seal. A segment without a batch grows: two blank ones never follow another. */
static int make_room(struct raft_store *store, uint64_t length) {
  char path[OS_PATH_MAX];
  uint64_t need = SEGMENT_HEADER_SIZE + length + BATCH_SEAL_SIZE;
  if (store->offset > SEGMENT_HEADER_SIZE) return enter_spare(store, need);
  int error = segment_path(store->folder, store->number, path);
  if (error == 0) error = segment_extend(store->os, path, need);
  if (error == -EDQUOT) error = -ENOSPC;
  if (error)
    return set_error(store, error, "%s: cannot make the segment %llu bytes long: %s", path, (unsigned long long)need,
                     error_text(error));
  store->size = need;
  pthread_mutex_lock(&store->mutex);
  note_room(store);
  pthread_mutex_unlock(&store->mutex);
  return 0;
}

/* ---- A full disk ---- */

/* What an entry takes at most: a batch of its own. */
static uint64_t cost_of(size_t size) {
  return segment_batch_size(segment_record_size((uint32_t)size));
}

/*
** What waits fits into a segment if each entry does with a batch of its own, however they are gathered: none goes on to a
** segment that is not there. An entry that no segment can hold is let in alone: it gets one of its own, or waits.
*/
int raft_store_admit(struct raft_store *store, size_t size, bool is_urgent) {
  uint64_t reserve = store->segment_bytes / 4 < RESERVE_BYTES ? store->segment_bytes / 4 : RESERVE_BYTES;
  uint64_t need = cost_of(size) + (is_urgent ? 0 : reserve);
  int error = 0;
  pthread_mutex_lock(&store->mutex);
  bool has_spare = store->spare.state == SPARE_READY;
  uint64_t next = has_spare ? store->spare.size - SEGMENT_HEADER_SIZE - BATCH_SEAL_SIZE : 0;
  uint64_t room = store->room > next ? store->room : next;
  for (uint64_t i = store->durable_index + 1; i <= store->last_index && need <= room; i++)
    need += cost_of(raft_entry_size(&slot_at(store, i)->entry));
  bool is_alone = store->durable_index == store->last_index;
  if (need > room && !has_spare && store->no_space)
    error = -ENOSPC;
  else if (need > room && !(is_alone && (has_spare || store->is_blank)))
    error = -EAGAIN;
  pthread_mutex_unlock(&store->mutex);
  return error;
}

int raft_store_make_room(struct raft_store *store) {
  int error = 0;
  pthread_mutex_lock(&store->mutex);
  while (store->spare.state == SPARE_MAKING)
    os_condition_wait(store->os, &store->spare_changed, &store->mutex, OS_FOREVER);
  if (store->spare.state == SPARE_NONE && !store->is_blank)
    error = make_spare_now(store, store->number + 1, store->segment_bytes);
  pthread_mutex_unlock(&store->mutex);
  return error;
}

/* ---- Flush (all under flush_mutex) ---- */

/* What one batch can take of what is to be written now. Under mutex. */
struct measure {
  uint64_t first;
  size_t n;
  uint64_t records_size, length;
};

static struct measure measure(struct raft_store *store) {
  struct measure m = {.first = store->written_last + 1};
  for (uint64_t i = m.first; i <= store->last_index; i++) {
    uint32_t size = segment_record_size(raft_entry_size(&slot_at(store, i)->entry));
    if (m.n > 0 && m.records_size + size > BATCH_BYTES_MAX) break;
    m.records_size += size;
    m.n++;
  }
  m.length = segment_batch_size(m.records_size);
  return m;
}

static bool fits(const struct raft_store *store, uint64_t length) {
  return store->offset + length + BATCH_SEAL_SIZE <= store->size;
}

static int reserve_batch(struct raft_store *store, const struct measure *m) {
  if (m->length > store->buffer_capacity) {
    size_t capacity = m->length < (64u << 10) ? 64u << 10 : m->length;
    free(store->buffer);
    store->buffer = malloc(capacity);
    store->buffer_capacity = store->buffer ? capacity : 0;
    if (store->buffer == NULL) return -ENOMEM;
  }
  if (m->n > store->batch_capacity) {
    struct raft_entry *batch = realloc(store->batch, 2 * m->n * sizeof *batch);
    if (batch == NULL) return -ENOMEM;
    store->batch = batch;
    store->batch_capacity = 2 * m->n;
  }
  return 0;
}

/* What a batch that ends with `last` says of what is committed: nothing of what comes later, which a crash may take away. */
static uint64_t commit_through(const struct raft_store *store, uint64_t last) {
  return store->commit_index < last ? store->commit_index : last;
}

/* Begins a batch: takes references of its entries. Under mutex; the batch fits. */
static void begin_batch(struct raft_store *store, const struct measure *m, struct segment_batch *batch) {
  *batch = (struct segment_batch){
      .length = (uint32_t)m->length,
      .records = (uint32_t)m->n,
      .sequence = store->sequence,
      .previous = store->previous,
      .truncate_from = store->truncate_from,
      .index = m->first,
      .commit = commit_through(store, m->first + m->n - 1),
  };
  for (size_t i = 0; i < m->n; i++) {
    store->batch[i] = slot_at(store, m->first + i)->entry;
    raft_payload_ref(store->batch[i].payload);
  }
  store->truncate_from = 0;
  store->truncate_persist = 0;
  store->written_last += m->n;
}

static void count_batch(struct raft_store *store, const struct segment_batch *batch) {
  note_room(store);
  facts_of(store, store->number)->bytes += batch->length;
  store->bytes += batch->length;
  store->batches++;
  store->synced_writes++;
}

/* Ends it: what is still the batch's own is durable. Under mutex. */
static void end_batch(struct raft_store *store, const struct segment_batch *batch, uint64_t offset) {
  uint64_t at = offset + BATCH_HEADER_SIZE;
  for (uint32_t i = 0; i < batch->records; i++) {
    uint32_t size = raft_entry_size(&store->batch[i]);
    uint64_t index = batch->index + i;
    if (index >= store->first_index && index <= store->written_last) {
      *location_at(store,
                   index) = (struct segment_location){.number = store->number, .offset = (uint32_t)at, .size = size};
      store->pending_bytes -= slot_bytes(slot_at(store, index));
    }
    at += segment_record_size(size);
  }
  store->durable_index = store->written_last;
  store->persist_durable = durable_number(store);
  count_batch(store, batch);
  shrink_cache(store);
}

/* Encodes and writes the batch at the end of the segment. The one synced write of a commit. */
static int write_batch(struct raft_store *store, const struct segment_batch *batch) {
  uint64_t at = BATCH_HEADER_SIZE;
  for (uint32_t i = 0; i < batch->records; i++)
    at += segment_record_encode(&store->batch[i], store->salt, store->buffer + at);
  uint64_t checksum = segment_batch_encode(batch, at - BATCH_HEADER_SIZE, store->salt, store->buffer);
  int error = os_write(store->file, store->buffer, batch->length, store->offset);
  if (error)
    return set_error(store, error == -ENOSPC ? -EIO : error, /* of the room that was there: no promise to go on */
                     "%s/%08x.log: cannot write a batch of %u bytes at offset %llu: %s. The log is not written any "
                     "more: check the disk, then restart this node",
                     store->folder, store->number, batch->length, (unsigned long long)store->offset, error_text(error));
  store->offset += batch->length;
  store->sequence++;
  store->previous = checksum;
  store->disk_last = batch->index + batch->records - 1;
  store->sealed = batch->records == 0 && batch->truncate_from == 0;
  return 0;
}

/* Waits for room without mutex, then begins a batch. *begun is false if there is nothing to write any more. */
static int prepare_batch(struct raft_store *store, struct segment_batch *batch, bool *begun) {
  int error = 0;
  *begun = false;
  while (error == 0 && !*begun) {
    pthread_mutex_lock(&store->mutex);
    struct measure m = measure(store);
    bool work = has_work(store) && !store->reset_waits, room = fits(store, m.length);
    if (work && room) error = reserve_batch(store, &m);
    if (work && room && error == 0) {
      begin_batch(store, &m, batch);
      *begun = true;
    }
    pthread_mutex_unlock(&store->mutex);
    if (!work) break;
    if (!room) error = make_room(store, m.length);
  }
  return error;
}

static int flush_batch(struct raft_store *store) {
  struct segment_batch batch;
  bool begun;
  int error = prepare_batch(store, &batch, &begun);
  if (error || !begun) return error;
  uint64_t offset = store->offset;
  error = write_batch(store, &batch);
  pthread_mutex_lock(&store->mutex);
  if (error == 0) end_batch(store, &batch, offset);
  if (error) store->failed = error;
  pthread_mutex_unlock(&store->mutex);
  for (uint32_t i = 0; i < batch.records; i++) raft_payload_unref(store->batch[i].payload);
  if (store->buffer_capacity > BUFFER_BYTES_KEPT) {
    free(store->buffer);
    store->buffer = NULL;
    store->buffer_capacity = 0;
  }
  return error;
}

/* ---- The beginning ---- */

/* The files of segments first … end - 1 are not needed any more: a few are kept. Under base_mutex. */
static int release_segments(struct raft_store *store, uint32_t first, uint32_t end) {
  char path[OS_PATH_MAX];
  int result = 0;
  pthread_mutex_lock(&store->read_mutex);
  if (store->read_file && store->read_number < end) {
    os_close(store->read_file);
    store->read_file = NULL;
  }
  pthread_mutex_unlock(&store->read_mutex);
  for (uint32_t number = first; number < end; number++) {
    pthread_mutex_lock(&store->mutex);
    bool keep = store->n_kept < SEGMENTS_KEPT_MAX;
    if (keep) store->kept[store->n_kept++] = number;
    pthread_mutex_unlock(&store->mutex);
    if (keep) continue;
    int error = segment_path(store->folder, number, path);
    if (error == 0) error = os_remove(store->os, path);
    if (error && result == 0)
      result = set_error(store, error, "%s: cannot remove the segment: %s. The next start tries again", path,
                         error_text(error));
  }
  int error = os_sync_directory(store->os, store->folder);
  if (error && result == 0)
    result = set_error(store, error, "%s: cannot sync the folder: %s", store->folder, error_text(error));
  return result;
}

/* Writes where the log begins. Under base_mutex. */
static int write_base(struct raft_store *store, const struct segment_base *base) {
  int error = segment_base_write(store->base_file, base);
  if (error)
    set_error(store, error,
              "%s/" SEGMENT_BASE ": cannot write where the log begins: %s. Check the disk, then restart "
              "this node",
              store->folder, error_text(error));
  return error;
}

/* Segments before `number` are not the log's any more. Returns the first of them. Under mutex. */
static uint32_t forget_segments(struct raft_store *store, uint32_t number) {
  uint32_t first = store->first_number;
  for (uint32_t i = first; i < number; i++) store->bytes -= facts_of(store, i)->bytes;
  size_t n = number - first;
  memmove(store->facts, store->facts + n, (store->facts_capacity - n) * sizeof *store->facts);
  store->first_number = number;
  return first;
}

/* Goes on in a segment without batches, if this one has some. Under flush_mutex. */
static int blank_segment(struct raft_store *store) {
  if (store->offset == SEGMENT_HEADER_SIZE) return 0;
  return enter_spare(store, store->segment_bytes);
}

/* The log begins anew on disk, if it has to. Files that cannot be removed are no failure. Under flush_mutex. */
static int flush_reset(struct raft_store *store) {
  struct segment_base base = {.number = 0};
  pthread_mutex_lock(&store->mutex);
  bool waits = store->reset_waits;
  pthread_mutex_unlock(&store->mutex);
  int error = waits ? blank_segment(store) : 0;
  if (error || !waits) return error;
  pthread_mutex_lock(&store->base_mutex);
  pthread_mutex_lock(&store->mutex);
  base = (struct segment_base){.number = store->number,
                               .index = store->reset_index,
                               .term = store->reset_term,
                               .sequence = store->sequence,
                               .previous = store->previous};
  uint64_t resets = store->resets;
  pthread_mutex_unlock(&store->mutex);
  error = write_base(store, &base);
  uint32_t first = base.number;
  if (error == 0) {
    pthread_mutex_lock(&store->mutex);
    first = forget_segments(store, base.number);
    if (store->resets == resets) store->reset_waits = false;
    store->synced_writes += 2;
    pthread_mutex_unlock(&store->mutex);
    store->disk_last = base.index;
    store->sealed = true; /* the base says no less */
  }
  if (first < base.number) release_segments(store, first, base.number);
  pthread_mutex_unlock(&store->base_mutex);
  return error;
}

/* Is something of number <= `target` still to be written? Takes mutex. */
static bool is_due(struct raft_store *store, uint64_t target) {
  pthread_mutex_lock(&store->mutex);
  bool due = store->truncate_from && store->truncate_persist <= target;
  due |= store->reset_waits && store->reset_persist <= target;
  if (store->written_last < store->last_index) due |= slot_at(store, store->written_last + 1)->persist <= target;
  if (!due) store->persist_durable = durable_number(store); /* marks */
  pthread_mutex_unlock(&store->mutex);
  return due;
}

static int flush_step(struct raft_store *store) {
  int error = flush_reset(store);
  if (error == 0) error = flush_batch(store);
  if (error == 0) want_spare(store);
  return error;
}

static int flush(struct raft_store *store, bool is_whole, uint64_t *persist) {
  pthread_mutex_lock(&store->flush_mutex);
  pthread_mutex_lock(&store->mutex);
  uint64_t target = last_number(store);
  int error = store->failed;
  pthread_mutex_unlock(&store->mutex);
  bool goes_on = true;
  for (; error == 0 && goes_on && is_due(store, target); goes_on = is_whole) error = flush_step(store);
  pthread_mutex_lock(&store->mutex);
  if (error && error != -ENOSPC && store->failed == 0) store->failed = error;
  *persist = store->persist_durable;
  pthread_mutex_unlock(&store->mutex);
  pthread_mutex_unlock(&store->flush_mutex);
  return error;
}

int raft_store_flush(struct raft_store *store, uint64_t *persist) {
  return flush(store, true, persist);
}

int raft_store_flush_batch(struct raft_store *store, uint64_t *persist) {
  return flush(store, false, persist);
}

/*
** A batch that only says that the one before it is whole. Room for it is kept in every segment: it may be written where nothing
** else found any. Then the disk's log is not the one that was committed from where that has replaced it on.
*/
static int write_seal(struct raft_store *store) {
  pthread_mutex_lock(&store->mutex);
  uint64_t valid = store->reset_waits                       ? 0
                   : store->written_last < store->disk_last ? store->written_last
                                                            : store->disk_last;
  struct segment_batch batch = {.length = BATCH_SEAL_SIZE,
                                .sequence = store->sequence,
                                .previous = store->previous,
                                .index = store->disk_last + 1,
                                .commit = commit_through(store, valid)};
  pthread_mutex_unlock(&store->mutex);
  struct measure m = {.length = BATCH_SEAL_SIZE};
  if (store->sealed || store->offset + BATCH_SEAL_SIZE > store->size) return 0;
  int error = reserve_batch(store, &m);
  if (error) return error;
  error = write_batch(store, &batch);
  if (error == 0) {
    pthread_mutex_lock(&store->mutex);
    count_batch(store, &batch);
    pthread_mutex_unlock(&store->mutex);
  }
  return error;
}

/* ---- Reading from disk ---- */

/* A run of records in one segment. */
struct run {
  uint32_t number;
  uint64_t salt, offset, size;
  size_t n;
  struct segment_location *locations; /* malloc'ed */
};

/* Which records to read, at once, from `first` on. Under mutex; first < cache_first. */
static int plan_run(struct raft_store *store, uint64_t first, size_t n_max, size_t bytes_max, struct run *run) {
  const struct segment_location *begin = location_at(store, first);
  uint64_t last = store->cache_first - 1, bytes = 0;
  *run = (struct run){.number = begin->number, .salt = facts_of(store, begin->number)->salt, .offset = begin->offset};
  for (uint64_t i = first; i <= last && run->n < n_max; i++) {
    const struct segment_location *location = location_at(store, i);
    uint64_t size = location->offset + segment_record_size(location->size) - run->offset;
    bytes += location->size;
    if (i > first && (location->number != run->number || size > READ_BYTES_MAX || bytes > bytes_max)) break;
    run->size = size;
    run->n++;
  }
  assert(run->n > 0);
  run->locations = malloc(run->n * sizeof *begin);
  if (run->locations == NULL) return -ENOMEM;
  memcpy(run->locations, begin, run->n * sizeof *begin);
  return 0;
}

/* Was the segment given up since its entries were looked up? Then whatever is wrong with it is none. Takes mutex. */
static bool is_given_up(struct raft_store *store, uint32_t number) {
  pthread_mutex_lock(&store->mutex);
  bool given_up = number < store->first_number;
  pthread_mutex_unlock(&store->mutex);
  return given_up;
}

/* Reads bytes of a segment. Takes read_mutex. */
static int read_segment(struct raft_store *store, uint32_t number, uint8_t *bytes, size_t size, uint64_t offset) {
  char path[OS_PATH_MAX];
  int64_t n = -EIO;
  int error = segment_path(store->folder, number, path);
  pthread_mutex_lock(&store->read_mutex);
  if (error == 0 && (store->read_file == NULL || store->read_number != number)) {
    os_close(store->read_file);
    store->read_file = NULL;
    error = os_open(store->os, path, OS_OPEN_READ, &store->read_file);
    store->read_number = number;
  }
  if (error == 0) n = os_read(store->read_file, bytes, size, offset);
  if (error == 0 && n < 0) error = (int)n;
  if (error == 0 && (size_t)n < size) error = -EILSEQ;
  pthread_mutex_unlock(&store->read_mutex);
  if (error && is_given_up(store, number)) return -ENOENT;
  if (error)
    set_error(store, error, "%s: cannot read %zu bytes at offset %llu: %s", path, size, (unsigned long long)offset,
              n >= 0 ? "the file is too short" : error_text(error));
  return error;
}

/* The entries of a run out of its bytes. On failure none is left with the caller. */
static int decode_run(struct raft_store *store, const struct run *run, const uint8_t *bytes, uint64_t first,
                      struct raft_entry *entries) {
  size_t n = 0;
  int error = 0;
  for (; n < run->n && error == 0; n++) {
    uint64_t at = run->locations[n].offset - run->offset, index = first + n;
    uint32_t size;
    if (!segment_record_decode(bytes + at, run->size - at, run->salt, &entries[n], &size) ||
        entries[n].index != index) {
      error = -ENOENT;
      if (is_given_up(store, run->number)) break;
      error = set_error(store, -EILSEQ, "%s/%08x.log: damaged at offset %llu: the record of entry %llu is wrong",
                        store->folder, run->number, (unsigned long long)run->locations[n].offset,
                        (unsigned long long)index);
      break;
    }
    if (size == 0) continue;
    entries[n].payload = raft_payload_new(size);
    if (entries[n].payload == NULL) error = -ENOMEM;
    if (error == 0) memcpy(entries[n].payload->bytes, bytes + at + RECORD_HEADER_SIZE, size);
  }
  if (error)
    while (n > 0) raft_payload_unref(entries[--n].payload);
  return error;
}

int64_t raft_store_read(struct raft_store *store, uint64_t first, size_t n_max, size_t bytes_max,
                        struct raft_entry *entries) {
  struct run run = {0};
  int error = 0;
  int64_t n = raft_store_get(store, first, n_max, bytes_max, entries);
  if (n > 0 || n_max == 0) return n;
  pthread_mutex_lock(&store->mutex);
  if (first < store->first_index || first > store->last_index)
    error = -ENOENT;
  else if (first >= store->cache_first)
    error = -EAGAIN; /* appended since: it is in memory */
  else
    error = plan_run(store, first, n_max, bytes_max, &run);
  pthread_mutex_unlock(&store->mutex);
  if (error == -EAGAIN) return raft_store_read(store, first, n_max, bytes_max, entries);
  if (error) return error;
  uint8_t *bytes = malloc(run.size);
  if (bytes == NULL) error = -ENOMEM;
  if (error == 0) error = read_segment(store, run.number, bytes, run.size, run.offset);
  if (error == 0) error = decode_run(store, &run, bytes, first, entries);
  free(bytes);
  free(run.locations);
  return error ? error : (int64_t)run.n;
}

/* ---- Compaction ---- */

/*
** The segment that the log can begin with: the one that holds the first entry to keep, or, while that is on its way to the
** disk, the last one to forget. *index is the entry before the first in it. false: nothing can go. Under mutex.
*/
static bool find_base(struct raft_store *store, uint64_t through, struct segment_base *base) {
  if (through < store->first_index) return false;
  uint64_t low = store->first_index, high = through + (through < store->durable_index);
  uint32_t number = location_at(store, high)->number;
  if (number == store->first_number) return false;
  while (low < high) { /* the first entry in that segment: numbers rise */
    uint64_t middle = low + (high - low) / 2;
    if (location_at(store, middle)->number < number)
      low = middle + 1;
    else
      high = middle;
  }
  const struct segment_facts *facts = facts_of(store, number);
  *base = (struct segment_base){
      .number = number, .index = low - 1, .sequence = facts->sequence, .previous = facts->previous};
  return true;
}

static int term_of(struct raft_store *store, uint64_t index, uint64_t *term) {
  struct raft_entry entry = {0};
  int64_t n = raft_store_read(store, index, 1, 1, &entry);
  if (n != 1) return n < 0 ? (int)n : -ENOENT;
  *term = entry.term;
  raft_payload_unref(entry.payload);
  return 0;
}

/* The base is durable: forgets what is before it. Returns the first segment to release. Takes mutex. */
static uint32_t begin_at(struct raft_store *store, const struct segment_base *base, uint64_t resets) {
  pthread_mutex_lock(&store->mutex);
  uint32_t first = forget_segments(store, base->number);
  if (store->resets == resets) { /* otherwise there is another log in memory */
    while (store->cache_first <= base->index) drop_slot(store, store->cache_first++);
    size_t n = (size_t)(base->index + 1 - store->first_index);
    memmove(store->locations, store->locations + n,
            (size_t)(store->last_index - base->index) * sizeof *store->locations);
    store->first_index = base->index + 1;
    store->base_term = base->term;
  }
  pthread_mutex_unlock(&store->mutex);
  return first;
}

int raft_store_compact(struct raft_store *store, uint64_t through) {
  struct segment_base base;
  pthread_mutex_lock(&store->base_mutex);
  pthread_mutex_lock(&store->mutex);
  bool is_durable = through <= store->durable_index, found = is_durable && find_base(store, through, &base);
  bool is_first = found && base.index < store->first_index;
  uint64_t resets = store->resets;
  base.term = found ? store->base_term : 0;
  pthread_mutex_unlock(&store->mutex);
  int error = is_durable ? 0 : -EINVAL;
  if (found && !is_first) error = term_of(store, base.index, &base.term);
#ifdef RAFT_MUTANT_SEGMENTS_BEFORE_BASE
  if (found && error == 0) release_segments(store, store->first_number, base.number);
#endif
  if (found && error == 0) error = write_base(store, &base);
  if (found && error == 0) {
    uint32_t first = begin_at(store, &base, resets);
    error = release_segments(store, first, base.number);
  }
  pthread_mutex_unlock(&store->base_mutex);
  return error;
}

/* ---- Open and close ---- */

static void set_options(struct raft_store *store, const struct raft_store_options *options) {
  uint32_t bytes = options && options->segment_bytes ? options->segment_bytes : SEGMENT_BYTES_DEFAULT;
  if (bytes < SEGMENT_BYTES_MIN) bytes = SEGMENT_BYTES_MIN;
  if (bytes > SEGMENT_BYTES_MAX) bytes = SEGMENT_BYTES_MAX;
  store->segment_bytes = bytes;
  store->cache_bytes = options && options->cache_bytes ? options->cache_bytes : CACHE_BYTES_DEFAULT;
}

static struct raft_store *store_new(struct os *os, const char *folder, const struct raft_uuid *incarnation,
                                    const struct raft_store_options *options) {
  struct raft_store *store = calloc(1, sizeof *store);
  if (store == NULL) return NULL;
  store->os = os;
  snprintf(store->folder, sizeof store->folder, "%s", folder);
  store->incarnation = *incarnation;
  set_options(store, options);
  pthread_mutex_init(&store->mutex, NULL);
  pthread_mutex_init(&store->flush_mutex, NULL);
  pthread_mutex_init(&store->base_mutex, NULL);
  pthread_mutex_init(&store->read_mutex, NULL);
  os_condition_init(&store->spare_changed);
  return store;
}

/* Takes over what was found. */
static void adopt(struct raft_store *store, struct recovery *r, struct raft_store_found *found) {
  store->first_index = r->first_index;
  store->last_index = r->first_index + r->n - 1;
  store->commit_index = r->commit_index;
  store->written_last = store->durable_index = store->last_index;
  store->cache_first = store->last_index + 1;
  store->locations = r->locations;
  store->locations_capacity = r->capacity;
  store->base_file = r->base_file;
  store->base_term = r->base.term;
  store->first_number = r->base.number;
  store->facts = r->facts;
  store->facts_capacity = r->last_number + 1 - r->base.number;
  memcpy(store->kept, r->kept, sizeof store->kept);
  store->n_kept = r->n_kept;
  store->bytes = r->bytes;
  store->number = r->number;
  store->offset = r->offset;
  store->sequence = r->next_sequence;
  store->previous = r->previous;
  store->sealed = r->sealed;
  store->disk_last = store->last_index;
  *found = (struct raft_store_found){
      .first_index = store->first_index,
      .last_index = store->last_index,
      .prev_term = r->base.term,
      .commit_index = r->commit_index,
      .entries = r->metas,
      .cut = r->cut,
      .fresh = r->last_number < r->base.number,
  };
}

/* Opens a segment that exists for appending. */
static int open_segment(struct raft_store *store, uint32_t number, struct os_file **file, uint64_t *size) {
  char path[OS_PATH_MAX];
  int error = segment_path(store->folder, number, path);
  if (error == 0) error = os_open(store->os, path, OS_OPEN_READ | OS_OPEN_WRITE | OS_OPEN_DSYNC, file);
  if (error == 0) error = os_size(*file, size);
  if (error) set_error(store, error, "%s: cannot open the segment: %s", path, error_text(error));
  return error;
}

/* The segment to append to, the spare after it if there is one, and the seal of the last batch. */
static int open_tail(struct raft_store *store, uint32_t last_number) {
  int error;
  if (last_number < store->first_number) {
    struct spare made;
    error = make_spare(store, store->first_number, store->segment_bytes, &made);
    if (error) return error;
    store->number = store->first_number;
    facts_of(store, store->number)->sequence = store->sequence;
    facts_of(store, store->number)->previous = store->previous;
    store->offset = SEGMENT_HEADER_SIZE;
    store->file = made.file;
    store->size = made.size;
    store->salt = made.salt;
    return 0;
  }
  error = open_segment(store, store->number, &store->file, &store->size);
  if (error) return error;
  store->salt = facts_of(store, store->number)->salt;
  if (last_number > store->number) {
    error = open_segment(store, store->number + 1, &store->spare.file, &store->spare.size);
    if (error) return error;
    store->spare.salt = facts_of(store, store->number + 1)->salt;
    store->spare.state = SPARE_READY;
  }
  return write_seal(store);
}

int raft_store_open(struct os *os, const char *folder, const struct raft_uuid *incarnation,
                    const struct raft_store_options *options, struct raft_store_found *found, struct raft_store **store,
                    char *text) {
  struct recovery r = {.os = os, .folder = folder, .incarnation = *incarnation, .text = text};
  r.last_index_least = options->last_index_least;
  *found = (struct raft_store_found){0};
  *store = NULL;
  int error = recovery_run(&r);
  struct raft_store *made = error ? NULL : store_new(os, folder, incarnation, options);
  if (error == 0 && made == NULL) {
    snprintf(text, RAFT_STORE_TEXT_MAX, "%s: no memory for the log", folder);
    error = -ENOMEM;
  }
  if (error) {
    free(r.metas);
    free(r.locations);
    free(r.facts);
    slot_file_close(r.base_file);
    return error;
  }
  adopt(made, &r, found);
  error = open_tail(made, r.last_number);
  if (error) {
    memcpy(text, made->text, RAFT_STORE_TEXT_MAX);
    made->sealed = true;
    raft_store_close(made);
    free(found->entries);
    *found = (struct raft_store_found){0};
    return error;
  }
  note_room(made);
  /* Without a thread (a simulation, or none to be had) flushes make the segments. */
  if (os_thread_start(os, "balsa-log", helper_main, made, &made->helper) != 0) made->helper = NULL;
  *store = made;
  return 0;
}

static void stop_helper(struct raft_store *store) {
  if (store->helper == NULL) return;
  pthread_mutex_lock(&store->mutex);
  atomic_store(&store->stopping, true);
  pthread_cond_broadcast(&store->spare_changed);
  pthread_mutex_unlock(&store->mutex);
  os_thread_join(store->helper);
  store->helper = NULL;
}

void raft_store_close(struct raft_store *store) {
  if (store == NULL) return;
  stop_helper(store);
  if (store->failed == 0) write_seal(store); /* if it fails, so be it: nothing relies on it */
  for (uint64_t i = store->cache_first; i <= store->last_index; i++)
    raft_payload_unref(slot_at(store, i)->entry.payload);
  os_close(store->file);
  os_close(store->spare.file);
  os_close(store->read_file);
  slot_file_close(store->base_file);
  free(store->locations);
  free(store->slots);
  free(store->facts);
  free(store->buffer);
  free(store->batch);
  pthread_cond_destroy(&store->spare_changed);
  pthread_mutex_destroy(&store->read_mutex);
  pthread_mutex_destroy(&store->base_mutex);
  pthread_mutex_destroy(&store->flush_mutex);
  pthread_mutex_destroy(&store->mutex);
  free(store);
}
