"""Questions of requests to the database: one failure answers all waiting ones, whose number is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from correlator.errors import Away, SourceUnavailable
from correlator.pipeline.queries import JobNames, LineQuery, LogLines
from correlator.sources import search
from correlator.sources.archive.archive import DatabaseArchive
from correlator.sources.db import zones
from correlator.sources.db.session import Schema
from correlator.sources.db.sqlite import SQLiteDatabase
from correlator.sources.search import Questions
from tests.support.eventually import eventually


class Session:
    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[Any]:
        return [(sql,)]

    async def close(self) -> None:
        pass


class Stub:
    """A database whose connections wait for `answer`, and fail as long as it is `away`."""

    dialect = SQLiteDatabase.dialect

    def __init__(self) -> None:
        self.away: SourceUnavailable | None = None
        self.answer = asyncio.Event()
        self.opened = 0

    async def open(self, *, dirty: bool = False) -> Session:
        self.opened += 1
        await self.answer.wait()
        if self.away is not None:
            raise self.away
        return Session()

    async def schema(self, session: object) -> Schema:
        return Schema({})

    async def zone(self, session: object) -> zones.Zone:
        return zones.named("UTC")

    async def next_id(self, session: object) -> int:
        return 0


async def answer(_: object, session: Any) -> Any:
    return await session.query("SELECT 1")


@pytest.fixture
async def stub() -> Stub:
    return Stub()


async def test_one_failed_connection_answers_every_question_that_waits(stub):
    stub.away = SourceUnavailable("MariaDB at u@h: no connection", Away.NO_ANSWER)
    asked = Questions(stub)
    waiting = [asyncio.create_task(asked.ask(answer)) for _ in range(12)]
    await asyncio.sleep(0)
    stub.answer.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(e) for e in found] == [SourceUnavailable] * 12
    assert stub.opened == 1
    with pytest.raises(SourceUnavailable):  # and for a second those that come then
        await asked.ask(answer)
    assert stub.opened == 1


async def test_a_query_that_the_server_refuses_fails_its_own_question_alone(stub):
    stub.answer.set()
    asked = Questions(stub)

    async def refused(_: object, __: object) -> None:
        raise SourceUnavailable("bad query", Away.FAILED)

    found = await asyncio.gather(asked.ask(refused), asked.ask(answer), return_exceptions=True)
    assert isinstance(found[0], SourceUnavailable)
    assert found[1] == [("SELECT 1",)]


async def test_a_question_beyond_the_bound_of_the_queue_is_refused_at_once(stub):
    asked = Questions(stub)
    waiting = [asyncio.create_task(asked.ask(answer)) for _ in range(search.MAX_WAITING + 1)]
    await asyncio.sleep(0.01)
    with pytest.raises(SourceUnavailable) as refused:
        await asked.ask(answer)
    assert refused.value.reason is Away.BUSY
    stub.answer.set()
    assert len(await asyncio.gather(*waiting)) == search.MAX_WAITING + 1


async def test_a_question_cancelled_in_the_queue_does_not_block_the_next_one(stub):
    asked = Questions(stub)
    waiting = [asyncio.create_task(asked.ask(answer)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[1].cancel()
    stub.answer.set()
    assert await waiting[2] == [("SELECT 1",)]
    assert await asked.ask(answer) == [("SELECT 1",)]


async def test_other_requests_do_not_wait_while_the_lines_of_a_job_are_read(stub, monkeypatch):
    reading, read = asyncio.Event(), asyncio.Event()

    async def query(self: Session, sql: str, args: Sequence[object] = ()) -> Sequence[Any]:
        reading.set()
        await read.wait()
        return []

    monkeypatch.setattr(Session, "query", query)
    stub.answer.set()
    archive = DatabaseArchive(stub)
    lines = asyncio.create_task(archive.lines(LogLines(JobNames("j", (), frozenset(), 0, None), None, 10, LineQuery())))
    await reading.wait()
    found = asyncio.create_task(archive.find("nobody", lambda: 1))  # without tables it needs no query
    await eventually(found.done)
    assert (found.result(), lines.done()) == (None, False)
    lines.cancel()


async def test_the_results_of_searches_are_remembered_for_a_bounded_number_of_ids(stub):
    stub.answer.set()
    asked, lookup, questions = Questions(stub), search.Lookup(max_remembered=10), 0

    async def ask(question: Any) -> Any:
        nonlocal questions
        questions += 1
        return await asked.ask(question)

    async def asks_for(name: str) -> int:
        before = questions
        assert await lookup.find(ask, name) == []
        return questions - before

    searched = {await asks_for(f"nobody-{n}") for n in range(100)}
    assert len(searched) == 1
    assert {await asks_for(f"nobody-{n}") for n in range(90, 100)} == {searched.pop() - 1}, "the search is not repeated"
    assert await asks_for("nobody-89") > await asks_for("nobody-99"), "an eleventh is forgotten"
