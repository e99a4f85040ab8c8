"""Secrets stay where they belong, and what is kept on disk is its owner's alone."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from correlator.config.loading import load
from correlator.errors import ConfigError
from correlator.sources.db.mariadb import Address
from correlator.state.checkpoint_file import Checkpoint
from tests.support.appliance import Appliance, connected
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import MariaDB
from tests.support.mosquitto import Mosquitto
from tests.support.paths import REPOSITORY
from tests.support.raw_http import exchange, get, upgrade
from tests.support.servers import free_port

DATABASE, BROKER, TOKEN, PATH = "db-hush-5101", "mq-hush-5102", "tk-hush-hush-5103", "path-hush-5104"


def command(daemon: Daemon, name: str, *, code: int = 0) -> str:
    """What a command says, with the daemon's settings."""
    done = subprocess.run(
        [sys.executable, "-m", "correlator", name], cwd=REPOSITORY, env=daemon.environ,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def read(*places: Path) -> list[str]:
    """Files, and those of folders."""
    files = [file for place in places for file in ([place] if place.is_file() else place.iterdir())]
    return [file.read_bytes().decode("latin-1") for file in files]


async def test_no_secret_shows_anywhere(own_mariadb: MariaDB, tmp_path: Path) -> None:
    """At level debug; with right words, wrong ones, words in broken requests, and a broker that refuses ours."""
    database = await own_mariadb.create_schema()
    async with own_mariadb.connect() as connection, connection.cursor() as cursor:
        await cursor.execute(f"ALTER USER correlator@'%' IDENTIFIED BY '{DATABASE}'")
    (tmp_path / "tokens").write_text(TOKEN + "\n")
    (tmp_path / "mq").write_text(BROKER)
    with Mosquitto(users={"u": "another"}) as broker:
        daemon = Daemon(
            tmp_path, log__level="debug", http__tokens_file=tmp_path / "tokens",
            database__url=f"mysql://correlator:{DATABASE}@127.0.0.1:{own_mariadb.port}/migratekit_oma",
            mqtt__url=broker.url, mqtt__username="u", mqtt__password_file=tmp_path / "mq",
            otlp__url=f"http://127.0.0.1:{free_port()}/{PATH}", otlp__delay=0,
        )  # fmt: skip
        checked = command(daemon, "check-config")
        try:
            await daemon.start()
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            assert daemon.session is not None
            async with daemon.session.post("/api/v1/ticket", headers=bearer) as response:
                ticket = (await response.json())["ticket"]
            said = [checked]
            for path in (
                "/metrics",
                "/api/v1/openapi.json",
                "/api/v1/asyncapi.json",
                "/api/v1/jobs",
                "/health/ready",
                "/",
            ):
                async with daemon.session.get(path, headers=bearer) as response:
                    said += [await response.text(), str(response.headers)]
            async with daemon.session.get(f"/api/v1/nothing?ticket={ticket}") as response:
                assert response.status == 404
                said += [await response.text()]
            async with daemon.socket(HELLO | {"token": TOKEN}) as socket:
                await socket.ws.send_str('{"type":"hello","version":"x","token":"' + TOKEN + '"}')
                said += [json.dumps(await socket.until("error"))]
            for odd in (
                get("/api/v1/jobs", f"Authorization: Bearer {TOKEN}\0"),
                get("/api/v1/jobs", f"Authorization : Bearer {TOKEN}"),
                get(f"/\x01?ticket={TOKEN}"),
                upgrade("/ws", f"Authorization: Bearer {TOKEN}", "Sec-WebSocket-Version: 99"),
            ):
                await exchange(daemon.port, odd)  # only its sender gets the answer

            async with connected(database) as connection:
                job = await Appliance(connection).job("ends")

                async def is_known() -> bool:
                    return (await daemon.get(f"/api/v1/jobs/{job}", headers=bearer))[0] == 200

                await eventually(is_known)  # its end has whole seconds, and is to be after the start of the daemon
                await Appliance(connection).end(job)

            async def away() -> bool:
                parts = (await daemon.get("/health/ready", headers=bearer))[1]["parts"]
                return all(parts[peer]["error"] for peer in ("mqtt", "otlp"))

            await eventually(away)
            said += [command(daemon, "doctor", code=1)]
            said += [json.dumps((await daemon.get("/health/ready", headers=bearer))[1])]
            own_mariadb.kill()  # so that the driver has something to say

            async def down() -> bool:
                return not (await daemon.get("/health/ready", headers=bearer))[1]["parts"]["database"]["ok"]

            await eventually(down)
            said += read(Path(f"/proc/{daemon.pid}/cmdline"))
            assert await daemon.stop() == 0
            said += [daemon.log(), *read(tmp_path / "state")]
            for text in said:
                for secret in (DATABASE, BROKER, TOKEN, PATH, ticket):
                    assert secret not in text, text
        finally:
            await daemon.close()


def test_settings_and_addresses_show_no_secret(tmp_path: Path) -> None:
    environ = {
        "HOME": str(tmp_path),
        "CORRELATOR_DATABASE__URL": f"mysql://u:{DATABASE}@h/d",
        "CORRELATOR_MQTT__PASSWORD": BROKER,
        "CORRELATOR_MQTT__USERNAME": "u",
    }
    config = load(None, environ)
    assert config.database.password.reveal() == DATABASE
    shown = f"{config!r} {config} {Address(password=DATABASE)!r}"
    assert DATABASE not in shown
    assert BROKER not in shown


def modes(folder: Path) -> dict[str, int]:
    return {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}


def test_the_checkpoint_is_its_owners_alone(tmp_path: Path) -> None:
    """Whatever the umask is: it holds IDs and error texts of jobs."""
    before = os.umask(0)
    try:
        file = Checkpoint(tmp_path / "state" / "checkpoint.sqlite", "s")
        file.open()
        found = modes(tmp_path / "state")
        file.set_aside("for the test")
        found |= modes(tmp_path / "state")
        file.close()
    finally:
        os.umask(before)
    assert len(found) >= 2
    assert {name: mode for name, mode in found.items() if mode & 0o077} == {}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_a_link_in_place_of_the_checkpoint_is_not_followed(appliance_file: Path, tmp_path: Path) -> None:
    """And what it leads to is not touched, though it be a database; the daemon does without."""
    theirs = tmp_path / "theirs.sqlite"
    with sqlite3.connect(theirs) as connection:
        connection.execute("CREATE TABLE precious (a)")
    connection.close()
    before = theirs.read_bytes()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "checkpoint.sqlite").symlink_to(theirs)
    async with Daemon(tmp_path, database__url=f"sqlite://{appliance_file}") as daemon:
        assert await daemon.stop() == 0
        assert "Traceback" not in daemon.log()
    assert theirs.read_bytes() == before
    assert [name for name in modes(tmp_path) if name.startswith("theirs")] == ["theirs.sqlite"]


@pytest.mark.parametrize("given", ["0.0.0.0:8686", "[::]:8686", "10.0.0.1:8686", "box.example:8686"])
def test_an_open_listener_needs_a_token(tmp_path: Path, given: str) -> None:
    with pytest.raises(ConfigError, match="without a token"):
        load(None, {"HOME": str(tmp_path), "CORRELATOR_HTTP__LISTEN": given})
