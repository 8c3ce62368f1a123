/*
** A small record that is replaced as a whole or not at all: two slots in one file, written in turn,
** each with version, sequence and a 64-bit checksum. The valid slot with the higher sequence counts.
** Used for term and vote (raft/io/hard_state.c) and the marks of the database (vfs/). Format at the
** top of slot_file.c. libc and xxHash only.
*/
#ifndef BALSA_SLOT_FILE_H
#define BALSA_SLOT_FILE_H

#include "os.h"

#define SLOT_FILE_PAYLOAD_MAX 4000 /* a slot is 4096 bytes */

struct slot_file;

/*
** Opens or makes `path`. `kind` is a four-byte magic of the user ("VOTE"); `version` what it writes.
** *size is 0 if no record was ever written. Both slots damaged, though something was written:
** -EILSEQ (a torn write damages at most one, so that is damage: never treat it as empty).
** Another kind or a higher version: -EPROTO.
*/
int slot_file_open(struct os *os, const char *path, const char kind[4], uint32_t version, void *payload,
                   size_t payload_max, size_t *size, struct slot_file **file);
/* Durable when it returns 0. After a failure the file is not trusted: every later write fails (-EIO). */
int slot_file_write(struct slot_file *file, const void *payload, size_t size);
void slot_file_close(struct slot_file *file);

#endif
