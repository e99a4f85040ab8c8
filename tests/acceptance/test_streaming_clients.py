"""Streaming clients of the whole program over recordings of the real JobLog.

What each message promises is in `tests/contract/test_streaming.py`.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support import replay
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.expected_jobs import external_ids
from tests.support.mariadb import Database
from tests.support.replay import BUSY, MariaDBReplayer, Tables, Transaction
from tests.support.stream_clients import CheckedReader, CheckedStream, CheckedWebsocket, closing
from tests.support.subscriptions import LEVELS, Truth, Wanted, settled

PACE = 1.5
STATUSES = ("pending", "running", "completed", "failed", "cancelled")


def any_filter(rnd: random.Random, tables: Tables) -> Wanted:
    """One of every kind, and combined: wide ones are as rare as they are among people."""
    rows: list[dict[str, Any]] = list(tables["job_tracking"].values())

    def some(values: list[Any], most: int) -> tuple[str, ...]:
        return tuple(rnd.sample(sorted(set(values)), min(rnd.randint(1, most), len(set(values)))))

    def names() -> tuple[str, ...]:
        known = [str(r["id"]) for r in rows] + [name for r in rows for name in external_ids(r)]
        known += [str(r["context_id"]) for r in rows if r["context_id"]]
        known += [str(r["job_id"]) for r in tables["failover_jobs"].values()]
        return (*some(known, 12), *rnd.choice(((), ("nobody-1758553933",))))

    logs = rnd.choice((None, *LEVELS))
    status = some([*STATUSES], 3)
    types = some([r["job_type"] for r in rows], 2)
    contexts = some([r["context_id"] for r in rows if r["context_id"]], 8)
    named = names()
    return rnd.choice(
        (
            Wanted(logs=logs),
            Wanted(status=status, logs=logs),
            Wanted(status=status),
            Wanted(job_type=types, logs=logs),
            Wanted(context_id=contexts, logs=logs),
            Wanted(jobs=named, logs=logs),
            Wanted(jobs=named, logs=logs),
            Wanted(jobs=named),
            Wanted(jobs=named, status=status, logs=logs),
            Wanted(status=status, job_type=types, context_id=rnd.choice(((), contexts)), logs=logs),
        )
    )


def replayed(database: Database, recording: list[Transaction]) -> None:
    """Somewhat faster than recorded, in a loop of its own: that of two hundred readers is busy."""

    async def replaying() -> None:
        async with MariaDBReplayer.connect(database) as replayer:
            await replayer.replay(recording, speed=PACE)

    asyncio.run(replaying())


async def again_and_again(reader: CheckedReader, rnd: random.Random, over: asyncio.Event) -> None:
    """Drop the connection at any moment, also during a resume, and connect again."""
    while not over.is_set():
        await asyncio.sleep(rnd.choice((0.0, 0.02, 0.2, 0.6)))
        reader.drop()
        await asyncio.sleep(rnd.choice((0.0, 0.05, 0.5)))
        await reader.connect()


def wrong_lines(reader: CheckedReader, truth: Truth) -> list[str]:
    """Where the log lines of a reader that was there all the time are not the rows of its jobs."""
    found: list[str] = []
    owner = truth.lines()
    for event_id, line in reader.fold.lines.items():
        row = truth.tables["log_events"][event_id]
        sent = (line["job_id"], line["level"], line["message"])
        if sent != (owner.get(event_id), row["level"], row["message"]):
            found.append(f"{sent} was sent for {row}")
    wanted = list(reader.wanted.values())
    if all(w.logs is None or (w.steady and w.jobs is None) for w in wanted):
        due = set().union(*(truth.lines_of(w) for w in wanted if w.logs is not None))
        if reader.fold.lines.keys() - due:
            found.append(f"{wanted}: too much: {sorted(reader.fold.lines.keys() - due)[:5]}")
        if len(reader.fold.lines) + reader.fold.dropped < len(due):
            found.append(f"{wanted}: {len(reader.fold.lines)} lines and {reader.fold.dropped} dropped of {len(due)}")
    return found


@pytest.mark.parametrize(
    ("name", "crowd", "killed"),
    [
        pytest.param("mixed", 40, 8, id="mixed-40"),
        pytest.param("busy", 200, 20, id="busy-200", marks=[pytest.mark.long, pytest.mark.timeout(300)]),
    ],
)
async def test_every_client_ends_equal_to_the_tables_under_its_filter(
    database: Database, tmp_path: Path, name, crowd, killed
):
    seed = random.randrange(1 << 32)
    rnd = random.Random(seed)
    recording = replay.shift(replay.load(BUSY if name == "busy" else replay.MIXED))
    tables = replay.expected(recording)
    daemon = Daemon(tmp_path, database__url=database.url)
    readers: list[CheckedReader] = []
    for number in range(crowd):
        if number % 4:
            subs = rnd.sample(range(9), rnd.choice((1, 1, 2)))
            readers.append(CheckedWebsocket(daemon.url, {sub: any_filter(rnd, tables) for sub in subs}))
        else:
            readers.append(CheckedStream(daemon.url, any_filter(rnd, tables)))
    late, victims = readers[: crowd // 4], readers[crowd // 4 : crowd // 4 + killed]
    whole = readers[crowd // 4 + killed :]
    every_line = whole[0] = CheckedWebsocket(daemon.url, Wanted(logs="DEBUG"))
    readers[crowd // 4 + killed] = every_line
    over = asyncio.Event()
    try:
        await daemon.start()
        async with closing(readers), asyncio.TaskGroup() as group:
            await asyncio.gather(*(reader.connect() for reader in victims + whole))
            await eventually(lambda: all(r.fold.synced for r in victims + whole))
            faults = [group.create_task(again_and_again(v, random.Random(rnd.random()), over)) for v in victims]
            replaying = group.create_task(asyncio.to_thread(replayed, database, recording))
            for reader in late:  # they come while everything changes
                await asyncio.sleep(recording[-1].at / PACE / len(late) * 0.9)
                await reader.connect()
            await replaying
            over.set()
            await asyncio.gather(*faults)
            truth = await settled(daemon, tables, within=60)

            def all_equal() -> bool:
                for reader in readers:
                    assert not reader.ended, (seed, reader.closed)
                    found = reader.missing(truth)
                    assert not found, (seed, found[:3])
                return True

            await eventually(all_equal, every=0.2)
            await eventually(lambda: not [w for r in whole for w in wrong_lines(r, truth)], every=0.2)
        resumed = [r for v in victims for r in v.resumed]
        assert sum(resumed) > killed
        assert all(resumed), "the resume ring is long enough"
        assert every_line.fold.counts["delta"] > every_line.fold.counts["put"], "a change is a patch, without a filter"
        assert not [r.fold.resyncs for r in readers if r.fold.resyncs]
        received = len(every_line.fold.lines)
        assert received > 0
        assert received + every_line.fold.dropped > 1000, "a slow machine drops lines, and counts them"
    finally:
        await daemon.close()
    assert "Traceback" not in daemon.log()
