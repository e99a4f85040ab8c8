"""TLS towards a peer that we connect to, from its settings."""

from __future__ import annotations

import ssl

from correlator.settings import Tls


def client_context(settings: Tls | None) -> ssl.SSLContext:
    """Without settings the system's CAs are trusted, and the peer's certificate and name are checked."""
    context = ssl.create_default_context(cafile=settings.ca if settings is not None else None)
    if settings is not None and not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings is not None and settings.cert is not None:
        context.load_cert_chain(settings.cert, settings.key)
    return context
