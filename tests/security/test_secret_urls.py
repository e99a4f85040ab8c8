"""A secret in any place of a URL, in any setting that takes one, shows nowhere: only scheme and host do.

People write tokens where another program takes them (`nats://TOKEN@host`, `mqtt://host?password=…`), encoded or raw,
and paste the error into a ticket.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from correlator.client import Client
from correlator.config import loading, schema
from correlator.config.editing import set_keys
from correlator.config.rendering import redacted
from correlator.config.schema import Config, Key
from correlator.config.values import toml
from correlator.doctor.bundle import Hidden, secrets
from correlator.doctor.service import Setting
from correlator.errors import BadRequest, CorrelatorError

HOST = "db.example"
SCHEMES = ("mysql", "mqtt", "mqtts", "nats", "tls", "http", "https", "postgres")

PLACES: Mapping[str, str] = {
    "user": "{scheme}://{secret}@{host}/d",
    "password": "{scheme}://u:{secret}@{host}:1883/d",
    "password without a user": "{scheme}://:{secret}@{host}",
    "port": "{scheme}://{host}:{secret}",
    "path": "{scheme}://{host}/{secret}",
    "parameter": "{scheme}://{host}/d;token={secret}",
    "query": "{scheme}://u@{host}/d?password={secret}",
    "query after a password": "{scheme}://u:pw@{host}:99/d?a=b&password={secret}",
    "query without a path": "{scheme}://{host}?{secret}",
    "encoded question mark": "{scheme}://{host}%3Fpassword={secret}",
    "fragment": "{scheme}://{host}#{secret}",
    "second server": "{scheme}://{host}:4222,{scheme}://{secret}@{host}",
    "second server without a scheme": "{scheme}://{host}:4222, u:{secret}@{host}",
    "after a blank": "{scheme}://{host} {secret}",
    "before a blank": " {scheme}://{secret} @{host} ",
    "before a tab": "{scheme}://{host}/\t{secret}",
    "in brackets": "{scheme}://[{secret}@{host}",
    "behind open brackets": "{scheme}://[::1/{secret}",
    "in front": "{secret}@{scheme}://{host}",
    "without a scheme": "{secret}@{host}:1883",
    "password without a scheme": "u:{secret}@{host}",
    "alone": "{secret}",
}
PUBLIC = {"mysql": {"user", "path", "second server"}, "http.public_url": {"path", "parameter"}}
"""What is published on purpose: the account and the name of a database; the address of the page."""

AMBIGUOUS = {"port": "@", "alone": ":"}
"""What no secret in this place may contain: with it, the end of the secret is where another URL has its host."""


def url_keys() -> Iterator[tuple[str, Key]]:
    """Every key of the schema whose value is a URL, with its dotted name; those of webhooks as well."""
    yield from ((dotted, key) for dotted, key in schema.leaves() if key.is_url)
    for name, table in schema.keys(Config).items():
        if table.repeated and table.section is not None:
            yield from ((f"{name}.{key.name}", key) for key in schema.keys(table.section).values() if key.is_url)


KEYS = [dotted for dotted, _ in url_keys()]


@st.composite
def written_secrets(draw: st.DrawFn) -> list[str]:
    """The parts of a secret, none of which may show: between them stands what ends a part of a URL."""
    letters = st.text("abcdefghkmnpqrstuvwxyz23456789", min_size=8, max_size=8).map(lambda text: f"x{text}Z")
    parts: list[str] = []
    for part in draw(st.lists(letters, min_size=1, max_size=3, unique=True)):
        parts += [draw(st.sampled_from("@/?#:&=%,;+!")), part] if parts else [part]
    return parts


def test_every_key_that_takes_a_url_is_known_here():
    assert set(KEYS) == {
        "cluster.url", "database.url", "http.public_url", "mqtt.url", "otlp.url", "webhooks.url",
    }  # fmt: skip
    for dotted, key in schema.leaves():
        assert key.is_url == ("://" in key.description and key.kind is not tuple), dotted


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@example("http.public_url", "http", "user", ["x22222222Z", "/", "x22222223Z"], False)
@given(
    st.sampled_from(KEYS), st.sampled_from(SCHEMES), st.sampled_from(sorted(PLACES)), written_secrets(), st.booleans()
)
def test_a_secret_in_any_place_of_a_url_shows_nowhere(
    tmp_path_factory: pytest.TempPathFactory, dotted: str, scheme: str, place: str, parts: list[str], encoded: bool
):
    secret = "".join(parts)
    secret = quote(secret, safe="") if encoded else secret
    assume(place not in PUBLIC.get(dotted, ()) and place not in PUBLIC.get(scheme, ()))
    assume(not any(sign in secret for sign in AMBIGUOUS.get(place, "")))
    text = PLACES[place].format(scheme=scheme, secret=secret, host=HOST)
    folder = tmp_path_factory.mktemp("urls")
    for shown in everywhere(folder, dotted, text):
        for part in parts[::2]:
            assert part not in shown, f"{dotted} = {text!r} ({place}):\n{shown}"


def everywhere(folder: Path, dotted: str, text: str) -> Iterator[str]:
    """All that says something about a setting: errors, what is printed of values, a bundle, `config set`."""
    file = folder / "correlator.toml"
    table, _, name = dotted.rpartition(".")
    header = f"[[{table}]]\nname = 'chat'\n" if table == "webhooks" else f"[{table}]\n"
    file.write_text(f"{header}{name} = {toml(text)}\n")
    variables = {"HOME": str(folder)}
    given = [(file, variables)]
    if table != "webhooks":
        given.append((folder / "none.toml", variables | {loading.variable(dotted): text}))
        (folder / "none.toml").touch()
    for main, environ in given:
        found = loading.usable(main, environ)
        yield "\n".join(found.problems)
        config = found.config
        yield f"{config!r} {config} {json.dumps(redacted(config))}"
        yield from (f"{value} {value!r} {toml(value)}" for _, _, value in schema.settings(config))
        setting = Setting(config, main, environ, (main,), (), found.problems)
        hide = Hidden(secrets(setting))
        yield hide(f"it said: {text}.")
        yield json.dumps(hide.values({"said": [f"it said: {text}."]}))
    if table != "webhooks":
        (folder / "none.toml").touch()
        try:
            edited = set_keys(folder / "none.toml", [(dotted, text)], variables)
        except CorrelatorError as error:
            yield str(error)
        else:
            yield str(edited)
    with contextlib.suppress(UnicodeError):
        try:
            Client(text)
        except BadRequest as error:
            yield str(error)


@pytest.mark.parametrize("dotted", [dotted for dotted in KEYS if not dotted.startswith("webhooks")])
@pytest.mark.parametrize("value", ["{ password = 'hush-4711' }", "['hush-4711']", "[['hush-4711']]", "4711471147"])
def test_another_type_in_place_of_a_url_is_not_quoted(tmp_path: Path, dotted: str, value: str):
    table, _, name = dotted.rpartition(".")
    file = tmp_path / "correlator.toml"
    file.write_text(f"[{table}]\n{name} = {value}\n")
    (problem,) = loading.usable(file, {"HOME": str(tmp_path)}).problems
    assert "4711" not in problem
    assert dotted in problem


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("mqtt://broker.example:1883", "mqtt://broker.example:1883"),
        ("nats://token@host:4222", "nats://***@host:4222"),
        ("https://u:p@[::1]:4318/v1?x=y", "https://***@[::1]:4318/***"),
        ("nats://a:1, nats://t@b:2/", "nats://a:1,nats://***@b:2"),
        ("mqtt://host?password=a@b", "mqtt://***"),
        ("postgres://host/d", "postgres://host/***"),
        ("host:1883", "***"),
    ],
)
def test_scheme_and_host_are_shown_so_that_the_mistake_can_be_found(tmp_path: Path, written: str, shown: str):
    file = tmp_path / "correlator.toml"
    file.write_text(f"[mqtt]\nurl = {toml(written)}\n")
    found: Any = loading.usable(file, {"HOME": str(tmp_path)}).problems
    if not found:
        assert written == shown
    else:
        assert f'mqtt.url = "{shown}": expected mqtt://host' in found[0]
