#!/usr/bin/python3
"""Readers beside a full-speed load: on a follower that applies it, and on the leader that takes it.

    follower_readers.py --seconds 10

Readers of the node's own process and plain processes without Balsa. On the follower they have no busy
time-out: none may fail and none may wait. Each read compares a counter with the rows that it counts,
which every transaction changes together; and what one reader sees never goes back.
"""

import json
import os
import subprocess
import threading
import time

import harness

WRITERS = 16
INSIDE, OUTSIDE = 4, 2
COMPARE = "SELECT n, (SELECT max(rowid) FROM load) = n FROM tally"


def start_outside(node):
    return harness.start_process(
        [harness.PYTHON, os.path.join(harness.HERE, "outside.py"), node.database, "--loop", COMPARE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def summary_of(reader):
    output, _ = reader.communicate(timeout=30)
    return json.loads(output)


def told(what, reads, per_second, longest_ms, failures):
    return f"{what}: {reads} reads, {per_second:.0f}/s, longest {longest_ms:.1f} ms, failures {failures or 'none'}"


def load(report, cluster, leader, reading, seconds, busy_timeout_ms):
    """Full load on the leader while `reading` is read. Checks that no reader fails."""
    leader.do("writers", count=WRITERS, styles=("tally",))
    before, began = harness.ok_count(cluster), time.monotonic()
    reading.do("readers", count=INSIDE, sql=COMPARE, busy_timeout_ms=busy_timeout_ms)
    outside = [start_outside(reading) for _ in range(OUTSIDE)]
    threading.Event().wait(seconds)
    inside = reading.do("stop_readers", 60)
    plain = [summary_of(reader) for reader in outside]
    rate = (harness.ok_count(cluster) - before) / (time.monotonic() - began)
    harness.stop_writers(cluster)
    where = "the leader" if reading is leader else "a follower"
    report.say(f"{rate:.0f} transactions/s by {WRITERS} writers beside the readers on {where}")
    report.say(told(f"{INSIDE} readers in the process", inside["reads"], inside["reads_per_second"],
                    inside["longest_ms"], inside["failures"]))
    report.check(inside["reads"] > 0 and not inside["failures"], f"readers in the process of {where}", inside)
    for reader in plain:
        report.say(told("a plain process", reader["reads"], reader["reads"] / reader["seconds"],
                        reader["longest_ms"], reader["failures"]))
        report.check(reader["reads"] > 0 and not reader["failures"], f"plain readers beside {where}", reader)


def test(report, folder, chosen):
    cluster = harness.Cluster(report, folder, 3, chosen.extension)
    leader = cluster.start()
    leader.sql("CREATE TABLE tally(n INTEGER)")
    leader.sql("INSERT INTO tally VALUES(0)")
    cluster.wait_equal()
    follower = next(node for node in cluster.nodes if node is not leader)
    load(report, cluster, leader, follower, chosen.seconds, 0)
    leader = cluster.wait_leader()
    load(report, cluster, leader, leader, chosen.seconds, 5000)
    cluster.check_equal()
    harness.check_stopped(cluster)


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__, seconds=4.0))
