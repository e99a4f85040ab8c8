"""A recording of the real JobLog, replayed into real servers, comes out equal to its tables everywhere."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from tests.support import replay
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.expected_jobs import owners, stamp
from tests.support.listener import Listener
from tests.support.replay import MariaDBReplayer, SQLiteReplayer
from tests.support.subscriptions import Truth, documents, lines_of, settled

LOGS_READ = 30
"""Jobs whose logs are read."""


async def has_each_line(daemon: Daemon, truth: Truth) -> None:
    """Every row of these jobs is in their logs once, as it is stored."""
    due = truth.rows_of_jobs()
    for name in map(str, list(truth.tables["job_tracking"])[:LOGS_READ]):
        found = await lines_of(daemon, name, limit=1000)
        assert sorted(line["event_id"] for line in found) == due[name], name
        for line in found:
            row = truth.tables["log_events"][line["event_id"]]
            attrs = json.loads(str(row["attrs"])) if row["attrs"] else None
            stored = (row["level"], row["message"], stamp(str(row["ts"])), attrs)
            assert (line["level"], line["message"], line["at"], line["attrs"]) == stored
            assert line["step_id"] == (row["step_id"] or (attrs or {}).get("step_id"))
    assert sum(map(len, due.values())) > 300


async def test_the_recording_ends_equal_to_its_tables_everywhere(either_database, recording, own_mosquitto, tmp_path):
    """At its own pace; at once where the schema was rolled back, and again of a daemon that starts after all of it."""
    database, speed = either_database, None if either_database.rolled_back else 1.0
    ends = datetime.now(UTC) + (timedelta(seconds=recording[-1].at) if speed else timedelta())
    transactions = replay.with_failovers_of_joblog(replay.shift(recording, ends_at=ends))
    if database.rolled_back:
        transactions = replay.rolled_back(transactions)
    tables = replay.expected(transactions)
    async with Daemon(tmp_path, database__url=database.url, mqtt__url=own_mosquitto.url) as daemon:
        async with MariaDBReplayer.connect(database) as replayer:
            await replayer.replay(transactions, speed=speed)
        truth = await settled(daemon, tables)
        await has_each_line(daemon, truth)
        newest = owners(tables)
        assert len(newest) > 50
        for name, job_id in newest.items():
            status, found = await daemon.get(f"/api/v1/resolve/{quote(name, safe='')}")
            assert (status, found["job_id"], found["resolved_by"]) == (200, job_id, "external_id"), name
            assert (await daemon.job(name))["job_id"] == job_id
        async with daemon.socket(HELLO) as socket:
            for number, (name, job_id) in enumerate(newest.items()):
                await socket.say({"type": "subscribe", "id": number % 90, "jobs": [name]})
                snapshot = await socket.until("snapshot")
                assert [j["job_id"] for j in snapshot["jobs"]] == [job_id], name
                assert (await socket.until("synced"))["unknown"] == []

        listener = Listener()

        async def everything_retained() -> bool:
            topics = listener.retained
            states = {t["job_id"]: t for name, t in topics.items() if name.endswith("/state")}
            now_shown = await documents(daemon)
            assert set(states) == set(now_shown)
            for job_id, state in states.items():
                assert {k: v for k, v in state.items() if k not in ("epoch", "seq")} == now_shown[job_id]
            ids = {t["external_id"]: t["job_id"] for name, t in topics.items() if "/ext/" in name}
            assert ids == newest
            return True

        async with listener.listening(own_mosquitto, "test"):
            await eventually(everything_retained, every=0.3)
        assert truth.documents.keys() >= tables["job_tracking"].keys()
        assert await daemon.stop() == 0
        if speed is None:
            (tmp_path / "state" / "checkpoint.sqlite").unlink()
            await daemon.start()
            shown = (await settled(daemon, tables)).documents
            assert sum(d["warnings"] for d in shown.values()) > 400
            assert all(d["last_message"] for d in shown.values() if d["source"] == "joblog")


async def test_the_same_recording_from_an_sqlite_file_ends_equal_too(mixed, tmp_path):
    path, mixed = tmp_path / "appliance.db", replay.with_failovers_of_joblog(mixed)
    async with (
        SQLiteReplayer.connect(path) as replayer,
        Daemon(tmp_path, database__url=f"sqlite://{path}") as daemon,
    ):
        await replayer.replay(mixed)
        await settled(daemon, replay.expected(mixed))
