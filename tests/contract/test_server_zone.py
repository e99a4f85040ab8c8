"""A server whose `time_zone` is changed and changed back while jobs run: no time is published wrong."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.eventually import eventually
from tests.support.source_databases import MariaDBOriginal, RecordingPipeline, open_queries, running_follower

NO_OFFSET = timedelta(0)
OFFSETS = {"+05:30": timedelta(hours=5.5), "-08:00": timedelta(hours=-8)}


class Writer:
    """Writes jobs, steps and rows, with its own clock, which is `ahead` of UTC. It knows the times that it meant."""

    def __init__(self, original: MariaDBOriginal) -> None:
        self._original = original
        self.ahead = NO_OFFSET
        self.steps: dict[str, list[datetime]] = {}
        self.rows: dict[str, datetime] = {}

    async def job(self, steps: int = 2) -> str:
        job_id = f"j{len(self.steps)}"
        began = datetime.now(UTC) - timedelta(minutes=1)
        await self._original.job(job_id, started_at=began.strftime("%Y-%m-%d %H:%M:%S"))
        self.steps[job_id] = []
        for seq in range(1, steps + 1):
            await self.step(job_id, seq)
        return job_id

    async def step(self, job_id: str, seq: int) -> None:
        at = datetime.now(UTC)
        row = {"job_id": job_id, "name": f"step {seq}", "seq": seq, "status": "running"}
        await self._original.insert("job_steps", **row, started_at=self._shown(at))
        self.steps[job_id].append(at)
        message = f"{job_id} begins step {seq}"
        await self._original.log(message, ts=self._shown(at), attrs=f'{{"job_id":"{job_id}"}}')
        self.rows[message] = at

    def _shown(self, at: datetime) -> str:
        return (at + self.ahead).strftime("%Y-%m-%d %H:%M:%S.%f")

    def published_wrong(self, received: RecordingPipeline) -> list[str]:
        """The steps that are published with a wrong time now."""
        found = []
        for job_id, meant in self.steps.items():
            view = received.view(job_id)
            shown = [step.started_at for step in view.steps] if view is not None else []
            found += [
                f"{job_id}: {n} is {((at or 0) - micros(true)) / 3.6e9:g} h off"
                for n, (at, true) in enumerate(zip(shown, meant, strict=False))
                if at != micros(true)
            ]
        return found

    def delivered_wrong(self, received: RecordingPipeline) -> list[str]:
        return [
            f"{row.message}: {(row.ts - micros(self.rows[row.message])) / 3.6e9:g} h off"
            for row in received.received
            if row.message in self.rows and row.ts != micros(self.rows[row.message])
        ]

    def all_published(self, received: RecordingPipeline) -> bool:
        views = {job_id: received.view(job_id) for job_id in self.steps}
        return set(self.rows) <= set(received.messages) and all(
            view is not None and len(view.steps) == len(self.steps[job_id]) for job_id, view in views.items()
        )


def micros(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@contextlib.asynccontextmanager
async def zone_of(original: MariaDBOriginal) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Sets the zone of the server. It is UTC again at the end."""

    async def set_zone(zone: str) -> None:
        await original.run(f"SET GLOBAL time_zone = '{zone}'")

    try:
        yield set_zone
    finally:
        await set_zone("+00:00")


@pytest.mark.parametrize("follows", [False, True], ids=["writer stays", "writer follows"])
@pytest.mark.parametrize("zone", OFFSETS)
async def test_a_zone_that_is_changed_and_changed_back(mariadb_original, zone, follows):
    writer = Writer(mariadb_original)
    async with zone_of(mariadb_original) as set_zone, running_follower(mariadb_original.source(zone=None)) as (seen, _):
        running = [await writer.job() for _ in range(3)]
        await eventually(lambda: writer.all_published(seen))
        for now in (zone, "+00:00"):
            await set_zone(now)
            writer.ahead = OFFSETS.get(now, NO_OFFSET) if follows else NO_OFFSET
            for job_id in running:
                await writer.step(job_id, len(writer.steps[job_id]) + 1)
            for _ in range(3):
                await writer.job()
            await eventually(lambda: writer.all_published(seen))
            assert not writer.published_wrong(seen)
            assert not writer.delivered_wrong(seen)


async def test_what_was_read_in_a_wrong_zone_is_read_again_once_the_zone_is_right(mariadb_original):
    """The daemon starts while the zone is wrong. Nothing is written to the tables when the zone is corrected."""
    writer = Writer(mariadb_original)
    async with zone_of(mariadb_original) as set_zone:
        await set_zone("+05:30")
        for _ in range(5):
            await writer.job()
        await mariadb_original.run("UPDATE job_tracking SET status = 'completed', completed_at = UTC_TIMESTAMP()")
        async with running_follower(mariadb_original.source(zone=None)) as (seen, _):
            await eventually(lambda: writer.all_published(seen))
            assert writer.published_wrong(seen)
            await set_zone("+00:00")
            await eventually(lambda: not writer.published_wrong(seen), within=5)


async def test_an_answer_with_local_times_tells_the_zone_of_the_server(mariadb_original):
    writer = Writer(mariadb_original)
    async with (
        zone_of(mariadb_original) as set_zone,
        open_queries(mariadb_original.source(zone=None)) as (queries, session),
    ):
        await writer.job()
        for zone in ("+05:30", "-08:00"):
            await set_zone(zone)
            await queries.light_rows_from(session, 1, 10)
            assert queries.zone.name == f"UTC{OFFSETS[zone] / timedelta(hours=1):+g}"
        await set_zone("+00:00")
        await queries.steps_of(session, {"j0": None})
        assert queries.zone.utc(0) in (0, -19_800_000_000)
        assert queries.zone.changes >= 3
