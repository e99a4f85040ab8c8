"""Patterns of an operator, in which `*` stands for a part of a word: names that no mask knows, and known causes.

A pattern is found anywhere in a text, in any case, where its words are whole words. Each `*` takes the shortest part of
a word that fits, and nothing is tried twice: a search takes time in proportion to the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_CHAR = r"[\w.@-]"


def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression without backtracking."""
    return re.compile(r"\s+".join(map(_word, pattern.split())), re.IGNORECASE)


def _word(word: str) -> str:
    """A word that no other character of a word stands beside."""
    first, *rest = word.split("*")
    made = re.escape(first)
    for piece in rest[:-1]:
        made += f"(?>{_CHAR}*?{re.escape(piece)})" if piece else ""
    if rest:
        # The end of a word is a letter, a digit or `_`: the full stop of a sentence is no part of it.
        made += f"(?>(?:{_CHAR}*\\w)?)" + (f"(?<={re.escape(rest[-1])})" if rest[-1] else "")
    before = rf"(?<!{_CHAR})" if re.match(rf"{_CHAR}|\*", word) else ""
    after = r"(?!\w)" if re.search(r"[\w*]$", word) else ""
    return before + made + after


class Masks:
    """What stands in a template for names that only an operator knows. `rules`: patterns, and what stands for each."""

    def __init__(self, rules: Sequence[tuple[str, str]] = ()) -> None:
        self._rules = [(compiled(pattern), f"<{name}>") for pattern, name in rules]

    def applied(self, text: str) -> str:
        for pattern, mask in self._rules:
            text = pattern.sub(mask, text)
        return text


NO_MASKS = Masks()
