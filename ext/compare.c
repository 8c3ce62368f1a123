#include "compare.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../raft/io/hard_state.h"
#include "../raft/io/recovery.h"
#include "../snapshot/snapshot.h"
#include "node_internal.h"
#include "os_read_only.h"

#define FOLDER_SUFFIX "-balsa"

__attribute__((format(printf, 2, 3))) static bool problem(struct holding *holding, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(holding->problem, sizeof holding->problem, format, arguments);
  va_end(arguments);
  return false;
}

static bool has(struct os *os, const char *path) {
  struct os_stat stat;
  return os_stat(os, path, &stat) == 0;
}

static bool find_folder(struct os *os, struct holding *holding, char folder[OS_PATH_MAX]) {
  size_t length = strlen(holding->path), suffix = strlen(FOLDER_SUFFIX);
  bool is_folder = length > suffix && strcmp(holding->path + length - suffix, FOLDER_SUFFIX) == 0;
  snprintf(folder, OS_PATH_MAX, "%.*s%s", OS_PATH_MAX - 64, holding->path, is_folder ? "" : FOLDER_SUFFIX);
  return has(os, folder) || problem(holding, "%s is not there: that is no database of a node", folder);
}

/* A node that runs changes its files under our eyes. */
static bool check_stopped(struct os *os, struct holding *holding, const char *folder) {
  char path[OS_PATH_MAX];
  struct os_file *file = NULL;
  int64_t process = 0;
  snprintf(path, sizeof path, "%.*s/lock", OS_PATH_MAX - 64, folder);
  if (os_open(os, path, OS_OPEN_READ, &file) != 0) return true;
  bool is_running = os_find_lock(file, 0, 0, &process);
  os_close(file);
  return !is_running || problem(holding, "a process has it open: stop that node first (its lock is %s)", path);
}

static bool look_at_vote(struct os *os, struct holding *holding, const char *folder, struct raft_hard_state *state) {
  char path[OS_PATH_MAX];
  struct raft_hard_state_file *file = NULL;
  snprintf(path, sizeof path, "%.*s/vote", OS_PATH_MAX - 64, folder);
  if (!has(os, path)) return problem(holding, "%s is missing: this node has lost its vote", path);
  int error = raft_hard_state_open(os, path, state, &file);
  raft_hard_state_close(file);
  if (error == -EILSEQ) return problem(holding, "%s is damaged: this node has lost its vote", path);
  if (error) return problem(holding, "%s cannot be read: %s", path, strerror(-error));
  holding->node = state->node;
  holding->term = state->term;
  holding->voted_for = state->voted_for;
  return state->node != 0 || problem(holding, "%s is empty: this node never ran", path);
}

static bool look_at_log(struct os *os, struct holding *holding, const char *folder,
                        const struct raft_hard_state *state) {
  char path[OS_PATH_MAX];
  struct recovery recovery = {.os = os, .incarnation = state->incarnation, .text = holding->problem};
  snprintf(path, sizeof path, "%.*s/log", OS_PATH_MAX - 64, folder);
  recovery.folder = path;
  if (!has(os, path)) return problem(holding, "%s is missing: this node has lost its log", path);
  int error = recovery_run(&recovery);
  if (!error) {
    holding->last_index = recovery.first_index + recovery.n - 1;
    holding->last_term = recovery.n ? recovery.metas[recovery.n - 1].term : recovery.base.term;
    holding->commit_index = recovery.commit_index;
  } else if (!holding->problem[0]) {
    problem(holding, "%s cannot be read: %s", path, strerror(-error));
  }
  slot_file_close(recovery.base_file);
  free(recovery.metas);
  free(recovery.locations);
  free(recovery.facts);
  return error == 0;
}

/* One that came from the leader may go further than the log: its installation was interrupted. */
static void look_at_snapshots(struct os *os, struct holding *holding, const char *folder) {
  char path[OS_PATH_MAX], text[SNAPSHOT_TEXT_MAX], snapshots[OS_PATH_MAX];
  struct snapshot_reader *reader = NULL;
  struct snapshot_meta meta;
  uint64_t index = 0;
  snprintf(snapshots, sizeof snapshots, "%.*s/snapshots", OS_PATH_MAX - 64, folder);
  if (snapshot_find(os, snapshots, path, &index) != 0 || index == 0) return;
  if (snapshot_reader_open(os, path, &reader, &meta, text) != 0) return;
  if (meta.index > holding->last_index) {
    holding->last_index = meta.index;
    holding->last_term = meta.term;
  }
  if (meta.index > holding->commit_index) holding->commit_index = meta.index;
  snapshot_reader_close(reader);
}

static void look_at_members(struct os *os, struct holding *holding, const char *folder) {
  struct node_known known;
  char path[OS_PATH_MAX];
  snprintf(path, sizeof path, "%.*s/members", OS_PATH_MAX - 64, folder);
  if (node_known_read(os, path, &known) == 0 && known.node == holding->node) holding->cluster = known.cluster;
}

void holding_look(struct os *os, const char *path, struct holding *holding) {
  struct os_read_only read_only;
  struct raft_hard_state state = {0};
  char folder[OS_PATH_MAX];
  os_read_only_init(&read_only, os);
  *holding = (struct holding){0};
  snprintf(holding->path, sizeof holding->path, "%s", path);
  if (!find_folder(os, holding, folder) || !check_stopped(os, holding, folder)) return;
  if (!look_at_vote(&read_only.os, holding, folder, &state)) return;
  if (!look_at_log(&read_only.os, holding, folder, &state)) return;
  look_at_snapshots(&read_only.os, holding, folder);
  look_at_members(&read_only.os, holding, folder);
}

bool holding_is_ahead(const struct holding *a, const struct holding *b) {
  return a->last_term != b->last_term ? a->last_term > b->last_term : a->last_index > b->last_index;
}

static bool is_usable(const struct holding *holding) {
  return !holding->problem[0] && holding->last_index > 0;
}

/* Two clusters among them: nobody can say which counts. */
static bool are_mixed(const struct holding *holdings, size_t n) {
  const struct raft_uuid *cluster = NULL;
  for (size_t i = 0; i < n; i++) {
    if (!is_usable(&holdings[i]) || node_uuid_is_none(&holdings[i].cluster)) continue;
    if (cluster && !node_uuid_equal(cluster, &holdings[i].cluster)) return true;
    cluster = &holdings[i].cluster;
  }
  return false;
}

void holding_advise(const struct holding *holdings, size_t n, size_t i, char text[HOLDING_TEXT_MAX]) {
  bool is_first = true, is_best = true;
  for (size_t j = 0; j < n; j++) {
    if (j == i || !is_usable(&holdings[j])) continue;
    if (holding_is_ahead(&holdings[j], &holdings[i])) is_best = false;
    if (j < i && !holding_is_ahead(&holdings[i], &holdings[j])) is_first = false;
  }
  const char *advice = !is_usable(&holdings[i]) ? "cannot be recovered from"
                       : are_mixed(holdings, n) ? "these are of different clusters: compare the nodes of one"
                       : is_best && is_first    ? "the most advanced: recover here"
                       : is_best                ? "as advanced as the other"
                                                : "behind: afterwards start it with rebuild=1";
  snprintf(text, HOLDING_TEXT_MAX, "%s", advice);
}
