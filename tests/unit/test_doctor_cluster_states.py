"""What the doctor and a gateway's list of appliances say of each state of a cluster, as docs/doctor.md has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from correlator.cluster import keys, streams
from correlator.cluster.received import Alive, Parser, Unreadable
from correlator.config.cluster import Cluster
from correlator.doctor import cluster, cluster_lease, daemon, tables
from correlator.doctor.check import Check
from correlator.errors import OtherDatabase
from correlator.gateway.fleet import Fleet
from correlator.gateway.ordered_consumer import Stored
from correlator.sinks.cluster import standbys
from tests.support.markdown import read

FULL = {"unwritten_seconds": 42.0, "write_error": "insufficient storage resources"}
SLOW = {"unwritten_seconds": 42.0}
NAMESAKE = standbys._sentence("dc1", "host-2")
AT = 1_758_553_933_000_000


def garbage() -> str:
    """What readiness says after a document that is none."""
    parser = Parser()
    parser.note(keys.job("dc1", "a"), Unreadable("not JSON"))
    return str(parser.describe()["error"])


def degraded(error: str) -> Check:
    return daemon.judge({"ready": True, "parts": {"cluster": {"ok": False, "error": error}}}, {"live": True}, None)


def never_taking_over() -> Check:
    part = {"ok": False, "other_database": True, "error": str(OtherDatabase())}
    return daemon.judge({"ready": False, "parts": {"cluster": part}}, {"live": True}, None)


def alive_at(instance: str, **members: Any) -> cluster_lease.Alive:
    value = Alive(**{"holder": "correlator-1", "database": "live", **members})
    return cluster_lease.Alive(instance, True, "now", value)


def lease(**members: Any) -> Check:
    return cluster_lease.judge_lease("dc1", alive_at("dc1", **members), {})


def with_versions(*versions: str) -> Check:
    return cluster_lease.judge_appliances([alive_at(f"dc{n}", version=v) for n, v in enumerate(versions, 1)])


def with_a_frozen_server() -> Check:
    replicas = {"leader": "n1", "replicas": [{"name": "n2", "current": True}, {"name": "n3", "current": False}]}
    infos: dict[str, Any] = {
        name: {"config": wanted, "state": {"bytes": 1, "messages": 1}, "cluster": {"leader": "n1"}}
        for name, wanted in streams.wanted(3).items()
    }
    infos[keys.STATE]["cluster"] = replicas
    return cluster.judge_streams(infos, Cluster(replicas=3), gateway=False)


STATES: dict[str, Callable[[], tuple[Check, dict[str, Any] | None]]] = {
    "a document is garbage": lambda: (degraded(garbage()), {"garbage": True}),
    "the alive key is garbage": lambda: (
        cluster_lease.judge_lease("dc1", cluster_lease.Alive("dc1", True, "now", None), {}),
        None,
    ),
    "the link is slow": lambda: (lease(**SLOW), SLOW),
    "the disk of NATS is full": lambda: (lease(**FULL), FULL),
    "one of three NATS servers hangs": lambda: (with_a_frozen_server(), {}),
    "NATS has lost its store": lambda: (
        cluster.judge_streams(dict.fromkeys(streams.wanted(1)), Cluster(), gateway=False),
        {},
    ),
    "the clock of a collector is off": lambda: (tables.judge_clock(-300.0, 0.1), {}),
    "two appliances have one name: the active one": lambda: (degraded(NAMESAKE), {"warning": NAMESAKE}),
    "two appliances have one name: seen by a gateway": lambda: (
        cluster_lease.judge_appliances([alive_at("dc1", warning=NAMESAKE)]),
        {"warning": NAMESAKE},
    ),
    "two appliances have one name: the other one": lambda: (never_taking_over(), {"warning": NAMESAKE}),
    "collectors of two versions": lambda: (with_versions("0.1.0", "0.2.0"), {}),
    "a gateway has not read the stream": lambda: (
        cluster_lease.judge_lag("correlator_cluster_connected 1.0\n", gateway=True),
        {},
    ),
}
"""The sentence of a check, and what the alive key has; None: what cannot be read."""


def shown(alive: dict[str, Any] | None) -> str:
    """What a gateway's list has as the error of the appliance."""
    gateway = Fleet(lambda _: None, listens_since=lambda: 0.0)
    gateway.reset("epoch-1")
    gateway.synced()
    members = alive or {}
    if members.get("garbage"):
        gateway.read([Stored(keys.job("dc1", "a"), 1, AT, b"no JSON", None)])
    value = {"database": "live", **{name: one for name, one in members.items() if name != "garbage"}}
    payload = msgspec.json.encode(value) if alive is not None else b"no JSON"
    gateway.read_alive([Stored(keys.alive("dc1"), 1, AT, payload, None)])
    (found,) = gateway.describe()
    return str(found["error"] or "–")


def documented() -> dict[str, tuple[str, str, str]]:
    """The rows of the table in docs/doctor.md: check, its sentence, the error of the appliance."""
    lines = read("docs/doctor.md").splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("| state of a cluster |"))
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[begin + 2 : begin + 2 + len(STATES)]
    ]
    return {state: (check, sentence, error) for state, check, sentence, error in cells}


@pytest.mark.parametrize("state", STATES)
def test_each_state_of_a_cluster_has_a_sentence_of_the_doctor_and_of_the_gateway(state: str):
    check, alive = STATES[state]()
    assert documented()[state] == (f"`{check.name}`", check.summary, shown(alive))
    assert check.status != "ok" or state == "collectors of two versions"


def test_the_table_of_states_has_no_other_row():
    assert documented().keys() == STATES.keys()
