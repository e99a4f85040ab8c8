"""The page and the element in each engine that browsers are made of: `make test-browsers`.

Each is driven by the protocol that its Debian package speaks. Firefox itself speaks WebDriver BiDi, over a websocket;
Chromium and WebKitGTK have a driver that speaks WebDriver, over HTTP. A `Tab` is what the tests need of them. An
engine's processes are killed as a group at its end.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import Database
from tests.support.page_server import PageServer, document, serving, stamp, step
from tests.support.servers import Server, program, run_program

Json = dict[str, Any]


class Tab(ABC):
    """A tab of a browser without history or storage."""

    @abstractmethod
    async def goto(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""

    @abstractmethod
    async def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript, or of its promise, as JSON."""

    @abstractmethod
    async def act(self, actions: list[Json]) -> None:
        """Do what somebody does at a keyboard."""

    @abstractmethod
    async def hide(self) -> None:
        """Make it one that nobody sees."""

    @abstractmethod
    async def show(self) -> None:
        """Undo `hide`."""

    @abstractmethod
    async def printed(self) -> bytes | None:
        """The page on paper, as PDF. None if the driver only lets it prepare itself."""

    async def type(self, text: str) -> None:
        """Press and release keys in turn, as a user does. WebDriver has codes for Enter and the like."""
        keys = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        await self.act([{"type": "key", "id": "keyboard", "actions": keys}])


class Engine(Server):
    """A browser's program, or that of its driver."""

    @abstractmethod
    def tab(self) -> contextlib.AbstractAsyncContextManager[Tab]:
        """A tab in a new session."""

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return True

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self.kill()


class WebDriverTab(Tab):
    """https://www.w3.org/TR/webdriver2/"""

    def __init__(self, http: aiohttp.ClientSession, path: str) -> None:
        self._http = http
        self._path = path

    async def command(self, path: str, body: Json | None = None, method: str = "POST") -> Any:
        async with self._http.request(method, f"{self._path}{path}", json=body or {}) as response:
            answer = await response.json()
        assert response.ok, answer
        return answer["value"]

    async def goto(self, url: str) -> None:
        await self.command("/url", {"url": url})

    async def evaluate(self, expression: str) -> Any:
        return await self.command("/execute/sync", {"script": f"return {expression}", "args": []})

    async def act(self, actions: list[Json]) -> None:
        await self.command("/actions", {"actions": actions})

    async def hide(self) -> None:
        await self.command("/window/minimize")

    async def show(self) -> None:
        await self.command("/window/rect", {"width": 1280, "height": 800})

    async def printed(self) -> bytes | None:
        return base64.b64decode(await self.command("/print"))


class WebDriver(Engine):
    kind = WebDriverTab

    @property
    def capabilities(self) -> Json:
        return {}

    @contextlib.asynccontextmanager
    async def tab(self) -> AsyncIterator[Tab]:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self.port}", timeout=timeout) as http:
            wanted = {"capabilities": {"alwaysMatch": self.capabilities}}
            session = await WebDriverTab(http, "/session").command("", wanted)
            tab = self.kind(http, f"/session/{session['sessionId']}")
            try:
                yield tab
            finally:
                await tab.command("", method="DELETE")


class Chromium(WebDriver):
    @property
    def capabilities(self) -> Json:
        return {"goog:chromeOptions": {"args": ["--headless", "--no-sandbox", "--disable-gpu"]}}

    def _prepare(self) -> Sequence[str]:
        return [program("chromedriver"), f"--port={self.port}"]


class WebKitTab(WebDriverTab):
    async def printed(self) -> bytes | None:
        await self.evaluate("dispatchEvent(new Event('beforeprint'))")
        return None


class WebKit(WebDriver):
    """It has no headless mode: a display without a screen belongs to it."""

    kind = WebKitTab

    def _prepare(self) -> Sequence[str]:
        return [program("xvfb-run"), "--auto-servernum", program("WebKitWebDriver"), f"--port={self.port}"]


class Firefox(Engine):
    def _prepare(self) -> Sequence[str]:
        profile = self.folder / "profile"
        profile.mkdir(exist_ok=True)
        return [
            program("firefox-esr"),
            "--headless",
            "--no-remote",
            "--profile",
            str(profile),
            "--remote-debugging-port",
            str(self.port),
        ]

    @contextlib.asynccontextmanager
    async def tab(self) -> AsyncIterator[Tab]:
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"ws://127.0.0.1:{self.port}/session", max_msg_size=0) as websocket,
        ):
            connection = BiDi(websocket)
            await connection.command("session.new", capabilities={})
            user = (await connection.command("browser.createUserContext"))["userContext"]
            try:
                context = await connection.command("browsingContext.create", type="tab", userContext=user)
                yield BiDiTab(connection, context["context"])
            finally:
                await connection.command("browser.removeUserContext", userContext=user)
                await connection.command("session.end")


class BiDi:
    """https://www.w3.org/TR/webdriver-bidi/"""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self._websocket = websocket
        self._number = 0

    async def command(self, method: str, **params: Any) -> Any:
        self._number += 1
        await self._websocket.send_json({"id": self._number, "method": method, "params": params})
        # No event is subscribed to. The first session waits until Firefox has started as a whole.
        answer = await self._websocket.receive_json(timeout=3 * PATIENCE)
        assert answer["type"] == "success", answer
        return answer["result"]


class BiDiTab(Tab):
    def __init__(self, connection: BiDi, context: str) -> None:
        self._connection = connection
        self._context = context
        self._other = ""

    async def goto(self, url: str) -> None:
        await self._connection.command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def evaluate(self, expression: str) -> Any:
        as_json = f"(async () => JSON.stringify(await ({expression})) ?? 'null')()"
        target = {"context": self._context}
        answer = await self._connection.command("script.evaluate", expression=as_json, target=target, awaitPromise=True)
        assert answer["type"] == "success", answer
        return json.loads(answer["result"]["value"])

    async def act(self, actions: list[Json]) -> None:
        await self._connection.command("input.performActions", context=self._context, actions=actions)

    async def hide(self) -> None:
        self._other = (await self._connection.command("browsingContext.create", type="tab"))["context"]

    async def show(self) -> None:
        await self._connection.command("browsingContext.close", context=self._other)
        await self._connection.command("browsingContext.activate", context=self._context)

    async def printed(self) -> bytes | None:
        return base64.b64decode(
            (await self._connection.command("browsingContext.print", context=self._context))["data"]
        )


ENGINES: dict[str, Callable[[], Engine]] = {"chromium": Chromium, "firefox": Firefox, "webkit": WebKit}


pytestmark = pytest.mark.long

ENTER = "\ue007"
WATCH = """void (window.faults = [], ["error", "unhandledrejection", "securitypolicyviolation"].forEach((kind) =>
    addEventListener(kind, (e) => faults.push([kind, String(e.message ?? e.reason ?? e.violatedDirective)]))))"""
NAME = "unified-live-failover-pgtest2-1758553933"
ELEMENT = f'<correlator-progress job="{NAME}" {{}}></correlator-progress>'


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with ENGINES[request.param]() as engine:
        yield engine


@pytest.fixture
async def tab(engine: Engine) -> AsyncIterator[Tab]:
    async with engine.tab() as tab:
        yield tab


@contextlib.asynccontextmanager
async def opened(tab: Tab, url: str) -> AsyncIterator[None]:
    """A page that has had no error, and no violation of its policy, when the block ends."""
    await tab.goto(url)
    await tab.evaluate(WATCH)
    yield
    assert await tab.evaluate("faults") == []


async def shows(tab: Tab, *texts: str, where: str = "body") -> None:
    """Wait until all of them are there, in this order."""
    place = f"document.querySelector({json.dumps(where)})"

    async def are_there() -> bool:
        shown = await tab.evaluate(f"{place} && ({place}.shadowRoot ?? {place}).textContent")
        assert shown is not None
        places = [shown.find(text) for text in texts]
        assert -1 not in places, (texts, shown)
        assert places == sorted(places), (texts, shown)
        return True

    await eventually(are_there)


async def click(tab: Tab, selector: str) -> None:
    await tab.evaluate(f"void document.querySelector({json.dumps(selector)}).click()")


def line(event_id: int) -> dict[str, Any]:
    about = {"level": "INFO", "step_id": None, "attrs": None, "at": stamp(20_001.0 - event_id)}
    return {"event_id": event_id, "message": f"line {event_id}."} | about


async def test_the_list_is_in_order_live_and_used_by_keys(fake: PageServer, tab: Tab):
    await fake.put(document("old", ago=500), document("new", ago=50), document("failed", "failed", ago=80))
    async with opened(tab, fake.url):
        await shows(tab, "vm-failed", "vm-new", "vm-old", where=".rows")
        await fake.put(document("old", "failed", ago=500, error="no space left"))
        await shows(tab, "no space left", "vm-new", where=".rows")
        await tab.type("/vm-")
        await eventually(lambda: tab.evaluate("document.querySelectorAll('#names option').length === 3"))
        await tab.type(ENTER)  # which WebKit takes for the names that it offers
        await eventually(lambda: tab.evaluate("document.activeElement.dataset.job === 'failed'"))
        await tab.type(f"j{ENTER}")
        await shows(tab, "vm-old", where="h1")
        await tab.evaluate("history.back()")
        await eventually(lambda: tab.evaluate("document.querySelector('#search').value === 'vm-'"))


async def test_a_job_is_shown_from_before_it_exists_to_its_end_with_a_long_log(fake: PageServer, tab: Tab):
    fake.events["a"] = [line(n) for n in range(1, 20_001)]
    running = [step(1, "validation"), step(2, "final-sync", "running")]
    async with opened(tab, f"{fake.url}/#/jobs/{NAME}"):
        await shows(tab, "Waiting for this ID")
        await fake.put(document("a", external_ids=[NAME], steps=running))
        await shows(tab, "validation", "final-sync", where=".steps")
        await shows(tab, "line 20000.", where=".log-pane")
        # What is in sight stays there while earlier lines come: WebKit has no scroll anchoring.
        await tab.evaluate("void (window.pane = document.querySelector('.log-pane'), pane.scrollTop = 700)")
        await eventually(lambda: tab.evaluate("pane.scrollTop > 3000"))
        await tab.type("l\ue011")  # Home
        await shows(tab, "line 1.", "line 2.", where=".log-pane")
        await tab.type("\ue010")  # End
        await shows(tab, "line 19999.", "line 20000.", where=".log-pane")
        assert await tab.evaluate("pane.querySelectorAll('*').length") < 1000
        failed = [step(1, "validation"), step(2, "final-sync", "failed", error="no space left")]
        await fake.put(document("a", "failed", external_ids=[NAME], steps=failed, error="final sync failed"))
        await shows(tab, "final sync failed", "no space left", where="main")
        assert await tab.evaluate("document.title") == "Failed – vm-a – correlator"


async def test_a_token_is_asked_for_and_kept_for_the_tab(tab: Tab):
    async with serving(token="open sesame") as fake:
        await fake.put(document("a"))
        async with opened(tab, fake.url):
            await shows(tab, "A token is needed")
            await tab.evaluate("void document.querySelector('form.token input').focus()")
            await tab.type(f"wrong{ENTER}")
            await shows(tab, "The daemon answered")
            await tab.evaluate("void document.querySelector('form.token input').focus()")
            await tab.type(f"open sesame{ENTER}")
            await shows(tab, "vm-a", where=".rows")
        async with opened(tab, f"{fake.url}/?again"):
            await shows(tab, "vm-a", where=".rows")
            assert await tab.evaluate("localStorage.length") == 0


async def test_an_outage_ends_without_a_reload(fake: PageServer, tab: Tab):
    await fake.put(document("a"))
    async with opened(tab, f"{fake.url}/#/jobs/a"):
        await shows(tab, "Live", where=".connection-state")
        await fake.stop()
        await shows(tab, "Offline", where=".connection-state")
        await shows(tab, "Not connected", where=".banner")
        await fake.start()
        await fake.put(document("a", "failed", error="during the outage"))
        await shows(tab, "during the outage", where=".failure")
        await shows(tab, "Live", where=".connection-state")


async def test_a_hidden_tab_disconnects_and_is_up_to_date_when_it_is_seen_again(fake: PageServer, tab: Tab):
    sooner = "<script>{ const real = setTimeout; setTimeout = (f, ms) => real(f, ms / 30); }</script>"
    fake.html = f'{sooner}<script type="module" src="/progress.js"></script>{ELEMENT.format("")}'
    await fake.put(document("a", external_ids=[NAME]))
    async with opened(tab, f"{fake.url}/test.html"):
        await shows(tab, "Running", where="correlator-progress")
        await tab.hide()
        await eventually(lambda: fake.connections == 0)
        await fake.put(document("a", "completed", external_ids=[NAME]))
        await tab.show()
        await shows(tab, "Completed", where="correlator-progress")


async def test_all_rows_are_on_paper_with_the_time_and_the_address(fake: PageServer, tab: Tab, tmp_path: Path):
    await fake.put(*(document(f"j{n}", "completed", ago=60 + n) for n in range(300)))
    async with opened(tab, fake.url):
        await shows(tab, "vm-j0", where=".rows")
        assert await tab.evaluate("document.querySelectorAll('.row').length") < 60
        paper = await tab.printed()
        if paper is None:
            assert await tab.evaluate("document.querySelectorAll('.row').length") == 300
        else:
            (tmp_path / "paper.pdf").write_bytes(paper)
            text = await asyncio.to_thread(run_program, "pdftotext", str(tmp_path / "paper.pdf"), "-")
            assert all(f"vm-j{n}\n" in text for n in range(300))
            assert f"· {fake.url}/" in text
            assert "Search" not in text


async def test_an_element_of_another_origin_follows_a_job_with_a_token(
    fake: PageServer, tab: Tab, appliance: Appliance, database: Database, tmp_path: Path
):
    tokens = tmp_path / "tokens"
    tokens.write_text("secret-of-the-element\n")
    access = {"http__allowed_origins": fake.url, "http__tokens_file": tokens}
    daemon = Daemon(tmp_path, database__url=database.url, **access)
    try:
        await daemon.start()
        script = f'<script type="module" src="{daemon.url}/progress.js"></script>'
        fake.html = script + ELEMENT.format(f'server="{daemon.url}" token="secret-of-the-element"')
        async with opened(tab, f"{fake.url}/test.html"):
            await shows(tab, "Waiting for the job", where="correlator-progress")
            job_id = await appliance.job(NAME)
            await appliance.step(job_id, 1, "final-sync")
            await shows(tab, "Running", "final-sync", where="correlator-progress")
            await appliance.end(job_id, "failed", "no space left")
            await shows(tab, "Failed", "no space left", where="correlator-progress")
    finally:
        await daemon.close()
