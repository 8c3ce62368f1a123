/*
** Blocks of a snapshot, read and compressed by threads that yield to everybody else, and taken in order by the one that
** writes the file.
**
** Whoever writes transactions should not feel a snapshot: compression is what it costs. So the helpers run in the
** background (os.h), where a machine that has better things to do may stop them for long. They hold no lock while they
** work and touch no file that is written to, so that nobody waits behind them; and who takes the blocks makes those itself
** that it does not get in time. Blocks are the same whoever makes them.
*/
#ifndef BALSA_SNAPSHOT_PACKER_H
#define BALSA_SNAPSHOT_PACKER_H

#include "file.h"

struct snapshot_packed {
  const uint8_t *content; /* bytes of the database */
  uint32_t content_size;
  const uint8_t *stored; /* compressed, or the content itself */
  uint32_t stored_size;
  uint64_t checksum; /* what its pages give to the rolling checksum */
};

struct snapshot_packer;

/* `input` must live until close. -ENOMEM. Helpers that cannot be started are done without. */
int snapshot_packer_open(struct os *os, const struct snapshot_input *input, uint32_t pages, uint32_t page_size,
                         struct snapshot_packer **packer);
/*
** The next block, valid until the next call. 1: there is one, 0: that was all, else negative errno: -ECANCELED if the pace
** says so, or what the input gave, with its sentence in text.
*/
int snapshot_packer_next(struct snapshot_packer *packer, struct snapshot_packed *packed, char *text);
/* Waits for the helpers' last blocks. Accepts NULL. */
void snapshot_packer_close(struct snapshot_packer *packer);

#endif
