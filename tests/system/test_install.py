"""docs/install.md and docs/upgrade.md, followed to the letter on a fresh Debian 13 with a database: booted, no network.

The commands are those of the documents: each block of shell in them is run as it stands there.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.mariadb import SCHEMA
from tests.support.markdown import sections, shell_blocks
from tests.support.system.installations import NEWER
from tests.support.system.nspawn import Machine
from tests.support.system.roots import Root

ALLOWED_SECONDS = 300.0

STEPS = "On Debian 12, Debian 13 and Ubuntu 24.04"

pytestmark = pytest.mark.timeout(ALLOWED_SECONDS + 60)


class Followed(NamedTuple):
    """The machine after the steps for Debian, what each step printed, and the seconds that they took in all."""

    machine: Machine
    said: dict[str, str]
    seconds: float


def follow(machine: Machine, document: str, section: str) -> dict[str, str]:
    """Run the blocks, each in a shell of its own that stops at the first failure; what each line's block said.

    The shell has no terminal, and nothing to read.
    """
    return {
        step: machine.run(f"exec <&-; set -e; {step}", within=ALLOWED_SECONDS)
        for step in shell_blocks(f"docs/{document}", section)
    }


@pytest.fixture(scope="module")
def followed(package: Path, newer_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    """A Debian 13 with an appliance's database, on which somebody has done what install.md says."""
    folder = tmp_path_factory.mktemp("install")
    root = Root("trixie", folder)
    root.put(f"/root/build/{package.name}", package)
    root.put("/root/later.deb", newer_package)
    root.put("/root/appliance.sql", SCHEMA)
    with Machine(root, folder / "console") as machine:
        machine.run(
            "systemctl is-system-running --wait >/dev/null; mariadb -e 'CREATE DATABASE migratekit_oma';"
            " mariadb migratekit_oma <appliance.sql"
        )
        started = time.monotonic()
        said = follow(machine, "install.md", STEPS)
        yield Followed(machine, said, time.monotonic() - started)


def test_the_installation_lasts_less_than_five_minutes(followed: Followed):
    assert followed.seconds < ALLOWED_SECONDS


def test_then_it_is_ready_reads_the_database_and_publishes_to_the_broker(followed: Followed):
    asked = "sed 's/^/Authorization: Bearer /' /etc/correlator/api-token | curl --silent --header @- --insecure"
    health = followed.machine.readiness(f"{asked} https://localhost:8686")
    assert (health["ready"], health["degraded"]) == (True, False), health
    step = next(step for step in followed.said if "mosquitto_sub" in step)
    state = json.loads(followed.said[step].splitlines()[-1])["state"]
    subscribe = step.splitlines()[-1]  # the last command alone: those before it change the configuration
    deadline = time.monotonic() + 30
    while state == "starting" and time.monotonic() < deadline:  # the step asked before the daemon was ready
        state = json.loads(followed.machine.run(subscribe))["state"]
        time.sleep(0.2)
    assert state == "online"


def test_every_step_may_be_followed_again_and_it_still_works(followed: Followed):
    said = follow(followed.machine, "install.md", STEPS)
    step = next(step for step in said if "mosquitto_sub" in step)
    assert json.loads(said[step].splitlines()[-1])["state"] in ("starting", "online")
    assert "0 failures" in said[next(step for step in said if "correlator doctor" in step)]


def test_the_doctor_finds_nothing_wrong(followed: Followed):
    step = next(step for step in followed.said if "correlator doctor" in step)
    assert followed.machine.run(f'{step.strip()}; echo "exit $?"', check=False).splitlines()[-1] == "exit 0"


def test_opened_to_others_it_has_tls_and_asks_for_the_token(followed: Followed):
    asked = "curl --silent --output /dev/null --write-out '%{http_code}' --cacert /etc/correlator/tls.pem"
    assert followed.machine.run(f"{asked} https://localhost:8686/api/v1/jobs") == "401"
    by_name = '--resolve "$(hostname):8686:127.0.0.1" "https://$(hostname):8686/health/ready"'
    assert followed.machine.run(f"{asked} {by_name}") == "200"
    assert re.search(r"http\.listen +0\.0\.0\.0:8686, with TLS", followed.machine.run("correlator doctor"))


def test_upgrade_downgrade_and_removal_work_as_documented(followed: Followed, package: Path, newer_package: Path):
    machine = followed.machine
    version = "dpkg-query --show --showformat='${Version}' correlator"
    installed = machine.run(version)
    machine.run(f"mv later.deb {newer_package.name}")
    said = follow(machine, "upgrade.md", "Upgrading")
    assert "0.0.0.0:8686" in next(text for step, text in said.items() if "check-config" in step)
    assert machine.run(version) == NEWER
    follow(machine, "upgrade.md", "Upgrading the system")
    machine.run(f"rm {newer_package.name}; mv build/{package.name} .")
    follow(machine, "upgrade.md", "Going back")
    assert machine.run(version) == installed
    machine.run("correlator health --wait 60")
    follow(machine, "upgrade.md", "Removing")
    assert machine.run("systemctl is-active correlator", check=False).strip() == "inactive"
    assert machine.run("ls -d /etc/correlator /var/lib/private/correlator /usr/lib/correlator 2>/dev/null; true") == ""


def test_every_block_of_shell_in_the_documents_is_followed():
    """Here, or in test_other_installations.py; but for the container, whose base image only a registry has."""
    elsewhere = {"As a container", "With uv, for one user", "By hand, as a service"}
    documented = {
        (document, section)
        for document in ("install.md", "upgrade.md")
        for section in sections(f"docs/{document}")
        if shell_blocks(f"docs/{document}", section)
    }
    followed = {("install.md", STEPS)} | {
        ("upgrade.md", section) for section in ("Upgrading", "Upgrading the system", "Going back", "Removing")
    }
    assert documented - {("install.md", section) for section in elsewhere} == followed
