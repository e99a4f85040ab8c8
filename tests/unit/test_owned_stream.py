"""How messages of the lease's holder are sent to one server, and to several."""

import contextlib
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from correlator.cluster.connection import Fenced, SendWindow, Unacknowledged
from correlator.cluster.fence import NOT_READY, Fence, OwnedStream, StreamMessage

OWNER = b"this one"


class Server:
    """The streams of one owner, as a connection to them. `seconds`: that each pipelined message takes.

    `refusal`: the code of the error that refuses those.
    """

    client = SimpleNamespace(new_inbox=lambda: "inbox")

    def __init__(self):
        self.seq, self.now, self.seconds = 1, 1000.0, 0.0
        self.refusal: int | None = None
        self.writes: list[tuple[str, int]] = []
        self.window = SendWindow()
        self.stream = OwnedStream(
            Fence(cast(Any, self), "KV_cor", "owner", OWNER, 1), rewrite_every=3600, clock=lambda: self.now
        )
        self.stream.replicated = False
        self._pipelined = self._in_batch = 0

    @contextlib.asynccontextmanager
    async def subscribed(self, subject, on_message):
        self._on_answer, self._pipelined = on_message, 0
        yield
        self.writes.append(("pipelined", self._pipelined))

    async def publish(self, subject, payload, *, reply="", headers=None):
        if not reply:
            self._in_batch += 1
            return
        self._pipelined += 1
        self.now += self.seconds
        found = {"error": {"err_code": self.refusal}} if self.refusal else {"seq": self.seq}
        await self._on_answer(SimpleNamespace(headers=None, data=json.dumps(found).encode()))

    async def request(self, subject, payload, *, headers, within):
        self.writes.append(("owner", 1) if subject == "owner" else ("batch", self._in_batch + 1))
        self._in_batch = 0
        self.seq += 1
        return SimpleNamespace(data=b'{"seq": %d}' % self.seq)

    async def last(self, stream, subject, *, within):
        return SimpleNamespace(headers={"Nats-Sequence": str(self.seq)}, data=OWNER)

    async def write(self, count: int) -> None:
        await self.stream.write([StreamMessage(f"key{n}", b"{}") for n in range(count)], 1.0)


@pytest.fixture
def server():
    return Server()


async def test_one_server_gets_many_messages_as_a_batch_only_if_each_goes_to_its_disk(server):
    """The time of an answer to few messages says nothing of many."""
    server.seconds = 0.002
    for count in (1, 10):
        await server.write(count)
    server.seconds = 0.0003
    for count in (250, 250):
        await server.write(count)
    assert [how for how, _ in server.writes] == ["pipelined"] * 4
    server.writes.clear()
    server.seconds = 0.0014
    for count in (1, 250, 250, 10):
        await server.write(count)
    assert server.writes == [("pipelined", 1), ("pipelined", 250), ("batch", 250), ("pipelined", 10)]


async def test_a_stream_that_has_got_replicas_meanwhile_gets_batches_and_the_lease_is_kept(server):
    server.refusal = NOT_READY
    with pytest.raises(Unacknowledged):
        await server.write(3)
    await server.write(3)
    assert server.writes == [("pipelined", 3), ("owner", 1), ("batch", 3)]
    server.stream.replicated, server.refusal = False, 10071
    with pytest.raises(Fenced):
        await server.write(3)
