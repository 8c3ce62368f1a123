#!/usr/bin/python3
"""A reader that knows nothing of Balsa: plain SQLite in a process of its own.

    outside.py app.db              one statement per line on stdin, a JSON line with its rows for each
    outside.py app.db --loop SQL   runs it until stdin ends, then prints a summary

Each statement runs on the same connection, without a busy time-out: it may neither wait nor fail.
"""

import json
import os
import select
import sqlite3
import sys
import time


def connect(path):
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=0)


def answer_lines(path):
    connection = None
    for line in sys.stdin:
        try:
            if connection is None:
                connection = connect(path)
            answer = {"rows": connection.execute(line).fetchall()}
        except sqlite3.Error as error:
            answer = {"error": str(error), "code": getattr(error, "sqlite_errorcode", None)}
        print(json.dumps(answer, default=repr), flush=True)


def loop(path, sql):
    connection = connect(path)
    reads, longest, failures, last = 0, 0.0, {}, None
    began = time.monotonic()
    while True:
        if select.select([sys.stdin], [], [], 0)[0] and not os.read(0, 1):
            break
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
    print(json.dumps({"reads": reads, "seconds": seconds, "longest_ms": longest * 1000, "failures": failures}))


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[2] == "--loop":
        loop(sys.argv[1], sys.argv[3])
    else:
        answer_lines(sys.argv[1])
