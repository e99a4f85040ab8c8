"""Clients without a token, in the memory of the unit: none of them can end the daemon, whatever they send and hold."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.support.certificates import Certificates
from tests.support.confined import memory_limit
from tests.support.mariadb import Database
from tests.support.storm_unknown import REQUESTS, WEBSOCKETS
from tests.support.storms import Storms, storms

FLOODS = "tests.support.storm_unknown:floods"

LIMIT = 2 << 30
"""Bytes: `MemoryMax=` of deploy/correlator.service."""

KINDS = (*WEBSOCKETS, *REQUESTS)

FLOODED = ("pings", "fragments")
"""Closed with 4429, after which their address waits up to 5 s for each next websocket: few of them come to send."""


async def survives(run: Storms, kind: str, connections: int, grown: float) -> None:
    """Check that a storm neither ends the daemon, nor stops it, nor needs more than `grown` MB."""
    with contextlib.ExitStack() as stack:
        group = None
        with contextlib.suppress(OSError):  # Without the right to make one the memory is measured all the same.
            group = stack.enter_context(memory_limit(LIMIT))
            group.add(run.daemon.pid)
        before = most = run.daemon.memory()
        async with run.crowd(FLOODS, connections=connections, kind=kind) as crowd:
            for _ in range(8):
                figures = await run.measure(1.0)
                assert figures.lost == 0, figures.text()
                most = max(most, run.daemon.memory())
        assert group is None or group.kills == 0
        least = 100 if kind in FLOODED else connections / 10  # of the others the kernel or the listener took nothing
        assert crowd.counts.get("sent", 0) > least
        assert most < before + grown, f"{before:.0f} MB before, {most:.0f} MB meanwhile; {crowd.counts}"
        assert (await run.daemon.get("/health/live"))[0] == 200


@pytest.mark.parametrize("kind", ["messages", "partial", pytest.param("headers", marks=pytest.mark.long)])
async def test_clients_without_a_hello_cost_little_memory_and_stop_nothing(
    database: Database, tmp_path: Path, kind: str
):
    async with storms(tmp_path, database, jobs=100) as run:
        await survives(run, kind, 300, 60.0)


@pytest.mark.parametrize(
    ("kind", "connections"),
    [
        ("silence", 300),
        pytest.param("silence", 10_000, marks=pytest.mark.long),
        pytest.param("hello", 10_000, marks=pytest.mark.long),
    ],
)
async def test_clients_with_tls_that_ask_nothing_cost_little_memory(
    database: Database, tmp_path: Path, kind: str, connections: int
):
    certificates = Certificates.create(tmp_path / "certificates")
    certificates.make("daemon", "IP:127.0.0.1")
    cert, key = certificates.cert("daemon"), certificates.key("daemon")
    (tmp_path / "uvloop.py").write_text("raise ImportError")  # asyncio's own loop keeps larger buffers
    without = {"PYTHONPATH": str(tmp_path)}
    daemon = storms(tmp_path, database, jobs=100, environment=without, http__tls_cert=cert, http__tls_key=key)
    async with daemon as run:
        await survives(run, kind, connections, 300.0 if kind == "hello" else 30.0 + 0.1 * connections)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
async def test_thousands_of_clients_without_a_hello_do_not_end_the_daemon(
    database: Database, tmp_path: Path, kind: str
):
    async with storms(tmp_path, database, jobs=100) as run:
        await survives(run, kind, 10_000, 1_200.0)
