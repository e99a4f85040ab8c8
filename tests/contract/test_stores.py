"""What every store of the checkpoint promises: one moment, whole or not at all, whatever ends a write or damages it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from random import Random

import msgspec
import pytest
from msgspec.structs import replace

from correlator.jobs.index import Index
from correlator.model.facts import Entry, Kind, Reading
from correlator.model.persisted import (
    Cursor,
    IndexState,
    PersistedEvent,
    PersistedExports,
    PersistedJob,
    PersistedLegacy,
)
from correlator.model.rows import JobRecord, LogRow
from correlator.state.checkpoint import MOMENT, PART, VERSION, Changes, StoredForecasts
from correlator.state.saver import merged
from tests.support.forecast_index import documents, knowing, usual
from tests.support.saved_index import NOW, changes, filled
from tests.support.stores import NEW, NEWER, OLD, FileStore, Store, content, content_of, stream_store

OPERATIONS = [("failover", name) for name in ("one", "two")]
FORECASTS = StoredForecasts(
    knowing(*(run for operation in OPERATIONS for run in usual(3, operation=operation))).forecasts
).changed()


@pytest.fixture(params=["file", "stream"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "file":
        of_file = FileStore(tmp_path)
        yield of_file
        of_file.close()
        return
    async with stream_store(request.getfixturevalue("nats").url) as of_stream:
        yield of_stream


class Model:
    """What the store has to have, and what has changed since the last write."""

    def __init__(self, seed: int) -> None:
        index = filled(12)
        self._random = Random(seed)
        self._values = {i: index.persisted(i) for i in index.all_ids()}
        self.all = Changes(5.0, Cursor(1), IndexState(), {}, {}, exports=PersistedExports(1))
        self._last = 0
        self.written()

    def change(self) -> None:
        """Change something of every kind."""
        random, now = self._random, self.all
        jobs = {i: random.choice([v, v, None]) for i, v in self._values.items() if random.random() < 0.3}
        if random.random() < 0.2:  # The ID of a row of `failover_jobs` is that of a job of JobLog from now on.
            job = self._values["job3"]
            assert isinstance(job, PersistedJob)
            jobs["legacy"] = replace(job, job=replace(job.job, job_id="legacy"))
        self._last += 2
        kept = {n: event for n, event in now.events.items() if random.random() < 0.8}
        events = {n: ("mqtt", b"j", f"{n}".encode() * random.randrange(50)) for n in (self._last - 1, self._last)}
        forecasts = {name: random.choice([value, None]) for name, value in FORECASTS.items() if random.random() < 0.3}
        exports = {i: random.choice([True, False, None]) for i in self._values if random.random() < 0.3}
        removed = tuple((f"{n:0500}", n) for n in range(random.choice([3, PART // 75, 10])))
        self._events |= {**dict.fromkeys(now.events.keys() - kept), **events}
        self._jobs |= jobs
        self._forecasts |= forecasts
        self._exports |= exports
        self.all = replace(
            now,
            at=now.at + 1,
            cursor=Cursor(now.cursor.head + 1),
            memory=IndexState(now.memory.last_observed_at + 1, removed=removed),
            jobs={**now.jobs, **jobs},
            events=kept | events,
            forecasts={**now.forecasts, **forecasts},
            exports=replace(now.exports, jobs={**now.exports.jobs, **exports}) if now.exports is not None else None,
            position=f"{now.at}".encode(),
        )

    def changes(self, *, everything: bool) -> Changes:
        if everything:
            return self.all
        exports = replace(self.all.exports, jobs=self._exports) if self.all.exports is not None else None
        return replace(self.all, jobs=self._jobs, events=self._events, forecasts=self._forecasts, exports=exports)

    def written(self) -> None:
        self._jobs: dict[str, PersistedJob | PersistedLegacy | None] = {}
        self._events: dict[int, PersistedEvent | None] = {}
        self._forecasts: dict[str, bytes | None] = {}
        self._exports: dict[str, bool | None] = {}

    def restart(self) -> None:
        """The numbers of events begin anew, and ended jobs are exported or not."""
        events = dict(enumerate((self.all.events[n] for n in sorted(self.all.events)), 1))
        self._events = {**events}
        exports = PersistedExports(self._random.randrange(9)) if self._random.random() < 0.5 else None
        if self.all.exports is not None and exports is not None:
            exports = replace(exports, jobs=self.all.exports.jobs)
        self.all, self._last = replace(self.all, events=events, exports=exports), len(events)


@pytest.mark.parametrize("seed", range(2))
async def test_what_is_written_in_any_order_is_what_the_next_run_reads(store: Store, seed: int) -> None:
    model = Model(seed)
    assert await store.start() is None
    for _ in range(4):
        for _ in range(3):
            model.change()
            await store.write(model.changes(everything=store.everything))
            model.written()
        assert content(await store.start()) == content_of(model.all)
        model.restart()


async def test_an_index_is_the_same_after_a_restart(store: Store) -> None:
    index = filled()
    assert await store.start() is None
    cursor = Cursor(7, LogRow(7, "m", NOW), (((1, 2), (5, 5)), ((6, 6),)))
    await store.write(replace(changes(index, cursor, n1=b"one", n2=b"two"), forecasts=FORECASTS))
    saved = await store.start()
    assert saved is not None
    assert saved.forecasts is not None
    assert [key for key, _ in saved.forecasts.forecaster] == OPERATIONS
    assert (saved.at, saved.cursor, saved.events) == (5.0, cursor, (("mqtt", b"j", b"one"), ("mqtt", b"j", b"two")))
    again = Index()
    assert [e for step in again.restore(saved.jobs, saved.legacy, saved.memory, NOW + 1) for e in step.events] == []
    assert documents(again) == documents(index)
    names = ("e0", "e2", "legacy")
    assert [again.published.resolve(n) for n in names] == [index.published.resolve(n) for n in names]
    assert again.advance_clock() > saved.memory.last_observed_at
    assert sorted(again.known.active()) == sorted(index.known.active())


@pytest.mark.parametrize("before", [OLD, None], ids=["over another", "the first"])
async def test_a_write_that_is_killed_at_any_point_leaves_the_old_moment_or_the_new_one(
    store: Store, before: Changes | None
) -> None:
    found = []
    for point in count():
        await store.empty()
        await store.start()
        if before is not None:
            await store.write(before)
            await store.start()
        ended = await store.write_until(NEW, point, killed=True)
        now = content(await store.start())
        assert now in (content_of(before) if before else None, content_of(NEW)), point
        found.append(now == content_of(NEW))
        if not ended:
            break
    assert len(found) > 10
    assert found == sorted(found)
    assert set(found) == {False, True}


LAST = replace(NEWER, jobs={"job1": None})


async def test_a_write_that_fails_at_any_point_is_made_good_by_the_next_one(store: Store) -> None:
    for point in count(step=3):
        await store.empty()
        await store.start()
        await store.write(OLD)
        if not await store.write_until(NEW, point, killed=False):
            break
        last = merged(NEW, LAST)
        await store.write(last if store.everything else LAST)
        assert content(await store.start()) == content_of(last), point
    assert point > 10


async def is_read_again(store: Store, caplog: pytest.LogCaptureFixture, why: object) -> None:
    """Nothing of the store is used, which is one line in the log, and the next write replaces it."""
    caplog.clear()
    assert await store.start() is None, why
    (line,) = [r.getMessage() for r in caplog.records if "the checkpoint" in r.getMessage() and r.levelname != "DEBUG"]
    assert "read again" in line or "read from the tables" in line, why
    await store.write(NEWER)
    assert content(await store.start()) == content_of(NEWER), why


async def test_a_store_of_another_form_is_read_again_from_the_tables(store: Store, caplog) -> None:
    for version in (VERSION - 1, VERSION + 1):
        await store.empty()
        await store.start()
        await store.write(NEW)
        await store.set_form(version)
        await is_read_again(store, caplog, version)


DAMAGES = [
    (("job", "job1"), b"\xc1"),
    (("job", "job1"), msgspec.msgpack.encode({"job": {"job_id": "job1"}})),
    (("job", "job1"), msgspec.msgpack.encode([2, {}])),
    (("event", "2"), msgspec.msgpack.encode(("mqtt", 5, b""))),
    (("event", "two"), msgspec.msgpack.encode(("mqtt", b"", b""))),
    (("export", "job1"), msgspec.msgpack.encode("no")),
    (("memory", "0"), b""),
    (("memory", "0"), b"\x00"),
    (MOMENT, b""),
    (MOMENT, b"\xff" * 40),
    (MOMENT, msgspec.msgpack.encode({"at": 5.0})),
]


async def test_a_damaged_row_is_no_checkpoint(store: Store, caplog) -> None:
    for name, value in DAMAGES:
        await store.empty()
        await store.start()
        await store.write(replace(NEW, exports=PersistedExports(5, {"job1": True})))
        await store.put(name, value)
        await is_read_again(store, caplog, (name, value))


async def test_rows_of_other_kinds_are_ignored_and_a_damaged_operation_begins_anew(store: Store) -> None:
    await store.start()
    await store.write(replace(NEW, forecasts=FORECASTS))
    for name in (("other", "row"), ("state", "other"), ("forecast", min(FORECASTS))):
        await store.put(name, b"\xc1")
    saved = await store.start()
    assert saved is not None
    assert saved.forecasts is not None
    assert content(replace(saved, forecasts=None)) == content_of(NEW)
    assert [key for key, _ in saved.forecasts.forecaster] == OPERATIONS[1:]


async def test_a_job_that_cannot_be_written_is_left_out_and_the_others_are_kept(store: Store) -> None:
    index = filled()
    await store.start()
    await store.write(changes(index))
    now = index.advance_clock()
    broken = Entry(99, NOW, "ERROR", "Job failed", now, "job1", kind=Kind.JOB_FAILED, error="\ud800", by="attrs")
    index.apply([broken], NOW)
    await store.write(changes(index))
    saved = await store.start()
    assert saved is not None
    assert sorted(k.job.job_id for k in saved.jobs) == ["job0", "job2"]


async def test_an_id_that_has_no_encoding_keeps_no_other_job_out_of_the_checkpoint(store: Store) -> None:
    index, bad = filled(), "\ud800"
    await store.start()
    index.apply([Reading(bad, index.advance_clock(), JobRecord(bad, status="completed", completed_at=NOW), ())], NOW)
    exports = PersistedExports(NOW, {bad: False, "job1": False})
    await store.write(replace(changes(index), exports=exports))
    index.apply([Reading(bad, index.advance_clock(), None, ())], NOW)
    await store.write(replace(changes(index), exports=exports))
    saved = await store.start()
    assert saved is not None
    assert sorted(k.job.job_id for k in saved.jobs) == ["job0", "job1", "job2"]
    assert (saved.exports, bad in dict(saved.memory.removed)) == (PersistedExports(NOW, {"job1": False}), False)
