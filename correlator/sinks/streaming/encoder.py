"""The messages of one change, each encoded once for all clients that get the same one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from correlator.jobs import job_document
from correlator.jobs.encoded import Documents
from correlator.jobs.model.changes import Change
from correlator.sinks.streaming.messages import Message


@dataclass(slots=True)
class Recipients:
    """The subscriptions of one client that a change concerns.

    `subs`: those that the job matches. `whole`: one of them does not have the job yet, so the whole document is sent.
    `leaves`: those that the job leaves, by reason.
    """

    subs: list[int] = field(default_factory=list)
    whole: bool = False
    leaves: dict[str, list[int]] = field(default_factory=dict)


class Encoder:
    """Encodes the messages of one change. A call yields the messages for one client, each encoded only once."""

    __slots__ = ("_change", "_documents", "_known", "_patch")

    def __init__(self, change: Change, documents: Documents) -> None:
        self._change = change
        self._documents = documents
        self._known: dict[tuple[str, tuple[int, ...]], Message] = {}
        self._patch: bytes | None = None

    def state(self, sub: int, *, whole: bool) -> Message:
        """The message for a client with one subscription, which the job matches."""
        return self._once("put" if whole else "delta", (sub,), self._state)

    def __call__(self, recipients: Recipients) -> Iterator[Message]:
        if recipients.subs and self._change.new is not None:
            yield self._once("put" if recipients.whole else "delta", tuple(recipients.subs), self._state)
        for reason in sorted(recipients.leaves):
            yield self._once(reason, tuple(recipients.leaves[reason]), self._leave)

    def _once(self, kind: str, subs: tuple[int, ...], make: Callable[[str, tuple[int, ...]], bytes]) -> Message:
        message = self._known.get((kind, subs))
        if message is None:
            message = self._known[kind, subs] = Message(make(kind, subs), self._change.seq)
        return message

    def _state(self, kind: str, subs: tuple[int, ...]) -> bytes:
        old, new, seq = self._change.old, self._change.new, self._change.seq
        assert new is not None
        if kind == "delta" and old is not None:
            if self._patch is None:
                self._patch = self._documents.patch(old, new, goes_on=self._change.goes_on)
            return job_document.delta(subs, seq, new, old.rev, self._patch)
        return job_document.put(subs, seq, new, self._documents.encoded(new))

    def _leave(self, reason: str, subs: tuple[int, ...]) -> bytes:
        return job_document.delete(subs, self._change.seq, self._change.job_id, reason)
