"""What is published in place of a text that is too large, from text alone."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.jobs import fold, joblog
from correlator.jobs.sizes import (
    CUT,
    MAX_NAMED,
    REST,
    cut_object,
    cut_text,
    published_object,
    scan,
    size,
)
from correlator.model.facts import Job, Reading
from correlator.model.published import PublishedJob
from correlator.model.rows import JobRecord, LogRow, StepRecord
from tests.support.documents import document_of
from tests.support.there import there

KEEP = ("external_job_id", "vm_name")

texts = st.text(max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, values, max_size=5)


def cut(value: Mapping[str, object], limit: int) -> dict[str, object]:
    found = there(scan(json.dumps(value)))
    assert found.whole
    made: dict[str, object] = json.loads(cut_object(found.members, {}, KEEP, limit))
    return made


@given(objects, st.booleans())
def test_every_member_of_an_object_is_found_as_it_is_written(value, spaced):
    text = json.dumps(value, indent=1 if spaced else None)
    found = there(scan(text))
    assert found.whole
    assert {name: json.loads(member) for name, member in found.members} == value


@given(objects, st.data())
def test_of_a_part_of_the_text_only_whole_members_are_found(value, data):
    text = json.dumps(value)
    part = text[: data.draw(st.integers(1, len(text) - 1))]
    found = there(scan(part))
    assert not found.whole
    for name, member in found.members:
        assert json.loads(member) == value[name]


def test_the_value_of_a_member_that_the_text_ends_in_may_be_a_number():
    assert scan('{"a": 1, "b": 12') == ([("a", "1")], "b", False)


@given(objects, st.integers(1, 200))
def test_a_cut_object_has_its_small_members_and_the_sizes_of_the_others(value, limit):
    value.pop(CUT, None)
    made = cut(value, limit)
    missing = made.pop(CUT, {})
    assert made == {name: value[name] for name in made}
    assert isinstance(missing, dict)
    assert set(value) - set(made) == set(missing)
    for name, full in missing.items():
        assert full == size(json.dumps(value[name])) - 2 * isinstance(value[name], str)


@pytest.mark.parametrize("written", ['"_cut"', r'"\u005fcut"', r'"_\u0063u\u0074"'])
def test_no_member_of_the_source_passes_for_the_sizes_of_what_was_cut(written):
    text = f'{{"vm_name": "a", {written}: {{"blob": 1}}, "__cut": "text", "n": {{"_cut": 1e400}}}}'
    assert published_object(text) == '{"vm_name":"a","__cut":{"blob":1},"___cut":"text","n":{"_cut":"1e400"}}'


@pytest.mark.parametrize("text", [None, "", '{"n": {"_cut": 1}}', '{"cut": 1, "a_cut": 2}', '["_cut"]', '{"_cut": 1'])
def test_other_texts_of_the_source_are_published_unchanged(text):
    assert published_object(text) is text


def test_what_a_cut_may_not_lose_is_kept_though_it_comes_last():
    value = {f"key{i}": "x" * 50 for i in range(100)} | {"external_job_id": "g" * 200, "vm_name": "web-01"}
    made = cut(value, 500)
    assert (made["external_job_id"], made["vm_name"]) == ("g" * 200, "web-01")
    del made[CUT]
    assert size(json.dumps(made)) < 550


def test_a_long_name_is_not_among_those_that_are_missing():
    assert cut({"n" * 300: "x" * 1_000}, 500) == {CUT: {REST: 1_000}}


def test_an_object_of_many_members_names_few_of_those_that_are_missing():
    value = {f"key{i:06}": "v" * 150 for i in range(20_000)}
    made = cut(value, 1_000)
    missing = made[CUT]
    assert isinstance(missing, dict)
    assert len(missing) == MAX_NAMED + 1
    assert sum(missing.values()) > 20_000 * 150 - 2_000
    assert size(json.dumps(made)) < 1_000 + MAX_NAMED * 30
    assert missing[REST] > 0


@given(st.text(), st.integers(0, 40))
def test_a_cut_text_is_a_beginning_in_so_many_bytes(text, limit):
    short, full = cut_text(text, limit)
    assert size(short) <= limit or full is None
    assert full == (size(text) if size(text) > limit else None)
    if full is None:
        assert short == text


def test_an_error_of_the_log_is_cut_and_says_how_long_it_was():
    attrs = json.dumps({"job_id": "u1", "error": "e" * 100_000})
    entry, _ = joblog.read(LogRow(1, "Job failed", 0, "ERROR", "u1", attrs=attrs), 1, max_error=1_000)
    assert (entry.error, entry.error_cut) == ("e" * 1_000, 100_000)


def test_what_is_read_again_and_is_equal_is_held_once():
    def reading(observed_at: int, status: str = "running") -> Reading:
        steps = tuple(
            StepRecord(i, error_message="".join(["e"] * 500), status=s) for i, s in ((1, "failed"), (2, status))
        )
        record = JobRecord("u1", status=status, metadata="".join(['{"a": "', "x" * 9_000, '"}']))
        return Reading("u1", observed_at, record, steps)

    first = fold.fold(Job("u1"), reading(1))
    again = fold.fold(first, reading(2))
    assert again.reading is not None
    assert first.reading is not None
    assert again.reading.observed_at == 2
    assert again.reading.record is first.reading.record
    assert again.reading.steps is first.reading.steps
    changed = fold.fold(again, reading(3, "completed"))
    assert changed.reading is not None
    assert changed.reading.record is not None
    assert again.reading.record is not None
    assert changed.reading.record.status == "completed"
    assert changed.reading.record.metadata is again.reading.record.metadata
    assert (changed.reading.steps or ())[0] is (again.reading.steps or ())[0]


def test_a_cut_error_of_the_log_or_of_the_table_has_its_size_in_the_document():
    failed = LogRow(1, "Job failed", 5, "ERROR", "u1", attrs=json.dumps({"error": "e" * 100_000}))
    logged = fold.fold(Job("u1"), joblog.read(failed, 2)[0])
    document = document_of(PublishedJob(fold.view(logged), 1, 5))
    assert (len(document["error"] or ""), document["error_cut"]) == (8_000, 100_000)
    read = Reading("u1", 3, JobRecord("u1", status="failed", error_message="boo", error_cut=9_000))
    document = document_of(PublishedJob(fold.view(fold.fold(logged, read)), 1, 5))
    assert (document["error"], document["error_cut"]) == ("boo", 9_000)
    whole = Reading("u1", 4, JobRecord("u1", status="failed", error_message="boo"))
    assert "error_cut" not in document_of(PublishedJob(fold.view(fold.fold(logged, whole)), 1, 5))
