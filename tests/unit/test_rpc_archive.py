"""What a gateway asks collectors: IDs, pages, log lines and operations of one appliance or of all of them."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import warnings
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.cluster import rpc
from correlator.cluster.connection import NoAnswer
from correlator.errors import Away, BadRequest, SourceUnavailable
from correlator.gateway.archive import MAX_ALSO, MAX_EMPTY, MAX_OPERATIONS, MergedPage, RpcArchive
from correlator.jobs import encoding
from correlator.jobs.directory import Place, place_of
from correlator.model.facts import Status
from correlator.model.published import JobView, LogLine, PublishedJob
from correlator.model.rows import LegacyRecord, StepRecord
from correlator.pipeline.queries import (
    ArchivePage,
    FindLines,
    IsContext,
    JobNames,
    JobQuery,
    LegacyRow,
    LineQuery,
    LinesFound,
    LogLines,
    Operations,
    OtherJobs,
    UsualSteps,
)
from tests.support.answering_collectors import AWAY, BASE, SECOND, ArchiveInMemory, Collectors, reading
from tests.support.documents import document_of
from tests.support.eventually import eventually
from tests.support.forecasts import ended, learned
from tests.support.there import there
from tests.support.virtual_time import VirtualTimeLoop

EVERY = LineQuery()


def names(instance: str = "dc1") -> JobNames:
    return JobNames("u1", (), frozenset(), BASE, None, instance)


def line(event_id: int, message: str = "m", attrs: object = None) -> LogLine:
    return LogLine(event_id, "INFO", message, None, attrs, BASE + event_id)


async def ids(collectors: Collectors, limit: int) -> list[str]:
    """The IDs of all jobs, page by page."""
    archive, found, before = collectors.archive(), list[str](), None
    for _ in range(1000):
        page = await archive.page(JobQuery(), before, limit)
        assert page.reason is None
        found += [f"{job.instance}/{job.job_id}" for job in page.jobs]
        if (before := page.next_before) is None:
            return found
    raise AssertionError("the list does not end")


# -- IDs


async def test_a_job_that_only_a_database_has_is_found_with_its_appliance_and_the_same_document():
    collectors = Collectors(dc1=ArchiveInMemory(), dc2=ArchiveInMemory([reading("u2", 5, steps=(1, 2), owner="me")]))
    job, resolved = there(await collectors.archive().find("u2"))
    assert (job.instance, job.rev, resolved.resolved_by, resolved.also) == ("dc2", 0, "uuid", ())
    own = there(await collectors.hubs["dc2"].find("u2"))
    assert document_of(job) == document_of(replace(own[0], rev=0, instance="dc2"))


async def test_of_an_id_on_several_appliances_the_newest_job_wins_and_the_others_are_also_there():
    older = [reading("a2", 2, external_job_id="e"), reading("a1", 1, external_job_id="e")]
    newer = [reading("b1", 9, external_job_id="e")]
    collectors = Collectors(dc1=ArchiveInMemory(older), dc2=ArchiveInMemory(newer), dc3=ArchiveInMemory())
    found = there(await collectors.archive().find("e"))
    assert (found[0].job_id, found[0].instance) == ("b1", "dc2")
    assert found[1].also == ("a2", "a1")
    assert there(await collectors.archive("dc1").find("e"))[0].job_id == "a2"
    same = Collectors(dc2=ArchiveInMemory(older), dc1=ArchiveInMemory(older))
    assert there(await same.archive().find("e"))[0].instance == "dc1", "of equally new ones that of the first name"


async def test_an_unknown_id_is_none_but_unavailable_if_an_absent_appliance_may_know_it():
    collectors = Collectors(dc1=ArchiveInMemory(), dc2=ArchiveInMemory([reading("u", 5)]))
    assert await collectors.archive().find("nobody") is None
    collectors.replies["dc1"] = AWAY
    with pytest.raises(SourceUnavailable) as raised:
        await collectors.archive().find("nobody")
    assert raised.value.public == "dc1: no collector is connected to the cluster"
    assert (await collectors.archive().find("u")) is not None
    collectors.archives["dc2"].error = SourceUnavailable("u@10.1.2.3: refused", Away.LOGIN_REFUSED)
    with pytest.raises(SourceUnavailable) as raised:
        await collectors.archive("dc2").find("nobody")
    assert raised.value.public == "dc2: the database refuses the login"


@pytest.mark.parametrize("is_page", [True, False])
async def test_a_request_that_is_cancelled_before_any_collector_is_asked_leaves_nothing_behind(is_page):
    collectors = Collectors(dc1=ArchiveInMemory(), dc2=ArchiveInMemory())
    archive = collectors.archive()
    asked: Any = archive.page(JobQuery(), None, 1) if is_page else archive.ask(IsContext("u"))
    asking = asyncio.create_task(asked)
    await asyncio.sleep(0)  # It has made a task for each collector, and none of them has begun.
    asking.cancel()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(asyncio.CancelledError):
            await asking
        gc.collect()
    assert ([str(one.message) for one in caught], collectors.requests) == ([], [])


@pytest.mark.parametrize(("name", "seconds"), [("e", 1.0), ("u", 0.0)])
def test_an_appliance_that_hangs_delays_an_id_that_another_one_found_by_a_second_at_most(name, seconds):
    loop = VirtualTimeLoop()
    collectors = Collectors(
        dc1=ArchiveInMemory(), dc2=ArchiveInMemory([reading("u", 5, external_job_id="e", context_id="c")])
    )
    collectors.archives["dc1"].go.clear()
    began = loop.time()
    found = loop.create_task(collectors.archive().find(name))
    found.add_done_callback(lambda _: loop.stop())
    loop.run(60)
    assert loop.time() - began == pytest.approx(seconds)
    assert found.result() is not None
    loop.cancel_all()
    loop.close()


async def test_requests_for_one_id_share_a_search_which_ends_with_the_last_of_them():
    collectors = Collectors(dc1=ArchiveInMemory())
    collectors.archives["dc1"].go.clear()
    archive = collectors.archive()
    requests = [asyncio.create_task(archive.find("x")) for _ in range(5)]
    await eventually(lambda: collectors.archives["dc1"].asked)
    assert collectors.requests == [("dc1", "FindJob")]
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    collectors.archives["dc1"].go.set()
    assert await archive.find("x") is None
    assert collectors.requests == [("dc1", "FindJob")] * 2


async def test_a_document_that_cannot_be_read_is_a_failure_of_its_appliance(monkeypatch):
    monkeypatch.setattr("correlator.sinks.cluster.documents.encode", lambda _: b'{"job_id":5}')
    collectors = Collectors(dc1=ArchiveInMemory([reading("u", 5)]))
    with pytest.raises(SourceUnavailable, match="dc1: the collector sent a document that cannot be read"):
        await collectors.archive().find("u")


# -- pages


async def test_the_pages_of_a_fleet_have_every_job_once_newest_first():
    rnd = random.Random(1)
    fleet = {
        f"dc{n}": ArchiveInMemory(
            [reading(f"u{n}-{i}", rnd.choice((None, *range(20)))) for i in range(rnd.randrange(40))],
            page_size=rnd.randrange(1, 10),
        )
        for n in range(1, 4)
    }
    everything = sorted(
        ((*archive.place(job), name) for name, archive in fleet.items() for job in archive.jobs),
        reverse=True,
    )
    found = await ids(Collectors(**fleet), rnd.randrange(1, 12))
    assert found == [f"{name}/{job_id}" for _, job_id, name in everything]


@pytest.mark.parametrize("before", [None, (4_000_000_000_000_000, "x")])
async def test_an_appliance_whose_page_does_not_get_on_loses_its_part_and_nothing_else(before):
    collectors = Collectors(dc1=ArchiveInMemory([reading("a", 1)]), dc2=ArchiveInMemory([reading("b", 2)]))
    collectors.replies["dc2"] = rpc.encode_result(b'{"jobs":[],"next_before":[9223372036854775807,"z"]}')
    page = await collectors.archive().page(JobQuery(), before, 10)
    assert ([job.job_id for job in page.jobs], page.next_before) == (["a"], None)
    assert page.reason is not None
    assert "dc2: not a message of this program" in page.reason


class Walker(ArchiveInMemory):
    """An appliance that finds nothing, and gets on by a microsecond with each answer."""

    async def page(self, query: object, before: Place | None, limit: int, _: object, known: object) -> ArchivePage:
        self.asked.append(("page", before, limit))
        return ArchivePage([], ((before or (BASE + 100 * SECOND, ""))[0] - 1, "z"))


@pytest.mark.parametrize(("query", "within"), [(JobQuery(), 60.0), (JobQuery(), 0.0), (JobQuery(text="a"), 60.0)])
async def test_an_appliance_that_walks_slowly_leaves_the_jobs_of_others_in_the_list(query, within):
    walker = Walker()
    collectors = Collectors(dc1=ArchiveInMemory([reading("a", 1), reading("ab", 2)]), dc2=walker)
    page = await RpcArchive(collectors.caller, lambda: ["dc1", "dc2"], within).page(query, None, 10)
    assert ([job.job_id for job in page.jobs], page.next_before) == (["ab", "a"], None)
    assert page.reason == "dc2: the collector finds no job, and does not get on"
    assert len(walker.asked) <= MAX_EMPTY
    own = await RpcArchive(collectors.caller, lambda: ["dc2"], within).page(query, None, 10)
    assert (own.jobs, own.reason, own.next_before is None) == ([], None, False), "a slow database may have more"


async def test_a_search_that_takes_long_at_one_appliance_loses_nothing():
    collectors = Collectors(dc1=ArchiveInMemory([reading("a", 1)]), dc2=Walker())
    page = await RpcArchive(collectors.caller, lambda: ["dc1", "dc2"], 0.0).page(JobQuery(text="a"), None, 10)
    assert (page.jobs, page.reason, page.next_before) == ([], None, (BASE + 100 * SECOND - 1, "z"))


async def test_jobs_that_an_appliance_gives_beyond_what_was_asked_do_not_turn_the_list_back():
    jobs = [reading(f"u{n}", n) for n in range(9)]
    collectors = Collectors(dc1=ArchiveInMemory(jobs), dc2=ArchiveInMemory([reading("b", 2)]))
    given = await collectors.archive("dc1").page(JobQuery(), None, 100)
    documents = b",".join(encoding.encode(document_of(shown)) for shown in given.jobs)
    collectors.replies["dc1"] = rpc.encode_result(b'{"jobs":[%b]}' % documents)
    before = (BASE + 3 * SECOND, "x")
    page = await collectors.archive().page(JobQuery(), before, 4)
    assert all(place_of(shown) < before for shown in page.jobs)
    assert page.next_before is None or page.next_before < before


async def test_an_appliance_that_does_not_answer_makes_the_page_incomplete_and_nothing_else():
    collectors = Collectors(dc1=ArchiveInMemory([reading("a", 1)]), dc2=ArchiveInMemory([reading("b", 2)]))
    collectors.replies["dc2"] = NoAnswer("silence")
    page = await collectors.archive().page(JobQuery(), None, 10)
    assert [job.job_id for job in page.jobs] == ["a"]
    assert page.next_before is None
    assert page.reason is not None
    assert page.reason.startswith("dc2: the collector did not answer")
    collectors.replies["dc1"] = AWAY
    with pytest.raises(SourceUnavailable, match=r"dc1: .*; dc2: "):
        await collectors.archive().page(JobQuery(), None, 10)


async def test_a_page_of_large_documents_is_shorter_and_the_next_one_goes_on():
    large = [reading(f"u{n}", n, metadata=json.dumps({"m": "x" * 200_000})) for n in range(20)]
    collectors = Collectors(dc1=ArchiveInMemory(large))
    assert await ids(collectors, 100) == [f"dc1/u{n}" for n in reversed(range(20))]
    assert len(collectors.sizes) > 3
    assert max(collectors.sizes) > 500_000


async def test_a_page_ends_where_the_time_for_it_does():
    collectors = Collectors(dc1=ArchiveInMemory([reading(f"u{n}", n) for n in range(20)], page_size=3))
    page = await RpcArchive(collectors.caller, lambda: ["dc1"], 0.0).page(JobQuery(), None, 10)
    assert [job.job_id for job in page.jobs] == ["u19", "u18", "u17"]
    assert page.next_before == place_of(page.jobs[-1])


# -- log lines


async def test_answers_about_lines_that_do_not_get_on_or_are_too_many_are_refused_or_cut():
    collectors = Collectors(dc1=ArchiveInMemory(), dc2=ArchiveInMemory(lines=[line(1)]))
    for following in ('"5"', "null"):
        collectors.replies["dc1"] = rpc.encode_result(b'{"lines":[],"more":true,"next_after":%b}' % following.encode())
        with pytest.raises(SourceUnavailable, match=r"dc1: .* does not get on"):
            await collectors.archive().ask(LogLines(names(), "5", 10, EVERY))
    collectors.replies["dc1"] = rpc.encode_result(b'{"lines":[],"more":true,"next_before":9}')
    with pytest.raises(SourceUnavailable, match=r"dc1: .* does not get on"):
        await collectors.archive().ask(LogLines(names(), None, 10, EVERY, 9))
    one = b'{"event_id":1,"level":"INFO","message":"m","step_id":null,"attrs":null,"at":1}'
    for place, searched in ((b"7", b"-1e300"), (b"9", b"1e300")):
        reply = b'{"lines":[%b],"places":{"":%b},"searched":%b}' % (b",".join([one] * 500), place, searched)
        collectors.replies["dc1"] = rpc.encode_result(reply)
        found = await collectors.archive().ask(FindLines(20, EVERY, places={"dc1": 9, "dc2": 9}))
        assert len(found.lines) <= 20
        assert 0 <= found.searched <= 1
        assert (found.reason is None) == (place == b"7")
        assert found.places == {"dc1": int(place)}


async def test_names_and_operations_of_an_appliance_are_bounded_in_number():
    collectors = Collectors(dc1=ArchiveInMemory([reading("u", 1, external_job_id="e")]))
    shown, _ = there(await collectors.archive().find("e"))
    also = b",".join(b'"%d"' % n for n in range(50_000))
    head = b'[%b,{"job_id":"u","resolved_by":"external_id","also":[%b]}]' % (encoding.encode(document_of(shown)), also)
    collectors.replies["dc1"] = rpc.encode_result(head)
    assert len(there(await collectors.archive().find("e"))[1].also) == MAX_ALSO
    runs = b'{"job_type":"t","operation":"%d","runs":1,"typical_seconds":1,"p90_seconds":1,"failure_rate":0}'
    collectors.replies["dc1"] = rpc.encode_result(b"[%b]" % b",".join(runs % n for n in range(5_000)))
    known = await collectors.archive().ask(Operations())
    assert len(known) == MAX_OPERATIONS


async def test_log_lines_come_from_the_appliance_of_the_job():
    collectors = Collectors(
        dc1=ArchiveInMemory(), dc2=ArchiveInMemory(lines=[line(n, attrs={"n": [n]}) for n in range(1, 6)])
    )
    archive = collectors.archive()
    page = await archive.ask(LogLines(names("dc2"), None, 3, EVERY))
    assert [one.event_id for one in page.lines] == [1, 2, 3]
    assert page.lines[0] == line(1, attrs={"n": [1]})
    rest = await archive.ask(LogLines(names("dc2"), page.next_after, 3, EVERY))
    assert [one.event_id for one in rest.lines] == [4, 5]
    earlier = await archive.ask(LogLines(names("dc2"), None, 2, EVERY, 4))
    assert ([one.event_id for one in earlier.lines], earlier.next_before) == ([2, 3], 2)
    assert (await archive.ask(LogLines(names("dc1"), None, 3, EVERY))).lines == []


async def test_a_search_of_logs_goes_on_at_each_appliance_from_its_own_place_to_the_end():
    logs = {"dc1": [line(n) for n in range(1, 26)], "dc2": [line(n) for n in range(100, 105)], "dc3": []}
    collectors = Collectors(**{name: ArchiveInMemory(lines=log) for name, log in logs.items()})
    archive, pages = collectors.archive(), [LinesFound(places={}, searched=0.0)]
    while not pages[1:] or pages[-1].places:
        pages.append(await archive.ask(FindLines(9, EVERY, places=pages[-1].places)))
        assert pages[-2].searched < pages[-1].searched
    assert [sorted(page.places) for page in pages] == [[], ["dc1"], ["dc1"], []]
    found = [(one.instance, one.event_id) for page in pages for one in page.lines]
    assert sorted(found) == [(name, one.event_id) for name, log in logs.items() for one in log]
    assert (pages[1].searched_to, pages[-1].searched, pages[-1].searched_to) == (BASE + 16, 1.0, None)
    only = await archive.ask(FindLines(100, EVERY, frozenset({"dc2"})))
    assert ({one.instance for one in only.lines}, only.places) == ({"dc2"}, {})


async def test_a_log_of_an_appliance_that_is_away_is_searched_from_its_place_once_it_is_back():
    log = [line(n) for n in range(1, 26)]
    collectors = Collectors(dc1=ArchiveInMemory(lines=log), dc2=ArchiveInMemory(lines=log))
    archive = collectors.archive()
    first = await archive.ask(FindLines(20, EVERY))
    collectors.replies = dict.fromkeys(["dc2"], AWAY)
    second = await archive.ask(FindLines(20, EVERY, places=first.places))
    assert (second.reason, second.places) == ("dc2: no collector is connected to the cluster", {"dc1": 6, "dc2": 16})
    last = await archive.ask(FindLines(20, EVERY, places=second.places))
    assert (last.reason, last.places, last.searched, last.searched_to) == (second.reason, {"dc2": 16}, 0.5, None)
    with pytest.raises(SourceUnavailable, match="dc2: no collector"):
        await archive.ask(FindLines(20, EVERY, places=last.places))
    collectors.replies.clear()
    back = await archive.ask(FindLines(20, EVERY, places=last.places))
    assert {(one.instance, one.event_id) for one in back.lines} == {("dc2", n) for n in range(1, 16)}
    assert (back.places, back.searched, back.reason) == ({}, 1.0, None)
    collectors.replies = dict.fromkeys(["dc1", "dc2"], AWAY)
    with pytest.raises(SourceUnavailable, match="dc1: no collector"):
        await archive.ask(FindLines(20, EVERY))


@pytest.mark.parametrize("size", [5_000, 100_000, 899_000, 1_000_000])
async def test_pages_of_large_lines_are_shorter_and_miss_and_repeat_nothing(size):
    log = [line(n, "x" * size if n % 2 else "\x00" * (size // 10)) for n in range(1, 12)] + [
        line(n, "short") for n in range(12, 1200)
    ]
    collectors = Collectors(dc1=ArchiveInMemory(lines=log))
    archive, found, after = collectors.archive(), list[int](), None
    while True:
        page = await archive.ask(LogLines(names(), after, 1000, EVERY))
        found += [one.event_id for one in page.lines]
        if not page.more:
            break
        after = page.next_after
    assert found == [one.event_id for one in log]
    found = []
    before: int | None = 1200
    while before is not None:
        earlier = await archive.ask(LogLines(names(), None, 1000, EVERY, before))
        found = [one.event_id for one in earlier.lines] + found
        before = earlier.next_before
    assert found == [one.event_id for one in log]
    found, places = [], {"dc1": 1 << 50}
    while places:
        any_job = await archive.ask(FindLines(1000, EVERY, places=places))
        found, places = [one.event_id for one in any_job.lines][::-1] + found, any_job.places
    assert found == [one.event_id for one in log]


async def test_a_line_that_fits_into_no_reply_is_cut_and_says_so():
    attrs = {"job_id": "u1", "small": 1, "dump": "y" * 1_000_000, "list": [1] * 500_000}
    log = [line(1, "x" * 500_000, attrs), line(2, "m", "z" * 1_000_000)]
    collectors = Collectors(dc1=ArchiveInMemory(lines=log))
    (first,) = (await collectors.archive().ask(LogLines(names(), 1, 1, EVERY))).lines
    assert first.message == "x" * 100_000 + " … (500000 bytes)"
    assert first.attrs == {"job_id": "u1", "small": 1, "_cut": {"dump": 1_000_000, "list": 1_000_001}}
    (second,) = (await collectors.archive().ask(LogLines(names(), 2, 1, EVERY))).lines
    assert (second.message, second.attrs) == ("m", None)


async def test_the_attrs_of_a_line_can_be_encoded_or_are_a_reason():
    def archive(attrs: str) -> RpcArchive:
        reply = f'{{"lines":[{{"event_id":1,"level":"INFO","message":"m","at":1,"step_id":null,"attrs":{attrs}}}]}}'
        collectors = Collectors()
        collectors.replies["dc1"] = rpc.encode_result(reply.encode())
        return collectors.archive("dc1")

    for attrs, kept in ((f'{{"n":{10**40}}}', b'{"n":null}'), ("[" * 200 + "]" * 200, None)):
        for before in (None, 9):
            page = await archive(attrs).ask(LogLines(names(), None, 3, EVERY, before))
            line = orjson.loads(encoding.encode(encoding.log_line(page.lines[0])))
            assert kept is None or line["attrs"] == orjson.loads(kept)
    with pytest.raises(SourceUnavailable, match="dc1: not a message of this program"):
        await archive("[" * 300 + "]" * 300).ask(LogLines(names(), None, 3, EVERY))


async def test_a_cursor_of_another_kind_is_the_clients_mistake_and_an_absent_collector_is_named():
    collectors = Collectors(dc1=ArchiveInMemory())
    collectors.archives["dc1"].error = BadRequest("after: expected the next_after of the page before")
    with pytest.raises(BadRequest, match="after: expected"):
        await collectors.archive().ask(LogLines(names(), "x", 10, EVERY))
    collectors.replies["dc1"] = AWAY
    with pytest.raises(SourceUnavailable) as raised:
        await collectors.archive().ask(LogLines(names(), None, 10, EVERY))
    assert raised.value.public == "dc1: no collector is connected to the cluster"


# -- the others


async def test_a_name_is_a_context_if_it_is_one_on_any_appliance():
    collectors = Collectors(dc1=ArchiveInMemory(), dc2=ArchiveInMemory([reading("u", 5, context_id="c")]))
    assert await collectors.archive().ask(IsContext("c"))
    assert not await collectors.archive("dc1").ask(IsContext("c"))
    collectors.replies["dc1"] = AWAY
    assert await collectors.archive().ask(IsContext("c"))
    with pytest.raises(SourceUnavailable):
        await collectors.archive().ask(IsContext("d"))


async def test_a_row_of_the_legacy_table_is_found_on_the_appliance_that_has_it():
    collectors = Collectors(dc1=ArchiveInMemory(), dc2=ArchiveInMemory())
    record = LegacyRecord(3, "old", "failing_over", source_vm_spec='{"a":1}')
    collectors.archives["dc2"].legacy["old"] = record
    assert await collectors.archive().ask(LegacyRow("old")) == record
    assert await collectors.archive("dc1").ask(LegacyRow("old")) is None
    found = there(await collectors.archive().find("old"))
    assert (found[0].view.source, found[0].instance, found[1].resolved_by) == ("legacy", "dc2", "legacy")


async def test_an_unknown_id_is_searched_in_a_fleet_of_as_many_appliances_as_there_may_be():
    collectors = Collectors(**{f"dc{n}": ArchiveInMemory() for n in range(300)})
    assert await asyncio.gather(*(collectors.archive().find(f"nobody-{n}") for n in range(3))) == [None] * 3


async def test_operations_are_listed_once_as_known_where_they_ran_most_often():
    collectors = Collectors(dc1=ArchiveInMemory(), dc2=ArchiveInMemory())
    for name, count in (("dc1", 2), ("dc2", 5)):
        forecaster = collectors.hubs[name].forecasts.forecaster
        runs = [
            ended(("copy", float(count)), start=BASE + n * SECOND, operation=("failover", "live")) for n in range(count)
        ]
        runs.append(ended(("copy", 1.0), start=BASE, operation=("cleanup", name)))
        learned(runs, forecaster)
    found = await collectors.archive().ask(Operations())
    assert [(one.job_type, one.operation, one.runs) for one in found] == [
        ("cleanup", "dc1", 1), ("cleanup", "dc2", 1), ("failover", "live", 5),
    ]  # fmt: skip
    one = there(await collectors.archive().ask(UsualSteps("failover", "live")))
    assert (one.typical_seconds, [step.name for step in one.steps]) == (5.0, ["copy"])
    assert await collectors.archive().ask(UsualSteps("failover", "other")) is None
    collectors.replies["dc2"] = AWAY
    assert [one.operation for one in await collectors.archive().ask(Operations())] == ["dc1", "live"]


async def test_a_page_of_some_appliances_asks_only_these():
    collectors = Collectors(dc1=ArchiveInMemory([reading("a", 1)]), dc2=ArchiveInMemory([reading("b", 2)]))
    collectors.replies["dc2"] = AWAY
    page = await collectors.archive().page(JobQuery(instance=frozenset({"dc1", "dc9"})), None, 10)
    assert [job.job_id for job in page.jobs] == ["a"]
    assert (page.reason, collectors.requests) == (None, [("dc1", "OlderJobs")])


# -- Pages of several appliances, merged newest first: nothing is missing, nothing is repeated


def job(started: int | None, job_id: str, *steps: int) -> PublishedJob:
    records = tuple(map(StepRecord, steps))
    return PublishedJob(JobView(job_id, Status.RUNNING, started_at=started, steps=records), 0, 0)


class Appliance:
    """An ordered list that is given in pages of `sizes`, in turn: also empty ones, as a slow search gives them."""

    def __init__(self, jobs: list[PublishedJob], sizes: list[int]) -> None:
        self.jobs = sorted(jobs, key=place_of, reverse=True)
        self.sizes = sizes
        self.asked = 0

    def page(self, before: Place | None, limit: int) -> tuple[list[PublishedJob], Place | None]:
        rest = [j for j in self.jobs if before is None or place_of(j) < before]
        size = min(limit, self.sizes[self.asked % len(self.sizes)])
        self.asked += 1
        if size >= len(rest):
            return rest, None
        if size == 0:  # searched, down to just above its next job, and found nothing
            started, job_id = place_of(rest[0])
            reached = (started, job_id + "~")
            return ([], reached) if before is None or reached < before else (rest[:1], place_of(rest[0]))
        return rest[:size], place_of(rest[size - 1])


def read(
    appliances: dict[str, Appliance], before: Place | None, limit: int, away: frozenset[str] = frozenset()
) -> OtherJobs[PublishedJob]:
    page, ended = MergedPage(appliances, before, limit), set[str]()
    while due := page.due():
        for instance, place in due:
            assert instance not in ended, "an appliance that has ended is asked again"
            if instance in away:
                page.drop(instance, f"{instance} is away")
                ended.add(instance)
                continue
            jobs, following = appliances[instance].page(place, limit)
            page.add(instance, jobs, following)
            if following is None:
                ended.add(instance)
    return page.result()


def read_all(appliances: dict[str, Appliance], limit: int, away: frozenset[str] = frozenset()) -> list[PublishedJob]:
    found, before = list[PublishedJob](), None
    for _ in range(1000):
        page = read(appliances, before, limit, away)
        assert len(page.jobs) <= limit
        found += page.jobs
        if (before := page.next_before) is None:
            return found
    raise AssertionError("the list does not end")


STARTS = st.one_of(st.none(), st.integers(1, 6))
JOBS = st.dictionaries(st.sampled_from("abcdefghij"), STARTS, max_size=10).map(
    lambda d: [job(s, i) for i, s in d.items()]
)
APPLIANCES = st.dictionaries(
    st.sampled_from(("dc1", "dc2", "dc3", "dc4")),
    st.builds(Appliance, JOBS, st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any)),
    min_size=1,
)


@given(APPLIANCES, st.integers(1, 6), st.frozensets(st.sampled_from(("dc1", "dc2"))))
def test_the_merged_pages_are_one_sorted_list_of_all_jobs_of_appliances_that_answer(appliances, limit, away):
    others = {place_of(j) for name, a in appliances.items() if name not in away for j in a.jobs}
    assert [place_of(j) for j in read_all(appliances, limit, away)] == sorted(others, reverse=True)
    reason = read(appliances, None, limit, away).reason
    assert reason == ("; ".join(f"{n} is away" for n in sorted(away & appliances.keys())) or None)


def test_of_two_jobs_with_one_place_the_newer_is_listed_and_else_that_of_the_first_name():
    older, newer, as_new = job(5, "same", 7), job(5, "same"), job(5, "same")
    for jobs, listed in (((older, newer), newer), ((newer, older), newer), ((newer, as_new), newer)):
        for order in ((0, 1), (1, 0)):
            page = MergedPage(("dc1", "dc2"), None, 1)
            for n in order:
                page.add(f"dc{n + 1}", [jobs[n]], None)
            assert page.result().jobs[0] is listed
            assert page.result().next_before is None
