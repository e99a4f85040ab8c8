"""The request for an event: its body, its ID, its headers and its secrets. Nothing here reads a clock.

The body is a CloudEvent 1.0 in structured mode with the job document, or the webhook's own template. It is bounded:
members of the document that may be long are left out until it fits, and `datacut` names them. The headers are those of
Standard Webhooks 1.0.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import ssl
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

import orjson
from msgspec.structs import replace
from yarl import URL

from correlator import web
from correlator.config.webhook_template import Template
from correlator.config.webhooks import Webhook
from correlator.jobs import encoding
from correlator.model import encoder
from correlator.model.document import NO_METADATA, JobDocument
from correlator.model.messages import CloudEvent
from correlator.model.published import Event, PublishedJob
from correlator.ops.logs import escape
from correlator.sinks.receiver import Receiver

MAX_BODY = 256 * 1024
"""Maximum bytes of a body."""


MAX_STEPS = 200
"""Maximum number of steps of a job whose document is sent with its steps."""


CLOUD_EVENT, JSON = "application/cloudevents+json", "application/json"


_CUT: dict[str, Any] = {
    "steps": {},
    "metadata": NO_METADATA,
    "child_job_ids": (),
    "forecast": None,
    "last_message": None,
    "error": None,
    "external_ids": (),
}
"""Members that are emptied, one after the other, until the body fits."""


class Bodies:
    """Makes bodies. `instance`: the name of this daemon, part of the source of each event. `page`: its URL, or None."""

    def __init__(self, instance: str, page: str | None) -> None:
        self._page = page
        self._source = f"/correlator/{quote(instance, safe='')}"

    def make(self, event: Event, shown: PublishedJob | None, template: Template | None) -> bytes | None:
        """Return the body, or None if it is larger than `MAX_BODY` whatever is left out. `shown` None: unknown job."""
        with_steps = shown is None or len(shown.view.steps) <= MAX_STEPS
        cut = [] if with_steps else ["steps"]
        data = encoding.document(shown, steps=with_steps) if shown is not None else None
        body = self._encoded(event, data, cut, template)
        for name, empty in _CUT.items():
            if len(body) <= MAX_BODY:
                return body
            if data is not None and getattr(data, name) not in (empty, None):
                data = replace(data, **{name: empty})
                cut.append(name)
                body = self._encoded(event, data, cut, template)
        return body if len(body) <= MAX_BODY else None

    def _encoded(self, event: Event, data: JobDocument | None, cut: list[str], template: Template | None) -> bytes:
        made = self._cloud_event(event, data, cut)
        if template is None:
            return encoding.compact(encoder.encode(made))
        members = {**encoding.transition(event), "kind": event.kind.value}
        job = orjson.loads(encoder.encode(data)) if data is not None else {}
        url = web.address(self._page, "jobs", event.job_id)
        return encoding.compact(encoding.encode(template.render({**made, "url": url, "event": members, "job": job})))

    def _cloud_event(self, event: Event, data: JobDocument | None, cut: list[str]) -> CloudEvent:
        """See CloudEvents 1.0.2, JSON Event Format, 3. `stepid`, `stepname` and `datacut` are extension attributes.

        Attributes hold no control characters, surrogates and noncharacters (CloudEvents 1.0.2, 3, Type System).
        """
        made: CloudEvent = {
            "specversion": "1.0",
            "id": webhook_id(event),
            "source": self._source,
            "type": f"correlator.{event.kind.value}",
            "subject": escape(event.job_id),
            "time": encoding.rfc3339(event.at),
            "datacontenttype": "application/json",
            "data": data,
        }
        if event.step_id is not None:
            made["stepid"] = str(event.step_id)
        if event.step_name:
            made["stepname"] = escape(event.step_name)
        if cut:
            made["datacut"] = " ".join(cut)
        return made


def webhook_id(event: Event) -> str:
    """Return the ID of an event. It is the same if a restart finds the event again, and contains no full stop.

    An ID of the log may occur again after a reset, so the job and the kind are part of it. A transition without a log
    row has its time instead.
    """
    place = f"row {event.event_id}" if event.event_id is not None else f"{event.step_id} at {event.at}"
    text = f"{event.job_id}\n{event.kind.value}\n{place}"
    return "evt_" + hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def webhook_headers(keys: Sequence[bytes], identifier: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of one attempt. `keys`: one signature each. `timestamp`: Unix seconds, of now."""
    found = {"webhook-id": identifier, "webhook-timestamp": str(timestamp)}
    if keys:
        content = b"%b.%d.%b" % (identifier.encode(), timestamp, body)
        found["webhook-signature"] = " ".join(f"v1,{_signature(key, content)}" for key in keys)
    return found


def _signature(key: bytes, content: bytes) -> str:
    return base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()


def receiver(webhook: Webhook, context: ssl.SSLContext) -> Receiver:
    """Return where the events of a webhook are sent. `context`: the TLS context for its URL."""
    headers = {"Content-Type": JSON if webhook.body is not None else CLOUD_EVENT}
    if webhook.authorization:
        headers["Authorization"] = webhook.authorization.reveal()
    return Receiver(_url(webhook), headers, context, webhook.timeout)


def _url(webhook: Webhook) -> URL:
    assert webhook.url is not None
    return URL(webhook.url.reveal(), encoded=True)


SHORTEST, KEY, BEGINNING = 6, 16, 12
"""Characters from which on a part of a URL, and a text of a body, may be a secret; those that are searched of it."""


def repeats_a_secret(webhook: Webhook, text: str) -> bool:
    """Return whether a response repeats a secret that it was sent, also if it is escaped as in a URL, HTML or JSON.

    The beginnings of the secrets are searched, as a response may be cut in the middle of one.
    """
    url = _url(webhook)
    literals = webhook.body.literals if webhook.body is not None else ()
    keys = [literal for literal in literals if len(literal) >= KEY and " " not in literal]
    credentials = webhook.authorization.reveal().split()
    whole = [url.raw_path_qs, *keys, *(credentials[1:] or credentials)]
    words = [*url.raw_path.split("/"), *url.query.values()]
    beginnings = {
        form[:BEGINNING].lower()
        for secret in (*whole, *words)
        if len(secret) >= SHORTEST
        for form in (secret, unquote(secret))
    }
    forms = [form.lower() for form in (text, unquote(text), html.unescape(text), text.replace("\\", ""))]
    return any(beginning in form for form in forms for beginning in beginnings)
