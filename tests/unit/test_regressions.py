"""Two costs that must not grow, each beside another one of the same moment; and the table of what was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from benchmarks import report
from benchmarks.__main__ import DOCUMENT, documented
from benchmarks.facts import job_id, now, readings
from benchmarks.harness import Limit, Number
from correlator.jobs.index import Index
from correlator.model.published import Change
from correlator.model.rows import LogRow
from correlator.pipeline.hub import Batch
from correlator.pipeline.pipeline import LocalHub, Pipeline
from correlator.pipeline.queries import JobQuery
from correlator.sinks.streaming.fanout import Fanout
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.messages import Framing, Message
from correlator.sinks.streaming.subscriptions import Filter
from tests.support.yardstick import quickest


def logging(jobs: int, running: int = 100, rows: int = 500) -> Callable[[], None]:
    """A row each of running jobs, with so many jobs in memory."""
    index = Index(max_jobs=2 * jobs)
    pipeline = Pipeline(LocalHub(index))
    pipeline.readings(readings(index, jobs, running=running))
    pipeline.status.loaded()
    count = 0

    def log() -> None:
        nonlocal count
        for n in range(rows):
            count += 1
            attrs = f'{{"job_id":"{job_id(jobs - 1 - n % running)}"}}'
            pipeline.rows([LogRow(count, "working on final-sync", now(), attrs=attrs)])

    return log


def test_a_row_costs_the_same_however_many_jobs_are_in_memory():
    few, many = quickest(logging(500), logging(10_000))
    assert many < 1.6 * few, f"{many / few:.2f} times as much with twenty times as many jobs"


class Client:
    """Takes what it is written, and has none of it waiting."""

    transport: ClassVar[str] = "websocket"
    address: ClassVar[str] = "127.0.0.1"

    def __init__(self) -> None:
        self.framing: Framing = lambda messages: b"".join(m.body for m in messages)
        self.written = 0

    def write(self, framed: bytes) -> None:
        self.written += len(framed)

    def waiting(self) -> int:
        return 0

    def synced(self) -> None: ...

    def give_up(self) -> None: ...


def test_a_change_for_a_thousand_clients_is_little_more_than_a_thousand_writes():
    index = Index()
    hub = LocalHub(index)
    (change,) = index.apply(readings(index, 1), now()).changes
    fanout = Fanout(hub, Limits(), lambda: 0.0, lambda _seconds, _call: None)
    readers = [Client() for _ in range(1000)]
    framing = readers[0].framing
    for reader in readers:
        reader.framing = framing
        fanout.add(reader)
        sub = fanout.subscribe(reader, 1, Filter(JobQuery()))
        sub.todo.clear()
    again = Change(change.job_id, change.seq + 1, change.new, change.new)
    frame = framing([Message(b"." * 400)])

    def fan_out() -> None:
        for _ in range(20):
            fanout.on_batch(Batch(again.seq, [again]))

    def written() -> None:
        for _ in range(20):
            for reader in readers:
                if not reader.waiting():
                    reader.write(frame)

    ours, bare = quickest(fan_out, written)
    assert all(reader.written for reader in readers)
    assert ours < 11 * bare, f"{ours / bare:.1f} times as long as the writes alone"


def test_the_table_of_the_documentation_is_what_was_measured():
    assert documented() == DOCUMENT.read_text()


def test_a_table_repeats_no_words_of_the_row_above_and_joins_what_has_no_yardstick():
    found = report.rows([
        Number("start: p50", "ms", (1.0,), limit=Limit("≤", 2)),
        Number("start: p99", "ms", (3.0,), limit=Limit("≤", 2)),
        Number("the same, CPU", "s", (0.5,)),
        Number("fan-out", "rows/s", (90.0,), "raw", (100.0,), Limit("≥", 0.8, "ratio")),
        Number("fan-out", "rows/s", (90.0,), "mosquitto", (100.0,), Limit("≥", 1.5, "ratio")),
    ])  # fmt: skip
    assert found == [
        ("start: p50", "1 ms (≤ 2); p99: 3 ms (≤ 2: NOT MET); CPU: 0.5 s", ""),
        ("fan-out", "90 rows/s", "0.90 × 100 (raw; ≥ 0.8 ×)"),
        ("…", "90 rows/s", "0.90 × 100 (mosquitto; ≥ 1.5 ×: NOT MET)"),
    ]
