"""The doctor and the support bundle against real servers: what is well, what is broken, and that the remedies work."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sqlite3
import stat
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import aiomqtt
import pytest

from correlator.config import load
from correlator.doctor import broker, link
from correlator.doctor.check import Check
from correlator.doctor.examination import examine
from correlator.doctor.service import Setting
from correlator.sources.mariadb import Address, MariaDBDatabase
from tests.appliance import Appliance, now
from tests.daemon import REPOSITORY, Daemon
from tests.replay import SQLITE_SCHEMA
from tests.servers import TABLES, Database, MariaDB, Mosquitto, eventually, free_port

DATABASE_PASSWORD = "d@ta/base pass"
BROKER_PASSWORD = "m%qtt+pass"
TOKEN = "api/token=="
ROOT = "correlator/v1/test"
WITHIN = 30.0

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not come from a broker on this host at once does not come."""
    monkeypatch.setattr(broker, "HEARD_WITHIN", 0.7)
    monkeypatch.setattr(broker, "QUIET_AFTER", 0.3)


@dataclass(frozen=True)
class Account:
    """A user of the database's server with a password, and SELECT on the four tables."""

    database: Database
    user: str

    @property
    def url(self) -> str:
        server = self.database.server
        return f"mysql://{self.user}@127.0.0.1:{server.port}/{self.database.name}"

    async def run(self, *statements: str) -> None:
        async with self.database.connect() as connection, connection.cursor() as cursor:
            for statement in statements:
                await cursor.execute(statement)


@pytest.fixture
async def account(database: Database) -> AsyncIterator[Account]:
    account = Account(database, f"doctor_{next(_numbers)}")
    await account.run(
        f"CREATE USER {account.user}@'%' IDENTIFIED BY '{DATABASE_PASSWORD}'",
        *(f"GRANT SELECT ON `{database.name}`.{table} TO {account.user}@'%'" for table in TABLES),
    )
    yield account
    await account.run(f"DROP USER {account.user}@'%'")


@pytest.fixture
def guarded_broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """Users with passwords: one who may do all that the daemon needs, and others who may not."""
    acl = tmp_path / "acl"
    lines = [
        "user correlator",
        f"topic readwrite {ROOT}/#",
        "topic read correlator/v1/+/status",
        "user reader",
        f"topic read {ROOT}/#",
        "user writer",
        f"topic write {ROOT}/#",
        "user nobody",
        "user root",
        "topic readwrite #",
    ]
    acl.write_text("\n".join(lines) + "\n")
    acl.chmod(0o600)
    users = dict.fromkeys(("correlator", "reader", "writer", "nobody", "root"), BROKER_PASSWORD)
    with Mosquitto(f"acl_file {acl}", users=users) as server:
        yield server


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, text in (("db", DATABASE_PASSWORD), ("mqtt", BROKER_PASSWORD), ("tokens", TOKEN)):
        found[name] = tmp_path / name
        found[name].write_text(text + "\n")
        found[name].chmod(0o600)
    return found


@pytest.fixture
async def installation(
    account: Account, guarded_broker: Mosquitto, secrets: dict[str, Path], tmp_path: Path
) -> AsyncIterator[Daemon]:
    """All that there can be: passwords, tokens, a broker with an ACL. The daemon is not started."""
    daemon = Daemon(
        tmp_path,
        database__url=account.url,
        database__password_file=secrets["db"],
        mqtt__url=guarded_broker.url,
        mqtt__username="correlator",
        mqtt__password_file=secrets["mqtt"],
        http__tokens_file=secrets["tokens"],
    )
    yield daemon
    await daemon.close()


async def correlator(daemon: Daemon, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command with the settings of `daemon`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "correlator",
        *arguments,
        cwd=REPOSITORY,
        env=daemon._environ | {"PYTHONIOENCODING": "utf-8"} | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WITHIN):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def look(daemon: Daemon, **settings: object) -> dict[str, Check]:
    """The checks by name, with some settings of `daemon` changed; in this process."""
    environ = daemon._environ | {f"CORRELATOR_{k.upper()}": str(v) for k, v in settings.items()}
    async with asyncio.timeout(WITHIN):
        examined = await examine(Setting(load(None, environ), None, environ))
    return {check.name: check for check in examined.report.checks}


def failed(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.summary for name, check in checks.items() if check.status == "failure"}


async def a_job(appliance: Appliance) -> str:
    job_id = await appliance.job("gui-1")
    await appliance.log("Job started", attrs={"job_id": job_id, "job_type": "failover"})
    await appliance.step(job_id, 1, "validation", "completed")
    return job_id


NAMES = {
    "configuration",
    "secrets",
    "versions",
    "database.login",
    "database.tls",
    "database.rights",
    "database.clock",
    "database.schema",
    "database.timezone",
    "joblog.rows",
    "joblog.external_ids",
    "joblog.unresolved_ids",
    "joblog.legacy",
    "joblog.drops",
    "broker.login",
    "broker.acl",
    "broker.retained",
    "unit",
    "http.port",
    "daemon",
    "state.directory",
    "state.checkpoint",
}


async def test_an_installation_that_is_well_has_nothing_to_mend(installation, appliance):
    job_id = await a_job(appliance)
    await installation.start()
    await eventually(lambda: installation_knows(installation, job_id))
    code, out, err = await correlator(installation, "doctor", "-o", "json")
    report = json.loads(out)
    checks = {check["name"]: check for check in report["checks"]}
    assert {name: check for name, check in checks.items() if check["status"] != "ok" and name != "unit"} == {}
    assert (code, err, report["ok"]) == (0, "", True)
    assert set(checks) == NAMES
    assert "epoch" in checks["http.port"]["summary"]
    assert "kept by the daemon" in checks["state.checkpoint"]["summary"]
    assert checks["broker.retained"]["summary"].startswith("1 jobs of ours")
    for secret in (DATABASE_PASSWORD, BROKER_PASSWORD, TOKEN):
        assert secret not in out


async def installation_knows(daemon: Daemon, job_id: str) -> bool:
    assert daemon.session is not None
    async with daemon.session.get(f"/api/v1/jobs/{job_id}", headers={"Authorization": f"Bearer {TOKEN}"}) as response:
        return response.status == 200


async def test_everything_that_is_wrong_is_told_at_once_and_ends_with_1(installation, account, appliance, secrets):
    job_id = await appliance.job(None)  # a failover that nobody can find
    for _ in range(3):
        other = await appliance.job("gui")
        await appliance.step(other, 1, "validation")
    await appliance.log("a line", external_job_id="nowhere-1")
    await appliance.insert(
        "failover_jobs", job_id="legacy-1", vm_id="v", job_type="live", source_vm_name="s", created_at=now()
    )
    await appliance.run("UPDATE job_steps SET started_at = started_at + INTERVAL 2 HOUR")
    await account.run(
        f"REVOKE SELECT ON `{account.database.name}`.job_tracking FROM {account.user}@'%'",
        f"GRANT SELECT, UPDATE ON `{account.database.name}`.job_tracking TO {account.user}@'%'",
    )
    secrets["tokens"].chmod(0o644)
    async with await asyncio.start_server(someone_else, "127.0.0.1", installation.port):
        code, out, _ = await correlator(installation, "doctor")
    assert code == 1
    lines = {line.split()[1]: line for line in out.splitlines() if line[2:3] in "✓!✗" and line.strip()}
    signs = {name: line[2] for name, line in lines.items()}
    assert {name for name, sign in signs.items() if sign == "✗"} == {"secrets", "database.timezone", "http.port"}
    warned = {name for name, sign in signs.items() if sign == "!"}
    assert {"database.rights", "joblog.external_ids", "joblog.unresolved_ids", "joblog.legacy"} <= warned
    assert "wrong by 2 h" in lines["database.timezone"]
    assert "e.g. nowhere-1" in out
    assert "e.g. legacy-1" in out
    assert job_id in out
    assert f"> chmod o-rwx {secrets['tokens']}" in out


async def someone_else(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A program on our port that is none of ours."""
    writer.write(b"SSH-2.0-other\r\n")
    await writer.drain()
    writer.close()


async def test_rights_that_are_missing_and_too_many_are_put_right_by_the_statements_that_are_shown(
    installation, account
):
    name = account.database.name
    await account.run(
        f"REVOKE SELECT ON `{name}`.job_steps FROM {account.user}@'%'",
        f"REVOKE SELECT ON `{name}`.log_events FROM {account.user}@'%'",
        f"GRANT SELECT (id, message, ts), INSERT ON `{name}`.log_events TO {account.user}@'%'",
        f"GRANT PROCESS ON *.* TO {account.user}@'%'",
        f"GRANT DELETE ON `{name}`.* TO {account.user}@'%' WITH GRANT OPTION",
    )
    before = (await look(installation))["database.rights"]
    assert (before.status, before.summary) == ("failure", "no SELECT on job_steps")
    await account.run(*(statement.rstrip(";") for statement in before.mend))
    after = await look(installation)
    assert after["database.rights"].status == "ok", after["database.rights"]
    assert "log_events.level" in after["database.schema"].summary  # granted by column, which is named there


async def test_an_account_with_no_right_at_all_is_let_in_by_the_statements_that_are_shown(installation, account):
    await account.run(*(f"REVOKE SELECT ON `{account.database.name}`.{t} FROM {account.user}@'%'" for t in TABLES))
    checks = await look(installation)
    assert "(1044)" in failed(checks)["database.login"]
    assert not any(name.startswith(("joblog", "database.s")) for name in checks)
    await account.run(*(statement.rstrip(";") for statement in checks["database.login"].mend))
    assert failed(await look(installation)) == {}


async def test_a_wrong_password_is_told_of_each_server(installation):
    checks = await look(
        installation,
        database__password_file="",
        database__password="wrong",
        mqtt__password_file="",
        mqtt__password="wrong",
    )
    assert "(1045)" in failed(checks)["database.login"]
    assert "does not know correlator with this password" in checks["broker.login"].detail[0]
    assert "broker.acl" not in checks


async def test_an_encrypted_connection_is_told_with_its_cipher(installation):
    check = (await look(installation, database__tls__verify="false"))["database.tls"]
    assert (check.status, check.summary.startswith("TLSv1.")) == ("warning", True), check


@pytest.mark.parametrize(
    ("user", "status", "says"),
    [
        ("correlator", "ok", "may publish and read"),
        ("reader", "failure", "may not publish"),
        ("writer", "warning", "but not read"),
        ("nobody", "failure", "may not publish"),
    ],
)
async def test_what_the_acl_forbids_is_found_with_the_line_that_allows_it(installation, user, status, says):
    check = (await look(installation, mqtt__username=user))["broker.acl"]
    assert (check.status, says in check.summary) == (status, True), check
    assert (f"topic readwrite {ROOT}/#" in check.mend) == (status != "ok")


@contextlib.asynccontextmanager
async def speaking_mqtt_3(server: Mosquitto) -> AsyncIterator[str]:
    """The URL of a broker that refuses MQTT 5, and else is `server`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(4096)
        if b"\x00\x04MQTT\x05" in first:
            writer.write(b"\x20\x02\x00\x01")
            writer.close()
            return
        behind, before = await asyncio.open_connection("127.0.0.1", server.port)
        before.write(first)
        await asyncio.gather(pump(reader, before), pump(behind, writer))

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while part := await source.read(4096):
                target.write(part)
            target.close()

    port = free_port()
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        yield f"mqtt://127.0.0.1:{port}"


async def test_a_broker_of_mqtt_3_is_judged_by_what_comes_back(installation, guarded_broker):
    async with speaking_mqtt_3(guarded_broker) as url:
        forbidden = await look(installation, mqtt__url=url, mqtt__username="nobody")
        assert "MQTT 3.1.1" in forbidden["broker.login"].summary
        assert forbidden["broker.acl"].status == "failure"
        assert (await look(installation, mqtt__url=url))["broker.acl"].status == "ok"


async def test_topics_that_nobody_keeps_are_cleared_by_the_commands_that_are_shown(installation, guarded_broker):
    async def client() -> aiomqtt.Client:
        return aiomqtt.Client("127.0.0.1", guarded_broker.port, username="root", password=BROKER_PASSWORD)

    leftovers = {
        "correlator/v1/old '; name/status": b'{"state":"offline"}',
        "correlator/v1/old '; name/job/x/state": b"{}",
        f"{ROOT}/job/deleted-long-ago/state": b"{}",
        f"{ROOT}/status": b'{"state":"offline"}',
    }
    async with await client() as publisher:
        for topic, payload in leftovers.items():
            await publisher.publish(topic, payload, qos=1, retain=True)
    check = (await look(installation, mqtt__username="root"))["broker.retained"]
    assert check.status == "warning"
    assert len(check.mend) == 2
    for command in check.mend:
        hurried = command.replace("-W 5", "-W 1")
        process = await asyncio.create_subprocess_shell(hurried, stdout=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(WITHIN):
            await process.wait()
    assert (await look(installation, mqtt__username="root"))["broker.retained"].status == "ok"
    async with await client() as reader:
        await reader.subscribe("correlator/v1/#")
        message = await asyncio.wait_for(anext(aiter(reader.messages)), 5)
        assert str(message.topic) == f"{ROOT}/status"  # which stays: it is ours


async def test_servers_that_are_frozen_end_as_failed_checks(monkeypatch, own_mariadb, own_mosquitto, tmp_path):
    database = await own_mariadb.create_schema()
    daemon = Daemon(tmp_path, database__url=database.url, mqtt__url=own_mosquitto.url, database__connect_timeout="0.5")
    monkeypatch.setattr(broker, "CONNECT_WITHIN", 0.5)
    own_mariadb.pause()
    own_mosquitto.pause()
    try:
        began = time.monotonic()
        assert set(failed(await look(daemon))) == {"database.login", "broker.login"}
        assert time.monotonic() - began < 10
    finally:
        own_mariadb.resume()
        own_mosquitto.resume()


async def test_a_server_that_freezes_in_the_middle_ends_the_look_and_the_next_one_connects_anew(own_mariadb: MariaDB):
    database = await own_mariadb.create_schema()
    where = Address(port=own_mariadb.port, database=database.name)
    session = link.Link(MariaDBDatabase(where, connect_timeout=1.0, query_timeout=1.0))

    async def ask() -> tuple[Check, ...]:
        await session.query("SELECT 1")
        return ()

    assert await link.guarded("first", 5.0, ask) == []
    own_mariadb.pause()
    try:
        assert (await link.guarded("second", 5.0, ask))[0].status == "failure"
    finally:
        own_mariadb.resume()
    assert await link.guarded("third", 5.0, ask) == []
    await session.close()


async def test_a_log_of_any_length_is_read_from_its_end_and_no_further(installation, account, monkeypatch):
    monkeypatch.setattr("correlator.doctor.day.MAX_ROWS", 500)
    monkeypatch.setattr("correlator.doctor.day.IN_ONE", 100)
    await account.run(
        "INSERT INTO log_events (id, level, message, ts)"
        " SELECT 1000000 + seq, 'INFO', seq, UTC_TIMESTAMP(6) FROM seq_1_to_3000",
    )
    rows = (await look(installation))["joblog.rows"].summary
    assert "looked at: 500 rows, the newest of 24 h" in rows
    monkeypatch.setattr("correlator.doctor.day.MAX_ROWS", 5000)
    assert "looked at: 3000 rows, all rows of 24 h" in (await look(installation))["joblog.rows"].summary


async def test_a_sqlite_file_is_examined_too(tmp_path):
    file = tmp_path / "appliance.db"
    with sqlite3.connect(file) as connection:
        connection.executescript(SQLITE_SCHEMA.read_text())
    connection.close()
    checks = await look(Daemon(tmp_path, database__url=f"sqlite://{file}"))
    assert failed(checks) == {}
    assert "database.rights" not in checks
    missing = await look(Daemon(tmp_path, database__url=f"sqlite://{tmp_path}/none.db"))
    assert set(failed(missing)) == {"database.login"}


async def test_a_daemon_with_https_is_known_by_its_own_certificate(tmp_path):
    made = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for name in ("ours", "theirs"):
        files = ("-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.pem", "-subj", f"/CN={name}.example")
        process = await asyncio.create_subprocess_exec(*made, *map(str, files), stderr=asyncio.subprocess.DEVNULL)
        assert await process.wait() == 0
    daemon = Daemon(
        tmp_path,
        database__url="sqlite:///nonexistent",
        http__tls_cert=tmp_path / "ours.pem",
        http__tls_key=tmp_path / "ours.key",
    )
    try:
        with contextlib.suppress(AssertionError):  # its own look is one in the clear
            await daemon.start(ready=False, within=0.1)

        async def answers() -> bool:
            return (await look(daemon))["http.port"].summary.startswith("our daemon answers at https://")

        await eventually(answers, within=10)
        other = await look(daemon, http__tls_cert=tmp_path / "theirs.pem", http__tls_key=tmp_path / "theirs.key")
        assert "another program answers" in failed(other)["http.port"]
    finally:
        await daemon.close()


async def test_a_configuration_that_is_wrong_ends_with_78(installation):
    code, out, err = await correlator(installation, "doctor", "-o", "json", CORRELATOR_DATABASE__DRIVER="oracle")
    assert (code, out) == (78, "")
    assert "CORRELATOR_DATABASE__DRIVER" in err


# -- the support bundle


def contents(file: Path) -> dict[str, str]:
    with tarfile.open(file) as tar:
        found = {member.name.partition("/")[2]: tar.extractfile(member) for member in tar.getmembers()}
        return {name: member.read().decode() for name, member in found.items() if member is not None}


def fake(folder: Path, name: str, output: str) -> None:
    program = folder / name
    program.write_text("#!/bin/sh\ncat <<'END'\n" + output + "\nEND\n")
    program.chmod(0o755)


async def test_a_support_bundle_holds_what_helps_and_no_secret(installation, account, appliance, tmp_path):
    leaks = [DATABASE_PASSWORD, BROKER_PASSWORD, TOKEN]
    leaks += [quote(leak, safe="") for leak in leaks]
    programs = tmp_path / "programs"
    programs.mkdir()
    fake(programs, "journalctl", "a line of the log\n" + "\n".join(f"https://h/?token={leak}" for leak in leaks))
    of_the_unit = ("only-the-unit-knows-1", "only-the-unit-knows-2", "only-the-unit-knows-3")
    told = (
        f"Environment=CORRELATOR_DATABASE__PASSWORD={of_the_unit[0]} \\\n  {' '.join(leaks)}",
        f"SetCredential=api-token:{of_the_unit[1]}",
        f"SetCredentialEncrypted=db-password: \\\n  {of_the_unit[2]}",
        f"Description={' '.join(leaks)}",
    )
    fake(programs, "systemctl", "\n".join(told))
    leaks += of_the_unit
    await account.run(f"ALTER TABLE log_events COMMENT = '{DATABASE_PASSWORD} {quote(DATABASE_PASSWORD)}'")
    await a_job(appliance)
    await installation.start()
    target = tmp_path / "bundle.tar.gz"
    path = f"{programs}:{os.environ['PATH']}"
    code, out, err = await correlator(
        installation, "support-bundle", "-o", str(target), PATH=path, CORRELATOR_TOKEN=TOKEN
    )
    assert (code, err) == (0, "")
    assert str(target) in out
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    found = contents(target)
    for name, text in found.items():
        assert not [leak for leak in leaks if leak in text], name
        if name != "MANIFEST":
            assert f"{name}: " in found["MANIFEST"]
    assert "a line of the log" in found["log.txt"]
    assert "Environment=CORRELATOR_DATABASE__PASSWORD=*** " in found["unit.txt"]
    assert "SetCredential=api-token:***\nSetCredentialEncrypted=db-password:***\n" in found["unit.txt"]
    assert "correlator_rows_total" in found["metrics.txt"]
    assert json.loads(found["ready.json"])["ready"] is True
    assert json.loads(found["doctor.json"])["ok"] is True
    assert json.loads(found["configuration.json"])["settings"]["database"]["password"] == "***"
    assert set(json.loads(found["checkpoint.json"])) >= {"bytes", "version", "jobs"}
    assert all(f"CREATE TABLE `{table}`" in found["schema.sql"] for table in TABLES)
    assert "correlator" in json.loads(found["versions.json"])


async def test_a_bundle_is_made_where_nothing_works_and_says_what_it_lacks(tmp_path):
    daemon = Daemon(tmp_path, database__url="mysql://nobody@127.0.0.1:1/nothing")
    target = tmp_path / "b.tar.gz"
    code, _, err = await correlator(daemon, "support-bundle", "-o", str(target), PATH="/nonexistent")
    assert (code, err) == (0, "")
    found = contents(target)
    assert {"MANIFEST", "configuration.json", "doctor.json", "versions.json"} == set(found)
    lacking = found["MANIFEST"].partition("What could not be had:")[2]
    for name in ("metrics.txt", "ready.json", "checkpoint.json", "schema.sql", "log.txt", "unit.txt"):
        assert f"{name}: " in lacking
    assert "journalctl is not installed" in lacking


async def test_a_bundle_that_cannot_be_written_ends_with_1(installation, tmp_path):
    code, _, err = await correlator(installation, "support-bundle", "-o", str(tmp_path / "no" / "b.tar.gz"))
    assert code == 1
    assert "cannot be written" in err
