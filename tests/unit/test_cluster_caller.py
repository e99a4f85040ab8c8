"""Requests of a gateway to collectors: deadlines, bounds, and reasons that name the appliance."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from correlator.cluster import rpc
from correlator.cluster import rpc as module
from correlator.cluster.connection import ClusterUnavailable, Connection, NoAnswer, NoResponder
from correlator.cluster.rpc import Caller, Code
from correlator.errors import BadRequest, SourceUnavailable
from correlator.pipeline.queries import IsContext

YES = rpc.encode_result(b"true")


class Collectors:
    """What `Caller` sends to. `replies`: for each instance the next reply, or what is raised."""

    def __init__(self) -> None:
        self.now = 100.0
        self.replies: dict[str, bytes | Exception] = {}
        self.requests: list[tuple[str, str, float, float]] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.caller = Caller(cast("Connection", self), lambda: self.now)

    async def request(self, subject: str, payload: bytes, *, within: float) -> SimpleNamespace:
        """As `Connection.request`."""
        _, _, instance, _, method = subject.split(".")
        self.requests.append((instance, method, rpc.decode_request(payload).within, within))
        await self.hold.wait()
        reply = self.replies[instance]
        if isinstance(reply, Exception):
            raise reply
        return SimpleNamespace(data=reply)

    async def ask(self, instance: str, within: float = 5.0) -> bool:
        return await self.caller.call(instance, IsContext("c"), bool, within)


async def test_a_request_waits_a_little_longer_than_its_collector_may_take():
    collectors = Collectors()
    collectors.replies["dc1"] = YES
    assert await collectors.ask("dc1", 2.0)
    assert collectors.requests == [("dc1", "IsContext", 2.0, 2.0 + module.GRACE)]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (NoAnswer(), "dc1: the collector did not answer within 5 s"),
        (NoResponder(), "dc1: no collector is connected to the cluster"),
        (ClusterUnavailable(), "dc1: the cluster cannot be reached"),
        (rpc.encode_failure(Code.UNAVAILABLE, "the database refuses the login"), "dc1: the database refuses the login"),
        (rpc.encode_failure(Code.BUSY, "later"), "dc1: later"),
        (b"nonsense", "dc1: not a message of this program"),
        (rpc.encode_result(b'"yes"'), "dc1: not a message of this program"),
    ],
)
async def test_every_failure_is_a_reason_for_clients_that_names_the_appliance(reply, reason):
    collectors = Collectors()
    collectors.replies["dc1"] = reply
    with pytest.raises(SourceUnavailable) as raised:
        await collectors.ask("dc1")
    assert raised.value.public.startswith(reason)


async def test_what_a_client_asked_for_wrongly_is_its_own_mistake():
    collectors = Collectors()
    collectors.replies["dc1"] = rpc.encode_failure(Code.BAD_REQUEST, "after: expected …")
    with pytest.raises(BadRequest, match="after: expected …"):
        await collectors.ask("dc1")


async def test_a_collector_without_a_reply_rests_and_the_others_do_not():
    collectors = Collectors()
    collectors.replies |= {"dc1": NoAnswer(), "dc2": YES}
    with pytest.raises(SourceUnavailable):
        await collectors.ask("dc1")
    collectors.replies["dc1"] = YES
    collectors.now += module.REST / 2
    with pytest.raises(SourceUnavailable, match="dc1: the collector does not answer"):
        await collectors.ask("dc1")
    assert await collectors.ask("dc2")
    assert [r[0] for r in collectors.requests] == ["dc1", "dc2"]
    collectors.now += module.REST
    assert await collectors.ask("dc1")
    assert await collectors.ask("dc1")


async def test_a_collector_that_replies_that_it_was_too_slow_does_not_rest():
    collectors = Collectors()
    collectors.replies["dc1"] = rpc.encode_failure(Code.TIMEOUT, "too slow")
    with pytest.raises(SourceUnavailable):
        await collectors.ask("dc1")
    collectors.replies["dc1"] = YES
    assert await collectors.ask("dc1")


async def test_requests_beyond_the_bound_fail_at_once_and_a_cancelled_one_makes_room():
    collectors = Collectors()
    collectors.replies["dc1"] = YES
    collectors.hold.clear()
    waiting = [asyncio.create_task(collectors.ask("dc1")) for _ in range(module.MAX_CALLS)]
    await asyncio.sleep(0)
    with pytest.raises(SourceUnavailable, match="dc1: too many requests wait for collectors"):
        await collectors.ask("dc1")
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    one_more = asyncio.create_task(collectors.ask("dc1"))
    await asyncio.sleep(0)
    collectors.hold.set()
    assert await one_more
    assert all(await asyncio.gather(*waiting[1:]))
