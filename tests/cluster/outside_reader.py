#!/usr/bin/python3
"""A node is killed, a plain sqlite3 reads its files, the node starts again.

    outside_reader.py --rounds 6

Plain SQLite recovers the WAL, checkpoints it into the file and deletes it when it closes: with what the
majority never had, if the node was the leader. The node must end up equal to the others again.
"""

import random
import subprocess
import time

import harness

WRITERS = 8


def read_plainly(report, node):
    shell = subprocess.run(
        ["sqlite3", node.database, "SELECT count(*) FROM load; PRAGMA integrity_check;"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    words = shell.stdout.split()
    report.check(
        shell.returncode == 0 and len(words) == 2 and words[0].isdigit(),
        f"a plain sqlite3 reads the files of node {node.number}",
        (shell.stdout + shell.stderr)[:500],
    )
    return shell.stdout.replace("\n", " ").strip()


def test(report, folder, chosen):
    chance = random.Random(chosen.seed)
    cluster = harness.Cluster(report, folder, 3, chosen.extension)
    cluster.start()
    answers = harness.Answers()
    for number in range(1, chosen.rounds + 1):
        term = max(node.status()["term"] for node in cluster.nodes)
        for node in cluster.nodes:
            node.do("writers", count=WRITERS)
        base = harness.ok_count(cluster)
        cluster.wait_for("transactions", lambda: harness.ok_count(cluster) > base + chance.randrange(50, 400), 60)
        leader = cluster.wait_leader()
        victim = leader if number % 2 else next(node for node in cluster.nodes if node is not leader)
        victim.kill()
        saw = read_plainly(report, victim)
        time.sleep(chance.uniform(0, 0.5))
        cluster.wait_leader()
        victim.start()
        harness.stop_writers(cluster)
        statuses = cluster.check_equal()
        cluster.check_answers(answers, WRITERS * max(1, statuses[0]["term"] - term))
        report.say(
            f"round {number}: killed node {victim.number} ({'leader' if victim is leader else 'follower'}), "
            f"plain sqlite3 saw: {saw}; equal again at index {statuses[0]['applied_index']}"
        )
    harness.check_stopped(cluster)


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__, rounds=2))
