"""Very many websockets in one process, which follow all jobs by their revisions.

Each checks that no change of a job is missing: a delta is based on the revision that it has. Prints a line when all are
synced. A line of its input has the revisions that all jobs shall have; when every client has them, it prints the time.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

import orjson

from tests.support.daemon import HELLO
from tests.support.raw_http import upgrade
from tests.support.storm_streams import frame, messages

AT_ONCE = 50
"""Connections that are opened at the same time."""

SPEAK_EVERY = 5.0
"""Seconds after which every client sends a pong, as proof that it lives."""

PONG = frame(b"", 10)
CHANGE = re.compile(rb'"job_id":"([^"]+)",(?:"base":(\d+),)?"rev":(\d+)')


class Client:
    """A websocket. `revs`: the revision of each job, from its snapshot and every change since."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.revs: dict[bytes, int] = {}
        self.synced = False
        self._upgraded = False
        self._rest = b""
        self.socket.sendall(upgrade() + messages(HELLO, {"type": "subscribe", "id": 1}))
        self.socket.setblocking(False)

    def receive(self) -> bool:
        """Read what has come. True if there was a change."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise EOFError("a client was disconnected")
        data = self._rest + data if self._rest else data
        if not self._upgraded:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = head
                return False
            if not head.startswith(b"HTTP/1.1 101"):
                raise EOFError(head[:200].decode())
            self._upgraded = True
        at, changed = 0, False
        while (end_at := _end(data, at)) is not None:
            if data[at] & 0x0F == 0x8:
                raise EOFError(f"closed: {data[at:end_at]!r}")
            if data[at] & 0x0F == 0x1:
                changed = self._apply(data[_payload(data, at) : end_at]) or changed
            at = end_at
        self._rest = data[at:]
        return changed

    def _apply(self, text: bytes) -> bool:
        if not self.synced:
            found = orjson.loads(text)
            for message in found if isinstance(found, list) else [found]:
                for job in message.get("jobs", ()) if message["type"] == "snapshot" else ():
                    self.revs[job["job_id"].encode()] = job["rev"]
                self.synced = self.synced or message["type"] == "synced"
            return self.synced
        changed = False
        for job_id, base, rev in CHANGE.findall(text):
            if base and int(base) != self.revs.get(job_id):
                raise ValueError(f"a change of {job_id!r} is missing between {self.revs.get(job_id)} and {int(base)}")
            self.revs[job_id] = int(rev)
            changed = True
        return changed


def _payload(data: bytes, at: int) -> int:
    return at + {126: 4, 127: 10}.get(data[at + 1] & 0x7F, 2)


def _end(data: bytes, at: int) -> int | None:
    """Where the frame at `at` ends; None if it is not all there."""
    if len(data) < at + 2 or len(data) < (begin := _payload(data, at)):
        return None
    length = data[at + 1] & 0x7F
    if length >= 126:
        length = int.from_bytes(data[at + 2 : begin], "big")
    return begin + length if len(data) >= begin + length else None


class Crowd:
    """All clients, and one epoll."""

    def __init__(self, port: int, count: int) -> None:
        self._port, self._missing = port, count
        self._clients: dict[int, Client] = {}
        self._opening = 0
        self._poll = select.epoll()
        self._poll.register(sys.stdin.fileno(), select.EPOLLIN)
        self._due: dict[bytes, int] = {}
        self._equal = 0
        """The number of clients that have what is due."""
        self._spoke = time.monotonic()

    def run(self) -> None:
        while True:
            while self._missing and self._opening < AT_ONCE:
                client = Client(self._port)
                self._clients[client.socket.fileno()] = client
                self._poll.register(client.socket.fileno(), select.EPOLLIN)
                self._missing -= 1
                self._opening += 1
            for number, _ in self._poll.poll(1.0):
                if number != sys.stdin.fileno():
                    self._receive(self._clients[number])
                elif not self._ask(sys.stdin.readline()):
                    return
            if time.monotonic() - self._spoke > SPEAK_EVERY:
                self._spoke = time.monotonic()
                for client in self._clients.values():
                    if client.synced:
                        client.socket.send(PONG)

    def _receive(self, client: Client) -> None:
        before, opening = self._has_due(client), not client.synced
        if not client.receive():
            return
        if opening and client.synced:
            self._opening -= 1
            if not self._missing and not self._opening:
                say(ready=True)
        if self._due and not before and self._has_due(client):
            self._count()

    def _has_due(self, client: Client) -> bool:
        return bool(self._due) and client.revs == self._due

    def _ask(self, line: str) -> bool:
        if not line:
            return False
        self._due = {job_id.encode(): rev for job_id, rev in json.loads(line)["jobs"].items()}
        self._equal = 0
        for _ in range(sum(self._has_due(client) for client in self._clients.values())):
            self._count()
        return True

    def _count(self) -> None:
        self._equal += 1
        if self._equal == len(self._clients):
            say(last=time.monotonic())


def say(**found: Any) -> None:
    print(json.dumps(found), flush=True)


def main(port: int, count: int) -> None:
    Crowd(port, count).run()


if __name__ == "__main__":
    arguments: Mapping[str, Any] = json.loads(sys.argv[1])
    main(**arguments)
