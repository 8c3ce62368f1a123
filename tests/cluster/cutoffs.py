#!/usr/bin/python3
"""The leader is cut off under load, again and again.

    cutoffs.py --rounds 200

What a connection is told must hold at once and for ever: after "lost" no snapshot begun later shows
the transaction, on the connection itself, on another, or in a plain SQLite outside. What any reader in a
node's process was ever shown stays. Afterwards every connection is usable. Every fourth cut-off finds an application in an open write transaction instead
of load: it cannot commit, its node waits for it to end, and then catches up.
"""

import random
import time

import harness
from worker import outcome_of

WRITERS = 8
GROUP = 8  # cut-offs between two looks at the answers
SITTERS = ("INSERT INTO load(id, body) VALUES(-2, '')", "SELECT sum(length(body)) FROM load", "COMMIT")


def start_writers(cluster):
    for node in cluster.nodes:
        node.do("writers", count=WRITERS, styles=("autocommit", "immediate", "cursor", "deferred", "upgrade"), check_lost=True)
        node.do("watch", count=2)


def cut_under_load(cluster, chance):
    leader = cluster.wait_leader()
    base = harness.ok_count(cluster)
    cluster.wait_for("some transactions", lambda: harness.ok_count(cluster) > base + chance.randrange(100), 30)
    others = [node for node in cluster.nodes if node is not leader]
    cluster.isolate(leader, chance.choice(["close", "hold"]))
    successor = cluster.wait_leader(others)
    # A successor that has written something decides the fate of what the old leader held.
    if chance.random() < 0.7:
        base = successor.do("counts")["counts"].get("ok", 0)
        cluster.wait_for(
            "transactions of the successor", lambda: successor.do("counts")["counts"].get("ok", 0) > base, 30
        )
    time.sleep(chance.uniform(0, 0.5))
    cluster.heal()


def cut_with_sitter(cluster, report, number):
    """An application sits in an open write transaction on the leader while it loses its office."""
    statement = SITTERS[number % len(SITTERS)]
    leader = cluster.wait_leader()
    conn = f"sitter {number}"
    leader.sql("BEGIN IMMEDIATE", conn=conn)
    leader.sql("INSERT INTO load(id, body) VALUES(-1, '')", conn=conn)
    others = [node for node in cluster.nodes if node is not leader]
    cluster.isolate(leader, "hold")
    successor = cluster.wait_leader(others)
    successor.sql("CREATE TABLE IF NOT EXISTS sat(n)")
    successor.sql("INSERT INTO sat VALUES(?)", number)
    cluster.heal()
    cluster.wait_for("the old leader to step down", lambda: leader.status()["role"] != "leader", 30)
    cluster.wait_for(
        "the open transaction to be named", lambda: leader.status()["state"].startswith("blocked"), 30
    )
    told = None
    for sql in (statement, "COMMIT"):  # what finds all it needs in the cache fails at COMMIT
        try:
            leader.sql(sql, conn=conn)
        except harness.CommandError as error:
            told = error
            break
    report.check(told is not None, f"a doomed transaction cannot commit: {statement}")
    if told is not None:
        report.check(outcome_of(told.code or 0) == "lost", f"a doomed transaction is told lost: {sql}", told)
    still_open = leader.do("in_transaction", conn=conn)
    if sql == "COMMIT":
        report.check(not still_open, "a COMMIT that is told lost ends its transaction")
    if still_open:
        leader.sql("ROLLBACK", conn=conn)
    cluster.wait_equal()
    report.check(
        leader.sql("SELECT count(*) FROM load WHERE id < 0", conn=conn) == [[0]], "what it had written is gone"
    )
    report.check(
        leader.sql("SELECT count(*) FROM sat WHERE n = ?", number, conn=conn) == [[1]], "its connection sees the others'"
    )
    leader.do("close", conn=conn)


def test(report, folder, chosen):
    chance = random.Random(chosen.seed)
    cluster = harness.Cluster(report, folder, chosen.nodes, chosen.extension, proxied=True, outside=True)
    cluster.start()
    answers = harness.Answers()
    total = harness.collections.Counter()
    term = max(node.status()["term"] for node in cluster.nodes)
    done = 0
    while done < chosen.rounds:
        start_writers(cluster)
        loaded = min(GROUP - GROUP // 4, chosen.rounds - done)
        for _ in range(loaded):
            cut_under_load(cluster, chance)
        harness.stop_writers(cluster)
        seen = {ident for node in cluster.nodes for ident in node.do("stop_watch")}
        done += loaded
        for _ in range(min(GROUP // 4, chosen.rounds - done)):
            cut_with_sitter(cluster, report, done)
            done += 1
        statuses = cluster.check_equal()
        there = {row[0] for row in cluster.nodes[0].sql("SELECT id FROM load")}
        report.check(seen and seen <= there, "what a reader was shown stays", f"{len(seen)} seen, gone: {list(seen - there)[:5]}")
        counts = cluster.check_answers(answers, WRITERS * max(loaded, statuses[0]["term"] - term))
        term = statuses[0]["term"]
        total.update(counts)
        report.say(f"{done} cut-offs; term {term}; " + ", ".join(f"{counts[name]} {name}" for name in sorted(counts)))
    report.check(total["lost"] > 0, "the cut-offs lost transactions, and said so", total)
    cluster.check_bodies()
    harness.check_stopped(cluster)
    report.say(f"{done} cut-offs: " + ", ".join(f"{total[name]} {name}" for name in sorted(total)))


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__, nodes=3, rounds=8))
