"""The end that is shown of a running job settles: documents and words of the slow replay, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from correlator.terminal import formats
from tests.support import slow_replay
from tests.support.forecasts import BASE, SECOND, ended, job, learned, step_ended, step_started
from tests.support.replay import load
from tests.support.settled_ends import DisplayedEnd, Life, assert_ends_settle, in_documents, in_words, lasting, watched
from tests.support.slow_replay import SECONDS, SLOWER
from tests.support.virtual_replay import Sighting, replayed

WORDS = {"watch": formats.outlook, "jobs": formats.short_outlook}
"""The words for the time that is left, by the command that shows them."""

Replay = tuple[dict[str, Life], list[Sighting]]


@pytest.fixture(scope="module", params=[(0.0, True), (0.6, True), (0.5, False)])
def replay(request: pytest.FixtureRequest) -> Replay:
    """The tables are queried at different times after the log is flushed; and once without any row of the log."""
    phase, log = request.param
    silent = slow_replay.without_percent(load(), but_of="migration")
    past = slow_replay.past_runs(silent, SLOWER, copies=5)
    return replayed(slow_replay.until(silent, SECONDS), past, SLOWER, phase=phase, log=log)


def ends(seen: list[Sighting]) -> Iterator[tuple[str, DisplayedEnd]]:
    for at, document in seen:
        for job_id, end in in_documents([document]):
            yield job_id, end._replace(at=at)


def test_the_ends_of_documents_settle_while_the_recording_is_replayed(replay: Replay):
    lives, seen = replay
    assert_ends_settle(watched(lives, ends(seen)), at_least=len(lives))


def test_the_ends_of_documents_settle_by_the_times_at_which_they_were_made(replay: Replay):
    lives, seen = replay
    assert_ends_settle(watched(lives, lasting(lives, in_documents(one for _, one in seen))), at_least=len(lives))


@pytest.mark.parametrize("command", WORDS)
def test_the_words_of_a_terminal_settle_while_the_recording_is_replayed(replay: Replay, command: str):
    lives, seen = replay
    said = ((one["job_id"], in_words(at, WORDS[command](one, at, formats.utc_clock))) for at, one in seen)
    found = [(job_id, end) for job_id, end in said if end is not None]
    assert_ends_settle(watched(lives, found), at_least=len(lives))


def test_the_end_of_a_brief_job_stays_until_its_next_event_can_be_known():
    # In all runs a step begins as the one before it ends.
    runs = [ended(("copy", 8 + n % 9 / 3), ("attach", 5 + n % 7 / 3)) for n in range(40)]
    forecaster, between = learned(runs), job()
    step_started(between.place, "copy", BASE)
    step_ended(between.place, "copy", BASE, BASE + 9 * SECOND)
    at_once, late, lost = (between.forecast(forecaster, BASE + round(at * SECOND), 1.25) for at in (9.0, 10.2, 10.5))
    assert at_once is not None
    assert late is not None
    assert lost is not None
    assert (late.p50, late.p90) == (at_once.p50, at_once.p90)
    assert lost.p50 > at_once.p50, "no earlier run waited there"


@pytest.mark.parametrize(("right_for", "misses"), [(4.0, False), (2.0, True)])
def test_a_document_counts_for_as_long_as_it_stays(right_for: float, misses: bool):
    # In the last third, from 20 s on, one says the right end, and then one a wrong end until the job has ended.
    lives = {"j": Life(0.0, 30.0)}
    said = [("j", DisplayedEnd(19.0, 30.0)), ("j", DisplayedEnd(20.0 + 10 * right_for / 6, 42.0))]
    (job,) = watched(lives, lasting(lives, said))
    assert job.misses() is misses


def every_second_one_later(number: int, first: DisplayedEnd, end: DisplayedEnd) -> DisplayedEnd:
    """Every second renewal says p90 instead of p50."""
    return end._replace(end=end.end + end.band, band=0.0) if number % 2 else end


def now(number: int, first: DisplayedEnd, end: DisplayedEnd) -> DisplayedEnd:
    return end._replace(end=end.at)


@pytest.mark.parametrize("broken", [every_second_one_later, now])
def test_an_end_that_does_not_settle_is_refused(
    replay: Replay, broken: Callable[[int, DisplayedEnd, DisplayedEnd], DisplayedEnd]
):
    lives, seen = replay
    shown: dict[str, list[DisplayedEnd]] = {}
    said = []
    for job_id, end in ends(seen):
        renewals = shown.setdefault(job_id, [end])
        if end.end != renewals[-1].end:
            renewals.append(end)
        said.append((job_id, broken(len(renewals), renewals[0], end)))
    with pytest.raises(AssertionError):
        assert_ends_settle(watched(lives, said), at_least=len(lives))
