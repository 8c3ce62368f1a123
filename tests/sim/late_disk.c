#include "late_disk.h"

#include <errno.h>
#include <stdio.h>

#include "sim.h"

#define SECTOR_BYTES 512
#define NAME_SIZE 96

struct image {
  uint8_t *bytes;
  size_t size, capacity;
};

struct inode {
  struct inode *next;
  struct image now, durable;
  bool covered; /* scratch of settle */
};

struct names {
  struct name {
    char text[NAME_SIZE];
    struct inode *inode;
  } * list;
  size_t n, capacity;
};

enum operation_kind { WRITE, RESIZE, SYNC, NAME, SYNC_NAMES };

struct operation {
  enum operation_kind kind;
  bool unsafe;  /* a sync over it failed: no later sync covers it */
  bool covered; /* scratch of settle */
  bool aside;
  uint64_t number;
  struct inode *inode;
  uint64_t offset; /* RESIZE: the size */
  size_t size;
  uint8_t *bytes;
  char from[NAME_SIZE], to[NAME_SIZE]; /* NAME: from "" is a creation, to "" a removal */
};

struct late_disk {
  struct os os;
  struct sim_random *random;
  struct inode *inodes;
  struct names now, durable;
  struct operation *operations;
  size_t n_operations, capacity;
  uint64_t position, settled;
  bool is_full, is_dead, is_aside;
  uint32_t fail_sync;
  uint64_t full_hits, sync_failures;
};

struct late_file {
  struct os_file file;
  struct inode *inode;
  int flags;
};

static struct late_disk *disk_of(struct os_file *file) {
  return (struct late_disk *)file->os;
}

static struct inode *inode_of(struct os_file *file) {
  return ((struct late_file *)file)->inode;
}

/* ---- Images and names ---- */

static void image_resize(struct image *image, size_t size) {
  image->bytes = sim_grow(image->bytes, &image->capacity, size, 1);
  if (size > image->size) memset(image->bytes + image->size, 0, size - image->size);
  image->size = size;
}

static void image_write(struct image *image, const void *bytes, size_t size, uint64_t offset) {
  if (offset + size > image->size) image_resize(image, (size_t)offset + size);
  memcpy(image->bytes + offset, bytes, size);
}

static struct name *names_find(const struct names *names, const char *text) {
  for (size_t i = 0; i < names->n; i++)
    if (strcmp(names->list[i].text, text) == 0) return &names->list[i];
  return NULL;
}

static void names_set(struct names *names, const char *text, struct inode *inode) {
  struct name *name = names_find(names, text);
  if (!name) {
    names->list = sim_grow(names->list, &names->capacity, names->n + 1, sizeof *names->list);
    name = &names->list[names->n++];
    snprintf(name->text, sizeof name->text, "%s", text);
  }
  name->inode = inode;
}

static void names_remove(struct names *names, const char *text) {
  struct name *name = names_find(names, text);
  if (name) *name = names->list[--names->n];
}

static void names_apply(struct names *names, const struct operation *operation) {
  if (operation->from[0]) names_remove(names, operation->from);
  if (operation->to[0]) names_set(names, operation->to, operation->inode);
}

/* ---- Operations ---- */

static struct operation *note(struct late_disk *disk, enum operation_kind kind, struct inode *inode) {
  disk->operations = sim_grow(disk->operations, &disk->capacity, disk->n_operations + 1, sizeof *disk->operations);
  struct operation *operation = &disk->operations[disk->n_operations++];
  *operation = (struct operation){.kind = kind, .inode = inode, .aside = disk->is_aside, .number = disk->position++};
  return operation;
}

static void note_name(struct late_disk *disk, struct inode *inode, const char *from, const char *to) {
  struct operation *operation = note(disk, NAME, inode);
  snprintf(operation->from, sizeof operation->from, "%s", from);
  snprintf(operation->to, sizeof operation->to, "%s", to);
  names_apply(&disk->now, operation);
}

static int note_sync(struct late_disk *disk, struct inode *inode) {
  if (disk->fail_sync > 0 && --disk->fail_sync == 0) {
    disk->sync_failures++;
    for (size_t i = disk->n_operations; i-- > 0;) {
      struct operation *operation = &disk->operations[i];
      if (operation->inode != inode) continue;
      if (operation->kind == SYNC) break;
      if (operation->kind != NAME) operation->unsafe = true;
    }
    return -EIO;
  }
  note(disk, SYNC, inode);
  return 0;
}

/* To what is durable, or to what reads see. */
static void operation_apply(struct late_disk *disk, const struct operation *operation, bool durable) {
  struct inode *inode = operation->inode;
  switch (operation->kind) {
  case WRITE:
    image_write(durable ? &inode->durable : &inode->now, operation->bytes, operation->size, operation->offset);
    break;
  case RESIZE: image_resize(durable ? &inode->durable : &inode->now, (size_t)operation->offset); break;
  case NAME: names_apply(durable ? &disk->durable : &disk->now, operation); break;
  case SYNC:
  case SYNC_NAMES: break;
  }
}

uint64_t late_disk_position(const struct late_disk *disk) {
  return disk->position;
}

/*
** What became durable is not undone by an earlier write that no sync ever covered: whatever the disk does with that one
** later, its pages have the newer bytes by then.
*/
static void outdate(const struct operation *durable, struct operation *earlier) {
  if (earlier->inode != durable->inode || (durable->kind != WRITE && durable->kind != RESIZE)) return;
  if (earlier->kind == RESIZE) {
    earlier->offset = durable->inode->durable.size;
    return;
  }
  if (earlier->kind != WRITE) return;
  if (durable->kind == RESIZE) { /* what was cut off does not come back */
    if (earlier->offset > durable->offset) earlier->offset = durable->offset;
    if (earlier->size > durable->offset - earlier->offset) earlier->size = (size_t)(durable->offset - earlier->offset);
    return;
  }
  const uint64_t begin = earlier->offset > durable->offset ? earlier->offset : durable->offset;
  const uint64_t end_earlier = earlier->offset + earlier->size, end_durable = durable->offset + durable->size;
  const uint64_t end = end_earlier < end_durable ? end_earlier : end_durable;
  if (begin < end)
    memcpy(earlier->bytes + (begin - earlier->offset), durable->bytes + (begin - durable->offset),
           (size_t)(end - begin));
}

void late_disk_settle(struct late_disk *disk, uint64_t position) {
  bool names_covered = false;
  for (struct inode *inode = disk->inodes; inode; inode = inode->next) inode->covered = false;
  for (size_t i = disk->n_operations; i-- > 0;) {
    struct operation *operation = &disk->operations[i];
    operation->covered = false;
    if (operation->number >= position || operation->aside) continue;
    switch (operation->kind) {
    case SYNC: operation->inode->covered = operation->covered = true; break;
    case SYNC_NAMES: names_covered = operation->covered = true; break;
    case NAME: operation->covered = names_covered; break;
    case WRITE:
    case RESIZE: operation->covered = operation->inode->covered && !operation->unsafe; break;
    }
  }
  size_t kept = 0;
  for (size_t i = 0; i < disk->n_operations; i++) {
    struct operation *operation = &disk->operations[i];
    if (operation->covered) {
      operation_apply(disk, operation, true);
      for (size_t j = 0; j < kept; j++) outdate(operation, &disk->operations[j]);
      free(operation->bytes);
    } else {
      disk->operations[kept++] = *operation;
    }
  }
  disk->n_operations = kept;
  if (position > disk->settled) disk->settled = position;
}

void late_disk_begin_aside(struct late_disk *disk) {
  disk->is_aside = true;
}

void late_disk_end_aside(struct late_disk *disk) {
  disk->is_aside = false;
}

void late_disk_release(struct late_disk *disk) {
  for (size_t i = 0; i < disk->n_operations; i++) disk->operations[i].aside = false;
}

/* Of what was done aside the first so many were begun; the others never happened. */
static void stop_aside(struct late_disk *disk, struct late_disk_loss *loss) {
  uint64_t n = 0;
  for (size_t i = 0; i < disk->n_operations; i++) n += disk->operations[i].aside;
  if (n == 0) return;
  uint64_t begun = sim_random_below(disk->random, n + 1);
  size_t kept = 0;
  for (size_t i = 0; i < disk->n_operations; i++) {
    struct operation *operation = &disk->operations[i];
    if (operation->aside && begun == 0) {
      loss->lost += operation->kind == WRITE;
      free(operation->bytes);
      continue;
    }
    begun -= operation->aside;
    operation->aside = false;
    disk->operations[kept++] = *operation;
  }
  disk->n_operations = kept;
}

/* A write that no sync covered: there, missing, or in parts. */
static void leave_to_chance(struct late_disk *disk, const struct operation *operation, struct late_disk_loss *loss) {
  const uint64_t choice = sim_random_below(disk->random, 3);
  if (choice == 0) {
    loss->lost += operation->kind == WRITE;
    return;
  }
  if (choice == 1 || operation->kind != WRITE) {
    operation_apply(disk, operation, true);
    return;
  }
  bool some = false, all = true;
  for (size_t done = 0; done < operation->size;) {
    const uint64_t offset = operation->offset + done;
    size_t n = (size_t)(SECTOR_BYTES - offset % SECTOR_BYTES);
    if (n > operation->size - done) n = operation->size - done;
    if (sim_random_chance(disk->random, 500)) {
      image_write(&operation->inode->durable, operation->bytes + done, n, offset);
      some = true;
    } else {
      all = false;
    }
    done += n;
  }
  loss->torn += some && !all;
  loss->lost += !some;
}

static void names_copy(struct names *to, const struct names *from) {
  to->list = sim_grow(to->list, &to->capacity, from->n, sizeof *to->list);
  if (from->n > 0) memcpy(to->list, from->list, from->n * sizeof *to->list);
  to->n = from->n;
}

static void forget_operations(struct late_disk *disk) {
  for (size_t i = 0; i < disk->n_operations; i++) free(disk->operations[i].bytes);
  disk->n_operations = 0;
  disk->settled = disk->position;
}

/* Drops the operations that were not begun any more; says whether that was in the middle of some. */
static void stop_somewhere(struct late_disk *disk, struct late_disk_loss *loss) {
  const uint64_t cut = sim_random_between(disk->random, disk->settled, disk->position);
  *loss = (struct late_disk_loss){.middle = cut > disk->settled && cut < disk->position};
  stop_aside(disk, loss);
  late_disk_settle(disk, cut);
  while (disk->n_operations > 0 && disk->operations[disk->n_operations - 1].number >= cut) {
    struct operation *operation = &disk->operations[--disk->n_operations];
    loss->lost += operation->kind == WRITE;
    free(operation->bytes);
  }
}

/* Reads see what is durable. */
static void forget_cache(struct late_disk *disk) {
  for (struct inode *inode = disk->inodes; inode; inode = inode->next) {
    image_resize(&inode->now, inode->durable.size);
    if (inode->durable.size > 0) memcpy(inode->now.bytes, inode->durable.bytes, inode->durable.size);
  }
  names_copy(&disk->now, &disk->durable);
  disk->fail_sync = 0;
  disk->is_dead = disk->is_aside = false;
}

void late_disk_lose_power(struct late_disk *disk, struct late_disk_loss *loss) {
  stop_somewhere(disk, loss);
  bool names_go_on = true;
  for (size_t i = 0; i < disk->n_operations; i++) {
    const struct operation *operation = &disk->operations[i];
    if (operation->kind == NAME) {
      names_go_on = names_go_on && sim_random_chance(disk->random, 500);
      if (names_go_on) operation_apply(disk, operation, true);
    } else {
      leave_to_chance(disk, operation, loss);
    }
  }
  forget_operations(disk);
  forget_cache(disk);
}

void late_disk_kill(struct late_disk *disk, struct late_disk_loss *loss) {
  stop_somewhere(disk, loss);
  forget_cache(disk);
  for (size_t i = 0; i < disk->n_operations; i++) operation_apply(disk, &disk->operations[i], false);
  disk->settled = disk->position;
}

void late_disk_wipe(struct late_disk *disk) {
  forget_operations(disk);
  disk->is_dead = false;
  disk->now.n = disk->durable.n = 0;
}

void late_disk_set_full(struct late_disk *disk, bool is_full) {
  disk->is_full = is_full;
}

void late_disk_fail_sync(struct late_disk *disk, uint32_t n) {
  disk->fail_sync = n;
}

uint64_t late_disk_full_hits(const struct late_disk *disk) {
  return disk->full_hits;
}

uint64_t late_disk_sync_failures(const struct late_disk *disk) {
  return disk->sync_failures;
}

/* ---- struct os ---- */

static bool is_refused(struct late_disk *disk) {
  disk->full_hits += disk->is_full;
  return disk->is_full;
}

void late_disk_stop(struct late_disk *disk) {
  disk->is_dead = true;
}

/* Virtual time is the driver's matter: nothing that runs on this disk asks for it. */
static uint64_t late_now(struct os *os) {
  (void)os;
  return 0;
}

static void late_random(struct os *os, void *bytes, size_t size) {
  struct late_disk *disk = (struct late_disk *)os;
  uint8_t *to = bytes;
  for (size_t i = 0; i < size; i++) to[i] = (uint8_t)sim_random_next(disk->random);
}

static int late_open(struct os *os, const char *path, int flags, struct os_file **file) {
  struct late_disk *disk = (struct late_disk *)os;
  if (strlen(path) >= NAME_SIZE) return -ENAMETOOLONG;
  const struct name *name = names_find(&disk->now, path);
  if (name && (flags & OS_OPEN_CREATE) && (flags & OS_OPEN_EXCL)) return -EEXIST;
  struct inode *inode = name ? name->inode : NULL;
  if (!inode) {
    if (!(flags & OS_OPEN_CREATE)) return -ENOENT;
    if (is_refused(disk)) return -ENOSPC;
    inode = sim_new(sizeof *inode);
    inode->next = disk->inodes;
    disk->inodes = inode;
    note_name(disk, inode, "", path);
  }
  struct late_file *opened = sim_new(sizeof *opened);
  opened->file.os = os;
  opened->inode = inode;
  opened->flags = flags;
  *file = &opened->file;
  return 0;
}

static void late_close(struct os_file *file) {
  free(file);
}

static int64_t late_read(struct os_file *file, void *bytes, size_t size, uint64_t offset) {
  const struct image *image = &inode_of(file)->now;
  if (offset >= image->size) return 0;
  if (size > image->size - offset) size = (size_t)(image->size - offset);
  memcpy(bytes, image->bytes + offset, size);
  return (int64_t)size;
}

static int late_write(struct os_file *file, const void *bytes, size_t size, uint64_t offset) {
  struct late_disk *disk = disk_of(file);
  struct inode *inode = inode_of(file);
  if (size == 0) return 0;
  if (disk->is_dead) return -EIO;
  if (offset + size > inode->now.size && is_refused(disk)) return -ENOSPC;
  image_write(&inode->now, bytes, size, offset);
  struct operation *operation = note(disk, WRITE, inode);
  operation->offset = offset;
  operation->size = size;
  operation->bytes = sim_new(size);
  memcpy(operation->bytes, bytes, size);
  return ((struct late_file *)file)->flags & OS_OPEN_DSYNC ? note_sync(disk, inode) : 0;
}

static int late_sync(struct os_file *file) {
  if (disk_of(file)->is_dead) return -EIO;
  return note_sync(disk_of(file), inode_of(file));
}

static int late_truncate(struct os_file *file, uint64_t size) {
  if (disk_of(file)->is_dead) return -EIO;
  struct inode *inode = inode_of(file);
  image_resize(&inode->now, (size_t)size);
  note(disk_of(file), RESIZE, inode)->offset = size;
  return 0;
}

static int late_allocate(struct os_file *file, uint64_t size) {
  struct inode *inode = inode_of(file);
  if (size <= inode->now.size) return 0;
  if (is_refused(disk_of(file))) return -ENOSPC;
  return late_truncate(file, size);
}

static int late_size(struct os_file *file, uint64_t *size) {
  *size = inode_of(file)->now.size;
  return 0;
}

static int late_rename(struct os *os, const char *from, const char *to) {
  struct late_disk *disk = (struct late_disk *)os;
  const struct name *name = names_find(&disk->now, from);
  if (disk->is_dead) return -EIO;
  if (!name) return -ENOENT;
  if (strlen(to) >= NAME_SIZE) return -ENAMETOOLONG;
  char text[NAME_SIZE];
  snprintf(text, sizeof text, "%s", from);
  note_name(disk, name->inode, text, to);
  return 0;
}

static int late_remove(struct os *os, const char *path) {
  struct late_disk *disk = (struct late_disk *)os;
  const struct name *name = names_find(&disk->now, path);
  if (disk->is_dead) return -EIO;
  if (!name) return -ENOENT;
  char text[NAME_SIZE];
  snprintf(text, sizeof text, "%s", path);
  note_name(disk, name->inode, text, "");
  return 0;
}

static int late_make_directory(struct os *os, const char *path) {
  (void)os, (void)path;
  return 0;
}

static int late_sync_directory(struct os *os, const char *path) {
  (void)path;
  if (((struct late_disk *)os)->is_dead) return -EIO;
  note((struct late_disk *)os, SYNC_NAMES, NULL);
  return 0;
}

static int compare_names(const void *a, const void *b) {
  return strcmp(((const struct name *)a)->text, ((const struct name *)b)->text);
}

static int late_list(struct os *os, const char *path, int (*each)(void *ctx, const char *name), void *ctx) {
  struct late_disk *disk = (struct late_disk *)os;
  struct names copy = {0};
  names_copy(&copy, &disk->now);
  if (copy.n > 1) qsort(copy.list, copy.n, sizeof *copy.list, compare_names);
  const size_t length = strlen(path);
  int rc = 0;
  for (size_t i = 0; i < copy.n && rc == 0; i++) {
    const char *text = copy.list[i].text;
    if (strncmp(text, path, length) == 0 && text[length] == '/' && !strchr(text + length + 1, '/'))
      rc = each(ctx, text + length + 1);
  }
  free(copy.list);
  return rc;
}

/* One thread: nobody may start another or wait for one. */
static int late_thread_start(struct os *os, const char *name, void (*run)(void *arg), void *arg,
                             struct os_thread **thread) {
  (void)os, (void)name, (void)run, (void)arg, (void)thread;
  return -ENOTSUP;
}

static void late_thread_join(struct os_thread *thread) {
  (void)thread;
}

static int late_condition_wait(struct os *os, pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline) {
  (void)os, (void)condition, (void)mutex, (void)deadline;
  return -ETIMEDOUT;
}

static const struct os_methods late_methods = {
    .now = late_now,
    .random = late_random,
    .open = late_open,
    .close = late_close,
    .read = late_read,
    .write = late_write,
    .sync = late_sync,
    .truncate = late_truncate,
    .allocate = late_allocate,
    .size = late_size,
    .rename = late_rename,
    .remove = late_remove,
    .make_directory = late_make_directory,
    .sync_directory = late_sync_directory,
    .list = late_list,
    .thread_start = late_thread_start,
    .thread_join = late_thread_join,
    .condition_wait = late_condition_wait,
};

struct late_disk *late_disk_new(struct sim_random *random) {
  struct late_disk *disk = sim_new(sizeof *disk);
  disk->os.methods = &late_methods;
  disk->random = random;
  return disk;
}

void late_disk_free(struct late_disk *disk) {
  if (!disk) return;
  forget_operations(disk);
  while (disk->inodes) {
    struct inode *inode = disk->inodes;
    disk->inodes = inode->next;
    free(inode->now.bytes);
    free(inode->durable.bytes);
    free(inode);
  }
  free(disk->operations);
  free(disk->now.list);
  free(disk->durable.list);
  free(disk);
}

struct os *late_disk_os(struct late_disk *disk) {
  return &disk->os;
}
