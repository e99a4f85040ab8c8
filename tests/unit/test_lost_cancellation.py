"""A cancellation that a driver loses: the task still ends, and no connection stays open."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest

from correlator.sources.db.mariadb import Address, MariaDBDatabase, MariaDBSession


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("cancelled_before", [False, True])
async def test_a_cancellation_that_the_driver_loses_while_it_connects_ends_the_task(cancelled_before, refused):
    connecting, connection = asyncio.Event(), Mock()

    async def connect(**_: object) -> Mock:
        connecting.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        if refused:
            raise ConnectionRefusedError
        return connection

    async def opening() -> None:
        if cancelled_before and (task := asyncio.current_task()) is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        await database.open()

    database = MariaDBDatabase(Address())
    database._driver = SimpleNamespace(connect=connect)
    task = asyncio.create_task(opening())
    await connecting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert connection.close.call_count == (not refused)


async def test_a_cancellation_that_the_driver_loses_in_a_query_ends_the_task_and_the_connection():
    executing, connection, abandoned = asyncio.Event(), MagicMock(), Mock()

    async def execute(*_: object) -> None:
        executing.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise OSError from None

    connection.cursor.return_value.__aenter__.return_value.execute = execute
    task = asyncio.create_task(MariaDBSession(connection, 60.0, abandoned).query("SELECT 1"))
    await executing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    connection.close.assert_called_once_with()
    abandoned.assert_called_once()


async def test_a_task_that_was_cancelled_earlier_and_went_on_may_connect():
    async def connect(**_: object) -> Mock:
        return Mock(spec=["close"])

    database = MariaDBDatabase(Address())
    database._driver = SimpleNamespace(connect=connect)
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    try:
        assert await database._connect() is not None
    finally:
        task.uncancel()
