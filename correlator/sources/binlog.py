"""A parser of the binary log that finds which of our tables changed, and nothing else. Pure: bytes come as arguments.

The stream is packets (3 bytes of length, 1 of sequence), each with a status byte, an event's header of 19 bytes and its
body (https://mariadb.com/kb/en/replication-protocol/). Only two kinds of event name tables, and only the first bytes of
each are parsed: of a transaction of any size, at most `NEEDED` bytes are buffered.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from typing import Final

NEEDED: Final = 2048
"""Bytes at the beginning of an event that are searched for names of tables."""

WHOLE: Final = 0xFFFFFF
"""A packet of this length continues in the next one, which has neither status nor header."""

_STATUS: Final = 4
_TYPE: Final = 9
_BODY: Final = 24
"""Offsets in a packet, including its own header."""

_ERROR: Final = 0xFF
_END: Final = 0xFE

QUERY: Final = 2
TABLE_MAP: Final = 19
QUERY_COMPRESSED: Final = 165

DUMP: Final = 0x12

MAX_POSITION: Final = 0xFFFFFFFF
"""The packet that requests the log has 32 bits for the position. A larger transaction makes a file longer than that."""


class Ended(Exception):
    """The server ended the stream: with the error `code` and its message, or with code 0 if it only closed it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def request(file: str, position: int, server_id: int) -> bytes:
    """The COM_BINLOG_DUMP packet: send everything from `position` of `file` on, and new events as they are written.

    `position`: at most `MAX_POSITION`.
    """
    body = struct.pack("<BIHI", DUMP, position, 0, server_id) + file.encode()
    return struct.pack("<I", len(body)) + body


class ChangedTables:
    """Parses the stream of one connection for changes of `tables` of `database`; names are case-insensitive."""

    def __init__(self, database: str, tables: Iterable[str]) -> None:
        names = [table.lower() for table in tables]
        self._database = database.lower().encode()
        self._tables: Mapping[bytes, str] = {name.encode(): name for name in names}
        self._named = re.compile(rb"\b(" + b"|".join(map(re.escape, self._tables)) + rb")\b", re.IGNORECASE)
        self._kept = b""
        self._skip = 0
        self._goes_on = False
        self.began = False
        """True once the server has sent anything but an error."""

    def feed(self, received: bytes) -> dict[str, int]:
        """The number of statements in `received` by the table that they changed; it may be too high.

        It takes a millisecond for 1,000 packets, so the caller bounds the bytes of a call.

        Statements that name a table of the same name in another database are counted as well.

        Raises:
            Ended: The server has ended the stream, or what it sends is no binary log.
        """
        changed: dict[str, int] = {}
        data = self._kept + received if self._kept else received
        end, at = len(data), self._skip
        while at + 4 <= end:
            length = data[at] | data[at + 1] << 8 | data[at + 2] << 16
            if not self._goes_on:
                if at + 4 + min(length, NEEDED) > end:
                    break
                try:
                    self._read_packet(data[at : at + 4 + min(length, NEEDED)], changed)
                except (IndexError, struct.error):
                    raise Ended(0, "what the server sends is no binary log") from None
            self._goes_on = length == WHOLE
            at += 4 + length
        self._skip = max(0, at - end)
        self._kept = data[at:]
        return changed

    def _read_packet(self, packet: bytes, changed: dict[str, int]) -> None:
        """Read the begin of a packet. Raises: `Ended`; `IndexError` or `struct.error` if it is too short."""
        status = packet[_STATUS] if len(packet) > _STATUS else _END
        if status == _ERROR:
            code, message = struct.unpack_from("<H", packet, 5)[0], packet[7:]
            raise Ended(code, re.sub(rb"^#.....", b"", message).decode("utf-8", "replace"))
        if status == _END:
            raise Ended(0, "the server has ended the stream")
        self.began = True
        kind = packet[_TYPE]
        if kind == TABLE_MAP:
            if (mapped := self._mapped(packet, _BODY + 8)) is not None:
                changed[mapped] = changed.get(mapped, 0) + 1
        elif kind == QUERY:
            for name in {self._tables[found.lower()] for found in self._named.findall(packet, _BODY)}:
                changed[name] = changed.get(name, 0) + 1
        elif kind == QUERY_COMPRESSED:
            for name in self._tables.values():  # not worth unpacking: an unneeded read does no harm
                changed[name] = changed.get(name, 0) + 1

    def _mapped(self, data: bytes, at: int) -> str | None:
        """The table of a TABLE_MAP event if it is one of ours. It holds two names, each with its length and a NUL."""
        schema = at + 1 + data[at]
        table = schema + 2 + data[schema + 1]
        ours = data[at + 1 : schema].lower() == self._database
        return self._tables.get(data[schema + 2 : table].lower()) if ours else None
