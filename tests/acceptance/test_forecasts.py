"""Percent and end of running jobs from earlier runs, as clients of the installed daemon see them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import aiomqtt
import pytest

from tests.support.appliance import Appliance, connected
from tests.support.client_fold import ClientFold, Document
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto
from tests.support.past_runs import PastRun, in_sequence, write_past_runs
from tests.support.stream_clients import CheckedEventStream
from tests.support.subscriptions import plain

TRANSPORTS = ("rest", "websocket", "sse", "mqtt")
_REST_EVERY = 0.1


class Seen(NamedTuple):
    epoch: str
    document: Document


class AllTransports:
    """The documents of all jobs in the order in which each transport sent them, and the events."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Seen]] = {transport: [] for transport in TRANSPORTS}
        self.events: dict[str, list[Document]] = {transport: [] for transport in TRANSPORTS}

    @asynccontextmanager
    async def broker(self, broker: Mosquitto, instance: str) -> AsyncIterator[None]:
        """Collect what the broker gets, until the end of the block."""
        async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.subscribe(f"correlator/v1/{instance}/job/#", qos=1)
            async with _beside(self._read_broker(client)):
                yield

    @asynccontextmanager
    async def following(self, daemon: Daemon) -> AsyncIterator[None]:
        """Collect what the daemon sends over REST, websocket and event stream, until the end of the block.

        Each of them has sent all jobs before the block begins.
        """
        assert daemon.session is not None
        async with daemon.socket(HELLO) as socket, daemon.session.get("/api/v1/stream") as response:
            stream = CheckedEventStream(response, ClientFold())
            jobs, _ = await socket.snapshot()
            socket.jobs |= jobs
            epoch = str(socket.welcome["epoch"])
            self._saw("websocket", epoch, jobs.values())
            await stream.until("synced")
            assert stream.fold.epoch == epoch
            self._saw("sse", epoch, stream.fold.jobs.get(1, {}).values())

            async def over_websocket() -> None:
                while True:
                    self._message("websocket", epoch, await socket.next(3600), socket.jobs)

            async def over_stream() -> None:
                while True:
                    _, message = await stream.next(3600)
                    self._message("sse", epoch, message, stream.fold.jobs.get(1, {}))

            async def over_rest() -> None:
                while True:
                    found = [await daemon.job(job_id) for job_id in list(socket.jobs)]
                    self._saw("rest", epoch, [job for job in found if job is not None])
                    await asyncio.sleep(_REST_EVERY)

            async with _beside(over_websocket(), over_stream(), over_rest()):
                yield

    def of(self, transport: str, job_id: str) -> list[Document]:
        """The documents of one job."""
        return [document for _, document in self.seen[transport] if document["job_id"] == job_id]

    def last(self, job_id: str) -> dict[str, Document]:
        """The last document of a job on each transport that sent any."""
        return {t: plain(found[-1]) for t in TRANSPORTS if (found := self.of(t, job_id))}

    def lateness(self, transport: str) -> list[tuple[str, str]]:
        """(kind, job id) of the events about late jobs."""
        return [(e["kind"], e["job_id"]) for e in self.events[transport] if e["kind"] in ("job.late", "job.overdue")]

    def falls(self) -> list[str]:
        """Percents that fell while the same steps ran, or when the job failed."""
        found = []
        for transport in TRANSPORTS:
            shown: dict[str, tuple[float, int]] = {}
            for _, job in self.seen[transport]:
                percent, steps = job["progress"]["percent"], job["progress"]["steps_seen"]
                before, were = shown.get(job["job_id"], (0.0, steps))
                if percent < before and steps == were:
                    found.append(f"{transport}: {job['job_id']} from {before} to {percent}, {job['status']}")
                if percent >= 100 and job["status"] != "completed":
                    found.append(f"{transport}: {job['job_id']} at {percent} while {job['status']}")
                shown[job["job_id"]] = percent, steps
        return found

    def disagreements(self) -> list[str]:
        """Revisions that two transports show differently."""
        found, first = [], dict[tuple[str, str, int], tuple[str, Document]]()
        for transport in TRANSPORTS:
            for epoch, job in self.seen[transport]:
                document = plain(job)
                other, same = first.setdefault((epoch, job["job_id"], job["rev"]), (transport, document))
                if same != document:
                    differ = [k for k in same.keys() | document.keys() if same.get(k) != document.get(k)]
                    found.append(f"{job['job_id']} rev {job['rev']}: {other} and {transport} differ in {differ}")
        return found

    def common_revisions(self) -> Counter[str]:
        """How many revisions each transport has in common with the websocket: a comparison needs some."""
        revisions = {t: {(e, j["job_id"], j["rev"]) for e, j in self.seen[t]} for t in TRANSPORTS}
        return Counter({t: len(revisions[t] & revisions["websocket"]) for t in TRANSPORTS})

    def inconsistencies(self) -> list[str]:
        """Documents whose forecast contradicts itself or the rest of the document."""
        return [f"{t}: {what} in {job}" for t in TRANSPORTS for _, job in self.seen[t] for what in _wrong(job)]

    def _message(self, transport: str, epoch: str, message: Document, jobs: dict[str, Document]) -> None:
        if message["type"] in ("put", "delta"):
            self._saw(transport, epoch, [jobs[message["job_id"]]])
        elif message["type"] == "event":
            self.events[transport].append(message)

    def _saw(self, transport: str, epoch: str, jobs: Any) -> None:
        self.seen[transport] += [Seen(epoch, job) for job in jobs]

    async def _read_broker(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            if not message.payload:
                continue  # the topic is removed
            value = json.loads(bytes(message.payload))
            if str(message.topic).endswith("/event"):
                self.events["mqtt"].append(value)
            elif str(message.topic).endswith("/state") and "deleted" not in value:
                epoch = value.pop("epoch")
                del value["seq"]
                self.seen["mqtt"].append(Seen(epoch, value))


def _wrong(job: Document) -> Iterator[str]:
    forecast, progress = job.get("forecast"), job["progress"]
    if forecast is None:
        if progress.get("steps_expected") is not None:
            yield "steps_expected without a forecast"
        return
    if job["terminal"] or job.get("compared_with") is not None:
        yield "a forecast of an ended job"
    if not job["started_at"] <= forecast["as_of"] <= job["updated_at"]:
        yield "as_of is not between started_at and updated_at"
    if not forecast["as_of"] <= forecast["ends_at"]["p50"] <= forecast["ends_at"]["p90"]:
        yield "as_of, p50 and p90 are not in order"
    if progress["basis"] not in ("history", "reported"):
        yield f"a forecast and basis {progress['basis']}"
    expected = progress["steps_seen"] + sum(step["share"] >= 0.5 for step in forecast["steps_ahead"])
    if progress["steps_expected"] != expected:
        yield f"steps_expected is not {expected}"
    if forecast["runs"] < 3 or forecast["state"] not in ("rough", "on_track", "late", "overdue"):
        yield "runs or state"


@asynccontextmanager
async def _beside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` during the block. An error in it is raised at the end of the block."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(Exception):
            await asyncio.gather(*tasks, return_exceptions=True)


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


async def test_a_run_whose_end_is_committed_late_is_learned(appliance: Appliance, daemon: Daemon) -> None:
    """The daemon has read the history when the row comes, which names a moment before that."""
    job_id = await appliance.job()
    ended = (datetime.now(UTC) - timedelta(seconds=20)).strftime("%Y-%m-%d %H:%M:%S")
    began = (datetime.now(UTC) - timedelta(seconds=50)).strftime("%Y-%m-%d %H:%M:%S")
    sql = "UPDATE job_tracking SET status = 'completed', started_at = %s, completed_at = %s WHERE id = %s"
    await appliance.run(sql, began, ended, job_id)

    async def learned() -> bool:
        return bool((await daemon.get("/api/v1/operations"))[1]["operations"])

    await eventually(learned)
