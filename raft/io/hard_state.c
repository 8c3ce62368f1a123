/*
** Term and vote in a slot file of kind "VOTE". The payload, version 1 (little-endian):
**
**   offset size
**    0     8  node
**    8    16  incarnation
**   24     8  term
**   32     8  voted_for: 0 for nobody
*/
#include "hard_state.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "../../ext/bytes.h"

#define HARD_STATE_KIND "VOTE"
#define HARD_STATE_VERSION 1
#define HARD_STATE_SIZE 40

struct raft_hard_state_file {
  pthread_mutex_t mutex; /* guards all of this, and is held during the write: one at a time, in order */
  struct slot_file *slots;
  uint64_t term;
};

int raft_hard_state_open(struct os *os, const char *path, struct raft_hard_state *state,
                         struct raft_hard_state_file **file) {
  uint8_t bytes[HARD_STATE_SIZE];
  size_t size;
  *state = (struct raft_hard_state){0};
  *file = NULL;
  struct raft_hard_state_file *made = calloc(1, sizeof *made);
  if (made == NULL) return -ENOMEM;
  int error = slot_file_open(os, path, HARD_STATE_KIND, HARD_STATE_VERSION, bytes, sizeof bytes, &size, &made->slots);
  if (error == 0 && size != 0 && size != HARD_STATE_SIZE) error = -EPROTO;
  if (error) {
    slot_file_close(made->slots);
    free(made);
    return error;
  }
  if (size) {
    state->node = le64_get(bytes);
    memcpy(state->incarnation.bytes, bytes + 8, RAFT_UUID_SIZE);
    state->term = le64_get(bytes + 24);
    state->voted_for = le64_get(bytes + 32);
  }
  made->term = state->term;
  pthread_mutex_init(&made->mutex, NULL);
  *file = made;
  return 0;
}

int raft_hard_state_write(struct raft_hard_state_file *file, const struct raft_hard_state *state) {
  uint8_t bytes[HARD_STATE_SIZE];
  int error = -EINVAL;
  le64_put(bytes, state->node);
  memcpy(bytes + 8, state->incarnation.bytes, RAFT_UUID_SIZE);
  le64_put(bytes + 24, state->term);
  le64_put(bytes + 32, state->voted_for);
  pthread_mutex_lock(&file->mutex);
  if (state->term >= file->term) error = slot_file_write(file->slots, bytes, sizeof bytes);
  if (error == 0) file->term = state->term;
  pthread_mutex_unlock(&file->mutex);
  return error;
}

void raft_hard_state_close(struct raft_hard_state_file *file) {
  if (file == NULL) return;
  slot_file_close(file->slots);
  pthread_mutex_destroy(&file->mutex);
  free(file);
}
