"""The broker breaks: each event is told at least once, and its retained states end as REST shows them."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from tests.acceptance.faults.stage import LEISURELY, Stage, for_a_while, staged
from tests.servers import Database, Mosquitto, eventually


async def back(stage: Stage) -> float:
    """The broker answers again: who listens to it hears of all that the daemon says from now on. The recovery."""
    await eventually(lambda: stage.listener.connected, within=20)
    stage.to_broker.heal()
    return await stage.recovered()


async def test_killed(database: Database, own_mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, own_mosquitto) as stage:
        async with stage.traffic.running():
            await stage.arrives()
            await asyncio.to_thread(own_mosquitto.kill)
            await stage.degraded("mqtt")
            await eventually(lambda: not stage.listener.connected)
            await stage.goes_on()
            stage.to_broker.refuse()
            await asyncio.to_thread(own_mosquitto.start)
            recovery = await back(stage)
        await stage.verdict("broker: kill -9, its store lost", recovery)


@pytest.mark.long
async def test_frozen(database: Database, own_mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, own_mosquitto, traffic=LEISURELY) as stage:
        async with stage.traffic.running():
            await stage.arrives()
            await asyncio.to_thread(own_mosquitto.pause)
            try:
                await stage.degraded("mqtt")
                await for_a_while(5)
            finally:
                await asyncio.to_thread(own_mosquitto.resume)
            recovery = await back(stage)
        await stage.verdict("broker: frozen (SIGSTOP)", recovery)


@pytest.mark.long
async def test_black_hole(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, mosquitto, traffic=LEISURELY) as stage:
        async with stage.traffic.running():
            await stage.arrives()
            stage.to_broker.black_hole()
            await stage.degraded("mqtt")
            await stage.goes_on()
            recovery = await back(stage)
        await stage.verdict("broker: black hole", recovery)


@pytest.mark.long
async def test_cut_and_reset(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, mosquitto, traffic=LEISURELY) as stage:
        async with stage.traffic.running():
            for after in (1, 2, 3, 50):
                await stage.arrives()
                stage.to_broker.cut(after)
                await eventually(lambda: not stage.to_broker.cutting, within=20)
                await stage.arrives()
                stage.to_broker.reset()
            recovery = await back(stage)
        await stage.verdict("broker: 4 connections cut in a packet, 4 reset", recovery)


@pytest.mark.long
async def test_slow(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, mosquitto) as stage:
        async with stage.traffic.running():
            await stage.arrives()
            stage.to_broker.delay, stage.to_broker.rate = 0.3, 50_000.0
            await stage.arrives(400, within=60)
            recovery = await back(stage)
        await stage.verdict("broker: slow (300 ms each way, 50 kB/s)", recovery)


@pytest.mark.long
async def test_login_refused(database: Database, tmp_path: Path):
    users = {"correlator": "right"}
    with Mosquitto(users=users) as broker:
        login: dict[str, Any] = {"mqtt__username": "correlator", "mqtt__password": "right"}
        async with staged(
            tmp_path, database, broker, login=("correlator", "right"), **login, traffic=LEISURELY
        ) as stage:
            async with stage.traffic.running():
                await stage.arrives()
                stage.to_broker.refuse()
                await asyncio.to_thread(broker.stop)
                broker.users = {"correlator": "another"}
                await asyncio.to_thread(broker.start)
                stage.to_broker.heal()
                await stage.degraded("mqtt")
                await eventually(lambda: "ot authori" in stage.daemon.log(), within=20)
                await stage.goes_on()
                stage.to_broker.refuse()
                await asyncio.to_thread(broker.stop)
                broker.users = users
                await asyncio.to_thread(broker.start)
                recovery = await back(stage)
            await stage.verdict("broker: login refused", recovery)


@pytest.mark.long
async def test_session_taken_over(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, mosquitto, traffic=LEISURELY) as stage:
        name = f"correlator-{stage.listener.instance}"
        async with stage.traffic.running():
            for _ in range(5):
                await stage.arrives()
                async with aiomqtt.Client("127.0.0.1", mosquitto.port, identifier=name, timeout=5) as rival:
                    with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
                        async with asyncio.timeout(5):  # until it is taken back
                            async for _ in rival.messages:
                                pass
            recovery = await back(stage)
        await stage.verdict("broker: session taken over by the same client id, 5 times", recovery)
