"""TLS contexts for outgoing connections."""

from __future__ import annotations

import ssl

from correlator.config.tls import Tls


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
