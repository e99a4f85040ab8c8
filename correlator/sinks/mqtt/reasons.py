"""MQTT reason codes in plain English: the name, what it means here, and what to do about it."""

from __future__ import annotations

from aiomqtt import MqttCodeError
from paho.mqtt.reasoncodes import ReasonCode

PACKET_TOO_LARGE = 0x95
RETAIN_NOT_SUPPORTED = 0x9A
QOS_NOT_SUPPORTED = 0x9B

_MEANINGS = {
    0x81: "a packet of this daemon was malformed, or the broker does not understand it; see the broker's log",
    0x82: "the broker reports that a packet violates the protocol; see the broker's log",
    0x86: "the broker does not know this user and password; set mqtt.username and mqtt.password_file",
    0x87: "this user may not do that; allow publishing and subscribing below mqtt.prefix and mqtt.instance there",
    0x88: "the broker is unavailable at the moment; see the broker's log",
    0x89: "the broker is overloaded; check its load and its limits",
    0x8A: "the broker has banned this client; see the broker's log",
    0x8B: "the broker is shutting down; the connection is tried again",
    0x8D: "the broker received nothing from this daemon for longer than the keep-alive; check the network between",
    0x8E: "another client has connected with the same client ID; give each its own mqtt.client_id",
    0x90: "the broker does not accept this topic; see its rules for topic names, and mqtt.prefix",
    0x93: "more messages were in flight than the broker accepts; brokers also count messages that they refused",
    0x95: "a message was larger than the broker accepts; raise its maximum packet size, or lower jobs.max_metadata",
    0x96: "messages arrive faster than the broker allows; raise its limit of messages per second",
    0x97: "a quota of the broker is used up, of messages, connections or storage; raise it there",
    0x98: "an administrator of the broker closed the connection",
    0x99: "the broker checks payloads and does not accept this one; see the broker's log",
    0x9A: "the broker keeps no retained messages; allow them there (mosquitto: retain_available true)",
    0x9B: "the broker accepts QoS 0 only; allow QoS 1 there (mosquitto: max_qos 1)",
    0x9C: "the broker asks to use another server; set mqtt.url to it",
    0x9D: "the broker has moved to another server for good; set mqtt.url to it",
    0x9F: "the broker limits how often clients connect; raise the limit there",
}


def describe_reason(reason: ReasonCode) -> str:
    """Return, for example, ``Receive maximum exceeded (0x93): more messages were …``."""
    meaning = _MEANINGS.get(reason.value)
    return f"{reason} (0x{reason.value:02X})" + (f": {meaning}" if meaning else "")


def describe_error(error: BaseException) -> str:
    """Return the same for an error that carries a reason code, or the text of any other error."""
    if isinstance(error, MqttCodeError) and isinstance(error.rc, ReasonCode):
        return describe_reason(error.rc)
    return str(error) or type(error).__name__


def code_of(error: BaseException) -> int | None:
    """Return the number of the code that an error carries; None for any other error."""
    if not isinstance(error, MqttCodeError):
        return None
    return error.rc.value if isinstance(error.rc, ReasonCode) else error.rc
