"""The facts of a recording, in a random order."""

from datetime import UTC, datetime, timedelta

from correlator.jobs import joblog
from correlator.model.facts import Reading
from correlator.model.rows import JobRecord, LogRow, StepRecord
from tests.support.replay import Insert, expected


def micros(text):
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return None if text is None else (datetime.fromisoformat(text + "Z") - epoch) // timedelta(microseconds=1)


def reading_of(tables, job_id, observed_at):
    row = tables["job_tracking"][job_id]
    stamps = {n: micros(row[n]) for n in ("started_at", "completed_at", "created_at", "updated_at", "canceled_at")}
    same = ("operation", "status", "job_type", "parent_job_id", "external_job_id", "metadata", "error_message")
    more = ("percent_complete", "owner", "context_id", "job_category")
    record = JobRecord(job_id, **{n: row[n] for n in same + more}, **stamps)
    steps = tuple(
        StepRecord(
            s["id"],
            s["name"],
            s["seq"],
            s["status"],
            micros(s["started_at"]),
            micros(s["completed_at"]),
            s["error_message"],
        )
        for s in sorted(tables["job_steps"].values(), key=lambda s: (s["seq"], s["id"]))
        if s["job_id"] == job_id
    )
    children = (
        (micros(r["started_at"]), r["id"]) for r in tables["job_tracking"].values() if r["parent_job_id"] == job_id
    )
    return Reading(job_id, observed_at, record, steps, tuple(sorted(children)))


def row_of(row):
    same = ("id", "message", "level", "job_id", "step_id", "attrs", "external_job_id")
    return LogRow(ts=micros(row["ts"]), **{n: row[n] for n in same})


def facts_of(recording, chance):
    """Every log row, seen some time after its commit; table readings at random moments; and a last one of every job.

    An event seen before a reading began is in that reading, as JobLog writes its tables first.
    """
    seen = [
        (commit + chance.random() * 50, row_of(operation.row))
        for commit, transaction in enumerate(recording)
        for operation in transaction.operations
        if isinstance(operation, Insert) and operation.table == "log_events"
    ]
    read_at = []
    for commit in sorted(chance.sample(range(1, len(recording)), 40)):
        tables = expected(recording[: commit + 1])
        some = chance.sample(sorted(tables["job_tracking"]), min(20, len(tables["job_tracking"])))
        read_at += [(commit + 0.999, tables, job_id) for job_id in some]
    final = expected(recording)
    moments = sorted({m for m, _ in seen} | {m for m, _, _ in read_at})
    observed_at_of = {moment: observed_at for observed_at, moment in enumerate(moments, 1)}
    found = [joblog.read(row, observed_at_of[moment])[0] for moment, row in seen]
    found += [reading_of(tables, job_id, observed_at_of[moment]) for moment, tables, job_id in read_at]
    found += [reading_of(final, job_id, len(moments) + 1) for job_id in final["job_tracking"]]
    chance.shuffle(found)
    return found
