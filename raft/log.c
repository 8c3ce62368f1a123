/* The log of the core: terms, sizes and what is durable. */
#include "log.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define RAFT_LOG_CAPACITY_FIRST 64

static bool grow(void **array, size_t *capacity, size_t needed, size_t size) {
  if (needed <= *capacity) {
    return true;
  }
  size_t target = *capacity ? *capacity : RAFT_LOG_CAPACITY_FIRST;
  while (target < needed) {
    if (target > SIZE_MAX / 2 / size) {
      return false;
    }
    target *= 2;
  }
  void *grown = realloc(*array, target * size);
  if (!grown) {
    return false;
  }
  *array = grown;
  *capacity = target;
  return true;
}

static bool reserve(struct raft_log *log, size_t n_entries, size_t n_terms) {
  return grow((void **)&log->entries, &log->entries_capacity, log->n_entries + n_entries, sizeof *log->entries) &&
         grow((void **)&log->terms, &log->terms_capacity, log->n_terms + n_terms, sizeof *log->terms);
}

bool raft_log_reserve(struct raft_log *log, const struct raft_entry_meta *entries, size_t n) {
  if (n > SIZE_MAX / 4 - log->n_entries) {
    return false;
  }
  size_t n_terms = n > 0;
  for (size_t i = 1; i < n; i++) {
    n_terms += entries[i].term != entries[i - 1].term;
  }
  return reserve(log, n, n_terms);
}

static int open_terms(struct raft_log *log, const struct raft_start *start) {
  if (!reserve(log, 0, start->n_terms)) {
    return RAFT_NO_MEMORY;
  }
  const struct raft_term_start *before = NULL;
  for (size_t i = 0; i < start->n_terms; i++) {
    const struct raft_term_start *at = &start->terms[i];
    if (at->term == 0 || at->index == 0 || at->index >= start->first_index ||
        (before && (at->term <= before->term || at->index <= before->index))) {
      return RAFT_INVALID;
    }
    before = at;
    log->terms[log->n_terms++] = *at;
  }
  return before && before->term != start->prev_term ? RAFT_INVALID : RAFT_OK;
}

static int open_entries(struct raft_log *log, const struct raft_start *start, size_t n) {
  if (!raft_log_reserve(log, start->entries, n)) {
    return RAFT_NO_MEMORY;
  }
  uint64_t term = start->prev_term;
  for (size_t i = 0; i < n; i++) {
    if (start->entries[i].term < term || start->entries[i].term == 0 || start->entries[i].term > RAFT_TERM_MAX) {
      return RAFT_INVALID;
    }
    term = start->entries[i].term;
    raft_log_append(log, &start->entries[i]);
  }
  return RAFT_OK;
}

int raft_log_open(struct raft_log *log, const struct raft_start *start) {
  memset(log, 0, sizeof *log);
  if (start->first_index == 0 || start->last_index == UINT64_MAX || start->last_index + 1 < start->first_index ||
      (start->first_index == 1) != (start->prev_term == 0) || start->prev_term > RAFT_TERM_MAX) {
    return RAFT_INVALID;
  }
  const uint64_t n = start->last_index + 1 - start->first_index;
  if ((n > 0 && !start->entries) || (start->n_terms > 0 && !start->terms)) {
    return RAFT_INVALID;
  }
  log->first_index = start->first_index;
  log->prev_term = start->prev_term;
  int error = open_terms(log, start);
  if (!error) {
    error = open_entries(log, start, (size_t)n);
  }
  if (error) {
    raft_log_close(log);
    return error;
  }
  log->durable_index = start->last_index;
  return RAFT_OK;
}

void raft_log_close(struct raft_log *log) {
  free(log->entries);
  free(log->terms);
  memset(log, 0, sizeof *log);
}

uint64_t raft_log_last(const struct raft_log *log) {
  return log->first_index - 1 + log->n_entries;
}

uint64_t raft_log_last_term(const struct raft_log *log) {
  return raft_log_term(log, raft_log_last(log));
}

const struct raft_entry_meta *raft_log_entry(const struct raft_log *log, uint64_t index) {
  assert(index >= log->first_index && index - log->first_index < log->n_entries);
  return &log->entries[index - log->first_index];
}

uint64_t raft_log_term(const struct raft_log *log, uint64_t index) {
  return index + 1 == log->first_index ? log->prev_term : raft_log_entry(log, index)->term;
}

size_t raft_log_terms_until(const struct raft_log *log, uint64_t index) {
  size_t low = 0, high = log->n_terms;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (log->terms[middle].index <= index) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

uint64_t raft_log_term_ever(const struct raft_log *log, uint64_t index) {
  if (index == 0 || index > raft_log_last(log)) {
    return 0;
  }
  if (index + 1 >= log->first_index) {
    return raft_log_term(log, index);
  }
  const size_t n = raft_log_terms_until(log, index);
  return n == 0 ? 0 : log->terms[n - 1].term;
}

uint64_t raft_log_agree(const struct raft_log *log, uint64_t index, uint64_t term) {
  const uint64_t last = raft_log_last(log);
  if (index > last) {
    index = last;
  }
  while (index >= log->first_index && raft_log_term(log, index) > term) {
    /* Jump over the whole term: few terms, many entries. It may reach into what is compacted, and unknown. */
    const size_t n = raft_log_terms_until(log, index);
    const uint64_t start = n > 0 ? log->terms[n - 1].index : 0;
    index = start > log->first_index ? start - 1 : log->first_index - 1;
  }
  return index + 1 < log->first_index ? log->first_index - 1 : index;
}

void raft_log_append(struct raft_log *log, const struct raft_entry_meta *entry) {
  assert(log->n_entries < log->entries_capacity);
  const uint64_t before = raft_log_last_term(log);
  assert(entry->term >= before && entry->term > 0);
  log->entries[log->n_entries++] = *entry;
  if (entry->term > before) {
    assert(log->n_terms < log->terms_capacity);
    log->terms[log->n_terms++] = (struct raft_term_start){.term = entry->term, .index = raft_log_last(log)};
  }
}

static struct raft_write *write_at(struct raft_log *log, uint32_t i) {
  return &log->writes[(log->writes_head + i) % RAFT_WRITES_MAX];
}

void raft_log_truncate(struct raft_log *log, uint64_t from) {
  assert(from >= log->first_index);
  if (from > raft_log_last(log)) {
    return;
  }
  log->n_entries = (size_t)(from - log->first_index);
  while (log->n_terms > 0 && log->terms[log->n_terms - 1].index >= from) {
    log->n_terms--;
  }
  if (log->durable_index >= from) {
    log->durable_index = from - 1;
  }
  for (uint32_t i = 0; i < log->n_writes; i++) {
    struct raft_write *write = write_at(log, i);
    if (write->last_index >= from) {
      write->last_index = from - 1;
    }
  }
}

/* The oldest pairs make room; what they said of fates is then not known any more. */
static void limit_terms(struct raft_log *log) {
  const size_t n = raft_log_terms_until(log, log->first_index - 1);
  if (n <= RAFT_TERMS_MAX) {
    return;
  }
  log->n_terms -= n - RAFT_TERMS_MAX;
  memmove(log->terms, log->terms + (n - RAFT_TERMS_MAX), log->n_terms * sizeof *log->terms);
}

/* Gives back what a long log once needed. */
static void shrink(struct raft_log *log) {
  if (log->entries_capacity <= RAFT_LOG_CAPACITY_FIRST || log->n_entries >= log->entries_capacity / 4) {
    return;
  }
  const size_t capacity = log->entries_capacity / 2;
  struct raft_entry_meta *shrunk = realloc(log->entries, capacity * sizeof *shrunk);
  if (shrunk) {
    log->entries = shrunk;
    log->entries_capacity = capacity;
  }
}

void raft_log_compact(struct raft_log *log, uint64_t through) {
  assert(through <= log->durable_index);
  if (through < log->first_index) {
    return;
  }
  const size_t n = (size_t)(through + 1 - log->first_index);
  log->prev_term = raft_log_term(log, through);
  log->n_entries -= n;
  memmove(log->entries, log->entries + n, log->n_entries * sizeof *log->entries);
  log->first_index = through + 1;
  limit_terms(log);
  shrink(log);
}

bool raft_log_reset(struct raft_log *log, uint64_t index, uint64_t term, const struct raft_term_start *terms,
                    size_t n_terms, uint64_t durable) {
  assert(durable <= index);
  if (!grow((void **)&log->terms, &log->terms_capacity, n_terms, sizeof *log->terms)) {
    return false;
  }
  if (n_terms > 0) {
    memcpy(log->terms, terms, n_terms * sizeof *log->terms);
  }
  log->n_terms = n_terms;
  log->n_entries = 0;
  log->first_index = index + 1;
  log->prev_term = term;
  log->durable_index = durable;
  for (uint32_t i = 0; i < log->n_writes; i++) {
    write_at(log, i)->last_index = 0;
  }
  shrink(log);
  return true;
}

void raft_log_write_begun(struct raft_log *log, uint64_t number, uint64_t last_index, uint64_t now) {
  assert(last_index <= raft_log_last(log));
  if (log->n_writes == RAFT_WRITES_MAX) {
    /* Taken together with the one before: both are durable when the later one is. */
    struct raft_write *write = write_at(log, RAFT_WRITES_MAX - 1);
    write->number = number;
    write->last_index = last_index ? last_index : write->last_index;
    write->since = now;
    return;
  }
  log->n_writes++;
  *write_at(log, log->n_writes - 1) = (struct raft_write){.number = number, .last_index = last_index, .since = now};
}

void raft_log_write_done(struct raft_log *log, uint64_t number, uint64_t now) {
  while (log->n_writes > 0 && write_at(log, 0)->number <= number) {
    const uint64_t last = write_at(log, 0)->last_index;
    if (last > log->durable_index) {
      log->durable_index = last;
    }
    log->writes_head = (log->writes_head + 1) % RAFT_WRITES_MAX;
    log->n_writes--;
    if (log->n_writes > 0) {
      write_at(log, 0)->since = now;
    }
  }
  assert(log->durable_index <= raft_log_last(log));
}

uint64_t raft_log_write_of(const struct raft_log *log, uint64_t index, uint64_t pending) {
  if (index <= log->durable_index) {
    return 0;
  }
  for (uint32_t i = 0; i < log->n_writes; i++) {
    const struct raft_write *write = &log->writes[(log->writes_head + i) % RAFT_WRITES_MAX];
    if (write->last_index >= index) {
      return write->number;
    }
  }
  return pending;
}

uint64_t raft_log_oldest_write(const struct raft_log *log) {
  return log->n_writes > 0 ? log->writes[log->writes_head].since : UINT64_MAX;
}
