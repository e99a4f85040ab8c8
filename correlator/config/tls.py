"""TLS of outgoing connections: its settings, and the context that they give."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from correlator.config.values import Section
from correlator.config.values import key as _key


@dataclass(frozen=True, kw_only=True)
class Tls(Section):
    ca: Path | None = _key(None, "CA certificates to trust (PEM); empty: the system's.")
    cert: Path | None = _key(None, "Client certificate (PEM), for a peer that asks for one.")
    key: Path | None = _key(None, "Private key of `cert` (PEM).")
    verify: bool = _key(True, "Check the peer's certificate and its host name.")


def client_context(settings: Tls | None) -> ssl.SSLContext:
    """Return the context for `settings`. None: trust the system's CAs, and verify certificate and host name.

    Raises: OSError or ssl.SSLError if a file cannot be read or used.
    """
    context = ssl.create_default_context(cafile=settings.ca if settings is not None else None)
    if settings is not None and not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings is not None and settings.cert is not None:
        context.load_cert_chain(settings.cert, settings.key)
    return context
