"""The step, the text and the fingerprint of a failure, on texts and jobs whose truth is known."""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.failures.failure import DIGITS, Failure, failure, fingerprint
from correlator.failures.telling import MAX_SHOWN, excerpt
from correlator.failures.template import template
from correlator.model.rows import StepRecord
from tests.support.paths import DATA
from tests.support.yardstick import MOST_ROUNDS

HOSTILE_WITHIN = 0.005
"""Seconds of the processor for one text."""

HOSTILE = {
    "digits": "1" * 65_536,
    "quotes": "\"'‘" * 20_000,
    "brackets": "([{" * 20_000,
    "colons": "a: " * 20_000,
    "lines": "error: x\n" * 8_000,
    "dots": "a." * 30_000,
    "amounts": "1m" * 30_000,
    "right to left": "\u202e\u0627" * 30_000,
    "lone surrogates": "\ud800" * 30_000,
    "zeros": "\0" * 60_000,
    "formats": "%!d(MISSING)" * 6_000,
    "percent": "%" * 60_000,
    "IDs": "a1 " * 20_000,
    "URLs": "a://" * 15_000,
    "addresses": "1.1.1.1" * 9_000,
    "masks": "<a1><" * 10_000,
}


def rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def longest_first(names: Iterable[str]) -> list[str]:
    return sorted((name for name in names if len(name) > 2), key=len, reverse=True)


def pairs(counts: Iterable[int]) -> int:
    return sum(n * (n - 1) // 2 for n in counts)


@pytest.mark.parametrize("of", ["texts", "chains"])
def test_equal_failures_have_one_fingerprint_and_different_ones_have_others(of):
    found = [
        (row["label"], fingerprint(row["text"], None, longest_first(row["metadata"].values()))[0])
        for row in rows("failure_texts.jsonl.gz")
        if row["set"] == of
    ]
    both = pairs(Counter(found).values())
    precision = both / pairs(Counter(made for _, made in found).values())
    recall = both / pairs(Counter(label for label, _ in found).values())
    assert (precision >= 0.99, recall >= 0.95) == (True, True), f"{precision=} {recall=}"


def of_job(job: dict[str, Any]) -> Failure:
    return failure(job["error"], [StepRecord(*step) for step in job["steps"]], longest_first(job["names"]))


def test_every_step_that_is_named_ended_its_job_and_none_is_where_none_did():
    jobs = rows("failed_jobs.jsonl.gz")
    wrong = [(job["label"], job["step"], made) for job in jobs if (made := of_job(job)).step != job["step"]]
    assert wrong == []
    assert {"stated", "apart"} <= {of_job(job).certainty for job in jobs}


def step(number: int, status: str, error: str | None = None) -> StepRecord:
    return StepRecord(number, f"step-{number}", number, status, number * 10, number * 10 + 5, error)


@pytest.mark.parametrize(
    ("error", "steps", "certainty", "named", "text"),
    [
        ("phase: disk is full", [step(1, "failed", "disk is full")], "stated", "step-1", "disk is full"),
        (
            "usage is 95%!f(MISSING)ull",
            [step(1, "failed", "usage is 95% full")],
            "stated",
            "step-1",
            "usage is 95% full",
        ),
        (None, [step(1, "failed", "disk is full")], "inferred", "step-1", "disk is full"),
        ("out of memory today", [step(1, "failed", "disk is full")], "apart", None, "out of memory today"),
        (None, [step(1, "failed", "disk is full"), step(2, "completed")], "none", None, ""),
        ("", [], "none", None, ""),
        ("job: EOF", [step(1, "failed", "EOF"), step(2, "completed")], "inferred", "step-1", "EOF"),
        (
            "job: it broke again",
            [step(1, "failed", "it broke again"), step(2, "completed")],
            "stated",
            "step-1",
            "it broke again",
        ),
    ],
)
def test_certainty_says_how_the_step_is_known(error, steps, certainty, named, text):
    found = failure(error, steps, ())
    assert (found.certainty, found.step, found.text) == (certainty, named, text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a: b: failed to open the disk", "failed to open the disk"),
        ("VirtIO injection failed: exit status 1", "VirtIO injection failed: exit status 1"),
        (
            "failed to dial the server now: connect: connection refused",
            "failed to dial the server now: connect: connection refused",
        ),
        ("java.lang.A: x\n\tat b.C(D.java:1)\nCaused by: java.io.E: the disk is full\n\tat f", "the disk is full"),
        ('Traceback (most recent call last):\n  File "x", line 1\nValueError: no such disk here', "no such disk here"),
        ("x" * 300, "x" * (MAX_SHOWN - 1) + "…"),
    ],
)
def test_the_text_is_the_part_of_the_error_that_says_it(text, shown):
    assert excerpt(text) == shown


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("connect to a.example:902 failed", "connect to a.example:443 failed"),
        ("write failed: errno 28", "write failed: errno 5"),
        ("the API returned status 404", "the API returned status 409"),
        ("it ended: exit status 1", "it ended: exit status 137"),
        ("Error 1045 (28000): Access denied", "Error 1142 (42000): Access denied"),
        ("cannot attach the disk", "cannot detach the disk"),
        ("no such column 'backup_id'", "no such column 'restore_id'"),
        ("cannot read a.qcow2", "cannot read a.vmdk"),
    ],
)
def test_a_code_a_port_or_a_word_tells_two_failures_apart(one, other):
    assert template(one) != template(other)


@pytest.mark.parametrize("step_name", ["one", "other"])
def test_the_step_counts_only_where_the_text_says_nothing_of_the_place(step_name):
    fixed = fingerprint("the disk is full now", "one", ())[0]
    assert fingerprint("the disk is full now", step_name, ())[0] == fixed
    assert (fingerprint("EOF", step_name, ())[0] == fingerprint("EOF", "one", ())[0]) is (step_name == "one")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_costs_less_than_5_ms(name):
    text, steps = HOSTILE[name], [step(1, "failed", HOSTILE[name][:4000])]
    took: list[float] = []
    while len(took) < MOST_ROUNDS and min(took, default=HOSTILE_WITHIN) >= HOSTILE_WITHIN:
        began = time.thread_time()
        failure(text, steps, ["x" * n for n in range(40, 3, -1)])
        took.append(time.thread_time() - began)
    assert min(took) < HOSTILE_WITHIN


@given(st.text(max_size=300), st.lists(st.text(min_size=3, max_size=8), max_size=3))
def test_any_text_has_a_fingerprint_and_a_short_excerpt(text, names):
    made, _ = fingerprint(text, None, names)
    assert len(made) == DIGITS
    assert len(excerpt(text)) <= MAX_SHOWN
    assert fingerprint(text, None, names)[0] == made
