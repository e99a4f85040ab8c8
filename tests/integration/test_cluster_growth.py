"""Growth through a real NATS server: rows of jobs that go on, a writer, two gateways and a takeover in between."""

from __future__ import annotations

import asyncio

from correlator.cluster import keys
from correlator.model.facts import Entry
from tests.support.cluster_harness import collector, read_stream
from tests.support.documents import document_of
from tests.support.eventually import eventually
from tests.support.gateways import running
from tests.support.pipeline_harness import NOW


async def pages(one):
    """The pages of growth in the stream, without those that are empty."""
    found = await read_stream(one.connection, keys.STATE, keys.growths("dc1"))
    return [payload for _, _, payload in found if payload != b"[]"]


async def test_rows_of_jobs_that_go_on_reach_gateways_as_growth_and_a_successor_writes_documents(nats):
    rows = iter(range(1, 1 << 30))

    def log(*job_ids):
        for job_id in job_ids:
            n = next(rows)
            one.learn(Entry(n, NOW + n, "INFO", f"line {n}", next(one.times), job_id))

    async def shown(gateway):
        """Each job as a gateway shows it, which has to be what memory has."""
        due = {shown.job_id: document_of(shown) for shown in one.hub.published.all()}
        for job_id, document in due.items():
            found = await gateway.job(job_id)
            both = [{k: v for k, v in d.items() if k not in ("rev", "instance")} for d in (found, document)]
            assert both[0] == both[1]
        return {job_id: (await gateway.job(job_id))["rev"] for job_id in due}

    async def grows():
        log("a", "b")
        await asyncio.sleep(0.3)
        assert await pages(one)
        return True

    async with collector(nats) as one:
        one.change("a", "b", "c")
        async with one.writing(), running(nats.url) as first:
            await one.equal()
            await eventually(grows)
            await eventually(lambda: shown(first))
            assert len(await read_stream(one.connection, keys.STATE, keys.jobs("dc1"))) == 3
            log("a")
        log("b")  # The holder has ended with a page that names both.
        async with one.writing(position=one.sink.position()), running(nats.url) as second:
            await one.equal()  # Whole documents, whatever they were before.
            await eventually(grows)
            async with running(nats.url) as third:
                revs = await eventually(lambda: shown(second))
                assert await eventually(lambda: shown(third)) == revs
                one.change("a", "b")
                await eventually(lambda: shown(third))


async def test_a_job_that_rests_is_a_document_again_and_its_page_is_empty(nats):
    async with collector(nats) as one:
        one.change("a")
        async with one.writing():
            await one.equal()
            for n in range(1, 4):
                one.learn(Entry(n, NOW + n, "INFO", f"line {n}", next(one.times), "a"))
                await asyncio.sleep(0.6)
            assert await pages(one)

            async def is_empty():
                assert not await pages(one)
                return True

            await eventually(is_empty)
            await one.equal()
