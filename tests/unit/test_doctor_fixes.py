"""Every fix that the doctor shows is a command that can be pasted, and does what it says."""

from __future__ import annotations

import io
import subprocess

import msgspec
import pytest
from msgspec.structs import replace

from correlator.config import loading as configuration
from correlator.doctor import database, service
from correlator.doctor.report import Check, CheckReport, copyable, failure, new_password
from correlator.doctor.service import Setting
from correlator.terminal.doctor import print_report
from tests.support.eventually import PATIENCE
from tests.support.package_files import place
from tests.support.paths import REPOSITORY
from tests.support.root_shell import write_program

OTHER = {"HOME": "/root"}


def setting(file=None, **settings):
    environ = OTHER | {f"CORRELATOR_{k.upper()}": str(v) for k, v in settings.items()}
    return Setting(configuration.load(file, environ), file, environ)


def shown(found: Setting, *written: str) -> tuple[str, ...]:
    return copyable(found, failure("x", "x", fix=written)).fix


def paste(*commands: str, **environ: str) -> str:
    ended = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join([*commands, "env"])],
        check=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"} | environ, timeout=PATIENCE,
    )  # fmt: skip
    return ended.stdout


def test_a_setting_is_a_command_that_sets_it(tmp_path):
    file = tmp_path / "the file.toml"
    file.write_text('[database]  # ours\ntimezone = "UTC"\n\n[jobs]\nlegacy = false\n')
    write_program(tmp_path, tmp_path / "none.toml")
    written = ('database.timezone = "Europe/Berlin"', "jobs.legacy = true", 'jobs.external_id_keys = ["a", "b|c&d"]')
    paste(*shown(setting(file), *written), PATH=f"{tmp_path}:/usr/bin:/bin", PYTHONPATH=str(REPOSITORY))
    found = configuration.load(file, OTHER)
    assert (found.database.timezone, found.jobs.legacy) == ("Europe/Berlin", True)
    assert found.jobs.external_id_keys == ("a", "b|c&d")


def test_without_a_file_a_setting_is_a_variable():
    (command,) = shown(setting(), 'database.timezone = "Europe/Berlin"')
    assert "CORRELATOR_DATABASE__TIMEZONE=Europe/Berlin\n" in paste(command)


@pytest.mark.parametrize(("name", "option", "unit"), [
    ("correlator.toml", "", "correlator"),
    ("gateway.toml", "--gateway ", "correlator-gateway"),
])  # fmt: skip
def test_a_changed_setting_of_a_service_is_followed_by_its_restart(tmp_path, monkeypatch, name, option, unit):
    (tmp_path / name).touch()
    place(monkeypatch, tmp_path)
    assert shown(setting(tmp_path / name), "cluster.replicas = 3") == (
        f"correlator config set {option}cluster.replicas 3", f"systemctl restart {unit}",
    )  # fmt: skip


def test_a_statement_is_run_by_the_client_that_reaches_the_server():
    here = setting(database__url="mysql://u@127.0.0.1/d")
    there = setting(database__url="mysql://u@db.example:3307/d")
    by_socket = setting(database__unix_socket="/run/my sql.sock")
    statements = copyable(here, failure("x", "y", fix=["SHOW DATABASES;", "SELECT id FROM t;"]))
    assert statements.see == ("mariadb --execute='SHOW DATABASES;'", "mariadb d --execute='SELECT id FROM t;'")
    assert shown(there, "X;")[0].startswith("mariadb --host=db.example --port=3307 --user=root --password ")
    assert shown(by_socket, "X;")[0].startswith("mariadb --socket='/run/my sql.sock' ")


def test_only_what_repairs_is_a_fix_and_what_shows_more_stands_apart():
    repairs = ["systemctl start mosquitto", "chmod o+r x", "GRANT SELECT ON a.b TO c;", "journalctl --vacuum-size=200M"]
    shows = [
        "systemctl status mosquitto", "journalctl -u correlator -n 50", "ss -ltnp 'sport = :1'", "df -h /",
        "timedatectl", "timedatectl list-timezones", "openssl x509 -noout -in x", "correlator check-config",
    ]  # fmt: skip
    check = copyable(setting(), failure("x", "y", fix=[*shows, *repairs]))
    assert check.see == tuple(shows)
    assert len(check.fix) == len(repairs)


@pytest.mark.parametrize(
    ("fix", "gateways"),
    [
        ("systemctl restart correlator", "systemctl restart correlator-gateway"),
        ("systemctl enable --now correlator.service", "systemctl enable --now correlator-gateway.service"),
        ("systemctl restart correlator-gateway.service", "systemctl restart correlator-gateway.service"),
        ("systemctl restart mosquitto", "systemctl restart mosquitto"),
        ("journalctl -u correlator -n 50", "journalctl -u correlator-gateway -n 50"),
        ("correlator check-config", "correlator check-config --gateway"),
    ],
)
def test_a_fix_of_a_gateway_names_its_own_unit(fix, gateways):
    check = copyable(msgspec.structs.replace(setting(), file=service.GATEWAY_FILE), failure("x", "y", fix=[fix]))
    assert (*check.fix, *check.see) == (gateways,)


def test_the_account_of_a_refused_login_is_the_one_that_the_documents_make():
    found = setting(database__url="mysql://correlator@127.0.0.1/d")
    check = database.refused(found, "Access denied for user 'correlator'@'localhost' (using password: YES)", 1045)
    assert all("'correlator'@'127.0.0.1'" in fix for fix in check.fix if "GRANT" in fix or "CREATE" in fix)


@pytest.mark.parametrize("password", ["plain", "it's", r"back\slash \\ %s $HOME `id`", '"quoted"'])
def test_a_password_reaches_the_server_as_it_stands_in_its_file(tmp_path, password):
    file = tmp_path / "db-password"
    file.write_text(password + "\n")
    (tmp_path / "mariadb").write_text("#!/bin/sh\ncat >input.sql\n")
    (tmp_path / "mariadb").chmod(0o755)
    commands = new_password(setting(database__password_file=file), "'c'@'h'")
    paste(f"cd {tmp_path}", *commands, PATH=f"{tmp_path}:/usr/bin:/bin")
    literal = password.replace("\\", "\\\\").replace("'", "\\'")
    statements = (tmp_path / "input.sql").read_text()
    assert statements == f"CREATE USER IF NOT EXISTS 'c'@'h'; ALTER USER 'c'@'h' IDENTIFIED BY '{literal}';\n"


def test_a_password_that_is_missing_is_made_first_and_for_root_alone(tmp_path):
    found = Setting(setting().config, None, OTHER | {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    make, _ = new_password(found, "'c'@'h'")
    paste(make)
    assert (tmp_path / "db-password").stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "db-password").read_text().strip()) == 32


def test_the_last_line_of_the_report_says_what_its_marks_mean():
    check = Check("a", "failure", "b", fix=("repair",), see=("show",))
    ends = {
        "1 failure. Run the commands marked > to fix it."
        " Commands marked $ change nothing and show more of the cause.": check,
        "1 failure. Commands marked $ change nothing and show more of the cause.": replace(check, fix=()),
        "1 failure": replace(check, fix=(), see=()),
    }
    for end, one in ends.items():
        out = io.StringIO()
        print_report(CheckReport("1", "at", (one,)), out, {})
        assert out.getvalue().splitlines()[-1] == f"correlator 1: 0 ok, 0 warnings, {end}"
