"""The door of the HTTP sink as it is configured: who may come in, and the listener's certificate.

Both may change while it serves. What cannot be used leaves what is in use as it is.
"""

from __future__ import annotations

import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from correlator.config import read_tokens
from correlator.errors import CorrelatorError
from correlator.settings import Config
from correlator.sinks.access import Access


class Door:
    """`access` and `tls` (None: plain http) are the listener's. Raises `CorrelatorError` for a token file or a
    certificate that cannot be used.
    """

    def __init__(self, config: Config) -> None:
        self.access = Access(listen_host=config.http.listen.host, clock=time.monotonic)
        self.tls: ssl.SSLContext | None = None
        if config.http.tls_cert is not None:
            self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.prepare(config)()

    def prepare(self, config: Config) -> Callable[[], None]:
        """Satisfies `reload.Prepare`. Between http and https there is no way but a restart."""
        http, tokens = config.http, read_tokens(config)
        chain = _Chain(http.tls_cert, http.tls_key) if self.tls is not None and http.tls_cert is not None else None
        if chain is not None:
            try:
                chain.load(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
            except (OSError, ssl.SSLError) as error:
                why = error.strerror or error
                raise CorrelatorError(f"http.tls_cert, http.tls_key: cannot be used: {why}") from error

        def take() -> None:
            if self.tls is not None and chain is not None:
                chain.load(self.tls)
            self.access.change(
                tokens, http.allowed_origins, http.allowed_hosts, http.max_readers, http.max_readers_per_address
            )

        return take


class _Chain:
    """A certificate and its key as they were at one moment: whoever renews them writes one after the other."""

    def __init__(self, cert: Path, key: Path | None) -> None:
        self._paths = [path for path in (cert, key) if path is not None]
        try:
            self._read = [path.read_bytes() for path in self._paths]
        except OSError as error:
            raise CorrelatorError(f"http.tls_cert, http.tls_key: cannot be read: {error.strerror or error}") from error

    def load(self, context: ssl.SSLContext) -> None:
        """OpenSSL reads files only: these are nobody else's, and gone at once. Raises SSLError or OSError."""
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder, str(i))) for i in range(len(self._read))]
            for file, content in zip(files, self._read, strict=True):
                Path(file).touch(mode=0o600)
                Path(file).write_bytes(content)
            context.load_cert_chain(*files)
