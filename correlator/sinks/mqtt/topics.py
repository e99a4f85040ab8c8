"""The MQTT topics of one instance: their names, the keys behind the names, and the messages that go to them.

An ID, or the name of a VM, is one level of a topic, percent-encoded. The encoding has an inverse, so a topic that the
broker holds leads back to the job, external ID or VM that it belongs to.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, assert_never
from urllib.parse import quote, unquote

from msgspec import Struct

SPACING = 0.25
"""Minimum seconds between two states of one job: at most four states per second."""

LONGEST_LEVEL = 8_192
"""Maximum characters of a level that names a job, an ID or a VM: more than any of them takes (255 characters of an ID,
1,024 bytes of a name)."""

DISCOVERY = "homeassistant/device/{node_id}/{object_id}/config"
"""The topic of a device for Home Assistant. Its two IDs may have `A–Z a–z 0–9 _ -` only."""

_PLAIN = re.compile(r"[A-Za-z0-9._~-]*")
_MARKS = str.maketrans({".": "%2E", "_": "%5F", "~": "%7E"})


def escape(name: str) -> str:
    """Return an ID as one topic level, percent-encoded except for ``A–Z a–z 0–9 . _ ~ -``. See RFC 3986, 2.3."""
    return name if _PLAIN.fullmatch(name) else quote(name, safe="", errors="surrogatepass")


def unescape(level: str) -> str:
    """Return the ID of one topic level. Raises: UnicodeError if the bytes are not UTF-8."""
    return unquote(level, errors="surrogatepass")


def identifier(name: str) -> str:
    """Return a name as an ID for Home Assistant: as `escape`, but ``_`` begins an escape, also those of ``. _ ~``."""
    return escape(name).translate(_MARKS).replace("%", "_")


class TopicKey(Struct, frozen=True, gc=False):
    """A retained topic.

    `state`: the state of a job, by job ID. `ext`: the job that an external ID resolves to. `vm`: the newest job of the
    VM with this name; `discovery`: its device for Home Assistant. `marker`, without a name: that there are devices.
    The garbage collector does not visit it: one pass over the keys of 20,000 jobs would block the event loop for 50 ms.
    """

    kind: Literal["state", "ext", "vm", "discovery", "marker"]
    name: str = ""


class Topics(Struct, frozen=True):
    """The names of all topics. `root` is ``{prefix}/{instance}``."""

    root: str

    @property
    def status(self) -> str:
        return f"{self.root}/status"

    @property
    def index(self) -> str:
        return f"{self.root}/index"

    @property
    def filters(self) -> tuple[str, ...]:
        """The topic filters that match every `TopicKey` but those of devices."""
        return f"{self.root}/job/+/state", f"{self.root}/ext/+", f"{self.root}/vm/+", self.of(TopicKey("marker"))

    @property
    def devices(self) -> str:
        """The topic filter that matches the devices for Home Assistant."""
        return DISCOVERY.format(node_id=identifier(self.root), object_id="+")

    def of(self, key: TopicKey) -> str:
        level = escape(key.name)
        match key.kind:
            case "state":
                return f"{self.root}/job/{level}/state"
            case "ext" | "vm":
                return f"{self.root}/{key.kind}/{level}"
            case "discovery":
                return DISCOVERY.format(node_id=identifier(self.root), object_id=identifier(key.name))
            case "marker":
                return f"{self.root}/home_assistant"
            case kind:
                assert_never(kind)

    def event(self, job_id: str) -> str:
        return f"{self.root}/job/{escape(job_id)}/event"

    def key(self, topic: str) -> TopicKey | None:
        """Return the inverse of `of`, or None for a topic that this daemon would not write."""
        if len(topic) > len(self.root) + LONGEST_LEVEL + len(DISCOVERY):
            return None
        try:
            match topic.removeprefix(f"{self.root}/").split("/"):
                case ["job", level, "state"]:
                    key = TopicKey("state", unescape(level))
                case ["ext" | "vm" as kind, level]:
                    key = TopicKey(kind, unescape(level))
                case ["homeassistant", "device", _, level, "config"]:
                    key = TopicKey("discovery", unescape(level.replace("_", "%")))
                case ["home_assistant"]:
                    key = TopicKey("marker")
                case _:
                    return None
            return key if self.of(key) == topic else None
        except UnicodeError:
            return None


class MqttMessage(NamedTuple):
    """A message to publish. `expires`: it is of an ended job, and the broker should drop it after the retention."""

    topic: str
    payload: bytes
    retain: bool = True
    expires: bool = False
