"""What `make docs` writes from types: docs/configuration.md, deploy/correlator.toml, and the job for the clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from correlator import daemon
from correlator.config import loading, rendering, schema, values
from correlator.config.schema import Key
from correlator.config.values import Section
from correlator.config.webhooks import SigningSecrets, Template
from tests.docs import document_types

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "configuration.md"
FILE = REPOSITORY / "deploy" / "correlator.toml"
TYPES = REPOSITORY / "correlator" / "web" / "client.d.ts"
JOB = REPOSITORY / "correlator" / "client" / "messages.py"
RELOADED = " A reload applies them."
BEGIN, END = "<!-- begin: written by make docs -->\n", "<!-- end -->\n"

KINDS: dict[object, str] = {
    SigningSecrets: ", one or two secrets `whsec_…`",
    Template: ", a JSON text",
    values.Size: ", from `1kB` to `1MB`",
}
"""What may be written, where neither the default nor the description shows it."""


def reference() -> str:
    """A chapter for each table of the file, with a row for each key."""
    return "\n" + "\n".join(_chapters()) + "\n"


def written(page: str, made: str, begin_mark: str = BEGIN, end_mark: str = END) -> str:
    """The page with what was made between its marks."""
    before, begin, rest = page.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end:
        raise ValueError(f"expected {begin_mark.strip()} and {end_mark.strip()}")
    return f"{before}{begin}{made}{end}{after}"


def _chapters() -> Iterator[str]:
    described: dict[type[Section], str] = {}
    for section in schema.keys(schema.Config).values():
        assert section.section is not None
        yield from _chapter(section.name, section.header(), section.description, section.section)
        for table in schema.keys(section.section).values():
            if table.section is not None:
                name = f"{section.name}.{table.name}"
                like = described.setdefault(table.section, name)
                header = table.header(f"{section.name}.")
                yield from _chapter(name, header, table.description, table.section, like=like)


def _chapter(name: str, header: str, description: str, section: type[Section], *, like: str = "") -> Iterator[str]:
    """A table of the keys, or their variables alone if they are those of the chapter `like`."""
    yield from (f"### `{header}`", "", _cell(description), "")
    if like not in ("", name):
        keys = [f"{name}.{key.name}" for key in schema.keys(section).values()]
        variables = ", ".join(f"`{loading.variable(key)}`" for key in keys)
        yield from (f"The keys are those of `[{like}]`: {variables}.{RELOADED * daemon.LIVE.issuperset(keys)}", "")
        return
    yield from ("| key | default | meaning |", "|---" * 3 + "|")
    for key in schema.keys(section).values():
        if key.section is None:
            dotted = f"{name}.{key.name}"
            live = "<br>reload" if dotted in daemon.LIVE or name in daemon.LIVE else ""
            variable = "" if header.startswith("[[") else f"<br>`{loading.variable(dotted)}`"
            cells = (
                f"`{key.name}`{variable}{live}",
                f"`{values.toml(key.default)}`{_right(key)}",
                _cell(key.description),
            )
            yield f"| {' | '.join(cells)} |"
    yield ""


def _right(key: Key) -> str:
    """What may be written, in words, after the default."""
    if key.kind is Literal:
        return ", one of " + ", ".join(f"`{choice}`" for choice in get_args(key.hint))
    return KINDS.get(key.kind, "") + key.bounds


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), reference()))
    FILE.write_text(rendering.reference())
    types = document_types
    TYPES.write_text(written(TYPES.read_text(), types.declarations(), types.BEGIN, types.END))
    JOB.write_text(written(JOB.read_text(), types.python_declarations(), types.PYTHON_BEGIN, types.PYTHON_END))
