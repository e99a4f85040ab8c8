"""A daemon whose clock the test sets, with libfaketime."""

from __future__ import annotations

from pathlib import Path

import pytest

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), Path("/none"))

needs_faketime = pytest.mark.skipif(not LIBRARY.exists(), reason="libfaketime is not installed")


def environment(stamp: Path, offset: str = "+0") -> dict[str, str]:
    """The environment of a process whose clock `set_clock` sets in the file `stamp`. Its monotonic clock is real."""
    set_clock(stamp, offset)
    return {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(stamp),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DISABLE_SHM": "1",  # which a process that is killed would leave
    }


def set_clock(stamp: Path, offset: str) -> None:
    """Replace the file in one step: libfaketime ends a process that reads it while it is empty."""
    new = stamp.with_suffix(".new")
    new.write_text(offset)
    new.rename(stamp)
