"""The private hooks of aiomqtt and paho on which the MQTT client depends: each is still there, and still called.

Checked with aiomqtt 2.5.1 and paho-mqtt 2.2.0. After an upgrade fails here, adapt
`correlator/sinks/mqtt/connection.py`. The attributes that it uses are checked by mypy.
"""

from __future__ import annotations

import asyncio
import inspect
import socket

import aiomqtt
import pytest
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from correlator.sinks.mqtt.connection import MqttClient, json_properties
from tests.support.eventually import PATIENCE


async def test_each_callback_that_the_client_overrides_is_one_of_aiomqtt_and_paho_calls_it():
    client = MqttClient("127.0.0.1", 1)
    overridden = [name for name in vars(MqttClient) if name.startswith("_on_")]
    assert overridden
    for name in overridden:
        theirs, ours = (inspect.signature(getattr(each, name)) for each in (aiomqtt.Client, MqttClient))
        assert [*theirs.parameters] == [*ours.parameters], name
        assert getattr(client._client, name.removeprefix("_")) == getattr(client, name)
    assert "is_disconnect_packet_from_server" in inspect.signature(paho.DisconnectFlags).parameters
    assert hasattr(client, "_misc_task")
    client.drop()  # It uses all others.


@pytest.mark.parametrize("expiry", [None, 172_800])
def test_shared_properties_are_packed_as_paho_packs_them(expiry):
    own = Properties(PacketTypes.PUBLISH)
    own.ContentType = "application/json"
    if expiry is not None:
        own.MessageExpiryInterval = expiry
    shared = json_properties(PacketTypes.PUBLISH, expiry)
    assert [shared.pack(), shared.pack()] == [own.pack()] * 2


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
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(aiomqtt.MqttError):
                await made.read(lambda *_: None)
