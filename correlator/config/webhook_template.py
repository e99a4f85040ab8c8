"""The template of a webhook's body: a JSON text whose strings hold placeholders, such as ``{{job.status}}``.

A string that is one placeholder alone becomes the value itself, with its type. Otherwise the values are inserted as
text. The template is parsed as JSON before values are inserted, so no value can change its structure.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from correlator.config.values import Secret, nearest
from correlator.model.document import OF_GATEWAYS, JobDocument
from correlator.model.messages import Transition

MAX_TEMPLATE = 16_384
"""Maximum bytes of a template."""


MAX_LEVELS = 32
"""Maximum nesting of a template."""


EVENT_MEMBERS = (*Transition.__annotations__, "kind")
JOB_MEMBERS = tuple(name for name in JobDocument.__struct_fields__ if name not in OF_GATEWAYS)


PLACEHOLDERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("id", "source", "type", "time", "url"), ()),
    "event": EVENT_MEMBERS,
    "job": JOB_MEMBERS,
}
"""What a placeholder may begin with, and the members of that; `sinks.webhooks.request` has the values."""

_EXPECTED = "a JSON text with placeholders such as {{job.status}} in its strings"
_PLACEHOLDER = re.compile(
    r"\{\{\s*(?P<path>\w+(?:\.[\w-]+)*)(?::(?P<limit>\d{1,5}))?\s*(?:\|(?P<fallback>[^{}]*))?\}\}"
)


class Template(Secret):
    """A template that has been checked. It prints as `***`, as it may hold a key."""

    __slots__ = ("_root",)
    expected = "a text that holds JSON"

    def __init__(self, text: str) -> None:
        if len(text.encode("utf-8", "replace")) > MAX_TEMPLATE:
            raise ValueError(f"{_EXPECTED}, of {MAX_TEMPLATE} bytes at most")
        try:
            parsed = json.loads(text, parse_int=_integer, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{_EXPECTED}; this is not JSON: {error}") from None
        super().__init__(text)
        self._root = _compiled(parsed, MAX_LEVELS)

    @property
    def literals(self) -> Iterator[str]:
        """The strings that hold no placeholder, one of which may be a key."""
        return _literals(self._root)

    def render(self, context: Mapping[str, Any]) -> Any:
        """Return the value to encode as JSON. A member that does not exist counts as null."""
        return _rendered(self._root, context)


class _Placeholder(NamedTuple):
    """A value to insert. `limit`: characters of its text at most. `fallback`: the text if it is null or empty."""

    path: tuple[str, ...]
    limit: int | None
    fallback: str | None

    def value(self, context: Mapping[str, Any]) -> Any:
        found: Any = context
        for name in self.path:
            found = found.get(name) if isinstance(found, Mapping) else None
        if self.fallback is not None and found in (None, ""):
            return self.fallback
        return _cut(found, self.limit) if self.limit is not None and found is not None else found

    def text(self, context: Mapping[str, Any]) -> str:
        return _text(self.value(context))


def _integer(text: str) -> int:
    if abs(number := int(text)) >= 1 << 63:
        _refuse(text)
    return number


def _refuse(text: str) -> None:
    raise ValueError(f"{text[:30]} has no exact value in JSON")


def _compiled(value: Any, levels: int) -> Any:
    """Return `value` with the parts of each string that has placeholders in its place."""
    if levels == 0:
        raise ValueError(f"{_EXPECTED}, nested {MAX_LEVELS} levels at most")
    match value:
        case dict():
            return {name: _compiled(member, levels - 1) for name, member in value.items()}
        case list():
            return [_compiled(member, levels - 1) for member in value]
        case str():
            parts = tuple(_parts(value))
            return parts if any(isinstance(part, _Placeholder) for part in parts) else value
        case _:
            return value


def _parts(text: str) -> Iterator[_Placeholder | str]:
    end = 0
    for found in _PLACEHOLDER.finditer(text):
        yield from _plain(text[end : found.start()])
        path = tuple(found["path"].split("."))
        _check(path)
        yield _Placeholder(path, int(found["limit"]) if found["limit"] else None, found["fallback"])
        end = found.end()
    yield from _plain(text[end:])


def _plain(text: str) -> Iterator[str]:
    if "{{" in text:
        at = text[text.index("{{") :][:40]
        raise ValueError(f"{_EXPECTED}; {at!r} is none: write {{{{job.error}}}}, {{{{job.error:500|none}}}}")
    if text:
        yield text


def _check(path: tuple[str, ...]) -> None:
    """Raises: ValueError if the first members of `path` are not those of an event."""
    root, *rest = path
    known = PLACEHOLDERS.get(root)
    if known is None:
        raise ValueError(f"{_EXPECTED}; there is no {{{{{root}}}}}, known are {', '.join(PLACEHOLDERS)}")
    if (rest and rest[0] not in known) or (known and not rest):
        names = [f"{root}.{name}" for name in known] or [root]
        written = ".".join(path[:2])
        raise ValueError(f"{_EXPECTED}; there is no {{{{{written}}}}}, {nearest(written if rest else '', names)}")


def _literals(value: Any) -> Iterator[str]:
    match value:
        case dict() | list():
            for member in value.values() if isinstance(value, dict) else value:
                yield from _literals(member)
        case str():
            yield value


def _rendered(value: Any, context: Mapping[str, Any]) -> Any:
    match value:
        case dict():
            return {name: _rendered(member, context) for name, member in value.items()}
        case list():
            return [_rendered(member, context) for member in value]
        case (_Placeholder() as alone,):
            return alone.value(context)
        case tuple():
            return "".join(part if isinstance(part, str) else part.text(context) for part in value)
        case _:
            return value


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cut(value: Any, limit: int) -> str:
    text = _text(value)
    return text if len(text) <= limit else text[: max(0, limit - 1)] + "…"
