"""Access rules: host names, origins, tokens, tickets, and limits of connections."""

import contextlib
import subprocess
import sys
import time
from functools import partial
from itertools import count, cycle
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.config.schema import Config, Http
from correlator.model.messages import CloseCode
from correlator.sinks.http.access import (
    MAX_TICKETS,
    MAX_TICKETS_EACH,
    TICKET_SECONDS,
    Access,
    Rules,
    TrustedProxies,
    foreign_origin,
    share_of,
)
from correlator.sinks.http.floods import MAX_FLOODS, Floods, Pace
from correlator.sinks.http.grants import ANYBODY, OF_JOB, Denied, Grant
from correlator.sinks.http.requests import matches
from correlator.sinks.http.server import ListenerConfig
from tests.support.certificates import Certificates
from tests.support.eventually import PATIENCE
from tests.support.grants import granted
from tests.support.held import held
from tests.support.paths import REPOSITORY
from tests.support.there import there


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def access(clock=None, **settings):
    return Access(listen_host="box.example", clock=clock or Clock(), rules=Rules(**settings))


def request(path="/", address="10.0.0.1", **headers):
    transport = Mock()
    transport.get_extra_info.side_effect = lambda name, default=None: (address, 1) if name == "peername" else default
    named = {name.title(): value for name, value in headers.items()}
    return make_mocked_request("GET", path, headers={"Host": "box.example:8686", **named}, transport=transport)


async def admitted(at: Access, asked: web.BaseRequest) -> Grant | None:
    """The grant of a request; None if it is denied."""
    try:
        return await at.admit(asked)
    except Denied:
        return None


@pytest.mark.parametrize(
    ("address", "share"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a:b", "a:b"),
    ],
)
def test_limits_count_an_ipv6_network_of_64_bits_as_one_address_also_behind_a_proxy(address, share):
    assert share_of(address) == share
    assert access().client(request(address=address)).remote == share
    asked = request(address="10.0.0.1", **{"x-forwarded-for": "2001:db8:0:1::7"})
    assert access(proxies=("10.0.0.1",)).client(asked).remote == "2001:db8:0:1::/64"
    assert access().client(asked).remote == "10.0.0.1"


OWN_HOSTS = (
    "localhost:8686",
    "Box.Example:8686",
    "127.0.0.1",
    "10.1.2.3:80",
    "[::1]",
    "[::1]:8686",
    "::1",
    "gui.example:1",
)
FOREIGN_HOSTS = (None, "", "evil.example:8686", "box.example.evil", "127.0.0.1.evil.example", "[evil]", "127.1", "@")


@pytest.mark.parametrize(("host", "allowed"), [*((h, True) for h in OWN_HOSTS), *((h, False) for h in FOREIGN_HOSTS)])
def test_own_host_names_and_every_ip_literal_are_allowed_and_no_other(host, allowed):
    assert access(hosts=["GUI.example"]).host_allowed(host) is allowed


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        *(({"origin": origin}, True) for origin in ("http://BOX.example:8686", "https://GUI.example")),
        *(({"origin": origin}, False) for origin in ("null", "", "http://box.example", "https://gui.example.evil")),
        *(({"origin": origin}, False) for origin in ("https://box.example:8686", "http://gui.example", "http://[")),
    ],
)
def test_own_and_configured_origins_are_allowed_and_none_is_needed(headers, allowed):
    assert access(origins=["https://gui.example/"]).origin_allowed(request(**headers)) is allowed


@pytest.mark.parametrize("origin", ["https://gui.example:8443", "http://[::1]:5173", "http://xn--bcher-kva.example"])
def test_a_refusal_names_the_origin_to_add(origin):
    denied = foreign_origin(origin)
    assert str(denied) == f"pages of {origin} are not allowed: add it to http.allowed_origins"
    assert (denied.reason, denied.close_code) == ("origin", CloseCode.FORBIDDEN)


@given(st.one_of(st.text(), st.from_regex(r"https://[a-z.]*", fullmatch=True), st.sampled_from(["null", "NULL", ""])))
def test_a_refusal_fits_into_a_close_frame_and_repeats_nothing_that_is_no_origin(origin):
    said = str(foreign_origin(origin))
    assert len(said.encode()) <= 123
    assert said.isascii()
    assert said.isprintable()
    assert said.endswith("http.allowed_origins")


@pytest.mark.parametrize(
    ("address", "headers", "own"),
    [
        ("10.0.0.1", {}, "http"),
        ("10.0.0.1", {"x-forwarded-proto": "HTTPS"}, "https"),
        ("10.0.0.1", {"x-forwarded-proto": "https, http"}, "https"),
        ("10.0.0.1", {"x-forwarded-proto": "ftp"}, "http"),
        ("10.0.0.2", {"x-forwarded-proto": "https"}, "http"),
        ("2001:db8::1", {"x-forwarded-proto": "https"}, "http"),
    ],
)
def test_behind_a_trusted_proxy_the_own_origin_has_the_scheme_that_it_names(address, headers, own):
    at = access(proxies=("10.0.0.1",))
    for scheme in ("http", "https"):
        asked = at.client(request(address=address, origin=f"{scheme}://box.example:8686", **headers))
        assert at.origin_allowed(asked) is (scheme == own)


@pytest.mark.parametrize("url", ["https://Page.example", "https://page.example:443/i/dc1"])
def test_where_people_open_the_page_is_its_own_origin_until_a_reload(url):
    listener = ListenerConfig(Config(http=Http(public_url=url)))
    page, others = (
        request(origin="https://page.example"),
        [request(origin=one) for one in ("http://page.example", "https://page.example:8443", "")],
    )
    assert listener.access.origin_allowed(page)
    assert not any(map(listener.access.origin_allowed, others))
    listener.prepare(Config())()
    assert not listener.access.origin_allowed(page)


@pytest.mark.parametrize(
    ("headers", "grant", "foreign"),
    [
        ({}, ANYBODY, False),
        ({"sec-fetch-site": "same-origin"}, ANYBODY, False),
        ({"sec-fetch-site": "none"}, ANYBODY, False),
        ({"sec-fetch-site": "cross-site"}, ANYBODY, True),
        ({"sec-fetch-site": "cross-site", "origin": "https://gui.example"}, ANYBODY, False),
        ({"sec-fetch-site": "cross-site"}, *granted("t"), False),
        ({"sec-fetch-site": "cross-site", "authorization": "Bearer t"}, *granted("t"), True),
    ],
    ids=["program", "page", "typed", "image", "listed", "ticket", "proxy"],
)
def test_what_a_page_of_another_site_sends_is_foreign_unless_it_has_a_ticket(headers, grant, foreign):
    assert access().is_foreign(request(**headers), grant) is foreign


@pytest.mark.parametrize(
    ("header", "token"),
    [
        *((header, "second") for header in ("Bearer second", "bearer second", "BEARER  second ")),
        *((header, None) for header in ("Bearer", "Basic second", "second", "Bearer secon", "Bearer second2", "")),
    ],
)
async def test_any_of_the_tokens_is_accepted_and_no_other(header, token):
    at = access(grants=granted("first", "second"))
    assert await admitted(at, request(authorization=header)) == (granted(token)[0] if token else None)
    with pytest.raises(Denied, match="not known"):
        await at.log_in("\ud800", "10.0.0.1")
    assert await admitted(access(), request(authorization=header)) == ANYBODY


async def test_a_ticket_admits_one_request_and_ends_after_its_seconds(clock):
    (grant,) = granted("t")
    at = access(clock, grants=[grant])
    early, late = (request(f"/?ticket={at.ticket(grant)}") for _ in range(2))
    clock.now += TICKET_SECONDS - 0.1
    assert [await admitted(at, early), await admitted(at, early)] == [grant, None]
    clock.now += 0.1
    assert not await admitted(at, late)


@pytest.mark.parametrize("path", ["/?ticket={}&a=1", "/?a&id=2&ticket={}", "/?myticket=no&ticket={}&ticket=no"])
async def test_a_ticket_is_found_among_other_parameters_and_also_if_it_is_encoded(path):
    (grant,) = granted("t")
    at = access(grants=[grant])
    for written in (at.ticket(grant), "".join(f"%{ord(c):02x}" for c in at.ticket(grant))):
        assert await admitted(at, request(path.format(written))) == grant


async def test_what_a_stranger_sends_in_thousands_of_parameters_or_tags_is_hardly_read():
    at = access(grants=granted("t"))

    async def seconds(asked: list[web.Request]) -> float:
        began = time.process_time()
        for one in asked:
            assert await admitted(at, one) is None
            assert not matches(one, '"tag"')
        return time.process_time() - began

    few = await seconds([request(f"/?{n}") for n in range(200)])
    many = await seconds([request(f"/?{'a&' * 4_000}{n}", **{"if-none-match": "," * 30_000}) for n in range(200)])
    assert many < 30 * few, "each parameter and each tag would make it hundreds of times as much"


async def test_a_token_that_asks_for_many_tickets_revokes_its_own_oldest_and_no_other():
    grant, other = granted("t", "other")
    at = access(grants=[grant, other])
    of_other = at.ticket(other)
    first, second, *_, last = [at.ticket(grant) for _ in range(MAX_TICKETS_EACH + 1)]
    found = [await admitted(at, request(f"/?ticket={t}")) for t in (first, second, last, of_other)]
    assert found == [None, grant, grant, other]


async def test_tokens_of_one_job_share_their_bound_of_tickets_whenever_they_end():
    key = b"the key of the backend and of us"
    at = access(grants=granted("t"), job_keys=[key.decode()])

    def of_job(job: str, until: float) -> Grant:
        return Grant(OF_JOB, key, frozenset(), None, until, job)

    first, other = at.ticket(of_job("a", 2e10)), at.ticket(of_job("b", 2e10))
    more = [at.ticket(of_job("a", 3e10 + n)) for n in range(MAX_TICKETS_EACH)]
    found = [await admitted(at, request(f"/?ticket={t}")) for t in (first, other, more[-1])]
    assert found == [None, of_job("b", 2e10), of_job("a", 3e10 + MAX_TICKETS_EACH - 1)]


async def test_the_tickets_of_all_tokens_are_bounded_and_those_that_expired_do_not_count(clock):
    grants = granted(*(str(n) for n in range(MAX_TICKETS // MAX_TICKETS_EACH + 1)))
    at = access(clock, grants=grants)
    expired = at.ticket(grants[0])
    clock.now += TICKET_SECONDS
    kept = [at.ticket(grant) for grant in grants[:-1] for _ in range(MAX_TICKETS_EACH)]
    assert await admitted(at, request(f"/?ticket={expired}")) is None
    more = at.ticket(grants[-1])
    found = [await admitted(at, request(f"/?ticket={t}")) for t in (kept[0], kept[1], more)]
    assert found == [None, grants[0], grants[-1]]


async def test_a_ticket_of_a_revoked_token_is_refused():
    grants = kept_grant, _ = granted("kept", "revoked")
    at = access(grants=grants)
    kept, revoked = map(at.ticket, grants)
    at.changed.clear()
    at.change(Rules([kept_grant]))
    assert at.changed.is_set()
    assert [at.holds(grant) for grant in (*grants, ANYBODY)] == [True, False, False]
    assert await admitted(at, request(f"/?ticket={revoked}")) is None
    assert await admitted(at, request(f"/?ticket={kept}")) == kept_grant
    at.change(Rules())
    still = [at.holds(grant) for grant in (*grants, ANYBODY)]
    assert still == [True, True, True], "where no token is configured any more every connection stays"


def test_one_address_cannot_use_all_connections_which_are_counted_while_they_are_open():
    at, full = access(max_per_address=1, max_readers=2), "too many connections"
    join = partial(at.admitted, grant=ANYBODY)
    for _ in range(2):
        with contextlib.suppress(LookupError), join("here") as first, join("here") as same:
            with join("there") as other, join("third") as beyond:
                assert (first, other, same, beyond, at.connections) == (None, None, full, full, 2)
            raise LookupError
        assert at.connections == 0
    sizes = []
    for n in range(1_000):
        with join(f"once {n:03}"), at.admitted("here", Grant(OF_JOB, b"key", job=f"once {n:03}")):
            pass
        sizes.append(held(at))
    assert sizes[-1] <= sizes[0], "an address, or a job, that has no connection any more"


@pytest.mark.parametrize(("readers", "most"), [(1, 1), (10, 10), (99, 10), (119, 11), (10_000, 1_000)])
def test_the_bearer_of_a_token_for_one_job_or_vm_has_a_tenth_of_all_connections_or_ten(readers, most):
    def joined(*grants: Grant) -> int:
        """How many connections one of these tokens after the other may open."""
        at, tokens = access(max_readers=readers), cycle(grants)
        return next(n for n in count() if at.join(f"10.0.0.{n % 9}", next(tokens)) is not None)

    of_job, of_vm = Grant(OF_JOB, b"key", job="one", until=1e12), Grant(OF_JOB, b"key", vm="one")
    assert joined(of_job) == joined(of_job, replace(of_job, until=2e12)) == joined(of_vm) == most
    assert joined(of_job, of_vm) == min(readers, 2 * most)
    assert joined(of_job, replace(of_job, job="other")) == min(readers, 2 * most)
    assert joined(Grant("read", b"a")) == joined(ANYBODY) == readers


def test_an_address_that_floods_waits_longer_each_time_and_no_other_one_waits():
    now = 100.0
    floods = Floods(lambda: now, waiting=1)
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
    floods = Floods(lambda: 100.0, waiting=1)
    sizes = []
    for first in (0, MAX_FLOODS, 2 * MAX_FLOODS):
        for n in range(first, first + MAX_FLOODS):
            floods.note(f"{n:09}")
        sizes.append(held(floods))
    assert sizes[2] < 1.5 * sizes[0]
    assert [floods.delay(f"{n:09}") > 0 for n in (0, 2 * MAX_FLOODS - 1, 2 * MAX_FLOODS)] == [False, False, True]


PROXIES = ("127.0.0.1", "10.0.0.0/8", "fd00::/8")


@pytest.mark.parametrize(
    ("remote", "forwarded", "client"),
    [
        ("127.0.0.1", ["198.51.100.1", "203.0.113.7, 10.1.2.3"], "203.0.113.7"),
        ("127.0.0.1", ["10.1.2.3, 10.1.2.4"], "10.1.2.3"),
        ("127.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("127.0.0.1", ['"[2001:DB8::1]:4711"'], "2001:db8::1"),
        ("127.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:127.0.0.1", ["::ffff:203.0.113.7"], "203.0.113.7"),
        ("fd00::5", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.7, <script>, 10.1.2.3"], "10.1.2.3"),
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
    assert not access().is_proxy("127.0.0.1")


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


LOADS = """
import sys
from pathlib import Path

from correlator.config.schema import Config, Http
from correlator.sinks.http.server import ListenerConfig


def refuse(event, arguments):
    if event in ("os.mkdir", "os.link", "os.rename", "os.symlink") or (
        event == "open" and isinstance(arguments[0], str | bytes) and set(arguments[1] or "") & set("wax+")
    ):
        raise OSError(30, f"this process may write nowhere: {event} {arguments}")


sys.dont_write_bytecode = True
sys.addaudithook(refuse)
listener = ListenerConfig(Config(http=Http(tls_cert=Path(sys.argv[1]), tls_key=Path(sys.argv[2]))))
assert listener.tls
"""


def test_a_certificate_and_its_key_are_loaded_without_writing_a_file(tmp_path):
    """As in a gateway's unit, which may write nowhere; no key reaches a disk either."""
    certificates = Certificates.create(tmp_path)
    certificates.make("daemon", "DNS:localhost")
    files = [certificates.cert("daemon"), certificates.key("daemon")]
    command = [sys.executable, "-c", LOADS, *map(str, files)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stderr


@given(st.integers(1, 50), st.lists(st.integers(1, 60), max_size=10))
def test_a_client_may_send_its_burst_at_once_and_then_what_its_rate_has_given_back(burst, pauses):
    clock = Clock()
    pace, left = Pace(burst, 2.0, clock), burst
    for pause in [0, *pauses]:
        clock.now += pause
        left = min(burst, left + 2 * pause)
        sent = [pace.allows() for _ in range(burst + 1)]
        assert sent == [True] * left + [False] * (burst + 1 - left)
        left = 0
