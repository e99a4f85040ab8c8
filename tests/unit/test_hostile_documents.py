"""Whatever a member of a document is, a gateway refuses the document, or every command can print it."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from correlator.cluster import received
from correlator.model.document import MAX_SECONDS
from correlator.terminal import formats, history, listing, show
from correlator.terminal.screen import Theme, console_on
from correlator.terminal.watch import Branch, Frame, tree_lines
from tests.support.job_documents import NASTY, NOW, document, forecast

TIMES = (
    "9999-12-31T23:59:59.999999Z",
    "0001-01-01T00:00:00.000000Z",
    "0001-01-01T00:00:00+14:00",
    "9999-99-99T99:99:99.999999Z",
    "2025-09-22",
)
WORDS = (NASTY, "", "x" * 3000, "overdue", "late", "rough", "history")
VALUES: tuple[object, ...] = (*TIMES, *WORDS, 1e308, -1, 2**53, 5e-324, True, None, [], {}, [1], {"a": 1})
CLOCKS = (formats.utc_clock, formats.local_clock(NOW))
THEME = Theme()

Path = tuple[str, ...]


def whole(status: str) -> dict[str, Any]:
    """A document with every member that some command prints."""
    members = forecast()
    members["progress"]["steps_expected"] = 4
    members["forecast"]["steps_ahead"] = [{"name": "s", "share": 0.5, "typical_seconds": 4.0}]
    made: dict[str, Any] = document("j", status, **members)
    made |= {"compared_with": {"typical_seconds": 80.0, "runs": 5, "percentile": 50.0}, "error": "e", "error_cut": 5}
    made |= {"title": "t", "current_step_title": "c", "external_ids_cut": 5, "ended_at": None}
    made["metadata"] = {"vm_name": "x", "_cut": {"a": 5}, "deep": {"b": [1]}}
    del made["rev"]
    return made


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    for key, member in (value if isinstance(value, dict) else {}).items():
        yield (*path, key)
        yield from paths(member, (*path, key))


def changed(status: str, path: Path, value: object) -> bytes:
    made = part = whole(status)
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return orjson.dumps(made)


def accepted(status: str) -> Iterator[tuple[Path, object, dict[str, Any]]]:
    """Yield each changed document that a gateway accepts, in the form in which it serves it, and the change."""
    for path, value in itertools.product(paths(whole(status)), VALUES):
        try:
            shown = received.document(changed(status, path, value), 5, "dc1")
        except received.Unreadable:
            continue
        assert shown.body is not None
        yield path, value, orjson.loads(shown.body.text)


def listed(job: Any) -> None:
    listing.plain(job, NOW, THEME, fleet=True)
    console_on(io.StringIO(), width=150).print(listing.table([job], 150, NOW, THEME))
    listing.most_urgent([job], NOW, 5)


def compared(job: Any) -> None:
    console_on(io.StringIO(), width=150).print(history.table([job], 150, NOW, THEME))


def watched(job: Any) -> None:
    tree_lines([Branch("j", job)], Frame(120, 40, NOW))


def worded(job: Any) -> None:
    for clock in CLOCKS:
        formats.outlook(job, NOW, clock)
        formats.short_outlook(job, NOW, clock)
        formats.basis(job, NOW, clock)
    formats.stamp((job.get("forecast") or {}).get("as_of"))


@pytest.mark.parametrize("printed", [listed, compared, watched, worded, lambda job: list(show.fields(job, NOW, THEME))])
@pytest.mark.parametrize("status", ["running", "completed"])
def test_every_command_prints_each_document_that_a_gateway_accepts(
    printed: Callable[[Any], object], status: str
) -> None:
    failed = []
    for path, value, job in accepted(status):
        try:
            printed(job)
        except Exception as error:  # noqa: BLE001 - any of them ends the command, for all jobs of the fleet
            failed.append((".".join(path), value, repr(error)))
    assert failed == []


@pytest.mark.parametrize("path", ["forecast.as_of", "forecast.ends_at.p50", "forecast.ends_at.p90", "last_event_at"])
@pytest.mark.parametrize("value", ["", "soon", "2025-09-22", "9999-99-99T99:99:99.999999Z", NASTY])
def test_a_document_whose_times_are_none_is_refused(path: str, value: str) -> None:
    with pytest.raises(received.Unreadable):
        received.document(changed("running", tuple(path.split(".")), value), 5, "dc1")


def test_a_duration_that_a_browser_cannot_count_in_milliseconds_is_refused() -> None:
    for path in (("duration_seconds",), ("forecast", "typical_seconds"), ("steps", "1", "duration_seconds")):
        received.document(changed("running", path, MAX_SECONDS), 5, "dc1")
        with pytest.raises(received.Unreadable):
            received.document(changed("running", path, 2 * MAX_SECONDS), 5, "dc1")
