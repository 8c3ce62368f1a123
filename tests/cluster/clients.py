#!/usr/bin/python3
"""The main job by every client: three nodes, a killed leader, and all equal again.

    clients.py [--library folder-with-another-libsqlite3.so.0] [--shell program]

By the sqlite3 shell and by Debian's python3; python3 once more under the SQLite of --library. (The
shell starts only with the very library it was built with: name another one by --shell.)
"""

import os

import harness
import shell

ROWS = 300


def insert(node, first, count):
    """Rows first … first+count-1, each its own transaction."""
    for ident in range(first, first + count):
        node.sql("INSERT INTO load(id, body) VALUES(?, ?)", ident, harness.body_of(ident))


def main_job(report, folder, chosen, name, kind, library):
    os.makedirs(folder)
    cluster = harness.Cluster(report, folder, 3, chosen.extension, kind=kind, library=library)
    leader = cluster.start()
    version = leader.sql("SELECT sqlite_version()")[0][0]
    insert(leader, 1, ROWS)
    leader.kill()
    successor = cluster.wait_leader()
    insert(successor, ROWS + 1, ROWS)
    leader.start()
    statuses = cluster.check_equal()
    for node in cluster.nodes:
        rows = node.sql("SELECT count(*), count(DISTINCT id), min(id), max(id) FROM load")[0]
        report.check(rows == [2 * ROWS, 2 * ROWS, 1, 2 * ROWS], f"{name}: node {node.number} has every row once", rows)
    cluster.check_bodies()
    follower = next(node for node in cluster.nodes if node is not cluster.wait_leader())
    try:
        insert(follower, 0, 1)
        report.check(False, f"{name}: a follower refuses a write")
    except harness.CommandError as error:
        report.check((error.code or 0) & 0xFF == 8, f"{name}: a follower says READONLY", error)
    leaves = cluster.wait_leader()
    report.check(leaves.quit() == 0, f"{name}: a node that leads exits in order")
    leaves.start()
    cluster.check_equal()
    harness.check_stopped(cluster)
    report.say(f"{name}, SQLite {version}: equal at index {statuses[0]['applied_index']} after a killed leader")


def test(report, folder, chosen):
    kinds = [("sqlite3 shell", shell.ShellNode), ("python3", harness.Node)]
    shell.ShellNode.program = chosen.shell
    for library in [None] + ([os.path.abspath(chosen.library)] if chosen.library else []):
        for name, kind in kinds[1:] if library else kinds:
            where = os.path.join(folder, name.replace(" ", "-") + ("-library" if library else ""))
            main_job(report, where, chosen, name, kind, library)


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__, library=None, shell="sqlite3"))
