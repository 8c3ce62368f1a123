#!/usr/bin/python3
"""A plain sqlite3 shell sits on a node's database while the node ends and starts again.

    idle_shell.py

Idle, it is in nobody's way: the node starts in place, and the shell sees what is true then. In a read transaction it
keeps its snapshot: the start waits for it, and after a while says whose it is.
"""

import subprocess
import threading

import harness

ROWS = "SELECT count(*) || ' ' || sum(a) FROM t"


class Shell:
    """The real one; it knows nothing of Balsa."""

    def __init__(self, path):
        self.process = harness.start_process(
            ["sqlite3", "-batch", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def ask(self, sql):
        """What it prints."""
        self.process.stdin.write(sql + ";\n.print @\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line == "@\n":
                return "\n".join(lines)
            lines.append(line.rstrip("\n"))
        raise harness.Problem(f"the shell has ended: {lines}")

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)


def end(node, way):
    if way == "kill":
        node.kill()
    else:
        node.quit()


def insert(cluster, value):
    """On whoever leads by now."""

    def is_in():
        try:
            cluster.wait_leader().sql("INSERT INTO t VALUES(?)", value)
            return True
        except harness.CommandError:
            return False

    cluster.wait_for("an insert", is_in, 30)


def check_sees(report, cluster, node, shell, what):
    cluster.wait_equal()
    told, true = shell.ask(ROWS), node.sql(ROWS)[0][0]
    report.check(told == true, f"the shell sees what is true {what}", f"{told}, not {true}")
    report.check(shell.ask("PRAGMA integrity_check") == "ok", f"the shell finds nothing wrong {what}")


def idle(report, cluster, node, way):
    shell = Shell(node.database)
    check_sees(report, cluster, node, shell, f"before a {way}")
    end(node, way)
    insert(cluster, 2)
    node.start()
    check_sees(report, cluster, node, shell, f"after a {way} and a start beside it")
    insert(cluster, 3)
    check_sees(report, cluster, node, shell, f"when the node goes on after a {way}")
    notice = node.status()["notice"]
    report.check(notice is None, f"nothing is kept aside after a {way} beside an idle shell", notice)
    shell.close()


def reading(report, cluster, node, way):
    shell = Shell(node.database)
    before = shell.ask(f"BEGIN; {ROWS}")
    end(node, way)
    insert(cluster, 4)
    try:
        node.start()
        refusal = "started"
    except (harness.Problem, harness.CommandError) as problem:
        refusal = str(problem)
    named = "is in a read transaction of" in refusal and f"process {shell.process.pid} (sqlite3)" in refusal
    report.check(named, f"a start beside a reader after a {way} says whose transaction it is", refusal)
    report.check(shell.ask(ROWS) == before, "its snapshot stays what it was")
    threading.Timer(1, lambda: shell.process.stdin.write("COMMIT;\n") and shell.process.stdin.flush()).start()
    node.start()  # waits for it
    check_sees(report, cluster, node, shell, f"when its transaction has ended after a {way}")
    shell.close()


def test(report, folder, chosen):
    cluster = harness.Cluster(report, folder, 3, chosen.extension)
    cluster.start().sql("CREATE TABLE t(a)")
    insert(cluster, 1)
    cluster.wait_equal()
    for way in ("kill", "quit"):
        leader = cluster.wait_leader()
        idle(report, cluster, leader, way)
        idle(report, cluster, next(node for node in cluster.nodes if node is not cluster.wait_leader()), way)
        reading(report, cluster, next(node for node in cluster.nodes if node is not cluster.wait_leader()), way)
        report.say(f"a node was started beside a shell after a {way}, idle and in a transaction")
    harness.check_stopped(cluster)


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__))
