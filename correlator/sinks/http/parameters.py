"""Query parameters of a request, checked: their names, numbers, choices and lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from aiohttp import web

from correlator.errors import BadRequest
from correlator.jobs.model.facts import Status
from correlator.pipeline.queries import JobQuery

_N = TypeVar("_N", int, float)
_T = TypeVar("_T", bound=str)

_STATUSES = tuple(status.value for status in Status if status is not Status.SKIPPED)

_REPEATED = frozenset(
    ("context_id", "id", "instance", "job_type", "operation", "parent_job_id", "status", "step"),
)
"""The parameters that may be given several times."""


def known(request: web.Request, names: Iterable[str]) -> None:
    """Check the names of the query parameters, so that a typo is an error and not an empty result.

    Raises:
        BadRequest: A parameter is neither in `names` nor `ticket`, or is given twice and has one value.
    """
    allowed = {*names, "ticket"}
    for name in request.query:
        if name not in _REPEATED and (given := len(request.query.getall(name))) > 1:
            raise BadRequest(f"{name}: given {given} times; give it once")
        if name not in allowed:
            right = ", ".join(sorted(names)) or "none"
            raise BadRequest(f"there is no query parameter {name!r} here; known: {right}")


def number(request: web.Request, name: str, low: int, high: int, kind: Callable[[str], _N]) -> _N | None:
    """A query parameter as a number from `low` to `high`, parsed by `kind`; None if it is missing.

    Raises:
        BadRequest: It is not such a number.
    """
    text = request.query.get(name)
    if text is None:
        return None
    try:
        value = kind(text)
        if not low <= value <= high:  # also false for NaN
            raise ValueError(text)
    except ValueError:
        raise BadRequest(f"{name}={text!r}: expected a number from {low} to {high}") from None
    return value


def choice(request: web.Request, name: str, options: tuple[_T, ...]) -> _T | None:
    """A query parameter that is one of `options`; None if it is missing.

    Raises:
        BadRequest: It has another value.
    """
    if (text := request.query.get(name)) is None:
        return None
    return _one_of(name, text, options)


def _one_of(name: str, text: str, options: tuple[_T, ...]) -> _T:
    for option in options:
        if option == text:
            return option
    raise BadRequest(f"{name}={text!r}: expected one of {', '.join(options)}")


def values(request: web.Request, name: str) -> frozenset[str]:
    """The values of a filter, which may be repeated or separated by commas.

    Raises:
        BadRequest: It is given without a value.
    """
    found = frozenset(v for text in request.query.getall(name, []) for v in text.split(",") if v)
    if not found and name in request.query:
        raise BadRequest(f"{name}: expected a value; leave it out for all")
    return found


def filters(request: web.Request, names: Iterable[str]) -> JobQuery:
    """The filters `names` of jobs, each a member of `JobQuery` of this name. See `values`.

    Raises:
        BadRequest: One is given without a value, or with a status that no job has.
    """
    found: dict[str, Any] = {name: values(request, name) for name in names}
    for status in sorted(found["status"]):
        _one_of("status", status, _STATUSES)
    return JobQuery(**found)
