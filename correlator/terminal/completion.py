"""The completion of IDs and names by a shell: what the daemon knows of the last days, if it answers at once.

It loads neither aiohttp nor rich, which would take longer than the answer. Whatever goes wrong, nothing is offered: an
error would be printed into the line that somebody writes. Names come from the database, so only those that a shell
takes as they are, without quotes, are offered.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPSConnection
from urllib.parse import urlencode, urlsplit

import msgspec
from click.shell_completion import CompletionItem

from correlator.client.messages import Document
from correlator.doctor.service import DaemonAddress
from correlator.terminal import formats

WITHIN = 0.2
"""Seconds that the daemon has to answer."""

PAST = timedelta(days=7)
"""The jobs that are offered began within this time: a search of all would take too long."""

JOBS = 50
"""Jobs that are asked for."""


def ids(job: Document) -> Iterable[str]:
    return formats.names(job)


def entities(job: Document) -> Iterable[str]:
    return (formats.vm_name(job), str(job.get("context_id") or ""))


def offered(
    daemon: Callable[[], DaemonAddress],
    part: str,
    names: Callable[[Document], Iterable[str]],
    *,
    within: float = WITHIN,
) -> list[CompletionItem]:
    """Return the `names` of jobs that begin with `part`, those of the newest jobs first."""
    found: list[CompletionItem] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # see the module
            found.extend(_items(_jobs(daemon(), part, within), part, names))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(within)
    return found[:]


def _jobs(daemon: DaemonAddress, part: str, within: float) -> list[Document]:
    url = urlsplit(daemon.url if "://" in daemon.url else f"http://{daemon.url}")
    kind = partial(HTTPSConnection, context=daemon.ssl) if url.scheme == "https" else HTTPConnection
    with contextlib.closing(kind(url.hostname or "", url.port, timeout=within)) as opened:
        query = {"q": part, "limit": JOBS, "since": (datetime.now(UTC) - PAST).isoformat()}
        headers = {"Authorization": f"Bearer {daemon.token}"} if daemon.token else {}
        opened.request("GET", f"{url.path.rstrip('/')}/api/v1/jobs?{urlencode(query)}", headers=headers)
        response = opened.getresponse()
        return msgspec.json.decode(response.read())["jobs"] if response.status == HTTPStatus.OK else []


def _items(jobs: Iterable[Document], part: str, names: Callable[[Document], Iterable[str]]) -> list[CompletionItem]:
    about: dict[str, str] = {}
    for job in jobs:
        words = (formats.vm_name(job), formats.operation(job), job.get("status"))
        for name in names(job):
            # One that begins with a dash would be an option, such as `--url` of another host, which gets the token.
            if name and name.startswith(part) and not name.startswith("-") and shlex.quote(name) == name:
                about.setdefault(name, " ".join(str(word) for word in words if word and str(word).isprintable()))
    return [CompletionItem(name, help=text) for name, text in about.items()]
