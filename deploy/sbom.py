"""The bill of materials: every file of others that the program runs with, as CycloneDX 1.6 in JSON.

It is made from what is locked, by name, version and hash, and from what the page brings along; nothing is asked over
the network, and two runs on the same files give the same text. `python -m deploy.sbom FILE` writes it.
"""

import hashlib
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from deploy.locked import EXTRAS, REPOSITORY, described, running
from deploy.version import version

VENDOR = Path("correlator/web/vendor")
_VENDORED = re.compile(
    r"^\| `(?P<file>[\w.]+)` \| \[(?P<name>[^\]]+)\].*?\| (?P<version>[\w.]+) \| (?P<licence>[\w.-]+)", re.MULTILINE
)


class Vendored(NamedTuple):
    """A file of a browser library, as VENDOR.md describes it. `digest` is computed from the file."""

    file: str
    name: str
    version: str
    licence: str
    digest: str


def vendored(repository: Path = REPOSITORY) -> Iterator[Vendored]:
    """ValueError: a file is not the one that VENDOR.md names by its hash, or is not named at all."""
    listed = (repository / VENDOR / "VENDOR.md").read_text()
    named = [match.groupdict() for match in _VENDORED.finditer(listed)]
    if {one["file"] for one in named} != {file.name for file in (repository / VENDOR).glob("*.js")}:
        raise ValueError(f"{VENDOR}/VENDOR.md does not name just the files that are there")
    for one in named:
        digest = hashlib.sha256((repository / VENDOR / one["file"]).read_bytes()).hexdigest()
        if f"{digest}  {one['file']}" not in listed:
            raise ValueError(f"{VENDOR}/{one['file']} is not the file whose hash stands in VENDOR.md")
        yield Vendored(**one, digest=digest)


def bill(repository: Path = REPOSITORY) -> str:
    """The document, as text."""
    project = described(repository)
    program = Component(
        name=project["name"],
        version=version(repository),
        type=ComponentType.APPLICATION,
        bom_ref=project["name"],
        purl=PackageURL("pypi", name=project["name"], version=version(repository)),
        licenses=[LicenseExpression(project["license"])],
    )
    releases = {release.name: release for release in running(repository)}
    components = {
        release.name: Component(
            name=release.name,
            version=release.version,
            bom_ref=f"pypi/{release.name}",
            purl=PackageURL("pypi", name=release.name, version=release.version),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in release.hashes],
            properties=[Property(name="correlator:needed-where", value=release.marker)] if release.marker else [],
        )
        for release in releases.values()
    }
    libraries = [
        Component(
            name=one.name.lower(),
            version=one.version,
            bom_ref=f"npm/{one.name.lower()}",
            purl=PackageURL("npm", name=one.name.lower(), version=one.version),
            licenses=[DisjunctiveLicense(id=one.licence)],
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one.digest)],
            properties=[Property(name="correlator:file", value=str(VENDOR / one.file))],
        )
        for one in vendored(repository)
    ]
    document = Bom(components=[*components.values(), *libraries])
    document.metadata.component = program
    document.metadata.properties.add(Property(name="correlator:extras", value=",".join(EXTRAS)))
    asked = _asked(repository)
    document.register_dependency(program, [*(c for name, c in components.items() if name in asked), *libraries])
    for name, component in components.items():
        document.register_dependency(component, [components[r.name] for r in releases.values() if name in r.via])
    # No time of day, and a serial number made of the contents: the same files give the same text.
    text = "".join(f"{c.purl}{sorted(h.content for h in c.hashes)}" for c in [*components.values(), *libraries])
    document.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, f"{program.purl}{text}")
    document.metadata.timestamp = None  # type: ignore[assignment]  # which the standard allows
    return JsonV1Dot6(document).output_as_string(indent=2) + "\n"


def _asked(repository: Path) -> set[str]:
    """The names that the program itself asks for."""
    project = described(repository)
    given = [*project["dependencies"], *(r for extra in EXTRAS for r in project["optional-dependencies"][extra])]
    return {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower() for requirement in given}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(bill())
    print(target)
