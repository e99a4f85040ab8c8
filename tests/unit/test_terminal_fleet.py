"""What the terminal prints of jobs that name their appliance, and that nothing changes where they do not."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from correlator.client.replica import Update
from correlator.terminal import watch
from correlator.terminal.listing import FollowedLines, Form, Query, header, plain, plain_lines, table
from correlator.terminal.screen import Theme
from correlator.terminal.show import fields
from correlator.terminal.watch import WatchState
from tests.support.job_documents import NOW, document, update

FORM = Form("plain")


def rendered(jobs: list[Any], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(table(jobs, width, NOW, Theme()))
    return console.export_text().splitlines()


def followed(query: Query, *updates: Update) -> list[str]:
    out = io.StringIO()
    lines = FollowedLines(query, FORM, out)
    for one in updates:
        lines.handle(one)
    return out.getvalue().splitlines()


def test_the_table_has_a_column_of_appliances_where_a_job_names_one():
    head, row = rendered([document(instance="dc1")], 100)
    assert row.index("dc1") == head.index("APPLIANCE")
    assert "APPLIANCE" not in rendered([document()], 100)[0]
    assert all(
        len(line.rstrip()) <= width for width in (40, 60, 80) for line in rendered([document(instance="d" * 64)], width)
    )


def test_plain_lines_end_with_the_appliance_where_one_is_named_or_asked_for():
    named, none = document(instance="dc1"), document("b")
    assert [line.split("\t")[13:] for line in plain_lines([named, none], FORM, Theme())] == [
        ["INSTANCE"],
        ["dc1"],
        ["-"],
    ]
    assert next(plain_lines([none], FORM, Theme())) == header()
    assert list(plain_lines([], FORM, Theme(), fleet=True)) == [header(fleet=True)]
    assert plain(named, NOW, Theme()) == plain(none | {"job_id": named["job_id"]}, NOW, Theme())


def test_a_followed_list_keeps_the_columns_that_its_first_jobs_had():
    lines = followed(Query(), update(synced=False), update(document("a", instance="dc1")), update(document("b")))
    assert [line.split("\t")[13:] for line in lines] == [["INSTANCE"], ["dc1"], ["-"]]
    later = followed(Query(), update(document("a")), update(document("a"), document("b", instance="dc1")))
    assert {len(line.split("\t")) for line in later} == {13}
    assert followed(Query(instance=("dc1",)), update()) == [header(fleet=True)]


def test_the_option_is_a_parameter_of_the_request_and_a_member_of_the_subscription():
    query = Query(instance=("dc1", "dc2"))
    assert query.parameters() == {"instance": ("dc1", "dc2")}
    assert query.wanted().instance == ("dc1", "dc2")
    assert Query().wanted().instance is None


def test_show_watch_and_the_tree_name_the_appliance():
    job = document(instance="dc1")
    assert ("instance", "dc1") in [(label, value.plain) for label, value in fields(job, NOW, Theme())]
    assert "instance" not in [label for label, _ in fields(document(), NOW, Theme())]
    (event, *_) = WatchState([job["job_id"]]).apply(update(job))
    assert event.text == "unified-live-failover pgtest2 on dc1 running"
    (title, *_) = watch.tree_lines([watch.Branch("gui-1", job)], watch.Frame(80, 0, NOW))
    assert title.plain.startswith("● pgtest2  unified-live-failover  on dc1 ")
