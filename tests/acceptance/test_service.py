"""The program under a service manager: what it is told and when, a reload, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.appliance import Appliance
from tests.daemon import HELLO, Daemon
from tests.manager import Manager
from tests.servers import Database, MariaDB, eventually


class Service(Daemon):
    """The daemon with a service manager and a configuration file."""

    def __init__(self, folder: Path, manager: Manager, text: str, **settings: object) -> None:
        super().__init__(folder, **settings)
        self.file = folder / "correlator.toml"
        self.file.write_text(text)
        self._environ |= {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1000000"}
        self.arguments = ("--config", str(self.file))

    def hang_up(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    async def metric(self, name: str, token: str | None = None) -> float:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        assert self.session is not None
        async with self.session.get("/metrics", headers=headers) as response:
            lines = (await response.text()).splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@pytest.fixture
async def service(database: Database, tmp_path: Path, manager: Manager) -> AsyncIterator[Service]:
    service = Service(tmp_path, manager, "[log]\nlevel = 'info'\n", database__url=database.url)
    try:
        yield service
    finally:
        await service.close()


async def test_ready_comes_when_all_is_loaded_and_then_signs_of_life_until_it_stops(service: Service, manager: Manager):
    await service.start()
    await eventually(lambda: "READY=1" in manager.told)
    manager.forget()
    await eventually(lambda: manager.told.count("WATCHDOG=1") >= 3)
    assert await service.stop() == 0
    assert [line for line in manager.told if "=1" not in line or "STOPPING" in line] == [
        "STOPPING=1",
        "STATUS=stopping",
    ]
    assert manager.told.index("STOPPING=1") > manager.told.index("WATCHDOG=1")


async def test_a_start_without_a_database_goes_on_waiting_and_says_for_what(
    own_mariadb: MariaDB, tmp_path: Path, manager: Manager
):
    database = await own_mariadb.create_schema()
    own_mariadb.stop()
    service = Service(tmp_path, manager, "", database__url=database.url)
    try:
        await service.start(ready=False)
        await eventually(lambda: any(line.startswith("STATUS=waiting for the database: ") for line in manager.told))
        manager.forget()
        await eventually(lambda: "EXTEND_TIMEOUT_USEC=60000000" in manager.told)
        assert "WATCHDOG=1" in manager.told
        assert "READY=1" not in manager.told
        own_mariadb.start()
        await eventually(lambda: "READY=1" in manager.told, within=15)
        manager.forget()
        own_mariadb.stop()
        await eventually(lambda: any("the database is away" in line for line in manager.told), within=15)
        assert "WATCHDOG=1" in manager.told
        assert (await service.get("/health/live")) == (200, {"live": True})
    finally:
        await service.close()


async def test_a_reload_changes_who_may_come_in_and_disturbs_nobody(
    service: Service, manager: Manager, appliance: Appliance, tmp_path: Path
):
    tokens = tmp_path / "tokens"
    tokens.write_text("first\n")
    service.file.write_text(f"[http]\ntokens_file = '{tokens}'\n[log]\nlevel = 'warning'\n")
    await service.start(ready=False)
    await eventually(lambda: "READY=1" in manager.told)
    assert (await ask(service, "first"), await ask(service, "second")) == (200, 401)
    async with service.socket({**HELLO, "token": "first"}) as reader:
        await reader.snapshot()
        tokens.write_text("second\n")
        page = "https://gui.example"
        service.file.write_text(
            f"[http]\ntokens_file = '{tokens}'\nallowed_origins = ['{page}']\n[jobs]\nretention = '1h'\n"
        )
        manager.forget()
        service.hang_up()
        await eventually(lambda: "READY=1" in manager.told)
        assert manager.told.index("RELOADING=1") < manager.told.index("READY=1")
        assert (await ask(service, "first"), await ask(service, "second")) == (401, 200)
        assert await ask(service, "second", Origin=page) == 200
        assert await service.metric("correlator_config_last_reload_successful", "second") == 1
        assert "the configuration has been read again" in service.log()
        assert "only a restart makes it so: jobs.retention" in service.log()
        job_id = await appliance.job()
        assert (await reader.shown())["job_id"] == job_id
    assert "first" not in service.log()
    assert "second" not in service.log()


async def ask(service: Service, token: str, **headers: str) -> int:
    status, _ = await service.get("/api/v1/jobs", headers={"Authorization": f"Bearer {token}", **headers})
    return status


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[log]\nlevle = 'debug'\n", "log.levle: unknown key; did you mean log.level?"),
        ("[log\n", "not TOML"),
        ("[http]\ntokens_file = '/nope/tokens'\n", "/nope/tokens cannot be read"),
    ],
)
async def test_a_file_that_is_wrong_leaves_everything_as_it_was(
    service: Service, manager: Manager, text: str, why: str
):
    await service.start()
    await eventually(lambda: "READY=1" in manager.told)
    manager.forget()
    service.file.write_text(text)
    service.hang_up()
    await eventually(lambda: "READY=1" in manager.told)
    assert why in service.log()
    assert "the configuration stays as it was" in service.log()
    assert await service.metric("correlator_config_last_reload_successful") == 0
    service.file.write_text("[log]\nlevel = 'error'\n")
    manager.forget()
    service.hang_up()
    await eventually(lambda: "READY=1" in manager.told)
    assert await service.metric("correlator_config_last_reload_successful") == 1
    assert "has been read again" not in service.log()


async def test_a_loop_that_is_frozen_gives_no_sign_of_life(service: Service, manager: Manager):
    await service.start()
    await eventually(lambda: "WATCHDOG=1" in manager.told)
    assert service._process is not None
    os.kill(service._process.pid, signal.SIGSTOP)
    try:
        manager.forget()
        with pytest.raises(AssertionError):
            await eventually(lambda: "WATCHDOG=1" in manager.told, within=1.5)
    finally:
        os.kill(service._process.pid, signal.SIGCONT)
    await eventually(lambda: "WATCHDOG=1" in manager.told)


async def test_a_certificate_that_was_renewed_is_shown_after_a_reload(
    database: Database, tmp_path: Path, manager: Manager
):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    await signed(cert, key, "first")
    service = Service(
        tmp_path, manager, f"[http]\ntls_cert = '{cert}'\ntls_key = '{key}'\n", database__url=database.url
    )
    service.url = service.url.replace("http:", "https:")
    service.session = aiohttp.ClientSession(service.url, connector=aiohttp.TCPConnector(ssl=False))
    try:
        await service.start()
        assert await shown(service) == "first"
        key.write_text("half a renewal")
        manager.forget()
        service.hang_up()
        await eventually(lambda: "READY=1" in manager.told)
        assert await shown(service) == "first"
        await signed(cert, key, "second")
        manager.forget()
        service.hang_up()
        await eventually(lambda: "READY=1" in manager.told)
        assert await shown(service) == "second"
    finally:
        await service.close()


async def signed(cert: Path, key: Path, name: str) -> None:
    """A certificate that signs itself."""
    process = await asyncio.create_subprocess_exec(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-subj", f"/CN={name}", "-days", "1", "-keyout", str(key), "-out", str(cert),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await process.wait() == 0


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
