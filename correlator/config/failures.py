"""The tables `[[failures.known]]` and `[[failures.same]]`: what an operator knows of failures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from correlator.config.values import Section, text_like
from correlator.config.values import key as _key
from correlator.model.replies import OperatorNote

MAX_KNOWN, MAX_SAME = 100, 50
"""Most tables of a kind: each is compared with the text of a failure."""

MAX_PATTERN, MAX_STARS = 200, 8

PATTERN = "a text of 3 to 200 characters in which * stands for a part of a word, e.g. rack-*-node; at most 8 *"


def pattern(raw: object) -> str:
    """Parse a pattern: see `failures.patterns`."""
    if not isinstance(raw, str) or len(raw) > MAX_PATTERN or raw.count("*") > MAX_STARS:
        raise ValueError(PATTERN)
    if sum(char.isalnum() for char in raw) < 3:
        raise ValueError(PATTERN)
    return raw


@dataclass(frozen=True, kw_only=True)
class Known(Section):
    fingerprint: str = _key(
        "",
        "The fingerprint of the failure, as in `failure` of a job.",
        text_like("[0-9a-f]{12}", "12 hex digits, as in `failure.fingerprint` of a job"),
    )
    pattern: str = _key("", "Instead: words of its text. * stands for a part of a word.", pattern)
    text: str = _key(
        "",
        "What people read beside the failure. Required.",
        text_like(r"[^\x00-\x1f\x7f]{1,500}", "one line of up to 500 characters"),
    )
    link: str = _key(
        "",
        "Where they read more, e.g. a runbook.",
        text_like(r"https?://[!-~]{1,2000}", "an address, e.g. https://wiki.example/vmware-tools"),
    )


@dataclass(frozen=True, kw_only=True)
class Same(Section):
    pattern: str = _key("", "Names that differ between failures of one kind. * stands for a part of a word.", pattern)
    name: str = _key(
        "",
        "What stands for them in fingerprints, e.g. rack. Required.",
        text_like("[a-z]{1,20}", "1 to 20 letters a-z, e.g. rack"),
    )


@dataclass(frozen=True, kw_only=True)
class Failures(Section):
    known: tuple[Known, ...] = _key(
        (), "Failures that you know, with a note for people; only in the file, not in the environment.", live=True
    )
    same: tuple[Same, ...] = _key(
        (),
        "Names that do not tell failures apart; only in the file. A change gives these failures other fingerprints.",
    )

    @property
    def notes(self) -> list[tuple[str, str, OperatorNote]]:
        """What `known` says, for `failures.known.KnownFailures`."""
        return [(one.fingerprint, one.pattern, OperatorNote(one.text, one.link or None)) for one in self.known]

    @property
    def masks(self) -> list[tuple[str, str]]:
        """What `same` says, for `failures.patterns.Masks`."""
        return [(one.pattern, one.name) for one in self.same]


def contradictions(failures: Failures, place: Callable[[str], str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the problems between values that are each valid: the keys involved, and the message."""
    for name, tables, most in (("known", failures.known, MAX_KNOWN), ("same", failures.same, MAX_SAME)):
        if len(tables) > most:
            key = f"failures.{name}"
            yield (key,), f"{key}: expected {most} tables at most, not {len(tables)}"
    seen: dict[str, str] = {}
    for number, known in enumerate(failures.known, 1):
        key = f"failures.known[{number}]"
        if bool(known.fingerprint) == bool(known.pattern):
            both = (f"{key}.fingerprint", f"{key}.pattern")
            yield both, f'{key}: expected a fingerprint or a pattern, e.g. pattern = "VMware Tools"'
        if not known.text:
            yield (f"{key}.text",), f"{key}.text: expected what people read beside the failure"
        if known.fingerprint and known.fingerprint in seen:
            where = place(seen[known.fingerprint])
            yield (f"{key}.fingerprint",), f"{key}.fingerprint: the table in {where} has it already"
        seen.setdefault(known.fingerprint, f"{key}.fingerprint")
    for number, same in enumerate(failures.same, 1):
        for name, example in (("pattern", "rack-*"), ("name", "rack")):
            if not getattr(same, name):
                key = f"failures.same[{number}].{name}"
                yield (key,), f"{key}: expected a value, e.g. {example}"
