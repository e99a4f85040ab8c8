"""Jobs that come and leave for long, at a pace that a test has: what NATS and a gateway keep of them stays as large."""

from __future__ import annotations

import tracemalloc
from collections import deque
from typing import Any

import orjson
import pytest

from correlator.cluster import keys, streams
from correlator.gateway.fleet import Fleet
from correlator.gateway.stream import StoredMessage
from tests.support.cluster_harness import collector
from tests.support.eventually import eventually
from tests.support.job_documents import document, forecast
from tests.support.nats import Nats
from tests.support.stream_writer import AT, PURGE

AT_ONCE, ROUNDS = 200, 120
"""Jobs of one round, which replace those of the round before."""

BLOCK = 8_400_000
"""Bytes of a file of NATS, which it writes anew once most of it was removed."""

MINUTE = 60_000_000
"""Microseconds between two new jobs of the stream of days. Each is late, and leaves 100 jobs later."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


async def test_the_files_of_nats_do_not_grow_while_jobs_come_and_leave(nats: Nats):
    """The markers of removed jobs stay for a second in place of a day."""
    written, largest = 0, 0
    async with collector(nats, timings={"marker_ttl": 1}) as one, one.writing():
        names: list[str] = []
        before = stored(nats)
        for number in range(ROUNDS):
            gone, names = names, [f"{number}-{n}" for n in range(AT_ONCE)]
            one.change(*names)
            one.remove(*gone)
            await eventually(lambda: one.sink.describe()["pending"] == 0)
            after = stored(nats)
            written += max(0, after - before)
            before, largest = after, max(largest, after)
        assert written > 3 * BLOCK
        assert largest < 2 * BLOCK

        async def has_no_marker() -> bool:
            info: Any = await streams.info(one.connection, keys.STATE)
            return bool(info["state"]["messages"] == AT_ONCE + 2)  # the owner and the epoch

        await eventually(has_no_marker)


def stored(nats: Nats) -> int:
    """Bytes of all files of the streams."""
    found = 0
    for file in (nats.folder / "js").rglob("*"):
        try:
            found += file.stat().st_size
        except FileNotFoundError:  # NATS has replaced it
            continue
    return found


class Days:
    """A gateway that has read the stream, and the collector's part of what comes."""

    def __init__(self) -> None:
        self.fleet, self._seq, self._jobs, self._known = Fleet(lambda _: None), 0, 0, deque[str]()
        self.fleet.reset("epoch-1")
        self.fleet.synced()

    def go_by(self, count: int) -> None:
        for _ in range(count * 24 * 60):
            self._jobs += 1
            job_id = f"job-{self._jobs}"
            self._known.append(job_id)
            body = document(job_id, external_ids=[f"gui-{self._jobs}"], **forecast("late"))
            self._store(job_id, orjson.dumps(body), None)
            event = {"kind": "job.late", "job_id": job_id, "at": "2025-09-22T15:12:13.000000Z"}
            self.fleet.read_event(keys.event("dc1", job_id), orjson.dumps(event))
            if len(self._known) > 100:
                self._store(self._known.popleft(), b"", {**PURGE, "Cor-Reason": "retention"})

    def _store(self, job_id: str, payload: bytes, headers: dict[str, str] | None) -> None:
        self._seq += 1
        at = AT + self._jobs * MINUTE
        self.fleet.read([StoredMessage(keys.job("dc1", job_id), self._seq, at, payload, headers)])


def test_a_gateway_is_as_large_after_five_days_of_churn_as_after_four():
    churn = Days()
    tracemalloc.start()
    try:
        churn.go_by(4)
        before = tracemalloc.get_traced_memory()[0]
        churn.go_by(1)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(churn.fleet.hub.published) == 100
    assert after < 1.15 * before
