#include "files.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BITS_MAX 4
#define SECTOR 512u
#define BLOCKS_TRIED 16 /* places for a sector or block that is not blank */
#define FILE_BYTES_MAX (64u << 20)

const char *const file_kinds[FILE_KINDS] = {
    [FILE_DATABASE] = "the database", [FILE_WAL] = "the WAL",         [FILE_SHM] = "the wal-index",
    [FILE_LOG] = "the log",           [FILE_BASE] = "log/base",       [FILE_VOTE] = "the vote",
    [FILE_MARKS] = "the marks",       [FILE_OPTIONS] = "the options", [FILE_SNAPSHOT] = "a snapshot",
    [FILE_PART] = "a part",           [FILE_LOCK] = "the lock",
};
const char *const damages[DAMAGES] = {
    [DAMAGE_BITS] = "bits flip",           [DAMAGE_SECTOR] = "a sector is blank",    [DAMAGE_TRUNCATE] = "it is cut",
    [DAMAGE_EXTEND] = "it has grown",      [DAMAGE_SWAP] = "two blocks are swapped", [DAMAGE_DELETE] = "it is gone",
    [DAMAGE_OLDER] = "it is an older one",
};

/* ---- Listing ---- */

static bool ends_with(const char *text, const char *end) {
  size_t n = strlen(text), m = strlen(end);
  return n >= m && strcmp(text + n - m, end) == 0;
}

static bool kind_of(const char *name, enum file_kind *kind) {
  static const struct {
    const char *name;
    enum file_kind kind;
  } names[] = {
      {"app.db", FILE_DATABASE},
      {"app.db-wal", FILE_WAL},
      {"app.db-shm", FILE_SHM},
      {"app.db-balsa/vote", FILE_VOTE},
      {"app.db-balsa/log/base", FILE_BASE},
      {"app.db-balsa/database", FILE_MARKS},
      {"app.db-balsa/options", FILE_OPTIONS},
      {"app.db-balsa/lock", FILE_LOCK},
  };
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    if (strcmp(name, names[i].name) != 0) continue;
    *kind = names[i].kind;
    return true;
  }
  if (strncmp(name, "app.db-balsa/", 13) != 0) return false;
  *kind = strstr(name, "/log/") ? FILE_LOG : ends_with(name, ".lz4") ? FILE_SNAPSHOT : FILE_PART;
  return true;
}

static int compare(const void *a, const void *b) {
  return strcmp(((const struct file *)a)->name, ((const struct file *)b)->name);
}

static size_t list(const char *folder, const char *below, struct file *files, size_t n) {
  char path[2 * FILE_PATH_MAX];
  snprintf(path, sizeof path, "%s/%s", folder, below);
  DIR *directory = opendir(path);
  for (struct dirent *entry; directory && (entry = readdir(directory)) != NULL;) {
    struct file file;
    if (entry->d_name[0] == '.') continue;
    snprintf(file.name, sizeof file.name, "%s%s%s", below, below[0] ? "/" : "", entry->d_name);
    if (entry->d_type == DT_DIR)
      n = list(folder, file.name, files, n);
    else if (n < FILES_MAX && kind_of(file.name, &file.kind))
      files[n++] = file;
  }
  if (directory) closedir(directory);
  return n;
}

size_t files_list(const char *folder, struct file files[FILES_MAX]) {
  size_t n = list(folder, "", files, 0);
  qsort(files, n, sizeof *files, compare);
  return n;
}

/* ---- Bytes ---- */

static uint8_t *read_all(const char *path, size_t *size) {
  struct stat status;
  uint8_t *bytes = NULL;
  int file = open(path, O_RDONLY);
  if (file >= 0 && fstat(file, &status) == 0 && status.st_size <= FILE_BYTES_MAX) {
    *size = (size_t)status.st_size;
    bytes = malloc(*size + SECTOR);
    if (bytes && read(file, bytes, *size) != (ssize_t)*size) {
      free(bytes);
      bytes = NULL;
    }
  }
  if (file >= 0) close(file);
  return bytes;
}

static bool write_all(const char *path, const uint8_t *bytes, size_t size) {
  int file = open(path, O_WRONLY | O_CREAT, 0644);
  bool ok = file >= 0 && pwrite(file, bytes, size, 0) == (ssize_t)size && ftruncate(file, (off_t)size) == 0;
  if (file >= 0) close(file);
  return ok;
}

static bool is_blank(const uint8_t *bytes, size_t size) {
  for (size_t i = 0; i < size; i++)
    if (bytes[i]) return false;
  return true;
}

/* The start of a block of `unit`, rather one that holds something. */
static size_t choose_block(const uint8_t *bytes, size_t size, size_t unit, struct sim_random *chance) {
  size_t at = 0;
  for (int i = 0; i < BLOCKS_TRIED; i++) {
    at = sim_random_below(chance, (size + unit - 1) / unit) * unit;
    if (at + unit > size) at = size - unit;
    if (!is_blank(bytes + at, unit)) break;
  }
  return at;
}

static bool flip_bits(uint8_t *bytes, size_t size, struct sim_random *chance, char *text) {
  unsigned n = (unsigned)sim_random_between(chance, 1, BITS_MAX);
  int length = 0;
  if (size == 0) return false;
  for (unsigned i = 0; i < n; i++) {
    size_t unit = size < 64 ? size : 64;
    size_t at = choose_block(bytes, size, unit, chance) + sim_random_below(chance, unit);
    bytes[at] ^= (uint8_t)(1u << sim_random_below(chance, 8));
    length += snprintf(text + length, FILE_TEXT_MAX - (size_t)length, "%s%zu", i ? ", " : "bits in bytes ", at);
  }
  return true;
}

static bool blank_sector(uint8_t *bytes, size_t size, struct sim_random *chance, char *text) {
  if (size < SECTOR) return false;
  size_t at = choose_block(bytes, size, SECTOR, chance) / SECTOR * SECTOR;
  if (is_blank(bytes + at, SECTOR)) return false;
  memset(bytes + at, 0, SECTOR);
  snprintf(text, FILE_TEXT_MAX, "zeros at %zu", at);
  return true;
}

static bool swap_blocks(uint8_t *bytes, size_t size, struct sim_random *chance, char *text) {
  static const size_t units[] = {512, 4096};
  uint8_t block[4096];
  size_t unit = units[sim_random_below(chance, 2)];
  if (size < 2 * unit) return false;
  size_t a = choose_block(bytes, size, unit, chance) / unit * unit, b = sim_random_below(chance, size / unit) * unit;
  if (memcmp(bytes + a, bytes + b, unit) == 0) return false;
  memcpy(block, bytes + a, unit);
  memcpy(bytes + a, bytes + b, unit);
  memcpy(bytes + b, block, unit);
  snprintf(text, FILE_TEXT_MAX, "%zu bytes at %zu and %zu", unit, a, b);
  return true;
}

/* By up to a sector. */
static bool extend(uint8_t *bytes, size_t *size, struct sim_random *chance, char *text) {
  size_t n = sim_random_between(chance, 1, SECTOR);
  for (size_t i = 0; i < n; i++) bytes[*size + i] = (uint8_t)sim_random_next(chance);
  *size += n;
  snprintf(text, FILE_TEXT_MAX, "by %zu bytes", n);
  return true;
}

static bool cut(size_t *size, struct sim_random *chance, char *text) {
  if (*size == 0) return false;
  *size = sim_random_chance(chance, 200) ? 0 : sim_random_below(chance, *size);
  snprintf(text, FILE_TEXT_MAX, "to %zu bytes", *size);
  return true;
}

static bool change(uint8_t *bytes, size_t *size, enum damage damage, struct sim_random *chance, char *text) {
  switch (damage) {
  case DAMAGE_BITS: return flip_bits(bytes, *size, chance, text);
  case DAMAGE_SECTOR: return blank_sector(bytes, *size, chance, text);
  case DAMAGE_SWAP: return swap_blocks(bytes, *size, chance, text);
  case DAMAGE_EXTEND: return extend(bytes, size, chance, text);
  case DAMAGE_TRUNCATE: return cut(size, chance, text);
  default: return false;
  }
}

static bool replace(const char *path, const char *older_path) {
  size_t size = 0, now_size = 0;
  uint8_t *bytes = read_all(older_path, &size), *now = read_all(path, &now_size);
  bool is_other = bytes && (!now || size != now_size || memcmp(bytes, now, size) != 0);
  bool ok = is_other && write_all(path, bytes, size);
  free(bytes);
  free(now);
  return ok;
}

bool file_damage(const char *folder, const char *older, const char *name, enum damage damage, bool keeps_time,
                 struct sim_random *chance, char text[FILE_TEXT_MAX]) {
  char path[2 * FILE_PATH_MAX], older_path[2 * FILE_PATH_MAX];
  struct stat status;
  size_t size = 0;
  text[0] = 0;
  snprintf(path, sizeof path, "%s/%s", folder, name);
  snprintf(older_path, sizeof older_path, "%s/%s", older, name);
  if (damage == DAMAGE_DELETE) return unlink(path) == 0;
  if (stat(path, &status) != 0) return false;
  bool ok;
  if (damage == DAMAGE_OLDER) {
    ok = replace(path, older_path);
  } else {
    uint8_t *bytes = read_all(path, &size);
    ok = bytes && change(bytes, &size, damage, chance, text) && write_all(path, bytes, size);
    free(bytes);
  }
  const struct timespec times[2] = {status.st_atim, status.st_mtim};
  if (ok && keeps_time) utimensat(AT_FDCWD, path, times, 0);
  return ok;
}
