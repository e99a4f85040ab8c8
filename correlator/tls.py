"""TLS contexts whose connections end when their peer sends many records without data.

Problem. In TLS 1.3 a peer may ask for new keys at any time (KeyUpdate, RFC 8446, 4.6.3). A request has 27 bytes, and to
follow it takes some 10 µs. OpenSSL follows all that have come before it returns, and bounds neither their number nor
their rate: a client without a token could stop the event loop for seconds.

Model. OpenSSL gets what has come record by record (`RecordReader`), and returns after each one. Those without data are
counted, and bounded. No key exchange has a group that the peer chooses: one of 10,000 bits takes a second, in the loop.

Invariant. OpenSSL never has bytes behind the end of the record that it reads.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

RECORDS_WITHOUT_DATA: Final = 64
"""Records without data that a peer may send in one connection, with those of its handshake. A handshake has up to ten.
Libraries that ask for new keys by themselves do so after millions of records."""

HEADER: Final = 5
"""Bytes of a record's header. The last two are the number of bytes behind it (RFC 8446, 5.1)."""


class RecordReader(ssl.SSLObject):
    """A connection that reads what its peer sends record by record. `RecordContext.wrap_bio` makes it."""

    _incoming: ssl.MemoryBIO
    """What has come, and was not read."""
    _record: ssl.MemoryBIO
    """What OpenSSL reads."""
    _header: bytes
    """As much as was read of the header of this record."""
    _missing: int
    """Bytes of this record that were not read, without the header."""
    _without_data: int

    def begin(self, incoming: ssl.MemoryBIO, record: ssl.MemoryBIO) -> None:
        """Read from `incoming`. `record`: where OpenSSL reads."""
        self._incoming, self._record = incoming, record
        self._header, self._missing, self._without_data = b"", 0, 0

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - the name of the base class
        """Read as the base class does.

        Raises: ssl.SSLError: see `SSLObject.read`; or the peer has sent too many records without data.
        """
        return self._by_records(lambda: super(RecordReader, self).read(len, buffer))

    def do_handshake(self) -> None:
        """Continue the handshake. Raises: as `read`."""
        self._by_records(super().do_handshake)

    def unwrap(self) -> None:
        """Continue the end of the connection. Raises: as `read`."""
        self._by_records(super().unwrap)

    def _by_records(self, call: Callable[[], T]) -> T:
        while True:
            whole = not self.pending() and self._next()
            try:
                return call()
            except ssl.SSLWantReadError:
                if not whole:
                    raise
                self._without_data += 1
                if self._without_data > RECORDS_WITHOUT_DATA:
                    raise ssl.SSLError(
                        ssl.SSL_ERROR_SSL, f"the peer sent more than {RECORDS_WITHOUT_DATA} TLS records without data"
                    ) from None

    def _next(self) -> bool:
        """Give OpenSSL what has come of the next record. True if that is the whole record."""
        if len(self._header) < HEADER:
            more = self._incoming.read(HEADER - len(self._header))
            self._record.write(more)
            self._header += more
            if len(self._header) == HEADER:
                self._missing = int.from_bytes(self._header[-2:])
        if self._missing:
            self._missing -= self._record.write(self._incoming.read(self._missing))
        if self._incoming.eof and not self._record.eof:
            self._record.write_eof()
        whole = len(self._header) == HEADER and not self._missing
        if whole:
            self._header = b""
        return whole


class RecordContext(ssl.SSLContext):
    """A context of which each connection over `MemoryBIO`s, as asyncio has them, is a `RecordReader`."""

    sslobject_class = RecordReader

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **options: Any) -> RecordReader:
        """Return the `RecordReader` for a connection. The arguments are those of the base class."""
        record = ssl.MemoryBIO()
        connection = super().wrap_bio(record, outgoing, *args, **options)
        assert isinstance(connection, RecordReader)
        connection.begin(incoming, record)
        return connection


def default_context(purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH, *, ca: Path | None = None) -> RecordContext:
    """Return `ssl.create_default_context`, without ciphers whose key exchange is DHE: its server chooses the group.

    `ca`: the file with the certificates to trust; None: the system's.

    Raises: OSError, ssl.SSLError: `ca` cannot be read or used.
    """
    context = ssl.create_default_context(purpose, cafile=ca)  # noqa: TID251 - this is its replacement
    context.set_ciphers(":".join(cipher["name"] for cipher in context.get_ciphers() if cipher["kea"] != "kx-dhe"))
    context.__class__ = RecordContext  # no parameter names it
    assert isinstance(context, RecordContext)
    return context
