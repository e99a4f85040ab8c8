"""The jobs of a gateway: any position that can be resumed gives the newest state, at every gateway."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.cluster import keys
from correlator.gateway.fleet import Fleet
from correlator.gateway.stream import StoredMessage
from correlator.jobs import remote
from correlator.jobs.encoding import document, encode
from correlator.jobs.remote import Marks, RemoteJobs
from correlator.model.facts import Status
from correlator.model.published import JobView, PublishedJob
from tests.support.eventually import PATIENCE
from tests.support.there import there

HOUR = 3_600_000_000
TTL = 24 * HOUR
"""How long the stream keeps a removal."""


def job(job_id: str, rev: int, *names: str, started_at: int = 0) -> PublishedJob:
    return PublishedJob(JobView(job_id, Status.COMPLETED, external_ids=names, started_at=started_at), rev, 0)


def test_jobs_are_all_there_from_the_time_that_the_appliance_says_and_until_then_none():
    jobs = RemoteJobs(Marks())
    assert jobs.complete_since(5) == 5
    jobs.complete_from = 3
    assert jobs.complete_since(5) == 3


def test_a_crowded_job_that_starts_in_the_future_says_nothing_of_what_has_left():
    jobs = RemoteJobs(Marks(), max_bytes=1)
    for rev, started_at in enumerate((3, 90, 5, 7), 1):
        jobs.put(replace(job(f"j{rev}", rev, started_at=started_at), updated_at=10 * rev))
    assert (len(jobs), jobs.crowded_to) == (1, 5)


def test_another_stream_finds_its_own_jobs_by_their_ids_in_any_case_and_none_of_the_last_one():
    jobs = RemoteJobs(Marks())
    jobs.put(job("JOB-1", 1))
    jobs.clear()
    assert jobs.in_its_case("job-1") == "job-1"
    jobs.put(job("job-2", 1))
    assert (jobs.in_its_case("JOB-2"), jobs.get("job-2")) == ("job-2", job("job-2", 1))


@dataclass
class Stream:
    """A stream with one message per job: (sequence, time, names or None for a removal). And all states it ever had."""

    now: int = 0
    seq: int = 0
    messages: dict[str, tuple[int, int, tuple[str, ...] | None]] = field(default_factory=dict)
    states: list[dict[str, int]] = field(default_factory=lambda: [{}])
    times: dict[int, int] = field(default_factory=dict)
    ever: set[str] = field(default_factory=set)

    def write(self, job_id: str, names: tuple[str, ...] | None) -> None:
        self.seq += 1
        self.times[self.seq] = self.now
        self.ever.add(job_id)
        self.messages.pop(job_id, None)
        self.messages[job_id] = (self.seq, self.now, names)
        state = dict(self.states[-1])
        if names is None:
            state.pop(job_id, None)
        else:
            state[job_id] = self.seq
        self.states.append(state)

    def expire(self) -> None:
        gone = [i for i, (_, at, names) in self.messages.items() if names is None and at <= self.now - TTL]
        for job_id in gone:
            del self.messages[job_id]

    def started_gateway(self, max_removed: int = remote.MAX_REMOVED) -> Gateway:
        gateway = Gateway(max_removed)
        for job_id, (seq, at, names) in self.messages.items():
            gateway.read(job_id, seq, at, names)
        return gateway


class Gateway:
    """One that has read what it was given of a stream."""

    def __init__(self, max_removed: int = remote.MAX_REMOVED) -> None:
        self.marks = Marks()
        self.jobs = RemoteJobs(self.marks, max_removed)

    def read(self, job_id: str, seq: int, at: int, names: tuple[str, ...] | None = ()) -> None:
        self.marks.note(seq, at)
        if names is None:
            self.jobs.remove(job_id, seq, "retention")
        else:
            self.jobs.put(job(job_id, seq, *names))
        self.jobs.advance(seq, at)


writes = st.tuples(
    st.sampled_from(["a", "b", "c", "d"]), st.none() | st.lists(st.sampled_from(["e1", "e2"]), unique=True).map(tuple),
    st.sampled_from([0, 1, HOUR // 120, HOUR, 9 * HOUR, 25 * HOUR]),
)  # fmt: skip


@given(st.lists(writes, max_size=25), st.integers(0, 3))
def test_changes_since_any_position_lead_to_the_newest_state_at_every_gateway(made, max_removed):
    stream, old, small = Stream(), Gateway(), Gateway(max_removed)
    for job_id, names, passed in made:
        stream.now += passed
        stream.expire()
        stream.write(job_id, names)
        for gateway in (old, small):
            gateway.read(job_id, stream.seq, stream.now, names)
    for gateway in (old, small, stream.started_gateway(), stream.started_gateway(max_removed)):
        jobs = gateway.jobs
        assert jobs.counts[Status.COMPLETED] == sum(jobs.counts.values()) == len(jobs)
        assert {shown.job_id: shown.rev for shown in jobs.all()} == stream.states[-1]
        for seq, state in enumerate(stream.states):
            if not jobs.reaches(seq, stream.now):
                continue
            client = dict(state)
            changed = list(jobs.changed())
            assert [last for _, last in changed] == sorted((last for _, last in changed), reverse=True)
            for job_id in (job_id for job_id, last in changed if last > seq):
                if (shown := jobs.get(job_id)) is None:
                    assert jobs.reason(job_id) == "retention"
                    client.pop(job_id, None)
                else:
                    assert jobs.reason(job_id) is None
                    client[job_id] = shown.rev
            assert client == stream.states[-1]


@given(st.lists(writes, max_size=25), st.sampled_from([0, HOUR, 25 * HOUR]))
def test_removals_and_positions_are_forgotten_before_the_stream_forgets_the_removals(made, idle):
    stream, gateway = Stream(), Gateway()
    for job_id, names, passed in made:
        stream.now += passed
        stream.expire()
        stream.write(job_id, names)
        gateway.read(job_id, stream.seq, stream.now, names)
    stream.now += idle
    stream.expire()
    kept = {job_id for job_id, (_, _, names) in stream.messages.items() if names is None}
    reached = [seq for seq in range(stream.seq) if gateway.jobs.reaches(seq, stream.now)]
    assert {job_id for job_id in stream.ever if gateway.jobs.reason(job_id)} <= kept
    first = gateway.marks.first(stream.now)
    assert first is None or stream.times[first] > stream.now - TTL
    assert not reached or min(reached) >= there(first)


@given(st.lists(writes, max_size=25))
def test_all_gateways_resolve_ids_alike_whenever_they_started(made):
    stream, old = Stream(), Gateway()
    for job_id, names, _ in made:
        stream.write(job_id, names)
        old.read(job_id, stream.seq, 0, names)
    new = stream.started_gateway()
    for name in ("a", "b", "c", "d", "e1", "e2"):
        assert old.jobs.resolve(name) == new.jobs.resolve(name)


def test_the_current_position_can_be_resumed_and_one_ahead_cannot():
    gateway = Gateway()
    jobs = gateway.jobs
    gateway.read("a", 7, 0)
    assert jobs.reaches(7, 1000 * HOUR)
    assert list(jobs.changed()) == [("a", 7)]
    assert not jobs.reaches(8, 0)


def test_a_gateway_that_has_run_for_long_resumes_positions_whose_messages_were_replaced():
    gateway = Gateway()
    for seq in range(1, 100):
        gateway.read("a", seq, seq * HOUR // 60)
    assert all(gateway.jobs.reaches(seq, 100 * HOUR // 60) for seq in range(1, 100))


def test_positions_of_a_server_whose_clock_went_back_do_not_count_for_longer():
    gateway = Gateway()
    for seq, hour in enumerate([10, 90, 11, 12], start=1):
        gateway.read("a", seq, hour * HOUR)
    assert [gateway.jobs.reaches(seq, 34 * HOUR) for seq in range(1, 5)] == [False, False, True, True]
    assert [gateway.jobs.reaches(seq, 40 * HOUR) for seq in range(1, 5)] == [False, False, False, True]


def test_a_message_that_comes_twice_changes_nothing():
    jobs = RemoteJobs(Marks())
    assert len(jobs.put(job("a", 5))) == 1
    assert jobs.put(job("a", 5)) == jobs.remove("a", 4, "gone") == []
    assert len(jobs.remove("a", 6, "gone")) == 1
    assert jobs.put(job("a", 5)) == []


def test_an_id_that_moves_to_a_newer_job_is_a_change_of_the_older_one_too():
    jobs = RemoteJobs(Marks())
    jobs.put(job("old", 1, "e", started_at=1))
    changes = jobs.put(job("new", 2, "e", started_at=2))
    assert [(c.job_id, c.moved) for c in changes] == [("new", False), ("old", True)]
    changes = jobs.remove("new", 3, "retention")
    assert [(c.job_id, c.moved, c.seq) for c in changes] == [("new", False, 3), ("old", True, 3)]


def test_three_days_of_jobs_that_come_and_leave_take_no_more_memory_than_one():
    jobs, sizes = Gateway(), []
    for hour in range(72):
        for n in range(50):
            number = 50 * hour + n
            now = hour * HOUR + n * HOUR // 50
            jobs.read(f"{number}", 2 * number + 1, now, (f"ext-{number}",))
            if number >= 100:  # Each stays for two hours.
                jobs.read(f"{number - 100}", 2 * number + 2, now, None)
        sizes.append(sum(1 for _ in jobs.jobs.changed()))
    assert max(sizes[30:]) == sizes[30] <= 26 * 50
    assert len(jobs.jobs) == 100
    assert jobs.jobs.owner("ext-0") is None


async def test_a_position_waits_while_a_gateway_reads_what_it_missed():
    """The stream has the newest state of each job only: what `a` was at 3 comes with 5."""

    def stored(job_id: str, seq: int) -> StoredMessage:
        body = encode(document(job(job_id, seq)))
        return StoredMessage(keys.job("dc1", job_id), seq, seq, body, None)

    fleet = Fleet(lambda _: None)
    fleet.reset("epoch")
    hub = fleet.hub
    fleet.read([stored("a", 1)])
    fleet.synced()
    assert await hub.reached(1, 0)
    fleet.read([stored("b", 4)])
    assert (hub.seq, await hub.reached(4, 0), await hub.reached(1, 0)) == (4, False, True)
    waiting = asyncio.create_task(hub.reached(3, 3_600))
    await asyncio.sleep(0)
    fleet.read([stored("a", 5)])
    fleet.synced()
    assert await asyncio.wait_for(waiting, PATIENCE), "it goes on when the position is reached, not after its time"
    assert await hub.reached(5, 0)
