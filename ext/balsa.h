/*
** Balsa: SQLite, replicated with Raft. The public header of libbalsa; the same error codes count for
** the loadable extension.
*/
#ifndef BALSA_H
#define BALSA_H

#include <sqlite3.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BALSA_VERSION "0.1.0"
#define BALSA_API __attribute__((visibility("default")))

/*
** What a COMMIT (or a statement that commits by itself) can answer, as extended result codes:
**
**   SQLITE_OK               durable on a majority of nodes
**   SQLITE_BUSY_SNAPSHOT    517, a statement that commits by itself was lost, for certain: run it again
**   SQLITE_ABORT_ROLLBACK   516, an explicit COMMIT was lost, for certain: run the transaction again
**   BALSA_IOERR_LOST        lost, for certain, while other statements of the connection were in progress:
**                           reset them, then run the transaction again
**   BALSA_IOERR_UNKNOWN     outcome unknown so far: SELECT balsa_outcome(balsa_last_commit()) tells later
**   SQLITE_READONLY         another node leads (SELECT leader_address FROM balsa_status)
**   SQLITE_BUSY             nobody leads, or the queue of writers is longer than the time-out: try again
**   SQLITE_FULL             a disk is full
**
** SELECT balsa_error() gives the sentence for the last one.
*/
#define BALSA_IOERR_UNKNOWN (SQLITE_IOERR | (0xB1 << 8))
#define BALSA_IOERR_LOST (SQLITE_IOERR | (0xB2 << 8))

/*
** Registers the VFS "balsa" and, for every connection opened from now on, the SQL functions and virtual
** tables. Once per process, before the first connection to a replicated database; calling it again
** does nothing. Any thread. SQLite error code.
*/
BALSA_API int balsa_init(void);

/*
** Stops the node of a connection's database in order, like SELECT balsa_stop(): at most 2 s. Its other
** connections get errors from then on. `schema` NULL: the first Balsa database of the connection.
*/
BALSA_API int balsa_stop(sqlite3 *db, const char *schema);

/* The entry point that `.load ./balsa` calls. */
struct sqlite3_api_routines;
BALSA_API int sqlite3_balsa_init(sqlite3 *db, char **error, const struct sqlite3_api_routines *api);

#ifdef __cplusplus
}
#endif

#endif
