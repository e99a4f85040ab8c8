"""A request is sent again if a server hangs, or leads the stream no more, in virtual time."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from correlator.cluster.connection import ASK_AGAIN, ASKED, Connection, NoAnswer, NoResponder
from tests.support.cluster import settings

WITHIN = 1.0


class Servers(Connection):
    """Of the requests so many reach a server that hangs. `asked`: all so far; `open`: those without an answer yet."""

    def __init__(self, hanging: int, error: Exception | None = None, data: bytes = b"value") -> None:
        super().__init__(settings("nats://127.0.0.1:1"), "collector")
        self.hanging, self.error, self.data, self.asked, self.open = hanging, error, data, 0, 0

    async def request(self, subject: str, payload: bytes = b"", *, headers: Any = None, within: float = 5.0) -> Any:
        self.asked += 1
        self.open += 1
        try:
            if self.error is not None:
                raise self.error
            if self.asked <= self.hanging:
                await asyncio.sleep(within)
                raise NoAnswer("no answer")
            await asyncio.sleep(0.01)
            return SimpleNamespace(headers={"Nats-Sequence": "7"}, data=self.data)
        finally:
            self.open -= 1


@pytest.mark.parametrize("hanging", [0, 1, 3])
def test_another_server_is_asked_soon_and_no_request_is_left(loop, hanging):
    servers = Servers(hanging)
    reading = loop.create_task(servers.last("KV_cor", "key", within=WITHIN))
    loop.run(hanging * ASK_AGAIN + 0.02)
    assert reading.result().data == b"value"
    assert (servers.asked, servers.open) == (hanging + 1, 0)


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_the_api_is_called_again_while_no_server_leads_the_stream(loop, lost):
    servers = Servers(lost, data=b'{"config": {}}')
    calling = loop.create_task(servers.api("STREAM.INFO.KV_cor", within=WITHIN))
    loop.run(lost * WITHIN / ASKED + 0.02)
    assert calling.result() == {"config": {}}
    assert (servers.asked, servers.open) == (lost + 1, 0)


def test_if_all_hang_the_deadline_holds_and_the_requests_are_few(loop):
    servers = Servers(100)
    reading = loop.create_task(servers.last("KV_cor", "key", within=WITHIN))
    loop.run(WITHIN + 0.01)
    assert isinstance(reading.exception(), NoAnswer)
    assert (servers.asked, servers.open) == (ASKED, 0)


def test_that_nobody_keeps_the_stream_is_known_at_once(loop):
    servers = Servers(0, NoResponder("nobody"))
    reading = loop.create_task(servers.last("KV_cor", "key", within=WITHIN))
    loop.run(0.01)
    assert isinstance(reading.exception(), NoResponder)
    assert servers.asked == 1
