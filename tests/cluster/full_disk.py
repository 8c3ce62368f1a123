#!/usr/bin/python3
"""A real disk that is full to its last byte: a small tmpfs for each node. Needs the right to mount; says so and ends
well where that is missing.

    full_disk.py --megabytes 24

A node is written to until it answers SQLITE_FULL, then the rest of its disk is filled from outside. Everything
acknowledged can be read, nothing refused is there, and no outcome is unknown; so it is after a kill and a restart on
the full disk; and it goes on by itself when there is room. Then a follower's disk is full, and the others go on.
"""

import os
import subprocess
import time

import harness

FULL = 13
LIMIT = 60
mounted = []


def mount(folder, megabytes):
    os.makedirs(folder)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True,
                          text=True, check=False)
    if done.returncode == 0:
        mounted.append(folder)
    return done.returncode == 0, done.stderr.strip()


def fill(folder):
    """The rest of the disk."""
    with open(os.path.join(folder, "junk"), "ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


def make_room(folder):
    os.remove(os.path.join(folder, "junk"))


def insert(node, body):
    """Of so many random bytes; the result code, 0 if it is acknowledged."""
    try:
        node.sql("INSERT INTO t(body) VALUES (randomblob(?))", body)
        return 0
    except harness.CommandError as error:
        return error.code


def write_until_full(report, node, rows):
    """Large rows, then small ones. How many there are now."""
    for size in (100000, 3000, 10):
        for _ in range(100000):
            code = insert(node, size)
            if code:
                break
            rows += 1
        report.check(code == FULL, f"a write of {size} bytes on a full disk answers SQLITE_FULL", code)
    return rows


def count(node):
    return node.sql("SELECT count(*) FROM t")[0][0]


def write_again(cluster, node, rows):
    cluster.wait_for("a write when there is room", lambda: insert(node, 3000) == 0, LIMIT)
    return rows + 1


def one_node(chosen, report, folder):
    cluster = harness.Cluster(report, folder, 1, chosen.extension, options={"snapshot_threshold": "2M"})
    node = cluster.nodes[0]
    disk = os.path.join(node.folder, "disk")
    good, why = mount(disk, chosen.megabytes)
    if not good:
        report.check(True, "skipped")
        report.say(f"SKIPPED: no tmpfs can be mounted here: {why}")
        return False
    node.database = os.path.join(disk, "app.db")
    cluster.start()
    cluster.wait_leader()
    node.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, body)")
    rows = write_until_full(report, node, 0)
    fill(disk)
    for what in ("on a full disk", "after a kill and a restart on it", "after another one"):
        report.check(count(node) == rows, f"what was acknowledged is there {what}", (count(node), rows))
        report.check(node.sql("PRAGMA integrity_check") == [["ok"]], f"the database is whole {what}")
        report.check(insert(node, 100000) == FULL, f"a write {what} answers SQLITE_FULL")
        sentence = node.sql("SELECT balsa_error()")[0][0] or ""
        report.check(node.database in sentence and "room" in sentence, f"the sentence names the file {what}", sentence)
        node.kill()
        node.start()
        cluster.wait_leader()
        fill(disk)  # what the WAL took
    make_room(disk)
    rows = write_again(cluster, node, rows)
    report.check(count(node) == rows, "what was acknowledged is there when there is room", (count(node), rows))
    report.check(node.sql("PRAGMA integrity_check") == [["ok"]], "the database is whole when there is room")
    cluster.wait_for("ready", lambda: node.status()["state"] == "ready", LIMIT)
    node.quit()
    report.say(f"a node with {rows} rows on a full disk of {chosen.megabytes} MiB")
    return True


def a_follower(chosen, report, folder):
    cluster = harness.Cluster(report, folder, 3, chosen.extension, options={"snapshot_threshold": "1M"})
    for node in cluster.nodes:
        disk = os.path.join(node.folder, "disk")
        mount(disk, chosen.megabytes)
        node.database = os.path.join(disk, "app.db")
    cluster.start()
    leader = cluster.wait_leader()
    leader.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, body)")
    cluster.wait_equal(LIMIT)
    term = leader.status()["term"]
    follower = next(node for node in cluster.nodes if node is not leader)
    disk = os.path.dirname(follower.database)
    fill(disk)
    rows = 0
    for _ in range(300):
        report.check(insert(leader, 3000) == 0, "the others go on beside a follower whose disk is full")
        rows += 1
    report.check(follower.alive, "a follower whose disk is full lives on", follower.errors())
    report.check(leader.status()["term"] == term, "and does not disturb the leader")
    make_room(disk)
    cluster.check_equal(LIMIT)
    report.check(count(follower) == rows, "it has everything when there is room", (count(follower), rows))
    for node in cluster.nodes:
        node.quit()
    report.say("a follower whose disk was full has caught up")


def test(report, folder, chosen):
    try:
        if one_node(chosen, report, os.path.join(folder, "one")):
            a_follower(chosen, report, os.path.join(folder, "three"))
    finally:
        harness.stop_all()
        for disk in mounted:
            subprocess.run(["umount", "-l", disk], check=False)


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__, megabytes=24))
