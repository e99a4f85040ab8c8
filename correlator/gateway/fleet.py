"""The fleet: all appliances of a stream, the jobs of each, and those of all together, and the hubs that publish them.

A gateway has one hub (`RemoteHub`) for each appliance, one for all of them, and one for each set of appliances that a
token may see (`View`): what a client must not see is not in its hub, whatever it asks. The stream gives all of them
their positions: its sequences. A job ID that two appliances have (a legacy ID, a copied database, or an appliance that
got another name) is one job in the hub of both: the one whose collector is alive, then the newer one by its age, then
the one of the first instance by name. Its `rev` is then the sequence of the last message about any of the two, so every
gateway publishes the same; if a collector goes away or comes back, it is the position at that moment. What a hub says
of the databases behind it (`RemoteStatus`) follows from what their collectors report, and from the gateway's own
connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar, get_args
from zlib import crc32

from msgspec import Struct, field

from correlator.bounded import BoundedDict, SizedDict
from correlator.cluster import keys, received
from correlator.cluster.received import REPORTED_FOR, Alive, Parser
from correlator.errors import SourceUnavailable
from correlator.gateway import log_lines
from correlator.gateway.archive import RpcArchive
from correlator.gateway.log_lines import ReceivedLines
from correlator.gateway.stream import StoredMessage
from correlator.jobs import encoding
from correlator.jobs.encoding import Documents, micros
from correlator.jobs.remote import Marks, RemoteJobs
from correlator.model.document import ForecastState
from correlator.model.facts import AttributedRow, Kind, Line, Status
from correlator.model.published import Change, Event, PublishedJob, Reason
from correlator.model.replies import InstanceHealth, Resolved
from correlator.model.rows import Int64, Micros
from correlator.ops import cluster_metrics
from correlator.ops.event_loop import timed
from correlator.pipeline.hub import Batch, DatabaseStatus, Hub, ResumeRing, WaitingIds, available, wall_clock
from correlator.pipeline.queries import JobQuery, OtherJobs, Question

log = logging.getLogger(__name__)

OFFLINE_AFTER = 3.0
"""Seconds without a sign of life of a collector: it renews its key every 0.5 s."""

DOWN_AFTER = 15.0
"""Seconds after which an appliance that is behind is down, as a daemon's own database."""


SHARE = 512_000_000
"""Bytes of memory that the jobs of one appliance may take. 20,000 jobs with 40 steps take 210 MB; 4,000 that never end,
each with as much metadata and as long an error as a document has, 240 MB."""

RETIRED_AFTER = 24 * 3600.0
"""Seconds of silence after which an appliance no longer makes the whole fleet stale: nobody waits for it."""


CROWDED = (
    f"its jobs take more than {SHARE // 1_000_000} MB of memory here: those that changed longest ago have left it, and "
    "are asked of its collector"
)


class Appliance:
    """What is known of one collector. No clock of another machine counts: a renewal that arrives is a sign of life.

    `listening`: returns the span in which renewals have come here (`OrderedConsumer.listening`). `seen`: monotonic
    seconds of the last sign of life, by `clock`; `last_seen`: its time by the server's clock.
    """

    def __init__(
        self,
        name: str,
        listening: Callable[[], tuple[float, float] | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._clock = clock
        self._listening = listening
        self.known_since = self._clock()
        self.alive = Alive()
        self.seen: float | None = None
        self.last_seen: Micros | None = None
        self._renewed_at: float | None = None
        self._unreadable_at = self._crowded_at = float("-inf")
        """When a document of it came that cannot be read; when its jobs last took more than their share."""

    def note_unreadable(self) -> None:
        """A document of it cannot be read."""
        self._unreadable_at = self._clock()

    def note_crowded(self, jobs: int) -> None:
        """So many of its jobs have left memory, because they took more than their share."""
        if not self.is_crowded():
            log.error("%s: %s", self.name, CROWDED)
        self._crowded_at = self._clock()
        cluster_metrics.CROWDED.labels(self.name).inc(jobs)

    def is_crowded(self) -> bool:
        """True if its jobs took more than their share a short time ago."""
        return self._clock() - self._crowded_at < REPORTED_FOR

    def renewed(self, alive: Alive | None, at: Micros, age: float | None) -> None:
        """Note a value of the alive key, stored at `at`. `age`: seconds before the reading began; None: it came since.

        An unreadable one is a sign of life too.
        """
        now = self._clock()
        self.seen, self.last_seen = now - (age or 0.0), at
        if age is None:
            self._renewed_at = now
        self.alive = alive or Alive(error="the report of the collector cannot be read")

    @property
    def complete_since(self) -> Micros | None:
        """All jobs that started at or after this time are in the stream; None if that is not known."""
        text = self.alive.complete_since
        try:
            return micros(text) if text is not None else None
        except ValueError:
            return None

    def online(self) -> bool | None:
        """Whether a collector is alive.

        None: that is not known, as this process has not listened for so long, or nothing could be written meanwhile.
        """
        if self._renewed_at is not None and self._clock() - self._renewed_at < OFFLINE_AFTER:
            return True
        if (span := self._listening()) is None:
            return None
        since, until = span
        return None if until - max(since, self.known_since, self._renewed_at or since) < OFFLINE_AFTER else False

    def is_renewed_since(self, then: float) -> bool:
        """True if a collector has renewed the alive key after these monotonic seconds."""
        return self._renewed_at is not None and self._renewed_at > then

    def retired(self) -> bool:
        """True if no collector has been alive for long, since this process knows the appliance."""
        return self._clock() - (self.known_since if self.seen is None else self.seen) >= RETIRED_AFTER

    def is_read(self) -> bool:
        """True if a collector is alive, and reads its database."""
        return bool(self.online()) and self.alive.database == "live"

    def behind(self) -> float:
        """Seconds since what is known was current; 0 while its database is live, and all of it is written."""
        if self.seen is None:
            return 0.0
        silent = 0.0 if self.online() else self._clock() - self.seen
        lag = self.alive.lag_seconds if self.alive.database != "live" else 0.0
        return silent + max(lag, self.alive.unwritten_seconds if self.alive.is_unwritten else 0.0)

    def error(self) -> str | None:
        """Why its jobs are not current, in the words of its collector. None if they are."""
        return self._unreachable() or self.alive.problem()

    def public_error(self) -> str | None:
        """The same without a word of the collector: for readiness, which needs no token."""
        return self._unreachable() or self.alive.public_problem()

    def _unreachable(self) -> str | None:
        if (online := self.online()) is None:
            return "no sign of life of the collector has come since the cluster can be read and written"
        return None if online else "the collector is offline"

    def warning(self) -> str | None:
        """What else is wrong, or None."""
        if self._clock() - self._unreadable_at < REPORTED_FOR:
            return "a document of it cannot be read: an older one is shown, until its collector writes it again"
        if self.is_crowded():
            return CROWDED
        return self.alive.warning


class RemoteStatus(DatabaseStatus):
    """The status of one appliance, or of all. `judge` computes it, twice a second.

    `cluster_error`: returns why the stream cannot be read, or None. `clock`: monotonic seconds, as of the appliances.
    """

    def __init__(
        self,
        appliances: Callable[[], Collection[Appliance]],
        cluster_error: Callable[[], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._appliances = appliances
        self._cluster_error = cluster_error
        self._current: float | None = None
        """Monotonic seconds at which everything was last known to be current."""

    @property
    def lag_seconds(self) -> float:
        if self.database == "live" or self._current is None:
            return 0.0
        return round(self._clock() - self._current, 3)

    @property
    def problem(self) -> str:
        """Why the jobs are not current, for the operator."""
        return self.error or "the stream is being read"

    def judge(self) -> None:
        """Compute the state: live if every appliance is, down if none of them is known to be up.

        Those that have retired count only if all have.
        """
        now = self._clock()
        known = self._appliances()
        appliances = [one for one in known if not one.retired()] or known
        if (error := self._cluster_error()) is not None or self.loading:
            why = error or "the stream is being read"
            self.set_state("down" if self.loading else "stale", why, what="the cluster is not followed")
            return
        behind = max((one.behind() for one in appliances), default=0.0)
        errors = [f"{one.name}: {text}" for one in appliances if (text := one.public_error()) is not None]
        self._current = now - behind
        if not errors:
            self.set_state("live")
            return
        down = behind >= DOWN_AFTER and not any(one.is_read() for one in appliances)
        more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        self.set_state("down" if down else "stale", errors[0] + more, what="an appliance is not live")


# -- the hubs


A = TypeVar("A")

NOT_READ = "this gateway has not read the stream of the cluster yet: try again in a moment"
"""What clients get before anything is known: no job here does not mean that there is none, and a client that resumes
would have to begin again."""


async def ends_here(_: int) -> bool:
    """Without a stream, there is nothing beyond what is in memory."""
    return True


class RemoteHub(Hub):
    """Some jobs of the stream with their subscribers. Event loop's thread only.

    The fleet is the publisher: it changes `jobs`, and calls `publish`. `archive` None: memory only. `ends_before(seq)`:
    whether the stream is known to end before a position. `fleet`: the hub of all appliances, for that of one, which
    reads the same stream. `describe_cluster()`: the part `cluster` of readiness.
    """

    published: RemoteJobs
    status: RemoteStatus
    archive: RpcArchive | None

    def __init__(
        self,
        jobs: RemoteJobs,
        status: RemoteStatus,
        archive: RpcArchive | None = None,
        *,
        epoch: str = "",
        documents: Documents | None = None,
        resume_ring: ResumeRing | None = None,
        on_watch: Callable[[], None] = lambda: None,
        ends_before: Callable[[int], Awaitable[bool]] = ends_here,
        clock: Callable[[], Micros] = wall_clock,
        describe_cluster: Callable[[], dict[str, Any]] = dict,
        fleet: RemoteHub | None = None,
    ) -> None:
        super().__init__(
            jobs,
            status,
            epoch,
            archive,
            documents=documents,
            resume_ring=resume_ring,
            on_watch=on_watch,
            refusal=lambda: NOT_READ if status.loading else None,
            clock=clock,
        )
        self.readiness["cluster"] = describe_cluster
        if fleet is not None:
            self.epoch, self.live, status.loading = fleet.epoch, fleet.live, fleet.status.loading
        self._ends_before = ends_before
        self._whole_to = 0
        """The position up to which no change is missing. The stream has only the newest state of each job: while what
        was missed is read, what a job was at that position may come with a later one."""
        self._waiting: dict[asyncio.Future[None], int] = {}
        """Those that wait for a position."""

    # -- called by the fleet

    def reset(self, epoch: str) -> None:
        """Forget all jobs: what follows is another stream, or the same one from the beginning."""
        self.published.clear()
        self.epoch = epoch
        self.status.loading = True
        self._whole_to = 0

    def synced(self) -> None:
        """Everything that the stream had has been read. After a start it is known from here on what each job was."""
        if self.status.loading:
            self.status.loading = False
            self._resume_ring = ResumeRing(after=self.seq)
        self._whole_to = self.seq
        for future in [future for future, seq in self._waiting.items() if seq <= self._whole_to]:
            if not future.done():
                future.set_result(None)

    def publish(
        self,
        changes: Sequence[Change] = (),
        events: Sequence[Event] = (),
        lines: Sequence[AttributedRow] = (),
        dropped: int = 0,
        dropped_by: str = "",
    ) -> None:
        """Pass what was read together to every subscriber."""
        if not self.status.loading:
            self._resume_ring.add(changes)
        if changes or events or lines or dropped:
            self._deliver(Batch(self.seq, changes, events, lines, dropped, dropped_by))

    # -- called for clients

    @property
    def running(self) -> int:
        return self.published.counts[Status.RUNNING]

    def reaches(self, seq: int) -> bool:
        return not self.status.loading and self.published.reaches(seq, self.clock())

    def changed(self) -> Iterator[tuple[str, int]]:
        return self.published.changed()

    def reason(self, job_id: str) -> Reason | None:
        return self.published.reason(job_id)

    async def reached(self, seq: int, within: float) -> bool:
        if seq > self._whole_to or self.status.loading:
            future = asyncio.get_running_loop().create_future()
            self._waiting[future] = seq
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(within):
                        await future
            finally:
                del self._waiting[future]
        return seq <= self._whole_to

    async def is_behind(self, seq: int) -> bool:
        return seq > self._whole_to and not await self._ends_before(seq)

    def _current(self, shown: PublishedJob) -> PublishedJob:
        """A job that a collector has sent: as it is published, if it is in memory, else with the current `seq`."""
        published = self.published.get(shown.job_id)
        if published is not None and published.instance == shown.instance:
            return published
        return encoding.revised(shown, self.seq)

    async def _search(self, name: str) -> tuple[PublishedJob, Resolved] | None:
        found = await available(self.archive).find(name)
        return (self._current(found[0]), found[1]) if found is not None else None

    async def page(
        self, query: JobQuery, before: tuple[Micros, str] | None, limit: int, known: Callable[[str], bool]
    ) -> OtherJobs[PublishedJob]:
        found = await available(self.archive).page(query, before, limit)
        jobs = [self._current(shown) for shown in found.jobs if not known(shown.job_id)]
        return OtherJobs(jobs, found.next_before, found.reason)

    async def ask(self, question: Question[A]) -> A:
        return await available(self.archive).ask(question)


# -- the appliances of the stream

MAX_INSTANCES = 1_000
"""Most appliances of a fleet. What others write is ignored, and logged once."""

MAX_EVENTS = 50_000
"""The number of jobs whose events are remembered."""

MAX_UNCONFIRMED = 2_000_000
"""Bytes of the events that wait for a document, about: one of each job."""

EVENT_OVERHEAD = 500

CHANGED_AT_ONCE, BYTES_AT_ONCE = 1_000, 256_000
"""Changes of all hubs that are published in one call, and bytes of the documents before and after them."""

FILLED_AT_ONCE = 200
SETTLED_AT_ONCE = 1_000
"""Jobs that are added to a new view in one step, and that are settled again in one. One takes about 20 µs."""

_STATES = {Kind.JOB_LATE: ForecastState.LATE, Kind.JOB_OVERDUE: ForecastState.OVERDUE}
"""The events that streaming clients get, and the state of a forecast that each announces."""
_REASONS: dict[str, Reason] = {reason: reason for reason in get_args(Reason)}


class View(Struct, eq=False):
    """The hub of several appliances. `names`: None: all that there are. `shared`: the job IDs that several have had.

    `is_filled`: it has all jobs of its appliances that were read before it was made. `unsettled`: those of `shared` of
    which another copy may have become the one to show, because a collector went away or came back.
    """

    hub: RemoteHub
    names: frozenset[str] | None = None
    shared: set[str] = field(default_factory=set)
    unsettled: set[str] = field(default_factory=set)
    is_filled: bool = True

    def has(self, instance: str) -> bool:
        """True if it shows the jobs of this appliance."""
        return self.names is None or instance in self.names


class Fleet:
    """The hubs, and what the messages of the cluster change in them. Event loop's thread only.

    `archive(scope)`: answers what memory cannot, for the instances that `scope()` returns; None: memory only.
    `cluster_error()`: why the stream cannot be read, or None. `ends_before(seq)`: whether the stream is known to end
    before a position. `on_watch()`: a client begins to wait for an ID. `on_removed(name)`: an appliance is not in the
    stream any more. `listening()`: see `Appliance`.
    `describe_cluster()`: the part `cluster` of readiness. `parser`: of the messages. `share`: bytes that the jobs of
    one appliance may take. `max_unconfirmed`: bytes of events that wait for documents. `instances`: the appliances
    whose messages come, sorted; none: all.
    """

    def __init__(
        self,
        archive: Callable[[Callable[[], Sequence[str]]], RpcArchive | None],
        *,
        cluster_error: Callable[[], str | None] = lambda: None,
        ends_before: Callable[[int], Awaitable[bool]] = ends_here,
        on_watch: Callable[[], None] = lambda: None,
        on_removed: Callable[[str], None] = lambda _: None,
        listening: Callable[[], tuple[float, float] | None] = lambda: None,
        describe_cluster: Callable[[], dict[str, Any]] = dict,
        parser: Parser | None = None,
        share: int = SHARE,
        max_unconfirmed: int = MAX_UNCONFIRMED,
        instances: Sequence[str] = (),
    ) -> None:
        self._part = f"-{crc32(' '.join(instances).encode()):08x}" if instances else ""
        """The end of the epoch: a position says nothing of what a gateway of other appliances has."""
        self._archive = archive
        self._share = share
        self._cluster_error = cluster_error
        self._ends_before = ends_before
        self._on_watch = on_watch
        self._on_removed = on_removed
        self._listening = listening
        self._describe_cluster = describe_cluster
        self._parser = parser or Parser()
        self._announced: BoundedDict[tuple[str, str], Kind] = BoundedDict(MAX_EVENTS)
        """By appliance and job ID: the last event that clients got."""
        self._unconfirmed: SizedDict[tuple[str, str], Event] = SizedDict(max_unconfirmed, _size_of)
        """The events that came before a document with their state."""
        self._documents = Documents()
        self._marks = Marks()
        self._lines = ReceivedLines()
        self._refused: set[str] = set()
        self._away: frozenset[str] = frozenset()
        """The appliances of which no collector was alive at the last judgement."""
        self._emptied: dict[str, float] = {}
        """The appliances that had no job when the stream was read, and the monotonic seconds of that."""
        self.appliances: dict[str, Appliance] = {}
        self._hubs: dict[str, RemoteHub] = {}
        self.hub = self._hub_of(lambda: list(self.appliances.values()))
        self._views: dict[frozenset[str] | None, View] = {None: View(self.hub)}
        """By the names of their appliances."""
        self._made = asyncio.Event()
        """Set when a view was made that has to be filled."""

    # -- for the endpoints

    def hub_of(self, instance: str) -> RemoteHub | None:
        """The hub of one appliance; None if the stream has none of that name.

        Raises: `SourceUnavailable` if the stream has not been read so far that this is known.
        """
        found = self._hubs.get(instance)
        if found is None and (why := self.hub.refusal()) is not None:
            raise SourceUnavailable(why)
        return found

    def view_of(self, names: frozenset[str]) -> RemoteHub | None:
        """The hub of these appliances together; None if `show` was not asked for it."""
        view = self._views.get(names)
        return view.hub if view is not None else None

    def show(self, sets: Iterable[frozenset[str]]) -> None:
        """Have a hub for each of these sets of appliances. `fill` gives it the jobs that were read before."""
        wanted = {None, *sets}
        for names in self._views.keys() - wanted:
            del self._views[names]
        for names in wanted - self._views.keys():
            hub = self._hub_of(partial(self._named, names), self.hub)
            hub.published.advance(self.hub.seq, self.hub.clock())
            view = self._views[names] = View(hub, names)
            if not hub.status.loading:
                hub.status.loading, view.is_filled = True, False
                self._made.set()

    async def fill(self, at_once: int = FILLED_AT_ONCE) -> None:
        """Give new views the jobs that were read before, `at_once` in a step, until cancelled."""
        while True:
            await self._made.wait()
            self._made.clear()
            for view in [view for view in self._views.values() if not view.is_filled]:
                with timed("view"):
                    ids = [
                        shown.job_id
                        for name, hub in self._hubs.items()
                        if view.has(name)
                        for shown in hub.published.all()
                    ]
                for start in range(0, len(ids), at_once):
                    if view.is_filled:  # The stream is read from its beginning.
                        break
                    with timed("view"):
                        for job_id in ids[start : start + at_once]:
                            if copies := self._copies(view, job_id):
                                self._settle(view, job_id, max(shown.rev for shown in copies), "gone")
                    await asyncio.sleep(0)
                if not view.is_filled:
                    view.is_filled = True
                    view.hub.published.forget_changes()
                    view.hub.synced()
                    view.hub.status.judge()

    def hubs(self) -> Iterable[RemoteHub]:
        yield from (view.hub for view in self._views.values())
        yield from self._hubs.values()

    def waiting_ids(self) -> Iterator[tuple[str | None, WaitingIds]]:
        """The IDs that clients wait for, each with the appliance whose job it may be; None: any."""
        for view in self._views.values():
            for name in (None,) if view.names is None else sorted(view.names & self._hubs.keys()):
                yield name, view.hub.waiting_ids
        for name, hub in self._hubs.items():
            yield name, hub.waiting_ids

    def _named(self, names: frozenset[str] | None) -> list[Appliance]:
        return [one for name, one in self.appliances.items() if names is None or name in names]

    def judge(self) -> None:
        """Compute the state of each appliance again. Call it twice a second."""
        self._forget_removed()
        away = frozenset(name for name, one in self.appliances.items() if one.online() is False)
        changed, self._away = away ^ self._away, away
        for view in self._views.values():
            if any(map(view.has, changed)):
                view.unsettled |= view.shared
            self._settle_again(view)
        for hub in self.hubs():
            hub.status.judge()
        for name, hub in self._hubs.items():
            since, crowded_to = self.appliances[name].complete_since, hub.published.crowded_to
            hub.published.complete_from = since if since is None or crowded_to is None else max(since, crowded_to + 1)
        for view in self._views.values():
            known = [hub.published.complete_from for name, hub in self._hubs.items() if view.has(name)]
            view.hub.published.complete_from = None if None in known else max((k for k in known if k), default=None)
        late = self._lines.expire(time.monotonic(), lambda name, job_id: self._last_at(name, job_id) is not None)
        for name, lines in late.items():
            self._publish_lines(name, lines)

    def describe(self) -> list[InstanceHealth]:
        """The health of each appliance, sorted by name. Raises: `SourceUnavailable` while not all are known."""
        if (why := self.hub.refusal()) is not None:
            raise SourceUnavailable(why)
        away = self._cluster_error()
        return [self._describe(self.appliances[name], away) for name in sorted(self.appliances)]

    def _describe(self, appliance: Appliance, away: str | None) -> InstanceHealth:
        alive, online = appliance.alive, appliance.online() if away is None else None
        return {
            "instance": appliance.name,
            "online": online,
            "database": alive.database if online else "down" if alive.database == "down" else "stale",
            "error": away or appliance.error() or appliance.warning(),
            "lag_seconds": round(appliance.behind(), 3),
            "unwritten_seconds": round(alive.unwritten_seconds, 3),
            "last_seen": encoding.rfc3339(appliance.last_seen) if appliance.last_seen is not None else None,
            "version": alive.version or None,
            "jobs": len(self._hubs[appliance.name].published),
        }

    # -- from the stream of documents

    def reset(self, epoch: str) -> None:
        """Forget all jobs: what follows is another stream, or the same one from the beginning."""
        for view in self._views.values():
            view.shared.clear()
            view.unsettled.clear()
            view.is_filled = True  # What follows has all jobs.
        self._marks.clear()
        for hub in self.hubs():
            hub.reset(epoch + self._part)

    def synced(self) -> None:
        """Everything that the stream had has been read. Call it after each `read` from then on."""
        starts = self.hub.status.loading
        if starts:
            now = time.monotonic()
            self._emptied = {name: now for name, hub in self._hubs.items() if not len(hub.published)}
        filling = {view.hub for view in self._views.values() if not view.is_filled}
        for hub in self.hubs():
            if hub not in filling:
                hub.synced()
        if starts:
            self.judge()

    def _forget_removed(self) -> None:
        """Forget the appliances of which the stream had no job when it was read, and of which no collector is alive.

        A collector may have been alive a moment before; one that is since then has an appliance without jobs.
        """
        for name, since in list(self._emptied.items()):
            appliance = self.appliances[name]
            if len(self._hubs[name].published) or appliance.is_renewed_since(since):
                del self._emptied[name]
            elif appliance.online() is False:
                log.info("the appliance %s is not in the stream any more", name)
                del self._emptied[name], self.appliances[name], self._hubs[name]
                self._on_removed(name)

    def read(self, messages: Sequence[StoredMessage]) -> int | None:
        """Apply messages of the stream, and publish their changes as one batch of each hub.

        Returns how many: one at least, and no more than change what `CHANGED_AT_ONCE` and `BYTES_AT_ONCE` allow. A
        message of 100 bytes may change a thousand jobs, or a document of a megabyte. None if the stream has another
        epoch than what was read: read it again.
        """
        if not messages:
            return 0
        is_same, taken = True, 0
        changed = _Changed()
        changes = changed.of
        with timed("stream"):
            for message in messages:
                if changed.is_much():
                    break
                taken += 1
                self._marks.note(message.seq, message.at)
                if message.subject == keys.EPOCH:
                    epoch = self._parser.parse(keys.EPOCH, partial(received.epoch, message.payload))
                    is_same &= epoch is None or epoch + self._part == self.hub.epoch
                else:
                    self._read(message, changes)
            last = messages[taken - 1]
            for hub in self.hubs():
                hub.published.advance(last.seq, last.at)
        for hub in self.hubs():
            hub.publish(changes.get(hub, ()))
        for name, hub in self._hubs.items():
            if hub not in changes:
                continue
            if self._unconfirmed:
                for change in changes[hub]:
                    self._announce(name, change.job_id)
            documents = ((c.job_id, _last_at(c.new)) for c in changes[hub] if c.new is not None)
            self._publish_lines(name, self._lines.appeared(name, documents))
        return taken if is_same else None

    def _read(self, message: StoredMessage, changes: defaultdict[RemoteHub, list[Change]]) -> None:
        if (page := keys.growth_of(message.subject)) is not None:
            self._read_growth(page[0], message, changes)
            return
        found = keys.job_of(message.subject)
        if found is None:
            return
        instance, job_id = found
        hub = self._instance(instance)
        if hub is None:
            return
        headers = message.headers or {}
        if "KV-Operation" in headers or "Nats-Marker-Reason" in headers:
            reason = _REASONS.get(headers.get("Cor-Reason", ""), "gone")
            changes[hub] += hub.published.remove(job_id, message.seq, reason)
            for view in self._views_of(instance):
                changes[view.hub] += self._settle(view, job_id, message.seq, reason)
            return
        shown = self._parser.parse(
            message.subject, partial(received.document, message.payload, message.seq, instance, job_id)
        )
        if shown is None:
            self.appliances[instance].note_unreadable()
            return
        self._put(hub, shown, changes)

    def _read_growth(
        self, instance: str, message: StoredMessage, changes: defaultdict[RemoteHub, list[Change]]
    ) -> None:
        """Apply a page of growth to the documents that it continues."""
        if (hub := self._hubs.get(instance)) is None:
            return  # It has no document.
        page = self._parser.parse(message.subject, partial(received.page, message.payload))
        if page is None:
            self.appliances[instance].note_unreadable()
            return
        for found in page:
            shown = hub.published.get(found.job_id)
            body = shown.body if shown is not None else None
            # A document that does not go on is written again within 30 s (`sinks/cluster/growing.py`).
            if shown is not None and body is not None and body.checksum == found.checksum and body.running is not None:
                last = Line(found.at, 0, found.level, found.text)
                self._put(hub, encoding.grown(shown, message.seq, found.updated_at, last), changes)

    def _put(self, hub: RemoteHub, shown: PublishedJob, changes: defaultdict[RemoteHub, list[Change]]) -> None:
        """Publish a newer revision of a job of an appliance."""
        instance, job_id, seq = shown.instance, shown.job_id, shown.rev
        own = hub.published.put(shown)
        changes[hub] += own
        if crowded := [change.job_id for change in own if change.new is None]:
            self.appliances[instance].note_crowded(len(crowded))
        for view in self._views_of(instance):
            for left in crowded:
                changes[view.hub] += self._settle(view, left, seq, "retention")
            other = view.hub.published.get(job_id)
            if view.is_filled and job_id not in view.shared and (other is None or other.instance == instance):
                changes[view.hub] += view.hub.published.put(shown)
            else:
                changes[view.hub] += self._settle(view, job_id, seq, "gone")

    def _views_of(self, instance: str) -> list[View]:
        return [view for view in self._views.values() if view.has(instance)]

    def _copies(self, view: View, job_id: str) -> list[PublishedJob]:
        """The jobs that the appliances of a view have by this ID."""
        hubs = (hub for name, hub in self._hubs.items() if view.has(name))
        return [shown for hub in hubs if (shown := hub.published.get(job_id)) is not None]

    def _settle(self, view: View, job_id: str, seq: int, reason: Reason) -> list[Change]:
        """Publish the newest of the jobs that the appliances of a view have by this ID, or its removal."""
        copies = self._copies(view, job_id)
        if not copies:
            view.shared.discard(job_id)
            return view.hub.published.remove(job_id, seq, reason)
        if len(copies) > 1:
            view.shared.add(job_id)
        return view.hub.published.put(encoding.revised(self._winner(copies), seq))

    def _winner(self, copies: Sequence[PublishedJob]) -> PublishedJob:
        """Of the jobs that several appliances have by one ID, return the one to show."""
        by_name = sorted(copies, key=lambda shown: shown.instance)
        return max(by_name, key=lambda shown: (shown.instance not in self._away, shown.view.age_key))

    def _settle_again(self, view: View) -> None:
        """Publish another copy of some jobs, if it is the one to show now.

        A document changes only with its position: those of the last message of the stream wait for the next one.
        """
        changes: list[Change] = []
        with timed("view"):
            for job_id in list(islice(view.unsettled, SETTLED_AT_ONCE)):
                copies, shown = self._copies(view, job_id), view.hub.published.get(job_id)
                if shown is not None and copies and (winner := self._winner(copies)).instance != shown.instance:
                    if shown.rev >= view.hub.seq:
                        continue
                    changes += view.hub.published.put(encoding.revised(winner, view.hub.seq))
                view.unsettled.discard(job_id)
        if changes:
            view.hub.publish(changes)

    def _instance(self, name: str) -> RemoteHub | None:
        if (known := self._hubs.get(name)) is not None:
            return known
        if len(self._hubs) >= MAX_INSTANCES:
            if name not in self._refused and len(self._refused) < MAX_INSTANCES:
                self._refused.add(name)
                log.error("the appliance %s is ignored: a fleet has at most %d", name, MAX_INSTANCES)
            return None
        appliance = self.appliances[name] = Appliance(name, self._listening)
        return self._hubs.setdefault(name, self._hub_of(lambda: [appliance], self.hub, self._share))

    def _hub_of(
        self,
        appliances: Callable[[], Sequence[Appliance]],
        fleet: RemoteHub | None = None,
        share: int | None = None,
    ) -> RemoteHub:
        def describe() -> dict[str, Any]:
            found = self._describe_cluster()
            if fleet is not None:  # A client that sees some appliances learns no name of another one.
                found = {name: value for name, value in found.items() if name != "subject"}
            crowded = [one.name for one in appliances() if one.is_crowded()]
            if not crowded or not found.get("ok", True):
                return found
            more = f" (and {len(crowded) - 1} more)" if crowded[1:] else ""
            return {**found, "ok": False, "error": f"{crowded[0]}{more}: {CROWDED}"}

        status = RemoteStatus(appliances, self._cluster_error)
        archive = self._archive(lambda: [one.name for one in appliances()])
        return RemoteHub(
            RemoteJobs(self._marks, max_bytes=share),
            status,
            archive,
            documents=self._documents,
            on_watch=self._on_watch,
            ends_before=self._ends_before,
            describe_cluster=describe,
            fleet=fleet,
        )

    # -- from the collectors themselves

    def read_alive(self, messages: Sequence[StoredMessage], server_time: Micros | None = None) -> None:
        """Apply signs of life. `server_time`: when the reading began; None: they have come since it had caught up."""
        for message in messages:
            name = message.subject.rpartition(".")[2]
            if message.payload and keys.is_instance(name) and self._instance(name) is not None:
                age = None if server_time is None else max(0, server_time - message.at) / 1_000_000
                read = partial(received.decode, message.payload, Alive, received.MAX_KEY)
                self.appliances[name].renewed(self._parser.parse(message.subject, read), message.at, age)

    def read_event(self, subject: str, payload: bytes) -> None:
        """Publish an event of a collector as soon as the document of its job has the state that it announces.

        An event comes whether the stream has stored it or not, and also from a collector that has lost the lease. What
        documents say is stored, and only the holder's. An event comes again until it is stored, and of a successor.
        """
        event = self._parser.parse(subject, partial(event_of, payload))
        if event is None:
            return
        instance = subject.split(".")[2]
        key = instance, event.job_id
        known = self._announced.get(key), *([waiting.kind] if (waiting := self._unconfirmed.get(key)) else [])
        if event.kind not in known and Kind.JOB_OVERDUE not in known:
            self._unconfirmed.put(key, event)
        self._announce(instance, event.job_id)

    def _announce(self, instance: str, job_id: str) -> None:
        """Publish the event that waits for the document of a job, if the document confirms it."""
        event, hub = self._unconfirmed.get((instance, job_id)), self._hubs.get(instance)
        shown = hub.published.get(job_id) if hub is not None else None
        if event is None or hub is None or shown is None:
            return
        if shown.view.terminal:
            self._unconfirmed.discard((instance, job_id))
        elif shown.body is not None and shown.body.forecast in (_STATES[event.kind], ForecastState.OVERDUE):
            self._unconfirmed.discard((instance, job_id))
            self._announced[instance, job_id] = event.kind
            for one in (hub, *self._showing(instance, job_id)):
                one.publish(events=[event])

    async def read_lines(self, subject: str, payload: bytes) -> None:
        """Publish the log lines of a collector, if anybody wants them. Lines of jobs that are not known yet wait.

        Other tasks run after each batch. Await it before the next message of the same collector.
        """
        instance = subject.split(".")[2]
        if (hub := self._hubs.get(instance)) is None:
            return
        if not any(one.wants_lines() for one in (hub, *(view.hub for view in self._views_of(instance)))):
            self._lines.skip(instance)
            return
        batches = log_lines.batches(payload)
        while (found := self._parser.parse(subject, lambda: next(batches, None))) is not None:
            with timed("lines"):
                lines, lost = self._lines.read(instance, found, lambda job_id: self._last_at(instance, job_id))
                self._publish_lines(instance, lines, lost)
            await asyncio.sleep(0)

    def _last_at(self, instance: str, job_id: str) -> Micros | None:
        """The time of the last message in the document of a job; None if there is no such document."""
        hub = self._hubs.get(instance)
        shown = hub.published.get(job_id) if hub is not None else None
        return _last_at(shown) if shown is not None else None

    def _publish_lines(self, instance: str, lines: Sequence[AttributedRow], lost: int = 0) -> None:
        if (hub := self._hubs.get(instance)) is not None:
            hub.publish(lines=lines, dropped=lost, dropped_by=instance)
        for view in self._views_of(instance):
            shown = [row for row in lines if row.job_id is not None and _shows(view.hub, instance, row.job_id)]
            view.hub.publish(lines=shown, dropped=lost, dropped_by=instance)

    def _showing(self, instance: str, job_id: str) -> list[RemoteHub]:
        """The hubs of several appliances that publish this appliance's job by that ID."""
        return [view.hub for view in self._views_of(instance) if _shows(view.hub, instance, job_id)]


def _shows(hub: RemoteHub, instance: str, job_id: str) -> bool:
    shown = hub.published.get(job_id)
    return shown is not None and shown.instance == instance


def _last_at(shown: PublishedJob) -> Micros:
    return shown.view.last.at if shown.view.last is not None else -1


class _Changed:
    """What changes in one call, by hub. `is_much`: it is as much as one call may publish."""

    def __init__(self) -> None:
        self.of: defaultdict[RemoteHub, list[Change]] = defaultdict(list)
        self._weighed = Counter[RemoteHub]()
        self._count = self._bytes = 0

    def is_much(self) -> bool:
        for hub, changes in self.of.items():
            for change in changes[self._weighed[hub] :]:
                bodies = [shown.body for shown in (change.old, change.new) if shown is not None and shown.body]
                self._count += 1
                if change.goes_on:
                    self._count += len(bodies[-1].running or ())
                elif not change.moved:
                    self._bytes += sum(len(body.text) for body in bodies)
            self._weighed[hub] = len(changes)
        return self._count >= CHANGED_AT_ONCE or self._bytes >= BYTES_AT_ONCE


def _size_of(event: Event) -> int:
    """The bytes that an event takes in memory, about."""
    return EVENT_OVERHEAD + sum(len(text or "") for text in (event.job_id, event.step_name, event.error))


class _Event(Struct):
    kind: str
    job_id: str
    at: str
    event_id: Int64 | None = None
    step_id: Int64 | None = None
    step_name: str | None = None
    error: str | None = None
    error_cut: Int64 | None = None


def event_of(payload: bytes) -> Event | None:
    """Parse an event of a collector; None if no streaming client gets its kind. Raises: `Unreadable`."""
    found = received.decode(payload, _Event, received.MAX_MESSAGE)
    if found.kind not in _STATES:
        return None
    at = received.time_of(found.at)
    return Event(
        Kind(found.kind), found.job_id, at, found.event_id, found.step_id, found.step_name, found.error, found.error_cut
    )
