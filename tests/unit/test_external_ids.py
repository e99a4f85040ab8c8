"""The external IDs of a job are bounded: the newest are known and counted, in whichever order rows are read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.jobs import fold, joblog
from correlator.jobs.index import Index
from correlator.model.document import MAX_ID
from correlator.model.facts import Entry, Job, Reading
from correlator.model.rows import JobRecord, LegacyRecord, LogRow

NOW = 1_758_550_000_000_000


def named(number: int, *names: str) -> Entry:
    return Entry(number, NOW + number, "INFO", "x", number, "j", external_ids=names)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "MAX_EXTERNAL_IDS", 3)
    monkeypatch.setattr(fold, "MAX_EXTERNAL_BYTES", 6)


rows = st.lists(st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "e", "ff", "g"]), max_size=2), max_size=12)


@pytest.mark.usefixtures("few")
@given(rows, st.randoms(use_true_random=False))
def test_the_same_ids_are_known_in_whichever_order_and_parts_rows_are_read(made, chance):
    entries = [named(n, *dict.fromkeys(names)) for n, names in enumerate(made, 1)]
    at_once = fold.fold_rows(Job("j"), entries) if entries else Job("j")
    shuffled = [*entries, *chance.sample(entries, len(entries) // 2)]
    chance.shuffle(shuffled)
    in_parts = Job("j")
    while shuffled:
        size = chance.randint(1, 3)
        in_parts, shuffled = fold.fold_rows(in_parts, shuffled[:size]), shuffled[size:]
    assert in_parts == at_once
    newest = {name: n for n, entry in enumerate(entries) for name in entry.external_ids}
    ordered = sorted(newest, key=lambda name: (newest[name], name), reverse=True)
    kept = [name for n, name in enumerate(ordered) if n < 3 and sum(map(len, ordered[: n + 1])) <= 6]
    assert at_once.external_ids == tuple(sorted(kept))
    cut = fold.view(at_once).external_ids_cut
    assert cut == (len(newest) if len(kept) < len(newest) else None)


def test_an_id_that_is_too_long_for_the_appliance_is_none():
    long = "x" * (MAX_ID + 1)
    entry, bad = joblog.read(LogRow(1, "x", NOW, external_job_id=long), 1)
    assert (entry.external_ids, bad) == ((), ("external_job_id_invalid",))
    assert joblog.external_ids(long, None) == []


def test_an_id_that_is_not_known_any_more_does_not_publish_the_legacy_row_of_its_job():
    index = Index()
    index.loading = False
    index.apply_legacy([LegacyRecord(1, "gui", "creating_vm", created_at=NOW, apart=True)], [], NOW)
    index.apply([Reading("j", 1, JobRecord("j", status="running", started_at=NOW), ()), named(1, "gui")], NOW)
    assert {shown.job_id for shown in index.published.all()} == {"j"}
    index.apply([named(n, f"id-{n}") for n in range(2, 200)], NOW)
    assert index.published.owner("gui") is None
    assert index.published.owner("id-199") == "j"
    index.apply_legacy([LegacyRecord(1, "gui", "creating_vm", created_at=NOW)], [], NOW)
    assert {shown.job_id for shown in index.published.all()} == {"j"}
