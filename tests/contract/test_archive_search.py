"""What a search finds in the database: by the name of a VM, by a context, and by a text anywhere in a job."""

from __future__ import annotations

import json

from correlator.pipeline.queries import JobQuery
from correlator.sources.db.mariadb import MariaDBSession
from tests.support.archive_queries import archive_of, at, listed, of


async def test_a_text_is_found_in_the_operation_a_step_and_an_error_too(archive, either_original):
    await either_original.job("a", started_at=at(1), operation="unified-Live-failover")
    await either_original.job("b", started_at=at(2), status="failed", error_message="No such VOLUME ü")
    await either_original.job("c", started_at=at(3), metadata='{"vm_name":"pg%test"}')
    await either_original.job("d", started_at=at(4))
    await either_original.insert("job_steps", job_id="d", name="volume-attachment", seq=1, started_at=at(4, micros=0))
    await either_original.insert(
        "job_steps", job_id="d", name="other", seq=2, started_at=at(4, micros=0), error_message="Eof"
    )
    await either_original.job("e", started_at=at(5), external_job_id="gui-5")

    async def with_text(text: str) -> list[str]:
        return await listed(archive, JobQuery(words=frozenset(text.split())))

    assert await with_text("live-FAIL") == ["a"]
    assert await with_text("volume") == ["d", "b"]
    assert await with_text("eof") == ["d"]
    assert await with_text("PG%t") == ["c"]
    assert await with_text("gui-5") == ["e"]
    assert await with_text("vm_name") == []
    assert await with_text("such volume") == ["b"]
    assert await listed(archive, JobQuery(text="volume")) == []
    assert await listed(archive, JobQuery(words=frozenset({"volume"}), status=frozenset({"failed"}))) == ["b"]


async def test_the_jobs_of_a_vm_are_those_with_exactly_its_name(archive, either_original):
    names = ("pg", "pgtest2", "PG", 'with "quotes" & <tags>')
    for number, name in enumerate(names):
        metadata = json.dumps({"vm_name": name})
        for plain, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):  # as JobLog writes them
            metadata = metadata.replace(plain, escaped)
        await either_original.job(f"job-{number}", started_at=at(number), metadata=metadata)
    await either_original.job("other-key", started_at=at(9), metadata='{"vm_name_or_id":"pgtest2"}')
    await either_original.job("elsewhere", started_at=at(10), metadata='{"note":"pgtest2"}')
    assert await listed(archive, JobQuery(vm_name="pgtest2")) == ["other-key", "job-1"]
    assert await listed(archive, JobQuery(vm_name=names[3])) == ["job-3"]


async def test_a_context_is_known_by_its_exact_text(archive, either_original):
    if either_original.rolled_back:
        assert not await archive.is_context("ctx")
        return
    await either_original.job("a", started_at=at(1), context_id="ctx")
    assert await archive.is_context("ctx")
    for other in ("CTX", "ctx ", "", "nobody", "\0", "x" * 300):
        assert not await archive.is_context(other), other


async def test_a_context_of_few_jobs_is_read_by_its_index_and_not_slice_by_slice(one_mariadb, monkeypatch):
    asked: list[str] = []
    query = MariaDBSession.query

    async def counted(self, sql, args=()):
        asked.append(sql)
        return await query(self, sql, args)

    await one_mariadb.run(
        "INSERT INTO job_tracking (id, operation, status, started_at, context_id) SELECT CONCAT('job-', seq), 'op',"
        " 'completed', UTC_TIMESTAMP() - INTERVAL seq MINUTE, IF(seq % 500 = 0, 'ctx', 'many') FROM seq_1_to_3000"
    )
    async with archive_of(one_mariadb, jobs_within=0.0, slices=of(10)) as archive:
        monkeypatch.setattr(MariaDBSession, "query", counted)
        due = [f"job-{n}" for n in range(500, 3001, 500)]
        assert await listed(archive, JobQuery(context_id=frozenset({"ctx"})), 4) == due
        assert len([sql for sql in asked if "OFFSET" in sql]) == 0
        # A context of many jobs is read in slices: no request sorts all of them.
        page = await archive.page(JobQuery(context_id=frozenset({"many"})), None, 100, lambda: 7)
        assert len(page.readings) == 10
        assert len([sql for sql in asked if "OFFSET" in sql]) == 1
