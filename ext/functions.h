/*
** What SQL sees of Balsa, registered on every connection: functions.c and tables.c.
*/
#ifndef BALSA_FUNCTIONS_H
#define BALSA_FUNCTIONS_H

#include "../vfs/sqlite.h"

/* SQLite error codes. */
int balsa_functions_register(sqlite3 *db);
int balsa_tables_register(sqlite3 *db);

#endif
