"""Connections to the broker: how they begin and end, TLS, protocol versions, and what is sent again after a loss."""

import asyncio
import gc
import socket
import threading

import aiomqtt
import pytest

from correlator.config.schema import Mqtt, Tls
from correlator.config.values import BrokerUrl
from correlator.sinks.mqtt.connection import DEFAULT, Connector, MqttClient, MqttTimings
from tests.support.certificates import Certificates
from tests.support.eventually import PATIENCE, eventually
from tests.support.faults.proxy import Proxy
from tests.support.hostile_broker import nothing, packet
from tests.support.key_updates import KeyUpdater
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt_harness import MqttHarness, OldBroker, holds, reading, watch
from tests.support.servers import free_port
from tests.support.yardstick import turns_of_another_task

LONG_CONNECTING = MqttTimings(connect_timeout=60 * PATIENCE)
"""Whatever waits for this deadline takes longer than a test may."""


async def test_a_frozen_broker_does_not_delay_the_stop_and_publishes_the_last_will_afterwards(own_mosquitto):
    world = MqttHarness(own_mosquitto.port, reading("a"), sink={"timings": MqttTimings(goodbye_within=0.5)})
    task = asyncio.create_task(world.sink.run(world.hub))
    async with watch(world, own_mosquitto.port) as watcher:
        await eventually(lambda: watcher.states() == ["online"])
        own_mosquitto.pause()
        async with asyncio.timeout(PATIENCE):
            await world.stop(task)
        own_mosquitto.resume()
        await eventually(lambda: watcher.states()[-1] == "offline")


@pytest.mark.parametrize(
    "refusal",
    [b"\x20\x03\x00\x84\x00", b"\x20\x02\x00\x01", b""],
    ids=["with a reason of MQTT 5", "with a code of MQTT 3.1.1", "without an answer"],
)
async def test_a_broker_that_knows_no_mqtt_5_gets_3_1_1_until_it_does(mosquitto, refusal, caplog):
    async with Proxy(mosquitto.port) as proxy:
        proxy.answer = old = OldBroker(refusal=refusal)
        first = MqttHarness(proxy.port, reading("a", "x"), reading("b", "y", status="completed"))
        async with watch(first, mosquitto.port) as watcher:
            async with first.running():
                await holds(watcher, first)
                first.happen(1)
                first.change("a", "x")
                await holds(watcher, first)
                await eventually(lambda: watcher.said(first.event("a")))
                assert old.levels == [5, 4]
                assert not [r for r in caplog.records if r.levelname == "WARNING"]
                old.level = 5
                proxy.reset()
                await eventually(lambda: old.levels == [5, 4, 5] and first.sink.connected)
                old.level = 4
            second = MqttHarness(proxy.port, reading("a", "x"), instance=first.instance)
            async with second.running():
                await holds(watcher, second)
            await eventually(lambda: watcher.states()[-4:] == ["offline", "online", "stopping", "offline"])


async def test_a_broker_that_refuses_the_topics_is_reported(tmp_path, caplog):
    (tmp_path / "acl").write_text("topic read #\ntopic write other/#\n")
    (tmp_path / "acl").chmod(0o600)
    with Mosquitto(f"acl_file {tmp_path / 'acl'}") as broker:
        world = MqttHarness(broker.port, *(reading(f"j{n}") for n in range(30)))
        async with world.running():
            # Mosquitto 2.0 never gives back the quota of what it refuses, and disconnects after a window of them.
            await eventually(
                lambda: any(m.startswith("the broker refuses messages: Not authorized (0x87)") for m in caplog.messages)
            )


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """A broker that also listens with TLS; the port, and a folder with a CA and its certificate for 127.0.0.1."""
    made = Certificates.create(tmp_path_factory.mktemp("tls"))
    made.make("broker", "IP:127.0.0.1")
    port, folder = free_port(), made.folder
    files = [f"cafile {folder / 'ca.pem'}", f"certfile {folder / 'broker.pem'}", f"keyfile {folder / 'broker.key'}"]
    with Mosquitto(f"listener {port} 127.0.0.1", *files, "allow_anonymous true") as broker:
        yield broker, port, folder


@pytest.mark.parametrize(
    ("tls", "connects"),
    [
        ({"ca": "ca.pem"}, True),
        ({"ca": "ca.pem", "cert": "broker.pem", "key": "broker.key"}, True),
        ({"verify": False}, True),
        ({}, False),
        ({"ca": "missing.pem"}, False),
    ],
)
async def test_tls_is_checked_as_the_settings_say(secured, tls, connects):
    broker, port, folder = secured
    settings = Tls(**{k: folder / v if isinstance(v, str) else v for k, v in tls.items()})
    world = MqttHarness(port, reading("a", "x"), tls=settings)
    async with world.running(), watch(world, broker.port) as watcher:
        if connects:
            await holds(watcher, world)
        else:
            await eventually(lambda: world.sink.describe()["error"])
            assert not world.sink.connected
    gc.collect()  # A socket that was left open is an error.


async def test_a_broker_that_asks_for_new_keys_without_end_is_left_at_once(secured):
    _, _, folder = secured

    def broker(listening: socket.socket) -> None:
        connected, _ = listening.accept()
        with KeyUpdater(connected) as tls:
            tls.accept(folder / "broker.pem", folder / "broker.key")
            tls.read()
            tls.write(packet(0x20, b"\0\0" + nothing(5)))
            tls.flood(3)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = BrokerUrl("127.0.0.1", listening.getsockname()[1], tls=True)
        flooding = asyncio.ensure_future(asyncio.to_thread(broker, listening))
        connector = Connector(Mqtt(url=url, tls=Tls(ca=folder / "ca.pem")), DEFAULT, lambda _: None)
        async with turns_of_another_task() as longest, asyncio.timeout(PATIENCE), connector.connection() as client:
            with pytest.raises(aiomqtt.MqttError):
                await client.read(lambda *_: None)
        await flooding
    assert longest() < 0.2


async def test_a_broker_that_closes_before_it_answers_is_asked_again_soon(mosquitto):
    async with Proxy(mosquitto.port) as proxy:
        proxy.answer = lambda _: b""
        world = MqttHarness(proxy.port, reading("a"), sink={"timings": LONG_CONNECTING})
        async with world.running():
            await eventually(lambda: "without an answer" in str(world.sink.describe()["error"]))
            proxy.answer = None
            await eventually(lambda: world.sink.connected)


async def test_a_connection_that_is_made_too_late_is_dropped(mosquitto, monkeypatch):
    release = threading.Event()
    connect = MqttClient._client_connect

    def late(client):
        release.wait(PATIENCE)
        connect(client)

    async with Proxy(mosquitto.port) as proxy:
        proxy.answer = old = OldBroker(level=5)
        world = MqttHarness(proxy.port, reading("a"))
        monkeypatch.setattr(MqttClient, "_client_connect", late)
        task = asyncio.create_task(world.sink.run(world.hub))
        await eventually(lambda: any(t.get_name() == "mqtt connection" for t in asyncio.all_tasks()))
        await world.stop(task)
        release.set()
        await eventually(lambda: old.levels == [5])
        await eventually(lambda: proxy.links == {})
