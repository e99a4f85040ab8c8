"""A session for one look after the other: one that a look has broken is replaced, so that the next can be made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from correlator.doctor.check import Check, failure
from correlator.errors import CorrelatorError, SourceUnavailable
from correlator.sources.database import Database, Row, Session


class Link:
    """Satisfies `correlator.sources.database.Session`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._session: Session | None = None

    async def open(self) -> None:
        """Raises `SourceUnavailable`."""
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


async def guarded(name: str, within: float, look: Callable[[], Awaitable[Sequence[Check]]]) -> list[Check]:
    """What `look` finds; a failed check in its place where it does not come to an end, or comes to a bad one."""
    try:
        async with asyncio.timeout(within):
            return list(await look())
    except TimeoutError:
        return [failure(name, f"this could not be looked at within {within:g} s")]
    except (CorrelatorError, OSError) as error:
        return [failure(name, f"this could not be looked at: {str(error) or type(error).__name__}")]
    except Exception as error:  # noqa: BLE001 - one look that goes wrong must not hide what the others found
        return [failure(name, f"a mistake in the program: {type(error).__name__}: {error}")]


def code_of(error: SourceUnavailable) -> int | None:
    """The number that MariaDB gave its error."""
    args = getattr(error.__cause__, "args", ())
    return args[0] if args and isinstance(args[0], int) else None
