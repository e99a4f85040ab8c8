"""Find the job that a user names: by any ID that the daemon knows, or by the short form that `jobs` prints."""

from __future__ import annotations

import re

from correlator.client.client import Client
from correlator.client.messages import Document
from correlator.errors import BadRequest
from correlator.terminal import formats
from correlator.terminal.screen import Theme

SHORT = 8
"""Characters in the short form of a UUID, and the least that any short form has."""

END = 10
"""Characters in the short form of any other ID: its end, which often is the start time in seconds."""

CANDIDATES = 50
"""Jobs that a search for a short form returns at most."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_BEGINNING = re.compile(r"[0-9a-f-]{8,35}", re.IGNORECASE)
_ELLIPSES = ("…", "...")


def short(job_id: str, theme: Theme) -> str:
    """Shorten a UUID to its beginning and another long ID to its end; `find` accepts both."""
    if _UUID.fullmatch(job_id):
        return job_id[:SHORT]
    return job_id if len(job_id) <= 2 * END else theme.ellipsis + job_id[-END:]


async def find(client: Client, name: str) -> Document | None:
    """Find a job by an ID or by a short form, with its steps; None if there is none.

    Raises:
        BadRequest: several jobs have this short form.
    """
    part = _part(name)
    if part is None:
        return await client.job(name)
    listed = await client.jobs({"q": part, "steps": "1"}, CANDIDATES)
    if any(name in formats.names(job) for job in listed.found):
        return await client.job(name)
    meant = [job for job in listed.found if _has_short_form(part, job)]
    if len(meant) > 1 or (listed.more and not meant):
        some = ", ".join(str(job["job_id"]) for job in meant[:3])
        raise BadRequest(f"{name!r} is short for several jobs{f' ({some}, …)' if some else ''}: give more of the ID")
    return meant[0] if meant else await client.job(name)


async def full(client: Client, name: str) -> str:
    """Resolve `name` to an ID to subscribe to: `name` itself unless it is the short form of a job."""
    job = await find(client, name) if _part(name) is not None else None
    return name if job is None or name in formats.names(job) else str(job["job_id"])


def _part(name: str) -> str | None:
    """The part of the ID that a short form contains; None if `name` is no short form."""
    for ellipsis in _ELLIPSES:
        if name.startswith(ellipsis) and len(name) - len(ellipsis) >= SHORT:
            return name.removeprefix(ellipsis)
    return name if _BEGINNING.fullmatch(name) else None


def _has_short_form(part: str, job: Document) -> bool:
    by_beginning = str(job["job_id"]).lower().startswith(part.lower())
    return by_beginning or any(name.endswith(part) for name in formats.names(job) if not _UUID.fullmatch(name))
