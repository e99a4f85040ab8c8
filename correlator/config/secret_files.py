"""Files that hold a secret: those that the configuration names, and the credentials of systemd."""

from collections.abc import Mapping
from pathlib import Path

from correlator.errors import ConfigError


def shown_path(path: Path) -> str:
    """Return the path for a message; a relative one is hidden, as it may be the secret itself by mistake."""
    return str(path) if path.is_absolute() else "that file (a relative path)"


def credential(environ: Mapping[str, str], name: str) -> Path | None:
    """Return the file of a systemd credential (systemd.exec(5), LoadCredential=); None if absent or blank.

    A blank one is the default that the unit's SetCredential= sets for a missing secret.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY")
    file = Path(directory, name) if directory else None
    try:
        return file if file and file.read_bytes().strip() else None
    except (FileNotFoundError, ValueError):  # no such path, or a name that no path can have
        return None
    except OSError:
        return file  # Reading it later reports the reason.


def read_secret(file: Path, label: str) -> str:
    """Return the text of `file` without its last line end. Raises: `ConfigError`."""
    try:
        text = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError([f"{label}: {shown_path(file)} cannot be read: {why}"]) from None
    if not text:
        raise ConfigError([f"{label}: {shown_path(file)} is empty"])
    return text
