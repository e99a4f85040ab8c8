"""The doorbell at real servers: which statements notify, which do not, and what happens when it is not available."""

from __future__ import annotations

import asyncio
import contextlib
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from correlator.config.schema import Tls, client_context
from correlator.sources import binlog
from correlator.sources.db.mariadb import Address, MariaDBDatabase
from correlator.sources.doorbell import Doorbell
from correlator.tasks import Backoff
from tests.support.background import in_background
from tests.support.certificates import Certificates
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database, MariaDB

LOGGING = ("--log-bin=bin", "--server-id=1", "--max-allowed-packet=64M")


class RunningDoorbell:
    """A doorbell, and the number of notifications by table."""

    def __init__(self, bell: Doorbell) -> None:
        self.bell = bell
        self.notifications: Counter[str] = Counter()

    @property
    def up(self) -> bool:
        return bool(self.bell.describe()["up"])

    @property
    def error(self) -> str:
        return str(self.bell.describe()["error"])


@contextlib.asynccontextmanager
async def listening(
    database: Database,
    *,
    up: bool = True,
    silent_after: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    **address: object,
) -> AsyncIterator[RunningDoorbell]:
    where = Address(**{"port": database.server.port, "database": database.name, **address})  # type: ignore[arg-type]
    source = MariaDBDatabase(where, connect_timeout=1.0)
    backoff = Backoff(0.05, 1.0, 0.05)
    running = RunningDoorbell(Doorbell(source, backoff=backoff, heartbeat=0.3, silent_after=silent_after, clock=clock))
    async with in_background(running.bell.run(running.notifications.update)) as task:
        if up:
            await eventually(lambda: running.up)
        yield running
        assert not task.done()


async def granted(server: MariaDB) -> Database:
    database = await server.create_schema()
    await database.run("GRANT REPLICATION SLAVE ON *.* TO correlator@'%'")
    return database


LINE = "INSERT INTO log_events (message) VALUES ('x')"


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDB]:
    """One with a binary log, that the tests below share. One that pauses it resumes it."""
    with MariaDB(*LOGGING) as server:
        yield server


@pytest.fixture
async def appliance(server: MariaDB) -> AsyncIterator[Database]:
    database = await granted(server)
    yield database
    await database.drop()


@pytest.mark.filterwarnings("ignore:Unsafe statement")
@pytest.mark.parametrize("form", ["ROW", "STATEMENT", "MIXED"])
async def test_a_commit_notifies_of_its_table_and_a_rollback_does_not(appliance, form):
    async with listening(appliance) as running:
        await appliance.run(
            "CREATE TABLE other (id INT)",
            f"SET SESSION binlog_format = '{form}'",
            "INSERT INTO other VALUES (1), (2)",
            "BEGIN",
            LINE,
            "ROLLBACK",
            "BEGIN",
            "INSERT INTO job_tracking (id, operation, status, job_type) VALUES ('a', 'o', 'running', 'failover')",
            "INSERT INTO job_steps (id, job_id, name, seq, status) VALUES (1, 'a', 'n', 1, 'running')",
            "COMMIT",
        )
        await eventually(lambda: {"job_tracking", "job_steps"} <= running.notifications.keys())
        assert "log_events" not in running.notifications
        await appliance.run(LINE)
        await eventually(lambda: running.notifications["log_events"])
        assert "failover_jobs" not in running.notifications


async def test_the_same_where_the_log_is_packed(appliance):
    before = "SET GLOBAL log_bin_compress = OFF, binlog_checksum = CRC32"
    await appliance.run("SET GLOBAL log_bin_compress = ON, log_bin_compress_min_len = 10, binlog_checksum = NONE")
    try:
        async with listening(appliance) as running:
            for form in ("ROW", "STATEMENT"):
                running.notifications.clear()
                await appliance.run(f"SET SESSION binlog_format = '{form}'", LINE)
                await eventually(lambda: running.notifications["log_events"])
    finally:
        await appliance.run(before)


async def test_a_row_that_is_larger_than_a_packet_of_the_protocol_passes(appliance, monkeypatch):
    feed, most = binlog.ChangedTables.feed, 0

    def measured(reader: binlog.ChangedTables, received: bytes) -> dict[str, int]:
        nonlocal most
        most = max(most, len(received))
        return feed(reader, received)

    monkeypatch.setattr(binlog.ChangedTables, "feed", measured)
    async with listening(appliance) as running:
        text = "SELECT REPEAT('log_events ', 1600000)"  # 17.6 MB
        await appliance.run("SET SESSION binlog_format = 'ROW'", f"CREATE TABLE huge (t LONGTEXT) {text}", LINE)
        await eventually(lambda: running.notifications["log_events"])
        assert set(running.notifications) == {"log_events"}
        assert running.up
    assert most <= 64 << 10, "more is read only after other tasks"


async def test_a_log_that_begins_a_new_file_and_drops_the_old_one_is_followed(appliance):
    async with listening(appliance) as running:
        for _ in range(3):
            running.notifications.clear()
            await appliance.run("FLUSH BINARY LOGS", LINE)
            await eventually(lambda: running.notifications["log_events"])
            await eventually(lambda: only_the_newest_binary_log(appliance))
        assert running.up


async def only_the_newest_binary_log(appliance) -> bool:
    """Purge the others. The server keeps those that it may need after a crash, with a warning, for a moment."""
    async with appliance.connect() as connection, connection.cursor() as cursor:
        await cursor.execute("SHOW BINARY LOGS")
        names = [row[0] for row in await cursor.fetchall()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            await cursor.execute(f"PURGE BINARY LOGS TO '{names[-1]}'")
    return len(names) == 1


async def test_a_quiet_server_is_no_silent_one_and_one_connection_is_enough(appliance, monkeypatch):
    """The clock goes on only when a heartbeat has arrived, so a busy machine gives the same result as an idle one."""
    now, heartbeats, feed = 0.0, 0, binlog.ChangedTables.feed

    def counted(changes: binlog.ChangedTables, received: bytes) -> dict[str, int]:
        nonlocal heartbeats
        heartbeats += 1
        return feed(changes, received)

    async def another_heartbeat() -> None:
        known = heartbeats
        await eventually(lambda: heartbeats > known)

    monkeypatch.setattr(binlog.ChangedTables, "feed", counted)
    async with listening(appliance, silent_after=0.5, clock=lambda: now) as running:
        async with appliance.connect() as connection, connection.cursor() as cursor:
            ours = "SELECT ID FROM information_schema.processlist WHERE USER = 'correlator'"
            await cursor.execute(ours)
            before = await cursor.fetchall()
            for _ in range(6):
                await another_heartbeat()
                now += 0.4  # six times that is longer than it would put up with silence
            await cursor.execute(ours)
            assert await cursor.fetchall() == before
        assert len(before) == 1
        assert running.up


async def test_without_the_grant_the_doorbell_names_it_and_works_once_it_is_given(appliance, caplog):
    await appliance.run("REVOKE REPLICATION SLAVE ON *.* FROM correlator@'%'")
    async with listening(appliance, up=False) as running:
        await eventually(lambda: "GRANT REPLICATION SLAVE" in running.error)
        await appliance.run("GRANT REPLICATION SLAVE ON *.* TO correlator@'%'")
        await eventually(lambda: running.up)
        await appliance.run(LINE)
        await eventually(lambda: running.notifications["log_events"])
    assert [r.levelname for r in caplog.records if r.name == "correlator.sources.doorbell"] == ["WARNING"]


async def test_the_doorbell_works_over_tls_and_again_after_a_restart_and_a_crash_of_the_server(tmp_path):
    authority = Certificates.create(tmp_path / "tls")
    authority.make("server", "IP:127.0.0.1")
    files = (f"--ssl-cert={authority.cert('server')}", f"--ssl-key={authority.key('server')}")
    with MariaDB(*LOGGING, *files) as own:
        database = await granted(own)
        async with listening(database, tls=client_context(Tls(ca=authority.ca))) as running:
            for end in (own.stop, own.kill):
                await asyncio.to_thread(end)
                await eventually(lambda: not running.up)
                await asyncio.to_thread(own.start)
                await eventually(lambda: running.up)
                for _ in range(2):
                    running.notifications.clear()
                    await database.run(LINE)
                    await eventually(lambda: running.notifications["log_events"])


async def test_a_server_that_freezes_is_noticed_by_its_silence(appliance):
    async with listening(appliance, silent_after=1.2) as running:
        await asyncio.to_thread(appliance.server.pause)
        try:
            await eventually(lambda: "no heartbeat" in running.error)
        finally:
            appliance.server.resume()
        await eventually(lambda: running.up)
        await appliance.run(LINE)
        await eventually(lambda: running.notifications["log_events"])


async def test_two_of_them_at_one_server_do_not_throw_each_other_out(appliance):
    async with listening(appliance) as one, listening(appliance) as other:
        for _ in range(3):
            one.notifications.clear()
            other.notifications.clear()
            await appliance.run(LINE)
            await eventually(lambda: one.notifications["log_events"] and other.notifications["log_events"])
        assert one.up
        assert other.up


async def test_a_daemon_that_hardly_polls_shows_at_once_what_is_committed(appliance, tmp_path):
    """Also what is committed below rows that have been read, and what only the tables show."""
    daemon = Daemon(
        tmp_path,
        database__url=appliance.url,
        database__doorbell=True,
        database__poll_interval="10m",
        database__idle_poll_interval="10m",
        database__reconcile_interval="10m",
    )
    job = "INSERT INTO job_tracking (id, operation, status, job_type) VALUES ('{}', 'o', '{}', 'failover')"
    line = "INSERT INTO log_events (message, level, attrs) VALUES ('{}', 'INFO', '{{\"job_id\":\"a\"}}')"
    try:
        await daemon.start()
        await eventually(lambda: doorbell_of(daemon))
        async with daemon.socket(HELLO) as socket:
            await socket.snapshot(logs="DEBUG")
            await appliance.run(job.format("a", "running"))
            assert (await socket.shown())["job"]["job_id"] == "a"
            async with appliance.connect(autocommit=False) as slow, slow.cursor() as cursor:
                await cursor.execute(line.format("slow"))
                await appliance.run(line.format("quick"))
                assert (await socket.until("log"))["message"] == "quick"
                await slow.commit()
                assert (await socket.until("log"))["message"] == "slow"
            await appliance.run("UPDATE job_tracking SET status = 'failed', completed_at = NOW() WHERE id = 'a'")
            while (await socket.shown())["job"]["status"] != "failed":
                pass
        assert "correlator_doorbell_up 1.0" in await daemon.text("/metrics")
        assert await daemon.stop() == 0
    finally:
        await daemon.close()


async def doorbell_of(daemon: Daemon) -> bool:
    """Whether the daemon's doorbell is up."""
    _, health = await daemon.get("/health/ready")
    return bool(health["parts"]["doorbell"]["up"])
