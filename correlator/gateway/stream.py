"""Reads a stream of JetStream from its newest state on, in order, without a gap, for as long as the process runs.

Problem. A push consumer loses messages without a word: at a full buffer, and while the server that leads it fails. A
stream may also be deleted and created again, or restored from an older copy; a consumer that starts beyond its end gets
heartbeats and never data.

Model. The first consumer delivers the last message of each subject, each later one starts after the last message that
was read. Consumers are cheap (in memory, not replicated, no acknowledgements), so whatever is doubtful ends one and
creates the next: a gap in its own numbering, 2.2 s without a message or heartbeat, a reconnection. Each creation first
checks that the stream is still the one that was read, by its creation time, its last sequence, and an `identity` that
its writers keep in it. If it is not, `on_reset` is called and the reading begins again. `StreamEnd` says whether a
position is beyond the end of the stream, for a client that is ahead of this gateway.

Invariants. Messages are passed on in the order of the stream, each once, in batches that one turn of the event loop has
received. `synced` becomes true when the reading has reached the end that the stream had at the last creation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from correlator.cluster import keys, received, streams
from correlator.cluster.connection import ClusterUnavailable, Connection, Refused, kind_of
from correlator.model.rows import Micros
from correlator.ops.outage import Outage
from correlator.tasks import Backoff, SharedTasks, set_within

if TYPE_CHECKING:
    from nats.aio.msg import Msg


log = logging.getLogger(__name__)

HEARTBEAT = 1.0
SILENT_AFTER = 2.2
"""Seconds between two heartbeats of an idle consumer; seconds without any message after which it counts as lost."""

INACTIVE = 10.0
"""Seconds after which the server drops a consumer that nobody reads."""

MAX_BATCH = 200
MAX_BATCH_BYTES = 64_000
"""Messages that are passed on in one call, and their bytes, before the event loop runs other tasks."""

MAX_PENDING = 64_000_000
"""Bytes of messages that wait to be read. Flow control keeps them well below; more are a gap."""

ASK_EVERY = 0.5
ASK_WITHIN = 2.0
"""Seconds between two questions to the stream's leader, and for an answer."""

_NANO = 1_000_000_000


class OrderedConsumer:
    """Reads `stream`, the subjects that match one of `subjects`. Event loop's thread only.

    `on_messages`: gets the messages, must not wait and must not raise. It returns how many it has taken, one at least;
    it gets the others again when other tasks have run. None: all. `on_reset`: forget all that was read; gets the
    identity of the stream. `identity`: reads what its writers keep in it, if they do; it returns None if the stream is
    not ready to be read.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        subjects: Sequence[str],
        on_messages: Callable[[Sequence[StoredMessage]], int | None],
        on_reset: Callable[[str], None] = lambda _: None,
        identity: Callable[[Connection], Awaitable[str | None]] | None = None,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._subjects = subjects
        self._on_messages = on_messages
        self._on_reset = on_reset
        self._identity = identity
        self._known: tuple[Any, str] | None = None
        """The creation time and identity of the stream that was read."""
        self._batch: list[StoredMessage] = []
        self._flushing = False
        self._expected = 1
        """The number that the consumer's next message has."""
        self._received_at = 0.0
        self._broken = asyncio.Event()
        self._end = 0
        self.seq = 0
        """The sequence of the last message that was passed on."""
        self.synced = False
        self.synced_at: float | None = None
        """Monotonic seconds at which this reading had caught up; None if it has not."""
        self._writable_at = -math.inf
        """Monotonic seconds of the last moment at which messages could be written, as far as is known."""
        self.server_time: Micros = 0
        """The time by the server's clock when this reading began, to the second."""
        self.behind: int | None = None
        """Messages that are not read yet, as the server last said; None while there is no consumer."""
        self.error: str | None = "not read yet"
        self._outage = Outage()

    async def run(self) -> None:
        """Read until cancelled."""
        backoff = Backoff(base=0.05, factor=2.0, cap=2.0)
        while True:
            try:
                await self._follow(backoff)
            except (ClusterUnavailable, Refused) as error:
                log.log(self._outage.level(kind_of(error)), "the stream %s cannot be read: %s", self._stream, error)
                self.error = str(error)
            self.synced, self.synced_at, self.behind = False, None, None
            await asyncio.sleep(backoff.next())

    @property
    def listening(self) -> tuple[float, float] | None:
        """The span in which each message that was written has come here, in monotonic seconds. None: they do not come.

        It ends when messages could last be written.
        """
        return None if self.synced_at is None else (self.synced_at, self._writable_at)

    async def follow_writable(self) -> None:
        """While no message comes, ask the leader of the stream whether one could be written. Until cancelled.

        A consumer lives on one server. It sends heartbeats also when most servers of the stream are away.
        """
        while True:
            await asyncio.sleep(ASK_EVERY)
            asked = time.monotonic()
            if self.synced and asked - self._writable_at >= 2 * ASK_EVERY:
                with contextlib.suppress(ClusterUnavailable, Refused):
                    info = await streams.info(self._connection, self._stream, within=ASK_WITHIN)
                    self._writable_at = max(self._writable_at, asked - streams.quorum_age(info))

    def restart(self) -> None:
        """Begin again: what was read no longer counts."""
        self._known = None
        self._broken.set()

    async def _follow(self, backoff: Backoff) -> None:
        """Create a consumer and read it until it is lost."""
        await self._connection.connect(SILENT_AFTER)
        self._broken = broken = asyncio.Event()
        watching = asyncio.create_task(self._connection.changed())
        watching.add_done_callback(lambda _: broken.set())
        try:
            await self._verify()
            inbox = self._connection.client.new_inbox()
            self._expected = 1
            async with self._connection.subscribed(inbox, self._receiver(broken), pending=MAX_PENDING):
                await self._create(inbox)
                self._received_at = time.monotonic()
                self.error = None
                self._settle()
                while (left := self._received_at + SILENT_AFTER - time.monotonic()) > 0:
                    if await set_within(broken, left):
                        self.error = "the consumer was lost"
                        return
                    await asyncio.sleep(0.05)  # What has arrived while the event loop was busy counts.
                self.error = f"no heartbeat for {SILENT_AFTER:g} s"
                log.info("the consumer of the stream %s is silent: another one is created", self._stream)
        finally:
            if self.synced:
                backoff.reset()
            broken.set()
            watching.cancel()

    async def _verify(self) -> None:
        """Check that the stream is the one that was read, or begin again."""
        info = await streams.info(self._connection, self._stream)
        if info is None:
            raise NotThere(str(streams.problem({self._stream: None})))
        identity = await self._identity(self._connection) if self._identity is not None else ""
        if identity is None:
            raise NotThere(f"the stream {self._stream} has no epoch: no collector has written to it yet")
        self._end = int(info["state"]["last_seq"])
        self.server_time = received.time_of(f"{str(info.get('ts'))[:19]}.000000Z") if "ts" in info else 0
        found = (info["created"], identity)
        if found != self._known or self._end < self.seq:
            if self._known is not None:
                log.warning("the stream %s is another one than before: all is read again", self._stream)
            self._known, self.seq, self._batch = found, 0, []
            self._on_reset(identity)

    async def _create(self, inbox: str) -> None:
        self._batch = []  # What was not passed on comes again.
        name = f"g{secrets.token_hex(8)}"
        only = f".{self._subjects[0]}" if len(self._subjects) == 1 else ""
        start: dict[str, Any] = {"deliver_policy": "last_per_subject"}
        if self.seq:
            start = {"deliver_policy": "by_start_sequence", "opt_start_seq": self.seq + 1}
        config = {
            "name": name,
            "deliver_subject": inbox,
            **({"filter_subject": self._subjects[0]} if only else {"filter_subjects": self._subjects}),
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "idle_heartbeat": int(HEARTBEAT * _NANO),
            "flow_control": True,
            "inactive_threshold": int(INACTIVE * _NANO),
            **start,
        }
        request = {"stream_name": self._stream, "config": config, "action": "create"}
        found = await self._connection.api(
            f"CONSUMER.CREATE.{self._stream}.{name}{only}", request, received.ConsumerInfo
        )
        if not found.get("num_pending") and not found["delivered"]["consumer_seq"]:
            self._end = min(self._end, self.seq)  # Nothing is there to read, whatever the last sequence was.

    # -- messages

    def _receiver(self, broken: asyncio.Event) -> Callable[[Msg], Awaitable[None]]:
        """The callback of one consumer: messages that come after it was lost are ignored."""
        size = 0

        async def receive(message: Msg) -> None:
            nonlocal size
            if broken.is_set():
                return
            self._received_at = time.monotonic()
            headers = message.headers
            if not message.reply.startswith(keys.ACK):  # A stored message may have a header Status of its own.
                await self._control(message, headers or {})
                return
            try:
                place = _place_of(message.reply)
            except ValueError:
                place = None
            if place is None or place.delivered != self._expected:
                log.warning("messages of the stream %s were lost: another consumer is created", self._stream)
                broken.set()
                return
            self._expected += 1
            self._writable_at = self._received_at
            self.behind = place.behind
            self._batch.append(StoredMessage(message.subject, place.seq, place.at, message.data, headers))
            size = size + len(message.data) if self._flushing else len(message.data)
            if not self._flushing:
                self._flushing = True
                asyncio.get_running_loop().call_soon(self._flush)
            if len(self._batch) >= MAX_BATCH or size >= MAX_BATCH_BYTES:
                await asyncio.sleep(0)

        return receive

    async def _control(self, message: Msg, headers: Mapping[str, str]) -> None:
        """Answer to flow control, and use a heartbeat: it is sent when nothing is left to deliver."""
        if message.reply:
            await self._connection.publish(message.reply, b"")
        elif (stalled := headers.get("Nats-Consumer-Stalled")) is not None:
            await self._connection.publish(stalled, b"")
        elif (last := headers.get("Nats-Last-Consumer")) is not None:
            if last != str(self._expected - 1):
                self._broken.set()
                return
            self.behind, self._end = 0, min(self._end, self.seq)
            self._settle()

    def _flush(self) -> None:
        self._flushing = False
        batch, self._batch = self._batch, []
        if batch:
            try:
                taken = self._on_messages(batch)
            except Exception:
                log.exception("messages of the stream %s could not be applied: all is read again", self._stream)
                self.restart()
                return
            left = batch[taken:] if taken is not None else []
            self.seq = batch[-len(left) - 1].seq
            if left:
                self._batch, self._flushing = left, True
                asyncio.get_running_loop().call_soon(self._flush)
                return
        self._settle()

    def _settle(self) -> None:
        if not self.synced and not self._batch and self.seq >= self._end:
            self.synced, self.synced_at, self.error = True, time.monotonic(), None
            self._outage.end()
            self._on_messages(())


class StoredMessage(Struct, frozen=True, gc=False):
    """A message of the stream. `at`: when it was stored."""

    subject: str
    seq: int
    at: Micros
    payload: bytes
    headers: Mapping[str, str] | None


class _Place(NamedTuple):
    """The place of a message in the stream, and among those of its consumer. `behind`: those that are still to come."""

    seq: int
    delivered: int
    at: Micros
    behind: int


def _place_of(reply: str) -> _Place:
    """Parse the subject of a reply to a consumer's message. Raises: `ValueError` if it is none."""
    tokens = reply.split(".")
    at = 2 if len(tokens) > 9 else 0  # The second version has a domain and an account hash.
    seq, delivered, nanoseconds, behind = map(int, tokens[5 + at : 9 + at])
    if not 0 <= min(seq, behind) <= max(seq, nanoseconds, behind) <= received.MAX_SEQ:
        raise ValueError("a number is out of range")
    return _Place(seq, delivered, nanoseconds // 1000, behind)


class NotThere(ClusterUnavailable):
    """The stream does not exist yet, or nothing has identified it."""


class StreamEnd:
    """Asks the leader of the stream for its last sequence. Callers that wait at the same time share one request."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asking: SharedTasks[int | None] = SharedTasks()

    async def is_before(self, seq: int) -> bool:
        """True if the stream ends before `seq`, so that no gateway can have shown that position.

        False also if the leader does not answer: nobody knows then.
        """
        end = await self._asking.run("", self._ask)
        return end is not None and end < seq

    async def _ask(self) -> int | None:
        try:
            found = await streams.info(self._connection, keys.STATE, within=ASK_WITHIN)
        except (ClusterUnavailable, Refused):
            return None
        return int(found["state"]["last_seq"]) if found is not None else None
