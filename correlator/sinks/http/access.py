"""Access control: host names, origins, tokens, tickets and connection limits. Performs no I/O.

Host: an unknown name in the Host header means that a foreign name resolves to this daemon (DNS rebinding), so the
request is refused. An IP literal cannot be rebound and is accepted. Origin: browsers let any page open a websocket, so
a foreign origin is refused for every request that streams or changes something.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from msgspec import Struct

from correlator.bounded import BoundedDict
from correlator.model.messages import CloseCode

TICKET_SECONDS = 30.0
"""Seconds for which a ticket is valid."""

MAX_TICKETS = 10_000
"""Unused tickets at once, expired ones included. Beyond it, the oldest are revoked."""

CHECKED_AT_ONCE = 100
"""Connections whose token is checked in one step after a change of the rules. To close one takes about 10 µs."""

FLOOD_DELAY, MAX_FLOOD_DELAY = 0.5, 5.0
FLOOD_FORGOTTEN = 5.0
MAX_FLOODS = 10_000
"""Seconds, and addresses. See `Floods`."""

MAX_HOPS = 20
"""Proxies in a row whose addresses are read."""

NO_TOKEN: Final = b""
"""The token of a request when no tokens are configured. A configured token is never empty."""

TOKEN: Final = web.RequestKey("token", bytes)
"""Key under which a request carries the token that admitted it."""

_NO_TICKET: Final = (0.0, NO_TOKEN)


class Rules(Struct, frozen=True):
    """What `Access` enforces. Without `tokens` every request is admitted. The limits are of streaming connections."""

    tokens: Iterable[str] = ()
    origins: Iterable[str] = ()
    hosts: Iterable[str] = ()
    max_readers: int = 10_000
    max_per_address: int = 10_000
    proxies: Iterable[str] = ()


DEFAULT: Final = Rules()


class Access:
    """The access rules of one listener, replaceable at run time by `change`. `clock`: monotonic seconds."""

    def __init__(self, *, listen_host: str, clock: Callable[[], float], rules: Rules = DEFAULT) -> None:
        self._clock = clock
        self._own_hosts = frozenset({"localhost", listen_host.lower()})
        self._tickets: BoundedDict[str, tuple[float, bytes]] = BoundedDict(MAX_TICKETS)
        """For each ticket: when it expires, and the token that requested it."""
        self.changed = asyncio.Event()
        """Set by `change`. Connections whose token is not valid any more (see `holds`) must be closed then."""
        self._connections: Counter[str] = Counter()
        self.change(rules)

    def change(self, rules: Rules) -> None:
        """Replace the rules. A token that is not among its tokens is revoked, as are the tickets it requested."""
        self._rules = rules
        self._tokens = tuple(t.encode() for t in rules.tokens)
        self._origins = frozenset(o.lower().rstrip("/") for o in rules.origins)
        self._hosts = self._own_hosts | {h.lower() for h in rules.hosts}
        self._proxies = TrustedProxies(rules.proxies)
        self.changed.set()

    @property
    def connections(self) -> int:
        """Open streaming connections."""
        return self._connections.total()

    def is_proxy(self, address: str) -> bool:
        """True for the address of a trusted proxy, which many clients share."""
        return address in self._proxies

    def client(self, request: web.Request) -> web.Request:
        """The request with a `remote` that limits count: see `share_of`.

        Where a trusted proxy passed the request on, it is that of the proxy's client.
        """
        remote = request.remote
        if remote is None:
            return request
        if self._proxies:
            remote = self._proxies.client(remote, request.headers.getall("X-Forwarded-For", ()))
        share = share_of(remote)
        return request if share == request.remote else request.clone(remote=share)

    def host_allowed(self, host: str | None) -> bool:
        """True for a configured host name, `localhost`, the listen address, or any IP literal."""
        name, is_address = _host_name(host or "")
        return is_address or name in self._hosts

    def origin_allowed(self, request: web.BaseRequest) -> bool:
        """True without an Origin header, for the daemon's own origin, and for configured ones."""
        origin = request.headers.get("Origin")
        if origin is None:
            return True
        try:
            own = urlsplit(origin).netloc.lower() == (request.host or "").lower()
        except ValueError:
            own = False
        return own or self.origin_listed(origin)

    def origin_listed(self, origin: str) -> bool:
        """True if the origin is in `http.allowed_origins`."""
        return origin.lower() in self._origins

    def cors(self, request: web.BaseRequest) -> dict[str, str]:
        """The CORS headers of a response. It depends on the origin of the request if any origin is configured."""
        if not self._origins:
            return {}
        origin = request.headers.get("Origin")
        if origin is None or not self.origin_listed(origin):
            return {"Vary": "Origin"}
        return {
            "Access-Control-Allow-Origin": origin,
            "Vary": "Origin",
            "Access-Control-Allow-Headers": "Authorization, If-None-Match, Last-Event-ID",
            "Access-Control-Expose-Headers": "ETag, Retry-After, Content-Disposition",
        }

    def authorised(self, request: web.BaseRequest, *, tickets: bool = True) -> bytes | None:
        """The valid token of ``Authorization: Bearer`` or of a ticket in the query, which is used up; None without one.

        Returns `NO_TOKEN` if no tokens are configured.
        """
        if not self._tokens:
            return NO_TOKEN
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and (known := self.known(token.strip())) is not None:
            return known
        ticket = request.query.get("ticket") if tickets else None
        until, known = self._tickets.pop(ticket, _NO_TICKET) if ticket is not None else _NO_TICKET
        return known if until > self._clock() and self.holds(known) else None

    def known(self, token: str) -> bytes | None:
        """The configured token that equals `token`, or None. Compares all of them in constant time."""
        given = token.encode("utf-8", "replace")
        found = [known for known in self._tokens if hmac.compare_digest(given, known)]
        return found[0] if found else None

    def holds(self, token: bytes) -> bool:
        """True if a token that `authorised` or `known` returned is still valid."""
        return not self._tokens or token in self._tokens

    def ticket(self, token: bytes) -> str:
        """Create a ticket, which admits one request within 30 s. Browsers need it: they cannot set websocket headers.

        `token`: what `authorised` returned for the request that asks for the ticket.
        """
        ticket = secrets.token_urlsafe(24)
        self._tickets[ticket] = self._clock() + TICKET_SECONDS, token
        return ticket

    @contextlib.contextmanager
    def admitted(self, request: web.BaseRequest) -> Iterator[tuple[int, str] | None]:
        """Count a connection while the block runs. Yields (close code, reason) if it must be refused, else None."""
        address = request.remote or ""
        if not self.origin_allowed(request):
            yield CloseCode.FORBIDDEN, "this origin is not in http.allowed_origins"
            return
        rules = self._rules
        if self.connections >= rules.max_readers or self._connections[address] >= rules.max_per_address:
            yield CloseCode.TOO_MANY, "too many connections"
            return
        self._connections[address] += 1
        try:
            yield None
        finally:
            self._connections[address] -= 1
            if not self._connections[address]:
                del self._connections[address]


class TrustedProxies:
    """Addresses and networks of proxies whose `X-Forwarded-For` is believed. Immutable.

    Each proxy appends the address that it was asked from. So the list is read from its end, as long as the address
    before is a trusted one: what clients write themselves stands before that, and is not believed.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)
        self._trusts = lru_cache(1_000)(self._trusts_uncached)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: str) -> bool:
        return bool(self._networks) and self._trusts(address)

    def client(self, remote: str, forwarded: Iterable[str]) -> str:
        """The address of the client of a request that came from `remote`. `forwarded`: the headers, in order."""
        hops = ",".join(forwarded).rsplit(",", MAX_HOPS)
        address = remote
        while hops and address in self:
            hop = _address(hops.pop())
            if hop is None:
                break
            address = hop
        return address

    def _trusts_uncached(self, address: str) -> bool:
        parsed = _address(address)
        return parsed is not None and any(ipaddress.ip_address(parsed) in network for network in self._networks)


class Pace:
    """Rate limit of one client (token bucket): `burst` messages at once, `rate` per second on average.

    `clock`: monotonic seconds.
    """

    def __init__(self, burst: int, rate: float, clock: Callable[[], float]) -> None:
        self._burst = float(burst)
        self._rate = rate
        self._clock = clock
        self._left, self._at = self._burst, clock()

    def allows(self) -> bool:
        """Count one message. Returns False if it exceeds the limit."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Floods:
    """Delays for addresses whose connections were closed because they sent too much.

    Such a connection costs its burst, and one that comes back at once would cost it again and again. So an address has
    to wait `FLOOD_DELAY` seconds for each flood, which is forgotten after `FLOOD_FORGOTTEN`, but `MAX_FLOOD_DELAY` at
    most, as other clients may have the same address. `clock`: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: BoundedDict[str, float] = BoundedDict(MAX_FLOODS)
        """For an address: when its floods have been forgotten."""

    def note(self, address: str) -> None:
        """A connection of this address was closed."""
        most = FLOOD_FORGOTTEN * MAX_FLOOD_DELAY / FLOOD_DELAY
        until = max(self._until.pop(address, 0.0), self._clock())
        self._until[address] = min(until + FLOOD_FORGOTTEN, self._clock() + most)

    def delay(self, address: str) -> float:
        """Seconds that a new connection of this address has to wait."""
        if (until := self._until.get(address)) is None:
            return 0.0
        left = until - self._clock()
        if left <= 0:
            del self._until[address]
            return 0.0
        return min(MAX_FLOOD_DELAY, left / FLOOD_FORGOTTEN * FLOOD_DELAY)


@lru_cache(10_000)
def share_of(address: str) -> str:
    """What limits count as one address: in IPv6 its network of 64 bits, as a client has all addresses of one."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.ip_network((int(found), 64), strict=False))


def _address(text: str) -> str | None:
    """An address as `X-Forwarded-For` has it, with or without a port and brackets; None if it is none.

    An IPv4 address that is written as one of IPv6 is the IPv4 address.
    """
    try:
        found = ipaddress.ip_address(_without_port(text.strip().strip('"')))
    except ValueError:
        return None
    return str(getattr(found, "ipv4_mapped", None) or found)


def _without_port(name: str) -> str:
    """A name or an address without the port and the brackets that it may have."""
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0] if name.count(":") == 1 else name


@lru_cache(100)
def _host_name(host: str) -> tuple[str, bool]:
    """The Host header without its port and brackets, in lower case, and whether that is an IP literal."""
    name = _without_port(host.strip().lower())
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name, False
    return name, True
