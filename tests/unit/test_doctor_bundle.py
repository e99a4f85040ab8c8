"""The support bundle: no secret in any form, for its owner alone, there whole or not at all."""

from __future__ import annotations

import base64
import json
import stat
import tarfile
from urllib.parse import quote, quote_plus

import pytest

from correlator.doctor.bundle import Hidden, Unwritten, secrets, without_values, write
from correlator.doctor.service import load

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


def test_a_short_secret_is_hidden_where_it_is_a_value_and_leaves_the_rest_readable():
    hide = Hidden(["1", "/e", "hunter2"])
    log = 'job 1 of 11 ended, step 1: password=1 "token": "1" Bearer 1 mysql://me:1@db/1 hunter2 hunter23 12/e3'
    shown = 'job 1 of 11 ended, step 1: password=*** "token": "***" Bearer *** mysql://me:***@db/1 *** hunter23 12/e3'
    assert hide(log) == shown
    assert Hidden(["token", "token-long"])("x token-long y token z") == "x *** y *** z"
    assert Hidden([])(log) == log


def test_a_secret_of_any_text_leaves_a_document_one():
    document = {"settings": {"password": "***", "port": 1, "on": True}, "texts": ["e", 'a "quoted" one', "1"]}
    for secret in ('"', "{", "1", "/e", "true", "settings", "null", "***", "\\"):
        made = json.loads(json.dumps(Hidden([secret]).values(document)))
        assert made["settings"] == document["settings"]
        assert made.keys() == document.keys()


def test_what_a_wrong_file_may_mean_as_a_secret_is_one(tmp_path):
    file = tmp_path / "correlator.toml"
    file.write_text(
        '[database\nurl = "mysql://me:of-the-url@db/x"\npasword = "misspelt-1"\npassword = 12345678 # a number\n'
        '[[webhooks]]\nurl = \'https://chat.example/in-the-path\'\nsecret = """in-three"""\n#token = "in-a-comment"\n'
        'password_file = "/etc/no-secret"\n'
    )
    found = secrets(load(file, {"HOME": str(tmp_path)}, usable=True))
    assert {"of-the-url", "misspelt-1", "12345678", "in-the-path", "in-three", "in-a-comment"} <= set(found)
    assert "/etc/no-secret" not in found


@pytest.mark.parametrize(
    ("unit", "shown"),
    [
        ('Environment="A=hunter2" C=hunter2', "Environment=***"),
        (r"Environment=A=b\ hunter2 'C=it\'s hunter2' E=f", "Environment=***"),
        (" Environment = A=hunter2", " Environment = ***"),
        ("Environment=", "Environment="),
        ("Environment=A=b \\\n  C=hunter2 \\\n\tE=hunter2\nNice=5", "Environment=***\nNice=5"),
        ("Environment= \\\n  C=hunter2\nNice=5", "Environment= ***\nNice=5"),
        ("Environment=A=b\\ \r\nC=hunter2\r\nNice=5", "Environment=***\nNice=5"),
        ("Environment=A=b \\\n# it's hunter2\n;\n  C=hunter2\nNice=5", "Environment=***\nNice=5"),
        ('Environment="A=b \\\nhunter2=x" C=d\nNice=5', "Environment=***\nNice=5"),
        ("Environment=A=two\\\\\nNice=5", "Environment=***\nNice=5"),
        ("Environment=A=b\u2028hunter2\nNice=5", "Environment=***\nNice=5"),
        ("# a comment\rEnvironment=A=hunter2", "# a comment\nEnvironment=***"),
        ("#Environment=A=hunter2 \\\n#  C=hunter2\n# Nice", "#Environment=***\n# Nice"),
        ("\x1b[0;32mEnvironment\x1b[0m=A=hunter2", "Environment=***"),
        ("SetCredential=api-token: hunter2 \\\n  hunter2:x\nNice=5", "SetCredential=***\nNice=5"),
        (
            "SetCredentialEncrypted=a: \\\n   hunter2+/ \\\n   hunter2==\nB=5",
            "SetCredentialEncrypted=***\nB=5",
        ),
    ],
)
def test_what_a_unit_gives_to_the_service_is_not_in_the_bundle(unit, shown):
    hidden = without_values(unit)
    assert hidden == shown
    assert "hunter2" not in hidden


@pytest.mark.parametrize(
    "unit",
    [
        "# /usr/lib/systemd/system/correlator.service\n[Service]\nExecStart=/usr/bin/correlator run \\\n  --config x\n",
        "EnvironmentFile=/etc/default/correlator\nPassEnvironment=LANG TZ\nUnsetEnvironment=A=b",
        "LoadCredential=db-password:/etc/correlator/db-password\nSetCredential=",
        "● correlator.service - one\n     Loaded: loaded\n",
    ],
)
def test_what_a_unit_says_besides_stays_as_it_is(unit):
    assert without_values(unit) == unit


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
    with pytest.raises(Unwritten, match="cannot be written: No such file"):
        write(tmp_path / "nowhere" / "b.tar.gz", {})
