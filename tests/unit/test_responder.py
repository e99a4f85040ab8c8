"""A collector's answers to gateways: bounded in number, in time and in bytes, and each failure has its code."""

from __future__ import annotations

import asyncio
import logging

import msgspec
import pytest

from correlator.cluster import rpc
from correlator.cluster.rpc import Code, RemoteError
from correlator.errors import Away, BadRequest, SourceUnavailable
from correlator.ops.cluster_metrics import REQUESTS_REJECTED
from correlator.pipeline.queries import FindJob
from correlator.sinks.cluster.gateway_requests import Responder
from tests.support.eventually import eventually


class Requests:
    """A responder; `answer` is what it does."""

    def __init__(self, answer, most: int = 4) -> None:
        self.responder = Responder(answer, most)
        self.replies: list[bytes] = []

    async def send(self, name: str = "x", within: float = 5.0, method: str = "FindJob") -> None:
        await self.raw(rpc.encode_request(FindJob(name), within), method)

    async def raw(self, message: bytes, method: str = "FindJob") -> None:
        await self.responder.receive(method, message, self.reply)

    async def reply(self, message: bytes) -> None:
        self.replies.append(message)

    async def all(self) -> list[object]:
        """The result or the failure code of each reply, once nothing is running."""
        await eventually(lambda: self.responder.running == 0, every=0.001)
        return [self.outcome(reply) for reply in self.replies]

    def outcome(self, reply: bytes) -> object:
        try:
            return rpc.decode_reply(reply, object)
        except RemoteError as error:
            return error.code


async def echo(params: FindJob) -> bytes:
    return msgspec.json.encode(params.name)


async def test_a_request_is_answered():
    requests = Requests(echo)
    await requests.send("a")
    assert await requests.all() == ["a"]


async def test_requests_beyond_the_bound_are_rejected_and_counted_and_the_others_answered():
    go = asyncio.Event()

    async def slow(params: FindJob) -> bytes:
        await go.wait()
        return await echo(params)

    rejected = REQUESTS_REJECTED._value.get()
    requests = Requests(slow, most=3)
    for n in range(10):
        await requests.send(str(n))
    assert requests.responder.running == 3
    assert [requests.outcome(r) for r in requests.replies] == [Code.BUSY] * 7
    assert REQUESTS_REJECTED._value.get() - rejected == 7
    go.set()
    assert (await requests.all())[7:] == ["0", "1", "2"]
    await requests.send("later")
    assert (await requests.all())[10:] == ["later"]


async def test_the_work_for_a_request_ends_when_its_client_does_not_wait_any_more():
    ended: list[str] = []

    async def hangs(params: FindJob) -> bytes:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(params.name)
        return b"1"

    requests = Requests(hangs)
    await requests.send("a", within=0.01)
    assert await requests.all() == [Code.TIMEOUT]
    assert ended == ["a"]


async def test_closing_cancels_what_is_being_answered():
    requests = Requests(lambda _: asyncio.sleep(3600))
    await requests.send()
    await requests.responder.close()
    assert await requests.all() == []


@pytest.mark.parametrize(
    ("error", "code", "detail"),
    [
        (
            SourceUnavailable("u@10.1.2.3: denied", Away.LOGIN_REFUSED),
            Code.UNAVAILABLE,
            "the database refuses the login",
        ),
        (BadRequest("after: …"), Code.BAD_REQUEST, "after: …"),
        (ValueError("a secret"), Code.INTERNAL, "Internal error. See the collector's log."),
    ],
)
async def test_a_failure_has_a_code_and_names_no_host_or_account(error, code, detail, caplog):
    async def fails(_: FindJob) -> bytes:
        raise error

    requests = Requests(fails)
    with caplog.at_level(logging.CRITICAL):
        await requests.send()
        await requests.all()
    with pytest.raises(RemoteError) as raised:
        rpc.decode_reply(requests.replies[0], object)
    assert (raised.value.code, raised.value.detail) == (code, detail)


async def test_a_reply_that_is_too_large_is_a_failure_and_never_sent():
    async def large(_: FindJob) -> bytes:
        return b'"%b"' % (b"x" * rpc.MAX_BYTES)

    requests = Requests(large)
    await requests.send()
    assert await requests.all() == [Code.INTERNAL]


async def test_a_malformed_request_and_an_unknown_method_are_answered_with_their_code():
    requests = Requests(echo)
    await requests.raw(b"{")
    await requests.raw(b'{"params":{}}')
    await requests.raw(b'{"params":{"name":"x"},"version":9}')
    await requests.send(method="newer")
    assert await requests.all() == [Code.MALFORMED, Code.MALFORMED, Code.UNSUPPORTED, Code.UNSUPPORTED]


async def test_a_flood_leaves_the_loop_to_other_tasks():
    """Others run between any two requests that arrived together."""
    requests = Requests(lambda _: asyncio.sleep(3600), most=1)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(1000):
        await requests.send()
    task.cancel()
    assert turns >= 1000
    await requests.responder.close()
