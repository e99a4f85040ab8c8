"""The topic tree: names that round-trip, topics that hold what the index says, nothing clean that is not."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.hub import Batch
from correlator.jobs import wire
from correlator.jobs.index import Index
from correlator.jobs.model import Event, JobRecord, Kind, LegacyRecord, Reading
from correlator.sinks import topics
from correlator.sinks.topics import Events, Key, Message, Outbox, Owed, Topics, Tree, escape, unescape

NOW = 1_758_553_933_000_000
SECOND = 1_000_000
NAMES = Topics("correlator/v1/here")
A, B = Key("state", "a"), Key("state", "b")


def reading(job_id, *external, started=0, status="running", tick=1, **more):
    column, *rest = external or (None,)
    metadata = orjson.dumps({"gui_job_id": rest[0]}).decode() if rest else None
    ended = NOW + started * SECOND if status == "completed" else None
    record = JobRecord(
        job_id, status=status, external_job_id=column, metadata=metadata, started_at=NOW + started * SECOND,
        completed_at=ended, **more,
    )  # fmt: skip
    return Reading(job_id, tick, record, ())


class World:
    """An index and the tree of it, as the hub ties them together."""

    def __init__(self, *readings):
        self.index = Index()
        self.index.loading = False
        self.events = Events()
        self.tree = Tree(NAMES, self.index, "e1", self.events)
        self.now = 0.0
        self.learn(*readings)

    def learn(self, *readings):
        self.publish(self.index.apply(readings, NOW))

    def publish(self, outcome):
        self.tree.hear(Batch(self.index.seq, outcome.changes, outcome.events))

    def shown(self, job_id):
        shown = self.index.get(job_id)
        assert shown is not None
        return shown

    def take(self, now):
        parcel = self.tree.take(now)
        assert parcel is not None
        return parcel

    def send(self):
        """All that is to be sent, acknowledged at once; time passes."""
        sent: list[Message] = []
        while self.tree.pending:
            self.now += 1
            while (parcel := self.tree.take(self.now)) is not None:
                sent += parcel.messages
                self.tree.acknowledged(parcel.tag)
        return sent

    def retained(self, sent):
        store = {}
        for message in sent:
            if message.retain:
                store[message.topic] = message.payload
        return {topic: orjson.loads(payload) for topic, payload in store.items() if payload}


def take(events):
    taken = events.take()
    assert taken is not None
    return taken


def state(job_id):
    return NAMES.of(Key("state", job_id))


def ext(external_id):
    return NAMES.of(Key("ext", external_id))


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
    for key in (Key("state", name), Key("ext", name)):
        topic = NAMES.of(key)
        assert topic.isascii()
        assert NAMES.key(topic) == key


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
    ],
)
def test_a_topic_that_we_would_not_write_has_no_key(topic):
    assert NAMES.key(topic) is None


def test_a_topic_that_changes_on_its_way_is_sent_again():
    box = Outbox(spacing=0.25)
    box.mark(A)
    assert box.take(0.0) == A
    box.mark(A)
    box.mark(A)
    assert box.take(10.0) is None
    assert not box.acknowledged(A)
    assert box.take(10.0) == A
    assert box.pending == 1
    assert box.acknowledged(A)
    assert box.pending == 0


def test_a_topic_rests_between_two_messages_and_the_last_mark_counts():
    box = Outbox(spacing=0.25)
    box.mark(A)
    box.take(0.0)
    box.acknowledged(A)
    box.mark(A)
    assert box.pending == 1
    assert box.take(0.24) is None
    assert box.due() == 0.25
    assert box.take(0.25) == A


def test_changes_and_topics_sent_again_take_turns():
    box = Outbox()
    old = [Key("state", str(n)) for n in range(4)]
    new = [Key("state", f"new {n}") for n in range(4)]
    box.restart(old)
    for key in new:
        box.mark(key)
    taken = [box.take(0.0) for _ in range(8)]
    assert [key for key in taken if key in old] == old
    assert [key for key in taken if key in new] == new
    assert {*taken[:2]} == {old[0], new[0]}


def test_a_topic_to_be_sent_again_that_changes_is_sent_once():
    box = Outbox()
    box.restart([A, B])
    box.mark(B)
    assert [box.take(0.0) for _ in range(3)] in ([A, B, None], [B, A, None])


def test_what_was_on_its_way_over_a_lost_connection_is_sent_as_before():
    box = Outbox()
    box.mark(A)
    box.take(0.0)
    box.restart([A])
    assert box.take(0.0) == A


@given(st.data())
def test_the_broker_ends_with_the_newest_version_of_every_topic(data):
    box, versions, broker, flying, now = Outbox(), dict.fromkeys((A, B), 0), {}, {}, 0.0
    last: dict[Key, float] = {}
    for _ in range(data.draw(st.integers(0, 40))):
        match data.draw(st.sampled_from(["mark", "take", "acknowledge", "wait", "lose"])):
            case "mark":
                key = data.draw(st.sampled_from([A, B]))
                versions[key] += 1
                box.mark(key)
            case "take":
                if (key := box.take(now)) is not None:
                    assert key not in flying
                    assert now - last.get(key, -1) >= 0.25
                    last[key] = now
                    flying[key] = broker[key] = versions[key]
            case "acknowledge" if flying:
                key = data.draw(st.sampled_from(sorted(flying)))
                assert box.acknowledged(key) == (flying.pop(key) == versions[key])
            case "wait":
                now += data.draw(st.floats(0, 0.3))
            case "lose":
                box.restart([A, B])
                flying.clear()
                last.clear()
                broker.clear()
    while box.pending:
        for key in list(flying):
            box.acknowledged(key)
        flying.clear()
        now = max(now, box.due() or now)
        while (key := box.take(now)) is not None:
            flying[key] = broker[key] = versions[key]
    assert all(broker.get(key, 0) == version for key, version in versions.items() if version)


def test_events_keep_their_order_over_a_lost_connection():
    events = Events([Owed("j", b"1"), Owed("j", b"2"), Owed("j", b"3")])
    first, second = take(events), take(events)
    events.acknowledged(second[0])
    assert list(events) == [Owed("j", b"1"), Owed("j", b"3")]
    events.restart()
    events.add(Owed("j", b"4"))
    assert first[1].payload == b"1"
    assert [take(events)[1].payload for _ in range(3)] == [b"1", b"3", b"4"]
    assert events.take() is None
    assert len(events) == 3


def test_of_too_many_events_the_oldest_go():
    events = Events(bound=2)
    assert [events.add(Owed("j", b"%d" % n)) for n in range(4)] == [0, 0, 1, 1]
    assert [owed.payload for owed in events] == [b"2", b"3"]


def test_nothing_of_a_job_is_sent_before_the_connection_is_ready():
    world = World(reading("a", "x"))
    assert world.tree.take(0.0) is None
    assert world.tree.pending == 0


def test_a_state_is_the_document_with_epoch_and_seq():
    world = World(reading("a", "x", "y"))
    world.tree.begin()
    shown = world.shown("a")
    assert world.retained(world.send()) == {
        state("a"): {**wire.document(shown), "epoch": "e1", "seq": shown.rev},
        ext("x"): {"external_id": "x", "job_id": "a"},
        ext("y"): {"external_id": "y", "job_id": "a"},
    }


def test_only_ended_jobs_expire():
    world = World(reading("a"), reading("b", status="completed"))
    world.tree.begin()
    assert {m.topic: m.expires for m in world.send()} == {state("a"): False, state("b"): True}


def test_a_new_connection_gets_the_newest_jobs_first():
    world = World(*(reading(f"j{n}", f"x{n}", started=n * 7 % 5) for n in range(5)))
    world.tree.begin()
    sent = [m.topic for m in world.send()]
    assert sent == [t for n in (2, 4, 1, 3, 0) for t in (state(f"j{n}"), ext(f"x{n}"))]


def test_the_newest_of_two_jobs_owns_an_id_and_leaves_it_to_the_other():
    world = World(reading("old", "x", started=0))
    world.tree.begin()
    world.send()
    world.learn(reading("new", "x", started=10))
    sent = world.send()
    assert world.retained(sent)[ext("x")]["job_id"] == "new"
    assert state("old") not in {m.topic for m in sent}
    world.learn(Reading("new", 2))
    assert world.retained(world.send()) == {ext("x"): {"external_id": "x", "job_id": "old"}}


def test_an_id_changes_hands_when_a_job_turns_out_to_be_older():
    world = World(reading("a", "x", started=10), reading("b", "x", started=5))
    world.tree.begin()
    assert world.retained(world.send())[ext("x")]["job_id"] == "a"
    world.learn(reading("a", "x", started=0, tick=2))
    assert world.retained(world.send())[ext("x")]["job_id"] == "b"


def test_a_job_that_leaves_says_so_before_its_topics_are_emptied():
    world = World(reading("a", "x"))
    world.tree.begin()
    world.send()
    last = world.shown("a")
    world.learn(Reading("a", 2))
    sent = world.send()
    said = [m for m in sent if m.topic == state("a")]
    assert orjson.loads(said[0].payload) == {
        **wire.document(last), "deleted": True, "epoch": "e1", "seq": world.index.seq,
    }  # fmt: skip
    assert [m.payload for m in said[1:]] == [b""]
    assert Message(ext("x"), b"") in sent
    world.tree.end()
    world.tree.begin()
    assert world.send() == []


def test_a_job_that_left_while_nobody_was_connected_is_said_to_have_left():
    world = World(reading("a", "x"), reading("b"))
    world.tree.begin()
    world.send()
    world.tree.end()
    world.learn(Reading("a", 2))
    world.tree.begin()
    sent = world.send()
    assert [bool(m.payload) for m in sent if m.topic == state("a")] == [True, False]
    assert [m.topic for m in sent] == [state("b"), state("a"), state("a"), ext("x")]


def test_a_job_that_comes_back_is_not_emptied():
    world = World(reading("a", "x"))
    world.tree.begin()
    world.send()
    world.learn(Reading("a", 2))
    world.learn(reading("a", "x", tick=3))
    assert set(world.retained(world.send())) == {state("a"), ext("x")}


def test_a_job_that_leaves_while_its_tombstone_is_on_its_way_says_so_again():
    world = World(reading("a"))
    world.tree.begin()
    world.send()
    world.learn(Reading("a", 2))
    parcel = world.take(100.0)
    world.learn(reading("a", tick=3))
    world.learn(Reading("a", 4))
    world.tree.acknowledged(parcel.tag)
    world.now = 200.0
    assert [bool(m.payload) for m in world.send()] == [True, False]


def test_a_legacy_job_that_merges_leaves_and_the_real_one_gets_its_id():
    world = World()
    world.tree.begin()
    world.publish(world.index.apply_legacy([LegacyRecord(1, "legacy/1", "pending", created_at=NOW)], [], NOW))
    assert set(world.retained(world.send())) == {state("legacy/1")}
    world.learn(reading("a", "legacy/1"))
    sent = world.send()
    assert world.retained(sent)[ext("legacy/1")]["job_id"] == "a"
    assert [bool(m.payload) for m in sent if m.topic == state("legacy/1")] == [True, False]


def test_what_an_earlier_run_left_on_the_broker_is_removed():
    world = World(reading("a", "x"))
    world.tree.begin()
    world.send()
    for topic in (state("a"), ext("x"), "correlator/v1/here/status"):
        world.tree.found(topic, b"{}")
    assert world.send() == []
    world.tree.found(state("gone"), b'{"job_id": "gone", "status": "running", "epoch": "e0", "seq": 3}')
    world.tree.found(state("odd"), b"no JSON")
    world.tree.found(ext("y"), b'{"external_id": "y", "job_id": "gone"}')
    sent = world.send()
    said = {m.topic: orjson.loads(m.payload) for m in sent if m.payload}
    at = {"deleted": True, "epoch": "e1", "seq": world.index.seq}
    assert said == {state("gone"): {"job_id": "gone", "status": "running", **at}, state("odd"): {"job_id": "odd", **at}}
    assert world.retained(sent) == {}
    assert {m.topic for m in sent if not m.payload} == {state("gone"), state("odd"), ext("y")}


def test_jobs_that_leave_while_the_broker_is_away_are_bounded(monkeypatch):
    monkeypatch.setattr(topics, "MAX_GONE", 2)
    world = World(*(reading(f"j{n}", started=n) for n in range(4)))
    world.learn(*(Reading(f"j{n}", 2) for n in range(4)))
    world.tree.begin()
    assert {m.topic for m in world.send()} == {state("j2"), state("j3")}


def test_an_event_is_told_once_with_the_position_it_happened_at():
    world = World(reading("a/1"))
    event = Event(Kind.JOB_STARTED, "a/1", NOW, event_id=7)
    world.tree.hear(Batch(41, (), [event]))
    assert [owed.job_id for owed in world.events] == ["a/1"]
    (sent,) = [m for m in world.send() if not m.retain]
    assert sent.topic == "correlator/v1/here/job/a%2F1/event"
    assert orjson.loads(sent.payload) == wire.event(event, "e1", 41)
    assert len(world.events) == 0


def test_events_and_states_take_turns():
    world = World(*(reading(f"j{n}") for n in range(3)))
    world.tree.hear(Batch(41, (), [Event(Kind.JOB_STARTED, "j", NOW)] * 3))
    world.tree.begin()
    kinds = [world.take(0.0).messages[0].retain for _ in range(6)]
    assert kinds in ([True, False] * 3, [False, True] * 3)
