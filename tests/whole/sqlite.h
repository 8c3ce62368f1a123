/*
** SQLite's mutexes are the scheduler's (task.h), and its memory is zeros at first: it writes pages with parts that it never
** set, and what was in that memory before differs between runs. Before any other use of SQLite; once per process.
*/
#ifndef BALSA_TESTS_WHOLE_SQLITE_H
#define BALSA_TESTS_WHOLE_SQLITE_H

void sqlite_begin(void);

#endif
