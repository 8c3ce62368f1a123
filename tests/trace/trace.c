/*
** Golden scripts for the Raft core: runs each tests/trace/…txt that it is given and compares.
**
**   trace [--rewrite] script.txt …
**
** A script is comments (#), commands (> …) and, below each command, the output it must have, up to
** the next command, comment or empty line. A script is right because of what Raft says, not because
** the core printed it: read what --rewrite writes before you keep it.
**
** The commands are those of commands.c.
*/
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"

#define SCRIPTS_MAX 200
#define SCRIPT_BYTES_MAX (1 << 20)

static bool rewrite;

/* ---- Scripts ---- */

static char *read_file(const char *path) {
  FILE *file = fopen(path, "r");
  if (!file) {
    return NULL;
  }
  char *text = malloc(SCRIPT_BYTES_MAX);
  assert_non_null(text);
  const size_t size = fread(text, 1, SCRIPT_BYTES_MAX - 1, file);
  text[size] = 0;
  (void)fclose(file);
  return text;
}

struct script {
  const char *path;
  struct world world;
  char *result; /* the script as it would be with the output that came */
  size_t n_result;
  int n_differences;
};

static void keep(struct script *script, const char *text, size_t size) {
  script->result = realloc(script->result, script->n_result + size + 1);
  assert_non_null(script->result);
  memcpy(script->result + script->n_result, text, size);
  script->n_result += size;
  script->result[script->n_result] = 0;
}

static void print_lines(char sign, const char *text) {
  while (*text) {
    const size_t length = strcspn(text, "\n");
    print_error("  %c %.*s\n", sign, (int)length, text);
    text += length + (text[length] == '\n');
  }
}

/* Runs the command and compares with what stands below it: `expected` up to its end. */
static void run_and_compare(struct script *script, const char *line, const char *expected, size_t n_expected) {
  struct world *world = &script->world;
  world->n_output = 0;
  trace_run_command(world, line);
  const char *actual = world->n_output ? world->output : "";
  keep(script, actual, world->n_output);
  if (world->n_output == n_expected && strncmp(actual, expected, n_expected) == 0) {
    return;
  }
  script->n_differences++;
  if (!rewrite) {
    char *copy = strndup(expected, n_expected);
    assert_non_null(copy);
    print_error("%s: > %s\n", script->path, line);
    print_lines('-', copy);
    print_lines('+', world->n_output ? world->output : "");
    free(copy);
  }
}

static const char *next_line(const char *at) {
  const char *end = strchr(at, '\n');
  return end ? end + 1 : at + strlen(at);
}

static void run_text(struct script *script, const char *text) {
  while (*text) {
    const char *end = next_line(text);
    keep(script, text, (size_t)(end - text));
    if (text[0] != '>') {
      text = end;
      continue;
    }
    char line[512];
    (void)snprintf(line, sizeof line, "%.*s", (int)strcspn(text + 1, "\n"), text + 1);
    const char *expected = end;
    while (*end && *end != '>' && *end != '#' && *end != '\n') {
      end = next_line(end);
    }
    run_and_compare(script, line + strspn(line, " "), expected, (size_t)(end - expected));
    text = end;
  }
}

static void rewrite_file(const struct script *script) {
  FILE *file = fopen(script->path, "w");
  assert_non_null(file);
  assert_int_equal(fwrite(script->result, 1, script->n_result, file), script->n_result);
  assert_int_equal(fclose(file), 0);
}

static void script_has_the_output_it_says(void **state) {
  struct script script = {.path = *state};
  char *text = read_file(script.path);
  if (!text) {
    fail_msg("%s: cannot be read", script.path);
  }
  run_text(&script, text);
  if (rewrite && script.n_differences > 0) {
    rewrite_file(&script);
    print_message("%s: rewritten\n", script.path);
  }
  const int differences = rewrite ? 0 : script.n_differences;
  world_close(&script.world);
  free(script.result);
  free(text);
  if (differences > 0) {
    fail_msg("%s: %d commands had another output", script.path, differences);
  }
}

int main(int argc, char **argv) {
  struct CMUnitTest tests[SCRIPTS_MAX];
  size_t n = 0;
  for (int i = 1; i < argc && n < SCRIPTS_MAX; i++) {
    if (strcmp(argv[i], "--rewrite") == 0) {
      rewrite = true;
      continue;
    }
    tests[n++] = (struct CMUnitTest){
        .name = argv[i], .test_func = script_has_the_output_it_says, .initial_state = argv[i]};
  }
  if (n == 0) {
    (void)fprintf(stderr, "usage: trace [--rewrite] script.txt …\n");
    return 2;
  }
  return _cmocka_run_group_tests("trace", tests, n, NULL, NULL);
}
