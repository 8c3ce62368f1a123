/* Progress of one member, as its leader sees it. */
#include "progress.h"

#include <assert.h>
#include <string.h>

static void forget_inflight(struct raft_progress *progress) {
  progress->inflight_head = 0;
  progress->n_inflight = 0;
  progress->inflight_bytes = 0;
}

void raft_progress_reset(struct raft_progress *progress, uint64_t now, uint64_t next_index) {
  memset(progress, 0, sizeof *progress);
  progress->state = RAFT_PROBE;
  progress->next_index = next_index;
  progress->waiting_since = now;
  progress->last_contact = now;
  progress->catch_up_index = next_index - 1;
  progress->catch_up_since = now;
  progress->round_trip = UINT64_MAX;
  progress->round_trip_later = UINT64_MAX;
}

bool raft_progress_may_send(const struct raft_progress *progress, uint32_t window_bytes) {
  if (progress->state == RAFT_PROBE) {
    return !progress->probe_sent;
  }
  if (progress->state == RAFT_TRANSFER) {
    return false;
  }
  return progress->n_inflight == 0 ||
         (progress->n_inflight < RAFT_INFLIGHT_MAX && progress->inflight_bytes < window_bytes);
}

uint64_t raft_progress_room(const struct raft_progress *progress, uint32_t window_bytes) {
  return progress->inflight_bytes < window_bytes ? window_bytes - progress->inflight_bytes : 0;
}

void raft_progress_sent(struct raft_progress *progress, uint64_t now, uint64_t last_index, uint64_t bytes) {
  assert(last_index >= progress->next_index);
  if (progress->state == RAFT_PROBE) {
    assert(!progress->probe_sent);
    raft_progress_asked(progress, now);
    return;
  }
  assert(progress->state == RAFT_REPLICATE && progress->n_inflight < RAFT_INFLIGHT_MAX);
  if (progress->n_inflight == 0) {
    progress->waiting_since = now;
  }
  const uint32_t at = (progress->inflight_head + progress->n_inflight) % RAFT_INFLIGHT_MAX;
  progress->inflight[at] = (struct raft_inflight){.last_index = last_index, .bytes = bytes, .sent_at = now};
  progress->n_inflight++;
  progress->inflight_bytes += bytes;
  progress->next_index = last_index + 1;
}

void raft_progress_asked(struct raft_progress *progress, uint64_t now) {
  assert(progress->state == RAFT_PROBE);
  progress->probe_sent = true;
  progress->waiting_since = now;
}

void raft_progress_catch_up(struct raft_progress *progress, uint64_t now, uint64_t last_index, uint64_t limit) {
  if (progress->match_index >= last_index) {
    progress->caught_up = true;
  } else if (progress->match_index < progress->catch_up_index) {
    progress->caught_up = progress->caught_up && now - progress->catch_up_since < limit;
    return;
  } else {
    progress->caught_up = now - progress->catch_up_since < limit;
  }
  progress->catch_up_index = last_index;
  progress->catch_up_since = now;
}

/* The shortest one: what an answer waited for in a queue or for a disk says nothing of the way. */
static void note_round_trip(struct raft_progress *progress, uint64_t took) {
  if (took < progress->round_trip) {
    progress->round_trip = took;
  }
  if (took < progress->round_trip_later) {
    progress->round_trip_later = took;
  }
  if (++progress->n_round_trips == RAFT_ROUND_TRIP_SAMPLES) {
    progress->round_trip = progress->round_trip_later;
    progress->round_trip_later = UINT64_MAX;
    progress->n_round_trips = 0;
  }
}

static void free_inflight(struct raft_progress *progress, uint64_t now, uint64_t index) {
  while (progress->n_inflight > 0 && progress->inflight[progress->inflight_head].last_index <= index) {
    const struct raft_inflight *oldest = &progress->inflight[progress->inflight_head];
    assert(progress->inflight_bytes >= oldest->bytes);
    progress->inflight_bytes -= oldest->bytes;
    note_round_trip(progress, now > oldest->sent_at ? now - oldest->sent_at : 0);
    progress->inflight_head = (progress->inflight_head + 1) % RAFT_INFLIGHT_MAX;
    progress->n_inflight--;
  }
}

bool raft_progress_accepted(struct raft_progress *progress, uint64_t now, uint64_t index) {
  const bool answers_probe = progress->state == RAFT_PROBE && index + 1 >= progress->next_index;
  if (index <= progress->match_index && !answers_probe) {
    return false;
  }
  progress->waiting_since = now;
  if (index > progress->match_index) {
    progress->match_index = index;
  }
  if (progress->state == RAFT_TRANSFER) {
    return true; /* whether that ends the transfer: raft_settle_transfer */
  }
  if (progress->state == RAFT_PROBE) {
    progress->state = RAFT_REPLICATE;
    progress->probe_sent = false;
    progress->next_index = progress->match_index + 1;
    forget_inflight(progress);
    return true;
  }
  free_inflight(progress, now, index);
  if (progress->next_index <= progress->match_index) {
    progress->next_index = progress->match_index + 1;
  }
  return true;
}

bool raft_progress_is_refusal(const struct raft_progress *progress, uint64_t index) {
  if (progress->state == RAFT_TRANSFER || index == 0 || index <= progress->match_index) {
    return false; /* an APPEND behind entry 0, or behind what matches, cannot be refused: late or nonsense */
  }
  return progress->state == RAFT_PROBE ? index + 1 == progress->next_index : index < progress->next_index;
}

void raft_progress_probe(struct raft_progress *progress, uint64_t next_index) {
  progress->state = RAFT_PROBE;
  progress->probe_sent = false;
  progress->next_index = next_index > progress->match_index ? next_index : progress->match_index + 1;
  forget_inflight(progress);
}

void raft_progress_transfer(struct raft_progress *progress, uint64_t first_index) {
  assert(progress->match_index + 1 < first_index);
  progress->state = RAFT_TRANSFER;
  progress->probe_sent = false;
  progress->next_index = first_index;
  forget_inflight(progress);
}

void raft_progress_transferred(struct raft_progress *progress) {
  assert(progress->state == RAFT_TRANSFER);
  progress->state = RAFT_REPLICATE;
  progress->next_index = progress->match_index + 1;
}
