"""Reads JSON as databases accept it, in a time that its size bounds.

Problem. MariaDB stores numbers that no double holds, and a table without its check halves of characters. The parser
refuses a text with one of them, and a job would lose all its other members. A parser that accepts them takes thirty
times as long, so whoever may write rows could stop the event loop with them.

Model. The parser says where it stopped. A number there becomes its text, and it reads again, at most `MOST` times.
Halves of characters become U+FFFD, all at once.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import orjson

MOST: Final = 8
"""How often one text is read. One with more numbers that no double holds is refused."""

DAMAGED: Final = "\ufffd"
"""Replaces what was no character."""

_NUMBER = re.compile(r"-?\d++(?:\.\d++)?+(?:[eE][+-]?\d++)?+")
_HALVES = re.compile("[\ud800-\udfff]")
_HIGH, _LOW = r"\\u[dD][89aAbB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPED_HALVES = re.compile(rf"(?<!{_HIGH}){_LOW}|{_HIGH}(?!{_LOW})")
_BACKSLASH = "\udfff"
"""Stands for an escaped backslash where no half of a character is left, so that each other one begins an escape."""


def parsed(text: str) -> Any:
    """Parse JSON, with what MariaDB accepts and JSON documents cannot carry replaced.

    Raises:
        ValueError: `text` is not JSON, or is nested too deep.
    """
    whole = False
    for _ in range(MOST - 1):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            number, at = _NUMBER.match(text, error.pos), error.pos
            if number is not None and math.isinf(float(number[0])):
                text = f'{text[:at]}"{number[0]}"{text[number.end() :]}'
            elif not whole:
                text, whole = _without_halves(text), True
            else:
                raise
    return orjson.loads(text)


def _without_halves(text: str) -> str:
    text = _HALVES.sub(DAMAGED, text).replace(r"\\", _BACKSLASH)
    return _ESCAPED_HALVES.sub(DAMAGED, text).replace(_BACKSLASH, r"\\")
