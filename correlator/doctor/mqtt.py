"""Checks of the MQTT broker: login, permission to publish and to subscribe, and retained messages of earlier runs.

The checks use a client ID of their own, so that the daemon's session is not taken over. They publish one message, below
``{prefix}/{instance}/doctor/``, and with Home Assistant an empty one for a device of no VM; neither is retained.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from shlex import quote

import aiomqtt
import msgspec
from msgspec import Struct

from correlator.config.schema import Mqtt
from correlator.config.values import bracketed, is_loopback
from correlator.doctor.report import Check, failure, listeners, ok, some, warning
from correlator.sinks.mqtt import home_assistant
from correlator.sinks.mqtt.connection import (
    DEFAULT,
    LOST,
    Closed,
    Connector,
    Foreign,
    MqttClient,
    MqttTimings,
    Unanswered,
    code_of,
    describe_reason,
)
from correlator.sinks.mqtt.topics import MqttMessage, Topics
from correlator.tasks import quiet, set_within

LOGIN, ACL, RETAINED = "broker.login", "broker.acl", "broker.retained"

CALL_WITHIN = 5.0
QUIET_WITHIN = 10.0
"""Seconds to wait at most for retained messages."""

MAX_TOPICS, MAX_BYTES = 50_000, 16 * 1024 * 1024
"""Retained topics that are judged, and bytes of their names and payloads."""

_NOT_AUTHORIZED = (4, 5, 134, 135)
"""CONNACK codes "bad user name or password" and "not authorized", of MQTT 3.1.1 and of MQTT 5."""

_REFUSES = 0x80
_VERSION = "$SYS/broker/version"


class BrokerTimings(Struct, frozen=True):
    """Seconds. `echo_within`: until the published message must come back. `quiet_after`: without a message, after which
    all retained ones have arrived.
    """

    connection: MqttTimings = DEFAULT
    echo_within: float = 3.0
    quiet_after: float = 0.5


PATIENT = BrokerTimings()


class BrokerFindings(Struct, frozen=True):
    """`retained`: topic → payload, for the status of every instance and for jobs and external IDs of this instance."""

    checks: tuple[Check, ...]
    retained: Mapping[str, bytes] = {}
    version: str = ""


class Tried(Struct, frozen=True):
    """What the broker allowed. `refused`: its error for the published message; `denied`: the filters it refused."""

    protocol: str
    refused: str = ""
    received: bool = True
    denied: tuple[str, ...] = ()
    retains: bool = True
    status: bool = True
    """Whether a retained message of this instance, such as its status, was received."""


async def inspect(
    settings: Mqtt, *, running: bool, timings: BrokerTimings = PATIENT, connecting: type[Connector] = Connector
) -> BrokerFindings:
    """Run the checks of the broker. `running`: whether the daemon reports that it is connected to it.

    `connecting`: makes the connector.
    """
    url = settings.url
    if url is None:
        return BrokerFindings((ok(LOGIN, "mqtt.url is empty: nothing is published"),))
    refusals: list[str] = []
    own_id = replace(settings, client_id=f"correlator-doctor-{secrets.token_hex(4)}")
    connector = connecting(own_id, timings.connection, refusals.append)
    login: Check | None = None
    began = time.monotonic()
    try:
        # With a last will, like the daemon's: some brokers refuse it. This one would leave nothing.
        probe = f"{settings.root}/doctor/{secrets.token_hex(4)}"
        async with connector.connection(lambda: MqttMessage(probe, b"")) as client:
            took = (time.monotonic() - began) * 1000
            user = settings.username or "an anonymous client"
            login = ok(LOGIN, f"{url} as {user}, MQTT {connector.version}, in {took:.0f} ms")
            tried, retained = await _try(settings, client, connector.version, probe, refusals, timings)
    except (*LOST, ValueError) as error:
        return BrokerFindings(
            (judge_login(settings, error),) if login is None else (login, judge_lost(settings, error))
        )
    version = retained.pop(_VERSION, b"").decode("utf-8", "replace")
    if version:
        login = ok(LOGIN, f"{login.summary}; {version}")
    if settings.password and not url.tls and not is_loopback(url.host):
        words = f"{login.summary}, not encrypted: the password can be read on the network"
        login = warning(LOGIN, words, fix=[f'mqtt.url = "mqtts://{bracketed(url.host)}:8883"'])
    return BrokerFindings((login, judge_acl(settings, tried, running=running)), retained, version)


async def _try(
    settings: Mqtt,
    client: MqttClient,
    protocol: str,
    probe: str,
    refusals: Sequence[str],
    timings: BrokerTimings = PATIENT,
) -> tuple[Tried, dict[str, bytes]]:
    """Publish to `probe`, subscribe and read. The client adds to `refusals` why the broker refuses a message."""
    topics = Topics(settings.root)
    filters = [probe, f"{settings.prefix}/+/status", *topics.filters, _VERSION]
    if settings.home_assistant:
        filters[-1:-1] = [topics.devices, home_assistant.STATUS]
    retained: dict[str, bytes] = {}
    room = MAX_BYTES
    received, arrived = asyncio.Event(), asyncio.Event()

    def on_message(topic: str, payload: bytes, is_retained: bool) -> None:
        nonlocal room
        arrived.set()
        if topic == probe:
            received.set()
        elif is_retained and len(retained) < MAX_TOPICS:
            kept = b"" if topics.key(topic) is not None else payload  # of jobs only the topics are judged
            if (size := len(topic) + len(kept)) <= room:
                room -= size
                retained[topic] = kept

    reading = asyncio.create_task(client.read(on_message), name="doctor-mqtt")
    try:
        async with asyncio.timeout(2 * CALL_WITHIN + QUIET_WITHIN):
            granted = await client.subscribe([(f, 0) for f in filters])
            codes = [getattr(code, "value", code) for code in granted]
            await client.publish(probe, b"{}", qos=1, retain=False)
            if settings.home_assistant:  # An empty message removes a device. No VM has this one: `_` begins an escape.
                await client.publish(topics.devices.replace("+", "doctor_"), b"", qos=1, retain=False)
            await set_within(received, timings.quiet_after if refusals else timings.echo_within)
            await quiet(arrived, timings.quiet_after, QUIET_WITHIN)
    except TimeoutError:
        raise aiomqtt.MqttError("the broker stopped answering") from None
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    denied = tuple(f for f, code in zip(filters[1:-1], codes[1:], strict=False) if code >= _REFUSES)
    ours = any(topic.startswith(f"{topics.root}/") for topic in retained)
    refused = refusals[-1] if refusals else ""
    return Tried(protocol, refused, received.is_set(), denied, client.retain_available, ours), retained


def judge_login(settings: Mqtt, error: BaseException) -> Check:
    words = f"{settings.url}: {str(error) or type(error).__name__}"
    user = settings.username
    if isinstance(error, Foreign) and settings.url is not None:
        return failure(LOGIN, words, fix=[listeners(settings.url.port)])
    if code_of(error) in _NOT_AUTHORIZED:
        if not user:
            fix = [
                "read -rsp 'Password of correlator at the broker: ' PASSWORD",
                "printf '%s\\n' \"$PASSWORD\" | install --mode=600 /dev/stdin /etc/correlator/mqtt-password",
                'mqtt.username = "correlator"',
            ]
            return failure(LOGIN, words, ["The broker does not accept anonymous clients."], fix)
        given = "a password was given" if settings.password else "no password was given"
        fix = [f"mosquitto_passwd /etc/mosquitto/passwd {user}", "systemctl reload mosquitto"]
        return failure(LOGIN, words, [f"The broker does not know {user} with this password; {given}."], fix)
    host, port = (settings.url.host, settings.url.port) if settings.url else ("", 0)
    if settings.url and settings.url.tls and "certificate" in str(error).lower():
        fix = [f"openssl s_client -connect {host}:{port} -showcerts </dev/null"]
        return failure(LOGIN, words, ["Its certificate is not trusted by mqtt.tls.ca, or is for another name."], fix)
    lines = [f"On {host}: is the broker running, and may this host connect to port {port}?"]
    fix = [f"nc -vz {quote(host)} {port}"]
    if isinstance(error, (Unanswered, aiomqtt.MqttCodeError)):
        lines = ["The broker runs; its log says why. It may expect TLS there (mqtts://), or another mqtt.version."]
        fix = ["journalctl -u mosquitto -n 50"]
    elif is_loopback(host):
        lines, fix = [], ["systemctl start mosquitto", "systemctl status mosquitto"]
    return failure(LOGIN, words, lines, fix)


def judge_lost(settings: Mqtt, error: BaseException) -> Check:
    """The connection ended during the publication: mosquitto without a queue does so if its ACL forbids the topic."""
    lines = ["Some brokers disconnect a client that publishes what their ACL forbids. See the broker's log."]
    fix = ["journalctl -u mosquitto -n 50", *_allowing(settings)]
    words = describe_reason(error.reason) if isinstance(error, Closed) else str(error) or type(error).__name__
    return failure(ACL, f"the broker ended the connection: {words}", lines, fix)


def _allowing(settings: Mqtt) -> list[str]:
    """Return the commands that add the daemon's topics to the ACL."""
    lines = [f"user {settings.username}"] if settings.username else []
    lines.append(f"topic readwrite {settings.root}/#")
    if settings.home_assistant:
        lines += [f"topic readwrite {Topics(settings.root).devices}", f"topic read {home_assistant.STATUS}"]
    file = "$(sed --quiet 's/^acl_file //p' /etc/mosquitto/mosquitto.conf /etc/mosquitto/conf.d/*.conf)"
    written = f"printf '%s\\n' {' '.join(map(quote, lines))}"
    # In an ACL file, lines before the first user apply to anonymous clients.
    first = quote(r"1i " + r"\n".join(lines))
    add = f'{written} >>"{file}"' if settings.username else f'sed --in-place {first} "{file}"'
    return [add, "systemctl reload mosquitto"]


def judge_acl(settings: Mqtt, tried: Tried, *, running: bool) -> Check:
    root, fix = settings.root, _allowing(settings)
    if settings.home_assistant:
        root += f" and {Topics(root).devices}"
    if tried.refused:
        return failure(ACL, f"may not publish below {root}: {tried.refused}", fix=fix)
    if not tried.received and tried.protocol != "5" and not tried.status:
        lines = ["MQTT 3.1.1 does not report a refused message: either publishing or subscribing is forbidden."]
        return failure(ACL, f"a message published below {root} does not come back", lines, fix)
    if not tried.retains:
        lines = ["A client that connects later would not receive the state of the jobs."]
        return failure(
            ACL,
            "the broker keeps no retained messages",
            lines,
            ["sed --in-place '/^retain_available/d' /etc/mosquitto/mosquitto.conf", "systemctl restart mosquitto"],
        )
    if tried.denied or not (tried.received or tried.status):
        lines = ["The daemon cannot remove messages of earlier runs: subscribers would see jobs that no longer exist."]
        return warning(ACL, f"may publish, but not read below {root}", lines, fix)
    if running and not tried.status:
        lines = ["The daemon reports that it is connected, but its status is not retained. Is this the same broker?"]
        return warning(ACL, f"{root}/status holds nothing", lines, ["journalctl -u correlator -n 50"])
    return ok(ACL, f"may publish and read below {root}")


def job_ids(settings: Mqtt, retained: Mapping[str, bytes]) -> list[str]:
    """Return the jobs whose state is retained for this instance."""
    topics = Topics(settings.root)
    keys = (topics.key(topic) for topic in retained)
    return [key.name for key in keys if key is not None and key.kind == "state"]


def judge_retained(settings: Mqtt, retained: Mapping[str, bytes], unknown: Sequence[str] | None) -> Check:
    """Judge retained topics. `unknown`: jobs of ours that no table has; None if the tables were not queried."""
    detail = []
    others = _states(settings, retained)
    gone = sorted(name for name, state in others.items() if state == "offline" and name != settings.instance)
    fix = [
        clearing(settings, f"{settings.prefix}/{name}/#", Topics(f"{settings.prefix}/{name}").devices) for name in gone
    ]
    if gone:
        detail.append(f"offline, and not ours: {some(gone)}; a renamed instance leaves all its jobs")
    if unknown:
        detail.append(f"{len(unknown)} jobs of our instance that no table has: {some(unknown)}")
        detail.append("The daemon removes them when it next connects to the broker.")
        fix.append(clearing(settings, f"{settings.root}/job/{unknown[0] if len(unknown) == 1 else '+'}/state"))
    if detail:
        return warning(RETAINED, "the broker holds obsolete retained topics", detail, fix)
    online = sorted(name for name, state in others.items() if state != "offline" and name != settings.instance)
    notes = [f"other instances: {some(online)}"] if online else []
    if unknown is None:
        notes.append("The tables could not be queried for its jobs.")
    return ok(RETAINED, f"{len(job_ids(settings, retained))} jobs of ours, and no obsolete topic", notes)


def clearing(settings: Mqtt, *topics: str) -> str:
    """Return the command that removes the retained messages under `topics`. No argument of a program is a password."""
    assert settings.url is not None
    words = ["mosquitto_sub", "-h", quote(settings.url.host), "-p", str(settings.url.port)]
    if settings.url.tls:
        ca = settings.tls.ca if settings.tls is not None else None
        words += ["--cafile", quote(str(ca))] if ca else ["--tls-use-os-certs"]
    if settings.username:
        words += ["-u", quote(settings.username)]
    # Any client that may publish can choose the name of an instance, so it must be quoted.
    words += [word for topic in topics for word in ("-t", quote(topic))]
    command = " ".join([*words, "--remove-retained", "--retained-only", "-W", "5"])
    if not settings.username:
        return command
    # mosquitto_sub takes it from its file of options.
    password = f"$(cat {quote(str(settings.password_file))})" if settings.password_file else "$PASSWORD"
    options = f'printf -- \'-P %s\\n\' "{password}" >"$XDG_CONFIG_HOME/mosquitto_sub"'
    folder = 'export XDG_CONFIG_HOME="$(mktemp -d)"; trap \'rm -r "$XDG_CONFIG_HOME"\' EXIT'
    return f"({folder}; {options}; {command})"


def _states(settings: Mqtt, retained: Mapping[str, bytes]) -> dict[str, str]:
    """Return instance → the state that it published."""
    found = {}
    for topic, payload in retained.items():
        match topic.removeprefix(f"{settings.prefix}/").split("/"):
            case [instance, "status"] if payload:
                try:
                    state = msgspec.json.decode(payload)
                except msgspec.DecodeError:
                    continue
                if isinstance(state, dict):
                    found[instance] = str(state.get("state"))
    return found
