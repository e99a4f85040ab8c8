"""Queries on behalf of requests: one session, one question at a time, in order of arrival.

The problem: requests arrive while the server is down, slow or overloaded. Three rules keep the wait of each request
short, however many there are:

* A question is a short query. A caller that needs more asks several, and those of other requests run in between.
* One failure fails all waiting questions: they would only meet the same timeout, one after the other. For `REST`
  seconds after it, new questions fail immediately as well.
* At most `MAX_WAITING` questions wait; one more is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from correlator.errors import Away, SourceUnavailable
from correlator.jobs.sizes import Sizes
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import Database, Session

T = TypeVar("T")

Question: TypeAlias = Callable[[Queries, Session], Awaitable[T]]

MAX_WAITING = 100
"""Most questions that wait."""

REST = 1.0
"""Seconds after a failure for which questions fail immediately."""

AGAIN_WITHIN = 1.0
"""Seconds within which a failed question is retried over a new session: the server may have closed the old one."""

SHARED = (Away.UNREACHABLE, Away.NO_CONNECTION, Away.LOGIN_REFUSED, Away.NO_ANSWER)
"""Failures that every question would meet. A query that the server refuses concerns its own question alone."""

REOPEN_EVERY = 60.0
"""Seconds after which the session is reopened and the schema and the zone are read again."""


REOPEN_LACKING = 2.0
"""The same while there is no job_steps: it may only be away."""


class Questions:
    """One session to `database`, opened when it is needed. Used from one event loop; safe to cancel at any point."""

    def __init__(self, database: Database, limits: Sizes | None = None) -> None:
        self._database = database
        self._limits = limits
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._session: Session | None = None
        self._queries: Queries | None = None
        self._reopen_at = 0.0
        self._failures = 0
        self._failed_at = float("-inf")
        self._failure: SourceUnavailable | None = None
        self.refusal: str | None = None
        """Why no question may be sent now; None: they may be."""

    async def ask(self, question: Question[T]) -> T:
        """The answer to `question`.

        Raises:
            SourceUnavailable: There is a `refusal`, or the database cannot answer, or did not answer another question
                within the last `REST` seconds; with `Away.BUSY` if too many questions wait.
        """
        if self.refusal is not None:
            raise SourceUnavailable(self.refusal)
        if self._failure is not None and time.monotonic() - self._failed_at < REST:
            raise _same(self._failure)
        if self._waiting >= MAX_WAITING:
            raise SourceUnavailable(f"{MAX_WAITING} questions wait for the database", Away.BUSY)
        failures = self._failures
        self._waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self._waiting -= 1
        try:
            if self._failure is not None and self._failures != failures:
                raise _same(self._failure)
            return await self._ask(question)
        finally:
            self._lock.release()

    async def _ask(self, question: Question[T]) -> T:
        kept, began = self._session is not None, time.monotonic()
        while True:
            try:
                queries, session = await self._connect()
                answer = await question(queries, session)
            except SourceUnavailable as error:
                await self._disconnect()
                if not kept or time.monotonic() - began > AGAIN_WITHIN:
                    if error.reason in SHARED:
                        self._failures += 1
                        self._failure, self._failed_at = error, time.monotonic()
                    raise
                kept = False
            except BaseException:
                await self._disconnect()
                raise
            else:
                self._failure = None
                return answer

    async def close(self) -> None:
        await self._disconnect()

    async def _connect(self) -> tuple[Queries, Session]:
        if self._session is None or self._queries is None or time.monotonic() >= self._reopen_at:
            await self._disconnect()
            session = await self._database.open()
            try:
                schema = await self._database.schema(session)
                zone = await self._database.zone(session)
            except BaseException:
                await session.close()
                raise
            self._session, self._queries = session, Queries(self._database.dialect, schema, zone, limits=self._limits)
            self._reopen_at = time.monotonic() + (REOPEN_EVERY if schema.has("job_steps") else REOPEN_LACKING)
        return self._queries, self._session

    async def _disconnect(self) -> None:
        session, self._session, self._queries = self._session, None, None
        if session is not None:
            await session.close()


def _same(error: SourceUnavailable) -> SourceUnavailable:
    """A new exception for another request: one that is raised twice collects the tracebacks of both."""
    return SourceUnavailable(str(error), error.reason)
