"""The lines of one page: rows of a job that match a query, until the page is full."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from correlator.jobs import job_document, joblog
from correlator.jobs.model.facts import Entry
from correlator.jobs.model.rows import LogRow
from correlator.jobs.model.views import LogLine
from correlator.pipeline.queries import JobNames, LineQuery
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import IN_ONE, Session
from correlator.sources.search import searches

MAX_BYTES = 4 << 20
"""Most bytes of messages and attrs in one page; a single row may exceed it."""

PARSED_AT_ONCE = 256 * 1024
"""Bytes of attrs that are parsed before other tasks run."""


class Collector:
    """Collects at most `limit` lines. `full`: the page has no room, or its reader has nothing more to read."""

    def __init__(self, names: JobNames, limit: int, query: LineQuery, id_keys: Sequence[str]) -> None:
        self.names = names
        self.query = query
        self.full = False
        self._limit = limit
        self._keys = id_keys
        self._lines: list[LogLine] = []
        self._bytes = 0

    def in_order(self) -> list[LogLine]:
        """The lines in the order of time."""
        return sorted(self._lines, key=lambda line: (line.at, line.event_id))

    async def read(
        self, queries: Queries, session: Session, where: str, last: int, *, back: bool = False
    ) -> tuple[int, list[int]]:
        """Read rows that match `where` until the page is full: (id up to which all was read, the ids read).

        `last`: the last id of `where`. With `back` the highest ids are read first, and `last` is the lowest.
        """
        read_ids: list[int] = []
        further = ""
        order, beyond, one = ("DESC", "<", -1) if back else ("ASC", ">", 1)
        while True:
            most = min(self._limit - len(self._lines), IN_ONE)
            sizes = await searches.sizes_of(queries, session, self.names, self.query, where + further, most, order)
            fitting = self._fitting(sizes)
            rows = (
                {row.id: row for row in await queries.past_rows_in(session, fitting, self.names.started)}
                if fitting
                else {}
            )
            await self._append(rows[i] for i in fitting if i in rows)
            read_ids += fitting
            if len(fitting) < len(sizes):
                self.full = True
                return sizes[len(fitting)][0] - one, read_ids
            if len(self._lines) >= self._limit:
                self.full = True
                return fitting[-1], read_ids
            if len(sizes) < most:
                return last, read_ids
            further = f" AND id {beyond} {fitting[-1]}"

    def _fitting(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """The first ids whose rows fit into the page; at least one if the page is empty."""
        fitting: list[int] = []
        for event_id, size in sizes:
            if self._bytes + size > MAX_BYTES and (self._lines or fitting):
                break
            self._bytes += size
            fitting.append(event_id)
        return fitting

    async def _append(self, rows: Iterable[LogRow]) -> None:
        parsed = 0
        for row in rows:
            entry = joblog.read(row, 0, self._keys)[0]
            attrs = joblog.attrs_value(row.attrs)
            if _belongs(entry, self.names) and self._matches(entry, attrs):
                self._lines.append(LogLine(row.id, entry.level, row.message, entry.step_id, attrs, row.ts))
            parsed += len(row.attrs or "")
            if parsed > PARSED_AT_ONCE:
                parsed = 0
                await asyncio.sleep(0)

    def _matches(self, entry: Entry, attrs: Any) -> bool:
        """What the database's conditions leave to compare: the step that attrs name, the time, and the exact text."""
        query = self.query
        in_steps = not query.steps or entry.step_id in query.steps
        if not in_steps or (query.since is not None and entry.at < query.since):
            return False
        return not query.text or _contains(entry.message, query.text) or _attrs_contain(attrs, query.text)


def _contains(text: str, part: str) -> bool:
    return part.lower() in text.lower()


def _attrs_contain(attrs: Any, text: str) -> bool:
    """True if a name or a value in `attrs` contains `text`, as one part of their JSON."""
    if isinstance(attrs, str):  # They are no JSON.
        return _contains(attrs, text)
    return attrs is not None and _contains(
        job_document.encode(attrs).decode(), job_document.encode(text).decode()[1:-1]
    )


def _belongs(entry: Entry, names: JobNames) -> bool:
    """True if the row belongs to the job, as in `Index`: by job ID in any case, else by step, else by external ID."""
    if entry.job_id is not None:
        return entry.job_id.casefold() == names.job_id.casefold()
    if entry.step_id is not None:
        return entry.step_id in names.step_ids
    return bool(entry.external_ids) and entry.external_ids[0] in names.external_ids
