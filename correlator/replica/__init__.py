"""A copy of the jobs that a client subscribed to: messages of the websocket in, documents out. Imports no I/O.

Always: once `synced`, the documents are those of the daemon as of the last message. A delta is merged only into the
revision that it rests on, and a revision counts only for the run of the daemon that gave it: after a restart the old
documents are still shown, but nothing rests on them. What a fresh snapshot does not bring is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, assert_never

import msgspec
from msgspec import Struct

from correlator.errors import BadRequest
from correlator.replica.messages import (
    Bookmark,
    Bye,
    Delete,
    Delta,
    Document,
    Error,
    Log,
    Message,
    Put,
    Resync,
    Snapshot,
    Source,
    State,
    Synced,
    Wanted,
    Welcome,
)


class Connection(Struct, frozen=True):
    """How we stand with the daemon. `retry_in`: seconds until the next attempt, while offline."""

    state: Literal["connecting", "live", "offline"] = "connecting"
    error: str | None = None
    retry_in: float = 0.0


class Update(Struct, frozen=True):
    """What is known, and what is new in it. `jobs` is a view of what is known now, not as of then.

    `gone`: job id → why it left, of docs/protocol.md, or "absent" where a fresh snapshot did not bring it.
    `ahead`: seconds that the daemon's clock is ahead of ours.
    """

    jobs: Mapping[str, Document]
    changed: frozenset[str] = frozenset()
    gone: Mapping[str, str] = {}
    logs: tuple[Log, ...] = ()
    synced: bool = False
    source: Source | None = None
    connection: Connection = Connection()
    ahead: float = 0.0


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386: what `target` becomes by `patch`. Neither is changed."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def named(jobs: Mapping[str, Document], name: str) -> Document | None:
    """The job that `name` leads to, in the order of docs/protocol.md: the newest where an ID repeats."""
    if name in jobs:
        return jobs[name]
    by_external = [job for job in jobs.values() if name in (job.get("external_ids") or ())]
    found = by_external or [job for job in jobs.values() if job.get("context_id") == name]
    return max(found, key=lambda job: (job.get("started_at") or "", job.get("job_id") or ""), default=None)


class _Subscription:
    """What one subscription has brought. `fresh` is a set while its snapshot comes in, and then what it brought."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.members: set[str] = set()
        self.fresh: set[str] | None = set()
        self.synced = False

    def start_over(self) -> None:
        self.fresh, self.synced = set(), False

    def add(self, job_id: str) -> None:
        self.members.add(job_id)
        if self.fresh is not None:
            self.fresh.add(job_id)

    def discard(self, job_id: str) -> None:
        self.members.discard(job_id)
        if self.fresh is not None:
            self.fresh.discard(job_id)


class Replica:
    """The documents of some subscriptions, which are numbered from 1, over any number of connections."""

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self._subs = {number: _Subscription(one) for number, one in enumerate(wanted, 1)}
        self._jobs: dict[str, Document] = {}
        self._revs: dict[str, int] = {}
        self._asked: set[str] = set()
        self._epoch = ""
        self._resume: tuple[str, int] | None = None
        self._changed: set[str] = set()
        self._gone: dict[str, str] = {}
        self._logs: list[Log] = []
        self.source: Source | None = None
        self.daemon_time: str | None = None
        """The daemon's clock at its last bookmark."""

    @property
    def synced(self) -> bool:
        return all(sub.synced for sub in self._subs.values())

    def hello(self, token: str = "") -> dict[str, Any]:
        """What to open a connection with."""
        said: dict[str, Any] = {"type": "hello", "version": 1}
        if token:
            said["token"] = token
        if self._resume is not None:
            said["resume"] = dict(zip(("epoch", "seq"), self._resume, strict=True))
        return said

    def hear(self, message: Message) -> list[dict[str, Any]]:  # noqa: C901, PLR0912 - one case a message
        """Take in a message; returns what to answer.

        Raises `BadRequest` where the daemon refuses what we want, ValueError where what it says makes no sense.
        """
        answers: list[dict[str, Any]] = []
        match message:
            case Welcome():
                answers = self._welcome(message)
            case Snapshot():
                self._snapshot(message)
            case Synced():
                self._synced(message)
            case Put():
                self._asked.discard(message.job_id)
                if self._join(message.sub, message.job_id) or message.job_id in self._jobs:
                    self._set(message.job, message.job_id, message.rev)
            case Delta():
                answers = self._delta(message)
            case Delete():
                self._delete(message)
            case Log():
                self._logs.append(message)
            case Bookmark():
                self.daemon_time = message.at
            case State():
                self.source = message.source
            case Resync():
                self._start_over()
            case Error():
                if message.code == "bad_request":
                    raise BadRequest(f"the correlator refused: {message.detail}")
                self._asked.clear()  # else what was asked for in vain would never be asked for again
            case Bye():
                pass  # the connection's affair
            case _:
                assert_never(message)
        if isinstance(message, Synced | Put | Delta | Delete | Bookmark) and self.synced:
            # Only now: what was missed comes before `synced`, and whoever breaks off there has to miss it again.
            self._resume = (self._epoch, message.seq)
        return answers

    def take(self, connection: Connection, ahead: float = 0.0) -> Update:
        """What is known, and what is new since the last take."""
        update = Update(
            MappingProxyType(self._jobs),
            frozenset(self._changed),
            dict(self._gone),
            tuple(self._logs),
            self.synced,
            self.source,
            connection,
            ahead,
        )
        self._changed.clear()
        self._gone.clear()
        self._logs.clear()
        return update

    def _welcome(self, welcome: Welcome) -> list[dict[str, Any]]:
        self._asked.clear()
        resumed = welcome.resumed and self._resume is not None and self._resume[0] == welcome.epoch
        if not resumed:
            self._start_over()
        self._epoch = welcome.epoch
        answers = []
        for number, sub in self._subs.items():
            if resumed:
                sub.synced, sub.fresh = False, None
            wanted = msgspec.to_builtins(sub.wanted)
            answers.append({"type": "subscribe", "id": number, **wanted} | ({"resume": True} if resumed else {}))
        return answers

    def _start_over(self) -> None:
        """Snapshots follow, and nothing that is known counts as a base."""
        self._resume = None
        self._revs.clear()
        self._asked.clear()
        for sub in self._subs.values():
            sub.start_over()

    def _snapshot(self, snapshot: Snapshot) -> None:
        sub = self._subs.get(snapshot.sub)
        if sub is None:
            return
        if sub.fresh is None:
            sub.start_over()
        for job in snapshot.jobs:
            job_id, rev = job.get("job_id"), job.get("rev")
            if not isinstance(job_id, str) or not isinstance(rev, int):
                raise ValueError("a job has a job_id and a rev")
            sub.add(job_id)
            self._set(job, job_id, rev)

    def _synced(self, synced: Synced) -> None:
        sub = self._subs.get(synced.sub)
        if sub is None:
            return
        if sub.fresh is not None:
            absent, sub.members, sub.fresh = sub.members - sub.fresh, sub.fresh, None
            self._drop(absent, "absent")
        sub.synced = True

    def _join(self, numbers: Iterable[int], job_id: str) -> bool:
        subs = [self._subs[number] for number in numbers if number in self._subs]
        for sub in subs:
            sub.add(job_id)
        return bool(subs)

    def _delta(self, delta: Delta) -> list[dict[str, Any]]:
        rev = self._revs.get(delta.job_id)
        if rev is not None and rev >= delta.rev:
            return []
        if rev == delta.base:
            self._join(delta.sub, delta.job_id)
            merged = merge(self._jobs[delta.job_id], delta.set)
            self._set(merged | {"rev": delta.rev}, delta.job_id, delta.rev)
            return []
        if delta.job_id in self._asked:
            return []
        self._asked.add(delta.job_id)
        return [{"type": "get", "job_id": delta.job_id}]

    def _delete(self, delete: Delete) -> None:
        for number in delete.sub:
            if number in self._subs:
                self._subs[number].discard(delete.job_id)
        self._drop([delete.job_id], delete.reason)

    def _set(self, job: Document, job_id: str, rev: int) -> None:
        if rev < self._revs.get(job_id, -1):
            return
        self._revs[job_id] = rev
        self._gone.pop(job_id, None)
        if self._jobs.get(job_id) != job:
            self._jobs[job_id] = job
            self._changed.add(job_id)

    def _drop(self, job_ids: Iterable[str], reason: str) -> None:
        """Forget those that no subscription wants any more."""
        for job_id in job_ids:
            if job_id in self._jobs and not any(job_id in sub.members for sub in self._subs.values()):
                del self._jobs[job_id]
                self._revs.pop(job_id, None)
                self._asked.discard(job_id)
                self._changed.discard(job_id)
                self._gone[job_id] = reason
