"""What msgspec encodes of types: the members of each, in order, and those of the types that they contain."""

from __future__ import annotations

from typing import Any

from msgspec import inspect
from msgspec.structs import asdict


def shape(*types: Any) -> str:
    """A text that is another one after each change of a member's name, type or place."""
    structs: dict[str, list[Any]] = {}

    def name(found: inspect.Type) -> Any:
        if isinstance(found, inspect.Metadata):  # a description
            return name(found.type)
        if isinstance(found, inspect.StructType):
            if found.cls.__name__ not in structs:
                members = structs[found.cls.__name__] = [found.array_like, found.tag]
                members += [(member.encode_name, name(member.type)) for member in found.fields]
            return found.cls.__name__
        if isinstance(found, inspect.EnumType):
            return [member.value for member in found.cls]
        if isinstance(found, inspect.CustomType):
            return found.cls.__name__
        parts = [part for value in asdict(found).values() for part in (value if isinstance(value, tuple) else [value])]
        return type(found).__name__, [name(part) if isinstance(part, inspect.Type) else part for part in parts]

    return str(([name(found) for found in inspect.multi_type_info(types)], structs))
