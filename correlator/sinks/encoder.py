"""The messages of one change, each encoded once for all who get the same. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from correlator.jobs import wire
from correlator.jobs.model import Change
from correlator.jobs.shapes import Document
from correlator.sinks.messages import Message


@dataclass(slots=True)
class Told:
    """What one reader is to hear of a change. `whole`: some subscription does not have the job yet."""

    subs: list[int] = field(default_factory=list)
    whole: bool = False
    leaves: dict[str, list[int]] = field(default_factory=dict)


class Encoder:
    """Of one change. Called with what a reader is to hear, it gives the messages that tell it."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._known: dict[Any, Message] = {}
        self._document: Document | None = None
        self._put: bytes | None = None
        self._patch: bytes | None = None

    def state(self, sub: int, *, whole: bool) -> Message:
        """For those with one subscription, that has the job now."""
        return self._once(("put" if whole else "delta", sub), self._state)

    def __call__(self, told: Told) -> Iterator[Message]:
        if told.subs and self._change.new is not None:
            yield self._once(("put" if told.whole else "delta", *told.subs), self._state)
        for reason in sorted(told.leaves):
            yield self._once((reason, *told.leaves[reason]), self._leave)

    def _once(self, key: tuple[Any, ...], make: Callable[[str, list[int]], bytes]) -> Message:
        message = self._known.get(key)
        if message is None:
            kind, *subs = key
            message = self._known[key] = Message(make(kind, subs), self._change.seq)
        return message

    def _state(self, kind: str, subs: list[int]) -> bytes:
        old, new, seq = self._change.old, self._change.new, self._change.seq
        assert new is not None
        if self._document is None:
            self._document = wire.document(new)
        if kind == "delta" and old is not None:
            if self._patch is None:
                self._patch = wire.encode(wire.patch(wire.document(old), self._document))
            return wire.delta(subs, seq, new, old.rev, self._patch)
        if self._put is None:
            self._put = wire.encode(self._document)
        return wire.put(subs, seq, new, self._put)

    def _leave(self, reason: str, subs: list[int]) -> bytes:
        return wire.delete(subs, self._change.seq, self._change.job_id, reason)
