"""How the page and its files are sent: compressed, kept or revalidated, without a token."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator

import aiohttp
import pytest

from correlator.jobs.index import Index
from correlator.pipeline.pipeline import LocalHub
from correlator.web import files
from tests.support.http_listener import served

SCRIPT = next(path for path in files() if path.startswith("/page-"))
VIEWS = next(path for path in files() if path.startswith("/views-"))
OTHER = f"/page-{'0' * 20}.js"
YEAR = "public, max-age=31536000, immutable"


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    hub = LocalHub(Index())
    async with (
        served(hub, tokens=("secret",), origins=("http://gui",)) as url,
        aiohttp.ClientSession(url, auto_decompress=False, skip_auto_headers=["Accept-Encoding"]) as session,
    ):
        yield session


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip, deflate, br", "gzip"),
        ("br;q=1.0, gzip;q=0.001", "gzip"),
        ("gzip;q=0, br", None),
        ("br, gzip ; q=0.000", None),
        ("identity", None),
        (None, None),
    ],
)
async def test_a_file_is_compressed_if_the_client_accepts_it_and_each_form_has_its_etag(client, accepted, coding):
    headers = {} if accepted is None else {"Accept-Encoding": accepted}
    async with client.get("/client.js", headers=headers) as response:
        body = await response.read()
        assert response.headers.get("Content-Encoding") == coding
        assert (gzip.decompress(body) if coding else body) == files()["/client.js"].body
        assert response.headers.getall("Vary") == ["Accept-Encoding"]
        etag = response.headers["ETag"]
    async with client.get("/client.js", headers=headers | {"If-None-Match": f'"x", W/{etag}'}) as response:
        assert (response.status, await response.read(), response.headers["ETag"]) == (304, b"", etag)
    other = {"Accept-Encoding": "gzip"} if coding is None else {}
    async with client.get("/client.js", headers=other | {"If-None-Match": etag}) as response:
        assert response.status == 200


async def test_a_file_is_kept_for_a_year_only_at_the_address_with_its_hash(client):
    for path in ("/", "/client.js", "/favicon.svg", SCRIPT, VIEWS, OTHER):
        async with client.get(path) as response:
            kept = YEAR if path in (SCRIPT, VIEWS) else "no-cache"
            assert (response.status, response.headers["Cache-Control"]) == (200, kept)
            assert "script-src 'self';" in response.headers["Content-Security-Policy"]
            if path == OTHER:
                assert await response.read() == files()[SCRIPT].body, "of another version: the script of this one"


async def test_an_open_page_of_another_version_gets_no_views_of_this_one(client):
    async with client.get(f"/views-{'0' * 20}.js", headers={"Authorization": "Bearer secret"}) as response:
        assert response.status == 404
