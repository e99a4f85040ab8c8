"""Lines of any job that contain a text, searched back through the log, for every kind of database."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time

import pytest

from correlator.errors import Away, SourceUnavailable
from correlator.model.published import FoundLine
from correlator.pipeline.queries import FindLines, LineQuery, LogLines
from correlator.sources.archive.lines import REST_SHARE
from correlator.sources.db.queries import Queries
from correlator.sources.db.slices import AIM
from correlator.sources.db.zones import fixed
from tests.support.archive_queries import archive_of, at, names, of, selects_lines, unix


async def found(archive, *words: str, limit: int = 100, **query) -> list[FoundLine]:
    """The lines of all pages. Each page goes on below the one before, and says that more of the log is searched."""
    asked = FindLines(limit, LineQuery(words=frozenset(words), **query))
    lines, places, searched = list[FoundLine](), dict[str, int](), 0.0
    while True:
        page = await archive.find_lines(FindLines(asked.limit, asked.query, places=places))
        lines += page.lines
        if not page.places:
            assert (page.searched, page.searched_to) == (1.0, None)
            return lines
        assert searched <= page.searched < 1.0
        assert all(line.event_id >= page.places[""] for line in page.lines)
        assert not places or page.places[""] < places[""]
        places, searched = page.places, page.searched


async def test_lines_of_any_job_are_found_newest_first_with_what_names_it(archive, either_original):
    await either_original.job("u1", started_at=at(0), metadata='{"vm_name": "web-1"}')
    await either_original.job("U2", started_at=at(0), operation="copy")
    step = await either_original.insert("job_steps", job_id="U2", name="s", seq=1, started_at=at(0, micros=0))
    text = {"ts": at(1, micros=0)}
    await either_original.log("of a column: HTTP 503", job_id="u1", **text)
    await either_original.log("http error 503", attrs=json.dumps({"job_id": "u2"}), level="ERROR", **text)
    await either_original.log("of a step", attrs=json.dumps({"step_id": step, "cause": "Http/503"}), **text)
    await either_original.log("http 503", attrs=json.dumps({"external_job_id": "gui-1", "job_id": None}), **text)
    await either_original.log("http 503", attrs=json.dumps({"job_id": "deleted"}), **text)
    await either_original.log("503 alone", job_id="u1", **text)
    await either_original.log("http alone", job_id="u1", **text)
    await either_original.log("http 5_3 503% is another text: http 5 03", **text)
    lines = await found(archive, "http", "503")
    assert [(n.job_id, n.vm_name, n.operation) for n in lines] == [
        (None, None, None),
        (None, None, None),
        ("gui-1", None, None),
        ("U2", None, "copy"),
        ("U2", None, "copy"),
        ("u1", "web-1", "op"),
    ]
    assert [n.message for n in await found(archive, "5_3")] == ["http 5_3 503% is another text: http 5 03"]
    assert [n.message for n in await found(archive, "http", level="ERROR")] == ["http error 503"]


async def test_pages_of_a_few_ids_have_each_line_once_and_pass_over_ids_that_no_row_has(original):
    async with archive_of(original, page_within=0.0, slices=of(10)) as archive:
        await original.job("u1", started_at=at(0))
        due = []
        for n in range(60):
            more = {"id": 10**12} if n == 30 else {}
            due.append(await original.log(f"due {n}", job_id="u1", ts=at(n, micros=0), **more))
            await original.log("another", job_id="u1", ts=at(n, micros=1))
        for limit in (2, 100):
            assert [line.event_id for line in await found(archive, "due", limit=limit)] == due[::-1]
        assert await found(archive, "nowhere") == []
        since, until = unix(20) * 1_000_000, unix(40) * 1_000_000
        lines = await found(archive, "due", since=since, until=until)
        assert [line.event_id for line in lines] == due[20:40][::-1]


async def test_a_slice_that_takes_the_server_too_long_is_searched_in_smaller_ones(original):
    ended = list[str]()

    async def limited(sql, ask):
        if selects_lines(sql):
            first, last = map(int, re.findall(r"id BETWEEN (\d+) AND (\d+)", sql)[0])
            if last - first >= 1_000:
                await asyncio.sleep(5 * AIM)
                ended.append(sql)
                raise SourceUnavailable("too slow", Away.SLOW)
        return await ask()

    async with archive_of(original, through=limited) as archive:
        await original.log("a", id=1)
        due = await original.log("due", id=4_000)
        await original.log("b", id=20_000)
        assert [line.event_id for line in await found(archive, "due")] == [due]
        assert ended
    async with archive_of(original, through=limited, slices=of(20_000)) as archive:
        with pytest.raises(SourceUnavailable, match="too slow"):
            await found(archive, "due")


async def test_missing_ids_are_passed_over_also_where_the_database_is_far_away(original):
    slices = list[str]()

    async def far(sql, ask):
        if selects_lines(sql):
            slices.append(sql)
        await asyncio.sleep(AIM)
        return await ask()

    async with archive_of(original, through=far) as archive:
        for event_id in (1, 30_000_000):
            await original.log("due", id=event_id)
        assert len(await found(archive, "due")) == 2
    assert len(slices) < 10  # 1,500 of the first size


@pytest.mark.parametrize("of_a_job", [False, True])
async def test_one_step_reads_few_rows_that_only_seem_to_match_and_a_failed_one_repeats_nothing(original, of_a_job):
    asked, failing = list[int](), False

    async def counted(sql, ask):
        rows = await ask()
        if selects_lines(sql):
            asked.append(len(rows))
            if failing and len(asked) % 2 == 0:
                raise SourceUnavailable("ended", Away.SLOW)
        return rows

    async def pages(archive, limit: int) -> list[list[int]]:
        given, place = list[list[int]](), None
        while True:
            if of_a_job:
                job = LogLines(names(), None, limit, LineQuery(text='"vm"'), place or 1 << 50)
                part = await archive.lines(job)
                given.append([line.event_id for line in part.lines[::-1]])
                place = part.next_before
            else:
                query = FindLines(limit, LineQuery(words=frozenset({'"vm"'})), places={"": place} if place else {})
                page = await archive.find_lines(query)
                given.append([line.event_id for line in page.lines])
                place = page.places.get("")
            if place is None:
                return given

    await original.job("u1", started_at=at(0))
    due = [n for n in range(1, 601) if n % 100 == 0 or n > 595]
    said = [(n, 'a "vm"' if n in due else "a") for n in range(1, 601)]
    more = f"""'{{"vm": 1}}', '{at(1, micros=0)}'"""
    rows = [f"({n}, 'u1', 'INFO', '{text}', {more})" for n, text in said]
    await original.run(f"INSERT INTO log_events (id, job_id, level, message, attrs, ts) VALUES {','.join(rows)}")
    async with archive_of(original, through=counted, page_within=0.0) as archive:
        got = await pages(archive, 1_000)
        assert [*itertools.chain(*got)] == due[::-1]
        assert max(map(len, got)) < len(due)
        assert len(asked) <= len(got) <= 6
    async with archive_of(original, through=counted) as archive:
        assert [*itertools.chain(*await pages(archive, 2))] == due[::-1]
        asked.clear()
        failing = True
        assert [*itertools.chain(*await pages(archive, 50))] == due[::-1]
        assert len(asked) > 3


async def test_rows_outside_of_the_time_are_left_to_the_database(original, monkeypatch):
    east = -34_200
    read, past_rows_in = set[int](), Queries.past_rows_in

    async def noted(queries, session, ids, began):
        read.update(ids)
        return await past_rows_in(queries, session, ids, began)

    monkeypatch.setattr(Queries, "past_rows_in", noted)
    due = [await original.log("due", ts=at(n + east, micros=0)) for n in range(40)]
    async with archive_of(original, zone=fixed(east)) as archive:
        lines = await found(archive, "due", since=unix(10) * 1_000_000, until=unix(30) * 1_000_000)
    assert [line.event_id for line in lines] == due[10:30][::-1]
    assert read == set(due[10:30])


async def test_searches_take_turns_slice_by_slice_and_after_each_the_database_rests(original):
    slices = list[tuple[float, float]]()

    async def timed(sql, ask):
        if not selects_lines(sql):
            return await ask()
        began = time.monotonic()
        await asyncio.sleep(0.02)
        rows = await ask()
        slices.append((began, time.monotonic()))
        return rows

    async with archive_of(original, through=timed, page_within=60.0, slices=of(100)) as archive:
        for n in range(3):
            await original.log("due", id=1 + 100 * n)
        both = await asyncio.gather(found(archive, "due"), found(archive, "nowhere"))
    assert [len(lines) for lines in both] == [3, 0]
    assert len(slices) == 6
    for (began, ended), (following, _) in itertools.pairwise(slices):
        assert following - ended >= 0.8 * REST_SHARE * (ended - began)
