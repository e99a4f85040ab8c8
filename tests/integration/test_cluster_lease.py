"""The lease on a real server: neither a full link nor the loss of all streams takes it, and a stop hands it over."""

import asyncio
import contextlib
import json
import shutil
import time

from correlator import app
from correlator.cluster import keys
from correlator.cluster.connection import ClusterUnavailable, Refused
from correlator.cluster.fence import StreamMessage
from correlator.cluster.lease import Lease
from correlator.cluster.standby import TAKE_AFTER
from correlator.config import loading
from correlator.daemon import Process
from tests.support.background import in_background
from tests.support.cluster import connected, create_streams, settings
from tests.support.eventually import PATIENCE, eventually
from tests.support.faults.proxy import Proxy
from tests.support.there import there


@contextlib.asynccontextmanager
async def candidate(url):
    """A lease on a connection of its own."""
    await create_streams(url)
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


async def test_a_link_that_is_full_for_longer_than_the_lease_takes_it_from_nobody(nats):
    async with Proxy(nats.port) as link:
        url = f"nats://127.0.0.1:{link.port}"
        async with connected(url) as renewals, connected(url) as writes, candidate(url) as second:
            lease = Lease(renewals, writes, settings(url))
            fence = await lease.acquire()
            async with waiting(second), held(lease) as holding:
                await eventually(lambda: is_renewed(renewals))
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
            await eventually(lambda: is_renewed(first.connection))
            await eventually(lambda: second.describe()["active"])
            await asyncio.to_thread(nats.kill)
            await asyncio.to_thread(shutil.rmtree, nats.folder / "js")
            await asyncio.to_thread(nats.start)
            await create_streams(nats.url)

            async def accepted():
                await fence.write([StreamMessage(keys.job("dc1", "a"), b"{}")])
                return True

            await eventually(lambda: first.connection.connected)
            await eventually(lambda: quietly(accepted))
            assert not holding.done()


async def test_a_stop_while_the_checkpoint_is_read_hands_the_lease_over(nats, tmp_path, monkeypatch):
    reading = asyncio.Event()

    async def never(_: object) -> None:
        reading.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("correlator.in_cluster._restored", never)
    environ = {
        "CORRELATOR_DATABASE__URL": f"sqlite://{tmp_path}/no.db",
        "CORRELATOR_CLUSTER__URL": nats.url,
        "CORRELATOR_CLUSTER__INSTANCE": "dc1",
        "CORRELATOR_HTTP__LISTEN": "127.0.0.1:0",
        "CORRELATOR_STATE__DIRECTORY": str(tmp_path),
    }
    process = Process(loading.load(None, environ), None, None, asyncio.Event(), asyncio.Event())
    await create_streams(nats.url)
    async with connected(nats.url) as connection, asyncio.timeout(PATIENCE):
        term = asyncio.create_task(app.run_terms(process))
        await reading.wait()
        process.stop.set()
        await term
        alive = there(await connection.last(keys.ALIVE, keys.alive("dc1")))
        assert json.loads(alive.data)["released"]


async def is_renewed(connection):
    return await connection.last(keys.ALIVE, keys.alive("dc1")) is not None


async def quietly(write):
    """True once `write` succeeds."""
    try:
        return await write()
    except (ClusterUnavailable, Refused):
        return False
