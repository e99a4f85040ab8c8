"""A table of the configuration file, and the description of a key."""

from collections.abc import Callable
from typing import Any

import msgspec


def described(description: str, parse: Callable[[object], object] | None = None, **bounds: Any) -> msgspec.Meta:
    """Describe a key. `parse` converts the written value, or raises ValueError with what is expected."""
    return msgspec.Meta(description=description, extra={"parse": parse}, **bounds)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""
