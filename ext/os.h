/*
** The operating system as Balsa sees it: clock, randomness, files, threads and waits.
**
** raft/io/, vfs/, snapshot/ and ext/ reach the machine through this interface and nothing else, so
** that tests can put a simulated disk, clock or scheduler beneath them. Sockets are the one
** exception: they belong to libuv (raft/io/transport.c). libc only; every folder but the pure Raft
** core may include it.
**
** Every call that can fail returns 0 (or a count) for success and a negative errno for failure.
** Times are nanoseconds of CLOCK_BOOTTIME: they go on while the machine sleeps, which leases need.
*/
#ifndef BALSA_OS_H
#define BALSA_OS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OS_PATH_MAX 4096
#define OS_FOREVER UINT64_MAX /* a deadline that never comes */
#define OS_MS UINT64_C(1000000)
#define OS_SECOND UINT64_C(1000000000)

struct os;
struct os_file;
struct os_thread;

enum os_open_flags {
  OS_OPEN_READ = 1,
  OS_OPEN_WRITE = 2,     /* read and write */
  OS_OPEN_CREATE = 4,    /* create if missing, mode 0644 */
  OS_OPEN_EXCL = 8,      /* with CREATE: -EEXIST if it is there */
  OS_OPEN_DSYNC = 16,    /* a write returns when data (and what reading it back needs) is durable */
  OS_OPEN_NOFOLLOW = 32, /* -ELOOP if the name is a symbolic link */
  OS_OPEN_LOCKS = 64,    /* for os_lock: see there */
};

/* What a file is, whatever its name. */
struct os_stat {
  uint64_t device, inode; /* together its identity */
  uint64_t links;         /* names */
  uint64_t size;
  uint64_t mtime_ns; /* since 1970; of the file's own clock */
};

enum os_lock { OS_UNLOCK, OS_LOCK_SHARED, OS_LOCK_EXCLUSIVE };

/* What an implementation provides. Users call the os_… functions below. */
struct os_methods {
  uint64_t (*now)(struct os *os);
  void (*random)(struct os *os, void *bytes, size_t size);
  uint64_t (*boot)(struct os *os);
  int (*open)(struct os *os, const char *path, int flags, struct os_file **file);
  void (*close)(struct os_file *file);
  int64_t (*read)(struct os_file *file, void *bytes, size_t size, uint64_t offset);
  int (*write)(struct os_file *file, const void *bytes, size_t size, uint64_t offset);
  int (*sync)(struct os_file *file);
  int (*write_back)(struct os_file *file, uint64_t offset, uint64_t size, bool wait); /* may be NULL */
  int (*truncate)(struct os_file *file, uint64_t size);
  int (*allocate)(struct os_file *file, uint64_t size);
  int (*size)(struct os_file *file, uint64_t *size);
  int (*file_stat)(struct os_file *file, struct os_stat *stat);
  int (*lock)(struct os_file *file, enum os_lock lock, uint64_t start, uint64_t length);
  bool (*find_lock)(struct os_file *file, uint64_t start, uint64_t length, int64_t *process);
  int (*stat)(struct os *os, const char *path, struct os_stat *stat);
  int (*real_path)(struct os *os, const char *path, char real[OS_PATH_MAX]);
  int (*rename)(struct os *os, const char *from, const char *to);
  int (*remove)(struct os *os, const char *path);
  int (*make_directory)(struct os *os, const char *path);
  int (*sync_directory)(struct os *os, const char *path);
  int (*list)(struct os *os, const char *path, int (*each)(void *ctx, const char *name), void *ctx);
  int (*thread_start)(struct os *os, const char *name, void (*run)(void *arg), void *arg, struct os_thread **thread);
  void (*thread_join)(struct os_thread *thread);
  void (*thread_yield_to_all)(struct os *os); /* may be NULL */
  int (*condition_wait)(struct os *os, pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline);
};

/* An implementation embeds this as its first member; so do its os_file and its os_thread. */
struct os {
  const struct os_methods *methods;
};
struct os_file {
  struct os *os;
};
struct os_thread {
  struct os *os;
};

/* The real machine. One for the process, never freed, usable from any thread. */
struct os *os_real(void);

/* Now, in nanoseconds of CLOCK_BOOTTIME. */
uint64_t os_now(struct os *os);

/* Fills `bytes` with `size` unpredictable bytes (getrandom). Cannot fail. */
void os_random(struct os *os, void *bytes, size_t size);

/* This run of the machine: another number after it went down. 0: it does not tell. */
uint64_t os_boot(struct os *os);

/* Opens `path`; *file is the caller's to os_close. `flags` are enum os_open_flags. */
int os_open(struct os *os, const char *path, int flags, struct os_file **file);
/* Closes; accepts NULL. Does not sync. */
void os_close(struct os_file *file);
/* Reads up to `size` bytes at `offset`; fewer only at the end of the file. Returns the count. */
int64_t os_read(struct os_file *file, void *bytes, size_t size, uint64_t offset);
/* Writes all of it or fails; after a failure any part may have been written. */
int os_write(struct os_file *file, const void *bytes, size_t size, uint64_t offset);
/* fdatasync. After a failure nothing unsynced in that file may be trusted again. */
int os_sync(struct os_file *file);
/*
** Hands a range to the disk and, if `wait`, waits until it has done with it. Nothing is durable by that: it only keeps a
** later sync short. An error is one of a sync.
*/
int os_write_back(struct os_file *file, uint64_t offset, uint64_t size, bool wait);
int os_truncate(struct os_file *file, uint64_t size);
/* Makes the file `size` bytes long, its new part written with zeros and not merely reserved. A longer one stays. */
int os_allocate(struct os_file *file, uint64_t size);
int os_size(struct os_file *file, uint64_t *size);
int os_file_stat(struct os_file *file, struct os_stat *stat);

/*
** Locks of byte ranges, by open file description (F_OFD_SETLK), on a file opened with OS_OPEN_LOCKS. They conflict with
** those of other processes, SQLite's POSIX locks among them, and with those of other files of this process. Such a file is closed
** in a forked child, else the child would keep the locks alive. os_close gives its locks up; its descriptor stays open as
** long as anybody has a POSIX lock on the file, which closing it would drop if it is this process's.
*/
/* Without waiting. A range keeps what it has if it fails. -EAGAIN: in the way; -ENOTSUP: the file system has no such locks. */
int os_lock(struct os_file *file, enum os_lock lock, uint64_t start, uint64_t length);
/*
** Is there a lock that would keep an exclusive one from this file? *process: whose it is, of several another process
** rather than this one; <= 0: nobody can tell.
*/
bool os_find_lock(struct os_file *file, uint64_t start, uint64_t length, int64_t *process);

int os_stat(struct os *os, const char *path, struct os_stat *stat);
/* The one absolute name without symbolic links of what is there. -ENOENT: nothing. */
int os_real_path(struct os *os, const char *path, char real[OS_PATH_MAX]);
/* Names. A name is durable only after os_sync_directory of the folder that holds it. */
int os_rename(struct os *os, const char *from, const char *to);
int os_remove(struct os *os, const char *path);
int os_make_directory(struct os *os, const char *path); /* 0 if it is there already */
int os_sync_directory(struct os *os, const char *path);
/* Calls `each` for every name in a folder but . and .., until it returns non-zero (returned then). */
int os_list(struct os *os, const char *path, int (*each)(void *ctx, const char *name), void *ctx);

/* Threads: all signals are blocked in them, so that the application's handlers run on its own. */
int os_thread_start(struct os *os, const char *name, void (*run)(void *arg), void *arg, struct os_thread **thread);
/* Waits for its end and frees it. */
void os_thread_join(struct os_thread *thread);
/*
** The calling thread gets what no other one on the machine wants of the processors, which may be nothing, for good: so never one
** that anybody waits for without a limit, or that may hold a lock.
*/
void os_thread_yield_to_all(struct os *os);

/*
** Waits are pthread mutexes and conditions; the condition is made by os_condition_init so that its
** clock is the right one. os_condition_wait gives up the mutex while it waits, as
** pthread_cond_timedwait, and returns 0 or -ETIMEDOUT once os_now() >= deadline. It may wake early.
*/
void os_condition_init(pthread_cond_t *condition);
int os_condition_wait(struct os *os, pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline);

#endif
