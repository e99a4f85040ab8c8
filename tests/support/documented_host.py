"""The place that the documents speak of, made for the tests: servers, daemon, files and the job of the examples.

A command of the documents runs here as it is written, but for the addresses: those of the examples stand for private
servers on ports of their own, `/etc` for a folder. Programs are stopped by the ids of their own process groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.appliance import Appliance, connected
from tests.support.mariadb import Database, MariaDB
from tests.support.markdown import blocks, commands
from tests.support.mosquitto import Mosquitto
from tests.support.paths import REPOSITORY
from tests.support.root_shell import write_program
from tests.support.servers import free_port

EXTERNAL, JOB = "unified-live-failover-pgtest2-1758553933", "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"
"""The job that all documents speak of."""

PASSWORD = "change-me"
WITHIN = 60.0
"""Seconds that a command has to end, or to say something if it goes on."""

PROGRAMS = frozenset({"correlator", "curl", "grep", "head", "make", "mariadb", "mosquitto_pub", "mosquitto_sub"})
"""What may be run beside a system that lives: asked of private servers, these change nothing outside of the folder."""

_OURS = re.compile(r"\.?venv/bin/(correlator|python -m pytest(?= tests/))\b")

_VARIABLE = re.compile(r"[A-Z_]+=")

_GOES_ON = (r"^curl -N ", r"^correlator (jobs -w|logs .* -f|watch|tap)\b", r"^mosquitto_sub (?!.*-C )")


def harmless(text: str) -> bool:
    """Whether a command starts no program but `PROGRAMS` and ours, and writes into no file."""
    text = _OURS.sub("correlator", text.removeprefix("sudo "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.wordchars += "$"
    begins = True
    for token in lexer:
        if set(token) <= set("|&;"):
            begins = True
        elif set(token) <= set("()<>") and token != "<":
            return False
        elif begins and not _VARIABLE.match(token):
            if token not in PROGRAMS:
                return False
            begins = False
    # Within a text in double quotes a command may stand as well.
    return "$(" not in text and "`" not in text


class Ended(NamedTuple):
    code: int
    said: str


class Place:
    """A folder to stand in, and what the commands there reach."""

    def __init__(self, folder: Path, mariadb: MariaDB, mosquitto: Mosquitto, database: Database) -> None:
        self.folder = folder
        self.mariadb = mariadb
        self.database = database
        self.port = free_port()
        self.etc = folder / "etc/correlator"
        self._daemon: subprocess.Popen[str] | None = None
        self._stands_for = (
            ("sudo ", ""),
            (".venv/bin/", "venv/bin/"),
            ("venv/bin/", f"{folder}/programs/"),
            ("127.0.0.1:8686", f"127.0.0.1:{self.port}"),
            ("localhost:8686", f"localhost:{self.port}"),
            ("127.0.0.1:3306", f"127.0.0.1:{mariadb.port}"),
            ("broker.example:1883", f"127.0.0.1:{mosquitto.port}"),
            ("-h broker.example", f"-h 127.0.0.1 -p {mosquitto.port}"),
            ("/etc/correlator", str(self.etc)),
        )
        self._furnish(mosquitto)

    def _furnish(self, mosquitto: Mosquitto) -> None:
        self.etc.mkdir(parents=True)
        for name in ("db-password", "mqtt-password"):
            (self.etc / name).write_text(PASSWORD + "\n")
            (self.etc / name).chmod(0o600)
        programs = self.folder / "programs"
        programs.mkdir()
        (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (programs / "python").chmod(0o755)
        write_program(programs, self.etc / "correlator.toml")
        for name in ("Makefile", "deploy", "pyproject.toml", "requirements"):
            (self.folder / name).symlink_to(REPOSITORY / name)
        # What the programs of the system read at home: an answer that is an error fails, root comes in by the socket.
        (self.folder / ".curlrc").write_text("fail\nsilent\nshow-error\n")
        (self.folder / ".my.cnf").write_text(f"[client]\nsocket={self.mariadb.socket}\nuser=root\n")
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CORRELATOR_", "MAKE"))},
            "HOME": str(self.folder),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "COLUMNS": "100",
            "CORRELATOR_URL": f"http://127.0.0.1:{self.port}",
            "CORRELATOR_HTTP__LISTEN": f"127.0.0.1:{self.port}",
            "CORRELATOR_DATABASE__URL": self.database.url,
            "CORRELATOR_DATABASE__PASSWORD_FILE": str(self.etc / "db-password"),
            "CORRELATOR_DATABASE__TIMEZONE": "UTC",
            "CORRELATOR_MQTT__URL": mosquitto.url,
            "CORRELATOR_MQTT__USERNAME": "correlator",
            "CORRELATOR_MQTT__INSTANCE": "appliance-1",
            "CORRELATOR_STATE__DIRECTORY": str(self.folder / "state"),
        }

    def mapped(self, text: str) -> str:
        """The text with what is here in place of what stands in the documents."""
        for written, here in self._stands_for:
            text = text.replace(written, here)
        return text

    def prepare(self, document: str) -> None:
        """Write the configuration that the document shows first under the names that its commands give it."""
        shown = next((block.text for block in blocks(document) if block.language == "toml"), "")
        for command in commands(document):
            for name in re.findall(r"--config ([\w.-]+)", command.text):
                (self.folder / name).write_text(self.mapped(shown))

    def run(self, text: str, *, given: Sequence[str] = (), folder: Path | None = None) -> Ended:
        """Run a command after the assignments that were `given`; how it ended, and what it said.

        One that goes on until somebody has enough is interrupted when it has said something.
        """
        if not harmless(text):
            raise ValueError(f"not to be run here: {text}")
        text = self.mapped(text)
        bare = text.removeprefix(f"{self.folder}/programs/")
        if bare.startswith("correlator run"):
            self.stop()
            return self.start(text)
        script = "\n".join([*map(self.mapped, given), text])
        process = subprocess.Popen(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=folder or self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            if any(re.match(pattern, bare) for pattern in _GOES_ON):
                return self._interrupted(process)
            said, _ = process.communicate(timeout=WITHIN)
            return Ended(process.returncode, said)
        finally:
            _end(process)

    def start(self, text: str = "correlator run") -> Ended:
        """Start the daemon unless it runs, and wait until it is ready; it runs until `stop`."""
        if self._daemon is not None and self._daemon.poll() is None:
            return Ended(0, "")
        log = (self.folder / "log").open("w")
        with log:
            self._daemon = subprocess.Popen(
                ["bash", "-c", f"exec {text}"],
                cwd=self.folder,
                env=self.environ,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        deadline = time.monotonic() + WITHIN
        while time.monotonic() < deadline and self._daemon.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.environ['CORRELATOR_URL']}/health/ready"):
                return Ended(0, "")
            time.sleep(0.05)
        return Ended(self._daemon.poll() or 1, (self.folder / "log").read_text())

    def stop(self) -> int:
        """End the daemon, if one runs; its exit code."""
        if self._daemon is None:
            return 0
        self._daemon.terminate()
        code = self._daemon.wait(WITHIN)
        self._daemon = None
        return code

    def _interrupted(self, process: subprocess.Popen[str]) -> Ended:
        """Wait until the program has said something while the log goes on, then interrupt it."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            deadline = time.monotonic() + WITHIN
            while not selector.select(0.2):
                if time.monotonic() > deadline:
                    return Ended(1, f"it said nothing within {WITHIN} s")
                asyncio.run(_say(self.database))
        first = process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=WITHIN)
        code = process.returncode
        return Ended(0 if code in (-signal.SIGINT, 128 + signal.SIGINT) else code, first + rest)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


async def _say(database: Database) -> None:
    async with connected(database) as connection:
        await Appliance(connection).log("still copying", job_id=JOB)


async def _write_example_job(mariadb: MariaDB) -> Database:
    """An appliance's database with the job of the examples in it, and the account that deploy/grants.sql makes."""
    database = await mariadb.create_schema()
    script = re.sub(r"^--.*$", "", (REPOSITORY / "deploy/grants.sql").read_text(), flags=re.MULTILINE)
    async with mariadb.connect() as connection, connection.cursor() as cursor:
        await cursor.execute("DROP USER correlator@'%'")
        for statement in filter(str.strip, script.split(";")):
            await cursor.execute(statement)
        await cursor.execute(f"ALTER USER 'correlator'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'")
    async with connected(database) as connection:
        appliance = Appliance(connection)
        await appliance.job(EXTERNAL, id=JOB, metadata='{"vm_name": "pgtest2"}')
        step = await appliance.step(JOB, 1, "multi-volume-snapshot-creation")
        attrs = {"job_id": JOB, "step_id": step, "step_name": "multi-volume-snapshot-creation"}
        await appliance.log("Job started", attrs={"job_id": JOB, "job_type": "failover"})
        await appliance.log("Step started", attrs=attrs)
        await appliance.log("copying", job_id=JOB)
    return database


@contextlib.contextmanager
def furnished(folder: Path) -> Iterator[Place]:
    """A place with servers of its own; all of it is gone afterwards."""
    with MariaDB() as mariadb, Mosquitto() as mosquitto:
        place = Place(folder, mariadb, mosquitto, asyncio.run(_write_example_job(mariadb)))
        try:
            yield place
        finally:
            place.stop()
