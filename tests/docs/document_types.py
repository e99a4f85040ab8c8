"""What `make docs` writes from the types of the job document: their declarations in client.d.ts."""

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

WRITTEN = {"Metadata": "Readonly<Record<string, unknown>> & { readonly _cut?: Readonly<Record<string, number>> }"}
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
