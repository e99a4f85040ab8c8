"""IDs that change hands, jobs that end twice, children that move: what the index publishes of them."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from correlator.jobs import fold, job_view, joblog
from correlator.jobs.index import Index
from correlator.model.facts import Entry, Fact, Job, Kind, Reading
from correlator.model.published import Event, PublishedJob
from correlator.model.replies import Resolved
from correlator.model.rows import JobRecord, LegacyRecord, LogRow, StepRecord
from tests.support.documents import document_text

SECOND = 1_000_000
NOW = 10**15


def reading(job_id: str, observed_at: int, status: str, steps: tuple[StepRecord, ...] = (), **columns: Any) -> Reading:
    return Reading(job_id, observed_at, JobRecord(job_id, status=status, **({"started_at": NOW} | columns)), steps)


def test_clients_that_follow_an_id_get_the_change_of_its_owner():
    index = Index()
    index.apply([reading(j, t, "running", external_job_id="e") for t, j in enumerate("ab", 1)], NOW)
    assert index.published.names_lead_to("e", "b")
    out = index.apply([reading("b", 3, "running", (StepRecord(5),), external_job_id="e")], NOW)
    assert index.published.names_lead_to("e", "a")
    assert [(c.job_id, c.moved) for c in out.changes] == [("b", False), ("a", True)]


def test_a_job_that_ends_twice_has_two_ends_and_no_third():
    index = Index()
    index.loading = False
    events: list[Event] = []
    batches: list[list[Fact]] = [
        [reading("j", 1, "running"), Entry(1, NOW, "INFO", "x", 2, "j", kind=Kind.JOB_STARTED)],
        [
            Entry(n, NOW + n, "INFO", "x", n + 1, "j", kind=k)
            for n, k in ((2, Kind.JOB_COMPLETED), (3, Kind.JOB_FAILED))
        ],
        [reading("j", 9, "completed", completed_at=NOW)],
    ]
    for facts in batches:
        events += index.apply(facts, NOW).events
    events += index.expire(NOW + 60 * SECOND).events
    assert [(e.kind, e.event_id) for e in events] == [
        (Kind.JOB_STARTED, 1),
        (Kind.JOB_COMPLETED, 2),
        (Kind.JOB_FAILED, 3),
    ]


def test_a_child_is_listed_under_the_parent_it_has_now():
    index = Index()
    index.apply([reading(j, t, "running") for t, j in enumerate("AB", 1)], NOW)
    for observed_at, parent, wanted in ((3, "A", (("k",), ())), (4, "B", ((), ("k",))), (5, None, ((), ()))):
        index.apply([reading("k", observed_at, "running", parent_job_id=parent)], NOW)
        shown = [index.published.get(j) for j in "AB"]
        assert tuple(s.children for s in shown if s is not None) == wanted


def test_a_joblog_job_that_replaces_a_legacy_job_with_its_id_is_found_by_its_context_id():
    index = Index()
    row = LegacyRecord(1, "j", "creating_vm", vm_context_id="c", started_at=NOW, apart=True)
    index.apply_legacy([row], [], NOW)
    index.apply([reading("j", 1, "running", context_id="c")], NOW)
    assert index.published.resolve("c") == Resolved("j", "context_id", ())


def test_a_removed_job_leaves_no_step_behind_not_even_one_that_its_table_had_lost():
    index = Index()
    index.apply([reading("j", 1, "running", (StepRecord(1), StepRecord(2)))], NOW)
    index.apply([reading("j", 2, "running", (StepRecord(1),))], NOW)
    of_step = Entry(1, NOW, "INFO", "x", 3, step_id=2)
    assert [row.job_id for row in index.apply([of_step], NOW).attributed] == ["j"]
    index.apply([Reading("j", 4)], NOW)
    assert index.apply([of_step], NOW).unread_steps == {2}


def test_a_legacy_row_never_takes_the_place_of_a_joblog_job():
    index = Index()
    index.apply([reading("j", 1, "running")], NOW)
    index.apply_legacy([LegacyRecord(1, "j", "failed", created_at=NOW, completed_at=NOW, apart=True)], [], NOW)
    shown = index.published.get("j")
    assert shown is not None
    assert (shown.view.source, shown.view.status) == ("joblog", "running")


def test_a_row_of_failover_jobs_that_is_deleted_leaves_a_joblog_job_of_its_id_alone():
    index = Index()
    index.apply([reading("j", 1, "running", context_id="c")], NOW)
    index.apply_legacy([LegacyRecord(1, "j", "failed", created_at=NOW, apart=True)], [], NOW)
    assert index.apply_legacy([], ["j"], NOW).changes == []
    index.apply([reading("k", 2, "running", context_id="c")], NOW + SECOND)
    assert index.published.resolve("c") == Resolved("k", "context_id", ("j",))


def test_a_legacy_job_that_the_log_names_leaves_with_its_row():
    index = Index()
    row = LegacyRecord(1, "ext", "creating_vm", created_at=NOW, apart=True)
    index.apply_legacy([row], [], NOW)
    assert index.apply([Entry(1, NOW, "INFO", "x", 1, "ext")], NOW).unread == {"ext"}
    assert [c.reason for c in index.apply_legacy([], ["ext"], NOW).changes] == ["gone"]


def test_a_legacy_job_stays_when_the_log_names_it_and_no_joblog_job_has_its_id():
    index = Index()
    row = LegacyRecord(1, "ext", "creating_vm", created_at=NOW, apart=True)
    index.apply_legacy([row], [], NOW)
    index.apply([Entry(1, NOW, "INFO", "x", 1, "ext")], NOW)
    index.apply_legacy([replace(row, status="failed", completed_at=NOW)], [], NOW)
    assert [c.reason for c in index.apply([Reading("ext", 2)], NOW).changes] == [None]
    shown = index.published.get("ext")
    assert shown is not None
    assert shown.view.status == "failed"


def test_a_legacy_row_that_the_log_named_first_is_published_once_no_joblog_job_has_its_id():
    index = Index()
    index.apply([Entry(1, NOW, "INFO", "x", 1, "ext")], NOW)
    index.apply_legacy([LegacyRecord(1, "ext", "failed", created_at=NOW, apart=True)], [], NOW)
    assert index.published.get("ext") is None
    assert [c.job_id for c in index.apply([Reading("ext", 2)], NOW).changes] == ["ext"]


def test_what_is_nested_too_deep_to_be_written_harms_nothing():
    deep = "[" * 300 + "]" * 300
    entry, _ = joblog.read(LogRow(1, "Job failed", 1, attrs=f'{{"job_id":"j","error":{deep}}}'), 1)
    assert entry.error == "(nested too deep to be shown)"
    job = fold.fold(Job("j"), Reading("j", 1, JobRecord("j", metadata=f'{{"a":{deep},"vm_name":"x"}}'), ()))
    assert b'"vm_name":"x"' in document_text(PublishedJob(job_view.view(job), 1, 1))


def test_a_word_that_no_job_can_have_is_a_job_at_work():
    index = Index()
    index.loading = False
    index.apply([reading(j, t, word) for t, (j, word) in enumerate({"a": "skipped", "b": "paused"}.items(), 1)], NOW)
    assert [s.view.status for s in index.published.all()] == ["running", "running"]


def test_ended_legacy_jobs_that_had_to_leave_do_not_come_back_by_themselves():
    index = Index(max_jobs=2)
    rows = [LegacyRecord(n, f"l{n}", "completed", created_at=NOW, completed_at=NOW + n, apart=True) for n in range(5)]
    index.apply_legacy(rows, [], NOW)
    index.expire(NOW)
    assert len(index.published) == 2
    assert index.apply_legacy(rows, [], NOW).changes == []


def test_clients_that_follow_an_id_get_the_change_also_if_it_was_another_kind_of_id():
    index = Index()
    index.apply([reading("a", 1, "running", context_id="e")], NOW)
    out = index.apply([reading("b", 2, "running", external_job_id="e")], NOW)
    assert [(c.job_id, c.moved) for c in out.changes] == [("b", False), ("a", True)]
    out = index.apply([Reading("b", 3)], NOW)
    assert [(c.job_id, c.moved) for c in out.changes] == [("b", False), ("a", True)]
    index.apply([reading("b", 4, "running", external_job_id="c")], NOW)
    out = index.apply([reading("c", 5, "running")], NOW)
    assert [(c.job_id, c.moved) for c in out.changes] == [("c", False), ("b", True)]


def test_rows_of_an_unread_job_stay_known_when_a_legacy_job_with_its_id_leaves_memory():
    index = Index(retention=60)
    index.loading = False
    ended = LegacyRecord(1, "j", "failed", created_at=NOW, completed_at=NOW, apart=True)
    index.apply_legacy([ended], [], NOW)
    index.apply([Entry(1, NOW, "WARN", "x", 1, "j")], NOW)
    assert [c.reason for c in index.expire(NOW + 61 * SECOND).changes] == ["retention"]
    index.apply([reading("j", 2, "running")], NOW + 62 * SECOND)
    shown = index.published.get("j")
    assert shown is not None
    assert shown.view.warnings == 1


def test_the_rows_after_one_that_starts_a_removed_job_again_belong_to_it():
    index = Index()
    index.apply([Reading("j", 1)], NOW)
    rows = [Entry(n, NOW, "WARN", "x", 2, "j", kind=k) for n, k in ((1, Kind.JOB_STARTED), (2, None))]
    index.apply(rows, NOW)
    index.apply([reading("j", 3, "running")], NOW)
    shown = index.published.get("j")
    assert shown is not None
    assert shown.view.warnings == 2
