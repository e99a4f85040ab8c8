"""Access control: host names, origins, tokens, tickets and connection limits. Performs no I/O.

Host: an unknown name in the Host header means that a foreign name resolves to this daemon (DNS rebinding), so the
request is refused. An IP literal cannot be rebound and is accepted. Origin: browsers let any page open a websocket and
send requests whose answers it cannot read, so what a foreign page sends is refused before it costs anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import math
import re
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Final, TypeAlias, TypeVar
from urllib.parse import unquote

from aiohttp import hdrs, web
from msgspec import Struct

from correlator.bounded import BoundedDict
from correlator.model import job_token
from correlator.ops import metrics
from correlator.sinks.http.audit import Audit
from correlator.sinks.http.floods import Guesses
from correlator.sinks.http.grants import ANYBODY, REASONS, Denied, Grant, Need, job_grant

TICKET_SECONDS = 30.0
"""Seconds for which a ticket is valid."""

MAX_TICKETS, MAX_TICKETS_EACH = 50_000, 10_000
"""Unused tickets at once, of all tokens and of each. Beyond that, the oldest of all, or of the token, are revoked."""

EXPIRED_AT_ONCE = 4
"""Expired tickets that are forgotten for each new one."""

CHECKED_AT_ONCE = 100
"""Connections whose token is checked in one step after a change of the rules. To close one takes about 10 µs."""

MAX_HOPS = 20
"""Proxies in a row whose addresses are read."""

MAX_REASON = 123
"""Bytes of the reason with which a websocket is closed (RFC 6455, 5.5)."""

TOO_MANY_CONNECTIONS: Final = "too many connections"
TOO_MANY_IDS: Final = "too many IDs in all subscriptions together"
"""Why a client is refused, whatever its token."""

PART_OF_BEARER, LEAST_OF_BEARER = 10, 10
"""The bearer of a token for one job or VM has a tenth of `Rules.max_readers`, and at least so many places. Such tokens
are given to customers, none of whom may lock out the others."""

_ORIGIN = re.compile(r"[a-z][a-z\d+.-]*://[\w.:\[\]-]+", re.ASCII | re.IGNORECASE)

_SCHEMES: Final = ("http", "https")


def foreign_origin(origin: str) -> Denied:
    """The refusal of a page of this origin. Its text says what to do, because it is what such a page shows."""
    if origin == "null":
        return Denied(
            "origin",
            "a file has no origin: open the page from a web server, and add its origin to http.allowed_origins",
        )
    said = f"pages of {origin} are not allowed: add it to http.allowed_origins"
    if not _ORIGIN.fullmatch(origin) or len(said) > MAX_REASON:
        said = "this origin is neither that of http.public_url nor in http.allowed_origins"
    return Denied("origin", said)


class Rules(Struct, frozen=True):
    """What `Access` enforces. Without `grants` and `job_keys` every request is admitted.

    `job_keys`: the keys of tokens for one job, each valid for `job_token_max` seconds at most. `instance`: the only
    appliance, to which such a token may be restricted; None: a gateway, which has several. `max_readers` and
    `max_per_address` are of streaming connections.
    `own_origin`: that of the page where people open it, as a browser sends it. So is the address that a request names.
    """

    grants: Iterable[Grant] = ()
    job_keys: Sequence[str] = ()
    job_token_max: float = 24 * 3600.0
    instance: str | None = None
    origins: Iterable[str] = ()
    own_origin: str | None = None
    hosts: Iterable[str] = ()
    max_readers: int = 10_000
    max_per_address: int = 10_000
    proxies: Iterable[str] = ()


DEFAULT: Final = Rules()

for _reason in REASONS:  # see `metrics`: an alert uses them
    metrics.REFUSED.labels(_reason)


class Access:
    """The access rules of one listener, replaceable at run time by `change`.

    `clock`: monotonic seconds. `now`: Unix seconds, by which grants end.
    """

    def __init__(
        self,
        *,
        listen_host: str,
        clock: Callable[[], float],
        now: Callable[[], float] = time.time,
        rules: Rules = DEFAULT,
    ) -> None:
        self._now = now
        self._own_hosts = frozenset({"localhost", listen_host.lower()})
        self._tickets = Tickets(clock)
        self._guesses = Guesses(clock)
        self.audit = Audit(clock)
        self.changed = asyncio.Event()
        """Set by `change`. Connections whose grant does not hold any more must be closed then."""
        self._connections: Counter[str] = Counter()
        self._connections_of: Counter[_Bearer] = Counter()
        """Of these, those with a token for one job or VM, by bearer."""
        self.change(rules)

    def change(self, rules: Rules) -> None:
        """Replace the rules. A token without a grant among them is revoked, as are the tickets it requested."""
        self._rules = rules
        self._grants = {grant.secret: grant for grant in rules.grants}
        self._job_keys = {key.encode() for key in rules.job_keys}
        self._needs_token = bool(self._grants or self._job_keys)
        metrics.TOKEN_EXPIRES.clear()
        for grant in self._grants.values():
            if grant.until < math.inf:
                metrics.TOKEN_EXPIRES.labels(grant.name).set(grant.until)
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
        """The request with a `remote` that limits count (see `share_of`), and the `scheme` that its page has.

        Where a trusted proxy passed the request on, they are those of the proxy's client.
        """
        remote = request.remote
        if remote is None:
            return request
        if remote in self._proxies:
            scheme = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
            if scheme in _SCHEMES and scheme != request.scheme:
                request = request.clone(scheme=scheme)
            remote = self._proxies.client(remote, request.headers.getall("X-Forwarded-For", ()))
        share = share_of(remote)
        return request if share == request.remote else request.clone(remote=share)

    def host_allowed(self, host: str | None) -> bool:
        """True for a configured host name, `localhost`, the listen address, or any IP literal."""
        name, is_address = _host_name(host or "")
        return is_address or name in self._hosts

    def hosts_allowed(self, request: web.BaseRequest) -> bool:
        """True if the hosts are that a request names: in its header, and in its address if that is absolute.

        See RFC 9112, 3.2.2.
        """
        header = request.headers.get(hdrs.HOST)
        if not self.host_allowed(header):
            return False
        return header is None or request.host == header or self.host_allowed(request.host)

    def may_see_names(self, request: web.BaseRequest) -> bool:
        """True if the answer to an open path may name servers, receivers and errors. A ticket is not used up.

        A probe must not wait: where a token would have to, it is not checked.
        """
        if not self.hosts_allowed(request):
            return False
        if not self._needs_token:
            return True
        given, address = (bearer_of(request) or "").encode("utf-8", "replace"), request.remote or ""
        if not given or self._guesses.delay(address, given):
            return False
        try:
            grant = self._of_job(given) or self._checked(given, address)
        except Denied as denied:
            self.note(denied, address)
            return False
        return grant.covers(Need.READ) and grant.instances is None

    def note(self, denied: Denied, address: str) -> None:
        """Count a refusal, and write it to the journal."""
        metrics.REFUSED.labels(denied.reason).inc()
        self.audit.refused(denied, address)

    def origin_allowed(self, request: web.BaseRequest) -> bool:
        """True without an Origin header, for the daemon's own origin, and for configured ones.

        An origin with another scheme is another origin: anybody on the network can change a page that comes over http.
        """
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or self.origin_listed(origin):
            return True
        own = f"{request.scheme}://{request.host or ''}".lower()
        return origin.lower() in (own, self._rules.own_origin)

    def is_foreign(self, request: web.BaseRequest, grant: Grant) -> bool:
        """True if a page of another site made a browser send the request, and the browser hides its origin.

        For an image, a script or a link there is no Origin header: the page cannot read the answer, and the request
        would have been answered. One with a ticket was meant to be sent. A token in a header is no sign of that: such
        a page cannot set one, and a proxy sets it for everybody. `grant`: what `admit` returned.
        """
        has_ticket = grant is not ANYBODY and hdrs.AUTHORIZATION not in request.headers
        is_hidden = hdrs.ORIGIN not in request.headers
        return is_hidden and not has_ticket and request.headers.get("Sec-Fetch-Site") == "cross-site"

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

    async def admit(self, request: web.BaseRequest, *, tickets: bool = True) -> Grant:
        """The grant of the ticket in the query, which is used up, or of the token in ``Authorization: Bearer``.

        Returns `ANYBODY` if no token is needed. Raises: `Denied`.
        """
        if not self._needs_token:
            return ANYBODY
        ticket = ticket_of(request) if tickets else None
        known = self._tickets.redeem(ticket) if ticket is not None else None
        if known is not None and self.holds(known):
            return known
        if (token := bearer_of(request)) is not None:
            return await self.log_in(token, request.remote or "")
        if ticket is not None:
            raise Denied("ticket", "this ticket has been used, or has expired: get another one by POST /api/v1/ticket")
        raise Denied("no_token", "a token is needed: Authorization: Bearer …, or a ticket of POST /api/v1/ticket")

    async def log_in(self, token: str, address: str) -> Grant:
        """The grant of a token that comes from this address. Raises: `Denied`.

        A token that a key has signed does not wait for the guesses of others: nobody can guess a signature, and each
        page has a token of its own, which no address has sent before.
        """
        given = token.encode("utf-8", "replace")
        if (signed := self._of_job(given)) is not None:
            return signed
        if not await self._guesses.turn(address, given):
            raise Denied("guesses", "too many wrong tokens came from this address: repeat the request later")
        return self._checked(given, address)

    def _checked(self, token: bytes, address: str) -> Grant:
        """The grant of a configured token. It is compared with all in constant time. Raises: `Denied`."""
        found = [grant for secret, grant in self._grants.items() if hmac.compare_digest(token, secret)]
        if not found:
            self._guesses.wrong(address)
            raise Denied("wrong_token", "this token is not known")
        self._guesses.right(address, token)
        if found[0].until <= self._now():
            raise Denied("expired", "this token has expired", found[0])
        return found[0]

    def _of_job(self, token: bytes) -> Grant | None:
        """The grant of a token for one job; None if it is none that a key has signed. Raises: `Denied`."""
        text, rules = token.decode("utf-8", "replace"), self._rules
        if not rules.job_keys or not job_token.looks_like_one(text):
            return None
        for key in rules.job_keys:
            try:
                claims = job_token.verify(text, key, now=self._now(), longest=rules.job_token_max)
            except job_token.WrongSignature:
                continue
            except job_token.WrongClaims as error:
                raise Denied("claims", f"this token cannot be accepted: {error}") from None
            except job_token.Ended:
                raise Denied("expired", "this token has expired") from None
            if claims.aud and rules.instance is not None and claims.aud != rules.instance:
                raise Denied("instance", "this token is for another appliance")
            return job_grant(claims, key)
        return None

    def holds(self, grant: Grant) -> bool:
        """True if a grant that `admit` or `log_in` returned still holds: its token has as many rights now."""
        if not self._needs_token:
            return True
        if grant.is_restricted:
            return grant.secret in self._job_keys and grant.until > self._now()
        current = self._grants.get(grant.secret)
        return current is not None and current.until > self._now() and current.includes(grant)

    @property
    def may_expire(self) -> bool:
        """True if a grant may end by itself, without a `change`."""
        return bool(self._job_keys) or any(grant.until < math.inf for grant in self._grants.values())

    def ticket(self, grant: Grant) -> str:
        """Create a ticket, which admits one request within 30 s. Browsers need it: they cannot set websocket headers.

        `grant`: that of the request that asks for the ticket.
        """
        return self._tickets.issue(grant)

    @contextlib.contextmanager
    def admitted(self, address: str, grant: Grant) -> Iterator[str | None]:
        """Count a connection while the block runs, as `join`. Yields why it must be refused, or None."""
        refusal = self.join(address, grant)
        try:
            yield refusal
        finally:
            if refusal is None:
                self.leave(address, grant)

    def join(self, address: str, grant: Grant) -> str | None:
        """Count the connection of a client that may use it, until `leave`. Returns why it must be refused, or None."""
        rules, bearer = self._rules, _bearer(grant)
        if grant.is_restricted:
            most = max(rules.max_readers // PART_OF_BEARER, LEAST_OF_BEARER)
            if self._connections_of[bearer] >= most:
                return f"too many connections with a token for this {'job' if grant.job else 'VM'}: at most {most}"
        if self.connections >= rules.max_readers or self._connections[address] >= rules.max_per_address:
            return TOO_MANY_CONNECTIONS
        self._connections[address] += 1
        if grant.is_restricted:
            self._connections_of[bearer] += 1
        return None

    def leave(self, address: str, grant: Grant) -> None:
        """A connection that `join` has counted has ended."""
        _count_down(self._connections, address)
        if grant.is_restricted:
            _count_down(self._connections_of, _bearer(grant))


_Counted = TypeVar("_Counted", bound=Hashable)


def _count_down(counts: Counter[_Counted], key: _Counted) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


class Tickets:
    """Tickets that have not been used: each admits one request within `TICKET_SECONDS`, instead of its token.

    A client that asks for many revokes those of its own token. Tokens that one key signed for the same job or VM count
    as one, because a new one, which ends later, is made at every request. `clock`: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._issued: BoundedDict[str, tuple[float, Grant]] = BoundedDict(MAX_TICKETS)
        """For each ticket: when it expires, and the grant that requested it. They expire in this order."""
        self._of: dict[_Bearer, OrderedDict[str, None]] = {}
        """By bearer, in the same order."""

    def issue(self, grant: Grant) -> str:
        """Create a ticket."""
        now = self._clock()
        for ticket, issued in list(islice(self._issued.items(), EXPIRED_AT_ONCE)):
            if issued[0] <= now:
                self.redeem(ticket)
        bearer = _bearer(grant)
        if len(self._of.get(bearer, ())) >= MAX_TICKETS_EACH:
            self.redeem(next(iter(self._of[bearer])))
        ticket = secrets.token_urlsafe(24)
        self._of.setdefault(bearer, OrderedDict())[ticket] = None
        if (evicted := self._issued.put(ticket, (now + TICKET_SECONDS, grant))) is not None:
            self._forget(*evicted)
        return ticket

    def redeem(self, ticket: str) -> Grant | None:
        """Use a ticket up. Returns its grant, None if it is not valid."""
        issued = self._issued.pop(ticket, None)
        if issued is None:
            return None
        self._forget(ticket, issued)
        until, grant = issued
        return grant if until > self._clock() else None

    def _forget(self, ticket: str, issued: tuple[float, Grant]) -> None:
        bearer = _bearer(issued[1])
        del self._of[bearer][ticket]
        if not self._of[bearer]:
            del self._of[bearer]


_Bearer: TypeAlias = tuple[bytes, str, str]


def _bearer(grant: Grant) -> _Bearer:
    """Whose tickets, and whose connections, are counted together: those of a token, whenever it ends."""
    return grant.secret, grant.job, grant.vm


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


def bearer_of(request: web.BaseRequest) -> str | None:
    """The token of ``Authorization: Bearer``, if there is one."""
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def ticket_of(request: web.BaseRequest) -> str | None:
    """The ticket in the query, if there is one. The other parameters, maybe thousands, are not read for strangers."""
    _, name, rest = f"&{request.rel_url.raw_query_string}".partition("&ticket=")
    return unquote(rest.partition("&")[0]) if name else None


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
