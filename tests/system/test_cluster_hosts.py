"""docs/cluster.md on three hosts: three NATS servers with TLS, a collector and its standby, and two gateways.

Then one of the hosts is lost: a black hole, in which the connections of the others stay open.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.markdown import shell_blocks
from tests.support.system.installations import Installations
from tests.support.system.nspawn import Machine, bridged, lost
from tests.support.system.service import APPLIANCE, INSERT, JOB, prepare_host

HOSTS = ("nats-1", "nats-2", "nats-3")
WITHIN = 180.0

RECOVERS_WITHIN = 60.0
"""Seconds from the loss of a host until a gateway on another one has a new job: a leader of NATS is lost with it."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def hosts(installations: Installations, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Machine]]:
    """Three systems with the package and a network. The first two have the appliance's database, as with a replica."""
    names = "".join(f"10.9.0.{n} {host} {host}.example\n" for n, host in enumerate(HOSTS, 1))
    installed = installations.of("trixie").root
    with ExitStack() as stack:
        machines = {}
        for host in HOSTS:
            folder = tmp_path_factory.mktemp(host)
            root = installed.copy(folder)
            prepare_host(root, f"127.0.0.1 localhost\n{names}")
            machine = stack.enter_context(Machine(root, folder / "console"))
            machine.run(f"hostname {host}; systemctl daemon-reload")
            machines[host] = machine
        bridged({f"10.9.0.{n}": machines[host] for n, host in enumerate(HOSTS, 1)})
        for host in HOSTS[:2]:
            machines[host].run(APPLIANCE + INSERT.format(job=JOB, name="gui-0"))
        yield machines


def follow(machine: Machine, *steps: str) -> None:
    for step in steps:
        machine.run(f"exec <&-; set -e; {step}", within=WITHIN)


def certificates_for(machine: Machine, of: Machine) -> None:
    """Copy all certificates, as an administrator does with those of one host."""
    archive = of.run("cd ~/certificates; tar --create --exclude=ca.key . | base64")
    machine.run("mkdir -p -m 700 ~/certificates; cd ~/certificates; base64 --decode | tar --extract", given=archive)


@pytest.fixture(scope="module")
def followed(hosts: dict[str, Machine]) -> dict[str, Machine]:
    """The hosts once the chapters have been followed: the first two have collectors, the last two gateways."""
    first, second, third = hosts.values()
    certificates, server, users, streams, collector, gateway = shell_blocks("docs/cluster.md", "Hosts of their own")
    more, switch, replicas = shell_blocks("docs/cluster.md", "From one NATS server to three")
    follow(first, certificates, server, users, streams, collector)
    eventually(lambda: ready(first)["parts"]["cluster"]["role"] == "active")
    certificates_for(second, first)
    certificates_for(third, first)
    follow(second, collector)
    eventually(lambda: ready(second)["parts"]["cluster"]["role"] == "standby")
    follow(third, gateway)
    eventually(lambda: shows(third))
    follow(first, more)
    for host in HOSTS[1:]:
        certificates_for(hosts[host], first)
        follow(hosts[host], server.replace("nats-1", host), users)
    for machine in hosts.values():
        follow(machine, switch)
    urls = "tls://nats-1.example:4222,tls://nats-2.example:4222,tls://nats-3.example:4222"
    # The fourth step of the chapter, in words there.
    provisioner = f"sed --in-place 's|^url = .*|url = \"{urls}\"\\nreplicas = 3|' ~/certificates/provisioner.toml"
    follow(first, provisioner, streams.splitlines()[-1])
    for machine in (first, second):
        follow(machine, replicas)
    follow(third, f"correlator config set --gateway cluster.url {urls}; systemctl restart correlator-gateway")
    eventually(lambda: {ready(m)["parts"]["cluster"]["role"] for m in (first, second)} == {"active", "standby"})
    eventually(lambda: shows(third))
    # The second gateway, beside the standby: it gets the daemon's port.
    move = "correlator config set http.listen 127.0.0.1:8687; systemctl restart correlator"
    beside = gateway.replace("systemctl disable --now correlator\n", "").replace("tls://nats-1.example:4222", urls)
    follow(second, move, beside)
    eventually(lambda: shows(second))
    return hosts


def test_the_chapters_lead_from_nothing_to_three_servers_a_standby_and_two_gateways(followed: dict[str, Machine]):
    first, second, third = followed.values()
    assert (role(first), role(second, 8687)) in (("active", "standby"), ("standby", "active"))
    eventually(lambda: shows(second) and shows(third))


def test_a_host_that_is_lost_is_followed_by_its_standby_and_comes_back_as_one(followed: dict[str, Machine]):
    """It has the active collector and one of the three NATS servers, and all connections use TLS."""
    first, second, third = followed.values()
    collectors = {"10.9.0.1": (first, 8686), "10.9.0.2": (second, 8687)}
    (away,) = (address for address, one in collectors.items() if role(*one) == "active")
    gone = collectors.pop(away)
    ((_, left),) = collectors.items()
    addresses = {f"10.9.0.{n}": machine for n, machine in enumerate(followed.values(), 1)}
    with lost(addresses, away):
        began = time.monotonic()
        left[0].run(INSERT.format(job="lost", name="gui-lost"))
        eventually(lambda: role(*left) == "active")
        eventually(lambda: shows(third, "gui-lost", "lost"))
        recovery = time.monotonic() - began
        assert not ready(*gone)["parts"]["cluster"]["ok"]  # its own NATS server has no majority
    eventually(lambda: (role(*gone), role(*left)) == ("standby", "active"))
    eventually(lambda: shows(second, "gui-lost", "lost") and shows(third, "gui-lost", "lost"))
    assert recovery < RECOVERS_WITHIN


def ready(machine: Machine, port: int = 8686) -> Any:
    return json.loads(machine.run(f"curl --silent http://127.0.0.1:{port}/health/ready", check=False) or "{}")


def role(machine: Machine, port: int = 8686) -> str:
    return str(ready(machine, port)["parts"]["cluster"]["role"])


def shows(machine: Machine, name: str = "gui-0", job_id: str = JOB) -> bool:
    """True if the gateway of a host shows the appliance and its job."""
    found = json.loads(machine.run("curl --silent http://127.0.0.1:8686/api/v1/instances", check=False) or "{}")
    states = [(one["instance"], one["online"], one["database"]) for one in found.get("instances", ())]
    job = json.loads(machine.run(f"curl --silent http://127.0.0.1:8686/api/v1/jobs/{name}", check=False) or "{}")
    return states == [("dc1", True, "live")] and job.get("job_id") == job_id


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    while True:
        try:
            if condition():
                return
            last = "false"
        except (KeyError, ValueError, subprocess.SubprocessError) as error:
            last = repr(error)
        assert time.monotonic() < deadline, last
        time.sleep(0.5)
