"""README.md, "At a real appliance", from top to bottom on a bare system; then again; then an upgrade, and a purge.

No command has a terminal, and standard input is closed: nobody is there to answer dpkg.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.mariadb import SCHEMA
from tests.support.markdown import shell_blocks
from tests.support.paths import DEPLOY
from tests.support.system.installations import earlier
from tests.support.system.nspawn import Machine
from tests.support.system.roots import ASKED, Root

WITHIN = 200.0
SETTINGS = ('database.timezone = "Europe/Berlin"', 'mqtt.url = "mqtt://broker.example:1883"')
EFFECTIVE = "correlator check-config | grep -E '^(database.timezone|mqtt.url|mqtt.instance) '"
PATHS = (
    r"find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /root -o -path /var"
    r" \) -prune -o -print; find /var -name '*correlator*' -not -path '/var/log/*' -not -path '/var/lib/mysql/*'"
)
"""Everything but what a system that runs writes by itself."""

pytestmark = pytest.mark.timeout(600)


class Host(NamedTuple):
    """An appliance of its own zone with a broker; `before`: its paths before the package came."""

    machine: Machine
    before: list[str]


@pytest.fixture(scope="module", params=ASKED)
def host(request: pytest.FixtureRequest, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp(request.param)
    root = Root(request.param, folder)
    root.put(f"/root/clone/build/{package.name}", package)
    root.put("/root/clone/deploy/grants.sql", DEPLOY / "grants.sql")
    root.put("/root/earlier.deb", earlier(folder, package))
    root.put("/root/appliance.sql", SCHEMA)
    root.put("/root/bin/make", b"#!/bin/sh\n# The package is there already.\n", 0o755)
    root.put("/etc/hosts", b"127.0.0.1 localhost broker.example\n")
    with Machine(root, folder / "console") as machine:
        machine.run(
            "ln -sf /usr/share/zoneinfo/Europe/Berlin /etc/localtime; systemctl restart mariadb;"
            " mariadb -e 'CREATE DATABASE migratekit_oma'; mariadb migratekit_oma <appliance.sql"
        )
        yield Host(machine, machine.run(PATHS).splitlines())


def unattended(machine: Machine, script: str) -> str:
    """What a shell says that has neither a terminal nor anything on its standard input, and ends at a failure."""
    return machine.run(
        f"exec <&-; cd clone; PATH=/root/bin:$PATH; unset DEBIAN_FRONTEND; set -e; {script}", within=WITHIN
    )


def follow(host: Host) -> str:
    steps = shell_blocks("README.md", "At a real appliance")
    assert len(steps) >= 4
    return "".join(unattended(host.machine, step) for step in steps)


def assert_works(machine: Machine) -> None:
    assert machine.readiness()["degraded"] is False, machine.run("correlator doctor", check=False)
    assert machine.run(EFFECTIVE).splitlines() == [SETTINGS[0], SETTINGS[1], 'mqtt.instance = "appliance-1"']
    assert "0 failures" in machine.run("correlator doctor")
    state = machine.run("mosquitto_sub -C 1 -W 20 -t correlator/v1/appliance-1/status")
    assert json.loads(state)["state"] == "online"


def test_the_readme_leads_to_a_daemon_that_serves_also_the_second_time(host: Host):
    follow(host)
    assert_works(host.machine)
    assert host.machine.run(
        "getent passwd correlator; systemctl stop correlator; correlator doctor", check=False
    ).count("correlator@localhost"), "the doctor logs in although the service does not run"
    follow(host)
    assert_works(host.machine)


def test_a_purge_leaves_nothing_behind(host: Host):
    assert_purged(host)


def assert_purged(host: Host) -> None:
    unattended(host.machine, "apt-get purge --yes correlator")
    left = set(host.machine.run(PATHS).splitlines()) - set(host.before)
    # Of systemd, which keeps the folder of all services of this kind.
    assert left - {"/var/lib/private"} == set()


EDITS = r"""
cd /etc/correlator
sed --in-place 's|^#timezone = .*|timezone = "Europe/Berlin"|' correlator.toml
sed --in-place 's|^\[mqtt\]$|&\nurl = "mqtt://broker.example:1883"\ninstance = "appliance-1"|' correlator.toml
sed --in-place 's|^\[cluster\]$|&\nurl = "nats://127.0.0.1:4222"|' gateway.toml
"""
"""Edits by hand of the files that the package replaces."""


def test_an_upgrade_of_an_edited_configuration_asks_nothing_and_keeps_its_values(host: Host):
    machine = host.machine
    unattended(machine, "apt-get install --yes /root/earlier.deb")
    (account,) = (step for step in shell_blocks("README.md", "At a real appliance") if "grants.sql" in step)
    unattended(machine, account + EDITS + "systemctl restart correlator")
    assert_works(machine)
    said = unattended(machine, shell_blocks("docs/upgrade.md", "Upgrading")[0].replace("./", "./build/"))
    assert "already the newest" not in said
    state = machine.run("dpkg-query --show --showformat='${Status} ${Version}' correlator")
    assert re.fullmatch(r"install ok installed \d+\.\d+\.\d+(~\d{14}\+g[0-9a-f]+(\.dirty)?)?", state), said
    assert_works(machine)
    assert "nats://127.0.0.1:4222" in machine.run("correlator check-config --gateway")
    assert machine.run("grep -v '^#' /etc/correlator/correlator.toml | grep = ; true") == ""
    assert_purged(host)
