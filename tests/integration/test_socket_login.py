"""Root's commands at a MariaDB that logs in the user of this host over its socket (`unix_socket`)."""

from __future__ import annotations

import json
import os
import pwd
import tempfile
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, correlator
from tests.support.eventually import eventually
from tests.support.mariadb import TABLES, Database, MariaDB
from tests.support.root_shell import paste

ACCOUNT = "daemon"
"""A user of every system, in place of the service's."""

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="root becomes another user")


@pytest.fixture
async def appliance(own_mariadb: MariaDB) -> Database:
    """With an account that has no password, and that its user alone may use."""
    database = await own_mariadb.create_schema()
    account = f"'{ACCOUNT}'@'localhost'"
    await own_mariadb.run(
        f"CREATE USER {account} IDENTIFIED VIA unix_socket WITH MAX_USER_CONNECTIONS 24",
        *(f"GRANT SELECT ON {database.name}.{table} TO {account}" for table in TABLES),
    )
    for folder in (
        own_mariadb.folder,
        *own_mariadb.folder.parents,
    ):  # as /run/mysqld, where every user finds the socket
        if folder.is_relative_to(tempfile.gettempdir()) and not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)
    return database


def configured(database: Database, folder: Path, user: str = ACCOUNT) -> Daemon:
    url = f"mysql://{user}@localhost/{database.name}"
    return Daemon(folder, database__url=url, database__unix_socket=database.server.socket)


async def test_the_doctor_of_root_logs_in_as_the_user_of_the_service(appliance: Database, tmp_path: Path) -> None:
    _, report, errors = await correlator(configured(appliance, tmp_path), "doctor", "-o", "json")
    checks = {check["name"]: check for check in json.loads(report)["checks"]}
    assert checks["database.login"]["status"] == "ok", (checks["database.login"], errors)
    assert f"{ACCOUNT}@localhost" in checks["database.login"]["summary"]
    assert checks["database.rights"]["status"] == "ok", checks["database.rights"]
    assert "state.directory" in str(checks), "what follows is done as root again"


async def test_tap_of_root_logs_in_as_the_user_of_the_service(appliance: Database, tmp_path: Path) -> None:
    tap = configured(appliance, tmp_path)
    tap.command, tap.arguments = "tap", ("-o", "json")
    try:
        await tap.launch()

        async def shown() -> bool:
            await appliance.run("INSERT INTO log_events (level, message, ts) VALUES ('INFO', 'a row', NOW(6))")
            return '"a row"' in tap.log()

        await eventually(shown)
        assert Path(f"/proc/{tap.pid}").stat().st_uid == pwd.getpwnam(ACCOUNT).pw_uid  # noqa: ASYNC240
    finally:
        await tap.close()


async def test_an_account_without_its_user_has_a_fix_for_both(appliance: Database, tmp_path: Path) -> None:
    _, report, _ = await correlator(configured(appliance, tmp_path, "nobody_here"), "doctor", "-o", "json")
    (check,) = (check for check in json.loads(report)["checks"] if check["name"] == "database.login")
    assert (check["status"], "no user nobody_here" in str(check["detail"])) == ("failure", True), check
    assert check["fix"][0] == "useradd --system --no-create-home --shell /usr/sbin/nologin nobody_here"
    assert "IDENTIFIED VIA unix_socket" in check["fix"][1]


async def test_the_fix_of_a_missing_account_lets_the_doctor_log_in(appliance: Database, tmp_path: Path) -> None:
    doctor = configured(appliance, tmp_path)
    await appliance.server.run(f"DROP USER '{ACCOUNT}'@'localhost'")
    _, report, _ = await correlator(doctor, "doctor", "-o", "json")
    (check,) = (check for check in json.loads(report)["checks"] if check["name"] == "database.login")
    await paste(tmp_path, check["fix"], mariadb=appliance.server)
    _, report, _ = await correlator(doctor, "doctor", "-o", "json")
    found = {check["name"]: check["status"] for check in json.loads(report)["checks"]}
    assert (found["database.login"], found["database.rights"]) == ("ok", "ok"), report
