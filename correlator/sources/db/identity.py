"""Whose database it is: a sample of its jobs, by which a later run recognizes it.

Problem. A checkpoint stays in use if the same database is reached in another way, not if another appliance has taken
its place. In a cluster, collectors that have the same name by mistake must not go on from each other's checkpoint. The
name of a server, its address and its `server_uid` change when it is moved, restored or replaced by its replica, and
the rows of the log start again after a restored backup. The tables have no mark of their own, and get none.

Model. The ID of a job is a UUID, so two appliances have none in common. The sample is the jobs with the lowest IDs:
they are of any age, so a backup has some of them, and a replica has all. A database that has none of the sample is
another one, also if it is empty. The sample is taken again every ten minutes, as old jobs are deleted.
"""

from __future__ import annotations

from collections.abc import Sequence

from correlator.sources.db.session import Dialect, Session, rows_of

SAMPLE = 100
"""Jobs of a sample: of a backup that has only a tenth of the jobs, one in 40,000 is not recognized."""


async def sample(session: Session) -> tuple[str, ...]:
    """The IDs of up to `SAMPLE` jobs, by the primary key. Raises: `SourceUnavailable`."""
    rows = await rows_of(session, tuple[str], f"SELECT id FROM job_tracking ORDER BY id LIMIT {SAMPLE}")
    return tuple(row[0] for row in rows)


async def is_other(session: Session, dialect: Dialect, known: Sequence[str]) -> bool:
    """True if the database has none of the jobs `known`. Raises: `SourceUnavailable`."""
    known = known[:SAMPLE]
    marks = dialect.marks(known)
    return bool(known) and not await session.query(f"SELECT id FROM job_tracking WHERE id IN ({marks}) LIMIT 1", known)
