"""deploy/caddy/oidc.Caddyfile with a real Caddy and daemon; a stand-in answers as oauth2-proxy does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from tests.support.appliance import Appliance
from tests.support.client_fold import ClientFold
from tests.support.daemon import HELLO, Daemon, Socket
from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import Database
from tests.support.names import Loopback
from tests.support.proxies import SignOn
from tests.support.stream_clients import CheckedEventStream

TOKEN = "the-token-that-only-caddy-has"
COOKIE = "_oauth2_proxy"
PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


class Sessions:
    """What oauth2-proxy serves with --reverse-proxy: 202 or 401 from /oauth2/auth, sign-in and sign-out by redirects.

    The provider, to which it would redirect, lets everybody in at once.
    """

    def __init__(self) -> None:
        self.valid: set[str] = set()
        self.port = 0

    async def auth(self, request: web.Request) -> web.Response:
        if request.cookies.get(COOKIE) not in self.valid:
            return web.Response(status=401, text="Unauthorized")
        return web.Response(
            status=202, headers={"X-Auth-Request-User": "ada", "X-Auth-Request-Email": "ada@example.com"}
        )

    async def start(self, request: web.Request) -> web.Response:
        query = urlencode({"code": "of-the-provider", "state": request.query.get("rd", "/")})
        return web.Response(status=302, headers={"Location": f"/oauth2/callback?{query}"})

    async def callback(self, request: web.Request) -> web.Response:
        name = f"session-{len(self.valid)}"
        self.valid.add(name)
        found = web.Response(status=302, headers={"Location": request.query["state"]})
        found.set_cookie(COOKIE, name, secure=True, httponly=True, samesite="Lax", path="/")
        return found

    async def sign_out(self, request: web.Request) -> web.Response:
        self.valid.discard(request.cookies.get(COOKIE, ""))
        found = web.Response(status=302, headers={"Location": "/"})
        found.del_cookie(COOKIE)
        return found

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Sessions]:
        app = web.Application()
        for name in ("auth", "start", "callback", "sign_out"):
            app.router.add_get(f"/oauth2/{name}", getattr(self, name))
        async with listening(app) as self.port:
            yield self


@contextlib.asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[int]:
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class Browser:
    """A user agent with a cookie jar, in front of the proxy."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        connector = aiohttp.TCPConnector(ssl=False, resolver=Loopback())
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        self.session = aiohttp.ClientSession(connector=connector, timeout=timeout)

    def url(self, path: str) -> URL:
        return URL(self.origin + path, encoded=True)

    async def get(
        self, path: str, headers: Mapping[str, str] | None = None, *, follow: bool = False
    ) -> tuple[int, str]:
        """Status, and where it leads or what it says."""
        async with self.session.get(self.url(path), headers=headers, allow_redirects=follow) as response:
            return response.status, response.headers.get("Location") or await response.text()


@contextlib.asynccontextmanager
async def signed_on(port: int, sessions: Sessions) -> AsyncIterator[Browser]:
    proxy = SignOn(port, sessions.port, TOKEN)
    browser = Browser(proxy.origin)
    try:
        await asyncio.to_thread(proxy.start)
        await eventually(lambda: browser.get("/health/live"))  # Caddy listens before it has its certificate
        yield browser
    finally:
        await browser.session.close()
        await asyncio.to_thread(proxy.close)


@pytest.fixture
async def sessions() -> AsyncIterator[Sessions]:
    async with Sessions().listening() as made:
        yield made


@pytest.fixture
async def browser(sessions: Sessions, database: Database, tmp_path: Path) -> AsyncIterator[Browser]:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    settings = {"http__allowed_hosts": "correlator.example", "http__trusted_proxies": "127.0.0.1"}
    daemon = Daemon(tmp_path, database__url=database.url, http__tokens_file=tokens, **settings)
    async with daemon, signed_on(daemon.port, sessions) as browser:
        yield browser


async def test_a_page_leads_to_the_sign_in_and_back_and_a_script_is_told(browser: Browser):
    assert await browser.get("/", PAGE) == (302, "/oauth2/start?rd=/")
    for path in ("/api/v1/jobs", "/api/v1/stream?id=x", "/metrics", "/client.js"):
        status, said = await browser.get(path)
        assert (status, "load the page again to sign in" in said) == (401, True), path
    status, said = await browser.get("/", PAGE, follow=True)
    assert (status, "<html" in said) == (200, True)
    assert (await browser.get("/api/v1/jobs"))[0] == 200


async def test_a_websocket_and_an_event_stream_pass_with_a_session_only(browser: Browser, appliance: Appliance):
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        await browser.session.ws_connect(browser.url("/ws"), origin=browser.origin)
    await browser.get("/", PAGE, follow=True)
    async with browser.session.ws_connect(browser.url("/ws"), origin=browser.origin) as ws:
        reader = Socket(ws)
        await reader.say(HELLO)
        await reader.until("welcome")
        await reader.snapshot(jobs=["ws-1"])
        job_id = await appliance.job("ws-1")
        assert (await reader.shown())["job_id"] == job_id
    async with browser.session.get(browser.url("/api/v1/stream?id=sse-1"), headers={"Origin": browser.origin}) as got:
        stream = CheckedEventStream(got, ClientFold())
        assert (await stream.next())[1]["type"] == "welcome"
        await stream.until("synced")

        async def comes_before_a_bookmark() -> bool:
            await appliance.job("sse-1")
            return "bookmark" not in [body["type"] for _, body in await stream.until("put")]

        await eventually(comes_before_a_bookmark)
    async with browser.session.ws_connect(browser.url("/ws"), origin="https://elsewhere.example") as ws:
        with pytest.raises(EOFError, match="4403"):
            await Socket(ws).until("welcome")


async def test_after_the_end_of_a_session_an_open_stream_goes_on_and_nothing_new_begins(
    browser: Browser, sessions: Sessions, appliance: Appliance
):
    await browser.get("/", PAGE, follow=True)
    async with browser.session.ws_connect(browser.url("/ws"), origin=browser.origin) as ws:
        reader = Socket(ws)
        await reader.say(HELLO)
        await reader.until("welcome")
        sessions.valid.clear()  # it has expired
        assert (await browser.get("/api/v1/jobs"))[0] == 401
        await reader.snapshot(jobs=["later"])
        job_id = await appliance.job("later")
        assert (await reader.shown())["job_id"] == job_id
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        await browser.session.ws_connect(browser.url("/ws"), origin=browser.origin)
    assert await browser.get("/", PAGE) == (302, "/oauth2/start?rd=/")


async def test_signed_out_a_page_leads_to_the_sign_in_again(browser: Browser):
    await browser.get("/", PAGE, follow=True)
    assert (await browser.get("/api/v1/jobs"))[0] == 200
    assert (await browser.get("/oauth2/sign_out"))[0] == 302
    assert (await browser.get("/api/v1/jobs"))[0] == 401


async def test_the_daemon_gets_the_token_of_the_proxy_and_nothing_of_the_session(sessions: Sessions):
    """Whatever a client sends in its place. The daemon is one that says what it was shown."""
    shown = ("Authorization", "Cookie", "X-Forwarded-For")

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({name: request.headers.get(name, "") for name in shown})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with listening(app) as port, signed_on(port, sessions) as browser:
        forged = {
            "Authorization": "Bearer of-the-client",
            "X-Auth-Request-User": "root",
            "X-Forwarded-For": "198.51.100.1",
        }
        assert (await browser.get("/api/v1/jobs", forged))[0] == 401, "no header of a client is a session"
        await browser.get("/", PAGE, follow=True)
        async with browser.session.get(browser.url("/api/v1/jobs"), headers=forged) as response:
            found = await response.json()
    assert (found["Authorization"], found["Cookie"]) == (f"Bearer {TOKEN}", "")
    assert found["X-Forwarded-For"].rpartition(",")[2].strip() == "127.0.0.1"
