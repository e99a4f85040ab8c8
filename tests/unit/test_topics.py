"""The names of MQTT topics: each ID is one level, and every topic has its ID."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.sinks.mqtt.topics import TopicKey, Topics, escape, unescape

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
    for key in (TopicKey("state", name), TopicKey("ext", name)):
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
def test_a_foreign_topic_has_no_key(topic):
    assert NAMES.key(topic) is None
