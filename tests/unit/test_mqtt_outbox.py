"""The outbox of MQTT topics and the pending events: order, spacing, and what is sent again after a lost connection."""

from hypothesis import given
from hypothesis import strategies as st

from correlator.sinks.mqtt.outbox import Outbox, PendingEvent, PendingEvents
from correlator.sinks.mqtt.topics import Key

A, B = Key("state", "a"), Key("state", "b")


def pop_next(events):
    popped = events.pop_next()
    assert popped is not None
    return popped


def test_a_topic_that_changes_on_its_way_is_sent_again():
    box = Outbox(spacing=0.25)
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
    box = Outbox(spacing=0.25)
    box.mark(A)
    box.pop_next(0.0)
    box.acknowledged(A)
    box.mark(A)
    assert box.pending == 1
    assert box.pop_next(0.24) is None
    assert box.due() == 0.25
    assert box.pop_next(0.25) == A


def test_changes_and_republished_topics_alternate():
    box = Outbox()
    old = [Key("state", str(n)) for n in range(4)]
    new = [Key("state", f"new {n}") for n in range(4)]
    box.restart()
    box.add(old)
    for key in new:
        box.mark(key)
    taken = [box.pop_next(0.0) for _ in range(8)]
    assert [key for key in taken if key in old] == old
    assert [key for key in taken if key in new] == new
    assert {*taken[:2]} == {old[0], new[0]}


def test_a_topic_to_be_sent_again_that_changes_is_sent_once():
    box = Outbox()
    box.restart()
    box.add([A, B])
    box.mark(B)
    assert [box.pop_next(0.0) for _ in range(3)] in ([A, B, None], [B, A, None])


def test_what_was_on_its_way_over_a_lost_connection_is_sent_as_before():
    box = Outbox()
    box.mark(A)
    box.pop_next(0.0)
    box.restart()
    box.add([A])
    assert box.pop_next(0.0) == A


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
                if (key := box.pop_next(now)) is not None:
                    assert key not in flying
                    assert now - last.get(key, -1) >= 0.25
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


def test_events_keep_their_order_over_a_lost_connection():
    events = PendingEvents([PendingEvent("j", b"1"), PendingEvent("j", b"2"), PendingEvent("j", b"3")])
    first, second = pop_next(events), pop_next(events)
    events.acknowledged(second[0])
    assert list(events.numbered().values()) == [PendingEvent("j", b"1"), PendingEvent("j", b"3")]
    events.restart()
    events.add(PendingEvent("j", b"4"))
    assert first[1].payload == b"1"
    assert [pop_next(events)[1].payload for _ in range(3)] == [b"1", b"3", b"4"]
    assert events.pop_next() is None
    assert len(events) == 3


def test_of_too_many_events_the_oldest_go():
    events = PendingEvents(bound=2)
    assert [events.add(PendingEvent("j", b"%d" % n)) for n in range(4)] == [0, 0, 1, 1]
    assert [payload for _, payload in events.numbered().values()] == [b"2", b"3"]
