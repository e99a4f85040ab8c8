"""Tokens for one job or one VM: what is made, what is accepted, and that nothing else is."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from correlator.cli import main
from correlator.client import create_job_token
from correlator.model.job_token import AHEAD, Claims, Ended, WrongClaims, WrongSignature, create, verify
from tests.support.package_files import place
from tests.support.paths import REPOSITORY

KEY, OTHER = "k" * 32, "o" * 32
NOW, DAY = 1_800_000_000, 86_400.0
VECTORS = json.loads((REPOSITORY / "tests" / "data" / "job_tokens.json").read_text())


@pytest.mark.parametrize("vector", VECTORS)
def test_the_same_token_is_made_as_by_every_other_implementation_and_it_is_accepted(vector: dict[str, Any]):
    named = {name: vector[name] for name in ("job", "vm", "instance") if name in vector}
    assert create(vector["key"], now=vector["now"], valid_for=vector["valid_for"], **named) == vector["token"]
    claims = verify(vector["token"], vector["key"], now=vector["now"], longest=DAY)
    assert (claims.job, claims.vm, claims.aud) == tuple(named.get(name, "") for name in ("job", "vm", "instance"))
    assert claims.exp - claims.iat == vector["valid_for"]


ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=255)


@given(ids, st.integers(1, 86_400), st.integers(0, 100_000))
def test_a_token_of_any_id_is_accepted_until_its_end_and_by_its_own_key_only(job, valid_for, later):
    token = create(KEY, now=NOW, job=job, valid_for=valid_for)
    assert len(token) < 4096
    with pytest.raises(WrongSignature):
        verify(token, OTHER, now=NOW, longest=DAY)
    if later < valid_for:
        found = verify(token, KEY, now=NOW + later, longest=DAY)
        assert found == Claims(v=1, iat=NOW, exp=NOW + valid_for, job=job)
    else:
        with pytest.raises(Ended):
            verify(token, KEY, now=NOW + later, longest=DAY)


@given(st.data())
def test_a_token_with_any_other_character_is_not_accepted(data):
    token = create(KEY, now=NOW, job="j")
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(exclude_characters=token[at]) | st.just(""))
    with pytest.raises(WrongSignature):
        verify(token[:at] + other + token[at + 1 :], KEY, now=NOW, longest=DAY)


def signed(header: object, claims: object, key: str = KEY, algorithm: str = "sha256") -> str:
    """A token of any content, correctly signed."""

    def encoded(value: object) -> str:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    text = f"{encoded(header)}.{encoded(claims)}"
    digest = hmac.new(key.encode(), text.encode(), getattr(hashlib, algorithm)).digest()
    return f"{text}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


HS256 = {"alg": "HS256", "typ": "JWT"}
RIGHT = {"v": 1, "job": "j", "iat": NOW, "exp": NOW + 900}


@pytest.mark.parametrize("header", [HS256, {"typ": "JWT", "alg": "HS256"}, {"alg": "HS256"}, {**HS256, "kid": "1"}])
def test_what_libraries_of_other_languages_make_is_accepted(header):
    assert verify(signed(header, RIGHT), KEY, now=NOW, longest=DAY).job == "j"
    assert verify(signed(header, {**RIGHT, "iat": NOW + AHEAD}), KEY, now=NOW, longest=DAY).job == "j"


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        *(({**HS256, "alg": name}, RIGHT) for name in ("none", "None", "HS512", "RS256", "", 1, None)),
        ({**HS256, "crit": ["exp"]}, RIGHT),
        (b"{", RIGHT),
        ([], RIGHT),
        (HS256, b"\xff"),
        (HS256, []),
        *((HS256, {**RIGHT, "v": version}) for version in (0, 2, "1", None, 1.5)),
        *((HS256, {name: value for name, value in RIGHT.items() if name != missing}) for missing in RIGHT),
        (HS256, {**RIGHT, "vm": "v"}),
        (HS256, {**RIGHT, "job": ""}),
        (HS256, {**RIGHT, "job": ["j"]}),
        (HS256, {**RIGHT, "job": "j" * 256}),
        (HS256, {**RIGHT, "aud": ["dc1"]}),
        (HS256, {**RIGHT, "step": "a restriction of a later version"}),
        (HS256, {**RIGHT, "exp": NOW + DAY + 1}),
        (HS256, {**RIGHT, "exp": NOW}),
        (HS256, {**RIGHT, "exp": float("inf")}),
        (HS256, {**RIGHT, "exp": "9"}),
        (HS256, {**RIGHT, "iat": NOW + AHEAD + 1}),
    ],
)
def test_a_signed_token_that_is_none_of_ours_is_refused_with_a_reason(header, claims):
    with pytest.raises(WrongClaims, match=r"it (has to|was made)"):
        verify(signed(header, claims), KEY, now=NOW, longest=DAY)


def test_a_token_of_another_hash_or_of_more_parts_or_of_no_end_of_bytes_is_not_accepted():
    good = signed(HS256, RIGHT)
    for token in (
        signed(HS256, RIGHT, algorithm="sha512"),
        f"{good}.x",
        good.rpartition(".")[0],
        "",
        "a.b.c",
        good * 30,
    ):
        with pytest.raises(WrongSignature):
            verify(token, KEY, now=NOW, longest=DAY)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"key": "short", "job": "j"}, "fewer than 32 characters"),
        ({}, "either a job or a VM"),
        ({"job": "j", "vm": "v"}, "either a job or a VM"),
        ({"job": "j" * 256}, "more than 255 characters"),
        ({"job": "j", "valid_for": 0}, "at least 1 s"),
        ({"job": "\ud800"}, "no text in Unicode"),
    ],
)
def test_what_cannot_be_a_token_is_refused_with_the_reason(given_: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        create(given_.pop("key", KEY), now=NOW, **given_)


# -- the command, and the function of the client for Python


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log_as_before: None) -> Callable[..., tuple[int, str]]:
    """What the command prints, without the settings of this machine."""
    place(monkeypatch, tmp_path / "etc")

    def printed(*arguments: str, **environ: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["token", *arguments], prog_name="correlator", env=environ)
        return result.exit_code, result.output.strip()

    return printed


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "job-token-key"
    file.write_text(f"# rotated in May\n{KEY}\n{OTHER}\n")
    file.chmod(0o600)
    return file


@pytest.mark.parametrize(
    ("arguments", "valid_for", "instance"),
    [
        (["--job", "j"], 900, ""),
        (["--job", "j", "--for", "1h"], 3600, ""),
        (["--vm", "v"], 900, ""),
        (["--job", "j", "--instance", "dc1"], 900, "dc1"),
    ],
)
def test_the_command_prints_a_token_that_the_first_key_has_signed(printed, key_file, arguments, valid_for, instance):
    code, token = printed(*arguments, CORRELATOR_HTTP__JOB_TOKEN_KEY_FILE=str(key_file))
    assert code == 0, token
    found = verify(token, KEY, now=time.time(), longest=DAY)
    assert (found.job or found.vm, found.exp - found.iat, found.aud) == (arguments[1], valid_for, instance)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give either a job or a VM"),
        (["--job", "j", "--vm", "v"], "give either a job or a VM"),
        (["--job", "j" * 256], "more than 255 characters"),
        (["--job", "j", "--for", "90"], "a duration with its unit"),
        (["--job", "j", "--for", "0s"], "at least 1 s"),
        (["--job", "j", "--for", "25h"], "at most 24h (http.job_token_max)"),
    ],
)
def test_the_command_says_why_it_can_make_no_token(printed, key_file, arguments, says):
    code, said = printed(*arguments, CORRELATOR_HTTP__JOB_TOKEN_KEY_FILE=str(key_file))
    assert (code, says in said, KEY in said) == (2, True, False), said


def test_the_command_says_how_to_make_a_key_that_is_missing_or_too_short(printed, tmp_path):
    code, said = printed("--job", "j")
    assert (code, "openssl rand -base64 48" in said) == (78, True), said
    short = tmp_path / "key"
    short.write_text("a-key-that-is-short\n")
    short.chmod(0o600)
    code, said = printed("--job", "j", CORRELATOR_HTTP__JOB_TOKEN_KEY_FILE=str(short))
    assert (code, "expected 32 or more" in said, "a-key-that-is-short" in said) == (78, True, False), said


def test_the_client_for_python_makes_the_same_token():
    found = verify(create_job_token(KEY, vm="v", valid_for=60, instance="dc1"), KEY, now=time.time(), longest=DAY)
    assert (found.vm, found.aud, found.exp - found.iat) == ("v", "dc1", 60)
