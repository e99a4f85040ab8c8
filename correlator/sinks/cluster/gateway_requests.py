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
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import orjson
from msgspec.structs import asdict, replace

from correlator.cluster import keys, rpc
from correlator.cluster.connection import ClusterUnavailable, Connection
from correlator.cluster.rpc import WANTED_FOR, Code, RemoteError
from correlator.errors import BadRequest, SourceUnavailable
from correlator.jobs import encoding, joblog, sizes
from correlator.jobs.directory import place_of
from correlator.model.published import LogLine
from correlator.ops import cluster_metrics
from correlator.pipeline.hub import Hub
from correlator.pipeline.queries import QUESTIONS, FindJob, FindLines, LogLines, OlderJobs, OtherJobs, Question
from correlator.sinks.cluster import documents
from correlator.sinks.turns import encoded
from correlator.tasks import end_tasks

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)


MAX_PENDING = 2_000_000
"""Bytes of requests, and of wanted IDs, that wait until they are received. More are dropped."""


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


class GatewayRequests:
    """Answers gateways on behalf of `instance`. Satisfies `correlator.sinks.Sink`; only the lease's holder runs it."""

    def __init__(self, connection: Connection, instance: str) -> None:
        self._connection = connection
        self._instance = instance

    async def run(self, hub: Hub) -> None:
        """Answer until cancelled. Subscriptions outlive a connection that is lost."""
        responder = Responder(Answers(hub).to)
        on_request, on_want = partial(self._on_request, responder), partial(self._on_want, hub)
        async with (
            self._connection.subscribed(keys.rpc(self._instance, "*"), on_request, pending=MAX_PENDING),
            self._connection.subscribed(keys.WANT, on_want, pending=MAX_PENDING),
        ):
            try:
                await asyncio.Event().wait()
            finally:
                await responder.close()

    async def _on_request(self, responder: Responder, message: Msg) -> None:
        async def reply(answer: bytes) -> None:
            try:
                await self._connection.publish(message.reply, answer)
            except ClusterUnavailable:
                return  # The gateway asks again.

        if message.reply.startswith(keys.INBOXES):  # A reply must not be a write that only this process may do.
            await responder.receive(message.subject.rpartition(".")[2], message.data, reply)

    async def _on_want(self, hub: Hub, message: Msg) -> None:
        read = partial(rpc.wanted_ids, message.data, self._instance)
        hub.waiting_ids.watch_for(self._connection.parser.parse(message.subject, read) or (), WANTED_FOR)


Reply: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Sends the reply to one request. It must not raise if the client has gone."""


class Responder:
    """Runs requests in tasks of their own. Event loop's thread only.

    `answer(question)` returns JSON, at most `rpc.MAX_BYTES`.
    """

    def __init__(self, answer: Callable[[Question[Any]], Awaitable[bytes]], most: int = MAX_RUNNING) -> None:
        self._answer = answer
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
        await end_tasks(set(self._tasks))

    async def _respond(self, method: str, message: bytes, reply: Reply) -> None:
        try:
            answer = rpc.encode_result(await self._asked(method, message))
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

    async def _asked(self, method: str, message: bytes) -> bytes:
        request = rpc.decode_request(message)
        if (kind := QUESTIONS.get(method)) is None:
            raise RemoteError(Code.UNSUPPORTED, f"the collector does not know the request {method!r}")
        question = rpc.decode_part(request.params, kind)
        async with asyncio.timeout(request.within):
            return await self._answer(question)


class Answers:
    """The answers from one hub. Each may raise `SourceUnavailable`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)

    async def to(self, question: Question[Any]) -> bytes:
        """Return the answer to `question` as JSON."""
        match question:
            case FindJob(name):
                found = await self._hub.find(name)
                answer = (msgspec.Raw(documents.encode(found[0])), found[1]) if found is not None else None
                return msgspec.json.encode(answer)
            case OlderJobs():
                async with self._pages:
                    return await self._jobs(question)
            case LogLines() | FindLines():
                async with self._pages:
                    return await self._lines(question)
        return msgspec.json.encode(await self._hub.ask(question))

    async def _jobs(self, asked: OlderJobs) -> bytes:
        found = await self._hub.page(asked.query, asked.before, min(max(1, asked.limit), MAX_JOBS), lambda _: False)
        jobs = sorted(found.jobs, key=place_of, reverse=True)
        parts, cut = await encoded(map(documents.encode, jobs), ROOM)
        following = place_of(jobs[len(parts) - 1]) if cut else found.next_before
        return msgspec.json.encode(OtherJobs([msgspec.Raw(part) for part in parts], following))

    async def _lines(self, asked: Any) -> bytes:
        """Read a page of `LogLines` or `FindLines` that fits into a reply."""
        limit = min(max(1, asked.limit), MAX_LINES)
        while True:
            page = await self._hub.ask(replace(asked, limit=limit))
            parts, cut = await encoded(map(_line, page.lines), ROOM)
            if not cut:
                return encoding.encode({**asdict(page), "lines": [orjson.Fragment(part) for part in parts]})
            limit = len(parts)  # The cursor after some of these lines is known only after they were read alone.


def _line(line: LogLine) -> bytes:
    text = encoding.encode(asdict(line))
    if len(text) <= ROOM:
        return text
    message, full = sizes.cut_text(line.message, MAX_TEXT)
    if full is not None:
        message += f" … ({full} bytes)"
    return encoding.encode(asdict(line) | {"message": message, "attrs": _cut_attrs(line.attrs)})


def _cut_attrs(attrs: Any) -> Any:
    """The members of attrs that fit, and the sizes of the others, as metadata are cut; null if it is no object."""
    if not isinstance(attrs, dict):
        return None
    members = [(sizes.published_name(name), encoding.encode(value).decode()) for name, value in attrs.items()]
    return joblog.metadata_object(sizes.cut_object(members, {}, sizes.Sizes().keep, MAX_TEXT))
