"""The browser client as a package for npm: whole, the same each time, and loaded by its name."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from deploy.client.build import build
from deploy.version import version
from tests.support.servers import program


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of ES modules in which it is installed."""
    folder = tmp_path_factory.mktemp("project")
    modules = folder / "node_modules"
    modules.mkdir()
    with tarfile.open(build(folder)) as archive:
        archive.extractall(modules, filter="data")
    (modules / "package").rename(modules / "correlator-client")
    return folder


def test_two_builds_are_equal_and_its_name_has_the_version(tmp_path: Path) -> None:
    one, other = build(tmp_path / "one"), build(tmp_path / "other")
    assert one.name == f"correlator-client-{version()}.tgz"
    assert one.read_bytes() == other.read_bytes()


def test_it_has_its_types_and_its_licence_and_nothing_that_the_page_alone_uses(project: Path) -> None:
    package = project / "node_modules/correlator-client"
    about: dict[str, Any] = json.loads((package / "package.json").read_text())
    assert (about["version"], about["license"]) == (version(), "Apache-2.0")
    files = {str(file.relative_to(package)) for file in package.rglob("*") if file.is_file()}
    exported = [each for each in about["exports"].values() if isinstance(each, dict)]
    targets = {path.removeprefix("./") for each in exported for path in each.values()}
    assert targets | {"LICENSE", "README.md", "package.json"} == files


def test_client_and_element_can_be_imported_where_there_is_no_page(project: Path) -> None:
    """A server that renders a page imports both. The hooks are imported with React, in tests/browser."""
    script = """
        const [client, progress] = [await import("correlator-client"), await import("correlator-client/progress")];
        console.log(typeof client.subscribe, typeof progress.CorrelatorProgress);
    """
    done = subprocess.run(
        [program("node"), "--input-type=module", "--eval", script],
        cwd=project, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("function function\n", "")
