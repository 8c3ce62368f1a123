/*
** Compaction of the log, and snapshots that come in: the follower's side of InstallSnapshot (paper section 7).
**
** A snapshot holds committed entries only. So where the log has its last entry, by index and term, everything before
** is the same (log matching), and what follows may stay; where it has not, all of the log is behind the snapshot or
** contradicts it, and goes. What was being written then does not count any more, whatever the disk reports later.
*/
#include <assert.h>

#include "core.h"

int raft_compact_log(struct raft *raft, uint64_t through) {
  uint64_t limit = raft_min(raft->commit_index, raft->log.durable_index);
#ifdef RAFT_MUTANT_COMPACT_UNCOMMITTED
  limit = raft->log.durable_index;
#endif
  if (through > limit) {
    return RAFT_INVALID;
  }
  if (through < raft->log.first_index) {
    return RAFT_OK;
  }
  raft_log_compact(&raft->log, through);
  if (raft->role == RAFT_LEADER) {
    raft_review_transfers(raft);
    raft->replicate = true;
  }
  return RAFT_OK;
}

/* ---- Chunks ---- */

/* Is the log right up to this place, which is committed somewhere? */
static bool holds(const struct raft *raft, uint64_t index, uint64_t term) {
#ifdef RAFT_MUTANT_INSTALL_KEEPS_CONFLICT
  return index <= raft_log_last(&raft->log) && index + 1 >= raft->log.first_index;
#endif
  return index <= raft_log_last(&raft->log) && index + 1 >= raft->log.first_index &&
         raft_log_term(&raft->log, index) == term;
}

void raft_receive_snapshot(struct raft *raft, const struct raft_message *message) {
  if (raft->role == RAFT_LEADER || !raft_hear_leader(raft, message)) {
    return;
  }
  struct raft_receiving *receiving = &raft->receiving;
  if (receiving->term == message->term && message->context < receiving->transfer) {
    return; /* of an earlier transfer, overtaken: it would throw away what has come since */
  }
  if (message->index > raft->commit_index && holds(raft, message->index, message->log_term)) {
    raft->commit_index = message->index;
  }
  if (message->index <= raft->commit_index) {
    raft_confirm(raft, message->from, &message->from_incarnation, raft->commit_index, 0);
    return;
  }
#ifdef RAFT_MUTANT_SNAPSHOT_ACK_EARLY
  raft_send(raft, RAFT_APPEND_RESULT, message->from, &message->from_incarnation, 0)->index = message->index;
#endif
  *receiving = (struct raft_receiving){.term = message->term,
                                       .from = message->from,
                                       .transfer = message->context,
                                       .from_incarnation = message->from_incarnation};
  raft->chunk = true;
}

/* Is whoever sends the snapshot still the leader? */
static bool is_received_from_leader(const struct raft *raft) {
  return raft->receiving.term == raft->current_term && raft->role != RAFT_LEADER && !raft->failed;
}

void raft_snapshot_answer(struct raft *raft, uint64_t now, uint64_t index, uint64_t offset, bool reject) {
  raft_begin_event(raft, now);
  if (!is_received_from_leader(raft)) {
    return;
  }
  struct raft_message *result = raft_send(raft, RAFT_SNAPSHOT_RESULT, raft->receiving.from,
                                          &raft->receiving.from_incarnation, 0);
  result->reject = reject;
  result->index = index;
  result->offset = offset;
  result->context = raft->receiving.transfer;
}

/* ---- Installation ---- */

static bool terms_make_sense(const struct raft_install *install) {
  const struct raft_term_start *before = NULL;
  if (!install->terms || install->n_terms == 0 || install->n_terms > RAFT_TERMS_MAX) {
    return false;
  }
  for (size_t i = 0; i < install->n_terms; i++) {
    const struct raft_term_start *at = &install->terms[i];
    if (at->term == 0 || at->index == 0 || at->index > install->index ||
        (before && (at->term <= before->term || at->index <= before->index))) {
      return false;
    }
    before = at;
  }
  return before->term == install->term;
}

static bool install_makes_sense(const struct raft_install *install) {
  return install->index > 0 && install->index < UINT64_MAX / 2 && install->term > 0 && install->term <= RAFT_TERM_MAX &&
         install->configuration && install->configuration_index > 0 && install->configuration_index <= install->index &&
         raft_configuration_check(install->configuration) == RAFT_OK && terms_make_sense(install);
}

/* Does it hold what is committed here? By log matching it does if the terms are the same at its end. */
static bool contains_committed(const struct raft *raft, const struct raft_install *install) {
  const uint64_t known = raft_log_term_ever(&raft->log, raft->commit_index);
  uint64_t there = 0;
  for (size_t i = 0; i < install->n_terms && install->terms[i].index <= raft->commit_index; i++) {
    there = install->terms[i].term;
  }
  return known == there || known == 0 || there == 0;
}

/* The log begins anew behind the snapshot. */
static int begin_anew(struct raft *raft, const struct raft_install *install) {
  /* A leader has all that is committed: who says otherwise is wrong. */
  if (raft->role == RAFT_LEADER || !contains_committed(raft, install)) {
    return RAFT_INVALID;
  }
  const uint64_t durable = raft_min(raft->log.durable_index, raft->commit_index);
  if (!raft_log_reset(&raft->log, install->index, install->term, install->terms, install->n_terms, durable)) {
    return RAFT_NO_MEMORY;
  }
  /* What was not given out yet was part of what is gone. */
  raft->append_first = 0;
  raft->truncate_from = 0;
  raft->reset_index = install->index;
  raft_membership_reset(raft, install->configuration_index, install->configuration);
  /* A candidacy counts votes by the configuration that was. */
  raft_become_follower(raft, raft_max(raft->current_term, install->term),
                       install->term > raft->current_term ? 0 : raft->leader);
  return RAFT_OK;
}

int raft_install_snapshot(struct raft *raft, const struct raft_install *install) {
  if (!install_makes_sense(install)) {
    return RAFT_INVALID;
  }
  if (install->index <= raft->commit_index) {
    const uint64_t known = raft_log_term_ever(&raft->log, install->index);
    return known == 0 || known == install->term ? RAFT_OK : RAFT_INVALID;
  }
  if (!holds(raft, install->index, install->term)) {
    const int error = begin_anew(raft, install);
    if (error) {
      return error;
    }
  }
  raft->commit_index = install->index;
  if (raft->role == RAFT_LEADER) {
    raft->replicate = true;
    raft_advance_reads(raft);
  } else if (is_received_from_leader(raft)) {
    raft_confirm(raft, raft->receiving.from, &raft->receiving.from_incarnation, install->index, 0);
  }
  return RAFT_OK;
}
