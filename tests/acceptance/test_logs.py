"""Log lines on a subscription: those of its jobs from its level on, each once, and none that was not committed."""

from __future__ import annotations

import asyncio
import functools
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.appliance import Appliance, now
from tests.support.daemon import HELLO, Daemon, Socket
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.stream_clients import CheckedWebsocket, closing
from tests.support.subscriptions import LEVELS, Wanted


@asynccontextmanager
async def subscribed(daemon: Daemon, *wanted: Wanted) -> AsyncIterator[CheckedWebsocket]:
    reader = CheckedWebsocket(daemon.url, dict(enumerate(wanted, 1)))
    async with closing([reader]):
        await reader.connect()
        await eventually(lambda: reader.fold.synced)
        yield reader


async def shown(daemon: Daemon, appliance: Appliance, name: str, **row: Any) -> str:
    job_id = await appliance.job(name, **row)
    assert (await daemon.get(f"/api/v1/jobs/{name}?wait=5"))[0] == 200
    return job_id


async def received(reader: CheckedWebsocket, ids: list[int]) -> None:
    """Exactly these rows, and none after a moment in which another row came all the way."""

    def so_far() -> bool:
        reader.check()
        return set(ids) <= reader.fold.lines.keys()

    await eventually(so_far)
    assert sorted(reader.fold.lines) == sorted(ids)


async def test_lines_come_from_the_level_on_that_was_asked_for(daemon: Daemon, appliance: Appliance):
    job_id = await shown(daemon, appliance, "gui-1")
    readers = [CheckedWebsocket(daemon.url, {1: Wanted(logs=level)}) for level in (*LEVELS, None)]
    async with closing(readers):
        for reader in readers:
            await reader.connect()
            await eventually(lambda: reader.fold.synced)  # noqa: B023 - awaited at once
        ids = [await appliance.log(level.lower(), level, {"job_id": job_id, "n": 1}) for level in LEVELS]
        ids += [await appliance.log("the last", "ERROR", {"job_id": job_id})]
        for place, reader in enumerate(readers[:-1]):
            await received(reader, ids[place:])
        assert readers[-1].fold.lines == {}
        line = readers[0].fold.lines[ids[2]]
        assert line == {
            "type": "log",
            "sub": [1],
            "job_id": job_id,
            "event_id": ids[2],
            "level": "WARN",
            "step_id": None,
            "message": "warn",
            "attrs": {"job_id": job_id, "n": 1},
            "at": line["at"],
        }


async def test_a_line_is_sent_once_for_all_subscriptions_that_it_matches(daemon: Daemon, appliance: Appliance):
    mine = await shown(daemon, appliance, "gui-1", context_id="ctx-1")
    other = await shown(daemon, appliance, "gui-2", job_type="migration")
    async with subscribed(
        daemon,
        Wanted(logs="DEBUG"),
        Wanted(jobs=("gui-1", mine, "ctx-1"), logs="WARN"),
        Wanted(context_id=("ctx-1",), job_type=("failover",), status=("running",), logs="INFO"),
        Wanted(context_id=("ctx-1",), job_type=("migration",), logs="DEBUG"),
        Wanted(jobs=("gui-1",)),
    ) as reader:
        ids = [
            await appliance.log("a", "INFO", {"job_id": mine}),
            await appliance.log("b", "ERROR", {"job_id": mine}),
            await appliance.log("c", "ERROR", {"job_id": other}),
            await appliance.log("d", "DEBUG", {"job_id": mine}),
        ]
        await received(reader, ids)
        assert [reader.fold.lines[i]["sub"] for i in ids] == [[1, 3], [1, 2, 3], [1], [1]]


async def test_rows_are_sent_whatever_attributes_them_to_the_job(daemon: Daemon, appliance: Appliance):
    job_id = await shown(daemon, appliance, "gui-1", metadata='{"gui_job_id": "gui-x"}')
    async with subscribed(daemon, Wanted(jobs=("gui-1",), logs="DEBUG")) as reader:
        step = await appliance.step(job_id, 1, "validation")
        ids = [
            await appliance.log("column", job_id=job_id),
            await appliance.log("attrs", attrs={"job_id": job_id}),
            await appliance.log("step of a step nobody read yet", attrs={"step_id": step}),
            await appliance.log("step column", step_id=step),
            await appliance.log("external column", external_job_id="gui-1"),
            await appliance.log("external attrs", attrs={"gui_job_id": "gui-x"}),
        ]
        await appliance.log("nobody's")
        await appliance.log("another's", attrs={"job_id": str(uuid.uuid4())})
        ids.append(await appliance.log("the last", job_id=job_id))
        await received(reader, ids)
        assert {line["job_id"] for line in reader.fold.lines.values()} == {job_id}
        assert [reader.fold.lines[i]["step_id"] for i in ids[:4]] == [None, None, step, step]


@pytest.mark.parametrize("wanted", [Wanted(logs="INFO"), Wanted(jobs=("gui-new",), logs="INFO")], ids=["all", "one"])
async def test_the_first_line_of_an_unknown_job_is_sent(daemon: Daemon, appliance: Appliance, wanted):
    async with subscribed(daemon, wanted) as reader:
        due = []
        for number in range(3):
            job_id = str(uuid.uuid4())
            await appliance.job("gui-new", id=job_id, started_at=f"{now()[:-2]}{number:02}")
            due.append(await appliance.log("Job started", attrs={"job_id": job_id, "job_type": "failover"}))
            step = await appliance.step(job_id, 1, "validation")
            attrs = {"job_id": job_id, "step_id": step, "step_name": "validation", "sequence": 1}
            due.append(await appliance.log("Step started", attrs=attrs))
            await received(reader, due)
            assert list(reader.fold.lines) == due
            await eventually(functools.partial(reader.fold.jobs[1].__contains__, job_id))


async def test_the_line_that_ends_a_job_is_sent_to_clients_whose_filter_it_leaves(daemon: Daemon, appliance: Appliance):
    job_id = await shown(daemon, appliance, "gui-1")
    running, failed = Wanted(status=("running",), logs="ERROR"), Wanted(status=("failed",), logs="ERROR")
    async with subscribed(daemon, running) as before, subscribed(daemon, failed) as after:
        await appliance.end(job_id, "failed", "no space left")
        end = await appliance.log("Job failed", "ERROR", {"job_id": job_id, "error": "no space left"}, job_id=job_id)
        await eventually(lambda: job_id in after.fold.jobs[1] and job_id not in before.fold.jobs[1])
        await eventually(lambda: end in after.fold.lines)
        late = await appliance.log("a late line", "ERROR", {"job_id": job_id})
        await received(after, [end, late])
        # The table may have been read before the log: then the job had left already.
        assert set(before.fold.lines) <= {end}


@pytest.mark.parametrize("ends", ["COMMIT", "ROLLBACK"])
async def test_a_row_is_sent_when_it_is_committed_and_never_before(
    daemon: Daemon, appliance: Appliance, database: Database, ends
):
    job_id = await shown(daemon, appliance, "gui-1")
    async with (
        subscribed(daemon, Wanted(logs="DEBUG")) as reader,
        database.connect(autocommit=False, init_command="SET time_zone = '+00:00'") as other,
    ):
        slow = Appliance(other)
        await slow.run("BEGIN")
        held = [await slow.log("held back", attrs={"job_id": job_id}) for _ in range(3)]
        early = await appliance.log("early", attrs={"job_id": job_id})
        await received(reader, [early])
        await asyncio.sleep(0.5)  # as long as it takes to see what is not committed, again and again
        await received(reader, [early])
        await slow.run(ends)
        last = await appliance.log("last", attrs={"job_id": job_id})
        await received(reader, [early, *(held if ends == "COMMIT" else []), last])


async def test_rows_from_before_the_subscription_are_not_sent(daemon: Daemon, appliance: Appliance):
    job_id = await shown(daemon, appliance, "gui-1")
    before = await appliance.log("before", attrs={"job_id": job_id})
    await eventually(lambda: _last_message(daemon, "before"))
    async with subscribed(daemon, Wanted(logs="DEBUG")) as reader:
        after = await appliance.log("after", attrs={"job_id": job_id})
        await received(reader, [after])
        assert before not in reader.fold.lines


async def test_unsubscribing_and_subscribing_again_changes_the_lines(daemon: Daemon, appliance: Appliance):
    job_id = await shown(daemon, appliance, "gui-1")

    async def next_line(socket: Socket) -> dict[str, Any]:
        return await socket.until("log")

    async with daemon.socket(HELLO) as socket:
        await socket.snapshot(logs="ERROR")
        await appliance.log("a", "WARN", {"job_id": job_id})
        await appliance.log("b", "ERROR", {"job_id": job_id})
        assert (await next_line(socket))["message"] == "b"
        await socket.snapshot(logs="WARN")  # replaces it
        await appliance.log("c", "WARN", {"job_id": job_id})
        assert (await next_line(socket))["message"] == "c"
        await socket.say({"type": "subscribe", "id": 2, "jobs": ["gui-1"], "logs": "DEBUG"})
        await socket.until("synced")
        await socket.say({"type": "unsubscribe", "id": 1})
        await appliance.log("d", "DEBUG", {"job_id": job_id})
        line = await next_line(socket)
        assert (line["message"], line["sub"]) == ("d", [2])


async def test_a_lagging_client_gets_the_number_of_dropped_lines(daemon: Daemon, appliance: Appliance):
    job_id = await shown(daemon, appliance, "gui-1")
    quiet = await shown(daemon, appliance, "gui-2")
    wanted = {
        1: Wanted(jobs=("gui-1",), logs="DEBUG"),
        2: Wanted(logs="ERROR"),
        3: Wanted(jobs=("gui-2",), logs="INFO"),
    }
    reader = CheckedWebsocket(daemon.url, wanted, receive_buffer=4096)
    async with closing([reader]):
        await reader.connect()
        await eventually(lambda: reader.fold.synced)
        reader.freeze()
        rows, attrs = 200, json.dumps({"job_id": job_id, "text": "z" * 4000})
        marks = ",".join(["('INFO', 'a line', %s, %s)"] * rows)
        for _ in range(12):  # some 10 MB
            values = [v for _ in range(rows) for v in (attrs, now(micros=True))]
            await appliance.run(f"INSERT INTO log_events (level, message, attrs, ts) VALUES {marks}", *values)
        errors = [await appliance.log("an error", "ERROR", {"job_id": quiet}) for _ in range(3)]
        await eventually(lambda: _last_message(daemon, "an error", "gui-2"))
        reader.thaw()

        def honest() -> bool:
            reader.check()
            assert reader.closed is None
            return len(reader.fold.lines) + reader.fold.dropped == 12 * rows + 3

        await eventually(honest)
        assert reader.fold.dropped > 500
        assert set(errors) < set(reader.fold.lines), "the oldest go, not the newest"
        assert [reader.fold.lines[i]["sub"] for i in errors] == [[2, 3]] * 3
        assert list(reader.fold.lines) == sorted(reader.fold.lines)


async def _last_message(daemon: Daemon, text: str, name: str = "gui-1") -> bool:
    job = await daemon.job(name)
    return bool(job["last_message"] and job["last_message"]["text"] == text)
