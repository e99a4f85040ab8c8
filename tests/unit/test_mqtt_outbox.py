"""The outbox of MQTT topics and the pending events: order, spacing, and what is sent again after a lost connection."""

import gc
import itertools
import json
from itertools import pairwise
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from correlator.jobs import encoding
from correlator.jobs.index import Index
from correlator.model.facts import Kind, Reading
from correlator.model.published import Event
from correlator.model.rows import JobRecord
from correlator.pipeline.hub import Batch
from correlator.sinks.event_log import EventLog
from correlator.sinks.mqtt.outbox import STATES_WITHIN, TURNS, DirtyTopics, MqttEvent, MqttEvents, MqttOutbox
from correlator.sinks.mqtt.topics import MqttMessage, TopicKey, Topics
from tests.support.documents import document_of
from tests.support.held import held
from tests.support.mqtt_harness import reading, retained_topics
from tests.support.pipeline_harness import NOW
from tests.support.saved_index import kept
from tests.support.there import there
from tests.support.yardstick import assert_costs

A, B = TopicKey("state", "a"), TopicKey("state", "b")


class TwoTopics:
    """Two topics in versions, and a broker that has the last one of each that was sent over this connection."""

    def __init__(self) -> None:
        self.box, self.now = DirtyTopics(lambda: self.now), 0.0
        self.versions = dict.fromkeys((A, B), 0)
        self.broker: dict[TopicKey, int] = {}
        self.flying: dict[TopicKey, int] = {}
        self.sent_at: dict[TopicKey, float] = {}
        self.dirty: set[TopicKey] = set()

    def change(self, *keys: TopicKey) -> None:
        self.versions |= {key: self.versions[key] + 1 for key in keys}
        self.dirty |= {*keys}

    def pop(self) -> TopicKey | None:
        if (key := self.box.pop_next(self.now)) is not None:
            is_sent = self.broker.get(key) == self.versions[key]
            assert (key in self.dirty, key in self.flying, is_sent) == (True, False, False)
            assert self.now >= self.sent_at.get(key, -1) + 0.25
            self.sent_at[key] = self.now
            self.flying[key] = self.broker[key] = self.versions[key]
        return key

    def acknowledge(self, key: TopicKey) -> None:
        is_newest = self.flying.pop(key) == self.versions[key]
        assert self.box.acknowledged(key) == is_newest
        self.dirty -= {key} if is_newest else set()

    def lose(self) -> None:
        self.dirty = {A, B}
        self.box.restart()
        self.box.add([A, B])
        for of_connection in (self.flying, self.sent_at, self.broker):
            of_connection.clear()


@given(st.data())
def test_the_broker_ends_with_the_newest_version_of_every_topic_and_gets_none_twice(data):
    two = TwoTopics()
    for _ in range(data.draw(st.integers(0, 40))):
        match data.draw(st.sampled_from(["mark", "again", "take", "acknowledge", "wait", "lose"])):
            case "mark":
                key = data.draw(st.sampled_from([A, B]))
                two.change(key)
                two.box.mark(key)
            case "again":
                two.change(A, B)
                two.box.add([A, B])
            case "take":
                two.pop()
            case "acknowledge" if two.flying:
                two.acknowledge(data.draw(st.sampled_from(list(two.flying))))
            case "wait":
                two.now += data.draw(st.floats(0, 0.3))
            case "lose":
                two.lose()
        assert two.box.pending == len(two.dirty)
    while two.box.pending:
        for key in list(two.flying):
            two.acknowledge(key)
        two.now = max(two.now, two.box.due() or two.now)
        while two.pop() is not None:
            pass
    assert all(two.broker.get(key, 0) == version for key, version in two.versions.items() if version)


def test_changes_and_republished_topics_alternate_until_a_change_has_waited_for_a_second():
    now = 0.0
    box = DirtyTopics(lambda: now)
    old, new = ([TopicKey("state", f"{age} {n}") for n in range(50)] for age in ("old", "new"))
    box.restart()
    box.add(old)
    for key in new:
        box.mark(key)
    popped = [box.pop_next(now) for _ in range(TURNS)]
    for keys in (old, new):
        assert [key for key in popped if key in keys] == keys[: TURNS // 2]
    assert {*popped[:2]} == {old[0], new[0]}
    assert not box.is_late(now)
    now = STATES_WITHIN
    assert box.is_late(now)
    assert sum(box.pop_next(now) in new for _ in range(2 * TURNS)) == 2 * (TURNS - 1)


def pending(*events):
    made = MqttEvents(EventLog(), lambda: 0.0)
    for each in events:
        made.add(each)
    return made


def event(job_id, kind, number):
    """An event as `encoding.event` writes it, in whose texts other kinds occur."""
    error = '\\"kind\\":\\"job.failed\\"'
    payload = b'{"event_id":%d,"error":"%b","kind":"%b","epoch":"e"}' % (number, error.encode(), kind)
    return MqttEvent(job_id, payload)


def all_in_order(events):
    """What would be sent, one event acknowledged after the other."""
    while (popped := events.pop_next()) is not None:
        events.acknowledged(popped[0])
        yield popped[1]


def test_events_of_ended_jobs_go_first_and_one_of_eight_is_of_a_running_job():
    running = [event("r", b"step.started", n) for n in range(20)]
    ended = [event(f"e{n}", kind, n) for n in range(20) for kind in (b"job.started", b"job.completed")]
    starts, ends = ([e for e in ended if e.kind.startswith(kind)] for kind in (b"job.s", b"job.c"))
    events = pending(*running[:10], *starts, *running[10:], *ends)
    sent = list(all_in_order(events))
    assert [e for e in sent if e.job_id == "r"] == running
    assert [e for e in sent if e.job_id != "r"] == ended, "job by job, in the order of their ends"
    first = sent[: len(ended)]
    assert [n for n, e in enumerate(first) if e.job_id == "r"] == list(range(TURNS - 1, len(first), TURNS))


def test_what_the_queues_remember_of_events_is_bounded_also_if_they_are_sent_again():
    events = pending(*(event(f"j{n}", b"step.started", n) for n in range(10)))  # running jobs, which wait long
    sizes = list[int]()
    for n in range(20_000):
        events.add(event(f"e{n}", b"step.started", n))
        events.add(event(f"e{n}", b"job.completed", n))
        for _ in range(2):
            events.acknowledged(there(events.pop_next())[0])
        if n in (5_000, 19_999):
            sizes.append(held(events))
    assert sizes[1] < 1.2 * sizes[0]
    given = [event("r", b"step.started", n) for n in range(40)]
    events = pending(*given)
    sizes = []
    for n in range(6_000):
        events.pop_next()
        events.restart()
        if n in (2_000, 5_999):
            sizes.append(held(events))
    assert sizes[1] < 1.2 * sizes[0]
    assert list(all_in_order(events)) == given


# -- The names of MQTT topics: each ID is one level, and every topic has its ID


NAMES = Topics("correlator/v1/here")


@pytest.mark.parametrize(
    ("name", "level", "device"),
    [
        ("unified-live-failover-pgtest2-17", "unified-live-failover-pgtest2-17", "unified-live-failover-pgtest2-17"),
        ("AZaz09._~-", "AZaz09._~-", "AZaz09_2E_5F_7E-"),
        ("a/ +#$%", "a%2F%20%2B%23%24%25", "a_2F_20_2B_23_24_25"),
        ("ä\0\udc00", "%C3%A4%00%ED%B0%80", "_C3_A4_00_ED_B0_80"),
    ],
)
def test_an_id_is_one_level_of_a_topic_and_a_device_has_the_characters_of_home_assistant(name, level, device):
    assert NAMES.of(TopicKey("state", name)) == f"correlator/v1/here/job/{level}/state"
    assert NAMES.of(TopicKey("discovery", name)) == f"homeassistant/device/correlator_2Fv1_2Fhere/{device}/config"


@given(st.text(st.characters(exclude_categories=())))
def test_every_id_comes_back_from_its_topic(name):
    for kind in ("state", "ext", "vm", "discovery"):
        topic = NAMES.of(TopicKey(kind, name))
        assert topic.isascii()
        assert NAMES.key(topic) == TopicKey(kind, name)


@pytest.mark.parametrize(
    "topic",
    [
        "correlator/v1/here/status",
        "correlator/v1/there/ext/a",
        "correlator/v1/here/job/a/event",
        "correlator/v1/here/ext/%ff",
        "correlator/v1/here/ext/%61",
        "homeassistant/device/correlator_2Fv1_2Fthere/a/config",
        "homeassistant/device/correlator_2Fv1_2Fhere/_61/config",
    ],
)
def test_a_foreign_topic_has_no_key(topic):
    assert NAMES.key(topic) is None


# -- The topic tree: the retained topics equal the index, also after jobs left, moved or merged


class TreeHarness:
    """An index and its topic tree, connected as by the hub."""

    def __init__(self, *readings, index=None, devices=False, **bounds):
        self.index = index or Index()
        self.index.loading = False
        self.event_log = EventLog()
        self.events = MqttEvents(self.event_log, lambda: 0.0)
        self.tree = MqttOutbox(NAMES, self.index.published, "e1", self.events, lambda: 0.0, devices=devices, **bounds)
        self.now = 0.0
        self.learn(*readings)

    def learn(self, *readings):
        outcome = self.index.apply(readings, NOW)
        self.tree.on_batch(Batch(self.index.published.seq, outcome.changes, outcome.events))

    def begin(self):
        for _ in self.tree.begin():
            pass

    def send(self):
        """All that is to be sent, acknowledged at once; time passes."""
        sent: list[MqttMessage] = []
        while self.tree.pending:
            self.now += 1
            while (parcel := self.tree.pop_next(self.now)) is not None:
                sent += parcel.messages
                self.tree.acknowledged(parcel.tag)
        return sent


def state(job_id):
    return NAMES.of(TopicKey("state", job_id))


def ext(external_id):
    return NAMES.of(TopicKey("ext", external_id))


def vm(name):
    return NAMES.of(TopicKey("vm", name))


def discovery(name):
    return NAMES.of(TopicKey("discovery", name))


LEFT = {
    state("gone"): b'{"job_id": "gone", "status": "running", "epoch": "e0", "seq": 3}',
    state("odd"): b"no JSON",
    state("none"): b"{}",
    ext("v"): b'{"external_id": "v", "job_id": "gone"}',
    vm("old"): b'{"job_id": "gone"}',
    vm("w/1 ä"): b"no JSON",
    discovery("v"): b"{}",
    discovery("old"): b"{}",
    NAMES.of(TopicKey("marker")): b"true",
    "correlator/v1/here/status": b"{}",
}
"""What an earlier run left on the broker. The status has no key: it stays as it is."""


ROOM = 100_000
"""Bytes: more than all of them take."""


class RetainedTopics(RuleBasedStateMachine):
    """An index that changes, and a broker that loses connections, messages, and all that it retains."""

    def __init__(self):
        super().__init__()
        self.world = TreeHarness(max_left=ROOM, at_once=1)
        self.store, self.flying, self.times = dict(LEFT), [], itertools.count(2)
        self.has_devices = False
        self.beginning: Any = None

    def receive(self, message):
        """The state of a job that is not there any more says so before its topic is emptied."""
        last = self.store.pop(message.topic, None)
        if message.payload:
            self.store[message.topic] = message.payload
        elif last not in (None, LEFT.get(message.topic)) and message.topic.endswith("/state"):
            assert json.loads(last)["deleted"]

    @rule(job_id=st.sampled_from("abc"), names=st.lists(st.sampled_from("xyz"), max_size=2, unique=True),
          started=st.integers(0, 3), status=st.sampled_from(["running", "completed"]),
          name=st.sampled_from([None, "", "v", "w/1 ä"]))  # fmt: skip
    def learn(self, job_id, names, started, status, name):
        observed_at = next(self.times)
        self.world.learn(reading(job_id, *names, started=started, status=status, observed_at=observed_at, vm=name))

    @rule(job_id=st.sampled_from("abc"))
    def gone(self, job_id):
        self.world.learn(Reading(job_id, next(self.times)))

    @precondition(lambda self: self.beginning is not None)
    @rule()
    def go_on(self):
        """Another step of the begin of a connection, if it has one more."""
        next(self.beginning, None)

    @rule()
    def send(self):
        for _ in self.beginning or ():
            pass
        parcel = self.world.tree.pop_next(float(next(self.times)))
        assert parcel is None or self.beginning is not None, "nothing is sent before there is a connection"
        self.flying += [parcel] if parcel else []

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 9))
    def acknowledge(self, which):
        parcel = self.flying.pop(which % len(self.flying))
        for message in parcel.messages:
            self.receive(message)
        self.world.tree.acknowledged(parcel.tag)

    @rule()
    def announce(self):
        for _ in self.world.tree.announce():
            pass

    @rule(arrived=st.integers(0, 2), is_restart=st.booleans(), is_store_lost=st.booleans(), devices=st.booleans())
    def connect(self, arrived=0, is_restart=False, is_store_lost=False, devices=False):
        for parcel in self.flying:
            for message in parcel.messages[:arrived]:
                self.receive(message)
        self.flying.clear()
        if is_restart:
            self.world = TreeHarness(index=self.world.index, devices=devices, max_left=ROOM)
            self.has_devices = devices
        if is_store_lost:
            self.store.clear()
        self.world.tree.end()
        self.beginning = self.world.tree.begin()
        next(self.beginning, None)
        # As the sink does: it does not read the topics of devices where it needs not.
        own = {topic: payload for topic, payload in self.store.items() if topic.startswith(NAMES.root)}
        for topic in own:
            self.world.tree.on_retained(topic)
        devices = self.store.keys() - own.keys()
        if self.has_devices or NAMES.of(TopicKey("marker")) in own:
            for topic in devices:
                self.world.tree.on_retained(topic)
            if not self.has_devices and not devices:
                self.world.tree.devices_removed()

    def teardown(self):
        for _ in LEFT:  # The marker goes after the devices, and what has no room after what has.
            self.connect()
            for _ in self.beginning:
                pass
            self.world.now = float(next(self.times))
            for message in self.world.send():
                self.receive(message)
        self.store.pop("correlator/v1/here/status", None)
        due = retained_topics(NAMES, self.world.index, "e1", devices=self.has_devices)
        assert {topic: json.loads(payload) for topic, payload in self.store.items()} == due


def test_after_any_changes_losses_and_restarts_what_is_retained_is_what_the_index_has():
    run_state_machine_as_test(RetainedTopics, settings=settings(stateful_step_count=30))


def test_the_tombstone_of_a_job_has_its_last_state_or_after_an_earlier_run_its_id():
    world = TreeHarness(reading("a", "x"))
    world.begin()
    world.send()
    last = there(world.index.published.get("a"))
    world.learn(Reading("a", 2))
    for topic in LEFT:
        world.tree.on_retained(topic)
    sent = world.send()
    at = {"deleted": True, "epoch": "e1", "seq": world.index.published.seq}
    said = {m.topic: json.loads(m.payload) for m in sent if m.payload}
    assert said == {
        state("a"): {**document_of(last), **at},
        **{state(name): {"job_id": name, **at} for name in ("gone", "odd", "none")},
    }
    assert all(m.payload.count(b'"epoch"') == 1 for m in sent if m.payload)
    assert {m.topic for m in sent if not m.payload} == {*said, *LEFT, ext("x")} - {
        NAMES.status,
        NAMES.of(TopicKey("marker")),
    }


def test_only_ended_jobs_expire():
    world = TreeHarness(reading("a", vm="v"), reading("b", status="completed", vm="w"), devices=True)
    world.begin()
    assert {m.topic for m in world.send() if m.expires} == {state("b"), vm("w")}


def test_a_new_connection_gets_the_newest_jobs_first():
    world = TreeHarness(*(reading(f"j{n}", f"x{n}", started=n * 7 % 5) for n in range(5)))
    world.begin()
    sent = [m.topic for m in world.send()]
    assert sent == [t for n in (2, 4, 1, 3, 0) for t in (state(f"j{n}"), ext(f"x{n}"))]


def test_a_step_of_begin_adds_a_bounded_number_of_topics_however_many_ids_a_job_has():
    keys = [f"{n}_job_id" for n in range(30)]
    world = TreeHarness(index=Index(id_keys=keys), at_once=5)
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


def test_jobs_that_leave_while_the_broker_is_away_are_bounded_in_bytes():
    large = "x" * 6_000
    world = TreeHarness(
        *(reading(f"j{n}", started=n, vm=f"v{n}", error=large) for n in range(4)), devices=True, max_tombstones=20_000
    )
    world.learn(*(Reading(f"j{n}", 2) for n in range(4)))
    world.begin()
    gone = {m.topic for m in world.send() if not m.payload}
    assert gone == {of(f"{kind}{n}") for n in (2, 3) for of, kind in ((state, "j"), (vm, "v"), (discovery, "v"))}


def test_topics_of_an_earlier_run_are_removed_in_parts_of_a_bounded_size():
    world, held = TreeHarness(max_left=10_000), {state(f"gone-{n}-{'x' * 1_000}") for n in range(40)}
    world.begin()
    sweeps = 0
    while held:
        world.tree.begin_sweep()
        for topic in held:
            world.tree.on_retained(topic)
        assert world.tree.pending <= 9
        assert 0 < world.tree.left <= 10_000
        held -= {m.topic for m in world.send() if not m.payload}
        assert world.tree.left == 0
        assert world.tree.has_missed == bool(held)
        sweeps += 1
    assert sweeps == 7


def test_a_topic_that_is_longer_than_any_name_is_not_ours():
    assert NAMES.key(ext("ä" * 255)) == TopicKey("ext", "ä" * 255)
    assert NAMES.key(vm("\x1f" * 1_024)) == TopicKey("vm", "\x1f" * 1_024)
    assert NAMES.key(ext("x" * 10_000)) is None


def test_an_event_is_published_once_with_its_position():
    world = TreeHarness()
    event = Event(Kind.JOB_STARTED, "a/1", NOW, event_id=7)
    world.tree.on_batch(Batch(41, (), [event]))
    assert [msgspec.msgpack.decode(head) for _, head, _ in kept(world.event_log).values()] == ["a/1"]
    (sent,) = world.send()
    assert (sent.topic, sent.retain) == ("correlator/v1/here/job/a%2F1/event", False)
    assert orjson.loads(sent.payload) == encoding.event(event, "e1", 41)
    assert len(world.events) == 0


def test_events_and_states_alternate_until_states_are_late_and_go_before_all_but_each_eighth():
    now = 0.0
    world = TreeHarness(*(reading(f"j{n}") for n in range(30)))
    world.events = MqttEvents(world.event_log, lambda: now)
    world.tree = MqttOutbox(NAMES, world.index.published, "e1", world.events, lambda: now)
    world.begin()
    world.send()
    now = world.now + 1  # the spacing of the topics has elapsed
    world.learn(*(reading(f"j{n}", status="failed", observed_at=2) for n in range(30)))
    world.tree.on_batch(Batch(99, (), [Event(Kind.STEP_STARTED, "j", NOW)] * 30))

    def retained(count):
        return [there(world.tree.pop_next(now)).messages[0].retain for _ in range(count)]

    assert retained(6) in ([True, False] * 3, [False, True] * 3)
    now += STATES_WITHIN
    assert retained(16).count(False) == 2


def test_the_age_of_what_waits_costs_no_more_after_thousands_of_acknowledgements():
    def with_acknowledged(count: int) -> DirtyTopics:
        box = DirtyTopics(lambda: 0.0)
        box.add(TopicKey("state", str(n)) for n in range(count + 20))
        sent = [there(box.pop_next(0.0)) for _ in range(count + 20)]
        for key in sent[:count]:
            box.acknowledged(key)
        return box

    def ask(box: DirtyTopics) -> None:
        for _ in range(200):
            box.oldest()
            box.oldest(changes=True)

    few, many = with_acknowledged(10), with_acknowledged(5_000)
    assert_costs(5, lambda: ask(few), lambda: ask(many))
