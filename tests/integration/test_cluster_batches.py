"""Fenced atomic batches on a real server: all or none, only for the owner, and unknown without an acknowledgement."""

import asyncio

import pytest

from correlator.cluster import keys, streams
from correlator.cluster.connection import Fenced, Refused, Unacknowledged, seq_of
from correlator.cluster.fence import MAX_MESSAGES, Fence, StreamMessage, put, write_pipelined
from tests.support.cluster import connected

OWNER = keys.owner("dc1")


def batch(*ids, size=10):
    return [StreamMessage(keys.job("dc1", name), b"x" * size) for name in ids]


async def stored(connection, *ids):
    """The sequence of each job, None if it has none."""
    found = [await connection.last(keys.STATE, keys.job("dc1", name)) for name in ids]
    return [seq_of(message) or None for message in found]


async def owned(connection, value=b"first", expected=0):
    await streams.create(connection, 1)
    return Fence(connection, keys.STATE, OWNER, value, await put(connection, OWNER, value, expected=expected))


async def test_a_batch_is_stored_in_order_and_without_a_gap(nats):
    async with connected(nats.url) as connection:
        fence = await owned(connection)
        last = await fence.write(batch("a", "b", "c"))
        assert await stored(connection, "a", "b", "c") == [last - 2, last - 1, last]
        assert await fence.write(batch("a")) == last + 1
        names = [str(n) for n in range(MAX_MESSAGES)]
        assert (last := await fence.write(batch(*names))) == fence.seq + 4 + MAX_MESSAGES
        at_once = await asyncio.gather(*(fence.write(batch(f"{n}a", f"{n}b")) for n in range(20)))
        assert sorted(at_once) == list(range(last + 2, last + 42, 2))
        assert await fence.rewrite() == last + 41 == fence.seq
        await fence.write(batch("a", "b"))


async def test_a_batch_of_a_former_owner_is_refused_as_a_whole(nats):
    async with connected(nats.url) as connection, connected(nats.url) as successor:
        former = await owned(connection)
        await former.write(batch("a"))
        now = await owned(successor, b"second", expected=former.seq)
        for ids in (("a", "b"), ("c",), ("d", "e", "f")):
            with pytest.raises(Fenced):
                await former.write(batch(*ids))
        assert await stored(connection, "b", "c", "d", "e", "f") == [None] * 5
        await now.write(batch("a", "b"))
        with pytest.raises(Fenced):
            await former.rewrite()


async def test_messages_that_do_not_wait_for_each_other_are_stored_for_the_owner_alone(nats):
    async with connected(nats.url) as connection, connected(nats.url) as successor:
        former = await owned(connection)
        names = [str(n) for n in range(200)]
        assert await write_pipelined(connection, batch(*names), former.headers, 20) == former.seq + 200
        assert await write_pipelined(connection, batch("a"), former.headers, 20) == former.seq + 201
        await owned(successor, b"second", expected=former.seq)
        with pytest.raises(Fenced):
            await write_pipelined(connection, batch("b", "c"), former.headers, 20)
        assert await stored(connection, names[-1], "a", "b", "c") == [former.seq + 200, former.seq + 201, None, None]


async def test_while_disconnected_a_batch_fails_at_once_and_is_not_sent_later(nats):
    async with connected(nats.url) as connection:
        fence = await owned(connection)
        before = await fence.write(batch("a"))
        await asyncio.to_thread(nats.kill)
        while connection.connected:
            await connection.changed()
        with pytest.raises(Unacknowledged):
            await fence.write(batch("a", "b"))
        await asyncio.to_thread(nats.start)
        await connection.connect(10)
        assert await stored(connection, "a", "b") == [before, None]


async def test_a_value_over_the_limit_is_refused_with_its_whole_batch(nats):
    async with connected(nats.url) as connection:
        fence = await owned(connection)
        with pytest.raises(Refused) as caught:
            await fence.write([*batch("a"), *batch("b", size=streams.MAX_VALUE + 1)])
        assert not isinstance(caught.value, Fenced)
        assert await stored(connection, "a", "b") == [None, None]
