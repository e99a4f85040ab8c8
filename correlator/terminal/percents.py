"""The percent of jobs as a terminal shows them, frame after frame: it does not fall while the same steps run.

Whatever it rests on: a job may report a percent that is lower than the share of its steps, and between two documents
percent moves with the clock. With a forecast it never falls while the job runs, nor when it fails. `Progress` in
web/page/outlook.js does the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from correlator.client.messages import Document
from correlator.client.remaining import remaining
from correlator.terminal import forecasts, formats


class _Shown(Struct, frozen=True):
    job: Document
    forecast: float | None
    """The percent of the last forecast of a job that runs, or had one when it failed."""
    percent: float


class Percents:
    """What the last frame showed. It holds the jobs of one frame."""

    def __init__(self) -> None:
        self._shown: dict[str, _Shown] = {}

    def of(self, jobs: Iterable[Document], now: float) -> Mapping[str, float]:
        """The percent of each of these jobs by its ID, in a frame at `now`. All other jobs are forgotten."""
        shown = dict[str, _Shown]()
        for job in jobs:
            job_id = str(job.get("job_id"))
            shown[job_id] = _next(self._shown.get(job_id), job, now)
        self._shown = shown
        return {job_id: each.percent for job_id, each in shown.items()}


def _next(was: _Shown | None, job: Document, now: float) -> _Shown:
    before = was.forecast if was is not None else None
    has_failed = bool(job.get("terminal")) and job.get("status") != "completed"
    if remaining(job, now) is not None:
        forecast: float | None = max(forecasts.percent(job, now), before or 0.0)
    else:
        forecast = before if has_failed else None
    percent = forecast if forecast is not None else formats.percent(job)
    is_held = before is not None if has_failed else was is not None and _runs_on(was.job, job)
    return _Shown(job, forecast, max(percent, was.percent) if was is not None and is_held else percent)


def _runs_on(was: Document, job: Document) -> bool:
    """Whether the job runs, and no step has begun, or begun again, since the document `was`."""
    old, new = was.get("progress") or {}, job.get("progress") or {}
    return (
        not job.get("terminal")
        and was.get("status") == job.get("status")
        and old.get("steps_seen") == new.get("steps_seen")
        and _ended(old) <= _ended(new)
    )


def _ended(progress: Mapping[str, object]) -> int:
    found = (progress.get(name) for name in ("steps_done", "steps_failed", "steps_skipped"))
    return sum(count for count in found if isinstance(count, int))
