"""The values of settings: each form that is allowed is read, and what is not says what would be right."""

from pathlib import Path

import pytest

from correlator.config import values
from correlator.config.values import (
    BrokerUrl,
    Listen,
    MysqlUrl,
    Secret,
    Size,
    SqliteUrl,
)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0.0), (0.0, 0.0), ("0", 0.0), ("500ms", 0.5), ("90s", 90.0), ("10m", 600.0),
        ("24h", 86400.0), ("7d", 604800.0), ("1.5 h", 5400.0),
    ],
)  # fmt: skip
def test_durations_are_seconds_however_they_are_written(written, seconds):
    assert values.seconds(written) == seconds


@pytest.mark.parametrize(
    "written",
    ["5 weeks", "", "-5m", "1h30m", "inf", -1, True, False, [1], float("nan"), float("inf"), 10**400, "9" * 400],
)
def test_what_is_no_duration_is_refused(written):
    with pytest.raises(ValueError, match=r"^a duration with its unit$"):
        values.seconds(written)
    for number in (24, "24", " 24 "):
        with pytest.raises(ValueError, match=r'^a duration with its unit \("24s", "24m", "24h"\)$'):
            values.seconds(number)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0"), (0.0004, '"0.4ms"'), (0.02, '"20ms"'), (5.0, '"5s"'), (90.5, '"90500ms"'), (600.0, '"10m"'),
     (86400.0, '"24h"')],
)  # fmt: skip
def test_a_duration_is_printed_as_people_write_it_and_reads_back(seconds, text):
    assert values.duration(seconds) == text
    assert values.seconds(text.strip('"')) == seconds


@pytest.mark.parametrize(
    ("written", "size", "text"),
    [(16_000, 16_000, "16kB"), ("64kB", 64_000, "64kB"), ("1 MB", 1_000_000, "1MB"), ("1500", 1_500, "1500B")],
)
def test_a_size_is_read_and_printed_as_people_write_it(written, size, text):
    assert Size.parse(written) == size
    assert str(Size.parse(written)) == text
    assert Size.parse(text) == size


@pytest.mark.parametrize("written", ["999", "1001kB", "2MB", "", "-5kB", "64KiB", True, 1.5, [1]])
def test_what_is_no_size_is_refused(written):
    with pytest.raises(ValueError, match="a size from"):
        Size.parse(written)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mysql://me@db:3307/oma", MysqlUrl(user="me", host="db", port=3307, database="oma")),
        ("mariadb://me@db/oma", MysqlUrl(user="me", host="db", port=3306, database="oma")),
        ("mysql://m%40e@[fd00::1]:3306/o%2Fma", MysqlUrl(user="m@e", host="fd00::1", port=3306, database="o/ma")),
        ("sqlite:///var/lib/a%20b?.db", SqliteUrl(path=Path("/var/lib/a b?.db"))),
        ("sqlite:////var/lib/a.db", SqliteUrl(path=Path("/var/lib/a.db"))),
    ],
)
def test_database_urls_are_parsed_and_printed_so_that_they_read_back(url, expected):
    assert values.database_url(url) == expected
    assert values.database_url(str(expected)) == expected


@pytest.mark.parametrize(
    "url",
    [
        "", "db", 7, "postgres://me@db/oma", "mysql://db/oma", "mysql://me@db", "mysql://me@db/", "mysql://me@db/a/b",
        "mysql://me@db:99999/oma", "mysql://me@db:x/oma", "mysql://me@[::1/oma", "mysql://me@db/oma?ssl=1",
        "mysql://me:password@db/oma", "sqlite://a.db", "sqlite:///", "sqlite:///dir/", "sqlite://:memory:",
    ],
)  # fmt: skip
def test_a_database_url_that_cannot_be_used_is_answered_with_the_right_form(url):
    with pytest.raises(ValueError, match=r"mysql://user@host:port/database|sqlite:///path/to/file.db"):
        values.database_url(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker", BrokerUrl(host="broker", port=1883, tls=False)),
        ("mqtts://[::1]:1234", BrokerUrl(host="::1", port=1234, tls=True)),
        ("mqtts://broker/", BrokerUrl(host="broker", port=8883, tls=True)),
    ],
)
def test_broker_urls_say_host_port_and_whether_to_encrypt(url, expected):
    assert BrokerUrl.parse(url) == expected
    assert BrokerUrl.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "url", ["broker:1883", "tcp://broker", "mqtt://", "mqtt://broker/path", "mqtt://broker:0", "mqtt://u@broker", None]
)
def test_a_broker_url_that_cannot_be_used_is_answered_with_the_right_form(url):
    with pytest.raises(ValueError, match=r"^mqtt://host:1883 or mqtts://host:8883"):
        BrokerUrl.parse(url)


@pytest.mark.parametrize(
    ("written", "host", "port", "loopback"),
    [
        ("127.0.0.1:8686", "127.0.0.1", 8686, True), ("127.9.9.9:0", "127.9.9.9", 0, True),
        ("[::1]:8686", "::1", 8686, True), ("localhost:1", "localhost", 1, True),
        ("[::ffff:127.0.0.1]:1", "::ffff:127.0.0.1", 1, True), ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("[::]:80", "::", 80, False), ("localhost.example:80", "localhost.example", 80, False),
    ],
)  # fmt: skip
def test_listen_addresses_are_parsed_and_loopback_is_recognised(written, host, port, loopback):
    listen = Listen.parse(written)
    assert listen == Listen(host=host, port=port)
    assert (listen.is_loopback, str(listen)) == (loopback, written)


@pytest.mark.parametrize(
    "written", ["8686", 8686, ":8686", "::1:8686", "[::1]", "[1.2.3]:1", "host:65536", "http://h:1"]
)
def test_a_listen_address_that_cannot_be_used_is_answered_with_the_right_form(written):
    with pytest.raises(ValueError, match=r"^host:port, e.g. 127.0.0.1:8686"):
        Listen.parse(written)


def test_a_topic_prefix_and_an_instance_hold_nothing_that_a_topic_may_not():
    assert (values.topic_level("site 7"), values.topic_level("")) == ("site 7", "")
    for parse, wrong in ((values.topic, ("", "a/", "a//b", "$SYS/a")), (values.topic_level, ("site/7",))):
        for written in ("a+", "#", "/a", "a\0b", 7, *wrong):
            with pytest.raises(ValueError, match="of an MQTT topic"):
                parse(written)


def test_a_time_zone_is_one_that_the_system_knows():
    assert [values.zone(name) for name in ("auto", "UTC", "Europe/Berlin")] == ["auto", "UTC", "Europe/Berlin"]
    for name in ("CEST", "", "../etc/passwd", "Europe", None):
        with pytest.raises(ValueError, match="IANA time zone"):
            values.zone(name)


def test_origins_are_those_that_a_browser_sends():
    assert values.origins(["https://gui.example:8443", "http://[::1]"]) == ("https://gui.example:8443", "http://[::1]")
    for origin in ("https://x/", "gui.example", "*", "https://*.example", "https://GUI.example"):
        with pytest.raises(ValueError, match="a list of origins"):
            values.origins([origin])


def test_host_names_are_names_alone():
    assert values.hosts(["gui.example"]) == ("gui.example",)
    for host in ("http://gui.example", "a/b", "*", "", 7):
        with pytest.raises(ValueError, match="a list of host names"):
            values.hosts([host])


def test_paths_start_at_home_where_they_say_so(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert values.path("~/ca.pem") == Path("/home/me/ca.pem")
    assert (values.directory("."), values.directory("")) == (Path.cwd(), Path())
    for written in ("a\0b", "", 7):
        with pytest.raises(ValueError, match=r"^a path$"):
            values.path(written)


def test_a_secret_shows_only_when_asked():
    kept = Secret("hunter2")
    assert kept.reveal() == "hunter2"
    assert {str(kept), repr(kept), f"{kept}", "%s" % kept} == {"***"}  # noqa: UP031
    assert (kept == Secret("hunter2"), kept == "hunter2", bool(kept), bool(Secret())) == (True, False, True, False)


def test_what_is_shown_is_short_and_without_the_password_of_a_url():
    assert values.shown("see mqtt://u:p/w@x@host") == '"see mqtt://u:***@host"'
    assert values.shown(["mysql://u@host"]) == '["mysql://u@host"]'
    assert len(values.shown("x" * 5000)) == 101
