"""The value of a job's key: its document without `rev`, in at most `MAX_VALUE` bytes.

The position of a message in the stream is the revision of its document, so a gateway adds `rev` and the value has
none. A message of NATS has a limit, and a gateway keeps every document in memory, so a larger document is cut: first
its metadata, then its errors, then its children, then its oldest steps. Each cut shows in the document, as
docs/protocol.md describes. A cut document is still one that `encoding` makes, so that a gateway can read it back.
"""

from __future__ import annotations

from msgspec import UNSET
from msgspec.structs import replace

from correlator.jobs import encoding, joblog, sizes
from correlator.model.encoder import encode_document
from correlator.model.published import PublishedJob
from correlator.model.rows import StepRecord

MAX_VALUE = 256_000
"""Bytes of a document in the stream."""

HEADERS = 2_000
"""Bytes of a message besides its payload, at most."""

MARGIN = 4_000
"""Bytes that a cut removes beyond the excess, for the marks that it leaves."""

KEPT_CHILDREN = 100
"""The number of children that a document names which is too large: the newest."""

MIN_STEP = 100
"""A step has at least this many bytes."""


def limit(max_payload: int) -> int:
    """Bytes of a value in a message of a server that accepts `max_payload` bytes."""
    return min(MAX_VALUE, max_payload - HEADERS)


def encode(shown: PublishedJob, limit: int = MAX_VALUE) -> bytes:
    """Return the value of a job's key, at most `limit` bytes. Raises: `ValueError` if it cannot be cut so far."""
    if len(shown.view.steps) * MIN_STEP > limit:  # Do not encode ten thousand steps to find that they are too many.
        shown = _with_newest_steps(shown, limit // MIN_STEP)
    value = _encoded(shown)
    for cut in (_cut_metadata, _cut_errors, _cut_children, _cut_steps):
        if len(value) <= limit:
            return value
        shown = cut(shown, len(value) - limit + MARGIN)
        value = _encoded(shown)
    if len(value) > limit:
        raise ValueError(f"a document of {len(value)} bytes cannot be cut to {limit}")
    return value


def _encoded(shown: PublishedJob) -> bytes:
    return encode_document(replace(encoding.document(shown), rev=UNSET))


def _cut_metadata(shown: PublishedJob, excess: int) -> PublishedJob:
    """Drop the largest members of the metadata, together at least `excess` bytes, or all that need not be kept."""
    metadata = joblog.metadata_object(shown.view.metadata) or {}
    earlier = metadata.pop(sizes.CUT, None)
    missing = {n: size for n, size in earlier.items() if isinstance(size, int)} if isinstance(earlier, dict) else {}
    rest = missing.pop(sizes.REST, 0)
    members = [(name, encoding.encode(value).decode()) for name, value in metadata.items()]
    largest_first = sorted(members, key=lambda member: len(member[1]), reverse=True)
    room = max(0, sum(sizes.size(name) + sizes.size(text) for name, text in members) - excess)
    text = sizes.cut_object(reversed(largest_first), missing, sizes.Sizes().keep, room, rest)
    return replace(shown, view=replace(shown.view, metadata=text))


def _cut_errors(shown: PublishedJob, _: int) -> PublishedJob:
    view = replace(shown.view, steps=tuple(map(_with_short_error, shown.view.steps)))
    if view.error is not None:
        error, full = sizes.cut_text(view.error, sizes.MAX_ERROR)
        if full is not None:
            view = replace(view, error=error, error_cut=view.error_cut or full)
    return replace(shown, view=view)


def _with_short_error(step: StepRecord) -> StepRecord:
    if step.error_message is None:
        return step
    error, full = sizes.cut_text(step.error_message, sizes.SHORT_ERROR)
    return step if full is None else replace(step, error_message=error, error_cut=step.error_cut or full)


def _cut_children(shown: PublishedJob, _: int) -> PublishedJob:
    return replace(shown, children=shown.children[-KEPT_CHILDREN:])


def _cut_steps(shown: PublishedJob, excess: int) -> PublishedJob:
    """Leave out the oldest steps, together at least `excess` bytes."""
    kept = len(shown.view.steps)
    for step in encoding.document(shown).steps.values():
        if excess <= 0:
            break
        excess -= len(encode_document(step))
        kept -= 1
    return _with_newest_steps(shown, kept)


def _with_newest_steps(shown: PublishedJob, count: int) -> PublishedJob:
    steps = shown.view.steps
    view = replace(shown.view, steps=steps[len(steps) - count :])
    return replace(shown, view=view, steps_cut=shown.steps_cut or len(steps))
