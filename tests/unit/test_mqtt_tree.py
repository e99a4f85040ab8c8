"""The topic tree: the retained topics equal the index, also after jobs left, moved or merged."""

import gc
import json
import tracemalloc
from itertools import pairwise

import msgspec
import orjson

from correlator.jobs import encoding
from correlator.jobs.index import Index
from correlator.model.facts import Kind, Reading
from correlator.model.published import Event
from correlator.model.rows import JobRecord, LegacyRecord
from correlator.pipeline.hub import Batch
from correlator.sinks.event_log import EventLog
from correlator.sinks.mqtt import outbox
from correlator.sinks.mqtt.outbox import STATES_WITHIN, MqttEvents, MqttOutbox
from correlator.sinks.mqtt.topics import MqttMessage, TopicKey, Topics
from tests.support.documents import document_of

NOW = 1_758_553_933_000_000
SECOND = 1_000_000
NAMES = Topics("correlator/v1/here")


def reading(job_id, *external, started=0, status="running", observed_at=1, **more):
    column, *rest = external or (None,)
    metadata = orjson.dumps({"gui_job_id": rest[0]}).decode() if rest else None
    ended = NOW + started * SECOND if status == "completed" else None
    record = JobRecord(
        job_id, status=status, external_job_id=column, metadata=metadata, started_at=NOW + started * SECOND,
        completed_at=ended, **more,
    )  # fmt: skip
    return Reading(job_id, observed_at, record, ())


class TreeHarness:
    """An index and its topic tree, connected as by the hub."""

    def __init__(self, *readings, index=None):
        self.index = index or Index()
        self.index.loading = False
        self.event_log = EventLog()
        self.events = MqttEvents(self.event_log)
        self.tree = MqttOutbox(NAMES, self.index.published, "e1", self.events)
        self.now = 0.0
        self.learn(*readings)

    def learn(self, *readings):
        self.publish(self.index.apply(readings, NOW))

    def publish(self, outcome):
        self.tree.on_batch(Batch(self.index.published.seq, outcome.changes, outcome.events))

    def begin(self):
        for _ in self.tree.begin():
            pass

    def shown(self, job_id):
        shown = self.index.published.get(job_id)
        assert shown is not None
        return shown

    def pop_next(self, now):
        parcel = self.tree.pop_next(now)
        assert parcel is not None
        return parcel

    def send(self):
        """All that is to be sent, acknowledged at once; time passes."""
        sent: list[MqttMessage] = []
        while self.tree.pending:
            self.now += 1
            while (parcel := self.tree.pop_next(self.now)) is not None:
                sent += parcel.messages
                self.tree.acknowledged(parcel.tag)
        return sent

    def retained(self, sent):
        store = {}
        for message in sent:
            if message.retain:
                store[message.topic] = message.payload
        return {topic: orjson.loads(payload) for topic, payload in store.items() if payload}


def state(job_id):
    return NAMES.of(TopicKey("state", job_id))


def ext(external_id):
    return NAMES.of(TopicKey("ext", external_id))


def test_nothing_of_a_job_is_sent_before_the_connection_is_ready():
    world = TreeHarness(reading("a", "x"))
    assert world.tree.pop_next(0.0) is None
    assert world.tree.pending == 0


def test_a_state_is_the_document_with_epoch_and_seq():
    world = TreeHarness(reading("a", "x", "y"))
    world.begin()
    shown = world.shown("a")
    assert world.retained(world.send()) == {
        state("a"): {**document_of(shown), "epoch": "e1", "seq": shown.rev},
        ext("x"): {"external_id": "x", "job_id": "a"},
        ext("y"): {"external_id": "y", "job_id": "a"},
    }


def test_only_ended_jobs_expire():
    world = TreeHarness(reading("a"), reading("b", status="completed"))
    world.begin()
    assert {m.topic: m.expires for m in world.send()} == {state("a"): False, state("b"): True}


def test_a_new_connection_gets_the_newest_jobs_first():
    world = TreeHarness(*(reading(f"j{n}", f"x{n}", started=n * 7 % 5) for n in range(5)))
    world.begin()
    sent = [m.topic for m in world.send()]
    assert sent == [t for n in (2, 4, 1, 3, 0) for t in (state(f"j{n}"), ext(f"x{n}"))]


def test_a_new_connection_adds_jobs_in_steps_and_sends_changes_between_them_once(monkeypatch):
    monkeypatch.setattr(outbox, "BEGIN_BATCH", 2)
    world = TreeHarness(*(reading(f"j{n}", f"x{n}", started=n) for n in range(7)))
    world.learn(Reading("j6", 2))
    pending = [0]
    for _ in world.tree.begin():
        if pending[-1] == 0 and world.tree.pending:  # of the newest jobs, one was taken in and one is to come
            world.learn(
                reading("j5", status="completed", observed_at=3), reading("j0", "y", observed_at=3), reading("new")
            )
            world.learn(Reading("j1", 4))
        pending.append(world.tree.pending)
    assert max(b - a for a, b in pairwise(pending)) <= 9, "two topics, and what has changed"
    sent = world.send()
    states = [m.topic for m in sent if m.topic.endswith("/state")]
    there = [state(job_id) for job_id in ("j0", "j2", "j3", "j4", "j5", "new")]
    assert sorted(states) == sorted([*there, *[state("j1"), state("j6")] * 2]), "deleted jobs are published once more"
    held = world.retained(sent)
    assert held.keys() == {*there, *map(ext, ("x2", "x3", "x4", "y"))}


def test_a_step_of_begin_adds_a_bounded_number_of_topics_however_many_ids_a_job_has(monkeypatch):
    monkeypatch.setattr(outbox, "BEGIN_BATCH", 5)
    keys = [f"{n}_job_id" for n in range(30)]
    world = TreeHarness(index=Index(id_keys=keys))
    metadata = orjson.dumps({key: f"id of {key}" for key in keys}).decode()
    world.learn(Reading("a", 1, JobRecord("a", status="running", metadata=metadata, started_at=NOW), ()))
    pending = [0, *(world.tree.pending for _ in world.tree.begin())]
    assert pending[-1] == 31
    assert max(b - a for a, b in pairwise(pending)) == 5


def test_the_topics_of_a_new_connection_are_no_work_for_the_garbage_collector():
    world = TreeHarness(*(reading(f"j{n}", f"x{n}", started=n) for n in range(1000)))
    before = len(gc.get_objects())
    world.begin()
    assert world.tree.pending == 2000
    assert len(gc.get_objects()) - before < 100


def test_the_newest_of_two_jobs_owns_an_id_and_leaves_it_to_the_other():
    world = TreeHarness(reading("old", "x", started=0))
    world.begin()
    world.send()
    world.learn(reading("new", "x", started=10))
    sent = world.send()
    assert world.retained(sent)[ext("x")]["job_id"] == "new"
    assert state("old") not in {m.topic for m in sent}
    world.learn(Reading("new", 2))
    assert world.retained(world.send()) == {ext("x"): {"external_id": "x", "job_id": "old"}}


def test_an_id_changes_hands_when_a_job_turns_out_to_be_older():
    world = TreeHarness(reading("a", "x", started=10), reading("b", "x", started=5))
    world.begin()
    assert world.retained(world.send())[ext("x")]["job_id"] == "a"
    world.learn(reading("a", "x", started=0, observed_at=2))
    assert world.retained(world.send())[ext("x")]["job_id"] == "b"


def test_a_job_that_leaves_says_so_before_its_topics_are_emptied():
    world = TreeHarness(reading("a", "x"))
    world.begin()
    world.send()
    last = world.shown("a")
    world.learn(Reading("a", 2))
    sent = world.send()
    said = [m for m in sent if m.topic == state("a")]
    assert orjson.loads(said[0].payload) == {
        **document_of(last), "deleted": True, "epoch": "e1", "seq": world.index.published.seq,
    }  # fmt: skip
    assert [m.payload for m in said[1:]] == [b""]
    assert MqttMessage(ext("x"), b"") in sent
    world.tree.end()
    world.begin()
    assert world.send() == []


def test_a_job_that_left_without_a_connection_is_published_as_deleted():
    world = TreeHarness(reading("a", "x"), reading("b"))
    world.begin()
    world.send()
    world.tree.end()
    world.learn(Reading("a", 2))
    world.begin()
    sent = world.send()
    assert [bool(m.payload) for m in sent if m.topic == state("a")] == [True, False]
    assert [m.topic for m in sent] == [state("b"), state("a"), state("a"), ext("x")]


def test_a_job_that_comes_back_is_not_emptied():
    world = TreeHarness(reading("a", "x"))
    world.begin()
    world.send()
    world.learn(Reading("a", 2))
    world.learn(reading("a", "x", observed_at=3))
    assert set(world.retained(world.send())) == {state("a"), ext("x")}


def test_a_job_that_leaves_while_its_tombstone_is_on_its_way_says_so_again():
    world = TreeHarness(reading("a"))
    world.begin()
    world.send()
    world.learn(Reading("a", 2))
    parcel = world.pop_next(100.0)
    world.learn(reading("a", observed_at=3))
    world.learn(Reading("a", 4))
    world.tree.acknowledged(parcel.tag)
    world.now = 200.0
    assert [bool(m.payload) for m in world.send()] == [True, False]


def test_a_legacy_job_that_merges_leaves_and_the_real_one_gets_its_id():
    world = TreeHarness()
    world.begin()
    world.publish(
        world.index.apply_legacy([LegacyRecord(1, "legacy/1", "pending", created_at=NOW, apart=True)], [], NOW)
    )
    assert set(world.retained(world.send())) == {state("legacy/1")}
    world.learn(reading("a", "legacy/1"))
    sent = world.send()
    assert world.retained(sent)[ext("legacy/1")]["job_id"] == "a"
    assert [bool(m.payload) for m in sent if m.topic == state("legacy/1")] == [True, False]


def test_what_an_earlier_run_left_on_the_broker_is_removed():
    world = TreeHarness(reading("a", "x"))
    world.begin()
    world.send()
    for topic in (state("a"), ext("x"), "correlator/v1/here/status"):
        world.tree.on_retained(topic, b"{}")
    assert world.send() == []
    world.tree.on_retained(state("gone"), b'{"job_id": "gone", "status": "running", "epoch": "e0", "seq": 3}')
    world.tree.on_retained(state("odd"), b"no JSON")
    world.tree.on_retained(state("none"), b"{}")
    world.tree.on_retained(ext("y"), b'{"external_id": "y", "job_id": "gone"}')
    sent = world.send()
    said = {m.topic: json.loads(m.payload, object_pairs_hook=sorted) for m in sent if m.payload}  # each member once
    at = [("deleted", True), ("epoch", "e1"), ("job_id", "gone"), ("seq", world.index.published.seq)]
    odd, none = ([("job_id", name) if member[0] == "job_id" else member for member in at] for name in ("odd", "none"))
    assert said == {state("gone"): [*at, ("status", "running")], state("odd"): odd, state("none"): none}
    assert world.retained(sent) == {}
    assert {m.topic for m in sent if not m.payload} == {state("gone"), state("odd"), state("none"), ext("y")}


def test_jobs_that_leave_while_the_broker_is_away_are_bounded(monkeypatch):
    monkeypatch.setattr(outbox, "MAX_TOMBSTONES", 2)
    world = TreeHarness(*(reading(f"j{n}", started=n) for n in range(4)))
    world.learn(*(Reading(f"j{n}", 2) for n in range(4)))
    world.begin()
    assert {m.topic for m in world.send()} == {state("j2"), state("j3")}


def test_an_event_is_published_once_with_its_position():
    world = TreeHarness(reading("a/1"))
    event = Event(Kind.JOB_STARTED, "a/1", NOW, event_id=7)
    world.tree.on_batch(Batch(41, (), [event]))
    assert [msgspec.msgpack.decode(head) for _, head, _ in world.event_log.stored().values()] == ["a/1"]
    (sent,) = [m for m in world.send() if not m.retain]
    assert sent.topic == "correlator/v1/here/job/a%2F1/event"
    assert orjson.loads(sent.payload) == encoding.event(event, "e1", 41)
    assert len(world.events) == 0


def test_events_that_wait_for_the_broker_take_hardly_more_memory_than_their_texts():
    world = TreeHarness()
    batches = [Batch(n, (), (Event(Kind.JOB_STARTED, f"job-{n}", NOW, event_id=n),)) for n in range(500)]
    tracemalloc.start()
    for batch in batches:
        world.tree.on_batch(batch)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    texts = sum(len(payload) for _, _, payload in world.event_log.stored().values())
    assert used < texts + 500 * 600


def test_events_and_states_alternate():
    world = TreeHarness(*(reading(f"j{n}") for n in range(3)))
    world.tree.on_batch(Batch(41, (), [Event(Kind.JOB_STARTED, "j", NOW)] * 3))
    world.begin()
    kinds = [world.pop_next(0.0).messages[0].retain for _ in range(6)]
    assert kinds in ([True, False] * 3, [False, True] * 3)


def test_states_that_are_late_go_before_events_but_for_each_eighth_message():
    now = 0.0
    world = TreeHarness(*(reading(f"j{n}") for n in range(30)))
    world.events = MqttEvents(world.event_log, lambda: now)
    world.tree = MqttOutbox(NAMES, world.index.published, "e1", world.events, lambda: now)
    world.begin()
    world.send()
    world.learn(*(reading(f"j{n}", status="failed", observed_at=2) for n in range(30)))
    world.tree.on_batch(Batch(99, (), [Event(Kind.STEP_STARTED, "j", NOW)] * 30))
    now = world.now + STATES_WITHIN
    world.pop_next(now)  # the spacing of the topics has elapsed
    kinds = [world.pop_next(now).messages[0].retain for _ in range(16)]
    assert kinds.count(False) == 2
