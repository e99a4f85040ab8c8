"""What the files of the container image say. test_release.py builds and runs it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from correlator.config import schema
from tests.support.nats import PROGRAM
from tests.support.paths import DEPLOY, REPOSITORY


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile, in their order."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(word, " ".join(rest.split())) for word, rest in found]


def final(word: str) -> list[str]:
    """The arguments of an instruction in the last build step, of which the image is made."""
    found = instructions()
    start = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return [rest for name, rest in found[start:] if name == word]


def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_every_package_of_the_image_is_locked_by_hash():
    installs = [
        part for word, rest in instructions() if word == "RUN" for part in rest.split("&&") if "pip install" in part
    ]
    assert len(installs) == 2
    assert all("--require-hashes" in part or "--no-index" in part for part in installs), installs


def test_everything_that_the_image_copies_is_in_the_build_context():
    allowed = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    for word, rest in instructions():
        if word == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                if source.startswith("${WHEELS}/"):
                    assert {source.replace("${WHEELS}", made) for made in ("build/wheel", "build/release")} <= set(
                        allowed
                    )
                else:
                    assert source in allowed
                    assert (REPOSITORY / source).exists()


def test_the_settings_in_both_files_are_keys_of_the_configuration():
    known = {f"CORRELATOR_{dotted.upper().replace('.', '__')}" for dotted, _ in schema.leaves()}
    named = set(re.findall(r"CORRELATOR_[A-Z_]+", " ".join(final("ENV")) + str(compose()["services"]["correlator"])))
    assert named <= known
    assert len(named) >= 6


def test_the_composed_daemon_can_write_to_its_state_alone():
    service = compose()["services"]["correlator"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["volumes"] == ["state:/var/lib/correlator"]
    assert service["ports"] == ["127.0.0.1:8686:8686"]


def test_every_file_that_compose_names_is_there():
    services = compose()
    for config in services["configs"].values():
        if "file" in config:
            assert (DEPLOY / config["file"]).resolve().is_file()
    for name in services["services"]["correlator"]["secrets"]:
        assert (DEPLOY / services["secrets"][name]["file"]).resolve().is_relative_to((REPOSITORY / "build").resolve())


def test_the_composed_fleet_adds_a_server_and_a_gateway_that_writes_nowhere(tmp_path: Path):
    fleet = yaml.safe_load((DEPLOY / "compose-fleet.yaml").read_text())
    assert fleet["services"].keys() == {"correlator", "nats", "gateway"}
    known = {f"CORRELATOR_{dotted.upper().replace('.', '__')}" for dotted, _ in schema.leaves()}
    for name in ("correlator", "gateway"):
        assert fleet["services"][name]["environment"].keys() <= known
    gateway = fleet["services"]["gateway"]
    assert (gateway["command"], gateway["read_only"], gateway["cap_drop"]) == (["gateway"], True, ["ALL"])
    assert "volumes" not in gateway
    assert set(gateway["secrets"]) <= compose()["secrets"].keys()
    file = tmp_path / "nats.conf"
    file.write_text(fleet["configs"]["nats"]["content"])
    subprocess.run([PROGRAM, "-t", "-c", str(file)], check=True, capture_output=True, timeout=30)
