"""The unit, for real: a whole system is booted with the package, MariaDB and mosquitto in it, and its systemd asked.

The tests of one system go on where the one before ended, from the boot without a database to the last stop.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import aiohttp
import aiomqtt
import aiomysql
import pytest
import pytest_asyncio

from tests.support.appliance import Appliance
from tests.support.certificates import self_sign
from tests.support.eventually import eventually
from tests.support.paths import REPOSITORY
from tests.support.system.installations import Installations
from tests.support.system.nspawn import Machine
from tests.support.system.roots import ASKED
from tests.support.system.service import AUTHORISED, CONFIGURATION, FILE, GATEWAY_UNIT, SECRETS, UNIT, Service, prepare

STATUS = "correlator/v1/appliance/status"
RELOADED = "correlator_config_last_reload_successful"
RELOADED_AT = "correlator_config_last_reload_success_timestamp_seconds"
PROBE = "/usr/lib/correlator/probe.py"

pytestmark = pytest.mark.asyncio(loop_scope="module")

NEWEST = ASKED[:1]
"""All tests are for one release; what may differ with the versions of systemd and Python is tested for each."""

T = TypeVar("T", bound=Callable[..., object])


def everywhere(test: T) -> T:
    test.releases = ASKED  # type: ignore[attr-defined]
    return test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "machine" in metafunc.fixturenames:
        releases = getattr(metafunc.function, "releases", NEWEST)
        metafunc.parametrize("machine", releases, indirect=True, scope="module")


@pytest.fixture(scope="module")
def machine(
    request: pytest.FixtureRequest, installations: Installations, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """Booted, with the package and its secrets, with servers, and without a database or an account in them."""
    folder = tmp_path_factory.mktemp(request.param)
    root = installations.of(request.param).root.copy(folder)
    prepare(root, folder)
    with Machine(root, folder / "console") as machine:
        yield machine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    # Threads stay in the network that they were started in.
    with machine.network(), ThreadPoolExecutor(4) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        service = Service(machine, tmp_path_factory.mktemp("service"))
        timeout = aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(service.url, headers=AUTHORISED, timeout=timeout) as service.session:
            yield service


@pytest_asyncio.fixture(loop_scope="module")
async def appliance(service: Service) -> AsyncIterator[Appliance]:
    async with aiomysql.connect(host="127.0.0.1", user="appliance", db="migratekit_oma", autocommit=True) as connection:
        yield Appliance(connection)


@everywhere
async def test_a_start_that_waits_for_its_database_is_active_and_says_why(machine: Machine, service: Service):
    assert machine.run("systemctl is-enabled correlator").strip() == "enabled"
    assert machine.run("systemctl is-active mariadb mosquitto").split() == ["active", "active"]
    await eventually(lambda: service.show("StatusText").startswith("waiting for the database: "), within=10)
    assert "Access denied" in service.show("StatusText")
    assert (await service.get("/health/ready"))[0] == 503
    assert (service.show("ActiveState"), service.restarts) == ("active", 0)
    shown = machine.run("systemctl status correlator")
    assert re.search(r"Status: \"waiting for the database: .*Access denied", shown), shown
    assert "correlator" not in machine.run("systemctl --failed --no-legend --plain")


@everywhere
async def test_a_restart_does_not_wait_for_the_database_and_the_doctor_names_the_fault(
    machine: Machine, service: Service
):
    # Without --no-block, and with a deadline that ends a shell which is kept waiting.
    machine.run("timeout 20 systemctl restart correlator")
    assert (service.show("ActiveState"), service.show("SubState")) == ("active", "running")
    said = machine.run("timeout 60 correlator doctor", check=False)
    assert "ALTER USER" in said, said


@everywhere
async def test_it_is_ready_once_the_index_is_loaded(machine: Machine, service: Service):
    seen = service.now()
    machine.run("mariadb -e 'CREATE DATABASE migratekit_oma CHARACTER SET utf8mb4'")
    machine.run("mariadb migratekit_oma </root/appliance.sql")
    machine.run(
        "mariadb -e \"CREATE USER appliance@'%'; GRANT ALL ON migratekit_oma.* TO appliance@'%';"
        " INSERT INTO migratekit_oma.job_tracking (id, operation, job_type, status, external_job_id)"
        " VALUES ('11111111-2222-3333-4444-555555555555', 'unified-live-failover', 'failover', 'running', 'gui-0')\""
    )
    machine.run("mariadb </root/grants.sql")
    await service.active()
    messages = [line["MESSAGE"] for line in service.journal(seen)]
    assert [text for text in messages if "ready: 1 jobs in memory" in text]
    assert (await service.get("/health/ready"))[0] == 200
    assert (await service.job("gui-0"))["status"] == "running"
    await eventually(lambda: service.show("StatusText") == "1 job running of 1, 0 clients")
    (labels,) = re.findall(r"^correlator_build_info\{(.*)\} 1", await service.text("/metrics"), re.MULTILINE)
    assert 'driver="asyncmy"' in labels
    assert 'loop="uvloop"' in labels


@everywhere
async def test_secrets_come_as_credentials_and_are_nowhere_else(machine: Machine, service: Service):
    await eventually(lambda: service.metric("correlator_mqtt_connected"))
    assert (await service.get("/api/v1/jobs"))[0] == 200
    assert await service.without_token("/api/v1/jobs") == 401
    pid = service.pid
    places = [
        f"cat /proc/{pid}/environ /proc/{pid}/cmdline",
        "systemctl show correlator",
        "systemctl status correlator",
    ]
    places += ["systemctl cat correlator", "journalctl --no-pager", "cat /var/lib/private/correlator/*", f"cat {FILE}"]
    for place in places:
        shown = machine.run(f"{place} | tr '\\0' '\\n'")
        assert shown
        assert not [secret for secret in SECRETS.values() if secret in shown], place
    modes = machine.run("stat -c %a /run/credentials/correlator.service/* /etc/correlator/*-password").split()
    assert {mode[-1] for mode in modes} == {"0"}
    assert machine.run(
        "setpriv --reuid 65534 --clear-groups cat /run/credentials/correlator.service/db-password", check=False
    ).endswith("Permission denied\n")


@everywhere
async def test_log_lines_have_their_priority_and_name(service: Service):
    lines = [line for line in service.journal() if line.get("_COMM") == "correlator"]
    assert {line["SYSLOG_IDENTIFIER"] for line in lines} == {"correlator"}
    assert {"4", "6"} <= {line["PRIORITY"] for line in lines} <= {"3", "4", "6"}
    assert not [line for line in lines if line["MESSAGE"].startswith("<")]


async def test_a_reload_applies_what_it_can_and_disconnects_no_client(service: Service, appliance: Appliance):
    other = CONFIGURATION.replace("info", "debug") + "[jobs]\nmax_jobs = 1000\n"
    async with service.reader() as reader:
        await reader.snapshot(jobs=["gui-0", "gui-1"])
        pid, seen, restarts, before = service.pid, service.now(), service.restarts, await service.metric(RELOADED_AT)
        with service.configured(other):
            service.systemctl("reload")
            await eventually(lambda: service.logged(seen, "the configuration was reloaded"))
        assert service.logged(seen, "applied only by a restart: jobs.max_jobs")
        assert await service.metric(RELOADED) == 1
        assert await service.metric(RELOADED_AT) > before
        await appliance.job("gui-1")
        assert (await reader.shown())["job"]["external_ids"] == ["gui-1"]
        await appliance.insert("log_events", level="INFO", message="Step started", attrs="[1]")
        lines = await eventually(lambda: service.logged(seen, "could not be parsed"))
        assert {line["PRIORITY"] for line in lines} == {"7"}
    await service.active()
    assert (service.pid, service.restarts) == (pid, restarts)


async def test_as_notify_reload_systemctl_waits_until_it_is_done(service: Service):
    """The alternative that the unit's comment names."""
    (line,) = re.findall(r"^#(Type=notify-reload)$", UNIT.read_text(), re.MULTILINE)
    service.drop_in("reload", f"{line}\nExecReload=")
    service.systemctl("restart")
    pid, seen = service.pid, service.now()
    service.systemctl("reload")
    assert service.logged(seen, "the configuration was reloaded")
    assert (service.pid, service.show("ActiveState")) == (pid, "active")
    service.drop_in("reload", None)
    service.systemctl("restart")


@everywhere
async def test_killed_it_starts_again_and_goes_on_where_it_was(
    machine: Machine, service: Service, appliance: Appliance
):
    async with service.reader() as reader:
        epoch = reader.welcome["epoch"]
    owner = machine.run("stat -c %U:%a /var/lib/private/correlator /var/lib/private/correlator/checkpoint.sqlite")
    assert [line.split(":")[1] for line in owner.split()] == ["700", "600"]
    pid, seen, restarts = service.pid, service.now(), service.restarts
    machine.run(f"kill -KILL {pid}")
    await appliance.job("gui-3")
    await eventually(lambda: service.pid not in (0, pid), within=10, every=0.1)
    await service.active()
    assert service.logged(seen, "continuing from")
    assert service.restarts == restarts + 1
    await eventually(lambda: service.job("gui-3"))
    async with service.reader() as reader:
        assert reader.welcome["epoch"] != epoch


async def test_the_watchdog_ends_a_loop_that_is_stuck_and_the_journal_shows_where(machine: Machine, service: Service):
    service.drop_in("watchdog", "WatchdogSec=2s")
    service.systemctl("restart")
    await service.active()
    pid, seen, restarts = service.pid, service.now(), service.restarts
    machine.run(f"kill -STOP {pid}")
    await eventually(lambda: service.pid not in (0, pid), within=15, every=0.1)
    await service.active()
    assert service.restarts == restarts + 1
    assert service.logged(seen, "Watchdog timeout")
    assert service.logged(seen, "Fatal Python error: Aborted")
    service.drop_in("watchdog", None)


async def test_what_keeps_failing_is_started_again_for_ever(service: Service):
    service.systemctl("stop")
    with socket.create_server(("127.0.0.1", 8686), reuse_port=False):
        service.systemctl("start --no-block")
        # systemd's own limit is five starts in ten seconds; on a slow machine there are fewer in that time.
        await eventually(lambda: service.restarts >= 7, within=20, every=0.2)
        assert service.show("StartLimitIntervalUSec") == "0"
    await service.active()


async def test_a_wrong_configuration_ends_it_with_78_and_it_is_not_started_again(service: Service):
    seen = service.now()
    with service.configured(CONFIGURATION.replace("[log]", "[lock]")):
        service.systemctl("restart", check=False)
        # It would be auto-restart, where it will be started again.
        await eventually(lambda: service.show("SubState") == "failed", every=0.1)
    assert (service.show("ExecMainStatus"), service.restarts) == ("78", 0)
    assert service.logged(seen, "lock: unknown section")
    service.systemctl("start")
    await service.active()


async def test_without_secrets_it_runs_all_the_same(machine: Machine, service: Service):
    """A secret's file that is not there is no error of the unit: what needs it says so, and nothing else does."""
    machine.run("cd /etc/correlator && mkdir aside && mv *-password api-token aside/")
    service.systemctl("restart")  # what it knew is shown again, although nobody lets it in
    await eventually(lambda: "the database is unreachable" in service.show("StatusText"), within=10, every=0.1)
    assert (service.show("ActiveState"), service.restarts) == ("active", 0)
    assert await service.without_token("/api/v1/jobs/gui-0") == 200
    machine.run("cd /etc/correlator && mv aside/* . && rmdir aside")
    service.systemctl("restart")
    await eventually(lambda: service.metric("correlator_mqtt_connected"), within=10)


async def test_a_private_key_can_be_a_credential_as_well(machine: Machine, service: Service, tmp_path: Path):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    self_sign(certificate, key, "gui.example")
    machine.write("/etc/correlator/certificate.pem", certificate.read_text())
    machine.write("/etc/correlator/tls-key", key.read_text(), 0o600)
    with service.configured(f'{CONFIGURATION}[http]\ntls_cert = "/etc/correlator/certificate.pem"\n'):
        service.systemctl("restart")
    async with aiohttp.ClientSession() as session, session.get("https://127.0.0.1:8686/health/live", ssl=False) as got:
        assert got.status == 200
    machine.run("rm /etc/correlator/tls-key")
    service.systemctl("restart")


@everywhere
async def test_a_gateway_that_may_write_nowhere_serves_https(machine: Machine, tmp_path: Path):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    self_sign(certificate, key, "gui.example")
    machine.write("/etc/correlator/certificate.pem", certificate.read_text())
    machine.write("/etc/correlator/tls-key", key.read_text(), 0o600)
    http = 'listen = "127.0.0.1:8687"\ntls_cert = "/etc/correlator/certificate.pem"'
    machine.write("/etc/correlator/gateway.toml", f'[http]\n{http}\n[cluster]\nurl = "nats://127.0.0.1:4222"\n')
    machine.run(f"systemctl restart {GATEWAY_UNIT.stem}", check=False)
    try:
        url = "https://127.0.0.1:8687/health/live"
        async with aiohttp.ClientSession() as session, session.get(url, ssl=False) as got:
            assert got.status == 200
    except aiohttp.ClientError as error:
        error.add_note(machine.run(f"journalctl --unit={GATEWAY_UNIT.stem} --no-pager"))
        raise
    finally:
        machine.run(f"systemctl stop {GATEWAY_UNIT.stem}; rm /etc/correlator/tls-key")


@everywhere
async def test_it_can_do_nothing_to_the_host(machine: Machine, service: Service):
    unit = re.sub(r"^(Exec|Restart|Watchdog|Type|NotifyAccess|#).*\n", "", UNIT.read_text(), flags=re.MULTILINE)
    unit = unit.replace("[Service]", f"[Service]\nType=oneshot\nExecStart=/usr/lib/correlator/venv/bin/python {PROBE}")
    unit = unit.replace("StateDirectory=correlator", "StateDirectory=probe").replace("User=correlator", "User=probe")
    machine.write(PROBE, (REPOSITORY / "tests/system/probe.py").read_text())
    machine.write("/etc/systemd/system/probe.service", unit)
    machine.run("systemctl daemon-reload; systemctl start probe", check=False)
    written = machine.run("journalctl --unit=probe --output=cat --no-pager")
    lines = [line for line in written.splitlines() if line.startswith("{")]
    assert lines, written
    found = json.loads(lines[0])
    assert found.pop("secret")
    assert found.pop("other processes") == []
    assert found.pop("capabilities") == ["0000000000000000"]
    assert found.pop("no new privileges") == ["1"]
    works = {"inet", "inet6", "unix", "state"}
    assert found == {name: "works" if name in works else "refused" for name in found}
    assert found.keys() > works


@everywhere
async def test_it_can_write_its_state_and_nothing_else(machine: Machine, service: Service):
    pid = service.pid
    as_it = (
        f"nsenter --target {pid} --mount setpriv --reuid $(stat -c %u /proc/{pid}) --regid $(stat -c %g /proc/{pid})"
    )
    writable = r"find / -path /proc -prune -o \( -type d -o -type f \) -writable -print 2>/dev/null"
    found = set(machine.run(f"{as_it} --clear-groups {writable}", check=False).split())
    # systemd's own invitation to listen for a lack of memory.
    found.discard("/sys/fs/cgroup/system.slice/correlator.service/memory.pressure")
    assert found
    assert {path for path in found if not path.startswith("/var/lib/private/correlator")} == set()


@everywhere
async def test_the_unit_is_well_written_and_locked_up(machine: Machine):
    for unit in (UNIT, GATEWAY_UNIT):
        assert machine.run(f"systemd-analyze verify --man=no {unit.name}") == ""
        machine.write(f"/root/{unit.name}", unit.read_text())
        machine.run(f"systemd-analyze security --offline=true --threshold=12 --no-pager /root/{unit.name}")


@everywhere
async def test_a_stop_closes_connections_and_publishes_offline(machine: Machine, service: Service):
    states: list[str] = []
    async with (
        aiomqtt.Client("127.0.0.1", username="monitor", password="m") as client,
        service.reader() as reader,
    ):
        await client.subscribe(STATUS)
        began = time.monotonic()
        service.systemctl("stop --no-block")
        assert (await reader.until("bye"))["code"] == 1012
        with pytest.raises(EOFError, match="1012"):
            await reader.next()
        async for message in client.messages:
            states.append(json.loads(bytes(message.payload))["state"])
            if states[-1] == "offline":
                break
    assert states[-2:] == ["stopping", "offline"]
    await eventually(lambda: service.show("ActiveState") == "inactive", within=15, every=0.1)
    assert time.monotonic() - began < 5
    assert (service.show("Result"), service.show("ExecMainStatus")) == ("success", "0")
