"""The checkpoint that an earlier run left, looked at without touching it."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import struct
import tempfile
from pathlib import Path
from shlex import quote
from typing import BinaryIO

import msgspec
from msgspec import Struct

from correlator.checkpoint import APPLICATION_ID, VERSION
from correlator.doctor.check import Check, failure, ok, warning
from correlator.jobs.model import Cursor
from correlator.settings import Config

CHECKPOINT = "state.checkpoint"

_MAGIC = b"SQLite format 3\0"
_HEAD = 100
"""Bytes of SQLite's header; at 60 the version that a program gave its file, at 68 its mark."""

_ANEW = ("the next start sets it aside, and reads everything from the tables: events of meanwhile are not told",)


class Kept(Struct, frozen=True):
    """What a checkpoint holds, in figures."""

    bytes: int
    version: int
    at: float | None = None
    source: str = ""
    head: int | None = None
    jobs: int | None = None
    legacy: int | None = None
    events: int | None = None


def checkpoint(config: Config) -> tuple[Check, Kept | None]:
    """Read from a copy: the file itself stays as it is. Of one that a daemon has open, the size alone."""
    file = config.state.directory / "checkpoint.sqlite"
    try:
        with file.open("rb") as opened:
            holder = _holder(opened)
            head = opened.read(_HEAD)
        kept = Kept(file.stat().st_size, int.from_bytes(head[60:64], "big"))
    except FileNotFoundError:
        return ok(CHECKPOINT, "none yet: the first start reads the tables, and the log of database.history"), None
    except OSError as error:
        return failure(CHECKPOINT, f"{file} cannot be read: {error.strerror}", mend=[f"ls -l {quote(str(file))}"]), None
    if holder is not None:
        return ok(CHECKPOINT, f"{kept.bytes / 1e6:.1f} MB, kept by the daemon that runs as process {holder}"), kept
    return _at_rest(config, file, head, kept)


def _holder(opened: BinaryIO) -> int | None:
    """The process that has the file locked, as SQLite locks it: by bytes from 2³⁰ on, which no file has."""
    layout = "hhqqi"  # struct flock: type, whence, start, length, pid
    asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 1 << 30, 512, 0)
    kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(opened, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)


def _at_rest(config: Config, file: Path, head: bytes, kept: Kept) -> tuple[Check, Kept | None]:
    try:
        if head[:16] != _MAGIC or int.from_bytes(head[68:72], "big") not in (APPLICATION_ID, 0):
            return warning(CHECKPOINT, f"{file} is no checkpoint", _ANEW), kept
        kept = _contents(file, kept)
        if kept.version != VERSION:
            words = f"it is of version {kept.version}, and this program keeps version {VERSION}"
            return warning(CHECKPOINT, words, _ANEW), kept
    except (sqlite3.Error, OSError, msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
        return warning(CHECKPOINT, f"{file} is damaged: {error}", _ANEW), kept
    if kept.source and kept.source != str(config.database.url):
        return warning(CHECKPOINT, f"it is of another database: {kept.source}", _ANEW), kept
    return ok(CHECKPOINT, f"{kept.jobs} jobs and {kept.events} events, up to row {kept.head} of the log"), kept


def _contents(file: Path, kept: Kept) -> Kept:
    """What stands in the tables; of a file of another version, that version alone."""
    with tempfile.TemporaryDirectory(prefix="correlator-doctor-") as folder:
        copy = Path(folder, file.name)
        for suffix in ("", "-wal"):
            if (part := file.with_name(file.name + suffix)).exists():
                shutil.copyfile(part, copy.with_name(copy.name + suffix))
        connection = sqlite3.connect(copy, isolation_level=None)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != VERSION:
                return Kept(kept.bytes, version)
            state = dict(connection.execute("SELECT name, value FROM state"))
            counts = [
                connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
                for table in ("jobs", "legacy", "events")
            ]
        finally:
            connection.close()
    if not state:
        return Kept(kept.bytes, version, head=0, jobs=0, legacy=0, events=0)
    decode = msgspec.msgpack.decode
    at, source = decode(state["at"], type=float), decode(state["source"], type=str)
    return Kept(kept.bytes, version, at, source, decode(state["cursor"], type=Cursor).head, *counts)
