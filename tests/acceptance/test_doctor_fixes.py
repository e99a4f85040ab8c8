"""The doctor at an installed service whose files have changed: its fixes, pasted into a shell, put it right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from correlator.doctor import service
from correlator.doctor.examination import examine
from correlator.doctor.report import Check
from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import TABLES, MariaDB
from tests.support.package_files import place
from tests.support.root_shell import paste

OLD, NEW = "the old one", r"it's \new"


@pytest.fixture(scope="module")
def named() -> Iterator[MariaDB]:
    """A server that makes host names of addresses, as Debian's does: 127.0.0.1 becomes localhost."""
    with MariaDB("--skip-name-resolve=0") as server:
        yield server


@pytest.fixture
async def etc(named: MariaDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """/etc/correlator of a service whose account and password are those of README."""
    database = await named.create_schema("migratekit_oma")
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "db-password").write_text(OLD + "\n")
    (etc / "db-password").chmod(0o600)
    (etc / "correlator.toml").write_text(f'[database]\nurl = "{database.url}"\n[http]\nlisten = "127.0.0.1:0"\n')
    place(monkeypatch, etc)
    statements = ["DROP USER correlator@'%'", f"CREATE USER correlator@'127.0.0.1' IDENTIFIED BY '{OLD}'"]
    statements += [f"GRANT SELECT ON migratekit_oma.{table} TO correlator@'127.0.0.1'" for table in TABLES]
    await named.run(*statements)
    yield etc
    accounts = await named.run("SELECT CONCAT(user, '@\\'', host, '\\'') FROM mysql.user WHERE user = 'correlator'")
    drop = (f"DROP USER {account}" for (account,) in accounts)
    await named.run(*drop, "DROP DATABASE migratekit_oma", "CREATE USER correlator@'%'")


async def checks_of() -> dict[str, Check]:
    async with asyncio.timeout(PATIENCE):
        examined = await examine(service.load(None, {"HOME": "/root"}))
    return {check.name: check for check in examined.report.checks}


async def test_the_password_that_a_file_holds_now_is_tried_while_the_service_runs_with_another(
    named: MariaDB, etc: Path, tmp_path: Path
):
    assert (await checks_of())["database.login"].status == "ok"
    daemon = Daemon(tmp_path, database__url=f"mysql://correlator@127.0.0.1:{named.port}/migratekit_oma",
                    database__password=OLD)  # fmt: skip
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "db-password").write_text(OLD + "\n")
    try:
        await daemon.start()
        (etc / "db-password").write_text(NEW + "\n")
        refused = (await checks_of())["database.login"]
        assert (refused.status, "(1045)" in refused.summary) == ("failure", True)
        assert any("until it is restarted" in line for line in refused.detail)
        assert any(str(etc / "db-password") in line for line in refused.detail)
        assert await paste(tmp_path, refused.fix, mariadb=named) == "restart correlator\n"
        after = await checks_of()
        assert after["database.login"].status == "ok", after["database.login"]
        assert after["database.rights"].status == "ok", after["database.rights"]
        assert after["secrets"].status == "warning"  # the service still has the old one
        await eventually(lambda: daemon.get("/health/ready"))
    finally:
        await daemon.close()


@pytest.mark.parametrize("before", ["no account and no password file", "an account of the host's name"])
async def test_a_refused_login_is_fixed_for_the_account_of_the_documents(
    named: MariaDB, etc: Path, tmp_path: Path, before: str
):
    if before.startswith("no"):
        await named.run("DROP USER correlator@'127.0.0.1'")
        (etc / "db-password").unlink()
    else:
        await named.run("CREATE USER correlator@localhost IDENTIFIED BY 'forgotten'")
    refused = (await checks_of())["database.login"]
    assert "'correlator'@'localhost'" in refused.summary
    await paste(tmp_path, refused.fix, mariadb=named)
    login = (await checks_of())["database.login"]
    if "(1044)" in login.summary:  # that of the name has no rights: the next run names them, and how to grant them
        await paste(tmp_path, login.fix, mariadb=named)
        login = (await checks_of())["database.login"]
    assert login.status == "ok", login
    assert (await checks_of())["secrets"].status == "ok"
    hosts = await named.run("SELECT host FROM mysql.user WHERE user = 'correlator'")
    assert ("127.0.0.1",) in hosts, "the account that README makes"


async def test_a_wrong_zone_is_put_right_in_the_file(named: MariaDB, etc: Path, tmp_path: Path):
    async with named.connect("migratekit_oma") as connection:
        appliance = Appliance(connection)
        for number in range(3):
            await appliance.step(await appliance.job(f"gui-{number}"), 1, "validation")
        await appliance.run("UPDATE job_steps SET started_at = started_at + INTERVAL 2 HOUR")
    wrong = (await checks_of())["database.timezone"]
    assert (wrong.status, "wrong by 2 h" in wrong.summary) == ("failure", True), wrong
    await paste(tmp_path, wrong.fix, mariadb=named)
    assert (await checks_of())["database.timezone"].status == "ok"
