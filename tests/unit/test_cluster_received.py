"""What is read from the cluster: any bytes give a typed value or `Unreadable`, and never end the task that reads."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from correlator.cluster import keys, received, rpc
from correlator.cluster.received import MAX_DEPTH, MAX_IDS, REPORTED_FOR, Alive, Holder, Parser, Unreadable
from correlator.gateway import fleet, log_lines
from correlator.gateway.fleet import Appliance, Fleet
from correlator.gateway.stream import StoredMessage
from correlator.jobs import encoding
from correlator.model.facts import Status
from correlator.model.published import JobView, PublishedJob
from correlator.ops.metrics import REGISTRY
from correlator.pipeline.queries import QUESTIONS, LinesPage
from tests.support.documents import document_of, document_text
from tests.support.garbage import DEEP, HEADERS, PAYLOADS
from tests.support.job_documents import document, forecast
from tests.support.published_jobs import published_jobs, values
from tests.support.stream_writer import AT, job
from tests.support.there import there

numbers = st.integers() | st.sampled_from([2**63, -(2**63) - 1, 10**40]) | st.floats()
odd = st.one_of(values, numbers, st.just("2025-09-22T10:00+01:00"), st.just("9999-99-99T10:00:00.000000Z"))


@st.composite
def damaged(draw: Any) -> bytes:
    """A document of which a member, at any depth, is another value or away."""
    shown = draw(published_jobs())
    found: Any = draw(st.sampled_from([document("a", **forecast()), document_of(shown)]))
    found = orjson.loads(orjson.dumps(found))
    part = found
    while True:
        name = draw(st.sampled_from(sorted(part)))
        if not isinstance(part[name], dict) or not part[name] or draw(st.booleans()):
            break
        part = part[name]
    if draw(st.booleans()):
        del part[name]
    else:
        part[name] = draw(odd)
    return msgspec.json.encode(found)


@st.composite
def torn(draw: Any) -> bytes:
    """A document with other bytes somewhere."""
    body = orjson.dumps(document("a", **forecast()))
    at: int = draw(st.integers(0, len(body)))
    other: bytes = draw(st.binary(max_size=5))
    return body[:at] + other + body[at + draw(st.integers(0, 5)) :]


anything = st.one_of(st.binary(max_size=80), st.sampled_from(PAYLOADS), damaged(), torn())


@settings(max_examples=60)
@given(anything)
def test_any_bytes_are_a_value_that_can_be_encoded_or_unreadable(body: bytes):
    with contextlib.suppress(Unreadable):
        document_of(received.document(body, 7, "dc1"))
    with contextlib.suppress(Unreadable):
        event = fleet.event_of(body)
        assert event is None or orjson.dumps(encoding.transition(event))
    with contextlib.suppress(Unreadable):
        for batch in log_lines.batches(body):
            for row in batch.rows:
                encoding.encode(encoding.log_line(row.entry))
    with contextlib.suppress(Unreadable):
        appliance = Appliance("dc1", lambda: None)
        appliance.renewed(received.decode(body, Alive), AT, None)
        assert appliance.complete_since is None or isinstance(appliance.complete_since, int)
        orjson.dumps([appliance.behind(), appliance.error(), appliance.alive.error])
    for parse in (received.epoch, lambda b: received.decode(b, Holder)):
        with contextlib.suppress(Unreadable):
            orjson.dumps(msgspec.to_builtins(parse(body)))
    with contextlib.suppress(Unreadable):
        orjson.dumps(rpc.wanted_ids(body, "dc1"))
    with contextlib.suppress(rpc.RemoteError):
        rpc.decode_request(body)
    for kind in QUESTIONS.values():
        with contextlib.suppress(rpc.RemoteError):
            encoding.encode(rpc.decode_reply(body, kind.answer()))
        with contextlib.suppress(rpc.RemoteError):
            rpc.decode_part(msgspec.Raw(body), kind)


subjects = st.sampled_from(
    ["$KV.cor.dc2.job.a", "$KV.cor.dc2.job.=FF", "$KV.cor.dc2.job.a\udcffb", "$KV.cor.\udcff.job.a", "$KV.cor.dc1.odd",
     "$KV.cor.dc2.owner", "$KV.cor.epoch", "", "$KV.cor..job.", f"$KV.cor.{'x' * 65}.job.a"]
)  # fmt: skip
some_headers = st.none() | st.dictionaries(
    st.sampled_from(["Status", "Cor-Reason", "KV-Operation", "Nats-Sequence"]), st.text(max_size=4), max_size=3
)


@settings(max_examples=25)
@given(st.lists(st.tuples(subjects, anything, some_headers), max_size=8))
def test_a_gateway_has_the_documents_of_one_appliance_whatever_another_writes(found: Any):
    gateway = Fleet(lambda _: None)
    gateway.reset("epoch-1")
    expected = {}
    seq = 0
    for n, (subject, body, headers) in enumerate([*found, ("$KV.cor.dc2.job.a", DEEP, None)]):
        shown = job(f"j{n % 3}", "completed" if n % 2 else "running")
        bad = StoredMessage(subject, seq + 1, AT, body, headers)
        good = StoredMessage(keys.job("dc1", shown.job_id), seq + 2, AT, encoded(shown), None)
        gateway.read([bad, good])
        seq = gateway.hub.seq
        assert seq == good.seq
        expected[shown.job_id] = (seq, shown.view.status)
    hub = there(gateway.hub_of("dc1"))
    assert {s.job_id: (s.rev, s.view.status) for s in hub.published.all()} == expected
    for one in gateway.hubs():
        for shown in one.published.all():
            one.documents.encoded(shown)


def encoded(shown: Any) -> bytes:
    return document_text(shown)


@pytest.mark.parametrize("member", ["lag_seconds", "unwritten_seconds"])
def test_a_negative_age_in_the_alive_key_is_unreadable(member: str):
    with pytest.raises(Unreadable, match=">= 0"):
        received.decode(orjson.dumps({member: -1}), Alive)


@pytest.mark.parametrize("level", [MAX_DEPTH, MAX_DEPTH + 1])
def test_nesting_has_a_bound_and_brackets_in_texts_do_not_count(level: int):
    text = '"' + '[{\\"' * 3 + '"'
    nested = f"[{text}," * (level - 1) + text + "]" * (level - 1)

    def read(member: str) -> None:
        body = orjson.loads(encoded(job("a"))) | {"metadata": orjson.Fragment(f'{{"m":{member}}}')}
        received.document(orjson.dumps(body), 1, "dc1")

    if level <= MAX_DEPTH:
        read(nested)
        read(f"[{','.join(['[1]'] * 1000)}]")
    else:
        with pytest.raises(Unreadable, match="deeper"):
            read(nested)


@pytest.mark.parametrize("member", ["external_ids", "child_job_ids"])
def test_a_document_with_more_ids_than_a_collector_writes_is_unreadable(member: str):
    for count in (MAX_IDS, MAX_IDS + 1):
        body = orjson.loads(encoded(job("a"))) | {member: [f"id{n}" for n in range(count)]}
        if count <= MAX_IDS:
            received.document(orjson.dumps(body), 1, "dc1")
        else:
            with pytest.raises(Unreadable, match="more than 1000 IDs"):
                received.document(orjson.dumps(body), 1, "dc1")


@pytest.mark.parametrize("first", [-1, 10**30])
def test_lines_have_numbers_that_every_client_can_read(first: int):
    with pytest.raises(Unreadable):
        list(log_lines.batches(b'{"run":"r","first":%d,"lines":[]}' % first))


def lines(*attrs: str) -> bytes:
    head = '{"job_id":"a","event_id":1,"level":"INFO","message":"m","at":"2025-09-22T15:12:13.000000Z","attrs":'
    return f'{{"run":"r","first":1,"lines":[{",".join(head + each + "}" for each in attrs)}]}}'.encode()


def log_page(attrs: str) -> bytes:
    line = f'{{"event_id":1,"level":"INFO","message":"m","step_id":null,"at":1,"attrs":{attrs}}}'
    return rpc.encode_result(f'{{"lines":[{line}]}}'.encode())


def test_what_a_collector_sends_has_a_bound_in_depth_and_bytes_that_is_checked_first():
    """The parser would accept a deeper nesting, and takes longer for it than any check."""
    for read in (
        lambda text: next(log_lines.batches(lines(text))),
        lambda text: rpc.decode_reply(log_page(text), LinesPage),
        lambda text: received.decode(f'{{"settings":{{}},"unknown":{text}}}'.encode(), Alive),
    ):
        read("[" * 150 + "]" * 150)
        with pytest.raises((Unreadable, rpc.RemoteError), match=f"nested deeper than {MAX_DEPTH} levels"):
            read("[" * 250 + "]" * 250)
    long = '"' + "x" * 131_000 + '"'
    with pytest.raises(Unreadable, match="more than 130000"):
        next(log_lines.batches(lines(long)))
    for parse in (lambda body: next(log_lines.batches(body)), fleet.event_of):
        with pytest.raises(Unreadable, match="more than 260000"):
            parse(lines(*["{}"] * 3_000))


async def test_other_tasks_run_while_a_gateway_reads_one_message_of_many_lines():
    gateway, turns = Fleet(lambda _: None), 0
    gateway.read([StoredMessage(keys.job("dc1", "a"), 1, AT, encoded(job("a")), None)])

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    gateway.hub.subscribe(lambda _: None)
    counting = asyncio.create_task(count())
    await gateway.read_lines(keys.line("dc1"), lines(*["{}"] * 1_000))
    counting.cancel()
    assert turns >= 1_000 // log_lines.AT_ONCE


def test_a_document_of_another_job_than_its_subject_names_is_unreadable():
    with pytest.raises(Unreadable, match="another job"):
        received.document(encoded(job("a")), 1, "dc1", "b")


def test_unreadable_messages_are_counted_and_reported_for_eleven_minutes_and_fill_no_log(caplog):
    now = [0.0]
    parser, before = Parser(lambda: now[0]), unreadable()
    assert parser.describe() == {}
    assert parser.parse("$KV.cor.dc1.job.a\udcff", lambda: received.document(b"{", 1, "dc1")) is None
    part = parser.describe()
    assert (part["unreadable"], part["ok"]) == (1, False)
    assert part["error"] == "1 message was passed over, as unreadable"
    assert part["subject"] == "$KV.cor.dc1.job.a\\udcff"
    assert parser.parse(keys.EPOCH, lambda: received.epoch(b"\xff")) is None
    assert "2 messages were passed over" in parser.describe()["error"]
    now[0] += REPORTED_FOR
    assert parser.describe() == {"unreadable": 2}
    for _ in range(100):
        parser.parse(keys.EPOCH, lambda: received.epoch(b"\xff"))
    assert unreadable() == before + 102
    assert len(caplog.records) <= 2


def unreadable() -> float:
    """The number that a scrape gets."""
    return REGISTRY.get_sample_value("correlator_cluster_unreadable_total") or 0.0


@pytest.mark.parametrize("raw", [b"", *HEADERS])
async def test_the_client_reads_a_message_whatever_headers_it_has(raw: bytes):
    from correlator.cluster.connection import new_client

    client = new_client()
    headers = await client._process_headers(raw)
    message = client._build_message(1, b"a\xffb", b"r\xff", b"", headers)
    assert (message.subject, message.headers) == ("a\udcffb", headers)


class Announced:
    """A gateway, and what its clients get: the states of the job `a`, and its events."""

    def __init__(self, max_unconfirmed: int = 1_000_000) -> None:
        self.fleet = Fleet(lambda _: None, max_unconfirmed=max_unconfirmed)
        self.found, self._seqs = list[str](), itertools.count(1)
        self.fleet.reset("epoch-1")
        self.fleet.hub.subscribe(self._on_batch)

    def _on_batch(self, batch: Any) -> None:
        self.found += [self._state(change.new) for change in batch.changes]
        self.found += [event.kind.value for event in batch.events]

    @staticmethod
    def _state(shown: Any) -> str:
        return str(shown.view.status if shown.view.terminal else document_of(shown)["forecast"]["state"])

    def document(self, state: str, status: str = "running", job_id: str = "a") -> None:
        ended = document_of(PublishedJob(JobView(job_id, Status.COMPLETED), 1, AT))
        body = orjson.dumps(document(job_id, status, **forecast(state)) if status == "running" else ended)
        self.fleet.read([StoredMessage(keys.job("dc1", job_id), next(self._seqs), AT, body, None)])

    def event(self, kind: str, job_id: str = "a", error: str | None = None) -> None:
        payload = {"kind": kind, "job_id": job_id, "at": "2025-09-22T15:12:13.000000Z", "error": error}
        self.fleet.read_event(keys.event("dc1", job_id), orjson.dumps(payload))


def test_a_gateway_forwards_an_event_once_after_the_document_however_often_it_is_sent():
    gateway = Announced()
    for _ in range(3):
        gateway.event("job.late")
    gateway.document("on_track")
    gateway.document("late")
    for kind in ("job.late", "job.overdue", "job.late", "job.stalled"):
        gateway.event(kind)
    gateway.document("overdue")
    for kind in ("job.late", "job.overdue"):
        gateway.event(kind)
    assert gateway.found == ["on_track", "late", "job.late", "overdue", "job.overdue"]


def test_an_event_that_no_document_confirms_reaches_no_client_also_after_the_end_of_its_job():
    """A collector that has lost the lease sends it, or one whose documents NATS refuses."""
    gateway = Announced()
    gateway.document("on_track")
    gateway.event("job.overdue")
    gateway.document("late")
    gateway.document("", "completed")
    gateway.event("job.overdue")
    gateway.document("overdue")  # it runs again
    assert gateway.found == ["on_track", "late", "completed", "overdue"]


def test_events_that_wait_for_a_document_have_a_bound_and_the_newest_stay():
    gateway = Announced(max_unconfirmed=35_000)
    for n in range(10):
        gateway.event("job.late", f"j{n}", "x" * 10_000)
    confirmed = []
    for n in range(10):
        gateway.document("late", job_id=f"j{n}")
        confirmed.append(gateway.found.count("job.late"))
    assert confirmed == [*[0] * 7, 1, 2, 3]
