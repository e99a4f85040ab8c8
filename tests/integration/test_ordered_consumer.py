"""The reading of a stream: nothing is lost or repeated, whatever happens to consumers, connections and servers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from correlator.cluster import keys
from correlator.cluster.connection import Connection
from correlator.gateway.stream import OrderedConsumer, StoredMessage
from tests.support.background import in_background
from tests.support.cluster import connected
from tests.support.eventually import eventually
from tests.support.nats import Nats
from tests.support.stream_writer import StreamWriter, job


class Reading:
    """What a consumer of the stream of documents has passed on since its last reset."""

    def __init__(self, connection: Connection, at_once: int | None = None) -> None:
        self.messages: list[StoredMessage] = []
        self.resets = 0
        self._at_once = at_once
        self._slowly = 0
        self.lost_while_waiting = False
        """The consumer is lost as soon as messages wait that were not taken."""
        self.consumer = OrderedConsumer(connection, keys.STATE, ["$KV.cor.>"], self._take, self._reset, self._identity)

    def _take(self, messages: Sequence[StoredMessage]) -> int | None:
        self.messages.extend(messages[: self._at_once])
        if self.lost_while_waiting and len(messages) > 50:
            self.lost_while_waiting, self._slowly = False, 50
            self.consumer._broken.set()
        if self._slowly:  # Another consumer delivers before all that waits has been taken.
            self._slowly -= 1
            time.sleep(0.01)
        return self._at_once

    def _reset(self, identity: str) -> None:
        assert identity == "i"
        self.resets += 1
        self.messages.clear()

    async def _identity(self, connection: Connection) -> str:
        del connection
        return "i"

    @property
    def sequences(self) -> list[int]:
        return [message.seq for message in self.messages]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Reading]:
        async with in_background(self.consumer.run()):
            await eventually(lambda: self.consumer.synced)
            yield self


async def writer(connection: Connection) -> StreamWriter:
    made = StreamWriter(connection, "dc1")
    await made.begin()
    return made


async def test_the_newest_message_of_each_subject_comes_first_then_every_other(nats):
    async with connected(nats.url) as connection:
        dc1 = await writer(connection)
        for _ in range(2):
            await dc1.put(job("a"), job("b"))
        seq = await dc1.put(job("a"), job("b"))
        async with Reading(connection).running() as reading:
            assert reading.sequences == [1, seq - 1, seq]
            last = await dc1.put(*[job(f"j{n}") for n in range(1000)])
            await eventually(lambda: reading.sequences[-1] == last)
            assert reading.sequences == [1, *range(seq - 1, last + 1)]
            assert reading.messages[-1].subject == keys.job("dc1", "j999")
            assert reading.consumer.behind == 0


async def test_messages_that_are_taken_a_few_at_a_time_come_each_once_and_over_a_new_consumer(nats):
    async with connected(nats.url) as connection:
        dc1 = await writer(connection)
        async with Reading(connection, at_once=1).running() as reading:
            reading.lost_while_waiting = True
            last = await dc1.put(*[job(f"j{n}") for n in range(1000)])
            await eventually(lambda: reading.consumer.synced and reading.sequences[-1] == last)
            assert not reading.lost_while_waiting, "messages waited when the consumer was lost"
            assert reading.sequences == sorted(set(reading.sequences))
            assert {m.subject for m in reading.messages} >= {keys.job("dc1", f"j{n}") for n in range(1000)}


async def test_a_message_that_is_lost_is_read_by_another_consumer(nats, monkeypatch):
    async with connected(nats.url) as connection:
        dc1 = await writer(connection)
        drop = [3, 4]
        original = OrderedConsumer._receiver

        def lossy(self: OrderedConsumer, broken: asyncio.Event) -> Callable[[Any], Any]:
            receive = original(self, broken)

            async def some(message: Any) -> None:
                if drop and message.reply.startswith("$JS.ACK") and message.reply.split(".")[6] == str(drop[0]):
                    drop.pop(0)
                    return
                await receive(message)

            return some

        monkeypatch.setattr(OrderedConsumer, "_receiver", lossy)
        async with Reading(connection).running() as reading:
            last = await dc1.put(*[job(f"j{n}") for n in range(20)])
            await eventually(lambda: reading.sequences[-1] == last)
            assert reading.sequences == list(range(1, last + 1))
            assert (drop, reading.resets) == ([], 1)


async def test_a_consumer_that_was_deleted_is_replaced_after_missed_heartbeats(nats):
    async with connected(nats.url) as connection:
        dc1 = await writer(connection)
        async with Reading(connection).running() as reading:
            names = (await connection.api(f"CONSUMER.NAMES.{keys.STATE}"))["consumers"]
            await connection.api(f"CONSUMER.DELETE.{keys.STATE}.{names[0]}")
            last = await dc1.put(job("a"), job("b"))
            await eventually(lambda: reading.sequences == list(range(1, last + 1)))
            assert reading.resets == 1


async def test_a_server_that_stops_and_continues_or_starts_again_loses_nothing(nats):
    async with connected(nats.url) as connection:
        dc1 = await writer(connection)
        async with Reading(connection).running() as reading:
            os.kill(nats.pid, signal.SIGSTOP)
            await eventually(lambda: not reading.consumer.synced)
            os.kill(nats.pid, signal.SIGCONT)
            await eventually(lambda: reading.consumer.synced)
            await asyncio.to_thread(nats.stop)
            await asyncio.to_thread(nats.start)
            await connection.connect(60)
            last = await dc1.put(job("a"))
            await eventually(lambda: reading.sequences == list(range(1, last + 1)))
            assert reading.resets == 1


async def test_a_stream_that_is_shorter_than_what_was_read_is_read_from_its_beginning(nats):
    async with connected(nats.url) as connection:
        dc1 = await writer(connection)
        await dc1.put(*[job(f"j{n}") for n in range(10)])
        async with Reading(connection).running() as reading:
            await connection.api(f"STREAM.DELETE.{keys.STATE}")
            last = await (await writer(connection)).put(job("a"))
            await eventually(lambda: reading.sequences == list(range(1, last + 1)))
            assert reading.resets == 2


async def test_a_stream_whose_last_message_has_expired_is_synced():
    with Nats() as nats:
        async with connected(nats.url) as connection:
            dc1 = await writer(connection)
            await dc1.put(job("a"))
            marker = {"KV-Operation": "PURGE", "Nats-TTL": "1s"}
            await connection.request(keys.job("dc1", "b"), b"", headers=marker)

            async def expired():
                return await connection.last(keys.STATE, keys.job("dc1", "b")) is None

            await eventually(expired)
            async with Reading(connection).running() as reading:
                assert reading.sequences == [1, 2]


async def test_acknowledgement_subjects_of_the_second_version_are_understood(monkeypatch):
    replies: list[str] = []
    original = OrderedConsumer._receiver

    def noting(self: OrderedConsumer, broken: asyncio.Event) -> Callable[[Any], Any]:
        receive = original(self, broken)

        async def note(message: Any) -> None:
            replies.append(message.reply)
            await receive(message)

        return note

    monkeypatch.setattr(OrderedConsumer, "_receiver", noting)
    with Nats("feature_flags { js_ack_fc_v2: true }") as nats:
        async with connected(nats.url) as connection:
            dc1 = await writer(connection)
            async with Reading(connection).running() as reading:
                last = await dc1.put(*[job(f"j{n}") for n in range(500)])
                await eventually(lambda: reading.sequences == list(range(1, last + 1)))
    assert len([reply for reply in replies if reply.startswith("$JS.ACK.") and reply.count(".") > 9]) == last
