"""Fenced atomic batches on a real server: all or none, only for the owner, and unknown without an acknowledgement."""

import asyncio

import pytest

from correlator.cluster import keys, streams
from correlator.cluster.connection import Fenced, Refused, Unacknowledged, seq_of
from correlator.cluster.fence import MAX_MESSAGES, Fence, Pipelined, StreamMessage, put
from tests.support.cluster import connected
from tests.support.faults.proxy import Proxy

OWNER = keys.owner("dc1")


def batch(*ids, size=10):
    return [StreamMessage(keys.job("dc1", name), b"x" * size) for name in ids]


async def stored(connection, *ids):
    """The sequence of each job, None if it has none."""
    found = [await connection.last(keys.STATE, keys.job("dc1", name)) for name in ids]
    return [seq_of(message) or None for message in found]


async def owned(connection, value=b"first", expected=0):
    await streams.ensure(connection, 1)
    return Fence(connection, keys.STATE, OWNER, value, await put(connection, OWNER, value, expected=expected))


async def test_a_batch_is_stored_in_order_and_without_a_gap(nats):
    async with connected(nats.url) as connection:
        fence = await owned(connection)
        last = await fence.write(batch("a", "b", "c"))
        assert await stored(connection, "a", "b", "c") == [last - 2, last - 1, last]
        assert await fence.write(batch("a")) == last + 1
        names = [str(n) for n in range(MAX_MESSAGES)]
        assert await fence.write(batch(*names)) == last + 1 + MAX_MESSAGES


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
        assert await Pipelined(connection).write(batch(*names), former.headers, 20) == former.seq + 200
        assert await Pipelined(connection).write(batch("a"), former.headers, 20) == former.seq + 201
        await owned(successor, b"second", expected=former.seq)
        with pytest.raises(Fenced):
            await Pipelined(connection).write(batch("b", "c"), former.headers, 20)
        assert await stored(connection, names[-1], "a", "b", "c") == [former.seq + 200, former.seq + 201, None, None]


async def test_only_one_of_many_that_take_the_owner_key_gets_it(nats):
    async with connected(nats.url) as connection:
        await streams.ensure(connection, 1)
        taken = await asyncio.gather(
            *(put(connection, OWNER, str(n).encode(), expected=0) for n in range(20)), return_exceptions=True
        )
        assert len([seq for seq in taken if isinstance(seq, int)]) == 1
        assert all(isinstance(other, int | Fenced) for other in taken)


async def test_rewriting_the_owner_key_keeps_the_fence(nats):
    async with connected(nats.url) as connection:
        fence = await owned(connection)
        old = await fence.write(batch("a"))
        assert await fence.rewrite() == old + 1 == fence.seq
        await fence.write(batch("a", "b"))


async def test_batches_of_several_tasks_wait_for_each_other(nats):
    async with connected(nats.url) as connection:
        fence = await owned(connection)
        last = await asyncio.gather(*(fence.write(batch(f"{n}a", f"{n}b")) for n in range(50)))
        assert sorted(last) == list(range(fence.seq + 2, fence.seq + 102, 2))


async def test_a_batch_that_a_stopped_server_does_not_acknowledge_is_unknown_and_can_be_repeated(nats):
    async with connected(nats.url) as connection:
        fence = await owned(connection)
        nats.pause()
        with pytest.raises(Unacknowledged):
            await fence.write(batch("a", "b"), within=0.3)
        nats.resume()
        await connection.connect(10)
        await fence.write(batch("a", "b"))


async def test_a_server_that_answers_after_a_second_gets_more_with_each_batch(nats):
    async with Proxy(nats.port) as link, connected(f"nats://127.0.0.1:{link.port}") as connection:
        fence, window = await owned(connection), connection.window
        link.delay = 0.5
        first = window.size
        for _ in range(5):
            await fence.write(batch(*"abcd", size=window.share // 4))
        assert window.size >= 8 * first


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
