"""TLS of outgoing connections: its settings, and the context that they give."""

import ssl
from pathlib import Path
from typing import Annotated

from correlator.config.values import Section
from correlator.config.values import described as _key


class Tls(Section, frozen=True, kw_only=True):
    ca: Annotated[Path | None, _key("CA certificates to trust (PEM); empty: the system's.")] = None
    cert: Annotated[Path | None, _key("Client certificate (PEM), for a peer that asks for one.")] = None
    key: Annotated[Path | None, _key("Private key of `cert` (PEM).")] = None
    verify: Annotated[bool, _key("Check the peer's certificate and its host name.")] = True


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
