"""A database or a broker that dies is a state: the daemon stays up, says so, serves what it knows, and recovers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiomqtt
import pytest

from tests.support.appliance import Appliance, connected
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import PATIENCE, eventually


async def health(daemon: Daemon) -> tuple[int, bool, dict[str, Any]]:
    status, body = await daemon.get("/health/ready")
    return status, body["degraded"], body["parts"]


async def test_a_killed_database_leaves_what_is_known_served_and_is_followed_again(own_mariadb, tmp_path):
    database = await own_mariadb.create_schema()
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        async with connected(database) as connection:
            job_id = await Appliance(connection).job("gui-1")
        assert (await daemon.get("/api/v1/jobs/gui-1?wait=5"))[0] == 200
        async with daemon.socket(HELLO) as socket:
            await socket.snapshot()
            assert (await socket.until("status"))["source"] == "live"
            await asyncio.to_thread(own_mariadb.kill)

            async def says_so() -> bool:
                status, degraded, parts = await health(daemon)
                return status == 200 and degraded and parts["database"]["state"] != "live"

            await eventually(says_so)
            said = await socket.until("status")
            assert said["source"] in ("stale", "down")
            assert said["error"] in ("the database cannot be reached", "the database does not answer")
            assert (await daemon.job("gui-1"))["status"] == "running"
            status, problem = await daemon.get("/api/v1/jobs/somebody-else")
            assert (status, problem["title"]) == (503, "Service Unavailable")
            await asyncio.to_thread(own_mariadb.start)
            async with connected(database) as connection:
                appliance = Appliance(connection)
                await appliance.end(job_id)
                await appliance.log("Job completed", attrs={"job_id": job_id, "status": "completed"}, job_id=job_id)
            while not (put := await socket.shown())["job"]["terminal"]:
                pass
            assert put["job"]["status"] == "completed"
        assert not (await health(daemon))[1]
        assert await daemon.stop() == 0
    finally:
        await daemon.close()


async def test_a_frozen_database_is_noticed_and_followed_again(own_mariadb, tmp_path):
    database = await own_mariadb.create_schema()
    daemon = Daemon(tmp_path, database__url=database.url, database__query_timeout="2s", database__connect_timeout="2s")
    try:
        await daemon.start()
        await asyncio.to_thread(own_mariadb.pause)
        try:
            await eventually(lambda: _degraded(daemon))
            assert (await daemon.get("/api/v1/jobs"))[0] in (200, 503)
        finally:
            await asyncio.to_thread(own_mariadb.resume)
        async with connected(database) as connection:
            await Appliance(connection).job("gui-2")
        assert (await daemon.get("/api/v1/jobs/gui-2?wait=20"))[0] == 200
        await eventually(lambda: _well(daemon))
    finally:
        await daemon.close()


async def test_a_start_without_a_database_waits_for_it(own_mariadb, tmp_path):
    database = await own_mariadb.create_schema()
    await asyncio.to_thread(own_mariadb.stop)
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start(ready=False)
        status, degraded, parts = await health(daemon)
        assert (status, degraded, parts["database"]["state"]) == (503, True, "down")
        await asyncio.to_thread(own_mariadb.start)
        await eventually(lambda: _well(daemon))
    finally:
        await daemon.close()


async def test_a_killed_broker_gets_everything_again(database, appliance, own_mosquitto, tmp_path):
    daemon = Daemon(tmp_path, database__url=database.url, mqtt__url=own_mosquitto.url)
    try:
        await daemon.start()
        job_id = await appliance.job("gui-3")
        assert (await daemon.get("/api/v1/jobs/gui-3?wait=5"))[0] == 200
        await asyncio.to_thread(own_mosquitto.kill)
        await eventually(lambda: _degraded(daemon))
        await appliance.log("while it was away", attrs={"job_id": job_id})
        await asyncio.to_thread(own_mosquitto.start)
        async with aiomqtt.Client("127.0.0.1", own_mosquitto.port) as client:
            await client.subscribe(f"correlator/v1/test/job/{job_id}/state", qos=1)
            async with asyncio.timeout(PATIENCE):
                async for message in client.messages:
                    if (json.loads(message.payload)["last_message"] or {}).get("text") == "while it was away":
                        break
        await eventually(lambda: _well(daemon))
        assert await daemon.stop() == 0
    finally:
        await daemon.close()


async def test_sigterm_closes_connections_and_publishes_offline(database, own_mosquitto, tmp_path):
    daemon = Daemon(tmp_path, database__url=database.url, mqtt__url=own_mosquitto.url)
    try:
        await daemon.start()
        await eventually(lambda: _well(daemon))
        async with daemon.socket(HELLO) as socket, aiomqtt.Client("127.0.0.1", own_mosquitto.port) as client:
            await socket.snapshot()
            assert await daemon.stop() == 0
            bye = await socket.until("bye")
            assert (bye["code"], bye["retry_ms"]) == (1012, [0, 5000])
            with pytest.raises(EOFError, match="1012"):
                await socket.next()
            await client.subscribe("correlator/v1/test/status", qos=1)
            message = await anext(client.messages)
            assert json.loads(message.payload)["state"] == "offline"
    finally:
        await daemon.close()


async def _degraded(daemon: Daemon) -> bool:
    return (await health(daemon))[1]


async def _well(daemon: Daemon) -> bool:
    status, degraded, _ = await health(daemon)
    return status == 200 and not degraded
