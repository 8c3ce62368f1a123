#!/usr/bin/python3
"""Members come and go under load.

    membership.py --rounds 2

A cluster of one grows to three and five nodes by option join, shrinks to three by balsa_remove, leader included; then all
three are replaced by new ones on new addresses. No COMMIT fails meanwhile, and the longest pause of the writers is
printed. Then rounds in which the joiner, the leader or another member is killed while a node joins. After each part all
nodes are equal, and every acknowledged transaction is there once.
"""

import os
import random
import shutil
import threading
import time

import harness

WRITERS = 8  # of the first node; two on each other
OPTIONS = {"heartbeat": 50, "election": 500, "snapshot_threshold": "256K", "log_tail": "32K"}
FINE = {"ok", "readonly", "behind", "busy"}  # busy: no leader was known at BEGIN for a moment; nothing was lost by it
LIMIT = 60


class Member(harness.Node):
    """A node that forms a cluster of one, or joins one."""

    join = None

    def uri(self):
        options = {"peers": None, **({"join": self.join} if self.join else {})}
        kept, self.cluster.options = self.cluster.options, {**self.cluster.options, **options}
        if self.join:
            for name in ("heartbeat", "election"):
                self.cluster.options.pop(name, None)
        try:
            return super().uri()
        finally:
            self.cluster.options = kept


class Pauses(threading.Thread):
    """The longest time without an acknowledged transaction, from the writers' logs."""

    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.cluster, self.offsets, self.stopping = cluster, {}, threading.Event()
        self.longest, self.last = 0.0, time.monotonic()
        self.start()

    def fresh(self):
        count = 0
        for node in list(self.cluster.nodes):
            for log in list(node.logs):
                try:
                    with open(log, "rb") as file:
                        file.seek(self.offsets.get(log, 0))
                        data = file.read()
                except OSError:
                    continue
                self.offsets[log] = self.offsets.get(log, 0) + len(data)
                count += data.count(b" ok ")
        return count

    def run(self):
        self.fresh()
        self.last = time.monotonic()
        while not self.stopping.wait(0.005):
            now = time.monotonic()
            if self.fresh():
                self.longest = max(self.longest, now - self.last)
                self.last = now

    def end(self):
        self.stopping.set()
        self.join()
        return max(self.longest, time.monotonic() - self.last if self.last == 0 else self.longest)


def members(node):
    return {number: role for number, role in node.sql("SELECT node, role FROM balsa_members", conn="status")}


def new_node(cluster, at, number=None):
    """Of the next number, on a new address; joins at these nodes."""
    if number is None:
        cluster.numbers = number = getattr(cluster, "numbers", len(cluster.nodes)) + 1  # none is given twice
    port = harness.free_ports(1)[0]
    node = Member(cluster, number, port, port)
    node.join = ",".join(f"{harness.HOST}:{other.port}" for other in at)
    cluster.nodes.append(node)
    return node


def wait_voter(cluster, node):
    def is_voter():
        leader = cluster.leader()
        return leader and members(leader).get(node.number) == "voter" and node.alive and \
            node.status()["state"] == "ready"

    cluster.wait_for(f"node {node.number} to become a voter", is_voter, LIMIT)


def grow(cluster, report, chance, count):
    while len(cluster.alive) < count:
        node = new_node(cluster, [chance.choice(cluster.alive)])
        began = time.monotonic()
        node.start()
        wait_voter(cluster, node)
        node.do("writers", count=2)
        report.say(f"node {node.number} is a voter after {time.monotonic() - began:.2f} s")


def remove(cluster, report, node, by):
    """Removes a member, by another or itself; it says so, and goes."""
    sql = "SELECT balsa_leave()" if by is node else f"SELECT balsa_remove({node.number})"
    report.check(by.sql(sql, conn="remove") == [[1]], f"node {node.number} is removed")
    cluster.wait_for(f"node {node.number} to know that it was removed",
                     lambda: node.status()["state"].startswith("removed"), LIMIT)
    report.check(node.number not in members(by) or by is node, f"node {node.number} is no member any more")
    harness_stop(cluster, node)


def harness_stop(cluster, node):
    result = node.do("stop_writers", 40)
    cluster.report.check(result["stuck"] == 0, f"node {node.number}: every writer comes back", result)
    cluster.report.check(node.quit() == 0, f"node {node.number} exits in order")


def check_told(cluster, report, answers, what, pauses):
    longest = pauses.end()
    harness.stop_writers(cluster)
    cluster.check_equal()
    counts = cluster.check_answers(answers, 0)
    strange = {name: count for name, count in counts.items() if name not in FINE}
    report.check(not strange, f"{what}: no COMMIT failed", dict(counts))
    report.check(counts["ok"] > 0, f"{what}: something was written")
    told = ", ".join(f"{counts[name]} {name}" for name in sorted(counts))
    report.say(f"{what}: longest pause {1000 * longest:.0f} ms; {told}")


def forget_gone(cluster):
    cluster.nodes = cluster.alive


def killed_while_joining(cluster, report, chance, answers):
    """A node joins, and one of those who matter is killed in the middle of it."""
    leader = cluster.wait_leader()
    for node in cluster.alive:
        node.do("writers", count=2)
    joiner = new_node(cluster, cluster.alive, number=15)
    victim = chance.choice([joiner, joiner, leader, chance.choice([n for n in cluster.alive if n is not leader])])
    name = "joiner" if victim is joiner else "leader" if victim is leader else "follower"
    joiner.start()
    kills = chance.randrange(1, 4) if victim is joiner else 1
    for _ in range(kills):
        time.sleep(chance.random() * 0.4)
        victim.kill()
        time.sleep(chance.random() * 0.2)
        victim.start()
    wait_voter(cluster, joiner)
    for node in cluster.alive:
        node.do("stop_writers", 40)
    cluster.check_equal()
    cluster.check_answers(answers, 100 * kills)
    report.say(f"the {name} was killed {kills} times while a node joined: it is a voter")
    by = cluster.wait_leader()
    remove(cluster, report, joiner, chance.choice([by, joiner]))
    forget_gone(cluster)
    shutil.rmtree(joiner.folder)


def test(report, folder, chosen):
    chance = random.Random(chosen.seed)
    cluster = harness.Cluster(report, folder, 1, chosen.extension, options=OPTIONS, kind=Member)
    first = cluster.start()
    answers = harness.Answers()

    pauses = Pauses(cluster)
    first.do("writers", count=WRITERS)
    grow(cluster, report, chance, 3)
    grow(cluster, report, chance, 5)
    leader = cluster.wait_leader()
    remove(cluster, report, leader, chance.choice([leader] + [node for node in cluster.alive if node is not leader]))
    leader = cluster.wait_leader()
    remove(cluster, report, chance.choice([node for node in cluster.alive if node is not leader]), leader)
    check_told(cluster, report, answers, "1 to 3 to 5 to 3 nodes", pauses)
    forget_gone(cluster)

    pauses = Pauses(cluster)
    for node in cluster.alive:
        node.do("writers", count=WRITERS // 2)
    for old in list(cluster.alive):
        grow(cluster, report, chance, 4)
        remove(cluster, report, old, chance.choice(cluster.alive))
    check_told(cluster, report, answers, "all three replaced", pauses)
    forget_gone(cluster)

    for _ in range(chosen.rounds):
        killed_while_joining(cluster, report, chance, answers)
    cluster.check_bodies()
    harness.check_stopped(cluster)


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__, rounds=2))
