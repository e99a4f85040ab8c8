"""Which ended jobs are exported: each once, some seconds after its end, and none that ended before the first start."""

from __future__ import annotations

import pytest

from correlator.jobs.exports import Exports
from correlator.model.facts import Status
from correlator.model.persisted import PersistedExports
from correlator.model.published import Change, JobView, PublishedJob

SECOND = 1_000_000
NOW = 1_758_553_933 * SECOND + 300_000


def shown(status=Status.RUNNING, ended_at=None, *, complete=True, job_id="j"):
    return PublishedJob(JobView(job_id, status, started_at=NOW, ended_at=ended_at), 1, NOW, complete=complete)


def changed(exports, old, new, *, now=0.0, reason=None, job_id="j"):
    exports.on_change(Change(job_id, 1, old, new, reason), NOW, now)


def end(exports, job_id="j", ended_at=NOW, now=0.0):
    changed(exports, shown(job_id=job_id), shown(Status.COMPLETED, ended_at, job_id=job_id), job_id=job_id, now=now)


def made(saved=None, delay=10.0, now=0.0):
    exports = Exports(delay, now, saved)
    exports.begin(NOW)
    return exports


def due(exports, now):
    found = []
    while (job_id := exports.pop_due(now)) is not None:
        found.append(job_id)
    return found


def restarted(exports, now=0.0):
    """The exports of the next run, from what a checkpoint would hold."""
    exports.mark_all()
    state = exports.changed()
    return made(PersistedExports(state.since, {k: v for k, v in state.jobs.items() if v is not None}), now=now)


def test_a_job_is_due_once_after_the_delay():
    exports = made()
    end(exports)
    assert (due(exports, 9.9), exports.next_due(), exports.pending) == ([], 10.0, 1)
    assert due(exports, 10.0) == ["j"]
    assert (exports.pending, exports.oldest()) == (1, 0.0)
    exports.finished("j")
    assert (exports.pending, exports.oldest()) == (0, None)
    end(exports, now=11.0)  # a correction, or a second end
    assert due(exports, 99.0) == []


@pytest.mark.parametrize(
    ("ended_at", "is_news"),
    [(NOW - SECOND, False), (NOW, False), (NOW + 1, True)],
)
@pytest.mark.parametrize("old", [None, shown(complete=False)])
def test_a_job_that_is_first_published_ended_is_news_if_it_ended_after_the_first_start(old, ended_at, is_news):
    exports = made()
    changed(exports, old, shown(Status.FAILED, ended_at))
    assert due(exports, 10.0) == (["j"] if is_news else [])


def test_a_restart_exports_what_is_pending_and_nothing_that_was_exported():
    exports = made()
    for job_id in ("sent", "sending", "waiting"):
        end(exports, job_id, now=0.0 if job_id != "waiting" else 5.0)
    assert due(exports, 10.0) == ["sent", "sending"]
    exports.finished("sent")
    exports = restarted(exports)
    for job_id in ("sent", "sending", "waiting"):  # published again from the checkpoint
        changed(exports, None, shown(Status.COMPLETED, NOW + SECOND, job_id=job_id), job_id=job_id)
    assert due(exports, 10.0) == ["sending", "waiting"]


@pytest.mark.parametrize("restarts", [False, True])
def test_nothing_that_a_first_start_loads_is_exported_however_wrong_the_clock_of_its_host_was(restarts):
    exports = Exports(10.0, 0.0)
    changed(exports, None, shown(Status.COMPLETED, NOW + 3600 * SECOND), job_id="loaded")
    exports = restarted(exports) if restarts else exports
    exports.begin(NOW)
    changed(exports, None, shown(Status.COMPLETED, NOW + SECOND), job_id="short")
    assert due(exports, 10.0) == ["short"]


def test_a_job_that_was_exported_and_left_memory_does_not_return_when_a_client_asks_for_it():
    exports = made()
    ended = shown(Status.COMPLETED, NOW + SECOND)
    changed(exports, shown(), ended)
    due(exports, 10.0)
    exports.finished("j")
    exports.on_change(Change("j", 2, ended, None, "retention"), NOW + 60 * SECOND, 60.0)
    assert exports.all_ids() == []
    for again in (exports, restarted(exports)):
        changed(again, None, ended)
        assert due(again, 99.0) == []


def test_an_end_in_the_future_does_not_keep_later_jobs_from_being_exported():
    exports = made()
    ended = shown(Status.COMPLETED, NOW * 2)
    changed(exports, ended, None, reason="retention")
    changed(exports, None, shown(Status.COMPLETED, NOW + SECOND), job_id="next")
    assert due(exports, 10.0) == ["next"]


@pytest.mark.parametrize(("reason", "dropped"), [("retention", 1), ("gone", 1), ("merged", 0)])
def test_a_job_that_leaves_memory_before_its_export_is_dropped_and_counted(reason, dropped):
    exports = made()
    end(exports)
    changed(exports, shown(Status.COMPLETED, NOW), None, reason=reason)
    assert (exports.dropped, exports.pending, due(exports, 99.0)) == (dropped, 0, [])
    assert exports.changed().jobs == {"j": None}


def test_a_job_that_leaves_memory_while_it_is_sent_is_not_dropped():
    exports = made()
    end(exports)
    due(exports, 10.0)
    changed(exports, shown(Status.COMPLETED, NOW), None, reason="retention")
    exports.finished("j")
    assert (exports.dropped, exports.pending, exports.all_ids()) == (0, 0, [])


def test_a_job_that_runs_again_is_exported_after_its_next_end():
    exports = made()
    end(exports)
    assert due(exports, 10.0) == ["j"]
    exports.withdraw("j")
    assert exports.pending == 0
    end(exports, now=20.0)
    assert due(exports, 30.0) == ["j"]


def test_a_checkpoint_gets_each_change_once_and_at_the_first_write_of_a_store_all():
    exports = made()
    end(exports)
    assert exports.changed().jobs == {"j": False}
    assert exports.changed().jobs == {}
    due(exports, 10.0)
    exports.finished("j")
    state = exports.changed()
    assert state.jobs == {"j": True}
    exports.mark_all()
    assert exports.changed().jobs == {"j": True}


def test_what_left_memory_while_the_daemon_was_stopped_is_forgotten():
    exports = made(PersistedExports(NOW, {"kept": True, "gone": True, "unsent": False}))
    exports.prune(exports.all_ids(), lambda job_id: job_id == "kept")
    assert (exports.all_ids(), exports.pending, exports.dropped) == (["kept"], 0, 1)
    assert exports.changed().jobs == {"gone": None, "unsent": None}
