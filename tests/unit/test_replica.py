"""The client's replica equals the daemon's jobs, message by message and after random faults."""

from __future__ import annotations

import json
import random
from collections import deque
from typing import Any

import msgspec
import pytest

from correlator.client.documents import merge, named
from correlator.client.messages import decode
from correlator.client.replica import ConnectionState, Replica, Update
from correlator.errors import BadRequest
from correlator.model.encoder import merge_patch
from correlator.model.messages import ClientMessage, Wanted
from tests.support.messages import delta, job, put, snapshot, synced, welcome


class DaemonModel:
    """Jobs, a resume ring of all changes, and one connection: `wire` has its pending messages, or is None."""

    def __init__(self, wanted: list[Wanted]) -> None:
        self.wanted = wanted
        self.epoch, self.seq = 1, 0
        self.jobs: dict[str, dict[str, Any]] = {}
        self.resume_ring: list[tuple[int, str]] = []
        self.wire: deque[dict[str, Any]] | None = None
        self.subs: dict[int, set[str]] = {}
        self.since: int | None = None
        self.busy = self.may_fail = 0
        """Requests for a document that are to fail, and that may still fail before a client gives up."""

    def matches(self, number: int, document: dict[str, Any] | None) -> bool:
        status = self.wanted[number - 1].status
        return document is not None and (status is None or document["status"] in status)

    def send(self, message: dict[str, Any]) -> None:
        if self.wire is not None:
            self.wire.append(message)

    def change(self, job_id: str, document: dict[str, Any] | None, *, as_delta: bool) -> None:
        before = self.jobs.pop(job_id, None)
        if document is None and before is None:
            return
        self.seq += 1
        self.resume_ring.append((self.seq, job_id))
        if document is not None:
            self.jobs[job_id] = document = {**document, "job_id": job_id, "rev": self.seq}
        stay, come, leave = list[int](), list[int](), list[int]()
        for number, members in self.subs.items():
            was, now = job_id in members, self.matches(number, document)
            (members.add if now else members.discard)(job_id)
            if now:
                (stay if was else come).append(number)
            elif was:
                leave.append(number)
        if document is not None and stay and before is not None and as_delta:
            self.send({**delta(job_id, before["rev"], self.seq, stay), "set": merge_patch(before, document)})
        elif stay:
            come += stay
        if come and document is not None:
            self.send(put(document, self.seq, come))
        if leave:
            self.send({"type": "delete", "sub": leave, "seq": self.seq, "job_id": job_id, "reason": "filter"})

    def connect(self, hello: dict[str, Any]) -> None:
        self.wire, self.subs = deque(), {}
        self.busy, self.may_fail = 0, 4
        resume = hello.get("resume")
        self.since = resume["seq"] if resume and resume["epoch"] == str(self.epoch) else None
        self.send(welcome(str(self.epoch), resumed=self.since is not None, seq=self.seq))

    def answer(self, request: dict[str, Any]) -> None:
        if request["type"] == "get":
            error = {"type": "error", "sub": None, "detail": "", "job_id": request["job_id"]}
            if self.busy:
                self.busy -= 1
                self.send({**error, "code": "unavailable"})
            elif (document := self.jobs.get(request["job_id"])) is not None:
                self.send(put(document, self.seq, [n for n, m in self.subs.items() if request["job_id"] in m]))
            else:
                self.send({**error, "code": "not_found"})
            return
        number = request["id"]
        members = self.subs[number] = {j for j, d in self.jobs.items() if self.matches(number, d)}
        if request.get("resume"):
            assert self.since is not None
            for job_id in dict.fromkeys(j for seq, j in self.resume_ring if seq > self.since):
                if job_id in members:
                    self.send(put(self.jobs[job_id], self.seq, [number]))
                else:
                    self.send(
                        {"type": "delete", "sub": [number], "seq": self.seq, "job_id": job_id, "reason": "filter"}
                    )
        else:
            for job_id in members:
                self.send(snapshot(number, self.jobs[job_id], seq=self.seq))
            if not members:
                self.send(snapshot(number, seq=self.seq))
        self.send(synced(number, self.seq))

    def restart(self) -> None:
        """Another run: revisions begin again, so that old ones may come up a second time."""
        self.wire, self.subs, self.resume_ring, self.epoch, self.seq = None, {}, [], self.epoch + 1, 0
        for job_id, document in self.jobs.items():
            self.seq += 1
            self.jobs[job_id] = {**document, "rev": self.seq}

    def resync(self) -> None:
        if self.wire is not None and self.subs:
            self.send({"type": "resync", "reason": "slow"})
            for number in list(self.subs):
                self.answer({"type": "subscribe", "id": number})

    def apply(self, act: tuple[Any, ...]) -> None:
        match act:
            case ("change", job_id, document, as_delta):
                self.change(job_id, document, as_delta=as_delta)
            case ("remove", job_id):
                self.change(job_id, None, as_delta=False)
            case ("drop",):
                self.wire, self.subs = None, {}
            case ("restart",):
                self.restart()
            case ("resync",):
                self.resync()
            case ("busy",) if self.may_fail:
                self.busy, self.may_fail = self.busy + 1, self.may_fail - 1
            case ("bookmark",):
                self.send({"type": "bookmark", "seq": self.seq, "at": "2025-09-22T10:00:00.000000Z"})
            case ("lose",) if self.wire:
                self.wire = deque(message for message in self.wire if message["type"] != "delta")


def receive(replica: Replica, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    answers: list[ClientMessage] = []
    for message in decode(json.dumps(list(messages))):
        answers += replica.receive(message)
    return [json.loads(msgspec.json.encode(answer)) for answer in answers]


def hello(replica: Replica, token: str = "") -> Any:
    return json.loads(msgspec.json.encode(replica.hello(token)))


def drained(replica: Replica) -> Update:
    return replica.drain(ConnectionState("live"))


@pytest.fixture
def live():
    """A replica of one subscription that holds one job at revision 5."""
    replica = Replica([Wanted()])
    receive(replica, welcome(), snapshot(1, job("a", 5, steps={"1": {"status": "running"}})), synced(1))
    drained(replica)
    return replica


# RFC 7386, appendix A
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_follows_rfc_7386(target, patch, result):
    before = json.dumps(target)
    assert merge(target, patch) == result
    assert json.dumps(target) == before


def test_a_delta_on_another_base_is_not_merged_and_requests_the_document_once(live):
    assert receive(live, delta("a", 6, 7, status="failed"), delta("a", 7, 8, status="failed")) == [
        {"type": "get", "job_id": "a"}
    ]
    assert drained(live).jobs["a"]["status"] == "running"
    receive(live, put(job("a", 8, status="failed"), 8), delta("a", 8, 9, error="e"))
    assert drained(live).jobs["a"] == job("a", 9, status="failed", error="e")
    assert receive(live, delta("a", 10, 11)) == [{"type": "get", "job_id": "a"}]


UNAVAILABLE = {"type": "error", "sub": None, "code": "unavailable", "detail": "", "job_id": "a"}


def bookmark(seq):
    return {"type": "bookmark", "seq": seq, "at": "2025-09-22T10:00:00.000000Z"}


def test_a_failed_request_is_repeated_with_a_bookmark_five_times_in_all(live):
    requests = receive(live, delta("a", 6, 7))
    for seq in range(8, 30):
        requests += receive(live, UNAVAILABLE, bookmark(seq))
    assert requests == [{"type": "get", "job_id": "a"}] * 5
    assert hello(live) == {"type": "hello", "version": 1}, "a position would cover the missing document"


def test_an_error_is_matched_to_its_request_by_the_jobs_id(live):
    assert len(receive(live, delta("a", 6, 7), delta("b", 6, 7))) == 2
    receive(live, {**UNAVAILABLE, "code": "not_found", "job_id": "b"}, {**UNAVAILABLE, "job_id": "other"})
    receive(live, put(job("a", 8), 8))
    assert hello(live)["resume"]["seq"] == 8, "nothing is waited for any more"


def test_no_more_documents_are_requested_at_once_than_the_daemon_accepts(live):
    for number in range(200):
        receive(live, delta(f"j{number}", 6, 7), {**UNAVAILABLE, "job_id": f"j{number}"})
    assert [len(receive(live, bookmark(8))) for _ in range(5)] == [50, 50, 50, 50, 0]


def test_log_lines_and_drop_counts_are_returned_once(live):
    line = {"type": "log", "sub": [1], "job_id": "a", "event_id": 7, "level": "WARN", "step_id": None, "message": "m",
            "attrs": {"k": 1}, "at": "2025-09-22T10:00:00.000000Z"}  # fmt: skip
    receive(live, line, {"type": "log", "sub": [1], "dropped": 3})
    first, second = drained(live).logs
    assert (first.message, first.attrs, second.dropped) == ("m", {"k": 1}, 3)
    assert drained(live).logs == ()


def test_a_rejected_subscription_raises(live):
    with pytest.raises(BadRequest, match="no such level"):
        receive(live, {"type": "error", "sub": 1, "code": "bad_request", "detail": "no such level"})


@pytest.mark.parametrize(
    "frame", ["", "{", "[1]", "{}", '{"type":1}', '{"type":"put"}', json.dumps(snapshot(1, {"rev": 1}))]
)
def test_an_invalid_frame_raises_a_value_error(live, frame):
    with pytest.raises(ValueError):
        live.receive(decode(frame)[0])


@pytest.mark.parametrize(
    "message",
    [
        put(job("a", 6, status="paused", source="other", progress={"basis": "guess"}, forecast={"state": "early"}), 6),
        {"type": "status", "source": "resting", "lag_seconds": 0.0, "error": None},
        {"type": "log", "sub": [1], "job_id": "a", "event_id": 7, "level": "TRACE", "message": "m"},
        {"type": "delete", "sub": [1], "seq": 6, "job_id": "a", "reason": "moved"},
        {"type": "resync", "reason": "resized"},
        {"type": "error", "sub": None, "code": "busy", "detail": ""},
        {"type": "bye", "code": 4999, "retry_ms": [0, 1]},
    ],
    ids=lambda message: message["type"],
)
def test_a_value_a_member_or_a_message_that_a_later_version_adds_is_no_error(live, message):
    assert receive(live, {**message, "more": 1}) == []
    assert decode('[{"type":"news"},{"type":"pong"},{"type":"event","kind":"job.late","seq":7}]') == []


def test_an_id_resolves_in_the_order_of_the_protocol_and_to_the_newest_job():
    jobs: dict[str, dict[str, Any]] = {
        "a": {"job_id": "a", "external_ids": ["x", "d"], "context_id": "c", "started_at": "2025-01-01"},
        "b": {"job_id": "b", "external_ids": ["x"], "context_id": "c", "started_at": "2025-01-02"},
        "d": {"job_id": "d", "external_ids": None, "context_id": "x", "started_at": "2025-01-03"},
    }
    assert [(named(jobs, n) or {}).get("job_id") for n in ("a", "x", "c", "d", "?")] == ["a", "b", "b", "d", None]


def random_document(chance: random.Random) -> dict[str, Any]:
    document: dict[str, Any] = {"status": chance.choice(["running", "failed"])}
    if chance.random() < 0.5:
        document["error"] = chance.choice("xy")
    steps = {number: {"n": chance.randint(1, 2)} for number in "12" if chance.random() < 0.5}
    return document | ({"steps": steps} if steps else {})


def random_act(chance: random.Random) -> tuple[Any, ...]:
    match chance.choices(["change", "receive", "remove", "lose", "outage", "answers"], [45, 35, 8, 4, 8, 12])[0]:
        case "change":
            return ("change", chance.choice("abc"), random_document(chance), chance.random() < 0.8)
        case "receive":
            return ("receive", chance.randint(1, 9))
        case "remove":
            return ("remove", chance.choice("abc"))
        case "answers":
            return (chance.choice(["busy", "bookmark"]),)
        case "outage":
            return (chance.choice(["drop", "restart", "resync", "connect"]),)
        case act:
            return (act,)


# Seeds instead of generated lists: long runs evict and repeat most.
@pytest.mark.parametrize("seed", range(100))
def test_after_random_faults_the_replica_equals_the_daemons_jobs(seed):
    chance = random.Random(seed)
    wanted = [Wanted(), Wanted(status=("running",))]
    daemon, replica = DaemonModel(wanted), Replica(wanted)
    shown: dict[str, Any] = {}

    def deliver(count: int) -> None:
        while daemon.wire and count:
            count -= 1
            for answer in receive(replica, daemon.wire.popleft()):
                daemon.answer(answer)
        update = drained(replica)
        for job_id in update.gone:
            shown.pop(job_id, None)
        shown.update({job_id: update.jobs[job_id] for job_id in update.changed})

    acts = [random_act(chance) for _ in range(chance.randint(5, 150))]
    for act in acts:
        if act[0] == "receive" and daemon.wire is not None:
            deliver(act[1])
        elif act[0] in ("receive", "connect"):
            daemon.connect(hello(replica))
        else:
            daemon.apply(act)
    if daemon.wire is None:
        daemon.connect(hello(replica))
    daemon.busy = 0
    daemon.apply(("bookmark",))
    deliver(-1)
    if ("lose",) not in acts:
        assert dict(drained(replica).jobs) == daemon.jobs
    for job_id, document in list(daemon.jobs.items()):  # a lost message is noticed with the next change
        daemon.change(job_id, document, as_delta=True)
        deliver(-1)
    assert replica.synced
    assert dict(drained(replica).jobs) == daemon.jobs
    assert shown == daemon.jobs
