"""What a collector does for gateways: it answers their requests, and queries for the IDs that their clients wait for.

Only the holder of the lease subscribes to both (`GatewayRequests`). The subscriptions have no queue group: while a
former holder hangs, its connection is still there, and NATS would pass it every other request. Without a group both get
each request, and the first reply counts.

A flood of requests must cost the collector little: `Responder` rejects each request beyond the bound before it is
decoded, and cancels the work for the others when their client does not wait any more. `Answers` has what is answered,
from the hub: jobs, pages and log lines that only its database has. A reply is bounded (`rpc.MAX_RESULT_BYTES`). A page
of jobs or lines that is larger becomes shorter, and its cursor says where the next one begins. A job's document is the
one of the stream, and a log line that is larger alone is cut.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import orjson
from msgspec import Struct
from msgspec.structs import replace

from correlator.cluster import keys, rpc
from correlator.cluster.connection import ClusterUnavailable, Connection
from correlator.cluster.rpc import WANTED_FOR, Code, Method, RemoteError
from correlator.errors import BadRequest, SourceUnavailable
from correlator.jobs import job_document, joblog, sizes
from correlator.jobs.directory import place_of
from correlator.model.published import LogLine
from correlator.ops import cluster_metrics
from correlator.pipeline.hub import Hub
from correlator.pipeline.queries import (
    EarlierLines,
    FindResult,
    IsContextResult,
    LegacyResult,
    LinesBeforeParams,
    LinesPage,
    LinesParams,
    NameParams,
    OperationParams,
    OperationResult,
    OperationsParams,
    OperationsResult,
    PageParams,
)
from correlator.pipeline.waiting_ids import WaitingIds
from correlator.sinks.cluster import stored_document

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)


MAX_PENDING = 2_000_000
"""Bytes of requests, and of wanted IDs, that wait until they are received. More are dropped."""


EXPIRE_EVERY = 1.0
"""Seconds between two checks of the IDs that are not wanted any more."""


MAX_RUNNING = 32
"""Requests that are answered at a time. The database answers them one question at a time."""


PAGES_AT_ONCE = 4
"""Pages of jobs and of lines that are read and encoded at a time: each may have 4 MiB before it is cut."""


MAX_JOBS = 501
MAX_LINES = 1000
"""Most jobs, and most log lines, of one page."""


ROOM = rpc.MAX_RESULT_BYTES - 1_000
"""Bytes of the jobs or lines of a page."""


MAX_TEXT = 100_000
"""Bytes of the message, and of the attrs, of a log line that is cut."""


ENCODED_AT_ONCE = 0.01
"""Seconds of encoding before the event loop runs other tasks."""


MAX_WANTED = 1_000
"""Most IDs at a time. One more takes the place of the one that was wanted longest ago."""


class GatewayRequests:
    """Answers gateways on behalf of `instance`. Satisfies `correlator.sinks.Sink`; only the lease's holder runs it."""

    def __init__(self, connection: Connection, instance: str) -> None:
        self._connection = connection
        self._instance = instance

    async def run(self, hub: Hub) -> None:
        """Answer until cancelled. Subscriptions outlive a connection that is lost."""
        responder = Responder(Answers(hub).handlers())
        wanted = WantedIds(hub.waiting_ids)
        end_requests = await self._connection.subscribe(
            keys.rpc(self._instance, "*"), partial(self._on_request, responder), pending=MAX_PENDING
        )
        end_wants = await self._connection.subscribe(keys.WANT, partial(self._on_want, wanted), pending=MAX_PENDING)
        try:
            while True:
                await asyncio.sleep(EXPIRE_EVERY)
                wanted.expire(time.monotonic())
        finally:
            wanted.clear()
            await responder.close()
            await end_requests()
            await end_wants()

    async def _on_request(self, responder: Responder, message: Msg) -> None:
        async def reply(answer: bytes) -> None:
            try:
                await self._connection.publish(message.reply, answer)
            except ClusterUnavailable:
                return  # The gateway asks again.

        if message.reply.startswith(keys.INBOX):  # A reply must not be a write that only this process may do.
            await responder.receive(message.subject.rpartition(".")[2], message.data, reply)

    async def _on_want(self, wanted: WantedIds, message: Msg) -> None:
        read = partial(rpc.wanted_ids, message.data, self._instance)
        wanted.want(self._connection.parser.parse(message.subject, read) or (), time.monotonic())
        await asyncio.sleep(0)  # many messages may have arrived together


Reply: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Sends the reply to one request. It must not raise if the client has gone."""


class Handler(Struct, frozen=True):
    """`form`: the struct of the method's parameters. `answer(params)` returns JSON, at most `rpc.MAX_BYTES`."""

    form: type[Any]
    answer: Callable[[Any], Awaitable[bytes]]


class Responder:
    """Runs requests in tasks of their own. Event loop's thread only."""

    def __init__(self, handlers: Mapping[Method, Handler], most: int = MAX_RUNNING) -> None:
        self._handlers = {method.value: handler for method, handler in handlers.items()}
        self._most = most
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        return len(self._tasks)

    async def receive(self, method: str, message: bytes, reply: Reply) -> None:
        """Begin to answer a request, or reject it. Returns before the answer is sent."""
        if len(self._tasks) >= self._most:
            cluster_metrics.REQUESTS_REJECTED.inc()
            await reply(rpc.encode_failure(Code.BUSY, "the collector answers too many requests: repeat it later"))
        else:
            task = asyncio.create_task(self._respond(method, message, reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.sleep(0)  # many requests may have arrived together

    async def close(self) -> None:
        """Cancel what is being answered. The clients get no reply."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _respond(self, method: str, message: bytes, reply: Reply) -> None:
        try:
            answer = rpc.encode_result(await self._answer(method, message))
            if len(answer) > rpc.MAX_BYTES:
                raise RemoteError(Code.INTERNAL, f"the reply has {len(answer)} bytes, more than {rpc.MAX_BYTES}")
        except RemoteError as error:
            answer = rpc.encode_failure(error.code, error.detail)
        except SourceUnavailable as error:
            answer = rpc.encode_failure(Code.UNAVAILABLE, error.public)
        except BadRequest as error:
            answer = rpc.encode_failure(Code.BAD_REQUEST, str(error))
        except TimeoutError:
            answer = rpc.encode_failure(Code.TIMEOUT, "the collector could not answer in time")
        except Exception:
            log.exception("a request of a gateway failed", extra={"method": method})
            answer = rpc.encode_failure(Code.INTERNAL, "Internal error. See the collector's log.")
        await reply(answer)

    async def _answer(self, method: str, message: bytes) -> bytes:
        request = rpc.decode_request(message)
        if (handler := self._handlers.get(method)) is None:
            raise RemoteError(Code.UNSUPPORTED, f"the collector does not know the request {method!r}")
        params = rpc.decode_params(request.params, handler.form)
        async with asyncio.timeout(request.within):
            return await handler.answer(params)


class Answers:
    """The answers from one hub. Each may raise `SourceUnavailable`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)

    def handlers(self) -> Mapping[Method, Handler]:
        return {
            Method.FIND: Handler(NameParams, self.find),
            Method.PAGE: Handler(PageParams, self.page),
            Method.LINES: Handler(LinesParams, self.lines),
            Method.LINES_BEFORE: Handler(LinesBeforeParams, self.lines_before),
            Method.IS_CONTEXT: Handler(NameParams, self.is_context),
            Method.LEGACY_RECORD: Handler(NameParams, self.legacy_record),
            Method.OPERATIONS: Handler(OperationsParams, self.operations),
            Method.OPERATION: Handler(OperationParams, self.operation),
        }

    async def find(self, params: NameParams) -> bytes:
        found = await self._hub.find(params.name)
        if found is None:
            return msgspec.json.encode(FindResult())
        shown, resolved = found
        return msgspec.json.encode(
            FindResult(msgspec.Raw(stored_document.encode(shown)), resolved.resolved_by, resolved.also)
        )

    async def page(self, params: PageParams) -> bytes:
        async with self._pages:
            limit = min(max(1, params.limit), MAX_JOBS)
            found = await self._hub.page(params.query, params.before, limit, lambda _: False)
            jobs = sorted(found.jobs, key=place_of, reverse=True)
            parts = await _fitting(jobs, stored_document.encode, ROOM)
            following = found.next_before if len(parts) == len(jobs) else place_of(jobs[len(parts) - 1])
            return job_document.encode({"jobs": _fragments(parts), "next_before": following})

    async def lines(self, params: LinesParams) -> bytes:
        async def read(limit: int) -> LinesPage:
            return await self._hub.lines(params.names, params.after, limit, params.query)

        return await self._lines(params.limit, read, "next_after", "more")

    async def lines_before(self, params: LinesBeforeParams) -> bytes:
        async def read(limit: int) -> EarlierLines:
            return await self._hub.lines_before(params.names, params.before, limit, params.query)

        return await self._lines(params.limit, read, "next_before")

    async def _lines(
        self, most: int, read: Callable[[int], Awaitable[LinesPage | EarlierLines]], *members: str
    ) -> bytes:
        """Read a page of lines that fits into a reply. `members`: those of the page besides its lines."""
        limit = min(max(1, most), MAX_LINES)
        async with self._pages:
            while True:
                page = await read(limit)
                parts = await _fitting(page.lines, _line, ROOM)
                if len(parts) == len(page.lines):
                    more = {name: getattr(page, name) for name in members}
                    return job_document.encode({"lines": _fragments(parts), **more})
                limit = len(parts)  # The cursor after some of these lines is known only after they were read alone.

    async def is_context(self, params: NameParams) -> bytes:
        return msgspec.json.encode(IsContextResult(await self._hub.is_context(params.name)))

    async def legacy_record(self, params: NameParams) -> bytes:
        return msgspec.json.encode(LegacyResult(await self._hub.legacy_record(params.name)))

    async def operations(self, _: OperationsParams) -> bytes:
        return msgspec.json.encode(OperationsResult(tuple(await self._hub.operations())))

    async def operation(self, params: OperationParams) -> bytes:
        return msgspec.json.encode(OperationResult(await self._hub.operation((params.job_type, params.operation))))


async def _fitting(items: Sequence[Any], encode: Callable[[Any], bytes], room: int) -> list[bytes]:
    """Encode `items` one by one, as many as fit into `room` bytes; at least one, which must fit alone."""
    made: list[bytes] = []
    began = time.monotonic()
    for item in items:
        part = encode(item)
        room -= len(part) + 1
        if made and room < 0:
            break
        made.append(part)
        if time.monotonic() - began > ENCODED_AT_ONCE:
            await asyncio.sleep(0)
            began = time.monotonic()
    return made


def _line(line: LogLine) -> bytes:
    encoded = _encoded_line(line)
    if len(encoded) <= ROOM:
        return encoded
    message, full = sizes.cut_text(line.message, MAX_TEXT)
    if full is not None:
        message += f" … ({full} bytes)"
    return _encoded_line(replace(line, message=message, attrs=_cut_attrs(line.attrs)))


def _cut_attrs(attrs: Any) -> Any:
    """The members of attrs that fit, and the sizes of the others, as metadata are cut; null if it is no object."""
    if not isinstance(attrs, dict):
        return None
    members = [(sizes.published_name(name), job_document.encode(value).decode()) for name, value in attrs.items()]
    return joblog.metadata_object(sizes.cut_object(members, {}, sizes.Sizes().keep, MAX_TEXT))


def _encoded_line(line: LogLine) -> bytes:
    return job_document.encode(
        {
            "event_id": line.event_id,
            "level": line.level,
            "message": line.message,
            "step_id": line.step_id,
            "attrs": line.attrs,
            "at": line.at,
        }
    )


def _fragments(parts: Iterable[bytes]) -> list[orjson.Fragment]:
    return [orjson.Fragment(part) for part in parts]


class WantedIds:
    """Watches each ID for `WANTED_FOR` seconds after a gateway last wanted it. `now`: seconds of a monotonic clock."""

    def __init__(self, waiting_ids: WaitingIds, most: int = MAX_WANTED) -> None:
        self._waiting_ids = waiting_ids
        self._most = most
        self._until: OrderedDict[str, float] = OrderedDict()
        """For each watched ID: when it ceases to be watched; the earliest first."""

    def __len__(self) -> int:
        return len(self._until)

    def want(self, names: Iterable[str], now: float) -> None:
        """Watch `names` from now on."""
        for name in names:
            self._waiting_ids.watch_id(name)
            if name in self._until:  # it is watched once, however often it is wanted
                self._waiting_ids.unwatch_id(name)
            self._until[name] = now + WANTED_FOR
            self._until.move_to_end(name)
            if len(self._until) > self._most:
                self._unwatch_first()

    def expire(self, now: float) -> None:
        """Cease to watch what was not wanted again in time."""
        while self._until and next(iter(self._until.values())) <= now:
            self._unwatch_first()

    def clear(self) -> None:
        """Cease to watch all of them."""
        while self._until:
            self._unwatch_first()

    def _unwatch_first(self) -> None:
        self._waiting_ids.unwatch_id(self._until.popitem(last=False)[0])
