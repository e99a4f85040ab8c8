"""Who may come in: host names, origins, tokens, tickets, and how many readers at once. Pure but for the clock given.

A name in the Host header that is not ours means that a page of somebody else's resolves to us (DNS rebinding), so it
is refused; an IP literal cannot be rebound and passes. A foreign Origin is refused for everything that changes or
streams, as browsers let any page open a websocket.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import urlsplit

from aiohttp import web

TICKET_SECONDS = 30.0
MAX_TICKETS = 10_000

FORBIDDEN, TOO_MANY = 4403, 4429


class Access:
    """`clock`: monotonic seconds. Without tokens nobody is asked for one."""

    def __init__(
        self,
        *,
        listen_host: str,
        clock: Callable[[], float],
        tokens: Iterable[str] = (),
        origins: Iterable[str] = (),
        hosts: Iterable[str] = (),
        max_readers: int = 10_000,
        max_per_address: int = 10_000,
    ) -> None:
        self._clock = clock
        self._own_hosts = frozenset({"localhost", listen_host.lower()})
        self._tickets: dict[str, float] = {}
        self._readers: Counter[str] = Counter()
        self.change(tokens, origins, hosts, max_readers, max_per_address)

    def change(
        self,
        tokens: Iterable[str],
        origins: Iterable[str],
        hosts: Iterable[str],
        max_readers: int,
        max_per_address: int,
    ) -> None:
        """From now on let these in. Who is in stays in; a ticket that a token made holds until it expires."""
        self._tokens = tuple(t.encode() for t in tokens)
        self._origins = frozenset(o.lower().rstrip("/") for o in origins)
        self._hosts = self._own_hosts | {h.lower() for h in hosts}
        self._max_readers = max_readers
        self._max_per_address = max_per_address

    @property
    def readers(self) -> int:
        return self._readers.total()

    def host_allowed(self, host: str | None) -> bool:
        name = _host_name(host or "")
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def origin_allowed(self, request: web.BaseRequest) -> bool:
        """No Origin (no browser, or a plain navigation), our own, or one of the configured."""
        origin = request.headers.get("Origin")
        if origin is None:
            return True
        try:
            own = urlsplit(origin).netloc.lower() == (request.host or "").lower()
        except ValueError:
            own = False
        return own or self.origin_listed(origin)

    def origin_listed(self, origin: str) -> bool:
        return origin.lower() in self._origins

    def cors(self, request: web.BaseRequest) -> dict[str, str]:
        """The headers that let a page of a configured origin read the answer."""
        origin = request.headers.get("Origin")
        if origin is None or not self.origin_listed(origin):
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Vary": "Origin",
            "Access-Control-Allow-Headers": "Authorization, If-None-Match, Last-Event-ID",
            "Access-Control-Expose-Headers": "ETag",
        }

    def authorised(self, request: web.BaseRequest, *, tickets: bool = True) -> bool:
        """By ``Authorization: Bearer``, or by a ticket in the query; True where no token is configured."""
        if not self._tokens:
            return True
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.knows(token.strip()):
            return True
        ticket = request.query.get("ticket") if tickets else None
        return ticket is not None and self._tickets.pop(ticket, 0.0) > self._clock()

    def knows(self, token: str) -> bool:
        """In constant time, whichever token it is."""
        given = token.encode("utf-8", "replace")
        found = [hmac.compare_digest(given, known) for known in self._tokens]
        return any(found)

    def ticket(self) -> str:
        """A word that lets one request in, within 30 s: for browsers, which cannot set headers on a websocket."""
        now = self._clock()
        self._tickets = {t: until for t, until in self._tickets.items() if until > now}
        while len(self._tickets) >= MAX_TICKETS:
            del self._tickets[next(iter(self._tickets))]
        ticket = secrets.token_urlsafe(24)
        self._tickets[ticket] = now + TICKET_SECONDS
        return ticket

    @contextlib.contextmanager
    def admitted(self, request: web.BaseRequest) -> Iterator[tuple[int, str] | None]:
        """Count a reader for the length of the block. Yields why it may not stay (code, reason), or None."""
        address = request.remote or ""
        if not self.origin_allowed(request):
            yield FORBIDDEN, "this origin is not in http.allowed_origins"
            return
        if self.readers >= self._max_readers or self._readers[address] >= self._max_per_address:
            yield TOO_MANY, "too many readers"
            return
        self._readers[address] += 1
        try:
            yield None
        finally:
            self._readers[address] -= 1
            if not self._readers[address]:
                del self._readers[address]


class Pace:
    """How fast one client may send: `burst` at once, `rate` a second in the long run. `clock`: monotonic seconds."""

    def __init__(self, burst: int, rate: float, clock: Callable[[], float]) -> None:
        self._burst = float(burst)
        self._rate = rate
        self._clock = clock
        self._left, self._at = self._burst, clock()

    def allows(self) -> bool:
        """Whether one more may come now."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def _host_name(host: str) -> str:
    """The Host header without its port and brackets, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
