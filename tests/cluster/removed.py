#!/usr/bin/python3
"""A leader is cut off with entries that nobody else has, and is removed by the others: when it comes back it learns that.

    removed.py

Its log is longer then than the committed one that says so: none of it beyond what both have can ever be committed.
"""

import harness

WRITERS = 16


def test(report, folder, chosen):
    cluster = harness.Cluster(report, folder, 3, chosen.extension, proxied=True)
    cluster.start()
    cluster.write("CREATE TABLE t(a)")
    leader = cluster.wait_leader()
    others = [node for node in cluster.nodes if node is not leader]
    before = leader.status()["log_last"]
    cluster.isolate(leader, "close")
    leader.do("writers", count=WRITERS)
    tail = before + 4  # of the others: the no-op of the next leader, the joint configuration, and the settled one
    cluster.wait_for("a tail", lambda: leader.status()["log_last"] >= tail, 10)
    leader.kill()
    cluster.wait_leader(others)
    cluster.heal()
    others[0].sql("SELECT balsa_remove(?)", leader.number)
    end = max(node.status()["log_last"] for node in others)
    report.check(end < tail, "what removed it is before the end of its log", (end, tail))
    leader.start()
    cluster.wait_for("it to learn that it was removed", lambda: leader.status()["role"] == "removed", 20)


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__))
