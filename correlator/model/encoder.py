"""Documents and messages as JSON: encoded, and compared for a merge patch. What a checkpoint has, as msgpack.

Apart from the types, which a client has too: it needs no encoder but its own.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import orjson
from msgspec import UNSET, Raw, Struct
from msgspec.structs import asdict, astuple

MAX_DEPTH: Final = 200
"""The maximum nesting of an encoded value, in levels. The encoder fails above 254, the parser accepts more."""

_encoder: Final = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """Encode a document, a patch or a message as JSON. Invalid Unicode and values nested too deep are replaced."""
    try:
        return _encoder.encode(value)
    except (UnicodeEncodeError, RecursionError):
        return orjson.dumps(clean(value))


def encode_document(found: Struct) -> bytes:
    """Encode a document, or a step of it. `encode` is slower here, and returns a block up to twice as large."""
    buffer = bytearray(4_096)
    try:
        _encoder.encode_into(found, buffer)
    except (UnicodeEncodeError, RecursionError):
        buffer[:] = orjson.dumps(clean(found))
    return bytes(buffer)


def packed(value: Any) -> bytes | None:
    """Encode a value for a checkpoint. None for None, and if it cannot be encoded (a lone surrogate)."""
    try:
        return msgspec.msgpack.encode(value) if value is not None else None
    except (ValueError, OverflowError, TypeError, RecursionError):
        return None


def clean(value: Any, depth: int = 0) -> Any:
    """Copy `value` into what orjson encodes: valid Unicode, integers of 64 bits, at most `MAX_DEPTH` levels."""
    if depth > MAX_DEPTH or (isinstance(value, int) and not -(2**63) <= value < 2**64):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Raw):
        return orjson.Fragment(bytes(value))
    if isinstance(value, Struct):
        config = value.__struct_config__
        tag = {config.tag_field: config.tag} if config.tag_field is not None else {}
        value = tag | {name: member for name, member in asdict(value).items() if member is not UNSET}
    if isinstance(value, dict):
        return {clean(k if isinstance(k, str) else str(k)): clean(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v, depth + 1) for v in value]
    return value


def patch(old: Struct, new: Struct) -> dict[str, Any]:
    """The merge patch from `old` to `new`, of one type. What both share costs nothing. See RFC 7386."""
    changed: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for name, before, value in zip(new.__struct_fields__, astuple(old), astuple(new), strict=True):
        if before is value or before == value:
            continue
        kind = type(value)
        if value is UNSET:
            last[name] = None
        elif kind is dict:
            last[name] = _members(before, value)
        elif kind is Raw:
            if inner := merge_patch(orjson.loads(bytes(before)), orjson.loads(bytes(value))):
                changed[name] = Raw(orjson.dumps(inner))
        elif type(before) is kind and isinstance(value, Struct):
            changed[name] = patch(before, value)
        else:
            changed[name] = value
    return changed | last if last else changed


def _members(old: dict[Any, Any], new: dict[Any, Any]) -> dict[Any, Any]:
    changed: dict[Any, Any] = {}
    for key, value in new.items():
        before = old.get(key)
        if before is None:
            changed[key] = value
        elif before is not value and before != value:
            changed[key] = patch(before, value)
    return changed | {key: None for key in old if key not in new}


def merge_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The merge patch between two JSON objects. A missing member and null mean the same. See RFC 7386."""
    changed: dict[str, Any] = {}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := merge_patch(before, value):
                changed[name] = inner
        elif type(before) is not type(value) or orjson.dumps(before) != orjson.dumps(value):
            changed[name] = value  # 1, 1.0 and True are equal in Python, and not in JSON
    return changed | dict.fromkeys(name for name in old if name not in new)
