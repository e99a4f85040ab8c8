"""The checkpoint in a real stream, beside what every store promises (`tests/contract/test_stores.py`)."""

import asyncio
import contextlib
import shutil
from itertools import count

import pytest
from msgspec.structs import replace

from correlator.cluster import keys, streams
from correlator.cluster.connection import ClusterUnavailable, Fenced, Refused
from correlator.cluster.lease import Lease
from correlator.model.persisted import Cursor, PersistedJob
from correlator.state.checkpoint import Saved
from correlator.state.checkpoint_stream import MAX_ROW, MAX_ROWS, REDO, StreamCheckpoint, StreamCopy, newest
from tests.support.cluster import connected, create_streams, settings
from tests.support.eventually import eventually
from tests.support.faults.proxy import Proxy
from tests.support.saved_index import changes, filled
from tests.support.stores import NEW, NEWER, OLD, ROWS, content, content_of, stream_store


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
    await create_streams(url)
    async with connected(url) as connection:
        lease = Lease(connection, connection, settings(url))
        yield Active(lease, await lease.acquire())
        with contextlib.suppress(Exception):
            await lease.release()


async def read(url):
    """What the next owner reads."""
    async with active(url) as successor:
        return await successor.checkpoint.open()


async def test_a_former_owner_can_write_no_more_and_is_called(nats):
    async with active(nats.url) as first:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(2)), everything=True)
        await first.lease.release()
        async with active(nats.url) as second:
            await second.checkpoint.open()
            with pytest.raises(Fenced):
                await first.checkpoint.write(changes(filled(3), Cursor(99)), everything=False)
            assert first.lost == 1
            assert not first.checkpoint.writable
        assert (await read(nats.url)).cursor == Cursor(7)


@pytest.mark.parametrize("large", [False, True])
async def test_a_writer_notices_that_an_older_copy_of_the_stream_is_back(nats, large):
    """What was written since the copy is written again, though others have written as many rows meanwhile."""
    files, backup = nats.folder / "js", nats.folder / "backup"
    async with active(nats.url) as first, connected(nats.url) as other:
        holding = asyncio.create_task(first.lease.hold())
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(5)), everything=True)

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
            replace(changes(index, Cursor(8)), jobs={"job1": None, "job5": index.persisted("job5")}),
            everything=False,
        )
        await restarted(backup, files)
        for number in range(20):
            await other.request(keys.checkpoint("dc2", "job", str(number)), b"row")
        with pytest.raises(ClusterUnavailable, match="an older copy of it is back"):
            await first.checkpoint.write(replace(changes(filled(1500 if large else 3), Cursor(9))), everything=False)
        assert first.lost == 0
        await first.checkpoint.write(changes(filled(3), Cursor(10)), everything=True)
        holding.cancel()
        await asyncio.wait([holding])
    saved = await read(nats.url)
    assert (saved.cursor, sorted(one.job.job_id for one in saved.jobs)) == (Cursor(10), ["job0", "job1", "job2"])


async def test_a_takeover_after_an_older_copy_of_the_stream_is_back_reads_all_of_it(nats):
    async with active(nats.url) as first:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(5)), everything=True)
        copy = StreamCopy(first.lease.connection, "dc1")
        await copy.read()
        copy.reader.seq += 1_000
        second = StreamCheckpoint("dc1", first.fence, lambda: None, copy=copy)
        saved = await second.open()
        assert saved is not None
        assert len(saved.jobs) == 5


async def test_a_standby_that_keeps_up_reads_only_what_is_new_at_its_takeover(nats):
    async with active(nats.url) as first, connected(nats.url) as standby:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(2_000)), everything=True)
        copy = StreamCopy(standby, "dc1")
        await copy.read()
        before = standby.client.stats["in_bytes"]
        await first.checkpoint.write(
            replace(changes(filled(3), Cursor(8)), jobs={"job0": None, "job1999": None}), everything=False
        )
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


async def test_a_checkpoint_that_somebody_filled_is_not_read_further_until_it_is_purged(nats):
    async with active(nats.url) as first:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(3)), everything=True)
        connection = first.lease.connection
        for n in range(30):
            await connection.request(keys.checkpoint("dc1", "job", f"x{n}"), b"x" * 100_000)
        copy = StreamCopy(connection, "dc1", most=2_000_000)
        second = StreamCheckpoint("dc1", first.fence, lambda: None, copy=copy)
        read = []
        for _ in range(2):
            with pytest.raises(Refused, match="nats stream purge KV_cor_checkpoint"):
                await second.open()
            read.append(connection.client.stats["in_bytes"])
        assert read[1] - read[0] < 1_500_000  # what was under way
        assert copy.rows == {}
        with pytest.raises(Refused, match="more than 2000000 bytes"):
            await second.write(NEW, everything=True)
        await connection.api("STREAM.PURGE.KV_cor_checkpoint", {"filter": keys.checkpoint_rows("dc1")})
        await second.write(NEW, everything=True)
        assert content(await StreamCheckpoint("dc1", first.fence, lambda: None).open()) == content_of(NEW)


async def test_a_copy_of_a_checkpoint_that_is_gone_or_was_written_anew_is_not_used(nats):
    async with active(nats.url) as first, connected(nats.url) as standby:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(50)), everything=True)
        purged, replaced = StreamCopy(standby, "dc1"), StreamCopy(standby, "dc1")
        for copy in (purged, replaced):
            await copy.read()
            assert ("job", "job49") in copy.rows
        await standby.api(f"STREAM.PURGE.{keys.CHECKPOINT}", {"filter": keys.checkpoint_rows("dc1")})
        await purged.read()
        assert not purged.rows
        await standby.api(f"STREAM.DELETE.{keys.CHECKPOINT}")
        await streams.create(standby, 1)
        again = StreamCheckpoint("dc1", first.fence, lambda: None)
        for number in range(40):  # Its sequences go past those that the copy has read.
            await again.write(changes(filled(3), Cursor(number)), everything=number == 0)
        await replaced.read()
        assert replaced.rows.keys() >= {("job", "job0"), ("job", "job2")}
        assert ("job", "job49") not in replaced.rows


async def test_a_copy_that_is_older_than_the_markers_of_removed_rows_is_read_again(nats):
    async with active(nats.url) as first:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(3)), everything=True)
        copy, late = StreamCopy(first.lease.connection, "dc1"), StreamCopy(first.lease.connection, "dc1", 0.0)
        await copy.read()
        await late.read()
        removed = keys.checkpoint("dc1", "job", "job1")
        await first.lease.connection.api(f"STREAM.PURGE.{keys.CHECKPOINT}", {"filter": removed})
        await copy.read()
        assert ("job", "job1") in copy.rows
        await late.read()
        assert ("job", "job1") not in late.rows


async def test_a_slow_link_gets_answers_that_no_ping_waits_behind_for_long(nats):
    async with active(nats.url) as first:
        await first.checkpoint.open()
        await first.checkpoint.write(changes(filled(600)), everything=True)
        await first.lease.release()
    async with Proxy(nats.port) as link, connected(f"nats://127.0.0.1:{link.port}") as standby:
        link.rate, generation = 125_000, standby.generation
        copy = StreamCopy(standby, "dc1")
        await copy.read()
        assert len([name for name in copy.rows if name[0] == "job"]) == 601
        assert standby.generation == generation
        assert copy.reader.at_once < 500_000


def test_the_file_is_used_only_if_it_is_later_and_further_on():
    saved = Saved(5.0, Cursor(10), filled(1).state(), (), (), ())
    assert newest(saved, None) is newest(None, saved) is saved
    for at, head, file_wins in ((4.0, 20, False), (6.0, 9, False), (6.0, 10, True), (6.0, 20, True)):
        file = replace(saved, at=at, cursor=Cursor(head))
        assert newest(file, saved) is (file if file_wins else saved)


# -- a write of several batches


@pytest.fixture
async def store(nats):
    async with stream_store(nats.url) as store:
        yield store


async def over_another(store):
    """Begin a run after one that has written OLD in one batch."""
    first = store.made(MAX_ROWS)
    await first.open()
    await first.write(OLD, everything=True)
    await store.start()


async def commits(store):
    """The messages of a write of NEW over OLD until it is committed, and until its last batch."""
    await over_another(store)
    before, known = store.wire.sent, len(store.wire.batches)
    await store.write(NEW)
    batches = [(sent - before, rows) for sent, rows in store.wire.batches[known:]]
    committed = next(sent for sent, rows in batches if "redo" in rows) + 2
    return committed, next(sent for sent, rows in batches if {"redo", "moment"} <= rows)


async def copy_of(store):
    """What the stream has."""
    copy = StreamCopy(store.connection, "dc1")
    await copy.read()
    return copy


@pytest.mark.parametrize("copied", ["few", "all"])
async def test_the_write_after_one_that_ended_while_it_was_copied_is_all_or_nothing_too(store, copied):
    """That write needs the chunks of the other until its own are committed, and removes what the other has stored."""
    found = []
    committed, copying = await commits(store)
    for sends in count(step=3):
        await over_another(store)
        await store.write_until(NEW, 2 * (committed + ROWS if copied == "few" else copying), killed=True)
        if sends % 2:  # The same process tries again, or another one takes over.
            assert content(await store.start()) == content_of(NEW)
        ended = await store.write_until(NEWER, 2 * sends, killed=True)
        now = content(await store.start())
        assert now in (content_of(NEW), content_of(NEWER)), sends
        found.append(now == content_of(NEWER))
        if not ended:
            break
    assert len(found) > 6
    assert {True, False} == set(found[:-1])


async def test_after_a_whole_write_no_chunk_is_left(store):
    committed, _ = await commits(store)
    await over_another(store)
    await store.write_until(NEW, 2 * (committed + 2), killed=True)
    left = await copy_of(store)
    assert left.chunks
    assert REDO in left.rows
    await store.start()
    await store.write(NEWER)
    left = await copy_of(store)
    assert not left.chunks
    assert REDO not in left.rows


async def test_a_job_of_nearly_the_largest_row_is_part_of_a_write_of_several_batches(store):
    job = NEW.jobs["job3"]
    assert isinstance(job, PersistedJob)
    large = replace(job, job=replace(job.job, operation="x" * (MAX_ROW - 2_000)))
    written = replace(NEW, jobs={**NEW.jobs, "job3": large})
    await store.start()
    await store.write(written)
    assert content(await store.start()) == content_of(written)
