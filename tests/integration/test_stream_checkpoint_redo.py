"""A write of several batches that ends at any point leaves the old checkpoint or the new one in a real stream."""

import contextlib
from itertools import count

import msgspec
import pytest
from msgspec.structs import replace

from correlator.cluster import keys
from correlator.cluster.connection import ClusterUnavailable, Unacknowledged
from correlator.cluster.fence import StreamMessage
from correlator.cluster.lease import Lease
from correlator.model.persisted import Cursor, PersistedJob
from correlator.state.checkpoint import MAX_ROW, MAX_ROWS
from correlator.state.checkpoint_stream import StreamCheckpoint
from tests.support.cluster import connected, settings
from tests.support.saved_index import changes, filled

ROWS = 3
"""Rows of a batch, so that a few jobs need several."""

OLD = replace(changes(filled(6), Cursor(1), n1=b"one", n2=b"two"), position=b"old")
NEW = replace(changes(filled(8), Cursor(2), n2=b"two", n3=b"three", n9=b"nine"), position=b"new")
NEWER = replace(changes(filled(5), Cursor(3), n3=b"three", n4=b"four"), position=b"newer")


class Wire:
    """What the process sends to the stream: `sent` messages so far, until it ends after a number of them."""

    def __init__(self, connection, monkeypatch):
        self.sent = 0
        self.ended = False
        self._last = None
        self._answers = False
        monkeypatch.setattr(connection, "publish", self._counted(connection.publish, is_request=False))
        monkeypatch.setattr(connection, "request", self._counted(connection.request, is_request=True))

    def end_after(self, sends, *, answers=False):
        """`answers`: if the message that is not sent is a request, it is sent, and its answer is lost."""
        self._last, self._answers, self.ended = self.sent + sends, answers, False

    def go_on(self):
        self._last = None

    def _counted(self, send, *, is_request):
        async def counted(subject, *args, **options):
            if subject.startswith("$KV.cor_checkpoint."):
                if self._last is not None and self.sent >= self._last:
                    if self._answers and is_request and not self.ended:
                        await send(subject, *args, **options)
                    self.ended = True
                    raise ClusterUnavailable("the process is gone")
                self.sent += 1
            return await send(subject, *args, **options)

        return counted


@contextlib.asynccontextmanager
async def holder(url):
    """Yields the connection of the lease's holder, and what makes checkpoints that take the stream over."""
    async with connected(url) as connection:
        lease = Lease(connection, connection, settings(url))
        fence = await lease.acquire()

        def checkpoint(max_rows=ROWS):
            return StreamCheckpoint("dc1", fence, lambda: None, max_rows=max_rows)

        yield connection, checkpoint


def content(saved):
    """What a checkpoint has, without its order."""
    jobs = {one.job.job_id: one for one in saved.jobs} | {one.job_id: one for one in saved.legacy}
    return jobs, saved.cursor, saved.memory, saved.events, saved.position


def content_of(written):
    events = tuple(written.events[n] for n in sorted(written.events))
    return written.jobs, written.cursor, written.memory, events, written.position


async def stored(checkpoint):
    """What the next owner finds."""
    saved = await checkpoint().open()
    return content(saved) if saved is not None else None


async def fresh(checkpoint, before=None):
    """An owner that has all rows to write, after another one has written `before` in one batch."""
    if before is not None:
        first = checkpoint(MAX_ROWS)
        await first.open()
        await first.write(before)
    owner = checkpoint()
    await owner.open()
    return owner


@pytest.mark.parametrize(
    ("before", "answers"), [(OLD, False), (OLD, True), (None, True)], ids=["unsent", "without its answer", "the first"]
)
async def test_a_write_that_ends_at_any_message_leaves_the_old_moment_or_the_new_one(
    nats, monkeypatch, before, answers
):
    found = []
    async with holder(nats.url) as (connection, checkpoint):
        wire = Wire(connection, monkeypatch)
        for sends in count():
            await connection.api(f"STREAM.PURGE.{keys.CHECKPOINT}")
            owner = await fresh(checkpoint, before)
            wire.end_after(sends, answers=answers)
            with contextlib.suppress(Unacknowledged):
                await owner.write(NEW)
            wire.go_on()
            now = await stored(checkpoint)
            assert now in (content_of(before) if before else None, content_of(NEW)), sends
            found.append(now == content_of(NEW))
            if not wire.ended:
                break
    assert len(found) > (20 if before else 10)
    assert found == sorted(found)
    assert {True, False} == set(found[:-1])


@pytest.mark.parametrize("copied", ["few", "all"])
async def test_the_write_after_one_that_ended_while_it_was_copied_is_all_or_nothing_too(nats, monkeypatch, copied):
    """That write needs the chunks of the other until its own are committed, and removes what the other has stored."""
    found = []
    async with holder(nats.url) as (connection, checkpoint):
        wire = Wire(connection, monkeypatch)
        committed, copying = await messages(wire, checkpoint)
        for sends in count():
            owner = await fresh(checkpoint, OLD)
            await ended(wire, owner, NEW, committed + ROWS if copied == "few" else copying)
            if sends % 2:  # The same process tries again, or another one takes over.
                owner = checkpoint()
                assert content(await owner.open()) == content_of(NEW)
            await ended(wire, owner, NEWER, sends)
            now = await stored(checkpoint)
            assert now in (content_of(NEW), content_of(NEWER)), sends
            found.append(now == content_of(NEWER))
            if not wire.ended:
                break
    assert len(found) > 20
    assert {True, False} == set(found[:-1])


async def ended(wire, owner, written, sends):
    """A write that ends after `sends` messages."""
    wire.end_after(sends)
    with contextlib.suppress(Unacknowledged, ClusterUnavailable):
        await owner.write(written)
    wire.go_on()


async def messages(wire, checkpoint):
    """How many messages of a write of NEW over OLD are sent until it is committed, and until its last batch."""
    owner = await fresh(checkpoint, OLD)
    before, committed = wire.sent, 0
    names = []
    write = owner._fence.write

    async def noted(batch, **options):
        nonlocal committed
        names.append((wire.sent - before, {message.subject.rpartition(".")[2] for message in batch}))
        return await write(batch, **options)

    owner._fence.write = noted
    await owner.write(NEW)
    committed = next(sent for sent, batch in names if "redo" in batch) + 2
    last = next(sent for sent, batch in names if {"redo", "cursor"} <= batch)
    return committed, last


async def test_after_a_whole_write_no_chunk_is_left(nats, monkeypatch):
    async with holder(nats.url) as (connection, checkpoint):
        wire = Wire(connection, monkeypatch)
        committed, _ = await messages(wire, checkpoint)
        await ended(wire, await fresh(checkpoint, OLD), NEW, committed + 2)
        rows, chunks = await checkpoint()._acquire()
        assert chunks
        assert ("state", "redo") in rows
        await (await fresh(checkpoint)).write(NEWER)
        rows, chunks = await checkpoint()._acquire()
        assert not chunks
        assert ("state", "redo") not in rows


@pytest.mark.parametrize("form", [b"", msgspec.msgpack.encode("another"), b"\xc1"])
async def test_rows_in_the_form_of_another_version_are_not_used_and_the_next_write_replaces_them(nats, form, caplog):
    async with holder(nats.url) as (_, checkpoint):
        owner = await fresh(checkpoint, OLD)
        removed = {} if form else {"Nats-TTL": "60s"}
        await owner._fence.write([StreamMessage(keys.checkpoint("dc1", "state", "form"), form, removed)])
        assert await stored(checkpoint) is None
        assert caplog.text.count("the checkpoint in the cluster") == 1
        await fresh(checkpoint, NEW)
        assert await stored(checkpoint) == content_of(NEW)


async def test_a_chunk_that_is_missing_is_no_checkpoint_until_the_next_write(nats, monkeypatch):
    async with holder(nats.url) as (connection, checkpoint):
        wire = Wire(connection, monkeypatch)
        committed, _ = await messages(wire, checkpoint)
        await ended(wire, await fresh(checkpoint, OLD), NEW, committed)
        taker = checkpoint()
        _, chunks = await taker._acquire()
        lost = keys.checkpoint("dc1", *sorted(chunks)[1])
        await taker._fence.write([StreamMessage(lost, b"", {"Nats-TTL": "60s"})])
        assert await stored(checkpoint) is None
        await fresh(checkpoint, NEWER)
        assert await stored(checkpoint) == content_of(NEWER)


async def test_a_job_of_nearly_the_largest_row_is_part_of_a_write_of_several_batches(nats):
    index = filled(6)
    job = index.persistence.get("job3")
    assert isinstance(job, PersistedJob)
    large = replace(job, job=replace(job.job, operation="x" * (MAX_ROW - 2_000)))
    written = changes(index, Cursor(9))
    written = replace(written, jobs={**written.jobs, "job3": large})
    async with holder(nats.url) as (_, checkpoint):
        await (await fresh(checkpoint)).write(written)
        assert await stored(checkpoint) == content_of(written)


async def test_an_owner_that_could_not_read_the_checkpoint_replaces_all_of_it(nats):
    """Otherwise jobs and events of its predecessor would stay for the next one."""
    async with holder(nats.url) as (_, checkpoint):
        await fresh(checkpoint, NEW)
        await checkpoint().write(NEWER)
        assert await stored(checkpoint) == content_of(NEWER)
