/*
** What can become of a file behind its node's back.
*/
#ifndef BALSA_TESTS_DAMAGE_FILES_H
#define BALSA_TESTS_DAMAGE_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../sim/random.h"

#define FILES_MAX 128
#define FILE_PATH_MAX 512
#define FILE_TEXT_MAX 256

enum file_kind {
  FILE_DATABASE,
  FILE_WAL,
  FILE_SHM,
  FILE_LOG,
  FILE_BASE,
  FILE_VOTE,
  FILE_MARKS,
  FILE_OPTIONS,
  FILE_SNAPSHOT,
  FILE_PART, /* of a snapshot that is being received, and its state */
  FILE_LOCK,
  FILE_KINDS
};
extern const char *const file_kinds[FILE_KINDS];

struct file {
  char name[FILE_PATH_MAX]; /* below the node's folder */
  enum file_kind kind;
};

/* All files of the node at `folder`/app.db, in the order of their names. Returns how many. */
size_t files_list(const char *folder, struct file files[FILES_MAX]);

enum damage {
  DAMAGE_BITS,     /* a few of them flip */
  DAMAGE_SECTOR,   /* 512 bytes are zeros */
  DAMAGE_TRUNCATE, /* its end is lost */
  DAMAGE_EXTEND,   /* there is something behind its end */
  DAMAGE_SWAP,     /* two blocks change places */
  DAMAGE_DELETE,
  DAMAGE_OLDER, /* it is as it was at an earlier time */
  DAMAGES
};
extern const char *const damages[DAMAGES];

/*
** Damages `folder`/`name`; `older` is a folder with what its files were earlier. `keeps_time`: it does not show in its
** modification time, as what a disk does by itself. false: there is nothing to damage. text says what was done.
*/
bool file_damage(const char *folder, const char *older, const char *name, enum damage damage, bool keeps_time,
                 struct sim_random *chance, char text[FILE_TEXT_MAX]);

#endif
