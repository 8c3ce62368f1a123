/*
** A machine on which nothing can be changed: files are read, and every change only pretends to be made. So code that
** mends what it finds (the log's recovery) can be asked what it would find, on a folder that is none of its business.
*/
#ifndef BALSA_OS_READ_ONLY_H
#define BALSA_OS_READ_ONLY_H

#include "os.h"

struct os_read_only {
  struct os os; /* first: this is what users get */
  struct os *inner;
};

/* Files come from `inner`; the clock and all else is its own. A missing file that was to be created is an empty one. */
void os_read_only_init(struct os_read_only *read_only, struct os *inner);

#endif
