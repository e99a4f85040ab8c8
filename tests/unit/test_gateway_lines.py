"""Log lines at a gateway: lost ones are counted, and those of unknown jobs wait for a bounded time, in bounded room."""

from __future__ import annotations

import json
import time

from correlator.cluster import keys
from correlator.gateway import log_lines
from correlator.gateway.fleet import Fleet
from correlator.gateway.log_lines import LineBatch, ReceivedLines
from correlator.gateway.stream import StoredMessage
from correlator.model.facts import AttributedRow
from correlator.pipeline.hub import Batch
from correlator.sinks.cluster.documents import encode
from tests.support.stream_writer import job


def message(first: int, *job_ids: str, run: str = "r", text: str = "m", at: int = 0) -> LineBatch:
    lines = [
        {"job_id": job_id, "event_id": n, "level": "INFO", "message": text, "at": f"2025-09-22T15:12:13.{at:06}Z"}
        for n, job_id in enumerate(job_ids, first)
    ]
    return next(log_lines.batches(json.dumps({"run": run, "first": first, "lines": lines}).encode()))


def ids(rows: list[AttributedRow]) -> list[int]:
    return [row.entry.event_id for row in rows]


AT = 1_758_553_933_000_000


def known(job_id: str) -> int | None:
    """The documents of these jobs include all lines."""
    return AT if job_id.startswith("known") else None


def test_a_gap_in_the_numbers_of_a_run_is_the_number_of_lost_lines():
    lines = ReceivedLines()
    assert lines.read("dc1", message(5, "known"), known)[1] == 0
    assert lines.read("dc1", message(6, "known", "known"), known)[1] == 0
    assert lines.read("dc1", message(11, "known"), known)[1] == 3
    assert lines.read("dc2", message(1, "known"), known)[1] == 0
    assert lines.read("dc1", message(1, "known", run="another"), known)[1] == 0


def test_lines_of_an_unknown_job_wait_until_it_appears_and_keep_their_order():
    lines = ReceivedLines()
    assert ids(lines.read("dc1", message(1, "known", "new", "known"), known)[0]) == [1, 3]
    assert ids(lines.read("dc1", message(4, "new"), lambda _: AT)[0]) == []
    assert ids(lines.appeared("dc1", [("other", AT), ("new", AT)])) == [2, 4]
    assert ids(lines.read("dc1", message(5, "new"), lambda _: AT)[0]) == [5]


def test_a_line_waits_for_the_document_that_includes_it_but_not_for_ever():
    lines = ReceivedLines()
    assert ids(lines.read("dc1", message(1, "j"), lambda _: AT - 1)[0]) == []
    assert ids(lines.appeared("dc2", [("j", AT)])) == ids(lines.appeared("dc1", [("j", AT - 1)])) == []
    assert ids(lines.appeared("dc1", [("j", AT)])) == [1]
    lines.read("dc1", message(2, "j", "gone"), lambda _: AT - 1)
    lines.read("dc1", message(4, "new"), known)
    late = time.monotonic() + log_lines.WAIT_FOR + 1
    expired = lines.expire(late, lambda name, job_id: (name, job_id) == ("dc1", "j"))
    assert {name: ids(rows) for name, rows in expired.items()} == {"dc1": [2]}
    assert ids(lines.appeared("dc1", [("new", AT)])) == [], "nobody follows a job that no document names"


def test_waiting_lines_have_a_bound_in_bytes_and_those_beyond_it_count_as_lost():
    lines = ReceivedLines(10_000)
    lost = 0
    for n in range(1, 101):
        lost += lines.read("dc1", message(n, f"new {n}", text="x" * 500), known)[1]
    left = [n for n in range(1, 101) if ids(lines.appeared("dc1", [(f"new {n}", AT)]))]
    assert left == list(range(101 - len(left), 101))
    assert (lost, 5 < len(left) < 10) == (100 - len(left), True)


def test_an_appliance_that_floods_drops_its_own_waiting_lines_and_no_other():
    lines, lost = ReceivedLines(10_000), {"dc1": 0, "dc2": 0}
    assert lines.read("dc2", message(1, "first"), known)[1] == 0
    for n in range(1, 101):
        lost["dc1"] += lines.read("dc1", message(n, f"new {n}", text="x" * 500), known)[1]
    lost["dc2"] += lines.read("dc2", message(2, "second"), known)[1]
    lost["dc1"] += lines.read("dc1", message(101, "known"), known)[1]
    assert [ids(lines.appeared("dc2", [(job, AT)])) for job in ("first", "second")] == [[1], [2]]
    left = [n for n in range(1, 101) if ids(lines.appeared("dc1", [(f"new {n}", AT)]))]
    assert left
    assert lost == {"dc1": 100 - len(left), "dc2": 0}


def test_a_job_with_a_line_that_always_waits_does_not_hold_up_the_line_of_another():
    now = 0.0
    lines, passed_on = ReceivedLines(clock=lambda: now), []
    lines.read("dc1", message(1, "busy", "other"), known)
    for n in range(3, 20):
        now += log_lines.WAIT_FOR / 4
        lines.read("dc1", message(n, "busy", at=n), known)
        lines.appeared("dc1", [("busy", AT + n - 1)])
        passed_on += [(event_id, now) for event_id in ids(lines.expire(now, lambda *_: True).get("dc1", []))]
    assert passed_on == [(2, log_lines.WAIT_FOR)]


def test_the_oldest_waiting_line_is_dropped_first_although_another_job_began_to_wait_earlier():
    now = 0
    lines = ReceivedLines(1_600, lambda: now)
    for now, job_id in enumerate(("busy", "other", "busy")):
        assert lines.read("dc1", message(now, job_id, at=now), known)[1] == 0, "there is room for three"
    lines.appeared("dc1", [("busy", AT)])
    assert lines.read("dc1", message(3, "new", text="x" * 400), known)[1] == 1
    assert ids(lines.appeared("dc1", [("other", AT + 9), ("busy", AT + 9)])) == [2]


def test_a_line_that_a_successor_sends_again_comes_once():
    lines = ReceivedLines()
    assert ids(lines.read("dc1", message(1, "known", "known"), known)[0]) == [1, 2]
    again = message(1, "known", "known", "known", run="successor")
    assert (ids(lines.read("dc1", again, known)[0]), lines.read("dc2", again, known)[1]) == ([3], 0)
    assert lines.read("dc1", message(4, "known", run="successor"), known)[1] == 0


async def test_lines_that_nobody_wants_are_not_read_and_none_of_them_counts_as_lost():
    fleet = Fleet(lambda _: None)
    document = encode(job("j"))
    fleet.reset("e")
    fleet.read([StoredMessage(keys.job("dc1", "j"), 1, AT, document, None)])
    fleet.synced()
    wanted, found, lost = False, list[int](), 0

    def on_batch(batch: Batch) -> None:
        nonlocal lost
        found.extend(ids(list(batch.lines)))
        lost += batch.dropped

    fleet.hub.subscribe(on_batch, lambda: wanted)
    for number, wanted in ((1, False), (2, True), (3, False), (5, True), (6, True), (8, True)):  # noqa: B007 - read by the hub
        line = {"job_id": "j", "event_id": number, "level": "INFO", "message": "m", "at": "2025-09-22T15:12:13.000000Z"}
        await fleet.read_lines(keys.line("dc1"), json.dumps({"run": "r", "first": number, "lines": [line]}).encode())
    assert (found, lost) == ([2, 5, 6, 8], 1)
