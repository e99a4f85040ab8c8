"""The settings of TLS for an outgoing connection."""

from pathlib import Path
from typing import Annotated

from correlator.config import values
from correlator.config.section import Section
from correlator.config.section import described as _key


class Tls(Section, frozen=True, kw_only=True):
    ca: Annotated[Path | None, _key("CA certificates to trust (PEM); empty: the system's.", values.optional_path)] = (
        None
    )
    cert: Annotated[
        Path | None, _key("Client certificate (PEM), for a peer that asks for one.", values.optional_path)
    ] = None
    key: Annotated[Path | None, _key("Private key of `cert` (PEM).", values.optional_path)] = None
    verify: Annotated[bool, _key("Check the peer's certificate and its host name.")] = True
