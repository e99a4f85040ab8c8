"""The events of all sinks in one log: their age, and what the next run gets of them."""

import pytest
from msgspec.msgpack import encode

from correlator.sinks.cluster.events import EventQueue, StreamEvent
from correlator.sinks.event_log import EventLog
from correlator.sinks.mqtt.outbox import MqttEvent, MqttEvents

SENT = [MqttEvent("a b", b"1"), MqttEvent("a b", b"2"), MqttEvent("b", b"3")]
STREAM_EVENT = StreamEvent("j k", "dc1:7", b"{}")


def test_the_next_run_gives_every_sink_its_events_in_order_and_acknowledged_ones_are_gone():
    event_log = EventLog()
    mqtt, cluster = MqttEvents(event_log), EventQueue(event_log, lambda: 0.0)
    mqtt.add(SENT[0])
    cluster.add(STREAM_EVENT)
    for event in SENT[1:]:
        mqtt.add(event)
    before = event_log.stored()
    popped = mqtt.pop_next()
    assert popped is not None
    mqtt.acknowledged(popped[0])
    left = event_log.stored()
    assert left == {number: event for number, event in before.items() if number != popped[0]}
    again = EventLog(left.values())
    mqtt, cluster = MqttEvents(again), EventQueue(again, lambda: 0.0)
    assert [mqtt[number] for number in mqtt] == SENT[1:]
    assert cluster.batch(9, 1_000) == [STREAM_EVENT]
    assert sorted(again.stored().values()) == sorted(left.values())


@pytest.mark.parametrize("head", [b"", b"\xc1", b"\xa1\xff", encode(["j"]), encode(5)])
def test_an_event_that_cannot_be_read_again_is_left_out(caplog, head):
    event_log = EventLog([("mqtt", head, b"1"), ("cluster", head, b""), ("mqtt", encode("b"), b"3")])
    mqtt, cluster = MqttEvents(event_log), EventQueue(event_log, lambda: 0.0)
    assert ([mqtt[number] for number in mqtt], len(cluster)) == (SENT[2:], 0)
    assert len(caplog.messages) == 2


def test_a_text_that_has_no_encoding_does_not_survive_a_restart():
    event_log = EventLog()
    assert [event_log.add("mqtt", "\ud800"), event_log.add("mqtt", "j", b"2")] == [1, 2]
    assert event_log.stored() == {2: ("mqtt", encode("j"), b"2")}


@pytest.mark.parametrize(("kind", "event"), [(MqttEvents, SENT[0]), (EventQueue, STREAM_EVENT)])
def test_the_age_is_that_of_the_first_event_that_is_left(kind, event):
    now = 0.0
    queue = kind(EventLog(), lambda: now, max_events=2)
    assert queue.oldest() is None
    for now in (1.0, 2.0, 3.0):  # noqa: B007 - the clock reads it
        queue.add(event)
    assert (len(queue), queue.oldest()) == (2, 2.0)
