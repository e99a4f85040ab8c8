"""NATS servers as the lease and its owner keys see them, without any I/O: keys with compare-and-set, lag, elections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any, TypeAlias

from correlator.cluster import keys, streams
from correlator.cluster.connection import NoAnswer, SendWindow
from correlator.cluster.received import Parser

OWNER, ALIVE = keys.owner("dc1"), keys.alive("dc1")
LONG_AGO = (1, b'{"holder": "earlier"}')

Message: TypeAlias = tuple[str, bytes, dict[str, str]]
"""Subject, payload and headers."""


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
        self.after_write: Callable[[str, bytes], object] = lambda *_: None
        """Called with each subject and value that has been stored."""
        self.refused: list[str] = []
        """The subjects of writes that were refused."""
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
        return SimpleNamespace(data=self.store([(subject, payload, headers)]))

    def store(self, messages: Sequence[Message]) -> bytes:
        """Store all messages or none, as their headers demand. Returns the answer."""
        for subject, _, headers in messages:
            fence = headers.get("Nats-Expected-Last-Subject-Sequence-Subject", subject)
            expected = headers.get("Nats-Expected-Last-Subject-Sequence")
            if expected is not None and int(expected) != self.values.get(fence, (0,))[0]:
                self.refused.append(messages[-1][0])
                return b'{"error": {"err_code": 10071}}'
        seqs = [self.put(subject, payload) for subject, payload, _ in messages]
        return json.dumps({"seq": seqs[-1]}).encode()

    def put(self, subject: str, value: bytes) -> int:
        self._seq += 1
        self.values[subject] = self._seq, value
        self.after_write(subject, value)
        return self._seq


class Network:
    """How long messages take. `chance` decides; while it is `calm`, all take a millisecond."""

    def __init__(self, loop: asyncio.AbstractEventLoop, chance: Random) -> None:
        self.loop = loop
        self.calm = False
        self._chance = chance

    def lags(self) -> bool:
        """Whether the server that answers next has not got what was written while the request was on its way."""
        return not self.calm and self._chance.random() < 0.2

    def delay(self) -> float:
        """Seconds: mostly a few milliseconds, sometimes longer than anybody waits for it."""
        if self.calm:
            return 0.001
        return self._chance.choice([0.001, 0.003, 0.01, 0.3]) if self._chance.random() < 0.97 else 6.0


class Link:
    """The connection of one process to the servers, in virtual time; the real lease and the real fence use it.

    What is sent arrives in any order, also if the process has ended meanwhile. Until `stopped`, by the loop's time,
    nothing goes to or from the process; until `deaf`, what it sends arrives, and no answer does.
    """

    generation = 1
    connected = True
    client = SimpleNamespace(max_payload=1 << 20)

    def __init__(self, servers: Servers, network: Network, name: str) -> None:
        self.name = name
        self.window = SendWindow()
        self.parser = Parser()
        self.stopped = self.deaf = 0.0
        self._servers = servers
        self._network = network
        self._batches: dict[str, list[Message]] = {}

    def describe(self) -> dict[str, Any]:
        return {"ok": True, "connected": True}

    async def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Messages of a batch arrive with the last one: without that, NATS drops them."""
        given = headers or {}
        self._batches.setdefault(given["Nats-Batch-Id"], []).append((subject, payload, given))

    async def request(self, subject: str, payload: bytes, *, headers: dict[str, str], within: float) -> Any:
        messages = [*self._batches.pop(headers.get("Nats-Batch-Id", ""), []), (subject, payload, headers)]

        def answer() -> bytes | None:
            return self._servers.store(messages) if self._servers.leads else None

        return SimpleNamespace(data=await self._asked(answer, within))

    async def last(self, stream: str, subject: str, *, within: float = 5.0) -> Any:
        before, lags = self._servers.values.get(subject), self._network.lags()

        def answer() -> SimpleNamespace:
            found = before if lags else self._servers.values.get(subject)
            message = found and SimpleNamespace(headers={"Nats-Sequence": str(found[0])}, data=found[1])
            return SimpleNamespace(message=message)

        return (await self._asked(answer, within)).message

    async def api(
        self, method: str, request: object = None, form: type | None = None, *, within: float = 5.0
    ) -> dict[str, Any]:
        return await self._servers.api(method, request, form, within=within)

    async def _asked(self, answer: Callable[[], Any], within: float) -> Any:
        """What the servers answer when the request arrives; None is no answer."""
        loop, answered = self._network.loop, asyncio.get_running_loop().create_future()

        def arrive() -> None:
            if (found := answer()) is not None:
                loop.call_later(self._delay(), deliver, found)

        def deliver(found: Any) -> None:
            if not answered.done() and loop.time() >= self.deaf:
                answered.set_result(found)

        loop.call_later(self._delay(), arrive)
        try:
            async with asyncio.timeout(within):
                return await answered
        except TimeoutError:
            raise NoAnswer("no answer") from None

    def _delay(self) -> float:
        return max(0.0, self.stopped - self._network.loop.time()) + self._network.delay()
