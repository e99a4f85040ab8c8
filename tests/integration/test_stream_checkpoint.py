"""The checkpoint in a real stream: what was written is read, by the next owner only, and complete or not at all."""

import asyncio
import contextlib
import shutil
import time

import msgspec
import pytest
from msgspec.structs import replace

from correlator.cluster import keys, streams
from correlator.cluster.connection import ClusterUnavailable, Fenced
from correlator.cluster.fence import StreamMessage
from correlator.cluster.lease import Lease
from correlator.model.persisted import Cursor, PersistedExports
from correlator.state import checkpoint_stream as stream
from correlator.state.checkpoint import Saved
from correlator.state.checkpoint_stream import StreamCheckpoint, StreamCopy, newest
from tests.support.cluster import connected, settings
from tests.support.eventually import eventually
from tests.support.faults.proxy import Proxy
from tests.support.saved_index import changes, filled
from tests.support.yardstick import interpreter


class Active:
    """A holder of the lease with its checkpoint. `lost`: how often it was called."""

    def __init__(self, lease, fence):
        self.lease = lease
        self.fence = fence
        self.lost = 0
        self.checkpoint = StreamCheckpoint(lease.instance, fence, self._on_lost)

    def _on_lost(self):
        self.lost += 1


@contextlib.asynccontextmanager
async def active(url):
    """A process that takes the lease; an earlier holder has released it."""
    async with connected(url) as connection:
        lease = Lease(connection, connection, settings(url))
        yield Active(lease, await lease.acquire())
        with contextlib.suppress(Exception):
            await lease.release()


async def read(url):
    """What the next owner reads."""
    async with active(url) as successor:
        return await successor.checkpoint.open()


def by_id(saved):
    return {one.job.job_id: one for one in saved.jobs}, {one.job_id: one for one in saved.legacy}


async def test_what_was_written_is_read_by_the_next_owner(nats):
    index = filled(5)
    exports = PersistedExports(3, {"job1": True, "job2": False})
    written = replace(
        changes(index, Cursor(42), n1=b"one", n2=b"two"),
        forecasts={},
        exports=exports,
        position=b"position",
    )
    async with active(nats.url) as first:
        assert await first.checkpoint.open() is None
        await first.checkpoint.write(written)
    saved = await read(nats.url)
    assert isinstance(saved, Saved)
    assert (saved.at, saved.cursor, saved.memory) == (5.0, Cursor(42), written.memory)
    jobs, legacy = by_id(saved)
    assert jobs | legacy == written.jobs
    assert saved.events == (("mqtt", b"j", b"one"), ("mqtt", b"j", b"two"))
    assert (saved.exports, saved.position) == (exports, b"position")


async def test_only_changes_are_written_and_what_is_gone_leaves(nats):
    index = filled(5)
    async with active(nats.url) as first:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(index, n1=b"one", n2=b"two"))
        await first.checkpoint.write(replace(changes(index, Cursor(8), n2=b"two"), jobs={"job1": None}))
    saved = await read(nats.url)
    assert sorted(by_id(saved)[0]) == ["job0", "job2", "job3", "job4"]
    assert (saved.cursor, saved.events) == (Cursor(8), (("mqtt", b"j", b"two"),))


async def test_an_owner_that_did_not_use_what_it_read_replaces_all_of_it(nats):
    async with active(nats.url) as first:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(5), n1=b"one", n7=b"two"))
    async with active(nats.url) as second:
        await second.checkpoint.open()
        assert second.checkpoint.everything
        await second.checkpoint.write(changes(filled(2), n1=b"other"))
        assert not second.checkpoint.everything
    saved = await read(nats.url)
    assert sorted(by_id(saved)[0]) == ["job0", "job1"]
    assert saved.events == (("mqtt", b"j", b"other"),)


async def test_a_former_owner_can_write_no_more_and_is_called(nats):
    async with active(nats.url) as first:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(2)))
        await first.lease.release()
        async with active(nats.url) as second:
            await second.checkpoint.open()
            with pytest.raises(Fenced):
                await first.checkpoint.write(changes(filled(3), Cursor(99)))
            assert first.lost == 1
            assert not first.checkpoint.writable
        assert (await read(nats.url)).cursor == Cursor(7)


async def read_again(owner):
    """What the same owner reads."""
    lease = owner.lease
    return await StreamCheckpoint(lease.instance, owner.fence, lambda: None).open()


async def test_after_an_outage_everything_is_written_again(nats):
    async with active(nats.url) as first:
        holding = asyncio.create_task(first.lease.hold())
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(2)))
        await asyncio.to_thread(nats.kill)
        await eventually(lambda: not first.checkpoint.writable)
        with pytest.raises(ClusterUnavailable):
            await first.checkpoint.write(changes(filled(3)))
        assert first.checkpoint.everything
        await asyncio.to_thread(nats.start)
        await eventually(lambda: first.checkpoint.writable)
        await first.checkpoint.write(changes(filled(3), Cursor(11)))
        assert not first.checkpoint.everything
        holding.cancel()
        await asyncio.wait([holding])
    assert (await read(nats.url)).cursor == Cursor(11)


@pytest.mark.parametrize("large", [False, True])
async def test_a_writer_notices_that_an_older_copy_of_the_stream_is_back(nats, large):
    """What was written since the copy is written again, though others have written as many rows meanwhile."""
    files, backup = nats.folder / "js", nats.folder / "backup"
    async with active(nats.url) as first, connected(nats.url) as other:
        holding = asyncio.create_task(first.lease.hold())
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(5)))

        async def restarted(copy_from, copy_to):
            await asyncio.to_thread(nats.stop)
            await eventually(lambda: not first.checkpoint.writable)
            await asyncio.to_thread(shutil.rmtree, copy_to, ignore_errors=True)
            await asyncio.to_thread(shutil.copytree, copy_from, copy_to)
            await asyncio.to_thread(nats.start)
            await eventually(lambda: first.checkpoint.writable and other.connected)

        await restarted(files, backup)
        index = filled(6)
        await first.checkpoint.write(
            replace(changes(index, Cursor(8)), jobs={"job1": None, "job5": index.persistence.get("job5")})
        )
        await restarted(backup, files)
        for number in range(20):
            await other.request(keys.checkpoint("dc2", "job", str(number)), b"row")
        with pytest.raises(ClusterUnavailable, match="an older copy of it is back"):
            await first.checkpoint.write(replace(changes(filled(1500 if large else 3), Cursor(9))))
        assert (first.checkpoint.everything, first.lost) == (True, 0)
        await first.checkpoint.write(changes(filled(3), Cursor(10)))
        holding.cancel()
        await asyncio.wait([holding])
    saved = await read(nats.url)
    assert (saved.cursor, sorted(by_id(saved)[0])) == (Cursor(10), ["job0", "job1", "job2"])


async def test_a_takeover_after_an_older_copy_of_the_stream_is_back_reads_all_of_it(nats):
    async with active(nats.url) as first:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(5)))
        copy = StreamCopy(first.lease.connection, "dc1")
        await copy.read()
        copy.seq += 1_000
        second = StreamCheckpoint("dc1", first.fence, lambda: None, copy=copy)
        saved = await second.open()
        assert saved is not None
        assert len(saved.jobs) == 5


async def test_a_row_that_cannot_be_decoded_is_no_checkpoint(nats):
    async with active(nats.url) as first:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(2)))
        row = keys.checkpoint("dc1", "job", "job1")
        await first.checkpoint._fence.write([StreamMessage(row, msgspec.msgpack.encode({"of": "another version"}))])
    assert await read(nats.url) is None


async def test_twenty_thousand_jobs_are_read_with_few_requests_and_little_work(nats, monkeypatch):
    requests = []
    async with active(nats.url) as first:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(20_000)))
        publish = first.lease.connection.publish

        async def counted(subject, *arguments, **options):
            requests.append(subject)
            await publish(subject, *arguments, **options)

        monkeypatch.setattr(first.lease.connection, "publish", counted)
        began = time.process_time()
        saved = await read_again(first)
        took = time.process_time() - began
    yardstick = await asyncio.to_thread(interpreter)
    assert len(saved.jobs) == 20_000
    assert len(requests) < 100
    assert took < 6 * yardstick, (took, yardstick)


async def test_a_standby_that_keeps_up_reads_only_what_is_new_at_its_takeover(nats):
    async with active(nats.url) as first, connected(nats.url) as standby:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(2_000)))
        copy = StreamCopy(standby, "dc1")
        await copy.read()
        before = standby.client.stats["in_bytes"]
        await first.checkpoint.write(replace(changes(filled(3), Cursor(8)), jobs={"job0": None, "job1999": None}))
        await first.lease.release()
        lease = Lease(standby, standby, settings(nats.url))
        fence = await lease.acquire()
        second = StreamCheckpoint("dc1", fence, lambda: None, copy=copy)
        saved = await second.open()
        assert saved is not None
        assert standby.client.stats["in_bytes"] - before < 0.1 * before
        assert saved == await StreamCheckpoint("dc1", fence, lambda: None).open()
        assert len(saved.jobs) == 1_998
        assert saved.cursor == Cursor(8)


async def test_a_copy_of_a_checkpoint_that_is_gone_or_was_written_anew_is_not_used(nats):
    async with active(nats.url) as first, connected(nats.url) as standby:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(50)))
        purged, replaced = StreamCopy(standby, "dc1"), StreamCopy(standby, "dc1")
        for copy in (purged, replaced):
            await copy.read()
            assert ("job", "job49") in copy.rows
        await standby.api(f"STREAM.PURGE.{keys.CHECKPOINT}", {"filter": keys.checkpoint_rows("dc1")})
        await purged.read()
        assert not purged.rows
        await standby.api(f"STREAM.DELETE.{keys.CHECKPOINT}")
        await streams.ensure(standby, 1)
        again = StreamCheckpoint("dc1", first.fence, lambda: None)
        for number in range(40):  # Its sequences go past those that the copy has read.
            await again.write(changes(filled(3), Cursor(number)))
        await replaced.read()
        assert replaced.rows.keys() >= {("job", "job0"), ("job", "job2")}
        assert ("job", "job49") not in replaced.rows


async def test_a_copy_that_is_older_than_the_markers_of_removed_rows_is_read_again(nats, monkeypatch):
    async with active(nats.url) as first:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(3)))
        copy = StreamCopy(first.lease.connection, "dc1")
        await copy.read()
        removed = keys.checkpoint("dc1", "job", "job1")
        await first.lease.connection.api(f"STREAM.PURGE.{keys.CHECKPOINT}", {"filter": removed})
        await copy.read()
        assert ("job", "job1") in copy.rows
        monkeypatch.setattr(stream, "REMOVED_FOR", 0)
        await copy.read()
        assert ("job", "job1") not in copy.rows


async def test_a_slow_link_gets_answers_that_no_ping_waits_behind_for_long(nats):
    async with active(nats.url) as first:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(600)))
        await first.lease.release()
    async with Proxy(nats.port) as link, connected(f"nats://127.0.0.1:{link.port}") as standby:
        link.rate, generation = 125_000, standby.generation
        copy = StreamCopy(standby, "dc1")
        await copy.read()
        assert len([name for name in copy.rows if name[0] == "job"]) == 600
        assert standby.generation == generation
        assert copy._at_once < 500_000


def test_the_file_is_used_only_if_it_is_later_and_further_on():
    saved = Saved(5.0, Cursor(10), filled(1).state(), (), (), ())
    assert newest(saved, None) is newest(None, saved) is saved
    for at, head, file_wins in ((4.0, 20, False), (6.0, 9, False), (6.0, 10, True), (6.0, 20, True)):
        file = replace(saved, at=at, cursor=Cursor(head))
        assert newest(file, saved) is (file if file_wins else saved)
