/*
** SQLite for vfs/, snapshot/ and ext/. The same sources are built twice: into the loadable extension,
** where every call goes through the API pointer that the host passed in, and with SQLITE_CORE into
** libbalsa, which links SQLite.
*/
#ifndef BALSA_VFS_SQLITE_H
#define BALSA_VFS_SQLITE_H

#include <sqlite3ext.h>

#ifndef SQLITE_CORE
SQLITE_EXTENSION_INIT3
#endif

#endif
