"""The outbox of MQTT topics and the pending events: order, spacing, and what is sent again after a lost connection."""

import gc
import itertools
import json
import tracemalloc
from itertools import pairwise

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
from correlator.model.rows import JobRecord, LegacyRecord
from correlator.pipeline.hub import Batch
from correlator.sinks.event_log import EventLog
from correlator.sinks.mqtt import outbox
from correlator.sinks.mqtt.outbox import STATES_WITHIN, TURNS, DirtyTopics, MqttEvent, MqttEvents, MqttOutbox
from correlator.sinks.mqtt.topics import MqttMessage, TopicKey, Topics, escape, identifier, unescape
from tests.support.documents import document_of
from tests.support.mqtt_harness import NOW, reading, retained_topics
from tests.support.there import there

A, B = TopicKey("state", "a"), TopicKey("state", "b")


def test_changes_and_republished_topics_alternate():
    box = DirtyTopics()
    old = [TopicKey("state", str(n)) for n in range(4)]
    new = [TopicKey("state", f"new {n}") for n in range(4)]
    box.restart()
    box.add(old)
    for key in new:
        box.mark(key)
    taken = [box.pop_next(0.0) for _ in range(8)]
    assert [key for key in taken if key in old] == old
    assert [key for key in taken if key in new] == new
    assert {*taken[:2]} == {old[0], new[0]}


def test_a_topic_to_be_sent_again_that_changes_is_sent_once():
    box = DirtyTopics()
    box.restart()
    box.add([A, B])
    box.mark(B)
    assert [box.pop_next(0.0) for _ in range(3)] in ([A, B, None], [B, A, None])


def test_a_topic_that_is_sent_again_while_in_flight_is_sent_once_more_after_its_spacing():
    box = DirtyTopics()
    for is_acknowledged in (True, False):
        box.restart()
        box.add([A])
        assert box.pop_next(0.0) == A
        if is_acknowledged:
            box.acknowledged(A)
        box.add([A])
        assert box.pop_next(0.1) is None
        if not is_acknowledged:
            box.acknowledged(A)
        assert box.pop_next(0.3) == A
        box.acknowledged(A)
        assert (box.pop_next(0.6), box.pending) == (None, 0)


@given(st.data())
def test_the_broker_ends_with_the_newest_version_of_every_topic(data):
    box, versions, broker, flying, now = DirtyTopics(), dict.fromkeys((A, B), 0), {}, {}, 0.0
    last: dict[TopicKey, float] = {}
    for _ in range(data.draw(st.integers(0, 40))):
        match data.draw(st.sampled_from(["mark", "again", "take", "acknowledge", "wait", "lose"])):
            case "mark":
                key = data.draw(st.sampled_from([A, B]))
                versions[key] += 1
                box.mark(key)
            case "again":
                versions = {key: version + 1 for key, version in versions.items()}
                box.add([A, B])
            case "take":
                if (key := box.pop_next(now)) is not None:
                    assert key not in flying
                    assert now >= last.get(key, -1) + 0.25
                    last[key] = now
                    flying[key] = broker[key] = versions[key]
            case "acknowledge" if flying:
                key = data.draw(st.sampled_from(list(flying)))
                assert box.acknowledged(key) == (flying.pop(key) == versions[key])
            case "wait":
                now += data.draw(st.floats(0, 0.3))
            case "lose":
                box.restart()
                box.add([A, B])
                flying.clear()
                last.clear()
                broker.clear()
    while box.pending:
        for key in list(flying):
            box.acknowledged(key)
        flying.clear()
        now = max(now, box.due() or now)
        while (key := box.pop_next(now)) is not None:
            flying[key] = broker[key] = versions[key]
    assert all(broker.get(key, 0) == version for key, version in versions.items() if version)


def pending(*events, **bounds):
    made = MqttEvents(EventLog(), **bounds)
    for each in events:
        made.add(each)
    return made


def event(job_id, kind, number=0, size=0):
    """An event as `encoding.event` writes it, in whose texts other kinds occur."""
    error = '\\"kind\\":\\"job.failed\\"' + size * "x"
    payload = b'{"event_id":%d,"error":"%b","kind":"%b","epoch":"e"}' % (number, error.encode(), kind)
    return MqttEvent(job_id, payload)


def test_the_kind_of_an_event_is_found_in_its_payload():
    assert event("a", b"step.started").kind == b"step.started"
    assert MqttEvent("a", b"{}").kind == b""


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


def test_beyond_the_bound_steps_of_running_jobs_go_then_other_steps_then_jobs():
    given = [
        event("a", b"job.started", 1),
        event("a", b"step.started", 2),
        event("b", b"step.started", 3),
        event("a", b"step.completed", 4),
        event("b", b"job.failed", 5),
    ]
    gone = []
    for bound in range(5, 0, -1):
        events = pending(*given, max_events=bound)
        gone += [e for e in given if e not in map(events.__getitem__, events) and e not in gone]
    assert [given.index(e) + 1 for e in gone] == [2, 4, 3, 1]
    assert len(pending(event("larger", b"job.failed", 0, 30_000), max_bytes=20_000)) == 0


def test_what_the_queues_remember_of_sent_events_is_bounded():
    """A running job that waits long does not keep what was added after it."""
    events = pending(*(event(f"j{n}", b"step.started", n) for n in range(10)))
    for n in range(20_000):
        events.add(event(f"e{n}", b"step.started", n))
        events.add(event(f"e{n}", b"job.completed", n))
        for _ in range(2):
            events.acknowledged(there(events.pop_next())[0])
    remembered = [len(queue) for queue in (events._running, events._steps, events._ended_steps)]
    assert max(remembered) < 3_000


def test_what_the_queues_remember_of_events_that_are_sent_again_and_again_is_bounded():
    given = [event("r", b"step.started", n) for n in range(40)]
    events = pending(*given)
    for _ in range(3_000):
        events.pop_next()
        events.restart()
    assert max(len(events._running), len(events._steps)) <= 2 * len(given) + 1_000
    assert list(all_in_order(events)) == given


def test_a_changed_topic_that_has_waited_for_a_second_goes_before_all_that_is_published_again():
    now = 0.0
    box = DirtyTopics(clock=lambda: now)
    box.restart()
    box.add(TopicKey("state", f"old {n}") for n in range(100))
    for n in range(50):
        box.mark(TopicKey("state", f"new {n}"))
    assert not box.is_late(now)
    now = STATES_WITHIN
    assert box.is_late(now)
    popped = [box.pop_next(now) for _ in range(2 * TURNS)]
    assert sum(key is not None and key.name.startswith("new") for key in popped) == 2 * (TURNS - 1)


# -- The names of MQTT topics: each ID is one level, and every topic has its ID


NAMES = Topics("correlator/v1/here")


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("unified-live-failover-pgtest2-1758553933", "unified-live-failover-pgtest2-1758553933"),
        ("AZaz09._~-", "AZaz09._~-"),
        ("a/b", "a%2Fb"),
        ("+#$", "%2B%23%24"),
        ("100 %", "100%20%25"),
        ("ä\0", "%C3%A4%00"),
        ("\udc00", "%ED%B0%80"),
    ],
)
def test_an_id_is_one_level_of_a_topic(name, level):
    assert escape(name) == level
    assert unescape(level) == name


@given(st.text(st.characters(exclude_categories=())))
def test_every_id_comes_back_from_its_topic(name):
    for kind in ("state", "ext", "vm", "discovery"):
        topic = NAMES.of(TopicKey(kind, name))
        assert topic.isascii()
        assert NAMES.key(topic) == TopicKey(kind, name)


@pytest.mark.parametrize(
    ("name", "level"), [("web-01", "web-01"), ("web_01.a~", "web_5F01_2Ea_7E"), ("a/ä%", "a_2F_C3_A4_25")]
)
def test_the_ids_of_a_device_have_the_characters_that_home_assistant_allows(name, level):
    assert identifier(name) == level
    assert NAMES.of(TopicKey("discovery", name)) == f"homeassistant/device/correlator_2Fv1_2Fhere/{level}/config"


@pytest.mark.parametrize(
    "topic",
    [
        "correlator/v1/here/status",
        "correlator/v1/there/ext/a",
        "correlator/v1/here/job/a/event",
        "correlator/v1/here/ext",
        "correlator/v1/here/ext/%zz",
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

    def __init__(self, *readings, index=None, devices=False):
        self.index = index or Index()
        self.index.loading = False
        self.event_log = EventLog()
        self.events = MqttEvents(self.event_log)
        self.tree = MqttOutbox(NAMES, self.index.published, "e1", self.events, devices=devices)
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
        return there(self.index.published.get(job_id))

    def pop_next(self, now):
        return there(self.tree.pop_next(now))

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


def vm(name):
    return NAMES.of(TopicKey("vm", name))


def discovery(name):
    return NAMES.of(TopicKey("discovery", name))


def test_nothing_of_a_job_is_sent_before_the_connection_is_ready():
    world = TreeHarness(reading("a", "x"))
    assert world.tree.pop_next(0.0) is None
    assert world.tree.pending == 0


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


class RetainedTopics(RuleBasedStateMachine):
    """An index that changes, and a broker that loses connections, messages, and all that it retains."""

    def __init__(self):
        super().__init__()
        self.world, self.store, self.flying, self.times = TreeHarness(), dict(LEFT), [], itertools.count(2)
        self.has_devices = False

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

    @rule()
    def send(self):
        parcel = self.world.tree.pop_next(float(next(self.times)))
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
            self.world, self.has_devices = TreeHarness(index=self.world.index, devices=devices), devices
        if is_store_lost:
            self.store.clear()
        self.world.tree.end()
        self.world.begin()
        # As the sink does: it does not read the topics of devices where it needs not.
        own = {topic: payload for topic, payload in self.store.items() if topic.startswith(NAMES.root)}
        for topic, payload in own.items():
            self.world.tree.on_retained(topic, payload)
        devices = self.store.keys() - own.keys()
        if self.has_devices or NAMES.of(TopicKey("marker")) in own:
            for topic in devices:
                self.world.tree.on_retained(topic, b"{}")
            if not self.has_devices and not devices:
                self.world.tree.devices_removed()

    def teardown(self):
        for _ in range(2):  # The marker goes after the devices.
            self.connect()
            self.world.now = float(next(self.times))
            for message in self.world.send():
                self.receive(message)
        self.store.pop("correlator/v1/here/status", None)
        due = retained_topics(NAMES, self.world.index, "e1", devices=self.has_devices)
        assert {topic: json.loads(payload) for topic, payload in self.store.items()} == due


def test_after_any_changes_losses_and_restarts_what_is_retained_is_what_the_index_has():
    run_state_machine_as_test(RetainedTopics, settings=settings(stateful_step_count=30))


def test_the_tombstone_of_a_job_has_its_last_state_or_what_an_earlier_run_left_of_it():
    world = TreeHarness(reading("a", "x"))
    world.begin()
    world.send()
    last = world.shown("a")
    world.learn(Reading("a", 2))
    for topic, payload in LEFT.items():
        world.tree.on_retained(topic, payload)
    sent = world.send()
    at = {"deleted": True, "epoch": "e1", "seq": world.index.published.seq}
    said = {m.topic: json.loads(m.payload) for m in sent if m.payload}
    assert said == {
        state("a"): {**document_of(last), **at},
        state("gone"): {"job_id": "gone", "status": "running", **at},
        **{state(name): {"job_id": name, **at} for name in ("odd", "none")},
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


def test_a_new_connection_adds_jobs_in_steps_and_sends_changes_between_them_once(monkeypatch):
    monkeypatch.setattr(outbox, "BEGIN_BATCH", 2)
    world = TreeHarness(*(reading(f"j{n}", f"x{n}", started=n, vm=f"v{n}") for n in range(7)))
    world.learn(Reading("j6", 2))
    pending = [0]
    for _ in world.tree.begin():
        if pending[-1] == 0 and world.tree.pending:  # of the newest jobs, one was taken in and one is to come
            world.learn(
                reading("j5", "x5", status="completed", observed_at=3, started=5, vm="v5"),
                reading("j0", "y", observed_at=3, vm="v0"),
                reading("new", vm="v6"),
            )
            world.learn(Reading("j1", 4))
        pending.append(world.tree.pending)
    assert max(b - a for a, b in pairwise(pending)) <= 13, "two topics, and what has changed"
    sent = world.send()
    states = [m.topic for m in sent if m.topic.endswith("/state")]
    kept = [state(job_id) for job_id in ("j0", "j2", "j3", "j4", "j5", "new")]
    assert sorted(states) == sorted([*kept, *[state("j1"), state("j6")] * 2]), "deleted jobs are published once more"
    assert world.retained(sent) == retained_topics(NAMES, world.index, "e1")


def test_a_vm_whose_newest_job_starts_while_a_connection_begins_is_a_device_on_it():
    world = TreeHarness(reading("a", vm="v"), devices=True)
    steps = world.tree.begin()
    next(steps)
    world.learn(reading("b", vm="v", started=1))
    for _ in steps:
        pass
    assert [m.topic for m in world.send()].count(discovery("v")) == 1


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


def test_jobs_that_leave_while_the_broker_is_away_are_bounded(monkeypatch):
    monkeypatch.setattr(outbox, "MAX_TOMBSTONES", 2)
    world = TreeHarness(*(reading(f"j{n}", started=n, vm=f"v{n}") for n in range(4)), devices=True)
    world.learn(*(Reading(f"j{n}", 2) for n in range(4)))
    world.begin()
    gone = {m.topic for m in world.send() if not m.payload}
    assert gone == {of(f"{kind}{n}") for n in (2, 3) for of, kind in ((state, "j"), (vm, "v"), (discovery, "v"))}


def test_a_vm_has_its_newest_job_and_a_device_while_it_has_any_job():
    world = TreeHarness(reading("a", vm="v"), devices=True)
    world.begin()
    world.send()

    def sent(*readings):
        world.learn(*readings)
        return {m.topic: orjson.loads(m.payload)["job_id"] if m.payload else None for m in world.send()
                if m.topic in (vm("v"), discovery("v"))}  # fmt: skip

    assert sent(reading("b", vm="v", started=1)) == {vm("v"): "b"}
    assert sent(reading("a", vm="v", error="older", observed_at=2)) == {}
    assert sent(reading("b", vm="other", started=1, observed_at=3)) == {vm("v"): "a"}
    assert sent(Reading("a", 4)) == {discovery("v"): None, vm("v"): None}


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
