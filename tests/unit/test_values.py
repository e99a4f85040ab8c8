"""The values of settings: each form that is allowed is read, and what is not says what would be right."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from correlator.config import values
from correlator.config.values import BrokerUrl, Listen, MysqlUrl, Secret, Size, SqliteUrl

READ: dict[Callable[[Any], Any], Sequence[tuple[Any, Any]]] = {
    values.seconds: [
        (0, 0.0), (0.0, 0.0), ("0", 0.0), ("500ms", 0.5), ("90s", 90.0), ("10m", 600.0), ("24h", 86400.0),
        ("7d", 604800.0), ("1.5 h", 5400.0),
    ],
    Size.parse: [(16_000, Size(16_000)), ("64kB", Size(64_000)), ("1 MB", Size(1_000_000)), ("1500", Size(1_500))],
    values.database_url: [
        ("mysql://me@db:3307/oma", MysqlUrl(user="me", host="db", port=3307, database="oma")),
        ("mariadb://me@db/oma", MysqlUrl(user="me", host="db", port=3306, database="oma")),
        ("mysql://m%40e@[fd00::1]:3306/o%2Fma", MysqlUrl(user="m@e", host="fd00::1", port=3306, database="o/ma")),
        ("sqlite:///var/lib/a%20b?.db", SqliteUrl(path=Path("/var/lib/a b?.db"))),
        ("sqlite:////var/lib/a.db", SqliteUrl(path=Path("/var/lib/a.db"))),
    ],
    BrokerUrl.parse: [
        ("mqtt://broker", BrokerUrl(host="broker", port=1883, tls=False)),
        ("mqtts://[::1]:1234", BrokerUrl(host="::1", port=1234, tls=True)),
        ("mqtts://broker/", BrokerUrl(host="broker", port=8883, tls=True)),
    ],
    Listen.parse: [
        ("127.0.0.1:8686", Listen(host="127.0.0.1", port=8686)), ("[::1]:0", Listen(host="::1", port=0)),
        ("localhost.example:80", Listen(host="localhost.example", port=80)),
    ],
    values.topic_level: [("site 7", "site 7"), ("", "")],
    values.zone: [(name, name) for name in ("auto", "UTC", "Europe/Berlin")],
    values.origins: [([one], (one,)) for one in ("https://gui.example:8443", "http://[::1]")],
    values.hosts: [(["gui.example"], ("gui.example",))],
    values.path: [("/etc/ca.pem", Path("/etc/ca.pem")), ("~/ca.pem", Path("/home/me/ca.pem"))],
    values.directory: [("", Path()), (".", Path.cwd())],
}  # fmt: skip

REFUSED: list[tuple[Callable[[Any], Any], str, list[Any]]] = [
    (
        values.seconds, r"^a duration with its unit$",
        ["5 weeks", "", "-5m", "1h30m", "inf", -1, True, False, [1], float("nan"), float("inf"), 10**400, "9" * 400],
    ),
    (values.seconds, r'^a duration with its unit \("24s", "24m", "24h"\)$', [24, "24", " 24 "]),
    (Size.parse, "a size from", ["999", "1001kB", "2MB", "", "-5kB", "64KiB", True, 1.5, [1]]),
    (
        values.database_url, r"mysql://user@host:port/database|sqlite:///path/to/file.db",
        ["", "db", 7, "postgres://me@db/oma", "mysql://db/oma", "mysql://me@db", "mysql://me@db/", "mysql://me@db/a/b",
         "mysql://me@db:99999/oma", "mysql://me@db:x/oma", "mysql://me@[::1/oma", "mysql://me@db/oma?ssl=1",
         "mysql://me:password@db/oma", "sqlite://a.db", "sqlite:///", "sqlite:///dir/", "sqlite://:memory:"],
    ),
    (
        BrokerUrl.parse, r"^mqtt://host:1883 or mqtts://host:8883",
        ["broker:1883", "tcp://broker", "mqtt://", "mqtt://broker/path", "mqtt://broker:0", "mqtt://u@broker", None],
    ),
    (
        Listen.parse, r"^host:port, e.g. 127.0.0.1:8686",
        ["8686", 8686, ":8686", "::1:8686", "[::1]", "[1.2.3]:1", "host:65536", "http://h:1"],
    ),
    (values.topic, "levels of an MQTT topic", ["a+", "#", "/a", "a\0b", 7, "", "a/", "a//b", "$SYS/a"]),
    (values.topic_level, "one level of an MQTT topic", ["a+", "#", "/a", "a\0b", 7, "site/7"]),
    (values.zone, "IANA time zone", ["CEST", "", "../etc/passwd", "Europe", None]),
    (
        values.origins, "a list of origins",
        [[one] for one in ("https://x/", "gui.example", "*", "https://*.example", "https://GUI.example")],
    ),
    (values.hosts, "a list of host names", [[one] for one in ("http://gui.example", "a/b", "*", "", 7)]),
    (values.path, r"^a path$", ["a\0b", "", 7]),
]  # fmt: skip


@pytest.mark.parametrize("parse", READ, ids=lambda parse: parse.__qualname__)
def test_each_form_that_is_allowed_is_read_and_what_is_printed_reads_back(monkeypatch, parse):
    monkeypatch.setenv("HOME", "/home/me")
    for written, value in READ[parse]:
        assert parse(written) == value
        if isinstance(value, Size | MysqlUrl | SqliteUrl | BrokerUrl | Listen):
            assert parse(str(value)) == value


@pytest.mark.parametrize(("parse", "right", "wrong"), REFUSED, ids=lambda given: getattr(given, "__qualname__", ""))
def test_what_cannot_be_used_is_answered_with_the_right_form(parse, right, wrong):
    for written in wrong:
        with pytest.raises(ValueError, match=right):
            parse(written)


def test_durations_and_sizes_are_printed_as_people_write_them():
    written = ("0", "0.4ms", "20ms", "5s", "90500ms", "10m", "24h")
    found = [values.duration(seconds) for seconds in (0.0, 0.0004, 0.02, 5.0, 90.5, 600.0, 86400.0)]
    assert [text.strip('"') for text in found] == list(written)
    assert [values.seconds(text) for text in written] == [0.0, 0.0004, 0.02, 5.0, 90.5, 600.0, 86400.0]
    assert [str(Size(number)) for number in (16_000, 1_000_000, 1_500)] == ["16kB", "1MB", "1500B"]


def test_loopback_is_recognised():
    loopback = ["127.0.0.1:8686", "127.9.9.9:0", "[::1]:8686", "localhost:1", "[::ffff:127.0.0.1]:1"]
    others = ["0.0.0.0:80", "[::]:80", "localhost.example:80"]
    assert all(values.is_loopback(Listen.parse(written).host) for written in loopback)
    assert not any(values.is_loopback(Listen.parse(written).host) for written in others)


def test_a_secret_shows_only_when_asked():
    kept = Secret("hunter2")
    assert kept.reveal() == "hunter2"
    assert {str(kept), repr(kept), f"{kept}", "%s" % kept} == {"***"}  # noqa: UP031
    assert (kept == Secret("hunter2"), kept == "hunter2", bool(kept), bool(Secret())) == (True, False, True, False)


def test_what_is_shown_is_short_and_of_a_url_only_scheme_and_host():
    assert values.shown("see mqtt://u:p/w@x@host") == '"***"'
    assert values.shown(["mysql://u@host"]) == '["mysql://***@host"]'
    assert len(values.shown("x" * 5000)) == 101
