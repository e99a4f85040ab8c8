"""The configuration: what is written is what holds, and what is wrong is said in one go, without a secret."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest

from correlator.config.loading import load
from correlator.config.rendering import redacted, reference
from correlator.config.schema import Config, Tls, leaves
from correlator.config.values import Secret
from correlator.errors import ConfigError

TOPIC = "levels of an MQTT topic, e.g. correlator/v1: no + # NUL, no / at either end, no $ in front"
SECRET = "hun/t@er2 5"


# What holds


def test_without_file_and_environment_the_defaults_of_the_schema_hold(monkeypatch):
    """But for the names that come from the host."""
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    defaults = redacted(Config())
    defaults["http"] |= {"public_url": "http://127.0.0.1:8686"}
    defaults["mqtt"] |= {"instance": "box"}
    defaults["cluster"] |= {"instance": "box"}
    defaults["state"] |= {"directory": "/home/me/.local/state/correlator"}
    assert redacted(load(None, {"HOME": "/home/me"})) == defaults


def test_every_key_of_the_reference_is_its_default_and_has_its_description(write):
    """Uncommented, the reference is a file that changes nothing, but for the tables that switch TLS on."""
    text = re.sub(r"^#(?=\S)", "", reference(), flags=re.MULTILINE)
    plain, loaded = load(None, {"HOME": "/home/me"}), write(text)
    assert (loaded.database.tls, loaded.mqtt.tls) == (Tls(), Tls())
    assert redacted(loaded) == redacted(plain) | {
        "database": redacted(plain.database) | {"tls": redacted(Tls())},
        "mqtt": redacted(plain.mqtt) | {"tls": redacted(Tls())},
        "otlp": redacted(plain.otlp) | {"tls": redacted(Tls())},
        "cluster": redacted(plain.cluster) | {"tls": redacted(Tls())},
    }
    for dotted, key in leaves():
        assert f"#{key.name} = " in reference(), dotted
        assert key.description in re.sub(r"\n# ", " ", reference()), dotted


def test_the_state_directory_is_the_configured_one_else_the_units_else_at_home(write, problems):
    unit = {"STATE_DIRECTORY": "/var/lib/correlator:/var/lib/other"}
    assert write('[state]\ndirectory = "/srv"', unit).state.directory == Path("/srv")
    assert write('[state]\ndirectory = ""', unit).state.directory == Path("/var/lib/correlator")
    assert write('[state]\ndirectory = "."', unit).state.directory == Path.cwd()
    assert problems("", {"HOME": ""}) == ("state.directory: expected a path, as there is no home directory here",)


# The environment


def test_the_environment_wins_over_the_file_and_is_read_by_the_keys_type(write):
    config = write(
        '[database]\npoll_interval = "1s"\n[http]\nallowed_hosts = ["a"]',
        {
            "CORRELATOR_DATABASE__POLL_INTERVAL": "500ms",
            "CORRELATOR_DATABASE__TLS__CA": "/dev/null",
            "CORRELATOR_DATABASE__TLS__VERIFY": "false",
            "CORRELATOR_HTTP__ALLOWED_HOSTS": "b, c,",
            "CORRELATOR_HTTP__LISTEN": "[::1]:0",
            "CORRELATOR_HTTP__MAX_READERS": "7",
            "CORRELATOR_JOBS__EXTERNAL_ID_KEYS": '["x", "y,z"]',
            "CORRELATOR_JOBS__LEGACY": "false",
            "CORRELATOR_LOG__LEVEL": "debug",
            "CORRELATOR_MQTT__PASSWORD": SECRET,
            "CORRELATOR_VERSION": "of no section",
            "OTHER__KEY": "of others",
        },
    )
    assert config.database.poll_interval == 0.5
    assert config.database.tls == Tls(ca=Path("/dev/null"), verify=False)
    assert (config.http.allowed_hosts, config.http.listen.port, config.http.max_readers) == (("b", "c"), 0, 7)
    assert (config.jobs.external_id_keys, config.jobs.legacy) == (("x", "y,z"), False)
    assert (config.log.level, config.mqtt.password.reveal()) == ("debug", SECRET)


def test_every_key_can_be_given_in_the_environment(problems):
    names = {f"CORRELATOR_{dotted.upper().replace('.', '__')}" for dotted, _ in leaves()}
    lines = problems("", {"CORRELATOR_NO__KEY": "x"} | dict.fromkeys(names, "\0"))
    assert [line for line in lines if ": unknown" in line] == [line for line in lines if "CORRELATOR_NO__KEY" in line]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("CORRELATOR_DATBASE__URL", "x", ": unknown; did you mean CORRELATOR_DATABASE__URL?"),
        ("CORRELATOR_MQTT__TLS__CAA", "x", ": unknown; did you mean CORRELATOR_MQTT__TLS__CA?"),
        ("CORRELATOR_JOBS__MAX_JOBS", "many", ' = "many": expected a whole number, at least 1, e.g. 20000'),
        ("CORRELATOR_MQTT__PASSWORD_FILE", "\udd00", ' = "\udd00": expected a path that a file system can hold'),
    ],
)
def test_what_is_wrong_in_the_environment_is_reported_by_its_name_there(problems, name, value, problem):
    assert problems("", {name: value}) == (f"{name}{problem}",)


@pytest.mark.parametrize(
    ("toml", "url"),
    [
        ('listen = "[::1]:9000"', "http://[::1]:9000"),
        ('listen = "0.0.0.0:9000"\ninsecure = true', "http://box:9000"),
        ('listen = "127.0.0.1:0"', None),
        ('public_url = "https://gateway.example/i/dc1/"', "https://gateway.example/i/dc1"),
    ],
)
def test_links_lead_to_the_address_that_is_listened_on_unless_another_is_set(write, monkeypatch, toml, url):
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    assert write(f"[http]\n{toml}").http.public_url == url


# What is wrong


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("[htpp]", "htpp: unknown section; did you mean http?"),
        ("[database]\npol_interval = 1", "database.pol_interval: unknown key; did you mean database.poll_interval?"),
        ("[mqtt.tls]\nverifi = true", "mqtt.tls.verifi: unknown key; did you mean mqtt.tls.verify?"),
        ('listen = "[::1]:1"', "listen: unknown section; did you mean http.listen?"),
        ("[jobs]\nlisten = 1", "jobs.listen: unknown key; did you mean http.listen?"),
        ("[log]\ngap_grace = 1", "log.gap_grace: unknown key; known are log.level, log.format"),
        ("[state]\nxyzzy = 1", "state.xyzzy: unknown key; known are state.directory"),
        (
            "[database]\npoll_interval = 0",
            'database.poll_interval = 0: expected a duration, at least "1ms", e.g. "20ms"',
        ),
        (
            "[jobs]\nretention = 24",
            'jobs.retention = 24: expected a duration with its unit ("24s", "24m", "24h"), e.g. "24h"',
        ),
        ('[log]\nlevel = "loud"', 'log.level = "loud": expected one of "debug", "info", "warning", "error"'),
        (
            '[http]\npublic_url = "x.example"',
            'http.public_url = "***": expected http://host or https://host/path, without user, @, query and #',
        ),
        ('[mqtt]\nprefix = "/a"', f'mqtt.prefix = "/a": expected {TOPIC}'),
        ("http = 1", "http = 1: expected a table"),
        ("[[http]]", "http = [{}]: expected a table"),
        ("[mqtt.tls]\nca = '/nope'", "mqtt.tls.ca: /nope cannot be read: No such file or directory"),
        ("[mqtt]\npassword_file = '/nope'", "mqtt.password_file: /nope cannot be read: No such file or directory"),
        ("[mqtt]\npassword_file = '/dev/null'", "mqtt.password_file: /dev/null is empty"),
        (
            '[mqtt]\nurl = "mqtt://b"\ntls = {verify = false}',
            'mqtt.tls: expected with mqtts:// only, and mqtt.url = "mqtt://b:1883" is plain',
        ),
        ('[mqtt]\nurl = "mqtt://b"\npassword = "x"', "mqtt.username: expected a name, as there is a password"),
    ],
)
def test_a_problem_names_the_key_what_stands_there_and_what_would_be_right(problems, toml, line):
    assert problems(toml) == (line,)


def test_all_problems_are_reported_together(problems):
    lines = problems(
        "[htpp]\n[jobs]\nmax_jobs = 0\n[http]\nmax_readers = 'x'\ntls_cert = '/nope'", {"CORRELATOR_LOG__LEVEL": "x"}
    )
    named = [re.split(r"[ :]", line)[0] for line in lines]
    assert sorted(named) == [
        "CORRELATOR_LOG__LEVEL", "htpp", "http.max_readers", "http.tls_cert", "http.tls_cert", "jobs.max_jobs",
    ]  # fmt: skip


def test_a_value_that_is_wrong_by_itself_is_not_blamed_twice(problems):
    (line,) = problems('[http]\nlisten = "0.0.0.0:1"\ntokens_file = 7')
    assert line == "http.tokens_file = 7: expected a path"


def test_a_listener_that_others_can_reach_needs_a_token_or_the_word_insecure(write, problems, tmp_path):
    (tmp_path / "tokens").write_text("t0ken-of-the-gui\n")
    (tmp_path / "api-token").write_text("t0ken-of-the-gui\n")
    opened = '[http]\nlisten = "0.0.0.0:8686"\n'
    (line,) = problems(opened)
    assert line.startswith('http.listen = "0.0.0.0:8686": anybody could connect')
    write(f"{opened}insecure = true")
    write(f"{opened}tokens_file = '{tmp_path / 'tokens'}'")
    write(opened, {"CREDENTIALS_DIRECTORY": str(tmp_path)})


@pytest.mark.parametrize(
    ("table", "cert", "key"),
    [("http", "tls_cert", "tls_key"), ("database.tls", "cert", "key"), ("mqtt.tls", "cert", "key")],
)
def test_certificate_and_key_come_together(write, problems, table, cert, key):
    write(f"[{table}]\n{cert} = '/dev/null'\n{key} = '/dev/null'")
    for one in (cert, key):
        (line,) = problems(f"[{table}]\n{one} = '/dev/null'")
        assert line == f"{table}.{cert}: expected together with {table}.{key}, or neither"


# Secrets


@pytest.mark.parametrize(("section", "credential"), [("database", "db-password"), ("mqtt", "mqtt-password")])
def test_passwords_come_from_their_file_else_from_the_credential(write, section, credential, tmp_path):
    (tmp_path / credential).write_text("from the credential\n")
    (tmp_path / "file").write_text(f"{SECRET}\n")
    given = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    by_file = write(f"[{section}]\npassword_file = '{tmp_path / 'file'}'", given)
    assert getattr(by_file, section).password == Secret(SECRET)
    assert getattr(write("", given), section).password == Secret("from the credential")
    for nowhere in ("/nope", "\udd00"):
        assert not getattr(write("", {"CREDENTIALS_DIRECTORY": nowhere}), section).password


def test_a_password_that_is_given_twice_is_refused(write, problems):
    empty = {"CORRELATOR_DATABASE__PASSWORD": "", "CORRELATOR_DATABASE__PASSWORD_FILE": ""}
    assert write('[database]\nurl = "mysql://u:x@h/d"', empty).database.password.reveal() == "x"
    for both in ('url = "mysql://u:x@h/d"\npassword = "y"', 'url = "mysql://u:x@h/d"\npassword_file = "/dev/null"'):
        (line,) = problems(f"[database]\n{both}")
        assert line.endswith("give it once")


def test_tokens_are_one_a_line_comments_do_not_count_and_a_file_without_one_is_an_error(write, problems, tmp_path):
    (tmp_path / "tokens").write_text("# for the GUI\nabcdefgh#ijklmno\n\n  efg-efg-efg-efg-  # nightly\n")
    found = write(f"[http]\ntokens_file = '{tmp_path / 'tokens'}'").http.read_tokens()
    assert [token.secret for token in found] == ["abcdefgh#ijklmno", "efg-efg-efg-efg-"]
    assert write("").http.read_tokens() == []
    for text in ("", "# none yet\n", "two words of a token\n"):
        (tmp_path / "tokens").write_text(text)
        (line,) = problems(f"[http]\ntokens_file = '{tmp_path / 'tokens'}'")
        assert line.startswith("http.tokens_file: ")


def test_no_secret_shows_in_what_holds(write, tmp_path):
    (tmp_path / "file").write_text(SECRET)
    config = write(
        f"[database]\nurl = 'mysql://u:{quote(SECRET)}@h/d'\n"
        f"[mqtt]\nusername = 'u'\npassword_file = '{tmp_path / 'file'}'"
    )
    assert config.database.password.reveal() == config.mqtt.password.reveal() == SECRET
    for shown in (repr(config), str(config), str(redacted(config)), f"{config.mqtt.password}"):
        assert SECRET not in shown
    assert redacted(config)["mqtt"]["password"] == "***"
    assert str(config.database.url) == "mysql://u@h:3306/d"


@pytest.mark.parametrize(
    "toml",
    [
        f"[database]\nurl = 'mysql://u:{SECRET}@h/d/e'",
        f"[database]\nurl = 'MYSQL://u:{SECRET}@h'",
        f"database = 'mysql://u:{SECRET}@h/d'",
        f"[mqtt]\nurl = 'mqtt://u:{SECRET}@h'",
        f"[mqtt]\npassword = ['{SECRET}']",
        f"[mqtt]\npasswort = '{SECRET}'",
        f"[mqtt]\npassword_file = '{SECRET}'",
        f"[http]\ntokens_file = '{SECRET}'",
        f"[database]\npassword = '{SECRET}'\npassword_file = '/dev/null'",
    ],
)
def test_no_secret_shows_in_what_is_wrong(problems, toml):
    assert not [line for line in problems(toml) if SECRET in line]


@pytest.mark.parametrize("nothing", ["", "\n", " \r\n"])
def test_an_empty_credential_counts_as_absent_but_a_configured_file_must_have_content(
    write, problems, nothing, tmp_path
):
    for name in ("db-password", "mqtt-password", "api-token", "otlp-headers", "nats-creds"):
        (tmp_path / name).write_text(nothing)
    config = write("", {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert not config.database.password
    assert not config.mqtt.password
    assert config.http.tokens_file is None
    assert config.otlp.headers_file is None
    (line,) = problems('[http]\nlisten = "0.0.0.0:8686"', {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert "anybody could connect" in line
    assert problems(f"[http]\ntokens_file = '{tmp_path / 'api-token'}'")


@pytest.mark.parametrize("gateway", [True, False])
def test_the_listeners_key_may_be_a_credential_which_is_nothing_without_a_certificate(tmp_path, gateway):
    """A daemon and a gateway of one host share the credential; one of them may listen on loopback without TLS."""
    for name in ("tls-key", "tls.pem", "own-key"):
        (tmp_path / name).write_text("x")
    environ = {"HOME": "/", "CREDENTIALS_DIRECTORY": str(tmp_path), "CORRELATOR_CLUSTER__URL": "nats://127.0.0.1:4222"}
    assert load(None, environ, gateway=gateway).http.tls_key is None
    environ["CORRELATOR_HTTP__TLS_CERT"] = str(tmp_path / "tls.pem")
    assert load(None, environ, gateway=gateway).http.tls_key == tmp_path / "tls-key"
    environ["CORRELATOR_HTTP__TLS_KEY"] = str(tmp_path / "own-key")
    assert load(None, environ, gateway=gateway).http.tls_key == tmp_path / "own-key"


def test_a_file_that_is_nested_without_end_is_a_problem(problems):
    (line,) = problems("x = " + "[" * 20_000)
    assert "not TOML" in line


def test_what_is_written_twice_is_refused_with_both_lines(problems):
    again = reference() + '\n[database]\ntimezone = "UTC"\n'
    first, second = (again.splitlines().index("[database]", after) + 1 for after in (0, len(reference().splitlines())))
    for text, here, before in (
        (again, f"line {second}: a second [database]", f"the first is in line {first}: write the keys there"),
        ("[database.tls]\n" * 2, "line 2: a second [database.tls]", "the first is in line 1:"),
        (
            "[jobs]\n# x\nlegacy = true\nlegacy = false",
            "line 4: jobs.legacy is set again; line 3",
            "keep one of the two",
        ),
        ("[database]\ntls.ca = '/a'\ntls.ca = '/b'\n[log]\n", "line 3: database.tls.ca is set again; line 2", "keep"),
        ("[http]\nallowed_hosts = [\n'a']\nallowed_hosts = []", "line 4: http.allowed_hosts is set again; line 2", ""),
    ):
        (line,) = problems(text)
        assert here in line
        assert before in line


@pytest.mark.parametrize(
    "section", ['[database]\nurl = "mysql://u@127.0.0.1/d"', '[database]\ntimezone = "UTC"', "[database]", ""]
)
def test_a_gateway_needs_a_cluster_and_refuses_a_database_even_with_defaults(tmp_path, section):
    file = tmp_path / "gateway.toml"
    file.write_text(section)
    with pytest.raises(ConfigError) as raised:
        load(file, {"HOME": "/nowhere"}, gateway=True)
    assert ("database: a gateway reads no database" in str(raised.value)) == bool(section)
    assert "cluster.url: a gateway reads a cluster" in str(raised.value)
    file.write_text('[cluster]\nurl = "nats://127.0.0.1:1"')
    assert load(file, {}, gateway=True).state.directory == Path(), "it needs none, and no home"
    with pytest.raises(ConfigError, match="reads no database"):
        load(file, {"CORRELATOR_DATABASE__TIMEZONE": "UTC", "HOME": "/nowhere"}, gateway=True)
