"""The door of the HTTP sink as it is configured: who may come in, and the listener's certificate.

Both may change while it serves. What cannot be used leaves what is in use as it is.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable

from correlator.config import read_tokens
from correlator.errors import CorrelatorError
from correlator.settings import Config, Http
from correlator.sinks.access import Access


class Door:
    """`access` and `tls` (None: plain http) are the listener's. Raises `CorrelatorError` for a token file or a
    certificate that cannot be used.
    """

    def __init__(self, config: Config) -> None:
        http = config.http
        self.access = Access(listen_host=http.listen.host, clock=time.monotonic)
        self.tls = _server_context(http) if http.tls_cert is not None else None
        self.prepare(config)()

    def prepare(self, config: Config) -> Callable[[], None]:
        """Satisfies `reload.Prepare`."""
        http, tokens = config.http, read_tokens(config)
        if self.tls is None and http.tls_cert is not None:
            raise CorrelatorError("http.tls_cert: expected nothing: from http to https needs a restart")
        if self.tls is not None:
            _server_context(http)  # a certificate that cannot be used leaves the one in use as it is

        def take() -> None:
            self.access.change(
                tokens, http.allowed_origins, http.allowed_hosts, http.max_readers, http.max_readers_per_address
            )
            if self.tls is not None and http.tls_cert is not None:
                self.tls.load_cert_chain(http.tls_cert, http.tls_key)

        return take


def _server_context(http: Http) -> ssl.SSLContext:
    """TLS for the listener. Raises `CorrelatorError`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if http.tls_cert is None:
        raise CorrelatorError("http.tls_cert: expected a file: from https to http needs a restart")
    try:
        context.load_cert_chain(http.tls_cert, http.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise CorrelatorError(f"http.tls_cert, http.tls_key: cannot be used: {error.strerror or error}") from error
    return context
