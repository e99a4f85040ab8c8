"""IDs that change hands, jobs that end twice, children that move: what the index publishes of them."""

from __future__ import annotations

from typing import Any

from correlator.jobs import fold, job_view, joblog
from correlator.jobs.index import Index
from correlator.model.facts import Entry, Job, Reading
from correlator.model.published import PublishedJob
from correlator.model.replies import Resolved
from correlator.model.rows import JobRecord, LegacyRecord, LogRow, StepRecord
from tests.support.documents import document_text

SECOND = 1_000_000
NOW = 10**15


def reading(job_id: str, observed_at: int, status: str, steps: tuple[StepRecord, ...] = (), **columns: Any) -> Reading:
    return Reading(job_id, observed_at, JobRecord(job_id, status=status, **({"started_at": NOW} | columns)), steps)


def test_a_joblog_job_that_replaces_a_legacy_job_with_its_id_is_found_by_its_context_id():
    index = Index()
    row = LegacyRecord(1, "j", "creating_vm", vm_context_id="c", started_at=NOW, apart=True)
    index.apply_legacy([row], [], NOW)
    index.apply([reading("j", 1, "running", context_id="c")], NOW)
    assert index.published.resolve("c") == Resolved("j", "context_id", ())


def test_a_legacy_job_that_the_log_names_leaves_with_its_row():
    index = Index()
    row = LegacyRecord(1, "ext", "creating_vm", created_at=NOW, apart=True)
    index.apply_legacy([row], [], NOW)
    assert index.apply([Entry(1, NOW, "INFO", "x", 1, "ext")], NOW).unread == {"ext"}
    assert [c.reason for c in index.apply_legacy([], ["ext"], NOW).changes] == ["gone"]


def test_what_is_nested_too_deep_to_be_written_harms_nothing():
    deep = "[" * 300 + "]" * 300
    entry, _ = joblog.read(LogRow(1, "Job failed", 1, attrs=f'{{"job_id":"j","error":{deep}}}'), 1)
    assert entry.error == "(nested too deep to be shown)"
    job = fold.fold(Job("j"), Reading("j", 1, JobRecord("j", metadata=f'{{"a":{deep},"vm_name":"x"}}'), ()))
    assert b'"vm_name":"x"' in document_text(PublishedJob(job_view.view(job), 1, 1))


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
