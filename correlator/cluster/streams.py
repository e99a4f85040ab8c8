"""The streams of a cluster: their settings, the check of them, and how they are created and changed.

Problem. Whoever may change a stream may empty it (`max_msgs`), freeze it (`sealed`), or have NATS write below the name
of another appliance (`republish`), and NATS has no narrower permission. So neither a collector nor a gateway may.

Model. `correlator cluster create` calls `create`, and logs in as a NATS user of its own: a missing stream is created,
one whose settings differ is changed, and one with the wanted settings is left as it is. Collectors and
gateways only ask for the settings (`StreamCheck`), and say what is missing or foreign. Foreign is each setting that
differs from what `create` makes, whichever it is, except those that an operator may choose (`FREE`). Replicas are only
added: a configuration that names fewer does not take them from the others.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from correlator.cluster import keys
from correlator.cluster.connection import ANSWER_WITHIN, ClusterUnavailable, Connection, Refused
from correlator.cluster.received import StreamInfo

log = logging.getLogger(__name__)

MARKER_TTL = 24 * 3600
"""Seconds that the marker of a removed job stays: a client may resume from a position of that age."""

EVENTS_FOR = 7 * 24 * 3600
DUPLICATES_WITHIN = 600
"""Seconds that events stay, and that NATS drops a second event with the same ID."""

MAX_BYTES = 4_000_000_000
CHECKPOINT_BYTES = 4_000_000_000
EVENTS_BYTES = 2_000_000_000
ALIVE_BYTES = 4_000_000
"""Bytes of new streams, which NATS reserves. Beyond them a job or checkpoint is refused; old events are dropped."""

COMMAND = "correlator cluster create"
"""What creates and changes the streams."""

FREE = frozenset({"name", "description", "metadata", "placement", "compression", "max_bytes"})
"""Settings that an operator may choose, e.g. by `nats stream edit`; of the events the age too."""

CHECK_EVERY = 10.0
CHECK_AGAIN_EVERY = 1.0
"""Seconds between two checks, and between two while something is missing or foreign."""

MAX_VALUE = 300_000
"""Bytes of one message of a job: a document of 256 kB and its headers."""

NO_STREAM = 10059
NAME_IN_USE = 10058

_NANO = 1_000_000_000

_DEFAULTS: Mapping[str, Any] = {"duplicate_window": 120 * _NANO}
"""Defaults of NATS that are not empty."""

_EMPTY: tuple[Any, ...] = (None, False, 0, -1, "", "none", "default", [], {})
"""How NATS writes that a setting is not made."""


def wanted(replicas: int) -> dict[str, dict[str, Any]]:
    """Return the settings of each stream by name, as JetStream's API has them.

    None allows the header Nats-Rollup, by which a writer of one subject may remove all messages of a stream.
    """
    bucket = {
        "retention": "limits",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "deny_delete": True,
        "allow_direct": True,
        "storage": "file",
        "num_replicas": replicas,
    }
    return {
        keys.STATE: bucket
        | {
            "subjects": ["$KV.cor.>"],
            "allow_atomic": True,
            "allow_msg_ttl": True,
            "max_bytes": MAX_BYTES,
            "max_msg_size": MAX_VALUE,
        },
        # A key is written twice a second, so no write waits for the disk. A single server forgets a stream in memory.
        keys.ALIVE: bucket
        | {"subjects": ["$KV.cor_alive.>"], "max_bytes": ALIVE_BYTES}
        | ({"storage": "file", "persist_mode": "async"} if replicas == 1 else {"storage": "memory"}),
        keys.CHECKPOINT: bucket
        | {
            "subjects": ["$KV.cor_checkpoint.>"],
            "allow_atomic": True,
            "allow_msg_ttl": True,
            "max_bytes": CHECKPOINT_BYTES,
        },
        keys.EVENTS: {
            "subjects": ["cor.v1.*.event.>", "cor.v1.*.owner"],
            "allow_atomic": True,
            "retention": "limits",
            "discard": "old",
            "storage": "file",
            "num_replicas": replicas,
            "max_age": EVENTS_FOR * _NANO,
            "duplicate_window": DUPLICATES_WITHIN * _NANO,
            "max_bytes": EVENTS_BYTES,
            "allow_direct": True,
        },
    }


class Setting(Struct, frozen=True):
    """A setting of a stream that differs from what `create` makes."""

    name: str
    found: Any
    wanted: Any

    def __str__(self) -> str:
        return f"{self.name} is {_text(self.found)}, not {_text(self.wanted)}"


def _same(one: Any, other: Any) -> bool:
    return bool(one == other or (one in _EMPTY and other in _EMPTY))


def _text(value: Any) -> str:
    return "unset" if value in _EMPTY else str(value)


def foreign(name: str, found: Mapping[str, Any], replicas: int = 1) -> list[Setting]:
    """Return each setting of a stream that is not as `create` makes it with so many replicas. `found`: all it has."""
    ours = {**_DEFAULTS, **wanted(max(replicas, found.get("num_replicas", 1)))[name]}
    free = FREE | {"max_age"} if name == keys.EVENTS else FREE
    return [
        Setting(key, found.get(key), ours.get(key))
        for key in sorted({*found, *ours} - free)
        if not _same(found.get(key, _DEFAULTS.get(key)), ours.get(key))
    ]


def problem(infos: Mapping[str, Mapping[str, Any] | None], replicas: int = 1) -> str | None:
    """Say which streams are missing and which settings are foreign, and what repairs that. None: nothing is wrong.

    `infos`: what JetStream reports of each; None: there is no such stream.
    """
    if missing := [name for name, found in infos.items() if found is None]:
        what = f"the stream {missing[0]} does" if len(missing) == 1 else f"the streams {', '.join(missing)} do"
        return f"{what} not exist: create with {COMMAND}"
    changed = {name: foreign(name, found["config"], replicas) for name, found in infos.items() if found is not None}
    words = [f"{name}: {', '.join(map(str, settings))}" for name, settings in changed.items() if settings]
    return f"settings of streams are foreign: {'; '.join(words)}; reset with {COMMAND}" if words else None


async def infos(connection: Connection, *, within: float = ANSWER_WITHIN) -> dict[str, dict[str, Any] | None]:
    """Return what the API reports of each stream (`info`). Raises: `Refused`, `ClusterUnavailable`."""
    names = list(wanted(1))
    found = await asyncio.gather(*(info(connection, name, within=within) for name in names))
    return dict(zip(names, found, strict=True))


class StreamCheck:
    """Asks again and again whether the streams are there and as `create` makes them. It changes nothing.

    `replicas`: how many this process expects at least.
    """

    def __init__(self, connection: Connection, replicas: int = 1) -> None:
        self._connection = connection
        self._replicas = replicas
        self.problem: str | None = None
        """What was wrong when NATS last answered."""

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            try:
                self._note(problem(await infos(self._connection), self._replicas))
            except (ClusterUnavailable, Refused) as error:
                log.debug("the streams cannot be checked: %s", error)
            await asyncio.sleep(CHECK_EVERY if self.problem is None else CHECK_AGAIN_EVERY)

    def _note(self, found: str | None) -> None:
        if found != self.problem:
            log.log(logging.INFO if found is None else logging.WARNING, "%s", found or "all streams are as they should")
        self.problem = found

    def describe(self) -> dict[str, Any]:
        """Return members of the cluster's part of readiness: an error if there is one."""
        return {"ok": False, "error": self.problem} if self.problem and self._connection.connected else {}


class Made(Struct, frozen=True):
    """What `create` did to one stream. `changed`: the settings that were foreign; None: it was created.

    `refusal`: why they still are.
    """

    name: str
    changed: list[Setting] | None
    refusal: str | None = None


async def create(connection: Connection, replicas: int) -> list[Made]:
    """Create the streams that are missing, and reset the foreign settings of the others.

    May be called twice at once. Collectors write their signs of life again within a second, so their stream is made
    anew if NATS cannot change it.

    Raises: `Refused` if NATS creates no stream, e.g. for lack of servers; `ClusterUnavailable`, also without the right.
    """
    made = []
    for name, ours in wanted(replicas).items():
        found = await info(connection, name)
        if found is None:
            await _create(connection, name, ours)
            made.append(Made(name, None))
            continue
        settings = foreign(name, found["config"], replicas)
        refusal = await _reset(connection, name, found["config"], settings, ours) if settings else None
        made.append(Made(name, settings, refusal))
    return made


async def _reset(
    connection: Connection,
    name: str,
    found: Mapping[str, Any],
    settings: list[Setting],
    ours: dict[str, Any],
) -> str | None:
    """Reset these settings of a stream. Returns why NATS refuses that, or None."""
    log.info("changing the stream %s: %s", name, ", ".join(map(str, settings)))
    kept = {key: value for key, value in found.items() if key not in {setting.name for setting in settings}}
    reset = {setting.name: setting.wanted for setting in settings if setting.wanted is not None}
    try:
        await connection.api(f"STREAM.UPDATE.{name}", kept | reset)
    except Refused as error:
        if name != keys.ALIVE:
            return str(error)
        await connection.api(f"STREAM.DELETE.{name}")
        await _create(connection, name, ours)
    return None


async def info(connection: Connection, name: str, *, within: float = ANSWER_WITHIN) -> dict[str, Any] | None:
    """Return what the API reports of a stream (`config`, `state`, `created`, `cluster`); None if there is none."""
    try:
        return await connection.api(f"STREAM.INFO.{name}", form=StreamInfo, within=within)
    except Refused as error:
        if error.code == NO_STREAM:
            return None
        raise


def is_leaderless(info: Mapping[str, Any] | None) -> bool:
    """True if no server leads a stream, as most of its servers are away. One server alone reports no `cluster`."""
    cluster = (info or {}).get("cluster") or {"leader": "itself"}
    return not cluster.get("leader")


def quorum_age(info: Mapping[str, Any] | None) -> float:
    """Return the seconds since enough servers to write last answered the leader of a stream; 0 for one server alone.

    Infinite if that is not known.
    """
    if info is None or is_leaderless(info):
        return math.inf
    replicas = (info.get("cluster") or {}).get("replicas") or ()
    unknown = [one.get("offline") or not one.get("active") for one in replicas]
    ages = sorted(math.inf if no else one["active"] / 1e9 for no, one in zip(unknown, replicas, strict=True))
    return ages[(len(ages) + 1) // 2 - 1] if ages else 0.0  # The leader is one of most servers itself.


async def _create(connection: Connection, name: str, settings: dict[str, Any]) -> None:
    log.info("creating the stream %s with %d replicas", name, settings["num_replicas"])
    try:
        await connection.api(f"STREAM.CREATE.{name}", {"name": name, **settings})
    except Refused as error:
        if error.code != NAME_IN_USE:  # Somebody else created it in this moment.
            raise
