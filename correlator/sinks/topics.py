"""The MQTT topic tree: its names, its payloads, and what of it the broker may not hold yet. Pure: times are told.

What a retained topic should hold follows from the index at the moment of sending: topics are marked, payloads are never
kept. A topic is clean once the broker has acknowledged a message that was made after the last mark.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote

import orjson
from msgspec import Struct

from correlator.hub import Batch
from correlator.jobs import wire
from correlator.jobs.index import Index
from correlator.jobs.model import Change, Micros, Shown
from correlator.sinks.payloads import DaemonState

SPACING = 0.25
"""Seconds between two states of one job: at most four a second."""

MAX_EVENTS = 50_000
"""Events that wait for the broker; beyond it the oldest are dropped."""

MAX_GONE = 20_000
"""Jobs that left and whose topics still stand. Of the rest, the broker itself tells after the next connect."""


_PLAIN = re.compile(r"[A-Za-z0-9._~-]*")


def escape(name: str) -> str:
    """An ID as one topic level: percent-encoded but for ``A–Z a–z 0–9 . _ ~ -`` (RFC 3986, 2.3)."""
    return name if _PLAIN.fullmatch(name) else quote(name, safe="", errors="surrogatepass")


def unescape(level: str) -> str:
    return unquote(level, errors="surrogatepass")


class Key(NamedTuple):
    """A retained topic: of a job's state, by job ID; or of where an external ID leads."""

    kind: Literal["state", "ext"]
    name: str


class Topics(Struct, frozen=True):
    """Every topic there is; `root` is ``{prefix}/{instance}``."""

    root: str

    @property
    def status(self) -> str:
        return f"{self.root}/status"

    @property
    def index(self) -> str:
        return f"{self.root}/index"

    @property
    def filters(self) -> tuple[str, str]:
        """What matches every `Key`."""
        return f"{self.root}/job/+/state", f"{self.root}/ext/+"

    def of(self, key: Key) -> str:
        level = escape(key.name)
        return f"{self.root}/job/{level}/state" if key.kind == "state" else f"{self.root}/ext/{level}"

    def event(self, job_id: str) -> str:
        return f"{self.root}/job/{escape(job_id)}/event"

    def key(self, topic: str) -> Key | None:
        """The inverse of `of`; None for a topic that we would not write."""
        try:
            match topic.removeprefix(f"{self.root}/").split("/"):
                case ["job", level, "state"]:
                    key = Key("state", unescape(level))
                case ["ext", level]:
                    key = Key("ext", unescape(level))
                case _:
                    return None
            return key if self.of(key) == topic else None
        except UnicodeError:
            return None


class Message(NamedTuple):
    """`expires`: it is of an ended job, and the broker should drop it if nobody else ever does."""

    topic: str
    payload: bytes
    retain: bool = True
    expires: bool = False


class Owed(NamedTuple):
    """An event that the broker has not acknowledged; to be told once more by the next run of the daemon."""

    job_id: str
    payload: bytes


class Parcel(NamedTuple):
    """Messages to send one after the other; `tag` is for `Tree.acknowledged`."""

    tag: Key | int
    messages: tuple[Message, ...]


class _Taken(Struct):
    """A topic from when it is taken until it is both acknowledged and may be sent again."""

    acknowledged: bool = False
    rested: bool = False
    marked: bool = False
    since: float = 0.0
    """When it was first marked."""


def _no_clock() -> float:
    return 0.0


class Outbox:
    """Topics to send, each once; of one topic at most one message is on its way, so versions never overtake.

    There are two lanes, taken in turn: a change need not wait behind thousands of topics that are published again, and
    changes that never end do not starve those. `clock`: seconds, for `oldest` alone.
    """

    def __init__(self, spacing: float = SPACING, clock: Callable[[], float] = _no_clock) -> None:
        self._spacing = spacing
        self._clock = clock
        self._since: dict[Key, float] = {}
        """Since when each topic has not been clean."""
        self._changed: OrderedDict[Key, None] = OrderedDict()
        self._again: OrderedDict[Key, None] = OrderedDict()
        self._turn = False
        self._taken: dict[Key, _Taken] = {}
        self._rests: deque[tuple[float, Key]] = deque()

    def mark(self, key: Key) -> None:
        self._since.setdefault(key, self._clock())
        if (taken := self._taken.get(key)) is not None:
            taken.since = taken.since if taken.marked else self._clock()
            taken.marked = True
        else:
            self._again.pop(key, None)
            self._changed[key] = None

    def restart(self, keys: Iterable[Key]) -> None:
        """A new connection: nothing is on its way, and all of `keys` are to be sent, in that order."""
        self._taken.clear()
        self._rests.clear()
        self._changed.clear()
        self._again = OrderedDict.fromkeys(keys)
        self._since = dict.fromkeys(self._again, self._clock())

    def take(self, now: float) -> Key | None:
        """The next topic that may be sent at `now`, which never falls."""
        while self._rests and self._rests[0][0] <= now:
            key = self._rests.popleft()[1]
            self._taken[key].rested = True
            self._free(key)
        self._turn = not self._turn
        lane = (self._changed or self._again) if self._turn else (self._again or self._changed)
        if not lane:
            return None
        key = lane.popitem(last=False)[0]
        self._taken[key] = _Taken()
        self._rests.append((now + self._spacing, key))
        return key

    def acknowledged(self, key: Key) -> bool:
        """The broker has it; True if nothing changed since it was taken."""
        taken = self._taken[key]
        taken.acknowledged = True
        if taken.marked:
            self._since[key] = taken.since
        else:
            self._since.pop(key, None)
        self._free(key)
        return not taken.marked

    def due(self) -> float | None:
        """When the next topic may be ready though nothing is marked meanwhile."""
        return self._rests[0][0] if self._rests else None

    def oldest(self) -> float | None:
        """Since when the topic has not been clean that has been so for longest; None if all are."""
        return min(self._since.values(), default=None)

    @property
    def pending(self) -> int:
        """Topics that are not clean."""
        return len(self._since)

    def _free(self, key: Key) -> None:
        taken = self._taken[key]
        if taken.acknowledged and taken.rested:
            del self._taken[key]
            if taken.marked:
                self._changed[key] = None


class Events:
    """Events in order, each kept until the broker has acknowledged it; bounded, the oldest go first.

    `clock`: seconds, for `oldest` alone.
    """

    def __init__(
        self, owed: Iterable[Owed] = (), bound: int = MAX_EVENTS, clock: Callable[[], float] = _no_clock
    ) -> None:
        self._clock = clock
        self._since: dict[int, float] = {}
        self._number = 0
        self._waiting: deque[tuple[int, Owed]] = deque()
        self._bound = bound
        self._sent: dict[int, tuple[int, Owed]] = {}
        self._count = 0
        for one in owed:
            self.add(one)

    def add(self, owed: Owed) -> int:
        """Returns how many were dropped for it."""
        self._number += 1
        self._waiting.append((self._number, owed))
        self._since[self._number] = self._clock()
        if len(self._waiting) <= self._bound:
            return 0
        del self._since[self._waiting.popleft()[0]]
        return 1

    def take(self) -> tuple[int, Owed] | None:
        if not self._waiting:
            return None
        self._count += 1
        self._sent[self._count] = self._waiting.popleft()
        return self._count, self._sent[self._count][1]

    def acknowledged(self, tag: int) -> None:
        number, _ = self._sent.pop(tag)
        del self._since[number]

    def restart(self) -> None:
        """A new connection: what was sent and not acknowledged is to be sent again, in the old order."""
        self._waiting.extendleft(reversed(self._sent.values()))
        self._sent.clear()

    def oldest(self) -> float | None:
        """Since when the first of them has been owed."""
        return next(iter(self._since.values()), None)

    def __len__(self) -> int:
        return len(self._sent) + len(self._waiting)

    def numbered(self) -> dict[int, Owed]:
        """All of them, by a number that each keeps in this run."""
        return {**dict(self._sent.values()), **dict(self._waiting)}

    def __iter__(self) -> Iterator[Owed]:
        yield from (owed for _, owed in self._sent.values())
        yield from (owed for _, owed in self._waiting)


class Tree:
    """The tree as the index has it, and what of that the broker lacks; unconnected before `begin` and after `end`.

    `clock`: as of `events`.
    """

    def __init__(
        self, topics: Topics, index: Index, epoch: str, events: Events, clock: Callable[[], float] = _no_clock
    ) -> None:
        self._topics = topics
        self._index = index
        self._epoch = epoch
        self._events = events
        self._outbox = Outbox(clock=clock)
        self._gone: dict[str, tuple[Shown | dict[str, Any], int]] = {}
        self._begun = False
        self._event_is_next = False

    def hear(self, batch: Batch) -> int:
        """What the hub publishes; returns how many events were dropped."""
        for change in batch.changes:
            if change.new is not None:
                self._gone.pop(change.job_id, None)
            elif change.old is not None:
                self._leave(change.job_id, change.old, change.seq)
            if self._begun:  # what changes before, `begin` finds in the index
                if not change.moved:
                    self._outbox.mark(Key("state", change.job_id))
                for external_id in _touched(change):
                    self._outbox.mark(Key("ext", external_id))
        return sum(
            self._events.add(Owed(event.job_id, wire.encode(wire.event(event, self._epoch, batch.seq))))
            for event in batch.events
        )

    def begin(self) -> None:
        """A broker of which nothing is known: all there is, the newest jobs first, then what left meanwhile."""
        self._outbox.restart(self._all())
        self._events.restart()
        self._begun = True

    def end(self) -> None:
        """The broker is away: what it lacks will be asked of the index when it is back."""
        self._begun = False
        self._outbox.restart(())
        self._events.restart()

    def found(self, topic: str, payload: bytes) -> None:
        """The broker holds this; if nobody in memory stands behind it, an earlier run left it there."""
        match self._topics.key(topic):
            case Key("state", name) as key if self._index.get(name) is None and name not in self._gone:
                self._leave(name, _document(payload, name), self._index.seq)
                self._outbox.mark(key)
            case Key("ext", name) as key if not self._index.claims(name):
                self._outbox.mark(key)

    def take(self, now: float) -> Parcel | None:
        """What to send next: events and topics in turn, as long as there are both."""
        self._event_is_next = not self._event_is_next
        if self._event_is_next:
            return self._take_event() or self._take_topic(now)
        return self._take_topic(now) or self._take_event()

    def acknowledged(self, tag: Key | int) -> None:
        """The broker has every message of the parcel."""
        if isinstance(tag, int):
            self._events.acknowledged(tag)
        elif self._outbox.acknowledged(tag) and tag.kind == "state":
            self._gone.pop(tag.name, None)

    def due(self) -> float | None:
        """When `take` may give something though nothing is heard meanwhile."""
        return self._outbox.due()

    def oldest(self) -> float | None:
        """Since when the broker has been owed what it has been owed for longest."""
        return min((t for t in (self._outbox.oldest(), self._events.oldest()) if t is not None), default=None)

    @property
    def pending(self) -> int:
        return self._outbox.pending + len(self._events)

    def status(self, state: DaemonState, at: Micros) -> Message:
        payload = {"state": state, "epoch": self._epoch, "seq": self._index.seq, "at": wire.rfc3339(at)}
        return Message(self._topics.status, wire.encode(payload))

    def index(self) -> Message:
        payload = {"epoch": self._epoch, "seq": self._index.seq, "count": len(self._index)}
        return Message(self._topics.index, wire.encode(payload))

    def messages(self, key: Key) -> tuple[Message, ...]:
        """What makes the topic hold what it should."""
        topic, name = self._topics.of(key), key.name
        nothing = Message(topic, b"")
        if key.kind == "ext":
            owner = self._index.resolve(name) if self._index.claims(name) else None
            if owner is None:
                return (nothing,)
            return (Message(topic, wire.encode({"external_id": name, "job_id": owner.job_id})),)
        if (shown := self._index.get(name)) is not None:
            return (Message(topic, self._state(wire.document(shown), shown.rev), expires=shown.view.terminal),)
        if name not in self._gone:
            return (nothing,)
        last, seq = self._gone[name]
        document = wire.document(last) if isinstance(last, Shown) else last
        return Message(topic, self._state({**document, "deleted": True}, seq)), nothing

    def _state(self, document: Mapping[str, Any], seq: int) -> bytes:
        return wire.encode({**document, "epoch": self._epoch, "seq": seq})

    def _take_event(self) -> Parcel | None:
        if (taken := self._events.take()) is None:
            return None
        tag, owed = taken
        return Parcel(tag, (Message(self._topics.event(owed.job_id), owed.payload, retain=False),))

    def _take_topic(self, now: float) -> Parcel | None:
        key = self._outbox.take(now)
        return Parcel(key, self.messages(key)) if key is not None else None

    def _all(self) -> Iterator[Key]:
        for shown in sorted(self._index.shown(), key=lambda shown: shown.view.age_key, reverse=True):
            yield from _keys(shown)
        for name, (last, _) in self._gone.items():
            yield from _keys(last) if isinstance(last, Shown) else (Key("state", name),)

    def _leave(self, job_id: str, last: Shown | dict[str, Any], seq: int) -> None:
        self._gone[job_id] = last, seq
        if len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]


def _keys(shown: Shown) -> Iterator[Key]:
    yield Key("state", shown.job_id)
    for external_id in shown.view.external_ids:
        yield Key("ext", external_id)


def _touched(change: Change) -> Iterable[str]:
    """The external IDs whose owner may be another one now: who carries an ID, and who of several is the newest."""
    old, new = (shown.view if shown is not None else None for shown in (change.old, change.new))
    before, after = (view.external_ids if view is not None else () for view in (old, new))
    if old is None or new is None or change.moved or old.age_key != new.age_key:
        return {*before, *after}
    return () if before == after else set(before) ^ set(after)


def _document(payload: bytes, job_id: str) -> dict[str, Any]:
    """The state that the broker holds; the least there can be, where it cannot be read."""
    try:
        found = orjson.loads(payload)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"job_id": job_id}
