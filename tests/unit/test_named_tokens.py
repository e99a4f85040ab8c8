"""Tokens with names in the configuration: what is right, and that each problem names its place and what to do."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.config.loading import load
from correlator.config.rendering import redacted
from correlator.config.schema import settings
from correlator.config.values import toml
from correlator.daemon import needs_restart, reloaded
from correlator.doctor.service import token_of
from correlator.errors import ConfigError
from correlator.sinks.http.grants import Grant, Need, grants_of

GUI, PROBE, OLD = "a-token-of-the-gui", "a-token-of-the-probe", "an-old-token-of-the-gui"

INSTANT = "a date and time with its zone, e.g. 2026-12-31T00:00:00Z"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "gui").write_text(f"# the next one\n{GUI}\n{OLD}  # until May\n")
    (tmp_path / "probe").write_text(PROBE)
    return tmp_path


def table(folder: Path, name: str = "gui", more: str = "") -> str:
    return f"[[http.tokens]]\nname = '{name}'\nfile = '{folder / name}'\n{more}\n"


def test_a_named_token_has_the_rights_that_its_table_gives_it(write, files):
    expires = "expires = 2030-01-01T00:00:00+01:00"
    config = write(table(files, more=expires) + table(files, "probe", "scope = ['metrics']"))
    found = grants_of(config.http.read_tokens())
    ends = datetime(2029, 12, 31, 23, tzinfo=UTC).timestamp()
    assert found == (
        Grant("gui", GUI.encode(), frozenset({"read"}), None, ends),
        Grant("gui", OLD.encode(), frozenset({"read"}), None, ends),
        Grant("probe", PROBE.encode(), frozenset({"metrics"})),
    )
    assert config.http.needs_token
    assert [found[0].covers(need) for need in Need] == [True, True, False, True, True]
    assert [found[2].covers(need) for need in Need] == [True, True, True, False, False]


def test_a_token_of_the_old_file_has_all_rights(write, files):
    (grant,) = grants_of(write(f"[http]\ntokens_file = '{files / 'probe'}'").http.read_tokens())
    assert grant == Grant("", PROBE.encode())
    assert all(grant.covers(need) for need in Need)


def test_the_file_of_a_named_token_may_be_a_credential_of_its_name(write, files):
    (files / "api-token-gui").write_text(GUI)
    config = write("[[http.tokens]]\nname = 'gui'\n", {"CREDENTIALS_DIRECTORY": str(files)})
    assert [(one.secret, one.table.name) for one in config.http.read_tokens() if one.table] == [(GUI, "gui")]


def test_the_tables_of_all_drop_ins_are_kept_and_a_problem_names_its_own_file_and_line(files):
    main = files / "main.toml"
    (files / "main.d").mkdir()
    main.write_text(f"[http]\nlisten = '127.0.0.1:0'\n{table(files)}")
    second = files / "main.d" / "probe.toml"
    second.write_text(f"# ours\n{table(files, 'probe')}")
    config = load(main, {"HOME": "/"})
    assert [one.name for one in config.http.tokens] == ["gui", "probe"]
    second.write_text(f"# ours\n{table(files, 'probe', 'scope = [1]')}")
    with pytest.raises(ConfigError) as caught:
        load(main, {"HOME": "/"})
    (line,) = caught.value.problems
    assert line == f"{second}:5: http.tokens[2].scope = [1]: expected a list of scopes; known are read, metrics"


def test_a_short_token_is_an_error_with_its_file_its_line_and_what_makes_a_better_one(problems, files):
    (files / "short").write_text(f"# two\n{GUI}\nfifteen-letters\n")
    for text, key in (
        (f"[http]\ntokens_file = '{files / 'short'}'", "http.tokens_file"),
        (table(files, "short"), "http.tokens[1].file"),
    ):
        (line,) = problems(text)
        assert line == (
            f"{key}: {files / 'short'}, line 3: a token of 15 characters can be guessed; expected 16 or more, e.g. from"
            " openssl rand -base64 24"
        )
        assert "fifteen" not in line


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ("[[http.tokens]]\nfile = '{0}/gui'", "http.tokens[1].name: expected a name, e.g. gui"),
        (
            "[[http.tokens]]\nname = 'gui'",
            "http.tokens[1].file: expected a file with the token, or the credential api-token-gui",
        ),
        (
            "[[http.tokens]]\nname = 'Gui 1'\nfile = '{0}/gui'",
            'http.tokens[1].name = "Gui 1": expected a name of up to 32 characters a-z 0-9 -, e.g. gui',
        ),
        (
            "[[http.tokens]]\nname = 'gui'\nfile = '{0}/gui'\nexpires = 2030-01-01T00:00:00",
            f'http.tokens[1].expires = "2030-01-01 00:00:00": expected {INSTANT}',
        ),
        (
            "[[http.tokens]]\nname = 'gui'\nfile = '{0}/gui'\nscope = []",
            'http.tokens[1].scope = []: expected a list of scopes, e.g. ["read"]',
        ),
        (
            "[[http.tokens]]\nname = 'gui'\nfile = '{0}/gui'\ninstances = ['dc1']",
            "http.tokens[1].instances: only a gateway has several appliances: remove it",
        ),
        (
            "[[http.tokens]]\nname = 'gui'\nfile = '{0}/gui'\n[[http.tokens]]\nname = 'b'\nfile = '{0}/gui'",
            "http.tokens[2].file: it holds a token of another file: each needs tokens of its own",
        ),
        ("[http]\ntokens = ['a-secret-of-16-chars']", "http.tokens = ***: expected tables, each below [[http.tokens]]"),
        ("[http.tokens]\nname = 'gui'", "http.tokens = ***: expected tables, each below [[http.tokens]]"),
    ],
)
def test_a_problem_of_a_table_names_the_key_and_what_would_be_right(problems, files, tables, line):
    assert problems(tables.format(files)) == (line,)


def test_two_tokens_of_one_name_are_an_error_that_names_the_first(problems, files):
    (line,) = problems(table(files) + table(files, "probe").replace("'probe'", "'gui'", 1))
    assert line.startswith('http.tokens[2].name = "gui": expected another name: the one in ')


def test_no_token_shows_in_what_a_configuration_prints(write, files):
    config = write(table(files))
    shown = repr(config), str(redacted(config)), repr(config.http.read_tokens())
    assert not [text for text in shown if GUI in text or OLD in text]
    assert "gui" in shown[2]


def test_a_listener_that_others_can_reach_is_guarded_by_a_named_token_too(write, files):
    assert write(f"[http]\nlisten = '0.0.0.0:8686'\n{table(files)}").http.needs_token


def test_a_reload_applies_the_tables_and_what_they_hold_is_written_as_toml(write, files):
    one, two = write(table(files, more="expires = 2030-01-01T00:00:00Z")), write(table(files, "probe"))
    assert needs_restart(one, two) == []
    assert reloaded(one, two).http.tokens == two.http.tokens
    found = {dotted: toml(value) for dotted, _, value in settings(one) if dotted.startswith("http.tokens[1].")}
    assert found["http.tokens[1].expires"] == "2030-01-01T00:00:00+00:00"
    assert found["http.tokens[1].scope"] == '["read"]'


def test_a_command_on_the_host_uses_the_token_with_the_most_rights(write, files):
    expired = "expires = 2001-01-01T00:00:00Z\nscope = ['read', 'metrics']"
    config = write(table(files, more=expired) + table(files, "probe"))
    assert token_of(config) == PROBE


grants = st.builds(
    Grant,
    scope=st.frozensets(st.sampled_from(["read", "metrics"])),
    instances=st.none() | st.frozensets(st.sampled_from(["dc1", "dc2", "dc3"])),
)


@given(grants, grants)
def test_a_grant_includes_another_one_if_it_allows_whatever_that_allows(one, other):
    def allowed(grant: Grant) -> set[object]:
        every = {need for need in Need if grant.covers(need)}
        return every | {name for name in ("dc1", "dc2", "dc3", "any other") if grant.shows(name)}

    assert one.includes(other) == (allowed(other) <= allowed(one))
