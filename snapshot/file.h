/*
** What the parts of snapshot/ share: the head of the file, its LZ4 frame, names, sentences.
*/
#ifndef BALSA_SNAPSHOT_FILE_H
#define BALSA_SNAPSHOT_FILE_H

#include <lz4frame.h>

#include "snapshot.h"

#define SNAPSHOT_BLOCK_SIZE (256u << 10) /* content of an LZ4 block; a multiple of every page size */
#define SNAPSHOT_BLOCK_ID LZ4F_max256KB
#define SNAPSHOT_HEAD_FIXED 80u
#define SNAPSHOT_HEAD_TERM 16u
#define SNAPSHOT_HEAD_MIN (SNAPSHOT_HEAD_FIXED + 8u)
#define SNAPSHOT_HEAD_MAX (SNAPSHOT_HEAD_MIN + SNAPSHOT_CONFIGURATION_MAX + SNAPSHOT_TERMS_MAX * SNAPSHOT_HEAD_TERM)
#define SNAPSHOT_PAGES_MAX 0xfffffffeu /* SQLite's own limit */

#define SNAPSHOT_NEW "snapshot.new"
#define SNAPSHOT_HEAD "snapshot.head"
#define SNAPSHOT_HEAD_NEW "snapshot.head.new"
#define SNAPSHOT_PART "snapshot.part"
#define SNAPSHOT_PART_STATE "snapshot.part.state"

/* NULL if a snapshot can be made of it, else what is wrong. */
const char *snapshot_meta_check(const struct snapshot_meta *meta);
uint32_t snapshot_head_size(const struct snapshot_meta *meta);
/* `head` has snapshot_head_size bytes. */
void snapshot_head_encode(const struct snapshot_meta *meta, uint8_t *head);
/* Of the first SNAPSHOT_HEAD_FIXED bytes: the size of the whole head, 0 if that is no snapshot. */
uint32_t snapshot_head_peek(const uint8_t *head);
/*
** Of a whole head, verified before any of it is used: *meta but its terms, which come as bytes for
** snapshot_terms_decode; the configuration stays in `head`. 0, -EILSEQ or -EPROTO (another version);
** *what is wrong, and where.
*/
int snapshot_head_decode(const uint8_t *head, uint32_t size, struct snapshot_meta *meta, const uint8_t **terms,
                         const char **what, uint32_t *offset);
void snapshot_terms_decode(const uint8_t *bytes, uint32_t n, struct snapshot_term *terms);

/*
** A durable copy of the head of the snapshot in `file`, in place of the one of the snapshot before. Before that file gets its name.
** Negative errno.
*/
int snapshot_keep_head(struct os *os, const char *folder, struct os_file *file);
/* The copy, if it is of the snapshot that `path` names: its bytes are the caller's to free. NULL: there is none. */
uint8_t *snapshot_find_head(struct os *os, const char *path, uint32_t *size);
/* The index in the name of a snapshot, without its folder; 0: another name. */
uint64_t snapshot_name_index(const char *name);

/* How the frame is written, and thus what a reader takes. */
LZ4F_preferences_t snapshot_frame(uint64_t content_size);

/* folder/name; -ENAMETOOLONG with a sentence. `text` may be NULL. */
int snapshot_join(const char *folder, const char *name, char path[OS_PATH_MAX], char *text);
/* Writes the sentence (`text` may be NULL) and gives the error back, EDQUOT as ENOSPC. */
__attribute__((format(printf, 3, 4))) int snapshot_say(char *text, int error, const char *format, ...);
const char *snapshot_error_text(int error);

#endif
