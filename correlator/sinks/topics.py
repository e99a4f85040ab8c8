"""MQTT's topic tree: which topic carries what, as docs/protocol.md lists it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from correlator.jobs import wire
from correlator.jobs.model import Shown

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-")


def escape(name: str) -> str:
    """Percent-encoding of every byte outside ``A–Z a–z 0–9 . _ ~ -``: no ID can leave its level of the tree."""
    return "".join(chr(b) if b in _PLAIN else f"%{b:02X}" for b in name.encode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Topics:
    """The tree of one daemon. `root` is ``{prefix}/{instance}``."""

    root: str

    @property
    def status(self) -> str:
        return f"{self.root}/status"

    @property
    def index(self) -> str:
        return f"{self.root}/index"

    def state(self, job_id: str) -> str:
        return f"{self.root}/job/{escape(job_id)}/state"

    def event(self, job_id: str) -> str:
        return f"{self.root}/job/{escape(job_id)}/event"

    def external(self, external_id: str) -> str:
        return f"{self.root}/ext/{escape(external_id)}"


def state(shown: Shown, epoch: str, seq: int) -> bytes:
    """The retained state of a job: its document, and where in the stream it stands."""
    return wire.encode({**wire.document(shown), "epoch": epoch, "seq": seq})


def deleted(shown: Shown, epoch: str, seq: int) -> bytes:
    """The last state of a job that left memory; an empty message follows it."""
    return wire.encode({**wire.document(shown), "epoch": epoch, "seq": seq, "deleted": True})


def external(external_id: str, job_id: str) -> bytes:
    return wire.encode({"external_id": external_id, "job_id": job_id})


def status(word: str, epoch: str, seq: int, at: int) -> bytes:
    return wire.encode({"state": word, "epoch": epoch, "seq": seq, "at": wire.rfc3339(at)})


def index(epoch: str, seq: int, count: int) -> dict[str, Any]:
    return {"epoch": epoch, "seq": seq, "count": count}
