"""The listener's access rules and certificate, from the configuration.

Both can be reloaded while the listener serves. A configuration that cannot be used changes nothing.
"""

from __future__ import annotations

import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from correlator.config.loading import read_tokens
from correlator.config.schema import Config
from correlator.errors import CorrelatorError
from correlator.sinks.http.access import Access

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Those of TLS 1.2: with forward secrecy and authenticated encryption. TLS 1.3 has no others."""


class ListenerConfig:
    """The access rules and the TLS context of a listener. `tls` is None for plain HTTP.

    Raises:
        CorrelatorError: The token file or the certificate cannot be used.
    """

    def __init__(self, config: Config) -> None:
        self.access = Access(listen_host=config.http.listen.host, clock=time.monotonic)
        self.tls: ssl.SSLContext | None = None
        if config.http.tls_cert is not None:
            self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.tls.set_ciphers(CIPHERS)
        self.prepare(config)()

    def prepare(self, config: Config) -> Callable[[], None]:
        """Check a new configuration and return the function that applies it; satisfies `reload.Prepare`.

        A change between http and https needs a restart.
        """
        http, tokens = config.http, read_tokens(config)
        chain = _Chain(http.tls_cert, http.tls_key) if self.tls is not None and http.tls_cert is not None else None
        if chain is not None:
            try:
                chain.load(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
            except (OSError, ssl.SSLError) as error:
                why = error.strerror or error
                raise CorrelatorError(f"http.tls_cert, http.tls_key: cannot be used: {why}") from error

        def apply() -> None:
            if self.tls is not None and chain is not None:
                chain.load(self.tls)
            self.access.change(
                tokens,
                http.allowed_origins,
                http.allowed_hosts,
                http.max_readers,
                http.max_readers_per_address,
                http.trusted_proxies,
            )

        return apply


class _Chain:
    """A certificate and its key, read once: a renewal writes the files one after the other."""

    def __init__(self, cert: Path, key: Path | None) -> None:
        self._paths = [path for path in (cert, key) if path is not None]
        try:
            self._read = [path.read_bytes() for path in self._paths]
        except OSError as error:
            raise CorrelatorError(f"http.tls_cert, http.tls_key: cannot be read: {error.strerror or error}") from error

    def load(self, context: ssl.SSLContext) -> None:
        """Load both into `context`, from private temporary files, as OpenSSL accepts only files.

        Raises:
            ssl.SSLError: The certificate or the key is invalid, or they do not belong together.
            OSError: The temporary files cannot be written.
        """
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder, str(i))) for i in range(len(self._read))]
            for file, content in zip(files, self._read, strict=True):
                Path(file).touch(mode=0o600)
                Path(file).write_bytes(content)
            context.load_cert_chain(*files)
