"""A replica of the jobs that a client subscribed to: it folds websocket messages into documents. No I/O.

Problem: messages are lost when a connection breaks, and a restarted daemon numbers its revisions anew.

Model: `receive` folds one message and returns the messages to answer with. `drain` returns the documents and what has
changed since the last call. `hello` resumes from the last position if there is one, else the daemon sends snapshots.
A document of which a delta does not apply to the revision here is requested (`DocumentRequests`).

Invariants: once `synced`, the documents are those of the daemon as of the last message. A delta is merged only into its
base revision. Revisions are compared only within one epoch: after a restart the old documents stay visible until a
snapshot replaces them, but no delta is merged into them. A job that is missing from a fresh snapshot is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, assert_never, cast

from msgspec import Struct, UnsetType
from msgspec.structs import asdict

from correlator.client.documents import age_key, merge
from correlator.client.messages import Document, Job, LogMessage, Message, PutMessage, SnapshotMessage
from correlator.errors import BadRequest
from correlator.model.messages import (
    Bookmark,
    Bye,
    ClientMessage,
    Delete,
    Delta,
    Error,
    Get,
    Hello,
    Resync,
    SourceStatus,
    Subscribe,
    Synced,
    Wanted,
    Welcome,
)


class ConnectionState(Struct, frozen=True):
    """State of the connection to the daemon."""

    state: Literal["connecting", "live", "offline"] = "connecting"
    error: str | None = None


class Update(Struct, frozen=True):
    """The jobs by `job_id`, and their changes since the last update. `jobs` is a live view, not a copy.

    `changed`: the IDs of the jobs that are new or have changed.
    `logs`: the log lines since the last update, if they were asked for.
    `synced`: true once all jobs have arrived: a job that is missing then does not exist yet.
    `database`: the last report on the daemon's database.
    `gone`: job ID → the reason of docs/protocol.md, or "absent" if a fresh snapshot did not contain the job.
    `ahead`: seconds that the daemon's clock is ahead of the local clock.
    """

    jobs: Mapping[str, Job]
    changed: frozenset[str] = frozenset()
    gone: Mapping[str, str] = {}
    logs: tuple[LogMessage, ...] = ()
    synced: bool = False
    database: SourceStatus | None = None
    connection: ConnectionState = ConnectionState()
    ahead: float = 0.0

    @property
    def job(self) -> Job | None:
        """The newest of the jobs: that of an ID, if one was asked for. None without any."""
        return max(self.jobs.values(), key=age_key, default=None)


class Forbidden(Exception):
    """The token does not open what a subscription selects."""


class Replica:
    """The documents of some subscriptions, numbered from 1, over any number of connections. For one task."""

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self._subs = {number: _Subscription(one) for number, one in enumerate(wanted, 1)}
        self._jobs: dict[str, Document] = {}
        self._revs: dict[str, int] = {}
        self._requests = DocumentRequests()
        self._epoch = ""
        self._resume: tuple[str, int] | None = None
        self._resumable = True
        self._changed: set[str] = set()
        self._gone: dict[str, str] = {}
        self._logs: list[LogMessage] = []
        self._database: SourceStatus | None = None

    @property
    def synced(self) -> bool:
        return all(sub.synced for sub in self._subs.values())

    def hello(self, token: str = "") -> Hello:
        """The first message of a connection."""
        resume = None if self._resume is None else dict(zip(("epoch", "seq"), self._resume, strict=True))
        return Hello(1, token or None, resume)

    def receive(self, message: Message) -> list[ClientMessage]:  # noqa: C901, PLR0912 - one case a message
        """Fold a message, and return the messages to answer with.

        Raises:
            BadRequest: the daemon rejects the subscription.
            Forbidden: the token does not open what a subscription selects.
            ValueError: the message is invalid.
        """
        answers: list[ClientMessage] = []
        match message:
            case Welcome():
                answers = self._welcome(message)
            case SnapshotMessage():
                self._snapshot(message)
            case Synced():
                self._synced(message)
            case PutMessage():
                self._requests.discard(message.job_id)
                if self._join(message.sub, message.job_id) or message.job_id in self._jobs:
                    self._set(message.job, message.job_id, message.rev)
            case Delta():
                answers = self._delta(message)
            case Delete():
                self._delete(message)
            case LogMessage():
                self._logs.append(message)
            case Bookmark():
                answers = [Get(job_id) for job_id in self._requests.retry()]
            case SourceStatus():
                self._database = message
            case Resync():
                self._start_over()
            case Error():
                if message.code == "bad_request":
                    raise BadRequest(f"the correlator refused: {message.detail}")
                if message.code == "forbidden":
                    raise Forbidden(message.detail)
                if self._requests.failed(message.code, message.job_id):
                    self._resume, self._resumable = None, False  # only a fresh snapshot is complete now
            case Bye():
                pass  # handled by `Exchange`
            case _:
                assert_never(message)
        whole = self.synced and self._resumable and not self._requests
        if isinstance(message, Synced | PutMessage | Delta | Delete | Bookmark) and whole:
            # Not earlier: missed messages arrive before `synced`. A connection lost before that resumes before them.
            self._resume = (self._epoch, message.seq)
        return answers

    def drain(self, connection: ConnectionState, ahead: float = 0.0) -> Update:
        """Return the documents and their changes since the last call."""
        update = Update(
            cast("Mapping[str, Job]", MappingProxyType(self._jobs)),
            frozenset(self._changed),
            dict(self._gone),
            tuple(self._logs),
            self.synced,
            self._database,
            connection,
            ahead,
        )
        self._changed.clear()
        self._gone.clear()
        self._logs.clear()
        return update

    def _welcome(self, welcome: Welcome) -> list[ClientMessage]:
        self._requests.clear()
        self._resumable = True
        resumed = welcome.resumed and self._resume is not None and self._resume[0] == welcome.epoch
        if not resumed:
            self._start_over()
        self._epoch = welcome.epoch
        answers: list[ClientMessage] = []
        for number, sub in self._subs.items():
            if resumed:
                sub.synced, sub.fresh = False, None
            answers.append(Subscribe(id=number, resume=resumed or None, **asdict(sub.wanted)))
        return answers

    def _start_over(self) -> None:
        """Expect snapshots; no stored revision is a base for a delta any more."""
        self._resume = None
        self._revs.clear()
        self._requests.clear()
        for sub in self._subs.values():
            sub.start_over()

    def _snapshot(self, snapshot: SnapshotMessage) -> None:
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

    def _delta(self, delta: Delta) -> list[ClientMessage]:
        rev = self._revs.get(delta.job_id)
        if rev is not None and rev >= delta.rev:
            return []
        if rev == delta.base:
            self._join(delta.sub, delta.job_id)
            merged = merge(self._jobs[delta.job_id], delta.set)
            self._set(merged | {"rev": delta.rev}, delta.job_id, delta.rev)
            return []
        return [Get(delta.job_id)] if self._requests.add(delta.job_id) else []

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
        """Remove the jobs that no subscription contains any more."""
        for job_id in job_ids:
            if job_id in self._jobs and not any(job_id in sub.members for sub in self._subs.values()):
                del self._jobs[job_id]
                self._revs.pop(job_id, None)
                self._requests.discard(job_id)
                self._changed.discard(job_id)
                self._gone[job_id] = reason


class _Subscription:
    """The jobs of one subscription. `fresh` has the jobs of an incoming snapshot; None while there is none."""

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


MAX_TRIES = 5
"""Requests for one document before the replica gives up resuming."""


REQUESTS_AT_ONCE = 50


class DocumentRequests:
    """Job IDs whose document is missing, in the order of the requests. False while there are none."""

    def __init__(self) -> None:
        self._tries: dict[str, int] = {}
        """The number of requests for each job."""
        self._failed: dict[str, None] = {}
        """Job IDs to request again with the next bookmark, because the daemon could not answer."""

    def __bool__(self) -> bool:
        return bool(self._tries)

    def add(self, job_id: str) -> bool:
        """False if the document is requested already."""
        if job_id in self._tries:
            return False
        self._tries[job_id] = 1
        return True

    def failed(self, code: str, job_id: str | UnsetType) -> bool:
        """Note that a request failed; True if it was the last of `MAX_TRIES`, so that the document stays missing."""
        if isinstance(job_id, UnsetType) or job_id not in self._tries:
            return False
        is_last = self._tries[job_id] == MAX_TRIES
        if is_last or code == "not_found":
            self.discard(job_id)
            return is_last and code != "not_found"
        self._failed[job_id] = None
        return False

    def retry(self) -> list[str]:
        """Return the job IDs to request again now, at most `REQUESTS_AT_ONCE`."""
        job_ids = list(self._failed)[:REQUESTS_AT_ONCE]
        for job_id in job_ids:
            del self._failed[job_id]
            self._tries[job_id] += 1
        return job_ids

    def discard(self, job_id: str) -> None:
        self._tries.pop(job_id, None)
        self._failed.pop(job_id, None)

    def clear(self) -> None:
        self._tries.clear()
        self._failed.clear()
