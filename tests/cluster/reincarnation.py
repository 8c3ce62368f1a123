#!/usr/bin/python3
"""A voter loses its folder, its log or its vote while another node is down, and comes back without a person.

    reincarnation.py --rounds 6 --nodes 3

It comes back under its number, as another incarnation: a learner first, a voter by a committed change. No acknowledged
transaction is lost, nobody votes twice, no second cluster forms. What is left of the old folder is kept beside.
"""

import os
import random
import shutil

import harness

WRITERS = 4


def folder_of(node):
    return node.database + "-balsa"


def wipe_all(node, _chance):
    """Everything is gone."""
    for suffix in ("", "-wal", "-shm"):
        os.remove(node.database + suffix)
    shutil.rmtree(folder_of(node))


def wipe_folder(node, _chance):
    """The database is left, its folder is gone."""
    shutil.rmtree(folder_of(node))


def damage_log(node, chance):
    """A byte in the middle of what was acknowledged."""
    log = os.path.join(folder_of(node), "log")
    segment = os.path.join(log, sorted(name for name in os.listdir(log) if name.endswith(".log"))[0])
    with open(segment, "r+b") as file:
        at = 4096 + 64 + chance.randrange(2000)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x40]))


def damage_vote(node, _chance):
    with open(os.path.join(folder_of(node), "vote"), "r+b") as file:
        for offset in (40, 4096 + 40):
            file.seek(offset)
            file.write(b"\xff\xff")


def lose_log(node, _chance):
    shutil.rmtree(os.path.join(folder_of(node), "log"))


def ask_for_it(_node, _chance):
    """Nothing is lost: a person wants it."""


LOSSES = {
    "wiped": wipe_all,
    "folder wiped, database left": wipe_folder,
    "log damaged": damage_log,
    "vote damaged": damage_vote,
    "log gone": lose_log,
    "rebuild=1": ask_for_it,
}


def incarnations(node):
    return {row[0]: row[1] for row in node.sql("SELECT node, role FROM balsa_members", conn="status")}


def wait_ok(cluster, count):
    base = harness.ok_count(cluster)
    cluster.wait_for(f"{count} transactions", lambda: harness.ok_count(cluster) >= base + count, 60)


def all_voters(cluster):
    leader = cluster.leader()
    return leader is not None and incarnations(leader) == {node.number: "voter" for node in cluster.nodes}


def one_round(cluster, report, chance, losses):
    """While `absent` is down others stop and lose something, as many as a minority may; all come back."""
    chosen = chance.sample(cluster.nodes, len(losses) + 1)
    absent, victims = chosen[0], dict(zip(chosen[1:], losses))
    for node in cluster.nodes:
        node.do("writers", count=WRITERS)
    wait_ok(cluster, 50)
    absent.kill()
    wait_ok(cluster, 20)  # what the victims have, and not all of the others
    harness.stop_writers(cluster)
    for victim, loss in victims.items():
        victim.kill()
        LOSSES[loss](victim, chance)
        if loss == "rebuild=1":
            cluster.options["rebuild"] = 1
        victim.start()  # those that run and have everything are no majority: nothing can be decided
        cluster.options.pop("rebuild", None)
    cluster.wait_for("the leader to step down", lambda: cluster.leader() is None, 10)
    for victim, loss in victims.items():
        cluster.wait_for(f"{loss}: to join anew", lambda node=victim: node.status()["role"] == "joining", 10)
        report.check(victim.status()["term"] == 0, f"{loss}: it has voted for nobody", victim.status())
    absent.start()
    cluster.wait_for("all to be voters", lambda: all_voters(cluster), 60)
    for node in cluster.nodes:
        if node not in victims:
            node.do("writers", count=WRITERS)
    wait_ok(cluster, 20)
    harness.stop_writers(cluster)
    for victim, loss in victims.items():
        check_kept(report, victim, loss)
    lost = ", ".join(f"node {victim.number} {loss}" for victim, loss in victims.items())
    return f"{lost}, while node {absent.number} was down"


def check_kept(report, victim, loss):
    kept = [name for name in os.listdir(folder_of(victim)) if name.startswith("lost-")]
    if loss != "wiped":
        report.check(kept, f"{loss}: what was left is kept", os.listdir(folder_of(victim)))
    for name in kept:
        shutil.rmtree(os.path.join(folder_of(victim), name))


def check_alone(report, folder, chosen):
    """A cluster of one never begins anew by itself, nor one that was damaged too often."""
    cluster = harness.Cluster(report, os.path.join(folder, "alone"), 1, chosen.extension)
    cluster.peers = None
    node = cluster.nodes[0]
    cluster.start()
    for i in range(20):
        node.sql("INSERT INTO load VALUES(?, '')", i)
    node.kill()
    damage_log(node, random.Random(1))
    for option in ({}, {"rebuild": 1}):
        cluster.options = option
        try:
            node.start()
            report.check(False, f"a damaged cluster of one is refused ({option})")
        except harness.CommandError as error:
            words = ["cluster of one", "copy"] + ([] if option else ["00000001.log", "offset"])
            report.check(all(word in str(error) for word in words), f"a damaged cluster of one says so ({option})", error)
    names = os.listdir(folder_of(node))
    report.check(not any(name.startswith("lost-") for name in names), "nothing of it was moved", names)


def check_often(cluster, report, chance):
    """What happens again and again takes a person."""
    victim = chance.choice(cluster.nodes)
    victim.kill()
    for i in range(1, 4):
        os.makedirs(os.path.join(folder_of(victim), f"lost-{i}"))
    damage_log(victim, chance)
    try:
        victim.start()
        report.check(False, "the fourth loss is refused")
    except harness.CommandError as error:
        report.check("rebuild=1" in str(error) and "offset" in str(error), "the fourth loss names the way out", error)
    cluster.options["rebuild"] = 1
    victim.start()
    del cluster.options["rebuild"]
    cluster.wait_for("all to be voters", lambda: all_voters(cluster), 60)


def test(report, folder, chosen):
    chance = random.Random(chosen.seed)
    check_alone(report, folder, chosen)
    cluster = harness.Cluster(report, folder, chosen.nodes, chosen.extension)
    cluster.start()
    answers = harness.Answers()
    at_once = (chosen.nodes - 1) // 2
    losses = list(LOSSES)
    for number in range(chosen.rounds):
        term = max(node.status()["term"] for node in cluster.alive)
        told = one_round(cluster, report, chance, [losses[(number + i) % len(losses)] for i in range(at_once)])
        statuses = cluster.check_equal()
        counts = cluster.check_answers(answers, WRITERS * chosen.nodes * max(1, statuses[0]["term"] - term))
        report.say(f"{told}; term {statuses[0]['term']}; " + ", ".join(f"{counts[name]} {name}" for name in sorted(counts)))
    check_often(cluster, report, chance)
    cluster.check_equal()
    cluster.check_bodies()
    harness.check_stopped(cluster)


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__, nodes=3, rounds=len(LOSSES)))
