/* Looking in: what the core says of itself. */
#include <assert.h>

#include "core.h"

const char *raft_error_text(int error) {
  switch (error) {
  case RAFT_OK: return "no error";
  case RAFT_NOT_LEADER: return "this node does not lead in that term: ask the leader, or try again when there is one";
  case RAFT_FULL: return "too much is under way: try again when some of it is done";
  case RAFT_NO_MEMORY: return "out of memory";
  case RAFT_INVALID: return "what was given makes no sense here";
  case RAFT_FAILED: return "a write to this node's disk failed; it takes no part until it is restarted";
  case RAFT_PENDING: return "a change of the members, or of the leader, is under way: try again soon";
  case RAFT_BEHIND: return "that node lacks too much of the log: try again when it has caught up";
  default: return "unknown error";
  }
}

void raft_get_status(const struct raft *raft, struct raft_status *status) {
  uint64_t index;
  const struct raft_configuration *latest = raft_latest_configuration(raft, &index);
  *status = (struct raft_status){
      .role = raft->role,
      .term = raft->current_term,
      .voted_for = raft->voted_for,
      .leader = raft->leader,
      .first_index = raft->log.first_index,
      .last_index = raft_log_last(&raft->log),
      .durable_index = raft->log.durable_index,
      .commit_index = raft->commit_index,
      .term_index = raft->role == RAFT_LEADER ? raft->term_index : 0,
      .lease_until = raft_lease_until(raft),
      .configuration_index = index,
      .configuration_committed = index > 0 && index <= raft->commit_index,
      .is_joint = raft_is_joint(latest),
      .hand_over_to = raft->hand_over.to,
      .failed = raft->failed,
  };
}

size_t raft_get_members(const struct raft *raft, struct raft_member_status *members, size_t n_max) {
  const struct raft_configuration *configuration = raft_members(raft);
  if (raft->role != RAFT_LEADER) {
    return 0;
  }
  const size_t n = configuration->n_members < n_max ? configuration->n_members : n_max;
  for (size_t i = 0; i < n; i++) {
    const uint64_t id = configuration->members[i].id;
    const struct raft_progress *progress = &raft->progress[i];
    members[i] = (struct raft_member_status){.id = id,
                                             .roles = configuration->members[i].roles,
                                             .caught_up = progress->caught_up && raft_is_in_contact(raft, (uint32_t)i),
                                             .match_index = progress->match_index,
                                             .next_index = progress->next_index,
                                             .transfer_index = raft->sending[i].index,
                                             .transfer_offset = raft->sending[i].offset,
                                             .last_contact = progress->acked_round ? progress->last_contact : 0};
    if (raft->sending[i].offset == RAFT_OFFSET_UNKNOWN) {
      members[i].transfer_offset = 0;
    }
    if (id == raft->options.id) {
      members[i].match_index = raft->log.durable_index;
      members[i].next_index = raft_log_last(&raft->log) + 1;
      members[i].last_contact = raft->now;
      members[i].caught_up = true;
    }
  }
  return n;
}

const struct raft_configuration *raft_get_configuration(const struct raft *raft, uint64_t *index) {
  return raft_latest_configuration(raft, index);
}

uint64_t raft_term_at(const struct raft *raft, uint64_t index) {
  const bool there = index >= raft->log.first_index && index <= raft_log_last(&raft->log);
  return there ? raft_log_term(&raft->log, index) : 0;
}

size_t raft_get_terms(const struct raft *raft, const struct raft_term_start **terms) {
  *terms = raft->log.terms;
  return raft_log_terms_until(&raft->log, raft->commit_index);
}

enum raft_fate raft_fate(const struct raft *raft, uint64_t term, uint64_t index) {
  const uint64_t there = raft_log_term_ever(&raft->log, index);
#ifdef RAFT_MUTANT_LOST_AT_TRUNCATION
  if (there != 0 && there != term) {
    return RAFT_FATE_LOST;
  }
#endif
  if (index > raft->commit_index) {
    /* Terms never fall along a log: behind a committed entry of a later term there will be none of this one. */
    return raft_log_term_ever(&raft->log, raft->commit_index) > term ? RAFT_FATE_LOST : RAFT_FATE_PENDING;
  }
  if (there == 0) {
    return RAFT_FATE_PENDING; /* it is not known any more */
  }
  return there == term ? RAFT_FATE_COMMITTED : RAFT_FATE_LOST;
}
