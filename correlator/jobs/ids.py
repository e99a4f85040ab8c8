"""The IDs of jobs in any case, and a map from an external or context ID to the jobs that carry it, newest first.

Several jobs may carry one ID: constructed IDs contain the time in whole seconds, and a context has many jobs. The map
keeps all of them. The newest job owns the ID, regardless of the order in which the jobs became known.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable

from correlator.model.published import AgeKey


class OwnIds:
    """The IDs of jobs, by which a row may name its job in another case: equal IDs for the columns' collation.

    `ids` may change. Call `add` for each ID that it gets, and `discard` for each that it loses.
    """

    def __init__(self, ids: Collection[str]) -> None:
        self._ids = ids
        self._folded: dict[str, str] = {}
        """Those of `ids` that are not written as `casefold` writes them, by what that returns: usually none."""
        for job_id in ids:
            self.add(job_id)

    def add(self, job_id: str) -> None:
        if (folded := job_id.casefold()) != job_id:
            self._folded[folded] = job_id

    def discard(self, job_id: str) -> None:
        if self._folded.get(folded := job_id.casefold()) == job_id:
            del self._folded[folded]

    def of(self, name: str) -> str:
        """The ID that is equal to `name`, or else equal in another case; `name` itself if there is none."""
        if name in self._ids:
            return name
        folded = name.casefold()
        return folded if folded in self._ids else self._folded.get(folded, name)


class Names:
    """One namespace of IDs. A change costs a binary search per ID, however many jobs carry it.

    `age_of` returns the `JobView.age_key` of a job that carries an ID. Call `move` when that key changes.
    """

    def __init__(self, age_of: Callable[[str], AgeKey]) -> None:
        self._age_of = age_of
        self._claims: dict[str, str | list[AgeKey]] = {}
        """A single claimant, the usual case, is stored as its job ID; several are stored by age, newest last."""

    def get(self, name: str) -> tuple[str, ...]:
        """The jobs that carry `name`, newest first."""
        claims = self._claims.get(name, [])
        return (claims,) if isinstance(claims, str) else tuple(key[-1] for key in reversed(claims))

    def owner(self, name: str) -> str | None:
        """The newest job that carries `name`, if any."""
        claims = self._claims.get(name)
        return claims if claims is None or isinstance(claims, str) else claims[-1][-1]

    def has_any(self, names: Iterable[str]) -> bool:
        """True if a job carries one of `names`."""
        return not self._claims.keys().isdisjoint(names)

    def claim(self, job_id: str, names: Iterable[str]) -> None:
        """Have a new job carry `names`, which no other job carries."""
        for name in names:
            self._claims[name] = job_id

    def move(
        self, job_id: str, old: Iterable[str], was: AgeKey, new: Iterable[str], now: AgeKey
    ) -> dict[str, set[str]]:
        """Replace the IDs `old` that `job_id` carried at age `was` by the IDs `new` at age `now`.

        Returns the IDs that it gained, lost, or carries at another age. The value of each is the previous and the new
        owner of the ID if the owner changed, else an empty set.
        """
        before, after = set(old), set(new)
        touched = before | after if was != now else before ^ after
        owners: dict[str, set[str]] = {}
        for name in touched:
            first = self.owner(name)
            if name in before:
                self._remove(name, job_id, was)
            if name in after:
                self._add(name, job_id, now)
            last = self.owner(name)
            owners[name] = {owner for owner in (first, last) if owner is not None} if first != last else set()
        return owners

    def _add(self, name: str, job_id: str, key: AgeKey) -> None:
        claims = self._claims.get(name)
        if claims is None:
            self._claims[name] = job_id
            return
        if isinstance(claims, str):
            claims = self._claims[name] = [self._age_of(claims)]
        insort(claims, key)

    def _remove(self, name: str, job_id: str, key: AgeKey) -> None:
        claims = self._claims.get(name)
        if claims == job_id:
            del self._claims[name]
        elif isinstance(claims, list):
            del claims[bisect_left(claims, key)]
            if len(claims) == 1:
                self._claims[name] = claims[0][-1]
