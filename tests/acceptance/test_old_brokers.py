"""Real brokers that know MQTT 3.1.1 only: amqtt, which closes the connection at MQTT 5, and aedes."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace

import pytest

from correlator.config.schema import Mqtt
from correlator.config.values import BrokerUrl
from correlator.doctor import mqtt
from tests.support.eventually import eventually
from tests.support.mqtt_harness import MqttHarness, drained, holds, reading, watch
from tests.support.paths import REPOSITORY
from tests.support.servers import Server

INSTALLED = REPOSITORY / "build" / "brokers"

AMQTT = """
listeners: {{default: {{type: tcp, bind: "127.0.0.1:{port}"}}}}
plugins: {{amqtt.plugins.authentication.AnonymousAuthPlugin: {{allow_anonymous: true}}}}
"""

AEDES = """
import {{ createServer }} from "node:net";
import {{ Aedes }} from "{module}";
createServer((await Aedes.createBroker()).handle).listen({port}, "127.0.0.1");
"""


class OldBroker(Server):
    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            return True


class Amqtt(OldBroker):
    def _prepare(self) -> Sequence[str]:
        (file := self.folder / "amqtt.yaml").write_text(AMQTT.format(port=self.port))
        return [str(INSTALLED / "bin" / "amqtt"), "-c", str(file)]


class Aedes(OldBroker):
    def _prepare(self) -> Sequence[str]:
        module = INSTALLED / "node_modules" / "aedes" / "aedes.js"
        (file := self.folder / "aedes.mjs").write_text(AEDES.format(port=self.port, module=module))
        return ["node", str(file)]


@pytest.mark.long
@pytest.mark.parametrize("broker", [Amqtt, Aedes])
async def test_a_broker_of_mqtt_3_1_1_gets_all_and_the_doctor_connects_like_the_daemon(broker):
    with broker() as server:
        world = MqttHarness(server.port, reading("a", "x"), reading("b", "y", status="completed"))
        async with watch(world, server.port, mqtt5=False) as watcher:
            async with world.running():
                await eventually(lambda: watcher.states() == ["online"])
                world.happen(1)
                world.change("a", "x")
                await eventually(lambda: watcher.said(world.event("a")) and drained(world, 0))
                async with watch(world, server.port, mqtt5=False) as late:
                    await holds(late, world)
                settings = Mqtt(url=BrokerUrl("127.0.0.1", server.port, tls=False), instance=world.instance)
                login, acl = (await mqtt.inspect(settings, running=True)).checks
                assert (login.status, acl.status) == ("ok", "ok"), (login, acl)
                assert "MQTT 3.1.1" in login.summary
            await eventually(lambda: watcher.states()[-2:] == ["stopping", "offline"])
        (login,) = (await mqtt.inspect(replace(settings, version="5"), running=False)).checks
        assert login.status == "failure"
        assert "systemctl start" not in str(login.fix)
