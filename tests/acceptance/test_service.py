"""The program under a service manager: its notifications, a reload, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from correlator.ops.watchdog import EXIT_CODE
from tests.support.appliance import Appliance
from tests.support.certificates import self_sign
from tests.support.client_fold import ClientFold
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.gateways import GatewayProcess
from tests.support.mariadb import Database, MariaDB
from tests.support.servers import free_port
from tests.support.service_manager import ServiceManager
from tests.support.stream_clients import CheckedEventStream


class Service(Daemon):
    """The daemon with a service manager and a configuration file."""

    def __init__(self, folder: Path, manager: ServiceManager, text: str, **settings: object) -> None:
        super().__init__(folder, {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1000000"}, **settings)
        self.file = folder / "correlator.toml"
        self.file.write_text(text)
        self.arguments = ("--config", str(self.file))

    async def metric_for(self, token: str, name: str) -> float:
        headers = {"Authorization": f"Bearer {token}"}
        assert self.session is not None
        async with self.session.get("/metrics", headers=headers) as response:
            lines = (await response.text()).splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@pytest.fixture
async def service(database: Database, tmp_path: Path, manager: ServiceManager) -> AsyncIterator[Service]:
    service = Service(tmp_path, manager, "[log]\nlevel = 'info'\n", database__url=database.url)
    try:
        yield service
    finally:
        await service.close()


async def test_ready_is_sent_when_it_serves_and_then_watchdog_pings_until_the_stop(
    service: Service, manager: ServiceManager
):
    await service.start()
    await eventually(lambda: "STATUS=0 jobs running of 0, 0 clients" in manager.lines)
    assert manager.lines.count("READY=1") == 1
    manager.clear()
    await eventually(lambda: manager.lines.count("WATCHDOG=1") >= 3)
    assert await service.stop() == 0
    assert [line for line in manager.lines if "=1" not in line or "STOPPING" in line] == [
        "STOPPING=1",
        "STATUS=stopping",
    ]
    assert manager.lines.index("STOPPING=1") > manager.lines.index("WATCHDOG=1")


async def test_a_start_without_a_database_is_complete_and_says_what_it_waits_for(
    own_mariadb: MariaDB, tmp_path: Path, manager: ServiceManager
):
    database = await own_mariadb.create_schema()
    own_mariadb.stop()
    service = Service(tmp_path, manager, "", database__url=database.url)
    try:
        await service.start(ready=False)
        await eventually(lambda: any(line.startswith("STATUS=waiting for the database: ") for line in manager.lines))
        assert manager.lines.count("READY=1") == 1
        await eventually(lambda: "WATCHDOG=1" in manager.lines)
        assert manager.lines.index("READY=1") < manager.lines.index("WATCHDOG=1")
        assert (await service.get("/health/ready"))[0] == 503
        manager.clear()
        await eventually(lambda: "WATCHDOG=1" in manager.lines)
        own_mariadb.start()
        await service.until()
        assert "READY=1" not in manager.lines
        manager.clear()
        own_mariadb.stop()
        await eventually(lambda: any("the database is unreachable" in line for line in manager.lines))
        assert "WATCHDOG=1" in manager.lines
        assert (await service.get("/health/live")) == (200, {"live": True})
    finally:
        await service.close()


@pytest.mark.parametrize("refuses", [False, True])
async def test_an_address_in_use_ends_a_start_with_one_line_also_while_the_database_refuses(
    tmp_path: Path, refuses: bool
):
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        address = "{}:{}".format(*occupied.getsockname())
        database = f"mysql://correlator@127.0.0.1:{free_port()}/joblog" if refuses else f"sqlite://{tmp_path}/joblog"
        daemon = Daemon(tmp_path, http__listen=address, database__url=database, log__level="error")
        try:
            await daemon.launch()
            assert await daemon.ended() == 1
            (line,) = daemon.log().splitlines()
            why = "another process listens there: end it, or choose another port"
            assert line == f"correlator: http.listen: {address} cannot be listened on: {why}"
        finally:
            await daemon.close()


async def test_the_start_of_a_gateway_without_a_cluster_is_complete_and_says_what_it_waits_for(
    tmp_path: Path, manager: ServiceManager
):
    gateway = GatewayProcess(tmp_path / "gateway", f"nats://127.0.0.1:{free_port()}", NOTIFY_SOCKET=str(manager.path))
    try:
        await gateway.start(ready=False)
        await eventually(lambda: any(line.startswith("STATUS=NATS is unreachable: ") for line in manager.lines))
        assert manager.lines.count("READY=1") == 1
        assert (await gateway.get("/health/ready"))[0] == 503
        assert await gateway.stop() == 0
    finally:
        await gateway.close()


REVOKED, KEPT, NEW = "a-token-to-be-revoked", "a-token-that-is-kept", "a-token-that-is-new"


async def test_a_reload_changes_the_access_rules_and_a_revoked_token_alone_loses_its_connections(
    service: Service, manager: ServiceManager, appliance: Appliance, tmp_path: Path
):
    tokens, page = tmp_path / "tokens", "https://gui.example"

    async def reload(text: str) -> None:
        service.file.write_text(text)
        manager.clear()
        service.hang_up()
        await eventually(lambda: "READY=1" in manager.lines)
        assert manager.lines.index("RELOADING=1") < manager.lines.index("READY=1")

    tokens.write_text(f"{REVOKED}\n{KEPT}\n")
    service.file.write_text(f"[http]\ntokens_file = '{tokens}'\n[log]\nlevel = 'warning'\n")
    await service.start(ready=False)
    await eventually(lambda: "READY=1" in manager.lines)
    assert [await ask(service, token) for token in (REVOKED, KEPT, NEW)] == [200, 200, 401]
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        kept = await enter(service.socket({**HELLO, "token": KEPT}))
        revoked = [
            await enter(service.socket({**HELLO, "token": REVOKED})),
            await enter(service.socket(HELLO, path=f"/ws?ticket={await ticket(service, REVOKED)}")),
        ]
        kept_stream, revoked_stream = [await enter(events(service, token)) for token in (KEPT, REVOKED)]
        for reader in (kept, *revoked):
            await reader.snapshot()
        for stream in (kept_stream, revoked_stream):
            await stream.until("synced")
        unused = {token: await ticket(service, token) for token in (KEPT, REVOKED)}

        tokens.write_text(f"{KEPT}\n{NEW}\n")
        await reload("[log]\nlevle = 'debug'\n")
        assert "log.levle: unknown key; did you mean log.level?" in service.log()
        assert await service.metric_for(REVOKED, "correlator_config_last_reload_successful") == 0
        await reload(f"[http]\ntokens_file = '{tokens}'\nallowed_origins = ['{page}']\n[jobs]\nretention = '1h'\n")
        assert "applied only by a restart: jobs.retention" in service.log()
        assert [await ask(service, token, Origin=page) for token in (REVOKED, KEPT, NEW)] == [401, 200, 200]
        for reader in revoked:
            with pytest.raises(EOFError, match="4401"):
                await reader.until("nothing more")
        assert (await revoked_stream.until("bye"))[-1][1]["code"] == 4401
        with pytest.raises(EOFError):
            await revoked_stream.next()
        assert [(await service.get("/api/v1/jobs", params={"ticket": t}))[0] for t in unused.values()] == [200, 401]
        job_id = await appliance.job()
        assert (await kept.shown())["job_id"] == job_id
        assert (await kept_stream.until("put"))[-1][1]["job_id"] == job_id
        assert await service.metric_for(KEPT, 'correlator_readers_closed_total{reason="4401"}') == 3
        await reload(f"[http]\ntokens_file = '{tokens}'\n[jobs]\nstalled_after = '1s'\n")
        while not kept.jobs[job_id]["stalled"]:
            await kept.shown()
    assert not [token for token in (REVOKED, KEPT) if token in service.log()]


async def ticket(service: Service, token: str) -> str:
    assert service.session is not None
    async with service.session.post("/api/v1/ticket", headers={"Authorization": f"Bearer {token}"}) as response:
        return str((await response.json())["ticket"])


@contextlib.asynccontextmanager
async def events(service: Service, token: str) -> AsyncIterator[CheckedEventStream]:
    assert service.session is not None
    async with service.session.get("/api/v1/stream", headers={"Authorization": f"Bearer {token}"}) as response:
        yield CheckedEventStream(response, ClientFold())


async def ask(service: Service, token: str, **headers: str) -> int:
    status, _ = await service.get("/api/v1/jobs", headers={"Authorization": f"Bearer {token}", **headers})
    return status


async def test_a_certificate_that_was_renewed_is_shown_after_a_reload(
    database: Database, tmp_path: Path, manager: ServiceManager
):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    self_sign(cert, key, "first")
    service = Service(
        tmp_path, manager, f"[http]\ntls_cert = '{cert}'\ntls_key = '{key}'\n", database__url=database.url
    )
    service.url = service.url.replace("http:", "https:")
    service.session = aiohttp.ClientSession(service.url, connector=aiohttp.TCPConnector(ssl=False))
    try:
        await service.start()
        assert await shown(service) == "first"
        key.write_text("half a renewal")
        manager.clear()
        service.hang_up()
        await eventually(lambda: "READY=1" in manager.lines)
        assert await shown(service) == "first"
        self_sign(cert, key, "second")
        manager.clear()
        service.hang_up()
        await eventually(lambda: "READY=1" in manager.lines)
        assert await shown(service) == "second"
    finally:
        await service.close()


async def shown(service: Service) -> Any:
    """The common name of the listener's certificate."""
    process = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-connect", f"127.0.0.1:{service.port}",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    out, _ = await process.communicate()
    return (
        next(line for line in out.decode().splitlines() if line.startswith("subject=")).partition("CN")[2].strip(" =")
    )


HANGS = """
import ctypes, pathlib, threading, time


def hold_the_lock_of_the_interpreter():
    while not pathlib.Path({path!r}).exists():
        time.sleep(0.05)
    lock, mutex = ctypes.PyDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    lock(mutex)


threading.Thread(target=hold_the_lock_of_the_interpreter, daemon=True).start()
"""
"""What Python runs before the program: a part of it that hangs in C, once a file is there."""


async def test_a_daemon_without_a_service_manager_that_hangs_ends_and_the_log_shows_where(
    database: Database, tmp_path: Path
):
    (tmp_path / "sitecustomize.py").write_text(HANGS.format(path=str(tmp_path / "hang")))
    environ = {"PYTHONPATH": str(tmp_path), "WATCHDOG_USEC": "2000000"}
    daemon = Daemon(tmp_path, environ, database__url=database.url)
    try:
        await daemon.start()
        await asyncio.sleep(2 * 2.0)  # It beats meanwhile.
        (tmp_path / "hang").touch()
        async with asyncio.timeout(PATIENCE):
            assert await daemon.ended() == EXIT_CODE
        assert "in hold_the_lock_of_the_interpreter\n" in daemon.log()
        assert "in _drive\n" in daemon.log(), "the stack of each thread"
    finally:
        await daemon.close()
