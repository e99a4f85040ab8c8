"""What a release says of itself: the version of each build, the notes, and the same bytes each time."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from correlator import __version__
from deploy.debian.build import package_version
from deploy.release import notes, refusal
from deploy.version import epoch, version
from tests.support.eventually import PATIENCE
from tests.support.paths import REPOSITORY

CHANGELOG = "# Changelog\n\n## 0.2.0 (unreleased)\n\nNew.\n\n## 0.1.0 (2026-12-01)\n\nThe first.\n"


class Clone:
    """A small repository with one commit of the file that has the version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "correlator/__init__.py"
        self.file.parent.mkdir(parents=True)
        self.file.write_text('"""A program."""\n\n__version__ = "0.1.0+dev"  # of a checkout\n')
        (folder / "pyproject.toml").touch()
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("commit", "--quiet", "--message=first")

    def git(self, *arguments: str) -> str:
        author = ("-c", "user.name=x", "-c", "user.email=x@localhost")
        command = ["git", "-C", str(self.folder), *author, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "clone")


def test_a_build_names_its_commit_and_that_of_the_tag_is_the_release(clone: Clone):
    commit = clone.git("rev-parse", "HEAD")[:7]
    assert version(clone.folder) == f"0.1.0+g{commit}"
    clone.git("tag", "v0.0.9")
    assert version(clone.folder) == f"0.1.0+g{commit}"
    clone.git("tag", "v0.1.0")
    assert version(clone.folder) == "0.1.0"
    assert refusal(clone.folder) is None
    (clone.folder / "new").touch()
    assert version(clone.folder) == f"0.1.0+g{commit}.dirty", "a file that no commit has may be built in"


def test_sources_without_their_own_git_keep_the_version_that_they_have(clone: Clone, monkeypatch):
    inner = clone.folder / "unpacked"
    Clone(inner)
    (inner / ".git").rename(clone.folder / "away")
    assert version(inner) == "0.1.0+dev", "the commit of the outer clone is not theirs"
    assert "not a clone" in str(refusal(inner))
    clone.file.write_text('__version__ = "0.1.0+g1234567"\n')
    assert version(clone.folder) == "0.1.0+g1234567", "a build has packed them"
    monkeypatch.setenv("PATH", "/nonexistent")
    assert version(inner) == "0.1.0+dev"
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert epoch(inner) == int((inner / "pyproject.toml").stat().st_mtime)


def test_a_tree_with_changes_is_refused_with_what_to_do(clone: Clone):
    clone.file.write_text(clone.file.read_text() + "\n")
    (clone.folder / "new").touch()
    words = str(refusal(clone.folder))
    assert " M correlator/__init__.py" in words
    assert "?? new" in words
    assert "git worktree add" in words


def test_packages_of_later_commits_and_the_release_are_upgrades_in_that_order():
    ordered = [package_version("0.1.0+gfffffff", "20261130000000"), package_version("0.1.0+g0000000", "20261130000001")]
    ordered += [package_version("0.1.0", "20261130000002"), package_version("0.2.0+g0000000", "20261130000003")]
    assert ordered[0] == "0.1.0~20261130000000+gfffffff"
    for lower, higher in itertools.pairwise(ordered):
        subprocess.run(["dpkg", "--compare-versions", lower, "lt", higher], check=True, timeout=PATIENCE)


def test_the_notes_are_the_section_of_the_changelog():
    assert notes(CHANGELOG, "0.1.0") == "# correlator 0.1.0\n\nReleased on 2026-12-01.\n\nThe first.\n"
    assert "A build of the commit 1234567, not a release.\n\nNew.\n" in notes(CHANGELOG, "0.2.0+g1234567")
    with pytest.raises(ValueError, match=r"'## 0\.3\.0 "):
        notes(CHANGELOG, "0.3.0+g1234567")
    with pytest.raises(ValueError, match="replace 'unreleased' by the day"):
        notes(CHANGELOG, "0.2.0")
    assert notes((REPOSITORY / "CHANGELOG.md").read_text(), f"{__version__.partition('+')[0]}+g1234567")


def test_wheel_and_source_archive_are_equal_wherever_they_are_built(tmp_path: Path):
    """The second time from the unpacked archive, which therefore has all that a build needs, and its version."""
    archive, wheel = _built(REPOSITORY, tmp_path / "one", umask=0o022, TZ="UTC")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "elsewhere", filter="data")
    (sources,) = (tmp_path / "elsewhere").iterdir()
    (sources / "build").mkdir()
    (sources / "build/link").symlink_to(sources / "deploy")  # what is no source takes no place of a source
    again = _built(sources, tmp_path / "other", umask=0o077, TZ="Asia/Tokyo")
    assert [file.name for file in again] == [archive.name, wheel.name]
    assert [file.read_bytes() for file in again] == [archive.read_bytes(), wheel.read_bytes()]
    assert version(sources) == version() == archive.name.removeprefix("joblog_correlator-").removesuffix(".tar.gz")
    with zipfile.ZipFile(wheel) as packed:
        assert f'__version__ = "{version()}"' in packed.read("correlator/__init__.py").decode()


def _built(sources: Path, folder: Path, *, umask: int, **environ: str) -> tuple[Path, Path]:
    """The source archive and the wheel."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    given = os.environ | {"SOURCE_DATE_EPOCH": "1796000000"} | environ
    subprocess.run(command, cwd=sources, env=given, umask=umask, check=True, timeout=120)
    (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return archive, wheel
