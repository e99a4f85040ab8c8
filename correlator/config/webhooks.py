"""The `[[webhooks]]` tables: their keys, and what completes them: values that stand in files, and what is missing."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from msgspec.structs import replace

from correlator.config import values, webhook_values
from correlator.config.secret_files import credential, read_secret
from correlator.config.section import Section, described
from correlator.config.template import Template
from correlator.config.values import Secret
from correlator.config.webhook_values import SigningSecrets, WebhookUrl
from correlator.errors import ConfigError

MAX_WEBHOOKS = 16


class Webhook(Section, frozen=True, kw_only=True):
    name: Annotated[
        str, described("Names the webhook in metrics, logs and credentials. Required, unique.", webhook_values.name)
    ] = ""
    url: Annotated[
        WebhookUrl | None,
        described("Where events are sent by POST. Only its host is ever printed. Required.", webhook_values.url),
    ] = None
    url_file: Annotated[
        Path | None,
        described("A file that holds the URL. Also as the credential webhook-NAME-url.", values.optional_path),
    ] = None
    events: Annotated[
        tuple[str, ...],
        described("Kinds of events to send. job.* and step.* are all kinds of a job, of a step.", webhook_values.kinds),
    ] = ("job.*",)
    operations: Annotated[tuple[str, ...], described("Only jobs with one of these operations; empty: all.")] = ()
    statuses: Annotated[
        tuple[str, ...],
        described("Only jobs that have one of these statuses at the event; empty: all.", webhook_values.statuses),
    ] = ()
    secret: Annotated[
        SigningSecrets,
        described(
            "Key for the signature (Standard Webhooks); empty: unsigned. Better in secret_file.", webhook_values.secrets
        ),
    ] = SigningSecrets()
    secret_file: Annotated[
        Path | None,
        described(
            "A file with one secret a line, # comments; while it is rotated, both are used. Also as the"
            " credential webhook-NAME-secret.",
            values.optional_path,
        ),
    ] = None
    authorization: Annotated[
        Secret,
        described("Value of the header Authorization. Better in authorization_file.", webhook_values.authorization),
    ] = Secret()
    authorization_file: Annotated[
        Path | None,
        described("A file that holds it. Also as the credential webhook-NAME-authorization.", values.optional_path),
    ] = None
    body: Annotated[
        Template | None,
        described(
            "JSON text with placeholders such as {{job.status}}, sent instead of a CloudEvent.", webhook_values.template
        ),
    ] = None
    timeout: Annotated[
        float, described("Time for one attempt, from the name server to the response.", values.seconds, ge=1, le=60)
    ] = 15.0
    allow_private: Annotated[
        bool, described("Also connect to private and loopback addresses, and send by http://.")
    ] = False
    ca: Annotated[
        Path | None, described("CA certificates to trust (PEM); empty: the system's.", values.optional_path)
    ] = None


class _Filed(NamedTuple):
    """A key whose value may stand in a file instead, which `{key}_file` or the credential names."""

    key: str
    parse: Callable[[object], Any]


_FILED = (
    _Filed("url", webhook_values.url),
    _Filed("secret", webhook_values.secrets),
    _Filed("authorization", webhook_values.authorization),
)


def complete(
    webhooks: tuple[Webhook, ...],
    environ: Mapping[str, str],
    add: Callable[[str, str], None],
    place: Callable[[str], str],
) -> tuple[Webhook, ...]:
    """Return the webhooks with the values that files hold. `add(key, line)` gets each problem.

    `place(key)`: the place of a key in the files.
    """
    if len(webhooks) > MAX_WEBHOOKS:
        add("webhooks", f"webhooks: expected {MAX_WEBHOOKS} tables at most, not {len(webhooks)}")
    first: dict[str, str] = {}
    completed = []
    for number, webhook in enumerate(webhooks, 1):
        label = f"webhooks[{number}]"
        if webhook.name in first:
            taken = f'"{webhook.name}": expected another name, as the one in {place(first[webhook.name])} has it'
            add(f"{label}.name", f"{label}.name = {taken}")
        first.setdefault(webhook.name, f"{label}.name")
        completed.append(_completed(webhook, label, environ, add))
    return tuple(completed)


def _completed(webhook: Webhook, label: str, environ: Mapping[str, str], add: Callable[[str, str], None]) -> Webhook:
    if not webhook.name:
        add(f"{label}.name", f"{label}.name: expected a name, e.g. tickets")
        return webhook
    found = {}
    for key, parse in _FILED:
        key_file = f"{label}.{key}_file"
        given, file = getattr(webhook, key), getattr(webhook, f"{key}_file")
        if given and file:
            add(key_file, f"{key_file}: {label}.{key} is given already; give it once")
        file = file or credential(environ, f"webhook-{webhook.name}-{key}")
        if not given and file:
            found[key] = _read(file, key_file, parse, add)
    webhook = replace(webhook, **{key: value for key, value in found.items() if value is not None})
    if webhook.url is None and "url" not in found:
        add(f"{label}.url", f"{label}.url: expected https://host/path, or a url_file")
    if webhook.url is not None and webhook.url.scheme == "http" and not webhook.allow_private:
        line = f"{label}.url = {webhook.url}: not encrypted; expected https://, or allow_private = true"
        add(f"{label}.url", line)
    if webhook.ca is not None:
        try:
            webhook.ca.open("rb").close()
        except OSError as error:
            add(f"{label}.ca", f"{label}.ca: {webhook.ca} cannot be read: {error.strerror}")
    return webhook


def _read(file: Path, label: str, parse: Callable[[object], Any], add: Callable[[str, str], None]) -> Any:
    """Return the value in `file`; None if it cannot be used."""
    try:
        value = parse(read_secret(file, label).strip())
    except ConfigError as error:
        add(label, str(error))
        return None
    except ValueError as error:
        add(label, f"{label}: its content: expected {error}")
        return None
    if not value:
        add(label, f"{label}: the file holds nothing but comments")
    return value or None
