"""The syntax of the values of a `[[webhooks]]` table: its name, URL, secrets and filters.

Each parser converts a written value, or raises ValueError with a text that follows "expected ". The text never repeats
the written value: the URL of a chat contains a secret.
"""

import base64
import binascii
import difflib
import re
from urllib.parse import urlsplit

from correlator.config.template import Template
from correlator.config.values import Secret
from correlator.model.document import JOB_STATUSES
from correlator.model.messages import KINDS

MAX_URL = 2_048
MAX_SECRETS = 2
"""While a secret is rotated, two sign."""

_NAME = "a name of up to 32 characters a-z 0-9 -, e.g. tickets"
_URL = "https://host/path (http:// with allow_private only), without user, password or #; 2048 characters at most"
_SIGNING = "whsec_ and the base64 of 24 to 64 bytes, e.g. from: echo whsec_$(openssl rand -base64 32); at most two"
_AUTHORIZATION = "the value of the Authorization header in printable ASCII, e.g. Bearer TOKEN; 4096 characters at most"


class WebhookUrl:
    """The URL of a receiver. It prints without its path, which may be a secret; `reveal()` returns all of it."""

    __slots__ = ("_text", "host", "port", "scheme")

    def __init__(self, text: str) -> None:
        """Raises: ValueError with what is expected."""
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise ValueError(_URL) from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or "@" in parts.netloc:
            raise ValueError(_URL)
        if len(text) > MAX_URL or re.search(r"[^!-~]|[#\\]", text):
            raise ValueError(_URL)
        self._text, self.scheme, self.host = text, parts.scheme, parts.hostname
        self.port = port or (443 if parts.scheme == "https" else 80)

    def reveal(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WebhookUrl) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return f"{self.scheme}://{host}{'' if self.port == default else f':{self.port}'}/***"

    __repr__ = __str__


class SigningSecrets:
    """The secrets that sign a webhook, the newest first; none if it is not signed. It prints as `***`."""

    __slots__ = ("keys",)

    def __init__(self, keys: tuple[bytes, ...] = ()) -> None:
        self.keys = keys

    def __bool__(self) -> bool:
        return bool(self.keys)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SigningSecrets) and self.keys == other.keys

    def __hash__(self) -> int:
        return hash(self.keys)

    def __repr__(self) -> str:
        return "***" if self.keys else ""


def name(raw: object) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", raw):
        raise ValueError(_NAME)
    return raw


def url(raw: object) -> WebhookUrl | None:
    if not isinstance(raw, str):
        raise ValueError(_URL)
    return WebhookUrl(raw) if raw else None


def secrets(raw: object) -> SigningSecrets:
    """Parse one or two secrets, one a line; `#` begins a comment. See Standard Webhooks, "Signature scheme"."""
    if not isinstance(raw, str):
        raise ValueError(_SIGNING)
    found = [word for line in raw.splitlines() for word in re.split(r"(?:^|\s)#", line)[0].split()]
    if len(found) > MAX_SECRETS:
        raise ValueError(_SIGNING)
    return SigningSecrets(tuple(map(_key, found)))


def _key(text: str) -> bytes:
    prefix, _, encoded = text.partition("_")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(_SIGNING) from None
    if prefix != "whsec" or not 24 <= len(key) <= 64:
        raise ValueError(_SIGNING)
    return key


def authorization(raw: object) -> Secret:
    if not isinstance(raw, str) or not re.fullmatch(r"[ -~]{0,4096}", raw) or raw != raw.strip():
        raise ValueError(_AUTHORIZATION)
    return Secret(raw)


def kinds(raw: object) -> tuple[str, ...]:
    """Parse kinds of events; `job.*` and `step.*` are all kinds of a job and of a step."""
    return _chosen(raw, ("job.*", "step.*", *KINDS), "kinds of events")


def statuses(raw: object) -> tuple[str, ...]:
    return _chosen(raw, JOB_STATUSES, "statuses of a job")


def template(raw: object) -> Template | None:
    if not isinstance(raw, str):
        raise ValueError("a text that holds JSON")
    return Template(raw) if raw.strip() else None


def _chosen(raw: object, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise ValueError(f'a list of {what}, e.g. ["{known[-1]}"]')
    for one in raw:
        if one not in known:
            near = difflib.get_close_matches(str(one), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"a list of {what}; {hint}")
    return tuple(raw)
