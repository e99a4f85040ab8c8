"""The browser client: its own tests run in Node, and its types say what it exports."""

import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from correlator.jobs import wire
from correlator.jobs.model import Shown, Status, StepRecord, View

TESTS = Path(__file__).parents[1] / "web"
CLIENT = resources.files("correlator.web").joinpath("client.js")
TYPES = resources.files("correlator.web").joinpath("client.d.ts")
SUITES = sorted(path.name for path in TESTS.glob("*.test.mjs"))


@pytest.fixture(scope="module")
def node() -> str:
    """Node, where it takes a .js file for a module without being told."""
    program = shutil.which("node")
    if program is None:
        pytest.fail("node is not installed: make test installs it where it can (Debian: apt-get install nodejs)")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    found = tuple(int(part) for part in version.strip().lstrip("v").split(".")[:2])
    if found < (20, 19):
        pytest.fail(f"node {version.strip()} is older than 20.19, from which on it takes .js files for modules")
    return program


@pytest.mark.parametrize("suite", SUITES)
def test_the_client_keeps_its_promises(node: str, suite: str) -> None:
    done = subprocess.run([node, "--test", suite], cwd=TESTS, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_its_types_declare_what_it_exports(node: str) -> None:
    script = f"""
        const client = await import({json.dumps(Path(str(CLIENT)).as_uri())});
        const members = Object.getOwnPropertyNames(client.Correlator.prototype).sort();
        console.log(JSON.stringify({{ exports: Object.keys(client).sort(), members }}));
    """
    done = subprocess.run(
        [node, "--input-type=module", "--eval", script], capture_output=True, text=True, timeout=20, check=True
    )
    types = TYPES.read_text()
    body = re.search(r"^export class Correlator \{\n(.*?)^\}", types, re.MULTILINE | re.DOTALL)
    assert body is not None
    assert json.loads(done.stdout) == {
        "exports": sorted(re.findall(r"^export (?:class|function|const) (\w+)", types, re.MULTILINE)),
        "members": sorted(set(re.findall(r"^  (?:readonly )?(\w+)[(:]", body[1], re.MULTILINE))),
    }


def _members(interface: str) -> set[str]:
    body = re.search(rf"^export interface {interface} \{{\n(.*?)^\}}", TYPES.read_text(), re.MULTILINE | re.DOTALL)
    assert body is not None
    return set(re.findall(r"^  readonly (\w+)\??:", body[1], re.MULTILINE))


def test_its_types_name_the_members_of_a_job_document() -> None:
    view = View("j", Status.RUNNING, steps=(StepRecord(1, "s"),))
    document = wire.document(Shown(view, rev=1, updated_at=0))
    assert _members("Job") == set(document)
    assert _members("Progress") == set(document["progress"])
    assert _members("Step") == set(document["steps"]["1"])
