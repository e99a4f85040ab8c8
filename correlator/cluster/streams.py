"""The streams of a cluster, and how they are created and updated.

`ensure` may be called by any collector at any time: a stream with the wanted settings is left as it is, another one is
updated, a missing one is created. Replicas are only added: a collector whose configuration names fewer does not take
them from the others. Two collectors that create the same stream at once both succeed. A setting that
NATS cannot change (the storage) is an error that names the stream.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from correlator.cluster import keys
from correlator.cluster.connection import ANSWER_WITHIN, Connection, Refused

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

AT_CREATION = frozenset({"max_bytes", "max_age"})
"""Settings that an operator may change later, e.g. by `nats stream edit`: an existing stream keeps them."""

MAX_VALUE = 300_000
"""Bytes of one message of a job: a document of 256 kB and its headers."""

NO_STREAM = 10059
NAME_IN_USE = 10058

_NANO = 1_000_000_000


def wanted(replicas: int) -> dict[str, dict[str, Any]]:
    """Return the settings of each stream by name, as JetStream's API has them."""
    bucket = {
        "retention": "limits",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "allow_rollup_hdrs": True,
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
            "subject_delete_marker_ttl": MARKER_TTL * _NANO,
            "max_bytes": MAX_BYTES,
            "max_msg_size": MAX_VALUE,
        },
        keys.ALIVE: bucket | {"subjects": ["$KV.cor_alive.>"], "storage": "memory", "max_bytes": ALIVE_BYTES},
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


async def ensure(connection: Connection, replicas: int) -> list[str]:
    """Create the streams that are missing, and update those whose settings differ. Returns the names of these.

    Raises: `Refused` if NATS refuses, e.g. for lack of servers or of the right, `ClusterUnavailable`.
    """
    changed = []
    for name, settings in wanted(replicas).items():
        found = await info(connection, name)
        if found is None:
            await _create(connection, name, settings)
        elif different := _different(found["config"], settings):
            log.info("updating the stream %s: %s", name, ", ".join(different))
            await connection.api(f"STREAM.UPDATE.{name}", found["config"] | different)
        else:
            continue
        changed.append(name)
    return changed


def _different(found: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that an existing stream is to get."""
    return {
        key: value
        for key, value in settings.items()
        if key not in AT_CREATION
        and found.get(key) != value
        and not (key == "num_replicas" and found.get(key, 1) > value)
    }


async def info(connection: Connection, name: str, *, within: float = ANSWER_WITHIN) -> dict[str, Any] | None:
    """Return what the API reports of a stream (`config`, `state`, `created`, `cluster`); None if there is none."""
    try:
        return await connection.api(f"STREAM.INFO.{name}", within=within)
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
        if error.code != NAME_IN_USE:  # Another collector created it in this moment.
            raise
