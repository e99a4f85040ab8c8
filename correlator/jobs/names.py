"""Any ID → the jobs that carry it.

An ID may name several jobs (constructed IDs carry a whole second): all are kept, and who owns the ID is asked of the
jobs themselves when it matters, so the answer does not depend on the order in which they became known.
"""

from __future__ import annotations

from collections.abc import Iterable


class Names:
    """One namespace of IDs. One claimant is stored bare: nearly every ID has just one."""

    def __init__(self) -> None:
        self._claims: dict[str, str | tuple[str, ...]] = {}

    def get(self, name: str) -> tuple[str, ...]:
        """The jobs that carry `name`, in no order."""
        claims = self._claims.get(name, ())
        return (claims,) if isinstance(claims, str) else claims

    def move(self, job_id: str, old: Iterable[str], new: Iterable[str]) -> set[str]:
        """`job_id` carried `old` and now carries `new`; returns the names that changed hands."""
        before, after = set(old), set(new)
        for name in before - after:
            self._set(name, tuple(c for c in self.get(name) if c != job_id))
        for name in after - before:
            self._set(name, (*self.get(name), job_id))
        return before ^ after

    def _set(self, name: str, claims: tuple[str, ...]) -> None:
        if not claims:
            self._claims.pop(name, None)
        else:
            self._claims[name] = claims[0] if len(claims) == 1 else claims

    def __len__(self) -> int:
        return len(self._claims)
