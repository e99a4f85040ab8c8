"""Any bytes on every subject that a role of deploy/nats may write: no collector or gateway ends or loses a document."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

from correlator.cluster import keys
from correlator.cluster.connection import Connection
from correlator.cluster.lease import Lease
from correlator.sinks.cluster.gateway_requests import GatewayRequests
from correlator.sinks.cluster.sink import ClusterSink
from correlator.sinks.event_log import EventLog
from tests.support import garbage
from tests.support.cluster_harness import Collector
from tests.support.deployed_nats import DeployedNats
from tests.support.eventually import eventually
from tests.support.gateways import RunningGateway, running


def certificate(nats: DeployedNats, user: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=nats.certificates.ca)
    context.load_cert_chain(nats.certificates.cert(user), nats.certificates.key(user))
    return context


class Active(Collector):
    """The active collector of an appliance: it holds and renews its lease, writes, and answers gateways."""

    def __init__(self, nats: DeployedNats, instance: str) -> None:
        super().__init__(nats.url, instance, timings={"epoch_checked_every": 0.5})
        self.connection = Connection(nats.section(f"collector-{instance}", instance), "collector")
        self.terms = 0

    @contextlib.asynccontextmanager
    async def active(self, nats: DeployedNats) -> Any:
        async with self.connected():
            lease = Lease(self.connection, self.connection, nats.section(f"collector-{self.instance}", self.instance))
            task = asyncio.create_task(self._terms(lease))
            await eventually(lambda: self.terms)
            yield self
            assert not task.done(), task
            task.cancel()
            await asyncio.wait([task])

    async def _terms(self, lease: Lease) -> None:
        while True:
            fence = await lease.acquire()
            self.terms += 1
            sink = ClusterSink(
                self.instance, fence, lambda _: lease.lose(), lambda: self.read_to, EventLog(),
                timings=self.timings,
            )  # fmt: skip
            requests = GatewayRequests(self.connection, self.instance)
            work = lease.hold(), sink.run(self.hub), requests.run(self.hub)
            tasks = [asyncio.create_task(one) for one in work]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                tasks[0].result()  # The lease was lost. Another task has ended by an error.
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)


async def shows(gateway: RunningGateway, one: Collector) -> bool:
    """Whether the gateway has what the appliance has, by REST, with the change that the appliance makes now."""
    one.change("a", "b")
    changed = {shown.job_id: shown.view.error for shown in one.hub.published.all()}

    async def same() -> bool:
        status, page = await gateway.get(f"/i/{one.instance}/api/v1/jobs")
        return status == 200 and {job["job_id"]: job["error"] for job in page["jobs"]} == changed

    return bool(await eventually(same))


async def test_garbage_of_every_role_ends_nobody_and_hides_no_document():
    with DeployedNats() as nats:
        await nats.create_streams()
        async with contextlib.AsyncExitStack() as stack:
            one, other = [await stack.enter_async_context(Active(nats, name).active(nats)) for name in ("dc1", "dc2")]
            section = nats.section("gateway", "here")
            first = await stack.enter_async_context(running(nats.url, section))
            assert await shows(first, one)
            assert await shows(first, other)

            # A collector and a gateway whose hosts were broken into, or that run another program.
            found = list(garbage.messages(garbage.of_collector("dc1")))
            sent = await garbage.send(nats.port, found, certificate(nats, "collector-dc1"))
            found = list(garbage.messages(garbage.of_gateway("dc1", "dc2")))
            sent += await garbage.send(nats.port, found, certificate(nats, "gateway"), b"_INBOX.cor.gateway.bad.1")
            assert sent > 500

            assert await shows(first, other)
            assert await shows(first, one)
            assert one.connection.parser.count
            assert other.terms == 1
            # What was replaced is right for those that start now.
            async with running(nats.url, section) as second:
                assert await shows(second, one)
                assert await shows(second, other)
                status, ready = await first.get("/health/ready")
                assert status == 200
                assert "passed over, as unreadable" in ready["parts"]["cluster"]["error"]
                assert ready["parts"]["cluster"]["subject"].startswith("$KV.cor.dc1.")
            await eventually(lambda: one.connection.connected and other.connection.connected)


async def test_a_request_has_no_reply_that_is_a_write_of_the_collector():
    with DeployedNats() as nats:
        await nats.create_streams()
        async with Active(nats, "dc1").active(nats) as one:
            request = (keys.rpc("dc1", "find").encode(), b"", b'{"params":{"name":"a"},"within":1}')
            tls = certificate(nats, "gateway")
            before = await one.connection.last(keys.STATE, keys.owner("dc1"))
            await garbage.send(nats.port, [request], tls, keys.owner("dc1").encode())
            await garbage.send(nats.port, [request], tls, keys.job("dc1", "made-up").encode())
            async with nats.connected("gateway") as gateway:  # Answered after these.
                await gateway.request(keys.rpc("dc1", "find"), request[2])
            after = await one.connection.last(keys.STATE, keys.owner("dc1"))
            assert before is not None
            assert after is not None
            assert before.data == after.data
            assert await one.connection.last(keys.STATE, keys.job("dc1", "made-up")) is None
