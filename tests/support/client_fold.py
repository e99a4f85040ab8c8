"""The state of a client as docs/protocol.md describes it: documents, folded from the messages of a stream.

`apply_message` is the rule for one message. `ClientFold` keeps the state per subscription, over several connections,
and checks every message against the contract.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]


def merge(target: Any, patch: Any) -> Any:
    """A JSON merge patch. See RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def apply_message(jobs: dict[str, Document], message: Document) -> None:
    """Apply one message to the documents of one subscription, by job id. Messages without documents change nothing.

    Raises AssertionError for a delta on a revision that the client does not have.
    """
    match message["type"]:
        case "snapshot":
            jobs |= {job["job_id"]: job for job in message["jobs"]}
        case "put":
            jobs[message["job_id"]] = message["job"]
        case "delta":
            before = jobs.get(message["job_id"])
            assert before is not None, f"a delta without a document: {message}"
            assert message["base"] == before["rev"], f"a delta on {message['base']}, not on {before['rev']}: {message}"
            jobs[message["job_id"]] = merge(before, message["set"])
        case "delete":
            jobs.pop(message["job_id"], None)
        case _:
            return
    if message["type"] in ("put", "delta"):
        job = jobs[message["job_id"]]
        assert (job["rev"], job["job_id"]) == (message["rev"], message["job_id"]), message


@dataclass
class ClientFold:
    """The state of a client, folded from the messages of its connections, one connection after the other.

    Every message is checked against docs/protocol.md: AssertionError for one that breaks it.
    """

    jobs: dict[int, dict[str, Document]] = field(default_factory=dict)
    """sub → job id → document."""
    lines: dict[int, Document] = field(default_factory=dict)
    dropped: int = 0
    position: tuple[str, int] | None = None
    """(epoch, seq) for `hello.resume`."""
    epoch: str = ""
    resyncs: list[str] = field(default_factory=list)
    events: list[Document] = field(default_factory=list)
    """The messages `event`."""
    legacy: set[str] = field(default_factory=set)
    """The jobs of which a document said at some time that `failover_jobs` alone has them."""
    counts: dict[str, int] = field(default_factory=dict)
    """Messages by type."""
    _seq: int = 0
    _open: set[int] = field(default_factory=set)
    _synced: set[int] = field(default_factory=set)
    _fresh: dict[int, dict[str, Document]] = field(default_factory=dict)
    _revs: dict[str, int] = field(default_factory=dict)

    def connect(self) -> None:
        """A new connection begins, without subscriptions."""
        self._seq = 0
        self._open.clear()
        self._synced.clear()
        self._fresh.clear()

    def subscribe(self, sub: int, *, resume: bool) -> None:
        """The client has sent `subscribe`. `resume`: the subscription continues from `position`."""
        self._open.add(sub)
        self._synced.discard(sub)
        if not resume:
            self._fresh[sub] = {}

    def unsubscribe(self, sub: int) -> None:
        """The client has sent `unsubscribe`, and all messages before it have come."""
        self._open.discard(sub)
        self._synced.discard(sub)
        self._fresh.pop(sub, None)
        self.jobs.pop(sub, None)

    @property
    def synced(self) -> bool:
        """True if every subscription of this connection has its whole snapshot."""
        return bool(self._open) and self._open <= self._synced

    def apply(self, message: Document) -> None:  # noqa: C901, PLR0912 - one case a message
        kind = message["type"]
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if "seq" in message:
            assert message["seq"] >= self._seq, f"seq fell from {self._seq}: {message}"
            self._seq = message["seq"]
        match kind:
            case "welcome":
                if message["epoch"] != self.epoch:
                    self.epoch = message["epoch"]
                    self._revs.clear()
            case "snapshot":
                self._snapshot(message)
            case "synced":
                self._sync(message)
            case "put" | "delta" | "delete":
                for sub in message["sub"]:
                    self._change(sub, message)
            case "log":
                self._line(message)
            case "event":
                self._event(message)
            case "resync":
                self._resync(message)
            case "bookmark" | "status" | "bye" | "pong" | "error":
                pass
            case _:
                raise AssertionError(message)
        if "seq" in message and kind != "welcome" and self.synced:
            self.position = (self.epoch, message["seq"])

    def _snapshot(self, message: Document) -> None:
        sub = message["sub"]
        assert sub in self._open
        assert sub not in self._synced, "a snapshot comes once"
        fresh = self._fresh.setdefault(sub, {})
        for job in message["jobs"]:
            job_id = job["job_id"]
            assert job_id not in fresh, f"{job_id} is in the snapshot twice, or a put came before it"
            self._rev(job_id, job["rev"])
            self._source(job)
        apply_message(fresh, message)

    def _sync(self, message: Document) -> None:
        sub = message["sub"]
        assert sub in self._open
        assert sub not in self._synced
        if sub in self._fresh:
            self.jobs[sub] = self._fresh.pop(sub)
        self._synced.add(sub)

    def _resync(self, message: Document) -> None:
        self.resyncs.append(message["reason"])
        for sub in self._open - self._synced:
            self._fresh.setdefault(sub, {})

    def _change(self, sub: int, message: Document) -> None:
        assert sub in self._open, message
        job_id = message["job_id"]
        held = self._fresh[sub] if sub in self._fresh else self.jobs.setdefault(sub, {})
        before = held.get(job_id)
        if message["type"] == "delete":
            assert message["reason"] in ("retention", "filter", "gone", "merged"), message
            # A resumed stream may begin inside a batch, part of which came over the connection before.
            assert before is not None or sub not in self._synced, f"never there: {message}"
        else:
            self._rev(job_id, message["rev"])
        apply_message(held, message)
        self._source(held.get(job_id, {}))

    def _source(self, job: Document) -> None:
        if job.get("source") == "legacy":
            self.legacy.add(job["job_id"])

    def _rev(self, job_id: str, rev: int) -> None:
        assert rev >= self._revs.get(job_id, 0), f"{job_id}: rev fell from {self._revs[job_id]} to {rev}"
        self._revs[job_id] = rev

    def _line(self, message: Document) -> None:
        assert set(message["sub"]) <= self._open, message
        if "dropped" in message:
            assert message["dropped"] > 0
            self.dropped += message["dropped"]
            return
        assert message["event_id"] not in self.lines, f"sent twice: {message}"
        self.lines[message["event_id"]] = message

    def _event(self, message: Document) -> None:
        for sub in message["sub"]:
            assert sub in self._open, message
            held = self._fresh[sub] if sub in self._fresh else self.jobs.get(sub, {})
            assert message["job_id"] in held, f"the subscription does not have the job: {message}"
        self.events.append(message)
