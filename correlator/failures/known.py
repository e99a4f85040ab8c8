"""What operators say of failures that they know: the tables `[[failures.known]]`."""

from __future__ import annotations

from collections.abc import Sequence

from correlator.failures.patterns import compiled
from correlator.model.replies import OperatorNote


class KnownFailures:
    """Finds the note of a failure: the first whose fingerprint or pattern fits.

    `notes`: (fingerprint, pattern, note); one of the first two is empty.
    """

    def __init__(self, notes: Sequence[tuple[str, str, OperatorNote]] = ()) -> None:
        self._notes = {fingerprint: note for fingerprint, _, note in reversed(notes) if fingerprint}
        self._patterns = [(compiled(pattern), note) for _, pattern, note in notes if pattern]

    def note(self, fingerprint: str | None, text: str) -> OperatorNote | None:
        """`text`: that of the failure, as documents have it. A fingerprint goes before patterns."""
        if fingerprint and (note := self._notes.get(fingerprint)) is not None:
            return note
        return next((note for pattern, note in self._patterns if pattern.search(text)), None)
