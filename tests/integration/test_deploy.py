"""What deploy/ delivers is what the program needs: the configuration, the accounts at MariaDB and at the broker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import textwrap
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiomqtt
import aiomysql
import orjson
import pytest
import yaml  # type: ignore[import-untyped]

from correlator.config import loading, rendering
from tests.support.appliance import Appliance, connected
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import TABLES, Database, MariaDB
from tests.support.markdown import blocks
from tests.support.mosquitto import Mosquitto
from tests.support.paths import DEPLOY
from tests.support.proxies import rewritten
from tests.support.servers import program, run_program

SQL = (DEPLOY / "grants-password.sql").read_text()
OF_SOCKET = (DEPLOY / "grants.sql").read_text()
HERE = "'correlator'@'127.0.0.1'"
TREE = "correlator/v1/appliance"

pytestmark = pytest.mark.asyncio(loop_scope="function")


# What can be read


async def test_the_configuration_file_is_the_reference():
    assert (DEPLOY / "correlator.toml").read_text() == rendering.reference()


async def test_the_configuration_file_changes_no_default():
    environ = {"HOME": "/root"}
    assert loading.load(DEPLOY / "correlator.toml", environ) == loading.load(None, environ)


async def test_the_collector_takes_traces_where_the_configuration_sends_them():
    file = DEPLOY / "otel-collector/config.yaml"
    content = yaml.safe_load(file.read_text())
    pipeline = content["service"]["pipelines"]["traces"]
    for kind, used in pipeline.items():
        assert set(used) <= content[kind].keys(), kind
    address = content["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert f'otlp.url = "http://{address}"' in file.read_text()


async def test_nginx_waits_for_longer_than_the_longest_request():
    assert re.findall(r"proxy_read_timeout (\d+)s;", (DEPLOY / "nginx/correlator.conf").read_text()) == ["75"]


async def test_what_the_gui_document_shows_is_in_the_file():
    (shown,) = (block.text for block in blocks("docs/gui.md") if block.language == "caddy")
    assert textwrap.indent(shown, "\t") in (DEPLOY / "caddy/Caddyfile").read_text()


# grants.sql


def statements(script: str) -> list[str]:
    return [part.strip() for part in re.sub(r"^--.*$", "", script, flags=re.MULTILINE).split(";") if part.strip()]


def variant(host: str) -> str:
    """The script with the commented account for `host` in place of the one for this host."""
    account = f"'correlator'@'{host}'"
    create, alter = re.findall(rf"^-- ((?:CREATE|ALTER) USER .*{re.escape(account)}.*)$", SQL, re.MULTILINE)
    script = re.sub(r"^CREATE USER .*$", create, SQL, flags=re.MULTILINE)
    return re.sub(r"^ALTER USER .*$", alter, script, flags=re.MULTILINE).replace(HERE, account)


def password(text: str, account: str = HERE) -> str:
    """What the script's head says to run after it, for this password."""
    line = re.search(r"^--     printf \"(ALTER USER .*;)\\n\" ", SQL, re.MULTILINE)
    assert line is not None
    return line[1].replace(HERE, account).replace("%s", text)


@pytest.fixture
async def granted(mariadb: MariaDB) -> AsyncIterator[Database]:
    """The appliance's own database, while the shared server has no account for the correlator."""
    database = await mariadb.create_schema("migratekit_oma")
    await mariadb.run(*statements("DROP USER correlator@'%'"))
    yield database
    users = await mariadb.run("SELECT user, host FROM mysql.user WHERE user = 'correlator'")
    gone = [f"DROP USER '{user}'@'{host}'" for user, host in users]
    await mariadb.run(*gone, "CREATE USER correlator@'%'", "DROP DATABASE migratekit_oma")


async def grants(server: MariaDB, account: str) -> list[str]:
    found = await server.run(f"SHOW GRANTS FOR {account}")
    return sorted(re.sub(r"[`']|PASSWORD \S+ ", "", grant) for (grant,) in found)


@pytest.mark.filterwarnings("ignore:.*already exists")
async def test_the_account_may_read_four_tables_and_nothing_else_once_it_has_a_password(granted: Database):
    await granted.server.run(*statements(SQL))
    for tried in ("", "invalid", "change-me"):
        with pytest.raises(aiomysql.OperationalError, match="Access denied"):
            async with granted.connect(user="correlator", password=tried):
                pass
    await granted.server.run(*statements(SQL + password("change-me")))
    usage, *tables = sorted(await grants(granted.server, HERE), key=lambda grant: "USAGE" not in grant)
    assert usage.startswith("GRANT USAGE ON *.* TO correlator@127.0.0.1 IDENTIFIED BY")
    assert usage.endswith("WITH MAX_USER_CONNECTIONS 24")
    assert tables == [f"GRANT SELECT ON migratekit_oma.{name} TO correlator@127.0.0.1" for name in sorted(TABLES)]


@pytest.mark.filterwarnings("ignore:.*already exists")
@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "TLS"])
async def test_run_again_with_another_password_it_sets_that_one_and_keeps_the_doorbell(
    granted: Database, over_tls: bool
):
    script = variant("correlator.example").replace("correlator.example", "127.0.0.1") if over_tls else SQL
    doorbell = (DEPLOY / "grants-doorbell.sql").read_text().replace("localhost", "127.0.0.1")
    await granted.server.run(*statements(script + doorbell + password("change-me")))
    first = await grants(granted.server, HERE)
    assert "REPLICATION SLAVE" in str(first)
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    await granted.server.run(*statements(script + doorbell))
    if over_tls:  # as from another host
        with pytest.raises(aiomysql.OperationalError, match="Access denied"):
            async with granted.connect(user="correlator", password="change-me"):
                pass
    async with granted.connect(user="correlator", password="change-me", ssl=tls if over_tls else None):
        pass
    await granted.server.run(*statements(script + password("another") + doorbell))
    assert await grants(granted.server, HERE) == first
    async with granted.connect(user="correlator", password="another", ssl=tls if over_tls else None):
        pass
    with pytest.raises(aiomysql.OperationalError, match="Access denied"):
        async with granted.connect(user="correlator", password="change-me", ssl=tls if over_tls else None):
            pass


async def test_the_daemon_works_with_that_account_and_leaves_most_of_its_connections(granted: Database, tmp_path: Path):
    await granted.server.run(*statements(SQL + password("change-me")))
    async with Daemon(tmp_path, database__url=granted.url, database__password="change-me") as daemon:
        async with connected(granted) as connection:
            job_id = await Appliance(connection).job("gui-1")
        await eventually(lambda: daemon.job("gui-1"))
        assert (await daemon.get(f"/api/v1/jobs/{job_id}/events"))[0] == 200
        assert (await daemon.get("/api/v1/jobs/never-on_publish-of"))[0] == 404

        async def has_only_the_lasting_ones() -> bool:
            ours = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'correlator'"
            ((connections,),) = await granted.run(ours)
            return bool(3 <= connections <= 8)

        await eventually(has_only_the_lasting_ones)  # one more reads the history of forecasts at a first start


@pytest.mark.filterwarnings("ignore:.*already exists")
async def test_on_the_same_host_the_socket_is_enough(granted: Database, tmp_path: Path):
    me = os.environ.get("USER", "root") if os.getuid() else "root"
    script = OF_SOCKET.replace("'correlator'@", f"'{me}'@")
    await granted.server.run(*statements(script))  # root has all rights: the test is that it needs no password
    url = granted.url.replace("correlator@", f"{me}@")
    async with Daemon(tmp_path, database__url=url, database__unix_socket=granted.server.socket):
        pass


# The broker


class Delivered(Mosquitto):
    """mosquitto with the configuration and the list of deploy/, but for port and places, and an `admin` more."""

    def _prepare(self) -> Sequence[str]:
        (self.folder / "acl").write_text((DEPLOY / "mosquitto/acl").read_text() + "\nuser admin\ntopic readwrite #\n")
        (self.folder / "acl").chmod(0o600)
        passwords = self.folder / "passwords"
        passwords.unlink(missing_ok=True)
        passwords.touch(mode=0o600)
        for name in ("correlator", "monitor", "admin"):
            run_program(program("mosquitto_passwd"), "-b", str(passwords), name, f"of-{name}")
        changes = {
            "listener 1883 127.0.0.1": f"listener {self.port} 127.0.0.1",
            "password_file /etc/mosquitto/correlator.passwd": f"password_file {passwords}",
            "acl_file /etc/mosquitto/correlator.acl": f"acl_file {self.folder / 'acl'}",
        }
        text = rewritten((DEPLOY / "mosquitto/correlator.conf").read_text(), changes)
        file = self.folder / "mosquitto.conf"
        file.write_text(f"log_dest stdout\n{'user root' if os.getuid() == 0 else ''}\n{text}")
        return [program("mosquitto"), "-c", str(file)]

    def client(self, user: str) -> aiomqtt.Client:
        version = aiomqtt.ProtocolVersion.V5
        return aiomqtt.Client("127.0.0.1", self.port, username=user, password=f"of-{user}", protocol=version)


@pytest.fixture(scope="module")
def broker() -> Iterator[Delivered]:
    with Delivered() as server:
        yield server


@contextlib.asynccontextmanager
async def monitored(broker: Delivered, wanted: str = "correlator/#") -> AsyncIterator[dict[str, bytes]]:
    """The last payload of each topic, as the account `monitor` gets them; b"" of one that was removed."""
    seen: dict[str, bytes] = {}

    async def read(client: aiomqtt.Client) -> None:
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            seen[str(message.topic)] = message.payload

    async with broker.client("monitor") as client:
        await client.subscribe(wanted, qos=1)
        task = asyncio.create_task(read(client))
        try:
            yield seen
        finally:
            task.cancel()
            await asyncio.wait({task})


def state(seen: Mapping[str, bytes], topic: str) -> Any:
    return orjson.loads(seen[f"{TREE}/{topic}"])


async def test_the_daemon_does_all_of_its_work_with_that_account(
    broker: Delivered, database: Database, appliance: Appliance, tmp_path: Path
):
    account = {"mqtt__username": "correlator", "mqtt__password": "of-correlator", "mqtt__instance": "appliance"}
    daemon = Daemon(tmp_path, database__url=database.url, mqtt__url=broker.url, jobs__retention="1s", **account)
    try:
        async with monitored(broker) as seen:
            await daemon.start()
            await eventually(lambda: state(seen, "status")["state"] == "online")
            job_id = await appliance.job("gui 1/x")
            await appliance.log("Job started", attrs={"job_id": job_id})
            await eventually(lambda: state(seen, f"job/{job_id}/state")["status"] == "running")
            await eventually(lambda: state(seen, "ext/gui%201%2Fx")["job_id"] == job_id)
            await appliance.end(job_id)
            await appliance.log("Job completed", attrs={"job_id": job_id})
            await eventually(lambda: state(seen, f"job/{job_id}/event")["kind"] == "job.completed")
            await eventually(lambda: seen[f"{TREE}/job/{job_id}/state"] == b"")
            await eventually(lambda: seen[f"{TREE}/ext/gui%201%2Fx"] == b"")
            await eventually(lambda: state(seen, "index")["count"] == 0)
            # What a broker has kept of a job that nobody knows any more is found by reading one's own topics.
            async with broker.client("correlator") as client:
                await client.publish(f"{TREE}/job/gone/state", b'{"job_id":"gone"}', qos=1, retain=True)
            await daemon.kill()
            await eventually(lambda: state(seen, "status")["state"] == "offline")
            await daemon.start()
            await eventually(lambda: seen[f"{TREE}/job/gone/state"] == b"")
            assert await daemon.stop() == 0
            await eventually(lambda: state(seen, "status")["state"] == "offline")
    finally:
        await daemon.close()


REFUSED = {
    "correlator": [
        *("correlator/v1/other/status", "correlator/v1/appliance-2/status", "correlator/status"),
        "homeassistant/config",
    ],
    "monitor": [f"{TREE}/status", "elsewhere"],
}


@pytest.mark.parametrize("user", REFUSED)
async def test_the_accounts_may_publish_to_no_other_topic(broker: Delivered, user: str):
    async with broker.client(user) as client:
        for topic in REFUSED[user]:
            with pytest.raises(aiomqtt.MqttError, match="Not authorized"):
                await acknowledged(client, topic)
        if user == "correlator":
            await acknowledged(client, f"{TREE}/doctor/probe")


async def acknowledged(client: aiomqtt.Client, topic: str) -> None:
    """Publish, and raise what the broker answers: aiomqtt takes a refusal for an acknowledgement."""
    answers: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    paho = client._client
    before = paho.on_publish

    def on_publish(*arguments: Any) -> None:
        loop.call_soon_threadsafe(answers.put_nowait, arguments[3])
        if before is not None:
            before(*arguments)

    paho.on_publish = on_publish
    try:
        await client.publish(topic, b"{}", qos=1)
        reason = await asyncio.wait_for(answers.get(), PATIENCE)
    finally:
        paho.on_publish = before
    if reason.is_failure:
        raise aiomqtt.MqttError(str(reason))


async def test_an_anonymous_client_is_refused(broker: Delivered):
    with pytest.raises(aiomqtt.MqttError, match="Not authorized"):
        async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5):
            pass


async def test_the_daemon_may_read_its_own_topics_and_the_status_of_others(broker: Delivered):
    topics = [f"{TREE}/job/1/state", "correlator/v1/other/status", "correlator/v1/other/job/1/state", "elsewhere"]
    read: dict[str, list[str]] = {}
    async with broker.client("admin") as admin:
        for user in ("correlator", "monitor"):
            async with broker.client(user) as client:
                await client.subscribe("#", qos=1)  # acknowledged, whatever the list says
                for topic in (*topics, f"{TREE}/last"):
                    await admin.publish(topic, b"{}", qos=1)
                read[user] = []
                async with asyncio.timeout(60):
                    async for message in client.messages:
                        if str(message.topic) == f"{TREE}/last":
                            break
                        read[user] += [str(message.topic)] if not message.retain else []
    assert read == {"correlator": topics[:2], "monitor": topics[:3]}
