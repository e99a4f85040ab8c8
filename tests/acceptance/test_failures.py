"""Why jobs failed: rows written to MariaDB, documents read from the API, the same after each kind of start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.appliance import Appliance
from tests.support.bulk_rows import ago
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database

FULL = "backup of {} failed: no space left on device"
SEEN = {
    "old": (30, FULL),
    "first-today": (3, FULL),
    "alone": (2, "login of {} was refused: error 1045"),
    "without": (1, None),
}
"""By VM: hours since the job failed, and its error. The first has left memory when the daemon starts."""

EXPECTED = {
    "old": ("backup", "stated", "no space left on device", "new"),
    "first-today": ("backup", "stated", "no space left on device", "known"),
    "alone": ("backup", "stated", "login of alone was refused: error 1045", "new"),
    "without": (None, "none", "", "unknown"),
}


async def failed_job(appliance: Appliance, vm: str, hours: float, error: str | None) -> str:
    ended = ago(hours=hours)
    times = dict.fromkeys(("started_at", "created_at", "updated_at", "completed_at"), ended)
    text = None if error is None else error.format(vm)
    metadata = f'{{"vm_name":"{vm}"}}'
    job_id = await appliance.job(status="failed", error_message=text, metadata=metadata, **times)
    step = await appliance.step(job_id, 1, "backup", "failed" if text else "completed")
    await appliance.run("UPDATE job_steps SET error_message = %s WHERE id = %s", text, step)
    return job_id


async def failure(daemon: Daemon, job_id: str) -> Any:
    _, document = await daemon.get(f"/api/v1/jobs/{job_id}")
    return document["failure"]


async def failures(daemon: Daemon, jobs: dict[str, str]) -> dict[str, Any]:
    """The failure of each VM's job."""
    return {vm: await failure(daemon, job_id) for vm, job_id in jobs.items()}


def brief(found: dict[str, Any]) -> dict[str, Any]:
    return {vm: tuple(one[name] for name in ("step", "certainty", "text", "state")) for vm, one in found.items()}


async def test_a_failed_job_says_why_and_whether_that_is_new_after_each_start(
    tmp_path: Path, database: Database, appliance: Appliance
):
    jobs = {vm: await failed_job(appliance, vm, *seen) for vm, seen in SEEN.items()}
    runs = await appliance.job()
    daemon = Daemon(tmp_path, database__url=database.url)
    async with daemon:

        async def decided() -> bool:
            return brief(await failures(daemon, jobs)) == EXPECTED

        await eventually(decided)
        at_first = await failures(daemon, jobs)
        assert at_first["old"]["fingerprint"] == at_first["first-today"]["fingerprint"]
        assert at_first["without"]["fingerprint"] is None
        assert await failure(daemon, runs) is None
        await daemon.saved()
        await daemon.kill()
        await daemon.start()
        await eventually(decided)
        assert await failures(daemon, jobs) == at_first

        await appliance.end(runs, "failed", "login of somebody was refused: error 1045")

        async def ended() -> bool:
            return await failure(daemon, runs) is not None

        await eventually(ended)
        at_first["runs"] = await failure(daemon, runs)
        assert (at_first["runs"]["certainty"], at_first["runs"]["state"]) == ("apart", "new")
    (tmp_path / "new").mkdir()
    async with Daemon(tmp_path / "new", database__url=database.url) as rebuilt:

        async def rebuilt_alike() -> bool:
            return await failures(rebuilt, {**jobs, "runs": runs}) == at_first

        await eventually(rebuilt_alike)
