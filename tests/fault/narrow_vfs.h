/*
** A VFS over the default one, some of whose files find their disk full: those of one kind may not grow any more beyond a
** size, while all others may. One for the process; the limits may be set at any time.
*/
#ifndef BALSA_TESTS_NARROW_VFS_H
#define BALSA_TESTS_NARROW_VFS_H

#include "../../vfs/sqlite.h"

enum narrow_kind { NARROW_DATABASE, NARROW_WAL, NARROW_SHM, NARROW_KINDS };

sqlite3_vfs *narrow_vfs(void);
/* Bytes, of the files of this kind that have these words in their path (NULL: all); negative: no limit, as at first. */
void narrow_set_limit(enum narrow_kind kind, const char *words, sqlite3_int64 bytes);

#endif
