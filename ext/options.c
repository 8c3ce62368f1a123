/*
** Options of a node. One table says their names and how each is read and written.
*/
#include <arpa/inet.h>
#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../vfs/sqlite.h"
#include "options.h"

#define ENVIRONMENT_NAME_MAX 64
#define SUGGESTION_DISTANCE_MAX 2 /* letters that a misspelled name may be off to be recognised */
#define NAME_MAX_LENGTH 32

static bool fail(char *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool fail(char *text, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, OPTIONS_TEXT_MAX, format, arguments);
  va_end(arguments);
  return false;
}

/* ---- Values ---- */

static bool parse_number(const char *value, uint64_t max, uint64_t *number) {
  uint64_t result = 0;
  if (!*value) return false;
  for (const char *at = value; *at; at++) {
    if (!isdigit((unsigned char)*at)) return false;
    uint64_t digit = (uint64_t)(*at - '0');
    if (result > (max - digit) / 10) return false;
    result = result * 10 + digit;
  }
  *number = result;
  return true;
}

static bool is_host_character(char c) {
  return isalnum((unsigned char)c) || c == '-' || c == '.' || c == '_';
}

bool options_split_address(const char *address, char *host, uint32_t *port) {
  size_t length = strnlen(address, RAFT_ADDRESS_MAX);
  const char *colon = strrchr(address, ':');
  if (length >= RAFT_ADDRESS_MAX || !colon) return false;
  size_t host_length = (size_t)(colon - address);
  bool is_v6 = address[0] == '[';
  if (is_v6) {
    if (host_length < 3 || address[host_length - 1] != ']') return false;
    address++;
    host_length -= 2;
  }
  if (host_length == 0) return false;
  memcpy(host, address, host_length);
  host[host_length] = 0;
  struct in6_addr v6;
  if (is_v6 && inet_pton(AF_INET6, host, &v6) != 1) return false;
  for (size_t i = 0; !is_v6 && i < host_length; i++)
    if (!is_host_character(host[i])) return false;
  uint64_t number = 0;
  if (!parse_number(colon + 1, 65535, &number)) return false;
  *port = (uint32_t)number;
  return true;
}

static bool is_wildcard(const char *host) {
  struct in6_addr v6;
  struct in_addr v4;
  if (inet_pton(AF_INET, host, &v4) == 1) return v4.s_addr == htonl(INADDR_ANY);
  return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_UNSPECIFIED(&v6);
}

static bool is_loopback(const char *host) {
  struct in6_addr v6;
  struct in_addr v4;
  if (inet_pton(AF_INET, host, &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  if (inet_pton(AF_INET6, host, &v6) == 1)
    return IN6_IS_ADDR_LOOPBACK(&v6) || (IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == 127);
  return strcmp(host, "localhost") == 0;
}

/* `port_min` 0 lets the system choose a port. Says in `why` what is wrong. */
static bool parse_address(const char *value, uint32_t port_min, char *address, const char **why) {
  char host[RAFT_ADDRESS_MAX];
  uint32_t port = 0;
  *why = "it must be host:port, or [address]:port for IPv6";
  if (!options_split_address(value, host, &port)) return false;
  *why = "its port must be 1 to 65535";
  if (port < port_min) return false;
  snprintf(address, RAFT_ADDRESS_MAX, "%s", value);
  return true;
}

static bool parse_peer(const char *value, struct raft_peer *peer, const char **why) {
  char id[24];
  const char *at = strchr(value, '@');
  *why = "each peer must be node@host:port, with commas between them";
  if (!at || at == value || (size_t)(at - value) >= sizeof id) return false;
  memcpy(id, value, (size_t)(at - value));
  id[at - value] = 0;
  *why = "a node's number must be 1 to 9223372036854775807";
  if (!parse_number(id, INT64_MAX, &peer->id) || peer->id == 0) return false;
  return parse_address(at + 1, 1, peer->address, why);
}

static bool check_distinct(const struct options *options, const char **why) {
  for (size_t i = 0; i < options->n_peers; i++) {
    for (size_t j = 0; j < i; j++) {
      *why = "it names a node twice";
      if (options->peers[i].id == options->peers[j].id) return false;
      *why = "it names an address twice";
      if (strcmp(options->peers[i].address, options->peers[j].address) == 0) return false;
    }
  }
  return true;
}

static bool parse_peers(struct options *options, const char *value, const char **why) {
  char list[OPTIONS_PEERS_TEXT_MAX];
  *why = "it is too long";
  if (strlen(value) >= sizeof list) return false;
  memcpy(list, value, strlen(value) + 1);
  options->n_peers = 0;
  char *rest = list;
  for (char *peer = strsep(&rest, ","); peer; peer = strsep(&rest, ",")) {
    _Static_assert(RAFT_MEMBERS_MAX == 15, "the sentence names it");
    *why = "it may name 15 nodes at most";
    if (options->n_peers == RAFT_MEMBERS_MAX) return false;
    if (!parse_peer(peer, &options->peers[options->n_peers], why)) return false;
    options->n_peers++;
  }
  return check_distinct(options, why);
}

static bool parse_join(struct options *options, const char *value, const char **why) {
  char list[OPTIONS_PEERS_TEXT_MAX];
  *why = "it is too long";
  if (strlen(value) >= sizeof list) return false;
  memcpy(list, value, strlen(value) + 1);
  options->n_join = 0;
  options->waits = strcmp(value, "wait") == 0;
  char *rest = options->waits ? NULL : list;
  for (char *address = strsep(&rest, ","); address; address = strsep(&rest, ",")) {
    _Static_assert(OPTIONS_JOIN_MAX == 7, "the sentence names it");
    *why = "it may name 7 addresses at most";
    if (options->n_join == OPTIONS_JOIN_MAX) return false;
    if (!parse_address(address, 1, options->join[options->n_join], why)) {
      *why = "it must be host:port of members of the cluster, with commas between them, or the word wait";
      return false;
    }
    options->n_join++;
  }
  return true;
}

static bool parse_u32(const char *value, uint32_t min, uint32_t max, uint32_t *number) {
  uint64_t wide = 0;
  if (!parse_number(value, max, &wide) || wide < min) return false;
  *number = (uint32_t)wide;
  return true;
}

/* The i-th list has this word; its names are separated by bars. */
static bool parse_word(const char *value, const char *const words[], uint32_t n, uint32_t *number) {
  size_t length = strlen(value);
  if (strchr(value, '|')) return false;
  for (uint32_t i = 0; length > 0 && i < n; i++) {
    for (const char *at = words[i]; at; at = strchr(at, '|')) {
      if (*at == '|') at++;
      if (strncasecmp(at, value, length) == 0 && (at[length] == '|' || at[length] == 0)) {
        *number = i;
        return true;
      }
    }
  }
  return false;
}

/* ---- The table ---- */

static bool set_node(struct options *options, const char *value, const char **why) {
  *why = "it must be a number, 1 to 9223372036854775807";
  return parse_number(value, INT64_MAX, &options->node) && options->node != 0;
}

static bool set_listen(struct options *options, const char *value, const char **why) {
  return parse_address(value, 0, options->listen, why);
}

static bool set_advertise(struct options *options, const char *value, const char **why) {
  char host[RAFT_ADDRESS_MAX];
  uint32_t port = 0;
  if (!parse_address(value, 1, options->advertise, why)) return false;
  *why = "nobody can reach a wildcard address: name the host";
  return options_split_address(value, host, &port) && !is_wildcard(host);
}

static bool set_heartbeat(struct options *options, const char *value, const char **why) {
  *why = "it must be 1 to 10000 (ms)";
  return parse_u32(value, 1, OPTIONS_HEARTBEAT_MS_MAX, &options->heartbeat_ms);
}

static bool set_election(struct options *options, const char *value, const char **why) {
  *why = "it must be 2 to 60000 (ms)";
  return parse_u32(value, 2, OPTIONS_ELECTION_MS_MAX, &options->election_ms);
}

static bool set_commit_timeout(struct options *options, const char *value, const char **why) {
  *why = "it must be 1 to 3600000 (ms)";
  return parse_u32(value, 1, OPTIONS_COMMIT_TIMEOUT_MS_MAX, &options->commit_timeout_ms);
}

static bool set_page_size(struct options *options, const char *value, const char **why) {
  *why = "it must be a power of two, 512 to 65536";
  return parse_u32(value, 512, 65536, &options->page_size) && (options->page_size & (options->page_size - 1)) == 0;
}

static bool set_auto_vacuum(struct options *options, const char *value, const char **why) {
  static const char *const words[] = {"none|0", "full|1", "incremental|2"};
  *why = "it must be none, full or incremental";
  return parse_word(value, words, 3, &options->auto_vacuum);
}

static bool parse_switch(const char *value, bool *is_on, const char **why) {
  static const char *const words[] = {"0|no|off|false", "1|yes|on|true"};
  uint32_t on = 0;
  *why = "it must be 0 or 1";
  if (!parse_word(value, words, 2, &on)) return false;
  *is_on = on == 1;
  return true;
}

static bool set_insecure(struct options *options, const char *value, const char **why) {
  return parse_switch(value, &options->insecure, why);
}

static bool set_rebuild(struct options *options, const char *value, const char **why) {
  return parse_switch(value, &options->rebuild, why);
}

/* Bytes, plain or with a unit of 1,024. */
static bool parse_bytes(const char *value, uint64_t *bytes) {
  static const char units[] = "KMGT";
  char digits[24];
  size_t length = strspn(value, "0123456789");
  const char *unit = value[length] ? strchr(units, toupper((unsigned char)value[length])) : NULL;
  unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
  if (length >= sizeof digits || (value[length] && (!unit || value[length + 1]))) return false;
  memcpy(digits, value, length);
  digits[length] = 0;
  if (!parse_number(digits, INT64_MAX >> shift, bytes)) return false;
  *bytes <<= shift;
  return true;
}

static bool set_snapshot_threshold(struct options *options, const char *value, const char **why) {
  *why = "it must be a number of bytes, or as 64M (K, M, G, T)";
  return parse_bytes(value, &options->snapshot_threshold);
}

static bool set_log_tail(struct options *options, const char *value, const char **why) {
  *why = "it must be a number of bytes, or as 16M (K, M, G, T)";
  return parse_bytes(value, &options->log_tail);
}

static bool set_wal_limit(struct options *options, const char *value, const char **why) {
  *why = "it must be 100 to 100000000 (frames of the -wal)";
  return parse_u32(value, OPTIONS_WAL_LIMIT_MIN, OPTIONS_WAL_LIMIT_MAX, &options->wal_limit);
}

static const struct {
  const char *name;
  bool (*set)(struct options *options, const char *value, const char **why);
} table[OPTIONS_COUNT] = {
    [OPTION_NODE] = {"node", set_node},
    [OPTION_LISTEN] = {"listen", set_listen},
    [OPTION_ADVERTISE] = {"advertise", set_advertise},
    [OPTION_PEERS] = {"peers", parse_peers},
    [OPTION_JOIN] = {"join", parse_join},
    [OPTION_HEARTBEAT] = {"heartbeat", set_heartbeat},
    [OPTION_ELECTION] = {"election", set_election},
    [OPTION_COMMIT_TIMEOUT] = {"commit_timeout", set_commit_timeout},
    [OPTION_PAGE_SIZE] = {"page_size", set_page_size},
    [OPTION_AUTO_VACUUM] = {"auto_vacuum", set_auto_vacuum},
    [OPTION_INSECURE] = {"insecure", set_insecure},
    [OPTION_SNAPSHOT_THRESHOLD] = {"snapshot_threshold", set_snapshot_threshold},
    [OPTION_LOG_TAIL] = {"log_tail", set_log_tail},
    [OPTION_WAL_LIMIT] = {"wal_limit", set_wal_limit},
    [OPTION_REBUILD] = {"rebuild", set_rebuild},
};

void options_init(struct options *options) {
  *options = (struct options){
      .heartbeat_ms = OPTIONS_HEARTBEAT_MS_DEFAULT,
      .election_ms = OPTIONS_ELECTION_MS_DEFAULT,
      .commit_timeout_ms = OPTIONS_COMMIT_TIMEOUT_MS_DEFAULT,
      .page_size = OPTIONS_PAGE_SIZE_DEFAULT,
      .snapshot_threshold = OPTIONS_SNAPSHOT_THRESHOLD_DEFAULT,
      .log_tail = OPTIONS_LOG_TAIL_DEFAULT,
      .wal_limit = OPTIONS_WAL_LIMIT_DEFAULT,
  };
}

static int find_option(const char *name) {
  for (int i = 0; i < OPTIONS_COUNT; i++)
    if (strcmp(table[i].name, name) == 0) return i;
  return -1;
}

/* Letters to insert, drop or replace (Levenshtein); names are short. */
static size_t distance(const char *a, const char *b) {
  size_t row[NAME_MAX_LENGTH + 1];
  size_t n = strlen(b);
  if (n > NAME_MAX_LENGTH) return SIZE_MAX;
  for (size_t j = 0; j <= n; j++) row[j] = j;
  for (size_t i = 1; a[i - 1]; i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= n; j++) {
      size_t replaced = diagonal + (tolower((unsigned char)a[i - 1]) != b[j - 1]);
      diagonal = row[j];
      size_t dropped = row[j] + 1, inserted = row[j - 1] + 1;
      size_t best = dropped < inserted ? dropped : inserted;
      row[j] = replaced < best ? replaced : best;
    }
  }
  return row[n];
}

static bool unknown_option(const char *name, const char *source, char *text) {
  size_t best = SUGGESTION_DISTANCE_MAX + 1;
  const char *nearest = NULL;
  for (int i = 0; i < OPTIONS_COUNT; i++) {
    size_t off = distance(name, table[i].name);
    if (off < best && off < strlen(table[i].name)) {
      best = off;
      nearest = table[i].name;
    }
  }
  if (nearest) return fail(text, "%s %.64s is not an option: did you mean %s?", source, name, nearest);
  return fail(
      text,
      "%s %.64s is not an option: there are node, listen, advertise, peers, join, heartbeat, election, commit_timeout, "
      "page_size, auto_vacuum, insecure, snapshot_threshold, log_tail, wal_limit, rebuild",
      source, name);
}

bool options_set(struct options *options, const char *name, const char *value, const char *source, char *text) {
  int option = find_option(name);
  const char *why = "";
  if (option < 0) return unknown_option(name, source, text);
  if (!table[option].set(options, value, &why)) return fail(text, "%s %s=%.300s: %s", source, name, value, why);
  options->given |= 1u << option;
  return true;
}

/* ---- Sources ---- */

bool options_from_environment(struct options *options, char *text) {
  for (int i = 0; i < OPTIONS_COUNT; i++) {
    char name[ENVIRONMENT_NAME_MAX];
    int length = snprintf(name, sizeof name, "BALSA_%s", table[i].name);
    for (int j = 0; j < length; j++) name[j] = (char)toupper((unsigned char)name[j]);
    const char *value = getenv(name);
    char source[ENVIRONMENT_NAME_MAX + 32];
    snprintf(source, sizeof source, "environment variable %s:", name);
    if (value && *value && !options_set(options, table[i].name, value, source, text)) return false;
  }
  return true;
}

/* A parameter of SQLite's own. true: it is one; *ok says whether it may be used. */
static bool sqlite_parameter(const char *filename, const char *name, const char *value, bool *ok, char *text) {
  static const char *const passed[] = {"vfs", "mode", "psow", "modeof", "cache", "immutable", "nolock"};
  bool is_known = false;
  for (size_t i = 0; i < sizeof passed / sizeof *passed; i++) is_known = is_known || strcmp(name, passed[i]) == 0;
  if (!is_known) return false;
  *ok = true;
  if (strcmp(name, "cache") == 0 && strcmp(value, "shared") == 0)
    *ok = fail(text, "cache=shared does not go with replication: leave it out; every connection has its own cache");
  if (strcmp(name, "mode") == 0 && strcmp(value, "memory") == 0)
    *ok = fail(text, "mode=memory: a database in memory cannot be replicated; name a file");
  if (strcmp(name, "immutable") == 0 && sqlite3_uri_boolean(filename, name, 0))
    *ok = fail(text, "immutable=1: a replicated database changes whenever another node writes; leave it out");
  if (strcmp(name, "nolock") == 0 && sqlite3_uri_boolean(filename, name, 0))
    *ok = fail(text, "nolock=1: replication needs the locks of the file; leave it out");
  return true;
}

bool options_from_uri(struct options *options, const char *filename, char *text) {
  const char *name;
  /* One of them in the URI wins over the other one in the environment. */
  if (sqlite3_uri_parameter(filename, "join")) options->n_peers = 0;
  if (sqlite3_uri_parameter(filename, "peers")) {
    options->n_join = 0;
    options->waits = false;
  }
  for (int i = 0; (name = sqlite3_uri_key(filename, i)) != NULL; i++) {
    const char *value = sqlite3_uri_parameter(filename, name);
    bool ok = true;
    if (!value) value = "";
    if (sqlite_parameter(filename, name, value, &ok, text)) {
      if (!ok) return false;
    } else if (!options_set(options, name, value, "URI parameter", text)) {
      return false;
    }
  }
  return true;
}

void options_take_contacts(struct options *options, const struct options *from) {
  unsigned both = 1u << OPTION_PEERS | 1u << OPTION_JOIN;
  memcpy(options->peers, from->peers, sizeof from->peers);
  options->n_peers = from->n_peers;
  memcpy(options->join, from->join, sizeof from->join);
  options->n_join = from->n_join;
  options->waits = from->waits;
  options->given = (options->given & ~both) | (from->given & both);
}

void options_merge(struct options *options, const struct options *over) {
  if (options_has(over, OPTION_NODE)) options->node = over->node;
  if (options_has(over, OPTION_LISTEN)) memcpy(options->listen, over->listen, sizeof over->listen);
  if (options_has(over, OPTION_ADVERTISE)) memcpy(options->advertise, over->advertise, sizeof over->advertise);
  if (options_has(over, OPTION_PEERS) || options_has(over, OPTION_JOIN)) options_take_contacts(options, over);
  if (options_has(over, OPTION_HEARTBEAT)) options->heartbeat_ms = over->heartbeat_ms;
  if (options_has(over, OPTION_ELECTION)) options->election_ms = over->election_ms;
  if (options_has(over, OPTION_COMMIT_TIMEOUT)) options->commit_timeout_ms = over->commit_timeout_ms;
  if (options_has(over, OPTION_PAGE_SIZE)) options->page_size = over->page_size;
  if (options_has(over, OPTION_AUTO_VACUUM)) options->auto_vacuum = over->auto_vacuum;
  if (options_has(over, OPTION_INSECURE)) options->insecure = over->insecure;
  if (options_has(over, OPTION_REBUILD)) options->rebuild = over->rebuild;
  if (options_has(over, OPTION_SNAPSHOT_THRESHOLD)) options->snapshot_threshold = over->snapshot_threshold;
  if (options_has(over, OPTION_LOG_TAIL)) options->log_tail = over->log_tail;
  if (options_has(over, OPTION_WAL_LIMIT)) options->wal_limit = over->wal_limit;
  options->given |= over->given;
}

/* ---- The whole ---- */

static const struct raft_peer *own_peer(const struct options *options) {
  for (size_t i = 0; i < options->n_peers; i++)
    if (options->peers[i].id == options->node) return &options->peers[i];
  return NULL;
}

/* Peers dial the own address in `peers`. A wildcard covers it; that another address leads here must be said. */
static bool check_reachable(const struct options *options, const struct raft_peer *own, char *text) {
  char host[RAFT_ADDRESS_MAX];
  uint32_t port = 0;
  if (options->advertise[0] || strcmp(options->listen, own->address) == 0) return true;
  if (options_split_address(options->listen, host, &port) && is_wildcard(host)) return true;
  return fail(text,
              "option listen=%s differs from this node's own address in peers, %s: leave listen out, or say "
              "advertise=%s if what peers send there arrives here",
              options->listen, own->address, own->address);
}

void options_forget_derived(struct options *options) {
  const struct raft_peer *own = own_peer(options);
  if (!own) return;
  if (strcmp(options->listen, own->address) == 0) options->listen[0] = 0;
  if (strcmp(options->advertise, own->address) == 0) options->advertise[0] = 0;
}

static bool check_peers(struct options *options, char *text) {
  if (options->n_peers == 0) return true;
  if (!options_has(options, OPTION_NODE))
    return fail(text, "option peers needs option node: say which of the peers this node is");
  const struct raft_peer *own = own_peer(options);
  if (!own)
    return fail(text,
                "option node=%" PRIu64 " is not among the peers: every node is given the same list, itself included",
                options->node);
  if (!options->listen[0]) snprintf(options->listen, sizeof options->listen, "%s", own->address);
  if (!check_reachable(options, own, text)) return false;
  if (!options->advertise[0]) snprintf(options->advertise, sizeof options->advertise, "%s", own->address);
  if (strcmp(options->advertise, own->address) != 0)
    return fail(text, "option advertise=%s differs from this node's own address in peers, %s: give the same",
                options->advertise, own->address);
  return true;
}

static bool check_addresses(struct options *options, char *text) {
  char host[RAFT_ADDRESS_MAX];
  uint32_t port = 0;
  if (!options->listen[0]) {
    if (options->advertise[0]) return fail(text, "option advertise=%s needs option listen", options->advertise);
    return true;
  }
  if (!options_split_address(options->listen, host, &port))
    return fail(text, "option listen=%s is no address", options->listen);
  if (is_wildcard(host) && !options->advertise[0])
    return fail(text,
                "option listen=%s needs option advertise=host:port: the address by which other nodes reach this one",
                options->listen);
  if (!is_loopback(host) && !options->insecure)
    return fail(text,
                "option listen=%s lets anybody who reaches this port join in, unencrypted: listen on 127.0.0.1, or say "
                "insecure=1 if the network is trusted",
                options->listen);
  if (!options->advertise[0] && port != 0)
    snprintf(options->advertise, sizeof options->advertise, "%s", options->listen);
  return true;
}

static bool check_join(const struct options *options, char *text) {
  if (!options_joins(options)) return true;
  if (options->n_peers > 0)
    return fail(text,
                "options join and peers exclude each other: peers forms a cluster, join enters one that is there");
  if (!options_has(options, OPTION_NODE))
    return fail(text, "option join needs option node: a number that no other node of the cluster has");
  if (!options->listen[0])
    return fail(text, "option join needs option listen=host:port: the members send this node the database there");
  return true;
}

bool options_check(struct options *options, bool is_fresh, char *text) {
  if (!is_fresh) {
    options->n_peers = options->n_join = 0;
    options->waits = false;
  }
  if (options->election_ms <= options->heartbeat_ms)
    return fail(
        text,
        "option election=%u must be longer than option heartbeat=%u, some ten times: else nodes are taken for dead "
        "between two heartbeats",
        options->election_ms, options->heartbeat_ms);
  return check_join(options, text) && check_peers(options, text) && check_addresses(options, text);
}

/* ---- What the folder keeps ---- */

struct writer {
  char *at, *end;
  bool full;
};

static void put(struct writer *writer, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(struct writer *writer, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  size_t room = (size_t)(writer->end - writer->at);
  int length = vsnprintf(writer->at, room, format, arguments);
  va_end(arguments);
  if (length < 0 || (size_t)length >= room) {
    writer->full = true;
    return;
  }
  writer->at += length;
}

bool options_keep(const struct options *options, char *kept, size_t size, char *text) {
  struct writer writer = {kept, kept + size, false};
  kept[0] = 0;
  put(&writer, "node=%" PRIu64 "\n", options->node);
  if (options->listen[0]) put(&writer, "listen=%s\n", options->listen);
  /* One that only follows from listen must not outlive a change of listen. */
  if (options->advertise[0] && strcmp(options->advertise, options->listen) != 0)
    put(&writer, "advertise=%s\n", options->advertise);
  for (size_t i = 0; i < options->n_peers; i++)
    put(&writer, "%s%" PRIu64 "@%s%s", i ? "," : "peers=", options->peers[i].id, options->peers[i].address,
        i + 1 == options->n_peers ? "\n" : "");
  if (options->waits) put(&writer, "join=wait\n");
  for (size_t i = 0; i < options->n_join; i++)
    put(&writer, "%s%s%s", i ? "," : "join=", options->join[i], i + 1 == options->n_join ? "\n" : "");
  if (options_has(options, OPTION_HEARTBEAT)) put(&writer, "heartbeat=%u\n", options->heartbeat_ms);
  if (options_has(options, OPTION_ELECTION)) put(&writer, "election=%u\n", options->election_ms);
  if (options_has(options, OPTION_COMMIT_TIMEOUT)) put(&writer, "commit_timeout=%u\n", options->commit_timeout_ms);
  if (options_has(options, OPTION_PAGE_SIZE)) put(&writer, "page_size=%u\n", options->page_size);
  if (options_has(options, OPTION_AUTO_VACUUM)) put(&writer, "auto_vacuum=%u\n", options->auto_vacuum);
  if (options_has(options, OPTION_INSECURE)) put(&writer, "insecure=%d\n", options->insecure);
  if (options_has(options, OPTION_SNAPSHOT_THRESHOLD))
    put(&writer, "snapshot_threshold=%" PRIu64 "\n", options->snapshot_threshold);
  if (options_has(options, OPTION_LOG_TAIL)) put(&writer, "log_tail=%" PRIu64 "\n", options->log_tail);
  if (options_has(options, OPTION_WAL_LIMIT)) put(&writer, "wal_limit=%u\n", options->wal_limit);
  return !writer.full || fail(text, "the options do not fit into %zu bytes: name fewer peers, or shorter hosts", size);
}

bool options_from_kept(struct options *options, const char *kept, char *text) {
  char line[OPTIONS_KEPT_MAX];
  while (*kept) {
    size_t length = strcspn(kept, "\n");
    if (length >= sizeof line) return fail(text, "a kept option is too long");
    memcpy(line, kept, length);
    line[length] = 0;
    kept += length + (kept[length] == '\n');
    char *value = strchr(line, '=');
    if (!value) continue;
    *value++ = 0;
    if (find_option(line) >= 0 && !options_set(options, line, value, "kept option", text)) return false;
  }
  return true;
}
