"""The files that a browser may load. All other paths are not served.

The page is one HTML file and one script, and each part of the browser client is one file: what is many files in this
package would be as many requests, and a round trip for each level of imports. `_Join` makes one module of several,
without a build step. What few people open is a second script, which the page loads when it is wanted. The scripts
contain the styles: for a file beside it, a browser opens another connection, which takes a round trip more. Their
addresses contain a hash of their content, so that a browser may keep them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import PurePosixPath
from types import MappingProxyType
from urllib.parse import quote

STYLES = ("page.css", "list.css", "log.css", "print.css")
"""In the order of the cascade."""

VIEWS, VIEWS_STYLES = "page/views.js", ("views.css",)
"""The second script of the page, which `page/main.js` imports when one of its views is wanted."""

CLIENT = ("client.js", "progress.js", "react.js")
"""What other pages import, and GUIs copy. The last two import `client.js`, which therefore keeps one connection."""

CONTENT_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".ts": "text/plain",
}
"""By suffix."""


@dataclass(frozen=True, slots=True)
class File:
    """What is served at one address.

    `is_hashed`: the address belongs to this content, and never to another one. `is_for_others`: pages of every origin
    may load it.
    """

    body: bytes
    compressed: bytes
    content_type: str
    etag: str
    is_hashed: bool
    is_for_others: bool

    @classmethod
    def of(cls, name: str, text: str, *, is_hashed: bool = False, is_for_others: bool = False) -> File:
        """`name`: any with the suffix of the file."""
        body = text.encode()
        etag = hashlib.sha256(body).hexdigest()[:20]
        return cls(
            body,
            gzip.compress(body, mtime=0),
            CONTENT_TYPES[PurePosixPath(name).suffix],
            etag,
            is_hashed,
            is_for_others,
        )


def address(page: str | None, *view: str) -> str | None:
    """Return the address of a view, e.g. ``"jobs", job_id``, on the page at `page`; None if there is no page."""
    return f"{page}/#/{'/'.join(quote(part.encode('utf-8', 'replace'), safe='') for part in view)}" if page else None


@cache
def files(*, gateway: bool = False) -> Mapping[str, File]:
    """URL path → file. ``/`` is the page. The paths are made here: that of a request never becomes the path of a file.

    `gateway`: the page has a mark by which its scripts know that a gateway serves it, before any request.
    """
    client = {name: joined(name, beside=CLIENT[:1]) for name in CLIENT}
    client |= {name: _read(name) for name in map(_types, CLIENT)}
    found = {f"/{name}": File.of(name, text, is_for_others=True) for name, text in client.items()}
    found["/favicon.svg"] = File.of("favicon.svg", _read("favicon.svg"))
    page = _read("index.html")
    if gateway:
        page = page.replace('<html lang="en">', '<html lang="en" data-fleet>', 1)
    first, second = joined_in_two("page/main.js", VIEWS)
    views = File.of("views.js", _styled(shortened(second), VIEWS_STYLES), is_hashed=True)
    views_name = f"views-{views.etag}.js"
    first = first.replace('import("./views.js")', f'import("./{views_name}")')
    script = File.of("page.js", _styled(shortened(first), STYLES), is_hashed=True)
    name = f"page-{script.etag}.js"
    found |= {f"/{views_name}": views, f"/{name}": script}
    found["/"] = File.of("index.html", page.replace('"page.js"', f'"{name}"'))
    return MappingProxyType(found)


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text()


def _styled(script: str, names: Iterable[str]) -> str:
    """The script, which first adds styles to its page. The content security policy admits that."""
    styles = json.dumps(shortened("".join(map(_read, names))), ensure_ascii=False)
    begin = f"const $styles = new CSSStyleSheet();\n$styles.replaceSync({styles});\n"
    return f"{begin}document.adoptedStyleSheets.push($styles);\n{script}"


def _types(name: str) -> str:
    return name.removesuffix(".js") + ".d.ts"


def joined(entry: str, beside: Iterable[str] = (), *, read: Callable[[str], str] = _read) -> str:
    """The module and all that it imports, as one module with the same exports.

    `beside`: modules that stay files of their own, in the folder of the result. `read` returns the text of a module.

    Raises:
        ValueError: A module imports or exports in a form that is not known here, or imports what is not exported.
    """
    return "".join(_Join(frozenset(beside) - {entry}, read).parts(entry))


def joined_in_two(entry: str, later: str, *, read: Callable[[str], str] = _read) -> tuple[str, str]:
    """Two modules. The first imports the second at some time, and leaves it what both are made of in `$shared`.

    So a module that both import is evaluated once, with one state.

    Raises:
        ValueError: As `joined` does.
    """
    first = _Join(frozenset(), read)
    head, before, rest = first.parts(entry)
    second = _Join(frozenset(), read, first.exports)
    text = "".join(second.parts(later))
    shared = f"globalThis.$shared = {{ {', '.join(map(_variable, second.taken))} }};\n"
    return f"{head}{before}{shared}{rest}", text


def shortened(text: str) -> str:
    """JavaScript or CSS without indentation, and without comments, except ``/*!``.

    Behind code, a comment is left out if it follows ``;``, ``,`` or a brace and ends its line. No line of a template
    may look like a comment, or need its indentation.
    """
    return _LEFT_OUT.sub("", text)


_LEFT_OUT = re.compile(
    r"^[ \t]*(?:(?:/\*(?!!)(?:(?!\*/).)*\*/|//[^\n]*)\n)?|(?<=[;,{}]) //[^\n]*$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r'^(import|export) (?:(\w+)|\{([^}]*)\}) from "(\.[^"]+)";$', re.MULTILINE)

# At the begin of a line, or behind what may be in front of an export. `re` looks for a word fast, and back from there.
_DECLARED = re.compile(r"export(?<![^\n]export) ((?:(?:async )?function\*?|class|const) (\w+))")
_LISTED = re.compile(r"export(?<![^\n;}]export) ?\{([^}]*)\};")
_DEFAULT = re.compile(r"export(?<![^\n;}]export) default ")
_UNKNOWN = re.compile(r"^(?:import|export)\b[^.\n]*", re.MULTILINE)


class _Join:
    """Each imported module becomes a function that is called once and returns what the module exports.

    So a module keeps its own scope, and its text but for imports and exports. The order is that in which browsers
    evaluate modules. Modules that import each other are refused: one of them would get nothing of the other.

    The forms of imports and exports are those of this package. A module must not export a variable that is assigned
    again: its importers have a copy.
    """

    def __init__(
        self, beside: frozenset[str], read: Callable[[str], str], shared: Mapping[str, set[str]] | None = None
    ) -> None:
        """`shared`: exports of the modules that another script has left in `$shared`."""
        self._beside = beside
        self._read = read
        self._shared = shared or {}
        self.taken: list[str] = []
        """Those of the shared modules that are imported."""
        self.exports: dict[str, set[str]] = {}
        """Of the modules that `_before` defines, which is in front of the entry."""
        self._before: list[str] = []
        self._unfinished: list[str] = []

    def parts(self, name: str) -> tuple[str, str, str]:
        """The whole text in three parts: all before the first link, where a directive stays; the modules; the rest."""
        text = self._read(name)
        first = _LINK.search(text)
        at = len(text) if first is None else first.start()
        rest = self._linked(name, text[at:])
        return text[:at], "".join(self._before), rest

    def _linked(self, name: str, text: str) -> str:
        """`text` of a module with constants instead of its links to other modules, which are added to `_before`."""

        def constants(link: re.Match[str]) -> str:
            word, default, listed, address = link.groups()
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), address))
            pairs = [("default", default)] if default else _pairs(listed)
            if missing := {theirs for theirs, _ in pairs} - self._exports_of(target):
                raise ValueError(f"{name} imports {', '.join(sorted(missing))}, which {target} does not export")
            again = f"\nexport {{ {', '.join(own for _, own in pairs)} }};" if word == "export" else ""
            return f"const {{ {_members(pairs)} }} = {_variable(target)};{again}"

        # The address that the module would have beside the result.
        place = f'import.meta.url.replace(/[^/?#]*([?#].*)?$/, "{name}")'
        return _LINK.sub(constants, text).replace("import.meta.url", place)

    def _exports_of(self, name: str) -> set[str]:
        """The names that a module exports. It is added to `_before`."""
        if name in self._unfinished:
            raise ValueError(f"modules import each other: {', '.join([*self._unfinished, name])}")
        if name not in self.exports:
            self._unfinished.append(name)
            self.exports[name] = self._add(name)
            self._unfinished.pop()
        return self.exports[name]

    def _add(self, name: str) -> set[str]:
        if name in self._shared:
            self.taken.append(name)
            self._before.append(f"const {_variable(name)} = globalThis.$shared.{_variable(name)};\n")
            return self._shared[name]
        return self._add_file(name) if name in self._beside else self._add_function(name)

    def _add_file(self, name: str) -> set[str]:
        self._before.append(f'import * as {_variable(name)} from "./{name}";\n')
        _, pairs = _without_exports(joined(name, read=self._read))
        return {theirs for theirs, _ in pairs}

    def _add_function(self, name: str) -> set[str]:
        text, pairs = _without_exports(self._linked(name, self._read(name)))
        if unknown := _UNKNOWN.search(text):
            raise ValueError(f"{name} has a form that is not known here: {unknown[0]}")
        self._before.append(f"const {_variable(name)} = (() => {{\n{text}\nreturn {{ {_members(pairs)} }};\n}})();\n")
        return {theirs for theirs, _ in pairs}


_Pairs = list[tuple[str, str]]
"""Names of exports, each with the name of its variable in the module."""


def _without_exports(text: str) -> tuple[str, _Pairs]:
    """The text of a module, and what it exports: the name for others, and its own."""
    listed = [(theirs, own) for each in _LISTED.findall(text) for own, theirs in _pairs(each)]
    declared = [(name, name) for _, name in _DECLARED.findall(text)]
    default = [("default", "$default")] if _DEFAULT.search(text) else []
    text = _DEFAULT.sub("const $default = ", _DECLARED.sub(r"\1", _LISTED.sub("", text)))
    return text, [*listed, *declared, *default]


def _pairs(listed: str) -> _Pairs:
    """``a, b as c`` → (a, a), (b, c)."""
    names = [each.split(" as ") for each in re.split(r"\s*,\s*", listed.strip()) if each]
    return [(each[0], each[-1]) for each in names]


def _members(pairs: _Pairs) -> str:
    """The members of an object, or what becomes of them: the same text in JavaScript."""
    return ", ".join(one if one == other else f"{one}: {other}" for one, other in pairs)


def _variable(name: str) -> str:
    return "$" + re.sub(r"\W", "_", name.removesuffix(".js"))
