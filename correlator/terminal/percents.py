"""The percent of jobs as a terminal shows them, frame after frame: it never falls while a job runs, nor when it fails.

Between two documents percent moves with the clock. The daemon's next document is not below what it was when the daemon
sent it; a bar that has moved on meanwhile stays where it is. `Progress` in web/page/outlook.js does the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from correlator.client.messages import Document
from correlator.client.remaining import remaining
from correlator.terminal import forecasts


class Percents:
    """What the last frame showed. It holds the jobs of one frame."""

    def __init__(self) -> None:
        self._shown: dict[str, float] = {}

    def of(self, jobs: Iterable[Document], now: float) -> Mapping[str, float]:
        """The percent of each of these jobs by its ID, in a frame at `now`. All other jobs are forgotten."""
        found, shown = dict[str, float](), dict[str, float]()
        for job in jobs:
            job_id = str(job.get("job_id"))
            before, percent = self._shown.get(job_id, 0.0), forecasts.percent(job, now)
            if remaining(job, now) is not None or (job.get("terminal") and job.get("status") != "completed"):
                percent = shown[job_id] = max(percent, before)
            found[job_id] = percent
        self._shown = shown
        return found
