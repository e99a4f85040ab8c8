"""What a hub delivers to its subscribers."""

from __future__ import annotations

import pytest

from correlator.jobs.index import Index
from correlator.model.facts import Reading
from correlator.model.rows import JobRecord
from correlator.pipeline.hub import Batch
from correlator.pipeline.local_hub import LocalHub


def test_a_subscriber_that_raises_takes_the_batch_from_no_other():
    index, got = Index(), list[tuple[str, int]]()
    hub = LocalHub(index)

    def fail(_: Batch) -> None:
        raise RuntimeError("a defect of the second subscriber")

    hub.subscribe(lambda batch: got.append(("first", batch.seq)))
    hub.subscribe(fail)
    hub.subscribe(lambda batch: got.append(("third", batch.seq)))
    with pytest.raises(RuntimeError, match="second"):
        hub.publish(index.apply([Reading("j", 1, JobRecord("j", status="running"), ())], 1))
    assert got == [("first", 1), ("third", 1)]
