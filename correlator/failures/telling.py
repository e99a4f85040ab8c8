"""The part of an error that says what failed: without the stack trace, and without the errors that wrap it."""

from __future__ import annotations

import re

MAX_SHOWN = 200
"""Characters of an error that are shown in one sentence."""

GENERIC = re.compile(
    r"exit (?:status|code) -?\d+|(?:unexpected )?eof|signal: \w+|killed|context (?:deadline exceeded|canceled)"
    r"|(?:i/o )?time(?:d )?out|broken pipe|connection (?:refused|reset(?: by peer)?)|no such file or directory"
    r"|permission denied|(?:record )?not found|operation (?:failed|was cancelled)|unknown error|failed|error|cancell?ed"
    r"|input/output error|internal server error|<[a-z.]+>|",
    re.IGNORECASE,
)
"""Texts that say nothing of the place where they arose."""

_CAUSED_BY = re.compile(r"^\s*caused by:\s*", re.IGNORECASE)
_TRACEBACK = "Traceback (most recent call last)"
_SAYS = re.compile(r"\b(?:error|fatal|panic)\b\s*[:\]]", re.IGNORECASE)
_SAYS_WEAKLY = re.compile(
    r"\b(?:error|fatal|panic|cannot|could not|failed|failure|unable|denied|refused|no space|not found|no such"
    r"|invalid)\b",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(
    r"if reporting bugs|see the log|\busage:|\bwarning:|\[\s*\d+\.\d+s?\] (?:opening|inspecting|creating|copying)"
    r"|^\s+at |^goroutine \d+|^original error message",
    re.IGNORECASE,
)


def telling_line(text: str) -> tuple[str, str]:
    """The first line of `text`, "" if that is the telling one, and the line that says what failed.

    Of a stack trace it is the last "Caused by", or what a traceback ends with; of a tool's output the first line of an
    error, or the last line.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        return "", text.strip()
    line = _telling(lines)
    head = lines[0].strip()
    return ("", head) if line is lines[0] else (head, _CAUSED_BY.sub("", line).strip())


def _telling(lines: list[str]) -> str:
    caused = [line for line in lines if _CAUSED_BY.match(line)]
    if caused:
        return caused[-1]
    for at, line in enumerate(lines):
        if _TRACEBACK in line:
            return next((one for one in lines[at + 1 :] if not one[:1].isspace()), line)
    told = [line for line in lines if not _PREAMBLE.search(line)]
    for pattern in (_SAYS, _SAYS_WEAKLY):
        for line in told:
            if pattern.search(line):
                return line
    return (told or lines)[-1]


def parts(text: str) -> list[str]:
    """The parts of `a: b: c`, as Go wraps errors, outermost first. A colon in quotes or brackets separates nothing."""
    found, depth, start, quote = [], 0, 0, False
    for at, sign in enumerate(text):
        if sign == '"':
            quote = not quote
        elif quote:
            continue
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth = max(0, depth - 1)
        elif sign == ":" and depth == 0 and text[at + 1 : at + 2].isspace():
            found.append(text[start:at].strip())
            start = at + 1
    return [part for part in [*found, text[start:].strip()] if part]


def _is_telling(part: str) -> bool:
    return len(part.split()) > 2 and not part.startswith("{") and not GENERIC.fullmatch(part)


def excerpt(text: str) -> str:
    """The shortest end of the chain in `text` that says what failed, in at most `MAX_SHOWN` characters."""
    head, line = telling_line(text)
    chain = parts(line) or [line]
    if head and not any(map(_is_telling, chain)):
        chain = [*parts(head), *chain]
    begin = len(chain) - 1
    while begin > 0 and not _is_telling(chain[begin]):
        begin -= 1
    shown = " ".join(": ".join(chain[begin:]).split()).rstrip(".")
    return shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 1].rstrip() + "…"
