"""Messages of the stream as docs/protocol.md describes them, with only the members that clients need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.support.client_fold import Document


def job(job_id: str, rev: int, **members: Any) -> Document:
    return {"job_id": job_id, "rev": rev, "status": "running", **members}


def welcome(epoch: str = "e", *, resumed: bool = False, seq: int = 0) -> Document:
    return {"type": "welcome", "epoch": epoch, "seq": seq, "resumed": resumed, "ping_seconds": 25,
            "at": "2025-09-22T10:00:00.000000Z"}  # fmt: skip


def snapshot(sub: int, *jobs: Document, seq: int = 10) -> Document:
    return {"type": "snapshot", "sub": sub, "seq": seq, "more": False, "jobs": list(jobs)}


def synced(sub: int, seq: int = 10) -> Document:
    return {"type": "synced", "sub": sub, "seq": seq, "count": 0, "unknown": []}


def put(document: Document, seq: int, sub: Iterable[int] = (1,)) -> Document:
    return {"type": "put", "sub": list(sub), "seq": seq, "job_id": document["job_id"], "rev": document["rev"],
            "job": document}  # fmt: skip


def delta(job_id: str, base: int, rev: int, sub: Iterable[int] = (1,), **members: Any) -> Document:
    return {"type": "delta", "sub": list(sub), "seq": rev, "job_id": job_id, "base": base, "rev": rev, "set": members}
