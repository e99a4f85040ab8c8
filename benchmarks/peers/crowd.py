"""Many clients in one process: sockets and one epoll. What comes is only searched for marks.

Says when all of them have seen the mark that ends a round; of what carries the time at which it was made it says how
old it was when it came.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import sys
import time
from typing import Any

from tests.support.daemon import HELLO
from tests.support.raw_http import upgrade
from tests.support.storm_streams import frame, messages

END = b"END."
STAMP = re.compile(rb"t=(\d+\.\d+)t")
PONG = frame(b"", 10)
SPEAK_EVERY = 5.0
"""Seconds after which, between two rounds, a websocket says that it is still there."""


def websocket(port: int) -> socket.socket:
    """Connected, welcomed, subscribed to all jobs, synced."""
    found = socket.create_connection(("127.0.0.1", port))
    found.sendall(upgrade() + messages(HELLO, {"type": "subscribe", "id": 1}))
    until(found, b'"synced"')
    return found


def raw(port: int) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", port))
    until(found, b"welcome}")
    return found


def mqtt(port: int) -> socket.socket:
    """An MQTT 3.1.1 client that has subscribed to `bench` with QoS 0."""
    found = socket.create_connection(("127.0.0.1", port))
    name = f"b{found.fileno()}".encode()
    variable = b"\x00\x04MQTT\x04\x02\x00\x00" + len(name).to_bytes(2, "big") + name
    found.sendall(bytes([0x10, len(variable)]) + variable)
    until(found, b"\x20\x02\x00\x00")
    found.sendall(b"\x82\x0a\x00\x01\x00\x05bench\x00")
    until(found, b"\x90\x03\x00\x01\x00")
    return found


def until(found: socket.socket, mark: bytes) -> None:
    found.settimeout(30)
    seen = b""
    while mark not in seen:
        part = found.recv(1 << 16)
        if not part:
            raise EOFError(f"closed after {seen[-200:]!r}")
        seen = seen[-200:] + part


class Crowd:
    """`stamps`: search for the time in what comes, too."""

    def __init__(self, readers: list[socket.socket], *, speak: bool, stamps: bool) -> None:
        self.readers = {one.fileno(): one for one in readers}
        self.ages: list[float] = []
        self._speak, self._stamps = speak, stamps
        self._part = bytearray(1 << 16)
        self._tails: dict[int, bytes] = {}
        self._done, self._spoke = 0, time.monotonic()

    def receive(self, number: int) -> None:
        """What has come for one reader."""
        part = self._part
        try:
            length = self.readers[number].recv_into(part)
        except BlockingIOError:
            return
        if not length:
            raise EOFError("a reader was closed")
        if self._stamps:
            now = time.monotonic()
            self.ages += [now - float(stamp) for stamp in STAMP.findall(part, 0, length)]
        tail = self._tails.pop(number, b"")
        if part.find(END, 0, length) >= 0 or (tail and END in tail + part[:24]):
            self._count()
        elif part[length - 1] not in b"}]":
            self._tails[number] = bytes(part[max(0, length - 24) : length])  # a mark may be cut in two

    def _count(self) -> None:
        self._done += 1
        if self._done < len(self.readers):
            return
        self._done = 0
        say(done=time.monotonic())
        if self._speak and time.monotonic() - self._spoke > SPEAK_EVERY:
            self._spoke = time.monotonic()
            for one in self.readers.values():
                one.send(PONG)


def main(kind: str, port: int, count: int, *, stamps: bool = False) -> None:
    connect = {"websocket": websocket, "raw": raw, "mqtt": mqtt}[kind]
    crowd = Crowd([connect(port) for _ in range(count)], speak=kind == "websocket", stamps=stamps)
    poll = select.epoll()
    for number, one in crowd.readers.items():
        one.setblocking(False)
        poll.register(number, select.EPOLLIN)
    say(ready=True)
    asked = sys.stdin.fileno()
    poll.register(asked, select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            if number != asked:
                crowd.receive(number)
            elif os.read(asked, 1 << 16):
                say(ages=[round(age * 1000, 3) for age in crowd.ages])
                crowd.ages.clear()
            else:
                return


def say(**word: Any) -> None:
    print(json.dumps(word), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
