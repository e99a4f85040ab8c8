"""A database session for several checks: after a failed query the next check gets a new session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from correlator.doctor.check import Check, failure
from correlator.errors import CorrelatorError, SourceUnavailable
from correlator.sources.db.session import Database, Row, Session

T = TypeVar("T")


class Link:
    """A session that opens on first use and again after an error. Implements `sources.db.session.Session`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._session: Session | None = None

    async def open(self) -> None:
        """Open the session if it is not open. Raises SourceUnavailable."""
        if self._session is None:
            self._session = await self._database.open()

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[Row]:
        await self.open()
        assert self._session is not None
        try:
            return await self._session.query(sql, args)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def guarded(name: str, within: float, work: Awaitable[T]) -> T | Check:
    """Return the result of `work`, or a failed check `name` if it raises or takes longer than `within` seconds."""
    try:
        async with asyncio.timeout(within):
            return await work
    except TimeoutError:
        return failure(name, f"This check did not finish within {within:g} s.")
    except (CorrelatorError, OSError) as error:
        return failure(name, f"This check did not finish: {str(error) or type(error).__name__}")
    except Exception as error:  # noqa: BLE001 - an error in one check must not hide the results of the others
        return failure(name, f"Internal error in this check: {type(error).__name__}: {error}")


def code_of(error: SourceUnavailable) -> int | None:
    """Return MariaDB's error number, or None if MariaDB did not answer with an error."""
    args = getattr(error.__cause__, "args", ())
    return args[0] if args and isinstance(args[0], int) else None
