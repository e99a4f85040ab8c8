"""The program behind nginx and behind Caddy, with the configurations of deploy/: one origin for everything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from yarl import URL

from tests.support.appliance import Appliance, connected
from tests.support.client_fold import ClientFold
from tests.support.cluster import connected as connected_to
from tests.support.daemon import HELLO, Daemon, Socket
from tests.support.eventually import eventually
from tests.support.gateways import gateway_process
from tests.support.mariadb import Database, MariaDB
from tests.support.names import Loopback
from tests.support.nats import Nats
from tests.support.proxies import Caddy, DividingNginx, Nginx, Proxy
from tests.support.servers import free_port
from tests.support.stream_clients import CheckedEventStream
from tests.support.stream_writer import StreamWriter, job

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROXIES = {"nginx": Nginx, "caddy": Caddy}

AS_THE_FILES_SAY = {"http__allowed_hosts": "gui.example", "http__trusted_proxies": "127.0.0.1"}
"""The settings of the daemon that the configuration of each proxy asks for."""

ODD = ("SVR 2019/Prod-1", "a//b", "50%", "a%2Fb", "ä/ü", "plus+and;semi=colon", "q?x=1#y", "/at/both/ends/", "a/../b")
"""IDs that proxies are known to normalise."""

RAW = ("SVR 2019/Prod-1", "a//b", "ä/ü")
"""Those of them that may also be sent with their slashes as they are."""


class Site:
    """What a browser sees: the proxy, by its name."""

    def __init__(self, proxy: Proxy, daemon: Daemon, database: Database) -> None:
        self.origin = proxy.origin
        self._polled = proxy.polled
        self.daemon = daemon
        self.database = database
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False, resolver=Loopback()))

    def url(self, path: str) -> URL:
        return URL(self.origin + path, encoded=True)

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.url(path)) as response:
            return response.status, await response.text()

    async def polled(self, path: str) -> tuple[int, str]:
        """What the old GUI's server gets where it asks the appliance."""
        url = URL(f"http://127.0.0.1:{self._polled}{path}", encoded=True)
        async with self.session.get(url, headers={"Host": f"localhost:{self._polled}"}) as response:
            return response.status, await response.text()

    async def job(self, name: str, *, safe: str = "") -> Any:
        status, body = await self.get(f"/correlator/api/v1/jobs/{quote(name, safe=safe)}")
        return json.loads(body)["job_id"] if status == 200 else (status, body)


async def upstream(name: str) -> tuple[web.AppRunner, int]:
    """A server that answers everything with its name and the path that it was asked for."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=f"{name} {request.raw_path}")

    return await serving(answer)


async def serving(answer: Callable[[web.Request], Awaitable[web.Response]]) -> tuple[web.AppRunner, int]:
    """A server that gives this answer to everything."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner, port


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PROXIES.values(), ids=PROXIES)
async def site(request: pytest.FixtureRequest, mariadb: MariaDB, tmp_path_factory) -> AsyncIterator[Site]:
    database = await mariadb.create_schema(f"behind_{request.param.__name__}")
    folder = tmp_path_factory.mktemp("daemon")
    daemon = Daemon(folder, database__url=database.url, **AS_THE_FILES_SAY)
    upstreams = [await upstream(name) for name in ("appliance", "gui")]
    proxy = request.param(daemon.port, *(port for _, port in upstreams))
    site = Site(proxy, daemon, database)
    try:
        await asyncio.gather(daemon.start(), asyncio.to_thread(proxy.start))
        # Caddy listens before it has its certificate.
        await eventually(lambda: site.get("/"))
        yield site
    finally:
        await site.session.close()
        await daemon.close()
        await asyncio.to_thread(proxy.close)
        for runner, _ in upstreams:
            await runner.cleanup()
        await database.drop()


@pytest_asyncio.fixture(loop_scope="module")
async def appliance(site: Site) -> AsyncIterator[Appliance]:
    async with connected(site.database) as connection:
        yield Appliance(connection)


async def test_every_id_arrives_as_it_was_sent(site: Site, appliance: Appliance):
    jobs = {name: await appliance.job(name) for name in ODD}
    await site.daemon.get(f"/api/v1/jobs/{jobs[ODD[-1]]}?wait=5")
    assert {name: await site.job(name) for name in ODD} == jobs
    assert {name: await site.job(name, safe="/") for name in RAW} == {name: jobs[name] for name in RAW}


async def test_the_old_gui_gets_the_status_from_the_daemon_and_all_else_from_the_appliance(
    site: Site, appliance: Appliance
):
    for name in ("old-1", "SVR 2019/Prod-2", "51%"):
        job_id = await appliance.job(name)
        assert (await site.daemon.get(f"/api/v1/jobs/{job_id}?wait=5"))[0] == 200
        status, body = await site.polled(f"/api/v1/failover/{quote(name, safe='')}/status")
        assert (status, json.loads(body)["success"]) == (200, True), body
    for path in ("/", "/api/v1/failover/unified", "/api/v1/failover/gui-1/statuses", "/api/v1/vm/contexts?x=%2F"):
        assert await site.polled(path) == (200, f"appliance {path}")
    for path in ("/", "/correlators", "/api-docs", "/api/failover/gui-1"):
        assert await site.get(path) == (200, f"gui {path}")


@pytest.mark.parametrize("kind", PROXIES.values(), ids=PROXIES)
async def test_a_proxy_passes_the_address_of_its_client_on_behind_what_the_client_wrote(kind: type[Proxy]):
    """And the token of the daemon in place of the old GUI's. The daemon is one that says what it was shown."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({name: ",".join(request.headers.getall(name, ())) for name in shown})

    shown = ("Authorization", "X-Forwarded-For")
    runner, port = await serving(answer)
    proxy = kind(port, port, port, token="of/the+daemon==")
    headers = {"Authorization": "Bearer of-the-gui", "X-Forwarded-For": "198.51.100.1"}
    connector = aiohttp.TCPConnector(ssl=False, resolver=Loopback())
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        try:
            await asyncio.to_thread(proxy.start)

            async def passed(url: str, **more: str) -> list[str]:
                async with session.get(URL(url), headers=more) as response:
                    found = await response.json()
                return [found[name] for name in shown]

            async def polled(path: str) -> str:
                return (await passed(f"http://127.0.0.1:{proxy.polled}{path}", Host=f"localhost:{proxy.polled}"))[0]

            _, address = await eventually(lambda: passed(f"{proxy.origin}/correlator/health/live"))
            assert address.rpartition(",")[2].strip() == "127.0.0.1"
            assert await polled("/api/v1/failover/gui-1/status") == "Bearer of/the+daemon=="
            assert await polled("/api/v1/vm/contexts") == "Bearer of-the-gui"
        finally:
            await asyncio.to_thread(proxy.close)
            await runner.cleanup()


async def test_a_client_of_the_front_sees_one_fleet_that_two_gateways_divide(nats: Nats, tmp_path: Path):
    """One serves dc1 and dc2, one all: the path chooses, whatever is asked."""
    names = ("dc1", "dc2", "dc3")
    environ = {f"CORRELATOR_{key.upper()}": value for key, value in AS_THE_FILES_SAY.items()}
    async with contextlib.AsyncExitStack() as stack:
        connection = await stack.enter_async_context(connected_to(nats.url))
        writers = {name: StreamWriter(connection, name) for name in names}
        for name, writer in writers.items():
            await writer.begin()
            await writer.put(job(f"of/{name}"))
            await writer.alive()
        some, every = [
            await stack.enter_async_context(gateway_process(tmp_path / folder, nats.url, **environ | more))
            for folder, more in (("some", {"CORRELATOR_CLUSTER__INSTANCES": "dc1,dc2"}), ("all", {}))
        ]
        proxy = stack.enter_context(DividingNginx(some.port, every.port))
        connector = aiohttp.TCPConnector(ssl=False, resolver=Loopback())
        session = await stack.enter_async_context(aiohttp.ClientSession(f"{proxy.origin}", connector=connector))

        async def get(path: str) -> Any:
            async with session.get(URL(f"/correlator{path}", encoded=True)) as response:
                assert response.status == 200, (path, await response.text())
                return await response.json()

        async def client(base: str, *shown: str) -> Socket:
            """A client that has a snapshot of these appliances' jobs."""
            path = f"/correlator{base}/ws"
            socket = Socket(await stack.enter_async_context(session.ws_connect(path, origin=proxy.origin)))
            await socket.say(HELLO)
            socket.welcome = await socket.until("welcome")
            assert sorted((await socket.snapshot())[0]) == [f"of/{name}" for name in shown]
            return socket

        assert [one["instance"] for one in (await get("/api/v1/instances"))["instances"]] == list(names)
        assert len((await get("/api/v1/jobs"))["jobs"]) == len(names)
        fleet = await client("", *names)
        epochs = {"": fleet.welcome["epoch"]}
        for name, writer in writers.items():
            base = f"/i/{name}"
            document = await get(f"{base}/api/v1/jobs/of%2F{name}")
            assert document["instance"] == name
            assert await get(f"/api/v1/jobs/of%2F{name}") == document
            own = await client(base, name)
            epochs[name] = own.welcome["epoch"]
            await writer.put(job(f"new-{name}"))
            for reader in (fleet, own):
                assert (await reader.shown())["job_id"] == f"new-{name}"
            async with session.get(f"/correlator{base}/") as page:
                assert (page.status, page.content_type) == (200, "text/html"), base
        # An epoch is that of one gateway's part: dc1 and dc2 come from one, everything else from the other.
        assert epochs["dc1"] == epochs["dc2"] != epochs["dc3"] == epochs[""]


async def test_the_page_and_its_client_are_found_under_the_prefix(site: Site):
    status, page = await site.get("/correlator/")
    assert status == 200
    for name in re.findall(r'(?:src|href)="([^"#]+)"', page):
        assert not name.startswith("/"), name
        assert (await site.get(f"/correlator/{name}"))[0] == 200, name
    for name in ("client.js", "progress.js", "react.js"):
        assert (await site.get(f"/correlator/{name}"))[0] == 200, name


@pytest.mark.parametrize("site", [Nginx], ids=["nginx"], indirect=True)
async def test_nginx_compresses_replies_and_no_event_stream(site: Site):
    replies = {"client.js": "gzip", "api/v1/openapi.json": "gzip", "api/v1/stream?id=x": None}
    for path, coding in replies.items():
        async with site.session.get(site.url(f"/correlator/{path}"), headers={"Origin": site.origin}) as response:
            assert (response.status, response.headers.get("Content-Encoding")) == (200, coding), path


async def test_a_websocket_of_the_same_origin_is_admitted_and_another_gets_the_reason(site: Site, appliance: Appliance):
    async with site.session.ws_connect(site.url("/correlator/ws"), origin=site.origin) as ws:
        reader = Socket(ws)
        await reader.say(HELLO)
        await reader.until("welcome")
        await reader.snapshot(jobs=["ws-1"])
        job_id = await appliance.job("ws-1")
        assert (await reader.shown())["job_id"] == job_id
    async with site.session.ws_connect(site.url("/correlator/ws"), origin="https://elsewhere.example") as ws:
        with pytest.raises(EOFError, match="4403"):
            await Socket(ws).until("welcome")


async def test_an_event_stream_comes_event_by_event(site: Site, appliance: Appliance):
    async with site.session.get(site.url("/correlator/api/v1/stream?id=sse-1"), headers={"Origin": site.origin}) as got:
        stream = CheckedEventStream(got, ClientFold())
        assert (await stream.next())[1]["type"] == "welcome"
        await stream.until("synced")

        async def comes_before_a_bookmark() -> bool:
            await appliance.job("sse-1")
            return "bookmark" not in [body["type"] for _, body in await stream.until("put")]

        # A proxy that keeps what it should pass on waits for more, each time: that is the bookmark after 10 s.
        await eventually(comes_before_a_bookmark)


@pytest.mark.long
async def test_a_request_may_wait_for_a_minute(site: Site):
    status, body = await site.get("/correlator/api/v1/jobs/nobody?wait=60")
    assert (status, json.loads(body)["title"]) == (404, "Not Found")


async def test_clients_behind_a_proxy_get_the_bye_of_a_stop(site: Site):  # the last one of each proxy
    async with site.session.ws_connect(site.url("/correlator/ws"), origin=site.origin) as ws:
        reader = Socket(ws)
        await reader.say(HELLO)
        await reader.until("welcome")
        stopping = asyncio.create_task(site.daemon.stop())
        assert (await reader.until("bye"))["code"] == 1012
        with pytest.raises(EOFError, match="1012"):
            await reader.next()
        assert await stopping == 0
