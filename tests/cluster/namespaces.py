#!/usr/bin/python3
"""Partitions by the kernel: each node in a network namespace of its own, its link taken down under load.

    namespaces.py --rounds 2

Unlike a proxy's, such a cut says nothing to anybody: packets are gone, connections stay. The leader that is cut off steps
down, its clients are told what is true (unknown, or that nobody leads), the others elect one of theirs; after the healing
nothing is lost. Where namespaces are not permitted this is skipped, and says so.
"""

import os
import random
import subprocess
import time

import harness

WRITERS = 4
NETWORK = "10.77.13"


class NotPermitted(Exception):
    pass


def run(*command):
    result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=20)
    if result.returncode != 0:
        raise NotPermitted(f"{' '.join(command[-6:])}: {result.stderr.strip() or result.returncode}")


def holder(command):
    """A process that keeps a namespace alive; it says when it is in it."""
    process = harness.start_process([*command, "sh", "-c", "echo in && exec sleep 3600"], stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE, text=True)
    if process.stdout.readline().strip() != "in":
        raise NotPermitted(process.stderr.read().strip() or "unshare failed")
    return process


class Network:
    """A bridge in one namespace, and a namespace with a link to it for each node."""

    def __init__(self, count):
        self.user = [] if os.geteuid() == 0 else ["-U", "--preserve-credentials"]
        self.switch = holder(["unshare", "-n"] if not self.user else ["unshare", "-Ur", "-n"])
        self.inside("ip", "link", "add", "br0", "type", "bridge")
        self.inside("ip", "link", "set", "br0", "up")
        self.nodes = {number: self.add(number) for number in range(1, count + 1)}

    def enter(self, process):
        return ["nsenter", "-t", str(process.pid), *self.user, "-n"]

    def inside(self, *command):
        run(*self.enter(self.switch), *command)

    def add(self, number):
        process = holder([*self.enter(self.switch), "unshare", "-n"])
        self.inside("ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        self.inside("ip", "link", "set", f"port{number}", "master", "br0", "up")
        run(*self.enter(process), "ip", "address", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        run(*self.enter(process), "ip", "link", "set", "eth0", "up")
        run(*self.enter(process), "ip", "link", "set", "lo", "up")
        return process

    def cut(self, number):
        self.inside("ip", "link", "set", f"port{number}", "nomaster")  # the link stays up: nobody is told

    def heal(self, number):
        self.inside("ip", "link", "set", f"port{number}", "master", "br0")


class Cluster(harness.Cluster):
    def __init__(self, network, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for node in self.nodes:
            node.prefix = network.enter(network.nodes[node.number])

    def host(self, number):
        return f"{NETWORK}.{number}"


def cut_leader(cluster, network, report, chance, seconds):
    leader = cluster.wait_leader()
    others = [node for node in cluster.nodes if node is not leader]
    base = harness.ok_count(cluster)
    cluster.wait_for("some transactions", lambda: harness.ok_count(cluster) > base + 20, 30)
    network.cut(leader.number)
    successor = cluster.wait_leader(others)
    cluster.wait_for("the old leader to step down", lambda: leader.status()["role"] != "leader", 10)
    state = leader.status()
    report.check(state["leader"] is None and state["tolerates"] == 0, "the minority knows no leader", state)
    base = successor.do("counts")["counts"].get("ok", 0)
    cluster.wait_for("transactions of the majority", lambda: successor.do("counts")["counts"].get("ok", 0) > base + 20, 30)
    leader.sql("PRAGMA balsa_timeout=300", conn="cut off")
    try:
        leader.sql("INSERT INTO load VALUES(-1, '')", conn="cut off")
        report.check(False, "the minority takes no write")
    except harness.CommandError as error:
        report.check((error.code or 0) & 0xFF == 5, "a write of the minority is told that nobody leads", error)
    time.sleep(chance.uniform(0, seconds))
    network.heal(leader.number)
    return f"node {leader.number} cut off, node {successor.number} led"


def test(report, folder, chosen):
    chance = random.Random(chosen.seed)
    try:
        network = Network(3)
    except (NotPermitted, OSError, subprocess.TimeoutExpired) as problem:
        report.skip("partitions by network namespaces", problem)
        return
    cluster = Cluster(network, report, folder, 3, chosen.extension, options={"insecure": 1, "commit_timeout": 800})
    cluster.start()
    answers = harness.Answers()
    for number in range(1, chosen.rounds + 1):
        term = max(node.status()["term"] for node in cluster.nodes)
        for node in cluster.nodes:
            node.do("writers", count=WRITERS)
        told = cut_leader(cluster, network, report, chance, chosen.seconds)
        harness.stop_writers(cluster)
        statuses = cluster.check_equal()
        counts = cluster.check_answers(answers, WRITERS * 3 * max(1, statuses[0]["term"] - term))
        report.say(f"round {number}: {told}; term {statuses[0]['term']}; "
                   + ", ".join(f"{counts[name]} {name}" for name in sorted(counts)))
    report.check(cluster.leader().sql("SELECT count(*) FROM load WHERE id < 0") == [[0]], "refused writes left nothing")
    cluster.check_bodies()
    harness.check_stopped(cluster)


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__, rounds=2, seconds=1.0))
