"""All that a release consists of, in build/release: from a clone without changes, the same bytes each time.

Wheel, source archive, a Debian package for each architecture, the npm package, the container image, the bill of
materials, release notes of CHANGELOG.md, and SHA256SUMS, signed where a key is given. All times are that of the commit
($SOURCE_DATE_EPOCH). Equal bytes need the same zlib, dpkg and, for the image, buildah and packages of Debian; the other
tools are locked.

`python -m deploy.release` prints the names and sizes. `--sign-key FILE`: see `signing`.
"""

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from hatchling.build import build_sdist, build_wheel

from deploy import image, sbom, signing
from deploy.client import build as client
from deploy.debian import build as debian
from deploy.locked import REPOSITORY
from deploy.version import changes, epoch, is_clone, version

_SECTION = re.compile(r"^## (?P<release>\S+) \((?P<day>[^)]+)\)\n(?P<text>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def refusal(root: Path = REPOSITORY) -> str | None:
    """Why no release can be made of the sources in `root`, and what to do. None: it can."""
    if not is_clone(root):
        return "This is not a clone of the repository, so a release could not name its commit. Build it in a clone."
    if changed := changes(root):
        return (
            f"A release is what a commit has. These files differ from the last commit:\n{changed}\n"
            "Commit or remove them, or build the commit beside them:\n"
            "git worktree add ../release HEAD && make -C ../release release"
        )
    return None


def notes(changelog: str, built: str) -> str:
    """The release notes of the version `built`.

    ValueError: the changelog has no section of it, or one that is unreleased, though the version is that of a tag.
    """
    release, _, commit = built.partition("+g")
    section = next((found for found in _SECTION.finditer(changelog) if found["release"] == release), None)
    if section is None:
        raise ValueError(f"CHANGELOG.md has no section of {release}: write one, as '## {release} (unreleased)'")
    if section["day"] == "unreleased" and not commit:
        raise ValueError(
            f"CHANGELOG.md calls {release} unreleased, but this commit has the tag v{release}: replace 'unreleased' by"
            " the day in a new commit, and move the tag there"
        )
    what = f"A build of the commit {commit}, not a release." if commit else f"Released on {section['day']}."
    return f"# correlator {built}\n\n{what}\n\n{section['text'].strip()}\n"


def build(folder: Path, key: Path | None = None) -> list[Path]:
    """Write all files to `folder`, which is replaced when they are complete. `key` signs them."""
    os.environ.pop("SOURCE_DATE_EPOCH", None)  # which says when the commit was made, and not what somebody has set
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch())
    built = version()
    text = notes((REPOSITORY / "CHANGELOG.md").read_text(), built)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="release-", dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        with contextlib.chdir(REPOSITORY):
            build_sdist(str(made))
            wheel = made / build_wheel(str(made))
        for architecture in debian.MACHINES:
            debian.build(made, architecture, named=built)
        client.build(made)
        image.build(made, wheel)
        (made / f"correlator-{built}.cdx.json").write_text(sbom.bill())
        (made / f"correlator-{built}.md").write_text(text)
        sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(made.iterdir())]
        (made / "SHA256SUMS").write_text("".join(sums))
        if key is not None:
            signing.sign(made / "SHA256SUMS", key)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return sorted(folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description="Build all files of a release.")
    parser.add_argument("--sign-key", type=Path, help="a key of deploy/allowed_signers, which signs SHA256SUMS")
    key: Path | None = parser.parse_args().sign_key
    if words := refusal() or (signing.refusal(key) if key is not None else None):
        sys.exit(words)
    try:
        files = build(REPOSITORY / "build/release", key)
    except ValueError as error:
        sys.exit(str(error))
    for file in files:
        print(f"{file.stat().st_size:>10,}  {file.relative_to(REPOSITORY)}")
    if key is None:
        print("SHA256SUMS is not signed: make release SIGN_KEY=FILE signs it.")


if __name__ == "__main__":
    main()
