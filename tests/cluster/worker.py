#!/usr/bin/python3
"""One node: an ordinary Python program that loads Balsa and writes to its database.

    worker.py '{"extension": …, "uri": …, "log": …, "node": 1, "run": 1}'

Commands come as JSON lines on stdin, answers go as JSON lines to stdout, each under the number of its
command; commands run at the same time, one thread each. The process ends when stdin does.

What its writers do is written to the log, a line before and a line after each attempt, so that
nothing is lost when the process is killed:

    B id                    an attempt to insert this id begins
    A id outcome code where token      and what it was told
"""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time

LOST = {517, 516, 10 | 0xB2 << 8}
UNKNOWN = {10 | 0xB1 << 8}
BUSY_TIMEOUT_S = 2.0
BACKOFF_S = (0.01, 0.2)

# How a writer puts a row in: by a statement alone; in a transaction (two ways to begin); with a COMMIT
# while another statement of its connection is in the middle of its rows; after a read whose snapshot
# others have left behind, mostly; or together with a counter, which readers compare.
STYLES = ("autocommit", "immediate", "deferred", "cursor", "upgrade", "tally")


def outcome_of(code):
    """What an error code promises about the transaction."""
    if code in LOST:
        return "lost"
    if code in UNKNOWN:
        return "unknown"
    # 1: a node that has just started may not have applied yet that the table was made.
    return {1: "behind", 5: "busy", 8: "readonly", 13: "full"}.get(code & 0xFF, "odd")


def body_of(ident):
    """The 100 bytes that belong to an id."""
    return hashlib.sha512(str(ident).encode()).hexdigest()[:100]


class Worker:
    def __init__(self, config):
        self.config = config
        self.connections = {}
        self.lock = threading.Lock()
        self.output = threading.Lock()
        self.outside_lock = threading.Lock()
        self.log = os.open(config["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.counts = {}
        self.sequence = 0
        self.plain = None
        self.complaints = []
        self.writers = []
        self.stop_writers = threading.Event()
        self.readers = []
        self.stop_readers = threading.Event()
        self.reads = []
        self.watchers = []
        self.stop_watching = threading.Event()
        self.seen = set()
        loader = sqlite3.connect(":memory:")
        loader.enable_load_extension(True)
        loader.load_extension(config["extension"])
        self.loader = loader
        try:
            self.connection("main")
        except sqlite3.Error as error:
            # The connection that could not be opened cannot be asked; any other tells for this thread.
            error.args = (f"{error}: {loader.execute('SELECT balsa_error()').fetchone()[0]}",)
            raise

    def open(self):
        connection = sqlite3.connect(
            self.config["uri"], uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S
        )
        return connection

    def connection(self, name):
        with self.lock:
            if name not in self.connections:
                self.connections[name] = (self.open(), threading.RLock())
            return self.connections[name]

    # ---- Commands ----

    def command_sql(self, sql, args=(), conn="main"):
        connection, lock = self.connection(conn)
        with lock:
            return [list(row) for row in connection.execute(sql, args).fetchall()]

    def command_status(self, conn="status"):
        connection, lock = self.connection(conn)
        with lock:
            cursor = connection.execute("SELECT * FROM balsa_status")
            row = cursor.fetchone()
            return dict(zip([column[0] for column in cursor.description], row)) if row else {}

    def command_step(self, sql, conn):
        """Leaves a cursor open on its first row."""
        connection, lock = self.connection(conn)
        with lock:
            cursor = connection.execute(sql)
            row = cursor.fetchone()
            self.connections[conn + " cursor"] = (cursor, lock)
            return list(row) if row else None

    def command_close(self, conn):
        with self.lock:
            pair = self.connections.pop(conn, None)
        if pair:
            with pair[1]:
                pair[0].close()

    def command_in_transaction(self, conn):
        return self.connection(conn)[0].in_transaction

    def command_outcomes(self, tokens):
        connection, lock = self.connection("status")
        with lock:
            return [connection.execute(f"SELECT balsa_outcome({token})").fetchone()[0] for token in tokens]

    def command_counts(self):
        return {"counts": dict(self.counts)}

    def command_results(self):
        with self.lock:
            complaints, self.complaints = self.complaints, []
            return {"counts": dict(self.counts), "complaints": complaints}

    def command_writers(self, count, styles=STYLES[:3], first=0, check_lost=False):
        unknown = set(styles) - set(STYLES)
        if unknown:
            raise ValueError(f"no such style: {unknown}")
        self.stop_writers.clear()
        for i in range(count):
            style = styles[i % len(styles)]
            thread = threading.Thread(target=self.write, args=(first + i, style, check_lost), daemon=True)
            self.writers.append(thread)
            thread.start()

    def command_stop_writers(self, seconds=20):
        """Lets each finish its attempt."""
        self.stop_writers.set()
        deadline = time.monotonic() + seconds
        for thread in self.writers:
            thread.join(max(0, deadline - time.monotonic()))
        stuck = sum(thread.is_alive() for thread in self.writers)
        self.writers = [thread for thread in self.writers if thread.is_alive()]
        return {"stuck": stuck, **self.command_results()}

    def command_readers(self, count, sql, busy_timeout_ms=0):
        self.stop_readers.clear()
        self.reads = []
        for i in range(count):
            thread = threading.Thread(target=self.read, args=(sql, busy_timeout_ms), daemon=True)
            self.readers.append(thread)
            thread.start()

    def command_stop_readers(self):
        self.stop_readers.set()
        for thread in self.readers:
            thread.join()
        self.readers = []
        return summary_of(self.reads, self.complaints)

    def command_watch(self, count):
        """Readers that remember every id they were shown."""
        self.stop_watching.clear()
        for _ in range(count):
            thread = threading.Thread(target=self.watch, daemon=True)
            self.watchers.append(thread)
            thread.start()

    def command_stop_watch(self):
        self.stop_watching.set()
        for thread in self.watchers:
            thread.join()
        self.watchers = []
        seen, self.seen = self.seen, set()
        return sorted(seen)

    def command_libraries(self):
        with open("/proc/self/maps", encoding="ascii") as maps:
            files = sorted({line.split()[-1] for line in maps if "/libsqlite3" in line or "/balsa.so" in line})
        return {"sqlite": sqlite3.sqlite_version, "files": files}

    # ---- Writing ----

    def note(self, *words):
        os.write(self.log, (" ".join(str(word) for word in words) + "\n").encode())

    def complain(self, text):
        with self.lock:
            if len(self.complaints) < 100:
                self.complaints.append(text)

    def count(self, outcome):
        with self.lock:
            self.counts[outcome] = self.counts.get(outcome, 0) + 1

    def write(self, number, style, check_lost):
        """One writing connection: inserts ids of its own until it is told to stop."""
        backoff = BACKOFF_S[0]
        connection, token_before = None, None
        while not self.stop_writers.is_set():
            if connection is None:
                try:
                    connection = self.open()
                except sqlite3.Error as error:
                    self.count("open failed")
                    self.complain(f"open: {error} ({getattr(error, 'sqlite_errorname', '')})")
                    self.stop_writers.wait(BACKOFF_S[1])
                    continue
            ident = self.next_ident(number)
            self.note("B", ident)
            outcome, code, where = self.attempt(connection, style, ident)
            token = "NULL"
            if outcome in ("ok", "lost", "unknown"):
                try:
                    token = connection.execute("SELECT quote(balsa_last_commit())").fetchone()[0]
                except sqlite3.Error as error:
                    self.complain(f"balsa_last_commit after {outcome}: {error}")
                if token == token_before:
                    # It never came to a COMMIT: its snapshot was stale, or it was doomed before.
                    if outcome != "lost":
                        self.complain(f"{ident} was told {outcome} and has no token of its own")
                    outcome, token = "stale" if style == "upgrade" else outcome, "NULL"
                else:
                    token_before = token
            self.note("A", ident, outcome, code, where.replace(" ", "_"), token)
            self.count(outcome)
            if outcome == "odd":
                self.complain(f"{where} of {ident} ({style}): code {code}")
            if outcome == "lost" and check_lost:
                self.check_lost(connection, ident)
            if outcome not in ("ok", "lost", "unknown"):
                self.stop_writers.wait(backoff)
                backoff = min(backoff * 2, BACKOFF_S[1])
            else:
                backoff = BACKOFF_S[0]
        if connection is not None:
            self.check_usable(connection)
            connection.close()

    def check_usable(self, connection):
        """Whatever the connection went through, it reads."""
        deadline = time.monotonic() + 10
        while True:
            try:
                connection.execute("SELECT count(*) FROM load").fetchone()
                if connection.in_transaction:
                    self.complain("a writer's connection is left in a transaction")
                return
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", -1)
                if outcome_of(code) == "behind":
                    return
                if outcome_of(code) != "busy" or time.monotonic() > deadline:
                    self.complain(f"a writer's connection is not usable afterwards: {error} ({code})")
                    return

    def next_ident(self, number):
        """Ids never repeat: node, run of the process, writer and a count."""
        with self.lock:
            self.sequence += 1
            return (self.config["run"] << 40) | (self.config["node"] << 36) | ((number & 0xFF) << 28) | self.sequence

    def attempt(self, connection, style, ident):
        """One transaction: (outcome, extended code, the statement that told it)."""
        insert = "INSERT INTO load(id, body) VALUES(?, ?)"
        values = (ident, body_of(ident))
        cursor = None
        where = "INSERT"
        try:
            if style == "autocommit":
                connection.execute(insert, values)
            else:
                where = "BEGIN"
                connection.execute("BEGIN" if style in ("deferred", "upgrade") else "BEGIN IMMEDIATE")
                if style in ("cursor", "upgrade"):
                    where = "SELECT"
                    cursor = connection.execute("SELECT id FROM load")
                    cursor.fetchone()
                where = "INSERT"
                connection.execute(insert, values)
                if style == "tally":
                    where = "UPDATE"
                    connection.execute("UPDATE tally SET n = n + 1")
                where = "COMMIT"
                connection.execute("COMMIT")
            return "ok", 0, where
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code is None:
                self.complain(f"{where}: an error without a code: {error}")
                return "odd", -1, where
            outcome = outcome_of(code)
            if where == "COMMIT" and outcome in ("lost", "unknown") and connection.in_transaction:
                self.complain(f"COMMIT of {ident} told {outcome} ({code}) and left the transaction open")
            if connection.in_transaction:
                try:
                    connection.execute("ROLLBACK")
                except sqlite3.Error as second:
                    self.complain(f"ROLLBACK after {where} told {code}: {second}")
            return outcome, code, where
        finally:
            if cursor is not None:
                cursor.close()

    def check_lost(self, connection, ident):
        """No snapshot begun after "lost" was told may show it: here, and outside (the controller's turn)."""
        for name, conn in (("its own connection", connection), ("another connection", None)):
            try:
                if conn is None:
                    conn = self.open()
                if conn.execute("SELECT count(*) FROM load WHERE id = ?", (ident,)).fetchone()[0] != 0:
                    self.complain(f"{ident} was told lost and is seen by {name}")
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", -1)
                if outcome_of(code) not in ("busy", "lost"):
                    self.complain(f"reading by {name} after lost: {error} ({code})")
            finally:
                if conn is not None and conn is not connection:
                    conn.close()
        if self.config.get("outside"):
            self.outside(ident)

    def outside(self, ident):
        """Asks a process that knows nothing of Balsa (see outside.py)."""
        with self.outside_lock:
            if self.plain is None:
                here = os.path.dirname(os.path.abspath(__file__))
                self.plain = subprocess.Popen(
                    [sys.executable, os.path.join(here, "outside.py"), self.config["outside"]],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            self.plain.stdin.write(f"SELECT count(*) FROM load WHERE id = {ident}\n")
            self.plain.stdin.flush()
            answer = json.loads(self.plain.stdout.readline())
        if answer.get("rows") != [[0]]:
            self.complain(f"{ident} was told lost; a plain reader then got {answer}")

    # ---- Reading ----

    def read(self, sql, busy_timeout_ms):
        connection = self.open()
        connection.execute(f"PRAGMA busy_timeout={busy_timeout_ms}")
        reads, failures, longest, last = 0, {}, 0.0, None
        began = time.monotonic()
        while not self.stop_readers.is_set():
            start = time.monotonic()
            try:
                row = connection.execute(sql).fetchone()
                longest = max(longest, time.monotonic() - start)
                reads += 1
                if last is not None and row[0] < last:
                    failures["went back"] = failures.get("went back", 0) + 1
                last = row[0]
                if len(row) > 1 and not row[1]:
                    failures["inconsistent"] = failures.get("inconsistent", 0) + 1
            except sqlite3.Error as error:
                name = f"{getattr(error, 'sqlite_errorcode', '?')} {error}"
                failures[name] = failures.get(name, 0) + 1
        seconds = time.monotonic() - began
        connection.close()
        with self.lock:
            self.reads.append({"reads": reads, "failures": failures, "longest_ms": longest * 1000, "seconds": seconds})

    def watch(self):
        connection = self.open()
        seen = set()
        while not self.stop_watching.is_set():
            try:
                seen.update(row[0] for row in connection.execute("SELECT id FROM load ORDER BY rowid DESC LIMIT 8"))
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", -1)
                if outcome_of(code) not in ("busy", "lost", "behind"):
                    self.complain(f"a reader: {error} ({code})")
            self.stop_watching.wait(0.002)
        connection.close()
        with self.lock:
            self.seen |= seen

    # ---- The loop ----

    def answer(self, number, **fields):
        line = json.dumps({"number": number, **fields}, default=repr) + "\n"
        with self.output:
            sys.stdout.write(line)
            sys.stdout.flush()

    def handle(self, number, command, arguments):
        try:
            self.answer(number, result=getattr(self, "command_" + command)(**arguments))
        except sqlite3.Error as error:
            self.answer(number, error=str(error), code=getattr(error, "sqlite_errorcode", None))
        except Exception as error:  # the controller must hear of it, whatever it is
            self.answer(number, error=f"{type(error).__name__}: {error}", code=None)

    def run(self):
        self.answer(0, result="open")
        for line in sys.stdin:
            request = json.loads(line)
            number, command = request.pop("number"), request.pop("command")
            if command == "quit":
                self.stop_writers.set()
                self.stop_readers.set()
                for connection, _ in self.connections.values():
                    connection.close()
                self.answer(number, result="bye")
                return
            threading.Thread(target=self.handle, args=(number, command, request), daemon=True).start()
        os._exit(1)  # the controller is gone


def summary_of(reads, complaints):
    failures = {}
    for one in reads:
        for name, count in one["failures"].items():
            failures[name] = failures.get(name, 0) + count
    return {
        "reads": sum(one["reads"] for one in reads),
        "reads_per_second": sum(one["reads"] / max(one["seconds"], 1e-9) for one in reads),
        "longest_ms": max([one["longest_ms"] for one in reads], default=0),
        "failures": failures,
        "complaints": list(complaints),
    }


def main():
    config = json.loads(sys.argv[1])
    try:
        worker = Worker(config)
    except sqlite3.Error as error:
        print(json.dumps({"number": 0, "error": str(error), "code": getattr(error, "sqlite_errorcode", None)}), flush=True)
        sys.exit(1)
    worker.run()


if __name__ == "__main__":
    main()
