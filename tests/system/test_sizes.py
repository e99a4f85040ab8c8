"""The sizes that an appliance may reach, in full, on the installed program: `make test-sizes`.

A whole system is booted with the package, and its systemd holds the unit's watchdog and restarts over it. The memory
limit of the unit is held by the kernel: by systemd where it has a memory controller, else by a group of this host.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

import aiohttp
import aiomysql
import pytest
import pytest_asyncio

from tests.support.confined import LimitedGroup, memory_limit
from tests.support.eventually import eventually
from tests.support.sizes import FULL, HEADER, SCENARIOS, STALL, Figures, Rig
from tests.support.system.installations import Installations
from tests.support.system.nspawn import Machine
from tests.support.system.service import AUTHORISED, SECRETS, Service, prepare

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.sizes]

_SIZES = "[mariadb]\nmax_allowed_packet=64M\ninnodb_buffer_pool_size=512M\ninnodb_log_file_size=512M\n"


class Booted(Rig):
    """The unit of a booted system."""

    scale = FULL
    token: ClassVar[Mapping[str, str]] = {"token": SECRETS["api-token"]}

    def __init__(self, service: Service, connection: Any, group: LimitedGroup) -> None:
        self.daemon = service
        self.connection = connection
        self._service = service
        self._group = group
        self._restarts = 0

    @property
    def pid(self) -> int:
        return self._service.machine.outside(self._service.pid)

    async def start(self) -> float:
        began = time.monotonic()
        await asyncio.to_thread(self._service.machine.run, "systemctl start --no-block correlator")
        await eventually(lambda: self._service.pid)
        self._group.add(self.pid)
        await self._service.active(within=180)
        seconds = time.monotonic() - began
        self._restarts = self._service.restarts
        return seconds

    async def stop(self, *, forget: bool = False) -> None:
        await asyncio.to_thread(self._service.systemctl, "stop")
        if forget:
            self._service.machine.run("rm -rf /var/lib/private/correlator/*")

    async def check(self) -> None:
        assert self._service.restarts == self._restarts, self._service.machine.run("journalctl -n 40 --no-pager")
        assert self._service.show("ActiveState") == "active"
        assert self._group.kills == 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(installations: Installations, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Booted]:
    folder = tmp_path_factory.mktemp("sizes")
    root = installations.of("trixie").root.copy(folder)
    prepare(root, folder)
    root.put("/etc/mysql/mariadb.conf.d/99-sizes.cnf", _SIZES.encode())
    with Machine(root, folder / "console") as machine, machine.network(), contextlib.ExitStack() as stack:
        machine.run("mariadb -e 'CREATE DATABASE migratekit_oma CHARACTER SET utf8mb4'")
        machine.run("mariadb migratekit_oma </root/appliance.sql && mariadb </root/grants.sql")
        machine.run("mariadb -e \"CREATE USER appliance@'%'; GRANT ALL ON migratekit_oma.* TO appliance@'%'\"")
        service = Service(machine, folder)
        group = stack.enter_context(memory_limit(_bytes(service.show("MemoryMax"))))
        timeout = aiohttp.ClientTimeout(total=60)
        async with (
            aiohttp.ClientSession(service.url, headers=AUTHORISED, timeout=timeout) as service.session,
            aiomysql.connect(
                host="127.0.0.1",
                user="appliance",
                db="migratekit_oma",
                autocommit=True,
                init_command="SET time_zone = '+00:00'",
            ) as connection,
        ):
            yield Booted(service, connection, group)


def _bytes(shown: str) -> int:
    """`MemoryMax=` as systemctl shows it."""
    assert re.fullmatch(r"\d+", shown), f"the unit has no memory limit: {shown}"
    return int(shown)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> list[Figures]:
    """What has been measured; the last test prints it."""
    return []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
async def test_no_call_of_the_loop_is_long_whatever_the_sizes(
    scenario: Any, rig: Booted, request: pytest.FixtureRequest, table: list[Figures]
):
    measured = await scenario(rig)
    writer = request.config.get_terminal_writer()
    if not table:
        writer.line(f"\n{HEADER}")
    table += measured
    for figures in measured:
        writer.line(figures.line())
    too_long = [figures.line() for figures in measured if figures.longest_call > STALL]
    assert not too_long
    assert not [exceeded for figures in measured for exceeded in figures.exceeded]
