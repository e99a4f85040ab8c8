"""Who may come in: host names, origins, tokens, tickets, and how many at once."""

from unittest.mock import Mock

import pytest
from aiohttp.test_utils import make_mocked_request

from correlator.sinks import access
from correlator.sinks.access import FORBIDDEN, TICKET_SECONDS, TOO_MANY, Access


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def door(clock=None, **settings):
    return Access(listen_host="box.example", clock=clock or Clock(), **settings)


def request(path="/", address="10.0.0.1", **headers):
    transport = Mock()
    transport.get_extra_info.side_effect = lambda name, default=None: (address, 1) if name == "peername" else default
    named = {name.capitalize(): value for name, value in headers.items()}
    return make_mocked_request("GET", path, headers={"Host": "box.example:8686", **named}, transport=transport)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8686",
        "LOCALHOST:1",
        "box.example",
        "Box.Example:8686",
        "127.0.0.1",
        "10.1.2.3:80",
        "[::1]",
        "[::1]:8686",
        "::1",
        "gui.example:1",
    ],
)
def test_our_names_and_every_ip_literal_pass(host):
    assert door(hosts=["GUI.example"]).host_allowed(host)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "evil.example:8686",
        "box.example.evil",
        "127.0.0.1.evil.example",
        "[evil]",
        "127.1",
        "@",
    ],
)
def test_a_name_that_is_not_ours_is_refused(host):
    assert not door().host_allowed(host)


@pytest.mark.parametrize(
    "origin", ["http://box.example:8686", "https://BOX.example:8686", "https://gui.example", "https://GUI.example"]
)
def test_our_own_and_the_configured_origins_pass(origin):
    assert door(origins=["https://gui.example/"]).origin_allowed(request(origin=origin))


@pytest.mark.parametrize(
    "origin",
    ["null", "", "https://evil.example", "http://box.example", "https://gui.example.evil", "http://gui.example"],
)
def test_a_foreign_origin_is_refused(origin):
    assert not door(origins=["https://gui.example"]).origin_allowed(request(origin=origin))


def test_a_request_without_origin_passes():
    assert door().origin_allowed(request())


def test_without_tokens_nobody_is_asked_for_one():
    assert door().authorised(request())


@pytest.mark.parametrize("header", ["Bearer second", "bearer second", "BEARER  second "])
def test_any_of_the_tokens_lets_in(header):
    assert door(tokens=["first", "second"]).authorised(request(authorization=header))


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer third", "Basic second", "second", "Bearer secon", "Bearer second2", ""]
)
def test_no_other_word_lets_in(header):
    assert not door(tokens=["first", "second"]).authorised(request(authorization=header))


def test_a_token_that_is_no_text_is_unknown_and_does_not_raise():
    assert not door(tokens=["first"]).knows("\ud800")


def test_a_ticket_lets_one_request_in(clock):
    at = door(clock, tokens=["t"])
    path = f"/ws?ticket={at.ticket()}"
    assert at.authorised(request(path))
    assert not at.authorised(request(path))


def test_a_ticket_ends_after_its_seconds(clock):
    at = door(clock, tokens=["t"])
    early, late = at.ticket(), at.ticket()
    clock.now += TICKET_SECONDS - 0.1
    assert at.authorised(request(f"/?ticket={early}"))
    clock.now += 0.1
    assert not at.authorised(request(f"/?ticket={late}"))


def test_tickets_are_bounded_and_the_oldest_goes_first(monkeypatch):
    monkeypatch.setattr(access, "MAX_TICKETS", 2)
    at = door(tokens=["t"])
    first, second, third = at.ticket(), at.ticket(), at.ticket()
    assert [at.authorised(request(f"/?ticket={t}")) for t in (first, second, third)] == [False, True, True]


def test_readers_are_counted_for_the_length_of_the_block():
    at = door(max_readers=1)
    with at.admitted(request()) as first, at.admitted(request(address="10.0.0.2")) as second:
        assert (first, second and second[0], at.readers) == (None, TOO_MANY, 1)
    assert at.readers == 0
    with at.admitted(request()) as again:
        assert again is None


def test_one_address_may_not_take_every_place():
    at = door(max_per_address=1)
    with at.admitted(request()), at.admitted(request()) as same, at.admitted(request(address="10.0.0.2")) as other:
        assert (same and same[0], other, at.readers) == (TOO_MANY, None, 2)


def test_a_reader_that_fails_gives_its_place_back():
    at = door(max_readers=1)
    with pytest.raises(LookupError), at.admitted(request()):
        raise LookupError
    assert at.readers == 0


def test_a_foreign_origin_is_not_counted():
    at = door()
    with at.admitted(request(origin="https://evil.example")) as refused:
        assert (refused and refused[0], at.readers) == (FORBIDDEN, 0)


def test_an_address_whose_readers_left_takes_no_room():
    at = door()
    with at.admitted(request()), at.admitted(request()):
        assert len(at._readers) == 1
    assert len(at._readers) == 0
