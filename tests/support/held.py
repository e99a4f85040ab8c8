"""How much memory an object holds: what a bound on it promises, whatever the object keeps it in."""

from __future__ import annotations

import gc
import sys
from types import BuiltinFunctionType, FunctionType, ModuleType

import msgspec

SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType)


def held(*objects: object) -> int:
    """Return the bytes of all that is reachable from `objects`, except classes, modules and functions."""
    seen, todo, size = set[int](), list(objects), 0
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, SHARED):
            continue
        seen.add(id(one))
        size += sys.getsizeof(one) if not isinstance(one, msgspec.Raw) else memoryview(one).nbytes
        todo += gc.get_referents(one)
        if isinstance(one, msgspec.Struct):  # Some are no object of the garbage collector.
            todo += [getattr(one, name) for name in one.__struct_fields__]
    return size
