#include <inttypes.h>
#include <stdarg.h>

#include "sim.h"

void sim_trace_add(struct sim *sim, const char *format, ...) {
  struct sim_trace_line *line = &sim->trace.lines[sim->trace.n++ % SIM_TRACE_MAX];
  line->at = sim->now;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line->text, sizeof line->text, format, arguments);
  va_end(arguments);
  if (sim->trace.is_live) printf("%10.3f ms  %s\n", (double)line->at / 1e6, line->text);
}

void sim_trace_print(const struct sim *sim) {
  const struct sim_trace *trace = &sim->trace;
  if (trace->is_live) return;
  for (uint64_t i = trace->n > SIM_TRACE_MAX ? trace->n - SIM_TRACE_MAX : 0; i < trace->n; i++) {
    const struct sim_trace_line *line = &trace->lines[i % SIM_TRACE_MAX];
    printf("%10.3f ms  %s\n", (double)line->at / 1e6, line->text);
  }
}

const char *sim_message_text(const struct raft_message *message, char *text, size_t size) {
  static const char *const names[] = {"?",
                                      "pre-vote",
                                      "pre-vote result",
                                      "vote",
                                      "vote result",
                                      "append",
                                      "append result",
                                      "heartbeat",
                                      "heartbeat result",
                                      "read index",
                                      "read index result",
                                      "snapshot",
                                      "snapshot result",
                                      "timeout now"};
  const char *name = message->type < sizeof names / sizeof names[0] ? names[message->type] : "?";
  snprintf(text, size, "%s%s term %" PRIu64 " index %" PRIu64 "/%" PRIu64 " commit %" PRIu64 " round %" PRIu64 " n %u",
           name, message->reject ? " (no)" : "", message->term, message->index, message->log_term, message->commit,
           message->round, message->n_entries);
  return text;
}
