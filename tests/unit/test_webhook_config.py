"""The `[[webhooks]]` tables: what is written holds, files and credentials complete it, and no secret is printed."""

import base64
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.config import loading
from correlator.config.files import Files
from correlator.config.rendering import redacted
from correlator.config.schema import Config, keys, settings
from correlator.config.values import toml
from correlator.config.webhooks import Webhook
from correlator.doctor import bundle, host
from correlator.doctor.service import Setting

SECRET = "whsec_" + base64.b64encode(b"a" * 32).decode()
OLDER = "whsec_" + base64.b64encode(b"b" * 24).decode()
CHAT = "https://hooks.chat.example/services/T0/B0/XYZ"


def table(**values):
    values = {"name": "chat", "url": CHAT, **values}
    return "[[webhooks]]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items()) + "\n"


def test_each_table_is_a_webhook_and_what_is_left_out_has_its_default(write):
    config = write(
        table(events=["job.failed", "step.*"], statuses=["failed"], timeout="5s", body='{"a": "{{job.status}}"}')
        + table(name="tickets", url="https://t.example:8443/x", secret=SECRET)
    )
    chat, tickets = config.webhooks
    assert (chat.name, chat.events, chat.statuses, chat.timeout) == ("chat", ("job.failed", "step.*"), ("failed",), 5.0)
    assert chat.body is not None
    assert chat.body.render({"job": {"status": "failed"}}) == {"a": "failed"}
    assert tickets.url is not None
    assert (tickets.url.host, tickets.url.port, tickets.events) == ("t.example", 8443, ("job.*",))
    assert tickets.secret.keys == (b"a" * 32,)
    assert write("").webhooks == ()


def test_url_secrets_and_authorization_come_from_files_or_credentials(write, tmp_path):
    (tmp_path / "secret").write_text(f"# since May\n{SECRET}\n{OLDER}  # until June\n")
    (tmp_path / "url").write_text(CHAT + " \n")
    (tmp_path / "webhook-chat-authorization").write_text("Bearer abc \n")
    text = table(url_file=str(tmp_path / "url"), secret_file=str(tmp_path / "secret")).replace(f'url = "{CHAT}"\n', "")
    (webhook,) = write(text, {"CREDENTIALS_DIRECTORY": str(tmp_path)}).webhooks
    assert webhook.url is not None
    assert webhook.url.reveal() == CHAT
    assert webhook.secret.keys == (b"a" * 32, b"b" * 24)
    assert webhook.authorization.reveal() == "Bearer abc"


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("".join(table(name=f"w{n}") for n in range(17)), "webhooks: expected 16 tables at most, not 17"),
        ("[webhooks]\nsecret = 'x'", "webhooks = ***: expected tables, each below [[webhooks]]"),
        ("[[webhooks]]\nurl = 'https://h/'", "webhooks[1].name: expected a name, e.g. tickets"),
        (table(evnts=[]), "webhooks[1].evnts: unknown key; did you mean webhooks[1].events?"),
        (
            table(events=["job.faild"]),
            'webhooks[1].events = ["job.faild"]: expected a list of kinds of events; did you mean job.failed?',
        ),
        (
            table(timeout="90s"),
            'webhooks[1].timeout = "90s": expected a duration, at least "1s", at most "1m", e.g. "15s"',
        ),
        (
            table(url="http://chat.example/x"),
            "webhooks[1].url = http://chat.example/***: not encrypted; expected https://, or allow_private = true",
        ),
        (table(body=7), "webhooks[1].body = ***: expected a text that holds JSON"),
        (table(ca="/nope.pem"), "webhooks[1].ca: /nope.pem cannot be read: No such file or directory"),
    ],
)
def test_a_problem_names_the_table_and_what_would_be_right(problems, toml, line):
    assert problems(toml) == (line,)


@pytest.mark.parametrize(
    "values",
    [
        {"url": "https://user:hunter2@h/x"},
        {"url": "ftp://h/hunter2"},
        {"url": "https://h/hunter2#x"},
        {"url": "https://h/hunter2\u00e9"},
        {"url": "https://h:0/hunter2"},
        {"secret": "hunter2"},
        {"secret": "whsec_hunter2"},
        {"secret": "whsec_" + base64.b64encode(b"short hunter2").decode()},
        {"secret": f"{SECRET} {OLDER} {SECRET}"},
        {"authorization": "Bearer hunter2\r\nX: y"},
        {"secret": SECRET, "secret_file": "hunter2"},
        *({"secret_file": text} for text in ("", "# nothing\n", "hunter2\n")),
    ],
)
def test_a_wrong_secret_is_refused_and_not_printed(problems, values, tmp_path):
    if (text := values.get("secret_file")) is not None and len(values) == 1:
        (tmp_path / "secret").write_text(text)
        values = {"secret_file": str(tmp_path / "secret")}
    lines = problems(table(**values))
    assert lines
    assert not [line for line in lines if "hunter2" in line or SECRET[6:] in line or "c2hvcnQ" in line]


def test_no_secret_is_printed_nor_a_body_which_may_hold_one_and_the_support_bundle_has_none(write, tmp_path):
    body = '{"routing_key": "R0UT1NGKEY"}'
    config = write(table(secret=SECRET, authorization="Bearer hunter2", body=body))
    shown = json.dumps(redacted(config)) + repr(config)
    for secret in (SECRET[6:], "hunter2", "/services/T0", "R0UT1NGKEY"):
        assert secret not in shown
    lines = {dotted: toml(value) for dotted, _, value in settings(config)}
    assert lines["webhooks[1].url"] == '"https://hooks.chat.example/***"'
    assert lines["webhooks[1].secret"] == '"***"'
    setting = Setting(config, tmp_path / "correlator.toml", {})
    hide = bundle.Hidden(bundle.secrets(setting))
    log = f"{SECRET} {SECRET[6:].rstrip('=')} {CHAT} services/T0/B0/XYZ Bearer hunter2"
    assert not [secret for secret in (SECRET[6:20], "T0", "hunter2") if secret in hide(log)]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 99)
    | st.text(max_size=9)
    | st.sampled_from([SECRET, CHAT, "{{job.x}}", "job.*"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(st.lists(st.dictionaries(st.sampled_from([*keys(Webhook)]), values, max_size=6), max_size=3))
def test_no_table_raises_anything_but_a_problem(tables):
    found = loading._Problems(Files({}, {}))
    loading._table(Config, {"webhooks": tables}, "", found)
    hidden = [line for line in found.lines if re.match(r"webhooks\[\d\]\.(url|secret|authorization) ", line)]
    assert not [line for line in hidden if SECRET in line or "/services/T0" in line]


def test_the_doctor_finds_secrets_of_webhooks_that_every_user_can_read(write, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o644)
    config = write(table(secret_file=str(tmp_path / "secret")))
    check = host.secrets(Setting(config, None, {}))
    assert (check.status, check.detail) == ("failure", (f"webhooks[1].secret_file: {tmp_path / 'secret'}",))
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "webhook-chat-url").write_text(CHAT)
    (tmp_path / "webhook-chat-url").chmod(0o644)
    check = host.secrets(Setting(config, None, {"CREDENTIALS_DIRECTORY": str(tmp_path)}))
    assert check.detail == (f"webhook-chat-url in {tmp_path}: {tmp_path / 'webhook-chat-url'}",)
