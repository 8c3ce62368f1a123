#!/usr/bin/python3
"""A TCP proxy between nodes that can cut any directed pair of them. Needs no root.

All nodes are given the same peers list, so it has one address per node, and who dials is found out
by the process that owns the other end of the connection (/proc).

A node sends on the connections that it dialled and receives on those that it accepted, so what
node a sends to node b is the connections of the pair (a, b). Cutting a pair:

    close   its connections are closed; new ones are accepted and led nowhere, until it is healed
    hold    nothing passes, in neither direction; what is under way arrives when it is healed

Commands, JSON lines on stdin; each is answered by a line:

    {"listen": {"1": node_port, …}, "ports": {"1": port, …}}   → {"ok": true}
    {"pids": {"1": pid, …}}                 which process is which node, now
    {"cut": [[1, 2], …], "style": "close"}  {"heal": [[1, 2], …]}
"""

import collections
import json
import os
import selectors
import socket
import sys

CHUNK = 1 << 16
BUFFER_MAX = 1 << 20


class Link:
    """A connection of node `source` to node `target`: near is the dialler's end, far the node's."""

    def __init__(self, source, target, near):
        self.source, self.target, self.near, self.far = source, target, near, None
        self.held = False
        self.buffers = {"near": bytearray(), "far": bytearray()}  # what waits to be sent to that end
        self.ended = {"near": False, "far": False}  # that end sends no more


class Proxy:
    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self.targets = {}
        self.pids = {}
        self.cut = {}
        self.links = set()
        self.events = collections.Counter()

    # ---- Who dials? ----

    def source_of(self, peer, local):
        """The node whose process owns the other end; 0 if none does."""
        wanted = ("%08X:%04X" % (int.from_bytes(socket.inet_aton(peer[0]), "little"), peer[1]),
                  "%08X:%04X" % (int.from_bytes(socket.inet_aton(local[0]), "little"), local[1]))
        inode = None
        with open("/proc/net/tcp", encoding="ascii") as table:
            for line in table:
                fields = line.split()
                if len(fields) > 9 and fields[1] == wanted[0] and fields[2] == wanted[1]:
                    inode = fields[9]
        if inode in (None, "0"):
            return 0
        name = f"socket:[{inode}]"
        for node, pid in self.pids.items():
            try:
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    try:
                        if os.readlink(f"/proc/{pid}/fd/{fd}") == name:
                            return node
                    except OSError:
                        continue
            except OSError:
                continue
        return 0

    # ---- Links ----

    def accept(self, listener, target):
        near, peer = listener.accept()
        near.setblocking(False)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        source = self.source_of(peer, near.getsockname())
        if source == 0:
            near.close()
            self.events["unknown dialler"] += 1
            return
        link = Link(source, target, near)
        self.links.add(link)
        if (source, target) in self.cut:
            link.held = True
        else:
            self.connect(link)

    def connect(self, link):
        try:
            far = socket.create_connection(("127.0.0.1", self.targets[link.target]), timeout=1)
        except OSError:
            self.close(link)
            return
        far.setblocking(False)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.far = far
        self.watch(link)

    def close(self, link):
        for end in (link.near, link.far):
            if end is not None:
                try:
                    self.selector.unregister(end)
                except (KeyError, ValueError):
                    pass
                end.close()
        self.links.discard(link)

    def watch(self, link):
        """Asks for what may happen next on both ends."""
        for name, end, other in (("near", link.near, "far"), ("far", link.far, "near")):
            if end is None:
                continue
            events = 0
            if not link.held:
                if not link.ended[name] and len(link.buffers[other]) < BUFFER_MAX:
                    events |= selectors.EVENT_READ
                if link.buffers[name]:
                    events |= selectors.EVENT_WRITE
            try:
                if events:
                    self.selector.modify(end, events, (self.move, (link, name)))
                else:
                    self.selector.unregister(end)
            except KeyError:
                if events:
                    self.selector.register(end, events, (self.move, (link, name)))

    def move(self, mask, link, name):
        if link not in self.links or link.held:
            return
        end, other = (link.near, "far") if name == "near" else (link.far, "near")
        try:
            if mask & selectors.EVENT_READ:
                data = end.recv(CHUNK)
                if data:
                    link.buffers[other] += data
                    self.flush(link, other)
                else:
                    link.ended[name] = True
            if mask & selectors.EVENT_WRITE:
                self.flush(link, name)
        except BlockingIOError:
            pass
        except OSError:
            self.close(link)
            return
        if any(link.ended.values()) and not any(link.buffers.values()):
            self.close(link)
        else:
            self.watch(link)

    def flush(self, link, name):
        end = link.near if name == "near" else link.far
        if link.buffers[name]:
            try:
                sent = end.send(link.buffers[name])
                del link.buffers[name][:sent]
            except BlockingIOError:
                pass

    # ---- Commands ----

    def command(self, request):
        for name, port in request.get("listen", {}).items():
            target = int(name)
            self.targets[target] = port
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", request["ports"][name]))
            listener.listen(64)
            self.selector.register(
                listener, selectors.EVENT_READ, (lambda mask, l, t: self.accept(l, t), (listener, target))
            )
        for name, pid in request.get("pids", {}).items():
            self.pids[int(name)] = pid
        for pair in request.get("cut", []):
            source, target = pair
            self.cut[(source, target)] = request.get("style", "close")
            for link in [l for l in self.links if (l.source, l.target) == (source, target)]:
                if self.cut[(source, target)] == "close":
                    self.close(link)
                else:
                    link.held = True
                    self.watch(link)
        for pair in request.get("heal", []):
            style = self.cut.pop(tuple(pair), None)
            for link in [l for l in self.links if (l.source, l.target) == tuple(pair) and l.held]:
                if style == "close":
                    self.close(link)
                    continue
                link.held = False
                if link.far is None:
                    self.connect(link)
                else:
                    self.watch(link)
        return {"ok": True, "links": len(self.links), "events": dict(self.events)}

    def stdin(self, mask):
        data = os.read(0, CHUNK)
        if not data:
            sys.exit(0)
        self.input += data
        while b"\n" in self.input:
            line, self.input = self.input.split(b"\n", 1)
            try:
                answer = self.command(json.loads(line))
            except Exception as error:  # told to the controller
                answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()

    def run(self):
        self.input = b""
        self.selector.register(0, selectors.EVENT_READ, (lambda mask: self.stdin(mask), ()))
        while True:
            for key, mask in self.selector.select():
                function, arguments = key.data
                if key.fileobj == 0:
                    function(mask)
                else:
                    function(mask, *arguments)


if __name__ == "__main__":
    Proxy().run()
