"""The files that a browser may load. All other paths are not served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from types import MappingProxyType

FOLDERS = ("", "client/", "page/", "vendor/")

CONTENT_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".ts": "text/plain",
}
"""By suffix. Files with any other suffix are not served."""


@cache
def files() -> Mapping[str, tuple[str, str]]:
    """URL path → (name of the resource in this package, content type). ``/`` is the page.

    The mapping is made from the files of the package, so the path of a request never becomes the path of a file.
    """
    root = resources.files(__name__)
    found = {f"/{name}": (name, content_type) for folder in FOLDERS for name, content_type in _in(root, folder)}
    found["/"] = found.pop("/index.html")
    return MappingProxyType(found)


def _in(root: Traversable, folder: str) -> Iterator[tuple[str, str]]:
    for file in (root / folder).iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if file.is_file() and suffix in CONTENT_TYPES:
            yield folder + file.name, CONTENT_TYPES[suffix]
