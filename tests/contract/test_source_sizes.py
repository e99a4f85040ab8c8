"""Metadata and errors of megabytes stay in the database: what is read of them is small, whatever their shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from correlator.jobs.sizes import (
    CUT,
    MAX_METADATA,
    REST,
    STEP_ERRORS,
    Sizes,
    size,
)
from correlator.model.facts import MAX_STEPS
from correlator.model.rows import JobRecord, StepRecord
from correlator.sources.db.queries import Queries, read_readings
from tests.support.source_databases import RecordingSession, open_queries

MEGABYTES = 3_000_000
IDS = {"external_job_id": "gui-1", "failover_job_id": "gui-2", "gui_job_id": "gui-3", "vm_name": "web-01"}
ERROR = Sizes().error


async def record_of(queries: Queries, session: Any, job_id: str = "u1") -> JobRecord:
    (reading,) = await read_readings(queries, session, 1, [job_id])
    assert reading.record is not None
    return reading.record


def shape(name: str) -> dict[str, Any]:
    match name:
        case "one large member before the ids":
            return {"a": "small", "blob": "y" * MEGABYTES, **IDS}
        case "many small members before the ids":
            return {f"key{i:06}": "v" * 40 for i in range(MEGABYTES // 60)} | IDS
        case "a deep and dense member":
            return {"a": "small", "tree": [{"a": 1, "b": [2]} for _ in range(MEGABYTES // 17)], **IDS}
        case "many large members":
            return {f"part{i:02}": "y" * (MEGABYTES // 20) for i in range(20)} | IDS
        case "escapes alone":
            return {"text": '\n"\\' * (MEGABYTES // 6), **IDS}
        case _:
            return {"a": "small", "blob": "y" * 20_000, **IDS}


SHAPES = (
    "one large member before the ids",
    "many small members before the ids",
    "a deep and dense member",
    "many large members",
    "escapes alone",
    "a little over the limit",
)


@pytest.mark.parametrize("name", SHAPES)
async def test_metadata_of_any_size_and_shape_is_cut_and_keeps_its_ids(original, name):
    whole = shape(name)
    await original.job("u1", metadata=json.dumps(whole))
    async with open_queries(original.source()) as (queries, asked):
        session = RecordingSession(asked)
        record = await record_of(queries, session)
        cut = json.loads(record.metadata or "")
        missing = cut.pop(CUT)
        assert {key: cut[key] for key in IDS} == IDS
        assert cut == {key: whole[key] for key in cut}
        assert size(record.metadata or "") < MAX_METADATA + 4_000
        full = size(json.dumps(whole))
        assert full * 0.6 < sum(missing.values()) < full * 1.4  # databases space JSON differently
        assert session.bytes < 12 * MAX_METADATA
        if len(whole) < 10:
            assert set(cut) | set(missing) == set(whole)
            assert REST not in missing


async def test_oversized_metadata_that_is_no_object_is_empty_and_says_how_large_it_is(original):
    if original.shows_dirty:
        await original.run("ALTER TABLE job_tracking MODIFY metadata LONGTEXT")
    texts = ("[" + "1," * 400_000 + "1]", '"' + "x" * 900_000 + '"', '{"a": 1, "b": ' + "x" * 300_000)
    for number, text in enumerate(texts):
        await original.job(f"u{number}", metadata=text)
    async with open_queries(original.source()) as (queries, session):
        for number, text in enumerate(texts):
            record = await record_of(queries, session, f"u{number}")
            assert json.loads(record.metadata or "") == {CUT: {REST: len(text)}}


async def test_a_cut_record_is_not_cut_again_until_its_row_changes(original):
    await original.job("u1", metadata=json.dumps(shape(SHAPES[0])), error_message="e" * MEGABYTES)
    await original.run("UPDATE job_tracking SET updated_at = '2026-03-01 10:00:00'")
    async with open_queries(original.source()) as (queries, asked):
        session = RecordingSession(asked)
        first = await record_of(queries, session)
        session.answers.clear()
        again = await record_of(queries, session)
        assert again == first
        assert again.metadata is first.metadata
        assert session.bytes < 1_000
        changed = json.dumps({"a": "other", "blob": "z" * MEGABYTES})
        await original.run(
            "UPDATE job_tracking SET metadata = %s, status = 'failed', updated_at = '2026-03-01 10:00:01'", changed
        )
        last = await record_of(queries, session)
        assert (json.loads(last.metadata or "")["a"], last.status) == ("other", "failed")


async def test_an_error_of_megabytes_is_its_beginning_and_its_size(original):
    await original.job("u1", error_message="ü" * (MEGABYTES // 2))
    async with open_queries(original.source()) as (queries, asked):
        session = RecordingSession(asked)
        record = await record_of(queries, session)
    assert (record.error_message, record.error_cut) == ("ü" * (ERROR // 2), MEGABYTES)
    assert session.bytes < 3 * ERROR


async def test_the_errors_of_thousands_of_steps_share_what_a_document_may_have(original):
    await original.job("u1")
    steps = 2_000
    if original.shows_dirty:
        await original.run(
            "INSERT INTO job_steps (job_id, name, seq, status, error_message)"
            f" SELECT 'u1', 's', seq, 'failed', REPEAT('e', 20000) FROM seq_1_to_{steps}"
        )
    else:
        await original.run(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {steps})"
            " INSERT INTO job_steps (job_id, name, seq, status, started_at, error_message)"
            " SELECT 'u1', 's', i, 'failed', '2026-03-01 10:00:00', printf('%.20000c', 'e') FROM n"
        )
    await original.run(f"UPDATE job_steps SET error_message = 'short' WHERE seq = {steps}")
    async with open_queries(original.source()) as (queries, asked):
        session = RecordingSession(asked)
        (reading,) = await read_readings(queries, session, 1, ["u1"])
    found: Sequence[StepRecord] = reading.steps or ()
    assert len(found) == steps
    assert [len(s.error_message or "") for s in found[: STEP_ERRORS + 1]] == [ERROR] * STEP_ERRORS + [0]
    assert {s.error_cut for s in found[:-1]} == {20_000}
    assert (found[-1].error_message, found[-1].error_cut) == ("short", None), "a short one is whole beside long ones"
    assert session.bytes < STEP_ERRORS * ERROR + 100 * steps


async def test_of_a_job_with_too_many_steps_the_last_are_read_and_of_others_all(original):
    counts = {"u1": 3 * MAX_STEPS, "u2": MAX_STEPS, "u3": 3, "u4": MAX_STEPS + 1, "u5": MAX_STEPS}
    numbers = f"WITH RECURSIVE n(seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM n WHERE seq < {counts['u1']})"
    if original.shows_dirty:
        numbers = f"WITH n AS (SELECT seq FROM seq_1_to_{counts['u1']})"
    for job_id, count in counts.items():
        await original.job(job_id)
        await original.run(
            "INSERT INTO job_steps (job_id, name, seq, status, started_at)"
            f" {numbers} SELECT '{job_id}', 's', seq, 'running', '2026-03-01 10:00:00' FROM n WHERE seq <= {count}"
        )
    async with open_queries(original.source()) as (queries, session):
        for ids in (list(counts), ["u1"], ["u2", "u3"]):
            found = {one.job_id: one.steps or () for one in await read_readings(queries, session, 1, ids)}
            for job_id in ids:
                first = max(1, counts[job_id] - MAX_STEPS + 1)
                assert [step.seq for step in found[job_id]] == list(range(first, counts[job_id] + 1)), (job_id, ids)


async def test_a_member_that_is_named_as_ours_is_published_under_another_name(original):
    """Whether the text is read as it is, shortened here, or by the server."""
    for blob, missing in (
        (10, {"blob": "x" * 10}),
        (20_000, {CUT: {"blob": 20_000}}),
        (300_000, {CUT: {"blob": 300_000}}),
    ):
        await original.job(f"u{blob}", metadata=json.dumps({"vm_name": "a", "_cut": "text", "blob": "x" * blob}))
        async with open_queries(original.source()) as (queries, session):
            found = json.loads((await record_of(queries, session, f"u{blob}")).metadata or "")
        assert found == {"vm_name": "a", "__cut": "text", **missing}


async def test_a_legacy_job_is_cut_alike(original):
    if original.shows_dirty:
        await original.run("ALTER TABLE failover_jobs MODIFY source_vm_spec LONGTEXT, MODIFY error_message LONGTEXT")
    spec = json.dumps({"cpus": 4, "_cut": 1, "disks": "d" * 1_000_000})
    await original.insert(
        "failover_jobs",
        job_id="gui-1",
        vm_id="v",
        job_type="live",
        source_vm_name="web-01",
        source_vm_spec=spec,
        error_message="e" * 1_000_000,
    )
    async with open_queries(original.source()) as (queries, session):
        (record,) = await queries.legacy_where(session, "1 = 1")
    assert json.loads(record.source_vm_spec or "") == {"cpus": 4, "__cut": 1, CUT: {"disks": 1_000_000}}
    assert (len(record.error_message or ""), record.error_cut) == (ERROR, 1_000_000)
