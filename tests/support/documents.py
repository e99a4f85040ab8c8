"""Documents as clients get them, and as a gateway reads them."""

from __future__ import annotations

from typing import Any

import orjson

from correlator.cluster import received
from correlator.jobs import encoding
from correlator.model import encoder
from correlator.model.published import PublishedJob


def document_text(shown: PublishedJob, *, steps: bool = True) -> bytes:
    """The document of a job as it is sent."""
    return encoding.text(shown, steps=steps)


def document_of(shown: PublishedJob, *, steps: bool = True) -> dict[str, Any]:
    """The document of a job as a client parses it."""
    found: dict[str, Any] = orjson.loads(document_text(shown, steps=steps))
    return found


def patch_of(old: PublishedJob, new: PublishedJob) -> dict[str, Any]:
    """The merge patch between the documents of two revisions, as a client parses it."""
    found: dict[str, Any] = orjson.loads(encoder.encode(encoder.patch(encoding.document(old), encoding.document(new))))
    return found


def read_document(body: bytes, rev: int = 0, instance: str = "") -> PublishedJob:
    """A document as a gateway reads it."""
    return received.document(body, rev, instance)
