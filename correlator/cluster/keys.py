"""The subjects of a cluster: where each value, event and request is published.

An ID becomes one token of a subject by `escape`: the characters A-Z a-z 0-9 - _ stay, every other byte of its UTF-8
form becomes =XX. The mapping is reversible, and the order of IDs does not matter. An instance's name has only
characters that stay.
"""

from __future__ import annotations

import re

from correlator.model.document import MAX_ID

STATE = "KV_cor"
ALIVE = "KV_cor_alive"
CHECKPOINT = "KV_cor_checkpoint"
EVENTS = "cor_events"
"""The names of the streams. Those that begin with KV_ are buckets for the tools of NATS."""

EPOCH = "$KV.cor.epoch"
WANT = "cor.v1.want"
"""Gateways publish the IDs here that their clients wait for."""

INBOXES = ("_INBOX.", "_R_.")
"""What the subjects of all inboxes begin with; the second are those of other accounts."""

ACK = "$JS.ACK."
"""What the reply subject of a message from a consumer begins with. Its own status messages have another, or none."""

EVERY_ALIVE = "$KV.cor_alive.*"

MAX_INSTANCE = 64
"""Characters of the name of an appliance."""

_GROWTH = re.compile(r"\$KV\.cor\.([^.]+)\.growth\.(\d{1,4})", re.ASCII)
_OTHER = re.compile(rb"[^A-Za-z0-9_-]")
_ESCAPED = re.compile(rb"=([0-9A-F]{2})")
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")


def escape(name: str) -> str:
    """Return `name` as one token of a subject. The empty name becomes a single =."""
    raw = name.encode("utf-8", "surrogatepass")
    return _OTHER.sub(lambda byte: b"=%02X" % byte[0][0], raw).decode("ascii") or "="


def unescape(escaped: str) -> str:
    """Return the name that became `escaped`. Raises: ValueError if it is no such token."""
    if _PLAIN.fullmatch(escaped):
        return escaped
    if escaped == "=":
        return ""
    if not _TOKEN.fullmatch(escaped):
        raise ValueError(f"not an escaped name: {escaped!r}")
    raw = _ESCAPED.sub(lambda code: bytes([int(code[1], 16)]), escaped.encode("ascii"))
    return raw.decode("utf-8", "surrogatepass")


def job(instance: str, job_id: str) -> str:
    return f"$KV.cor.{instance}.job.{escape(job_id)}"


def everything(instance: str) -> str:
    """The filter for all messages of an instance."""
    return f"$KV.cor.{instance}.>"


def jobs(instance: str) -> str:
    """Every job of an instance, as a filter."""
    return f"$KV.cor.{instance}.job.>"


def job_of(subject: str) -> tuple[str, str] | None:
    """Return (instance, job ID) of a subject that `job` made; None for another subject, or an ID that is too long."""
    tokens = subject.split(".")
    if len(tokens) != 5 or tokens[:2] != ["$KV", "cor"] or tokens[3] != "job" or not is_instance(tokens[2]):
        return None
    try:
        job_id = unescape(tokens[4])
    except ValueError:
        return None
    return (tokens[2], job_id) if len(job_id) <= MAX_ID else None


def growth(instance: str, page: int) -> str:
    """A page of growth of an instance: see `cluster.growth`."""
    return f"$KV.cor.{instance}.growth.{page}"


def growths(instance: str) -> str:
    """The filter for all pages of growth of an instance."""
    return f"$KV.cor.{instance}.growth.*"


def growth_of(subject: str) -> tuple[str, int] | None:
    """Return (instance, page) of a subject that `growth` made; None for another subject."""
    found = _GROWTH.fullmatch(subject)
    return (found[1], int(found[2])) if found is not None and is_instance(found[1]) else None


def is_instance(name: str) -> bool:
    """True if an appliance can have this name."""
    return len(name) <= MAX_INSTANCE and _PLAIN.fullmatch(name) is not None


def owner(instance: str) -> str:
    """The key of the lease: its sequence is the fence of every write of the instance in `STATE`."""
    return f"$KV.cor.{instance}.owner"


def alive(instance: str) -> str:
    return f"$KV.cor_alive.{instance}"


def checkpoint(instance: str, *name: str) -> str:
    """A row of the checkpoint: `checkpoint("dc1", "job", id)`."""
    return ".".join((f"$KV.cor_checkpoint.{instance}", *(escape(part) for part in name)))


def checkpoint_rows(instance: str) -> str:
    """Every row of the checkpoint of an instance, as a filter."""
    return f"$KV.cor_checkpoint.{instance}.>"


def checkpoint_owner(instance: str) -> str:
    """The fence of the checkpoint's stream, which has sequences of its own."""
    return f"$KV.cor_checkpoint.{instance}.owner"


def event(instance: str, job_id: str) -> str:
    return f"cor.v1.{instance}.event.{escape(job_id)}"


def events(instance: str) -> str:
    """The filter for all events of an instance."""
    return f"cor.v1.{instance}.event.*"


def events_owner(instance: str) -> str:
    """The fence of the stream of events, which has sequences of its own."""
    return f"cor.v1.{instance}.owner"


def standby(instance: str) -> str:
    """The standbys of an instance report here, for its active collector. Nothing stores that."""
    return f"cor.v1.{instance}.standby"


def line(instance: str) -> str:
    return f"cor.v1.{instance}.line"


def rpc(instance: str, method: str) -> str:
    return f"cor.v1.{instance}.rpc.{method}"
