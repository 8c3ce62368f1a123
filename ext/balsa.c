/*
** Balsa's entry points: the loadable extension, and libbalsa.
**
** Compile: make                        (build/balsa.so, build/libbalsa.a, build/libbalsa.so)
** Load:    .load ./balsa               in the sqlite3 shell, or sqlite3_load_extension() from any program;
**          balsa_init();               in a program that links libbalsa
** Use:     file:app.db?vfs=balsa       as the name of a database
**
** The extension stays loaded until the process ends: nodes outlive the connection that loaded it.
*/
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "../vfs/sqlite.h"
#include "balsa.h"
#include "functions.h"
#include "node.h"

#ifndef SQLITE_CORE
SQLITE_EXTENSION_INIT1
#endif

#define SQLITE_OLDEST 3039000

static pthread_mutex_t init_mutex = PTHREAD_MUTEX_INITIALIZER;
static bool is_initialised; /* init_mutex */

/*
** A process may hold this code twice: libbalsa and balsa.so, or two copies of balsa.so. Each copy answers with an
** address of its own, and the dynamic linker finds the first.
*/
static const char own_mark = 0;
BALSA_API const void *balsa_process_mark(void);
const void *balsa_process_mark(void) {
  return &own_mark;
}

static const char *other_copy(void) {
  const void *(*mark)(void);
  *(void **)&mark = dlsym(RTLD_DEFAULT, "balsa_process_mark");
  if (mark && mark() != &own_mark)
    return "Balsa is in this process already, from another file: load balsa.so or link libbalsa, one of them and once";
  if (sqlite3_vfs_find(VFS_NAME))
    return "a VFS called balsa is registered already: load balsa.so or link libbalsa, one of them and once";
  return NULL;
}

/* NULL: this SQLite will do. */
static const char *unfit_library(void) {
  if (sqlite3_libversion_number() < SQLITE_OLDEST) return "Balsa needs SQLite 3.39 or newer";
  if (!sqlite3_threadsafe()) return "Balsa needs a SQLite that is built thread-safe (SQLITE_THREADSAFE=1 or 2)";
  sqlite3_mutex *mutex = sqlite3_mutex_alloc(SQLITE_MUTEX_FAST);
  if (!mutex) return "Balsa needs threads, and this SQLite was configured for one (SQLITE_CONFIG_SINGLETHREAD)";
  sqlite3_mutex_free(mutex);
  return NULL;
}

static int register_on_connection(sqlite3 *db, char **error, const struct sqlite3_api_routines *api) {
  (void)error, (void)api;
  int code = balsa_functions_register(db);
  return code == SQLITE_OK ? balsa_tables_register(db) : code;
}

/* init_mutex held. */
static int init_once(const char **why) {
  if (is_initialised) return SQLITE_OK;
  *why = unfit_library();
  if (!*why) *why = other_copy();
  if (*why) return SQLITE_ERROR;
  int code = node_library_init();
  if (code == SQLITE_OK) code = sqlite3_auto_extension((void (*)(void))register_on_connection);
  is_initialised = code == SQLITE_OK;
  return code;
}

static int init(const struct sqlite3_api_routines *api, const char **why) {
  int code = SQLITE_ERROR;
  *why = NULL;
  pthread_mutex_lock(&init_mutex);
#ifndef SQLITE_CORE
  if (sqlite3_api && sqlite3_api != api) {
    *why = "this process has two SQLite libraries, and Balsa serves the other one: load it into one of them only";
  } else {
    sqlite3_api = api;
    code = init_once(why);
  }
#else
  if (api && (void *)api->malloc != (void *)sqlite3_malloc)
    *why = "this process has two SQLite libraries, and libbalsa is linked with the other one: load balsa.so instead";
  else
    code = init_once(why);
#endif
  pthread_mutex_unlock(&init_mutex);
  return code;
}

int balsa_init(void) {
#ifndef SQLITE_CORE
  return SQLITE_MISUSE; /* the loadable extension learns its SQLite from sqlite3_load_extension only */
#else
  const char *why;
  int code = init(NULL, &why);
  if (why) vfs_log(code, why);
  return code;
#endif
}

int balsa_stop(sqlite3 *db, const char *schema) {
  struct vfs_connection *connection = vfs_connection_find(db, schema);
  if (!connection) return SQLITE_ERROR;
  if (vfs_connection_is_writing(connection)) {
    vfs_connection_set_error(connection, "balsa_stop: this connection has a write transaction open: end it first");
    return SQLITE_MISUSE;
  }
  struct node *node = node_of_connection(connection);
  node_stop(node, node_now(node) + NODE_STOP_MS_MAX * OS_MS);
  return SQLITE_OK;
}

/* A library that refuses has no sqlite3_mprintf to say why with, unless through the pointer that it was given. */
static char *copy_text(const struct sqlite3_api_routines *api, const char *text) {
  return api ? api->mprintf("%s", text) : NULL;
}

int sqlite3_balsa_init(sqlite3 *db, char **error, const struct sqlite3_api_routines *api) {
  const char *why = NULL;
  int code = init(api, &why);
  if (code == SQLITE_OK) code = register_on_connection(db, error, api);
  if (code == SQLITE_OK) return SQLITE_OK_LOAD_PERMANENTLY;
  if (error && why) *error = copy_text(api, why);
  return code;
}
