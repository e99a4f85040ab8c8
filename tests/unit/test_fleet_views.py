"""What a client gets whose token shows only some appliances of a fleet: what these have, no more and no less."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from correlator.cluster import keys
from correlator.gateway.fleet import SHARE, Fleet, RemoteHub
from correlator.gateway.stream import StoredMessage
from correlator.jobs.encoding import document, encode
from correlator.jobs.remote import size_of
from correlator.model.facts import Status
from correlator.model.published import JobView, PublishedJob
from correlator.pipeline.hub import Batch, wall_clock
from correlator.sinks.http.endpoints import PREFIX, InstanceEndpoints
from correlator.sinks.http.grants import Need, Route
from tests.support.background import in_background
from tests.support.eventually import eventually
from tests.support.there import there

SHOWN = frozenset({"dc1", "dc2"})
NAMES = ("x", "y")
PURGED = {"KV-Operation": "PURGE", "Cor-Reason": "retention"}
NOW = wall_clock()

Write: TypeAlias = tuple[str, str, tuple[set[str], int] | None]
"""A document that the collector of an appliance writes: its job ID, its external IDs and its start; None removes it."""

writes = st.lists(
    st.tuples(
        st.sampled_from(["dc1", "dc2", "dc1", "dc2", "dc3"]),
        st.sampled_from(["a", "b"]),
        st.none() | st.tuples(st.sets(st.sampled_from(NAMES)), st.integers(0, 3)),
    ),
    max_size=25,
)


def stored(seq: int, write: Write) -> StoredMessage:
    instance, job_id, content = write
    subject = keys.job(instance, job_id)
    if content is None:
        return StoredMessage(subject, seq, NOW + seq, b"", PURGED)
    names, started_at = content
    view = JobView(job_id, Status.COMPLETED, external_ids=tuple(sorted(names)), started_at=started_at)
    return StoredMessage(subject, seq, NOW + seq, encode(document(PublishedJob(view, seq, 0))), None)


def new_fleet(*sets: frozenset[str], share: int = SHARE) -> Fleet:
    fleet = Fleet(lambda _: None, share=share)
    fleet.show(sets)
    fleet.reset("epoch")
    fleet.synced()
    return fleet


def expected(found: Sequence[Write]) -> dict[str, tuple[str, int, int]]:
    """For each job that `SHOWN` have: the appliance of the newest copy, its start, and the last message about any."""
    copies: dict[str, dict[str, int]] = {}
    last: dict[str, int] = {}
    for seq, (instance, job_id, content) in enumerate(found, 1):
        if instance not in SHOWN:
            continue
        last[job_id] = seq
        of_job = copies.setdefault(job_id, {})
        of_job.pop(instance, None)
        if content is not None:
            of_job[instance] = content[1]
    newest = {job_id: min(of, key=lambda name: (-of[name], name)) for job_id, of in copies.items() if of}
    return {job_id: (name, copies[job_id][name], last[job_id]) for job_id, name in newest.items()}


def jobs(hub: RemoteHub) -> dict[str, tuple[str, int | None, int]]:
    return {s.job_id: (s.instance, s.view.started_at, s.rev) for s in hub.published.all()}


def folding(hub: RemoteHub) -> dict[str, tuple[str, int | None, int]]:
    """The jobs as `jobs` has them, folded from what the hub publishes from now on."""
    folded: dict[str, tuple[str, int | None, int]] = {}

    def on_batch(batch: Batch) -> None:
        for change in batch.changes:
            folded.pop(change.job_id, None)
            if change.new is not None:
                folded[change.job_id] = (change.new.instance, change.new.view.started_at, change.new.rev)

    hub.subscribe(on_batch)
    return folded


@given(writes)
@example([("dc1", "a", (set(), 1)), ("dc2", "a", (set(), 3)), ("dc2", "a", (set(), 0))])
def test_several_appliances_together_publish_what_they_have_at_the_positions_of_the_stream(found):
    fleet = new_fleet(SHOWN)
    view = there(fleet.view_of(SHOWN))
    folded = folding(view)
    for seq, write in enumerate(found, 1):
        fleet.read([stored(seq, write)])
        assert jobs(view) == folded == expected(found[:seq])
        assert view.seq == fleet.hub.seq == seq
        resolved = [view.published.resolve(name) for name in NAMES]
        assert {one.job_id for one in resolved if one is not None} <= folded.keys()
    assert view.running == 0


many_writes = st.lists(
    st.tuples(
        st.sampled_from(["dc1", "dc1", "dc2"]),
        st.sampled_from("abcdefgh"),
        st.none() | st.tuples(st.sets(st.sampled_from(NAMES)), st.integers(0, 3)),
    ),
    max_size=40,
)


@given(many_writes)
def test_an_appliance_keeps_the_jobs_that_changed_last_in_its_share_and_takes_none_of_another(found):
    share = 20_000
    fleet = new_fleet(SHOWN, share=share)
    view = there(fleet.view_of(SHOWN))
    folded = folding(view)
    kept: dict[str, dict[str, PublishedJob]] = {"dc1": {}, "dc2": {}}
    for seq, write in enumerate(found, 1):
        instance, job_id, content = write
        fleet.read([stored(seq, write)])
        own = there(fleet.hub_of(instance)).published
        expect = kept[instance]
        expect.pop(job_id, None)
        if content is not None:
            expect[job_id] = there(own.get(job_id))
            while sum(map(size_of, expect.values())) > share:
                del expect[next(iter(expect))]
        for name, jobs_of in kept.items():
            hub = fleet.hub_of(name)
            assert {s.job_id: s for s in hub.published.all()} == jobs_of if hub is not None else not jobs_of
        assert folded == jobs(view)
        assert folded.keys() == {job_id for jobs_of in kept.values() for job_id in jobs_of}
    fleet.judge()
    left = fleet.describe()
    assert all(one["jobs"] == len(kept[one["instance"]]) for one in left)


def fill(fleet: Fleet, at_once: int, messages: Sequence[StoredMessage]) -> None:
    """Fill the views that were made, `at_once` jobs in a step, while `messages` arrive one in each step."""

    async def run() -> None:
        left = list(messages)
        async with in_background(fleet.fill(at_once)):
            view = there(fleet.view_of(SHOWN))
            while left or view.status.loading:
                if left:
                    fleet.read([left.pop(0)])
                    fleet.synced()
                await asyncio.sleep(0)

    asyncio.run(run())


NEWER, OLDER = (set[str](), 3), (set[str](), 0)


@given(writes, writes, st.integers(1, 3))
@example([("dc1", "a", NEWER), ("dc1", "b", NEWER)], [("dc2", "b", OLDER)], 1)
def test_a_set_of_appliances_that_a_reload_adds_gets_what_was_read_before_and_meanwhile(before, meanwhile, at_once):
    fleet, found = new_fleet(), [*before, *meanwhile]
    for seq, write in enumerate(before, 1):
        fleet.read([stored(seq, write)])
    fleet.synced()
    fleet.show([SHOWN])
    view = there(fleet.view_of(SHOWN))
    assert view.refusal() is not None, "until it has all, no job in it does not mean that there is none"
    fill(fleet, at_once, [stored(seq, write) for seq, write in enumerate(meanwhile, len(before) + 1)])
    assert view.refusal() is None
    # What is only known of a copy is that it was removed, not when: a job may have an earlier revision, never a later.
    assert {job_id: one[:2] for job_id, one in jobs(view).items()} == {
        job_id: one[:2] for job_id, one in expected(found).items()
    }
    assert all(rev <= expected(found)[job_id][2] for job_id, (_, _, rev) in jobs(view).items())
    if len(before) > 1:
        assert not view.reaches(len(before) - 1), "what changed before is not known"
        position = view.seq
        fleet.read([stored(position + 1, ("dc1", "a", NEWER))])
        fleet.synced()
        assert view.reaches(position)


async def test_a_stream_that_is_read_again_while_a_view_is_filled_is_not_mixed_with_what_was_before():
    fleet = new_fleet()
    fleet.read([stored(seq, ("dc1", f"j{seq}", (set(), seq))) for seq in range(1, 1_000)])
    fleet.synced()
    fleet.show([SHOWN])
    view = there(fleet.view_of(SHOWN))
    async with in_background(fleet.fill()):
        await eventually(lambda: len(view.published) > 0)
        assert len(view.published) < 999, "it is filled in steps"
        fleet.reset("another epoch")
        for _ in range(20):
            await asyncio.sleep(0)
        assert (len(view.published), view.refusal() is not None) == (0, True)
        fleet.read([stored(1, ("dc1", "new", (set(), 1)))])
        fleet.synced()
    assert [shown.job_id for shown in view.published.all()] == ["new"]
    assert view.refusal() is None


def test_a_set_without_a_token_is_forgotten_and_the_ids_of_one_are_asked_of_its_appliances():
    fleet = new_fleet(SHOWN, frozenset({"dc3"}))
    fleet.read([stored(seq, (name, "a", (set(), 1))) for seq, name in enumerate(("dc1", "dc3"), 1)])
    view = there(fleet.view_of(SHOWN))
    view.waiting_ids.watch_id("later")
    asked = {name for name, ids in fleet.waiting_ids() if "later" in ids.unknown_ids(10)}
    assert asked == {"dc1"}, "of those that there are"
    fleet.show([SHOWN])
    assert fleet.view_of(SHOWN) is view
    assert fleet.view_of(frozenset({"dc3"})) is None


async def test_the_endpoints_of_appliances_that_were_removed_are_dropped_once_others_are_made():
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="here")

    def made(hub: Any, **_: Any) -> Any:
        return SimpleNamespace(hub=hub, routes=[Route("/x", answer, Need.READ)], streams=None)

    hubs: dict[str, Any] = {"steady": object()}
    fleet: Any = SimpleNamespace(hub_of=hubs.get, view_of=lambda _: None)
    whole: Any = object()
    listener = InstanceEndpoints(whole, fleet, made)
    (below,) = (route for route in listener.routes([]) if route.path.startswith(PREFIX) and route.path.endswith("/x"))
    for n in range(100):
        hubs.pop(f"dc{n - 1}", None)
        hubs[f"dc{n}"] = object()
        for name in hubs:
            request: Any = SimpleNamespace(match_info={"instance": name})
            assert (await below.handler(request)).status == 200
        assert [one.hub for one in listener.all] == [whole, *hubs.values()]


def test_readiness_names_no_subject_of_the_cluster_to_clients_of_some_appliances():
    part = {"ok": False, "error": "1 message was passed over, as unreadable", "subject": "$KV.cor.dc3.job.a"}
    fleet = Fleet(lambda _: None, describe_cluster=lambda: part)
    fleet.show([SHOWN])
    fleet.reset("epoch")
    fleet.read([stored(1, ("dc1", "a", (set(), 1)))])
    fleet.synced()
    assert fleet.hub.readiness["cluster"]() == part
    for hub in (there(fleet.view_of(SHOWN)), there(fleet.hub_of("dc1"))):
        assert hub.readiness["cluster"]() == {"ok": False, "error": part["error"]}
