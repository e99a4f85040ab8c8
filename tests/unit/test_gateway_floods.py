"""What a collector in wrong hands writes into the stream holds a gateway up for no longer than one document may."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import msgspec
import pytest

from correlator.cluster import growth, keys
from correlator.gateway.fleet import Fleet
from correlator.gateway.stream import MAX_BATCH, MAX_BATCH_BYTES, StoredMessage
from correlator.pipeline.hub import Batch, wall_clock
from tests.support.job_documents import document, step

NOW = wall_clock()
ALLOWED = 10
"""Times as long as a document of 1 MB."""
TRIES = 5
"""Attacks of which the quickest counts: what else runs on the machine only slows one down."""
PURGED = {"KV-Operation": "PURGE", "Cor-Reason": "retention"}
LARGE = 5_000
"""Steps of a document of nearly a megabyte."""

Write: TypeAlias = tuple[str, bytes, dict[str, str] | None]
Attack: TypeAlias = tuple[Sequence[Write], Iterator[Write]]
"""What a collector writes one after the other, and then without end, as much at once as a gateway takes."""


def job(job_id: str, steps: int = 0, status: str = "running", ids: Sequence[str] = (), age: int = 0) -> Write:
    of: dict[str, Any] = {str(n): step(n % 60, "s", status) for n in range(steps)}
    started_at = f"2025-09-22T15:12:01.{age:06}Z"
    made = document(job_id, steps=of, external_ids=list(ids), started_at=started_at)
    made["progress"] |= {"steps_running": steps, "steps_expected": None}
    made |= {"forecast": None, "compared_with": None, "rev": 1}
    return keys.job("dc1", job_id), msgspec.json.encode(made), None


def pages_of(documents: Sequence[Write]) -> Iterator[Write]:
    for n in itertools.count(1):
        page = [
            growth.Growth(f"j{i}", growth.checksum(stored), NOW + n, NOW + n, "INFO", "")
            for i, (_, stored, _) in enumerate(documents)
        ]
        yield keys.growth("dc1", n % growth.PAGES), msgspec.json.encode(page), None


def growth_of_large_documents(status: str) -> Attack:
    documents = [job(f"j{n}", LARGE, status) for n in range(growth.PAGE_JOBS)]
    return documents, pages_of(documents)


def growth_with_few_running_steps() -> Attack:
    documents = [job(f"j{n}", 190) for n in range(growth.PAGE_JOBS)]
    return documents, pages_of(documents)


def small_documents_in_place_of_large_ones() -> Attack:
    documents = [job(f"j{n}", LARGE) for n in range(50)]
    return documents, (job(f"j{n}") for n in range(50))


def names_that_pass_to_a_thousand_jobs() -> Attack:
    heirs = [job(f"heir-{n}", ids=[f"{k}.{n}" for k in range(50)]) for n in range(1_000)]
    owners = [job(f"owner-{k}", ids=[f"{k}.{n}" for n in range(1_000)], age=1 + k) for k in range(50)]
    return [*heirs, *owners], ((keys.job("dc1", f"owner-{k}"), b"", PURGED) for k in range(50))


def longest_call(fleet: Fleet, writes: Iterator[Write], seq: Iterator[int]) -> float:
    """Have a gateway read what arrived together. Returns the longest time of the processor that one call took."""
    batch: list[StoredMessage] = []
    size = 0
    for subject, payload, headers in writes:
        batch.append(StoredMessage(subject, n := next(seq), NOW + n, payload, headers))
        size += len(payload)
        if len(batch) >= MAX_BATCH or size >= MAX_BATCH_BYTES:
            break
    longest = 0.0
    while batch:
        began = time.thread_time()
        taken = fleet.read(batch)
        longest = max(longest, time.thread_time() - began)
        assert taken
        batch = batch[taken:]
    return longest


def followed(fleet: Fleet) -> None:
    """Have a client get each change, as one does that follows all jobs."""
    hub = fleet.hub

    def on_batch(batch: Batch) -> None:
        for change in batch.changes:
            if change.old is not None and change.new is not None and not change.moved:
                hub.documents.patch(change.old, change.new, goes_on=change.goes_on)

    hub.subscribe(on_batch)


def held_up_by(attack: Callable[[], Attack], *, announced: bool) -> tuple[float, float]:
    """The longest call that the attack caused, and that of one large document, in seconds of the processor."""
    fleet, seq = Fleet(lambda _: None), itertools.count(1)
    fleet.reset("epoch")
    fleet.synced()
    followed(fleet)
    before, then = attack()
    for write in before:
        longest_call(fleet, iter((write,)), seq)
    if announced:
        for n in range(growth.PAGE_JOBS):
            event = {"kind": "job.late", "job_id": f"j{n}", "at": "2025-09-22T15:12:01.000000Z"}
            fleet.read_event(keys.event("dc1", f"j{n}"), msgspec.json.encode(event))
    taken = longest_call(fleet, then, seq)
    one = max(longest_call(fleet, iter((job("last", LARGE, status),)), seq) for status in ("running", "completed"))
    return taken, one


@pytest.mark.parametrize(
    "attack",
    [
        lambda: growth_of_large_documents("running"),
        lambda: growth_of_large_documents("completed"),
        growth_with_few_running_steps,
        small_documents_in_place_of_large_ones,
        names_that_pass_to_a_thousand_jobs,
    ],
    ids=["growth, all steps run", "growth, no step runs", "growth, some steps run", "replaced", "names"],
)
@pytest.mark.parametrize("announced", [False, True], ids=["", "events wait"])
def test_no_messages_of_a_collector_hold_a_gateway_up_for_long(attack: Callable[[], Attack], announced: bool) -> None:
    times: list[float] = []
    while len(times) < TRIES and min(times, default=ALLOWED) >= ALLOWED:
        taken, one = held_up_by(attack, announced=announced)
        times.append(taken / one)
    assert min(times) < ALLOWED, f"the messages held it up so many times as long as a document of 1 MB: {times}"
