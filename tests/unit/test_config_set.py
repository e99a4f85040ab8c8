"""`correlator config`: what is set is used, and is shown with its place; everything else of a file stays."""

import asyncio
import fcntl
import json
import os
import re
import threading
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from correlator.cli import main
from correlator.config import editing, loading
from correlator.config.editing import LOCAL, move_keys, with_value
from correlator.config.loading import load
from correlator.config.rendering import gateway_reference, reference
from correlator.config.schema import leaves, value_of
from correlator.daemon import LIVE
from correlator.doctor import bundle, service
from correlator.doctor.daemon import DaemonFindings
from correlator.doctor.examination import Examined
from correlator.doctor.report import CheckReport
from correlator.errors import ConfigError
from tests.support.package_files import place

HOME = {"HOME": "/home/me"}


@pytest.fixture
def etc(tmp_path, monkeypatch, log_as_before):
    """/etc/correlator as the package makes it."""
    etc = tmp_path / "etc"
    for folder in ("conf.d", "gateway.d"):
        (etc / folder).mkdir(parents=True)
    (etc / "correlator.toml").write_text(reference())
    (etc / "gateway.toml").write_text(gateway_reference())
    place(monkeypatch, etc)
    return etc


@pytest.fixture
def run(etc):
    def run(*arguments, env=None):
        return CliRunner().invoke(main, ["config", "set", *map(str, arguments)], env=HOME | (env or {}))

    return run


def test_a_key_is_written_into_a_drop_in_that_the_service_can_read_and_is_used(run, etc):
    (etc / "conf.d").rmdir()
    before = os.umask(0o077)
    try:
        result = run("database.timezone", "Europe/Berlin")
    finally:
        os.umask(before)
    assert (result.exit_code, result.stderr) == (0, "")
    local = etc / "conf.d" / LOCAL
    assert result.stdout.splitlines() == [
        f'{local}: database.timezone = "Europe/Berlin"',
        "A restart applies it: systemctl restart correlator",
    ]
    assert (local.parent.stat().st_mode & 0o777, local.stat().st_mode & 0o777) == (0o755, 0o644)
    assert load(etc / "correlator.toml", HOME).database.timezone == "Europe/Berlin"
    assert (etc / "correlator.toml").read_text() == reference()
    place = f'database.timezone = "Europe/Berlin"  # {local}:2\n'
    for command, shown in (("list", place), ("get", place), ("get", 'mqtt.tls.ca = ""  # default\n')):
        key = () if command == "list" else (shown.partition(" ")[0],)
        assert CliRunner().invoke(main, ["config", command, *key], env=HOME).stdout == shown


def test_everything_else_of_a_file_stays_as_it_was(run, etc):
    local = etc / "conf.d" / LOCAL
    local.write_text("# ours\n[jobs]  # memory\nmax_jobs = 7   # few\nhistory = '1h'\n\n[log]\n")
    local.chmod(0o640)
    assert run("jobs.max_jobs", 8, "jobs.legacy", "false", "log.level", "debug").exit_code == 0
    assert local.read_text() == (
        "# ours\n[jobs]  # memory\nmax_jobs = 8  # few\nhistory = '1h'\nlegacy = false\n\n[log]\nlevel = \"debug\"\n"
    )
    assert local.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in (etc / "conf.d").iterdir()] == [LOCAL]


def test_a_key_that_a_file_sets_is_changed_there_so_that_no_later_file_wins(run, etc):
    later = etc / "conf.d/90-site.toml"
    later.write_text("[jobs]\nmax_jobs = 7\n")
    result = run("jobs.max_jobs", 8)
    assert result.stdout.startswith(f"{later}: jobs.max_jobs = 8\n")
    assert load(etc / "correlator.toml", HOME).jobs.max_jobs == 8
    assert not (etc / "conf.d" / LOCAL).exists()


def test_a_configuration_that_would_be_wrong_or_cannot_be_written_stays_as_it_was(run, etc, monkeypatch):
    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    result = run("http.listen", "0.0.0.0:8686")
    assert result.exit_code == 78
    assert f'{etc}/conf.d/{LOCAL}:2: http.listen = "0.0.0.0:8686": anybody could connect' in result.stderr
    assert "so nothing was written" in result.stderr
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        result = run("log.level", "debug")
    assert (result.exit_code, result.stderr) == (
        1, f"correlator: {etc}/conf.d/{LOCAL}: cannot be written: Permission denied: run it as root\n",
    )  # fmt: skip
    assert not list((etc / "conf.d").iterdir())
    (etc / "api-token").write_text("a-token-of-the-service\n")  # the credential that the service gets
    assert run("http.listen", "0.0.0.0:8686").exit_code == 0
    for name in ("cert", "key"):
        (etc / name).touch()
    assert run("http.tls_cert", etc / "cert").exit_code == 78
    assert run("http.tls_cert", etc / "cert", "http.tls_key", etc / "key").exit_code == 0, "together they are right"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("jobs.external_id_keys", "a, b", ("a", "b")),
        ("jobs.external_id_keys", '["a,b", "c"]', ("a,b", "c")),
        ("jobs.legacy", "false", False),
        ("jobs.retention", "2h", 7200.0),
        ("mqtt.instance", "7", "7"),
        ("mqtt.username", "true", "true"),
        ("mqtt.username", '"quoted"', "quoted"),
        ("mqtt.username", 'it\'s "quoted" \\ # = ü 😀 \x7f', 'it\'s "quoted" \\ # = ü 😀 \x7f'),
        ("mqtt.username", "a\nlevel = 1", "a\nlevel = 1"),
        ("mqtt.url", "", None),
    ],
)
def test_a_value_is_toml_or_a_bare_text(run, etc, key, text, value):
    for _ in range(2):
        result = run(key, text)
        assert result.exit_code == 0, result.output
        assert value_of(load(etc / "correlator.toml", HOME), key) == value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("databse.timezone", "UTC"), "databse.timezone: unknown key; did you mean database.timezone?"),
        (("xyzzy.q", "1"), "unknown key; known are database, jobs, labels"),
        (("database", "1"), "database: a section, no key; its keys are database.url, "),
        (("mqtt.tls", "{}"), "mqtt.tls: a section, no key; its keys are mqtt.tls.ca"),
        (("webhooks.url", "x"), "write the table [[webhooks]] into a drop-in; see docs/configuration.md"),
        (("http.tokens[1].name", "gui"), "write the table [[http.tokens]] into a drop-in; see docs/configuration.md"),
        (("jobs.max_jobs", "many"), 'jobs.max_jobs = "many": expected a whole number, at least 1'),
        (("jobs.max_jobs", "7\nlegacy = false"), "expected a whole number, at least 1"),
        (("log.level", "debug", "jobs.legacy"), "a value is missing after jobs.legacy"),
        (("--gateway", "database.timezone", "UTC"), "a gateway does not read it; it reads [http], [cluster], [log]"),
        ((), "Missing argument"),
    ],
)
def test_what_cannot_be_set_is_a_usage_error_that_says_why(run, etc, arguments, words):
    result = run(*arguments)
    assert (result.exit_code, words in result.stderr) == (2, True), result.stderr
    assert {path.name for path in etc.iterdir()} == {"correlator.toml", "gateway.toml", "conf.d", "gateway.d"}
    assert not list((etc / "conf.d").iterdir())


@pytest.mark.parametrize(
    ("key", "value", "way"),
    [
        ("database.password", "hunter2", "database.password_file"),
        ("database.url", "mysql://u:hunter2@h/d", "db-password"),
        ("database.url", '"mysql://u:hunter2@h/d"', "db-password"),
        ("otlp.headers", "Authorization: Bearer hunter2", "otlp.headers_file"),
        ("otlp.headers", '["a: b", "X-Api-Key: hunter2"]', "otlp-headers"),
        ("mqtt.url", "mqtt://u:hunter2@h", "mqtt.password_file"),
    ],
)
def test_a_secret_is_refused_without_being_shown_and_with_the_way_it_goes_in(run, etc, key, value, way):
    result = run(key, value)
    assert (result.exit_code, way in result.stderr, "hunter2" in result.output) == (2, True, False), result.output
    assert not list((etc / "conf.d").iterdir())


def test_every_key_can_be_set_or_says_how_its_value_goes_in(run):
    """But for its value: whatever is wrong is that."""
    for dotted, _ in leaves():
        said = run(dotted, "\x01").output
        assert "unknown key" not in said, said
        assert dotted in said, said


def test_it_says_whether_a_reload_suffices(run, etc):
    assert "A reload applies it: systemctl reload correlator\n" in run("jobs.stalled_after", "9m").stdout
    assert "A restart applies it: systemctl restart correlator\n" in run("jobs.retention", "9m").stdout
    assert "restart correlator\n" in run("otlp.url", "http://127.0.0.1:4318").stdout  # it was off
    assert "reload correlator\n" in run("otlp.url", "http://127.0.0.1:4319").stdout
    assert "restart correlator\n" in run("jobs.stalled_after", "8m", "jobs.retention", "8m").stdout
    again = run("jobs.stalled_after", "8m").stdout
    assert 'jobs.stalled_after = "8m", as before\nThe configuration in use does not change.\n' in again
    assert "jobs.stalled_after" in LIVE


def test_a_variable_that_wins_over_the_files_is_named_whether_the_unit_or_the_shell_has_it(run, tmp_path):
    (tmp_path / "systemctl").write_text(
        "#!/bin/sh\necho 'Environment=HOME=/ \"CORRELATOR_LOG__LEVEL=debug\" CORRELATOR_JOBS__MAX_JOBS=5'\n"
        f'echo "$@" >{tmp_path}/asked\n'
    )
    (tmp_path / "systemctl").chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    said = run("jobs.max_jobs", 7, "jobs.legacy", "false", env=path).stdout
    assert [line for line in said.splitlines() if line.startswith("But")] == [
        "But CORRELATOR_JOBS__MAX_JOBS of the unit wins over the files: remove it by systemctl edit correlator"
    ]
    assert (tmp_path / "asked").read_text() == "show correlator --property=Environment\n"
    said = run("jobs.max_jobs", 8, env={"CORRELATOR_JOBS__MAX_JOBS": "5"}).stdout
    assert "But CORRELATOR_JOBS__MAX_JOBS of this environment wins over the files" in said
    assert "does not change" in said


def test_keys_of_a_gateway_are_written_into_its_own_folder(run, etc):
    said = run("--gateway", "http.max_readers", 7).stdout
    assert "The gateway cannot start yet. cluster.url: a gateway reads a cluster" in said
    said = run("--gateway", "cluster.url", "nats://127.0.0.1:4222").stdout
    assert f'{etc}/gateway.d/{LOCAL}: cluster.url = "nats://127.0.0.1:4222"\n' in said
    assert "restart correlator-gateway\n" in said
    assert "systemctl reload correlator-gateway\n" in run("--gateway", "log.level", "debug").stdout
    assert load(etc / "gateway.toml", HOME, gateway=True).http.max_readers == 7
    assert not list((etc / "conf.d").iterdir())


def test_another_file_has_its_own_drop_in_and_missing_folders_are_made(run, etc, tmp_path, monkeypatch):
    file = tmp_path / "dc1.toml"
    assert run("--config", file, "log.level", "debug").exit_code == 78  # a mistyped name makes no folder
    file.touch()
    said = run("--config", file, "log.level", "debug").stdout
    assert said == f'{tmp_path}/dc1.d/{LOCAL}: log.level = "debug"\nA reload applies it: send SIGHUP to the process.\n'
    place(monkeypatch, etc / "new")
    for option, folder in ((), "conf.d"), (("--gateway",), "gateway.d"):
        assert run(*option, "log.level", "debug").exit_code == 0
        assert (etc / "new" / folder / LOCAL).is_file()
    assert load(loading.default_file(), HOME).log.level == "debug"


def test_a_warning_names_the_files_that_set_a_key_twice(run, etc):
    for name in ("10-a.toml", "20-b.toml"):
        (etc / "conf.d" / name).write_text("[jobs]\nmax_jobs = 7\n")
    warning = f"jobs.max_jobs is set in {etc}/conf.d/10-a.toml:2 and in {etc}/conf.d/20-b.toml:2: the last one is used"
    assert warning in run("log.level", "debug").stderr
    for command in (["check-config"], ["doctor", "-o", "json"]):
        assert warning in CliRunner().invoke(main, command, env=HOME).output
    examined = Examined(CheckReport("1", "now", ()), DaemonFindings(()), None, "")
    members = asyncio.run(bundle.gather(service.load(None, HOME), examined))
    collected = json.loads(members["configuration.json"])
    assert collected["set_twice"] == [warning]
    assert collected["files"] == [
        str(etc / name) for name in ("correlator.toml", "conf.d/10-a.toml", "conf.d/20-b.toml", f"conf.d/{LOCAL}")
    ]


@pytest.mark.parametrize(("user", "password"), [(0, "***"), (1000, "")])
def test_only_root_checks_the_configuration_with_the_secrets_of_the_service(etc, monkeypatch, user, password):
    (etc / "db-password").write_text("x\n")
    monkeypatch.setattr("os.geteuid", lambda: user)
    found = json.loads(CliRunner().invoke(main, ["check-config", "-o", "json"], env=HOME).stdout)
    assert found["database"]["password"] == password


def test_a_gateways_configuration_is_checked_as_one(run, etc):
    run("--gateway", "cluster.url", "nats://127.0.0.1:4222")
    assert CliRunner().invoke(main, ["check-config", "--gateway"], env=HOME).exit_code == 0
    (etc / "gateway.d/60-wrong.toml").write_text("[database]\n")
    checked = CliRunner().invoke(main, ["check-config", "--gateway"], env=HOME)
    wrong = f"correlator: {etc}/gateway.d/60-wrong.toml:1: database: a gateway reads no database: remove this section\n"
    assert (checked.exit_code, checked.stderr) == (78, wrong)


# -- what is set, and where


@pytest.fixture
def shown(etc):
    """Run `config get` or `config list`. Returns the exit code, the documents and standard error."""

    def shown(*arguments, env=None):
        ended = CliRunner().invoke(main, ["config", *arguments, "-o", "json"], env=HOME | (env or {}))
        found = json.loads(ended.stdout or "[]")
        return ended.exit_code, found if isinstance(found, list) else [found], ended.stderr

    return shown


def test_each_key_that_is_set_is_listed_with_the_place_that_its_value_comes_from(shown, run, etc, monkeypatch):
    assert shown("list") == (0, [], "")
    run("jobs.max_jobs", 7, "jobs.history", "7d")
    (etc / "conf.d/60-more.toml").write_text(
        "jobs.max_jobs = 8\n[database]\nurl = 'mysql://u:hunter2@h/d'\n[otlp]\nheaders = ['a: b', 'X-Key: hunter2']\n"
        "[[webhooks]]\nname = 'chat'\nurl = 'https://chat.example/hunter2'\n"
    )
    (etc / "mqtt-password").write_text("hunter2")
    (etc / "webhook-chat-secret").write_text("whsec_" + "A" * 32)
    monkeypatch.setattr(service, "variables_of", variables_of)
    variable = {"CORRELATOR_JOBS__LEGACY": "false"}
    code, found, error = shown("list", env=variable)
    assert (code, error) == (
        0,
        "warning: CORRELATOR_JOBS__HISTORY of the unit wins over the files: systemctl cat correlator\n",
    )
    local, more = etc / "conf.d" / LOCAL, etc / "conf.d/60-more.toml"
    assert {one["key"]: (one["value"], one["from"]) for one in found} == {
        "database.url": ("mysql://u@h:3306/d", f"{more}:3"),
        "database.password": ("***", f"{more}:3"),
        "jobs.max_jobs": (8, f"{more}:1"),
        "jobs.history": (604800.0, f"{local}:3"),
        "jobs.legacy": (False, "CORRELATOR_JOBS__LEGACY"),
        "mqtt.password": ("***", f"{etc}/mqtt-password"),
        "otlp.headers": (["a: ***", "X-Key: ***"], f"{more}:5"),
        "webhooks[1].name": ("chat", f"{more}:7"),
        "webhooks[1].url": ("https://chat.example/***", f"{more}:8"),
        "webhooks[1].secret": ("***", f"{etc}/webhook-chat-secret"),
    }
    everything = shown("list", "--all", env=variable)[1]
    assert found == [one for one in everything if one["from"] is not None]
    assert {dotted for dotted, _ in leaves() if ".tls." not in dotted} <= {one["key"] for one in everything}
    assert [shown("get", one["key"], env=variable)[1] for one in everything] == [[one] for one in everything]


async def variables_of(unit):
    return {"CORRELATOR_JOBS__HISTORY", "CORRELATOR_JOBS__LEGACY", "CORRELATOR_LOG__LEVEL"}


def test_a_wrong_value_hides_no_other_and_is_shown_as_an_error_without_its_secret(shown, etc):
    at = etc / "conf.d/50-wrong.toml"
    at.write_text("[jobs]\nmax_jobs = 0\nlegacy = false\n[otlp]\nheaders = ['Authorization: hunter2']\n")
    code, found, error = shown("list")
    assert (code, [one["key"] for one in found]) == (78, ["jobs.legacy"])
    assert (
        error.splitlines()[0]
        == f"correlator: {at}:2: jobs.max_jobs = 0: expected a whole number, at least 1, e.g. 20000"
    )
    assert f"{at}:5: otlp.headers = ***: expected a list of headers" in error
    assert shown("get", "jobs.legacy") == (0, found, "")
    assert shown("get", "jobs.max_jobs") == (78, [], error.splitlines(keepends=True)[0])
    at.write_text("[jobs\n")
    assert shown("get", "jobs.legacy")[0] == 78


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("jobs.max_job",), "jobs.max_job: unknown key; did you mean jobs.max_jobs?"),
        (("jobs",), "jobs: a section, no key; its keys are jobs.retention, "),
        (("webhooks[1].url",), "webhooks[1].url: no key: there may be several webhooks, and the keys of the first are"),
        (("--gateway", "jobs.max_jobs"), "a gateway does not read it; it reads [http], [cluster], [log]"),
    ],
)
def test_a_key_that_there_is_not_is_a_usage_error_that_names_the_right_one(shown, arguments, words):
    code, found, error = shown("get", *arguments)
    assert (code, found, words in error) == (2, [], True), error


def test_a_gateway_lists_what_it_reads(shown, run, etc):
    run("--gateway", "http.listen", "127.0.0.1:9000")
    (one,) = shown("list", "--gateway")[1]
    assert one == {"key": "http.listen", "value": "127.0.0.1:9000", "from": f"{etc}/gateway.d/{LOCAL}:2"}
    sections = {one["key"].split(".")[0] for one in shown("list", "--gateway", "--all")[1]}
    assert sections == {"http", "cluster", "log"}


def test_commands_at_the_same_time_lose_no_key(etc):
    dotted = [key for key, _ in leaves() if key.startswith("jobs.max_")]
    threads = [
        threading.Thread(target=editing.set_keys, args=(etc / "correlator.toml", [(key, "9000")], HOME))
        for key in dotted
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = load(etc / "correlator.toml", HOME)
    assert [value_of(found, key) for key in dotted] == [9000] * 3


def test_a_command_waits_for_another_one_for_a_bounded_time(etc):
    other = os.open(etc, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(editing.NotWritten, match="another command"):
        editing.set_keys(etc / "correlator.toml", [("log.level", "debug")], HOME, lock_within=0.0)
    os.close(other)
    editing.set_keys(etc / "correlator.toml", [("log.level", "debug")], HOME, lock_within=0.0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '[database.tls]\nca = "/x"\n'),
        ("[database]\nurl = 'x'", "[database]\nurl = 'x'\n\n[database.tls]\nca = \"/x\"\n"),
        ("[database.tls]\n# why\nca = '/y'# here\n", '[database.tls]\n# why\nca = "/x"  # here\n'),
        ("[database]\ntls = { verify = true }  # a\n", '[database]\ntls = { "verify" = true, "ca" = "/x" }  # a\n'),
        ("[database]\ntls.verify = true\n[log]\n", '[database]\ntls.verify = true\ntls.ca = "/x"\n[log]\n'),
        ("database.tls.ca = '/y'\n", 'database.tls.ca = "/x"\n'),
        ("database.tls = {}\n", 'database.tls = { "ca" = "/x" }\n'),
        ("  [database.tls]\n  verify = true\n", '  [database.tls]\n  verify = true\n  ca = "/x"\n'),
        ("[database.tls]\nca = '''\n#'''\nverify = true", '[database.tls]\nca = "/x"\nverify = true\n'),
        ("database = { }\n", 'database = { "tls" = { "ca" = "/x" } }\n'),
    ],
)
def test_a_key_is_set_whatever_form_its_table_has(before, after):
    assert with_value(Path("/f"), before, ("database", "tls", "ca"), "/x") == after
    with pytest.raises(editing.NotSet, match="database is no table there"):
        with_value(Path("/f"), "database = 1\n", ("database", "tls", "ca"), "/x")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)


@given(
    st.lists(st.tuples(st.sampled_from([dotted for dotted, _ in leaves()]), texts | st.lists(texts, max_size=3))),
    st.booleans(),
)
def test_any_keys_with_any_texts_can_be_set_in_any_order(changes, reverse):
    text = reference()
    expected = {}
    for dotted, value in reversed(changes) if reverse else changes:
        text = with_value(Path("/f"), text, tuple(dotted.split(".")), value)
        expected[dotted] = value
    parsed = tomllib.loads(text)
    for dotted, value in expected.items():
        found = parsed
        for name in dotted.split("."):
            found = found[name]
        assert found == value
    comments = [line for line in reference().splitlines() if line.startswith("#")]
    assert [line for line in text.splitlines() if line.startswith("#")] == comments


# -- the keys of a file that the package delivers move to a drop-in

EDITED = f"""{reference().replace('#timezone = "auto"', 'timezone = "UTC"  # ours')}
[[webhooks]]
name = "chat"
url = "https://chat.example/x"  # the team's
"""


def test_the_keys_of_an_edited_file_move_to_a_drop_in_and_stay_in_use(etc):
    file = etc / "correlator.toml"
    file.write_text(EDITED)
    file.chmod(0o640)
    before = load(file, HOME)
    assert move_keys(file, reference()) == etc / "correlator.toml.dpkg-old"
    assert file.read_text() == reference()
    assert load(file, HOME) == before
    moved = etc / "conf.d/00-moved.toml"
    assert moved.read_text() == (
        f"# Keys that were set in {file}: an upgrade of the package moved them here.\n\n"
        '[database]\ntimezone = "UTC"\n\n'
        '[[webhooks]]\nname = "chat"\nurl = "https://chat.example/x"  # the team\'s\n'
    )
    assert moved.stat().st_mode & 0o777 == 0o640  # it may hold a password
    assert (etc / "correlator.toml.dpkg-old").read_text() == EDITED
    assert move_keys(file, reference()) is None
    assert load(file, HOME) == before
    # Again, after a file was edited that has other values, and a drop-in that wins.
    (etc / "conf.d" / LOCAL).write_text("[jobs]\nmax_jobs = 8\n")
    file.write_text('[database]\ntimezone = "CET"\n[jobs]\nmax_jobs = 9\nhistory = "1h"\n[mqtt.tls]\n')
    before = load(file, HOME)
    move_keys(file, reference())
    assert load(file, HOME) == before
    assert (before.database.timezone, before.jobs.max_jobs, before.jobs.history) == ("UTC", 8, 3600)
    assert before.mqtt.tls is not None, "its empty table switches TLS on"


TOKENS = """
[http]
listen = "127.0.0.1:9000"
[[http.tokens]]
name = "{}"
file = "{}"
expires = 2030-01-01T00:00:00Z  # ask again then
"""


def test_the_tables_of_a_section_move_as_they_are_written_and_keys_are_set_beside_them(etc):
    file, (one, two) = etc / "correlator.toml", (etc / "one", etc / "two")
    for number, secret in enumerate((one, two)):
        secret.write_text(f"a-token-with-number-{number}")
        file.write_text(TOKENS.format(secret.name, secret))
        before = load(file, HOME)
        move_keys(file, reference())
        after = load(file, HOME)
        assert sorted(after.http.tokens, key=str) == sorted(before.http.tokens, key=str)
        assert after.http.listen == before.http.listen
    moved = etc / "conf.d/00-moved.toml"
    assert moved.read_text().count("# ask again then") == 2
    assert [one.name for one in load(file, HOME).http.tokens] == ["one", "two"]
    editing.set_keys(file, [("http.max_readers", "7")], HOME)
    moved.write_text(re.sub(r"^listen.*\n", "", moved.read_text(), flags=re.MULTILINE))
    editing.set_keys(file, [("http.listen", "127.0.0.1:9001"), ("http.max_readers", "8")], HOME)
    http = load(file, HOME).http
    assert (str(http.listen), http.max_readers, len(http.tokens)) == ("127.0.0.1:9001", 8, 2)


def test_a_move_that_was_interrupted_is_completed(etc, monkeypatch):
    file = etc / "correlator.toml"
    file.write_text(EDITED)
    before = load(file, HOME)
    for write in range(3):

        def failing(path, text, *, like=None, left=[write], written=editing.write):  # noqa: B006
            if left[0] == 0:
                raise editing.NotWritten("no space")
            left[0] -= 1
            written(path, text, like=like)

        with monkeypatch.context() as patch:
            patch.setattr(editing, "write", failing)
            with pytest.raises(editing.NotWritten):
                move_keys(file, reference())
    move_keys(file, reference())
    assert load(file, HOME) == before
    assert file.read_text() == reference()


def test_a_file_without_keys_is_replaced_and_one_that_is_no_toml_or_a_link_stays(etc):
    file = etc / "correlator.toml"
    file.write_text("# of an older version\n[database]\n")
    assert move_keys(file, reference()) is None
    assert file.read_text() == reference(), "it has no key"
    file.write_text("[database\n")
    with pytest.raises(ConfigError, match="not TOML"):
        move_keys(file, reference())
    assert file.read_text() == "[database\n"
    file.unlink()
    (etc / "elsewhere").write_text('[log]\nlevel = "debug"\n')
    file.symlink_to("elsewhere")
    assert move_keys(file, reference()) is None
    assert (file.is_symlink(), load(file, HOME).log.level) == (True, "debug")


def test_every_key_can_move(etc):
    file = etc / "correlator.toml"
    file.write_text(re.sub(r"^#(?=\S)", "", reference(), flags=re.MULTILINE))
    before = load(file, HOME)
    assert before.mqtt.tls is not None
    move_keys(file, reference())
    assert (load(file, HOME), file.read_text()) == (before, reference())


# unset


@pytest.fixture
def unset(etc):
    def unset(*arguments, env=None):
        return CliRunner().invoke(main, ["config", "unset", *map(str, arguments)], env=HOME | (env or {}))

    return unset


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('[database.tls]\nca = "/x"\n', ""),
        ('[database]\nurl = "mysql://u@h/d"\n\n[database.tls]\nca = "/x"\n', '[database]\nurl = "mysql://u@h/d"\n\n'),
        ('[database]\ntls.ca = "/x"  # ours\ndoorbell = true\n', "[database]\ndoorbell = true\n"),
        ('[database]\ntls = { ca = "/x" }\n', "[database]\n"),
        ('[database]\ntls = { ca = "/x", verify = true }\n', '[database]\ntls = { "verify" = true }\n'),
        ('# a\n[database.tls]  # b\n# c\nca = "/x"\nverify = true\n', "# a\n[database.tls]  # b\n# c\nverify = true\n"),
        ('database = { doorbell = true, tls = { ca = "/x" } }\n', 'database = { "doorbell" = true }\n'),
    ],
)
def test_a_key_is_removed_with_its_table_if_that_is_empty_then(text, left):
    assert editing.without_value(Path("x"), text, ("database", "tls", "ca")) == left


def test_tls_is_switched_off_by_a_command(run, unset, etc):
    (etc / "ca.pem").write_text("")
    assert run("database.tls.ca", etc / "ca.pem").exit_code == 0
    (etc / "conf.d" / "60-more.toml").write_text("[database.tls]\nverify = false\n")
    assert load(etc / "correlator.toml", HOME).database.tls is not None
    result = unset("database.tls")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"{etc / 'conf.d' / LOCAL}: database.tls is removed",
        f"{etc / 'conf.d' / '60-more.toml'}: database.tls is removed",
        "A restart applies it: systemctl restart correlator",
    ]
    assert load(etc / "correlator.toml", HOME).database.tls is None
    again = unset("database.tls", "jobs.max_jobs")
    assert again.stdout.splitlines()[:2] == ["No file sets database.tls.", "No file sets jobs.max_jobs."]
    assert again.exit_code == 0


def test_what_others_need_and_what_is_unknown_is_not_removed(run, unset, etc):
    assert run("http.listen", "0.0.0.0:8686", "http.insecure", "true").exit_code == 0
    local = (etc / "conf.d" / LOCAL).read_text()
    for wrong, code in (("http.insecure", 78), ("mqtt", 2), ("mqtt.urll", 2), ("webhooks[1].url", 2)):
        assert unset(wrong).exit_code == code, wrong
        assert (etc / "conf.d" / LOCAL).read_text() == local


@given(st.lists(st.sampled_from([name for name, key in leaves() if not key.is_secret]), min_size=1, unique=True))
def test_what_is_set_one_by_one_and_removed_again_leaves_no_key(names):
    text = "# first\n[log]\n"
    for name in names:
        text = with_value(Path("x"), text, tuple(name.split(".")), "x")
    for name in names:
        text = editing.without_value(Path("x"), text, tuple(name.split(".")))
    assert not any(tomllib.loads(text).values())
    assert "tls]" not in text
    assert text.startswith("# first\n")
