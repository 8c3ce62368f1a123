#!/usr/bin/python3
"""A majority is lost for good: a new cluster begins from the most advanced node that is left.

    recover.py --rounds 2

balsa_compare() says which one that is, and changes nothing. balsa_recover() is refused while a leader or a majority is there.
A kill at any moment of the recovery does no harm. What the old cluster acknowledged and that node had is there exactly
once. A folder of the old cluster gets nowhere with the new one, until it is set aside (rebuild=1).
"""

import hashlib
import json
import os
import random
import re
import subprocess
import time

import harness

WRITERS = 4
COMPARE = """
import json, sqlite3, sys
db = sqlite3.connect(":memory:")
db.enable_load_extension(True)
db.load_extension(sys.argv[1])
cursor = db.execute("SELECT * FROM balsa_compare(?)", (sys.argv[2],))
print(json.dumps([dict(zip([column[0] for column in cursor.description], row)) for row in cursor]))
"""


def compare(cluster, nodes):
    result = subprocess.run(
        [harness.PYTHON, "-c", COMPARE, re.sub(r"\.so$", "", cluster.extension), ",".join(node.database for node in nodes)],
        stdout=subprocess.PIPE, check=True, timeout=60, env=harness.clean_environment(cluster.library),
    )
    return json.loads(result.stdout)


def fingerprint(nodes):
    found = {}
    for node in nodes:
        for folder, _, names in os.walk(node.folder):
            for name in names:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    found[path] = (hashlib.sha256(file.read()).hexdigest(), os.stat(path).st_mtime_ns)
    return found


def wait_ok(cluster, count):
    base = harness.ok_count(cluster)
    cluster.wait_for(f"{count} transactions", lambda: harness.ok_count(cluster) >= base + count, 60)


def refused(report, node, sql, words, what):
    try:
        node.sql(sql)
        report.check(False, f"{what}: refused")
    except harness.CommandError as error:
        report.check(words in str(error), f"{what}: the sentence says so", error)


def lose_majority(cluster, report, chance):
    """All stop, one before the others: who is ahead is known. Returns them in that order."""
    for node in cluster.nodes:
        node.do("writers", count=WRITERS)
    wait_ok(cluster, 50)
    behind = chance.choice(cluster.nodes)
    behind.kill()
    wait_ok(cluster, 50)
    rows = None
    harness.stop_writers(cluster)
    leader = cluster.wait_leader()
    refused(report, leader, f"SELECT balsa_recover('{cluster.peers}')", "leads", "recovery of a cluster that has a leader")
    rows = leader.sql("SELECT count(*) FROM load")[0][0]
    for node in cluster.alive:
        node.kill()
    rest = [node for node in cluster.nodes if node is not behind]
    before = fingerprint(cluster.nodes)
    told = {row["node"]: row for row in compare(cluster, cluster.nodes)}
    report.check(fingerprint(cluster.nodes) == before, "balsa_compare changes nothing")
    best = [node for node in rest if "recover here" in told[node.number]["advice"]]
    report.check(len(best) == 1, "balsa_compare names one of those that were there to the end", told)
    report.check("behind" in told[behind.number]["advice"], "and says who is behind", told[behind.number])
    return best[0], behind, next(node for node in rest if node is not best[0]), rows


def recover(cluster, report, node, chance):
    """From an open connection of the leaderless node, and through some kills."""
    node.start()
    time.sleep(0.1)
    old = node.status()["cluster"]
    own = f"{node.number}@{harness.HOST}:{node.port}"
    others = ",".join(peer for peer in cluster.peers.split(",") if not peer.startswith(f"{node.number}@"))
    refused(report, node, f"SELECT balsa_recover('{others}')", "must name this node", "a list without this node")
    refused(report, node, f"SELECT balsa_recover('{node.number}@127.0.0.1:1')", "which is at", "another address")
    refused(report, node, "SELECT balsa_recover('nonsense')", "node@host:port", "no list")
    told = node.sql(f"SELECT balsa_recover('{own},{others}')")
    report.check("new cluster" in told[0][0], "balsa_recover says what comes next", told)
    refused(report, node, "SELECT count(*) FROM load", "I/O error", "the node has stopped")
    node.kill()
    for _ in range(3):
        asked = harness.threading.Thread(target=start_quietly, args=(report, node))
        asked.start()
        time.sleep(chance.uniform(0.02, 0.25))
        node.kill()
        asked.join()
    node.start()
    cluster.wait_leader([node])
    new = node.status()["cluster"]
    report.check(new != old, "the cluster has another id", (old, new))
    return old


def start_quietly(report, node):
    try:
        node.start()
    except harness.CommandError as error:
        report.check(False, "a start after a kill goes on", error)
    except harness.Problem:
        pass  # it was killed


def come_back(cluster, report, node, leader):
    """With the old folder it is refused; anew it joins."""
    node.start()
    cluster.wait_for("to be refused", lambda: "rebuild=1" in node.status()["state"], 20)
    leader.sql("INSERT INTO load VALUES(-1, '')")
    leader.sql("DELETE FROM load WHERE id = -1")
    members = leader.sql("SELECT count(*) FROM balsa_members WHERE node = ?", node.number)
    report.check(members == [[0]], "a node of the old cluster is no member of the new one", members)
    report.check(node.quit() == 0, "it ends in order")
    cluster.options["rebuild"] = 1
    node.start()
    del cluster.options["rebuild"]
    cluster.wait_for("to be a voter", lambda: ["voter"] in leader.sql("SELECT role FROM balsa_members WHERE node = ?",
                                                                      node.number), 30)


def test(report, folder, chosen):
    chance = random.Random(chosen.seed)
    cluster = harness.Cluster(report, folder, 3, chosen.extension)
    cluster.start()
    answers = harness.Answers()
    for number in range(1, chosen.rounds + 1):
        terms = cluster.wait_leader().status()["term"]
        best, behind, other, rows = lose_majority(cluster, report, chance)
        old = recover(cluster, report, best, chance)
        report.check(best.sql("SELECT count(*) FROM load")[0][0] >= rows, "all that was acknowledged is there", rows)
        refused(report, best, f"SELECT balsa_outcome('1.1.{old}')", "another cluster", "a token of the old cluster")
        refused(report, best, f"SELECT balsa_recover('{cluster.peers}')", "cluster of one already", "a second recovery")
        come_back(cluster, report, behind, best)
        come_back(cluster, report, other, best)
        for node in cluster.nodes:
            node.do("writers", count=WRITERS)
        wait_ok(cluster, 50)
        harness.stop_writers(cluster)
        statuses = cluster.check_equal()
        report.check({status["tolerates"] for status in statuses} == {1}, "it tolerates a failure again", statuses)
        counts = check_answers(cluster, report, answers)
        report.say(f"round {number}: from node {best.number}; term {terms} to {statuses[0]['term']}; "
                   + ", ".join(f"{counts[name]} {name}" for name in sorted(counts)))
    cluster.check_bodies()
    harness.check_stopped(cluster)


def check_answers(cluster, report, answers):
    """As check_answers of the harness, without the tokens: they are of two clusters."""
    attempts = answers.read(cluster)
    counts = harness.collections.Counter(attempt.outcome for attempt in attempts.values())
    there = dict(cluster.nodes[0].sql("SELECT id, count(*) FROM load NOT INDEXED GROUP BY id", limit=60))
    for attempt in attempts.values():
        allowed = {"ok": (1,), "unknown": (0, 1), "unanswered": (0, 1)}.get(attempt.outcome, (0,))
        if there.get(attempt.id, 0) not in allowed:
            report.check(False, "every answer is true", attempt)
    report.check(counts["ok"] > 0, "something was written")
    return counts


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__, rounds=2))
