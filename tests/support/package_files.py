"""The files of the installed package, in folders of a test instead of those of this machine."""

from pathlib import Path

import pytest

from correlator.config import loading
from correlator.doctor import service


def place(patch: pytest.MonkeyPatch, etc: Path, *, state: Path | None = None, units: Path | None = None) -> None:
    """Let what runs in this process find /etc/correlator at `etc`, and what the service has beside it.

    `state` is its /var/lib/correlator, `units` the folder of its unit; its credentials are in `run` beside `etc`.
    """
    found = {
        (loading, "DEFAULT_FILE"): etc / "correlator.toml",
        (service, "GATEWAY_FILE"): etc / "gateway.toml",
        (service, "CREDENTIALS"): etc.parent / "run",
        (service, "STATE"): state or etc.parent,
        (service, "UNIT_FILES"): () if units is None else (units / service.UNIT,),
    }
    for (module, name), value in found.items():
        patch.setattr(module, name, value)
