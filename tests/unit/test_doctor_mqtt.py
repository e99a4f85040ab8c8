"""What is said of the broker and of the running daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import aiomqtt
import msgspec
import pytest
from aiohttp import web

from correlator import __version__
from correlator.config.loading import load
from correlator.doctor import daemon, mqtt
from correlator.doctor.examination import examine
from correlator.doctor.mqtt import Tried
from correlator.doctor.report import copyable
from correlator.doctor.service import Setting
from correlator.sinks.mqtt.connection import Connector
from correlator.sinks.mqtt.topics import Topics
from tests.support.fake_daemon import FakeDaemon
from tests.support.servers import free_port


def config(**settings):
    given = {"mqtt__url": "mqtt://10.0.0.7:1883", "mqtt__instance": "here"} | settings
    return load(None, {"HOME": "/tmp"} | {f"CORRELATOR_{k.upper()}": str(v) for k, v in given.items()})


SETTINGS = config(mqtt__username="correlator").mqtt


def test_a_healthy_standby_is_as_it_should_be():
    part = {"ok": False, "connected": True, "instance": "oma", "role": "standby", "active": "host-1", "error": "x"}
    report = {"ready": False, "parts": {"cluster": part}}
    check = daemon.judge(report, {"live": True}, None)
    assert (check.status, check.summary) == ("ok", "the standby of oma, as it should be; host-1 is active")
    part.pop("active")
    assert daemon.judge(report, {"live": True}, None).summary == "the standby of oma, as it should be"
    part["connected"] = False
    assert daemon.judge(report, {"live": True}, None).status == "warning"


@pytest.mark.parametrize(
    ("tried", "running", "status", "says"),
    [
        (Tried("5"), True, "ok", "publish and read"),
        (Tried("5", refused="Not authorized"), True, "failure", "Not authorized"),
        (Tried("5", received=False, status=False), False, "warning", "not read"),
        (Tried("5", received=False, status=True), True, "ok", "publish and read"),  # its own topics, not the probe
        (Tried("5", denied=("correlator/v1/here/ext/+",)), True, "warning", "not read"),
        (Tried("3.1.1", received=False, status=False), False, "failure", "does not come back"),
        (Tried("5", retains=False), False, "failure", "no retained"),
        (Tried("5", status=False), True, "warning", "holds nothing"),
        (Tried("5", status=False), False, "ok", "publish and read"),
    ],
)
def test_the_permissions_at_the_broker_are_checked(tried, running, status, says):
    check = mqtt.judge_acl(SETTINGS, tried, running=running)
    assert (check.status, check.summary.count(says)) == (status, 1), check
    if status == "failure" and "retained" not in says:
        assert any("topic readwrite correlator/v1/here/#" in command for command in check.fix)


def test_the_rights_that_home_assistant_needs_are_part_of_the_fix():
    with_devices = config(mqtt__home_assistant="true").mqtt
    refused, denied = Tried("5", refused="Not authorized"), Tried("5", denied=("homeassistant/status",))
    for tried, says in (refused, "may not publish"), (denied, "not read"):
        check = mqtt.judge_acl(with_devices, tried, running=True)
        assert says in check.summary
        assert "homeassistant" in check.summary
        assert "topic readwrite homeassistant/device/correlator_2Fv1_2Fhere/+/config" in check.fix[0]
        assert "topic read homeassistant/status" in check.fix[0]
        assert "homeassistant" not in str(mqtt.judge_acl(SETTINGS, tried, running=True))


class ObligingBroker:
    """One connection to a broker that allows everything, and sends `messages_of` of each topic that is published."""

    retain_available = True

    def __init__(self, messages_of: Callable[[str], list[tuple[str, bool]]] = lambda _: []) -> None:
        self.published: list[str] = []
        self.settings: list[dict[str, Any]] = []
        self._messages_of = messages_of

    async def subscribe(self, filters: list[tuple[str, int]]) -> list[int]:
        await asyncio.sleep(0)
        return [0] * len(filters)

    async def publish(self, topic: str, _: bytes, **settings: Any) -> None:
        self.published.append(topic)
        self.settings.append(settings)
        for name, is_retained in self._messages_of(topic):
            self._on_message(name, b"{}", is_retained)

    async def read(self, on_message: Callable[[str, bytes, bool], None]) -> None:
        self._on_message = on_message
        await asyncio.Event().wait()


def inspected(loop, settings, broker) -> mqtt.BrokerFindings:
    """What the doctor finds on a connection to `broker`."""

    @contextlib.asynccontextmanager
    async def connected(*_):
        yield broker

    class Connecting(Connector):
        version = "5"
        connection: Any = connected

    task = loop.create_task(mqtt.inspect(settings, running=True, connecting=Connecting))
    loop.run(60)
    found: mqtt.BrokerFindings = task.result()
    return found


@pytest.mark.parametrize("comes_back", [True, False])
def test_the_message_that_comes_back_and_those_that_are_retained_are_distinguished(loop, comes_back):
    ours, other = f"{SETTINGS.root}/status", f"{SETTINGS.prefix}/other/status"

    def sent(probe: str) -> list[tuple[str, bool]]:
        return [(ours, True), (other, True), (f"{SETTINGS.root}/index", False), *([(probe, False)] * comes_back)]

    broker = ObligingBroker(sent)
    found = inspected(loop, SETTINGS, broker)
    assert found.checks[1] == mqtt.judge_acl(SETTINGS, Tried("5", received=comes_back), running=True)
    assert found.retained == {ours: b"{}", other: b"{}"}
    assert broker.settings == [{"qos": 1, "retain": False}]


def test_the_permission_to_publish_devices_is_tried_without_a_topic_of_any_vm(loop):
    settings, broker = config(mqtt__home_assistant="true").mqtt, ObligingBroker()
    inspected(loop, settings, broker)
    topics = Topics(settings.root)
    (tried,) = [topic for topic in broker.published if aiomqtt.Topic(topic).matches(topics.devices)]
    assert topics.key(tried) is None


@pytest.mark.parametrize(
    ("code", "says"),
    [*((code, "mosquitto_passwd") for code in (4, 5, 134, 135)), *((code, "journalctl") for code in (1, 132, 136))],
)
def test_a_refused_broker_login_has_its_fix(code, says):
    check = mqtt.judge_login(SETTINGS, aiomqtt.MqttCodeError(code, "refused"))
    assert check.status == "failure"
    assert any(says in line for line in check.fix)
    if says == "mosquitto_passwd":
        given = config(mqtt__username="correlator", mqtt__password="secret").mqtt
        with_one = mqtt.judge_login(given, aiomqtt.MqttCodeError(code, "refused"))
        assert ("no password was given" in check.detail[0], "a password was given" in with_one.detail[0]) == (
            True,
            True,
        )
    local = config(mqtt__url="mqtt://[::1]:1883")
    check = mqtt.judge_login(local.mqtt, aiomqtt.MqttError("Connection refused"))
    assert copyable(Setting(local, None, {}), check).fix == ("systemctl start mosquitto",)
    check = mqtt.judge_lost(SETTINGS, aiomqtt.MqttError("Quota exceeded"))
    assert (check.status, check.summary) == ("failure", "the broker ended the connection: Quota exceeded")
    assert any("topic readwrite correlator/v1/here/#" in command for command in check.fix)


def status(state):
    return json.dumps({"state": state}).encode()


@pytest.mark.parametrize("in_file", [True, False])
def test_no_program_of_the_command_that_clears_topics_has_the_password_as_an_argument(tmp_path, in_file):
    password, programs = "a 'b \"c $(d)", tmp_path / "programs"
    (tmp_path / "word").write_text(f"{password}\n")
    programs.mkdir()
    for name in ("mosquitto_sub", "cat", "mktemp"):
        real = shutil.which(name) if name != "mosquitto_sub" else None
        said = 'cat "$XDG_CONFIG_HOME/mosquitto_sub"' if real is None else f'exec {real} "$@"'
        (programs / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$0 $*" >>{tmp_path}/arguments\n{said}\n')
        (programs / name).chmod(0o755)
    file = {"mqtt__password_file": tmp_path / "word"} if in_file else {"mqtt__password": password}
    command = mqtt.clearing(config(mqtt__username="correlator", **file).mqtt, "a/#")
    environ = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PASSWORD": "" if in_file else password}
    environ["TMPDIR"] = str(tmp_path)
    done = subprocess.run(
        ["sh", "-e", "-c", command], env=environ, capture_output=True, text=True, timeout=10, check=True
    )
    assert done.stdout == f"-P {password}\n"
    assert "mosquitto_sub -h 10.0.0.7" in (tmp_path / "arguments").read_text()
    assert "$(d)" not in (tmp_path / "arguments").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"word", "programs", "arguments"}


def test_orphaned_topics_are_named_with_the_command_that_clears_them():
    topics = {
        "correlator/v1/here/status": status("offline"),  # ours, which may come back
        "correlator/v1/old/status": status("offline"),
        "correlator/v1/other/status": status("online"),
        "correlator/v1/odd/status": b"no json",
        "correlator/v1/list/status": b"[]",
        "correlator/v1/here/job/j1/state": b"{}",
        "correlator/v1/here/job/a%2Fb/state": b"{}",
        "correlator/v1/here/ext/e1": b"{}",
    }
    assert mqtt.job_ids(SETTINGS, topics) == ["j1", "a/b"]
    check = mqtt.judge_retained(SETTINGS, topics, ["j1"])
    assert check.status == "warning"
    assert check.detail[0].startswith("offline, and not ours: old;")
    begin, end = "mosquitto_sub -h 10.0.0.7 -p 1883 -u correlator -t", "--remove-retained --retained-only -W 5"
    assert tuple(command.split("; ")[-1].removesuffix(")") for command in check.fix) == (
        f"{begin} 'correlator/v1/old/#' -t homeassistant/device/correlator_2Fv1_2Fold/+/config {end}",
        f"{begin} correlator/v1/here/job/j1/state {end}",
    )
    odd = {"correlator/v1/'; rm -rf $HOME; '/status": status("offline")}
    assert "correlator/v1/'; rm -rf $HOME; '/#" in shlex.split(mqtt.judge_retained(SETTINGS, odd, []).fix[0])
    well = mqtt.judge_retained(SETTINGS, {f"correlator/v1/{n}/status": status("online") for n in ("here", "other")}, [])
    assert (well.status, well.detail) == ("ok", ("other instances: other",))


READY = {"ready": True, "parts": {"database": {"ok": True}, "mqtt": {"ok": True, "connected": True}}}
METRICS = f"""# TYPE correlator_build_info gauge
correlator_build_info{{version="{__version__}",python="3.13"}} 1.0
# TYPE correlator_jobs_stalled gauge
correlator_jobs_stalled 2.0
# TYPE correlator_reconcile_corrections_total counter
correlator_reconcile_corrections_total{{kind="job_ended"}} 3.0
"""


@pytest.mark.parametrize(
    ("ready", "live", "metrics", "status", "says"),
    [
        (READY, {"live": True}, METRICS, "ok", "ready, all parts ok"),
        (READY, {"live": True}, None, "ok", "ready, all parts ok"),
        (READY, {"live": False, "stuck": {"pipeline": 31.0}}, METRICS, "failure", "pipeline for 31.0 s"),
        (READY, {"live": True}, METRICS.replace(__version__, "0.0.1"), "warning", "0.0.1"),
        (
            READY,
            {"live": True},
            "# TYPE correlator_config_last_reload_successful gauge\ncorrelator_config_last_reload_successful 0.0\n",
            "warning",
            "last reload failed",
        ),
        (READY | {"ready": False}, {"live": True}, METRICS, "warning", "not ready"),
        (
            READY | {"parts": {name: {"ok": False, "error": "it is locked"} for name in ("database", "tables")}},
            {"live": True},
            METRICS,
            "warning",
            "degraded: database: it is locked",
        ),
    ],
)
def test_the_health_reports_of_the_daemon_are_judged(ready, live, metrics, status, says):
    check = daemon.judge(ready, live, metrics)
    assert (check.status, check.summary.count(says)) == (status, 1), check
    stalled = "stalled jobs, which run without any sign of progress: 2"
    assert (stalled in " ".join(check.detail)) is (metrics == METRICS)


def test_an_address_that_cannot_be_listened_on_is_a_failure():
    assert daemon.bindable("127.0.0.1", free_port()).status == "ok"
    assert daemon.bindable("192.0.2.1", free_port()).fix == ("ip -brief address",)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert daemon.bindable("127.0.0.1", taken.getsockname()[1]).status == "failure"


async def test_a_silent_program_on_the_port_and_an_unreachable_url_are_failures():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        found = await daemon.inspect(config(http__listen=f"127.0.0.1:{port}"), None, "", within=0.2)
        assert "does not answer within" in found.checks[0].summary
        asked = await daemon.inspect(config(), f"127.0.0.1:{free_port()}", "")
        assert asked.checks[0].status == "failure"
    for listen, says in (f"127.0.0.1:{free_port()}", "no daemon runs"), ("127.0.0.1:0", "any free port"):
        (check,) = (await daemon.inspect(config(http__listen=listen), None, "")).checks
        assert (check.status, says in check.summary) == ("ok", True), check
    assert msgspec.to_builtins(found.checks[0])["status"] == "failure"


class TokenRecorder(FakeDaemon):
    """A fake daemon that records the tokens that it is sent. `/metrics` needs one."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = [self._greet]

    @property
    def tokens(self) -> dict[str, str | None]:
        """The Authorization header of the last request for each path."""
        return {request.path: request.headers.get("Authorization") for request in self.requests}

    @property
    def hello(self) -> dict[str, Any]:
        return self.received[-1]

    def reply(self, request: web.Request) -> web.Response:
        if request.path == "/metrics":
            return web.Response(text=METRICS) if self.tokens["/metrics"] else web.Response(status=401)
        return web.json_response(READY if request.path == "/health/ready" else {"live": True})

    async def _greet(self, ws: web.WebSocketResponse) -> None:
        await self.wait_for(ws, "hello")
        await ws.send_json([{"type": "welcome", "epoch": "e1"}])


@pytest.mark.parametrize("own", ["", "my-own"])
async def test_a_token_is_shown_where_its_configuration_listens_and_one_is_asked_for(monkeypatch, tmp_path, own):
    tokens = tmp_path / "tokens"
    tokens.write_text("secret-of-a-service\n")
    tokens.chmod(0o600)
    monkeypatch.setenv("CORRELATOR_TOKEN", own)

    async def found_at(url: str | None, **settings: object) -> daemon.DaemonFindings:
        given = {"mqtt__url": "", "database__url": f"sqlite://{tmp_path}/none.db", "state__directory": tmp_path}
        chosen = config(**given | {"http__tokens_file": tokens} | settings)
        return (await examine(Setting(chosen, None, {}), url, own)).daemon

    async with TokenRecorder().running() as listener:
        address = f"127.0.0.1:{listener.port}"
        elsewhere = await found_at(address)
        assert listener.tokens["/metrics"] == (f"Bearer {own}" if own else None)
        assert listener.hello.get("token") == (own or None)
        assert (elsewhere.metrics is None) == (not own)
        if not own:
            assert "CORRELATOR_TOKEN" in elsewhere.checks[0].detail[0]
            refused = await found_at(None, http__listen=address, http__tokens_file="")
            assert refused.checks[0].fix == ("systemctl restart correlator",)
        here = await found_at(None, http__listen=address)
        shown = f"Bearer {own or 'secret-of-a-service'}"
        asking, others = ("/metrics", "/api/v1/operations", "/health/ready"), ("/health/live", "/ws")
        assert listener.tokens == dict.fromkeys(asking, shown) | dict.fromkeys(others)
        assert (here.epoch, here.metrics, here.corrections) == ("e1", METRICS, {"job_ended": 3.0})
        assert here.publishes
