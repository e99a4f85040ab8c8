"""Requests while the database is unreachable: what is served, and what each client learns of the reason."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.appliance import Appliance, connected
from tests.support.daemon import HELLO, Daemon, correlator
from tests.support.eventually import eventually
from tests.support.mariadb import TABLES, Database, MariaDB


async def test_jobs_in_memory_are_listed_and_what_a_frozen_or_stopped_database_has_is_unavailable(
    own_mariadb: MariaDB, tmp_path: Path
):
    tables = await own_mariadb.create_schema()
    async with connected(tables) as connection:
        job_id = await Appliance(connection).job("gui-1")
    timeouts = {"database__connect_timeout": "30s", "database__query_timeout": "30s"}
    async with Daemon(tmp_path, database__url=tables.url, **timeouts) as daemon:
        _, whole = await daemon.get("/api/v1/jobs")
        assert [j["job_id"] for j in whole["jobs"]] == [job_id]
        assert (whole["complete"], whole["reason"]) == (True, None)
        async with daemon.socket(HELLO) as socket:
            own_mariadb.pause()
            await socket.say({"type": "get", "job_id": "nobody"})
            await socket.say({"type": "ping"})
            assert await socket.until("pong")  # it reads on meanwhile
            error = await socket.until("error")
            assert (error["code"], error["detail"]) == ("unavailable", "the database did not answer within 5 s")
            assert error["job_id"] == "nobody"
            await socket.say({"type": "ping"})
            assert await socket.until("pong")
            own_mariadb.resume()
        await asyncio.to_thread(own_mariadb.stop)

        async def degraded() -> bool:
            return bool((await daemon.get("/health/ready"))[1]["degraded"])

        await eventually(degraded)
        status, page = await daemon.get("/api/v1/jobs")
        assert (status, [j["job_id"] for j in page["jobs"]], page["complete"]) == (200, [job_id], False)
        assert page["reason"] == "the database cannot be reached: no server listens at this address"
        assert (await daemon.get("/api/v1/jobs/gui-1"))[0] == 200
        asked = await asyncio.gather(*(daemon.get(f"/api/v1/jobs/nobody-{n}") for n in range(12)))
        assert {status for status, _ in asked} == {503}
        assert {body["detail"] for _, body in asked} == {"the database cannot be reached"}
        code, out, err = await correlator(daemon, "jobs", "--url", daemon.url)
        assert (code, job_id in out) == (0, True), err
        assert "the list is incomplete: the database cannot be reached" in err
        said = (await daemon.get("/health/ready"))[1]["parts"]["database"]["error"]
        for private in ("127.0.0.1", "correlator@", "migratekit", str(own_mariadb.port)):
            assert private not in said
        assert str(own_mariadb.port) in daemon.log()


async def test_an_account_that_may_have_too_few_connections_is_named_until_it_has_enough(
    database: Database, tmp_path: Path
):
    user = "correlator_few"
    await database.run(
        f"CREATE USER {user}@'%' WITH MAX_USER_CONNECTIONS 4",
        *(f"GRANT SELECT ON `{database.name}`.{table} TO {user}@'%'" for table in TABLES),
    )
    daemon = Daemon(tmp_path, database__url=database.url.replace("correlator@", f"{user}@"))
    needed = "may have 4 connections to the database at once (max_user_connections), and the correlator needs 9"

    async def error() -> str:
        return str((await daemon.get("/health/ready"))[1]["parts"]["database"]["error"])

    async def is_said() -> bool:
        return needed in await error()

    async def is_well() -> bool:
        return not (await daemon.get("/health/ready"))[1]["degraded"]

    try:
        await daemon.launch()
        await eventually(is_said)
        assert daemon.log().count(needed) == 1
        assert "unreachable" not in daemon.log()
        await database.run(f"ALTER USER {user}@'%' WITH MAX_USER_CONNECTIONS 24")
        await eventually(is_well)
        assert "the account may have enough connections" in daemon.log()
    finally:
        await daemon.close()
        await database.run(f"DROP USER {user}@'%'")
