/*
** A file is two images of one size of buffer: what reads see (`now`) and what the platter holds
** (`durable`), with a mark for each sector of `now` that a sync would still have to write. A sector may
** differ without the mark: a failed sync dropped it. Names are kept likewise, `now` and `durable`, with a
** list of the changes between them that no os_sync_directory has covered yet.
*/
#include "sim_disk.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CAPACITY_MIN UINT64_C(4096)

struct sim_file;

/* Bytes of a file that somebody has mapped: newer than `now` may be. */
struct mapping {
  struct mapping *next;
  uint64_t offset, size;
  uint8_t *memory;
};

struct lock {
  struct lock *next;
  const struct sim_file *owner;
  enum os_lock type;
  uint64_t first, end;
};

struct inode {
  struct inode *next, **link; /* of the disk's list */
  uint64_t number;
  uint64_t mtime_now, mtime_durable; /* a count of changes */
  struct mapping *mappings;
  struct lock *locks;
  unsigned references; /* of names, changes of names and open files */
  bool directory;
  uint8_t *now, *durable; /* `capacity` bytes each, zeros beyond their sizes */
  uint8_t *dirty;         /* one per sector */
  uint64_t capacity, now_size, durable_size;
  bool size_dirty;
};

struct name {
  char *path;
  struct inode *now, *durable; /* NULL: not there */
};

/* A change of one or two names that is whole or not at all. */
struct change {
  size_t n;
  size_t names[2];
  struct inode *inodes[2];
};

struct sim_file {
  struct os_file base;
  struct sim_file *next, **link;
  struct inode *inode;
  uint64_t generation;
  int flags;
};

struct fault {
  uint32_t per_million;
  uint64_t nth;
  int nth_error, all_error;
};

struct sim_disk {
  struct os base;
  uint64_t time, generation, calls, used, capacity;
  uint64_t random_state, fault_state;
  struct inode *inodes;
  struct sim_file *files;
  struct name *names;
  size_t n_names;
  struct change *changes;
  size_t n_changes;
  struct fault faults[SIM_DISK_CALLS];
  uint64_t crash_nth;
  enum sim_disk_crash crash_kind;
  bool down, lying;
  uint64_t inodes_made, changes_made;
  struct mapping *dead_mappings; /* of machines that went down: threads may still store there */
  struct sim_disk_counters counters;
};

static struct sim_disk *as_disk(struct os *os) {
  return (struct sim_disk *)os;
}

static struct sim_file *as_file(struct os_file *file) {
  return (struct sim_file *)file;
}

static void *grow(void *memory, size_t size) {
  void *grown = realloc(memory, size ? size : 1);
  if (grown == NULL) abort();
  return grown;
}

/* splitmix64 */
static uint64_t draw(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

static uint64_t draw_below(struct sim_disk *disk, uint64_t n) {
  return n ? draw(&disk->fault_state) % n : 0;
}

static bool toss(struct sim_disk *disk) {
  return draw(&disk->fault_state) & 1;
}

/* ---- Inodes ---- */

static struct inode *inode_new(struct sim_disk *disk, bool directory) {
  struct inode *inode = grow(NULL, sizeof *inode);
  *inode = (struct inode){.directory = directory, .next = disk->inodes, .link = &disk->inodes};
  inode->number = ++disk->inodes_made;
  inode->mtime_now = inode->mtime_durable = ++disk->changes_made;
  if (inode->next) inode->next->link = &inode->next;
  disk->inodes = inode;
  return inode;
}

static struct inode *inode_ref(struct inode *inode) {
  if (inode) inode->references++;
  return inode;
}

static void free_mappings(struct mapping *mapping) {
  for (struct mapping *next; mapping; mapping = next) {
    next = mapping->next;
    free(mapping->memory);
    free(mapping);
  }
}

static void inode_unref(struct sim_disk *disk, struct inode *inode) {
  if (inode == NULL || --inode->references > 0) return;
  disk->used -= inode->now_size;
  *inode->link = inode->next;
  if (inode->next) inode->next->link = inode->link;
  free(inode->now);
  free(inode->durable);
  free(inode->dirty);
  free_mappings(inode->mappings);
  free(inode);
}

static void inode_set(struct sim_disk *disk, struct inode **place, struct inode *inode) {
  struct inode *before = *place;
  *place = inode_ref(inode);
  inode_unref(disk, before);
}

static void inode_reserve(struct inode *inode, uint64_t size) {
  uint64_t capacity = inode->capacity ? inode->capacity : CAPACITY_MIN;
  if (size <= inode->capacity) return;
  while (capacity < size) capacity *= 2;
  inode->now = grow(inode->now, capacity);
  inode->durable = grow(inode->durable, capacity);
  inode->dirty = grow(inode->dirty, capacity / SIM_DISK_SECTOR);
  memset(inode->now + inode->capacity, 0, capacity - inode->capacity);
  memset(inode->durable + inode->capacity, 0, capacity - inode->capacity);
  memset(inode->dirty + inode->capacity / SIM_DISK_SECTOR, 0, (capacity - inode->capacity) / SIM_DISK_SECTOR);
  inode->capacity = capacity;
}

/* What was stored in mapped memory is in the page cache. */
static void inode_pull(struct inode *inode) {
  for (const struct mapping *at = inode->mappings; at; at = at->next) {
    if (at->offset >= inode->now_size) continue;
    uint64_t n = at->size < inode->now_size - at->offset ? at->size : inode->now_size - at->offset;
    memcpy(inode->now + at->offset, at->memory, n);
    for (uint64_t s = at->offset / SIM_DISK_SECTOR; s * SIM_DISK_SECTOR < at->offset + n; s++) inode->dirty[s] = 1;
  }
}

/* And what a call has changed shows in mapped memory. */
static void inode_push(struct inode *inode) {
  for (const struct mapping *at = inode->mappings; at; at = at->next) {
    inode_reserve(inode, at->offset + at->size);
    memcpy(at->memory, inode->now + at->offset, at->size);
  }
}

static void inode_changed(struct sim_disk *disk, struct inode *inode) {
  inode->mtime_now = ++disk->changes_made;
  inode_push(inode);
}

static void inode_resize(struct sim_disk *disk, struct inode *inode, uint64_t size) {
  if (size == inode->now_size) return;
  inode_reserve(inode, size);
  if (size < inode->now_size) {
    memset(inode->now + size, 0, inode->now_size - size);
    for (uint64_t s = size / SIM_DISK_SECTOR; s * SIM_DISK_SECTOR < inode->now_size; s++) inode->dirty[s] = 1;
  }
  disk->used = disk->used - inode->now_size + size;
  inode->now_size = size;
  inode->size_dirty = true;
}

static void inode_write(struct sim_disk *disk, struct inode *inode, const uint8_t *bytes, uint64_t size,
                        uint64_t offset) {
  if (size == 0) return;
  inode_pull(inode);
  if (offset + size > inode->now_size) inode_resize(disk, inode, offset + size);
  if (bytes)
    memcpy(inode->now + offset, bytes, size);
  else
    memset(inode->now + offset, 0, size);
  for (uint64_t s = offset / SIM_DISK_SECTOR; s * SIM_DISK_SECTOR < offset + size; s++) inode->dirty[s] = 1;
  inode_changed(disk, inode);
}

static void sector_to_platter(struct inode *inode, uint64_t sector) {
  memcpy(inode->durable + sector * SIM_DISK_SECTOR, inode->now + sector * SIM_DISK_SECTOR, SIM_DISK_SECTOR);
  inode->dirty[sector] = 0;
}

static void size_to_platter(struct inode *inode) {
  inode->durable_size = inode->now_size;
  inode->size_dirty = false;
}

/* A sync of a range of sectors that works. */
static void inode_sync(struct inode *inode, uint64_t from, uint64_t to) {
  for (uint64_t s = from / SIM_DISK_SECTOR; s * SIM_DISK_SECTOR < to && s * SIM_DISK_SECTOR < inode->capacity; s++)
    if (inode->dirty[s]) sector_to_platter(inode, s);
  if (inode->size_dirty) size_to_platter(inode);
}

/* Some sectors reach the platter; `forget`: the others lose their mark though they did not. */
static void inode_sync_some(struct sim_disk *disk, struct inode *inode, uint64_t from, uint64_t to, bool forget) {
  uint64_t mode = draw_below(disk, 4); /* 0: none, 1: all, else each by itself */
  for (uint64_t s = from / SIM_DISK_SECTOR; s * SIM_DISK_SECTOR < to && s * SIM_DISK_SECTOR < inode->capacity; s++) {
    if (!inode->dirty[s]) continue;
    if (mode == 1 || (mode > 1 && toss(disk))) {
      sector_to_platter(inode, s);
      disk->counters.sectors_kept++;
    } else {
      if (forget) inode->dirty[s] = 0;
      disk->counters.sectors_lost++;
    }
  }
  if (inode->size_dirty && (mode == 1 || (mode > 1 && toss(disk)))) size_to_platter(inode);
}

/* ---- Names ---- */

static void parent_of(const char *path, char parent[OS_PATH_MAX]) {
  const char *slash = strrchr(path, '/');
  size_t length = slash ? (size_t)(slash - path) : 0;
  assert(length < OS_PATH_MAX);
  if (slash == NULL || length == 0) {
    memcpy(parent, slash ? "/" : ".", 2);
  } else {
    memcpy(parent, path, length);
    parent[length] = 0;
  }
}

static size_t name_find(const struct sim_disk *disk, const char *path) {
  for (size_t i = 0; i < disk->n_names; i++)
    if (strcmp(disk->names[i].path, path) == 0) return i;
  return SIZE_MAX;
}

static size_t name_make(struct sim_disk *disk, const char *path) {
  size_t i = name_find(disk, path);
  if (i != SIZE_MAX) return i;
  disk->names = grow(disk->names, (disk->n_names + 1) * sizeof *disk->names);
  disk->names[disk->n_names] = (struct name){.path = strdup(path)};
  if (disk->names[disk->n_names].path == NULL) abort();
  return disk->n_names++;
}

static struct inode *name_inode(const struct sim_disk *disk, const char *path) {
  size_t i = name_find(disk, path);
  return i == SIZE_MAX ? NULL : disk->names[i].now;
}

/* 0, or why there can't be such a name. */
static int check_parent(const struct sim_disk *disk, const char *path) {
  char parent[OS_PATH_MAX];
  if (strlen(path) >= OS_PATH_MAX) return -ENAMETOOLONG;
  parent_of(path, parent);
  struct inode *inode = name_inode(disk, parent);
  if (inode == NULL) return -ENOENT;
  return inode->directory ? 0 : -ENOTDIR;
}

static void change_names(struct sim_disk *disk, size_t n, const size_t *names, struct inode *const *inodes) {
  disk->changes = grow(disk->changes, (disk->n_changes + 1) * sizeof *disk->changes);
  struct change *change = &disk->changes[disk->n_changes++];
  *change = (struct change){.n = n};
  for (size_t i = 0; i < n; i++) {
    change->names[i] = names[i];
    change->inodes[i] = inode_ref(inodes[i]);
  }
  for (size_t i = 0; i < n; i++) inode_set(disk, &disk->names[names[i]].now, inodes[i]);
}

/* The change reaches the platter, or is forgotten. */
static void change_end(struct sim_disk *disk, struct change *change, bool keep) {
  for (size_t i = 0; i < change->n; i++) {
    if (keep) inode_set(disk, &disk->names[change->names[i]].durable, change->inodes[i]);
    inode_unref(disk, change->inodes[i]);
  }
}

static bool change_is_in(const struct sim_disk *disk, const struct change *change, const char *folder) {
  char parent[OS_PATH_MAX];
  for (size_t i = 0; i < change->n; i++) {
    parent_of(disk->names[change->names[i]].path, parent);
    if (strcmp(parent, folder) == 0) return true;
  }
  return false;
}

static bool is_reachable(const struct sim_disk *disk, const char *path) {
  char parent[OS_PATH_MAX];
  parent_of(path, parent);
  if (strcmp(path, parent) == 0 || strcmp(path, ".") == 0) return true;
  size_t i = name_find(disk, parent);
  return i != SIZE_MAX && disk->names[i].durable && is_reachable(disk, parent);
}

/* ---- Crashes ---- */

static void lose_power(struct sim_disk *disk) {
  uint64_t mode = draw_below(disk, 4); /* changes of names: 0 none, 1 all, 2 the first few, 3 each by itself */
  size_t first_few = (size_t)draw_below(disk, disk->n_changes + 1);
  for (size_t i = 0; i < disk->n_changes; i++) {
    bool keep = mode == 1 || (mode == 2 && i < first_few) || (mode == 3 && toss(disk));
    if (keep)
      disk->counters.names_kept++;
    else
      disk->counters.names_lost++;
    change_end(disk, &disk->changes[i], keep);
  }
  disk->n_changes = 0;
  for (size_t i = 0; i < disk->n_names; i++) {
    struct name *name = &disk->names[i];
    if (name->durable && !is_reachable(disk, name->path)) inode_set(disk, &name->durable, NULL);
    inode_set(disk, &name->now, name->durable);
  }
  for (struct inode *inode = disk->inodes; inode; inode = inode->next) {
    if (toss(disk)) inode->mtime_durable = inode->mtime_now;
    inode->mtime_now = inode->mtime_durable;
    if (inode->capacity == 0) continue;
    inode_sync_some(disk, inode, 0, inode->capacity, true);
    memset(inode->durable + inode->durable_size, 0, inode->capacity - inode->durable_size);
    memcpy(inode->now, inode->durable, inode->capacity);
    disk->used = disk->used - inode->now_size + inode->durable_size;
    inode->now_size = inode->durable_size;
    inode->size_dirty = false;
  }
}

static void locks_end(struct inode *inode, const struct sim_file *owner);

/* Nobody's memory and nobody's locks outlive the machine. */
static void end_processes(struct sim_disk *disk) {
  for (struct inode *inode = disk->inodes; inode; inode = inode->next) {
    locks_end(inode, NULL);
    inode_pull(inode);
    while (inode->mappings) {
      struct mapping *mapping = inode->mappings;
      inode->mappings = mapping->next;
      mapping->next = disk->dead_mappings;
      disk->dead_mappings = mapping;
    }
  }
}

void sim_disk_crash(struct sim_disk *disk, enum sim_disk_crash kind) {
  if (disk->down) return;
  disk->down = true;
  disk->crash_nth = 0;
  end_processes(disk);
  if (kind == SIM_DISK_POWER_LOSS) {
    disk->counters.power_losses++;
    lose_power(disk);
  } else {
    disk->counters.kills++;
  }
}

void sim_disk_crash_at(struct sim_disk *disk, uint64_t nth, enum sim_disk_crash kind) {
  disk->crash_nth = nth;
  disk->crash_kind = kind;
}

bool sim_disk_is_down(const struct sim_disk *disk) {
  return disk->down;
}

void sim_disk_restart(struct sim_disk *disk) {
  if (!disk->down) sim_disk_crash(disk, SIM_DISK_KILL);
  disk->down = false;
  disk->generation++;
  disk->crash_nth = 0;
  for (int i = 0; i < SIM_DISK_CALLS; i++) {
    disk->faults[i].nth = 0;
    disk->faults[i].all_error = 0;
  }
}

/* ---- What happens to a call ---- */

/* The error that is due for a call of this kind, or 0. */
static int fault_due(struct sim_disk *disk, enum sim_disk_call call) {
  struct fault *fault = &disk->faults[call];
  int error = fault->all_error;
  if (fault->nth > 0 && --fault->nth == 0) error = fault->nth_error;
  if (error == 0 && fault->per_million && draw_below(disk, 1000000) < fault->per_million) error = -EIO;
  if (error) disk->counters.errors[call]++;
  return error;
}

/* Counts a call that changes the disk; true: the crash strikes in this one. */
static bool crash_due(struct sim_disk *disk) {
  disk->calls++;
  return disk->crash_nth > 0 && --disk->crash_nth == 0;
}

static int crash_here(struct sim_disk *disk) {
  sim_disk_crash(disk, disk->crash_kind);
  return -EIO;
}

static bool is_dead(const struct sim_file *file) {
  const struct sim_disk *disk = as_disk(file->base.os);
  return disk->down || file->generation != disk->generation;
}

/* ---- Files ---- */

static int sim_open(struct os *os, const char *path, int flags, struct os_file **file) {
  struct sim_disk *disk = as_disk(os);
  *file = NULL;
  if (disk->down) return -EIO;
  int error = check_parent(disk, path);
  if (error) return error;
  struct inode *inode = name_inode(disk, path);
  if (inode && inode->directory) return -EISDIR;
  if (inode && (flags & OS_OPEN_CREATE) && (flags & OS_OPEN_EXCL)) return -EEXIST;
  if (inode == NULL) {
    if (!(flags & OS_OPEN_CREATE)) return -ENOENT;
    bool crash = crash_due(disk);
    error = crash ? 0 : fault_due(disk, SIM_DISK_NAME);
    if (error) return error;
    inode = inode_new(disk, false);
    change_names(disk, 1, (size_t[]){name_make(disk, path)}, &inode);
    if (crash) return crash_here(disk);
  }
  struct sim_file *made = grow(NULL, sizeof *made);
  *made = (struct sim_file){.base.os = os,
                            .next = disk->files,
                            .link = &disk->files,
                            .inode = inode_ref(inode),
                            .generation = disk->generation,
                            .flags = flags};
  if (made->next) made->next->link = &made->next;
  disk->files = made;
  *file = &made->base;
  return 0;
}

static void sim_close(struct os_file *file) {
  struct sim_file *sim = as_file(file);
  *sim->link = sim->next;
  if (sim->next) sim->next->link = sim->link;
  locks_end(sim->inode, sim);
  inode_unref(as_disk(file->os), sim->inode);
  free(sim);
}

static int64_t sim_read(struct os_file *file, void *bytes, size_t size, uint64_t offset) {
  struct inode *inode = as_file(file)->inode;
  if (is_dead(as_file(file))) return -EIO;
  int error = fault_due(as_disk(file->os), SIM_DISK_READ);
  if (error) return error;
  inode_pull(inode);
  if (offset >= inode->now_size) return 0;
  if (size > inode->now_size - offset) size = (size_t)(inode->now_size - offset);
  memcpy(bytes, inode->now + offset, size);
  return (int64_t)size;
}

/*
** Any prefix: often whole sectors, sometimes words of 8 bytes. Less does not happen: the kernel's copy is cut
** short at the end of a page of the source or of the file, and what matters is aligned in both.
*/
static uint64_t draw_prefix(struct sim_disk *disk, uint64_t size, uint64_t offset) {
  uint64_t n = draw_below(disk, size + 1);
  uint64_t over = (offset + n) % (draw_below(disk, 4) ? SIM_DISK_SECTOR : 8);
  if (n == size) return n;
  return n > over ? n - over : 0;
}

/* Writes `bytes` (NULL: zeros), with all that may go wrong with it. */
static int write_or_fail(struct os_file *file, const uint8_t *bytes, uint64_t size, uint64_t offset) {
  struct sim_disk *disk = as_disk(file->os);
  struct inode *inode = as_file(file)->inode;
  bool dsync = (as_file(file)->flags & OS_OPEN_DSYNC) && !disk->lying;
  if (is_dead(as_file(file))) return -EIO;
  if (!(as_file(file)->flags & OS_OPEN_WRITE)) return -EBADF;
  if (size == 0) return 0;
  if (crash_due(disk)) {
    /* Power may fail with all of it in the cache; a killed process leaves a prefix there. */
    inode_write(disk, inode, bytes, toss(disk) ? size : draw_prefix(disk, size, offset), offset);
    return crash_here(disk);
  }
  int error = fault_due(disk, SIM_DISK_WRITE);
  uint64_t n = error ? draw_prefix(disk, size, offset) : size;
  uint64_t room = disk->capacity > disk->used ? disk->capacity - disk->used : 0;
  if (offset + n > inode->now_size && offset + n - inode->now_size > room) {
    uint64_t end = inode->now_size + room;
    n = end > offset ? end - offset : 0;
    if (error == 0) disk->counters.no_space++;
    if (error == 0) error = -ENOSPC;
  }
  inode_write(disk, inode, bytes, n, offset);
  if (error) return error;
  if (!dsync) return 0;
  error = fault_due(disk, SIM_DISK_SYNC);
  if (error)
    inode_sync_some(disk, inode, offset, offset + size, true);
  else
    inode_sync(inode, offset, offset + size);
  return error;
}

static int sim_write(struct os_file *file, const void *bytes, size_t size, uint64_t offset) {
  return write_or_fail(file, bytes, size, offset);
}

static int sim_allocate(struct os_file *file, uint64_t size) {
  uint64_t before = as_file(file)->inode->now_size;
  return size > before ? write_or_fail(file, NULL, size - before, before) : 0;
}

static int sim_truncate(struct os_file *file, uint64_t size) {
  struct sim_disk *disk = as_disk(file->os);
  if (is_dead(as_file(file))) return -EIO;
  if (!(as_file(file)->flags & OS_OPEN_WRITE)) return -EBADF;
  bool crash = crash_due(disk);
  int error = crash ? 0 : fault_due(disk, SIM_DISK_WRITE);
  if (error) return error;
  inode_pull(as_file(file)->inode);
  inode_resize(disk, as_file(file)->inode, size);
  inode_changed(disk, as_file(file)->inode);
  return crash ? crash_here(disk) : 0;
}

static int sim_sync(struct os_file *file) {
  struct sim_disk *disk = as_disk(file->os);
  struct inode *inode = as_file(file)->inode;
  if (is_dead(as_file(file))) return -EIO;
  inode_pull(inode);
  if (crash_due(disk)) return crash_here(disk);
  if (disk->lying) return 0;
  int error = fault_due(disk, SIM_DISK_SYNC);
  if (error)
    inode_sync_some(disk, inode, 0, inode->capacity, true);
  else
    inode_sync(inode, 0, inode->capacity);
  return error;
}

static int sim_size(struct os_file *file, uint64_t *size) {
  if (is_dead(as_file(file))) return -EIO;
  *size = as_file(file)->inode->now_size;
  return 0;
}

static void stat_of(const struct inode *inode, struct os_stat *stat) {
  *stat = (struct os_stat){
      .device = 1, .inode = inode->number, .links = 1, .size = inode->now_size, .mtime_ns = inode->mtime_now};
}

static int sim_file_stat(struct os_file *file, struct os_stat *stat) {
  if (is_dead(as_file(file))) return -EIO;
  stat_of(as_file(file)->inode, stat);
  return 0;
}

/* ---- Locks and shared memory ---- */

static void lock_add(struct inode *inode, const struct sim_file *owner, enum os_lock type, uint64_t first,
                     uint64_t end) {
  struct lock *lock = grow(NULL, sizeof *lock);
  *lock = (struct lock){.next = inode->locks, .owner = owner, .type = type, .first = first, .end = end};
  inode->locks = lock;
}

/* Takes [first, end) out of the owner's locks; owner NULL: everybody's. */
static void lock_cut(struct inode *inode, const struct sim_file *owner, uint64_t first, uint64_t end) {
  for (struct lock **at = &inode->locks; *at;) {
    struct lock *lock = *at;
    if ((owner && lock->owner != owner) || lock->end <= first || lock->first >= end) {
      at = &lock->next;
      continue;
    }
    struct lock old = *lock;
    *at = lock->next;
    free(lock);
    /* What is left of it lies outside. */
    if (old.first < first) lock_add(inode, old.owner, old.type, old.first, first);
    if (old.end > end) lock_add(inode, old.owner, old.type, end, old.end);
    at = &inode->locks;
  }
}

static void locks_end(struct inode *inode, const struct sim_file *owner) {
  lock_cut(inode, owner, 0, UINT64_MAX);
}

static bool lock_is_in_the_way(const struct inode *inode, const struct sim_file *asking, enum os_lock type,
                               uint64_t first, uint64_t end) {
  for (const struct lock *at = inode->locks; at; at = at->next) {
    bool conflicts = at->type == OS_LOCK_EXCLUSIVE || type == OS_LOCK_EXCLUSIVE;
    if (at->owner != asking && conflicts && at->first < end && at->end > first) return true;
  }
  return false;
}

static uint64_t lock_end(uint64_t start, uint64_t length) {
  return length ? start + length : UINT64_MAX;
}

static int sim_lock(struct os_file *file, enum os_lock type, uint64_t start, uint64_t length) {
  struct inode *inode = as_file(file)->inode;
  uint64_t end = lock_end(start, length);
  if (is_dead(as_file(file))) return -EIO;
  assert(as_file(file)->flags & OS_OPEN_LOCKS);
  if (type != OS_UNLOCK && lock_is_in_the_way(inode, as_file(file), type, start, end)) return -EAGAIN;
  lock_cut(inode, as_file(file), start, end);
  if (type != OS_UNLOCK) lock_add(inode, as_file(file), type, start, end);
  return 0;
}

static bool sim_find_lock(struct os_file *file, uint64_t start, uint64_t length, int64_t *process) {
  *process = -1;
  return !is_dead(as_file(file)) &&
         lock_is_in_the_way(as_file(file)->inode, as_file(file), OS_LOCK_EXCLUSIVE, start, lock_end(start, length));
}

void *sim_disk_map(struct os_file *file, uint64_t offset, uint64_t size) {
  struct inode *inode = as_file(file)->inode;
  if (is_dead(as_file(file))) return NULL;
  assert(offset + size <= inode->now_size);
  for (struct mapping *at = inode->mappings; at; at = at->next)
    if (at->offset == offset && at->size == size) return at->memory;
  struct mapping *mapping = grow(NULL, sizeof *mapping);
  *mapping = (struct mapping){.next = inode->mappings, .offset = offset, .size = size, .memory = grow(NULL, size)};
  memcpy(mapping->memory, inode->now + offset, size);
  inode->mappings = mapping;
  return mapping->memory;
}

/* ---- Names, as called ---- */

static int sim_stat(struct os *os, const char *path, struct os_stat *stat) {
  struct sim_disk *disk = as_disk(os);
  if (disk->down) return -EIO;
  const struct inode *inode = name_inode(disk, path);
  if (inode == NULL) return -ENOENT;
  stat_of(inode, stat);
  return 0;
}

static int sim_real_path(struct os *os, const char *path, char real[OS_PATH_MAX]) {
  struct sim_disk *disk = as_disk(os);
  if (disk->down) return -EIO;
  if (name_inode(disk, path) == NULL) return -ENOENT;
  snprintf(real, OS_PATH_MAX, "%s", path);
  return 0;
}

/* Changes names unless it is made to fail; the crash may strike before or after. */
static int change_or_fail(struct sim_disk *disk, size_t n, const size_t *names, struct inode *const *inodes) {
  bool crash = crash_due(disk);
  int error = crash ? 0 : fault_due(disk, SIM_DISK_NAME);
  if (error) return error;
  if (!crash || toss(disk)) change_names(disk, n, names, inodes);
  return crash ? crash_here(disk) : 0;
}

static int sim_rename(struct os *os, const char *from, const char *to) {
  struct sim_disk *disk = as_disk(os);
  if (disk->down) return -EIO;
  int error = check_parent(disk, to);
  if (error) return error;
  struct inode *inode = name_inode(disk, from);
  struct inode *target = name_inode(disk, to);
  if (inode == NULL) return -ENOENT;
  assert(!inode->directory); /* nobody renames folders yet */
  if (target && target->directory) return -EISDIR;
  if (inode == target) return 0;
  size_t names[2] = {name_find(disk, from), name_make(disk, to)};
  struct inode *inodes[2] = {NULL, inode};
  inode_ref(inode);
  error = change_or_fail(disk, 2, names, inodes);
  inode_unref(disk, inode);
  return error;
}

static int sim_remove(struct os *os, const char *path) {
  struct sim_disk *disk = as_disk(os);
  if (disk->down) return -EIO;
  struct inode *inode = name_inode(disk, path);
  if (inode == NULL) return -ENOENT;
  if (inode->directory) return -EISDIR;
  return change_or_fail(disk, 1, (size_t[]){name_find(disk, path)}, (struct inode *[]){NULL});
}

static int sim_make_directory(struct os *os, const char *path) {
  struct sim_disk *disk = as_disk(os);
  if (disk->down) return -EIO;
  int error = check_parent(disk, path);
  if (error) return error;
  struct inode *inode = name_inode(disk, path);
  if (inode) return inode->directory ? 0 : -ENOTDIR;
  inode = inode_ref(inode_new(disk, true));
  error = change_or_fail(disk, 1, (size_t[]){name_make(disk, path)}, &inode);
  inode_unref(disk, inode);
  return error;
}

static int sim_sync_directory(struct os *os, const char *path) {
  struct sim_disk *disk = as_disk(os);
  size_t kept = 0;
  if (disk->down) return -EIO;
  struct inode *inode = name_inode(disk, path);
  if (inode == NULL) return -ENOENT;
  if (!inode->directory) return -ENOTDIR;
  if (crash_due(disk)) return crash_here(disk);
  if (disk->lying) return 0;
  int error = fault_due(disk, SIM_DISK_SYNC_DIRECTORY);
  if (error) return error;
  for (size_t i = 0; i < disk->n_changes; i++) {
    if (change_is_in(disk, &disk->changes[i], path))
      change_end(disk, &disk->changes[i], true);
    else
      disk->changes[kept++] = disk->changes[i];
  }
  disk->n_changes = kept;
  return 0;
}

static int sim_list(struct os *os, const char *path, int (*each)(void *ctx, const char *name), void *ctx) {
  struct sim_disk *disk = as_disk(os);
  char parent[OS_PATH_MAX];
  int result = 0;
  if (disk->down) return -EIO;
  struct inode *inode = name_inode(disk, path);
  if (inode == NULL) return -ENOENT;
  if (!inode->directory) return -ENOTDIR;
  size_t n_names = disk->n_names; /* `each` may add and remove names */
  for (size_t i = 0; i < n_names && result == 0; i++) {
    const char *slash = strrchr(disk->names[i].path, '/');
    parent_of(disk->names[i].path, parent);
    if (disk->names[i].now == NULL || strcmp(parent, path) != 0) continue;
    const char *base = slash ? slash + 1 : disk->names[i].path;
    if (*base && strcmp(base, ".") != 0) result = each(ctx, base);
  }
  return result;
}

/* ---- Clock, randomness, threads ---- */

static uint64_t sim_now(struct os *os) {
  return as_disk(os)->time;
}

static void sim_random(struct os *os, void *bytes, size_t size) {
  uint8_t *next = bytes;
  for (size_t i = 0; i < size; i++) next[i] = (uint8_t)(draw(&as_disk(os)->random_state) >> 32);
}

static uint64_t sim_boot(struct os *os) {
  return 1 + as_disk(os)->counters.power_losses;
}

static int sim_thread_start(struct os *os, const char *name, void (*run)(void *arg), void *arg,
                            struct os_thread **thread) {
  (void)os, (void)name, (void)run, (void)arg;
  *thread = NULL;
  return -ENOTSUP;
}

static void sim_thread_join(struct os_thread *thread) {
  (void)thread;
  abort(); /* none was ever started */
}

static int sim_condition_wait(struct os *os, pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline) {
  (void)condition, (void)mutex;
  if (deadline == OS_FOREVER) {
    fputs("sim_disk: a wait without a deadline, and no other thread to end it\n", stderr);
    abort();
  }
  if (deadline > as_disk(os)->time) as_disk(os)->time = deadline;
  return -ETIMEDOUT;
}

/* ---- The test's side ---- */

static void make_roots(struct sim_disk *disk) {
  static const char *const roots[] = {"/", "."};
  for (size_t i = 0; i < 2; i++) {
    size_t at = name_make(disk, roots[i]); /* may move names */
    assert(disk->names);
    struct name *name = &disk->names[at];
    struct inode *inode = inode_new(disk, true);
    inode_set(disk, &name->now, inode);
    inode_set(disk, &name->durable, inode);
  }
}

struct sim_disk *sim_disk_new(uint64_t seed) {
  static const struct os_methods methods = {
      .now = sim_now,
      .random = sim_random,
      .boot = sim_boot,
      .open = sim_open,
      .close = sim_close,
      .read = sim_read,
      .write = sim_write,
      .sync = sim_sync,
      .truncate = sim_truncate,
      .allocate = sim_allocate,
      .size = sim_size,
      .file_stat = sim_file_stat,
      .lock = sim_lock,
      .find_lock = sim_find_lock,
      .stat = sim_stat,
      .real_path = sim_real_path,
      .rename = sim_rename,
      .remove = sim_remove,
      .make_directory = sim_make_directory,
      .sync_directory = sim_sync_directory,
      .list = sim_list,
      .thread_start = sim_thread_start,
      .thread_join = sim_thread_join,
      .condition_wait = sim_condition_wait,
  };
  struct sim_disk *disk = grow(NULL, sizeof *disk);
  *disk = (struct sim_disk){.base.methods = &methods, .time = OS_SECOND, .capacity = UINT64_MAX};
  disk->random_state = seed;
  disk->fault_state = seed ^ UINT64_C(0x5d15c0de5d15c0de);
  make_roots(disk);
  return disk;
}

static void forget_names(struct sim_disk *disk) {
  for (size_t i = 0; i < disk->n_changes; i++) change_end(disk, &disk->changes[i], false);
  disk->n_changes = 0;
  for (size_t i = 0; i < disk->n_names; i++) {
    inode_set(disk, &disk->names[i].now, NULL);
    inode_set(disk, &disk->names[i].durable, NULL);
    free(disk->names[i].path);
  }
  disk->n_names = 0;
}

void sim_disk_free(struct sim_disk *disk) {
  if (disk == NULL) return;
  for (struct sim_file *file = disk->files, *next; file; file = next) {
    next = file->next;
    sim_close(&file->base);
  }
  forget_names(disk);
  assert(disk->inodes == NULL && disk->used == 0);
  free_mappings(disk->dead_mappings);
  free(disk->names);
  free(disk->changes);
  free(disk);
}

void sim_disk_wipe(struct sim_disk *disk) {
  forget_names(disk);
  disk->generation++;
  make_roots(disk);
}

struct os *sim_disk_os(struct sim_disk *disk) {
  return &disk->base;
}

void sim_disk_set_time(struct sim_disk *disk, uint64_t now) {
  assert(now >= disk->time);
  disk->time = now;
}

void sim_disk_set_error_rate(struct sim_disk *disk, enum sim_disk_call call, uint32_t per_million) {
  disk->faults[call].per_million = per_million;
}

void sim_disk_fail_nth(struct sim_disk *disk, enum sim_disk_call call, uint64_t nth, int error) {
  disk->faults[call].nth = nth;
  disk->faults[call].nth_error = error;
}

void sim_disk_fail_all(struct sim_disk *disk, enum sim_disk_call call, int error) {
  disk->faults[call].all_error = error;
}

void sim_disk_set_capacity(struct sim_disk *disk, uint64_t bytes) {
  disk->capacity = bytes;
}

void sim_disk_set_lying(struct sim_disk *disk, bool lying) {
  disk->lying = lying;
}

uint64_t sim_disk_used(const struct sim_disk *disk) {
  return disk->used;
}

uint64_t sim_disk_calls(const struct sim_disk *disk) {
  return disk->calls;
}

void sim_disk_get_counters(const struct sim_disk *disk, struct sim_disk_counters *counters) {
  *counters = disk->counters;
}

const uint8_t *sim_disk_bytes(const struct sim_disk *disk, const char *path, uint64_t *size) {
  struct inode *inode = name_inode(disk, path);
  if (inode == NULL || inode->directory) return NULL;
  inode_pull(inode);
  *size = inode->now_size;
  return inode->now ? inode->now : (const uint8_t *)"";
}

void sim_disk_flip(struct sim_disk *disk, const char *path, uint64_t offset, uint8_t bits) {
  struct inode *inode = name_inode(disk, path);
  assert(inode && !inode->directory && offset < inode->now_size);
  inode->now[offset] ^= bits;
  inode->durable[offset] ^= bits;
}
