"""The private hooks of aiomqtt and paho on which the MQTT client depends: each is still there, and still called.

Checked with aiomqtt 2.5.1 and paho-mqtt 2.2.0. After an upgrade fails here, adapt
`correlator/sinks/mqtt/connection.py`.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import socket
from importlib.metadata import version
from types import UnionType

import aiomqtt
import pytest
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from correlator.sinks.mqtt.connection import MqttClient, json_properties

CALLBACKS = {
    "_on_connect": ["client", "userdata", "flags", "reason_code", "properties"],
    "_on_disconnect": ["client", "userdata", "flags", "reason_code", "properties"],
    "_on_message": ["client", "userdata", "message"],
    "_on_publish": ["client", "userdata", "mid", "reason_code", "properties"],
    "_on_socket_register_write": ["client", "userdata", "sock"],
}
"""Methods of aiomqtt's client that ours overrides, with their parameters. paho calls each under its public name."""

ATTRIBUTES: dict[str, type | UnionType] = {
    "_client": paho.Client,
    "_connected": asyncio.Future,
    "_disconnected": asyncio.Future,
    "_loop": asyncio.AbstractEventLoop,
    "_misc_task": asyncio.Task | None,
}
"""Attributes of aiomqtt's client that ours reads or sets, with their types."""

OF_PAHO = {"_sock_close"}
"""Methods of paho's client that ours calls, without arguments."""


def lacks(library: str, hook: str) -> str:
    return (
        f"{library} {version(library)} does not have {hook} as correlator/sinks/mqtt/connection.py needs it: adapt it"
    )


@pytest.fixture
async def client() -> MqttClient:
    """A client that was never connected."""
    return MqttClient("127.0.0.1", 1)


async def test_aiomqtt_has_each_callback_that_the_client_overrides_and_paho_calls_it(client):
    for name, parameters in CALLBACKS.items():
        hook = getattr(aiomqtt.Client, name, None)
        assert hook is not None, lacks("aiomqtt", f"Client.{name}")
        found = [parameter for parameter in inspect.signature(hook).parameters if parameter != "self"]
        assert found == parameters, lacks("aiomqtt", f"Client.{name}({', '.join(parameters)})")
        called = getattr(client._client, name.removeprefix("_"), None)
        wanted = f"Client.{name.removeprefix('_')} = aiomqtt's {name}"
        assert called == getattr(client, name), lacks("paho-mqtt", wanted)


async def test_aiomqtt_and_paho_have_each_private_member_that_the_client_uses(client):
    for name, kind in ATTRIBUTES.items():
        assert isinstance(getattr(client, name, ...), kind), lacks("aiomqtt", f"Client.{name}")
    for name in OF_PAHO:
        hook = getattr(paho.Client, name, None)
        assert hook is not None, lacks("paho-mqtt", f"Client.{name}")
        assert list(inspect.signature(hook).parameters) == ["self"], lacks("paho-mqtt", f"Client.{name}()")


def test_paho_says_whether_a_disconnect_came_from_the_broker():
    hook = "DisconnectFlags.is_disconnect_packet_from_server"
    assert "is_disconnect_packet_from_server" in inspect.signature(paho.DisconnectFlags).parameters, lacks(
        "paho-mqtt", hook
    )


def test_these_are_all_private_hooks_that_the_client_uses():
    used = set()
    for node in ast.walk(ast.parse(inspect.getsource(MqttClient))):
        name = getattr(node, "attr", None) if isinstance(node, ast.Attribute) else None
        name = node.name if isinstance(node, ast.FunctionDef) else name
        if name is not None and name.startswith("_") and not name.endswith("__"):
            used.add(name)
    assert used == {*CALLBACKS, *ATTRIBUTES, *OF_PAHO}, "list here every private hook that MqttClient uses"


@pytest.mark.parametrize("expiry", [None, 172_800])
def test_shared_properties_are_packed_as_paho_packs_them(expiry):
    own = Properties(PacketTypes.PUBLISH)
    own.ContentType = "application/json"
    if expiry is not None:
        own.MessageExpiryInterval = expiry
    shared = json_properties(PacketTypes.PUBLISH, expiry)
    assert [shared.pack(), shared.pack()] == [own.pack()] * 2
    assert "pack" in vars(Properties), lacks("paho-mqtt", "Properties.pack")


async def test_a_connection_ends_at_once_if_the_loop_takes_no_writer_for_its_socket(monkeypatch):
    """As uvloop does for a socket that had an error."""

    def refuse(*_: object) -> None:
        raise RuntimeError("unable to perform operation on <UVPoll closed=True>; the handler is closed")

    made = MqttClient("127.0.0.1", 1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(made._client, "socket", lambda: ours)
        monkeypatch.setattr(made._loop, "add_writer", refuse)
        made._on_socket_register_write(made._client, None, ours)
        async with asyncio.timeout(5):
            with pytest.raises(aiomqtt.MqttError):
                await made.read(lambda *_: None)
