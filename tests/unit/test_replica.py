"""The client's copy of the jobs equals the daemon's, whatever happens in between."""

from __future__ import annotations

import json
import random
from collections import deque
from typing import Any

import pytest

from correlator.errors import BadRequest
from correlator.jobs import wire
from correlator.replica import Connection, Replica, Update, merge, named
from correlator.replica.messages import Wanted, decode


def job(job_id: str, rev: int, **members: Any) -> dict[str, Any]:
    return {"job_id": job_id, "rev": rev, "status": "running", **members}


def hear(replica: Replica, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    answers = []
    for message in decode(json.dumps(list(messages))):
        answers += replica.hear(message)
    parsed: list[dict[str, Any]] = json.loads(json.dumps(answers))
    return parsed


def take(replica: Replica) -> Update:
    return replica.take(Connection("live"))


def welcome(epoch="e", *, resumed=False, seq=0):
    return {"type": "welcome", "epoch": epoch, "seq": seq, "resumed": resumed, "ping_seconds": 25}


def snapshot(sub, *jobs, seq=10):
    return {"type": "snapshot", "sub": sub, "seq": seq, "more": False, "jobs": list(jobs)}


def synced(sub, seq=10):
    return {"type": "synced", "sub": sub, "seq": seq, "count": 0, "unknown": []}


def put(document, seq, sub=(1,)):
    return {"type": "put", "sub": list(sub), "seq": seq, "job_id": document["job_id"], "rev": document["rev"],
            "job": document}  # fmt: skip


def delta(job_id, base, rev, sub=(1,), **members):
    return {"type": "delta", "sub": list(sub), "seq": rev, "job_id": job_id, "base": base, "rev": rev, "set": members}


@pytest.fixture
def live():
    """A replica of one subscription that holds one job at revision 5."""
    replica = Replica([Wanted()])
    hear(replica, welcome(), snapshot(1, job("a", 5, steps={"1": {"status": "running"}})), synced(1))
    take(replica)
    return replica


# RFC 7386, appendix A
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_is_merged_as_its_rfc_says(target, patch, result):
    before = json.dumps(target)
    assert merge(target, patch) == result
    assert json.dumps(target) == before


def test_after_the_welcome_it_subscribes_to_what_is_wanted():
    replica = Replica([Wanted(jobs=("a",), logs="WARN"), Wanted(status=("running",))])
    assert replica.hello("secret") == {"type": "hello", "version": 1, "token": "secret"}
    assert hear(replica, welcome()) == [
        {"type": "subscribe", "id": 1, "jobs": ["a"], "logs": "WARN"},
        {"type": "subscribe", "id": 2, "status": ["running"]},
    ]


def test_a_delta_is_merged_into_its_base(live):
    assert hear(live, delta("a", 5, 6, status="completed", steps={"1": {"status": "completed"}})) == []
    update = take(live)
    assert update.jobs["a"] == job("a", 6, status="completed", steps={"1": {"status": "completed"}})
    assert update.changed == {"a"}


def test_a_delta_on_another_base_is_not_merged_and_the_document_is_asked_for_once(live):
    assert hear(live, delta("a", 6, 7, status="failed"), delta("a", 7, 8, status="failed")) == [
        {"type": "get", "job_id": "a"}
    ]
    assert take(live).jobs["a"]["status"] == "running"
    hear(live, put(job("a", 8, status="failed"), 8), delta("a", 8, 9, error="e"))
    assert take(live).jobs["a"] == job("a", 9, status="failed", error="e")
    assert hear(live, delta("a", 10, 11)) == [{"type": "get", "job_id": "a"}]


def test_what_it_asked_for_in_vain_is_asked_for_again(live):
    hear(live, delta("a", 6, 7))
    error = {"type": "error", "sub": None, "code": "unavailable", "detail": ""}
    assert hear(live, error, delta("a", 7, 8)) == [{"type": "get", "job_id": "a"}]


def test_a_revision_of_another_run_of_the_daemon_is_no_base(live):
    hear(live, welcome("other"))
    assert take(live).jobs["a"]["rev"] == 5  # shown, until there is something newer
    assert hear(live, delta("a", 5, 6)) == [{"type": "get", "job_id": "a"}]


def test_a_lower_revision_of_a_new_run_replaces_the_old_one(live):
    hear(live, welcome("other"), snapshot(1, job("a", 1, status="completed")), synced(1))
    assert take(live).jobs["a"] == job("a", 1, status="completed")


def test_what_a_fresh_snapshot_does_not_bring_is_gone(live):
    hear(live, welcome("other"), snapshot(1, job("b", 1)))
    assert set(take(live).jobs) == {"a", "b"}
    hear(live, synced(1))
    update = take(live)
    assert (set(update.jobs), dict(update.gone)) == ({"b"}, {"a": "absent"})


def test_it_resumes_from_the_last_message_and_keeps_what_it_has(live):
    hear(live, put(job("a", 12), 12), {"type": "bookmark", "seq": 15, "at": None})
    assert live.hello()["resume"] == {"epoch": "e", "seq": 15}
    assert hear(live, welcome(resumed=True)) == [{"type": "subscribe", "id": 1, "resume": True}]
    assert not live.synced
    hear(live, delta("a", 12, 16, error="x"), synced(1, 16))
    update = take(live)
    assert update.synced
    assert update.jobs["a"] == job("a", 16, error="x")


def test_before_everything_is_synced_there_is_nothing_to_resume_from():
    replica = Replica([Wanted(), Wanted()])
    hear(replica, welcome(), snapshot(1), synced(1, 10), put(job("a", 11), 11), snapshot(2))
    assert "resume" not in replica.hello()
    hear(replica, synced(2, 12))
    assert replica.hello()["resume"] == {"epoch": "e", "seq": 12}


def test_breaking_off_while_the_missed_is_sent_leaves_the_old_position(live):
    hear(live, welcome(resumed=True), put(job("a", 40), 40))
    assert live.hello()["resume"] == {"epoch": "e", "seq": 10}


def test_a_resync_forgets_bases_and_position(live):
    hear(live, {"type": "resync", "reason": "slow"})
    assert "resume" not in live.hello()
    assert hear(live, delta("a", 5, 6)) == [{"type": "get", "job_id": "a"}]
    hear(live, snapshot(1), synced(1))
    assert dict(take(live).gone) == {"a": "absent"}


def test_a_job_that_another_subscription_still_wants_stays():
    replica = Replica([Wanted(), Wanted()])
    hear(replica, welcome(), snapshot(1, job("a", 1)), synced(1), snapshot(2, job("a", 1)), synced(2))
    hear(replica, {"type": "delete", "sub": [1], "seq": 11, "job_id": "a", "reason": "filter"})
    assert set(take(replica).jobs) == {"a"}
    hear(replica, {"type": "delete", "sub": [2], "seq": 12, "job_id": "a", "reason": "gone"})
    update = take(replica)
    assert (dict(update.jobs), dict(update.gone)) == ({}, {"a": "gone"})


def test_log_lines_and_losses_are_handed_on_once(live):
    line = {"type": "log", "sub": [1], "job_id": "a", "event_id": 7, "level": "WARN", "step_id": None, "message": "m",
            "attrs": {"k": 1}, "at": "2025-09-22T10:00:00.000000Z"}  # fmt: skip
    hear(live, line, {"type": "log", "sub": [1], "dropped": 3})
    first, second = take(live).logs
    assert (first.message, first.attrs, second.dropped) == ("m", {"k": 1}, 3)
    assert take(live).logs == ()


def test_a_refused_subscription_is_an_error(live):
    with pytest.raises(BadRequest, match="no such level"):
        hear(live, {"type": "error", "sub": 1, "code": "bad_request", "detail": "no such level"})


@pytest.mark.parametrize(
    "frame", ["", "{", "[1]", "{}", '{"type":1}', '{"type":"put"}', '{"type":"snapshot","jobs":1}']
)
def test_a_frame_that_makes_no_sense_is_a_value_error(frame):
    with pytest.raises(ValueError):
        decode(frame)


def test_a_job_without_an_id_is_a_value_error(live):
    with pytest.raises(ValueError):
        hear(live, snapshot(1, {"rev": 1}))


def test_messages_of_a_later_version_are_passed_over(live):
    assert decode('[{"type":"news"},{"type":"pong"}]') == []
    hear(live, {**put(job("a", 6), 6), "more": 1})
    assert take(live).jobs["a"]["rev"] == 6


def test_a_name_leads_to_a_job_in_the_order_of_lookup_and_to_the_newest_of_several():
    jobs: dict[str, dict[str, Any]] = {
        "a": {"job_id": "a", "external_ids": ["x", "d"], "context_id": "c", "started_at": "2025-01-01"},
        "b": {"job_id": "b", "external_ids": ["x"], "context_id": "c", "started_at": "2025-01-02"},
        "d": {"job_id": "d", "external_ids": None, "context_id": "x", "started_at": "2025-01-03"},
    }
    assert [(named(jobs, n) or {}).get("job_id") for n in ("a", "x", "c", "d", "?")] == ["a", "b", "b", "d", None]


# -- random lives: a daemon as docs/protocol.md has it, whose truth the replica must end with


class Truth:
    """A daemon: jobs, a ring of all changes of this run, and one connection whose messages wait to be heard."""

    def __init__(self, wanted: list[Wanted]) -> None:
        self.wanted = wanted
        self.epoch, self.seq = 1, 0
        self.jobs: dict[str, dict[str, Any]] = {}
        self.ring: list[tuple[int, str]] = []
        self.wire: deque[dict[str, Any]] | None = None
        self.subs: dict[int, set[str]] = {}
        self.since: int | None = None

    def matches(self, number: int, document: dict[str, Any] | None) -> bool:
        status = self.wanted[number - 1].status
        return document is not None and (status is None or document["status"] in status)

    def say(self, message: dict[str, Any]) -> None:
        if self.wire is not None:
            self.wire.append(message)

    def change(self, job_id: str, document: dict[str, Any] | None, *, as_delta: bool) -> None:
        before = self.jobs.pop(job_id, None)
        if document is None and before is None:
            return
        self.seq += 1
        self.ring.append((self.seq, job_id))
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
            self.say({**delta(job_id, before["rev"], self.seq, stay), "set": wire.patch(before, document)})
        elif stay:
            come += stay
        if come and document is not None:
            self.say(put(document, self.seq, come))
        if leave:
            self.say({"type": "delete", "sub": leave, "seq": self.seq, "job_id": job_id, "reason": "filter"})

    def connect(self, hello: dict[str, Any]) -> None:
        self.wire, self.subs = deque(), {}
        resume = hello.get("resume")
        self.since = resume["seq"] if resume and resume["epoch"] == str(self.epoch) else None
        self.say(welcome(str(self.epoch), resumed=self.since is not None, seq=self.seq))

    def answer(self, said: dict[str, Any]) -> None:
        if said["type"] == "get":
            if (document := self.jobs.get(said["job_id"])) is not None:
                self.say(put(document, self.seq, [n for n, m in self.subs.items() if said["job_id"] in m]))
            else:
                self.say({"type": "error", "sub": None, "code": "not_found", "detail": ""})
            return
        number = said["id"]
        members = self.subs[number] = {j for j, d in self.jobs.items() if self.matches(number, d)}
        if said.get("resume"):
            assert self.since is not None
            for job_id in dict.fromkeys(j for seq, j in self.ring if seq > self.since):
                if job_id in members:
                    self.say(put(self.jobs[job_id], self.seq, [number]))
                else:
                    self.say({"type": "delete", "sub": [number], "seq": self.seq, "job_id": job_id, "reason": "filter"})
        else:
            for job_id in members:
                self.say(snapshot(number, self.jobs[job_id], seq=self.seq))
            if not members:
                self.say(snapshot(number, seq=self.seq))
        self.say(synced(number, self.seq))

    def restart(self) -> None:
        """Another run: revisions begin again, so that old ones may come up a second time."""
        self.wire, self.subs, self.ring, self.epoch, self.seq = None, {}, [], self.epoch + 1, 0
        for job_id, document in self.jobs.items():
            self.seq += 1
            self.jobs[job_id] = {**document, "rev": self.seq}

    def resync(self) -> None:
        if self.wire is not None and self.subs:
            self.say({"type": "resync", "reason": "slow"})
            for number in list(self.subs):
                self.answer({"type": "subscribe", "id": number})

    def suffer(self, act: tuple[Any, ...]) -> None:
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
            case ("lose",) if self.wire:
                self.wire = deque(message for message in self.wire if message["type"] != "delta")


def random_document(chance: random.Random) -> dict[str, Any]:
    document: dict[str, Any] = {"status": chance.choice(["running", "failed"])}
    if chance.random() < 0.5:
        document["error"] = chance.choice("xy")
    steps = {number: {"n": chance.randint(1, 2)} for number in "12" if chance.random() < 0.5}
    return document | ({"steps": steps} if steps else {})


def random_act(chance: random.Random) -> tuple[Any, ...]:
    match chance.choices(["change", "hear", "remove", "lose", "outage"], [45, 35, 8, 4, 8])[0]:
        case "change":
            return ("change", chance.choice("abc"), random_document(chance), chance.random() < 0.8)
        case "hear":
            return ("hear", chance.randint(1, 9))
        case "remove":
            return ("remove", chance.choice("abc"))
        case "outage":
            return (chance.choice(["drop", "restart", "resync", "connect"]),)
        case act:
            return (act,)


# Seeds and not generated lists: what matters are long lives, in which there is much to forget.
@pytest.mark.parametrize("seed", range(100))
def test_whatever_happens_the_copy_ends_as_the_daemons_jobs_are(seed):
    chance = random.Random(seed)
    wanted = [Wanted(), Wanted(status=("running",))]
    daemon, replica = Truth(wanted), Replica(wanted)
    shown: dict[str, Any] = {}

    def listen(count: int) -> None:
        while daemon.wire and count:
            count -= 1
            for said in hear(replica, daemon.wire.popleft()):
                daemon.answer(said)
        update = take(replica)
        for job_id in update.gone:
            shown.pop(job_id, None)
        shown.update({job_id: update.jobs[job_id] for job_id in update.changed})

    acts = [random_act(chance) for _ in range(chance.randint(5, 150))]
    for act in acts:
        if act[0] == "hear" and daemon.wire is not None:
            listen(act[1])
        elif act[0] in ("hear", "connect"):
            daemon.connect(replica.hello())
        else:
            daemon.suffer(act)
    if daemon.wire is None:
        daemon.connect(replica.hello())
    listen(-1)
    if ("lose",) not in acts:
        assert dict(take(replica).jobs) == daemon.jobs
    for job_id, document in list(daemon.jobs.items()):  # what was lost shows when there is something new
        daemon.change(job_id, document, as_delta=True)
        listen(-1)
    assert replica.synced
    assert dict(take(replica).jobs) == daemon.jobs
    assert shown == daemon.jobs
