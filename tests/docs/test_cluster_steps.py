"""docs/cluster.md, followed: two appliances on one machine, and hosts of their own with certificates."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from correlator.cluster import streams
from correlator.config import loading, rendering
from correlator.doctor import cluster
from tests.support.appliance import Appliance, connected
from tests.support.mariadb import Database, MariaDB
from tests.support.markdown import read, shell_blocks
from tests.support.nats import PROGRAM, Nats
from tests.support.paths import DEPLOY, REPOSITORY
from tests.support.servers import free_port

DOCUMENT = "docs/cluster.md"
WITHIN = 200.0
"""Seconds for all steps of a chapter, on a machine that does other things too; people have ten minutes."""


def mapped(text: str, here: Mapping[str, str]) -> str:
    for written, place in here.items():
        text = text.replace(written, place)
    return text


def files() -> dict[str, str]:
    """The files that the document shows, by the name before each."""
    found = re.findall(r"^`([\w.]+)`[^\n]*:\n\n```(?:toml)?\n(.*?)^```", read(DOCUMENT), re.MULTILINE | re.DOTALL)
    return dict(found)


async def run(script: str, folder: Path) -> str:
    """Run a script in one shell that stops at the first failure; what it says. AssertionError if it fails."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CORRELATOR_")}
    shims = folder / "shims"
    environ |= {"HOME": str(folder), "PATH": f"{shims}:{environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    process = await asyncio.create_subprocess_exec(
        "bash", "-e", "-o", "pipefail", "-c", script, cwd=folder, env=environ, start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(WITHIN):
            out, _ = await process.communicate()
    except TimeoutError:
        os.killpg(process.pid, 9)
        out, _ = await process.communicate()
        raise AssertionError(f"not within {WITHIN} s:\n{out.decode()}") from None
    assert process.returncode == 0, out.decode()
    return out.decode()


def program(folder: Path, name: str, command: str) -> None:
    """A program of the shell that stands for another one."""
    (folder / "shims").mkdir(exist_ok=True)
    (folder / "shims" / name).write_text(f"#!/bin/sh\n{command}\n")
    (folder / "shims" / name).chmod(0o755)


async def appliance(server: MariaDB, name: str) -> Database:
    database = await server.create_schema(name)
    async with connected(database) as connection:
        await Appliance(connection).job(f"gui-of-{name}", metadata=f'{{"vm_name": "vm-of-{name}"}}')
    return database


async def test_two_appliances_on_one_machine_from_nothing_to_the_page_of_the_fleet(
    own_mariadb: MariaDB, tmp_path: Path
):
    for name in ("dc1", "dc2"):
        await appliance(own_mariadb, name)
    async with own_mariadb.connect() as connection, connection.cursor() as cursor:
        await cursor.execute("ALTER USER correlator@'%' IDENTIFIED BY 'change-me'")
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name, command in (("correlator", f"{sys.executable} -m correlator"), ("nats-server", PROGRAM)):
        (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (programs / name).chmod(0o755)
    here = {f"127.0.0.1:{port}": f"127.0.0.1:{free_port()}" for port in (4222, 8686, 8687, 8688)}
    here |= {f"{name}.example:3306/migratekit_oma": f"127.0.0.1:{own_mariadb.port}/{name}" for name in ("dc1", "dc2")}
    shown = files()
    assert shown.keys() == {"nats.conf", "dc1.toml", "dc2.toml", "gateway.toml"}
    for name, text in shown.items():
        (tmp_path / name).write_text(mapped(text, here))
    (tmp_path / "db-password").write_text("change-me\n")
    (tmp_path / "db-password").chmod(0o600)
    steps = shell_blocks(DOCUMENT, "Two appliances on one machine")
    # Both collectors have read their databases before the page is read.
    online = "curl --silent http://127.0.0.1:8686/api/v1/instances | grep -q 'live.*live'"
    steps.insert(1, f"for n in $(seq 600); do if {online}; then break; fi; sleep 0.2; done")
    end = "for job in $(jobs -p); do wait $job || true; done"
    script = ["trap 'kill $(jobs -p) 2>/dev/null || true' EXIT", *steps, end]
    said = await run(mapped("\n".join(script), here), tmp_path)
    decoder = json.JSONDecoder()
    instances = decoder.raw_decode(said[said.index('{"instances"') :])[0]["instances"]
    assert {(one["instance"], one["online"], one["database"]) for one in instances} == {
        ("dc1", True, "live"),
        ("dc2", True, "live"),
    }
    assert "vm-of-dc1" in said
    assert "vm-of-dc2" in said
    assert "holds the lease of dc1" in said
    assert " 0 failures" in said


async def test_hosts_of_their_own_connect_with_certificates_and_permissions(tmp_path: Path):
    port, monitor = free_port(), free_port()
    nats, collector, gateway = (tmp_path / name for name in ("etc-nats", "etc-collector", "etc-gateway"))
    for place in (nats, collector, gateway, tmp_path / "systemd"):
        place.mkdir()
    (collector / "correlator.toml").write_text((DEPLOY / "correlator.toml").read_text())
    (gateway / "gateway.toml").write_text(rendering.gateway_reference())
    for name in ("systemctl", "pip"):
        program(tmp_path, name, "exit 0")
    # The daemon's and the gateway's folders of /etc, as different hosts have them, with the credentials of the units.
    program(
        tmp_path,
        "correlator",
        f'case "$1" in doctor) exit 0;; cluster) exec {sys.executable} -m correlator "$@";; esac\n'
        f'case "$*" in *--gateway*) file={gateway}/gateway.toml;; *) file={collector}/correlator.toml;; esac\n'
        f'export CREDENTIALS_DIRECTORY=${{file%/*}}\nexec {sys.executable} -m correlator "$@" --config "$file"',
    )
    everywhere = {
        "/opt/nats/bin/pip": "pip",
        "python3 -m venv /opt/nats": "true",
        "/etc/systemd/system/": f"{tmp_path}/systemd/",
        "/usr/share/doc/correlator/examples/nats/": f"{DEPLOY}/nats/",
        "DNS:nats-1.example": "IP:127.0.0.1",
        "nats-1.example:4222": f"127.0.0.1:{port}",
        "127.0.0.1:8222": f"127.0.0.1:{monitor}",
    }
    steps = shell_blocks(DOCUMENT, "Hosts of their own")
    assert len(steps) == 6
    certificates, server, users, create_streams, of_collector, of_gateway = steps
    script = [certificates, server.replace("/etc/nats", str(nats)), users.replace("/etc/nats", str(nats))]
    script += [
        mapped(step, {"/etc/correlator": str(e)}) for step, e in ((of_collector, collector), (of_gateway, gateway))
    ]
    await run(mapped("\n".join(script), everywhere), tmp_path)
    assert (nats / "server.key").stat().st_mode & 0o777 == 0o600
    for file in nats.glob("*.conf"):
        places = {
            "0.0.0.0:4222": f"127.0.0.1:{port}",
            "127.0.0.1:8222": f"127.0.0.1:{monitor}",
            "/etc/nats/": f"{nats}/",
            "/run/credentials/nats-server.service/server.key": f"{nats}/server.key",
            "/var/lib/nats": str(tmp_path / "store"),
        }
        file.write_text(mapped(file.read_text(), places))
    with Documented(nats / "nats-server.conf", port, monitor):
        credentials = {"HOME": "/root", "CREDENTIALS_DIRECTORY": str(collector)}
        of_dc1 = loading.load(collector / "correlator.toml", credentials).cluster
        found = {c.name: c for c in await cluster.inspect(of_dc1, gateway=False, metrics=None, ours={})}
        assert found["cluster.server"].status == "ok", found
        assert found["cluster.streams"].summary.startswith("there are no streams: none was created yet")
        assert found["cluster.streams"].fix == ("correlator cluster create",)
        refused = create_streams.replace(" provisioner.", " collector-dc1.")
        said = await run(mapped(f"{refused.rstrip()} || true", everywhere), tmp_path)
        assert "run this as the provisioner" in said
        for create in ("created", "as it should be"):
            said = await run(mapped(create_streams, everywhere), tmp_path)
            assert sorted(said.splitlines()) == sorted(f"{name}: {create}" for name in streams.wanted(1))
        found = {c.name: c for c in await cluster.inspect(of_dc1, gateway=False, metrics=None, ours={})}
        assert found["cluster.permissions"].summary == "may write dc1, and no other appliance", found
        credentials_ = {"CREDENTIALS_DIRECTORY": str(gateway)}
        of_gateway_ = loading.load(gateway / "gateway.toml", credentials_, gateway=True).cluster
        found = {c.name: c for c in await cluster.inspect(of_gateway_, gateway=True, metrics=None, ours={})}
        assert found["cluster.server"].status == "ok", found
        assert {c.status for c in found.values()} <= {"ok", "warning"}, found
        assert 'include "collector-dc2.conf"' in (nats / "accounts.conf").read_text()
        healthz = [line for line in shell_blocks(DOCUMENT, "Upgrades")[0].splitlines() if line.startswith("curl")]
        assert "ok" in await run(mapped("\n".join(healthz), everywhere), tmp_path)
    three = mapped(shell_blocks(DOCUMENT, "From one NATS server to three")[-1], {"/etc/correlator": str(collector)})
    await run(three, tmp_path)
    changed = loading.load(collector / "correlator.toml", credentials).cluster
    assert changed.replicas == 3
    assert changed.url is not None
    assert len(changed.url.servers) == 3


class Documented(Nats):
    """A server with the files that the steps have made."""

    def __init__(self, configuration: Path, port: int, monitor: int) -> None:
        super().__init__()
        self.port, self.monitor = port, monitor
        self._configuration = configuration

    def _prepare(self) -> list[str]:
        return [PROGRAM, "-c", str(self._configuration)]


@pytest.mark.parametrize("unit", ["nats/nats-server.service"])
def test_the_unit_of_the_server_is_locked_up_and_moves_its_clients_before_it_stops(unit: str):
    text = (DEPLOY / unit).read_text()
    assert "KillSignal=SIGUSR2" in text
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=12", "--no-pager", str(DEPLOY / unit)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 0, ended.stdout
