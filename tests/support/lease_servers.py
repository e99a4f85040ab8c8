"""NATS servers as the lease and its owner keys see them, without any I/O: keys with compare-and-set, lag, elections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from correlator.cluster import keys, streams
from correlator.cluster.connection import NoAnswer, SendWindow
from correlator.cluster.received import Parser

OWNER, ALIVE = keys.owner("dc1"), keys.alive("dc1")
LONG_AGO = (1, b'{"holder": "earlier"}')


class Servers:
    """Two keys, and what can happen to their streams. `old`: what reads find in place of the newest values."""

    name = "me"
    generation = 1
    connected = True
    client = SimpleNamespace(max_payload=1 << 20)
    window = SendWindow()

    def __init__(self) -> None:
        self.values: dict[str, tuple[int, bytes]] = {}
        self.old: dict[str, tuple[int, bytes] | None] = {}
        self.parser = Parser()
        self.leads = True
        """False: nothing can be written. `answers`: then the server that is left answers all the same what it knows."""
        self.answers = False
        self.after_read: Callable[[str], object] = lambda _: None
        """Called with each subject whose value has been read."""
        self._seq = 1

    async def last(self, stream: str, subject: str, *, within: float = 5.0) -> Any:
        await asyncio.sleep(0.001)
        found = self.old[subject] if subject in self.old else self.values.get(subject)
        self.after_read(subject)
        return found and SimpleNamespace(headers={"Nats-Sequence": str(found[0])}, data=found[1])

    async def api(
        self, method: str, request: object = None, form: type | None = None, *, within: float = 5.0
    ) -> dict[str, Any]:
        if not self.leads:
            if self.answers:
                return {"cluster": {"name": "one", "replicas": []}}
            await asyncio.sleep(within)
            raise NoAnswer("no answer")
        return {"config": streams.wanted(1)[method.rpartition(".")[2]]}

    async def request(self, subject: str, payload: bytes, *, headers: dict[str, str], within: float) -> Any:
        if not self.leads and subject == ALIVE:
            await asyncio.sleep(within)
            raise NoAnswer("no answer")
        await asyncio.sleep(0.001)
        fence = headers.get("Nats-Expected-Last-Subject-Sequence-Subject", subject)
        if int(headers["Nats-Expected-Last-Subject-Sequence"]) != self.values.get(fence, (0,))[0]:
            return SimpleNamespace(data=b'{"error": {"err_code": 10071}}')
        return SimpleNamespace(data=json.dumps({"seq": self.put(subject, payload)}).encode())

    def put(self, subject: str, value: bytes) -> int:
        self._seq += 1
        self.values[subject] = self._seq, value
        return self._seq
