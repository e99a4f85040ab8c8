"""The doctor and the support bundle against real servers: what is well, what is broken, and that the remedies work."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import sqlite3
import stat
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import aiomqtt
import pytest

from correlator.config.loading import load
from correlator.doctor import mqtt, usage
from correlator.doctor.database import Link
from correlator.doctor.examination import examine
from correlator.doctor.report import Check, guarded
from correlator.doctor.service import Setting
from correlator.sinks.mqtt.connection import MqttTimings
from correlator.sources.db.mariadb import Address, MariaDBDatabase
from tests.support.appliance import Appliance, now
from tests.support.bulk_rows import ago, pending_failovers
from tests.support.bulk_rows import job_id as filled_id
from tests.support.certificates import self_sign
from tests.support.daemon import Daemon, correlator
from tests.support.eventually import eventually
from tests.support.faults.proxy import Proxy
from tests.support.mariadb import TABLES, Database, MariaDB
from tests.support.markdown import read
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt_harness import OldBroker
from tests.support.replay import SQLITE_SCHEMA
from tests.support.root_shell import paste
from tests.support.source_databases import open_queries
from tests.support.terminal import ended

DATABASE_PASSWORD = "d@ta/base pass"
BROKER_PASSWORD = "m%qtt+pass"
TOKEN = "api/token/of/all=="
ROOT = "correlator/v1/test"
WITHIN = 100.0

_numbers = itertools.count(1)


HURRIED = mqtt.BrokerTimings(echo_within=0.7, quiet_after=0.3)
"""What does not come from a broker on this host at once does not come."""


@pytest.fixture
async def account(database: Database) -> AsyncIterator[str]:
    """A user of the database's server with a password, and SELECT on the four tables."""
    user = f"doctor_{next(_numbers)}"
    await database.run(
        f"CREATE USER {user}@'%' IDENTIFIED BY '{DATABASE_PASSWORD}'",
        *(f"GRANT SELECT ON `{database.name}`.{table} TO {user}@'%'" for table in TABLES),
    )
    yield user
    await database.run(f"DROP USER {user}@'%'")


@pytest.fixture
def guarded_broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """Users with passwords: one with all rights that the daemon needs, and others without."""
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
    account: str, database: Database, guarded_broker: Mosquitto, secrets: dict[str, Path], tmp_path: Path
) -> AsyncIterator[Daemon]:
    """All that there can be: passwords, tokens, a broker with an ACL. The daemon is not started."""
    daemon = Daemon(
        tmp_path,
        database__url=database.url.replace("correlator@", f"{account}@"),
        database__password_file=secrets["db"],
        mqtt__url=guarded_broker.url,
        mqtt__username="correlator",
        mqtt__password_file=secrets["mqtt"],
        http__tokens_file=secrets["tokens"],
    )
    yield daemon
    await daemon.close()


async def checks_of(daemon: Daemon, broker: mqtt.BrokerTimings = HURRIED, **settings: object) -> dict[str, Check]:
    """The checks by name, with some settings of `daemon` changed; in this process."""
    environ = daemon.environ | {f"CORRELATOR_{k.upper()}": str(v) for k, v in settings.items()}
    async with asyncio.timeout(WITHIN):
        examined = await examine(Setting(load(None, environ), None, environ), broker=broker)
    return {check.name: check for check in examined.report.checks}


def failed(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.summary for name, check in checks.items() if check.status == "failure"}


async def a_job(appliance: Appliance) -> str:
    job_id = await appliance.job("gui-1")
    await appliance.log("Job started", attrs={"job_id": job_id, "job_type": "failover"})
    await appliance.step(job_id, 1, "validation", "completed")
    return job_id


NAMES = set(re.findall(r"^\| `([a-z_.]+)` \|[^|]*\|[^|]*\|$", read("docs/doctor.md"), re.MULTILINE))
"""The checks that the document lists."""


async def test_an_installation_that_is_well_has_nothing_to_fix(installation, appliance):
    job_id = await a_job(appliance)
    await installation.start()
    await eventually(lambda: installation_knows(installation, job_id))
    code, out, err = await correlator(installation, "doctor", "-o", "json")
    report = json.loads(out)
    checks = {check["name"]: check for check in report["checks"]}
    assert {name: check for name, check in checks.items() if check["status"] != "ok" and name != "unit"} == {}
    assert (code, err, report["ok"]) == (0, "", True)
    assert set(checks) == {name for name in NAMES if not name.startswith("cluster.")} | {"cluster.server"}
    assert "epoch" in checks["http.port"]["summary"]
    assert "kept by the daemon" in checks["state.checkpoint"]["summary"]
    assert checks["broker.retained"]["summary"].startswith("1 jobs of ours")
    assert checks["joblog.operations"]["summary"] == "1 of 1 (100 %) operations of two days have no forecast yet"
    for secret in (DATABASE_PASSWORD, BROKER_PASSWORD, TOKEN):
        assert secret not in out


async def installation_knows(daemon: Daemon, job_id: str) -> bool:
    assert daemon.session is not None
    async with daemon.session.get(f"/api/v1/jobs/{job_id}", headers={"Authorization": f"Bearer {TOKEN}"}) as response:
        return response.status == 200


async def test_all_failures_are_reported_in_one_run_and_the_exit_code_is_1(
    installation, account, appliance, database, secrets
):
    job_id = await appliance.job(None)  # a failover that nobody can find
    for _ in range(3):
        other = await appliance.job("gui")
        await appliance.step(other, 1, "validation")
    await appliance.log("a line", external_job_id="nowhere-1")
    await appliance.insert(
        "failover_jobs", job_id="legacy-1", vm_id="v", job_type="live", source_vm_name="s", created_at=now()
    )
    await appliance.run("UPDATE job_steps SET started_at = started_at + INTERVAL 2 HOUR")
    await database.run(
        f"REVOKE SELECT ON `{database.name}`.job_tracking FROM {account}@'%'",
        f"GRANT SELECT, UPDATE ON `{database.name}`.job_tracking TO {account}@'%'",
    )
    secrets["tokens"].chmod(0o644)
    async with await asyncio.start_server(someone_else, "127.0.0.1", installation.port):
        code, out, _ = await correlator(installation, "doctor")
    assert code == 1
    lines = {line.split()[1]: line for line in out.splitlines() if line[2:3] in "✓!✗" and line.strip()}
    symbols = {name: line[2] for name, line in lines.items()}
    assert {name for name, symbol in symbols.items() if symbol == "✗"} == {"secrets", "database.timezone", "http.port"}
    warned = {name for name, symbol in symbols.items() if symbol == "!"}
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


async def test_rights_are_put_right_by_the_statements_that_are_shown(installation, account, database, tmp_path):
    name = database.name
    await database.run(*(f"REVOKE SELECT ON `{name}`.{table} FROM {account}@'%'" for table in TABLES))
    checks = await checks_of(installation)
    assert "(1044)" in failed(checks)["database.login"]
    assert not any(check.startswith(("joblog", "database.s")) for check in checks)
    await paste(tmp_path, checks["database.login"].fix, mariadb=database.server)
    assert failed(await checks_of(installation)) == {}
    await database.run(
        f"REVOKE SELECT ON `{name}`.job_steps FROM {account}@'%'",
        f"REVOKE SELECT ON `{name}`.log_events FROM {account}@'%'",
        f"GRANT SELECT (id, message, ts), INSERT ON `{name}`.log_events TO {account}@'%'",
        f"GRANT PROCESS ON *.* TO {account}@'%'",
        f"GRANT DELETE ON `{name}`.* TO {account}@'%' WITH GRANT OPTION",
    )
    before = (await checks_of(installation))["database.rights"]
    columns = ("level", "job_id", "step_id", "attrs")
    lacking = ", ".join(["job_steps", *(f"log_events.{column}" for column in columns)])
    assert (before.status, before.summary) == ("failure", f"no SELECT on {lacking}")
    await paste(tmp_path, before.fix, mariadb=database.server)
    after = await checks_of(installation, database__tls__verify="false")
    assert after["database.rights"].status == "ok", after["database.rights"]
    assert after["database.schema"].status == "ok", after["database.schema"]
    assert (after["database.tls"].status, after["database.tls"].summary[:6]) == ("warning", "TLSv1.")


async def test_what_the_acl_forbids_is_found_with_the_command_that_allows_it(
    installation, guarded_broker, mariadb, tmp_path
):
    for user, status, says in (
        ("reader", "failure", "may not publish"),
        ("writer", "warning", "but not read"),
        ("nobody", "failure", "may not publish"),
    ):
        check = (await checks_of(installation, mqtt__username=user))["broker.acl"]
        assert (check.status, says in check.summary) == (status, True), check
        await guarded_broker_reads(guarded_broker, tmp_path, check.fix, mariadb)
        assert (await checks_of(installation, mqtt__username=user))["broker.acl"].status == "ok"


async def guarded_broker_reads(server: Mosquitto, folder: Path, commands: Sequence[str], mariadb: MariaDB) -> None:
    """Paste what changes the ACL, and have the broker read it again."""
    (folder / "mosquitto/conf.d").mkdir(parents=True, exist_ok=True)
    for name in ("mosquitto.conf", "conf.d/acl.conf"):
        (folder / "mosquitto" / name).write_text("" if name == "mosquitto.conf" else f"acl_file {folder / 'acl'}\n")
    here = {"/etc/mosquitto": str(folder / "mosquitto")}
    assert await paste(folder, commands, mariadb=mariadb, here=here) == "reload mosquitto\n"
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)


async def test_a_broker_of_mqtt_3_is_judged_by_what_comes_back(installation, guarded_broker):
    async with Proxy(guarded_broker.port) as proxy:
        proxy.answer = OldBroker(refusal=b"\x20\x02\x00\x01")
        url = f"mqtt://127.0.0.1:{proxy.port}"
        forbidden = await checks_of(installation, mqtt__url=url, mqtt__username="nobody")
        assert "MQTT 3.1.1" in forbidden["broker.login"].summary
        assert forbidden["broker.acl"].status == "failure"
        assert (await checks_of(installation, mqtt__url=url))["broker.acl"].status == "ok"


async def test_the_shown_commands_clear_orphaned_topics(installation, guarded_broker):
    def client() -> aiomqtt.Client:
        return aiomqtt.Client("127.0.0.1", guarded_broker.port, username="root", password=BROKER_PASSWORD)

    leftovers = {
        "correlator/v1/old '; name/status": b'{"state":"offline"}',
        "correlator/v1/old '; name/job/x/state": b"{}",
        f"{ROOT}/job/deleted-long-ago/state": b"{}",
        f"{ROOT}/status": b'{"state":"offline"}',
    }
    async with client() as publisher:
        for topic, payload in leftovers.items():
            await publisher.publish(topic, payload, qos=1, retain=True)
    check = (await checks_of(installation, mqtt__username="root"))["broker.retained"]
    assert check.status == "warning"
    assert len(check.fix) == 2
    for command in check.fix:
        hurried = command.replace("-W 5", "-W 1")
        process = await asyncio.create_subprocess_shell(hurried, stdout=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(WITHIN):
            await process.wait()
    assert (await checks_of(installation, mqtt__username="root"))["broker.retained"].status == "ok"
    async with client() as reader:
        await reader.subscribe("correlator/v1/#")
        message = await asyncio.wait_for(anext(aiter(reader.messages)), 5)
        assert str(message.topic) == f"{ROOT}/status"  # which stays: it is ours


async def test_servers_that_are_frozen_end_as_failed_checks_and_the_next_check_connects_again(
    own_mariadb, own_mosquitto, tmp_path
):
    database = await own_mariadb.create_schema()
    daemon = Daemon(tmp_path, database__url=database.url, mqtt__url=own_mosquitto.url, database__connect_timeout="0.5s")
    where = Address(port=own_mariadb.port, database=database.name)
    session = Link(MariaDBDatabase(where, connect_timeout=1.0, query_timeout=1.0))
    assert await guarded("first", session.query("SELECT 1"), 5.0) == [(1,)]
    own_mariadb.pause()
    own_mosquitto.pause()
    try:
        assert isinstance(await guarded("second", session.query("SELECT 1"), 5.0), Check)
        soon = mqtt.BrokerTimings(MqttTimings(connect_timeout=0.5))
        assert set(failed(await checks_of(daemon, soon))) == {"database.login", "broker.login"}
    finally:
        own_mariadb.resume()
        own_mosquitto.resume()
    assert await guarded("third", session.query("SELECT 1"), 5.0) == [(1,)]
    await session.close()


async def test_a_log_of_any_length_is_read_from_its_end_and_no_further(database):
    await database.run(
        "INSERT INTO log_events (id, level, message, ts)"
        " SELECT 1000000 + seq, 'INFO', seq, UTC_TIMESTAMP(6) FROM seq_1_to_3000",
    )
    config = load(None, {"HOME": "/", "CORRELATOR_DATABASE__URL": database.url})
    async with open_queries(MariaDBDatabase(Address(port=database.server.port, database=database.name))) as opened:
        now, tables = await opened[0].now(opened[1]) // 1_000_000, usage.TablesOfDay((), (), {}, (), whole=True)
        for most, words in (500, "500 rows, the newest of 24 h"), (5_000, "3000 rows, all rows of 24 h"):
            log = await usage.read_log(config, *opened, now, max_rows=most, at_once=100)
            assert f"examined: {words}" in usage.judge_rows(log, tables).summary


async def test_a_sqlite_file_is_examined_too(tmp_path):
    file = tmp_path / "appliance.db"
    with sqlite3.connect(file) as connection:
        connection.executescript(SQLITE_SCHEMA.read_text())
    connection.close()
    checks = await checks_of(Daemon(tmp_path, database__url=f"sqlite://{file}"))
    assert failed(checks) == {}
    assert "database.rights" not in checks
    missing = await checks_of(Daemon(tmp_path, database__url=f"sqlite://{tmp_path}/none.db"))
    assert set(failed(missing)) == {"database.login"}


async def test_a_daemon_with_https_is_known_by_its_own_certificate(tmp_path):
    for name in ("ours", "theirs"):
        self_sign(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", f"{name}.example")
    daemon = Daemon(
        tmp_path,
        database__url="sqlite:///nonexistent",
        http__tls_cert=tmp_path / "ours.pem",
        http__tls_key=tmp_path / "ours.key",
    )
    try:
        await daemon.launch()

        async def answers() -> bool:
            return (await checks_of(daemon))["http.port"].summary.startswith("the daemon answers at https://")

        await eventually(answers)
        other = await checks_of(daemon, http__tls_cert=tmp_path / "theirs.pem", http__tls_key=tmp_path / "theirs.key")
        assert "another program answers" in failed(other)["http.port"]
    finally:
        await daemon.close()


# -- the support bundle


def contents(file: Path) -> dict[str, str]:
    with tarfile.open(file) as tar:
        found = {member.name.partition("/")[2]: tar.extractfile(member) for member in tar.getmembers()}
        return {name: member.read().decode() for name, member in found.items() if member is not None}


def fake(folder: Path, name: str, output: str) -> None:
    """A program below `folder` that prints this, in which a shell fills in its arguments."""
    program = folder / "programs" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\n/bin/cat <<END\n" + output + "\nEND\n")
    program.chmod(0o755)


async def test_a_support_bundle_holds_what_helps_and_no_secret(installation, database, appliance, tmp_path):
    leaks = [DATABASE_PASSWORD, BROKER_PASSWORD, TOKEN]
    leaks += [quote(leak, safe="") for leak in leaks]
    fake(tmp_path, "journalctl", "a line of the log\n" + "\n".join(f"https://h/?token={leak}" for leak in leaks))
    of_the_unit = ("only-the-unit-knows-1", "only-the-unit-knows-2", "only-the-unit-knows-3")
    answers = (
        f"Environment=CORRELATOR_DATABASE__PASSWORD={of_the_unit[0]} \\\n  {' '.join(leaks)}",
        f"SetCredential=api-token:{of_the_unit[1]}",
        f"SetCredentialEncrypted=db-password: \\\n  {of_the_unit[2]}",
        f"Description={' '.join(leaks)}",
    )
    fake(tmp_path, "systemctl", "\n".join(answers).replace("\\", "\\\\"))
    leaks += of_the_unit
    await database.run(f"ALTER TABLE log_events COMMENT = '{DATABASE_PASSWORD} {quote(DATABASE_PASSWORD)}'")
    await a_job(appliance)
    await installation.start()
    target = tmp_path / "bundle.tar.gz"
    path = f"{tmp_path / 'programs'}:{os.environ['PATH']}"
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
    assert "Environment=***\nSetCredential=***\nSetCredentialEncrypted=***\n" in found["unit.txt"]
    assert json.loads(found["configuration.json"])["variables_of_unit"] == ["CORRELATOR_DATABASE__PASSWORD"]
    assert "correlator_rows_total" in found["metrics.txt"]
    assert json.loads(found["ready.json"])["ready"] is True
    assert json.loads(found["doctor.json"])["ok"] is True
    assert json.loads(found["configuration.json"])["settings"]["database"]["password"] == "***"
    assert set(json.loads(found["checkpoint.json"])) >= {"bytes", "version", "jobs"}
    assert all(f"CREATE TABLE `{table}`" in found["schema.sql"] for table in TABLES)
    assert "correlator" in json.loads(found["versions.json"])


async def bundle_of(tmp_path: Path, *arguments: str) -> tuple[str, dict[str, str]]:
    """What the command says without a daemon, and what the bundle holds."""
    target, environ = tmp_path / "b.tar.gz", {"PATH": str(tmp_path / "programs"), "HOME": str(tmp_path)}
    environ["CORRELATOR_HTTP__LISTEN"] = "127.0.0.1:1"  # a demo may serve the default port
    code, out, err = await ended(("support-bundle", *arguments, "-o", str(target)), environ)
    assert code == 0, err
    return out + err, contents(target)


async def test_a_bundle_is_made_of_a_wrong_configuration_and_says_what_is_wrong_and_what_it_lacks(tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text(
        '[database]\nurl = "mysql://nobody@127.0.0.1:1/nothing"\npassword = "of-the-file"\n[http]\nlisten = "127.0'
    )
    fake(tmp_path, "systemctl", "failed, of-the-file")
    out, found = await bundle_of(tmp_path, "--config", str(file))
    assert "The configuration is wrong" in out
    checks = {check["name"]: check for check in json.loads(found["doctor.json"])["checks"]}
    assert checks["configuration"]["status"] == "failure"
    assert "not TOML" in "\n".join(checks["configuration"]["detail"])
    assert "failed, ***" in found["unit.txt"]
    assert json.loads(found["configuration.json"])["files"] == [str(file)]
    assert not [name for name, text in found.items() if "of-the-file" in text]
    lacking = found["MANIFEST"].partition("Not available:")[2]
    for name in ("metrics.txt", "ready.json", "checkpoint.json", "schema.sql", "log.txt"):
        assert f"{name}: " in lacking
    assert "journalctl is not installed" in lacking


async def test_a_bundle_of_a_gateway_has_its_configuration_and_its_unit_and_asks_no_database(tmp_path):
    file = tmp_path / "gateway.toml"
    token = tmp_path / "tokens"
    token.write_text(TOKEN)
    file.write_text(f'[cluster]\nurl = "nats://127.0.0.1:1"\n[http]\nlisten = "127.0.0.1:1"\ntokens_file = "{token}"\n')
    for name in ("journalctl", "systemctl"):
        fake(tmp_path, name, f"{name} $* {TOKEN}")
    _, found = await bundle_of(tmp_path, "--gateway", "--config", str(file))
    assert {"MANIFEST", "configuration.json", "doctor.json", "versions.json", "log.txt", "unit.txt"} == set(found)
    checks = {check["name"]: check for check in json.loads(found["doctor.json"])["checks"]}
    assert checks["configuration"]["status"] == "ok"
    assert checks["cluster.server"]["status"] == "failure"
    assert "-u correlator-gateway.service" in found["log.txt"]
    assert "status --no-pager correlator-gateway.service" in found["unit.txt"]
    assert not [name for name, text in found.items() if TOKEN in text]


async def test_each_row_of_failover_jobs_is_counted_and_those_of_joblog_jobs_are_none_without_a_job(
    database, appliance, tmp_path
):
    """2,300 rows of the last day: 250 have IDs of their own, the others those of JobLog jobs, by any column."""
    begun, count = ago(hours=3), 2_050
    metadata = """'{{"failover_job_id": "gui-{}"}}'"""
    values = ",".join(
        f"('{filled_id(n)}', 'op', 'failover', 'failed', 'engine-{n}', {metadata.format(n)}, '{begun}')"
        for n in range(count)
    )
    await appliance.run(
        "INSERT INTO job_tracking (id, operation, job_type, status, external_job_id, metadata, started_at)"
        f" VALUES {values}"
    )
    names = [(filled_id(n), f"engine-{n}", f"gui-{n}")[n % 3] for n in range(count)]
    await pending_failovers(database, [(name, begun) for name in [*names, *(f"alone-{n}" for n in range(250))]])
    checks = await checks_of(Daemon(tmp_path, database__url=database.url))
    assert checks["joblog.legacy"].summary.startswith("250 of 2300 (11 %) rows of failover_jobs of 24 h")
