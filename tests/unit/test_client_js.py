"""The browser client: its tests run in Node, and its types match its exports."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from correlator.web import files
from deploy.client.build import build
from deploy.version import version
from tests.support.eventually import PATIENCE
from tests.support.markdown import blocks
from tests.support.paths import REPOSITORY
from tests.support.servers import program
from tests.support.there import there

TESTS = Path(__file__).parents[1] / "web"
CLIENT = resources.files("correlator.web").joinpath("client.js")
GUI = Path(__file__).parents[2] / "docs/gui.md"
TYPES = resources.files("correlator.web").joinpath("client.d.ts")
SUITES = sorted(path.name for path in TESTS.glob("*.test.mjs"))


@pytest.fixture(scope="module")
def node() -> str:
    """Node of a version that treats .js files as modules."""
    program = shutil.which("node")
    if program is None:
        pytest.fail("node is not installed (Debian: apt-get install nodejs)")
    version = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout
    found = tuple(int(part) for part in version.strip().lstrip("v").split(".")[:2])
    if found < (20, 19):
        pytest.fail(f"node {version.strip()} is older than 20.19, which treats .js files as modules")
    return program


@pytest.mark.parametrize("suite", SUITES)
def test_the_suites_in_node_pass(node: str, suite: str) -> None:
    # Without --test: that would run the file in a second process.
    done = subprocess.run([node, suite], cwd=TESTS, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def printed(node: str, script: str, folder: Path = TESTS) -> str:
    """What a module prints, which Node runs in `folder` without an error."""
    command = [node, "--input-type=module", "--eval", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_its_types_declare_what_it_exports(node: str) -> None:
    script = f"""
        const client = await import({json.dumps(Path(str(CLIENT)).as_uri())});
        const members = Object.getOwnPropertyNames(client.Correlator.prototype).sort();
        console.log(JSON.stringify({{ exports: Object.keys(client).sort(), members }}));
    """
    types = TYPES.read_text()
    body = there(re.search(r"^export class Correlator \{\n(.*?)^\}", types, re.MULTILINE | re.DOTALL))
    assert json.loads(printed(node, script)) == {
        "exports": sorted(re.findall(r"^export (?:class|function|const) (\w+)", types, re.MULTILINE)),
        "members": sorted(set(re.findall(r"^  (?:readonly )?(\w+)[(:]", body[1], re.MULTILINE))),
    }


def test_the_copy_that_gui_md_describes_is_complete(node: str, tmp_path: Path) -> None:
    commands = re.findall(r"^curl .*--output '(\S+)' 'http://127.0.0.1:8686/(\S+)'$", GUI.read_text(), re.MULTILINE)
    for output, address in commands:
        for name in address.strip("{}").split(","):
            copy = tmp_path / output.replace("#1", name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(files()[f"/{name}"].body)
    copied = (tmp_path / "lib/correlator/client.js").as_uri()
    script = f"console.log(Object.keys(await import({json.dumps(copied)})).sort().join())"
    assert printed(node, script) == "Correlator,acquire,merge,newest,remaining,subscribe\n"


def test_the_example_of_gui_md_moves_its_bar_by_the_daemons_clock(node: str, tmp_path: Path) -> None:
    (shown,) = (block.text for block in blocks("docs/gui.md") if block.text.startswith("import { remaining,"))
    (tmp_path / "example.mjs").write_text(shown.replace("/correlator/client.js", "./client.mjs"))
    (tmp_path / "client.mjs").write_text(f"""
        export {{ remaining }} from {json.dumps(Path(str(CLIENT)).as_uri())};
        export const subscribe = (id, onChange) => {{ globalThis.update = onChange; }};
    """)
    script = """
        const page = { "#bar": {}, "#left": {} };
        const at = (seconds) => new Date(seconds * 1000).toISOString();
        let [now, shown, every] = [0, [], () => {}];
        globalThis.document = { querySelector: (name) => page[name] };
        globalThis.setInterval = (callback) => { every = callback; };
        Date.now = () => now * 1000;
        const show = (seconds) => {
            now = seconds;
            every();
            shown.push([page["#bar"].value, page["#left"].textContent]);
        };
        await import("./example.mjs");
        show(0);
        const forecast = { ends_at: { p50: at(3700), p90: at(3900) }, as_of: at(3600), state: "on_track" };
        const progress = { percent: 40, basis: "history" };
        const job = { job_id: "a", started_at: at(3500), terminal: false, progress, forecast };
        update({ job, connection: { ahead_ms: 3_600_000 } });
        show(0);
        show(50);
        update({ job: { ...job, terminal: true, forecast: null, progress: { percent: 100 } }, connection: {} });
        show(60);
        console.log(JSON.stringify(shown));
    """
    said = ["about 2 min left, on_track", "about 1 min left, on_track"]
    assert json.loads(printed(node, script, tmp_path)) == [[0, ""], [40, said[0]], [60, said[1]], [100, ""]]


# -- The browser client as a package for npm: whole, the same each time, and loaded by its name


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


def test_two_builds_are_equal_and_have_types_and_licence_and_nothing_that_the_page_alone_uses(project: Path) -> None:
    one, other = (build(project / name) for name in ("one", "other"))
    assert one.name == f"correlator-client-{version()}.tgz"
    assert one.read_bytes() == other.read_bytes()
    package = project / "node_modules/correlator-client"
    about: dict[str, Any] = json.loads((package / "package.json").read_text())
    assert (about["version"], about["license"]) == (version(), "Apache-2.0")
    files = {str(file.relative_to(package)) for file in package.rglob("*") if file.is_file()}
    exported = [each for each in about["exports"].values() if isinstance(each, dict)]
    targets = {path.removeprefix("./") for each in exported for path in each.values()}
    assert targets | {"LICENSE", "README.md", "package.json"} == files


def test_the_package_is_installed_as_gui_md_says(node: str, tmp_path: Path) -> None:
    """In a folder beside the clone, with the name that the build gives the file."""
    (command,) = re.findall(r"^npm install (\S+)$", GUI.read_text(), re.MULTILINE)
    gui = tmp_path / "gui"
    gui.mkdir()
    build((gui / command).parent.resolve())
    (gui / "package.json").write_text('{ "private": true, "type": "module" }')
    said = ["--offline", "--no-audit", "--no-fund", "--silent"]
    script = f"exec {program('npm')} install {shlex.join(said)} {command}"
    environ = os.environ | {"npm_config_cache": str(tmp_path / "cache")}
    subprocess.run(["bash", "-c", script], cwd=gui, env=environ, check=True, timeout=120)
    exports = "console.log(Object.keys(await import('correlator-client')).sort().join())"
    assert printed(node, exports, gui) == "Correlator,acquire,merge,newest,remaining,subscribe\n"


def test_a_backend_makes_the_tokens_for_one_job_that_the_daemon_accepts(node: str, project: Path) -> None:
    vectors = json.loads((REPOSITORY / "tests/data/job_tokens.json").read_text())
    (project / "vectors.json").write_text(json.dumps(vectors))
    script = """
        import { readFileSync } from "node:fs";
        const { createJobToken } = await import("correlator-client/token");
        for (const { key, token, valid_for: expiresIn, ...what } of JSON.parse(readFileSync("vectors.json")))
          console.log((await createJobToken(key, { ...what, expiresIn })) === token);
        const key = "k".repeat(32);
        for (const [given, what] of [["k".repeat(31), { job: "j" }], [key, {}], [key, { job: "j", vm: "v" }],
          [key, { job: "" }], [key, { job: "j".repeat(256) }], [key, { job: "\\ud800" }],
          [key, { job: "j", expiresIn: 0 }]])
          await createJobToken(given, what).catch((error) => console.log(error.constructor.name));
        globalThis.document = {};
        await createJobToken(key, { job: "j" }).catch((error) => console.log(error.message));
    """
    said = printed(node, script, project).splitlines()
    assert said[: len(vectors)] == len(vectors) * ["true"]
    assert said[len(vectors) : -1] == 7 * ["TypeError"]
    assert "a page must not have the key" in said[-1]


def test_client_and_element_can_be_imported_where_there_is_no_page(node: str, project: Path) -> None:
    """A server that renders a page imports both. The hooks are imported with React, in tests/browser."""
    script = """
        const [client, progress] = [await import("correlator-client"), await import("correlator-client/progress")];
        console.log(typeof client.subscribe, typeof progress.CorrelatorProgress);
    """
    assert printed(node, script, project) == "function function\n"
