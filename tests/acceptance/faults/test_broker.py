"""The broker breaks: each event is published at least once, and its retained states end as REST shows them."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from tests.support.eventually import eventually
from tests.support.faults.fault_run import SLOW_TRAFFIC, FaultRun, fault_run
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto


async def watched_again(run: FaultRun) -> None:
    """The client gets everything from now on, and the broker answers again."""
    await eventually(lambda: run.listener.connected)
    run.to_broker.heal()


async def test_killed(database: Database, own_mosquitto: Mosquitto, tmp_path: Path):
    async with fault_run(tmp_path, database, own_mosquitto) as run, run.fault("broker: kill -9, its store lost"):
        # What the broker has acknowledged is its own to lose: the listener gets that first.
        run.to_broker.black_hole_from(b"/event")
        await eventually(lambda: not run.to_broker.waiting)
        await run.listener.catches_up()
        await asyncio.to_thread(own_mosquitto.kill)
        run.to_broker.refuse()
        await run.degraded("mqtt")
        await eventually(lambda: not run.listener.connected)
        await run.goes_on()
        await asyncio.to_thread(own_mosquitto.start)
        await watched_again(run)


@pytest.mark.long
async def test_frozen(database: Database, own_mosquitto: Mosquitto, tmp_path: Path):
    async with (
        fault_run(tmp_path, database, own_mosquitto, traffic=SLOW_TRAFFIC) as run,
        run.fault("broker: frozen (SIGSTOP)"),
    ):
        await asyncio.to_thread(own_mosquitto.pause)
        try:
            await run.degraded("mqtt")
            await asyncio.sleep(5)
        finally:
            await asyncio.to_thread(own_mosquitto.resume)
        await watched_again(run)


@pytest.mark.long
async def test_too_slow(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    """It answers all the time, and takes less than there is."""
    async with fault_run(tmp_path, database, mosquitto, traffic=SLOW_TRAFFIC) as run:
        async with run.fault("broker: too slow"):
            run.to_broker.rate = 6_000
            await run.degraded("mqtt")
            part = (await run.health())["parts"]["mqtt"]
            assert (part["connected"], "the broker is too slow" in part["error"]) == (True, True), part
            assert run.daemon.log().count("the broker is too slow") == 1
            await watched_again(run)
        await eventually(lambda: "keeps up again" in run.daemon.log())


@pytest.mark.long
async def test_cut_and_reset(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with (
        fault_run(tmp_path, database, mosquitto, traffic=SLOW_TRAFFIC) as run,
        run.fault("broker: 4 connections cut in a packet, 4 reset"),
    ):
        for after in (1, 2, 3, 50):
            await run.arrives()
            run.to_broker.cut(after)
            await eventually(lambda: not run.to_broker.cutting)
            await run.arrives()
            run.to_broker.reset()
        await watched_again(run)


@pytest.mark.long
async def test_login_refused(database: Database, tmp_path: Path):
    users = {"correlator": "right"}
    with Mosquitto(users=users) as broker:
        login: dict[str, Any] = {"mqtt__username": "correlator", "mqtt__password": "right"}
        async with (
            fault_run(tmp_path, database, broker, login=("correlator", "right"), **login, traffic=SLOW_TRAFFIC) as run,
            run.fault("broker: login refused"),
        ):
            run.to_broker.refuse()
            await asyncio.to_thread(broker.stop)
            broker.users = {"correlator": "another"}
            await asyncio.to_thread(broker.start)
            run.to_broker.heal()
            await run.degraded("mqtt")
            await eventually(lambda: "ot authori" in run.daemon.log())
            await run.goes_on()
            run.to_broker.refuse()
            await asyncio.to_thread(broker.stop)
            broker.users = users
            await asyncio.to_thread(broker.start)
            await watched_again(run)


@pytest.mark.long
async def test_another_client_with_the_same_client_id(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with fault_run(tmp_path, database, mosquitto, traffic=SLOW_TRAFFIC) as run:
        name = f"correlator-{run.listener.instance}"
        async with run.fault("broker: session taken over by the same client id, 5 times"):
            for _ in range(5):
                await run.arrives()
                async with aiomqtt.Client("127.0.0.1", mosquitto.port, identifier=name, timeout=5) as rival:
                    with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
                        async with asyncio.timeout(5):  # until it is taken back
                            async for _ in rival.messages:
                                pass
            await watched_again(run)
