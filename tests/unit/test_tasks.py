"""A cancellation that a library loses still ends the task; delays grow to the cap and spread over their whole span."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest

from correlator.cluster.connection import Connection
from correlator.config.schema import Cluster, Mqtt, NatsUrl
from correlator.config.values import BrokerUrl
from correlator.sinks.event_log import EventLog
from correlator.sinks.mqtt.sink import MqttSink
from correlator.sources.db.mariadb import Address, MariaDBDatabase, MariaDBSession
from correlator.tasks import (
    TURN,
    Backoff,
    Pacer,
    TaskGroup,
    done_within,
    end_tasks,
    keeping_cancellation,
    set_within,
    until_next,
)
from tests.support.background import in_background
from tests.support.there import there


async def lost(answer: asyncio.Future[str]) -> str:
    """Wait for `answer`, and return it also if the task was cancelled, as wait_for of Python 3.11 may."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.shield(answer)
    return "an answer"


async def cancelled_at_its_answer(call: Callable[[asyncio.Future[str]], Any]) -> asyncio.Task[Any]:
    answer = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(call(answer))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    answer.set_result("")
    task.cancel()
    await asyncio.wait([task])
    return task


async def test_a_lost_cancellation_is_raised_in_place_of_a_result_which_is_closed():
    closed: list[str] = []
    assert (await cancelled_at_its_answer(lost)).result() == "an answer"
    task = await cancelled_at_its_answer(lambda answer: keeping_cancellation(lost(answer), closed.append))
    assert (task.cancelled(), closed) == (True, ["an answer"])


async def test_a_wait_for_an_event_ends_at_its_deadline_and_says_whether_the_event_came():
    event = asyncio.Event()
    assert not await set_within(event, 0.001)
    asyncio.get_running_loop().call_soon(event.set)
    assert await set_within(event, None)
    assert await set_within(event, 0.0)


async def test_a_loop_over_what_a_peer_chose_lets_other_tasks_run_by_the_time_that_has_passed():
    now, turns = 0.0, list[None]()
    pacer = Pacer(lambda: now)
    other = asyncio.ensure_future(_count_turns(turns))
    for _ in range(10):
        now += TURN / 4
        await pacer.pause()
    other.cancel()
    assert len(turns) == 2


async def _count_turns(turns: list[None]) -> None:
    while True:
        turns.append(None)
        await asyncio.sleep(0)


async def test_a_cancellation_before_the_work_is_not_raised_in_it():
    task = there(asyncio.current_task())
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    try:
        await keeping_cancellation(asyncio.sleep(0))
    finally:
        task.uncancel()


async def test_a_lost_cancellation_is_raised_in_place_of_the_error_of_an_answer():
    async def refused(answer: asyncio.Future[str]) -> None:
        raise ValueError(await lost(answer))

    task = await cancelled_at_its_answer(lambda answer: keeping_cancellation(refused(answer)))
    assert task.cancelled()
    with pytest.raises(ValueError, match="an answer"):
        await keeping_cancellation(refused(task.get_loop().create_task(asyncio.sleep(0, ""))))


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_group_whose_task_fails_while_it_is_cancelled_ends_with_the_cancellation(cancelled):
    begun = asyncio.Event()

    async def failing() -> None:
        try:
            begun.set()
            await asyncio.sleep(60 if cancelled else 0)
        finally:
            raise ConnectionError("the server has gone")

    async def follow() -> str:
        """Go on after an error, like the source."""
        with contextlib.suppress(ExceptionGroup):
            async with TaskGroup() as group:
                group.create_task(failing())
        return "goes on"

    task = asyncio.create_task(follow())
    await begun.wait()
    if cancelled:
        task.cancel()
    await asyncio.wait([task], timeout=60)
    assert task.cancelled() if cancelled else task.result() == "goes on"


@pytest.mark.parametrize("method", ["request", "publish"])
async def test_a_call_of_the_cluster_that_is_cancelled_at_its_answer_ends_the_task(method):
    answers: list[asyncio.Future[str]] = []

    async def library(*_: object, **__: object) -> str:
        return await lost(answers[0])

    async def nothing(**_: object) -> None: ...

    client: Any = SimpleNamespace(
        is_connected=True,
        is_closed=False,
        pending_data_size=0,
        connected_url=None,
        connected_server_version=SimpleNamespace(major=2, minor=15),
        connect=nothing,
        close=nothing,
        **{method: library},
    )
    settings = Cluster(url=NatsUrl.parse("nats://127.0.0.1:1"))
    connection = Connection(settings, "doctor", client_of=lambda **_: client)

    async def call(answer: asyncio.Future[str]) -> Any:
        answers.append(answer)
        return await getattr(connection, method)("subject", b"")

    async with in_background(connection.run()):
        await connection.connect(60)
        assert (await cancelled_at_its_answer(call)).cancelled()


async def _stubborn() -> None:
    """Wait for ever, and swallow each cancellation but the third."""
    for _ in range(2):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
    await asyncio.sleep(3600)


async def _end_stubborn() -> None:
    """End all tasks but this one, also those that drop two cancellations."""
    everything = asyncio.all_tasks() - {asyncio.current_task()}
    async with asyncio.timeout(60):
        await end_tasks(everything, again=0.01)
    assert all(task.cancelled() for task in everything)


async def test_work_that_swallows_cancellations_is_left_at_its_deadline_and_ends_with_the_third():
    async with asyncio.timeout(60):
        with pytest.raises(TimeoutError, match=r"0\.01 s"):
            await done_within(_stubborn(), 0.01)
    await _end_stubborn()


async def _cancelled() -> None:
    """End as a task does of which something else cancels what it waits for."""
    raise asyncio.CancelledError


async def test_work_that_a_library_cancels_does_not_cancel_the_task_that_waits_for_it():
    with pytest.raises(ConnectionAbortedError):
        await done_within(_cancelled(), 60)


@pytest.mark.parametrize("ends", [_stubborn, _cancelled])
async def test_a_client_of_nats_that_never_closes_or_whose_end_is_cancelled_is_replaced(ends):
    made: list[Any] = []

    class Client:
        is_closed = False
        connected_url = None
        connected_server_version = SimpleNamespace(major=2, minor=15)

        def __init__(self, *, tls: bool) -> None:
            self.is_connected = bool(made)  # the first one is lost at once
            made.append(self)

        async def connect(self, **_: object) -> None:
            pass

        async def close(self) -> None:
            await ends()

    settings = Cluster(url=NatsUrl.parse("nats://127.0.0.1:1"))
    client_of: Any = Client
    connection = Connection(settings, "doctor", replace_after=0.01, close_within=0.01, client_of=client_of)
    running = asyncio.create_task(connection.run())
    try:
        await connection.connect(60)
        assert len(made) == 2
    finally:
        running.cancel()
        await asyncio.wait([running], timeout=60)
        await _end_stubborn()


def longest(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next() for _ in range(count)]


def test_delays_are_spread_over_a_span_that_grows_up_to_the_cap_until_a_success():
    backoff = Backoff(0.5, 2, 3, uniform=lambda: 1.0)
    assert longest(backoff, 5) == [0.5, 1, 2, 3, 3]
    assert longest(backoff, 1000)[-1] == 3, "an outage of days does not overflow"
    backoff.reset()
    assert longest(backoff, 2) == [0.5, 1]
    shares = iter([0.0, 0.5, 0.25])
    assert longest(Backoff(1, 2, 60, uniform=lambda: next(shares)), 3) == [0.0, 1.0, 1.0]


def test_a_database_broker_or_cluster_that_is_back_is_tried_within_five_seconds():
    for backoff in Backoff(), MqttSink(Mqtt(url=BrokerUrl("127.0.0.1", 1883, False)), EventLog())._backoff:
        found = longest(backoff, 1000)
        assert 0 <= min(found) < 4 < max(found) <= 5


def test_timers_fall_together_whenever_they_began_and_one_that_was_early_is_not_repeated():
    assert {now + until_next(1.0, now) for now in (7.0, 7.25, 7.998)} == {8.0}
    assert {now + until_next(0.25, now) for now in (7.75, 7.875, 7.998)} == {8.0}
    assert 7.125 + until_next(1.0, 7.125, 0.25) == 7.25
    early = 8.0 - 2**-40
    assert early + until_next(0.25, early) == 8.25


# -- A cancellation that a driver loses: the task still ends, and no connection stays open


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("cancelled_before", [False, True])
async def test_a_cancellation_that_the_driver_loses_while_it_connects_ends_the_task(cancelled_before, refused):
    connecting, connection = asyncio.Event(), Mock()

    async def connect(*_: object, **__: object) -> Mock:
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

    database = MariaDBDatabase(Address(), connect=connect)
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
