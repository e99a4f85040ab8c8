"""The `[[webhooks]]` tables: their keys, and the syntax of their values.

The template of a body is a JSON text whose strings hold placeholders, such as ``{{job.status}}``. A string that is one
placeholder alone becomes the value itself, with its type. Otherwise the values are inserted as text. The template is
parsed as JSON before values are inserted, so no value can change its structure.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from correlator.config.values import Secret, Section, nearest, split_url, text_like, without_path
from correlator.config.values import key as _key
from correlator.model.document import FAILURE_STATES, JOB_STATUSES, OF_GATEWAYS, JobDocument
from correlator.model.facts import Kind
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
    "note": ("text", "link"),
}
"""What a placeholder may begin with, and the members of that; `sinks.webhooks.Bodies` has the values."""

_EXPECTED = "a JSON text with placeholders such as {{job.status}} in its strings"
_PLACEHOLDER = re.compile(
    r"\{\{\s*(?P<path>\w+(?:\.[\w-]+)*)(?::(?P<limit>\d{1,5}))?\s*(?:\|(?P<fallback>[^{}]*))?\}\}"
)


class Template(Secret):
    """A template that has been checked. It prints as `***`, because it may hold a key."""

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


# -- URL, secrets and kinds of events


MAX_WEBHOOKS = 16


MAX_URL = 2_048
MAX_SECRETS = 2
"""While a secret is rotated, two sign."""


_URL = "https://host/path (http:// with allow_private only), without user, password or #; 2048 characters at most"
_SIGNING = "whsec_ and the base64 of 24 to 64 bytes, e.g. from: echo whsec_$(openssl rand -base64 32); at most two"
_AUTHORIZATION = "the value of the Authorization header in printable ASCII, e.g. Bearer TOKEN; 4096 characters at most"


class WebhookUrl(Secret):
    """The URL of a receiver. It prints without its path, which may be a secret; `reveal()` returns all of it."""

    __slots__ = ("_shown", "host", "port", "scheme")
    expected = _URL

    def __init__(self, text: str) -> None:
        text = text.strip()  # a file may end in blanks
        parts = split_url(text, ("http", "https"), _URL, forbidden=r"[^!-~]|[#\\]")
        if len(text) > MAX_URL:
            raise ValueError(_URL)
        super().__init__(text)
        self._shown = without_path(parts)
        self.scheme, self.host = parts.scheme, parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)

    def __str__(self) -> str:
        return self._shown

    __repr__ = __str__


class SigningSecrets(Secret):
    """The secrets that sign a webhook, the newest first; none if it is not signed.

    They are written one a line; `#` begins a comment. See Standard Webhooks, "Signature scheme".
    """

    __slots__ = ("keys",)
    expected = _SIGNING

    def __init__(self, text: str = "") -> None:
        found = [word for line in text.splitlines() for word in re.split(r"(?:^|\s)#", line)[0].split()]
        if len(found) > MAX_SECRETS:
            raise ValueError(_SIGNING)
        super().__init__("\n".join(found))
        self.keys = tuple(map(_signing_key, found))


def _signing_key(text: str) -> bytes:
    prefix, _, encoded = text.partition("_")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(_SIGNING) from None
    if prefix != "whsec" or not 24 <= len(key) <= 64:
        raise ValueError(_SIGNING)
    return key


class Authorization(Secret):
    """The value of the header Authorization."""

    __slots__ = ()
    expected = _AUTHORIZATION

    def __init__(self, text: str = "") -> None:
        if not re.fullmatch(r"[ -~]{0,4096}", text.strip()):
            raise ValueError(_AUTHORIZATION)
        super().__init__(text.strip())


def event_kinds(raw: object) -> tuple[str, ...]:
    """Parse kinds of events; `job.*` and `step.*` are all kinds of a job and of a step."""
    return _chosen(raw, ("job.*", "step.*", *Kind), "kinds of events")


def job_statuses(raw: object) -> tuple[str, ...]:
    return _chosen(raw, JOB_STATUSES, "statuses of a job")


def failure_states(raw: object) -> tuple[str, ...]:
    return _chosen(raw, FAILURE_STATES, "states of a failure")


def _chosen(raw: object, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise ValueError(f'a list of {what}, e.g. ["{known[-1]}"]')
    for one in raw:
        if one not in known:
            raise ValueError(f"a list of {what}; {nearest(str(one), known)}")
    return tuple(raw)


# -- the table, and what is wrong with several values of it


@dataclass(frozen=True, kw_only=True)
class Webhook(Section):
    name: str = _key(
        "",
        "Names the webhook in metrics, logs and credentials. Required, unique.",
        text_like(r"[a-z0-9][a-z0-9-]{0,31}", "a name of up to 32 characters a-z 0-9 -, e.g. tickets"),
    )
    url: WebhookUrl | None = _key(None, "Where events are sent by POST. Only its host is ever printed. Required.")
    url_file: Path | None = _key(
        None, "A file that holds the URL. Also as the credential webhook-NAME-url.", credential="webhook-{name}-url"
    )
    events: tuple[str, ...] = _key(
        ("job.*",), "Kinds of events to send. job.* and step.* are all kinds of a job, of a step.", event_kinds
    )
    operations: tuple[str, ...] = _key((), "Only jobs with one of these operations; empty: all.")
    statuses: tuple[str, ...] = _key(
        (), "Only jobs that have one of these statuses at the event; empty: all.", job_statuses
    )
    failures: tuple[str, ...] = _key(
        (),
        "Only failed jobs whose failure has one of these states: new, known, unknown; empty: all jobs."
        ' ["new", "unknown"] leaves out what is known.',
        failure_states,
    )
    secret: SigningSecrets = _key(
        SigningSecrets(), "Key for the signature (Standard Webhooks); empty: unsigned. Better in secret_file."
    )
    secret_file: Path | None = _key(
        None,
        "A file with one secret a line, # comments; while it is rotated, both are used. Also as the"
        " credential webhook-NAME-secret.",
        credential="webhook-{name}-secret",
    )
    authorization: Authorization = _key(
        Authorization(), "Value of the header Authorization. Better in authorization_file."
    )
    authorization_file: Path | None = _key(
        None,
        "A file that holds it. Also as the credential webhook-NAME-authorization.",
        credential="webhook-{name}-authorization",
    )
    body: Template | None = _key(
        None, "JSON text with placeholders such as {{job.status}}, sent instead of a CloudEvent."
    )
    timeout: float = _key(15.0, "Time for one attempt, from the name server to the response.", ge=1, le=60)
    allow_private: bool = _key(False, "Also connect to private and loopback addresses, and send by http://.")
    ca: Path | None = _key(None, "CA certificates to trust (PEM); empty: the system's.")


def contradictions(webhooks: Sequence[Webhook], place: Callable[[str], str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the problems between values that are each valid: the keys involved, and the message.

    `place(key)`: the place of a key in the files.
    """
    if len(webhooks) > MAX_WEBHOOKS:
        yield ("webhooks",), f"webhooks: expected {MAX_WEBHOOKS} tables at most, not {len(webhooks)}"
    first: dict[str, str] = {}
    for number, webhook in enumerate(webhooks, 1):
        name, url = f"webhooks[{number}].name", f"webhooks[{number}].url"
        if webhook.name in first:
            where = place(first[webhook.name])
            yield (name,), f'{name} = "{webhook.name}": expected another name: the one in {where} has it already'
        first.setdefault(webhook.name, name)
        if not webhook.name:
            yield (name,), f"{name}: expected a name, e.g. tickets"
        elif webhook.url is None:
            yield (url, f"{url}_file"), f"{url}: expected https://host/path, or a url_file"
        elif webhook.url.scheme == "http" and not webhook.allow_private:
            yield (url,), f"{url} = {webhook.url}: not encrypted; expected https://, or allow_private = true"
