#!/usr/bin/python3
"""Rounds of writing in which a node is killed, stopped for a while, or cut off.

    crash_rounds.py --nodes 3 --rounds 20 --mode kill    SIGKILL of a random node at a random moment
                                          --mode stop    SIGSTOP of the leader for --seconds
                                          --mode cut     the leader cut off by a proxy for --seconds,
                                                         both ways or only to or from it

Eight connections of each node insert ids into a table without a unique index (on followers they are
told to go elsewhere). After each round all is equal, and every answer is held against the tables.
"""

import random
import time

import harness

WRITERS = 8


def wait_ok(cluster, base, count, limit=120):
    """Until `count` more transactions than `base` are acknowledged; base counts killed processes too."""
    cluster.wait_for(f"{count} transactions", lambda: harness.ok_count(cluster) + base >= count, limit)


def disturb(cluster, mode, chance, seconds):
    """The event of a round. Returns a line about it, and when the round's load may end."""
    if mode == "kill":
        node = chance.choice(cluster.nodes)
        was = node.status().get("role")
        lost = node.do("counts")["counts"].get("ok", 0)
        node.kill()
        time.sleep(chance.uniform(0, 1.5))
        node.start()
        node.do("writers", count=WRITERS)
        return f"killed node {node.number} ({was})", lost
    node = cluster.wait_leader()
    if mode == "stop":
        node.pause()
        time.sleep(seconds)
        node.resume()
        return f"stopped node {node.number} (leader) for {seconds} s", 0
    style = chance.choice(["close", "hold"])
    ways = chance.choice(["both", "out", "in"])
    cluster.isolate(node, style, ways)
    time.sleep(seconds)
    cluster.heal()
    return f"cut node {node.number} (leader) off for {seconds} s ({ways}, {style})", 0


def test(report, folder, chosen):
    chance = random.Random(chosen.seed)
    cluster = harness.Cluster(report, folder, chosen.nodes, chosen.extension, proxied=chosen.mode == "cut",
                              options={"commit_timeout": chosen.commit_timeout})
    cluster.start()
    answers = harness.Answers()
    total = harness.collections.Counter()
    for number in range(1, chosen.rounds + 1):
        terms = max(node.status()["term"] for node in cluster.alive)
        before = harness.ok_count(cluster)
        for node in cluster.nodes:
            node.do("writers", count=WRITERS)
        wait_ok(cluster, -before, chance.randrange(1, max(2, chosen.transactions * 2 // 3)))
        event, killed = disturb(cluster, chosen.mode, chance, chosen.seconds)
        # What a killed process had counted is still in its log.
        wait_ok(cluster, killed - before, chosen.transactions)
        harness.stop_writers(cluster)
        statuses = cluster.check_equal()
        # Each change of leader is an event: with them in flight, eight more may stay unknown.
        events = max(1, statuses[0]["term"] - terms)
        counts = cluster.check_answers(answers, WRITERS * events)
        report.check(counts["ok"] >= chosen.transactions, "the round had its transactions", counts)
        total.update(counts)
        report.say(f"round {number}: {event}; term {statuses[0]['term']}; " + told(counts))
    rows = cluster.check_bodies()
    harness.check_stopped(cluster)
    report.say(f"{chosen.nodes} nodes, {chosen.rounds} rounds, mode {chosen.mode}: {rows} rows; " + told(total))


def told(counts):
    return ", ".join(f"{counts[name]} {name}" for name in sorted(counts))


if __name__ == "__main__":
    chosen = harness.arguments(__doc__, nodes=3, rounds=3, mode="kill", transactions=1000, seconds=3.0,
                               commit_timeout=5000)
    harness.run(test, chosen)
