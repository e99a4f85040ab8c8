"""The pages of docs/examples in Chromium, with a real daemon, and the types of what they use."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.support.appliance import Appliance
from tests.support.browser import Page, expect
from tests.support.daemon import Daemon
from tests.support.paths import REPOSITORY
from tests.support.servers import program

EXAMPLE = REPOSITORY / "docs/examples/nextjs"
_REACT = REPOSITORY / "tests/support/react"
_WEB = REPOSITORY / "correlator/web"


def compiled(folder: Path, *more: Path) -> str:
    """Write the JavaScript of the example and of `more` below `folder`, by their whole paths. Returns all errors."""
    paths = {"correlator-client": _WEB / "client"}
    paths |= {f"correlator-client/{name}": _WEB / name for name in ("progress", "react")}
    paths |= {"react": _REACT / "index", "react/jsx-runtime": _REACT / "jsx-runtime"}
    options = {
        "strict": True,
        "noUncheckedIndexedAccess": True,
        "jsx": "react-jsx",
        "target": "es2021",
        "module": "esnext",
        "moduleResolution": "node",
        "lib": ["es2021", "dom", "dom.iterable"],
        "types": [],
        "baseUrl": "/",
        "paths": {name: [f"{path}.d.ts"] for name, path in paths.items()},
        "rootDir": "/",
        "outDir": str(folder),
        "newLine": "lf",
    }
    files = [*EXAMPLE.rglob("*.tsx"), *more]
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "files": [str(f) for f in files]}))
    command = [program("tsc"), "--project", str(folder / "tsconfig.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


_FOLDER = REPOSITORY / "tests/browser/vendor/react"
FILES = {
    "react": "react.production.js",
    "react/jsx-runtime": "react-jsx-runtime.production.js",
    "react-dom": "react-dom.production.js",
    "react-dom/client": "react-dom-client.production.js",
    "scheduler": "scheduler.production.js",
}


def module(name: str) -> str:
    """The text of a module that exports what the package exports."""
    text = (_FOLDER / FILES[name]).read_text()
    required = sorted(set(re.findall(r'require\("([^"]+)"\)', text)))
    imports = "".join(f"import m{n} from {json.dumps(package)};\n" for n, package in enumerate(required))
    modules = ", ".join(f"{json.dumps(package)}: m{n}" for n, package in enumerate(required))
    exported = sorted(set(re.findall(r"^ *exports\.(\w+) =", text, re.MULTILINE)) - {"unstable_now"})
    return (
        f"{imports}const modules = {{ {modules} }};\nconst module = {{ exports: {{}} }};\n"
        f"((module, exports, require) => {{{text}\n}})(module, module.exports, (name) => modules[name]);\n"
        f"export default module.exports;\nexport const {{ {', '.join(exported)} }} = module.exports;\n"
    )


NAME = "unified-live-failover-pgtest2-1758553933"
EXAMPLES = REPOSITORY / "docs/examples"
VENDOR = REPOSITORY / "tests/browser/vendor"
MAIN = '<script type="module" src="/test/main.js"></script>'
NEXT = """
    import { createElement as element } from "react";
    import { createRoot } from "react-dom/client";
    import { CorrelatorProvider } from "correlator-client/react";
    import { JobProgress } from "/example/job.js";
    const page = (id) => element(CorrelatorProvider, { server: "/" }, element(JobProgress, { id }));
    const root = createRoot(document.querySelector("main"));
    window.show = (id) => root.render(page(id));
    show(NAME);
"""


async def opened(page: Page, daemon: Daemon, files: dict[str, str]) -> None:
    """Open `/test/page.html` of `files`, by their paths; the daemon serves all others. No proxy is in between."""

    async def answer(route: Any) -> None:
        path = urlsplit(route.request.url).path
        kind = "text/html" if path.endswith(".html") else "text/javascript"
        await route.fulfill(body=files[path].replace('"/correlator/', '"/'), content_type=kind)

    for path in files:
        await page.route(f"{daemon.url}{path}", answer)
    await page.goto(f"{daemon.url}/test/page.html")


WRONG = """
    import { useJob, useJobLog } from "correlator-client/react";
    import { subscribe } from "correlator-client";
    export function Wrong() {
        const { job } = useJob(7);
        const { lines } = useJobLog("a", { level: "LOUD" });
        subscribe("a", ({ jobs }) => jobs.length, { url: "/", token: 1 });
        return <correlator-progress server={job.job_id} onend={(event: string) => lines} />;
    }
    const bar = document.querySelector("correlator-progress")!;
    bar.addEventListener("end", ({ detail: { job } }) => { bar.label = job?.metadata.vm_name ?? null; });
    bar.addEventListener("change", (event) => event.detail.wrong);
"""


class Example(NamedTuple):
    """The JavaScript of the Next.js example, and the errors of its types and of those of `WRONG`."""

    job: str
    errors: str


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp("example")
    wrong = folder / "wrong.tsx"
    wrong.write_text(WRONG)
    errors = compiled(folder, wrong)
    return Example(folder.joinpath(*EXAMPLE.parts[1:], "app/jobs/[id]/job.js").read_text(), errors)


def test_the_types_accept_the_example_and_refuse_a_wrong_use(example: Example):
    found = {
        re.sub(r"^.*?(\w+\.tsx)\((\d+),.*", r"\1:\2", line) for line in example.errors.splitlines() if line[0] != " "
    }
    assert found == {f"wrong.tsx:{line}" for line in (5, 6, 7, 8, 12)}, example.errors


async def test_the_plain_example_shows_a_job_to_its_end(page: Page, appliance: Appliance, daemon: Daemon):
    await opened(page, daemon, {"/test/page.html": (EXAMPLES / "progress.html").read_text()})
    shown = page.locator("correlator-progress")
    await expect(shown).to_contain_text("Waiting for the job")
    job_id = await appliance.job(NAME)
    await appliance.step(job_id, 1, "final-sync")
    await expect(shown).to_contain_text("final-sync")
    await appliance.end(job_id, "failed", "no space left\nat line 7")
    await expect(shown.get_by_role("status")).to_have_text("Failed")
    await expect(shown.locator("summary")).to_have_text("The job reports: no space left. The last step was final-sync.")
    await expect(page.locator("#result")).to_have_text("Nothing was changed.")


async def test_the_hooks_show_a_job_with_its_log_once_on_one_connection(
    example: Example, page: Page, appliance: Appliance, daemon: Daemon
):
    job_id = await appliance.job(NAME)
    step_id = await appliance.step(job_id, 1, "final-sync")
    attrs = {"job_id": job_id, "step_id": step_id}
    await appliance.log("before the page", attrs=attrs)
    names = {f"correlator-client{part}": f"/{file}.js" for part, file in _PARTS.items()}
    files = {f"/react/{number}.js": module(name) for number, name in enumerate(FILES)}
    imports = {"imports": names | {name: f"/react/{number}.js" for number, name in enumerate(FILES)}}
    scripts = f'<script type="importmap">{json.dumps(imports)}</script>' + MAIN
    await opened(
        page,
        daemon,
        files
        | {
            "/test/page.html": f"<main></main>{scripts}",
            "/test/main.js": NEXT.replace("NAME", json.dumps(NAME)),
            "/example/job.js": example.job,
        },
    )
    await expect(page.locator("ol")).to_have_text("final-sync: running")
    await expect(page.locator("correlator-progress")).to_contain_text("final-sync")
    lines = page.get_by_role("list", name="Log").get_by_role("listitem")
    await expect(lines.filter(has_text="before the page")).to_have_count(1)
    await appliance.log("while it is open", "WARN", attrs=attrs)
    await expect(lines.filter(has_text="while it is open")).to_have_count(1)
    texts = await lines.all_inner_texts()
    assert len(texts) == len(set(texts))
    metrics = await daemon.text("/metrics")
    assert re.search(r'^correlator_readers\{transport="websocket"\} 1\.0$', metrics, re.MULTILINE)
    await page.evaluate("show('unified-live-failover-pgtest2-1758553932')")
    await expect(page.locator("main")).to_have_text("Waiting for this job to start…")


def test_react_is_as_it_was_released():
    listed = dict(reversed(line.split("  ")) for line in re.findall(r"^[0-9a-f]{64}  \S+$", _vendored(), re.MULTILINE))
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (VENDOR / "react").glob("*.js")}
    assert files == listed
    assert set(FILES.values()) == set(listed)


_PARTS = {"": "client", "/progress": "progress", "/react": "react"}


def _vendored() -> str:
    return (VENDOR / "VENDOR.md").read_text()
