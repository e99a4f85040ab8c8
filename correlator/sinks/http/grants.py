"""What a request may do: the grant of its token, and what each route needs.

Problem. Tokens have different rights: one reads everything, one only metrics, one only some appliances. A route that
is added later must not be open to all of them because nobody thought of it.

Model. A token is exchanged for its `Grant` once, when a request or a connection begins. Each route is declared as a
`Route` with the `Need` that a grant must cover. A route without one does not exist: the type asks for it, and what is
registered in another way needs the widest grant.

A token for one job, or for one VM (`model.job_token`), has a grant that covers only `Need.JOB`. Such a route shows
what `check_job` and `Grant.narrowed` let through: every way from a request to a job goes through one of the two.

A connection outlives the check of its token. So its grant is checked again when the tokens change, and each second
while one may expire (`Access.holds`).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from http import HTTPStatus
from typing import Final, Literal, TypeAlias, get_args

from aiohttp import web
from aiohttp.typedefs import Handler
from msgspec import Struct
from msgspec.structs import replace

from correlator.config.tokens import SCOPES, AcceptedToken
from correlator.jobs.fold import vm_name
from correlator.model.job_token import Claims
from correlator.model.messages import CloseCode
from correlator.model.published import PublishedJob
from correlator.model.replies import Resolved
from correlator.sinks.streaming.subscriptions import Filter


class Need(Enum):
    """What a route asks of a request."""

    NOTHING = "nothing"
    """Not even a known Host: a probe of a load balancer has neither a name nor a token."""
    HOST = "host"
    """No token: the files of the page, and the websocket, which gets its token in `hello`."""
    METRICS = "metrics"
    READ = "read"
    """Whatever the appliances have: lists, searches, any job."""
    JOB = "job"
    """A job: a token for just this one suffices."""


Reason: TypeAlias = Literal[
    "no_token", "wrong_token", "expired", "ticket", "claims", "guesses", "scope", "instance", "job", "host", "origin"
]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
"""Why requests are refused: the labels of the metric."""

_STATUS: Final[dict[Reason, HTTPStatus]] = {
    **dict.fromkeys(("no_token", "wrong_token", "expired", "ticket", "claims"), HTTPStatus.UNAUTHORIZED),
    "guesses": HTTPStatus.TOO_MANY_REQUESTS,
}
_CLOSE_CODE: Final[dict[Reason, CloseCode]] = {
    **dict.fromkeys(("no_token", "expired", "ticket", "claims"), CloseCode.UNAUTHORISED),
    "guesses": CloseCode.TOO_MANY,
}


class Denied(Exception):
    """A request is refused: it has no valid token, or may not do what it asks for. `grant`: that of its token."""

    def __init__(self, reason: Reason, detail: str, grant: Grant | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.grant = grant

    @property
    def status(self) -> HTTPStatus:
        return _STATUS.get(self.reason, HTTPStatus.FORBIDDEN)

    @property
    def close_code(self) -> CloseCode:
        return _CLOSE_CODE.get(self.reason, CloseCode.FORBIDDEN)


class Grant(Struct, frozen=True):
    """What the bearer of a token may do.

    `name`: that of the token in the configuration; empty: it has none. `secret`: the token, by which the grant is found
    again after a reload. `scope`: see `config.tokens.Token`. `instances`: the appliances of a fleet that it shows;
    None: all. `job`: the ID of the only job that it is for; `vm`: the only VM; empty: it is not restricted to one.
    `until`: Unix seconds at which it ends. Of a token for a job or a VM, `secret` is the key that signed it.
    """

    name: str = ""
    secret: bytes = b""
    scope: frozenset[str] = frozenset(SCOPES)
    instances: frozenset[str] | None = None
    until: float = math.inf
    job: str = ""
    vm: str = ""

    @property
    def is_restricted(self) -> bool:
        """True if it is for one job, or for one VM."""
        return bool(self.job or self.vm)

    @property
    def subject(self) -> str:
        """What it is for, in words."""
        return f"the job {self.job!r}" if self.job else f"the VM {self.vm!r}"

    def covers(self, need: Need) -> bool:
        """True if a request with this grant may use a route that has this need."""
        if need in (Need.NOTHING, Need.HOST):
            return True
        if self.is_restricted:
            return need is Need.JOB
        return ("read" if need is Need.JOB else need.value) in self.scope

    def check(self, need: Need, instance: str | None) -> None:
        """Raises `Denied` unless the grant covers `need`, and shows the appliance that the address names, if any.

        The answer does not say whether there is such an appliance.
        """
        if self.is_restricted and not self.covers(need):
            raise self.refusal()
        if not self.covers(need):
            raise Denied(
                "scope", f"this token does not have the scope {'read' if need is Need.JOB else need.value}", self
            )
        if instance is not None and not self.shows(instance):
            raise Denied("instance", f"this token does not show the appliance {instance!r}", self)

    def refusal(self) -> Denied:
        """Why something else than its job or its VM is refused. It does not say whether that exists."""
        return Denied("job", f"this token is only for {self.subject}", self)

    def shows_job(self, shown: PublishedJob | None) -> bool:
        """True unless the job is of another VM than the only one, or is not known, so that nobody can say."""
        return not self.vm or (shown is not None and vm_name(shown.view) == self.vm)

    @property
    def shows_some(self) -> Callable[[PublishedJob], bool] | None:
        """`shows_job` of a token for a VM; None: whatever the request may name, it may see."""
        return self.shows_job if self.vm else None

    def narrowed(self, wanted: Filter) -> Filter:
        """What a subscription selects: of a VM only its jobs. Raises: `Denied` if it wants another job."""
        if self.job and wanted.jobs != frozenset({self.job}):
            raise self.refusal()
        return replace(wanted, query=replace(wanted.query, vm_name=self.vm)) if self.vm else wanted

    def includes(self, other: Grant) -> bool:
        """True if everything that `other` allows is allowed."""
        return other.scope <= self.scope and (
            self.instances is None or (other.instances is not None and other.instances <= self.instances)
        )

    def shows(self, instance: str) -> bool:
        """True if the grant shows this appliance of a fleet."""
        return self.instances is None or instance in self.instances


ANYBODY: Final = Grant()
"""The grant of a request where no token is needed. The secret of a configured token is never empty."""

OF_JOB: Final = "(job token)"
"""What the journal calls a token for one job, or for one VM. No token of a configuration can have this name."""

Found: TypeAlias = tuple[PublishedJob, Resolved]

GRANT: Final = web.RequestKey("grant", Grant)
"""Key under which a request carries the grant of its token."""


async def check_job(grant: Grant, name: str, find: Callable[[str], Awaitable[Found | None]]) -> None:
    """Raises `Denied` if a request with this grant must not ask for the job that `name` names.

    It may ask by the ID that the token has, and by the `job_id` of the job to which that leads now. No other ID is
    looked up: how long the answer takes says nothing of other jobs. Of a VM, the job that was found is checked later
    (`Grant.shows_job`).
    """
    if not grant.job or name == grant.job:
        return
    found = await find(grant.job)
    if found is None or found[0].job_id != name:
        raise grant.refusal()


def job_grant(claims: Claims, key: str) -> Grant:
    """The grant of a token for one job, or for one VM, which this key signed."""
    instances = frozenset({claims.aud}) if claims.aud else None
    scope = frozenset[str]()
    return Grant(OF_JOB, key.encode(), scope, instances, float(claims.exp), claims.job, claims.vm)


def grants_of(tokens: Iterable[AcceptedToken]) -> tuple[Grant, ...]:
    """The grants of the tokens of a configuration."""
    return tuple(map(_grant_of, tokens))


def _grant_of(token: AcceptedToken) -> Grant:
    table, secret = token.table, token.secret.encode()
    if table is None:
        return Grant("", secret)
    return Grant(
        table.name,
        secret,
        frozenset(table.scope),
        frozenset(table.instances) or None,
        table.expires.timestamp() if table.expires is not None else math.inf,
    )


class Route(Struct, frozen=True):
    """A route, and what it needs. `head`: HEAD is answered too."""

    path: str
    handler: Handler
    need: Need
    method: str = "GET"
    head: bool = True

    def register(self, router: web.UrlDispatcher) -> list[web.AbstractRoute]:
        resource = router.add_resource(self.path)
        methods = (self.method, *(("HEAD",) if self.head and self.method == "GET" else ()))
        return [resource.add_route(method, self.handler) for method in methods]


class Routes:
    """The routes of a listener, and what each of them needs."""

    def __init__(self, routes: Iterable[Route], router: web.UrlDispatcher) -> None:
        self.needs = {made: one.need for one in routes for made in one.register(router)}

    def need(self, request: web.Request) -> Need:
        """What the route of a request needs. Where there is none, as much as any does: nobody may find out."""
        return self.needs.get(request.match_info.route, Need.READ)
