"""A right that is taken away while the daemon runs is said, and put right by the fix that the doctor shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from correlator.config.loading import load
from correlator.doctor.examination import examine
from correlator.doctor.service import Setting
from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import TABLES, Database
from tests.support.root_shell import paste

USER = "correlator_revoked"


async def test_a_revoked_select_degrades_readiness_until_the_fix_of_the_doctor_is_pasted(
    database: Database, appliance: Appliance, tmp_path: Path
):
    job_id = await appliance.job("gui-1")
    await appliance.step(job_id, 1, "validation")
    await database.run(
        f"CREATE USER {USER}@'%'",
        *(f"GRANT SELECT ON `{database.name}`.{table} TO {USER}@'%'" for table in TABLES),
    )
    daemon = Daemon(tmp_path, database__url=database.url.replace("correlator@", f"{USER}@"))

    async def tables() -> tuple[bool, dict[str, object]]:
        _, body = await daemon.get("/health/ready")
        return body["degraded"], body["parts"]["tables"]

    async def well() -> bool:
        return not (await tables())[0]

    try:
        await daemon.start()
        await eventually(lambda: daemon.job("gui-1"))
        assert await tables() == (False, {"ok": True, "missing": [], "error": None, "states": {}})
        await database.run(f"REVOKE SELECT ON `{database.name}`.job_steps FROM {USER}@'%'")
        await eventually(lambda: lost(daemon, ["job_steps"]))
        degraded, part = await tables()
        assert degraded
        assert str(part["error"]).startswith("job_steps cannot be read: gone, or SELECT is not granted")
        assert "correlator_missing_tables 1.0" in await daemon.text("/metrics")
        assert (await daemon.job("gui-1"))["job_id"] == job_id  # what is known is still served

        examined = await examine(Setting(load(None, daemon._environ), None, daemon._environ))
        checks = {check.name: check for check in examined.report.checks}
        assert "job_steps cannot be read" in checks["daemon"].summary
        assert (checks["database.rights"].status, "job_steps" in checks["database.rights"].summary) == ("failure", True)
        await paste(tmp_path, checks["database.rights"].fix, mariadb=database.server)
        await daemon.stop()
        await daemon.start()  # or within a minute, when it checks the schema again
        await eventually(lambda: lost(daemon, []))
        await eventually(well)
    finally:
        await daemon.close()
        await database.run(f"DROP USER {USER}@'%'")


async def lost(daemon: Daemon, names: list[str]) -> bool:
    return bool(json.loads(await daemon.text("/health/ready"))["parts"]["tables"]["missing"] == names)


@pytest.mark.parametrize("allowed", [4, 6])
async def test_an_account_that_may_have_too_few_connections_is_named_until_it_has_enough(
    database: Database, tmp_path: Path, allowed: int
):
    user = f"correlator_few_{allowed}"
    await database.run(
        f"CREATE USER {user}@'%' WITH MAX_USER_CONNECTIONS {allowed}",
        *(f"GRANT SELECT ON `{database.name}`.{table} TO {user}@'%'" for table in TABLES),
    )
    daemon = Daemon(tmp_path, database__url=database.url.replace("correlator@", f"{user}@"))
    needed = (
        f"may have {allowed} connections to the database at once (max_user_connections), and the correlator needs 9"
    )

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
