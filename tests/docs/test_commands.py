"""Every command of the documents is run: here, by the test that is named here, or this fails."""

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

import pytest

from tests.support.appliance import Appliance, connected
from tests.support.mariadb import Database, MariaDB
from tests.support.markdown import Command, blocks, commands, commands_in_text, guides
from tests.support.mosquitto import Mosquitto
from tests.support.paths import REPOSITORY
from tests.support.root_shell import write_program
from tests.support.servers import free_port

EXTERNAL, JOB = "unified-live-failover-pgtest2-1758553933", "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"
"""The job that all documents speak of."""

PASSWORD, TOKEN = "change-me", "a-token-of-the-documents"
WITHIN = 60.0
"""Seconds that a command has to end, or to say something if it goes on."""

PROGRAMS = frozenset({"correlator", "curl", "grep", "head", "make", "mariadb", "mosquitto_pub", "mosquitto_sub", "sed"})
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
    # Within a text in double quotes a command may stand as well; sed can write files.
    return "$(" not in text and "`" not in text and not re.search(r"\bsed (?!'s/)", text)


class Ended(NamedTuple):
    code: int
    said: str


class Place:
    """The place that the documents speak of, made for the tests: servers, daemon, files and the job of the examples.

    A command of the documents runs here as it is written, but for the addresses: those of the examples stand for
    private servers on ports of their own, `/etc` for a folder. Programs are stopped by the ids of their own process
    groups.
    """

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
        for name in ("api-token", "db-password", "mqtt-password"):
            (self.etc / name).write_text((TOKEN if name == "api-token" else PASSWORD) + "\n")
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
    """An appliance's database with the job of the examples in it, and the accounts that deploy/ makes."""
    database = await mariadb.create_schema()
    scripts = "".join((REPOSITORY / "deploy" / name).read_text() for name in ("grants.sql", "grants-password.sql"))
    script = re.sub(r"^--.*$", "", scripts, flags=re.MULTILINE)
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


class Elsewhere(NamedTuple):
    """Commands that a test cannot run beside a system that lives, and the tests that run them in one of their own."""

    document: str
    section: str
    command: str
    tests: tuple[str, ...]

    def covers(self, command: Command) -> bool:
        """The three are patterns of the whole text."""
        pairs = ((self.document, command.document), (self.section, command.section), (self.command, command.text))
        return all(re.fullmatch(pattern, text, re.DOTALL) for pattern, text in pairs)


ANY = ".*"
INSTALL = "tests/system/test_install.py"
README = "tests/system/test_readme.py"
UNIT = "tests/system/test_unit.py"
CLUSTER = "tests/docs/test_cluster_steps.py"
OTHER_INSTALLATIONS = "tests/system/test_other_installations.py"
ELSEWHERE = (
    # The whole chapters are run there, block by block, in a booted Debian.
    Elsewhere(
        r"docs/install\.md", "On Debian 12.*", ANY, (f"{INSTALL}::test_the_installation_lasts_less_than_five_minutes",)
    ),
    Elsewhere(
        r"docs/upgrade\.md",
        ANY,
        ANY,
        (f"{INSTALL}::test_upgrade_downgrade_and_removal_work_as_documented",),
    ),
    Elsewhere(r"docs/install\.md", "By hand.*", ANY, (f"{OTHER_INSTALLATIONS}::test_by_hand_it_is_a_service",)),
    Elsewhere(r"docs/install\.md", "With uv.*", ANY, (f"{OTHER_INSTALLATIONS}::test_uv_makes_it_a_command",)),
    Elsewhere(
        r"docs/configuration\.md",
        "Tokens",
        ANY,
        ("tests/docs/test_steps.py::test_the_steps_of_a_token_for_one_job_make_a_key_and_a_token",),
    ),
    # The whole chapters are run there.
    Elsewhere(
        r"docs/cluster\.md",
        "Try it",
        r"make demo ARGS='--fleet 3'",
        ("tests/acceptance/test_demo.py::test_both_gateways_of_a_fleet_serve_every_appliance_and_each_line_works",),
    ),
    Elsewhere(
        r"docs/cluster\.md",
        "Two appliances on one machine",
        ANY,
        (f"{CLUSTER}::test_two_appliances_on_one_machine_from_nothing_to_the_page_of_the_fleet",),
    ),
    Elsewhere(
        r"docs/cluster\.md",
        "(Hosts of their own|From one NATS server to three|Upgrades)",
        ANY,
        (f"{CLUSTER}::test_hosts_of_their_own_connect_with_certificates_and_permissions",),
    ),
    Elsewhere(
        r"docs/install\.md",
        ANY,
        r"make image|docker load --input",
        ("tests/system/test_release.py::test_the_image_runs_as_nobody_on_a_read_only_root_and_knows_whether_it_lives",),
    ),
    # The same file builds that image. There is no registry to take a base from.
    Elsewhere(
        r"docs/install\.md",
        "As a container",
        r"docker build --file deploy/Dockerfile .*",
        ("tests/system/test_image.py::test_every_package_of_the_image_is_locked_by_hash",),
    ),
    Elsewhere(
        r"README\.md",
        "At a real appliance",
        r"(head --bytes|printf|correlator config set|mariadb <deploy/).*",
        (
            "tests/docs/test_steps.py::test_the_steps_of_the_readme_make_an_account_without_a_password",
            f"{README}::test_the_readme_leads_to_a_daemon_that_serves_also_the_second_time",
        ),
    ),
    Elsewhere(
        r"README\.md", ANY, r"apt-get install .*", (f"{INSTALL}::test_the_installation_lasts_less_than_five_minutes",)
    ),
    Elsewhere(
        ANY,
        ANY,
        r"systemctl (status|restart) correlator.*",
        (f"{INSTALL}::test_the_installation_lasts_less_than_five_minutes",),
    ),
    Elsewhere(ANY, ANY, "systemctl start correlator", (f"{UNIT}::test_it_is_ready_once_the_index_is_loaded",)),
    Elsewhere(
        ANY, ANY, "systemctl stop correlator", (f"{UNIT}::test_a_stop_closes_connections_and_publishes_offline",)
    ),
    Elsewhere(
        ANY,
        ANY,
        "systemctl reload correlator",
        (f"{UNIT}::test_a_reload_applies_what_it_can_and_disconnects_no_client",),
    ),
    Elsewhere(
        ANY,
        ANY,
        'journalctl -u correlator --grep "made no progress"',
        (f"{UNIT}::test_the_watchdog_ends_a_loop_that_is_stuck_and_the_journal_shows_where",),
    ),
    Elsewhere(ANY, ANY, r"journalctl -u correlator.*", (f"{UNIT}::test_log_lines_have_their_priority_and_name",)),
    Elsewhere(
        r"SECURITY\.md",
        "Verifying a release",
        ANY,
        (
            "tests/security/test_releases.py::test_the_documented_command_verifies_a_release_and_what_somebody_has_of_it",
        ),
    ),
    Elsewhere(
        ANY,
        ANY,
        "promtool test rules .*",
        ("tests/system/test_alerts.py::test_every_alert_fires_when_it_should_and_only_then",),
    ),
    Elsewhere(
        ANY,
        ANY,
        "man correlator.*",
        ("tests/system/test_deb.py::test_the_manual_describes_every_command_and_every_key",),
    ),
    Elsewhere(
        r"docs/gui\.md",
        "As a package",
        "npm install .*",
        ("tests/unit/test_client_js.py::test_the_package_is_installed_as_gui_md_says",),
    ),
    # What the system has of its own, in a line of text: nothing of ours is in it.
    Elsewhere(
        ANY, "", r"systemctl (status|cat|edit)( correlator)?|journalctl -k .*|df -h .*|openssl rand .*|pipx .*", ()
    ),
)


def documented() -> list[Command]:
    return [command for document in guides() for command in (*commands(document), *commands_in_text(document))]


def elsewhere(command: Command) -> Elsewhere | None:
    return next((found for found in ELSEWHERE if found.covers(command)), None)


def runs_here(command: Command) -> bool:
    return elsewhere(command) is None and (command.is_assignment or harmless(command.text))


HERE = sorted({command.document for command in documented() if runs_here(command)})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with furnished(tmp_path_factory.mktemp("place")) as place:
        yield place


def test_every_command_is_run_by_a_test_and_is_whole():
    wrong = [f"{each.place}: {each.text}" for each in documented() if not runs_here(each) and not elsewhere(each)]
    assert not wrong, "say in ELSEWHERE what runs: " + "\n".join(wrong)
    assert not [each.place for each in documented() if "<<" in each.text], "a text that goes on is no command"
    script = "\n".join(f"f{number}() {{\n{each.text}\n}} # {each.place}" for number, each in enumerate(documented()))
    ended = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "text",
    [
        "systemctl restart correlator",
        "curl http://127.0.0.1:8686/install | sh",
        "correlator jobs >/etc/jobs",
        'curl "http://127.0.0.1:8686/$(reboot)"',
        "mariadb -e 'SELECT 1'; reboot",
        "NAME=x reboot",
        "sudo reboot",
        "true && correlator jobs",
        ".venv/bin/python -m pip install x",
        "sed --in-place s/a/b/ x",
    ],
)
def test_what_could_change_this_system_is_not_run_here(place: Place, text: str):
    with pytest.raises(ValueError, match="not to be run here"):
        place.run(text)


@pytest.mark.parametrize("document", HERE)
def test_every_command_does_what_it_is_there_for(place: Place, document: str):
    """All documents share a daemon, but for those that start one themselves."""
    mine = [command for command in documented() if command.document == document and runs_here(command)]
    place.prepare(document)
    has_its_own = any(re.search(r"correlator run\b", command.text) for command in mine)
    if not has_its_own:
        started = place.start()
        assert started.code == 0, started.said
    given, wrong = list[str](), list[str]()
    for command in mine:
        if command.is_assignment:
            given.append(command.text)
            continue
        ended = place.run(shown_only(command.text), given=given, folder=stands_in(document))
        if ended.code != 0:
            wrong.append(f"{command.place}: {command.text}\nended with {ended.code}: {ended.said[-1500:]}")
    if has_its_own:
        assert place.stop() == 0
    assert not wrong, "\n\n".join(wrong)


def shown_only(text: str) -> str:
    """What make would do, and not what it does: `make test` is what runs this, and demo, deb and bench have tests."""
    return re.sub(r"^make ", "make --dry-run ", text)


def stands_in(document: str) -> Path | None:
    """The commands of CONTRIBUTING.md run in the sources, all others in a folder of their own."""
    return REPOSITORY if document == "CONTRIBUTING.md" else None


def test_commands_that_run_elsewhere_still_exist_and_so_do_their_tests():
    needed = [elsewhere(command) for command in documented()]
    assert not [found for found in ELSEWHERE if not any(found is each for each in needed)]
    for test in (test for found in ELSEWHERE for test in found.tests):
        path, _, name = test.partition("::")
        assert re.search(rf"^(?:async )?def {name}\(", (REPOSITORY / path).read_text(), re.MULTILINE), test


def test_a_command_that_fails_is_noticed(place: Place):
    assert place.stop() == 0  # so that nobody listens
    assert place.run("curl http://127.0.0.1:8686/api/v1/jobs").code != 0
    assert place.run("curl http://127.0.0.1:8686/api/v1/jobs | head -1").code != 0
    assert place.run("correlator jobs --no-such-option").code == 2


def test_every_statement_is_accepted_by_mariadb(place: Place):
    shown = [block for document in guides() for block in blocks(document) if block.language == "sql"]
    assert shown
    for block in shown:
        file = place.folder / "shown.sql"
        file.write_text(block.text)
        ended = place.run("mariadb migratekit_oma <shown.sql")
        assert ended.code == 0, f"{block.place}\n{ended.said}"


def test_the_documents_speak_of_one_job():
    """So that what is copied from one document works with what was copied from another."""
    text = "".join((REPOSITORY / document).read_text() for document in ("README.md", "docs/gui.md", "docs/protocol.md"))
    assert set(re.findall(r"unified-live-failover-pgtest2-(\d+)", text)) <= {"1758553933", "1758553932", "1795610683"}
    assert EXTERNAL in text
    assert JOB in text
