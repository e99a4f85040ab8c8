"""The systemd unit of a gateway beside that of the daemon: what differs is what has to."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.eventually import PATIENCE
from tests.support.paths import DEPLOY
from tests.support.servers import program

DAEMON, GATEWAY = "correlator.service", "correlator-gateway.service"


def settings(unit: str) -> set[str]:
    lines = (DEPLOY / unit).read_text().splitlines()
    return {line for line in lines if "=" in line and not line.startswith("#")}


def test_a_gateway_is_confined_like_the_daemon_and_may_write_nowhere():
    own = {"StateDirectory", "StateDirectoryMode", "Environment", "LoadCredential", "SetCredential"}
    own |= {"Description", "After", "ExecStart", "User", "SyslogIdentifier", "TimeoutStartSec"}
    own |= {"PrivateUsers"}  # only the daemon has to see which user listens at a port of its host
    differ = settings(DAEMON) ^ settings(GATEWAY)
    assert {line.split("=")[0] for line in differ} <= own
    assert not any("Directory=" in line for line in settings(GATEWAY))


@pytest.mark.parametrize("unit", [DAEMON, GATEWAY])
def test_the_exposure_of_both_units_is_at_most_1_2(unit: str):
    command = ["security", "--offline=true", "--threshold=12", "--no-pager", str(DEPLOY / unit)]
    ended = subprocess.run(
        [program("systemd-analyze"), *command], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
