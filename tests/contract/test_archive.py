"""What the database is asked on request: a job by any ID, older pages, the log lines of a job; for every kind of it."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from correlator.errors import BadRequest
from correlator.pipeline.queries import JobQuery, LineQuery, LogLines
from tests.support.archive_queries import archive_of, at, found, go_encoded, listed, logical_time, names, unix

EVERYTHING = JobQuery()

ODD_ID = "100% <b>&%2F ü'\"\\"


async def test_every_id_leads_to_its_job_in_the_order_of_lookup(archive, either_original):
    await either_original.job("u1", external_job_id="ext-1", started_at=at(0))
    await either_original.job("u2", metadata=json.dumps({"failover_job_id": "ext-2"}), started_at=at(1))
    await either_original.insert("failover_jobs", job_id="old-1", vm_id="v", job_type="live", source_vm_name="pg")
    assert await found(archive, "u1") == ("u1", "uuid", ())
    assert await found(archive, "ext-1") == ("u1", "external_id", ())
    assert await found(archive, "ext-2") == ("u2", "external_id", ())
    assert await found(archive, "old-1") == ("old-1", "legacy", ())
    await either_original.job("ext-1", started_at=at(9))
    assert await found(archive, "ext-1") == ("ext-1", "uuid", ())
    await either_original.job("u3", external_job_id="old-1", started_at=at(2))
    assert await found(archive, "old-1") == ("u3", "external_id", ())


async def test_a_job_is_found_by_its_own_id_in_any_case(one_mariadb):
    await one_mariadb.job("u1", external_job_id="ext", started_at=at(0))
    async with archive_of(one_mariadb) as archive:
        assert await found(archive, "U1") == ("u1", "uuid", ())
        assert await found(archive, "ú1") is None  # Equal for the column's collation.
        assert await found(archive, "EXT") is None


async def test_jobs_of_the_same_second_are_ordered_by_their_steps_and_not_by_their_ids(archive, either_original):
    async def job(job_id: str, status: str, steps: int) -> None:
        await either_original.job(job_id, status=status, external_job_id="ext", started_at=at(5))
        for seq in range(steps):
            await either_original.insert(
                "job_steps", job_id=job_id, name="one", seq=seq, started_at=at(5, micros=0), status=status
            )

    await job("u4-older", "completed", 2)
    await job("u2-newer", "completed", 1)
    await job("u5-without-steps", "completed", 0)
    assert await found(archive, "ext") == ("u2-newer", "external_id", ("u4-older", "u5-without-steps"))
    await job("u1-begins", "running", 0)
    assert await found(archive, "ext") == ("u1-begins", "external_id", ("u2-newer", "u4-older", "u5-without-steps"))


async def test_a_context_leads_to_its_newest_job_where_there_are_contexts(archive, either_original):
    if either_original.rolled_back:
        await either_original.job("u1", started_at=at(1))
        assert await found(archive, "ctx") is None
        return
    await either_original.job("u1", context_id="ctx", started_at=at(1))
    await either_original.job("u2", context_id="ctx", started_at=at(2))
    await either_original.job("u3", context_id="CTX", started_at=at(3))
    assert await found(archive, "ctx") == ("u2", "context_id", ("u1",))


async def test_what_is_no_id_leads_nowhere_however_a_collation_compares(current):
    archive, either_original = current
    await either_original.job("u1", external_job_id="ext-1", metadata='{"failover_job_id":"ext-2","vm_name":"vm"}')
    await either_original.insert("failover_jobs", job_id="old-1", vm_id="v", job_type="live", source_vm_name="pg")
    for name in ("", "\0", "a\0", "x" * 300, "nobody", "EXT-1", "ext-1 ", "EXT-2", "OLD-1", "ú1", "éxt-1", "vm", "%"):
        assert await found(archive, name) is None, name


async def test_pages_keep_to_their_filters(archive, either_original):
    new = {} if either_original.rolled_back else {"context_id": "ctx"}
    await either_original.job("a", started_at=at(1), job_type="failover", external_job_id="Ext-A", **new)
    await either_original.job("b", started_at=at(2), status="failed", metadata='{"vm_name":"PG%test"}')
    await either_original.job("c", started_at=at(3), operation="other", parent_job_id="a")

    async def only(**members) -> list[str]:
        return await listed(archive, JobQuery(**members), 2)

    assert await only(status=frozenset({"failed"})) == ["b"]
    assert await only(status=frozenset({"failed", "running"}), operation=frozenset({"other"})) == ["c"]
    assert await only(job_type=frozenset({"failover"})) == ["a"]
    assert await only(parent_job_id=frozenset({"a"})) == ["c"]
    assert await only(context_id=frozenset({"ctx"})) == ([] if either_original.rolled_back else ["a"])
    assert await only(text="ext-a") == ["a"]
    assert await only(text="pg%t") == ["b"]
    assert await only(text="g_t") == []
    assert await only(since=unix(2) * 1_000_000 - 500_000) == ["c", "b"]
    assert await only(until=unix(2) * 1_000_000) == await only(until=unix(1) * 1_000_000 + 500_000) == ["a"]
    assert await only(since=unix(2) * 1_000_000, until=unix(2) * 1_000_000 + 1) == ["b"]


async def test_the_lines_of_a_job_are_all_of_them_and_no_others(archive, either_original):
    await either_original.job("u1", started_at=at(0))
    await either_original.job("u2", started_at=at(0))
    step = await either_original.insert("job_steps", job_id="u1", name="one", seq=1, started_at=at(0, micros=0))
    new = {} if either_original.rolled_back else {"external_job_id": "ext-1"}
    await either_original.log("column", job_id="u1", ts=at(1, micros=1))
    await either_original.log("another's", job_id="u2", ts=at(1, micros=2), attrs='{"text":"u1"}')
    await either_original.log("attrs", ts=at(1, micros=3), attrs='{"job_id":"u1"}')
    await either_original.log("step column", step_id=step, ts=at(1, micros=5))
    await either_original.log("step attrs", ts=at(1, micros=4), attrs=json.dumps({"step_id": step}))
    await either_original.log("external", ts=at(1, micros=6), attrs='{"external_job_id":"ext-1"}', level="WARN")
    await either_original.log("external column", ts=at(1, micros=7), level="ERROR", **(new or {"job_id": "u1"}))
    await either_original.log("odd", ts=at(1, micros=8), level="WARN", attrs=f'{{"gui_job_id":{go_encoded(ODD_ID)}}}')
    await either_original.log("nobody's", ts=at(1, micros=9), attrs='{"text":"u1"}')
    asked = names(external=["ext-1", ODD_ID])
    wanted = ["column", "attrs", "step attrs", "step column", "external", "external column", "odd"]
    page = await archive.lines(LogLines(asked, None, 100, LineQuery()))
    assert not page.more
    assert [line.message for line in page.lines] == wanted
    assert [line.step_id for line in page.lines] == [None, None, step, step, None, None, None]
    assert page.lines[1].attrs == {"job_id": "u1"}
    warnings = await archive.lines(LogLines(asked, None, 100, LineQuery("WARN")))
    assert [line.message for line in warnings.lines] == wanted[4:]
    one_by_one: list[str] = []
    after = None
    while (page := await archive.lines(LogLines(asked, after, 1, LineQuery()))).more or page.lines:
        one_by_one += [line.message for line in page.lines]
        after = page.next_after
    assert sorted(one_by_one) == sorted(wanted)


async def test_the_last_page_of_an_ended_job_says_so_and_a_foreign_place_is_refused(archive, either_original):
    await either_original.job("u1", status="completed", started_at=at(0), completed_at=at(2))
    await either_original.log("end", job_id="u1", ts=at(2, micros=0))
    page = await archive.lines(LogLines(names(ended=2), None, 10, LineQuery()))
    assert [line.message for line in page.lines] == ["end"]
    page = await archive.lines(LogLines(names(ended=2), page.next_after, 10, LineQuery()))
    assert (page.lines, page.next_after) == ([], None)
    with pytest.raises(BadRequest):
        await archive.lines(LogLines(names(), "nonsense", 10, LineQuery()))
    assert (await archive.lines(LogLines(names(), None, 10, LineQuery()))).lines  # a bad question ends no session


async def test_a_question_given_up_leaves_the_archive_as_good_as_new(current):
    archive, either_original = current
    await either_original.job("u1", external_job_id="ext-1")
    for delay in (0.0, 0.0005, 0.001, 0.002, 0.004):
        asked = asyncio.create_task(archive.find("ext-1", logical_time))
        await asyncio.sleep(delay)  # not a wait for anything: the moment at which it is given up
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        assert await found(archive, "u1") == ("u1", "uuid", ())


async def legacy(original, job_id: str, second: int, **row) -> None:
    """A row of failover_jobs."""
    times = {"created_at": at(second), "updated_at": at(second)}
    await original.insert(
        "failover_jobs",
        **{"job_id": job_id, "vm_id": "v", "job_type": "live", "status": "completed", "source_vm_name": "pg"}
        | times
        | row,
    )


async def all_pages(archive, query, limit, known=lambda _: False) -> list[str]:
    """All jobs page by page, each page sorted as a list is."""
    seen: list[str] = []
    before = None
    while True:
        page = await archive.page(query, before, limit, logical_time, known)
        places = [(r.record.started_at, r.job_id) for r in page.readings]
        places += [(r.started_at or r.created_at, r.job_id) for r in page.legacy]
        assert all(page.next_before is None or place >= page.next_before for place in places)
        assert all(before is None or place < before for place in places)
        seen += [job_id for _, job_id in sorted(places, reverse=True)]
        if (before := page.next_before) is None:
            return seen


async def test_pages_have_the_legacy_jobs_that_no_job_owns_at_their_place(archive, either_original):
    original = either_original
    await original.job("a", started_at=at(10))
    await original.job("c", started_at=at(30), metadata='{"failover_job_id": "in-metadata"}')
    await original.job("e", started_at=at(50), external_job_id="in-column")
    for name, second in (("a", 10), ("in-metadata", 31), ("in-column", 51), ("apart-1", 5), ("apart-3", 30)):
        await legacy(original, name, second)
    await legacy(original, "apart-2", 0, started_at=at(20), status="failed")
    await legacy(original, "apart-4", 60, source_vm_name="other")
    everything = ["apart-4", "e", "c", "apart-3", "apart-2", "a", "apart-1"]
    if not original.rolled_back:
        await original.log("of a", job_id="a", external_job_id="in-log", ts=at(11, micros=0))
        await legacy(original, "in-log", 12)
    for limit in (1, 3, 500):
        assert await all_pages(archive, EVERYTHING, limit) == everything
        assert await all_pages(archive, EVERYTHING, limit, {"apart-3", "e"}.__contains__) == [
            name for name in everything if name not in ("apart-3", "e")
        ]
        assert await all_pages(archive, JobQuery(status=frozenset({"failed"})), limit) == ["apart-2"]
        assert await all_pages(archive, JobQuery(text="part-3"), limit) == ["apart-3"]
        assert await all_pages(archive, JobQuery(vm_name="other"), limit) == ["apart-4"]
        since, until = unix(20) * 1_000_000, unix(31) * 1_000_000
        assert await all_pages(archive, JobQuery(since=since, until=until), limit) == ["c", "apart-3", "apart-2"]
        assert await all_pages(archive, JobQuery(parent_job_id=frozenset({"a"})), limit) == []


async def test_more_legacy_jobs_than_a_page_has_are_all_listed(current):
    archive, original = current
    for n in range(250):
        await legacy(original, f"l{n:03}", n // 3)
    await original.job("between", started_at=at(40))
    ids = await all_pages(archive, EVERYTHING, 60)
    assert ids == sorted(ids, key=lambda i: (40, i) if i == "between" else (int(i[1:]) // 3, i), reverse=True)
    assert len(ids) == 251


async def test_without_legacy_its_ids_lead_nowhere_and_pages_have_none_of_its_jobs(either_original):
    await legacy(either_original, "apart", 5)
    async with archive_of(either_original, legacy=False) as archive:
        assert await found(archive, "apart") is None
        assert await all_pages(archive, EVERYTHING, 10) == []
