"""The published jobs as clients read them, the IDs that lead to them, and the children of each.

A job is published as a `PublishedJob`: its view, and what other jobs and time add to it (children, `stalled`). An index
writes the directory of a daemon (`PublishedJobs`), a stream of documents that of a gateway (`remote.RemoteJobs`).

Several jobs may carry one external or context ID: constructed IDs contain the time in whole seconds, and a context has
many jobs. The directory keeps all of them. The newest job owns the ID, regardless of the order in which the jobs became
known.

The document of a job that starts thousands of others would take a megabyte and change with each of them. So it names
the newest `MAX_CHILDREN` children and carries the number of all: those that the tables list, and those in memory that
the last table query did not return.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from typing import TypeAlias

from msgspec import Struct

from correlator.model.facts import MAX_CHILDREN, Reading
from correlator.model.published import NO_TITLES, AgeKey, JobView, PublishedJob, Titles
from correlator.model.replies import Resolved
from correlator.model.rows import Micros

NO_AGE: AgeKey = (0, 0, "")
"""The age key of a job that carries no ID."""

Place: TypeAlias = tuple[Micros, str]
"""The position of a job in the order of a list: (started_at, id)."""


def place_of(shown: PublishedJob) -> Place:
    view = shown.view
    return (view.started_at or 0, view.job_id)


class JobDirectory(ABC):
    """The published jobs by job ID. Anybody may read; only its owner changes it.

    `seq`: the position in the stream of changes. A job's ID resolves before an external ID, that before a context ID,
    and a legacy ID last.
    """

    def __init__(self) -> None:
        self.seq = 0
        self._jobs: dict[str, PublishedJob] = {}
        self.get = self._jobs.get
        """Returns the published job with this UUID or legacy ID, if it is in memory."""
        self._own_ids = OwnIds(self._jobs)
        self._order = Order()
        self._external, self._contexts = Names(self._age_key), Names(self._age_key)

    def __len__(self) -> int:
        return len(self._jobs)

    def all(self) -> Iterable[PublishedJob]:
        return self._jobs.values()

    def newest(self, before: Place | None, most: int) -> list[PublishedJob]:
        """At most `most` jobs before that place, the newest first. Its cost does not depend on how many there are."""
        return [self._jobs[job_id] for _, job_id in self._order.newest(before, most)]

    def owner(self, external_id: str) -> str | None:
        """The newest JobLog job with this external ID."""
        return self._external.owner(external_id)

    def carriers(self, name: str) -> tuple[str, ...]:
        """All jobs that carry `name` as an external or context ID."""
        return self._external.get(name) + self._contexts.get(name)

    def is_context(self, name: str) -> bool:
        """True if `name` is the context of a job in memory."""
        return self._contexts.owner(name) is not None

    def resolve(self, name: str) -> Resolved | None:
        """Resolve an ID among the jobs in memory."""
        found = self._jobs.get(name)
        if found is not None and found.view.source == "joblog":
            return Resolved(name, "uuid", ())
        if owners := self._external.get(name):
            return Resolved(owners[0], "external_id", owners[1:])
        if owners := self._contexts.get(name):
            return Resolved(owners[0], "context_id", owners[1:])
        return Resolved(name, "legacy", ()) if found is not None else None

    def in_its_case(self, name: str) -> str:
        """The ID of the job in memory whose ID is `name` in any case; `name` itself if there is none."""
        return self._own_ids.of(name)

    def names_lead_to(self, name: str, job_id: str) -> bool:
        """True if `name` resolves to `job_id`. Unlike `resolve`, it costs the same however many jobs carry that ID."""
        found = self._jobs.get(name)
        if found is not None and found.view.source == "joblog":
            return name == job_id
        owner = self._external.owner(name) or self._contexts.owner(name)
        return owner == job_id if owner is not None else found is not None and name == job_id

    @abstractmethod
    def complete_since(self, now: Micros) -> Micros:
        """All jobs that started at or after this time are in memory. Times are in microseconds since 1970."""

    def expects(self, shown: PublishedJob, now: Micros) -> bool:
        """True if a legacy job that was read from the database is so new that memory is about to have it.

        Until then nobody knows whether a JobLog job has its ID, with which it would be merged.
        """
        return shown.view.source == "legacy" and (shown.view.started_at or 0) >= self.complete_since(now)

    # -- called by the owner

    def set_job(self, new: PublishedJob, old: PublishedJob | None) -> None:
        """Set a job to a newer revision. `old`: the one before, None for a new job. `move_names` is separate."""
        job_id = new.view.job_id
        self._jobs[job_id] = new
        if old is None:
            self._own_ids.add(job_id)
            self._order.add(place_of(new))
        elif old.view.started_at != new.view.started_at:
            self._order.remove(place_of(old))
            self._order.add(place_of(new))

    def drop_job(self, job_id: str) -> PublishedJob | None:
        """Remove a job. Returns it; None if it was not there. `move_names` is separate."""
        old = self._jobs.pop(job_id, None)
        if old is not None:
            self._own_ids.discard(job_id)
            self._order.remove(place_of(old))
        return old

    def move_names(self, job_id: str, old: JobView | None, new: JobView | None) -> tuple[Iterable[str], set[str]]:
        """Replace the IDs of a job. Returns the affected external IDs, and all previous and new owners of IDs."""
        views = [v if v is not None and v.source == "joblog" else None for v in (old, new)]
        before, after = (v.external_ids if v is not None else () for v in views)
        contexts = [(v.context_id,) if v is not None and v.context_id else () for v in views]
        if old is None and new is not None and self._claim(job_id, after, contexts[1]):
            return after, set()
        if old is not None and new is None and self._release(job_id, before, contexts[0]):
            return before, set()
        was, is_now = (v.age_key if v is not None else NO_AGE for v in views)
        external = self._external.move(job_id, before, was, after, is_now) if before or after else {}
        context = self._contexts.move(job_id, contexts[0], was, contexts[1], is_now) if any(contexts) else {}
        owners = set[str]().union(*external.values(), *context.values())
        passed = [name for name, changed in (*external.items(), *context.items()) if changed]
        return external, owners.union(self._others(passed if None not in views else [*passed, job_id]))

    def _claim(self, job_id: str, external: Collection[str], contexts: Collection[str]) -> bool:
        """Have a new job carry these IDs. False, and nothing changes, if one of its IDs may lead to another job.

        It does what `Names.move` does, without its sets: nearly all IDs lead to one job.
        """
        names = (*external, *contexts)
        if not self._jobs.keys().isdisjoint(names):
            return False
        if self._external.has_any((job_id, *names)) or self._contexts.has_any((job_id, *names)):
            return False
        self._external.claim(job_id, external)
        self._contexts.claim(job_id, contexts)
        return True

    def _release(self, job_id: str, external: Collection[str], contexts: Collection[str]) -> bool:
        """Have a job that leaves carry these IDs no more. False, as for `_claim`."""
        if not self._jobs.keys().isdisjoint((job_id, *external, *contexts)):
            return False
        if self._external.has_any((job_id, *contexts)) or self._contexts.has_any((job_id, *external)):
            return False
        if not (self._external.are_of(job_id, external) and self._contexts.are_of(job_id, contexts)):
            return False
        self._external.release(external)
        self._contexts.release(contexts)
        return True

    def _others(self, names: Iterable[str]) -> Iterator[str]:
        """The jobs that may gain or lose a name because another kind of ID with that name changed hands."""
        for name in names:
            owners = self._external.owner(name), self._contexts.owner(name), name if name in self._jobs else None
            yield from filter(None, owners)

    def _age_key(self, job_id: str) -> AgeKey:
        return self._jobs[job_id].view.age_key


def names_differ(old: JobView, new: JobView) -> bool:
    """True if the IDs of a job, or the age by which they resolve to it, have changed."""
    if (old.external_ids, old.context_id, old.source) != (new.external_ids, new.context_id, new.source):
        return True
    same_steps = old.steps is new.steps and old.first_step == new.first_step
    same_age = same_steps and old.started_at == new.started_at and old.terminal == new.terminal
    return not same_age and old.age_key != new.age_key


class Order:
    """The places of jobs, sorted, in chunks of at most `CHUNK`: an insertion moves few of them, however many there are.

    Invariant: no chunk is empty, and `_last` has the last place of each.
    """

    CHUNK = 1_000

    def __init__(self) -> None:
        self._chunks: list[list[Place]] = []
        self._last: list[Place] = []

    def add(self, place: Place) -> None:
        if not self._chunks:
            self._chunks, self._last = [[place]], [place]
            return
        at = min(bisect_left(self._last, place), len(self._last) - 1)
        chunk = self._chunks[at]
        insort(chunk, place)
        if len(chunk) > self.CHUNK:
            half = len(chunk) // 2
            self._chunks[at : at + 1] = [chunk[:half], chunk[half:]]
            self._last.insert(at, chunk[half - 1])
            at += 1
        self._last[at] = self._chunks[at][-1]

    def remove(self, place: Place) -> None:
        at = bisect_left(self._last, place)
        chunk = self._chunks[at]
        del chunk[bisect_left(chunk, place)]
        if chunk:
            self._last[at] = chunk[-1]
        else:
            del self._chunks[at], self._last[at]

    def newest(self, before: Place | None, most: int) -> list[Place]:
        """At most `most` places before that one, the newest first."""
        at = bisect_left(self._last, before) if before is not None else len(self._chunks)
        found: list[Place] = []
        if before is not None and at < len(self._chunks):
            end = bisect_left(self._chunks[at], before)
            found = self._chunks[at][max(0, end - most) : end][::-1]
        while len(found) < most and at:
            at -= 1
            found += self._chunks[at][len(found) - most :][::-1]
        return found


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

    def are_of(self, job_id: str, names: Iterable[str]) -> bool:
        """True if this job carries all of `names`, and no other job one of them."""
        return all(self._claims.get(name) == job_id for name in names)

    def release(self, names: Iterable[str]) -> None:
        """Have nobody carry `names`, each of which one job carries."""
        for name in names:
            self._claims.pop(name, None)

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


# -- the published jobs of an index


class PublishedJobs(JobDirectory):
    """The published jobs of an index. Anybody may read. Only the index changes it, and the callers of `begin_past`.

    `joblog_ids`: the IDs of all JobLog jobs that the index knows. `retention`: seconds that an ended job stays.
    """

    def __init__(self, joblog_ids: Container[str], *, retention: float, titles: Titles = NO_TITLES) -> None:
        super().__init__()
        self.retention = int(retention * 1_000_000)
        """Microseconds that an ended job stays in memory."""
        self.titles = titles
        self.past_unread: Micros | None = None
        """The time at which reading of the log's past began, in microseconds. None once all of it is published."""
        self.newest_removed: Micros = 0
        """The newest start of a job that left memory, or for which it had no room. One in the future does not count."""
        self._joblog_ids = joblog_ids
        self._awaited: set[str] = set()
        self._newest_awaited: Micros = -1
        """Legacy rows of which it is not known yet whether a JobLog job has their ID, and the newest start of one."""

    def is_joblog_id(self, name: str) -> bool:
        """True if a JobLog job in memory has this ID, as its own or as an external one."""
        return name in self._joblog_ids or self._external.owner(name) is not None

    def complete_since(self, now: Micros) -> Micros:
        """All jobs that started at or after this time are in memory; `max_jobs` may have removed older ones."""
        return max(now - self.retention, self.newest_removed + 1, self._newest_awaited + 1)

    def expects(self, shown: PublishedJob, now: Micros) -> bool:
        return shown.job_id in self._awaited or super().expects(shown, now)

    def has_expired(self, end: Micros, now: Micros) -> bool:
        """True if a job whose end counts from `end` does not belong in memory any more."""
        return end <= now - self.retention

    def begin_past(self, now: Micros) -> None:
        """Begin with the log's past. Jobs that are published while the tables are loaded are incomplete from now on."""
        self.past_unread = now

    def leave_out(self, started_at: Micros, now: Micros) -> None:
        """Note that memory may lack jobs that started at this time or before. A start in the future says nothing."""
        if started_at <= now:
            self.newest_removed = max(self.newest_removed, started_at)

    # -- called by the index

    def await_legacy(self, job_id: str, started_at: Micros, now: Micros) -> None:
        """Note a legacy row that is published once it is certain that no JobLog job has its ID."""
        self._awaited.add(job_id)
        if started_at <= now:
            self._newest_awaited = max(self._newest_awaited, started_at)

    def await_no_longer(self, job_id: str) -> None:
        self._awaited.discard(job_id)
        if not self._awaited:
            self._newest_awaited = -1

    def next_seq(self) -> int:
        """The position of the next change."""
        self.seq += 1
        return self.seq

    def drop(self, old: PublishedJob, now: Micros) -> None:
        """Remove a job, which memory may lack from now on."""
        self.drop_job(old.job_id)
        self.leave_out(old.view.started_at or 0, now)


# -- children


_Child = tuple[Micros, str]
"""The start time of a child and its job ID. Children are sorted by this pair."""


class Family(Struct, frozen=True, gc=False):
    """The published children of a job: the newest `MAX_CHILDREN`, oldest first, and the number of all."""

    ids: tuple[str, ...] = ()
    count: int = 0


NO_CHILDREN = Family()


def family(listed: tuple[_Child, ...], count: int, known: list[_Child]) -> Family:
    """Merge the children that the tables list (`count` in all) with the sorted children in memory (`known`).

    The returned count is exact up to `MAX_CHILDREN`. Beyond that it may lack the children that started since the last
    table query.
    """
    names = {child for _, child in listed}
    newest = sorted([*listed, *(child for child in known[-MAX_CHILDREN:] if child[1] not in names)])
    ids = tuple(child for _, child in newest[-MAX_CHILDREN:])
    return Family(ids, max(count, len(known), len(newest)))


class Children:
    """The published children of every job, whether or not that job itself is in memory. O(log n), but for the list."""

    def __init__(self) -> None:
        self._known: dict[str, list[_Child]] = {}
        """For each parent: its children, sorted."""

    def move(self, old: JobView | None, new: JobView | None) -> list[str]:
        """Note what is published of a child now. None: nothing is, or was. Returns the parents that it changes."""
        before, after = _place(old), _place(new)
        if before == after:
            return []
        if before is not None:
            siblings = self._known[before[0]]
            del siblings[bisect_left(siblings, before[1])]
            if not siblings:
                del self._known[before[0]]
        if after is not None:
            insort(self._known.setdefault(after[0], []), after[1])
        return list(dict.fromkeys(place[0] for place in (before, after) if place is not None))

    def of(self, job_id: str, reading: Reading | None) -> Family:
        """The children of a job. `reading`: the last one of its tables."""
        listed, count = (reading.children, reading.child_count) if reading is not None else ((), 0)
        known = self._known.get(job_id)
        return family(listed, count, known or []) if listed or known else NO_CHILDREN


def _place(view: JobView | None) -> tuple[str, _Child] | None:
    """The parent of a job, and its place among the children of that job."""
    if view is None or view.parent_job_id is None:
        return None
    return view.parent_job_id, (view.started_at or 0, view.job_id)
