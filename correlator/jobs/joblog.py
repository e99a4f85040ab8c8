"""The parser of JobLog's log rows and metadata. No other file contains JobLog's messages.

No function raises. A row that cannot be parsed becomes a plain log line of the job that it names, if any, and the
reasons are returned so that the caller can count them. The rules were observed in JobLog's rows (docs/joblog.md).
So were the statuses of `failover_jobs`: each means a status of a job and a percentage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from msgspec.structs import replace

from correlator.jobs import sizes
from correlator.jobs.lenient_json import DAMAGED, parsed
from correlator.model.document import MAX_ID, MAX_STEP_ID
from correlator.model.facts import Attribution, Entry, Kind, Status
from correlator.model.rows import LEVELS, Level, LogRow

KIND_OF_MESSAGE: dict[str, Kind] = {
    "job started": Kind.JOB_STARTED,
    "job completed": Kind.JOB_COMPLETED,
    "job failed": Kind.JOB_FAILED,
    "job cancelled": Kind.JOB_CANCELLED,
    "step started": Kind.STEP_STARTED,
    "step completed": Kind.STEP_COMPLETED,
    "step failed": Kind.STEP_FAILED,
    "step skipped": Kind.STEP_SKIPPED,
}
"""The lifecycle messages. Their text is constant across versions of JobLog, their case is not."""

PROGRESS_MESSAGE = "job progress updated"

EXTERNAL_ID_KEYS: tuple[str, ...] = ("external_job_id", "failover_job_id", "gui_job_id")
"""The keys of attrs and metadata in which JobLog's callers store the IDs that a GUI uses."""

MAX_ATTRS = 1 << 20
"""Longer attrs, in characters, are not parsed. JobLog itself writes far shorter ones."""

TOO_LONG = "!"
"""A source passes this in place of longer attrs. It is not valid JSON, so it cannot be a value of attrs. An object with
those of their members that name the job may follow."""

MAX_CARRIED = 1 << 16
"""Longer attrs, in characters, are not part of a streamed log line. They are read from the database on request."""

_LEVELS: dict[str, Level] = {**{level: level for level in LEVELS}, "WARNING": "WARN"}


def read(
    row: LogRow, observed_at: int, id_keys: Sequence[str] = EXTERNAL_ID_KEYS, max_error: int = sizes.MAX_ERROR
) -> tuple[Entry, tuple[str, ...]]:
    """Parse `row`. Returns its entry, and the reasons why parts of it could not be parsed (usually none).

    Job ID and step ID are those of the columns if they are set, else those of attrs. `observed_at`: see `Entry`.
    An error is cut to `max_error` bytes.
    """
    bad: list[str] = []
    value = _value(row.attrs, bad)
    attrs = value if isinstance(value, dict) else _names_of_too_long(row.attrs)
    carried = value if row.attrs is not None and len(row.attrs) <= MAX_CARRIED else None
    job_id, step_id = row.job_id or None, row.step_id
    by: Attribution = "none" if job_id is None else "column"
    column = _identifier(row.external_job_id, "external_job_id", bad) if row.external_job_id else None
    external: tuple[str, ...] = (column,) if column else ()
    if attrs:
        if job_id is None and "job_id" in attrs:
            job_id = _identifier(attrs["job_id"], "job_id", bad)
            by = "none" if job_id is None else "attrs"
        if step_id is None and "step_id" in attrs:
            step_id = _step_id(attrs["step_id"], bad)
        for key in id_keys:
            if key in attrs and (found := _identifier(attrs[key], key, bad)) and found not in external:
                external = (*external, found)
    level = _LEVELS.get(row.level) or _LEVELS.get(row.level.strip().upper(), "INFO")
    message = row.message.lower() if len(row.message) <= len(PROGRESS_MESSAGE) else ""
    kind = KIND_OF_MESSAGE.get(message)
    if kind is not None and (job_id is None or (kind.of_step and step_id is None)):
        bad.append("lifecycle_without_id")
        kind = None
    percent = _percent(attrs.get("percent"), bad) if message == PROGRESS_MESSAGE else None
    entry = Entry(
        row.id,
        row.ts,
        level,
        row.message,
        observed_at,
        job_id,
        step_id,
        external,
        percent=percent,
        by=by,
        attrs=carried,
    )
    if kind is not None:
        error = text_or_json(attrs.get("error"))
        error, error_cut = sizes.cut_text(error, max_error) if error is not None else (None, None)
        entry = replace(
            entry,
            step_id=step_id if kind.of_step else None,
            kind=kind,
            error=error,
            error_cut=error_cut,
            step_name=_text(attrs.get("step_name")),
            sequence=_small(attrs.get("sequence")),
            job_type=_text(attrs.get("job_type")),
            operation=_text(attrs.get("operation")),
            owner=_text(attrs.get("owner")),
            parent_job_id=_text(attrs.get("parent_job_id")),
        )
    return entry, tuple(bad)


def size(entry: Entry) -> int:
    """A lower bound of the bytes of text in `entry`."""
    try:
        return len(entry.message) + len(orjson.dumps(entry.attrs))
    except TypeError:  # nested too deep, or not valid Unicode
        return len(entry.message) + MAX_CARRIED


def metadata_object(text: str | None) -> dict[str, Any] | None:
    """Parse the metadata of a record. Returns None if it is missing or not a JSON object."""
    if not text:
        return None
    try:
        value = parsed(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def external_ids(column: str | None, metadata: str | None, id_keys: Sequence[str] = EXTERNAL_ID_KEYS) -> list[str]:
    """The distinct external IDs of a record: the column's first, then those of metadata in the order of `id_keys`."""
    found = [column] if column and len(column) <= MAX_ID else []
    members = metadata_object(metadata)
    if members is not None:
        for key in id_keys:
            value = _identifier(members.get(key), key, [])
            if value is not None and value not in found:
                found.append(value)
    return found


def text_or_json(value: object) -> str | None:
    """Return a string unchanged, and any other value but null as JSON, since callers log errors of every type."""
    if value is None or isinstance(value, str):
        return value or None
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return "(nested too deep to be shown)"


def attrs_value(text: str | None) -> Any:
    """Parse attrs. Returns the text itself if it is not JSON, and None if there is none."""
    return _value(text, [])


def _value(text: str | None, bad: list[str]) -> Any:
    if not text:
        return None
    if text.startswith(TOO_LONG) or len(text) > MAX_ATTRS:
        bad.append("attrs_too_long")
        return None
    try:
        value = parsed(text)
    except ValueError:
        bad.append("attrs_not_json")
        return text
    if not isinstance(value, dict) and value is not None:
        bad.append("attrs_not_object")
    return value


def _names_of_too_long(text: str | None) -> dict[str, Any]:
    return metadata_object(text.removeprefix(TOO_LONG)) or {} if text and text.startswith(TOO_LONG) else {}


def _identifier(value: object, key: str, bad: list[str]) -> str | None:
    if value is None or value == "":
        return None
    # A text with what was no character is no ID, nor is one that is too long: two IDs might be equal.
    if isinstance(value, str) and len(value) <= MAX_ID and DAMAGED not in value:
        return value
    bad.append(f"{key}_invalid")
    return None


def is_count(text: str) -> bool:
    """True if `int` reads the text as a number from 0 to 10^19. `str.isdigit` also accepts what `int` refuses."""
    return text.isascii() and text.isdigit() and len(text) <= 19


def _step_id(value: object, bad: list[str]) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and is_count(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_STEP_ID:
        return value
    bad.append("step_id_invalid")
    return None


def _percent(value: object, bad: list[str]) -> int | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100:
        return int(value)
    bad.append("percent_invalid")
    return None


def _text(value: object) -> str:
    return value[:MAX_ID] if isinstance(value, str) else ""


def _small(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0


# -- statuses of `failover_jobs`


_LEGACY_MEANINGS = {
    "pending": (Status.PENDING, 0.0),
    "validating": (Status.RUNNING, 10.0),
    "snapshotting": (Status.RUNNING, 25.0),
    "creating_vm": (Status.RUNNING, 50.0),
    "switching_volume": (Status.RUNNING, 75.0),
    "powering_on": (Status.RUNNING, 90.0),
    "reverting": (Status.RUNNING, 50.0),
    "completed": (Status.COMPLETED, 100.0),
    "cleanup": (Status.COMPLETED, 100.0),
    "failed": (Status.FAILED, 0.0),
}

LEGACY_ACTIVE = tuple(text for text, (status, _) in _LEGACY_MEANINGS.items() if not status.ended)
LEGACY_ENDED = tuple(text for text, (status, _) in _LEGACY_MEANINGS.items() if status.ended)


def legacy_meaning(text: str) -> tuple[Status, float]:
    """The job's status and its percentage. Unknown statuses are running, at 50 percent, as in the appliance's API."""
    return _LEGACY_MEANINGS.get(text, (Status.RUNNING, 50.0))
