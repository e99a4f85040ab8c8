"""The cluster sink with a real NATS server: the stream ends equal to memory, whatever happens in between."""

import asyncio

import orjson
import pytest
from msgspec.structs import replace

from correlator.cluster import keys, streams
from correlator.cluster.connection import seq_of
from correlator.cluster.fence import put
from correlator.model.facts import Kind
from correlator.model.published import Event, Outcome
from correlator.ops import cluster_metrics
from correlator.ops.metrics import REGISTRY
from correlator.sinks.cluster import sink as cluster_sink
from correlator.sinks.cluster.documents import DirtyKeys, repair
from correlator.sinks.cluster.growing import GrowingJobs
from tests.support.cluster_harness import (
    Collector,
    collector,
    documents,
    epoch_of,
    events,
    last_seq,
    read_stream,
    reading,
)
from tests.support.eventually import eventually
from tests.support.faults.proxy import Proxy
from tests.support.metric_values import value
from tests.support.pipeline_harness import NOW
from tests.support.there import there


def position(one):
    """What a collector remembers of the stream; AssertionError until it has checked the stream for the first time."""
    found = cluster_sink.decode_position(one.sink.position(), one.instance)
    assert found is not None
    return found


def sample(name):
    return REGISTRY.get_sample_value(name)


async def test_the_jobs_in_memory_and_every_later_change_reach_the_stream(nats):
    async with collector(nats) as one:
        one.change("a", "b c", "d")
        async with one.writing():
            await one.equal()
            one.change("a")
            one.remove("d")
            await one.equal()
            found = await read_stream(one.connection, keys.STATE, keys.jobs("dc1"))
            (headers,) = [headers for subject, headers, _ in found if subject == "$KV.cor.dc1.job.d"]
            assert (headers["KV-Operation"], headers["Cor-Reason"], headers["Nats-TTL"]) == ("PURGE", "gone", "86400s")
            assert "error" not in one.sink.describe()


async def test_what_nats_refuses_is_a_problem_with_its_age_until_it_is_written(nats):
    async with collector(nats) as one:
        one.change("a")
        async with one.writing():
            await one.equal()
            assert one.sink.describe()["unwritten_seconds"] == 0.0
            await limit(one.connection, 1)
            one.change("b")
            await eventually(lambda: one.sink.describe().get("ok") is False)
            assert "maximum bytes exceeded" in one.sink.describe()["error"]
            await eventually(lambda: one.sink.unwritten()["unwritten_seconds"] > 0.3)
            await limit(one.connection, streams.MAX_BYTES)
            await one.equal()
            await eventually(lambda: "error" not in one.sink.describe())
            await limit(one.connection, 1)
            one.change("c")
            await eventually(lambda: sample("correlator_cluster_queue_age_seconds") > 0)
        assert sample("correlator_cluster_queue_age_seconds") == 0.0  # A former holder writes nothing more.
        assert sample("correlator_cluster_pending") == 0.0


async def limit(connection, most):
    """Give the stream of documents another bound in bytes."""
    found = there(await streams.info(connection, keys.STATE))
    await connection.api(f"STREAM.UPDATE.{keys.STATE}", found["config"] | {"max_bytes": most})


async def documents_has(one, job_id):
    return await one.connection.last(keys.STATE, keys.job(one.instance, job_id)) is not None


async def test_a_successor_writes_only_what_differs(nats):
    async with collector(nats) as one:
        one.learn(*(reading(f"job {n}") for n in range(300)))
        async with one.writing():
            await one.equal()
        before = await last_seq(one.connection, keys.STATE)
        one.change("job 7")
        one.remove("job 8")
        written = value(cluster_metrics.TAKEOVER_WRITES)
        async with one.writing(position=one.sink.position()):
            await one.equal()
            after = await last_seq(one.connection, keys.STATE)
            assert after - before == 3  # the owner key, and two jobs
            assert value(cluster_metrics.TAKEOVER_WRITES) - written == 2


async def test_jobs_of_a_checkpoint_are_compared_only_once_the_log_has_been_read(nats):
    async with collector(nats) as one:
        one.change("a")
        async with one.writing():
            await one.equal()
        one.read_to = 0
        one.change("a")
        newer = one.due()
        async with one.writing(position=one.sink.position()):
            one.change("b")
            await eventually(lambda: documents_has(one, "b"))
            await asyncio.sleep(0.3)
            assert (await documents(one.connection, "dc1"))["a"] != newer["a"]
            one.read_to = 1 << 62
            await one.equal()


async def test_over_a_slow_link_new_jobs_are_written_before_a_past_that_changes(nats):
    """1 Mbit/s. At a first start every old job is written, and changes as its log is read."""
    past, new = [f"past {n}" for n in range(1_000)], [f"new {n}" for n in range(12)]
    async with (
        Proxy(nats.port) as slow,
        collector(nats) as reader,
        Collector(f"nats://127.0.0.1:{slow.port}").connected() as one,
    ):
        one.change(*past, status="completed")
        async with one.writing():
            slow.rate = 125_000
            one.change(*past, status="completed")
            one.change(*new)

            async def arrived():
                found = await documents(reader.connection, "dc1")
                missing = [job_id for job_id in new if job_id not in found]
                assert not missing, f"{len(missing)} of {len(new)} are missing, beside {len(found)} documents"
                return found

            found = await eventually(arrived)
            assert len(found) < 500, "the past has its turn, and no more"
            slow.rate = None
            await one.equal()


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_changes_while_the_server_is_away_are_written_once_it_is_back(nats, fault):
    async with collector(nats, timings={"answer_within": 0.3}) as one:
        one.change(*"abcdef")
        async with one.writing():
            await one.equal()
            epoch = await epoch_of(one.connection)
            await asyncio.to_thread(nats.kill if fault == "killed" else nats.pause)
            try:
                for n in range(5):
                    one.change(*"abc")
                    one.happen(n)
                    await asyncio.sleep(0.1)
                one.remove("d")
                one.change("g")
                await eventually(lambda: "error" in one.sink.describe())
            finally:
                await asyncio.to_thread(nats.start if fault == "killed" else nats.resume)
            await one.equal()
            await eventually(lambda: one.sink.describe() | {"acknowledged_seconds_ago": 0} == IDLE)
            assert await events(one.connection, "dc1") == [*range(5)]
            assert await epoch_of(one.connection) == epoch
            assert one.lost == []


IDLE = {"pending": 0, "acknowledged_seconds_ago": 0, "unwritten_seconds": 0.0}


async def test_a_collector_that_has_lost_the_lease_writes_nothing_more(nats):
    async with collector(nats) as old, collector(nats) as new:
        old.change("a")
        async with old.writing():
            await old.equal()
            old.happen(1)
            await eventually(lambda: old.sink.describe()["pending"] == 0)
            new.change("a", "b")
            async with new.writing():
                await new.equal()
                new.happen(2)
                await eventually(lambda: new.sink.describe()["pending"] == 0)
                before = [await last_seq(new.connection, s) for s in (keys.STATE, keys.EVENTS)]
                old.change("a", "c")
                old.happen(3)
                await eventually(lambda: old.lost)
                old.change("a", "d")
                old.happen(4)
                await asyncio.sleep(0.3)
                after = [await last_seq(new.connection, s) for s in (keys.STATE, keys.EVENTS)]
                assert (after, len(old.lost)) == (before, 1)
                await new.equal()


async def test_events_alone_show_that_the_lease_is_lost(nats):
    async with collector(nats) as old, collector(nats) as new, old.writing():
        old.happen(1)
        await eventually(lambda: old.sink.describe()["pending"] == 0)
        async with new.writing():
            new.happen(2)
            await eventually(lambda: new.sink.describe()["pending"] == 0)
            old.happen(3)
            await eventually(lambda: old.lost)
            assert await events(new.connection, "dc1") == [1, 2]


async def test_streams_that_are_created_again_get_a_new_epoch_and_every_job(nats):
    async with collector(nats) as one:
        one.change(*"abc")
        async with one.writing():
            one.happen(1)
            await one.equal()
            await eventually(lambda: one.sink.describe()["pending"] == 0)
            before = await epoch_of(one.connection)
            for name in (keys.STATE, keys.EVENTS):
                await one.connection.api(f"STREAM.DELETE.{name}")
            one.change("a")
            one.happen(2)
            await eventually(lambda: one.sink.describe()["error"] is not None)
            await streams.create(one.connection, 1)
            # What the lease does.
            one.fence.seq = await put(one.connection, keys.owner("dc1"), one.fence.value, expected=0)
            await one.equal()
            after = await epoch_of(one.connection)
            assert before != after == position(one).epoch
            await eventually(lambda: one.sink.describe()["pending"] == 0)
            assert await events(one.connection, "dc1") == [2]
            assert one.lost == []


async def test_an_owner_key_of_events_that_is_gone_is_written_again_and_costs_no_lease(nats):
    """The stream drops its oldest messages beyond its size, and a purge drops all."""
    async with collector(nats) as one, one.writing():
        for n in range(3):
            one.happen(n)
            await eventually(lambda: one.sink.describe()["pending"] == 0)
            await one.connection.api(f"STREAM.PURGE.{keys.EVENTS}")
        one.happen(3)
        await eventually(lambda: one.sink.describe()["pending"] == 0)
        assert await events(one.connection, "dc1") == [3]
        assert one.lost == []


async def test_a_stream_that_lost_acknowledged_messages_gets_a_new_epoch(nats):
    async with collector(nats) as one:
        one.change(*"abc")
        async with one.writing():
            await one.equal()
            before = await epoch_of(one.connection)
        ahead = replace(position(one), acknowledged=position(one).acknowledged + 100).encode()
        async with one.writing(position=ahead):
            await eventually(lambda: position(one).epoch != before)
            assert await epoch_of(one.connection) == position(one).epoch
            await one.equal()


async def test_a_loss_that_another_collector_wrote_past_gets_a_new_epoch(nats):
    async with collector(nats) as one, collector(nats, "dc2") as two:
        one.change(*"abc")
        two.change("a")
        async with one.writing(), two.writing():
            await one.equal()
            await two.equal()
            before, known = await epoch_of(one.connection), position(one)
            # A restored stream lacks the last documents. Here their messages are purged.
            await one.connection.api(f"STREAM.PURGE.{keys.STATE}", {"filter": known.subject})
            for _ in range(3):
                two.change("a")
                await two.equal()
            assert await last_seq(one.connection, keys.STATE) > known.acknowledged
        async with one.writing(position=known.encode()):
            await eventually(lambda: position(one).epoch != before)
            await one.equal()


@pytest.mark.parametrize(
    "subject", ["$KV.cor.dc2.job.a", "$KV.cor.dc1.job.*", "a b\r\nPUB x 0\r\n\r\n", "$KV.cor.epoch"]
)
async def test_a_position_with_a_subject_that_is_no_document_of_this_appliance_is_not_used(nats, subject):
    async with collector(nats) as one:
        one.change(*"abc")
        async with one.writing():
            await one.equal()
            lie = replace(position(one), subject=subject, seq=1)
        one.change("d")
        async with one.writing(position=lie.encode()):
            assert one.sink.position() is None
            await one.equal()


async def test_a_document_that_was_removed_since_is_no_loss(nats):
    async with collector(nats) as one:
        one.change(*"abc")
        async with one.writing():
            await one.equal()
            before, last = await epoch_of(one.connection), position(one).subject
            one.remove(*"abc")
            await one.equal()
            assert position(one).subject == ""
            await one.connection.api(f"STREAM.PURGE.{keys.STATE}", {"filter": last})  # as its marker expires
        async with one.writing(position=one.sink.position()):
            one.change("d")
            await one.equal()
            assert position(one).epoch == before


async def test_what_somebody_else_wrote_is_repaired_and_counted_and_nothing_else(nats):
    async with collector(nats, timings={"compare_every": 0.3, "slice_pause": 0.0}) as one:
        one.learn(*(reading(f"job {n}") for n in range(100)))
        async with one.writing():
            await one.equal()
            repaired = value(cluster_metrics.REPAIRED)
            await asyncio.sleep(0.5)
            for n in range(100):  # Changes while comparisons run are no differences.
                one.change(f"job {n}")
                await asyncio.sleep(0.002)
            assert value(cluster_metrics.REPAIRED) == repaired
            await one.connection.publish(keys.job("dc1", "job 3"), b'{"job_id":"job 3"}')
            await one.connection.publish(keys.job("dc1", "stray"), b'{"job_id":"stray"}')
            await one.connection.publish(keys.job("dc1", "job 4"), b"", headers={"KV-Operation": "PURGE"})
            await eventually(lambda: value(cluster_metrics.REPAIRED) == repaired + 3)
            await one.equal()
            await asyncio.sleep(0.5)
            assert value(cluster_metrics.REPAIRED) == repaired + 3


async def test_a_server_that_takes_small_messages_only_gets_smaller_documents(nats):
    nats.settings = ("max_payload: 40000",)
    await asyncio.to_thread(nats.stop)
    await asyncio.to_thread(nats.start)
    async with collector(nats) as one:
        one.learn(reading("many steps", steps=1_000), reading("small"))
        async with one.writing():
            await eventually(lambda: one.sink.describe()["pending"] == 0 and position(one).acknowledged > 2)
            found = await documents(one.connection, "dc1")
            assert found["small"] == one.due()["small"]
            assert orjson.loads(found["many steps"])["steps_cut"] == 1_000
            dirty = DirtyKeys(lambda: 0.0)
            growing = GrowingJobs(lambda: 0.0)
            comparing = repair(
                one.connection, "dc1", one.hub.published, dirty, growing, one.timings, periodic=True, beat=lambda: None
            )
            assert await comparing == 0
            large = Event(Kind.STEP_FAILED, "a", NOW, event_id=1, error="x" * 100_000)
            one.hub.publish(Outcome(events=[large]))
            one.happen(2)
            await eventually(lambda: one.sink.describe()["pending"] == 0)
            assert await events(one.connection, "dc1") == [1, 2]
        assert not one.connection._subscriptions  # None is left of the term.


async def test_the_owner_keys_are_written_again_now_and_then_also_while_nothing_happens(nats):
    """Events expire. The key among the documents would pin old sequences."""
    async with collector(nats, timings={"rewrite_owner_every": 0.2}) as one, one.writing():
        one.change("a")
        one.happen(1)
        await one.equal()
        await eventually(lambda: one.sink.describe()["pending"] == 0)

        async def owner_keys():
            wanted = ((keys.STATE, keys.owner("dc1")), (keys.EVENTS, keys.events_owner("dc1")))
            return [await one.connection.last(*key) for key in wanted]

        before = await owner_keys()

        async def written_again():
            one.change("a")
            now = await owner_keys()
            assert [found.data for found in now] == [found.data for found in before]
            return all(seq_of(found) > seq_of(first) for found, first in zip(now, before, strict=True))

        await eventually(written_again)
        assert await events(one.connection, "dc1") == [1]
        assert one.lost == []


async def test_three_servers_get_batches_and_one_of_them_may_die(nats_cluster):
    async with collector(nats_cluster, replicas=3) as one:
        one.learn(*(reading(f"job {n}") for n in range(400)))
        written = []

        async def on_message(message):
            written.append((message.headers or {}).get("Nats-Batch-Id"))

        async with one.connection.subscribed(keys.jobs("dc1"), on_message), one.writing():
            await one.equal()
            await eventually(lambda: len(written) == 400)
            assert None not in written, "all are of batches"
            found = await streams.info(one.connection, keys.STATE) or {}
            await asyncio.to_thread(nats_cluster.named(found["cluster"]["leader"]).kill)
            one.change(*(f"job {n}" for n in range(50)))
            one.remove("job 399")
            one.happen(1, 2, 3)
            await one.equal()
            await eventually(lambda: one.sink.describe()["pending"] == 0)
            assert await events(one.connection, "dc1") == [1, 2, 3]
            assert one.lost == []
