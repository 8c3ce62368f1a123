/*
** Snapshots: the database at one index of the log, in one file, from which a node can start and a
** follower can catch up when the log before it is gone (design section 7; Raft paper section 7).
**
** The file is an LZ4 frame file: a skippable frame with the metadata, then one frame whose content is the database
** file. `lz4 -d` of it is a valid SQLite database. Format at the top of file.c. It is written under a temporary name,
** synced, and renamed into place only when the entry at its index has committed: `snapshot-<index, 20 digits>.lz4`.
**
** snapshot/ knows pages and files. What the bytes of configuration and term starts mean is the node's.
*/
#ifndef BALSA_SNAPSHOT_H
#define BALSA_SNAPSHOT_H

#include "../ext/os.h"
#include "../vfs/vfs.h"

#define SNAPSHOT_TEXT_MAX 768
#define SNAPSHOT_CONFIGURATION_MAX 65536
#define SNAPSHOT_TERMS_MAX 65536
#define SNAPSHOT_NAME_MAX 64

struct snapshot_term {
  uint64_t term, index; /* first index of that term */
};

struct snapshot_meta {
  uint64_t index, term; /* the last entry that it contains */
  uint64_t set_index;   /* the last change set in it */
  uint64_t checksum;    /* rolling checksum of the database */
  uint32_t page_size, pages;
  uint64_t configuration_index;
  const uint8_t *configuration; /* raft_configuration_encode; of `configuration_index` */
  uint32_t configuration_size;
  const struct snapshot_term *terms; /* the committed log's term starts through `index` */
  uint32_t n_terms;
};

/* ---- Writing ---- */

struct snapshot_writer;

enum snapshot_pace {
  SNAPSHOT_QUIET, /* with what nobody else needs of the processors */
  SNAPSHOT_HURRY, /* the calling thread takes part, as everybody else */
  SNAPSHOT_STOP,
};

/* What a snapshot is made of. */
struct snapshot_input {
  /*
  ** Pages first … first + n - 1; what the lock-byte page holds is no matter. From several threads at once; negative errno,
  ** with a sentence.
  */
  int (*read)(void *ctx, uint32_t first, uint32_t n, uint8_t *pages, char *text);
  /* Asked on the calling thread, at every block and every now and then: `pages` of them are written. */
  enum snapshot_pace (*pace)(void *ctx, uint32_t pages);
  void *ctx;
};

/*
** Begins `folder`/snapshot.new (an older one there is replaced, so one writer at a time). Nothing of meta is kept.
** Negative errno, with a sentence; -EINVAL: no snapshot can hold this meta.
*/
int snapshot_writer_open(struct os *os, const char *folder, const struct snapshot_meta *meta,
                         struct snapshot_writer **writer, char *text);
/*
** Writes meta.pages pages and ends the file, synced. Blocks of pages are read and compressed by threads of its own that run in
** the background, and by this one if the pace says so. -EILSEQ if the pages do not give meta.checksum: such a snapshot must not
** be used; -ECANCELED: the pace said stop. After an error of this or any other call nothing but close works.
*/
int snapshot_writer_write(struct snapshot_writer *writer, const struct snapshot_input *input);
/* Renames the finished file into place and syncs the folder. */
int snapshot_writer_publish(struct snapshot_writer *writer);
/* Frees; removes the temporary file if it was not published. Accepts NULL. */
void snapshot_writer_close(struct snapshot_writer *writer);
/* The sentence for the last error. */
const char *snapshot_writer_error(const struct snapshot_writer *writer);

/* ---- Reading ---- */

struct snapshot_reader;

/*
** Reads and verifies the metadata; its pointers are valid until close. -EILSEQ with file and offset in text when
** damaged; -EPROTO: written by a later version.
*/
int snapshot_reader_open(struct os *os, const char *path, struct snapshot_reader **reader, struct snapshot_meta *meta,
                         char *text);
/* Likewise, with what to do about damage at the end of its sentences (a string that outlives the reader). */
int snapshot_reader_begin(struct os *os, const char *path, const char *way_out, struct snapshot_reader **reader,
                          struct snapshot_meta *meta, char *text);
/*
** The next page into `page`; every LZ4 block is verified. 1: a page, 0: the end (number of pages and rolling checksum
** verified), else negative errno. Only that 0 says that the pages together are the database.
*/
int snapshot_reader_next(struct snapshot_reader *reader, void *page);
/* Its head is damaged, and what it says is taken from the copy beside it: pages can be read, but the file is no good any more. */
bool snapshot_reader_is_mended(const struct snapshot_reader *reader);
void snapshot_reader_close(struct snapshot_reader *reader);
const char *snapshot_reader_error(const struct snapshot_reader *reader);

/* ---- The folder ---- */

/*
** The newest snapshot in `folder`: its path and index; index 0 if there is none. It goes by names: whether the file is
** whole, the reader tells. Its name is durable then. Removes a leftover snapshot.new, so never call it beside an open writer.
*/
int snapshot_find(struct os *os, const char *folder, char path[OS_PATH_MAX], uint64_t *index);
/* The newest one before `before`; may be called at any time. */
int snapshot_find_before(struct os *os, const char *folder, uint64_t before, char path[OS_PATH_MAX], uint64_t *index);
/* Removes all snapshots older than `index`. */
int snapshot_remove_older(struct os *os, const char *folder, uint64_t index);
/*
** The index of the snapshot of which a receiver has kept a part for a resume; 0: there is none. A part of which that is not
** known is of no use, and removed. Never beside an open receiver.
*/
int snapshot_find_part(struct os *os, const char *folder, uint64_t *index);
/* Removes what a receiver has kept for a resume that will not come. Never beside an open receiver. */
int snapshot_remove_part(struct os *os, const char *folder);
/* folder/snapshot-<index>.lz4; an empty path if that is too long. */
void snapshot_path(const char *folder, uint64_t index, char path[OS_PATH_MAX]);

/* ---- Receiving one in chunks (InstallSnapshot) ---- */

struct snapshot_receiver;

/*
** Begins or resumes `folder`/snapshot.part, which is for one (index, term, size) only: another one there is dropped.
** *offset is what is already there, durable: the sender goes on from it.
*/
int snapshot_receiver_open(struct os *os, const char *folder, uint64_t index, uint64_t term, uint64_t size_bytes,
                           struct snapshot_receiver **receiver, uint64_t *offset, char *text);
/*
** A chunk; only the one at exactly the present offset is taken (-EINVAL otherwise: a duplicate or a gap, the file is as
** before). After -ENOSPC or another error of a write the same chunk may be tried again; if a sync failed, every later
** call fails: close, and open again.
*/
int snapshot_receiver_add(struct snapshot_receiver *receiver, uint64_t offset, const void *bytes, size_t size);
/* All is there: syncs, verifies the whole file page by page, renames it into place. -EILSEQ: removed, begin again. */
int snapshot_receiver_finish(struct snapshot_receiver *receiver, char path[OS_PATH_MAX], char *text);
/* Frees; keeps the part, synced, for a later resume, unless it was finished. Accepts NULL. */
void snapshot_receiver_close(struct snapshot_receiver *receiver);
/* The sentence for the last error. */
const char *snapshot_receiver_error(const struct snapshot_receiver *receiver);

#endif
