"""What the tests with real processes share: nodes, a cluster of them, and the checks.

Nodes are processes that load build/balsa.so into an ordinary SQLite (worker.py: Debian's python3;
ShellNode: the sqlite3 shell). Every wait has a limit; a test that runs into one says what each node
was doing. Nothing here needs root or a fixed port.
"""

import argparse
import atexit
import collections
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = "/usr/bin/python3"
ANSWER_LIMIT_S = 30
READY_LIMIT_S = 30
EQUAL_LIMIT_S = 60
HOST = "127.0.0.1"

sys.path.insert(0, HERE)
from worker import body_of, outcome_of  # noqa: E402


class Problem(Exception):
    """The test cannot go on."""


class CommandError(Exception):
    """A node's SQLite refused: the sentence, and the extended result code."""

    def __init__(self, text, code):
        super().__init__(f"{text} ({code})")
        self.code = code


# ---- Counting ----


class Report:
    """Counts checks; says each that fails, and the sum at the end."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.began = time.monotonic()

    def say(self, text):
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    def check(self, good, what, detail=""):
        if good:
            self.passed += 1
        else:
            self.failed += 1
            self.say(f"FAILED: {what}{': ' + str(detail) if detail != '' else ''}")
        return bool(good)

    def skip(self, what, why):
        """What cannot be tested on this machine."""
        self.skipped += 1
        self.say(f"SKIPPED: {what}: {why}")

    def finish(self):
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        print(f"{self.passed} passed, {self.failed} failed{skipped}", flush=True)
        return 1 if self.failed or not (self.passed or self.skipped) else 0


def arguments(description, **defaults):
    """The options that all scripts have, and their own with defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--extension", default=os.path.join(HERE, "..", "..", "build", "balsa.so"))
    parser.add_argument("--seed", type=int, default=None, help="repeats the same choices; timing still differs")
    parser.add_argument("--keep", action="store_true", help="keep the nodes' folders")
    for name, value in defaults.items():
        kind = type(value) if value is not None else str
        parser.add_argument("--" + name.replace("_", "-"), type=kind, default=value)
    chosen = parser.parse_args()
    chosen.extension = os.path.abspath(chosen.extension)
    if not os.path.exists(chosen.extension):
        parser.error(f"{chosen.extension} is not there: run make first")
    if chosen.seed is None:
        chosen.seed = random.SystemRandom().randrange(1 << 32)
    return chosen


def run(test, chosen):
    """Runs test(report, folder, chosen) in a folder of its own and ends the process."""
    report = Report()
    folder = tempfile.mkdtemp(prefix="balsa-cluster-")
    report.say(f"seed {chosen.seed}, folder {folder}")
    try:
        test(report, folder, chosen)
    except (Problem, CommandError) as problem:
        report.check(False, "the test could not go on", problem)
    finally:
        stop_all()
        if chosen.keep or report.failed:
            report.say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(report.finish())


# ---- Processes ----

started = []


def start_process(command, **options):
    process = subprocess.Popen(command, **options)
    started.append(process)
    return process


def stop_all():
    for process in started:
        if process.poll() is None:
            process.kill()  # also ends a stopped one
    for process in started:
        process.wait()
    started.clear()


atexit.register(stop_all)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def free_ports(count):
    """Ports that nobody listens on, below the range from which the system picks for connections that
    dial out: while a node is down nothing else can get its port, and none can connect to itself."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        low = int(file.read().split()[0])
    candidates = range(max(1024, low - 20000), low) if low > 2048 else range(1024, 65536)
    held = []
    for port in random.SystemRandom().sample(candidates, min(len(candidates), 2000)):
        sock = socket.socket()
        try:
            sock.bind((HOST, port))
            held.append(sock)
        except OSError:
            sock.close()
        if len(held) == count:
            break
    ports = [sock.getsockname()[1] for sock in held]
    for sock in held:
        sock.close()
    if len(ports) < count:
        raise Problem("no free ports")
    return ports


def clean_environment(library=None):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BALSA_")}
    if library:
        environment["LD_LIBRARY_PATH"] = library
    return environment


class Node:
    """A node and the process that it lives in (worker.py)."""

    prefix = ()  # of the process's command

    def __init__(self, cluster, number, port, peer_port, folder=None):
        self.cluster, self.number, self.port, self.peer_port = cluster, number, port, peer_port
        self.folder = folder or os.path.join(cluster.folder, f"node{number}")
        os.makedirs(self.folder, exist_ok=True)
        self.database = os.path.join(self.folder, "app.db")
        self.process = None
        self.runs = 0
        self.logs = []

    def uri(self):
        options = {
            "vfs": "balsa",
            "node": self.number,
            "listen": f"{self.cluster.host(self.number)}:{self.port}",
            **({"advertise": f"{HOST}:{self.peer_port}"} if self.peer_port != self.port else {}),
            "peers": self.cluster.peers,
            **self.cluster.options,
        }
        return "file:" + urllib.parse.quote(self.database) + "?" + "&".join(
            f"{name}={urllib.parse.quote(str(value), safe='@:,')}" for name, value in options.items() if value is not None
        )

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    def start(self):
        self.runs += 1
        log = os.path.join(self.folder, f"writes-{self.runs}.log")
        self.logs.append(log)
        config = {
            "extension": re.sub(r"\.so$", "", self.cluster.extension),
            "uri": self.uri(),
            "log": log,
            "node": self.number,
            "run": self.runs,
            "outside": self.database if self.cluster.outside else None,
        }
        errors = open(os.path.join(self.folder, f"errors-{self.runs}.txt"), "wb")
        self.process = start_process(
            [*self.prefix, PYTHON, os.path.join(HERE, "worker.py"), json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=clean_environment(self.cluster.library),
        )
        errors.close()
        self.answers = {}
        self.arrived = threading.Condition()
        self.number_next = 0
        threading.Thread(target=self.listen, args=(self.process, self.answers), daemon=True).start()
        self.cluster.tell_proxy(pids={self.number: self.process.pid})
        self.wait_answer(0, READY_LIMIT_S)

    def listen(self, process, answers):
        for line in process.stdout:
            try:
                answer = json.loads(line)
            except ValueError:
                continue  # cut off by a kill
            with self.arrived:
                answers[answer["number"]] = answer
                self.arrived.notify_all()
        with self.arrived:
            answers["end"] = True
            self.arrived.notify_all()

    def ask(self, command, **arguments_):
        """Sends a command; the answer is wait_answer's."""
        self.number_next += 1
        try:
            self.process.stdin.write(
                (json.dumps({"number": self.number_next, "command": command, **arguments_}) + "\n").encode()
            )
            self.process.stdin.flush()
        except OSError as error:
            raise Problem(f"node {self.number} is gone: {error}{self.errors()}") from error
        return self.number_next

    def wait_answer(self, number, limit=ANSWER_LIMIT_S):
        with self.arrived:
            if not self.arrived.wait_for(lambda: number in self.answers or "end" in self.answers, limit):
                raise Problem(f"node {self.number} did not answer within {limit} s")
            if number not in self.answers:
                raise Problem(f"node {self.number} has ended, status {self.process.poll()}{self.errors()}")
            answer = self.answers.pop(number)
        if "error" in answer:
            raise CommandError(f"node {self.number}: {answer['error']}", answer["code"])
        return answer["result"]

    def do(self, command, limit=ANSWER_LIMIT_S, **arguments_):
        return self.wait_answer(self.ask(command, **arguments_), limit)

    def sql(self, sql, *args, conn="main", limit=ANSWER_LIMIT_S):
        return self.do("sql", limit, sql=sql, args=args, conn=conn)

    def status(self, limit=ANSWER_LIMIT_S):
        return self.do("status", limit)

    def errors(self):
        try:
            with open(os.path.join(self.folder, f"errors-{self.runs}.txt"), encoding="utf-8", errors="replace") as file:
                text = file.read().strip()
        except OSError:
            return ""
        return "\n" + text[-2000:] if text else ""

    def kill(self):
        self.process.kill()
        self.process.wait()

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def quit(self, limit=15):
        """A normal exit: the node stops in order."""
        self.do("quit")
        self.process.stdin.close()
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired as error:
            raise Problem(f"node {self.number} did not end within {limit} s of a normal exit") from error


class Cluster:
    """`count` nodes, each with a folder; proxied: they reach each other through proxy.py."""

    def __init__(self, report, folder, count, extension, proxied=False, options=None, outside=False, library=None,
                 kind=Node):
        self.report, self.folder, self.extension = report, folder, extension
        self.options = options or {}
        self.outside, self.library = outside, library
        self.proxy = None
        ports = free_ports(2 * count if proxied else count)
        peer_ports = ports[count:] if proxied else ports
        self.peers = ",".join(f"{i + 1}@{self.host(i + 1)}:{port}" for i, port in enumerate(peer_ports))
        if proxied:
            self.proxy = start_process(
                [PYTHON, os.path.join(HERE, "proxy.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self.proxy_lock = threading.Lock()
            self.tell_proxy(
                listen={i + 1: ports[i] for i in range(count)}, ports={i + 1: peer_ports[i] for i in range(count)}
            )
        self.nodes = [kind(self, i + 1, ports[i], peer_ports[i]) for i in range(count)]

    def host(self, _number):
        """Where the node of this number is."""
        return HOST

    def tell_proxy(self, **request):
        if self.proxy is None:
            return
        with self.proxy_lock:
            self.proxy.stdin.write((json.dumps(request) + "\n").encode())
            self.proxy.stdin.flush()
            answer = json.loads(self.proxy.stdout.readline())
        if not answer["ok"]:
            raise Problem(f"proxy: {answer['error']}")

    def start(self):
        for node in self.nodes:
            node.start()
        leader = self.wait_leader()
        leader.sql("CREATE TABLE IF NOT EXISTS load(id INTEGER, body TEXT)")
        leader.sql("CREATE INDEX IF NOT EXISTS load_id ON load(id)")
        return leader

    @property
    def alive(self):
        return [node for node in self.nodes if node.alive]

    def describe(self):
        lines = []
        for node in self.nodes:
            try:
                lines.append(f"  node {node.number}: {node.status(5) if node.alive else 'not running'}")
            except (Problem, CommandError) as problem:
                lines.append(f"  node {node.number}: {problem}")
        return "\n".join(lines)

    def wait_for(self, what, condition, limit):
        """Until condition() gives something true: that. Asks, since other processes cannot tell."""
        deadline = time.monotonic() + limit
        while True:
            result = condition()
            if result:
                return result
            if time.monotonic() > deadline:
                raise Problem(f"{what}: not within {limit} s\n{self.describe()}")
            time.sleep(0.02)

    def leader(self, nodes=None):
        """The leader of the highest term among these nodes, if it is ready to write."""
        best, best_term = None, 0
        for node in nodes or self.alive:
            try:
                status = node.status(10)
            except CommandError:
                continue
            if status.get("role") == "leader" and status.get("state") == "ready" and status["term"] > best_term:
                best, best_term = node, status["term"]
        return best

    def wait_leader(self, nodes=None, limit=READY_LIMIT_S):
        return self.wait_for("a leader", lambda: self.leader(nodes), limit)

    def write(self, sql, *args, nodes=None, limit=READY_LIMIT_S):
        """On whoever leads; again while the answer is that it was certainly not done: a busy machine changes leaders."""

        def attempt():
            try:
                self.wait_leader(nodes, limit).sql(sql, *args, limit=60)
                return True
            except CommandError as error:
                if outcome_of(error.code or 0) not in ("lost", "busy", "readonly"):
                    raise
                return False

        self.wait_for("a write", attempt, limit)

    def isolate(self, node, style, ways="both"):
        """Cuts what the node sends ("out"), what it receives ("in"), or both."""
        others = [other.number for other in self.nodes if other is not node]
        pairs = [(node.number, other) for other in others if ways in ("both", "out")]
        pairs += [(other, node.number) for other in others if ways in ("both", "in")]
        self.tell_proxy(cut=pairs, style=style)

    def heal(self):
        numbers = [node.number for node in self.nodes]
        self.tell_proxy(heal=[(a, b) for a in numbers for b in numbers if a != b])

    # ---- Equal? ----

    def wait_equal(self, limit=EQUAL_LIMIT_S):
        """Until all nodes that run have applied the same index and nobody has more; their statuses."""

        def equal():
            leader = self.leader()
            if leader is None:
                return None
            index = leader.status()["commit_index"]
            statuses = []
            for node in self.alive:
                try:
                    node.sql("SELECT balsa_wait(?, 5000)", index, conn="status")
                    statuses.append(node.status())
                except CommandError:
                    return None
            indexes = {(status["applied_index"], status["commit_index"], status["term"]) for status in statuses}
            ready = all(status["state"] == "ready" for status in statuses)
            return statuses if len(indexes) == 1 and len(set(indexes.pop()[:2])) == 1 and ready else None

        return self.wait_for("equal applied indexes", equal, limit)

    def check_equal(self, limit=EQUAL_LIMIT_S):
        """Waits, then compares checksums and pages of all running nodes. Nothing may write meanwhile."""
        statuses = self.wait_equal(limit)
        report = self.report
        checksums = {status["checksum"] for status in statuses}
        report.check(len(checksums) == 1, "balsa_status.checksum is equal on all nodes", checksums)
        report.check(
            len({status["applied_index"] for status in self.wait_equal(limit)}) == 1, "all stay at one index"
        )
        pages = {}
        for node in self.alive:
            result = plain_pages(node.database, os.path.join(self.folder, "compare.db"))
            report.check(result["integrity"] == "ok", f"plain integrity_check of node {node.number}", result["integrity"])
            pages[node.number] = result
        first = next(iter(pages.values()))
        for number, result in pages.items():
            different = different_pages(first["bytes"], result["bytes"], first["page_size"])
            report.check(not different, f"node {number} is equal page by page", f"pages {different[:20]} differ")
        return statuses

    # ---- What the writers were told ----

    def check_answers(self, state, flights):
        """
        The rules of counting, for all that was written since `state` last looked: OK exactly once on
        all nodes, lost, refused: nowhere; unknown or unanswered: once or not at all, and not more of
        them than `flights`. What balsa_outcome says of each token fits.
        """
        report = self.report
        attempts = state.read(self)
        counts = collections.Counter(attempt.outcome for attempt in attempts.values())
        tables = {
            node: dict(node.sql("SELECT id, count(*) FROM load NOT INDEXED GROUP BY id", conn="status", limit=60))
            for node in self.alive
        }
        for node, there in tables.items():
            wrong = collections.defaultdict(list)
            for attempt in attempts.values():
                copies = there.get(attempt.id, 0)
                allowed = {"ok": (1,), "unknown": (0, 1), "unanswered": (0, 1), "odd": (0, 1)}.get(attempt.outcome, (0,))
                if copies not in allowed:
                    wrong[f"{attempt.outcome} ({attempt.code})"].append((attempt.id, copies))
            for outcome, cases in wrong.items():
                report.check(False, f"node {node.number}: {len(cases)} told {outcome} have another count", cases[:5])
            report.check(not wrong, f"node {node.number}: every answer is true")
            strangers = set(there) - set(state.all)
            report.check(not strangers, f"node {node.number}: no row that nobody wrote", list(strangers)[:5])
        unknown = counts["unknown"] + counts["unanswered"]
        report.check(unknown <= flights, "no more unknown than connections in flight", f"{unknown} > {flights}")
        told = [attempt for attempt in attempts.values() if attempt.token not in (None, "NULL")
                and attempt.outcome in ("ok", "lost", "unknown")]
        for node, there in tables.items():
            outcomes = node.do("outcomes", 60, tokens=[attempt.token for attempt in told])
            wrong = []
            for attempt, outcome in zip(told, outcomes):
                present = there.get(attempt.id, 0) == 1
                if outcome != ("committed" if present else "lost"):
                    wrong.append((attempt.id, attempt.outcome, attempt.token, outcome))
            report.check(not wrong, f"node {node.number}: balsa_outcome is right for {len(told)} tokens", wrong[:5])
        return counts

    def check_bodies(self):
        node = self.leader() or self.alive[0]
        rows = node.sql("SELECT id, body FROM load", conn="status", limit=60)
        bad = [ident for ident, body in rows if body != body_of(ident)]
        self.report.check(not bad, "every row has the bytes that were written", bad[:5])
        return len(rows)


Attempt = collections.namedtuple("Attempt", "id outcome code where token")


class Answers:
    """Reads the writers' logs, each time only what came since."""

    def __init__(self):
        self.offsets = {}
        self.all = {}

    def read(self, cluster):
        """Attempts that began since the last call. All writers must have stopped."""
        fresh = {}
        for node in cluster.nodes:
            for log in node.logs:
                if not os.path.exists(log):
                    continue
                with open(log, "rb") as file:
                    file.seek(self.offsets.get(log, 0))
                    data = file.read()
                self.offsets[log] = self.offsets.get(log, 0) + len(data)
                for line in data.decode().split("\n")[:-1]:
                    words = line.split(" ")
                    if words[0] == "B" and len(words) == 2:
                        fresh[int(words[1])] = Attempt(int(words[1]), "unanswered", None, None, None)
                    elif words[0] == "A" and len(words) >= 6:
                        token = " ".join(words[5:])
                        fresh[int(words[1])] = Attempt(int(words[1]), words[2], int(words[3]), words[4], token)
        self.all.update(fresh)
        return fresh


def plain_pages(path, scratch):
    """The database as a plain SQLite reads it, page by page, in this process, which has no Balsa."""
    if os.path.exists(scratch):
        os.remove(scratch)
    source = sqlite3.connect(f"file:{urllib.parse.quote(path)}?mode=ro", uri=True, timeout=5)
    try:
        integrity = source.execute("PRAGMA integrity_check").fetchone()[0]
        page_size = source.execute("PRAGMA page_size").fetchone()[0]
        version = source.execute("PRAGMA schema_version").fetchone()[0]
        target = sqlite3.connect(scratch)
        source.backup(target)  # copies pages; rewrites only the schema's version, the same for all
        target.close()
    finally:
        source.close()
    with open(scratch, "rb") as file:
        content = file.read()
    os.remove(scratch)
    return {"integrity": integrity, "page_size": page_size, "bytes": content, "schema_version": version}


def different_pages(a, b, page_size):
    pages = range(max(len(a), len(b)) // page_size)
    return [i + 1 for i in pages if a[i * page_size : (i + 1) * page_size] != b[i * page_size : (i + 1) * page_size]]


def folded_file(path, scratch):
    """The bytes of a stopped node's database with its WAL folded in, on a copy."""
    for suffix in ("", "-wal"):
        if os.path.exists(scratch + suffix):
            os.remove(scratch + suffix)
        if os.path.exists(path + suffix):
            shutil.copyfile(path + suffix, scratch + suffix)
    copy = sqlite3.connect(scratch)
    copy.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    integrity = copy.execute("PRAGMA integrity_check").fetchone()[0]
    page_size = copy.execute("PRAGMA page_size").fetchone()[0]
    copy.close()
    with open(scratch, "rb") as file:
        content = file.read()
    os.remove(scratch)
    return {"integrity": integrity, "page_size": page_size, "bytes": content}


def check_stopped(cluster):
    """Stops all nodes in order, then compares the files themselves."""
    report = cluster.report
    for node in cluster.alive:
        status = node.quit()
        report.check(status == 0, f"node {node.number} exits in order", status)
    scratch = os.path.join(cluster.folder, "stopped.db")
    files = {node.number: folded_file(node.database, scratch) for node in cluster.nodes}
    first = next(iter(files.values()))
    for number, result in files.items():
        report.check(result["integrity"] == "ok", f"integrity_check of node {number}'s files", result["integrity"])
        different = different_pages(first["bytes"], result["bytes"], first["page_size"])
        report.check(not different, f"node {number}'s files are equal page by page", f"pages {different[:20]} differ")


def ok_count(cluster):
    """Transactions acknowledged so far by the processes that run now."""
    total = 0
    for node in cluster.alive:
        try:
            total += node.do("counts")["counts"].get("ok", 0)
        except (Problem, CommandError):
            continue
    return total


def stop_writers(cluster):
    for node in cluster.alive:
        result = node.do("stop_writers", 40)
        cluster.report.check(result["stuck"] == 0, f"node {node.number}: every writer comes back", result)
        for complaint in result["complaints"]:
            cluster.report.check(False, f"node {node.number}", complaint)
