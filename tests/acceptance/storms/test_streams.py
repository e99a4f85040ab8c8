"""Streaming clients that resume at once, that send without end, that subscribe again and again, that read nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support import bulk_rows
from tests.support.certificates import Certificates
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.storm_streams import position
from tests.support.storms import ON_ONE_DAEMON, VERDICTS, Storms, storms

CROWD = "tests.support.storm_streams"

SIZES = [
    pytest.param((300, 300, 2_000, 60.0), id="short"),
    pytest.param((2_000, 2_000, 2_000, 3.0), id="2000", marks=pytest.mark.long),
    pytest.param((2_000, 2_000, 5_000, 3.0), id="5000", marks=pytest.mark.long),
    pytest.param((2_000, 2_000, 8_500, 3.0), id="8500", marks=pytest.mark.long),
    pytest.param((2_000, 5_000, 8_500, 10.0), id="5000-clients", marks=pytest.mark.long),
]
"""Jobs, clients, changes since the position of the clients, and seconds within which all have them."""


async def changes(run: Storms, jobs: int, count: int) -> None:
    """Write log rows that change all jobs in turn, until the stream has gone on by `count`."""
    for begin in range(0, count, jobs):  # A batch that has rows of one job twice changes it once.
        numbers = range(begin, min(begin + jobs, count))
        _, before = await position(run.daemon.url)
        rows = [(bulk_rows.job_id(n % jobs + 1), "INFO", f"line {n}", bulk_rows.ago(seconds=0)) for n in numbers]
        await bulk_rows.fill(run.database, "log_events", ("job_id", "level", "message", "ts"), rows)

        async def reached(to: int = before + len(numbers)) -> bool:
            return (await position(run.daemon.url))[1] >= to

        await eventually(reached)


@pytest.mark.parametrize("sizes", SIZES)
async def test_clients_that_resume_at_once_delay_nobody(
    database: Database, tmp_path: Path, sizes: tuple[int, int, int, float]
):
    jobs, clients, back, within = sizes
    async with storms(tmp_path, database, jobs=jobs) as run:
        await changes(run, jobs, back)

        def complete(counts: dict[str, int]) -> None:
            assert counts["synced"] == clients
            assert not counts["snapshots"], "of one job each: what was missed costs less"

        name = f"{clients} clients of one job each resume, {back} changes back"
        storm = f"{CROWD}:resumes"
        await run.verdict(name, storm, check=complete, settle=0.0, ends_within=within, clients=clients, back=back)


@ON_ONE_DAEMON
async def test_clients_that_resume_again_and_again_delay_nobody(run: Storms):
    await changes(run, 300, 2_000)
    await run.verdict("10 clients resume all the time", f"{CROWD}:resumes", clients=10, back=2_000, repeat=True)


@pytest.mark.long
async def test_waves_of_clients_with_tls_delay_nobody_and_leave_no_more_memory_than_the_first(
    database: Database, tmp_path: Path
):
    certificates, clients = Certificates.create(tmp_path / "certificates"), 2_000
    certificates.make("daemon", "IP:127.0.0.1")
    cert, key = certificates.cert("daemon"), certificates.key("daemon")
    daemon = storms(tmp_path, database, jobs=clients, probe_from="127.0.0.2", http__tls_cert=cert, http__tls_key=key)
    # With TLS a probe waits for the handshakes of its own address that came before it, and for a few of others.
    async with daemon as run:
        first = run.daemon.memory()
        async with run.crowd(f"{CROWD}:waves", ends=True, clients=clients, repeat=1):
            pass
        await eventually(lambda: run.daemon.memory() < 2 * first, every=1.0)

        def complete(counts: dict[str, int]) -> None:
            assert counts["synced"] >= clients

        name = f"waves of {clients} clients with TLS"
        await run.memory_returns(name, f"{CROWD}:waves", seconds=6.0, check=complete, clients=clients, repeat=1_000)


@ON_ONE_DAEMON
@pytest.mark.parametrize("clients", [1, pytest.param(20, marks=pytest.mark.long)])
async def test_clients_that_send_pings_without_end_delay_nobody(run: Storms, clients: int):
    await run.verdict(f"{clients} clients flood pings", f"{CROWD}:pings", clients=clients)


@ON_ONE_DAEMON
@pytest.mark.parametrize("clients", [100, pytest.param(1_000, marks=pytest.mark.long)])
async def test_clients_that_send_faster_than_they_are_handled_use_little_memory(run: Storms, clients: int):
    before = most = run.daemon.memory()
    closed = 'correlator_readers_closed_total{reason="1013"}'
    already = await run.daemon.sample(closed)

    async def some_are_closed() -> bool:
        nonlocal most
        most = max(most, run.daemon.memory())
        return await run.daemon.sample(closed) > already

    async with run.crowd(f"{CROWD}:long_messages", clients=clients) as crowd:
        await eventually(some_are_closed, every=0.05)
        for _ in range(40):
            await asyncio.sleep(0.05)
            most = max(most, run.daemon.memory())
    assert (await run.daemon.get("/health/live"))[0] == 200
    assert crowd.counts["connected"] == clients
    VERDICTS.add(f"{clients} clients send long messages", f"{before:.0f} MB before, {most:.0f} MB meanwhile")
    # What has not been handled is 16 MiB, and as much when its messages are parsed; of each client some objects.
    assert most < before + 50 + 0.08 * clients


@ON_ONE_DAEMON
@pytest.mark.parametrize("clients", [50, pytest.param(200, marks=pytest.mark.long)])
async def test_clients_that_change_their_subscriptions_delay_nobody(run: Storms, clients: int):
    name = f"{clients} clients subscribe 18 times a second"
    await run.verdict(name, f"{CROWD}:subscribers", clients=clients, rate=18)


@ON_ONE_DAEMON
@pytest.mark.parametrize("clients", [100, pytest.param(500, marks=pytest.mark.long)])
async def test_clients_that_read_nothing_delay_nobody(run: Storms, clients: int):
    name = f"{clients} clients read nothing, with all log lines"
    before = run.daemon.memory()
    await run.verdict(name, f"{CROWD}:readers_of_nothing", clients=clients, settle=4.0)
    # Of each client 768 KiB of lines wait, and 64 KiB in its transport; of 256 clients at once the lines.
    assert run.daemon.memory() < before + 0.85 * clients + 64
