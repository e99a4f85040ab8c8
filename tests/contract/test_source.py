"""What a source reads is what was written: values, times and texts, whatever the database, driver and generation."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from datetime import UTC, datetime, timedelta

from correlator.jobs import fold, joblog
from correlator.model.facts import Job, Reading, Status
from correlator.model.rows import LogRow
from correlator.pipeline.queries import JobQuery
from correlator.sources.db import zones
from correlator.sources.db.queries import read_readings
from tests.support.archive_queries import archive_of, listed
from tests.support.mariadb import ROLLED_BACK
from tests.support.source_databases import open_queries

SECOND = 1_000_000
STAMP, MICROS = "2026-03-01 10:00:00.123456", 1_772_359_200_123_456
STORED_WHOLE = "2026-03-01 10:00:00"
WHOLE = MICROS // SECOND * SECOND


def micros(text: str) -> int:
    """UTC, as text → microseconds."""
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(
        microseconds=1
    )


async def rows(original, **options) -> list[LogRow]:
    async with open_queries(original.source(**options)) as (queries, session):
        return await queries.rows_in(session, range(1, 101))


async def test_a_log_row_comes_as_it_was_written_without_the_columns_that_are_not_there(either_original):
    original = either_original
    await original.job("u1")
    step_id = await original.insert("job_steps", job_id="u1", name="one", seq=1, started_at=STAMP)
    more = {} if original.rolled_back else {"external_job_id": "ext-1"}
    attrs = json.dumps({"job_id": "u1", "n": [1, None, "x"]})
    full = await original.log("full", level="WARN", job_id="u1", step_id=step_id, attrs=attrs, ts=STAMP, **more)
    bare = await original.log("bare", ts="2026-03-01 10:00:00")
    assert await rows(original) == [
        LogRow(full, "full", MICROS, "WARN", "u1", step_id, attrs, more.get("external_job_id")),
        LogRow(bare, "bare", WHOLE),
    ]


async def test_what_an_appliance_lacks_is_named_and_nothing_else(either_original):
    source = either_original.source()
    session = await source.open()
    missing = (await source.schema(session)).missing()
    await session.close()
    lacks = [f"{t}.{c}" for t in ("log_events", "job_tracking") for c in ROLLED_BACK[t]]
    assert missing == (lacks if either_original.rolled_back else [])


async def test_a_log_of_id_message_and_time_alone_is_enough(original):
    await original.run("DROP TABLE log_events")
    await original.run("DROP TABLE job_steps")
    await original.run(
        "CREATE TABLE log_events (id INTEGER PRIMARY KEY, message VARCHAR(100) NOT NULL, ts DATETIME NOT NULL)"
    )
    await original.run("INSERT INTO log_events VALUES (7, 'bare', '2026-03-01 10:00:00')")
    assert await rows(original) == [LogRow(7, "bare", WHOLE)]
    async with open_queries(original.source()) as (queries, session):
        await original.job("u1")
        (reading,) = await read_readings(queries, session, 5, ["u1"])
        assert reading.record is not None
        assert reading.steps is None  # not "none": they cannot be read
        assert await queries.jobs_of_steps(session, [1]) == {}


async def test_records_come_as_they_were_written(either_original):
    original = either_original
    new = {} if original.rolled_back else {"context_id": "ctx-1", "job_category": "failover"}
    metadata = json.dumps({"failover_job_id": "ext-2", "vm_name": "pg"})
    await original.job("parent")
    await original.job(
        "u1",
        job_type="failover",
        status="failed",
        parent_job_id="parent",
        external_job_id="ext-1",
        metadata=metadata,
        error_message="boom",
        started_at="2026-03-01 10:00:00",
        completed_at="2026-03-01 10:00:05",
        created_at="2026-03-01 09:59:59",
        updated_at="2026-03-01 10:00:06",
        canceled_at=STAMP,
        percent_complete=200,
        owner="system",
        **new,
    )
    step = await original.insert(
        "job_steps", job_id="u1", name="one", seq=3, status="skipped", started_at=STAMP, error_message="why"
    )
    async with open_queries(original.source()) as (queries, session):
        first, second, third = await read_readings(queries, session, 9, ["u1", "parent", "nobody"])
        record = first.record
        assert record is not None
        assert (record.job_id, record.status, record.job_type, record.operation) == ("u1", "failed", "failover", "op")
        assert (record.parent_job_id, record.external_job_id) == ("parent", "ext-1")
        assert (record.metadata, record.error_message, record.percent_complete) == (metadata, "boom", 200)
        assert (record.started_at, record.completed_at) == (WHOLE, WHOLE + 5 * SECOND)
        assert (record.created_at, record.updated_at) == (WHOLE - SECOND, WHOLE + 6 * SECOND)
        assert (record.canceled_at, record.owner) == (MICROS, "system")
        assert (record.context_id, record.job_category) == (new.get("context_id"), new.get("job_category"))
        assert [(s.id, s.name, s.seq, s.status) for s in first.steps or ()] == [(step, "one", 3, "skipped")]
        assert first.steps is not None
        assert (first.steps[0].started_at, first.steps[0].completed_at) == (MICROS, None)
        assert first.steps[0].error_message == "why"
        assert second.children == ((WHOLE, "u1"),)
        assert (third.job_id, third.record, third.steps, third.observed_at) == ("nobody", None, (), 9)
        assert await queries.active_ids(session) == {"parent"}
        assert await queries.jobs_of_steps(session, [step, 999]) == {step: "u1"}


async def test_a_legacy_record_comes_as_it_was_written(original):
    await original.insert(
        "failover_jobs",
        job_id="unified-1",
        vm_id="vm-1",
        job_type="live",
        status="creating_vm",
        source_vm_name="pg",
        source_vm_spec='{"cpus":2}',
        linstor_snapshot_name="snap",
        created_at="2026-03-01 10:00:00",
        updated_at="2026-03-01 10:00:01",
    )
    async with open_queries(original.source()) as (queries, session):
        (record,) = await queries.legacy_where(session, "job_id = 'unified-1'")
    assert (record.job_id, record.vm_id, record.job_type, record.status) == ("unified-1", "vm-1", "live", "creating_vm")
    assert (record.source_vm_name, record.source_vm_spec, record.snapshot_id) == ("pg", '{"cpus":2}', "snap")
    assert (record.created_at, record.updated_at, record.started_at) == (WHOLE, WHOLE + SECOND, None)


MEANT = {
    "2026-01-15 12:00:00.000001": "2026-01-15 11:00:00.000001",
    "2026-07-15 12:00:00.999999": "2026-07-15 10:00:00.999999",
    "2026-03-29 01:59:59.500000": "2026-03-29 00:59:59.500000",
    "2026-03-29 03:00:00": "2026-03-29 01:00:00",
    "2026-10-25 02:30:00": "2026-10-25 00:30:00",  # this hour comes twice: the first is meant
    "2026-10-25 03:00:00": "2026-10-25 02:00:00",
    "9999-12-31 23:59:59": "9999-12-31 22:59:59",
    "1969-12-31 23:59:59": "1969-12-31 22:59:59",
}
"""What a clock in Berlin showed → UTC."""


async def test_local_times_become_utc_by_the_rules_of_their_zone_and_others_stay(original):
    berlin = zones.named("Europe/Berlin")
    for number, stored in enumerate(MEANT):
        await original.job(f"u{number}", started_at="2026-07-15 12:00:00", canceled_at=stored)
        await original.insert("job_steps", job_id=f"u{number}", name="one", seq=1, started_at=stored)
        await original.log("x", ts=stored)
    meant = [micros(text) for text in MEANT.values()]
    assert [r.ts for r in await rows(original, zone=berlin)] == meant
    async with open_queries(original.source(zone=berlin)) as (queries, session):
        readings = await read_readings(queries, session, 1, [f"u{n}" for n in range(len(MEANT))])
    assert [r.record and r.record.canceled_at for r in readings] == meant
    assert [s.started_at for r in readings for s in r.steps or ()] == meant
    # A TIMESTAMP knows its zone.
    assert {r.record and r.record.started_at for r in readings} == {micros("2026-07-15 12:00:00")}


async def test_a_date_that_is_none_does_not_stop_the_others(original):
    await original.log("before", ts=STAMP)
    await original.log("none", ts="0000-00-00 00:00:00")
    await original.log("after", ts=STAMP)
    bad: list[str] = []
    async with open_queries(original.source(), malformed=bad.append) as (queries, session):
        found = await queries.rows_in(session, range(1, 11))
    assert [(r.message, r.ts) for r in found] == [("before", MICROS), ("none", 0), ("after", MICROS)]
    assert bad == ["ts_invalid"]


ZERO = "0000-00-00 00:00:00"


async def test_a_job_whose_times_are_zero_dates_has_no_times_and_is_still_found(original):
    await original.job(
        "zero", status="completed", created_at=STORED_WHOLE, external_job_id="ext", metadata='{"gui_job_id": "g"}'
    )
    await original.run(f"UPDATE job_tracking SET started_at = '{ZERO}', completed_at = '{ZERO}'")
    await original.job("one", started_at=STORED_WHOLE)
    async with open_queries(original.source()) as (queries, session):
        (reading,) = await read_readings(queries, session, 1, ["zero"])
    assert reading.record is not None
    assert (reading.record.started_at, reading.record.completed_at) == (None, None)
    view = fold.view(Job("zero", reading=reading))
    assert (view.started_at, view.ended_at) == (WHOLE, None)
    async with archive_of(original) as archive:
        assert await listed(archive, JobQuery(), limit=1) == ["one"]
        assert [await archive.find(name, lambda: 1) is not None for name in ("zero", "ext", "g")] == [True] * 3


async def test_a_status_counts_as_the_server_compares_it_where_the_column_is_a_text(original):
    for table in ("job_tracking", "job_steps", "failover_jobs"):
        with contextlib.suppress(sqlite3.OperationalError):  # SQLite has no other columns than texts.
            await original.run(f"ALTER TABLE {table} MODIFY status VARCHAR(20)")
    texts = ("COMPLETED", "completed ", "Completed")
    row = {"vm_id": "v", "job_type": "live", "source_vm_name": "v", "created_at": STORED_WHOLE}
    for n, text in enumerate(texts):
        await original.job(f"j{n}", status=text)
        await original.insert("job_steps", job_id=f"j{n}", name="one", seq=1, status=text, started_at=STAMP)
        await original.insert("failover_jobs", job_id=f"l{n}", status=text, **row)
    async with open_queries(original.source()) as (queries, session):
        readings = await read_readings(queries, session, 1, ["j0", "j1", "j2"])
        legacy = await queries.legacy_where(session, "1 = 1")
    views = [fold.view(Job(reading.job_id, reading=reading)) for reading in readings]
    assert [(v.status, [s.status for s in v.steps]) for v in views] == [(Status.COMPLETED, ["completed"])] * 3
    assert [fold.legacy_view(record).status for record in legacy] == [Status.COMPLETED] * 3


async def test_steps_of_a_table_without_seq_come_in_the_order_of_their_ids(original):
    await original.job("u1")
    await original.run("DROP TABLE log_events")
    await original.run("DROP TABLE job_steps")
    await original.run("CREATE TABLE job_steps (id INTEGER PRIMARY KEY, job_id VARCHAR(64), name VARCHAR(100))")
    for step_id, name in ((7, "b"), (9, "a")):
        await original.insert("job_steps", id=step_id, job_id="u1", name=name)
    async with open_queries(original.source()) as (queries, session):
        (reading,) = await read_readings(queries, session, 1, ["u1"])
    assert [(s.id, s.name, s.seq) for s in reading.steps or ()] == [(7, "b", 0), (9, "a", 0)]


async def test_steps_and_children_that_name_their_job_in_another_case_belong_to_it(one_mariadb):
    """The foreign key compares by the collation of the column, which ignores case."""
    await one_mariadb.job("job-a")
    await one_mariadb.job("child", parent_job_id="JOB-A")
    step = await one_mariadb.insert("job_steps", job_id="Job-A", name="one", seq=1, started_at=STAMP)
    async with open_queries(one_mariadb.source()) as (queries, session):
        (reading,) = await read_readings(queries, session, 1, ["job-a"])
        other, without_row = await read_readings(queries, session, 1, ["JOB-a"])
    assert [s.id for s in reading.steps or ()] == [step]
    assert ([child for _, child in reading.children], reading.child_count) == (["child"], 1)
    assert (other, without_row) == (reading, Reading("JOB-a", 1, steps=()))


TEXTS = {
    "emoji": "🚀 семь 七 e\u0301 \u200f\U0010ffff",
    "nul": "a\0b\0",
    "controls": "\x01\t\r\n\x7f\u2028",
    "sql": "'; DROP TABLE log_events; -- \\' \" % %s ? {}",
    "spaces": "  x  ",
    "empty": "",
}


async def test_every_text_comes_unchanged(original):
    def attrs(text: str) -> str:
        return json.dumps({"text": text}, ensure_ascii=False)

    for name, text in TEXTS.items():
        await original.job(name, metadata=attrs(text), error_message=text, operation=text, external_job_id=text)
        await original.insert("job_steps", job_id=name, name=text, seq=1, started_at=STAMP, error_message=text)
        await original.log(text, attrs=attrs(text), external_job_id=text)
    found = await rows(original)
    assert [(r.message, r.attrs, r.external_job_id) for r in found] == [(t, attrs(t), t) for t in TEXTS.values()]
    async with open_queries(original.source()) as (queries, session):
        readings = await read_readings(queries, session, 1, list(TEXTS))
        for name, text in TEXTS.items():
            where = f"external_job_id = {queries.dialect.placeholder}"
            assert name in [r.job_id for r in await queries.jobs_where(session, where, (text,))]
    for text, reading in zip(TEXTS.values(), readings, strict=True):
        record, (step,) = reading.record, reading.steps or ()
        assert record is not None
        assert (record.metadata, record.error_message, record.operation) == (attrs(text), text, text)
        assert (step.name, step.error_message) == (text, text)


async def test_half_a_surrogate_spoils_its_own_text_alone(original):
    """MariaDB takes ED A0 80 for utf8mb4, which no decoder of Python does."""
    half = "CAST(X'61EDA08062' AS TEXT)" if not original.shows_dirty else "CONVERT(X'61EDA08062' USING utf8mb4)"
    await original.log("before")
    await original.run(f"INSERT INTO log_events (level, message, ts) VALUES ('INFO', {half}, '{STORED_WHOLE}')")
    await original.log("after")
    before, spoilt, after = await rows(original)
    assert (before.message, after.message) == ("before", "after")
    assert (spoilt.message[0], spoilt.message[-1], set(spoilt.message[1:-1])) == ("a", "b", {"\ufffd"})


async def test_blobs_are_read_as_the_text_they_hold(original):
    if original.shows_dirty:
        await original.run("ALTER TABLE log_events MODIFY message BLOB NOT NULL, MODIFY attrs LONGBLOB")
        await original.run("ALTER TABLE job_tracking MODIFY metadata LONGBLOB, MODIFY error_message BLOB")
    attrs = '{"job_id":"u1","text":"ü"}'.encode()
    await original.job("u1")
    await original.log("x")
    await original.run(f"UPDATE job_tracking SET metadata = X'{attrs.hex()}', error_message = X'62726f6b656e20ff'")
    await original.run(f"UPDATE log_events SET attrs = X'{attrs.hex()}', message = X'636166c3a920ff'")
    (row,) = await rows(original)
    assert (row.message, row.attrs) == ("café \ufffd", attrs.decode())
    async with open_queries(original.source()) as (queries, session):
        (reading,) = await read_readings(queries, session, 1, ["u1"])
        assert reading.record is not None
        assert (reading.record.metadata, reading.record.error_message) == (attrs.decode(), "broken \ufffd")


async def test_of_attrs_of_four_megabytes_the_members_that_name_the_job_are_read(original):
    around = '{"job_id":"u1"}'
    await original.log("before", attrs=around)
    names = {"job_id": 'u\\1 "é\u2028', "step_id": 7, "gui_job_id": None, "failover_job_id": "x" * 2000}
    await original.log("huge", attrs=json.dumps({"dump": "x" * (4 << 20), **names}))
    await original.log("in an array", attrs=json.dumps([{"job_id": "u1", "dump": "x" * (4 << 20)}]))
    await original.log("after", attrs=around)
    first, huge, array, last = await rows(original)
    assert (first.attrs, last.attrs) == (around, around)
    assert max(len(huge.attrs or ""), len(array.attrs or "")) < 1_000
    entry, bad = joblog.read(huge, 0)
    assert (entry.job_id, entry.step_id, entry.external_ids, entry.attrs) == (names["job_id"], 7, (), None)
    assert bad == ("attrs_too_long",)
    assert joblog.read(array, 0)[0].job_id is None


async def test_a_text_column_of_another_character_set_is_read_the_same(mariadb_original):
    original = mariadb_original
    await original.run("ALTER TABLE log_events MODIFY message TEXT CHARACTER SET latin1 NOT NULL")
    await original.log("Größe ½")
    assert [r.message for r in await rows(original)] == ["Größe ½"]


async def test_the_first_row_since_a_moment_is_found_though_ids_have_holes(original):
    stamps = [f"2026-03-01 10:{m:02}:00.000000" for m in range(0, 40, 2)]
    ids = [await original.insert("log_events", id=7 * n + 3, level="INFO", message="x", ts=t) for n, t in
           enumerate(stamps)]  # fmt: skip
    async with open_queries(original.source()) as (queries, session):
        assert await queries.last_id(session) == 7 * 19 + 3
        assert await queries.first_since(session, 0) <= 3
        for number in (1, 9, 19):
            first = await queries.first_since(session, micros(stamps[number]))
            assert 7 * (number - 1) + 3 < first <= 7 * number + 3, ids
        assert await queries.first_since(session, micros("2026-03-02 00:00:00")) == 7 * 19 + 4


async def test_the_clock_is_that_of_utc_columns(original):
    async with open_queries(original.source()) as (queries, session):
        began = time.time()
        then, earlier = await queries.clock(session, 0), await queries.clock(session, 3600)
        ended = time.time()
        assert began - 0.002 <= micros(then) / SECOND <= ended + 0.002, "SQLite has milliseconds"
        assert began - 0.002 <= micros(earlier) / SECOND + 3600 <= ended + 0.002
        await original.job("old", started_at=(datetime.now(UTC) - timedelta(hours=2)).strftime("%Y-%m-%d %H:%M:%S"))
        await original.job("new", started_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"))
        assert await queries.ids_since(session, earlier, "started_at") == {"new"}


async def test_the_next_id_is_known_and_starts_again_after_a_truncate(original):
    source = original.source()
    session = await source.open()
    for number in range(1, 4):
        assert await original.log("x") == number
    assert await source.next_id(session) == 4
    await original.truncate_log()
    assert await source.next_id(session) in (0, 1)
    await original.log("first again")
    assert await source.next_id(session) == 2
    await session.close()


async def test_after_the_highest_id_that_a_row_can_have_there_is_none_that_is_less(one_mariadb):
    source = one_mariadb.source()
    session = await source.open()
    await one_mariadb.insert("log_events", id=2**63 - 1, level="INFO", message="x")
    assert await source.next_id(session) >= 2**63 - 1
    await session.close()


async def test_a_local_server_has_the_local_zone_and_a_remote_one_its_offset(one_mariadb):
    source, later = one_mariadb.source(zone=None), one_mariadb.source(zone=None)
    session = await source.open()
    try:
        assert (await source.zone(session)).name == ("host" if zones.host_offset() == 0 else "UTC+0")
        await one_mariadb.run("SET GLOBAL time_zone = '+05:30'")
        assert (await source.zone(session)).name == "UTC+5.5"
        assert (await later.zone(session)).utc(MICROS) == MICROS - 19_800 * SECOND
        assert (await source.zone(session)).utc(MICROS) == MICROS  # as the server's zone was when it was written
    finally:
        await one_mariadb.run("SET GLOBAL time_zone = '+00:00'")
        await session.close()
