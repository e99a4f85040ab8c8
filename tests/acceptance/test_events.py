"""A job's log lines over REST: complete, each once, whatever the page; also those that only their attrs tie to it."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiomysql
from yarl import URL

from tests.support import replay
from tests.support.appliance import Appliance, connected, now
from tests.support.daemon import Daemon
from tests.support.expected_jobs import stamp
from tests.support.mariadb import Database
from tests.support.replay import MariaDBReplayer, Transaction
from tests.support.subscriptions import LEVELS, Truth, settled

OLD = {"status": "completed", "started_at": "2026-01-02 10:00:00", "completed_at": "2026-01-02 10:05:00"}


async def page(daemon: Daemon, name: str, **query: Any) -> dict[str, Any]:
    """The next page that has lines, or the one at the end: a page may be empty before that."""
    while True:
        status, body = await daemon.get(f"/api/v1/jobs/{quote(name, safe='')}/events?{urlencode(query)}")
        assert status == 200, body
        assert set(body) == {"events", "next_after", "more"}
        if body["events"] or not body["more"]:
            return dict(body)
        query["after"] = body["next_after"]


async def lines(daemon: Daemon, name: str, *, most: int = 1000, **query: Any) -> list[dict[str, Any]]:
    """All pages until there is nothing new; each of them is in the order of time."""
    found: list[dict[str, Any]] = []
    for _ in range(most):
        body = await page(daemon, name, **query)
        events = body["events"]
        assert [(e["at"], e["event_id"]) for e in events] == sorted((e["at"], e["event_id"]) for e in events)
        found += events
        if body["next_after"] is None or not (events or body["more"]):
            return found
        query["after"] = body["next_after"]
    raise AssertionError(f"{most} pages")


@asynccontextmanager
async def followed(database: Database, folder: Path, transactions: list[Transaction]) -> AsyncIterator[Any]:
    """(daemon, truth) once the recording is in the tables and everywhere."""
    daemon = Daemon(folder, database__url=database.url)
    try:
        await daemon.start()
        async with MariaDBReplayer.connect(database) as replayer:
            await replayer.replay(transactions)
        yield daemon, await settled(daemon, replay.expected(transactions))
    finally:
        await daemon.close()


def rows_by_job(truth: Truth) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for event_id, job_id in truth.lines().items():
        found[job_id].append(event_id)
    return found


async def test_every_row_of_every_job_is_there_once_and_as_stored(either_database, recording, tmp_path):
    transactions = replay.shift(recording)[: len(recording) // 6]
    if either_database.rolled_back:
        transactions = replay.rolled_back(transactions)
    async with followed(either_database, tmp_path, transactions) as (daemon, truth):
        due = rows_by_job(truth)
        assert sum(map(len, due.values())) > 300
        for job_id in truth.tables["job_tracking"]:
            found = await lines(daemon, job_id, limit=1000)
            assert sorted(e["event_id"] for e in found) == sorted(due.get(job_id, [])), job_id
            for event in found:
                row = truth.tables["log_events"][event["event_id"]]
                attrs = json.loads(row["attrs"]) if row["attrs"] else None
                assert (event["level"], event["message"], event["at"], event["attrs"]) == (
                    row["level"],
                    row["message"],
                    stamp(row["ts"]),
                    attrs,
                )
                assert event["step_id"] == (row["step_id"] or (attrs or {}).get("step_id"))


async def test_every_way_to_page_gives_each_row_once(daemon: Daemon, appliance: Appliance):
    job_id = await appliance.job("gui-1")
    assert (await daemon.get("/api/v1/jobs/gui-1?wait=5"))[0] == 200
    rows = [("DEBUG", 0), ("INFO", 1), ("ERROR", 0), ("INFO", 0), ("WARN", 1), ("DEBUG", 1), ("WARN", 0)] * 4
    due: list[tuple[int, str]] = []
    for number, (level, between) in enumerate(rows):
        row = {"attrs": {"job_id": job_id}} if number % 3 else {"job_id": job_id}
        due.append((await appliance.log(f"line {number}", level, **row), level))
        for _ in range(between):
            await appliance.log("of nobody", level)
    for least in LEVELS:
        wanted = [event_id for event_id, level in due if LEVELS.index(level) >= LEVELS.index(least)]
        for limit in {1, 3, len(wanted) - 1, len(wanted), len(wanted) + 1, 1000}:
            found = await lines(daemon, "gui-1", limit=limit, level=least)
            assert [e["event_id"] for e in found] == wanted, (least, limit)


async def test_any_id_leads_to_the_same_lines(daemon: Daemon, appliance: Appliance):
    names = ("unified-live-failover-SVR 2019/Prod-1", "gui/x/events", "100% <b>&%2F ü'\"\\")
    job_id = await appliance.job(
        names[0],
        metadata=json.dumps({"failover_job_id": names[1], "gui_job_id": names[2]}),
        context_id="ctx-1",
    )
    assert (await daemon.get(f"/api/v1/jobs/{job_id}?wait=5"))[0] == 200
    step = await appliance.step(job_id, 1, "validation")
    other = await appliance.job("gui-other")
    due = [
        await appliance.log("by its column", job_id=job_id),
        await appliance.log("by its attrs", attrs={"job_id": job_id}),
        await appliance.log("by its step's column", step_id=step),
        await appliance.log("by its step in attrs", attrs={"step_id": step}),
        await appliance.log("by its step in attrs, as text", attrs={"step_id": str(step)}),
        await appliance.log("by its external column", external_job_id=names[0]),
        *[await written_by_go(appliance, {"external_job_id": name}) for name in names],
        await appliance.log("column before attrs", attrs={"job_id": other}, job_id=job_id),
    ]
    await appliance.log("of nobody", attrs={"vm": job_id, "text": names[0]})
    await appliance.log("of another", attrs={"job_id": other, "vm": names[0]})
    await appliance.log(f"only mentions {job_id}", attrs={"note": f"after {job_id}"})
    for name in (job_id, *names, "ctx-1"):
        found = await lines(daemon, name)
        assert [e["event_id"] for e in found] == due, name
    status, body = await daemon.get(f"/api/v1/jobs/{names[0].replace(' ', '%20')}/events")  # its slash raw
    assert (status, [e["event_id"] for e in body["events"]]) == (200, due)


async def written_by_go(appliance: Appliance, attrs: dict[str, Any]) -> int:
    text = json.dumps(attrs, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return await appliance.insert("log_events", message="by external ID", level="INFO", attrs=text, ts=now(micros=True))


async def test_a_lower_id_that_is_committed_late_comes_in_a_later_page(
    daemon: Daemon, appliance: Appliance, database: Database
):
    job_id = await appliance.job("gui-1")
    assert (await daemon.get("/api/v1/jobs/gui-1?wait=5"))[0] == 200
    async with database.connect(autocommit=False, init_command="SET time_zone = '+00:00'") as other:
        slow = Appliance(other)
        await slow.run("BEGIN")
        late = [await slow.log("late", attrs={"job_id": job_id}) for _ in range(3)]
        gone = await appliance.log("not of this job")
        early = [await appliance.log("early", attrs={"job_id": job_id}) for _ in range(3)]
        first = await page(daemon, "gui-1", limit=2)
        assert [e["event_id"] for e in first["events"]] == early[:2]
        second = await page(daemon, "gui-1", limit=2, after=first["next_after"])
        assert [e["event_id"] for e in second["events"]] == early[2:]
        nothing = await page(daemon, "gui-1", after=second["next_after"])
        assert nothing["events"] == []
        await slow.run("COMMIT")
    newer = await appliance.log("newer", attrs={"job_id": job_id})
    for after in (second["next_after"], nothing["next_after"]):
        found = await lines(daemon, "gui-1", after=after, limit=2)
        assert sorted(e["event_id"] for e in found) == sorted([*late, newer])
    assert gone not in [e["event_id"] for e in await lines(daemon, "gui-1")]


async def test_pages_read_while_many_commit_out_of_order_miss_and_repeat_nothing(
    daemon: Daemon, appliance: Appliance, database: Database
):
    job_id = await appliance.job("gui-1")
    assert (await daemon.get("/api/v1/jobs/gui-1?wait=5"))[0] == 200
    due: set[int] = set()
    rnd = random.Random(7)

    async def write(size: int) -> None:
        async with database.connect(autocommit=False, init_command="SET time_zone = '+00:00'") as connection:
            writer = Appliance(connection)
            for _ in range(12):
                await writer.run("BEGIN")
                mine = []
                for _ in range(size):
                    mine.append(await writer.log("a line", attrs={"job_id": job_id}))
                    await writer.log("another's")
                    await asyncio.sleep(rnd.random() * 0.02)
                if rnd.random() < 0.2:
                    await writer.run("ROLLBACK")
                else:
                    await writer.run("COMMIT")
                    due.update(mine)

    writing = asyncio.gather(*(write(size) for size in (1, 2, 4, 8)))
    found: list[int] = []
    query: dict[str, Any] = {"limit": 5}
    while not writing.done():
        body = await page(daemon, "gui-1", **query)
        found += [e["event_id"] for e in body["events"]]
        query["after"] = body["next_after"]
    await writing
    found += [e["event_id"] for e in await lines(daemon, "gui-1", **query)]
    assert sorted(found) == sorted(due)
    assert found != sorted(found), "nothing came late: this test saw nothing"


BAD = [
    ("nobody/events", 404, "no job is known by 'nobody'"),
    ("nobody%2Fevents/events", 404, "no job is known by"),
    ("gui-1/events?limit=0", 400, "expected a number from 1 to 1000"),
    ("gui-1/events?limit=1001", 400, "expected a number from 1 to 1000"),
    ("gui-1/events?limit=", 400, "limit=''"),
    ("gui-1/events?level=LOUD", 400, "DEBUG, INFO, WARN, ERROR"),
    ("gui-1/events?level=", 400, "DEBUG, INFO, WARN, ERROR"),
    ("gui-1/events?after=17", 400, "next_after"),
    ("gui-1/events?after=", 400, "next_after"),
    ("gui-1/events?after=%ff%00", 400, "next_after"),
    ("gui-1/events?after=" + "A" * 4000, 400, "next_after"),
    (
        "gui-1/events?afer=1",
        400,
        "there is no query parameter 'afer' here; known: after, before, from, level, limit, q, since, step",
    ),
]


async def test_a_bad_request_says_what_is_right(daemon: Daemon, appliance: Appliance):
    await appliance.job("gui-1")
    assert (await daemon.get("/api/v1/jobs/gui-1?wait=5"))[0] == 200
    assert daemon.session is not None
    for path, status, says in BAD:
        async with daemon.session.get(URL(f"/api/v1/jobs/{path}", encoded=True)) as response:
            problem = json.loads(await response.read())
            assert (response.status, response.content_type) == (status, "application/problem+json"), path
        assert says in problem["detail"], path


async def test_rows_with_huge_and_broken_attrs_are_lines_as_others(daemon: Daemon, appliance: Appliance):
    job_id = await appliance.job("gui-1")
    assert (await daemon.get("/api/v1/jobs/gui-1?wait=5"))[0] == 200
    huge = {"job_id": job_id, "text": "z" * 500_000}
    deep = "[" * 200 + "]" * 200
    stored: list[tuple[str | None, Any]] = [
        (json.dumps(huge), huge),
        ('{"text": "' + "z" * (4 << 20) + '"}', None),
        ("{broken", "{broken"),
        ("", None),
        (None, None),
        ("[1,2]", [1, 2]),
        ('"text"', "text"),
        ("null", None),
        ('{"a":"\\ud800"}', {"a": "\ufffd"}),
        ('{"n":1e400}', {"n": "1e400"}),
        ('{"n":123456789012345678901234567890}', None),
        (json.dumps({"deep": 1})[:-1] + f', "x": {deep}}}', None),
    ]
    await appliance.run("SET SESSION check_constraint_checks = 0")
    ids = []
    for attrs, _ in stored:
        ids.append(
            await appliance.insert(
                "log_events", message="m\0\ud7ff😀", level="INFO", attrs=attrs, ts=now(micros=True), job_id=job_id
            )
        )
    found = await lines(daemon, "gui-1", limit=3)
    assert [e["event_id"] for e in found] == ids
    for event, (attrs, shown) in zip(found, stored, strict=True):
        assert event["message"] == "m\0\ud7ff😀"
        if shown is not None or attrs in (None, "", "null"):
            assert event["attrs"] == shown, attrs
    assert (await daemon.job("gui-1"))["status"] == "running"


async def test_a_job_that_left_memory_has_its_lines_and_an_end(daemon: Daemon, appliance: Appliance):
    job_id = await appliance.job(metadata='{"failover_job_id": "old-1"}', **OLD)
    step = await appliance.step(job_id, 1, "validation", "completed")
    due = [
        await appliance.log("by attrs", attrs={"job_id": job_id}, ts="2026-01-02 10:00:01.5"),
        await appliance.log("by step", attrs={"step_id": step}, ts="2026-01-02 10:00:01.25"),
        await appliance.log("by external ID", attrs={"failover_job_id": "old-1"}, ts="2026-01-02 10:04:59"),
    ]
    body = await page(daemon, "old-1")
    assert [e["event_id"] for e in body["events"]] == [due[1], due[0], due[2]]
    if body["next_after"] is not None:
        assert (await page(daemon, "old-1", after=body["next_after"])) == {
            "events": [],
            "next_after": None,
            "more": False,
        }


async def test_a_log_of_200_000_rows_is_read_by_ranges_of_its_primary_key(database: Database, tmp_path):
    async with connected(database) as connection:
        appliance = Appliance(connection)
        job_id = await appliance.job("gui-1", started_at=now())
        # Two days, a row each 0.86 s: nobody's, but for the newest five.
        await appliance.run(
            "INSERT INTO log_events (id, level, message, attrs, ts)"
            " SELECT seq, 'INFO', 'a row', CONCAT('{\"vm\": ', seq, '}'),"
            " UTC_TIMESTAMP(6) - INTERVAL (200000 - seq) * 864000 MICROSECOND FROM seq_1_to_200000"
        )
        due = [await appliance.log("ours", attrs={"job_id": job_id}) for _ in range(5)]
        daemon = Daemon(tmp_path, database__url=database.url)
        try:
            await daemon.start()
            for setting in ("log_output = 'TABLE'", "long_query_time = 0", "slow_query_log = ON"):
                await appliance.run(f"SET GLOBAL {setting}")  # the session for the next question is opened by it
            assert [e["event_id"] for e in await lines(daemon, "gui-1", limit=2)] == due
        finally:
            for setting in ("slow_query_log", "long_query_time", "log_output"):
                await appliance.run(f"SET GLOBAL {setting} = DEFAULT")
            await daemon.close()
        async with connection.cursor(aiomysql.DictCursor) as cursor:
            await cursor.execute("SELECT sql_text, rows_examined FROM mysql.slow_log WHERE db = %s", (database.name,))
            asked = [(r["sql_text"], r["rows_examined"]) for r in await cursor.fetchall() if "INSTR" in r["sql_text"]]
            assert len(asked) >= 3
            for sql, rows in asked:
                assert rows < 6000, sql  # those of an hour, which the end of daylight saving time repeats
                await cursor.execute(f"EXPLAIN {sql}")
                for plan in await cursor.fetchall():
                    assert plan["type"] in ("range", "const", "ref", "index_merge"), (plan, sql)
