"""The three engines that browsers are made of, each by the protocol that its Debian package speaks.

Firefox itself speaks WebDriver BiDi, over a websocket; Chromium and WebKitGTK have a driver that speaks WebDriver, over
HTTP. A `Tab` is what the tests need of them. An engine's processes are killed as a group at its end.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import aiohttp

from tests.support.eventually import PATIENCE
from tests.support.servers import Server, program

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
