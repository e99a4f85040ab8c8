"""How JobLog's values look in columns, and the log row they make up.

Always: the same value gives the same text, byte for byte what the appliance's Go code and its MariaDB would store.
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
        """Where the level stands, 0 being the least."""
        return list(Level).index(self)


@dataclass(frozen=True, slots=True)
class LogRow:
    """A row of `log_events` before it has an id: that comes with the batch it is written in."""

    level: Level
    message: str
    attrs: str | None
    ts: str
    job_id: str | None = None
    step_id: int | None = None
    external_job_id: str | None = None


# What Go's encoding/json escapes inside strings although JSON does not ask for it.
_GO_ESCAPES = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


def go_json(attrs: Mapping[str, object]) -> str:
    """Return `attrs` as Go's encoding/json writes a map: sorted keys, no spaces, `<`, `>` and `&` as escapes."""
    # None of the escaped characters has a meaning in JSON's own syntax, so the finished text can be translated.
    return json.dumps(attrs, sort_keys=True, separators=(",", ":"), ensure_ascii=False).translate(_GO_ESCAPES)


def timestamp(at: datetime) -> str:
    """Return an aware time as a TIMESTAMP column holds it: UTC, cut to whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def local_datetime(at: datetime, zone: tzinfo) -> str:
    """Return an aware time as a DATETIME(6) column holds it: the appliance's local time, without a zone."""
    return at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S.%f")
