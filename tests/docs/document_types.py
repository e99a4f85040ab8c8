"""What `make docs` writes from the types of the job document: their declarations in client.d.ts and for Python."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap
from typing import Any

from correlator.model.document import JobDocument
from correlator.sinks.http.openapi import schemas_of

Schema = dict[str, Any]

BEGIN, END = "// begin: written by make docs\n", "// end\n"

NAMES = {"JobDocument": "Job"}
"""Types that the browser's client calls otherwise."""

WRITTEN = {
    "Metadata": """Readonly<Record<string, unknown>> & {
  /** A text, where the appliance has it: the name of the virtual machine. */
  readonly vm_name?: string;
  readonly _cut?: Readonly<Record<string, number>>;
}"""
}
PLAIN = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}

_, SCHEMAS = schemas_of([JobDocument])


def declarations() -> str:
    """The types of a job in TypeScript. A member that may be null may be missing too, as a patch removes it."""
    names = ["JobDocument", *(name for name in SCHEMAS if name != "JobDocument")]
    return "\n".join(line for name in names for line in _declared(name))


def _declared(name: str) -> Iterator[str]:
    schema = SCHEMAS[name]
    yield from _comment(schema, "")
    if "enum" in schema or name in WRITTEN:
        yield f"export type {NAMES.get(name, name)} = {WRITTEN.get(name) or _type(schema)};\n"
        return
    yield f"export interface {NAMES.get(name, name)} {{"
    for member, part in schema["properties"].items():
        yield from _comment(part, "  ")
        missing = member not in schema["required"] or {"type": "null"} in part.get("anyOf", ())
        yield f"  readonly {member}{'?' if missing else ''}: {_type(part)};"
    yield "}\n"


def _comment(schema: Schema, indent: str) -> Iterator[str]:
    if text := schema.get("description"):
        first, *more = lines = wrap(text, 112 - len(indent), break_on_hyphens=False)
        if more:
            yield from (f"{indent}/**", *(f"{indent} * {line}" for line in lines), f"{indent} */")
        else:
            yield f"{indent}/** {first} */"


def _type(schema: Schema) -> str:
    made: str
    match schema:
        case {"$ref": ref}:
            name = ref.rpartition("/")[2]
            made = NAMES.get(name, name)
        case {"anyOf": parts}:
            made = " | ".join(map(_type, parts))
        case {"enum": values}:
            made = " | ".join(f'"{value}"' for value in values)
        case {"items": items}:
            made = f"readonly {_type(items)}[]"
        case {"additionalProperties": values}:
            made = f"Readonly<Record<string, {_type(values)}>>"
        case {"examples": values} if "format" not in schema:  # more may come
            made = " | ".join((*(f'"{value}"' for value in values), "(string & {})"))
        case _:
            made = PLAIN[schema["type"]]
    return made


PYTHON_BEGIN, PYTHON_END = "# begin: written by make docs\n", "# end\n"
_OF_PYTHON = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


def python_declarations() -> str:
    """The same types for Python: a member that may be missing is `NotRequired`."""
    found = []
    for name in sorted(SCHEMAS, key=lambda name: "properties" in SCHEMAS[name] and name != "Metadata"):
        schema, called = SCHEMAS[name], NAMES.get(name, name)
        if name == "Metadata":
            found.append(f"{called}: TypeAlias = Mapping[str, Any]\n")
        elif "enum" in schema:
            found.append(f"{called}: TypeAlias = {_of_python(schema)}\n")
        else:
            found.append(f"\n\nclass {called}(TypedDict):\n" + "".join(_members_of_python(schema)))
    return "".join(found) + "\n\n"  # as the formatter has it


def _members_of_python(schema: Schema) -> Iterator[str]:
    for member, part in schema["properties"].items():
        kind = _of_python(part)
        missing = member not in schema["required"] or {"type": "null"} in part.get("anyOf", ())
        yield f"    {member}: {f'NotRequired[{kind}]' if missing else kind}\n"


def _of_python(schema: Schema) -> str:
    match schema:
        case {"$ref": ref}:
            name = str(ref).rpartition("/")[2]
            return NAMES.get(name, name)
        case {"anyOf": parts}:
            return " | ".join(sorted(map(_of_python, parts), key=lambda part: part == "None"))
        case {"enum": values}:
            return f"Literal[{', '.join(f'{chr(34)}{value}{chr(34)}' for value in values)}]"
        case {"items": items}:
            return f"Sequence[{_of_python(items)}]"
        case {"additionalProperties": values}:
            return f"Mapping[str, {_of_python(values)}]"
        case _:
            return _OF_PYTHON[schema["type"]]
