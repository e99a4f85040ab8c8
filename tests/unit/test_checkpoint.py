"""The checkpoint: what was written is read, all of it or nothing, and a disk that fails is a state."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from correlator.checkpoint import Changes, Checkpoint, Saved
from correlator.errors import CheckpointInUse
from correlator.hub import Hub
from correlator.jobs import joblog, wire
from correlator.jobs.index import Index
from correlator.jobs.model import (
    Cursor,
    Entry,
    JobRecord,
    Kept,
    Kind,
    LegacyRecord,
    LogRow,
    Memory,
    Reading,
    StepRecord,
)
from correlator.saver import Saver

NOW = 1_758_550_000_000_000


def filled(count: int = 3) -> Index:
    index = Index()
    index.loading = False
    for n in range(count):
        job_id = f"job{n}"
        record = JobRecord(
            job_id,
            status="running" if n else "failed",
            started_at=NOW - n,
            completed_at=None if n else NOW,
            external_job_id=f"e{n}",
            parent_job_id="job0" if n == 1 else None,
            metadata='{"vm_name": "v"}',
            error_message=None if n else "boom",
        )
        step = StepRecord(n, "s", 1, "running", NOW)
        rows = [
            Entry(10 * n, NOW, "INFO", "Job started", index.look(), job_id, kind=Kind.JOB_STARTED, by="attrs"),
            Entry(10 * n + 1, NOW, "ERROR", "broken", index.look(), job_id, step_id=n, by="attrs"),
        ]
        index.apply([Reading(job_id, index.look(), record, (step,)), *rows], NOW)
    index.apply_legacy([LegacyRecord(1, "legacy", "snapshotting", created_at=NOW, updated_at=NOW)], (), NOW)
    return index


def changes(index: Index, cursor: Cursor | None = None, **events: bytes) -> Changes:
    numbered = {int(n[1:]): ("j", payload) for n, payload in events.items()}
    jobs = {i: index.kept(i) for i in index.changed()}
    return Changes(5.0, cursor or Cursor(7), index.memory(), jobs, numbered)


def left(path: Path, source: str = "s") -> Saved | None:
    """What a run left there."""
    file = Checkpoint(path, source)
    try:
        return file.open()
    finally:
        file.close()


def documents(index: Index) -> dict[str, bytes]:
    """Without what belongs to one run."""
    return {s.job_id: wire.encode({**wire.document(s), "rev": 0}) for s in index.shown()}


def test_an_index_is_the_same_after_a_restart(tmp_path: Path):
    index = filled()
    first = Checkpoint(tmp_path / "a" / "c", "mysql://x")
    assert first.open() is None
    cursor = Cursor(7, LogRow(7, "m", NOW), (((1, 2), (5, 5)), ((6, 6),)))
    first.write(changes(index, cursor, n1=b"one", n2=b"two"))
    first.close()
    saved = left(tmp_path / "a" / "c", "mysql://x")
    assert saved is not None
    assert (saved.at, saved.cursor, saved.events) == (5.0, cursor, (("j", b"one"), ("j", b"two")))
    again = Index()
    outcome = again.restore(saved.jobs, saved.legacy, saved.memory, NOW + 1)
    assert documents(again) == documents(index)
    assert {n: again.resolve(n) for n in ("e0", "e2", "legacy")} == {
        n: index.resolve(n) for n in ("e0", "e2", "legacy")
    }
    assert outcome.events == []
    assert again.look() > saved.memory.looks
    assert sorted(again.active()) == sorted(index.active())


def test_what_happens_after_a_restart_is_news_and_what_was_owed_still_is():
    index = filled()
    index.tick(NOW + 60_000_000)
    index.apply([Reading("job1", index.look(), JobRecord("job1", status="completed", started_at=NOW), ())], NOW)
    again = Index()
    again.restore([k for i in index.everything() if isinstance(k := index.kept(i), Kept)], (), index.memory(), NOW)
    again.loading = False
    assert [e.kind for e in again.tick(NOW + 60_000_000).events] == [Kind.JOB_COMPLETED]
    record = JobRecord("job2", status="failed", started_at=NOW, completed_at=NOW)
    again.apply([Reading("job2", again.look(), record, ())], NOW)
    assert Kind.JOB_FAILED in {e.kind for e in again.tick(NOW + 120_000_000).events}


def test_what_is_gone_is_gone_from_the_file_and_events_leave_when_they_are_told(tmp_path: Path):
    index, file = filled(), Checkpoint(tmp_path / "c", "s")
    file.open()
    file.write(changes(index, n1=b"1", n2=b"2"))
    index.apply([Reading("job2", index.look())], NOW)
    index.apply_legacy((), ["legacy"], NOW)
    file.write(changes(index, n2=b"2", n3=b"3"))
    file.close()
    saved = left(tmp_path / "c")
    assert saved is not None
    assert sorted(k.job.job_id for k in saved.jobs) == ["job0", "job1"]
    assert saved.legacy == ()
    assert saved.events == (("j", b"2"), ("j", b"3"))


def test_the_numbers_of_events_begin_anew_in_every_run(tmp_path: Path):
    index = filled()
    for payload in (b"old", b"new"):
        file = Checkpoint(tmp_path / "c", "s")
        file.open()
        file.write(changes(index, n1=payload))
        file.close()
    saved = left(tmp_path / "c")
    assert saved is not None
    assert saved.events == (("j", b"new"),)


def test_a_write_that_fails_in_the_middle_leaves_what_was_there(tmp_path: Path):
    index, file = filled(), Checkpoint(tmp_path / "c", "s")
    file.open()
    file.write(changes(index, n1=b"1"))
    bad = Changes(6.0, Cursor(99), Memory(), {"job1": None}, {1: ("j", b"1"), 2: ("j", object())})  # type: ignore[dict-item]
    with pytest.raises(sqlite3.Error):
        file.write(bad)
    file.close()
    saved = left(tmp_path / "c")
    assert saved is not None
    assert (saved.cursor.head, len(saved.jobs), saved.events) == (7, 3, (("j", b"1"),))


def test_another_databases_file_is_set_aside(tmp_path: Path):
    file = Checkpoint(tmp_path / "c", "mysql://one")
    file.open()
    file.write(changes(filled()))
    file.close()
    other = Checkpoint(tmp_path / "c", "mysql://two")
    assert other.open() is None
    assert len(list(tmp_path.glob("c.unusable-*"))) == 1
    other.write(changes(filled()))
    other.close()


def test_a_file_belongs_to_one_process(tmp_path: Path):
    file = Checkpoint(tmp_path / "c", "s")
    file.open()
    with pytest.raises(CheckpointInUse, match="in use by another correlator"):
        left(tmp_path / "c")
    file.close()


def test_a_job_that_cannot_be_written_is_left_out_and_the_others_are_kept(tmp_path: Path):
    index, file = filled(), Checkpoint(tmp_path / "c", "s")
    broken = Entry(
        99, NOW, "ERROR", "Job failed", index.look(), "job1", kind=Kind.JOB_FAILED, error="\ud800", by="attrs"
    )
    index.apply([broken], NOW)
    file.open()
    file.write(changes(index))
    file.close()
    saved = left(tmp_path / "c")
    assert saved is not None
    assert sorted(k.job.job_id for k in saved.jobs) == ["job0", "job2"]


async def test_a_disk_that_fails_is_a_state_and_nothing_is_forgotten(tmp_path: Path, caplog, monkeypatch):
    index = filled()
    file = Checkpoint(tmp_path / "c", "s")
    file.open()
    saver = Saver(file, index, lambda: Cursor(7), dict)
    full = sqlite3.OperationalError("database or disk is full")

    def fail(_: Changes) -> None:
        raise full

    with monkeypatch.context() as broken:
        broken.setattr(file, "write", fail)
        await saver.save()
        await saver.save()
    assert saver.describe()["error"] == "database or disk is full"
    assert [r.levelname for r in caplog.records if r.name == "correlator.saver"] == ["WARNING"]
    await saver.save()
    assert saver.describe()["ok"]
    file.close()
    saved = left(tmp_path / "c")
    assert saved is not None
    assert len(saved.jobs) == 3


async def test_a_file_that_breaks_under_us_is_set_aside_and_written_whole(tmp_path: Path):
    index = filled()
    file = Checkpoint(tmp_path / "c", "s")
    file.open()
    saver = Saver(file, index, lambda: Cursor(7), dict)
    await saver.save()
    assert file._connection is not None
    file._connection.execute("DROP TABLE jobs")
    await saver.save()
    file.close()
    (tmp_path / "c").write_bytes(b"no database at all" * 100)
    index.apply([Reading("job0", index.look())], NOW)
    await saver.save()
    await saver.save()
    assert saver.describe()["ok"], saver.describe()
    file.close()
    saved = left(tmp_path / "c")
    assert saved is not None
    assert len(saved.jobs) == 2


def test_the_hub_tells_nobody_of_what_is_restored_but_can_be_asked():
    index = filled()
    again = Index()
    hub = Hub(again)
    outcome = again.restore([k for i in index.everything() if isinstance(k := index.kept(i), Kept)], (), Memory(), NOW)
    hub.publish(outcome)
    assert hub.seq == again.seq > 0
    assert len(hub.changes_since(0) or ()) == len(outcome.changes)


def test_a_reading_that_says_nothing_new_is_not_worth_keeping_but_one_that_decides_is():
    index = filled()
    record = JobRecord("j", status="running", started_at=NOW)
    index.apply([Reading("j", index.look(), record, ())], NOW)
    index.changed()
    index.apply([Reading("j", index.look(), record, ())], NOW)
    assert index.changed() == []
    row = LogRow(99, "Job completed", NOW + 1, "INFO", "j")
    entry, _ = joblog.read(row, index.look(), index.id_keys)
    index.apply([entry], NOW)
    assert index.changed() == ["j"]
    index.apply([Reading("j", index.look(), record, ())], NOW)
    assert index.changed() == ["j"]  # the table, looked at later, says that it runs: that outweighs the row
    index.apply([Reading("j", index.look(), record, ())], NOW)
    assert index.changed() == []
