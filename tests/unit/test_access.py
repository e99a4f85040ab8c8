"""Access rules: host names, origins, tokens, tickets, and limits of connections."""

from unittest.mock import Mock

import pytest
from aiohttp.test_utils import make_mocked_request

from correlator.config.schema import Config, Http
from correlator.model.messages import CloseCode
from correlator.sinks.http.access import (
    MAX_FLOODS,
    MAX_TICKETS,
    NO_TOKEN,
    TICKET_SECONDS,
    Access,
    Floods,
    TrustedProxies,
    share_of,
)
from correlator.sinks.http.server import ListenerConfig
from tests.support.certificates import Certificates
from tests.support.there import there


@pytest.mark.parametrize(
    ("address", "share"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("2001:db8:0:1::", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no address", "no address"),
        ("a:b", "a:b"),
    ],
)
def test_limits_count_an_ipv6_network_of_64_bits_as_one_address(address, share):
    assert share_of(address) == share
    assert access().client(request(address=address)).remote == share


@pytest.mark.parametrize("proxies", [("10.0.0.1",), ()])
def test_limits_count_the_network_of_a_proxys_client(proxies):
    asked = request(address="10.0.0.1", **{"x-forwarded-for": "2001:db8:0:1::7"})
    assert access(proxies=proxies).client(asked).remote == ("2001:db8:0:1::/64" if proxies else "10.0.0.1")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def access(clock=None, **settings):
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
def test_own_host_names_and_every_ip_literal_are_allowed(host):
    assert access(hosts=["GUI.example"]).host_allowed(host)


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
def test_a_foreign_host_name_is_refused(host):
    assert not access().host_allowed(host)


@pytest.mark.parametrize(
    "origin", ["http://box.example:8686", "https://BOX.example:8686", "https://gui.example", "https://GUI.example"]
)
def test_own_and_configured_origins_are_allowed(origin):
    assert access(origins=["https://gui.example/"]).origin_allowed(request(origin=origin))


@pytest.mark.parametrize(
    "origin",
    ["null", "", "https://evil.example", "http://box.example", "https://gui.example.evil", "http://gui.example"],
)
def test_a_foreign_origin_is_refused(origin):
    assert not access(origins=["https://gui.example"]).origin_allowed(request(origin=origin))


def test_a_request_without_origin_passes():
    assert access().origin_allowed(request())


def test_without_tokens_no_request_needs_one():
    assert access().authorised(request()) == NO_TOKEN


@pytest.mark.parametrize("header", ["Bearer second", "bearer second", "BEARER  second "])
def test_any_of_the_tokens_is_accepted(header):
    assert access(tokens=["first", "second"]).authorised(request(authorization=header))


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer third", "Basic second", "second", "Bearer secon", "Bearer second2", ""]
)
def test_no_other_token_is_accepted(header):
    assert not access(tokens=["first", "second"]).authorised(request(authorization=header))


def test_a_token_that_is_no_text_is_unknown_and_does_not_raise():
    assert access(tokens=["first"]).known("\ud800") is None


def test_a_ticket_admits_one_request(clock):
    at = access(clock, tokens=["t"])
    path = f"/ws?ticket={at.ticket(b't')}"
    assert at.authorised(request(path))
    assert not at.authorised(request(path))


def test_a_ticket_ends_after_its_seconds(clock):
    at = access(clock, tokens=["t"])
    early, late = at.ticket(b"t"), at.ticket(b"t")
    clock.now += TICKET_SECONDS - 0.1
    assert at.authorised(request(f"/?ticket={early}"))
    clock.now += 0.1
    assert not at.authorised(request(f"/?ticket={late}"))


def test_tickets_are_bounded_and_the_oldest_goes_first():
    at = access(tokens=["t"])
    first, second, *_, last = [at.ticket(b"t") for _ in range(MAX_TICKETS + 1)]
    assert [at.authorised(request(f"/?ticket={t}")) for t in (first, second, last)] == [None, b"t", b"t"]


def test_a_ticket_of_a_revoked_token_is_refused():
    at = access(tokens=["kept", "revoked"])
    kept, revoked = at.ticket(b"kept"), at.ticket(b"revoked")
    changed = []
    at.on_change.append(lambda: changed.append((at.holds(b"kept"), at.holds(b"revoked"), at.holds(NO_TOKEN))))
    at.change(["kept"], (), (), 10, 10)
    assert changed == [(True, False, False)]
    assert at.authorised(request(f"/?ticket={revoked}")) is None
    assert at.authorised(request(f"/?ticket={kept}")) == b"kept"


def test_where_no_token_is_configured_any_more_every_connection_stays():
    at = access(tokens=["t"])
    at.change([], (), (), 10, 10)
    assert at.holds(b"t")
    assert at.holds(NO_TOKEN)


def test_connections_are_counted_while_the_block_runs():
    at = access(max_readers=1)
    with at.admitted(request()) as first, at.admitted(request(address="10.0.0.2")) as second:
        assert (first, second and second[0], at.connections) == (None, CloseCode.TOO_MANY, 1)
    assert at.connections == 0
    with at.admitted(request()) as again:
        assert again is None


def test_one_address_cannot_use_all_connections():
    at = access(max_per_address=1)
    with at.admitted(request()), at.admitted(request()) as same, at.admitted(request(address="10.0.0.2")) as other:
        assert (same and same[0], other, at.connections) == (CloseCode.TOO_MANY, None, 2)


def test_a_connection_that_fails_is_not_counted_any_more():
    at = access(max_readers=1)
    with pytest.raises(LookupError), at.admitted(request()):
        raise LookupError
    assert at.connections == 0


def test_a_foreign_origin_is_not_counted():
    at = access()
    with at.admitted(request(origin="https://evil.example")) as refused:
        assert (refused and refused[0], at.connections) == (CloseCode.FORBIDDEN, 0)


def test_an_address_without_connections_uses_no_memory():
    at = access()
    with at.admitted(request()), at.admitted(request()):
        assert len(at._connections) == 1
    assert len(at._connections) == 0


def test_an_address_that_floods_waits_longer_each_time_and_no_other_one_waits():
    now = 100.0
    floods = Floods(lambda: now)
    delays = []
    for _ in range(30):
        floods.note("flooder")
        delays.append(round(floods.delay("flooder"), 3))
        now += 0.01
    assert delays[0] == 0.5
    assert delays == sorted(delays)
    assert delays[-1] == 5.0
    assert floods.delay("other") == 0.0
    now += 51.0
    assert floods.delay("flooder") == 0.0
    floods.note("flooder")
    assert floods.delay("flooder") == 0.5
    now += 5.1
    assert floods.delay("flooder") == 0.0


def test_the_addresses_that_flooded_are_bounded():
    floods = Floods(lambda: 100.0)
    for n in range(MAX_FLOODS + 10):
        floods.note(str(n))
    assert len(floods._until) == MAX_FLOODS
    assert floods.delay("0") == 0.0
    assert floods.delay(str(MAX_FLOODS)) > 0.0


PROXIES = ("127.0.0.1", "10.0.0.0/8", "fd00::/8")


@pytest.mark.parametrize(
    ("remote", "forwarded", "client"),
    [
        ("127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["198.51.100.1", "203.0.113.7, 10.1.2.3"], "203.0.113.7"),
        ("127.0.0.1", ["10.1.2.3, 10.1.2.4"], "10.1.2.3"),
        ("127.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("127.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("127.0.0.1", ['"[2001:DB8::1]"'], "2001:db8::1"),
        ("127.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("127.0.0.1", ["::ffff:203.0.113.7"], "203.0.113.7"),
        ("::ffff:127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("fd00::5", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", ["unknown"], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.7, <script>"], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.7, garbage, 10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", [",,203.0.113.7,,"], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.7" + ", 10.0.0.1" * 1_000], "10.0.0.1"),
        ("192.0.2.1", ["203.0.113.7"], "192.0.2.1"),
        ("", ["203.0.113.7"], ""),
    ],
)
def test_a_client_is_the_last_address_that_no_trusted_proxy_has(remote, forwarded, client):
    assert TrustedProxies(PROXIES).client(remote, forwarded) == client


def test_without_trusted_proxies_no_header_is_believed():
    assert TrustedProxies(()).client("127.0.0.1", ["203.0.113.7"]) == "127.0.0.1"
    assert not Access(listen_host="h", clock=lambda: 0.0).is_proxy("127.0.0.1")


def test_the_name_under_which_people_open_the_page_is_allowed_until_a_reload_takes_it_away():
    listener = ListenerConfig(Config(http=Http(public_url="https://Correlator.example:8443/x")))
    assert listener.access.host_allowed("correlator.example")
    listener.prepare(Config())()
    assert not listener.access.host_allowed("correlator.example")


def test_every_suite_of_tls_authenticates_what_it_encrypts(tmp_path):
    certificates = Certificates.create(tmp_path)
    certificates.make("daemon", "DNS:localhost")
    http = Http(tls_cert=certificates.cert("daemon"), tls_key=certificates.key("daemon"))
    context = there(ListenerConfig(Config(http=http)).tls)
    names = [suite["name"] for suite in context.get_ciphers()]
    assert names
    assert all("GCM" in name or "CHACHA20" in name or "CCM" in name for name in names), names
