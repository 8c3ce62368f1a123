#!/usr/bin/python3
"""make demo: three nodes, three sqlite3 shells, a killed leader, and nothing lost.

The shells are ordinary ones with `.load`; what is typed into them is shown. Everything happens in a
temporary folder on free ports of this machine, and is removed at the end. Anything that differs
from what is promised ends the demo with exit status 1.
"""

import os
import shutil
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cluster"))
import harness  # noqa: E402
import shell  # noqa: E402

DATA = "/usr/share/unicode/UnicodeData.txt"  # Debian's package unicode-data
COLUMNS = (
    "code, name, category, combining, bidi, decomposition, decimal, digit, numeric, mirrored, "
    "old_name, comment, upper, lower, title"
)
LOAD = 4000
EQUAL_LIMIT_S = 60


class Progress:
    """One line that grows on a terminal, some lines elsewhere."""

    def __init__(self, what, total):
        self.what, self.total, self.shown = what, total, 0
        self.terminal = sys.stdout.isatty()

    def at(self, count):
        if self.terminal and (count - self.shown >= self.total // 100 or count == self.total):
            print(f"\r  {self.what}: {count:,} of {self.total:,}", end="", flush=True)
            self.shown = count
        elif not self.terminal and count - self.shown >= self.total // 4:
            print(f"  {self.what}: {count:,} of {self.total:,}", flush=True)
            self.shown = count

    def end(self):
        if self.terminal:
            print()


def say(text=""):
    print(text, flush=True)


def typed(node, *commands, limit=120):
    """Shows what is typed into a node's shell, and types it."""
    for command in commands:
        say(f"  node {node.number}> {command if len(command) < 150 else command[:147] + '...'}")
    return node.send(*commands, limit=limit)


def table(cluster):
    for node in cluster.alive:
        status = node.status()
        say(
            f"  node {node.number}: {status['role']:<9} {status['state']:<9} term {status['term']}, "
            f"applied {status['applied_index']}, checksum {status['checksum']}"
        )


def form(cluster):
    for node in cluster.nodes:
        say(f"  node {node.number}> .load {os.path.relpath(cluster.extension)}")
        say(f"  node {node.number}> .open file:app.db?{node.uri().split('?')[1]}")
        node.start()
    leader = cluster.wait_leader()
    say(f"  a leader is elected: node {leader.number}")
    return leader


def bring_data(leader):
    began = time.monotonic()
    typed(leader, f"CREATE TABLE character({COLUMNS});")
    typed(leader, ".mode list", ".separator ;", f".import {DATA} character", ".mode json")
    rows = leader.sql("SELECT count(*) FROM character")[0][0]
    typed(leader, "CREATE VIRTUAL TABLE names USING fts5(code UNINDEXED, name);")
    typed(leader, "INSERT INTO names SELECT code, name FROM character;")
    say(f"  {rows:,} rows and their index are on a majority after {time.monotonic() - began:.1f} s")
    with open(DATA, encoding="utf-8") as file:
        expected = sum(1 for _ in file)
    if rows != expected:
        raise harness.Problem(f"{rows} rows arrived of {expected}")


def read_everywhere(cluster):
    cluster.wait_equal(EQUAL_LIMIT_S)
    query = "SELECT code, name FROM names WHERE name MATCH 'snowman' ORDER BY code"
    answers = {str(node.rows(query)) for node in cluster.nodes}
    if len(answers) != 1:
        raise harness.Problem(f"the nodes answer differently: {answers}")
    say(f"  each node> {query};")
    for row in cluster.nodes[0].rows(query):
        say(f"    U+{row['code']} {row['name']}")


def write_load(cluster, leader):
    """Rows one by one, each its own transaction; in the middle the leader is killed. Returns what was told."""
    typed(leader, "CREATE TABLE note(id INTEGER, body TEXT);")
    acknowledged, unanswered, killed = [], [], None
    progress = Progress("rows acknowledged", LOAD)
    node, began, gap = leader, time.monotonic(), None
    for ident in range(1, LOAD + 1):
        statement = f"INSERT INTO note VALUES({ident}, {shell.literal(harness.body_of(ident))});"
        try:
            if ident == LOAD // 2:
                # The statement is under way when the process dies.
                node.process.stdin.write((statement + "\n").encode())
                node.process.stdin.flush()
                killed, gap = node, time.monotonic()
                node.kill()
                unanswered.append(ident)
                progress.end()
                say(f"  kill -9 {node.process.pid}: the leader, node {node.number}, in the middle of a write")
                node = cluster.wait_leader()
                say(f"  node {node.number} leads now; the load goes on there")
                continue
            node.send(statement)
            acknowledged.append(ident)
        except harness.CommandError as error:
            raise harness.Problem(f"row {ident}: {error}") from error
        if gap is not None:
            say(f"  first row acknowledged again {time.monotonic() - gap:.1f} s after the kill")
            gap = None
        progress.at(len(acknowledged))
    progress.end()
    say(f"  {len(acknowledged):,} rows acknowledged, {len(unanswered)} without an answer, "
        f"{len(acknowledged) / (time.monotonic() - began):.0f} rows/s by one writer")
    return killed, acknowledged, unanswered


def bring_back(cluster, killed):
    leader = cluster.wait_leader()
    index = leader.status()["commit_index"]
    killed.start()
    began, last = time.monotonic(), None
    while True:
        status = killed.status()
        if status["applied_index"] != last:
            last = status["applied_index"]
            say(f"  node {killed.number}: {status['state']}, applied {last} of {index}")
        if last >= index:
            break
        if time.monotonic() - began > EQUAL_LIMIT_S:
            raise harness.Problem(f"node {killed.number} did not catch up within {EQUAL_LIMIT_S} s")
        time.sleep(0.2)
    cluster.wait_equal(EQUAL_LIMIT_S)


def compare(report, cluster, acknowledged, unanswered):
    cluster.check_equal()
    say(f"  node {cluster.wait_leader().number}> INSERT INTO names(names) VALUES('integrity-check');")
    cluster.wait_leader().send("INSERT INTO names(names) VALUES('integrity-check');", limit=60)
    for node in cluster.nodes:
        counts = dict(node.sql("SELECT id, count(*) FROM note GROUP BY id"))
        missing = [ident for ident in acknowledged if counts.get(ident) != 1]
        report.check(not missing, f"node {node.number}: every acknowledged row is there once", missing[:10])
        extra = [ident for ident in counts if ident not in set(acknowledged) and ident not in unanswered]
        report.check(not extra, f"node {node.number}: no other row is there", extra[:10])
        twice = [ident for ident in unanswered if counts.get(ident, 0) > 1]
        report.check(not twice, f"node {node.number}: the unanswered row is not there twice", twice)
    table(cluster)
    harness.check_stopped(cluster)


def demo(report, folder, chosen):
    say(f"Balsa's demo. Three nodes on this machine, in {folder} (removed at the end).")
    cluster = harness.Cluster(report, folder, 3, chosen.extension, kind=shell.ShellNode)

    say("\n1. Three sqlite3 shells load the extension and open their databases.")
    leader = form(cluster)

    say("\n2. A real data set goes into the leader: all characters of Unicode, and a full-text index of their names.")
    bring_data(leader)

    say("\n3. Every node has it.")
    read_everywhere(cluster)

    say(f"\n4. {LOAD:,} transactions; half way the leader is killed.")
    killed, acknowledged, unanswered = write_load(cluster, leader)

    say(f"\n5. Node {killed.number} comes back and catches up.")
    bring_back(cluster, killed)

    say("\n6. The three files are compared page by page, and every acknowledged row is looked for.")
    compare(report, cluster, acknowledged, unanswered)


def main():
    chosen = harness.arguments(__doc__)
    if not os.path.exists(DATA):
        sys.exit(f"{DATA} is not there: make deps installs it (Debian package unicode-data)")
    report = harness.Report()
    folder = tempfile.mkdtemp(prefix="balsa-demo-")
    problem = None
    try:
        demo(report, folder, chosen)
    except (harness.Problem, harness.CommandError) as error:
        problem = str(error)
    except KeyboardInterrupt:
        problem = "interrupted"
    finally:
        harness.stop_all()
        shutil.rmtree(folder, ignore_errors=True)
    if problem or report.failed:
        say(f"\nThe demo FAILED: {problem or f'{report.failed} of {report.passed + report.failed} checks'}")
        return 1
    say(f"\nAll {report.passed} checks passed: three equal databases, nothing acknowledged was lost.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
