"""The parameters of a request, read into the type of its operation (`correlator.model.parameters`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, Struct
from msgspec.structs import FieldInfo, asdict, fields

from correlator.errors import BadRequest
from correlator.model.parameters import JobFilters
from correlator.pipeline.queries import JobQuery

T = TypeVar("T", bound=Struct)

MAX_SHOWN = 100
"""Characters of a wrong value that its error repeats at most."""


def read(request: web.Request, kind: type[T]) -> T:
    """The parameters in the path and in the query of a request.

    Raises:
        BadRequest: A parameter is missing, is not known (a typo is an error, not an empty result), has a wrong value,
            or is given several times and has one value.
    """
    (members, required), query, path = _members(kind), request.query, request.match_info
    in_path = [name for name in required if name in path]
    found: dict[str, Any] = {name: path[name] for name in in_path}
    for name in dict.fromkeys(query):
        if name in in_path or (name not in members and name != "ticket"):
            known = ", ".join(sorted(members.keys() - in_path)) or "none"
            raise BadRequest(f"there is no query parameter {name!r} here; known: {known}")
        values = query.getall(name)
        default = members[name].default if name in members else None
        if isinstance(default, frozenset):
            found[name] = [value for text in values for value in text.split(",") if value]
        elif isinstance(default, tuple):
            found[name] = values
        elif len(values) > 1:
            raise BadRequest(f"{name}: given {len(values)} times; give it once")
        elif name in members:
            found[name] = values[0]
    try:
        return msgspec.convert(found, kind, strict=False, dec_hook=lambda own, text: own(text))
    except msgspec.ValidationError:
        raise BadRequest(_wrong(members, found)) from None


def job_query(parameters: JobFilters, **others: Any) -> JobQuery:
    """The query with the members that both have, and with `others`."""
    shared = {name: value for name, value in asdict(parameters).items() if name in JobQuery.__struct_fields__}
    return JobQuery(**shared | others)


@lru_cache
def _members(kind: type[Struct]) -> tuple[Mapping[str, FieldInfo], tuple[str, ...]]:
    """The members by the names of their parameters, and the names of those that are required."""
    members = {member.encode_name: member for member in fields(kind)}
    return members, tuple(name for name, member in members.items() if member.required)


def _wrong(members: Mapping[str, FieldInfo], found: Mapping[str, Any]) -> str:
    """Which of the parameters that were found is wrong, and what would be right."""
    for name, member in members.items():
        value, parts = found.get(name, UNSET), list(_parts(member.type))
        if _fits(value, member.type) if value is not UNSET else not member.required:
            continue
        if isinstance(value, list):
            if not value:
                return f"{name}: expected a value; leave it out for all"
            value = next((one for one in value if not _fits([one], member.type)), value)
        if isinstance(value, list):
            most = max(part.max_length or 0 for part in parts if isinstance(part, Meta))
            return f"{name}: expected at most {most} values"
        shown = f"{name}={value!r}" if isinstance(value, str) and len(value) <= MAX_SHOWN else name
        return f"{shown}: expected {next(filter(None, map(_expected, parts)))}"
    raise AssertionError(found)


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind, strict=False, dec_hook=lambda own, text: own(text))
    except msgspec.ValidationError:
        return False
    return True


def _parts(kind: Any) -> Iterator[Any]:
    """The types and constraints that a type consists of; those of the values of a list before those of the list."""
    yield kind
    for inner in get_args(kind):
        yield from _parts(inner)


def _expected(part: Any) -> str | None:
    match part:
        case Meta(extra={"expected": str(words)}):
            return words
        case Meta(ge=int(low), le=int(high)):
            return f"a number from {low} to {high}"
        case Meta(max_length=int(most)):
            return f"at most {most} characters"
    return f"one of {', '.join(get_args(part))}" if get_origin(part) is Literal else None
