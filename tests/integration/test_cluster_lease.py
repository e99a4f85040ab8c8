"""The lease on a real server: one holder, a prompt takeover, a hand-over at once, and a silent holder loses it."""

import asyncio
import contextlib
import shutil
import time

import pytest

from correlator.cluster import keys
from correlator.cluster.connection import ClusterUnavailable, Fenced, Refused
from correlator.cluster.fence import StreamMessage
from correlator.cluster.lease import TAKE_AFTER, Lease
from tests.support.background import in_background
from tests.support.cluster import connected, never_silent, settings
from tests.support.eventually import PATIENCE, eventually
from tests.support.faults.proxy import Proxy


@contextlib.asynccontextmanager
async def candidate(url):
    """A lease on a connection of its own."""
    async with connected(url) as connection:
        yield Lease(connection, connection, settings(url))


@contextlib.asynccontextmanager
async def held(lease):
    """Hold the lease until the block ends."""
    async with in_background(lease.hold()) as task:
        yield task


@contextlib.asynccontextmanager
async def waiting(lease):
    """Wait for the lease until the block ends. It must not be taken."""
    async with in_background(lease.acquire()) as task:
        yield
        assert not task.done()


async def test_the_first_takes_it_at_once_and_keeps_it_while_it_renews(nats):
    async with candidate(nats.url) as first, candidate(nats.url) as second:
        fence = await asyncio.wait_for(first.acquire(), PATIENCE)
        async with held(first) as holding:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(second.acquire(), 2 * TAKE_AFTER)
            assert not holding.done()
            assert first.describe()["role"] == "active"
            part = second.describe()
            assert (part["ok"], part["role"], part["active"]) == (False, "standby", first.holder)
            await fence.write([StreamMessage(keys.job("dc1", "a"), b"{}")])


async def test_a_silent_holder_is_followed_after_three_seconds_and_can_write_no_more(nats):
    async with candidate(nats.url) as first, candidate(nats.url) as second:
        fence = await first.acquire()
        async with held(first):
            await eventually(lambda: first._alive_seq)
        waiting = asyncio.create_task(second.acquire())
        began = time.monotonic()
        await asyncio.wait_for(waiting, PATIENCE)
        assert time.monotonic() - began > TAKE_AFTER - 0.5
        with pytest.raises(Fenced):
            await fence.write([StreamMessage(keys.job("dc1", "a"), b"{}")])
        # It ends by itself: the renewal or the owner key shows the loss.
        await asyncio.wait_for(first.hold(), PATIENCE)
        assert not first.active


async def test_a_released_lease_is_taken_without_a_silence(nats):
    async with candidate(nats.url) as first, candidate(nats.url) as second:
        await first.acquire()
        async with held(first):
            waiting = asyncio.create_task(second.acquire())
            await asyncio.sleep(1)
        await first.release()
        async with never_silent(first.connection):
            await asyncio.wait_for(waiting, PATIENCE)


async def test_a_link_that_is_full_for_longer_than_the_lease_takes_it_from_nobody(nats):
    async with Proxy(nats.port) as link:
        url = f"nats://127.0.0.1:{link.port}"
        async with connected(url) as renewals, connected(url) as writes, candidate(url) as second:
            lease = Lease(renewals, writes, settings(url))
            fence = await lease.acquire()
            async with waiting(second), held(lease) as holding:
                await eventually(lambda: lease._alive_seq)
                link.rate = 125_000
                for _ in range(6):
                    await writes.publish(keys.line("dc1"), bytes(100_000))
                began = time.monotonic()
                await fence.write([StreamMessage(keys.job("dc1", "a"), b"{}")], within=PATIENCE)
                assert time.monotonic() - began > 1.2 * TAKE_AFTER
                assert not holding.done()


async def test_the_holder_outlasts_the_loss_of_all_streams_and_its_writes_are_accepted_again(nats):
    async with candidate(nats.url) as first, candidate(nats.url) as second:
        fence = await first.acquire()
        async with held(first) as holding, waiting(second):
            await eventually(lambda: first._alive_seq and second.describe()["active"])
            await asyncio.to_thread(nats.kill)
            await asyncio.to_thread(shutil.rmtree, nats.folder / "js")
            await asyncio.to_thread(nats.start)

            async def accepted():
                await fence.write([StreamMessage(keys.job("dc1", "a"), b"{}")])
                return True

            await eventually(lambda: first.connection.connected)
            await eventually(lambda: quietly(accepted))
            assert not holding.done()


async def quietly(write):
    """True once `write` succeeds."""
    try:
        return await write()
    except (ClusterUnavailable, Refused):
        return False
