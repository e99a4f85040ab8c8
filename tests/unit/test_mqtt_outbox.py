"""The outbox of MQTT topics and the pending events: order, spacing, and what is sent again after a lost connection."""

from hypothesis import given
from hypothesis import strategies as st

from correlator.sinks.event_log import EventLog
from correlator.sinks.mqtt.outbox import STATES_WITHIN, TURNS, DirtyTopics, MqttEvent, MqttEvents
from correlator.sinks.mqtt.topics import TopicKey

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
