/*
** SQL functions, on every connection:
**
**   balsa_wait(index [, ms])   until this node shows everything through `index`; its applied index
**   balsa_error()              the sentence for the connection's last error, NULL if there is none
**   balsa_last_commit()        the token of the connection's last COMMIT, known or not; NULL before the first
**   balsa_outcome(token)       'committed', 'lost' or 'pending'
**   balsa_snapshot([schema])   takes a snapshot of what is committed now; its index
**   balsa_transfer([node])     hands leadership over, to the most up to date if none is named; who leads then
**   balsa_recover(members)     a majority is lost for good: a new cluster from this node alone
**   balsa_stop([schema])       stops the node in order
**   balsa_add(node, address)   adds a node that waits there (join=wait), which becomes a voter by itself
**   balsa_remove(node), balsa_promote(node), balsa_demote(node)   change the members
**   balsa_leave()              removes this node
**
** Those that change the members may be called on any of them; they return 1 when it is done and committed.
**
** A token is "term.index.cluster": what it was proposed as, and the cluster's id in hex.
*/
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "functions.h"
#include "node_internal.h"

#define TOKEN_MAX 96
#define NOT_REPLICATED "no replicated database on this connection: open one with vfs=balsa"

/* The message of the statement, and what balsa_error() tells. */
static void fail(sqlite3_context *context, const char *text) {
  struct vfs_connection *connection = vfs_connection_find(sqlite3_context_db_handle(context), NULL);
  if (connection) vfs_connection_set_error(connection, text);
  sqlite3_result_error(context, text, -1);
}

/* The connection's Balsa database called `schema` (NULL: the first); sets the error if there is none. */
static struct vfs_connection *connection_of(sqlite3_context *context, const char *schema) {
  struct vfs_connection *connection = vfs_connection_find(sqlite3_context_db_handle(context), schema);
  if (!connection)
    fail(context, NOT_REPLICATED);
  else if (node_is_forked()) {
    fail(context, "this process was forked from one that uses Balsa; open databases after fork and exec");
    connection = NULL;
  }
  return connection;
}

static void result_text(sqlite3_context *context, const char *text) {
  if (text[0])
    sqlite3_result_text(context, text, -1, SQLITE_TRANSIENT);
  else
    sqlite3_result_null(context);
}

/* A statement of the caller's own write transaction cannot wait for the end of it. */
static bool refuse_writer(sqlite3_context *context, struct vfs_connection *connection, const char *function) {
  char text[VFS_TEXT_MAX];
  if (!vfs_connection_is_writing(connection)) return false;
  snprintf(text, sizeof text,
           "%s: this connection has a write transaction open and would wait for itself: end it first", function);
  fail(context, text);
  return true;
}

static void result_failure(sqlite3_context *context, const char *function, int error, const char *why) {
  char text[VFS_TEXT_MAX + 32];
  snprintf(text, sizeof text, "%s: %s", function, why[0] ? why : "it failed");
  fail(context, text);
  if (error == VFS_BUSY || error == VFS_NOBODY) sqlite3_result_error_code(context, SQLITE_BUSY);
  if (error == VFS_NO_SPACE) sqlite3_result_error_code(context, SQLITE_FULL);
}

/* What has changed since, or where to write instead. */
static void append_whereabouts(struct node *node, char text[VFS_TEXT_MAX]) {
  struct node_status status;
  node_get_status(node, &status);
  size_t length = strlen(text);
  if (status.is_stopped)
    snprintf(text + length, VFS_TEXT_MAX - length, "; " NODE_STOPPED_TEXT);
  else if (status.is_removed)
    snprintf(text + length, VFS_TEXT_MAX - length, "; %s", status.state);
  else if (status.leader != 0 && status.leader != status.node)
    snprintf(text + length, VFS_TEXT_MAX - length, "; node %" PRIu64 " at %s leads", status.leader,
             status.leader_address);
}

static void function_error(sqlite3_context *context, int n, sqlite3_value **arguments) {
  struct vfs_connection *connection = vfs_connection_find(sqlite3_context_db_handle(context), NULL);
  char text[VFS_TEXT_MAX];
  (void)n, (void)arguments;
  snprintf(text, sizeof text, "%s", connection ? vfs_connection_error(connection) : vfs_open_error());
  if (connection && !node_is_forked()) {
    struct node *node = node_of_connection(connection);
    if (text[0])
      append_whereabouts(node, text);
    else
      node_trouble(node, text);
  }
  result_text(context, text);
}

/* Positive milliseconds; false after setting the error. */
static bool milliseconds(sqlite3_context *context, sqlite3_value *value, uint64_t *ms) {
  if (sqlite3_value_numeric_type(value) == SQLITE_INTEGER && sqlite3_value_int64(value) >= 0 &&
      sqlite3_value_int64(value) <= OPTIONS_COMMIT_TIMEOUT_MS_MAX) {
    *ms = (uint64_t)sqlite3_value_int64(value);
    return true;
  }
  fail(context, "balsa_wait: the second argument must be 0 to 3600000 (ms)");
  return false;
}

static void function_wait(sqlite3_context *context, int n, sqlite3_value **arguments) {
  struct vfs_connection *connection = connection_of(context, NULL);
  if (!connection) return;
  struct node *node = node_of_connection(connection);
  uint64_t ms = vfs_connection_timeout_ms(connection);
  if (sqlite3_value_numeric_type(arguments[0]) != SQLITE_INTEGER || sqlite3_value_int64(arguments[0]) < 0) {
    fail(context, "balsa_wait: the first argument must be an index of the log");
    return;
  }
  if (n > 1 && !milliseconds(context, arguments[1], &ms)) return;
  if (refuse_writer(context, connection, "balsa_wait")) return;
  uint64_t index = (uint64_t)sqlite3_value_int64(arguments[0]);
  int error = node_wait_applied(node, index, node_now(node) + ms * OS_MS);
  struct node_status status;
  node_get_status(node, &status);
  if (error == VFS_OK) {
    sqlite3_result_int64(context, (sqlite3_int64)status.applied_index);
    return;
  }
  char text[2 * VFS_TEXT_MAX];
  snprintf(text, sizeof text,
           "balsa_wait: entry %" PRIu64 " is not applied here after %" PRIu64 " ms: this node is at %" PRIu64
           " (%.700s)",
           index, ms, status.applied_index, status.state);
  fail(context, text);
  if (error == VFS_BUSY) sqlite3_result_error_code(context, SQLITE_BUSY);
}

static void function_last_commit(sqlite3_context *context, int n, sqlite3_value **arguments) {
  struct vfs_connection *connection = connection_of(context, NULL);
  (void)n, (void)arguments;
  if (!connection) return;
  struct vfs_token token = vfs_connection_last_commit(connection);
  if (token.index == 0) return; /* NULL */
  char cluster[NODE_UUID_TEXT], text[TOKEN_MAX];
  struct raft_uuid uuid = node_cluster(node_of_connection(connection));
  node_uuid_text(&uuid, cluster);
  snprintf(text, sizeof text, "%" PRIu64 ".%" PRIu64 ".%s", token.epoch, token.index, cluster);
  sqlite3_result_text(context, text, -1, SQLITE_TRANSIENT);
}

/* Digits and what ends them; moves *at behind it. Tokens have no zero and nothing beyond 64 bits. */
static bool take_number(const char **at, char end, uint64_t *number) {
  char *stop = NULL;
  errno = 0;
  if (**at < '1' || **at > '9') return false;
  *number = strtoull(*at, &stop, 10);
  if (errno != 0 || *stop != end) return false;
  *at = stop + 1;
  return true;
}

/* `cluster` points into the token. */
static bool parse_token(const char *token, uint64_t *term, uint64_t *index, const char **cluster) {
  if (!token || !take_number(&token, '.', term) || !take_number(&token, '.', index)) return false;
  *cluster = token;
  return strlen(token) == NODE_UUID_TEXT - 1 && strspn(token, "0123456789abcdef") == NODE_UUID_TEXT - 1;
}

static void function_outcome(sqlite3_context *context, int n, sqlite3_value **arguments) {
  static const char *const words[] = {
      [RAFT_FATE_PENDING] = "pending", [RAFT_FATE_COMMITTED] = "committed", [RAFT_FATE_LOST] = "lost"};
  struct vfs_connection *connection = connection_of(context, NULL);
  (void)n;
  if (!connection || sqlite3_value_type(arguments[0]) == SQLITE_NULL) return;
  const char *token = (const char *)sqlite3_value_text(arguments[0]);
  char ours[NODE_UUID_TEXT];
  const char *theirs = NULL;
  uint64_t term = 0, index = 0;
  if (!parse_token(token, &term, &index, &theirs)) {
    fail(context, "balsa_outcome: this is no token of balsa_last_commit()");
    return;
  }
  struct node *node = node_of_connection(connection);
  struct raft_uuid uuid = node_cluster(node);
  node_uuid_text(&uuid, ours);
  if (strcmp(ours, theirs) != 0) {
    fail(context, "balsa_outcome: this token is of another cluster");
    return;
  }
  sqlite3_result_text(context, words[node_outcome(node, term, index)], -1, SQLITE_STATIC);
}

static void function_snapshot(sqlite3_context *context, int n, sqlite3_value **arguments) {
  const char *schema = n > 0 ? (const char *)sqlite3_value_text(arguments[0]) : NULL;
  struct vfs_connection *connection = connection_of(context, schema);
  char why[VFS_TEXT_MAX] = "";
  uint64_t index = 0;
  if (!connection) return;
  if (refuse_writer(context, connection, "balsa_snapshot")) return;
  int error = node_take_snapshot(node_of_connection(connection), &index, why);
  if (error == VFS_OK) {
    sqlite3_result_int64(context, (sqlite3_int64)index);
    return;
  }
  result_failure(context, "balsa_snapshot", error, why);
}

static void function_stop(sqlite3_context *context, int n, sqlite3_value **arguments) {
  const char *schema = n > 0 ? (const char *)sqlite3_value_text(arguments[0]) : NULL;
  struct vfs_connection *connection = connection_of(context, schema);
  if (!connection) return;
  if (vfs_connection_is_writing(connection)) {
    fail(context, "balsa_stop: this connection has a write transaction open: end it first");
    return;
  }
  struct node *node = node_of_connection(connection);
  node_stop(node, node_now(node) + NODE_STOP_MS_MAX * OS_MS);
  sqlite3_result_int(context, 1);
}

static void function_transfer(sqlite3_context *context, int n, sqlite3_value **arguments) {
  struct vfs_connection *connection = connection_of(context, NULL);
  char why[VFS_TEXT_MAX] = "";
  uint64_t to = 0, leader = 0;
  if (!connection || refuse_writer(context, connection, "balsa_transfer")) return;
  if (n > 0 && sqlite3_value_type(arguments[0]) != SQLITE_NULL) {
    bool is_number = sqlite3_value_numeric_type(arguments[0]) == SQLITE_INTEGER &&
                     sqlite3_value_int64(arguments[0]) > 0;
    if (!is_number) {
      fail(context, "balsa_transfer: the argument must be the number of a node");
      return;
    }
    to = (uint64_t)sqlite3_value_int64(arguments[0]);
  }
  uint64_t deadline = node_now(node_of_connection(connection)) + vfs_connection_timeout_ms(connection) * OS_MS;
  int error = node_succession(node_of_connection(connection), to, deadline, &leader, why);
  if (error)
    result_failure(context, "balsa_transfer", error, why);
  else
    sqlite3_result_int64(context, (sqlite3_int64)leader);
}

/* ---- Members ---- */

/* A node's number; false after setting the error. */
static bool node_number(sqlite3_context *context, const char *name, sqlite3_value *value, uint64_t *id) {
  char text[VFS_TEXT_MAX];
  if (sqlite3_value_numeric_type(value) == SQLITE_INTEGER && sqlite3_value_int64(value) > 0) {
    *id = (uint64_t)sqlite3_value_int64(value);
    return true;
  }
  snprintf(text, sizeof text, "%s: the first argument must be a node's number, as balsa_members shows it", name);
  fail(context, text);
  return false;
}

static void change(sqlite3_context *context, enum node_wish wish, const char *name, sqlite3_value *node,
                   const char *address) {
  struct vfs_connection *connection = connection_of(context, NULL);
  char why[VFS_TEXT_MAX] = "", text[VFS_TEXT_MAX + 32];
  uint64_t id = 0;
  if (!connection || (node && !node_number(context, name, node, &id))) return;
  if (refuse_writer(context, connection, name)) return;
  uint64_t deadline = node_now(node_of_connection(connection)) + vfs_connection_timeout_ms(connection) * OS_MS;
  int code = node_change(node_of_connection(connection), wish, id, address, deadline, why);
  if (code == SQLITE_OK) {
    sqlite3_result_int(context, 1);
    return;
  }
  snprintf(text, sizeof text, "%s: %s", name, why);
  fail(context, text);
  if (code == SQLITE_BUSY) sqlite3_result_error_code(context, SQLITE_BUSY);
}

static void function_add(sqlite3_context *context, int n, sqlite3_value **arguments) {
  const char *address = (const char *)sqlite3_value_text(arguments[1]);
  (void)n;
  if (!address || !address[0] || strlen(address) >= RAFT_ADDRESS_MAX) {
    fail(context, "balsa_add: the second argument must be the node's address, host:port");
    return;
  }
  change(context, NODE_ADD, "balsa_add", arguments[0], address);
}

static void function_remove(sqlite3_context *context, int n, sqlite3_value **arguments) {
  (void)n;
  change(context, NODE_REMOVE, "balsa_remove", arguments[0], "");
}

static void function_promote(sqlite3_context *context, int n, sqlite3_value **arguments) {
  (void)n;
  change(context, NODE_PROMOTE, "balsa_promote", arguments[0], "");
}

static void function_demote(sqlite3_context *context, int n, sqlite3_value **arguments) {
  (void)n;
  change(context, NODE_DEMOTE, "balsa_demote", arguments[0], "");
}

static void function_leave(sqlite3_context *context, int n, sqlite3_value **arguments) {
  (void)n, (void)arguments;
  change(context, NODE_REMOVE, "balsa_leave", NULL, "");
}

static void function_recover(sqlite3_context *context, int n, sqlite3_value **arguments) {
  struct vfs_connection *connection = connection_of(context, NULL);
  const char *members = (const char *)sqlite3_value_text(arguments[0]);
  char why[VFS_TEXT_MAX] = "";
  (void)n;
  if (!connection || refuse_writer(context, connection, "balsa_recover")) return;
  if (!members) {
    sqlite3_result_error(context, "balsa_recover: name the members of the new cluster: '1@host:port,2@host:port'", -1);
    return;
  }
  int error = node_recover(node_of_connection(connection), members, why);
  if (error)
    result_failure(context, "balsa_recover", error, why);
  else
    sqlite3_result_text(context,
                        "the node has stopped; when all its connections are closed, the next open begins the new "
                        "cluster from what it holds",
                        -1, SQLITE_STATIC);
}

int balsa_functions_register(sqlite3 *db) {
  static const struct {
    const char *name;
    int arguments, flags;
    void (*call)(sqlite3_context *context, int n, sqlite3_value **arguments);
  } functions[] = {
      {"balsa_wait", 1, SQLITE_DIRECTONLY, function_wait},
      {"balsa_wait", 2, SQLITE_DIRECTONLY, function_wait},
      {"balsa_error", 0, 0, function_error},
      {"balsa_last_commit", 0, 0, function_last_commit},
      {"balsa_outcome", 1, 0, function_outcome},
      {"balsa_snapshot", 0, SQLITE_DIRECTONLY, function_snapshot},
      {"balsa_snapshot", 1, SQLITE_DIRECTONLY, function_snapshot},
      {"balsa_transfer", 0, SQLITE_DIRECTONLY, function_transfer},
      {"balsa_transfer", 1, SQLITE_DIRECTONLY, function_transfer},
      {"balsa_recover", 1, SQLITE_DIRECTONLY, function_recover},
      {"balsa_stop", 0, SQLITE_DIRECTONLY, function_stop},
      {"balsa_stop", 1, SQLITE_DIRECTONLY, function_stop},
      {"balsa_add", 2, SQLITE_DIRECTONLY, function_add},
      {"balsa_remove", 1, SQLITE_DIRECTONLY, function_remove},
      {"balsa_promote", 1, SQLITE_DIRECTONLY, function_promote},
      {"balsa_demote", 1, SQLITE_DIRECTONLY, function_demote},
      {"balsa_leave", 0, SQLITE_DIRECTONLY, function_leave},
  };
  int code = SQLITE_OK;
  for (size_t i = 0; code == SQLITE_OK && i < sizeof functions / sizeof *functions; i++)
    code = sqlite3_create_function_v2(db, functions[i].name, functions[i].arguments, SQLITE_UTF8 | functions[i].flags,
                                      NULL, functions[i].call, NULL, NULL, NULL);
  return code;
}
