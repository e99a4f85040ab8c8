"""The headers of a request by Standard Webhooks 1.0, and the ID of an event. Nothing here reads a clock."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

from correlator.jobs.model.changes import Event


def message_id(event: Event) -> str:
    """Return the ID of an event. It is the same if a restart finds the event again, and contains no full stop.

    An ID of the log may occur again after a reset, so the job and the kind are part of it. A transition without a log
    row has its time instead.
    """
    place = f"row {event.event_id}" if event.event_id is not None else f"{event.step_id} at {event.at}"
    text = f"{event.job_id}\n{event.kind.value}\n{place}"
    return "evt_" + hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def headers(keys: Sequence[bytes], identifier: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of one attempt. `keys`: one signature each. `timestamp`: Unix seconds, of now."""
    found = {"webhook-id": identifier, "webhook-timestamp": str(timestamp)}
    if keys:
        content = b"%b.%d.%b" % (identifier.encode(), timestamp, body)
        found["webhook-signature"] = " ".join(f"v1,{_signature(key, content)}" for key in keys)
    return found


def _signature(key: bytes, content: bytes) -> str:
    return base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
