"""`python benchmarks/documents.py`, in a tree: CPU time of the documents of a recording, with the code of that tree.

It prints one line of JSON with microseconds for each document: `whole` (build and encode), `patch` (build, compare and
encode), `gateway` (a document received, ready to serve). It also runs in `BASE`, which built dicts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

BASE = "25a5e9f"
"""The last commit before documents were of one type."""

ROUNDS = 5
"""Rounds of which the quickest counts."""


def main() -> None:
    sys.path[:0] = [str(Path.cwd())]
    pairs = _changes()
    work = _of_dicts(pairs) if Path("correlator/jobs/merge_patch.py").exists() else _of_types(pairs)
    least = dict.fromkeys(work, float("inf"))
    for _ in range(ROUNDS):
        for name, run in work.items():
            began = time.process_time()
            run()
            least[name] = min(least[name], (time.process_time() - began) / len(pairs) * 1e6)
    print(json.dumps(least))


def _changes() -> list[tuple[Any, Any]]:
    """What each change of the busy recording made of a job: (before, after)."""
    replay, virtual = import_module("tests.support.replay"), import_module("tests.support.virtual_replay")
    index = import_module("correlator.jobs.index").Index
    found: list[tuple[Any, Any]] = []
    apply = index.apply

    def applied(self: Any, facts: Any, now: int) -> Any:
        outcome = apply(self, facts, now)
        found.extend((c.old, c.new) for c in outcome.changes if c.old is not None and c.new is not None)
        return outcome

    index.apply = applied
    virtual.replayed(replay.load(replay.BUSY), (), 1.0)
    index.apply = apply
    return found


def _of_dicts(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Callable[[], object]]:
    encoding, merge_patch, parser = (
        import_module(f"correlator.jobs.{name}") for name in ("job_document", "merge_patch", "document_parser")
    )
    encode, document = encoding.encode, encoding.document
    bodies = [encode(document(new)) for _, new in pairs]
    return {
        "whole": lambda: [encode(document(new)) for _, new in pairs],
        "patch": lambda: [encode(merge_patch.difference(old, new)) for old, new in pairs],
        "gateway": lambda: [encode(document(parser.parse(body, 5, "dc1"))) for body in bodies],
    }


def _of_types(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Callable[[], object]]:
    encoding, received, encoder = (
        import_module(f"correlator.{name}") for name in ("jobs.encoding", "cluster.received", "model.encoder")
    )
    without_rev = [replace(encoding.document(new), rev=UNSET) for _, new in pairs]
    bodies = [encoding.compact(encoder.encode(document)) for document in without_rev]

    def whole() -> None:
        last: dict[str, Any] = {}
        for _, new in pairs:
            made = encoding.document(new, last.get(new.job_id))
            last[new.job_id] = encoding.Revision(new, made)
            encoder.encode_document(made)

    def patches() -> None:
        documents = encoding.Documents()
        for old, new in pairs:
            documents.patch(old, new)

    return {
        "whole": whole,
        "patch": patches,
        "gateway": lambda: [encoding.text(received.document(body, 5, "dc1")) for body in bodies],
    }


if __name__ == "__main__":
    main()
