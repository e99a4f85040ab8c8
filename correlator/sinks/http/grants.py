"""What a request may do: the grant of its token, and what each route needs.

Problem. Tokens have different rights: one reads everything, one only metrics, one only some appliances. A route that
is added later must not be open to all of them because nobody thought of it.

Model. A token is exchanged for its `Grant` once, when a request or a connection begins. Each route is declared as a
`Route` with the `Need` that a grant must cover. A route without one does not exist: the type asks for it, and what is
registered in another way needs the widest grant.

A connection outlives the check of its token. So its grant is checked again when the tokens change, and each second
while one may expire (`Access.holds`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum
from http import HTTPStatus
from typing import Final, Literal, TypeAlias, get_args

from aiohttp import web
from aiohttp.typedefs import Handler
from msgspec import Struct

from correlator.config.tokens import SCOPES, AcceptedToken
from correlator.model.messages import CloseCode


class Need(Enum):
    """What a route asks of a request."""

    NOTHING = "nothing"
    """Not even a known Host: a probe of a load balancer has neither a name nor a token."""
    HOST = "host"
    """No token: the files of the page, and the websocket, which gets its token in `hello`."""
    METRICS = "metrics"
    READ = "read"


Reason: TypeAlias = Literal[
    "no_token", "wrong_token", "expired", "ticket", "guesses", "scope", "instance", "host", "origin"
]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
"""Why requests are refused: the labels of the metric."""

_STATUS: Final[dict[Reason, HTTPStatus]] = {
    **dict.fromkeys(("no_token", "wrong_token", "expired", "ticket"), HTTPStatus.UNAUTHORIZED),
    "guesses": HTTPStatus.TOO_MANY_REQUESTS,
}
_CLOSE_CODE: Final[dict[Reason, CloseCode]] = {
    **dict.fromkeys(("no_token", "expired", "ticket"), CloseCode.UNAUTHORISED),
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
    None: all. `until`: Unix seconds at which it ends.
    """

    name: str = ""
    secret: bytes = b""
    scope: frozenset[str] = frozenset(SCOPES)
    instances: frozenset[str] | None = None
    until: float = math.inf

    def covers(self, need: Need) -> bool:
        """True if a request with this grant may use a route that has this need."""
        return need in (Need.NOTHING, Need.HOST) or need.value in self.scope

    def check(self, need: Need, instance: str | None) -> None:
        """Raises `Denied` unless the grant covers `need`, and shows the appliance that the address names, if any.

        The answer does not say whether there is such an appliance.
        """
        if not self.covers(need):
            raise Denied("scope", f"this token does not have the scope {need.value}", self)
        if instance is not None and not self.shows(instance):
            raise Denied("instance", f"this token does not show the appliance {instance!r}", self)

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

GRANT: Final = web.RequestKey("grant", Grant)
"""Key under which a request carries the grant of its token."""


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
