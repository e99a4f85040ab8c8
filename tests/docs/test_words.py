"""The spelling list finds its words in text and in names, and each exception is still needed."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import pytest

from tests.docs.words import ALLOWED, TERMS, files, findings

PLANTED = [
    "What is told to a client",
    "await self._tell_all()",
    "class LandmarksOfLog:",
    "Every connection that hears of it",
    "owed_since: int",
    "the next look at the table",
    "def waitsForWho():",
    "10,000 readers",
    "doctor mends it",
    "this.ring.push(change)",
    "bell.rings",
    "tried both ways",
    "tick += 1",
    "stage.row()",
    "DECK = ()",
    "weather = 3",
    "SIGNS = {}",
    "an open Door",
    "census.begin()",
    "tied: bool",
    "seconds, for so many times",
    "class Shown:",
    "def take_next(self):",
    "outbox.take()",
]


def test_each_word_of_the_list_is_found_in_text_and_in_names_and_plain_english_is_not():
    found = {text: {f.instead for f in findings("correlator/planted.py", text, allowed=())} for text in PLANTED}
    assert all(found.values()), found
    assert set.union(*found.values()) == {term.instead for term in TERMS}
    for text in ("look_up(id)", "lookup", "a ring buffer", "resume_ring.py", "the doorbell", "takes 3 s"):
        assert not list(findings("correlator/planted.py", text, allowed=())), text


def test_a_finding_names_the_place_the_word_and_what_to_write():
    word, name = findings("docs/0007-owed-events.md", "One line.\nIt is told.", allowed=())
    assert (name.line, name.word) == (0, "owed")
    assert str(word).endswith(".md:2: “told”: write send, publish, report, notify or print")


def test_the_repository_has_no_word_of_the_list():
    found = [str(finding) for path, text in files() for finding in findings(path, text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("exception", ALLOWED, ids=lambda exception: exception.reason)
def test_each_exception_is_still_needed(exception):
    others = [each for each in ALLOWED if each is not exception]
    pattern = re.compile(exception.pattern, re.MULTILINE)
    where = [(path, text) for path, text in files() if fnmatch(path, exception.paths) and pattern.search(text)]
    assert any(True for path, text in where for _ in findings(path, text, others))
