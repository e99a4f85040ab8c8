"""Which connections are open, and which of them end, when there are more than the process may have."""

from __future__ import annotations

import logging

import pytest

from correlator.sinks.http.connections import RESERVED, Connections, Peer
from tests.support.there import there

LIMIT = 40
SURPLUS = LIMIT // 2


class Listener:
    """Accepts for the tests. `ended`: the addresses of connections that were ended, in order."""

    def __init__(self, limit: int = LIMIT, **options) -> None:
        self.connections = Connections(lambda: 2 * limit, **options)
        self.ended: list[str] = []

    def accept(self, address: str) -> Peer | None:
        if not self.connections.has_room():
            return None
        peer = self.connections.admit(address)
        if peer is not None:
            peer.end = lambda: self.ended.append(address)
        return peer

    def busy(self, address: str, count: int = 1) -> list[Peer]:
        found: list[Peer] = []
        for _ in range(count):
            peer = there(self.accept(address))
            self.connections.begin(peer)
            found.append(peer)
        return found


def test_descriptors_are_kept_for_what_is_not_a_client():
    assert Connections(lambda: 16_384).limit == 16_384 - RESERVED
    assert Connections(lambda: 64).limit == 32


def test_an_address_that_opens_many_idle_connections_ends_its_own_and_others_stay():
    listener = Listener()
    for _ in range(5):
        listener.accept("quiet")
    for _ in range(200):
        assert listener.accept("flood") is not None
    assert set(listener.ended) == {"flood"}
    assert len(listener.connections) <= LIMIT
    assert listener.accept("new") is not None
    assert set(listener.ended) == {"flood"}


def test_an_address_gets_three_quarters_of_the_connections_and_a_proxy_gets_all():
    listener = Listener()
    assert not any(peer.surplus for peer in listener.busy("one", LIMIT * 3 // 4))
    assert all(peer.surplus for peer in listener.busy("one", SURPLUS // 2))
    assert listener.accept("one") is None
    assert not any(peer.surplus for peer in listener.busy("other", 2))
    proxied = Listener(is_proxy=lambda address: address == "proxy")
    assert len(proxied.busy("proxy", LIMIT)) == LIMIT


def test_the_addresses_of_an_ipv6_network_of_64_bits_have_one_share():
    listener = Listener()
    for n in range(LIMIT * 3 // 4):
        listener.busy(f"2001:db8:0:1::{n:x}")
    assert all(peer.surplus for peer in listener.busy("2001:db8:0:1:ffff::1"))
    assert not any(peer.surplus for peer in listener.busy("2001:db8:0:2::1"))


def test_where_all_are_busy_some_more_are_accepted_for_probes_and_then_none():
    listener = Listener(is_proxy=lambda _: True)
    assert not any(peer.surplus for peer in listener.busy("a", LIMIT))
    surplus = listener.busy("b", SURPLUS)
    assert all(peer.surplus for peer in surplus)
    assert listener.accept("c") is None
    listener.connections.lost(surplus[0])
    assert listener.accept("c") is not None
    assert listener.ended == []


def test_a_surplus_connection_that_asks_nothing_ends_for_the_next_one():
    listener = Listener(is_proxy=lambda _: True)
    listener.busy("a", LIMIT)
    for _ in range(100):
        assert listener.accept("b") is not None
    assert len(listener.connections) <= LIMIT + SURPLUS


@pytest.mark.parametrize("proxies", [True, False], ids=["all", "address"])
def test_a_surplus_connection_stays_until_its_request_can_be_read_while_there_is_room(proxies: bool):
    listener = Listener(is_proxy=lambda _: proxies)
    listener.busy("a", LIMIT if proxies else LIMIT * 3 // 4)
    address, most = ("b", SURPLUS) if proxies else ("a", SURPLUS // 2)
    for _ in range(most):
        assert listener.accept(address) is not None
    assert listener.ended == []
    for n in range(most):
        assert listener.accept(address) is not None
        assert len(listener.ended) == n + 1


def test_a_connection_whose_request_has_come_does_not_end_for_the_next_one():
    listener = Listener()
    first = there(listener.accept("a"))
    listener.connections.asks(first)
    listener.busy("a", LIMIT * 3 // 4 - 1)
    for _ in range(5):
        listener.accept("a")
    assert listener.ended == []
    listener.connections.settle(first)
    listener.accept("a")
    assert listener.ended == ["a"]


def test_a_connection_that_ends_twice_is_counted_once():
    listener = Listener()
    peer = there(listener.accept("a"))
    listener.connections.begin(peer)
    listener.connections.lost(peer)
    listener.connections.lost(peer)
    listener.connections.end(peer)
    assert len(listener.connections) == 0
    assert listener.connections._idle == {False: {}, True: {}}
    assert not listener.connections._of


def test_the_limit_is_said_in_readiness_and_once_in_the_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    listener = Listener()
    peers = [listener.accept(f"a{n}") for n in range(LIMIT)]
    assert listener.connections.describe() == {"ok": True, "open": LIMIT, "limit": LIMIT, "error": None}
    for n in range(100):
        listener.accept(f"b{n}")
    described = listener.connections.describe()
    assert (described["ok"], described["open"]) == (False, LIMIT)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "LimitNOFILE" in caplog.text
    for peer in [*peers, *list(listener.connections._open)]:
        if peer is not None:
            listener.connections.lost(peer)
    listener.accept("c")
    assert listener.connections.describe()["ok"] is True
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
