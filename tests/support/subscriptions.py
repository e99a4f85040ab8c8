"""What a streaming reader asks for, and what the tables say that it should have once all is quiet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import orjson

from tests.support.client_fold import Document
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.expected_jobs import ID_KEYS, differences, first_steps, owners
from tests.support.replay import Tables

LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")
FILTERS = ("status", "job_type", "context_id", "instance")


@dataclass(frozen=True)
class Wanted:
    """What one subscription asks for."""

    jobs: tuple[str, ...] | None = None
    status: tuple[str, ...] = ()
    job_type: tuple[str, ...] = ()
    context_id: tuple[str, ...] = ()
    instance: tuple[str, ...] = ()
    logs: str | None = None

    def message(self, sub: int, *, resume: bool | None = None) -> dict[str, Any]:
        """As a websocket client says it."""
        said: dict[str, Any] = {"type": "subscribe", "id": sub}
        said |= {k: list(v) for k in FILTERS if (v := getattr(self, k))}
        if self.jobs is not None:
            said["jobs"] = list(self.jobs)
        if self.logs is not None:
            said["logs"] = self.logs
        return said if resume is None else said | {"resume": resume}

    def query(self) -> list[tuple[str, str]]:
        """As the query of an event stream."""
        names = ("",) if self.jobs == () else self.jobs or ()
        asked = [("id", name) for name in names]
        asked += [(k, v) for k in FILTERS for v in getattr(self, k)]
        return [*asked, ("logs", self.logs)] if self.logs is not None else asked

    @property
    def steady(self) -> bool:
        """Whether what matches is the same all the time, as no job changes its type or its context."""
        return not self.status


ALL = Wanted()


class Truth:
    """What the four tables say, in the terms of the contract. `documents`: what REST shows, held equal to them."""

    def __init__(self, tables: Tables, documents: Mapping[str, Document]) -> None:
        self.tables = tables
        self.documents = documents
        self._owners = owners(tables)
        self._contexts: dict[str, str] = {}
        jobs, first_step = tables["job_tracking"].items(), first_steps(tables)
        for job_id, row in sorted(jobs, key=lambda job: (str(job[1]["started_at"]), first_step.get(str(job[0]), 0))):
            if row.get("context_id"):
                self._contexts[str(row["context_id"])] = str(job_id)

    def leads_to(self, name: str) -> str | None:
        """The job that any ID names."""
        if name in self.tables["job_tracking"]:
            return name
        found = self._owners.get(name) or self._contexts.get(name)
        return found or (name if name in self.documents else None)

    def matching(self, wanted: Wanted) -> dict[str, Document]:
        """The documents of a subscription once all is quiet."""
        named = None if wanted.jobs is None else {self.leads_to(name) for name in wanted.jobs}

        def matches(job_id: str, document: Document) -> bool:
            return (named is None or job_id in named) and all(
                not getattr(wanted, k) or document[k] in getattr(wanted, k)
                for k in ("status", "job_type", "context_id")
            )

        return {i: d for i, d in self.documents.items() if matches(i, d)}

    def lines(self) -> dict[int, str]:
        """event id → the job that the row belongs to: by its column, else its attrs, its step, its external ID."""
        found = {}
        steps = {int(i): str(s["job_id"]) for i, s in self.tables["job_steps"].items()}
        for event_id, row in self.tables["log_events"].items():
            parsed = orjson.loads(str(row["attrs"])) if row["attrs"] else None
            attrs = parsed if isinstance(parsed, dict) else {}
            named = [row.get("external_job_id"), *(attrs.get(key) for key in ID_KEYS)]
            external = [name for name in named if name]
            if job_id := row["job_id"] or attrs.get("job_id"):
                owner: str | None = str(job_id)
            elif step_id := row["step_id"] or attrs.get("step_id"):
                owner = steps.get(int(step_id))
            else:
                owner = self._owners.get(str(external[0])) if external else None
            if owner is not None and owner in self.tables["job_tracking"]:
                found[int(event_id)] = owner
        return found

    def rows_of_jobs(self) -> defaultdict[str, list[int]]:
        """job id → the ids of its rows, in order."""
        found = defaultdict[str, list[int]](list)
        for event_id, job_id in sorted(self.lines().items()):
            found[job_id].append(event_id)
        return found

    def lines_of(self, wanted: Wanted) -> set[int]:
        """The rows of a steady subscription's jobs from its level on."""
        assert wanted.steady
        assert wanted.logs is not None
        jobs = self.matching(wanted)
        levels = LEVELS[LEVELS.index(wanted.logs) :]
        rows = self.tables["log_events"]
        return {i for i, job_id in self.lines().items() if job_id in jobs and rows[i]["level"] in levels}


async def documents(daemon: Daemon) -> dict[str, Document]:
    """All jobs over REST, with their steps."""
    pages = daemon.pages("/api/v1/jobs", limit=50, steps=1)
    return {job["job_id"]: job async for page in pages for job in page["jobs"]}


async def lines_of(daemon: Daemon, name: str, **query: Any) -> list[Document]:
    """All log lines of a job over REST, page by page until there is nothing new; each is in the order of time."""
    found: list[Document] = []
    while True:
        status, page = await daemon.get(f"/api/v1/jobs/{quote(name, safe='')}/events?{urlencode(query)}")
        assert status == 200, page
        assert page.keys() == {"events", "next_after", "more", "complete", "reason"}, page
        assert page["complete"], page["reason"]
        times = [(line["at"], line["event_id"]) for line in page["events"]]
        assert times == sorted(times)
        found += page["events"]
        if page["next_after"] is None or not (page["events"] or page["more"]):
            return found
        query["after"] = page["next_after"]


async def settled(daemon: Daemon, tables: Tables, *, within: float = PATIENCE) -> Truth:
    """The truth, once the daemon shows it over REST."""

    async def equal() -> Truth:
        shown = await documents(daemon)
        found = differences(tables, shown)
        assert not found, found[:5]
        return Truth(tables, shown)

    return await eventually(equal, within=within, every=0.2)


def plain(value: Any) -> Any:
    """A document in which a missing member and `null` are the same."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if v is not None}
    return value


def same(held: Document, due: Document) -> bool:
    return bool(plain(held) == plain(due))
