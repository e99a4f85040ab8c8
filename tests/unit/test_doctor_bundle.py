"""The support bundle: no secret in any form, for its owner alone, there whole or not at all."""

from __future__ import annotations

import base64
import json
import stat
import tarfile
from urllib.parse import quote, quote_plus

import pytest

from correlator.doctor.bundle import Hidden, Unwritten, write

SECRET = 'p@ss/w%rd "ü" x'


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower(),
        quote(SECRET),
        quote_plus(SECRET),
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        base64.b64encode(SECRET.encode()).decode(),
    ],
)
def test_a_secret_is_found_in_every_form(form):
    hidden = Hidden([SECRET])(f"before {form} after")
    assert hidden.startswith("before ")
    assert hidden.endswith(" after")
    assert "***" in hidden
    assert "ss" not in hidden
    assert "c3" not in hidden


def test_of_two_secrets_one_of_which_begins_with_the_other_nothing_is_left():
    assert Hidden(["token", "token-long"])("x token-long y token z") == "x *** y *** z"


def test_without_secrets_nothing_is_changed():
    assert Hidden([])("text") == "text"


def test_the_file_is_its_owners_alone_and_replaces_an_older_one(tmp_path):
    target = tmp_path / "bundle.tar.gz"
    target.write_text("older")
    target.chmod(0o644)
    assert write(target, {"MANIFEST": "what\n", "a.txt": "half a surrogate: \ud83d"}) == target
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with tarfile.open(target) as tar:
        assert tar.getnames() == ["bundle/MANIFEST", "bundle/a.txt"]
        assert all(member.mode == 0o600 for member in tar.getmembers())
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(Unwritten, match="cannot be written: No such file"):
        write(tmp_path / "nowhere" / "b.tar.gz", {})
