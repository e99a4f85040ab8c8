"""A broker that means harm: whatever it sends delays neither rows nor probes, and takes a bounded part of the memory.

As root the daemon runs in a memory group with the limit of its unit, beyond which the kernel kills it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import pytest
import pytest_asyncio

from tests.support.confined import LimitedGroup, memory_limit
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.hostile_broker import ROOT, attacks
from tests.support.mariadb import Database, MariaDB
from tests.support.mosquitto import Mosquitto
from tests.support.servers import free_port
from tests.support.storms import ON_ONE_DAEMON, VERDICTS, Storms, storms
from tests.support.yardstick import megabytes

BROKER = "tests.support.hostile_broker:broker"

LIMIT = 2 << 30
"""Bytes: `MemoryMax=` of deploy/correlator.service."""

MOST = 64
"""MB by which the memory of the daemon may grow, over all attacks."""

CONNECTED_WITHIN = 6.0
"""Seconds within which the daemon tries to connect again."""

LINES = 60
"""Lines that the daemon may log during an attack."""


@pytest.fixture(scope="session")
def group() -> Iterator[LimitedGroup | None]:
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(memory_limit(LIMIT)) if os.getuid() == 0 else None


@dataclass(frozen=True, slots=True)
class Attacked:
    """A daemon that meets one broker after the other at `port`. `before`: MB of its memory before the first."""

    storms: Storms
    port: int
    before: float
    group: LimitedGroup | None

    async def outlives(self, attack: str, level: int, seconds: float) -> None:
        lines = len(self.daemon.log().splitlines())
        counts = await self.storms.verdict(
            f"a broker: {attack}, MQTT {level}",
            BROKER,
            seconds=seconds,
            settle=CONNECTED_WITHIN,
            check=connected,
            port=self.port,
            attack=attack,
            level=level,
        )
        peak = megabytes(self.daemon.pid, "VmHWM")
        VERDICTS.add(f"a broker: {attack}, MQTT {level}", f"{counts}, {self.before:.0f} MB before, {peak:.0f} at most")
        assert peak < self.before + MOST
        assert len(self.daemon.log().splitlines()) < lines + LINES, self.daemon.log()[-4000:]
        assert self.group is None or self.group.kills == 0
        assert "Traceback" not in self.daemon.log()

    @property
    def daemon(self) -> Daemon:
        return self.storms.daemon


def connected(counts: dict[str, int]) -> None:
    assert counts["connections"] > 0


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def attacked(
    mariadb: MariaDB, tmp_path_factory: pytest.TempPathFactory, group: LimitedGroup | None
) -> AsyncIterator[Attacked]:
    database = await mariadb.create_schema("brokers")
    port, folder = free_port(), tmp_path_factory.mktemp("brokers")
    async with storms(folder, database, jobs=600, mqtt__url=f"mqtt://127.0.0.1:{port}") as run:
        if group is not None:
            group.add(run.daemon.pid)
        await run.measure(1.0)
        yield Attacked(run, port, run.daemon.memory(), group)
    await database.drop()


@ON_ONE_DAEMON
async def test_a_hostile_broker_delays_nobody_and_takes_little_memory(attacked: Attacked):
    """The short form, with the dearest of all attacks."""
    await attacked.outlives("user properties", 5, seconds=2.0)


@pytest.mark.long
@ON_ONE_DAEMON
@pytest.mark.parametrize(("level", "attack"), [(level, attack) for level in (4, 5) for attack in attacks(level)])
async def test_no_packet_of_a_broker_costs_much_time_or_memory(attacked: Attacked, level: int, attack: str):
    await attacked.outlives(attack, level, seconds=15.0)


@pytest.mark.parametrize("size", [1_000_000, pytest.param(15_000_000, marks=pytest.mark.long)])
async def test_large_retained_messages_of_others_are_removed_and_none_is_stored(
    own_mosquitto: Mosquitto, database: Database, tmp_path: Path, group: LimitedGroup | None, size: int
):
    async def publish(topic: str) -> None:
        await client.publish(topic, b'{"blob":"' + b"x" * size + b'"}', qos=1, retain=True)

    left: dict[str, bytes] = {}

    async def none_is_left() -> bool:
        await watcher.publish(f"{ROOT}/ext/last", b"", qos=0)
        async for message in watcher.messages:
            left[str(message.topic)] = bytes(message.payload or b"")[:1]
            if str(message.topic).endswith("/last"):
                break
        return not any(left.values())

    host, port = "127.0.0.1", own_mosquitto.port
    async with aiomqtt.Client(host, port) as client:
        for n in range(60):
            await publish(f"{ROOT}/job/{n}/state")
            await publish(f"{ROOT}/vm/{n}")
        async with Daemon(tmp_path, database__url=database.url) as daemon:
            before = daemon.memory()
        async with Daemon(tmp_path, database__url=database.url, mqtt__url=own_mosquitto.url) as daemon:
            if group is not None:
                group.add(daemon.pid)
            async with aiomqtt.Client(host, port) as watcher:
                for kind in ("job/+/state", "vm/+", "ext/+"):
                    await watcher.subscribe(f"{ROOT}/{kind}")
                await eventually(none_is_left)
            assert megabytes(daemon.pid, "VmHWM") < before + MOST
            assert (await daemon.get("/health/ready"))[1]["parts"]["mqtt"]["ok"]
