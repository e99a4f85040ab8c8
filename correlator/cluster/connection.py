"""The connection of this process to NATS: it connects again for ever, and reports whether it is connected.

Problem. The client library reconnects by itself, but closes for good after some errors of the server (a refused login,
too many connections, a protocol error), and its subscriptions end with it. It never reconnects if a server stopped
reading while something waited for the socket, because it waits until that is sent, nor after an error that it does not
expect, such as an endless first line. Some of its waits swallow a cancellation and go on. It also keeps what is
published while it is disconnected, and sends it later, when it may no longer be true. And it raises for some bytes that
a publisher may have as headers or in a subject, and then reads nothing more from its socket.

Model. `Connection.run` keeps one client open: it opens another as soon as one closed, or has not been connected for
`replace_after` seconds. `generation` changes with every connection and reconnection, so that a caller knows whether
what it set up is still there. Subscriptions (`subscribed`) are made again on a new client. A request or message
while disconnected raises `ClusterUnavailable` at once, and is not kept. `SendWindow` bounds what is under way.

Invariants. Every wait has a deadline. At most `MAX_PENDING` bytes wait for the socket. Event loop's thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from correlator.cluster.received import LOG_EVERY, REPORTED_FOR, Answer, Parser, Unreadable, decode, number
from correlator.config.schema import Cluster, client_context, is_seed
from correlator.errors import ConfigError, CorrelatorError
from correlator.ops import cluster_metrics
from correlator.tasks import Backoff, Pacer, done_within, keeping_cancellation, repeat_cancellation, set_within

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)


OnMessage: TypeAlias = "Callable[[Msg], Awaitable[None]]"


MAX_LINE = 64_000
"""Bytes of a line of a server."""

MAX_LOGGED = 300
"""Characters of what a server says that the log repeats."""

MAX_PENDING = 4_000_000
"""Bytes that wait for the socket. With more, publishing raises `ClusterUnavailable`."""


CONNECT_WITHIN = 5
PING_EVERY = 2
UNANSWERED_PINGS = 2
RECONNECT_EVERY = 0.5
"""Seconds to connect, between two pings, unanswered pings that end a connection, seconds between two attempts."""


CLOSE_WITHIN = 2.0
"""Seconds to close a client. The library may wait for ever for the end of a TLS connection whose server has gone."""


REPLACE_AFTER = 2.0
"""Seconds without a connection after which a client is replaced."""


ANSWER_WITHIN = 5.0
"""Seconds for the answer to a request."""


MAX_MESSAGE = 64_000_000
"""Bytes of a message. No server passes larger ones on, whatever its `max_payload`."""


MAX_HEADERS = 100_000
"""Bytes of the headers of a message. JetStream stores at most 64 kB of them, and adds its own."""


LEAST_SIZE = 400
"""Bytes of memory that a message without a payload takes: so many bytes of a buffer have room for one message."""


ASKED = 5
ASK_AGAIN = 0.2
"""Requests, each of which another server may get, and the seconds between two that read one key."""


OLDEST = (2, 12)
"""The oldest version of the server that has atomic batches."""


class Connection:
    """One connection to the servers of `settings.url`. `role`: collector, gateway or doctor.

    `close_within`: seconds to close a client. `client_of(tls)`: makes one; None: `new_client`.

    Answers come to an inbox below `_INBOX.cor.<role>.<instance>`, so that permissions can name it.

    Raises: `ConfigError` if the client library is missing or a file of the settings cannot be used.
    """

    def __init__(
        self,
        settings: Cluster,
        role: str,
        *,
        ping_every: float = PING_EVERY,
        replace_after: float = REPLACE_AFTER,
        close_within: float = CLOSE_WITHIN,
        parser: Parser | None = None,
        client_of: Callable[..., Client] | None = None,
    ) -> None:
        assert settings.url is not None
        self._settings = settings
        self._ping_every = ping_every
        self._replace_after = replace_after
        self._close_within = close_within
        self._client_of = client_of or new_client
        self._role = role
        self.name = f"correlator-{role}-{settings.instance}-{secrets.token_hex(4)}"
        """The name of this process in NATS's monitoring, and as the holder of a lease; new at every start."""
        self._client: Client | None = None
        self._subscriptions: dict[Subscription, None] = {}
        self._changed = asyncio.Event()
        self._closed = asyncio.Event()
        self._error: str | None = None
        self._since = time.monotonic()
        self._noted: dict[type[Exception], tuple[float, int]] = {}
        """By kind of error: when a line said it, in monotonic seconds, and how many came since then."""
        self._dropped, self._dropped_at, self._dropped_on = 0, -math.inf, ""
        """Messages that came sooner than this process handles them; when, in monotonic seconds, and on what subject."""
        self._options = login_options(settings)
        self.api_subject = f"$JS.{settings.domain}.API" if settings.domain else "$JS.API"
        """What the subjects of JetStream's API begin with."""
        self.window = SendWindow()
        self.parser = parser or Parser()
        """Parses the messages of this process."""
        self.generation = 0
        """Changes with every connection and reconnection."""

    async def run(self) -> None:
        """Keep a client open, until cancelled."""
        backoff = Backoff()
        try:
            while True:
                try:
                    await self._open()
                    backoff.reset()
                    await self._lost()
                except Exception as error:  # noqa: BLE001 - the library raises classes of its own, and Exception itself
                    self._failed(error)
                await self.close()
                await asyncio.sleep(backoff.next())
        finally:
            await self.close()

    async def _lost(self) -> None:
        """Wait until the client has closed, or has not been connected for `replace_after` seconds."""
        connected_at = time.monotonic()
        while not self._closed.is_set():
            await set_within(self._closed, self._replace_after / 5)
            if self.connected:
                connected_at = time.monotonic()
            elif time.monotonic() - connected_at >= self._replace_after:
                log.debug("NATS was not connected for %g s: connecting with another client", self._replace_after)
                return
        log.warning("the connection to NATS was closed: %s", self._error or "no reason given")

    async def close(self) -> None:
        """Close the client. What waits for the socket is sent first, within a second."""
        client, self._client = self._client, None
        if client is not None and not client.is_closed:
            if not client.is_connected:
                abort(client)
            try:
                await done_within(client.close(), self._close_within)
            except Exception as error:  # noqa: BLE001 - nothing depends on it any more
                log.debug("closing the connection to NATS: %s", error)
                abort(client)

    @property
    def connected(self) -> bool:
        """True while the servers can be reached, as of the last ping."""
        client = self._client
        return client is not None and client.is_connected

    @property
    def client(self) -> Client:
        """The connected client of the library. Raises: `ClusterUnavailable` if there is none."""
        client = self._client
        if client is None or not client.is_connected:
            raise ClusterUnavailable(self._error or "NATS is not connected")
        return client

    async def connect(self, within: float) -> None:
        """Wait until connected. Raises: `ClusterUnavailable` after `within` seconds."""
        try:
            async with asyncio.timeout(within):
                while not self.connected:
                    await self.changed()
        except TimeoutError:
            raise ClusterUnavailable(self._error or "NATS is not connected") from None

    async def changed(self) -> None:
        """Wait for the next connection, reconnection or disconnection."""
        await self._changed.wait()

    def describe(self) -> dict[str, Any]:
        """Return the state of the connection for /health/ready."""
        if self.connected:
            return {"ok": True, "connected": True, **self._describe_dropped(), **self.parser.describe()}
        age = round(time.monotonic() - self._since, 1)
        return {"ok": False, "connected": False, "error": self._error or "not connected yet", "age_seconds": age}

    def _describe_dropped(self) -> dict[str, Any]:
        if not self._dropped:
            return {}
        part: dict[str, Any] = {"dropped": self._dropped}
        if time.monotonic() - self._dropped_at < REPORTED_FOR:
            error = f"messages were dropped ({self._dropped}): they came faster than they are handled"
            part |= {"ok": False, "error": error, "subject": self._dropped_on}
        return part

    # -- messages

    async def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish a message, without an acknowledgement. Raises: `ClusterUnavailable`."""
        client = self._client_for(payload)
        try:
            await keeping_cancellation(client.publish(subject, payload, reply, dict(headers) if headers else None))
        except Exception as error:
            raise ClusterUnavailable(text_of(error)) from error

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        within: float = ANSWER_WITHIN,
    ) -> Msg:
        """Publish a request and return the first answer.

        Raises: `ClusterUnavailable`; `NoAnswer` after `within` seconds, `NoResponder` if nobody subscribes `subject`.
        """
        client = self._client_for(payload)
        try:
            asking = client.request(subject, payload, within, headers=dict(headers) if headers else None)
            return await keeping_cancellation(asking)
        except TimeoutError:
            raise NoAnswer(f"no answer within {within:g} s ({subject})") from None
        except Exception as error:
            raise failure_class(error)(f"{text_of(error)} ({subject})") from error

    def _client_for(self, payload: bytes) -> Client:
        client = self.client
        if client.pending_data_size + len(payload) > MAX_PENDING:
            raise ClusterUnavailable("NATS does not read what is sent to it")
        return client

    async def api(
        self, method: str, request: object = None, form: type[Any] = Answer, *, within: float = ANSWER_WITHIN
    ) -> dict[str, Any]:
        """Call the API of JetStream, e.g. `STREAM.INFO.KV_cor`. `form`: what the answer has at least.

        Raises: `Refused`; `ClusterUnavailable`, also for an answer of another form.

        A request gets no answer while no server leads the stream, so others follow: call only what may come twice.
        """
        payload = json.dumps(request).encode() if request is not None else b""
        answer = await self._first_answer(f"{self.api_subject}.{method}", payload, within=within, again=within / ASKED)
        return answer_of(answer.data, method, form)

    async def last(self, stream: str, subject: str, *, within: float = ANSWER_WITHIN) -> Msg | None:
        """Return the last message of a subject by a direct get; None if there is none.

        Any server that keeps the stream may answer, so it may lag behind a write for a moment, and one that hangs gets
        requests too: so another request follows if there is no answer soon. `seq_of` is its sequence, the header
        Nats-Time-Stamp its time.
        """
        answer = await self._first_answer(
            f"{self.api_subject}.DIRECT.GET.{stream}.{subject}", within=within, again=ASK_AGAIN
        )
        headers = answer.headers or {}
        if "Nats-Sequence" in headers:  # A stored message may have a header Status of its own.
            seq_of(answer)  # Raises, where nobody can use the answer.
            return answer
        if headers.get("Status") == "404":
            return None
        raise Refused(f"{headers.get('Description') or headers.get('Status', 'no answer of a stream')} ({stream})")

    async def _first_answer(self, subject: str, payload: bytes = b"", *, within: float, again: float) -> Msg:
        """Send a request up to `ASKED` times, `again` seconds apart, and return the first answer."""
        clock = asyncio.get_running_loop().time
        until = clock() + within
        asked: set[asyncio.Task[Msg]] = set()
        try:
            while True:
                if len(asked) < ASKED and (left := until - clock()) > 0:
                    asked.add(asyncio.create_task(self.request(subject, payload, within=left)))
                more = len(asked) < ASKED and clock() + again < until
                done, _ = await asyncio.wait(
                    asked, timeout=again if more else None, return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    return done.pop().result()  # An error concerns every request: the first one has waited longest.
        finally:
            for task in asked:
                task.cancel()
            if asked:
                await asyncio.wait(asked)
            for task in asked:
                if not task.cancelled():
                    task.exception()

    @contextlib.asynccontextmanager
    async def subscribed(self, subject: str, on_message: OnMessage, *, pending: int = 8_000_000) -> AsyncIterator[None]:
        """Call `on_message` with every message of `subject` during the block, also after reconnections.

        Other tasks run between two messages, however many have arrived, once they have waited for `tasks.TURN`.
        `pending`: bytes of messages that wait for `on_message`, each of which counts as `LEAST_SIZE` at least; more are
        dropped, and logged.
        """
        subscription = Subscription(subject, on_message, pending)
        self._subscriptions[subscription] = None
        try:
            if self.connected:
                await self._subscribe(self.client, subscription)
            yield
        finally:
            del self._subscriptions[subscription]
            if subscription.made is not None and self.connected:
                try:
                    await keeping_cancellation(subscription.made.unsubscribe())
                except Exception as error:  # noqa: BLE001 - it ends with its client at the latest
                    log.debug("ending a subscription: %s", error)

    # -- the client

    async def _open(self) -> None:
        assert self._settings.url is not None
        self._closed.clear()
        client = self._client_of(tls=self._settings.url.tls)
        opening = client.connect(
            servers=list(self._settings.url.servers),
            name=self.name,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
            connect_timeout=CONNECT_WITHIN,
            reconnect_time_wait=RECONNECT_EVERY,  # type: ignore[arg-type]
            max_reconnect_attempts=-1,
            ping_interval=self._ping_every,  # type: ignore[arg-type]
            max_outstanding_pings=UNANSWERED_PINGS,
            pending_size=2 * MAX_PENDING,
            inbox_prefix=f"_INBOX.cor.{self._role}.{self._settings.instance}",
            **self._options,
        )
        self._client = client
        await done_within(opening, CONNECT_WITHIN * (len(self._settings.url.servers) + 2))
        version = client.connected_server_version
        if (version.major, version.minor) < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise ValueError(f"the NATS server has version {version!r}; a cluster needs {wanted} or newer")
        for subscription in list(self._subscriptions):
            await self._subscribe(client, subscription)
        self._connected("connected to NATS at")

    async def _subscribe(self, client: Client, subscription: Subscription) -> None:
        pacer = Pacer()

        async def receive(message: Msg) -> None:  # The library awaits one after the other, without a pause.
            await subscription.on_message(message)
            await pacer.pause()

        subscribing = client.subscribe(
            subscription.subject,
            cb=receive,
            pending_bytes_limit=subscription.pending,
            pending_msgs_limit=max(1, subscription.pending // LEAST_SIZE),
        )
        subscription.made = await keeping_cancellation(subscribing)

    def _connected(self, what: str) -> None:
        url = self._client.connected_url if self._client is not None else None
        log.info("%s %s", what, url.netloc if url is not None else "?")
        self._error = None
        self._since = time.monotonic()
        self.generation += 1
        self._announce()

    def _announce(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _failed(self, error: BaseException) -> None:
        text = text_of(error)
        if isinstance(error, BrokenPipeError | ConnectionResetError):
            # A server closes the connection that it refuses, often before the reason can be read.
            if self._error is not None and (is_login_refused(self._error) or "exceeded" in self._error):
                return
            text += ": the server closed the connection, which it does at once when its max_connections are in use"
        level = logging.WARNING if self._error is None else logging.DEBUG
        log.log(level, "NATS cannot be used: %s; trying again", text)
        self._error = text

    async def _on_error(self, error: Exception) -> None:
        if self.connected:
            self._note(error)
        else:
            self._failed(error)
            repeat_cancellation()  # The library's loop of attempts has no end.

    def _note(self, error: Exception) -> None:
        """Log an error of a connection that goes on: of each kind, one line in `LOG_EVERY` seconds."""
        kind, now = type(error), time.monotonic()
        if is_slow_consumer(error):
            self._dropped, self._dropped_at = self._dropped + 1, now
            self._dropped_on = str(getattr(error, "subject", "")).encode("unicode_escape").decode()[:200]
            cluster_metrics.MESSAGES_DROPPED.inc()
        at, left_out = self._noted.get(kind, (-LOG_EVERY, 0))
        if now - at < LOG_EVERY:
            self._noted[kind] = at, left_out + 1
            return
        self._noted[kind] = now, 0
        more = f" ({left_out} more of this kind since the line before)" if left_out else ""
        log.warning("NATS reports: %s%s", text_of(error)[:MAX_LOGGED], more)

    async def _on_disconnected(self) -> None:
        self._since = time.monotonic()
        self._error = self._error or "the connection was lost"
        log.warning("the connection to NATS was lost; reconnecting")
        self._announce()

    async def _on_reconnected(self) -> None:
        self._connected("connected to NATS again, at")

    async def _on_closed(self) -> None:
        self._closed.set()
        self._announce()


@dataclass(eq=False, slots=True)
class Subscription:
    """A subscription that outlives the client it was made on."""

    subject: str
    on_message: OnMessage
    pending: int
    made: Any = None


def seq_of(message: Msg | None) -> int:
    """Return the sequence of what `Connection.last` returned; 0: there is no message. Raises: `ClusterUnavailable`."""
    return number_of(message, "Nats-Sequence") if message is not None else 0


def number_of(message: Msg, header: str) -> int:
    """Return the number that a header has; 0: there is none. Raises: `ClusterUnavailable`."""
    try:
        return number((message.headers or {}).get(header, "0"))
    except Unreadable as error:
        raise ClusterUnavailable(f"the header {header} of NATS cannot be read: {error}") from error


def answer_of(payload: bytes, what: str, form: type[Any]) -> dict[str, Any]:
    """Parse an answer of JetStream to `what`, which has the members of `form` at least.

    Raises: `Refused` if it is an error, `ClusterUnavailable` for what no JetStream answers.
    """
    try:
        found = decode(payload, dict[str, Any])
        refusal = decode(payload, Answer).error
        if refusal is None:
            decode(payload, form)
    except Unreadable as error:
        raise ClusterUnavailable(f"the answer of JetStream cannot be read: {error} ({what})") from error
    if refusal is not None:
        raise Refused(f"{explained(refusal.description[:MAX_LOGGED])} ({what})", refusal.err_code)
    return found


# -- errors


class ClusterUnavailable(CorrelatorError):
    """NATS cannot be reached, or did not answer in time. A state, not a failure: try again.

    The outcome of a request that raises this is unknown: NATS may have done what it was asked.
    """


class NoAnswer(ClusterUnavailable):
    """Nobody answered a request in time."""


class NoResponder(ClusterUnavailable):
    """Nobody subscribes the subject of a request, as NATS says at once."""


class Unacknowledged(ClusterUnavailable):
    """The acknowledgement of a write did not come: it may have been stored or not. Write it again."""


class Refused(CorrelatorError):
    """NATS answered a request with an error. `code`: NATS's own number of it (`err_code`), 0 if there is none."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class Fenced(Refused):
    """A write was refused as a whole, because another collector owns the instance, or the owner key is gone."""


# -- the window of what is under way


WINDOW_GOAL = 0.75
"""Seconds besides the latency in which the bytes of a window are acknowledged."""


MIN_WINDOW = 16_000
MAX_WINDOW = 1_000_000
"""Bytes of the smallest window, which is the first one, and of the largest."""


class SendWindow:
    """How many bytes may be under way without an acknowledgement: as many as the link takes in a short time.

    What waits in front of a slow link delays everything behind it, and a batch that takes longer than the deadline of
    its answer is sent again for ever. A fast link needs large batches.

    Each write waits until its bytes fit the window, and notes how long its acknowledgement took. The shortest time so
    far is the latency of link and server. The window is what the link has taken in `WINDOW_GOAL` seconds besides: it
    grows while full windows are acknowledged sooner, and shrinks if one is late. If even the smallest window is late,
    so is the answer to a single byte, and the latency is what it took. Writes pass in turn, so their sizes are their
    shares of the link: one that is in no hurry is small (`rest`) while there are others.

    Invariant: never more than `size` bytes are under way, unless one single write is larger.
    """

    def __init__(self) -> None:
        self.size = MIN_WINDOW
        self._latency, self._measured_with = math.inf, 0
        """The shortest acknowledgement, in seconds, and the bytes that were under way then."""
        self._under_way = 0
        self._shared_at = -math.inf
        """When a write last came while another one was under way."""
        self._line = asyncio.Lock()
        self._freed = asyncio.Event()

    @property
    def share(self) -> int:
        """Bytes that one write should have at most, so that two fill the link."""
        return self.size // 2

    @property
    def rest(self) -> int:
        """The same of a write that is in no hurry: an eighth of it if others have been written in the last moments."""
        is_shared = asyncio.get_running_loop().time() - self._shared_at < WINDOW_GOAL
        return self.share // 8 if is_shared else self.share

    def deadline(self, size: int, within: float) -> float:
        """Return the seconds for the answer to a write, which has `within` besides the time for `size` bytes."""
        return within + 2 * WINDOW_GOAL * size / self.size

    @contextlib.asynccontextmanager
    async def passing(self, size: int) -> AsyncIterator[None]:
        """Wait in line until `size` bytes may be sent; the block ends with their acknowledgement.

        The block raises `ClusterUnavailable` or `TimeoutError` if none came.
        """
        clock = asyncio.get_running_loop().time
        if self._under_way:
            self._shared_at = clock()
        async with self._line:
            while self._under_way and self._under_way + size > self.size:
                self._freed.clear()
                await self._freed.wait()
            self._under_way += size
        under_way, began = self._under_way, clock()
        try:
            yield
            self._acknowledged(under_way, clock() - began)
        except (ClusterUnavailable, TimeoutError):
            self.size = MIN_WINDOW
            raise
        finally:
            self._under_way -= size
            self._freed.set()

    def _acknowledged(self, under_way: int, seconds: float) -> None:
        """Note that so many bytes have passed in this time."""
        late_anyway = under_way <= MIN_WINDOW and seconds > self._latency + WINDOW_GOAL
        if late_anyway or seconds <= self._latency:
            self._latency, self._measured_with = seconds, under_way
        sending = seconds - self._latency
        more = under_way - self._measured_with if under_way >= 2 * self._measured_with else under_way
        passed = int(more * WINDOW_GOAL / max(sending, 0.001))
        if sending > WINDOW_GOAL:
            self.size = max(MIN_WINDOW, self.size // 2, min(self.size, passed))
        elif 2 * under_way >= self.size:
            self.size = min(MAX_WINDOW, 2 * self.size, max(self.size, passed))


# -- the client library


def login_options(settings: Cluster) -> dict[str, Any]:
    """Return the options for credentials and TLS.

    Raises: `ConfigError` if the client library is missing or a file of the settings cannot be used.
    """
    assert settings.url is not None
    options = _credentials(settings)
    if settings.url.tls:
        try:
            options["tls"] = client_context(settings.tls)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError([f"cluster.tls: the files cannot be used: {error}"]) from None
    return options


def _credentials(settings: Cluster) -> dict[str, Any]:
    try:
        import nats.aio.client  # noqa: F401, PLC0415 - only a process with [cluster] needs the library
    except ImportError as error:
        text = f"cluster.url: needs the Python package nats-py (the extra cluster): {error}"
        raise ConfigError([text]) from None
    file = settings.credentials_file
    if file is None:
        return {}
    try:
        import nkeys  # noqa: F401, PLC0415 - certificates need no signatures of this program
    except ImportError:
        text = "cluster.credentials_file: needs the Python package nkeys. A certificate (cluster.tls) needs none"
        raise ConfigError([text]) from None
    return {"nkeys_seed": str(file)} if is_seed(file) else {"user_credentials": str(file)}


def new_client(*, tls: bool = False) -> Client:
    """Return a client that reads every message. Headers that cannot be read are left out of it.

    `tls`: send nothing to a server that offers no TLS. The library begins TLS only if the first line of the server,
    which anybody between may change, asks for it.
    """
    from nats.aio.client import Client  # noqa: PLC0415 - only a process with [cluster] needs the library
    from nats.errors import Error  # noqa: PLC0415

    class TolerantClient(Client):
        def __init__(self) -> None:
            super().__init__()
            self._ps = bounded_parser(self)

        async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
            if tls and initial_connection and not info.get("tls_required"):
                raise Error("the server offers no TLS, or somebody between has removed the offer: nothing was sent")
            # `cluster.url` names all servers. The library's list of others has no bound.
            info.pop("connect_urls", None)
            await super()._process_info(info, initial_connection)

        async def _process_headers(self, headers: Any) -> Any:
            if headers is not None and len(headers) > MAX_HEADERS:
                return None
            try:
                return await super()._process_headers(headers)
            except (IndexError, UnicodeError):
                return None

        def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> Any:
            return self.msg_class(
                subject=subject.decode("utf-8", "surrogateescape"),
                reply=reply.decode("utf-8", "surrogateescape"),
                data=data,
                headers=headers,
                _client=self,
                _sid=sid,
            )

    return TolerantClient()


def bounded_parser(client: Client) -> Any:
    """Return the parser of a client: it takes bounded time and memory, and ends the connection for all else."""
    from nats.errors import ProtocolError  # noqa: PLC0415 - only a process with [cluster] needs the library
    from nats.protocol import parser  # noqa: PLC0415

    class BoundedParser(parser.Parser):
        async def parse(self, data: bytes = b"") -> None:
            try:
                await super().parse(data)
            except (ProtocolError, OSError):
                raise
            except Exception as error:  # With any other class, the library stops reading and keeps the connection.
                raise ProtocolError(f"what no server sends: {error}") from error
            if self.state == parser.AWAITING_MSG_PAYLOAD:
                if self.needed > MAX_MESSAGE:
                    raise ProtocolError(f"a message of more than {MAX_MESSAGE} bytes")
            elif len(self.buf) > MAX_LINE:  # The library searches an unfinished line anew with each part of it.
                raise ProtocolError(f"a line of more than {MAX_LINE} bytes")

    # The server ends the parts of this line with blanks and tabs only; the library's patterns also with \f and \v. And
    # theirs of INFO takes the square of the time for blanks without an end.
    parser.INFO_RE = re.compile(rb"\AINFO[ \t]+([^ \t\r\n][^\r\n]*)\r\n")
    parser.MSG_RE = re.compile(rb"\AMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)\r\n")
    parser.HMSG_RE = re.compile(
        rb"\AHMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)[ \t]+(\d+)\r\n"
    )
    return BoundedParser(client)


def abort(client: Client) -> None:
    """Close the socket of a client without sending what waits for it: the library would wait for that for ever."""
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


def is_slow_consumer(error: Exception) -> bool:
    """True if the library reports a message that it dropped because the buffer of its subscription is full."""
    from nats.errors import SlowConsumerError  # noqa: PLC0415 - only a process with [cluster] needs the library

    return isinstance(error, SlowConsumerError)


def failure_class(error: Exception) -> type[ClusterUnavailable]:
    """The class of what a request raised in the library."""
    from nats.errors import NoRespondersError  # noqa: PLC0415 - only a process with [cluster] needs the library

    return NoResponder if isinstance(error, NoRespondersError) else ClusterUnavailable


_MEANINGS = {
    "maximum connections exceeded": "max_connections of the server are in use",
    "maximum account active connections exceeded": "max_connections of the account are in use",
    "maximum subscriptions exceeded": "max_subscriptions of the server or account are in use",
    "batch is incomplete": "NATS dropped a part of it: its disk is full, or the stream has reached max_bytes",
    "no space left on device": "the disk of the NATS server is full",
}
"""What errors of NATS mean that do not say it."""


def explained(text: str) -> str:
    """Return an error of NATS with what it means, if it does not say it itself."""
    lower = text.lower()
    meaning = next((words for said, words in _MEANINGS.items() if said in lower), None)
    return f"{text}: {meaning}" if meaning is not None else text


def text_of(error: BaseException) -> str:
    """Return an error of the library as one line without its own prefix, with what it means."""
    text = " ".join(str(error).split()).removeprefix("nats: ").strip()
    return explained(text) or type(error).__name__


def kind_of(error: Exception) -> Hashable:
    """Return what is the same in each attempt that fails for the same reason, whatever the text says."""
    return type(error), error.code if isinstance(error, Refused) else 0


def is_login_refused(text: str) -> bool:
    """True if `text`, from `text_of`, says that the server knows no such user, or does not accept what proves it."""
    lower = text.lower()
    return "authorization" in lower or "authentication" in lower
