"""The demo's SQLite schema against the appliance's own, and against a recording."""

import asyncio
import gzip
import json
import re
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from correlator.demo.joblog import Lane, create_database

DATA = Path(__file__).parent.parent / "data"
TABLES = ("log_events", "job_tracking", "job_steps", "failover_jobs")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "appliance.db"
    create_database(path)
    return path


def appliance(table: str) -> str:
    found = re.search(rf"CREATE TABLE {table} \((.*?)\n\) ENGINE", (DATA / "appliance.sql").read_text(), re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_the_appliances_columns_in_their_order(path, table):
    with closing(sqlite3.connect(path)) as db:
        names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    keywords = {"PRIMARY", "KEY", "UNIQUE", "CONSTRAINT"}
    wanted = [word for word in re.findall(r"^  (\w+)", appliance(table), re.MULTILINE) if word not in keywords]
    assert names == wanted


@pytest.mark.parametrize("table", TABLES)
def test_the_same_columns_are_indexed(path, table):
    keys = re.findall(r"(UNIQUE )?KEY \w+ \(([\w, ]+)\)", appliance(table))
    wanted = {(bool(unique), tuple(columns.split(", "))) for unique, columns in keys}
    with closing(sqlite3.connect(path)) as db:
        found = {
            (bool(unique), tuple(row[2] for row in db.execute(f"PRAGMA index_info({name})")))
            for _, name, unique, origin, _ in db.execute(f"PRAGMA index_list({table})")
            if origin == "c"
        }
    assert found == wanted


@pytest.mark.parametrize("table", TABLES)
def test_foreign_keys_do_the_same_on_delete(path, table):
    pattern = r"FOREIGN KEY \((\w+)\) REFERENCES (\w+) \((\w+)\) ON DELETE (CASCADE|SET NULL)"
    wanted = set(re.findall(pattern, appliance(table)))
    with closing(sqlite3.connect(path)) as db:
        found = {(row[3], row[2], row[4], row[6]) for row in db.execute(f"PRAGMA foreign_key_list({table})")}
    assert found == wanted


def test_every_row_of_a_recording_goes_in_and_comes_out_unchanged(path):
    wanted: dict[tuple[str, object], dict[str, Any]] = {}
    with closing(sqlite3.connect(path)) as db, gzip.open(DATA / "mixed.jsonl.gz", "rt", encoding="utf-8") as lines:
        db.row_factory = sqlite3.Row
        for op in (op for line in lines for op in json.loads(line)["ops"]):
            table = op["table"]
            if op["op"] == "insert":
                row = op["row"]
                wanted[table, row["id"]] = dict(row)
                marks = ", ".join("?" * len(row))
                db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
            else:
                wanted[table, op["id"]] |= op["set"]
                changes = ", ".join(f"{column} = ?" for column in op["set"])
                db.execute(f"UPDATE {table} SET {changes} WHERE id = ?", (*op["set"].values(), op["id"]))
        found = {(table, row["id"]): dict(row) for table in TABLES for row in db.execute(f"SELECT * FROM {table}")}
    assert found == wanted


async def test_a_lane_closes_its_connection_also_when_the_wait_for_it_is_cancelled(path):
    lane, release = Lane(path), threading.Event()
    busy = asyncio.create_task(lane.call(lambda _: release.wait(5.0)))
    closing = asyncio.create_task(lane.close())
    await asyncio.sleep(0)  # lets both reach the thread
    assert closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    release.set()
    assert await busy
    await asyncio.to_thread(lane._thread.shutdown)
    assert lane._connection is None


def test_a_file_that_has_its_tables_is_left_alone(path):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO log_events (level, message) VALUES ('INFO', 'kept')")
    assert not create_database(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT message FROM log_events").fetchall() == [("kept",)]
