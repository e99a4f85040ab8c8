"""A reader that comes back: what it missed and no more, or everything anew, whatever it says it had."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.appliance import Appliance, now
from tests.support.daemon import HELLO, Daemon, Socket
from tests.support.eventually import eventually
from tests.support.stream_clients import CheckedWebsocket, closing
from tests.support.subscriptions import Wanted

BIG = 1 << 70

ODD = [
    None,
    {},
    [],
    "x",
    7,
    True,
    -1.5,
    [{"epoch": "{epoch}", "seq": 1}],
    {"epoch": "{epoch}"},
    {"seq": 1},
    {"epoch": None, "seq": None},
    {"epoch": "{epoch}", "seq": None},
    {"epoch": "{epoch}", "seq": "1"},
    {"epoch": "{epoch}", "seq": 1.5},
    {"epoch": "{epoch}", "seq": -1},
    {"epoch": "{epoch}", "seq": 1 << 60},
    {"epoch": "{epoch}", "seq": BIG},
    {"epoch": "{epoch}", "seq": True},
    {"epoch": ["{epoch}"], "seq": 1},
    {"epoch": "", "seq": 1},
    {"epoch": "another", "seq": 1},
]


async def until_synced(socket: Socket) -> list[dict[str, Any]]:
    """All messages up to `synced`, except those about the database."""
    messages: list[dict[str, Any]] = []
    while not messages or messages[-1]["type"] != "synced":
        message = await socket.next()
        if message["type"] not in ("status", "bookmark"):
            messages.append(message)
    return messages


async def position(daemon: Daemon, **wanted: Any) -> dict[str, Any]:
    """Where a reader of `wanted` is that has everything."""
    async with daemon.socket(HELLO) as socket:
        _, synced = await socket.snapshot(**wanted)
        return {"epoch": socket.welcome["epoch"], "seq": synced["seq"]}


async def known(daemon: Daemon, *names: str) -> None:
    for name in names:
        assert (await daemon.get(f"/api/v1/jobs/{name}?wait=5"))[0] == 200


async def test_a_resume_sends_only_what_was_missed_and_then_synced(daemon: Daemon, appliance: Appliance):
    same = await appliance.job("gui-same")
    changes = await appliance.job("gui-changes")
    ends = await appliance.job("gui-ends")
    goes = await appliance.job("gui-goes")
    await known(daemon, "gui-same", "gui-changes", "gui-ends", "gui-goes")
    before = await position(daemon, status=["running"])
    await appliance.log("a line that was missed", attrs={"job_id": changes})
    await appliance.end(ends)
    await appliance.log("Job completed", attrs={"job_id": ends, "status": "completed"}, job_id=ends)
    await appliance.run("DELETE FROM job_tracking WHERE id = %s", goes)
    comes = await appliance.job("gui-comes")
    await known(daemon, "gui-comes")

    async def all_seen() -> bool:
        missed = (await daemon.job("gui-changes"))["last_message"] is not None
        return missed and (await daemon.job("gui-ends"))["terminal"] and await daemon.job("gui-goes") is None

    await eventually(all_seen)
    async with daemon.socket(HELLO | {"resume": before}) as socket:
        assert socket.welcome["resumed"] is True
        await socket.say({"type": "subscribe", "id": 4, "status": ["running"], "logs": "DEBUG", "resume": True})
        *messages, synced = await until_synced(socket)
        assert {m["type"] for m in messages} == {"put", "delete"}
        puts = {m["job_id"]: m["job"] for m in messages if m["type"] == "put"}
        leaves = {m["job_id"]: m["reason"] for m in messages if m["type"] == "delete"}
        assert puts.keys() == {changes, ends, comes}
        assert leaves == {ends: "filter", goes: "gone"}
        assert puts[changes] == await daemon.job("gui-changes")
        assert (synced["sub"], synced["count"], synced["unknown"]) == (4, 4, [])
        assert all(m["sub"] == [4] for m in messages)
        seqs = [m["seq"] for m in (*messages, synced)]
        assert seqs == sorted(seqs)
        assert seqs[0] > before["seq"]
        socket.jobs[same] = await daemon.job("gui-same")  # as it has from before
        await appliance.log("a line from then on", attrs={"job_id": same})
        assert (await socket.until("log"))["message"] == "a line from then on"


async def test_where_nothing_was_missed_synced_comes_alone_and_the_stream_goes_on_by_deltas(
    daemon: Daemon, appliance: Appliance
):
    job_id = await appliance.job("gui-1")
    await known(daemon, "gui-1")
    reader = CheckedWebsocket(daemon.url, {1: Wanted(), 2: Wanted(jobs=("gui-1", "nobody-1"))})
    async with closing([reader]):
        await reader.connect()
        await eventually(lambda: reader.fold.synced)
        reader.drop()
        await reader.connect()
        await eventually(lambda: reader.fold.synced)
        assert reader.resumed == [True]
        assert reader.fold.counts["snapshot"] == 2, "of the first connection"
        puts = reader.fold.counts.get("put", 0)
        await appliance.log("and on", attrs={"job_id": job_id})
        await eventually(lambda: reader.fold.jobs[1][job_id]["last_message"])
        assert (reader.fold.counts.get("delta"), reader.fold.counts.get("put", 0)) == (1, puts)
        assert reader.fold.jobs[1] == reader.fold.jobs[2]
        held = await appliance.job("nobody-1")
        await eventually(lambda: held in reader.fold.jobs[2])


async def test_a_subscription_that_does_not_ask_to_resume_gets_its_snapshot(daemon: Daemon, appliance: Appliance):
    job_id = await appliance.job("gui-1")
    await known(daemon, "gui-1")
    before = await position(daemon)
    async with daemon.socket(HELLO | {"resume": before}) as socket:
        assert socket.welcome["resumed"] is True
        await socket.say({"type": "subscribe", "id": 1, "resume": False})
        messages = await until_synced(socket)
        assert [m["type"] for m in messages] == ["snapshot", "synced"]
        assert [j["job_id"] for j in messages[0]["jobs"]] == [job_id]
        await socket.say({"type": "subscribe", "id": 2, "resume": True})
        assert [m["type"] for m in await until_synced(socket)] == ["synced"]


async def test_after_a_restart_all_comes_anew_and_it_is_said_why(daemon: Daemon, appliance: Appliance):
    job_id = await appliance.job("gui-1")
    await known(daemon, "gui-1")
    before = await position(daemon)
    reader = CheckedWebsocket(daemon.url, {1: Wanted(), 2: Wanted(jobs=("gui-1",))})
    async with closing([reader]):
        await reader.connect()
        await eventually(lambda: reader.fold.synced)
        assert await daemon.stop() == 0
        await eventually(lambda: reader.closed == 1012)
        await appliance.end(job_id)
        await daemon.start()
        async with daemon.socket(HELLO | {"resume": before}) as socket:
            assert socket.welcome["resumed"] is False
            assert socket.welcome["epoch"] != before["epoch"]
            await socket.say({"type": "subscribe", "id": 1, "resume": True})
            messages = await until_synced(socket)
            assert [m["type"] for m in messages] == ["resync", "snapshot", "synced"]
            assert messages[0]["reason"] == "epoch"
            assert [j["job_id"] for j in messages[1]["jobs"]] == [job_id]
            while not socket.jobs[job_id]["terminal"]:  # what an earlier run knew may be shown first
                await socket.next()
        await reader.connect()
        await eventually(lambda: reader.fold.synced)
        assert (reader.resumed, set(reader.fold.resyncs)) == ([False], {"epoch"})
        due = {job_id: await daemon.job("gui-1")}
        await eventually(lambda: reader.fold.jobs[1] == reader.fold.jobs[2] == due)


async def test_an_odd_position_gets_everything_anew_and_never_an_error(daemon: Daemon, appliance: Appliance):
    job_id = await appliance.job("gui-1")
    await known(daemon, "gui-1")
    epoch = (await position(daemon))["epoch"]

    def with_epoch(value: Any) -> Any:
        match value:
            case "{epoch}":
                return epoch
            case dict():
                return {k: with_epoch(v) for k, v in value.items()}
            case list():
                return [with_epoch(v) for v in value]
            case _:
                return value

    for odd in ODD:
        async with daemon.socket(HELLO | {"resume": with_epoch(odd)}) as socket:
            assert socket.welcome["resumed"] is False, odd
            for sub in (1, 2):
                await socket.say({"type": "subscribe", "id": sub, "resume": True})
                messages = await until_synced(socket)
                assert [m["type"] for m in messages] == ["resync", "snapshot", "synced"], odd
                assert messages[0]["reason"] in ("epoch", "gap"), odd
                assert [j["job_id"] for j in messages[1]["jobs"]] == [job_id], odd
            await socket.say({"type": "ping"})
            await socket.until("pong")
    for odd in (0, "yes", []):
        async with daemon.socket(HELLO) as socket:
            await socket.say({"type": "subscribe", "id": 1, "resume": odd})
            assert (await socket.until("error"))["code"] == "bad_request"
            assert len((await socket.snapshot(resume=None))[0]) == 1


async def test_a_position_that_the_resume_ring_has_dropped_is_a_gap(daemon: Daemon, appliance: Appliance):
    jobs = 500
    names = [f"{number:08}-0000-4000-8000-000000000000" for number in range(jobs)]
    marks = ",".join(["(%s, 'x', 'failover', 'running', %s)"] * jobs)
    values = [v for name in names for v in (name, now())]
    await appliance.run(
        f"INSERT INTO job_tracking (id, operation, job_type, status, started_at) VALUES {marks}", *values
    )
    await known(daemon, names[-1], names[0])
    reader = CheckedWebsocket(daemon.url, {1: Wanted()})
    async with closing([reader]):
        await reader.connect()
        await eventually(lambda: reader.fold.synced and len(reader.fold.jobs[1]) == jobs)
        assert reader.fold.position is not None
        before = reader.fold.position[1]
        reader.drop()
        rows = ",".join(["('INFO', 'a line', %s, UTC_TIMESTAMP(6))"] * jobs)
        for number in range(60):
            attrs = [f'{{"job_id":"{name}"}}' for name in names]
            await appliance.run(f"INSERT INTO log_events (level, message, attrs, ts) VALUES {rows}", *attrs)
            if number >= 18 and (await position(daemon, jobs=[names[0]]))["seq"] > before + 10_000:
                break
        assert (await position(daemon, jobs=[names[0]]))["seq"] > before + 10_000
        await reader.connect()
        await eventually(lambda: reader.fold.synced)
        assert (reader.resumed, reader.fold.resyncs) == ([False], ["gap"])

        async def equal() -> bool:
            _, page = await daemon.get("/api/v1/jobs?limit=500")
            return reader.fold.jobs[1] == {j["job_id"]: j for j in page["jobs"]}

        await eventually(equal)


async def test_get_sends_the_whole_job_by_any_id(daemon: Daemon, appliance: Appliance):
    job_id = await appliance.job("gui-1", context_id="ctx-1")
    old = await appliance.job(
        "old-1", status="completed", started_at="2026-01-02 10:00:00", completed_at="2026-01-02 10:05:00"
    )
    await known(daemon, "gui-1")
    async with daemon.socket(HELLO) as socket:
        for name in (job_id, "gui-1", "ctx-1"):
            await socket.say({"type": "get", "job_id": name})
            put = await socket.until("put")
            assert (put["job_id"], put["sub"], put["job"]) == (job_id, [], await daemon.job("gui-1"))
        await socket.snapshot(jobs=["gui-1"])
        await socket.say({"type": "get", "job_id": "gui-1"})
        assert (await socket.until("put"))["sub"] == [1]
        await socket.say({"type": "get", "job_id": "old-1"})
        assert (await socket.until("put"))["job_id"] == old
        await socket.say({"type": "get", "job_id": "nobody-1"})
        error = await socket.until("error")
        assert (error["code"], error["job_id"]) == ("not_found", "nobody-1")
        for name in ("nobody-2", "nobody-3"):
            await socket.say({"type": "get", "job_id": name})
        named = {(await socket.until("error"))["job_id"] for _ in range(2)}
        assert named == {"nobody-2", "nobody-3"}, "in any order"


@pytest.mark.parametrize("moment", ["before-synced", "in-what-was-missed"])
async def test_a_connection_lost_during_a_resume_loses_nothing(daemon: Daemon, appliance: Appliance, moment):
    marks = ",".join(["(%s, 'x', 'failover', 'running', %s, %s)"] * 300)
    values = [
        v for n in range(300) for v in (f"{n:08}-0000-4000-8000-000000000000", now(), "{" + f'"a":"{"x" * 900}"' + "}")
    ]
    await appliance.run(
        f"INSERT INTO job_tracking (id, operation, job_type, status, started_at, metadata) VALUES {marks}", *values
    )

    async def all_there() -> bool:
        async with daemon.socket(HELLO) as socket:
            return len((await socket.snapshot())[0]) == 300

    await eventually(all_there)
    reader = CheckedWebsocket(daemon.url, {1: Wanted()})
    async with closing([reader]):
        if moment == "before-synced":
            for _ in range(5):
                await reader.connect()
                await asyncio.sleep(0)
                reader.drop()
        else:
            await reader.connect()
            await eventually(lambda: reader.fold.synced)
            reader.drop()
            await appliance.run("UPDATE job_tracking SET owner = 'somebody' WHERE status = 'running'")
            await eventually(lambda: _owner(daemon, "00000299-0000-4000-8000-000000000000"))
            for _ in range(5):
                await reader.connect()
                reader.drop()
        await reader.connect()

        async def equal() -> bool:
            reader.check()
            _, page = await daemon.get("/api/v1/jobs?limit=500")
            return reader.fold.jobs.get(1) == {j["job_id"]: j for j in page["jobs"]}

        await eventually(equal)


async def _owner(daemon: Daemon, job_id: str) -> bool:
    return bool((await daemon.job(job_id))["owner"] == "somebody")
