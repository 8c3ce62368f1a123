#!/usr/bin/python3
"""What a user sees: options, forming a cluster, the SQL surface, refusals. One process per node."""

import os
import shutil
import sqlite3
import subprocess
import time

import harness
from worker import outcome_of

ROWS = 20000
# A write gives up after commit_timeout and SQLite's busy time-out (worker.py); not after their product.
LIMIT_S = 10


def refused(report, what, call, code=None, words=()):
    """call() must fail: with this primary code, and a sentence that has these words."""
    try:
        result = call()
    except harness.CommandError as error:
        text = str(error).lower()
        good = code is None or (error.code or 0) & 0xFF == code
        report.check(good and all(word.lower() in text for word in words), f"{what}: says why", error)
        return
    report.check(False, f"{what}: is refused", result)


def sentence(node, *words):
    """The text of balsa_error() has these words."""
    text = str(node.sql("SELECT balsa_error()")[0][0])
    node.cluster.report.check(all(word in text for word in words), f"balsa_error() says {words}", text)


def part(name):
    def decorate(function):
        function.title = name
        PARTS.append(function)
        return function

    return decorate


PARTS = []


@part("a cluster of one is ready at once, without a network")
def one(report, new):
    cluster = new(1, options={"peers": None, "listen": None, "node": None})
    node = cluster.nodes[0]
    node.start()
    node.sql("CREATE TABLE t(x)")
    node.sql("INSERT INTO t VALUES(1)")
    status = node.status()
    report.check(status["role"] == "leader" and status["state"] == "ready", "leader and ready", status)
    report.check(status["tolerates"] == 0, "tolerates no failure", status)
    report.check(node.sql("SELECT count(*) FROM balsa_members")[0][0] == 1, "one member")
    first = status["node"]
    report.check(node.quit() == 0, "a normal exit")
    node.start()
    report.check(node.sql("SELECT x FROM t") == [[1]], "the row is there after a restart")
    report.check(node.status()["node"] == first, "and so is its number")


@part("opening never waits: a node says who is missing")
def forming(report, new):
    cluster = new(3, options={"commit_timeout": 500})
    node = cluster.nodes[0]
    node.start()
    state = node.status()["state"]
    report.check(state.startswith("forming") and "2" in state and "3" in state, "names the missing", state)
    refused(report, "a write while forming", lambda: node.sql("CREATE TABLE t(x)", limit=LIMIT_S), 5)
    cluster.nodes[1].start()
    cluster.wait_for("only node 3 is missing", lambda: "2@" not in node.status()["state"].split("forming")[-1], 10)
    cluster.nodes[2].start()
    leader = cluster.wait_leader()
    leader.sql("CREATE TABLE t(x)")
    cluster.check_equal()
    rows = leader.sql("SELECT node, role, is_leader FROM balsa_members ORDER BY node")
    expected = [[n, "voter", int(n == leader.number)] for n in (1, 2, 3)]
    report.check(rows == expected, "balsa_members", rows)
    report.check(leader.status()["tolerates"] == 1, "tolerates one failure", leader.status())


@part("a node that starts alone after all were killed shows what it knows to be committed")
def alone_after_kill(report, new):
    cluster = new(3, options={"commit_timeout": 500})
    leader = cluster.start()
    leader.sql("CREATE TABLE t(x)")
    for x in range(50):
        leader.sql("INSERT INTO t VALUES(?)", x)
    cluster.wait_equal()
    for node in cluster.nodes:
        node.kill()
    for node in cluster.nodes:
        node.start()
        shown = node.sql("SELECT count(*) FROM t")[0][0]
        # The log tells of a commit along with the next write, so the last one is known to a majority only.
        report.check(shown >= 49, f"node {node.number} alone shows all but the last", shown)
        node.kill()


@part("without a majority a write gives up within its limits")
def minority(report, new):
    cluster = new(3, options={"commit_timeout": 500})
    leader = cluster.start()
    cluster.wait_equal()
    for node in cluster.nodes:
        if node is not leader:
            node.kill()
    insert = "INSERT INTO load VALUES(1, 'x')"
    try:
        leader.sql(insert, limit=LIMIT_S)
        report.check(False, "a COMMIT that reaches no majority is not OK")
    except harness.CommandError as error:
        report.check(outcome_of(error.code or 0) in ("unknown", "busy"), "the first is unknown, or not begun", error)
    refused(report, "a write without a leader", lambda: leader.sql(insert, limit=LIMIT_S), 5)
    report.check(leader.sql("SELECT count(*) FROM load", limit=LIMIT_S) == [[0]], "reads go on")
    next(node for node in cluster.nodes if not node.alive).start()
    cluster.wait_leader().sql("INSERT INTO load VALUES(2, 'x')")


@part("an existing database becomes the first state of a cluster")
def existing(report, new):
    cluster = new(3)
    plain = sqlite3.connect(cluster.nodes[1].database, isolation_level=None)
    plain.execute("PRAGMA page_size = 1024")
    plain.execute("PRAGMA auto_vacuum = INCREMENTAL")
    plain.execute("PRAGMA journal_mode = DELETE")
    plain.execute("CREATE TABLE load(id INTEGER, body TEXT)")
    plain.execute("BEGIN")
    plain.executemany("INSERT INTO load VALUES(?, ?)", [(n, harness.body_of(n)) for n in range(ROWS)])
    plain.execute("COMMIT")
    plain.close()
    leader = cluster.start()
    leader.sql("INSERT INTO load VALUES(?, ?)", ROWS, harness.body_of(ROWS))
    cluster.check_equal()
    report.check(cluster.check_bodies() == ROWS + 1, "every row is there")
    for node in cluster.nodes:
        # A connection learns what it opened before there was anything by its first read.
        node.sql("SELECT count(*) FROM sqlite_schema")
        for pragma, value in (("page_size", 1024), ("auto_vacuum", 2)):
            found = node.sql(f"PRAGMA {pragma}")
            report.check(found == [[value]], f"node {node.number} has its {pragma}", found)
    harness.check_stopped(cluster)


@part("an existing database in WAL mode brings what its WAL holds")
def existing_wal(report, new):
    cluster = new(1, options={"peers": None, "listen": None})
    node = cluster.nodes[0]
    script = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "db.execute('PRAGMA journal_mode=WAL'); db.execute('PRAGMA wal_autocheckpoint=0');"
        "db.execute('CREATE TABLE t(x)'); db.execute('INSERT INTO t VALUES(42)'); os._exit(0)"
    )
    subprocess.run([harness.PYTHON, "-c", script, node.database], check=True)
    report.check(os.path.getsize(node.database + "-wal") > 0, "the WAL holds it")
    node.start()
    found = node.sql("SELECT x FROM t")
    report.check(found == [[42]], "the row from the WAL is there", found)
    node.sql("INSERT INTO t VALUES(43)")
    node.kill()
    node.start()
    found = node.sql("SELECT x FROM t")
    report.check(found == [[42], [43]], "both are there after a kill", found)


@part("two databases cannot be one cluster")
def two_databases(report, new):
    cluster = new(2)
    for node in cluster.nodes:
        plain = sqlite3.connect(node.database)
        plain.execute("CREATE TABLE t(x)")
        plain.close()
    states = start_and_read_states(cluster, "refused")
    report.check(all("1" in state and "2" in state for state in states), "both are named", states)


@part("different lists cannot be one cluster")
def two_lists(report, new):
    cluster = new(2)
    cluster.nodes[0].start()
    cluster.peers += ",3@127.0.0.1:9"
    cluster.nodes[1].start()
    states = start_and_read_states(cluster, "refused")
    report.check(any("list" in state for state in states), "the lists are named", states)


def start_and_read_states(cluster, word):
    for node in cluster.nodes:
        if not node.alive:
            node.start()
    cluster.wait_for(
        f"a state that says {word}",
        lambda: any(word in node.status()["state"] or "differ" in node.status()["state"] for node in cluster.nodes),
        15,
    )
    return [node.status()["state"] for node in cluster.nodes]


@part("one process owns a database, and one number belongs to it")
def ownership(report, new):
    cluster = new(1, options={"peers": None, "listen": None})
    node = cluster.nodes[0]
    node.start()
    node.sql("CREATE TABLE t(x)")
    second = harness.Node(cluster, 1, node.port, node.port, folder=node.folder)
    refused(report, "a second process", second.start)
    plain = sqlite3.connect(f"file:{node.database}?mode=rw", uri=True, timeout=0, isolation_level=None)
    report.check(plain.execute("SELECT count(*) FROM t").fetchone() == (0,), "plain SQLite reads")
    for sql in ("INSERT INTO t VALUES(1)", "BEGIN IMMEDIATE", "PRAGMA journal_mode=DELETE"):
        try:
            plain.execute(sql)
            report.check(False, f"plain SQLite cannot write: {sql}")
        except sqlite3.Error as error:
            report.check(error.sqlite_errorcode & 0xFF == 5, f"plain SQLite is told BUSY: {sql}", error)
        if plain.in_transaction:
            plain.execute("ROLLBACK")
    busy = plain.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    report.check(busy == 1, "plain SQLite cannot checkpoint", busy)
    plain.close()
    node.sql("INSERT INTO t VALUES(2)")
    node.quit()
    cluster.options["node"] = 9
    refused(report, "another number than last time", node.start)
    cluster.options["node"] = 1
    node.start()
    report.check(node.sql("SELECT x FROM t") == [[2]], "with its own number it goes on")


@part("what would break replication is refused, and says so")
def refusals(report, new):
    cluster = new(1, options={"peers": None, "listen": None})
    node = cluster.nodes[0]
    node.start()
    node.sql("CREATE TABLE t(x)")
    report.check(node.sql("PRAGMA journal_mode") == [["wal"]], "journal_mode is wal")
    try:
        mode = node.sql("PRAGMA journal_mode=DELETE")
        report.check(mode == [["wal"]], "journal_mode stays", mode)
    except harness.CommandError:
        report.check(True, "journal_mode stays")
    other = os.path.join(node.folder, "other.db")
    node.sql("ATTACH ? AS other", other)
    node.sql("CREATE TABLE other.o(x)")
    node.sql("BEGIN")
    node.sql("INSERT INTO t VALUES(1)")
    try:
        node.sql("INSERT INTO other.o VALUES(1)")
        node.sql("COMMIT")
        report.check(False, "a transaction over two files is refused")
    except harness.CommandError:
        report.check(True, "a transaction over two files is refused")
    if node.do("in_transaction", conn="main"):
        node.sql("ROLLBACK")
    report.check(node.sql("SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM other.o)") == [[0]], "nothing of it is there")
    node.sql("CREATE TEMP TABLE side(x)")
    node.sql("BEGIN")
    node.sql("INSERT INTO t VALUES(1)")
    node.sql("INSERT INTO side VALUES(1)")
    node.sql("COMMIT")
    report.check(node.sql("SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM side)") == [[2]], "TEMP tables go along")
    refused(report, "an unknown option", lambda: new(1, options={"lissten": "x"}).nodes[0].start())


@part("a stop in order ends the node; a restart of all goes on without options")
def stop(report, new):
    cluster = new(3)
    leader = cluster.start()
    leader.sql("INSERT INTO load VALUES(1, 'x')")
    cluster.check_equal()
    leader.sql("SELECT balsa_stop()", conn="stopper")
    refused(report, "a connection of a stopped node", lambda: leader.sql("INSERT INTO load VALUES(2, 'x')"))
    successor = cluster.wait_leader([node for node in cluster.nodes if node is not leader])
    successor.sql("INSERT INTO load VALUES(3, 'x')")
    for node in cluster.nodes:
        node.quit()
    cluster.options.update(peers=None, listen=None, node=None)
    for node in cluster.nodes:
        node.start()
    again = cluster.wait_leader()
    report.check(again.sql("SELECT id FROM load ORDER BY id") == [[1], [3]], "the rows are there after a restart of all")
    again.sql("INSERT INTO load VALUES(4, 'x')")
    cluster.check_equal()


@part("a token tells its transaction's fate on every node")
def tokens(report, new):
    cluster = new(3)
    leader = cluster.start()
    leader.sql("INSERT INTO load VALUES(1, 'x')", conn="writer")
    token = leader.sql("SELECT quote(balsa_last_commit())", conn="writer")[0][0]
    cluster.wait_equal()
    for node in cluster.nodes:
        report.check(node.do("outcomes", tokens=[token]) == ["committed"], f"node {node.number} knows {token}")
    follower = next(node for node in cluster.nodes if node is not leader)
    refused(report, "a write on a follower", lambda: follower.sql("INSERT INTO load VALUES(2, 'x')"), 8)
    sentence(follower, str(leader.number))
    status = follower.status()
    report.check(status["leader"] == leader.number, "a follower names the leader", status)
    report.check(status["leader_address"].endswith(str(leader.port)), "and its address", status)
    refused(
        report,
        "balsa_wait in the caller's own write transaction",
        lambda: leader.sql("BEGIN IMMEDIATE") or leader.sql("SELECT balsa_wait(1)"),
    )
    leader.sql("ROLLBACK")


@part("a node that lost its folder is not taken for its former self")
def wiped(report, new):
    cluster = new(3)
    leader = cluster.start()
    cluster.wait_equal()
    victim = next(node for node in cluster.nodes if node is not leader)
    victim.kill()
    for name in os.listdir(victim.folder):
        if name.startswith("app.db"):
            path = os.path.join(victim.folder, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    victim.start()
    leader.sql("INSERT INTO load VALUES(1, 'x')")
    state = cluster.wait_for("a state that says so", lambda: "refused" in victim.status()["state"] and victim.status()["state"], 15)
    report.say(f"its state: {state}")
    other = next(node for node in cluster.nodes if node not in (leader, victim))
    leader.kill()
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        if any(node.status()["role"] == "leader" for node in (other, victim)):
            report.check(False, "its vote does not count", cluster.describe())
            return
        time.sleep(0.05)
    report.check(True, "its vote does not count")
    leader.start()
    cluster.wait_leader([leader, other]).sql("INSERT INTO load VALUES(2, 'x')")


def test(report, folder, chosen):
    made = []

    def new(count, options=None):
        where = os.path.join(folder, str(len(made)))
        os.makedirs(where)
        cluster = harness.Cluster(report, where, count, chosen.extension, options=options)
        made.append(cluster)
        return cluster

    for function in PARTS:
        if chosen.only and chosen.only not in function.__name__:
            continue
        report.say(function.title)
        try:
            function(report, new)
        except (harness.Problem, harness.CommandError) as problem:
            report.check(False, function.title, problem)
        for cluster in made:
            for node in cluster.alive:
                node.kill()


if __name__ == "__main__":
    harness.run(test, harness.arguments(__doc__, only=None))
