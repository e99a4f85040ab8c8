"""docs/cluster.md, "Hosts of their own", followed to the letter: every unit of the package runs as it is installed.

No drop-in, no variable of a shell: what a unit lacks, it lacks here too. One system stands for all hosts, so the
collector gets another port than the gateway.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.markdown import shell_blocks
from tests.support.system.installations import Installations
from tests.support.system.nspawn import Machine
from tests.support.system.roots import ASKED
from tests.support.system.service import APPLIANCE, INSERT, JOB, prepare_host

UNITS = ("correlator.service", "correlator-gateway.service")
WITHIN = 120.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", params=ASKED)
def machine(
    request: pytest.FixtureRequest, installations: Installations, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """A system with an appliance's database, the package and the collector's account, and no network."""
    folder = tmp_path_factory.mktemp(request.param)
    root = installations.of(request.param).root.copy(folder)
    prepare_host(root, "127.0.0.1 localhost nats-1.example\n")
    with Machine(root, folder / "console") as machine:
        machine.run(APPLIANCE + INSERT.format(job=JOB, name="gui-0"))
        yield machine


def test_the_package_has_no_other_unit(machine: Machine):
    listed = machine.run("dpkg --listfiles correlator | grep /systemd/system/.").split()
    assert sorted(Path(unit).name for unit in listed) == sorted(UNITS)
    drop_ins = machine.run("find /etc/systemd /run/systemd -name 'correlator*.d'")
    assert drop_ins == "", "a drop-in would give a unit what it lacks"
    enabled = machine.run(f"systemctl is-enabled {' '.join(UNITS)}", check=False)
    assert enabled.split() == ["enabled", "disabled"]


def test_the_steps_lead_to_a_gateway_that_serves_what_the_collector_reads(machine: Machine):
    certificates, server, users, streams, collector, gateway = shell_blocks("docs/cluster.md", "Hosts of their own")
    for step in (certificates, server, users, streams, collector):
        machine.run(f"exec <&-; set -e; {step}", within=WITHIN)
    assert json.loads(machine.get("/health/ready"))["parts"]["cluster"]["ok"] is True
    machine.run(f"exec <&-; set -e; {gateway}", within=WITHIN)
    # The collector's own host is another one: here both would listen on the same port.
    machine.run("correlator config set http.listen 127.0.0.1:8687; systemctl enable --now correlator")
    assert_complete(machine)


def test_after_a_boot_every_unit_runs_as_it_did(machine: Machine):
    machine.run("sync")
    machine.stop()
    machine.boot()
    assert_complete(machine)


def assert_complete(machine: Machine) -> None:
    """Both units are active, with nothing in their environment but what they set, and the gateway shows the job."""
    deadline = time.monotonic() + WITHIN
    while True:
        found = json.loads(machine.get("/api/v1/instances"))["instances"]
        health = json.loads(machine.get("/health/ready"))
        shown = [(one["instance"], one["online"], one["database"]) for one in found]
        if shown == [("dc1", True, "live")] and not health["degraded"]:
            break
        assert time.monotonic() < deadline, f"{found}\n{health}\n{machine.run('journalctl --no-pager -n 100')}"
        time.sleep(0.2)
    assert json.loads(machine.get("/api/v1/jobs/gui-0"))["job_id"] == JOB
    for unit in UNITS:
        state = machine.run(f"systemctl show --property=ActiveState,NRestarts --value {unit}").split()
        assert sorted(state) == ["0", "active"], machine.run(f"journalctl --unit={unit} --no-pager")
        environ = machine.run(f"tr '\\0' '\\n' </proc/$(systemctl show --property=MainPID --value {unit})/environ")
        assert not [line for line in environ.splitlines() if line.startswith(("HOME=", "CORRELATOR_"))], unit
    assert machine.run("systemctl --failed --no-legend --plain") == ""
