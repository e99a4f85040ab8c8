"""How messages of the lease's holder are sent to one server, and to several."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from correlator.cluster import fence
from correlator.cluster.connection import Fenced, Unacknowledged
from correlator.cluster.fence import NOT_READY, Fence, OwnedStream, StreamMessage

OWNER = b"this one"


class Server:
    """The streams of one owner. `seconds`: that each pipelined message takes; `refusal`: what refuses those."""

    def __init__(self, monkeypatch):
        self.seq, self.now, self.seconds = 1, 1000.0, 0.0
        self.refusal: Exception | None = None
        self.writes: list[tuple[str, int]] = []
        monkeypatch.setattr(fence, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(fence, "write_pipelined", self.pipeline)
        monkeypatch.setattr(Fence, "write", self.batch)
        monkeypatch.setattr(Fence, "rewrite", self.rewrite)
        self.stream = OwnedStream(Fence(cast(Any, self), "KV_cor", "owner", OWNER, 1), rewrite_every=3600)
        self.stream.replicated = False

    async def batch(self, messages, *, within):
        self.writes.append(("batch", len(messages)))
        return len(messages)

    async def pipeline(self, connection, messages, headers, within):
        self.writes.append(("pipelined", len(messages)))
        if self.refusal is not None:
            raise self.refusal
        self.now += len(messages) * self.seconds
        return len(messages)

    async def rewrite(self, *, within):
        self.writes.append(("owner", 1))

    async def last(self, stream, subject, *, within):
        return SimpleNamespace(headers={"Nats-Sequence": str(self.seq)}, data=OWNER)

    async def write(self, count: int) -> None:
        await self.stream.write([StreamMessage(f"key{n}", b"{}") for n in range(count)], 1.0)


@pytest.fixture
def server(monkeypatch):
    return Server(monkeypatch)


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
    server.refusal = Fenced("wrong last sequence", NOT_READY)
    with pytest.raises(Unacknowledged):
        await server.write(3)
    await server.write(3)
    assert server.writes == [("pipelined", 3), ("owner", 1), ("batch", 3)]
    server.stream.replicated, server.refusal = False, Fenced("wrong last sequence", 10071)
    with pytest.raises(Fenced, match="wrong"):
        await server.write(3)
