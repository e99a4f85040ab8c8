"""What a terminal shows of jobs while the recording is replayed: bars that never go back, and ends that settle."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import slow_replay
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.past_runs import write_past_runs
from tests.support.replay import MariaDBReplayer, Transaction
from tests.support.settled_ends import assert_ends_settle, in_documents, in_words, lasting, watched
from tests.support.slow_replay import SECONDS, SLOWER
from tests.support.terminal import Command, commands_against

ROW = re.compile(r"(?P<percent>\d+)% +(?P<words>~\d|soon|\?)(?P<more>.*) (?P<job>[0-9a-f]{8}-[0-9a-f-]{27})\b")
"""A row of `jobs` with a forecast."""


class Reading(NamedTuple):
    """What a terminal showed of a job that has a forecast."""

    job_id: str
    at: float
    percent: int
    words: str


@pytest.mark.long
async def test_in_a_terminal_no_bar_of_a_slow_replay_goes_back_and_ends_settle(
    database: Database, recording: list[Transaction], tmp_path: Path
):
    silent = slow_replay.without_percent(recording, but_of="migration")
    await write_past_runs(database, slow_replay.past_runs(silent, SLOWER, copies=5))
    part = slow_replay.until(silent, SECONDS)
    longest = slow_replay.longest(part, 5)
    async with Daemon(tmp_path, database__url=database.url) as daemon:
        await eventually(lambda: "forecasts: read " in daemon.log())
        async with commands_against(daemon.url) as run, MariaDBReplayer.connect(database) as replayer:
            table = await run("jobs", "-w", columns=160, rows=100)
            documents = await run("jobs", "-w", "-o", "json")
            tree = await run("watch", *longest, columns=100, rows=120)
            await eventually(lambda: "STATUS" in table.out)
            await eventually(lambda: "waiting for" in tree.out)
            lives = await slow_replay.replay(replayer, part, SLOWER)
            await eventually(lambda: tree.process.returncode is not None)
            assert await tree.end() == 0
            in_table, in_tree = [*rows(table)], [*branches(tree, longest)]
            published = [*map(json.loads, documents.out.splitlines())]
    for readings in (in_table, in_tree):
        assert falls(readings) == []
        said = [(one.job_id, end) for one in readings if (end := in_words(one.at, one.words)) is not None]
        assert_ends_settle(watched(lives, said), at_least=len(longest))
    assert_ends_settle(watched(lives, lasting(lives, in_documents(published))), at_least=len(longest))


def rows(table: Command) -> Iterator[Reading]:
    """What the rows of `jobs -w` showed."""
    for at, lines in table.frames():
        for line in filter(None, map(ROW.search, lines)):
            yield Reading(line["job"], at, int(line["percent"]), line["words"] + line["more"])


def branches(tree: Command, job_ids: Sequence[str]) -> Iterator[Reading]:
    """What `watch` showed of these jobs: a title that begins at the margin, then the bar, then the end in words."""
    for at, lines in tree.frames():
        titles = [n for n, line in enumerate(lines) if not line.startswith(" ")]
        for job_id, title in zip(job_ids, titles, strict=False):
            bar, words = [*lines[title + 1 : title + 3], "", ""][:2]
            if "left (by" in words or "any moment" in words:
                yield Reading(job_id, at, int(re.findall(r"(\d+)% ", bar)[0]), words)


def falls(readings: Iterable[Reading]) -> list[tuple[Reading, Reading]]:
    """The percents that went back."""
    ordered = itertools.pairwise(sorted(readings, key=lambda one: one.job_id))
    return [(a, b) for a, b in ordered if a.job_id == b.job_id and b.percent < a.percent]
