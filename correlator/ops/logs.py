"""Log formats: each record becomes one line on standard error.

The further lines of a traceback start with `| `. Control characters, including line ends, are escaped in every format,
so a text from the database or from a client cannot forge a line, a priority or a colour. Texts that are longer than
`MAX_TEXT` are cut: nothing else runs while a line is written. Fields that are passed as `extra={…}` follow the message
as key=value, or are members of the JSON object.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

# C0, DEL, C1; the line and paragraph separators and the directional overrides, which change how a line reads;
# lone surrogates, which cannot be encoded, and noncharacters.
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(chr(plane << 16 | end) for plane in range(17) for end in (0xFFFE, 0xFFFF))
_UNSAFE = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff{_NONCHARACTERS}]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_BARE = re.compile(r'[^\s"=]+')

MAX_TEXT = 8_192
"""Characters of a message, a field, or a line of a traceback."""

MAX_LINES = 500
"""Lines of a traceback."""


def configure(level: str, style: str, environ: Mapping[str, str], stream: TextIO | None = None) -> None:
    """Send every record of `level` ("debug" to "error") and above to `stream` (standard error), and nowhere else.

    `style` is text, json, journal or auto; auto is journal if the stream is the journal's own, else text.
    """
    stream = stream or sys.stderr
    output = logging.StreamHandler(stream)
    output.setFormatter(_formatter(style, environ, stream))
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(level.upper())
    logging.captureWarnings(True)


def escape(text: str) -> str:
    r"""`text` on one line and without control characters and noncharacters: `\n`, `\x1b`, `\u2028`."""
    return _UNSAFE.sub(lambda match: _SHORT.get(match[0]) or _code(match[0]), text)


class TextFormatter(logging.Formatter):
    """`2025-09-22T15:12:13.123456Z INFO correlator.pipeline.pipeline: caught up rows=812`."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n| ".join([f"{_timestamp(record)} {record.levelname} {_sentence(record)}", *_traceback(record)])


class JournalFormatter(logging.Formatter):
    """`<6>correlator.pipeline.pipeline: caught up rows=812`: the priority of sd-daemon(3); journald adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_priority(record.levelno)}>"
        return f"\n{prefix}| ".join([prefix + _sentence(record), *_traceback(record)])


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ts, level, logger, message, the extra fields, and `exception` with the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(record.getMessage()),
        }
        if traceback := _traceback(record):
            line["exception"] = "\n".join(traceback)
        for key, value in _extra(record).items():
            line.setdefault(key, _cut(value) if isinstance(value, str) else value)
        try:
            text = orjson.dumps(line, default=repr).decode()
        except TypeError:  # orjson rejects lone surrogates, integers over 64 bits, and keys that are not strings
            text = json.dumps(line, default=repr)
        return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _formatter(style: str, environ: Mapping[str, str], stream: TextIO) -> logging.Formatter:
    if style == "json":
        return JsonFormatter()
    if style == "journal" or (style == "auto" and _is_journal(environ, stream)):
        return JournalFormatter()
    return TextFormatter()


def _is_journal(environ: Mapping[str, str], stream: TextIO) -> bool:
    """True if `stream` is the one that $JOURNAL_STREAM names. A child process inherits the variable alone."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _code(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _timestamp(record: logging.LogRecord) -> str:
    return f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def _sentence(record: logging.LogRecord) -> str:
    fields = [f"{_value(key)}={_value(value)}" for key, value in _extra(record).items()]
    return " ".join([f"{escape(record.name)}: {escape(_cut(record.getMessage()))}", *fields])


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _value(value: object) -> str:
    text = _cut(str(value))
    if _BARE.fullmatch(text):
        return escape(text)
    return '"' + escape(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _traceback(record: logging.LogRecord) -> list[str]:
    if not record.exc_info:
        return []
    lines = logging.Formatter().formatException(record.exc_info).split("\n", MAX_LINES)
    return [escape(_cut(line)) for line in lines[:MAX_LINES]]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def _priority(level: int) -> int:
    """The syslog priority (RFC 5424, 6.2.1) of a level."""
    for least, priority in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return priority
    return 7
