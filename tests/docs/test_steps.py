"""The steps of README and install.md that change a host, pasted at a made-up one, leave what the daemon needs."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest

from correlator.config import loading
from correlator.model import job_token
from tests.support.daemon import Daemon
from tests.support.mariadb import MariaDB
from tests.support.markdown import blocks
from tests.support.package_files import place
from tests.support.paths import REPOSITORY
from tests.support.root_shell import paste


def steps(document: str, *words: str) -> list[str]:
    """The blocks of shell of a document that hold one of `words`, without what apt and the service do."""
    shown = [block.text for block in blocks(document) if block.language == "sh"]
    found = [text for text in shown if any(word in text for word in words)]
    assert len(found) == len(words), found
    return [
        re.sub(r"^(systemctl|curl|apt-get|mosquitto_sub|correlator (health|jobs))\b.*\n", "", text, flags=re.MULTILINE)
        for text in found
    ]


@pytest.fixture
async def appliance(own_mariadb: MariaDB) -> MariaDB:
    """Where nobody has made an account for the correlator."""
    await own_mariadb.create_schema("migratekit_oma")
    async with own_mariadb.connect() as connection, connection.cursor() as cursor:
        await cursor.execute("DROP USER correlator@'%'")
    return own_mariadb


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As the package leaves it."""
    etc = tmp_path / "etc"
    (etc / "conf.d").mkdir(parents=True)
    (etc / "correlator.toml").write_text((REPOSITORY / "deploy/correlator.toml").read_text())
    place(monkeypatch, etc)
    return etc


@pytest.mark.skipif("os.getuid() != 0", reason="the steps are root's")
async def test_the_steps_of_the_readme_make_an_account_without_a_password(
    appliance: MariaDB, etc: Path, tmp_path: Path
):
    here = {
        "/etc/correlator": str(etc),
        "deploy/": f"{REPOSITORY}/deploy/",
        "/run/mysqld/mysqld.sock": str(appliance.socket),
    }
    await paste(tmp_path, steps("README.md", "grants.sql", "database.timezone"), mariadb=appliance, here=here)
    found = loading.load(etc / "correlator.toml", {"HOME": "/root", "CREDENTIALS_DIRECTORY": str(etc)})
    assert (found.database.timezone, str(found.mqtt.url)) == ("Europe/Berlin", "mqtt://broker.example:1883")
    assert found.mqtt.instance == "appliance-1"
    assert (found.database.unix_socket, bool(found.database.password)) == (appliance.socket, False)
    grants = [grant for (grant,) in await appliance.run("SHOW GRANTS FOR correlator@localhost")]
    assert ("IDENTIFIED VIA unix_socket" in grants[0], len(grants)) == (True, 5), grants


@pytest.mark.skipif("os.getuid() != 0", reason="the steps are root's")
async def test_the_steps_with_a_password_lead_to_a_daemon_that_serves(appliance: MariaDB, etc: Path, tmp_path: Path):
    (etc / "conf.d/50-local.toml").write_text('[database]\nunix_socket = "/run/mysqld/mysqld.sock"\n')
    (etc / "db-password").write_text("an old one that everybody can read\n")
    (etc / "db-password").chmod(0o644)
    here = {"/etc/correlator": str(etc), "/usr/share/doc/correlator/examples/": f"{REPOSITORY}/deploy/"}
    await paste(tmp_path, steps("docs/install.md", "db-password"), mariadb=appliance, here=here)
    assert (etc / "db-password").stat().st_mode & 0o777 == 0o600
    found = loading.load(etc / "correlator.toml", {"HOME": "/root", "CREDENTIALS_DIRECTORY": str(etc)})
    assert found.database.unix_socket is None
    url = f"mysql://correlator@127.0.0.1:{appliance.port}/migratekit_oma"
    async with Daemon(tmp_path, database__url=url, database__password_file=etc / "db-password"):
        pass


@pytest.mark.skipif("os.getuid() != 0", reason="the steps are root's")
async def test_opened_to_others_it_answers_under_the_name_of_the_host(appliance: MariaDB, etc: Path, tmp_path: Path):
    await paste(tmp_path, steps("docs/install.md", "0.0.0.0"), mariadb=appliance, here={"/etc/correlator": str(etc)})
    found = loading.load(etc / "correlator.toml", {"HOME": "/root", "CREDENTIALS_DIRECTORY": str(etc)})
    assert str(found.http.listen) == "0.0.0.0:8686"
    name = socket.gethostname()
    assert name in found.http.allowed_hosts
    assert (etc / "tls-key").stat().st_mode & 0o777 == 0o600
    assert (found.http.tls_cert, found.http.tls_key) == (etc / "tls.pem", etc / "tls-key")
    daemon = Daemon(
        tmp_path,
        database__url="sqlite:///nonexistent",
        http__allowed_hosts=",".join(found.http.allowed_hosts),
        http__tokens_file=etc / "api-token",
        http__tls_cert=found.http.tls_cert,
        http__tls_key=found.http.tls_key,
    )
    token = (etc / "api-token").read_text().strip()
    try:
        await daemon.start(ready=False)
        assert daemon.session is not None
        headers = {"Host": name, "Authorization": f"Bearer {token}"}
        async with daemon.session.get("/api/v1/jobs", headers=headers) as response:
            assert response.status != 403
        async with daemon.session.get("/api/v1/jobs", headers=headers | {"Host": "elsewhere.example"}) as response:
            assert response.status == 403
    finally:
        await daemon.close()


async def test_the_steps_of_a_token_for_one_job_make_a_key_and_a_token(appliance: MariaDB, etc: Path, tmp_path: Path):
    here = {"/etc/correlator": str(etc), "--for 1h": f"--for 1h >{tmp_path}/token"}
    await paste(tmp_path, steps("docs/configuration.md", "job-token-key"), mariadb=appliance, here=here)
    key = (etc / "job-token-key").read_text().strip()
    assert (etc / "job-token-key").stat().st_mode & 0o777 == 0o600
    claims = job_token.verify((tmp_path / "token").read_text().strip(), key, now=time.time(), longest=3600)
    assert claims.job == "unified-live-failover-pgtest2-1758553933"
