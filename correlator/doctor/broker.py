"""The broker: whether it lets us in, what it lets us write and read, and what older runs left there.

The daemon's session is left alone: the look has a client ID of its own. The one message that it publishes, below
``{prefix}/{instance}/doctor/``, is not retained.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Mapping
from typing import Any

import aiomqtt
from aiomqtt import ProtocolVersion
from msgspec import Struct
from paho.mqtt import client as paho

from correlator.doctor.check import Check, failure, ok, warning
from correlator.settings import Mqtt
from correlator.sinks.broker import LOST, UNSUPPORTED_VERSION, Client
from correlator.sinks.topics import Topics
from correlator.tls import client_context

LOGIN, ACL = "broker.login", "broker.acl"

CONNECT_WITHIN = 10.0
CALL_WITHIN = 5.0
HEARD_WITHIN = 3.0
"""Seconds for our own message to come back."""

QUIET_AFTER, QUIET_WITHIN = 0.5, 10.0
"""All retained messages have come when none comes for so long; at most so long is waited."""

MAX_TOPICS = 50_000

_NOT_LET_IN = (4, 5, 134, 135)
"""CONNACK codes for a wrong name or password, and for one that may not: of MQTT 3.1.1, and of MQTT 5."""

_REFUSES = 0x80


class Found(Struct, frozen=True):
    """`retained`: topic → payload, of every instance's status and of our own jobs and external IDs."""

    checks: tuple[Check, ...]
    retained: Mapping[str, bytes] = {}
    version: str = ""


class _Guest(Client):
    """A connection that remembers what the broker said of itself."""

    retains = True
    refused = ""

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        self.retains = bool(getattr(properties, "RetainAvailable", 1))
        super()._on_connect(client, userdata, flags, reason_code, properties)


class Tried(Struct, frozen=True):
    """What a broker let us do. `refused`: its word against our message; `denied`: the filters it refused."""

    protocol: str
    refused: str = ""
    heard: bool = True
    denied: tuple[str, ...] = ()
    retains: bool = True
    status: bool = True
    """Whether the daemon's own status, or anything else of ours, is retained there and could be read."""


async def look(settings: Mqtt, *, running: bool) -> Found:
    """`running`: whether a daemon says that it is connected there."""
    url = settings.url
    if url is None:
        return Found((ok(LOGIN, "mqtt.url is empty: no broker is told anything"),))
    began = time.monotonic()
    try:
        client, protocol = await _connect(settings)
    except (*LOST, ValueError) as error:
        return Found((judge_login(settings, error),))
    took = (time.monotonic() - began) * 1000
    who = settings.username or "nobody in particular"
    login = ok(LOGIN, f"{url} as {who}, MQTT {protocol}, in {took:.0f} ms")
    try:
        tried, retained = await _try(settings, client, protocol)
    except LOST as error:
        return Found((login, judge_lost(settings, error)))
    finally:
        with contextlib.suppress(*LOST, asyncio.TimeoutError):
            async with asyncio.timeout(1.0):
                await client.__aexit__(None, None, None)
        client.drop()
    version = retained.pop(_VERSION, b"").decode("utf-8", "replace")
    if version:
        login = ok(LOGIN, f"{login.summary}; {version}")
    return Found((login, judge_acl(settings, tried, running=running)), retained, version)


_VERSION = "$SYS/broker/version"


async def _connect(settings: Mqtt) -> tuple[_Guest, str]:
    for version, name in ((ProtocolVersion.V5, "5"), (ProtocolVersion.V311, "3.1.1")):
        client = await _client(settings, version)
        try:
            async with asyncio.timeout(CONNECT_WITHIN):
                await client.open()
            return client, name
        except TimeoutError:
            raise aiomqtt.MqttError(f"no answer within {CONNECT_WITHIN:g} s") from None
        except aiomqtt.MqttCodeError as error:
            if version is ProtocolVersion.V311 or _code(error) not in UNSUPPORTED_VERSION:
                raise
    raise aiomqtt.MqttError("neither MQTT 5 nor 3.1.1 is spoken")


async def _client(settings: Mqtt, version: ProtocolVersion) -> _Guest:
    assert settings.url is not None
    tls = await asyncio.to_thread(client_context, settings.tls) if settings.url.tls else None
    client = _Guest(
        settings.url.host,
        settings.url.port,
        username=settings.username or None,
        password=settings.password.reveal() or None,
        identifier=f"correlator-doctor-{secrets.token_hex(4)}",
        protocol=version,
        timeout=math.inf,
        clean_session=None if version is ProtocolVersion.V5 else True,
        tls_context=tls,
        max_queued_outgoing_messages=0,
    )

    def refused(why: str) -> None:
        client.refused = why

    client.on_refused = refused
    return client


async def _try(settings: Mqtt, client: _Guest, protocol: str) -> tuple[Tried, dict[str, bytes]]:
    topics = Topics(f"{settings.prefix}/{settings.instance}")
    probe = f"{topics.root}/doctor/{secrets.token_hex(4)}"
    filters = [probe, f"{settings.prefix}/+/status", *topics.filters, _VERSION]
    retained: dict[str, bytes] = {}
    heard, told = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        async for message in client.messages:
            told.set()
            if str(message.topic) == probe:
                heard.set()
            elif message.retain and len(retained) < MAX_TOPICS:
                retained[str(message.topic)] = message.payload

    reading = asyncio.create_task(read(), name="doctor-mqtt")
    try:
        async with asyncio.timeout(2 * CALL_WITHIN + QUIET_WITHIN):
            granted = await client.subscribe([(f, 1) for f in filters])
            codes = [getattr(code, "value", code) for code in granted]
            await client.publish(probe, b"{}", qos=1, retain=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARD_WITHIN if not client.refused else QUIET_AFTER):
                    await heard.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET_WITHIN):
                    await _quiet(told)
    except TimeoutError:
        raise aiomqtt.MqttError("the broker stopped answering") from None
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    denied = tuple(f for f, code in zip(filters[1:-1], codes[1:], strict=False) if code >= _REFUSES)
    ours = any(topic.startswith(f"{topics.root}/") for topic in retained)
    return Tried(protocol, client.refused, heard.is_set(), denied, client.retains, ours), retained


async def _quiet(told: asyncio.Event) -> None:
    while True:
        told.clear()
        async with asyncio.timeout(QUIET_AFTER):
            await told.wait()


def judge_login(settings: Mqtt, error: BaseException) -> Check:
    words = f"{settings.url}: {str(error) or type(error).__name__}"
    user = settings.username
    if _code(error) in _NOT_LET_IN:
        if not user:
            mend = ["username, under [mqtt] in the configuration, and password_file or the credential mqtt-password"]
            return failure(LOGIN, words, ["the broker lets nobody in without a name"], mend)
        given = "a password was given" if settings.password else "no password was given"
        mend = [f"mosquitto_passwd /etc/mosquitto/passwd {user}", "systemctl reload mosquitto"]
        return failure(LOGIN, words, [f"the broker does not know {user} with this password; {given}"], mend)
    host, port = (settings.url.host, settings.url.port) if settings.url else ("", 0)
    if settings.url and settings.url.tls and "certificate" in str(error).lower():
        mend = [f"openssl s_client -connect {host}:{port} -showcerts </dev/null"]
        return failure(
            LOGIN, words, ["its certificate is not one that mqtt.tls.ca trusts, or is for another name"], mend
        )
    return failure(LOGIN, words, mend=["systemctl status mosquitto", f"nc -vz {host} {port}"])


def judge_lost(settings: Mqtt, error: BaseException) -> Check:
    """The connection ended while we published: a mosquitto that queues nothing answers so to what its ACL forbids."""
    lines = ["some brokers throw out who publishes what their ACL forbids; its log tells"]
    mend = ["journalctl -u mosquitto -n 50", *_allowing(settings)]
    return failure(ACL, f"the broker ended the connection: {str(error) or type(error).__name__}", lines, mend)


def _allowing(settings: Mqtt) -> list[str]:
    """What an ACL has to say for the daemon."""
    where = "   (in the acl_file of the broker)"
    topic = f"topic readwrite {settings.prefix}/{settings.instance}/#"
    user = settings.username
    return [*([f"user {user}{where}", topic] if user else [topic + where]), "systemctl reload mosquitto"]


def judge_acl(settings: Mqtt, tried: Tried, *, running: bool) -> Check:
    root = f"{settings.prefix}/{settings.instance}"
    mend = _allowing(settings)
    if tried.refused:
        return failure(ACL, f"may not publish below {root}: {tried.refused}", mend=mend)
    if not tried.heard and tried.protocol != "5" and not tried.status:
        lines = ["MQTT 3.1.1 does not tell whether a message was taken: either publishing or reading is forbidden"]
        return failure(ACL, f"a message published below {root} does not come back", lines, mend)
    if not tried.retains:
        lines = ["who connects later would not be told how the jobs are"]
        return failure(
            ACL, "the broker keeps no retained messages", lines, ["retain_available true   (in mosquitto.conf)"]
        )
    if tried.denied or not (tried.heard or tried.status):
        lines = ["what an earlier run left there cannot be removed: readers would see jobs that are gone"]
        return warning(ACL, f"may publish, but not read below {root}", lines, mend)
    if running and not tried.status:
        lines = ["the daemon says that it is connected, yet its status is not retained: is this the same broker?"]
        return warning(ACL, f"{root}/status holds nothing", lines, ["journalctl -u correlator -n 50"])
    return ok(ACL, f"may publish and read below {root}")


def _code(error: BaseException) -> int | None:
    rc = getattr(error, "rc", None)
    value = getattr(rc, "value", rc)
    return value if isinstance(value, int) else None
