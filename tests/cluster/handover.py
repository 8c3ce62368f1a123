#!/usr/bin/python3
"""Leadership is handed over under load: on request, and when the leader stops in order.

    handover.py --rounds 8

No COMMIT fails by it: every attempt of the writers is told OK, or that another node leads. What cannot be done is refused
with a sentence, and changes nothing. A hand-over that nobody takes up is given up, and the writers go on.
"""

import random
import time

import harness

WRITERS = 8
FINE = {"ok", "readonly", "behind"}


def refused(report, node, sql, words, what, conn="main", code=None):
    """`sql` fails, with these words in its sentence."""
    try:
        node.sql(sql, conn=conn)
        report.check(False, f"{what}: refused")
    except harness.CommandError as error:
        report.check(words in str(error), f"{what}: the sentence says so", error)
        if code is not None:
            report.check((error.code or 0) & 0xFF == code, f"{what}: the code is {code}", error)


def wait_ok(cluster, count):
    base = harness.ok_count(cluster)
    cluster.wait_for(f"{count} transactions", lambda: harness.ok_count(cluster) >= base + count, 60)


def hand_over(cluster, report, chance):
    """Once, to a named node or to any. The old leader tells who leads then."""
    leader = cluster.wait_leader()
    other = chance.choice([node for node in cluster.nodes if node is not leader])
    named = chance.random() < 0.5
    asked = chance.choice(cluster.nodes)  # any node may be asked
    told = asked.sql(f"SELECT balsa_transfer({other.number})" if named else "SELECT balsa_transfer()", conn="transfer")
    report.check(told[0][0] != leader.number, "another node leads afterwards", told)
    if named:
        report.check(told[0][0] == other.number, "it is the node that was named", told)
    wait_ok(cluster, 20)


def check_requests(cluster, report):
    """What is refused, on a cluster at rest."""
    leader = cluster.wait_leader()
    other = next(node for node in cluster.nodes if node is not leader)
    refused(report, leader, "SELECT balsa_transfer(99)", "not a member", "to a stranger")
    refused(report, other, "SELECT balsa_transfer(99)", "not a member", "to a stranger, asked elsewhere")
    refused(report, leader, "SELECT balsa_transfer('x')", "number of a node", "to no number")
    told = leader.sql(f"SELECT balsa_transfer({leader.number})")
    report.check(told == [[leader.number]], "to the leader itself: it leads", told)
    leader.sql("BEGIN IMMEDIATE", conn="own")
    refused(report, leader, "SELECT balsa_transfer()", "write transaction open", "inside a write transaction", conn="own")
    leader.sql("PRAGMA balsa_timeout=200", conn="transfer")
    refused(report, leader, "SELECT balsa_transfer()", "open for too long", "beside an open write transaction",
            conn="transfer", code=5)
    leader.sql("PRAGMA balsa_timeout=5000", conn="transfer")
    leader.sql("INSERT INTO sat VALUES(1)", conn="own")
    asked = leader.ask("sql", sql=f"SELECT balsa_transfer({other.number})", conn="transfer")
    time.sleep(0.1)  # it waits for the transaction by now, or will: both must end well
    leader.sql("COMMIT", conn="own")
    report.check(leader.wait_answer(asked) == [[other.number]], "an open transaction ends in peace, then it is done")
    cluster.wait_equal()
    rows = other.sql("SELECT count(*) FROM sat")
    report.check(rows == [[1]], "the transaction that was waited for is there", rows)


def check_given_up(cluster, report):
    """To a node that stopped answering a moment ago: writers wait, and go on."""
    leader = cluster.wait_leader()
    stopped = next(node for node in cluster.nodes if node is not leader)
    leader.do("writers", count=WRITERS)
    wait_ok(cluster, 50)
    stopped.pause()
    refused(report, leader, f"SELECT balsa_transfer({stopped.number})", str(stopped.number), "to a node that is stopped",
            conn="transfer", code=5)
    wait_ok_of(leader, cluster, 50)
    report.check(leader.status()["role"] == "leader", "who could not hand over goes on leading")
    stopped.resume()
    return leader


def wait_ok_of(node, cluster, count):
    base = node.do("counts")["counts"].get("ok", 0)
    cluster.wait_for(f"{count} transactions", lambda: node.do("counts")["counts"].get("ok", 0) >= base + count, 60)


def check_stop(cluster, report):
    """balsa_stop() of the leader under load: when it returns, another node leads."""
    leader = cluster.wait_leader()
    others = [node for node in cluster.nodes if node is not leader]
    for node in others:
        node.do("writers", count=WRITERS)
    leader.do("writers", count=WRITERS)
    wait_ok(cluster, 50)
    term = leader.status()["term"]
    leader.do("stop_writers", 40)
    leader.sql("SELECT balsa_stop()")
    now = [node.status() for node in others]
    report.check(any(status["role"] == "leader" for status in now), "another node leads when the stop returns", now)
    report.check({status["term"] for status in now} == {term + 1}, "in the next term: nobody had to wait for a time-out", now)
    for node in others:
        wait_ok_of(cluster.wait_leader(others), cluster, 20)
    report.check(leader.quit() == 0, "the stopped node's process ends in order")
    leader.start()


def check_told(cluster, report, answers, what):
    counts = cluster.check_answers(answers, 0)
    strange = {name: count for name, count in counts.items() if name not in FINE}
    report.check(not strange, f"{what}: no COMMIT failed", dict(counts))
    report.check(counts["ok"] > 0, f"{what}: something was written")
    report.say(f"{what}: " + ", ".join(f"{counts[name]} {name}" for name in sorted(counts)))


def test(report, folder, chosen):
    chance = random.Random(chosen.seed)
    cluster = harness.Cluster(report, folder, 3, chosen.extension)
    leader = cluster.start()
    answers = harness.Answers()
    leader.sql("CREATE TABLE sat(n)")
    for node in cluster.nodes:
        node.do("writers", count=WRITERS)
    for _ in range(chosen.rounds):
        hand_over(cluster, report, chance)
    harness.stop_writers(cluster)
    cluster.check_equal()
    check_told(cluster, report, answers, f"{chosen.rounds} hand-overs")
    check_requests(cluster, report)
    check_given_up(cluster, report)
    harness.stop_writers(cluster)
    cluster.wait_equal()
    check_told(cluster, report, answers, "a hand-over given up")
    check_stop(cluster, report)
    harness.stop_writers(cluster)
    cluster.check_equal()
    check_told(cluster, report, answers, "a stop of the leader")
    cluster.check_bodies()
    harness.check_stopped(cluster)


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__, rounds=8))
