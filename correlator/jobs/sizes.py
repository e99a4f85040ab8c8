"""The size limits of document members, and how a larger member is cut.

All sizes are bytes of UTF-8. A JSON object over the limit keeps its small members; its member `_cut` names the others,
with their sizes. No member of the source is published under that name (`published_name`). The functions are pure, and
none of them reads more text than the caller passes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from json import decoder
from typing import NamedTuple

from msgspec import Struct

from correlator.jobs.lenient_json import parsed
from correlator.model import encoder

MAX_METADATA = 16_000
MAX_ERROR = 8_000
"""The default limits of `metadata` and of an error, in bytes."""

STEP_ERRORS = 8
"""All long errors of a job's steps share this many times the limit of one error."""

SHORT_ERROR = 200
"""A step's error of up to this many bytes is always published, however many steps there are."""

CUT = "_cut"
REST = "*"
"""`CUT` is the member of a cut object that holds the sizes of the missing members. `REST` stands for those that it does
not name."""

MAX_NAMED = 50
MAX_KEPT = 1_024
"""The maximum number of members named in `_cut`, and of bytes up to which a value listed in `keep` is never cut."""

KEPT_KEYS = ("vm_name", "vm_name_or_id", "failover_type")
"""Members of metadata that are never cut, besides those that hold external IDs."""

_OURS = re.compile(r"_+cut")
_PERHAPS_OURS = re.compile(r'(?:_|\\u005f)(?:c|\\u0063)(?:u|\\u0075)(?:t|\\u0074)"', re.IGNORECASE)
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_read_string: Callable[[str, int], tuple[str, int]] = decoder.scanstring  # type: ignore[attr-defined]


class Sizes(Struct, frozen=True):
    """The configured limits. `keep`: the members of metadata that are never cut, up to `MAX_KEPT` bytes each."""

    metadata: int = MAX_METADATA
    error: int = MAX_ERROR
    keep: tuple[str, ...] = ("external_job_id", "failover_job_id", "gui_job_id", *KEPT_KEYS)


class Prefix(NamedTuple):
    """The complete members of a JSON object whose text may be truncated.

    `members`: name and JSON text of each. `open`: the name of the member in which the text ends, if it is readable.
    `whole`: the text contains the whole object.
    """

    members: list[tuple[str, str]]
    open: str | None
    whole: bool


def size(text: str) -> int:
    """Bytes of `text` in UTF-8. A lone surrogate counts as its replacement character."""
    return len(text.encode("utf-8", "replace"))


def member_size(text: str) -> int:
    """Bytes of a member's JSON text, without the quotes of a string."""
    return size(text) - 2 * text.startswith('"')


def cut_text(text: str, limit: int, full: int | None = None) -> tuple[str, int | None]:
    """Cut `text` to at most `limit` bytes. Returns the text, and its full size if it was cut, else None.

    `full`: the full size, if the caller knows it.
    """
    if full is None:
        full = len(text) if len(text) * 4 <= limit else size(text)
    if full <= limit:
        return text, None
    return text[:limit].encode("utf-8", "replace")[:limit].decode("utf-8", "ignore"), full


def scan(text: str) -> Prefix | None:
    """Parse the beginning of a JSON object. Returns None if `text` does not start with one."""
    at = _after_space(text, 0)
    if text[at : at + 1] != "{":
        return None
    members: list[tuple[str, str]] = []
    at = _after_space(text, at + 1)
    name, follows = None, ","
    try:
        while follows == "," and text[at : at + 1] == '"':
            name = None
            name, at = _read_string(text, at + 1)
            at = _after_space(text, at)
            begin = _after_space(text, at + 1)
            if text[at : at + 1] != ":":
                break
            _, end = _DECODER.raw_decode(text, begin)
            # A number may continue after the end of the text: a value is complete only if a delimiter follows.
            at = _after_space(text, end)
            follows = text[at : at + 1]
            if follows not in (",", "}") or not follows:
                break
            members.append((name, text[begin:end]))
            name = None
            at = _after_space(text, at + 1)
    except (ValueError, RecursionError):
        return Prefix(members, name, whole=False)
    return Prefix(members, name, whole=follows == "}" or (not members and text[at : at + 1] == "}"))


def published_name(name: str) -> str:
    """Return the name under which a member of the source is published, so that none can pass for our `_cut`."""
    return f"_{name}" if name[:1] == "_" and _OURS.fullmatch(name) else name


def published_object(text: str | None) -> str | None:
    """Return the JSON text of an object with the `published_name` of each member, and any other text unchanged."""
    if not text or not _PERHAPS_OURS.search(text):
        return text
    try:
        value = parsed(text)
    except ValueError:
        return text
    if not isinstance(value, dict):
        return text
    published = {published_name(name): member for name, member in value.items()}
    return encoder.encode(published).decode() if published.keys() != value.keys() else text


def cut_object(
    members: Iterable[tuple[str, str]], missing: Mapping[str, int], keep: Sequence[str], limit: int, rest: int = 0
) -> str:
    """Encode an object with those `members` that together fit `limit` bytes, and its `_cut`.

    `missing`: the sizes of members that are not in `members`. `rest`: the total size of members without a known name.
    """
    known = [(name, text, size(name) + len(text.encode("utf-8", "replace"))) for name, text in members]
    named = {i for i, (name, text, _) in enumerate(known) if name in keep and len(text) <= MAX_KEPT}
    room = limit - sum(known[i][2] for i in named)
    chosen, cut = [], dict(missing)
    for i, (name, text, length) in enumerate(known):
        if i in named or length <= room:
            room -= 0 if i in named else length
            chosen.append(_member(name, text))
        else:
            cut[name] = member_size(text)
    largest = sorted(cut, key=lambda name: cut[name], reverse=True)
    listed = {name: cut[name] for name in largest if len(name) <= MAX_KEPT // 4}
    listed = dict(list(listed.items())[:MAX_NAMED])
    if rest := rest + sum(length for name, length in cut.items() if name not in listed):
        listed[REST] = listed.get(REST, 0) + rest
    if listed:
        chosen.append(f'"{CUT}":{json.dumps(listed, ensure_ascii=False)}')
    return "{" + ",".join(chosen) + "}"


def _member(name: str, text: str) -> str:
    return f"{json.dumps(name, ensure_ascii=False)}:{text}"


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found is not None else at
