/*
** Snapshots to members that need what is compacted: the leader's side of InstallSnapshot (paper section 7).
**
** The file is the driver's: it reads chunks and sends them. The core decides who gets one, passes the members' wishes on
** to the driver, and has it repeat what is overdue. That needs no queue: for each member it is kept what the driver was
** told last and what is true now, and raft_take_transfers tells the difference.
**
** A transfer is known by a number, which the messages carry, so that what is left of an earlier one is told apart. It
** ends when the member's log matches far enough (an APPEND_RESULT says that, as always), whether by this snapshot or not.
*/
#include <assert.h>

#include "core.h"

static struct raft_sending *find_sending(struct raft *raft, uint64_t id, uint32_t *place) {
  for (uint32_t i = 0; i < RAFT_MEMBERS_MAX; i++) {
    if (id != 0 && raft->sending[i].id == id) {
      *place = i;
      return &raft->sending[i];
    }
  }
  return NULL;
}

static void end(struct raft_sending *sending) {
  sending->id = 0;
  sending->index = 0;
  sending->news = false;
}

/* Ends it, and finds out what the member needs now. */
static void probe_instead(struct raft *raft, uint32_t place) {
  end(&raft->sending[place]);
  raft_progress_probe(&raft->progress[place], raft->log.first_index);
  raft->replicate = true;
}

void raft_begin_transfer(struct raft *raft, uint32_t place) {
  const struct raft_member *member = &raft_members(raft)->members[place];
  struct raft_sending *sending = &raft->sending[place];
  struct raft_progress *progress = &raft->progress[place];
  assert(sending->id == 0);
  if (raft->now < sending->not_before) {
    raft_progress_probe(progress, raft->log.first_index);
    raft_progress_asked(progress, raft->now); /* the refusal just had counts as one that is awaited: ask now and then */
    return;
  }
  raft_progress_transfer(progress, raft->log.first_index);
  sending->id = ++raft->transfers;
  sending->to = member->id;
  sending->to_incarnation = member->incarnation;
  sending->index = 0;
  sending->offset = RAFT_OFFSET_UNKNOWN;
  sending->news = sending->again = false;
  sending->repeats = 0;
}

void raft_settle_transfer(struct raft *raft, uint32_t place) {
  struct raft_progress *progress = &raft->progress[place];
  struct raft_sending *sending = &raft->sending[place];
  if (progress->state != RAFT_TRANSFER) {
    return;
  }
  if (progress->match_index + 1 >= raft->log.first_index) {
    end(sending);
    raft_progress_transferred(progress);
  } else if (sending->index != 0 && progress->match_index >= sending->index) {
    probe_instead(raft, place); /* the log was compacted further meanwhile */
  }
}

void raft_repeat_transfer(struct raft *raft, uint32_t place) {
  struct raft_sending *sending = &raft->sending[place];
  const uint64_t doubled = raft_min(sending->repeats, RAFT_TRANSFER_WAIT_DOUBLED);
  if (sending->index == 0 || raft->now - sending->waiting_since < raft->options.election_ns << doubled) {
    return;
  }
  sending->waiting_since = raft->now;
  sending->repeats++;
  sending->news = sending->again = true;
}

void raft_review_transfers(struct raft *raft) {
  for (uint32_t i = 0; i < raft_members(raft)->n_members; i++) {
    if (raft->sending[i].id != 0 && raft->sending[i].index != 0 && raft->sending[i].index + 1 < raft->log.first_index) {
      probe_instead(raft, i); /* what it is getting would not do */
    }
  }
}

void raft_transfers_tick(struct raft *raft) {
  const uint64_t silence = RAFT_TRANSFER_SILENCE * raft->options.election_ns;
  for (uint32_t i = 0; i < raft_members(raft)->n_members; i++) {
    if (raft->sending[i].id != 0 && raft->now - raft->progress[i].last_contact >= silence) {
      probe_instead(raft, i);
    }
  }
}

void raft_end_transfer(struct raft *raft, uint32_t place) {
  end(&raft->sending[place]);
}

void raft_end_transfers(struct raft *raft) {
  for (uint32_t i = 0; i < RAFT_MEMBERS_MAX; i++) {
    end(&raft->sending[i]);
  }
}

void raft_reset_transfers(struct raft *raft) {
  raft_end_transfers(raft);
  for (uint32_t i = 0; i < RAFT_MEMBERS_MAX; i++) {
    raft->sending[i].not_before = 0;
  }
}

/* ---- The driver ---- */

/* What the driver has to be told of one member: at most three events. */
static size_t take_events(struct raft_sending *sending, struct raft_transfer *events) {
  size_t n = 0;
  if (sending->told_id != sending->id && sending->told_id != 0) {
    events[n++] = (struct raft_transfer){.event = RAFT_TRANSFER_END,
                                         .id = sending->told_id,
                                         .to = sending->told_to,
                                         .to_incarnation = sending->told_incarnation};
  }
  if (sending->told_id != sending->id && sending->id != 0) {
    events[n++] = (struct raft_transfer){
        .event = RAFT_TRANSFER_BEGIN, .id = sending->id, .to = sending->to, .to_incarnation = sending->to_incarnation};
  }
  if (sending->news) {
    events[n++] = (struct raft_transfer){.event = RAFT_TRANSFER_CONTINUE,
                                         .id = sending->id,
                                         .to = sending->to,
                                         .to_incarnation = sending->to_incarnation,
                                         .index = sending->index,
                                         .offset = sending->offset == RAFT_OFFSET_UNKNOWN ? 0 : sending->offset,
                                         .again = sending->again};
  }
  sending->news = false;
  sending->told_id = sending->id;
  sending->told_to = sending->to;
  sending->told_incarnation = sending->to_incarnation;
  return n;
}

size_t raft_take_transfers(struct raft *raft) {
  size_t n = 0;
  for (uint32_t i = 0; i < RAFT_MEMBERS_MAX; i++) {
    n += take_events(&raft->sending[i], raft->transfer_events + n);
  }
  return n;
}

/* Can this file bring the member to where the log goes on? */
static bool file_makes_sense(const struct raft *raft, const struct raft_chunk *chunk) {
  const uint64_t known = raft_log_term_ever(&raft->log, chunk->index);
  return chunk->index > 0 && chunk->index + 1 >= raft->log.first_index && chunk->index <= raft->commit_index &&
         known == chunk->term && chunk->size_bytes > 0;
}

int raft_transfer_chunk(struct raft *raft, uint64_t now, uint64_t id, const struct raft_chunk *chunk,
                        struct raft_message *message) {
  uint32_t place;
  struct raft_sending *sending = find_sending(raft, id, &place);
  if (!sending) {
    return RAFT_NOT_LEADER;
  }
  assert(raft->role == RAFT_LEADER && !raft->failed);
  if (sending->index == 0 && file_makes_sense(raft, chunk)) {
    sending->index = chunk->index;
    sending->term = chunk->term;
    sending->size_bytes = chunk->size_bytes;
  }
  if (chunk->index != sending->index || chunk->term != sending->term || chunk->size_bytes != sending->size_bytes ||
      chunk->index == 0 || chunk->offset > chunk->size_bytes || chunk->bytes > chunk->size_bytes - chunk->offset) {
    return RAFT_INVALID;
  }
  raft->now = raft_max(raft->now, now);
  sending->waiting_since = raft->now;
  *message = (struct raft_message){.type = RAFT_SNAPSHOT,
                                   .from = raft->options.id,
                                   .to = sending->to,
                                   .from_incarnation = raft->options.incarnation,
                                   .to_incarnation = sending->to_incarnation,
                                   .term = raft->current_term,
                                   .index = chunk->index,
                                   .log_term = chunk->term,
                                   .context = id,
                                   .offset = chunk->offset,
                                   .size_bytes = chunk->size_bytes,
                                   .chunk_bytes = chunk->bytes};
  return RAFT_OK;
}

void raft_transfer_failed(struct raft *raft, uint64_t now, uint64_t id) {
  uint32_t place;
  struct raft_sending *sending = find_sending(raft, id, &place);
  if (!sending) {
    return;
  }
  raft_begin_event(raft, now);
  sending->not_before = raft_time_add(raft->now, raft->options.election_ns);
  probe_instead(raft, place);
}

/* ---- Answers ---- */

void raft_receive_snapshot_result(struct raft *raft, const struct raft_message *message) {
  const int place = raft_member_place(raft, message->from);
  if (raft->role != RAFT_LEADER || place < 0 || !raft_hear_member(raft, place, 0)) {
    return;
  }
  struct raft_sending *sending = &raft->sending[place];
  if (sending->id == 0 || message->context != sending->id || message->index != sending->index ||
      message->offset > sending->size_bytes) {
    return;
  }
  const bool moved = message->offset != sending->offset;
  if (!moved && (!message->reject || sending->again)) {
    return; /* nothing that the driver does not know */
  }
  const bool back = sending->offset != RAFT_OFFSET_UNKNOWN && message->offset < sending->offset;
  sending->repeats = moved ? 0 : sending->repeats;
  sending->again = message->reject || back;
  sending->offset = message->offset;
  sending->news = true;
  sending->waiting_since = raft->now;
}
