"""What a shell is offered of the daemon's jobs, and that anything unexpected offers nothing."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from aiohttp import web

from correlator.doctor.service import DaemonAddress
from correlator.terminal import completion
from tests.support.eventually import PATIENCE
from tests.support.fake_daemon import FakeDaemon
from tests.support.job_documents import document


async def offered(url: str, part: str, names: Any = completion.ids, token: str = "") -> list[tuple[str, str | None]]:
    """What is offered, with time enough for a busy machine."""
    daemon = DaemonAddress(url, "", token, None)
    found = await asyncio.to_thread(completion.offered, lambda: daemon, part, names, within=PATIENCE)
    return [(one.value, one.help) for one in found]


async def test_ids_and_names_of_vms_that_begin_so_are_offered_each_once_with_what_they_are():
    first = document("gui-1", external_ids=["gui-1a", "other"], context_id="ctx-1", metadata={"vm_name": "guinea"})
    second = document(
        "gui-2", external_ids=["gui-1a"], context_id="ctx-1", metadata={"vm_name": "guinea"}, title="\x1b[2J"
    )
    async with FakeDaemon().running() as fake:
        fake.replies = [web.json_response({"jobs": [first, second]}) for _ in range(3)]
        words = "guinea unified-live-failover running"
        assert await offered(fake.url, "gui", token="secret") == [
            ("gui-1", words), ("gui-1a", words), ("gui-2", "guinea running"),
        ]  # fmt: skip
        assert await offered(f"{fake.url}/i/dc1/", "", completion.entities) == [("guinea", words), ("ctx-1", words)]
        assert await offered(fake.url.removeprefix("http://"), "c") == [("ctx-1", words)]
        one, two, _ = fake.requests
        assert (one.headers["Authorization"], one.query["q"], one.path) == ("Bearer secret", "gui", "/api/v1/jobs")
        assert (two.headers.get("Authorization"), two.path) == (None, "/i/dc1/api/v1/jobs")


async def test_a_name_that_a_shell_would_not_take_as_it_is_is_not_offered():
    odd = ("two words", "$(reboot)", "a;b", "a\nplain,b", "it's", "*", "~x", "büro", "\x1b[2J", "--url=http://x")
    async with FakeDaemon().running() as fake:
        fake.replies = [web.json_response({"jobs": [document("a", external_ids=odd)]})]
        assert [value for value, _ in await offered(fake.url, "")] == ["a"]


async def test_a_daemon_that_refuses_or_answers_something_else_offers_nothing():
    replies = (
        web.json_response({"detail": "no"}, status=401),
        web.json_response({"jobs": [document("a"), 1]}),
        web.Response(text="<html>"),
    )
    async with FakeDaemon().running() as fake:
        fake.replies = list(replies)
        for _ in replies:
            assert await offered(fake.url, "") == []
    assert await offered(fake.url, "") == [], "it has gone"
    assert await offered("", "") == []


def test_a_daemon_that_does_not_answer_in_time_is_not_waited_for():
    released, ended = threading.Event(), threading.Event()

    def away() -> DaemonAddress:
        released.wait(PATIENCE)
        ended.set()
        return DaemonAddress("", "", "", None)

    assert completion.offered(away, "", completion.ids, within=0.01) == []
    assert not ended.is_set()
    released.set()
