"""A program of another user of this host that listens at a port, answers, and records what it receives. Takes root."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.servers import free_port

STRANGER, SERVICE = 1234, 234
"""User IDs of a person and of a service. Neither needs a name."""

_PROGRAM = """
import os, socket, sys, threading
hello, answer = map(bytes.fromhex, sys.argv[1:3])
os.setgroups([])
os.setgid(int(sys.argv[4]))
os.setuid(int(sys.argv[4]))
listener = socket.create_server(("127.0.0.1", int(sys.argv[3])))
print("listens", flush=True)
def talk(client):
    try:
        client.sendall(hello)
        while received := client.recv(65536):
            sys.stdout.write(received.hex() + "\\n")
            sys.stdout.flush()
            client.sendall(answer)
    except OSError:
        pass
while True:
    threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()
"""


@dataclass
class ListeningUser:
    port: int
    record: Path

    @property
    def received(self) -> bytes:
        """All that clients have sent."""
        lines = self.record.read_text().splitlines()
        return b"".join(map(bytes.fromhex, lines[1:]))


@contextlib.contextmanager
def listening_as(uid: int, record: Path, *, hello: bytes = b"", answer: bytes = b"") -> Iterator[ListeningUser]:
    """Listen as `uid`: send `hello` to each client, and `answer` to whatever it sends. `record`: a new file."""
    port = free_port()
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, hello.hex(), answer.hex(), str(port), str(uid)]
    with record.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stdin=subprocess.DEVNULL)
    try:
        while not record.read_bytes():
            assert process.poll() is None
        yield ListeningUser(port, record)
    finally:
        process.kill()
        process.wait()
