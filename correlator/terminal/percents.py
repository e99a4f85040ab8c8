"""The percent of jobs as a terminal shows them, frame after frame.

It goes on by the clock, and goes back only where a document has less than the one before: the daemon's do not while the
same steps run. `Progress` in web/page/outlook.js does the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from correlator.client.messages import Document
from correlator.terminal import forecasts, formats


class Percents:
    """What the last frame showed. It holds the jobs of one frame."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[float, float]] = {}
        """The percent of the document, and the one that was shown, by job ID."""

    def of(self, jobs: Iterable[Document], now: float) -> Mapping[str, float]:
        """The percent of each of these jobs by its ID, in a frame at `now`. All other jobs are forgotten."""
        shown = dict[str, tuple[float, float]]()
        for job in jobs:
            job_id, percent = str(job.get("job_id")), formats.percent(job)
            before, at_least = self._shown.get(job_id, (0.0, 0.0))
            shown[job_id] = percent, max(forecasts.percent(job, now), at_least if percent >= before else 0.0)
        self._shown = shown
        return {job_id: percent for job_id, (_, percent) in shown.items()}
