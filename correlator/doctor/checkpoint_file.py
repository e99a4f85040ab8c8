"""Check of the checkpoint that an earlier run has written, without changing it."""

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

from correlator.config.schema import Config
from correlator.doctor.check import Check, failure, ok, warning
from correlator.jobs.model.persisted import Cursor
from correlator.pipeline.checkpoint import APPLICATION_ID, VERSION

CHECKPOINT = "state.checkpoint"

_MAGIC = b"SQLite format 3\0"
_HEAD = 100
"""Bytes of SQLite's header: user_version is at offset 60, application_id at 68."""

_ANEW = ("The next start sets it aside and reads everything from the tables. Events since then are not published.",)


class CheckpointFigures(Struct, frozen=True):
    """Size and contents of a checkpoint, in numbers."""

    bytes: int
    version: int
    at: float | None = None
    source: str = ""
    head: int | None = None
    jobs: int | None = None
    legacy: int | None = None
    events: int | None = None


def checkpoint(config: Config) -> tuple[Check, CheckpointFigures | None]:
    """Read a copy of the checkpoint. If a running daemon has it open, return its size only."""
    file = config.state.directory / "checkpoint.sqlite"
    try:
        with file.open("rb") as opened:
            holder = _holder(opened)
            head = opened.read(_HEAD)
        figures = CheckpointFigures(file.stat().st_size, int.from_bytes(head[60:64], "big"))
    except FileNotFoundError:
        return ok(CHECKPOINT, "none yet: the first start reads the tables, and the log of database.history"), None
    except OSError as error:
        return failure(CHECKPOINT, f"{file} cannot be read: {error.strerror}", fix=[f"ls -l {quote(str(file))}"]), None
    if holder is not None:
        return ok(
            CHECKPOINT, f"{figures.bytes / 1e6:.1f} MB, kept by the daemon that runs as process {holder}"
        ), figures
    return _at_rest(config, file, head, figures)


def _holder(opened: BinaryIO) -> int | None:
    """Return the process that holds SQLite's lock, which covers bytes from 2³⁰ on. None if no process does."""
    layout = "hhqqi"  # struct flock: type, whence, start, length, pid
    asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 1 << 30, 512, 0)
    kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(opened, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)


def _at_rest(
    config: Config, file: Path, head: bytes, figures: CheckpointFigures
) -> tuple[Check, CheckpointFigures | None]:
    try:
        if head[:16] != _MAGIC or int.from_bytes(head[68:72], "big") not in (APPLICATION_ID, 0):
            return warning(CHECKPOINT, f"{file} is no checkpoint", _ANEW), figures
        figures = _contents(file, figures)
        if figures.version != VERSION:
            words = f"it has version {figures.version}, but this program needs version {VERSION}"
            return warning(CHECKPOINT, words, _ANEW), figures
    except (sqlite3.Error, OSError, msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
        return warning(CHECKPOINT, f"{file} is damaged: {error}", _ANEW), figures
    if figures.source and figures.source != str(config.database.url):
        return warning(CHECKPOINT, f"it belongs to another database: {figures.source}", _ANEW), figures
    return ok(
        CHECKPOINT, f"{figures.jobs} jobs and {figures.events} events, up to row {figures.head} of the log"
    ), figures


def _contents(file: Path, figures: CheckpointFigures) -> CheckpointFigures:
    """Read the tables of the checkpoint. Of a file of another version, return that version only."""
    with tempfile.TemporaryDirectory(prefix="correlator-doctor-") as folder:
        copy = Path(folder, file.name)
        for suffix in ("", "-wal"):
            if (part := file.with_name(file.name + suffix)).exists():
                shutil.copyfile(part, copy.with_name(copy.name + suffix))
        connection = sqlite3.connect(copy, isolation_level=None)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != VERSION:
                return CheckpointFigures(figures.bytes, version)
            state = dict(connection.execute("SELECT name, value FROM state"))
            counts = [
                connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
                for table in ("jobs", "legacy", "events")
            ]
        finally:
            connection.close()
    if not state:
        return CheckpointFigures(figures.bytes, version, head=0, jobs=0, legacy=0, events=0)
    decode = msgspec.msgpack.decode
    at, source = decode(state["at"], type=float), decode(state["source"], type=str)
    return CheckpointFigures(figures.bytes, version, at, source, decode(state["cursor"], type=Cursor).head, *counts)
