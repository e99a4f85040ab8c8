"""Jobs by any ID for requests: from memory at once, else from the database in the turns of its class.

A request may wait until a job with an unknown ID exists. It does not ask again meanwhile: the job may be in the
database, which is asked once for all requests that wait for the same ID, or it appears in memory, which is an event.
While the database does not answer, it is asked again, at most `AGAIN_A_SECOND` times a second for all IDs together.
"""

from __future__ import annotations

import asyncio
from typing import TypeAlias

from correlator.errors import Away, SourceUnavailable
from correlator.jobs.model.rows import LegacyRecord
from correlator.jobs.model.views import PublishedJob
from correlator.model.replies import Resolved
from correlator.pipeline.hub import Hub
from correlator.sinks.turns import Work
from correlator.tasks import SharedTasks

ASK_EVERY = 1.0
"""Least seconds between two queries for an ID that a request waits for, while the database is not available."""

AGAIN_A_SECOND = 50

ANSWER_WITHIN = 1.0
"""Seconds in which the database may answer a request that waits for less: whether it has the job is known then."""

Found: TypeAlias = tuple[PublishedJob, Resolved]


class Lookups:
    """The lookups of one hub, in the turns of `work`. Each may raise `Refused`."""

    def __init__(self, hub: Hub, work: Work) -> None:
        self._hub = hub
        self._work = work
        self._waiting: SharedTasks[Found | None] = SharedTasks()
        self._failures: dict[str, SourceUnavailable] = {}
        """For an ID that is being asked for: why the last attempt failed."""
        self._rest_until = 0.0

    async def find(self, name: str, address: str) -> Found | None:
        """As `Hub.find`, for a client with this address."""
        return await self._work.find(self._hub, name, address)

    async def legacy_record(self, name: str, address: str) -> LegacyRecord | None:
        """As `Hub.legacy_record`, for a client with this address."""
        async with self._work.queries.turn(address):
            return await self._hub.legacy_record(name)

    async def wait(self, name: str, address: str, until: float) -> Found | None:
        """As `find`, but wait for the job until `until` (loop time). None if there is none, or the process drains.

        A wait that is shorter than `ANSWER_WITHIN` goes on until the database has answered once.

        Raises:
            SourceUnavailable: The database could not say until then whether it has the job.
        """
        if self._hub.find_now(name) is not None:
            return await self.find(name, address)
        clock, waiting_ids = asyncio.get_running_loop().time, self._hub.waiting_ids
        answered_until = max(until, clock() + ANSWER_WITHIN)
        asking = asyncio.ensure_future(self._waiting.run(name, lambda: self._ask(name, address)))

        def ended(task: asyncio.Future[Found | None]) -> None:
            if not task.cancelled():
                task.exception()  # It is raised below, if the request still waits.
            waiting_ids.wake_name(name)

        asking.add_done_callback(ended)
        try:
            with waiting_ids.watched_id(name):
                while (found := self._hub.find_now(name)) is None and not self._hub.draining:
                    if asking.done() and (found := asking.result()) is not None:
                        return found
                    known = asking.done() or name in self._failures
                    if (left := (until if known else answered_until) - clock()) <= 0:
                        break
                    await waiting_ids.changed(name, left)
            if found is None and not asking.done() and not self._hub.draining:
                raise self._failures.get(name) or SourceUnavailable("the database was not asked in time", Away.BUSY)
            return found
        finally:
            asking.cancel()

    async def _ask(self, name: str, address: str) -> Found | None:
        """What the database has, asked as often as it takes until it answers.

        After a lookup of t seconds, the next one begins t seconds later: most IDs are of no job yet, and the database
        has others to serve.
        """
        clock = asyncio.get_running_loop().time
        try:
            while True:
                try:
                    async with self._work.waited_ids.turn(address):
                        await asyncio.sleep(max(0.0, self._rest_until - clock()))
                        began = clock()
                        try:
                            return await self._hub.find(name)
                        finally:
                            self._rest_until = 2 * clock() - began
                except SourceUnavailable as error:
                    self._failures[name] = error
                    self._hub.waiting_ids.wake_name(name)
                    if error.reason is not Away.UNFINISHED:
                        await asyncio.sleep(max(ASK_EVERY, self._work.held.total / AGAIN_A_SECOND))
        finally:
            self._failures.pop(name, None)
