"""A node that lives in a sqlite3 shell: `.load`, `.open`, and SQL through a pipe, as a user would."""

import json
import re
import subprocess
import threading

import harness


class ShellNode(harness.Node):
    """Answers the same questions as harness.Node; no writers of its own."""

    program = "sqlite3"

    def start(self):
        self.runs += 1
        self.lines = []
        self.arrived = threading.Condition()
        self.turn = threading.RLock()
        self.marks = 0
        self.refused = False
        self.process = harness.start_process(
            [self.program, "-batch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=harness.clean_environment(self.cluster.library),
        )
        threading.Thread(target=self.listen_lines, args=(self.process, self.lines), daemon=True).start()
        self.cluster.tell_proxy(pids={self.number: self.process.pid})
        for line in self.send(
            f".load {quoted(re.sub('[.]so$', '', self.cluster.extension))}",
            f".open {quoted(self.uri())}",
            ".timeout 2000",
            ".mode json",
        ):
            raise harness.Problem(f"node {self.number}: {line}")

    def listen_lines(self, process, lines):
        for line in process.stdout:
            with self.arrived:
                lines.append(line.decode(errors="replace").rstrip("\n"))
                self.arrived.notify_all()
        with self.arrived:
            lines.append(None)
            self.arrived.notify_all()

    def send(self, *commands, limit=harness.ANSWER_LIMIT_S):
        """Runs dot commands or statements; what they print, as lines. CommandError: the shell says error."""
        with self.turn:
            self.marks += 1
            mark = f"@@ {self.marks}"
            try:
                self.process.stdin.write(("\n".join(commands) + f"\n.print {mark}\n").encode())
                self.process.stdin.flush()
            except OSError as error:
                raise harness.Problem(f"node {self.number} is gone: {error}") from error
            with self.arrived:
                done = lambda: mark in self.lines or None in self.lines
                if not self.arrived.wait_for(done, limit):
                    raise harness.Problem(f"node {self.number} did not answer within {limit} s: {commands[-1]}")
                if mark not in self.lines:
                    raise harness.Problem(f"node {self.number} has ended, status {self.process.poll()}: {self.lines[:-1]}")
                end = self.lines.index(mark)
                lines = self.lines[:end]
                del self.lines[: end + 1]
        for line in lines:
            found = re.match(r"(?:Error|(?:Runtime|Parse) error)\b.*?: (.*?)(?: \((\d+)\))?$", line)
            if found:
                self.refused = True
                raise harness.CommandError(f"node {self.number}: {found[1]}", int(found[2]) if found[2] else None)
        return lines

    def rows(self, sql, limit=harness.ANSWER_LIMIT_S):
        """The rows of one statement, as dicts."""
        text = "\n".join(self.send(sql + ";", limit=limit))
        return json.loads(text) if text else []

    def status(self, limit=harness.ANSWER_LIMIT_S):
        rows = self.rows("SELECT * FROM balsa_status", limit)
        return rows[0] if rows else {}

    def sql(self, sql, *args, conn=None, limit=harness.ANSWER_LIMIT_S):
        for arg in args:
            sql = sql.replace("?", literal(arg), 1)
        return [list(row.values()) for row in self.rows(sql, limit)]

    def do(self, command, limit=harness.ANSWER_LIMIT_S, **arguments):
        if command == "sql":
            return self.sql(arguments["sql"], *arguments.get("args", ()), limit=limit)
        raise harness.Problem(f"a shell has no {command}")

    def errors(self):
        return ""

    def quit(self, limit=15):
        """End of input: the shell closes its connection and exits; the node stops in order."""
        self.process.stdin.close()
        try:
            status = self.process.wait(limit)
            # A shell that reported an error on the way exits with 1.
            return 0 if self.refused and status == 1 else status
        except subprocess.TimeoutExpired as error:
            raise harness.Problem(f"node {self.number} did not end within {limit} s of a normal exit") from error


def literal(value):
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


def quoted(argument):
    """An argument of a dot command."""
    return '"' + argument.replace("\\", "\\\\").replace('"', '\\"') + '"'
