"""The syntax of the values of `[labels]`: a name of JobLog, and the title that people read instead."""

from collections.abc import Iterable

MAX_LABELS = 1000
MAX_TITLE = 200
"""Characters."""

_EXPECTED = (
    f'a list of at most {MAX_LABELS} names with their titles, e.g. ["final-sync = Final synchronisation"], each name'
    f" once and each title of 1 to {MAX_TITLE} characters in one line"
)


def labels(raw: object) -> tuple[str, ...]:
    """Parse labels of the form `name = title`."""
    if not isinstance(raw, list) or len(raw) > MAX_LABELS or not all(isinstance(line, str) for line in raw):
        raise ValueError(_EXPECTED)
    found = titles(raw)
    if len(found) < len(raw) or not all(name and _is_title(title) for name, title in found.items()):
        raise ValueError(_EXPECTED)
    return tuple(raw)


def titles(lines: Iterable[str]) -> dict[str, str]:
    """Return the titles by their names."""
    parts = (line.partition("=") for line in lines)
    return {name.strip(): title.strip() for name, _, title in parts}


def _is_title(text: str) -> bool:
    return 0 < len(text) <= MAX_TITLE and text.isprintable()
