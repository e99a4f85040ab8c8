"""What is saved of an index, when, and how it is restored; and what only the file of SQLite promises.

What every store promises is in `tests/contract/test_stores.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from msgspec import inspect
from msgspec.structs import asdict, replace

from correlator.cluster.connection import ClusterUnavailable
from correlator.errors import CheckpointInUse
from correlator.forecast.forecaster import OperationState
from correlator.jobs import joblog
from correlator.jobs.exports import Exports
from correlator.jobs.index import Index
from correlator.model.facts import Entry, Kind, Reading, Status
from correlator.model.persisted import (
    Cursor,
    IndexState,
    PersistedEvent,
    PersistedExports,
    PersistedJob,
    PersistedLegacy,
)
from correlator.model.published import Change
from correlator.model.rows import JobRecord, LogRow
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks.cluster.sink import Position
from correlator.sinks.event_log import EventLog
from correlator.sinks.webhooks import StoredHead
from correlator.sources.db.queries import HEAVY
from correlator.sources.gaps import MAX_KEPT, Gaps
from correlator.sources.reset_markers import RECENT, ResetMarkers, mark_of
from correlator.state.checkpoint import VERSION, Changes, General, Name, Saved, SavedMoment, StoredForecasts, Unusable
from correlator.state.checkpoint_file import SCHEMA, Checkpoint
from correlator.state.checkpoint_stream import (
    MAX_BYTES,
    MAX_ROW,
    MAX_ROWS,
    REDO,
    Chunk,
    Content,
    Redo,
    name_of,
    replay,
)
from correlator.state.saver import Saver
from tests.support.documents import document_text
from tests.support.eventually import PATIENCE
from tests.support.forecast_index import usual
from tests.support.paths import DATA
from tests.support.saved_index import NOW, changes, filled, stored
from tests.support.there import there


def shape(*types: Any) -> list[str]:
    """A line for each member, which is another one after each change of its name, type or place."""
    structs: dict[str, list[Any]] = {}

    def name(found: inspect.Type) -> Any:
        if isinstance(found, inspect.Metadata):  # a description
            return name(found.type)
        if isinstance(found, inspect.StructType):
            if found.cls.__name__ not in structs:
                members = structs[found.cls.__name__] = [found.array_like, found.tag]
                members += [(member.encode_name, name(member.type)) for member in found.fields]
            return found.cls.__name__
        if isinstance(found, inspect.EnumType):
            return [member.value for member in found.cls]
        if isinstance(found, inspect.CustomType):
            return found.cls.__name__
        parts = [part for value in asdict(found).values() for part in (value if isinstance(value, tuple) else [value])]
        named = [name(part) if isinstance(part, inspect.Type) else part for part in parts]
        # Python has equal unions once, in the order in which a process wrote one first.
        return type(found).__name__, sorted(named, key=str) if isinstance(found, inspect.UnionType) else named

    given = [f"{type(found).__name__} {name(found)}" for found in inspect.multi_type_info(types)]
    return given + [
        f"{struct} array={array_like} tag={tag} {place}: {member} {kind}"
        for struct, (array_like, tag, *members) in structs.items()
        for place, (member, kind) in enumerate(members, 1)
    ]


def brief(line: str) -> str:
    """A line without what a simple type does not have: bounds and patterns."""
    return re.sub(r"\('(\w+)Type', \[(?:None(?:, )?)*\]\)", r"\1", line)


def left(path: Path, source: str = "s") -> Saved | None:
    """What a run left there."""
    file = Checkpoint(path, source)
    try:
        return file.open()
    finally:
        file.close()


def test_changes_after_a_restart_are_published_and_pending_events_stay_pending():
    index = filled()
    index.expire(NOW + 60_000_000)
    index.apply(
        [Reading("job1", index.advance_clock(), JobRecord("job1", status="completed", started_at=NOW), ())], NOW
    )
    again = Index()
    list(again.restore(stored(index)[0], (), index.state(), NOW))
    again.loading = False
    assert [e.kind for e in again.expire(NOW + 60_000_000).events] == [Kind.JOB_COMPLETED]
    record = JobRecord("job2", status="failed", started_at=NOW, completed_at=NOW)
    again.apply([Reading("job2", again.advance_clock(), record, ())], NOW)
    assert Kind.JOB_FAILED in {e.kind for e in again.expire(NOW + 120_000_000).events}


def test_what_is_read_between_two_steps_of_a_restore_is_merged():
    index, again = filled(3), Index()
    index.apply([Entry(9, NOW, "WARN", "slow", index.advance_clock(), "unread", kind=Kind.JOB_STARTED)], NOW)
    assert index.published.get("unread") is None
    jobs, _ = stored(index)
    steps = again.restore(sorted(jobs, key=lambda one: one.job.job_id), (), index.state(), NOW + 1, at_once=1)
    next(steps)
    ended = JobRecord("job2", status="completed", started_at=NOW, completed_at=NOW)
    now = again.advance_clock()
    records = [Reading("job2", now, ended, ()), Reading("unread", now, JobRecord("unread", status="running"), ())]
    again.apply(records, NOW + 1)
    assert [len(step.changes) <= 1 for step in steps] == [True] * 4
    assert there(again.published.get("job2")).view.status == "completed"
    shown = there(again.published.get("unread"))
    assert (shown.view.warnings, shown.updated_at) == (1, NOW + 1), "the time of its first publication"


async def test_a_disk_that_fails_is_a_state_and_the_next_write_has_what_was_lost(tmp_path: Path, caplog):
    index, exports = filled(), Exports(10.0, 0.0)
    index.forecasts.begin_history(NOW)
    index.forecasts.learn_history(usual())
    index.forecasts.end_history()
    exports.begin(NOW)
    file, written = Checkpoint(tmp_path / "c", "s"), list[Changes]()

    def write(changes: Changes) -> None:
        written.append(changes)
        if len(written) <= 2:
            raise sqlite3.OperationalError("database or disk is full")

    file.write = write  # type: ignore[method-assign]
    saver = Saver(file, index, StoredForecasts(index.forecasts), Cursor, EventLog(), exports=exports)
    ended = there(index.published.get("job0"))
    running = replace(ended, view=replace(ended.view, status=Status.RUNNING))
    exports.on_change(Change("job0", 1, running, ended), NOW, 0.0)
    await saver.save()
    await saver.save()
    assert saver.describe()["error"] == "the checkpoint cannot be written: database or disk is full"
    assert [r.levelname for r in caplog.records if r.name == "correlator.state.saver"] == ["WARNING"]
    index.apply([Reading("job2", index.advance_clock())], NOW)
    await saver.save(always=False)
    assert saver.describe()["ok"]
    exports.finished("job0")
    await saver.save(always=False)  # A change of an export alone is a change.
    lost, _, both, last = written
    for write_of, exported in zip(written, (False, False, False, True), strict=True):
        assert write_of.exports == PersistedExports(NOW, {"job0": exported})
    assert len(lost.jobs) == 4
    assert both.jobs == {**lost.jobs, "job2": index.persisted("job2")}
    assert lost.forecasts
    assert both.forecasts == lost.forecasts
    assert not last.jobs
    assert not last.forecasts


async def test_events_that_come_and_go_while_the_disk_is_full_are_bounded_and_none_is_kept(tmp_path: Path):
    index, events, file = filled(), EventLog(), Checkpoint(tmp_path / "c", "s")
    file.open()
    saver = Saver(file, index, StoredForecasts(index.forecasts), Cursor, events)
    first = events.add("mqtt", "a", b"first")
    await saver.save()
    write, sizes = file.write, list[int]()

    def full(changes: Changes) -> None:
        sizes.append(len(changes.events))
        raise sqlite3.OperationalError("database or disk is full")

    file.write = full  # type: ignore[method-assign]
    for _ in range(10):
        number = events.add("mqtt", "a", b"another")
        await saver.save()
        events.remove(number)
    assert max(sizes) <= 1
    begun, goes_on = threading.Event(), threading.Event()

    def slow(changes: Changes) -> None:
        begun.set()
        goes_on.wait(PATIENCE)
        write(changes)

    file.write = slow  # type: ignore[method-assign]
    number = events.add("mqtt", "a", b"last")
    saving = asyncio.create_task(saver.save())
    await asyncio.to_thread(begun.wait, PATIENCE)
    saving.cancel()  # Its thread writes all the same.
    await asyncio.wait({saving})
    goes_on.set()
    events.remove(first)
    events.remove(number)
    events.add("mqtt", "a", b"new")
    await saver.save()
    file.close()
    assert [body for _, _, body in there(left(tmp_path / "c")).events] == [b"new"]


def test_a_file_says_how_the_database_was_reached_when_it_was_written(tmp_path: Path):
    file = Checkpoint(tmp_path / "c", "mysql://one")
    file.open()
    file.write(changes(filled()))
    file.close()
    other = Checkpoint(tmp_path / "c", "mysql://two")
    assert there(other.open()).source == "mysql://one"
    other.write(changes(filled()))
    other.close()
    with contextlib.closing(Checkpoint(tmp_path / "c", "mysql://one")) as again:
        assert there(again.open()).source == "mysql://two"


def test_what_a_checkpoint_stores_changes_only_with_its_version():
    """The rows have no names: another member may be read as this one."""
    kept = (SavedMoment, IndexState, PersistedJob, PersistedLegacy, PersistedEvent, Redo, Chunk)
    kept_by_others = (General, OperationState, StoredHead, Position)
    form = [f"version {VERSION}", *SCHEMA.splitlines(), *map(brief, shape(*kept, *kept_by_others))]
    file = DATA / "checkpoint_form.txt"
    changed = [line for line in difflib.ndiff(file.read_text().splitlines(), form) if line[0] in "-+"]
    found = "\n".join(form)
    assert not changed, (
        f"{changed}: increase VERSION in state/checkpoint.py, unless it is a new member with a default at the end of a"
        f" type, which each version reads as far as it knows; then write this into {file}:\n{found}"
    )


@pytest.mark.parametrize("kind", [PersistedJob, PersistedLegacy])
def test_a_version_that_does_not_know_the_last_member_of_a_stored_job_leaves_it_out(kind):
    index = filled()
    (found, *_) = stored(index)[kind is PersistedLegacy]
    members = msgspec.msgpack.decode(msgspec.msgpack.encode(found))
    for form in (members[:-1], members, [*members, "of a later version"]):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(form), type=kind) == found


def test_a_file_belongs_to_one_process(tmp_path: Path):
    file = Checkpoint(tmp_path / "c", "s")
    file.open()
    with pytest.raises(CheckpointInUse, match="in use by another correlator"):
        left(tmp_path / "c")
    file.close()


async def test_a_checkpoint_that_becomes_corrupt_is_set_aside_and_written_anew(tmp_path: Path):
    index = filled()
    file = Checkpoint(tmp_path / "c", "s")
    file.open()
    saver = Saver(file, index, StoredForecasts(index.forecasts), lambda: Cursor(7), EventLog())
    await saver.save()
    there(file._connection).execute("DROP TABLE rows")
    await saver.save()
    file.close()
    (tmp_path / "c").write_bytes(b"no database at all" * 100)
    index.apply([Reading("job0", index.advance_clock())], NOW)
    await saver.save()
    await saver.save()
    assert saver.describe()["ok"], saver.describe()
    file.close()
    assert sorted(one.away_at for one in there(left(tmp_path / "c")).jobs) == [0, 0, NOW]


async def test_a_corrupt_checkpoint_that_has_no_successor_yet_is_written_whole_later(tmp_path: Path, monkeypatch):
    index, file = filled(), Checkpoint(tmp_path / "c", "s")
    file.open()
    saver = Saver(file, index, StoredForecasts(index.forecasts), lambda: Cursor(7), EventLog())
    await saver.save()

    def fails(error: sqlite3.Error, code: int = 0) -> Callable[..., None]:
        def fail(*_: object) -> None:
            error.sqlite_errorcode = code
            raise error

        return fail

    with monkeypatch.context() as disk:
        disk.setattr(file, "write", fails(sqlite3.DatabaseError("malformed"), sqlite3.SQLITE_CORRUPT))
        disk.setattr(file, "_connect", fails(sqlite3.OperationalError("database or disk is full")))
        await saver.save()
    assert not saver.describe()["ok"]
    index.apply([Reading("job0", index.advance_clock())], NOW)
    await saver.save()
    assert saver.describe()["ok"], saver.describe()
    file.close()
    saved = there(left(tmp_path / "c"))
    assert len(saved.jobs) + len(saved.legacy) == len(index.all_ids())


class SlowStream:
    """The checkpoint in a cluster whose link takes nothing until `passes` is set. `written`: what it has got."""

    def __init__(self) -> None:
        self.writable = True
        self.passes = asyncio.Event()
        self.error: Exception | None = None
        self.written: list[Changes] = []

    async def write(self, changes: Changes, *, everything: bool) -> None:
        await self.passes.wait()
        if self.error is not None:
            raise self.error
        assert not everything or len(changes.jobs) >= 3
        self.written.append(changes)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Index, SlowStream, Saver]]:
    """A saver that writes to a file and to a cluster whose link takes nothing."""
    index, file, stream = filled(), Checkpoint(tmp_path / "c", "s"), SlowStream()
    file.open()
    saver = Saver(
        file,
        index,
        StoredForecasts(index.forecasts),
        lambda: Cursor(7),
        EventLog(),
        stream=cast(Any, stream),
        stream_retry=0.0,
    )
    yield index, stream, saver
    file.close()


async def test_nothing_waits_for_the_cluster_which_gets_what_was_saved_meanwhile_at_once(slow):
    index, stream, saver = slow
    async with asyncio.timeout(PATIENCE):
        await saver.save()
        for job_id in ("job0", "job1", "job2"):
            index.apply([Reading(job_id, index.advance_clock())], NOW)
            await saver.save()
            assert saver.describe()["cluster_age_seconds"] is None
        stream.passes.set()
        await saver.finish()
    first, second, *more = stream.written
    assert len(first.jobs) == 4
    assert {i: there(second.jobs[i]).away_at for i in ("job0", "job1", "job2")} == dict.fromkeys(
        ("job0", "job1", "job2"), NOW
    )
    assert not more
    assert saver.describe()["cluster_age_seconds"] is not None
    stream.error = ClusterUnavailable("away")
    await saver.finish()
    assert not saver.describe()["ok"]
    assert saver.describe()["error"] == "the checkpoint cannot be written to the cluster: away"
    stream.error = None
    index.apply([Reading("job3", index.advance_clock(), JobRecord("job3", status="running", started_at=NOW))], NOW)
    for n in ("job4", "job5"):
        index.apply([Reading(n, index.advance_clock(), JobRecord(n, status="running", started_at=NOW))], NOW)
    await saver.finish()
    assert saver.describe()["ok"]
    assert len(stream.written[-1].jobs) == 7, "after a failure every row is written"


async def test_the_end_waits_for_the_cluster_for_some_seconds_only(slow):
    _, stream, saver = slow
    async with asyncio.timeout(PATIENCE):
        await saver.finish(within=0.01)
    assert not stream.written


def test_what_a_restore_publishes_is_what_is_shown_at_its_end():
    index, again = filled(), Index()
    index.expire(NOW + 1)
    jobs, legacy = stored(index)
    hub = LocalHub(again)
    published: dict[str, bytes] = {}
    # The child of job0 comes a step after it.
    for step in again.restore(jobs, legacy, index.state(), NOW + 3600_000_000, at_once=1):
        assert len(step.changes) <= 1
        hub.publish(step)
        for change in step.changes:
            assert change.new is not None
            published[change.job_id] = document_text(change.new)
            assert hub.documents.encoded(change.new) == published[change.job_id]
    shown = {s.job_id: document_text(s) for s in again.published.all()}
    assert published == shown == {s.job_id: hub.documents.encoded(s) for s in again.published.all()}
    assert b'"child_job_ids":["job1"]' in published["job0"]
    assert hub.seq == again.published.seq > 0
    assert dict(hub.changed()).keys() == published.keys()


def test_a_reading_that_says_nothing_new_is_not_worth_keeping_but_one_that_decides_is():
    index = filled()
    record = JobRecord("j", status="running", started_at=NOW)
    index.apply([Reading("j", index.advance_clock(), record, ())], NOW)
    index.changed_ids()
    index.apply([Reading("j", index.advance_clock(), record, ())], NOW)
    assert index.changed_ids() == []
    row = LogRow(99, "Job completed", NOW + 1, "INFO", "j")
    entry, _ = joblog.read(row, index.advance_clock(), index.id_keys)
    index.apply([entry], NOW)
    assert index.changed_ids() == ["j"]
    index.apply([Reading("j", index.advance_clock(), record, ())], NOW)
    assert index.changed_ids() == ["j"]  # the table, read later, says that it runs, which outweighs the row
    index.apply([Reading("j", index.advance_clock(), record, ())], NOW)
    assert index.changed_ids() == []


def test_a_restart_keeps_the_counts_of_a_job_exactly_also_full_ones():
    index = filled()
    before = there(index.published.get("job0"))
    for level, rows in (("WARN", 12_000), ("ERROR", 7_000)):
        index.apply([Entry(n, NOW + n, level, "text", index.advance_clock(), "job0") for n in range(1, rows + 1)], NOW)  # type: ignore[arg-type]
    again = Index()
    jobs = msgspec.msgpack.decode(msgspec.msgpack.encode(stored(index)[0]), type=list[PersistedJob])
    list(again.restore(jobs, (), index.state(), NOW))
    for one in (index, again):
        one.apply([Entry(n, NOW + n, "ERROR", "text", index.advance_clock(), "job0") for n in (1, 7_000, 7_001)], NOW)
        one.apply([Entry(90_000, NOW, "WARN", "text", index.advance_clock(), "job0")], NOW)
        shown = there(one.published.get("job0"))
        assert (shown.view.warnings, shown.view.errors) == (10_000, before.view.errors + 7_001)


# -- The rows of a write of the checkpoint in NATS, by the groups in which they are stored


MAX_PAYLOAD = 1 << 20
"""Bytes of a message with its headers, by default."""

HEADERS = 1_000


def whole(written, stored=(), max_rows=MAX_ROWS):
    """A write of everything. `stored`: the rows that the stream has, with the hashes of their values."""
    return Content(written, dict(stored), everything=True, max_rows=max_rows)


def of_events(events):
    return whole(Changes(1.0, Cursor(1), IndexState(), {}, events))


def test_the_rows_of_a_write_are_the_same_each_time():
    written = changes(filled(300), n1=b"one", n2=b"two")
    names: list[Name] = [("job", "gone"), ("event", "1"), ("event", "7"), ("export", "job1")]
    stored = dict.fromkeys(names, 0)
    for everything in (True, False):
        content = Content(written, stored, everything=everything, max_rows=20)
        first = list(content.groups())
        after = content.written, content.gone
        assert list(content.groups()) == first
        assert (content.written, content.gone) == after
        assert len(first) > 10


def test_of_everything_only_those_rows_are_written_that_the_stream_does_not_have():
    written = changes(filled(300), n1=b"one")
    first = whole(written)
    assert len(list(first.groups())) > 0
    stored = {**first.written, ("job", "gone"): 1}
    later = replace(written, events={1: ("mqtt", b"j", b"other")})
    again = whole(later, stored)
    assert [[name for name, _ in group] for group in again.groups()] == [[("event", "1"), ("job", "gone")]]
    assert again.written.keys() == first.written.keys()


def test_a_group_has_no_more_bytes_than_there_is_room_for():
    events = dict.fromkeys(range(50), ("mqtt", b"j", b"x" * 1_000))
    room = iter([*[5_000] * 30, *[2_200] * 1_000])
    found = list(of_events(events).groups(lambda: next(room)))
    sizes = [sum(len(value) for _, value in group) for group in found]
    assert max(sizes) <= 5_000
    assert max(sizes[-5:]) <= 2_200


@pytest.mark.parametrize("size", [10, 1_000, 200_000, MAX_ROW - 80])
def test_a_group_fits_a_message(size):
    events = dict.fromkeys(range(2 * MAX_ROWS if size <= 1_000 else 5), ("mqtt", b"j" * 64, b"x" * size))
    too_large = ("mqtt", b"j", b"x" * MAX_ROW)
    found = list(of_events({**events, 9_999: too_large}).groups())
    assert sum(name[0] == "event" for group in found for name, _ in group) == len(events)
    for group in found:
        assert len(group) <= MAX_ROWS
        assert len(group) == 1 or sum(len(value) for _, value in group) <= MAX_BYTES
        assert len(msgspec.msgpack.encode(Chunk("m" * 16, group))) + HEADERS < MAX_PAYLOAD
    exports = PersistedExports(1, {f"{n}".ljust(255, "\N{SNOWMAN}"): True for n in range(2 * MAX_ROWS)})
    for group in whole(Changes(1.0, Cursor(1), IndexState(), {}, {}, exports=exports)).groups():  # long names
        assert len(msgspec.msgpack.encode(Chunk("m" * 16, group))) + MAX_BYTES + HEADERS < MAX_PAYLOAD


def test_the_largest_position_fits_a_row():
    """The largest ids and texts, and as many holes as a checkpoint keeps, each in a window of its own."""
    big = 1 << 62
    gaps = Gaps(head=big)
    for n in range(MAX_KEPT + 100):
        gaps.advance([big + 10 * n + 5, big + 10 * n + 10], float(n))
    markers = ResetMarkers()
    rows = [LogRow(big + n, "m" * HEAVY, big, attrs="a" * HEAVY, job_id="j" * 64) for n in range(10 * RECENT)]
    markers.add(map(mark_of, rows))
    row = msgspec.structs.replace(rows[0], external_job_id="\N{SNOWMAN}" * 255)
    cursor = Cursor(gaps.head, row, gaps.kept(), (big, big, big, big), markers.packed(), shapes=markers.shapes())
    assert sum(len(window) for window in cursor.holes) == MAX_KEPT
    assert len(msgspec.msgpack.encode(cursor)) < 260_000


def chunk(mark, slot):
    return {name_of(slot, 0): msgspec.msgpack.encode(Chunk(mark, [(("job", "a"), b"new")]))}


@pytest.mark.parametrize("stored", [{}, chunk("another", 0), chunk("mark", 1)])
def test_a_chunk_that_is_missing_or_of_another_write_is_noticed(stored):
    with pytest.raises(Unusable, match="lacks a part"):
        replay({REDO: msgspec.msgpack.encode(Redo("mark", 0, 1))}, dict(stored))
