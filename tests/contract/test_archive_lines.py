"""A part of a job's log: by step, text and time, from an event ID on, and back from one; for every kind of database."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from correlator.pipeline.queries import JobNames, JobQuery, LineQuery, LogLines
from correlator.sources.db import zones
from tests.support.archive_queries import archive_of, at, go_encoded, listed, names, unix


async def messages(archive, query: LineQuery, asked: JobNames | None = None) -> list[str]:
    """The messages of all pages of two lines, read forward; reading back must give the same ones."""
    forward, after = list[str](), None
    while (page := await archive.lines(LogLines(asked or names(), after, 2, query))).more or page.lines:
        forward += [line.message for line in page.lines]
        after = page.next_after
    pages, before = list[list[str]](), 1 << 50
    while True:
        earlier = await archive.lines(LogLines(asked or names(), None, 2, query, before))
        pages.append([line.message for line in earlier.lines])
        if (before := earlier.next_before) is None:
            break
    assert [message for page in reversed(pages) for message in page] == forward
    assert all(len(page) <= 2 for page in pages)
    return forward


async def test_lines_are_selected_by_step_text_and_time_in_both_directions(archive, either_original):
    await either_original.job("u1", started_at=at(0))
    one, two = [
        await either_original.insert("job_steps", job_id="u1", name=name, seq=seq, started_at=at(0, micros=0))
        for seq, name in enumerate(("one", "two"), 1)
    ]
    await either_original.log("begin", job_id="u1", ts=at(1, micros=1))
    await either_original.log("of one", job_id="u1", step_id=one, ts=at(2, micros=0))
    await either_original.log("of two", ts=at(3, micros=0), attrs=json.dumps({"step_id": two, "volume": "Vol-7 <a>"}))
    await either_original.log("of one too", ts=at(4, micros=0), attrs=json.dumps({"step_id": one}), level="WARN")
    await either_original.log("End", job_id="u1", ts=at(5, micros=0), attrs=json.dumps({"step_id": "no number"}))
    assert await messages(archive, LineQuery()) == ["begin", "of one", "of two", "of one too", "End"]
    assert await messages(archive, LineQuery(steps=frozenset({one}))) == ["of one", "of one too"]
    assert await messages(archive, LineQuery(steps=frozenset({one, two}), level="WARN")) == ["of one too"]
    assert await messages(archive, LineQuery(text="eN")) == ["End"]
    assert await messages(archive, LineQuery(text="vol-7")) == ["of two"]
    assert await messages(archive, LineQuery(text="100%_")) == []
    assert await messages(archive, LineQuery(since=unix(3) * 1_000_000)) == ["of two", "of one too", "End"]


async def test_pages_from_an_id_on_and_below_it_have_every_line_once(archive, either_original):
    await either_original.job("u1", started_at=at(0))
    await either_original.job("u2", started_at=at(0))
    ids = [await either_original.log(f"line {n}", job_id="u1", ts=at(1, micros=n)) for n in range(5)]
    await either_original.log("another's", job_id="u2", ts=at(1, micros=9))
    for middle in (1, ids[2], ids[2] + 1, ids[-1] + 1, ids[-1] + 1000):
        below = await archive.lines(LogLines(names(), None, 10, LineQuery(), middle))
        on = await archive.lines(LogLines(names(), middle, 10, LineQuery()))
        assert [line.event_id for line in below.lines] == [i for i in ids if i < middle]
        assert [line.event_id for line in on.lines] == [i for i in ids if i >= middle]
        assert (below.next_before, on.more) == (None, False)
    on = await archive.lines(LogLines(names(), ids[-1] + 1, 10, LineQuery()))
    newer = await either_original.log("newer", job_id="u1", ts=at(2, micros=0))
    following = await archive.lines(LogLines(names(), on.next_after, 10, LineQuery()))
    assert [line.event_id for line in following.lines] == [newer]


async def test_each_page_goes_on_however_little_time_there_is_and_however_many_ids_are_missing(original):
    async with archive_of(original, page_within=0.0) as archive:
        await original.job("u1", started_at=at(0))
        last = await original.log("after many ids that no row has yet", id=15_000, job_id="u1")
        found, after, pages = list[int](), None, 0
        while not found and pages < 30:
            page = await archive.lines(LogLines(names(), after, 10, LineQuery()))
            found += [line.event_id for line in page.lines]
            after, pages = page.next_after, pages + 1
    assert found == [last]


UNUSUAL = ("😀", "İ", "Ⱥ", "ẞ", "<", "&", "a<b>&c", "\u2028", "'", "/", '"', "ü", "日本", "\\", "10%", "a_b?#")
"""Texts that collations compare in their own way, and that encoders of JSON escape or do not."""


async def test_a_text_is_found_as_it_is_in_messages_and_in_attrs_however_they_are_encoded(current):
    archive, original = current
    for n, text in enumerate(UNUSUAL):
        job = f"u{n}"
        await original.job(job, started_at=at(0))
        encoded = [json.dumps(f"x {text} y"), json.dumps(f"x {text} y", ensure_ascii=False), go_encoded(f"x {text} y")]
        encoded.append(json.dumps(f"x {text} y").replace("/", "\\/"))
        await original.log(f"in the message: {text} x", job_id=job, ts=at(1, micros=0))
        for number, value in enumerate(dict.fromkeys(encoded), 1):
            await original.log(f"in attrs {number}", job_id=job, ts=at(2, micros=number), attrs=f'{{"k": {value}}}')
        for other in ("🚀", "🎉", "s", "x"):
            attrs = json.dumps({"k": other}, ensure_ascii=False)
            await original.log(f"another: {other}", job_id=job, ts=at(3, micros=0), attrs=attrs)
        found = await messages(archive, LineQuery(text=text), names(job))
        wanted = [f"in the message: {text} x", *(f"in attrs {n}" for n in range(1, len(set(encoded)) + 1))]
        assert found == wanted, text


async def test_an_unusual_text_is_found_in_ids_names_and_errors_of_jobs(current):
    archive, original = current
    for n, text in enumerate(UNUSUAL):
        for number, dumped in enumerate(
            (json.dumps(f"x{text}y"), json.dumps(f"x{text}y", ensure_ascii=False), go_encoded(f"x{text}y"))
        ):
            await original.job(f"vm-{n}-{number}", started_at=at(number), metadata=f'{{"vm_name": {dumped}}}')
            await original.job(f"id-{n}-{number}", started_at=at(10 + number), metadata=f'{{"gui_job_id": {dumped}}}')
        await original.job(f"error-{n}", started_at=at(20), error_message=f"no {text} here")
        await original.job(f"column-{n}", started_at=at(20), external_job_id=f"in the column {text}")
    for n, text in enumerate(UNUSUAL):
        of_vm = {f"vm-{n}-{k}" for k in range(3)}
        assert of_vm | {f"id-{n}-{k}" for k in range(3)} <= set(await listed(archive, JobQuery(text=text))), text
        assert f"error-{n}" in await listed(archive, JobQuery(words=frozenset({text}))), text
        assert set(await listed(archive, JobQuery(vm_name=f"x{text}y"))) == of_vm, text
        found = await archive.find(f"x{text}y", lambda: 1)
        assert found is not None
        assert found.resolved.job_id == f"id-{n}-2", text
        found = await archive.find(f"in the column {text}", lambda: 1)
        assert found is not None
        assert found.resolved.job_id == f"column-{n}", text


BERLIN = ZoneInfo("Europe/Berlin")
FIRST = datetime(2025, 10, 26, 0, 0, tzinfo=UTC)
"""On a clock in Berlin it is 02:00, as it is an hour later."""


def minutes(*after: float) -> list[datetime]:
    return [FIRST + timedelta(minutes=minute) for minute in after]


OTHERS = minutes(-90, -30, 10, 20, 59.9, 60.1, 80, 110, 150)


@pytest.mark.parametrize(
    ("own", "others"),
    [
        (minutes(5, 6, 50), OTHERS),
        (minutes(65, 66, 110), []),
        (minutes(65, 66, 110), OTHERS),
        (minutes(-10, 3, 5, 55, 62, 118, 125), []),
    ],
)
async def test_lines_in_the_hour_that_comes_twice_have_their_time_and_since_loses_none(original, own, others):
    await original.job("u1")
    await original.job("u2")
    for when, name in sorted([(when, "u1") for when in own] + [(when, "u2") for when in others]):
        ts = when.astimezone(BERLIN).strftime("%Y-%m-%d %H:%M:%S.%f")
        await original.log("x", job_id=name, ts=ts)
    began = unix_micros(own[0])
    job = JobNames("u1", (), frozenset(), began, None)
    async with archive_of(original, zone=zones.named("Europe/Berlin")) as archive:
        for since in own:
            query = LineQuery(since=unix_micros(since))
            page = await archive.lines(LogLines(job, None, 10, query))
            back = await archive.lines(LogLines(job, None, 10, query, 1 << 50))
            times = [unix_micros(when) for when in own if when >= since]
            assert [line.at for line in page.lines] == [line.at for line in back.lines] == times


async def test_a_row_that_came_late_does_not_move_those_that_follow_by_an_hour(original):
    own = minutes(58, 60.1, 59.9, 60.2, 61)
    await original.job("u1")
    await original.job("u2")
    await original.log("earlier", job_id="u2", ts="2025-10-26 01:00:00")
    for when in own:
        await original.log("x", job_id="u1", ts=when.astimezone(BERLIN).strftime("%Y-%m-%d %H:%M:%S.%f"))
    job = JobNames("u1", (), frozenset(), unix_micros(own[0]), None)
    async with archive_of(original, zone=zones.named("Europe/Berlin")) as archive:
        assert [line.at for line in (await archive.lines(LogLines(job, None, 10, LineQuery()))).lines] == sorted(
            map(unix_micros, own)
        )


def unix_micros(when: datetime) -> int:
    return round(when.timestamp() * 1_000_000)
