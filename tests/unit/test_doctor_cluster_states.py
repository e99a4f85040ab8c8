"""What the doctor and a gateway's list of appliances say of each state of a cluster."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from correlator import counterpart
from correlator.cluster import keys, streams
from correlator.cluster.connection import Refused
from correlator.cluster.received import Alive, Parser, Unreadable
from correlator.config.schema import Cluster
from correlator.doctor import cluster, daemon, database
from correlator.doctor.report import Check
from correlator.errors import OtherDatabase
from correlator.gateway.fleet import Fleet
from correlator.gateway.stream import StoredMessage
from correlator.jobs.index import Index
from correlator.model.persisted import Cursor
from correlator.sinks.event_log import EventLog
from correlator.state.checkpoint import StoredForecasts
from correlator.state.saver import Saver
from tests.support.paths import DATA

LINES = [line.split(" | ") for line in (DATA / "cluster_states.txt").read_text().splitlines()]
WORDS = {state: (check, sentence, error) for state, check, sentence, error in LINES}
FULL = {"unwritten_seconds": 42.0, "write_error": "insufficient storage resources"}
SLOW = {"unwritten_seconds": 42.0}
NAMESAKE = counterpart.other_database_error("dc1", "host-2")
AT = 1_758_553_933_000_000


def garbage() -> Check:
    """Return the doctor's check of readiness after a message that is no document."""
    parser = Parser()
    parser.note(keys.job("dc1", "a"), Unreadable("not JSON"))
    return daemon.judge({"ready": True, "parts": {"cluster": parser.describe()}}, {"live": True}, None)


def degraded(error: str, part: str = "cluster") -> Check:
    return daemon.judge({"ready": True, "parts": {part: {"ok": False, "error": error}}}, {"live": True}, None)


def failing(*, on_disk: bool = False) -> str:
    """What readiness says while the checkpoint cannot be written."""

    def write(_: object) -> None:
        if on_disk:
            raise sqlite3.OperationalError("disk I/O error")

    async def refuse(*_: object, **__: object) -> None:
        raise Refused(str(FULL["write_error"]))

    async def saved() -> str:
        file, index = SimpleNamespace(write=write), Index()
        stream = None if on_disk else SimpleNamespace(write=refuse, writable=True)
        saver = Saver(
            cast(Any, file), index, StoredForecasts(index.forecasts), Cursor, EventLog(), stream=cast(Any, stream)
        )
        await saver.begin()
        return str(saver.describe()["error"])

    return asyncio.run(saved())


def never_taking_over() -> Check:
    part = {"ok": False, "other_database": True, "error": str(OtherDatabase())}
    return daemon.judge({"ready": False, "parts": {"cluster": part}}, {"live": True}, None)


def alive_at(instance: str, **members: Any) -> cluster.AliveKey:
    value = Alive(**{"holder": "correlator-1", "database": "live", **members})
    return cluster.AliveKey(instance, True, "now", value)


def lease(**members: Any) -> Check:
    return cluster.judge_lease("dc1", alive_at("dc1", **members), {})


def with_versions(*versions: str) -> Check:
    return cluster.judge_appliances([alive_at(f"dc{n}", version=v) for n, v in enumerate(versions, 1)])


def three_replicas(**clusters: Any) -> dict[str, Any]:
    """What JetStream reports of streams with three replicas, with another `cluster` of some."""
    return {
        name: {"config": wanted, "state": {"bytes": 1, "messages": 1}, "cluster": clusters.get(name, {"leader": "n1"})}
        for name, wanted in streams.wanted(3).items()
    }


def with_a_frozen_server() -> Check:
    replicas = {"leader": "n1", "replicas": [{"name": "n2", "current": True}, {"name": "n3", "current": False}]}
    return cluster.judge_streams(three_replicas(**{keys.STATE: replicas}), Cluster(replicas=3), gateway=False)


WITHOUT_MAJORITY = three_replicas(**{name: {"leader": ""} for name in (keys.STATE, keys.ALIVE)})

AWAY = {"away": "no answer within 5 s ($JS.API.STREAM.INFO.KV_cor)"}

STATES: dict[str, Callable[[], tuple[Check, dict[str, Any] | None]]] = {
    "a document is garbage": lambda: (garbage(), {"garbage": True}),
    "the alive key is garbage": lambda: (
        cluster.judge_lease("dc1", cluster.AliveKey("dc1", True, "now", None), {}),
        None,
    ),
    "the link is slow": lambda: (lease(**SLOW), SLOW),
    "the disk of NATS is full": lambda: (lease(**FULL), FULL),
    "the checkpoint cannot be written to NATS": lambda: (lease(warning=failing()), {"warning": failing()}),
    "the checkpoint cannot be written to the disk": lambda: (
        degraded(failing(on_disk=True), "checkpoint"),
        {"warning": failing(on_disk=True)},
    ),
    "most servers of NATS are away: its streams": lambda: (
        cluster.judge_streams(WITHOUT_MAJORITY, Cluster(replicas=3), gateway=False),
        AWAY,
    ),
    "most servers of NATS are away: its leases": lambda: (
        cluster.without_majority(cluster.LEASE, cluster.leaderless(WITHOUT_MAJORITY)),
        AWAY,
    ),
    "one of three NATS servers hangs": lambda: (with_a_frozen_server(), {}),
    "NATS has lost its store": lambda: (
        cluster.judge_streams(dict.fromkeys(streams.wanted(1)), Cluster(), gateway=False),
        {},
    ),
    "the clock of a collector is off": lambda: (database.judge_clock(-300.0, 0.1), {}),
    "two appliances have one name: the active one": lambda: (degraded(NAMESAKE), {"warning": NAMESAKE}),
    "two appliances have one name: seen by a gateway": lambda: (
        cluster.judge_appliances([alive_at("dc1", warning=NAMESAKE)]),
        {"warning": NAMESAKE},
    ),
    "two appliances have one name: the other one": lambda: (never_taking_over(), {"warning": NAMESAKE}),
    "collectors of two versions": lambda: (with_versions("0.1.0", "0.2.0"), {}),
    "a gateway has not read the stream": lambda: (
        cluster.judge_lag("correlator_cluster_connected 1.0\n", gateway=True),
        {},
    ),
}
"""The sentence of a check, and what the alive key has; None: what cannot be read. `away`: why it is not read."""


def shown(alive: dict[str, Any] | None) -> str:
    """What a gateway's list has as the error of the appliance."""
    members = dict(alive or {})
    away = f"the stream is being read: {members.pop('away')}" if "away" in members else None
    gateway = Fleet(lambda _: None, listening=lambda: (0.0, math.inf), cluster_error=lambda: away)
    gateway.reset("epoch-1")
    gateway.synced()
    if members.get("garbage"):
        gateway.read([StoredMessage(keys.job("dc1", "a"), 1, AT, b"no JSON", None)])
    value = {"database": "live", **{name: one for name, one in members.items() if name != "garbage"}}
    payload = msgspec.json.encode(value) if alive is not None else b"no JSON"
    gateway.read_alive([StoredMessage(keys.alive("dc1"), 1, AT, payload, None)])
    (found,) = gateway.describe()
    return str(found["error"] or "–")


@pytest.mark.parametrize("state", STATES)
def test_each_state_of_a_cluster_has_a_sentence_of_the_doctor_and_of_the_gateway(state: str):
    check, alive = STATES[state]()
    error = shown(alive)
    assert WORDS[state] == (f"`{check.name}`", check.summary, "the same" if error in check.summary else error)
    assert check.status != "ok" or state == "collectors of two versions"


def test_the_words_are_of_these_states_alone():
    assert WORDS.keys() == STATES.keys()
