"""The outbox of MQTT topics and the pending events: order, spacing, and what is sent again after a lost connection."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from correlator.sinks.event_log import EventLog
from correlator.sinks.mqtt.outbox import OVERHEAD, STATES_WITHIN, TURNS, DirtyTopics, MqttEvent, MqttEvents
from correlator.sinks.mqtt.topics import TopicKey

A, B = TopicKey("state", "a"), TopicKey("state", "b")


def pop_next(events):
    popped = events.pop_next()
    assert popped is not None
    return popped


def test_a_topic_that_changes_on_its_way_is_sent_again():
    box = DirtyTopics(spacing=0.25)
    box.mark(A)
    assert box.pop_next(0.0) == A
    box.mark(A)
    box.mark(A)
    assert box.pop_next(10.0) is None
    assert not box.acknowledged(A)
    assert box.pop_next(10.0) == A
    assert box.pending == 1
    assert box.acknowledged(A)
    assert box.pending == 0


def test_a_topic_rests_between_two_messages_and_the_last_mark_counts():
    box = DirtyTopics(spacing=0.25)
    box.mark(A)
    box.pop_next(0.0)
    box.acknowledged(A)
    box.mark(A)
    assert box.pending == 1
    assert box.pop_next(0.24) is None
    assert box.due() == 0.25
    assert box.pop_next(0.25) == A


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


def test_what_was_on_its_way_over_a_lost_connection_is_sent_as_before():
    box = DirtyTopics()
    box.mark(A)
    box.pop_next(0.0)
    box.restart()
    box.add([A])
    assert box.pop_next(0.0) == A


@given(st.data())
def test_the_broker_ends_with_the_newest_version_of_every_topic(data):
    box, versions, broker, flying, now = DirtyTopics(), dict.fromkeys((A, B), 0), {}, {}, 0.0
    last: dict[TopicKey, float] = {}
    for _ in range(data.draw(st.integers(0, 40))):
        match data.draw(st.sampled_from(["mark", "take", "acknowledge", "wait", "lose"])):
            case "mark":
                key = data.draw(st.sampled_from([A, B]))
                versions[key] += 1
                box.mark(key)
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


def test_events_keep_their_order_over_a_lost_connection():
    events = pending(*(MqttEvent("j", b"%d" % n) for n in (1, 2, 3)))
    first, second = pop_next(events), pop_next(events)
    events.acknowledged(second[0])
    assert [events[number] for number in events] == [MqttEvent("j", b"1"), MqttEvent("j", b"3")]
    events.restart()
    events.add(MqttEvent("j", b"4"))
    assert first[1].payload == b"1"
    assert [pop_next(events)[1].payload for _ in range(3)] == [b"1", b"3", b"4"]
    assert events.pop_next() is None
    assert len(events) == 3


def test_of_too_many_events_the_oldest_go():
    events = pending(max_events=2)
    assert [events.add(MqttEvent("j", b"%d" % n)) for n in range(4)] == [0, 0, 1, 1]
    assert [events[number].payload for number in events] == [b"2", b"3"]


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


def test_events_are_bounded_in_bytes_and_say_how_many_were_dropped():
    events = pending(max_bytes=10 * (OVERHEAD + 1_100))
    dropped = [events.add(event(f"j{n}", b"step.started", n, 1_000)) for n in range(30)]
    assert sum(dropped) == 30 - len(events)
    assert events.size <= 10 * (OVERHEAD + 1_100)
    assert len(events) >= 9
    assert len(pending(event("larger", b"job.failed", 0, 30_000), max_bytes=20_000)) == 0
    for _ in all_in_order(events):
        pass
    assert events.size == 0


@dataclass
class EventsModel:
    """The same as lists of (number, job, kind). `ended`: jobs from their end on, until none of their events waits."""

    waiting: list[tuple[int, str, bytes]] = field(default_factory=list)
    flying: list[tuple[int, str, bytes]] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)

    def add(self, *added: tuple[int, str, bytes]) -> None:
        self.waiting = sorted([*self.waiting, *added])
        self.ended |= {job for _, job, kind in added if kind == b"job.completed"}

    def remove(self, number: int) -> tuple[int, str, bytes]:
        one = next(w for w in self.waiting if w[0] == number)
        self.waiting.remove(one)
        self.ended &= {job for _, job, _ in self.waiting}
        return one

    def rank(self, one: tuple[int, str, bytes]) -> int:
        """Of the lowest one is dropped."""
        _, job, kind = one
        return 2 if kind != b"step.started" else 1 if job in self.ended else 0

    def drop(self, number: int) -> None:
        ranks = {w: self.rank(w) for w in self.waiting}
        one = next(w for w in self.waiting if w[0] == number)
        assert ranks[one] == min(ranks.values())
        assert all(w >= one for w in self.waiting if w[1] == one[1] and ranks[w] == ranks[one]), "the oldest of its job"
        self.remove(number)


def number_of(found: MqttEvent) -> int:
    return int(found.payload.split(b":")[1].split(b",")[0])


KINDS = (b"job.started", b"step.started", b"step.started", b"job.completed")


@given(st.data())
def test_events_of_a_job_keep_their_order_and_only_the_right_ones_are_dropped(data):
    bound = data.draw(st.integers(3, 12))
    events, model, tags = pending(max_events=bound), EventsModel(), dict[int, int]()
    for number in range(1, data.draw(st.integers(1, 80))):
        match data.draw(st.sampled_from(["add", "add", "add", "pop", "acknowledge", "restart"])):
            case "add":
                job, kind = data.draw(st.sampled_from("abcd")), data.draw(st.sampled_from(KINDS))
                before = {*(number_of(events[tag]) for tag in events), number}
                dropped = events.add(event(job, kind, number))
                model.add((number, job, kind))
                gone = sorted(before - {*(number_of(events[tag]) for tag in events)})
                assert len(gone) == dropped == max(0, len(model.waiting) + len(model.flying) - bound)
                if dropped == 1:
                    model.drop(gone[0])
                else:  # after a lost connection, what was sent waits again: which of them went first is not seen
                    for each in gone:
                        model.remove(each)
            case "pop":
                popped = events.pop_next()
                assert (popped is None) == (not model.waiting)
                if popped is not None:
                    one = model.remove(number_of(popped[1]))
                    assert all(w[1] != one[1] or w > one for w in model.waiting), "the first of its job"
                    model.flying.append(one)
                    tags[one[0]] = popped[0]
            case "acknowledge" if model.flying:
                one = data.draw(st.sampled_from(model.flying))
                model.flying.remove(one)
                events.acknowledged(tags[one[0]])
            case "restart":
                model.add(*model.flying)
                model.flying.clear()
                events.restart()
        assert len(events) == len(model.waiting) + len(model.flying)
    events.restart()
    due = [(job, number) for number, job, _ in sorted([*model.waiting, *model.flying])]
    left = [(sent.job_id, number_of(sent)) for sent in all_in_order(events)]
    assert {job: [n for j, n in left if j == job] for job in "abcd"} == {
        job: [n for j, n in due if j == job] for job in "abcd"
    }
    assert (events.size, len(events)) == (0, 0)


def test_what_the_queues_remember_of_sent_events_is_bounded():
    """A running job that waits long does not keep what was added after it."""
    events = pending(*(event(f"j{n}", b"step.started", n) for n in range(10)))
    for n in range(20_000):
        events.add(event(f"e{n}", b"step.started", n))
        events.add(event(f"e{n}", b"job.completed", n))
        for _ in range(2):
            popped = events.pop_next()
            assert popped is not None
            events.acknowledged(popped[0])
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
