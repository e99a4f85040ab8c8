"""A model of the daemon that docs/protocol.md describes, for random runs of a client."""

from __future__ import annotations

from collections import deque
from typing import Any

from correlator.model.encoder import merge_patch
from correlator.model.messages import Wanted
from tests.support.messages import delta, put, snapshot, synced, welcome


class DaemonModel:
    """Jobs, a resume ring of all changes, and one connection: `wire` has its pending messages, or is None."""

    def __init__(self, wanted: list[Wanted]) -> None:
        self.wanted = wanted
        self.epoch, self.seq = 1, 0
        self.jobs: dict[str, dict[str, Any]] = {}
        self.resume_ring: list[tuple[int, str]] = []
        self.wire: deque[dict[str, Any]] | None = None
        self.subs: dict[int, set[str]] = {}
        self.since: int | None = None
        self.busy = self.may_fail = 0
        """Requests for a document that are to fail, and that may still fail before a client gives up."""

    def matches(self, number: int, document: dict[str, Any] | None) -> bool:
        status = self.wanted[number - 1].status
        return document is not None and (status is None or document["status"] in status)

    def send(self, message: dict[str, Any]) -> None:
        if self.wire is not None:
            self.wire.append(message)

    def change(self, job_id: str, document: dict[str, Any] | None, *, as_delta: bool) -> None:
        before = self.jobs.pop(job_id, None)
        if document is None and before is None:
            return
        self.seq += 1
        self.resume_ring.append((self.seq, job_id))
        if document is not None:
            self.jobs[job_id] = document = {**document, "job_id": job_id, "rev": self.seq}
        stay, come, leave = list[int](), list[int](), list[int]()
        for number, members in self.subs.items():
            was, now = job_id in members, self.matches(number, document)
            (members.add if now else members.discard)(job_id)
            if now:
                (stay if was else come).append(number)
            elif was:
                leave.append(number)
        if document is not None and stay and before is not None and as_delta:
            self.send({**delta(job_id, before["rev"], self.seq, stay), "set": merge_patch(before, document)})
        elif stay:
            come += stay
        if come and document is not None:
            self.send(put(document, self.seq, come))
        if leave:
            self.send({"type": "delete", "sub": leave, "seq": self.seq, "job_id": job_id, "reason": "filter"})

    def connect(self, hello: dict[str, Any]) -> None:
        self.wire, self.subs = deque(), {}
        self.busy, self.may_fail = 0, 4
        resume = hello.get("resume")
        self.since = resume["seq"] if resume and resume["epoch"] == str(self.epoch) else None
        self.send(welcome(str(self.epoch), resumed=self.since is not None, seq=self.seq))

    def answer(self, request: dict[str, Any]) -> None:
        if request["type"] == "get":
            if self.busy:
                self.busy -= 1
                error = {"type": "error", "sub": None, "code": "unavailable", "detail": ""}
                self.send({**error, "job_id": request["job_id"]})
            elif (document := self.jobs.get(request["job_id"])) is not None:
                self.send(put(document, self.seq, [n for n, m in self.subs.items() if request["job_id"] in m]))
            else:
                self.send({"type": "error", "sub": None, "code": "not_found", "detail": ""})
            return
        number = request["id"]
        members = self.subs[number] = {j for j, d in self.jobs.items() if self.matches(number, d)}
        if request.get("resume"):
            assert self.since is not None
            for job_id in dict.fromkeys(j for seq, j in self.resume_ring if seq > self.since):
                if job_id in members:
                    self.send(put(self.jobs[job_id], self.seq, [number]))
                else:
                    self.send(
                        {"type": "delete", "sub": [number], "seq": self.seq, "job_id": job_id, "reason": "filter"}
                    )
        else:
            for job_id in members:
                self.send(snapshot(number, self.jobs[job_id], seq=self.seq))
            if not members:
                self.send(snapshot(number, seq=self.seq))
        self.send(synced(number, self.seq))

    def restart(self) -> None:
        """Another run: revisions begin again, so that old ones may come up a second time."""
        self.wire, self.subs, self.resume_ring, self.epoch, self.seq = None, {}, [], self.epoch + 1, 0
        for job_id, document in self.jobs.items():
            self.seq += 1
            self.jobs[job_id] = {**document, "rev": self.seq}

    def resync(self) -> None:
        if self.wire is not None and self.subs:
            self.send({"type": "resync", "reason": "slow"})
            for number in list(self.subs):
                self.answer({"type": "subscribe", "id": number})

    def apply(self, act: tuple[Any, ...]) -> None:
        match act:
            case ("change", job_id, document, as_delta):
                self.change(job_id, document, as_delta=as_delta)
            case ("remove", job_id):
                self.change(job_id, None, as_delta=False)
            case ("drop",):
                self.wire, self.subs = None, {}
            case ("restart",):
                self.restart()
            case ("resync",):
                self.resync()
            case ("busy",) if self.may_fail:
                self.busy, self.may_fail = self.busy + 1, self.may_fail - 1
            case ("bookmark",):
                self.send({"type": "bookmark", "seq": self.seq, "at": None})
            case ("lose",) if self.wire:
                self.wire = deque(message for message in self.wire if message["type"] != "delta")
