/* One command of a golden script; the list of them is at the top of commands.c. */
#ifndef BALSA_TESTS_TRACE_COMMANDS_H
#define BALSA_TESTS_TRACE_COMMANDS_H

#include "world.h"

/* What came of it is added to the world's output; so is what is wrong with the command, as ERROR. */
void trace_run_command(struct world *world, const char *line);

#endif
