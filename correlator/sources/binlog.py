"""What a server's binary log says of our tables: that they changed, and nothing else. Pure: it is fed the bytes.

The stream is packets (3 bytes of length, 1 of sequence), each with a status byte, an event's header of 19 bytes and its
body (https://mariadb.com/kb/en/replication-protocol/). Only two kinds of event name tables, and only the first bytes of
each are looked at: however large a transaction is, no more than `NEEDED` bytes of it are kept.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from typing import Final

NEEDED: Final = 2048
"""Bytes of an event in which the names that matter stand: of a statement, its beginning."""

WHOLE: Final = 0xFFFFFF
"""A packet of this length goes on in the next one, which has neither status nor header."""

_STATUS: Final = 4
_TYPE: Final = 9
_BODY: Final = 24
"""Where in a packet, its own header included, these begin."""

_ERROR: Final = 0xFF
_END: Final = 0xFE

QUERY: Final = 2
TABLE_MAP: Final = 19
QUERY_COMPRESSED: Final = 165

DUMP: Final = 0x12


class Ended(Exception):
    """The server ended the stream: in `code` and the message its error, or code 0 where it just said goodbye."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def request(file: str, position: int, server_id: int) -> bytes:
    """The packet that asks for all from `position` of `file` on, and for what follows as it is written."""
    body = struct.pack("<BIHI", DUMP, position, 0, server_id) + file.encode()
    return struct.pack("<I", len(body)) + body


class Changes:
    """The stream of one connection. `tables` of `database` are those that matter; case does not."""

    def __init__(self, database: str, tables: Iterable[str]) -> None:
        names = [table.lower() for table in tables]
        self._database = database.lower().encode()
        self._tables: Mapping[bytes, str] = {name.encode(): name for name in names}
        self._named = re.compile(rb"\b(" + b"|".join(map(re.escape, self._tables)) + rb")\b", re.IGNORECASE)
        self._kept = b""
        self._skip = 0
        self._goes_on = False
        self.began = False
        """Whether the server has sent anything but an error."""

    def feed(self, received: bytes) -> dict[str, int]:
        """How many statements in `received` changed which table; statements on tables alike may be among them.

        Raises `Ended`.
        """
        changed: dict[str, int] = {}
        data = self._kept + received if self._kept else received
        end, at = len(data), self._skip
        while at + 4 <= end:
            length = data[at] | data[at + 1] << 8 | data[at + 2] << 16
            if not self._goes_on:
                if at + 4 + min(length, NEEDED) > end:
                    break
                self._look(data, at, length, changed)
            self._goes_on = length == WHOLE
            at += 4 + length
        self._skip = max(0, at - end)
        self._kept = data[at:]
        return changed

    def _look(self, data: bytes, at: int, length: int, changed: dict[str, int]) -> None:
        status = data[at + _STATUS] if length else _END
        if status == _ERROR:
            code, message = struct.unpack_from("<H", data, at + 5)[0], data[at + 7 : at + 4 + length]
            raise Ended(code, re.sub(rb"^#.....", b"", message).decode("utf-8", "replace"))
        if status == _END:
            raise Ended(0, "the server has ended the stream")
        self.began = True
        kind = data[at + _TYPE] if length > _TYPE - _STATUS else 0
        if kind == TABLE_MAP:
            for name in self._mapped(data, at + _BODY + 8):
                changed[name] = changed.get(name, 0) + 1
        elif kind == QUERY:
            head = data[at + _BODY : at + 4 + min(length, NEEDED)]
            for name in {self._tables[found.lower()] for found in self._named.findall(head)}:
                changed[name] = changed.get(name, 0) + 1
        elif kind == QUERY_COMPRESSED:
            for name in self._tables.values():  # not worth unpacking: a look that finds nothing does no harm
                changed[name] = changed.get(name, 0) + 1

    def _mapped(self, data: bytes, at: int) -> Iterable[str]:
        """The table of a TABLE_MAP event, if it is one of ours: two names, each after its length and before a NUL."""
        schema = at + 1 + data[at]
        table = schema + 2 + data[schema + 1]
        if data[at + 1 : schema].lower() == self._database:
            name = self._tables.get(data[schema + 2 : table].lower())
            if name is not None:
                yield name
