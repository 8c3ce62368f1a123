#!/usr/bin/python3
"""Followers that need what is compacted, and nodes that compact all the time.

    snapshots.py --rounds 5 --megabytes 48

First each case by itself: a follower comes back after the others have compacted what it needs; it, or the
leader, is killed while the snapshot is on its way; its database file is gone; its connection is cut. Then rounds of
writing with thresholds so small that snapshots, compactions and installations happen all the time, while a random
node is killed. At the end all nodes are equal, byte by byte.
"""

import glob
import os
import random
import shutil
import time

import harness

WRITERS = 4
TINY = {"snapshot_threshold": "64K", "log_tail": "16K", "election": 300, "heartbeat": 30}
TRIES = 6  # to kill a node while a snapshot is on its way
LIMIT = 120


def remove_database(node):
    for path in glob.glob(glob.escape(node.database)) + glob.glob(glob.escape(node.database) + "-[ws][ah][lm]"):
        os.remove(path)


def write_big(cluster, megabytes):
    """Random bytes: nothing to compress, and new ones each time."""
    cluster.write("CREATE TABLE IF NOT EXISTS big(id INTEGER PRIMARY KEY, body)")
    for _ in range(megabytes):
        cluster.write("INSERT INTO big(body) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 16) "
                      "SELECT randomblob(65536) FROM n")


def compact_beyond(cluster, index, nodes):
    """Writes until each of these nodes has compacted its log beyond `index`."""

    def compacted():
        cluster.write("UPDATE big SET body = randomblob(65536) WHERE id IN (SELECT id FROM big ORDER BY random() LIMIT 4)",
                      nodes=nodes)
        return all(node.status()["log_first"] > index + 1 for node in nodes)

    cluster.wait_for("compaction beyond what the follower has", compacted, LIMIT)


def leave_behind(cluster, chance, quits):
    """A follower goes, and the others compact what it needs. It, and the others."""
    leader = cluster.wait_leader()
    follower = chance.choice([node for node in cluster.nodes if node is not leader])
    index = follower.status()["log_last"]
    if quits:
        follower.quit()
    else:
        follower.kill()
    others = [node for node in cluster.nodes if node is not follower]
    compact_beyond(cluster, index, others)
    return follower, others


def wait_caught_up(cluster, report, follower, what):
    first = min(node.status()["log_first"] for node in cluster.alive if node is not follower)
    cluster.wait_equal(LIMIT)
    report.check(follower.status()["log_first"] + 1 >= first, f"{what}: it was caught up by a snapshot",
                 (follower.status(), first))
    cluster.check_equal(LIMIT)


def comes_back(cluster, report, chance):
    follower, _ = leave_behind(cluster, chance, chance.random() < 0.5)
    follower.start()
    wait_caught_up(cluster, report, follower, "a follower that was away")
    report.say("a follower that was away is caught up")


def loses_database(cluster, report, chance):
    follower, _ = leave_behind(cluster, chance, False)
    remove_database(follower)
    follower.start()
    wait_caught_up(cluster, report, follower, "a follower without its database")
    # And alone, from its own snapshot and log.
    follower.quit()
    remove_database(follower)
    follower.start()
    cluster.check_equal(LIMIT)
    report.say("a follower without its database file is caught up, and makes it again from what it has")


def has_nothing_yet(cluster, report, chance):
    """As if it had been killed before entry 1 came: a vote, and nothing else."""
    follower, _ = leave_behind(cluster, chance, True)
    remove_database(follower)
    for name in ("log", "snapshots"):
        shutil.rmtree(os.path.join(follower.database + "-balsa", name))
    for name in ("database", "options"):
        os.remove(os.path.join(follower.database + "-balsa", name))
    follower.start()
    wait_caught_up(cluster, report, follower, "a follower that has nothing")
    follower.kill()
    follower.start()
    cluster.check_equal(LIMIT)
    report.say("a follower that has nothing yet gets all by a snapshot")


def leader_is_damaged(cluster, report, chance):
    follower, others = leave_behind(cluster, chance, True)
    leader = cluster.wait_leader(others)
    leader.sql("SELECT balsa_snapshot()")
    path = max(glob.glob(glob.escape(leader.database) + "-balsa/snapshots/snapshot-*.lz4"))
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    follower.start()
    wait_caught_up(cluster, report, follower, "a follower whose leader has a damaged snapshot")
    report.say("a leader whose snapshot is damaged takes another one")


def is_receiving(node):
    try:
        return "receiving" in (node.status(5).get("snapshot") or "")
    except (harness.Problem, harness.CommandError):
        return False


def wait_receiving(cluster, follower):
    """true: a snapshot is on its way to it; false: it is there already."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if is_receiving(follower):
            return True
        status = follower.status()
        leader = cluster.leader()
        if leader is not None and status["log_last"] >= leader.status()["log_first"] - 1:
            return False
    raise harness.Problem("no snapshot came\n" + cluster.describe())


def killed_on_the_way(cluster, report, chance, whom):
    hits = 0
    for _ in range(TRIES):
        follower, others = leave_behind(cluster, chance, False)
        follower.start()
        if wait_receiving(cluster, follower):
            time.sleep(chance.uniform(0, 0.1))
            hits += is_receiving(follower)
            victim = follower if whom == "follower" else cluster.wait_leader(others)
            victim.kill()
            if whom == "leader":
                cluster.wait_leader([node for node in cluster.nodes if node is not victim])
            victim.start()
        cluster.check_equal(LIMIT)
        if hits >= 2:
            break
    report.check(hits > 0, f"a {whom} was killed while a snapshot was on its way")
    report.say(f"{hits} times a {whom} was killed while a snapshot was on its way")


def cut_on_the_way(cluster, report, chance):
    cuts = 0
    follower, _ = leave_behind(cluster, chance, False)
    follower.start()
    while cuts < 5 and wait_receiving(cluster, follower):
        cuts += 1
        cluster.isolate(follower, chance.choice(["close", "hold"]))
        time.sleep(chance.uniform(0.1, 1))
        cluster.heal()
        time.sleep(chance.uniform(0, 0.1))
    cluster.check_equal(LIMIT)
    report.say(f"{cuts} times the connection was cut while a snapshot was on its way")


def ask_snapshots(cluster, chance, asked):
    """Beside those that are due by weight: the database grows, and they become rarer."""
    for node in cluster.nodes:
        if chance.random() < 0.7:
            asked.append((node, node.ask("sql", sql="SELECT balsa_snapshot()", conn="snapshots")))


def snapshots_taken(asked):
    taken = 0
    for node, number in asked:
        try:
            taken += node.wait_answer(number)[0][0] > 0
        except (harness.Problem, harness.CommandError, KeyError):
            pass  # killed meanwhile, or too young
    return taken


def random_kills(cluster, report, chance, rounds):
    answers = harness.Answers()
    total = harness.collections.Counter()
    answers.read(cluster)
    for number in range(1, rounds + 1):
        term = max(node.status()["term"] for node in cluster.alive)
        for node in cluster.nodes:
            node.do("writers", count=WRITERS)
        killed, asked, taken = [], [], 0
        for _ in range(chance.randrange(1, 4)):
            ask_snapshots(cluster, chance, asked)
            time.sleep(chance.uniform(0, 1.5))
            node = chance.choice(cluster.nodes)
            node.kill()
            taken += snapshots_taken([one for one in asked if one[0] is not node])
            asked.clear()
            if chance.random() < 0.3:
                remove_database(node)
            time.sleep(chance.uniform(0, 1.5))
            node.start()
            node.do("writers", count=WRITERS)
            killed.append(node.number)
        cluster.wait_leader()
        base = harness.ok_count(cluster)
        cluster.wait_for("more transactions", lambda: harness.ok_count(cluster) > base + 50, LIMIT)
        harness.stop_writers(cluster)
        statuses = cluster.check_equal(LIMIT)
        flights = WRITERS * len(cluster.nodes) * max(len(killed), statuses[0]["term"] - term)
        counts = cluster.check_answers(answers, flights)
        total.update(counts)
        total["snapshots asked for"] += taken
        report.say(f"round {number}: killed {killed}; {taken} snapshots asked for; term {statuses[0]['term']}; " +
                   ", ".join(f"{counts[name]} {name}" for name in sorted(counts)))
    cluster.check_bodies()
    report.check(total["snapshots asked for"] > 0, "snapshots are taken while it goes on")
    report.check(all(node.status()["log_first"] > 1 for node in cluster.alive), "every log has lost its beginning")
    report.say("all in all " + ", ".join(f"{total[name]} {name}" for name in sorted(total)))


def cases(report, folder, chosen, chance):
    folder = os.path.join(folder, "cases")
    cluster = harness.Cluster(report, folder, 3, chosen.extension, proxied=True,
                              options={**TINY, "snapshot_threshold": "1M"})
    cluster.start()
    write_big(cluster, 1)
    comes_back(cluster, report, chance)
    loses_database(cluster, report, chance)
    has_nothing_yet(cluster, report, chance)
    leader_is_damaged(cluster, report, chance)
    write_big(cluster, chosen.megabytes)
    cut_on_the_way(cluster, report, chance)
    killed_on_the_way(cluster, report, chance, "follower")
    killed_on_the_way(cluster, report, chance, "leader")
    harness.check_stopped(cluster)


def test(report, folder, chosen):
    chance = random.Random(chosen.seed)
    cases(report, folder, chosen, chance)
    cluster = harness.Cluster(report, os.path.join(folder, "kills"), 3, chosen.extension, options=TINY)
    cluster.start()
    random_kills(cluster, report, chance, chosen.rounds)
    harness.check_stopped(cluster)


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__, rounds=4, megabytes=48))
