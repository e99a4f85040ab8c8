"""A release is what its maintainers signed, and what it is built from has no known vulnerability: `make audit`."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploy import signing
from deploy.audit import UNCHECKED, audit
from deploy.locked import named
from tests.support.markdown import shell_blocks
from tests.support.servers import free_port

(VERIFY,) = shell_blocks("SECURITY.md", "Verifying a release")


def key(folder: Path, name: str) -> Path:
    made = folder / name
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(made)]
    subprocess.run(command, check=True, timeout=20)
    return made


def listed(*keys: Path) -> str:
    return "# The keys.\n" + "".join(f"{signing.IDENTITY} {k.with_suffix('.pub').read_text()}" for k in keys)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder with the files of a release and their signature, and the keys that the clone lists."""
    folder = tmp_path / "release"
    folder.mkdir()
    for name in ("correlator_0.1.0_amd64.deb", "joblog_correlator-0.1.0-py3-none-any.whl"):
        (folder / name).write_text(f"the bytes of {name}")
    sign(folder, key(tmp_path, "maintainer"))
    (folder / "allowed_signers").write_text(listed(tmp_path / "maintainer"))
    return folder


def sign(folder: Path, by: Path) -> None:
    files = sorted([*folder.glob("*.deb"), *folder.glob("*.whl")])
    sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    (folder / "SHA256SUMS").write_text(sums)
    signing.sign(folder / "SHA256SUMS", by)


def verified(folder: Path) -> subprocess.CompletedProcess[str]:
    """The documented command, as it stands in SECURITY.md."""
    command = ["sh", "-c", VERIFY]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20, check=False)


def test_the_documented_command_verifies_a_release_and_what_somebody_has_of_it(release: Path):
    done = verified(release)
    assert done.returncode == 0, done.stderr
    assert 'Good "correlator-release" signature for releases' in done.stdout
    assert done.stdout.count(": OK") == 2
    next(release.glob("*.whl")).unlink()
    done = verified(release)
    assert (done.returncode, done.stdout.count(": OK")) == (0, 1), done.stderr


def test_nothing_that_somebody_changed_is_verified(release: Path, tmp_path: Path):
    package, sums = next(release.glob("*.deb")), release / "SHA256SUMS"
    before = package.read_text()
    package.write_text("the bytes of a stranger")
    assert verified(release).returncode != 0, "another file"
    sums.write_text(f"{hashlib.sha256(package.read_bytes()).hexdigest()}  {package.name}\n")
    assert verified(release).returncode != 0, "another file, and its sum"
    sign(release, key(tmp_path, "stranger"))
    assert verified(release).returncode != 0, "another file, its sum, and the signature of a stranger"
    (release / "SHA256SUMS.sig").unlink()
    assert verified(release).returncode != 0, "no signature"
    package.write_text(before)
    sign(release, tmp_path / "maintainer")
    assert verified(release).returncode == 0


def test_a_signature_for_another_purpose_verifies_no_release(release: Path, tmp_path: Path):
    sums = release / "SHA256SUMS"
    (release / "SHA256SUMS.sig").unlink()
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(tmp_path / "maintainer"), "-n", "git", str(sums)]
    subprocess.run(command, check=True, timeout=20)
    assert verified(release).returncode != 0


def test_a_key_that_no_clone_lists_signs_no_release(release: Path, tmp_path: Path):
    signers, stranger = release / "allowed_signers", key(tmp_path, "stranger")
    assert signing.refusal(tmp_path / "maintainer", signers) is None
    assert signing.refusal(tmp_path / "maintainer.pub", signers) is None, "its other half is in an agent"
    words = str(signing.refusal(stranger, signers))
    assert "nobody could verify the release" in words
    assert stranger.with_suffix(".pub").read_text().split()[1] in words, "the line to commit"
    (tmp_path / "none").write_text("no key")
    assert "no key that ssh-keygen can read" in str(signing.refusal(tmp_path / "none", signers))


# -- make audit


class Advisories:
    """A database of advisories that speaks OSV's API; `known`: the IDs by the name of a package."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known = known
        self.asked: list[tuple[str, str]] = []
        self.status = 200
        advisories = self

        class Answers(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body = json.dumps(advisories.answer(query)).encode()
                self.send_response(advisories.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/query"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def answer(self, query: dict[str, Any]) -> dict[str, Any]:
        name, version = query["package"]["name"], query["version"]
        self.asked.append((name, version))
        if name not in self.known:
            return {}
        package = {"name": name, "ecosystem": "PyPI"}
        events = [{"introduced": "0"}, {"fixed": "999.1"}]
        affected = [{"package": package, "ranges": [{"type": "ECOSYSTEM", "events": events}]}]
        return {"vulns": [{"id": self.known[name], "published": "2026-01-01T00:00:00Z", "affected": affected}]}


@pytest.fixture
def advisories() -> Iterator[Advisories]:
    made = Advisories({})
    made.thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    made.thread.join()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    file = tmp_path / "lock.txt"
    file.write_text("\n".join(release.requirement() for release in named(["aiohttp", "click", "msgspec"])))
    return file


def test_an_audit_asks_about_every_locked_release(lock: Path, advisories: Advisories):
    code, words = audit(lock, ["--osv-url", advisories.url])
    assert (code, words) == (0, "3 locked packages have no known vulnerability")
    assert sorted(advisories.asked) == [(r.name, r.version) for r in named(["aiohttp", "click", "msgspec"])]


def test_a_known_vulnerability_ends_an_audit_with_1_and_what_fixes_it(lock: Path, advisories: Advisories):
    advisories.known = {"click": "OSV-2026-1"}
    code, words = audit(lock, ["--osv-url", advisories.url])
    (click,) = named(["click"])
    assert (code, words.splitlines()[0]) == (1, f"click {click.version}: OSV-2026-1, fixed in 999.1")
    assert "make lock" in words


@pytest.mark.parametrize("why", ["nobody listens", "an error"])
def test_an_audit_that_could_check_nothing_says_so_and_does_not_pass(lock: Path, advisories: Advisories, why: str):
    advisories.status = 503
    url = advisories.url if why == "an error" else f"http://127.0.0.1:{free_port()}/v1/query"
    assert audit(lock, ["--osv-url", url]) == (2, UNCHECKED)
