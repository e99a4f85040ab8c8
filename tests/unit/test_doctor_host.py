"""What is said of this host: files, disk, checkpoint, unit; and how a report is printed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from types import SimpleNamespace

import pytest

from correlator.config import loading as configuration
from correlator.doctor import database, host, service
from correlator.doctor.report import copyable, ok
from correlator.doctor.service import Setting
from correlator.model.persisted import Cursor, IndexState
from correlator.state.checkpoint import VERSION, Changes
from correlator.state.checkpoint_file import Checkpoint
from tests.support.package_files import place


def setting(file=None, **settings):
    environ = {"HOME": "/nonexistent"} | {f"CORRELATOR_{k.upper()}": str(v) for k, v in settings.items()}
    found = configuration.loaded(file, environ)
    return Setting(found.config, file, environ, found.files, found.twice)


# -- files of the configuration


@pytest.mark.parametrize(
    ("mode", "text", "readable", "secret"),
    [
        (0o644, "[jobs]\nlegacy = true\n", "ok", "ok"),
        (0o600, "[jobs]\nlegacy = true\n", "failure", "ok"),
        (0o644, '[mqtt]\npassword = "x"\nusername = "x"\n', "ok", "failure"),
        (0o600, '[mqtt]\npassword = "x"\nusername = "x"\n', "ok", "ok"),  # that no other account reads it is meant
        (0o644, '[database]\nurl = "mysql://u:pw@h/d"\n', "ok", "failure"),
    ],
)
def test_a_file_is_readable_for_the_service_and_one_with_a_password_for_no_other(
    tmp_path, monkeypatch, mode, text, readable, secret
):
    file = tmp_path / "conf.d/a.toml"
    file.parent.mkdir()
    (tmp_path / "correlator.toml").touch()
    file.write_text(text)
    file.chmod(mode)
    place(monkeypatch, tmp_path)
    found = setting(tmp_path / "correlator.toml")
    one, other = host.configuration(found), host.secrets(found)
    assert (one.status, one.fix) == (readable, (f"chmod o+r {file}",) if readable == "failure" else ())
    assert (other.status, other.fix) == (secret, (f"chmod o-rwx {file}",) if secret == "failure" else ())


# -- the listener


@pytest.mark.parametrize(
    ("listen", "settings", "status", "says"),
    [
        ("127.0.0.1:8686", {}, "ok", "only programs of this host"),
        ("[::1]:8686", {}, "ok", "only programs of this host"),
        ("0.0.0.0:8686", {"tokens": True}, "warning", "without TLS: who sees the traffic can read tokens and jobs"),
        ("[::]:8687", {"insecure": True}, "warning", "no token is needed"),
        ("10.0.0.1:8686", {"tokens": True, "tls": True}, "ok", "with TLS"),
    ],
)
def test_a_listener_that_others_can_reach_has_tls_or_a_warning(tmp_path, listen, settings, status, says):
    (tmp_path / "file").write_text("a-token-of-some-length\n")
    given = {"http__listen": listen, "http__insecure": str(settings.get("insecure", False)).lower()}
    if settings.get("tokens"):
        given["http__tokens_file"] = tmp_path / "file"
    if settings.get("tls"):
        given |= {"http__tls_cert": tmp_path / "file", "http__tls_key": tmp_path / "file"}
    found = setting(**given)
    check = host.listener(found.config)
    assert (check.status, says in check.summary) == (status, True), check.summary
    (fix,) = copyable(found, check).fix or ("none",)
    assert (status == "warning") == (f"127.0.0.1:{found.config.http.listen.port}" in fix), fix


# -- the state directory


@pytest.mark.parametrize(("free", "status"), [(10**10, "ok"), (3 * 10**8, "warning"), (10**7, "failure")])
def test_a_disk_that_fills_up_is_reported_before_it_is_full(tmp_path, monkeypatch, free, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    found = setting(state__directory=tmp_path)
    check = copyable(found, host.directory(found.config))
    assert (check.status, check.fix) == (status, ()), "what fills it is not the correlator's to delete"


def test_a_state_directory_that_cannot_be_written_is_a_failure(tmp_path, monkeypatch):
    (tmp_path / "state").touch()
    assert host.directory(setting(state__directory=tmp_path / "state").config).status == "failure"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert host.directory(setting(state__directory=tmp_path / "new").config).status == "failure"


# -- the checkpoint


URL = "mysql://u@h:3306/d"


@pytest.fixture
def checkpoint(tmp_path):
    """One that an earlier run left."""
    written = Checkpoint(tmp_path / "checkpoint.sqlite", URL)
    written.open()
    written.write(Changes(time.time(), Cursor(head=77), IndexState(), {}, {1: ("mqtt", b"j", b"{}")}))
    yield written
    written.close()


def inspect_checkpoint(tmp_path, url=URL):
    return host.checkpoint(setting(state__directory=tmp_path, database__url=url).config)


def test_a_checkpoint_is_reported_in_numbers_and_not_changed(tmp_path, checkpoint):
    checkpoint.close()
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    check, figures = inspect_checkpoint(tmp_path)
    assert check == ok(host.CHECKPOINT, "0 jobs and 1 events, up to row 77 of the log")
    assert (figures.head, figures.events, figures.version) == (77, 1, VERSION)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    (moved,) = inspect_checkpoint(tmp_path, "mysql://u@other/d")[0].detail
    assert f"written at {URL}: the next start compares the jobs" in moved
    assert inspect_checkpoint(tmp_path / "new")[0].status == "ok", "before the first start there is none"


def test_a_checkpoint_that_was_left_in_a_crash_is_read_with_its_log(tmp_path, checkpoint):
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for file in tmp_path.glob("checkpoint.sqlite*"):
        shutil.copyfile(file, crashed / file.name)
    assert inspect_checkpoint(crashed)[1].head == 77


def damage(file):
    file.write_bytes(file.read_bytes()[:5000] + b"\xff" * 20_000)


def set_state(name, value):
    def change(file):
        with sqlite3.connect(file) as connection:
            connection.execute("UPDATE rows SET value = ? WHERE key = ?", (value, name))
        connection.close()

    return change


def renumber(file):
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (damage, "cannot be used"),
        (set_state("source", b"\xa2\xff\xff"), "cannot be used"),  # no UTF-8: UnicodeDecodeError
        (set_state("moment", 5), "cannot be used"),  # no bytes: TypeError
        (set_state("moment", b"\xc1"), "cannot be used"),
        (renumber, "version 99"),
        (lambda file: file.write_bytes(b"something else" * 100), "not a database"),
    ],
)
def test_a_checkpoint_that_the_next_start_would_set_aside_is_warned_of(tmp_path, checkpoint, change, says):
    checkpoint.close()
    change(tmp_path / "checkpoint.sqlite")
    check, _ = inspect_checkpoint(tmp_path)
    assert (check.status, says in check.summary) == ("warning", True), check


# -- the unit


@pytest.mark.parametrize(
    ("said", "status", "says"),
    [
        ({"LoadState": "not-found", "ActiveState": "inactive"}, "ok", "not installed"),
        ({"LoadState": "masked", "ActiveState": "inactive"}, "warning", "unmask"),
        ({"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "NRestarts": "3"}, "ok", "3 times"),
        ({"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead"}, "warning", "enable --now"),
        (
            {"LoadState": "loaded", "ActiveState": "activating", "StatusText": "waiting for the database"},
            "warning",
            "waiting for the database",
        ),
        ({"LoadState": "loaded", "ActiveState": "failed", "Result": "watchdog"}, "failure", "watchdog"),
        (
            {"LoadState": "loaded", "ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "78"},
            "failure",
            "check-config",
        ),
        ({"LoadState": "loaded", "ActiveState": "active", "NeedDaemonReload": "yes"}, "warning", "daemon-reload"),
    ],
)
def test_the_state_of_the_unit_is_judged(said, status, says):
    check = host.judge_unit(said)
    assert check.status == status
    assert says in " ".join((check.summary, *check.detail, *check.fix))


@pytest.mark.parametrize("is_running", [False, True])
async def test_a_host_without_systemd_is_no_error_and_a_systemctl_that_fails_is_one(monkeypatch, tmp_path, is_running):
    systemctl = tmp_path / "systemctl"
    systemctl.write_text('#!/bin/sh\necho "Can\'t operate."\nexit 1\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    check = await host.unit_state(running=tmp_path if is_running else tmp_path / "none")
    assert (check.status, "Can't operate." in check.detail) == (("warning", True) if is_running else ("ok", False))


async def test_a_program_that_does_not_end_is_ended():
    with pytest.raises(TimeoutError):
        await service.run("sleep", "1000", within=0.05)


# -- what the service has and a shell has not


@pytest.fixture
def installed(tmp_path, monkeypatch):
    (tmp_path / "etc").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "etc" / "db-password").write_text("from-etc\n")
    (tmp_path / "etc" / "correlator.toml").write_text("")
    place(monkeypatch, tmp_path / "etc", state=tmp_path / "var")
    return tmp_path


def test_from_a_shell_the_credentials_and_the_state_of_the_service_are_used(installed, monkeypatch):
    found = service.load(None, {"HOME": "/root"}).config
    assert found.database.password.reveal() == "from-etc"
    assert found.state.directory == installed / "var"
    own = installed / "own.toml"
    own.touch()
    assert not service.load(own, {"HOME": "/root"}).config.database.password
    given = {"HOME": "/root", "STATE_DIRECTORY": "/srv/state"}
    assert str(service.load(None, given).config.state.directory) == "/srv/state"
    (installed / "var").rmdir()
    assert service.load(None, {"HOME": "/root"}).config.state.directory != installed / "var"
    (installed / "correlator.service").touch()
    place(monkeypatch, installed / "etc", state=installed / "var", units=installed)
    assert service.load(None, {"HOME": "/root"}).config.state.directory == installed / "var", "before its first start"


@pytest.fixture
def running(installed):
    """The service runs: it has copies of its secrets, blank ones of those that are not there."""
    (installed / "run").mkdir()
    for name, text in (("db-password", "from-etc"), ("mqtt-password", ""), ("api-token", ""), ("otlp-headers", "")):
        (installed / "run" / name).write_text(text + "\n")
        (installed / "run" / name).chmod(0o400)
    (installed / "etc" / "db-password").chmod(0o600)
    return installed


def test_what_a_file_holds_now_is_tried_and_not_the_copy_of_the_running_service(running):
    (running / "etc" / "db-password").write_text("newer\n")
    found = service.load(None, {"HOME": "/root"})
    assert found.config.database.password.reveal() == "newer"
    check = host.secrets(found)
    assert (check.status, check.fix) == ("warning", ("systemctl restart correlator",))
    assert f"{running}/etc/db-password" in check.summary
    assert "until it is restarted" in " ".join(database.refused(found, "Access denied (1045)", 1045).detail)


def test_a_world_readable_file_is_found_behind_the_service_s_private_copy(running):
    found = service.load(None, {"HOME": "/root"})
    assert host.secrets(found) == ok(host.SECRETS, "1 file with a secret, not readable by every user")
    (running / "etc" / "db-password").chmod(0o644)
    check = host.secrets(found)
    assert check.status == "failure"
    subprocess.run(["sh", "-ec", "\n".join(check.fix)], check=True)
    assert host.secrets(found).status == "ok"


def test_a_secret_from_a_drop_in_is_read_from_the_service_s_copy(running, monkeypatch):
    place(monkeypatch, running / "etc", units=running)
    (running / "correlator.service.d").mkdir()
    (running / "correlator.service.d" / "vault.conf").write_text("[Service]\nLoadCredential=db-password:/srv/vault\n")
    (running / "run" / "db-password").chmod(0o600)
    (running / "run" / "db-password").write_text("from-vault\n")
    found = service.load(None, {"HOME": "/root"})
    assert found.config.database.password.reveal() == "from-vault"
    assert host.secrets(found).status == "ok"
