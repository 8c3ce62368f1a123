/*
** The parent's side: children, their pipes, and clusters of them. A child ends when its input ends, and is killed when
** this process dies.
*/
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

#define READY_MS_MAX 30000 /* from the first open to a cluster that is ready */
#define REPLY_MS_MIN 120000
#define STOP_MS_MAX 10000
#define POLL_MS 20
#define WRAP_WORDS_MAX 32
#define CHILDREN_MAX 64

const char *const variant_names[N_VARIANTS] = {"plain", "queued", "one", "three"};

static const char *folder_to_remove;
static struct child *running[CHILDREN_MAX];
static uint64_t reply_ms_max = REPLY_MS_MIN;

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *walk) {
  (void)info, (void)type, (void)walk;
  return remove(path);
}

static void remove_tree(const char *path) {
  nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* A stopped child must not outlive the files it uses. */
static void clean_up(void) {
  for (size_t i = 0; i < CHILDREN_MAX; i++) {
    if (!running[i]) continue;
    kill(running[i]->pid, SIGKILL);
    waitpid(running[i]->pid, NULL, 0);
    running[i] = NULL;
  }
  if (folder_to_remove) remove_tree(folder_to_remove);
  folder_to_remove = NULL;
}

void die(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("bench: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  clean_up();
  exit(1);
}

/* ---- Children ---- */

static void remember(struct child *child) {
  for (size_t i = 0; i < CHILDREN_MAX; i++) {
    if (running[i]) continue;
    running[i] = child;
    return;
  }
  die("more than %d processes at once", CHILDREN_MAX);
}

static void forget(const struct child *child) {
  for (size_t i = 0; i < CHILDREN_MAX; i++)
    if (running[i] == child) running[i] = NULL;
}

/* The words of --wrap, with the node's number for %n, then the child's own command. In the child: never returns. */
static void exec_child(const struct options *options, bool is_plain, const char *uri, unsigned number) {
  char *words[WRAP_WORDS_MAX + 5], *rest = options->wrap ? strdup(options->wrap) : NULL, *save = NULL;
  size_t n = 0;
  for (char *word = rest ? strtok_r(rest, " ", &save) : NULL; word && n < WRAP_WORDS_MAX;
       word = strtok_r(NULL, " ", &save)) {
    char *at = strstr(word, "%n"), *whole = NULL;
    if (at && asprintf(&whole, "%.*s%u%s", (int)(at - word), word, number, at + 2) < 0) _exit(127);
    words[n++] = whole ? whole : word;
  }
  words[n++] = strdup(options->program);
  words[n++] = strdup(is_plain ? "--plain-child" : "--node");
  words[n++] = strdup(uri);
  words[n] = NULL;
  execvp(words[0], words);
  fprintf(stderr, "bench: %s: %s\n", words[0], strerror(errno));
  _exit(127);
}

void child_start(struct child *child, const struct options *options, bool is_plain, const char *uri, unsigned number) {
  int to[2], from[2];
  pid_t parent = getpid();
  if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC)) die("pipe: %s", strerror(errno));
  pid_t pid = fork();
  if (pid < 0) die("fork: %s", strerror(errno));
  if (pid == 0) {
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent) _exit(127);
    if (dup2(to[0], STDIN_FILENO) < 0 || dup2(from[1], STDOUT_FILENO) < 0) _exit(127);
    exec_child(options, is_plain, uri, number);
  }
  close(to[0]);
  close(from[1]);
  *child = (struct child){.pid = pid, .to = to[1], .from = from[0]};
  remember(child);
}

void child_send(const struct child *child, const struct request *request) {
  for (size_t put = 0; put < sizeof *request;) {
    ssize_t n = write(child->to, (const char *)request + put, sizeof *request - put);
    if (n <= 0) die("a child process has ended (its message is above, if it had one)");
    put += (size_t)n;
  }
}

void child_receive(const struct child *child, struct reply *reply) {
  *reply = (struct reply){.is_ok = false};
  for (size_t got = 0; got < sizeof *reply;) {
    struct pollfd pollfd = {.fd = child->from, .events = POLLIN};
    int ready = poll(&pollfd, 1, (int)reply_ms_max);
    if (ready == 0) die("a child process has not answered for %d s", (int)(reply_ms_max / 1000));
    if (ready < 0) die("interrupted");
    ssize_t n = read(child->from, (char *)reply + got, sizeof *reply - got);
    if (n <= 0) die("a child process has ended (its message is above, if it had one)");
    got += (size_t)n;
  }
  if (!reply->is_ok) die("%s", reply->text);
}

void child_ask(const struct child *child, const struct request *request, struct reply *reply) {
  child_send(child, request);
  child_receive(child, reply);
}

/* After it was told to quit. */
static void wait_for_end(struct child *child) {
  uint64_t deadline = now_ns() + STOP_MS_MAX * BENCH_MS;
  close(child->to);
  close(child->from);
  while (waitpid(child->pid, NULL, WNOHANG) == 0) {
    if (now_ns() > deadline) die("process %d does not end", (int)child->pid);
    poll(NULL, 0, POLL_MS);
  }
  forget(child);
}

void child_stop(struct child *child) {
  struct reply reply;
  child_ask(child, &(struct request){.operation = OP_QUIT}, &reply);
  wait_for_end(child);
}

void child_kill(struct child *child) {
  kill(child->pid, SIGKILL);
  wait_for_end(child);
}

void child_patience_ms(uint64_t ms) {
  reply_ms_max = ms < REPLY_MS_MIN ? REPLY_MS_MIN : ms;
}

/* ---- Clusters ---- */

/* Ports that nobody uses now: all are held until the last one is known, so that they differ. */
static void free_ports(uint16_t *ports, size_t n) {
  int sockets[BENCH_NODES_MAX];
  for (size_t i = 0; i < n; i++) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    sockets[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (sockets[i] < 0 || bind(sockets[i], (struct sockaddr *)&address, size) ||
        getsockname(sockets[i], (struct sockaddr *)&address, &size))
      die("no free port: %s", strerror(errno));
    ports[i] = ntohs(address.sin_port);
  }
  for (size_t i = 0; i < n; i++) close(sockets[i]);
}

/* Of the last node everybody but itself knows the relay. */
static void start_nodes(struct cluster *cluster, const struct options *options) {
  uint16_t ports[BENCH_NODES_MAX] = {0}, known[BENCH_NODES_MAX];
  char peers[BENCH_TEXT_MAX] = "";
  size_t length = 0, n = cluster->n_children;
  free_ports(ports, n);
  memcpy(known, ports, sizeof known);
  if (options->is_relayed) cluster->relay = relay_start(ports[n - 1], &known[n - 1]);
  for (unsigned i = 0; i < n; i++)
    length += (size_t)snprintf(peers + length, sizeof peers - length, "%s%u@127.0.0.1:%u", i ? "," : "", i + 1,
                               known[i]);
  for (unsigned i = 0; i < n; i++) {
    snprintf(cluster->uris[i], sizeof cluster->uris[i],
             "file:%s?vfs=balsa&node=%u&listen=127.0.0.1:%u&advertise=127.0.0.1:%u&peers=%s%s", cluster->paths[i],
             i + 1, ports[i], known[i], peers, options->parameters);
    child_start(&cluster->children[i], options, false, cluster->uris[i], i + 1);
  }
}

void cluster_wait_ready(struct cluster *cluster) {
  uint64_t deadline = now_ns() + READY_MS_MAX * BENCH_MS;
  struct reply reply;
  for (size_t n_ready = 0; n_ready < cluster->n_children || !cluster->leader;) {
    cluster->leader = NULL;
    n_ready = 0;
    for (size_t i = 0; i < cluster->n_children; i++) {
      child_ask(&cluster->children[i], &(struct request){.operation = OP_STATUS}, &reply);
      n_ready += reply.is_ready;
      if (reply.is_leader) cluster->leader = &cluster->children[i];
    }
    if (now_ns() > deadline) die("the cluster is not ready after %d s: %s", READY_MS_MAX / 1000, reply.state);
    poll(NULL, 0, POLL_MS);
  }
}

void cluster_start(struct cluster *cluster, const struct options *options, enum variant variant) {
  *cluster = (struct cluster){.variant = variant, .n_children = variant == VARIANT_THREE ? 3 : 1};
  folder_to_remove = options->folder;
  for (unsigned i = 0; i < cluster->n_children; i++) {
    char folder[BENCH_PATH_MAX - 16];
    int length = snprintf(folder, sizeof folder, "%s/node-%u", options->folder, i + 1);
    if (length < 0 || (size_t)length >= sizeof folder) die("%s: too long a path", options->folder);
    if (mkdir(folder, 0700)) die("%s: %s", folder, strerror(errno));
    snprintf(cluster->paths[i], sizeof cluster->paths[i], "%s/app.db", folder);
  }
  if (variant == VARIANT_THREE) {
    start_nodes(cluster, options);
  } else {
    bool is_plain = variant != VARIANT_ONE;
    snprintf(cluster->uris[0], sizeof cluster->uris[0], "file:%s%s%s", cluster->paths[0], is_plain ? "" : "?vfs=balsa",
             is_plain ? "" : options->parameters);
    child_start(&cluster->children[0], options, is_plain, cluster->uris[0], is_plain ? 0 : 1);
  }
  cluster_wait_ready(cluster);
}

void cluster_stop(struct cluster *cluster, const struct options *options) {
  struct reply reply;
  for (size_t i = 0; i < cluster->n_children; i++) {
    child_ask(&cluster->children[i], &(struct request){.operation = OP_QUIT}, &reply);
    wait_for_end(&cluster->children[i]);
  }
  for (unsigned i = 0; i < cluster->n_children; i++) {
    char folder[BENCH_PATH_MAX];
    snprintf(folder, sizeof folder, "%s/node-%u", options->folder, i + 1);
    remove_tree(folder);
  }
  if (cluster->relay) relay_stop(cluster->relay);
}

void cluster_restart(struct cluster *cluster, const struct options *options, size_t node) {
  child_start(&cluster->children[node], options, false, cluster->uris[node], (unsigned)node + 1);
}

void cluster_wait_applied(struct cluster *cluster, size_t node, uint64_t limit_ms) {
  uint64_t deadline = now_ns() + limit_ms * BENCH_MS;
  struct request request = {.operation = OP_STATUS};
  struct reply leader, reply;
  child_ask(cluster->leader, &request, &leader);
  child_ask(&cluster->children[node], &request, &reply);
  while (reply.applied_index < leader.commit_index) {
    if (now_ns() > deadline) die("node %zu does not catch up: %s", node + 1, reply.state);
    poll(NULL, 0, POLL_MS);
    child_ask(&cluster->children[node], &request, &reply);
  }
}

void cluster_prepare(struct cluster *cluster, enum table_kind table, uint32_t rows) {
  struct reply reply;
  child_ask(cluster->leader, &(struct request){.operation = OP_PREPARE, .table = table, .rows = rows}, &reply);
  for (size_t i = 0; i < cluster->n_children; i++) cluster_wait_applied(cluster, i, READY_MS_MAX);
}

double cluster_cpu_us(const struct cluster *cluster) {
  double sum = 0;
  for (size_t i = 0; i < cluster->n_children; i++) {
    struct reply reply;
    child_ask(&cluster->children[i], &(struct request){.operation = OP_STATUS}, &reply);
    sum += reply.cpu_total_us;
  }
  return sum;
}

void cluster_check(const struct reply *reply, uint32_t rows_before) {
  if (reply->rows_after < rows_before + reply->acknowledged)
    die("rows are missing: %llu are there, %u were, %llu more were acknowledged", (unsigned long long)reply->rows_after,
        rows_before, (unsigned long long)reply->acknowledged);
}
