"""Every document and event that a daemon sends, over each transport, across restarts: and what is wrong with them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiomqtt

from tests.support.client_fold import ClientFold, Document
from tests.support.daemon import HELLO, Daemon
from tests.support.mosquitto import Mosquitto
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
