/*
** What SQL sees of Balsa, registered on every connection: functions.c, tables.c and compare_table.c.
*/
#ifndef BALSA_FUNCTIONS_H
#define BALSA_FUNCTIONS_H

#include "../vfs/sqlite.h"

/* SQLite error codes. */
int balsa_functions_register(sqlite3 *db);
int balsa_tables_register(sqlite3 *db);
int balsa_compare_register(sqlite3 *db);

#endif
