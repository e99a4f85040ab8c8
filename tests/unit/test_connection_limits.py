"""Which connections are open, and which of them end, when there are more than the process may have."""

from __future__ import annotations

import functools
import itertools
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.sinks.http.connections import (
    ASCII_COST,
    END,
    FREE_LINES,
    LINE_COST,
    MAX_REQUESTS,
    REQUEST_COST,
    RESERVED,
    TEXT_COST,
    UNCOUNTED,
    Connections,
    Peer,
)
from correlator.sinks.turns import Refused
from tests.support.held import held
from tests.support.there import there

HEAD = b"GET / HTTP/1.1\r\nHost: "

LIMIT, EACH, SURPLUS = 12, 9, 6
"""Connections of all, of an address, and beyond both."""

ADDRESSES = {"a": "a", "b": "b", "2001:db8:0:1::1": "network", "2001:db8:0:1:ffff::2": "network", "proxy": "proxy"}
"""What counts as one address."""


def of_limit(limit: int) -> Connections:
    return Connections(lambda: 2 * limit, is_proxy=lambda address: address == "proxy")


def test_descriptors_are_kept_for_what_is_not_a_client():
    assert Connections(lambda: 16_384).limit == 16_384 - RESERVED
    assert Connections(lambda: 64).limit == 32


def test_an_address_that_opens_many_idle_connections_ends_its_own_and_others_stay():
    connections, ended = of_limit(40), list[str]()
    for address in [*["quiet"] * 5, *["flood"] * 200, "new"]:
        assert connections.has_room()
        there(connections.admit(address)).end = lambda address=address: ended.append(address)  # type: ignore[misc]
    assert set(ended) == {"flood"}
    assert len(connections) <= 40


@given(
    st.lists(st.tuples(st.sampled_from(["quiet", "flood", "flood"]), st.sampled_from(["opens", "asks", "is answered"])))
)
def test_idle_connections_with_tls_are_few_and_none_ends_that_is_being_answered(steps):
    connections, ended, opened = Connections(lambda: 200, max_idle_tls=4), list[Peer](), list[Peer]()
    busy: list[Peer] = []
    for address, step in steps:
        of_address = [peer for peer in opened if peer.address == address and peer not in ended]
        if step == "opens":
            opened.append(peer := there(connections.admit(address)))
            peer.end = functools.partial(ended.append, peer)
            connections.secured(peer)
        elif step == "asks" and (idle := [peer for peer in of_address if peer not in busy]):
            connections.begin(idle[0])
            busy.append(idle[0])
        elif step == "is answered" and (asking := [peer for peer in of_address if peer in busy]):
            busy.remove(asking[0])
            connections.end(asking[0])
        assert not {*ended} & {*busy}
        idle = [peer for peer in opened if peer not in ended and peer not in busy]
        assert len(idle) <= 4
        if sum(peer.address == "quiet" for peer in opened) <= 2:
            assert all(peer.address == "flood" for peer in ended)
    for peer in {*opened} - {*ended}:
        connections.lost(peer)
    assert len(connections) == 0


class ManyClients:
    """Clients that connect, ask and leave. A connection is idle unless its request has come or is being answered."""

    def __init__(self, *, proxies: bool) -> None:
        self.connections = of_limit(LIMIT) if proxies else Connections(lambda: 2 * LIMIT)
        self.most = {share: LIMIT if share == "proxy" and proxies else EACH for share in ADDRESSES.values()}
        self.is_idle: dict[Peer, bool] = {}
        self.share_of: dict[Peer, str] = {}
        self.ended: list[Peer] = []

    def open(self, share: str | None = None, *, surplus: bool, idle: bool = False) -> int:
        of_share = [peer for peer in self.is_idle if share in (None, self.share_of[peer])]
        return sum(peer.surplus == surplus and (self.is_idle[peer] or not idle) for peer in of_share)

    def accept(self, address: str) -> Peer | None:
        share = ADDRESSES[address]
        is_full, has_its_part = self.open(surplus=False) == LIMIT, self.open(share, surplus=False) == self.most[share]
        surplus = (is_full and not self.open(surplus=False, idle=True)) or (
            has_its_part and not self.open(share, surplus=False, idle=True)
        )
        may_end = is_full or has_its_part or self.open(surplus=True) == SURPLUS
        may_end = may_end or self.open(share, surplus=True) == SURPLUS // 2
        peer = self.connections.admit(address) if self.connections.has_room() else None
        while self.ended:
            assert may_end
            assert self.is_idle.pop(self.ended.pop())
        assert peer is not None or surplus
        if peer is not None:
            assert peer.surplus == surplus
            peer.end = functools.partial(self.ended.append, peer)
            self.is_idle[peer], self.share_of[peer] = True, share
        return peer

    def lose(self, peer: Peer) -> None:
        for _ in range(2):
            self.connections.lost(peer)
        self.connections.end(peer)
        del self.is_idle[peer]

    def act(self, peer: Peer, act: str) -> None:
        match act:
            case "begins":
                self.connections.begin(peer)
                self.is_idle[peer] = False
            case "asks" if self.is_idle[peer]:
                self.connections.asks(peer)
                self.is_idle[peer] = False
            case "has its answer":
                self.connections.end(peer)
                self.is_idle[peer] = True
            case "leaves":
                self.lose(peer)


@given(st.data())
def test_whatever_clients_do_only_idle_connections_end_and_only_above_the_limits(data):
    clients = ManyClients(proxies=data.draw(st.booleans()))
    acts = ["comes", *["comes and begins"] * 4, "begins", "asks", "has its answer", "leaves"]
    for _ in range(data.draw(st.integers(0, 80))):
        act = data.draw(st.sampled_from(acts))
        if act.startswith("comes"):
            peer = clients.accept(data.draw(st.sampled_from([*ADDRESSES])))
            if peer is not None and act == "comes and begins":
                clients.act(peer, "begins")
        elif clients.is_idle:
            clients.act(data.draw(st.sampled_from([*clients.is_idle])), act)
        assert len(clients.connections) == len(clients.is_idle) <= LIMIT + SURPLUS
        assert clients.open(surplus=False) <= LIMIT
        assert all(clients.open(share, surplus=False) <= most for share, most in clients.most.items())
    for peer in [*clients.is_idle]:
        clients.lose(peer)
    assert len(clients.connections) == 0


def test_nothing_is_left_of_the_connections_of_addresses_that_have_gone():
    connections, sizes = of_limit(LIMIT), []
    for number in range(2_000):
        assert connections.has_room()
        connections.lost(there(connections.admit(f"a{number}")))
        if number in (100, 1_999):
            sizes.append(held(connections))
    assert sizes[1] <= sizes[0]


def test_addresses_that_leave_their_surplus_behind_take_no_place_of_others():
    connections = of_limit(LIMIT)
    for address in ("a", "b", "c", "d"):
        ordinary = list[Peer]()
        for _ in range(EACH + SURPLUS):
            if connections.has_room() and (peer := connections.admit(address)) is not None:
                connections.begin(peer)
                ordinary += [] if peer.surplus else [peer]
        assert len(ordinary) == EACH
        for peer in ordinary:
            connections.lost(peer)
    assert len(connections) == SURPLUS


def test_what_requests_take_is_bounded_and_given_back_with_their_answers():
    connections, wide = of_limit(10_000), ("😀" + "x" * 8_000).encode()

    def take(address: str) -> tuple[list[Peer], Refused]:
        peers = list[Peer]()
        while len(peers) < 10_000:
            peers.append(there(connections.admit(address)))
            try:
                for end in (b"", b"", END):
                    connections.received(peers[-1], wide + end)
            except Refused as refused:
                return peers, refused
        raise AssertionError(f"{len(peers)} requests were received")

    flood, refused = take("flood")
    assert not refused.all_clients
    others = [take(address) for address in ("other", "third")]
    assert others[-1][1].all_clients
    counted = sum(peer.counted for peers in (flood, *(peers for peers, _ in others)) for peer in peers)
    assert MAX_REQUESTS <= counted < MAX_REQUESTS + TEXT_COST * len(wide)
    ordinary = there(connections.admit("ordinary"))
    connections.received(ordinary, b"x" * (UNCOUNTED // ASCII_COST))
    for n, peer in enumerate([*flood, *(peer for peers, _ in others for peer in peers)]):
        connections.begin(peer)
        (connections.end if n % 2 else connections.lost)(peer)
    assert not take("flood")[1].all_clients


def test_small_requests_behind_each_other_count_until_all_are_answered():
    connections, many = of_limit(10_000), 20
    peer = there(connections.admit("a"))
    for _ in range(2):
        connections.received(peer, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * many)
        assert peer.counted > (many - 1) * REQUEST_COST - UNCOUNTED
        for _ in range(many):
            assert peer.counted
            connections.begin(peer)
            connections.end(peer)
        assert peer.counted == 0


@given(
    st.lists(st.integers(0, 20_000), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(1, 9_000), st.integers(0, 3))),
    st.integers(0, 20_000),
)
def test_what_has_come_counts_until_its_answer_however_it_is_cut_into_pieces(sizes, pieces, begun):
    connections = of_limit(10_000)
    peer = there(connections.admit("a"))
    ends = list(itertools.accumulate(len(HEAD) + size + len(END) for size in sizes))
    sent = b"".join(HEAD + b"x" * size + END for size in sizes) + b"y" * begun
    came = answered = 0
    for size, answers in [*pieces, (len(sent), len(sizes))]:
        connections.received(peer, sent[came : came + size])
        came = min(came + size, len(sent))
        for _ in range(answers):
            if answered < len(sizes) and ends[answered] <= came:
                connections.begin(peer)
                connections.end(peer)
                answered += 1
        least = ASCII_COST * (came - ends[answered - 1] if answered else came) - UNCOUNTED
        assert peer.counted >= least, "what waits for its answer is counted"
    assert peer.counted == max(0, ASCII_COST * begun - UNCOUNTED), "what has been answered is counted no longer"


@pytest.mark.parametrize("line", [b"a:\r\n", b"1\r\na\r\n"], ids=["headers", "chunks"])
def test_short_lines_count_as_the_objects_that_they_become(line: bytes):
    connections = of_limit(10_000)
    peer, whole = (there(connections.admit("a")) for _ in range(2))
    sent = b"GET / HTTP/1.1\r\n" + line * 2_000
    for at in range(0, len(sent), 100):
        connections.received(peer, sent[at : at + 100])
    connections.received(whole, sent)
    assert peer.counted == whole.counted > (2_000 - FREE_LINES) * LINE_COST
    browser = there(connections.admit("b"))
    connections.received(browser, b"GET / HTTP/1.1\r\n" + b"Some-Header: of a browser\r\n" * 40 + b"\r\n")
    assert browser.counted == 0


def test_the_limit_is_said_in_readiness_and_once_in_the_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    connections = of_limit(40)

    def accept(address: str) -> Peer:
        assert connections.has_room()
        return there(connections.admit(address))

    peers = [accept(f"a{n}") for n in range(40)]
    assert connections.describe() == {"ok": True, "open": 40, "limit": 40, "error": None}
    peers += [accept(f"b{n}") for n in range(100)]
    described = connections.describe()
    assert (described["ok"], described["open"]) == (False, 40)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "LimitNOFILE" in caplog.text
    for peer in peers:
        connections.lost(peer)
    accept("c")
    assert connections.describe()["ok"] is True
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    for _ in range(10):
        peers = [accept(f"a{n}") for n in range(50)]
        assert connections.describe()["ok"] is False
        for peer in peers:
            connections.lost(peer)
        accept("c")
    assert len(caplog.records) == 2, "who comes to the limit and goes again fills no log"
