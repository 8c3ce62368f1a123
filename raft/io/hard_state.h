/*
** What a node must never forget: its id, its incarnation, its current term and whom it voted for in
** it (paper figure 2). One slot file; a vote is durable before it is sent.
*/
#ifndef BALSA_RAFT_IO_HARD_STATE_H
#define BALSA_RAFT_IO_HARD_STATE_H

#include "../../ext/slot_file.h"
#include "../raft.h"

struct raft_hard_state {
  uint64_t node; /* 0: fresh file */
  struct raft_uuid incarnation;
  uint64_t term, voted_for;
};

struct raft_hard_state_file;

/* A fresh file gives node = 0. Errors as slot_file_open. */
int raft_hard_state_open(struct os *os, const char *path, struct raft_hard_state *state,
                         struct raft_hard_state_file **file);
/* Durable when it returns 0. Thread-safe; a term lower than the last one written is refused (-EINVAL). */
int raft_hard_state_write(struct raft_hard_state_file *file, const struct raft_hard_state *state);
void raft_hard_state_close(struct raft_hard_state_file *file);

#endif
