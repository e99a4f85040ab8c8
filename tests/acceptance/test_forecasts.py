"""Percent and end of running jobs from earlier runs, as clients of the installed daemon see them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.all_transports import TRANSPORTS, AllTransports
from tests.support.appliance import Appliance, connected
from tests.support.client_fold import Document
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto
from tests.support.past_runs import PastRun, in_sequence, write_past_runs

RUNS = 24

STEPS = ("validation", "copy", "start")

_instances = (f"forecasts-{n}" for n in itertools.count())


def usual(runs: int = RUNS) -> list[PastRun]:
    """Runs of 100 s or so: a validation of 10 s, a copy of 60 to 79 s, a start of 20 s."""
    return [in_sequence(("validation", 10), ("copy", 60 + 7 * n % 20), ("start", 20)) for n in range(runs)]


def ago(seconds: float) -> str:
    return f"{datetime.now(UTC) - timedelta(seconds=seconds):%F %T.%f}"


@contextlib.asynccontextmanager
async def knowing(
    runs: list[PastRun], database: Database, broker: Mosquitto, folder: Path
) -> AsyncIterator[tuple[Daemon, Appliance, AllTransports]]:
    """A daemon that has read these runs at its first start, and all that the broker gets of it."""
    await write_past_runs(database, runs)
    instance, transports = next(_instances), AllTransports()
    daemon = Daemon(folder, database__url=database.url, mqtt__url=broker.url, mqtt__instance=instance)
    try:
        async with connected(database) as connection, transports.broker(broker, instance):
            await daemon.start()
            await eventually(lambda: history_reads(daemon) == 1)
            yield daemon, Appliance(connection), transports
    finally:
        await daemon.close()


def history_reads(daemon: Daemon) -> int:
    """How often the runs of the time before the first start have been read."""
    return daemon.log().count("forecasts: read ")


async def begin(appliance: Appliance, name: str, *steps: tuple[str, float], **row: Any) -> str:
    """A job whose steps began so many seconds ago, one after the other; the last one runs."""
    job_id = await appliance.job(name, started_at=ago(steps[0][1] if steps else 0), **row)
    for seq, (step, since) in enumerate(steps, 1):
        await appliance.insert(
            "job_steps",
            job_id=job_id,
            name=step,
            seq=seq,
            status="running" if seq == len(steps) else "completed",
            started_at=ago(since),
            completed_at=None if seq == len(steps) else ago(steps[seq][1]),
        )
    return job_id


async def end_step(appliance: Appliance, job_id: str, seq: int) -> None:
    await appliance.run(
        "UPDATE job_steps SET status = 'completed', completed_at = UTC_TIMESTAMP(6) WHERE job_id = %s AND seq = %s",
        job_id,
        seq,
    )


async def everywhere(transports: AllTransports, job_id: str, wanted: Any) -> Any:
    """The document of a job once each transport has sent the same one, of which `wanted` is true."""

    def same() -> Document | None:
        last = transports.last(job_id)
        assert set(last) == set(TRANSPORTS), set(last)
        first, *others = last.values()
        assert all(other == first for other in others)
        return first if wanted(first) else None

    return await eventually(same)


def basis(job: Document) -> str:
    return str(job["progress"]["basis"])


def percent(job: Document) -> float:
    return float(job["progress"]["percent"])


def seconds_until(text: str) -> float:
    return (datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds()


def errors(transports: AllTransports) -> list[str]:
    return [*transports.falls(), *transports.disagreements(), *transports.inconsistencies()]


async def test_a_job_has_the_same_forecast_on_every_transport_and_its_percent_never_falls(
    database: Database, mosquitto: Mosquitto, tmp_path: Path
):
    async with knowing(usual(), database, mosquitto, tmp_path) as (daemon, appliance, transports):
        async with transports.following(daemon):
            job_id = await begin(appliance, "gui-1", ("validation", 4))
            first = job = await everywhere(transports, job_id, lambda job: basis(job) == "history")
            assert job["forecast"]["runs"] == RUNS
            assert job["forecast"]["state"] == "on_track"
            assert job["forecast"]["typical_seconds"] == pytest.approx(99, abs=3)
            assert job["forecast"]["failure_rate"] == 0
            assert [step["name"] for step in job["forecast"]["steps_ahead"]] == ["copy", "start"]
            assert job["progress"]["steps_expected"] == 3
            assert 75 < seconds_until(job["forecast"]["ends_at"]["p50"]) < 105
            # The appliance's own formula counts steps.
            assert (await daemon.get("/api/v1/failover/gui-1/status"))[1]["progress"] == 0
            # Each step takes less time than in earlier runs.
            for seq, name in enumerate(STEPS, 1):
                if seq > 1:
                    await appliance.step(job_id, seq, name)
                    await everywhere(transports, job_id, lambda job, seq=seq: job["progress"]["steps_seen"] == seq)
                await appliance.log(f"in {name}", job_id=job_id)
                await end_step(appliance, job_id, seq)
                job = await everywhere(transports, job_id, lambda job, seq=seq: job["progress"]["steps_done"] == seq)
                status = (await daemon.get("/api/v1/failover/gui-1/status"))[1]
                assert status["progress"] == 100
            assert 5 * percent(first) < percent(job) <= 99
            assert job["forecast"]["steps_ahead"] == []
            await appliance.end(job_id)
            job = await everywhere(transports, job_id, lambda job: job["terminal"])
        assert (percent(job), job.get("forecast")) == (100, None)
        assert job["compared_with"]["runs"] == RUNS
        assert job["compared_with"]["typical_seconds"] == pytest.approx(99, abs=3)
        assert job["compared_with"]["percentile"] == 0
        assert errors(transports) == []
        assert min(transports.common_revisions().values()) >= 4, "too little was compared"


async def test_a_hung_step_is_announced_late_and_overdue_once_each_though_the_daemon_is_killed(
    database: Database, mosquitto: Mosquitto, tmp_path: Path
):
    # Most copies take two seconds, some eight.
    runs = [
        in_sequence(("validation", 1), ("copy", 8 if n in (5, 15) else 2 + n / 100), ("start", 1)) for n in range(RUNS)
    ]
    async with knowing(runs, database, mosquitto, tmp_path) as (daemon, appliance, transports):
        async with transports.following(daemon):
            job_id = await begin(appliance, "gui-1", ("validation", 2), ("copy", 1.2))
            await everywhere(transports, job_id, lambda job: state(job) == "on_track")
            await everywhere(transports, job_id, lambda job: state(job) == "late")
            await eventually(lambda: transports.lateness("mqtt") == [("job.late", job_id)])
            await daemon.saved()
        assert await daemon.kill() != 0
        await daemon.start()
        async with transports.following(daemon):
            stands = percent(await everywhere(transports, job_id, lambda job: state(job) == "overdue"))
            await eventually(lambda: transports.lateness("mqtt")[1:] == [("job.overdue", job_id)])
            await daemon.saved()
        assert await daemon.kill() != 0
        await daemon.start()
        async with transports.following(daemon):
            await appliance.log("still there", job_id=job_id)  # any change makes a new forecast
            said = {"level": "INFO", "text": "still there"}
            job = await everywhere(
                transports, job_id, lambda job: said.items() <= (job.get("last_message") or {}).items()
            )
            assert (state(job), percent(job)) == ("overdue", stands), "percent stands while a step hangs"
            await appliance.end(job_id)
            await everywhere(transports, job_id, lambda job: job["compared_with"]["percentile"] == 100)
            await eventually(lambda: "job.completed" in {event["kind"] for event in transports.events["mqtt"]})
        announced = [("job.late", job_id), ("job.overdue", job_id)]
        assert transports.lateness("mqtt") == announced
        for stream in ("websocket", "sse"):
            # A stream that was connected again too late for the second event finds the state in the document.
            assert transports.lateness(stream) in (announced, announced[:1]), stream
        assert errors(transports) == []
        assert history_reads(daemon) == 1


def state(job: Document) -> str | None:
    forecast = job.get("forecast")
    return forecast["state"] if forecast is not None else None
