"""What streaming readers are told, against a reference that looks at the index itself: no I/O, but the real loop."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from correlator import hub
from correlator.errors import SourceUnavailable
from correlator.hub import Hub, JobQuery
from correlator.jobs import wire
from correlator.jobs.index import Index
from correlator.jobs.model import (
    LEVELS,
    Entry,
    JobRecord,
    Level,
    Reading,
    Resolved,
    Shown,
    Status,
    StepRecord,
    View,
)
from correlator.sinks import backlog, fanout, stream
from correlator.sinks.filters import Filter
from correlator.sinks.messages import Framing, Message
from correlator.sinks.stream import Resume, Streams
from tests.daemon import merge
from tests.servers import eventually

NOW = 1_758_550_000_000_000


def framed(messages: Sequence[Message], /) -> bytes:
    return wire.frame(m.body for m in messages) + b"\n"


class Client:
    """A reader that folds what it gets, and holds every message to the contract. It takes nothing while `frozen`."""

    transport: ClassVar[str] = "websocket"

    def __init__(self) -> None:
        self.framing: Framing = framed
        self.frozen = False
        self.given_up = False
        self.messages: list[dict[str, Any]] = []
        self.jobs: dict[int, dict[str, Any]] = {}
        self.have: set[int] = set()
        self.unsynced: set[int] = set()
        self.position: tuple[str, int] | None = None
        self.epoch = ""
        self.seq = 0
        self.lines: list[tuple[int, int]] = []
        self.dropped = 0
        self._waiting: list[bytes] = []
        self._fresh: dict[int, dict[str, Any]] = {}

    def write(self, framed: bytes) -> None:
        self._waiting.append(framed)
        if not self.frozen:
            self.take()

    def waiting(self) -> int:
        return sum(map(len, self._waiting))

    def give_up(self) -> None:
        self.given_up = True

    def synced(self) -> None: ...

    def thaw(self) -> None:
        self.frozen = False
        self.take()

    def take(self, frames: int | None = None) -> None:
        taken, self._waiting = self._waiting[:frames], self._waiting[len(self._waiting[:frames]) :]
        for frame in taken:
            said = json.loads(frame)
            for message in said if isinstance(said, list) else [said]:
                self.hear(message)

    def hear(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        if "seq" in message:
            assert message["seq"] >= self.seq, "seq never falls on one connection"
            self.seq = message["seq"]
        kind = message["type"]
        if kind == "snapshot":
            fresh = self._fresh[message["sub"]]
            for job in message["jobs"]:
                assert job["job_id"] not in fresh, "no job twice in a snapshot"
                fresh[job["job_id"]] = job
        elif kind == "synced":
            sub = message["sub"]
            if sub in self._fresh:
                self.jobs[sub] = self._fresh.pop(sub)
            self.have.add(sub)
            self.unsynced.discard(sub)
        elif kind == "resync":
            self._fresh |= {sub: {} for sub in self.unsynced}
        elif kind in ("put", "delta", "delete"):
            self._change(message)
        elif kind == "log" and "dropped" in message:
            self.dropped += message["dropped"]
        elif kind == "log":
            self.lines += [(sub, message["event_id"]) for sub in message["sub"]]
        if "seq" in message and kind != "welcome" and self.have and not self.unsynced:
            self.position = (self.epoch, message["seq"])

    def _change(self, message: dict[str, Any]) -> None:
        job_id = message["job_id"]
        for sub in message["sub"]:
            held = self._fresh[sub] if sub in self._fresh else self.jobs.setdefault(sub, {})
            before = held.get(job_id)
            if message["type"] == "delete":
                # A replay tells of everything that left meanwhile and that the reader may have had.
                assert before is not None or sub in self.unsynced, f"{job_id} was never there"
                held.pop(job_id, None)
                continue
            if message["type"] == "put":
                job = message["job"]
            else:
                assert before is not None, "a delta is on something that the reader has"
                assert message["base"] == before["rev"], "a delta is on the revision that the reader has"
                job = merge(before, message["set"])
            assert message["rev"] == job["rev"]
            assert before is None or job["rev"] >= before["rev"], "rev never goes back"
            held[job_id] = job

    def fresh(self, sub: int) -> None:
        """It asks for a snapshot: what comes from now on begins with one."""
        self._fresh[sub] = {}

    def reconnect(self) -> Client:
        """The same client on its next connection: with all that it remembers, and nothing that was on its way."""
        again = Client()
        again.jobs = {sub: dict(jobs) for sub, jobs in self.jobs.items() if sub in self.have}
        again.position, again.lines = self.position, self.lines
        return again


class World:
    """An index that random facts go into, and the streams that tell of it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.index = Index()
        self.index.loading = False
        self.hub = Hub(self.index)
        self.streams = Streams(self.hub)
        self.hub.listen(self.streams.fanout.hear)
        self.now = NOW
        self.records: dict[str, JobRecord] = {}
        self.events = 0

    def change(self) -> None:
        """Publish something: jobs begin, change, move between filters, share IDs, end, vanish; rows of the log."""
        rnd = self.random
        self.now += rnd.randrange(1, 2_000_000)
        facts: list[Any] = []
        for _ in range(rnd.choice((1, 1, 1, 2, 5))):
            job_id = f"job{rnd.randrange(12)}"
            if rnd.random() < 0.08:
                facts.append(Reading(job_id, self.index.look()))
                self.records.pop(job_id, None)
                continue
            facts.append(self.reading(job_id))
        if rnd.random() < 0.5:
            facts.append(self.row())
        self.hub.publish(self.index.apply(facts, self.now))

    def reading(self, job_id: str) -> Reading:
        rnd = self.random
        status = rnd.choice(("pending", "running", "running", "completed", "failed"))
        record = JobRecord(
            job_id,
            status=status,
            job_type=rnd.choice(("failover", "cleanup")),
            context_id=rnd.choice((None, "c1", "c2")),
            external_job_id=rnd.choice((None, "e1", "e2", "e3")),
            metadata=json.dumps({"vm_name": f"vm{rnd.randrange(3)}", "n": rnd.choice((1, 1.0, True, None, [1], {}))}),
            started_at=NOW - rnd.randrange(5) * 1_000_000,
            completed_at=self.now if status in ("completed", "failed") else None,
        )
        steps = tuple(
            StepRecord(100 * int(job_id[3:]) + n, f"s{n}", n, rnd.choice(("running", "completed")))
            for n in range(rnd.randrange(4))
        )
        self.records[job_id] = record
        return Reading(job_id, self.index.look(), record, steps)

    def row(self) -> Entry:
        self.events += 1
        job_id = f"job{self.random.randrange(12)}"
        level = self.random.choice(LEVELS)
        return Entry(self.events, self.now, level, "x" * 50, self.index.look(), job_id, by="attrs", attrs={"a": 1})

    def filter(self) -> Filter:
        rnd = self.random
        names = None
        if rnd.random() < 0.5:
            pool = [*(f"job{n}" for n in range(13)), "e1", "e2", "e3", "c1", "c2", "nobody"]
            names = frozenset(rnd.sample(pool, rnd.randrange(1, 5)))
        query = JobQuery(
            status=frozenset(rnd.sample(("running", "pending", "failed"), rnd.choice((0, 0, 1, 2)))),
            job_type=frozenset(rnd.choice(([], [], ["failover"]))),
            context_id=frozenset(rnd.choice(([], [], ["c1"]))),
        )
        return Filter(query, names)

    def wanted(self, which: Filter) -> dict[str, Any]:
        """What the index itself says that a subscription should hold."""
        return {
            s.job_id: json.loads(wire.encode(wire.document(s)))
            for s in self.index.shown()
            if which.matches(s, self.index)
        }

    def welcome(self, client: Client) -> Resume | None:
        """Connect, as the websocket endpoint does: the position that can be resumed, if it can."""
        resume = Resume(*client.position) if client.position is not None else None
        self.streams.join(client)
        client.epoch = self.hub.epoch
        resumed = self.streams.can_resume(resume)
        self.streams.say(client, {"type": "welcome", "seq": self.hub.seq, "resumed": resumed})
        return resume if resumed else None


def plain(value: Any) -> Any:
    """Where a missing member and null mean the same."""
    return {k: plain(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


async def settle(world: World, clients: list[Client]) -> None:
    """Until everybody has everything: with the sweeps that the daemon does every 100 ms."""
    for _ in range(200):
        world.streams.fanout.sweep()
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        while any(c.unsynced or world.streams.fanout.lags(c) for c in clients):
            world.streams.fanout.sweep()
            await asyncio.sleep(0.001)
    world.streams.fanout.flush()


class Crowd:
    """Readers that come, change their minds, freeze, thaw, vanish and come back, at random."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self.clients: list[Client] = []
        self.filters: dict[Client, dict[int, Filter]] = {}
        self.resumed = self.lagged = 0

    async def step(self) -> None:
        if not self.clients or self.random.random() < 0.6:
            self.world.change()
        await self.random.choice(
            [self.come, self.turn, self.return_, self.return_, self.freeze, self.thaw, self.sweep]
        )()

    async def come(self) -> None:
        if len(self.clients) < 8:
            client = Client()
            self.world.welcome(client)
            self.clients.append(client)
            self.filters[client] = {1: self.world.filter()}
            await self._subscribe(client, 1, None)

    async def turn(self) -> None:
        """Another subscription, or another filter for one that it has."""
        if self.clients:
            client, sub = self.random.choice(self.clients), self.random.choice((1, 2))
            client.thaw()
            self.world.streams.fanout.flush()
            self.world.streams.unsubscribe(client, sub)
            client.jobs.pop(sub, None)
            client.have.discard(sub)
            self.filters[client][sub] = self.world.filter()
            await self._subscribe(client, sub, None)

    async def return_(self) -> None:
        """Vanish in the middle of things, and come back sooner or later."""
        if not self.clients:
            return
        client = self.random.choice(self.clients)
        self.clients.remove(client)
        client.take(self.random.randrange(3))
        self.world.streams.leave(client)
        again = client.reconnect()
        for _ in range(self.random.choice((0, 1, 5, 60))):
            self.world.change()
        resume = self.world.welcome(again)
        self.clients.append(again)
        self.filters[again] = self.filters.pop(client)
        again.unsynced = set(self.filters[again])  # no position is true for it before it has all of them again
        for sub in self.filters[again]:
            known = resume if sub in again.jobs else None
            self.resumed += known is not None
            if known is None:
                again.jobs.pop(sub, None)
            await self._subscribe(again, sub, known)

    async def freeze(self) -> None:
        if self.clients:
            self.random.choice(self.clients).frozen = True

    async def thaw(self) -> None:
        if self.clients:
            self.random.choice(self.clients).thaw()

    async def sweep(self) -> None:
        self.world.streams.fanout.sweep()
        self.lagged += self.world.streams.fanout.lagging
        await asyncio.sleep(0)

    async def _subscribe(self, client: Client, sub: int, resume: Resume | None) -> None:
        client.unsynced.add(sub)
        if resume is None:
            client.fresh(sub)
        level: Level | None = self.random.choice((None, "INFO"))
        which = self.filters[client][sub]
        await self.world.streams.subscribe(client, sub, which, level, resume=resume, back=resume is not None)


SEEDS = [*range(6), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(6, 300))]


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_reader_ends_equal_whatever_happens_to_it(seed, monkeypatch):
    for module, name, value in (
        (fanout, "LAGGING_OVER", 6000),
        (fanout, "CAUGHT_UP_UNDER", 2000),
        (backlog, "AT_ONCE", 3000),
        (stream, "CHUNK", 3000),
        (hub, "RING", 150),
    ):
        monkeypatch.setattr(module, name, value)
    world = World(seed)
    crowd = Crowd(world)
    for _ in range(600):
        await crowd.step()
    for client in crowd.clients:
        client.thaw()
    await settle(world, crowd.clients)
    for client in crowd.clients:
        for sub, which in crowd.filters[client].items():
            held = {i: plain(d) for i, d in client.jobs[sub].items()}
            assert held == {i: plain(d) for i, d in world.wanted(which).items()}
        lines = [line for line in client.lines if line[0] in crowd.filters[client]]
        assert len(lines) == len(set(lines)), "a log line once a reader and row"
    assert crowd.resumed
    assert crowd.lagged


# -- one thing at a time


class Stage:
    """One reader on its own stage: `say` publishes facts about one job."""

    def __init__(self) -> None:
        self.world = World(0)
        self.client = Client()
        self.world.welcome(self.client)

    async def subscribe(self, sub: int = 1, which: Filter | None = None, level: Level | None = None) -> None:
        self.client.unsynced.add(sub)
        self.client.fresh(sub)
        await self.world.streams.subscribe(self.client, sub, which or Filter(), level)

    def say(self, *facts: Any) -> None:
        self.world.now += 1_000_000
        self.world.hub.publish(self.world.index.apply(facts, self.world.now))

    def job(self, job_id: str = "j", status: str = "running", **more: Any) -> None:
        record = JobRecord(job_id, status=status, started_at=NOW, **more)
        self.say(Reading(job_id, self.world.index.look(), record, ()))

    def row(self, event_id: int, level: Level = "INFO", job_id: str = "j", message: str = "m") -> Entry:
        return Entry(event_id, NOW, level, message, self.world.index.look(), job_id)

    def flush(self) -> list[dict[str, Any]]:
        """What came since the last time."""
        self.world.streams.fanout.sweep()
        told, self.client.messages = self.client.messages, []
        return told


async def test_a_job_comes_whole_and_then_as_what_changed():
    stage = Stage()
    await stage.subscribe()
    stage.job(job_type="failover")
    stage.job(job_type="cleanup")
    put, delta = stage.flush()[-2:]
    assert (put["type"], put["job"]["job_type"]) == ("put", "failover")
    assert (delta["type"], delta["base"], delta["rev"]) == ("delta", put["rev"], delta["seq"])
    assert delta["set"]["job_type"] == "cleanup"
    assert "owner" not in delta["set"]


async def test_two_subscriptions_get_one_message_and_the_one_that_gains_the_job_gets_it_whole():
    stage = Stage()
    await stage.subscribe(1)
    await stage.subscribe(2, Filter(JobQuery(status=frozenset({"failed"}))))
    stage.job()
    stage.job(error_message="x")
    stage.job(status="failed", error_message="x")
    put, delta, whole = [m for m in stage.flush() if m["type"] in ("put", "delta")]
    assert (put["sub"], delta["sub"], sorted(whole["sub"])) == ([1], [1], [1, 2])
    assert (put["type"], delta["type"], whole["type"]) == ("put", "delta", "put")


async def test_a_job_that_leaves_a_filter_is_put_once_more_and_deleted():
    stage = Stage()
    await stage.subscribe(1, Filter(JobQuery(status=frozenset({"running"}))))
    stage.job()
    stage.job(status="completed")
    assert [(m["type"], m.get("reason")) for m in stage.flush()[-3:]] == [
        ("put", None),
        ("put", None),
        ("delete", "filter"),
    ]
    assert stage.client.jobs[1] == {}


async def test_log_lines_come_from_their_level_on_once_a_row():
    stage = Stage()
    await stage.subscribe(1, level="WARN")
    await stage.subscribe(2, level="DEBUG")
    await stage.subscribe(3)
    stage.job()
    stage.say(stage.row(1, "INFO"), stage.row(2, "ERROR"))
    lines = [m for m in stage.flush() if m["type"] == "log"]
    assert [(line["event_id"], line["sub"]) for line in lines] == [(1, [2]), (2, [1, 2])]


async def test_the_first_lines_of_a_job_wait_until_the_tables_tell_of_it():
    stage = Stage()
    await stage.subscribe(1, level="DEBUG")
    stage.say(stage.row(1))
    assert [m for m in stage.flush() if m["type"] == "log"] == []
    stage.job()
    stage.say(stage.row(2))
    told = stage.flush()
    assert [m["event_id"] for m in told if m["type"] == "log"] == [1, 2]
    assert told[0]["type"] == "put"


async def test_the_last_line_of_a_job_is_sent_though_it_takes_the_job_out_of_the_filter():
    stage = Stage()
    await stage.subscribe(1, Filter(JobQuery(status=frozenset({"running"}))), level="INFO")
    stage.job()
    record = JobRecord("j", status="completed", started_at=NOW)
    stage.say(stage.row(1), Reading("j", stage.world.index.look(), record, ()))
    assert [m["event_id"] for m in stage.flush() if m["type"] == "log"] == [1]


async def test_a_frozen_reader_is_owed_the_newest_state_and_bounded_lines_and_told_how_many_went():
    stage = Stage()
    await stage.subscribe(1, level="INFO")
    stage.job()
    stage.flush()
    stage.client.frozen = True
    rows = 3000
    for n in range(rows):
        stage.say(stage.row(n, message=f"{n} " + "x" * 1000))
        if n % 100 == 0:
            stage.job(error_message=str(n))
            stage.world.streams.fanout.sweep()
    held = stage.client.waiting()
    assert held < fanout.LAGGING_OVER + 300_000
    behind = stage.world.streams.fanout._behind[stage.client]
    assert behind.lines.size <= backlog.MAX_LINES
    stage.client.thaw()
    await settle(stage.world, [stage.client])
    assert stage.client.jobs[1]["j"]["error"] == "2900"
    assert stage.client.dropped > 0
    assert len(stage.client.lines) + stage.client.dropped == rows
    assert stage.client.lines[-1] == (1, rows - 1)
    told = [m["type"] for m in stage.client.messages]
    assert told.index("put", 5) < len(told) - 1


@pytest.mark.parametrize(
    ("size", "after"),
    [(fanout.LAGGING_OVER, fanout.TOO_SLOW_AFTER), (fanout.MUCH, fanout.TOO_SLOW_WITH_MUCH_AFTER)],
)
async def test_a_reader_that_takes_nothing_is_given_up(size, after):
    stage = Stage()
    clock = [0.0]
    stage.world.streams.fanout._clock = lambda: clock[0]
    await stage.subscribe()
    stage.client.frozen = True
    stage.job(error_message="x" * (size + 1))
    given_up = []
    for at in (0.1, after, after + 0.2):
        clock[0] = at
        stage.world.streams.fanout.sweep()
        given_up.append(stage.client.given_up)
    assert given_up == [False, False, True]
    stage.job(error_message="y")
    await stage.world.streams.subscribe(stage.client, 2, Filter(), None)
    assert not stage.world.streams.fanout.knows(stage.client)


async def test_while_a_reader_lags_it_is_told_no_position_that_it_has_not_reached():
    stage = Stage()
    await stage.subscribe()
    stage.job("a", error_message="x" * (fanout.LAGGING_OVER + 1))
    stage.flush()
    stage.client.frozen = True
    stage.job("b", error_message="x" * (fanout.LAGGING_OVER + 1))
    stage.world.streams.fanout.flush()
    before = stage.world.hub.seq
    stage.job("c")
    stage.job("b", error_message="y")
    assert stage.world.streams.fanout.position(stage.client) == before
    stage.client.frozen = False
    stage.world.streams._bookmark()
    assert "bookmark" not in [m["type"] for m in stage.client.messages]
    stage.client.take()
    told = stage.flush()
    assert [(m["job_id"], m["seq"]) for m in told if m["type"] == "put"][-2:] == [("c", before + 1), ("b", before + 2)]


async def test_a_large_batch_makes_nobody_a_slow_reader():
    stage = Stage()
    await stage.subscribe(1, level="DEBUG")
    stage.job()
    stage.flush()
    stage.client.frozen = True
    stage.say(*(stage.row(n, message="x" * 60_000) for n in range(120)))
    stage.world.streams.fanout.sweep()
    assert stage.client.waiting() < fanout.LAGGING_OVER + 61_000
    assert stage.world.streams.fanout._behind[stage.client].lines.size <= backlog.MAX_LINES
    stage.client.thaw()
    await settle(stage.world, [stage.client])
    assert len(stage.client.lines) + stage.client.dropped == 120


async def test_equal_messages_are_one_frame_for_all_their_readers(monkeypatch):
    world = World(0)
    clients = [Client() for _ in range(3)]
    frames: list[int] = []
    for client in clients:
        world.welcome(client)
        client.fresh(1)
        await world.streams.subscribe(client, 1, Filter(), None)
        monkeypatch.setattr(client, "write", lambda framed: frames.append(id(framed)))
    world.change()
    world.change()
    world.streams.fanout.flush()
    assert len(frames) in (3, 6)
    assert len(set(frames[-3:])) == 1


async def test_what_comes_while_writing_takes_long_goes_out_together(monkeypatch):
    stage = Stage()
    await stage.subscribe()
    clock = [0.0]
    written: list[bytes] = []

    def slowly(framed: bytes) -> None:
        written.append(framed)
        clock[0] += 0.005

    monkeypatch.setattr(stage.world.streams.fanout._out, "_clock", lambda: clock[0])
    monkeypatch.setattr(stage.client, "write", slowly)
    stage.job()
    for n in range(5):
        stage.job(error_message=str(n))
    assert len(written) == 1
    await eventually(lambda: len(written) > 1)
    assert [m["rev"] for m in json.loads(written[1])] == [2, 3, 4, 5, 6]


async def test_what_comes_while_writing_is_quick_goes_out_at_once(monkeypatch):
    stage = Stage()
    await stage.subscribe()
    written: list[bytes] = []
    monkeypatch.setattr(stage.world.streams.fanout._out, "_clock", lambda: 0.0)
    monkeypatch.setattr(stage.client, "write", written.append)
    for n in range(3):
        stage.job(error_message=str(n))
        assert len(written) == n + 1


async def test_a_position_before_the_ring_or_after_the_stream_is_a_gap(monkeypatch):
    monkeypatch.setattr(hub, "RING", 3)
    stage = Stage()
    for n in range(10):
        stage.job(error_message=str(n))
    told = stage.world.hub
    assert told.changes_since(6) is None
    assert [c.seq for c in told.changes_since(7) or ()] == [8, 9, 10]
    assert told.changes_since(10) == []
    assert told.changes_since(11) is None
    stage.client.fresh(1)
    await stage.world.streams.subscribe(stage.client, 1, Filter(), None, resume=Resume(told.epoch, 6), back=True)
    assert [(m["type"], m.get("reason")) for m in stage.flush()[1:2]] == [("resync", "gap")]


async def test_nobody_is_told_a_position_before_its_snapshot_is_complete(monkeypatch):
    monkeypatch.setattr(stream, "CHUNK", 10)
    stage = Stage()
    for n in range(5):
        stage.job(f"j{n}")
    told: list[str] = []
    monkeypatch.setattr(stage.client, "synced", lambda: told.append("synced"))
    await stage.subscribe()
    stage.job("j0", error_message="meanwhile")
    stage.job("new")
    stage.flush()
    assert told == []
    await settle(stage.world, [stage.client])
    assert told == ["synced"]


async def test_a_reader_that_was_given_up_is_not_given_up_again():
    stage = Stage()
    await stage.subscribe()
    stage.client.frozen = True
    stage.job(error_message="x" * (fanout.MUCH + 1))
    stage.world.streams.leave(stage.client)
    stage.client.write(b"x" * (fanout.MUCH + 1))
    stage.world.streams.fanout.look(stage.client)
    assert stage.world.streams.fanout.lagging == 0


async def test_names_that_the_database_was_too_slow_for_are_asked_on_for(monkeypatch):
    monkeypatch.setattr(stream, "LOOK_UP_WITHIN", 0.05)
    stage = Stage()
    old = Shown(View("old", Status.FAILED, external_ids=("e-old",)), 0, NOW)
    away = [True]

    async def find(name: str) -> tuple[Shown, Resolved] | None:
        if away.pop() if away else False:
            raise SourceUnavailable("away")
        await asyncio.sleep(0.04)
        return (old, Resolved("old", "external_id")) if name == "e-old" else None

    monkeypatch.setattr(stage.world.hub, "find", find)
    names = frozenset({"a", "b", "e-old"})
    await stage.subscribe(1, Filter(jobs=names))
    assert [m["unknown"] for m in stage.flush() if m["type"] == "synced"] == [["a", "b", "e-old"]]
    await eventually(lambda: [m["job_id"] for m in stage.client.messages if m["type"] == "put"] == ["old"])


async def test_who_was_in_another_run_is_told_so():
    stage = Stage()
    stage.job()
    stage.client.fresh(1)
    await stage.world.streams.subscribe(stage.client, 1, Filter(), None, resume=Resume("other", 1), back=True)
    assert [(m["type"], m.get("reason")) for m in stage.flush()[1:]] == [
        ("resync", "epoch"),
        ("snapshot", None),
        ("synced", None),
        ("status", None),
    ]
