"""The owner keys of events and of the checkpoint are written by the lease's holder only, whatever server answers."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any, cast

import pytest

from correlator.cluster import keys
from correlator.cluster.connection import Fenced, Unacknowledged
from correlator.cluster.fence import Fence
from correlator.cluster.stream_reader import StreamReader
from correlator.sinks.cluster.events import EventQueue, EventWriter, StreamEvent
from correlator.sinks.event_log import EventLog
from correlator.state.checkpoint_stream import StreamCopy
from tests.support.lease_servers import LONG_AGO, OWNER, Servers

ME, OTHER = b"me", b"other"
EVENTS = keys.events_owner("dc1")


@pytest.fixture
def servers():
    servers = Servers()
    servers.put(OWNER, ME)
    return servers


@pytest.fixture
def lease(servers):
    return Fence(cast(Any, servers), keys.STATE, OWNER, ME, servers.values[OWNER][0])


@pytest.fixture
def writer(servers, lease):
    pending = EventQueue(EventLog(), lambda: 0.0)
    pending.add(StreamEvent("a", "dc1:1", b"{}"))
    return EventWriter("dc1", lease, pending, within=1.0, rewrite_every=3600)


async def test_a_holder_that_is_followed_while_it_begins_leaves_the_events_to_its_successor(servers, writer):
    def follow(subject):
        if subject == OWNER:
            servers.put(OWNER, OTHER)
            servers.put(EVENTS, OTHER)

    servers.after_read = follow
    with contextlib.suppress(Unacknowledged, Fenced):
        await writer.step()
    assert servers.values[EVENTS][1] == OTHER
    with pytest.raises(Fenced):
        await writer.step()


@pytest.mark.parametrize("old", [None, LONG_AGO])
async def test_a_server_that_lags_delays_events_and_is_no_loss_of_the_lease(servers, writer, old):
    servers.old[OWNER] = old
    asyncio.get_running_loop().call_later(0.1, servers.old.clear)
    assert await writer.step() == 1


def test_a_server_that_lags_for_long_fails_the_write_and_is_no_loss_of_the_lease(loop, servers, lease):
    def owning():
        task = loop.create_task(lease.own(keys.CHECKPOINT, keys.checkpoint_owner("dc1")))
        loop.run(60)
        task.result()

    servers.old[OWNER] = LONG_AGO
    with pytest.raises(Unacknowledged):
        owning()
    servers.put(OWNER, OTHER)
    servers.old.clear()
    with pytest.raises(Fenced):
        owning()


async def test_a_row_that_another_server_knows_to_be_removed_is_not_read(servers, monkeypatch):
    """The first answer is of a server that lags."""
    rows = [(keys.checkpoint("dc1", "event", n), b"event") for n in "12"]
    rows += [(keys.checkpoint("dc1", "event", "1"), b"")]

    async def read(_):
        for seq, (subject, value) in enumerate(rows, 1):
            yield SimpleNamespace(headers={"Nats-Subject": subject, "Nats-Sequence": str(seq)}, data=value)

    monkeypatch.setattr(StreamReader, "messages", read)
    copy = StreamCopy(cast(Any, servers), "dc1")
    await copy.read()
    assert copy.rows == {("event", "2"): b"event"}
