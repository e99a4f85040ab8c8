"""How the columns of one appliance are written in SQL, and how their times are read."""

from __future__ import annotations

from typing import Any

from correlator.jobs import joblog
from correlator.jobs.sizes import SHORT_ERROR, Sizes
from correlator.model.rows import Micros
from correlator.sources.db.session import TABLES, Dialect, Row, Schema
from correlator.sources.db.zones import Zone

_TIMES = frozenset({"ts", "started_at", "completed_at", "created_at", "updated_at", "canceled_at"})


class Columns:
    """The expressions for the schema of one appliance: NULL for a missing column, at most a limit of a long text."""

    def __init__(self, dialect: Dialect, schema: Schema, zone: Zone, limits: Sizes) -> None:
        self.dialect = dialect
        self.schema = schema
        self.zone = zone
        self.limits = limits
        self._select = {table: self._columns(table) for table in TABLES if schema.has(table)}
        self._local = {
            table: [i for i, column in enumerate(columns) if column in _TIMES and schema.is_local(table, column)]
            for table, columns in TABLES.items()
        }

    def _columns(self, table: str) -> str:
        return ", ".join(expression for _, expression in self._expressions(table))

    def _expressions(self, table: str) -> list[tuple[str, str]]:
        return [(column, self.expression(table, column)) for column in TABLES[table]]

    def _size(self, table: str, column: str) -> str:
        return self.dialect.size.format(column) if self.schema.has(table, column) else "NULL"

    def expression(self, table: str, column: str) -> str:
        """The column, NULL if it is missing. Times become microseconds, DATETIME ones still in local time (`utc`)."""
        if not self.schema.has(table, column):
            return "NULL"
        if column in _TIMES:
            return self._time(table, column)
        return self._bounded(table, column)

    def _bounded(self, table: str, column: str) -> str:
        """The column, or only its beginning or NULL if its text is long."""
        if column == "attrs":
            return f"CASE WHEN LENGTH(attrs) > {joblog.MAX_ATTRS} THEN '{joblog.TOO_LONG}' ELSE attrs END"
        limits = {"metadata": self.limits.metadata, "source_vm_spec": self.limits.metadata}
        if table == "job_steps":
            limits["error_message"] = SHORT_ERROR
        if column in limits:
            return f"CASE WHEN {self._size(table, column)} <= {limits[column]} THEN {column} END"
        if column == "error_message":
            cut = f"SUBSTR({column}, 1, {self.limits.error})"
            return f"CASE WHEN {self._size(table, column)} <= {self.limits.error} THEN {column} ELSE {cut} END"
        return column

    def _time(self, table: str, column: str) -> str:
        """A time as integer microseconds; DATETIME ones still in local time."""
        local = self.schema.is_local(table, column)
        return (self.dialect.local_micros if local else self.dialect.utc_micros).format(column)

    def _times(self, table: str, row: Row, since: Micros | None = None) -> list[Any]:
        """A row with its times in UTC. Each is at or after `since` and the times in front of it, as of a step."""
        values = list(row)
        for i in self._local[table]:
            if values[i] is not None:
                values[i] = self.zone.utc(values[i], since=since)
                since = values[i] if since is not None else None
        return values

    def utc(self, table: str, column: str, at: Micros | None, since: Micros | None = None) -> Micros | None:
        """A time of this column in UTC, as `expression` returned it. `since`: as in `Zone.utc`."""
        return self.zone.utc(at, since=since) if at is not None and self.schema.is_local(table, column) else at
