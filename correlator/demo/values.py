"""How JobLog stores values in columns, and the log row that they make.

Invariant: the text equals, byte for byte, what the appliance's Go code and its MariaDB would store.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from enum import StrEnum


class Level(StrEnum):
    """The levels of `log_events.level`."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"

    @property
    def rank(self) -> int:
        """The position in the order of severity; DEBUG is 0."""
        return list(Level).index(self)


@dataclass(frozen=True, slots=True)
class LogRow:
    """A row of `log_events` that has no id yet. It gets its id with the batch that it is written in."""

    level: Level
    message: str
    attrs: str | None
    ts: str
    job_id: str | None = None
    step_id: int | None = None
    external_job_id: str | None = None


# The characters that Go's encoding/json escapes inside strings although JSON does not require it.
_GO_ESCAPES = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


def go_json(attrs: Mapping[str, object]) -> str:
    """Return `attrs` as Go's encoding/json writes a map: sorted keys, no spaces, `<`, `>` and `&` as escapes."""
    # None of these characters is part of JSON's syntax, so the finished text can be translated.
    return json.dumps(attrs, sort_keys=True, separators=(",", ":"), ensure_ascii=False).translate(_GO_ESCAPES)


def timestamp(at: datetime) -> str:
    """Return an aware time as a TIMESTAMP column holds it: UTC, truncated to whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def local_datetime(at: datetime, zone: tzinfo) -> str:
    """Return an aware time as a DATETIME(6) column holds it: the appliance's local time, without a zone."""
    return at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S.%f")
