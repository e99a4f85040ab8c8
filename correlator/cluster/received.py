"""Parses what was read from the cluster: the only place that does, because all of it is untrusted.

Problem. A client may write any bytes to the subjects that its certificate allows, and so may a program of another
version, or of another kind. What a parser raises must end no task: it would end a collector or a gateway again after
each start, and a gateway would lose the documents of other appliances.

Model. `decode` and `document` check the size and the nesting of a value before its form, and raise `Unreadable`
whatever is wrong with it. `Parser` calls them for what a process gets, counts what is unreadable, and describes it
for readiness. The caller passes such a message over, or replaces it if it is its own.

Invariants. Nothing here raises anything but `Unreadable`. `encoding.encode` makes JSON of what is returned.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
import orjson
from msgspec import Meta, Raw, Struct
from msgspec.structs import replace

from correlator.cluster import growth
from correlator.jobs import encoding
from correlator.model import encoder
from correlator.model.document import Seconds
from correlator.model.document import decode as decode_document
from correlator.model.messages import DatabaseState
from correlator.model.published import PublishedJob
from correlator.model.rows import Micros
from correlator.ops import cluster_metrics

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BYTES = 1 << 20
"""Bytes of a message of any kind: the default bound of a NATS server."""

MAX_MESSAGE = 260_000
"""Bytes of a message of log lines, and of an event. Collectors write no larger ones."""

MAX_KEY = 64_000
"""Bytes of the owner key and of the alive key."""

MAX_DEPTH = encoder.MAX_DEPTH + 10
"""Levels of nesting of a message, or of metadata. Collectors write no deeper ones: some levels are around a value."""

MAX_IDS = 1_000
"""External IDs, or children, of a document. Collectors write no more: `MAX_CHILDREN`, and `MAX_EXTERNAL_IDS` besides
those of a row."""

MAX_DIGITS = 20
"""One more than a number of 63 bits has."""

REPORTED_FOR = 660.0
"""Seconds for which readiness has a problem after an unreadable message: a collector compares its documents with the
stream every 600 s, and replaces those that differ."""

UNWRITTEN_AFTER = 5.0
"""Seconds after which a change that the cluster has not acknowledged is a problem."""

LOG_EVERY = 10.0
"""Seconds between two lines of the log about unreadable messages, or about errors of one kind."""

_EPOCH = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_LEVELS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""What each bracket adds to the depth, in bytes with a sign."""
_OTHERS = bytes(set(range(256)) - set(b"[{]}"))


class Unreadable(Exception):
    """A message of the cluster is not what its subject should have. The text says why."""


MAX_SEQ = 2**63 - 1
Sequence: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_SEQ)]
"""The place of a message in a stream, or in a consumer."""


class Refusal(Struct, frozen=True):
    """Why JetStream refuses a request. `err_code`: its own number of the reason."""

    description: str = "refused"
    err_code: int = 0


class Answer(Struct, frozen=True):
    """Any answer of JetStream."""

    error: Refusal | None = None


class Stored(Struct, frozen=True):
    """An acknowledgement: where the message is."""

    seq: Sequence


class StreamConfig(Struct, frozen=True):
    """What is used of the settings of a stream besides their comparison with those that it should have."""

    num_replicas: Annotated[int, Meta(ge=1, le=100)]
    max_bytes: int = -1


class StreamState(Struct, frozen=True):
    """What is used of the state of a stream."""

    last_seq: Sequence
    messages: Sequence
    bytes: Sequence
    subjects: dict[str, int] | None = None


class Replica(Struct, frozen=True):
    """One of the other servers that keep a stream. `active`: nanoseconds since it was last heard of."""

    name: str = ""
    current: bool = False
    offline: bool = False
    active: Sequence = 0


class StreamServers(Struct, frozen=True):
    """The servers that keep a stream."""

    leader: str | None = None
    replicas: list[Replica] | None = None


class StreamInfo(Struct, frozen=True):
    """What is used of the answer to STREAM.INFO."""

    config: StreamConfig
    state: StreamState
    created: str
    ts: str = ""
    cluster: StreamServers | None = None


class Delivered(Struct, frozen=True):
    """How far a consumer has delivered."""

    consumer_seq: Sequence


class ConsumerInfo(Struct, frozen=True):
    """What is used of the answer to CONSUMER.CREATE."""

    delivered: Delivered
    num_pending: Sequence = 0


class Holder(Struct, frozen=True):
    """What the owner key and the alive key say of the holder of a lease."""

    holder: str = ""
    released: bool = False
    host: str = ""


class Alive(Struct, frozen=True, kw_only=True):
    """The value of an alive key. Members that a newer collector adds are ignored."""

    holder: str = ""
    version: str = ""
    database: DatabaseState = "down"
    error: str | None = None
    lag_seconds: Seconds = 0.0
    jobs: int = 0
    complete_since: str | None = None
    unwritten_seconds: Seconds = 0.0
    """The age of the oldest change that the cluster has not acknowledged; `write_error`: why."""
    write_error: str | None = None
    warning: str | None = None
    """What is wrong with its part of the cluster, as its readiness says."""
    settings: Mapping[str, str] = {}
    """Those that a standby has to have too."""

    @property
    def is_unwritten(self) -> bool:
        return self.unwritten_seconds >= UNWRITTEN_AFTER

    def problem(self) -> str | None:
        """Why its documents are not current, in a sentence; None if they are."""
        if self.database != "live":
            return self.error or "the database is not read yet"
        if self.is_unwritten:
            reason = self.write_error or "it is slower than the changes"
            return f"{self.public_problem()}: {reason}"
        return None

    def public_problem(self) -> str | None:
        """The same without a word of the collector: for readiness, which needs no token."""
        if self.database != "live":
            return f"its database is {self.database}"
        if self.is_unwritten:
            return f"changes of the last {self.unwritten_seconds:.0f} s are not in the cluster"
        return None


def decode(payload: bytes | Raw, form: type[T], most: int = MAX_BYTES) -> T:
    """Decode JSON of at most `most` bytes. `Raw` is part of a message whose depth is known. Raises: `Unreadable`."""

    def parse() -> T:
        if isinstance(payload, bytes):
            _check_depth(payload)
        return msgspec.json.decode(payload, type=form)

    return _parsed(payload, most, parse)


def decode_msgpack(payload: bytes, form: type[T]) -> T:
    """Decode MessagePack, as the rows of a checkpoint are. Raises: `Unreadable`."""
    return _parsed(payload, MAX_BYTES, lambda: msgspec.msgpack.decode(payload, type=form))


def number(text: str) -> int:
    """Parse a number that is not negative, as headers have it. Raises: `Unreadable`."""
    if not (text.isascii() and text.isdecimal() and len(text) < MAX_DIGITS):
        raise Unreadable(f"not a number: {text[:MAX_DIGITS]!r}")
    return int(text)


def time_of(text: str) -> Micros:
    """Parse a time as documents have it. Raises: `Unreadable`."""
    return _parsed(b"", 0, lambda: encoding.micros(text))


def epoch(payload: bytes) -> str | None:
    """Return the text of the epoch key; None if the key was removed. Raises: `Unreadable`."""
    if not payload:
        return None
    if not _EPOCH.fullmatch(payload):
        raise Unreadable("not the text of an epoch")
    return payload.decode("ascii")


def document(payload: bytes | Raw, rev: int, instance: str, job_id: str | None = None) -> PublishedJob:
    """Parse the document of a job. `job_id`: the job that its subject names. Raises: `Unreadable`."""
    return _parsed(payload, MAX_BYTES, lambda: _document(payload, rev, instance, job_id))


def page(payload: bytes) -> list[growth.Growth]:
    """Parse a page of growth. Raises: `Unreadable`."""
    return decode(payload, growth.Page, MAX_MESSAGE)


def _document(payload: bytes | Raw, rev: int, instance: str, job_id: str | None) -> PublishedJob:
    found = decode_document(_completed(payload, rev, instance))
    if max(len(found.external_ids), len(found.child_job_ids)) > MAX_IDS:
        raise Unreadable(f"more than {MAX_IDS} IDs of one kind")
    if (metadata := bytes(found.metadata)) != b"{}":
        _check_depth(metadata)
        if not isinstance(members := orjson.loads(metadata), dict):
            raise Unreadable("the metadata of the document is no object")
        if b"\n" in metadata or b"\r" in metadata:  # A document is one line, as an event stream needs it.
            found = replace(found, metadata=Raw(encoding.encode(members)))
    if job_id is not None and found.job_id != job_id:
        raise Unreadable("the document is of another job than its subject")
    return encoding.received(found, growth.checksum(bytes(payload)))


def _completed(payload: bytes | Raw, rev: int, instance: str) -> bytes:
    """Add the members to the text of a document that it lacks in a stream, so that they are decoded with it."""
    text = bytes(payload).rstrip()
    if not text.endswith(b"}"):
        raise Unreadable("not an object")
    return b'%b,"rev":%d,"instance":%b}' % (text[:-1], rev, orjson.dumps(instance))


def _check_depth(text: bytes) -> None:
    """Raise `Unreadable` if `text` is JSON that is nested deeper than `MAX_DEPTH`. It takes 40 ms at most for 1 MB."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    outside = b"".join(text.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])
    levels = memoryview(outside.translate(_LEVELS, _OTHERS)).cast("b")
    if max(accumulate(levels), default=0) > MAX_DEPTH:
        raise Unreadable(f"nested deeper than {MAX_DEPTH} levels")


def _parsed(payload: bytes | Raw, most: int, parse: Callable[[], T]) -> T:
    size = memoryview(payload).nbytes
    if size > most:
        raise Unreadable(f"{size} bytes, more than {most}")
    try:
        return parse()
    except Unreadable:
        raise
    except Exception as error:  # what a parser raises for bytes that nobody expected is not known
        raise Unreadable(" ".join(str(error).split())[:200] or type(error).__name__) from error


class Parser:
    """Parses the messages of one process, and counts those that are unreadable. `clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = ""
        self._last_at = self._logged_at = float("-inf")
        self.count = 0
        """Messages that could not be read since the start."""

    def parse(self, subject: str, parse: Callable[[], T]) -> T | None:
        """Return what `parse` makes of a message; None if it raises `Unreadable`, which is counted."""
        try:
            return parse()
        except Unreadable as error:
            self.note(subject, error)
            return None

    def note(self, subject: str, error: Exception) -> None:
        """Count a message of `subject` that cannot be read."""
        self.count += 1
        cluster_metrics.UNREADABLE.inc()
        self._last = subject.encode("unicode_escape").decode()[:200]
        self._last_at = now = self._clock()
        if now - self._logged_at >= LOG_EVERY:
            self._logged_at = now
            why = " ".join(str(error).split())[:200]
            log.warning("a message of the cluster cannot be read, and is passed over: %s (%s)", self._last, why)

    def describe(self) -> dict[str, Any]:
        """Return the members of the part of readiness; none if everything could be read."""
        if not self.count:
            return {}
        part: dict[str, Any] = {"unreadable": self.count}
        if self._clock() - self._last_at < REPORTED_FOR:
            what = "1 message was" if self.count == 1 else f"{self.count} messages were"
            part |= {"ok": False, "error": f"{what} passed over, as unreadable", "subject": self._last}
        return part
