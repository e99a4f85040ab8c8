"""The external IDs of a job are bounded: the newest are known and counted, in whichever order rows are read."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest

from correlator.jobs import fold, joblog
from correlator.jobs.fold import MAX_EXTERNAL_BYTES, MAX_EXTERNAL_IDS
from correlator.jobs.index import Index
from correlator.model.document import MAX_ID
from correlator.model.facts import Entry, Job, Reading
from correlator.model.rows import JobRecord, LegacyRecord, LogRow

NOW = 1_758_550_000_000_000


def named(number: int, *names: str) -> Entry:
    return Entry(number, NOW + number, "INFO", "x", number, "j", external_ids=names)


@pytest.mark.parametrize("count", [2, 40, 41, MAX_EXTERNAL_IDS, MAX_EXTERNAL_IDS + 1, 130])
@pytest.mark.parametrize("size", [3, MAX_EXTERNAL_BYTES // MAX_EXTERNAL_IDS, 200, MAX_ID - 1])
@pytest.mark.parametrize("more", [0, 1])
def test_the_same_ids_are_known_in_whichever_order_and_parts_rows_are_read(count, size, more):
    """Of IDs of one size, one of them longer; `count` and `size` meet both bounds, and pass them by one."""
    chance = random.Random(f"{count} {size} {more}")
    ids = [f"{n:03}".ljust(size + (more if n == count // 2 else 0), "x") for n in range(count)]
    made = [chance.sample(ids, chance.randint(0, 2)) for _ in range(20)] + [[name] for name in ids]
    chance.shuffle(made)
    entries = [named(n, *dict.fromkeys(names)) for n, names in enumerate(made, 1)]
    at_once = fold.fold_rows(Job("j"), entries) if entries else Job("j")
    shuffled = [*entries, *chance.sample(entries, len(entries) // 2)]
    chance.shuffle(shuffled)
    in_parts = Job("j")
    while shuffled:
        part = chance.randint(1, 30)
        in_parts, shuffled = fold.fold_rows(in_parts, shuffled[:part]), shuffled[part:]
    assert in_parts == at_once
    newest = {name: n for n, entry in enumerate(entries) for name in entry.external_ids}
    ordered = sorted(newest, key=lambda name: (newest[name], name), reverse=True)
    sizes = accumulate(map(len, ordered))
    kept = [n for n, size in zip(ordered, sizes, strict=True) if size <= MAX_EXTERNAL_BYTES][:MAX_EXTERNAL_IDS]
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
