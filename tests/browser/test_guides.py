"""What README.md and docs/gui.md show for a GUI works as it stands there, except for ports, in Chromium."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from correlator.web import CLIENT, files
from tests.support.appliance import Appliance
from tests.support.browser import BrowserContext, Page, expect
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import Database
from tests.support.markdown import blocks
from tests.support.pages import CaddySite, Files, ViteSite, pages
from tests.support.past_runs import in_sequence, write_past_runs
from tests.support.paths import REPOSITORY
from tests.support.servers import program

NAME = "unified-live-failover-pgtest2-1758553933"
ICON = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">'  # else a browser asks the page's server
TOKEN = "a-token-of-this-test"

GUI = {
    "line": "/correlator/progress.js",
    "end": 'addEventListener("end"',
    "minimal": 'from "/correlator/client.js";\n\n  const id',
    "own connection": "correlator.history(id",
    "forecast": "import { remaining, subscribe }",
    "copy": '"./lib/correlator/client.js"',
    "token": "/my/session/token",
    "backend": "createJobToken(key",
    "polling": "while (!job?.terminal)",
    "vite": "// vite.config.js",
    "with vite": '  import { subscribe } from "correlator-client"',
    "node": 'from "ws"',
}
"""Each script that docs/gui.md shows, by what no other has. That of Next.js is in tests/docs."""


def shown(what: str, daemon: Daemon) -> str:
    """The block, with the port of the daemon."""
    (text,) = (b.text for b in blocks("docs/gui.md") if b.language in ("html", "js") and GUI[what] in b.text)
    return text.replace("127.0.0.1:8686", f"127.0.0.1:{daemon.port}")


def test_every_script_of_the_guide_is_run_here():
    scripts = [b for b in blocks("docs/gui.md") if b.language in ("html", "js") and "next.config" not in b.text]
    assert len(scripts) == len(GUI), [b.place for b in scripts if not any(part in b.text for part in GUI.values())]


def page_of(html: str = "", script: str = "") -> str:
    """A page. Its script is a module that has what the guide's scripts take for granted."""
    given = f"""
        const id = {json.dumps(NAME)};
        const show = (job) => {{ document.querySelector("#state").textContent = job?.status ?? "no job"; }};
        const onChange = (update) => show(update.job);
    """
    module = f'<p id="state"></p><script type="module">{given}{script}</script>' if script else ""
    return ICON + html + module


async def test_the_snippet_of_the_readme_says_at_each_origin_what_is_missing_until_nothing_is(
    page: Page, database: Database, appliance: Appliance, tmp_path: Path
):
    daemon = Daemon(tmp_path, database__url=database.url)
    (snippet,) = (b.text for b in blocks("README.md") if b.language == "html")
    html = page_of(snippet.replace("127.0.0.1:8686", f"127.0.0.1:{daemon.port}"))
    file = tmp_path / "page.html"
    file.write_text(html)
    job_id = await appliance.job(NAME)
    await appliance.step(job_id, 1, "final-sync")
    says = page.locator("correlator-progress").get_by_role("status")
    async with pages({"/page.html": html}) as origin, daemon:
        await page.goto(f"{origin}/page.html")
        await expect(says).to_have_text(f"Refused: pages of {origin} are not allowed: add it to http.allowed_origins")
        await page.goto(file.as_uri())
        web_server = "open the page from a web server, and add its origin to http.allowed_origins"
        await expect(says).to_have_text(f"Refused: a file has no origin: {web_server}")
        await daemon.stop()
        daemon.becomes({"CORRELATOR_HTTP__ALLOWED_ORIGINS": origin, "CORRELATOR_HTTP__TOKENS_FILE": token_in(tmp_path)})
        await daemon.start()
        await page.goto(f"{origin}/page.html")
        await expect(says).to_have_text("Refused: a token is needed: set the attribute token")
        await page.evaluate(f"document.querySelector('correlator-progress').setAttribute('token', '{TOKEN}')")
        await expect(says).to_have_text("Running")
        await expect(page.locator("correlator-progress")).to_contain_text("final-sync")


def token_in(folder: Path) -> str:
    file = folder / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return str(file)


@pytest.fixture
async def behind_caddy(database: Database, tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon that knows earlier runs, with the settings that the guide names for a proxy."""
    await write_past_runs(database, [in_sequence(("validation", 1000 + n)) for n in range(20)])
    settings = {"http__allowed_hosts": "gui.example", "http__trusted_proxies": "127.0.0.1"}
    async with Daemon(tmp_path, database__url=database.url, **settings) as daemon:
        await eventually(lambda: "forecasts: read" in daemon.log())
        yield daemon


async def test_the_scripts_of_the_guide_follow_a_job_behind_its_proxy(
    context: BrowserContext, page: Page, appliance: Appliance, behind_caddy: Daemon, tmp_path: Path
):
    """Some before the job exists, some while it runs. At the end the daemon wants a token, which the page fetches."""
    daemon = behind_caddy
    bar = '<progress id="bar" max="100"></progress><p id="left"></p>'
    history = "document.title = events.map(({ message }) => message).join();"
    site: Files = {
        "line.html": page_of(shown("line", daemon), shown("end", daemon)),
        "failed": "The end of a job leads here.",
        "minimal.html": page_of(shown("minimal", daemon)),
        "own.html": page_of(script=shown("own connection", daemon) + history),
        "forecast.html": page_of(f'{bar}<script type="module">{shown("forecast", daemon)}</script>'),
        "copy.html": page_of(script=shown("copy", daemon)),
        "lib/correlator/client.js": files()["/client.js"].body,
        "polling.html": page_of(script=shown("polling", daemon)),
        "token.html": page_of(script=shown("token", daemon)),
        "my/session/token": TOKEN,
    }
    (rules,) = (b.text for b in blocks("docs/gui.md") if b.language == "caddy")
    with CaddySite(rules.replace("127.0.0.1:8686", f"127.0.0.1:{daemon.port}"), site) as caddy:

        async def opened(name: str) -> Page:
            one = await context.new_page()
            await one.goto(f"{caddy.origin}/{name}.html")
            return one

        line, minimal, polling, copy = [await opened(name) for name in ("line", "minimal", "polling", "copy")]
        await expect(minimal.locator("#state")).to_have_text("waiting for the job")
        await expect(line.locator("correlator-progress")).to_contain_text("Waiting for the job")
        await expect(copy.locator("#state")).to_have_text("no job")
        # It has no steps yet: counted by them, it would be at 0 %.
        job_id = await appliance.job(NAME, started_at=f"{datetime.now(UTC) - timedelta(seconds=500):%F %T}")
        await appliance.log("it runs", "WARN", job_id=job_id)
        forecast = await opened("forecast")
        await expect(minimal.locator("#state")).to_have_text(re.compile(r"^running, [45]\d(\.\d)? %$"))
        await expect(line.locator("correlator-progress")).to_contain_text(re.compile("Running.*about .* left"))
        await expect(forecast.locator("#left")).to_have_text(re.compile(r"^about \d+ min left, \w+$"))
        assert 40 < await forecast.evaluate("document.querySelector('#bar').value") < 60
        own = await opened("own")
        await expect(own.locator("#state")).to_have_text("running")
        await expect(own).to_have_title("it runs")
        for each in (polling, copy):
            await expect(each.locator("#state")).to_have_text("running")
        await appliance.end(job_id, "failed", "no space left")
        for each in (polling, copy):
            await expect(each.locator("#state")).to_have_text("failed")
        await expect(minimal.locator("#state")).to_have_text(re.compile("^failed, "))
        await expect(line).to_have_url(f"{caddy.origin}/failed")
        for each in context.pages:
            await each.close()
        await daemon.stop()
        daemon.becomes({"CORRELATOR_HTTP__TOKENS_FILE": token_in(tmp_path)})
        await daemon.start()
        await expect((await opened("token")).locator("#state")).to_have_text("failed")


def package() -> dict[str, bytes]:
    """The files of the package for npm, as they are installed."""
    about = (REPOSITORY / "deploy/client/package.json").read_bytes()
    scripts = {name: files()[f"/{name}"].body for name in CLIENT}
    scripts["token.js"] = (REPOSITORY / "deploy/client/token.js").read_bytes()
    return {f"node_modules/correlator-client/{name}": body for name, body in {"package.json": about, **scripts}.items()}


async def test_both_pages_of_the_guide_for_vite_follow_a_job_by_its_configuration(
    context: BrowserContext, page: Page, appliance: Appliance, daemon: Daemon
):
    await appliance.job(NAME)
    whole = {"whole.html": page_of(shown("with vite", daemon)), "line.html": page_of(shown("line", daemon))}
    with ViteSite(shown("vite", daemon), {**whole, **package()}) as vite:
        await page.goto(f"{vite.origin}/whole.html")
        await expect(page.locator("#state")).to_have_text("running (live)")
        await page.goto(f"{vite.origin}/line.html")
        await expect(page.locator("correlator-progress")).to_contain_text("Running")


async def test_the_client_follows_a_job_in_node(appliance: Appliance, daemon: Daemon, tmp_path: Path):
    """The package `ws` is stood in for by the WebSocket of Node, which has it behind an option before version 22."""
    await appliance.job(NAME)
    installed: Files = {
        **package(),
        "node_modules/ws/package.json": '{ "type": "module", "exports": "./index.js" }',
        "node_modules/ws/index.js": "export default globalThis.WebSocket;",
        "main.mjs": f"""
            const id = {json.dumps(NAME)};
            const onChange = ({{ job }}) => {{
                if (job !== null) console.log(job.status);
                if (job !== null) process.exit();
            }};
            {shown("node", daemon)}
        """,
    }
    assert await said_in_node(tmp_path, installed) == "running\n"


async def test_the_backend_makes_a_token_with_which_a_page_shows_one_job_and_no_other(
    page: Page, database: Database, appliance: Appliance, tmp_path: Path
):
    key = "a-key-of-this-test-that-the-backend-has-too"
    (tmp_path / "key").write_text(key)
    (tmp_path / "key").chmod(0o600)
    daemon = Daemon(tmp_path, database__url=database.url, http__job_token_key_file=tmp_path / "key")
    script = f"""
        const request = {{ session: {{ job: {json.dumps(NAME)} }} }};
        const app = {{ get: (path, answer) => answer(request, {{ send: (token) => console.log(token) }}) }};
        {shown("backend", daemon)}
    """
    token = (await said_in_node(tmp_path, {**package(), "main.mjs": script}, JOB_TOKEN_KEY=key)).strip()
    source = f'<script type="module" src="http://127.0.0.1:{daemon.port}/progress.js"></script>'

    def bars_of(*jobs: str) -> str:
        bars = (f'<correlator-progress job="{job}" token="{token}"></correlator-progress>' for job in jobs)
        return page_of(f"{source}{''.join(bars)}")

    shown_pages = {
        "/own.html": bars_of(NAME),
        "/other.html": bars_of("another"),
        "/both.html": bars_of(NAME, "another"),
    }
    async with pages(shown_pages) as origin:
        daemon.becomes({"CORRELATOR_HTTP__ALLOWED_ORIGINS": origin})
        async with daemon:
            bar = page.locator("correlator-progress")
            await page.goto(f"{origin}/own.html")
            await expect(bar).to_contain_text("Waiting for the job")
            for name in (NAME, "another"):
                await appliance.job(name)
            await expect(bar).to_contain_text("Running")
            await page.goto(f"{origin}/other.html")
            await expect(bar).to_contain_text(f"Refused: this token is only for the job '{NAME}'")
            await page.goto(f"{origin}/both.html")
            await expect(bar.nth(1)).to_contain_text(f"Refused: this token is only for the job '{NAME}'")
            await expect(bar.nth(0)).to_contain_text("Running")


async def said_in_node(folder: Path, installed: Files, **environ: str) -> str:
    """What `main.mjs` prints among these files."""
    for path, content in installed.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    command = [program("node"), "--no-warnings", "--experimental-websocket", "main.mjs"]
    node = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=os.environ | environ, stdout=asyncio.subprocess.PIPE
    )
    try:
        said, _ = await asyncio.wait_for(node.communicate(), PATIENCE)
    finally:
        if node.returncode is None:
            node.kill()
            await node.wait()
    return said.decode()
