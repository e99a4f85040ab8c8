"""The way of log rows into the table: order, drops, rollbacks."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from correlator.demo.joblog import CommitDelays, Level, LogWriters, NewRow, create_database
from tests.support.eventually import PATIENCE

AGES = 3600.0  # seconds; longer than any test lasts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "appliance.db"
    create_database(path)
    return path


def row(message: object) -> NewRow:
    return NewRow(Level.INFO, str(message), None, "2025-09-22 17:12:13.000000")


def written(path: Path) -> dict[int, str]:
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT id, message FROM log_events"))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - a table sets no event
            await asyncio.sleep(0.002)


def delays(lags: list[float], rollbacks: list[bool]) -> CommitDelays:
    return CommitDelays(
        lag=lambda: lags.pop(0) if lags else 0.0, rolls_back=lambda: bool(rollbacks) and rollbacks.pop(0)
    )


async def test_a_batch_that_commits_late_has_the_lower_ids(path):
    writers = LogWriters(path, delays([AGES, 0.0], []), batch_size=5)
    for n in range(1, 11):
        writers.put(row(n))
    running = asyncio.create_task(writers.run())
    await until(lambda: bool(written(path)))
    assert sorted(written(path)) == [6, 7, 8, 9, 10]
    writers.stop()  # which hurries the late commit
    await running
    assert sorted(written(path)) == list(range(1, 11))


async def test_two_writers_share_the_queue_so_ids_do_not_follow_the_order_of_the_rows(path):
    writers = LogWriters(path, delays([], []), flush=AGES)
    running = asyncio.create_task(writers.run())
    await until(lambda: len(writers._queue._getters) == 2)  # type: ignore[attr-defined]
    for n in range(6):
        writers.put(row(n))
        await until(writers._queue.empty)
    writers.stop()
    await running
    messages = [message for _, message in sorted(written(path).items())]
    assert messages != sorted(messages)
    assert sorted(messages) == list("012345")


async def test_a_full_queue_drops_its_oldest_rows(path):
    writers = LogWriters(path, delays([], []), queue_size=3)
    for n in range(5):
        writers.put(row(n))
    writers.stop()
    await writers.run()
    assert sorted(written(path).values()) == ["2", "3", "4"]


async def test_a_batch_that_is_rolled_back_is_written_again_under_new_ids(path):
    writers = LogWriters(path, delays([], [True, True]), batch_size=10)
    for n in range(10):
        writers.put(row(n))
    running = asyncio.create_task(writers.run())
    await until(lambda: bool(written(path)))
    assert written(path) == {21 + n: str(n) for n in range(10)}
    writers.stop()
    await running
    assert len(written(path)) == 10


async def test_a_batch_holds_a_hundred_rows_at_most(path):
    writers = LogWriters(path, delays([AGES, AGES], []), flush=AGES)
    for n in range(250):
        writers.put(row(n))
    running = asyncio.create_task(writers.run())
    await until(lambda: writers._queue.qsize() <= 50)
    assert writers._queue.qsize() == 50
    writers.stop()
    await running
    assert sorted(map(int, written(path).values())) == list(range(250))


async def test_a_row_does_not_wait_for_company_longer_than_the_flush_interval(path):
    writers = LogWriters(path, delays([], []), flush=0.01)
    running = asyncio.create_task(writers.run())
    writers.put(row("alone"))
    await until(lambda: bool(written(path)))
    writers.stop()
    await running


async def test_no_row_is_lost_or_doubled_with_any_commit_delays(path):
    luck = iter(range(10**6))
    rough = CommitDelays(lag=lambda: (next(luck) * 7 % 5) / 500, rolls_back=lambda: next(luck) % 3 == 0)
    writers = LogWriters(path, rough, batch_size=7, flush=0.005)
    running = asyncio.create_task(writers.run())
    for n in range(500):
        writers.put(row(n))
        if n % 20 == 0:
            await asyncio.sleep(0.001)
    await until(writers._queue.empty)
    writers.stop()
    await running
    assert sorted(map(int, written(path).values())) == list(range(500))
    assert max(written(path)) > 500, "rollbacks burn ids"


async def test_ids_go_on_after_the_highest_one(path):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO log_events (id, level, message) VALUES (36701, 'INFO', 'old')")
    writers = LogWriters(path, delays([], []))
    writers.put(row("new"))
    writers.stop()
    await writers.run()
    assert written(path) == {36701: "old", 36702: "new"}
