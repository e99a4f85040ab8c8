"""Jobs that come and leave for long, at a pace that a test has: what NATS keeps of them stays as large as it was."""

from __future__ import annotations

from typing import Any

import pytest

from correlator.cluster import keys, streams
from correlator.sinks.cluster import documents
from tests.support.cluster_harness import collector
from tests.support.eventually import eventually
from tests.support.nats import Nats

AT_ONCE, ROUNDS = 200, 120
"""Jobs of one round, which replace those of the round before."""

BLOCK = 8_400_000
"""Bytes of a file of NATS, which it writes anew once most of it was removed."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


async def test_the_files_of_nats_do_not_grow_while_jobs_come_and_leave(nats: Nats, monkeypatch: pytest.MonkeyPatch):
    """The markers of removed jobs stay for a second in place of a day."""
    monkeypatch.setattr(documents, "PURGE", documents.PURGE | {"Nats-TTL": "1s"})
    written, largest = 0, 0
    async with collector(nats) as one, one.writing():
        names: list[str] = []
        before = stored(nats)
        for number in range(ROUNDS):
            gone, names = names, [f"{number}-{n}" for n in range(AT_ONCE)]
            one.change(*names)
            one.remove(*gone)
            await eventually(lambda: one.sink.describe()["pending"] == 0)
            after = stored(nats)
            written += max(0, after - before)
            before, largest = after, max(largest, after)
        assert written > 3 * BLOCK
        assert largest < 2 * BLOCK

        async def has_no_marker() -> bool:
            info: Any = await streams.info(one.connection, keys.STATE)
            return bool(info["state"]["messages"] == AT_ONCE + 2)  # the owner and the epoch

        await eventually(has_no_marker)


def stored(nats: Nats) -> int:
    """Bytes of all files of the streams."""
    found = 0
    for file in (nats.folder / "js").rglob("*"):
        try:
            found += file.stat().st_size
        except FileNotFoundError:  # NATS has replaced it
            continue
    return found
