"""Reads the failed jobs that the tables have besides those in memory, so that it is known which failures are new.

It walks all failed jobs once after each start, the newest first, in pages with a pause after each: the database and the
event loop have other work. An outage of the database only delays it.
"""

from __future__ import annotations

import asyncio
import logging

from correlator.bounded import chunks
from correlator.errors import SourceUnavailable
from correlator.jobs import fold
from correlator.jobs.index import Index
from correlator.model.facts import Job, Reading, Status
from correlator.model.published import JobView
from correlator.model.rows import LegacyRecord, Micros
from correlator.ops.event_loop import timed
from correlator.pipeline.queries import Archive, JobQuery
from correlator.tasks import Backoff

log = logging.getLogger(__name__)

JOBS, AT_ONCE = 100, 20
"""Jobs of one page, and those of which the failure is found out in one call: some milliseconds."""

PAUSE = 0.2
"""Seconds after each page."""

_FAILED = JobQuery(status=frozenset({Status.FAILED.value}))


async def read_past_failures(index: Index, archive: Archive | None) -> None:
    """Make the failed jobs of the tables known to `index.failures`. `archive` None: there are none besides memory."""
    failures, backoff, before = index.failures, Backoff(), None
    while archive is not None:
        try:
            page = await archive.page(_FAILED, before, JOBS, index.advance_clock, index.failures.groups.__contains__)
        except SourceUnavailable:
            await asyncio.sleep(backoff.next())
            continue
        backoff.reset()
        jobs: list[Reading | LegacyRecord] = [*page.readings, *page.legacy]
        for some in chunks(jobs, AT_ONCE):
            with timed("failures"):
                for found in some:
                    if index.published.get(found.job_id) is None:
                        failures.archived(*_seen(found, index))
            await asyncio.sleep(0)
        before = page.next_before
        if before is None or failures.groups.since:
            break
        failures.has_read(before[0])
        await asyncio.sleep(PAUSE)
    failures.has_read(await _oldest(archive) if before is None else before[0], all_of_it=True)
    log.debug("%d failed jobs are known", len(failures.groups))


async def _oldest(archive: Archive | None) -> Micros | None:
    """Since when the tables have jobs; None: that is not known."""
    try:
        return await archive.oldest() if archive is not None else None
    except SourceUnavailable:
        return None


def _seen(found: Reading | LegacyRecord, index: Index) -> tuple[JobView, Micros, Reading | None]:
    """What follows from the rows of a job that is not in memory."""
    if isinstance(found, LegacyRecord):
        return fold.legacy_view(found), fold.legacy_alive_at(found), None
    job = fold.fold(Job(found.job_id), found)
    return fold.view(job, index.id_keys), fold.alive_at(job), found
