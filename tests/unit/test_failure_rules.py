"""What an operator knows of failures: `[[failures.known]]`, `[[failures.same]]`, and where it shows."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.config.failures import PATTERN
from correlator.config.webhooks import Template, Webhook
from correlator.failures.failure import fingerprint
from correlator.failures.known import KnownFailures
from correlator.failures.patterns import Masks, compiled
from correlator.model.document import Failure
from correlator.model.facts import Kind, Status
from correlator.model.published import Event, JobView, PublishedJob
from correlator.model.replies import OperatorNote
from correlator.sinks.webhooks import Bodies, matches
from tests.support.there import there

NOTE = OperatorNote("VMware Tools are missing.", "https://wiki.example/tools")
EVENT = Event(Kind.JOB_FAILED, "j", 1, 2)


def table(kind: str, **values: object) -> str:
    return f"[[failures.{kind}]]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items()) + "\n"


def failed(state: str = "new", text: str = "tools not found") -> PublishedJob:
    view = JobView("j", Status.FAILED, operation="live")
    return PublishedJob(view, 1, 1, failure=Failure("0123456789ab", "copy", "stated", text, state))  # type: ignore[arg-type]


# -- patterns


@pytest.mark.parametrize(
    ("pattern", "text", "masked"),
    [
        ("rack-*", "copy to rack-17 failed", "copy to <x> failed"),
        ("rack-*", "copy to (Rack-17). Again", "copy to (<x>). Again"),
        ("rack-*", "track-17", "track-17"),
        ("*-blue", "node-0042-blue, node-0043-blue.", "<x>, <x>."),
        ("pool * full", "the pool tank7 full here", "the <x> here"),
        ("a*b*c", "aXXbYYc aXXbYYcd", "<x> aXXbYYcd"),
        ("[vol]*", "on [vol]7: full", "on <x>: full"),
    ],
)
def test_a_star_is_a_part_of_a_word_and_whole_words_are_found(pattern, text, masked):
    assert Masks([(pattern, "x")]).applied(text) == masked


words = st.text("ab-. 1", min_size=1, max_size=30)


@given(words, words)
def test_a_pattern_without_a_star_is_found_as_it_is_written(before, after):
    assert compiled("rack full").search(f"{before} RACK  full {after}") is not None


def test_the_time_of_a_search_grows_with_the_text_only():
    masks = Masks([("*a*a*a*a*a*a*a*b", "x")] * 50)
    for text in ("a" * 1_024, "a." * 512, "a-a " * 256, "aab0" * 256):
        began = time.process_time()
        masks.applied(text)
        assert time.process_time() - began < 0.1


def test_names_that_an_operator_knows_do_not_tell_failures_apart():
    masks = Masks([("bay *", "bay")])
    texts = [f"bay {bay}: disk is gone" for bay in ("north", "south", "annex")]
    assert len({fingerprint(text, None, ()) for text in texts}) == 3
    assert {fingerprint(text, None, (), masks)[1] for text in texts} == {"<bay>: disk is gone"}


# -- notes


def test_the_first_note_that_fits_is_shown_and_a_fingerprint_goes_before_patterns():
    other = OperatorNote("other", None)
    known = KnownFailures([("", "tools *", other), ("0123456789ab", "", NOTE), ("0123456789ab", "", other)])
    assert known.note("0123456789ab", "tools not found") == NOTE
    assert known.note("ba9876543210", "Tools not found") == other
    assert known.note(None, "toolset") is None


def test_a_webhook_carries_the_note():
    bodies = Bodies("i", None, KnownFailures([("", "tools", NOTE)]))
    event = json.loads(there(bodies.make(EVENT, failed(), None)))
    assert (event["note"], event["notelink"]) == (NOTE.text, NOTE.link)
    template = Template(
        '["{{note.text|none}}", "{{note.link|none}}", "{{job.failure.text}}", "{{job.failure.fingerprint}}"]'
    )
    of_it = ["tools not found", "0123456789ab"]
    assert json.loads(there(bodies.make(EVENT, failed(), template))) == [NOTE.text, NOTE.link, *of_it]
    bodies = Bodies("i", None)
    assert json.loads(there(bodies.make(EVENT, failed(), template))) == ["none", "none", *of_it]
    assert "note" not in json.loads(there(bodies.make(EVENT, failed(), None)))


@pytest.mark.parametrize("state", ["new", "known", "unknown"])
def test_a_webhook_may_be_for_failures_of_some_states(state):
    for wanted in ((), ("new",), ("new", "unknown")):
        webhook = Webhook(name="w", failures=wanted)
        assert matches(webhook, EVENT, failed(state)) == (not wanted or state in wanted)
        assert matches(webhook, EVENT, PublishedJob(JobView("j", Status.COMPLETED), 1, 1)) == (not wanted)
        assert matches(webhook, EVENT, None) == (not wanted)


# -- the configuration


def test_each_table_is_a_note_or_a_mask(write):
    config = write(
        table("known", fingerprint="0123456789ab", text=NOTE.text, link=NOTE.link)
        + table("known", pattern="vmware tools", text="see")
        + table("same", pattern="rack-*", name="rack")
    )
    plain = OperatorNote("see", None)
    assert config.failures.notes == [("0123456789ab", "", NOTE), ("", "vmware tools", plain)]
    assert config.failures.masks == [("rack-*", "rack")]


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        (
            table("known", text="x"),
            'failures.known[1]: expected a fingerprint or a pattern, e.g. pattern = "VMware Tools"',
        ),
        (table("known", pattern="tools"), "failures.known[1].text: expected what people read beside the failure"),
        (
            table("known", fingerprint="XYZ", text="x"),
            'failures.known[1].fingerprint = "XYZ": expected 12 hex digits, as in `failure.fingerprint` of a job',
        ),
        (
            table("known", pattern="tools", text="x", link="javascript:alert(1)"),
            'failures.known[1].link = "javascript:alert(1)": expected an address, e.g. https://wiki.example/vmware-tools',
        ),
        (
            table("same", pattern="**", name="x"),
            f'failures.same[1].pattern = "**": expected {PATTERN}',
        ),
        (table("same", pattern="rack-*"), "failures.same[1].name: expected a value, e.g. rack"),
        (
            "".join(table("same", pattern=f"rack{n}", name="x") for n in range(51)),
            "failures.same: expected 50 tables at most, not 51",
        ),
    ],
)
def test_a_problem_names_the_table_and_what_would_be_right(problems, toml, line):
    assert problems(toml) == (line,)
